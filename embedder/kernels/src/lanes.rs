//! A register of `f32`, whatever it is called on this processor: kernels are written once over it.
#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

/// A register of `f32`.
///
/// # Safety
/// All functions need the instructions of the implementing type: call them only from a function that enables these, and that
/// only where the processor has them. Pointers are valid for as many values as each says; they need no alignment.
pub(crate) trait Lanes: Copy {
    /// Values in it.
    const WIDTH: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `count <= WIDTH` values, the others 0: nothing beyond is read.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Says that there will be written, so that memory comes near in the meantime. Any pointer will do.
    #[inline(always)]
    unsafe fn will_store(to: *const f32) {
        let _ = to;
    }
    /// The first `count <= WIDTH` values: nothing beyond is written.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self + a * b`; whether it is rounded once or twice is the processor's.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// Values that [`values`](Self::values) reads.
    const VALUES: usize;
    /// Values of the input, to be multiplied one after the other.
    type Values: Copy;
    /// Reads as many.
    unsafe fn values(from: *const f32) -> Self::Values;
    /// `self + values[VALUE] * weights`, as [`mul_add`](Self::mul_add).
    unsafe fn mul_add_value<const VALUE: usize>(self, values: Self::Values, weights: Self) -> Self;
    /// Each value within `low..=high`; what is no number stays so.
    unsafe fn clamp(self, low: Self, high: Self) -> Self;
}

/// Without any instructions of its own.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 8]);

impl Plain {
    #[inline(always)]
    fn map(self, mut each: impl FnMut(usize, f32) -> f32) -> Self {
        Self(core::array::from_fn(|lane| each(lane, self.0[lane])))
    }
}

impl Lanes for Plain {
    const WIDTH: usize = 8;
    const VALUES: usize = 1;
    type Values = Self;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for eight values.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: only the first `count` are read, for which the caller's pointer is valid.
        Self(core::array::from_fn(|lane| if lane < count { unsafe { *from.add(lane) } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for eight values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        for lane in 0..count.min(8) {
            // SAFETY: the caller's pointer is valid for `count` values.
            unsafe { *to.add(lane) = self.0[lane] };
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map(|lane, x| x + other.0[lane])
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.map(|lane, x| x * other.0[lane])
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        self.map(|lane, x| x + a.0[lane] * b.0[lane])
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.map(|lane, x| x / other.0[lane])
    }

    #[inline(always)]
    unsafe fn values(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self::splat(*from) }
    }

    #[inline(always)]
    unsafe fn mul_add_value<const VALUE: usize>(self, values: Self, weights: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { self.mul_add(values, weights) }
    }

    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        self.map(|lane, x| {
            let (low, high) = (low.0[lane], high.0[lane]);
            if x < low {
                low
            } else if x > high {
                high
            } else {
                x
            }
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        __m256, __m256i, __m512, __mmask16, _mm256_add_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps, _mm256_min_ps,
        _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_div_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps,
        _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::Lanes;

    /// Ones, then zeros: eight from `8 - count` on are the mask of the first `count` lanes.
    static ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn first(count: usize) -> __m256i {
        // SAFETY: `count <= 8`, so that eight values from there on lie in the array.
        unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - count.min(8)).cast()) }
    }

    // SAFETY of all that follows: the caller's function enables AVX2 and FMA, or AVX-512F, and its pointers are valid for what
    // is read and written.
    impl Lanes for __m256 {
        const WIDTH: usize = 8;
        const VALUES: usize = 1;
        type Values = Self;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: above.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: above.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            // SAFETY: above; masked lanes are not touched.
            unsafe { _mm256_maskload_ps(from, first(count)) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: above.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn will_store(to: *const f32) {
            // SAFETY: above; a prefetch reads nothing.
            unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(to.cast()) }
        }

        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, count: usize) {
            // SAFETY: above; masked lanes are not touched.
            unsafe { _mm256_maskstore_ps(to, first(count), self) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm256_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm256_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm256_div_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn values(from: *const f32) -> Self {
            // SAFETY: the caller's.
            unsafe { Self::splat(*from) }
        }

        #[inline(always)]
        unsafe fn mul_add_value<const VALUE: usize>(self, values: Self, weights: Self) -> Self {
            // SAFETY: the caller's.
            unsafe { self.mul_add(values, weights) }
        }

        #[inline(always)]
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm256_min_ps(high, _mm256_max_ps(low, self)) }
        }
    }

    #[inline(always)]
    const fn first_16(count: usize) -> __mmask16 {
        ((1_u32 << count) - 1) as __mmask16
    }

