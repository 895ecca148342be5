//! The loop: a head learns on cached maps of a frozen backbone, and everything about it survives a kill.
//!
//! The run folder:
//!
//! | file | contents |
//! |---|---|
//! | `checkpoint.safetensors` | head, optimizer state, step and configuration, after every epoch and on Ctrl-C |
//! | `best.safetensors` | the head with the best validation mAP so far |
//! | `metrics.jsonl` | one object an epoch |
//!
//! The order of batches depends on seed and epoch only, so a run that was stopped and resumed goes through the
//! same numbers as one that was not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::grad_clipping::GradientClipping;
use burn::module::ParamGroup;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, Device, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::features::Features;
use crate::files::{FileError, read, write_whole};
use crate::losses::Loss;
use crate::networks::{Head, HeadWeights, values};
use crate::progress::Progress;
use crate::projection::{Projection, ProjectionError, Ridge, to_unit};
use crate::retrieval::{Scores, score};
use crate::schedule::learning_rate;

/// Rows that inference takes at once.
const INFERENCE_BATCH: usize = 128;
/// Gradients are scaled down to this norm: far above what a healthy step has.
const GRADIENT_NORM_MAX: f32 = 5.0;

/// Why training did not end.
#[derive(Debug, Error)]
pub enum TrainingError {
    /// A file of the run folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint cannot be used.
    #[error("{} is no checkpoint of this trainer: {reason}", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint belongs to another run.
    #[error("{} was made with {setting} = {found}, and {setting} = {asked} is asked for now: resume with the same settings, or train in another run folder", path.display())]
    AnotherConfiguration {
        /// The file.
        path: PathBuf,
        /// Which setting differs.
        setting: String,
        /// Its value in the checkpoint.
        found: String,
        /// Its value now.
        asked: String,
    },
    /// The first projection cannot be solved for.
    #[error(transparent)]
    Projection(#[from] ProjectionError),
    /// The numbers left the floats.
    #[error("the loss became {loss} in step {step}: use a smaller learning rate")]
    Diverged {
        /// In which step.
        step: u64,
        /// What it became.
        loss: f32,
    },
    /// Nothing to train on.
    #[error("there is nothing to train on: {0}")]
    NoData(&'static str),
}

/// Numbers of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Gradient steps in all.
    pub steps: u64,
    /// Views a step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps until the peak.
    pub warm_up: u64,
    /// Decoupled decay of weights (not of biases).
    pub weight_decay: f64,
    /// Seed of the order of batches.
    pub seed: u64,
}

/// Views with their maps and their teacher embeddings, row by row.
pub struct TrainingSet {
    /// `[n, C, h, w]`.
    pub maps: Features,
    /// `[n, D]`, of the same items.
    pub teacher: Features,
}

impl TrainingSet {
    /// Keeps the items that both have.
    ///
    /// # Errors
    /// [`TrainingError::NoData`] where nothing is left.
    pub fn new(maps: Features, teacher: Features) -> Result<Self, TrainingError> {
        let (maps, teacher) = (maps.keep(&teacher.items), teacher.keep(&maps.items));
        if maps.is_empty() || maps.shape.len() != 3 || teacher.shape.len() != 1 {
            return Err(TrainingError::NoData("maps and teacher embeddings have no photo in common"));
        }
        Ok(Self { maps, teacher })
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.teacher.row_len()
    }
}

/// What an epoch is judged by: query views against gallery photos that the teacher embedded.
pub struct Validation {
    /// Maps of the queries, `[q, C, h, w]`.
    pub queries: Features,
    /// Teacher embeddings of gallery and distractors, `[n, D]`.
    pub gallery: Vec<f32>,
    /// For each query its answers' positions in the gallery.
    pub answers: Vec<Vec<usize>>,
}

impl Validation {
    /// Scores of a head.
    pub fn scores(&self, head: &HeadWeights) -> Scores {
        let embeddings = infer(&head.head(&Device::flex()), &self.queries, Head::forward);
        score(&embeddings, &self.gallery, head.projection.bias.len(), &self.answers)
    }
}

/// Sets `head.linear` in closed form: ridge regression from pooled features to teacher embeddings, with whichever of
/// `ridges` does best on the validation queries. Returns the head, the ridge and its scores.
///
/// # Errors
/// [`TrainingError::Projection`], and [`TrainingError::NoData`] where `ridges` is empty.
pub fn initialise(
    head: &Head,
    set: &TrainingSet,
    validation: &Validation,
    ridges: &[f64],
) -> Result<(HeadWeights, f64, Scores), TrainingError> {
    let device = Device::flex();
    let pooled = infer(head, &set.maps, Head::pool);
    let queries = infer(head, &validation.queries, Head::pool);
    let channels = pooled.len() / set.maps.len();
    let dimension = set.dimension();
    let ridge = Ridge::new(&pooled, channels, &set.teacher.to_f32(), dimension)?;
    let mut best: Option<(Projection, f64, Scores)> = None;
    for &weight in ridges {
        let projection = ridge.solve(weight)?;
        let mut embeddings = projection.apply(&queries);
        embeddings.chunks_exact_mut(dimension).for_each(to_unit);
        let scores = score(&embeddings, &validation.gallery, dimension, &validation.answers);
        tracing::info!(
            "ridge {weight:>8}: validation mAP {:.4}, recall@1 {:.4}",
            scores.map,
            scores.recall_at_1
        );
        if best.as_ref().is_none_or(|(_, _, best)| scores.map > best.map) {
            best = Some((projection, weight, scores));
        }
    }
    let (projection, weight, scores) = best.ok_or(TrainingError::NoData("no ridge was given"))?;
    let head = head.clone().project(&projection, &device).weights();
    Ok((head.expect("the projection was just set"), weight, scores))
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps that are done.
    pub step: u64,
    /// The best head.
    pub best: HeadWeights,
    /// Its validation mAP.
    pub best_map: f64,
    /// The step that it is from; 0 is the closed form.
    pub best_step: u64,
    /// Whether all steps are done, rather than stopped.
    pub complete: bool,
}

/// A run: everything that stays the same over its steps.
pub struct Run<'a> {
    /// Numbers.
    pub config: &'a TrainingConfig,
    /// All settings of the run, as one JSON object: a checkpoint is only resumed under the same.
    pub settings: &'a serde_json::Value,
    /// Terms of the loss with their weights.
    pub losses: &'a [(f64, Box<dyn Loss>)],
    /// What it learns from.
    pub set: &'a TrainingSet,
    /// What it is judged by.
    pub validation: &'a Validation,
    /// Where it writes.
    pub folder: &'a Path,
}

