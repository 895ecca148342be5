//! An int8 form of a query network: calibrated on photos, and compared with the f32 form on others.
//!
//! The rewriting of the graph is [`burn_onnx_export::quantize`]'s; here are photos and tract. Nothing is trained.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn_onnx_export::OnnxModel;
use burn_onnx_export::quantize::{
    Activation, Activations, Histogram, QuantizeError, QuantizeOptions, exposing, observed,
};
use glimpse_embedder::{Network, Preprocessing};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use thiserror::Error;
use tract_onnx::prelude::*;

use crate::onnx::cosine;
use crate::photos::PhotoList;
use crate::progress::Progress;

/// Why there is no int8 network.
#[derive(Debug, Error)]
pub enum Int8Error {
    /// The graph cannot be quantized.
    #[error("cannot quantize the network")]
    Quantize(#[from] QuantizeError),
    /// The engine does not run the f32 network with its intermediate values as outputs.
    #[error("the network cannot be observed: {reason}")]
    Engine {
        /// What the engine says.
        reason: String,
    },
    /// The network fails on a photo.
    #[error("the network fails on {}: {reason}", photo.display())]
    Run {
        /// The photo.
        photo: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// A value inside the network is infinite or no number.
    #[error("`{tensor}` of the network is not finite on some calibration photo: the network is broken")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// No photo can be decoded.
    #[error("none of the {count} photos that were chosen to {purpose} can be decoded")]
    NoPhoto {
        /// How many there were.
        count: usize,
        /// `calibrate` or `verify`.
        purpose: &'static str,
    },
    /// The list is too short to leave photos for the verification.
    #[error(
        "{count} different photos are too few: some calibrate and others verify, so give at least 2, better 100"
    )]
    TooFew {
        /// How many there are.
        count: usize,
    },
    /// Ctrl-C.
    #[error("stopped; nothing was written")]
    Stopped,
}

/// Photos to calibrate on and photos to verify with, as numbers in a list; no photo is in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// For [`calibrate`].
    pub calibrate: Vec<usize>,
    /// For [`agreement`].
    pub verify: Vec<usize>,
}

impl Sample {
    /// Chooses at random up to `calibrate` and `verify` photos; of a short list up to a third verify. A path that is
    /// listed twice counts once.
    ///
    /// # Errors
    /// [`Int8Error::TooFew`] where one of the two would stay empty.
    pub fn choose(photos: &PhotoList, calibrate: usize, verify: usize, seed: u64) -> Result<Self, Int8Error> {
        let mut numbers: Vec<usize> = (0..photos.photos().len()).collect();
        numbers.sort_by_key(|number| &photos.photos()[*number].path);
        numbers.dedup_by_key(|number| &photos.photos()[*number].path);
        let count = numbers.len();
        numbers.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let verify = verify.min(count.div_ceil(3));
        let calibrate = calibrate.min(count - verify);
        if verify == 0 || calibrate == 0 {
            return Err(Int8Error::TooFew { count });
        }
        let rest = numbers.split_off(calibrate);
        Ok(Self { calibrate: numbers, verify: rest[..verify].to_vec() })
    }
}

/// Range and channel means of each activation that [`burn_onnx_export::quantize::quantize`] needs with these options, over some photos
/// of a list. Photos that cannot be decoded are left out.
///
/// # Errors
/// [`Int8Error`].
pub fn calibrate(
    model: &OnnxModel,
    options: &QuantizeOptions,
    preprocessing: &Preprocessing,
    (photos, numbers): (&PhotoList, &[usize]),
    stop: &AtomicBool,
) -> Result<Activations, Int8Error> {
    let tensors = observed(model, options)?;
    if tensors.is_empty() {
        return Ok(Activations::new());
    }
    let probe = Probe::new(&exposing(model, &tensors)?, preprocessing)?;
    let progress = Progress::new("calibration", numbers.len() as u64);
    // Sums of floats depend on their order: each photo's are kept, and added up in the order of the list.
    let observe = |number: &usize| -> Result<Option<Vec<Observed>>, Int8Error> {
        if stop.load(Ordering::Relaxed) {
            return Err(Int8Error::Stopped);
        }
        progress.step();
        let Ok(photo) = photos.view(*number, 0, 0) else { return Ok(None) };
        let run = |reason| Int8Error::Run { photo: photos.file(*number), reason };
        probe.run(&preprocessing.tensor(&photo)).map(Some).map_err(run)
    };
    let mut all = vec![Observed::default(); tensors.len()];
    let mut decoded = 0;
    for chunk in numbers.chunks(rayon::current_num_threads()) {
        let observed: Vec<_> = chunk.par_iter().map(observe).collect::<Result<_, _>>()?;
        for observed in observed.into_iter().flatten() {
            decoded += 1;
            all.iter_mut().zip(&observed).for_each(|(all, one)| all.merge(one));
        }
    }
    progress.finish();
    if decoded == 0 {
        return Err(Int8Error::NoPhoto { count: numbers.len(), purpose: "calibrate" });
    }
    let activation = |(tensor, observed): (String, Observed)| {
        let found =
            observed.activation(decoded).ok_or_else(|| Int8Error::NotFinite { tensor: tensor.clone() })?;
        Ok((tensor, found))
    };
    tensors.into_par_iter().zip(all).map(activation).collect()
}

