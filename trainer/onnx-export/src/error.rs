//! Everything that can go wrong between a Burn module and a written ONNX file.

use std::path::PathBuf;

use burn::tensor::DType;
use burn_capture::CaptureError;

/// Why a module could not be exported, or a model could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The declared dimensions of the input do not have the rank of the input tensor.
    #[error(
        "input `{input}` is declared with {declared} dimensions but the closure takes a tensor of \
         rank {expected}: declare one dimension per axis"
    )]
    InputRank {
        /// Name of the input.
        input: String,
        /// Number of declared dimensions.
        declared: usize,
        /// Rank of the tensor that the closure takes.
        expected: usize,
    },

    /// A declared dimension cannot be used.
    #[error("dimension {axis} of input `{input}`: {reason}")]
    InvalidDimension {
        /// Name of the input.
        input: String,
        /// Axis, counted from 0.
        axis: usize,
        /// What is wrong, and what to do.
        reason: String,
    },

    /// The requested opset is not one that this exporter writes.
    #[error("opset {opset} is not supported: ask for one of 13 to 17")]
    UnsupportedOpset {
        /// The requested version.
        opset: i64,
    },

    /// Input and output share a name.
    #[error("input and output are both called `{name}`: give them different names")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// Burn refused the capture.
    #[error("capturing the graph failed: {0}")]
    Capture(CaptureError),

    /// The closure's output was not computed on the capture device.
    #[error(
        "the output is not on the capture device: compute it from the closure's module and input, \
         and create tensors on `input.device()`"
    )]
    OutputNotCaptured,

    /// The graph contains an operation, or a form of one, that has no translation.
    #[error("operation `{name}` cannot be exported: {reason}")]
    UnsupportedOperation {
        /// Burn's name of the operation, such as `NumericFloat.Sort`.
        name: String,
        /// What exactly is not supported, and what to do.
        reason: String,
    },

    /// A tensor has an element type that ONNX does not have.
    #[error("tensors of type {dtype:?} cannot be exported: convert the module to f32 first")]
    UnsupportedType {
        /// The element type.
        dtype: DType,
    },

    /// Two example sizes led to different operations.
    #[error(
        "the graph depends on the input size: operation {index} is `{first}` for input \
         {first_size:?} but `{second}` for {second_size:?}; give example sizes that take the same \
         path, or fix the dimension"
    )]
    DifferentOperations {
        /// Position among the operations that reach the output.
        index: usize,
        /// The operation at the first size, or `end of graph`.
        first: String,
        /// The operation at the second size, or `end of graph`.
        second: String,
        /// Input shape of the first capture.
        first_size: Vec<usize>,
        /// Input shape of the second capture.
        second_size: Vec<usize>,
    },

    /// An attribute changes with the input size in a way that ONNX cannot express.
    #[error(
        "`{attribute}` of operation `{operation}` depends on the input size ({values}) and cannot \
         be written as a symbolic expression: fix the dimension or rewrite the operation"
    )]
    NotSymbolic {
        /// Burn's name of the operation.
        operation: String,
        /// The attribute.
        attribute: String,
        /// Its value in each capture.
        values: String,
    },

    /// The captured graph contradicts itself.
    #[error("the captured graph is inconsistent: {detail}; please report this with the module")]
    Inconsistent {
        /// What was found.
        detail: String,
    },

    /// A file could not be written.
    #[error("cannot write `{path}`: check that the folder exists and is writable")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },

    /// Bytes that should be an ONNX model are not.
    #[error("the bytes are not an ONNX model")]
    Decode(#[from] prost::DecodeError),
}

impl ExportError {
    pub(crate) fn unsupported(name: &str, reason: impl Into<String>) -> Self {
        Self::UnsupportedOperation { name: name.to_owned(), reason: reason.into() }
    }

    pub(crate) fn inconsistent(detail: impl Into<String>) -> Self {
        Self::Inconsistent { detail: detail.into() }
    }

    pub(crate) fn not_symbolic(
        operation: &str,
        attribute: impl Into<String>,
        values: impl std::fmt::Debug,
    ) -> Self {
        Self::NotSymbolic {
            operation: operation.to_owned(),
            attribute: attribute.into(),
            values: format!("{values:?}"),
        }
    }
}
