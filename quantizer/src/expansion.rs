//! Expansion of a vector by its neighbours: of queries (alpha-QE, Radenovic et al. 2019, *Fine-tuning CNN Image Retrieval with
//! No Human Annotation*, section 3.4) and, with the same formula, of the gallery's own features (database-side augmentation,
//! Arandjelovic and Zisserman 2012).

/// How a vector is expanded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expansion {
    /// Neighbours that are added.
    pub neighbours: usize,
    /// Each counts by its similarity to this power; 0 is the plain mean.
    pub alpha: f32,
}

impl Expansion {
    /// alpha = 3, as the paper.
    pub const fn new(neighbours: usize) -> Self {
        Self { neighbours, alpha: 3.0 }
    }

    /// Adds a neighbour, `[D]`, by its `similarity` to the vector that is being expanded. One that is not similar at all adds
    /// nothing. Afterwards the sum is to be brought back to unit length ([`normalize`]).
    pub fn add(&self, sum: &mut [f32], neighbour: &[f32], similarity: f32) {
        if similarity > 0.0 {
            let weight = libm::powf(similarity, self.alpha);
            sum.iter_mut().zip(neighbour).for_each(|(sum, x)| *sum += weight * x);
        }
    }
}

/// Brings a vector to unit length; zero stays zero.
pub fn normalize(x: &mut [f32]) {
    let norm = libm::sqrt(x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>());
    if norm > 0.0 {
        x.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_count_by_their_similarity_to_the_power_of_alpha() {
        let mut sum = [1.0, 0.0];
        let expansion = Expansion::new(3);
        expansion.add(&mut sum, &[0.5, 1.0], 0.5);
        expansion.add(&mut sum, &[9.0, 9.0], -0.5);
        assert_eq!(sum, [1.0 + 0.125 * 0.5, 0.125]);
        Expansion { alpha: 0.0, ..expansion }.add(&mut sum, &[0.0, 1.0], 0.1);
        assert_eq!(sum[1], 1.125);
        normalize(&mut sum);
        assert!((sum[0].hypot(sum[1]) - 1.0).abs() < 1e-6);
        let mut zero = [0.0; 3];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 3]);
    }
}
