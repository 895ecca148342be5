//! What a network makes of many photos: computed on all cores, kept on disk, continued after a kill.
//!
//! A run over n items writes `n / CHUNK` chunk files beside the result, each whole or not at all, and joins them at
//! the end. A chunk folder remembers what it was made from; another network, list or seed starts over. Photos that
//! cannot be decoded are left out and listed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use glimpse_embedder::{ModelError, Network, Preprocessing, RgbImage};
use half::f16;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::files::{FileError, read, write_whole};
use crate::photos::PhotoList;
use crate::progress::Progress;
use crate::projection::to_unit;

/// Items a chunk file: some ten seconds of work on two cores, which is what a kill loses at most.
const CHUNK: usize = 128;

/// Why there are no features.
#[derive(Debug, Error)]
pub enum FeatureError {
    /// A file of the cache or the result.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds something else.
    #[error("{} is no feature file: {reason}", path.display())]
    NotFeatures {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The network failed on a photo that decoded well.
    #[error("the network failed on {}: {reason}", photo.display())]
    Network {
        /// The photo.
        photo: PathBuf,
        /// What the runtime says.
        reason: String,
    },
    /// The network's file cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No photo could be decoded.
    #[error("none of the {count} photos could be decoded")]
    Nothing {
        /// How many there were.
        count: usize,
    },
    /// Asked to stop; what is done is kept.
    #[error("stopped; the same command continues where it was")]
    Stopped,
}

/// Vectors or maps of photos, row by row, as 16-bit floats where that is enough.
///
/// 16 bits hold 11 significant ones: maps feed a sum over hundreds of products, where rounding averages out. Embeddings,
/// which are the targets, stay `f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Shape of one row: `[D]`, or `[C, h, w]`.
    pub shape: Vec<usize>,
    /// Which item each row belongs to, ascending.
    pub items: Vec<u32>,
    values: Values,
}

#[derive(Debug, Clone, PartialEq)]
enum Values {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Features {
    /// Wraps `items.len()` rows.
    ///
    /// # Panics
    /// If the numbers do not fit.
    pub fn from_f32(shape: Vec<usize>, items: Vec<u32>, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), items.len() * shape.iter().product::<usize>(), "rows of one shape");
        Self { shape, items, values: Values::F32(values) }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Values a row.
    pub fn row_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The rows of these numbers, one after the other.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn gather(&self, rows: impl IntoIterator<Item = usize>) -> Vec<f32> {
        let size = self.row_len();
        let mut out = Vec::new();
        for row in rows {
            let range = row * size..(row + 1) * size;
            match &self.values {
                Values::F16(values) => out.extend(values[range].iter().map(|value| value.to_f32())),
                Values::F32(values) => out.extend_from_slice(&values[range]),
            }
        }
        out
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        self.gather(0..self.len())
    }

    /// The same features without the rows whose item is not in `items` (ascending).
    pub fn keep(&self, items: &[u32]) -> Self {
        let rows: Vec<usize> =
            (0..self.len()).filter(|&row| items.binary_search(&self.items[row]).is_ok()).collect();
        let size = self.row_len();
        let values = match &self.values {
            Values::F16(values) => Values::F16(
                rows.iter().flat_map(|row| &values[row * size..(row + 1) * size]).copied().collect(),
            ),
            Values::F32(values) => Values::F32(
                rows.iter().flat_map(|row| &values[row * size..(row + 1) * size]).copied().collect(),
            ),
        };
        Self { shape: self.shape.clone(), items: rows.iter().map(|&row| self.items[row]).collect(), values }
    }

