//! What is known of the images of an index, in the order of their ids: packed, so that a million of them can lie in a mapped file
//! and be found without being read.
//!
//! A record is the lengths of its parts (id and label in one byte each, path and attributes in two), the photo's hash and the
//! parts themselves; attributes are names and values, each behind its length. Offsets are little-endian, of 8 bytes.

use crate::memory::Bytes;
use crate::store::{EncodedTexts, Image};

/// Bytes before the parts of a record.
const LENGTHS: usize = 6;

/// The images of an index.
#[derive(Debug)]
pub struct Catalogue {
    /// Where each record begins, and where the last one ends.
    offsets: Bytes,
    records: Bytes,
}

/// One image of a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its id.
    pub id: &'a str,
    /// What it shows; may be empty.
    pub label: &'a str,
    /// Where the photo was when it was ingested; may be empty.
    pub path: &'a str,
    /// BLAKE3 of the photo's bytes; zeros where there was no photo.
    pub photo_hash: &'a [u8; 32],
    attributes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Names and values of the attributes, in the order of the names.
    pub fn attributes(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut texts = EncodedTexts(self.attributes);
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&'a str> {
        self.attributes().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// `None` for bytes that are no record.
    fn read(record: &'a [u8]) -> Option<Self> {
        let (lengths, rest) = record.split_at_checked(LENGTHS)?;
        let two = |place: usize| usize::from(u16::from_le_bytes([lengths[place], lengths[place + 1]]));
        let (photo_hash, rest) = rest.split_first_chunk::<32>()?;
        let (id, rest) = rest.split_at_checked(usize::from(lengths[0]))?;
        let (label, rest) = rest.split_at_checked(usize::from(lengths[1]))?;
        let (path, attributes) = rest.split_at_checked(two(2))?;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        (attributes.len() == two(4)).then_some(())?;
        Some(Self { id: text(id)?, label: text(label)?, path: text(path)?, photo_hash, attributes })
    }
}

impl Catalogue {
    /// From two sections of a file; `None` where they are no catalogue of so many images.
    pub(crate) fn from_bytes(offsets: Bytes, records: Bytes, count: usize) -> Option<Self> {
        let whole = count.checked_add(1)?.checked_mul(8)? == offsets.len();
        let catalogue = Self { offsets, records };
        let mut last: Option<&str> = None;
        let mut good =
            whole && catalogue.offset(0) == 0 && catalogue.offset(count) == catalogue.records.len();
        for row in 0..count {
            good = good
                && catalogue.record(row).and_then(Entry::read).is_some_and(|entry| {
                    let ascending = last.is_none_or(|last| last < entry.id);
                    last = Some(entry.id);
                    ascending && entry.attributes().all(|(name, _)| !name.is_empty())
                });
            if !good {
                return None;
            }
        }
        good.then_some(catalogue)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        (self.offsets.len() / 8).saturating_sub(1)
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The image of a row.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn get(&self, row: u32) -> Entry<'_> {
        let record = self.record(row as usize).expect("a row of this catalogue");
        Entry::read(record).expect("records were checked when the catalogue was made or read")
    }

    /// The row of an id.
    pub fn find(&self, id: &str) -> Option<u32> {
        let row = self.first_where(|other| other >= id);
        ((row as usize) < self.len() && self.get(row).id == id).then_some(row)
    }

    /// The row of the first id that is greater than one; the number of images where there is none.
    pub fn after(&self, id: &str) -> u32 {
        self.first_where(|other| other > id)
    }

    /// The first row whose id holds, where all after it hold too.
    fn first_where(&self, holds: impl Fn(&str) -> bool) -> u32 {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if holds(self.get(middle as u32).id) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low as u32
    }

    /// All images, in the order of the ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        (0..self.len() as u32).map(|row| self.get(row))
    }

    /// The offsets, as they are kept in a file.
    pub(crate) fn offsets(&self) -> &[u8] {
        &self.offsets
    }

    /// The records, as they are kept in a file.
    pub(crate) fn records(&self) -> &[u8] {
        &self.records
    }

    fn offset(&self, row: usize) -> usize {
        let bytes = self.offsets.get(8 * row..8 * row + 8).and_then(|bytes| bytes.first_chunk::<8>());
        bytes.map_or(0, |bytes| usize::try_from(u64::from_le_bytes(*bytes)).unwrap_or(usize::MAX))
    }

    fn record(&self, row: usize) -> Option<&[u8]> {
        self.records.get(self.offset(row)..self.offset(row + 1))
    }
}

/// Makes a catalogue of images that come in the order of their ids.
#[derive(Debug)]
pub struct CatalogueBuilder {
    offsets: Vec<u8>,
    records: Vec<u8>,
}

