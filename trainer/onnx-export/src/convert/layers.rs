//! Convolutions, normalisations, pools and other layers.

use burn_ir::{
    AttentionOpIr, BatchNormOpIr, ConvTranspose2dOpIr, InterpolateModeIr, InterpolateOpIr, LayerNormOpIr,
    LinearOpIr, ModuleOperationIr, ScalarIr, TensorIr,
};

use super::no_translation;
use crate::capture::{Extent, Step};
use crate::emit::{Emitter, ShapeEntry, float, int, ints, string};
use crate::error::ExportError;
use crate::proto::{AttributeProto, data_type};

impl Emitter<'_> {
    pub(super) fn module(&mut self, step: &Step, op: &ModuleOperationIr) -> Result<(), ExportError> {
        use ModuleOperationIr as M;
        match op {
            M::Conv1d(op) => {
                let o = &op.options;
                let attributes = conv_attributes(&op.weight, &o.stride, &o.padding, &o.dilation, o.groups);
                self.conv(&op.x, &op.weight, op.bias.as_ref(), attributes, &op.out)
            }
            M::Conv2d(op) => {
                let o = &op.options;
                let attributes = conv_attributes(&op.weight, &o.stride, &o.padding, &o.dilation, o.groups);
                self.conv(&op.x, &op.weight, op.bias.as_ref(), attributes, &op.out)
            }
            M::ConvTranspose2d(op) => self.conv_transpose(op),
            M::BatchNorm(op) => self.batch_norm(op),
            M::LayerNorm(op) => self.layer_norm(step, op),
            M::Linear(op) => self.linear(op),
            M::Embedding(op) => {
                let inputs = vec![self.value(&op.weights)?, self.value(&op.indices)?];
                self.node_for(&op.out, "Gather", inputs, vec![int("axis", 0)]);
                Ok(())
            }
            M::AvgPool2d(op) => {
                let mut attributes = pool_attributes(&op.kernel_size, &op.stride, &op.padding, op.ceil_mode);
                let include = i64::from(op.count_include_pad);
                attributes.push(int("count_include_pad", include));
                self.pool("AveragePool", &op.x, attributes, &op.out)
            }
            M::MaxPool2d(op) => {
                let mut attributes = pool_attributes(&op.kernel_size, &op.stride, &op.padding, op.ceil_mode);
                attributes.push(ints("dilations", op.dilation));
                self.pool("MaxPool", &op.x, attributes, &op.out)
            }
            M::MaxPool1d(op) => {
                let mut attributes =
                    pool_attributes(&[op.kernel_size], &[op.stride], &[op.padding], op.ceil_mode);
                attributes.push(ints("dilations", [op.dilation]));
                self.pool("MaxPool", &op.x, attributes, &op.out)
            }
            M::AvgPool1d(op) => {
                let mut attributes =
                    pool_attributes(&[op.kernel_size], &[op.stride], &[op.padding], op.ceil_mode);
                let include = i64::from(op.count_include_pad);
                attributes.push(int("count_include_pad", include));
                self.pool("AveragePool", &op.x, attributes, &op.out)
            }
            M::AdaptiveAvgPool1d(op) => self.adaptive_pool(step, &op.x, &[op.output_size], &op.out),
            M::AdaptiveAvgPool2d(op) => self.adaptive_pool(step, &op.x, &op.output_size, &op.out),
            M::Interpolate(op) => self.interpolate(step, op),
            M::Attention(op) => self.attention(step, op),
            _ => Err(no_translation(step)),
        }
    }

    fn conv(
        &mut self,
        x: &TensorIr,
        weight: &TensorIr,
        bias: Option<&TensorIr>,
        attributes: Vec<AttributeProto>,
        out: &TensorIr,
    ) -> Result<(), ExportError> {
        let mut inputs = vec![self.value(x)?, self.value(weight)?];
        if let Some(bias) = bias {
            inputs.push(self.value(bias)?);
        }
        self.node_for(out, "Conv", inputs, attributes);
        Ok(())
    }

    fn conv_transpose(&mut self, op: &ConvTranspose2dOpIr) -> Result<(), ExportError> {
        let o = &op.options;
        let padding = o.padding.map(|size| (size, size));
        let mut attributes = conv_attributes(&op.weight, &o.stride, &padding, &o.dilation, o.groups);
        attributes.push(ints("output_padding", o.padding_out));
        let mut inputs = vec![self.value(&op.x)?, self.value(&op.weight)?];
        if let Some(bias) = &op.bias {
            inputs.push(self.value(bias)?);
        }
        self.node_for(&op.out, "ConvTranspose", inputs, attributes);
        Ok(())
    }

    fn batch_norm(&mut self, op: &BatchNormOpIr) -> Result<(), ExportError> {
        let mut inputs = Vec::with_capacity(5);
        for tensor in [&op.x, &op.gamma, &op.beta, &op.mean, &op.variance] {
            inputs.push(self.value(tensor)?);
        }
        let epsilon = float("epsilon", op.epsilon);
        self.node_for(&op.out, "BatchNormalization", inputs, vec![epsilon]);
        Ok(())
    }

    fn layer_norm(&mut self, step: &Step, op: &LayerNormOpIr) -> Result<(), ExportError> {
        if self.opset < 17 {
            let reason = "LayerNormalization needs opset 17: ask for it";
            return Err(ExportError::unsupported(&step.name, reason));
        }
        let mut inputs = vec![self.value(&op.input)?, self.value(&op.gamma)?];
        if let Some(beta) = &op.beta {
            inputs.push(self.value(beta)?);
        }
        let attributes = vec![int("axis", -1), float("epsilon", op.epsilon)];
        self.node_for(&op.out, "LayerNormalization", inputs, attributes);
        Ok(())
    }

    fn linear(&mut self, op: &LinearOpIr) -> Result<(), ExportError> {
        let inputs = vec![self.value(&op.x)?, self.value(&op.weight)?];
        let Some(bias) = &op.bias else {
            self.node_for(&op.out, "MatMul", inputs, Vec::new());
            return Ok(());
        };
        let bias = self.value(bias)?;
        if op.x.shape.rank() == 2 {
            let inputs = inputs.into_iter().chain([bias]).collect();
            self.node_for(&op.out, "Gemm", inputs, Vec::new());
        } else {
            let product = self.node("MatMul", inputs, Vec::new());
            self.node_for(&op.out, "Add", vec![product, bias], Vec::new());
        }
        Ok(())
    }

    fn pool(
        &mut self,
        op_type: &str,
        x: &TensorIr,
        attributes: Vec<AttributeProto>,
        out: &TensorIr,
    ) -> Result<(), ExportError> {
        let input = self.value(x)?;
        self.node_for(out, op_type, vec![input], attributes);
        Ok(())
    }

    /// To one element: a global pool. To other sizes: a plain pool, if the input's size is fixed
    /// and a multiple.
    fn adaptive_pool(
        &mut self,
        step: &Step,
        x: &TensorIr,
        output_size: &[usize],
        out: &TensorIr,
    ) -> Result<(), ExportError> {
        let input = self.value(x)?;
        if output_size.iter().all(|size| *size == 1) {
            self.node_for(out, "GlobalAveragePool", vec![input], Vec::new());
            return Ok(());
        }
        let extents = self.trace.extents(x)?;
        let spatial = extents.get(2..).unwrap_or_default();
        if spatial.iter().zip(output_size).all(|(extent, size)| extent.fixed() == Some(*size as i64)) {
            self.bind(out, input);
            return Ok(());
        }
        let mut kernel = Vec::new();
        for (extent, size) in spatial.iter().zip(output_size) {
            let Some(fixed) = extent.fixed() else {
                return Err(ExportError::not_symbolic(&step.name, "kernel size", spatial));
            };
            if *size == 0 || fixed % *size as i64 != 0 {
                return Err(ExportError::unsupported(
                    &step.name,
                    format!("ONNX has no pool from {spatial:?} to {output_size:?}: use 1 x 1 or a divisor"),
                ));
            }
            kernel.push((fixed / *size as i64) as usize);
        }
        let attributes =
            vec![ints("kernel_shape", kernel.iter().copied()), ints("strides", kernel.iter().copied())];
        self.node_for(out, "AveragePool", vec![input], attributes);
        Ok(())
    }

    fn interpolate(&mut self, step: &Step, op: &InterpolateOpIr) -> Result<(), ExportError> {
        let (mode, nearest_mode) = match op.options.mode {
            InterpolateModeIr::Nearest => ("nearest", Some("floor")),
            InterpolateModeIr::NearestExact => ("nearest", Some("round_prefer_ceil")),
            InterpolateModeIr::Bilinear => ("linear", None),
            InterpolateModeIr::Bicubic => ("cubic", None),
            InterpolateModeIr::Lanczos3 => {
                let reason = "ONNX has no Lanczos interpolation: use bilinear or bicubic";
                return Err(ExportError::unsupported(&step.name, reason));
            }
        };
        let coordinates = match op.options.mode {
            InterpolateModeIr::Nearest => "asymmetric",
            InterpolateModeIr::NearestExact => "half_pixel",
            _ if op.options.align_corners => "align_corners",
            _ => "half_pixel",
        };
        let mut attributes =
            vec![string("mode", mode), string("coordinate_transformation_mode", coordinates)];
        if let Some(nearest_mode) = nearest_mode {
            attributes.push(string("nearest_mode", nearest_mode));
        }
        if mode == "cubic" {
            attributes.push(float("cubic_coeff_a", ScalarIr::Float(-0.75)));
        }
        let input = self.value(&op.x)?;
        let given = self.trace.extents(&op.x)?.to_vec();
        let wanted = self.trace.extents(&op.out)?.to_vec();
        let scales: Option<Vec<f32>> =
            given.iter().zip(&wanted).map(|(given, wanted)| scale(given, wanted)).collect();
        let inputs = if let Some(scales) = scales {
            let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let scales = self.constant(data_type::FLOAT, vec![scales.len() as i64], bytes);
            vec![input, String::new(), scales]
        } else {
            let entries: Vec<_> = wanted
                .into_iter()
                .map(|extent| match extent.fixed() {
                    Some(size) => ShapeEntry::Known(size),
                    None => ShapeEntry::Like(extent),
                })
                .collect();
            let sizes = self.shape(&step.name, "output_size", &entries, &[&op.x])?;
            vec![input, String::new(), String::new(), sizes]
        };
        self.node_for(&op.out, "Resize", inputs, attributes);
        Ok(())
    }

    /// `softmax(query keyᵀ * scale + bias) value` for the plain forms of attention.
    fn attention(&mut self, step: &Step, op: &AttentionOpIr) -> Result<(), ExportError> {
        if op.mask.is_some() || op.options.is_causal || op.options.softcap.is_some() {
            let reason = "masks, causal attention and softcap are not translated: \
                          write them out with matmul and softmax";
            return Err(ExportError::unsupported(&step.name, reason));
        }
        let rank = op.key.shape.rank();
        let Some(width) = self.trace.extents(&op.query)?.last().and_then(Extent::fixed) else {
            return Err(ExportError::not_symbolic(&step.name, "scale", &op.query.shape));
        };
        let scale = op.options.scale.unwrap_or(ScalarIr::Float(1.0 / (width as f64).sqrt()));
        let query = self.value(&op.query)?;
        let key = self.value(&op.key)?;
        let mut axes: Vec<_> = (0..rank).collect();
        axes.swap(rank - 1, rank - 2);
        let key = self.node("Transpose", vec![key], vec![ints("perm", axes)]);
        let scores = self.node("MatMul", vec![query, key], Vec::new());
        let scale = self.scalar(op.query.dtype, scale)?;
        let mut scores = self.node("Mul", vec![scores, scale], Vec::new());
        if let Some(bias) = &op.attn_bias {
            let bias = self.value(bias)?;
            scores = self.node("Add", vec![scores, bias], Vec::new());
        }
        let weights = self.node("Softmax", vec![scores], vec![int("axis", -1)]);
        let value = self.value(&op.value)?;
        self.node_for(&op.out, "MatMul", vec![weights, value], Vec::new());
        Ok(())
    }
}