    /// Writes tensors `features` and `items`, and `metadata` beside them.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write(&self, path: &Path, metadata: HashMap<String, String>) -> Result<(), FileError> {
        let (dtype, bytes): (Dtype, Vec<u8>) = match &self.values {
            Values::F16(values) => {
                (Dtype::F16, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
            Values::F32(values) => {
                (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
        };
        let items: Vec<u8> = self.items.iter().flat_map(|item| item.to_le_bytes()).collect();
        let shape: Vec<usize> = [self.len()].into_iter().chain(self.shape.iter().copied()).collect();
        let views = [
            ("features", TensorView::new(dtype, shape, &bytes).expect("the bytes have this shape")),
            (
                "items",
                TensorView::new(Dtype::U32, vec![self.len()], &items).expect("the bytes have this shape"),
            ),
        ];
        let bytes = safetensors::serialize(views, Some(metadata)).expect("tensors of valid shape serialise");
        write_whole(path, &bytes)
    }

    /// Reads what [`Features::write`] wrote, with its metadata.
    ///
    /// # Errors
    /// [`FeatureError::File`] and [`FeatureError::NotFeatures`].
    pub fn read(path: &Path) -> Result<(Self, HashMap<String, String>), FeatureError> {
        let bytes = read(path)?;
        Self::parse(&bytes).map_err(|reason| FeatureError::NotFeatures { path: path.into(), reason })
    }

    fn parse(bytes: &[u8]) -> Result<(Self, HashMap<String, String>), String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let features = tensors.tensor("features").map_err(|error| error.to_string())?;
        let items = tensors.tensor("items").map_err(|error| error.to_string())?;
        if items.dtype() != Dtype::U32 || features.shape().first() != items.shape().first() {
            return Err("`features` and `items` do not belong together".to_owned());
        }
        let items = items.data().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let values = match features.dtype() {
            Dtype::F16 => Values::F16(
                features.data().as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect(),
            ),
            Dtype::F32 => Values::F32(
                features.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            ),
            other => return Err(format!("features are {other:?}, not F16 or F32")),
        };
        Ok((Self { shape: features.shape()[1..].to_vec(), items, values }, metadata))
    }

    fn join(parts: Vec<Self>) -> Option<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next()?;
        for part in parts {
            all.items.extend(part.items);
            match (&mut all.values, part.values) {
                (Values::F16(values), Values::F16(more)) => values.extend(more),
                (Values::F32(values), Values::F32(more)) => values.extend(more),
                _ => return None,
            }
        }
        Some(all)
    }
}

/// What features were made from, as fingerprints; stands in the metadata of their file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Of the network's file; see [`model_hash`].
    pub model: String,
    /// Of photos, views and preprocessing.
    pub inputs: String,
}

impl Origin {
    /// Reads what [`Origin::to_metadata`] wrote.
    pub fn read(metadata: &HashMap<String, String>) -> Option<Self> {
        Some(Self { model: metadata.get("model")?.clone(), inputs: metadata.get("inputs")?.clone() })
    }

    /// As the metadata of a feature file.
    pub fn to_metadata(&self) -> HashMap<String, String> {
        HashMap::from([("model".to_owned(), self.model.clone()), ("inputs".to_owned(), self.inputs.clone())])
    }
}

/// The fingerprint of a model file.
pub fn model_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// At which sizes a network looks at a photo. Embeddings of several sizes are averaged as unit vectors, and made unit again
/// (the test protocol of Radenović et al., "Revisiting Oxford and Paris", CVPR 2018, averages over 1, sqrt 2 and 1 / sqrt 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    /// Factors of the size.
    pub scales: Vec<f64>,
    /// Longest side at scale 1, in pixels, with the photo's own aspect; the model's own size where it is missing.
    pub longest_side: Option<u32>,
}

impl Default for Sight {
    fn default() -> Self {
        Self { scales: vec![1.0], longest_side: None }
    }
}

/// Sides of a network's input are multiples of so many pixels: our networks halve five times, with padding that suits these.
const SIDE_STEP: u32 = 32;

impl Sight {
    /// Width and height of a photo's input at each scale.
    fn sizes(&self, own: Preprocessing, (width, height): (u32, u32)) -> Vec<(u32, u32)> {
        let rounded = |side: f64| ((side / f64::from(SIDE_STEP)).round() as u32).max(1) * SIDE_STEP;
        let size = |scale: &f64| match self.longest_side {
            None if *scale == 1.0 => (own.width, own.height),
            None => (rounded(f64::from(own.width) * scale), rounded(f64::from(own.height) * scale)),
            Some(longest) => {
                let factor = f64::from(longest) * scale / f64::from(width.max(height).max(1));
                (rounded(f64::from(width) * factor), rounded(f64::from(height) * factor))
            }
        };
        self.scales.iter().map(size).collect()
    }
}

