//! A frame to a unit embedding, with nothing but the steps of a plan.

use alloc::vec;
use alloc::vec::Vec;

use glimpse_plan::Workspace;
use thiserror::Error;

use crate::{Frame, PortableModel, Preprocessor};

/// The network gave NaN, infinity or nothing but zeros.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("the network gave an embedding without a direction (norm {norm})")]
pub struct NoDirection {
    /// Its L2 norm.
    pub norm: f32,
}

/// Divides an embedding by its norm.
///
/// # Errors
/// [`NoDirection`]; the embedding is as it was.
pub fn to_unit(embedding: &mut [f32]) -> Result<(), NoDirection> {
    let norm = libm::sqrtf(embedding.iter().map(|x| x * x).sum::<f32>());
    // A photo of one colour can leave every activation at zero.
    if !norm.is_finite() || norm < 1e-6 {
        return Err(NoDirection { norm });
    }
    embedding.iter_mut().for_each(|x| *x /= norm);
    Ok(())
}

/// A portable model at work. All of its memory is taken once, but for the resize's tables of weights and the edges that kernels copy.
#[derive(Debug)]
pub struct PortableEmbedder {
    model: PortableModel,
    preprocessor: Preprocessor,
    tensor: Vec<f32>,
    workspace: Workspace,
}

impl PortableEmbedder {
    /// Takes the memory that [`PortableModel::memory_bytes`] says.
    pub fn new(model: PortableModel) -> Self {
        let preprocessing = model.preprocessing();
        Self {
            preprocessor: Preprocessor::new(preprocessing),
            tensor: vec![0.0; preprocessing.tensor_len()],
            workspace: model.plan().workspace(),
            model,
        }
    }

    /// The model.
    pub const fn model(&self) -> &PortableModel {
        &self.model
    }

    /// Writes the unit embedding of a frame, `[dimension]`.
    ///
    /// # Errors
    /// [`NoDirection`]; `embedding` is then unspecified.
    ///
    /// # Panics
    /// Where `embedding` has another length.
    pub fn embed(&mut self, frame: &Frame<'_>, embedding: &mut [f32]) -> Result<(), NoDirection> {
        self.preprocessor.tensor_into(frame, &mut self.tensor);
        self.model.plan().run(&mut self.workspace, &self.tensor, embedding);
        to_unit(embedding)
    }
}
