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

use crate::bytes::{DEPTH, Dots, Reals, Scaling};

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

/// How reals become bytes: four registers at once, and within their limits as bytes, of which sixteen fit into one.
#[derive(Clone, Copy)]
pub(crate) struct NarrowTo {
    zero: int16x8_t,
    least: int8x16_t,
    most: int8x16_t,
}

impl NarrowTo {
    /// # Safety
    /// The function that this is inlined into enables NEON, as with all that follow.
    #[inline(always)]
    pub(crate) unsafe fn new(scaling: &Scaling) -> Self {
        let limit = |limit: f32| (limit.round_ties_even() as i32 + scaling.zero) as i8;
        // SAFETY: the caller's.
        unsafe {
            Self {
                zero: vdupq_n_s16(scaling.zero as i16),
                least: vdupq_n_s8(limit(scaling.low)),
                most: vdupq_n_s8(limit(scaling.high)),
            }
        }
    }

    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    unsafe fn sixteen_bits(&self, reals: [float32x4_t; 2]) -> int16x8_t {
        // SAFETY: the caller's.
        unsafe {
            let lower = vqmovn_s32(vcvtnq_s32_f32(reals[0]));
            vqaddq_s16(vqmovn_high_s32(lower, vcvtnq_s32_f32(reals[1])), self.zero)
        }
    }

    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    pub(crate) unsafe fn eight(&self, reals: [float32x4_t; 2]) -> int8x8_t {
        // SAFETY: the caller's.
        unsafe {
            let bytes = vqmovn_s16(self.sixteen_bits(reals));
            vmin_s8(vmax_s8(bytes, vget_low_s8(self.least)), vget_low_s8(self.most))
        }
    }

    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    pub(crate) unsafe fn sixteen(&self, reals: [float32x4_t; 4]) -> int8x16_t {
        // SAFETY: the caller's.
        unsafe {
            let lower = vqmovn_s16(self.sixteen_bits([reals[0], reals[1]]));
            let bytes = vqmovn_high_s16(lower, self.sixteen_bits([reals[2], reals[3]]));
            vminq_s8(vmaxq_s8(bytes, self.least), self.most)
        }
    }
}

/// As [`Dots::write`], of sums of four channels each.
#[inline(always)]
unsafe fn write<const ROWS: usize, const REGISTERS: usize>(
    sums: [[int32x4_t; REGISTERS]; ROWS],
    scaling: &Scaling,
    to: *mut u8,
    outputs: usize,
    last: usize,
) {
    const { assert!(REGISTERS >= 1 && REGISTERS <= 4) };
    // SAFETY: above; bytes are copied only as far as they are wanted.
    unsafe {
        let narrow = NarrowTo::new(scaling);
        let mut scales = [vdupq_n_f32(0.0); REGISTERS];
        for (r, scale) in scales.iter_mut().enumerate() {
            *scale = vld1q_f32(scaling.scale.add(r * 4));
        }
        for (pixel, sums) in sums.into_iter().enumerate() {
            let mut reals = [vdupq_n_f32(0.0); 4];
            for ((real, sum), scale) in reals.iter_mut().zip(sums).zip(scales) {
                *real = vmulq_f32(vcvtq_f32_s32(sum), scale);
            }
            let to = to.add(pixel * outputs);
            let bytes = if REGISTERS >= 3 {
                if REGISTERS == 3 {
                    // It is not written.
                    reals[3] = reals[2];
                }
                narrow.sixteen(reals)
            } else {
                if REGISTERS == 1 {
                    reals[1] = reals[0];
                }
                let eight = narrow.eight([reals[0], reals[1]]);
                vcombine_s8(eight, eight)
            };
            if last == 4 {
                let words = vreinterpretq_u32_s8(bytes);
                match REGISTERS {
                    1 => to.cast::<u32>().write_unaligned(vgetq_lane_u32::<0>(words)),
                    2 => vst1_s8(to.cast(), vget_low_s8(bytes)),
                    4 => vst1q_s8(to.cast(), bytes),
                    _ => {
                        vst1_s8(to.cast(), vget_low_s8(bytes));
                        to.add(8).cast::<u32>().write_unaligned(vgetq_lane_u32::<2>(words));
                    }
                }
            } else {
                let mut all = [0_i8; 16];
                vst1q_s8(all.as_mut_ptr(), bytes);
                to.cast::<i8>().copy_from_nonoverlapping(all.as_ptr(), (REGISTERS - 1) * 4 + last);
            }
        }
    }
}

/// Sums of 4 channels, two for each: those of channels 0 and 1, then 2 and 3.
#[derive(Clone, Copy)]
pub(crate) struct Widened([int32x4_t; 2]);

#[inline(always)]
unsafe fn real(sum: int32x4_t, scale: *const f32) -> float32x4_t {
    // SAFETY: above.
    unsafe { vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(scale)) }
}

