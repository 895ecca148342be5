//! All steps in order, with the buffers between.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use glimpse_kernels::{Damaged, Layout, quantize};

use crate::kernel::{Input, Kernel, Outputs};
use crate::shape::{Shape, Value};
use crate::step::{Step, Tensor, gather, sum};

/// Numbers in one value at most: more than any network for photos has between two steps.
const VALUES_MAX: usize = 1 << 28;

/// What all of them may take.
const WORKSPACE_BYTES_MAX: usize = 1 << 30;

/// Multiply-adds that are worth waking another worker for.
const MULTIPLY_ADDS_A_WORKER: u64 = 200_000;

/// Why steps are no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanError {
    /// Which step, from 0, if it is one.
    pub step: Option<usize>,
    /// What is wrong.
    pub reason: &'static str,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}: {}", self.reason),
            None => f.write_str(self.reason),
        }
    }
}

impl core::error::Error for PlanError {}

impl From<Damaged> for PlanError {
    fn from(Damaged(reason): Damaged) -> Self {
        Self { step: None, reason }
    }
}

/// What a value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Real,
    Bytes,
}

/// Where a value lies while the plan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Input,
    Constant(usize),
    /// One of the workspace's, of its kind.
    Buffer(usize),
    /// Where another one lies: its numbers in another shape.
    With(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Info {
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    pub(crate) len: usize,
    pub(crate) home: Home,
}

/// A network for images of one size: planes of real numbers in, real numbers out.
#[derive(Debug)]
pub struct Plan {
    pub(crate) input: [usize; 3],
    pub(crate) values: Vec<Info>,
    pub(crate) constants: Vec<Vec<f32>>,
    pub(crate) steps: Vec<Step>,
    pub(crate) output: Value,
    /// Lengths of the buffers of real numbers, and of bytes.
    buffers: [Vec<usize>; 2],
}

/// What a plan writes while it runs; for one run at a time.
#[derive(Debug)]
pub struct Workspace {
    real: Vec<Vec<f32>>,
    bytes: Vec<Vec<u8>>,
}

/// Who runs a convolution together.
pub trait Workers {
    /// How many.
    fn count(&self) -> usize;

    /// Runs each share, by whoever is free.
    fn share<T: Send>(&self, shares: Vec<T>, run: impl Fn(T) + Send + Sync);
}

/// Whoever asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Workers for Alone {
    fn count(&self) -> usize {
        1
    }

    fn share<T: Send>(&self, shares: Vec<T>, run: impl Fn(T) + Send + Sync) {
        shares.into_iter().for_each(run);
    }
}

impl Plan {
    /// Shape of its input: channels, height and width.
    pub const fn input(&self) -> [usize; 3] {
        self.input
    }

    /// Numbers that it gives.
    pub fn output_len(&self) -> usize {
        self.values[self.output.0].len
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Bytes of a workspace.
    pub fn workspace_bytes(&self) -> usize {
        let [real, bytes] = &self.buffers;
        let all = real.iter().map(|len| len.saturating_mul(size_of::<f32>())).chain(bytes.iter().copied());
        all.fold(0, usize::saturating_add)
    }

    /// Room for what is between the steps.
    pub fn workspace(&self) -> Workspace {
        let [real, bytes] = &self.buffers;
        Workspace {
            real: real.iter().map(|len| vec![0.0; *len]).collect(),
            bytes: bytes.iter().map(|len| vec![0; *len]).collect(),
        }
    }

    /// Runs on a tensor, `[channels, height, width]`.
    ///
    /// # Panics
    /// Where a slice has another length, or the workspace is another plan's.
    pub fn run(&self, workspace: &mut Workspace, tensor: &[f32], output: &mut [f32]) {
        self.run_with(&Alone, workspace, tensor, output, |_| {});
    }

    /// The same by several workers; `before` is told the number of each step before it begins, and of the steps at the end. The
    /// output is the same, bit for bit, by however many.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_with(
        &self,
        workers: &impl Workers,
        workspace: &mut Workspace,
        tensor: &[f32],
        output: &mut [f32],
        mut before: impl FnMut(usize),
    ) {
        assert_eq!(tensor.len(), self.input.iter().product::<usize>(), "a tensor of the shape");
        for (number, step) in self.steps.iter().enumerate() {
            before(number);
            self.step(step, workers, workspace, tensor);
        }
        before(self.steps.len());
        output.copy_from_slice(self.real(workspace, tensor, self.output).values);
    }

