//! A plan as bytes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ops::Range;

use glimpse_kernels::{Damaged, Layout, Memory, Reader, Rounding, Writer};

use crate::kernel::Kernel;
use crate::plan::{Home, Kind, Plan, PlanBuilder, PlanError};
use crate::shape::{Shape, Value};
use crate::step::{Function, Operation, Step};

/// What a file begins with; the last letter is raised with every change of what follows, or of how kernels pack weights.
const MAGIC: &[u8; 8] = b"GLPLAN-C";

const FUNCTIONS: usize = 5;
const OPERATIONS: [Operation; 4] = [Operation::Add, Operation::Multiply, Operation::Max, Operation::Min];

impl Plan {
    /// The plan as bytes, for processors with the same instructions.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let kept: Result<(), Infallible> = self.write_parts(|part| {
            bytes.extend_from_slice(part);
            Ok(())
        });
        let Ok(()) = kept;
        bytes
    }

    /// The same, part by part: one for each step, so that no second copy of all weights is made.
    ///
    /// # Errors
    /// The first of `put`.
    pub fn write_parts<E>(&self, mut put: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut to = Writer::new();
        to.bytes(MAGIC);
        to.counts(&self.input);
        to.count(self.values.len());
        for info in &self.values {
            to.counts(&info.shape.0);
            match (info.home, info.kind) {
                (Home::Input, _) => to.count(0),
                (Home::Buffer(_), Kind::Real) => to.count(1),
                (Home::Buffer(_), Kind::Bytes) => to.count(2),
                (Home::With(root), _) => to.counts(&[3, root]),
                (Home::Constant(constant), _) => {
                    to.count(4);
                    self.constants[constant].iter().for_each(|real| to.real(*real));
                }
            }
        }
        to.count(self.steps.len());
        for step in &self.steps {
            write_step(step, &mut to);
            put(&to.take())?;
        }
        to.count(self.output.0);
        put(&to.take())
    }

    /// What [`write`](Self::write) made, all of `bytes`. Whatever they hold, what comes of them is a plan that can be run; but a
    /// weight that was changed is not noticed.
    ///
    /// # Errors
    /// Bytes that are no plan, or one for another processor.
    pub fn read(bytes: &[u8]) -> Result<Self, PlanError> {
        Self::read_from(Reader::new(bytes))
    }

    /// The same of these bytes of `memory`. Weights are used where they are, if the first byte lies at a multiple of 64; elsewhere
    /// they are copied.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_within(memory: &Memory, bytes: Range<usize>) -> Result<Self, PlanError> {
        Self::read_from(Reader::within(memory, bytes)?)
    }

    /// Bytes of the constants of a plan, which are copied wherever it is read.
    ///
    /// # Errors
    /// Bytes that are no plan, as far as its steps.
    pub fn constant_bytes(bytes: &[u8]) -> Result<usize, PlanError> {
        let mut from = Reader::new(bytes);
        read_magic(&mut from)?;
        let _input: [usize; 3] = from.counts()?;
        let mut constants = 0;
        for _ in 0..from.count()? {
            let shape = Shape(from.counts()?);
            match from.count()? {
                3 => {
                    from.count()?;
                }
                4 => {
                    let bytes = shape.len().and_then(|len| len.checked_mul(4));
                    constants += from.bytes(bytes.ok_or(Damaged("a constant is too large"))?)?.len();
                }
                _ => {}
            }
        }
        Ok(constants)
    }

    fn read_from(mut from: Reader<'_>) -> Result<Self, PlanError> {
        read_magic(&mut from)?;
        let mut builder = PlanBuilder::new(from.counts()?);
        for number in 0..from.count()? {
            let shape = Shape(from.counts()?);
            let value = match from.count()? {
                0 if number == 0 => builder.input(),
                1 => builder.real(shape),
                2 => builder.bytes(shape),
                3 => builder.reshaped(Value(from.count()?), shape)?,
                4 => {
                    let len = shape.len().ok_or(Damaged("a constant is too large"))?;
                    builder.constant(shape, from.reals(len)?)?
                }
                _ => return Err(Damaged("there is no such value").into()),
            };
            if value != Value(number) {
                return Err(Damaged("its values are not in order").into());
            }
        }
        for _ in 0..from.count()? {
            builder.push(read_step(&mut from)?)?;
        }
        let output = Value(from.count()?);
        if from.left() > 0 {
            return Err(Damaged("something follows its end").into());
        }
        builder.finish(output)
    }
}

