//! The networks, as Burn modules: only this folder, `losses`, `training`, `device` and `onnx` know Burn.
//!
//! An [`EmbeddingNetwork`] is a [`Backbone`] in stages and a [`Head`], and the query network is one:
//!
//! ```text
//! image [N, 3, H, W] -> backbone -> maps [N, C, H/32, W/32]
//!       -> head.conv (1x1) -> activation -> GeM, p = 3 -> L2 -> features [N, channels]
//!       -> head.linear (or two matrices of a low rank) -> L2 -> embedding [N, D]
//! ```
//!
//! An [`Architecture`] says which network; its [`Plan`] has all shapes as data, from which modules, parameter counts and
//! multiply-adds are made. Without a projection a network gives raw features, and a [`GalleryNetwork`] is one or several
//! such networks with a PCA-whitening of their features.

mod architecture;
mod backbone;
mod blocks;
mod blueprint;
mod gallery;
mod head;
mod parameters;
mod plan;
mod weights;

pub use architecture::{Architecture, Family};
pub use backbone::{Backbone, EmbeddingNetwork, Frozen};
pub use blocks::{Activation, Block, ConvNorm, MbConv, ShuffleUnit, SqueezeExcitation};
pub use blueprint::{Blueprint, Norms};
pub use gallery::{GalleryNetwork, Looks};
pub(crate) use head::values;
pub use head::{Head, HeadConfig, gem, unit};
pub use parameters::{Parameters, ParametersError, group};
pub use plan::{BlockPlan, ConvPlan, Cost, MbConvPlan, Padding, Plan, ShufflePlan};
pub use weights::{WeightsError, load_pretrained};
