//! Pixels to the network's input tensor.

use alloc::borrow::ToOwned as _;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
#[cfg(not(target_os = "none"))]
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::Frame;
use crate::frame::Pixels;

/// How a photo becomes a tensor: squashed to `width` x `height` whatever its shape (cutting would lose what stands at
/// the edge, and padding wastes the device's time), with an antialiased bilinear filter, then `(x / 255 - mean) / std`
/// a channel.
///
/// The resize works in fixed-point integers, which give the same bytes on every processor; a golden test holds that.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Width of the tensor, in pixels.
    pub width: u32,
    /// Height of the tensor, in pixels.
    pub height: u32,
    /// Mean of each channel (R, G, B), of values in 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

/// The largest tensor side, in pixels.
const SIDE_MAX: u32 = 4096;

impl Preprocessing {
    /// What is wrong with the numbers, if anything.
    ///
    /// # Errors
    /// A sentence on the first wrong one.
    pub fn validate(&self) -> Result<(), String> {
        if ![self.width, self.height].iter().all(|side| (1..=SIDE_MAX).contains(side)) {
            return Err(format!("input size {}x{} is not within 1 to {SIDE_MAX}", self.width, self.height));
        }
        if !self.mean.iter().chain(&self.std).all(|x| x.is_finite()) || self.std.iter().any(|std| *std <= 0.0)
        {
            return Err("mean and std must be finite, and std above zero".to_owned());
        }
        Ok(())
    }

    /// Number of values in the tensor.
    pub const fn tensor_len(&self) -> usize {
        3 * self.width as usize * self.height as usize
    }

    /// The tensor of a photo: `[3, height, width]`, row-major, RGB planes. Whoever makes many has a [`Preprocessor`].
    #[cfg(not(target_os = "none"))]
    pub fn tensor(&self, photo: &RgbImage) -> Vec<f32> {
        let mut tensor = alloc::vec![0.0; self.tensor_len()];
        Preprocessor::new(*self).tensor_into(&photo.into(), &mut tensor);
        tensor
    }
}

/// Makes tensors, in buffers that it keeps: after the first frame of a size it allocates nothing but the resizer's tables of weights,
/// which grow with the sides of a frame and not with its pixels.
#[derive(Debug)]
pub struct Preprocessor {
    preprocessing: Preprocessing,
    /// Of each channel, what a level becomes: the division is done once, and each value is exactly the formula's.
    values: Box<[[f32; 256]; 3]>,
    resizer: Resizer,
    /// The resized photo: `[height, width, 3]`, or luma, or luma with a chroma that nobody reads.
    resized: Vec<u8>,
    /// Resized `Cb Cr`, or `Y Cb Y Cr`.
    chroma: Vec<u8>,
}

impl Preprocessor {
    /// Makes nothing yet but the tables.
    pub fn new(preprocessing: Preprocessing) -> Self {
        let Preprocessing { mean, std, .. } = preprocessing;
        let of_channel = |channel: usize| {
            core::array::from_fn(|level| (level as f32 / 255.0 - mean[channel]) / std[channel])
        };
        Self {
            preprocessing,
            values: Box::new(core::array::from_fn(of_channel)),
            resizer: Resizer::new(),
            resized: Vec::new(),
            chroma: Vec::new(),
        }
    }