impl Dots for Widened {
    const WIDTH: usize = 4;
    type Real = float32x4_t;
    type Weights = [int8x16_t; 2];
    type Bytes = [int8x16_t; 2];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: above.
        unsafe {
            let (bias, zero) = (vld1q_s32(bias), vdupq_n_s32(0));
            Self([vzip1q_s32(bias, zero), vzip2q_s32(bias, zero)])
        }
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
                options(nomem, nostack, preserves_flags)
            );
        }
        Self([first, second])
    }

    #[inline(always)]
    unsafe fn real(self, scale: *const f32) -> float32x4_t {
        // SAFETY: above.
        unsafe { real(vpaddq_s32(self.0[0], self.0[1]), scale) }
    }

    /// Two pointers' steps load what two copies of lanes would make, after a load.
    #[inline(always)]
    unsafe fn add<const ROWS: usize, const REGISTERS: usize>(
        sums: &mut [[Self; REGISTERS]; ROWS],
        from: *const u8,
        depth: usize,
        mut weights: *const i8,
    ) {
        // SAFETY: above; each pixel is read from its first byte to its last.
        unsafe {
            let mut pixels = [from; ROWS];
            for (row, pixel) in pixels.iter_mut().enumerate() {
                *pixel = from.add(row * depth);
            }
            for _ in 0..depth / (2 * DEPTH) {
                Self::add_eight(sums, &mut pixels, &mut weights);
                Self::add_eight(sums, &mut pixels, &mut weights);
            }
            if depth % (2 * DEPTH) != 0 {
                Self::add_eight(sums, &mut pixels, &mut weights);
            }
        }
    }

    #[inline(always)]
    unsafe fn write<const ROWS: usize, const REGISTERS: usize>(
        sums: &[[Self; REGISTERS]; ROWS],
        scaling: &Scaling,
        to: *mut u8,
        outputs: usize,
        last: usize,
    ) {
        // SAFETY: above.
        unsafe {
            let mut added = [[vdupq_n_s32(0); REGISTERS]; ROWS];
            for (added, sums) in added.iter_mut().zip(sums) {
                for (added, sum) in added.iter_mut().zip(sums) {
                    *added = vpaddq_s32(sum.0[0], sum.0[1]);
                }
            }
            write(added, scaling, to, outputs, last);
        }
    }
}

impl Widened {
    /// Adds the products of the next [`DEPTH`] values of each pixel.
    ///
    /// # Safety
    /// As [`Dots::add`].
    #[inline(always)]
    unsafe fn add_eight<const ROWS: usize, const REGISTERS: usize>(
        sums: &mut [[Self; REGISTERS]; ROWS],
        pixels: &mut [*const u8; ROWS],
        weights: &mut *const i8,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut registers = [[vdupq_n_s8(0); 2]; REGISTERS];
            for register in &mut registers {
                let (first, second): (int8x16_t, int8x16_t);
                core::arch::asm!(
                    "ldp {first:q}, {second:q}, [{weights}], #32",
                    weights = inout(reg) *weights,
                    first = out(vreg) first,
                    second = out(vreg) second,
                    options(readonly, nostack, preserves_flags)
                );
                *register = [first, second];
            }
            for (pixel, sums) in pixels.iter_mut().zip(sums.iter_mut()) {
                let (first, second): (int8x16_t, int8x16_t);
                core::arch::asm!(
                    "ld1r {{{first:v}.4s}}, [{pixel}], #4",
                    "ld1r {{{second:v}.4s}}, [{pixel}], #4",
                    pixel = inout(reg) *pixel,
                    first = out(vreg) first,
                    second = out(vreg) second,
                    options(readonly, nostack, preserves_flags)
                );
                for (sum, weights) in sums.iter_mut().zip(registers) {
                    *sum = sum.dot([first, second], weights);
                }
            }
        }
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
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: above.
        Self(unsafe { vld1q_s32(bias) })
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
    unsafe fn real(self, scale: *const f32) -> float32x4_t {
        // SAFETY: above.
        unsafe { real(self.0, scale) }
    }

    #[inline(always)]
    unsafe fn write<const ROWS: usize, const REGISTERS: usize>(
        sums: &[[Self; REGISTERS]; ROWS],
        scaling: &Scaling,
        to: *mut u8,
        outputs: usize,
        last: usize,
    ) {
        // SAFETY: above.
        unsafe {
            let mut each = [[vdupq_n_s32(0); REGISTERS]; ROWS];
            for (each, sums) in each.iter_mut().zip(sums) {
                for (each, sum) in each.iter_mut().zip(sums) {
                    *each = sum.0;
                }
            }
            write(each, scaling, to, outputs, last);
        }
    }
}
