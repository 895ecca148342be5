//! Convolutions of each channel by itself, channels last.
//!
//! A register holds as many channels. Rows of the output are computed channels by channels, some pixels at a time: these share
//! the weights and most of the values that they look at. Where a window looks over an edge, only the part in the image counts.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use alloc::vec::Vec;
#[cfg(target_arch = "aarch64")]
use core::arch::aarch64::float32x4_t;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{__m256, __m512};
use core::ops::Range;

#[cfg(target_arch = "aarch64")]
use crate::lanes::Pair;
use crate::lanes::{Lanes, Plain};
use crate::shape::{Line, flat, flat_mut, for_window, lines_f32, values};
use crate::{Clamp, Damaged, Isa, Reader, Window, Writer};

/// A convolution of `f32` of each channel by itself, its weights packed for one set of instructions.
#[derive(Debug, Clone)]
pub struct Depthwise {
    isa: Isa,
    channels: usize,
    window: Window,
    clamp: Clamp,
    /// For each register of channels its bias, then a register for each pixel of the kernel.
    weights: Vec<Line<f32, 16>>,
}

impl Depthwise {
    /// Packs weights `[channels, kernel height, kernel width]` and a bias `[channels]`.
    ///
    /// # Panics
    /// Where their lengths are not those that the shape says.
    pub fn new(
        isa: Isa,
        channels: usize,
        window: Window,
        (weights, bias): (&[f32], Option<&[f32]>),
        clamp: Clamp,
    ) -> Self {
        let taps = window.kernel[0] * window.kernel[1];
        assert_eq!(weights.len(), channels * taps, "weights for every channel and pixel of the kernel");
        assert!(bias.is_none_or(|bias| bias.len() == channels), "a bias for each channel");
        let isa = isa.or_portable();
        let width = isa.width();
        let mut packed = lines_f32(packed_len(isa, channels, taps));
        let values = flat_mut(&mut packed);
        for channel in 0..channels {
            let at = channel / width * (taps + 1) * width + channel % width;
            values[at] = bias.map_or(0.0, |bias| bias[channel]);
            for tap in 0..taps {
                values[at + (tap + 1) * width] = weights[channel * taps + tap];
            }
        }
        Self { isa, channels, window, clamp, weights: packed }
    }

    /// Puts it with its weights as they are packed.
    pub fn write(&self, to: &mut Writer) {
        to.isa(self.isa);
        to.count(self.channels);
        to.window(&self.window);
        to.clamp(self.clamp);
        to.lines(&self.weights);
    }

    /// What [`write`](Self::write) put.
    ///
    /// # Errors
    /// Something else, or for another processor.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (isa, channels, window) = (from.isa()?, from.count()?, from.window()?);
        let clamp = from.clamp()?;
        let [height, width] = window.kernel;
        from.holds(&[channels, height, width], 4)?;
        let weights = from.lines(packed_len(isa, channels, height * width))?;
        Ok(Self { isa, channels, window, clamp, weights })
    }

    /// Number of channels.
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// Where it looks.
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// Convolves one image `[height, width, channels]` into `output`, `[height, width, channels]` of its own size.
    ///
    /// # Panics
    /// Where a slice has another length than the shape says, or the kernel does not fit.
    pub fn run(&self, image: [usize; 2], input: &[f32], output: &mut [f32]) {
        self.run_rows(0..self.window.rows(image), image, input, output);
    }

    /// The same, of these rows of the output alone: `output` is the rows, `input` the whole image.
    ///
    /// # Panics
    /// As [`run`](Self::run), or where the output has no such rows.
    pub fn run_rows(&self, of: Range<usize>, image: [usize; 2], input: &[f32], output: &mut [f32]) {
        let size = self.window.output_rows(image, &of);
        assert_eq!(input.len(), values(image, self.channels), "an input of the shape");
        assert_eq!(output.len(), values([of.len(), size[1]], self.channels), "an output of the shape");
        let line = size[1] * self.channels;
        for (y, output) in of.zip(output.chunks_exact_mut(line)) {
            let (rows, top) = self.window.part(0, image[0], y);
            let row = Row { input, image, top, rows, output };
            // SAFETY: `isa` is what this processor has; the input has the shape `image`, the output is a row of its own, and
            // the window's rows lie in the image.
            unsafe {
                match self.isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => for_window!(self.window, avx512, self, row),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => for_window!(self.window, avx2, self, row),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon | Isa::NeonDot => for_window!(self.window, neon, self, row),
                    _ => for_window!(self.window, portable, self, row),
                }
            }
        }
    }
}

