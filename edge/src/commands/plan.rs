//! `glimpse-edge plan`: the query network as a file for devices without an operating system.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};
use glimpse_embedder::{Embedder, Threads};

use super::ModelArgs;
use crate::linux::model::ModelFiles;
use crate::linux::npy::write_whole;

/// Flags of `glimpse-edge plan`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("network").args(["model", "bundle"]).required(true).multiple(true)))]
pub struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The file to write; one that is there is replaced
    #[arg(long, value_name = "FILE.plan")]
    pub out: PathBuf,
}

/// Writes the plan, and says how much memory it wants.
///
/// # Errors
/// A model that cannot be used or that only the engine can run, and a file that cannot be written.
pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let files = ModelFiles {
        bundle: args.model.bundle.clone(),
        model: args.model.model.clone(),
        codebook: None,
        threads: Threads::ONE,
    };
    let (path, space) = files.network()?;
    let model = Embedder::portable_model(&path)?;
    if let Some(space) = space {
        let found = model.space();
        let path = path.display();
        ensure!(found == space, "{path} lives in the space {found} and the bundle is the space {space}");
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    ensure!(
        !same(&path, &args.out),
        "{} is the network itself: name another file with --out",
        path.display()
    );
    let bytes = model.write();
    write_whole(&args.out, |file| file.write_all(&bytes))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let [_, height, width] = model.plan().input();
    writeln!(
        io::stdout(),
        "{}: {:.1} MB, {} steps for photos of {width}x{height}; it is run in {:.1} MB beside its weights",
        args.out.display(),
        megabytes(bytes.len()),
        model.plan().steps().len(),
        megabytes(model.memory_bytes()),
    )?;
    Ok(ExitCode::SUCCESS)
}
