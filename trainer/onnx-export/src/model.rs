//! A finished model: bytes, files and metadata.

use std::path::Path;

use prost::Message;

use crate::error::ExportError;
use crate::proto::{GraphProto, ModelProto, StringStringEntryProto};

/// An ONNX model, from [`Exporter::export`](crate::Exporter::export) or from bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxModel {
    /// The messages of the file, free to read and edit.
    pub proto: ModelProto,
}

impl OnnxModel {
    /// Decodes a model file written by any tool.
    ///
    /// # Errors
    ///
    /// [`ExportError::Decode`] if the bytes are not an ONNX model.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ExportError> {
        let proto = ModelProto::decode(bytes)?;
        Ok(Self { proto })
    }

    /// The contents of the model file. Equal models give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// Writes the model file, replacing one that is there.
    ///
    /// The bytes go to a temporary file beside it first, so that a crash leaves either the old
    /// file or the new one.
    ///
    /// # Errors
    ///
    /// [`ExportError::Write`] if the folder is missing or not writable.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), ExportError> {
        let path = path.as_ref();
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".part");
        let temporary = Path::new(&temporary);
        std::fs::write(temporary, self.to_bytes())
            .and_then(|()| std::fs::rename(temporary, path))
            .map_err(|source| ExportError::Write { path: path.to_owned(), source })
    }

    /// The graph, if the model has one; those that this crate exports do.
    pub fn graph(&self) -> Option<&GraphProto> {
        self.proto.graph.as_ref()
    }

    /// The metadata value stored under `key`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let mut entries = self.proto.metadata_props.iter();
        let entry = entries.find(|entry| entry.key() == key)?;
        entry.value.as_deref()
    }

    /// Stores `value` under `key`, in place of an earlier value.
    pub fn set_metadata(&mut self, key: &str, value: &str) {
        let entries = &mut self.proto.metadata_props;
        match entries.iter_mut().find(|entry| entry.key() == key) {
            Some(entry) => entry.value = Some(value.to_owned()),
            None => entries
                .push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives_encoding() {
        let mut model = OnnxModel { proto: ModelProto::default() };
        model.set_metadata("space", "a");
        model.set_metadata("space", "b");
        let model = OnnxModel::from_bytes(&model.to_bytes()).expect("we wrote it");
        assert_eq!(model.metadata("space"), Some("b"));
        assert_eq!(model.metadata("other"), None);
        assert_eq!(model.proto.metadata_props.len(), 1);
    }

    #[test]
    fn refuses_bytes_that_are_not_a_model() {
        assert!(matches!(OnnxModel::from_bytes(&[0xff; 7]), Err(ExportError::Decode(_))));
    }
}
