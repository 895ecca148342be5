//! ADC tables of one byte an entry: what fits in registers.

use alloc::vec;
use alloc::vec::Vec;

use super::{GROUP, Width};

/// The largest entry. Two entries still fit one byte together, which spares the kernels half of their widening: at M = 32
/// the rounding adds 0.013 of a sub-space's range to the noise, far below what the codes themselves lose.
const ENTRY_MAX: f32 = 127.0;

/// The largest sum over all sub-spaces before rounding: sums are 16 bits wide, and rounding adds half of M, at most 2048.
const SUM_MAX: f32 = 63_000.0;

/// Similarities of one query with all centroids, rounded to bytes: `similarity = offset + step * sum`.
///
/// Each sub-space starts at its own smallest similarity, and all share one step. An entry is off by half a step at most, and
/// a sum by `M / 2` steps ([`ScanTable::error_max`]).
#[derive(Debug, Clone)]
pub struct ScanTable {
    /// `[M, 16]`, M rounded up to whole groups, or `[M, 256]`.
    pub(super) entries: Vec<u8>,
    pub(super) width: Width,
    pub(super) sub_spaces: usize,
    offset: f32,
    step: f32,
}

impl ScanTable {
    /// From `similarities`, `[M, stride]`, of which the first K of each row count.
    pub(crate) fn new(similarities: &[f32], stride: usize, centroids: usize) -> Self {
        let width = Width::of(centroids);
        let sub_spaces = similarities.len() / stride;
        let rows = || similarities.chunks_exact(stride).map(|row| &row[..centroids]);
        let mut lows = Vec::with_capacity(sub_spaces);
        let (mut range_max, mut range_sum) = (0.0_f32, 0.0_f32);
        for row in rows() {
            let (low, high) = bounds(row);
            lows.push(low);
            range_max = range_max.max(high - low);
            range_sum += high - low;
        }
        let step = (range_max / ENTRY_MAX).max(range_sum / SUM_MAX);
        // A query that is as near to every centroid, or one with values that are no numbers: all codes are equal.
        let step = if step > 0.0 && step.is_finite() { step } else { 1.0 };
        let per_sub_space = width.table_bytes();
        let mut entries = vec![0; per_sub_space * width.padded(sub_spaces)];
        let inverse = 1.0 / step;
        for ((places, row), low) in entries.chunks_exact_mut(per_sub_space).zip(rows()).zip(&lows) {
            // A row with values that are no numbers adds nothing.
            if !row.iter().all(|similarity| similarity.is_finite()) {
                continue;
            }
            for (place, similarity) in places.iter_mut().zip(row) {
                *place = ((similarity - low) * inverse + 0.5).min(ENTRY_MAX) as u8;
            }
        }
        Self { entries, width, sub_spaces, offset: lows.iter().sum(), step }
    }

    /// The similarity that a sum of entries stands for.
    pub fn similarity(&self, sum: i32) -> f32 {
        self.offset + self.step * sum as f32
    }

    /// How far [`similarity`](Self::similarity) is from that of the unrounded table at most; half a step more with a
    /// [`bias`](Self::bias).
    pub fn error_max(&self) -> f32 {
        0.5 * self.step * self.sub_spaces as f32
    }

    /// A similarity that all codes of a list share, in steps: what a scan adds to the sums of that list.
    pub fn bias(&self, similarity: f32) -> i32 {
        // A cast of a float saturates; a quarter of the range leaves room for the sums.
        (libm::roundf(similarity / self.step) as i32).clamp(i32::MIN / 4, i32::MAX / 4)
    }

    /// The entry of centroid `k` in sub-space `m`.
    #[cfg(test)]
    pub(super) fn entry(&self, m: usize, k: usize) -> u8 {
        self.entries[m * self.width.table_bytes() + k]
    }
}

fn bounds(row: &[f32]) -> (f32, f32) {
    let bounds =
        row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
    if bounds.0.is_finite() && bounds.1.is_finite() { bounds } else { (0.0, 0.0) }
}

const _: () = assert!(GROUP == 8, "padded tables are whole groups");
const _: () = assert!(2.0 * ENTRY_MAX <= 255.0, "kernels add two entries in a byte");
