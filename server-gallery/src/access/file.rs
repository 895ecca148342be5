//! The registry on disk: read with its permissions checked, changed as a whole and under a lock.
//!
//! A change writes a temporary file beside the registry, brings it to the disk, and renames it over the old one, so
//! that a reader and a power cut see either registry whole. Commands that run at once take turns by the lock file;
//! the server only reads, and needs no lock.
//!
//! What root makes is given to the owner of the folder that it is made in: the service, which is not root, has to read it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::registry::{REGISTRY_BYTES_MAX, Registry, RegistryError};
use crate::password::PASSWORD_BYTES_MAX;

/// The registry's name in the access folder.
pub const REGISTRY: &str = "devices.toml";

const LOCK: &str = "devices.lock";

/// How long a command waits for others that change the registry; each takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the registry cannot be read or changed.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read or write what only the server and its administrator may.
    #[error(
        "{} has the mode {mode:o}, so that others on this machine can {can}: run `chmod {right} {}`",
        path.display(),
        path.display()
    )]
    Mode {
        /// File or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What others can do.
        can: &'static str,
        /// The mode that it should have.
        right: &'static str,
    },
    /// Too large to be a registry.
    #[error("{} is larger than {REGISTRY_BYTES_MAX} bytes: it is no registry of devices", .0.display())]
    TooLarge(PathBuf),
    /// The content is no registry.
    #[error("{} cannot be used: {reason}; restore it from a backup, or mend it by hand", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: RegistryError,
    },
    /// A change that cannot be made.
    #[error(transparent)]
    Change(#[from] RegistryError),
    /// Somebody else holds the lock.
    #[error(
        "{} is held by another command for more than {} s: try again when it has ended",
        .0.display(),
        LOCK_TIMEOUT.as_secs()
    )]
    Locked(PathBuf),
}

/// The registry of an access folder; `None` where there is none yet.
///
/// # Errors
/// When it cannot be read, others can read or write it, or it is damaged.
pub fn load(folder: &Path) -> Result<Option<Registry>, FileError> {
    let path = folder.join(REGISTRY);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Io { action: "read", path, source }),
    };
    check_mode(folder, 0o022, "put another registry there", "go-w")?;
    check_mode(&path, 0o077, "read or change it", "600")?;
    let mut text = String::new();
    let read = file.take(REGISTRY_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|source| FileError::Io { action: "read", path: path.clone(), source })?;
    if text.len() as u64 > REGISTRY_BYTES_MAX {
        return Err(FileError::TooLarge(path));
    }
    Registry::parse(&text).map(Some).map_err(|reason| FileError::Damaged { path, reason })
}

/// Changes the registry, which begins empty, under its lock. Where `change` fails, nothing is written.
///
/// # Errors
/// As [`load`], those of `change`, and when the new registry cannot be written.
pub fn edit<T>(
    folder: &Path,
    change: impl FnOnce(&mut Registry) -> Result<T, RegistryError>,
) -> Result<T, FileError> {
    make_private_folder(folder)?;
    // Held until the end of this function, by its file description.
    let _lock = lock(&folder.join(LOCK))?;
    let mut registry = load(folder)?.unwrap_or_default();
    let done = change(&mut registry)?;
    write_private(&folder.join(REGISTRY), registry.to_toml().as_bytes())?;
    Ok(done)
}

/// Makes a folder that only its owner can look into; one that is there is left as it is.
///
/// # Errors
/// When it cannot be made.
pub fn make_private_folder(folder: &Path) -> Result<(), FileError> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        make_private_folder(above)?;
    }
    #[cfg_attr(not(unix), expect(unused_mut, reason = "other systems have no modes"))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    let made = match builder.create(folder) {
        // Another command was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => return Ok(()),
        made => made,
    };
    made.and_then(|()| give_folder_to_owner_of(above.unwrap_or(Path::new(".")), folder))
        .map_err(|source| FileError::Io { action: "make", path: folder.to_owned(), source })
}

/// The user and group that own a folder, where we are root and must not keep what we make there.
#[cfg(unix)]
fn owner_to_be(folder: &Path) -> io::Result<Option<(u32, u32)>> {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let owner = fs::metadata(folder)?;
    Ok(Some((owner.uid(), owner.gid())))
}

