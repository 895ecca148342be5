//! The product quantizer: an embedding of D dimensions is cut into M sub-vectors, and each is named by the nearest of
//! K centroids of its sub-space, so that M bytes stand for D floats.
//!
//! The same centroids are the anchors that make two networks comparable, the code of short messages, and the index of
//! the gallery. In reading order:
//!
//! - [`codebook`]: the centroids and their file ([`Codebook`]), encoding and decoding.
//! - [`adc`]: asymmetric distance computation ([`AdcTable`]): similarities of one *uncoded* query with many codes.
//!   (Asymmetric is meant here as in Jegou et al. 2011, not as in "two different networks".)
//! - [`Encoder`]: a codebook made ready for many embeddings and queries.
//! - [`scan`]: codes packed for SIMD, and one pass over them that finds the best for one query or many. [`Kernel`] says which
//!   instructions are used; it is found out at run time with the feature `std`.
//! - [`exact`]: features in f32, f16 or i8, by which candidates are ranked in the end.
//! - [`expansion`]: a vector expanded by its neighbours (alpha-QE, database-side augmentation).
//! - `Centroids` (feature `std`): centroids of whole vectors, for inverted lists.
//! - `train` (feature `train`): k-means and OPQ, which make codebooks and centroids from features.
//!
//! Nothing here does I/O. Without features the crate is `no_std` and needs only an allocator. What it lacks on
//! purpose: inverted lists and re-ranking (the gallery's).
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
//!
//! // The same for many codes: packed once, scanned for each query.
//! use glimpse_quantizer::Encoder;
//! use glimpse_quantizer::scan::{Candidates, Probe};
//!
//! let encoder = Encoder::new(codebook);
//! let codes = encoder.pack(&[0, 0, 1, 0, 1, 1])?; // three codes of two sub-spaces
//! let tables = [encoder.table(&[0.6, -0.8])?];
//! let mut candidates = [Candidates::new(2)]; // the best two
//! codes.view().scan(0, &tables, &[Probe { query: 0, bias: 0 }], &mut candidates, None);
//! let [candidates] = candidates;
//! let best: Vec<u32> = candidates.into_sorted().map(|(_, position)| position).collect();
//! assert_eq!(best, [1, 0]);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod adc;
#[cfg(feature = "std")]
mod assign;
#[cfg(feature = "std")]
mod centroids;
pub mod codebook;
mod encoder;
pub mod exact;
pub mod expansion;
mod file;
mod kernel;
mod lanes;
mod register;
pub mod scan;
#[cfg(feature = "train")]
pub mod train;

pub use adc::AdcTable;
#[cfg(feature = "std")]
pub use centroids::Centroids;
pub use codebook::{CodeError, Codebook, CodebookError, DIMENSION_MAX, DimensionError};
pub use encoder::Encoder;
pub use exact::{ExactRows, Precision};
pub use expansion::Expansion;
pub use kernel::{Kernel, KernelMissing};
