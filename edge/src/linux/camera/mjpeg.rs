//! Motion JPEG: one JPEG after another.
//!
//! A frame of it may lack the Huffman tables, when they are those of the JPEG standard: USB cameras save the 420 bytes. A
//! stream has no lengths, so that its frames are found by walking from marker to marker; a thumbnail inside a frame is then
//! no end of it.

use std::io::{self, BufRead};

use glimpse_embedder::{PhotoError, RgbImage, decode_photo};
use thiserror::Error;

/// The largest frame of a stream, in bytes.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;

/// Decodes a frame, with or without its own Huffman tables.
///
/// # Errors
/// As [`decode_photo`].
pub fn decode(frame: &[u8]) -> Result<RgbImage, PhotoError> {
    match frame.split_first_chunk() {
        Some(([0xff, SOI], rest)) if lacks_tables(rest) => {
            decode_photo(&[&[0xff, SOI], &TABLES[..], rest].concat())
        }
        _ => decode_photo(frame),
    }
}

/// Whether the first scan comes before any Huffman table. What is no JPEG lacks nothing.
fn lacks_tables(mut rest: &[u8]) -> bool {
    loop {
        match rest {
            [0xff, SOS, ..] => return true,
            [0xff, 0xff, ..] => rest = &rest[1..],
            [0xff, marker, high, low, ..] if *marker != DHT => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(after) = rest.get(2 + length..) else { return false };
                rest = after;
            }
            _ => return false,
        }
    }
}

/// Why a stream has no next frame.
#[derive(Debug, Error)]
pub enum StreamError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It ends inside a frame.
    #[error("it is cut off in the middle of a frame")]
    Cut,
    /// What follows is no JPEG; reading on finds the next one.
    #[error("a frame is damaged")]
    Damaged,
    /// It goes on for too long.
    #[error("a frame has more than {} MiB", FRAME_BYTES_MAX >> 20)]
    TooLarge,
}

/// Reads the next frame of a stream into `frame`; false at the stream's end.
///
/// # Errors
/// [`StreamError`]
pub fn read_frame(stream: &mut impl BufRead, frame: &mut Vec<u8>) -> Result<bool, StreamError> {
    frame.clear();
    let mut passed = 0;
    let mut last = 0;
    // What stands between two frames is of no interest.
    loop {
        let Some(byte) = next(stream)? else { return Ok(false) };
        if (last, byte) == (0xff, SOI) {
            break;
        }
        last = byte;
        passed += 1;
        if passed > FRAME_BYTES_MAX {
            return Err(StreamError::TooLarge);
        }
    }
    frame.extend([0xff, SOI]);
    if take(stream, frame)? != 0xff {
        return Err(StreamError::Damaged);
    }
    loop {
        // Behind the 0xff of a marker, of which there may be several.
        let marker = loop {
            match take(stream, frame)? {
                0xff => {}
                marker => break marker,
            }
        };
        match marker {
            EOI => return Ok(true),
            0 | SOI => return Err(StreamError::Damaged),
            0x01 | 0xd0..=0xd7 => {
                if take(stream, frame)? != 0xff {
                    return Err(StreamError::Damaged);
                }
            }
            _ => {
                let length = u16::from_be_bytes([take(stream, frame)?, take(stream, frame)?]);
                for _ in 2..length {
                    take(stream, frame)?;
                }
                if marker == SOS {
                    pass_scan(stream, frame)?;
                } else if take(stream, frame)? != 0xff {
                    return Err(StreamError::Damaged);
                }
            }
        }
    }
}

/// Reads the coded pixels, up to the 0xff of the marker behind them.
fn pass_scan(stream: &mut impl BufRead, frame: &mut Vec<u8>) -> Result<(), StreamError> {
    loop {
        if take(stream, frame)? != 0xff {
            continue;
        }
        // 0xff 0x00 is a byte of the pixels, and restart markers stand between them.
        let buffered = stream.fill_buf()?;
        match buffered.first() {
            Some(0 | 0xd0..=0xd7) => {
                take(stream, frame)?;
            }
            Some(_) => return Ok(()),
            None => return Err(StreamError::Cut),
        }
    }
}

fn next(stream: &mut impl BufRead) -> io::Result<Option<u8>> {
    let byte = stream.fill_buf()?.first().copied();
    stream.consume(usize::from(byte.is_some()));
    Ok(byte)
}

fn take(stream: &mut impl BufRead, frame: &mut Vec<u8>) -> Result<u8, StreamError> {
    if frame.len() >= FRAME_BYTES_MAX {
        return Err(StreamError::TooLarge);
    }
    let byte = next(stream)?.ok_or(StreamError::Cut)?;
    frame.push(byte);
    Ok(byte)
}