impl Run<'_> {
    /// Whether the folder has a checkpoint to resume.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint_path().exists()
    }

    /// Trains `start` from the beginning.
    ///
    /// # Errors
    /// [`TrainingError`].
    pub fn start(&self, start: HeadWeights, stop: &AtomicBool) -> Result<Outcome, TrainingError> {
        let best_map = self.validation.scores(&start).map;
        let state = State { step: 0, best_map, best_step: 0, settings: self.settings.clone() };
        write_head(&self.best_path(), &start, None, &state)?;
        write_whole(&self.metrics_path(), b"")?;
        self.train(start.clone(), start, state, None, stop)
    }

    /// Continues from the folder's checkpoint.
    ///
    /// # Errors
    /// [`TrainingError`], also for a checkpoint of other settings.
    pub fn resume(&self, stop: &AtomicBool) -> Result<Outcome, TrainingError> {
        let path = self.checkpoint_path();
        let (head, optimizer, state) = read_head(&path)?;
        if let Some((setting, found, asked)) = first_difference(&state.settings, self.settings) {
            return Err(TrainingError::AnotherConfiguration { path, setting, found, asked });
        }
        let (best, _, _) = read_head(&self.best_path())?;
        self.forget_metrics_after(state.step)?;
        self.train(head, best, state, Some(optimizer), stop)
    }

    fn train(
        &self,
        head: HeadWeights,
        mut best: HeadWeights,
        mut state: State,
        optimizer_state: Option<Vec<u8>>,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainingError> {
        let device = Device::flex().autodiff();
        let mut head = head.head(&device);
        let mut optimizer = self.optimizer();
        if let Some(bytes) = optimizer_state {
            optimizer = optimizer.from_bytes(Bytes::from_bytes_vec(bytes)).map_err(|error| {
                TrainingError::NotACheckpoint { path: self.checkpoint_path(), reason: error.to_string() }
            })?;
        }
        let batches = self.batches_per_epoch();
        let progress = Progress::new("training", self.config.steps);
        let mut sums = Sums::new(self.losses.len());
        let mut order = Vec::new();
        while state.step < self.config.steps {
            let (epoch, batch) = (state.step / batches, (state.step % batches) as usize);
            if order.is_empty() || batch == 0 {
                order = self.order(epoch);
            }
            let rate =
                learning_rate(self.config.learning_rate, state.step, self.config.warm_up, self.config.steps);
            let rows = &order[batch * self.batch()..(batch + 1) * self.batch()];
            let gradients = self.step(&head, rows, &mut sums, state.step, &device)?;
            head = optimizer.step(rate, head, gradients);
            state.step += 1;
            progress.set(state.step);

            let epoch_ends = state.step.is_multiple_of(batches) || state.step == self.config.steps;
            let stopped = stop.load(Ordering::Relaxed);
            if epoch_ends {
                let weights = weights(&head);
                let scores = self.validation.scores(&weights);
                if scores.map > state.best_map {
                    (state.best_map, state.best_step) = (scores.map, state.step);
                    write_head(&self.best_path(), &weights, None, &state)?;
                    best = weights;
                }
                self.report(&mut sums, &state, epoch, rate, scores, &progress)?;
            }
            if epoch_ends || stopped {
                let bytes = optimizer.into_bytes().map_err(|error| TrainingError::NotACheckpoint {
                    path: self.checkpoint_path(),
                    reason: error.to_string(),
                })?;
                write_head(&self.checkpoint_path(), &weights(&head), Some(&bytes), &state)?;
            }
            if stopped {
                break;
            }
        }
        progress.finish();
        let State { step, best_map, best_step, .. } = state;
        Ok(Outcome { step, best, best_map, best_step, complete: step >= self.config.steps })
    }

    fn step(
        &self,
        head: &Head,
        rows: &[usize],
        sums: &mut Sums,
        step: u64,
        device: &Device,
    ) -> Result<GradientsParams, TrainingError> {
        let maps = tensor4(&self.set.maps, rows, device);
        let teacher = self.set.teacher.gather(rows.iter().copied());
        let teacher =
            Tensor::<2>::from_data(TensorData::new(teacher, [rows.len(), self.set.dimension()]), device);
        let student = head.forward(maps);
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
        sums.steps += 1;
        let total = total.ok_or(TrainingError::NoData("no loss was given"))?;
        Ok(GradientsParams::from_grads(total.backward(), head))
    }

    fn optimizer(&self) -> ModuleOptimizer {
        let decay = |decay: f64| AdamWConfig::new().with_weight_decay(decay as f32).build();
        let biases = ParamGroup::from_paths(vec!["conv.bias", "linear.bias"]);
        ModuleOptimizer::from(decay(self.config.weight_decay))
            .with_grad_clipping(GradientClipping::Norm(GRADIENT_NORM_MAX))
            .with_group(biases, decay(0.0), Some(GradientClipping::Norm(GRADIENT_NORM_MAX)))
    }

    /// The rows of an epoch in its order.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.config.seed);
        random.set_stream(epoch);
        let mut order: Vec<usize> = (0..self.set.maps.len()).collect();
        order.shuffle(&mut random);
        order
    }

    /// A batch is never larger than the set; what is left over at an epoch's end waits for another epoch's order.
    fn batch(&self) -> usize {
        self.config.batch.clamp(1, self.set.maps.len())
    }

    fn batches_per_epoch(&self) -> u64 {
        (self.set.maps.len() / self.batch()) as u64
    }

    fn report(
        &self,
        sums: &mut Sums,
        state: &State,
        epoch: u64,
        rate: f64,
        scores: Scores,
        progress: &Progress,
    ) -> Result<(), TrainingError> {
        let means: Vec<(&str, f64)> =
            self.losses.iter().enumerate().map(|(i, (_, loss))| (loss.name(), sums.mean(i))).collect();
        let losses: Vec<String> = means.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
        progress.say(&format!(
            "epoch {:>3}, step {:>5} of {}: {}, validation mAP {:.4} (best {:.4}), recall@1 {:.4}",
            epoch + 1,
            state.step,
            self.config.steps,
            losses.join(", "),
            scores.map,
            state.best_map,
            scores.recall_at_1
        ));
        let losses: HashMap<&str, f64> = means.into_iter().collect();
        let line = serde_json::json!({
            "epoch": epoch + 1, "step": state.step, "learning_rate": rate, "losses": losses, "validation": scores,
            "best_map": state.best_map, "seconds": sums.start.elapsed().as_secs_f64(),
        });
        *sums = Sums::new(self.losses.len());
        let path = self.metrics_path();
        let mut text = read(&path).unwrap_or_default();
        text.extend_from_slice(format!("{line}\n").as_bytes());
        Ok(write_whole(&path, &text)?)
    }

    /// An epoch that ended after the last checkpoint will be done again.
    fn forget_metrics_after(&self, step: u64) -> Result<(), TrainingError> {
        let path = self.metrics_path();
        let text = String::from_utf8(read(&path).unwrap_or_default()).unwrap_or_default();
        let known = |line: &&str| {
            let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
            line.and_then(|line| line["step"].as_u64()).is_some_and(|found| found <= step)
        };
        let kept: String = text.lines().filter(known).flat_map(|line| [line, "\n"]).collect();
        Ok(write_whole(&path, kept.as_bytes())?)
    }

    fn checkpoint_path(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    fn best_path(&self) -> PathBuf {
        best_path(self.folder)
    }

    fn metrics_path(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }
}

