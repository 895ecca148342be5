//! Writes the quantized graph.

use std::collections::{HashMap, HashSet};

use super::arithmetic::{Affine, Layout, mean_shift, quantize_bias, quantize_weights, weight_scales};
use super::plan::{Bias, Kind, Plan, Site};
use super::tensors::{constants, floats};
use super::{Activations, QuantizeError, QuantizeOptions, Range};
use crate::names::NameTable;
use crate::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, attribute_type, data_type,
};

/// The graph with the plan carried out.
pub(super) fn rewrite(
    graph: &GraphProto,
    plan: &Plan,
    activations: &Activations,
    options: &QuantizeOptions,
) -> Result<GraphProto, QuantizeError> {
    let mut writer = Writer::new(graph);
    let mut sites = plan.sites.iter().peekable();
    for (index, node) in graph.node.iter().enumerate() {
        let mut node = node.clone();
        if let Some(site) = sites.next_if(|site| site.node == index) {
            writer.site(site, &mut node, activations, options.activations)?;
        }
        writer.nodes.push(node);
    }
    Ok(writer.finish(graph))
}

/// The activation that a node with weights reads.
struct Input<'a> {
    tensor: String,
    means: &'a [f32],
    /// The scale of its rounded form.
    scale: Option<f32>,
}

