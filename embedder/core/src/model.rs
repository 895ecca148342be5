//! A network with all that it needs, in one file for any processor.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `GLMODEL` and the version |
//! | 8 | length of what follows the checksum, little endian |
//! | 32 | BLAKE3 of that |
//! | 16 | the space |
//! | 24 | mean and standard deviation of each channel (R, G, B), `f32` |
//! | 40 | zeros |
//! | the rest | the plan, its weights packed for the portable kernels |
//!
//! The length is there for memory that has no end of file: a microcontroller finds the file at an address.

use alloc::vec::Vec;

use glimpse_kernels::{Damaged, Memory, Reader, Writer};
use glimpse_plan::{Plan, PlanError};
use glimpse_protocol::SpaceId;
use thiserror::Error;

use crate::Preprocessing;

/// The last letter is raised with every change of what follows. That of a plan is the plan's own affair.
const MAGIC: &[u8; 8] = b"GLMODELB";

/// Before the body: magic, length, checksum.
const HEAD_BYTES: usize = 8 + 8 + blake3::OUT_LEN;

/// Where the plan begins in the file: weights lie at multiples of 64 bytes from there, and so from the file's beginning.
const PLAN_AT: usize = 128;

/// Why bytes, or a plan, are no portable model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PortableError {
    /// Something else is there.
    #[error("there is no portable model, or one of another version: `glimpse-edge plan` writes them")]
    Foreign,
    /// It was cut off.
    #[error("the model has {needed} bytes, and there are {found}: was it cut off?")]
    Short {
        /// Bytes that it says it has.
        needed: u64,
        /// Bytes that there are.
        found: usize,
    },
    /// It was changed.
    #[error("the model's checksum is wrong: it was damaged or cut off")]
    Checksum,
    /// The plan takes no photos of that size.
    #[error(
        "the model's plan takes {channels} channels of {width}x{height} pixels, not three of its preprocessing's"
    )]
    Input {
        /// Channels.
        channels: usize,
        /// Width, in pixels.
        width: usize,
        /// Height, in pixels.
        height: usize,
    },
    /// Numbers that no photo could be normalised by.
    #[error("the model's preprocessing is impossible")]
    Preprocessing,
    /// The plan is none, or one for other kernels.
    #[error("the model's plan cannot be run here: {0}")]
    Plan(PlanError),
}

impl From<Damaged> for PortableError {
    fn from(damaged: Damaged) -> Self {
        Self::Plan(damaged.into())
    }
}

/// A network of a space, with its preprocessing.
#[derive(Debug)]
pub struct PortableModel {
    space: SpaceId,
    preprocessing: Preprocessing,
    plan: Plan,
}

impl PortableModel {
    /// Puts the parts together.
    ///
    /// # Errors
    /// Parts that do not fit: [`PortableError::Input`], [`PortableError::Preprocessing`].
    pub fn new(space: SpaceId, preprocessing: Preprocessing, plan: Plan) -> Result<Self, PortableError> {
        let [channels, height, width] = plan.input();
        preprocessing.validate().map_err(|_| PortableError::Preprocessing)?;
        if [channels, height, width] != [3, preprocessing.height as usize, preprocessing.width as usize] {
            return Err(PortableError::Input { channels, width, height });
        }
        Ok(Self { space, preprocessing, plan })
    }

