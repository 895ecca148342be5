//! `import`: pretrained weights to an ONNX model: raw features, or the gallery model of a new space.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Preprocessing, Role};

use super::bundle::{WhiteningOptions, write_bundle};
use super::parse_size;
use crate::networks::{Architecture, EmbeddingNetwork, GalleryNetwork, load_pretrained};
use crate::onnx;

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
    #[command(flatten)]
    whitening: WhiteningOptions,
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
        let Some(whitening) = self.whitening.learn(channels)? else {
            let model = onnx::export(&network, "features", GalleryNetwork::forward)?;
            let metadata =
                ModelMetadata { role: Role::Features, space: None, dimension: channels, preprocessing };
            onnx::write(model, &metadata, &self.out)?;
            return self.verify(&network, &preprocessing);
        };

        let network = network.project(&whitening.projection, &device);
        let model = onnx::export(&network, "embedding", GalleryNetwork::forward)?;
        let metadata = onnx::gallery_metadata(&model, preprocessing, whitening.projection.bias.len())?;
        onnx::write(model, &metadata, &self.out)?;
        self.verify(&network, &preprocessing)?;
        write_bundle(&self.out, self.name.as_deref(), &metadata)?;
        self.whitening.write_embeddings(&whitening, &self.out)
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
