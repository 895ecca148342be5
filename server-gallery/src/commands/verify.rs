//! `verify`: everything that a gallery's folder holds, read and compared.

use std::path::PathBuf;

use clap::Args;

use super::write_line;
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
    /// Folder of the gallery
    #[arg(long, env = "GLIMPSE_GALLERY", value_name = "DIR")]
    gallery: PathBuf,
}

impl VerifyArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let verify::Report { found, damaged } = verify::run(&self.gallery);
        for line in found {
            write_line(format_args!("{line}"))?;
        }
        if damaged.is_empty() { write_line(format_args!("ok")) } else { Err(Problems(damaged).into()) }
    }
}
