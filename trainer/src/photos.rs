//! Lists of photos, and the augmented views of a photo that training sees.

use std::path::{Path, PathBuf};

use glimpse_embedder::{PhotoError, RgbImage, read_photo};
use image::imageops;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
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
    /// The part that counts: left, top, right, bottom, in pixels. A protocol sets it, no table does.
    #[serde(skip)]
    pub crop: Option<[u32; 4]>,
}

impl Photo {
    /// A whole photo that nothing is known about.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), role: String::new(), object: String::new(), crop: None }
    }
}

/// Photos in a fixed order.
#[derive(Debug, Clone)]
pub struct PhotoList {
    root: PathBuf,
    photos: Vec<Photo>,
}

impl PhotoList {
    /// These photos, with paths from `root`.
    pub fn of(root: &Path, photos: Vec<Photo>) -> Self {
        Self { root: root.into(), photos }
    }

    /// Photos of the list by their numbers, in that order.
    ///
    /// # Panics
    /// If a number is none of the list's.
    pub fn pick(&self, numbers: &[u32]) -> Self {
        let photos = numbers.iter().map(|&number| self.photos[number as usize].clone()).collect();
        Self { root: self.root.clone(), photos }
    }

    /// Reads a CSV table with a column `path` (relative to the table's folder) and optionally `role` and `object`, or
    /// lists the JPEG and PNG files of a folder and the folders in it by name.
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

    /// Decodes a photo, or the part of it that counts; a crop that lies outside leaves the photo whole.
    fn photo(&self, index: usize) -> Result<RgbImage, PhotoError> {
        let photo = read_photo(&self.file(index))?;
        let Some([left, top, right, bottom]) = self.photos[index].crop else { return Ok(photo) };
        let (right, bottom) = (right.min(photo.width()), bottom.min(photo.height()));
        if left >= right || top >= bottom {
            return Ok(photo);
        }
        Ok(imageops::crop_imm(&photo, left, top, right - left, bottom - top).to_image())
    }

    /// Decodes one view of a photo; view 0 is the photo itself.
    ///
    /// # Errors
    /// [`PhotoError`].
    pub fn view(&self, index: usize, view: usize, seed: u64) -> Result<RgbImage, PhotoError> {
        let photo = self.photo(index)?;
        if view == 0 {
            return Ok(photo);
        }
        // One stream for each photo and view, so that a view does not depend on which others are made.
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream((view as u64) << 32 | index as u64);
        Ok(augment(&photo, &mut random))
    }
}

impl PhotoList {
    /// Decodes a photo as training sees it in `epoch`.
    ///
    /// # Errors
    /// [`PhotoError`].
    pub fn augmented(
        &self,
        index: usize,
        view: usize,
        augmentation: Augmentation,
        seed: u64,
        epoch: u64,
    ) -> Result<RgbImage, PhotoError> {
        match augmentation {
            Augmentation::Views => self.view(index, view, seed),
            Augmentation::Paper => {
                let photo = self.photo(index)?;
                let mut random = ChaCha8Rng::seed_from_u64(seed ^ epoch.rotate_left(32));
                random.set_stream(index as u64);
                Ok(paper_view(&photo, &mut random))
            }
        }
    }
}

/// What the student sees of a photo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augmentation {
    /// The very view that the teacher embedded ("consistent teaching").
    Views,
    /// Another random crop and colour jitter each epoch, of a photo that the teacher embedded as it is: the recipe of Wu
    /// et al., arXiv 2403.00648.
    Paper,
}

/// How deep folders are looked into; links to folders are not followed.
const DEPTH_MAX: usize = 16;

