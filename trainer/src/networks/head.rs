//! The head: 1x1 convolution, generalised-mean pooling, and the projection into the shared space.

use burn::module::{Module, Param, ParamId};
use burn::nn::Linear;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor, TensorData};

use crate::projection::Projection;

use super::efficientnet::Backbone;

/// Smallest activation that GeM sees, so that the root's gradient stays finite (Radenovic et al., arXiv 1711.02512).
const GEM_FLOOR: f64 = 1e-6;
/// Smallest norm that a vector is divided by.
const NORM_FLOOR: f64 = 1e-12;

/// Backbone and head: image to unit embedding, or to unit features while `head.linear` is missing.
#[derive(Module, Debug)]
pub struct EmbeddingNetwork {
    /// Image to maps; frozen in training.
    pub backbone: Backbone,
    /// Maps to embedding.
    pub head: Head,
}

impl EmbeddingNetwork {
    /// Image `[N, 3, H, W]` to unit vectors `[N, D]`.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<2> {
        self.head.forward(self.backbone.forward(image))
    }
}

/// Maps `[N, C, h, w]` to unit vectors. Everything that training changes is here.
#[derive(Module, Debug)]
pub struct Head {
    /// 1x1, with the pretrained batch norm folded in, so that its statistics are frozen in training.
    pub conv: Conv2d,
    /// Projection into the shared space; its weight is `[channels, D]`.
    pub linear: Option<Linear>,
}

impl Head {
    /// Maps `[N, C, h, w]` to unit features `[N, channels]`: everything before the projection.
    pub fn pool(&self, maps: Tensor<4>) -> Tensor<2> {
        // ReLU6 and GeM's floor are one clamp.
        unit(gem(self.conv.forward(maps).clamp(GEM_FLOOR, 6.0)))
    }

    /// Maps `[N, C, h, w]` to unit embeddings `[N, D]`, or to features where there is no projection.
    pub fn forward(&self, maps: Tensor<4>) -> Tensor<2> {
        let features = self.pool(maps);
        match &self.linear {
            Some(linear) => unit(linear.forward(features)),
            None => features,
        }
    }

    /// Sets the projection.
    ///
    /// # Panics
    /// If its weight is no multiple of its bias long.
    pub fn project(mut self, projection: &Projection, device: &Device) -> Self {
        self.linear = Some(linear(projection, device));
        self
    }

    /// The parameters as plain numbers; `None` where there is no projection yet.
    pub fn weights(&self) -> Option<HeadWeights> {
        let linear = self.linear.as_ref()?;
        let [channels, map_channels, _, _] = self.conv.weight.dims();
        Some(HeadWeights {
            map_channels,
            channels,
            conv_weight: values(self.conv.weight.val()),
            conv_bias: self.conv.bias.as_ref().map_or_else(|| vec![0.0; channels], |bias| values(bias.val())),
            projection: Projection {
                weight: values(linear.weight.val()),
                bias: linear.bias.as_ref().map(|bias| values(bias.val()))?,
            },
        })
    }
}

/// A projection as a layer.
///
/// # Panics
/// If its weight is no multiple of its bias long.
pub(super) fn linear(projection: &Projection, device: &Device) -> Linear {
    let dimension = projection.bias.len();
    let weight = TensorData::new(projection.weight.clone(), [projection.weight.len() / dimension, dimension]);
    let bias = TensorData::new(projection.bias.clone(), [dimension]);
    Linear { weight: Param::from_data(weight, device), bias: Some(Param::from_data(bias, device)) }
}

/// A head as plain numbers, which is what checkpoints hold.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadWeights {
    /// Channels of the maps.
    pub map_channels: usize,
    /// Channels after the convolution.
    pub channels: usize,
    /// `[channels, map_channels]`.
    pub conv_weight: Vec<f32>,
    /// `[channels]`.
    pub conv_bias: Vec<f32>,
    /// To the shared space.
    pub projection: Projection,
}

impl HeadWeights {
    /// The module. Its parameters always have the same ids, so that an optimizer's state finds them again, and carry
    /// gradients where `device` does.
    pub fn head(&self, device: &Device) -> Head {
        let dimension = self.projection.bias.len();
        let mut conv = Conv2dConfig::new([self.map_channels, self.channels], [1, 1]).init(device);
        conv.weight = param(1, &self.conv_weight, [self.channels, self.map_channels, 1, 1], device);
        conv.bias = Some(param(2, &self.conv_bias, [self.channels], device));
        let linear = Linear {
            weight: param(3, &self.projection.weight, [self.channels, dimension], device),
            bias: Some(param(4, &self.projection.bias, [dimension], device)),
        };
        Head { conv, linear: Some(linear) }
    }
}

fn param<const D: usize>(id: u64, values: &[f32], shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let tensor = Tensor::from_data(TensorData::new(values.to_vec(), shape), device);
    let tensor = if device.is_autodiff() { tensor.require_grad() } else { tensor };
    Param::initialized(ParamId::from(id), tensor)
}

/// The numbers of a tensor, row-major.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("the tensors here are float tensors on this processor")
}

/// Generalised mean with p = 3 over height and width: positive maps `[N, C, h, w]` to `[N, C]`.
pub fn gem(maps: Tensor<4>) -> Tensor<2> {
    // Two products, not a power: the same in every runtime, and several times faster in most.
    let cubes = maps.clone() * maps.clone() * maps;
    cubes.mean_dim(3).mean_dim(2).powf_scalar(1.0 / 3.0).flatten(1, 3)
}

/// Divides each row of `[N, D]` by its Euclidean norm.
pub fn unit(rows: Tensor<2>) -> Tensor<2> {
    let norm = (rows.clone() * rows.clone()).sum_dim(1).sqrt().clamp_min(NORM_FLOOR);
    rows / norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gem_is_the_cubic_mean() {
        let device = Device::flex();
        let maps = Tensor::<4>::from_data(
            TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0], [1, 2, 2, 2]),
            &device,
        );
        let pooled = values(gem(maps));
        let expected = (100.0_f32 / 4.0).cbrt();
        assert!((pooled[0] - expected).abs() < 1e-5 && (pooled[1] - 5.0).abs() < 1e-5, "{pooled:?}");
    }

    #[test]
    fn unit_rows_have_norm_one_and_zero_stays_zero() {
        let device = Device::flex();
        let rows = Tensor::<2>::from_data(TensorData::new(vec![3.0_f32, 4.0, 0.0, 0.0], [2, 2]), &device);
        let values = values(unit(rows));
        assert_eq!(values, [0.6, 0.8, 0.0, 0.0]);
    }
}
