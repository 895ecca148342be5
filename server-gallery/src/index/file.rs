//! The file of an index: mapped into memory, so that a server with a large gallery starts in the time that it takes to check it.
//!
//! | part | content |
//! |---|---|
//! | 8 bytes | `GLMPIDX` and the version, 2 |
//! | 8 bytes | length of the header, little-endian |
//! | 32 bytes | BLAKE3 of the header |
//! | header | JSON: what the index is, and where its sections lie, each with its BLAKE3 |
//! | sections | each from a multiple of 64 bytes on |
//!
//! The file follows from the store and can be made again: one that is damaged, of another version, of another state of the
//! gallery, or packed for another kind of processor is refused, and the caller makes a new one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use glimpse_protocol::SpaceId;
use glimpse_quantizer::scan::Shape;
use glimpse_quantizer::{Centroids, Codebook, Encoder, ExactRows, Precision};
use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::VectorIndex;
use super::build::{BuildError, layout_here};
use super::core::{Codes, Core, Lists};
use super::measure::{Recall, Unknown};
use crate::catalogue::Catalogue;
use crate::memory::Bytes;
use crate::store::{Content, State};

const MAGIC: &[u8; 7] = b"GLMPIDX";
const VERSION: u8 = 2;

/// A header has a few kilobytes: most of it is the curve of the recall.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// Bytes before the header.
const START: usize = 48;

/// Sections start at cache lines.
const ALIGN: usize = 64;

/// Why an index file cannot be used or written.
#[derive(Debug, Error)]
pub enum FileError {
    /// There is none.
    #[error("there is no index {path}")]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// It is of another gallery, or of another version or kind of processor.
    #[error(
        "the index {path} is not of this gallery, or was made by another version or on another kind of processor"
    )]
    Stale {
        /// The file.
        path: PathBuf,
    },
    /// The space's codebook does not fit the gallery.
    #[error(transparent)]
    Codebook(BuildError),
    /// It is damaged.
    #[error("the index {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It cannot be read or written.
    #[error("cannot {action} the index {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    state: StateHeader,
    /// Where it has images, and not vectors alone.
    space: Option<[u8; 16]>,
    dimension: usize,
    count: usize,
    precision: String,
    layout: String,
    augmented: bool,
    codes: Option<CodesHeader>,
    recall: Option<Recall>,
    unknown: Option<Unknown>,
    sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
struct StateHeader {
    gallery: [u8; 16],
    generation: u64,
    content: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct CodesHeader {
    calibration: (f32, f32),
    lists: bool,
    residual: bool,
}

#[derive(Serialize, Deserialize)]
struct Section {
    name: String,
    offset: usize,
    bytes: usize,
    blake3: String,
}

impl VectorIndex {
    /// Writes the index into a file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        self.save_with(path, None)
    }

