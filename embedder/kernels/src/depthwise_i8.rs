//! int8 convolutions of each channel by itself, channels last.
//!
//! Bytes of pixels that stand one above the other, a *column*, are put together channel by channel, so that a product adds
//! up to four of them at once. Neighbours of the output share columns. Pixels beyond an edge are read from a row of zeros.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

#[cfg(target_arch = "aarch64")]
mod planes;

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::bytes::{Columns, Rounding, Scaling};
use crate::bytes_portable::Sums;
#[cfg(target_arch = "x86_64")]
use crate::bytes_x86::{HalfColumns, WideColumns};
use crate::dense_i8::{Integers, Outputs};
use crate::lines::Lines;
use crate::shape::{Line, flat_mut, for_window, values};
use crate::{Clamp, Damaged, Isa, Reader, Window, Writer};
#[cfg(target_arch = "aarch64")]
use planes::neon;

/// A convolution of bytes of each channel by itself, its weights packed for one set of instructions.
#[derive(Debug, Clone)]
pub struct DepthwiseI8 {
    isa: Isa,
    channels: usize,
    window: Window,
    clamp: Clamp,
    rounding: Option<Rounding>,
    edge: u8,
    /// As the instructions want them: see [`columns`] and `planes`.
    weights: Lines<i8, 64>,
    /// In the order of the sums.
    bias: Lines<i32, 16>,
    steps: Lines<f32, 16>,
    /// The same for rounded outputs: divided by their step.
    steps_to_bytes: Lines<f32, 16>,
}