    fn step(&self, step: &Step, workers: &impl Workers, workspace: &mut Workspace, tensor: &[f32]) {
        // What is written is taken out of the workspace meanwhile: it is never what is read.
        let mut room = Room::default();
        for value in step.writes() {
            let Info { kind, home: Home::Buffer(buffer), .. } = self.values[value.0] else { continue };
            match kind {
                Kind::Real => room.real = core::mem::take(&mut workspace.real[buffer]),
                Kind::Bytes => room.bytes = core::mem::take(&mut workspace.bytes[buffer]),
            }
        }
        let shape = |value: &Value| self.values[value.0].shape;
        let len = |value: &Value| self.values[value.0].len;
        let real = |value: &Value| self.real(workspace, tensor, *value);
        match step {
            Step::Convolution { kernel, image, input, residual, real: to_real, bytes: to_bytes } => {
                let outputs = Outputs {
                    real: to_real.as_ref().map(|value| &mut room.real[..len(value)]),
                    bytes: to_bytes.as_ref().map(|value| &mut room.bytes[..len(value)]),
                };
                let input = match self.values[input.0].kind {
                    Kind::Real => Input::Real(real(input).values),
                    Kind::Bytes => Input::Bytes(self.bytes(workspace, *input)),
                };
                let residual = residual.as_ref().map(|residual| real(residual).values);
                kernel.run_image(workers, *image, input, residual, outputs);
            }
            Step::Round { isa, rounding, layout, input, output } => {
                let channels = shape(output).0[3];
                let bytes = &mut room.bytes[..len(output)];
                quantize(*isa, *rounding, (*layout, channels), real(input).values, bytes);
            }
            Step::Unround { isa, rounding, input, output } => {
                let zero = f32::from(rounding.zero_point);
                let bytes = self.bytes(workspace, *input);
                for (to, byte) in room.real[..len(output)].iter_mut().zip(bytes) {
                    *to = (f32::from(byte ^ isa.flip()) - zero) * rounding.step;
                }
            }
            Step::Map { function, input, output } => {
                function.map(real(input).values, &mut room.real[..len(output)]);
            }
            Step::Zip { operation, left, right, output } => {
                let to = &mut room.real[..len(output)];
                operation.zip(real(left), real(right), shape(output), to);
            }
            Step::Sum { input, output, .. } => sum(real(input), shape(output), &mut room.real[..len(output)]),
            Step::Slice { start, input, output } => {
                let Shape([_, a, b, c]) = shape(input);
                let strides = [a * b * c, b * c, c, 1];
                let start = start.iter().zip(strides).map(|(start, stride)| start * stride).sum();
                gather(real(input).values, start, strides, shape(output), &mut room.real[..len(output)]);
            }
            Step::Permute { order, input, output } => {
                let strides = order.map(|side| shape(input).strides()[side]);
                gather(real(input).values, 0, strides, shape(output), &mut room.real[..len(output)]);
            }
        }
        for value in step.writes() {
            let Info { kind, home: Home::Buffer(buffer), .. } = self.values[value.0] else { continue };
            match kind {
                Kind::Real => workspace.real[buffer] = core::mem::take(&mut room.real),
                Kind::Bytes => workspace.bytes[buffer] = core::mem::take(&mut room.bytes),
            }
        }
    }

    fn real<'a>(&'a self, workspace: &'a Workspace, tensor: &'a [f32], value: Value) -> Tensor<'a> {
        let Info { shape, len, .. } = self.values[value.0];
        let all = match home(&self.values, value) {
            Home::Input | Home::With(_) => tensor,
            Home::Constant(constant) => &self.constants[constant],
            Home::Buffer(buffer) => &workspace.real[buffer],
        };
        Tensor { values: &all[..len], shape }
    }

    fn bytes<'a>(&self, workspace: &'a Workspace, value: Value) -> &'a [u8] {
        match home(&self.values, value) {
            Home::Buffer(buffer) => &workspace.bytes[buffer][..self.values[value.0].len],
            // Only real numbers lie elsewhere.
            Home::Input | Home::Constant(_) | Home::With(_) => &[],
        }
    }
}

