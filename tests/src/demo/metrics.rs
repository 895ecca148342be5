//! Accuracy from ranks, and percentiles.

use super::TOP_K;

/// How well the right photos were found. Every query has exactly one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// Share of queries whose right photo is the first match.
    pub recall_at_1: f64,
    /// Share of queries whose right photo is among the first ten matches.
    pub recall_at_10: f64,
    /// Mean average precision, which for one right photo is the mean reciprocal rank. A photo beyond rank
    /// [`TOP_K`] counts as 0; its true share would be less than 1 / 100.
    pub map: f64,
}

impl Accuracy {
    /// From the rank (from 1) of each query's right photo.
    pub fn of(ranks: &[Option<usize>]) -> Self {
        let mean = |score: &dyn Fn(usize) -> f64| {
            let found = ranks.iter().flatten().filter(|rank| **rank <= TOP_K);
            found.map(|rank| score(*rank)).sum::<f64>() / ranks.len().max(1) as f64
        };
        Self {
            recall_at_1: mean(&|rank| f64::from(u8::from(rank <= 1))),
            recall_at_10: mean(&|rank| f64::from(u8::from(rank <= 10))),
            map: mean(&|rank| 1.0 / rank as f64),
        }
    }
}

/// The smallest value that `percent` % of the values do not exceed; `None` where there is no value.
pub fn percentile(values: impl Iterator<Item = f64>, percent: usize) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let place = (values.len() * percent).div_ceil(100).max(1);
    values.get(place - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_of_known_ranks() {
        let accuracy =
            Accuracy::of(&[Some(1), Some(2), Some(10), Some(11), None, Some(1), Some(101), Some(4)]);
        let map = (1.0 + 0.5 + 0.1 + 1.0 / 11.0 + 1.0 + 0.25) / 8.0;
        assert_eq!((accuracy.recall_at_1, accuracy.recall_at_10), (2.0 / 8.0, 5.0 / 8.0));
        assert!((accuracy.map - map).abs() < 1e-12);
        assert_eq!(Accuracy::of(&[]).map, 0.0);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = || (1..=100).rev().map(f64::from);
        assert_eq!(
            [1, 50, 99, 100].map(|percent| percentile(values(), percent)),
            [1.0, 50.0, 99.0, 100.0].map(Some)
        );
        assert_eq!(percentile([7.0].into_iter(), 50), Some(7.0));
        assert_eq!(percentile([].into_iter(), 50), None);
    }
}
