//! Pictures as cameras give them, borrowed from the driver's buffers.

#[cfg(not(target_os = "none"))]
use image::RgbImage;
use thiserror::Error;

/// The longest side of a photo, in pixels.
pub const PHOTO_SIDE_MAX: u32 = 16_384;

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A side that no camera has, or that the format cannot have.
    #[error(
        "a frame of {width}x{height} in {format}: sides must be {sides} numbers of 1 to {PHOTO_SIDE_MAX}"
    )]
    Size {
        /// Width, in pixels.
        width: u32,
        /// Height, in pixels.
        height: u32,
        /// The format's name.
        format: &'static str,
        /// What the sides must be.
        sides: &'static str,
    },
    /// Rows overlap, or do not begin on a pixel.
    #[error("rows of {format} that are {stride} bytes apart, and {needed} are needed, in steps of {step}")]
    Stride {
        /// From one row to the next, in bytes.
        stride: usize,
        /// The least that it can be.
        needed: usize,
        /// What it must be a multiple of.
        step: usize,
        /// The format's name.
        format: &'static str,
    },
    /// The picture was cut off.
    #[error("{found} bytes, and the frame has {needed}: was it cut off?")]
    Short {
        /// Bytes that there are.
        found: usize,
        /// Bytes that there should be.
        needed: usize,
    },
}

/// Which colours the numbers of a YCbCr picture mean. Cameras say it with the format; where one does not,
/// [`Colours::CAMERA`] is what nearly all mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colours {
    /// Weights of red and blue in luma (`Kr`, `Kb` of ITU-R BT.601 and BT.709).
    pub weights: [f64; 2],
    /// Whether luma spans 0 to 255 (as in JPEG), or 16 to 235.
    pub full_range: bool,
}

impl Colours {
    /// BT.601 within 16 to 235: what USB cameras and V4L2's defaults mean.
    pub const CAMERA: Self = Self { weights: [0.299, 0.114], full_range: false };

    /// BT.601 from 0 to 255: what JPEG means.
    pub const JPEG: Self = Self { full_range: true, ..Self::CAMERA };

    /// BT.709 within 16 to 235: what HD video means.
    pub const HD: Self = Self { weights: [0.2126, 0.0722], full_range: false };

    /// What turns numbers into red, green and blue.
    pub(crate) fn matrix(self) -> ColourMatrix {
        let [red, blue] = self.weights;
        let green = 1.0 - red - blue;
        let (luma, chroma) = if self.full_range { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |x: f64| libm::round(x * f64::from(1 << FRACTION)) as i32;
        ColourMatrix {
            black: if self.full_range { 0 } else { 16 },
            luma: fixed(luma),
            red_of_cr: fixed(chroma * 2.0 * (1.0 - red)),
            green_of_cb: fixed(-chroma * 2.0 * blue * (1.0 - blue) / green),
            green_of_cr: fixed(-chroma * 2.0 * red * (1.0 - red) / green),
            blue_of_cb: fixed(chroma * 2.0 * (1.0 - blue)),
        }
    }
}

/// Bits behind the point.
const FRACTION: u32 = 16;

/// Colours in fixed-point integers, which round alike on every processor. From the definition of luma, `Y = Kr R + Kg G + Kb B`
/// and of the differences `Cb = (B - Y) / 2 (1 - Kb)`, `Cr = (R - Y) / 2 (1 - Kr)` (ITU-R BT.601-7, 2.5.1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct ColourMatrix {
    black: i32,
    luma: i32,
    red_of_cr: i32,
    green_of_cb: i32,
    green_of_cr: i32,
    blue_of_cb: i32,
}

impl ColourMatrix {
    #[inline]
    pub(crate) fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let y = (i32::from(y) - self.black) * self.luma + (1 << (FRACTION - 1));
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        [y + self.red_of_cr * cr, y + self.green_of_cb * cb + self.green_of_cr * cr, y + self.blue_of_cb * cb]
            .map(|level| (level >> FRACTION).clamp(0, 255) as u8)
    }
}

/// A picture as a camera gives it. Nothing is copied.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Pixels<'a>,
}

