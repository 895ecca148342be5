//! `quantizer`: the codebook of a bundle.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use glimpse_embedder::{QuantizerShape, SpaceBundle};
use glimpse_quantizer::train::{TrainOptions, quantization_error, train};

use crate::files::write_whole;
use crate::matrix::{MatrixFile, Rows};
use crate::progress::Progress;
use crate::projection::to_unit_unless_it_is;

/// Train the product quantizer whose centroids are index, code and anchors.
#[derive(Debug, Args)]
pub struct Train {
    /// Gallery embeddings of training photos (not of evaluation distractors: that leaks), .npy or safetensors.
    #[arg(long)]
    features: PathBuf,
    /// The space bundle; its codebook.safetensors is written.
    #[arg(long)]
    bundle: PathBuf,
    /// M: bytes of a code.
    #[arg(long, default_value_t = 32)]
    sub_spaces: usize,
    /// K: at most 256.
    #[arg(long, default_value_t = 256)]
    centroids: usize,
    /// Lloyd iterations of each restart.
    #[arg(long, default_value_t = 25)]
    iterations: usize,
    /// The best of so many restarts counts.
    #[arg(long, default_value_t = 2)]
    restarts: usize,
    /// Seed of the first centroids.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Spherical k-means: anchors of unit length, as the loss compares them.
    #[arg(long)]
    spherical: bool,
    /// Rounds of search for a rotation (OPQ) before k-means. The codes are better, but each query and each photo then
    /// costs D x D multiplications more.
    #[arg(long, value_name = "ROUNDS", default_value_t = 0)]
    rotation_rounds: usize,
}

impl Train {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self) -> Result<()> {
        let mut bundle = SpaceBundle::load(&self.bundle)?;
        let features = MatrixFile::open(&self.features)?;
        ensure!(
            features.dimension() == bundle.dimension,
            "{} has {} dimensions, and the space has {}: make them with the gallery model",
            self.features.display(),
            features.dimension(),
            bundle.dimension,
        );
        let options = TrainOptions {
            sub_spaces: self.sub_spaces,
            centroids: self.centroids,
            iterations: self.iterations,
            restarts: self.restarts,
            seed: self.seed,
            spherical: self.spherical,
            rotation_rounds: self.rotation_rounds,
            ..TrainOptions::default()
        };
        let mut embeddings = features.read(0..features.count())?;
        embeddings.chunks_exact_mut(bundle.dimension).for_each(to_unit_unless_it_is);
        let progress =
            Progress::new("k-means", (self.rotation_rounds + self.iterations * self.restarts) as u64);
        let codebook = train(&embeddings, bundle.dimension, &options, &mut |at| {
            progress.set(at.step as u64);
            true
        })?;
        progress.finish();
        write_whole(&bundle.codebook(), &codebook.to_safetensors()?)?;
        bundle.quantizer = Some(QuantizerShape { sub_spaces: self.sub_spaces, centroids: self.centroids });
        bundle.write()?;
        let error = quantization_error(&codebook, &embeddings);
        tracing::info!(
            "{} sub-spaces of {} centroids from {} embeddings, mean squared error {error:.4}: {}",
            self.sub_spaces,
            self.centroids,
            features.count(),
            bundle.codebook().display()
        );
        Ok(())
    }
}
