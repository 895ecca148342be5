//! The durable gallery: one folder with one redb database, `gallery.redb`.
//!
//! redb, because it is pure Rust (it cross-compiles like the rest of us) and crash-safe by default: a commit is on the
//! disk when it returns, and whatever a kill or a power cut interrupted is absent when the file is opened next.
//!
//! | table | key | value |
//! |---|---|---|
//! | `images` | image id | path of the photo, label, BLAKE3 of the photo, check of the whole record |
//! | `features` | image id | the unit embedding, `[D]` little-endian `f32` |
//! | `meta` | name | format version, space, dimension, generation |
//!
//! [`Store`] writes, one process at a time; [`load`] reads all of it into a [`Snapshot`] and lets go of the file, so a
//! server answers from memory while an ingest adds. The store holds no codes: they follow from the features and the
//! codebook (see [`crate::index`]), so that another codebook never meets old codes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use glimpse_protocol::{IMAGE_ID_BYTES_MAX, LABEL_BYTES_MAX, SpaceId};
use redb::{Database, DatabaseError, ReadOnlyDatabase, ReadableDatabase, ReadableTable, TableDefinition};
use thiserror::Error;

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u64 = 1;

/// Name of the database in the gallery's folder.
pub const FILE: &str = "gallery.redb";

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const IMAGES: TableDefinition<&str, ImageRow> = TableDefinition::new("images");
const FEATURES: TableDefinition<&str, &[u8]> = TableDefinition::new("features");

/// What a gallery holds, apart from its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The space in which its features live.
    pub space: SpaceId,
    /// Components of a feature, `D`.
    pub dimension: usize,
    /// Grows with every commit.
    pub generation: u64,
}

