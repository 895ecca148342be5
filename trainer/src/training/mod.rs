//! The loop: everything after the frozen stages learns, and everything about it survives a kill.
//!
//! The run folder:
//!
//! | file | contents |
//! |---|---|
//! | `checkpoint.safetensors` | network, average, optimizer state, step and settings, after every epoch and on Ctrl-C |
//! | `best.safetensors` | the network (or its average) with the best validation mAP so far |
//! | `metrics.jsonl` | one object an epoch |
//! | `curves.svg`, `report.md` | what came of it, for people, at the end and on Ctrl-C |
//! | `run.toml`, `train.log` | settings; what was said while a dashboard had the terminal |
//!
//! Nothing here writes to a terminal: a [`Watcher`] is told what happens.
//!
//! The order of batches depends on seed and epoch only, so a run that was stopped and resumed goes through the
//! same numbers as one that was not.

mod arithmetic;
mod checkpoint;
mod config;
mod data;
mod error;
mod report;
mod validation;
mod watch;

pub use arithmetic::Arithmetic;
pub use config::{OptimizerName, TrainingConfig};
pub use data::{Batch, Inputs, Order, Prefetch, TrainingSet};
pub use error::TrainingError;
pub use report::{Epoch, Report, Stretch, read_metrics};
pub use validation::{Validation, initialise};
pub use watch::{Plan, Watch, Watcher, plain};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, Device, Tensor};

use self::checkpoint::{Checkpoint, State, first_difference};
use self::report::Sums;
use crate::files::write_whole;
use crate::losses::Loss;
use crate::networks::{EmbeddingNetwork, Frozen, Parameters, group};
use crate::schedule::learning_rate;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps that are done.
    pub step: u64,
    /// The best network.
    pub best: Parameters,
    /// Its validation mAP.
    pub best_map: f64,
    /// The step that it is from; 0 is the start.
    pub best_step: u64,
    /// The network after the last step (its average, where the run keeps one).
    pub last: Parameters,
    /// Whether all steps are done, rather than stopped.
    pub complete: bool,
}

/// A run: everything that stays the same over its steps.
pub struct Run<'a> {
    /// Numbers.
    pub config: &'a TrainingConfig,
    /// All settings of the run, as one JSON object: a checkpoint is only resumed under the same.
    pub settings: &'a serde_json::Value,
    /// Terms of the loss with their weights, made for `device` with autodiff.
    pub losses: &'a [(f64, Box<dyn Loss>)],
    /// What it learns from.
    pub set: &'a TrainingSet,
    /// What it is judged by.
    pub validation: &'a Validation,
    /// What does not learn.
    pub frozen: Frozen,
    /// What the run computes on, without autodiff.
    pub device: &'a Device,
    /// Where it writes.
    pub folder: &'a Path,
    /// Who looks on.
    pub watch: &'a Watch<'a>,
}