/// Buffers that a step writes.
#[derive(Default)]
struct Room {
    real: Vec<f32>,
    bytes: Vec<u8>,
}

/// Rows of an output that one worker makes.
struct Rows<'a> {
    rows: core::ops::Range<usize>,
    residual: Option<&'a [f32]>,
    outputs: Outputs<'a>,
}

impl Kernel {
    /// Convolves one image, by as many workers as it is worth.
    ///
    /// # Panics
    /// As the kernels: where a slice has another length than the shape says, or the kernel does not fit.
    pub fn run_image(
        &self,
        workers: &impl Workers,
        image: [usize; 2],
        input: Input<'_>,
        residual: Option<&[f32]>,
        outputs: Outputs<'_>,
    ) {
        let [height, width] = self.window().output(image).expect("the kernel fits into the image");
        let worth = self.multiply_adds(image) / MULTIPLY_ADDS_A_WORKER;
        let worth = usize::try_from(worth).unwrap_or(usize::MAX).clamp(1, workers.count().max(1));
        if worth == 1 {
            return self.run(0..height, image, input, residual, outputs);
        }
        // Each output value is the same however the rows are shared out.
        let line = width * self.channels()[1];
        let step = height.div_ceil(worth).max(1);
        let Outputs { mut real, mut bytes } = outputs;
        let share = |first: usize| {
            let rows = first..(first + step).min(height);
            let length = rows.len() * line;
            let outputs = Outputs {
                real: real.as_mut().and_then(|real| real.split_off_mut(..length)),
                bytes: bytes.as_mut().and_then(|bytes| bytes.split_off_mut(..length)),
            };
            let residual = residual.map(|residual| &residual[first * line..][..length]);
            Rows { rows, residual, outputs }
        };
        let shares = (0..height).step_by(step).map(share).collect();
        workers.share(shares, |Rows { rows, residual, outputs }| {
            self.run(rows, image, input, residual, outputs);
        });
    }
}

/// Whose place in memory a value has.
fn root(values: &[Info], value: Value) -> usize {
    match values[value.0].home {
        Home::With(root) => root,
        Home::Input | Home::Constant(_) | Home::Buffer(_) => value.0,
    }
}

fn home(values: &[Info], value: Value) -> Home {
    values[root(values, value)].home
}

/// A plan as it grows.
#[derive(Debug)]
pub struct PlanBuilder {
    input: [usize; 3],
    values: Vec<Info>,
    constants: Vec<Vec<f32>>,
    steps: Vec<Step>,
    written: Vec<bool>,
}

impl PlanBuilder {
    /// For images of so many channels, and a height and width.
    pub fn new(input: [usize; 3]) -> Self {
        let shape = Shape([1, input[0], input[1], input[2]]);
        let info =
            Info { kind: Kind::Real, shape, len: shape.len().unwrap_or(usize::MAX), home: Home::Input };
        Self { input, values: vec![info], constants: Vec::new(), steps: Vec::new(), written: vec![true] }
    }

    /// The image, in planes.
    pub const fn input(&self) -> Value {
        Value(0)
    }

    /// Real numbers that a step will write.
    pub fn real(&mut self, shape: Shape) -> Value {
        self.value(Kind::Real, shape, Home::Buffer(0), false)
    }

    /// Bytes that a step will write.
    pub fn bytes(&mut self, shape: Shape) -> Value {
        self.value(Kind::Bytes, shape, Home::Buffer(0), false)
    }

    /// Real numbers that are always the same.
    ///
    /// # Errors
    /// There are not as many as the shape says.
    pub fn constant(&mut self, shape: Shape, values: Vec<f32>) -> Result<Value, PlanError> {
        if shape.len() != Some(values.len()) {
            return Err(self.wrong("a constant has not as many numbers as its shape"));
        }
        self.constants.push(values);
        Ok(self.value(Kind::Real, shape, Home::Constant(self.constants.len() - 1), true))
    }

