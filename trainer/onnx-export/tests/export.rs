//! Small modules through export and tract, compared with Burn itself.

mod common;

use burn::module::{Module, RunningState};
use burn::nn::conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PaddingConfig2d,
};
use burn::tensor::module::{adaptive_avg_pool2d, avg_pool2d, interpolate, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, InterpolateMode, InterpolateOptions, MaxPoolOptions, PadMode};
use burn::tensor::{Device, Distribution, Tensor, activation, s};
use burn_onnx_export::{Dim, ExportError, Exporter};

use common::{
    Symbols, assert_close, check, check_at, check_with, image, image_dims, initializers, operators, run_fixed,
};

/// Statistics and weights as after training: nothing at its initial 0 or 1.
fn batch_norm(channels: usize, device: &Device) -> BatchNorm {
    let random = |low, high| Tensor::<1>::random([channels], Distribution::Uniform(low, high), device);
    let mut norm = BatchNormConfig::new(channels).init(device);
    norm.gamma = norm.gamma.map(|_| random(0.5, 1.5));
    norm.beta = norm.beta.map(|_| random(-0.5, 0.5));
    norm.running_mean = RunningState::new(random(-0.5, 0.5));
    norm.running_var = RunningState::new(random(0.5, 2.0));
    norm
}

#[derive(Module, Debug)]
struct ConvBlock {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ConvBlock {
    fn new(channels: [usize; 2], kernel: usize, stride: usize, groups: usize) -> Self {
        let device = Device::flex();
        let padding = kernel / 2;
        let conv = Conv2dConfig::new(channels, [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .with_groups(groups)
            .with_bias(false)
            .init(&device);
        Self { conv, norm: batch_norm(channels[1], &device) }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(self.conv.forward(x))
    }
}

fn relu6<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clamp(0.0, 6.0)
}

/// Inverted residual with squeeze and excitation, as in EfficientNet.
#[derive(Module, Debug)]
struct MobileBlock {
    expand: ConvBlock,
    depthwise: ConvBlock,
    squeeze: Conv2d,
    excite: Conv2d,
    project: ConvBlock,
}

impl MobileBlock {
    fn new(channels: usize) -> Self {
        let device = Device::flex();
        let wide = channels * 2;
        Self {
            expand: ConvBlock::new([channels, wide], 1, 1, 1),
            depthwise: ConvBlock::new([wide, wide], 3, 1, wide),
            squeeze: Conv2dConfig::new([wide, 4], [1, 1]).init(&device),
            excite: Conv2dConfig::new([4, wide], [1, 1]).init(&device),
            project: ConvBlock::new([wide, channels], 1, 1, 1),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let wide = relu6(self.depthwise.forward(relu6(self.expand.forward(x.clone()))));
        let squeezed = self.squeeze.forward(adaptive_avg_pool2d(wide.clone(), [1, 1]));
        let gate = activation::sigmoid(self.excite.forward(activation::relu(squeezed)));
        x + self.project.forward(wide * gate)
    }
}

/// Stem, blocks, GeM pooling, linear head, L2 norm: the shape of an embedding network.
#[derive(Module, Debug)]
struct Embedder {
    stem: ConvBlock,
    blocks: Vec<MobileBlock>,
    head: Linear,
}

impl Embedder {
    fn new() -> Self {
        Self {
            stem: ConvBlock::new([3, 8], 3, 2, 1),
            blocks: vec![MobileBlock::new(8), MobileBlock::new(8)],
            head: LinearConfig::new(8, 16).init(&Device::flex()),
        }
    }

