//! Builds the ONNX graph: values by tensor id, nodes in order, constants stored once.

use std::collections::HashMap;

use burn::tensor::DType;
use burn_capture::TensorId;
use burn_ir::{ScalarIr, TensorIr};

use crate::capture::{Extent, Trace};
use crate::error::ExportError;
use crate::names::NameTable;
use crate::proto::{AttributeProto, NodeProto, TensorProto, attribute_type, data_type};

/// An entry of a shape operand.
#[derive(Clone, Debug)]
pub(crate) enum ShapeEntry {
    /// A number known at export (0 and -1 included, where the operator gives them a meaning).
    Known(i64),
    /// A size known at run time only, read off a tensor that has it.
    Like(Extent),
}

/// A graph under construction.
pub(crate) struct Emitter<'a> {
    pub(crate) trace: &'a Trace,
    pub(crate) opset: i64,
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) initializers: Vec<TensorProto>,
    pub(crate) names: NameTable,
    /// Names of the parameters, used or not.
    parameters: HashMap<TensorId, String>,
    values: HashMap<TensorId, String>,
    /// Tensors that exist at run time, in order of creation: where sizes can be read off.
    computed: Vec<TensorId>,
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(trace: &'a Trace, opset: i64, input: &str, output: &str) -> Self {
        let mut names = NameTable::default();
        names.unique(input);
        names.unique(output);
        // Parameters get their paths before any operation is named. Sorted, because a path that is
        // taken (by the input, say) gets a suffix.
        let mut paths: Vec<_> = trace.paths.iter().map(|(id, path)| (path, *id)).collect();
        paths.sort_unstable();
        let parameters = paths.into_iter().map(|(path, id)| (id, names.unique(path))).collect();
        Self {
            trace,
            opset,
            nodes: Vec::new(),
            initializers: Vec::new(),
            names,
            parameters,
            values: HashMap::from([(trace.input, input.to_owned())]),
            computed: vec![trace.input],
            constants: HashMap::new(),
        }
    }

    /// The name of a tensor; a constant becomes an initialiser when it is first asked for.
    pub(crate) fn value(&mut self, tensor: &TensorIr) -> Result<String, ExportError> {
        if let Some(name) = self.values.get(&tensor.id) {
            return Ok(name.clone());
        }
        let trace = self.trace;
        let Some(data) = trace.values.get(&tensor.id) else {
            return Err(ExportError::inconsistent(format!("{} is read before it is computed", tensor.id)));
        };
        let name = match self.parameters.get(&tensor.id) {
            Some(name) => name.clone(),
            None => self.names.numbered("const"),
        };
        let dims = data.shape().iter().map(|size| *size as i64).collect();
        self.initializers.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(element_type(data.dtype())?),
            dims,
            raw_data: Some(raw_bytes(data.dtype(), data.as_bytes())?),
            ..TensorProto::default()
        });
        self.values.insert(tensor.id, name.clone());
        Ok(name)
    }

    /// Adds a node with one output and returns the output's name.
    pub(crate) fn node(
        &mut self,
        op_type: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
    ) -> String {
        let name = self.names.numbered(&op_type.to_lowercase());
        self.nodes.push(NodeProto {
            name: Some(name.clone()),
            op_type: Some(op_type.to_owned()),
            input: inputs,
            output: vec![name.clone()],
            attribute: attributes,
            ..NodeProto::default()
        });
        name
    }

    /// Adds a node whose output is `out`.
    pub(crate) fn node_for(
        &mut self,
        out: &TensorIr,
        op_type: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
    ) {
        let name = self.node(op_type, inputs, attributes);
        self.bind(out, name);
    }

    /// Declares that `tensor` is the value called `name`.
    pub(crate) fn bind(&mut self, tensor: &TensorIr, name: String) {
        if self.values.insert(tensor.id, name).is_none() {
            self.computed.push(tensor.id);
        }
    }

    /// An anonymous constant; equal ones are stored once.
    pub(crate) fn constant(&mut self, data_type: i32, dims: Vec<i64>, bytes: Vec<u8>) -> String {
        let key = (data_type, dims, bytes);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.names.numbered("const");
        self.initializers.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(data_type),
            dims: key.1.clone(),
            raw_data: Some(key.2.clone()),
            ..TensorProto::default()
        });
        self.constants.insert(key, name.clone());
        name
    }

    /// A constant vector of `i64`.
    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(data_type::INT64, vec![values.len() as i64], bytes)
    }

    /// A constant of rank 0 with the element type of `like`.
    pub(crate) fn scalar(&mut self, like: DType, value: ScalarIr) -> Result<String, ExportError> {
        let bytes = scalar_bytes(like, value)?;
        Ok(self.constant(element_type(like)?, Vec::new(), bytes))
    }

    /// A vector of `i64` that holds a shape: a constant if all entries are known, else computed.
    ///
    /// `near` are tensors to prefer as sources of sizes.
    pub(crate) fn shape(
        &mut self,
        operation: &str,
        attribute: &str,
        entries: &[ShapeEntry],
        near: &[&TensorIr],
    ) -> Result<String, ExportError> {
        let mut parts = Vec::new();
        let mut known = Vec::new();
        for entry in entries {
            match entry {
                ShapeEntry::Known(value) => known.push(*value),
                ShapeEntry::Like(extent) => {
                    if !known.is_empty() {
                        parts.push(self.ints(&known));
                        known.clear();
                    }
                    parts.push(self.size(operation, attribute, extent, near)?);
                }
            }
        }
        if !known.is_empty() || parts.is_empty() {
            parts.push(self.ints(&known));
        }
        if let [only] = parts.as_slice() {
            return Ok(only.clone());
        }
        Ok(self.node("Concat", parts, vec![int("axis", 0)]))
    }

    /// A vector of one element: the size `wanted`, read off a tensor at run time.
    fn size(
        &mut self,
        operation: &str,
        attribute: &str,
        wanted: &Extent,
        near: &[&TensorIr],
    ) -> Result<String, ExportError> {
        let candidates = near.iter().map(|tensor| tensor.id);
        let candidates: Vec<_> = candidates.chain(self.computed.iter().copied()).collect();
        // An equal size anywhere beats a multiple or a fraction of one.
        for allow_ratio in [false, true] {
            for id in &candidates {
                let (Some(name), Some(extents)) = (self.values.get(id), self.trace.extents_of(*id)) else {
                    continue;
                };
                let name = name.clone();
                let found = extents.iter().enumerate().find_map(|(axis, extent)| {
                    if extent == wanted {
                        return Some((axis, 1, 1));
                    }
                    let (numerator, denominator) = allow_ratio.then(|| ratio(wanted, extent))??;
                    Some((axis, numerator, denominator))
                });
                let Some((axis, numerator, denominator)) = found else {
                    continue;
                };
                let shape = self.node("Shape", vec![name], Vec::new());
                let index = self.ints(&[axis as i64]);
                let mut size = self.node("Gather", vec![shape, index], vec![int("axis", 0)]);
                for (op_type, factor) in [("Mul", numerator), ("Div", denominator)] {
                    if factor != 1 {
                        let factor = self.ints(&[factor]);
                        size = self.node(op_type, vec![size, factor], Vec::new());
                    }
                }
                return Ok(size);
            }
        }
        Err(ExportError::not_symbolic(operation, attribute, &wanted.0))
    }

    /// Names the graph's output, with an `Identity` where the value already has a name of its own.
    pub(crate) fn finish(&mut self, output: &str) -> Result<(), ExportError> {
        let trace = self.trace;
        let produced = self.value(&trace.output)?;
        let is_result = self.nodes.iter().any(|node| node.output.contains(&produced));
        if !is_result {
            self.nodes.push(NodeProto {
                name: Some(self.names.numbered("identity")),
                op_type: Some("Identity".to_owned()),
                input: vec![produced],
                output: vec![output.to_owned()],
                ..NodeProto::default()
            });
            return Ok(());
        }
        for node in &mut self.nodes {
            for name in node.input.iter_mut().chain(&mut node.output) {
                if *name == produced {
                    output.clone_into(name);
                }
            }
        }
        Ok(())
    }
}

