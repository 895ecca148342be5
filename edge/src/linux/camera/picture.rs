//! A photo in memory: pixels as the camera gives them, with a name and a time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use glimpse_embedder::{Colours, Frame, FrameError, RgbImage};

use crate::vision::grey::{self, Grey};

/// A photo, from whichever camera.
#[derive(Debug)]
pub struct Photo {
    /// A file's path, or the camera and a number, such as `video0 #17`.
    pub name: String,
    /// When it was taken, Unix time in milliseconds, where that is known.
    pub taken_at: Option<u64>,
    /// Its pixels.
    pub picture: Picture,
}

/// Pixels, in memory of their own.
#[derive(Debug)]
pub struct Picture(Kind);

#[derive(Debug)]
enum Kind {
    Rgb(RgbImage),
    Yuyv { size: [u32; 2], stride: usize, bytes: Buffer, colours: Colours },
    Nv12 { size: [u32; 2], stride: usize, bytes: Buffer, colours: Colours },
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Self {
        Self(Kind::Rgb(image))
    }
}

const CHECKED: &str = "a frame is checked when its picture is made";

impl Picture {
    /// As [`Frame::yuyv`].
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn yuyv(size: [u32; 2], stride: usize, bytes: Buffer, colours: Colours) -> Result<Self, FrameError> {
        Frame::yuyv(size, stride, &bytes, colours)?;
        Ok(Self(Kind::Yuyv { size, stride, bytes, colours }))
    }

    /// As [`Frame::nv12`].
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn nv12(size: [u32; 2], stride: usize, bytes: Buffer, colours: Colours) -> Result<Self, FrameError> {
        Frame::nv12(size, stride, &bytes, colours)?;
        Ok(Self(Kind::Nv12 { size, stride, bytes, colours }))
    }

    /// What the embedder takes; nothing is copied.
    pub fn frame(&self) -> Frame<'_> {
        match &self.0 {
            Kind::Rgb(image) => image.into(),
            Kind::Yuyv { size, stride, bytes, colours } => {
                Frame::yuyv(*size, *stride, bytes, *colours).expect(CHECKED)
            }
            Kind::Nv12 { size, stride, bytes, colours } => {
                Frame::nv12(*size, *stride, bytes, *colours).expect(CHECKED)
            }
        }
    }

    /// Width and height, in pixels.
    pub fn size(&self) -> [u32; 2] {
        let (width, height) = self.frame().dimensions();
        [width, height]
    }

    /// How its pixels are stored.
    pub const fn format(&self) -> &'static str {
        match self.0 {
            Kind::Rgb(_) => "RGB",
            Kind::Yuyv { .. } => "YUYV",
            Kind::Nv12 { .. } => "NV12",
        }
    }

    /// A small grey copy in `pixels`, which is kept from one picture to the next; `None` for a picture without pixels.
    pub fn grey<'a>(&self, pixels: &'a mut Vec<u8>) -> Option<Grey<'a>> {
        let size = self.size();
        let small = grey::small(size);
        pixels.clear();
        pixels.resize(small[0] * small[1], 0);
        match &self.0 {
            Kind::Rgb(image) => {
                let line = 3 * size[0] as usize;
                let rows = |y: usize| image.as_raw().get(y * line..).unwrap_or_default().as_chunks::<3>().0;
                // The weights of luma in BT.601, in 256ths.
                let luma = |&[r, g, b]: &[u8; 3]| {
                    ((77 * u32::from(r) + 150 * u32::from(g) + 29 * u32::from(b)) >> 8) as u8
                };
                grey::shrink(size, |y| rows(y).iter().map(luma), pixels);
            }
            Kind::Yuyv { stride, bytes, colours, .. } => {
                let rows = |y: usize| bytes.get(y * stride..).unwrap_or_default().iter().step_by(2).copied();
                grey::shrink(size, rows, pixels);
                stretch(pixels, *colours);
            }
            Kind::Nv12 { stride, bytes, colours, .. } => {
                let rows = |y: usize| bytes.get(y * stride..).unwrap_or_default().iter().copied();
                grey::shrink(size, rows, pixels);
                stretch(pixels, *colours);
            }
        }
        Grey::new(small, pixels)
    }

    /// A copy in RGB.
    pub fn to_rgb(&self) -> RgbImage {
        self.frame().to_rgb()
    }
}

