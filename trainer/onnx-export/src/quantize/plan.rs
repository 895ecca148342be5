//! Which nodes are quantized.

use std::collections::{HashMap, HashSet};

use super::arithmetic::Layout;
use super::tensors::{constants, is_onnx, label, shape};
use super::{QuantizeError, QuantizeOptions};
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, data_type};

/// The nodes to quantize, in the graph's order.
pub(super) struct Plan {
    pub(super) sites: Vec<Site>,
}

/// One node to quantize.
pub(super) struct Site {
    /// Its index in the graph.
    pub(super) node: usize,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// Reads an activation first, constant weights second, and perhaps a constant bias third.
    Weighted {
        /// The axis of the weights along which scales differ.
        axis: usize,
        layout: Layout,
        bias: Bias,
    },
    /// Adds two activations.
    Add,
}

/// The third input of a node with weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    /// A constant with one f32 for each channel.
    Constant,
    /// There is none, and there may be one.
    Absent,
    /// Something that is left alone.
    Other,
}

impl Plan {
    /// The activations that quantized nodes read, each once.
    pub(super) fn observed(&self, graph: &GraphProto) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for site in &self.sites {
            for input in &graph.node[site.node].input[..site.kind.activations()] {
                if !names.contains(input) {
                    names.push(input.clone());
                }
            }
        }
        names
    }
}

impl Kind {
    /// How many of the first inputs are activations.
    pub(super) const fn activations(&self) -> usize {
        match self {
            Self::Weighted { .. } => 1,
            Self::Add => 2,
        }
    }
}

/// Chooses the nodes.
pub(super) fn plan(graph: &GraphProto, options: &QuantizeOptions) -> Result<Plan, QuantizeError> {
    let constants = constants(graph);
    let mut sites = Vec::new();
    // Values that are a quantized node's result, perhaps clipped.
    let mut results: HashSet<&str> = HashSet::new();
    let mut unused: Vec<&String> = options.keep_f32.iter().collect();
    for (index, node) in graph.node.iter().enumerate() {
        let is_result = |input: &String| results.contains(input.as_str());
        let kind = match node.op_type() {
            _ if !is_onnx(node.domain()) => None,
            "Clip" | "Relu" => {
                if node.input.first().is_some_and(is_result) {
                    results.extend(node.output.iter().map(String::as_str));
                }
                None
            }
            "Add" if node.input.len() == 2 && node.input.iter().all(is_result) => Some(Kind::Add),
            _ => weighted(node, &constants)?,
        };
        let Some(kind) = kind else { continue };
        results.extend(node.output.iter().map(String::as_str));
        let names = [
            Some(node.name()),
            node.output.first().map(String::as_str),
            node.input.get(1).map(String::as_str),
        ];
        let names = if matches!(kind, Kind::Add) { &names[..2] } else { &names[..] };
        let kept = options.keep_f32.iter().any(|keep| names.contains(&Some(keep)));
        unused.retain(|keep| !names.contains(&Some(keep)));
        let wanted = !matches!(kind, Kind::Add) || (options.residual_adds && options.activations);
        if wanted && !kept {
            sites.push(Site { node: index, kind });
        }
    }
    match unused.first() {
        Some(name) => Err(QuantizeError::UnknownNode { name: (*name).clone() }),
        None => Ok(Plan { sites }),
    }
}

/// A node with constant f32 weights, in one of the forms that engines have integer kernels for.
fn weighted(
    node: &NodeProto,
    constants: &HashMap<&str, &TensorProto>,
) -> Result<Option<Kind>, QuantizeError> {
    let (Some(x), Some(weight)) = (node.input.first(), node.input.get(1)) else { return Ok(None) };
    let Some(tensor) = constants.get(weight.as_str()) else { return Ok(None) };
    if constants.contains_key(x.as_str()) || x.is_empty() || tensor.data_type() != data_type::FLOAT {
        return Ok(None);
    }
    let axis = match node.op_type() {
        "Conv" => 0,
        "MatMul" if tensor.dims.len() == 2 => 1,
        "Gemm" if is_plain_gemm(node) => usize::from(integer(node, "transB", 0) == 0),
        _ => return Ok(None),
    };
    let shape = shape(weight, tensor)?;
    let damaged = |reason| Err(QuantizeError::DamagedNode { node: label(node), reason });
    if shape.len() < 2 || (node.op_type() != "Conv" && shape.len() != 2) {
        return damaged(format!("its weight `{weight}` has the shape {shape:?}"));
    }
    if shape.contains(&0) {
        return damaged(format!("its weight `{weight}` is empty: {shape:?}"));
    }
    let groups = if node.op_type() == "Conv" { integer(node, "group", 1) } else { 1 };
    let groups =
        usize::try_from(groups).ok().filter(|groups| *groups > 0 && shape[0].is_multiple_of(*groups));
    let Some(groups) = groups.filter(|groups| axis == 0 || *groups == 1) else {
        return damaged(format!("its group count does not divide {} channels", shape[0]));
    };
    let kernel = if node.op_type() == "Conv" { shape[2..].iter().product() } else { 1 };
    let layout = Layout { channels: shape[axis], inner: shape[axis + 1..].iter().product(), kernel, groups };
    let bias = bias(node, constants, layout.channels)?;
    Ok(Some(Kind::Weighted { axis, layout, bias }))
}

fn bias(
    node: &NodeProto,
    constants: &HashMap<&str, &TensorProto>,
    channels: usize,
) -> Result<Bias, QuantizeError> {
    let Some(name) = node.input.get(2).filter(|name| !name.is_empty()) else {
        return Ok(if node.op_type() == "MatMul" { Bias::Other } else { Bias::Absent });
    };
    let Some(tensor) = constants.get(name.as_str()) else { return Ok(Bias::Other) };
    let fits = tensor.dims == [channels as i64];
    if node.op_type() == "Conv" && !fits {
        let reason = format!("its bias `{name}` has the shape {:?}, not [{channels}]", tensor.dims);
        return Err(QuantizeError::DamagedNode { node: label(node), reason });
    }
    let float = tensor.data_type() == data_type::FLOAT;
    Ok(if fits && float { Bias::Constant } else { Bias::Other })
}

/// Whether the node is `x * W + b` with at most W transposed.
fn is_plain_gemm(node: &NodeProto) -> bool {
    let factor = |name| {
        let attribute = node.attribute.iter().find(|attribute| attribute.name() == name);
        attribute.is_none_or(|attribute| attribute.f() == 1.0)
    };
    factor("alpha") && factor("beta") && integer(node, "transA", 0) == 0
}

fn integer(node: &NodeProto, name: &str, otherwise: i64) -> i64 {
    let attribute = node.attribute.iter().find(|attribute| attribute.name() == name);
    attribute.map_or(otherwise, AttributeProto::i)
}
