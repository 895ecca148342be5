//! int8 convolutions that look at all channels.
//!
//! As [`crate::Dense`], but the values of windows have to lie one after the other, eight at a time: those of 1x1 convolutions of
//! so many channels do, all others are copied. A byte is a quarter of a float, and copies of them are cheap.

#![expect(clippy::inline_always, reason = "bodies must end up inside the functions that enable instructions")]

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::bytes::{DEPTH, Dots, Reals as _, Rounding, Scaling};
#[cfg(target_arch = "aarch64")]
use crate::bytes_neon::{Dotted, Widened};
use crate::bytes_portable::Sums;
#[cfg(target_arch = "x86_64")]
use crate::bytes_x86::{Half, Wide};
use crate::dense::panel_widths;
use crate::lanes::Lanes;
use crate::lines::Lines;
use crate::shape::{Line, flat_mut, values};
use crate::{Clamp, Damaged, Isa, Reader, Window, Writer};

/// Bytes of copied windows that all panels look at together.
const BLOCK_BYTES: usize = 64 << 10;

/// Windows that they look at together, at least.
const BLOCK_ROWS_MIN: usize = 64;

/// Registers in a panel, at most.
const REGISTERS_MAX: usize = 4;

/// Values of a window up to which [`Isa::Neon`] has panels of four registers: they take more loads than three, but fewer instructions
/// from sums to bytes.
const SHALLOW: usize = 40;

/// Weights of a convolution of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Integers<'a> {
    /// `[output channels, input channels a group, kernel height, kernel width]`, none of them -128.
    pub weights: &'a [i8],
    /// Of each output channel: what one step of its sums stands for.
    pub steps: &'a [f32],
    /// Of each output channel, in those steps.
    pub bias: &'a [i32],
    /// The byte that stands for zero in the input.
    pub zero_point: u8,
}

/// What a convolution of bytes writes: real numbers, bytes, or both, `[height, width, output channels]`.
#[derive(Debug, Default)]
pub struct Outputs<'a> {
    /// After the clamp.
    pub real: Option<&'a mut [f32]>,
    /// The same as bytes, by the convolution's [`Rounding`].
    pub bytes: Option<&'a mut [u8]>,
}

impl Outputs<'_> {
    /// # Panics
    /// Where one has another length.
    pub(crate) fn check(&self, length: usize, rounding: Option<Rounding>) {
        assert!(self.real.as_ref().is_none_or(|real| real.len() == length), "real numbers of the shape");
        assert!(self.bytes.as_ref().is_none_or(|bytes| bytes.len() == length), "bytes of the shape");
        assert!(self.bytes.is_none() || rounding.is_some(), "a rounding for the bytes");
    }
}

/// A convolution of bytes with all channels, its weights packed for one set of instructions. Input and output are channels last.
#[derive(Debug, Clone)]
pub struct DenseI8 {
    isa: Isa,
    channels: [usize; 2],
    window: Window,
    clamp: Clamp,
    rounding: Option<Rounding>,
    /// The byte of a pixel beyond the edge, as bytes lie in memory.
    edge: u8,
    /// Values of a window, a multiple of [`DEPTH`].
    depth: usize,
    panels: Vec<Panel>,
    weights: Lines<i8, 64>,
    bias: Lines<i32, 16>,
    steps: Lines<f32, 16>,
    /// The same for rounded outputs: divided by their step.
    steps_to_bytes: Lines<f32, 16>,
}

#[derive(Debug, Clone)]
struct Panel {
    channels: Range<usize>,
    registers: usize,
    weights: usize,
    /// Of its bias and its steps.
    lanes: usize,
}

