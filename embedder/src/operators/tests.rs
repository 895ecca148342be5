//! Graphs with our operators against the engine's own.

use glimpse_kernels::Isa;
use proptest::prelude::*;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::Approximation;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_core::ops::quant::{DequantizeLinearF32, quantize_linear_u8};

use super::{convolution::Convolution, rewrite};
use crate::EmbedderOptions;

/// Numbers in -1..1 that look like nothing in particular.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product();
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..count).map(|_| next()).collect();
    Tensor::from_shape(shape, &values).unwrap()
}

fn run(model: TypedModel, input: &Tensor) -> Tensor {
    let plan = model.into_decluttered().unwrap().into_optimized().unwrap().into_runnable().unwrap();
    plan.run(tvec!(input.clone().into())).unwrap().remove(0).into_tensor()
}

fn ours(model: &TypedModel) -> usize {
    model.nodes().iter().filter(|node| node.op_is::<Convolution>()).count()
}

/// A graph as it grows.
struct Graph {
    model: TypedModel,
    last: OutletId,
    shape: Vec<usize>,
    seed: u64,
}

impl Graph {
    fn new(shape: [usize; 4], seed: u64) -> Self {
        let mut model = TypedModel::default();
        let last = model.add_source("image", f32::fact(shape)).unwrap();
        Self { model, last, shape: shape.to_vec(), seed }
    }

    fn wire(&mut self, op: impl Into<Box<dyn TypedOp>>, others: &[OutletId]) {
        let name = format!("node{}", self.model.nodes().len());
        let inputs: Vec<OutletId> = [&[self.last], others].concat();
        self.last = self.model.wire_node(name, op, &inputs).unwrap()[0];
        self.shape = self.model.outlet_fact(self.last).unwrap().shape.as_concrete().unwrap().to_vec();
    }

    fn constant(&mut self, value: Tensor) -> OutletId {
        self.model.add_const(format!("node{}", self.model.nodes().len()), value).unwrap()
    }

    fn conv(
        &mut self,
        outputs: usize,
        group: usize,
        kernel: [usize; 2],
        strides: [usize; 2],
        padding: PaddingSpec,
    ) {
        self.seed += 1;
        let weights = numbers(&[outputs, self.shape[1] / group, kernel[0], kernel[1]], self.seed);
        self.conv_with(weights, group, strides, padding);
    }

    fn conv_with(&mut self, weights: Tensor, group: usize, strides: [usize; 2], padding: PaddingSpec) {
        let inputs = self.shape[1];
        let &[outputs, _, tall, wide] = weights.shape() else { panic!("weights of a convolution") };
        let kernel = [tall, wide];
        let bias = self.constant(numbers(&[outputs], self.seed + 1000));
        let weights = self.constant(weights);
        let pool_spec = PoolSpec {
            data_format: DataFormat::NCHW,
            kernel_shape: (&kernel[..]).into(),
            padding,
            dilations: None,
            strides: Some((&strides[..]).into()),
            input_channels: inputs,
            output_channels: outputs,
        };
        let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group, q_params: None };
        self.wire(conv, &[weights, bias]);
    }

    /// As `QuantizeLinear` and `DequantizeLinear` become in the engine.
    fn rounded(&mut self, step: f32, zero_point: u8) {
        self.wire(quantize_linear_u8(step.recip(), zero_point), &[]);
        self.wire(DequantizeLinearF32::new(step, zero_point.into()), &[]);
    }

    /// As [`conv`](Self::conv), its weights being whole numbers of steps, one step an output channel.
    fn conv_of_integers(
        &mut self,
        outputs: usize,
        group: usize,
        kernel: [usize; 2],
        strides: [usize; 2],
        padding: PaddingSpec,
    ) {
        self.seed += 1;
        let inputs = self.shape[1];
        let depth = inputs / group * kernel[0] * kernel[1];
        let drawn = numbers(&[outputs * depth], self.seed);
        let drawn = drawn.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
        let step = |channel: usize| (1.0 + channel as f32 / 7.0) / 127.0 / depth as f32;
        let weights: Vec<f32> =
            drawn.iter().enumerate().map(|(at, x)| (x * 127.0).round() * step(at / depth)).collect();
        let weights = Tensor::from_shape(&[outputs, inputs / group, kernel[0], kernel[1]], &weights).unwrap();
        self.conv_with(weights, group, strides, padding);
    }

    fn clamp(&mut self, low: f32, high: f32) {
        let [low, high] =
            [low, high].map(|bound| self.constant(tensor0(bound).broadcast_into_rank(4).unwrap()));
        self.wire(math::max(), &[low]);
        self.wire(math::min(), &[high]);
    }

    fn finish(mut self) -> TypedModel {
        self.model.select_output_outlets(&[self.last]).unwrap();
        self.model
    }
}

