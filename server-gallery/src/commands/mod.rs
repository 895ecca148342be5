//! The commands of the binary, one a file: [`Command`] and what it does.

mod add;
mod backup;
mod bench;
mod check;
mod compact;
mod console_password;
mod devices;
mod export;
mod import;
mod index;
mod ingest;
mod list;
mod manual;
mod models;
mod remove;
mod search;
mod serve;
mod stats;
mod verify;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::config::{RawConfig, RawSecurity};

/// What `glimpse-gallery` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Embed photos and add them to a gallery
    Ingest(ingest::IngestArgs),
    /// Add photos to a gallery
    Add(add::AddArgs),
    /// Remove images from a gallery
    Remove(remove::RemoveArgs),
    /// Make the index of a gallery, with other options than the usual ones
    Index(index::IndexArgs),
    /// Answer queries over MQTT
    Serve(ServeArgs),
    /// Search the gallery for photos on this machine
    Search(search::SearchArgs),
    /// Show what a gallery holds
    Stats(GalleryArgs),
    /// List the images of a gallery: id, label and path, separated by tabs
    List(GalleryArgs),
    /// Read everything that a gallery holds, and report what is damaged
    Verify(verify::VerifyArgs),
    /// Give the space of what was removed back
    Compact(compact::CompactArgs),
    /// Copy a gallery, also while it is served
    Backup(backup::BackupArgs),
    /// Put a copy in the place of a gallery
    Restore(backup::RestoreArgs),
    /// Write features and a table of images, for other programs
    Export(export::ExportArgs),
    /// Store features that were made elsewhere
    Import(import::ImportArgs),
    /// Check configuration, bundle and gallery, and report every problem
    Check(ServeArgs),
    /// Add, revoke, remove and list the devices that may connect
    #[command(subcommand)]
    Devices(devices::DevicesCommand),
    /// Roll query networks out to devices
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Set the password of the console: asked for on a terminal, or the first line of a file or of standard input
    ConsolePassword(console_password::ConsolePasswordArgs),
    /// Write the manual pages into a folder
    Man(manual::ManArgs),
    /// Write what completes the commands in a shell to standard output
    Completions(manual::CompletionsArgs),
    /// Measure how fast this machine searches, and what it finds
    Bench(bench::BenchArgs),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, for people; the process then ends with status 1.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Ingest(args) => args.run(),
            Self::Add(args) => args.run(),
            Self::Remove(args) => args.run(),
            Self::Index(args) => args.run(),
            Self::Serve(args) => serve::run(args),
            Self::Search(args) => args.run(),
            Self::Stats(args) => stats::run(&args),
            Self::List(args) => list::run(&args),
            Self::Verify(args) => args.run(),
            Self::Compact(args) => args.run(),
            Self::Backup(args) => args.run(),
            Self::Restore(args) => args.run(),
            Self::Export(args) => args.run(),
            Self::Import(args) => args.run(),
            Self::Check(args) => check::run(args),
            Self::Devices(command) => command.run(),
            Self::Models(command) => command.run(),
            Self::ConsolePassword(args) => args.run(),
            Self::Man(args) => args.run(),
            Self::Completions(args) => args.run(),
            Self::Bench(args) => args.run(),
        }
    }
}

/// Which gallery, for commands that need nothing else of it.
#[derive(Debug, Args)]
pub struct GalleryFolder {
    /// Folder of the gallery
    #[arg(long, env = "GLIMPSE_GALLERY", value_name = "DIR")]
    gallery: PathBuf,
}

/// Which gallery, and the bundle of its space.
#[derive(Debug, Args)]
pub struct Folders {
    /// Folder of the gallery; a command that adds to it makes it
    #[arg(long, env = "GLIMPSE_GALLERY", value_name = "DIR")]
    gallery: PathBuf,
    /// Folder of the space bundle
    #[arg(long, env = "GLIMPSE_BUNDLE", value_name = "DIR")]
    bundle: PathBuf,
}

