//! `glimpse-edge embed`: photos to embeddings, without a server.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use glimpse_embedder::{Threads, read_photo};
use serde::Serialize;

use super::query::progress;
use super::{ModelArgs, chain};
use crate::linux::model::{ModelFiles, QueryModel};
use crate::linux::npy;
use crate::linux::output::{Failure, milliseconds, printable};
use crate::ports::Embedder as _;

/// Flags of `glimpse-edge embed`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("network").args(["model", "bundle"]).required(true).multiple(true)))]
pub struct EmbedArgs {
    /// Photos, JPEG or PNG
    #[arg(required = true, value_name = "PHOTO")]
    pub photos: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Writes all embeddings to a NumPy file, [photos, dimension]; none if a photo fails, so that rows match photos
    #[arg(long, value_name = "FILE.npy")]
    pub out: Option<PathBuf>,
    /// Writes what the network was given to a NumPy file, [photos, 3 x height x width], to compare devices by it
    #[arg(long, value_name = "FILE.npy")]
    pub tensors: Option<PathBuf>,
    /// Prints one JSON object a line, with the embedding
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    photo: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embed_ms: Option<f64>,
}

/// Embeds the photos; fails if one of them cannot be embedded.
///
/// # Errors
/// A model that cannot be used, and output that cannot be written.
pub fn run(args: &EmbedArgs) -> anyhow::Result<ExitCode> {
    let files = ModelFiles {
        bundle: args.model.bundle.clone(),
        model: args.model.model.clone(),
        codebook: None,
        threads: Threads::ONE,
    };
    let model = QueryModel::load(&files)?;
    let mut out = io::stdout().lock();
    let bar = progress(args.photos.len());
    let (mut rows, mut tensors, mut failed) = (Vec::new(), Vec::new(), 0);
    for path in &args.photos {
        let name = path.to_string_lossy();
        let made = read_photo(path)
            .map_err(|error| Failure::new("unreadable_photo", chain(&error)))
            .and_then(|photo| {
                if args.tensors.is_some() {
                    tensors.push(model.preprocessing().tensor(&photo));
                }
                let start = Instant::now();
                let embedding =
                    model.embedding(&photo).map_err(|error| Failure::new("not_embedded", chain(&error)))?;
                Ok((embedding, start.elapsed()))
            });
        let embed_ms = made.as_ref().ok().map(|made| milliseconds(made.1));
        bar.suspend(|| -> io::Result<()> {
            if let Err(failure) = &made {
                tracing::error!(photo = %name, "{}", failure.message);
            }
            if args.json {
                let embedding = made.as_ref().ok().map(|made| made.0.as_slice());
                let line = JsonLine { photo: &name, embedding, error: made.as_ref().err(), embed_ms };
                let mut text = serde_json::to_vec(&line)?;
                text.push(b'\n');
                out.write_all(&text)?;
            } else if let Some(embed_ms) = embed_ms {
                let name = printable(&name);
                writeln!(out, "{name}: {} dimensions, embedded in {embed_ms:.1} ms", model.dimension())?;
            }
            out.flush()
        })?;
        match made {
            Ok((embedding, _)) if args.out.is_some() => rows.push(embedding),
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if failed > 0 {
        let files = args.out.is_some() || args.tensors.is_some();
        let unwritten = if files { "; no file was written" } else { "" };
        anyhow::bail!("{failed} of {} photos could not be embedded{unwritten}", args.photos.len());
    }
    let tensor_len = model.preprocessing().tensor_len();
    for (path, length, rows) in [(&args.out, model.dimension(), &rows), (&args.tensors, tensor_len, &tensors)]
    {
        let Some(path) = path else { continue };
        npy::write(path, length, rows).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
