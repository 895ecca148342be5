//! Bundle and store put together: the checks that they belong together, and which codebook is used.
//!
//! The bundle's codebook, if it has one: devices encode their `pq` queries with it. Otherwise one that [`train_codebook`]
//! has made from the gallery's own features and put beside the store, for search alone; otherwise none, and search is
//! exact.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use glimpse_embedder::{SpaceBundle, SpaceError};
use glimpse_quantizer::Codebook;
use glimpse_quantizer::train::{Progress, TrainError, TrainOptions, train};
use thiserror::Error;

use crate::index::{CodebookMismatch, Index};
use crate::store::{self, Snapshot, StoreError};

/// Name of a codebook that was trained on the gallery itself, in the gallery's folder.
const OWN_CODEBOOK: &str = "codebook.safetensors";

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
    /// Codebook and gallery differ.
    #[error(transparent)]
    Mismatch(#[from] CodebookMismatch),
}

fn cause(error: &SpaceError) -> String {
    std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// Loads bundle and gallery, and encodes the features.
///
/// # Errors
/// When one of them cannot be read, or they do not belong together.
pub fn open(gallery: &Path, bundle: &Path) -> Result<(SpaceBundle, Index), GalleryError> {
    let bundle = SpaceBundle::load(bundle)?;
    let snapshot = store::load(gallery)?;
    snapshot.check_space(gallery, bundle.space, bundle.dimension)?;
    let codebook = codebook(&bundle, gallery)?;
    Ok((bundle, Index::new(snapshot, codebook)?))
}

/// The bundle's codebook, or else the gallery's own, or else none.
///
/// # Errors
/// When there is one that cannot be used, or the bundle promises one and has none.
pub fn codebook(bundle: &SpaceBundle, gallery: &Path) -> Result<Option<Codebook>, GalleryError> {
    let (of_bundle, own) = (bundle.codebook(), gallery.join(OWN_CODEBOOK));
    let path = if bundle.quantizer.is_some() || of_bundle.exists() { of_bundle } else { own };
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

/// Centroids of a trained codebook: a code is one byte.
const CENTROIDS: usize = 256;

/// Components of a sub-space, where the dimension allows it: the bundle's default shape (32 of 8 for 256).
const SUB_DIMENSION: usize = 8;

/// Features below which no codebook is trained: 39 a centroid, under which Faiss warns too (`ClusteringParameters`,
/// `min_points_per_centroid`); and galleries that small are searched exactly in a millisecond or two.
pub const TRAIN_FROM: usize = 39 * CENTROIDS;

/// Trains a codebook on a gallery of at least [`TRAIN_FROM`] images and puts it beside the store. `false`: too small, or
/// the dimension does not divide.
///
/// # Errors
/// When training or writing fails.
pub fn train_codebook(
    gallery: &Path,
    snapshot: &Snapshot,
    progress: &mut dyn FnMut(Progress),
) -> Result<bool, GalleryError> {
    let dimension = snapshot.meta.dimension;
    if snapshot.images.len() < TRAIN_FROM || !dimension.is_multiple_of(SUB_DIMENSION) {
        return Ok(false);
    }
    let path = gallery.join(OWN_CODEBOOK);
    let failed = |reason: String| GalleryError::Codebook { path: path.clone(), reason };
    let options = TrainOptions {
        sub_spaces: dimension / SUB_DIMENSION,
        centroids: CENTROIDS,
        ..TrainOptions::default()
    };
    let codebook = train(&snapshot.features, dimension, &options, progress)
        .map_err(|error: TrainError| failed(error.to_string()))?;
    let bytes = codebook.to_safetensors().map_err(|error| failed(error.to_string()))?;
    write_whole(&path, &bytes).map_err(|error| failed(error.to_string()))?;
    Ok(true)
}

/// Writes beside and renames: after a power cut there is the old file or the new one, never half of one.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use glimpse_embedder::{Preprocessing, QuantizerShape};

    use super::*;
    use crate::store::Store;
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

    #[test]
    fn the_bundles_codebook_comes_before_the_gallerys_own() {
        let dir = tempfile::tempdir().unwrap();
        let (gallery, at) = (dir.path().join("g"), dir.path().join("b"));
        fill(&gallery);
        let features = random_units(100, 16, 2);
        let own = crude(16, 2, 16, &features);
        let sub_spaces = || open(&gallery, &at).unwrap().1.codebook().map(Codebook::sub_spaces);
        let without = bundle(&at, None);
        assert_eq!(sub_spaces(), None);
        write_whole(&gallery.join(OWN_CODEBOOK), &own.to_safetensors().unwrap()).unwrap();
        assert_eq!(sub_spaces(), Some(2));
        std::fs::write(without.codebook(), crude(16, 4, 16, &features).to_safetensors().unwrap()).unwrap();
        assert_eq!(sub_spaces(), Some(4));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (gallery, at) = (dir.path().join("g"), dir.path().join("b"));
        let message = || open(&gallery, &at).err().expect("an error").to_string();
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

    #[test]
    fn a_small_gallery_trains_no_codebook() {
        let dir = tempfile::tempdir().unwrap();
        let small = snapshot(16, &random_units(100, 16, 1));
        assert!(!train_codebook(dir.path(), &small, &mut |_| ()).unwrap());
        assert!(!dir.path().join(OWN_CODEBOOK).exists());
    }

    #[test]
    fn a_gallery_that_is_large_enough_trains_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let large = snapshot(8, &random_units(TRAIN_FROM, 8, 1));
        let mut steps = 0;
        assert!(train_codebook(dir.path(), &large, &mut |_| steps += 1).unwrap());
        let trained =
            Codebook::from_safetensors(&std::fs::read(dir.path().join(OWN_CODEBOOK)).unwrap()).unwrap();
        assert_eq!(
            (trained.dimension(), trained.sub_spaces(), trained.centroids_per_sub_space()),
            (8, 1, 256)
        );
        assert!(steps > 0);
    }
}
