//! The query network: a plan that lies in memory, as `glimpse-edge plan` writes it.

use glimpse_edge::{Embedder, Error, ErrorKind};
use glimpse_embedder_core::{NoDirection, PortableEmbedder, PortableError, PortableModel};
use glimpse_protocol::SpaceId;
use thiserror::Error;

use crate::Picture;

/// Room for the tables of weights that a resize makes, for the largest picture, and for whatever else is short-lived.
const SPARE_BYTES: usize = 256 << 10;

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
    /// The network that `memory` begins with; `free` tells how many bytes can be allocated, so that nothing is begun that cannot be
    /// ended.
    ///
    /// # Errors
    /// [`NetworkError::Model`], [`NetworkError::Memory`].
    pub fn load(memory: &[u8], free: impl Fn() -> usize) -> Result<Self, NetworkError> {
        // Weights are copied, and are nearly all of the file.
        let weights = PortableModel::file_bytes(memory)?.saturating_add(SPARE_BYTES);
        has_room(weights, &free)?;
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
