//! Gallery models that others made: any ONNX network from an image to a vector, with a unit norm and a projection added to
//! its graph.

use std::collections::HashSet;

use burn_onnx_export::OnnxModel;
use burn_onnx_export::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};
use thiserror::Error;

use crate::projection::Projection;

/// Why a model cannot be adopted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AdoptionError {
    /// No graph, or not one input and one output.
    #[error("it has {inputs} inputs and {outputs} outputs, not one of each")]
    Ends {
        /// Inputs that are no constants.
        inputs: usize,
        /// Outputs.
        outputs: usize,
    },
    /// The input is no image.
    #[error("its input `{input}` has the shape {shape}, not [N, 3, height, width]")]
    NoImage {
        /// The input.
        input: String,
        /// Its shape, as the file has it.
        shape: String,
    },
    /// The batch is fixed.
    #[error(
        "its batch is fixed to {0} photos, and photos come one at a time: export it again with a dynamic batch (for PyTorch, \
         `dynamic_axes={{\"image\": {{0: \"N\"}}}}`)"
    )]
    FixedBatch(i64),
    /// The size is fixed to another.
    #[error(
        "its input is fixed to {width} x {height} pixels: use --size {width}, or export it with dynamic axes"
    )]
    FixedSize {
        /// Pixels.
        width: i64,
        /// Pixels.
        height: i64,
    },
    /// Too old for what is added.
    #[error(
        "it is of operator set {0}, and 13 is the first that can be extended: convert it with `onnx.version_converter`"
    )]
    OldOpset(i64),
}

/// The first operator set in which `ReduceSum` takes its axes as an input.
const OPSET_MIN: i64 = 13;
/// Keeps a zero vector from being divided by zero.
const NORM_MIN: f32 = 1e-12;

/// The model with its output made unit and, with a projection, projected and made unit again. The output is called `output`.
///
/// # Errors
/// [`AdoptionError`].
pub fn adopt(
    model: &OnnxModel,
    size: u32,
    projection: Option<&Projection>,
    output: &str,
) -> Result<OnnxModel, AdoptionError> {
    let mut model = model.clone();
    let sets =
        model.proto.opset_import.iter().filter(|set| set.domain().is_empty() || set.domain() == "ai.onnx");
    let opset = sets.map(OperatorSetIdProto::version).max().unwrap_or(0);
    let Some(graph) = &mut model.proto.graph else {
        return Err(AdoptionError::Ends { inputs: 0, outputs: 0 });
    };
    let batch = check(graph, size)?;
    if opset < OPSET_MIN {
        return Err(AdoptionError::OldOpset(opset));
    }
    let mut writer = Writer::new(graph);
    let from = writer.graph.output[0].name().to_owned();
    let flat = writer.name("flat");
    writer.node("Flatten", &[&from], &flat, Some(("axis", 1)));
    let mut last = writer.unit(&flat);
    let mut dimension = None;
    if let Some(projection) = projection {
        let d = projection.bias.len();
        let channels = projection.weight.len() / d;
        let weight = writer.floats("weight", &[channels, d], &projection.weight);
        let bias = writer.floats("bias", &[d], &projection.bias);
        let projected = writer.name("projected");
        writer.node("Gemm", &[&last, &weight, &bias], &projected, None);
        last = writer.unit(&projected);
        dimension = Some(DimensionValue::DimValue(d as i64));
    }
    writer.node("Identity", &[&last], output, None);
    let dims = [batch, dimension].map(|value| DimensionProto { value, denotation: None });
    let tensor_type = TensorTypeProto {
        elem_type: Some(data_type::FLOAT),
        shape: Some(TensorShapeProto { dim: dims.to_vec() }),
    };
    graph.output = vec![ValueInfoProto {
        name: Some(output.to_owned()),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }];
    Ok(model)
}

