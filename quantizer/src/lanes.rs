//! Arithmetic of many vectors at once, one lane each, so that it is as fast as the registers are wide.
//!
//! Each lane adds up in the order of the dimensions, as a plain loop over one vector does, and without fused multiplication:
//! the results are the same to the last bit on every processor. (Training fuses: see `assign`.)
//!
//! One body of plain Rust, inlined into a function for each set of instructions, is all there is: the compiler turns its loops
//! over lanes into vector instructions.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use alloc::vec;
use alloc::vec::Vec;

use crate::Kernel;

/// Lanes: one register of AVX-512.
pub(crate) const LANES: usize = 16;

/// Points in rows of a larger matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// From the first component of the first point on.
    values: &'a [f32],
    pub(crate) count: usize,
    pub(crate) dimension: usize,
    /// From one point to the next.
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `count` points of `dimension` components; the first starts at `values[0]`, each other `stride` later.
    ///
    /// # Panics
    /// Where they do not lie in `values`.
    pub(crate) fn new(values: &'a [f32], count: usize, dimension: usize, stride: usize) -> Self {
        assert!(dimension > 0 && dimension <= stride, "points lie in rows");
        assert!(
            count == 0 || values.len() >= (count - 1) * stride + dimension,
            "all points lie in the slice"
        );
        Self { values, count, dimension, stride }
    }

    #[cfg(feature = "train")]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    #[cfg(feature = "train")]
    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.stride..][..self.dimension]
    }

    #[cfg(feature = "train")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [f32]> {
        (0..self.count).map(|i| self.get(i))
    }

    /// Points `start` to `end`.
    #[cfg(feature = "std")]
    pub(crate) fn part(&self, start: usize, end: usize) -> Self {
        let from = (start * self.stride).min(self.values.len());
        Self::new(&self.values[from..], end - start, self.dimension, self.stride)
    }

    /// Writes up to [`LANES`] points from `first` on into `lanes`, `[dimension]`. Lanes beyond the last point repeat it.
    #[inline(always)]
    pub(crate) fn transpose(&self, first: usize, lanes: &mut [[f32; LANES]]) {
        let points: [&[f32]; LANES] =
            core::array::from_fn(|lane| &self.get((first + lane).min(self.count - 1))[..lanes.len()]);
        for (d, row) in lanes.iter_mut().enumerate() {
            for (x, point) in row.iter_mut().zip(points) {
                *x = point[d];
            }
        }
    }
}