/// What one tensor was on some photos.
#[derive(Clone, Default)]
struct Observed {
    histogram: Histogram,
    /// Mean of each channel, summed over photos.
    means: Vec<f64>,
}

impl Observed {
    fn new(shape: &[usize], values: &[f32]) -> Self {
        let mut histogram = Histogram::default();
        histogram.observe(values);
        // `[1, C, ..]`, and `[1, C]` is the same with nothing behind.
        let channels = shape.get(1).copied().unwrap_or(0);
        let size = values.len().checked_div(channels).unwrap_or(0);
        let mean = |channel: &[f32]| channel.iter().map(|value| f64::from(*value)).sum::<f64>() / size as f64;
        let means = if size > 0 { values.chunks_exact(size).map(mean).collect() } else { Vec::new() };
        Self { histogram, means }
    }

    fn merge(&mut self, other: &Self) {
        self.histogram.merge(&other.histogram);
        self.means.resize(other.means.len(), 0.0);
        self.means.iter_mut().zip(&other.means).for_each(|(ours, theirs)| *ours += theirs);
    }

    /// `None` where a value was not finite.
    fn activation(&self, photos: usize) -> Option<Activation> {
        let range = self.histogram.range()?;
        let channel_means = self.means.iter().map(|sum| (sum / photos as f64) as f32).collect();
        Some(Activation { range, channel_means })
    }
}

/// The f32 network with its intermediate values as outputs.
struct Probe {
    plan: Arc<TypedRunnableModel>,
    shape: [usize; 4],
}

impl Probe {
    fn new(model: &OnnxModel, preprocessing: &Preprocessing) -> Result<Self, Int8Error> {
        let shape = [1, 3, preprocessing.height as usize, preprocessing.width as usize];
        let build = || -> TractResult<Arc<TypedRunnableModel>> {
            let model = onnx().model_for_read(&mut model.to_bytes().as_slice())?;
            let model = model.with_input_fact(0, f32::fact(shape).into())?;
            model.into_optimized()?.into_runnable()
        };
        // The same shield as in the embedder: a foreign model can reach assertions of the engine.
        let plan = catch_unwind(AssertUnwindSafe(build))
            .unwrap_or_else(|_| Err(TractError::msg("the engine gave up on its graph")))
            .map_err(|error| Int8Error::Engine { reason: format!("{error:#}") })?;
        Ok(Self { plan, shape })
    }

    /// Runs on one tensor, `[3, height, width]`, and returns what each output holds.
    fn run(&self, tensor: &[f32]) -> Result<Vec<Observed>, String> {
        let run = || -> TractResult<Vec<Observed>> {
            let input = Tensor::from_shape(&self.shape, tensor)?;
            let outputs = self.plan.run(tvec!(input.into()))?;
            let observe = |output: &TValue| {
                let view = output.to_plain_array_view::<f32>()?;
                let copied = view.as_slice().is_none().then(|| view.iter().copied().collect::<Vec<_>>());
                let values = copied.as_deref().or(view.as_slice()).unwrap_or_default();
                Ok(Observed::new(output.shape(), values))
            };
            outputs.iter().map(observe).collect()
        };
        run().map_err(|error| format!("{error:#}"))
    }
}

/// How near two networks are: cosines of their outputs for the same photo.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// How many photos were compared.
    pub photos: usize,
    /// Their mean, 1 where the networks give the same directions.
    pub mean: f64,
    /// The least cosine; NaN where one of the networks gave no direction.
    pub worst: f64,
}

/// Compares two networks on some photos of a list. Photos that cannot be decoded are left out.
///
/// # Errors
/// [`Int8Error::Run`], [`Int8Error::NoPhoto`] and [`Int8Error::Stopped`].
pub fn agreement(
    one: &Network,
    other: &Network,
    preprocessing: &Preprocessing,
    (photos, numbers): (&PhotoList, &[usize]),
    stop: &AtomicBool,
) -> Result<Agreement, Int8Error> {
    let progress = Progress::new("verification", numbers.len() as u64);
    let compare = |number: &usize| -> Result<Option<f64>, Int8Error> {
        if stop.load(Ordering::Relaxed) {
            return Err(Int8Error::Stopped);
        }
        progress.step();
        let Ok(photo) = photos.view(*number, 0, 0) else { return Ok(None) };
        let tensor = preprocessing.tensor(&photo);
        let run = |network: &Network| {
            network.run(&tensor).map_err(|reason| Int8Error::Run { photo: photos.file(*number), reason })
        };
        Ok(Some(cosine(&run(one)?, &run(other)?)))
    };
    let cosines: Vec<Option<f64>> = numbers.par_iter().map(compare).collect::<Result<_, _>>()?;
    progress.finish();
    let cosines: Vec<f64> = cosines.into_iter().flatten().collect();
    if cosines.is_empty() {
        return Err(Int8Error::NoPhoto { count: numbers.len(), purpose: "verify" });
    }
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    // Written so that NaN is the worst.
    let worst = cosines.iter().fold(1.0, |worst, cosine| if *cosine >= worst { worst } else { *cosine });
    Ok(Agreement { photos: cosines.len(), mean, worst })
}
