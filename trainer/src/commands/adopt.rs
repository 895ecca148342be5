//! `adopt`: an ONNX model that somebody else made becomes the gallery model of a new space.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn_onnx_export::OnnxModel;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Network, Preprocessing, RgbImage, Role};

use super::{write_bundle, write_embeddings};
use crate::adoption::adopt;
use crate::features::Features;
use crate::files::read;
use crate::onnx::{self, COSINE_MIN, cosine};
use crate::projection::{Projection, pca_whitening, to_unit};

/// Make a gallery model of any ONNX network that turns an image into a vector.
///
/// Its vector, made unit, becomes the embedding; or, in two steps, its PCA-whitening: first with --raw, then `features` over
/// training photos, then with --whiten.
#[derive(Debug, Args)]
pub struct Adopt {
    /// The ONNX model: [N, 3, height, width] to [N, C], operator set 13 or later.
    #[arg(long)]
    model: PathBuf,
    /// Side of the photos that it sees, in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(16..=4096))]
    size: u32,
    /// Mean of red, green and blue that it was trained with, of values in 0 to 1.
    #[arg(long, value_delimiter = ',', default_values_t = [0.485, 0.456, 0.406])]
    mean: Vec<f32>,
    /// Their standard deviation.
    #[arg(long, value_delimiter = ',', default_values_t = [0.229, 0.224, 0.225])]
    std: Vec<f32>,
    /// The ONNX file; but for --raw it is called gallery.onnx, and its folder becomes a space bundle.
    #[arg(long)]
    out: PathBuf,
    /// Only write the model of its raw features, to learn a whitening from.
    #[arg(long, conflicts_with = "whiten")]
    raw: bool,
    /// Raw features to learn a PCA-whitening from.
    #[arg(long)]
    whiten: Option<PathBuf>,
    /// Also write the whitened embeddings of those very features.
    #[arg(long, requires = "whiten")]
    embeddings: Option<PathBuf>,
    /// Dimension of the space.
    #[arg(long, default_value_t = 256, requires = "whiten")]
    dimension: usize,
    /// How far from full whitening: added to each variance, as a fraction of their mean.
    #[arg(long, default_value_t = 0.0, requires = "whiten")]
    shrinkage: f64,
    /// A name for people, for the bundle; the folder's name by default.
    #[arg(long)]
    name: Option<String>,
}

impl Adopt {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self) -> Result<()> {
        let preprocessing = self.preprocessing()?;
        let foreign = OnnxModel::from_bytes(&read(&self.model)?);
        let foreign = foreign.with_context(|| format!("{} is no ONNX model", self.model.display()))?;
        let cannot = || format!("{} cannot be adopted", self.model.display());
        // Its ends first: what they say is clearer than what the engine says of a graph that does not fit.
        adopt(&foreign, self.size, None, "features").with_context(cannot)?;
        let network = Network::load(&self.model, self.size, self.size)?;
        let channels: usize = network.output_shape().iter().skip(1).product();
        ensure!(
            network.output_shape().iter().skip(2).all(|side| *side == 1),
            "{}: its output has the shape {:?}, and an embedding is a vector: cut it after its pooling",
            cannot(),
            network.output_shape()
        );

        let learned = self.learn(channels)?;
        let projection = learned.as_ref().map(|(projection, _)| projection);
        let output = if self.raw { "features" } else { "embedding" };
        let model = adopt(&foreign, self.size, projection, output).with_context(cannot)?;
        let dimension = projection.map_or(channels, |projection| projection.bias.len());
        let metadata = if self.raw {
            ModelMetadata { role: Role::Features, space: None, dimension, preprocessing }
        } else {
            onnx::gallery_metadata(&model, preprocessing, dimension)?
        };
        onnx::write(model, &metadata, &self.out)?;
        self.verify(&network, &preprocessing, projection)?;
        if !self.raw {
            write_bundle(&self.out, self.name.as_deref(), &metadata)?;
        }
        if let (Some(out), Some((whitening, features))) = (&self.embeddings, &learned) {
            let features_path = self.whiten.as_deref().context("--embeddings needs --whiten")?;
            write_embeddings(features_path, features, whitening, &self.out, out)?;
        }
        Ok(())
    }

    fn preprocessing(&self) -> Result<Preprocessing> {
        let three =
            |values: &[f32]| <[f32; 3]>::try_from(values).context("--mean and --std have three numbers");
        let preprocessing = Preprocessing {
            width: self.size,
            height: self.size,
            mean: three(&self.mean)?,
            std: three(&self.std)?,
        };
        preprocessing.validate().map_err(anyhow::Error::msg)?;
        Ok(preprocessing)
    }

    fn learn(&self, channels: usize) -> Result<Option<(Projection, Features)>> {
        let Some(path) = &self.whiten else { return Ok(None) };
        let (features, _) = Features::read(path)?;
        ensure!(
            features.shape == [channels],
            "the features for whitening have shape {:?}, and the network gives [{channels}]: make them with the model that \
             `adopt --raw` writes",
            features.shape
        );
        ensure!(self.shrinkage >= 0.0, "--shrinkage must not be negative");
        let whitening = pca_whitening(&features.to_f32(), channels, self.dimension, self.shrinkage)?;
        tracing::info!("whitening to {} dimensions, learned on {} photos", self.dimension, features.len());
        Ok(Some((whitening, features)))
    }

    /// Holds the written file against the foreign network and the arithmetic outside of it.
    fn verify(
        &self,
        foreign: &Network,
        preprocessing: &Preprocessing,
        projection: Option<&Projection>,
    ) -> Result<()> {
        let photo = RgbImage::from_fn(self.size, self.size, |x, y| {
            image::Rgb([(x * 2 % 256) as u8, (y * 3 % 256) as u8, ((x * y / 16) % 256) as u8])
        });
        let tensor = preprocessing.tensor(&photo);
        let fails = |reason| anyhow::anyhow!("{} fails on an image: {reason}", self.model.display());
        let mut expected = foreign.run(&tensor).map_err(fails)?;
        to_unit(&mut expected);
        if let Some(projection) = projection {
            expected = projection.apply(&expected);
        }
        let found = Network::load(&self.out, self.size, self.size)?.run(&tensor).map_err(fails)?;
        let cosine = cosine(&expected, &found);
        ensure!(
            cosine >= COSINE_MIN,
            "{} disagrees with {}: cosine {cosine:.7}",
            self.out.display(),
            self.model.display()
        );
        tracing::info!(
            "wrote {}: cosine {cosine:.7} with the model that it was made from",
            self.out.display()
        );
        Ok(())
    }
}
