//! The product quantizer: an embedding of D dimensions is cut into M sub-vectors, and each is named by the nearest of
//! K centroids of its sub-space, so that M bytes stand for D floats.
//!
//! The same centroids are the anchors that make two networks comparable, the code of short messages, and the index of
//! the gallery. In reading order:
//!
//! - [`codebook`]: the centroids and their file ([`Codebook`]), encoding and decoding.
//! - [`adc`]: asymmetric distance computation ([`AdcTable`]): similarities of one *uncoded* query with many codes.
//!   (Asymmetric is meant here as in Jegou et al. 2011, not as in "two different networks".)
//! - `train` (feature `train`): k-means that makes a codebook from features.
//!
//! Nothing here does I/O. Without features the crate is `no_std` and needs only an allocator. What it lacks on
//! purpose: inverted lists and re-ranking (the gallery's), and SIMD scans (to come; [`AdcTable::scan`] is the scalar twin
//! they will be tested against).
//!
//! ```
//! use glimpse_quantizer::Codebook;
//!
//! // M = 2 sub-spaces of 1 dimension, K = 2 centroids each: -1 and 1.
//! let codebook = Codebook::new(2, 2, 2, vec![-1.0, 1.0, -1.0, 1.0], None)?;
//! let mut code = [0; 2];
//! codebook.encode(&[0.9, -0.8], &mut code)?;
//! assert_eq!(code, [1, 0]);
//! let table = codebook.adc_table(&[0.6, -0.8])?;
//! assert_eq!(table.similarity(&code), 0.6 + 0.8); // larger means nearer
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod adc;
pub mod codebook;
mod file;
#[cfg(feature = "train")]
pub mod train;

pub use adc::AdcTable;
pub use codebook::{CodeError, Codebook, CodebookError, DIMENSION_MAX, DimensionError};
