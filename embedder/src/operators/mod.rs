//! Our own convolutions in the engine's graph.
//!
//! The graph of a network is copied, node by node; a convolution that we know, with the clamp and the residual after it,
//! becomes one operator of ours ([`convolution`]). Ours want channels last and the engine's channels first: the copy knows both
//! forms of each value, and turns one into the other only where somebody asks for it. Operations on each value by itself, and
//! those of two tensors, go along in whichever form there is. What no rule knows is copied as it is.
//!
//! A graph in QDQ form (`QuantizeLinear`, `DequantizeLinear` around each convolution) is computed in bytes: a convolution then
//! reads bytes, and writes bytes where the next one wants them; real numbers are written where somebody else does.
//!
//! The copy is made before the engine simplifies its graph, for then 1x1 convolutions are products of matrices there.

use std::collections::HashMap;

use glimpse_kernels::{Isa, Layout, Rounding};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;

use crate::EmbedderOptions;

pub(crate) mod convolution;
mod find;
pub(crate) mod rounding;

use find::Found;

/// The model with our operators wherever a rule of `options` fires; as it was where none does.
pub(crate) fn rewrite(model: TypedModel, options: &EmbedderOptions) -> TractResult<TypedModel> {
    let isa = if options.isa.is_available() { options.isa } else { Isa::Portable };
    let found = Found::look(&model, &EmbedderOptions { isa, ..*options })?;
    if found.is_empty() { Ok(model) } else { Copy::of(&model, isa, found) }
}

/// Whether there are operators of ours in a model.
pub(crate) fn are_in(model: &TypedModel) -> bool {
    model.nodes().iter().any(Node::op_is::<convolution::Convolution>)
}

/// A copy of a model as it grows.
struct Copy<'a> {
    model: &'a TypedModel,
    isa: Isa,
    copy: TypedModel,
    found: Found,
    /// Of the model's values: those of the copy that hold them as they are.
    plain: HashMap<OutletId, OutletId>,
    /// And those that hold them with channels last, `[N, height, width, channels]`.
    channels_last: HashMap<OutletId, OutletId>,
    /// Of values that are bytes: those that hold them with channels last, as our kernels read them.
    bytes: HashMap<OutletId, OutletId>,
}

impl<'a> Copy<'a> {
    fn of(model: &'a TypedModel, isa: Isa, found: Found) -> TractResult<TypedModel> {
        let copy = TypedModel { symbols: model.symbols.clone(), ..TypedModel::default() };
        let mut copying = Self {
            model,
            isa,
            copy,
            found,
            plain: HashMap::new(),
            channels_last: HashMap::new(),
            bytes: HashMap::new(),
        };
        for id in model.eval_order()? {
            copying.node(id)?;
        }
        for input in model.input_outlets()? {
            // One that nobody looks at still belongs to the interface.
            if !copying.plain.contains_key(input) {
                copying.as_it_is(input.node)?;
            }
        }
        let at = |copying: &mut Self, outlets: &[OutletId]| -> TractResult<Vec<OutletId>> {
            outlets.iter().map(|outlet| copying.plain(*outlet)).collect()
        };
        let inputs = at(&mut copying, model.input_outlets()?)?;
        let outputs = at(&mut copying, model.output_outlets()?)?;
        copying.copy.set_input_outlets(&inputs)?;
        copying.copy.select_output_outlets(&outputs)?;
        Ok(copying.copy)
    }

    fn node(&mut self, id: usize) -> TractResult<()> {
        if self.found.is_part(id) {
            return Ok(());
        }
        if let Some(chain) = self.found.take(id) {
            return self.convolution(id, chain);
        }
        if let Some(rounding) = self.found.rounding(id) {
            return self.rounding(id, rounding);
        }
        if self.found.real_again(self.model, id).is_some() {
            // Made where somebody asks for it; convolutions of bytes do not.
            return Ok(());
        }
        let node = self.model.node(id);
        let goes_along = node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>();
        let has_turned = node.inputs.iter().any(|input| self.is_only_channels_last(*input));
        let images =
            node.inputs.iter().all(|input| self.model.outlet_fact(*input).is_ok_and(|fact| fact.rank() == 4));
        if goes_along && has_turned && images {
            let inputs: TractResult<Vec<_>> =
                node.inputs.iter().map(|input| self.channels_last(*input)).collect();
            let outputs = self.copy.wire_node(&node.name, node.op.clone(), &inputs?)?;
            self.channels_last.insert(id.into(), outputs[0]);
            return Ok(());
        }
        self.as_it_is(id)
    }