/// A network, optimised for each size that is asked for.
struct Sizes<'a> {
    model: &'a Path,
    /// The most recent ones last: each holds the weights once more.
    loaded: Mutex<Vec<(u32, u32, Arc<Network>)>>,
}

/// How many sizes of a network are kept.
const SIZES_MAX: usize = 8;

impl Sizes<'_> {
    fn get(&self, width: u32, height: u32) -> Result<Arc<Network>, ModelError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = loaded.iter().position(|entry| (entry.0, entry.1) == (width, height)) {
            let entry = loaded.remove(place);
            let network = Arc::clone(&entry.2);
            loaded.push(entry);
            return Ok(network);
        }
        let network = Arc::new(Network::load(self.model, width, height)?);
        if loaded.len() == SIZES_MAX {
            loaded.remove(0);
        }
        loaded.push((width, height, Arc::clone(&network)));
        Ok(network)
    }
}

/// One extraction: which network, over which views of which photos.
pub struct Extraction<'a> {
    /// What the progress bar says.
    pub name: &'a str,
    /// The network's file.
    pub model: &'a Path,
    /// How photos become its input.
    pub preprocessing: Preprocessing,
    /// At which sizes it looks.
    pub sight: &'a Sight,
    /// The photos.
    pub photos: &'a PhotoList,
    /// Views of each photo, at least 1; item number = view x photos + photo.
    pub views: usize,
    /// Seed of the views.
    pub seed: u64,
    /// Whether 16-bit floats are enough.
    pub half: bool,
}

