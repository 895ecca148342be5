//! What a run learns from, and how it reaches the device without a wait.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use glimpse_embedder::Preprocessing;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::TrainingError;
use crate::features::Features;
use crate::photos::{Augmentation, PhotoList};

/// Batches that wait for the device at most.
const PREFETCH: usize = 3;

/// What goes into the trained part of the network, row by row.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Maps after the frozen stages, `[n, C, h, w]`.
    Maps(Features),
    /// Photos, decoded for each batch.
    Photos {
        /// All photos.
        list: PhotoList,
        /// How they become `[3, H, W]`.
        preprocessing: Preprocessing,
        /// For each row its item: view x photos + photo, ascending.
        items: Vec<u32>,
        /// What is done to a photo before.
        augmentation: Augmentation,
        /// Of the augmentation.
        seed: u64,
    },
}

impl Inputs {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.items().len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which item each row is, ascending.
    pub fn items(&self) -> &[u32] {
        match self {
            Self::Maps(features) => &features.items,
            Self::Photos { items, .. } => items,
        }
    }

    /// The same inputs without the rows whose item is not in `wanted` (ascending).
    pub fn keep(self, wanted: &[u32]) -> Self {
        match self {
            Self::Maps(features) => Self::Maps(features.keep(wanted)),
            Self::Photos { list, preprocessing, mut items, augmentation, seed } => {
                items.retain(|item| wanted.binary_search(item).is_ok());
                Self::Photos { list, preprocessing, items, augmentation, seed }
            }
        }
    }

    /// Shape of one row.
    pub fn shape(&self) -> [usize; 3] {
        match self {
            Self::Maps(features) => features.shape.as_slice().try_into().unwrap_or([0; 3]),
            Self::Photos { preprocessing, .. } => {
                [3, preprocessing.height as usize, preprocessing.width as usize]
            }
        }
    }

    /// These rows, one after the other. `epoch` chooses the augmentation where that changes from epoch to epoch.
    ///
    /// # Errors
    /// [`TrainingError::Photo`].
    pub fn gather(&self, rows: &[usize], epoch: u64) -> Result<Vec<f32>, TrainingError> {
        match self {
            Self::Maps(features) => Ok(features.gather(rows.iter().copied())),
            Self::Photos { list, preprocessing, items, augmentation, seed } => {
                let photos = list.photos().len();
                let tensors = rows.par_iter().map(|&row| {
                    let (photo, view) = (items[row] as usize % photos, items[row] as usize / photos);
                    let decoded = list.augmented(photo, view, *augmentation, *seed, epoch);
                    let decoded = decoded.map_err(|error| TrainingError::Photo {
                        photo: list.file(photo),
                        reason: error.to_string(),
                    })?;
                    Ok(preprocessing.tensor(&decoded))
                });
                Ok(tensors.collect::<Result<Vec<_>, TrainingError>>()?.concat())
            }
        }
    }

    /// These rows as one tensor `[rows, C, h, w]`.
    ///
    /// # Errors
    /// [`TrainingError::Photo`].
    pub fn tensor(&self, rows: &[usize], device: &Device) -> Result<Tensor<4>, TrainingError> {
        let [c, h, w] = self.shape();
        let data = TensorData::new(self.gather(rows, 0)?, [rows.len(), c, h, w]);
        Ok(Tensor::from_data(data, device))
    }
}

/// Inputs with the teacher's embeddings, row by row.
#[derive(Debug)]
pub struct TrainingSet {
    /// What the student sees.
    pub inputs: Inputs,
    /// `[n, D]`, of the same items.
    pub teacher: Features,
}

impl TrainingSet {
    /// Keeps the items that both have.
    ///
    /// # Errors
    /// [`TrainingError::NoData`] where nothing is left.
    pub fn new(inputs: Inputs, teacher: Features) -> Result<Self, TrainingError> {
        let teacher = teacher.keep(inputs.items());
        let inputs = inputs.keep(&teacher.items);
        if inputs.is_empty() || inputs.shape() == [0; 3] || teacher.shape.len() != 1 {
            return Err(TrainingError::NoData("inputs and teacher embeddings have no photo in common"));
        }
        Ok(Self { inputs, teacher })
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.teacher.row_len()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Teacher embeddings of `count` rows (all of them, where there are fewer), drawn by `seed`.
    pub fn bank(&self, count: usize, seed: u64) -> Vec<f32> {
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        rows.truncate(count);
        rows.sort_unstable();
        self.teacher.gather(rows)
    }
}

/// Which rows stand in which batch: a new order each epoch, from seed and epoch alone.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    rows: usize,
    batch: usize,
    seed: u64,
}

impl Order {
    /// A batch is never larger than the set; what is left over at an epoch's end waits for another epoch's order.
    pub fn new(rows: usize, batch: usize, seed: u64) -> Self {
        Self { rows, batch: batch.clamp(1, rows.max(1)), seed }
    }

