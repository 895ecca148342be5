//! `backup` and `restore`: a copy of a gallery as it is at one moment, and a gallery as it was.

use std::path::PathBuf;

use clap::Args;

use super::{GalleryFolder, write_line};
use crate::backup;

/// Arguments of `backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  glimpse-gallery backup /mnt/backup/gallery-monday --gallery gallery

A server may run, and others may write, meanwhile: the copy is of one generation. It is a gallery itself, and can be served.")]
pub struct BackupArgs {
    /// Folder of the copy; made if there is none, and holds no gallery yet
    #[arg(value_name = "COPY")]
    copy: PathBuf,
    #[command(flatten)]
    folder: GalleryFolder,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  glimpse-gallery restore /mnt/backup/gallery-monday --gallery gallery

The copy is verified first; then it takes the gallery's place as a whole, also while a server runs, which shows it once it has an
index. What was in the gallery is kept beside it as gallery.redb.before-restore, until the next restore.")]
pub struct RestoreArgs {
    /// Folder that `backup` has written
    #[arg(value_name = "COPY")]
    copy: PathBuf,
    #[command(flatten)]
    folder: GalleryFolder,
}

impl BackupArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let copied = backup::backup(&self.folder.gallery, &self.copy)?;
        write_line(format_args!("copied {} images of generation {}", copied.images, copied.generation))
    }
}

impl RestoreArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let restored = backup::restore(&self.copy, &self.folder.gallery)?;
        write_line(format_args!("restored {} images of generation {}", restored.images, restored.generation))
    }
}
