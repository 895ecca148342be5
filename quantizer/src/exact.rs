//! Features as they are ranked exactly: rows of f32, f16 or i8 in bytes, compared with uncoded queries.
//!
//! | precision | bytes a row | similarity off by at most, for unit vectors |
//! |---|---|---|
//! | `F32` | 4 D | 0 |
//! | `F16` | 2 D | 2^-11 + sqrt(D) 2^-25 |
//! | `I8` | D + 4 | sqrt(D) / 254 of the largest component of the row |
//!
//! The row of `I8` is a scale, the largest component divided by 127, and D whole numbers of it. Sums are made in 16 lanes and
//! without fused multiplication, so that a similarity has the same bits on every processor.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use alloc::vec::Vec;

use half::f16;

use crate::Kernel;
use crate::codebook::DimensionError;
use crate::lanes::{LANES, dispatch, for_each_kernel};

/// How a feature is kept for exact ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As it is.
    F32,
    /// Half precision: 11 significant bits.
    F16,
    /// A byte a component, and a scale a row.
    I8,
}

impl Precision {
    /// Bytes of a row.
    pub const fn row_bytes(self, dimension: usize) -> usize {
        match self {
            Self::F32 => 4 * dimension,
            Self::F16 => 2 * dimension,
            Self::I8 => dimension + 4,
        }
    }

    /// Its name in configurations and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
        }
    }

    /// The precision of a [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::I8].into_iter().find(|precision| precision.name() == name)
    }

    /// How far the similarity of a unit query with a unit row may be from that of the row as it was.
    ///
    /// Of `F16`: each component is rounded by 2^-11 of itself at most, or by 2^-25 where it is tiny; of `I8`: by half a
    /// scale, and the sum of the components of a unit query is `sqrt(D)` at most (Cauchy and Schwarz, for each).
    pub fn error_max(self, dimension: usize) -> f32 {
        let root = libm::sqrtf(dimension as f32);
        match self {
            Self::F32 => 0.0,
            Self::F16 => 1.0 / 2048.0 + root / (1 << 25) as f32,
            Self::I8 => root / 254.0,
        }
    }

    /// Writes a row, `[D]`, to the end of `out`. Components should be finite, and of `F16` below 65504.
    pub fn write(self, row: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(row.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => out.extend(row.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
            Self::I8 => {
                let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let scale = largest / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                out.extend(scale.to_le_bytes());
                out.extend(row.iter().map(|x| (libm::roundf(x * inverse) as i8).cast_unsigned()));
            }
        }
    }

    /// Reads a row into `out`, `[D]`.
    ///
    /// # Panics
    /// Where `row` has other than [`row_bytes`](Self::row_bytes) bytes.
    pub fn read(self, row: &[u8], out: &mut [f32]) {
        assert!(row.len() == self.row_bytes(out.len()), "a whole row");
        match self {
            Self::F32 => {
                let values = row.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x));
                out.iter_mut().zip(values).for_each(|(out, x)| *out = x);
            }
            Self::F16 => {
                out.iter_mut().zip(row.as_chunks::<2>().0).for_each(|(out, x)| *out = from_half(*x));
            }
            Self::I8 => {
                let (scale, row) = scaled(row);
                out.iter_mut().zip(row).for_each(|(out, x)| *out = scale * f32::from(x.cast_signed()));
            }
        }
    }
}

/// Rows in memory or in a file in memory.
#[derive(Debug, Clone, Copy)]
pub struct ExactRows<'a> {
    precision: Precision,
    dimension: usize,
    kernel: Kernel,
    /// Whole rows.
    bytes: &'a [u8],
}

impl<'a> ExactRows<'a> {
    /// Rows that [`Precision::write`] has written.
    ///
    /// # Errors
    /// Where the bytes are no whole rows.
    pub fn new(precision: Precision, dimension: usize, bytes: &'a [u8]) -> Result<Self, DimensionError> {
        let row = precision.row_bytes(dimension);
        if dimension == 0 || !bytes.len().is_multiple_of(row) {
            return Err(DimensionError::Embedding { got: bytes.len(), expected: row });
        }
        Ok(Self { precision, dimension, kernel: Kernel::detect(), bytes })
    }