    /// Batches in an epoch, at least 1.
    pub fn batches_per_epoch(&self) -> u64 {
        ((self.rows / self.batch) as u64).max(1)
    }

    /// Rows in a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(epoch);
        let mut order: Vec<usize> = (0..self.rows).collect();
        order.shuffle(&mut random);
        order
    }
}

/// One batch, ready for the device.
pub struct Batch {
    /// `[rows, C, h, w]`.
    pub input: TensorData,
    /// `[rows, D]`.
    pub teacher: TensorData,
}

/// Batches that threads of their own prepare while the device works.
pub struct Prefetch<'scope> {
    batches: Receiver<Result<Batch, TrainingError>>,
    waited: Duration,
    _loader: ScopedJoinHandle<'scope, ()>,
}

impl<'scope> Prefetch<'scope> {
    /// Starts to prepare batches `first..last` of a run. The loader ends when this is dropped.
    pub fn start<'set: 'scope>(
        scope: &'scope Scope<'scope, '_>,
        set: &'set TrainingSet,
        order: Order,
        first: u64,
        last: u64,
    ) -> Self {
        let (sender, batches) = sync_channel(PREFETCH);
        let loader = scope.spawn(move || load(set, order, first..last, &sender));
        Self { batches, waited: Duration::ZERO, _loader: loader }
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`TrainingError::Photo`].
    pub fn next_batch(&mut self) -> Result<Batch, TrainingError> {
        let start = Instant::now();
        let batch = self.batches.recv();
        self.waited += start.elapsed();
        batch.unwrap_or(Err(TrainingError::NoData("the batches came to an end before the steps")))
    }

    /// How long [`Prefetch::next_batch`] has waited since the last call.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

fn load(
    set: &TrainingSet,
    order: Order,
    batches: std::ops::Range<u64>,
    sender: &SyncSender<Result<Batch, TrainingError>>,
) {
    let mut rows = Vec::new();
    let mut known = None;
    for number in batches {
        let (epoch, batch) = (number / order.batches_per_epoch(), number % order.batches_per_epoch());
        if known != Some(epoch) {
            (rows, known) = (order.epoch(epoch), Some(epoch));
        }
        let start = batch as usize * order.batch;
        let prepared = prepare(set, &rows[start..start + order.batch], epoch);
        let failed = prepared.is_err();
        // The other side is gone when the run has stopped.
        if sender.send(prepared).is_err() || failed {
            return;
        }
    }
}

fn prepare(set: &TrainingSet, rows: &[usize], epoch: u64) -> Result<Batch, TrainingError> {
    let [c, h, w] = set.inputs.shape();
    Ok(Batch {
        input: TensorData::new(set.inputs.gather(rows, epoch)?, [rows.len(), c, h, w]),
        teacher: TensorData::new(set.teacher.gather(rows.iter().copied()), [rows.len(), set.dimension()]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rows: usize) -> TrainingSet {
        let items: Vec<u32> = (0..rows as u32).collect();
        let numbers = |each: usize| (0..rows * each).map(|i| i as f32).collect();
        let maps = Features::from_f32(vec![1, 1, 2], items.clone(), numbers(2));
        TrainingSet::new(Inputs::Maps(maps), Features::from_f32(vec![1], items, numbers(1))).unwrap()
    }

    #[test]
    fn an_epoch_has_every_row_at_most_once_and_its_own_order() {
        let order = Order::new(10, 3, 7);
        assert_eq!(order.batches_per_epoch(), 3);
        let mut first = order.epoch(0);
        assert_eq!(first, order.epoch(0));
        assert_ne!(first, order.epoch(1));
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
        assert_eq!(Order::new(2, 64, 7).batches_per_epoch(), 1);
    }

    #[test]
    fn batches_from_the_middle_are_those_of_a_whole_run() {
        let set = set(10);
        let order = Order::new(10, 3, 7);
        let collect = |first| -> Vec<Vec<f32>> {
            std::thread::scope(|scope| {
                let mut batches = Prefetch::start(scope, &set, order, first, 8);
                let batches =
                    (first..8).map(|_| batches.next_batch().unwrap().input.try_into_vec_as().unwrap());
                batches.collect()
            })
        };
        let whole = collect(0);
        assert_eq!(whole[5..], collect(5));
        assert_eq!(whole[0].len(), 6);
    }

    #[test]
    fn a_run_that_stops_early_leaves_no_loader_behind() {
        let set = set(10);
        // The scope would not end otherwise.
        std::thread::scope(|scope| {
            let mut batches = Prefetch::start(scope, &set, Order::new(10, 3, 7), 0, 1_000_000);
            batches.next_batch().unwrap();
        });
    }
}
