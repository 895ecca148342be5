//! From a photo to an embedding: the same code, and so the same numbers, on device, server and trainer.
//!
//! In reading order:
//!
//! - [`photo`]: bytes of a JPEG or PNG to upright RGB pixels ([`decode_photo`]), with limits.
//! - [`glimpse_embedder_core`]: what a microcontroller needs too: pictures as cameras give them ([`Frame`]), pixels to the network's
//!   input tensor ([`Preprocessing`], [`Preprocessor`]), networks in portable files ([`PortableModel`]).
//! - [`metadata`]: what an ONNX file of ours says about itself ([`ModelMetadata`]), and the [`space_id`].
//! - [`network`]: an ONNX network in tract ([`Network`]).
//! - `fold`: its int8 weights, before the engine sees them.
//! - `operators`: our own convolutions in its graph, as [`EmbedderOptions`] allow.
//! - `flatten`: the whole graph as a plan of our own steps, where each is known; else the engine runs it.
//! - [`cache`]: plans kept in files, so that a network is ready in milliseconds the next time ([`PlanCache`]).
//! - [`profile`]: where its time goes ([`Profile`]).
//! - [`embed`]: both together ([`Embedder`]).
//! - [`mod@bench`]: how fast that is here.
//! - [`self_test`]: whether a network works here as it did where it was made.
//! - [`space`]: the folder that holds a space ([`SpaceBundle`]).
//! - `onnxruntime`, behind the feature of that name: another engine than tract, where somebody has it.
//! - `matrix`, behind the feature of that name: features in `.npy` and safetensors files.
//!
//! ```no_run
//! use std::path::Path;
//! use glimpse_embedder::{Embedder, read_photo};
//!
//! let embedder = Embedder::load(Path::new("models/demo/query.onnx"))?;
//! let embedding = embedder.embed(&read_photo(Path::new("photo.jpg"))?)?;
//! assert_eq!(embedding.len(), embedder.dimension());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bench;
pub mod cache;
pub mod embed;
mod flatten;
mod fold;
#[cfg(feature = "matrix")]
pub mod matrix;
pub mod metadata;
pub mod network;
#[cfg(feature = "onnxruntime")]
pub mod onnxruntime;
mod operators;
pub mod options;
pub mod photo;
pub mod profile;
pub mod self_test;
pub mod space;

pub use cache::PlanCache;
pub use embed::{EmbedError, Embedder};
pub use glimpse_embedder_core::{
    Colours, Frame, FrameError, Memory, NoDirection, PortableEmbedder, PortableModel, Preprocessing,
    Preprocessor,
};
pub use image::RgbImage;
pub use metadata::{ModelError, ModelMetadata, Role, read_metadata, space_id};
pub use network::Network;
pub use options::{EmbedderOptions, Threads};
pub use photo::{PhotoError, decode_photo, read_photo};
pub use profile::{OperatorTime, Profile};
pub use self_test::{SelfTestError, test_photo};
pub use space::{QuantizerShape, SpaceBundle, SpaceError};
