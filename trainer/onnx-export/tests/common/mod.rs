//! Runs exported bytes in tract and compares with Burn.
#![allow(dead_code, reason = "each test file uses its own part, and `expect` would be unfulfilled in some")]

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use burn_onnx_export::{Dim, Exporter, OnnxModel};
use tract_onnx::prelude::{Datum, Framework, InferenceModelExt, IntoRunnable, TractResult, tvec};
use tract_onnx::tract_hir::infer::InferenceFact;

/// A reproducible image: no two rows, columns or channels alike, values in about -2 to 2.
pub(crate) fn image<const D: usize>(size: [usize; D]) -> TensorData {
    let count: usize = size.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| {
            let i = i as f32;
            (i * 0.37).sin() + (i * 0.011).cos() * 0.7 + ((i as usize * 7919) % 13) as f32 * 0.05 - 0.3
        })
        .collect();
    TensorData::new(values, size)
}

/// Output shape and values of the model for an input, shapes known to tract beforehand.
pub(crate) fn run_fixed(model: &OnnxModel, input: &TensorData) -> TractResult<(Vec<usize>, Vec<f32>)> {
    run(model, input, Some(input.shape().to_vec()))
}

/// The same with the model's own symbolic dimensions.
pub(crate) fn run_symbolic(model: &OnnxModel, input: &TensorData) -> TractResult<(Vec<usize>, Vec<f32>)> {
    run(model, input, None)
}

fn run(
    model: &OnnxModel,
    input: &TensorData,
    fact: Option<Vec<usize>>,
) -> TractResult<(Vec<usize>, Vec<f32>)> {
    let mut graph = tract_onnx::onnx().model_for_read(&mut model.to_bytes().as_slice())?;
    if let Some(shape) = fact {
        let fact = InferenceFact::dt_shape(f32::datum_type(), shape);
        graph = graph.with_input_fact(0, fact)?;
    }
    let plan = graph.into_optimized()?.into_runnable()?;
    let values = input.as_slice::<f32>().expect("inputs are f32");
    let tensor = tract_onnx::prelude::Tensor::from_shape(&input.shape().to_vec(), values)?;
    let outputs = plan.run(tvec!(tensor.into()))?;
    let output = outputs[0].to_plain_array_view::<f32>()?;
    Ok((output.shape().to_vec(), output.iter().copied().collect()))
}

/// Largest difference allowed, relative to the largest value of the output: the two engines sum in
/// different orders.
pub(crate) const TOLERANCE: f32 = 1e-4;

pub(crate) fn assert_close(what: &str, left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len(), "{what}: lengths differ");
    let scale = right.iter().fold(1e-6_f32, |max, value| max.max(value.abs()));
    for (index, (l, r)) in left.iter().zip(right).enumerate() {
        assert!(
            (l - r).abs() <= TOLERANCE * scale,
            "{what}: element {index} is {l}, should be {r} (largest {scale})"
        );
    }
}

pub(crate) fn image_dims() -> Vec<Dim> {
    vec![Dim::symbolic("N"), Dim::fixed(3), Dim::symbolic("H"), Dim::symbolic("W")]
}

/// Whether tract is to run a model without knowing the sizes beforehand. It cannot do that for a
/// few operations, such as strided slices of symbolic axes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbols {
    InTract,
    NotInTract,
}

/// Exports `module`, runs it at sizes other than those captured and compares with Burn. Inputs are
/// `[N, 3, H, W]`.
pub(crate) fn check<M: Module, const O: usize>(
    module: &M,
    forward: impl Fn(&M, Tensor<4>) -> Tensor<O>,
) -> OnnxModel {
    check_with(Symbols::InTract, module, forward)
}

pub(crate) fn check_with<M: Module, const O: usize>(
    symbols: Symbols,
    module: &M,
    forward: impl Fn(&M, Tensor<4>) -> Tensor<O>,
) -> OnnxModel {
    let exporter = Exporter::new().input("image", image_dims()).output("embedding");
    let model = exporter.export(module, &forward).unwrap_or_else(|error| panic!("{error}"));
    for size in [[1, 3, 64, 64], [2, 3, 64, 64], [1, 3, 96, 160], [3, 3, 128, 96]] {
        check_at(symbols, &model, module, &forward, size);
    }
    model
}

pub(crate) fn check_at<M: Module, const D: usize, const O: usize>(
    symbols: Symbols,
    model: &OnnxModel,
    module: &M,
    forward: impl Fn(&M, Tensor<D>) -> Tensor<O>,
    size: [usize; D],
) {
    let input = image(size);
    let expected = forward(module, Tensor::from_data(input.clone(), &Device::flex()));
    let expected_shape = expected.dims().to_vec();
    let expected = expected.into_data();
    dump(model, &input, &expected);
    let expected = expected.as_slice::<f32>().expect("outputs are f32");
    let mut results = vec![("fixed", run_fixed(model, &input))];
    if symbols == Symbols::InTract {
        results.push(("symbolic", run_symbolic(model, &input)));
    }
    for (how, result) in results {
        let (shape, values) = result.unwrap_or_else(|error| panic!("{how} {size:?}: {error:#}"));
        assert_eq!(shape, expected_shape, "{how} {size:?}");
        assert_close(&format!("{how} {size:?}"), &values, expected);
    }
}

/// Leaves model, input and Burn's output in the folder `ONNX_EXPORT_DUMP`, for checks with other
/// engines: `TEST.onnx`, `TEST.1x3x64x64.in` and `.out`, the latter two raw `f32`.
fn dump(model: &OnnxModel, input: &TensorData, output: &TensorData) {
    let Ok(folder) = std::env::var("ONNX_EXPORT_DUMP") else {
        return;
    };
    let name = std::thread::current().name().unwrap_or("test").replace("::", "_");
    let size: Vec<_> = input.shape().iter().map(ToString::to_string).collect();
    let stem = format!("{folder}/{name}");
    let sized = format!("{stem}.{}", size.join("x"));
    let written = model.write(format!("{stem}.onnx"));
    written.expect("the dump folder exists");
    std::fs::write(format!("{sized}.in"), input.as_bytes()).expect("the dump folder exists");
    std::fs::write(format!("{sized}.out"), output.as_bytes()).expect("the dump folder exists");
}

/// Names of the operators of a model, in order.
pub(crate) fn operators(model: &OnnxModel) -> Vec<String> {
    let graph = model.graph().expect("exported models have a graph");
    graph.node.iter().map(|node| node.op_type().to_owned()).collect()
}

/// Names of the initialisers of a model, in order.
pub(crate) fn initializers(model: &OnnxModel) -> Vec<String> {
    let graph = model.graph().expect("exported models have a graph");
    graph.initializer.iter().map(|tensor| tensor.name().to_owned()).collect()
}
