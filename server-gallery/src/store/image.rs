//! What is known of an image besides its feature, and what an image must be to be stored.

use std::collections::BTreeMap;
use std::collections::btree_map;

use glimpse_protocol::{IMAGE_ID_BYTES_MAX, LABEL_BYTES_MAX};
use thiserror::Error;

/// The longest path of a photo, in bytes: as much as Linux takes.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// Attributes of one image, at most.
pub const ATTRIBUTES_MAX: usize = 16;

/// The longest name of an attribute, in bytes.
pub(super) const ATTRIBUTE_NAME_BYTES_MAX: usize = 32;

/// The longest value of an attribute, in bytes: as long as a label.
pub const ATTRIBUTE_BYTES_MAX: usize = LABEL_BYTES_MAX;

/// Names that an attribute cannot have, for they mean something already.
const RESERVED: [&str; 4] = ["id", "image", "label", "path"];

/// One image of the gallery, without its feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its identity in replies: the relative path it was ingested from.
    pub id: String,
    /// Where the photo was when it was ingested; empty where only its feature came.
    pub path: String,
    /// What it shows; may be empty.
    pub label: String,
    /// What else is known of it, for filters.
    pub attributes: Attributes,
    /// BLAKE3 of the photo's bytes: an unchanged photo is not embedded again. Zeros where there was no photo.
    pub photo_hash: [u8; 32],
}

/// Values by name, in the order of the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(BTreeMap<String, String>);

/// Why an image cannot be in a gallery.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ImageError {
    /// The id is empty or too long for a reply.
    #[error(
        "the image id has {bytes} bytes, and 1 to {IMAGE_ID_BYTES_MAX} are allowed: use shorter paths, or --root"
    )]
    Id {
        /// Its length.
        bytes: usize,
    },
    /// Lists and logs are lines.
    #[error("the {0} has a line break or another control character: take it out")]
    Character(&'static str),
    /// The label is too long for a reply.
    #[error("the label has {bytes} bytes, and at most {LABEL_BYTES_MAX} are allowed: shorten it")]
    Label {
        /// Its length.
        bytes: usize,
    },
    /// The path is longer than any file's.
    #[error("the path has {bytes} bytes, and at most {PATH_BYTES_MAX} are allowed")]
    Path {
        /// Its length.
        bytes: usize,
    },
    /// Too many attributes.
    #[error("it has {0} attributes, and at most {ATTRIBUTES_MAX} are allowed")]
    Attributes(usize),
    /// An attribute's name is none.
    #[error(
        "an attribute cannot be called `{0}`: 1 to {ATTRIBUTE_NAME_BYTES_MAX} letters, digits, `-` and `_` are allowed, but not id, image, label and path"
    )]
    AttributeName(String),
    /// An attribute's value is too long.
    #[error("the attribute {name} has {bytes} bytes, and at most {ATTRIBUTE_BYTES_MAX} are allowed")]
    Attribute {
        /// Its name.
        name: String,
        /// The length of its value.
        bytes: usize,
    },
    /// The feature has another dimension than the gallery.
    #[error("the feature has {got} components, and the gallery has {expected}")]
    Dimension {
        /// Components found.
        got: usize,
        /// Components expected.
        expected: usize,
    },
    /// The feature is no direction.
    #[error("the feature is not a finite unit vector (squared norm {squared_norm})")]
    NotUnit {
        /// Sum of squares.
        squared_norm: f32,
    },
}

impl Attributes {
    /// Gives a name a value; an empty one removes it.
    ///
    /// # Errors
    /// A name or a value that cannot be stored.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ImageError> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let good = (1..=ATTRIBUTE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(letter);
        if !good || RESERVED.contains(&name) {
            return Err(ImageError::AttributeName(name.chars().take(2 * ATTRIBUTE_NAME_BYTES_MAX).collect()));
        }
        if value.len() > ATTRIBUTE_BYTES_MAX {
            return Err(ImageError::Attribute { name: name.to_owned(), bytes: value.len() });
        }
        if value.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), value.to_owned());
        }
        if self.0.len() > ATTRIBUTES_MAX { Err(ImageError::Attributes(self.0.len())) } else { Ok(()) }
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values one after another, each behind its length in one byte: half of what JSON takes, and read without
    /// memory of one's own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            let length = u8::try_from(text.len()).expect("names and values have less than 256 bytes");
            bytes.push(length);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    /// What [`encode`](Self::encode) wrote; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut attributes = Self::default();
        let mut texts = EncodedTexts(bytes);
        while let Some(name) = texts.next() {
            attributes.set(name, texts.next()?).ok()?;
        }
        (texts.0.is_empty() && attributes.encode() == bytes).then_some(attributes)
    }
}

impl<'a> IntoIterator for &'a Attributes {
    type Item = (&'a String, &'a String);
    type IntoIter = btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Reads encoded attributes text by text; ends where they are damaged.
pub(crate) struct EncodedTexts<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for EncodedTexts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (length, rest) = self.0.split_first()?;
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        let text = std::str::from_utf8(text).ok()?;
        self.0 = rest;
        Some(text)
    }
}

impl Image {
    /// Checks what a reply and a line can carry.
    ///
    /// # Errors
    /// All of [`ImageError`] that do not concern the feature.
    pub fn check(&self) -> Result<(), ImageError> {
        self.fits()?;
        for (name, text) in [("image id", &self.id), ("label", &self.label), ("path", &self.path)] {
            if text.chars().any(char::is_control) {
                return Err(ImageError::Character(name));
            }
        }
        Ok(())
    }

