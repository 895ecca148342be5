//! The gallery network: one backbone, or several side by side.
//!
//! Cost hardly matters on the gallery's side, so networks that were trained apart are joined: their unit features stand
//! one after the other, and a PCA-whitening over all of them makes the space. A query network whose own backbone is
//! among them finds half of the space in its own features already, which is why its head generalises so much better
//! (`docs/accuracy.md` has the figures).

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::Architecture;
use super::backbone::EmbeddingNetwork;
use super::head::{linear, unit};
use crate::projection::Projection;

/// Image to unit embedding, or to unit features while the projection is missing.
#[derive(Module, Debug)]
pub struct GalleryNetwork {
    /// Each gives unit features of its own; all see the same image.
    pub members: Vec<EmbeddingNetwork>,
    /// The PCA-whitening into the shared space.
    pub linear: Option<Linear>,
}

impl GalleryNetwork {
    /// Joins pretrained networks, in this order.
    pub fn new(members: impl IntoIterator<Item = EmbeddingNetwork>) -> Self {
        Self { members: members.into_iter().collect(), linear: None }
    }

    /// Dimension of the joined features of these networks.
    pub fn feature_channels(members: &[Architecture]) -> usize {
        members.iter().map(|member| member.feature_channels()).sum()
    }

    /// Sets the projection.
    ///
    /// # Panics
    /// If its weight is no multiple of its bias long.
    pub fn project(mut self, projection: &Projection, device: &Device) -> Self {
        self.linear = Some(linear(projection, device));
        self
    }

    /// Image `[N, 3, H, W]` to unit vectors `[N, D]`.
    ///
    /// # Panics
    /// If there is no member.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<2> {
        let features: Vec<Tensor<2>> =
            self.members.iter().map(|member| member.forward(image.clone())).collect();
        let features = unit(Tensor::cat(features, 1));
        match &self.linear {
            Some(linear) => unit(linear.forward(features)),
            None => features,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::values;

    #[test]
    fn joined_features_are_the_members_features_with_equal_say() {
        let device = Device::flex();
        device.seed(3);
        let members: Vec<EmbeddingNetwork> =
            (0..2).map(|_| Architecture::MINIATURE.init(&device).fold()).collect();
        let image = Tensor::<4>::ones([1, 3, 64, 64], &device) * 0.3;
        let alone = members.iter().map(|member| {
            let network = GalleryNetwork::new([member.clone()]);
            values(network.forward(image.clone()))
        });
        let alone: Vec<f32> = alone.flatten().map(|value| value / 2.0_f32.sqrt()).collect();
        let joined = values(GalleryNetwork::new(members).forward(image));
        assert_eq!(joined.len(), GalleryNetwork::feature_channels(&[Architecture::MINIATURE; 2]));
        assert!(joined.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5), "{joined:?} is not {alone:?}");
    }
}
