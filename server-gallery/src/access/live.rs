//! The registry that a running server goes by.
//!
//! It is read at the start, where any fault is an error, and again whenever the file changes. A file that has become
//! unreadable or has gone changes nothing: the server keeps the last good registry, says so once, and lets nobody in
//! whom that one does not. Where the file system failed it tries again, so that no revocation is lost for want of a file
//! descriptor.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use super::audit::{Audit, Event};
use super::file::{self, FileError, REGISTRY};
use super::registry::Registry;

/// The access folder of a running server.
#[derive(Debug)]
pub struct Access {
    folder: PathBuf,
    audit: Audit,
    registry: RwLock<Option<Arc<Registry>>>,
    seen: Mutex<Looked>,
}

/// What the last look found.
#[derive(Debug)]
struct Looked {
    at: Option<Seen>,
    /// Whether reading failed since, and it was said.
    failed: bool,
}

/// What tells one version of the file from another: a changed registry is another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    changed: Option<SystemTime>,
    bytes: u64,
    file: u64,
    mode: u32,
}

impl Seen {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let (changed, bytes) = (metadata.modified().ok(), metadata.len());
        Self { changed, bytes, file: metadata.ino(), mode: metadata.mode() }
    }

    #[cfg(not(unix))]
    fn of(metadata: &Metadata) -> Self {
        Self { changed: metadata.modified().ok(), bytes: metadata.len(), file: 0, mode: 0 }
    }
}

impl Access {
    /// Reads the registry of a folder; a folder that is not there is one without a registry.
    ///
    /// # Errors
    /// When the registry cannot be read, others can read or write it, or it is damaged.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        // Looked at before it is read: a change in between is then seen by the next look.
        let seen = look(folder);
        let registry = file::load(folder)?.map(Arc::new);
        Ok(Self {
            folder: folder.to_owned(),
            audit: Audit::new(folder),
            registry: RwLock::new(registry),
            seen: Mutex::new(Looked { at: seen, failed: false }),
        })
    }

    /// The registry; `None` while there is none and nobody has to prove anything.
    pub fn registry(&self) -> Option<Arc<Registry>> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Devices in the registry.
    pub fn devices(&self) -> usize {
        self.registry().map_or(0, |registry| registry.len())
    }

    /// The audit log.
    pub const fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Takes up a changed registry; returns whether it did. Reads files, so not for an async thread.
    pub fn refresh(&self) -> bool {
        let now = look(&self.folder);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at == now {
            return false;
        }
        let loaded = file::load(&self.folder);
        if let Err(error @ FileError::Io { .. }) = &loaded {
            // What could not be read is not seen: the next look tries again.
            let said = std::mem::replace(&mut seen.failed, true);
            return !said && self.refuse(&error.to_string());
        }
        *seen = Looked { at: now, failed: false };
        match loaded {
            Ok(Some(registry)) => {
                let devices = registry.len();
                *self.registry.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(registry));
                tracing::info!(devices, "took up the changed registry of devices");
                self.audit.record(Event::RegistryReloaded { devices });
                true
            }
            Ok(None) if self.registry().is_none() => false,
            Ok(None) => self.refuse(&format!("{} has gone", self.folder.join(REGISTRY).display())),
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    fn refuse(&self, reason: &str) -> bool {
        tracing::error!(reason, "the registry of devices cannot be used: going by the last good one");
        self.audit.record(Event::RegistryRefused { reason });
        false
    }
}

fn look(folder: &Path) -> Option<Seen> {
    std::fs::metadata(folder.join(REGISTRY)).ok().map(|metadata| Seen::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{id, with_password};
    use super::*;
    use crate::password;

    #[test]
    fn a_changed_registry_is_taken_up_and_a_damaged_one_is_not() {
        let place = tempfile::tempdir().unwrap();
        let access = Access::open(place.path()).unwrap();
        assert!(access.registry().is_none() && !access.refresh());
        let device = with_password(&password::hash("secret").unwrap());
        file::edit(place.path(), |registry| registry.add(id("a"), device.clone())).unwrap();
        assert!(access.refresh() && !access.refresh());
        assert_eq!(access.devices(), 1);

        let path = place.path().join(REGISTRY);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(!access.refresh() && access.devices() == 1);
        std::fs::remove_file(&path).unwrap();
        assert!(!access.refresh() && access.devices() == 1, "a lost registry does not open the door");

        file::edit(place.path(), |registry| registry.add(id("b"), device.clone())).unwrap();
        file::edit(place.path(), |registry| registry.remove(&id("b")).map(drop)).unwrap();
        assert!(access.refresh());
        assert!(access.registry().is_some_and(|registry| registry.is_empty()), "empty, and still closed");
        let log = std::fs::read_to_string(access.audit().path()).unwrap();
        assert_eq!(log.matches("registry_refused").count(), 2, "{log}");
    }

    #[test]
    #[cfg(unix)]
    fn a_revocation_that_could_not_be_read_at_first_is_taken_up_later() {
        use std::os::unix::fs::DirBuilderExt as _;
        let place = tempfile::tempdir().unwrap();
        let device = with_password(&password::hash("secret").unwrap());
        file::edit(place.path(), |registry| registry.add(id("a"), device.clone())).unwrap();
        let access = Access::open(place.path()).unwrap();
        let before = access.seen.lock().unwrap().at;
        // A folder can be opened and not be read, whoever asks.
        let (path, aside) = (place.path().join(REGISTRY), place.path().join("aside"));
        file::edit(place.path(), |registry| registry.remove(&id("a")).map(drop)).unwrap();
        std::fs::rename(&path, &aside).unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        assert!(!access.refresh() && !access.refresh());
        assert_eq!((access.devices(), access.seen.lock().unwrap().at), (1, before));
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert!(access.refresh() && access.devices() == 0);
        let log = std::fs::read_to_string(access.audit().path()).unwrap();
        assert_eq!(log.matches("registry_refused").count(), 1, "said once: {log}");
    }
}
