//! Reading: views of one generation each, whatever is written meanwhile.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::MmapMut;
use redb::{
    Database, DatabaseError, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction, ReadableDatabase,
    ReadableTable,
};

use super::{
    CHANGES, CONTENTS, Contained, Content, FEATURES, FILE, FileId, Header, Image, META, Meta,
    READ_CACHE_BYTES, RECORDS, RecordRow, State, Store, StoreError, builder, contained, database_error,
    image_of, open_error, read_header,
};
use crate::catalogue::{Catalogue, CatalogueBuilder};

/// Images that are read between two looks whether to go on.
const STOP_EVERY: usize = 4096;

/// Bytes of features from which on they are kept in a scratch file instead of in memory.
const SCRATCH_FROM: usize = 64 << 20;

/// A gallery open for reading, also while others write to it.
pub struct Reader {
    database: Contained<Handle>,
    path: PathBuf,
    file: FileId,
}

enum Handle {
    ReadOnly(ReadOnlyDatabase),
    /// Where it had to be repaired.
    Repaired(Database),
}

impl Reader {
    /// Opens the gallery in `dir`. One whose last writer was killed is repaired, and one of an earlier format brought up to
    /// date.
    ///
    /// # Errors
    /// When there is none, or it is damaged or newer than this program.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        match Self::open_as_it_is(dir) {
            Err(StoreError::Older { .. }) => {
                drop(Store::open_existing(dir)?);
                Self::open_as_it_is(dir)
            }
            other => other,
        }
    }

    fn open_as_it_is(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Err(StoreError::Missing(dir.to_owned()));
        }
        // Before it is opened: a file that takes its place meanwhile is noticed by the next look.
        let file = FileId::of(&path);
        let reader = contained(&path, || {
            let database = match builder(READ_CACHE_BYTES).open_read_only(&path) {
                Ok(database) => Handle::ReadOnly(database),
                // Killed while writing: redb repairs a file only where it may write.
                Err(DatabaseError::RepairAborted) => {
                    tracing::warn!(gallery = %path.display(), "the last writer was killed: dropping what it had not committed");
                    let repaired = builder(READ_CACHE_BYTES).open(&path);
                    Handle::Repaired(repaired.map_err(|error| open_error(&path, error))?)
                }
                Err(error) => return Err(open_error(&path, error)),
            };
            Ok(Self { database: Contained::new(database), file, path: path.clone() })
        })?;
        // What cannot be read at all is found here.
        reader.now()?;
        Ok(reader)
    }

    /// Whether another file has taken the place of this one, or none: it has to be opened anew.
    pub fn is_replaced(&self) -> bool {
        FileId::of(&self.path) != self.file
    }

    /// The newest generation.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn now(&self) -> Result<Committed, StoreError> {
        contained(&self.path, || {
            let read = match &*self.database {
                Handle::ReadOnly(database) => database.begin_read(),
                Handle::Repaired(database) => database.begin_read(),
            };
            let read = read.map_err(|error| database_error(&self.path, error.into()))?;
            let header = read_header(read.open_table(META), &self.path)?;
            let empty = || StoreError::Damaged { path: self.path.clone(), reason: "it is empty".to_owned() };
            let header = header.ok_or_else(empty)?;
            Ok(Committed { read: Contained::new(read), header, path: self.path.clone() })
        })
    }
}

/// One generation of a gallery. While it is held, the pages that it needs are not used again.
pub struct Committed {
    read: Contained<ReadTransaction>,
    header: Header,
    path: PathBuf,
}

impl Committed {
    /// What the gallery is.
    pub const fn meta(&self) -> Meta {
        self.header.meta
    }

    /// Which gallery, and which generation of it.
    pub const fn state(&self) -> State {
        self.header.state()
    }

    /// All that the table `meta` says.
    pub(super) const fn header(&self) -> &Header {
        &self.header
    }

    /// Number of images.
    pub const fn len(&self) -> u64 {
        self.header.images
    }

    /// Whether there is no image.
    pub const fn is_empty(&self) -> bool {
        self.header.images == 0
    }