/// The standard's tables as a segment of a file (ITU-T T.81, annex K.3, tables K.3 to K.6).
#[rustfmt::skip]
const TABLES: [u8; 420] = [
    0xff, 0xc4, 0x01, 0xa2, 0x00, 0x00, 0x01, 0x05, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x01, 0x00, 0x03,
    0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03,
    0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x00, 0x02, 0x01, 0x03, 0x03, 0x02, 0x04, 0x03, 0x05,
    0x05, 0x04, 0x04, 0x00, 0x00, 0x01, 0x7d, 0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41,
    0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15,
    0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27,
    0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a,
    0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74,
    0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95,
    0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5,
    0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5,
    0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3,
    0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0x11, 0x00, 0x02, 0x01, 0x02, 0x04, 0x04, 0x03, 0x04, 0x07, 0x05,
    0x04, 0x04, 0x00, 0x01, 0x02, 0x77, 0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41,
    0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33,
    0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26,
    0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a,
    0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74,
    0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94,
    0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4,
    0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4,
    0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4,
    0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// A JPEG of one colour with a little texture.
    pub(crate) fn jpeg(size: [u32; 2], red: u8) -> Vec<u8> {
        let image = RgbImage::from_fn(size[0], size[1], |x, y| {
            [red, (x * 9 % 200) as u8, if (x / 4 + y / 4) % 2 == 0 { 20 } else { 220 }].into()
        });
        let file = tempfile::Builder::new().suffix(".jpg").tempfile().unwrap();
        image.save(file.path()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    /// The same without its Huffman tables.
    pub(crate) fn without_tables(jpeg: &[u8]) -> Vec<u8> {
        let mut stripped = jpeg[..2].to_vec();
        let mut rest = &jpeg[2..];
        while rest[1] != SOS {
            let (segment, after) = rest.split_at(2 + usize::from(u16::from_be_bytes([rest[2], rest[3]])));
            if segment[1] != DHT {
                stripped.extend(segment);
            }
            rest = after;
        }
        stripped.extend(rest);
        stripped
    }

    #[test]
    fn a_frame_without_huffman_tables_is_decoded_with_those_of_the_standard() {
        let whole = jpeg([64, 48], 90);
        let stripped = without_tables(&whole);
        // The encoder writes the tables of the standard, and in one segment each or in one for all.
        assert!(stripped.len() <= whole.len() - 418, "{} of {}", stripped.len(), whole.len());
        assert!(decode_photo(&stripped).is_err(), "else this test would show nothing");
        assert_eq!(decode(&stripped).unwrap(), decode_photo(&whole).unwrap());
        assert_eq!(decode(&whole).unwrap(), decode_photo(&whole).unwrap());
    }

    fn frames(bytes: &[u8]) -> Vec<Result<Vec<u8>, String>> {
        let mut stream = io::BufReader::with_capacity(7, Cursor::new(bytes));
        let mut found = Vec::new();
        let mut frame = Vec::new();
        loop {
            match read_frame(&mut stream, &mut frame) {
                Ok(true) => found.push(Ok(frame.clone())),
                Ok(false) => return found,
                Err(error) => {
                    found.push(Err(error.to_string()));
                    if matches!(error, StreamError::Cut) {
                        return found;
                    }
                }
            }
        }
    }

    #[test]
    fn a_stream_comes_apart_into_its_frames() {
        let [a, b] = [jpeg([32, 32], 10), jpeg([48, 16], 200)];
        // A thumbnail in an application segment, and rubbish between frames.
        let mut with_thumbnail = a[..2].to_vec();
        with_thumbnail.extend([0xff, 0xe1]);
        with_thumbnail.extend((2 + b.len() as u16).to_be_bytes());
        with_thumbnail.extend(&b);
        with_thumbnail.extend(&a[2..]);
        let stream = [&a[..], &b, b"rubbish\xff\xff", &with_thumbnail, &a].concat();
        let found = frames(&stream);
        assert_eq!(found, [Ok(a.clone()), Ok(b.clone()), Ok(with_thumbnail), Ok(a.clone())]);
        let cut = frames(&[&a[..], &b[..b.len() - 9]].concat());
        assert_eq!(cut, [Ok(a.clone()), Err("it is cut off in the middle of a frame".to_owned())]);
        assert_eq!(frames(b"no JPEG at all"), []);
        let damaged = frames(&[&[0xff, SOI, 7, 7][..], &a].concat());
        assert_eq!(damaged, [Err("a frame is damaged".to_owned()), Ok(a)]);
    }

    #[test]
    fn a_frame_that_does_not_end_is_given_up() {
        let endless = [&[0xff, SOI, 0xff, SOS, 0, 2][..], &vec![7; FRAME_BYTES_MAX]].concat();
        assert!(matches!(&frames(&endless)[0], Err(error) if error.contains("16 MiB")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(
            prop_oneof![Just(0xff), Just(SOI), Just(SOS), Just(EOI), Just(DHT), any::<u8>()], 0..200,
        )) {
            let _ = (frames(&bytes), decode(&bytes));
            let _ = decode(&[&[0xff, SOI][..], &bytes].concat());
        }
    }
}
