//! A camera that the kernel's V4L2 serves: any USB camera, and some of boards.
//!
//! What is asked of the kernel is behind the trait [`Device`]: [`sys`] asks it, a fake answers in the tests. Here is the rest:
//! which of its formats a camera shall give, passing pictures over until its exposure is steady, and what to do about a
//! camera that is unplugged, stuck, or sends rubbish. Every such failure closes the device; the next photo opens it anew, so
//! that a camera that is plugged in again is found again.
//!
//! A photo is the first picture that comes after it is asked for: what waited in the driver's buffers is older. Exposure,
//! focus and white balance are left to the camera.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glimpse_embedder::Colours;
use glimpse_embedder::photo::PHOTO_SIDE_MAX;
use glimpse_protocol::device::{CameraFormat, CameraSize};
use rustix::io::Errno;
use thiserror::Error;

use super::picture::{Photo, Picture, Pool};
use super::{Wanted, mjpeg, unix_time};
use crate::ports::{Error, ErrorKind};
use crate::vision::Settle;

pub mod sys;
#[cfg(test)]
mod tests;

/// The longest that a picture is waited for.
pub const PICTURE_WITHIN: Duration = Duration::from_secs(5);

/// The rest of a driver that says that there is a picture, and has none.
const SPURIOUS: Duration = Duration::from_millis(5);

/// Buffers that are asked for: the driver fills one, one is read, and two are between.
const BUFFERS: u32 = 4;

/// A camera that is not needed for so long is stopped until then.
const STOPS_FOR: Duration = Duration::from_secs(20);

/// The most formats, and the most sizes of each, that are looked at.
const OFFERS_MAX: u32 = 256;

const CAP_CAPTURE: u32 = 1;
const CAP_CAPTURE_PLANES: u32 = 0x1000;
const CAP_STREAMING: u32 = 0x0400_0000;

/// A format that is understood here. Those that need no decoding come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// 4:2:0 in two planes.
    Nv12,
    /// 4:2:2.
    Yuyv,
    /// One JPEG a picture.
    Mjpeg,
}

impl Format {
    const ALL: [Self; 3] = [Self::Nv12, Self::Yuyv, Self::Mjpeg];

    const fn code(self) -> u32 {
        u32::from_le_bytes(match self {
            Self::Nv12 => *b"NV12",
            Self::Yuyv => *b"YUYV",
            Self::Mjpeg => *b"MJPG",
        })
    }

    fn of_code(code: u32) -> Option<Self> {
        // JPEG and MJPG differ in name only.
        let code = if code == u32::from_le_bytes(*b"JPEG") { Self::Mjpeg.code() } else { code };
        Self::ALL.into_iter().find(|format| format.code() == code)
    }

    /// What sides must be multiples of.
    const fn multiples(self) -> [u32; 2] {
        match self {
            Self::Nv12 => [2, 2],
            Self::Yuyv => [2, 1],
            Self::Mjpeg => [1, 1],
        }
    }
}

impl From<CameraFormat> for Format {
    fn from(format: CameraFormat) -> Self {
        match format {
            CameraFormat::Nv12 => Self::Nv12,
            CameraFormat::Yuyv => Self::Yuyv,
            CameraFormat::Mjpeg => Self::Mjpeg,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nv12 => "NV12",
            Self::Yuyv => "YUYV",
            Self::Mjpeg => "MJPEG",
        })
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// The camera's name.
    pub card: String,
    /// `V4L2_CAP_*`.
    pub bits: u32,
}

/// Sizes of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// Width and height.
    One([u32; 2]),
    /// All from the least to the greatest, in steps.
    Range {
        /// Width and height, each.
        least: [u32; 2],
        /// As well.
        greatest: [u32; 2],
        /// As well.
        step: [u32; 2],
    },
}

/// What a driver has agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// `None` for one that is not understood here.
    pub format: Option<Format>,
    /// Width and height, in pixels.
    pub size: [u32; 2],
    /// From one row to the next, in bytes; 0 where the driver does not say.
    pub stride: usize,
    /// `V4L2_COLORSPACE_*`
    pub colorspace: u32,
    /// `V4L2_YCBCR_ENC_*`
    pub encoding: u32,
    /// `V4L2_QUANTIZATION_*`
    pub quantization: u32,
}

impl Layout {
    /// What its numbers mean, defaults of a colour space included (`V4L2_MAP_*_DEFAULT` of the kernel).
    fn colours(&self) -> Colours {
        const JPEG: u32 = 7;
        const HD: [u32; 2] = [3, 12];
        let is_full = self.quantization == 1 || (self.quantization == 0 && self.colorspace == JPEG);
        let is_hd = self.encoding == 2 || (self.encoding == 0 && HD.contains(&self.colorspace));
        Colours { full_range: is_full, ..if is_hd { Colours::HD } else { Colours::CAMERA } }
    }
}

