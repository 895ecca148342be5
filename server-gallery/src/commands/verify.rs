//! `verify`: everything that a gallery's folder holds, read and compared.

use clap::Args;

use super::{GalleryFolder, write_line};
use crate::config::Problems;
use crate::verify;

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  glimpse-gallery verify --gallery gallery

Reads every page of the store, holds every record against its checksum and all of them against what was committed last; then
every section of the index against its checksum, and what it holds against the store. A server may run meanwhile. Ends
with status 1 when anything is damaged. A damaged index is made anew by `serve`; a damaged store is restored from a backup.")]
pub struct VerifyArgs {
    #[command(flatten)]
    folder: GalleryFolder,
}

impl VerifyArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let verify::Report { found, damaged } = verify::run(&self.folder.gallery);
        for line in found {
            write_line(format_args!("{line}"))?;
        }
        if damaged.is_empty() { write_line(format_args!("ok")) } else { Err(Problems(damaged).into()) }
    }
}
