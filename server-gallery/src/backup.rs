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
    let (copied, draft) = draft(from, to)?;
    // Not over one that somebody else has made meanwhile.
    draft.persist_noclobber(to.join(FILE)).map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => StoreError::Exists(to.to_owned()),
        _ => io(error.error),
    })?;
    sync(to).map_err(io)?;
    copy_index(from, to);
    Ok(copied)
}

/// An index is only ever replaced as a whole, and says of which generation it is. Without it one is made.
fn copy_index(from: &Path, to: &Path) {
    let copy = || -> std::io::Result<()> {
        let draft = draft_in(to)?;
        std::fs::copy(from.join(INDEX), &draft)?;
        draft.persist(to.join(INDEX)).map_err(|error| error.error)
    };
    if from.join(INDEX).is_file()
        && let Err(error) = copy()
    {
        tracing::warn!(%error, "the index was not copied: one will be made");
    }
}

/// Puts a copy in the place of the gallery in `to`, whose old content is kept under another name.
///
/// # Errors
/// When the copy is damaged, or `to` cannot be written.
pub fn restore(from: &Path, to: &Path) -> Result<Copied, StoreError> {
    let io = |source| StoreError::Io { path: to.to_owned(), source };
    std::fs::create_dir_all(to).map_err(io)?;
    let (copied, draft) = draft(from, to)?;
    let place = to.join(FILE);
    let exchange = || -> std::io::Result<()> {
        if place.exists() {
            keep(&place, &to.join(format!("{FILE}.before-restore")))?;
        }
        draft.persist(&place).map_err(|error| error.error)?;
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
    copy_index(from, to);
    Ok(copied)
}

/// Gives what is at a place another name too. Where a file cannot have two, it is moved, and the place is empty for a moment.
fn keep(place: &Path, kept: &Path) -> std::io::Result<()> {
    let linked = kept.with_extension("new");
    let _ = std::fs::remove_file(&linked);
    match std::fs::hard_link(place, &linked) {
        Ok(()) => std::fs::rename(linked, kept),
        Err(_) => std::fs::rename(place, kept),
    }
}

/// A file with a name of its own, which goes when it is not renamed.
fn draft_in(folder: &Path) -> std::io::Result<tempfile::TempPath> {
    Ok(tempfile::Builder::new().prefix(".draft-").tempfile_in(folder)?.into_temp_path())
}

/// A checked copy beside the place where it will be.
fn draft(from: &Path, to: &Path) -> Result<(Copied, tempfile::TempPath), StoreError> {
    let now = Reader::open(from)?.now()?;
    let draft = draft_in(to).map_err(|source| StoreError::Io { path: to.to_owned(), source })?;
    // As the file whose place it takes; a draft is its owner's alone.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let usual = std::fs::Permissions::from_mode(0o644);
        let permissions = std::fs::metadata(to.join(FILE)).map_or(usual, |metadata| metadata.permissions());
        let set = std::fs::set_permissions(&draft, permissions);
        set.map_err(|source| StoreError::Io { path: to.to_owned(), source })?;
    }
    let progress = Progress::new("copying", usize::try_from(now.len()).unwrap_or(usize::MAX));
    copy(&now, &draft, &mut || progress.done_one())?;
    Ok((Copied { images: now.len(), generation: now.meta().generation }, draft))
}

fn sync(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
