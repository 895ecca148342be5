//! x86-64: AVX-512 with VNNI, and AVX2.
//!
//! VNNI multiplies unsigned with signed bytes and adds four products at once. AVX2 has that for two, but in sums of 16 bits that
//! saturate; so bytes become 16 bits there, which costs half of the speed and keeps every bit.
//!
//! Loops, never closures, around intrinsics: a closure has no instructions enabled, and the compiler then often leaves a call to it.

#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics, whose names say where they are from; not reported in tests"
)]
use alloc::vec::Vec;
use core::arch::x86_64::*;

use crate::bytes::{Columns, Dots, Reals, Scaling};
use crate::lanes::Lanes;

// SAFETY of all that follows: the caller's function enables the instructions, and its pointers are valid for what is read and
// written.

impl Reals for __m512 {
    #[inline(always)]
    unsafe fn round(self, zero: i32, to: *mut u8, count: usize) {
        // SAFETY: above; masked bytes are not touched.
        unsafe {
            let rounded = _mm512_add_epi32(_mm512_cvtps_epi32(self), _mm512_set1_epi32(zero));
            if count >= 16 {
                _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(rounded));
            } else {
                _mm512_mask_cvtepi32_storeu_epi8(to.cast(), first(count) as __mmask16, rounded);
            }
        }
    }
}

/// Sums of 16 channels.
#[derive(Clone, Copy)]
pub(crate) struct Wide(__m512i);

impl Dots for Wide {
    const WIDTH: usize = 16;
    type Real = __m512;
    type Weights = [__m512i; 2];
    type Bytes = [__m512i; 2];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_loadu_si512(bias.cast()) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::Weights {
        // SAFETY: above.
        unsafe { [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())] }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: above.
        unsafe { [_mm512_set1_epi32(four(from)), _mm512_set1_epi32(four(from.add(4)))] }
    }

    #[inline(always)]
    unsafe fn dot(self, bytes: Self::Bytes, weights: Self::Weights) -> Self {
        // SAFETY: above.
        unsafe {
            let sum = _mm512_dpbusd_epi32(self.0, bytes[0], weights[0]);
            Self(_mm512_dpbusd_epi32(sum, bytes[1], weights[1]))
        }
    }

    #[inline(always)]
    unsafe fn real(self, scale: *const f32) -> __m512 {
        // SAFETY: above.
        unsafe { _mm512_mul_ps(_mm512_cvtepi32_ps(self.0), _mm512_loadu_ps(scale)) }
    }
}

/// Four bytes as they lie.
#[inline(always)]
unsafe fn four(from: *const u8) -> i32 {
    // SAFETY: the caller's pointer is valid for four bytes.
    i32::from_ne_bytes(unsafe { from.cast::<[u8; 4]>().read() })
}

