//! Training a codebook: k-means in each sub-space, over features of shape `[n, D]`, row-major.
//!
//! As in the SSP research code (`method.md`, Anchors): plain L2 k-means, 10 iterations, best of 2 restarts, at most 1000
//! points a centroid, no rotation. Ours adds k-means++ seeding (Arthur and Vassilvitskii 2007), repair of empty
//! clusters, and the choices of a spherical objective (`method.md`, Known weaknesses, 2) and of a rotation (OPQ).
//!
//! All sub-spaces go through the iterations in step, in parallel on the current rayon pool. Each has random numbers of
//! its own and sums in a fixed order, so that a seed gives the same codebook at any number of threads.

use alloc::vec;
use alloc::vec::Vec;

use rand::{SeedableRng, seq};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use thiserror::Error;

use crate::codebook::check_shape;
use crate::lanes::Rows;
use crate::{Centroids, Codebook, CodebookError, DIMENSION_MAX};

mod kmeans;
mod opq;

use kmeans::Clusters;

/// How a codebook is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainOptions {
    /// M, the number of sub-spaces.
    pub sub_spaces: usize,
    /// K, the number of centroids in each.
    pub centroids: usize,
    /// Lloyd iterations a restart.
    pub iterations: usize,
    /// How often k-means starts anew; each sub-space keeps its best.
    pub restarts: usize,
    /// The same seed and features give the same codebook.
    pub seed: u64,
    /// Cluster directions (cosine) rather than points (L2). Each centroid then has the length that represents the
    /// sub-vectors of its cluster best, so that the codebook still encodes and searches by L2.
    pub spherical: bool,
    /// Rounds of search for a rotation (OPQ) before the centroids are trained; 0 is none. A query and a code then cost
    /// `D^2` multiplications more.
    pub rotation_rounds: usize,
    /// More features than this times `centroids` are sampled down.
    pub max_points_per_centroid: usize,
}

impl Default for TrainOptions {
    /// The values of the SSP research code.
    fn default() -> Self {
        Self {
            sub_spaces: 32,
            centroids: 256,
            iterations: 10,
            restarts: 2,
            seed: 0,
            spherical: false,
            rotation_rounds: 0,
            max_points_per_centroid: 1000,
        }
    }
}

/// How far the training is: sent after each iteration of all sub-spaces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The iteration that ended, counted from 1 over the rounds of the rotation and all restarts.
    pub step: usize,
    /// Iterations there will be.
    pub steps: usize,
    /// The objective a feature before that iteration's update; smaller is better. Squared L2 distance, or 1 - cosine summed over
    /// the sub-spaces where spherical.
    pub error: f64,
}

/// Why no codebook can be trained.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TrainError {
    /// M, K and D give no codebook.
    #[error(transparent)]
    Shape(#[from] CodebookError),
    /// The features are no whole rows.
    #[error("{values} values are no whole features of {dimension} dimensions")]
    Ragged {
        /// How many values there are.
        values: usize,
        /// D
        dimension: usize,
    },
    /// There are fewer features than centroids.
    #[error("{features} features are too few for {centroids} centroids: use more photos or fewer centroids")]
    TooFewPoints {
        /// How many there are.
        features: usize,
        /// K
        centroids: usize,
    },
    /// A feature holds NaN or infinity.
    #[error("feature {row} has a component that is not finite")]
    NotFinite {
        /// Which one, from 0.
        row: usize,
    },
    /// The caller's `progress` said so.
    #[error("stopped")]
    Stopped,
    /// An option that must be at least 1 is 0.
    #[error("`{option}` must be at least 1")]
    Zero {
        /// Its name.
        option: &'static str,
    },
}

/// Trains a codebook on `features`, `[n, dimension]`, row-major. `progress` is told after each iteration, and stops the training by
/// returning `false`.
///
/// # Errors
/// What is wrong with the features or the options; see [`TrainError`].
pub fn train(
    features: &[f32],
    dimension: usize,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Codebook, TrainError> {
    check(features, dimension, options)?;
    let wanted = options.max_points_per_centroid.saturating_mul(options.centroids);
    let sample = sample(features, dimension, wanted, options.seed);
    let features = sample.as_deref().unwrap_or(features);
    let count = features.len() / dimension;
    let sub_dimension = dimension / options.sub_spaces;
    let steps = options.rotation_rounds + options.restarts * options.iterations;
    let mut step = 0;
    let mut report = |error: f64| {
        step += 1;
        if progress(Progress { step, steps, error }) { Ok(()) } else { Err(TrainError::Stopped) }
    };

    let rotation = match options.rotation_rounds {
        0 => None,
        _ => Some(opq::rotation(features, dimension, options, &mut report)?),
    };
    let rotated = rotation.as_ref().map(|rotation| opq::rotate(features, dimension, rotation));
    let features = rotated.as_deref().unwrap_or(features);
    let mut sub_spaces: Vec<SubSpace> = (0..options.sub_spaces)
        .map(|m| {
            let points = Rows::new(&features[m * sub_dimension..], count, sub_dimension, dimension);
            SubSpace { points, clusters: Clusters::default(), best: None }
        })
        .collect();
    for restart in 0..options.restarts {
        sub_spaces.par_iter_mut().enumerate().for_each(|(m, sub_space)| {
            let mut random = random(options.seed, (restart * options.sub_spaces + m) as u64 + 1);
            sub_space.clusters =
                Clusters::seed(&sub_space.points, options.centroids, options.spherical, &mut random);
        });
        for _ in 0..options.iterations {
            let errors: Vec<f64> = sub_spaces
                .par_iter_mut()
                .map(|SubSpace { points, clusters, .. }| clusters.iterate(points))
                .collect();
            report(errors.iter().sum::<f64>() / count as f64)?;
        }
        sub_spaces.par_iter_mut().for_each(SubSpace::keep_best);
    }
    let centroids =
        sub_spaces.into_iter().filter_map(|sub_space| sub_space.best).flat_map(|best| best.1).collect();
    Ok(Codebook::new(options.sub_spaces, options.centroids, dimension, centroids, rotation)?)
}

/// How centroids of whole vectors are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterOptions {
    /// K, the number of centroids.
    pub centroids: usize,
    /// Lloyd iterations.
    pub iterations: usize,
    /// The same seed and features give the same centroids.
    pub seed: u64,
    /// More features than this times `centroids` are sampled down.
    pub max_points_per_centroid: usize,
}

