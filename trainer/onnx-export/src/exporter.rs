//! The exporter: what to capture, at which sizes, and under which names.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::capture::{Extent, Trace, trace};
use crate::convert::convert;
use crate::emit::element_type;
use crate::error::ExportError;
use crate::fold::{fold_batch_norms, fold_constant_reshapes, fold_pads, order_initializers};
use crate::model::OnnxModel;
use crate::proto::{
    DimensionProto, DimensionValue, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};

/// One dimension of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Any size, chosen at run time.
    Symbolic {
        /// Name in the model; equal names are equal sizes.
        name: String,
        /// Sizes to capture at, two or more; empty for the defaults.
        examples: Vec<usize>,
    },
}

impl Dim {
    /// A dimension that always has this size.
    pub fn fixed(size: usize) -> Self {
        Self::Fixed(size)
    }

    /// A dimension of any size, captured at 1 and 2 if it is the first one (the batch), else at 64
    /// and 96.
    pub fn symbolic(name: impl Into<String>) -> Self {
        Self::symbolic_with(name, [])
    }

    /// A dimension of any size, captured at the sizes given. Choose sizes that the network takes
    /// and that behave like those it will see.
    pub fn symbolic_with(name: impl Into<String>, examples: impl IntoIterator<Item = usize>) -> Self {
        Self::Symbolic { name: name.into(), examples: examples.into_iter().collect() }
    }
}

const BATCH_EXAMPLES: [usize; 2] = [1, 2];
const SIZE_EXAMPLES: [usize; 2] = [64, 96];
const IR_VERSION: i64 = 8;

/// Describes an export; [`export`](Self::export) carries it out.
#[derive(Clone, Debug)]
pub struct Exporter {
    input: String,
    dims: Option<Vec<Dim>>,
    output: String,
    metadata: Vec<(String, String)>,
    graph_name: String,
    opset: i64,
    fold_batch_norm: bool,
}

impl Default for Exporter {
    fn default() -> Self {
        Self::new()
    }
}

impl Exporter {
    /// An exporter with an input `input` whose dimensions are all symbolic, an output `output`,
    /// opset 17 and folding of batch normalisation.
    pub fn new() -> Self {
        Self {
            input: "input".to_owned(),
            dims: None,
            output: "output".to_owned(),
            metadata: Vec::new(),
            graph_name: "main".to_owned(),
            opset: 17,
            fold_batch_norm: true,
        }
    }

    /// Name and dimensions of the input, one dimension an axis.
    #[must_use]
    pub fn input(mut self, name: impl Into<String>, dims: impl Into<Vec<Dim>>) -> Self {
        self.input = name.into();
        self.dims = Some(dims.into());
        self
    }

