//! Bundle, store and index put together: the checks that they belong together, and when an index is made anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use glimpse_embedder::{SpaceBundle, SpaceError};
use glimpse_quantizer::Codebook;
use thiserror::Error;

use crate::index::{BuildError, CodesOption, FileError, Index, IndexOptions, Stage, Watch};
use crate::store::{Committed, Reader, Store, StoreError};
use crate::told::told;
use crate::view::{View, ViewError};

/// Name of the index in the gallery's folder.
pub const INDEX: &str = "index.glimpse";

/// The largest codebook file that is read; ours have 256 KiB.
const CODEBOOK_BYTES_MAX: u64 = 512 << 20;

/// Why a gallery cannot be served.
#[derive(Debug, Error)]
pub enum GalleryError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] SpaceError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The codebook cannot be read.
    #[error("the codebook {path} cannot be used: {reason}")]
    Codebook {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No index can be made.
    #[error("no index can be made")]
    Build(#[from] BuildError),
    /// The index cannot be used.
    #[error(transparent)]
    Index(#[from] FileError),
    /// The operating system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A bug of ours.
    #[error("a thread of the gallery has panicked: see the panic above, and report it")]
    Panicked,
}

impl From<ViewError> for GalleryError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Store(error) => error.into(),
            ViewError::Build(error) => error.into(),
        }
    }
}

/// Images that a view lays over an index at most: comparing with all of them costs a query of a core a millisecond or two.
pub const CHANGES_MAX: usize = 20_000;

/// The gallery as it is now, with its bundle. An index is made, with default options, where there is none that fits.
///
/// # Errors
/// When one of them cannot be read, or they do not belong together.
pub fn open(gallery: &Path, bundle: &Path, watch: Watch<'_>) -> Result<(SpaceBundle, View), GalleryError> {
    let bundle = SpaceBundle::load(bundle)?;
    let view = view(gallery, &bundle, &Reader::open(gallery)?, watch)?;
    Ok((bundle, view))
}

/// The newest generation of a gallery: its index with what has changed since, or a new index.
///
/// # Errors
/// As [`open`].
pub fn view(
    gallery: &Path,
    bundle: &SpaceBundle,
    reader: &Reader,
    watch: Watch<'_>,
) -> Result<View, GalleryError> {
    let now = reader.now()?;
    now.meta().check_space(gallery, bundle.space, bundle.dimension)?;
    if let Some(view) = kept(gallery, bundle)?
        .map(|index| View::of(Arc::new(index)).advance(&now, CHANGES_MAX))
        .transpose()?
        .flatten()
    {
        return Ok(view);
    }
    Ok(View::of(Arc::new(make(gallery, bundle, now, &IndexOptions::default(), watch)?)))
}

/// The index in a gallery's folder, where there is one that can be used. What it is of is for the caller to see.
///
/// # Errors
/// When the bundle's codebook cannot be used, or does not fit.
pub fn kept(gallery: &Path, bundle: &SpaceBundle) -> Result<Option<Index>, GalleryError> {
    match Index::open(&gallery.join(INDEX), codebook(bundle)?) {
        Ok(index) if (index.meta().space, index.meta().dimension) == (bundle.space, bundle.dimension) => {
            return Ok(Some(index));
        }
        Ok(_) => tracing::info!("the index is of another space"),
        Err(FileError::Missing { .. }) => tracing::debug!("there is no index yet"),
        Err(error @ FileError::Codebook(_)) => return Err(error.into()),
        Err(error) => tracing::warn!("{}", told(&error.into())),
    }
    Ok(None)
}

/// Makes the index of a generation and keeps it in the gallery's folder.
///
/// # Errors
/// When it cannot be made. One that cannot be kept is only warned of: a gallery on a medium that cannot be written is served
/// all the same.
pub fn make(
    gallery: &Path,
    bundle: &SpaceBundle,
    of: Committed,
    options: &IndexOptions,
    watch: Watch<'_>,
) -> Result<Index, GalleryError> {
    of.meta().check_space(gallery, bundle.space, bundle.dimension)?;
    let snapshot = of.snapshot(gallery, &mut || watch(Stage::Reading, 0, 0))?;
    // Its pages can be used again while the index is made.
    drop(of);
    let index = Index::build(snapshot, codebook(bundle)?, options, watch)?;
    let state = index.state();
    if let Err(error) = index.save(&gallery.join(INDEX)) {
        let error = anyhow::Error::from(error);
        tracing::warn!("{error:#}: the index will be made anew at the next start");
        return Ok(index);
    }
    // Mapped from its file from now on, so that memory holds what is searched and no more.
    Ok(kept(gallery, bundle)?.filter(|kept| kept.state() == state).unwrap_or(index))
}