impl DepthwiseI8 {
    /// Packs weights, `[channels, 1, kernel height, kernel width]`.
    ///
    /// # Panics
    /// Where their lengths are not those that the shape says.
    pub fn new(
        isa: Isa,
        channels: usize,
        window: Window,
        integers: Integers<'_>,
        clamp: Clamp,
        rounding: Option<Rounding>,
    ) -> Self {
        let isa = isa.or_portable();
        let [height, width] = window.kernel;
        assert_eq!(integers.weights.len(), channels * height * width, "weights for every channel and pixel");
        assert!(
            integers.steps.len() == channels && integers.bias.len() == channels,
            "steps and biases of each channel"
        );
        let (packed, order) = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => columns::<WideColumns>(channels, &window, integers.weights),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => columns::<HalfColumns>(channels, &window, integers.weights),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => {
                (planes::arrange(channels, integers.weights), (0..channels).collect())
            }
            _ => columns::<Sums>(channels, &window, integers.weights),
        };
        let mut weights = vec![Line([0_i8; 64]); packed.len().div_ceil(64)];
        flat_mut(&mut weights)[..packed.len()].copy_from_slice(&packed);
        let lines = order.len().div_ceil(16);
        let (mut bias, mut steps) = (vec![Line([0_i32; 16]); lines], vec![Line([0_f32; 16]); lines]);
        let mut steps_to_bytes = steps.clone();
        let zero = i32::from(integers.zero_point) - isa.flip_offset();
        let to_bytes = rounding.map_or(1.0, |rounding| rounding.step.recip());
        for (place, channel) in order.into_iter().enumerate().filter(|(_, channel)| *channel < channels) {
            let weights = &integers.weights[channel * height * width..][..height * width];
            let sum: i32 = weights.iter().map(|weight| i32::from(*weight)).sum();
            flat_mut(&mut bias)[place] = integers.bias[channel].wrapping_sub(zero.wrapping_mul(sum));
            flat_mut(&mut steps)[place] = integers.steps[channel];
            flat_mut(&mut steps_to_bytes)[place] = integers.steps[channel] * to_bytes;
        }
        let edge = integers.zero_point ^ isa.flip();
        let (weights, bias) = (weights.into(), bias.into());
        let (steps, steps_to_bytes) = (steps.into(), steps_to_bytes.into());
        Self { isa, channels, window, clamp, rounding, edge, weights, bias, steps, steps_to_bytes }
    }

    /// Puts it with its weights as they are packed.
    pub fn write(&self, to: &mut Writer) {
        to.isa(self.isa);
        to.count(self.channels);
        to.window(&self.window);
        to.clamp(self.clamp);
        to.rounding(self.rounding);
        to.bytes(&[self.edge]);
        to.lines(&self.weights);
        to.lines(&self.bias);
        to.lines(&self.steps);
        to.lines(&self.steps_to_bytes);
    }

    /// What [`write`](Self::write) put.
    ///
    /// # Errors
    /// Something else, or for another processor.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (isa, channels, window) = (from.isa()?, from.count()?, from.window()?);
        let (clamp, rounding, edge) = (from.clamp()?, from.rounding()?, from.bytes(1)?[0]);
        from.holds(&[channels, window.kernel[0], window.kernel[1]], 1)?;
        let (weights, lanes) = packed_len(isa, channels, &window);
        let (weights, bias) = (from.lines(weights)?, from.lines(lanes)?);
        let (steps, steps_to_bytes) = (from.lines(lanes)?, from.lines(lanes)?);
        Ok(Self { isa, channels, window, clamp, rounding, edge, weights, bias, steps, steps_to_bytes })
    }

    /// Number of channels.
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// Whether it can write bytes.
    pub const fn rounds(&self) -> bool {
        self.rounding.is_some()
    }

    /// Where it looks.
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// Convolves one image `[height, width, channels]`.
    ///
    /// # Panics
    /// Where a slice has another length than the shape says, bytes are wanted without a rounding, or the kernel does not fit.
    pub fn run(&self, image: [usize; 2], input: &[u8], outputs: Outputs<'_>) {
        self.run_rows(0..self.window.rows(image), image, input, outputs);
    }

    /// The same, of these rows of the output alone: `outputs` are the rows, `input` is the whole image.
    ///
    /// # Panics
    /// As [`run`](Self::run), or where the output has no such rows.
    pub fn run_rows(&self, of: Range<usize>, image: [usize; 2], input: &[u8], mut outputs: Outputs<'_>) {
        let size = self.window.output_rows(image, &of);
        assert_eq!(input.len(), values(image, self.channels), "an input of the shape");
        outputs.check(values([of.len(), size[1]], self.channels), self.rounding);
        let edge = vec![self.edge; self.channels];
        let real = outputs.real.as_mut().map_or(core::ptr::null_mut(), |real| real.as_mut_ptr());
        let bytes = outputs.bytes.as_mut().map_or(core::ptr::null_mut(), |bytes| bytes.as_mut_ptr());
        let work = Work { input, image, of, width: size[1], edge: &edge, real, bytes };
        // SAFETY: `isa` is what this processor has, and all lengths were held against the shape.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => for_window!(self.window, avx512, self, &work),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => for_window!(self.window, avx2, self, &work),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon | Isa::NeonDot => for_window!(self.window, neon, self, &work),
                _ => for_window!(self.window, portable, self, &work),
            }
        }
    }
}

/// How many weights and lanes there are with what fills registers up.
fn packed_len(isa: Isa, channels: usize, window: &Window) -> (usize, usize) {
    let [height, width] = window.kernel;
    let of = |lanes: usize| {
        let padded = channels.next_multiple_of(lanes);
        (padded * width * height.next_multiple_of(4), padded)
    };
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => of(WideColumns::WIDTH),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => of(HalfColumns::WIDTH),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => (planes::arranged_len(channels, height * width), channels),
        _ => of(Sums::WIDTH),
    }
}

