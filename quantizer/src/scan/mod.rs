//! Scans: one pass over packed codes finds the best of them for one query or many.
//!
//! Codes of at most 16 centroids are 4 bits wide, others a byte. A query becomes a [`ScanTable`] of one byte an entry, small
//! enough to be looked up in registers: 16 entries by `pshufb` (AVX2) or `tbl` (NEON), 64 by `vpermb` (AVX-512). Sums are
//! kept in 16 or 32 bits and compared with the worst of the candidates so far while they are still in registers, so that
//! nearly all codes leave no trace in memory.
//!
//! The same algorithm in layers: `portable` is the definition; `avx2`, `avx512` and `neon` do the same with
//! instructions of their own. All give the same candidates to the last one; tests hold them against each other.
//!
//! **Layouts.** Codes are packed in blocks of [`BLOCK_4`] (4 bits) or [`BLOCK_8`] (8 bits). Within a block of 4-bit codes and
//! for each group of 8 sub-spaces there are 128 bytes:
//!
//! - [`Layout::Lanes`] (what `pshufb` and `tbl` want: neighbouring bytes are neighbouring codes of one sub-space): four times
//!   32 bytes, each for two sub-spaces; byte i of the 16 of a sub-space holds code i in its low half, code 16 + i in its high.
//! - [`Layout::Quads`] (what `vpermb` and `vpdpbusd` want: four neighbouring bytes belong to one code, and are added up in one
//!   instruction): 32 codes of 4 bytes; byte j holds sub-space j in its low half, sub-space 4 + j in its high.
//!
//! 8-bit blocks hold 64 bytes for each sub-space, in either layout.
//!
//! **What lost** (`make bench-search`): 16-bit sums by Faiss's trick of shifting and subtracting, instead of
//! `vpdpbusd`, take twice as many instructions a look-up on AVX-512.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use thiserror::Error;

use crate::Kernel;

mod candidates;
mod portable;
mod table;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

pub use candidates::Candidates;
pub use table::ScanTable;

/// 4-bit codes in a block.
pub const BLOCK_4: usize = 32;

/// 8-bit codes in a block.
pub const BLOCK_8: usize = 64;

/// Sub-spaces of 4-bit codes come in groups: M is filled up with sub-spaces that add nothing.
const GROUP: usize = 8;

/// Bytes of codes that one group of queries after another is compared with: half of a small second-level cache.
const TILE_BYTES: usize = 256 << 10;

/// Bits of a code in one sub-space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// At most 16 centroids.
    Four,
    /// At most 256 centroids.
    Eight,
}

impl Width {
    /// What `centroids` need.
    pub const fn of(centroids: usize) -> Self {
        if centroids <= 16 { Self::Four } else { Self::Eight }
    }

    /// Codes in a block.
    pub const fn block(self) -> usize {
        match self {
            Self::Four => BLOCK_4,
            Self::Eight => BLOCK_8,
        }
    }

    /// Bytes of a block of codes of `sub_spaces`.
    pub const fn block_bytes(self, sub_spaces: usize) -> usize {
        match self {
            Self::Four => self.padded(sub_spaces) * BLOCK_4 / 2,
            Self::Eight => sub_spaces * BLOCK_8,
        }
    }

    const fn padded(self, sub_spaces: usize) -> usize {
        match self {
            Self::Four => sub_spaces.next_multiple_of(GROUP),
            Self::Eight => sub_spaces,
        }
    }

    /// Bytes of a sub-space in a [`ScanTable`].
    const fn table_bytes(self) -> usize {
        match self {
            Self::Four => 16,
            Self::Eight => 256,
        }
    }
}

/// How 4-bit codes lie in a block; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Neighbouring bytes are neighbouring codes.
    Lanes,
    /// Four neighbouring bytes are one code.
    Quads,
}

impl Layout {
    /// The one that a kernel reads.
    pub const fn of(kernel: Kernel) -> Self {
        match kernel {
            Kernel::Avx512 => Self::Quads,
            Kernel::Portable | Kernel::Avx2 | Kernel::Neon => Self::Lanes,
        }
    }
}

