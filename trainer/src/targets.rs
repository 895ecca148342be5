//! Better targets for the query network, from the teacher's own embeddings and no labels.
//!
//! The teacher's embedding of a query view holds what surrounds the thing as much as the thing. Two steps, both on the
//! query's side alone, so that the gallery stays as it is:
//!
//! 1. *Neighbourhood consensus.* A photo's nearest neighbours among the training photos mostly show the same thing in other
//!    surroundings, so their mean keeps what they share. The same idea averages database vectors at search time
//!    (Arandjelovic and Zisserman, "Three things everyone should know", CVPR 2012, section 3); here it makes targets.
//! 2. *Query metric.* Differences between neighbours span what should not matter. With S the mean of
//!    (g_i - g_j)(g_i - g_j)^T over neighbours, a query q is better compared by q^T (S + shrinkage)^-1 g than by q^T g:
//!    Fisher's discriminant, with neighbours in place of labels. The inverse is applied to the target, so the query
//!    network learns it, and the server's inner product stays as it is.
//!
//! `docs/accuracy.md` has what each of them brings.

use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::features::Features;
use crate::linalg::{cross_products, inner_products};
use crate::progress::Progress;
use crate::projection::to_unit;

/// Rows whose neighbours are sought at once.
const BLOCK: usize = 256;

/// What is made of the teacher's embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// How many neighbours agree on a target, the photo itself among them; 0 or 1 keeps the teacher's embedding.
    pub consensus: usize,
    /// How many neighbours, the photo itself not among them, make the query metric; 0 for none.
    pub metric: usize,
    /// Added to the metric's S, as a fraction of its mean eigenvalue.
    pub shrinkage: f64,
    /// Neighbours are sought among so many training rows at most, evenly spread: the search takes rows x bank products.
    pub bank: usize,
}

impl TargetConfig {
    /// The teacher's embeddings as they are.
    pub const PLAIN: Self = Self { consensus: 0, metric: 0, shrinkage: 0.3, bank: 65_536 };
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self { consensus: 12, metric: 8, ..Self::PLAIN }
    }
}

/// Why there are no targets.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// Not enough rows.
    #[error("{rows} embeddings are too few for {neighbours} neighbours")]
    TooFew {
        /// How many there are.
        rows: usize,
        /// How many neighbours were asked for.
        neighbours: usize,
    },
    /// The metric cannot be inverted.
    #[error("neighbours do not differ enough for a query metric: use more photos or a larger shrinkage")]
    Singular,
}

/// Targets `[n, D]` from the teacher's unit embeddings of the same rows.
///
/// # Errors
/// [`TargetError`].
pub fn refine(teacher: &Features, config: &TargetConfig) -> Result<Features, TargetError> {
    let neighbours = config.consensus.max(if config.metric > 0 { config.metric + 1 } else { 0 });
    if neighbours < 2 {
        return Ok(teacher.clone());
    }
    let (rows, d) = (teacher.to_f32(), teacher.row_len());
    let stride = teacher.len().div_ceil(config.bank.max(1));
    let bank: Vec<f32> = rows.chunks_exact(d).step_by(stride).flatten().copied().collect();
    if bank.len() / d < neighbours {
        return Err(TargetError::TooFew { rows: bank.len() / d, neighbours });
    }
    let found = nearest(&rows, &bank, d, neighbours);
    let mut targets = if config.consensus > 1 {
        consensus(&rows, &bank, d, &found, config.consensus)
    } else {
        rows.clone()
    };
    if config.metric > 0 {
        let inverse = query_metric(&rows, &bank, d, &found, config)?;
        // Symmetric, so rows times columns are rows times rows.
        targets = inner_products(&targets, &inverse, d);
        targets.par_chunks_exact_mut(d).for_each(to_unit);
    }
    Ok(Features::from_f32(vec![d], teacher.items.clone(), targets))
}

/// A row of the bank, and its similarity.
type Neighbour = (u32, f32);

/// For each row its `count` nearest of the bank, nearest first.
fn nearest(rows: &[f32], bank: &[f32], d: usize, count: usize) -> Vec<Vec<Neighbour>> {
    let n = bank.len() / d;
    let progress = Progress::new("neighbours", (rows.len() / d) as u64);
    let mut found = Vec::with_capacity(rows.len() / d);
    for block in rows.chunks(BLOCK * d) {
        let similarities = inner_products(block, bank, d);
        found.par_extend(similarities.par_chunks_exact(n).map(|similarities| top(similarities, count)));
        progress.set(found.len() as u64);
    }
    progress.finish();
    found
}

/// The largest, largest first; of equals the one with the smaller number.
fn top(similarities: &[f32], count: usize) -> Vec<Neighbour> {
    let order = |a: &Neighbour, b: &Neighbour| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<Neighbour> = (0..).zip(similarities.iter().copied()).collect();
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}

/// The mean of each row's neighbours, weighted by similarity, as unit vectors.
fn consensus(rows: &[f32], bank: &[f32], d: usize, found: &[Vec<Neighbour>], count: usize) -> Vec<f32> {
    let mut targets = vec![0.0; rows.len()];
    targets.par_chunks_exact_mut(d).zip(found).for_each(|(target, neighbours)| {
        for &(neighbour, similarity) in neighbours.iter().take(count) {
            let start = neighbour as usize * d;
            let weight = similarity.max(0.0);
            target.iter_mut().zip(&bank[start..start + d]).for_each(|(sum, value)| *sum += weight * value);
        }
        to_unit(target);
    });
    targets
}

