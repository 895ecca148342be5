//! Burn modules to ONNX files, and the proof that the file computes what the module does.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use burn_onnx_export::{Dim, ExportError, Exporter, OnnxModel};
use glimpse_embedder::{ModelError, ModelMetadata, Network, Preprocessing, Role, space_id};
use thiserror::Error;

use crate::files::{FileError, write_whole};
use crate::networks::values;

/// Cosine that the exported network must reach with the module, on every photo. Two runtimes that sum the same products
/// in another order differ by some 1e-7; a wrong border or a missing node shows up in the third digit.
pub const COSINE_MIN: f64 = 0.99999;

/// Why there is no ONNX file.
#[derive(Debug, Error)]
pub enum OnnxError {
    /// The exporter cannot express the module.
    #[error("cannot export the network")]
    Export(#[from] ExportError),
    /// Our metadata or the engine refuses it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The engine fails on it.
    #[error("{} cannot be run: {reason}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// The file computes something else.
    #[error("{} disagrees with the network that it was made from: cosine {cosine:.7} is below {COSINE_MIN}", path.display())]
    Disagrees {
        /// The file.
        path: PathBuf,
        /// The worst cosine.
        cosine: f64,
    },
}

/// Exports an image network with free batch, height and width, and no metadata yet.
///
/// # Errors
/// [`OnnxError::Export`].
pub fn export<M: Module, const O: usize>(
    module: &M,
    output: &str,
    forward: impl Fn(&M, Tensor<4>) -> Tensor<O>,
) -> Result<OnnxModel, OnnxError> {
    // Large enough that the margins and scales of what is exported behave as they will on photos.
    let side = |name| Dim::symbolic_with(name, [256, 512]);
    let dims = [Dim::symbolic("N"), Dim::fixed(3), side("H"), side("W")];
    Ok(Exporter::new().input("image", dims).output(output).export(module, forward)?)
}

/// What a gallery model says about itself: its space is named after the model's own bytes.
///
/// # Errors
/// [`OnnxError::Model`].
pub fn gallery_metadata(
    model: &OnnxModel,
    preprocessing: Preprocessing,
    dimension: usize,
) -> Result<ModelMetadata, OnnxError> {
    let space = space_id(&model.to_bytes(), &preprocessing, dimension)?;
    Ok(ModelMetadata { role: Role::Gallery, space: Some(space), dimension, preprocessing })
}

/// Writes a model with its metadata, whole or not at all.
///
/// # Errors
/// [`OnnxError::File`].
pub fn write(mut model: OnnxModel, metadata: &ModelMetadata, path: &Path) -> Result<(), OnnxError> {
    for (key, value) in metadata.to_props() {
        model.set_metadata(&key, &value);
    }
    Ok(write_whole(path, &model.to_bytes())?)
}

/// Runs file and module on the same tensors, `[3, height, width]` each, and returns the worst cosine of their outputs.
///
/// # Errors
/// [`OnnxError::Disagrees`] below [`COSINE_MIN`], and whatever keeps the file from running.
pub fn verify<const O: usize>(
    path: &Path,
    preprocessing: &Preprocessing,
    inputs: &[Vec<f32>],
    forward: impl Fn(Tensor<4>) -> Tensor<O>,
) -> Result<f64, OnnxError> {
    let network = Network::load(path, preprocessing.width, preprocessing.height)?;
    let shape = [1, 3, preprocessing.height as usize, preprocessing.width as usize];
    let mut worst = 1.0_f64;
    for input in inputs {
        let run = |reason| OnnxError::Run { path: path.into(), reason };
        let exported = network.run(input).map_err(|error| run(error.clone()))?;
        let tensor = Tensor::<4>::from_data(TensorData::new(input.clone(), shape), &Device::flex());
        let expected = values(forward(tensor));
        let cosine = cosine(&exported, &expected);
        // Written so that NaN is the worst.
        worst = if cosine >= worst { worst } else { cosine };
    }
    if worst >= COSINE_MIN {
        Ok(worst)
    } else {
        Err(OnnxError::Disagrees { path: path.into(), cosine: worst })
    }
}

/// NaN where one is zero or the lengths differ.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::{Architecture, EmbeddingNetwork};
    use crate::projection::Projection;
    use glimpse_embedder::{Embedder, RgbImage};

