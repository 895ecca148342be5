//! An image as a person downloads it: raw, or compressed by zstd, xz or gzip, which its first bytes tell.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail, ensure};
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// What a decoder may take; `xz -9` wants 65 MiB.
const XZ_MEMORY_KB: u32 = 256 << 10;

/// Bytes that say what a file is.
const MAGIC_BYTES: usize = 8;

/// What an image's first sector ends with, by the MBR that every disk has: also one with a GPT, which has a protective one.
const SIGNATURE: ([u8; 2], usize) = ([0x55, 0xaa], 510);

/// Bytes of a sector.
const SECTOR: usize = 512;

/// How the bytes of an image are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Raw,
    Zstd,
    Xz,
    Gzip,
}

impl Packing {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x1f, 0x8b, ..] => Self::Gzip,
            _ => Self::Raw,
        }
    }
}

/// An image that is read from its beginning.
pub struct Image {
    /// Bytes of the file, packed as it is.
    pub file_bytes: u64,
    /// Bytes of the image, where they are known before it is read.
    pub bytes: Option<u64>,
    /// Bytes of the file that were read.
    pub taken: Arc<AtomicU64>,
    first: io::Cursor<Vec<u8>>,
    rest: Box<dyn Read + Send>,
}

impl Image {
    /// Opens an image, and looks whether it is one.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged in its first sector, or is no image of a disk.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let cannot = || format!("cannot read the image {name}");
        let metadata = std::fs::metadata(path).with_context(cannot)?;
        ensure!(metadata.is_file(), "the image {name} is no file");
        let mut file = File::open(path).with_context(cannot)?;
        let mut magic = Vec::new();
        file.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic).with_context(cannot)?;
        file.rewind().with_context(cannot)?;
        let packing = Packing::of(&magic);
        let taken = Arc::new(AtomicU64::new(0));
        let counted = BufReader::with_capacity(1 << 20, Counted { file, taken: Arc::clone(&taken) });
        let mut rest: Box<dyn Read + Send> = match packing {
            Packing::Raw => Box::new(counted),
            Packing::Zstd => Box::new(Zstd { frame: None, input: Some(counted) }),
            Packing::Xz => Box::new(XzReader::new_mem_limit(counted, true, XZ_MEMORY_KB)),
            Packing::Gzip => Box::new(MultiGzDecoder::new(counted)),
        };
        let mut first = Vec::new();
        rest.by_ref().take(SECTOR as u64).read_to_end(&mut first).with_context(|| {
            format!("cannot unpack the image {name}: is it damaged, or was it not downloaded whole?")
        })?;
        let (signature, at) = SIGNATURE;
        if first.get(at..at + 2) != Some(&signature) {
            bail!(
                "{name} is no image of a disk: it has no partition table (nor, if it is packed, one inside; .img, .zst, .xz and .gz are taken)"
            );
        }
        let bytes = (packing == Packing::Raw).then_some(metadata.len());
        Ok(Self { file_bytes: metadata.len(), bytes, taken, first: io::Cursor::new(first), rest })
    }
}

impl Read for Image {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.first.read(buffer)? {
            0 => self.rest.read(buffer),
            read => Ok(read),
        }
    }
}

struct Counted {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

type Packed = BufReader<Counted>;

/// What comes behind a frame, whose checksum has to be that of what was unpacked.
fn ended(frame: StreamingDecoder<Packed, ruzstd::decoding::FrameDecoder>) -> io::Result<Packed> {
    let (input, decoder) = frame.into_parts();
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(wanted), Some(found)) if wanted != found => Err(io::Error::other("its checksum is wrong")),
        _ => Ok(input),
    }
}

/// All frames of a file: zstd writes one, and its parallel relatives many.
struct Zstd {
    frame: Option<StreamingDecoder<Packed, ruzstd::decoding::FrameDecoder>>,
    input: Option<Packed>,
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let read = frame.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.input = self.frame.take().map(ended).transpose()?;
            }
            let Some(mut input) = self.input.take() else { return Ok(0) };
            if io::BufRead::fill_buf(&mut input)?.is_empty() {
                return Ok(0);
            }
            match StreamingDecoder::new(input) {
                Ok(frame) => self.frame = Some(frame),
                // It takes the reader with it: nothing that comes behind such a frame is read.
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { .. })) => {
                    return Err(io::Error::other("it has a frame that is no data"));
                }
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
    }
}
