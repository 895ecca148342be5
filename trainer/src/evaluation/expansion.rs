//! Queries and galleries expanded by their neighbours, before they are ranked: what the gallery server offers as alpha query
//! expansion and as database-side augmentation, measured by the same protocols.

use glimpse_quantizer::Expansion;
use glimpse_quantizer::expansion::normalize;
use rayon::prelude::*;

/// Expands each of `vectors`, `[n, D]`, by its nearest among `gallery`, `[m, D]`: unit rows, as the results are. Where the
/// vectors are the gallery (`others`), each by its nearest others.
pub fn expanded(
    vectors: &[f32],
    gallery: &[f32],
    dimension: usize,
    expansion: Expansion,
    others: bool,
) -> Vec<f32> {
    let mut all = vectors.to_vec();
    all.par_chunks_exact_mut(dimension).enumerate().for_each(|(number, vector)| {
        let product = |row: &[f32]| row.iter().zip(&*vector).map(|(a, b)| a * b).sum::<f32>();
        let mut similarities: Vec<(usize, f32)> = gallery
            .chunks_exact(dimension)
            .map(product)
            .enumerate()
            .filter(|(row, _)| !others || *row != number)
            .collect();
        let nearer = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if expansion.neighbours < similarities.len() {
            similarities.select_nth_unstable_by(expansion.neighbours, nearer);
            similarities.truncate(expansion.neighbours);
        }
        // In one order, so that sums are the same wherever this runs.
        similarities.sort_unstable_by(nearer);
        for (row, similarity) in similarities {
            expansion.add(vector, &gallery[row * dimension..][..dimension], similarity);
        }
        normalize(vector);
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_moves_towards_its_nearest_and_no_others() {
        let gallery = [1.0, 0.0, 0.6, 0.8, 0.0, -1.0];
        let expansion = Expansion { neighbours: 1, alpha: 3.0 };
        let found = expanded(&[0.8, 0.6], &gallery, 2, expansion, false);
        // <q, (.6, .8)> = .96 and <q, (1, 0)> = .8: the first is added with weight .96^3.
        let weight = 0.96_f32.powi(3);
        let (x, y) = (0.8 + weight * 0.6, 0.6 + weight * 0.8);
        let length = x.hypot(y);
        assert!((found[0] - x / length).abs() < 1e-6 && (found[1] - y / length).abs() < 1e-6);
        // More neighbours than there are: all of them.
        assert_eq!(expanded(&[0.0, 1.0], &gallery, 2, Expansion::new(9), false).len(), 2);
        // Of the gallery itself: (1, 0) by (.6, .8), and not by itself.
        let augmented = expanded(&gallery, &gallery, 2, expansion, true);
        let weight = 0.6_f32.powi(3);
        assert!((augmented[1] / augmented[0] - weight * 0.8 / (1.0 + weight * 0.6)).abs() < 1e-6);
    }
}
