//! The durable gallery: one folder with one redb database, `gallery.redb`.
//!
//! redb, because it is pure Rust (it cross-compiles like the rest of us), crash-safe by default (a commit is on the disk when
//! it returns, and whatever a kill or a power cut interrupted is absent when the file is opened next), and because since 4.3
//! several processes may share a file: a server reads while an ingest and a `remove` write.
//!
//! | table | key | value |
//! |---|---|---|
//! | `records` | image id | path of the photo, label, attributes, BLAKE3 of the photo, check of the whole record |
//! | `features` | image id | the unit embedding, `[D]` little-endian `f32` |
//! | `changes` | generation, image id | nothing: the image was put, or removed, by that commit |
//! | `contents` | generation | the gallery's [`Content`] after that commit |
//! | `meta` | name | format version, identity, space, dimension, generation, number of images, oldest known change |
//!
//! Every commit is a *generation*. [`Store`] writes, one commit of all processes at a time. [`Reader`] gives [`Committed`]
//! views, each of one generation, and from it what has changed since an earlier one: a server brings its index up to date
//! without reading what has not changed. The store holds no codes: they follow from the features and the codebook (see
//! [`crate::index`]), so that another codebook never meets old codes.
//!
//! In reading order: `image` (what is stored), `write`, `read`, `migrate` (galleries of earlier formats).

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use glimpse_protocol::SpaceId;
use redb::{Builder, ConcurrencyMode, DatabaseError, ReadableTable, TableDefinition};
use thiserror::Error;

mod image;
mod migrate;
mod read;
mod write;

pub(crate) use image::EncodedTexts;
pub use image::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, Attributes, Content, Image, ImageError};
pub use read::{Committed, Features, Reader, Snapshot, load};
pub use write::{Store, copy};

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u64 = 2;

/// Name of the database in the gallery's folder.
pub const FILE: &str = "gallery.redb";

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const RECORDS: TableDefinition<&str, RecordRow> = TableDefinition::new("records");
const FEATURES: TableDefinition<&str, &[u8]> = TableDefinition::new("features");
const CHANGES: TableDefinition<(u64, &str), ()> = TableDefinition::new("changes");
const CONTENTS: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("contents");

/// Path, label, attributes, hash of the photo, check.
type RecordRow = (&'static str, &'static str, &'static [u8], &'static [u8; 32], &'static [u8; 8]);

/// Pages that redb keeps in memory while a server only looks for changes, in bytes.
const READ_CACHE_BYTES: usize = 8 << 20;

/// As many for a writer.
const WRITE_CACHE_BYTES: usize = 256 << 20;

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

/// One generation of one gallery, to be told from every other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Random, from when the gallery was made: a gallery that was made anew in the same folder is another.
    pub gallery: [u8; 16],
    /// The commit.
    pub generation: u64,
    /// What it holds.
    pub content: Content,
}

/// All of the table `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    meta: Meta,
    gallery: [u8; 16],
    content: Content,
    images: u64,
    /// Changes of all later generations are known.
    changes_from: u64,
}

impl Header {
    const fn state(&self) -> State {
        State { gallery: self.gallery, generation: self.meta.generation, content: self.content }
    }
}