/// The first `count` of up to 64.
#[inline(always)]
const fn first(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Sums of 64 channels: the first register has channels 0 to 3 of each 16, the next 4 to 7, as unpacking leaves them.
#[derive(Clone, Copy)]
pub(crate) struct WideColumns([__m512i; 4]);

impl Columns for WideColumns {
    const WIDTH: usize = 64;
    type Column = [__m512i; 4];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: above.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); 4];
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_si512(bias.add(part * 16).cast());
            }
            Self(sums)
        }
    }

    #[inline(always)]
    unsafe fn column<const ROWS: usize>(pixels: [*const u8; 4], count: usize) -> Self::Column {
        // SAFETY: above; masked bytes are not touched.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 4];
            for (row, pixel) in rows.iter_mut().zip(pixels).take(ROWS) {
                *row = if count >= 64 {
                    _mm512_loadu_si512(pixel.cast())
                } else {
                    _mm512_maskz_loadu_epi8(first(count), pixel.cast())
                };
            }
            let [a, b, c, d] = rows;
            let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (low_2, high_2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(low, low_2),
                _mm512_unpackhi_epi16(low, low_2),
                _mm512_unpacklo_epi16(high, high_2),
                _mm512_unpackhi_epi16(high, high_2),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot<const ROWS: usize>(self, column: Self::Column, weights: *const i8) -> Self {
        let mut sums = self.0;
        for (part, (sum, bytes)) in sums.iter_mut().zip(column).enumerate() {
            // SAFETY: above.
            *sum = unsafe {
                _mm512_dpbusd_epi32(*sum, bytes, _mm512_loadu_si512(weights.add(part * 64).cast()))
            };
        }
        Self(sums)
    }

    fn arrange(weights: &[i8]) -> Vec<i8> {
        (0..256).map(|place| weights[place % 4 * 64 + Self::channel(place / 4)]).collect()
    }

    fn channel(place: usize) -> usize {
        let (part, lane) = (place / 16, place % 16);
        lane / 4 * 16 + part * 4 + lane % 4
    }

    #[inline(always)]
    unsafe fn reals(self, scale: *const f32, to: *mut f32) {
        for part in 0..4 {
            // SAFETY: above.
            unsafe { _mm512_storeu_ps(to.add(part * 16), Wide(self.0[part]).real(scale.add(part * 16))) };
        }
    }

    #[inline(always)]
    unsafe fn bytes(self, scaling: &Scaling, to: *mut u8, count: usize) {
        // SAFETY: above; masked bytes are not touched.
        unsafe {
            let (low, high) = (_mm512_set1_ps(scaling.low), _mm512_set1_ps(scaling.high));
            let zero = _mm512_set1_epi32(scaling.zero);
            let mut part = self.0;
            for (place, sum) in part.iter_mut().enumerate() {
                let real = Wide(*sum).real(scaling.scale.add(place * 16)).clamp(low, high);
                *sum = _mm512_add_epi32(_mm512_cvtps_epi32(real), zero);
            }
            let packed = _mm512_packus_epi16(
                _mm512_packs_epi32(part[0], part[1]),
                _mm512_packs_epi32(part[2], part[3]),
            );
            if count >= 64 {
                _mm512_storeu_si512(to.cast(), packed);
            } else {
                _mm512_mask_storeu_epi8(to.cast(), first(count), packed);
            }
        }
    }
}

impl Reals for __m256 {
    #[inline(always)]
    unsafe fn round(self, zero: i32, to: *mut u8, count: usize) {
        // SAFETY: above; a register's bytes are copied only as far as they are wanted.
        unsafe {
            // What is no number becomes 0 as it does elsewhere.
            let number = _mm256_and_ps(self, _mm256_cmp_ps::<_CMP_ORD_Q>(self, self));
            let rounded = _mm256_add_epi32(_mm256_cvtps_epi32(number), _mm256_set1_epi32(zero));
            let halves =
                _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
            let bytes = _mm_packus_epi16(halves, halves);
            if count >= 8 {
                _mm_storel_epi64(to.cast(), bytes);
            } else {
                let mut eight = [0_u8; 8];
                _mm_storel_epi64(eight.as_mut_ptr().cast(), bytes);
                to.copy_from_nonoverlapping(eight.as_ptr(), count);
            }
        }
    }
}

/// Sums of 8 channels.
#[derive(Clone, Copy)]
pub(crate) struct Half(__m256i);

/// Bytes 0 and 2 of each four as 16 bits, then 1 and 3.
#[inline(always)]
unsafe fn signed_halves(bytes: __m256i) -> [__m256i; 2] {
    // SAFETY: above.
    unsafe { [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)] }
}

#[inline(always)]
unsafe fn unsigned_halves(bytes: __m256i) -> [__m256i; 2] {
    // SAFETY: above.
    unsafe { [_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(bytes)] }
}