/// Why bytes are no packed codes, or codes cannot be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PackError {
    /// Not whole codes.
    #[error("{bytes} bytes are no whole codes of {sub_spaces} sub-spaces")]
    Ragged {
        /// Bytes found.
        bytes: usize,
        /// M
        sub_spaces: usize,
    },
    /// Packed bytes of another length.
    #[error("{count} packed codes have {expected} bytes, not {bytes}")]
    Length {
        /// Codes.
        count: usize,
        /// Bytes found.
        bytes: usize,
        /// Bytes they need.
        expected: usize,
    },
    /// More codes than positions can be told apart.
    #[error("{count} codes are more than a scan can number")]
    TooMany {
        /// Codes.
        count: usize,
    },
    /// A code names no centroid of 4 bits.
    #[error("code {code} in sub-space {sub_space} needs more than 4 bits")]
    TooWide {
        /// Sub-space.
        sub_space: usize,
        /// The code.
        code: u8,
    },
    /// The kernel reads another layout.
    #[error("the codes are packed for another kernel")]
    Layout,
}

/// What a scan needs to know of codes beside their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// M
    pub sub_spaces: usize,
    /// Bits in a sub-space.
    pub width: Width,
    /// How 4-bit codes lie in a block.
    pub layout: Layout,
}

impl Shape {
    /// Bytes of `count` packed codes; `None` where they are too many to be numbered.
    pub fn bytes(self, count: usize) -> Option<usize> {
        u32::try_from(count).ok()?;
        u32::try_from(self.sub_spaces).ok()?;
        count.div_ceil(self.width.block()).checked_mul(self.width.block_bytes(self.sub_spaces))
    }

    /// Writes `codes`, `[n, M]` row-major, packed, to the end of `out`. The last block is filled up with zeros.
    ///
    /// # Errors
    /// Ragged codes, too many of them, or such as do not fit the width. `out` is then as it was.
    pub fn pack_into(self, codes: &[u8], out: &mut Vec<u8>) -> Result<(), PackError> {
        let m = self.sub_spaces;
        if m == 0 || !codes.len().is_multiple_of(m) {
            return Err(PackError::Ragged { bytes: codes.len(), sub_spaces: m });
        }
        let count = codes.len() / m;
        let bytes = self.bytes(count).ok_or(PackError::TooMany { count })?;
        if self.width == Width::Four
            && let Some(place) = codes.iter().position(|code| *code >= 16)
        {
            return Err(PackError::TooWide { sub_space: place % m, code: codes[place] });
        }
        let start = out.len();
        out.resize(start + bytes, 0);
        let blocks = out[start..].chunks_exact_mut(self.width.block_bytes(m));
        for (block, codes) in blocks.zip(codes.chunks(m * self.width.block())) {
            for (i, code) in codes.chunks_exact(m).enumerate() {
                for (s, k) in code.iter().enumerate() {
                    let (byte, shift) = self.place(s, i);
                    block[byte] |= k << shift;
                }
            }
        }
        Ok(())
    }

    /// Where sub-space `s` of code `i` lies within its block: byte, and shift within it.
    const fn place(self, s: usize, i: usize) -> (usize, u32) {
        match (self.width, self.layout) {
            (Width::Eight, _) => (s * BLOCK_8 + i, 0),
            (Width::Four, Layout::Lanes) => (s * 16 + i % 16, if i < 16 { 0 } else { 4 }),
            (Width::Four, Layout::Quads) => {
                (s / GROUP * 128 + i * 4 + s % 4, if s % GROUP < 4 { 0 } else { 4 })
            }
        }
    }
}

/// Packed codes, borrowed: from a [`PackedCodes`], or from a file in memory.
#[derive(Debug, Clone, Copy)]
pub struct PackedView<'a> {
    shape: Shape,
    /// One that this processor has, and whose layout is the shape's: checked when the view was made.
    kernel: Kernel,
    count: usize,
    /// As long as `shape` and `count` say.
    bytes: &'a [u8],
}

