//! Lists of photos, and the augmented views of a photo that training sees.

use std::path::{Path, PathBuf};

use glimpse_embedder::{PhotoError, RgbImage, read_photo};
use image::imageops;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use thiserror::Error;

/// Why there is no list of photos.
#[derive(Debug, Error)]
pub enum PhotoListError {
    /// The folder cannot be read.
    #[error("cannot list {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The table cannot be read.
    #[error("cannot read the photo table {}", path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// Which line, and why.
        #[source]
        source: csv::Error,
    },
    /// Nothing is left.
    #[error("{} names no photo{}", path.display(), if *filtered { " of the asked roles" } else { "" })]
    Empty {
        /// The table or folder.
        path: PathBuf,
        /// Whether roles were asked for.
        filtered: bool,
    },
}

/// One photo of a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Photo {
    /// Relative to the list's folder, which makes it the photo's name too.
    pub path: PathBuf,
    /// `gallery`, `query`, `distractor` or `unlabelled`; empty where the list says nothing.
    #[serde(default)]
    pub role: String,
    /// Which thing it shows: a query's answers are the gallery photos of the same object.
    #[serde(default)]
    pub object: String,
}

/// Photos in a fixed order.
#[derive(Debug, Clone)]
pub struct PhotoList {
    root: PathBuf,
    photos: Vec<Photo>,
}

impl PhotoList {
    /// Reads a CSV table with a column `path` (relative to the table's folder) and optionally `role` and `object`, or
    /// lists the JPEG and PNG files of a folder by name.
    ///
    /// # Errors
    /// [`PhotoListError`]; an empty list is an error too.
    pub fn read(path: &Path) -> Result<Self, PhotoListError> {
        let (root, photos) = if path.is_dir() {
            (path.to_path_buf(), list_folder(path)?)
        } else {
            let table = |source| PhotoListError::Table { path: path.into(), source };
            let mut reader = csv::Reader::from_path(path).map_err(table)?;
            let photos = reader.deserialize().collect::<Result<_, _>>().map_err(table)?;
            (path.parent().map(Path::to_path_buf).unwrap_or_default(), photos)
        };
        Self { root, photos }.nonempty(path, false)
    }

    /// The same list with only the photos of these roles; all of them where `roles` is empty.
    ///
    /// # Errors
    /// [`PhotoListError::Empty`]; `path` names the list in it.
    pub fn with_roles(mut self, path: &Path, roles: &[String]) -> Result<Self, PhotoListError> {
        if !roles.is_empty() {
            self.photos.retain(|photo| roles.contains(&photo.role));
        }
        self.nonempty(path, !roles.is_empty())
    }

    fn nonempty(self, path: &Path, filtered: bool) -> Result<Self, PhotoListError> {
        if self.photos.is_empty() {
            Err(PhotoListError::Empty { path: path.into(), filtered })
        } else {
            Ok(self)
        }
    }

    /// The photos.
    pub fn photos(&self) -> &[Photo] {
        &self.photos
    }

    /// Where a photo's file is.
    pub fn file(&self, index: usize) -> PathBuf {
        self.root.join(&self.photos[index].path)
    }

    /// Decodes one view of a photo; view 0 is the photo itself.
    ///
    /// # Errors
    /// [`PhotoError`].
    pub fn view(&self, index: usize, view: usize, seed: u64) -> Result<RgbImage, PhotoError> {
        let photo = read_photo(&self.file(index))?;
        if view == 0 {
            return Ok(photo);
        }
        // One stream for each photo and view, so that a view does not depend on which others are made.
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream((view as u64) << 32 | index as u64);
        Ok(augment(&photo, &mut random))
    }
}

fn list_folder(path: &Path) -> Result<Vec<Photo>, PhotoListError> {
    let folder = |source| PhotoListError::Folder { path: path.into(), source };
    let mut photos = Vec::new();
    for entry in std::fs::read_dir(path).map_err(folder)? {
        let name = PathBuf::from(entry.map_err(folder)?.file_name());
        let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if ["jpg", "jpeg", "png"].contains(&extension.to_ascii_lowercase().as_str()) {
            photos.push(Photo { path: name, role: String::new(), object: String::new() });
        }
    }
    photos.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(photos)
}