impl DenseI8 {
    /// Packs weights.
    ///
    /// # Panics
    /// Where their lengths are not those that the shape says.
    pub fn new(
        isa: Isa,
        channels: [usize; 2],
        window: Window,
        integers: Integers<'_>,
        clamp: Clamp,
        rounding: Option<Rounding>,
    ) -> Self {
        let [inputs, outputs] = channels;
        let taps = window.kernel[0] * window.kernel[1];
        assert!(inputs > 0 && outputs > 0 && taps > 0, "channels and a kernel");
        assert_eq!(integers.weights.len(), inputs * outputs * taps, "weights for every channel and pixel");
        assert!(
            integers.steps.len() == outputs && integers.bias.len() == outputs,
            "steps and biases of each channel"
        );
        let isa = isa.or_portable();
        let width = isa.dot_width();
        let depth = (inputs * taps).next_multiple_of(DEPTH);
        let (panels, weights_end, lanes_end) = panels(isa, outputs, depth);
        let mut packed = vec![Line([0_i8; 64]); weights_end / 64];
        let mut bias = vec![Line([0_i32; 16]); lanes_end / 16];
        let mut steps = vec![Line([0_f32; 16]); lanes_end / 16];
        let mut steps_to_bytes = steps.clone();
        let to_bytes = rounding.map_or(1.0, |rounding| rounding.step.recip());
        let zero = i32::from(integers.zero_point) - isa.flip_offset();
        for panel in &panels {
            for (lane, channel) in panel.channels.clone().enumerate() {
                let weights = &integers.weights[channel * inputs * taps..][..inputs * taps];
                for value in 0..inputs * taps {
                    // `[depth / 8][registers][2][width][4]`
                    let block = panel.weights + value / DEPTH * panel.registers * width * DEPTH;
                    let place = lane / width * width * DEPTH
                        + value % DEPTH / 4 * width * 4
                        + lane % width * 4
                        + value % 4;
                    flat_mut(&mut packed)[block + place] = weights[value % inputs * taps + value / inputs];
                }
                let sum: i32 = weights.iter().map(|weight| i32::from(*weight)).sum();
                // What the input's zero point adds to each sum.
                flat_mut(&mut bias)[panel.lanes + lane] =
                    integers.bias[channel].wrapping_sub(zero.wrapping_mul(sum));
                flat_mut(&mut steps)[panel.lanes + lane] = integers.steps[channel];
                flat_mut(&mut steps_to_bytes)[panel.lanes + lane] = integers.steps[channel] * to_bytes;
            }
        }
        let edge = integers.zero_point ^ isa.flip();
        Self {
            isa,
            channels,
            window,
            clamp,
            rounding,
            edge,
            depth,
            panels,
            weights: packed.into(),
            bias: bias.into(),
            steps: steps.into(),
            steps_to_bytes: steps_to_bytes.into(),
        }
    }

    /// Puts it with its weights as they are packed.
    pub fn write(&self, to: &mut Writer) {
        to.isa(self.isa);
        to.counts(&self.channels);
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
        let (isa, channels, window) = (from.isa()?, from.counts()?, from.window()?);
        let (clamp, rounding, edge) = (from.clamp()?, from.rounding()?, from.bytes(1)?[0]);
        let [inputs, outputs] = channels;
        from.holds(&[inputs, outputs, window.kernel[0], window.kernel[1]], 1)?;
        let depth = (inputs * window.kernel[0] * window.kernel[1]).next_multiple_of(DEPTH);
        let (panels, weights, lanes) = panels(isa, outputs, depth);
        let (weights, bias) = (from.lines(weights)?, from.lines(lanes)?);
        let (steps, steps_to_bytes) = (from.lines(lanes)?, from.lines(lanes)?);
        Ok(Self {
            isa,
            channels,
            window,
            clamp,
            rounding,
            edge,
            depth,
            panels,
            weights,
            bias,
            steps,
            steps_to_bytes,
        })
    }