    /// Copies a node with all that it takes in the form that it knows.
    fn as_it_is(&mut self, id: usize) -> TractResult<()> {
        let node = self.model.node(id);
        let outputs = if self.model.input_outlets()?.contains(&id.into()) {
            tvec!(self.copy.add_source(&node.name, node.outputs[0].fact.clone())?)
        } else {
            let inputs: TractResult<Vec<_>> = node.inputs.iter().map(|input| self.plain(*input)).collect();
            self.copy.wire_node(&node.name, node.op.clone(), &inputs?)?
        };
        for (slot, outlet) in outputs.into_iter().enumerate() {
            self.plain.insert(OutletId::new(id, slot), outlet);
        }
        Ok(())
    }

    fn convolution(&mut self, id: usize, chain: find::Chain) -> TractResult<()> {
        let input = chain.input;
        let planes = !self.channels_last.contains_key(&input) && chain.is_for_planes();
        let mut inputs = vec![if chain.reads_bytes() {
            self.bytes(input)?
        } else if planes {
            self.plain(input)?
        } else {
            self.channels_last(input)?
        }];
        if let Some(residual) = chain.residual {
            inputs.push(self.channels_last(residual)?);
        }
        let name = self.model.node(id).name.clone();
        let (real, rounded) = (chain.real, chain.rounded);
        let outputs = self.copy.wire_node(name, chain.operator(planes), &inputs)?;
        if real {
            self.channels_last.insert(id.into(), outputs[0]);
        }
        if let (Some(rounded), Some(bytes)) = (rounded, outputs.last()) {
            self.bytes.insert(rounded.into(), *bytes);
        }
        Ok(())
    }

    /// Rounds a value for convolutions of bytes.
    fn rounding(&mut self, id: usize, rounding: Rounding) -> TractResult<()> {
        let node = self.model.node(id);
        let input = node.inputs[0];
        let (layout, from) = match self.channels_last.get(&input) {
            Some(found) => (Layout::ChannelsLast, *found),
            None => (Layout::Planes, self.plain(input)?),
        };
        let op = rounding::Round { isa: self.isa, rounding, layout };
        let outputs = self.copy.wire_node(&node.name, op, &[from])?;
        self.bytes.insert(id.into(), outputs[0]);
        Ok(())
    }

    fn bytes(&self, outlet: OutletId) -> TractResult<OutletId> {
        let bytes = self.bytes.get(&outlet);
        Ok(*bytes.ok_or_else(|| TractError::msg("bytes are read before they are written"))?)
    }

    fn is_only_channels_last(&self, outlet: OutletId) -> bool {
        self.channels_last.contains_key(&outlet) && !self.plain.contains_key(&outlet)
    }

    fn plain(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        if let Some(found) = self.plain.get(&outlet) {
            return Ok(*found);
        }
        let last = match self.channels_last.get(&outlet) {
            Some(last) => *last,
            None => self
                .real_again(outlet)?
                .ok_or_else(|| TractError::msg("a value is used before it is made"))?,
        };
        let turned = self.turn(outlet, last, AxisOp::Move(3, 1), "channels-first")?;
        self.plain.insert(outlet, turned);
        Ok(turned)
    }

    fn channels_last(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        if let Some(found) = self.channels_last.get(&outlet) {
            return Ok(*found);
        }
        if let Some(found) = self.real_again(outlet)? {
            return Ok(found);
        }
        let plain = self.plain(outlet)?;
        let turned = self.turn(outlet, plain, AxisOp::Move(1, 3), "channels-last")?;
        self.channels_last.insert(outlet, turned);
        Ok(turned)
    }

    /// Real numbers of bytes that we have rounded, where the value is that.
    fn real_again(&mut self, outlet: OutletId) -> TractResult<Option<OutletId>> {
        let Some((bytes, rounding)) = self.found.real_again(self.model, outlet.node) else { return Ok(None) };
        let bytes = self.bytes(bytes)?;
        let name = self.model.node(outlet.node).name.clone();
        let real = self.copy.wire_node(name, rounding::Unround { isa: self.isa, rounding }, &[bytes])?[0];
        self.channels_last.insert(outlet, real);
        Ok(Some(real))
    }

    fn turn(&mut self, outlet: OutletId, from: OutletId, turn: AxisOp, what: &str) -> TractResult<OutletId> {
        let name =
            self.copy.unique_name(format!("{}.{what}", self.model.node(outlet.node).name)).into_owned();
        Ok(self.copy.wire_node(name, turn, &[from])?[0])
    }
}

#[cfg(test)]
mod tests;
