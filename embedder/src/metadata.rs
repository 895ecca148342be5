//! What an ONNX file of ours says about itself, in its `metadata_props`.
//!
//! | key | value |
//! |---|---|
//! | `glimpse.role` | `query`, `gallery` or `features` |
//! | `glimpse.space` | 32 hexadecimal digits; absent for `features` |
//! | `glimpse.dimension` | length of the output |
//! | `glimpse.preprocessing` | JSON of [`Preprocessing`] |

use std::fmt;
use std::path::{Path, PathBuf};

use glimpse_protocol::SpaceId;
use prost::Message;
use thiserror::Error;
use tract_onnx::pb::ModelProto;

use crate::Preprocessing;

/// Why a file is no model that can be used.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot read the model {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no ONNX file.
    #[error("{path} is no ONNX model: {reason}")]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The model lacks our metadata, or it is wrong.
    #[error(
        "{path} has no usable Glimpse metadata: {reason}; models of a space come from `glimpse-trainer import` or `export`"
    )]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Which entry, and what is wrong with it.
        reason: String,
    },
    /// The network cannot be run.
    #[error("{path} cannot be run: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// The network can be run by its engine alone.
    #[error("{path} runs here, but not on a device without an operating system: {reason}")]
    NotPortable {
        /// The file.
        path: PathBuf,
        /// What no step of ours does.
        reason: String,
    },
}

/// What a network is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The tiny network of the devices.
    Query,
    /// The large network of the server.
    Gallery,
    /// A network inside the trainer, whose output is no embedding of a space.
    Features,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Gallery => "gallery",
            Self::Features => "features",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an ONNX file of ours says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelMetadata {
    /// What the network is for.
    pub role: Role,
    /// The space of its embeddings; `None` only for [`Role::Features`].
    pub space: Option<SpaceId>,
    /// Length of the output.
    pub dimension: usize,
    /// How photos become its input.
    pub preprocessing: Preprocessing,
}

const ROLE: &str = "glimpse.role";
const SPACE: &str = "glimpse.space";
const DIMENSION: &str = "glimpse.dimension";
const PREPROCESSING: &str = "glimpse.preprocessing";

impl ModelMetadata {
    /// The entries for `metadata_props`, in a fixed order.
    pub fn to_props(&self) -> Vec<(String, String)> {
        let mut props = vec![(ROLE.to_owned(), self.role.to_string())];
        props.extend(self.space.map(|space| (SPACE.to_owned(), space.to_string())));
        props.push((DIMENSION.to_owned(), self.dimension.to_string()));
        let preprocessing =
            serde_json::to_string(&self.preprocessing).expect("plain numbers are always JSON");
        props.push((PREPROCESSING.to_owned(), preprocessing));
        props
    }

    /// Reads the entries. The error is a reason without the file's name.
    pub(crate) fn from_props<'a>(
        props: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Result<Self, String> {
        let find = |key: &str| props.clone().find(|prop| prop.0 == key).map(|prop| prop.1);
        let get = |key: &str| find(key).ok_or_else(|| format!("`{key}` is missing"));
        let role = get(ROLE)?;
        let role = [Role::Query, Role::Gallery, Role::Features]
            .into_iter()
            .find(|known| known.name() == role)
            .ok_or_else(|| format!("`{ROLE}` is `{role}`, not query, gallery or features"))?;
        let space = find(SPACE).map(str::parse).transpose().map_err(|error| format!("`{SPACE}`: {error}"))?;
        if space.is_none() && role != Role::Features {
            return Err(format!("`{SPACE}` is missing"));
        }
        let dimension = get(DIMENSION)?.parse().map_err(|error| format!("`{DIMENSION}`: {error}"))?;
        let preprocessing: Preprocessing = serde_json::from_str(get(PREPROCESSING)?)
            .map_err(|error| format!("`{PREPROCESSING}`: {error}"))?;
        preprocessing.validate().map_err(|reason| format!("`{PREPROCESSING}`: {reason}"))?;
        Ok(Self { role, space, dimension, preprocessing })
    }
}

/// What an ONNX file says of itself, without making a network of it.
///
/// # Errors
/// A file that cannot be read, or is none of ours.
pub fn read_metadata(path: &Path) -> Result<ModelMetadata, ModelError> {
    ModelFile::read(path)?.metadata()
}