/// Weights for each group of channels, each column of the kernel, and each four of its rows, as arranged; and the channel of each sum, in the
/// order in which the sums lie, which goes beyond the last.
fn columns<C: Columns>(channels: usize, window: &Window, weights: &[i8]) -> (Vec<i8>, Vec<usize>) {
    let [height, width] = window.kernel;
    let groups = channels.div_ceil(C::WIDTH);
    let fours = height.div_ceil(4);
    let mut packed = Vec::with_capacity(groups * width * fours * 4 * C::WIDTH);
    for group in 0..groups {
        for (x, four) in (0..width).flat_map(|x| (0..fours).map(move |four| (x, four))) {
            let mut of_column = vec![0; 4 * C::WIDTH];
            for (place, weight) in of_column.iter_mut().enumerate() {
                let (y, channel) = (four * 4 + place / C::WIDTH, group * C::WIDTH + place % C::WIDTH);
                if y < height && channel < channels {
                    *weight = weights[(channel * height + y) * width + x];
                }
            }
            packed.extend(C::arrange(&of_column));
        }
    }
    let channel = |place| place / C::WIDTH * C::WIDTH + C::channel(place % C::WIDTH);
    (packed, (0..groups * C::WIDTH).map(channel).collect())
}

struct Work<'a> {
    input: &'a [u8],
    image: [usize; 2],
    /// Rows of the output that are wanted.
    of: Range<usize>,
    /// Of the output, in pixels.
    width: usize,
    /// A pixel of zeros.
    edge: &'a [u8],
    /// Where these rows go, or null.
    real: *mut f32,
    bytes: *mut u8,
}

/// # Safety
/// As [`rows`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn avx512<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &DepthwiseI8,
    work: &Work<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { rows::<WideColumns, HEIGHT, WIDTH, STRIDE>(depthwise, work, 0) }
}

/// # Safety
/// As [`rows`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &DepthwiseI8,
    work: &Work<'_>,
) {
    // SAFETY: the caller's; this function enables the instructions.
    unsafe { rows::<HalfColumns, HEIGHT, WIDTH, STRIDE>(depthwise, work, 0) }
}

/// # Safety
/// As [`rows`].
unsafe fn portable<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &DepthwiseI8,
    work: &Work<'_>,
) {
    // SAFETY: the caller's.
    unsafe { rows::<Sums, HEIGHT, WIDTH, STRIDE>(depthwise, work, 0) }
}

/// Neighbours of the output that share columns.
const PIXELS: usize = 4;

/// All rows, for a kernel of `HEIGHT` x `WIDTH` pixels and a stride to the right; 0 stands for any.
///
/// # Safety
/// Input and outputs have the shapes that the work says; the processor has the instructions of `C`, which the function that this
/// is inlined into enables.
#[inline(always)]
unsafe fn rows<C: Columns, const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &DepthwiseI8,
    work: &Work<'_>,
    flip: i32,
) {
    let window = &depthwise.window;
    let channels = depthwise.channels;
    let packed = Packed {
        weights: depthwise.weights.flat(),
        bias: depthwise.bias.flat(),
        steps: depthwise.steps.flat(),
    };
    let inside = window.inside(1, work.image[1], work.width);
    for y in work.of.clone() {
        let top = (y * window.stride[0]) as isize - window.before[0] as isize;
        for channel in (0..channels).step_by(C::WIDTH) {
            let count = (channels - channel).min(C::WIDTH);
            let scaling = depthwise.scaling(channel, flip);
            let part = Part { depthwise, packed: &packed, work, top, channel, count, scaling };
            let mut x = 0;
            while x < work.width {
                let whole = WIDTH > 0 && inside.contains(&x);
                // SAFETY: the caller's; windows `inside` lie in the image from left to right, the others look at a pixel of zeros where
                // they do not.
                unsafe {
                    let at = ((y - work.of.start) * work.width + x) * channels + channel;
                    if whole && x + PIXELS <= inside.end {
                        let sums = part.by_columns::<C, HEIGHT, WIDTH, STRIDE, PIXELS>(x);
                        for (pixel, sums) in sums.into_iter().enumerate() {
                            part.write(sums, at + pixel * channels);
                        }
                        x += PIXELS;
                    } else if whole {
                        let [sums] = part.by_columns::<C, HEIGHT, WIDTH, STRIDE, 1>(x);
                        part.write(sums, at);
                        x += 1;
                    } else {
                        part.write(part.cut::<C>(x), at);
                        x += 1;
                    }
                }
            }
        }
    }
}