fn best_path(folder: &Path) -> PathBuf {
    folder.join("best.safetensors")
}

/// The best head of a run folder, and the settings that it was trained with.
///
/// # Errors
/// [`TrainingError`].
pub fn read_best(folder: &Path) -> Result<(HeadWeights, serde_json::Value), TrainingError> {
    read_head(&best_path(folder)).map(|(head, _, state)| (head, state.settings))
}

/// What a checkpoint knows beside tensors.
#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    best_map: f64,
    best_step: u64,
    settings: serde_json::Value,
}

/// Losses of the steps since the last report.
struct Sums {
    sums: Vec<f64>,
    steps: u64,
    start: Instant,
}

impl Sums {
    fn new(losses: usize) -> Self {
        Self { sums: vec![0.0; losses], steps: 0, start: Instant::now() }
    }

    fn add(&mut self, loss: usize, value: f32) {
        self.sums[loss] += f64::from(value);
    }

    fn mean(&self, loss: usize) -> f64 {
        self.sums[loss] / self.steps.max(1) as f64
    }
}

fn weights(head: &Head) -> HeadWeights {
    head.weights().expect("a head in training has a projection")
}

/// Runs part of a head over all rows, without gradients.
fn infer(head: &Head, maps: &Features, forward: impl Fn(&Head, Tensor<4>) -> Tensor<2>) -> Vec<f32> {
    let rows: Vec<usize> = (0..maps.len()).collect();
    let batches = rows.chunks(INFERENCE_BATCH);
    batches.flat_map(|rows| values(forward(head, tensor4(maps, rows, &Device::flex())))).collect()
}