    /// Checks the lengths alone: earlier versions stored texts with line breaks.
    pub(super) fn fits(&self) -> Result<(), ImageError> {
        if self.id.is_empty() || self.id.len() > IMAGE_ID_BYTES_MAX {
            return Err(ImageError::Id { bytes: self.id.len() });
        }
        if self.label.len() > LABEL_BYTES_MAX {
            return Err(ImageError::Label { bytes: self.label.len() });
        }
        if self.path.len() > PATH_BYTES_MAX {
            return Err(ImageError::Path { bytes: self.path.len() });
        }
        Ok(())
    }

    /// Ties photo, label, attributes and feature together: a damaged record is found when it is read, whatever redb thinks
    /// of it.
    pub(super) fn record_check(&self, feature: &[u8]) -> [u8; 8] {
        let mut check = [0; 8];
        check.copy_from_slice(&self.hash(blake3::Hasher::new(), feature).as_bytes()[..8]);
        check
    }

    /// What the record with this check adds to the gallery's [`Content`].
    pub(super) fn digest(&self, check: [u8; 8]) -> [u8; 32] {
        *self.hash(blake3::Hasher::new_derive_key("glimpse gallery record v2"), &check).as_bytes()
    }

    fn hash(&self, mut hasher: blake3::Hasher, last: &[u8]) -> blake3::Hash {
        let attributes = self.attributes.encode();
        for part in [
            self.id.as_bytes(),
            self.path.as_bytes(),
            self.label.as_bytes(),
            &attributes,
            &self.photo_hash,
            last,
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// What a gallery holds, in 32 bytes: the sum of its records' digests in four lanes of 64 bits. A commit changes it by what
/// it changes, so that nobody need read a million records to know whether an index is of this gallery; and whoever does read
/// all of them finds a record that damage has hidden. It is no proof against somebody who chooses records to collide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Content([u64; 4]);

impl Content {
    pub(super) fn add(&mut self, digest: &[u8; 32]) {
        self.each(digest, u64::wrapping_add);
    }

    pub(super) fn subtract(&mut self, digest: &[u8; 32]) {
        self.each(digest, u64::wrapping_sub);
    }

    fn each(&mut self, digest: &[u8; 32], operation: fn(u64, u64) -> u64) {
        for (lane, bytes) in self.0.iter_mut().zip(digest.as_chunks::<8>().0) {
            *lane = operation(*lane, u64::from_le_bytes(*bytes));
        }
    }

    /// As bytes, to be kept.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (bytes, lane) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *bytes = lane.to_le_bytes();
        }
        bytes
    }

    /// From the bytes that were kept.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut content = Self::default();
        content.add(bytes);
        content
    }
}

/// A unit feature as it is stored, `[D]` little-endian `f32`.
pub(super) fn encode_feature(feature: &[f32], dimension: usize) -> Result<Vec<u8>, ImageError> {
    if feature.len() != dimension {
        return Err(ImageError::Dimension { got: feature.len(), expected: dimension });
    }
    let squared_norm: f32 = feature.iter().map(|x| x * x).sum();
    // Rounding of D squares and of the division by the norm; an embedder that does not normalise is far outside.
    if !(squared_norm - 1.0).abs().le(&1e-3) {
        return Err(ImageError::NotUnit { squared_norm });
    }
    Ok(feature.iter().flat_map(|x| x.to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_from_their_bytes_and_nothing_else_does() {
        let mut attributes = Attributes::default();
        for (name, value) in [("room", "3"), ("artist", "Käthe"), ("empty", "")] {
            attributes.set(name, value).unwrap();
        }
        assert_eq!((attributes.get("artist"), attributes.get("empty")), (Some("Käthe"), None));
        let bytes = attributes.encode();
        assert_eq!(Attributes::decode(&bytes), Some(attributes));
        assert_eq!(Attributes::decode(&[]), Some(Attributes::default()));
        for length in 1..bytes.len() {
            let cut = Attributes::decode(&bytes[..length]);
            assert!(cut.is_none_or(|cut| cut.encode() == bytes[..length]), "{length}");
        }
        // Twice the same name, names in another order, a text beyond the end, no UTF-8.
        for bytes in [&b"\x01a\x01b\x01a\x01c"[..], b"\x01b\x01b\x01a\x01c", b"\x01a\x05b", b"\x01a\x01\xff"]
        {
            assert_eq!(Attributes::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn an_attribute_that_cannot_be_stored_is_refused_by_name() {
        let mut attributes = Attributes::default();
        for name in ["", "label", "two words", &"x".repeat(33), "a\n"] {
            assert!(matches!(attributes.set(name, "1"), Err(ImageError::AttributeName(_))), "{name}");
        }
        let long = attributes.set("a", &"x".repeat(ATTRIBUTE_BYTES_MAX + 1));
        assert!(long.unwrap_err().to_string().contains("the attribute a has 97 bytes"));
        (0..ATTRIBUTES_MAX).for_each(|n| attributes.set(&format!("a{n}"), "1").unwrap());
        assert_eq!(attributes.set("more", "1"), Err(ImageError::Attributes(17)));
    }

    #[test]
    fn a_content_is_what_was_added_and_not_taken_away_in_any_order() {
        let [a, b, c] = [[1; 32], [0xff; 32], [7; 32]];
        let (mut one, mut other) = (Content::default(), Content::default());
        for digest in [a, b, c] {
            one.add(&digest);
        }
        one.subtract(&b);
        other.add(&c);
        other.add(&a);
        assert_eq!(one, other);
        assert_eq!(Content::from_bytes(&one.to_bytes()), one);
        assert_ne!(one, Content::default());
    }
}