struct Writer<'a> {
    constants: HashMap<&'a str, &'a TensorProto>,
    names: NameTable,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Map and dequantized name of each quantized activation.
    activations: HashMap<String, (Affine, String)>,
    /// Dequantized names of weights by name and scales: nodes that share a weight share its int8 form.
    weights: HashMap<(String, usize, Vec<u32>), String>,
    /// Constants that have an integer form now.
    replaced: HashSet<String>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a GraphProto) -> Self {
        let mut names = NameTable::default();
        for name in value_names(graph) {
            names.reserve(name);
        }
        Self {
            constants: constants(graph),
            names,
            nodes: Vec::new(),
            initializers: Vec::new(),
            activations: HashMap::new(),
            weights: HashMap::new(),
            replaced: HashSet::new(),
        }
    }

    /// Makes `node` read integers, and writes what it needs before it.
    fn site(
        &mut self,
        site: &Site,
        node: &mut NodeProto,
        activations: &Activations,
        round_activations: bool,
    ) -> Result<(), QuantizeError> {
        let mut input = None;
        for name in &mut node.input[..site.kind.activations()] {
            let activation = activations.get(name);
            let missing = || QuantizeError::MissingActivation { tensor: name.clone() };
            let activation = activation.ok_or_else(missing)?;
            let found = Input { tensor: name.clone(), means: &activation.channel_means, scale: None };
            if round_activations {
                let (map, rounded) = self.activation(name, activation.range);
                *name = rounded;
                input = Some(Input { scale: Some(map.scale()), ..found });
            } else {
                input = Some(found);
            }
        }
        match (&site.kind, input) {
            (Kind::Weighted { axis, layout, bias }, Some(input)) => {
                self.weighted(node, &input, (*axis, *layout, *bias))
            }
            _ => Ok(()),
        }
    }

    /// The weights, and the bias that makes up for their rounding.
    fn weighted(
        &mut self,
        node: &mut NodeProto,
        input: &Input<'_>,
        (axis, layout, bias): (usize, Layout, Bias),
    ) -> Result<(), QuantizeError> {
        let name = node.input[1].clone();
        let weights = floats(&name, self.constants[name.as_str()])?;
        let channels = layout.input_channels(weights.len());
        let means = if bias == Bias::Other { &[][..] } else { input.means };
        if !means.is_empty() && means.len() != channels {
            let tensor = input.tensor.clone();
            return Err(QuantizeError::ChannelMeans { tensor, channels, means: means.len() });
        }
        let corrected = bias == Bias::Absent && !means.is_empty();
        let mut bias = match bias {
            Bias::Constant => Some(floats(&node.input[2], self.constants[node.input[2].as_str()])?),
            Bias::Absent if corrected => Some(vec![0.0; layout.channels]),
            Bias::Absent | Bias::Other => None,
        };
        let floor = bias.as_deref().zip(input.scale);
        let scales = weight_scales(&weights, layout, floor);
        let integers = quantize_weights(&weights, layout, &scales);
        if let Some(bias) = bias.as_mut().filter(|_| !means.is_empty()) {
            let shift = mean_shift((&weights, &integers), layout, &scales, means);
            bias.iter_mut().zip(shift).for_each(|(bias, shift)| *bias = (f64::from(*bias) - shift) as f32);
        }
        if let Some(bias) = bias {
            node.input.truncate(3);
            if corrected {
                node.input.truncate(2);
                node.input.push(format!("{name}.bias"));
            }
            node.input[2] = self.bias(&node.input[2], &bias, input.scale, &scales);
        }
        node.input[1] = self.weight(&name, axis, &integers, &scales);
        Ok(())
    }

    /// A bias in units of its products, or in f32 where there are none.
    fn bias(&mut self, tensor: &str, bias: &[f32], input_scale: Option<f32>, scales: &[f32]) -> String {
        let dims = vec![bias.len() as i64];
        if let Some((steps, integers)) = input_scale.and_then(|scale| quantize_bias(bias, scale, scales)) {
            let bytes = integers.iter().flat_map(|value| value.to_le_bytes()).collect();
            return self.dequantized(tensor, (data_type::INT32, dims, bytes), &steps, 0);
        }
        self.replaced.insert(tensor.to_owned());
        let bytes = bias.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(&format!("{tensor}.corrected"), data_type::FLOAT, dims, bytes)
    }

    /// The rounded form of an activation; written where it is first asked for.
    fn activation(&mut self, tensor: &str, range: Range) -> (Affine, String) {
        if let Some(found) = self.activations.get(tensor) {
            return found.clone();
        }
        let map = Affine::covering(range);
        let scale = map.scale().to_le_bytes().to_vec();
        let scale = self.initializer(&format!("{tensor}.scale"), data_type::FLOAT, Vec::new(), scale);
        let zero_point = vec![map.zero_point()];
        let zero_point =
            self.initializer(&format!("{tensor}.zero_point"), data_type::UINT8, Vec::new(), zero_point);
        let quantized = self.names.unique(&format!("{tensor}.quantized"));
        let parameters = [scale, zero_point];
        self.node("QuantizeLinear", tensor, &parameters, &quantized, None);
        let name = self.names.unique(&format!("{tensor}.dequantized"));
        self.node("DequantizeLinear", &quantized, &parameters, &name, None);
        self.activations.insert(tensor.to_owned(), (map, name.clone()));
        (map, name)
    }

    fn weight(&mut self, tensor: &str, axis: usize, integers: &[i8], scales: &[f32]) -> String {
        let bits = scales.iter().map(|scale| scale.to_bits()).collect();
        let key = (tensor.to_owned(), axis, bits);
        if let Some(found) = self.weights.get(&key) {
            return found.clone();
        }
        let bytes = integers.iter().map(|value| value.cast_unsigned()).collect();
        let dims = self.constants[tensor].dims.clone();
        let name = self.dequantized(tensor, (data_type::INT8, dims, bytes), scales, axis);
        self.weights.insert(key, name.clone());
        name
    }

    /// Stores an integer tensor with its scales along `axis`, and returns the name of its real values.
    fn dequantized(
        &mut self,
        tensor: &str,
        (element, dims, bytes): (i32, Vec<i64>, Vec<u8>),
        scales: &[f32],
        axis: usize,
    ) -> String {
        self.replaced.insert(tensor.to_owned());
        let quantized = self.initializer(&format!("{tensor}.quantized"), element, dims, bytes);
        let channels = vec![scales.len() as i64];
        let scale = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scale = self.initializer(&format!("{tensor}.scale"), data_type::FLOAT, channels.clone(), scale);
        let width = if element == data_type::INT8 { 1 } else { 4 };
        let zeros = vec![0; scales.len() * width];
        let zero_point = self.initializer(&format!("{tensor}.zero_point"), element, channels, zeros);
        let name = self.names.unique(&format!("{tensor}.dequantized"));
        self.node("DequantizeLinear", &quantized, &[scale, zero_point], &name, Some(axis));
        name
    }

    fn initializer(&mut self, wanted: &str, element: i32, dims: Vec<i64>, bytes: Vec<u8>) -> String {
        let name = self.names.unique(wanted);
        self.initializers.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(element),
            dims,
            raw_data: Some(bytes),
            ..TensorProto::default()
        });
        name
    }

    fn node(
        &mut self,
        op_type: &str,
        input: &str,
        parameters: &[String; 2],
        output: &str,
        axis: Option<usize>,
    ) {
        let axis = axis.map(|axis| AttributeProto {
            name: Some("axis".to_owned()),
            i: Some(axis as i64),
            r#type: Some(attribute_type::INT),
            ..AttributeProto::default()
        });
        self.nodes.push(NodeProto {
            name: Some(output.to_owned()),
            op_type: Some(op_type.to_owned()),
            input: [input]
                .into_iter()
                .chain(parameters.iter().map(String::as_str))
                .map(str::to_owned)
                .collect(),
            output: vec![output.to_owned()],
            attribute: axis.into_iter().collect(),
            ..NodeProto::default()
        });
    }

    /// The graph, without the f32 constants that nothing reads any more.
    fn finish(self, graph: &GraphProto) -> GraphProto {
        let mut finished = graph.clone();
        finished.node = self.nodes;
        finished.initializer.extend(self.initializers);
        let mut read = HashSet::new();
        reads(&finished, &mut read);
        let dead = |name: &str| self.replaced.contains(name) && !read.contains(name);
        let initializers = finished.initializer.iter().map(|tensor| !dead(tensor.name())).collect::<Vec<_>>();
        let nodes = finished
            .node
            .iter()
            .map(|node| node.op_type() != "Constant" || !node.output.first().is_some_and(|name| dead(name)));
        let nodes = nodes.collect::<Vec<_>>();
        retain(&mut finished.initializer, &initializers);
        retain(&mut finished.node, &nodes);
        finished
    }
}

fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| keep.next().copied().unwrap_or(true));
}

/// Every name of a graph that a new one must differ from.
fn value_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let nodes = graph
        .node
        .iter()
        .flat_map(|node| node.input.iter().chain(&node.output).map(String::as_str).chain([node.name()]));
    let inputs = graph.input.iter().map(ValueInfoProto::name);
    inputs.chain(graph.initializer.iter().map(TensorProto::name)).chain(nodes)
}

/// Names that nodes and outputs read, those of sub-graphs too. Decoding has bounded how deep they nest.
fn reads(graph: &GraphProto, into: &mut HashSet<String>) {
    into.extend(graph.output.iter().map(|output| output.name().to_owned()));
    for node in &graph.node {
        into.extend(node.input.iter().cloned());
        for attribute in &node.attribute {
            attribute.g.iter().chain(&attribute.graphs).for_each(|inner| reads(inner, into));
        }
    }
}