/// The pixels, checked: every row that the size says is there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pixels<'a> {
    /// `[height, width, 3]`
    Rgb(&'a [u8]),
    /// Rows of `Y0 Cb Y1 Cr`, one for two pixels.
    Yuyv { bytes: &'a [u8], stride: usize, colours: Colours },
    /// Rows of `Y`, and for every two of them one of `Cb Cr`, one for four pixels.
    Nv12 { luma: &'a [u8], chroma: &'a [u8], stride: usize, colours: Colours },
}

impl<'a> Frame<'a> {
    /// A frame in RGB, three bytes a pixel and no gaps.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn rgb([width, height]: [u32; 2], bytes: &'a [u8]) -> Result<Self, FrameError> {
        check_sides([width, height], [1, 1], "RGB", "any")?;
        let needed = 3 * width as usize * height as usize;
        check_length(bytes, needed)?;
        Ok(Self { width, height, pixels: Pixels::Rgb(&bytes[..needed]) })
    }

    /// A frame in YUYV (V4L2's `YUYV`, also `YUY2`): 4:2:2, its rows `stride` bytes apart.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn yuyv(
        [width, height]: [u32; 2],
        stride: usize,
        bytes: &'a [u8],
        colours: Colours,
    ) -> Result<Self, FrameError> {
        let format = "YUYV";
        check_sides([width, height], [2, 1], format, "even and any")?;
        let row = 2 * width as usize;
        // A pixel of the luma that is read is two bytes, one of the chroma four.
        check_stride(stride, row, 4, format)?;
        check_length(bytes, stride * height as usize)?;
        Ok(Self { width, height, pixels: Pixels::Yuyv { bytes, stride, colours } })
    }

    /// A frame in NV12: 4:2:0, a plane of luma and a plane of both chromas after it, rows of both `stride` bytes apart.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn nv12(
        [width, height]: [u32; 2],
        stride: usize,
        bytes: &'a [u8],
        colours: Colours,
    ) -> Result<Self, FrameError> {
        let format = "NV12";
        check_sides([width, height], [2, 2], format, "even")?;
        let row = width as usize;
        check_stride(stride, row, 2, format)?;
        let luma = stride * height as usize;
        check_length(bytes, luma + luma / 2)?;
        let (luma, chroma) = bytes.split_at(luma);
        Ok(Self { width, height, pixels: Pixels::Nv12 { luma, chroma, stride, colours } })
    }

    /// Width and height, in pixels.
    pub const fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }
}

#[cfg(not(target_os = "none"))]
impl Frame<'_> {
    /// A copy in RGB: pixels that share a chroma have the same.
    pub fn to_rgb(&self) -> RgbImage {
        let mut copy = RgbImage::new(self.width, self.height);
        let line = 3 * self.width as usize;
        for (y, row) in copy.chunks_exact_mut(line.max(1)).enumerate() {
            let row = row.as_chunks_mut::<3>().0;
            match self.pixels {
                Pixels::Rgb(bytes) => row.as_flattened_mut().copy_from_slice(&bytes[y * line..][..line]),
                Pixels::Yuyv { bytes, stride, colours } => {
                    let colours = colours.matrix();
                    let pairs = bytes[y * stride..].as_chunks::<4>().0;
                    for (to, [first, cb, second, cr]) in row.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                        *to = [*first, *second].map(|luma| colours.rgb(luma, *cb, *cr));
                    }
                }
                Pixels::Nv12 { luma, chroma, stride, colours } => {
                    let colours = colours.matrix();
                    let luma = luma[y * stride..].as_chunks::<2>().0;
                    let chroma = chroma[y / 2 * stride..].as_chunks::<2>().0;
                    let pairs = row.as_chunks_mut::<2>().0.iter_mut().zip(luma).zip(chroma);
                    for ((to, luma), [cb, cr]) in pairs {
                        *to = luma.map(|luma| colours.rgb(luma, *cb, *cr));
                    }
                }
            }
        }
        copy
    }
}

#[cfg(not(target_os = "none"))]
impl<'a> From<&'a RgbImage> for Frame<'a> {
    fn from(photo: &'a RgbImage) -> Self {
        Self { width: photo.width(), height: photo.height(), pixels: Pixels::Rgb(photo.as_raw()) }
    }
}