/// Why a gallery cannot be opened, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no gallery in the folder.
    #[error("{0} holds no gallery: make one with `glimpse-gallery ingest`")]
    Missing(PathBuf),
    /// A process that shares it with nobody has it open.
    #[error("{0} is open in another process that does not share it: wait for it to end, or stop it")]
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
    /// An earlier program wrote it, and nobody has opened it for writing since.
    #[error(
        "{path} has the earlier format {found}: any command that writes brings it up to date, as `compact`"
    )]
    Older {
        /// The gallery.
        path: PathBuf,
        /// Its format.
        found: u64,
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
    #[error("{path} is damaged ({reason}): restore it from a backup, or delete it and ingest again")]
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
    /// There is a gallery where none should be.
    #[error("{0} holds a gallery already: name an empty folder")]
    Exists(PathBuf),
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
    /// Somebody reads or writes it.
    #[error("{0} is being read or written: try again in a moment")]
    Busy(PathBuf),
    /// Another gallery lies where this one was.
    #[error("{0} was replaced by another gallery while it was open: run the command again")]
    Replaced(PathBuf),
    /// No random numbers for the identity of a new gallery.
    #[error("cannot make a gallery: {0}")]
    Random(String),
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

impl Meta {
    /// Refuses another space than the bundle's.
    ///
    /// # Errors
    /// [`StoreError::OtherSpace`] and [`StoreError::OtherDimension`].
    pub fn check_space(&self, dir: &Path, space: SpaceId, dimension: usize) -> Result<(), StoreError> {
        let path = dir.join(FILE);
        if self.space != space {
            return Err(StoreError::OtherSpace { path, found: self.space, expected: space });
        }
        if self.dimension != dimension {
            return Err(StoreError::OtherDimension { path, found: self.dimension, expected: dimension });
        }
        Ok(())
    }
}

/// Which file lies at a path, to be told from one that takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId(Option<(u64, u64)>);

impl FileId {
    /// Whether there is a file.
    pub(crate) const fn is_some(self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn of(path: &Path) -> Self {
        #[cfg(unix)]
        let id = |metadata: std::fs::Metadata| {
            use std::os::unix::fs::MetadataExt as _;
            (metadata.dev(), metadata.ino())
        };
        // Elsewhere a file that is open cannot be replaced.
        #[cfg(not(unix))]
        let id = |_| (0, 0);
        Self(std::fs::metadata(path).ok().map(id))
    }
}

/// The database as several processes share it.
fn builder(cache_bytes: usize) -> Builder {
    let mut builder = Builder::new();
    builder.set_concurrency_mode(ConcurrencyMode::MultiWriter).set_cache_size(cache_bytes);
    builder
}

/// Runs a reader or writer of the database, and turns its panic into [`StoreError::Damaged`]. redb 4.6 verifies the
/// checksums of its pages only when it repairs; on a damaged page that it trusts it may index out of bounds
/// (`a_damaged_file_is_an_error_and_never_another_gallery` finds such pages). Its state is dropped with the error.
fn contained<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(StoreError::Damaged { path: path.to_owned(), reason: "a page of it cannot be read".to_owned() })
    })
}

/// A part of the database that is dropped as [`contained`] runs: redb reads and writes pages then, too.
struct Contained<T>(Option<T>);

impl<T> Contained<T> {
    const fn new(part: T) -> Self {
        Self(Some(part))
    }
}

impl<T> Deref for Contained<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken only when this is dropped")
    }
}

impl<T> DerefMut for Contained<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken only when this is dropped")
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        let part = self.0.take();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(part))).is_err() {
            tracing::warn!("a gallery could not be closed: a page of it cannot be read");
        }
    }
}

/// `None` for a database that has just been made.
fn read_header<T>(table: Result<T, redb::TableError>, path: &Path) -> Result<Option<Header>, StoreError>
where
    T: ReadableTable<&'static str, &'static [u8]>,
{
    let failed = |error: redb::Error| database_error(path, error);
    let damaged =
        |name: &str| StoreError::Damaged { path: path.to_owned(), reason: format!("bad field {name}") };
    let table = match table {
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
    if format < FORMAT {
        return Err(StoreError::Older { path: path.to_owned(), found: format });
    }
    let space: [u8; 16] = bytes("space")?.try_into().map_err(|_| damaged("space"))?;
    let dimension = usize::try_from(number("dimension")?).map_err(|_| damaged("dimension"))?;
    let content: [u8; 32] = bytes("content")?.try_into().map_err(|_| damaged("content"))?;
    Ok(Some(Header {
        meta: Meta { space: SpaceId::from_bytes(space), dimension, generation: number("generation")? },
        gallery: bytes("gallery")?.try_into().map_err(|_| damaged("gallery"))?,
        content: Content::from_bytes(&content),
        images: number("images")?,
        changes_from: number("changes_from")?,
    }))
}

/// The image of a row, and the check of its record.
fn image_of(id: &str, row: (&str, &str, &[u8], &[u8; 32], &[u8; 8])) -> Option<(Image, [u8; 8])> {
    let (path, label, attributes, photo_hash, check) = row;
    let attributes = Attributes::decode(attributes)?;
    let (id, path, label) = (id.to_owned(), path.to_owned(), label.to_owned());
    Some((Image { id, path, label, attributes, photo_hash: *photo_hash }, *check))
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
mod tests;
