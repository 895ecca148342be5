//! Linear maps found in closed form: PCA-whitening for the gallery network, ridge regression for the query network.
//!
//! Both are solved in `f64` from sums over the whole set, once; nothing here needs a gradient.

use nalgebra::{Cholesky, DMatrix, SymmetricEigen};
use thiserror::Error;

use crate::linalg::cross_products;

/// Why there is no projection.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProjectionError {
    /// Fewer rows than the result has dimensions.
    #[error("{rows} features are too few for {needed} dimensions: use more photos or fewer dimensions")]
    TooFew {
        /// How many there are.
        rows: usize,
        /// How many there have to be.
        needed: usize,
    },
    /// More dimensions are asked for than the features have.
    #[error("the features have {channels} dimensions, which cannot give {dimension}")]
    Dimension {
        /// What the features have.
        channels: usize,
        /// What was asked for.
        dimension: usize,
    },
    /// The system has no unique solution.
    #[error("the features do not determine the projection: use a larger ridge or shrinkage")]
    Singular,
}

/// y = x W + b.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// W, `[channels, D]` row-major.
    pub weight: Vec<f32>,
    /// b, `[D]`.
    pub bias: Vec<f32>,
}

impl Projection {
    /// Rows `[n, channels]` to `[n, D]`.
    pub fn apply(&self, rows: &[f32]) -> Vec<f32> {
        let dimension = self.bias.len();
        let channels = self.weight.len() / dimension;
        let n = rows.len() / channels;
        let mut out: Vec<f32> = self.bias.iter().copied().cycle().take(n * dimension).collect();
        // SAFETY: the three pointers cover n x channels, channels x dimension and n x dimension values, row-major.
        unsafe {
            matrixmultiply::sgemm(
                n,
                channels,
                dimension,
                1.0,
                rows.as_ptr(),
                channels as isize,
                1,
                self.weight.as_ptr(),
                dimension as isize,
                1,
                1.0,
                out.as_mut_ptr(),
                dimension as isize,
                1,
            );
        }
        out
    }
}

/// Divides a vector by its norm; zero stays zero.
pub fn to_unit(row: &mut [f32]) {
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    row.iter_mut().for_each(|x| *x /= norm);
}

/// How far the squared norm of a unit vector may be from 1: what 16-bit floats cost.
const UNIT_TOLERANCE: f32 = 2e-3;

