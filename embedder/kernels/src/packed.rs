//! Kernels as bytes, with their weights as they are packed: read again they are as they were, without any work.
//!
//! Numbers are little endian, 64 bits for counts; packed weights begin at multiples of 64 bytes from the beginning, so that they can
//! be used where they are ([`Reader::within`]). A reader trusts nothing: whatever it reads is held against the shape, and memory is
//! taken only for what is there.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::lines::{LINE_BYTES, Lines, Memory};
use crate::shape::Line;
use crate::{Clamp, Isa, Rounding, Window};

/// Bytes that are no kernel for this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged(
    /// What is wrong.
    pub &'static str,
);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for Damaged {}

const ENDS: Damaged = Damaged("it ends too early");

/// Bytes that grow.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    /// Bytes that were taken.
    taken: usize,
}

impl Writer {
    /// No bytes.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), taken: 0 }
    }

    /// What was written since it was taken the last time.
    pub fn take(&mut self) -> Vec<u8> {
        self.taken += self.bytes.len();
        core::mem::take(&mut self.bytes)
    }

    /// Puts a count.
    pub fn count(&mut self, count: usize) {
        self.bytes.extend_from_slice(&(count as u64).to_le_bytes());
    }

    /// Puts several.
    pub fn counts(&mut self, counts: &[usize]) {
        counts.iter().for_each(|count| self.count(*count));
    }

    /// Puts a real number.
    pub fn real(&mut self, real: f32) {
        self.bytes.extend_from_slice(&real.to_le_bytes());
    }

    /// Puts bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Puts a set of instructions.
    pub fn isa(&mut self, isa: Isa) {
        self.count(Isa::ALL.into_iter().position(|known| known == isa).unwrap_or_default());
    }

    /// Puts how values are rounded, or that they are not.
    pub fn rounding(&mut self, rounding: Option<Rounding>) {
        self.count(usize::from(rounding.is_some()));
        let Rounding { step, zero_point } = rounding.unwrap_or(Rounding { step: 1.0, zero_point: 0 });
        self.real(step);
        self.bytes.push(zero_point);
    }

    pub(crate) fn window(&mut self, window: &Window) {
        for sides in [window.kernel, window.stride, window.before, window.after] {
            self.counts(&sides);
        }
    }

    pub(crate) fn clamp(&mut self, clamp: Clamp) {
        self.real(clamp.low);
        self.real(clamp.high);
    }

    /// Puts zeros up to the next multiple of 64 bytes.
    pub fn align(&mut self) {
        let written = self.taken + self.bytes.len();
        let padding = written.next_multiple_of(LINE_BYTES) - written;
        self.bytes.resize(self.bytes.len() + padding, 0);
    }

    pub(crate) fn lines<T: Element, const N: usize>(&mut self, lines: &Lines<T, N>) {
        self.align();
        lines.flat().iter().for_each(|value| value.put(&mut self.bytes));
    }
}

/// Bytes, from the first to the last.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Bytes that were read.
    at: usize,
    /// Where the bytes stay, and the place of the first among them.
    memory: Option<(&'a Memory, usize)>,
}

