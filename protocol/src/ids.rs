//! Identities: who asks, in which space, and which query.

use core::fmt;
use core::str::FromStr;

use heapless::String;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Why a text is not an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdError {
    /// An id is so many hexadecimal digits.
    #[error("expected {0} hexadecimal digits")]
    NotHex(usize),
    /// A device name has 1 to 64 characters.
    #[error("a device name has 1 to 64 characters")]
    Length,
    /// A device name becomes an MQTT topic level, so `/`, `+`, `#` and spaces are out.
    #[error("a device name has only letters, digits, '-', '_' and '.'")]
    Character,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    let digits = text.as_bytes();
    let wrong = IdError::NotHex(2 * N);
    if digits.len() != 2 * N {
        return Err(wrong);
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8).ok_or(wrong);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

/// So many bytes: hexadecimal where a person reads, a byte string where not.
pub(crate) struct Bytes<const N: usize>;

impl<const N: usize> de::Visitor<'_> for Bytes<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes, or {} hexadecimal digits", 2 * N)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<[u8; N], E> {
        parse_hex(text).map_err(E::custom)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<[u8; N], E> {
        bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}

macro_rules! id_of_bytes {
    ($(#[$doc:meta])* $name:ident($bytes:literal)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// Wraps the bytes.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The bytes, as they go on the wire.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Bytes::<$bytes>).map(Self)
                } else {
                    // Any: a client that writes CBOR with hexadecimal text is understood too.
                    deserializer.deserialize_any(Bytes::<$bytes>).map(Self)
                }
            }
        }
    };
}

id_of_bytes! {
    /// Fingerprint of an embedding space: the first 16 bytes of a BLAKE3 hash over what makes two embeddings
    /// comparable (gallery model, preprocessing, dimension). Sixteen bytes keep a `pq` query under 100 bytes, and
    /// nobody gains by a forged collision: whoever can replace a model can also replace its id.
    SpaceId(16)
}

id_of_bytes! {
    /// Identity of one query, chosen at random by the device; also the MQTT correlation data. Sending a query
    /// again under the same id gets the same reply and is not searched twice.
    QueryId(16)
}

id_of_bytes! {
    /// Identity of a query network: the BLAKE3 hash of its ONNX file. What a device runs is told apart by it.
    ModelId(32)
}

id_of_bytes! {
    /// Who may give devices a new query network: an Ed25519 public key (RFC 8032).
    ModelKey(32)
}

impl ModelKey {
    /// Whether this is one of the few points under which anybody can sign: those of small order, in every encoding, as
    /// libsodium lists them. The top bit is the sign of x, and does not matter here.
    pub fn is_weak(&self) -> bool {
        const TAIL: [u8; 31] = [0; 31];
        let (first, mut rest) = (self.0[0], [0; 31]);
        rest.copy_from_slice(&self.0[1..]);
        rest[30] &= 0x7f;
        let mut near_p = [0xff; 31];
        near_p[30] = 0x7f;
        let of_order_8 = [
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        ];
        let is_of_order_8 =
            |text: &&str| parse_hex::<32>(text).is_ok_and(|point| point[0] == first && point[1..] == rest);
        (rest == TAIL && first <= 1)
            || (rest == near_p && (0xec..=0xee).contains(&first))
            || of_order_8.iter().any(is_of_order_8)
    }
}

/// Name of a device: 1 to 64 letters, digits, `-`, `_` or `.`. It is one level of the device's topics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(String<64>);

impl DeviceId {
    /// Checks a name.
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn new(name: &str) -> Result<Self, IdError> {
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(IdError::Character);
        }
        if name.is_empty() {
            return Err(IdError::Length);
        }
        String::try_from(name).map(Self).map_err(|_| IdError::Length)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DeviceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn space_id_survives_text() {
        let id = SpaceId::from_bytes(core::array::from_fn(|i| i as u8 * 17));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn keys_of_small_order_are_weak_with_either_sign() {
        let end = |first: &str, last: &str| std::format!("{first}{}{last}", "ff".repeat(30));
        let weak = [
            "00".repeat(32),
            std::format!("01{}", "00".repeat(31)),
            std::format!("{}80", "00".repeat(31)),
            end("ec", "7f"),
            end("ed", "ff"),
            end("ee", "7f"),
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85".to_string(),
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a".to_string(),
        ];
        for key in weak {
            assert!(key.parse::<ModelKey>().unwrap().is_weak(), "{key}");
        }
        // RFC 8032, section 7.1, tests 1 and 2.
        for key in [
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ] {
            assert!(!key.parse::<ModelKey>().unwrap().is_weak(), "{key}");
        }
    }

    #[test]
    fn rejects_text_that_is_no_id() {
        for text in [
            "",
            "00",
            "zz112233445566778899aabbccddeeff",
            "+0112233445566778899aabbccddeeff",
            "é0112233445566778899aabbccddeef",
        ] {
            assert_eq!(text.parse::<SpaceId>(), Err(IdError::NotHex(32)), "{text}");
        }
        assert_eq!("00".parse::<ModelId>().unwrap_err().to_string(), "expected 64 hexadecimal digits");
    }

    #[test]
    fn rejects_device_names_that_would_change_a_topic() {
        for name in ["a/b", "+", "#", "two words", "caf\u{e9}"] {
            assert_eq!(DeviceId::new(name), Err(IdError::Character), "{name}");
        }
        assert_eq!(DeviceId::new(""), Err(IdError::Length));
        assert_eq!(DeviceId::new(&"x".repeat(65)), Err(IdError::Length));
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
    }
}
