//! Convolutions that look at all channels: 1x1, and larger kernels as products of the windows' pixels with the weights.
//!
//! An output pixel is a row: the values of its window times a matrix `[values, output channels]`. Weights are packed once into
//! *panels* of one to three registers of output channels; a *tile* computes some pixels of one panel, with its sums in
//! registers all the while. Windows are not copied: their values lie in *runs*, one for each row of the kernel (and each
//! plane, where the input has planes), which are the same for every window but for where it begins. Only windows that look
//! over the image's edge are copied out, with zeros around.

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
use crate::shape::{flat_mut, lines_f32, values};
use crate::{Clamp, Damaged, Isa, Reader, Window, Writer};

/// Bytes of input and output that are kept near while all panels look at the one and write to the other: half of a small
/// second-level cache.
const BLOCK_BYTES: usize = 128 << 10;

/// Bytes of an output that is not in a second-level cache when it is written, and so asked for beforehand: stores wait for one another.
const FAR_BYTES: usize = 1 << 20;

/// Windows that all panels look at together, at least: weights of deep layers are larger than the windows.
const BLOCK_ROWS_MIN: usize = 64;

/// Registers in a panel, at most, of any set of instructions.
const REGISTERS_MAX: usize = 3;

/// Registers in a panel, at most. With sixteen in all, twelve sums of three by four would leave one for a value of the input, and the
/// compiler then puts a sum aside at every step, which takes twice the time.
const fn registers_max(isa: Isa) -> usize {
    if matches!(isa, Isa::Avx2) { 2 } else { REGISTERS_MAX }
}

/// Values of a window that are multiplied before the loop looks whether there are more.
const UNROLLED: usize = 4;

/// How an image lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[height, width, channels]`
    ChannelsLast,
    /// `[channels, height, width]`
    Planes,
}

/// A convolution of `f32` with all channels, its weights packed for one set of instructions. Output is channels last.
#[derive(Debug, Clone)]
pub struct Dense {
    isa: Isa,
    channels: [usize; 2],
    window: Window,
    layout: Layout,
    clamp: Clamp,
    panels: Vec<Panel>,
    /// Of all panels: for each value of a window as many weights as its panel has lanes.
    weights: Lines<f32, 16>,
    /// Of all panels, as wide as their lanes.
    bias: Lines<f32, 16>,
}

/// Output channels that are computed together.
#[derive(Debug, Clone)]
struct Panel {
    channels: Range<usize>,
    registers: usize,
    weights: usize,
    bias: usize,
}

/// Values of a window that lie one after the other.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// From the window's first value.
    offset: usize,
    length: usize,
}

