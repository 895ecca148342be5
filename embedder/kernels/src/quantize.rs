//! Real numbers to bytes.

use alloc::vec;
#[cfg(target_arch = "aarch64")]
use core::arch::aarch64::float32x4_t;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{__m256, __m512};

use crate::bytes::{Reals, Rounding};
use crate::lanes::Plain;
use crate::{Isa, Layout};

/// Bytes of an image, channels last, from real numbers in any layout: `round(real / step) + zero point`, ties to even.
///
/// # Panics
/// Where a slice has another length than `pixels` times `channels`.
pub fn quantize(
    isa: Isa,
    rounding: Rounding,
    (layout, channels): (Layout, usize),
    real: &[f32],
    bytes: &mut [u8],
) {
    assert!(
        real.len() == bytes.len() && channels > 0 && real.len().is_multiple_of(channels),
        "as many bytes as numbers"
    );
    let isa = isa.or_portable();
    if layout == Layout::ChannelsLast || channels == 1 {
        return round_all(isa, rounding, real, bytes);
    }
    let pixels = real.len() / channels;
    let mut plane = vec![0; pixels];
    for (channel, real) in real.chunks_exact(pixels.max(1)).enumerate() {
        round_all(isa, rounding, real, &mut plane);
        for (pixel, byte) in bytes.chunks_exact_mut(channels).zip(&plane) {
            pixel[channel] = *byte;
        }
    }
}

fn round_all(isa: Isa, rounding: Rounding, real: &[f32], bytes: &mut [u8]) {
    // SAFETY: `isa` is what this processor has.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(rounding, real, bytes),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(rounding, real, bytes),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => neon(rounding, real, bytes),
            _ => round_each::<Plain>(rounding, 0, real, bytes),
        }
    }
}

/// # Safety
/// As [`round_each`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512(rounding: Rounding, real: &[f32], bytes: &mut [u8]) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { round_each::<__m512>(rounding, 0, real, bytes) };
}

/// # Safety
/// As [`round_each`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(rounding: Rounding, real: &[f32], bytes: &mut [u8]) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { round_each::<__m256>(rounding, 0, real, bytes) };
}

/// # Safety
/// As [`round_each`].
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(rounding: Rounding, real: &[f32], bytes: &mut [u8]) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { round_each::<float32x4_t>(rounding, 128, real, bytes) };
}

/// # Safety
/// The processor has the instructions of `R`, which the function that this is inlined into enables.
#[expect(clippy::inline_always, reason = "it must end up inside the functions that enable instructions")]
#[inline(always)]
unsafe fn round_each<R: Reals>(rounding: Rounding, flip: i32, real: &[f32], bytes: &mut [u8]) {
    let zero = i32::from(rounding.zero_point);
    let count = real.len().min(bytes.len());
    // SAFETY: the caller's; of the last register only as many values as there are are read and written.
    unsafe {
        let (step, least, most) =
            (R::splat(rounding.step), R::splat(-zero as f32), R::splat((255 - zero) as f32));
        for at in (0..count).step_by(R::WIDTH) {
            let (from, to) = (real.as_ptr().add(at), bytes.as_mut_ptr().add(at));
            let left = (count - at).min(R::WIDTH);
            let values = if left == R::WIDTH { R::load(from) } else { R::load_first(from, left) };
            values.div(step).clamp(least, most).round(zero - flip, to, left);
        }
    }
}