    /// The same numbers in another shape.
    ///
    /// # Errors
    /// There are not as many, or the value is unknown.
    pub fn reshaped(&mut self, value: Value, shape: Shape) -> Result<Value, PlanError> {
        let info = *self.values.get(value.0).ok_or_else(|| self.wrong("a value is unknown"))?;
        if shape.len() != Some(info.len) {
            return Err(self.wrong("a value cannot have that shape"));
        }
        let root = root(&self.values, value);
        Ok(self.value(info.kind, shape, Home::With(root), false))
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> Option<Shape> {
        self.values.get(value.0).map(|info| info.shape)
    }

    fn value(&mut self, kind: Kind, shape: Shape, home: Home, written: bool) -> Value {
        let len = shape.len().unwrap_or(usize::MAX);
        self.values.push(Info { kind, shape, len, home });
        self.written.push(written);
        Value(self.values.len() - 1)
    }

    fn is_written(&self, value: Value) -> bool {
        value.0 < self.values.len() && self.written[root(&self.values, value)]
    }

    fn wrong(&self, reason: &'static str) -> PlanError {
        PlanError { step: Some(self.steps.len()), reason }
    }

    /// Puts a step after the others.
    ///
    /// # Errors
    /// It reads what is not there, writes what is there already, or its shapes do not fit.
    pub fn push(&mut self, step: Step) -> Result<(), PlanError> {
        self.check(&step).map_err(|reason| self.wrong(reason))?;
        for value in step.writes() {
            self.written[value.0] = true;
        }
        self.steps.push(step);
        Ok(())
    }

    fn check(&self, step: &Step) -> Result<(), &'static str> {
        if !step.reads().all(|value| self.is_written(value)) {
            return Err("it reads a value that is not written yet");
        }
        for value in step.writes() {
            let is_new = self.values.get(value.0).is_some_and(|info| info.home == Home::Buffer(0));
            if !is_new || self.is_written(value) {
                return Err("it writes a value that is there already");
            }
            if self.values[value.0].len > VALUES_MAX {
                return Err("a value is too large");
            }
        }
        let info = |value: &Value| self.values[value.0];
        let is = |value: &Value, kind, shape| {
            let found = info(value);
            if found.kind == kind && found.shape == shape { Ok(()) } else { Err("its shapes do not fit") }
        };
        let fits = |condition: bool| if condition { Ok(()) } else { Err("its shapes do not fit") };
        match step {
            Step::Convolution { kernel, image, input, residual, real, bytes } => {
                let output =
                    kernel.window().output(*image).ok_or("its kernel does not fit into the image")?;
                let ([height, width], [inputs, outputs]) = (*image, kernel.channels());
                let kind = if kernel.reads_bytes() { Kind::Bytes } else { Kind::Real };
                let shape = match kernel.layout() {
                    Layout::Planes => Shape([1, inputs, height, width]),
                    Layout::ChannelsLast => Shape([1, height, width, inputs]),
                };
                is(input, kind, shape)?;
                let shape = Shape([1, output[0], output[1], outputs]);
                residual.as_ref().map_or(Ok(()), |residual| is(residual, Kind::Real, shape))?;
                real.as_ref().map_or(Ok(()), |real| is(real, Kind::Real, shape))?;
                bytes.as_ref().map_or(Ok(()), |bytes| is(bytes, Kind::Bytes, shape))?;
                fits(residual.is_none() || !kernel.is_depthwise())?;
                fits(if kernel.reads_bytes() { real.is_some() || bytes.is_some() } else { real.is_some() })?;
                fits(bytes.is_none() || kernel.rounds())
            }
            Step::Round { layout, input, output, .. } => {
                let Shape([images, a, b, c]) = info(input).shape;
                let shape = if *layout == Layout::Planes { [images, b, c, a] } else { [images, a, b, c] };
                fits(info(input).kind == Kind::Real && images == 1 && info(input).len > 0)?;
                is(output, Kind::Bytes, Shape(shape))
            }
            Step::Unround { input, output, .. } => {
                fits(info(input).kind == Kind::Bytes)?;
                is(output, Kind::Real, info(input).shape)
            }
            Step::Map { input, output, .. } => {
                fits(info(input).kind == Kind::Real)?;
                is(output, Kind::Real, info(input).shape)
            }
            Step::Zip { left, right, output, .. } => {
                let mut shape = [0; 4];
                for (side, both) in
                    shape.iter_mut().zip(info(left).shape.0.into_iter().zip(info(right).shape.0))
                {
                    *side = match both {
                        (1, other) | (other, 1) => other,
                        (a, b) if a == b => a,
                        _ => return Err("its shapes do not fit"),
                    };
                }
                fits(info(left).kind == Kind::Real && info(right).kind == Kind::Real)?;
                is(output, Kind::Real, Shape(shape))
            }
            Step::Sum { axes, input, output } => {
                let mut shape = info(input).shape;
                shape.0.iter_mut().zip(axes).filter(|(_, summed)| **summed).for_each(|(side, _)| *side = 1);
                fits(info(input).kind == Kind::Real)?;
                is(output, Kind::Real, shape)
            }
            Step::Slice { start, input, output } => {
                let (from, to) = (info(input), info(output));
                let inside = (0..4).all(|side| {
                    start[side].checked_add(to.shape.0[side]).is_some_and(|end| end <= from.shape.0[side])
                });
                fits(inside && from.kind == Kind::Real && to.kind == Kind::Real)
            }
            Step::Permute { order, input, output } => {
                let mut sorted = *order;
                sorted.sort_unstable();
                fits(sorted == [0, 1, 2, 3] && info(input).kind == Kind::Real)?;
                is(output, Kind::Real, Shape(order.map(|side| info(input).shape.0[side])))
            }
        }
    }

