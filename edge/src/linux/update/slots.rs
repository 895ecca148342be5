//! What a device keeps of networks that its server gave it: two slots for ONNX files, a file that grows while one
//! comes in, and a record that says which network is to run.
//!
//! ```text
//! DIR/record         serial number of the last manifest, what runs, what is on trial, what failed
//! DIR/record.before  the one before it
//! DIR/a.onnx b.onnx  one of them runs, the other is the one before or the next
//! DIR/incoming.part  chunks of the next
//! ```
//!
//! The record is written beside itself, brought to the disk and renamed, and begins with a hash of what follows: a
//! power cut leaves the old one or the new one. A file whose hash is not what the record says is not run. So whatever
//! happens between two steps, the device starts with a network that once worked: that of the record, or the one of
//! its configuration.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use glimpse_protocol::ModelId;
use glimpse_protocol::model::{MODEL_BYTES_MAX, Manifest};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const RECORD: &str = "record";
const RECORD_BEFORE: &str = "record.before";
const INCOMING: &str = "incoming.part";
const LOCK: &str = "lock";

/// The largest record; ours have some 500 bytes.
const RECORD_BYTES_MAX: u64 = 16 << 10;

/// Starts that a network on trial has to prove itself, each cut short within [`super::STANDS_AFTER`].
const STARTS_MAX: u8 = 3;

/// Why a network cannot be kept.
#[derive(Debug, Error)]
#[error("the folder of networks from the server cannot be used: {} (state = ..)", path.display())]
pub struct SlotsError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A file for a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Slot {
    A,
    B,
}

impl Slot {
    const fn file(self) -> &'static str {
        match self {
            Self::A => "a.onnx",
            Self::B => "b.onnx",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A network in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    slot: Slot,
    model: ModelId,
}

/// A network that has not proved itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    kept: Kept,
    /// Of its manifest.
    serial: u64,
    starts: u8,
}

/// Why the network of a manifest is not what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    serial: u64,
    reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Of the last manifest that was taken up: one that is not larger is an old one played again.
    serial: u64,
    /// The network of the configuration. Another one there was put by a person, who wants it to run.
    factory: Option<ModelId>,
    /// What runs, and has proved itself; `None`: the network of the configuration.
    current: Option<Kept>,
    trial: Option<Trial>,
    failed: Option<Failure>,
}

impl Record {
    /// What is told of an earlier manifest is not told in the place of a later one's.
    fn fail(&mut self, serial: u64, reason: &str) {
        if self.failed.as_ref().is_none_or(|failed| failed.serial <= serial) {
            self.failed = Some(Failure { serial, reason: reason.to_owned() });
        }
    }
}

/// The folder, locked for this program.
///
/// A disk that fails does not keep the device from running a network: what cannot be written is told in the log and
/// holds for this process. Only a new network needs the disk, and is not taken up without it.
#[derive(Debug)]
pub struct Slots {
    folder: PathBuf,
    record: Record,
    _lock: Option<File>,
}