impl Dense {
    /// Packs weights `[output channels, input channels, kernel height, kernel width]` and a bias `[output channels]` for
    /// inputs of a layout.
    ///
    /// # Panics
    /// Where their lengths are not those that the shape says.
    pub fn new(
        isa: Isa,
        channels: [usize; 2],
        window: Window,
        layout: Layout,
        (weights, bias): (&[f32], Option<&[f32]>),
        clamp: Clamp,
    ) -> Self {
        let [inputs, outputs] = channels;
        let taps = window.kernel[0] * window.kernel[1];
        assert_eq!(
            weights.len(),
            inputs * outputs * taps,
            "weights for every channel and pixel of the kernel"
        );
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "a bias for each output channel");
        let isa = isa.or_portable();
        let width = isa.width();
        let depth = inputs * taps;
        let (panels, weights_end, bias_end) = panels(isa, outputs, depth);
        let (mut packed, mut packed_bias) = (lines_f32(weights_end), lines_f32(bias_end));
        for panel in &panels {
            let lanes = panel.registers * width;
            for value in 0..depth {
                let at = panel.weights + value * lanes;
                let row = &mut flat_mut(&mut packed)[at..at + lanes];
                let (input, tap) = place_of(value, inputs, taps, layout);
                for (weight, channel) in row.iter_mut().zip(panel.channels.clone()) {
                    *weight = weights[(channel * inputs + input) * taps + tap];
                }
            }
            if let Some(bias) = bias {
                let to = &mut flat_mut(&mut packed_bias)[panel.bias..][..panel.channels.len()];
                to.copy_from_slice(&bias[panel.channels.clone()]);
            }
        }
        Self {
            isa,
            channels,
            window,
            layout,
            clamp,
            panels,
            weights: packed.into(),
            bias: packed_bias.into(),
        }
    }

    /// Puts it with its weights as they are packed.
    pub fn write(&self, to: &mut Writer) {
        to.isa(self.isa);
        to.counts(&self.channels);
        to.window(&self.window);
        to.count(usize::from(self.layout == Layout::Planes));
        to.clamp(self.clamp);
        to.lines(&self.weights);
        to.lines(&self.bias);
    }

    /// What [`write`](Self::write) put.
    ///
    /// # Errors
    /// Something else, or for another processor.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (isa, channels, window) = (from.isa()?, from.counts()?, from.window()?);
        let layout = if from.flag()? { Layout::Planes } else { Layout::ChannelsLast };
        let clamp = from.clamp()?;
        let [inputs, outputs] = channels;
        from.holds(&[inputs, outputs, window.kernel[0], window.kernel[1]], 4)?;
        let (panels, weights, bias) = panels(isa, outputs, inputs * window.kernel[0] * window.kernel[1]);
        let (weights, bias) = (from.lines(weights)?, from.lines(bias)?);
        Ok(Self { isa, channels, window, layout, clamp, panels, weights, bias })
    }

    /// Input and output channels.
    pub const fn channels(&self) -> [usize; 2] {
        self.channels
    }

    /// Where it looks.
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// How its input lies.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Convolves one image of `height` x `width` pixels into `output`, `[height, width, channels]` of its own size. What
    /// `residual`, of the same shape, holds is added before the clamp.
    ///
    /// # Panics
    /// Where a slice has another length than the shape says, or the kernel does not fit.
    pub fn run(&self, image: [usize; 2], input: &[f32], residual: Option<&[f32]>, output: &mut [f32]) {
        self.run_rows(0..self.window.rows(image), image, input, residual, output);
    }

    /// The same, of these rows of the output alone: `residual` and `output` are the rows, `input` is the whole image.
    ///
    /// # Panics
    /// As [`run`](Self::run), or where the output has no such rows.
    pub fn run_rows(
        &self,
        of: Range<usize>,
        image: [usize; 2],
        input: &[f32],
        residual: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let [inputs, outputs] = self.channels;
        let size = self.window.output_rows(image, &of);
        assert_eq!(input.len(), values(image, inputs), "an input of the shape");
        assert_eq!(output.len(), values([of.len(), size[1]], outputs), "an output of the shape");
        assert!(residual.is_none_or(|residual| residual.len() == output.len()), "a residual of the shape");
        let residual = residual.map_or(core::ptr::null(), <[f32]>::as_ptr);
        let output = output.as_mut_ptr();
        let before = of.start * size[1];
        let part = |pixel: usize| {
            let pixel = pixel - before;
            // SAFETY: `pixel` lies in these rows of the output, and of the residual, where there is one.
            let to = unsafe { output.add(pixel * outputs) };
            (to, if residual.is_null() { residual } else { residual.wrapping_add(pixel * outputs) })
        };
        if self.window == Window::POINT && (self.layout == Layout::ChannelsLast) {
            let runs = [Run { offset: 0, length: inputs }];
            let (to, residual) = part(before);
            let from = input[before * inputs..].as_ptr();
            let rows = Rows { from, step: inputs, count: of.len() * size[1], to, residual };
            // SAFETY: all pixels of these rows of input and output, whose lengths were held against the shape.
            return unsafe { self.multiply(&runs, rows) };
        }
        let runs = self.runs(image);
        let (row_step, pixel_step) = match self.layout {
            Layout::ChannelsLast => (image[1] * inputs, inputs),
            Layout::Planes => (image[1], 1),
        };
        let inside = self.window.inside(1, image[1], size[1]);
        let mut edge = Edge { values: Vec::new(), first: 0 };
        let down = self.window.inside(0, image[0], size[0]);
        for y in of {
            let across = if down.contains(&y) { inside.clone() } else { 0..0 };
            for x in (0..across.start).chain(across.end..size[1]) {
                self.copy_window(image, input, [y, x], &mut edge.values);
                edge.first = if edge.values.len() == self.depth() { y * size[1] + x } else { edge.first };
                // Windows over the edge that are neighbours in the output go together.
                if x + 1 == across.start || x + 1 == size[1] || edge.values.len() >= BLOCK_BYTES / 4 {
                    let count = edge.values.len() / self.depth();
                    let (to, residual) = part(edge.first);
                    let from = edge.values.as_ptr();
                    let rows = Rows { from, step: self.depth(), count, to, residual };
                    // SAFETY: as many windows as were copied, which follow one another in the output.
                    unsafe { self.multiply(&[Run { offset: 0, length: self.depth() }], rows) };
                    edge.values.clear();
                }
            }
            if !across.is_empty() {
                let top = y * self.window.stride[0] - self.window.before[0];
                let left = across.start * self.window.stride[1] - self.window.before[1];
                let from = input[top * row_step + left * pixel_step..].as_ptr();
                let step = self.window.stride[1] * pixel_step;
                let (to, residual) = part(y * size[1] + across.start);
                let rows = Rows { from, step, count: across.len(), to, residual };
                // SAFETY: these windows lie in the image, as `inside` says, and all runs with them.
                unsafe { self.multiply(&runs, rows) };
            }
        }
    }

    /// Values in a window.
    fn depth(&self) -> usize {
        self.channels[0] * self.window.kernel[0] * self.window.kernel[1]
    }

    /// Where the values of a window lie that lies in the image, in the order of the packed weights.
    fn runs(&self, image: [usize; 2]) -> Vec<Run> {
        let [height, width] = self.window.kernel;
        let inputs = self.channels[0];
        match self.layout {
            Layout::ChannelsLast => {
                let rows = 0..height;
                rows.map(|y| Run { offset: y * image[1] * inputs, length: width * inputs }).collect()
            }
            Layout::Planes => {
                let rows = (0..inputs).flat_map(|plane| (0..height).map(move |y| (plane, y)));
                let offset = |(plane, y)| (plane * image[0] + y) * image[1];
                rows.map(|row| Run { offset: offset(row), length: width }).collect()
            }
        }
    }

    /// Appends the values of a window that looks over the edge, in the order of the packed weights.
    fn copy_window(&self, image: [usize; 2], input: &[f32], place: [usize; 2], values: &mut Vec<f32>) {
        let inputs = self.channels[0];
        let (rows, top) = self.window.part(0, image[0], place[0]);
        let (columns, left) = self.window.part(1, image[1], place[1]);
        let [height, width] = self.window.kernel;
        let planes = if self.layout == Layout::Planes { inputs } else { 1 };
        let pixel = inputs / planes;
        for plane in 0..planes {
            for y in 0..height {
                if !rows.contains(&y) {
                    values.resize(values.len() + width * pixel, 0.0);
                    continue;
                }
                let line = (plane * image[0] + top + y - rows.start) * image[1];
                let from = &input[(line + left) * pixel..][..columns.len() * pixel];
                values.resize(values.len() + columns.start * pixel, 0.0);
                values.extend_from_slice(from);
                values.resize(values.len() + (width - columns.end) * pixel, 0.0);
            }
        }
    }

    /// Multiplies rows with all panels.
    ///
    /// # Safety
    /// All runs of each row lie in one allocation with its beginning, and `rows.to` is valid for all rows of output channels, as is
    /// `rows.residual`, if it is not null.
    unsafe fn multiply(&self, runs: &[Run], rows: Rows) {
        // SAFETY: the caller's; and `isa` is what this processor has.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => multiply::<__m512>(self, runs, rows, &avx512::TILES),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => multiply::<__m256>(self, runs, rows, &avx2::TILES),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon | Isa::NeonDot => multiply::<Pair<float32x4_t>>(self, runs, rows, &neon::TILES),
                _ => multiply::<Plain>(self, runs, rows, &portable::TILES),
            }
        }
    }
}