    /// Number of rows.
    pub const fn len(&self) -> usize {
        self.bytes.len() / self.precision.row_bytes(self.dimension)
    }

    /// Whether there is no row.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How the rows are kept.
    pub const fn precision(&self) -> Precision {
        self.precision
    }

    /// Reads row `i` into `out`, `[D]`.
    ///
    /// # Panics
    /// Where there is no such row, or `out` has another length.
    pub fn read(&self, i: usize, out: &mut [f32]) {
        self.precision.read(row(self.bytes, i, self.precision.row_bytes(self.dimension)), out);
    }

    /// Inner products of `query`, `[D]`, with the rows at `positions`, into `similarities`, as long. Rows that lie apart are
    /// fetched ahead.
    ///
    /// # Panics
    /// Where there is no such row, or a length does not fit.
    pub fn similarities(&self, query: &[f32], positions: &[u32], similarities: &mut [f32]) {
        assert!(
            query.len() == self.dimension && positions.len() == similarities.len(),
            "one place a position"
        );
        let rows = positions.len();
        let at = |i: usize| positions[i] as usize;
        dispatch!(self.kernel, rows_by(self, query, rows, &at, similarities));
    }

    /// Inner products of `query`, `[D]`, with the rows from `first` on, into `similarities`.
    ///
    /// # Panics
    /// Where there are not as many rows, or the query has another length.
    pub fn similarities_from(&self, query: &[f32], first: usize, similarities: &mut [f32]) {
        assert!(query.len() == self.dimension, "a query of the same dimension");
        let rows = similarities.len();
        let at = |i: usize| first + i;
        dispatch!(self.kernel, rows_by(self, query, rows, &at, similarities));
    }
}

/// Rows whose memory is asked for ahead of use: about as many as a core can wait for at once.
const AHEAD: usize = 12;

