//! `import`: pretrained weights to an ONNX model: raw features, or the gallery model of a new space.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Preprocessing, Role};

use super::{parse_size, write_bundle, write_embeddings};
use crate::features::Features;
use crate::networks::{Architecture, EmbeddingNetwork, GalleryNetwork, load_pretrained};
use crate::onnx;
use crate::projection::pca_whitening;

/// Make a gallery model (or a raw feature model) from pretrained weights.
#[derive(Debug, Args)]
pub struct Import {
    /// Which network: `glimpse-trainer describe` lists them. Several (each with its --weights, in the same order) are
    /// joined into one: slower and better, and easier to live beside for a query network that is one of them.
    #[arg(long, required = true)]
    network: Vec<Architecture>,
    /// Its PyTorch checkpoint.
    #[arg(long, required = true)]
    weights: Vec<PathBuf>,
    /// Side of the input, a multiple of 32: larger is slower and finds more.
    #[arg(long, default_value_t = 288, value_parser = parse_size)]
    size: u32,
    /// The ONNX file; with --whiten its folder becomes (or stays) a space bundle.
    #[arg(long)]
    out: PathBuf,
    /// Raw features to learn a PCA-whitening from, made by `features` with the model that this command writes without
    /// --whiten.
    #[arg(long)]
    whiten: Option<PathBuf>,
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
    /// A name for people, for the bundle; the folder's name by default.
    #[arg(long, requires = "whiten")]
    name: Option<String>,
}

impl Import {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self) -> Result<()> {
        let device = Device::flex();
        let network = self.load(&device)?;
        let channels = GalleryNetwork::feature_channels(&self.network);
        let preprocessing = self.preprocessing()?;
        let Some(features_path) = &self.whiten else {
            let model = onnx::export(&network, "features", GalleryNetwork::forward)?;
            let metadata =
                ModelMetadata { role: Role::Features, space: None, dimension: channels, preprocessing };
            onnx::write(model, &metadata, &self.out)?;
            return self.verify(&network, &preprocessing);
        };

        let (features, _) = Features::read(features_path)?;
        ensure!(
            features.shape == [channels],
            "the features for whitening have shape {:?}, and the network gives [{channels}]: make them with the model \
             that `import` writes without --whiten",
            features.shape
        );
        ensure!(self.shrinkage >= 0.0, "--shrinkage must not be negative");
        let whitening = pca_whitening(&features.to_f32(), channels, self.dimension, self.shrinkage)?;
        tracing::info!("whitening to {} dimensions, learned on {} photos", self.dimension, features.len());
        let network = network.project(&whitening, &device);
        let model = onnx::export(&network, "embedding", GalleryNetwork::forward)?;
        let metadata = onnx::gallery_metadata(&model, preprocessing, self.dimension)?;
        onnx::write(model, &metadata, &self.out)?;
        self.verify(&network, &preprocessing)?;
        write_bundle(&self.out, self.name.as_deref(), &metadata)?;
        if let Some(out) = &self.embeddings {
            write_embeddings(features_path, &features, &whitening, &self.out, out)?;
        }
        Ok(())
    }

    fn load(&self, device: &Device) -> Result<GalleryNetwork> {
        ensure!(
            self.network.len() == self.weights.len(),
            "{} --network and {} --weights were given: each network needs its own checkpoint",
            self.network.len(),
            self.weights.len()
        );
        let members = self.network.iter().zip(&self.weights);
        let members = members
            .map(|(&network, weights)| load_pretrained(network, weights, device).map(EmbeddingNetwork::fold));
        Ok(GalleryNetwork::new(members.collect::<Result<Vec<_>, _>>()?))
    }

    /// One image goes into all networks, so they have to want the same of it.
    fn preprocessing(&self) -> Result<Preprocessing> {
        let mut wanted = self.network.iter().map(|network| (network, network.preprocessing(self.size)));
        let (first, preprocessing) = wanted.next().context("no network is given")?;
        if let Some((other, _)) = wanted.find(|(_, other)| *other != preprocessing) {
            bail!("{first} and {other} want photos prepared in different ways, so they cannot be joined");
        }
        Ok(preprocessing)
    }

    /// A synthetic photo is enough here: the weights are those of the checkpoint.
    fn verify(&self, network: &GalleryNetwork, preprocessing: &Preprocessing) -> Result<()> {
        let photo = glimpse_embedder::RgbImage::from_fn(self.size, self.size, |x, y| {
            image::Rgb([(x * 2 % 256) as u8, (y * 3 % 256) as u8, ((x * y / 16) % 256) as u8])
        });
        let inputs = [preprocessing.tensor(&photo)];
        let cosine = onnx::verify(&self.out, preprocessing, &inputs, |image| network.forward(image))?;
        tracing::info!("wrote {}: cosine {cosine:.7} with the network it was made from", self.out.display());
        Ok(())
    }
}
