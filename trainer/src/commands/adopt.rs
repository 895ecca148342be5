//! `adopt`: an ONNX model that somebody else made becomes the gallery model of a new space.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn_onnx_export::OnnxModel;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Network, Preprocessing, RgbImage, Role};

use super::bundle::{WhiteningOptions, write_bundle};
use crate::adoption::adopt;
use crate::files::read;
use crate::onnx::{self, COSINE_MIN, cosine};
use crate::projection::{Projection, to_unit};

/// Make a gallery model of any ONNX network that turns an image into a vector.
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
    #[command(flatten)]
    whitening: WhiteningOptions,
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

        let learned = self.whitening.learn(channels)?;
        let projection = learned.as_ref().map(|whitening| &whitening.projection);
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
        learned.map_or(Ok(()), |whitening| self.whitening.write_embeddings(&whitening, &self.out))
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
