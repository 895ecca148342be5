//! Thumbnails of gallery photos: by image id, from the path that the store has, never by a path from a request.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use glimpse_embedder::{RgbImage, read_photo};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use lru::LruCache;
use tokio::sync::Semaphore;

use super::source::Source;

/// The longest sides that are served, in pixels: of a list, and of one photo looked at.
pub(super) const SIDES: [u32; 2] = [320, 960];

/// Bytes of thumbnails kept in memory.
const CACHE_BYTES_MAX: usize = 32 << 20;

/// Photos decoded at a time: one takes up to 300 MB for a moment.
const DECODED_AT_ONCE_MAX: usize = 2;

const QUALITY: u8 = 82;

/// What is kept by: the photo's BLAKE3 when it was ingested, and the side.
type Key = ([u8; 32], String, u32);

pub(super) struct Photos {
    kept: Mutex<Kept>,
    decoding: Arc<Semaphore>,
}

struct Kept {
    by_key: LruCache<Key, Bytes>,
    bytes: usize,
}

impl Photos {
    pub(super) fn new() -> Self {
        let by_key = LruCache::new(NonZeroUsize::new(16_384).expect("16384 is not zero"));
        Self {
            kept: Mutex::new(Kept { by_key, bytes: 0 }),
            decoding: Arc::new(Semaphore::new(DECODED_AT_ONCE_MAX)),
        }
    }

    /// The JPEG of an image, `side` pixels at its longest; `None` where there is no such image, or no photo of it any more.
    pub(super) async fn thumbnail(&self, source: Arc<dyn Source>, id: String, side: u32) -> Option<Bytes> {
        let picture = source.image(&id)?;
        let key = (picture.photo_hash, id, side);
        if let Some(kept) = self.get(&key) {
            return Some(kept);
        }
        let permit = self.decoding.clone().acquire_owned().await.ok()?;
        // Somebody may have made it while we waited.
        if let Some(kept) = self.get(&key) {
            return Some(kept);
        }
        let made = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            match read_photo(&picture.path) {
                Ok(photo) => encode(&shrink(&photo, side)?),
                Err(error) => {
                    tracing::debug!(%error, "no thumbnail");
                    None
                }
            }
        });
        let bytes = Bytes::from(made.await.ok()??);
        self.put(key, bytes.clone());
        Some(bytes)
    }

    fn get(&self, key: &Key) -> Option<Bytes> {
        self.lock().by_key.get(key).cloned()
    }

    fn put(&self, key: Key, bytes: Bytes) {
        let mut kept = self.lock();
        kept.bytes += bytes.len();
        if let Some((_, old)) = kept.by_key.push(key, bytes) {
            kept.bytes -= old.len();
        }
        while kept.bytes > CACHE_BYTES_MAX {
            let Some((_, oldest)) = kept.by_key.pop_lru() else { return };
            kept.bytes -= oldest.len();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        // A panic elsewhere leaves it whole but for the count of bytes, which errs by one photo.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A photo with its longest side at most `side`; the same photo where it is that small.
fn shrink(photo: &RgbImage, side: u32) -> Option<RgbImage> {
    let (width, height) = photo.dimensions();
    let longest = width.max(height);
    if longest <= side {
        return Some(photo.clone());
    }
    let scaled =
        |length: u32| ((u64::from(length) * u64::from(side)).div_ceil(u64::from(longest)) as u32).max(1);
    let (width, height) = (scaled(width), scaled(height));
    let source = ImageRef::new(photo.width(), photo.height(), photo.as_raw(), PixelType::U8x3).ok()?;
    let mut small = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new().resize(&source, &mut small, &options).ok()?;
    RgbImage::from_raw(width, height, small.into_vec())
}

fn encode(photo: &RgbImage) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
    encoder.encode(photo.as_raw(), photo.width(), photo.height(), ExtendedColorType::Rgb8).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbnail_keeps_its_shape() {
        for (size, expected) in [
            ((640, 480), (320, 240)),
            ((480, 640), (240, 320)),
            ((100, 50), (100, 50)),
            ((16_000, 1), (320, 1)),
        ] {
            let photo = RgbImage::from_pixel(size.0, size.1, image::Rgb([10, 200, 30]));
            let small = shrink(&photo, 320).unwrap();
            assert_eq!(small.dimensions(), expected);
            assert_eq!(small.get_pixel(0, 0).0, [10, 200, 30]);
            assert!(encode(&small).unwrap().starts_with(&[0xff, 0xd8]));
        }
    }

    #[test]
    fn the_cache_is_bounded_by_its_bytes() {
        let photos = Photos::new();
        let key = |n: u8| ([n; 32], "a".to_owned(), 320);
        for n in 0..9 {
            photos.put(key(n), Bytes::from(vec![n; CACHE_BYTES_MAX / 4]));
        }
        // The same one twice takes its room once.
        photos.put(key(8), Bytes::from(vec![8; CACHE_BYTES_MAX / 4]));
        let held = |kept: &Kept| (kept.bytes, kept.by_key.len());
        assert_eq!(held(&photos.lock()), (CACHE_BYTES_MAX, 4));
        assert!(photos.get(&key(4)).is_none() && photos.get(&key(5)).is_some());
    }
}