/// One image of the gallery, without its feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its identity in replies: the relative path it was ingested from.
    pub id: String,
    /// Where the photo was when it was ingested.
    pub path: String,
    /// What it shows; may be empty.
    pub label: String,
    /// BLAKE3 of the photo's bytes: an unchanged photo is not embedded again.
    pub photo_hash: [u8; 32],
}

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
    /// The label is too long for a reply.
    #[error("the label has {bytes} bytes, and at most {LABEL_BYTES_MAX} are allowed: shorten it")]
    Label {
        /// Its length.
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

impl Image {
    /// Checks what a reply can carry.
    ///
    /// # Errors
    /// [`ImageError::Id`] and [`ImageError::Label`].
    pub fn check(&self) -> Result<(), ImageError> {
        if self.id.is_empty() || self.id.len() > IMAGE_ID_BYTES_MAX {
            return Err(ImageError::Id { bytes: self.id.len() });
        }
        if self.label.len() > LABEL_BYTES_MAX {
            return Err(ImageError::Label { bytes: self.label.len() });
        }
        Ok(())
    }

    /// Ties photo, label and feature together: a damaged record is found when it is read, whatever redb thinks of it.
    fn record_check(&self, feature: &[u8]) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new();
        for part in
            [self.id.as_bytes(), self.path.as_bytes(), self.label.as_bytes(), &self.photo_hash, feature]
        {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut check = [0; 8];
        check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        check
    }
}

/// Why a gallery cannot be opened, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no gallery in the folder.
    #[error("{0} holds no gallery: make one with `glimpse-gallery ingest`")]
    Missing(PathBuf),
    /// Another process writes to it.
    #[error("{0} is open in another process: wait for its ingest to end, or stop it")]
    InUse(PathBuf),
    /// The gallery belongs to another space.
    #[error(
        "{path} holds a gallery of space {found}, and the bundle is of space {expected}: use the bundle it was made with, or another --gallery folder"
    )]
    OtherSpace {
        /// The gallery.
        path: PathBuf,
        /// Its space.
        found: SpaceId,
        /// The bundle's space.
        expected: SpaceId,
    },
    /// The same space with another dimension; somebody edited the bundle.
    #[error(
        "{path} holds features of {found} dimensions, and the bundle has {expected}: the bundle's space.toml was changed"
    )]
    OtherDimension {
        /// The gallery.
        path: PathBuf,
        /// Its dimension.
        found: usize,
        /// The bundle's dimension.
        expected: usize,
    },
    /// A newer program wrote it.
    #[error("{path} has format {found}, and this program reads up to {FORMAT}: update glimpse-gallery")]
    Newer {
        /// The gallery.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Its bytes are not what was written.
    #[error("{path} is damaged ({reason}): restore it from a copy, or delete it and ingest again")]
    Damaged {
        /// The gallery.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image that cannot be stored.
    #[error("{id}: {source}")]
    Image {
        /// Which one.
        id: String,
        /// Why.
        source: ImageError,
    },
    /// The folder cannot be made or read.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database failed otherwise.
    #[error("{path}: {source}")]
    Database {
        /// The gallery.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
}

/// A gallery open for writing. Dropping it loses nothing: every [`Store::put`] has been committed.
pub struct Store {
    database: Database,
    path: PathBuf,
    meta: Meta,
}

impl Store {
    /// Opens the gallery in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// When it cannot be opened, or is of another space or of a newer format.
    pub fn open(dir: &Path, space: SpaceId, dimension: usize) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        std::fs::create_dir_all(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
        let (database, found) = contained(&path, || {
            let database = Database::create(&path).map_err(|error| open_error(&path, error))?;
            let found = read_meta(&database, &path)?;
            Ok((database, found))
        })?;
        if let Some(found) = found {
            check_space(&path, &found, space, dimension)?;
        }
        let meta = found.unwrap_or(Meta { space, dimension, generation: 0 });
        let mut store = Self { database, path, meta };
        if found.is_none() {
            store.commit(|_, _| Ok(()))?;
        }
        Ok(store)
    }

    /// What the gallery is.
    pub const fn meta(&self) -> Meta {
        self.meta
    }

    /// All images by id, without their features.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn images(&self) -> Result<HashMap<String, Image>, StoreError> {
        contained(&self.path, || self.read_images())
    }

    fn read_images(&self) -> Result<HashMap<String, Image>, StoreError> {
        let failed = |error: redb::Error| database_error(&self.path, error);
        let read = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let table = read.open_table(IMAGES).map_err(|error| failed(error.into()))?;
        let mut images = HashMap::new();
        for entry in table.iter().map_err(|error| failed(error.into()))? {
            let (id, value) = entry.map_err(|error| failed(error.into()))?;
            let (image, _) = image_of(id.value(), value.value());
            images.insert(image.id.clone(), image);
        }
        Ok(images)
    }

    /// Adds or replaces images with their unit features, shape `[D]` each: all of them, durably, or none.
    ///
    /// # Errors
    /// An image that cannot be stored, before anything is; or a failing disk.
    pub fn put(&mut self, batch: &[(Image, Vec<f32>)]) -> Result<(), StoreError> {
        let encoded = batch.iter().map(|(image, feature)| {
            let checked = image.check().and_then(|()| encode(feature, self.meta.dimension));
            checked.map_err(|source| StoreError::Image { id: image.id.clone(), source })
        });
        let encoded: Vec<Vec<u8>> = encoded.collect::<Result<_, _>>()?;
        self.commit(|images, features| {
            for ((image, _), feature) in batch.iter().zip(&encoded) {
                put(images, image, feature)?;
                features.insert(image.id.as_str(), feature.as_slice())?;
            }
            Ok(())
        })
    }

    /// Replaces label and path of images whose photos are stored already. Ids that are not stored are passed over.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn relabel(&mut self, batch: &[Image]) -> Result<(), StoreError> {
        for image in batch {
            image.check().map_err(|source| StoreError::Image { id: image.id.clone(), source })?;
        }
        self.commit(|images, features| {
            for image in batch {
                if let Some(feature) = features.get(image.id.as_str())? {
                    put(images, image, feature.value())?;
                }
            }
            Ok(())
        })
    }

    /// One durable transaction over both tables, under the next generation.
    fn commit(
        &mut self,
        change: impl FnOnce(&mut ImagesTable<'_>, &mut FeaturesTable<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let meta = Meta { generation: self.meta.generation + 1, ..self.meta };
        let attempt = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            {
                change(&mut write.open_table(IMAGES)?, &mut write.open_table(FEATURES)?)?;
                let mut table = write.open_table(META)?;
                table.insert("format", FORMAT.to_le_bytes().as_slice())?;
                table.insert("space", meta.space.as_bytes().as_slice())?;
                table.insert("dimension", (meta.dimension as u64).to_le_bytes().as_slice())?;
                table.insert("generation", meta.generation.to_le_bytes().as_slice())?;
            }
            write.commit()?;
            Ok(())
        };
        attempt().map_err(|error| database_error(&self.path, error))?;
        self.meta = meta;
        Ok(())
    }
}

type ImageRow = (&'static str, &'static str, &'static [u8; 32], &'static [u8; 8]);
type ImagesTable<'t> = redb::Table<'t, &'static str, ImageRow>;
type FeaturesTable<'t> = redb::Table<'t, &'static str, &'static [u8]>;

fn put(images: &mut ImagesTable<'_>, image: &Image, feature: &[u8]) -> Result<(), redb::Error> {
    let check = image.record_check(feature);
    images
        .insert(image.id.as_str(), (image.path.as_str(), image.label.as_str(), &image.photo_hash, &check))?;
    Ok(())
}

