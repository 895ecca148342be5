//! `export`: the best head of a run, with its backbone, as the bundle's query network.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Role, SpaceBundle};
use serde::Deserialize;

use super::train::Settings;
use crate::files::read;
use crate::networks::EmbeddingNetwork;
use crate::onnx;
use crate::photos::PhotoList;
use crate::training::read_best;

/// Photos that the exported network is compared on.
const PHOTOS: usize = 16;

/// Write the trained query network into the bundle, and check it.
#[derive(Debug, Args)]
pub struct Export {
    /// The run folder of `train`.
    #[arg(long)]
    run: PathBuf,
    /// The space bundle; its query.onnx is written.
    #[arg(long)]
    bundle: PathBuf,
    /// Another file than the bundle's query.onnx.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The part of `run.toml` that is needed here.
#[derive(Deserialize)]
struct Record {
    validation: PathBuf,
}

impl Export {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed; also where the written file does not compute what the network does.
    pub(super) fn run(&self) -> Result<()> {
        let bundle = SpaceBundle::load(&self.bundle)?;
        let (parameters, settings) = read_best(&self.run)?;
        let settings: Settings =
            serde_json::from_value(settings).context("the run's checkpoint is of another version")?;
        ensure!(
            settings.space == bundle.space.to_string(),
            "the run was trained for the space {}, and {} holds {}: train again",
            settings.space,
            self.bundle.display(),
            bundle.space
        );
        let path = self.run.join("run.toml");
        let record = String::from_utf8_lossy(&read(&path)?).into_owned();
        let record: Record =
            toml::from_str(&record).with_context(|| format!("{} is damaged", path.display()))?;

        let template = settings.blueprint.at_random(&Device::flex());
        let network =
            parameters.apply(template).context("the run's network is not what its settings say")?.fold();
        let preprocessing = settings.blueprint.network.preprocessing(settings.size);
        let model = onnx::export(&network, "embedding", EmbeddingNetwork::forward)?;
        let metadata = ModelMetadata {
            role: Role::Query,
            space: Some(bundle.space),
            dimension: bundle.dimension,
            preprocessing,
        };
        let out = self.out.clone().unwrap_or_else(|| bundle.query_model());
        // It takes its name only when it is proven right.
        let draft = out.with_extension("onnx.unproven");
        onnx::write(model, &metadata, &draft)?;
        let photos = PhotoList::read(&record.validation)?;
        let step = (photos.photos().len() / PHOTOS).max(1);
        let inputs: Vec<Vec<f32>> = (0..photos.photos().len())
            .step_by(step)
            .filter_map(|index| photos.view(index, 0, 0).ok())
            .map(|photo| preprocessing.tensor(&photo))
            .collect();
        ensure!(!inputs.is_empty(), "no photo of {} can be decoded", record.validation.display());
        let cosine = onnx::verify(&draft, &preprocessing, &inputs, |image| network.forward(image))?;
        std::fs::rename(&draft, &out).with_context(|| format!("cannot write {}", out.display()))?;
        tracing::info!("wrote {}: cosine at least {cosine:.7} on {} photos", out.display(), inputs.len());
        Ok(())
    }
}