impl Extraction<'_> {
    /// The features, from `out` where it already holds exactly these, else computed and written there.
    ///
    /// # Errors
    /// [`FeatureError`]; after [`FeatureError::Stopped`] the same call continues.
    pub fn run(&self, out: &Path, stop: &AtomicBool) -> Result<Features, FeatureError> {
        let origin = self.origin()?;
        if out.exists() {
            let (features, metadata) = Features::read(out)?;
            if Origin::read(&metadata).as_ref() == Some(&origin) {
                return Ok(features);
            }
            tracing::warn!(file = %out.display(), "made from another network, list or seed: computing it again");
        }
        let parts = PathBuf::from(format!("{}.parts", out.display()));
        Self::prepare(&parts, &origin)?;
        let count = self.photos.photos().len() * self.views;
        let sizes = Sizes { model: self.model, loaded: Mutex::new(Vec::new()) };
        let shape = sizes.get(self.preprocessing.width, self.preprocessing.height)?.output_shape().to_vec();
        let shape = shape.get(1..).unwrap_or_default();
        if *self.sight != Sight::default() && shape.len() != 1 {
            return Err(FeatureError::NotFeatures {
                path: self.model.into(),
                reason: format!(
                    "it gives maps of shape {shape:?}, and only vectors can be averaged over sizes"
                ),
            });
        }

        let progress = Progress::new(self.name, count as u64);
        let mut features = Vec::new();
        let mut skipped = Vec::new();
        for start in (0..count).step_by(CHUNK) {
            let end = (start + CHUNK).min(count);
            let path = parts.join(format!("{start:08}.safetensors"));
            let part = if let Ok((part, _)) = Features::read(&path) {
                part
            } else {
                let part = self.chunk(&sizes, shape, start..end, &progress, stop)?;
                part.write(&path, HashMap::new())?;
                part
            };
            skipped.extend((start as u32..end as u32).filter(|item| !part.items.contains(item)));
            progress.set(end as u64);
            features.push(part);
        }
        progress.finish();
        self.warn(&skipped);
        let features =
            Features::join(features).filter(|all| !all.is_empty()).ok_or(FeatureError::Nothing { count })?;
        features.write(out, origin.to_metadata())?;
        // The chunks have done their work; a failure to remove them costs disk space only.
        let _ = std::fs::remove_dir_all(&parts);
        Ok(features)
    }

    fn chunk(
        &self,
        sizes: &Sizes,
        shape: &[usize],
        items: std::ops::Range<usize>,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> Result<Features, FeatureError> {
        let photos = self.photos.photos().len();
        let rows: Vec<Option<Vec<f32>>> = items
            .clone()
            .into_par_iter()
            .map(|item| {
                if stop.load(Ordering::Relaxed) {
                    return Err(FeatureError::Stopped);
                }
                let (index, view) = (item % photos, item / photos);
                progress.step();
                let Ok(photo) = self.photos.view(index, view, self.seed) else { return Ok(None) };
                let failed = |reason| FeatureError::Network { photo: self.photos.file(index), reason };
                let row = self.row(sizes, &photo)?.map_err(failed)?;
                if row.iter().all(|value| value.is_finite()) {
                    Ok(Some(row))
                } else {
                    Err(failed("it gave NaN".to_owned()))
                }
            })
            .collect::<Result<_, _>>()?;
        let done =
            rows.iter().zip(items).filter(|(row, _)| row.is_some()).map(|(_, item)| item as u32).collect();
        let values = rows.into_iter().flatten().flatten();
        let values = if self.half {
            Values::F16(values.map(f16::from_f32).collect())
        } else {
            Values::F32(values.collect())
        };
        Ok(Features { shape: shape.to_vec(), items: done, values })
    }

    /// What the network makes of one photo, at all sizes.
    fn row(&self, sizes: &Sizes, photo: &RgbImage) -> Result<Result<Vec<f32>, String>, ModelError> {
        let mut sum: Vec<f32> = Vec::new();
        let wanted = self.sight.sizes(self.preprocessing, photo.dimensions());
        for &(width, height) in &wanted {
            let network = sizes.get(width, height)?;
            let mut row =
                match network.run(&Preprocessing { width, height, ..self.preprocessing }.tensor(photo)) {
                    Ok(row) => row,
                    Err(reason) => return Ok(Err(reason)),
                };
            if wanted.len() == 1 {
                return Ok(Ok(row));
            }
            to_unit(&mut row);
            sum.resize(row.len(), 0.0);
            sum.iter_mut().zip(&row).for_each(|(sum, value)| *sum += value);
        }
        to_unit(&mut sum);
        Ok(Ok(sum))
    }

    /// Chunks of the same extraction stay, others go.
    fn prepare(parts: &Path, origin: &Origin) -> Result<(), FeatureError> {
        let note = parts.join("origin");
        let fingerprint = format!("{} {}", origin.model, origin.inputs);
        if std::fs::read_to_string(&note).is_ok_and(|found| found == fingerprint) {
            return Ok(());
        }
        let _ = std::fs::remove_dir_all(parts);
        std::fs::create_dir_all(parts).map_err(|source| FileError::write(parts, source))?;
        Ok(write_whole(&note, fingerprint.as_bytes())?)
    }

    /// Everything that the features depend on, the photos' contents by their size and time of change.
    fn origin(&self) -> Result<Origin, FeatureError> {
        let mut hasher = blake3::Hasher::new();
        let settings = serde_json::json!({
            "preprocessing": self.preprocessing, "views": self.views, "seed": if self.views > 1 { self.seed } else { 0 },
            "half": self.half, "version": 1,
        });
        hasher.update(settings.to_string().as_bytes());
        if *self.sight != Sight::default() {
            hasher.update(serde_json::json!(self.sight).to_string().as_bytes());
        }
        for index in 0..self.photos.photos().len() {
            let path = self.photos.file(index);
            hasher.update(self.photos.photos()[index].path.as_os_str().as_encoded_bytes());
            if let Some(crop) = self.photos.photos()[index].crop {
                hasher.update(format!("{crop:?}").as_bytes());
            }
            // A missing photo is a skipped photo, and becomes another fingerprint when it is there.
            if let Ok(metadata) = std::fs::metadata(&path) {
                let changed =
                    metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
                hasher.update(format!("|{}|{:?}", metadata.len(), changed).as_bytes());
            }
        }
        Ok(Origin { model: model_hash(&read(self.model)?), inputs: hasher.finalize().to_hex().to_string() })
    }

    fn warn(&self, skipped: &[u32]) {
        let mut photos: Vec<usize> =
            skipped.iter().map(|&item| item as usize % self.photos.photos().len()).collect();
        photos.sort_unstable();
        photos.dedup();
        for photo in photos {
            tracing::warn!(photo = %self.photos.file(photo).display(), "left out: it cannot be decoded");
        }
    }
}