impl Default for CatalogueBuilder {
    fn default() -> Self {
        Self { offsets: 0_u64.to_le_bytes().to_vec(), records: Vec::new() }
    }
}

impl CatalogueBuilder {
    /// Adds an image that the store has checked, whose id is greater than those before.
    pub fn push(&mut self, image: &Image) {
        let attributes = image.attributes.encode();
        let one = |text: &str| u8::try_from(text.len()).expect("the store refuses longer ids and labels");
        let two =
            |length: usize| u16::try_from(length).expect("the store refuses longer paths and attributes");
        self.records.extend([one(&image.id), one(&image.label)]);
        self.records.extend(two(image.path.len()).to_le_bytes());
        self.records.extend(two(attributes.len()).to_le_bytes());
        self.records.extend(image.photo_hash);
        for part in [image.id.as_bytes(), image.label.as_bytes(), image.path.as_bytes(), &attributes] {
            self.records.extend_from_slice(part);
        }
        self.offsets.extend((self.records.len() as u64).to_le_bytes());
    }

    /// Number of images so far.
    pub fn len(&self) -> usize {
        self.offsets.len() / 8 - 1
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The catalogue.
    pub fn finish(self) -> Catalogue {
        Catalogue { offsets: Bytes::Owned(self.offsets), records: Bytes::Owned(self.records) }
    }
}

impl<'a> FromIterator<&'a Image> for Catalogue {
    fn from_iter<I: IntoIterator<Item = &'a Image>>(images: I) -> Self {
        let mut builder = CatalogueBuilder::default();
        images.into_iter().for_each(|image| builder.push(image));
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Attributes;

    fn image(id: &str, label: &str, attributes: &[(&str, &str)]) -> Image {
        let mut all = Attributes::default();
        attributes.iter().for_each(|(name, value)| all.set(name, value).unwrap());
        let path = format!("/photos/{id}");
        Image { id: id.to_owned(), path, label: label.to_owned(), attributes: all, photo_hash: [0; 32] }
    }

    fn three() -> Catalogue {
        let images = [
            image("a.jpg", "apple", &[("room", "3"), ("artist", "Käthe")]),
            image("b.jpg", "", &[]),
            image("é.jpg", "pear", &[("room", "4")]),
        ];
        images.iter().collect()
    }

    fn again(offsets: &[u8], records: &[u8], count: usize) -> Option<Catalogue> {
        Catalogue::from_bytes(Bytes::Owned(offsets.to_vec()), Bytes::Owned(records.to_vec()), count)
    }

    #[test]
    fn images_are_found_by_row_and_by_id() {
        let catalogue = three();
        let catalogue = again(catalogue.offsets(), catalogue.records(), 3).unwrap();
        assert_eq!((catalogue.len(), catalogue.is_empty()), (3, false));
        let first = catalogue.get(0);
        assert_eq!((first.id, first.label, first.path), ("a.jpg", "apple", "/photos/a.jpg"));
        assert_eq!(first.attributes().collect::<Vec<_>>(), [("artist", "Käthe"), ("room", "3")]);
        assert_eq!((first.attribute("room"), first.attribute("floor")), (Some("3"), None));
        assert_eq!(
            catalogue.iter().map(|entry| catalogue.find(entry.id)).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2)]
        );
        for absent in ["", "a", "b.jpgx", "z"] {
            assert_eq!(catalogue.find(absent), None, "{absent}");
        }
        let nothing = again(&0_u64.to_le_bytes(), &[], 0).unwrap();
        assert!(nothing.is_empty() && nothing.find("a").is_none());
    }

    #[test]
    fn what_is_no_catalogue_is_refused() {
        let catalogue = three();
        let (offsets, records) = (catalogue.offsets().to_vec(), catalogue.records().to_vec());
        assert!(again(&offsets, &records, 2).is_none() && again(&offsets, &records, 4).is_none());
        assert!(again(&offsets, &records[..records.len() - 1], 3).is_none());
        assert!(again(&offsets[..8], &[], usize::MAX).is_none());
        // Rows in another order.
        let swapped: Catalogue = [image("b", "", &[]), image("a", "", &[])].iter().collect();
        assert!(again(swapped.offsets(), swapped.records(), 2).is_none());
    }

    proptest! {
        #[test]
        fn damage_is_refused_or_reads_as_some_catalogue(place in 0..300_usize, value in any::<u8>()) {
            let catalogue = three();
            let (mut offsets, mut records) = (catalogue.offsets().to_vec(), catalogue.records().to_vec());
            let place = place % (offsets.len() + records.len());
            if place < offsets.len() { offsets[place] = value } else { records[place - 32] = value }
            if let Some(read) = again(&offsets, &records, 3) {
                prop_assert_eq!(read.iter().filter(|entry| read.find(entry.id).is_some()).count(), 3);
            }
        }
    }
}
