//! Where packed weights lie: in memory of their own, or where somebody else keeps the file that they came in.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use bytemuck::{AnyBitPattern, NoUninit};

use crate::shape::{Line, flat};

/// Bytes of a line, and the boundary at which lines begin.
pub(crate) const LINE_BYTES: usize = 64;

/// Bytes that stay where they are for as long as anybody holds this: a file that the system has mapped, the flash of a
/// microcontroller, or a vector.
#[derive(Clone)]
pub struct Memory(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Memory {
    /// Shares what `owner` refers to.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(owner))
    }

    /// Whether bytes begin where packed weights can be used as they are.
    pub fn is_usable_in_place(bytes: &[u8]) -> bool {
        bytes.as_ptr().addr().is_multiple_of(LINE_BYTES) && cfg!(target_endian = "little")
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

/// Packed numbers, in whole lines.
#[derive(Debug, Clone)]
pub(crate) enum Lines<T, const N: usize> {
    /// In memory of their own.
    Own(Vec<Line<T, N>>),
    /// Where their file is: so many bytes from a place on.
    There { memory: Memory, at: usize, bytes: usize },
}

impl<T: AnyBitPattern + NoUninit, const N: usize> Lines<T, N> {
    /// Those of `bytes` bytes from `at` on, if numbers lie in a file of that memory as they do in this processor's, and at the
    /// boundaries of lines.
    pub(crate) fn there(memory: &Memory, at: usize, bytes: usize) -> Option<Self> {
        let place = memory.bytes().get(at..at.checked_add(bytes)?)?;
        Memory::is_usable_in_place(place).then(|| Self::There { memory: memory.clone(), at, bytes })
    }

    /// As a flat slice. Whoever needs it for each pixel asks once. Memory that is not our own is looked at anew each time, as long as
    /// it says and aligned for a `T` at least: kernels load without asking for more.
    pub(crate) fn flat(&self) -> &[T] {
        match self {
            Self::Own(lines) => flat(lines),
            Self::There { memory, at, bytes } => bytemuck::cast_slice(&memory.bytes()[*at..][..*bytes]),
        }
    }
}

impl<T, const N: usize> From<Vec<Line<T, N>>> for Lines<T, N> {
    fn from(lines: Vec<Line<T, N>>) -> Self {
        Self::Own(lines)
    }
}
