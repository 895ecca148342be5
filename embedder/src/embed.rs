//! A photo to a unit embedding.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use glimpse_embedder_core::to_unit;
use glimpse_kernels::Isa;
use glimpse_protocol::SpaceId;
use image::RgbImage;
use thiserror::Error;

use crate::metadata::ModelFile;
use crate::{
    EmbedderOptions, Frame, ModelError, ModelMetadata, Network, NoDirection, PlanCache, PortableModel,
    Preprocessor, Role,
};

/// Why a photo has no embedding.
#[derive(Debug, Clone, Error)]
pub enum EmbedError {
    /// The engine failed.
    #[error("the network failed: {0}")]
    Network(String),
    /// The network gave NaN, infinity or nothing but zeros.
    #[error(transparent)]
    NoDirection(#[from] NoDirection),
}

/// A query or gallery network with its preprocessing. Threads share one by reference.
pub struct Embedder {
    network: Network,
    metadata: ModelMetadata,
    space: SpaceId,
    /// Those that no thread uses: as many as there ever were threads at a time.
    idle: Mutex<Vec<Preprocessor>>,
}

impl Embedder {
    /// Reads a model of a space, made by `glimpse-trainer`.
    ///
    /// # Errors
    /// [`ModelError`] with the path: unreadable, no ONNX file, without our metadata, or with an output that is not
    /// `[N, dimension]`.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        Self::load_with(path, &EmbedderOptions::default())
    }

