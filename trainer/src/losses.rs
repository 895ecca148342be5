//! What training minimises. Student and teacher are unit embeddings `[batch, D]` of the same views.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use glimpse_quantizer::Codebook;

/// Smallest norm that a sub-vector is divided by.
const NORM_FLOOR: f64 = 1e-6;

/// One way to compare student and teacher; smaller is better, zero is equal.
pub trait Loss {
    /// The name in metrics.
    fn name(&self) -> &'static str;

    /// `[batch, D]` twice, to one number. Only the student carries gradients.
    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1>;
}

/// Structure similarity preservation (Wu et al., arXiv 2403.00648): in each sub-space, the softmax over the cosines
/// with all its anchors (the quantizer's centroids) shall be the teacher's. The loss is the mean over images and
/// sub-spaces of KL(teacher || student).
pub struct Ssp {
    /// Unit centroids, `[M, dsub, K]`.
    anchors: Tensor<3>,
    /// D x D, applied before the split where the quantizer has one.
    rotation: Option<Tensor<2>>,
    temperature: f64,
}

impl Ssp {
    /// The published temperature, on both sides.
    pub const TEMPERATURE: f64 = 0.1;

    /// Takes the anchors of a codebook. `device` is the one that training runs on.
    pub fn new(codebook: &Codebook, temperature: f64, device: &Device) -> Self {
        let (m, k, dsub) =
            (codebook.sub_spaces(), codebook.centroids_per_sub_space(), codebook.sub_dimension());
        let centroids =
            Tensor::<3>::from_data(TensorData::new(codebook.centroids().to_vec(), [m, k, dsub]), device);
        let rotation = codebook.rotation().map(|rotation| {
            let d = codebook.dimension();
            // The codebook rotates columns, y = R x; here embeddings are rows.
            Tensor::<2>::from_data(TensorData::new(rotation.to_vec(), [d, d]), device).transpose()
        });
        Self { anchors: unit_parts(centroids).swap_dims(1, 2), rotation, temperature }
    }

    /// Cosines with all anchors over the temperature: `[batch, D]` to `[M, batch, K]`.
    fn logits(&self, embeddings: Tensor<2>) -> Tensor<3> {
        let embeddings = match &self.rotation {
            Some(rotation) => embeddings.matmul(rotation.clone()),
            None => embeddings,
        };
        let [batch, _] = embeddings.dims();
        let [m, dsub, _] = self.anchors.dims();
        let parts = unit_parts(embeddings.reshape([batch, m, dsub])).swap_dims(0, 1);
        parts.matmul(self.anchors.clone()) / self.temperature
    }
}

impl Loss for Ssp {
    fn name(&self) -> &'static str {
        "ssp"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let [batch, _] = student.dims();
        let [m, _, _] = self.anchors.dims();
        let teacher = self.logits(teacher).detach();
        let student = log_softmax(self.logits(student), 2);
        let difference = log_softmax(teacher.clone(), 2) - student;
        (softmax(teacher, 2) * difference).sum() / (batch * m) as f64
    }
}

/// The mean of (1 - cos)^2 over whole embeddings. SSP does not see the norms of sub-vectors, and the inner product of a
/// search does; this term does too.
pub struct GlobalCosine;

impl Loss for GlobalCosine {
    fn name(&self) -> &'static str {
        "global"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let distance = -(student * teacher).sum_dim(1) + 1.0;
        (distance.clone() * distance).mean()
    }
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
                    (cosine(part, &anchors[start..start + DSUB]) / Ssp::TEMPERATURE).exp()
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

    fn loss(loss: &dyn Loss, student: &[f32], teacher: &[f32], device: &Device) -> (f32, Vec<f32>) {
        let rows =
            |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [BATCH, D]), device);
        let student = rows(student).require_grad();
        let value = loss.loss(student.clone(), rows(teacher));
        let gradients = value.backward();
        let gradient = student.grad(&gradients).unwrap().try_into_vec_as::<f32>().unwrap();
        (value.into_scalar(), gradient)
    }

    #[test]
    fn ssp_agrees_with_its_definition_and_its_gradient_with_differences() {
        let (anchors, student, teacher) = problem();
        let device = Device::flex().autodiff();
        let codebook = Codebook::new(M, K, D, anchors.clone(), None).unwrap();
        let ssp = Ssp::new(&codebook, Ssp::TEMPERATURE, &device);
        let (value, gradient) = loss(&ssp, &student, &teacher, &device);
        let expected = naive(&anchors, &student, &teacher);
        assert!((f64::from(value) - expected).abs() < 1e-5 * expected, "{value} is not {expected}");

        for i in 0..BATCH * D {
            // A step of 1e-3 in f64: truncation and rounding both stay under 1e-4 of the gradients here.
            let at = |step: f32| {
                let mut moved = student.clone();
                moved[i] += step;
                naive(&anchors, &moved, &teacher)
            };
            let difference = (at(1e-3) - at(-1e-3)) / 2e-3;
            assert!(
                (f64::from(gradient[i]) - difference).abs() < 2e-3 * (1.0 + difference.abs()),
                "component {i}: {} is not {difference}",
                gradient[i]
            );
        }
    }

    #[test]
    fn a_rotation_of_the_codebook_is_applied_to_both_sides() {
        let (anchors, student, teacher) = problem();
        let device = Device::flex().autodiff();
        // A permutation that swaps the first two components: y = R x.
        let mut rotation = vec![0.0; D * D];
        for (row, column) in [1, 0, 2, 3, 4, 5].into_iter().enumerate() {
            rotation[row * D + column] = 1.0;
        }
        let swap = |rows: &[f32]| -> Vec<f32> {
            rows.chunks(D).flat_map(|row| [row[1], row[0], row[2], row[3], row[4], row[5]]).collect()
        };
        let codebook = Codebook::new(M, K, D, anchors.clone(), Some(rotation)).unwrap();
        let (value, _) = loss(&Ssp::new(&codebook, Ssp::TEMPERATURE, &device), &student, &teacher, &device);
        let expected = naive(&anchors, &swap(&student), &swap(&teacher));
        assert!((f64::from(value) - expected).abs() < 1e-5 * expected, "{value} is not {expected}");
    }

    #[test]
    fn equal_embeddings_cost_nothing() {
        let (anchors, student, _) = problem();
        let device = Device::flex().autodiff();
        let codebook = Codebook::new(M, K, D, anchors, None).unwrap();
        let unit: Vec<f32> = student
            .chunks(D)
            .flat_map(|row| {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter().map(move |x| x / norm)
            })
            .collect();
        let losses: [&dyn Loss; 2] = [&Ssp::new(&codebook, Ssp::TEMPERATURE, &device), &GlobalCosine];
        for each in losses {
            let (value, _) = loss(each, &unit, &unit, &device);
            assert!(value.abs() < 1e-6, "{}: {value}", each.name());
        }
    }
}
