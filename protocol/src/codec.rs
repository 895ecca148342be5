//! An embedding as bytes.
//!
//! | codec | bytes for D dimensions | loss |
//! |---|---|---|
//! | `f32` | 4 D, little-endian | none |
//! | `f16` | 2 D, little-endian IEEE 754 half | relative 2^-11 a component |
//! | `i8` | D + 4: one `f32` scale, then D signed bytes | at most scale / 2 a component, scale = max / 127 |
//! | `pq` | M, one a sub-space | the product quantizer's; made and read with its codebook, not here |

use core::fmt;
use core::str::FromStr;

use half::f16;
use heapless::Vec;
use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::EMBEDDING_BYTES_MAX;

/// How an embedding is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Four bytes a dimension.
    F32,
    /// Two bytes a dimension.
    F16,
    /// One byte a dimension and a common scale.
    I8,
    /// Product quantizer codes, one byte a sub-space.
    Pq,
}

impl Codec {
    /// All codecs, as `--help` lists them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::I8, Self::Pq];

    /// The name in messages, configuration and command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
            Self::Pq => "pq",
        }
    }

    /// Dimensions that `bytes` bytes hold; `None` where the length fits no whole number of them.
    const fn dimension(self, bytes: usize) -> Option<usize> {
        match self {
            Self::F32 if bytes.is_multiple_of(4) => Some(bytes / 4),
            Self::F16 if bytes.is_multiple_of(2) => Some(bytes / 2),
            Self::I8 if bytes >= 4 => Some(bytes - 4),
            _ => None,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, CodecError> {
        Self::ALL.into_iter().find(|codec| codec.name() == text).ok_or(CodecError::Unknown)
    }
}

/// Why an embedding cannot be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CodecError {
    /// No codec has this name.
    #[error("unknown codec: the codecs are f32, f16, i8 and pq")]
    Unknown,
    /// The encoded embedding would not fit.
    #[error("an encoded embedding has at most {max} bytes")]
    TooLong {
        /// The most bytes there may be.
        max: usize,
    },
    /// The number of bytes fits no whole number of dimensions.
    #[error("{bytes} bytes are no whole embedding in this codec")]
    Length {
        /// How many bytes there were.
        bytes: usize,
    },
    /// The embedding has another dimension than the space.
    #[error("the embedding has {got} dimensions and the space has {expected}")]
    Dimension {
        /// Dimensions found.
        got: usize,
        /// Dimensions of the space.
        expected: usize,
    },
    /// A component is NaN or infinite.
    #[error("the embedding has a component that is not finite")]
    NotFinite,
    /// Codes can be read only with the codebook.
    #[error("a pq embedding is read with the quantizer's codebook")]
    NeedsCodebook,
}

/// An encoded embedding: codec and bytes, at most `BYTES` of them.
///
/// In JSON the field may also be an array of numbers, which reads as `f32` whatever `codec` says; the other codecs
/// are hexadecimal text there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedding<const BYTES: usize = EMBEDDING_BYTES_MAX> {
    /// How `bytes` are to be read.
    pub codec: Codec,
    /// The encoded components.
    pub bytes: Vec<u8, BYTES>,
}

impl<const BYTES: usize> Embedding<BYTES> {
    /// Encodes finite components, shape `[D]`.
    ///
    /// # Errors
    /// [`CodecError::NotFinite`], [`CodecError::TooLong`], and [`CodecError::NeedsCodebook`] for
    /// [`Codec::Pq`] (see [`Embedding::from_codes`]).
    pub fn encode(codec: Codec, components: &[f32]) -> Result<Self, CodecError> {
        if components.iter().any(|component| !component.is_finite()) {
            return Err(CodecError::NotFinite);
        }
        let mut bytes = Vec::new();
        let mut put =
            |part: &[u8]| bytes.extend_from_slice(part).map_err(|_| CodecError::TooLong { max: BYTES });
        match codec {
            Codec::F32 => components.iter().try_for_each(|x| put(&x.to_le_bytes()))?,
            Codec::F16 => components.iter().try_for_each(|x| put(&f16::from_f32(*x).to_le_bytes()))?,
            Codec::I8 => {
                let largest = components.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                // The smallest normal number keeps 1 / scale finite for an all-zero or denormal embedding.
                let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
                put(&scale.to_le_bytes())?;
                components.iter().try_for_each(|x| put(&round_to_i8(x / scale).to_le_bytes()))?;
            }
            Codec::Pq => return Err(CodecError::NeedsCodebook),
        }
        Ok(Self { codec, bytes })
    }

    /// Wraps product quantizer codes, one byte a sub-space.
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub fn from_codes(codes: &[u8]) -> Result<Self, CodecError> {
        let bytes = Vec::from_slice(codes).map_err(|_| CodecError::TooLong { max: BYTES })?;
        Ok(Self { codec: Codec::Pq, bytes })
    }

    /// Decodes into `components`, whose length is the dimension of the space.
    ///
    /// # Errors
    /// Whatever makes the bytes no embedding of that dimension; `components` is then unspecified.
    pub fn decode_into(&self, components: &mut [f32]) -> Result<(), CodecError> {
        if self.codec == Codec::Pq {
            return Err(CodecError::NeedsCodebook);
        }
        let bytes = self.bytes.as_slice();
        let got = self.codec.dimension(bytes.len()).ok_or(CodecError::Length { bytes: bytes.len() })?;
        if got != components.len() {
            return Err(CodecError::Dimension { got, expected: components.len() });
        }
        match self.codec {
            Codec::F32 => {
                for (x, part) in components.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*part);
                }
            }
            Codec::F16 => {
                for (x, part) in components.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f16::from_le_bytes(*part).to_f32();
                }
            }
            Codec::I8 | Codec::Pq => {
                let (scale, levels) =
                    bytes.split_first_chunk::<4>().ok_or(CodecError::Length { bytes: bytes.len() })?;
                let scale = f32::from_le_bytes(*scale);
                for (x, level) in components.iter_mut().zip(levels) {
                    *x = scale * f32::from(i8::from_le_bytes([*level]));
                }
            }
        }
        if components.iter().all(|x| x.is_finite()) { Ok(()) } else { Err(CodecError::NotFinite) }
    }
}