impl<'a> PackedView<'a> {
    /// `count` codes that [`Shape::pack_into`] has written.
    ///
    /// # Errors
    /// Where the bytes have another length, or the kernel reads another layout or cannot run here.
    pub fn new(shape: Shape, kernel: Kernel, count: usize, bytes: &'a [u8]) -> Result<Self, PackError> {
        let expected = shape.bytes(count).ok_or(PackError::TooMany { count })?;
        if bytes.len() != expected || shape.sub_spaces == 0 {
            return Err(PackError::Length { count, bytes: bytes.len(), expected });
        }
        if Layout::of(kernel) != shape.layout || !kernel.is_available() {
            return Err(PackError::Layout);
        }
        Ok(Self { shape, kernel, count, bytes })
    }

    /// Number of codes.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no code.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The shape of the codes.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// The codes of some blocks, cut to those that there are.
    pub fn blocks(&self, blocks: Range<usize>) -> Self {
        let (size, bytes) = (self.shape.width.block(), self.shape.width.block_bytes(self.shape.sub_spaces));
        let all = self.count.div_ceil(size);
        let (start, end) = (blocks.start.min(all), blocks.end.clamp(blocks.start.min(all), all));
        let count = (end * size).min(self.count) - (start * size).min(self.count);
        Self { count, bytes: &self.bytes[start * bytes..end * bytes], ..*self }
    }

    /// Writes code `i` into `code`, `[M]`.
    ///
    /// # Panics
    /// Where there is no such code, or `code` has another length.
    pub fn unpack(&self, i: usize, code: &mut [u8]) {
        assert!(i < self.count && code.len() == self.shape.sub_spaces, "no code {i} of {}", self.count);
        let (size, bytes) = (self.shape.width.block(), self.shape.width.block_bytes(self.shape.sub_spaces));
        let block = &self.bytes[i / size * bytes..][..bytes];
        let mask = if self.shape.width == Width::Four { 15 } else { 255 };
        for (s, k) in code.iter_mut().enumerate() {
            let (byte, shift) = self.shape.place(s, i % size);
            *k = (block[byte] >> shift) & mask;
        }
    }

    /// Compares all codes with the queries that `probes` name, in one pass for all of them, and offers each code to
    /// the candidates of the query under the position `first +` its place here. `tables` and `candidates` have one
    /// element a query; `admitted`, where given, says which positions may be offered.
    ///
    /// # Panics
    /// Where a probe names no query, or a table is of another shape than the codes.
    pub fn scan(
        &self,
        first: u32,
        tables: &[ScanTable],
        probes: &[Probe],
        candidates: &mut [Candidates],
        admitted: Option<&Bitmap>,
    ) {
        for probe in probes {
            let table = &tables[probe.query as usize];
            assert!(
                table.sub_spaces == self.shape.sub_spaces && table.width == self.shape.width,
                "the table is for codes of another shape"
            );
            assert!((probe.query as usize) < candidates.len(), "each query has candidates");
        }
        let size = self.shape.width.block();
        let tile = (TILE_BYTES / self.shape.width.block_bytes(self.shape.sub_spaces)).max(1);
        for start in (0..self.count.div_ceil(size)).step_by(tile) {
            let codes = self.blocks(start..start + tile);
            let mut pass = Pass { codes, first: first + (start * size) as u32, tables, candidates, admitted };
            pass.run(probes);
        }
    }
}

/// A query that is compared with a list of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Its place among tables and candidates.
    pub query: u32,
    /// Added to all sums: what the codes of the list share ([`ScanTable::bias`]).
    pub bias: i32,
}

/// Everything that one pass of a kernel over a tile of codes works on.
struct Pass<'a> {
    codes: PackedView<'a>,
    first: u32,
    tables: &'a [ScanTable],
    candidates: &'a mut [Candidates],
    admitted: Option<&'a Bitmap>,
}

