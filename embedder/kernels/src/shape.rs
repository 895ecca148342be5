//! Where a window of a convolution looks.

use alloc::vec;
use alloc::vec::Vec;

/// Windows over an image: a kernel of `kernel` pixels, moved by `stride`, over an image with `pads` around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    /// Height and width of the kernel, in pixels.
    pub kernel: [usize; 2],
    /// Steps down and right, in pixels.
    pub stride: [usize; 2],
    /// Zeros above and left of the image.
    pub before: [usize; 2],
    /// Zeros below and right of it.
    pub after: [usize; 2],
}

impl Window {
    /// One pixel at a time.
    pub const POINT: Self = Self { kernel: [1, 1], stride: [1, 1], before: [0, 0], after: [0, 0] };

    /// Height and width of the output; `None` where the kernel does not fit into the image, or a number is nonsense.
    pub fn output(&self, image: [usize; 2]) -> Option<[usize; 2]> {
        let side = |axis: usize| {
            let padded = image[axis].checked_add(self.before[axis])?.checked_add(self.after[axis])?;
            let sane = self.kernel[axis] > 0 && self.stride[axis] > 0 && image[axis] > 0;
            Some(padded.checked_sub(self.kernel[axis]).filter(|_| sane)? / self.stride[axis] + 1)
        };
        Some([side(0)?, side(1)?])
    }

    /// Rows of the output.
    ///
    /// # Panics
    /// Where the kernel does not fit.
    pub(crate) fn rows(&self, image: [usize; 2]) -> usize {
        self.output(image).expect("the kernel fits into the image")[0]
    }

    /// Height and width of the output.
    ///
    /// # Panics
    /// Where the kernel does not fit, or there are no such rows.
    pub(crate) fn output_rows(&self, image: [usize; 2], rows: &core::ops::Range<usize>) -> [usize; 2] {
        let size = self.output(image).expect("the kernel fits into the image");
        assert!(rows.start <= rows.end && rows.end <= size[0], "rows of the output");
        size
    }

    /// Of the output along `axis` (0 down, 1 right): the places whose windows lie in the image as a whole.
    pub(crate) fn inside(&self, axis: usize, image: usize, output: usize) -> core::ops::Range<usize> {
        let from = self.before[axis].div_ceil(self.stride[axis]).min(output);
        let fits = (image + self.before[axis]).checked_sub(self.kernel[axis]);
        let to = fits.map_or(0, |room| room / self.stride[axis] + 1).min(output);
        from..to.max(from)
    }

    /// For the window at `place` along `axis`: which part of the kernel lies in the image, and on which pixel it begins.
    pub(crate) fn part(&self, axis: usize, image: usize, place: usize) -> (core::ops::Range<usize>, usize) {
        let at = place * self.stride[axis];
        let first = self.before[axis].saturating_sub(at).min(self.kernel[axis]);
        let end = (image + self.before[axis]).saturating_sub(at).min(self.kernel[axis]);
        (first..end.max(first), (at + first).saturating_sub(self.before[axis]).min(image))
    }
}

/// Values in an image of so many channels.
///
/// # Panics
/// Where no memory holds them.
pub(crate) fn values(image: [usize; 2], channels: usize) -> usize {
    let product = image[0].checked_mul(image[1]).and_then(|pixels| pixels.checked_mul(channels));
    product.expect("an image that memory holds")
}

/// What an output may be: `low..=high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamp {
    /// The least value.
    pub low: f32,
    /// The greatest.
    pub high: f32,
}

impl Clamp {
    /// Any value.
    pub const NONE: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// What both allow, `self` first.
    pub fn then(self, other: Self) -> Self {
        let within = |x: f32| x.max(other.low).min(other.high);
        Self { low: within(self.low), high: within(self.high) }
    }
}

/// Memory of one register's width, so that no load of weights crosses a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line<T, const N: usize>(pub(crate) [T; N]);

/// `count` zeros, or a few more.
pub(crate) fn lines_f32(count: usize) -> Vec<Line<f32, 16>> {
    vec![Line([0.0; 16]); count.div_ceil(16)]
}

/// As a flat slice.
pub(crate) fn flat<T, const N: usize>(lines: &[Line<T, N>]) -> &[T] {
    const { assert!(N * size_of::<T>() == 64) };
    // SAFETY: a line is an array of 64 bytes at a boundary of 64, so that lines follow one another without gaps.
    unsafe { core::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * N) }
}

/// As a flat slice.
pub(crate) fn flat_mut<T, const N: usize>(lines: &mut [Line<T, N>]) -> &mut [T] {
    const { assert!(N * size_of::<T>() == 64) };
    // SAFETY: as in `flat`.
    unsafe { core::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * N) }
}

/// Calls a function that is generic over height, width and stride to the right of square windows with those of a window that has
/// kernels of its own, and with 0 for any other.
macro_rules! for_window {
    ($window:expr, $run:ident, $($argument:expr),*) => {
        match ($window.kernel, $window.stride[1]) {
            ([3, 3], 1) => $run::<3, 3, 1>($($argument),*),
            ([3, 3], 2) => $run::<3, 3, 2>($($argument),*),
            ([5, 5], 1) => $run::<5, 5, 1>($($argument),*),
            ([5, 5], 2) => $run::<5, 5, 2>($($argument),*),
            _ => $run::<0, 0, 0>($($argument),*),
        }
    };
}
pub(crate) use for_window;
