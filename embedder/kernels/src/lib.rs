//! Convolutions of small image networks, as fast as the processor: what the embedder puts in the place of its engine's own.
//!
//! Images are *channels last*, `[height, width, channels]`: then a register holds channels of one pixel, whatever the size of
//! the image, and a 1x1 convolution is a product of matrices as they lie. Bias, clamp (ReLU6 and its like) and residual are part
//! of each convolution. Weights are packed once, for the instructions that [`Isa::detect`] finds.
//!
//! In reading order:
//!
//! - `isa`: which instructions ([`Isa`]).
//! - `shape`: where windows look ([`Window`]), and what outputs may be ([`Clamp`]).
//! - `lanes`: one register of `f32`, over which the kernels are written once.
//! - `dense`: 1x1 convolutions and larger ones over all channels ([`Dense`]).
//! - `depthwise`: each channel by itself ([`Depthwise`]).
//! - `bytes`: what int8 kernels are made of; `bytes_portable`, `bytes_x86` and `bytes_neon` are their instructions.
//! - `dense_i8`, `depthwise_i8`: the same convolutions of bytes ([`DenseI8`], [`DepthwiseI8`]).
//! - `quantize`: real numbers to bytes ([`quantize()`]).
//! - `packed`: kernels as bytes in a file ([`Writer`], [`Reader`]).
//!
//! There is no graph here, and no tensor: the embedder knows these. Nothing but memory is asked of the system, and without one
//! (`target_os = "none"`) the crate is `no_std`.
//!
//! ```
//! use glimpse_kernels::{Clamp, Dense, Isa, Layout, Window};
//!
//! // Two pixels of two channels, summed and halved.
//! let weights = [1.0, 1.0, 0.5, 0.5];
//! let convolution = Dense::new(Isa::detect(), [2, 2], Window::POINT, Layout::ChannelsLast, (&weights, None), Clamp::NONE);
//! let mut output = [0.0; 4];
//! convolution.run([1, 2], &[1.0, 2.0, 3.0, 5.0], None, &mut output);
//! assert_eq!(output, [3.0, 1.5, 8.0, 4.0]);
//! ```
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

mod bytes;
#[cfg(target_arch = "aarch64")]
mod bytes_neon;
mod bytes_portable;
#[cfg(target_arch = "x86_64")]
mod bytes_x86;
mod dense;
mod dense_i8;
mod depthwise;
mod depthwise_i8;
mod isa;
mod lanes;
mod lines;
mod packed;
mod quantize;
mod shape;

pub use bytes::Rounding;
pub use dense::{Dense, Layout};
pub use dense_i8::{DenseI8, Integers, Outputs};
pub use depthwise::Depthwise;
pub use depthwise_i8::DepthwiseI8;
pub use isa::Isa;
pub use lines::Memory;
pub use packed::{Damaged, Reader, Writer};
pub use quantize::quantize;
pub use shape::{Clamp, Window};

#[cfg(test)]
mod tests;
