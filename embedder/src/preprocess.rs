//! Pixels to the network's input tensor.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use serde::{Deserialize, Serialize};

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

    /// The tensor of a photo: `[3, height, width]`, row-major, RGB planes.
    pub fn tensor(&self, photo: &RgbImage) -> Vec<f32> {
        let resized = self.resize(photo);
        let pixels = resized.as_chunks::<3>().0;
        let mut tensor = Vec::with_capacity(self.tensor_len());
        for channel in 0..3 {
            // One table of 256 values a channel: the division is done once, and each value is exactly the formula's.
            let value: [f32; 256] =
                std::array::from_fn(|level| (level as f32 / 255.0 - self.mean[channel]) / self.std[channel]);
            tensor.extend(pixels.iter().map(|pixel| value[usize::from(pixel[channel])]));
        }
        tensor
    }

    /// The resized photo: RGB bytes, `[height, width, 3]`.
    fn resize(&self, photo: &RgbImage) -> Vec<u8> {
        if photo.dimensions() == (self.width, self.height) {
            return photo.as_raw().clone();
        }
        let mut resized = Image::new(self.width, self.height, PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        if let Ok(source) = ImageRef::new(photo.width(), photo.height(), photo.as_raw(), PixelType::U8x3) {
            // The one error is a difference in pixel types, and both are U8x3; an empty photo leaves black.
            let _ = Resizer::new().resize(&source, &mut resized, &options);
        }
        resized.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let ours = preprocessing(64, 48).resize(&photo);
        let theirs = image::imageops::resize(&photo, 64, 48, image::imageops::FilterType::Triangle);
        let worst = ours.iter().zip(theirs.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Two roundings to 8 bits (columns, then rows) against one: at most one level apart, rarely two.
        assert!(worst <= 2, "{worst} levels apart");
    }

    /// The same photo must give the same bytes on every target: these were made on x86-64 with AVX2.
    #[test]
    fn resized_bytes_are_the_golden_ones() {
        let bytes = preprocessing(96, 64).resize(&photo(333, 255));
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), GOLDEN);
    }

    const GOLDEN: &str = "5d8c93390bc72164061a87815da9a44812d64b9a99b8e26f57a65809d02226f6";

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        let photo = photo(333, 255);
        let source = ImageRef::new(333, 255, photo.as_raw(), PixelType::U8x3).unwrap();
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        let mut scalar = Image::new(96, 64, PixelType::U8x3);
        let mut resizer = Resizer::new();
        // SAFETY: the scalar version runs everywhere.
        unsafe { resizer.set_cpu_extensions(fast_image_resize::CpuExtensions::None) };
        resizer.resize(&source, &mut scalar, &options).unwrap();
        assert_eq!(scalar.into_vec(), preprocessing(96, 64).resize(&photo));
    }

    #[test]
    fn nonsense_numbers_are_named() {
        assert!(preprocessing(0, 10).validate().unwrap_err().contains("0x10"));
        assert!(preprocessing(10, 5000).validate().is_err());
        assert!(Preprocessing { std: [1.0, 0.0, 1.0], ..preprocessing(8, 8) }.validate().is_err());
        assert!(Preprocessing { mean: [f32::NAN; 3], ..preprocessing(8, 8) }.validate().is_err());
    }
}