for_each_kernel!(rows_by = rows_of(rows: &ExactRows<'_>, query: &[f32], count: usize, at: &dyn Fn(usize) -> usize, similarities: &mut [f32]));

#[inline(always)]
fn rows_of<const FUSED: bool>(
    rows: &ExactRows<'_>,
    query: &[f32],
    count: usize,
    at: &dyn Fn(usize) -> usize,
    similarities: &mut [f32],
) {
    let bytes = rows.precision.row_bytes(rows.dimension);
    let ahead = |i: usize| {
        if i < count {
            prefetch(row(rows.bytes, at(i), bytes));
        }
    };
    (0..AHEAD).for_each(ahead);
    for (i, similarity) in similarities.iter_mut().enumerate() {
        ahead(i + AHEAD);
        let row = row(rows.bytes, at(i), bytes);
        *similarity = match rows.precision {
            Precision::F32 => dot(query, row.as_chunks::<4>().0, |x| f32::from_le_bytes(*x)),
            Precision::F16 => dot(query, row.as_chunks::<2>().0, |x| from_half(*x)),
            Precision::I8 => {
                let (scale, row) = scaled(row);
                scale * dot(query, row, |x| f32::from(x.cast_signed()))
            }
        };
    }
}

#[inline(always)]
fn row(bytes: &[u8], i: usize, row: usize) -> &[u8] {
    &bytes[i * row..][..row]
}

#[inline(always)]
fn dot<T>(query: &[f32], row: &[T], read: impl Fn(&T) -> f32) -> f32 {
    let (queries, query_rest) = query.as_chunks::<LANES>();
    let (rows, row_rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (query, row) in queries.iter().zip(rows) {
        for lane in 0..LANES {
            sums[lane] += query[lane] * read(&row[lane]);
        }
    }
    for (sum, (query, row)) in sums.iter_mut().zip(query_rest.iter().zip(row_rest)) {
        *sum += query * read(row);
    }
    // In halves, as registers are added up.
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

/// The value of a half, for all that are finite: its exponent and fraction, moved to where they belong in f32, differ from it by
/// a power of two, also where it is subnormal.
#[inline(always)]
fn from_half(bytes: [u8; 2]) -> f32 {
    // 2^(127 - 15)
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let bits = u32::from(u16::from_le_bytes(bytes));
    let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * REBIAS;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Scale and components of a row of `I8`.
#[inline(always)]
fn scaled(row: &[u8]) -> (f32, &[u8]) {
    let (scale, row) = row.split_first_chunk().expect("a row of I8 begins with its scale");
    (f32::from_le_bytes(*scale), row)
}

/// Asks for the memory of a row.
#[inline(always)]
fn prefetch(row: &[u8]) {
    const LINE: usize = 64;
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(LINE) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, for an address inside the row; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    // There is no stable prefetch for other processors.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row.chunks(LINE);
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn unit(values: &[f32]) -> Vec<f32> {
        let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-30);
        values.iter().map(|x| (f64::from(*x) / norm) as f32).collect()
    }

    fn vectors() -> impl Strategy<Value = (usize, Vec<f32>)> {
        (1..90_usize).prop_flat_map(|d| (Just(d), prop::collection::vec(-1.0_f32..1.0, d..8 * d)))
    }

    proptest! {
        #[test]
        fn similarities_are_within_the_bound_of_each_precision((dimension, values) in vectors()) {
            let rows: Vec<Vec<f32>> = values.chunks_exact(dimension).map(unit).collect();
            let query = &rows[rows.len() / 2];
            for precision in [Precision::F32, Precision::F16, Precision::I8] {
                let mut bytes = Vec::new();
                rows.iter().for_each(|row| precision.write(row, &mut bytes));
                prop_assert_eq!(bytes.len(), rows.len() * precision.row_bytes(dimension));
                let exact = ExactRows::new(precision, dimension, &bytes).unwrap();
                let positions: Vec<u32> = (0..rows.len() as u32).rev().collect();
                let mut found = vec![0.0; rows.len()];
                exact.similarities(query, &positions, &mut found);
                let mut in_order = vec![0.0; rows.len()];
                exact.similarities_from(query, 0, &mut in_order);
                in_order.reverse();
                prop_assert_eq!(&found, &in_order);
                for (similarity, position) in found.into_iter().zip(positions) {
                    let row = &rows[position as usize];
                    let expected: f64 =
                        row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    // 1e-6: rounding of the sum itself.
                    let most = f64::from(precision.error_max(dimension)) + 1e-6;
                    prop_assert!((f64::from(similarity) - expected).abs() <= most, "{precision:?}");
                    // What is read back is what was compared.
                    let mut read = vec![0.0; dimension];
                    exact.read(position as usize, &mut read);
                    let again: f64 = read.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    prop_assert!((f64::from(similarity) - again).abs() <= 1e-6);
                }
            }
        }

        #[test]
        fn every_kernel_gives_the_same_bits((dimension, values) in vectors()) {
            for precision in [Precision::F32, Precision::F16, Precision::I8] {
                let mut bytes = Vec::new();
                values.chunks_exact(dimension).for_each(|row| precision.write(row, &mut bytes));
                let rows = values.len() / dimension;
                let similarities = |kernel| {
                    let exact = ExactRows { precision, dimension, kernel, bytes: &bytes };
                    let mut found = vec![0.0; rows];
                    exact.similarities_from(&values[..dimension], 0, &mut found);
                    found
                };
                let plain = similarities(Kernel::Portable);
                for kernel in Kernel::available() {
                    prop_assert_eq!(&similarities(kernel), &plain, "{:?}", kernel);
                }
            }
        }
    }

    #[test]
    fn all_finite_halves_are_read_as_the_crate_half_reads_them() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7C00 != 0x7C00) {
            let expected = f16::from_bits(bits).to_f32();
            assert_eq!(from_half(bits.to_le_bytes()).to_bits(), expected.to_bits(), "{bits:04x}");
        }
    }

    #[test]
    fn rows_that_are_not_whole_are_refused() {
        assert!(ExactRows::new(Precision::F16, 3, &[0; 7]).is_err());
        assert!(ExactRows::new(Precision::F32, 0, &[]).is_err());
        assert!(ExactRows::new(Precision::I8, 3, &[]).unwrap().is_empty());
        let mut bytes = Vec::new();
        Precision::I8.write(&[0.0; 3], &mut bytes);
        let mut similarity = [1.0];
        ExactRows::new(Precision::I8, 3, &bytes).unwrap().similarities_from(&[1.0; 3], 0, &mut similarity);
        assert_eq!(similarity, [0.0]);
    }
}