/// `wanted / given` as a whole number or the inverse of one, if it is the same in all recordings.
fn ratio(wanted: &Extent, given: &Extent) -> Option<(i64, i64)> {
    let (first_wanted, first_given) = (*wanted.0.first()?, *given.0.first()?);
    if first_wanted == 0 || first_given == 0 || given.fixed().is_some() {
        return None;
    }
    let (numerator, denominator) = if first_wanted % first_given == 0 {
        (first_wanted / first_given, 1)
    } else if first_given % first_wanted == 0 {
        (1, first_given / first_wanted)
    } else {
        return None;
    };
    let same = |(w, g): (&i64, &i64)| w * denominator == g * numerator;
    wanted.0.iter().zip(&given.0).all(same).then_some((numerator, denominator))
}

/// The ONNX element type of a Burn type.
pub(crate) fn element_type(dtype: DType) -> Result<i32, ExportError> {
    Ok(match dtype {
        DType::F64 => data_type::DOUBLE,
        DType::F32 | DType::Flex32 => data_type::FLOAT,
        DType::F16 => data_type::FLOAT16,
        DType::BF16 => data_type::BFLOAT16,
        DType::I64 => data_type::INT64,
        DType::I32 => data_type::INT32,
        DType::I16 => data_type::INT16,
        DType::I8 => data_type::INT8,
        DType::U64 => data_type::UINT64,
        DType::U32 => data_type::UINT32,
        DType::U16 => data_type::UINT16,
        DType::U8 => data_type::UINT8,
        DType::Bool(_) => data_type::BOOL,
        DType::QFloat(_) => return Err(ExportError::UnsupportedType { dtype }),
    })
}

