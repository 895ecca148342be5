//! Cameras: where photos come from, and when. In reading order:
//!
//! - [`watch`]: a camera with a trigger, that gives the photos that are worth a query.
//! - [`picture`]: a photo in memory.
//! - [`v4l2`]: cameras that the kernel serves; [`rpicam`]: a Raspberry Pi's, by its own program.
//! - [`folder`]: the photos of a folder; [`video`]: the frames of a video file.
//! - [`mjpeg`]: JPEG after JPEG, as cameras and videos give them.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glimpse_embedder::PhotoError;
use glimpse_protocol::device::{CameraFormat, CameraSize, CameraSource, Device};
use thiserror::Error;

use crate::ports::{Camera as _, Capture, Error, ErrorKind};
use folder::FolderCamera;
use rpicam::{RpicamCamera, RpicamError};
use v4l2::{V4l2Camera, V4l2Error};
use video::{VideoCamera, VideoError};

pub mod folder;
pub mod mjpeg;
pub mod picture;
pub mod rpicam;
pub mod v4l2;
pub mod video;
pub mod watch;

pub use picture::{Photo, Picture};
pub use watch::Watch;

/// The most files of a folder that are looked at.
const FILES_MAX: usize = 1_000_000;

/// Why a camera gives no photo.
#[derive(Debug, Error)]
pub enum CameraError {
    /// The folder cannot be listed.
    #[error("cannot list the folder {path}: is it there, and a folder?")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There are too many files in the folder.
    #[error("{path} has more than {FILES_MAX} files: move the old ones away")]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// One photo cannot be read; the next call goes on with the next one.
    #[error("{}", source)]
    Photo {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PhotoError,
    },
    /// A camera that the kernel serves gives none.
    #[error(transparent)]
    V4l2(#[from] V4l2Error),
    /// A Raspberry Pi's camera gives none.
    #[error(transparent)]
    Rpicam(#[from] RpicamError),
    /// A video gives none.
    #[error(transparent)]
    Video(#[from] VideoError),
}

impl CameraError {
    /// The photo that cannot be read, where it is one photo.
    pub fn photo(&self) -> Option<String> {
        match self {
            Self::Photo { path, .. } => Some(path.to_string_lossy().into_owned()),
            Self::Video(VideoError::Frame { name, .. }) => Some(name.clone()),
            _ => None,
        }
    }
}

impl Error for CameraError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Folder { .. } => ErrorKind::Unavailable,
            Self::TooMany { .. } => ErrorKind::Configuration,
            Self::Photo { .. } => ErrorKind::Input,
            Self::V4l2(error) => error.kind(),
            Self::Rpicam(error) => error.kind(),
            Self::Video(error) => error.kind(),
        }
    }
}

/// How a live camera's photos should be. A Raspberry Pi's has a format of its own; those of files are as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At least, where it has such.
    pub size: CameraSize,
    /// `None`: the one that takes the least work.
    pub format: Option<CameraFormat>,
}

impl Wanted {
    /// What a configuration says.
    pub const fn of(device: &Device) -> Self {
        Self { size: device.camera_size, format: device.camera_format }
    }
}

/// A camera without a trigger: each call takes a photo.
pub enum Source {
    /// The photos of a folder.
    Folder(FolderCamera),
    /// A camera that the kernel serves.
    V4l2(V4l2Camera),
    /// A Raspberry Pi's camera.
    Rpicam(RpicamCamera),
    /// A video file.
    Video(VideoCamera),
}

impl Source {
    /// The camera that is named; nothing is opened yet. `once` ends with what a folder or video has now.
    pub fn new(source: &CameraSource, wanted: Wanted, once: bool) -> Self {
        match source {
            CameraSource::Folder(folder) => Self::Folder(FolderCamera::new(folder.clone(), once)),
            CameraSource::V4l2(path) => Self::V4l2(V4l2Camera::new(path.clone(), wanted)),
            CameraSource::Rpicam => Self::Rpicam(RpicamCamera::new(wanted.size)),
            CameraSource::Video(file) => Self::Video(VideoCamera::new(file.clone(), once)),
        }
    }

    /// A photo now, where there is one.
    ///
    /// # Errors
    /// [`CameraError`]
    pub fn photo(&mut self) -> Result<Capture<Photo>, CameraError> {
        match self {
            Self::Folder(folder) => folder.capture(),
            Self::V4l2(camera) => Ok(Capture::Photo(camera.photo()?)),
            Self::Rpicam(camera) => Ok(Capture::Photo(camera.photo()?)),
            Self::Video(video) => Ok(video.photo()?),
        }
    }

    /// Hears that no photo is wanted for this long.
    pub fn rest(&mut self, wait: Duration) {
        if let Self::V4l2(camera) = self {
            camera.rest(wait);
        }
    }

    /// What the camera calls itself, and how its pictures come, where it says so.
    pub fn describe(&self) -> Option<String> {
        match self {
            Self::V4l2(camera) => camera.describe(),
            Self::Folder(_) | Self::Rpicam(_) | Self::Video(_) => None,
        }
    }
}

/// Now, in milliseconds, as far as the system knows.
fn unix_time() -> Option<u64> {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}
