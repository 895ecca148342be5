//! `features`: an ONNX model over photos.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::Args;

use super::{SightOptions, preprocessing_of};
use crate::features::Extraction;
use crate::photos::PhotoList;

/// Run an ONNX model over photos and keep what it gives.
#[derive(Debug, Args)]
pub struct Extract {
    /// An ONNX model of ours: gallery, query or raw features.
    #[arg(long)]
    model: PathBuf,
    /// A CSV table with the columns path and role, or a folder.
    #[arg(long)]
    photos: PathBuf,
    /// Only photos of these roles.
    #[arg(long, value_delimiter = ',')]
    roles: Vec<String>,
    /// The features, as safetensors. A run that was stopped continues with the same command.
    #[arg(long)]
    out: PathBuf,
    /// Views of each photo: the photo itself, then random crops.
    #[arg(long, default_value_t = 1)]
    views: usize,
    /// Seed of the crops.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    sight: SightOptions,
    /// Keep 16-bit floats, for maps.
    #[arg(long)]
    half: bool,
}

impl Extract {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let photos = PhotoList::read(&self.photos)?.with_roles(&self.photos, &self.roles)?;
        let extraction = Extraction {
            name: "features",
            model: &self.model,
            preprocessing: preprocessing_of(&self.model)?,
            sight: &self.sight.sight(),
            photos: &photos,
            views: self.views.max(1),
            seed: self.seed,
            half: self.half,
        };
        let features = extraction.run(&self.out, stop)?;
        tracing::info!("{} rows of shape {:?} in {}", features.len(), features.shape, self.out.display());
        Ok(())
    }
}
