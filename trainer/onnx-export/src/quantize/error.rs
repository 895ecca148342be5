//! Why a model cannot be quantized.

/// Why a model cannot be quantized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The file holds no graph.
    #[error("the model has no graph: is it an ONNX model at all?")]
    NoGraph,
    /// It is an integer model already.
    #[error(
        "the model is quantized already: it contains `{operator}` (node `{node}`); start from its f32 form"
    )]
    AlreadyQuantized {
        /// The node's name, or that of its first output.
        node: String,
        /// Its operator.
        operator: String,
    },
    /// `DequantizeLinear` by channel came with operator set 13.
    #[error(
        "the model uses ONNX operator set {opset}: int8 weights by channel need 13 or later; export it anew"
    )]
    OldOpset {
        /// The version; 0 where the model names none.
        opset: i64,
    },
    /// Weights are not in the file.
    #[error("tensor `{tensor}` is stored outside the model file: put the weights into the file first")]
    ExternalData {
        /// Its name.
        tensor: String,
    },
    /// A constant contradicts itself.
    #[error("tensor `{tensor}` is damaged: {reason}")]
    DamagedTensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A node does not fit its weights.
    #[error("node `{node}` is damaged: {reason}")]
    DamagedNode {
        /// The node's name, or that of its first output.
        node: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No node has weights that can become int8.
    #[error("nothing to quantize: no Conv, Gemm or MatMul with constant f32 weights is left")]
    NothingToQuantize,
    /// A node that should stay f32 does not exist.
    #[error("no node that could be quantized is called `{name}`, nor is its weight")]
    UnknownNode {
        /// The name.
        name: String,
    },
    /// A tensor that should be exposed does not exist.
    #[error("the graph computes no tensor `{tensor}`")]
    UnknownTensor {
        /// Its name.
        tensor: String,
    },
    /// Nothing is known about an activation.
    #[error(
        "nothing is known about the values of tensor `{tensor}`: observe every tensor that `observed` names"
    )]
    MissingActivation {
        /// Its name.
        tensor: String,
    },
    /// The channel means of an activation are not as many as its channels.
    #[error("tensor `{tensor}` has {channels} channels, and {means} channel means are given")]
    ChannelMeans {
        /// Its name.
        tensor: String,
        /// How many channels the weights have for it.
        channels: usize,
        /// How many means there are.
        means: usize,
    },
}