fn read_magic(from: &mut Reader<'_>) -> Result<(), Damaged> {
    if from.bytes(MAGIC.len())? == MAGIC {
        Ok(())
    } else {
        Err(Damaged("it is no plan, or one of another version"))
    }
}

fn write_step(step: &Step, to: &mut Writer) {
    match step {
        Step::Convolution { kernel, image, input, residual, real, bytes } => {
            to.count(0);
            to.counts(image);
            to.count(input.0);
            [residual, real, bytes].into_iter().for_each(|value| match value {
                Some(value) => to.counts(&[1, value.0]),
                None => to.count(0),
            });
            kernel.write(to);
        }
        Step::Round { isa, rounding, layout, input, output } => {
            to.counts(&[1, input.0, output.0, usize::from(*layout == Layout::Planes)]);
            to.isa(*isa);
            to.rounding(Some(*rounding));
        }
        Step::Unround { isa, rounding, input, output } => {
            to.counts(&[2, input.0, output.0]);
            to.isa(*isa);
            to.rounding(Some(*rounding));
        }
        Step::Map { function, input, output } => {
            let (number, argument) = match function {
                Function::Square => (0, 0.0),
                Function::Sqrt => (1, 0.0),
                Function::Reciprocal => (2, 0.0),
                Function::Power(exponent) => (3, *exponent),
                Function::Scale(factor) => (FUNCTIONS - 1, *factor),
            };
            to.counts(&[3, input.0, output.0, number]);
            to.real(argument);
        }
        Step::Zip { operation, left, right, output } => {
            let number = OPERATIONS.iter().position(|known| known == operation).unwrap_or_default();
            to.counts(&[4, left.0, right.0, output.0, number]);
        }
        Step::Sum { axes, input, output } => {
            to.counts(&[5, input.0, output.0]);
            to.counts(&axes.map(usize::from));
        }
        Step::Slice { start, input, output } => {
            to.counts(&[6, input.0, output.0]);
            to.counts(start);
        }
        Step::Permute { order, input, output } => {
            to.counts(&[7, input.0, output.0]);
            to.counts(order);
        }
    }
}

fn read_step(from: &mut Reader<'_>) -> Result<Step, Damaged> {
    let value = |from: &mut Reader<'_>| from.count().map(Value);
    let perhaps = |from: &mut Reader<'_>| Ok(if from.flag()? { Some(Value(from.count()?)) } else { None });
    let rounding = |from: &mut Reader<'_>| -> Result<Rounding, Damaged> {
        from.rounding()?.ok_or(Damaged("a rounding is missing"))
    };
    let kind = from.count()?;
    if kind == 0 {
        let (image, input) = (from.counts()?, value(from)?);
        let (residual, real, bytes) = (perhaps(from)?, perhaps(from)?, perhaps(from)?);
        let kernel = Arc::new(Kernel::read(from)?);
        return Ok(Step::Convolution { kernel, image, input, residual, real, bytes });
    }
    let (input, next) = (value(from)?, value(from)?);
    Ok(match kind {
        1 => {
            let layout = if from.flag()? { Layout::Planes } else { Layout::ChannelsLast };
            Step::Round { layout, isa: from.isa()?, rounding: rounding(from)?, input, output: next }
        }
        2 => Step::Unround { isa: from.isa()?, rounding: rounding(from)?, input, output: next },
        3 => {
            let (number, argument) = (from.count()?, from.real()?);
            let functions: [Function; FUNCTIONS] = [
                Function::Square,
                Function::Sqrt,
                Function::Reciprocal,
                Function::Power(argument),
                Function::Scale(argument),
            ];
            let function = *functions.get(number).ok_or(Damaged("there is no such function"))?;
            Step::Map { function, input, output: next }
        }
        4 => {
            let output = value(from)?;
            let operation = *OPERATIONS.get(from.count()?).ok_or(Damaged("there is no such operation"))?;
            Step::Zip { operation, left: input, right: next, output }
        }
        5 => {
            let [a, b, c, d] = [from.flag()?, from.flag()?, from.flag()?, from.flag()?];
            Step::Sum { axes: [a, b, c, d], input, output: next }
        }
        6 => Step::Slice { start: from.counts()?, input, output: next },
        7 => Step::Permute { order: from.counts()?, input, output: next },
        _ => return Err(Damaged("there is no such step")),
    })
}
