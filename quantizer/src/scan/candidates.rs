//! The best of a scan so far: a reservoir that is cut down when it is full.

use alloc::vec::Vec;

/// Room beyond the wanted number: with more of it the reservoir is cut less often, each cut costing one pass over it.
const ROOM_MIN: usize = 64;

/// The candidates of one query during a scan: the `wanted` codes of the largest sums, and some that came before them.
///
/// Ties go to the smaller position, whatever order the codes are scanned in: a reservoir, and not a heap, because of the
/// thousands of codes that a query admits nearly all come at the start.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// Score and position in one number, so that larger is better: see [`key`].
    keys: Vec<u64>,
    wanted: usize,
    /// The score that a code needs at least.
    threshold: i32,
}

impl Candidates {
    /// An empty reservoir for the best `wanted` codes.
    pub fn new(wanted: usize) -> Self {
        let threshold = if wanted == 0 { i32::MAX } else { i32::MIN };
        Self { keys: Vec::new(), wanted, threshold }
    }

    /// The score that a code needs at least to be among the best.
    #[inline]
    pub(super) fn threshold(&self) -> i32 {
        self.threshold
    }

    /// Takes a code whose score is not below the threshold.
    #[inline]
    pub(super) fn push(&mut self, score: i32, position: u32) {
        if self.wanted == 0 {
            return;
        }
        let room = self.wanted.saturating_add(self.wanted.max(ROOM_MIN));
        if self.keys.capacity() == 0 {
            self.keys.reserve_exact(room.min(1 << 16));
        }
        self.keys.push(key(score, position));
        if self.keys.len() >= room {
            self.cut();
        }
    }

    /// Offers a similarity instead of a score: the same reservoir for exact search. One that is not a number is not taken.
    #[inline]
    pub fn offer(&mut self, similarity: f32, position: u32) {
        let score = ordered(similarity);
        if score >= self.threshold && !similarity.is_nan() {
            self.push(score, position);
        }
    }

    /// As [`into_sorted`](Self::into_sorted), where similarities were offered.
    pub fn into_similarities(self) -> impl ExactSizeIterator<Item = (f32, u32)> {
        self.into_sorted()
            .map(|(score, position)| (f32::from_bits(ordered_bits(score).cast_unsigned()), position))
    }

    /// Drops all but the best, and raises the threshold to the worst of those.
    fn cut(&mut self) {
        if self.keys.len() >= self.wanted && self.wanted > 0 {
            let (_, worst, _) = self.keys.select_nth_unstable_by(self.wanted - 1, |a, b| b.cmp(a));
            self.threshold = score_of(*worst);
            self.keys.truncate(self.wanted);
        }
    }

    /// Takes what another scan of the same query found.
    pub fn merge(&mut self, other: &Self) {
        for key in &other.keys {
            if score_of(*key) >= self.threshold {
                self.push(score_of(*key), position_of(*key));
            }
        }
    }

    /// Score and position of the best, best first; ties by position.
    pub fn into_sorted(mut self) -> impl ExactSizeIterator<Item = (i32, u32)> {
        self.cut();
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        self.keys.into_iter().map(|key| (score_of(key), position_of(key)))
    }

    /// The positions of the best, in no order.
    pub fn into_positions(mut self) -> impl ExactSizeIterator<Item = u32> {
        self.cut();
        self.keys.into_iter().map(position_of)
    }
}

/// A number that orders as the float does: those below zero with their other bits turned.
#[inline]
fn ordered(similarity: f32) -> i32 {
    ordered_bits(similarity.to_bits().cast_signed())
}

/// Its own inverse.
#[inline]
fn ordered_bits(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// The score in the upper half, turned so that it orders as an unsigned number; the position inverted in the lower one.
#[inline]
fn key(score: i32, position: u32) -> u64 {
    (u64::from(score.cast_unsigned() ^ (1 << 31)) << 32) | u64::from(!position)
}

#[inline]
fn score_of(key: u64) -> i32 {
    ((key >> 32) as u32 ^ (1 << 31)).cast_signed()
}

#[inline]
fn position_of(key: u64) -> u32 {
    !(key as u32)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_best_come_out_in_order_whatever_the_order_they_came_in(
            scores in prop::collection::vec(-40..40_i32, 0..600),
            wanted in 0..80_usize,
            split in 0..600_usize,
        ) {
            let mut all: Vec<(i32, u32)> = scores.iter().copied().zip(0..).collect();
            let fill = |part: &[(i32, u32)]| {
                let mut candidates = Candidates::new(wanted);
                // The last positions first, so that ties are decided by position and not by arrival.
                for (score, position) in part.iter().rev() {
                    if *score >= candidates.threshold() {
                        candidates.push(*score, *position);
                    }
                }
                candidates
            };
            let split = split.min(all.len());
            let mut merged = fill(&all[..split]);
            merged.merge(&fill(&all[split..]));
            let whole = fill(&all);
            all.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(wanted);
            prop_assert_eq!(merged.into_sorted().collect::<Vec<_>>(), all.clone());
            prop_assert_eq!(whole.into_sorted().collect::<Vec<_>>(), all);
        }

        #[test]
        fn similarities_order_as_numbers(similarities in prop::collection::vec(-1.0..1.0_f32, 0..300), wanted in 0..40_usize) {
            let mut candidates = Candidates::new(wanted);
            similarities.iter().zip(0..).for_each(|(similarity, position)| candidates.offer(*similarity, position));
            candidates.offer(f32::NAN, 1000);
            let mut all: Vec<(f32, u32)> = similarities.into_iter().zip(0..).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(wanted);
            prop_assert_eq!(candidates.into_similarities().collect::<Vec<_>>(), all);
        }
    }
}
