//! Galleries of earlier formats, brought up to date when they are opened for writing: in one transaction, so that a kill leaves
//! the one or the other.
//!
//! Format 1 had the table `images` (path, label, hash of the photo, check) instead of `records`, and no changes.

use std::path::Path;

use glimpse_protocol::SpaceId;
use rand::TryRngCore as _;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition, TableHandle as _,
};

use super::write::write_header;
use super::{
    Attributes, CHANGES, CONTENTS, Content, FEATURES, Header, Image, META, Meta, RECORDS, StoreError,
    database_error,
};

type ImageRow1 = (&'static str, &'static str, &'static [u8; 32], &'static [u8; 8]);
pub(super) const IMAGES_1: TableDefinition<&str, ImageRow1> = TableDefinition::new("images");

/// Brings a database of an earlier format up to date; leaves any other as it is.
pub(super) fn to_newest(database: &Database, path: &Path) -> Result<(), StoreError> {
    let failed = |error: redb::Error| database_error(path, error);
    let is_first = || -> Result<bool, redb::Error> {
        let read = database.begin_read()?;
        let tables: Vec<String> = read.list_tables()?.map(|table| table.name().to_owned()).collect();
        Ok(tables.iter().any(|name| name == IMAGES_1.name()))
    };
    if is_first().map_err(failed)? {
        tracing::info!(gallery = %path.display(), "bringing a gallery of format 1 up to date");
        from_first(database, path)?;
    }
    Ok(())
}

fn from_first(database: &Database, path: &Path) -> Result<(), StoreError> {
    let mut gallery = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut gallery).map_err(|error| StoreError::Random(error.to_string()))?;
    let damaged = |reason: String| redb::Error::Corrupted(reason);
    let attempt = || -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        let (mut content, mut images) = (Content::default(), 0);
        {
            // Another process may have done it meanwhile.
            let old = match write.open_table(IMAGES_1) {
                Ok(old) if old.is_empty()? && write.open_table(RECORDS)?.first()?.is_some() => return Ok(()),
                other => other?,
            };
            let mut records = write.open_table(RECORDS)?;
            let features = write.open_table(FEATURES)?;
            for entry in old.iter()? {
                let (id, row) = entry?;
                let (path, label, photo_hash, check) = row.value();
                let feature = features.get(id.value())?;
                let feature = feature.ok_or_else(|| damaged(format!("{} has no feature", id.value())))?;
                let image = Image {
                    id: id.value().to_owned(),
                    path: path.to_owned(),
                    label: label.to_owned(),
                    attributes: Attributes::default(),
                    photo_hash: *photo_hash,
                };
                if check_1(&image, feature.value()) != *check {
                    return Err(damaged(format!("the record of {} has another checksum", image.id)));
                }
                let check = image.record_check(feature.value());
                let row: (&str, &str, &[u8], &[u8; 32], &[u8; 8]) = (path, label, &[], photo_hash, &check);
                records.insert(image.id.as_str(), row)?;
                content.add(&image.digest(check));
                images += 1;
            }
        }
        let meta = {
            let meta = write.open_table(META)?;
            let bytes = |name: &'static str| -> Result<Vec<u8>, redb::Error> {
                let value = meta.get(name)?.ok_or_else(|| damaged(format!("bad field {name}")))?;
                Ok(value.value().to_vec())
            };
            let number = |name| {
                let bytes = bytes(name)?.try_into().map_err(|_| damaged(format!("bad field {name}")))?;
                Ok::<_, redb::Error>(u64::from_le_bytes(bytes))
            };
            let space: [u8; 16] =
                bytes("space")?.try_into().map_err(|_| damaged("bad field space".to_owned()))?;
            let dimension = usize::try_from(number("dimension")?)
                .map_err(|_| damaged("bad field dimension".to_owned()))?;
            Meta { space: SpaceId::from_bytes(space), dimension, generation: number("generation")? }
        };
        let header = Header { meta, gallery, content, images, changes_from: meta.generation };
        write.delete_table(IMAGES_1)?;
        write.open_table(CHANGES)?;
        write.open_table(CONTENTS)?.insert(meta.generation, &content.to_bytes())?;
        write_header(&write, &header)?;
        write.commit()?;
        Ok(())
    };
    attempt().map_err(|error| database_error(path, error))
}

/// The check of a record of format 1.
pub(super) fn check_1(image: &Image, feature: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in
        [image.id.as_bytes(), image.path.as_bytes(), image.label.as_bytes(), &image.photo_hash, feature]
    {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}
