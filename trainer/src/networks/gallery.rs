//! The gallery network: one backbone, or several side by side.
//!
//! Cost hardly matters on the gallery's side, so networks that were trained apart are joined: their unit features stand
//! one after the other, and a PCA-whitening over all of them makes the space. A query network whose own backbone is
//! among them finds half of the space in its own features already, which is why its head generalises so much better
//! (`docs/accuracy.md` has the figures).
//!
//! For the same reason a gallery network may look at each photo several times: at several sizes, and mirrored. All of
//! it is one ONNX file from image to embedding, so that whoever runs it need not know.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
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
    /// How much each member says: its unit features are multiplied by it.
    #[module(skip)]
    weights: Vec<f64>,
    /// The PCA-whitening into the shared space.
    pub linear: Option<Linear>,
    #[module(skip)]
    looks: Looks,
}

/// How often, and at which sizes, a gallery network looks at a photo; the unit features of all looks are averaged.
#[derive(Debug, Clone, PartialEq)]
pub struct Looks {
    /// Factors of the input's sides. An ONNX file has them as `f32`, so they should be exact there, as 0.75 is.
    pub scales: Vec<f64>,
    /// Whether each look has a mirrored twin.
    pub mirrored: bool,
}

impl Default for Looks {
    /// Once, as the photo is.
    fn default() -> Self {
        Self { scales: vec![1.0], mirrored: false }
    }
}

impl Looks {
    /// The image `[N, 3, H, W]` as each look sees it.
    fn of(&self, image: &Tensor<4>) -> Vec<Tensor<4>> {
        let [_, _, height, width] = image.dims();
        let scaled = self.scales.iter().map(|&scale| {
            if is_one(scale) {
                return image.clone();
            }
            let size = [height, width].map(|side| (side as f64 * scale).round() as usize);
            interpolate(
                image.clone(),
                InterpolateOptions::new(InterpolateMode::Bilinear)
                    .with_align_corners(false)
                    .with_output_size(size),
            )
        });
        let scaled: Vec<Tensor<4>> = scaled.collect();
        let mirrored =
            scaled.iter().filter(|_| self.mirrored).map(|image| image.clone().flip([3])).collect::<Vec<_>>();
        [scaled, mirrored].concat()
    }
}

impl GalleryNetwork {
    /// Joins pretrained networks, in this order.
    pub fn new(members: impl IntoIterator<Item = EmbeddingNetwork>) -> Self {
        let members: Vec<_> = members.into_iter().collect();
        Self { weights: vec![1.0; members.len()], members, linear: None, looks: Looks::default() }
    }

    /// The same network with these weights of its members, one each.
    pub fn with_member_weights(self, weights: Vec<f64>) -> Self {
        Self { weights, ..self }
    }

    /// The same network with these looks.
    pub fn with_looks(self, looks: Looks) -> Self {
        Self { looks, ..self }
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
    /// If there is no member, or no look.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<2> {
        let looks = self.looks.of(&image).into_iter().map(|image| {
            let members = self.members.iter().zip(&self.weights);
            let features = members.map(|(member, &weight)| {
                let features = member.forward(image.clone());
                if is_one(weight) { features } else { features * weight }
            });
            unit(Tensor::cat(features.collect(), 1))
        });
        let features = unit(looks.reduce(|sum, look| sum + look).expect("there is a look"));
        match &self.linear {
            Some(linear) => unit(linear.forward(features)),
            None => features,
        }
    }
}

fn is_one(number: f64) -> bool {
    (number - 1.0).abs() < f64::EPSILON
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::values;
    use crate::onnx;

    fn miniatures(count: usize, device: &Device) -> Vec<EmbeddingNetwork> {
        (0..count).map(|_| Architecture::MINIATURE.init(device).fold()).collect()
    }

    #[test]
    fn looks_and_weights_are_part_of_the_file() {
        let device = Device::flex();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gallery.onnx");
        let looks = Looks { scales: vec![0.5, 1.0], mirrored: true };
        let network = GalleryNetwork::new(miniatures(2, &device));
        let plain = network.clone();
        let network = network.with_looks(looks).with_member_weights(vec![0.5, 1.0]);
        let model = onnx::export(&network, "features", GalleryNetwork::forward).unwrap();
        let preprocessing = Architecture::MINIATURE.preprocessing(128);
        let metadata = onnx::gallery_metadata(&model, preprocessing, 32).unwrap();
        onnx::write(model, &metadata, &path).unwrap();
        let image: Vec<f32> = (0..3 * 128 * 128).map(|i| ((i % 251) as f32 / 125.0) - 1.0).collect();
        let verified =
            onnx::verify(&path, &preprocessing, std::slice::from_ref(&image), |image| network.forward(image));
        assert!(verified.unwrap() > 0.9999);
        let other = onnx::verify(&path, &preprocessing, &[image], |image| plain.forward(image));
        assert!(matches!(other, Err(onnx::OnnxError::Disagrees { .. })), "{other:?}");
    }

    #[test]
    fn a_mirrored_look_makes_the_mirrored_photo_the_same() {
        let device = Device::flex();
        let looks = Looks { scales: vec![1.0], mirrored: true };
        let network = GalleryNetwork::new(miniatures(1, &device)).with_looks(looks);
        let image =
            Tensor::<4>::random([1, 3, 64, 64], burn::tensor::Distribution::Uniform(-1.0, 1.0), &device);
        let [one, other] = [image.clone(), image.flip([3])].map(|image| values(network.forward(image)));
        assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-5), "{one:?} is not {other:?}");
    }

    #[test]
    fn joined_features_are_the_members_features_with_equal_say() {
        let device = Device::flex();
        device.seed(3);
        let members = miniatures(2, &device);
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
