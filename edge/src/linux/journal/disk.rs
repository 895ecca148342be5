//! What a journal needs of a disk: [`Disk`]; and a folder that is one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Segments, which are files that grow and go away.
pub trait Disk {
    /// A segment that grows.
    type File: std::fmt::Debug;

    /// The numbers of all segments.
    ///
    /// # Errors
    /// As with all that follow: what the system says.
    fn list(&self) -> io::Result<Vec<u64>>;

    /// All bytes of a segment.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, segment: u64) -> io::Result<Vec<u8>>;

    /// Some bytes of a segment.
    ///
    /// # Errors
    /// What the system says; also where it has fewer.
    fn read_at(&self, segment: u64, at: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Makes an empty segment, which is on the disk when this returns.
    ///
    /// # Errors
    /// What the system says; also where there is one of this number.
    fn create(&mut self, segment: u64) -> io::Result<Self::File>;

    /// Appends bytes, all or, where it fails, some of them.
    ///
    /// # Errors
    /// What the system says.
    fn append(&mut self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self, file: &mut Self::File) -> io::Result<()>;

    /// Removes a segment, which is gone from the disk when this returns; also one that is gone already.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

/// A folder with a file for each segment, locked for this program.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

const LOCK: &str = "lock";
const ENDING: &str = ".queries";

/// The largest segment that is read: no journal of ours makes one that is larger.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

impl Folder {
    /// Makes the folder where there is none.
    ///
    /// # Errors
    /// What the system says; also where another program uses the folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another program uses it: stop that, or name another folder",
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn file(&self, segment: u64) -> PathBuf {
        self.path.join(format!("{segment:08}{ENDING}"))
    }

    /// Names of files are part of their folder.
    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<u64>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(ENDING)).map(str::parse::<u64>);
            // Ours count from 1, one by one.
            segments.extend(number.into_iter().flatten().filter(|number| u32::try_from(*number).is_ok()));
        }
        Ok(segments)
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.file(segment))?.take(SEGMENT_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&self, segment: u64, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(self.file(segment))?.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn create(&mut self, segment: u64) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create_new(true).open(self.file(segment))?;
        self.sync_names()?;
        Ok(file)
    }

    fn append(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&mut self, file: &mut File) -> io::Result<()> {
        file.sync_data()
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        match fs::remove_file(self.file(segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_names(),
        }
    }
}
