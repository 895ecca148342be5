//! Weights of networks in QDQ form, as real numbers before the engine sees them: it comes to the same numbers, but by a path that is
//! most of the time that such a network takes to load.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

/// Puts real numbers in the place of every `DequantizeLinear` of a constant of bytes with constant steps, as
/// `(x - zero point) * step` says (ONNX operators, `DequantizeLinear`). Nodes of any other kind stay.
pub(crate) fn dequantize_weights(graph: &mut GraphProto) {
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let constants: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut made = HashMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        if node.op_type == "DequantizeLinear"
            && node.domain.is_empty()
            && let [output] = &node.output[..]
            && !outputs.contains(output.as_str())
            && let Some(real) = dequantized(node, &constants)
        {
            made.insert(place, TensorProto { name: output.clone(), ..real });
        }
    }
    let mut place = 0;
    graph.node.retain(|_| {
        place += 1;
        !made.contains_key(&(place - 1))
    });
    graph.initializer.extend(made.into_values());
}

/// `None` where something is not as it is usual.
fn dequantized(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> Option<TensorProto> {
    let mut inputs = node.input.iter().map(|name| constants.get(name.as_str()).copied());
    let (bytes, steps) = (inputs.next()??, inputs.next()??);
    // An input that is left out has no name.
    let zero_points =
        if node.input.get(2).is_some_and(|name| !name.is_empty()) { Some(inputs.next()??) } else { None };
    let attribute =
        |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).map(|found| found.i);
    if attribute("block_size").unwrap_or(0) != 0 || steps.data_type != DataType::Float as i32 {
        return None;
    }
    let dims: Option<Vec<usize>> = bytes.dims.iter().map(|side| usize::try_from(*side).ok()).collect();
    let dims = dims?;
    let length = dims.iter().try_fold(1_usize, |length, side| length.checked_mul(*side))?;
    let values = integers(bytes).filter(|values| values.len() == length)?;
    let steps = reals(steps)?;
    let zeros = match zero_points {
        None => vec![0; steps.len()],
        Some(zeros) if zeros.data_type == bytes.data_type => integers(zeros)?,
        Some(_) => return None,
    };
    if zeros.len() != steps.len() || length == 0 {
        return None;
    }
    // Values that lie one after the other and share a step.
    let together = if let [_] = steps[..] {
        length
    } else {
        let axis = attribute("axis").unwrap_or(1);
        let axis = usize::try_from(if axis < 0 { axis + dims.len() as i64 } else { axis }).ok()?;
        let rest = dims.get(axis).filter(|side| **side == steps.len()).map(|_| &dims[axis + 1..])?;
        rest.iter().product()
    };
    let mut raw = Vec::with_capacity(4 * length);
    for (values, (step, zero)) in values.chunks(together).zip(steps.iter().zip(&zeros).cycle()) {
        raw.extend(values.iter().flat_map(|value| (f32::from(value - zero) * step).to_le_bytes()));
    }
    let data_type = DataType::Float as i32;
    Some(TensorProto { dims: bytes.dims.clone(), data_type, raw_data: raw, ..TensorProto::default() })
}

/// The values of a tensor of bytes that has them in its raw data.
fn integers(tensor: &TensorProto) -> Option<Vec<i16>> {
    let raw = tensor.raw_data.iter();
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int8 => Some(raw.map(|byte| i16::from(*byte as i8)).collect()),
        DataType::Uint8 => Some(raw.map(|byte| i16::from(*byte)).collect()),
        _ => None,
    }
}

