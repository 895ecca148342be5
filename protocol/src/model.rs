//! How a new query network reaches devices: an operator's signed manifest, and the network's bytes in chunks.
//!
//! ```text
//! server ── Offer ──► device       .../model   the manifest and its signature
//! device ── Fetch ──► any server   .../fetch   "chunks 16 to 23"
//! server ── Chunk ──► device       .../model   one each
//! ```
//!
//! The device asks, so that servers keep nothing of it: it asks again for what did not come, goes on after a restart
//! where its bytes end, and may be answered by another server each time. What it is given is judged by the manifest
//! alone, whose signature only the operator's key makes: a broker, a server or another device can withhold a network,
//! not forge one. The serial number in it grows with every manifest, so that an old one cannot be played again.

use alloc::vec::Vec;
use core::fmt;

use serde::de::{self, IgnoredAny, MapAccess};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

use crate::ids::Bytes;
use crate::message::{Fields, Key, keyed_map};
use crate::{ModelId, SpaceId};

/// The largest query network that devices take, in bytes.
pub const MODEL_BYTES_MAX: u64 = 32 << 20;

/// The largest chunk, in bytes: two fit in a message of [`MESSAGE_BYTES_MAX`](crate::MESSAGE_BYTES_MAX).
pub const CHUNK_BYTES_MAX: u32 = 32 << 10;

/// Bytes of a chunk's digest: the beginning of its BLAKE3 hash. The whole network has a digest of 32 bytes.
pub const DIGEST_BYTES: usize = 16;

/// The most chunks that one [`Fetch`] may ask for.
pub const FETCH_CHUNKS_MAX: u16 = 16;

/// The most test photos of a manifest.
pub const TEST_PHOTOS_MAX: usize = 8;

/// What a signature covers before the manifest's bytes, so that it is good for nothing else that the key may sign.
pub const SIGNED_PREFIX: &[u8] = b"glimpse model manifest 1\0";

/// The bytes that are signed, for a manifest as it travels.
pub fn signed(manifest: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, manifest].concat()
}

/// What a query network is, and how a device knows that it has got it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Version of the manifest.
    pub v: u16,
    /// Larger than that of every manifest before it: the time of its signature, Unix time in milliseconds, or more.
    pub serial: u64,
    /// The network: hash of its ONNX file.
    pub model: ModelId,
    /// The space in which it embeds. A device takes only a network of the space that it lives in.
    pub space: SpaceId,
    /// Bytes of the ONNX file.
    pub bytes: u64,
    /// Bytes of every chunk but the last, which has the rest.
    pub chunk_bytes: u32,
    /// One digest of [`DIGEST_BYTES`] for each chunk, behind one another.
    pub digests: ByteBuf,
    /// The embeddings that the network should give for the test photos, `[photos, dimension]` in `f16`, little-endian.
    pub test_embeddings: ByteBuf,
    /// How many test photos there are, 1 to [`TEST_PHOTOS_MAX`].
    pub test_photos: u16,
}

keyed_map!(Manifest {
    0 v, 1 serial, 2 model, 3 space, 4 bytes, 5 chunk_bytes, 6 digests, 7 test_embeddings, 8 test_photos
});

/// What is wrong with a manifest by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Another version.
    #[error("the manifest has version {0}, and this program reads {version}", version = Manifest::VERSION)]
    Version(u16),
    /// More than [`MODEL_BYTES_MAX`], or nothing.
    #[error("the network has {0} bytes, and must have 1 to {MODEL_BYTES_MAX}")]
    Bytes(u64),
    /// More than [`CHUNK_BYTES_MAX`], or nothing.
    #[error("a chunk has {0} bytes, and must have 1 to {CHUNK_BYTES_MAX}")]
    ChunkBytes(u32),
    /// Not one digest for each chunk.
    #[error("{got} bytes of digests, and {expected} are needed")]
    Digests {
        /// Bytes that there are.
        got: usize,
        /// Bytes that there should be.
        expected: u64,
    },
    /// No embedding for each test photo.
    #[error("{bytes} bytes of embeddings are none for {photos} test photos")]
    Test {
        /// Bytes that there are.
        bytes: usize,
        /// Photos that there are said to be.
        photos: u16,
    },
}

