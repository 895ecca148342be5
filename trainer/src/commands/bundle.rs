//! What `import` and `adopt` share: a whitening learned from raw features, and the bundle around a gallery model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use glimpse_embedder::{ModelMetadata, SpaceBundle};

use crate::features::{Features, Origin, model_hash};
use crate::files::read;
use crate::projection::{Projection, pca_whitening, to_unit};

/// A PCA-whitening, learned from features.
#[derive(Debug, Args)]
pub(super) struct WhiteningOptions {
    /// Raw features to learn a PCA-whitening from, made by `features` with the raw model that this command writes first.
    #[arg(long)]
    pub(super) whiten: Option<PathBuf>,
    /// Also write the whitened embeddings of those very features: what `features` would give with the new model,
    /// without running it again.
    #[arg(long, requires = "whiten")]
    embeddings: Option<PathBuf>,
    /// Dimension of the space.
    #[arg(long, default_value_t = 256, requires = "whiten")]
    dimension: usize,
    /// How far from full whitening: added to each variance, as a fraction of their mean.
    #[arg(long, default_value_t = 0.0, requires = "whiten")]
    shrinkage: f64,
}

/// A whitening with the features that it was learned from.
pub(super) struct Whitening {
    pub(super) projection: Projection,
    features: Features,
    origin: Option<Origin>,
}

impl WhiteningOptions {
    /// Learns it, where it is asked for; `channels` is what the raw model gives.
    pub(super) fn learn(&self, channels: usize) -> Result<Option<Whitening>> {
        let Some(path) = &self.whiten else { return Ok(None) };
        ensure!(self.shrinkage >= 0.0 && self.shrinkage.is_finite(), "--shrinkage must not be negative");
        let (features, metadata) = Features::read(path)?;
        ensure!(
            features.shape == [channels],
            "the features for whitening have shape {:?}, and the network gives [{channels}]: make them with its raw model",
            features.shape
        );
        let projection = pca_whitening(&features.to_f32(), channels, self.dimension, self.shrinkage)?;
        tracing::info!("whitening to {} dimensions, learned on {} photos", self.dimension, features.len());
        Ok(Some(Whitening { projection, features, origin: Origin::read(&metadata) }))
    }

    /// Writes the whitened features, where they are asked for, as those of the gallery `model`.
    pub(super) fn write_embeddings(&self, whitening: &Whitening, model: &Path) -> Result<()> {
        let Some(out) = &self.embeddings else { return Ok(()) };
        let Whitening { projection, features, origin } = whitening;
        let origin =
            origin.clone().context("the features for whitening do not say what they were made from")?;
        let origin = Origin { model: model_hash(&read(model)?), ..origin };
        let dimension = projection.bias.len();
        let mut rows = projection.apply(&features.to_f32());
        rows.chunks_exact_mut(dimension).for_each(to_unit);
        let embeddings = Features::from_f32(vec![dimension], features.items.clone(), rows);
        Ok(embeddings.write(out, origin.to_metadata())?)
    }
}

/// Makes the folder of a gallery model a space bundle, or keeps it one.
pub(super) fn write_bundle(model: &Path, name: Option<&str>, metadata: &ModelMetadata) -> Result<()> {
    let dir = model.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let space = metadata.space.context("a gallery model has a space")?;
    let folder = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let old = SpaceBundle::load(dir).ok();
    let name = name.map(str::to_owned).or(old.as_ref().map(|old| old.name.clone())).or(folder);
    // A quantizer of another space is a quantizer of nothing.
    let quantizer = old.filter(|old| old.space == space).and_then(|old| old.quantizer);
    let bundle = SpaceBundle {
        dir: dir.to_owned(),
        name: name.unwrap_or_else(|| "unnamed".to_owned()),
        space,
        dimension: metadata.dimension,
        preprocessing: metadata.preprocessing,
        quantizer,
    };
    ensure!(
        bundle.gallery_model() == dir.join(model.file_name().unwrap_or_default()),
        "the gallery model of a bundle is called gallery.onnx: use --out {}",
        bundle.gallery_model().display()
    );
    bundle.write()?;
    tracing::info!("space {space} in {}", dir.display());
    Ok(())
}