/// Rows of maps as one tensor `[rows, C, h, w]`.
fn tensor4(maps: &Features, rows: &[usize], device: &Device) -> Tensor<4> {
    let &[c, h, w] = maps.shape.as_slice() else {
        panic!("maps have three dimensions, not {:?}", maps.shape)
    };
    Tensor::from_data(TensorData::new(maps.gather(rows.iter().copied()), [rows.len(), c, h, w]), device)
}

fn write_head(
    path: &Path,
    head: &HeadWeights,
    optimizer: Option<&[u8]>,
    state: &State,
) -> Result<(), FileError> {
    let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let HeadWeights { map_channels, channels, conv_weight, conv_bias, projection } = head;
    let dimension = projection.bias.len();
    let mut tensors = vec![
        ("head.conv.weight", Dtype::F32, vec![*channels, *map_channels], bytes(conv_weight)),
        ("head.conv.bias", Dtype::F32, vec![*channels], bytes(conv_bias)),
        ("head.linear.weight", Dtype::F32, vec![*channels, dimension], bytes(&projection.weight)),
        ("head.linear.bias", Dtype::F32, vec![dimension], bytes(&projection.bias)),
    ];
    tensors.extend(optimizer.map(|bytes| ("optimizer", Dtype::U8, vec![bytes.len()], bytes.to_vec())));
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("the bytes have this shape"))
    });
    let state = serde_json::to_string(state).expect("numbers and JSON are always JSON");
    let metadata = HashMap::from([("state".to_owned(), state)]);
    let bytes = safetensors::serialize(views, Some(metadata)).expect("tensors of valid shape serialise");
    write_whole(path, &bytes)
}

