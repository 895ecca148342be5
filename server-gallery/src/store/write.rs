//! Writing: each commit is durable when it returns, and visible to every reader as a whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use glimpse_protocol::SpaceId;
use rand::TryRngCore as _;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata as _, WriteTransaction};

use super::image::encode_feature;
use super::{
    CHANGES, CONTENTS, Committed, Contained, Content, FEATURES, FILE, FORMAT, FileId, Header, Image, META,
    Meta, RECORDS, RecordRow, StoreError, WRITE_CACHE_BYTES, builder, contained, database_error, image_of,
    migrate, open_error, read_header,
};

/// Changes that are kept for readers that are behind, at most. Who is further behind reads the whole gallery.
const CHANGES_MAX: u64 = 200_000;

/// A gallery open for writing. Several processes may have it open; commits wait for one another. Dropping it loses nothing:
/// every [`Store::put`] has been committed.
pub struct Store {
    pub(super) database: Contained<Database>,
    path: PathBuf,
    /// Which file was opened: a restore puts another in its place.
    file: FileId,
    meta: Meta,
}

impl Store {
    /// Opens the gallery in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// When it cannot be opened, or is of another space or of a newer format.
    pub fn open(dir: &Path, space: SpaceId, dimension: usize) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
        let path = dir.join(FILE);
        let meta = Meta { space, dimension, generation: 0 };
        let store = Self::open_file(path, |path| builder(WRITE_CACHE_BYTES).create(path), Some(meta))?;
        store.meta.check_space(dir, space, dimension)?;
        Ok(store)
    }

    /// Opens the gallery in `dir`, whatever its space.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open_existing(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Err(StoreError::Missing(dir.to_owned()));
        }
        Self::open_file(path, |path| builder(WRITE_CACHE_BYTES).open(path), None)
    }

    /// `empty` is what a database without anything becomes.
    fn open_file(
        path: PathBuf,
        open: impl FnOnce(&Path) -> Result<Database, redb::DatabaseError>,
        empty: Option<Meta>,
    ) -> Result<Self, StoreError> {
        // Another file may take its place while it is opened, which can take a while.
        let before = FileId::of(&path);
        let (database, meta) = contained(&path, || {
            let database = Contained::new(open(&path).map_err(|error| open_error(&path, error))?);
            let failed = |error: redb::Error| database_error(&path, error);
            migrate::to_newest(&database, &path)?;
            let read = database.begin_read().map_err(|error| failed(error.into()))?;
            if let Some(header) = read_header(read.open_table(META), &path)? {
                return Ok((database, header.meta));
            }
            drop(read);
            let damaged = || StoreError::Damaged { path: path.clone(), reason: "it is empty".to_owned() };
            let header = make(&database, &path, empty.ok_or_else(damaged)?)?;
            Ok((database, header.meta))
        })?;
        let file = FileId::of(&path);
        if before.is_some() && before != file {
            return Err(StoreError::Replaced(path));
        }
        Ok(Self { database, path, file, meta })
    }

    /// What the gallery is, as of our last commit.
    pub const fn meta(&self) -> Meta {
        self.meta
    }

    /// All images by id, without their features.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn images(&self) -> Result<HashMap<String, Image>, StoreError> {
        contained(&self.path, || {
            let failed = |error: redb::Error| database_error(&self.path, error);
            let read = self.database.begin_read().map_err(|error| failed(error.into()))?;
            let table = read.open_table(RECORDS).map_err(|error| failed(error.into()))?;
            let mut images = HashMap::new();
            for entry in table.iter().map_err(|error| failed(error.into()))? {
                let (id, row) = entry.map_err(|error| failed(error.into()))?;
                let (image, _) = image_of(id.value(), row.value())
                    .ok_or_else(|| bad_attributes(&self.path, id.value()))?;
                images.insert(image.id.clone(), image);
            }
            Ok(images)
        })
    }

    /// Adds or replaces images with their unit features, shape `[D]` each: all of them, durably, or none.
    ///
    /// # Errors
    /// An image that cannot be stored, before anything is; or a failing disk.
    pub fn put(&mut self, batch: &[(Image, Vec<f32>)]) -> Result<(), StoreError> {
        let encoded = batch.iter().map(|(image, feature)| {
            let checked = image.check().and_then(|()| encode_feature(feature, self.meta.dimension));
            checked.map_err(|source| StoreError::Image { id: image.id.clone(), source })
        });
        let encoded: Vec<Vec<u8>> = encoded.collect::<Result<_, _>>()?;
        self.commit(|tables| {
            batch.iter().zip(&encoded).try_for_each(|((image, _), feature)| tables.put(image, feature))
        })
    }

    /// Replaces what is known of images whose very photos are stored already. Returns the ids of those that are not stored, or
    /// with another photo by now: these are passed over.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn relabel(&mut self, batch: &[Image]) -> Result<Vec<String>, StoreError> {
        for image in batch {
            image.check().map_err(|source| StoreError::Image { id: image.id.clone(), source })?;
        }
        let mut passed_over = Vec::new();
        self.commit(|tables| {
            for image in batch {
                let stored = tables.records.get(image.id.as_str())?;
                let same = stored.is_some_and(|row| row.value().3 == &image.photo_hash);
                let feature = tables.features.get(image.id.as_str())?.filter(|_| same);
                match feature.map(|feature| feature.value().to_vec()) {
                    Some(feature) => tables.put(image, &feature)?,
                    None => passed_over.push(image.id.clone()),
                }
            }
            Ok(())
        })?;
        Ok(passed_over)
    }

    /// Removes images: all of them, durably, or none. Returns how many there were; ids that are not stored are passed over.
    ///
    /// # Errors
    /// A failing disk.
    pub fn remove<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) -> Result<usize, StoreError> {
        let mut removed = 0;
        self.commit(|tables| {
            for id in ids {
                removed += usize::from(tables.remove(id)?);
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// Forgets changes up to the generation that an index was made of: nobody needs them to bring that index up to date.
    ///
    /// # Errors
    /// A failing disk.
    pub fn forget_changes(&mut self, up_to: u64) -> Result<(), StoreError> {
        self.transact(|write, header| {
            let up_to = up_to.min(header.meta.generation);
            if up_to <= header.changes_from {
                return Ok(());
            }
            header.changes_from = up_to;
            forget(write, up_to)
        })
    }

    /// Gives free pages back to the file system. Returns whether there were any.
    ///
    /// # Errors
    /// A failing disk; or readers at work: try again.
    pub fn compact(&mut self) -> Result<bool, StoreError> {
        contained(&self.path, || {
            self.database.compact().map_err(|error| match error {
                redb::CompactionError::Storage(error) => database_error(&self.path, error.into()),
                _ => StoreError::Busy(self.path.clone()),
            })
        })
    }

    /// Verifies the checksum of every page of the database, and repairs what can be: `false` where something was.
    ///
    /// # Errors
    /// When it is damaged beyond repair, or in use by this process.
    pub fn check_pages(&mut self) -> Result<bool, StoreError> {
        contained(&self.path, || {
            self.database.check_integrity().map_err(|error| open_error(&self.path, error))
        })
    }

    /// One durable transaction over images and features, under the next generation. One that changes nothing is none.
    fn commit(
        &mut self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.transact(|write, header| {
            let mut tables = Tables::open(write, *header)?;
            change(&mut tables)?;
            if tables.changed == 0 {
                return Ok(());
            }
            *header = tables.header;
            drop(tables);
            write.open_table(CONTENTS)?.insert(header.meta.generation, &header.content.to_bytes())?;
            if write.open_table(CHANGES)?.len()? > CHANGES_MAX {
                header.changes_from = header.meta.generation;
                forget(write, header.changes_from)?;
            }
            Ok(())
        })
    }

    /// A transaction that may change the header; one that does not is aborted.
    fn transact(
        &mut self,
        change: impl FnOnce(&WriteTransaction, &mut Header) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let path = self.path.clone();
        let meta = contained(&path, || {
            let failed = |error: redb::Error| database_error(&path, error);
            let write = self.database.begin_write().map_err(|error| failed(error.into()))?;
            if FileId::of(&path) != self.file {
                return Err(StoreError::Replaced(path.clone()));
            }
            // Another process may have committed since we last looked.
            let before = read_header(write.open_table(META), &path)?;
            let before = before.ok_or_else(|| StoreError::Missing(path.clone()))?;
            if (before.meta.space, before.meta.dimension) != (self.meta.space, self.meta.dimension) {
                return Err(StoreError::Replaced(path.clone()));
            }
            let mut header = before;
            change(&write, &mut header).map_err(failed)?;
            if header == before {
                write.abort().map_err(|error| failed(error.into()))?;
            } else {
                write_header(&write, &header).map_err(failed)?;
                write.commit().map_err(|error| failed(error.into()))?;
            }
            Ok(header.meta)
        })?;
        self.meta = meta;
        Ok(())
    }
}

/// The tables of one transaction, and what it makes of the header.
struct Tables<'t> {
    records: redb::Table<'t, &'static str, RecordRow>,
    features: redb::Table<'t, &'static str, &'static [u8]>,
    changes: redb::Table<'t, (u64, &'static str), ()>,
    header: Header,
    changed: usize,
}

impl<'t> Tables<'t> {
    fn open(write: &'t WriteTransaction, before: Header) -> Result<Self, redb::Error> {
        let mut header = before;
        header.meta.generation += 1;
        Ok(Self {
            records: write.open_table(RECORDS)?,
            features: write.open_table(FEATURES)?,
            changes: write.open_table(CHANGES)?,
            header,
            changed: 0,
        })
    }

    fn put(&mut self, image: &Image, feature: &[u8]) -> Result<(), redb::Error> {
        self.take_away(&image.id)?;
        let check = image.record_check(feature);
        let attributes = image.attributes.encode();
        let row: (&str, &str, &[u8], &[u8; 32], &[u8; 8]) =
            (&image.path, &image.label, &attributes, &image.photo_hash, &check);
        self.records.insert(image.id.as_str(), row)?;
        self.features.insert(image.id.as_str(), feature)?;
        self.header.content.add(&image.digest(check));
        self.header.images += 1;
        self.note(&image.id)
    }

    fn remove(&mut self, id: &str) -> Result<bool, redb::Error> {
        if !self.take_away(id)? {
            return Ok(false);
        }
        self.note(id)?;
        Ok(true)
    }

    fn take_away(&mut self, id: &str) -> Result<bool, redb::Error> {
        let Some(row) = self.records.remove(id)? else { return Ok(false) };
        let old = image_of(id, row.value());
        let (old, check) = old.ok_or_else(|| redb::Error::Corrupted(bad_attributes_of(id)))?;
        self.header.content.subtract(&old.digest(check));
        self.header.images = self.header.images.saturating_sub(1);
        self.features.remove(id)?;
        Ok(true)
    }

    fn note(&mut self, id: &str) -> Result<(), redb::Error> {
        self.changes.insert((self.header.meta.generation, id), ())?;
        self.changed += 1;
        Ok(())
    }
}

fn forget(write: &WriteTransaction, up_to: u64) -> Result<(), redb::Error> {
    write.open_table(CHANGES)?.retain_in::<(u64, &str), _>(..(up_to + 1, ""), |_, ()| false)?;
    write.open_table(CONTENTS)?.retain_in::<u64, _>(..up_to, |_, _| false)?;
    Ok(())
}

fn make(database: &Database, path: &Path, meta: Meta) -> Result<Header, StoreError> {
    let mut gallery = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut gallery).map_err(|error| StoreError::Random(error.to_string()))?;
    let meta = Meta { generation: 1, ..meta };
    let header = Header { meta, gallery, content: Content::default(), images: 0, changes_from: 1 };
    let attempt = || -> Result<Option<Header>, redb::Error> {
        let write = database.begin_write()?;
        // Made by another process meanwhile.
        if write.list_tables()?.next().is_some() {
            write.abort()?;
            return Ok(None);
        }
        write.open_table(RECORDS)?;
        write.open_table(FEATURES)?;
        write.open_table(CHANGES)?;
        write.open_table(CONTENTS)?.insert(meta.generation, &header.content.to_bytes())?;
        write_header(&write, &header)?;
        write.commit()?;
        Ok(Some(header))
    };
    if let Some(made) = attempt().map_err(|error| database_error(path, error))? {
        return Ok(made);
    }
    let read = database.begin_read().map_err(|error| database_error(path, error.into()))?;
    let damaged = || StoreError::Damaged { path: path.to_owned(), reason: "it has no table meta".to_owned() };
    read_header(read.open_table(META), path)?.ok_or_else(damaged)
}