    /// A miniature with random weights and a projection to four dimensions.
    fn network() -> EmbeddingNetwork {
        let device = Device::flex();
        device.seed(5);
        let network = Architecture::MINIATURE.init(&device).fold();
        let weight = (0..16 * 4).map(|i| ((i * 7 % 13) as f32 - 6.0) / 5.0).collect();
        let head = network.head.project(&Projection { weight, bias: vec![0.1; 4] }, None, &device);
        EmbeddingNetwork { backbone: network.backbone, head }
    }

    fn photo(seed: u32) -> RgbImage {
        RgbImage::from_fn(50, 40, |x, y| image::Rgb([(x * seed) as u8, (y * 5) as u8, (x * y + seed) as u8]))
    }

    #[test]
    fn an_exported_network_agrees_at_sizes_that_it_was_not_captured_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("query.onnx");
        let network = network();
        let model = export(&network, "embedding", EmbeddingNetwork::forward).unwrap();
        let names: Vec<&str> =
            model.graph().unwrap().initializer.iter().filter_map(|tensor| tensor.name.as_deref()).collect();
        assert!(
            ["head.conv.weight", "head.linear.weight"].iter().all(|name| names.contains(name)),
            "{names:?}"
        );
        for size in [32, 64, 160] {
            let preprocessing = Architecture::MINIATURE.preprocessing(size);
            let metadata = gallery_metadata(&model, preprocessing, 4).unwrap();
            write(model.clone(), &metadata, &path).unwrap();
            let inputs = [preprocessing.tensor(&photo(3)), preprocessing.tensor(&photo(8))];
            let cosine = verify(&path, &preprocessing, &inputs, |image| network.forward(image)).unwrap();
            assert!(cosine > COSINE_MIN, "{size}: {cosine}");
            let embedder = Embedder::load(&path).unwrap();
            assert_eq!(embedder.metadata(), &metadata);
        }
    }

    #[test]
    fn every_family_can_be_exported() {
        use crate::networks::{Blueprint, HeadConfig, Norms};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("query.onnx");
        for (name, channels, rank, margin) in [
            ("mobilenet-v2-x0.25-s3", None, None, 1),
            ("mobilenet-v3-small-x0.25", Some(16), None, 0),
            ("shufflenet-v2-x0.2", None, Some(3), 0),
        ] {
            let blueprint = Blueprint {
                network: name.parse().unwrap(),
                head: HeadConfig { channels, rank, margin },
                norms: Norms::Folded,
                dimension: 4,
            };
            let network = blueprint.at_random(&Device::flex());
            let model = export(&network, "embedding", EmbeddingNetwork::forward).unwrap();
            for size in [64, 96] {
                let preprocessing = blueprint.network.preprocessing(size);
                let metadata = gallery_metadata(&model, preprocessing, 4).unwrap();
                write(model.clone(), &metadata, &path).unwrap();
                let inputs = [preprocessing.tensor(&photo(3))];
                let cosine = verify(&path, &preprocessing, &inputs, |image| network.forward(image));
                assert!(cosine.unwrap() > COSINE_MIN, "{name}, {size}");
            }
        }
    }

    #[test]
    fn another_network_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("query.onnx");
        let network = network();
        let preprocessing = Architecture::MINIATURE.preprocessing(64);
        let model = export(&network, "embedding", EmbeddingNetwork::forward).unwrap();
        let metadata = gallery_metadata(&model, preprocessing, 4).unwrap();
        write(model, &metadata, &path).unwrap();
        let mut other = network.clone();
        other.head = other.head.project(
            &Projection { weight: (0..64).map(|i| (i as f32).cos()).collect(), bias: vec![0.0; 4] },
            None,
            &Device::flex(),
        );
        let inputs = [preprocessing.tensor(&photo(3))];
        let error = verify(&path, &preprocessing, &inputs, |image| other.forward(image)).unwrap_err();
        assert!(matches!(error, OnnxError::Disagrees { .. }), "{error}");
    }
}