impl Pass<'_> {
    /// Hands the kernel as many queries at a time as share its registers.
    fn run(&mut self, probes: &[Probe]) {
        let (scan, together): (fn(&mut Pass<'_>, &[Probe]), usize) = match self.codes.kernel {
            Kernel::Portable => (portable::scan, 1),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => (avx2::scan, avx2::QUERIES_MAX),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => (avx512::scan, avx512::QUERIES_MAX),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => (neon::scan, neon::QUERIES_MAX),
            _ => unreachable!("`PackedView::new` refuses kernels that cannot run here"),
        };
        let together = if self.codes.shape.width == Width::Four { together } else { 1 };
        for probes in probes.chunks(together) {
            scan(self, probes);
        }
    }

    /// The sum that a code needs at least for this query.
    #[inline]
    fn threshold(&self, probe: Probe) -> i32 {
        self.candidates[probe.query as usize].threshold().saturating_sub(probe.bias)
    }

    /// Offers the codes of a block whose bits are set in `passing`; `sums` are those of the block. Returns the new threshold.
    #[cold]
    #[inline(never)]
    fn offer<T: Copy + Into<i32>>(&mut self, probe: Probe, block: usize, passing: u64, sums: &[T]) -> i32 {
        let size = self.codes.shape.width.block();
        let valid = self.codes.count - block * size;
        let mut left = if valid < 64 { passing & ((1 << valid) - 1) } else { passing };
        let candidates = &mut self.candidates[probe.query as usize];
        while left != 0 {
            let i = left.trailing_zeros();
            left &= left - 1;
            let score = sums[i as usize].into() + probe.bias;
            let position = self.first + (block * size) as u32 + i;
            if score >= candidates.threshold()
                && self.admitted.is_none_or(|admitted| admitted.contains(position))
            {
                candidates.push(score, position);
            }
        }
        candidates.threshold().saturating_sub(probe.bias)
    }
}

/// Codes in memory, packed for the fastest kernel here.
#[derive(Debug, Clone)]
pub struct PackedCodes {
    shape: Shape,
    kernel: Kernel,
    count: usize,
    bytes: Vec<u8>,
}

impl PackedCodes {
    /// Packs `codes`, `[n, M]` row-major, for a kernel.
    ///
    /// # Errors
    /// What [`Shape::pack_into`] refuses, and a kernel that cannot run here.
    pub fn new(codes: &[u8], sub_spaces: usize, width: Width, kernel: Kernel) -> Result<Self, PackError> {
        let shape = Shape { sub_spaces, width, layout: Layout::of(kernel) };
        let mut bytes = Vec::new();
        shape.pack_into(codes, &mut bytes)?;
        let packed = Self { shape, kernel, count: codes.len() / sub_spaces, bytes };
        PackedView::new(shape, kernel, packed.count, &packed.bytes)?;
        Ok(packed)
    }

    /// The codes, to be scanned.
    pub fn view(&self) -> PackedView<'_> {
        PackedView { shape: self.shape, kernel: self.kernel, count: self.count, bytes: &self.bytes }
    }
}

/// A set of positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    count: usize,
}

impl Bitmap {
    /// The empty set, for positions below `positions`.
    pub fn new(positions: usize) -> Self {
        Self { words: vec![0; positions.div_ceil(64)], count: 0 }
    }

    /// All positions below `positions`.
    pub fn full(positions: usize) -> Self {
        let mut words = vec![u64::MAX; positions / 64];
        if !positions.is_multiple_of(64) {
            words.push((1 << (positions % 64)) - 1);
        }
        Self { words, count: positions }
    }

    /// Takes a position away.
    pub fn remove(&mut self, position: u32) {
        if let Some(word) = self.words.get_mut(position as usize / 64) {
            let bit = 1_u64 << (position % 64);
            self.count -= usize::from(*word & bit != 0);
            *word &= !bit;
        }
    }

    /// Adds a position.
    ///
    /// # Panics
    /// Where it is not below the number of positions, rounded up to 64.
    pub fn insert(&mut self, position: u32) {
        let (word, bit) = (position as usize / 64, 1_u64 << (position % 64));
        self.count += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// Whether a position is in the set.
    #[inline]
    pub fn contains(&self, position: u32) -> bool {
        self.words.get(position as usize / 64).is_some_and(|word| word >> (position % 64) & 1 == 1)
    }

    /// Number of positions in the set.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The positions of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0_u32..).flat_map(|(word, number)| {
            let mut left = *word;
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(64 * number + bit)
            })
        })
    }
}
