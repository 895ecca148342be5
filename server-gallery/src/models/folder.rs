//! Roll-outs on disk: `rollouts.toml`, an offer for each, and the networks, in the folder `models` of a gallery.
//!
//! `rollouts.toml` is written last and whole, so that what it names is there. Commands take turns by a lock; servers
//! only read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use glimpse_embedder::{EmbedError, Embedder, ModelError, Role, test_photo};
use glimpse_protocol::model::{CHUNK_BYTES_MAX, DIGEST_BYTES, MODEL_BYTES_MAX, Manifest, Offer};
use glimpse_protocol::{Codec, EMBEDDING_BYTES_MAX, Embedding, MESSAGE_BYTES_MAX, ModelId, SpaceId, VERSION};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::key::OperatorKey;
use super::{Rollout, Target};
use crate::access::file::{self, FileError};
use crate::access::registry::Timestamp;
use crate::matcher::Encoding;
use crate::monitor::now_ms;

/// The list of roll-outs.
pub const LIST: &str = "rollouts.toml";

/// The largest list that is read: 256 roll-outs take a quarter of it.
const LIST_BYTES_MAX: u64 = 256 << 10;

/// Roll-outs that are kept: a newer one to the same devices takes the place of an older.
const ROLLOUTS_MAX: usize = 256;

/// Test photos of a manifest.
const TEST_PHOTOS: u16 = 3;

const LIST_VERSION: u32 = 1;

const HEAD: &str =
    "# Roll-outs of query networks. `glimpse-gallery models push|stop|list` changes and shows them.\n";

/// Why roll-outs cannot be read or changed.
#[derive(Debug, Error)]
pub enum FolderError {
    /// The file system said no.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The list is none.
    #[error("{} cannot be used: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The network cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The file is too large for devices to take.
    #[error("{} has more than {} MiB, and devices take no larger network", .0.display(), MODEL_BYTES_MAX >> 20)]
    TooLarge(PathBuf),
    /// A gallery network, which no device runs.
    #[error("{} is no query network: its role is another", .0.display())]
    NotQuery(PathBuf),
    /// A network of another space.
    #[error(
        "{} lives in the space {found} and the gallery in {expected}: push a query network of the gallery's space bundle",
        path.display()
    )]
    OtherSpace {
        /// The network.
        path: PathBuf,
        /// Its space.
        found: SpaceId,
        /// The gallery's.
        expected: SpaceId,
    },
    /// The network does not embed its test photos.
    #[error("{} does not embed test photo {photo}", path.display())]
    Test {
        /// The network.
        path: PathBuf,
        /// Which photo.
        photo: u16,
        /// Why.
        #[source]
        source: EmbedError,
    },
    /// Too many.
    #[error(
        "there are {ROLLOUTS_MAX} roll-outs already: push to groups or to all devices instead of single ones"
    )]
    Full,
    /// None with this number.
    #[error("there is no roll-out {0}: `glimpse-gallery models list` shows those that are")]
    Unknown(u64),
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    version: u32,
    #[serde(default)]
    rollout: Vec<Rollout>,
}

impl Folder {
    /// That of a gallery.
    pub fn of_gallery(gallery: &Path) -> Self {
        Self(gallery.join(super::FOLDER))
    }

    /// The file that changes with every roll-out.
    pub fn list_file(&self) -> PathBuf {
        self.0.join(LIST)
    }