    /// The ids of images that were put or removed after an earlier state, in their order; at most `most`. `None` where that is
    /// not known: it is of another gallery, or too long ago, or there are more.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn changed_since(&self, earlier: &State, most: usize) -> Result<Option<Vec<String>>, StoreError> {
        let now = self.state();
        let known = self.header.changes_from..=now.generation;
        if earlier.gallery != now.gallery || !known.contains(&earlier.generation) {
            return Ok(None);
        }
        contained(&self.path, || {
            let failed = |error: redb::Error| database_error(&self.path, error);
            let contents = self.read.open_table(CONTENTS).map_err(|error| failed(error.into()))?;
            let then = contents.get(earlier.generation).map_err(|error| failed(error.into()))?;
            // A backup that was restored and then went another way has other contents under the same numbers.
            if then.is_none_or(|then| Content::from_bytes(then.value()) != earlier.content) {
                return Ok(None);
            }
            let changes = self.read.open_table(CHANGES).map_err(|error| failed(error.into()))?;
            // An image that changed often counts once.
            let mut ids = BTreeSet::new();
            let from = (earlier.generation + 1, "");
            for change in changes.range(from..).map_err(|error| failed(error.into()))? {
                let (key, ()) =
                    change.map(|(key, value)| (key, value.value())).map_err(|error| failed(error.into()))?;
                ids.insert(key.value().1.to_owned());
                if ids.len() > most {
                    return Ok(None);
                }
            }
            Ok(Some(ids.into_iter().collect()))
        })
    }

    /// An image and its feature, checked; `None` where there is no such image.
    ///
    /// # Errors
    /// When they cannot be read, or are damaged.
    pub fn get(&self, id: &str) -> Result<Option<(Image, Vec<f32>)>, StoreError> {
        contained(&self.path, || {
            let (records, features) = self.tables()?;
            let failed = |error: redb::StorageError| database_error(&self.path, error.into());
            let Some(row) = records.get(id).map_err(failed)? else { return Ok(None) };
            let feature = features.get(id).map_err(failed)?;
            let feature = feature.ok_or_else(|| self.damaged(format!("{id} has no feature")))?;
            let mut components = Vec::with_capacity(self.header.meta.dimension);
            let (image, _) = self.checked(id, row.value(), feature.value(), &mut components)?;
            Ok(Some((image, components)))
        })
    }

    /// Calls `each` with every image, in the order of the ids, without its feature, until it returns `false`. Records are not
    /// checked, for which the features are needed.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn images(&self, mut each: impl FnMut(Image) -> bool) -> Result<(), StoreError> {
        contained(&self.path, || {
            let failed = |error: redb::StorageError| database_error(&self.path, error.into());
            for entry in self.tables()?.0.iter().map_err(failed)? {
                let (id, row) = entry.map_err(failed)?;
                let image = image_of(id.value(), row.value());
                let (image, _) = image
                    .ok_or_else(|| self.damaged(format!("the record of {} cannot be read", id.value())))?;
                if !each(image) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Calls `each` with every image and its feature, `[D]`, in the order of the ids, until it returns `false`. Every record is
    /// checked, and in the end that none is missing.
    ///
    /// # Errors
    /// What is damaged, by name.
    pub fn each(&self, mut each: impl FnMut(Image, &[f32]) -> bool) -> Result<(), StoreError> {
        contained(&self.path, || {
            let failed = |error: redb::StorageError| database_error(&self.path, error.into());
            let (records, features) = self.tables()?;
            let mut rows = features.iter().map_err(failed)?;
            let mut components = Vec::with_capacity(self.header.meta.dimension);
            let (mut content, mut count) = (Content::default(), 0);
            for entry in records.iter().map_err(failed)? {
                let (id, record) = entry.map_err(failed)?;
                let id = id.value();
                let row = rows.next().transpose().map_err(failed)?.filter(|row| row.0.value() == id);
                let (_, row) = row.ok_or_else(|| self.damaged(format!("{id} has no feature")))?;
                let (image, check) = self.checked(id, record.value(), row.value(), &mut components)?;
                content.add(&image.digest(check));
                count += 1;
                if !each(image, &components) {
                    return Ok(());
                }
            }
            if rows.next().is_some() {
                return Err(self.damaged("it has more features than images".to_owned()));
            }
            if count != self.header.images {
                let expected = self.header.images;
                return Err(self.damaged(format!("{count} of {expected} images can be found")));
            }
            if content != self.header.content {
                return Err(self.damaged("its records are not those that were committed".to_owned()));
            }
            Ok(())
        })
    }

    /// Decodes a feature into `components`, and holds the record against its check.
    fn checked(
        &self,
        id: &str,
        record: (&str, &str, &[u8], &[u8; 32], &[u8; 8]),
        feature: &[u8],
        components: &mut Vec<f32>,
    ) -> Result<(Image, [u8; 8]), StoreError> {
        let (image, check) = image_of(id, record)
            .filter(|(image, check)| image.record_check(feature) == *check)
            .ok_or_else(|| self.damaged(format!("the record of {id} has another checksum")))?;
        image.fits().map_err(|error| self.damaged(format!("{id}: {error}")))?;
        let (bytes, rest) = feature.as_chunks::<4>();
        if bytes.len() != self.header.meta.dimension || !rest.is_empty() {
            return Err(self.damaged(format!("the feature of {id} has {} bytes", feature.len())));
        }
        components.clear();
        components.extend(bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        Ok((image, check))
    }

    fn tables(&self) -> Result<(Records, FeatureRows), StoreError> {
        let failed = |error: redb::TableError| database_error(&self.path, error.into());
        Ok((self.read.open_table(RECORDS).map_err(failed)?, self.read.open_table(FEATURES).map_err(failed)?))
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason }
    }
}

type Records = ReadOnlyTable<&'static str, RecordRow>;
type FeatureRows = ReadOnlyTable<&'static str, &'static [u8]>;

/// A whole gallery of one generation, in the order of the image ids.
#[derive(Debug)]
pub struct Snapshot {
    /// What it is.
    pub meta: Meta,
    /// Which one.
    pub state: State,
    /// Its images.
    pub images: Catalogue,
    /// Their features, `[n, D]` row-major, each of unit norm.
    pub features: Features,
}

/// Features in memory, or, where there are many, in a scratch file that is mapped into it: the system can take its pages
/// back.
#[derive(Debug)]
pub enum Features {
    /// In memory.
    Memory(Vec<f32>),
    /// In a file that has no name.
    Scratch(MmapMut),
}

impl Features {
    /// Room for so many components, all zero; the scratch file lies in `dir`.
    ///
    /// # Errors
    /// When there is no room.
    pub fn zeros(components: usize, dir: &Path) -> std::io::Result<Self> {
        let bytes = components.saturating_mul(size_of::<f32>());
        if bytes < SCRATCH_FROM {
            return Ok(Self::Memory(vec![0.0; components]));
        }
        // A gallery on a medium that cannot be written is read into memory.
        let Ok(mut file) = tempfile::tempfile_in(dir) else { return Ok(Self::Memory(vec![0.0; components])) };
        reserve(&mut file, bytes as u64)?;
        // SAFETY: the file has no name, so that no other process can open it to change or cut it, and all its pages have their
        // place on the disk.
        let map = unsafe { MmapMut::map_mut(&file) }?;
        Ok(Self::Scratch(map))
    }

    /// To be filled.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        match self {
            Self::Memory(features) => features,
            Self::Scratch(map) => bytemuck::cast_slice_mut(&mut map[..]),
        }
    }
}