    fn forward(&self, image: Tensor<4>) -> Tensor<2> {
        let mut x = relu6(self.stem.forward(image));
        for block in &self.blocks {
            x = block.forward(x);
        }
        let pooled = x.clamp_min(1e-6).powf_scalar(3.0).mean_dims(&[2, 3]).powf_scalar(1.0 / 3.0);
        let x = self.head.forward(pooled.flatten::<2>(1, 3));
        let norm = x.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(1e-12);
        x / norm
    }
}

#[test]
fn exports_an_embedding_network() {
    let model = check(&Embedder::new(), Embedder::forward);
    let operators = operators(&model);
    assert!(!operators.iter().any(|op| op == "BatchNormalization"), "{operators:?}");
    let count = |wanted: &str| operators.iter().filter(|op| *op == wanted).count();
    // Only the cube root is a `Pow`; no shape is computed at run time.
    assert_eq!((count("Pow"), count("Shape"), count("Conv")), (1, 0, 11), "{operators:?}");
}

#[test]
fn names_initialisers_by_module_path() {
    let module = Embedder::new();
    let forward = |m: &Embedder, x: Tensor<4>| m.forward(x);
    let exporter = Exporter::new().input("image", image_dims());
    let folded = initializers(&exporter.clone().export(&module, forward).expect("exports"));
    for name in [
        "stem.conv.weight",
        "stem.conv.bias",
        "blocks.1.depthwise.conv.weight",
        "blocks.0.squeeze.bias",
        "head.weight",
        "head.bias",
    ] {
        assert!(folded.iter().any(|other| other == name), "{name} is not in {folded:?}");
    }
    let plain = exporter.fold_batch_norm(false).export(&module, forward).expect("exports");
    let plain = initializers(&plain);
    for name in ["stem.norm.gamma", "stem.norm.running_var", "blocks.1.project.norm.running_mean"] {
        assert!(plain.iter().any(|other| other == name), "{name} is not in {plain:?}");
    }
    let others = folded.iter().filter(|name| !name.contains('.'));
    assert!(others.clone().all(|name| name.starts_with("const_")), "{folded:?}");
}

#[test]
fn folding_batch_norm_changes_nothing() {
    let module = Embedder::new();
    let forward = |m: &Embedder, x: Tensor<4>| m.forward(x);
    let exporter = Exporter::new().input("image", image_dims());
    let folded = exporter.clone().export(&module, forward).expect("exports");
    let plain = exporter.fold_batch_norm(false).export(&module, forward).expect("exports");
    let norms = |model| operators(model).iter().filter(|op| *op == "BatchNormalization").count();
    assert_eq!((norms(&folded), norms(&plain)), (0, 7));
    let input = image([2, 3, 64, 96]);
    let (folded_shape, folded) = run_fixed(&folded, &input).expect("runs");
    let (plain_shape, plain) = run_fixed(&plain, &input).expect("runs");
    assert_eq!(folded_shape, plain_shape);
    assert_close("folded", &folded, &plain);
}

#[test]
fn exporting_twice_gives_equal_bytes_and_leaves_the_module_alone() {
    let module = Embedder::new();
    let input = image([1, 3, 64, 64]);
    let run = || module.forward(Tensor::from_data(input.clone(), &Device::flex())).into_data();
    let before = run();
    let export = || {
        let exporter = Exporter::new().input("image", image_dims()).metadata("key", "value");
        exporter.export(&module, |m, x: Tensor<4>| m.forward(x)).expect("exports").to_bytes()
    };
    assert_eq!(export(), export());
    assert_eq!(module.devices().len(), 1, "running statistics moved to the capture device");
    assert_eq!(run(), before);
}

#[test]
fn exports_a_module_in_training_as_inference() {
    let module = ConvBlock::new([3, 4], 3, 1, 1);
    let training = module.clone().train();
    let forward = |m: &ConvBlock, x: Tensor<4>| m.forward(x);
    let exporter = Exporter::new().input("image", image_dims());
    let plain = exporter.export(&module, forward).expect("exports");
    assert_eq!(exporter.export(&training, forward).expect("exports"), plain);
}

#[derive(Module, Debug)]
struct Padded {
    conv: Conv2d,
    norm: BatchNorm,
}

impl Padded {
    fn new() -> Self {
        let device = Device::flex();
        Self {
            conv: Conv2dConfig::new([3, 4], [3, 3]).with_stride([2, 2]).with_dilation([2, 2]).init(&device),
            norm: batch_norm(4, &device),
        }
    }
}

#[test]
fn folds_zero_pads_into_convolutions() {
    let model = check(&Padded::new(), |m, x| {
        let x = x.pad((0, 1, 2, 3), PadMode::Constant(0.0));
        m.norm.forward(m.conv.forward(x))
    });
    assert_eq!(operators(&model), ["Conv"]);
    let node = &model.graph().expect("has a graph").node[0];
    let pads = node.attribute.iter().find(|attribute| attribute.name() == "pads");
    assert_eq!(pads.expect("has pads").ints, [2, 0, 3, 1]);
}

#[test]
fn keeps_other_pads() {
    let model = check(&Padded::new(), |m, x| {
        let ones = m.conv.forward(x.clone().pad((1, 1, 1, 1), PadMode::Constant(1.0)));
        let edge = m.conv.forward(x.clone().pad((1, 1, 1, 1), PadMode::Edge));
        // A pad that someone else reads too.
        let zeros = x.pad((1, 1, 1, 1), PadMode::Constant(0.0));
        ones + edge + m.conv.forward(zeros.clone()) + zeros.mean().reshape([1, 1, 1, 1])
    });
    let operators = operators(&model);
    assert_eq!(operators.iter().filter(|op| *op == "Pad").count(), 3, "{operators:?}");
}

#[test]
fn keeps_a_batch_norm_whose_convolution_is_read_twice() {
    let model = check(&Padded::new(), |m, x| {
        let x = m.conv.forward(x);
        m.norm.forward(x.clone()) + x
    });
    assert!(operators(&model).iter().any(|op| op == "BatchNormalization"));
}

#[test]
fn folds_a_weight_that_is_used_twice_into_a_copy() {
    let model = check(&Padded::new(), |m, x| m.norm.forward(m.conv.forward(x.clone())) + m.conv.forward(x));
    let names = initializers(&model);
    assert!(names.iter().any(|name| name == "conv.weight.folded"), "{names:?}");
}

#[test]
fn exports_arithmetic_and_activations() {
    check(&1_usize, |_, x| {
        let y = x.clone().abs() + 0.5;
        let a = y.clone().log() + y.clone().sqrt() - y.clone().recip() * 0.1;
        let b = y.clone().powf(x.clone().clamp(-1.0, 1.0)) / (y.clone() + 1.0);
        let c = x.clone().tanh() + x.clone().neg().exp().clamp_max(5.0) - x.clone().erf();
        let d = activation::gelu(x.clone()) + activation::leaky_relu(x.clone(), 0.1);
        let e = activation::hard_sigmoid(x.clone(), 0.2, 0.5) + activation::log_sigmoid(x.clone());
        let f = x.clone().powf_scalar(2.0) + y.clone().powf_scalar(-1.0) + y.powf_scalar(0.7);
        let g = x.clone().powi_scalar(3) * 0.01 + x.clone().sin() + x.clone().floor();
        let h = x.clone().mask_fill(x.clone().greater_elem(0.5), 2.0);
        let i = x.clone().lower(h.clone()).float() + activation::silu(x);
        a + b + c + d + e + f + g + h + i
    });
}

#[test]
fn exports_reductions() {
    check(&1_usize, |_, x| {
        let rows = x.clone().max_dim(3) - x.clone().min_dim(3) + x.clone().mean_dim(3);
        let all = x.clone().mean() + x.clone().sum() * 0.001 + x.clone().max() - x.clone().min();
        let spatial = x.clone().sum_dims(&[2, 3]) * 0.01;
        let (best, _) = x.max_dim_with_indices(2);
        rows.mean_dim(2) + spatial + best.mean_dim(3) + all.reshape([1, 1, 1, 1])
    });
}

#[test]
fn exports_softmax_over_any_axis() {
    check(&1_usize, |_, x| {
        activation::softmax(x.clone(), 1) + activation::softmax(x.clone(), 3) + activation::log_softmax(x, 2)
    });
}

#[test]
fn exports_slices_relative_to_both_ends() {
    let model = check(&1_usize, |_, x| {
        let [_, _, height, width] = x.dims();
        let a = x.clone().slice(s![.., 0..2, 1.., ..width - 1]);
        let b = x.clone().slice(s![.., 1..3, ..height - 1, 1..;1]);
        let c = x.clone().slice(s![.., 0..1, 1..height, 0..width - 1]);
        Tensor::cat(vec![a, b, c, x.slice(s![.., .., 1.., 1..])], 1)
    });
    assert!(operators(&model).iter().all(|op| op == "Slice" || op == "Concat"));
}

#[test]
fn exports_strided_slices_and_flips() {
    check_with(Symbols::NotInTract, &1_usize, |_, x| {
        let even = x.clone().slice(s![.., .., ..;2, ..;2]);
        let fixed = x.slice(s![.., .., 0..8, 4..12]).flip([2, 3]);
        even.mean_dim(2).mean_dim(3) + fixed.mean_dim(3).mean_dim(2)
    });
}

#[test]
fn exports_reshapes_with_symbols() {
    let model = check(&1_usize, |_, x| {
        let [batch, channels, height, width] = x.dims();
        // [N, 3, H, W] to [N, H * W, 3] and back
        let tokens = x.reshape([batch, channels, height * width]).swap_dims(1, 2);
        let tokens = tokens.clone() * activation::softmax(tokens, 2);
        tokens.swap_dims(1, 2).reshape([batch, channels, height, width])
    });
    let graph = model.graph().expect("has a graph");
    let dims = &graph.output[0].r#type.as_ref().expect("typed").tensor_type;
    let dims = &dims.as_ref().expect("a tensor").shape.as_ref().expect("shaped").dim;
    let names: Vec<_> = dims.iter().map(|dim| format!("{:?}", dim.value)).collect();
    assert!(names[0].contains("\"N\"") && names[1].contains('3'), "{names:?}");
    assert!(names[2].contains("\"H\"") && names[3].contains("\"W\""), "{names:?}");
}

#[test]
fn exports_space_to_depth() {
    check_with(Symbols::NotInTract, &1_usize, |_, x| {
        let [batch, channels, height, width] = x.dims();
        x.reshape([batch, channels, height / 2, 2, width / 2, 2]).permute([0, 1, 3, 5, 2, 4]).reshape([
            batch,
            channels * 4,
            height / 2,
            width / 2,
        ])
    });
}

#[test]
fn exports_expand_and_filled_tensors() {
    check(&1_usize, |_, x| {
        let size = x.dims();
        let mean = x.clone().mean_dim(2).mean_dim(3).expand(size);
        let ramp = Tensor::<4>::ones(size, &x.device()) * 0.5;
        let zeros = Tensor::<4>::zeros([1, 3, 1, 1], &x.device());
        let quarter = Tensor::<4>::full([1, 1, 1, 1], 0.25, &x.device());
        x - mean + ramp + zeros + quarter
    });
}

#[test]
fn exports_pools() {
    check(&1_usize, |_, x| {
        let max = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
        let average = AvgPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
        let inner = average.clone().with_count_include_pad(false);
        max_pool2d(x.clone(), max) + avg_pool2d(x.clone(), average) + avg_pool2d(x, inner)
    });
}

#[test]
fn exports_interpolation_by_a_factor() {
    for mode in [InterpolateMode::Nearest, InterpolateMode::Bilinear] {
        check(&1_usize, |_, x| {
            let options = InterpolateOptions::new(mode.clone()).with_align_corners(false);
            interpolate(x, options.with_scale_factor([2.0, 2.0]))
        });
    }
}

#[derive(Module, Debug)]
struct Tokens {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    deconv: ConvTranspose2d,
}

#[test]
fn exports_layer_norm_rank_three_linear_and_transposed_convolution() {
    let device = Device::flex();
    let module = Tokens {
        norm: LayerNormConfig::new(4).init(&device),
        up: LinearConfig::new(4, 8).init(&device),
        down: LinearConfig::new(8, 4).with_bias(false).init(&device),
        deconv: ConvTranspose2dConfig::new([3, 4], [2, 2]).with_stride([2, 2]).init(&device),
    };
    check(&module, |m, x| {
        let x = m.deconv.forward(x);
        let [batch, channels, height, width] = x.dims();
        let tokens: Tensor<3> = x.reshape([batch, channels, height * width]).swap_dims(1, 2);
        let tokens = tokens.clone() + m.down.forward(m.up.forward(m.norm.forward(tokens)));
        tokens.mean_dim(1)
    });
}

#[test]
fn exports_matmul_select_and_gather() {
    check(&1_usize, |_, x| {
        let gram = x.clone().matmul(x.clone().transpose()).mean_dim(2).mean_dim(3);
        let indices = Tensor::<1, burn::tensor::Int>::from_data([2, 0], &x.device());
        gram.select(1, indices)
    });
}

#[test]
fn exports_other_ranks() {
    let module = LinearConfig::new(8, 4).init(&Device::flex());
    let exporter = Exporter::new().input("x", [Dim::symbolic("N"), Dim::fixed(8)]);
    let forward = |m: &Linear, x: Tensor<2>| m.forward(x);
    let model = exporter.export(&module, forward).expect("exports");
    assert_eq!(operators(&model), ["MatMul", "Add"]);
    assert_eq!(initializers(&model), ["weight", "bias"]);
    check_at(Symbols::InTract, &model, &module, forward, [5, 8]);
}

#[test]
fn drops_what_does_not_reach_the_output() {
    let model = check(&Padded::new(), |m, x| {
        let _unused = m.conv.forward(x.clone()).sort(3);
        x.exp()
    });
    assert_eq!(operators(&model), ["Exp"]);
    assert!(initializers(&model).is_empty());
}

#[test]
fn exports_an_output_that_is_the_input() {
    let model = check(&1_usize, |_, x| x);
    assert_eq!(operators(&model), ["Identity"]);
}

#[test]
fn gives_a_parameter_another_name_if_its_own_is_taken() {
    let module = LinearConfig::new(8, 4).init(&Device::flex());
    let exporter = Exporter::new().input("weight", [Dim::symbolic("N"), Dim::fixed(8)]).output("bias");
    let forward = |m: &Linear, x: Tensor<2>| m.forward(x);
    let model = exporter.export(&module, forward).expect("exports");
    assert_eq!(initializers(&model), ["weight_1", "bias_1"]);
    check_at(Symbols::InTract, &model, &module, forward, [2, 8]);
}

fn export_error<const O: usize>(forward: impl Fn(&usize, Tensor<4>) -> Tensor<O>) -> ExportError {
    let result = Exporter::new().input("image", image_dims()).export(&1_usize, forward);
    result.expect_err("this must not export")
}

#[test]
fn names_an_operation_without_translation() {
    for (error, wanted) in [
        (export_error(|_, x| x.sort(3)), "NumericFloat.Sort"),
        (export_error(|_, x| x.cumsum(2)), "NumericFloat.CumSum"),
    ] {
        let ExportError::UnsupportedOperation { name, .. } = &error else {
            panic!("unexpected {error:?}");
        };
        assert_eq!(name, wanted);
    }
}

#[test]
fn names_an_attribute_that_depends_on_the_size() {
    for (error, operation, attribute) in [
        (
            export_error(|_, x| {
                let h = x.dims()[2];
                x / h as f32
            }),
            "NumericFloat.DivScalar",
            "rhs",
        ),
        (
            export_error(|_, x| {
                let h = x.dims()[2];
                x.slice(s![.., .., h / 4..h / 2, ..])
            }),
            "BaseFloat.Slice",
            "start of axis 2",
        ),
        (export_error(|_, x| adaptive_avg_pool2d(x, [7, 7])), "Module.AdaptiveAvgPool2d", "kernel size"),
        (
            export_error(|_, x| {
                let width = x.dims()[3];
                let ramp: Vec<f32> = (0..width).map(|i| i as f32).collect();
                let ramp = Tensor::<1>::from_data(ramp.as_slice(), &x.device());
                x * ramp.reshape([1, 1, 1, width])
            }),
            "BaseFloat.Reshape",
            "constant operand",
        ),
    ] {
        let ExportError::NotSymbolic { operation: got, attribute: named, .. } = &error else {
            panic!("unexpected {error:?}");
        };
        assert_eq!((got.as_str(), named.as_str()), (operation, attribute), "{error}");
    }
}

#[test]
fn refuses_a_graph_that_changes_with_the_size() {
    let error = export_error(|_, x| if x.dims()[2] > 80 { x.exp() } else { x.abs() });
    let ExportError::DifferentOperations { index, first, second, .. } = error else {
        panic!("unexpected {error:?}");
    };
    assert_eq!((index, first.as_str(), second.as_str()), (0, "NumericFloat.Abs", "Float.Exp"));
}

#[test]
fn refuses_bad_declarations() {
    let export = |exporter: Exporter| {
        exporter.export(&1_usize, |_, x: Tensor<4>| x.exp()).expect_err("must be refused")
    };
    let rank = Exporter::new().input("x", [Dim::fixed(1)]);
    assert!(matches!(export(rank), ExportError::InputRank { declared: 1, expected: 4, .. }));
    let mut dims = image_dims();
    dims[2] = Dim::symbolic_with("H", [64, 64]);
    let same = Exporter::new().input("x", dims);
    assert!(matches!(export(same), ExportError::InvalidDimension { axis: 2, .. }));
    let opset = Exporter::new().opset(99);
    assert!(matches!(export(opset), ExportError::UnsupportedOpset { opset: 99 }));
    let names = Exporter::new().input("x", image_dims()).output("x");
    assert!(matches!(export(names), ExportError::DuplicateName { .. }));
}

#[test]
fn writes_metadata_and_names() {
    let exporter = Exporter::new()
        .input("image", image_dims())
        .output("embedding")
        .graph_name("query")
        .metadata("space", "old")
        .metadata("space", "abc");
    let model = exporter.export(&1_usize, |_, x: Tensor<4>| x.exp()).expect("exports");
    assert_eq!(model.metadata("space"), Some("abc"));
    let proto = &model.proto;
    assert_eq!((proto.ir_version, proto.opset_import[0].version), (Some(8), Some(17)));
    let graph = model.graph().expect("has a graph");
    assert_eq!(graph.name(), "query");
    assert_eq!((graph.input[0].name(), graph.output[0].name()), ("image", "embedding"));
    assert_eq!(graph.node[0].output, ["embedding"]);
}
