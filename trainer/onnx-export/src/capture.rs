//! Records a module's forward pass at several input sizes and lines the recordings up.
//!
//! A captured graph has concrete shapes. Which of their numbers stand for the batch size, the
//! height or the width is found by recording the same computation at several sizes: once with the
//! first example of every symbolic dimension, then once for every further example with only that
//! dimension changed. The recordings must contain the same operations in the same order. What
//! differs between them is then a property of the size: every dimension of every tensor becomes an
//! [`Extent`], its value in each recording, and two extents that agree everywhere are the same
//! expression.
//!
//! Operations that do not reach the output are dropped before the comparison.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use burn::module::Module;
use burn::tensor::{Device, Slice, Tensor, TensorData};
use burn_capture::{CaptureBackend, TensorId};
use burn_ir::{BaseOperationIr, IrVisitorMut, ModuleOperationIr, OperationIr, TensorIr, TensorStatus};

use crate::error::ExportError;
use crate::names::parameter_paths;

/// The size of one axis in every recording.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Extent(pub(crate) Vec<i64>);

impl Extent {
    /// The size, if it is the same in all recordings.
    pub(crate) fn fixed(&self) -> Option<i64> {
        let first = *self.0.first()?;
        self.0.iter().all(|size| *size == first).then_some(first)
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fixed() {
            Some(size) => write!(f, "{size}"),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// One operation as recorded at each size.
pub(crate) struct Step {
    /// Burn's name, such as `Module.Conv2d`.
    pub(crate) name: String,
    /// The operation in each recording, the base recording first.
    pub(crate) variants: Vec<OperationIr>,
}

/// The reconciled recordings. Tensors go by their id in the base recording.
pub(crate) struct Trace {
    pub(crate) steps: Vec<Step>,
    pub(crate) input: TensorId,
    pub(crate) output: TensorIr,
    /// Shape of the input in each recording.
    pub(crate) sizes: Vec<Vec<usize>>,
    /// Values known at export: parameters and tensors made from data.
    pub(crate) values: BTreeMap<TensorId, TensorData>,
    /// Module paths of the values that are parameters.
    pub(crate) paths: HashMap<TensorId, String>,
    extents: HashMap<TensorId, Vec<Extent>>,
}

impl Trace {
    /// The dimensions of a tensor.
    pub(crate) fn extents(&self, tensor: &TensorIr) -> Result<&[Extent], ExportError> {
        self.extents_of(tensor.id)
            .ok_or_else(|| ExportError::inconsistent(format!("{} was never recorded", tensor.id)))
    }

    pub(crate) fn extents_of(&self, id: TensorId) -> Option<&[Extent]> {
        self.extents.get(&id).map(Vec::as_slice)
    }
}

/// Records `forward` once for each of `sizes` and reconciles the recordings.
pub(crate) fn trace<M, F, const D: usize, const O: usize>(
    module: &M,
    forward: &F,
    sizes: &[[usize; D]],
) -> Result<Trace, ExportError>
where
    M: Module,
    F: Fn(&M, Tensor<D>) -> Tensor<O>,
{
    let mut base: Option<Trace> = None;
    // Ids of the base recording by order of appearance, to pair them with later recordings.
    let mut base_order = Vec::new();
    for size in sizes {
        let recording = record(module, forward, *size)?;
        let order = recording.order();
        match &mut base {
            None => {
                base = Some(recording.into_trace());
                base_order = order;
            }
            Some(trace) => merge(trace, &base_order, recording, &order)?,
        }
    }
    let trace = base.ok_or_else(|| ExportError::inconsistent("no input size was recorded"))?;
    check_attributes(&trace)?;
    Ok(trace)
}

struct Recording {
    size: Vec<usize>,
    operations: Vec<OperationIr>,
    input: TensorIr,
    output: TensorIr,
    values: BTreeMap<TensorId, TensorData>,
    paths: HashMap<TensorId, String>,
}

fn record<M, F, const D: usize, const O: usize>(
    module: &M,
    forward: &F,
    size: [usize; D],
) -> Result<Recording, ExportError>
where
    M: Module,
    F: Fn(&M, Tensor<D>) -> Tensor<O>,
{
    let device = Device::capture();
    // `valid` takes a copy without autodiff whose running statistics are its own: those of a plain
    // clone are shared with the caller's module and would move to the capture device with ours.
    let prepared = module.valid().materialize();
    // The input's zeros are recorded like a constant's; naming it as a boundary makes it the input.
    let data = TensorData::zeros::<f32, _>(size);
    let mut paths = HashMap::new();
    let mut ends = None;
    let captured = device
        .capture_scope(|scope| {
            let prepared = prepared.to_device(&device);
            paths = parameter_paths(&prepared);
            let input = Tensor::<D>::from_data(data, &device);
            let output = forward(&prepared, input.clone());
            let input = input.try_into_primitive::<CaptureBackend>();
            let output = output.try_into_primitive::<CaptureBackend>();
            match (input, output) {
                (Ok(input), Ok(output)) => {
                    let ids = (input.id(), output.id());
                    ends = Some((input.into_ir(), output.into_ir()));
                    if ids.0 == ids.1 {
                        scope.complete([ids.0], [])
                    } else {
                        scope.complete([ids.0], [ids.1])
                    }
                }
                _ => scope.complete([], []),
            }
        })
        .map_err(ExportError::Capture)?;
    let (input, mut output) = ends.ok_or(ExportError::OutputNotCaptured)?;
    // An output that is an alias of another tensor was resolved by the capture.
    if let Some(id) = captured.graph.outputs.first() {
        output.id = *id;
    }
    let operations = live_operations(captured.graph.operations, output.id);
    Ok(Recording { size: size.to_vec(), operations, input, output, values: captured.values, paths })
}

/// The operations that `output` depends on, without those that only announce a constant.
fn live_operations(operations: Vec<OperationIr>, output: TensorId) -> Vec<OperationIr> {
    let mut needed = HashSet::from([output]);
    let mut live: Vec<_> = operations
        .into_iter()
        .rev()
        .filter(|operation| {
            if matches!(operation, OperationIr::Init(_) | OperationIr::Drop(_)) {
                return false;
            }
            let reached = operation.outputs().any(|tensor| needed.contains(&tensor.id));
            if reached {
                needed.extend(operation.inputs().map(|tensor| tensor.id));
            }
            reached
        })
        .collect();
    live.reverse();
    live
}

impl Recording {
    /// Every tensor, in the order in which the recording first mentions it.
    fn order(&self) -> Vec<TensorIr> {
        let mut seen = HashSet::new();
        let mut order = Vec::new();
        let ends = [&self.input, &self.output];
        let nodes = self.operations.iter().flat_map(OperationIr::nodes);
        for tensor in ends.into_iter().chain(nodes) {
            if seen.insert(tensor.id) {
                order.push(tensor.clone());
            }
        }
        order
    }

    fn into_trace(self) -> Trace {
        let extents = self
            .order()
            .into_iter()
            .map(|tensor| {
                let dims = tensor.shape.iter();
                (tensor.id, dims.map(|size| Extent(vec![*size as i64])).collect())
            })
            .collect();
        Trace {
            steps: self
                .operations
                .into_iter()
                .map(|operation| Step { name: operation_name(&operation), variants: vec![operation] })
                .collect(),
            input: self.input.id,
            output: self.output,
            sizes: vec![self.size],
            values: self.values,
            paths: self.paths,
            extents,
        }
    }
}

/// Adds a recording at another size to the trace.
fn merge(
    trace: &mut Trace,
    base_order: &[TensorIr],
    recording: Recording,
    order: &[TensorIr],
) -> Result<(), ExportError> {
    let count = trace.steps.len().max(recording.operations.len());
    for index in 0..count {
        let first = trace.steps.get(index).map(|step| step.name.clone());
        let second = recording.operations.get(index).map(operation_name);
        if first != second {
            let end = || "end of graph".to_owned();
            return Err(ExportError::DifferentOperations {
                index,
                first: first.unwrap_or_else(end),
                second: second.unwrap_or_else(end),
                first_size: trace.sizes[0].clone(),
                second_size: recording.size,
            });
        }
    }
    if base_order.len() != order.len() {
        return Err(ExportError::inconsistent(
            "the same operations use another number of tensors at another input size",
        ));
    }
    for (base, other) in base_order.iter().zip(order) {
        if base.dtype != other.dtype || base.shape.rank() != other.shape.rank() {
            return Err(ExportError::inconsistent(format!(
                "{} has another type or rank at another input size",
                base.id
            )));
        }
        let extents = trace
            .extents
            .get_mut(&base.id)
            .ok_or_else(|| ExportError::inconsistent(format!("{} was never recorded", base.id)))?;
        for (extent, size) in extents.iter_mut().zip(other.shape.iter()) {
            extent.0.push(*size as i64);
        }
        let is_parameter = trace.paths.contains_key(&base.id);
        if base.id == trace.input || is_parameter {
            continue;
        }
        if trace.values.get(&base.id) != recording.values.get(&other.id) {
            let user =
                trace.steps.iter().find(|step| step.variants[0].inputs().any(|tensor| tensor.id == base.id));
            return Err(ExportError::not_symbolic(
                user.map_or("output", |step| step.name.as_str()),
                "constant operand",
                [base.shape.to_vec(), other.shape.to_vec()],
            ));
        }
    }
    trace.sizes.push(recording.size);
    for (step, operation) in trace.steps.iter_mut().zip(recording.operations) {
        step.variants.push(operation);
    }
    Ok(())
}

/// Checks that attributes agree in all recordings, but for those that the converter can express.
fn check_attributes(trace: &Trace) -> Result<(), ExportError> {
    for step in &trace.steps {
        let mut variants = step.variants.iter().map(without_shapes);
        let Some(first) = variants.next() else {
            continue;
        };
        for other in variants {
            if other == first {
                continue;
            }
            let (attribute, left, right) = first_difference(&format!("{first:?}"), &format!("{other:?}"));
            return Err(ExportError::not_symbolic(&step.name, attribute, [left, right]));
        }
    }
    Ok(())
}

/// The operation with everything blanked that legitimately differs between two input sizes.
fn without_shapes(operation: &OperationIr) -> OperationIr {
    struct Blank;
    impl IrVisitorMut for Blank {
        fn visit_tensor_mut(&mut self, tensor: &mut TensorIr) {
            tensor.id = TensorId::new(0);
            tensor.shape = Vec::<usize>::new().into();
            tensor.status = TensorStatus::ReadOnly;
        }
    }
    let mut blank = operation.clone();
    blank.visit_mut(&mut Blank);
    match &mut blank {
        OperationIr::BaseFloat(BaseOperationIr::Slice(slice))
        | OperationIr::BaseInt(BaseOperationIr::Slice(slice))
        | OperationIr::BaseBool(BaseOperationIr::Slice(slice)) => {
            slice.ranges.fill(Slice::new(0, None, 1));
        }
        OperationIr::Module(ModuleOperationIr::Interpolate(interpolate)) => {
            interpolate.output_size = [0, 0];
        }
        _ => {}
    }
    blank
}

/// The field at which two `Debug` texts first differ, and what follows in each.
fn first_difference(left: &str, right: &str) -> (String, String, String) {
    let at = left
        .char_indices()
        .zip(right.chars())
        .find(|((_, a), b)| a != b)
        .map_or(left.len().min(right.len()), |((at, _), _)| at);
    // The field's name is the last word before a colon; its value may start before the difference.
    let (head, field_end) = match left[..at].rfind(": ") {
        Some(colon) => (&left[..colon], colon + 2),
        None => (&left[..at], at),
    };
    let field = head.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
    let value = |text: &str| -> String {
        let tail = text.get(field_end..).unwrap_or_default();
        tail.chars().take_while(|c| *c != '}').take(40).collect()
    };
    (field.to_owned(), value(left), value(right))
}

/// Burn's name of an operation: group and variant, such as `NumericFloat.CumSum`.
///
/// Read off the `Debug` text, which spares a table of all operations and knows those of the future.
fn operation_name(operation: &OperationIr) -> String {
    if let OperationIr::Custom(custom) = operation {
        return format!("Custom.{}", custom.id);
    }
    let text = format!("{operation:?}");
    let mut words = text.split('(');
    let group = words.next().unwrap_or_default();
    // `NumericFloat(F32, Add(..` has the element type first; it may itself have an argument.
    let variant = words
        .map(|word| word.rsplit([',', ' ', ')']).next().unwrap_or_default())
        .find(|word| !word.is_empty() && !matches!(*word, "Bool" | "QFloat"));
    match variant {
        Some(variant) if !variant.contains('{') => format!("{group}.{variant}"),
        _ => group.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_field_that_differs() {
        let left = "Module(Conv2d(Conv2dOpIr { options: O { stride: [1, 1], padding: [(0, 1)] } }))";
        let right = "Module(Conv2d(Conv2dOpIr { options: O { stride: [1, 1], padding: [(1, 1)] } }))";
        let (field, left, right) = first_difference(left, right);
        assert_eq!(field, "padding");
        assert_eq!(left, "[(0, 1)] ");
        assert_eq!(right, "[(1, 1)] ");
    }

    #[test]
    fn an_extent_is_fixed_only_if_it_never_changes() {
        assert_eq!(Extent(vec![3, 3, 3]).fixed(), Some(3));
        assert_eq!(Extent(vec![3, 3, 6]).fixed(), None);
        assert_eq!(format!("{:?}", Extent(vec![1, 2])), "[1, 2]");
    }
}
