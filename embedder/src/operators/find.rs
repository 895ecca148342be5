//! Which parts of a graph become operators of ours.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use glimpse_kernels::{
    Clamp, Dense, DenseI8, Depthwise, DepthwiseI8, Integers, Isa, Layout, Rounding, Window,
};
use glimpse_plan::Kernel;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::{Add, Max, Min};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_core::ops::quant::{DequantizeLinearF32, QuantizeLinearU8};

use super::convolution::Convolution;
use crate::EmbedderOptions;

/// Input channels up to which a convolution reads planes as well as it reads channels last: one register would be nearly empty.
const PLANES_MAX: usize = 4;

/// What was found in a graph.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By the last node of each.
    chains: HashMap<usize, Chain>,
    /// All nodes of chains but the last; and what chains write besides: their rounded outputs.
    parts: HashSet<usize>,
    /// Nodes that round what convolutions of bytes read.
    rounded: HashMap<usize, Rounding>,
}

/// A convolution with the nodes after it that become part of it.
#[derive(Debug)]
pub(super) struct Chain {
    /// The image.
    pub(super) input: OutletId,
    /// What is added before the clamp.
    pub(super) residual: Option<OutletId>,
    isa: Isa,
    channels: [usize; 2],
    depthwise: bool,
    window: Window,
    /// Height and width of the input, in pixels.
    image: [usize; 2],
    weights: Weights,
    clamp: Clamp,
    /// Of convolutions of bytes: the node that rounds what comes out, and whether anybody reads it as it is besides.
    pub(super) rounded: Option<usize>,
    rounding: Option<Rounding>,
    pub(super) real: bool,
}

#[derive(Debug)]
enum Weights {
    Real { weights: Arc<Tensor>, bias: Option<Vec<f32>> },
    Integers { weights: Vec<i8>, steps: Vec<f32>, bias: Vec<i32>, zero_point: u8 },
}

impl Found {
    pub(super) fn look(model: &TypedModel, options: &EmbedderOptions) -> TractResult<Self> {
        let mut found = Self::default();
        for id in model.eval_order()? {
            if let Some(mut chain) = Chain::start(model, id, options)? {
                if let Some((bytes, rounding)) = bytes_of(model, chain.input)?.filter(|_| chain.reads_bytes())
                {
                    chain.input = bytes;
                    found.rounded.insert(bytes.node, rounding);
                }
                let last = chain.follow(model, id, &mut found)?;
                found.chains.insert(last, chain);
            }
        }
        // Only now is it known what is read as bytes.
        for (last, chain) in &mut found.chains {
            chain.round(model, *last, &found.rounded)?;
            found.parts.extend(chain.rounded);
        }
        Ok(found)
    }

    /// How a node rounds, where convolutions of bytes read what it writes.
    pub(super) fn rounding(&self, id: usize) -> Option<Rounding> {
        self.rounded.get(&id).copied()
    }