impl Manifest {
    /// Version of the manifests that this crate knows.
    pub const VERSION: u16 = 1;

    /// Checks that its numbers hold together.
    ///
    /// # Errors
    /// The first that do not.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.v != Self::VERSION {
            return Err(ManifestError::Version(self.v));
        }
        if !(1..=MODEL_BYTES_MAX).contains(&self.bytes) {
            return Err(ManifestError::Bytes(self.bytes));
        }
        if !(1..=CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return Err(ManifestError::ChunkBytes(self.chunk_bytes));
        }
        let expected = u64::from(self.chunks()) * DIGEST_BYTES as u64;
        if self.digests.len() as u64 != expected {
            return Err(ManifestError::Digests { got: self.digests.len(), expected });
        }
        let (bytes, photos) = (self.test_embeddings.len(), self.test_photos);
        let whole = usize::from(photos) * 2;
        if !(1..=TEST_PHOTOS_MAX).contains(&usize::from(photos)) || bytes == 0 || !bytes.is_multiple_of(whole)
        {
            return Err(ManifestError::Test { bytes, photos });
        }
        Ok(())
    }

    /// How many chunks there are; at most 2^25 of them, and so many only where [`check`](Self::check) finds fault.
    pub fn chunks(&self) -> u32 {
        let chunks = self.bytes.min(MODEL_BYTES_MAX).div_ceil(u64::from(self.chunk_bytes.max(1)));
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    /// Where a chunk begins, and how many bytes it has; `None` behind the last.
    pub fn place(&self, chunk: u32) -> Option<(u64, usize)> {
        let begin = u64::from(chunk) * u64::from(self.chunk_bytes);
        let left = self.bytes.checked_sub(begin).filter(|left| *left > 0)?;
        Some((begin, left.min(u64::from(self.chunk_bytes)) as usize))
    }

    /// The digest that a chunk should have.
    pub fn digest(&self, chunk: u32) -> Option<&[u8]> {
        self.digests.as_chunks::<DIGEST_BYTES>().0.get(chunk as usize).map(<[u8; DIGEST_BYTES]>::as_slice)
    }

    /// Dimension of the embeddings.
    pub fn dimension(&self) -> usize {
        self.test_embeddings.len() / 2 / usize::from(self.test_photos.max(1))
    }
}

/// A manifest as it travels: its bytes and their signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Version of the message.
    pub v: u16,
    /// The CBOR of a [`Manifest`].
    pub manifest: ByteBuf,
    /// Ed25519 over [`signed`]`(manifest)`.
    pub signature: Signature,
}

keyed_map!(Offer { 0 v, 1 manifest, 2 signature });

/// An Ed25519 signature (RFC 8032).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Bytes::<64>).map(Self)
    }
}

/// A device asks for chunks of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Version of the message.
    pub v: u16,
    /// The network.
    pub model: ModelId,
    /// The chunks that are wanted, at most [`FETCH_CHUNKS_MAX`].
    pub chunks: heapless::Vec<u32, { FETCH_CHUNKS_MAX as usize }>,
}

keyed_map!(Fetch { 0 v, 1 model, 2 chunks });

/// One chunk of a network. Its keys are none of an [`Offer`], which comes on the same topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Version of the message.
    pub v: u16,
    /// The network.
    pub model: ModelId,
    /// Which chunk.
    pub chunk: u32,
    /// Its bytes.
    pub bytes: ByteBuf,
}