#[cfg(unix)]
fn give_folder_to_owner_of(above: &Path, made: &Path) -> io::Result<()> {
    // Not through a link that somebody put in its place meanwhile.
    owner_to_be(above)?
        .map_or(Ok(()), |(user, group)| std::os::unix::fs::lchown(made, Some(user), Some(group)))
}

#[cfg(not(unix))]
fn give_folder_to_owner_of(_: &Path, _: &Path) -> io::Result<()> {
    Ok(())
}

/// Makes a file that only the owner of its folder can read and write; it must not be there.
pub(super) fn make_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // A new file is no link to another's: that one would be given away.
    let file = options.create_new(true).open(path)?;
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Some((user, group)) = owner_to_be(folder)? {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
    }
    Ok(file)
}

/// Opens a private file to append to it, and makes it where there is none.
pub(super) fn append_private(path: &Path) -> io::Result<File> {
    match make_private(private().append(true), path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => private().append(true).open(path),
        made => made,
    }
}

/// Opens a file that only its owner can read and write.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Why a file with a password cannot be used.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It cannot be read, or others can.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is empty, too long, or no text.
    #[error(
        "{} must hold a password of 1 to {PASSWORD_BYTES_MAX} bytes of text, in its first line and no other",
        .0.display()
    )]
    NoPassword(PathBuf),
}

/// The password in a file: its one line.
///
/// # Errors
/// When it cannot be read, others can read it, or it holds something else.
pub fn read_secret(path: &Path) -> Result<String, SecretError> {
    let io = |source| FileError::Io { action: "read", path: path.to_owned(), source };
    password_of(open_secret(path)?).map_err(io)?.ok_or_else(|| SecretError::NoPassword(path.to_owned()))
}

/// Opens a file with a secret.
///
/// # Errors
/// When it cannot be read, or others can read it.
pub fn open_secret(path: &Path) -> Result<File, FileError> {
    let io = |source| FileError::Io { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // What comes through a pipe or a descriptor is nobody's file.
    if file.metadata().map_err(io)?.is_file() {
        check_mode(path, 0o077, "read or change it", "600")?;
    }
    Ok(file)
}

/// The one line of a source, without its end; `None` where it is none or too long.
///
/// # Errors
/// When it cannot be read.
pub fn password_of(source: impl io::Read) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    // Two more for the line's end.
    source.take(PASSWORD_BYTES_MAX as u64 + 3).read_to_end(&mut bytes)?;
    let Ok(text) = String::from_utf8(bytes) else { return Ok(None) };
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let is_password = (1..=PASSWORD_BYTES_MAX).contains(&line.len()) && !line.contains(['\n', '\r', '\0']);
    Ok(is_password.then(|| line.to_owned()))
}

/// Refuses a file whose mode has any of these bits.
///
/// # Errors
/// [`FileError::Mode`], and when the file cannot be looked at.
#[cfg(unix)]
pub fn check_mode(
    path: &Path,
    forbidden: u32,
    can: &'static str,
    right: &'static str,
) -> Result<(), FileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(path).map_err(|source| FileError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & forbidden == 0 {
        Ok(())
    } else {
        Err(FileError::Mode { path: path.to_owned(), mode, can, right })
    }
}

/// Other systems have other permissions, which are their administrator's.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn check_mode(_: &Path, _: u32, _: &'static str, _: &'static str) -> Result<(), FileError> {
    Ok(())
}

