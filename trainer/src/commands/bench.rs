//! `bench`: how fast photos are prepared, and how fast networks train on a device.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{parse_size, revision};
use crate::device::{DeviceName, Precision};
use crate::features::Features;
use crate::files::write_whole;
use crate::losses::{Loss, Regression};
use crate::networks::{Architecture, Blueprint, HeadConfig, Norms};
use crate::photos::{Augmentation, PhotoList};
use crate::training::{Arithmetic, Inputs, Order, Prefetch, TrainingSet};

/// Measure photos a second: the data loader alone, and whole networks in training (forward, backward and optimizer step).
#[derive(Debug, Args)]
pub struct Bench {
    /// Photos for the loader: a CSV table or a folder. The loader is not measured without.
    #[arg(long)]
    photos: Option<PathBuf>,
    /// Networks to train; several may be given.
    #[arg(long, default_values_t = [Architecture::MOBILENET_V2], conflicts_with = "all_networks")]
    network: Vec<Architecture>,
    /// Every network that `describe` lists.
    #[arg(long)]
    all_networks: bool,
    /// Side of the input, a multiple of 32; several may be given.
    #[arg(long, value_delimiter = ',', default_values_t = [224], value_parser = parse_size)]
    size: Vec<u32>,
    /// Photos in a batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Batches that are measured.
    #[arg(long, default_value_t = 4)]
    batches: u64,
    /// Batches before them, that are not: a GPU's shaders are compiled there.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Dimension of the embedding.
    #[arg(long, default_value_t = 256)]
    dimension: usize,
    /// As of `train`.
    #[arg(long, default_value_t = DeviceName::by_default())]
    device: DeviceName,
    /// full, mixed, or both.
    #[arg(long, value_delimiter = ',', default_value = "full")]
    precision: Vec<Precision>,
    /// A Python program that trains the same networks in PyTorch on the same machine: trainer/tests/python/speed.py. $PYTHON runs
    /// it, or python3.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Write the JSON, with device and revision, to this file too.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Speed {
    network: String,
    size: u32,
    precision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    loader_photos_per_s: Option<f64>,
    training_photos_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Peer>,
}

/// What the Python program says of one network.
#[derive(Serialize, Deserialize)]
struct Peer {
    /// With version.
    program: String,
    device: String,
    /// Missing where it does not have the network.
    photos_per_s: Option<f64>,
}

