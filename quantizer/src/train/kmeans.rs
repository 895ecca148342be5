//! k-means in one sub-space.

use alloc::vec;
use alloc::vec::Vec;

use matrixmultiply::sgemm;
use rand::seq::index;
use rand::{Rng, distr::Uniform};

/// k-means++ costs K passes over the points; on a sample of this many points a centroid it seeds as well, and
/// only large training sets are sampled at all.
const SEEDING_POINTS_PER_CENTROID: usize = 64;

/// Points whose products with all centroids are computed at once: 256 x 256 floats stay in the L2 cache.
const BLOCK: usize = 256;

/// The sub-vectors of one sub-space, in place: rows of a larger matrix.
pub(super) struct Points<'a> {
    /// From the first component of the first point on.
    values: &'a [f32],
    count: usize,
    /// From one point to the next.
    stride: usize,
    dimension: usize,
}

impl<'a> Points<'a> {
    /// `count` points of `dimension` components; the first starts at `values[0]`, each other `stride` later.
    pub(super) fn new(values: &'a [f32], count: usize, stride: usize, dimension: usize) -> Self {
        assert!(count > 0 && dimension > 0 && dimension <= stride, "points lie in rows");
        assert!(values.len() >= (count - 1) * stride + dimension, "all points lie in the slice");
        Self { values, count, stride, dimension }
    }

    fn get(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.stride..][..self.dimension]
    }

    fn iter(&self) -> impl Iterator<Item = &'a [f32]> {
        (0..self.count).map(|i| self.get(i))
    }
}

/// Centroids on their way.
#[derive(Default)]
pub(super) struct Clusters {
    /// `[K, dimension]`, of length 1 where spherical.
    centroids: Vec<f32>,
    spherical: bool,
}

/// The nearest centroid of each point.
struct Assignment {
    nearest: Vec<u8>,
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
    pub(super) fn seed(
        points: &Points<'_>,
        centroids: usize,
        spherical: bool,
        random: &mut impl Rng,
    ) -> Self {
        let dimension = points.dimension;
        let sample = points.count.min(centroids * SEEDING_POINTS_PER_CENTROID);
        let mut candidates = Vec::with_capacity(sample * dimension);
        for i in index::sample(random, points.count, sample) {
            candidates.extend_from_slice(points.get(i));
        }
        if spherical {
            candidates.chunks_exact_mut(dimension).for_each(normalize);
        }
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
            for (distance, candidate) in distances.iter_mut().zip(candidates.chunks_exact(dimension)) {
                *distance = distance.min(squared_distance(seed, candidate));
            }
            chosen = draw(&distances, random);
        }
    }

    /// One Lloyd iteration. Returns the error before the update, summed over the points.
    pub(super) fn iterate(&mut self, points: &Points<'_>) -> f64 {
        let assignment = self.assign(points);
        let error = assignment.error();
        self.update(points, assignment);
        error
    }

    /// The error of the centroids, summed over the points, and the centroids themselves.
    pub(super) fn finish(&self, points: &Points<'_>) -> (f64, Vec<f32>) {
        let assignment = self.assign(points);
        let mut centroids = self.centroids.clone();
        if self.spherical {
            self.scale(&mut centroids, points, &assignment.nearest);
        }
        (assignment.error(), centroids)
    }

    /// The nearest centroid of each point by blocked matrix products:
    /// `||x - c||^2 = ||x||^2 + 2 (||c||^2 / 2 - <x, c>)`, where the bracket alone decides.
    fn assign(&self, points: &Points<'_>) -> Assignment {
        let dimension = points.dimension;
        let count = self.centroids.len() / dimension;
        let offsets: Vec<f32> = self
            .centroids
            .chunks_exact(dimension)
            .map(|centroid| if self.spherical { 0.0 } else { 0.5 * squared_norm(centroid) })
            .collect();
        let mut products = vec![0.0_f32; BLOCK * count];
        let mut assignment =
            Assignment { nearest: Vec::with_capacity(points.count), costs: Vec::with_capacity(points.count) };
        for start in (0..points.count).step_by(BLOCK) {
            let rows = BLOCK.min(points.count - start);
            let block = &points.values[start * points.stride..];
            debug_assert!(block.len() >= (rows - 1) * points.stride + dimension, "`Points::new` checks this");
            // SAFETY: A is `rows` points of `dimension` floats, `stride` apart, all inside `block` (checked in
            // `Points::new`); B is the transposed `[count, dimension]` centroids; C is `rows` full rows of
            // `products`, which holds BLOCK of them and is borrowed by nothing else.
            unsafe {
                sgemm(
                    rows,
                    dimension,
                    count,
                    1.0,
                    block.as_ptr(),
                    points.stride as isize,
                    1,
                    self.centroids.as_ptr(),
                    1,
                    dimension as isize,
                    0.0,
                    products.as_mut_ptr(),
                    count as isize,
                    1,
                );
            }
            for (i, products) in products.chunks_exact(count).take(rows).enumerate() {
                let (k, value) = first_minimum(&offsets, products);
                let norm_squared = squared_norm(points.get(start + i));
                assignment.nearest.push(k);
                assignment.costs.push(match (self.spherical, norm_squared > 0.0) {
                    (false, _) => (norm_squared + 2.0 * value).max(0.0),
                    (true, true) => (1.0 + value / norm_squared.sqrt()).max(0.0),
                    // A zero sub-vector has no direction and fits any cluster.
                    (true, false) => 0.0,
                });
            }
        }
        assignment
    }

    /// Moves each centroid to the mean of its points (of their directions, where spherical).
    fn update(&mut self, points: &Points<'_>, mut assignment: Assignment) {
        let dimension = points.dimension;
        let count = self.centroids.len() / dimension;
        let mut sizes = vec![0_usize; count];
        assignment.nearest.iter().for_each(|k| sizes[usize::from(*k)] += 1);
        repair(&mut sizes, &mut assignment);

        // f64 sums: a cluster may have a million points.
        let mut sums = vec![0.0_f64; self.centroids.len()];
        for (point, k) in points.iter().zip(&assignment.nearest) {
            let weight = if self.spherical { inverse_norm(point) } else { 1.0 };
            let sum = &mut sums[usize::from(*k) * dimension..][..dimension];
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
    fn scale(&self, centroids: &mut [f32], points: &Points<'_>, nearest: &[u8]) {
        let dimension = points.dimension;
        let mut sums = vec![(0.0_f64, 0_usize); centroids.len() / dimension];
        for (point, k) in points.iter().zip(nearest) {
            let centroid = &self.centroids[usize::from(*k) * dimension..][..dimension];
            let sum = &mut sums[usize::from(*k)];
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
        let Some(point) = worst_first.find(|i| sizes[usize::from(assignment.nearest[*i])] > 1) else {
            return;
        };
        sizes[usize::from(assignment.nearest[point])] -= 1;
        assignment.nearest[point] = k as u8;
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

/// The first index at which `offset - product` is smallest, and that value.
fn first_minimum(offsets: &[f32], products: &[f32]) -> (u8, f32) {
    let mut best = (0, f32::INFINITY);
    for (k, (offset, product)) in offsets.iter().zip(products).enumerate() {
        let value = offset - product;
        if value < best.1 {
            best = (k as u8, value);
        }
    }
    best
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
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
