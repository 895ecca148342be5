//! Why training does not go on.

use std::path::PathBuf;

use thiserror::Error;

use crate::files::FileError;
use crate::networks::ParametersError;
use crate::projection::ProjectionError;

/// Why training did not end.
#[derive(Debug, Error)]
pub enum TrainingError {
    /// A file of the run folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint cannot be used.
    #[error("{} is no checkpoint of this trainer: {reason}", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint belongs to another run.
    #[error("{} was made with {setting} = {found}, and {setting} = {asked} is asked for now: resume with the same settings, or train in another run folder", path.display())]
    AnotherConfiguration {
        /// The file.
        path: PathBuf,
        /// Which setting differs.
        setting: String,
        /// Its value in the checkpoint.
        found: String,
        /// Its value now.
        asked: String,
    },
    /// A checkpoint belongs to another network.
    #[error("{} does not fit the network", path.display())]
    AnotherNetwork {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: ParametersError,
    },
    /// The first projection cannot be solved for.
    #[error(transparent)]
    Projection(#[from] ProjectionError),
    /// A photo that could be decoded when the teacher saw it.
    #[error("{} cannot be decoded any more: {reason}; put it back and resume", photo.display())]
    Photo {
        /// The file.
        photo: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// The numbers left the floats.
    #[error("the loss became {loss} in step {step}: use a smaller learning rate")]
    Diverged {
        /// In which step.
        step: u64,
        /// What it became.
        loss: f32,
    },
    /// The gradients left 16-bit floats.
    #[error(
        "the gradients of step {step} do not fit 16-bit floats: use --precision full, or a smaller learning rate"
    )]
    Overflow {
        /// In which step.
        step: u64,
    },
    /// Nothing to train on.
    #[error("there is nothing to train on: {0}")]
    NoData(&'static str),
    /// The curves cannot be drawn.
    #[error("cannot draw {}: {reason}", path.display())]
    Drawing {
        /// The file.
        path: PathBuf,
        /// What the plotter says.
        reason: String,
    },
}