/// Takes the place on the disk now: writing through a map to a page that finds none ends the process.
fn reserve(file: &mut std::fs::File, bytes: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        other => return Ok(other?),
    }
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), file)?;
    Ok(())
}

impl Deref for Features {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Memory(features) => features,
            Self::Scratch(map) => bytemuck::cast_slice(&map[..]),
        }
    }
}

/// Reads the whole gallery in `dir`, checking every record.
///
/// # Errors
/// When there is none, or it is damaged or newer than this program.
pub fn load(dir: &Path) -> Result<Snapshot, StoreError> {
    Reader::open(dir)?.now()?.snapshot(dir, &mut || true)
}

impl Committed {
    /// Reads all of it, checking every record, as long as `go_on` says so. Many features lie in a scratch file in `dir`.
    ///
    /// # Errors
    /// As [`load`], and [`StoreError::Stopped`].
    pub fn snapshot(&self, dir: &Path, go_on: &mut dyn FnMut() -> bool) -> Result<Snapshot, StoreError> {
        let (meta, state) = (self.meta(), self.state());
        let too_large = || self.damaged(format!("it says that it has {} images", self.len()));
        let count = usize::try_from(self.len()).map_err(|_| too_large())?;
        let components = count.checked_mul(meta.dimension).ok_or_else(too_large)?;
        // What the header says is not trusted with memory before as many rows were seen.
        let rows = contained(&self.path, || {
            let rows = redb::ReadableTableMetadata::len(&self.tables()?.1);
            rows.map_err(|error| database_error(&self.path, error.into()))
        })?;
        if rows != self.len() {
            return Err(self.damaged(format!("{rows} of {count} images can be found")));
        }
        let io = |source| StoreError::Io { path: dir.to_owned(), source };
        let mut features = Features::zeros(components, dir).map_err(io)?;
        let mut images = CatalogueBuilder::default();
        let mut going = true;
        let mut places = features.as_mut_slice().chunks_exact_mut(meta.dimension.max(1));
        self.each(|image, feature| {
            let Some(place) = places.next() else { return false };
            place.copy_from_slice(feature);
            images.push(&image);
            going = images.len() % STOP_EVERY != 0 || go_on();
            going
        })?;
        if !going {
            return Err(StoreError::Stopped);
        }
        Ok(Snapshot { meta, state, images: images.finish(), features })
    }
}