    /// Input and output channels.
    pub const fn channels(&self) -> [usize; 2] {
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

    /// Convolves one image of `height` x `width` pixels. What `residual`, of the output's shape, holds is added before the clamp.
    ///
    /// # Panics
    /// Where a slice has another length than the shape says, bytes are wanted without a rounding, or the kernel does not fit.
    pub fn run(&self, image: [usize; 2], input: &[u8], residual: Option<&[f32]>, outputs: Outputs<'_>) {
        self.run_rows(0..self.window.rows(image), image, input, residual, outputs);
    }

    /// The same, of these rows of the output alone: `residual` and `outputs` are the rows, `input` is the whole image.
    ///
    /// # Panics
    /// As [`run`](Self::run), or where the output has no such rows.
    pub fn run_rows(
        &self,
        of: Range<usize>,
        image: [usize; 2],
        input: &[u8],
        residual: Option<&[f32]>,
        mut outputs: Outputs<'_>,
    ) {
        let size = self.window.output_rows(image, &of);
        let (pixels, before) = (of.len() * size[1], of.start * size[1]);
        let length = values([of.len(), size[1]], self.channels[1]);
        assert_eq!(input.len(), values(image, self.channels[0]), "an input of the shape");
        assert!(residual.is_none_or(|residual| residual.len() == length), "a residual of the shape");
        outputs.check(length, self.rounding);
        if pixels == 0 {
            return;
        }
        let mut rows = Rows {
            from: input[before * if self.window == Window::POINT { self.channels[0] } else { 0 }..].as_ptr(),
            count: pixels,
            first: 0,
            residual: residual.map_or(core::ptr::null(), <[f32]>::as_ptr),
            real: outputs.real.as_mut().map_or(core::ptr::null_mut(), |real| real.as_mut_ptr()),
            bytes: outputs.bytes.as_mut().map_or(core::ptr::null_mut(), |bytes| bytes.as_mut_ptr()),
        };
        if self.window == Window::POINT && self.channels[0] == self.depth {
            // SAFETY: all pixels of these rows of input and outputs, whose lengths were held against the shape.
            return unsafe { self.multiply(rows) };
        }
        let block = (BLOCK_BYTES / self.depth).max(BLOCK_ROWS_MIN).min(pixels);
        // Each window is copied in steps of 16 bytes, the last of which may go beyond it.
        let mut windows = vec![0; block * self.depth + COPY];
        for first in (0..pixels).step_by(block) {
            let count = block.min(pixels - first);
            let mut to = &mut windows[..];
            let mut pixel = before + first;
            while pixel < before + first + count {
                let (y, left) = (pixel / size[1], pixel % size[1]);
                let right = (left + before + first + count - pixel).min(size[1]);
                self.copy_windows(image, input, (y, left..right), to);
                to = &mut to[(right - left) * self.depth..];
                pixel += right - left;
            }
            rows = Rows { from: windows.as_ptr(), count, first, ..rows };
            // SAFETY: as many windows as were copied, and their places in the outputs.
            unsafe { self.multiply(rows) };
        }
    }

    /// Copies the values of neighbouring windows of row `y` one after the other to `to`, which may be written up to [`COPY`] bytes beyond.
    fn copy_windows(&self, image: [usize; 2], input: &[u8], (y, of): (usize, Range<usize>), to: &mut [u8]) {
        let inputs = self.channels[0];
        let [height, width] = self.window.kernel;
        let (rows, top) = self.window.part(0, image[0], y);
        let inside = self.window.inside(1, image[1], of.end);
        let [stride, before] = [self.window.stride[1], self.window.before[1]];
        let (line, length) = (image[1] * inputs, width * inputs);
        let whole = if rows.len() == height && length <= COPY {
            inside.start.max(of.start)..inside.end.min(of.end)
        } else {
            of.end..of.end
        };
        // The last windows may be too near to the end of the image, or of the copies, for steps of 16 bytes.
        let fits = |x: usize| {
            let from = (top + height - 1) * line + (x * stride - before) * inputs + COPY;
            let copy = (x - of.start) * self.depth + (height - 1) * length + COPY;
            from <= input.len() && copy <= to.len()
        };
        let end = whole.clone().rev().find(|x| fits(*x)).map_or(whole.start, |x| x + 1);
        for x in of.start..whole.start.min(of.end) {
            self.copy_window(image, input, [y, x], &mut to[(x - of.start) * self.depth..]);
        }
        if whole.start < end {
            let first = top * line + (whole.start * stride - before) * inputs;
            let mut from = input[first..].as_ptr();
            let mut copy = to[(whole.start - of.start) * self.depth..].as_mut_ptr();
            for _ in whole.start..end {
                for y in 0..height {
                    // SAFETY: the last window's last row fits, and windows and rows follow one another; input and copies are different slices.
                    // What is written beyond a row is written over by the next, or the next window.
                    unsafe { copy.add(y * length).copy_from_nonoverlapping(from.add(y * line), COPY) };
                }
                from = from.wrapping_add(stride * inputs);
                copy = copy.wrapping_add(self.depth);
            }
        }
        for x in end.max(whole.start)..of.end {
            self.copy_window(image, input, [y, x], &mut to[(x - of.start) * self.depth..]);
        }
    }

    /// Copies the values of a window to the beginning of `to`.
    fn copy_window(&self, image: [usize; 2], input: &[u8], place: [usize; 2], to: &mut [u8]) {
        let inputs = self.channels[0];
        let [height, width] = self.window.kernel;
        let (rows, top) = self.window.part(0, image[0], place[0]);
        let (columns, left) = self.window.part(1, image[1], place[1]);
        let whole = rows.len() == height && columns.len() == width;
        if !whole {
            to[..height * width * inputs].fill(self.edge);
        }
        for (line, y) in rows.enumerate() {
            let from = &input[((top + line) * image[1] + left) * inputs..];
            let to = &mut to[(y * width + columns.start) * inputs..];
            let length = columns.len() * inputs;
            to[..length].copy_from_slice(&from[..length]);
        }
    }

    /// # Safety
    /// `rows.from` is valid for `count` windows of `depth` bytes; `real`, `bytes` and `residual`, if they are not null, for `first + count`
    /// rows of output channels.
    unsafe fn multiply(&self, rows: Rows) {
        // SAFETY: the caller's; and `isa` is what this processor has.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => multiply::<Wide>(self, rows, &avx512::TILES),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => multiply::<Half>(self, rows, &avx2::TILES),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => multiply::<Widened>(self, rows, &neon::TILES),
                #[cfg(target_arch = "aarch64")]
                Isa::NeonDot => multiply::<Dotted>(self, rows, &neon_dot::TILES),
                _ => multiply::<Sums>(self, rows, &portable::TILES),
            }
        }
    }
}

