//! Photo files to upright RGB pixels.

use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits, RgbImage};
use thiserror::Error;

pub use glimpse_embedder_core::PHOTO_SIDE_MAX;

/// The largest photo file that is read, in bytes.
pub const PHOTO_BYTES_MAX: u64 = 64 << 20;

/// The most memory that decoding one photo may take, in bytes: 100 megapixels of RGB.
const DECODER_BYTES_MAX: u64 = 300 << 20;

/// Why a photo has no pixels.
#[derive(Debug, Error)]
pub enum PhotoError {
    /// The file cannot be read.
    #[error("cannot read the photo {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any photo should be.
    #[error("{path} is larger than {} MiB: is it a photo?", PHOTO_BYTES_MAX >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are no JPEG or PNG, or a damaged one, or one beyond the limits.
    #[error("not a JPEG or PNG that can be decoded")]
    Decode(#[source] DecoderError),
    /// The same, of a file.
    #[error("{path} is not a JPEG or PNG that can be decoded")]
    DecodeFile {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        #[source]
        source: DecoderError,
    },
}

/// What the decoder said, on one line: some of its messages have several.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct DecoderError(String);

impl From<ImageError> for DecoderError {
    fn from(error: ImageError) -> Self {
        Self(error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Reads and decodes a photo file.
///
/// # Errors
/// As [`decode_photo`], and where the file cannot be read; always with the path.
pub fn read_photo(path: &Path) -> Result<RgbImage, PhotoError> {
    let read = |source| PhotoError::Read { path: path.to_owned(), source };
    let file = fs_file(path).map_err(read)?;
    let mut bytes = Vec::new();
    file.take(PHOTO_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > PHOTO_BYTES_MAX {
        return Err(PhotoError::TooLarge { path: path.to_owned() });
    }
    decode(&bytes).map_err(|error| PhotoError::DecodeFile { path: path.to_owned(), source: error.into() })
}

/// Opens a regular file: a folder opens too on Unix, and a pipe would block for ever.
fn fs_file(path: &Path) -> io::Result<std::fs::File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    std::fs::File::open(path)
}

/// Decodes a JPEG or PNG and turns it upright by its EXIF orientation. Transparent pixels keep their colour: cameras
/// make none.
///
/// # Errors
/// [`PhotoError::Decode`], also for more than [`PHOTO_SIDE_MAX`] pixels a side.
pub fn decode_photo(bytes: &[u8]) -> Result<RgbImage, PhotoError> {
    decode(bytes).map_err(|error| PhotoError::Decode(error.into()))
}

fn decode(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(PHOTO_SIDE_MAX);
    limits.max_image_height = Some(PHOTO_SIDE_MAX);
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut photo = DynamicImage::from_decoder(decoder)?;
    photo.apply_orientation(orientation);
    Ok(photo.into_rgb8())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{ImageEncoder, Rgb};

    /// A JPEG, 24 x 16, left half red, right half blue, with an EXIF orientation.
    fn jpeg(orientation: u8) -> Vec<u8> {
        let pixels =
            RgbImage::from_fn(24, 16, |x, _| if x < 12 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
        let exif =
            [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation], &[0; 6]].concat();
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.encode_image(&pixels).unwrap();
        bytes
    }

    #[test]
    fn turns_photos_upright() {
        for (orientation, size, red_at) in
            [(1, (24, 16), (2, 8)), (3, (24, 16), (21, 8)), (6, (16, 24), (8, 2)), (8, (16, 24), (8, 21))]
        {
            let photo = decode_photo(&jpeg(orientation)).unwrap();
            assert_eq!(photo.dimensions(), size, "orientation {orientation}");
            let Rgb([r, _, b]) = *photo.get_pixel(red_at.0, red_at.1);
            assert!(r > 200 && b < 50, "orientation {orientation}: {r} {b}");
        }
    }

    #[test]
    fn refuses_what_is_no_photo() {
        let whole = jpeg(1);
        for bytes in [b"".as_slice(), b"not a photo", &whole[..20], b"\x89PNG\r\n\x1a\n"] {
            let Err(PhotoError::Decode(error)) = decode_photo(bytes) else { panic!("{bytes:?} is a photo") };
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn refuses_a_photo_that_claims_to_be_huge() {
        let mut png = Vec::new();
        image::codecs::png::PngEncoder::new(&mut png)
            .write_image(&[0; 3], 1, 1, image::ExtendedColorType::Rgb8)
            .unwrap();
        // Width and height stand at bytes 16 to 23 of a PNG; its checksum no longer fits, which is refused as well.
        png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        assert!(decode_photo(&png).is_err());
    }

    #[test]
    fn a_missing_file_and_a_folder_are_named() {
        let error = read_photo(Path::new("no/such.jpg")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the photo no/such.jpg");
        assert!(matches!(read_photo(Path::new("src")), Err(PhotoError::Read { .. })));
    }
}