/// Weights and biases with what fills registers up.
const fn packed_len(isa: Isa, channels: usize, taps: usize) -> usize {
    channels.next_multiple_of(isa.width()) * (taps + 1)
}

/// A row of the output, and what it looks at.
struct Row<'a> {
    input: &'a [f32],
    image: [usize; 2],
    /// The first row of the image that it looks at.
    top: usize,
    /// Rows of the kernel that lie in the image.
    rows: Range<usize>,
    output: &'a mut [f32],
}

/// # Safety
/// As [`convolve`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    row: Row<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { convolve::<__m512, WIDTH, STRIDE>(depthwise, row) }
}

/// # Safety
/// As [`convolve`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    row: Row<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { convolve::<__m256, WIDTH, STRIDE>(depthwise, row) }
}

/// # Safety
/// As [`convolve`].
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
#[inline(never)]
unsafe fn neon<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    row: Row<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { convolve::<Pair<float32x4_t>, WIDTH, STRIDE>(depthwise, row) }
}

/// # Safety
/// As [`convolve`].
unsafe fn portable<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    row: Row<'_>,
) {
    // SAFETY: the caller's.
    unsafe { convolve::<Plain, WIDTH, STRIDE>(depthwise, row) }
}

/// Pixels that share weights, in a row whose windows are `WIDTH` wide and `STRIDE` apart.
const PIXELS: usize = 8;

/// A row, for a kernel `WIDTH` pixels wide and a stride to the right; 0 stands for any.
///
/// # Safety
/// The input has the shape that the row says, the output is as wide as the window makes of it, and rows of the kernel lie in the
/// image; the processor has the instructions of `L`, which the function that this is inlined into enables.
#[inline(always)]
unsafe fn convolve<L: Lanes, const WIDTH: usize, const STRIDE: usize>(depthwise: &Depthwise, row: Row<'_>) {
    let channels = depthwise.channels;
    let pixels = row.output.len() / channels;
    let inside = depthwise.window.inside(1, row.image[1], pixels);
    let inside = if WIDTH == 0 { 0..0 } else { inside };
    let output = row.output.as_mut_ptr();
    for channel in (0..channels).step_by(L::WIDTH) {
        let part = Part::<L>::new(depthwise, &row, channel);
        // SAFETY: windows `inside` lie in the image as a whole, the others are cut; channels are those of the part.
        unsafe {
            for x in (0..inside.start).chain(inside.end..pixels) {
                part.cut(x, output);
            }
            let mut x = inside.start;
            while x + PIXELS <= inside.end {
                part.whole::<WIDTH, STRIDE, PIXELS>(x, output);
                x += PIXELS;
            }
            if x + 4 <= inside.end {
                part.whole::<WIDTH, STRIDE, 4>(x, output);
                x += 4;
            }
            if x + 2 <= inside.end {
                part.whole::<WIDTH, STRIDE, 2>(x, output);
                x += 2;
            }
            if x < inside.end {
                part.whole::<WIDTH, STRIDE, 1>(x, output);
            }
        }
    }
}

/// A register of channels of a row.
struct Part<'a, L> {
    window: &'a Window,
    channels: usize,
    image_width: usize,
    /// Rows of the kernel that lie in the image.
    rows: Range<usize>,
    /// The first of these channels, at the left of the first row of the image that is looked at.
    input: *const f32,
    weights: *const f32,
    channel: usize,
    /// How many channels there are: a register's, or fewer at the end.
    count: usize,
    clamp: Clamp,
    lanes: core::marker::PhantomData<L>,
}

