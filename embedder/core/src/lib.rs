//! What embeds photos without an operating system (`target_os = "none"` makes it `no_std`): the same preprocessing and the same
//! network as on every other device.
//!
//! In reading order:
//!
//! - [`frame`]: pictures as cameras give them ([`Frame`]), borrowed.
//! - [`preprocess`]: pixels to the network's input tensor ([`Preprocessing`], [`Preprocessor`]).
//! - [`model`]: a network with all that it needs, in one file for any processor ([`PortableModel`]).
//! - [`embed`]: a frame to a unit embedding ([`PortableEmbedder`]).
//!
//! What is deliberately absent: photo files and ONNX. Whoever has an operating system reads those
//! (`glimpse_embedder`), and `glimpse-edge plan` writes the portable file of a network.
//!
//! ```
//! use glimpse_embedder_core::{Frame, Memory, PortableEmbedder, PortableModel, Preprocessing};
//! use glimpse_plan::{PlanBuilder, Shape, Step};
//! use glimpse_protocol::SpaceId;
//!
//! // A network that adds up the pixels of each channel.
//! let mut builder = PlanBuilder::new([3, 1, 2]);
//! let planes = builder.input();
//! let sums = builder.real(Shape([1, 3, 1, 1]));
//! builder.push(Step::Sum { axes: [false, false, true, true], input: planes, output: sums })?;
//! let preprocessing = Preprocessing { width: 2, height: 1, mean: [0.0; 3], std: [1.0; 3] };
//! let model = PortableModel::new(SpaceId::from_bytes([7; 16]), preprocessing, builder.finish(sums)?)?;
//!
//! let model = PortableModel::read(&Memory::new(model.write()))?;
//! let mut embedder = PortableEmbedder::new(model);
//! let mut embedding = [0.0; 3];
//! embedder.embed(&Frame::rgb([2, 1], &[255, 0, 0, 255, 0, 0])?, &mut embedding)?;
//! assert_eq!(embedding, [1.0, 0.0, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod embed;
pub mod frame;
pub mod model;
pub mod preprocess;

pub use embed::{NoDirection, PortableEmbedder, to_unit};
pub use frame::{Colours, Frame, FrameError, PHOTO_SIDE_MAX};
pub use glimpse_kernels::Memory;
pub use model::{PortableError, PortableModel};
pub use preprocess::{Preprocessing, Preprocessor};