/// Panels of so many output channels, and how many weights and lanes there are in all of them with what fills them up.
fn panels(isa: Isa, outputs: usize, depth: usize) -> (Vec<Panel>, usize, usize) {
    let width = isa.dot_width();
    let most = match isa {
        Isa::NeonDot => 4,
        Isa::Neon if depth <= SHALLOW => 4,
        _ => 3,
    };
    let mut panels = Vec::new();
    let (mut weights, mut lanes, mut channel) = (0, 0, 0);
    for registers in panel_widths(outputs.div_ceil(width), most) {
        let end = (channel + registers * width).min(outputs);
        panels.push(Panel { channels: channel..end, registers, weights, lanes });
        weights += (registers * width * depth).next_multiple_of(64);
        lanes += (registers * width).next_multiple_of(16);
        channel = end;
    }
    (panels, weights, lanes)
}

/// Bytes that are copied at once.
const COPY: usize = 16;

/// Windows one after the other, and where their outputs go.
#[derive(Clone, Copy)]
struct Rows {
    from: *const u8,
    count: usize,
    /// The pixel of the output that the first window makes.
    first: usize,
    residual: *const f32,
    real: *mut f32,
    bytes: *mut u8,
}

/// Some rows of one panel, and as many again and again.
struct Tile {
    times: usize,
    from: *const u8,
    depth: usize,
    weights: *const i8,
    bias: *const i32,
    steps: *const f32,
    /// Where bytes are wanted.
    scaling: Scaling,
    residual: *const f32,
    real: *mut f32,
    bytes: *mut u8,
    /// From one row of the output to the next.
    outputs: usize,
    /// Output channels in the last register.
    last: usize,
    clamp: Clamp,
    /// Of the bytes.
    step: f32,
}