fn list_folder(root: &Path) -> Result<Vec<Photo>, PhotoListError> {
    let mut photos = Vec::new();
    let mut folders = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let path = root.join(&folder);
        let unreadable = |source| PhotoListError::Folder { path: path.clone(), source };
        for entry in std::fs::read_dir(&path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = folder.join(entry.file_name());
            if entry.file_type().map_err(unreadable)?.is_dir() {
                if depth < DEPTH_MAX {
                    folders.push((name, depth + 1));
                }
                continue;
            }
            let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if ["jpg", "jpeg", "png"].contains(&extension.to_ascii_lowercase().as_str()) {
                photos.push(Photo::at(name));
            }
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
    let mut view = random_crop(photo, CROP_AREA, CROP_ASPECT, random);
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

/// Area of a crop of the paper's recipe, as a fraction of the photo's, and its aspect ratio.
const PAPER_AREA: std::ops::Range<f64> = 0.8..1.0;
const PAPER_ASPECT: std::ops::Range<f64> = 0.75..4.0 / 3.0;
/// Share of photos whose colours change, and by how much: brightness, contrast, saturation, hue (of a full turn).
const PAPER_JITTER_SHARE: f64 = 0.8;
const PAPER_JITTER: [f32; 4] = [0.4, 0.4, 0.2, 0.1];

/// A random crop, and other colours most of the time.
fn paper_view(photo: &RgbImage, random: &mut ChaCha8Rng) -> RgbImage {
    let mut view = random_crop(photo, PAPER_AREA, PAPER_ASPECT, random);
    if random.random_bool(PAPER_JITTER_SHARE) {
        let mut change = |range: f32| 1.0 + random.random_range(-range..range);
        let [brightness, contrast, saturation] = [0, 1, 2].map(|i| change(PAPER_JITTER[i]));
        let turn = random.random_range(-PAPER_JITTER[3]..PAPER_JITTER[3]);
        jitter(&mut view, brightness, contrast, saturation, turn);
    }
    view
}

/// Changes brightness, contrast (around the photo's mean grey), saturation (around each pixel's grey) and hue, in this
/// order.
fn jitter(photo: &mut RgbImage, brightness: f32, contrast: f32, saturation: f32, hue_turn: f32) {
    let luma = |rgb: [f32; 3]| 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
    let bright = |pixel: &image::Rgb<u8>| pixel.0.map(|level| f32::from(level) * brightness);
    let count = (photo.width() * photo.height()).max(1) as f32;
    let mean = photo.pixels().map(|pixel| luma(bright(pixel))).sum::<f32>() / count;
    let rotation = hue_rotation(hue_turn);
    for pixel in photo.pixels_mut() {
        let rgb = bright(pixel).map(|level| (level - mean) * contrast + mean);
        let grey = luma(rgb);
        let rgb = rgb.map(|level| (level - grey) * saturation + grey);
        let turned = rotation.map(|row| row[0] * rgb[0] + row[1] * rgb[1] + row[2] * rgb[2]);
        pixel.0 = turned.map(|level| level.clamp(0.0, 255.0) as u8);
    }
}

/// A rotation of colours about the grey axis, which leaves greys alone: Rodrigues' formula for (1, 1, 1) / sqrt 3.
fn hue_rotation(turn: f32) -> [[f32; 3]; 3] {
    let (sin, cos) = (turn * std::f32::consts::TAU).sin_cos();
    let (same, across) = (cos + (1.0 - cos) / 3.0, (1.0 - cos) / 3.0);
    let skew = sin / 3.0_f32.sqrt();
    [
        [same, across - skew, across + skew],
        [across + skew, same, across - skew],
        [across - skew, across + skew, same],
    ]
}

/// A crop of random area, aspect (relative to the photo's) and place.
fn random_crop(
    photo: &RgbImage,
    area: std::ops::Range<f64>,
    aspect: std::ops::Range<f64>,
    random: &mut ChaCha8Rng,
) -> RgbImage {
    let (width, height) = (f64::from(photo.width()), f64::from(photo.height()));
    let area = random.random_range(area);
    let aspect = random.random_range(aspect).sqrt();
    let w = (width * area.sqrt() * aspect).min(width).max(1.0) as u32;
    let h = (height * area.sqrt() / aspect).min(height).max(1.0) as u32;
    let x = random.random_range(0..=photo.width() - w);
    let y = random.random_range(0..=photo.height() - h);
    imageops::crop_imm(photo, x, y, w, h).to_image()
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
    fn the_papers_views_change_from_epoch_to_epoch() {
        let dir = tempfile::tempdir().unwrap();
        write_photo(&dir.path().join("a.png"));
        let list = PhotoList::read(dir.path()).unwrap();
        let view = |seed, epoch| list.augmented(0, 0, Augmentation::Paper, seed, epoch).unwrap();
        assert_eq!(view(7, 3), view(7, 3));
        assert_ne!(view(7, 3), view(7, 4));
        assert_ne!(view(7, 3), view(8, 3));
        let (width, height) = view(7, 3).dimensions();
        let area = f64::from(width * height) / (40.0 * 30.0);
        assert!((0.7..=1.0).contains(&area), "{area}");
        assert_eq!(list.augmented(0, 2, Augmentation::Views, 7, 3).unwrap(), list.view(0, 2, 7).unwrap());
    }

    #[test]
    fn jitter_changes_what_it_says() {
        let pixel = |rgb, change: [f32; 4]| {
            let mut photo = RgbImage::from_pixel(2, 1, image::Rgb(rgb));
            jitter(&mut photo, change[0], change[1], change[2], change[3]);
            photo.get_pixel(0, 0).0
        };
        assert_eq!(pixel([100, 50, 20], [1.2, 1.0, 1.0, 0.0]), [120, 60, 24]);
        // Greys have no saturation and no hue, and one colour has no contrast.
        assert_eq!(pixel([90, 90, 90], [1.0, 0.5, 1.2, 0.0]), [90, 90, 90]);
        // A third of a turn makes red green.
        let [r, g, b] = pixel([200, 0, 0], [1.0, 1.0, 1.0, 1.0 / 3.0]);
        assert!(r < 2 && g > 198 && b < 2, "{r} {g} {b}");
        // Without saturation all that is left is grey: 0.299 x 200.
        let grey = pixel([200, 0, 0], [1.0, 1.0, 0.0, 0.0]);
        assert!(grey.iter().all(|level| (59..=60).contains(level)), "{grey:?}");
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
