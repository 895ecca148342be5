//! 64-bit ARM, with the dot product of bytes and without.
//!
//! Without it, two products of signed bytes fit into 16 bits, for weights are never -128: they are added there before they go to
//! sums of 32 bits.
//!
//! Loops, never closures, around intrinsics, as in `bytes_x86`.

#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics, whose names say where they are from; not reported in tests"
)]
use core::arch::aarch64::*;

use crate::bytes::{Columns, Dots, Reals, Scaling};
use crate::depthwise_i8::Part;
use crate::lanes::Lanes as _;

// SAFETY of all that follows: the caller's function enables the instructions, and its pointers are valid for what is read and
// written.

/// Rounded, with `zero` added.
#[inline(always)]
unsafe fn rounded(real: float32x4_t, zero: i32) -> int32x4_t {
    // SAFETY: above.
    unsafe { vaddq_s32(vcvtnq_s32_f32(real), vdupq_n_s32(zero)) }
}

impl Reals for float32x4_t {
    #[inline(always)]
    unsafe fn round(self, zero: i32, to: *mut u8, count: usize) {
        // SAFETY: above; a register's bytes are copied only as far as they are wanted.
        unsafe {
            let sixteen = vmovn_s32(rounded(self, zero));
            let bytes = vmovn_s16(vcombine_s16(sixteen, sixteen));
            let four = vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)).to_ne_bytes();
            if count >= 4 {
                to.cast::<[u8; 4]>().write_unaligned(four);
            } else {
                to.copy_from_nonoverlapping(four.as_ptr(), count);
            }
        }
    }
}

/// Sums of 4 channels, two for each: those of channels 0 and 1, then 2 and 3.
#[derive(Clone, Copy)]
pub(crate) struct Widened([int32x4_t; 2]);

#[inline(always)]
unsafe fn real(sum: int32x4_t, bias: *const i32, scale: *const f32) -> float32x4_t {
    // SAFETY: above.
    unsafe { vmulq_f32(vcvtq_f32_s32(vaddq_s32(sum, vld1q_s32(bias))), vld1q_f32(scale)) }
}

