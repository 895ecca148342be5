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
    /// The first `count <= WIDTH` values: nothing beyond is written.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    unsafe fn add(self, other: Self) -> Self;
    /// `self + a * b`; whether it is rounded once or twice is the processor's.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
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
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        self.map(|lane, x| x + a.0[lane] * b.0[lane])
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.map(|lane, x| x / other.0[lane])
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
        _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps,
        _mm512_storeu_ps,
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
        unsafe fn clamp(self, low: Self, high: Self) -> Self {
            // SAFETY: above.
            unsafe { _mm512_min_ps(high, _mm512_max_ps(low, self)) }
        }
    }
}
