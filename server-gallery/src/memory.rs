//! Bytes of an index, wherever they lie.

use std::ops::Range;
use std::sync::Arc;

/// Bytes that this process made, or that lie in a file.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Made here.
    Owned(Vec<u8>),
    /// In large pages: see [`Bytes::in_large_pages`].
    Large(memmap2::MmapMut),
    /// Part of a file in memory.
    Mapped(Arc<memmap2::Mmap>, Range<usize>),
}

/// Bytes below which large pages save nothing: the tables of the processor hold the addresses of a few megabytes.
const LARGE_FROM: usize = 8 << 20;

impl Bytes {
    /// Copies bytes to where the system can use pages of 2 MiB. Candidates lie all over the features, and finding the address
    /// of a small page takes longer than reading what is on it.
    pub(crate) fn in_large_pages(bytes: &[u8]) -> Self {
        let mut copy = Self::zeros(bytes.len());
        copy.as_mut_slice().copy_from_slice(bytes);
        copy
    }

    /// So many bytes, all zero, in large pages where there are enough of them.
    pub(crate) fn zeros(length: usize) -> Self {
        let large = || {
            let map = memmap2::MmapMut::map_anon(length).ok()?;
            // Only asked for: without large pages all is as it was.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Some(Self::Large(map))
        };
        let worth_it = length >= LARGE_FROM;
        worth_it.then(large).flatten().unwrap_or_else(|| Self::Owned(vec![0; length]))
    }

    /// To be filled; what lies in a file is not.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Large(map) => map,
            Self::Mapped(..) => &mut [],
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Large(map) => map,
            Self::Mapped(map, range) => &map[range.clone()],
        }
    }
}