/// Divides a vector by its norm where it is not 1 already, so that a unit vector keeps its very bits.
pub fn to_unit_unless_it_is(row: &mut [f32]) {
    if (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() > UNIT_TOLERANCE {
        to_unit(row);
    }
}

/// PCA-whitening to the `dimension` directions of largest variance: (x - mean) V diag(1 / sqrt(lambda + s)).
///
/// `shrinkage` sets s to that fraction of the mean of the kept eigenvalues: 0 whitens fully, large values tend
/// to PCA alone. Whitening gives the weakest kept directions, which are the noisiest, the same say as the strongest.
///
/// # Errors
/// [`ProjectionError`].
pub fn pca_whitening(
    features: &[f32],
    channels: usize,
    dimension: usize,
    shrinkage: f64,
) -> Result<Projection, ProjectionError> {
    let rows = features.len() / channels;
    if dimension > channels {
        return Err(ProjectionError::Dimension { channels, dimension });
    }
    if rows <= dimension {
        return Err(ProjectionError::TooFew { rows, needed: dimension });
    }
    let (centred, mean) = centre(features, channels);
    let covariance = cross_products(&centred, channels, &centred, channels) / rows as f64;
    let SymmetricEigen { eigenvalues, eigenvectors } = SymmetricEigen::new(covariance);
    let mut order: Vec<usize> = (0..channels).collect();
    order.sort_by(|&a, &b| eigenvalues[b].total_cmp(&eigenvalues[a]));
    order.truncate(dimension);

    let floor = shrinkage * order.iter().map(|&i| eigenvalues[i]).sum::<f64>() / dimension as f64;
    let mut weight = vec![0.0; channels * dimension];
    let mut bias = vec![0.0; dimension];
    for (column, &i) in order.iter().enumerate() {
        let variance = eigenvalues[i].max(0.0) + floor;
        if variance <= f64::EPSILON * eigenvalues[order[0]] {
            return Err(ProjectionError::Singular);
        }
        let direction = eigenvectors.column(i);
        // An eigenvector's sign is arbitrary: fix it, so that the same photos always make the same space.
        let largest = direction.iter().copied().fold(0.0_f64, |a, b| if b.abs() > a.abs() { b } else { a });
        let scale = largest.signum() / variance.sqrt();
        for (channel, component) in direction.iter().enumerate() {
            weight[channel * dimension + column] = (component * scale) as f32;
            bias[column] -= mean[channel] * component * scale;
        }
    }
    Ok(Projection { weight, bias: bias.into_iter().map(|b| b as f32).collect() })
}

/// Ridge regression from features to targets, with its sums made once and solved for any ridge.
pub struct Ridge {
    gram: DMatrix<f64>,
    cross: DMatrix<f64>,
    feature_mean: Vec<f64>,
    target_mean: Vec<f64>,
}

impl Ridge {
    /// Features `[n, channels]` and targets `[n, dimension]`, row-major.
    ///
    /// # Errors
    /// [`ProjectionError::TooFew`] for fewer than two rows.
    pub fn new(
        features: &[f32],
        channels: usize,
        targets: &[f32],
        dimension: usize,
    ) -> Result<Self, ProjectionError> {
        let rows = (features.len() / channels).min(targets.len() / dimension);
        if rows < 2 {
            return Err(ProjectionError::TooFew { rows, needed: 2 });
        }
        let (x, feature_mean) = centre(&features[..rows * channels], channels);
        let (t, target_mean) = centre(&targets[..rows * dimension], dimension);
        let gram = cross_products(&x, channels, &x, channels);
        let cross = cross_products(&x, channels, &t, dimension);
        Ok(Self { gram, cross, feature_mean, target_mean })
    }

    /// Minimises sum |x W + b - t|^2 + ridge |W|^2, where `ridge` is in units of the mean eigenvalue of the features'
    /// scatter matrix, so that the same number means the same for any count and scale of features.
    ///
    /// # Errors
    /// [`ProjectionError::Singular`].
    pub fn solve(&self, ridge: f64) -> Result<Projection, ProjectionError> {
        let channels = self.gram.nrows();
        let unit = self.gram.trace() / channels as f64;
        let system = &self.gram + DMatrix::identity(channels, channels) * (ridge * unit);
        let weight = Cholesky::new(system).ok_or(ProjectionError::Singular)?.solve(&self.cross);
        let offset = DMatrix::from_row_slice(1, channels, &self.feature_mean) * &weight;
        Ok(Projection {
            bias: self
                .target_mean
                .iter()
                .zip(offset.iter())
                .map(|(target, offset)| (target - offset) as f32)
                .collect(),
            // nalgebra is column-major: the transpose's columns are the rows.
            weight: weight.transpose().iter().map(|&w| w as f32).collect(),
        })
    }
}

/// Rows minus their mean, and the mean.
fn centre(rows: &[f32], columns: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (rows.len() / columns) as f64;
    let mut mean = vec![0.0; columns];
    for row in rows.chunks_exact(columns) {
        mean.iter_mut().zip(row).for_each(|(mean, &value)| *mean += f64::from(value));
    }
    mean.iter_mut().for_each(|mean| *mean /= n);
    let centred = rows.chunks_exact(columns);
    let centred =
        centred.flat_map(|row| row.iter().zip(&mean).map(|(&value, mean)| f64::from(value) - mean)).collect();
    (centred, mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    /// Correlated features around a mean that is not zero.
    fn features(rows: usize) -> Vec<f32> {
        let latent = random(rows * 6, 1);
        let mixing = Projection { weight: random(6 * 6, 2), bias: vec![0.5; 6] };
        mixing.apply(&latent)
    }

    #[test]
    fn whitened_features_have_identity_covariance() {
        let features = features(500);
        let whitened = pca_whitening(&features, 6, 4, 0.0).unwrap().apply(&features);
        let (centred, mean) = centre(&whitened, 4);
        assert!(mean.iter().all(|mean| mean.abs() < 1e-4), "{mean:?}");
        let covariance = cross_products(&centred, 4, &centred, 4) / 500.0;
        assert!((covariance - DMatrix::identity(4, 4)).abs().max() < 1e-4);
    }

    #[test]
    fn shrinkage_weakens_the_weak_directions_most() {
        let features = features(500);
        let scale = |shrinkage| {
            let weight = pca_whitening(&features, 6, 4, shrinkage).unwrap().weight;
            [0, 3].map(|column| (0..6).map(|row| weight[row * 4 + column].powi(2)).sum::<f32>().sqrt())
        };
        let (full, shrunk) = (scale(0.0), scale(1.0));
        assert!(shrunk[1] / shrunk[0] < full[1] / full[0]);
    }

    #[test]
    fn whitening_says_what_it_lacks() {
        assert_eq!(
            pca_whitening(&features(4), 6, 4, 0.0),
            Err(ProjectionError::TooFew { rows: 4, needed: 4 })
        );
        assert_eq!(
            pca_whitening(&features(40), 6, 7, 0.0),
            Err(ProjectionError::Dimension { channels: 6, dimension: 7 })
        );
        assert_eq!(pca_whitening(&[0.5; 600], 6, 4, 0.0), Err(ProjectionError::Singular));
    }

    #[test]
    fn ridge_satisfies_the_normal_equations() {
        let (x, t) = (features(50), random(50 * 3, 9));
        let ridge = 0.3;
        let system = Ridge::new(&x, 6, &t, 3).unwrap();
        let solution = system.solve(ridge).unwrap();
        // The gradient of the objective in W and in b is zero: X^T (X W + b - T) + ridge W = 0, and the residuals sum to 0.
        let residual: Vec<f64> =
            solution.apply(&x).iter().zip(&t).map(|(y, t)| f64::from(*y) - f64::from(*t)).collect();
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let unit = system.gram.trace() / 6.0;
        let weight = DMatrix::from_row_iterator(6, 3, solution.weight.iter().map(|&w| f64::from(w)));
        let gradient = cross_products(&x, 6, &residual, 3) + weight * (ridge * unit);
        assert!(gradient.abs().max() < 1e-4, "{gradient}");
        let sums = cross_products(&vec![1.0; 50], 1, &residual, 3);
        assert!(sums.abs().max() < 1e-4, "{sums}");
    }

    #[test]
    fn without_ridge_an_exact_map_is_found_again() {
        let x = features(50);
        let truth = Projection { weight: random(18, 4), bias: vec![0.1, 0.2, 0.3] };
        let found = Ridge::new(&x, 6, &truth.apply(&x), 3).unwrap().solve(0.0).unwrap();
        assert!(found.weight.iter().zip(&truth.weight).all(|(a, b)| (a - b).abs() < 1e-3), "{found:?}");
        assert_eq!(
            Ridge::new(&x[..6], 6, &[0.0; 3], 3).err(),
            Some(ProjectionError::TooFew { rows: 1, needed: 2 })
        );
    }
}
