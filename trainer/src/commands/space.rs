//! `space`: a bundle for embeddings that come from elsewhere.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use glimpse_embedder::{Preprocessing, SpaceBundle};
use glimpse_protocol::SpaceId;

use super::parse_size;

/// Make a space whose gallery model stays elsewhere.
#[derive(Debug, Args)]
pub struct Space {
    /// The bundle's folder, which is made.
    #[arg(long)]
    bundle: PathBuf,
    /// What the embeddings are of, such as "delg-r101 whitened 512, 2026-03": the space is named after this and --dimension, and
    /// embeddings of another model or whitening must not share it.
    #[arg(long)]
    name: String,
    /// Length of an embedding.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8192))]
    dimension: u32,
    /// Side of the photos that the gallery model sees, for the record.
    #[arg(long, default_value_t = 512, value_parser = parse_size)]
    size: u32,
}

impl Space {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self) -> Result<()> {
        ensure!(!self.name.trim().is_empty(), "--name must say what the embeddings are of");
        std::fs::create_dir_all(&self.bundle)
            .with_context(|| format!("cannot make {}", self.bundle.display()))?;
        let place = self.bundle.join("space.toml");
        ensure!(!place.exists(), "{} is there already: a space is never replaced", place.display());
        let identity =
            format!("glimpse space of embeddings made elsewhere\0{}\0{}", self.dimension, self.name);
        let hash = blake3::hash(identity.as_bytes());
        let (id, _) = hash.as_bytes().split_first_chunk::<16>().context("a hash has 32 bytes")?;
        let bundle = SpaceBundle {
            dir: self.bundle.clone(),
            name: self.name.clone(),
            space: SpaceId::from_bytes(*id),
            dimension: self.dimension as usize,
            // ImageNet's, which nearly all published gallery models share.
            preprocessing: Preprocessing {
                width: self.size,
                height: self.size,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
            },
            quantizer: None,
        };
        bundle.write()?;
        tracing::info!(
            "space {} in {}; next: `glimpse-trainer quantizer`",
            bundle.space,
            self.bundle.display()
        );
        Ok(())
    }
}
