//! The folder that holds a space: `space.toml`, `gallery.onnx`, `query.onnx`, `codebook.safetensors`.

use std::path::{Path, PathBuf};

use glimpse_protocol::SpaceId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ModelError, Preprocessing, space_id};

/// Why a folder is no space bundle.
#[derive(Debug, Error)]
pub enum SpaceError {
    /// `space.toml` cannot be read or written.
    #[error("cannot {action} {path}: is this a space bundle?")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `space.toml` says something that cannot be.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line where that is known.
        reason: String,
    },
    /// The gallery model is not the one whose space the bundle names.
    #[error(
        "{path} spans the space {found}, and space.toml says {expected}: the model was replaced; make a new bundle"
    )]
    OtherModel {
        /// The gallery model.
        path: PathBuf,
        /// Its space.
        found: SpaceId,
        /// The bundle's space.
        expected: SpaceId,
    },
    /// The gallery model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Shape of a product quantizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizerShape {
    /// Number of sub-spaces, M.
    pub sub_spaces: usize,
    /// Centroids a sub-space, K.
    pub centroids: usize,
}

/// A space, as `space.toml` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceBundle {
    /// The folder.
    pub dir: PathBuf,
    /// A name for people.
    pub name: String,
    /// Identity of the space.
    pub space: SpaceId,
    /// Length of an embedding, D.
    pub dimension: usize,
    /// How photos become the gallery model's input.
    pub preprocessing: Preprocessing,
    /// Shape of the quantizer, once there is one.
    pub quantizer: Option<QuantizerShape>,
}

/// `space.toml` as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpace {
    version: u32,
    name: String,
    space: String,
    dimension: usize,
    preprocessing: Preprocessing,
    quantizer: Option<QuantizerShape>,
}

const VERSION: u32 = 1;

/// The largest embedding that anything here handles.
const DIMENSION_MAX: usize = 8192;

impl SpaceBundle {
    /// Reads `space.toml` of a folder. Whether the models fit is seen when they are loaded, or by
    /// [`SpaceBundle::verify`].
    ///
    /// # Errors
    /// [`SpaceError::File`] and [`SpaceError::Invalid`].
    pub fn load(dir: &Path) -> Result<Self, SpaceError> {
        let path = dir.join("space.toml");
        let text = std::fs::read_to_string(&path).map_err(|source| SpaceError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let invalid = |reason: String| SpaceError::Invalid { path: path.clone(), reason };
        let raw: RawSpace = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        if raw.version != VERSION {
            return Err(invalid(format!("version {} is not known here, only {VERSION}", raw.version)));
        }
        let space = raw.space.parse().map_err(|error| invalid(format!("space: {error}")))?;
        raw.preprocessing.validate().map_err(|reason| invalid(format!("preprocessing: {reason}")))?;
        if !(1..=DIMENSION_MAX).contains(&raw.dimension) {
            return Err(invalid(format!("dimension {} is not within 1 to {DIMENSION_MAX}", raw.dimension)));
        }
        if let Some(QuantizerShape { sub_spaces, centroids }) = raw.quantizer
            && (sub_spaces == 0
                || !raw.dimension.is_multiple_of(sub_spaces)
                || !(2..=256).contains(&centroids))
        {
            let reason = format!(
                "quantizer: {sub_spaces} sub-spaces of {centroids} centroids do not fit {} dimensions",
                raw.dimension
            );
            return Err(invalid(reason));
        }
        let RawSpace { name, dimension, preprocessing, quantizer, .. } = raw;
        Ok(Self { dir: dir.to_owned(), name, space, dimension, preprocessing, quantizer })
    }

    /// Writes `space.toml`, whole or not at all.
    ///
    /// # Errors
    /// [`SpaceError::File`].
    pub fn write(&self) -> Result<(), SpaceError> {
        let path = self.dir.join("space.toml");
        let raw = RawSpace {
            version: VERSION,
            name: self.name.clone(),
            space: self.space.to_string(),
            dimension: self.dimension,
            preprocessing: self.preprocessing,
            quantizer: self.quantizer,
        };
        let text = toml::to_string_pretty(&raw)
            .map_err(|error| SpaceError::Invalid { path: path.clone(), reason: error.to_string() })?;
        let draft = self.dir.join("space.toml.new");
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|source| SpaceError::File { action: "write", path, source })
    }

    /// The large model.
    pub fn gallery_model(&self) -> PathBuf {
        self.dir.join("gallery.onnx")
    }

    /// The tiny model.
    pub fn query_model(&self) -> PathBuf {
        self.dir.join("query.onnx")
    }

    /// The quantizer's centroids.
    pub fn codebook(&self) -> PathBuf {
        self.dir.join("codebook.safetensors")
    }

    /// Checks that the gallery model is the one that the space is named after: hashes it whole.
    ///
    /// # Errors
    /// [`SpaceError::OtherModel`] and [`SpaceError::Model`].
    pub fn verify(&self) -> Result<(), SpaceError> {
        let path = self.gallery_model();
        let bytes = std::fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let found = space_id(&bytes, &self.preprocessing, self.dimension).map_err(|error| match error {
            ModelError::NotOnnx { reason, .. } => ModelError::NotOnnx { path: path.clone(), reason },
            other => other,
        })?;
        if found == self.space {
            Ok(())
        } else {
            Err(SpaceError::OtherModel { path, found, expected: self.space })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dir: &Path) -> SpaceBundle {
        SpaceBundle {
            dir: dir.to_owned(),
            name: "test".to_owned(),
            space: SpaceId::from_bytes([0xab; 16]),
            dimension: 256,
            preprocessing: Preprocessing { width: 288, height: 288, mean: [0.498; 3], std: [0.502; 3] },
            quantizer: Some(QuantizerShape { sub_spaces: 32, centroids: 256 }),
        }
    }

    #[test]
    fn a_bundle_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        for quantizer in [None, bundle(dir.path()).quantizer] {
            let written = SpaceBundle { quantizer, ..bundle(dir.path()) };
            written.write().unwrap();
            assert_eq!(SpaceBundle::load(dir.path()).unwrap(), written);
        }
    }

    #[test]
    fn what_is_wrong_in_space_toml_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(SpaceBundle::load(dir.path()), Err(SpaceError::File { .. })));
        bundle(dir.path()).write().unwrap();
        let path = dir.path().join("space.toml");
        let good = std::fs::read_to_string(&path).unwrap();
        for (from, to, named) in [
            ("version = 1", "version = 2", "version 2"),
            ("abab", "xyab", "32 hexadecimal digits"),
            ("dimension = 256", "dimension = 0", "dimension 0"),
            ("sub_spaces = 32", "sub_spaces = 33", "33 sub-spaces"),
            ("width = 288", "width = 0", "0x288"),
            ("name =", "nmae =", "nmae"),
            ("dimension = 256", "dimension = ", "line 4"),
        ] {
            std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let reason = SpaceBundle::load(dir.path()).unwrap_err().to_string();
            assert!(reason.contains(named), "{named}: {reason}");
        }
    }
}
