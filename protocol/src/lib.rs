//! What Glimpse's devices and servers say to each other: nothing here does I/O, and little allocates.
//!
//! In reading order:
//!
//! - [`ids`]: the newtypes at every boundary: [`SpaceId`], [`QueryId`], [`DeviceId`], [`ModelId`].
//! - [`topics`]: the MQTT topics of DESIGN section 5, built and parsed in one place.
//! - [`codec`]: an embedding as bytes ([`Codec`]): `f32`, `f16`, `i8`, and `pq` codes.
//! - [`message`]: [`Query`], [`Reply`], [`ErrorReply`], [`DeviceStatus`], [`GalleryStatus`].
//! - `model`, behind the feature `models` (which allocates): how a new query network reaches devices.
//! - `device`, behind the feature `device-config` (which brings `std`): the schema of `device.toml`.
//!
//! The same serde types give compact CBOR (integer keys, byte strings) and friendly JSON (names, hex, number
//! arrays), by asking the serializer whether a person reads it. Which of the two travels is the business of the
//! programs, not of this crate.
//!
//! ```
//! use glimpse_protocol::{Codec, Embedding, Query, QueryId, SpaceId};
//!
//! let space = SpaceId::from_bytes([7; 16]);
//! let embedding = Embedding::encode(Codec::I8, &[0.6, -0.8])?;
//! let query: Query = Query::new(QueryId::from_bytes([1; 16]), space, embedding, 10);
//! assert_eq!(query.top_k, 10);
//! # Ok::<(), glimpse_protocol::CodecError>(())
//! ```
#![no_std]

#[cfg(feature = "models")]
extern crate alloc;
#[cfg(any(test, feature = "device-config"))]
extern crate std;

pub mod codec;
#[cfg(feature = "device-config")]
pub mod device;
pub mod ids;
pub mod message;
#[cfg(feature = "models")]
pub mod model;
pub mod topics;

pub use codec::{Codec, CodecError, Embedding};
pub use ids::{DeviceId, IdError, ModelId, ModelKey, QueryId, SpaceId};
pub use message::{
    DeviceStatus, ErrorBody, ErrorCode, ErrorReply, FilterOf, GalleryStatus, Header, Match, Query, Reply,
    Update, UpdateState,
};
pub use topics::{DeviceTopic, Topic};

/// Version of the messages, in every message as `v`.
pub const VERSION: u16 = 1;

/// The largest message that a Glimpse program accepts, in bytes. Public brokers refuse more than 64 KiB to 1 MiB
/// (AWS IoT: 128 KB), and no message of ours needs a tenth of it.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The largest number of matches that a query may ask for.
pub const TOP_K_MAX: usize = 100;

/// The largest embedding on the wire, in bytes: 2048 dimensions as `f32`.
pub const EMBEDDING_BYTES_MAX: usize = 8192;

/// The longest image id, in bytes of UTF-8.
pub const IMAGE_ID_BYTES_MAX: usize = 128;

/// The longest label, in bytes of UTF-8.
pub const LABEL_BYTES_MAX: usize = 96;
