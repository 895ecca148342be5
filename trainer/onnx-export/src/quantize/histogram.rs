//! What values a tensor takes, in bounded memory, and the range that suits them best.

use super::{Affine, Range};

/// Bins on each side of zero.
const BINS: usize = 2048;
/// How far an end of the range moves inwards at each try, as a fraction of the observed extreme.
const TRIES: usize = 64;

/// Counts of a tensor's values. The bins double in width when a value does not fit, and their widths are powers of
/// two, so that the order of observations and of merges does not matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Values from `-limit` to `limit` fit.
    limit: f32,
    /// Counts by magnitude, negative and positive values apart. Zeros are in neither: they
    /// are exact in every range.
    below: Vec<u64>,
    above: Vec<u64>,
    min: f32,
    max: f32,
    finite: bool,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            limit: f32::MIN_POSITIVE,
            below: vec![0; BINS],
            above: vec![0; BINS],
            min: 0.0,
            max: 0.0,
            finite: true,
        }
    }
}

impl Histogram {
    /// Counts some values.
    pub fn observe(&mut self, values: &[f32]) {
        let (mut min, mut max) = (self.min, self.max);
        for value in values {
            self.finite &= value.is_finite();
            min = min.min(*value);
            max = max.max(*value);
        }
        if !self.finite {
            return;
        }
        (self.min, self.max) = (min, max);
        self.grow(max.max(-min));
        let bins = BINS as f32 / self.limit;
        for value in values {
            let magnitude = value.abs();
            if magnitude == 0.0 {
                continue;
            }
            let side = if *value < 0.0 { &mut self.below } else { &mut self.above };
            side[((magnitude * bins) as usize).min(BINS - 1)] += 1;
        }
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        self.grow(other.limit);
        other.grow(self.limit);
        for (ours, theirs) in [(&mut self.below, &other.below), (&mut self.above, &other.above)] {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        }
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.finite &= other.finite;
    }

    /// Doubles the bins until `magnitude` fits.
    fn grow(&mut self, magnitude: f32) {
        while magnitude > self.limit && self.limit < f32::MAX / 2.0 {
            self.limit *= 2.0;
            for side in [&mut self.below, &mut self.above] {
                for bin in 0..BINS / 2 {
                    side[bin] = side[2 * bin] + side[2 * bin + 1];
                }
                side[BINS / 2..].fill(0);
            }
        }
    }

    /// From the least to the greatest value, zero among them; `None` where one was not finite.
    pub fn extremes(&self) -> Option<Range> {
        Range::new(self.min, self.max).filter(|_| self.finite)
    }

    /// The range whose uint8 form has the least mean squared error on these values: cutting off a few far ones makes the
    /// steps finer for all others. `None` where a value was not finite.
    pub fn range(&self) -> Option<Range> {
        let Range { min, max } = self.extremes()?;
        let part = |whole: f32, cut: usize| whole * (1.0 - cut as f32 / TRIES as f32);
        let mut best = (self.squared_error(Range { min, max }), Range { min, max });
        for low in 0..TRIES {
            for high in 0..TRIES {
                let range = Range { min: part(min, low), max: part(max, high) };
                let error = self.squared_error(range);
                if error < best.0 {
                    best = (error, range);
                }
                if max <= 0.0 {
                    break;
                }
            }
            if min >= 0.0 {
                break;
            }
        }
        Some(best.1)
    }

    /// Sum of the squared errors that quantization to this range makes: one twelfth of the squared step for values
    /// inside, as for evenly spread ones, and the squared distance from the end for values outside. Zero has none.
    fn squared_error(&self, range: Range) -> f64 {
        let step = f64::from(Affine::covering(range).scale());
        let width = f64::from(self.limit) / BINS as f64;
        let side = |counts: &[u64], end: f64| -> f64 {
            let occupied = counts.iter().enumerate().filter(|(_, count)| **count > 0);
            let error = |(bin, count): (usize, &u64)| {
                let magnitude = (bin as f64 + 0.5) * width;
                let beyond = (magnitude - end).max(0.0);
                *count as f64 * if beyond > 0.0 { beyond * beyond } else { step * step / 12.0 }
            };
            occupied.map(error).sum()
        };
        side(&self.below, f64::from(-range.min)) + side(&self.above, f64::from(range.max))
    }
}
