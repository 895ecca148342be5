//! `import`: pretrained weights to an ONNX model: raw features, or the gallery model of a new space.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Preprocessing, Role};

use super::bundle::{WhiteningOptions, write_bundle};
use super::{parse_scale, parse_size};
use crate::networks::{Architecture, EmbeddingNetwork, GalleryNetwork, Looks, load_pretrained};
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
    /// How much each network says, where they are joined: one number each, 1 by default.
    #[arg(long, value_delimiter = ',', value_parser = parse_scale)]
    member_weights: Vec<f64>,
    /// Side of the input, a multiple of 32: larger is slower and finds more.
    #[arg(long, default_value_t = 288, value_parser = parse_size)]
    size: u32,
    /// Cells at each edge of the maps that pooling leaves out: what a photo is of stands about its middle. A map has a cell
    /// for every 32 pixels.
    #[arg(long, default_value_t = 0, value_name = "CELLS")]
    margin: usize,
    /// Factors of the size at which the network looks; its features are averaged. Each is exact in 32 bits, and times --size a
    /// multiple of 32.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0], value_parser = parse_scale)]
    scales: Vec<f64>,
    /// Look at the mirrored photo too.
    #[arg(long)]
    mirrored: bool,
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
        for &scale in &self.scales {
            let side = f64::from(self.size) * scale;
            ensure!(
                side % 32.0 == 0.0 && f64::from(scale as f32).to_bits() == scale.to_bits(),
                "at scale {scale} a side of {} px becomes {side}: each scale has to be exact in 32 bits, as 0.75 is, and give a \
                 multiple of 32",
                self.size
            );
        }
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
        let members = members.map(|(&network, weights)| {
            let EmbeddingNetwork { backbone, head } = load_pretrained(network, weights, device)?.fold();
            Ok(EmbeddingNetwork { backbone, head: head.with_margin(self.margin) })
        });
        let looks = Looks { scales: self.scales.clone(), mirrored: self.mirrored };
        let network = GalleryNetwork::new(members.collect::<Result<Vec<_>>>()?).with_looks(looks);
        if self.member_weights.is_empty() {
            return Ok(network);
        }
        ensure!(
            self.member_weights.len() == self.network.len(),
            "{} networks and {} --member-weights were given: each network needs its own",
            self.network.len(),
            self.member_weights.len()
        );
        Ok(network.with_member_weights(self.member_weights.clone()))
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