/// Trains centroids of whole vectors on `features`, `[n, dimension]`, row-major, by L2 k-means; `progress` as in [`train`].
///
/// # Errors
/// What is wrong with the features or the options; see [`TrainError`].
pub fn cluster(
    features: &[f32],
    dimension: usize,
    options: &ClusterOptions,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Centroids, TrainError> {
    let ClusterOptions { centroids, iterations, seed, max_points_per_centroid } = *options;
    if dimension == 0 || dimension > DIMENSION_MAX {
        return Err(CodebookError::Dimension { dimension }.into());
    }
    check_options(&[
        ("centroids", centroids),
        ("iterations", iterations),
        ("max_points_per_centroid", max_points_per_centroid),
    ])?;
    check_features(features, dimension, centroids)?;
    let sample = sample(features, dimension, max_points_per_centroid.saturating_mul(centroids), seed);
    let features = sample.as_deref().unwrap_or(features);
    let count = features.len() / dimension;
    let points = Rows::new(features, count, dimension, dimension);
    let mut clusters = Clusters::seed(&points, centroids, false, &mut random(seed, 1));
    for step in 1..=iterations {
        let error = clusters.iterate(&points) / count as f64;
        if !progress(Progress { step, steps: iterations, error }) {
            return Err(TrainError::Stopped);
        }
    }
    Ok(Centroids::new(clusters.into_centroids(), dimension)?)
}

/// The mean squared L2 distance between `features`, `[n, D]`, and what their codes stand for. An incomplete last
/// row is left out; without any row it is 0.
pub fn quantization_error(codebook: &Codebook, features: &[f32]) -> f32 {
    let rows = features.len() / codebook.dimension();
    let errors: Vec<f64> = features
        .par_chunks_exact(codebook.dimension())
        .map_init(
            || (vec![0; codebook.sub_spaces()], vec![0.0; codebook.dimension()]),
            |(code, decoded), feature| {
                codebook.encode(feature, code).expect("rows have the codebook's dimension");
                codebook.decode(code, decoded).expect("codes of encode name centroids");
                feature.iter().zip(decoded).map(|(x, y)| f64::from(*x - *y).powi(2)).sum()
            },
        )
        .collect();
    (errors.iter().sum::<f64>() / rows.max(1) as f64) as f32
}

/// One sub-space in training.
struct SubSpace<'a> {
    points: Rows<'a>,
    clusters: Clusters,
    /// The smallest error of a finished restart, and its centroids.
    best: Option<(f64, Vec<f32>)>,
}

impl SubSpace<'_> {
    fn keep_best(&mut self) {
        let (error, centroids) = self.clusters.finish(&self.points);
        if self.best.as_ref().is_none_or(|best| error < best.0) {
            self.best = Some((error, centroids));
        }
    }
}

fn check(features: &[f32], dimension: usize, options: &TrainOptions) -> Result<(), TrainError> {
    check_shape(options.sub_spaces, options.centroids, dimension)?;
    check_options(&[
        ("iterations", options.iterations),
        ("restarts", options.restarts),
        ("max_points_per_centroid", options.max_points_per_centroid),
    ])?;
    check_features(features, dimension, options.centroids)
}

fn check_options(positive: &[(&'static str, usize)]) -> Result<(), TrainError> {
    match positive.iter().find(|(_, value)| *value == 0) {
        Some((option, _)) => Err(TrainError::Zero { option }),
        None => Ok(()),
    }
}

fn check_features(features: &[f32], dimension: usize, centroids: usize) -> Result<(), TrainError> {
    if !features.len().is_multiple_of(dimension) {
        return Err(TrainError::Ragged { values: features.len(), dimension });
    }
    let count = features.len() / dimension;
    if count < centroids {
        return Err(TrainError::TooFewPoints { features: count, centroids });
    }
    match features.iter().position(|x| !x.is_finite()) {
        Some(place) => Err(TrainError::NotFinite { row: place / dimension }),
        None => Ok(()),
    }
}

/// At most `wanted` of the features, in their order; `None` where all are used.
fn sample(features: &[f32], dimension: usize, wanted: usize, seed: u64) -> Option<Vec<f32>> {
    let count = features.len() / dimension;
    if count <= wanted {
        return None;
    }
    let mut rows = seq::index::sample(&mut random(seed, 0), count, wanted).into_vec();
    rows.sort_unstable();
    Some(rows.into_iter().flat_map(|row| &features[row * dimension..][..dimension]).copied().collect())
}

/// Independent random numbers for each `stream` of a seed.
fn random(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}
