//! Exports Burn modules to ONNX by capturing the graph of their forward pass.
//!
//! Burn records ordinary module code as a graph when its tensors live on a capture device. This
//! crate captures a module at several input sizes, works out from the differences which numbers
//! are the batch, the height or the width, and writes the graph as an ONNX model that takes any of
//! them. Parameters keep their module paths as names.
//!
//! The modules, in reading order:
//!
//! 1. [`Exporter`] and [`Dim`]: what to export, under which names, with which dimensions free.
//! 2. `capture` (private): records the module at each size and reconciles the recordings.
//! 3. `convert` and `emit` (private): Burn operations to ONNX nodes; symbolic shapes.
//! 4. `fold` (private): merges pads and batch normalisation into convolutions.
//! 5. [`OnnxModel`] and [`proto`]: the finished model, its bytes, and its messages for editing.
//!
//! 6. [`quantize`]: the same model with int8 weights and activations, in QDQ form.
//!
//! What it deliberately lacks: training graphs, several inputs or outputs, control flow (Burn's
//! captures have none), quantized tensors of Burn, and weights outside the model file.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::conv::{Conv2d, Conv2dConfig};
//! use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
//! use burn::tensor::{Device, Tensor, activation};
//! use burn_onnx_export::{Dim, Exporter};
//!
//! #[derive(Module, Debug)]
//! struct Network {
//!     conv: Conv2d,
//!     norm: BatchNorm,
//!     head: Linear,
//! }
//!
//! impl Network {
//!     fn forward(&self, image: Tensor<4>) -> Tensor<2> {
//!         let features = activation::relu(self.norm.forward(self.conv.forward(image)));
//!         // [batch, 8, height, width] to [batch, 8]
//!         let pooled = features.mean_dim(3).mean_dim(2).flatten::<2>(1, 3);
//!         self.head.forward(pooled)
//!     }
//! }
//!
//! # fn main() -> Result<(), burn_onnx_export::ExportError> {
//! let device = Device::flex();
//! let network = Network {
//!     conv: Conv2dConfig::new([3, 8], [3, 3]).with_stride([2, 2]).init(&device),
//!     norm: BatchNormConfig::new(8).init(&device),
//!     head: LinearConfig::new(8, 16).init(&device),
//! };
//! let onnx = Exporter::new()
//!     .input("image", [Dim::symbolic("N"), Dim::fixed(3), Dim::symbolic("H"), Dim::symbolic("W")])
//!     .output("embedding")
//!     .metadata("trained_on", "nothing yet")
//!     .export(&network, |network, image: Tensor<4>| network.forward(image))?;
//! assert_eq!(onnx.metadata("trained_on"), Some("nothing yet"));
//! let bytes = onnx.to_bytes(); // or onnx.write("network.onnx")?
//! # assert!(!bytes.is_empty());
//! # Ok(())
//! # }
//! ```

mod capture;
mod convert;
mod emit;
mod error;
mod exporter;
mod fold;
mod model;
mod names;
pub mod proto;
pub mod quantize;

pub use error::ExportError;
pub use exporter::{Dim, Exporter};
pub use model::OnnxModel;
