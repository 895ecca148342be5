//! Durations in fixed memory: buckets that grow with what they hold, eight to each doubling, so that a percentile is at
//! most an eighth too large from a microsecond to two minutes.

use std::time::Duration;

/// Buckets to each doubling, as a power of two.
const SUB_BITS: u32 = 3;

/// Longest duration told apart: 2^27 us, some two minutes. What is longer counts as that.
const OCTAVES: u32 = 27;

const BUCKETS: usize = ((OCTAVES - SUB_BITS + 1) << SUB_BITS) as usize;

/// How many durations were how long.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0, sum_us: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min((1 << OCTAVES) - 1);
        self.counts[bucket(us)] += 1;
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Counts all of another's.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.counts.iter_mut().zip(&other.counts) {
            *own += other;
        }
        self.count += other.count;
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// Durations counted.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub const fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// The duration in microseconds that a `share` of all does not exceed, as the upper end of its bucket; `None` without any.
    pub fn percentile_us(&self, share: f64) -> Option<u64> {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        let place = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(end_us(place))
    }

    /// How many lasted less than 2^`octave` us.
    pub fn below_octave(&self, octave: u32) -> u64 {
        self.counts[..bucket(1 << octave.min(OCTAVES - 1))].iter().sum()
    }
}

/// The bucket of a duration below 2^[`OCTAVES`] us.
const fn bucket(us: u64) -> usize {
    if us < 1 << SUB_BITS {
        return us as usize;
    }
    let octave = us.ilog2();
    let within = (us >> (octave - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (((octave - SUB_BITS + 1) << SUB_BITS) as u64 + within) as usize
}

/// The longest duration of a bucket.
const fn end_us(bucket: usize) -> u64 {
    let (octave, within) = (bucket as u64 >> SUB_BITS, bucket as u64 & ((1 << SUB_BITS) - 1));
    if octave == 0 {
        return within;
    }
    (((1 << SUB_BITS) + within + 1) << (octave - 1)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let mut start = 0;
        for place in 0..BUCKETS {
            assert_eq!((bucket(start), bucket(end_us(place))), (place, place), "from {start} us");
            start = end_us(place) + 1;
        }
        assert_eq!(start, 1 << OCTAVES);
    }

    #[test]
    fn a_percentile_is_at_most_an_eighth_too_large() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile_us(0.5), None);
        (1..=10_000).for_each(|us| histogram.add(Duration::from_micros(us)));
        for (share, exact) in [(0.5, 5000), (0.9, 9000), (0.99, 9900), (1.0, 10_000)] {
            let found = histogram.percentile_us(share).unwrap();
            assert!((exact..=exact + exact / 8).contains(&found), "{share}: {found}");
        }
        assert_eq!(
            (histogram.count(), histogram.below_octave(10), histogram.below_octave(40)),
            (10_000, 1023, 10_000)
        );
    }

    #[test]
    fn what_is_longer_than_can_be_told_is_counted_all_the_same() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::MAX);
        histogram.merge(&histogram.clone());
        assert_eq!((histogram.count(), histogram.percentile_us(0.5)), (2, Some((1 << OCTAVES) - 1)));
    }
}
