//! int8 convolutions of each channel by itself on 64-bit ARM.
//!
//! Of sixteen channels at a time, the rows that a row of the output looks at are copied as numbers of 16 bits, with the pixels
//! beyond the edges around them: two *planes* of eight channels each. Then all windows lie in an image, at distances that are known, and
//! one instruction adds products of four numbers to sums of 32 bits.

#![expect(
    clippy::inline_always,
    reason = "operations must end up inside the functions that enable instructions"
)]

use alloc::vec;
#[allow(
    clippy::wildcard_imports,
    reason = "intrinsics, whose names say where they are from; not reported in tests"
)]
use alloc::vec::Vec;
use core::arch::aarch64::*;
use core::ops::Range;

use super::{DepthwiseI8, Work};
use crate::Clamp;
use crate::bytes::Scaling;
use crate::bytes_neon::NarrowTo;

/// Channels that are copied at once: two planes.
const GROUP: usize = 16;

/// Channels of a plane.
const PLANE: usize = 8;

/// Neighbours of the output that share what they read: networks for 224 pixels have rows of a multiple of 7.
const SEVEN: usize = 7;

/// As many in all other rows.
const FOUR: usize = 4;

/// Weights of so many channels, filled up to a multiple of the group.
pub(super) const fn arranged_len(channels: usize, taps: usize) -> usize {
    taps * channels.next_multiple_of(GROUP)
}

/// Weights `[channels, 1, height, width]` as `[height, width, channels]`, channels a multiple of the group.
pub(super) fn arrange(channels: usize, weights: &[i8]) -> Vec<i8> {
    let (taps, padded) = (weights.len() / channels, channels.next_multiple_of(GROUP));
    let mut arranged = vec![0; arranged_len(channels, taps)];
    for (place, weight) in weights.iter().enumerate() {
        arranged[place % taps * padded + place / taps] = *weight;
    }
    arranged
}

/// All rows, for a kernel of `HEIGHT` x `WIDTH` pixels and a stride to the right; 0 stands for any.
///
/// # Safety
/// Input and outputs have the shapes that the work says.
#[target_feature(enable = "neon")]
#[inline(never)]
pub(super) unsafe fn neon<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize>(
    depthwise: &DepthwiseI8,
    work: &Work<'_>,
) {
    let [height, width] = depthwise.window.kernel;
    let [down, right] = depthwise.window.stride;
    let columns = (work.width - 1) * right + width;
    // `[height][2][columns][8]`: row `r` of the image with its edges lies at `r % height`.
    let mut lines = vec![0_i16; height * GROUP * columns];
    let mut weights = vec![0_i16; height * width * GROUP];
    // The last group begins as many channels before the end as a group has: some are computed twice, and written alike.
    let last = depthwise.channels.saturating_sub(GROUP);
    for channel in (0..depthwise.channels).step_by(GROUP).map(|channel| channel.min(last)) {
        let group = Group { depthwise, work, channel, count: depthwise.channels.min(GROUP), columns };
        // SAFETY: the caller's; lines and weights have room for a group.
        unsafe {
            group.widen_weights(weights.as_mut_ptr());
            let mut copied = 0;
            for y in work.of.clone() {
                let top = y * down;
                for row in copied.max(top)..top + height {
                    group.copy_row(row, lines.as_mut_ptr().add(row % height * GROUP * columns));
                }
                copied = top + height;
                for plane in 0..group.count.div_ceil(PLANE) {
                    let weights = weights.as_ptr().add(plane * height * width * PLANE);
                    let row = Row { group: &group, plane, lines: lines.as_ptr(), top, weights };
                    let first = (y - work.of.start) * work.width;
                    // Where bytes are all that is wanted nothing else takes registers.
                    if work.real.is_null() && !work.bytes.is_null() && group.count == GROUP {
                        row.run::<HEIGHT, WIDTH, STRIDE, true>(first);
                    } else {
                        row.run::<HEIGHT, WIDTH, STRIDE, false>(first);
                    }
                }
            }
        }
    }
}

