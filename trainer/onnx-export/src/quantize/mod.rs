//! Turns an f32 model into an int8 one in QDQ form: `QuantizeLinear` and `DequantizeLinear` around the operations
//! that carry the weight.
//!
//! QDQ is the form that engines agree on. A model in it is an ordinary graph whose numbers were rounded: an engine
//! without integer kernels rounds and goes on in f32 (tract), one with them fuses each group into one integer
//! operation (ONNX Runtime).
//!
//! What becomes integer, and how ([`QuantizeOptions`] restricts it):
//!
//! | tensor | type | scale |
//! |---|---|---|
//! | weights of `Conv`, `Gemm` and `MatMul` | int8, symmetric | one for each output channel, from the largest magnitude |
//! | what these operations read | uint8, with a zero point | one a tensor, from its [`Activation`] |
//! | their biases | int32 | input scale x weight scale |
//! | both sides of a residual `Add`, where asked for | uint8, with a zero point | as above |
//!
//! Everything else stays as it is and reads f32: activations, pooling, gates, norms, and operators that this module has
//! never heard of. The arithmetic is that of Jacob et al., "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference" (CVPR 2018), sections 2.1 and 2.4.
//!
//! The steps: [`observed`] names the tensors whose values matter, [`exposing`] makes a model that gives them, a
//! [`Histogram`] for each collects what they are on real inputs, [`Histogram::range`] chooses a range, and [`quantize`]
//! writes the model.
//!
//! What it deliberately lacks: training (quantization-aware or not), integer-only operators such as `QLinearConv`,
//! fewer bits than eight, and anything but f32 at the graph's inputs and outputs.

mod arithmetic;
mod error;
mod histogram;
mod plan;
mod rewrite;
mod tensors;

use std::collections::BTreeMap;

pub use arithmetic::Affine;
pub use error::QuantizeError;
pub use histogram::Histogram;

use crate::model::OnnxModel;
use crate::proto::{TensorTypeProto, TypeProto, ValueInfoProto, data_type};

/// What is quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Whether activations are quantized too. Without them the file is as small, and any engine computes in f32.
    pub activations: bool,
    /// Whether the two sides of residual additions are quantized. ONNX Runtime then adds integers; tract rounds twice
    /// more for each block.
    pub residual_adds: bool,
    /// Nodes that stay in f32, each by its own name or that of its weight.
    pub keep_f32: Vec<String>,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self { activations: true, residual_adds: false, keep_f32: Vec::new() }
    }
}

/// The values that a tensor takes: a closed interval, finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    min: f32,
    max: f32,
}

impl Range {
    /// The interval from `min` to `max`; `None` where it is empty or not finite.
    pub fn new(min: f32, max: f32) -> Option<Self> {
        (min.is_finite() && max.is_finite() && min <= max).then_some(Self { min, max })
    }

    /// The lower end.
    pub const fn min(self) -> f32 {
        self.min
    }

    /// The upper end.
    pub const fn max(self) -> f32 {
        self.max
    }
}

/// What is known about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// The values to keep apart; those outside become its ends.
    pub range: Range,
    /// The mean of each channel: along the second axis of `[N, C, ..]`, the last where there are two. Rounded weights
    /// shift their results on average, and with these means the biases take the shift back. May be empty.
    pub channel_means: Vec<f32>,
}

/// Every activation that [`observed`] names, by name.
pub type Activations = BTreeMap<String, Activation>;

/// Names of the activations that [`quantize`] has to know with these options, in the graph's order, each once.
///
/// # Errors
/// As [`quantize`], but for the activations.
pub fn observed(model: &OnnxModel, options: &QuantizeOptions) -> Result<Vec<String>, QuantizeError> {
    let graph = tensors::check(model)?;
    let plan = plan::plan(graph, options)?;
    Ok(plan.observed(graph))
}

/// The same model with these tensors as its outputs, in place of its own; graph inputs among them as well.
///
/// # Errors
/// [`QuantizeError::NoGraph`], and [`QuantizeError::UnknownTensor`] where nothing computes one of them.
pub fn exposing(model: &OnnxModel, tensors: &[String]) -> Result<OnnxModel, QuantizeError> {
    let mut model = model.clone();
    let graph = model.proto.graph.as_mut().ok_or(QuantizeError::NoGraph)?;
    for tensor in tensors {
        let computed = graph.node.iter().any(|node| node.output.contains(tensor));
        if !computed && !graph.input.iter().any(|input| input.name() == tensor) {
            return Err(QuantizeError::UnknownTensor { tensor: tensor.clone() });
        }
    }
    let float = TensorTypeProto { elem_type: Some(data_type::FLOAT), shape: None };
    let float = TypeProto { tensor_type: Some(float), ..TypeProto::default() };
    let info = |tensor: &String| ValueInfoProto {
        name: Some(tensor.clone()),
        r#type: Some(float.clone()),
        ..ValueInfoProto::default()
    };
    graph.output = tensors.iter().map(info).collect();
    Ok(model)
}

/// The int8 form of an f32 model. Metadata, symbolic dimensions, and names of inputs, outputs and intermediate values
/// stay as they are; weights that became int8 lose their f32 form. Equal arguments give equal bytes.
///
/// # Errors
/// [`QuantizeError`] where the model is damaged, was quantized before, has nothing to quantize, or uses an operator
/// set before 13, and where `activations` lacks a tensor of [`observed`].
pub fn quantize(
    model: &OnnxModel,
    activations: &Activations,
    options: &QuantizeOptions,
) -> Result<OnnxModel, QuantizeError> {
    let graph = tensors::check(model)?;
    let plan = plan::plan(graph, options)?;
    if plan.sites.is_empty() {
        return Err(QuantizeError::NothingToQuantize);
    }
    let graph = rewrite::rewrite(graph, &plan, activations, options)?;
    let mut quantized = model.clone();
    quantized.proto.graph = Some(graph);
    Ok(quantized)
}