/// A convolution's numbers.
struct Packed<'a> {
    weights: &'a [i8],
    bias: &'a [i32],
    steps: &'a [f32],
}

/// Some channels of a row of the output.
struct Part<'a, 'w> {
    depthwise: &'a DepthwiseI8,
    packed: &'a Packed<'a>,
    work: &'a Work<'w>,
    /// The row of the image at which its windows begin; negative above the image.
    top: isize,
    channel: usize,
    /// Channels: a group's, or fewer at the end.
    count: usize,
    /// Where bytes are to be written.
    scaling: Option<Scaling>,
}

impl DepthwiseI8 {
    /// What makes bytes of the sums of the channels from `channel` on.
    fn scaling(&self, channel: usize, flip: i32) -> Option<Scaling> {
        Some(Scaling::new(&self.steps_to_bytes.flat()[channel..], self.clamp, self.rounding?, flip))
    }
}

impl Part<'_, '_> {
    /// The column of the image at a column of the padded image; `None` beyond the edge.
    #[inline(always)]
    fn column(&self, padded: usize) -> Option<usize> {
        padded.checked_sub(self.depthwise.window.before[1]).filter(|x| *x < self.work.image[1])
    }

    /// The byte of the part's first channel at a row of the kernel and a column of the image; `None` for zeros.
    #[inline(always)]
    fn pixel(&self, row: usize, column: Option<usize>) -> *const u8 {
        let y = usize::try_from(self.top + row as isize).ok().filter(|y| *y < self.work.image[0]);
        let (from, place) = match (y, column) {
            (Some(y), Some(x)) => (self.work.input, (y * self.work.image[1] + x) * self.depthwise.channels),
            _ => (self.work.edge, 0),
        };
        from.as_ptr().wrapping_add(place + self.channel)
    }

    /// # Safety
    /// The processor has the instructions of `C`.
    #[inline(always)]
    unsafe fn begin<C: Columns>(&self) -> C {
        // SAFETY: the caller's; biases are padded to whole groups.
        unsafe { C::begin(self.packed.bias[self.channel..].as_ptr()) }
    }

    /// Weights of a column of the kernel, for each four of its rows.
    #[inline(always)]
    fn weights<C: Columns>(&self, column: usize, four: usize) -> *const i8 {
        let [height, width] = self.depthwise.window.kernel;
        let fours = height.div_ceil(4);
        let group = self.channel / C::WIDTH * width * fours;
        self.packed.weights.as_ptr().wrapping_add((group + column * fours + four) * 4 * C::WIDTH)
    }

    /// The sums of pixels `x..x + PIXELS`, whose windows lie in the image from left to right.
    ///
    /// # Safety
    /// They do; and the processor has the instructions of `C`.
    #[inline(always)]
    unsafe fn by_columns<
        C: Columns,
        const HEIGHT: usize,
        const WIDTH: usize,
        const STRIDE: usize,
        const PIXELS: usize,
    >(
        &self,
        x: usize,
    ) -> [C; PIXELS] {
        // SAFETY: the caller's, for every line.
        unsafe {
            let mut sums = [self.begin(); PIXELS];
            let left = x * STRIDE - self.depthwise.window.before[1];
            let channels = self.depthwise.channels;
            let mut rows = [core::ptr::null(); HEIGHT];
            // A row beyond the edge is one pixel, again and again.
            let mut steps = [0; HEIGHT];
            for (row, (from, step)) in rows.iter_mut().zip(&mut steps).enumerate() {
                let y = self.top + row as isize;
                *from = self.pixel(row, Some(left));
                *step = if y >= 0 && (y as usize) < self.work.image[0] { channels } else { 0 };
            }
            // Written out, for the sums stay in registers only where their places are known; a loop was sixteen times slower.
            macro_rules! columns {
                ($($column:literal)*) => {$(
                    if $column < (PIXELS - 1) * STRIDE + WIDTH {
                        let mut upper = [core::ptr::null(); 4];
                        for ((pixel, row), step) in upper.iter_mut().zip(rows).zip(steps) {
                            *pixel = row.wrapping_add($column * step);
                        }
                        if HEIGHT <= 3 {
                            let bytes = C::column::<3>(upper, self.count);
                            self.add::<C, 3, WIDTH, STRIDE, PIXELS>(&mut sums, bytes, $column, 0);
                        } else {
                            let bytes = C::column::<4>(upper, self.count);
                            self.add::<C, 4, WIDTH, STRIDE, PIXELS>(&mut sums, bytes, $column, 0);
                            let last = rows[HEIGHT - 1].wrapping_add($column * steps[HEIGHT - 1]);
                            let bytes = C::column::<1>([last; 4], self.count);
                            self.add::<C, 1, WIDTH, STRIDE, PIXELS>(&mut sums, bytes, $column, 1);
                        }
                    }
                )*};
            }
            const { assert!((PIXELS - 1) * STRIDE + WIDTH <= 11) };
            columns!(0 1 2 3 4 5 6 7 8 9 10);
            sums
        }
    }