type RunTile = unsafe fn(&Tile);
type Tiles = [&'static [RunTile]; REGISTERS_MAX];

/// # Safety
/// As [`DenseI8::multiply`]; and the processor has the instructions of the tiles, whose registers have the width of `D`.
unsafe fn multiply<D: Dots>(dense: &DenseI8, rows: Rows, tiles: &Tiles) {
    let outputs = dense.channels[1];
    let (weights, bias) = (dense.weights.flat(), dense.bias.flat());
    let (steps, steps_to_bytes) = (dense.steps.flat(), dense.steps_to_bytes.flat());
    let rounding = dense.rounding.unwrap_or(Rounding { step: 1.0, zero_point: 0 });
    let most = (BLOCK_BYTES / dense.depth).max(BLOCK_ROWS_MIN);
    let mut done = 0;
    while done < rows.count {
        let block = most.min(rows.count - done);
        for panel in &dense.panels {
            let run = tiles[panel.registers - 1];
            let parts = block.div_ceil(run.len());
            // The rest is spread: some parts have a row more.
            let (less, more) = (block / parts, block % parts);
            let mut first = done;
            for (count, times) in [(less + 1, more), (less, parts - more)] {
                if times == 0 {
                    continue;
                }
                let skip = (rows.first + first) * outputs + panel.channels.start;
                let to_bytes = &steps_to_bytes[panel.lanes..];
                // SAFETY: rows `first..first + count * times` are among the caller's; the panel's weights, bias and steps lie where it says;
                // null stays null, for it is not dereferenced.
                unsafe {
                    run[count - 1](&Tile {
                        times,
                        from: rows.from.add(first * dense.depth),
                        depth: dense.depth,
                        weights: weights[panel.weights..].as_ptr(),
                        bias: bias[panel.lanes..].as_ptr(),
                        steps: steps[panel.lanes..].as_ptr(),
                        scaling: Scaling::new(to_bytes, dense.clamp, rounding, dense.isa.flip_offset()),
                        residual: skipped(rows.residual.cast_mut(), skip),
                        real: skipped(rows.real, skip),
                        bytes: skipped(rows.bytes, skip),
                        outputs,
                        last: panel.channels.len() - (panel.registers - 1) * D::WIDTH,
                        clamp: dense.clamp,
                        step: rounding.step,
                    });
                }
                first += count * times;
            }
        }
        done += block;
    }
}

fn skipped<T>(pointer: *mut T, count: usize) -> *mut T {
    if pointer.is_null() { pointer } else { pointer.wrapping_add(count) }
}

/// `ROWS` rows of a panel of `REGISTERS` registers, and the next as often as the tile says. All that is not bytes alone, of whole registers,
/// is written by `other`, which is a function of its own: what it needs would take registers from the sums.
///
/// # Safety
/// All that the tile says can be read and written; and the processor has the instructions of `D`, which the function that this
/// is inlined into enables.
#[inline(always)]
unsafe fn tile<D: Dots, const ROWS: usize, const REGISTERS: usize>(
    tile: &Tile,
    other: unsafe fn(&Tile, &[[D; REGISTERS]; ROWS], usize),
) {
    let only_bytes =
        !tile.bytes.is_null() && tile.real.is_null() && tile.residual.is_null() && tile.last == D::WIDTH;
    for part in 0..tile.times {
        // SAFETY: the caller's, for every line.
        unsafe {
            let mut sums = [[D::begin(tile.bias); REGISTERS]; ROWS];
            for sums in &mut sums {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = D::begin(tile.bias.add(r * D::WIDTH));
                }
            }
            D::add(&mut sums, tile.from.add(part * ROWS * tile.depth), tile.depth, tile.weights);
            let skip = part * ROWS * tile.outputs;
            if only_bytes {
                D::write(&sums, &tile.scaling, tile.bytes.add(skip), tile.outputs, D::WIDTH);
            } else {
                // A copy, for sums that others can reach do not stay in registers.
                let sums = sums;
                other(tile, &sums, skip);
            }
        }
    }
}

/// Writes whatever a tile wants, `skip` values from its places.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn write<D: Dots, const ROWS: usize, const REGISTERS: usize>(
    tile: &Tile,
    sums: &[[D; REGISTERS]; ROWS],
    skip: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        if tile.residual.is_null() && !tile.bytes.is_null() {
            D::write(sums, &tile.scaling, tile.bytes.add(skip), tile.outputs, tile.last);
        }
        if !(tile.residual.is_null() && tile.real.is_null()) {
            write_real(tile, sums, skip);
        }
    }
}

