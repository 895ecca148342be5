//! Files that only their owner can read.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// Makes a folder that only its owner can enter, where there is none.
///
/// # Errors
/// Where it cannot be made.
pub fn private_folder(folder: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a new file with these permissions, and waits until it is on the disk. A file that is there stays.
///
/// # Errors
/// A file that is there, or cannot be written.
pub fn write_new(file: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(file).and_then(|mut opened| {
        opened.write_all(content)?;
        opened.sync_all()
    });
    written.with_context(|| format!("cannot write {}", file.display()))
}
