//! A network as a plan: all of its graph as steps, where each node is known.
//!
//! The graph is the one that [`operators`](crate::operators) made, after the engine has simplified it: convolutions of ours, and
//! after them the few operations of a head on one small value. Constants of one number and of a layer's weights stay as they are.

use std::collections::HashMap;
use std::sync::Arc;

use glimpse_kernels::{Clamp, Dense, Isa, Layout, Rounding, Window};
use glimpse_plan::{Function, Kernel, Operation, Plan, PlanBuilder, PlanError, Shape, Step, Value};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike as _;
use tract_onnx::tract_core::ops::array::Slice;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::math::{self, PowConst, Recip, Sqrt, Square};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_core::ops::quant::{DequantizeLinearF32, QuantizeLinearU8};

use crate::operators::convolution::Convolution;
use crate::operators::rounding::{Round, Unround};

/// Why a graph is no plan: its engine runs it then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFlat {
    /// No step does what this node does.
    #[error("{node} ({operator}) is no step of a plan")]
    Node {
        /// Its name.
        node: String,
        /// What it does.
        operator: String,
    },
    /// The graph is not what it says.
    #[error("the graph cannot be read: {0}")]
    Graph(TractError),
    /// The steps do not fit.
    #[error("the steps do not fit: {0}")]
    Plan(#[from] PlanError),
}

impl From<TractError> for NotFlat {
    fn from(error: TractError) -> Self {
        Self::Graph(error)
    }
}

/// The plan of a simplified graph.
pub(crate) fn flatten(model: &TypedModel, isa: Isa) -> Result<Plan, NotFlat> {
    let (inputs, outputs) = (model.input_outlets()?, model.output_outlets()?);
    let (&[input], &[output]) = (inputs, outputs) else {
        return Err(TractError::msg("it has not one input and one output").into());
    };
    let fact = model.outlet_fact(input)?.shape.as_concrete().map(<[usize]>::to_vec);
    let Some(&[1, channels, height, width]) = fact.as_deref() else {
        return Err(TractError::msg("its input is no image").into());
    };
    let builder = PlanBuilder::new([channels, height, width]);
    let values = HashMap::from([(input, builder.input())]);
    let mut flat = Flat { model, isa, builder, values };
    for id in model.eval_order()? {
        if id != input.node {
            flat.node(id)?;
        }
    }
    let output = flat.value(output)?;
    Ok(flat.builder.finish(output)?)
}

struct Flat<'a> {
    model: &'a TypedModel,
    isa: Isa,
    builder: PlanBuilder,
    values: HashMap<OutletId, Value>,
}

