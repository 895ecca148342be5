//! Convolutions of each channel by itself, channels last.
//!
//! A register holds as many channels. Rows of the output are computed channels by channels, some pixels at a time: these share
//! the weights and most of the values that they look at. Where a window looks over an edge, only the part in the image counts.
//!
//! In small images many windows do. There, what each register of channels looks at is copied first, as a *plane* with zeros
//! around it that stays in the first-level cache: then no window looks over an edge, and neighbours lie beside one another.

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
use crate::lines::Lines;
use crate::shape::{Line, flat_mut, for_window, lines_f32, values};
use crate::{Clamp, Damaged, Isa, Reader, Window, Writer};

/// Bytes of a plane, at most: part of a small first-level cache.
const PLANE_BYTES: usize = 24 << 10;

/// A convolution of `f32` of each channel by itself, its weights packed for one set of instructions.
#[derive(Debug, Clone)]
pub struct Depthwise {
    isa: Isa,
    channels: usize,
    window: Window,
    clamp: Clamp,
    /// For each register of channels its bias, then a register for each pixel of the kernel.
    weights: Lines<f32, 16>,
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
        Self { isa, channels, window, clamp, weights: packed.into() }
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
        let mut plane = self.plane(image, of.len());
        // All rows of a plane; else row by row, while what they have in common is near.
        let together = if plane.is_some() { of.len() } else { 1 };
        let line = size[1] * self.channels;
        for (part, output) in output.chunks_mut((together * line).max(1)).enumerate() {
            let first = of.start + part * together;
            let rows = Rows {
                of: first..first + together,
                image,
                width: size[1],
                input,
                output,
                plane: plane.as_deref_mut(),
            };
            // SAFETY: `isa` is what this processor has; the input has the shape `image`, the output is these rows of its own, and
            // the plane holds what they look at.
            unsafe {
                match self.isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => for_window!(self.window, avx512, self, rows),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => for_window!(self.window, avx2, self, rows),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon | Isa::NeonDot => for_window!(self.window, neon, self, rows),
                    _ => for_window!(self.window, portable, self, rows),
                }
            }
        }
    }

    /// Zeros for the plane of so many rows of the output, where that of all of them is small enough. Rows are the same, bit for bit,
    /// whichever others they are computed with.
    fn plane(&self, image: [usize; 2], rows: usize) -> Option<Vec<Line<f32, 16>>> {
        let [height, width] = self.window.output(image)?;
        let values =
            |rows| plane_lines(&self.window, rows) * plane_width(&self.window, width) * self.isa.width();
        (self.has_tiles() && values(height) * size_of::<f32>() <= PLANE_BYTES)
            .then(|| lines_f32(values(rows)))
    }

    /// Whether there are functions for several neighbours of its window.
    fn has_tiles(&self) -> bool {
        const fn width<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>() -> usize {
            WIDTH
        }
        for_window!(self.window, width,) > 0
    }
}

/// Lines of the image, and of what lies around it, that so many rows of the output look at.
const fn plane_lines(window: &Window, rows: usize) -> usize {
    rows.saturating_sub(1) * window.stride[0] + window.kernel[0]
}

/// Pixels of a line that so many of the output look at.
const fn plane_width(window: &Window, pixels: usize) -> usize {
    pixels.saturating_sub(1) * window.stride[1] + window.kernel[1]
}

/// Weights and biases with what fills registers up.
const fn packed_len(isa: Isa, channels: usize, taps: usize) -> usize {
    channels.next_multiple_of(isa.width()) * (taps + 1)
}

/// Rows of the output, and what they look at.
struct Rows<'a> {
    of: Range<usize>,
    image: [usize; 2],
    /// Pixels in a row of the output.
    width: usize,
    input: &'a [f32],
    output: &'a mut [f32],
    /// Zeros, as many as the plane of these rows has.
    plane: Option<&'a mut [Line<f32, 16>]>,
}

/// # Safety
/// As [`convolve`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    rows: Rows<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { convolve::<__m512, WIDTH, STRIDE>(depthwise, rows) }
}

/// # Safety
/// As [`convolve`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    rows: Rows<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { convolve::<__m256, WIDTH, STRIDE>(depthwise, rows) }
}