    /// All roll-outs, oldest first.
    ///
    /// # Errors
    /// A list that cannot be read, or is damaged.
    pub fn list(&self) -> Result<Vec<Rollout>, FolderError> {
        let path = self.list_file();
        let bytes = match read(&path, LIST_BYTES_MAX) {
            Err(FolderError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            bytes => bytes?,
        };
        parse_list(&bytes).map_err(|reason| FolderError::Damaged { path, reason })
    }

    /// Tests a network of this space, signs it, and begins its roll-out; earlier ones to the same devices end with it.
    ///
    /// # Errors
    /// A network that devices could not use, and files that cannot be read or written.
    pub fn push(
        &self,
        network: &Path,
        space: SpaceId,
        to: Target,
        key: &OperatorKey,
    ) -> Result<Rollout, FolderError> {
        let bytes = read(network, MODEL_BYTES_MAX).map_err(|error| match error {
            FolderError::Damaged { path, .. } => FolderError::TooLarge(path),
            other => other,
        })?;
        let tested = tested(network, space)?;
        if read(network, MODEL_BYTES_MAX)? != bytes {
            let reason = "it changed while it was tested".to_owned();
            return Err(FolderError::Damaged { path: network.to_owned(), reason });
        }
        let model = ModelId::from_bytes(*blake3::hash(&bytes).as_bytes());
        self.edit(|rollouts| {
            let last = rollouts.iter().map(|rollout| rollout.serial).max().unwrap_or(0);
            let manifest =
                Manifest { serial: now_ms().max(last + 1), ..manifest(&bytes, model, space, &tested) };
            let serial = manifest.serial;
            let manifest = Encoding::Cbor.write(&manifest);
            let signature = key.sign(&manifest);
            let offer = Offer { v: VERSION, manifest: manifest.into(), signature };
            file::write_private(&self.0.join(network_file(&model)), &bytes)?;
            file::write_private(&self.0.join(offer_file(serial)), &Encoding::Cbor.write(&offer))?;
            rollouts.retain(|earlier| to != Target::All && earlier.to != to);
            if rollouts.len() >= ROLLOUTS_MAX {
                return Err(FolderError::Full);
            }
            let name = network.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let rollout = Rollout { serial, model, name, to, created: Timestamp::now(), stopped: None };
            rollouts.push(rollout.clone());
            Ok(rollout)
        })
    }

    /// Ends a roll-out: devices that have not got the network yet do not get it.
    ///
    /// # Errors
    /// A number that is none, and a list that cannot be read or written.
    pub fn stop(&self, serial: u64) -> Result<Rollout, FolderError> {
        self.edit(|rollouts| {
            let rollout = rollouts.iter_mut().find(|rollout| rollout.serial == serial);
            let rollout = rollout.ok_or(FolderError::Unknown(serial))?;
            rollout.stopped.get_or_insert(Timestamp::now());
            Ok(rollout.clone())
        })
    }

    fn edit<T>(
        &self,
        change: impl FnOnce(&mut Vec<Rollout>) -> Result<T, FolderError>,
    ) -> Result<T, FolderError> {
        file::make_private_folder(&self.0)?;
        let _lock = file::lock(&self.0.join("rollouts.lock"))?;
        let mut rollouts = self.list()?;
        let done = change(&mut rollouts)?;
        let list = List { version: LIST_VERSION, rollout: rollouts };
        let text = toml::to_string(&list).expect("strings and numbers in tables are TOML");
        file::write_private(&self.list_file(), (HEAD.to_owned() + &text).as_bytes())?;
        self.sweep(&list.rollout);
        Ok(done)
    }

    /// Removes what no roll-out names. What cannot be removed now is by the next.
    fn sweep(&self, rollouts: &[Rollout]) {
        let named: BTreeSet<String> = rollouts
            .iter()
            .flat_map(|rollout| [network_file(&rollout.model), offer_file(rollout.serial)])
            .collect();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = [".onnx", ".offer", ".new"].iter().any(|end| name.ends_with(end));
            if is_ours && !named.contains(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The offer of a roll-out as it travels, and its manifest.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn offer(&self, rollout: &Rollout) -> Result<(Vec<u8>, Manifest), FolderError> {
        let path = self.0.join(offer_file(rollout.serial));
        let bytes = read(&path, MESSAGE_BYTES_MAX as u64)?;
        let manifest = read_offer(&bytes)
            .and_then(|manifest| {
                let is_its = (manifest.serial, manifest.model) == (rollout.serial, rollout.model);
                if is_its { Ok(manifest) } else { Err("it is of another roll-out".to_owned()) }
            })
            .map_err(|reason| FolderError::Damaged { path, reason })?;
        Ok((bytes, manifest))
    }

    /// Opens the file of a network.
    ///
    /// # Errors
    /// One that is not there.
    pub fn network(&self, model: &ModelId) -> io::Result<File> {
        File::open(self.0.join(network_file(model)))
    }
}

/// Reads `rollouts.toml`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_list(bytes: &[u8]) -> Result<Vec<Rollout>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let list: List = toml::from_str(text).map_err(|error| error.to_string())?;
    if list.version != LIST_VERSION {
        return Err(format!("it has version {}, and this program reads {LIST_VERSION}", list.version));
    }
    if list.rollout.len() > ROLLOUTS_MAX {
        return Err(format!("it has more than {ROLLOUTS_MAX} roll-outs"));
    }
    if !list.rollout.is_sorted_by(|a, b| a.serial < b.serial) {
        return Err("its serial numbers do not grow".to_owned());
    }
    Ok(list.rollout)
}

/// The manifest in the bytes of an offer, whose signature is the devices' business.
///
/// # Errors
/// What is wrong with it.
pub fn read_offer(bytes: &[u8]) -> Result<Manifest, String> {
    let offer: Offer = Encoding::Cbor.read(bytes)?;
    let manifest: Manifest = Encoding::Cbor.read(&offer.manifest)?;
    manifest.check().map_err(|error| error.to_string())?;
    Ok(manifest)
}

fn network_file(model: &ModelId) -> String {
    format!("{model}.onnx")
}

fn offer_file(serial: u64) -> String {
    format!("{serial}.offer")
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FolderError> {
    let failed = |source| FolderError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("it has more than {bytes_max} bytes");
        return Err(FolderError::Damaged { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// The embeddings of the test photos, `[photos, dimension]`, in `f16`.
fn tested(path: &Path, space: SpaceId) -> Result<Vec<u8>, FolderError> {
    let embedder = Embedder::load(path)?;
    if embedder.metadata().role != Role::Query {
        return Err(FolderError::NotQuery(path.to_owned()));
    }
    if embedder.space() != space {
        return Err(FolderError::OtherSpace {
            path: path.to_owned(),
            found: embedder.space(),
            expected: space,
        });
    }
    let failed = |photo, source| FolderError::Test { path: path.to_owned(), photo, source };
    let mut all = Vec::new();
    for photo in 0..TEST_PHOTOS {
        let embedding = embedder.embed(&test_photo(photo)).map_err(|source| failed(photo, source))?;
        let encoded = Embedding::<EMBEDDING_BYTES_MAX>::encode(Codec::F16, &embedding)
            .map_err(|error| failed(photo, EmbedError::Network(error.to_string())))?;
        all.extend_from_slice(&encoded.bytes);
    }
    Ok(all)
}

fn manifest(bytes: &[u8], model: ModelId, space: SpaceId, tested: &[u8]) -> Manifest {
    let digests = bytes
        .chunks(CHUNK_BYTES_MAX as usize)
        .flat_map(|chunk| blake3::hash(chunk).as_bytes()[..DIGEST_BYTES].to_vec());
    Manifest {
        v: Manifest::VERSION,
        serial: 0,
        model,
        space,
        bytes: bytes.len() as u64,
        chunk_bytes: CHUNK_BYTES_MAX,
        digests: digests.collect::<Vec<u8>>().into(),
        test_embeddings: tested.to_vec().into(),
        test_photos: TEST_PHOTOS,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use glimpse_protocol::DeviceId;

    pub(in super::super) fn demo() -> (PathBuf, SpaceId) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/query.onnx");
        let space = Embedder::load(&path).unwrap().space();
        (path, space)
    }

    fn key(place: &Path) -> OperatorKey {
        OperatorKey::load_or_make(&place.join("model.key")).unwrap().0
    }

    #[test]
    fn a_push_takes_the_place_of_earlier_ones_to_the_same_devices() {
        let place = tempfile::tempdir().unwrap();
        let (folder, key) = (Folder::of_gallery(place.path()), key(place.path()));
        let (network, space) = demo();
        assert_eq!(folder.list().unwrap(), []);
        let push = |to: &str| folder.push(&network, space, to.parse().unwrap(), &key).unwrap();
        let (first, hall) = (push("device cam-1"), push("group hall"));
        let second = push("device cam-1");
        assert!(first.serial < hall.serial && hall.serial < second.serial);
        assert_eq!(folder.list().unwrap(), [hall.clone(), second.clone()]);
        assert!(matches!(folder.offer(&first), Err(FolderError::Read { .. })), "swept away");
        let (bytes, manifest) = folder.offer(&second).unwrap();
        assert!(bytes.len() < MESSAGE_BYTES_MAX && manifest.space == space);
        assert_eq!(manifest.bytes, fs::metadata(&network).unwrap().len());
        assert_eq!(folder.network(&manifest.model).unwrap().metadata().unwrap().len(), manifest.bytes);
        assert!(folder.stop(hall.serial).unwrap().stopped.is_some());
        assert!(matches!(folder.stop(first.serial), Err(FolderError::Unknown(_))));
        let all = push("all");
        assert_eq!(folder.list().unwrap(), [all]);
        assert_eq!(fs::read_dir(folder.0).unwrap().count(), 4, "list, lock, offer and network");
    }

    #[test]
    fn a_network_that_devices_could_not_use_is_not_pushed() {
        let place = tempfile::tempdir().unwrap();
        let (folder, key) = (Folder::of_gallery(place.path()), key(place.path()));
        let (network, space) = demo();
        let told = |path: &Path, space| {
            let to = Target::Device(DeviceId::new("cam-1").unwrap());
            folder.push(path, space, to, &key).unwrap_err().to_string()
        };
        let other = SpaceId::from_bytes([9; 16]);
        assert!(told(&network, other).contains(&other.to_string()));
        let gallery = network.with_file_name("gallery.onnx");
        let expected = if fs::metadata(&gallery).unwrap().len() > MODEL_BYTES_MAX { "MiB" } else { "role" };
        assert!(told(&gallery, space).contains(expected));
        let noise = place.path().join("noise.onnx");
        fs::write(&noise, [0x55; 100]).unwrap();
        assert!(told(&noise, space).contains("noise.onnx"));
        assert!(told(&place.path().join("absent.onnx"), space).contains("absent.onnx"));
        assert_eq!(folder.list().unwrap(), []);
    }

    #[test]
    fn a_damaged_list_or_offer_is_named() {
        let place = tempfile::tempdir().unwrap();
        let (folder, key) = (Folder::of_gallery(place.path()), key(place.path()));
        let (network, space) = demo();
        let rollout = folder.push(&network, space, Target::All, &key).unwrap();
        let offer = folder.0.join(offer_file(rollout.serial));
        let whole = fs::read(&offer).unwrap();
        for bytes in [&whole[..whole.len() / 2], b"", &[0xff; 100]] {
            fs::write(&offer, bytes).unwrap();
            assert!(matches!(folder.offer(&rollout), Err(FolderError::Damaged { .. })));
        }
        let list = fs::read_to_string(folder.list_file()).unwrap();
        let twice = list.clone() + &list[list.find("[[rollout]]").unwrap()..];
        for text in ["version = 7", "[[rollout", "version = 1\nthing = 1", &twice, &"#".repeat(300_000)] {
            fs::write(folder.list_file(), text).unwrap();
            let error = folder.list().unwrap_err().to_string();
            assert!(error.contains(LIST), "{error}");
            assert!(folder.stop(rollout.serial).is_err());
            assert_eq!(fs::read_to_string(folder.list_file()).unwrap(), text, "it is not written over");
        }
    }
}