impl Run<'_> {
    /// Whether the folder has a checkpoint to resume.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint_path().exists()
    }

    /// Trains `network` from the beginning.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn start(&self, network: EmbeddingNetwork, stop: &AtomicBool) -> Result<Outcome, TrainingError> {
        let parameters = Parameters::of(&network);
        let best_map = self.validation.scores(&network, self.frozen)?.map;
        let loss_scale = self.config.arithmetic.loss_scale();
        let state = State { step: 0, best_map, best_step: 0, loss_scale, settings: self.settings.clone() };
        let start = Checkpoint {
            average: (self.config.ema > 0.0).then(|| parameters.clone()),
            network: parameters,
            optimizer: Vec::new(),
            state,
        };
        self.write_best(&start.network, &start.state)?;
        write_whole(&report::metrics_path(self.folder), b"")?;
        self.train(network, start.network.clone(), start, stop)
    }

    /// Continues from the folder's checkpoint; `network` is one of the same architecture with any weights.
    ///
    /// # Errors
    /// [`TrainingError`], also for a checkpoint of other settings.
    pub fn resume(&self, network: EmbeddingNetwork, stop: &AtomicBool) -> Result<Outcome, TrainingError> {
        let path = self.checkpoint_path();
        let checkpoint = Checkpoint::read(&path)?;
        if let Some((setting, found, asked)) = first_difference(&checkpoint.state.settings, self.settings) {
            return Err(TrainingError::AnotherConfiguration { path, setting, found, asked });
        }
        let best = Checkpoint::read(&best_path(self.folder))?.network;
        report::forget_metrics_after(self.folder, checkpoint.state.step)?;
        self.train(network, best, checkpoint, stop)
    }

    fn train(
        &self,
        network: EmbeddingNetwork,
        mut best: Parameters,
        start: Checkpoint,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainingError> {
        let Checkpoint { network: parameters, mut average, optimizer, mut state } = start;
        let mut network = self.trainable(network, &parameters)?;
        let mut optimizer = self.optimizer(&network, optimizer)?;
        let order = Order::new(self.set.len(), self.config.batch, self.config.seed);
        let accumulate = u64::from(self.config.accumulate.max(1));
        let steps_per_epoch = (order.batches_per_epoch() / accumulate).max(1);
        let mut watcher = (self.watch)(Plan {
            steps: self.config.steps,
            steps_per_epoch,
            done: state.step,
            terms: self.losses.iter().map(|(_, loss)| loss.name()).collect(),
        });
        let mut sums = Sums::new(self.losses.len());
        std::thread::scope(|scope| {
            let (first, last) = (state.step * accumulate, self.config.steps * accumulate);
            let mut batches = Prefetch::start(scope, self.set, order, first, last);
            while state.step < self.config.steps {
                let rate = learning_rate(
                    self.config.learning_rate,
                    state.step,
                    self.config.warm_up,
                    self.config.steps,
                );
                if let Some(gradients) = self.gradients(&network, &mut batches, &mut sums, &mut state)? {
                    network = optimizer.step(rate, network, gradients);
                }
                state.step += 1;
                if let Some(average) = &mut average {
                    average.average(&current(&network), self.ema_decay(state.step));
                }
                sums.wait(batches.take_waited());
                let epoch = state.step.div_ceil(steps_per_epoch);
                let training = sums.stretch(self.losses, epoch, state.step, rate);
                watcher.step(&training);

                let epoch_ends =
                    state.step.is_multiple_of(steps_per_epoch) || state.step == self.config.steps;
                let stopped = stop.load(Ordering::Relaxed);
                if epoch_ends {
                    watcher.validation(&training);
                    let judged = average.clone().unwrap_or_else(|| current(&network));
                    let scores = self.validation.scores(&self.judged(&network, &judged)?, self.frozen)?;
                    if scores.map > state.best_map {
                        (state.best_map, state.best_step) = (scores.map, state.step);
                        self.write_best(&judged, &state)?;
                        best = judged;
                    }
                    let line = sums.epoch(training, scores, state.best_map);
                    report::append_metrics(self.folder, &line)?;
                    watcher.epoch(&line);
                }
                if epoch_ends || stopped {
                    let checkpoint = Checkpoint {
                        network: current(&network),
                        average: average.clone(),
                        optimizer: self.optimizer_bytes(&optimizer)?,
                        state: state.clone(),
                    };
                    checkpoint.write(&self.checkpoint_path())?;
                }
                if stopped {
                    break;
                }
            }
            watcher.end();
            let State { step, best_map, best_step, .. } = state;
            let last = average.unwrap_or_else(|| current(&network));
            Ok(Outcome { step, best, best_map, best_step, last, complete: step >= self.config.steps })
        })
    }

    /// The network with these numbers, on the training device, and only what is trained with gradients.
    fn trainable(
        &self,
        network: EmbeddingNetwork,
        parameters: &Parameters,
    ) -> Result<EmbeddingNetwork, TrainingError> {
        let network = self.apply(parameters, network)?.train();
        let frozen = group(&network, |path| !network.is_trained(self.frozen, path));
        Ok(network.freeze_group(frozen))
    }

    /// The network that validation sees: these numbers, no gradients, norms with their running statistics.
    fn judged(
        &self,
        network: &EmbeddingNetwork,
        parameters: &Parameters,
    ) -> Result<EmbeddingNetwork, TrainingError> {
        self.apply(parameters, network.valid())
    }

    fn apply(
        &self,
        parameters: &Parameters,
        network: EmbeddingNetwork,
    ) -> Result<EmbeddingNetwork, TrainingError> {
        let another = |source| TrainingError::AnotherNetwork { path: self.checkpoint_path(), source };
        parameters.apply(network).map_err(another)
    }

    /// The average moves faster in the first steps, as there is little to average yet.
    fn ema_decay(&self, step: u64) -> f32 {
        self.config.ema.min((1 + step) as f64 / (10 + step) as f64) as f32
    }

    /// Gradients of one step, over all its batches; none where they overflowed, which the scale of the loss then mends.
    fn gradients(
        &self,
        network: &EmbeddingNetwork,
        batches: &mut Prefetch,
        sums: &mut Sums,
        state: &mut State,
    ) -> Result<Option<GradientsParams>, TrainingError> {
        let count = self.config.accumulate.max(1);
        let mut accumulator = GradientsAccumulator::new();
        for _ in 0..count {
            let mut total = self.loss(network, batches.next_batch()?, sums, state.step)? / f64::from(count);
            if let Some(scale) = &state.loss_scale {
                total = total * scale.factor;
            }
            let gradients = GradientsParams::from_grads(total.backward(), network);
            accumulator.accumulate(network, gradients);
        }
        let gradients = accumulator.grads();
        match &mut state.loss_scale {
            None => Ok(Some(gradients)),
            Some(scale) => {
                scale.unscale(network, gradients).map_err(|_| TrainingError::Overflow { step: state.step })
            }
        }
    }

    fn loss(
        &self,
        network: &EmbeddingNetwork,
        batch: Batch,
        sums: &mut Sums,
        step: u64,
    ) -> Result<Tensor<1>, TrainingError> {
        let device = self.device.clone().autodiff();
        let images = batch.input.shape()[0];
        let input = self.config.arithmetic.cast(Tensor::from_data(batch.input, &device));
        let student = network.forward_after(self.frozen, input);
        let teacher = Tensor::<2>::from_data(batch.teacher, &device);
        let mut total: Option<Tensor<1>> = None;
        for (i, (weight, loss)) in self.losses.iter().enumerate() {
            let term = loss.loss(student.clone(), teacher.clone());
            let value: f32 = term.clone().into_scalar();
            if !value.is_finite() {
                return Err(TrainingError::Diverged { step, loss: value });
            }
            sums.add(i, value);
            let term = term * *weight;
            total = Some(match total {
                Some(total) => total + term,
                None => term,
            });
        }
        sums.count(images);
        total.ok_or(TrainingError::NoData("no loss was given"))
    }

    fn optimizer(
        &self,
        network: &EmbeddingNetwork,
        state: Vec<u8>,
    ) -> Result<ModuleOptimizer, TrainingError> {
        let optimizer = self.config.optimizer(network);
        if state.is_empty() {
            return Ok(optimizer);
        }
        optimizer.from_bytes(Bytes::from_bytes_vec(state)).map_err(|error| self.not_a_checkpoint(error))
    }

    fn optimizer_bytes(&self, optimizer: &ModuleOptimizer) -> Result<Vec<u8>, TrainingError> {
        let bytes = optimizer.into_bytes().map_err(|error| self.not_a_checkpoint(error))?;
        Ok(bytes.to_vec())
    }

    fn not_a_checkpoint(&self, error: impl std::fmt::Display) -> TrainingError {
        TrainingError::NotACheckpoint { path: self.checkpoint_path(), reason: error.to_string() }
    }

    fn write_best(&self, network: &Parameters, state: &State) -> Result<(), TrainingError> {
        let best = Checkpoint {
            network: network.clone(),
            average: None,
            optimizer: Vec::new(),
            state: state.clone(),
        };
        Ok(best.write(&best_path(self.folder))?)
    }

    fn checkpoint_path(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }
}

/// What a network in training holds by now. The running statistics of live norms take in the last step only when they are
/// asked to, and `valid` asks them.
fn current(network: &EmbeddingNetwork) -> Parameters {
    Parameters::of(&network.valid())
}

fn best_path(folder: &Path) -> PathBuf {
    folder.join("best.safetensors")
}

/// The best network of a run folder, and the settings that it was trained with.
///
/// # Errors
/// [`TrainingError`].
pub fn read_best(folder: &Path) -> Result<(Parameters, serde_json::Value), TrainingError> {
    Checkpoint::read(&best_path(folder)).map(|best| (best.network, best.state.settings))
}