keyed_map!(Chunk { 0 v, 3 model, 4 chunk, 5 bytes });

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        Manifest {
            v: Manifest::VERSION,
            serial: 7,
            model: ModelId::from_bytes([1; 32]),
            space: SpaceId::from_bytes([2; 16]),
            bytes: 2500,
            chunk_bytes: 1000,
            digests: ByteBuf::from([3; 48]),
            test_embeddings: ByteBuf::from([4; 16]),
            test_photos: 2,
        }
    }

    fn cbor<T: Serialize>(message: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(message, &mut bytes).unwrap();
        bytes
    }

    fn check_comes_back<T: Serialize + de::DeserializeOwned + PartialEq + fmt::Debug>(message: &T) {
        assert_eq!(&ciborium::from_reader::<T, _>(cbor(message).as_slice()).unwrap(), message);
    }

    #[test]
    fn messages_survive_cbor_and_are_not_taken_for_one_another() {
        let (manifest, model) = (manifest(), ModelId::from_bytes([1; 32]));
        check_comes_back(&manifest);
        let offer = Offer { v: 1, manifest: ByteBuf::from(cbor(&manifest)), signature: Signature([5; 64]) };
        check_comes_back(&offer);
        check_comes_back(&Fetch { v: 1, model, chunks: (0..16).collect() });
        let chunk = Chunk { v: 1, model, chunk: 2, bytes: ByteBuf::from([0; 500]) };
        check_comes_back(&chunk);
        assert!(ciborium::from_reader::<Chunk, _>(cbor(&offer).as_slice()).is_err());
        assert!(ciborium::from_reader::<Offer, _>(cbor(&chunk).as_slice()).is_err());
        let more = std::vec![(0, 1), (2, 0)].into_iter().collect::<std::collections::BTreeMap<u8, u8>>();
        assert!(ciborium::from_reader::<Fetch, _>(cbor(&more).as_slice()).is_err());
    }

    #[test]
    fn the_largest_manifest_fits_in_a_message() {
        let chunks = MODEL_BYTES_MAX.div_ceil(u64::from(CHUNK_BYTES_MAX)) as usize;
        let manifest = Manifest {
            bytes: MODEL_BYTES_MAX,
            chunk_bytes: CHUNK_BYTES_MAX,
            digests: ByteBuf::from(std::vec![0; chunks * DIGEST_BYTES]),
            test_embeddings: ByteBuf::from(std::vec![0; 2 * 2 * 8192]),
            ..manifest()
        };
        manifest.check().unwrap();
        let offer = Offer { v: 1, manifest: ByteBuf::from(cbor(&manifest)), signature: Signature([5; 64]) };
        assert!(cbor(&offer).len() < crate::MESSAGE_BYTES_MAX);
        let model = manifest.model;
        let chunk =
            Chunk { v: 1, model, chunk: 2, bytes: ByteBuf::from(std::vec![0; CHUNK_BYTES_MAX as usize]) };
        assert!(cbor(&chunk).len() < crate::MESSAGE_BYTES_MAX);
    }

    #[test]
    fn chunks_cover_the_network() {
        let manifest = manifest();
        manifest.check().unwrap();
        assert_eq!((manifest.chunks(), manifest.dimension()), (3, 4));
        let places: Vec<_> = (0..4).map(|chunk| manifest.place(chunk)).collect();
        assert_eq!(places, [Some((0, 1000)), Some((1000, 1000)), Some((2000, 500)), None]);
        assert!(manifest.digest(2).is_some() && manifest.digest(3).is_none());
        assert_eq!(manifest.place(u32::MAX), None);
    }

    #[test]
    fn a_manifest_that_does_not_hold_together_is_told_why() {
        type Spoil = fn(&mut Manifest);
        let spoils: [(Spoil, &str); 9] = [
            (|m| m.v = 2, "version 2"),
            (|m| m.bytes = 0, "0 bytes"),
            (|m| m.bytes = MODEL_BYTES_MAX + 1, "must have 1 to"),
            (|m| m.chunk_bytes = 0, "a chunk has 0 bytes"),
            (|m| m.chunk_bytes = CHUNK_BYTES_MAX + 1, "a chunk has"),
            (|m| m.bytes = 3001, "48 bytes of digests, and 64 are needed"),
            (|m| m.test_photos = 0, "0 test photos"),
            (|m| m.test_photos = 9, "9 test photos"),
            (|m| m.test_embeddings = ByteBuf::from([0; 6]), "6 bytes of embeddings"),
        ];
        for (spoil, expected) in spoils {
            let mut manifest = manifest();
            spoil(&mut manifest);
            let told = std::string::ToString::to_string(&manifest.check().unwrap_err());
            assert!(told.contains(expected), "{told}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(manifest) = ciborium::from_reader::<Manifest, _>(bytes.as_slice()) {
                let _ = (manifest.check(), manifest.chunks(), manifest.dimension());
            }
            let _ = ciborium::from_reader::<Offer, _>(bytes.as_slice());
            let _ = ciborium::from_reader::<Fetch, _>(bytes.as_slice());
            let _ = ciborium::from_reader::<Chunk, _>(bytes.as_slice());
        }
    }
}