    /// Adds a column to all sums that look at it.
    ///
    /// # Safety
    /// As [`whole`](Self::whole).
    #[inline(always)]
    unsafe fn add<
        C: Columns,
        const ROWS: usize,
        const WIDTH: usize,
        const STRIDE: usize,
        const PIXELS: usize,
    >(
        &self,
        sums: &mut [C; PIXELS],
        bytes: C::Column,
        column: usize,
        four: usize,
    ) {
        for (pixel, sum) in sums.iter_mut().enumerate() {
            if column >= pixel * STRIDE && column - pixel * STRIDE < WIDTH {
                // SAFETY: the caller's.
                *sum = unsafe { sum.dot::<ROWS>(bytes, self.weights::<C>(column - pixel * STRIDE, four)) };
            }
        }
    }

    /// The sums of one pixel, whose window may look over any edge.
    ///
    /// # Safety
    /// The processor has the instructions of `C`.
    #[inline(always)]
    unsafe fn cut<C: Columns>(&self, x: usize) -> C {
        let window = &self.depthwise.window;
        let [height, width] = window.kernel;
        // SAFETY: the caller's, for every line.
        unsafe {
            let mut sums: C = self.begin();
            for column in 0..width {
                let at = self.column(x * window.stride[1] + column);
                for four in 0..height.div_ceil(4) {
                    // A row below the kernel has no weights.
                    let mut pixels = [core::ptr::null(); 4];
                    for (row, pixel) in pixels.iter_mut().enumerate() {
                        *pixel = self.pixel(four * 4 + row, at);
                    }
                    let bytes = C::column::<4>(pixels, self.count);
                    sums = sums.dot::<4>(bytes, self.weights::<C>(column, four));
                }
            }
            sums
        }
    }

    /// Writes the outputs of one pixel, from place `at` on.
    ///
    /// # Safety
    /// The processor has the instructions of `C`, and the outputs have room there.
    #[inline(always)]
    unsafe fn write<C: Columns>(&self, sums: C, at: usize) {
        let depthwise = self.depthwise;
        // SAFETY: the caller's.
        unsafe {
            if let (false, Some(scaling)) = (self.work.bytes.is_null(), &self.scaling) {
                sums.bytes(scaling, self.work.bytes.add(at), self.count);
            }
            if !self.work.real.is_null() {
                let mut reals = [0.0; 64];
                sums.reals(self.packed.steps[self.channel..].as_ptr(), reals.as_mut_ptr());
                for (place, value) in reals.into_iter().enumerate().take(C::WIDTH) {
                    let channel = C::channel(place);
                    if channel < self.count {
                        let value = value.max(depthwise.clamp.low).min(depthwise.clamp.high);
                        self.work.real.add(at + channel).write(value);
                    }
                }
            }
        }
    }
}
