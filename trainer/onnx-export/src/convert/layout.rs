//! Operations that move elements or depend on shapes: reshapes, slices, pads and the like.

use burn::tensor::Slice;
use burn_ir::{
    BaseOperationIr, MaskFillOpIr, OperationIr, PadModeIr, PadOpIr, ScalarIr, ShapeOpIr, SliceOpIr, TensorIr,
};

use super::no_translation;
use crate::capture::Step;
use crate::emit::{Emitter, ShapeEntry, int, ints, string};
use crate::error::ExportError;

impl Emitter<'_> {
    pub(super) fn base(&mut self, step: &Step, op: &BaseOperationIr) -> Result<(), ExportError> {
        use BaseOperationIr as B;
        match op {
            B::Reshape(op) => self.reshape(step, op),
            B::Expand(op) => self.expand(step, op),
            B::Slice(op) => self.slice(step, op),
            B::SwapDims(op) => {
                let mut axes: Vec<_> = (0..op.input.shape.rank()).collect();
                if op.dim1.max(op.dim2) >= axes.len() {
                    return Err(ExportError::inconsistent("SwapDims beyond the tensor's rank"));
                }
                axes.swap(op.dim1, op.dim2);
                self.transpose(&op.input, &axes, &op.out)
            }
            B::Permute(op) => self.transpose(&op.input, &op.axes, &op.out),
            B::Flip(op) => {
                let input = self.value(&op.input)?;
                let count = op.axes.len();
                let axes: Vec<_> = op.axes.iter().map(|axis| *axis as i64).collect();
                let inputs = vec![
                    input,
                    self.ints(&vec![-1; count]),
                    self.ints(&vec![i64::MIN; count]),
                    self.ints(&axes),
                    self.ints(&vec![-1; count]),
                ];
                self.node_for(&op.out, "Slice", inputs, Vec::new());
                Ok(())
            }
            B::Cat(op) => {
                let mut inputs = Vec::with_capacity(op.tensors.len());
                for tensor in &op.tensors {
                    inputs.push(self.value(tensor)?);
                }
                self.node_for(&op.out, "Concat", inputs, vec![int("axis", op.dim as i64)]);
                Ok(())
            }
            B::RepeatDim(op) => {
                let input = self.value(&op.tensor)?;
                let mut repeats = vec![1; op.tensor.shape.rank()];
                let Some(repeat) = repeats.get_mut(op.dim) else {
                    return Err(ExportError::inconsistent("RepeatDim beyond the tensor's rank"));
                };
                *repeat = op.times as i64;
                let repeats = self.ints(&repeats);
                self.node_for(&op.out, "Tile", vec![input, repeats], Vec::new());
                Ok(())
            }
            B::Cast(op) => self.cast(&op.input, &op.out),
            B::Gather(op) => {
                let inputs = vec![self.value(&op.tensor)?, self.value(&op.indices)?];
                let axis = int("axis", op.dim as i64);
                self.node_for(&op.out, "GatherElements", inputs, vec![axis]);
                Ok(())
            }
            B::Select(op) => {
                let inputs = vec![self.value(&op.tensor)?, self.value(&op.indices)?];
                self.node_for(&op.out, "Gather", inputs, vec![int("axis", op.dim as i64)]);
                Ok(())
            }
            B::MaskWhere(op) => {
                let (mask, value) = (self.value(&op.mask)?, self.value(&op.value)?);
                let tensor = self.value(&op.tensor)?;
                self.node_for(&op.out, "Where", vec![mask, value, tensor], Vec::new());
                Ok(())
            }
            B::MaskFill(op) => self.mask_fill(op),
            B::Equal(op) => self.binary("Equal", op),
            B::EqualElem(op) => self.with_scalar("Equal", op),
            B::NotEqual(op) => {
                let inputs = vec![self.value(&op.lhs)?, self.value(&op.rhs)?];
                let equal = self.node("Equal", inputs, Vec::new());
                self.node_for(&op.out, "Not", vec![equal], Vec::new());
                Ok(())
            }
            B::NotEqualElem(op) => {
                let inputs = vec![self.value(&op.lhs)?, self.scalar(op.lhs.dtype, op.rhs)?];
                let equal = self.node("Equal", inputs, Vec::new());
                self.node_for(&op.out, "Not", vec![equal], Vec::new());
                Ok(())
            }
            B::Zeros(op) => self.filled(step, &op.out, ScalarIr::Int(0)),
            B::Ones(op) => self.filled(step, &op.out, ScalarIr::Int(1)),
            _ => Err(no_translation(step)),
        }
    }

    fn transpose(&mut self, input: &TensorIr, axes: &[usize], out: &TensorIr) -> Result<(), ExportError> {
        let input = self.value(input)?;
        let perm = ints("perm", axes.iter().copied());
        self.node_for(out, "Transpose", vec![input], vec![perm]);
        Ok(())
    }

    fn mask_fill(&mut self, op: &MaskFillOpIr) -> Result<(), ExportError> {
        let mask = self.value(&op.mask)?;
        let value = self.scalar(op.tensor.dtype, op.value)?;
        let tensor = self.value(&op.tensor)?;
        self.node_for(&op.out, "Where", vec![mask, value, tensor], Vec::new());
        Ok(())
    }

    /// Sizes that change become 0 (as in the input, same axis) or -1 (whatever is left); only where
    /// that does not suffice they are computed from the shape of another tensor.
    fn reshape(&mut self, step: &Step, op: &ShapeOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        let given = self.trace.extents(&op.input)?;
        let wanted = self.trace.extents(&op.out)?;
        if given == wanted {
            self.bind(&op.out, input);
            return Ok(());
        }
        let mut entries: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(axis, extent)| match extent.fixed() {
                Some(size) => ShapeEntry::Known(size),
                None if given.get(axis) == Some(extent) => ShapeEntry::Known(0),
                None => ShapeEntry::Like(extent.clone()),
            })
            .collect();
        if wanted.iter().any(|extent| extent.fixed() == Some(0)) {
            let reason = "a reshape to an empty tensor is not translated";
            return Err(ExportError::unsupported(&step.name, reason));
        }
        let unknown = entries.iter().rposition(|entry| matches!(entry, ShapeEntry::Like(_)));
        if let Some(entry) = unknown.and_then(|last| entries.get_mut(last)) {
            *entry = ShapeEntry::Known(-1);
        }
        let shape = self.shape(&step.name, "shape", &entries, &[&op.input])?;
        self.node_for(&op.out, "Reshape", vec![input, shape], Vec::new());
        Ok(())
    }

    /// ONNX broadcasts in both directions: a 1 keeps the input's size.
    fn expand(&mut self, step: &Step, op: &ShapeOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        let given = self.trace.extents(&op.input)?;
        let wanted = self.trace.extents(&op.out)?;
        if given == wanted {
            self.bind(&op.out, input);
            return Ok(());
        }
        let offset = wanted
            .len()
            .checked_sub(given.len())
            .ok_or_else(|| ExportError::inconsistent("Expand to a lower rank"))?;
        let entries: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(axis, extent)| {
                let before = axis.checked_sub(offset).and_then(|axis| given.get(axis));
                match extent.fixed() {
                    Some(size) => ShapeEntry::Known(size),
                    None if before == Some(extent) => ShapeEntry::Known(1),
                    None => ShapeEntry::Like(extent.clone()),
                }
            })
            .collect();
        let shape = self.shape(&step.name, "shape", &entries, &[&op.input])?;
        self.node_for(&op.out, "Expand", vec![input, shape], Vec::new());
        Ok(())
    }

    /// A tensor of one repeated value.
    pub(super) fn filled(&mut self, step: &Step, out: &TensorIr, value: ScalarIr) -> Result<(), ExportError> {
        let entries: Vec<_> = self
            .trace
            .extents(out)?
            .iter()
            .map(|extent| match extent.fixed() {
                Some(size) => ShapeEntry::Known(size),
                None => ShapeEntry::Like(extent.clone()),
            })
            .collect();
        let scalar = self.scalar(out.dtype, value)?;
        let shape = self.shape(&step.name, "shape", &entries, &[])?;
        self.node_for(out, "Expand", vec![scalar, shape], Vec::new());
        Ok(())
    }

    fn slice(&mut self, step: &Step, op: &SliceOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.tensor)?;
        let extents = self.trace.extents(&op.tensor)?;
        let mut all_ranges = Vec::new();
        for variant in &step.variants {
            match variant {
                OperationIr::BaseFloat(BaseOperationIr::Slice(op))
                | OperationIr::BaseInt(BaseOperationIr::Slice(op))
                | OperationIr::BaseBool(BaseOperationIr::Slice(op)) => all_ranges.push(&op.ranges),
                _ => return Err(ExportError::inconsistent("a slice turned into something else")),
            }
        }
        let (mut starts, mut ends, mut axes, mut steps) = (vec![], vec![], vec![], vec![]);
        for (axis, extent) in extents.iter().enumerate() {
            let ranges: Vec<Slice> =
                all_ranges.iter().filter_map(|ranges| ranges.get(axis).copied()).collect();
            // Axes beyond the given ranges are taken whole.
            let Some(range) = ranges.first() else { continue };
            if ranges.iter().any(|other| other.step != range.step) {
                return Err(ExportError::not_symbolic(&step.name, "step", &ranges));
            }
            if range.step <= 0 {
                let reason = "negative steps are not translated: use `flip`";
                return Err(ExportError::unsupported(&step.name, reason));
            }
            let bounds = ranges.iter().zip(&extent.0);
            let first: Vec<_> = bounds.clone().map(|(range, size)| (range.start as i64, *size)).collect();
            let last: Vec<_> =
                bounds.map(|(range, size)| (range.end.map_or(*size, |end| end as i64), *size)).collect();
            let start = bound(&first).ok_or_else(|| {
                ExportError::not_symbolic(&step.name, format!("start of axis {axis}"), &ranges)
            })?;
            let end = bound(&last).ok_or_else(|| {
                ExportError::not_symbolic(&step.name, format!("end of axis {axis}"), &ranges)
            })?;
            if start == 0 && end == i64::MAX && range.step == 1 {
                continue;
            }
            starts.push(start);
            ends.push(end);
            axes.push(axis as i64);
            steps.push(range.step as i64);
        }
        if axes.is_empty() {
            self.bind(&op.out, input);
            return Ok(());
        }
        let inputs = vec![input, self.ints(&starts), self.ints(&ends), self.ints(&axes), self.ints(&steps)];
        self.node_for(&op.out, "Slice", inputs, Vec::new());
        Ok(())
    }

    pub(super) fn pad(&mut self, step: &Step, op: &PadOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        let before = op.padding.iter().map(|(before, _)| *before as i64);
        let after = op.padding.iter().map(|(_, after)| *after as i64);
        let pads: Vec<_> = before.chain(after).collect();
        if pads.iter().all(|size| *size == 0) {
            self.bind(&op.out, input);
            return Ok(());
        }
        if op.padding.len() != op.input.shape.rank() {
            let reason = "padding of some axes only is not translated";
            return Err(ExportError::unsupported(&step.name, reason));
        }
        let mut inputs = vec![input, self.ints(&pads)];
        let mode = match op.mode {
            PadModeIr::Constant(value) => {
                inputs.push(self.scalar(op.input.dtype, value)?);
                "constant"
            }
            PadModeIr::Reflect => "reflect",
            PadModeIr::Edge => "edge",
        };
        self.node_for(&op.out, "Pad", inputs, vec![string("mode", mode)]);
        Ok(())
    }
}

/// A slice bound in each recording, with the size of its axis, as one number for ONNX: the bound
/// itself, the largest number for the end of the axis, or a negative distance from the end.
fn bound(values: &[(i64, i64)]) -> Option<i64> {
    let (first, size) = *values.first()?;
    if values.iter().all(|(bound, size)| bound == size) {
        return Some(i64::MAX);
    }
    if values.iter().all(|(bound, _)| *bound == first) {
        return Some(first);
    }
    let distance = first - size;
    let same = values.iter().all(|(bound, size)| bound - size == distance);
    (same && distance < 0).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn bounds_are_absolute_or_count_from_the_end() {
        assert_eq!(bound(&[(2, 8), (2, 12)]), Some(2));
        assert_eq!(bound(&[(8, 8), (12, 12)]), Some(i64::MAX));
        assert_eq!(bound(&[(7, 8), (11, 12)]), Some(-1));
        assert_eq!(bound(&[(4, 8), (6, 12)]), None);
    }
}