/// Range of a crop's area, as a fraction of the photo's.
const CROP_AREA: std::ops::Range<f64> = 0.35..1.0;
/// Range of a crop's aspect ratio, relative to the photo's.
const CROP_ASPECT: std::ops::Range<f64> = 0.75..1.333;
/// Largest relative change of brightness and of each colour channel.
const COLOUR_CHANGE: f32 = 0.3;

/// A random crop, mirrored half of the time, with other light. The teacher embeds the same view, so that nothing needs
/// to be invariant by force.
fn augment(photo: &RgbImage, random: &mut ChaCha8Rng) -> RgbImage {
    let (width, height) = (f64::from(photo.width()), f64::from(photo.height()));
    let area = random.random_range(CROP_AREA);
    let aspect = random.random_range(CROP_ASPECT).sqrt();
    let w = (width * area.sqrt() * aspect).min(width).max(1.0) as u32;
    let h = (height * area.sqrt() / aspect).min(height).max(1.0) as u32;
    let x = random.random_range(0..=photo.width() - w);
    let y = random.random_range(0..=photo.height() - h);
    let mut view = imageops::crop_imm(photo, x, y, w, h).to_image();
    if random.random_bool(0.5) {
        imageops::flip_horizontal_in_place(&mut view);
    }
    let mut change = || 1.0 + random.random_range(-COLOUR_CHANGE..COLOUR_CHANGE);
    let (brightness, contrast) = (change(), change());
    // Channels move apart by half as much: a change of white balance, not of the thing's colour.
    let gain: [f32; 3] = std::array::from_fn(|_| brightness * change().sqrt());
    let levels: [[u8; 256]; 3] = gain.map(|gain| {
        std::array::from_fn(|level| {
            (((level as f32 - 128.0) * contrast + 128.0) * gain).clamp(0.0, 255.0) as u8
        })
    });
    for pixel in view.pixels_mut() {
        for (value, levels) in pixel.0.iter_mut().zip(&levels) {
            *value = levels[usize::from(*value)];
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_photo(path: &Path) {
        RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 90])).save(path).unwrap();
    }

    #[test]
    fn a_view_depends_on_seed_photo_and_number_only() {
        let dir = tempfile::tempdir().unwrap();
        write_photo(&dir.path().join("a.png"));
        write_photo(&dir.path().join("b.png"));
        let list = PhotoList::read(dir.path()).unwrap();
        let view = |index, view, seed| list.view(index, view, seed).unwrap();
        assert_eq!(view(0, 1, 7), view(0, 1, 7));
        assert_eq!(view(0, 0, 7).dimensions(), (40, 30));
        assert_ne!(view(0, 1, 7), view(0, 2, 7));
        assert_ne!(view(0, 1, 7), view(1, 1, 7));
        assert_ne!(view(0, 1, 7), view(0, 1, 8));
    }

    #[test]
    fn a_table_keeps_roles_and_objects_and_lists_are_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("photos.csv");
        std::fs::write(&table, "path,role,object,label\na.jpg,gallery,7,x\nb.jpg,query,7,x\n").unwrap();
        let list = PhotoList::read(&table).unwrap();
        assert_eq!((list.photos()[1].role.as_str(), list.photos()[1].object.as_str()), ("query", "7"));
        assert_eq!(list.file(0), dir.path().join("a.jpg"));
        let queries = list.clone().with_roles(&table, &["query".to_owned()]).unwrap();
        assert_eq!(queries.photos().len(), 1);
        assert!(
            list.with_roles(&table, &["teapot".to_owned()]).unwrap_err().to_string().contains("asked roles")
        );
        std::fs::write(&table, "name\na.jpg\n").unwrap();
        assert!(PhotoList::read(&table).unwrap_err().to_string().starts_with("cannot read the photo table"));
    }
}