/// A whole gallery in memory, in the order of the image ids.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What it is.
    pub meta: Meta,
    /// Its images.
    pub images: Vec<Image>,
    /// Their features, `[n, D]` row-major, each of unit norm.
    pub features: Vec<f32>,
    /// BLAKE3 of all ids and record checks: two snapshots that share it are the same.
    pub fingerprint: [u8; 32],
}

/// A whole gallery without its features, in the order of the image ids.
#[derive(Debug, Clone)]
pub struct Images {
    /// What it is.
    pub meta: Meta,
    /// Its images.
    pub images: Vec<Image>,
    /// As in a [`Snapshot`]: it tells which features belong to these images.
    pub fingerprint: [u8; 32],
}

impl Meta {
    /// Refuses another space than the bundle's.
    ///
    /// # Errors
    /// [`StoreError::OtherSpace`] and [`StoreError::OtherDimension`].
    pub fn check_space(&self, dir: &Path, space: SpaceId, dimension: usize) -> Result<(), StoreError> {
        check_space(&dir.join(FILE), self, space, dimension)
    }
}

/// Reads the gallery in `dir`, checking every record, and closes it again.
///
/// # Errors
/// When there is none, when it is being written to, or when it is damaged or newer than this program.
pub fn load(dir: &Path) -> Result<Snapshot, StoreError> {
    read(dir, read_all, read_all)
}

/// Reads the images of the gallery in `dir`, without their features. Records are not checked, for which the features are
/// needed: what is tied to these images by their fingerprint must have checks of its own.
///
/// # Errors
/// As [`load`].
pub fn load_images(dir: &Path) -> Result<Images, StoreError> {
    read(dir, read_images, read_images)
}

/// Opens the database for reading only, or, where its last writer was killed, repairs it.
fn read<T>(
    dir: &Path,
    read_only: impl FnOnce(&ReadOnlyDatabase, &Path) -> Result<T, StoreError>,
    repaired: impl FnOnce(&Database, &Path) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let path = dir.join(FILE);
    if !path.is_file() {
        return Err(StoreError::Missing(dir.to_owned()));
    }
    contained(&path, || match ReadOnlyDatabase::open(&path) {
        Ok(database) => read_only(&database, &path),
        // Killed while writing: redb repairs a file only where it may write.
        Err(DatabaseError::RepairAborted) => {
            tracing::warn!(gallery = %path.display(), "the last writer was killed: dropping what it had not committed");
            repaired(&Database::open(&path).map_err(|error| open_error(&path, error))?, &path)
        }
        Err(error) => Err(open_error(&path, error)),
    })
}

/// Runs a reader of the database, and turns its panic into [`StoreError::Damaged`]. redb 4.6 verifies the checksums of its
/// pages only when it repairs; on a damaged page that it trusts it may index out of bounds
/// (`a_damaged_file_is_an_error_and_never_another_gallery` finds such pages). Its state is dropped with the error.
fn contained<T>(path: &Path, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(StoreError::Damaged { path: path.to_owned(), reason: "a page of it cannot be read".to_owned() })
    })
}

fn read_all(database: &impl ReadableDatabase, path: &Path) -> Result<Snapshot, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let failed = |error: redb::Error| database_error(path, error);
    let meta = read_meta(database, path)?.ok_or_else(|| damaged("it is empty".to_owned()))?;
    let read = database.begin_read().map_err(|error| failed(error.into()))?;
    let images_table = read.open_table(IMAGES).map_err(|error| failed(error.into()))?;
    let features_table = read.open_table(FEATURES).map_err(|error| failed(error.into()))?;
    let (mut images, mut features, mut fingerprint) = (Vec::new(), Vec::new(), Fingerprint::new(&meta));
    let mut rows = features_table.iter().map_err(|error| failed(error.into()))?;
    for entry in images_table.iter().map_err(|error| failed(error.into()))? {
        let (id, value) = entry.map_err(|error| failed(error.into()))?;
        let (image, check) = image_of(id.value(), value.value());
        let row = rows.next().transpose().map_err(|error| failed(error.into()))?;
        let row = row.filter(|(id, _)| id.value() == image.id);
        let (_, row) = row.ok_or_else(|| damaged(format!("{} has no feature", image.id)))?;
        if image.record_check(row.value()) != check {
            return Err(damaged(format!("the record of {} has another checksum", image.id)));
        }
        let (components, rest) = row.value().as_chunks::<4>();
        if components.len() != meta.dimension || !rest.is_empty() {
            return Err(damaged(format!("the feature of {} has {} bytes", image.id, row.value().len())));
        }
        features.extend(components.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        fingerprint.add(&image, check);
        images.push(image);
    }
    if rows.next().is_some() {
        return Err(damaged("it has more features than images".to_owned()));
    }
    Ok(Snapshot { meta, images, features, fingerprint: fingerprint.finish() })
}