impl<'a, L: Lanes> Part<'a, L> {
    #[inline(always)]
    fn new(depthwise: &'a Depthwise, row: &Row<'_>, channel: usize) -> Self {
        let window = &depthwise.window;
        let taps = window.kernel[0] * window.kernel[1];
        let channels = depthwise.channels;
        Self {
            window,
            channels,
            image_width: row.image[1],
            rows: row.rows.clone(),
            // A window without any row in the image reads nothing.
            input: row.input.as_ptr().wrapping_add(row.top * row.image[1] * channels + channel),
            weights: flat(&depthwise.weights)[channel * (taps + 1)..].as_ptr(),
            channel,
            count: (channels - channel).min(L::WIDTH),
            clamp: depthwise.clamp,
            lanes: core::marker::PhantomData,
        }
    }

    /// Pixels `x..x + PIXELS`, whose windows lie in the image from left to right.
    ///
    /// # Safety
    /// They do; the processor has the instructions of `L`, and `output` is a whole row.
    #[inline(always)]
    unsafe fn whole<const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        &self,
        x: usize,
        output: *mut f32,
    ) {
        // SAFETY: the caller's, for every line; at the last channels only those that there are.
        unsafe {
            let mut sums = [L::load(self.weights); PIXELS];
            let left = x * STRIDE - self.window.before[1];
            for (line, y) in self.rows.clone().enumerate() {
                let from = self.input.add((line * self.image_width + left) * self.channels);
                let weights = self.weights.add((1 + y * WIDTH) * L::WIDTH);
                let mut row = [L::splat(0.0); WIDTH];
                for (tap, weight) in row.iter_mut().enumerate() {
                    *weight = L::load(weights.add(tap * L::WIDTH));
                }
                for (pixel, sum) in sums.iter_mut().enumerate() {
                    for (tap, weight) in row.iter().enumerate() {
                        let from = from.add((pixel * STRIDE + tap) * self.channels);
                        *sum = sum.mul_add(self.load(from), *weight);
                    }
                }
            }
            for (pixel, sum) in sums.into_iter().enumerate() {
                self.store(sum, x + pixel, output);
            }
        }
    }

    /// Pixel `x`, whose window may look over an edge.
    ///
    /// # Safety
    /// The processor has the instructions of `L`, and `output` is a whole row.
    #[inline(always)]
    unsafe fn cut(&self, x: usize, output: *mut f32) {
        let (columns, left) = self.window.part(1, self.image_width, x);
        let width = self.window.kernel[1];
        // SAFETY: the part of the window that lies in the image is read; at the last channels only those that there are.
        unsafe {
            let mut sum = L::load(self.weights);
            for (line, y) in self.rows.clone().enumerate() {
                for (column, tap) in columns.clone().enumerate() {
                    let from = self.input.add((line * self.image_width + left + column) * self.channels);
                    let weight = L::load(self.weights.add((1 + y * width + tap) * L::WIDTH));
                    sum = sum.mul_add(self.load(from), weight);
                }
            }
            self.store(sum, x, output);
        }
    }

    /// # Safety
    /// These channels can be read from `from` on.
    #[inline(always)]
    unsafe fn load(&self, from: *const f32) -> L {
        // SAFETY: the caller's.
        unsafe { if self.count == L::WIDTH { L::load(from) } else { L::load_first(from, self.count) } }
    }

    /// # Safety
    /// Pixel `x` lies in the row `output`.
    #[inline(always)]
    unsafe fn store(&self, sum: L, x: usize, output: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            let sum = sum.clamp(L::splat(self.clamp.low), L::splat(self.clamp.high));
            let to = output.add(x * self.channels + self.channel);
            if self.count == L::WIDTH { sum.store(to) } else { sum.store_first(to, self.count) }
        }
    }
}