    /// Writes the tensor of a frame, `[3, height, width]`, row-major, RGB planes. Frames in YCbCr are resized as they are, and
    /// the few pixels that are left become red, green and blue.
    ///
    /// # Panics
    /// Where the tensor has another length than [`Preprocessing::tensor_len`].
    pub fn tensor_into(&mut self, frame: &Frame<'_>, tensor: &mut [f32]) {
        assert_eq!(tensor.len(), self.preprocessing.tensor_len(), "a tensor of the network's input");
        let (width, height) = frame.dimensions();
        match frame.pixels {
            Pixels::Rgb(bytes) => {
                let same = (width, height) == (self.preprocessing.width, self.preprocessing.height);
                if same {
                    return normalise(bytes.as_chunks::<3>().0.iter().copied(), &self.values, tensor);
                }
                let whole = 3 * width as usize;
                self.resize(Buffer::Resized, [width, height], whole, bytes, PixelType::U8x3);
                normalise(self.resized.as_chunks::<3>().0.iter().copied(), &self.values, tensor);
            }
            Pixels::Yuyv { bytes, stride, colours } => {
                self.resize(Buffer::Resized, [width, height], stride, bytes, PixelType::U8x2);
                self.resize(Buffer::Chroma, [width / 2, height], stride, bytes, PixelType::U8x4);
                let colours = colours.matrix();
                let (luma, chroma) = (self.resized.as_chunks::<2>().0, self.chroma.as_chunks::<4>().0);
                let pixels =
                    luma.iter().zip(chroma).map(|([y, _], [_, cb, _, cr])| colours.rgb(*y, *cb, *cr));
                normalise(pixels, &self.values, tensor);
            }
            Pixels::Nv12 { luma, chroma, stride, colours } => {
                self.resize(Buffer::Resized, [width, height], stride, luma, PixelType::U8);
                self.resize(Buffer::Chroma, [width / 2, height / 2], stride, chroma, PixelType::U8x2);
                let colours = colours.matrix();
                let pixels = self.resized.iter().zip(self.chroma.as_chunks::<2>().0);
                normalise(pixels.map(|(y, [cb, cr])| colours.rgb(*y, *cb, *cr)), &self.values, tensor);
            }
        }
    }

    /// Resizes rows that are `stride` bytes apart into a buffer.
    fn resize(
        &mut self,
        into: Buffer,
        [width, height]: [u32; 2],
        stride: usize,
        bytes: &[u8],
        pixel: PixelType,
    ) {
        let Preprocessing { width: to_width, height: to_height, .. } = self.preprocessing;
        let buffer = match into {
            Buffer::Resized => &mut self.resized,
            Buffer::Chroma => &mut self.chroma,
        };
        buffer.clear();
        // An empty photo leaves black.
        buffer.resize(to_width as usize * to_height as usize * pixel.size(), 0);
        // No channel of ours is alpha.
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        let Ok(rows) = ImageRef::new((stride / pixel.size()) as u32, height, bytes, pixel) else { return };
        let (Ok(source), Ok(mut resized)) = (
            CroppedImage::new(&rows, 0, 0, width, height),
            Image::from_slice_u8(to_width, to_height, buffer, pixel),
        ) else {
            return;
        };
        // The one error is a difference in pixel types, and both are the same.
        let _ = self.resizer.resize(&source, &mut resized, &options);
    }
}

/// Where to resize into.
#[derive(Debug, Clone, Copy)]
enum Buffer {
    Resized,
    Chroma,
}