impl<'a> Reader<'a> {
    /// Reads these; what is made of them has copies.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, at: 0, memory: None }
    }

    /// Reads these bytes of `memory`. Packed weights stay there, and are used there, where they lie at the boundaries that they
    /// want; elsewhere they are copied.
    ///
    /// # Errors
    /// There are not as many.
    pub fn within(memory: &'a Memory, bytes: Range<usize>) -> Result<Self, Damaged> {
        let first = bytes.start;
        let rest = memory.bytes().get(bytes).ok_or(ENDS)?;
        Ok(Self { rest, at: 0, memory: Some((memory, first)) })
    }

    /// Bytes that are left.
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Passes over what [`Writer::align`] put.
    ///
    /// # Errors
    /// There is not as much.
    pub fn align(&mut self) -> Result<(), Damaged> {
        self.bytes(self.at.next_multiple_of(LINE_BYTES) - self.at).map(|_| ())
    }

    /// The next bytes.
    ///
    /// # Errors
    /// There are not as many.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (first, rest) = self.rest.split_at_checked(count).ok_or(ENDS)?;
        self.rest = rest;
        self.at += count;
        Ok(first)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        self.bytes(N)?.try_into().map_err(|_| ENDS)
    }

    /// The next count.
    ///
    /// # Errors
    /// There is none, or one that no memory of this machine could hold.
    pub fn count(&mut self) -> Result<usize, Damaged> {
        let count = u64::from_le_bytes(self.array()?);
        usize::try_from(count).map_err(|_| Damaged("a number is too large for this machine"))
    }

    /// The next few.
    ///
    /// # Errors
    /// As [`count`](Self::count).
    pub fn counts<const N: usize>(&mut self) -> Result<[usize; N], Damaged> {
        let mut counts = [0; N];
        for count in &mut counts {
            *count = self.count()?;
        }
        Ok(counts)
    }

    /// The next real number.
    ///
    /// # Errors
    /// There is none.
    pub fn real(&mut self) -> Result<f32, Damaged> {
        self.array().map(f32::from_le_bytes)
    }

    /// The next real numbers.
    ///
    /// # Errors
    /// There are not as many.
    pub fn reals(&mut self, count: usize) -> Result<Vec<f32>, Damaged> {
        let bytes = self.bytes(count.checked_mul(4).ok_or(ENDS)?)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|real| f32::from_le_bytes(*real)).collect())
    }

    /// The next set of instructions.
    ///
    /// # Errors
    /// None that this processor has.
    pub fn isa(&mut self) -> Result<Isa, Damaged> {
        let isa = Isa::ALL.get(self.count()?).copied();
        isa.filter(|isa| isa.is_available()).ok_or(Damaged("it is for another processor"))
    }

    /// How the next values are rounded.
    ///
    /// # Errors
    /// Nothing that is a rounding.
    pub fn rounding(&mut self) -> Result<Option<Rounding>, Damaged> {
        let is_there = self.flag()?;
        let step = self.real()?;
        let [zero_point] = self.array()?;
        Ok(is_there.then_some(Rounding { step, zero_point }))
    }

    /// The next yes or no.
    ///
    /// # Errors
    /// Neither.
    pub fn flag(&mut self) -> Result<bool, Damaged> {
        match self.count()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Damaged("a yes or no is neither")),
        }
    }

    pub(crate) fn window(&mut self) -> Result<Window, Damaged> {
        let [kernel, stride, before, after] =
            [self.counts()?, self.counts()?, self.counts()?, self.counts()?];
        Ok(Window { kernel, stride, before, after })
    }

    pub(crate) fn clamp(&mut self) -> Result<Clamp, Damaged> {
        Ok(Clamp { low: self.real()?, high: self.real()? })
    }

    pub(crate) fn lines<T: Element, const N: usize>(
        &mut self,
        values: usize,
    ) -> Result<Lines<T, N>, Damaged> {
        self.align()?;
        let at = self.at;
        let bytes = self.bytes(values.div_ceil(N).checked_mul(LINE_BYTES).ok_or(ENDS)?)?;
        let there = self.memory.and_then(|(memory, first)| Lines::there(memory, first + at, bytes.len()));
        let line = |bytes: &[u8; LINE_BYTES]| Line(T::line(bytes));
        Ok(there.unwrap_or_else(|| Lines::Own(bytes.as_chunks().0.iter().map(line).collect())))
    }

    /// Channels in, channels out and pixels of a kernel: all there, with a weight of so many bytes for each of their products in
    /// what is left, so that nothing is made for shapes without weights.
    pub(crate) fn holds(&self, shape: &[usize], bytes: usize) -> Result<(), Damaged> {
        let product = shape.iter().try_fold(bytes, |product, side| product.checked_mul(*side));
        match product {
            Some(product) if product > 0 && product <= self.left() => Ok(()),
            _ => Err(Damaged("its weights are not those of its shape")),
        }
    }
}

/// What weights are made of.
pub(crate) trait Element: bytemuck::AnyBitPattern + bytemuck::NoUninit {
    fn put(self, to: &mut Vec<u8>);
    /// A line of them.
    fn line<const N: usize>(bytes: &[u8; LINE_BYTES]) -> [Self; N];
}

impl Element for i8 {
    fn put(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_le_bytes());
    }

    fn line<const N: usize>(bytes: &[u8; LINE_BYTES]) -> [Self; N] {
        const { assert!(N == 64) };
        core::array::from_fn(|at| bytes[at] as Self)
    }
}

/// Of four bytes each.
macro_rules! four_bytes {
    ($type:ty) => {
        impl Element for $type {
            fn put(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn line<const N: usize>(bytes: &[u8; LINE_BYTES]) -> [Self; N] {
                const { assert!(N == 16) };
                let values = bytes.as_chunks::<4>().0;
                core::array::from_fn(|at| Self::from_le_bytes(values[at]))
            }
        }
    };
}
four_bytes!(f32);
four_bytes!(i32);
