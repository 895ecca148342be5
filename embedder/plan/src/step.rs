//! One step and what it does.

use alloc::sync::Arc;

use glimpse_kernels::{Isa, Layout, Rounding};

use crate::kernel::Kernel;
use crate::shape::{Shape, Value};

/// A step: values that were written before make others.
#[derive(Debug, Clone)]
pub enum Step {
    /// A convolution of one image; its outputs are channels last.
    Convolution {
        /// Its weights.
        kernel: Arc<Kernel>,
        /// Height and width of the input, in pixels.
        image: [usize; 2],
        /// What it reads.
        input: Value,
        /// What is added before the clamp, of the output's shape.
        residual: Option<Value>,
        /// Real numbers that it writes.
        real: Option<Value>,
        /// Bytes that it writes.
        bytes: Option<Value>,
    },
    /// Real numbers to the bytes that kernels read, channels last.
    Round {
        /// The instructions of those kernels.
        isa: Isa,
        /// How.
        rounding: Rounding,
        /// How the real numbers lie.
        layout: Layout,
        /// Real numbers.
        input: Value,
        /// Bytes.
        output: Value,
    },
    /// Bytes to what they stand for.
    Unround {
        /// The instructions of the kernels that wrote them.
        isa: Isa,
        /// How they were rounded.
        rounding: Rounding,
        /// Bytes.
        input: Value,
        /// Real numbers.
        output: Value,
    },
    /// A function of each number.
    Map {
        /// The function.
        function: Function,
        /// Real numbers.
        input: Value,
        /// As many.
        output: Value,
    },
    /// An operation on the numbers of two values; sides of one stand for as many as the other has.
    Zip {
        /// The operation.
        operation: Operation,
        /// Its first operand.
        left: Value,
        /// Its second.
        right: Value,
        /// As large as both together.
        output: Value,
    },
    /// Sums along some sides, which become ones.
    Sum {
        /// Along which.
        axes: [bool; 4],
        /// Real numbers.
        input: Value,
        /// Their sums.
        output: Value,
    },
    /// A part of a value: from a place on, as much as the output has.
    Slice {
        /// Where it begins along each side.
        start: [usize; 4],
        /// Real numbers.
        input: Value,
        /// Some of them.
        output: Value,
    },
    /// The same numbers with the sides in another order.
    Permute {
        /// For each side of the output, the side of the input.
        order: [usize; 4],
        /// Real numbers.
        input: Value,
        /// The same.
        output: Value,
    },
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// Times itself.
    Square,
    /// The square root.
    Sqrt,
    /// One divided by it.
    Reciprocal,
    /// To a power.
    Power(f32),
    /// Times a number.
    Scale(f32),
}

/// An operation on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Their sum.
    Add,
    /// Their product.
    Multiply,
    /// The larger.
    Max,
    /// The smaller.
    Min,
}

impl Step {
    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Convolution { kernel, .. } => kernel.name(),
            Self::Round { .. } => "GlimpseRound",
            Self::Unround { .. } => "GlimpseUnround",
            Self::Map { .. } => "GlimpseMap",
            Self::Zip { .. } => "GlimpseZip",
            Self::Sum { .. } => "GlimpseSum",
            Self::Slice { .. } => "GlimpseSlice",
            Self::Permute { .. } => "GlimpsePermute",
        }
    }

    /// Multiply-adds of its convolution, 0 where there is none.
    pub fn multiply_adds(&self) -> u64 {
        match self {
            Self::Convolution { kernel, image, .. } => kernel.multiply_adds(*image),
            _ => 0,
        }
    }

    /// What it reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Value> {
        let (first, second) = match self {
            Self::Convolution { input, residual, .. } => (*input, *residual),
            Self::Zip { left, right, .. } => (*left, Some(*right)),
            Self::Round { input, .. }
            | Self::Unround { input, .. }
            | Self::Map { input, .. }
            | Self::Sum { input, .. }
            | Self::Slice { input, .. }
            | Self::Permute { input, .. } => (*input, None),
        };
        [Some(first), second].into_iter().flatten()
    }

    /// What it writes.
    pub(crate) fn writes(&self) -> impl Iterator<Item = Value> {
        let outputs = match self {
            Self::Convolution { real, bytes, .. } => [*real, *bytes],
            Self::Round { output, .. }
            | Self::Unround { output, .. }
            | Self::Map { output, .. }
            | Self::Zip { output, .. }
            | Self::Sum { output, .. }
            | Self::Slice { output, .. }
            | Self::Permute { output, .. } => [Some(*output), None],
        };
        outputs.into_iter().flatten()
    }
}

