//! `quantize`: the int8 form of a query network.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use burn_onnx_export::OnnxModel;
use burn_onnx_export::quantize::{QuantizeOptions, quantize};
use clap::Args;
use glimpse_embedder::{Embedder, Network, Role};

use crate::files::{read, write_whole};
use crate::int8::{Sample, agreement, calibrate};
use crate::photos::PhotoList;

/// Make an int8 form of a query network, and check it.
#[derive(Debug, Args)]
pub struct Quantize {
    /// The f32 query network.
    #[arg(long)]
    model: PathBuf,
    /// Photos like those that devices take: a CSV table with the column path, or a folder. Some calibrate, others verify.
    #[arg(long, value_name = "PHOTOS")]
    calibrate: PathBuf,
    /// Only photos of these roles.
    #[arg(long, value_delimiter = ',')]
    roles: Vec<String>,
    /// The int8 network.
    #[arg(long)]
    out: PathBuf,
    /// How many photos calibrate.
    #[arg(long, default_value_t = 128)]
    photos_max: usize,
    /// How many other photos verify.
    #[arg(long, default_value_t = 64)]
    verify_max: usize,
    /// Seed of their choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Mean cosine with the f32 network that is demanded.
    #[arg(long, default_value_t = 0.98)]
    cosine_min: f64,
    /// Leave activations in f32: as small, nearer to the original, no integer arithmetic.
    #[arg(long)]
    weights_only: bool,
    /// Round both sides of residual additions too, so that engines with integer kernels stay in integers.
    #[arg(long, conflicts_with = "weights_only")]
    residual_adds: bool,
    /// Nodes, by their own name or that of their weight, that stay in f32.
    #[arg(long, value_delimiter = ',')]
    keep_f32: Vec<String>,
}

impl Quantize {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed; also where the int8 network is too far from the f32 one.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let model = OnnxModel::from_bytes(&read(&self.model)?);
        let model = model.with_context(|| format!("{} is no ONNX model", self.model.display()))?;
        let metadata = Embedder::load(&self.model)?.metadata().clone();
        ensure!(
            metadata.role == Role::Query,
            "{} is a {} network: only a query network can be quantized, because the gallery network's exact numbers \
             are what the space is",
            self.model.display(),
            metadata.role
        );
        let options = QuantizeOptions {
            activations: !self.weights_only,
            residual_adds: self.residual_adds,
            keep_f32: self.keep_f32.clone(),
        };
        let photos = PhotoList::read(&self.calibrate)?.with_roles(&self.calibrate, &self.roles)?;
        let sample = Sample::choose(&photos, self.photos_max, self.verify_max, self.seed)?;
        let preprocessing = metadata.preprocessing;
        let ranges = calibrate(&model, &options, &preprocessing, (&photos, &sample.calibrate), stop)?;
        let quantized = quantize(&model, &ranges, &options)?;

        // It takes its name only when it is proven right.
        let draft = self.out.with_extension("onnx.unproven");
        write_whole(&draft, &quantized.to_bytes())?;
        let networks =
            [&self.model, &draft].map(|path| Network::load(path, preprocessing.width, preprocessing.height));
        let [one, other] = networks;
        let found = agreement(&one?, &other?, &preprocessing, (&photos, &sample.verify), stop)?;
        ensure!(
            found.mean >= self.cosine_min,
            "the int8 network is too far from {}: mean cosine {:.4} on {} photos (worst {:.4}) is below {}; it was left \
             in {}; calibrate on more photos, or keep layers in f32 with --keep-f32",
            self.model.display(),
            found.mean,
            found.photos,
            found.worst,
            self.cosine_min,
            draft.display()
        );
        std::fs::rename(&draft, &self.out).with_context(|| format!("cannot write {}", self.out.display()))?;
        tracing::info!(
            "wrote {}: mean cosine {:.5}, worst {:.5} on {} photos",
            self.out.display(),
            found.mean,
            found.worst,
            found.photos
        );
        Ok(())
    }
}
