//! k-means over points in rows: in one sub-space, or of whole vectors.

use alloc::vec;
use alloc::vec::Vec;

use rand::seq::index;
use rand::{Rng, distr::Uniform};
use rayon::prelude::*;

use crate::Kernel;
use crate::assign::assign;
use crate::lanes::{Rows, Transposed};

/// k-means++ costs K passes over the points; on a sample of so many points it seeds as well, and only large training sets
/// are sampled at all.
const SEEDING_POINTS: usize = 16_384;

/// Of many centroids a sample of so many points each.
const SEEDING_POINTS_PER_CENTROID: usize = 16;

/// Points that one thread assigns at a time.
const CHUNK: usize = 4096;

/// Centroids on their way.
#[derive(Default)]
pub(super) struct Clusters {
    /// `[K, dimension]`, of length 1 where spherical.
    centroids: Vec<f32>,
    spherical: bool,
}

/// The nearest centroid of each point.
struct Assignment {
    nearest: Vec<u32>,
    /// Squared distance, or 1 - cosine where spherical.
    costs: Vec<f32>,
}

impl Assignment {
    fn error(&self) -> f64 {
        self.costs.iter().map(|cost| f64::from(*cost)).sum()
    }
}

impl Clusters {
    /// k-means++: each next centroid is a point drawn with a probability in proportion to its squared distance from the
    /// nearest centroid so far.
    pub(super) fn seed(points: &Rows<'_>, centroids: usize, spherical: bool, random: &mut impl Rng) -> Self {
        let dimension = points.dimension();
        let sample = points.len().min(SEEDING_POINTS.max(centroids * SEEDING_POINTS_PER_CENTROID));
        let mut candidates = Vec::with_capacity(sample * dimension);
        for i in index::sample(random, points.len(), sample) {
            candidates.extend_from_slice(points.get(i));
        }
        if spherical {
            candidates.chunks_exact_mut(dimension).for_each(normalize);
        }
        let kernel = Kernel::detect();
        let transposed = Transposed::new(&candidates, dimension);
        let mut from_seed = vec![0.0; transposed.lanes()];
        let mut distances = vec![f32::INFINITY; sample];
        let mut seeds = Vec::with_capacity(centroids * dimension);
        // The sample is in random order: its first point is a uniform choice.
        let mut chosen = 0;
        loop {
            let seed = &candidates[chosen * dimension..][..dimension];
            seeds.extend_from_slice(seed);
            if seeds.len() == centroids * dimension {
                return Self { centroids: seeds, spherical };
            }
            transposed.distances(kernel, seed, &mut from_seed);
            distances.iter_mut().zip(&from_seed).for_each(|(distance, new)| *distance = distance.min(*new));
            chosen = draw(&distances, random);
        }
    }

    /// One Lloyd iteration. Returns the error before the update, summed over the points.
    pub(super) fn iterate(&mut self, points: &Rows<'_>) -> f64 {
        let assignment = self.assign(points);
        let error = assignment.error();
        self.update(points, assignment);
        error
    }

    /// The nearest centroid of each point.
    pub(super) fn nearest(&self, points: &Rows<'_>) -> Vec<u32> {
        self.assign(points).nearest
    }

    /// All centroids, `[K, dimension]`.
    pub(super) fn into_centroids(self) -> Vec<f32> {
        self.centroids
    }

    /// A centroid.
    pub(super) fn centroid(&self, k: u32, dimension: usize) -> &[f32] {
        &self.centroids[k as usize * dimension..][..dimension]
    }

    /// The error of the centroids, summed over the points, and the centroids themselves.
    pub(super) fn finish(&self, points: &Rows<'_>) -> (f64, Vec<f32>) {
        let assignment = self.assign(points);
        let mut centroids = self.centroids.clone();
        if self.spherical {
            self.scale(&mut centroids, points, &assignment.nearest);
        }
        (assignment.error(), centroids)
    }

    /// The nearest centroid of each point: `||x - c||^2 = ||x||^2 + 2 (||c||^2 / 2 - <x, c>)`, where the bracket alone
    /// decides.
    fn assign(&self, points: &Rows<'_>) -> Assignment {
        let offsets: Vec<f32> = self
            .centroids
            .chunks_exact(points.dimension())
            .map(|centroid| if self.spherical { 0.0 } else { 0.5 * squared_norm(centroid) })
            .collect();
        let kernel = Kernel::detect();
        let mut found = vec![(0, 0.0); points.len()];
        let cost = |(point, value): (&[f32], f32)| {
            let norm_squared = squared_norm(point);
            match (self.spherical, norm_squared > 0.0) {
                (false, _) => (norm_squared + 2.0 * value).max(0.0),
                (true, true) => (1.0 + value / norm_squared.sqrt()).max(0.0),
                // A zero sub-vector has no direction and fits any cluster.
                (true, false) => 0.0,
            }
        };
        found.par_chunks_mut(CHUNK).enumerate().for_each(|(number, found)| {
            let points = points.part(number * CHUNK, number * CHUNK + found.len());
            assign(kernel, &self.centroids, &offsets, &points, found);
            found.iter_mut().zip(points.iter()).for_each(|(found, point)| found.1 = cost((point, found.1)));
        });
        let (nearest, costs) = found.into_iter().unzip();
        Assignment { nearest, costs }
    }

