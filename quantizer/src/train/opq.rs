//! Optimized product quantization: the rotation before the sub-spaces are cut (Ge et al. 2013, *Optimized Product
//! Quantization for Approximate Nearest Neighbor Search*).
//!
//! The start is the parametric solution (section 3.3): principal axes, dealt out so that the products of the variances of
//! the sub-spaces are as equal as can be. Then, in turns (section 3.2), the centroids for the rotation, by one Lloyd
//! iteration, and the rotation for the codes: of all rotations R, `sum ||R x - y||^2`, where y is what the code of x stands
//! for, is smallest for `R = U Vt` with `U S Vt` the singular value decomposition of `sum y xt`.

use alloc::vec;
use alloc::vec::Vec;

use matrixmultiply::sgemm;
use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

use super::kmeans::Clusters;
use super::{TrainError, TrainOptions};
use crate::lanes::Rows;

/// Steps of a singular value decomposition: a few for each value are usual.
const SVD_STEPS_MAX: usize = 1 << 20;

/// Rows that one thread multiplies at a time.
const CHUNK: usize = 1024;

/// A rotation `[D, D]`, row-major, for `features`, `[n, D]`, and after each round the mean squared error of the codes.
pub(super) fn rotation(
    features: &[f32],
    dimension: usize,
    options: &TrainOptions,
    progress: &mut dyn FnMut(f64) -> Result<(), TrainError>,
) -> Result<Vec<f32>, TrainError> {
    let sub_dimension = dimension / options.sub_spaces;
    let count = features.len() / dimension;
    let mut rotation = principal_axes(features, dimension, options.sub_spaces);
    let mut rotated = rotate(features, dimension, &rotation);
    let mut clusters: Vec<Clusters> = (0..options.sub_spaces)
        .into_par_iter()
        .map(|m| {
            let points = Rows::new(&rotated[m * sub_dimension..], count, sub_dimension, dimension);
            // Streams of the rotation come after all of the codebook's.
            let mut random = super::random(options.seed, u64::MAX - m as u64);
            // Of L2 in any case: the rotation serves the error of the codes.
            Clusters::seed(&points, options.centroids, false, &mut random)
        })
        .collect();
    for _ in 0..options.rotation_rounds {
        let errors: Vec<f64> = clusters
            .par_iter_mut()
            .enumerate()
            .map(|(m, clusters)| {
                clusters.iterate(&Rows::new(&rotated[m * sub_dimension..], count, sub_dimension, dimension))
            })
            .collect();
        decode_in_place(&mut rotated, dimension, &clusters);
        rotation = nearest_rotation(&cross(&rotated, features, dimension), dimension).unwrap_or(rotation);
        rotated = rotate(features, dimension, &rotation);
        progress(errors.iter().sum::<f64>() / count as f64)?;
    }
    Ok(rotation)
}

/// Principal axes of the features, in the order that gives each sub-space its share of the variance: the axes, from the
/// largest variance on, go each to the sub-space whose product of variances is smallest and that has room.
fn principal_axes(features: &[f32], dimension: usize, sub_spaces: usize) -> Vec<f32> {
    let count = features.len() / dimension;
    let mut mean = vec![0.0_f64; dimension];
    for row in features.chunks_exact(dimension) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x) / count as f64);
    }
    let centred: Vec<f32> = features
        .par_chunks_exact(dimension)
        .flat_map_iter(|row| row.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - mean) as f32))
        .collect();
    let covariance = DMatrix::from_vec(dimension, dimension, cross(&centred, &centred, dimension));
    let eigen = SymmetricEigen::new(covariance);
    let mut order: Vec<usize> = (0..dimension).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    // Relative to the smallest that counts, so that each axis adds to the logarithm of its sub-space's product.
    let variance = |axis: usize| f64::from(eigen.eigenvalues[axis]);
    let floor = variance(order[dimension - 1]).max(1e-6 * variance(order[0])).max(f64::MIN_POSITIVE);
    let mut shares = vec![(0.0_f64, Vec::new()); sub_spaces];
    for axis in order {
        let open = shares.iter_mut().filter(|share| share.1.len() < dimension / sub_spaces);
        let share = open.min_by(|a, b| a.0.total_cmp(&b.0)).expect("as many places as axes");
        share.0 += (variance(axis) / floor).max(1.0).ln();
        share.1.push(axis);
    }
    let axes = shares.into_iter().flat_map(|share| share.1);
    axes.flat_map(|axis| eigen.eigenvectors.column(axis).iter().copied().collect::<Vec<f32>>()).collect()
}