impl Dots for Widened {
    const WIDTH: usize = 4;
    type Real = float32x4_t;
    type Weights = [int8x16_t; 2];
    type Bytes = [int8x16_t; 2];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: above.
        Self([unsafe { vdupq_n_s32(0) }; 2])
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::Weights {
        // SAFETY: above.
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16))] }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: above.
        unsafe {
            let both = vreinterpret_s32_s8(vld1_s8(from.cast()));
            let (first, second) = (vdupq_lane_s32::<0>(both), vdupq_lane_s32::<1>(both));
            [vreinterpretq_s8_s32(first), vreinterpretq_s8_s32(second)]
        }
    }

    #[inline(always)]
    unsafe fn dot(self, bytes: Self::Bytes, weights: Self::Weights) -> Self {
        let [mut first, mut second] = self.0;
        // SAFETY: above; the instructions touch nothing but these registers. In assembly, for the compiler would begin the products of
        // many pixels before it adds any up, and keep them in memory meanwhile.
        unsafe {
            core::arch::asm!(
                "smull {low:v}.8h, {bytes0:v}.8b, {weights0:v}.8b",
                "smull2 {high:v}.8h, {bytes0:v}.16b, {weights0:v}.16b",
                "smlal {low:v}.8h, {bytes1:v}.8b, {weights1:v}.8b",
                "smlal2 {high:v}.8h, {bytes1:v}.16b, {weights1:v}.16b",
                "sadalp {first:v}.4s, {low:v}.8h",
                "sadalp {second:v}.4s, {high:v}.8h",
                low = out(vreg) _,
                high = out(vreg) _,
                first = inout(vreg) first,
                second = inout(vreg) second,
                bytes0 = in(vreg) bytes[0],
                bytes1 = in(vreg) bytes[1],
                weights0 = in(vreg) weights[0],
                weights1 = in(vreg) weights[1],
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Self([first, second])
    }

    #[inline(always)]
    unsafe fn real(self, bias: *const i32, scale: *const f32) -> float32x4_t {
        // SAFETY: above.
        unsafe { real(vpaddq_s32(self.0[0], self.0[1]), bias, scale) }
    }
}

/// Sums of 4 channels, by dot products.
#[derive(Clone, Copy)]
pub(crate) struct Dotted(int32x4_t);

/// `sum + four dot products of four bytes`, the other side being the first or second four of `bytes`. In assembly, for the intrinsic
/// is not stable.
macro_rules! sdot {
    ($sum:expr, $weights:expr, $bytes:expr, $lane:literal) => {{
        let mut sum: int32x4_t = $sum;
        core::arch::asm!(
            concat!("sdot {sum:v}.4s, {weights:v}.16b, {bytes:v}.4b[", $lane, "]"),
            sum = inout(vreg) sum,
            weights = in(vreg) $weights,
            bytes = in(vreg) $bytes,
            options(pure, nomem, nostack, preserves_flags)
        );
        sum
    }};
}

impl Dots for Dotted {
    const WIDTH: usize = 4;
    type Real = float32x4_t;
    type Weights = [int8x16_t; 2];
    type Bytes = int8x8_t;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: above.
        Self(unsafe { vdupq_n_s32(0) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::Weights {
        // SAFETY: above.
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16))] }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: above.
        unsafe { vld1_s8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(self, bytes: Self::Bytes, weights: Self::Weights) -> Self {
        // SAFETY: above; the instruction touches nothing but these registers.
        unsafe {
            let sum = sdot!(self.0, weights[0], bytes, "0");
            Self(sdot!(sum, weights[1], bytes, "1"))
        }
    }

    #[inline(always)]
    unsafe fn real(self, bias: *const i32, scale: *const f32) -> float32x4_t {
        // SAFETY: above.
        unsafe { real(self.0, bias, scale) }
    }
}

/// Sums of 8 channels.
#[derive(Clone, Copy)]
pub(crate) struct WidenedColumns([int32x4_t; 2]);

impl Columns for WidenedColumns {
    const WIDTH: usize = 8;
    type Column = [int8x8_t; 4];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: above.
        Self([unsafe { vdupq_n_s32(0) }; 2])
    }

    #[inline(always)]
    unsafe fn column<const ROWS: usize>(pixels: [*const u8; 4], count: usize) -> Self::Column {
        // SAFETY: above; of channels at the end only those that there are are copied.
        unsafe {
            let mut column = [vdup_n_s8(0); 4];
            for (row, pixel) in column.iter_mut().zip(pixels).take(ROWS) {
                *row = if count >= 8 {
                    vld1_s8(pixel.cast())
                } else {
                    let mut all = [0_u8; 8];
                    all.as_mut_ptr().copy_from_nonoverlapping(pixel, count);
                    vld1_s8(all.as_ptr().cast())
                };
            }
            column
        }
    }

    #[inline(always)]
    unsafe fn dot<const ROWS: usize>(self, column: Self::Column, weights: *const i8) -> Self {
        let mut sums = self.0;
        for row in (0..ROWS).step_by(2) {
            // SAFETY: above.
            unsafe {
                let mut products = vmull_s8(column[row], vld1_s8(weights.add(row * 8)));
                if row + 1 < ROWS {
                    products = vmlal_s8(products, column[row + 1], vld1_s8(weights.add(row * 8 + 8)));
                }
                sums = [vaddw_s16(sums[0], vget_low_s16(products)), vaddw_high_s16(sums[1], products)];
            }
        }
        Self(sums)
    }

    fn arrange(weights: &[i8]) -> Vec<i8> {
        weights.to_vec()
    }

    fn channel(place: usize) -> usize {
        place
    }

    #[inline(always)]
    unsafe fn window<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        part: &Part<'_, '_>,
        x: usize,
    ) -> [Self; PIXELS] {
        // SAFETY: above. Rows, for columns of so many pixels do not stay in registers; the last channels have no whole registers.
        unsafe {
            if part.count() < 8 {
                return part.by_columns::<Self, HEIGHT, WIDTH, STRIDE, PIXELS>(x);
            }
            let mut sums = [Self::zero(); PIXELS];
            for row in 0..part.height() {
                let (from, step) = part.row::<STRIDE>(row, x);
                let (weights, next) = part.row_weights::<Self>(row);
                Self::add_row::<WIDTH, STRIDE, PIXELS>(&mut sums, (from, step), (weights, next));
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn at_edge<const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        part: &Part<'_, '_>,
        x: usize,
    ) -> Option<[Self; PIXELS]> {
        if WIDTH == 0 || part.count() < 8 {
            return None;
        }
        // SAFETY: above; what lies beyond the image is read from a pixel of zeros.
        unsafe {
            let mut sums = [Self::zero(); PIXELS];
            for row in 0..part.height() {
                let mut line = [vdup_n_s8(0); LINE_MAX];
                for (pixel, bytes) in line.iter_mut().enumerate().take((PIXELS - 1) * STRIDE + WIDTH) {
                    *bytes = vld1_s8(part.pixel(row, part.column(x * STRIDE + pixel)).cast());
                }
                Self::add_line::<WIDTH, STRIDE, PIXELS>(&mut sums, &line, part.row_weights::<Self>(row));
            }
            Some(sums)
        }
    }

    #[inline(always)]
    unsafe fn reals(self, bias: *const i32, scale: *const f32, to: *mut f32) {
        for (part, sum) in self.0.into_iter().enumerate() {
            // SAFETY: above.
            unsafe { vst1q_f32(to.add(part * 4), real(sum, bias.add(part * 4), scale.add(part * 4))) };
        }
    }

    #[inline(always)]
    unsafe fn bytes(self, scaling: &Scaling, to: *mut u8, count: usize) {
        // SAFETY: above; a register's bytes are copied only as far as they are wanted.
        unsafe {
            let (low, high) = (vdupq_n_f32(scaling.low), vdupq_n_f32(scaling.high));
            let first = real(self.0[0], scaling.bias, scaling.scale).clamp(low, high);
            let second = real(self.0[1], scaling.bias.add(4), scaling.scale.add(4)).clamp(low, high);
            let (first, second) = (rounded(first, scaling.zero), rounded(second, scaling.zero));
            let bytes = vmovn_s16(vcombine_s16(vmovn_s32(first), vmovn_s32(second)));
            if count >= 8 {
                vst1_s8(to.cast(), bytes);
            } else {
                let mut all = [0_i8; 8];
                vst1_s8(all.as_mut_ptr(), bytes);
                to.copy_from_nonoverlapping(all.as_ptr().cast(), count);
            }
        }
    }
}

/// Pixels of the input that the windows of some neighbours look at, at most.
const LINE_MAX: usize = 16;

impl WidenedColumns {
    /// Adds a row of the kernel, whose weights are `next` bytes apart, to `PIXELS` neighbours; pixels of the input are `step` bytes apart.
    ///
    /// # Safety
    /// Eight bytes can be read of each pixel and each weight; the function that this is inlined into enables NEON.
    #[inline(always)]
    unsafe fn add_row<const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        sums: &mut [Self; PIXELS],
        (from, step): (*const u8, usize),
        weights: (*const i8, usize),
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut line = [vdup_n_s8(0); LINE_MAX];
            for (pixel, bytes) in line.iter_mut().enumerate().take((PIXELS - 1) * STRIDE + WIDTH) {
                *bytes = vld1_s8(from.add(pixel * step).cast());
            }
            Self::add_line::<WIDTH, STRIDE, PIXELS>(sums, &line, weights);
        }
    }

    /// As [`add_row`](Self::add_row), of pixels that have been read.
    #[inline(always)]
    unsafe fn add_line<const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        sums: &mut [Self; PIXELS],
        line: &[int8x8_t; LINE_MAX],
        (weights, next): (*const i8, usize),
    ) {
        const { assert!((PIXELS - 1) * STRIDE + WIDTH <= LINE_MAX) };
        // SAFETY: the caller's.
        unsafe {
            let mut taps = [vdup_n_s8(0); WIDTH];
            for (tap, weight) in taps.iter_mut().enumerate() {
                *weight = vld1_s8(weights.add(tap * next));
            }
            for (pixel, sums) in sums.iter_mut().enumerate() {
                for tap in (0..WIDTH).step_by(2) {
                    let mut products = vmull_s8(line[pixel * STRIDE + tap], taps[tap]);
                    if tap + 1 < WIDTH {
                        products = vmlal_s8(products, line[pixel * STRIDE + tap + 1], taps[tap + 1]);
                    }
                    sums.0[0] = vaddw_s16(sums.0[0], vget_low_s16(products));
                    sums.0[1] = vaddw_high_s16(sums.0[1], products);
                }
            }
        }
    }
}