/// The gallery alone.
#[derive(Debug, Args)]
pub struct GalleryArgs {
    #[command(flatten)]
    folder: GalleryFolder,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The server's flags; what is not given comes from `--config`, or is a default.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery serve --gallery gallery --bundle models/demo
  glimpse-gallery serve --gallery gallery --bundle models/demo --listen 127.0.0.1:0
  glimpse-gallery serve --config gallery.toml --broker broker.lan:1883
  glimpse-gallery serve --config gallery.toml --listen-tls 0.0.0.0:8883 --tls-certificate c.pem --tls-key c.key

Until there is a device (`glimpse-gallery devices add`) the embedded broker serves this machine only, and asks nobody
who they are. From then on every client needs its password or certificate, and other machines connect by TLS 1.3. SIGHUP
reads the configuration and the certificate again: how to search, the latency budget and the rate of devices change at
once, and what needs a restart is named. Devices that are added or revoked are seen without. For mosquitto as
--broker, set `set_tcp_nodelay true` in its configuration: without it every reply waits about 40 ms.

Photos that other commands add or remove are seen within a fraction of a second.

When queries are answered, one line is written to standard output:
  ready mqtt=127.0.0.1:1883 http=127.0.0.1:8080 space=0123.. size=350
followed by mqtts=0.0.0.0:8883 where it listens for TLS.")]
pub struct ServeArgs {
    /// TOML file with any of the settings below
    #[arg(long, env = "GLIMPSE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the gallery
    #[arg(long, env = "GLIMPSE_GALLERY", value_name = "DIR")]
    gallery: Option<PathBuf>,
    /// Folder of the space bundle
    #[arg(long, env = "GLIMPSE_BUNDLE", value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Address of the embedded broker; port 0 is any free one [default: 127.0.0.1:1883]
    #[arg(long, env = "GLIMPSE_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Use this external broker instead
    #[arg(long, env = "GLIMPSE_BROKER", value_name = "HOST:PORT")]
    broker: Option<String>,
    /// Our client id at the external broker [default: made from machine and gallery]
    #[arg(long, env = "GLIMPSE_CLIENT_ID", value_name = "NAME")]
    client_id: Option<String>,
    /// Clients of the embedded broker at a time [default: 1000]
    #[arg(long, env = "GLIMPSE_CLIENTS_MAX", value_name = "N")]
    clients_max: Option<i64>,
    /// Queries that wait; more are answered `busy` [default: 256]
    #[arg(long, env = "GLIMPSE_QUERIES_WAITING_MAX", value_name = "N")]
    queries_waiting_max: Option<i64>,
    /// Queries that are searched together take no longer than this, as far as can be foreseen [default: 20]
    #[arg(long, env = "GLIMPSE_LATENCY_BUDGET_MS", value_name = "MS")]
    latency_budget_ms: Option<i64>,
    /// Queries that one device may ask a second on average; more are answered `busy` [default: 100]
    #[arg(long, env = "GLIMPSE_DEVICE_RATE_MAX", value_name = "RATE")]
    device_rate_max: Option<f64>,
    /// Compare every query with every image
    #[arg(long, env = "GLIMPSE_EXACT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    exact: Option<bool>,
    /// Candidates that are ranked exactly [default: as many as were measured to be enough, and 10 a match]
    #[arg(long, env = "GLIMPSE_RERANK", value_name = "N")]
    rerank: Option<i64>,
    /// Share of the nearest images that inverted lists should not miss [default: what the index was made for]
    #[arg(long, env = "GLIMPSE_RECALL", value_name = "SHARE")]
    recall: Option<f64>,
    /// Search again with each query expanded by its N nearest images (alpha query expansion) [default: not]
    #[arg(long, env = "GLIMPSE_EXPAND", value_name = "N")]
    expand: Option<i64>,
    /// Photos that get no match: none (`matched`), those less similar to every image than was `learned` from the gallery,
    /// or than a similarity [default: matched]
    #[arg(long, env = "GLIMPSE_UNKNOWN", value_name = "matched|learned|SIMILARITY")]
    unknown: Option<String>,
    /// Address of console, health and metrics; `none` for none. Beyond this machine it needs a password
    /// (`console-password`) [default: 127.0.0.1:8080]
    #[arg(long, env = "GLIMPSE_HTTP", value_name = "ADDRESS:PORT")]
    http: Option<String>,
    /// File with the token that /metrics asks other machines for [default: they must log in]
    #[arg(long, env = "GLIMPSE_METRICS_TOKEN", value_name = "FILE")]
    metrics_token: Option<PathBuf>,
    #[command(flatten)]
    security: RawSecurity,
}

impl ServeArgs {
    /// Flags over file, and what is wrong with the file.
    fn raw(self) -> (RawConfig, Vec<String>) {
        let Self {
            config,
            gallery,
            bundle,
            listen,
            broker,
            client_id,
            clients_max,
            queries_waiting_max,
            latency_budget_ms,
            device_rate_max,
            exact,
            rerank,
            recall,
            expand,
            unknown,
            http,
            metrics_token,
            security,
        } = self;
        let flags = RawConfig {
            gallery,
            bundle,
            listen,
            broker,
            client_id,
            clients_max,
            queries_waiting_max,
            latency_budget_ms,
            device_rate_max,
            exact,
            rerank,
            recall,
            expand,
            unknown,
            http,
            metrics_token,
            security,
        };
        let mut problems = Vec::new();
        let raw = match config {
            Some(file) => flags.or_file(&file, &mut problems),
            None => flags,
        };
        (raw, problems)
    }
}

/// Reads `NAME=VALUE`, as `--attribute` takes it.
fn name_and_value(pair: &str) -> anyhow::Result<(&str, &str)> {
    pair.split_once('=').with_context(|| format!("--attribute {pair} is not NAME=VALUE"))
}

/// Writes a line of data to standard output. A reader that has gone away (`| head`) ends the command quietly, as it
/// does other tools.
fn write_line(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}
