//! A picture that lies in memory, as a camera's driver leaves it there: PPM in binary (`P6`, netpbm), which is pixels behind a line that
//! says how many.

use glimpse_edge::{Camera, Capture, Error, ErrorKind};
use glimpse_embedder_core::{Frame, FrameError, PHOTO_SIDE_MAX};
use thiserror::Error;

/// Why there is no picture.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PictureError {
    /// Something else is there.
    #[error("there is no picture: it begins with `P6`, width, height and 255, as PPM does")]
    NoPicture,
    /// Its pixels are not all there.
    #[error("the picture cannot be used: {0}")]
    Frame(#[from] FrameError),
}

impl Error for PictureError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// A picture in RGB, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// Its pixels.
    pub frame: Frame<'a>,
    /// The same as bytes, `[height, width, 3]`.
    pub bytes: &'a [u8],
}

impl<'a> Picture<'a> {
    /// The picture that `memory` begins with.
    ///
    /// # Errors
    /// [`PictureError`]
    pub fn read(memory: &'a [u8]) -> Result<Self, PictureError> {
        let mut rest = memory.strip_prefix(b"P6").ok_or(PictureError::NoPicture)?;
        let mut numbers = [0; 3];
        for number in &mut numbers {
            *number = take_number(&mut rest).ok_or(PictureError::NoPicture)?;
        }
        let [width, height, levels] = numbers;
        // One blank, and then pixels, which may look like blanks.
        let (blank, bytes) = rest.split_first().ok_or(PictureError::NoPicture)?;
        if levels != 255 || !blank.is_ascii_whitespace() {
            return Err(PictureError::NoPicture);
        }
        let frame = Frame::rgb([width, height], bytes)?;
        Ok(Self { frame, bytes: &bytes[..3 * width as usize * height as usize] })
    }
}

/// A number behind blanks.
fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let blanks = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let digits = rest[blanks..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = rest[blanks..].split_at(digits);
    *rest = after;
    // Without a blank it is part of what was before it. More digits than the longest side has are no side.
    let is_number = blanks > 0 && (1..=PHOTO_SIDE_MAX.ilog10() as usize + 1).contains(&digits);
    is_number.then(|| number.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// A camera that has taken one picture.
#[derive(Debug)]
pub struct MemoryCamera<'a> {
    memory: &'a [u8],
    taken: bool,
}

impl<'a> MemoryCamera<'a> {
    /// A camera whose picture `memory` begins with.
    pub const fn new(memory: &'a [u8]) -> Self {
        Self { memory, taken: false }
    }
}

impl<'a> Camera for MemoryCamera<'a> {
    type Photo = Picture<'a>;
    type Error = PictureError;

    fn capture(&mut self) -> Result<Capture<Picture<'a>>, PictureError> {
        if core::mem::replace(&mut self.taken, true) {
            return Ok(Capture::End);
        }
        Picture::read(self.memory).map(Capture::Photo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_read_whatever_lies_behind_it() {
        let memory = b"P6\n2 1\n255\n\n\t 123more";
        let picture = Picture::read(memory).unwrap();
        assert_eq!(picture.frame.dimensions(), (2, 1));
        assert_eq!(picture.bytes, b"\n\t 123");
        let mut camera = MemoryCamera::new(memory);
        assert!(matches!(camera.capture(), Ok(Capture::Photo(_))));
        assert!(matches!(camera.capture(), Ok(Capture::End)));
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for memory in [
            "",
            "P6",
            "P5 2 1 255 123456",
            "P62 1 255 123456",
            "P6 2 1 254 123456",
            "P6 2 1 255",
            "P6 2 1 255x123456",
            "P6 -2 1 255 123456",
            "P6 2 1\n# 255 123456",
            "P6 99999999999 1 255 123456",
            "P6 000002 1 255 123456",
        ] {
            assert_eq!(
                Picture::read(memory.as_bytes()).map(|_| ()),
                Err(PictureError::NoPicture),
                "{memory}"
            );
        }
        for memory in ["P6 2 1 255 12345", "P6 0 1 255 12345", "P6 16385 1 255 12345", "P6 99999 99999 255 1"]
        {
            let refused = Picture::read(memory.as_bytes()).map(|_| ());
            assert!(matches!(refused, Err(PictureError::Frame(_))), "{memory}");
        }
        assert!(matches!(MemoryCamera::new(&[0; 64]).capture(), Err(PictureError::NoPicture)));
    }
}