/// Holds a lock until the file is dropped.
///
/// # Errors
/// When others hold it for too long, or it cannot be made.
pub fn lock(path: &Path) -> Result<File, FileError> {
    let io = |action| move |source| FileError::Io { action, path: path.to_owned(), source };
    let file = append_private(path).map_err(io("open"))?;
    let give_up = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= give_up => {
                return Err(FileError::Locked(path.to_owned()));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Replaces a file whole, for its owner's eyes only: the owner of its folder where root writes it.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let io = |action| {
        let new = new.clone();
        move |source| FileError::Io { action, path: new, source }
    };
    // What an interrupted command left has whatever mode it has.
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(io("remove")(error));
    }
    let mut file = make_private(private().write(true), &new).map_err(io("write"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write"))?;
    fs::rename(&new, path).map_err(io("rename"))?;
    // The name is on the disk only when its folder is.
    let folder = path.parent().unwrap_or(Path::new("."));
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| FileError::Io {
        action: "sync",
        path: folder.to_owned(),
        source,
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{id, with_password};
    use super::*;
    use crate::password;

    #[test]
    fn a_registry_is_made_private_and_comes_back() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("gallery/access");
        assert!(load(&folder).unwrap().is_none());
        let device = with_password(&password::hash("secret").unwrap());
        edit(&folder, |registry| registry.add(id("a"), device.clone())).unwrap();
        let registry = load(&folder).unwrap().unwrap();
        assert_eq!(registry.device(&id("a")), Some(&device));
        let taken = edit(&folder, |registry| registry.add(id("a"), device.clone())).unwrap_err();
        assert!(taken.to_string().contains("--replace"), "{taken}");
        assert_eq!(load(&folder).unwrap().unwrap(), registry);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&folder), mode(&folder.join(REGISTRY))), (0o700, 0o600));
        }
    }

    /// Only root can give files away, so others have nothing to see here.
    #[test]
    #[cfg(unix)]
    fn what_root_makes_belongs_to_the_owner_of_the_gallery() {
        use std::os::unix::fs::MetadataExt as _;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let gallery = place.path().join("gallery");
        fs::create_dir(&gallery).unwrap();
        std::os::unix::fs::chown(&gallery, Some(10_001), Some(10_002)).unwrap();
        let folder = gallery.join("access");
        edit(&folder, |_| Ok(())).unwrap();
        write_private(&folder.join("console"), b"hash\n").unwrap();
        super::super::Audit::new(&folder).record(super::super::Event::RegistryReloaded { devices: 0 });
        for name in ["", REGISTRY, LOCK, "console", "audit.jsonl"] {
            let made = fs::metadata(folder.join(name)).unwrap();
            assert_eq!((made.uid(), made.gid()), (10_001, 10_002), "{name}");
        }
    }

    #[test]
    fn a_password_is_one_line_of_a_bounded_length() {
        let longest = "x".repeat(PASSWORD_BYTES_MAX);
        for (bytes, expected) in [
            (&b"secret"[..], Some("secret")),
            (b"secret\n", Some("secret")),
            (b"two words\r\n", Some("two words")),
            (b"", None),
            (b"\n", None),
            (b"a\nb\n", None),
            (b"\xff", None),
            (format!("{longest}\r\n").as_bytes(), Some(&longest)),
            (format!("{longest}x").as_bytes(), None),
        ] {
            assert_eq!(password_of(bytes).unwrap().as_deref(), expected);
        }
    }

    #[test]
    fn changes_at_once_lose_nothing() {
        let place = tempfile::tempdir().unwrap();
        let hash = password::hash("secret").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (folder, hash) = (place.path(), &hash);
                scope.spawn(move || {
                    for number in 0..10 {
                        let name = id(&format!("d{thread}-{number}"));
                        edit(folder, |registry| registry.add(name, with_password(hash))).unwrap();
                    }
                });
            }
        });
        assert_eq!(load(place.path()).unwrap().unwrap().len(), 40);
    }

    #[test]
    fn a_damaged_registry_is_an_error_and_is_not_written_over() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(REGISTRY);
        for bytes in [&b""[..], b"version = 1\n[[device]", b"\xff\xfe", b"version = 7"] {
            let mut file = private().create(true).write(true).truncate(true).open(&path).unwrap();
            file.write_all(bytes).unwrap();
            let error = load(place.path()).unwrap_err().to_string();
            assert!(error.contains(REGISTRY), "{error}");
            assert!(edit(place.path(), |_| Ok(())).is_err());
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_registry_that_others_can_read_or_replace_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        edit(place.path(), |_| Ok(())).unwrap();
        let path = place.path().join(REGISTRY);
        for (path, mode, right) in [
            (&path, 0o640, "chmod 600"),
            (&path, 0o602, "chmod 600"),
            (&place.path().to_owned(), 0o777, "go-w"),
        ] {
            let before = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            let error = load(place.path()).unwrap_err().to_string();
            assert!(error.contains(right), "{mode:o}: {error}");
            fs::set_permissions(path, before).unwrap();
        }
        load(place.path()).unwrap().unwrap();
    }
}