/// Writes the real numbers of a tile; and the bytes too where there is a residual, which is added first.
///
/// # Safety
/// As [`tile`]; `skip` values lie between the tile's places and these.
#[inline(always)]
unsafe fn write_real<D: Dots, const ROWS: usize, const REGISTERS: usize>(
    tile: &Tile,
    sums: &[[D; REGISTERS]; ROWS],
    skip: usize,
) {
    // SAFETY: the caller's, for every line.
    unsafe {
        let (low, high) = (D::Real::splat(tile.clamp.low), D::Real::splat(tile.clamp.high));
        let to_bytes = D::Real::splat(tile.step.recip());
        let (least, most) = (D::Real::splat(tile.scaling.low), D::Real::splat(tile.scaling.high));
        for (pixel, sums) in sums.iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                let at = skip + pixel * tile.outputs + r * D::WIDTH;
                let whole = r + 1 < REGISTERS || tile.last == D::WIDTH;
                let count = if whole { D::WIDTH } else { tile.last };
                let mut real = sum.real(tile.steps.add(r * D::WIDTH));
                if !tile.residual.is_null() {
                    let from = tile.residual.add(at);
                    real =
                        real.add(if whole { D::Real::load(from) } else { D::Real::load_first(from, count) });
                    if !tile.bytes.is_null() {
                        let bytes = real.mul(to_bytes).clamp(least, most);
                        bytes.round(tile.scaling.zero, tile.bytes.add(at), count);
                    }
                }
                if !tile.real.is_null() {
                    let real = real.clamp(low, high);
                    if whole {
                        real.store(tile.real.add(at));
                    } else {
                        real.store_first(tile.real.add(at), count);
                    }
                }
            }
        }
    }
}

/// The functions of one set of instructions: `rows` for panels of one to four registers, as many as leave the sums in registers; none for
/// widths that it does not have.
macro_rules! tiles {
    ($name:ident, $sums:ty, $(#[$attribute:meta])? [$($one:literal)*] [$($two:literal)*] [$($three:literal)*] [$($four:literal)*]) => {
        mod $name {
            use super::*;

            /// # Safety
            /// As [`tile`].
            $(#[$attribute])?
            unsafe fn run<const ROWS: usize, const REGISTERS: usize>(part: &Tile) {
                // SAFETY: the caller's; this function enables the instructions.
                unsafe { tile::<$sums, ROWS, REGISTERS>(part, other::<ROWS, REGISTERS>) }
            }

            /// # Safety
            /// As [`tile`].
            $(#[$attribute])?
            #[inline(never)]
            unsafe fn other<const ROWS: usize, const REGISTERS: usize>(
                part: &Tile,
                sums: &[[$sums; REGISTERS]; ROWS],
                skip: usize,
            ) {
                // SAFETY: the caller's; this function enables the instructions.
                unsafe { write(part, sums, skip) }
            }

            pub(super) static TILES: Tiles = [&[$(run::<$one, 1>),*], &[$(run::<$two, 2>),*], &[$(run::<$three, 3>),*], &[$(run::<$four, 4>),*]];
        }
    };
}

// 32 registers: the sums, two of weights for each register of the panel, and a value.
#[cfg(target_arch = "x86_64")]
tiles!(avx512, Wide, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16] [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6 7] []);
// 16 registers: four of weights and four of values beside the sums.
#[cfg(target_arch = "x86_64")]
tiles!(avx2, Half, #[target_feature(enable = "avx2,fma")] [1 2 3 4 5 6] [1 2 3] [1 2] []);
// 32 registers, two for the sums of four channels.
#[cfg(target_arch = "aarch64")]
tiles!(neon, Widened, #[target_feature(enable = "neon")] [1 2 3 4 5 6 7] [1 2 3 4] [1 2 3] [1 2]);
// 32 registers.
#[cfg(target_arch = "aarch64")]
tiles!(neon_dot, Dotted, #[target_feature(enable = "neon,dotprod")]
    [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6 7 8 9 10] [1 2 3 4 5 6 7] [1 2 3 4 5]);
tiles!(portable, Sums, [1 2 3 4] [1 2] [1] []);
