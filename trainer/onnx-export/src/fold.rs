//! Makes the converted graph cheaper without changing what it computes.
//!
//! - A zero `Pad` that only convolutions read becomes part of their `pads`: runtimes copy the whole
//!   tensor for a `Pad`, and Burn has no other way to write asymmetric padding in old code.
//! - A `BatchNormalization` that is the only reader of a convolution becomes part of its weights.
//! - A `Reshape` of a constant, as Burn records for the bias of a linear layer, becomes a constant
//!   of the other shape.
//! - Initialisers that nothing reads are dropped.

use std::collections::{HashMap, HashSet};

use crate::emit::Emitter;
use crate::proto::{AttributeProto, NodeProto, TensorProto, data_type};

/// Merges zero pads into the convolutions that follow.
pub(crate) fn fold_pads(graph: &mut Emitter<'_>, output: &str) {
    let mut dropped = HashSet::new();
    for index in 0..graph.nodes.len() {
        let Some((name, source, pads)) = zero_pad(graph, index) else {
            continue;
        };
        let readers = readers(&graph.nodes, &name);
        let foldable = !readers.is_empty()
            && name != output
            && readers.iter().all(|reader| {
                let node = &graph.nodes[*reader];
                node.op_type() == "Conv"
                    && node.input.first() == Some(&name)
                    && !node.input[1..].contains(&name)
                    && attribute(node, "pads").is_some_and(|a| a.ints.len() == pads.len())
            });
        if !foldable {
            continue;
        }
        for reader in readers {
            let node = &mut graph.nodes[reader];
            node.input[0].clone_from(&source);
            for attribute in &mut node.attribute {
                if attribute.name() == "pads" {
                    for (size, extra) in attribute.ints.iter_mut().zip(&pads) {
                        *size += extra;
                    }
                }
            }
        }
        dropped.insert(index);
    }
    remove(&mut graph.nodes, &dropped);
}

/// Output, input and spatial pads of the node, if it pads with zeros and no more than space.
fn zero_pad(graph: &Emitter<'_>, index: usize) -> Option<(String, String, Vec<i64>)> {
    let node = graph.nodes.get(index)?;
    if node.op_type() != "Pad" || attribute(node, "mode")?.s.as_deref() != Some(b"constant") {
        return None;
    }
    let [source, pads, value] = node.input.as_slice() else {
        return None;
    };
    let value = initializer(graph, value)?;
    if value.raw_data().iter().any(|byte| *byte != 0) {
        return None;
    }
    let pads = int64_elements(initializer(graph, pads)?);
    let rank = pads.len() / 2;
    if rank < 3 || pads.len() != 2 * rank {
        return None;
    }
    let (before, after) = pads.split_at(rank);
    if [before, after].iter().any(|side| side[0] != 0 || side[1] != 0) {
        return None;
    }
    let spatial = before[2..].iter().chain(&after[2..]).copied().collect();
    Some((node.output.first()?.clone(), source.clone(), spatial))
}

/// Merges batch normalisations into the convolutions before them. Only `f32` weights are touched.
pub(crate) fn fold_batch_norms(graph: &mut Emitter<'_>, output: &str) {
    let mut dropped = HashSet::new();
    for index in 0..graph.nodes.len() {
        if fold_batch_norm(graph, index, output).is_some() {
            dropped.insert(index);
        }
    }
    remove(&mut graph.nodes, &dropped);
}

fn fold_batch_norm(graph: &mut Emitter<'_>, index: usize, output: &str) -> Option<()> {
    let norm = graph.nodes.get(index)?.clone();
    if norm.op_type() != "BatchNormalization" {
        return None;
    }
    let [x, gamma, beta, mean, variance] = norm.input.as_slice() else {
        return None;
    };
    let result = norm.output.first()?;
    let conv_index = graph.nodes.iter().position(|node| node.output.first() == Some(x))?;
    let conv = graph.nodes.get(conv_index)?.clone();
    if conv.op_type() != "Conv" || x == output || readers(&graph.nodes, x) != [index] {
        return None;
    }
    let epsilon = f64::from(attribute(&norm, "epsilon")?.f?);
    let weight_name = conv.input.get(1)?.clone();
    let weight = initializer(graph, &weight_name)?.clone();
    let (gamma, beta) = (floats(graph, gamma)?, floats(graph, beta)?);
    let (mean, variance) = (floats(graph, mean)?, floats(graph, variance)?);
    let mut weights = floats(graph, &weight_name)?;
    let channels = gamma.len();
    let bias = match conv.input.get(2) {
        Some(name) => floats(graph, name)?,
        None => vec![0.0; channels],
    };
    let lengths = [beta.len(), mean.len(), variance.len(), bias.len()];
    if channels == 0
        || lengths.iter().any(|length| *length != channels)
        || weight.dims.first() != Some(&(channels as i64))
        || weights.len() % channels != 0
    {
        return None;
    }

    let mut shifted = Vec::with_capacity(channels);
    let per_channel = (weights.len() / channels).max(1);
    for (channel, kernel) in weights.chunks_mut(per_channel).enumerate() {
        let scale = gamma[channel] / (variance[channel] + epsilon).sqrt();
        kernel.iter_mut().for_each(|weight| *weight *= scale);
        shifted.push((bias[channel] - mean[channel]) * scale + beta[channel]);
    }

    // A weight that another node reads as well stays as it is; the folded one gets its own name.
    let own = |graph: &Emitter<'_>, name: &str| readers(&graph.nodes, name) == [conv_index];
    let folded_weight = if own(graph, &weight_name) {
        graph.initializers.retain(|tensor| tensor.name() != weight_name);
        weight_name.clone()
    } else {
        graph.names.unique(&format!("{weight_name}.folded"))
    };
    let folded_bias = match conv.input.get(2) {
        Some(name) if own(graph, name) => {
            graph.initializers.retain(|tensor| tensor.name() != name);
            name.clone()
        }
        _ => graph.names.unique(&bias_name(&weight_name)),
    };
    graph.initializers.push(float_tensor(&folded_weight, weight.dims, &weights));
    graph.initializers.push(float_tensor(&folded_bias, vec![channels as i64], &shifted));
    let node = graph.nodes.get_mut(conv_index)?;
    node.input.truncate(1);
    node.input.extend([folded_weight, folded_bias]);
    node.output.first_mut()?.clone_from(result);
    Some(())
}