impl Slots {
    /// Opens the folder, or makes it. A record that is damaged gives way to the one before, and that to none: the
    /// network of the configuration runs.
    ///
    /// # Errors
    /// A folder that another program uses.
    pub fn open(folder: &Path, factory: ModelId) -> Result<Self, SlotsError> {
        let trouble = |what: &str, error: &io::Error| {
            tracing::error!(folder = %folder.display(), %error, "networks from the server: {what}");
        };
        if let Err(error) = fs::create_dir_all(folder) {
            trouble("the folder cannot be made", &error);
        }
        let path = folder.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock =
            lock.or_else(|_| File::open(&path)).inspect_err(|error| trouble("there is no lock", error)).ok();
        if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
            let source = io::Error::other("another glimpse-edge uses it");
            return Err(SlotsError { path: folder.to_owned(), source });
        }
        let (record, is_whole) = read_either(folder);
        let mut slots = Self { folder: folder.to_owned(), record, _lock: lock };
        if slots.record.factory != Some(factory) {
            if slots.record.current.is_some() || slots.record.trial.is_some() {
                tracing::info!(model = %factory, "the configuration names another network than before: it runs now");
            }
            let serial = slots.record.serial;
            let record = Record { serial, factory: Some(factory), ..Record::default() };
            // What could not be read now may be read at the next start.
            if is_whole { slots.settle(record) } else { slots.record = record }
        }
        Ok(slots)
    }

    /// The network that is to start, and whether it is on trial; `None`: that of the configuration. For one on trial the
    /// start is counted, and after too many of them it is dropped; where that cannot be written, it is not started.
    pub fn begin(&mut self) -> Option<(ModelId, PathBuf, bool)> {
        if let Some(trial) = self.record.trial {
            if trial.starts < STARTS_MAX {
                let counted = Some(Trial { starts: trial.starts + 1, ..trial });
                match self.write(Record { trial: counted, ..self.record.clone() }) {
                    Ok(()) => return Some((trial.kept.model, self.path(trial.kept.slot), true)),
                    Err(error) => {
                        tracing::error!(error = super::chain(&error), "the network on trial is not started");
                        self.record.trial = None;
                    }
                }
            } else {
                self.roll_back(&format!("the device did not stay up in {STARTS_MAX} starts with it"));
            }
        }
        self.record.current.map(|kept| (kept.model, self.path(kept.slot), false))
    }

    /// The network on trial does not keep the device from staying up.
    pub fn stands(&mut self) {
        if let Some(trial) = self.record.trial.filter(|trial| trial.starts > 0) {
            self.settle(Record { trial: Some(Trial { starts: 0, ..trial }), ..self.record.clone() });
        }
    }

    /// The network on trial has proved itself.
    pub fn keep(&mut self) {
        let Some(trial) = self.record.trial else { return };
        let failed = self.record.failed.clone().filter(|failed| failed.serial > trial.serial);
        self.settle(Record { current: Some(trial.kept), trial: None, failed, ..self.record.clone() });
    }

    /// Goes back to the network before the one on trial.
    pub fn roll_back(&mut self, reason: &str) {
        let Some(trial) = self.record.trial else { return };
        tracing::warn!(model = %trial.kept.model, "going back to the network before: {reason}");
        let mut record = Record { trial: None, ..self.record.clone() };
        record.fail(trial.serial, reason);
        self.settle(record);
    }

    /// The network that runs cannot be used any more: the configuration's is next.
    pub fn give_up_current(&mut self, reason: &str) {
        let mut record = Record { current: None, ..self.record.clone() };
        record.fail(record.serial, reason);
        self.settle(record);
    }

    /// Takes a manifest up whose network is not needed, or cannot be used.
    pub fn close(&mut self, serial: u64, failed: Option<&str>) {
        let mut record = Record { serial, failed: None, ..self.record.clone() };
        if let Some(reason) = failed {
            record.fail(serial, reason);
        }
        self.settle(record);
    }

    /// Puts the file that came in into the slot that is free, and its network on trial.
    ///
    /// # Errors
    /// A file that cannot be moved, a record that cannot be written.
    pub fn install(&mut self, incoming: Incoming, manifest: &Manifest) -> Result<(), SlotsError> {
        let slot = self.record.current.map_or(Slot::A, |current| current.slot.other());
        let moved = incoming.file.sync_all().and_then(|()| fs::rename(&incoming.path, self.path(slot)));
        moved.map_err(|source| self.error(source))?;
        let (serial, kept) = (manifest.serial, Kept { slot, model: manifest.model });
        let trial = Some(Trial { kept, serial, starts: 0 });
        self.write(Record { serial, trial, failed: None, ..self.record.clone() })
    }

    /// The serial number of the last manifest that was taken up.
    pub const fn serial(&self) -> u64 {
        self.record.serial
    }

    /// The manifest whose network is not what runs, and why not.
    pub fn failed(&self) -> Option<(u64, &str)> {
        self.record.failed.as_ref().map(|failed| (failed.serial, failed.reason.as_str()))
    }

    /// The manifest whose network is on trial.
    pub fn on_trial(&self) -> Option<u64> {
        self.record.trial.map(|trial| trial.serial)
    }

    /// The file for the chunks of a network, with those that are in it already.
    ///
    /// # Errors
    /// A file that cannot be made or read.
    pub fn incoming(&self, manifest: &Manifest) -> Result<Incoming, SlotsError> {
        Incoming::open(self.folder.join(INCOMING), manifest).map_err(|source| self.error(source))
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.folder.join(slot.file())
    }

    pub(super) fn error(&self, source: io::Error) -> SlotsError {
        SlotsError { path: self.folder.clone(), source }
    }

    /// What is decided holds, whether or not the disk takes it.
    fn settle(&mut self, record: Record) {
        if let Err(error) = self.write(record.clone()) {
            tracing::error!(error = super::chain(&error), "this is forgotten at the next start");
            self.record = record;
        }
    }

    fn write(&mut self, record: Record) -> Result<(), SlotsError> {
        let body = serde_json::to_vec(&record).map_err(|error| self.error(error.into()))?;
        let at = |name: &str| self.folder.join(name);
        let written = || -> io::Result<()> {
            let mut file = File::create(at("record.new"))?;
            file.write_all(blake3::hash(&body).to_hex().as_bytes())?;
            file.write_all(b"\n")?;
            file.write_all(&body)?;
            file.sync_all()?;
            match fs::rename(at(RECORD), at(RECORD_BEFORE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::rename(at("record.new"), at(RECORD))?;
            File::open(&self.folder)?.sync_all()
        };
        written().map_err(|source| self.error(source))?;
        self.record = record;
        Ok(())
    }
}

/// The record, or the one before where it is damaged or a power cut came between two renames; and whether nothing was
/// unreadable that a later start may read.
fn read_either(folder: &Path) -> (Record, bool) {
    let mut is_whole = true;
    for name in [RECORD, RECORD_BEFORE] {
        match read_record(&folder.join(name)) {
            Ok(Some(record)) => return (record, is_whole),
            Ok(None) => {}
            Err(reason) => {
                is_whole &= matches!(reason, Unreadable::Damaged(_));
                tracing::error!(folder = %folder.display(), "the file {name} of networks from the server: {reason}");
            }
        }
    }
    (Record::default(), is_whole)
}

/// Why there is no record.
#[derive(Debug, Error)]
enum Unreadable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// `None` where there is none yet.
fn read_record(path: &Path) -> Result<Option<Record>, Unreadable> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    let damaged = |reason: &str| Unreadable::Damaged(reason.to_owned());
    let (hash, body) = bytes.split_at_checked(65).ok_or_else(|| damaged("it is cut short"))?;
    if hash.strip_suffix(b"\n") != Some(blake3::hash(body).to_hex().as_bytes()) {
        return Err(damaged("its hash is another"));
    }
    serde_json::from_slice(body).map(Some).map_err(|error| Unreadable::Damaged(error.to_string()))
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was missing, and is there.
    New,
    /// It was there already.
    Known,
    /// Its bytes are not what the manifest says.
    Wrong,
}