fn read_head(path: &Path) -> Result<(HeadWeights, Vec<u8>, State), TrainingError> {
    let bytes = read(path)?;
    parse_head(&bytes).map_err(|reason| TrainingError::NotACheckpoint { path: path.into(), reason })
}

fn parse_head(bytes: &[u8]) -> Result<(HeadWeights, Vec<u8>, State), String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let state = metadata.metadata().as_ref().and_then(|metadata| metadata.get("state"));
    let state = serde_json::from_str(state.ok_or("it has no state")?).map_err(|error| error.to_string())?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |name: &str, rank: usize| -> Result<(Vec<f32>, Vec<usize>), String> {
        let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
        if tensor.dtype() != Dtype::F32 || tensor.shape().len() != rank {
            return Err(format!("{name} is not a tensor of {rank} dimensions and 32-bit floats"));
        }
        let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok((values.collect(), tensor.shape().to_vec()))
    };
    let (conv_weight, conv_shape) = tensor("head.conv.weight", 2)?;
    let (conv_bias, conv_bias_shape) = tensor("head.conv.bias", 1)?;
    let (weight, linear_shape) = tensor("head.linear.weight", 2)?;
    let (bias, bias_shape) = tensor("head.linear.bias", 1)?;
    let [channels, map_channels] = [conv_shape[0], conv_shape[1]];
    if conv_bias_shape != [channels] || linear_shape[0] != channels || linear_shape[1..] != bias_shape {
        return Err("its tensors do not fit one another".to_owned());
    }
    let optimizer = tensors.tensor("optimizer").map(|tensor| tensor.data().to_vec()).unwrap_or_default();
    let head = HeadWeights {
        map_channels,
        channels,
        conv_weight,
        conv_bias,
        projection: Projection { weight, bias },
    };
    Ok((head, optimizer, state))
}

/// The first setting, by path, that two JSON objects do not share.
fn first_difference(
    found: &serde_json::Value,
    asked: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value;
    match (found, asked) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
            let (path, found, asked) = first_difference(a, b)?;
            Some((if path.is_empty() { key.clone() } else { format!("{key}.{path}") }, found, asked))
        }),
        (a, b) if a == b => None,
        (a, b) => Some((String::new(), a.to_string(), b.to_string())),
    }
}
