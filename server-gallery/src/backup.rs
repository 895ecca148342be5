//! Copies of a gallery, and a gallery in the place of another.

use std::path::Path;

use crate::gallery::INDEX;
use crate::progress::Progress;
use crate::store::{FILE, Reader, Store, StoreError, copy};

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Number of images.
    pub images: u64,
    /// The generation.
    pub generation: u64,
}

/// Copies the newest generation of the gallery in `from` into the folder `to`, checking every record.
///
/// # Errors
/// When `from` is damaged, or `to` holds a gallery already or cannot be written.
pub fn backup(from: &Path, to: &Path) -> Result<Copied, StoreError> {
    let io = |source| StoreError::Io { path: to.to_owned(), source };
    std::fs::create_dir_all(to).map_err(io)?;
    if to.join(FILE).exists() {
        return Err(StoreError::Exists(to.to_owned()));
    }
    let copied = draft(from, to)?;
    std::fs::rename(to.join(DRAFT), to.join(FILE)).and_then(|()| sync(to)).map_err(io)?;
    // An index is only ever replaced as a whole, and says of which generation it is.
    if from.join(INDEX).is_file() {
        std::fs::copy(from.join(INDEX), to.join(INDEX)).map_err(io)?;
    }
    Ok(copied)
}

/// Puts a copy in the place of the gallery in `to`, whose old content is kept under another name.
///
/// # Errors
/// When the copy is damaged, or `to` cannot be written.
pub fn restore(from: &Path, to: &Path) -> Result<Copied, StoreError> {
    let io = |source| StoreError::Io { path: to.to_owned(), source };
    std::fs::create_dir_all(to).map_err(io)?;
    let copied = draft(from, to)?;
    let place = to.join(FILE);
    let exchange = || -> std::io::Result<()> {
        if place.exists() {
            let kept = to.join(format!("{FILE}.before-restore"));
            match std::fs::remove_file(&kept) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => std::fs::hard_link(&place, kept)?,
            }
        }
        std::fs::rename(to.join(DRAFT), &place)?;
        sync(to)
    };
    if place.exists() {
        // Nobody writes between the two: what they committed to the old file would be gone.
        match Store::open_existing(to) {
            Ok(store) => store.replaced_by(exchange)?,
            // What is damaged is what a restore is for.
            Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => exchange().map_err(io)?,
            Err(error) => return Err(error),
        }
    } else {
        exchange().map_err(io)?;
    }
    Ok(copied)
}

const DRAFT: &str = "gallery.redb.new";

/// A checked copy beside the place where it will be.
fn draft(from: &Path, to: &Path) -> Result<Copied, StoreError> {
    let now = Reader::open(from)?.now()?;
    let draft = to.join(DRAFT);
    match std::fs::remove_file(&draft) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::Io { path: draft, source });
        }
        _ => {}
    }
    let progress = Progress::new("copying", usize::try_from(now.len()).unwrap_or(usize::MAX));
    copy(&now, &draft, &mut || progress.done_one())?;
    Ok(Copied { images: now.len(), generation: now.meta().generation })
}

fn sync(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