impl Function {
    /// Writes the function of each number.
    pub(crate) fn map(self, from: &[f32], to: &mut [f32]) {
        fn each(from: &[f32], to: &mut [f32], function: impl Fn(f32) -> f32) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = function(*from));
        }
        match self {
            Self::Square => each(from, to, |x| x * x),
            Self::Sqrt => each(from, to, libm::sqrtf),
            Self::Reciprocal => each(from, to, |x| 1.0 / x),
            Self::Power(exponent) => each(from, to, |x| power(x, exponent)),
            Self::Scale(factor) => each(from, to, |x| x * factor),
        }
    }
}

/// The system's is several times as fast where there is one.
fn power(x: f32, exponent: f32) -> f32 {
    #[cfg(not(target_os = "none"))]
    return x.powf(exponent);
    #[cfg(target_os = "none")]
    return libm::powf(x, exponent);
}

/// Real numbers in a shape.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) shape: Shape,
}

impl Operation {
    /// Writes the operation of each pair.
    pub(crate) fn zip(self, left: Tensor<'_>, right: Tensor<'_>, shape: Shape, to: &mut [f32]) {
        match self {
            Self::Add => zip(left, right, shape, to, |a, b| a + b),
            Self::Multiply => zip(left, right, shape, to, |a, b| a * b),
            Self::Max => zip(left, right, shape, to, f32::max),
            Self::Min => zip(left, right, shape, to, f32::min),
        }
    }
}

fn zip(
    left: Tensor<'_>,
    right: Tensor<'_>,
    shape: Shape,
    to: &mut [f32],
    operation: impl Fn(f32, f32) -> f32,
) {
    let (of_left, of_right) = (left.shape.strides(), right.shape.strides());
    let columns = shape.0[3].max(1);
    for ([a, b, c], line) in lines(shape).zip(to.chunks_exact_mut(columns)) {
        let begin = |strides: [usize; 4]| a * strides[0] + b * strides[1] + c * strides[2];
        let (x, y) = (begin(of_left), begin(of_right));
        for (column, to) in line.iter_mut().enumerate() {
            *to = operation(left.values[x + column * of_left[3]], right.values[y + column * of_right[3]]);
        }
    }
}

/// The places of a shape's lines, in the order of memory.
fn lines(Shape([images, height, width, _]): Shape) -> impl Iterator<Item = [usize; 3]> {
    (0..images).flat_map(move |a| (0..height).flat_map(move |b| (0..width).map(move |c| [a, b, c])))
}

/// Sums of numbers in the places of `to`, which has ones where `from` has sides that are summed along.
pub(crate) fn sum(from: Tensor<'_>, shape: Shape, to: &mut [f32]) {
    to.fill(0.0);
    let strides = shape.strides();
    for ([a, b, c], line) in lines(from.shape).zip(from.values.chunks_exact(from.shape.0[3].max(1))) {
        let at = a * strides[0] + b * strides[1] + c * strides[2];
        if strides[3] == 1 {
            to[at..].iter_mut().zip(line).for_each(|(sum, x)| *sum += x);
        } else {
            to[at] += line.iter().sum::<f32>();
        }
    }
}

/// Numbers from other places: `start` and then `strides` of `from` for each side of `shape`.
pub(crate) fn gather(from: &[f32], start: usize, strides: [usize; 4], shape: Shape, to: &mut [f32]) {
    for ([a, b, c], line) in lines(shape).zip(to.chunks_exact_mut(shape.0[3].max(1))) {
        let at = start + a * strides[0] + b * strides[1] + c * strides[2];
        for (column, to) in line.iter_mut().enumerate() {
            *to = from[at + column * strides[3]];
        }
    }
}