/// (S + shrinkage)^-1, row-major, divided by its largest entry: only its directions matter.
fn query_metric(
    rows: &[f32],
    bank: &[f32],
    d: usize,
    found: &[Vec<Neighbour>],
    config: &TargetConfig,
) -> Result<Vec<f32>, TargetError> {
    let mut scatter = DMatrix::<f64>::zeros(d, d);
    for (rows, found) in rows.chunks(BLOCK * d).zip(found.chunks(BLOCK)) {
        let differences: Vec<f64> = rows
            .chunks_exact(d)
            .zip(found)
            .flat_map(|(row, neighbours)| {
                // The first is the row itself, or all but it where the bank is a part of the rows.
                neighbours.iter().skip(1).take(config.metric).flat_map(move |(neighbour, _)| {
                    let start = *neighbour as usize * d;
                    row.iter().zip(&bank[start..start + d]).map(|(a, b)| f64::from(a - b))
                })
            })
            .collect();
        scatter += cross_products(&differences, d, &differences, d);
    }
    let mean = scatter.trace() / d as f64;
    let system = scatter + DMatrix::identity(d, d) * (config.shrinkage * mean);
    let inverse = Cholesky::new(system).ok_or(TargetError::Singular)?.inverse();
    let largest = inverse.amax();
    if !(largest.is_finite() && largest > 0.0) {
        return Err(TargetError::Singular);
    }
    // Column-major, and symmetric.
    Ok(inverse.iter().map(|x| (x / largest) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const D: usize = 6;
    const THINGS: usize = 20;
    const VIEWS: usize = 10;

    /// Things differ in the first three dimensions, and views of one thing in the others, by more.
    fn views() -> (Features, Vec<Vec<f32>>) {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let mut draw =
            |scale: f32| -> Vec<f32> { (0..3).map(|_| scale * random.random_range(-1.0_f32..1.0)).collect() };
        let things: Vec<Vec<f32>> = (0..THINGS).map(|_| draw(1.0)).collect();
        let mut rows = Vec::new();
        for thing in &things {
            for _ in 0..VIEWS {
                let mut row: Vec<f32> = thing.iter().copied().chain(draw(0.5)).collect();
                to_unit(&mut row);
                rows.extend(row);
            }
        }
        (Features::from_f32(vec![D], (0..(THINGS * VIEWS) as u32).collect(), rows), things)
    }

    /// Mean cosine with the thing alone.
    fn agreement(targets: &Features, things: &[Vec<f32>]) -> f32 {
        let rows = targets.to_f32();
        let cosines = rows.chunks_exact(D).enumerate().map(|(i, row)| {
            let thing = &things[i / VIEWS];
            let norm = thing.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter().zip(thing).map(|(a, b)| a * b).sum::<f32>() / norm
        });
        cosines.sum::<f32>() / targets.len() as f32
    }

    #[test]
    fn each_step_brings_targets_nearer_to_what_views_share() {
        let (teacher, things) = views();
        let refined = |config: TargetConfig| agreement(&refine(&teacher, &config).unwrap(), &things);
        let plain = refined(TargetConfig::PLAIN);
        let consensus = refined(TargetConfig { consensus: 8, ..TargetConfig::PLAIN });
        let metric = refined(TargetConfig { metric: 4, ..TargetConfig::PLAIN });
        let both = refined(TargetConfig { consensus: 8, metric: 4, ..TargetConfig::PLAIN });
        assert!(consensus > plain + 0.02 && metric > plain + 0.01, "{plain} {consensus} {metric}");
        assert!(both > consensus && both > metric, "{consensus} {metric} {both}");
    }

    #[test]
    fn targets_are_those_of_the_definition() {
        // Three unit vectors; the two nearest of the first are itself and the second.
        let rows = vec![1.0, 0.0, 0.8, 0.6, -1.0, 0.0];
        let teacher = Features::from_f32(vec![2], vec![3, 5, 9], rows);
        let config = TargetConfig { consensus: 2, ..TargetConfig::PLAIN };
        let targets = refine(&teacher, &config).unwrap();
        assert_eq!(targets.items, [3, 5, 9]);
        // 1 x (1, 0) + 0.8 x (0.8, 0.6) = (1.64, 0.48).
        let norm = (1.64_f32.powi(2) + 0.48_f32.powi(2)).sqrt();
        let found = targets.to_f32();
        assert!((found[0] - 1.64 / norm).abs() < 1e-6 && (found[1] - 0.48 / norm).abs() < 1e-6, "{found:?}");
        // The third's second neighbour points away: its weight is zero, not negative.
        assert_eq!(found[4..], [-1.0, 0.0]);
    }

    #[test]
    fn a_part_of_the_rows_can_be_the_bank() {
        let (teacher, things) = views();
        let config = TargetConfig { consensus: 4, metric: 3, bank: 100, ..TargetConfig::PLAIN };
        let targets = refine(&teacher, &config).unwrap();
        assert!(agreement(&targets, &things) > agreement(&teacher, &things));
    }

    #[test]
    fn too_few_rows_are_named() {
        let teacher = Features::from_f32(vec![1], vec![0, 1], vec![1.0, 1.0]);
        let config = TargetConfig { consensus: 3, ..TargetConfig::PLAIN };
        assert_eq!(refine(&teacher, &config).unwrap_err(), TargetError::TooFew { rows: 2, neighbours: 3 });
        let same = TargetConfig { metric: 1, ..TargetConfig::PLAIN };
        assert_eq!(refine(&teacher, &same).unwrap_err(), TargetError::Singular);
    }
}