/// Panels of so many output channels, and how many weights and biases there are in all of them with what fills them up.
fn panels(isa: Isa, outputs: usize, depth: usize) -> (Vec<Panel>, usize, usize) {
    let width = isa.width();
    let mut panels = Vec::new();
    let (mut weights, mut bias, mut channel) = (0, 0, 0);
    for registers in panel_widths(outputs.div_ceil(width), registers_max(isa)) {
        let end = (channel + registers * width).min(outputs);
        panels.push(Panel { channels: channel..end, registers, weights, bias });
        // A panel begins at a boundary of 64 bytes.
        weights += (registers * width * depth).next_multiple_of(16);
        bias += (registers * width).next_multiple_of(16);
        channel = end;
    }
    (panels, weights, bias)
}

struct Edge {
    values: Vec<f32>,
    /// The pixel of the output that the first window makes.
    first: usize,
}

/// Widths of panels, `most` registers at most, that add up to `registers`, as equal as can be.
pub(crate) fn panel_widths(registers: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = registers.div_ceil(most);
    // One of four is two of two: a panel of one register waits for its sums.
    (0..count).map(move |panel| registers / count + usize::from(panel < registers % count))
}

/// The input channel and the pixel of the kernel of the value at `value` in a window.
const fn place_of(value: usize, inputs: usize, taps: usize, layout: Layout) -> (usize, usize) {
    match layout {
        Layout::ChannelsLast => (value % inputs, value / inputs),
        Layout::Planes => (value / taps, value % taps),
    }
}

