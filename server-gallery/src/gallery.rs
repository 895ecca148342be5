//! Bundle, store and index put together: the checks that they belong together, and when an index is made anew.

use std::path::{Path, PathBuf};

use glimpse_embedder::{SpaceBundle, SpaceError};
use glimpse_quantizer::Codebook;
use thiserror::Error;

use crate::index::{BuildError, CodesOption, FileError, Index, IndexOptions, Watch};
use crate::store::{self, Images, StoreError};

/// Name of the index in the gallery's folder.
pub const INDEX: &str = "index.glimpse";

/// The largest codebook file that is read; ours have 256 KiB.
const CODEBOOK_BYTES_MAX: u64 = 512 << 20;

/// Why a gallery cannot be served.
#[derive(Debug, Error)]
pub enum GalleryError {
    /// The bundle cannot be read.
    #[error("{0}{source}", source = cause(.0))]
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
    /// The index cannot be written.
    #[error(transparent)]
    Index(#[from] FileError),
}

fn cause(error: &SpaceError) -> String {
    std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// Loads bundle and gallery with its index, which is made anew, with default options, where there is none that fits.
///
/// # Errors
/// When one of them cannot be read, or they do not belong together.
pub fn open(gallery: &Path, bundle: &Path, watch: Watch<'_>) -> Result<(SpaceBundle, Index), GalleryError> {
    let bundle = SpaceBundle::load(bundle)?;
    let index = refresh(gallery, &bundle, None, watch)?;
    Ok((bundle, index))
}

/// The index of a gallery: the one that it has where that fits, and is not to be made with other `options`.
///
/// # Errors
/// As [`open`].
pub fn refresh(
    gallery: &Path,
    bundle: &SpaceBundle,
    options: Option<&IndexOptions>,
    watch: Watch<'_>,
) -> Result<Index, GalleryError> {
    let path = gallery.join(INDEX);
    let images = store::load_images(gallery)?;
    images.meta.check_space(gallery, bundle.space, bundle.dimension)?;
    let codebook = codebook(bundle)?;
    let kept = |images: Images| Index::open(&path, images, codebook.clone());
    if options.is_none() {
        match kept(images) {
            Ok(index) => return Ok(index),
            Err(FileError::Missing { .. }) => tracing::debug!("there is no index yet"),
            Err(error @ FileError::Stale { .. }) => tracing::info!("making a new index: {error}"),
            Err(error @ FileError::Codebook(_)) => return Err(error.into()),
            Err(error) => tracing::warn!("making a new index: {:#}", anyhow::Error::from(error)),
        }
    }
    let snapshot = store::load(gallery)?;
    let default = IndexOptions::default();
    let index = Index::build(snapshot, codebook.clone(), options.unwrap_or(&default), watch)?;
    match index.save(&path) {
        // Mapped from its file from now on, so that memory holds what is searched and no more.
        Ok(()) => Ok(store::load_images(gallery).ok().and_then(|images| kept(images).ok()).unwrap_or(index)),
        // A gallery on a medium that cannot be written is served all the same; who asked for an index is told.
        Err(error) if options.is_none() => {
            let error = anyhow::Error::from(error);
            tracing::warn!("{error:#}: it will be made anew at the next start");
            Ok(index)
        }
        Err(error) => Err(error.into()),
    }
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
    use crate::store::{Image, Snapshot, Store};
    use crate::testing::{SPACE, codebook as crude, random_units, snapshot};

    fn bundle(dir: &Path, quantizer: Option<QuantizerShape>) -> SpaceBundle {
        std::fs::create_dir_all(dir).unwrap();
        let preprocessing = Preprocessing { width: 32, height: 32, mean: [0.5; 3], std: [0.5; 3] };
        let (name, dir) = ("test".to_owned(), dir.to_owned());
        let bundle = SpaceBundle { dir, name, space: SPACE, dimension: 16, preprocessing, quantizer };
        bundle.write().unwrap();
        bundle
    }

    fn fill(dir: &Path) {
        let Snapshot { images, features, .. } = snapshot(16, &random_units(20, 16, 1));
        let rows = features.chunks(16).map(<[f32]>::to_vec);
        Store::open(dir, SPACE, 16).unwrap().put(&images.into_iter().zip(rows).collect::<Vec<_>>()).unwrap();
    }

    fn open(gallery: &Path, bundle: &Path) -> Result<(SpaceBundle, Index), GalleryError> {
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
            let (_, index) = open(&gallery, &at).unwrap();
            assert_eq!(index.search(query, &SearchOptions::top(1), None)[0].image.id, expected);
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

        // Another image that is nearer.
        let mut store = Store::open(&gallery, SPACE, 16).unwrap();
        let image =
            Image { id: "000000a".to_owned(), ..snapshot(16, &random_units(1, 16, 1)).images.remove(0) };
        store.put(&[(image, random_units(20, 16, 1)[3 * 16..4 * 16].to_vec())]).unwrap();
        drop(store);
        nearest("000000a");
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