/// Whether photos of this size can go in, one at a time; returns the batch dimension.
fn check(graph: &GraphProto, size: u32) -> Result<Option<DimensionValue>, AdoptionError> {
    let constants: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let inputs: Vec<&ValueInfoProto> =
        graph.input.iter().filter(|input| !constants.contains(input.name())).collect();
    let ([input], [_]) = (inputs.as_slice(), graph.output.as_slice()) else {
        return Err(AdoptionError::Ends { inputs: inputs.len(), outputs: graph.output.len() });
    };
    let tensor = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
    let dims: Vec<Option<DimensionValue>> =
        shape.map(|shape| shape.dim.iter().map(|dim| dim.value.clone()).collect()).unwrap_or_default();
    let fixed = |dim: &Option<DimensionValue>| match dim {
        Some(DimensionValue::DimValue(value)) => Some(*value),
        _ => None,
    };
    let float = tensor.is_some_and(|tensor| tensor.elem_type == Some(data_type::FLOAT));
    let [batch, channels, height, width] = dims.as_slice() else {
        return Err(AdoptionError::NoImage { input: input.name().to_owned(), shape: describe(&dims) });
    };
    if !float || fixed(channels).is_some_and(|channels| channels != 3) {
        return Err(AdoptionError::NoImage { input: input.name().to_owned(), shape: describe(&dims) });
    }
    if let Some(count) = fixed(batch).filter(|count| *count != 1) {
        return Err(AdoptionError::FixedBatch(count));
    }
    let wanted = i64::from(size);
    let (height, width) = (fixed(height).unwrap_or(wanted), fixed(width).unwrap_or(wanted));
    if (height, width) != (wanted, wanted) {
        return Err(AdoptionError::FixedSize { width, height });
    }
    Ok(batch.clone())
}

fn describe(dims: &[Option<DimensionValue>]) -> String {
    let dims = dims.iter().map(|dim| match dim {
        Some(DimensionValue::DimValue(value)) => value.to_string(),
        Some(DimensionValue::DimParam(name)) => name.clone(),
        None => "?".to_owned(),
    });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}

struct Writer<'a> {
    graph: &'a mut GraphProto,
    taken: HashSet<String>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a mut GraphProto) -> Self {
        let nodes = graph.node.iter().flat_map(|node| node.output.iter().chain(&node.input).cloned());
        let tensors = graph.initializer.iter().map(|tensor| tensor.name().to_owned());
        let taken = nodes.chain(tensors).collect();
        Self { graph, taken }
    }

    /// A name that nothing in the graph has.
    fn name(&mut self, wanted: &str) -> String {
        let mut name = format!("adopted.{wanted}");
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// x / max(|x|, tiny), row by row.
    fn unit(&mut self, x: &str) -> String {
        let [squares, sum, norm, safe, unit] =
            ["squares", "sum", "norm", "norm_or_tiny", "unit"].map(|name| self.name(name));
        let axes = self.name("axes");
        self.graph.initializer.push(TensorProto {
            name: Some(axes.clone()),
            data_type: Some(data_type::INT64),
            dims: vec![1],
            raw_data: Some(1_i64.to_le_bytes().to_vec()),
            ..TensorProto::default()
        });
        let tiny = self.floats("tiny", &[1], &[NORM_MIN]);
        self.node("Mul", &[x, x], &squares, None);
        self.node("ReduceSum", &[&squares, &axes], &sum, Some(("keepdims", 1)));
        self.node("Sqrt", &[&sum], &norm, None);
        self.node("Max", &[&norm, &tiny], &safe, None);
        self.node("Div", &[x, &safe], &unit, None);
        unit
    }

    fn floats(&mut self, wanted: &str, shape: &[usize], values: &[f32]) -> String {
        let name = self.name(wanted);
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(data_type::FLOAT),
            dims: shape.iter().map(|&side| side as i64).collect(),
            raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            ..TensorProto::default()
        });
        name
    }

    fn node(&mut self, op_type: &str, inputs: &[&str], output: &str, integer: Option<(&str, i64)>) {
        let attribute = integer.map(|(name, value)| AttributeProto {
            name: Some(name.to_owned()),
            i: Some(value),
            r#type: Some(attribute_type::INT),
            ..AttributeProto::default()
        });
        self.graph.node.push(NodeProto {
            name: Some(output.to_owned()),
            op_type: Some(op_type.to_owned()),
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attribute.into_iter().collect(),
            ..NodeProto::default()
        });
    }
}