/// Elements as ONNX stores them. Burn's are in memory order; a `bool` may take four bytes there.
fn raw_bytes(dtype: DType, bytes: &[u8]) -> Result<Vec<u8>, ExportError> {
    // Element types were checked against `element_type`; only byte order and bools are left.
    let width = match dtype {
        DType::Bool(_) => {
            let width = dtype.size().max(1);
            let truth = bytes.chunks(width).map(|b| u8::from(b.iter().any(|v| *v != 0)));
            return Ok(truth.collect());
        }
        DType::QFloat(_) => return Err(ExportError::UnsupportedType { dtype }),
        other => other.size(),
    };
    let mut bytes = bytes.to_vec();
    if cfg!(target_endian = "big") {
        bytes.chunks_mut(width.max(1)).for_each(<[u8]>::reverse);
    }
    Ok(bytes)
}

fn scalar_bytes(dtype: DType, value: ScalarIr) -> Result<Vec<u8>, ExportError> {
    let float: f64 = value.elem();
    let int: i64 = value.elem();
    Ok(match dtype {
        DType::F64 => float.to_le_bytes().to_vec(),
        DType::F32 | DType::Flex32 => (float as f32).to_le_bytes().to_vec(),
        DType::F16 => burn::tensor::f16::from_f64(float).to_le_bytes().to_vec(),
        DType::BF16 => burn::tensor::bf16::from_f64(float).to_le_bytes().to_vec(),
        DType::I64 | DType::U64 => int.to_le_bytes().to_vec(),
        DType::I32 | DType::U32 => (int as i32).to_le_bytes().to_vec(),
        DType::I16 | DType::U16 => (int as i16).to_le_bytes().to_vec(),
        DType::I8 | DType::U8 => (int as i8).to_le_bytes().to_vec(),
        DType::Bool(_) => vec![u8::from(int != 0)],
        DType::QFloat(_) => return Err(ExportError::UnsupportedType { dtype }),
    })
}

/// An integer attribute.
pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(attribute_type::INT),
        ..AttributeProto::default()
    }
}

/// An attribute that is a list of integers.
pub(crate) fn ints(name: &str, values: impl IntoIterator<Item = usize>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values.into_iter().map(|value| value as i64).collect(),
        r#type: Some(attribute_type::INTS),
        ..AttributeProto::default()
    }
}

/// A float attribute.
pub(crate) fn float(name: &str, value: ScalarIr) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        f: Some(value.elem()),
        r#type: Some(attribute_type::FLOAT),
        ..AttributeProto::default()
    }
}

/// A string attribute.
pub(crate) fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        s: Some(value.as_bytes().to_vec()),
        r#type: Some(attribute_type::STRING),
        ..AttributeProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_ratios_only_where_they_always_hold() {
        let height = Extent(vec![64, 96, 64]);
        assert_eq!(ratio(&Extent(vec![32, 48, 32]), &height), Some((1, 2)));
        assert_eq!(ratio(&Extent(vec![128, 192, 128]), &height), Some((2, 1)));
        assert_eq!(ratio(&Extent(vec![32, 96, 32]), &height), None);
        assert_eq!(ratio(&Extent(vec![64, 64, 64]), &Extent(vec![32, 32, 32])), None);
    }
}