/// A network that comes in.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    have: Vec<bool>,
}

impl Incoming {
    fn open(path: PathBuf, manifest: &Manifest) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        // What is there may be of another network: a chunk that has the right digest is right all the same.
        let mut incoming = Self { path, file, have: vec![false; manifest.chunks() as usize] };
        incoming.file.set_len(manifest.bytes.min(MODEL_BYTES_MAX))?;
        let mut file = &incoming.file;
        let mut bytes = vec![0; manifest.chunk_bytes as usize];
        for (chunk, have) in (0..).zip(&mut incoming.have) {
            let Some((_, length)) = manifest.place(chunk) else { break };
            let bytes = &mut bytes[..length];
            file.read_exact(bytes)?;
            *have = has_digest(bytes, manifest.digest(chunk));
        }
        Ok(incoming)
    }

    /// Takes a chunk.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn put(&mut self, manifest: &Manifest, chunk: u32, bytes: &[u8]) -> io::Result<Put> {
        let (Some((begin, length)), Some(have)) = (manifest.place(chunk), self.have.get_mut(chunk as usize))
        else {
            return Ok(Put::Wrong);
        };
        if *have {
            return Ok(Put::Known);
        }
        if length != bytes.len() || !has_digest(bytes, manifest.digest(chunk)) {
            return Ok(Put::Wrong);
        }
        self.file.seek(io::SeekFrom::Start(begin))?;
        self.file.write_all(bytes)?;
        *have = true;
        Ok(Put::New)
    }

    /// The first chunks that are not there.
    pub fn missing(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.have).filter(|(_, have)| !**have).map(|(chunk, _)| chunk)
    }

    /// How much is there, 0 to 100.
    pub fn percent(&self) -> u8 {
        let there = self.have.iter().filter(|have| **have).count();
        (there * 100 / self.have.len().max(1)) as u8
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn has_digest(bytes: &[u8], digest: Option<&[u8]>) -> bool {
    digest.is_some_and(|digest| blake3::hash(bytes).as_bytes().starts_with(digest))
}

#[cfg(test)]
mod tests {
    use super::super::tests::manifest;
    use super::*;
    use crate::linux::model::model_id;

    fn id(n: u8) -> ModelId {
        ModelId::from_bytes([n; 32])
    }

    fn take(slots: &mut Slots, serial: u64, bytes: &[u8]) -> ModelId {
        let manifest = manifest(serial, bytes);
        let mut incoming = slots.incoming(&manifest).unwrap();
        let missing: Vec<u32> = incoming.missing().collect();
        for chunk in missing {
            let (begin, length) = manifest.place(chunk).unwrap();
            let put = incoming.put(&manifest, chunk, &bytes[begin as usize..][..length]);
            assert_eq!(put.unwrap(), Put::New);
        }
        assert_eq!(model_id(incoming.path()).unwrap(), manifest.model);
        slots.install(incoming, &manifest).unwrap();
        manifest.model
    }

    fn begun(slots: &mut Slots) -> Option<(ModelId, bool)> {
        slots.begin().map(|(model, path, on_trial)| {
            assert_eq!(model_id(&path).unwrap(), model);
            (model, on_trial)
        })
    }

    #[test]
    fn a_network_is_on_trial_until_it_is_kept_and_the_one_before_stays() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("var/state");
        let mut slots = Slots::open(&folder, id(1)).unwrap();
        assert_eq!((begun(&mut slots), slots.serial()), (None, 0));
        let first = take(&mut slots, 5, &[1; 2500]);
        assert_eq!(begun(&mut slots), Some((first, true)));
        slots.keep();
        assert_eq!(begun(&mut slots), Some((first, false)));
        let second = take(&mut slots, 6, &[2; 2500]);
        drop(slots);
        let mut slots = Slots::open(&folder, id(1)).unwrap();
        assert_eq!((begun(&mut slots), slots.serial()), (Some((second, true)), 6));
        slots.roll_back("it is bad");
        assert_eq!((begun(&mut slots), slots.failed()), (Some((first, false)), Some((6, "it is bad"))));
        // The slot of what runs is never written.
        take(&mut slots, 7, &[3; 10]);
        slots.roll_back("and this");
        assert_eq!(begun(&mut slots), Some((first, false)));
    }

    #[test]
    fn a_network_that_does_not_stay_up_is_dropped_and_one_that_does_is_not() {
        let place = tempfile::tempdir().unwrap();
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        let model = take(&mut slots, 5, &[1; 100]);
        for _ in 0..STARTS_MAX {
            assert_eq!(begun(&mut slots), Some((model, true)));
        }
        slots.stands();
        for _ in 0..STARTS_MAX {
            drop(slots);
            slots = Slots::open(place.path(), id(1)).unwrap();
            assert_eq!(begun(&mut slots), Some((model, true)));
        }
        assert_eq!(begun(&mut slots), None);
        assert!(slots.failed().unwrap().1.contains("did not stay up"));
    }

    #[test]
    fn another_network_in_the_configuration_runs_and_old_manifests_stay_old() {
        let place = tempfile::tempdir().unwrap();
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        take(&mut slots, 5, &[1; 100]);
        slots.keep();
        drop(slots);
        let mut slots = Slots::open(place.path(), id(2)).unwrap();
        assert_eq!((begun(&mut slots), slots.serial()), (None, 5));
    }

    #[test]
    fn a_damaged_record_gives_way_to_the_one_before_and_that_to_none() {
        let place = tempfile::tempdir().unwrap();
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        let model = take(&mut slots, 5, &[1; 100]);
        slots.keep();
        drop(slots);
        let path = place.path().join(RECORD);
        let whole = fs::read(&path).unwrap();
        for place_of_bit in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place_of_bit] ^= 4;
            for bytes in [&damaged, &whole[..place_of_bit]] {
                fs::write(&path, bytes).unwrap();
                assert!(matches!(read_record(&path), Err(Unreadable::Damaged(_))));
            }
        }
        // Before it was kept it was on trial; the serial number is not lost.
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        assert_eq!((begun(&mut slots), slots.serial()), (Some((model, true)), 5));
        drop(slots);
        for name in [RECORD, RECORD_BEFORE] {
            fs::write(place.path().join(name), "").unwrap();
        }
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        assert_eq!((begun(&mut slots), slots.serial()), (None, 0));
    }

    #[test]
    fn a_folder_that_cannot_be_written_keeps_no_device_from_starting() {
        let place = tempfile::tempdir().unwrap();
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        let kept = take(&mut slots, 5, &[1; 100]);
        slots.keep();
        take(&mut slots, 6, &[2; 100]);
        drop(slots);
        // Where a folder stands no file can be written, by root neither.
        fs::create_dir(place.path().join("record.new")).unwrap();
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        assert_eq!(begun(&mut slots), Some((kept, false)), "a start that cannot be counted is none");
        slots.close(7, Some("no room"));
        assert_eq!((slots.serial(), slots.failed()), (7, Some((7, "no room"))));
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let mut slots = Slots::open(&file, id(1)).unwrap();
        assert_eq!(begun(&mut slots), None);
        assert!(slots.incoming(&manifest(8, &[3; 10])).is_err());
    }

    #[test]
    fn what_becomes_of_one_network_is_not_told_of_another() {
        let place = tempfile::tempdir().unwrap();
        let mut slots = Slots::open(place.path(), id(1)).unwrap();
        let first = take(&mut slots, 5, &[1; 100]);
        slots.close(6, Some("it failed its test"));
        assert_eq!((slots.on_trial(), slots.serial()), (Some(5), 6));
        slots.keep();
        assert_eq!(
            (begun(&mut slots), slots.failed()),
            (Some((first, false)), Some((6, "it failed its test")))
        );
        take(&mut slots, 7, &[2; 100]);
        slots.close(8, Some("another space"));
        slots.roll_back("refused");
        assert_eq!((begun(&mut slots), slots.failed()), (Some((first, false)), Some((8, "another space"))));
    }

    #[test]
    fn chunks_that_are_there_are_not_asked_for_again_whatever_the_file_held() {
        let place = tempfile::tempdir().unwrap();
        let slots = Slots::open(place.path(), id(1)).unwrap();
        let bytes: Vec<u8> = (0..2500_u32).map(|i| (i / 7) as u8).collect();
        let manifest = manifest(5, &bytes);
        fs::write(place.path().join(INCOMING), vec![9; 9000]).unwrap();
        let mut incoming = slots.incoming(&manifest).unwrap();
        assert_eq!((incoming.missing().count(), incoming.percent()), (3, 0));
        for (chunk, bytes, expected) in [
            (2, &bytes[..500], Put::Wrong),
            (2, &bytes[2000..2499], Put::Wrong),
            (3, b"", Put::Wrong),
            (2, &bytes[2000..], Put::New),
            (2, &bytes[2000..], Put::Known),
        ] {
            assert_eq!(incoming.put(&manifest, chunk, bytes).unwrap(), expected);
        }
        drop(incoming);
        let incoming = slots.incoming(&manifest).unwrap();
        assert_eq!((incoming.missing().collect::<Vec<_>>(), incoming.percent()), (vec![0, 1], 33));
    }

    #[test]
    fn two_programs_do_not_share_the_folder() {
        let place = tempfile::tempdir().unwrap();
        let slots = Slots::open(place.path(), id(1)).unwrap();
        let error = anyhow::Error::from(Slots::open(place.path(), id(1)).unwrap_err());
        assert!(format!("{error:#}").contains("another glimpse-edge"), "{error:#}");
        drop(slots);
        Slots::open(place.path(), id(1)).unwrap();
    }
}
