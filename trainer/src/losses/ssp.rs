//! Structure similarity preservation, with the quantizer's centroids as anchors.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use glimpse_quantizer::Codebook;
use serde::{Deserialize, Serialize};

use super::Loss;

/// Smallest norm that a sub-vector is divided by.
const NORM_FLOOR: f64 = 1e-6;

/// What cosines are divided by before the softmax; smaller looks at the nearest anchors only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Temperatures {
    /// Of the student, tau_q.
    pub student: f64,
    /// Of the teacher, tau_g.
    pub teacher: f64,
}

impl Temperatures {
    /// The published one, on both sides.
    pub const PUBLISHED: Self = Self { student: 0.1, teacher: 0.1 };
}

/// Structure similarity preservation (Wu et al., arXiv 2403.00648): in each sub-space, the softmax over the cosines
/// with all its anchors shall be the teacher's. The loss is the mean over images and sub-spaces of
/// KL(teacher || student).
pub struct Ssp {
    name: &'static str,
    /// Unit anchors, `[M, dsub, K]`.
    anchors: Tensor<3>,
    /// D x D, applied before the split where the quantizer has one.
    rotation: Option<Tensor<2>>,
    temperatures: Temperatures,
}

impl Ssp {
    /// Takes the centroids of a codebook. `device` is the one that training runs on.
    pub fn new(codebook: &Codebook, temperatures: Temperatures, device: &Device) -> Self {
        let (m, k, dsub) =
            (codebook.sub_spaces(), codebook.centroids_per_sub_space(), codebook.sub_dimension());
        let centroids =
            Tensor::<3>::from_data(TensorData::new(codebook.centroids().to_vec(), [m, k, dsub]), device);
        let rotation = codebook.rotation().map(|rotation| {
            let d = codebook.dimension();
            // The codebook rotates columns, y = R x; here embeddings are rows.
            Tensor::<2>::from_data(TensorData::new(rotation.to_vec(), [d, d]), device).transpose()
        });
        Self { name: "ssp", anchors: unit_parts(centroids).swap_dims(1, 2), rotation, temperatures }
    }

    /// One sub-space, the whole, with embeddings of other photos `[n, D]` as its anchors: what SSP with many sub-spaces
    /// does not see, the norms of sub-vectors among it, this sees.
    pub fn whole(bank: Vec<f32>, dimension: usize, temperatures: Temperatures, device: &Device) -> Self {
        let n = bank.len() / dimension;
        let bank = Tensor::<3>::from_data(TensorData::new(bank, [1, n, dimension]), device);
        Self { name: "bank", anchors: unit_parts(bank).swap_dims(1, 2), rotation: None, temperatures }
    }

    /// Cosines with all anchors: `[batch, D]` to `[M, batch, K]`.
    fn cosines(&self, embeddings: Tensor<2>) -> Tensor<3> {
        let embeddings = match &self.rotation {
            Some(rotation) => embeddings.matmul(rotation.clone()),
            None => embeddings,
        };
        let [batch, _] = embeddings.dims();
        let [m, dsub, _] = self.anchors.dims();
        let parts = unit_parts(embeddings.reshape([batch, m, dsub])).swap_dims(0, 1);
        parts.matmul(self.anchors.clone())
    }
}

impl Loss for Ssp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let [batch, _] = student.dims();
        let [m, _, _] = self.anchors.dims();
        let teacher = self.cosines(teacher).detach() / self.temperatures.teacher;
        let student = self.cosines(student) / self.temperatures.student;
        divergence(teacher, student) / (batch * m) as f64
    }
}

/// Sum over all but the last dimension of KL(softmax(teacher) || softmax(student)), from logits.
pub(super) fn divergence<const D: usize>(teacher: Tensor<D>, student: Tensor<D>) -> Tensor<1> {
    let difference = log_softmax(teacher.clone(), D - 1) - log_softmax(student, D - 1);
    (softmax(teacher, D - 1) * difference).sum()
}

/// Scales the last dimension of `[a, b, c]` to norm 1.
fn unit_parts(parts: Tensor<3>) -> Tensor<3> {
    let norm = (parts.clone() * parts.clone()).sum_dim(2).sqrt().clamp_min(NORM_FLOOR);
    parts / norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const M: usize = 3;
    const K: usize = 5;
    const DSUB: usize = 2;
    const D: usize = M * DSUB;
    const BATCH: usize = 4;
    const TAU: f64 = Temperatures::PUBLISHED.teacher;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    /// Anchors, student, teacher.
    fn problem() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        (random(M * K * DSUB, 1), random(BATCH * D, 2), random(BATCH * D, 3))
    }

    /// The definition, in loops and `f64`.
    fn naive(anchors: &[f32], student: &[f32], teacher: &[f32]) -> f64 {
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |x: &[f32], y: &[f32]| {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let assignment = |part: &[f32], m: usize| -> Vec<f64> {
            let weights: Vec<f64> = (0..K)
                .map(|k| {
                    let start = (m * K + k) * DSUB;
                    (cosine(part, &anchors[start..start + DSUB]) / TAU).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect()
        };
        let mut sum = 0.0;
        for (image, (student, teacher)) in student.chunks(DSUB).zip(teacher.chunks(DSUB)).enumerate() {
            let (p, q) = (assignment(teacher, image % M), assignment(student, image % M));
            sum += p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        }
        sum / (BATCH * M) as f64
    }

    fn loss(loss: &dyn Loss, student: &[f32], teacher: &[f32], device: &Device) -> f32 {
        let rows =
            |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [BATCH, D]), device);
        loss.loss(rows(student), rows(teacher)).into_scalar()
    }

    #[test]
    fn ssp_agrees_with_its_definition() {
        let (anchors, student, teacher) = problem();
        let device = Device::flex();
        let codebook = Codebook::new(M, K, D, anchors.clone(), None).unwrap();
        let ssp = Ssp::new(&codebook, Temperatures::PUBLISHED, &device);
        let value = loss(&ssp, &student, &teacher, &device);
        let expected = naive(&anchors, &student, &teacher);
        assert!((f64::from(value) - expected).abs() < 1e-5 * expected, "{value} is not {expected}");
    }

    #[test]
    fn a_rotation_of_the_codebook_is_applied_to_both_sides() {
        let (anchors, student, teacher) = problem();
        let device = Device::flex();
        // A permutation that swaps the first two components: y = R x.
        let mut rotation = vec![0.0; D * D];
        for (row, column) in [1, 0, 2, 3, 4, 5].into_iter().enumerate() {
            rotation[row * D + column] = 1.0;
        }
        let swap = |rows: &[f32]| -> Vec<f32> {
            rows.chunks(D).flat_map(|row| [row[1], row[0], row[2], row[3], row[4], row[5]]).collect()
        };
        let codebook = Codebook::new(M, K, D, anchors.clone(), Some(rotation)).unwrap();
        let value = loss(&Ssp::new(&codebook, Temperatures::PUBLISHED, &device), &student, &teacher, &device);
        let expected = naive(&anchors, &swap(&student), &swap(&teacher));
        assert!((f64::from(value) - expected).abs() < 1e-5 * expected, "{value} is not {expected}");
    }
}
