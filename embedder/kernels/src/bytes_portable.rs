//! Without any instructions of their own: the twins that the others are tested against.

#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

use crate::bytes::{Columns, DEPTH, Dots, Reals, Scaling};
use crate::lanes::{Lanes as _, Plain};
use alloc::vec::Vec;

/// The next whole number, ties to even.
fn ties_to_even(value: f32) -> f32 {
    #[cfg(not(target_os = "none"))]
    return value.round_ties_even();
    #[cfg(target_os = "none")]
    return libm::rintf(value);
}

/// Sums of eight channels.
#[derive(Clone, Copy)]
pub(crate) struct Sums([i32; 8]);

impl Reals for Plain {
    #[inline(always)]
    unsafe fn round(self, zero: i32, to: *mut u8, count: usize) {
        let mut values = [0.0; 8];
        // SAFETY: eight values.
        unsafe { self.store(values.as_mut_ptr()) };
        for (lane, value) in values.into_iter().enumerate().take(count) {
            // SAFETY: the caller's pointer is valid for `count` bytes.
            unsafe { *to.add(lane) = (ties_to_even(value) as i32 + zero) as u8 };
        }
    }
}

impl Dots for Sums {
    const WIDTH: usize = 8;
    type Real = Plain;
    type Weights = [i8; 8 * DEPTH];
    type Bytes = [u8; DEPTH];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: the caller's pointer is valid for eight values.
        Self(unsafe { bias.cast::<[i32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::Weights {
        // SAFETY: the caller's pointer is valid for as many.
        unsafe { from.cast::<Self::Weights>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: the caller's pointer is valid for as many.
        unsafe { from.cast::<Self::Bytes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dot(mut self, bytes: Self::Bytes, weights: Self::Weights) -> Self {
        for (place, byte) in bytes.into_iter().enumerate() {
            for (channel, sum) in self.0.iter_mut().enumerate() {
                let weight = weights[place / 4 * 32 + channel * 4 + place % 4];
                *sum = sum.wrapping_add(i32::from(byte) * i32::from(weight));
            }
        }
        self
    }

    #[inline(always)]
    unsafe fn real(self, scale: *const f32) -> Plain {
        // SAFETY: the caller's pointer is valid for eight values.
        let scale = unsafe { scale.cast::<[f32; 8]>().read() };
        let reals: [f32; 8] = core::array::from_fn(|lane| self.0[lane] as f32 * scale[lane]);
        // SAFETY: eight values.
        unsafe { Plain::load(reals.as_ptr()) }
    }
}

impl Columns for Sums {
    const WIDTH: usize = 8;
    type Column = [[u8; 8]; 4];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: the caller's pointer is valid for eight values.
        Self(unsafe { bias.cast::<[i32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn column<const ROWS: usize>(pixels: [*const u8; 4], count: usize) -> Self::Column {
        let mut column = [[0; 8]; 4];
        for (row, pixel) in column.iter_mut().zip(pixels).take(ROWS) {
            for (channel, byte) in row.iter_mut().enumerate().take(count) {
                // SAFETY: the caller's pointers are valid for `count` bytes.
                *byte = unsafe { *pixel.add(channel) };
            }
        }
        column
    }

    #[inline(always)]
    unsafe fn dot<const ROWS: usize>(mut self, column: Self::Column, weights: *const i8) -> Self {
        for (row, bytes) in column.iter().enumerate().take(ROWS) {
            for (channel, sum) in self.0.iter_mut().enumerate() {
                // SAFETY: the caller's pointer is valid for four rows of eight.
                let weight = unsafe { *weights.add(row * 8 + channel) };
                *sum = sum.wrapping_add(i32::from(bytes[channel]) * i32::from(weight));
            }
        }
        self
    }

    fn arrange(weights: &[i8]) -> Vec<i8> {
        weights.to_vec()
    }

    fn channel(place: usize) -> usize {
        place
    }

    #[inline(always)]
    unsafe fn reals(self, scale: *const f32, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { self.real(scale).store(to) };
    }

    #[inline(always)]
    unsafe fn bytes(self, scaling: &Scaling, to: *mut u8, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            let real = self.real(scaling.scale);
            real.clamp(Plain::splat(scaling.low), Plain::splat(scaling.high)).round(scaling.zero, to, count);
        }
    }
}