fn read_images(database: &impl ReadableDatabase, path: &Path) -> Result<Images, StoreError> {
    let failed = |error: redb::Error| database_error(path, error);
    let empty = || StoreError::Damaged { path: path.to_owned(), reason: "it is empty".to_owned() };
    let meta = read_meta(database, path)?.ok_or_else(empty)?;
    let read = database.begin_read().map_err(|error| failed(error.into()))?;
    let table = read.open_table(IMAGES).map_err(|error| failed(error.into()))?;
    let (mut images, mut fingerprint) = (Vec::new(), Fingerprint::new(&meta));
    for entry in table.iter().map_err(|error| failed(error.into()))? {
        let (id, value) = entry.map_err(|error| failed(error.into()))?;
        let (image, check) = image_of(id.value(), value.value());
        image
            .check()
            .map_err(|error| StoreError::Damaged { path: path.to_owned(), reason: error.to_string() })?;
        fingerprint.add(&image, check);
        images.push(image);
    }
    Ok(Images { meta, images, fingerprint: fingerprint.finish() })
}

/// What a gallery holds, in 32 bytes.
struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    fn new(meta: &Meta) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("glimpse gallery content v1");
        hasher.update(meta.space.as_bytes()).update(&(meta.dimension as u64).to_le_bytes());
        Self(hasher)
    }

    /// The check of a record covers all that it holds, its feature included; the rest is added as it was read, so that
    /// damage to it is seen even where the check itself cannot be verified.
    fn add(&mut self, image: &Image, check: [u8; 8]) {
        for part in [image.id.as_bytes(), image.path.as_bytes(), image.label.as_bytes()] {
            self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        self.0.update(&image.photo_hash).update(&check);
    }

    fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// `None` for a database that has just been made.
fn read_meta(database: &impl ReadableDatabase, path: &Path) -> Result<Option<Meta>, StoreError> {
    let failed = |error: redb::Error| database_error(path, error);
    let damaged =
        |name: &str| StoreError::Damaged { path: path.to_owned(), reason: format!("bad field {name}") };
    let read = database.begin_read().map_err(|error| failed(error.into()))?;
    let table = match read.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let bytes = |name: &str| -> Result<Vec<u8>, StoreError> {
        let value = table.get(name).map_err(|error| failed(error.into()))?;
        Ok(value.ok_or_else(|| damaged(name))?.value().to_vec())
    };
    let number = |name: &str| -> Result<u64, StoreError> {
        Ok(u64::from_le_bytes(bytes(name)?.try_into().map_err(|_| damaged(name))?))
    };
    let format = number("format")?;
    if format > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found: format });
    }
    let space: [u8; 16] = bytes("space")?.try_into().map_err(|_| damaged("space"))?;
    let dimension = usize::try_from(number("dimension")?).map_err(|_| damaged("dimension"))?;
    Ok(Some(Meta { space: SpaceId::from_bytes(space), dimension, generation: number("generation")? }))
}

fn image_of(id: &str, value: (&str, &str, &[u8; 32], &[u8; 8])) -> (Image, [u8; 8]) {
    let (path, label, photo_hash, check) = value;
    let (id, path, label) = (id.to_owned(), path.to_owned(), label.to_owned());
    (Image { id, path, label, photo_hash: *photo_hash }, *check)
}

fn encode(feature: &[f32], dimension: usize) -> Result<Vec<u8>, ImageError> {
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

fn check_space(path: &Path, found: &Meta, space: SpaceId, dimension: usize) -> Result<(), StoreError> {
    if found.space != space {
        return Err(StoreError::OtherSpace { path: path.to_owned(), found: found.space, expected: space });
    }
    if found.dimension != dimension {
        let found = found.dimension;
        return Err(StoreError::OtherDimension { path: path.to_owned(), found, expected: dimension });
    }
    Ok(())
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::InUse(path),
        error => database_error(&path, error.into()),
    }
}

fn database_error(path: &Path, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        redb::Error::Corrupted(reason) => StoreError::Damaged { path, reason },
        redb::Error::TableDoesNotExist(name) => {
            StoreError::Damaged { path, reason: format!("table {name} is missing") }
        }
        error @ (redb::Error::TableTypeMismatch { .. } | redb::Error::TableIsMultimap(_)) => {
            StoreError::Damaged { path, reason: error.to_string() }
        }
        redb::Error::Io(source)
            if matches!(
                source.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            StoreError::Damaged { path, reason: source.to_string() }
        }
        redb::Error::Io(source) => StoreError::Io { path, source },
        error => StoreError::Database { path, source: Box::new(error) },
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