/// Windows and where their outputs go.
#[derive(Clone, Copy)]
struct Rows {
    /// The first value of the first window.
    from: *const f32,
    /// From one window to the next.
    step: usize,
    count: usize,
    /// The outputs of the first window; the next follow, all output channels of each.
    to: *mut f32,
    /// As `to`, or null.
    residual: *const f32,
}

/// Some rows of one panel.
struct Tile<'a> {
    runs: &'a [Run],
    from: *const f32,
    step: usize,
    weights: *const f32,
    bias: *const f32,
    to: *mut f32,
    residual: *const f32,
    /// From one row of the output to the next.
    outputs: usize,
    /// Output channels in the last register.
    last: usize,
    clamp: Clamp,
    /// Whether the output has to come from beyond the nearer caches.
    far: bool,
}

/// A tile's function, see [`tile`].
type RunTile = unsafe fn(&Tile<'_>);

/// For panels of one to three registers the functions for one row and more.
type Tiles = [&'static [RunTile]; REGISTERS_MAX];

/// # Safety
/// As [`Dense::multiply`]; and the processor has the instructions of the tiles, whose registers have the width of `L`.
unsafe fn multiply<L: Lanes>(dense: &Dense, runs: &[Run], rows: Rows, tiles: &Tiles) {
    let outputs = dense.channels[1];
    let (weights, bias) = (dense.weights.flat(), dense.bias.flat());
    // Rows of all panels while the windows are near, rather than each panel over all of the image. A panel writes some channels of each
    // pixel, and so parts of lines that the next one writes the rest of.
    let most = (BLOCK_BYTES / 4 / (dense.depth() + outputs)).max(BLOCK_ROWS_MIN);
    let far = rows.count * outputs * size_of::<f32>() >= FAR_BYTES;
    let mut done = 0;
    while done < rows.count {
        let block = most.min(rows.count - done);
        for panel in &dense.panels {
            let run = tiles[panel.registers - 1];
            let parts = block.div_ceil(run.len());
            let skip = done * outputs + panel.channels.start;
            let lanes = (panel.registers - 1) * L::WIDTH;
            // SAFETY: rows `done..done + block` are among the caller's, and the panel's weights, as many for each value as it has
            // lanes, and its bias lie where it says. The output channels of the panel begin at its first.
            unsafe {
                let mut tile = Tile {
                    runs,
                    from: rows.from.add(done * rows.step),
                    step: rows.step,
                    weights: weights[panel.weights..].as_ptr(),
                    bias: bias[panel.bias..].as_ptr(),
                    to: rows.to.add(skip),
                    residual: if rows.residual.is_null() { rows.residual } else { rows.residual.add(skip) },
                    outputs,
                    last: panel.channels.len() - lanes,
                    clamp: dense.clamp,
                    far,
                };
                // As equal as can be: a tile of one row waits for its sums.
                let (each, more) = (block / parts, block % parts);
                for part in 0..parts {
                    let count = each + usize::from(part < more);
                    run[count - 1](&tile);
                    // After the last nothing is read from there.
                    tile.from = tile.from.wrapping_add(count * rows.step);
                    tile.to = tile.to.wrapping_add(count * outputs);
                    if !tile.residual.is_null() {
                        tile.residual = tile.residual.wrapping_add(count * outputs);
                    }
                }
            }
        }
        done += block;
    }
}

/// `ROWS` rows of a panel of `REGISTERS` registers.
///
/// # Safety
/// All that the tile says can be read and written; and the processor has the instructions of `L`, which the function that this
/// is inlined into enables.
#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize, const REGISTERS: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's, for every line.
    unsafe {
        if tile.far {
            for pixel in 0..ROWS {
                let to = tile.to.add(pixel * tile.outputs);
                L::will_store(to);
                L::will_store(to.add((REGISTERS - 1) * L::WIDTH + tile.last - 1));
            }
        }
        let start: [L; REGISTERS] = core::array::from_fn(|r| L::load(tile.bias.add(r * L::WIDTH)));
        let mut sums = [start; ROWS];
        let mut weights = tile.weights;
        for run in tile.runs {
            let from = tile.from.add(run.offset);
            let mut value = 0;
            if L::VALUES == 4 {
                while value + 4 <= run.length {
                    let mut values = [L::values(from.add(value)); ROWS];
                    for (pixel, values) in values.iter_mut().enumerate().skip(1) {
                        *values = L::values(from.add(pixel * tile.step + value));
                    }
                    step::<L, 0, ROWS, REGISTERS>(&mut sums, values, weights);
                    step::<L, 1, ROWS, REGISTERS>(&mut sums, values, weights.add(REGISTERS * L::WIDTH));
                    step::<L, 2, ROWS, REGISTERS>(&mut sums, values, weights.add(2 * REGISTERS * L::WIDTH));
                    step::<L, 3, ROWS, REGISTERS>(&mut sums, values, weights.add(3 * REGISTERS * L::WIDTH));
                    weights = weights.add(4 * REGISTERS * L::WIDTH);
                    value += 4;
                }
            }
            if L::VALUES == 1 {
                while value + UNROLLED <= run.length {
                    for value in value..value + UNROLLED {
                        one::<L, ROWS, REGISTERS>(&mut sums, from.add(value), tile.step, weights);
                        weights = weights.add(REGISTERS * L::WIDTH);
                    }
                    value += UNROLLED;
                }
            }
            for value in value..run.length {
                one::<L, ROWS, REGISTERS>(&mut sums, from.add(value), tile.step, weights);
                weights = weights.add(REGISTERS * L::WIDTH);
            }
        }
        let (low, high) = (L::splat(tile.clamp.low), L::splat(tile.clamp.high));
        for (pixel, sums) in sums.into_iter().enumerate() {
            for (r, sum) in sums.into_iter().enumerate() {
                let at = pixel * tile.outputs + r * L::WIDTH;
                let whole = r + 1 < REGISTERS || tile.last == L::WIDTH;
                let residual = match (tile.residual.is_null(), whole) {
                    (true, _) => L::splat(0.0),
                    (false, true) => L::load(tile.residual.add(at)),
                    (false, false) => L::load_first(tile.residual.add(at), tile.last),
                };
                let sum = sum.add(residual).clamp(low, high);
                if whole {
                    sum.store(tile.to.add(at));
                } else {
                    sum.store_first(tile.to.add(at), tile.last);
                }
            }
        }
    }
}

/// Reads a value of each row and multiplies it with its weights.
///
/// # Safety
/// As [`tile`], whose weights for that value these are; the value of the first row is at `from`.
#[inline(always)]
unsafe fn one<L: Lanes, const ROWS: usize, const REGISTERS: usize>(
    sums: &mut [[L; REGISTERS]; ROWS],
    from: *const f32,
    step: usize,
    weights: *const f32,
) {
    // SAFETY: the caller's, for every line.
    unsafe {
        let row: [L; REGISTERS] = core::array::from_fn(|r| L::load(weights.add(r * L::WIDTH)));
        for (pixel, sums) in sums.iter_mut().enumerate() {
            let x = L::splat(*from.add(pixel * step));
            for (sum, weights) in sums.iter_mut().zip(row) {
                *sum = sum.mul_add(x, weights);
            }
        }
    }
}

/// Multiplies one of the values that each row has read with its weights.
///
/// # Safety
/// As [`tile`], whose weights for that value these are.
#[inline(always)]
unsafe fn step<L: Lanes, const VALUE: usize, const ROWS: usize, const REGISTERS: usize>(
    sums: &mut [[L; REGISTERS]; ROWS],
    values: [L::Values; ROWS],
    weights: *const f32,
) {
    for r in 0..REGISTERS {
        // SAFETY: the caller's.
        unsafe {
            let weights = L::load(weights.add(r * L::WIDTH));
            for (sums, values) in sums.iter_mut().zip(values) {
                sums[r] = sums[r].mul_add_value::<VALUE>(values, weights);
            }
        }
    }
}

/// The functions of one set of instructions: `rows` for panels of one, two and three registers, as many as leave the sums in
/// registers.
macro_rules! tiles {
    ($name:ident, $lanes:ty, $(#[$attribute:meta])? [$($one:literal)*] [$($two:literal)*] [$($three:literal)*]) => {
        mod $name {
            use super::*;

            /// # Safety
            /// As [`tile`].
            $(#[$attribute])?
            unsafe fn run<const ROWS: usize, const REGISTERS: usize>(part: &Tile<'_>) {
                // SAFETY: the caller's; this function enables the instructions.
                unsafe { tile::<$lanes, ROWS, REGISTERS>(part) }
            }

            pub(super) static TILES: Tiles = [&[$(run::<$one, 1>),*], &[$(run::<$two, 2>),*], &[$(run::<$three, 3>),*]];
        }
    };
}

// 32 registers: up to 24 sums, the weights and a value.
#[cfg(target_arch = "x86_64")]
tiles!(avx512, __m512, #[target_feature(enable = "avx512f")]
    [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16] [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6 7 8]);
// 16 registers: up to 12 sums.
#[cfg(target_arch = "x86_64")]
tiles!(avx2, __m256, #[target_feature(enable = "avx2,fma")]
    [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6] []);
// 32 registers of half the width: up to 24 sums, a value of each row and weights.
#[cfg(target_arch = "aarch64")]
tiles!(neon, Pair<float32x4_t>, #[target_feature(enable = "neon")]
    [1 2 3 4 5 6 7 8] [1 2 3 4 5] [1 2 3 4]);
tiles!(portable, Plain, [1 2 3 4] [1 2] [1]);