/// Channels that are copied together.
struct Group<'a, 'w> {
    depthwise: &'a DepthwiseI8,
    work: &'a Work<'w>,
    /// The first.
    channel: usize,
    /// How many: [`GROUP`], or all there are.
    count: usize,
    /// Pixels of a copied row.
    columns: usize,
}

impl Group<'_, '_> {
    /// `[2][height][width][8]`
    ///
    /// # Safety
    /// There is room for them.
    #[inline(always)]
    unsafe fn widen_weights(&self, to: *mut i16) {
        let [height, width] = self.depthwise.window.kernel;
        let padded = self.depthwise.channels.next_multiple_of(GROUP);
        let from = &self.depthwise.weights.flat()[..height * width * padded];
        for (tap, from) in from.chunks_exact(padded).enumerate() {
            // SAFETY: sixteen weights lie there, for the last group does not go beyond the channels; room is the caller's.
            unsafe {
                let [lower, upper] = widened(vld1q_s8(from[self.channel..].as_ptr()));
                vst1q_s16(to.add(tap * PLANE), lower);
                vst1q_s16(to.add((height * width + tap) * PLANE), upper);
            }
        }
    }

    /// A row of the image with its edges, `[2][columns][8]`.
    ///
    /// # Safety
    /// There is room for it.
    #[inline(always)]
    unsafe fn copy_row(&self, row: usize, to: *mut i16) {
        let (window, image) = (&self.depthwise.window, self.work.image);
        let y = row.checked_sub(window.before[0]).filter(|y| *y < image[0]);
        let inside = match y {
            Some(_) => window.before[1].min(self.columns)..(window.before[1] + image[1]).min(self.columns),
            None => 0..0,
        };
        let upper = self.columns * PLANE;
        // SAFETY: the caller's; pixels `inside` are the image's.
        unsafe {
            let edge = vdupq_n_s16(i16::from(self.depthwise.edge.cast_signed()));
            let fill = |columns: Range<usize>| {
                for column in columns {
                    vst1q_s16(to.add(column * PLANE), edge);
                    vst1q_s16(to.add(upper + column * PLANE), edge);
                }
            };
            fill(0..inside.start);
            fill(inside.end..self.columns);
            let first = (y.unwrap_or(0) * image[1] + inside.start.saturating_sub(window.before[1]))
                * self.depthwise.channels
                + self.channel;
            let mut from = self.work.input.as_ptr().wrapping_add(first).cast::<i8>();
            if self.count == GROUP {
                for column in inside {
                    let [low, high] = widened(vld1q_s8(from));
                    vst1q_s16(to.add(column * PLANE), low);
                    vst1q_s16(to.add(upper + column * PLANE), high);
                    from = from.wrapping_add(self.depthwise.channels);
                }
            } else {
                for column in inside {
                    let mut pixel = [0_i8; GROUP];
                    pixel.as_mut_ptr().copy_from_nonoverlapping(from, self.count);
                    let [low, high] = widened(vld1q_s8(pixel.as_ptr()));
                    vst1q_s16(to.add(column * PLANE), low);
                    vst1q_s16(to.add(upper + column * PLANE), high);
                    from = from.wrapping_add(self.depthwise.channels);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn widened(bytes: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: the caller's function enables NEON.
    unsafe { [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)] }
}

/// A row of the output, of one plane.
struct Row<'a, 'g, 'w> {
    group: &'a Group<'g, 'w>,
    plane: usize,
    lines: *const i16,
    /// The row of the image, with its edges, at which its windows begin.
    top: usize,
    weights: *const i16,
}

/// Sums of eight channels.
type Sums = [int32x4_t; 2];

impl Row<'_, '_, '_> {
    /// Computes and writes it, as the pixels from `first` on; with `BYTES`, nothing but bytes of eight channels.
    ///
    /// # Safety
    /// Lines, weights and outputs are those of the group.
    #[inline(always)]
    unsafe fn run<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize, const BYTES: bool>(
        &self,
        first: usize,
    ) {
        let Group { depthwise, work, .. } = *self.group;
        let channel = self.group.channel + self.plane * PLANE;
        let count = (self.group.count - self.plane * PLANE).min(PLANE);
        let at = first * depthwise.channels + channel;
        // SAFETY: the caller's, for every line; biases and steps of eight channels lie there, for they are padded.
        unsafe {
            let bias = depthwise.bias.flat()[channel..].as_ptr();
            let bias = [vld1q_s32(bias), vld1q_s32(bias.add(4))];
            let out = Out {
                steps: two(depthwise.steps.flat()[channel..].as_ptr()),
                steps_to_bytes: two(depthwise.steps_to_bytes.flat()[channel..].as_ptr()),
                clamp: depthwise.clamp,
                narrow: depthwise.scaling(channel, 128).map(|scaling: Scaling| NarrowTo::new(&scaling)),
                count,
                real: work.real,
                bytes: work.bytes,
            };
            let mut from = [core::ptr::null(); HEIGHT];
            for (row, from) in from.iter_mut().enumerate() {
                *from = self.line(row);
            }
            let step = depthwise.channels;
            let mut x = 0;
            if WIDTH > 0
                && work.width.is_multiple_of(SEVEN)
                && (WIDTH > 3 || !work.width.is_multiple_of(FOUR))
            {
                while x < work.width {
                    let sums = self.windows::<HEIGHT, WIDTH, STRIDE, SEVEN>(&from, x, bias);
                    out.write::<BYTES, _>(sums, at + x * step, step);
                    x += SEVEN;
                }
            } else if WIDTH > 0 && work.width >= FOUR {
                while x < work.width {
                    // The last neighbours end where the row does: some are computed twice.
                    x = x.min(work.width - FOUR);
                    let sums = self.windows::<HEIGHT, WIDTH, STRIDE, FOUR>(&from, x, bias);
                    out.write::<BYTES, _>(sums, at + x * step, step);
                    x += FOUR;
                }
            } else {
                while x < work.width {
                    out.write::<BYTES, _>([self.any_window(x, bias)], at + x * step, step);
                    x += 1;
                }
            }
        }
    }

    /// What row `row` of the kernel looks at.
    #[inline(always)]
    fn line(&self, row: usize) -> *const i16 {
        let Group { depthwise, columns, .. } = *self.group;
        let slot = (self.top + row) % depthwise.window.kernel[0];
        self.lines.wrapping_add((slot * 2 + self.plane) * columns * PLANE)
    }

    /// The sums of `PIXELS` neighbours from `x` on.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    unsafe fn windows<const HEIGHT: usize, const WIDTH: usize, const STRIDE: usize, const PIXELS: usize>(
        &self,
        from: &[*const i16; HEIGHT],
        x: usize,
        bias: Sums,
    ) -> [Sums; PIXELS] {
        const { assert!((PIXELS - 1) * STRIDE + WIDTH <= LINE_MAX) };
        let mut sums = [bias; PIXELS];
        // SAFETY: the caller's, for every line.
        unsafe {
            for (row, from) in from.iter().enumerate() {
                let (from, weights) = (from.add(x * STRIDE * PLANE), self.weights.add(row * WIDTH * PLANE));
                let mut line = [vdupq_n_s16(0); LINE_MAX];
                for (pixel, values) in line.iter_mut().enumerate().take((PIXELS - 1) * STRIDE + WIDTH) {
                    *values = vld1q_s16(from.add(pixel * PLANE));
                }
                let mut taps = [vdupq_n_s16(0); WIDTH];
                for (tap, weights_of_tap) in taps.iter_mut().enumerate() {
                    *weights_of_tap = vld1q_s16(weights.add(tap * PLANE));
                }
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    for (tap, weights) in taps.iter().enumerate() {
                        *sums = add(*sums, line[pixel * STRIDE + tap], *weights);
                    }
                }
            }
        }
        sums
    }