/// Pixels to planes.
fn normalise(pixels: impl Iterator<Item = [u8; 3]>, values: &[[f32; 256]; 3], tensor: &mut [f32]) {
    let plane = tensor.len() / 3;
    let (red, rest) = tensor.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    for ((([r, g, b], red), green), blue) in pixels.zip(red).zip(green).zip(blue) {
        *red = values[0][usize::from(r)];
        *green = values[1][usize::from(g)];
        *blue = values[2][usize::from(b)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Colours;
    use image::Rgb;

    fn preprocessing(width: u32, height: u32) -> Preprocessing {
        Preprocessing { width, height, mean: [0.5, 0.25, 0.0], std: [0.5, 1.0, 0.25] }
    }

    /// Smooth waves with an edge, so that a resize has something to average and something to keep.
    fn photo(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let edge = if x * 3 > width { 90 } else { 0 };
            Rgb([(x * 7 % 160 + edge) as u8, (y * 5 % 200) as u8, ((x * y) % 251) as u8])
        })
    }

    fn resized(preprocessing: Preprocessing, photo: &RgbImage) -> Vec<u8> {
        let mut preprocessor = Preprocessor::new(preprocessing);
        let whole = 3 * photo.width() as usize;
        preprocessor.resize(
            Buffer::Resized,
            photo.dimensions().into(),
            whole,
            photo.as_raw(),
            PixelType::U8x3,
        );
        preprocessor.resized
    }

    #[test]
    fn a_photo_of_the_right_size_is_only_normalised() {
        let tensor =
            preprocessing(2, 1).tensor(&RgbImage::from_raw(2, 1, vec![0, 51, 255, 255, 0, 102]).unwrap());
        assert_eq!(tensor, [-1.0, 1.0, 0.2 - 0.25, -0.25, 4.0, 0.4 / 0.25]);
    }

    #[test]
    fn a_flat_photo_stays_flat_at_any_size() {
        for size in [(1, 1), (640, 480), (31, 517)] {
            let tensor =
                preprocessing(16, 8).tensor(&RgbImage::from_pixel(size.0, size.1, Rgb([255, 51, 0])));
            let planes = tensor.chunks(128).map(|plane| plane.iter().all(|x| (x - plane[0]).abs() < 1e-6));
            assert!(planes.into_iter().all(|flat| flat), "{size:?}");
            assert_eq!((tensor[0], tensor[256]), (1.0, 0.0));
        }
    }

    #[test]
    fn resizing_agrees_with_the_image_crates_float_filter() {
        let photo = photo(203, 151);
        let ours = resized(preprocessing(64, 48), &photo);
        let theirs = image::imageops::resize(&photo, 64, 48, image::imageops::FilterType::Triangle);
        let worst = ours.iter().zip(theirs.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Two roundings to 8 bits (columns, then rows) against one: at most one level apart, rarely two.
        assert!(worst <= 2, "{worst} levels apart");
    }

    /// The same photo must give the same bytes on every target: these were made on x86-64 with AVX2.
    #[test]
    fn resized_bytes_are_the_golden_ones() {
        let bytes = resized(preprocessing(96, 64), &photo(333, 255));
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), GOLDEN);
    }

    const GOLDEN: &str = "5d8c93390bc72164061a87815da9a44812d64b9a99b8e26f57a65809d02226f6";

    /// Cameras' formats of the same picture, rows `gap` bytes apart with garbage between them. BT.601, and chroma is the mean of the
    /// pixels that share it.
    struct Camera {
        yuyv: Vec<u8>,
        nv12: Vec<u8>,
    }

    impl Camera {
        fn of(photo: &RgbImage, gap: usize) -> Self {
            let (width, height) = photo.dimensions();
            let of = |x: u32, y: u32| -> [f64; 3] {
                let [r, g, b] = photo.get_pixel(x, y).0.map(f64::from);
                let luma = 0.299 * r + 0.587 * g + 0.114 * b;
                [
                    16.0 + luma * 219.0 / 255.0,
                    (b - luma) / 1.772 * 224.0 / 255.0 + 128.0,
                    (r - luma) / 1.402 * 224.0 / 255.0 + 128.0,
                ]
            };
            let mean = |at: &[(u32, u32)], part: usize| {
                (at.iter().map(|(x, y)| of(*x, *y)[part]).sum::<f64>() / at.len() as f64).round() as u8
            };
            let garbage = || (0..gap).map(|i| (i * 89 % 256) as u8);
            let (mut yuyv, mut luma, mut chroma) = (Vec::new(), Vec::new(), Vec::new());
            for y in 0..height {
                for x in (0..width).step_by(2) {
                    let pair = [(x, y), (x + 1, y)];
                    yuyv.extend([mean(&pair[..1], 0), mean(&pair, 1), mean(&pair[1..], 0), mean(&pair, 2)]);
                    luma.extend([mean(&pair[..1], 0), mean(&pair[1..], 0)]);
                    if y % 2 == 0 {
                        let four = [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)];
                        chroma.extend([mean(&four, 1), mean(&four, 2)]);
                    }
                }
                yuyv.extend(garbage());
                luma.extend(garbage());
                if y % 2 == 0 {
                    chroma.extend(garbage());
                }
            }
            luma.extend(chroma);
            Self { yuyv, nv12: luma }
        }

        fn frames(&self, [width, height]: [u32; 2], gap: usize) -> [Frame<'_>; 2] {
            let wide = width as usize;
            [
                Frame::yuyv([width, height], 2 * wide + gap, &self.yuyv, Colours::CAMERA).unwrap(),
                Frame::nv12([width, height], wide + gap, &self.nv12, Colours::CAMERA).unwrap(),
            ]
        }
    }

    fn tensor_of(preprocessor: &mut Preprocessor, frame: &Frame<'_>) -> Vec<f32> {
        let mut tensor = vec![f32::NAN; preprocessor.preprocessing.tensor_len()];
        preprocessor.tensor_into(frame, &mut tensor);
        tensor
    }

    /// Smooth, as what a lens draws: colours of neighbours do not jump.
    fn smooth(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let wave = |scale: u32, phase: u32| {
                let at = f64::from(x * scale + y * 2 + phase) / 40.0;
                (127.0 + 100.0 * at.sin()) as u8
            };
            Rgb([wave(1, 0), wave(2, 50), wave(1, 90)])
        })
    }

    #[test]
    fn a_cameras_formats_give_the_tensor_of_its_picture() {
        // Values are levels, so that differences can be told in levels.
        let levels = Preprocessing { width: 56, height: 48, mean: [0.0; 3], std: [1.0 / 255.0; 3] };
        for size in [[160, 120], [56, 48], [40, 200]] {
            let photo = smooth(size[0], size[1]);
            let wanted = levels.tensor(&photo);
            for gap in [0, 12] {
                let camera = Camera::of(&photo, gap);
                for frame in camera.frames(size, gap) {
                    let copy = levels.tensor(&frame.to_rgb());
                    let far = copy.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(far <= 9.0, "{size:?}: a copy in RGB is {far} levels from the picture");
                    let tensor = tensor_of(&mut Preprocessor::new(levels), &frame);
                    let far = tensor.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    let mean = tensor.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).sum::<f32>()
                        / tensor.len() as f32;
                    // Three roundings to a level, one of them of a chroma that counts twice; and chroma is coarser.
                    assert!(far <= 9.0 && mean <= 1.5, "{size:?}: {far} at most, {mean} on average");
                }
            }
        }
    }

    #[test]
    fn what_lies_between_rows_is_not_seen() {
        let photo = photo(122, 90);
        for (number, gap) in [(0, 64), (1, 64)] {
            let (close, apart) = (Camera::of(&photo, 0), Camera::of(&photo, gap));
            let [close, apart] = [close.frames([122, 90], 0)[number], apart.frames([122, 90], gap)[number]]
                .map(|frame| tensor_of(&mut Preprocessor::new(preprocessing(40, 30)), &frame));
            assert_eq!(close, apart);
        }
    }

    #[test]
    fn a_preprocessor_forgets_the_frame_before() {
        let mut used = Preprocessor::new(preprocessing(40, 30));
        let photos = [photo(122, 90), photo(40, 30), smooth(64, 200)];
        for photo in &photos {
            let camera = Camera::of(photo, 4);
            for frame in camera.frames(photo.dimensions().into(), 4).into_iter().chain([photo.into()]) {
                let fresh = tensor_of(&mut Preprocessor::new(preprocessing(40, 30)), &frame);
                assert_eq!(tensor_of(&mut used, &frame), fresh);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        let photo = photo(334, 256);
        let camera = Camera::of(&photo, 8);
        for frame in camera.frames([334, 256], 8).into_iter().chain([(&photo).into()]) {
            let mut scalar = Preprocessor::new(preprocessing(96, 64));
            // SAFETY: the scalar version runs everywhere.
            unsafe { scalar.resizer.set_cpu_extensions(fast_image_resize::CpuExtensions::None) };
            let fast = tensor_of(&mut Preprocessor::new(preprocessing(96, 64)), &frame);
            assert_eq!(tensor_of(&mut scalar, &frame), fast);
        }
    }

    #[test]
    fn nonsense_numbers_are_named() {
        assert!(preprocessing(0, 10).validate().unwrap_err().contains("0x10"));
        assert!(preprocessing(10, 5000).validate().is_err());
        assert!(Preprocessing { std: [1.0, 0.0, 1.0], ..preprocessing(8, 8) }.validate().is_err());
        assert!(Preprocessing { mean: [f32::NAN; 3], ..preprocessing(8, 8) }.validate().is_err());
    }
}
