//! The nearest of many centroids for each of many points: where k-means spends its time.
//!
//! 16 points lie in registers, one lane each, and meet [`TOGETHER`] centroids at a time, so that a point is read once for all
//! of those. Products are never written anywhere: each is compared with the best so far at once.
//!
//! What lost: `matrixmultiply` and then a pass over the products, 4 GFMA/s at 8 dimensions; and leaving the loops to the
//! compiler, which vectorises over the centroids instead, by gathers: 2 GFMA/s. This: 30 and more, on AVX-512.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use alloc::vec;

use crate::Kernel;
use crate::lanes::{LANES, Rows};
use crate::register::Register;

/// Centroids that meet the points at a time.
const TOGETHER: usize = 8;

/// For each of the points the number of the centroid, `[K, dimension]`, for which `offset - <x, c>` is smallest (the first of
/// equals), and that value.
///
/// With `offset = ||c||^2 / 2` that is the nearest by L2 distance, and with zeros the largest inner product.
pub(crate) fn assign(
    kernel: Kernel,
    centroids: &[f32],
    offsets: &[f32],
    points: &Rows<'_>,
    found: &mut [(u32, f32)],
) {
    assert!(offsets.len() * points.dimension == centroids.len(), "one offset a centroid");
    assert!(found.len() == points.count, "one place a point");
    match kernel.checked() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the kernel needs.
        Ok(Kernel::Avx512) => unsafe { avx512(centroids, offsets, points, found) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Ok(Kernel::Avx2) => unsafe { avx2(centroids, offsets, points, found) },
        // SAFETY: plain arrays need nothing.
        _ => unsafe { assign_with::<[f32; LANES]>(centroids, offsets, points, found) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn avx512(centroids: &[f32], offsets: &[f32], points: &Rows<'_>, found: &mut [(u32, f32)]) {
    // SAFETY: this function has the instructions enabled.
    unsafe { assign_with::<core::arch::x86_64::__m512>(centroids, offsets, points, found) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(centroids: &[f32], offsets: &[f32], points: &Rows<'_>, found: &mut [(u32, f32)]) {
    // SAFETY: this function has the instructions enabled.
    unsafe { assign_with::<[core::arch::x86_64::__m256; 2]>(centroids, offsets, points, found) }
}

/// # Safety
/// The caller has the instructions of `R` enabled.
#[inline(always)]
unsafe fn assign_with<R: Register>(
    centroids: &[f32],
    offsets: &[f32],
    points: &Rows<'_>,
    found: &mut [(u32, f32)],
) {
    let dimension = points.dimension;
    // [K / TOGETHER, dimension, TOGETHER]; places beyond the last centroid are infinitely far.
    let groups = offsets.len().div_ceil(TOGETHER);
    let mut grouped = vec![[0.0; TOGETHER]; groups * dimension];
    let mut bars = vec![[f32::INFINITY; TOGETHER]; groups];
    for (k, (centroid, offset)) in centroids.chunks_exact(dimension).zip(offsets).enumerate() {
        let (group, place) = (k / TOGETHER, k % TOGETHER);
        bars[group][place] = *offset;
        for (row, c) in grouped[group * dimension..].iter_mut().zip(centroid) {
            row[place] = *c;
        }
    }
    let mut lanes = vec![[0.0; LANES]; dimension];
    for (number, found) in found.chunks_mut(LANES).enumerate() {
        points.transpose(number * LANES, &mut lanes);
        // SAFETY: the caller has the instructions of `R` enabled, which is all that its functions ask for.
        let (best, chosen) = unsafe {
            let mut best = R::splat(f32::INFINITY);
            let mut chosen = R::splat(f32::from_bits(0));
            for ((group, offsets), first) in
                grouped.chunks_exact(dimension).zip(&bars).zip((0..).step_by(TOGETHER))
            {
                let mut sums = [R::splat(0.0); TOGETHER];
                for (x, row) in lanes.iter().zip(group) {
                    let x = R::load(x);
                    for n in 0..TOGETHER {
                        sums[n] = x.product_added(row[n], sums[n]);
                    }
                }
                for n in 0..TOGETHER {
                    R::splat(offsets[n]).minus(sums[n]).keep_smaller(
                        &mut best,
                        &mut chosen,
                        first + n as u32,
                    );
                }
            }
            (best.store(), chosen.store())
        };
        for ((found, k), value) in found.iter_mut().zip(chosen).zip(best) {
            *found = (k.to_bits(), value);
        }
    }
}
