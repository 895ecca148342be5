//! Pretrained checkpoints: PyTorch's files, read by burn-store, names mapped to ours.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_store::{KeyRemapper, ModuleSnapshot, PytorchStore};
use thiserror::Error;

use super::efficientnet::{Architecture, EfficientNet};

/// Why weights cannot be loaded.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file cannot be opened.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no checkpoint.
    #[error("{} is not a PyTorch checkpoint: {reason}", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
    /// It is a checkpoint of something else.
    #[error("{} does not hold the weights of {architecture}: {reason}", path.display())]
    AnotherNetwork {
        /// The file.
        path: PathBuf,
        /// Which network was asked for.
        architecture: Architecture,
        /// What does not fit.
        reason: String,
    },
}

/// Checkpoint names on the left, ours on the right.
const NAMES: [(&str, &str); 10] = [
    (r"^_conv_stem\.", "backbone.stem.conv."),
    (r"^_bn0\.", "backbone.stem.norm."),
    (r"^_blocks\.(\d+)\._expand_conv\.", "backbone.blocks.$1.expand.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", "backbone.blocks.$1.expand.norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", "backbone.blocks.$1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._bn1\.", "backbone.blocks.$1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", "backbone.blocks.$1.project.conv."),
    (r"^_blocks\.(\d+)\._bn2\.", "backbone.blocks.$1.project.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
];

/// Reads a checkpoint and folds its batch norms. The classifier (`_fc`) is left out.
///
/// # Errors
/// [`WeightsError`]: unreadable, no checkpoint, or of another network.
pub fn load_pretrained(
    architecture: Architecture,
    path: &Path,
    device: &Device,
) -> Result<EfficientNet, WeightsError> {
    std::fs::File::open(path).map_err(|source| WeightsError::Read { path: path.into(), source })?;
    let names = NAMES.into_iter().fold(KeyRemapper::new(), |names, (from, to)| {
        names.add_pattern(from, to).expect("the patterns above are regular expressions")
    });
    let mut store =
        PytorchStore::from_file(path).remap(names).map_indices_contiguous(false).allow_partial(true);
    let mut network = architecture.init(device);
    let result = network.load_from(&mut store).map_err(|error| WeightsError::NotACheckpoint {
        path: path.into(),
        reason: first_line(&error.to_string()),
    })?;
    let another = |reason: String| WeightsError::AnotherNetwork { path: path.into(), architecture, reason };
    if let Some(error) = result.errors.first() {
        return Err(another(error.to_string()));
    }
    if let Some((name, _)) = result.missing.first() {
        return Err(another(format!("{} tensors are missing, the first is {name}", result.missing.len())));
    }
    Ok(network.fold())
}

fn first_line(text: &str) -> String {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(contents: Option<&[u8]>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.pth");
        if let Some(contents) = contents {
            std::fs::write(&path, contents).unwrap();
        }
        load_pretrained(Architecture::Miniature, &path, &Device::flex()).unwrap_err().to_string()
    }

    #[test]
    fn says_when_a_file_is_no_checkpoint() {
        for contents in [&b""[..], b"not a checkpoint", &[0x80, 2, b'.'], &[0xff; 4096], b"PK\x03\x04 torn"] {
            let error = error(Some(contents));
            assert!(error.contains("weights.pth is not a PyTorch checkpoint"), "{error}");
        }
        assert!(error(None).starts_with("cannot read"));
    }
}
