//! `glimpse-edge bench`: how fast this device embeds.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use glimpse_embedder::bench::{self, WARM_UP, measure};
use glimpse_embedder::{Embedder, EmbedderOptions, Threads};
use glimpse_protocol::device::Cores;
use serde::Serialize;

use super::ModelArgs;
use crate::linux::host;
use crate::linux::model::{ModelFiles, load};
use crate::linux::usage::{self, Energy, Meter};

/// Flags of `glimpse-edge bench`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("network").args(["model", "bundle"]).required(true).multiple(true)))]
pub struct BenchArgs {
    /// Photo, JPEG or PNG [default: one drawn by a formula, which is not decoded]
    #[arg(value_name = "PHOTO")]
    pub photo: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Photos to measure
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub runs: u32,
    /// Prints where the network's time goes, by operator
    #[arg(long)]
    pub profile: bool,
    /// Leaves our own operators out: the engine as it comes
    #[arg(long)]
    pub engine_alone: bool,
    /// Threads that run the network together: a number, or all
    #[arg(long, default_value_t = Threads::ONE, value_name = "N|all")]
    pub threads: Threads,
    /// The processors to run on, such as 2-3 [default: the system chooses]
    #[arg(long, value_name = "CORES")]
    pub cores: Option<Cores>,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    times: bench::Measured,
    /// The most that this program had, the network's loading included.
    peak_memory_mb: Option<f64>,
    /// Of the whole board.
    joules_a_photo: Option<f64>,
    energy: Option<Energy>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\nmemory at most: ", self.times)?;
        match self.peak_memory_mb {
            Some(megabytes) => write!(f, "{megabytes:.0} MB")?,
            None => f.write_str("the kernel does not say")?,
        }
        match (&self.energy, self.joules_a_photo) {
            (Some(Energy { watts, sensor, .. }), Some(joules)) => {
                write!(f, "\nenergy: {joules:.3} J a photo, {watts:.2} W of all that {sensor} sees")
            }
            _ if self.times.profile.is_some() => f.write_str("\nenergy: not measured with --profile"),
            _ => f.write_str(
                "\nenergy: nothing here measures it that this user may read, or not in so short a time",
            ),
        }
    }
}

/// Measures, and prints what it found.
///
/// # Errors
/// A model or photo that cannot be used, and output that cannot be written.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if let Some(cores) = &args.cores {
        host::run_on(cores)?;
    }
    let files = ModelFiles {
        bundle: args.model.bundle.clone(),
        model: args.model.model.clone(),
        codebook: None,
        threads: args.threads,
    };
    let (path, _) = files.network()?;
    let embedder = if args.engine_alone {
        Embedder::load_with(
            &path,
            &EmbedderOptions { threads: args.threads, ..EmbedderOptions::engine_alone() },
        )?
    } else {
        load(&path, args.threads)?
    };
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read the photo {}", path.display()))
    };
    let photo = args.photo.as_ref().map(read).transpose()?;
    let meter = Meter::start(Path::new("/"));
    let times = measure(&embedder, photo.as_deref(), args.runs as usize, args.profile)?;
    // Runs that tell operators apart are no photos.
    let energy = meter.and_then(Meter::end).filter(|_| !args.profile);
    let photos = (times.runs + WARM_UP) as f64;
    let measured = Measured {
        times,
        peak_memory_mb: usage::peak_memory(Path::new("/")).map(|bytes| bytes as f64 / 1e6),
        joules_a_photo: energy.as_ref().map(|energy| energy.joules / photos),
        energy,
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&measured)?)?;
    } else {
        writeln!(out, "{measured}")?;
    }
    Ok(ExitCode::SUCCESS)
}