impl Flat<'_> {
    fn value(&self, outlet: OutletId) -> Result<Value, NotFlat> {
        let value = self.values.get(&outlet).copied();
        value.ok_or_else(|| TractError::msg("a value is read before it is written").into())
    }

    fn shape(&self, outlet: OutletId) -> Result<Shape, NotFlat> {
        let shape = &self.model.outlet_fact(outlet)?.shape;
        let shape = shape.as_concrete().and_then(Shape::of);
        shape.ok_or_else(|| TractError::msg("a value has no known shape of four sides").into())
    }

    /// Where `outlet`'s real numbers will be.
    fn real(&mut self, outlet: OutletId) -> Result<Value, NotFlat> {
        let shape = self.shape(outlet)?;
        let value = self.builder.real(shape);
        self.values.insert(outlet, value);
        Ok(value)
    }

    fn bytes(&mut self, outlet: OutletId) -> Result<Value, NotFlat> {
        let shape = self.shape(outlet)?;
        let value = self.builder.bytes(shape);
        self.values.insert(outlet, value);
        Ok(value)
    }

    /// Places of the sides of a value of `rank` among four.
    fn side(outlet_rank: usize, axis: usize) -> usize {
        axis + 4usize.saturating_sub(outlet_rank)
    }

    fn node(&mut self, id: usize) -> Result<(), NotFlat> {
        let node = self.model.node(id);
        let unknown = || NotFlat::Node { node: node.name.clone(), operator: node.op.name().into_owned() };
        let of = |slot: usize| OutletId::new(id, slot);
        let rank = |outlet: OutletId| self.model.outlet_fact(outlet).map(TypedFact::rank);
        let step = if let Some(constant) = node.op_as::<Const>() {
            return self.constant(of(0), constant.val());
        } else if let Some(convolution) = node.op_as::<Convolution>() {
            let input = self.value(node.inputs[0])?;
            let residual = node.inputs.get(1).map(|residual| self.value(*residual)).transpose()?;
            let real = convolution.real.then(|| self.real(of(0))).transpose()?;
            let slot = usize::from(convolution.real);
            let bytes = convolution.bytes.then(|| self.bytes(of(slot))).transpose()?;
            let (kernel, image) = (Arc::clone(&convolution.kernel), convolution.image);
            Step::Convolution { kernel, image, input, residual, real, bytes }
        } else if let Some(Round { isa, rounding, layout }) = node.op_as::<Round>() {
            let (input, output) = (self.value(node.inputs[0])?, self.bytes(of(0))?);
            Step::Round { isa: *isa, rounding: *rounding, layout: *layout, input, output }
        } else if let Some(Unround { isa, rounding }) = node.op_as::<Unround>() {
            let (input, output) = (self.value(node.inputs[0])?, self.real(of(0))?);
            Step::Unround { isa: *isa, rounding: *rounding, input, output }
        } else if let Some(DequantizeLinearF32 { scale, zero_point }) = node.op_as() {
            let zero_point = u8::try_from(*zero_point).map_err(|_| unknown())?;
            let (input, output) = (self.value(node.inputs[0])?, self.real(of(0))?);
            Step::Unround { isa: self.isa, rounding: Rounding { step: *scale, zero_point }, input, output }
        } else if let Some(ElementWiseOp(function, None)) = node.op_as::<ElementWiseOp>() {
            let input = self.value(node.inputs[0])?;
            if let Some(QuantizeLinearU8 { scale, zero_point }) = function.downcast_ref() {
                // A head of four sides would come with channels first.
                if rank(node.inputs[0])? > 2 {
                    return Err(unknown());
                }
                let rounding = Rounding { step: scale.recip(), zero_point: *zero_point };
                let output = self.bytes(of(0))?;
                Step::Round { isa: self.isa, rounding, layout: Layout::ChannelsLast, input, output }
            } else {
                let function = if function.is::<Square>() {
                    Function::Square
                } else if function.is::<Sqrt>() {
                    Function::Sqrt
                } else if function.is::<Recip>() {
                    Function::Reciprocal
                } else if let Some(PowConst { exponent }) = function.downcast_ref() {
                    Function::Power(*exponent)
                } else {
                    return Err(unknown());
                };
                Step::Map { function, input, output: self.real(of(0))? }
            }
        } else if let Some(TypedBinOp(operation, None)) = node.op_as::<TypedBinOp>() {
            let operation = if operation.is::<math::Add>() {
                Operation::Add
            } else if operation.is::<math::Mul>() {
                Operation::Multiply
            } else if operation.is::<math::Max>() {
                Operation::Max
            } else if operation.is::<math::Min>() {
                Operation::Min
            } else {
                return Err(unknown());
            };
            let (left, right) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?);
            Step::Zip { operation, left, right, output: self.real(of(0))? }
        } else if let Some(reduce) = node.op_as::<Reduce>() {
            if reduce.reducer != Reducer::Sum {
                return Err(unknown());
            }
            let rank = rank(node.inputs[0])?;
            let mut axes = [false; 4];
            for axis in &reduce.axes {
                *axes.get_mut(Self::side(rank, *axis)).ok_or_else(unknown)? = true;
            }
            Step::Sum { axes, input: self.value(node.inputs[0])?, output: self.real(of(0))? }
        } else if let Some(slice) = node.op_as::<Slice>() {
            let mut start = [0; 4];
            let place = Self::side(rank(node.inputs[0])?, slice.axis);
            *start.get_mut(place).ok_or_else(unknown)? = slice.start.to_usize().map_err(|_| unknown())?;
            Step::Slice { start, input: self.value(node.inputs[0])?, output: self.real(of(0))? }
        } else if let Some(turn) = node.op_as::<AxisOp>() {
            return self.turn(id, turn);
        } else if let Some(product) = node.op_as::<EinSum>() {
            return self.product(id, product);
        } else {
            return Err(unknown());
        };
        Ok(self.builder.push(step)?)
    }

    /// Constants of real numbers; one that is none is noticed where somebody reads it.
    fn constant(&mut self, outlet: OutletId, constant: &Tensor) -> Result<(), NotFlat> {
        let is_weights =
            |reader: &InletId| self.model.node(reader.node).op_is::<EinSum>() && reader.slot == 1;
        let readers = self.model.outlet_successors(outlet);
        if constant.datum_type() != f32::datum_type() || readers.iter().all(is_weights) {
            return Ok(());
        }
        let values = constant.to_plain_array_view::<f32>()?.iter().copied().collect();
        let shape = self.shape(outlet)?;
        let value = self.builder.constant(shape, values)?;
        self.values.insert(outlet, value);
        Ok(())
    }

    /// Sides that come, go or change places.
    fn turn(&mut self, id: usize, turn: &AxisOp) -> Result<(), NotFlat> {
        let node = self.model.node(id);
        let (input, outlet) = (self.value(node.inputs[0])?, OutletId::from(id));
        let shape = self.shape(outlet)?;
        if let AxisOp::Move(from, to) = turn {
            let rank = self.model.outlet_fact(outlet)?.rank();
            let mut order = vec![0, 1, 2, 3];
            let (from, to) = (Self::side(rank, *from), Self::side(rank, *to));
            if from.max(to) > 3 {
                return Err(TractError::msg("a side is moved that is not there").into());
            }
            let side = order.remove(from);
            order.insert(to, side);
            let order = [order[0], order[1], order[2], order[3]];
            let output = self.real(outlet)?;
            return Ok(self.builder.push(Step::Permute { order, input, output })?);
        }
        let value = self.builder.reshaped(input, shape)?;
        self.values.insert(outlet, value);
        Ok(())
    }

    /// A product with a constant matrix, which is a 1x1 convolution of an image of one row.
    fn product(&mut self, id: usize, product: &EinSum) -> Result<(), NotFlat> {
        let node = self.model.node(id);
        let unknown = || NotFlat::Node { node: node.name.clone(), operator: node.op.name().into_owned() };
        let &[left, right] = &node.inputs[..] else { return Err(unknown()) };
        let weights = self.model.outlet_fact(right)?.konst.clone().ok_or_else(unknown)?;
        let is_plain = product.axes.to_string() == "mk,kn->mn"
            && product.q_params.is_none()
            && weights.datum_type() == f32::datum_type();
        let (Shape([_, _, rows, depth]), &[_, outputs]) = (self.shape(left)?, weights.shape()) else {
            return Err(unknown());
        };
        if !is_plain {
            return Err(unknown());
        }
        let plain = weights.to_plain_array_view::<f32>()?;
        let plain: Vec<f32> = plain.iter().copied().collect();
        let turned: Vec<f32> = (0..outputs)
            .flat_map(|n| (0..depth).map(move |k| (k, n)))
            .map(|(k, n)| plain[k * outputs + n])
            .collect();
        let dense = Dense::new(
            self.isa,
            [depth, outputs],
            Window::POINT,
            Layout::ChannelsLast,
            (&turned, None),
            Clamp::NONE,
        );
        let (input, output) = (self.value(left)?, self.real(id.into())?);
        let kernel = Arc::new(Kernel::Dense(dense));
        let (residual, real, bytes) = (None, Some(output), None);
        Ok(self.builder.push(Step::Convolution { kernel, image: [1, rows], input, residual, real, bytes })?)
    }
}