    /// The sums of the pixel at `x`, for any kernel.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    unsafe fn any_window(&self, x: usize, bias: Sums) -> Sums {
        let window = &self.group.depthwise.window;
        let mut sums = bias;
        for row in 0..window.kernel[0] {
            let from = self.line(row).wrapping_add(x * window.stride[1] * PLANE);
            for tap in 0..window.kernel[1] {
                // SAFETY: the caller's.
                unsafe {
                    let weights = self.weights.add((row * window.kernel[1] + tap) * PLANE);
                    sums = add(sums, vld1q_s16(from.add(tap * PLANE)), vld1q_s16(weights));
                }
            }
        }
        sums
    }
}

/// Pixels of a line that the windows of some neighbours look at, at most.
const LINE_MAX: usize = 17;

#[inline(always)]
unsafe fn add(sums: Sums, values: int16x8_t, weights: int16x8_t) -> Sums {
    // SAFETY: the caller's function enables NEON.
    unsafe {
        [
            vmlal_s16(sums[0], vget_low_s16(values), vget_low_s16(weights)),
            vmlal_high_s16(sums[1], values, weights),
        ]
    }
}

#[inline(always)]
unsafe fn two(from: *const f32) -> [float32x4_t; 2] {
    // SAFETY: the caller's pointer is valid for eight values.
    unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
}