/// A buffer that the driver has filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Which one.
    pub index: u32,
    /// Bytes in it.
    pub bytes: usize,
    /// The driver says that they are not what the camera sent.
    pub is_damaged: bool,
}

/// What is asked of the kernel. Nothing but `wait` and `rest` waits. Errors are the system's.
#[expect(clippy::missing_errors_doc, reason = "all of them give what the system says")]
pub trait Device {
    /// What the device is.
    fn capability(&mut self) -> io::Result<Capability>;
    /// The code of a format, by its place in the list; `EINVAL` behind the last one.
    fn format(&mut self, index: u32) -> io::Result<u32>;
    /// Sizes of a format; `EINVAL` behind the last ones.
    fn sizes(&mut self, format: u32, index: u32) -> io::Result<Sizes>;
    /// Asks for a format and a size, and returns what the driver makes of it.
    fn set_format(&mut self, format: u32, size: [u32; 2]) -> io::Result<Layout>;
    /// Asks for buffers and maps those that the driver gives. None of them is queued.
    fn request_buffers(&mut self, count: u32) -> io::Result<u32>;
    /// Gives a buffer to the driver, to be filled.
    fn queue(&mut self, index: u32) -> io::Result<()>;
    /// Takes a filled buffer back; `EAGAIN` where there is none.
    fn dequeue(&mut self) -> io::Result<Filled>;
    /// What is in it, until it is queued; nothing where it is.
    fn bytes(&self, filled: Filled) -> &[u8];
    /// Starts and stops the camera. A stopped one has given all buffers back.
    fn stream(&mut self, on: bool) -> io::Result<()>;
    /// Waits until there is something to be taken back, or an error; false where the time is over.
    fn wait(&mut self, longest: Duration) -> io::Result<bool>;
    /// Lets time pass.
    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
    /// Time since any fixed moment.
    fn now(&self) -> Duration;
}

/// Opens devices.
pub trait Open {
    /// What it opens.
    type Device: Device;

    /// Opens the device at `path`.
    ///
    /// # Errors
    /// What the system says.
    fn open(&mut self, path: &Path) -> io::Result<Self::Device>;
}

/// The kernel's devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nodes;

impl Open for Nodes {
    type Device = sys::Node;

    fn open(&mut self, path: &Path) -> io::Result<sys::Node> {
        sys::Node::open(path)
    }
}

/// Why a camera gives no photo.
#[derive(Debug, Error)]
pub enum V4l2Error {
    /// It cannot be opened.
    #[error("cannot open the camera {path}: {}", hint(source))]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} ({card}) {reason}")]
    NotACamera {
        /// The device.
        path: PathBuf,
        /// What it calls itself.
        card: String,
        /// Why it is no camera for this program.
        reason: &'static str,
    },
    /// It has none of the formats.
    #[error("the camera {path} ({card}) gives {offered}, and MJPEG, YUYV or NV12 is needed")]
    NoFormat {
        /// The device.
        path: PathBuf,
        /// What it calls itself.
        card: String,
        /// What it has.
        offered: String,
    },
    /// It has others than the one that is wanted.
    #[error(
        "the camera {path} ({card}) gives no {wanted}, but {offered}: leave camera_format out, or name one of these"
    )]
    OtherFormat {
        /// The device.
        path: PathBuf,
        /// What it calls itself.
        card: String,
        /// What it was asked for.
        wanted: Format,
        /// What it has.
        offered: String,
    },
    /// It was unplugged.
    #[error("the camera {path} is gone: was it unplugged?")]
    Gone {
        /// The device.
        path: PathBuf,
    },
    /// It sends nothing.
    #[error(
        "the camera {path} has sent no picture for {} s: plug it in again, at a port or hub with enough power",
        PICTURE_WITHIN.as_secs()
    )]
    Wedged {
        /// The device.
        path: PathBuf,
    },
    /// It sends rubbish.
    #[error(
        "the camera {path} sends damaged pictures ({reason}): try another cable or port, or a smaller camera_size"
    )]
    Damaged {
        /// The device.
        path: PathBuf,
        /// What is wrong with the last one.
        reason: String,
    },
    /// The driver refuses something.
    #[error("the camera {path} cannot {what}: {}", hint(source))]
    Request {
        /// The device.
        path: PathBuf,
        /// What it was asked to do.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl V4l2Error {
    /// The camera, where another program has it.
    pub fn busy(&self) -> Option<&Path> {
        match self {
            Self::Open { path, source } | Self::Request { path, source, .. } if is(source, Errno::BUSY) => {
                Some(path)
            }
            _ => None,
        }
    }
}

