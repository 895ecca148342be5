//! What int8 convolutions are made of, one implementation for each set of instructions.
//!
//! An activation is a byte: `real = step * (byte - zero point)`. Weights are signed bytes, one step an output channel, and never
//! -128. Sums are exact in 32 bits. On ARM, which multiplies signed bytes only, activations lie in memory with their first bit
//! inverted, which makes them signed bytes ([`Isa::flip`]): nobody but the kernels reads them.

#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

use crate::Clamp;
use crate::lanes::Lanes;
use alloc::vec::Vec;

/// How sums become activations again: `byte = round(real / step) + zero point`, ties to even, within 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounding {
    /// What one step of the byte stands for.
    pub step: f32,
    /// The byte that stands for zero.
    pub zero_point: u8,
}

/// Sums of 32 bits for [`WIDTH`](Self::WIDTH) output channels, of products with bytes that are the same for all of them.
///
/// # Safety
/// As [`Lanes`]: functions are called only from functions that enable the instructions of the type.
pub(crate) trait Dots: Copy {
    /// Output channels.
    const WIDTH: usize;
    /// The sums as real numbers.
    type Real: Reals;
    /// [`DEPTH`] weights of each channel.
    type Weights: Copy;
    /// [`DEPTH`] bytes of one pixel.
    type Bytes: Copy;

    /// The biases of the channels, which the products are added to.
    unsafe fn begin(bias: *const i32) -> Self;
    /// From `[2][WIDTH][4]`.
    unsafe fn weights(from: *const i8) -> Self::Weights;
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// Adds the products.
    unsafe fn dot(self, bytes: Self::Bytes, weights: Self::Weights) -> Self;
    /// `sum * scale`, of each channel.
    unsafe fn real(self, scale: *const f32) -> Self::Real;

    /// Adds the products of `ROWS` pixels of `depth` bytes, one after the other, with weights `[depth / 8][REGISTERS][2][WIDTH][4]`.
    #[inline(always)]
    unsafe fn add<const ROWS: usize, const REGISTERS: usize>(
        sums: &mut [[Self; REGISTERS]; ROWS],
        from: *const u8,
        depth: usize,
        mut weights: *const i8,
    ) {
        // SAFETY: the caller's.
        unsafe {
            for value in (0..depth).step_by(DEPTH) {
                let row: [Self::Weights; REGISTERS] =
                    core::array::from_fn(|r| Self::weights(weights.add(r * Self::WIDTH * DEPTH)));
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let bytes = Self::bytes(from.add(pixel * depth + value));
                    for (sum, weights) in sums.iter_mut().zip(row) {
                        *sum = sum.dot(bytes, weights);
                    }
                }
                weights = weights.add(REGISTERS * Self::WIDTH * DEPTH);
            }
        }
    }

    /// Writes the sums of `ROWS` pixels, which lie `outputs` bytes apart, as bytes: those of all registers, of the last one's only the first
    /// `last`.
    #[inline(always)]
    unsafe fn write<const ROWS: usize, const REGISTERS: usize>(
        sums: &[[Self; REGISTERS]; ROWS],
        scaling: &Scaling,
        to: *mut u8,
        outputs: usize,
        last: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let (low, high) = (Self::Real::splat(scaling.low), Self::Real::splat(scaling.high));
            // All of them before the first is stored: then scales are read once.
            let mut scaled = [[low; REGISTERS]; ROWS];
            for r in 0..REGISTERS {
                let scale = scaling.scale.add(r * Self::WIDTH);
                for (scaled, sums) in scaled.iter_mut().zip(sums) {
                    scaled[r] = sums[r].real(scale).clamp(low, high);
                }
            }
            for (pixel, scaled) in scaled.into_iter().enumerate() {
                for (r, scaled) in scaled.into_iter().enumerate() {
                    let to = to.add(pixel * outputs + r * Self::WIDTH);
                    if r + 1 < REGISTERS || last == Self::WIDTH {
                        scaled.round(scaling.zero, to, Self::WIDTH);
                    } else {
                        scaled.round(scaling.zero, to, last);
                    }
                }
            }
        }
    }
}

/// Values that [`Dots`] takes at once from each pixel.
pub(crate) const DEPTH: usize = 8;

/// Real numbers that become bytes.
pub(crate) trait Reals: Lanes {
    /// Writes the first `count` values, each rounded and with `zero` added, as bytes. They are within what a byte holds after that.
    unsafe fn round(self, zero: i32, to: *mut u8, count: usize);
}

/// Sums of 32 bits for [`WIDTH`](Self::WIDTH) channels, each of products of its own bytes with its own weights.
///
/// # Safety
/// As [`Dots`].
pub(crate) trait Columns: Copy {
    /// Channels.
    const WIDTH: usize;
    /// Bytes of up to four pixels that stand one above the other.
    type Column: Copy;

    /// The biases of the channels, in the order of the sums, which the products are added to.
    unsafe fn begin(bias: *const i32) -> Self;
    /// The first `count` channels of `ROWS` pixels; nothing else is read.
    unsafe fn column<const ROWS: usize>(pixels: [*const u8; 4], count: usize) -> Self::Column;
    /// Adds the products with weights, `[4][WIDTH]` in the order that [`arrange`](Self::arrange) gives them.
    unsafe fn dot<const ROWS: usize>(self, column: Self::Column, weights: *const i8) -> Self;
    /// Weights `[4][WIDTH]` as `dot` wants them.
    fn arrange(weights: &[i8]) -> Vec<i8>;
    /// The channel of each sum, in the order in which the sums lie.
    fn channel(place: usize) -> usize;
    /// Writes `sum * scale` in the order of the sums, `[WIDTH]`, as are the scales.
    unsafe fn reals(self, scale: *const f32, to: *mut f32);
    /// Writes the same within `low..=high`, rounded and with `zero` added, as bytes, for the first `count` channels.
    unsafe fn bytes(self, scaling: &Scaling, to: *mut u8, count: usize);
}

/// From sums to bytes: `round(clamp(sum * scale)) + zero`.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    pub(crate) scale: *const f32,
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) zero: i32,
}

impl Scaling {
    /// For outputs within `clamp`, of channels whose scales, in steps of the byte, lie there. Both limits at once, in steps: rounding keeps the order, so that a value beyond one gives what the limit itself would.
    pub(crate) fn new(scale: &[f32], clamp: Clamp, rounding: Rounding, flip: i32) -> Self {
        let zero = i32::from(rounding.zero_point);
        let Clamp { low, high } = Clamp { low: clamp.low / rounding.step, high: clamp.high / rounding.step }
            .then(Clamp { low: -zero as f32, high: (255 - zero) as f32 });
        Self { scale: scale.as_ptr(), low, high, zero: zero - flip }
    }
}