/// Forgets the changes that the index in a gallery's folder has seen: no reader needs them to bring it up to date. Whoever cannot
/// write leaves them for the next; they are bounded.
pub fn forget_changes(gallery: &Path, up_to: u64) {
    if let Err(error) = Store::open_existing(gallery).and_then(|mut store| store.forget_changes(up_to)) {
        tracing::debug!(%error, "changes stay recorded");
    }
}

/// Brings the index up to date where that is worth it, after a command that has changed much.
///
/// # Errors
/// As [`open`].
pub fn refresh(gallery: &Path, bundle: &SpaceBundle, watch: Watch<'_>) -> Result<View, GalleryError> {
    let reader = Reader::open(gallery)?;
    let view = view(gallery, bundle, &reader, watch)?;
    if !worth_an_index(&view) {
        return Ok(view);
    }
    let index = make(gallery, bundle, reader.now()?, &IndexOptions::default(), watch)?;
    forget_changes(gallery, index.state().generation);
    Ok(View::of(Arc::new(index)))
}

/// Whether so much has changed since the index of a view was made that a new one should be: a twentieth of the gallery, but not
/// for a handful of photos.
pub fn worth_an_index(view: &View) -> bool {
    view.changes() > (view.len() / 20).clamp(256, CHANGES_MAX / 2)
}

/// The codes of the space itself, to be searched with.
///
/// # Errors
/// When the bundle has no codebook.
pub fn codes_of_space(bundle: &SpaceBundle) -> Result<CodesOption, GalleryError> {
    let missing = || GalleryError::Codebook { path: bundle.codebook(), reason: "there is none".to_owned() };
    Ok(CodesOption::Given(codebook(bundle)?.ok_or_else(missing)?))
}

/// The bundle's codebook, which reads and writes the `pq` codes of messages.
///
/// # Errors
/// When there is one that cannot be used, or the bundle promises one and has none.
pub fn codebook(bundle: &SpaceBundle) -> Result<Option<Codebook>, GalleryError> {
    let path = bundle.codebook();
    if bundle.quantizer.is_none() && !path.exists() {
        return Ok(None);
    }
    let failed = |reason: String| GalleryError::Codebook { path: path.clone(), reason };
    let bytes = std::fs::metadata(&path).map_err(|error| failed(error.to_string()))?.len();
    if bytes > CODEBOOK_BYTES_MAX {
        return Err(failed(format!("it has {bytes} bytes")));
    }
    let bytes = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
    let codebook = Codebook::from_safetensors(&bytes).map_err(|error| failed(error.to_string()))?;
    if let Some(shape) = bundle.quantizer
        && (shape.sub_spaces, shape.centroids) != (codebook.sub_spaces(), codebook.centroids_per_sub_space())
    {
        let (m, k) = (codebook.sub_spaces(), codebook.centroids_per_sub_space());
        return Err(failed(format!(
            "it has {m} sub-spaces of {k} centroids, and space.toml says {} of {}",
            shape.sub_spaces, shape.centroids
        )));
    }
    if codebook.dimension() != bundle.dimension {
        let (got, expected) = (codebook.dimension(), bundle.dimension);
        return Err(failed(format!("it is for {got} dimensions, and the bundle has {expected}")));
    }
    Ok(Some(codebook))
}

#[cfg(test)]
mod tests {
    use glimpse_embedder::{Preprocessing, QuantizerShape};

    use super::*;
    use crate::index::SearchOptions;
    use crate::store::Image;
    use crate::testing::{SPACE, codebook as crude, images, random_units};

    fn bundle(dir: &Path, quantizer: Option<QuantizerShape>) -> SpaceBundle {
        std::fs::create_dir_all(dir).unwrap();
        let preprocessing = Preprocessing { width: 32, height: 32, mean: [0.5; 3], std: [0.5; 3] };
        let (name, dir) = ("test".to_owned(), dir.to_owned());
        let bundle = SpaceBundle { dir, name, space: SPACE, dimension: 16, preprocessing, quantizer };
        bundle.write().unwrap();
        bundle
    }