impl Error for V4l2Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotACamera { .. } | Self::NoFormat { .. } | Self::OtherFormat { .. } => {
                ErrorKind::Configuration
            }
            // Also a permission that is missing: it is, for a moment, each time that a camera is plugged in.
            _ => ErrorKind::Unavailable,
        }
    }
}

/// What to do about what the system said.
fn hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            "is it plugged in? `ls /dev/v4l/by-id` shows those that are"
        }
        Some(Errno::ACCESS | Errno::PERM) => "add this program's user to the group video",
        Some(Errno::BUSY) => "another program uses it: end that one",
        Some(Errno::NOSPC) => {
            "the USB bus has no room for it: use another port, fewer cameras, or a smaller camera_size"
        }
        Some(Errno::NOTTY | Errno::INVAL) => "is it a camera?",
        _ => "does it work with another program?",
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

/// A camera.
pub struct V4l2Camera<O: Open = Nodes> {
    path: PathBuf,
    name: String,
    wanted: Wanted,
    opener: O,
    running: Option<Running<O::Device>>,
    taken: u64,
}

impl V4l2Camera {
    /// The camera at `path`, with photos as they are wanted where it has such. It is opened for the first photo.
    pub fn new(path: PathBuf, wanted: Wanted) -> Self {
        Self::opened_by(Nodes, path, wanted)
    }
}

impl<O: Open> V4l2Camera<O> {
    fn opened_by(opener: O, path: PathBuf, wanted: Wanted) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { path, name, wanted, opener, running: None, taken: 0 }
    }

    /// A photo, taken now.
    ///
    /// # Errors
    /// [`V4l2Error`]; the next photo then opens the camera anew.
    pub fn photo(&mut self) -> Result<Photo, V4l2Error> {
        // It is put back where nothing failed.
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&mut self.opener, &self.path, self.wanted)?,
        };
        let picture = running.photo()?;
        self.running = Some(running);
        self.taken += 1;
        Ok(Photo { name: format!("{} #{}", self.name, self.taken), taken_at: unix_time(), picture })
    }

    /// Stops the camera where no photo is wanted for long.
    pub fn rest(&mut self, wait: Duration) {
        if wait >= STOPS_FOR
            && let Some(running) = &mut self.running
            && running.stop().is_err()
        {
            self.running = None;
        }
    }

    /// What the camera calls itself and how it sends its pictures, once it has sent one.
    pub fn describe(&self) -> Option<String> {
        let running = self.running.as_ref()?;
        Some(format!("{}, {}", running.card, running.format))
    }
}

/// A camera that is open.
struct Running<D> {
    path: PathBuf,
    card: String,
    device: D,
    format: Format,
    layout: Layout,
    buffers: u32,
    is_on: bool,
    pool: Pool,
    grey: Vec<u8>,
}

impl<D: Device> Running<D> {
    fn start<O: Open<Device = D>>(opener: &mut O, path: &Path, wanted: Wanted) -> Result<Self, V4l2Error> {
        let path = path.to_owned();
        let mut device =
            opener.open(&path).map_err(|source| V4l2Error::Open { path: path.clone(), source })?;
        let request = |what| {
            let path = path.clone();
            move |source| failed(&path, what, source)
        };
        let Capability { card, bits } = device.capability().map_err(request("say what it is"))?;
        let refused = |reason| V4l2Error::NotACamera { path: path.clone(), card: card.clone(), reason };
        if bits & CAP_CAPTURE == 0 {
            return Err(refused(if bits & CAP_CAPTURE_PLANES == 0 {
                "takes no pictures: of a camera with several devices take the first one"
            } else {
                "gives each colour a memory of its own, which this program does not read: for a Raspberry Pi's camera write \
                 camera = \"rpicam\""
            }));
        }
        if bits & CAP_STREAMING == 0 {
            return Err(refused("cannot stream"));
        }
        let (mut offers, others) = offers(&mut device, wanted).map_err(request("list its formats"))?;
        let no_format = |offered: String| {
            let offered = if offered.is_empty() { "no pictures".to_owned() } else { offered };
            V4l2Error::NoFormat { path: path.clone(), card: card.clone(), offered }
        };
        if let Some(format) = wanted.format.map(Format::from) {
            let offered = formats(&offers);
            offers.retain(|offer| offer.format == format);
            if offers.is_empty() && !offered.is_empty() {
                let (path, card) = (path.clone(), card.clone());
                return Err(V4l2Error::OtherFormat { path, card, wanted: format, offered });
            }
        }
        let (code, size) = choose(&offers, wanted.size).ok_or_else(|| no_format(others.join(", ")))?;
        let layout =
            device.set_format(code, size).map_err(request("take a format and size that it lists"))?;
        let sides = layout.size;
        let format = layout.format.filter(|_| sides.iter().all(|side| (1..=PHOTO_SIDE_MAX).contains(side)));
        let format =
            format.ok_or_else(|| no_format(format!("another format, or {}x{}", sides[0], sides[1])))?;
        let buffers = device.request_buffers(BUFFERS).map_err(request("have its buffers mapped"))?;
        if buffers == 0 {
            return Err(failed(&path, "give buffers", io::ErrorKind::OutOfMemory.into()));
        }
        tracing::info!(
            camera = %path.display(), card, %format, width = sides[0], height = sides[1], "the camera is open"
        );
        Ok(Self {
            path,
            card,
            device,
            format,
            layout,
            buffers,
            is_on: false,
            pool: Pool::default(),
            grey: Vec::new(),
        })
    }