fn conv_attributes(
    weight: &TensorIr,
    stride: &[usize],
    padding: &[(usize, usize)],
    dilation: &[usize],
    groups: usize,
) -> Vec<AttributeProto> {
    let before = padding.iter().map(|(before, _)| *before);
    let after = padding.iter().map(|(_, after)| *after);
    vec![
        ints("kernel_shape", weight.shape.iter().skip(2).copied()),
        ints("strides", stride.iter().copied()),
        ints("pads", before.chain(after)),
        ints("dilations", dilation.iter().copied()),
        int("group", groups as i64),
    ]
}

fn pool_attributes(
    kernel: &[usize],
    stride: &[usize],
    padding: &[usize],
    ceil_mode: bool,
) -> Vec<AttributeProto> {
    vec![
        ints("kernel_shape", kernel.iter().copied()),
        ints("strides", stride.iter().copied()),
        ints("pads", padding.iter().chain(padding).copied()),
        int("ceil_mode", i64::from(ceil_mode)),
    ]
}

/// `wanted / given`, if it is the same in all recordings and exact in `f32`.
fn scale(given: &Extent, wanted: &Extent) -> Option<f32> {
    if given == wanted {
        return Some(1.0);
    }
    let (first_given, first_wanted) = (*given.0.first()?, *wanted.0.first()?);
    let same = |(g, w): (&i64, &i64)| g * first_wanted == w * first_given;
    if first_given == 0 || !given.0.iter().zip(&wanted.0).all(same) {
        return None;
    }
    let scale = first_wanted as f64 / first_given as f64;
    (f64::from(scale as f32).to_bits() == scale.to_bits()).then_some(scale as f32)
}
