//! Pretrained checkpoints: PyTorch's files, read by burn-store, names mapped to ours.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_store::{KeyRemapper, ModuleSnapshot, PytorchStore};
use thiserror::Error;

use super::architecture::{Architecture, Family};
use super::backbone::EmbeddingNetwork;

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

/// Checkpoint names on the left, ours on the right: TensorFlow's EfficientNet-Lite as PyTorch packages have it.
const LITE_NAMES: [(&str, &str); 10] = [
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

/// Layers of MobileNetV2's blocks, which checkpoints number through with their activations.
const MOBILENET_V2_FIRST_BLOCK: [&str; 5] =
    ["depthwise.conv", "depthwise.norm", "", "project.conv", "project.norm"];
const MOBILENET_V2_BLOCK: [&str; 8] = [
    "expand.conv",
    "expand.norm",
    "",
    "depthwise.conv",
    "depthwise.norm",
    "",
    "project.conv",
    "project.norm",
];

/// Pairs of a pattern and its replacement; `None` for networks whose checkpoints no package carries.
fn names(architecture: Architecture) -> Option<Vec<(String, String)>> {
    let own = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
    match architecture.family() {
        Family::EfficientNetLite(_) | Family::Miniature => Some(LITE_NAMES.iter().map(own).collect()),
        Family::MobileNetV2 => Some(mobilenet_v2_names()),
        Family::MobileNetV3Small | Family::ShuffleNetV2 => None,
    }
}

fn mobilenet_v2_names() -> Vec<(String, String)> {
    let ends = [
        ("0", "0", "backbone.stem.conv"),
        ("0", "1", "backbone.stem.norm"),
        ("18", "0", "head.conv"),
        ("18", "1", "head.norm"),
    ];
    let ends =
        ends.iter().map(|(layer, part, to)| (format!(r"^features\.{layer}\.{part}\."), format!("{to}.")));
    let blocks = (1..=17).flat_map(|block| {
        let layers: &[&str] = if block == 1 { &MOBILENET_V2_FIRST_BLOCK } else { &MOBILENET_V2_BLOCK };
        layers.iter().enumerate().filter(|(_, to)| !to.is_empty()).map(move |(layer, to)| {
            (format!(r"^features\.{block}\.conv\.{layer}\."), format!("backbone.blocks.{}.{to}.", block - 1))
        })
    });
    ends.chain(blocks).collect()
}

/// Reads a checkpoint, with batch norms as they are. The classifier is left out, and so is what an architecture that is
/// cut off has not.
///
/// # Errors
/// [`WeightsError`]: unreadable, no checkpoint, or of another network.
pub fn load_pretrained(
    architecture: Architecture,
    path: &Path,
    device: &Device,
) -> Result<EmbeddingNetwork, WeightsError> {
    std::fs::File::open(path).map_err(|source| WeightsError::Read { path: path.into(), source })?;
    let another = |reason: String| WeightsError::AnotherNetwork { path: path.into(), architecture, reason };
    let names = names(architecture).ok_or_else(|| {
        another("no package has weights of this family, train it without --weights".to_owned())
    })?;
    // The fresh convolution of a network that is cut off is in no checkpoint, and the checkpoint's own has other channels.
    let cut = architecture.plan().last.is_none();
    let wanted = names.into_iter().filter(|(_, to)| !(cut && to.starts_with("head.")));
    let names = wanted.fold(KeyRemapper::new(), |names, (from, to)| {
        names.add_pattern(from, to).expect("the patterns above are regular expressions")
    });
    let mut store =
        PytorchStore::from_file(path).remap(names).map_indices_contiguous(false).allow_partial(true);
    let mut network = architecture.init(device);
    let result = network.load_from(&mut store).map_err(|error| WeightsError::NotACheckpoint {
        path: path.into(),
        reason: first_line(&error.to_string()),
    })?;
    if let Some(error) = result.errors.first() {
        return Err(another(error.to_string()));
    }
    let missing: Vec<&String> = result
        .missing
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !(cut && name.starts_with("head.")))
        .collect();
    if let Some(name) = missing.first() {
        return Err(another(format!("{} tensors are missing, the first is {name}", missing.len())));
    }
    Ok(network)
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
        load_pretrained(Architecture::MINIATURE, &path, &Device::flex()).unwrap_err().to_string()
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
