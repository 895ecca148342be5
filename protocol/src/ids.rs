//! Identities: who asks, in which space, and which query.

use core::fmt;
use core::str::FromStr;

use heapless::String;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Why a text is not an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdError {
    /// A space or query id is 32 hexadecimal digits.
    #[error("expected 32 hexadecimal digits")]
    NotHex,
    /// A device name has 1 to 64 characters.
    #[error("a device name has 1 to 64 characters")]
    Length,
    /// A device name becomes an MQTT topic level, so `/`, `+`, `#` and spaces are out.
    #[error("a device name has only letters, digits, '-', '_' and '.'")]
    Character,
}

fn parse_hex(text: &str) -> Result<[u8; 16], IdError> {
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(IdError::NotHex);
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8).ok_or(IdError::NotHex);
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

/// Sixteen bytes: hexadecimal where a person reads, a byte string where not.
struct Bytes16;

impl de::Visitor<'_> for Bytes16 {
    type Value = [u8; 16];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("16 bytes, or 32 hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<[u8; 16], E> {
        parse_hex(text).map_err(E::custom)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<[u8; 16], E> {
        bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}

macro_rules! id_of_16_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps the bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The bytes, as they go on the wire.
            pub const fn as_bytes(&self) -> &[u8; 16] {
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
                    deserializer.deserialize_str(Bytes16).map(Self)
                } else {
                    // Any: a client that writes CBOR with hexadecimal text is understood too.
                    deserializer.deserialize_any(Bytes16).map(Self)
                }
            }
        }
    };
}

id_of_16_bytes! {
    /// Fingerprint of an embedding space: the first 16 bytes of a BLAKE3 hash over what makes two embeddings
    /// comparable (gallery model, preprocessing, dimension). Sixteen bytes keep a `pq` query under 100 bytes, and
    /// nobody gains by a forged collision: whoever can replace a model can also replace its id.
    SpaceId
}

id_of_16_bytes! {
    /// Identity of one query, chosen at random by the device; also the MQTT correlation data. Sending a query
    /// again under the same id gets the same reply and is not searched twice.
    QueryId
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
    fn rejects_text_that_is_no_id() {
        for text in [
            "",
            "00",
            "zz112233445566778899aabbccddeeff",
            "+0112233445566778899aabbccddeeff",
            "é0112233445566778899aabbccddeef",
        ] {
            assert_eq!(text.parse::<SpaceId>(), Err(IdError::NotHex), "{text}");
        }
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
