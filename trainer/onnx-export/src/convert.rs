//! Translates recorded operations to ONNX nodes.
//!
//! One function per group of Burn operations. Element-wise arithmetic, reductions and activations
//! are here; [`layers`] has the convolutions, pools and other layers, [`layout`] everything that
//! moves elements or depends on shapes.

mod layers;
mod layout;

use burn_ir::{
    ActivationOperationIr, BinaryOpIr, BoolOperationIr, FloatOperationIr, IntOperationIr, NumericOperationIr,
    OperationIr, ReduceDimOpIr, ReduceOpIr, ScalarIr, ScalarOpIr, TensorIr, UnaryOpIr,
};

use crate::capture::{Step, Trace};
use crate::emit::{Emitter, element_type, float, int, ints};
use crate::error::ExportError;

/// Emits all operations of a trace.
pub(crate) fn convert<'a>(
    trace: &'a Trace,
    opset: i64,
    input: &str,
    output: &str,
) -> Result<Emitter<'a>, ExportError> {
    let mut emitter = Emitter::new(trace, opset, input, output);
    for step in &trace.steps {
        emitter.step(step)?;
    }
    emitter.finish(output)?;
    Ok(emitter)
}

impl Emitter<'_> {
    fn step(&mut self, step: &Step) -> Result<(), ExportError> {
        let Some(operation) = step.variants.first() else {
            return Err(ExportError::inconsistent("an operation without recordings"));
        };
        match operation {
            OperationIr::BaseFloat(op) | OperationIr::BaseInt(op) | OperationIr::BaseBool(op) => {
                self.base(step, op)
            }
            OperationIr::NumericFloat(_, op) | OperationIr::NumericInt(_, op) => self.numeric(step, op),
            OperationIr::Float(_, op) => self.float(step, op),
            OperationIr::Int(op) => self.int(step, op),
            OperationIr::Bool(op) => self.bool(step, op),
            OperationIr::Activation(op) => self.activation(step, op),
            OperationIr::Module(op) => self.module(step, op),
            _ => Err(no_translation(step)),
        }
    }

    fn numeric(&mut self, step: &Step, op: &NumericOperationIr) -> Result<(), ExportError> {
        use NumericOperationIr as N;
        match op {
            N::Add(op) => self.binary("Add", op),
            N::Sub(op) => self.binary("Sub", op),
            N::Mul(op) => self.binary("Mul", op),
            N::Div(op) => self.binary("Div", op),
            N::Powi(op) => self.binary("Pow", op),
            N::Greater(op) => self.binary("Greater", op),
            N::GreaterEqual(op) => self.binary("GreaterOrEqual", op),
            N::Lower(op) => self.binary("Less", op),
            N::LowerEqual(op) => self.binary("LessOrEqual", op),
            N::AddScalar(op) => self.with_scalar("Add", op),
            N::SubScalar(op) => self.with_scalar("Sub", op),
            N::MulScalar(op) => self.with_scalar("Mul", op),
            N::DivScalar(op) => self.with_scalar("Div", op),
            N::GreaterElem(op) => self.with_scalar("Greater", op),
            N::GreaterEqualElem(op) => self.with_scalar("GreaterOrEqual", op),
            N::LowerElem(op) => self.with_scalar("Less", op),
            N::LowerEqualElem(op) => self.with_scalar("LessOrEqual", op),
            N::PowiScalar(op) => self.power(op),
            N::Abs(op) => self.unary("Abs", op),
            N::Neg(op) => self.unary("Neg", op),
            N::Sign(op) => self.unary("Sign", op),
            N::Clamp(op) => self.clip(&op.tensor, Some(op.min), Some(op.max), &op.out),
            N::ClampMin(op) => self.clip(&op.lhs, Some(op.rhs), None, &op.out),
            N::ClampMax(op) => self.clip(&op.lhs, None, Some(op.rhs), &op.out),
            N::MeanDim(op) => self.reduce_dim("ReduceMean", op),
            N::SumDim(op) => self.reduce_dim("ReduceSum", op),
            N::ProdDim(op) => self.reduce_dim("ReduceProd", op),
            N::MaxDim(op) => self.reduce_dim("ReduceMax", op),
            N::MinDim(op) => self.reduce_dim("ReduceMin", op),
            N::MaxAbsDim(op) => {
                let input = self.value(&op.input)?;
                let magnitude = self.node("Abs", vec![input], Vec::new());
                let out = self.reduce("ReduceMax", magnitude, &[op.axis], true);
                self.bind(&op.out, out);
                Ok(())
            }
            N::SumDims(op) => {
                let input = self.value(&op.input)?;
                let out = self.reduce("ReduceSum", input, &op.axes, true);
                self.bind(&op.out, out);
                Ok(())
            }
            N::Mean(op) => self.reduce_all("ReduceMean", op),
            N::Sum(op) => self.reduce_all("ReduceSum", op),
            N::Prod(op) => self.reduce_all("ReduceProd", op),
            N::Max(op) => self.reduce_all("ReduceMax", op),
            N::Min(op) => self.reduce_all("ReduceMin", op),
            N::ArgMax(op) => self.arg("ArgMax", &op.input, op.axis, &op.out),
            N::ArgMin(op) => self.arg("ArgMin", &op.input, op.axis, &op.out),
            N::MaxDimWithIndices(op) => {
                let input = self.value(&op.tensor)?;
                let values = self.reduce("ReduceMax", input, &[op.dim], true);
                self.bind(&op.out, values);
                self.arg("ArgMax", &op.tensor, op.dim, &op.out_indices)
            }
            N::MinDimWithIndices(op) => {
                let input = self.value(&op.tensor)?;
                let values = self.reduce("ReduceMin", input, &[op.dim], true);
                self.bind(&op.out, values);
                self.arg("ArgMin", &op.tensor, op.dim, &op.out_indices)
            }
            N::Full(op) => self.filled(step, &op.out, op.value),
            N::Pad(op) => self.pad(step, op),
            _ => Err(no_translation(step)),
        }
    }

    fn float(&mut self, step: &Step, op: &FloatOperationIr) -> Result<(), ExportError> {
        use FloatOperationIr as F;
        match op {
            F::Exp(op) => self.unary("Exp", op),
            F::Log(op) => self.unary("Log", op),
            F::Sqrt(op) => self.unary("Sqrt", op),
            F::Recip(op) => self.unary("Reciprocal", op),
            F::Erf(op) => self.unary("Erf", op),
            F::Sin(op) => self.unary("Sin", op),
            F::Cos(op) => self.unary("Cos", op),
            F::Tan(op) => self.unary("Tan", op),
            F::Sinh(op) => self.unary("Sinh", op),
            F::Cosh(op) => self.unary("Cosh", op),
            F::Tanh(op) => self.unary("Tanh", op),
            F::ArcSin(op) => self.unary("Asin", op),
            F::ArcCos(op) => self.unary("Acos", op),
            F::ArcTan(op) => self.unary("Atan", op),
            F::ArcSinh(op) => self.unary("Asinh", op),
            F::ArcCosh(op) => self.unary("Acosh", op),
            F::ArcTanh(op) => self.unary("Atanh", op),
            F::Floor(op) => self.unary("Floor", op),
            F::Ceil(op) => self.unary("Ceil", op),
            // Both round halves to even.
            F::Round(op) => self.unary("Round", op),
            F::IsNan(op) => self.unary("IsNaN", op),
            F::IsInf(op) => self.unary("IsInf", op),
            F::Log1p(op) => {
                let input = self.value(&op.input)?;
                let one = self.scalar(op.input.dtype, ScalarIr::Float(1.0))?;
                let sum = self.node("Add", vec![input, one], Vec::new());
                self.node_for(&op.out, "Log", vec![sum], Vec::new());
                Ok(())
            }
            F::PowfScalar(op) => self.power(op),
            F::Powf(op) => self.binary("Pow", op),
            F::Matmul(op) => self.matmul(&op.lhs, &op.rhs, &op.out),
            F::IntoInt(op) => self.cast(&op.input, &op.out),
            _ => Err(no_translation(step)),
        }
    }

    fn int(&mut self, step: &Step, op: &IntOperationIr) -> Result<(), ExportError> {
        match op {
            IntOperationIr::IntoFloat(op) => self.cast(&op.input, &op.out),
            IntOperationIr::Matmul(op) => self.matmul(&op.lhs, &op.rhs, &op.out),
            _ => Err(no_translation(step)),
        }
    }

    fn bool(&mut self, step: &Step, op: &BoolOperationIr) -> Result<(), ExportError> {
        use BoolOperationIr as B;
        match op {
            B::IntoFloat(op) | B::IntoInt(op) => self.cast(&op.input, &op.out),
            B::Not(op) => self.unary("Not", op),
            B::And(op) => self.binary("And", op),
            B::Or(op) => self.binary("Or", op),
            B::Xor(op) => self.binary("Xor", op),
            #[expect(unreachable_patterns, reason = "later versions of Burn may add operations")]
            _ => Err(no_translation(step)),
        }
    }

    fn activation(&mut self, step: &Step, op: &ActivationOperationIr) -> Result<(), ExportError> {
        use ActivationOperationIr as A;
        match op {
            A::Relu(op) => self.unary("Relu", op),
            A::Sigmoid(op) => self.unary("Sigmoid", op),
            A::LeakyRelu(op) => {
                let input = self.value(&op.lhs)?;
                self.node_for(&op.out, "LeakyRelu", vec![input], vec![float("alpha", op.rhs)]);
                Ok(())
            }
            A::PRelu(op) => self.binary("PRelu", op),
            A::HardSigmoid(op) => {
                let input = self.value(&op.tensor)?;
                let attributes = vec![float("alpha", op.alpha), float("beta", op.beta)];
                self.node_for(&op.out, "HardSigmoid", vec![input], attributes);
                Ok(())
            }
            A::Gelu(op) => self.gelu(op),
            A::LogSigmoid(op) => {
                // log(sigmoid(x)) = -softplus(-x), which does not overflow.
                let input = self.value(&op.input)?;
                let negated = self.node("Neg", vec![input], Vec::new());
                let softplus = self.node("Softplus", vec![negated], Vec::new());
                self.node_for(&op.out, "Neg", vec![softplus], Vec::new());
                Ok(())
            }
            A::Softmax(op) => {
                let input = self.value(&op.input)?;
                let axis = int("axis", op.axis as i64);
                self.node_for(&op.out, "Softmax", vec![input], vec![axis]);
                Ok(())
            }
            A::LogSoftmax(op) => {
                let input = self.value(&op.input)?;
                let axis = int("axis", op.axis as i64);
                self.node_for(&op.out, "LogSoftmax", vec![input], vec![axis]);
                Ok(())
            }
            A::Softmin(op) => {
                let input = self.value(&op.input)?;
                let negated = self.node("Neg", vec![input], Vec::new());
                let axis = int("axis", op.axis as i64);
                self.node_for(&op.out, "Softmax", vec![negated], vec![axis]);
                Ok(())
            }
            _ => Err(no_translation(step)),
        }
    }

    fn unary(&mut self, op_type: &str, op: &UnaryOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        self.node_for(&op.out, op_type, vec![input], Vec::new());
        Ok(())
    }

    pub(super) fn binary(&mut self, op_type: &str, op: &BinaryOpIr) -> Result<(), ExportError> {
        let inputs = vec![self.value(&op.lhs)?, self.value(&op.rhs)?];
        self.node_for(&op.out, op_type, inputs, Vec::new());
        Ok(())
    }

    pub(super) fn with_scalar(&mut self, op_type: &str, op: &ScalarOpIr) -> Result<(), ExportError> {
        let inputs = vec![self.value(&op.lhs)?, self.scalar(op.lhs.dtype, op.rhs)?];
        self.node_for(&op.out, op_type, inputs, Vec::new());
        Ok(())
    }

    /// Small whole powers become products: exact, and many times faster than `pow`.
    fn power(&mut self, op: &ScalarOpIr) -> Result<(), ExportError> {
        let exponent: f64 = op.rhs.elem();
        let input = self.value(&op.lhs)?;
        let is = |wanted: f64| (exponent - wanted).abs() < f64::EPSILON;
        if is(1.0) {
            self.bind(&op.out, input);
        } else if is(2.0) {
            self.node_for(&op.out, "Mul", vec![input.clone(), input], Vec::new());
        } else if is(3.0) {
            let square = self.node("Mul", vec![input.clone(), input.clone()], Vec::new());
            self.node_for(&op.out, "Mul", vec![square, input], Vec::new());
        } else if is(-1.0) && op.lhs.dtype.is_float() {
            self.node_for(&op.out, "Reciprocal", vec![input], Vec::new());
        } else {
            let exponent = self.scalar(op.lhs.dtype, op.rhs)?;
            self.node_for(&op.out, "Pow", vec![input, exponent], Vec::new());
        }
        Ok(())
    }

    fn clip(
        &mut self,
        input: &TensorIr,
        min: Option<ScalarIr>,
        max: Option<ScalarIr>,
        out: &TensorIr,
    ) -> Result<(), ExportError> {
        let mut inputs = vec![self.value(input)?];
        for bound in [min, max] {
            inputs.push(match bound {
                Some(bound) => self.scalar(input.dtype, bound)?,
                None => String::new(),
            });
        }
        // Trailing optional inputs are left out, not left empty.
        if max.is_none() {
            inputs.pop();
        }
        self.node_for(out, "Clip", inputs, Vec::new());
        Ok(())
    }

    /// `0.5 x (1 + erf(x / sqrt 2))`; ONNX has its own operator from opset 20 on only.
    fn gelu(&mut self, op: &UnaryOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        let dtype = op.input.dtype;
        let half = self.scalar(dtype, ScalarIr::Float(0.5))?;
        let one = self.scalar(dtype, ScalarIr::Float(1.0))?;
        let root = self.scalar(dtype, ScalarIr::Float(std::f64::consts::FRAC_1_SQRT_2))?;
        let scaled = self.node("Mul", vec![input.clone(), root], Vec::new());
        let erf = self.node("Erf", vec![scaled], Vec::new());
        let sum = self.node("Add", vec![erf, one], Vec::new());
        let halved = self.node("Mul", vec![input, half], Vec::new());
        self.node_for(&op.out, "Mul", vec![halved, sum], Vec::new());
        Ok(())
    }

    pub(super) fn matmul(
        &mut self,
        lhs: &TensorIr,
        rhs: &TensorIr,
        out: &TensorIr,
    ) -> Result<(), ExportError> {
        let inputs = vec![self.value(lhs)?, self.value(rhs)?];
        self.node_for(out, "MatMul", inputs, Vec::new());
        Ok(())
    }

    pub(super) fn cast(&mut self, input: &TensorIr, out: &TensorIr) -> Result<(), ExportError> {
        let (from, to) = (element_type(input.dtype)?, element_type(out.dtype)?);
        let input = self.value(input)?;
        if from == to {
            self.bind(out, input);
        } else {
            self.node_for(out, "Cast", vec![input], vec![int("to", i64::from(to))]);
        }
        Ok(())
    }

    /// A reduction over `axes`. `ReduceSum` takes its axes as an input from opset 13 on, the others
    /// from 18 on, beyond what we write.
    pub(super) fn reduce(&mut self, op_type: &str, input: String, axes: &[usize], keep_dims: bool) -> String {
        let mut inputs = vec![input];
        let mut attributes = vec![int("keepdims", i64::from(keep_dims))];
        if op_type == "ReduceSum" {
            let axes: Vec<_> = axes.iter().map(|axis| *axis as i64).collect();
            inputs.push(self.ints(&axes));
        } else {
            attributes.push(ints("axes", axes.iter().copied()));
        }
        self.node(op_type, inputs, attributes)
    }

    fn reduce_dim(&mut self, op_type: &str, op: &ReduceDimOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        let out = self.reduce(op_type, input, &[op.axis], true);
        self.bind(&op.out, out);
        Ok(())
    }

    /// A reduction to the one element of a tensor of shape `[1]`: Burn has no tensors of rank 0.
    fn reduce_all(&mut self, op_type: &str, op: &ReduceOpIr) -> Result<(), ExportError> {
        let input = self.value(&op.input)?;
        let axes: Vec<_> = (0..op.input.shape.rank()).collect();
        let reduced = self.reduce(op_type, input, &axes, true);
        let shape = self.ints(&[1]);
        self.node_for(&op.out, "Reshape", vec![reduced, shape], Vec::new());
        Ok(())
    }

    fn arg(
        &mut self,
        op_type: &str,
        input: &TensorIr,
        axis: usize,
        out: &TensorIr,
    ) -> Result<(), ExportError> {
        let input = self.value(input)?;
        let attributes = vec![int("axis", axis as i64), int("keepdims", 1)];
        let indices = self.node(op_type, vec![input], attributes);
        // ONNX indices are always i64.
        let to = element_type(out.dtype)?;
        if to == crate::proto::data_type::INT64 {
            self.bind(out, indices);
        } else {
            self.node_for(out, "Cast", vec![indices], vec![int("to", i64::from(to))]);
        }
        Ok(())
    }
}

fn no_translation(step: &Step) -> ExportError {
    ExportError::unsupported(
        &step.name,
        "there is no translation to ONNX for it; rewrite the module without it",
    )
}