/// Calls the form of a function for the kernel: `dispatch!(kernel, name(arguments))` where `name` is a module made by
/// `for_each_kernel`.
macro_rules! dispatch {
    ($kernel:expr, $name:ident($($argument:expr),*)) => {
        match $kernel.checked() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has what the kernel needs.
            Ok(Kernel::Avx512) => unsafe { $name::avx512($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Ok(Kernel::Avx2) => unsafe { $name::avx2($($argument),*) },
            _ => $name::plain($($argument),*),
        }
    };
}

/// Compiles a function for each set of instructions.
macro_rules! for_each_kernel {
    ($name:ident = $function:ident($($argument:ident: $type:ty),*)) => {
        mod $name {
            use super::*;

            pub(super) fn plain($($argument: $type),*) {
                super::$function($($argument),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            pub(super) fn avx2($($argument: $type),*) {
                super::$function($($argument),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            pub(super) fn avx512($($argument: $type),*) {
                super::$function($($argument),*);
            }
        }
    };
}

/// For each of the points the number of the nearest of `centroids`, `[K, dimension]` with K at most 256, by L2 distance: the
/// first of equals, and the first of all where the point has a NaN. Writes one to the start of each `code_stride` bytes of
/// `codes`.
pub(crate) fn nearest(
    kernel: Kernel,
    centroids: &[f32],
    points: &Rows<'_>,
    codes: &mut [u8],
    code_stride: usize,
) {
    assert!(centroids.len() <= 256 * points.dimension, "the number of a centroid fits a byte");
    assert!(codes.len().div_ceil(code_stride) == points.count, "one code a point");
    dispatch!(kernel, nearest_by(centroids, points, codes, code_stride));
}

for_each_kernel!(nearest_by = nearest_of(centroids: &[f32], points: &Rows<'_>, codes: &mut [u8], code_stride: usize));

#[inline(always)]
fn nearest_of(centroids: &[f32], points: &Rows<'_>, codes: &mut [u8], code_stride: usize) {
    let mut lanes = vec![[0.0; LANES]; points.dimension];
    for (number, codes) in codes.chunks_mut(code_stride * LANES).enumerate() {
        points.transpose(number * LANES, &mut lanes);
        let mut best = [f32::INFINITY; LANES];
        let mut chosen = [0_u32; LANES];
        for (centroid, k) in centroids.chunks_exact(points.dimension).zip(0..) {
            let mut sums = [0.0; LANES];
            for (x, c) in lanes.iter().zip(centroid) {
                for lane in 0..LANES {
                    let difference = x[lane] - c;
                    sums[lane] += difference * difference;
                }
            }
            keep_smaller(&mut best, &mut chosen, &sums, k);
        }
        for (code, k) in codes.iter_mut().step_by(code_stride).zip(chosen) {
            *code = k as u8;
        }
    }
}

#[inline(always)]
fn keep_smaller(best: &mut [f32; LANES], chosen: &mut [u32; LANES], values: &[f32; LANES], number: u32) {
    for lane in 0..LANES {
        let smaller = values[lane] < best[lane];
        best[lane] = if smaller { values[lane] } else { best[lane] };
        chosen[lane] = if smaller { number } else { chosen[lane] };
    }
}

/// `[n, dimension]` vectors, transposed to `[n / LANES, dimension, LANES]`, for products with one vector at a time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Transposed {
    values: Vec<[f32; LANES]>,
    dimension: usize,
}

impl Transposed {
    /// Transposes `vectors`, `[n, dimension]`. Lanes that stand for no vector hold zeros.
    pub(crate) fn new(vectors: &[f32], dimension: usize) -> Self {
        let groups = (vectors.len() / dimension).div_ceil(LANES);
        let mut values = vec![[0.0; LANES]; dimension * groups];
        for (number, vector) in vectors.chunks_exact(dimension).enumerate() {
            let (group, lane) = (number / LANES, number % LANES);
            for (row, x) in values[group * dimension..].iter_mut().zip(vector) {
                row[lane] = *x;
            }
        }
        Self { values, dimension }
    }

    /// Number of vectors, rounded up to whole groups.
    pub(crate) fn lanes(&self) -> usize {
        self.values.len() / self.dimension * LANES
    }

    /// Inner products of `x`, `[dimension]`, with all vectors, into `products`, `[lanes]`. Those of lanes without a vector
    /// are zero.
    pub(crate) fn products(&self, kernel: Kernel, x: &[f32], products: &mut [f32]) {
        assert!(x.len() == self.dimension && products.len() == self.lanes(), "one product a lane");
        dispatch!(kernel, products_by(self, x, products));
    }

    /// Squared L2 distances of `x`, `[dimension]`, from all vectors, into `distances`, `[lanes]`. Those of lanes without a
    /// vector have no meaning.
    #[cfg(feature = "train")]
    pub(crate) fn distances(&self, kernel: Kernel, x: &[f32], distances: &mut [f32]) {
        assert!(x.len() == self.dimension && distances.len() == self.lanes(), "one distance a lane");
        dispatch!(kernel, distances_by(self, x, distances));
    }
}

for_each_kernel!(products_by = products_of(vectors: &Transposed, x: &[f32], products: &mut [f32]));

#[inline(always)]
fn products_of(vectors: &Transposed, x: &[f32], products: &mut [f32]) {
    each_lane(vectors, x, products, |x, y| x * y);
}

#[cfg(feature = "train")]
for_each_kernel!(distances_by = distances_of(vectors: &Transposed, x: &[f32], distances: &mut [f32]));

#[cfg(feature = "train")]
#[inline(always)]
fn distances_of(vectors: &Transposed, x: &[f32], distances: &mut [f32]) {
    each_lane(vectors, x, distances, |x, y| (x - y) * (x - y));
}

/// The sum of `term` over the dimensions, for each lane.
#[inline(always)]
fn each_lane(vectors: &Transposed, x: &[f32], results: &mut [f32], term: impl Fn(f32, f32) -> f32) {
    let groups = vectors.values.chunks_exact(vectors.dimension);
    for (group, results) in groups.zip(results.as_chunks_mut::<LANES>().0) {
        let mut sums = [0.0; LANES];
        for (x, row) in x.iter().zip(group) {
            for lane in 0..LANES {
                sums[lane] += term(*x, row[lane]);
            }
        }
        *results = sums;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::assign::assign;

    fn plain_distance(x: &[f32], c: &[f32]) -> f32 {
        x.iter().zip(c).map(|(x, c)| (x - c) * (x - c)).sum()
    }

    proptest! {
        /// Small whole numbers: many distances are equal, and none is rounded.
        #[test]
        fn every_kernel_finds_the_first_nearest_vector(
            dimension in 1..9_usize,
            vectors in prop::collection::vec(-3..3_i8, 9..700),
            points in prop::collection::vec(-3..3_i8, 9..300),
            gap in 0..3_usize,
        ) {
            let floats = |numbers: &[i8]| numbers.iter().map(|x| f32::from(*x)).collect::<Vec<f32>>();
            let (mut vectors, points) = (floats(&vectors), floats(&points));
            vectors.truncate(vectors.len().min(256 * dimension) / dimension * dimension);
            let stride = dimension + gap;
            let rows = Rows::new(&points, (points.len() + gap) / stride, dimension, stride);
            let offsets: Vec<f32> =
                vectors.chunks_exact(dimension).map(|c| 0.5 * c.iter().map(|x| x * x).sum::<f32>()).collect();
            let transposed = Transposed::new(&vectors, dimension);
            for kernel in Kernel::available() {
                let mut found = vec![(0, 0.0); rows.count];
                assign(kernel, &vectors, &offsets, &rows, &mut found);
                let mut codes = vec![0; 2 * rows.count - 1];
                nearest(kernel, &vectors, &rows, &mut codes, 2);
                for (i, (number, value)) in found.into_iter().enumerate() {
                    let x = rows.get(i);
                    let distances: Vec<f32> =
                        vectors.chunks_exact(dimension).map(|c| plain_distance(x, c)).collect();
                    let smallest = distances.iter().copied().fold(f32::INFINITY, f32::min);
                    let first = distances.iter().position(|d| *d == smallest).unwrap();
                    prop_assert_eq!(usize::from(codes[2 * i]), first, "{:?}", kernel);
                    prop_assert_eq!(number as usize, first, "{:?}", kernel);
                    prop_assert_eq!(2.0 * value + x.iter().map(|x| x * x).sum::<f32>(), smallest);
                    let mut products = vec![0.0; transposed.lanes()];
                    transposed.products(kernel, x, &mut products);
                    for (product, c) in products.iter().zip(vectors.chunks_exact(dimension)) {
                        prop_assert_eq!(*product, x.iter().zip(c).map(|(x, c)| x * c).sum::<f32>());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_nearest_to_the_first() {
        for kernel in Kernel::available() {
            let mut codes = [9; 2];
            nearest(kernel, &[1.0, 2.0, 3.0], &Rows::new(&[f32::NAN, f32::INFINITY], 2, 1, 1), &mut codes, 1);
            assert_eq!(codes, [0, 0]);
        }
    }
}