/// Both ways of running a graph, with so many operators of ours in it.
fn check(model: &TypedModel, operators: usize, seed: u64) {
    let shape = model.input_fact(0).unwrap().shape.as_concrete().unwrap().to_vec();
    let input = numbers(&shape, seed ^ 0x4d);
    let expected = run(model.clone(), &input);
    for isa in Isa::available() {
        let rewritten = rewrite(model.clone(), &EmbedderOptions::all(isa)).unwrap();
        assert_eq!(ours(&rewritten), operators, "{}", isa.name());
        let found = run(rewritten, &input);
        // Sums of at most some hundred products of values that are near 1.
        let near = found.close_enough(&expected, Approximation::Custom(1e-4, 1e-4, 0.0));
        near.unwrap_or_else(|error| panic!("{}: {error}", isa.name()));
    }
}

fn paddings() -> impl Strategy<Value = PaddingSpec> {
    prop_oneof![
        Just(PaddingSpec::Valid),
        Just(PaddingSpec::SameUpper),
        Just(PaddingSpec::SameLower),
        ([0_usize..=2, 0_usize..=2], [0_usize..=2, 0_usize..=2])
            .prop_map(|(before, after)| PaddingSpec::Explicit((&before[..]).into(), (&after[..]).into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn every_convolution_equals_the_engines_own(
        images in 1_usize..=2, inputs in 1_usize..=24, outputs in 1_usize..=40, depthwise: bool,
        kernel in [1_usize..=5, 1_usize..=5], strides in [1_usize..=2, 1_usize..=2], padding in paddings(),
        more in [0_usize..=12, 0_usize..=12], clamped: bool, seed in 0_u64..1_000_000,
    ) {
        let mut graph = Graph::new([images, inputs, kernel[0] + more[0], kernel[1] + more[1]], seed);
        let (outputs, group) = if depthwise { (inputs, inputs) } else { (outputs, 1) };
        graph.conv(outputs, group, kernel, strides, padding);
        if clamped {
            graph.clamp(0.0, 1.0);
        }
        check(&graph.finish(), 1, seed);
    }

    #[test]
    fn inverted_residuals_equal_the_engines_own(
        channels in 1_usize..=20, expansion in 1_usize..=4, side in 3_usize..=9, clamped: bool, seed in 0_u64..1_000_000,
    ) {
        let mut graph = Graph::new([1, 3, 2 * side, 2 * side], seed);
        graph.conv(channels, 1, [3, 3], [2, 2], PaddingSpec::SameUpper);
        graph.clamp(0.0, 6.0);
        for _ in 0..2 {
            let shortcut = graph.last;
            graph.conv(channels * expansion, 1, [1, 1], [1, 1], PaddingSpec::Valid);
            graph.clamp(0.0, 6.0);
            graph.conv(channels * expansion, channels * expansion, [5, 5], [1, 1], PaddingSpec::SameUpper);
            graph.clamp(0.0, 6.0);
            graph.conv(channels, 1, [1, 1], [1, 1], PaddingSpec::Valid);
            graph.wire(math::add(), &[shortcut]);
            if clamped {
                graph.clamp(-1.0, 1.0);
            }
        }
        check(&graph.finish(), 7, seed);
    }
}

/// A graph in QDQ form whose last value is rounded to `step`: the engine, which computes in `f32`, and ours, in integers, are at
/// most one step apart.
fn check_rounded(model: &TypedModel, operators: usize, step: f32, seed: u64) {
    let shape = model.input_fact(0).unwrap().shape.as_concrete().unwrap().to_vec();
    let input = numbers(&shape, seed ^ 0x4d);
    let expected = run(model.clone(), &input);
    let expected = expected.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    for isa in Isa::available() {
        let only_int8 = EmbedderOptions { isa, int8: true, ..EmbedderOptions::engine_alone() };
        let rewritten = rewrite(model.clone(), &only_int8).unwrap();
        assert_eq!(ours(&rewritten), operators, "{}", isa.name());
        let found = run(rewritten, &input);
        let found = found.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
        assert_eq!(found.len(), expected.len());
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let (worst, different) =
            apart.fold((0.0_f32, 0), |(worst, count), x| (worst.max(x), count + usize::from(x > step / 2.0)));
        assert!(worst < 1.01 * step, "{}: {worst} apart, and a step is {step}", isa.name());
        // Biases are rounded to steps of the sums, and values half-way between two bytes go either way.
        assert!(different <= 2 + found.len() / 10, "{}: {different} of {} differ", isa.name(), found.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn every_convolution_of_bytes_is_within_a_step_of_the_engines_own(
        images in 1_usize..=2, inputs in 1_usize..=24, outputs in 1_usize..=40, depthwise: bool,
        kernel in [1_usize..=5, 1_usize..=5], strides in [1_usize..=2, 1_usize..=2], padding in paddings(),
        more in [0_usize..=12, 0_usize..=12], clamped: bool, zero_points: [u8; 2], seed in 0_u64..1_000_000,
    ) {
        let mut graph = Graph::new([images, inputs, kernel[0] + more[0], kernel[1] + more[1]], seed);
        let (outputs, group) = if depthwise { (inputs, inputs) } else { (outputs, 1) };
        graph.rounded(0.01, zero_points[0]);
        graph.conv_of_integers(outputs, group, kernel, strides, padding);
        if clamped {
            graph.clamp(0.0, 1.0);
        }
        graph.rounded(0.02, zero_points[1]);
        check_rounded(&graph.finish(), 1, 0.02, seed);
    }
}

/// An inverted residual in QDQ form: bytes from one convolution to the next, and the shortcut in real numbers.
#[test]
fn bytes_stay_bytes_between_convolutions() {
    let mut graph = Graph::new([1, 3, 12, 12], 9);
    graph.rounded(0.01, 100);
    graph.conv_of_integers(16, 1, [3, 3], [2, 2], PaddingSpec::SameUpper);
    let shortcut = graph.last;
    graph.rounded(0.02, 128);
    graph.conv_of_integers(48, 1, [1, 1], [1, 1], PaddingSpec::Valid);
    graph.clamp(0.0, 2.0);
    graph.rounded(2.0 / 255.0, 0);
    graph.conv_of_integers(48, 48, [3, 3], [1, 1], PaddingSpec::SameUpper);
    graph.clamp(0.0, 2.0);
    graph.rounded(2.0 / 255.0, 0);
    graph.conv_of_integers(16, 1, [1, 1], [1, 1], PaddingSpec::Valid);
    graph.wire(math::add(), &[shortcut]);
    graph.rounded(0.05, 120);
    let model = graph.finish();
    check_rounded(&model, 4, 0.05, 9);
    let rewritten = rewrite(model, &EmbedderOptions::all(Isa::detect())).unwrap();
    let named = |name: &str| rewritten.nodes().iter().filter(|node| node.op.name().contains(name)).count();
    // The image is rounded by an operator of its own; the output is not ours, for nobody reads its bytes but the engine.
    assert_eq!((named("GlimpseRound"), named("QuantizeLinear"), named("I8")), (1, 1, 4), "{rewritten}");
}

#[test]
fn a_sum_of_two_convolutions_belongs_to_one_of_them() {
    let mut graph = Graph::new([1, 5, 6, 7], 1);
    let image = graph.last;
    graph.conv(9, 1, [1, 1], [1, 1], PaddingSpec::Valid);
    let first = graph.last;
    graph.last = image;
    graph.shape = vec![1, 5, 6, 7];
    graph.conv(9, 1, [3, 3], [1, 1], PaddingSpec::SameUpper);
    graph.wire(math::add(), &[first]);
    graph.clamp(0.0, 1.0);
    check(&graph.finish(), 2, 1);
}

#[test]
fn what_lies_between_convolutions_goes_along() {
    let mut graph = Graph::new([1, 4, 8, 8], 2);
    graph.conv(8, 1, [1, 1], [1, 1], PaddingSpec::Valid);
    let gate = graph.constant(numbers(&[1, 8, 1, 1], 3));
    graph.wire(math::mul(), &[gate]);
    graph.wire(tract_onnx::tract_core::ops::nn::sigmoid(), &[]);
    graph.conv(8, 8, [3, 3], [1, 1], PaddingSpec::SameUpper);
    let model = graph.finish();
    check(&model, 2, 2);
    // The image comes in, and the output goes out, in the engine's form; nothing else is turned.
    let rewritten = rewrite(model, &EmbedderOptions::all(Isa::Portable)).unwrap().into_decluttered().unwrap();
    let turns = rewritten.nodes().iter().filter(|node| node.op.name().contains("MoveAxis")).count();
    assert!(turns <= 2, "{rewritten}");
}

#[test]
fn a_network_that_no_rule_knows_stays_as_it_is() {
    let mut graph = Graph::new([1, 4, 8, 8], 4);
    graph.conv(8, 2, [3, 3], [1, 1], PaddingSpec::Valid);
    let model = graph.finish();
    let rewritten = rewrite(model.clone(), &EmbedderOptions::all(Isa::detect())).unwrap();
    assert_eq!(rewritten.nodes().len(), model.nodes().len());
    check(&model, 0, 4);
}

#[test]
fn a_value_that_is_an_output_is_not_taken_in() {
    let mut graph = Graph::new([1, 4, 6, 6], 5);
    graph.conv(4, 1, [1, 1], [1, 1], PaddingSpec::Valid);
    let middle = graph.last;
    graph.clamp(0.0, 1.0);
    let (mut model, last) = (graph.model, graph.last);
    model.select_output_outlets(&[middle, last]).unwrap();
    let rewritten = rewrite(model.clone(), &EmbedderOptions::all(Isa::detect())).unwrap();
    let input = numbers(&[1, 4, 6, 6], 6);
    let both = |model: TypedModel| {
        model.into_optimized().unwrap().into_runnable().unwrap().run(tvec!(input.clone().into())).unwrap()
    };
    for (found, expected) in both(rewritten).iter().zip(both(model)) {
        found.close_enough(&expected, Approximation::Close).unwrap();
    }
}
