//! Plans in files: what a network became the first time, for the times after that.
//!
//! A folder holds a file for each network, named after what it was made of: the ONNX file, the options and the sources of what made
//! it. Each is whole, or it is not there: it is written beside its place and then moved, and whoever reads it holds it
//! against its checksum. Nothing depends on the folder: where it cannot be read or written, networks are built from their ONNX
//! files as ever.
//!
//! A plan's weights stay in its file, which the system maps: it reads them when they are needed, and takes their memory back when
//! there is little. No program changes a file that is there; a person who does so, other than by removing it, must expect a program
//! that runs on it to end.

use std::fs;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use glimpse_plan::{Memory, Plan};
use memmap2::Mmap;

use crate::EmbedderOptions;
use crate::metadata::ModelMetadata;

/// What a file begins with.
const MAGIC: &[u8; 8] = b"GLIMPC-2";

/// What the plan's first byte lies at a multiple of, so that its weights can be used where they are.
const ALIGNED: usize = 64;

/// Before what the checksum is of: magic and checksum.
const HEAD: usize = MAGIC.len() + blake3::OUT_LEN;

/// Files that are kept, the newest.
const FILES_MAX: usize = 8;

/// The largest file that is read: the largest network that a device takes, and as much again.
const BYTES_MAX: u64 = 512 << 20;

/// A draft that was not moved for so long is somebody's who is gone.
const DRAFT_AGE: Duration = Duration::from_hours(1);

/// A folder of plans.
#[derive(Debug, Clone)]
pub struct PlanCache {
    folder: PathBuf,
}

/// The name of a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key(blake3::Hash);

impl PlanCache {
    /// Plans in `folder`, which is made where it is not there.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder that the environment names for `program`: that of its service (`CACHE_DIRECTORY`, as systemd sets it), or the
    /// user's (`XDG_CACHE_HOME`, or `.cache` at home). `None` where it names none.
    pub fn of_environment(program: &str) -> Option<Self> {
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let service = named("CACHE_DIRECTORY").map(|folders| {
            // There may be several, with colons between.
            let folders = folders.to_string_lossy().into_owned();
            PathBuf::from(folders.split(':').next().unwrap_or_default())
        });
        let user = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
        let folder = service.or_else(|| Some(user()?.join(program)))?;
        folder.is_absolute().then(|| Self::new(folder.join("plans")))
    }

    pub(crate) fn key(model: &[u8], options: &EmbedderOptions) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("glimpse plan cache, version 1");
        hasher.update(blake3::hash(model).as_bytes());
        hasher.update(env!("GLIMPSE_PLAN_SOURCES").as_bytes());
        let EmbedderOptions { isa, pointwise, dense, depthwise, int8, threads: _, batch: _ } = options;
        hasher.update(format!(" {isa:?} {pointwise} {dense} {depthwise} {int8}").as_bytes());
        Key(hasher.finalize())
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{}.plan", key.0.to_hex()))
    }

    /// What was kept, if it is there and whole.
    pub(crate) fn load(&self, key: Key) -> Option<(ModelMetadata, Plan)> {
        let path = self.path(key);
        let file = fs::File::open(&path).ok()?;
        let read = whole(&file).and_then(|()| read(&mapped(&file)?));
        if let Err(reason) = &read {
            tracing::warn!(plan = %path.display(), "a kept plan is passed over, and made anew: {reason}");
        }
        read.ok()
    }

    /// Keeps a plan.
    pub(crate) fn store(&self, key: Key, metadata: &ModelMetadata, plan: &Plan) {
        if let Err(error) = self.try_store(key, metadata, plan) {
            tracing::debug!(folder = %self.folder.display(), %error, "a plan could not be kept");
        }
    }

    fn try_store(&self, key: Key, metadata: &ModelMetadata, plan: &Plan) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.tidy();
        // Nobody else's, in another container neither.
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let number = format!("{}-{}", std::process::id(), age.as_nanos());
        let draft = self.folder.join(format!("{}.{number}.draft", key.0.to_hex()));
        let written = || {
            let mut file = fs::File::create_new(&draft)?;
            write(&mut file, metadata, plan)?;
            file.sync_all()
        };
        let moved = written().and_then(|()| fs::rename(&draft, self.path(key)));
        if moved.is_err() {
            // Half a draft is of no use to anybody.
            let _ = fs::remove_file(&draft);
        }
        moved
    }

    /// Makes room for one more: removes the oldest plans, and drafts that nobody writes any more. What cannot be removed stays.
    fn tidy(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut plans = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            let written = written.unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("plan") => plans.push((written, path)),
                Some("draft") if written.elapsed().is_ok_and(|age| age > DRAFT_AGE) => remove(&path),
                _ => {}
            }
        }
        plans.sort();
        let over = (plans.len() + 1).saturating_sub(FILES_MAX);
        plans.iter().take(over).for_each(|(_, path)| remove(path));
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "an old plan could not be removed");
    }
}