/// The file of `--out`.
#[derive(Serialize)]
struct Page<'a> {
    revision: String,
    device: &'static str,
    adapters: Vec<String>,
    batch: usize,
    batches: u64,
    dimension: usize,
    speeds: &'a [Speed],
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        ensure!(self.batch >= 1 && self.batches >= 1, "--batch and --batches must be at least 1");
        let device = self.device.open()?;
        let networks = if self.all_networks { Architecture::listed() } else { self.network.clone() };
        let formats = self.precision.iter().map(|&precision| self.device.arithmetic(&device, precision));
        let formats = formats.collect::<Result<Vec<_>, _>>()?;
        let mut speeds = Vec::new();
        for &size in &self.size {
            for &network in &networks {
                let photos = self.photos.as_deref();
                let loader = photos.map(|photos| self.loader(photos, network, size)).transpose()?;
                for &format in &formats {
                    ensure!(!stop.load(Ordering::Relaxed), "stopped");
                    let training = self.training(&device, format, network, size);
                    let script = self.peer.as_deref();
                    let peer = script.map(|script| self.peer(script, format, network, size)).transpose()?;
                    tracing::info!(
                        "{network} at {size} px, {}: {training:.2} photos a second",
                        format.name()
                    );
                    speeds.push(Speed {
                        network: network.to_string(),
                        size,
                        precision: format.name(),
                        loader_photos_per_s: loader,
                        training_photos_per_s: training,
                        peer,
                    });
                }
            }
        }
        if let Some(path) = &self.out {
            write_whole(path, &serde_json::to_vec_pretty(&self.page(&speeds))?)?;
        }
        self.print(&speeds)
    }

    fn print(&self, speeds: &[Speed]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(speeds)?)?;
            return Ok(());
        }
        writeln!(out, "photos a second on {}, batch {}", self.device, self.batch)?;
        writeln!(
            out,
            "{:<24} {:>6} {:>6} {:>10} {:>10} {:>10}",
            "", "px", "bits", "loader", "training", "peer"
        )?;
        let number = |speed: Option<f64>| speed.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.1}"));
        for speed in speeds {
            writeln!(
                out,
                "{:<24} {:>6} {:>6} {:>10} {:>10.2} {:>10}",
                speed.network,
                speed.size,
                speed.precision,
                number(speed.loader_photos_per_s),
                speed.training_photos_per_s,
                number(speed.peer.as_ref().and_then(|peer| peer.photos_per_s))
            )?;
        }
        Ok(())
    }

    fn page<'a>(&self, speeds: &'a [Speed]) -> Page<'a> {
        let adapters = self.device.adapters().into_iter();
        Page {
            revision: revision(),
            device: self.device.name(),
            adapters: adapters.map(|adapter| format!("{}, {}", adapter.name, adapter.driver)).collect(),
            batch: self.batch,
            batches: self.batches,
            dimension: self.dimension,
            speeds,
        }
    }

    /// Decoding, the paper's augmentation, and tensors, with nothing at the other end.
    fn loader(&self, photos: &Path, network: Architecture, size: u32) -> Result<f64> {
        let list = PhotoList::read(photos)?;
        let count = list.photos().len();
        let items: Vec<u32> = (0..count as u32).collect();
        let inputs = Inputs::Photos {
            list,
            preprocessing: network.preprocessing(size),
            items: items.clone(),
            augmentation: Augmentation::Paper,
            seed: 1,
        };
        let teacher = Features::from_f32(vec![1], items, vec![0.0; count]);
        let set = TrainingSet { inputs, teacher };
        let order = Order::new(count, self.batch, 1);
        // The loader is fast, so it gets more batches.
        let batches = 8 * self.batches;
        std::thread::scope(|scope| {
            let mut loader = Prefetch::start(scope, &set, order, 0, batches + 1);
            loader.next_batch()?;
            let start = Instant::now();
            for _ in 0..batches {
                loader.next_batch()?;
            }
            Ok((batches as usize * order.batch()) as f64 / start.elapsed().as_secs_f64())
        })
    }

    /// A whole network with live norms, every parameter trained.
    fn training(&self, device: &Device, format: Arithmetic, network: Architecture, size: u32) -> f64 {
        let blueprint =
            Blueprint { network, head: HeadConfig::default(), norms: Norms::Live, dimension: self.dimension };
        let mut model = blueprint.at_random(device).train();
        let mut optimizer = SgdConfig::new().init();
        let device = device.clone().autodiff();
        let side = size as usize;
        let mut start = Instant::now();
        for batch in 0..self.warm_up + self.batches {
            if batch == self.warm_up {
                start = Instant::now();
            }
            let image =
                Tensor::<4>::random([self.batch, 3, side, side], Distribution::Normal(0.0, 1.0), &device);
            let teacher =
                Tensor::<2>::ones([self.batch, self.dimension], &device) / (self.dimension as f64).sqrt();
            let loss = Regression.loss(model.forward(format.cast(image)), teacher);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-3, model, gradients);
            // Reading a number waits for everything that it depends on.
            let _: f32 = loss.into_scalar();
        }
        // The last step too: no loss depends on it.
        if let Err(error) = device.sync() {
            tracing::warn!("the device does not say when it was done, the number is too high: {error:?}");
        }
        (self.batches as usize * self.batch) as f64 / start.elapsed().as_secs_f64()
    }

    /// The same in another program.
    fn peer(&self, script: &Path, format: Arithmetic, network: Architecture, size: u32) -> Result<Peer> {
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let device = if self.device == DeviceName::Cpu { "cpu" } else { "gpu" };
        let output = Command::new(&python)
            .arg(script)
            .args(["--network", &network.to_string(), "--size", &size.to_string()])
            .args(["--batch", &self.batch.to_string(), "--batches", &self.batches.to_string()])
            .args(["--warm-up", &self.warm_up.to_string(), "--dimension", &self.dimension.to_string()])
            .args(["--format", format.name(), "--device", device])
            .output()
            .with_context(|| format!("cannot run {}", python.display()))?;
        ensure!(
            output.status.success(),
            "{} failed: {}",
            script.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} did not answer in JSON", script.display()))
    }
}