/// Where sums of eight channels go, and how.
struct Out {
    steps: [float32x4_t; 2],
    steps_to_bytes: [float32x4_t; 2],
    clamp: Clamp,
    narrow: Option<NarrowTo>,
    /// Channels: eight, or fewer at the end.
    count: usize,
    real: *mut f32,
    bytes: *mut u8,
}

impl Out {
    /// Writes neighbours from place `at` on, which lie `channels` values apart.
    ///
    /// # Safety
    /// There is room for them.
    #[inline(always)]
    unsafe fn write<const BYTES: bool, const PIXELS: usize>(
        &self,
        sums: [Sums; PIXELS],
        at: usize,
        channels: usize,
    ) {
        // SAFETY: the caller's; of eight values only as many as are wanted are written.
        unsafe {
            if let (true, Some(narrow)) = (BYTES || !self.bytes.is_null(), &self.narrow) {
                for (pixel, sums) in sums.into_iter().enumerate() {
                    let to = self.bytes.add(at + pixel * channels);
                    let bytes = narrow.eight(scaled(sums, self.steps_to_bytes));
                    if BYTES || self.count == PLANE {
                        vst1_s8(to.cast(), bytes);
                    } else {
                        let mut all = [0_i8; PLANE];
                        vst1_s8(all.as_mut_ptr(), bytes);
                        to.cast::<i8>().copy_from_nonoverlapping(all.as_ptr(), self.count);
                    }
                }
            }
            if !BYTES && !self.real.is_null() {
                let (low, high) = (vdupq_n_f32(self.clamp.low), vdupq_n_f32(self.clamp.high));
                for (pixel, sums) in sums.into_iter().enumerate() {
                    let mut all = [0.0; PLANE];
                    for (half, real) in scaled(sums, self.steps).into_iter().enumerate() {
                        let real = vminq_f32(vmaxq_f32(real, low), high);
                        vst1q_f32(all.as_mut_ptr().add(half * 4), real);
                    }
                    let to = self.real.add(at + pixel * channels);
                    to.copy_from_nonoverlapping(all.as_ptr(), self.count);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scaled(sums: Sums, steps: [float32x4_t; 2]) -> [float32x4_t; 2] {
    // SAFETY: the caller's function enables NEON.
    unsafe { [vmulq_f32(vcvtq_f32_s32(sums[0]), steps[0]), vmulq_f32(vcvtq_f32_s32(sums[1]), steps[1])] }
}