fn check_sides(
    [width, height]: [u32; 2],
    multiples: [u32; 2],
    format: &'static str,
    sides: &'static str,
) -> Result<(), FrameError> {
    let good =
        |side: u32, multiple: u32| (1..=PHOTO_SIDE_MAX).contains(&side) && side.is_multiple_of(multiple);
    if good(width, multiples[0]) && good(height, multiples[1]) {
        Ok(())
    } else {
        Err(FrameError::Size { width, height, format, sides })
    }
}

fn check_stride(stride: usize, needed: usize, step: usize, format: &'static str) -> Result<(), FrameError> {
    // Sixteen times the row is beyond any driver's alignment, and far from where sizes overflow.
    if (needed..=needed * 16 + 4096).contains(&stride) && stride.is_multiple_of(step) {
        Ok(())
    } else {
        Err(FrameError::Stride { stride, needed, step, format })
    }
}

const fn check_length(bytes: &[u8], needed: usize) -> Result<(), FrameError> {
    let found = bytes.len();
    if found >= needed { Ok(()) } else { Err(FrameError::Short { found, needed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_those_of_the_recommendations() {
        let [camera, jpeg, hd] = [Colours::CAMERA, Colours::JPEG, Colours::HD].map(Colours::matrix);
        for matrix in [camera, hd] {
            assert_eq!(matrix.rgb(16, 128, 128), [0; 3]);
            assert_eq!(matrix.rgb(235, 128, 128), [255; 3]);
            assert_eq!(matrix.rgb(0, 128, 128), [0; 3], "darker than black");
        }
        assert_eq!(jpeg.rgb(0, 128, 128), [0; 3]);
        assert_eq!(jpeg.rgb(255, 128, 128), [255; 3]);
        // Saturated red of BT.601's and BT.709's colour bars (ITU-R BT.801, tables for 8 bits).
        assert_eq!(camera.rgb(81, 90, 240), [254, 0, 0]);
        assert_eq!(hd.rgb(63, 102, 240), [255, 1, 0]);
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let bytes = [0; 64];
        let yuyv =
            |size, stride, length| Frame::yuyv(size, stride, &bytes[..length], Colours::CAMERA).map(|_| ());
        assert_eq!(yuyv([4, 4], 8, 32), Ok(()));
        assert_eq!(yuyv([4, 4], 12, 48), Ok(()));
        assert_eq!(yuyv([4, 4], 8, 31), Err(FrameError::Short { found: 31, needed: 32 }));
        assert!(matches!(yuyv([3, 4], 8, 64), Err(FrameError::Size { .. })));
        assert!(matches!(yuyv([0, 4], 8, 64), Err(FrameError::Size { .. })));
        assert!(matches!(yuyv([4, u32::MAX], 8, 64), Err(FrameError::Size { .. })));
        assert!(matches!(yuyv([4, 4], 6, 64), Err(FrameError::Stride { .. })));
        assert!(matches!(yuyv([4, 4], 10, 64), Err(FrameError::Stride { .. })));
        assert!(matches!(yuyv([4, 4], usize::MAX - 3, 64), Err(FrameError::Stride { .. })));
        let nv12 =
            |size, stride, length| Frame::nv12(size, stride, &bytes[..length], Colours::CAMERA).map(|_| ());
        assert_eq!(nv12([4, 4], 4, 24), Ok(()));
        assert_eq!(nv12([4, 4], 4, 23), Err(FrameError::Short { found: 23, needed: 24 }));
        assert!(matches!(nv12([4, 3], 4, 64), Err(FrameError::Size { .. })));
        assert!(matches!(nv12([4, 4], 5, 64), Err(FrameError::Stride { .. })));
        let rgb = |size, length| Frame::rgb(size, &bytes[..length]).map(|_| ());
        assert_eq!(rgb([3, 5], 64), Ok(()));
        assert_eq!(rgb([3, 5], 44), Err(FrameError::Short { found: 44, needed: 45 }));
        assert!(matches!(rgb([0, 5], 64), Err(FrameError::Size { .. })));
    }
}