/// `block.conv.bias` beside `block.conv.weight`.
fn bias_name(weight: &str) -> String {
    match weight.strip_suffix("weight") {
        Some(stem) if stem.is_empty() || stem.ends_with('.') => format!("{stem}bias"),
        _ => format!("{weight}.bias"),
    }
}

/// Carries out reshapes of constants. A constant that nothing else reads keeps its name.
pub(crate) fn fold_constant_reshapes(graph: &mut Emitter<'_>, output: &str) {
    let mut dropped = HashSet::new();
    for index in 0..graph.nodes.len() {
        if fold_constant_reshape(graph, index, output).is_some() {
            dropped.insert(index);
        }
    }
    remove(&mut graph.nodes, &dropped);
}

fn fold_constant_reshape(graph: &mut Emitter<'_>, index: usize, output: &str) -> Option<()> {
    let node = graph.nodes.get(index)?;
    let [source, shape] = node.input.as_slice() else {
        return None;
    };
    let (source, result) = (source.clone(), node.output.first()?.clone());
    if node.op_type() != "Reshape" || result == output {
        return None;
    }
    let dims = int64_elements(initializer(graph, shape)?);
    // The exporter writes 0 and -1 only for sizes that change, which those of constants do not.
    if dims.iter().any(|size| *size < 1) {
        return None;
    }
    let mut tensor = initializer(graph, &source)?.clone();
    tensor.dims = dims;
    let name = if readers(&graph.nodes, &source) == [index] {
        graph.initializers.retain(|tensor| tensor.name() != source);
        source
    } else {
        graph.names.unique(&format!("{source}.reshaped"))
    };
    tensor.name = Some(name.clone());
    graph.initializers.push(tensor);
    // The dropped node must not count as a reader of what it read.
    graph.nodes.get_mut(index)?.input.clear();
    for input in graph.nodes.iter_mut().flat_map(|node| &mut node.input) {
        if *input == result {
            input.clone_from(&name);
        }
    }
    Some(())
}

/// Drops initialisers that nothing reads and puts the others in the order in which nodes read them.
pub(crate) fn order_initializers(graph: &mut Emitter<'_>) {
    let mut rank = HashMap::new();
    for name in graph.nodes.iter().flat_map(|node| &node.input) {
        let next = rank.len();
        rank.entry(name.clone()).or_insert(next);
    }
    graph.initializers.retain(|tensor| rank.contains_key(tensor.name()));
    graph.initializers.sort_by_key(|tensor| rank.get(tensor.name()).copied());
}

fn readers(nodes: &[NodeProto], name: &str) -> Vec<usize> {
    let reads = |node: &NodeProto| node.input.iter().any(|input| input == name);
    (0..nodes.len()).filter(|index| reads(&nodes[*index])).collect()
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

fn initializer<'g>(graph: &'g Emitter<'_>, name: &str) -> Option<&'g TensorProto> {
    graph.initializers.iter().find(|tensor| tensor.name() == name)
}

/// The elements of an `f32` initialiser.
fn floats(graph: &Emitter<'_>, name: &str) -> Option<Vec<f64>> {
    let tensor = initializer(graph, name)?;
    if tensor.data_type() != data_type::FLOAT {
        return None;
    }
    let (elements, _) = tensor.raw_data().as_chunks::<4>();
    Some(elements.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect())
}

fn int64_elements(tensor: &TensorProto) -> Vec<i64> {
    let (elements, _) = tensor.raw_data().as_chunks::<8>();
    elements.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn float_tensor(name: &str, dims: Vec<i64>, elements: &[f64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type::FLOAT),
        dims,
        raw_data: Some(elements.iter().flat_map(|e| (*e as f32).to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

fn remove(nodes: &mut Vec<NodeProto>, dropped: &HashSet<usize>) {
    let mut index = 0;
    nodes.retain(|_| {
        index += 1;
        !dropped.contains(&(index - 1))
    });
}

#[cfg(test)]
mod tests {
    use super::bias_name;

    #[test]
    fn names_a_new_bias_after_its_weight() {
        assert_eq!(bias_name("stem.conv.weight"), "stem.conv.bias");
        assert_eq!(bias_name("weight"), "bias");
        assert_eq!(bias_name("overweight"), "overweight.bias");
    }
}