    impl Lanes for __m512 {
        const WIDTH: usize = 16;
        const VALUES: usize = 1;
        type Values = Self;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: above.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            // SAFETY: above; masked lanes are not touched.
            unsafe { _mm512_maskz_loadu_ps(first_16(count), from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: above.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, count: usize) {
            // SAFETY: above; masked lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(to, first_16(count), self) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_div_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn values(from: *const f32) -> Self {
            // SAFETY: the caller's.
            unsafe { Self::splat(*from) }
        }

        #[inline(always)]
        unsafe fn mul_add_value<const VALUE: usize>(self, values: Self, weights: Self) -> Self {
            // SAFETY: the caller's.
            unsafe { self.mul_add(values, weights) }
        }

        #[inline(always)]
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_min_ps(high, _mm512_max_ps(low, self)) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Pair;

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::aarch64::{
        float32x4_t, vaddq_f32, vdivq_f32, vdupq_n_f32, vfmaq_f32, vfmaq_laneq_f32, vld1q_f32, vmaxq_f32,
        vminq_f32, vmulq_f32, vst1q_f32,
    };

    use super::Lanes;

    // SAFETY of all that follows: every 64-bit ARM processor has NEON, the caller's function enables it, and its pointers are
    // valid for what is read and written.
    impl Lanes for float32x4_t {
        const WIDTH: usize = 4;
        const VALUES: usize = 4;
        type Values = Self;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: above.
            unsafe { vdupq_n_f32(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: above.
            unsafe { vld1q_f32(from) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            let mut all = [0.0; 4];
            // SAFETY: above; only `count` values are read.
            unsafe {
                all.as_mut_ptr().copy_from_nonoverlapping(from, count.min(4));
                vld1q_f32(all.as_ptr())
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: above.
            unsafe { vst1q_f32(to, self) };
        }

        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, count: usize) {
            let mut all = [0.0; 4];
            // SAFETY: above; only `count` values are written.
            unsafe {
                vst1q_f32(all.as_mut_ptr(), self);
                to.copy_from_nonoverlapping(all.as_ptr(), count.min(4));
            }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { vaddq_f32(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { vmulq_f32(self, other) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            // SAFETY: above.
            unsafe { vfmaq_f32(self, a, b) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { vdivq_f32(self, other) }
        }

        #[inline(always)]
        unsafe fn values(from: *const f32) -> Self {
            // SAFETY: above.
            unsafe { vld1q_f32(from) }
        }

        #[inline(always)]
        unsafe fn mul_add_value<const VALUE: usize>(self, values: Self, weights: Self) -> Self {
            // SAFETY: above.
            unsafe {
                match VALUE {
                    0 => vfmaq_laneq_f32::<0>(self, weights, values),
                    1 => vfmaq_laneq_f32::<1>(self, weights, values),
                    2 => vfmaq_laneq_f32::<2>(self, weights, values),
                    _ => vfmaq_laneq_f32::<3>(self, weights, values),
                }
            }
        }

        #[inline(always)]
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: above.
            unsafe { vminq_f32(vmaxq_f32(self, low), high) }
        }
    }

    /// Two registers, so that panels are as wide as elsewhere.
    #[derive(Clone, Copy)]
    pub(crate) struct Pair<L>(L, L);

    impl<L: Lanes> Lanes for Pair<L> {
        const WIDTH: usize = 2 * L::WIDTH;
        const VALUES: usize = L::VALUES;
        type Values = L::Values;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller's, here and below; the second register has the values after the first's.
            unsafe { Self(L::splat(x), L::splat(x)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: above.
            unsafe { Self(L::load(from), L::load(from.add(L::WIDTH))) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            let first = count.min(L::WIDTH);
            // SAFETY: above.
            unsafe { Self(L::load_first(from, first), L::load_first(from.add(first), count - first)) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: above.
            unsafe {
                self.0.store(to);
                self.1.store(to.add(L::WIDTH));
            }
        }

        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, count: usize) {
            let first = count.min(L::WIDTH);
            // SAFETY: above.
            unsafe {
                self.0.store_first(to, first);
                self.1.store_first(to.add(first), count - first);
            }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { Self(self.0.add(other.0), self.1.add(other.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { Self(self.0.mul(other.0), self.1.mul(other.1)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            // SAFETY: above.
            unsafe { Self(self.0.mul_add(a.0, b.0), self.1.mul_add(a.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: above.
            unsafe { Self(self.0.div(other.0), self.1.div(other.1)) }
        }

        #[inline(always)]
        unsafe fn values(from: *const f32) -> L::Values {
            // SAFETY: above.
            unsafe { L::values(from) }
        }

        #[inline(always)]
        unsafe fn mul_add_value<const VALUE: usize>(self, values: L::Values, weights: Self) -> Self {
            // SAFETY: above.
            unsafe {
                Self(
                    self.0.mul_add_value::<VALUE>(values, weights.0),
                    self.1.mul_add_value::<VALUE>(values, weights.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: above.
            unsafe { Self(self.0.clamp(low.0, high.0), self.1.clamp(low.1, high.1)) }
        }
    }
}
