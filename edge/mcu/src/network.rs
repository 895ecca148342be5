//! The query network: a plan that lies in memory, as `glimpse-edge plan` writes it.

use glimpse_edge::{Embedder, Error, ErrorKind};
use glimpse_embedder_core::{Memory, NoDirection, PortableEmbedder, PortableError, PortableModel};
use glimpse_protocol::SpaceId;
use thiserror::Error;

use crate::Picture;

/// Room for whatever is not counted: the resized picture, the tables of a resize, edges that kernels copy. It was 0.46 MB with 22
/// convolutions for 224x224 pixels.
const SPARE_BYTES: usize = 512 << 10;

/// Why there is no network, or no embedding.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum NetworkError {
    /// The bytes are no model.
    #[error(transparent)]
    Model(#[from] PortableError),
    /// The model is too large for this board.
    #[error("the model wants {needed} bytes of memory, and {free} are free")]
    Memory {
        /// What it wants.
        needed: usize,
        /// What there is.
        free: usize,
    },
    /// The picture has no embedding.
    #[error(transparent)]
    NoDirection(#[from] NoDirection),
    /// Room for an embedding of another length.
    #[error("an embedding of {found} dimensions was asked for, and the model gives {expected}")]
    Dimension {
        /// What was asked for.
        found: usize,
        /// What the model gives.
        expected: usize,
    },
}

impl Error for NetworkError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Model(_) | Self::Memory { .. } => ErrorKind::Configuration,
            Self::NoDirection(_) | Self::Dimension { .. } => ErrorKind::Input,
        }
    }
}

/// The query network, and all the memory that it takes.
#[derive(Debug)]
pub struct PlanEmbedder(PortableEmbedder);

impl PlanEmbedder {
    /// The network that `memory` begins with, whose weights stay there; `free` tells how many bytes can be allocated, so that
    /// nothing is begun that cannot be ended.
    ///
    /// # Errors
    /// [`NetworkError::Model`], [`NetworkError::Memory`].
    pub fn load(memory: &Memory, free: impl Fn() -> usize) -> Result<Self, NetworkError> {
        let copied = PortableModel::copied_bytes(memory.bytes())?.saturating_add(SPARE_BYTES);
        has_room(copied, &free)?;
        let model = PortableModel::read(memory)?;
        has_room(model.memory_bytes().saturating_add(SPARE_BYTES), &free)?;
        Ok(Self(PortableEmbedder::new(model)))
    }

    /// What it is.
    pub const fn model(&self) -> &PortableModel {
        self.0.model()
    }
}

fn has_room(needed: usize, free: impl Fn() -> usize) -> Result<(), NetworkError> {
    let free = free();
    if needed <= free { Ok(()) } else { Err(NetworkError::Memory { needed, free }) }
}

impl Embedder for PlanEmbedder {
    type Photo = Picture<'static>;
    type Error = NetworkError;

    fn space(&self) -> SpaceId {
        self.model().space()
    }

    fn dimension(&self) -> usize {
        self.model().dimension()
    }

    fn embed(&mut self, photo: &Picture<'static>, embedding: &mut [f32]) -> Result<(), NetworkError> {
        let (found, expected) = (embedding.len(), self.dimension());
        if found != expected {
            return Err(NetworkError::Dimension { found, expected });
        }
        Ok(self.0.embed(&photo.frame, embedding)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_embedder_core::Preprocessing;
    use glimpse_plan::{PlanBuilder, Shape, Step};

    const SIDE: usize = 64;

    /// A network that adds up the pixels of each channel.
    fn file() -> Vec<u8> {
        let mut builder = PlanBuilder::new([3, SIDE, SIDE]);
        let planes = builder.input();
        let sums = builder.real(Shape([1, 3, 1, 1]));
        builder.push(Step::Sum { axes: [false, false, true, true], input: planes, output: sums }).unwrap();
        let side = SIDE as u32;
        let preprocessing = Preprocessing { width: side, height: side, mean: [0.0; 3], std: [1.0; 3] };
        let plan = builder.finish(sums).unwrap();
        PortableModel::new(SpaceId::from_bytes([7; 16]), preprocessing, plan).unwrap().write()
    }

    #[test]
    fn a_network_is_loaded_where_there_is_memory_for_all_of_it() {
        let memory = Memory::new(file());
        let tensor = 4 * (3 * SIDE * SIDE + 3);
        let copied = PortableModel::copied_bytes(memory.bytes()).unwrap();
        let enough = SPARE_BYTES + tensor.max(copied);
        assert!(PlanEmbedder::load(&memory, || enough).is_ok());
        let refused = PlanEmbedder::load(&memory, || enough - 1).unwrap_err();
        assert_eq!(refused, NetworkError::Memory { needed: enough, free: enough - 1 });
        let refused = PlanEmbedder::load(&memory, || 0).unwrap_err();
        assert_eq!(refused, NetworkError::Memory { needed: SPARE_BYTES + copied, free: 0 });
        assert_eq!(refused.kind(), ErrorKind::Configuration);
    }

    #[test]
    fn pictures_without_a_direction_and_wrong_dimensions_are_told() {
        let mut network = PlanEmbedder::load(&Memory::new(file()), || usize::MAX).unwrap();
        assert_eq!((network.dimension(), network.space()), (3, SpaceId::from_bytes([7; 16])));
        let mut embedding = [0.0; 3];
        let red = Picture::read(b"P6 1 1 255 \xff\0\0").unwrap();
        network.embed(&red, &mut embedding).unwrap();
        assert_eq!(embedding, [1.0, 0.0, 0.0]);
        let black = Picture::read(b"P6 1 1 255 \0\0\0").unwrap();
        let refused = network.embed(&black, &mut embedding).unwrap_err();
        assert_eq!(refused, NetworkError::NoDirection(NoDirection { norm: 0.0 }));
        let refused = network.embed(&red, &mut [0.0; 4]).unwrap_err();
        assert_eq!(refused, NetworkError::Dimension { found: 4, expected: 3 });
        assert_eq!(refused.kind(), ErrorKind::Input);
    }
}