    /// The same, with the images that the vectors are of.
    pub(super) fn save_with(
        &self,
        path: &Path,
        images: Option<(SpaceId, &Catalogue)>,
    ) -> Result<(), FileError> {
        let io = |action| move |source| FileError::Io { action, path: path.to_owned(), source };
        let core = &self.core;
        let mut sections: Vec<(&str, Vec<u8>)> = Vec::new();
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        if let Some(rows) = &core.rows {
            sections.push(("rows", words(rows)));
        }
        if let Some(codes) = &core.codes {
            let codebook = codes
                .encoder
                .codebook()
                .to_safetensors()
                .map_err(|error| FileError::Damaged { path: path.to_owned(), reason: error.to_string() })?;
            sections.push(("codebook", codebook));
            if let Some(lists) = &codes.lists {
                let coarse = lists.coarse.values().iter().flat_map(|x| x.to_le_bytes()).collect();
                sections.push(("coarse", coarse));
                sections.push(("starts", words(&lists.starts)));
            }
        }
        let mut parts: Vec<(&str, &[u8])> =
            sections.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
        if let Some(codes) = &core.codes {
            parts.push(("packed", &codes.packed));
        }
        if let Some((_, images)) = images {
            parts.push(("offsets", images.offsets()));
            parts.push(("records", images.records()));
        }
        parts.push(("features", &core.features));

        let hashes: Vec<String> =
            parts.par_iter().map(|(_, bytes)| blake3::hash(bytes).to_hex().to_string()).collect();
        let mut header = Header {
            state: StateHeader {
                gallery: self.state.gallery,
                generation: self.state.generation,
                content: self.state.content.to_bytes(),
            },
            space: images.map(|(space, _)| *space.as_bytes()),
            dimension: core.dimension,
            count: core.count,
            precision: core.precision.name().to_owned(),
            layout: format!("{:?}", layout_here()),
            augmented: self.augmented,
            codes: core.codes.as_ref().map(|codes| CodesHeader {
                calibration: codes.calibration,
                lists: codes.lists.is_some(),
                residual: codes.lists.as_ref().is_some_and(|lists| lists.residual),
            }),
            recall: self.recall.clone(),
            unknown: self.unknown,
            sections: Vec::new(),
        };
        // Offsets count from the end of the header, whose length depends on them.
        let mut offset = 0;
        for ((name, bytes), blake3) in parts.iter().zip(hashes) {
            header.sections.push(Section { name: (*name).to_owned(), offset, bytes: bytes.len(), blake3 });
            offset = (offset + bytes.len()).next_multiple_of(ALIGN);
        }
        let mut text = serde_json::to_vec(&header).map_err(|error| io("write")(error.into()))?;
        // Spaces until the first section is aligned; JSON takes them.
        text.resize((START + text.len()).next_multiple_of(ALIGN) - START, b' ');

        let draft = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            // One writer at a time: a draft that another goes on writing must never be renamed and mapped.
            let lock = std::fs::File::create(path.with_extension("lock"))?;
            lock.lock()?;
            let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&draft)?);
            file.write_all(MAGIC)?;
            file.write_all(&[VERSION])?;
            file.write_all(&(text.len() as u64).to_le_bytes())?;
            file.write_all(blake3::hash(&text).as_bytes())?;
            file.write_all(&text)?;
            for (_, bytes) in &parts {
                file.write_all(bytes)?;
                file.write_all(&[0; ALIGN][..bytes.len().next_multiple_of(ALIGN) - bytes.len()])?;
            }
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&draft, path)?;
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::File::open(folder)?.sync_all()?;
            }
            Ok(())
        };
        // A draft that could not be finished is written over by the next one.
        write().map_err(io("write"))
    }

    /// Maps an index into memory, and checks all of it.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Ok(Self::open_with(path)?.0)
    }

    /// The same, with the images that the vectors are of.
    pub(super) fn open_with(path: &Path) -> Result<(Self, Option<(SpaceId, Catalogue)>), FileError> {
        let io = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => FileError::Missing { path: path.to_owned() },
            _ => FileError::Io { action: "read", path: path.to_owned(), source },
        };
        let damaged = |reason: String| FileError::Damaged { path: path.to_owned(), reason };
        let stale = || FileError::Stale { path: path.to_owned() };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the file is only ever replaced as a whole, by `save`, which renames a new one over it; the one that is
        // mapped keeps its content. Somebody else who cuts it down ends the process with a signal, as they would with
        // any program that maps files; the content is checked, and is read as bytes, for which every value is valid.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let Some((start, rest)) = map.split_at_checked(START) else {
            return Err(damaged(format!("it has fewer than {START} bytes")));
        };
        if &start[..7] != MAGIC {
            return Err(damaged("it does not begin as one".to_owned()));
        }
        if start[7] != VERSION {
            return Err(stale());
        }
        let length = start[8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if length > HEADER_BYTES_MAX || length as usize > rest.len() {
            return Err(damaged(format!("a header of {length} bytes")));
        }
        let text = &rest[..length as usize];
        if blake3::hash(text).as_bytes() != &start[16..] {
            return Err(damaged("its header has another checksum".to_owned()));
        }
        let header: Header = serde_json::from_slice(text)
            .map_err(|error| damaged(format!("its header cannot be read: {error}")))?;
        if header.layout != format!("{:?}", layout_here()) {
            return Err(stale());
        }
        let base = START + length as usize;
        let check = |section: &Section| {
            let start = base.checked_add(section.offset);
            let bounds = start.and_then(|start| Some((start, start.checked_add(section.bytes)?)));
            let bytes = bounds.and_then(|(start, end)| map.get(start..end));
            let bytes = bytes.ok_or_else(|| damaged(format!("its section `{}` is cut off", section.name)))?;
            if blake3::hash(bytes).to_hex().as_str() != section.blake3 {
                return Err(damaged(format!("its section `{}` has another checksum", section.name)));
            }
            Ok(())
        };
        header.sections.par_iter().try_for_each(check)?;
        let range = |name: &str| {
            let section = header.sections.iter().find(|section| section.name == name);
            let section = section.ok_or_else(|| damaged(format!("its section `{name}` is missing")))?;
            Ok(base + section.offset..base + section.offset + section.bytes)
        };
        let section = |name: &str| Ok(Bytes::Mapped(map.clone(), range(name)?));
        let words = |name: &str| {
            let bytes = &map[range(name)?];
            Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<u32>>())
        };

        let Header {
            ref state, space, dimension, count, ref precision, ref codes, ref recall, unknown, ..
        } = header;
        let precision = Precision::from_name(precision)
            .ok_or_else(|| damaged(format!("it keeps features as `{precision}`")))?;
        let features = section("features")?;
        let rows_kept = ExactRows::new(precision, dimension, &features).map(|rows| rows.len());
        if rows_kept != Ok(count) {
            return Err(damaged(format!("its features are not {count} rows of {dimension}")));
        }
        let lists = codes.as_ref().is_some_and(|codes| codes.lists);
        let rows = if lists { Some(words("rows")?) } else { None };
        if let Some(rows) = &rows
            && !is_permutation(rows, count)
        {
            return Err(damaged("its rows are no permutation".to_owned()));
        }
        let codes = match codes {
            None => None,
            Some(kept) => {
                let codebook = Codebook::from_safetensors(&map[range("codebook")?])
                    .map_err(|error| damaged(format!("its codebook: {error}")))?;
                if codebook.dimension() != dimension {
                    return Err(damaged("its codebook is of another dimension".to_owned()));
                }
                let encoder = Encoder::new(codebook);
                let width = encoder.width();
                let shape =
                    Shape { sub_spaces: encoder.codebook().sub_spaces(), width, layout: layout_here() };
                let lists = if lists {
                    let coarse: Vec<f32> = words("coarse")?.into_iter().map(f32::from_bits).collect();
                    let coarse = Centroids::new(coarse, dimension)
                        .map_err(|error| damaged(format!("its lists: {error}")))?;
                    let starts = words("starts")?;
                    let whole = starts.len() == coarse.len() + 1
                        && starts.first() == Some(&0)
                        && starts.is_sorted()
                        && starts.last().map(|end| *end as usize) == Some(count);
                    if !whole {
                        return Err(damaged("its lists do not cover its vectors".to_owned()));
                    }
                    Some(Lists::new(coarse, starts, kept.residual, width.block()))
                } else {
                    None
                };
                let blocks = lists.as_ref().map_or(count.div_ceil(width.block()), |lists: &Lists| {
                    lists.blocks[lists.blocks.len() - 1]
                });
                // Read whole by every query: worth memory of its own, where large pages can be had. Features stay in the file.
                let packed = Bytes::in_large_pages(&map[range("packed")?]);
                if Some(packed.len()) != blocks.checked_mul(width.block_bytes(shape.sub_spaces)) {
                    return Err(damaged("its codes have another length".to_owned()));
                }
                Some(Codes { encoder, shape, packed, lists, calibration: kept.calibration })
            }
        };
        let core = Core { dimension, count, precision, features, codes, rows, places: OnceLock::new() };
        let images = match space {
            None => None,
            Some(space) => {
                let images = Catalogue::from_bytes(section("offsets")?, section("records")?, count);
                let images = images.ok_or_else(|| damaged(format!("it has no {count} images")))?;
                Some((SpaceId::from_bytes(space), images))
            }
        };
        let state = State {
            gallery: state.gallery,
            generation: state.generation,
            content: Content::from_bytes(&state.content),
        };
        let vectors = Self {
            core,
            recall: recall.clone(),
            unknown,
            state,
            seconds_measuring: 0.0,
            augmented: header.augmented,
        };
        Ok((vectors, images))
    }
}

fn is_permutation(rows: &[u32], count: usize) -> bool {
    let mut seen = vec![false; count];
    rows.len() == count
        && rows
            .iter()
            .all(|row| seen.get_mut(*row as usize).is_some_and(|seen| !std::mem::replace(seen, true)))
}
