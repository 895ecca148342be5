//! Int8 models in tract: near their f32 form, of the promised types, and refused where they cannot be made.

mod common;

use std::sync::LazyLock;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::module::adaptive_avg_pool2d;
use burn::tensor::{Device, Tensor};
use burn_onnx_export::quantize::{
    Activation, Activations, QuantizeError, QuantizeOptions, Range, exposing, observed, quantize,
};
use burn_onnx_export::{Exporter, OnnxModel};

use common::{image, image_dims, initializers, operators, run_fixed};

/// A convolution, a depthwise one, a residual addition and a projection.
#[derive(Module, Debug)]
struct Small {
    stem: Conv2d,
    depthwise: Conv2d,
    linear: Linear,
}

impl Small {
    fn new() -> Self {
        let device = Device::flex();
        device.seed(4);
        let conv = |channels, groups| {
            let config = Conv2dConfig::new(channels, [3, 3]).with_groups(groups);
            config.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(&device)
        };
        Self {
            stem: conv([3, 8], 1),
            depthwise: conv([8, 8], 8),
            linear: LinearConfig::new(8, 5).init(&device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = self.stem.forward(x).clamp(0.0, 6.0);
        let x = self.depthwise.forward(x.clone()).clamp(0.0, 6.0) + x;
        let x: Tensor<2> = adaptive_avg_pool2d(x, [1, 1]).flatten(1, 3);
        self.linear.forward(x)
    }
}

/// Made once: Burn's seed belongs to the process, and tests that draw at the same time would share its numbers.
static MODEL: LazyLock<OnnxModel> = LazyLock::new(|| {
    Exporter::new().input("image", image_dims()).export(&Small::new(), Small::forward).expect("it exports")
});

fn exported() -> OnnxModel {
    MODEL.clone()
}

/// The range and the channel means of every tensor that matters, from one image.
fn calibrated(model: &OnnxModel, options: &QuantizeOptions) -> Activations {
    let tensors = observed(model, options).expect("it can be observed");
    let of = |tensor: &String| {
        let probe = exposing(model, std::slice::from_ref(tensor)).expect("it is there");
        let (shape, values) = run_fixed(&probe, &image([1, 3, 12, 10])).expect("it runs");
        let (min, max) = values.iter().fold((0.0_f32, 0.0_f32), |(a, b), x| (a.min(*x), b.max(*x)));
        let range = Range::new(min, max).expect("finite");
        let size = values.len() / shape[1];
        let channel_means = values.chunks(size).map(|c| c.iter().sum::<f32>() / size as f32).collect();
        (tensor.clone(), Activation { range, channel_means })
    };
    tensors.iter().map(of).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn the_int8_model_computes_nearly_what_the_f32_model_does() {
    let model = exported();
    for (options, floor) in [
        (QuantizeOptions::default(), 0.999),
        (QuantizeOptions { residual_adds: true, ..QuantizeOptions::default() }, 0.999),
        (QuantizeOptions { activations: false, ..QuantizeOptions::default() }, 0.9995),
    ] {
        let int8 = quantize(&model, &calibrated(&model, &options), &options).expect("it quantizes");
        for size in [[1, 3, 12, 10], [1, 3, 20, 7]] {
            let (_, expected) = run_fixed(&model, &image(size)).expect("f32 runs");
            let (_, found) = run_fixed(&int8, &image(size)).expect("int8 runs");
            let cosine = cosine(&expected, &found);
            assert!(cosine > floor && expected != found, "{options:?} at {size:?}: {cosine}");
        }
        let rounded = operators(&int8).iter().filter(|name| *name == "QuantizeLinear").count();
        // The image, what the depthwise convolution reads, what the projection reads, and the second side of the sum.
        let wanted = if !options.activations {
            0
        } else if options.residual_adds {
            4
        } else {
            3
        };
        assert_eq!(rounded, wanted, "{options:?}");
        assert!(!initializers(&int8).iter().any(|name| name == "stem.weight"), "its f32 form is gone");
        assert!(initializers(&int8).iter().any(|name| name == "stem.weight.quantized"));
        assert_eq!(
            quantize(&model, &calibrated(&model, &options), &options).ok(),
            Some(int8),
            "deterministic"
        );
    }
}

#[test]
fn nodes_that_are_named_stay_as_they_are() {
    let model = exported();
    let options = QuantizeOptions { keep_f32: vec!["stem.weight".to_owned()], ..QuantizeOptions::default() };
    let int8 = quantize(&model, &calibrated(&model, &options), &options).expect("it quantizes");
    assert!(initializers(&int8).iter().any(|name| name == "stem.weight"));
    let options = QuantizeOptions { keep_f32: vec!["nobody".to_owned()], ..QuantizeOptions::default() };
    assert!(matches!(observed(&model, &options), Err(QuantizeError::UnknownNode { .. })));
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let (model, options) = (exported(), QuantizeOptions::default());
    let activations = calibrated(&model, &options);
    let int8 = quantize(&model, &activations, &options).expect("it quantizes");
    assert!(matches!(observed(&int8, &options), Err(QuantizeError::AlreadyQuantized { .. })));
    let none = Activations::new();
    assert!(matches!(quantize(&model, &none, &options), Err(QuantizeError::MissingActivation { .. })));
    assert!(matches!(
        exposing(&model, &["nowhere".to_owned()]),
        Err(QuantizeError::UnknownTensor { tensor }) if tensor == "nowhere"
    ));

    let changed = |change: &dyn Fn(&mut OnnxModel)| {
        let mut model = model.clone();
        change(&mut model);
        quantize(&model, &activations, &options).err()
    };
    assert!(matches!(changed(&|model| model.proto.graph = None), Some(QuantizeError::NoGraph)));
    let old =
        |model: &mut OnnxModel| model.proto.opset_import.iter_mut().for_each(|set| set.version = Some(9));
    assert!(matches!(changed(&old), Some(QuantizeError::OldOpset { opset: 9 })));
    let weight = |model: &mut OnnxModel, change: &dyn Fn(&mut burn_onnx_export::proto::TensorProto)| {
        let graph = model.proto.graph.as_mut().expect("it has one");
        change(
            graph.initializer.iter_mut().find(|tensor| tensor.name() == "stem.weight").expect("it has one"),
        );
    };
    for change in [
        &(|tensor: &mut burn_onnx_export::proto::TensorProto| tensor.raw_data = Some(vec![0; 7]))
            as &dyn Fn(&mut burn_onnx_export::proto::TensorProto),
        &|tensor| tensor.raw_data = Some(f32::NAN.to_le_bytes().repeat(8 * 27)),
        &|tensor| tensor.raw_data = Some(Vec::new()),
    ] {
        let error = changed(&|model| weight(model, change));
        assert!(matches!(error, Some(QuantizeError::DamagedTensor { .. })), "{error:?}");
    }
    let negative = |model: &mut OnnxModel| weight(model, &|tensor| tensor.dims[0] = -8);
    assert!(changed(&negative).is_some());
    let empty = |model: &mut OnnxModel| model.proto.graph.as_mut().expect("it has one").node.clear();
    assert!(matches!(changed(&empty), Some(QuantizeError::NothingToQuantize)));
}
