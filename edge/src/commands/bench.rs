//! `glimpse-edge bench`: how fast this device embeds.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use glimpse_embedder::bench::measure;
use glimpse_embedder::{Embedder, EmbedderOptions, Threads};

use super::ModelArgs;
use crate::linux::model::ModelFiles;

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
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// Measures, and prints what it found.
///
/// # Errors
/// A model or photo that cannot be used, and output that cannot be written.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let files =
        ModelFiles { bundle: args.model.bundle.clone(), model: args.model.model.clone(), codebook: None };
    let (path, _) = files.network()?;
    let options =
        if args.engine_alone { EmbedderOptions::engine_alone() } else { EmbedderOptions::default() };
    let embedder = Embedder::load_with(&path, &EmbedderOptions { threads: args.threads, ..options })?;
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read the photo {}", path.display()))
    };
    let photo = args.photo.as_ref().map(read).transpose()?;
    let measured = measure(&embedder, photo.as_deref(), args.runs as usize, args.profile)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&measured)?)?;
    } else {
        writeln!(out, "{measured}")?;
    }
    Ok(ExitCode::SUCCESS)
}