    /// The same, run as the options say.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(path: &Path, options: &EmbedderOptions) -> Result<Self, ModelError> {
        Self::load_by(path, |file, width, height| Network::build(file, width, height, options))
    }

    /// The same, from a plan that was kept in `cache` the last time, which takes some milliseconds; one is kept now where there is
    /// none yet. Weights stay in that file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_cached(
        path: &Path,
        options: &EmbedderOptions,
        cache: &PlanCache,
    ) -> Result<Self, ModelError> {
        let bytes = ModelFile::bytes(path)?;
        let key = PlanCache::key(&bytes, options);
        // Only models with a space were kept.
        if let Some((space, metadata, plan)) =
            cache.load(key).and_then(|(metadata, plan)| Some((metadata.space?, metadata, plan)))
        {
            let unusable = |reason| ModelError::Unusable { path: path.to_owned(), reason };
            let network = Network::of_plan(plan, options).map_err(unusable)?;
            return Ok(Self { network, metadata, space, idle: Mutex::default() });
        }
        let file = ModelFile::decode(path, &bytes)?;
        // While a network is built there are several copies of its weights, and a board has little memory.
        drop(bytes);
        let mut embedder =
            Self::build(file, |file, width, height| Network::build(file, width, height, options))?;
        if let Some(plan) = embedder.network.plan_mut() {
            cache.store(key, &embedder.metadata, plan);
            if let Some((_, kept)) = cache.load(key) {
                *plan = kept;
            }
        }
        Ok(embedder)
    }

    /// The network in the form that runs on any processor without an engine, as a microcontroller wants it.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`ModelError::NotPortable`] for a network that only the engine can run.
    pub fn portable_model(path: &Path) -> Result<PortableModel, ModelError> {
        let Self { network, metadata, space, .. } =
            Self::load_with(path, &EmbedderOptions::all(Isa::Portable))?;
        let not_portable = |reason| ModelError::NotPortable { path: path.to_owned(), reason };
        let plan = network.into_plan().map_err(not_portable)?;
        PortableModel::new(space, metadata.preprocessing, plan)
            .map_err(|error| not_portable(error.to_string()))
    }

    /// The same in ONNX Runtime, where that [was loaded](crate::onnxruntime::load), and else as the options say.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    #[cfg(feature = "onnxruntime")]
    pub fn load_preferred(path: &Path, options: &EmbedderOptions) -> Result<Self, ModelError> {
        if crate::onnxruntime::is_loaded() {
            Self::load_by(path, |file, width, height| Network::load_in_onnxruntime(&file.path, width, height))
        } else {
            Self::load_with(path, options)
        }
    }

    fn load_by(
        path: &Path,
        build: impl FnOnce(ModelFile, u32, u32) -> Result<Network, ModelError>,
    ) -> Result<Self, ModelError> {
        Self::build(ModelFile::read(path)?, build)
    }

    fn build(
        file: ModelFile,
        build: impl FnOnce(ModelFile, u32, u32) -> Result<Network, ModelError>,
    ) -> Result<Self, ModelError> {
        let metadata = file.metadata()?;
        let path = file.path.clone();
        let not_embedding = |reason| ModelError::Metadata { path: path.clone(), reason };
        let space = metadata.space.filter(|_| metadata.role != Role::Features).ok_or_else(|| {
            not_embedding(
                "its role is `features`, and embeddings come from a query or gallery model".to_owned(),
            )
        })?;
        let network = build(file, metadata.preprocessing.width, metadata.preprocessing.height)?;
        if network.output_shape() != [1, metadata.dimension] {
            let (shape, dimension) = (network.output_shape(), metadata.dimension);
            return Err(not_embedding(format!("its output is {shape:?}, not [1, {dimension}]")));
        }
        Ok(Self { network, metadata, space, idle: Mutex::default() })
    }

    /// What the model says about itself.
    pub const fn metadata(&self) -> &ModelMetadata {
        &self.metadata
    }

    /// The network itself.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The space of the embeddings.
    pub const fn space(&self) -> SpaceId {
        self.space
    }

    /// Length of an embedding.
    pub const fn dimension(&self) -> usize {
        self.metadata.dimension
    }

    /// The unit embedding of a photo, `[dimension]`.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed(&self, photo: &RgbImage) -> Result<Vec<f32>, EmbedError> {
        self.embed_frame(&photo.into())
    }

    /// The unit embedding of a camera's frame, `[dimension]`. Buffers are kept from one frame to the next.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed_frame(&self, frame: &Frame<'_>) -> Result<Vec<f32>, EmbedError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut preprocessor = kept.unwrap_or_else(|| Preprocessor::new(self.metadata.preprocessing));
        let ran = self.network.run_on(|tensor| preprocessor.tensor_into(frame, tensor));
        idle().push(preprocessor);
        unit(ran)
    }

    /// The same, from a tensor that [`crate::Preprocessing::tensor`] made.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed_tensor(&self, tensor: &[f32]) -> Result<Vec<f32>, EmbedError> {
        unit(self.network.run(tensor))
    }

    /// The same of several, [`batch`](Network::batch) of them through the network at a time.
    pub fn embed_tensors(&self, tensors: &[Vec<f32>]) -> Vec<Result<Vec<f32>, EmbedError>> {
        let length: usize = self.network.input_shape().iter().product();
        let together = |tensors: &[Vec<f32>]| {
            tensors.iter().try_for_each(|tensor| self.network.check(tensor))?;
            self.network.run_batch(tensors.len(), |input| {
                input
                    .chunks_exact_mut(length)
                    .zip(tensors)
                    .for_each(|(input, tensor)| input.copy_from_slice(tensor));
            })
        };
        let each = |tensors: &[Vec<f32>]| match together(tensors) {
            Ok(outputs) => {
                outputs.chunks_exact(self.dimension()).map(|output| unit(Ok(output.to_vec()))).collect()
            }
            Err(error) => vec![Err(EmbedError::Network(error)); tensors.len()],
        };
        tensors.chunks(self.network.batch()).flat_map(each).collect::<Vec<_>>()
    }
}

fn unit(output: Result<Vec<f32>, String>) -> Result<Vec<f32>, EmbedError> {
    let mut embedding = output.map_err(EmbedError::Network)?;
    to_unit(&mut embedding)?;
    Ok(embedding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use tract_onnx::pb::NodeProto;

    #[test]
    fn a_network_that_only_the_engine_runs_is_not_portable_and_its_operator_is_named() {
        let mut file = ModelFile::read(Path::new("../models/demo/query-int8.onnx")).unwrap();
        let graph = file.proto.graph.as_mut().unwrap();
        let before = std::mem::replace(&mut graph.output[0].name, "curved".to_owned());
        graph.node.push(NodeProto {
            op_type: "Tanh".to_owned(),
            name: "curve".to_owned(),
            input: vec![before],
            output: vec!["curved".to_owned()],
            ..NodeProto::default()
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curved.onnx");
        std::fs::write(&path, file.proto.encode_to_vec()).unwrap();
        assert!(Embedder::load(&path).is_ok());
        let refused = Embedder::portable_model(&path).unwrap_err().to_string();
        assert!(refused.contains("curved.onnx") && refused.contains("Tanh"), "{refused}");
    }
}