    fn fill(dir: &Path) {
        let features = random_units(20, 16, 1);
        let rows = features.chunks(16).map(<[f32]>::to_vec);
        Store::open(dir, SPACE, 16)
            .unwrap()
            .put(&images(20).into_iter().zip(rows).collect::<Vec<_>>())
            .unwrap();
    }

    fn open(gallery: &Path, bundle: &Path) -> Result<(SpaceBundle, View), GalleryError> {
        super::open(gallery, bundle, &mut |_, _, _| true)
    }

    #[test]
    fn the_codebook_of_the_messages_is_the_bundles() {
        let dir = tempfile::tempdir().unwrap();
        let (gallery, at) = (dir.path().join("g"), dir.path().join("b"));
        fill(&gallery);
        let sub_spaces = || open(&gallery, &at).unwrap().1.codebook().map(Codebook::sub_spaces);
        let without = bundle(&at, None);
        assert_eq!(sub_spaces(), None);
        let codebook = crude(16, 4, 16, &random_units(100, 16, 2));
        std::fs::write(without.codebook(), codebook.to_safetensors().unwrap()).unwrap();
        assert_eq!(sub_spaces(), Some(4));
    }

    #[test]
    fn an_index_is_kept_until_the_gallery_changes_or_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (gallery, at) = (dir.path().join("g"), dir.path().join("b"));
        fill(&gallery);
        bundle(&at, None);
        let index = gallery.join(INDEX);
        let nearest = |expected: &str| {
            let query = &random_units(20, 16, 1)[3 * 16..4 * 16];
            let (_, view) = open(&gallery, &at).unwrap();
            assert_eq!(view.search(query, &SearchOptions::top(1).into(), None)[0][0].image.id, expected);
        };
        nearest("000003");
        let first = std::fs::read(&index).unwrap();
        let written = std::fs::metadata(&index).unwrap().modified().unwrap();
        nearest("000003");
        assert_eq!(std::fs::metadata(&index).unwrap().modified().unwrap(), written);

        // Any byte that is changed makes a new one; so does a file that is cut off, or is none.
        for place in [0, 7, 9, 20, 40, 60, 100, 200, first.len() / 2, first.len() - 70] {
            let mut damaged = first.clone();
            damaged[place] ^= 0x40;
            std::fs::write(&index, &damaged).unwrap();
            nearest("000003");
            assert_eq!(std::fs::read(&index).unwrap(), first, "byte {place}");
        }
        for length in [0, 5, 16, 100, first.len() - 200] {
            std::fs::write(&index, &first[..length]).unwrap();
            nearest("000003");
        }

        // A few changes are laid over the index that there is.
        let mut store = Store::open(&gallery, SPACE, 16).unwrap();
        let nearer = Image { id: "000000a".to_owned(), ..images(1).remove(0) };
        store.put(&[(nearer, random_units(20, 16, 1)[3 * 16..4 * 16].to_vec())]).unwrap();
        nearest("000000a");
        store.remove(["000000a"]).unwrap();
        nearest("000003");
        assert_eq!(std::fs::read(&index).unwrap(), first);
        // Another gallery under the same name needs another index.
        drop(store);
        std::fs::remove_file(gallery.join(crate::store::FILE)).unwrap();
        fill(&gallery);
        nearest("000003");
        assert_ne!(std::fs::read(&index).unwrap(), first);
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (gallery, at) = (dir.path().join("g"), dir.path().join("b"));
        let message = || open(&gallery, &at).expect_err("an error").to_string();
        assert!(message().contains("is this a space bundle?"));
        bundle(&at, Some(QuantizerShape { sub_spaces: 2, centroids: 16 }));
        assert!(message().contains("glimpse-gallery ingest"), "{}", message());
        fill(&gallery);
        assert!(message().contains("codebook.safetensors cannot be used"), "{}", message());
        let features = random_units(100, 16, 2);
        std::fs::write(at.join("codebook.safetensors"), "no codebook").unwrap();
        assert!(message().contains("cannot be used"));
        std::fs::write(
            at.join("codebook.safetensors"),
            crude(16, 4, 16, &features).to_safetensors().unwrap(),
        )
        .unwrap();
        assert!(message().contains("space.toml says 2 of 16"), "{}", message());
    }
}
