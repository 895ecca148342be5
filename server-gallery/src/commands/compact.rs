//! `compact`: a gallery's folder made as small as it can be.

use std::time::{Duration, Instant};

use clap::Args;

use super::{GalleryFolder, write_line};
use crate::store::{FILE, Store, StoreError};

/// How long readers are waited for; they look for a few milliseconds each.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `compact`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  glimpse-gallery compact --gallery gallery

Gives the space of what was removed or replaced back to the file system. A server may run meanwhile; what it looks up in the store
waits until the end. The index is made as small as it can be whenever it is made: `index` does that.")]
pub struct CompactArgs {
    #[command(flatten)]
    folder: GalleryFolder,
}

impl CompactArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = self.folder.gallery.join(FILE);
        let bytes = || std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let mut store = Store::open_existing(&self.folder.gallery)?;
        let before = bytes();
        let started = Instant::now();
        loop {
            match store.compact() {
                Ok(_) => break,
                Err(StoreError::Busy(_)) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(store);
        let mb = |bytes: u64| bytes as f64 / 1e6;
        write_line(format_args!("{:.1} MB before, {:.1} MB now", mb(before), mb(bytes())))
    }
}