/// Luma that spans 16 to 235 to levels from 0 to 255.
fn stretch(pixels: &mut [u8], colours: Colours) {
    if !colours.full_range {
        let full = |luma: u8| (u32::from(luma.clamp(16, 235) - 16) * 255 / 219) as u8;
        pixels.iter_mut().for_each(|level| *level = full(*level));
    }
}

/// Where buffers wait to be used again. Clones share one.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// Buffers that wait at most; a camera has one photo out at a time, and one that is judged.
const WAITING_MAX: usize = 2;

impl Pool {
    /// A buffer with a copy of `bytes`.
    pub fn copy(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.empty();
        buffer.bytes.extend_from_slice(bytes);
        buffer
    }

    /// A buffer with nothing in it.
    pub fn empty(&self) -> Buffer {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.clear();
        Buffer { bytes, pool: self.clone() }
    }
}

/// Bytes that go back to their pool.
pub struct Buffer {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Buffer {
    /// What it holds, to be changed.
    pub const fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Photos are nobody's business, and large.
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut waiting = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX {
            waiting.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again() {
        let pool = Pool::default();
        let first = pool.copy(&[1; 1000]);
        let place = first.as_ptr();
        drop(first);
        let second = pool.copy(&[2; 900]);
        assert_eq!((second.as_ptr(), &*second), (place, &[2; 900][..]));
        let others: Vec<Buffer> = (0..5).map(|_| pool.copy(&[3; 10])).collect();
        drop((second, others));
        assert_eq!(pool.0.lock().unwrap().len(), WAITING_MAX);
    }

    #[test]
    fn the_same_grey_comes_from_every_format() {
        let (pool, size) = (Pool::default(), [8, 4]);
        let level = |x: u32, y: u32| (40 + 10 * x + 20 * y) as u8;
        let (mut yuyv, mut nv12) = (Vec::new(), Vec::new());
        for y in 0..4 {
            for x in 0..8 {
                yuyv.extend([level(x, y), 128]);
                nv12.push(level(x, y));
            }
            yuyv.extend([0xee; 4]);
            nv12.extend([0xee; 2]);
        }
        nv12.extend([128; 20]);
        let full = Colours::JPEG;
        let rgb = RgbImage::from_fn(8, 4, |x, y| [level(x, y); 3].into());
        let pictures = [
            Picture::from(rgb),
            Picture::yuyv(size, 20, pool.copy(&yuyv), full).unwrap(),
            Picture::nv12(size, 10, pool.copy(&nv12), full).unwrap(),
        ];
        let greys = pictures.each_ref().map(|picture| {
            let mut pixels = Vec::new();
            assert_eq!(picture.grey(&mut pixels).unwrap().size(), [8, 4]);
            pixels
        });
        assert!(greys[0] == greys[1] && greys[1] == greys[2], "{greys:?}");
        assert_eq!(greys[0][9], level(1, 1));
        let limited = Picture::yuyv(size, 20, pool.copy(&yuyv), Colours::CAMERA).unwrap();
        let mut pixels = Vec::new();
        limited.grey(&mut pixels).unwrap();
        assert_eq!(pixels[0], ((40 - 16) * 255 / 219) as u8, "16 is black");
        assert_eq!(pictures.map(|picture| picture.format()), ["RGB", "YUYV", "NV12"]);
    }

    #[test]
    fn a_picture_that_is_cut_off_is_none() {
        let pool = Pool::default();
        assert!(Picture::yuyv([8, 4], 16, pool.copy(&[0; 63]), Colours::CAMERA).is_err());
        assert!(Picture::nv12([8, 4], 8, pool.copy(&[0; 47]), Colours::CAMERA).is_err());
        assert!(Picture::from(RgbImage::new(0, 0)).grey(&mut Vec::new()).is_none());
    }
}