/// `R x` of each feature.
pub(super) fn rotate(features: &[f32], dimension: usize, rotation: &[f32]) -> Vec<f32> {
    let mut rotated = vec![0.0; features.len()];
    let chunks = rotated.par_chunks_mut(CHUNK * dimension).zip(features.par_chunks(CHUNK * dimension));
    chunks.for_each(|(rotated, features)| {
        let rows = features.len() / dimension;
        // SAFETY: all three are row-major matrices of `dimension` columns: `rows` rows of features and of results,
        // `dimension` rows of the rotation, which is read transposed. The results are borrowed by nothing else.
        unsafe {
            let d = dimension as isize;
            let (a, b, c) = (features.as_ptr(), rotation.as_ptr(), rotated.as_mut_ptr());
            sgemm(rows, dimension, dimension, 1.0, a, d, 1, b, 1, d, 0.0, c, d, 1);
        }
    });
    rotated
}

/// `sum a bt` over the rows of `a` and `b`, both `[n, D]`: `[D, D]`, row-major.
fn cross(a: &[f32], b: &[f32], dimension: usize) -> Vec<f32> {
    const COLUMNS: usize = 16;
    let rows = a.len() / dimension;
    assert!(a.len() == b.len() && rows > 0, "pairs of rows");
    let mut sums = vec![0.0; dimension * dimension];
    sums.par_chunks_mut(COLUMNS * dimension).enumerate().for_each(|(number, sums)| {
        let columns = sums.len() / dimension;
        let a = &a[number * COLUMNS..];
        // SAFETY: A is `columns` columns of `a`, read transposed, whose last element lies at `(rows - 1) * dimension + columns - 1`
        // of the slice; B is all of `b`; C is `columns` whole rows, borrowed by nothing else.
        unsafe {
            let d = dimension as isize;
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
            sgemm(columns, rows, dimension, 1.0, a, 1, d, b, d, 1, 0.0, c, d, 1);
        }
    });
    sums
}

/// Puts in the place of each sub-vector the centroid that stands for it.
fn decode_in_place(rotated: &mut [f32], dimension: usize, clusters: &[Clusters]) {
    let count = rotated.len() / dimension;
    let sub_dimension = dimension / clusters.len();
    let nearest: Vec<Vec<u32>> = clusters
        .par_iter()
        .enumerate()
        .map(|(m, clusters)| {
            clusters.nearest(&Rows::new(&rotated[m * sub_dimension..], count, sub_dimension, dimension))
        })
        .collect();
    rotated.par_chunks_exact_mut(dimension).enumerate().for_each(|(i, row)| {
        for ((part, clusters), nearest) in row.chunks_exact_mut(sub_dimension).zip(clusters).zip(&nearest) {
            part.copy_from_slice(clusters.centroid(nearest[i], sub_dimension));
        }
    });
}

/// The rotation nearest to a matrix `[D, D]`, row-major; `None` where the decomposition does not converge.
fn nearest_rotation(matrix: &[f32], dimension: usize) -> Option<Vec<f32>> {
    let svd = DMatrix::from_row_slice(dimension, dimension, matrix).try_svd(
        true,
        true,
        f32::EPSILON,
        SVD_STEPS_MAX,
    )?;
    let product = svd.u? * svd.v_t?;
    // nalgebra is column-major.
    Some(product.transpose().as_slice().to_vec())
}