    /// For a node that makes real numbers of such bytes again: where these come from.
    pub(super) fn real_again(&self, model: &TypedModel, id: usize) -> Option<(OutletId, Rounding)> {
        let node = model.node(id);
        let from = *node.inputs.first().filter(|_| node.op_is::<DequantizeLinearF32>())?;
        Some((from, self.rounding(from.node)?))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether a later node stands for this one.
    pub(super) fn is_part(&self, id: usize) -> bool {
        self.parts.contains(&id)
    }

    pub(super) fn take(&mut self, last: usize) -> Option<Chain> {
        self.chains.remove(&last)
    }
}

impl Chain {
    /// The node, where it is a convolution that a rule knows.
    fn start(model: &TypedModel, id: usize, options: &EmbedderOptions) -> TractResult<Option<Self>> {
        let node = model.node(id);
        let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
        let spec = &conv.pool_spec;
        let facts = model.node_input_facts(id)?;
        let Some(&[_, inputs, height, width]) = facts[0].shape.as_concrete() else { return Ok(None) };
        let (&[tall, wide], &[down, right]) = (&spec.kernel_shape[..], &spec.strides()[..]) else {
            return Ok(None);
        };
        let plain = conv.q_params.is_none()
            && spec.data_format == DataFormat::NCHW
            && conv.kernel_fmt == KernelFormat::OIHW
            && spec.dilations().iter().all(|dilation| *dilation == 1)
            && facts[0].datum_type == f32::datum_type();
        let explicit = !matches!(spec.padding, PaddingSpec::ExplicitOnnxPool(_, _, true));
        let outputs = spec.output_channels;
        let depthwise = conv.group > 1 && conv.group == inputs && inputs == outputs;
        if !plain || !explicit || !(conv.group == 1 || depthwise) {
            return Ok(None);
        }
        let image = [height, width];
        let pads = spec.computed_padding(&image);
        let [before, after] = [0, 1].map(|end: usize| {
            [0, 1].map(|axis: usize| if end == 0 { pads[axis].pad_before } else { pads[axis].pad_after })
        });
        let window = Window { kernel: [tall, wide], stride: [down, right], before, after };
        let size = model.outlet_fact(id.into())?.shape.as_concrete().map(<[usize]>::to_vec);
        let fits = window
            .output(image)
            .is_some_and(|[h, w]| size.as_deref().is_some_and(|size| size[1..] == [outputs, h, w]));
        let count =
            [outputs, inputs / conv.group, tall, wide].into_iter().try_fold(1_usize, usize::checked_mul);
        // An image without channels is the engine's.
        let Some(count) = count.filter(|count| fits && *count > 0) else { return Ok(None) };
        let integers = || -> TractResult<Option<Weights>> {
            let Some((_, rounding)) = bytes_of(model, node.inputs[0])? else { return Ok(None) };
            Ok(integers(model, &node.inputs, outputs, rounding).filter(|weights| weights.len() == count))
        };
        let real = || real_weights(model, &node.inputs, outputs).filter(|weights| weights.len() == count);
        let integers = if options.int8 { integers()? } else { None };
        let found = match (integers, options.kernels(depthwise, &window)) {
            (Some(weights), _) => Some((weights, options.isa)),
            (None, Some(isa)) => real().map(|weights| (weights, isa)),
            (None, None) => None,
        };
        Ok(found.map(|(weights, isa)| Self {
            input: node.inputs[0],
            residual: None,
            isa,
            channels: [inputs, outputs],
            depthwise,
            window,
            image,
            weights,
            clamp: Clamp::NONE,
            rounded: None,
            rounding: None,
            real: true,
        }))
    }

    /// Takes the nodes after `id` in, as far as they can be. Returns the last.
    fn follow(&mut self, model: &TypedModel, id: usize, found: &mut Found) -> TractResult<usize> {
        let mut last = id;
        while let Some(next) = only_successor(model, last)? {
            // The sum of two convolutions belongs to the first.
            if found.parts.contains(&next) || found.chains.contains_key(&next) {
                break;
            }
            let Some(operation) = model.node(next).op_as::<TypedBinOp>() else { break };
            let inputs = &model.node(next).inputs;
            let Some(other) = inputs.iter().copied().find(|input| *input != last.into()) else { break };
            let (ours, theirs) = (model.outlet_fact(last.into())?, model.outlet_fact(other)?);
            if model.outlet_fact(next.into())?.shape != ours.shape {
                break;
            }
            let constant = constant(model, other).and_then(|constant| scalar(&constant));
            let clamp = |low, high| Clamp { low, high };
            match constant {
                Some(bound) if operation.0.is::<Max>() => {
                    self.clamp = self.clamp.then(clamp(bound, f32::INFINITY));
                }
                Some(bound) if operation.0.is::<Min>() => {
                    self.clamp = self.clamp.then(clamp(f32::NEG_INFINITY, bound));
                }
                None if operation.0.is::<Add>()
                    && !self.depthwise
                    && self.residual.is_none()
                    && self.clamp == Clamp::NONE
                    && ours.shape == theirs.shape
                    && theirs.datum_type == f32::datum_type() =>
                {
                    self.residual = Some(other);
                }
                _ => break,
            }
            found.parts.insert(last);
            last = next;
        }
        Ok(last)
    }