    fn photo(&mut self) -> Result<Picture, V4l2Error> {
        if self.is_on {
            self.pass_over()?;
            return self.picture();
        }
        for index in 0..self.buffers {
            self.ask("take a buffer", |device| device.queue(index))?;
        }
        self.ask("start", |device| device.stream(true))?;
        self.is_on = true;
        let mut settle = Settle::default();
        loop {
            let picture = self.picture()?;
            let mean = picture.grey(&mut self.grey).map_or(0, |grey| grey.mean());
            if settle.is_settled(self.device.now(), mean) {
                return Ok(picture);
            }
        }
    }

    fn stop(&mut self) -> Result<(), V4l2Error> {
        if std::mem::take(&mut self.is_on) {
            self.ask("stop", |device| device.stream(false))?;
        }
        Ok(())
    }

    /// Gives back what was filled before this photo was asked for.
    fn pass_over(&mut self) -> Result<(), V4l2Error> {
        for _ in 0..self.buffers {
            match self.device.dequeue() {
                Ok(filled) => self.ask("take a buffer", |device| device.queue(filled.index))?,
                Err(error) if is(&error, Errno::AGAIN) => break,
                Err(error) => return Err(failed(&self.path, "give a picture", error)),
            }
        }
        Ok(())
    }

    /// The next picture that is whole.
    fn picture(&mut self) -> Result<Picture, V4l2Error> {
        let deadline = self.device.now() + PICTURE_WITHIN;
        let mut damage = None;
        loop {
            let left = deadline.saturating_sub(self.device.now());
            if left.is_zero() {
                let path = self.path.clone();
                return Err(match damage {
                    Some(reason) => V4l2Error::Damaged { path, reason },
                    None => V4l2Error::Wedged { path },
                });
            }
            if !self.ask("be waited for", |device| device.wait(left))? {
                continue;
            }
            let filled = match self.device.dequeue() {
                Ok(filled) => filled,
                Err(error) if is(&error, Errno::AGAIN) => {
                    self.device.rest(SPURIOUS);
                    continue;
                }
                Err(error) => return Err(failed(&self.path, "give a picture", error)),
            };
            let made = self.made(filled);
            self.ask("take a buffer", |device| device.queue(filled.index))?;
            match made {
                Ok(picture) => return Ok(picture),
                Err(reason) => {
                    tracing::debug!(camera = %self.path.display(), reason, "a damaged picture");
                    damage = Some(reason);
                }
            }
        }
    }

    /// A picture of our own, so that the driver can have its buffer back at once.
    fn made(&self, filled: Filled) -> Result<Picture, String> {
        if filled.is_damaged {
            return Err("the driver says so".to_owned());
        }
        let bytes = self.device.bytes(filled);
        if bytes.is_empty() {
            return Err("an empty one".to_owned());
        }
        let Layout { size, stride, .. } = self.layout;
        let [width, height] = size.map(|side| side as usize);
        let stride = |row: usize| if stride == 0 { row } else { stride };
        // Drivers round buffers up to pages: what is behind the picture is not copied.
        let copy = |needed: usize| self.pool.copy(bytes.get(..needed).unwrap_or(bytes));
        match self.format {
            Format::Mjpeg => {
                mjpeg::decode(bytes).map(Picture::from).map_err(|error| crate::linux::output::chain(&error))
            }
            Format::Yuyv => {
                let stride = stride(2 * width);
                Picture::yuyv(size, stride, copy(stride.saturating_mul(height)), self.layout.colours())
                    .map_err(|error| error.to_string())
            }
            Format::Nv12 => {
                let stride = stride(width);
                let needed = stride.saturating_mul(height).saturating_mul(3) / 2;
                Picture::nv12(size, stride, copy(needed), self.layout.colours())
                    .map_err(|error| error.to_string())
            }
        }
    }

