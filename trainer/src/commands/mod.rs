//! One file for each command. Results go to stdout, everything else to stderr.

mod adopt;
mod bench;
mod bundle;
mod compare;
mod describe;
mod devices;
mod eval;
mod export;
mod features;
mod import;
mod quantize;
mod quantizer;
mod space;
mod train;
mod whiten;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, anyhow};
use burn_onnx_export::OnnxModel;
use clap::{Args, Subcommand};
use glimpse_embedder::Preprocessing;

use crate::features::Sight;
use crate::files::read;
use crate::networks::HeadConfig;

/// The commands, in the order of a first run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print parameters and multiply-adds of the networks.
    Describe(describe::Describe),
    /// List what networks can train on, and what this machine has of it.
    Devices(devices::Devices),
    /// Make a gallery model (or a raw feature model) from pretrained weights.
    Import(import::Import),
    /// Make a gallery model of any ONNX network that turns an image into a vector.
    ///
    /// Its vector, made unit, becomes the embedding; or, in two steps, its PCA-whitening: first with --raw, then `features` over
    /// training photos, then with --whiten.
    Adopt(adopt::Adopt),
    /// Run an ONNX model over photos and keep what it gives.
    Features(features::Extract),
    /// Learn a PCA-whitening from features, and apply it to features.
    Whiten(whiten::Whiten),
    /// Make a space whose gallery model stays elsewhere.
    ///
    /// Its embeddings come as files, to `quantizer`, `train --teacher-features` and `eval`. A space of a gallery model that runs
    /// here is made by `import --whiten` or `adopt`.
    Space(space::Space),
    /// Train the product quantizer whose centroids are index, code and anchors.
    Quantizer(quantizer::Train),
    /// Train a query network.
    ///
    /// On a terminal with a dashboard, elsewhere in lines. Ctrl-C, or q and s in the dashboard, stops it after the step with a
    /// checkpoint and a report, and --resume goes on; a second Ctrl-C ends it at once.
    Train(Box<train::Train>),
    /// Write the trained query network into the bundle, and check it.
    Export(export::Export),
    /// Make an int8 form of a query network, and check it.
    ///
    /// A quarter of the size. (`quantizer` is another thing: the product quantizer of the gallery's index.)
    Quantize(quantize::Quantize),
    /// Train every loss of a plan from the same start, and compare them on test photos.
    Compare(compare::Compare),
    /// Measure photos a second: the data loader alone, and whole networks in training, on any device.
    Bench(bench::Bench),
    /// Measure gallery and query network on labelled photos.
    ///
    /// Networks come from --bundle, or their features from files (.npy or safetensors, one unit row a photo in the order of the
    /// data set, compared by inner product), so that a network of any size can be judged.
    Eval(eval::Eval),
}

impl Command {
    /// Runs it. `stop` is raised by Ctrl-C.
    ///
    /// # Errors
    /// With what failed, and what to do.
    pub fn run(&self, stop: &AtomicBool) -> Result<()> {
        match self {
            Self::Describe(command) => command.run(),
            Self::Devices(command) => command.run(),
            Self::Import(command) => command.run(),
            Self::Adopt(command) => command.run(),
            Self::Features(command) => command.run(stop),
            Self::Whiten(command) => command.run(),
            Self::Space(command) => command.run(),
            Self::Quantizer(command) => command.run(),
            Self::Train(command) => command.run(stop),
            Self::Export(command) => command.run(),
            Self::Quantize(command) => command.run(stop),
            Self::Compare(command) => command.run(stop),
            Self::Bench(command) => command.run(stop),
            Self::Eval(command) => command.run(stop),
        }
    }
}

/// At which sizes networks look.
#[derive(Debug, Args)]
struct SightOptions {
    /// Factors of the size at which networks look; embeddings are averaged over them. The published protocol has
    /// 1,1.4142,0.7071.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0], value_parser = parse_scale)]
    scales: Vec<f64>,
    /// Keep the photos' aspect, with this longest side in pixels (the published protocol has 1024), instead of the size that
    /// the model names.
    #[arg(long, value_parser = clap::value_parser!(u32).range(32..=4096))]
    longest_side: Option<u32>,
}

impl SightOptions {
    fn sight(&self) -> Sight {
        Sight { scales: self.scales.clone(), longest_side: self.longest_side }
    }
}

/// What stands between a query network's maps and the shared space.
#[derive(Debug, Args)]
struct HeadOptions {
    /// Channels of a fresh 1x1 convolution in the head (the paper's head has D); the network's own is kept by default.
    #[arg(long)]
    head_channels: Option<usize>,
    /// A lighter projection: two matrices of this rank.
    #[arg(long)]
    rank: Option<usize>,
    /// Cells at each edge of the maps that pooling leaves out: what a photo is of stands about its middle. A map has a cell
    /// for every 32 pixels. The paper's head leaves out none.
    #[arg(long, default_value_t = 0, value_name = "CELLS")]
    margin: usize,
}

impl HeadOptions {
    fn config(&self) -> HeadConfig {
        HeadConfig { channels: self.head_channels, rank: self.rank, margin: self.margin }
    }
}

fn parse_scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=4.0).contains(&scale) { Ok(scale) } else { Err("a scale must be within 0.1 to 4".to_owned()) }
}

/// How a model of ours wants its photos.
fn preprocessing_of(model: &Path) -> Result<Preprocessing> {
    let decoded = OnnxModel::from_bytes(&read(model)?);
    let decoded = decoded.with_context(|| format!("{} is no ONNX model", model.display()))?;
    let preprocessing = decoded.metadata("glimpse.preprocessing");
    let preprocessing = preprocessing.ok_or_else(|| {
        anyhow!(
            "{} does not say how its photos are prepared: make it with `glimpse-trainer import`",
            model.display()
        )
    })?;
    let preprocessing: Preprocessing = serde_json::from_str(preprocessing)
        .with_context(|| format!("the metadata of {} is damaged", model.display()))?;
    preprocessing
        .validate()
        .map_err(|reason| anyhow!("the metadata of {} is damaged: {reason}", model.display()))?;
    Ok(preprocessing)
}

/// The commit that is checked out, for the record; what it was built from where the program runs outside its repository.
fn revision() -> String {
    let git = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let revision = git
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok());
    revision.map_or_else(
        || format!("version {}", env!("CARGO_PKG_VERSION")),
        |revision| revision.trim().to_owned(),
    )
}

/// A side that the networks' fixed padding is right for.
fn parse_size(text: &str) -> Result<u32, String> {
    let size: u32 = text.parse().map_err(|_| "not a number of pixels".to_owned())?;
    if size > 0 && size <= 1024 && size.is_multiple_of(32) {
        Ok(size)
    } else {
        Err("the side must be a multiple of 32, at most 1024".to_owned())
    }
}