/// The values of a tensor of real numbers.
fn reals(tensor: &TensorProto) -> Option<Vec<f32>> {
    let (chunks, rest) = tensor.raw_data.as_chunks::<4>();
    match (chunks, &tensor.float_data[..]) {
        ([], []) => None,
        ([], values) => Some(values.to_vec()),
        (chunks, []) if rest.is_empty() => Some(chunks.iter().copied().map(f32::from_le_bytes).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, ValueInfoProto};

    use super::*;

    fn tensor(name: &str, data_type: DataType, dims: &[i64], raw_data: Vec<u8>) -> TensorProto {
        let (name, dims, data_type) = (name.to_owned(), dims.to_vec(), data_type as i32);
        TensorProto { name, dims, data_type, raw_data, ..TensorProto::default() }
    }

    fn steps(name: &str, steps: &[f32]) -> TensorProto {
        let raw = steps.iter().flat_map(|step| step.to_le_bytes()).collect();
        tensor(name, DataType::Float, &[steps.len() as i64], raw)
    }

    fn node(inputs: &[&str], axis: Option<i64>) -> NodeProto {
        let attribute =
            axis.map(|i| AttributeProto { name: "axis".to_owned(), i, ..AttributeProto::default() });
        NodeProto {
            op_type: "DequantizeLinear".to_owned(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec!["real".to_owned()],
            attribute: attribute.into_iter().collect(),
            ..NodeProto::default()
        }
    }

    /// What comes of one node: the real numbers, where it was replaced.
    fn fold(node: NodeProto, initializer: Vec<TensorProto>, is_output: bool) -> Option<Vec<f32>> {
        let output = ValueInfoProto { name: "real".to_owned(), ..ValueInfoProto::default() };
        let mut graph = GraphProto {
            node: vec![node],
            initializer,
            output: is_output.then_some(output).into_iter().collect(),
            ..GraphProto::default()
        };
        dequantize_weights(&mut graph);
        let real = graph.initializer.iter().find(|tensor| tensor.name == "real");
        assert_eq!(real.is_some(), graph.node.is_empty());
        real.map(|real| reals(real).unwrap())
    }

    fn bytes() -> TensorProto {
        tensor("bytes", DataType::Int8, &[2, 3], vec![1, 2, 255, 128, 0, 127])
    }

    #[test]
    fn constants_become_real_numbers() {
        let one = fold(node(&["bytes", "steps"], None), vec![bytes(), steps("steps", &[0.5])], false);
        assert_eq!(one, Some(vec![0.5, 1.0, -0.5, -64.0, 0.0, 63.5]));
        for axis in [0, -2] {
            let rows = fold(
                node(&["bytes", "steps"], Some(axis)),
                vec![bytes(), steps("steps", &[0.5, 2.0])],
                false,
            );
            assert_eq!(rows, Some(vec![0.5, 1.0, -0.5, -256.0, 0.0, 254.0]));
        }
        // Axis 1 where none is named.
        let columns =
            fold(node(&["bytes", "steps", ""], None), vec![bytes(), steps("steps", &[1.0, 2.0, 3.0])], false);
        assert_eq!(columns, Some(vec![1.0, 4.0, -3.0, -128.0, 0.0, 381.0]));
        let unsigned = tensor("bytes", DataType::Uint8, &[2], vec![0, 255]);
        let zero = tensor("zero", DataType::Uint8, &[], vec![128]);
        let shifted = fold(
            node(&["bytes", "steps", "zero"], None),
            vec![unsigned, steps("steps", &[1.0]), zero],
            false,
        );
        assert_eq!(shifted, Some(vec![-128.0, 127.0]));
    }

    #[test]
    fn what_is_not_as_usual_stays() {
        let folded = |node, tensors: Vec<TensorProto>| fold(node, tensors, false);
        assert_eq!(fold(node(&["bytes", "steps"], None), vec![bytes(), steps("steps", &[1.0])], true), None);
        assert_eq!(folded(node(&["bytes", "steps"], None), vec![bytes()]), None);
        assert_eq!(folded(node(&[], None), vec![]), None);
        assert_eq!(
            folded(node(&["bytes", "steps"], Some(7)), vec![bytes(), steps("steps", &[1.0; 2])]),
            None
        );
        assert_eq!(
            folded(node(&["bytes", "steps"], Some(-7)), vec![bytes(), steps("steps", &[1.0; 2])]),
            None
        );
        assert_eq!(
            folded(node(&["bytes", "steps"], Some(0)), vec![bytes(), steps("steps", &[1.0; 3])]),
            None
        );
        let cut_off = tensor("bytes", DataType::Int8, &[2, 3], vec![1; 5]);
        assert_eq!(folded(node(&["bytes", "steps"], None), vec![cut_off, steps("steps", &[1.0])]), None);
        let vast = tensor("bytes", DataType::Int8, &[i64::MAX, i64::MAX], vec![1]);
        assert_eq!(folded(node(&["bytes", "steps"], None), vec![vast, steps("steps", &[1.0])]), None);
        let negative = tensor("bytes", DataType::Int8, &[-1], vec![1]);
        assert_eq!(folded(node(&["bytes", "steps"], None), vec![negative, steps("steps", &[1.0])]), None);
        let other_type = tensor("zero", DataType::Uint8, &[], vec![0]);
        let tensors = vec![bytes(), steps("steps", &[1.0]), other_type];
        assert_eq!(folded(node(&["bytes", "steps", "zero"], None), tensors), None);
        let wide = tensor("bytes", DataType::Int32, &[1], vec![1, 0, 0, 0]);
        assert_eq!(folded(node(&["bytes", "steps"], None), vec![wide, steps("steps", &[1.0])]), None);
    }
}
