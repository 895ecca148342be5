//! Features as they are ranked exactly: rows of f32, f16 or i8 in bytes, compared with uncoded queries.
//!
//! | precision | bytes a row | similarity off by at most, for unit vectors |
//! |---|---|---|
//! | `F32` | 4 D | 0 |
//! | `F16` | 2 D | 2^-11 + sqrt(D) 2^-25 |
//! | `I8` | D + 4 | e / (1 - e), where e is sqrt(D) / 254 of the largest component of the row |
//!
//! The row of `I8` is a scale and D whole numbers from -127 to 127, of which the largest component gets the largest. The scale
//! is such that the product of the row with what is kept of it is right: what is lost then lies across the row, and a
//! query near it does not see it (as in RaBitQ, Gao and Long 2024). Sums are made in 16 lanes and
//! without fused multiplication, so that a similarity has the same bits on every processor.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use alloc::vec::Vec;

use half::f16;

use crate::Kernel;
use crate::codebook::DimensionError;
use crate::lanes::LANES;
use crate::register::{Register, from_half};

/// The largest dimension of rows: far more than any network's, and far from any overflow.
const ROW_MAX: usize = 1 << 24;

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
    /// Of `F16`: each component is rounded by 2^-11 of itself at most, or by 2^-25 where it is tiny. Of `I8`: each by half of a
    /// 127th of the largest at most, so that what is lost is no longer than e; the scale takes away what of it lies along
    /// the row, and stretches the rest by `1 / (1 - e)` at most. (Cauchy and Schwarz, for each.)
    pub fn error_max(self, dimension: usize) -> f32 {
        let root = libm::sqrtf(dimension as f32);
        match self {
            Self::F32 => 0.0,
            Self::F16 => 1.0 / 2048.0 + root / (1 << 25) as f32,
            Self::I8 => {
                let lost = root / 254.0;
                lost / (1.0 - lost)
            }
        }
    }

    /// Writes a row, `[D]`, to the end of `out`. Components should be finite, and of `F16` below 65504.
    pub fn write(self, row: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(row.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => out.extend(row.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
            Self::I8 => {
                let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, in vector registers.
                const ROUND: f32 = 12_582_912.0;
                let whole = |x: &f32| (x * inverse + ROUND) - ROUND;
                let (length, kept) = row.iter().fold((0.0_f64, 0.0_f64), |(length, kept), x| {
                    (length + f64::from(*x) * f64::from(*x), kept + f64::from(*x) * f64::from(whole(x)))
                });
                let scale = if kept > 0.0 { (length / kept) as f32 } else { 0.0 };
                out.extend(scale.to_le_bytes());
                out.extend(row.iter().map(|x| (whole(x) as i8).cast_unsigned()));
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
        // A dimension that a file tells must not overflow what follows from it.
        let row = if dimension > ROW_MAX { 0 } else { precision.row_bytes(dimension) };
        if dimension == 0 || row == 0 || !bytes.len().is_multiple_of(row) {
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
        Work { rows: self, query, at: |i: usize| positions[i] as usize }.run(similarities);
    }

    /// Inner products of `query`, `[D]`, with the rows from `first` on, into `similarities`.
    ///
    /// # Panics
    /// Where there are not as many rows, or the query has another length.
    pub fn similarities_from(&self, query: &[f32], first: usize, similarities: &mut [f32]) {
        assert!(query.len() == self.dimension, "a query of the same dimension");
        Work { rows: self, query, at: |i: usize| first + i }.run(similarities);
    }
}

/// Rows whose memory is asked for ahead of use: about as many as a core can wait for at once.
const AHEAD: usize = 12;

/// What the kernels work on.
struct Work<'a, A> {
    rows: &'a ExactRows<'a>,
    query: &'a [f32],
    /// The row of each similarity.
    at: A,
}

impl<A: Fn(usize) -> usize> Work<'_, A> {
    fn run(&self, similarities: &mut [f32]) {
        match self.rows.kernel.checked() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has what the kernel needs.
            Ok(Kernel::Avx512) => unsafe { self.avx512(similarities) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Ok(Kernel::Avx2) => unsafe { self.avx2(similarities) },
            // SAFETY: plain arrays need nothing.
            _ => unsafe { self.run_with::<[f32; LANES]>(similarities) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn avx512(&self, similarities: &mut [f32]) {
        // SAFETY: this function has the instructions enabled.
        unsafe { self.run_with::<core::arch::x86_64::__m512>(similarities) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(&self, similarities: &mut [f32]) {
        // SAFETY: this function has the instructions enabled.
        unsafe { self.run_with::<[core::arch::x86_64::__m256; 2]>(similarities) }
    }

    /// # Safety
    /// The caller has the instructions of `R` enabled.
    #[inline(always)]
    unsafe fn run_with<R: Register>(&self, similarities: &mut [f32]) {
        let ExactRows { precision, dimension, bytes, .. } = *self.rows;
        let row_bytes = precision.row_bytes(dimension);
        let count = similarities.len();
        let ahead = |i: usize| {
            if i < count {
                prefetch(row(bytes, (self.at)(i), row_bytes));
            }
        };
        (0..AHEAD).for_each(ahead);
        for (i, similarity) in similarities.iter_mut().enumerate() {
            ahead(i + AHEAD);
            let row = row(bytes, (self.at)(i), row_bytes);
            // SAFETY: the caller has the instructions of `R` enabled, which is all that its functions ask for.
            *similarity = unsafe {
                match precision {
                    Precision::F32 => dot::<R, _>(self.query, row.as_chunks().0, |x| R::load_f32(x)),
                    Precision::F16 => dot::<R, _>(self.query, row.as_chunks().0, |x| R::load_f16(x)),
                    Precision::I8 => {
                        let (scale, row) = scaled(row);
                        scale * dot::<R, _>(self.query, row, |x| R::load_i8(x))
                    }
                }
            };
        }
    }
}

#[inline(always)]
fn row(bytes: &[u8], i: usize, row: usize) -> &[u8] {
    &bytes[i * row..][..row]
}

/// # Safety
/// The caller has the instructions of `R` enabled.
#[inline(always)]
unsafe fn dot<R: Register, T: Copy + Default>(
    query: &[f32],
    row: &[T],
    read: impl Fn(&[T; LANES]) -> R,
) -> f32 {
    let (queries, query_rest) = query.as_chunks::<LANES>();
    let (rows, row_rest) = row.as_chunks::<LANES>();
    // SAFETY: the caller's promise.
    let mut sums = unsafe {
        let mut sums = R::splat(0.0);
        for (query, row) in queries.iter().zip(rows) {
            sums = R::load(query).times_plus(read(row), sums);
        }
        if !query_rest.is_empty() {
            // Zeros add nothing.
            let (mut query, mut row) = ([0.0; LANES], [T::default(); LANES]);
            query[..query_rest.len()].copy_from_slice(query_rest);
            row[..row_rest.len()].copy_from_slice(row_rest);
            sums = R::load(&query).times_plus(read(&row), sums);
        }
        sums.store()
    };
    // In halves, as registers are added up.
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
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
        assert!(ExactRows::new(Precision::F32, 1 << (usize::BITS - 2), &[]).is_err());
        assert!(ExactRows::new(Precision::I8, 3, &[]).unwrap().is_empty());
        let mut bytes = Vec::new();
        Precision::I8.write(&[0.0; 3], &mut bytes);
        let mut similarity = [1.0];
        ExactRows::new(Precision::I8, 3, &bytes).unwrap().similarities_from(&[1.0; 3], 0, &mut similarity);
        assert_eq!(similarity, [0.0]);
    }
}
