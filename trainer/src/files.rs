//! Files that are whole or not there.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file could not be read or written.
#[derive(Debug, Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl FileError {
    /// Writing failed.
    pub fn write(path: &Path, source: std::io::Error) -> Self {
        Self { action: "write", path: path.into(), source }
    }
}

/// Reads a file.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError { action: "read", path: path.into(), source })
}

/// Writes a file so that its name always holds the old or the new contents, also after a kill or a power cut. Folders
/// are made where they are missing.
///
/// # Errors
/// [`FileError`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let draft = PathBuf::from(format!("{}.new", path.display()));
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|source| FileError::write(path, source))
}