/// Rounds half away from zero without `std`. The argument is within +-127.5 by construction.
fn round_to_i8(x: f32) -> i8 {
    (if x < 0.0 { x - 0.5 } else { x + 0.5 }) as i8
}

/// The bytes alone: CBOR byte string, or JSON text or number array. The codec stands beside it in the message.
pub(crate) struct Payload<const BYTES: usize> {
    pub(crate) bytes: Vec<u8, BYTES>,
    pub(crate) numbers: bool,
}

impl<const BYTES: usize> Serialize for Embedding<BYTES> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.bytes);
        }
        if self.codec == Codec::F32 {
            return serializer
                .collect_seq(self.bytes.as_chunks::<4>().0.iter().map(|part| f32::from_le_bytes(*part)));
        }
        struct Hex<'a>(&'a [u8]);
        impl fmt::Display for Hex<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        serializer.collect_str(&Hex(&self.bytes))
    }
}

impl<'de, const BYTES: usize> Deserialize<'de> for Payload<BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const BYTES: usize>;

        impl<'de, const BYTES: usize> de::Visitor<'de> for Visitor<BYTES> {
            type Value = Payload<BYTES>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {BYTES} bytes, as a byte string, hexadecimal text or an array of numbers")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                let bytes = Vec::from_slice(bytes).map_err(|_| E::invalid_length(bytes.len(), &self))?;
                Ok(Payload { bytes, numbers: false })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let digits = text.as_bytes();
                if !digits.len().is_multiple_of(2) || digits.len() / 2 > BYTES {
                    return Err(E::invalid_length(digits.len(), &self));
                }
                let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
                let bytes: Option<Vec<u8, BYTES>> = digits
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?))
                    .collect();
                let bytes = bytes.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?;
                Ok(Payload { bytes, numbers: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut bytes = Vec::new();
                while let Some(number) = seq.next_element::<f32>()? {
                    bytes
                        .extend_from_slice(&number.to_le_bytes())
                        .map_err(|_| de::Error::invalid_length(bytes.len() / 4 + 1, &self))?;
                }
                Ok(Payload { bytes, numbers: true })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec as StdVec;

    fn decoded(codec: Codec, components: &[f32]) -> StdVec<f32> {
        let embedding: Embedding = Embedding::encode(codec, components).unwrap();
        let mut back = vec![0.0; components.len()];
        embedding.decode_into(&mut back).unwrap();
        back
    }

    proptest! {
        #[test]
        fn every_codec_keeps_components_within_its_bound(components in proptest::collection::vec(-1.0_f32..1.0, 0..300)) {
            prop_assert_eq!(&decoded(Codec::F32, &components), &components);
            for (x, y) in components.iter().zip(decoded(Codec::F16, &components)) {
                // Half precision: 11 significant bits, and 2^-25 near zero where it is denormal.
                prop_assert!((x - y).abs() <= x.abs() / 2048.0 + 3e-8);
            }
            let largest = components.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            for (x, y) in components.iter().zip(decoded(Codec::I8, &components)) {
                // Half a level, and a little for the rounding of x / scale itself.
                prop_assert!((x - y).abs() <= largest / 127.0 * 0.501);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), codec in 0..4_usize, dimension in 0..64_usize) {
            let embedding = Embedding::<256> { codec: Codec::ALL[codec], bytes: bytes.into_iter().collect() };
            let _ = embedding.decode_into(&mut vec![0.0; dimension]);
        }
    }

    #[test]
    fn refuses_what_is_no_embedding() {
        let encode = |codec, x: &[f32]| Embedding::<16>::encode(codec, x).unwrap_err();
        assert_eq!(encode(Codec::F32, &[f32::NAN]), CodecError::NotFinite);
        assert_eq!(encode(Codec::I8, &[f32::INFINITY]), CodecError::NotFinite);
        assert_eq!(encode(Codec::F32, &[0.0; 5]), CodecError::TooLong { max: 16 });
        assert_eq!(encode(Codec::Pq, &[0.0]), CodecError::NeedsCodebook);

        let decode = |codec, bytes: &[u8], dimension| {
            Embedding::<64> { codec, bytes: Vec::from_slice(bytes).unwrap() }
                .decode_into(&mut vec![0.0; dimension])
                .unwrap_err()
        };
        assert_eq!(decode(Codec::F32, &[0; 7], 2), CodecError::Length { bytes: 7 });
        assert_eq!(decode(Codec::I8, &[0; 3], 2), CodecError::Length { bytes: 3 });
        assert_eq!(decode(Codec::F16, &[0; 8], 3), CodecError::Dimension { got: 4, expected: 3 });
        assert_eq!(decode(Codec::F32, &f32::NAN.to_le_bytes(), 1), CodecError::NotFinite);
        assert_eq!(decode(Codec::I8, &[0, 0, 0x80, 0x7f, 1], 1), CodecError::NotFinite);
        assert_eq!(decode(Codec::Pq, &[0; 4], 4), CodecError::NeedsCodebook);
    }

    #[test]
    fn an_all_zero_embedding_stays_zero() {
        assert_eq!(decoded(Codec::I8, &[0.0; 4]), [0.0; 4]);
    }
}