/// Writes all of the table `meta`.
pub(super) fn write_header(write: &WriteTransaction, header: &Header) -> Result<(), redb::Error> {
    let mut table = write.open_table(META)?;
    let numbers = [
        ("format", FORMAT),
        ("dimension", header.meta.dimension as u64),
        ("generation", header.meta.generation),
        ("images", header.images),
        ("changes_from", header.changes_from),
    ];
    for (name, number) in numbers {
        table.insert(name, number.to_le_bytes().as_slice())?;
    }
    table.insert("space", header.meta.space.as_bytes().as_slice())?;
    table.insert("gallery", header.gallery.as_slice())?;
    table.insert("content", header.content.to_bytes().as_slice())?;
    Ok(())
}

fn bad_attributes_of(id: &str) -> String {
    format!("the attributes of {id} cannot be read")
}

fn bad_attributes(path: &Path, id: &str) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason: bad_attributes_of(id) }
}

/// Images in one commit of a copy.
const COPY_BATCH: usize = 4096;

/// Writes a generation into a new database `to`, checking every record. It is whole only when this returns: before, it has no
/// header, and is refused as empty.
///
/// # Errors
/// What is damaged, or cannot be written.
pub fn copy(from: &Committed, to: &Path, each: &mut dyn FnMut()) -> Result<(), StoreError> {
    let failed = |error: redb::Error| database_error(to, error);
    let database =
        contained(to, || builder(WRITE_CACHE_BYTES).create(to).map_err(|error| open_error(to, error)))?;
    let database = Contained::new(database);
    let write = |batch: &mut Vec<(Image, Vec<f32>)>| -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        let mut tables = Tables::open(&write, *from.header())?;
        for (image, feature) in batch.drain(..) {
            let feature: Vec<u8> = feature.iter().flat_map(|x| x.to_le_bytes()).collect();
            tables.put(&image, &feature)?;
        }
        drop(tables);
        // A copy is as old as itself: there is nothing before it to change from.
        write.open_table(CHANGES)?.retain(|_, ()| false)?;
        write.commit()?;
        Ok(())
    };
    let (mut batch, mut problem) = (Vec::with_capacity(COPY_BATCH), None);
    from.each(|image, feature| {
        batch.push((image, feature.to_vec()));
        each();
        if batch.len() == COPY_BATCH {
            problem = write(&mut batch).err();
        }
        problem.is_none()
    })?;
    if let Some(error) = problem {
        return Err(failed(error));
    }
    write(&mut batch).map_err(failed)?;
    let finish = || -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        let header = Header { changes_from: from.meta().generation, ..*from.header() };
        write.open_table(CONTENTS)?.insert(header.meta.generation, &header.content.to_bytes())?;
        write_header(&write, &header)?;
        write.commit()?;
        Ok(())
    };
    finish().map_err(failed)
}

impl Store {
    /// Lets `exchange` put another file in the place of this gallery's, while nobody can commit to it. Whoever has it open finds
    /// out at the next commit.
    ///
    /// # Errors
    /// When there is no transaction to be had, or the exchange fails.
    pub fn replaced_by(self, exchange: impl FnOnce() -> std::io::Result<()>) -> Result<(), StoreError> {
        contained(&self.path, || {
            let failed = |error: redb::Error| database_error(&self.path, error);
            let write = self.database.begin_write().map_err(|error| failed(error.into()))?;
            exchange().map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
            write.abort().map_err(|error| failed(error.into()))
        })
    }
}