    fn ask<T>(
        &mut self,
        what: &'static str,
        request: impl FnOnce(&mut D) -> io::Result<T>,
    ) -> Result<T, V4l2Error> {
        request(&mut self.device).map_err(|source| failed(&self.path, what, source))
    }
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> V4l2Error {
    let path = path.to_owned();
    if is(&source, Errno::NODEV) {
        V4l2Error::Gone { path }
    } else {
        V4l2Error::Request { path, what, source }
    }
}

/// A format of a device, by its own code, and sizes that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    code: u32,
    format: Format,
    sizes: Sizes,
}

/// What a device has that is understood here, and the names of what is not.
fn offers<D: Device>(device: &mut D, wanted: Wanted) -> io::Result<(Vec<Offer>, Vec<String>)> {
    let (mut offers, mut others) = (Vec::new(), Vec::new());
    for place in 0..OFFERS_MAX {
        let code = match device.format(place) {
            Ok(code) => code,
            Err(error) if is(&error, Errno::INVAL) => break,
            Err(error) => return Err(error),
        };
        let Some(format) = Format::of_code(code) else {
            let name =
                code.to_le_bytes().map(|byte| if byte.is_ascii_graphic() { byte as char } else { ' ' });
            others.push(name.iter().collect::<String>().trim_end().to_owned());
            continue;
        };
        let before = offers.len();
        for size in 0..OFFERS_MAX {
            match device.sizes(code, size) {
                Ok(sizes) => offers.push(Offer { code, format, sizes }),
                Err(error) if is(&error, Errno::NODEV) => return Err(error),
                Err(_) => break,
            }
            // A range is the only entry.
            if matches!(offers.last(), Some(Offer { sizes: Sizes::Range { .. }, .. })) {
                break;
            }
        }
        if offers.len() == before {
            // A driver that lists none takes what it is asked for, or says what it takes instead.
            let sizes = Sizes::One([wanted.size.width, wanted.size.height]);
            offers.push(Offer { code, format, sizes });
        }
    }
    Ok((offers, others))
}

/// The names of what a device has that is understood here.
fn formats(offers: &[Offer]) -> String {
    let is_offered = |format: &Format| offers.iter().any(|offer| offer.format == *format);
    let names = Format::ALL.into_iter().filter(is_offered).map(|format| format.to_string());
    names.collect::<Vec<_>>().join(", ")
}

/// The code of the format and the size that are nearest to what is wanted: the smallest that is as large, else the largest;
/// of several such the one that needs the least work.
fn choose(offers: &[Offer], wanted: CameraSize) -> Option<(u32, [u32; 2])> {
    let candidates = offers.iter().filter_map(|offer| {
        let size = nearest(offer, [wanted.width, wanted.height])?;
        let is_below = size[0] < wanted.width || size[1] < wanted.height;
        let pixels = i64::from(size[0]) * i64::from(size[1]);
        Some(((is_below, if is_below { -pixels } else { pixels }, offer.format), (offer.code, size)))
    });
    candidates.min_by_key(|(rank, _)| *rank).map(|(_, chosen)| chosen)
}

/// The size of an offer that is nearest to what is wanted; `None` where the format cannot have it.
fn nearest(offer: &Offer, wanted: [u32; 2]) -> Option<[u32; 2]> {
    let size = match offer.sizes {
        Sizes::One(size) => size,
        Sizes::Range { least, greatest, step } => std::array::from_fn(|side| {
            let (least, greatest) = (least[side], greatest[side].min(PHOTO_SIDE_MAX));
            let step = step[side].max(1).max(offer.format.multiples()[side]);
            let up =
                least.saturating_add(wanted[side].saturating_sub(least).div_ceil(step).saturating_mul(step));
            if up <= greatest { up } else { greatest.saturating_sub(greatest.saturating_sub(least) % step) }
        }),
    };
    let multiples = offer.format.multiples();
    let is_good = |side: usize| {
        (1..=PHOTO_SIDE_MAX).contains(&size[side]) && size[side].is_multiple_of(multiples[side])
    };
    (is_good(0) && is_good(1)).then_some(size)
}
