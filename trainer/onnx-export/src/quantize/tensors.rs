//! Reads constants out of a graph that anybody may have written.

use std::collections::{HashMap, HashSet};

use super::QuantizeError;
use crate::model::OnnxModel;
use crate::proto::{
    GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, attribute_type, data_type,
};

/// The first operator set whose `DequantizeLinear` has an axis.
const OPSET_MIN: i64 = 13;
/// Operators that only integer models have.
const INTEGER_OPERATORS: [&str; 7] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
];

/// The graph of a model that can be quantized.
pub(super) fn check(model: &OnnxModel) -> Result<&GraphProto, QuantizeError> {
    let graph = model.graph().ok_or(QuantizeError::NoGraph)?;
    let integer = |node: &&NodeProto| {
        INTEGER_OPERATORS.contains(&node.op_type()) || node.op_type().starts_with("QLinear")
    };
    if let Some(node) = graph.node.iter().find(integer) {
        let operator = node.op_type().to_owned();
        return Err(QuantizeError::AlreadyQuantized { node: label(node), operator });
    }
    let onnx = model.proto.opset_import.iter().filter(|set| is_onnx(set.domain()));
    let opset = onnx.map(OperatorSetIdProto::version).max().unwrap_or(0);
    if opset < OPSET_MIN {
        return Err(QuantizeError::OldOpset { opset });
    }
    Ok(graph)
}

/// Whether this is the domain of ONNX's own operators, which has two names.
pub(super) fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// What to call a node in messages: its name or, as names are optional, its first output.
pub(super) fn label(node: &NodeProto) -> String {
    let name = Some(node.name()).filter(|name| !name.is_empty());
    name.or(node.output.first().map(String::as_str)).unwrap_or_default().to_owned()
}

/// The constants of a graph by name: initialisers that no caller can replace, and what `Constant` nodes hold.
pub(super) fn constants(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    let inputs: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    let initializers = graph.initializer.iter().map(|tensor| (tensor.name(), tensor));
    let mut constants: HashMap<_, _> = initializers.filter(|(name, _)| !inputs.contains(name)).collect();
    for node in graph.node.iter().filter(|node| node.op_type() == "Constant" && is_onnx(node.domain())) {
        let value = node.attribute.iter().find(|attribute| attribute.r#type() == attribute_type::TENSOR);
        if let (Some(name), Some(tensor)) = (node.output.first(), value.and_then(|value| value.t.as_ref())) {
            constants.insert(name, tensor);
        }
    }
    constants
}

/// Shape of a constant.
pub(super) fn shape(name: &str, tensor: &TensorProto) -> Result<Vec<usize>, QuantizeError> {
    let size = |dim: &i64| usize::try_from(*dim).ok();
    let shape: Option<Vec<usize>> = tensor.dims.iter().map(size).collect();
    let damaged = |reason: String| QuantizeError::DamagedTensor { tensor: name.to_owned(), reason };
    let shape = shape.ok_or_else(|| damaged(format!("its shape is {:?}", tensor.dims)))?;
    let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
    count.ok_or_else(|| damaged(format!("its shape is {:?}", tensor.dims)))?;
    Ok(shape)
}

/// The finite elements of an f32 constant, as many as its shape says.
pub(super) fn floats(name: &str, tensor: &TensorProto) -> Result<Vec<f32>, QuantizeError> {
    let damaged = |reason: String| QuantizeError::DamagedTensor { tensor: name.to_owned(), reason };
    if tensor.data_location() != 0 || !tensor.external_data.is_empty() {
        return Err(QuantizeError::ExternalData { tensor: name.to_owned() });
    }
    if tensor.data_type() != data_type::FLOAT {
        return Err(damaged(format!("its elements are of type {}, not f32", tensor.data_type())));
    }
    let values: Vec<f32> = match &tensor.raw_data {
        Some(bytes) if bytes.len().is_multiple_of(4) => {
            bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
        }
        Some(bytes) => return Err(damaged(format!("{} bytes are no whole number of f32", bytes.len()))),
        None => tensor.float_data.clone(),
    };
    let count: usize = shape(name, tensor)?.iter().product();
    if values.len() != count {
        return Err(damaged(format!("it holds {} elements, its shape says {count}", values.len())));
    }
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(damaged(format!("it contains {value}")));
    }
    Ok(values)
}
