//! 16 numbers in registers: the arithmetic that the compiler does not turn into good vector instructions by itself.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use crate::lanes::LANES;

/// [`LANES`] numbers.
///
/// # Safety
/// Every function may be called only where the instructions of the implementation are enabled.
pub(crate) trait Register: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(x: &[f32; LANES]) -> Self;
    /// Little-endian floats.
    unsafe fn load_f32(x: &[[u8; 4]; LANES]) -> Self;
    /// Little-endian finite halves.
    unsafe fn load_f16(x: &[[u8; 2]; LANES]) -> Self;
    /// Whole numbers from -128 to 127.
    unsafe fn load_i8(x: &[u8; LANES]) -> Self;
    unsafe fn store(self) -> [f32; LANES];
    /// `self * other + sum`, each rounded.
    unsafe fn times_plus(self, other: Self, sum: Self) -> Self;
    /// `self * c + sum`, fused where there is an instruction for it.
    unsafe fn product_added(self, c: f32, sum: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    /// Where `self` is smaller than `best`: itself there, and the bits of `number` in `chosen`.
    unsafe fn keep_smaller(self, best: &mut Self, chosen: &mut Self, number: u32);
}

impl Register for [f32; LANES] {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(x: &[f32; LANES]) -> Self {
        *x
    }

    #[inline(always)]
    unsafe fn load_f32(x: &[[u8; 4]; LANES]) -> Self {
        x.map(f32::from_le_bytes)
    }

    #[inline(always)]
    unsafe fn load_f16(x: &[[u8; 2]; LANES]) -> Self {
        x.map(from_half)
    }

    #[inline(always)]
    unsafe fn load_i8(x: &[u8; LANES]) -> Self {
        x.map(|x| f32::from(x.cast_signed()))
    }

    #[inline(always)]
    unsafe fn times_plus(self, other: Self, sum: Self) -> Self {
        core::array::from_fn(|lane| self[lane] * other[lane] + sum[lane])
    }

    #[inline(always)]
    unsafe fn store(self) -> [f32; LANES] {
        self
    }

    #[inline(always)]
    unsafe fn product_added(self, c: f32, sum: Self) -> Self {
        core::array::from_fn(|lane| self[lane] * c + sum[lane])
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        core::array::from_fn(|lane| self[lane] - other[lane])
    }

    #[inline(always)]
    unsafe fn keep_smaller(self, best: &mut Self, chosen: &mut Self, number: u32) {
        for lane in 0..LANES {
            let smaller = self[lane] < best[lane];
            best[lane] = if smaller { self[lane] } else { best[lane] };
            chosen[lane] = if smaller { f32::from_bits(number) } else { chosen[lane] };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        __m256, __m512, _CMP_LT_OQ, _mm_loadl_epi64, _mm_loadu_si128, _mm256_add_ps, _mm256_blendv_ps,
        _mm256_cmp_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm256_sub_ps,
        _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_mov_ps, _mm512_mul_ps, _mm512_set1_ps,
        _mm512_storeu_ps, _mm512_sub_ps,
    };

    use super::{LANES, Register};

    // SAFETY (all blocks below): the callers have the instructions enabled; loads and stores are of arrays of 16 numbers.

    impl Register for __m512 {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }

        #[inline(always)]
        unsafe fn load_f32(x: &[[u8; 4]; LANES]) -> Self {
            // SAFETY: as above; x86 is little-endian.
            unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
        }

        #[inline(always)]
        unsafe fn load_f16(x: &[[u8; 2]; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        }

        #[inline(always)]
        unsafe fn load_i8(x: &[u8; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
        }

        #[inline(always)]
        unsafe fn times_plus(self, other: Self, sum: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_add_ps(_mm512_mul_ps(self, other), sum) }
        }

        #[inline(always)]
        unsafe fn store(self) -> [f32; LANES] {
            let mut to = [0.0; LANES];
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self) };
            to
        }

        #[inline(always)]
        unsafe fn product_added(self, c: f32, sum: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(self, _mm512_set1_ps(c), sum) }
        }

        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn keep_smaller(self, best: &mut Self, chosen: &mut Self, number: u32) {
            // SAFETY: as above.
            unsafe {
                let smaller = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, *best);
                *best = _mm512_mask_mov_ps(*best, smaller, self);
                *chosen = _mm512_mask_mov_ps(*chosen, smaller, _mm512_set1_ps(f32::from_bits(number)));
            }
        }
    }

    impl Register for [__m256; 2] {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        unsafe fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }

        #[inline(always)]
        unsafe fn load_f32(x: &[[u8; 4]; LANES]) -> Self {
            // SAFETY: as above; x86 is little-endian.
            unsafe { [_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(8).cast())] }
        }

        #[inline(always)]
        unsafe fn load_f16(x: &[[u8; 2]; LANES]) -> Self {
            // SAFETY: as above.
            unsafe {
                let half = |i: usize| _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(i).cast()));
                [half(0), half(8)]
            }
        }

        #[inline(always)]
        unsafe fn load_i8(x: &[u8; LANES]) -> Self {
            // SAFETY: as above.
            unsafe {
                let half = |i: usize| {
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(i).cast())))
                };
                [half(0), half(8)]
            }
        }

        #[inline(always)]
        unsafe fn times_plus(self, other: Self, sum: Self) -> Self {
            // SAFETY: as above.
            unsafe { core::array::from_fn(|i| _mm256_add_ps(_mm256_mul_ps(self[i], other[i]), sum[i])) }
        }

        #[inline(always)]
        unsafe fn store(self) -> [f32; LANES] {
            let mut to = [0.0; LANES];
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), self[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), self[1]);
            }
            to
        }

        #[inline(always)]
        unsafe fn product_added(self, c: f32, sum: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let c = _mm256_set1_ps(c);
                [_mm256_fmadd_ps(self[0], c, sum[0]), _mm256_fmadd_ps(self[1], c, sum[1])]
            }
        }

        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { [_mm256_sub_ps(self[0], other[0]), _mm256_sub_ps(self[1], other[1])] }
        }

        #[inline(always)]
        unsafe fn keep_smaller(self, best: &mut Self, chosen: &mut Self, number: u32) {
            // SAFETY: as above.
            unsafe {
                let number = _mm256_set1_ps(f32::from_bits(number));
                for half in 0..2 {
                    let smaller = _mm256_cmp_ps::<_CMP_LT_OQ>(self[half], best[half]);
                    best[half] = _mm256_blendv_ps(best[half], self[half], smaller);
                    chosen[half] = _mm256_blendv_ps(chosen[half], number, smaller);
                }
            }
        }
    }
}

/// The value of a half, for all that are finite: its exponent and fraction, moved to where they belong in f32, differ from it by
/// a power of two, also where it is subnormal.
#[inline(always)]
pub(crate) fn from_half(bytes: [u8; 2]) -> f32 {
    // 2^(127 - 15)
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let bits = u32::from(u16::from_le_bytes(bytes));
    let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * REBIAS;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}