    /// Name of the output.
    #[must_use]
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.output = name.into();
        self
    }

    /// Adds an entry to the model's `metadata_props`; a later one with the same key replaces it.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.metadata.retain(|(other, _)| *other != key);
        self.metadata.push((key, value.into()));
        self
    }

    /// Name of the graph.
    #[must_use]
    pub fn graph_name(mut self, name: impl Into<String>) -> Self {
        self.graph_name = name.into();
        self
    }

    /// Version of the operator set, 13 to 17.
    #[must_use]
    pub fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    /// Whether batch normalisation is merged into the convolution before it.
    #[must_use]
    pub fn fold_batch_norm(mut self, fold: bool) -> Self {
        self.fold_batch_norm = fold;
        self
    }

    /// Exports what `forward` computes with the module.
    ///
    /// `forward` runs once for every example size, on a copy of the module in validation mode that
    /// records instead of computing; it must not read tensor values (`into_data` and the like). The
    /// input is `f32`, of the declared dimensions. The module itself is not touched.
    ///
    /// # Errors
    ///
    /// See [`ExportError`]: mostly an operation that has no translation, or an attribute that
    /// depends on the input size.
    ///
    /// # Panics
    ///
    /// Whatever `forward` panics with, for example when it reads tensor values or refuses an
    /// example size.
    pub fn export<M, F, const D: usize, const O: usize>(
        &self,
        module: &M,
        forward: F,
    ) -> Result<OnnxModel, ExportError>
    where
        M: Module,
        F: Fn(&M, Tensor<D>) -> Tensor<O>,
    {
        if !(13..=17).contains(&self.opset) {
            return Err(ExportError::UnsupportedOpset { opset: self.opset });
        }
        if self.input == self.output {
            return Err(ExportError::DuplicateName { name: self.input.clone() });
        }
        let dims = match &self.dims {
            Some(dims) => dims.clone(),
            None => (0..D).map(|axis| Dim::symbolic(format!("d{axis}"))).collect(),
        };
        let sizes = self.sizes::<D>(&dims)?;
        let trace = trace(module, &forward, &sizes)?;
        let mut graph = convert(&trace, self.opset, &self.input, &self.output)?;
        fold_constant_reshapes(&mut graph, &self.output);
        fold_pads(&mut graph, &self.output);
        if self.fold_batch_norm {
            fold_batch_norms(&mut graph, &self.output);
        }
        order_initializers(&mut graph);
        let graph = GraphProto {
            name: Some(self.graph_name.clone()),
            input: vec![self.input_info(&dims)],
            output: vec![self.output_info(&dims, &trace)?],
            node: graph.nodes,
            initializer: graph.initializers,
            ..GraphProto::default()
        };
        Ok(OnnxModel { proto: self.model(graph) })
    }

    /// The input sizes to capture at: all first examples, then each further example on its own.
    fn sizes<const D: usize>(&self, dims: &[Dim]) -> Result<Vec<[usize; D]>, ExportError> {
        if dims.len() != D {
            return Err(ExportError::InputRank {
                input: self.input.clone(),
                declared: dims.len(),
                expected: D,
            });
        }
        // Examples by symbol, in order of first appearance: a symbol may name several axes.
        let mut symbols: Vec<(&str, Vec<usize>)> = Vec::new();
        let mut base = [0; D];
        for (axis, dim) in dims.iter().enumerate() {
            let invalid = |reason: &str| ExportError::InvalidDimension {
                input: self.input.clone(),
                axis,
                reason: reason.to_owned(),
            };
            base[axis] = match dim {
                Dim::Fixed(0) => return Err(invalid("its size is 0: give a positive one")),
                Dim::Fixed(size) => *size,
                Dim::Symbolic { name, examples } => {
                    if name.is_empty() {
                        return Err(invalid("its name is empty: give it one"));
                    }
                    let known = symbols.iter().find(|(other, _)| other == name);
                    let examples = match (known, examples.as_slice()) {
                        (Some((_, known)), []) => known.clone(),
                        (None, []) if axis == 0 => BATCH_EXAMPLES.to_vec(),
                        (None, []) => SIZE_EXAMPLES.to_vec(),
                        (Some((_, known)), given) if known.as_slice() != given => {
                            return Err(invalid("another axis of that name has other examples"));
                        }
                        (_, given) => given.to_vec(),
                    };
                    let first = examples.first().copied().unwrap_or_default();
                    if examples.contains(&0) || examples.iter().all(|size| *size == first) {
                        return Err(invalid("its examples must be two or more positive sizes"));
                    }
                    if known.is_none() {
                        symbols.push((name, examples));
                    }
                    first
                }
            };
        }
        let mut sizes = vec![base];
        for (symbol, examples) in symbols {
            for example in examples.into_iter().skip(1) {
                let mut size = base;
                for (axis, dim) in dims.iter().enumerate() {
                    if matches!(dim, Dim::Symbolic { name, .. } if name == symbol) {
                        size[axis] = example;
                    }
                }
                sizes.push(size);
            }
        }
        Ok(sizes)
    }

    fn input_info(&self, dims: &[Dim]) -> ValueInfoProto {
        let dims = dims.iter().map(|dim| match dim {
            Dim::Fixed(size) => Some(DimensionValue::DimValue(*size as i64)),
            Dim::Symbolic { name, .. } => Some(DimensionValue::DimParam(name.clone())),
        });
        value_info(&self.input, data_type::FLOAT, dims)
    }

    /// Dimensions of the output that are equal to one of the input carry its name.
    fn output_info(&self, dims: &[Dim], trace: &Trace) -> Result<ValueInfoProto, ExportError> {
        let input = trace.extents_of(trace.input).unwrap_or_default();
        let name_of = |extent: &Extent| {
            dims.iter().zip(input).find_map(|(dim, given)| match dim {
                Dim::Symbolic { name, .. } if given == extent => Some(name.clone()),
                _ => None,
            })
        };
        let extents = trace.extents(&trace.output)?;
        let dims = extents.iter().map(|extent| match extent.fixed() {
            Some(size) => Some(DimensionValue::DimValue(size)),
            None => name_of(extent).map(DimensionValue::DimParam),
        });
        let element = element_type(trace.output.dtype)?;
        Ok(value_info(&self.output, element, dims))
    }

    fn model(&self, graph: GraphProto) -> ModelProto {
        let entry = |(key, value): &(String, String)| StringStringEntryProto {
            key: Some(key.clone()),
            value: Some(value.clone()),
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) }],
            metadata_props: self.metadata.iter().map(entry).collect(),
            ..ModelProto::default()
        }
    }
}

fn value_info(
    name: &str,
    element_type: i32,
    dims: impl Iterator<Item = Option<DimensionValue>>,
) -> ValueInfoProto {
    let dim = dims.map(|value| DimensionProto { value, denotation: None }).collect();
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(element_type),
                shape: Some(TensorShapeProto { dim }),
            }),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
