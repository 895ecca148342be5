//! The control: a query network whose head never learned anything.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tract_onnx::pb::{ModelProto, TensorProto};

/// Initialisers of the head begin with this.
const HEAD: &str = "head.";
const SEED: u64 = 1;

/// ONNX's `TensorProto.DataType.FLOAT`.
const FLOAT: i32 = 1;

/// Writes `model` to `control` with every tensor of its head as a fresh layer would have it: weights uniform at
/// Xavier's scale (Glorot and Bengio 2010), biases zero. Backbone and metadata stay. Returns how many tensors changed.
///
/// # Errors
/// Where the model cannot be read or has no head to change.
pub fn randomise_head(model: &Path, control: &Path) -> anyhow::Result<usize> {
    let bytes = std::fs::read(model).with_context(|| format!("cannot read {}", model.display()))?;
    let mut proto = ModelProto::decode(bytes.as_slice()).with_context(|| model.display().to_string())?;
    let Some(graph) = &mut proto.graph else { bail!("{} holds no graph", model.display()) };
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let head = graph.initializer.iter_mut().filter(|tensor| tensor.name.starts_with(HEAD));
    let mut weights = 0;
    let mut changed = 0;
    for tensor in head {
        ensure!(tensor.data_type == FLOAT, "{} of {} is no f32 tensor", tensor.name, model.display());
        weights += usize::from(tensor.dims.len() >= 2);
        changed += 1;
        set(tensor, &fresh(&tensor.dims, &mut random));
    }
    ensure!(
        weights > 0,
        "{} has no weights named {HEAD}*, so there is no head to randomise",
        model.display()
    );
    std::fs::write(control, proto.encode_to_vec())
        .with_context(|| format!("cannot write {}", control.display()))?;
    Ok(changed)
}

/// Values of a fresh layer: `[out, in, ..]` or `[in, out]` weights (the scale is the same), or a bias.
fn fresh(dims: &[i64], random: &mut ChaCha8Rng) -> Vec<f32> {
    let sizes: Vec<usize> = dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let count = sizes.iter().product();
    let [out, input, kernel @ ..] = sizes.as_slice() else { return vec![0.0; count] };
    let fans = (out + input) * kernel.iter().product::<usize>();
    let bound = (6.0 / fans.max(1) as f32).sqrt();
    (0..count).map(|_| random.random_range(-bound..bound)).collect()
}

fn set(tensor: &mut TensorProto, values: &[f32]) {
    tensor.float_data.clear();
    tensor.raw_data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
}