/// An ONNX file, decoded but not yet built.
pub(crate) struct ModelFile {
    pub(crate) path: PathBuf,
    pub(crate) proto: ModelProto,
}

impl ModelFile {
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        Self::decode(path, &Self::bytes(path)?)
    }

    pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
        std::fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })
    }

    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let not_onnx = |reason| ModelError::NotOnnx { path: path.to_owned(), reason };
        let proto = ModelProto::decode(bytes).map_err(|error| not_onnx(error.to_string()))?;
        if proto.graph.is_none() {
            return Err(not_onnx("it holds no graph".to_owned()));
        }
        Ok(Self { path: path.to_owned(), proto })
    }

    pub(crate) fn metadata(&self) -> Result<ModelMetadata, ModelError> {
        let props = self.proto.metadata_props.iter().map(|prop| (prop.key.as_str(), prop.value.as_str()));
        ModelMetadata::from_props(props)
            .map_err(|reason| ModelError::Metadata { path: self.path.clone(), reason })
    }
}

/// Identity of the space that a gallery model spans: the first 16 bytes of BLAKE3 over the model without its metadata
/// (which carries this very id), the preprocessing and the dimension.
///
/// The model is decoded and encoded again before it is hashed, so that tools which write the same model with its
/// fields in another order do not make another space.
///
/// # Errors
/// [`ModelError::NotOnnx`] where `gallery_model` is no ONNX file.
pub fn space_id(
    gallery_model: &[u8],
    preprocessing: &Preprocessing,
    dimension: usize,
) -> Result<SpaceId, ModelError> {
    let mut proto = ModelProto::decode(gallery_model)
        .map_err(|error| ModelError::NotOnnx { path: "gallery model".into(), reason: error.to_string() })?;
    proto.metadata_props.clear();
    let mut hasher = blake3::Hasher::new_derive_key("glimpse space id, version 1");
    hasher.update(blake3::hash(&proto.encode_to_vec()).as_bytes());
    for side in [preprocessing.width, preprocessing.height, dimension as u32] {
        hasher.update(&side.to_le_bytes());
    }
    for x in preprocessing.mean.iter().chain(&preprocessing.std) {
        hasher.update(&x.to_le_bytes());
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    Ok(SpaceId::from_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> ModelMetadata {
        ModelMetadata {
            role: Role::Query,
            space: Some(SpaceId::from_bytes([5; 16])),
            dimension: 256,
            preprocessing: Preprocessing { width: 224, height: 192, mean: [0.498; 3], std: [0.502; 3] },
        }
    }

    fn read(props: &[(String, String)]) -> Result<ModelMetadata, String> {
        ModelMetadata::from_props(props.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    #[test]
    fn metadata_survives_its_entries() {
        assert_eq!(read(&metadata().to_props()), Ok(metadata()));
        let features = ModelMetadata { role: Role::Features, space: None, ..metadata() };
        assert_eq!(read(&features.to_props()), Ok(features));
    }

    #[test]
    fn each_missing_or_wrong_entry_is_named() {
        let props = metadata().to_props();
        for (i, (key, _)) in props.iter().enumerate() {
            let mut missing = props.clone();
            missing.remove(i);
            assert_eq!(read(&missing), Err(format!("`{key}` is missing")));
            let mut wrong = props.clone();
            wrong[i].1 = "nonsense".to_owned();
            assert!(read(&wrong).unwrap_err().contains(key.as_str()));
        }
    }

    #[test]
    fn a_space_is_its_model_preprocessing_and_dimension_but_not_its_metadata() {
        let preprocessing = metadata().preprocessing;
        let id = |producer: &str, prop: Option<&str>, preprocessing: &Preprocessing, dimension| {
            let props = prop
                .map(|value| tract_onnx::pb::StringStringEntryProto { key: "k".into(), value: value.into() });
            let proto = ModelProto {
                producer_name: producer.into(),
                metadata_props: props.into_iter().collect(),
                ..ModelProto::default()
            };
            space_id(&proto.encode_to_vec(), preprocessing, dimension).unwrap()
        };
        let base = id("a", None, &preprocessing, 256);
        assert_eq!(base, id("a", Some("anything"), &preprocessing, 256));
        assert_ne!(base, id("b", None, &preprocessing, 256));
        assert_ne!(base, id("a", None, &preprocessing, 128));
        assert_ne!(base, id("a", None, &Preprocessing { width: 256, ..preprocessing }, 256));
    }
}
