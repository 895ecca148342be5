//! `whiten`: PCA-whitening of features that a model elsewhere made.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::features::Features;
use crate::matrix::{MatrixFile, Rows};
use crate::progress::Progress;
use crate::projection::{pca_whitening, to_unit};

/// Rows that a whitening is learned from at most, evenly spread: more do not change it, and cost 16 bytes a value.
const LEARN_MAX: usize = 100_000;
/// Rows that are whitened at once.
const BLOCK: usize = 8192;

/// Learn a PCA-whitening from features, and apply it to features.
#[derive(Debug, Args)]
#[command(after_help = "Example: glimpse-trainer whiten --learn train.npy --dimension 512 \\
    --apply train.npy --out train-512.safetensors --apply val.npy --out val-512.safetensors")]
pub struct Whiten {
    /// Features of training photos, .npy or safetensors.
    #[arg(long)]
    learn: PathBuf,
    /// Dimensions that are kept.
    #[arg(long)]
    dimension: usize,
    /// How far from full whitening: added to each variance, as a fraction of their mean.
    #[arg(long, default_value_t = 0.0)]
    shrinkage: f64,
    /// Features to whiten; each needs its --out, in the same order.
    #[arg(long, required = true)]
    apply: Vec<PathBuf>,
    /// The whitened unit embeddings, as safetensors.
    #[arg(long, required = true)]
    out: Vec<PathBuf>,
}

impl Whiten {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self) -> Result<()> {
        ensure!(
            self.apply.len() == self.out.len(),
            "{} --apply and {} --out were given: each file needs its own result",
            self.apply.len(),
            self.out.len()
        );
        ensure!(self.dimension >= 1, "--dimension must be at least 1");
        ensure!(self.shrinkage >= 0.0 && self.shrinkage.is_finite(), "--shrinkage must not be negative");
        let learn = MatrixFile::open(&self.learn)?;
        let channels = learn.dimension();
        let mut sample = Vec::new();
        for row in (0..learn.count()).step_by(learn.count().div_ceil(LEARN_MAX)) {
            sample.extend(learn.read(row..row + 1)?);
        }
        let whitening = pca_whitening(&sample, channels, self.dimension, self.shrinkage)?;
        drop(sample);
        for (path, out) in self.apply.iter().zip(&self.out) {
            let features = MatrixFile::open(path)?;
            ensure!(
                features.dimension() == channels,
                "{} has {} dimensions, and {} has {channels}",
                path.display(),
                features.dimension(),
                self.learn.display()
            );
            let count = features.count();
            let progress = Progress::new("whitening", count as u64);
            let mut rows = Vec::with_capacity(count * self.dimension);
            for start in (0..count).step_by(BLOCK) {
                let end = (start + BLOCK).min(count);
                rows.extend(whitening.apply(&features.read(start..end)?));
                progress.set(end as u64);
            }
            progress.finish();
            rows.chunks_exact_mut(self.dimension).for_each(to_unit);
            Features::from_f32(vec![self.dimension], (0..count as u32).collect(), rows)
                .write(out, HashMap::new())?;
        }
        Ok(())
    }
}