    /// Moves each centroid to the mean of its points (of their directions, where spherical).
    fn update(&mut self, points: &Rows<'_>, mut assignment: Assignment) {
        let dimension = points.dimension();
        let count = self.centroids.len() / dimension;
        let mut sizes = vec![0_usize; count];
        assignment.nearest.iter().for_each(|k| sizes[*k as usize] += 1);
        repair(&mut sizes, &mut assignment);

        // f64 sums: a cluster may have a million points.
        let mut sums = vec![0.0_f64; self.centroids.len()];
        for (point, k) in points.iter().zip(&assignment.nearest) {
            let weight = if self.spherical { inverse_norm(point) } else { 1.0 };
            let sum = &mut sums[*k as usize * dimension..][..dimension];
            sum.iter_mut().zip(point).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let centroids = self.centroids.chunks_exact_mut(dimension);
        for ((centroid, sum), size) in centroids.zip(sums.chunks_exact(dimension)).zip(sizes) {
            let length = if self.spherical { norm(sum) } else { size as f64 };
            // Nothing to move to: an empty cluster that could not be repaired, or directions that cancel out.
            if length > 0.0 {
                centroid.iter_mut().zip(sum).for_each(|(c, sum)| *c = (sum / length) as f32);
            }
        }
    }

    /// Gives each unit centroid the length that represents its points best: the mean of their products with it.
    fn scale(&self, centroids: &mut [f32], points: &Rows<'_>, nearest: &[u32]) {
        let dimension = points.dimension();
        let mut sums = vec![(0.0_f64, 0_usize); centroids.len() / dimension];
        for (point, k) in points.iter().zip(nearest) {
            let centroid = &self.centroids[*k as usize * dimension..][..dimension];
            let sum = &mut sums[*k as usize];
            sum.0 += point.iter().zip(centroid).map(|(x, c)| f64::from(*x) * f64::from(*c)).sum::<f64>();
            sum.1 += 1;
        }
        // An empty cluster gets the length of the others, since its direction still serves as an anchor.
        let total = sums.iter().fold((0.0, 0), |total, sum| (total.0 + sum.0, total.1 + sum.1));
        let mean = |sum: (f64, usize)| sum.0 / sum.1 as f64;
        for (centroid, sum) in centroids.chunks_exact_mut(dimension).zip(sums) {
            let length = if sum.1 > 0 && sum.0 > 0.0 { mean(sum) } else { mean(total) };
            if length > 0.0 {
                centroid.iter_mut().for_each(|c| *c *= length as f32);
            }
        }
    }
}

/// Gives each empty cluster the point that is worst represented now, from a cluster that keeps others.
fn repair(sizes: &mut [usize], assignment: &mut Assignment) {
    let empty: Vec<usize> = (0..sizes.len()).filter(|k| sizes[*k] == 0).collect();
    if empty.is_empty() {
        return;
    }
    let mut worst_first: Vec<usize> =
        (0..assignment.costs.len()).filter(|i| assignment.costs[*i] > 0.0).collect();
    worst_first.sort_by(|a, b| assignment.costs[*b].total_cmp(&assignment.costs[*a]));
    let mut worst_first = worst_first.into_iter();
    for k in empty {
        // Fewer different points than centroids: the cluster stays empty, its centroid where it is.
        let Some(point) = worst_first.find(|i| sizes[assignment.nearest[*i] as usize] > 1) else {
            return;
        };
        sizes[assignment.nearest[point] as usize] -= 1;
        assignment.nearest[point] = k as u32;
        sizes[k] = 1;
    }
}

/// An index with a probability in proportion to its weight; any one where all weights are zero.
fn draw(weights: &[f32], random: &mut impl Rng) -> usize {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let Ok(range) = Uniform::new(0.0, total) else {
        return random.random_range(0..weights.len());
    };
    let mut left = random.sample(range);
    let found = weights.iter().position(|weight| {
        left -= f64::from(*weight);
        left < 0.0
    });
    // Rounding may leave a crumb after the last weight.
    found.or_else(|| weights.iter().rposition(|weight| *weight > 0.0)).unwrap_or(0)
}

fn squared_norm(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// 1 / ||x||, or 0 for zero.
fn inverse_norm(x: &[f32]) -> f64 {
    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 { 1.0 / norm } else { 0.0 }
}

fn normalize(x: &mut [f32]) {
    let scale = inverse_norm(x);
    x.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
}