    /// The model as bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut body = Writer::new();
        body.bytes(self.space.as_bytes());
        let Preprocessing { mean, std, .. } = self.preprocessing;
        mean.iter().chain(&std).for_each(|x| body.real(*x));
        let mut body = body.take();
        body.resize(PLAN_AT - HEAD_BYTES, 0);
        body.extend(self.plan.write());
        let mut file = Writer::new();
        file.bytes(MAGIC);
        file.count(body.len());
        file.bytes(blake3::hash(&body).as_bytes());
        file.bytes(&body);
        file.take()
    }

    /// What reading the file `bytes` would take of other memory for its weights and constants, at most.
    ///
    /// # Errors
    /// As [`file_bytes`](Self::file_bytes), and [`PortableError::Plan`].
    pub fn copied_bytes(bytes: &[u8]) -> Result<usize, PortableError> {
        let file_bytes = Self::file_bytes(bytes)?;
        if !Memory::is_usable_in_place(bytes) {
            return Ok(file_bytes);
        }
        let plan = bytes.get(PLAN_AT..file_bytes).ok_or(PortableError::Foreign)?;
        Plan::constant_bytes(plan).map_err(PortableError::Plan)
    }

    /// The length of the file that `bytes` begin with, as it says itself.
    ///
    /// # Errors
    /// [`PortableError::Foreign`], and [`PortableError::Short`] where not all of it is there.
    pub fn file_bytes(bytes: &[u8]) -> Result<usize, PortableError> {
        let mut from = Reader::new(bytes);
        let magic = from.bytes(MAGIC.len()).map_err(|_| PortableError::Foreign)?;
        if magic != MAGIC {
            return Err(PortableError::Foreign);
        }
        let length = from.bytes(8).ok().and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let needed = length.ok_or(PortableError::Foreign)?.saturating_add(HEAD_BYTES as u64);
        let short = PortableError::Short { needed, found: bytes.len() };
        usize::try_from(needed).ok().filter(|needed| *needed <= bytes.len()).ok_or(short)
    }

    /// What [`write`](Self::write) made, at the beginning of `memory`. Weights are used where they are, if the memory begins at a
    /// multiple of 64 bytes, and else copied; see [`copied_bytes`](Self::copied_bytes).
    ///
    /// # Errors
    /// [`PortableError`]: a byte that was changed is noticed.
    pub fn read(memory: &Memory) -> Result<Self, PortableError> {
        let bytes = memory.bytes();
        let file_bytes = Self::file_bytes(bytes)?;
        let (head, body) = bytes[..file_bytes].split_at(HEAD_BYTES);
        if blake3::hash(body).as_bytes() != &head[HEAD_BYTES - blake3::OUT_LEN..] {
            return Err(PortableError::Checksum);
        }
        let mut from = Reader::new(body);
        let mut space = [0; 16];
        space.copy_from_slice(from.bytes(16)?);
        let mut numbers = [0.0; 6];
        for number in &mut numbers {
            *number = from.real()?;
        }
        let [r, g, b, std @ ..] = numbers;
        let plan = Plan::read_within(memory, PLAN_AT..file_bytes).map_err(PortableError::Plan)?;
        let [_, height, width] = plan.input();
        let [width, height] = [width, height].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
        let preprocessing = Preprocessing { width, height, mean: [r, g, b], std };
        Self::new(SpaceId::from_bytes(space), preprocessing, plan)
    }

    /// The space of its embeddings.
    pub const fn space(&self) -> SpaceId {
        self.space
    }

    /// How photos become its input.
    pub const fn preprocessing(&self) -> Preprocessing {
        self.preprocessing
    }

    /// Its steps.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.plan.output_len()
    }

    /// Bytes that a [`PortableEmbedder`](crate::PortableEmbedder) takes beside the weights, without the resize's tables.
    pub fn memory_bytes(&self) -> usize {
        let tensor = self.preprocessing.tensor_len().saturating_mul(size_of::<f32>());
        self.plan.workspace_bytes().saturating_add(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, PortableEmbedder};
    use glimpse_plan::{PlanBuilder, Shape, Step};

    fn sums(channels: usize) -> Plan {
        let mut builder = PlanBuilder::new([channels, 2, 2]);
        let planes = builder.input();
        let sums = builder.real(Shape([1, channels, 1, 1]));
        builder.push(Step::Sum { axes: [false, false, true, true], input: planes, output: sums }).unwrap();
        builder.finish(sums).unwrap()
    }

    const HOW: Preprocessing =
        Preprocessing { width: 2, height: 2, mean: [0.5, 0.25, 0.0], std: [0.5, 1.0, 0.25] };

    fn model() -> PortableModel {
        PortableModel::new(SpaceId::from_bytes([9; 16]), HOW, sums(3)).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<PortableModel, PortableError> {
        PortableModel::read(&Memory::new(bytes.to_vec()))
    }

    #[test]
    fn a_model_survives_its_file_and_whatever_lies_behind() {
        let mut bytes = model().write();
        let length = bytes.len();
        bytes.extend([0xff; 100]);
        assert_eq!(PortableModel::file_bytes(&bytes), Ok(length));
        let read = read(&bytes).unwrap();
        assert_eq!((read.space(), read.preprocessing()), (model().space(), HOW));
        assert_eq!((read.dimension(), read.memory_bytes()), (3, (12 + 3) * 4));
        let mut embeddings = [[0.0; 3]; 2];
        let frame = Frame::rgb([2, 1], &[10, 20, 30, 40, 50, 60]).unwrap();
        for (model, embedding) in [model(), read].into_iter().zip(&mut embeddings) {
            PortableEmbedder::new(model).embed(&frame, embedding).unwrap();
        }
        assert_eq!(embeddings[0], embeddings[1]);
    }

    #[test]
    fn every_bit_that_is_changed_and_every_byte_that_is_missing_is_noticed() {
        let bytes = model().write();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                assert!(read(&changed).is_err(), "bit {bit} of byte {place}");
            }
            assert!(read(&bytes[..place]).is_err(), "{place} bytes");
            // What is cut off in memory is followed by whatever was there.
            let mut cut = bytes.clone();
            cut[place..].fill(0xff);
            assert!(place == bytes.len() || read(&cut).is_err(), "{place} bytes");
        }
        assert_eq!(read(b"").unwrap_err(), PortableError::Foreign);
        let short = read(&bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(short, PortableError::Short { needed: bytes.len() as u64, found: bytes.len() - 1 });
    }

    #[test]
    fn parts_that_do_not_fit_are_no_model() {
        let of = |how, plan| PortableModel::new(SpaceId::from_bytes([9; 16]), how, plan).map(|_| ());
        let input = PortableError::Input { channels: 2, width: 2, height: 2 };
        assert_eq!(of(HOW, sums(2)), Err(input));
        assert!(matches!(of(Preprocessing { width: 3, ..HOW }, sums(3)), Err(PortableError::Input { .. })));
        assert_eq!(of(Preprocessing { std: [0.0; 3], ..HOW }, sums(3)), Err(PortableError::Preprocessing));
    }
}