    /// The plan, which gives `output`.
    ///
    /// # Errors
    /// The output is not there, or is no real numbers.
    pub fn finish(mut self, output: Value) -> Result<Plan, PlanError> {
        let wrong = |reason| PlanError { step: None, reason };
        if !self.is_written(output) || self.values[output.0].kind != Kind::Real {
            return Err(wrong("what it gives is not written by any step"));
        }
        if self.values[0].len > VALUES_MAX || self.values[0].len == 0 {
            return Err(wrong("its image is too large, or empty"));
        }
        let buffers = self.assign(output);
        let Self { input, values, constants, steps, .. } = self;
        let plan = Plan { input, values, constants, steps, output, buffers };
        if plan.workspace_bytes() > WORKSPACE_BYTES_MAX {
            return Err(wrong("what lies between its steps takes too much memory"));
        }
        Ok(plan)
    }

    /// Gives each written value a buffer that nobody else needs while it is read. Returns their lengths.
    fn assign(&mut self, output: Value) -> [Vec<usize>; 2] {
        let mut last = vec![0; self.values.len()];
        for (number, step) in self.steps.iter().enumerate() {
            for value in step.reads().chain(step.writes()) {
                last[root(&self.values, value)] = number;
            }
        }
        last[root(&self.values, output)] = usize::MAX;
        let mut buffers = [Vec::new(), Vec::new()];
        let mut free: [Vec<usize>; 2] = [Vec::new(), Vec::new()];
        for (number, step) in self.steps.iter().enumerate() {
            for value in step.writes() {
                let Info { kind, len, .. } = self.values[value.0];
                let (buffers, free) = (&mut buffers[kind as usize], &mut free[kind as usize]);
                // The smallest that is large enough, or else the largest, which grows.
                let fit = |buffer: &usize| {
                    let room: usize = buffers[*buffer];
                    if room >= len { (0, room) } else { (1, usize::MAX - room) }
                };
                let place = (0..free.len()).min_by_key(|place| fit(&free[*place]));
                let buffer = place.map(|place| free.swap_remove(place)).unwrap_or_else(|| {
                    buffers.push(0);
                    buffers.len() - 1
                });
                buffers[buffer] = buffers[buffer].max(len);
                self.values[value.0].home = Home::Buffer(buffer);
            }
            let mut over: Vec<usize> =
                step.reads().chain(step.writes()).map(|value| root(&self.values, value)).collect();
            over.sort_unstable();
            over.dedup();
            for value in over.into_iter().filter(|value| last[*value] == number) {
                if let Info { kind, home: Home::Buffer(buffer), .. } = self.values[value] {
                    free[kind as usize].push(buffer);
                }
            }
        }
        buffers
    }
}
