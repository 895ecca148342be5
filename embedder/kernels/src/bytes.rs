//! What int8 convolutions are made of, one implementation for each set of instructions.
//!
//! An activation is a byte: `real = step * (byte - zero point)`. Weights are signed bytes, one step an output channel, and never
//! -128. Sums are exact in 32 bits. On ARM, which multiplies signed bytes only, activations lie in memory with their first bit
//! inverted, which makes them signed bytes ([`Isa::flip`]): nobody but the kernels reads them.

#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

use crate::depthwise_i8::Part;
use crate::lanes::Lanes;

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

    unsafe fn zero() -> Self;
    /// From `[2][WIDTH][4]`.
    unsafe fn weights(from: *const i8) -> Self::Weights;
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// Adds the products.
    unsafe fn dot(self, bytes: Self::Bytes, weights: Self::Weights) -> Self;
    /// `(sum + bias) * scale`, of each channel.
    unsafe fn real(self, bias: *const i32, scale: *const f32) -> Self::Real;
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

    unsafe fn zero() -> Self;
    /// The first `count` channels of `ROWS` pixels; nothing else is read.
    unsafe fn column<const ROWS: usize>(pixels: [*const u8; 4], count: usize) -> Self::Column;
    /// Adds the products with weights, `[4][WIDTH]` in the order that [`arrange`](Self::arrange) gives them.
    unsafe fn dot<const ROWS: usize>(self, column: Self::Column, weights: *const i8) -> Self;
    /// Weights `[4][WIDTH]` as `dot` wants them.
    fn arrange(weights: &[i8]) -> Vec<i8>;
    /// The channel of each sum, in the order in which the sums lie.
    fn channel(place: usize) -> usize;
    /// The sums of `PIXELS` neighbours from `x` on, whose windows lie in the image from left to right.
    ///
    /// # Safety
    /// They do.
    #[inline(always)]
    unsafe fn window<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        part: &Part<'_, '_>,
        x: usize,
    ) -> [Self; PIXELS] {
        // SAFETY: the caller's.
        unsafe { part.by_columns::<Self, HEIGHT, WIDTH, STRIDE, PIXELS>(x) }
    }

    /// The sums of `PIXELS` neighbours from `x` on, whose windows may look over the edges, and which may lie beyond the row; `None` where
    /// that must be done pixel by pixel.
    #[inline(always)]
    unsafe fn at_edge<const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        _part: &Part<'_, '_>,
        _x: usize,
    ) -> Option<[Self; PIXELS]> {
        None
    }

    /// Writes `(sum + bias) * scale` in the order of the sums, `[WIDTH]`, as are bias and scale.
    unsafe fn reals(self, bias: *const i32, scale: *const f32, to: *mut f32);
    /// Writes the same within `low..=high`, rounded and with `zero` added, as bytes, for the first `count` channels.
    unsafe fn bytes(self, scaling: &Scaling, to: *mut u8, count: usize);
}

/// From sums to bytes.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    pub(crate) bias: *const i32,
    pub(crate) scale: *const f32,
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) zero: i32,
}
