//! Photos by a formula, on which a network shows that it works here as it did elsewhere: whoever makes a network sends
//! their embeddings with it, and a device compares before it trusts the network with a real photo.

use image::{Rgb, RgbImage};
use thiserror::Error;

use crate::{EmbedError, Embedder};

/// The least cosine between an embedding made here and the one that was sent. Processors round differently, which moves
/// an int8 network's embeddings by less than a tenth of this; a damaged or another network is far below.
pub const COSINE_MIN: f32 = 0.99;

/// Width and height of a test photo, in pixels.
const SIDES: (u32, u32) = (320, 240);

/// Why a network has not shown that it works.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// It gives no embedding.
    #[error("test photo {photo} has no embedding")]
    Embed {
        /// Which photo, from 0.
        photo: u16,
        /// Why.
        #[source]
        source: EmbedError,
    },
    /// It gives another one.
    #[error(
        "the embedding of test photo {photo} has a cosine of {cosine:.4} to what it should be, and {COSINE_MIN} is needed"
    )]
    Differs {
        /// Which photo, from 0.
        photo: u16,
        /// The cosine; NaN where what it should be is no embedding of this network.
        cosine: f32,
    },
}

/// A test photo: waves of growing frequency and blocks, by integers alone, so that it is the same everywhere.
pub fn test_photo(number: u16) -> RgbImage {
    let number = u32::from(number);
    RgbImage::from_fn(SIDES.0, SIDES.1, |x, y| {
        Rgb([0, 1, 2].map(|channel: u32| {
            let wave = (x * x / (40 + 30 * number) + y * (2 + channel + number)) & 255;
            let triangle = if wave < 128 { 2 * wave } else { 2 * (255 - wave) };
            let block = ((x / 40 + number) * 37 + (y / 30 + channel) * 91) & 255;
            ((2 * triangle + block) / 3) as u8
        }))
    })
}

impl Embedder {
    /// Compares the embeddings of the test photos with what they should be, `[photos, dimension]`.
    ///
    /// # Errors
    /// [`SelfTestError`], for the first photo that is wrong.
    pub fn self_test(&self, expected: &[f32]) -> Result<(), SelfTestError> {
        for (photo, expected) in (0_u16..).zip(expected.chunks(self.dimension())) {
            let made =
                self.embed(&test_photo(photo)).map_err(|source| SelfTestError::Embed { photo, source })?;
            let cosine = cosine(&made, expected);
            // NaN is not alike.
            let is_alike = made.len() == expected.len() && cosine >= COSINE_MIN;
            if !is_alike {
                return Err(SelfTestError::Differs { photo, cosine });
            }
        }
        Ok(())
    }
}

fn cosine(x: &[f32], y: &[f32]) -> f32 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change here lets every device refuse every network.
    #[test]
    fn test_photos_are_what_they_were() {
        let digests: Vec<String> = (0..3)
            .map(|number| blake3::hash(test_photo(number).as_raw()).to_hex()[..16].to_owned())
            .collect();
        assert_eq!(digests, ["b22686bd7e704ac5", "4d6c27868c15fba5", "13e996af2234faea"]);
    }
}