/// # Safety
/// As [`convolve`].
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
#[inline(never)]
unsafe fn neon<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    rows: Rows<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { convolve::<Pair<float32x4_t>, WIDTH, STRIDE>(depthwise, rows) }
}

/// # Safety
/// As [`convolve`].
unsafe fn portable<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &Depthwise,
    rows: Rows<'_>,
) {
    // SAFETY: the caller's.
    unsafe { convolve::<Plain, WIDTH, STRIDE>(depthwise, rows) }
}

/// Pixels that share weights, at most.
const PIXELS: usize = 8;

/// Rows, for a kernel `WIDTH` pixels wide and a stride to the right; 0 stands for any.
///
/// # Safety
/// The input has the shape that the rows say, the output is as wide as the window makes of it, and the plane, if there is one,
/// holds all that they look at; the processor has the instructions of `L`, which the function that this is inlined into enables.
#[inline(always)]
unsafe fn convolve<L: Lanes, const WIDTH: usize, const STRIDE: usize>(depthwise: &Depthwise, rows: Rows<'_>) {
    let Rows { of, image, width, input, output, plane } = rows;
    let (channels, window) = (depthwise.channels, &depthwise.window);
    let plane = plane.map(|plane| flat_mut(plane).as_mut_ptr());
    let inside = match (WIDTH, plane) {
        (0, _) => 0..0,
        (_, None) => window.inside(1, image[1], width),
        (_, Some(_)) => 0..width,
    };
    for channel in (0..channels).step_by(L::WIDTH) {
        let mut part = Part::<L>::new(depthwise, image, channel);
        // An image without any pixel has no such channels, and nothing is read there.
        let input = input.as_ptr().wrapping_add(channel);
        // SAFETY: windows `inside` lie in the image, or the plane, as a whole, the others are cut; channels are those of the part.
        unsafe {
            if let Some(plane) = plane {
                part.copy(of.clone(), width, input, plane);
            }
            for (row, y) in of.clone().enumerate() {
                match plane {
                    Some(plane) => part.look_at_plane(plane, row, width),
                    None => part.look_at_image(input, y),
                }
                let output = output.as_mut_ptr().add(row * width * channels);
                for x in (0..inside.start).chain(inside.end..width) {
                    part.cut(x, output);
                }
                let mut x = inside.start;
                while x < inside.end {
                    let count = PIXELS.min(inside.end - x);
                    match count {
                        1 => part.whole::<WIDTH, STRIDE, 1>(x, output),
                        2 => part.whole::<WIDTH, STRIDE, 2>(x, output),
                        3 => part.whole::<WIDTH, STRIDE, 3>(x, output),
                        4 => part.whole::<WIDTH, STRIDE, 4>(x, output),
                        5 => part.whole::<WIDTH, STRIDE, 5>(x, output),
                        6 => part.whole::<WIDTH, STRIDE, 6>(x, output),
                        7 => part.whole::<WIDTH, STRIDE, 7>(x, output),
                        _ => part.whole::<WIDTH, STRIDE, PIXELS>(x, output),
                    }
                    x += count;
                }
            }
        }
    }
}

/// A register of channels of a row.
struct Part<'a, L> {
    window: &'a Window,
    channels: usize,
    image: [usize; 2],
    weights: *const f32,
    channel: usize,
    /// How many channels there are: a register's, or fewer at the end.
    count: usize,
    clamp: Clamp,
    /// The first of these channels, at the left of the first line that is looked at.
    input: *const f32,
    /// How many channels can be read there.
    readable: usize,
    /// Lines of the kernel that lie there.
    lines: Range<usize>,
    /// From one pixel to the next, and from one line.
    pixel: usize,
    line: usize,
    /// Pixels of the first window that lie to the left of it.
    before: usize,
    lanes: core::marker::PhantomData<L>,
}

impl<'a, L: Lanes> Part<'a, L> {
    #[inline(always)]
    fn new(depthwise: &'a Depthwise, image: [usize; 2], channel: usize) -> Self {
        let window = &depthwise.window;
        let taps = window.kernel[0] * window.kernel[1];
        let count = (depthwise.channels - channel).min(L::WIDTH);
        Self {
            window,
            channels: depthwise.channels,
            image,
            weights: depthwise.weights.flat()[channel * (taps + 1)..].as_ptr(),
            channel,
            count,
            clamp: depthwise.clamp,
            input: core::ptr::null(),
            readable: count,
            lines: 0..0,
            pixel: 0,
            line: 0,
            before: 0,
            lanes: core::marker::PhantomData,
        }
    }