impl Dots for Half {
    const WIDTH: usize = 8;
    type Real = __m256;
    type Weights = [[__m256i; 2]; 2];
    type Bytes = [[__m256i; 2]; 2];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm256_loadu_si256(bias.cast()) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::Weights {
        // SAFETY: above.
        unsafe {
            [
                signed_halves(_mm256_loadu_si256(from.cast())),
                signed_halves(_mm256_loadu_si256(from.add(32).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: above.
        unsafe {
            [
                unsigned_halves(_mm256_set1_epi32(four(from))),
                unsigned_halves(_mm256_set1_epi32(four(from.add(4)))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot(self, bytes: Self::Bytes, weights: Self::Weights) -> Self {
        let mut sum = self.0;
        for (bytes, weights) in bytes.as_flattened().iter().zip(weights.as_flattened()) {
            // SAFETY: above.
            sum = unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(*bytes, *weights)) };
        }
        Self(sum)
    }

    #[inline(always)]
    unsafe fn real(self, scale: *const f32) -> __m256 {
        // SAFETY: above.
        unsafe { _mm256_mul_ps(_mm256_cvtepi32_ps(self.0), _mm256_loadu_ps(scale)) }
    }
}

/// Sums of 16 channels: the first register has channels 0 to 3 of each 8.
#[derive(Clone, Copy)]
pub(crate) struct HalfColumns([__m256i; 2]);

impl Columns for HalfColumns {
    const WIDTH: usize = 16;
    /// Two pairs of rows, each for the first and for the second register.
    type Column = [[__m256i; 2]; 2];

    #[inline(always)]
    unsafe fn begin(bias: *const i32) -> Self {
        // SAFETY: above.
        Self(unsafe { [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())] })
    }

    #[inline(always)]
    unsafe fn column<const ROWS: usize>(pixels: [*const u8; 4], count: usize) -> Self::Column {
        // SAFETY: above; of channels at the end only those that there are are copied.
        unsafe {
            let mut rows = [_mm256_setzero_si256(); 4];
            for (row, pixel) in rows.iter_mut().zip(pixels).take(ROWS) {
                let bytes = if count >= 16 {
                    _mm_loadu_si128(pixel.cast())
                } else {
                    let mut all = [0_u8; 16];
                    all.as_mut_ptr().copy_from_nonoverlapping(pixel, count);
                    _mm_loadu_si128(all.as_ptr().cast())
                };
                *row = _mm256_cvtepu8_epi16(bytes);
            }
            let [a, b, c, d] = rows;
            [
                [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)],
                [_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d)],
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot<const ROWS: usize>(self, column: Self::Column, weights: *const i8) -> Self {
        let mut sums = self.0;
        for (pair, halves) in column.iter().enumerate().take(ROWS.div_ceil(2)) {
            for (part, (sum, bytes)) in sums.iter_mut().zip(halves).enumerate() {
                // SAFETY: above.
                unsafe {
                    let weights = _mm_loadu_si128(weights.add((pair * 2 + part) * 16).cast());
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*bytes, _mm256_cvtepi8_epi16(weights)));
                }
            }
        }
        Self(sums)
    }

    fn arrange(weights: &[i8]) -> Vec<i8> {
        let place = |place: usize| {
            let (pair, sum, row) = (place / 32, place % 32 / 2, place % 2);
            weights[(pair * 2 + row) * 16 + Self::channel(sum)]
        };
        (0..64).map(place).collect()
    }

    fn channel(place: usize) -> usize {
        let (part, lane) = (place / 8, place % 8);
        lane / 4 * 8 + part * 4 + lane % 4
    }

    #[inline(always)]
    unsafe fn reals(self, scale: *const f32, to: *mut f32) {
        for part in 0..2 {
            // SAFETY: above.
            unsafe { _mm256_storeu_ps(to.add(part * 8), Half(self.0[part]).real(scale.add(part * 8))) };
        }
    }

    #[inline(always)]
    unsafe fn bytes(self, scaling: &Scaling, to: *mut u8, count: usize) {
        // SAFETY: above; a register's bytes are copied only as far as they are wanted.
        unsafe {
            let (low, high) = (_mm256_set1_ps(scaling.low), _mm256_set1_ps(scaling.high));
            let zero = _mm256_set1_epi32(scaling.zero);
            let mut part = self.0;
            for (place, sum) in part.iter_mut().enumerate() {
                let real = Half(*sum).real(scaling.scale.add(place * 8)).clamp(low, high);
                *sum = _mm256_add_epi32(_mm256_cvtps_epi32(real), zero);
            }
            // Within each half of the register: eight channels in their order.
            let sixteen = _mm256_packs_epi32(part[0], part[1]);
            let bytes =
                _mm_packus_epi16(_mm256_castsi256_si128(sixteen), _mm256_extracti128_si256::<1>(sixteen));
            if count >= 16 {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                let mut all = [0_u8; 16];
                _mm_storeu_si128(all.as_mut_ptr().cast(), bytes);
                to.copy_from_nonoverlapping(all.as_ptr(), count);
            }
        }
    }
}
