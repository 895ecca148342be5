//! The networks, as Burn modules: only this folder, `losses` and `training` know Burn.
//!
//! An [`EmbeddingNetwork`] is a backbone and a head, and the query network is one:
//!
//! ```text
//! image [N, 3, H, W] -> backbone -> maps [N, C, H/32, W/32]
//!       -> head.conv (1x1, with its folded batch norm) -> ReLU6 -> GeM, p = 3 -> L2 -> features [N, 1280]
//!       -> head.linear -> L2 -> embedding [N, D]
//! ```
//!
//! Training learns `head.linear`, and `head.conv` with it. Without `head.linear` the network gives raw features, and a
//! [`GalleryNetwork`] is one or several such networks with a PCA-whitening of their features.

mod efficientnet;
mod gallery;
mod head;
mod weights;

pub use efficientnet::{Architecture, Backbone, ConvNorm, EfficientNet, MbConv, Pretrained};
pub use gallery::GalleryNetwork;
pub(crate) use head::values;
pub use head::{EmbeddingNetwork, Head, HeadWeights, gem, unit};
pub use weights::{WeightsError, load_pretrained};

use glimpse_embedder::Preprocessing;

/// What EfficientNet-Lite expects of a photo squashed to `size` x `size`: levels centred on 127 and divided by 128.
pub fn preprocessing(size: u32) -> Preprocessing {
    Preprocessing { width: size, height: size, mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] }
}
