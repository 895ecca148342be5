//! A folder as camera: the photos in it in the order of their names, then new ones as they appear.
//!
//! The folder is listed again each time the camera is asked (no inotify: it is absent on network file systems, which
//! is where cameras like to put their photos). A new file is taken once its size and time have stayed the same from
//! one listing to the next, so that a photo that is still being written is left alone; a file that is written anew is
//! a new photo. The memory of what was taken is bounded by the folder: what is deleted is forgotten.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use glimpse_embedder::read_photo;

use super::picture::Photo;
use super::{CameraError, FILES_MAX};
use crate::ports::{Camera, Capture};

/// What tells a file from a later one of the same name.
type Stamp = (u64, Option<SystemTime>);

/// A folder as camera.
#[derive(Debug)]
pub struct FolderCamera {
    folder: PathBuf,
    once: bool,
    listed: bool,
    queue: VecDeque<PathBuf>,
    files: BTreeMap<PathBuf, Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    stamp: Stamp,
    taken: bool,
}

impl FolderCamera {
    /// The photos of a folder; `once` ends after those that are there at the first capture.
    pub const fn new(folder: PathBuf, once: bool) -> Self {
        Self { folder, once, listed: false, queue: VecDeque::new(), files: BTreeMap::new() }
    }

    /// Lists the folder and queues what is to be taken, in the order of names.
    fn list(&mut self) -> Result<(), CameraError> {
        let failed = |source| CameraError::Folder { path: self.folder.clone(), source };
        let mut now = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // A file that is gone again meanwhile is none.
            if !is_photo(&path) {
                continue;
            }
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if !metadata.is_file() {
                continue;
            }
            if now.len() == FILES_MAX {
                return Err(CameraError::TooMany { path: self.folder.clone() });
            }
            now.insert(path, (metadata.len(), metadata.modified().ok()));
        }
        let before = std::mem::take(&mut self.files);
        for (path, stamp) in now {
            let same = before.get(&path).filter(|known| known.stamp == stamp);
            let settled = same.is_some() || !self.listed;
            let taken = same.is_some_and(|known| known.taken);
            if settled && !taken {
                self.queue.push_back(path.clone());
            }
            self.files.insert(path, Known { stamp, taken: settled });
        }
        self.listed = true;
        Ok(())
    }
}

impl Camera for FolderCamera {
    type Photo = Photo;
    type Error = CameraError;

    fn capture(&mut self) -> Result<Capture<Photo>, CameraError> {
        if self.queue.is_empty() {
            if self.once && self.listed {
                return Ok(Capture::End);
            }
            self.list()?;
        }
        let Some(path) = self.queue.pop_front() else {
            return Ok(if self.once { Capture::End } else { Capture::NotYet });
        };
        match read_photo(&path) {
            Ok(image) => {
                let (name, taken_at) = (path.to_string_lossy().into_owned(), written_at(&path));
                Ok(Capture::Photo(Photo { name, taken_at, picture: image.into() }))
            }
            Err(source) => Err(CameraError::Photo { path, source }),
        }
    }
}

/// Whether the name is a photo's: visible, and `.jpg`, `.jpeg` or `.png`.
fn is_photo(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    !hidden && ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn written_at(path: &Path) -> Option<u64> {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    u64::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Error as _, ErrorKind};
    use glimpse_embedder::RgbImage;
    use std::fs;

    /// The smallest PNG: one pixel.
    fn photo(path: &Path) {
        RgbImage::from_pixel(1, 1, [9, 9, 9].into()).save(path).unwrap();
    }

    fn names(camera: &mut FolderCamera) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            match camera.capture() {
                Ok(Capture::Photo(photo)) => {
                    names.push(photo.name.rsplit_once('/').unwrap().1.to_owned());
                }
                Ok(Capture::NotYet | Capture::End) => return names,
                Err(error) => names.push(format!("! {error}")),
            }
        }
    }

    #[test]
    fn existing_photos_come_in_the_order_of_their_names_and_then_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.png", "a.PNG", "c.jpg.txt", ".hidden.png"] {
            photo(&dir.path().join("x.png"));
            fs::rename(dir.path().join("x.png"), dir.path().join(name)).unwrap();
        }
        fs::create_dir(dir.path().join("folder.png")).unwrap();
        let mut camera = FolderCamera::new(dir.path().into(), true);
        assert_eq!(names(&mut camera), ["a.PNG", "b.png"]);
        assert!(matches!(camera.capture(), Ok(Capture::End)));
    }

    #[test]
    fn a_new_photo_is_taken_once_it_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        photo(&dir.path().join("a.png"));
        let mut camera = FolderCamera::new(dir.path().into(), false);
        assert_eq!(names(&mut camera), ["a.png"]);
        let bytes = fs::read(dir.path().join("a.png")).unwrap();
        fs::write(dir.path().join("b.png"), &bytes[..20]).unwrap();
        assert_eq!(names(&mut camera), Vec::<String>::new());
        fs::write(dir.path().join("b.png"), &bytes).unwrap();
        assert_eq!(names(&mut camera), Vec::<String>::new());
        assert_eq!(names(&mut camera), ["b.png"]);
        assert_eq!(names(&mut camera), Vec::<String>::new());
    }

    #[test]
    fn a_file_written_anew_is_a_new_photo() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latest.png");
        photo(&path);
        let mut camera = FolderCamera::new(dir.path().into(), false);
        assert_eq!(names(&mut camera), ["latest.png"]);
        RgbImage::from_fn(9, 9, |x, y| [x as u8, y as u8, 0].into()).save(&path).unwrap();
        assert_eq!(names(&mut camera), Vec::<String>::new());
        assert_eq!(names(&mut camera), ["latest.png"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(names(&mut camera), Vec::<String>::new());
        assert!(camera.files.is_empty());
    }

    #[test]
    fn a_bad_photo_is_named_and_does_not_stop_the_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.jpg"), "no photo").unwrap();
        photo(&dir.path().join("b.png"));
        let names = names(&mut FolderCamera::new(dir.path().into(), true));
        assert!(names[0].starts_with("! ") && names[0].contains("a.jpg"), "{names:?}");
        assert_eq!(names[1], "b.png");
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_it() {
        let error = FolderCamera::new("/no/such/folder".into(), true).capture().unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