/// Magic, checksum of the rest, metadata with its length, zeros, plan.
fn write(file: &mut fs::File, metadata: &ModelMetadata, plan: &Plan) -> io::Result<()> {
    let props = serde_json::to_vec(&metadata.to_props())?;
    let mut start = (props.len() as u64).to_le_bytes().to_vec();
    start.extend(props);
    start.resize((HEAD + start.len()).next_multiple_of(ALIGNED) - HEAD, 0);
    let mut hasher = blake3::Hasher::new();
    let mut to = BufWriter::new(&mut *file);
    to.write_all(&[0; HEAD])?;
    let mut put = |part: &[u8]| {
        hasher.update(part);
        to.write_all(part)
    };
    put(&start)?;
    plan.write_parts(put)?;
    to.flush()?;
    drop(to);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(MAGIC)?;
    file.write_all(hasher.finalize().as_bytes())
}

/// Holds a file against its checksum, reading it as any other: a disk that cannot be read is an error here, and the end of the program
/// that finds out through a map.
fn whole(file: &fs::File) -> Result<(), String> {
    let failed = |error: io::Error| format!("it cannot be read: {error}");
    let length = file.metadata().map_err(failed)?.len();
    if length > BYTES_MAX {
        return Err(format!("it is larger than {BYTES_MAX} bytes"));
    }
    let mut from = BufReader::new(file).take(BYTES_MAX);
    let mut head = [0; HEAD];
    from.read_exact(&mut head).map_err(|_| "it ends too early".to_owned())?;
    let checksum = head.strip_prefix(MAGIC.as_slice()).ok_or("it is of another version")?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(from).map_err(failed)?;
    if hasher.finalize().as_bytes() == checksum { Ok(()) } else { Err("its checksum is wrong".to_owned()) }
}

/// The file in memory: mapped, or read where its file system has no maps.
fn mapped(mut file: &fs::File) -> Result<Memory, String> {
    // SAFETY: files of this folder are written elsewhere and moved here, and never changed; see the module's documentation.
    if let Ok(map) = unsafe { Mmap::map(file) } {
        return Ok(Memory::new(map));
    }
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| format!("it cannot be read: {error}"))?;
    Ok(Memory::new(bytes))
}

fn read(memory: &Memory) -> Result<(ModelMetadata, Plan), String> {
    let bytes = memory.bytes();
    let ends = || "it ends too early".to_owned();
    let (length, rest) = bytes.get(HEAD..).and_then(|body| body.split_first_chunk::<8>()).ok_or_else(ends)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| ends())?;
    let props = rest.get(..length).ok_or_else(ends)?;
    let plan_at = (bytes.len() - rest.len() + length).next_multiple_of(ALIGNED);
    let props: Vec<(String, String)> = serde_json::from_slice(props).map_err(|error| error.to_string())?;
    let props = props.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let metadata = ModelMetadata::from_props(props)?;
    let plan = Plan::read_within(memory, plan_at..bytes.len()).map_err(|error| error.to_string())?;
    let [_, height, width] = plan.input();
    let wanted = [metadata.preprocessing.height as usize, metadata.preprocessing.width as usize];
    if [height, width] != wanted || plan.output_len() != metadata.dimension {
        return Err("its plan is of another network".to_owned());
    }
    Ok((metadata, plan))
}