    /// Row `y` of the output looks at the image, these channels of whose first pixel are at `input`.
    #[inline(always)]
    fn look_at_image(&mut self, input: *const f32, y: usize) {
        let (lines, top) = self.window.part(0, self.image[0], y);
        self.lines = lines;
        self.pixel = self.channels;
        self.line = self.image[1] * self.channels;
        self.before = self.window.before[1];
        // A window without any line in the image reads nothing.
        self.input = input.wrapping_add(top * self.line);
    }

    /// That row of those that the plane was copied for looks at it; a row has `width` pixels.
    #[inline(always)]
    fn look_at_plane(&mut self, plane: *const f32, row: usize, width: usize) {
        self.lines = 0..self.window.kernel[0];
        self.pixel = L::WIDTH;
        self.line = plane_width(self.window, width) * L::WIDTH;
        self.before = 0;
        self.readable = L::WIDTH;
        self.input = plane.wrapping_add(row * self.window.stride[0] * self.line);
    }

    /// Copies what these rows of the output look at.
    ///
    /// # Safety
    /// `input` is these channels of the image's first pixel, and `plane` has room for all; the processor has the instructions of `L`.
    #[inline(always)]
    unsafe fn copy(&self, of: Range<usize>, width: usize, input: *const f32, plane: *mut f32) {
        let window = self.window;
        let plane_width = plane_width(self.window, width);
        let columns = window.before[1]..(self.image[1] + window.before[1]).min(plane_width);
        let lines = plane_lines(window, of.len());
        for line in 0..lines {
            let y = of.start * window.stride[0] + line;
            if y < window.before[0] || y >= self.image[0] + window.before[0] {
                continue;
            }
            let from = input.wrapping_add((y - window.before[0]) * self.image[1] * self.channels);
            for column in columns.clone() {
                // SAFETY: the pixel lies in the image, and its place in the plane.
                unsafe {
                    let from = from.add((column - window.before[1]) * self.channels);
                    let value =
                        if self.count == L::WIDTH { L::load(from) } else { L::load_first(from, self.count) };
                    value.store(plane.add((line * plane_width + column) * L::WIDTH));
                }
            }
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
        const { assert!((PIXELS - 1) * STRIDE + WIDTH <= 19, "as many columns as are written out below") };
        // SAFETY: the caller's, for every line; at the last channels only those that there are.
        unsafe {
            let mut sums = [L::load(self.weights); PIXELS];
            let left = x * STRIDE - self.before;
            for (line, y) in self.lines.clone().enumerate() {
                let mut from = self.input.add(line * self.line + left * self.pixel);
                let weights = self.weights.add((1 + y * WIDTH) * L::WIDTH);
                let mut row = [L::splat(0.0); WIDTH];
                for (tap, weight) in row.iter_mut().enumerate() {
                    *weight = L::load(weights.add(tap * L::WIDTH));
                }
                // A column of the image is read once for all windows that look at it.
                macro_rules! columns {
                    ($($column:literal)*) => {$(
                        if $column < (PIXELS - 1) * STRIDE + WIDTH {
                            let value = self.load(from);
                            from = from.wrapping_add(self.pixel);
                            for (pixel, sum) in sums.iter_mut().enumerate() {
                                if $column >= pixel * STRIDE && $column - pixel * STRIDE < WIDTH {
                                    *sum = sum.mul_add(value, row[$column - pixel * STRIDE]);
                                }
                            }
                        }
                    )*};
                }
                columns!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
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
        let (columns, left) = self.window.part(1, self.image[1], x);
        let width = self.window.kernel[1];
        // SAFETY: the part of the window that lies in the image is read; at the last channels only those that there are.
        unsafe {
            let mut sum = L::load(self.weights);
            for (line, y) in self.lines.clone().enumerate() {
                for (column, tap) in columns.clone().enumerate() {
                    let from = self.input.add(line * self.line + (left + column) * self.pixel);
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
        unsafe { if self.readable == L::WIDTH { L::load(from) } else { L::load_first(from, self.readable) } }
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
