//! `bench`: how fast photos are prepared, and how fast networks train.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use clap::Args;
use serde::Serialize;

use super::parse_size;
use crate::features::Features;
use crate::losses::{Loss, Regression};
use crate::networks::{Architecture, Blueprint, HeadConfig, Norms};
use crate::photos::{Augmentation, PhotoList};
use crate::training::{Inputs, Order, Prefetch, TrainingSet};

/// Measure photos a second: the data loader alone, and whole networks in training (forward, backward and optimizer step).
#[derive(Debug, Args)]
pub struct Bench {
    /// Photos for the loader: a CSV table or a folder.
    #[arg(long)]
    photos: PathBuf,
    /// Networks to train; several may be given.
    #[arg(long, default_values_t = [Architecture::MOBILENET_V2])]
    network: Vec<Architecture>,
    /// Side of the input, a multiple of 32; several may be given.
    #[arg(long, default_values_t = [224], value_parser = parse_size)]
    size: Vec<u32>,
    /// Photos in a batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Batches that are measured, after one that is not.
    #[arg(long, default_value_t = 4)]
    batches: u64,
    /// Dimension of the embedding.
    #[arg(long, default_value_t = 256)]
    dimension: usize,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Speed {
    network: String,
    size: u32,
    loader_photos_per_s: f64,
    training_photos_per_s: f64,
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        ensure!(self.batch >= 1 && self.batches >= 1, "--batch and --batches must be at least 1");
        let mut speeds = Vec::new();
        for &size in &self.size {
            for &network in &self.network {
                ensure!(!stop.load(std::sync::atomic::Ordering::Relaxed), "stopped");
                let loader = self.loader(network, size)?;
                let training = self.training(network, size);
                speeds.push(Speed {
                    network: network.to_string(),
                    size,
                    loader_photos_per_s: loader,
                    training_photos_per_s: training,
                });
            }
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&speeds)?)?;
            return Ok(());
        }
        writeln!(out, "photos a second, batch {}", self.batch)?;
        writeln!(out, "{:<24} {:>6} {:>10} {:>10} {:>8}", "", "px", "loader", "training", "ratio")?;
        for Speed { network, size, loader_photos_per_s: loader, training_photos_per_s: training } in speeds {
            writeln!(
                out,
                "{network:<24} {size:>6} {loader:>10.1} {training:>10.2} {:>8.1}",
                loader / training
            )?;
        }
        Ok(())
    }

    /// Decoding, the paper's augmentation, and tensors, with nothing at the other end.
    fn loader(&self, network: Architecture, size: u32) -> Result<f64> {
        let list = PhotoList::read(&self.photos)?;
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
    fn training(&self, network: Architecture, size: u32) -> f64 {
        let device = Device::flex();
        let blueprint =
            Blueprint { network, head: HeadConfig::default(), norms: Norms::Live, dimension: self.dimension };
        let mut model = blueprint.at_random(&device).train();
        let mut optimizer = SgdConfig::new().init();
        let device = device.autodiff();
        let side = size as usize;
        let mut start = Instant::now();
        for batch in 0..=self.batches {
            let image =
                Tensor::<4>::random([self.batch, 3, side, side], Distribution::Normal(0.0, 1.0), &device);
            let teacher =
                Tensor::<2>::ones([self.batch, self.dimension], &device) / (self.dimension as f64).sqrt();
            let loss = Regression.loss(model.forward(image), teacher);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-3, model, gradients);
            // Reading a number waits for everything that it depends on.
            let _: f32 = loss.into_scalar();
            if batch == 0 {
                start = Instant::now();
            }
        }
        (self.batches as usize * self.batch) as f64 / start.elapsed().as_secs_f64()
    }
}
