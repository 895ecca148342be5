//! Real numbers to the bytes that our kernels read, and back.

use glimpse_kernels::{Isa, Layout, Rounding, quantize};
use tract_onnx::prelude::*;
#[allow(clippy::wildcard_imports, reason = "what the engine's macros name; not reported in tests")]
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::{EvalOp, Op, TypedOp};

/// An image in any layout to bytes, `[N, height, width, channels]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Round {
    pub(crate) isa: Isa,
    pub(crate) rounding: Rounding,
    pub(crate) layout: Layout,
}

impl Eq for Round {}

impl Round {
    fn shape(&self, input: &[usize]) -> TractResult<[usize; 4]> {
        let &[images, a, b, c] = input else { bail!("an image, not {input:?}") };
        Ok(if self.layout == Layout::Planes { [images, b, c, a] } else { [images, a, b, c] })
    }
}

impl Op for Round {
    fn name(&self) -> StaticName {
        "GlimpseRound".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Round {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let shape = self.shape(inputs[0].shape())?;
        let input = inputs[0].try_as_plain_ram()?;
        let input = input.as_slice::<f32>()?;
        // SAFETY: every value of it is written below.
        let mut output = unsafe { Tensor::uninitialized::<u8>(&shape)? };
        let mut plain = output.try_as_plain_ram_mut()?;
        let bytes = plain.as_slice_mut::<u8>()?;
        let size = (input.len() / shape[0].max(1)).max(1);
        for (real, bytes) in input.chunks_exact(size).zip(bytes.chunks_exact_mut(size)) {
            quantize(self.isa, self.rounding, (self.layout, shape[3]), real, bytes);
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Round {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = inputs[0].shape.as_concrete().context("a known shape")?;
        Ok(tvec!(u8::fact(self.shape(shape)?)))
    }
}

/// Bytes to what they stand for, in the shape that they have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unround {
    pub(crate) isa: Isa,
    pub(crate) rounding: Rounding,
}

impl Eq for Unround {}

impl Op for Unround {
    fn name(&self) -> StaticName {
        "GlimpseUnround".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Unround {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = inputs[0].try_as_plain_ram()?;
        let zero = f32::from(self.rounding.zero_point);
        let real = |byte: &u8| (f32::from(byte ^ self.isa.flip()) - zero) * self.rounding.step;
        let real: Vec<f32> = input.as_slice::<u8>()?.iter().map(real).collect();
        Ok(tvec!(Tensor::from_shape(inputs[0].shape(), &real)?.into_tvalue()))
    }
}

impl TypedOp for Unround {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::datum_type().fact(inputs[0].shape.clone())))
    }
}