    /// Looks for the node after the last that rounds what comes out.
    fn round(
        &mut self,
        model: &TypedModel,
        last: usize,
        rounded: &HashMap<usize, Rounding>,
    ) -> TractResult<()> {
        if self.reads_bytes() {
            let readers = model.outlet_successors(last.into());
            let mut rounding = readers.iter().filter(|reader| rounded.contains_key(&reader.node));
            if let Some(reader) = rounding.next() {
                self.rounded = Some(reader.node);
                self.rounding = rounded.get(&reader.node).copied();
                self.real = readers.len() > 1 || model.output_outlets()?.contains(&last.into());
            }
        }
        Ok(())
    }

    pub(super) const fn reads_bytes(&self) -> bool {
        matches!(self.weights, Weights::Integers { .. })
    }

    /// Whether it reads an image in planes as it is.
    pub(super) fn is_for_planes(&self) -> bool {
        !self.depthwise && !self.reads_bytes() && self.channels[0] <= PLANES_MAX
    }

    /// With its weights packed, for an input in planes or with channels last.
    pub(super) fn operator(self, planes: bool) -> Convolution {
        let layout = if planes { Layout::Planes } else { Layout::ChannelsLast };
        let (isa, window, clamp) = (self.isa, self.window, self.clamp);
        let kernel = match (&self.weights, self.depthwise) {
            (Weights::Real { weights, bias }, depthwise) => {
                let weights = weights.try_as_plain_ram().ok();
                let weights = weights.as_ref().and_then(|weights| weights.as_slice::<f32>().ok());
                let weights = (weights.unwrap_or_default(), bias.as_deref());
                if depthwise {
                    Kernel::Depthwise(Depthwise::new(isa, self.channels[0], window, weights, clamp))
                } else {
                    Kernel::Dense(Dense::new(isa, self.channels, window, layout, weights, clamp))
                }
            }
            (Weights::Integers { weights, steps, bias, zero_point }, depthwise) => {
                let integers = Integers { weights, steps, bias, zero_point: *zero_point };
                if depthwise {
                    let channels = self.channels[0];
                    Kernel::DepthwiseI8(DepthwiseI8::new(
                        isa,
                        channels,
                        window,
                        integers,
                        clamp,
                        self.rounding,
                    ))
                } else {
                    Kernel::DenseI8(DenseI8::new(isa, self.channels, window, integers, clamp, self.rounding))
                }
            }
        };
        Convolution::new(kernel, self.image, self.real, self.rounding.is_some())
    }
}

/// The one node that takes what `id` makes, where nobody else does.
fn only_successor(model: &TypedModel, id: usize) -> TractResult<Option<usize>> {
    let successors = model.outlet_successors(id.into());
    let is_output = model.output_outlets()?.contains(&id.into());
    let [only] = successors else { return Ok(None) };
    Ok((!is_output && model.node(id).outputs.len() == 1).then_some(only.node))
}

/// The value of an outlet that is a constant, or one operation away from it, as the engine leaves biases and bounds.
fn constant(model: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    let known = |outlet: OutletId| model.outlet_fact(outlet).ok()?.konst.clone();
    if let Some(constant) = known(outlet) {
        return Some(constant);
    }
    let node = model.node(outlet.node);
    let [input] = node.inputs[..] else { return None };
    let outputs = node.op.eval_out_of_plan(tvec!(known(input)?.into_tvalue())).ok()??;
    Some(outputs.get(outlet.slot)?.clone().into_arc_tensor())
}

fn scalar(tensor: &Tensor) -> Option<f32> {
    let plain = tensor.try_as_plain_ram().ok()?;
    match plain.as_slice::<f32>().ok()? {
        [only] => Some(*only),
        _ => None,
    }
}

/// A bias of each output channel, also from one of all.
fn bias_of(tensor: &Tensor, outputs: usize) -> Option<Vec<f32>> {
    let plain = tensor.try_as_plain_ram().ok()?;
    let bias = plain.as_slice::<f32>().ok()?;
    match bias {
        [only] => Some(vec![*only; outputs]),
        all => (all.len() == outputs).then(|| all.to_vec()),
    }
}

impl Weights {
    fn len(&self) -> usize {
        match self {
            Self::Real { weights, .. } => weights.len(),
            Self::Integers { weights, .. } => weights.len(),
        }
    }
}

/// The `f32` weights of a convolution, and its bias.
fn real_weights(model: &TypedModel, inputs: &[OutletId], outputs: usize) -> Option<Weights> {
    let weights = constant(model, inputs[1]).filter(|weights| weights.datum_type() == f32::datum_type())?;
    let bias = match inputs.get(2) {
        None => None,
        Some(bias) => Some(bias_of(&*constant(model, *bias)?, outputs)?),
    };
    Some(Weights::Real { weights, bias })
}

/// The bytes that a value of the model was made of by `DequantizeLinear`, where they were rounded by `QuantizeLinear`, one step for
/// all of them, and nobody reads them but such nodes.
fn bytes_of(model: &TypedModel, value: OutletId) -> TractResult<Option<(OutletId, Rounding)>> {
    let Some(real) = model.node(value.node).op_as::<DequantizeLinearF32>() else { return Ok(None) };
    let bytes = model.node(value.node).inputs[0];
    let rounds = model.node(bytes.node).op_as::<ElementWiseOp>();
    let Some(rounds) = rounds.and_then(|op| op.0.downcast_ref::<QuantizeLinearU8>()) else { return Ok(None) };
    let readers = model.outlet_successors(bytes);
    let same = |reader: &DequantizeLinearF32| reader == real;
    let all =
        readers.iter().all(|reader| model.node(reader.node).op_as::<DequantizeLinearF32>().is_some_and(same));
    // The step of the rounding is there as its inverse.
    let fits = i32::from(rounds.zero_point) == real.zero_point
        && real.scale > 0.0
        && real.scale.is_finite()
        && model.outlet_fact(model.node(bytes.node).inputs[0])?.datum_type == f32::datum_type()
        && (real.scale * rounds.scale - 1.0).abs() <= 4.0 * f32::EPSILON
        && model.outlet_fact(bytes)?.rank() == 4
        && !model.output_outlets()?.contains(&bytes);
    let rounding = Rounding { step: real.scale, zero_point: rounds.zero_point };
    Ok((all && fits).then_some((bytes, rounding)))
}

/// The int8 weights of a convolution of bytes, one step an output channel, and its bias in those steps.
fn integers(model: &TypedModel, inputs: &[OutletId], outputs: usize, rounding: Rounding) -> Option<Weights> {
    let weights = constant(model, inputs[1])?;
    let weights = weights.try_as_plain_ram().ok()?;
    let (mut weights, steps) = signed_weights(weights.as_slice::<f32>().ok()?, outputs)?;
    let bias = match inputs.get(2) {
        None => vec![0.0; outputs],
        Some(bias) => bias_of(&*constant(model, *bias)?, outputs)?,
    };
    let depth = weights.len() / outputs.max(1);
    let (mut sum_steps, mut sum_bias) = (Vec::with_capacity(outputs), Vec::with_capacity(outputs));
    for ((channel, step), bias) in weights.chunks_exact_mut(depth.max(1)).zip(steps).zip(bias) {
        let (step, bias) = finest(channel, step * rounding.step, bias)?;
        sum_steps.push(step);
        sum_bias.push(bias);
    }
    let (steps, bias) = (sum_steps, sum_bias);
    Some(Weights::Integers { weights, steps, bias, zero_point: rounding.zero_point })
}

/// Makes the weights of a channel the largest whole numbers that stand for the same, so that the bias, which is rounded to a step of
/// the sums, is as exact as can be; `None` where no sum holds it. Returns that step and the bias in it.
fn finest(weights: &mut [i8], step: f32, bias: f32) -> Option<(f32, i32)> {
    let largest = weights.iter().map(|weight| weight.unsigned_abs()).max().unwrap_or(0);
    if largest == 0 {
        // There is nothing but the bias.
        let step = if bias == 0.0 { 1.0 } else { bias.abs() / (1 << 20) as f32 };
        return Some((step, (bias / step).round() as i32));
    }
    // A bias and the largest products fit into a sum.
    let products = weights.len() as f64 * 255.0 * 127.0;
    let (factor, bias) = (1..=127 / largest).rev().find_map(|factor| {
        let bias = (f64::from(bias) * f64::from(factor) / f64::from(step)).round();
        (bias.abs() + products <= f64::from(i32::MAX)).then_some((factor, bias as i32))
    })?;
    weights.iter_mut().for_each(|weight| *weight *= factor as i8);
    Some((step / f32::from(factor), bias))
}

/// The int8 weights and their steps, one an output channel (0 where all its weights are), that `DequantizeLinear` has made real
/// weights of: the engine has done so by now, and only the products are there. `None` where they are no such products.
fn signed_weights(weights: &[f32], outputs: usize) -> Option<(Vec<i8>, Vec<f32>)> {
    let depth = weights.len() / outputs.max(1);
    let mut integers = Vec::with_capacity(weights.len());
    let mut steps = Vec::with_capacity(outputs);
    for channel in weights.chunks_exact(depth.max(1)) {
        let largest = channel.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        if largest == 0.0 {
            integers.extend(channel.iter().map(|_| 0));
            steps.push(0.0);
            continue;
        }
        // The largest is so many steps.
        let (step, rounded) = (1..=127_u8).find_map(|most| {
            let step = largest / f32::from(most);
            let rounded: Option<Vec<i8>> = channel.iter().map(|weight| whole(*weight, step)).collect();
            Some((step, rounded?))
        })?;
        integers.extend(rounded);
        steps.push(step);
    }
    (steps.len() == outputs).then_some((integers, steps))
}

/// How many steps a weight is, where it is a whole number of them but for the rounding of products.
fn whole(weight: f32, step: f32) -> Option<i8> {
    let quotient = weight / step;
    // Rounded without a call into a library, for there are millions; what is too large for that is no step.
    let steps = (quotient + 0.5_f32.copysign(quotient)) as i32 as f32;
    let near = (weight - steps * step).abs() <= 4.0 * f32::EPSILON * weight.abs();
    (near && steps.abs() <= 127.0).then_some(steps as i8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_found_in_their_products() {
        let integers: Vec<i8> = (0..300).map(|i| ((i * 89) % 255 - 127) as i8).collect();
        // Of the second channel the largest is 100 steps, of the third 1, of the fourth 0.
        let integers = [&integers[..], &[100, -3, 7].repeat(100), &[1; 300], &[0; 300]].concat();
        let steps = [0.013_f32, 1.7e-5, 3.0, 0.0];
        let weights: Vec<f32> =
            integers.iter().enumerate().map(|(at, weight)| f32::from(*weight) * steps[at / 300]).collect();
        let (found, of) = signed_weights(&weights, 4).unwrap();
        assert_eq!(found, integers);
        assert!(of.iter().zip(steps).all(|(found, step)| (found - step).abs() <= step * 1e-6), "{of:?}");
        let mut other = weights;
        other[17] *= 1.0001;
        assert_eq!(signed_weights(&other, 4), None);
    }
}
