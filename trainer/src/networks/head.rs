//! The head: 1x1 convolution, generalised-mean pooling, and the projection into the shared space.

use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use super::blocks::{Activation, ConvNorm, convolve};
use super::plan::{ConvPlan, Padding, Plan};
use crate::projection::Projection;

/// Smallest activation that GeM sees, so that the root's gradient stays finite (Radenovic et al., arXiv 1711.02512).
const GEM_FLOOR: f64 = 1e-6;
/// Smallest norm that a vector is divided by.
const NORM_FLOOR: f64 = 1e-12;
/// Channels of a fresh convolution for each channel of the maps, where none are asked for.
const FRESH_FACTOR: usize = 4;

/// What stands between a backbone's maps and the shared space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeadConfig {
    /// Channels of a fresh 1x1 convolution without norm, with ReLU, as in the paper; the network's own last convolution
    /// where `None`.
    pub channels: Option<usize>,
    /// Two matrices of this rank in place of one, where given.
    pub rank: Option<usize>,
    /// Cells at each edge of the maps that pooling leaves out. What a photo is of stands about its middle, and cells at
    /// the edge see the scene around it, and padding. A hard form of SPoC's centring prior (Babenko and Lempitsky, ICCV
    /// 2015, section 3.2); 0 is the paper's head.
    #[serde(default)]
    pub margin: usize,
}

/// Maps `[N, C, h, w]` to unit vectors.
#[derive(Module, Debug)]
pub struct Head {
    /// 1x1.
    conv: Conv2d,
    /// Its pretrained batch norm, until that is folded into it.
    norm: Option<BatchNorm>,
    /// Down to the rank of a low-rank projection; `[channels, rank]`.
    pub(super) reduce: Option<Linear>,
    /// Projection into the shared space; `[channels or rank, D]`.
    pub(super) linear: Option<Linear>,
    #[module(skip)]
    activation: Activation,
    /// See [`HeadConfig::margin`].
    #[module(skip)]
    margin: usize,
}

impl Head {
    /// The network's own last convolution, or a fresh one where stages were cut off.
    pub(super) fn new(plan: &Plan, device: &Device) -> Self {
        let Some(last) = &plan.last else {
            let channels = plan.map_channels();
            return Self::fresh(channels, FRESH_FACTOR * channels, device);
        };
        Self::of(ConvNorm::new(last, device), plan.activation)
    }

    /// A random convolution from `map_channels` to `channels`, without norm and bias (Wu et al., arXiv 2403.00648).
    pub fn fresh(map_channels: usize, channels: usize, device: &Device) -> Self {
        Self::of(ConvNorm::new(&fresh_conv(map_channels, channels), device), Activation::Relu)
    }

    fn of(ConvNorm { conv, norm }: ConvNorm, activation: Activation) -> Self {
        Self { conv, norm, reduce: None, linear: None, activation, margin: 0 }
    }

    /// The same head, which leaves out so many cells at each edge of the maps.
    pub fn with_margin(self, margin: usize) -> Self {
        Self { margin, ..self }
    }

    /// Maps `[N, C, h, w]` to unit features `[N, channels]`: everything before the projection.
    pub fn pool(&self, maps: Tensor<4>) -> Tensor<2> {
        // The middle before the convolution, which sees one cell at a time, so that nothing is computed for the edges. From
        // here on in 32 bits: cubes and GeM's floor leave the range of 16-bit floats.
        let maps = convolve(&self.conv, middle(maps, self.margin)).cast(DType::F32);
        let maps = match &self.norm {
            Some(norm) => norm.forward(maps),
            None => maps,
        };
        unit(gem(match self.activation {
            // The activation and GeM's floor are one clamp.
            Activation::Relu6 => maps.clamp(GEM_FLOOR, 6.0),
            Activation::Relu => maps.clamp_min(GEM_FLOOR),
            Activation::HardSwish => Activation::HardSwish.forward(maps).clamp_min(GEM_FLOOR),
        }))
    }

    /// Maps `[N, C, h, w]` to unit embeddings `[N, D]`, or to features where there is no projection.
    pub fn forward(&self, maps: Tensor<4>) -> Tensor<2> {
        let features = self.pool(maps);
        let features = match &self.reduce {
            Some(reduce) => reduce.forward(features),
            None => features,
        };
        match &self.linear {
            Some(linear) => unit(linear.forward(features)),
            None => features,
        }
    }

    /// Sets the projection to a given one, split into two matrices of rank `rank` where that is asked for: the best ones
    /// in the least-squares sense (Eckart and Young).
    ///
    /// # Panics
    /// If its weight is no multiple of its bias long.
    pub fn project(mut self, projection: &Projection, rank: Option<usize>, device: &Device) -> Self {
        let (reduce, rest) = match rank {
            Some(rank) => {
                let (reduce, rest) = low_rank(projection, rank);
                (Some(linear(&reduce, device)), rest)
            }
            None => (None, projection.clone()),
        };
        self.reduce = reduce;
        self.linear = Some(linear(&rest, device));
        self
    }

    /// Sets the projection to random numbers: uniform, as PyTorch and Burn do by default.
    pub fn project_at_random(mut self, dimension: usize, rank: Option<usize>, device: &Device) -> Self {
        let channels = self.channels();
        self.reduce = rank.map(|rank| LinearConfig::new(channels, rank).with_bias(false).init(device));
        self.linear = Some(LinearConfig::new(rank.unwrap_or(channels), dimension).init(device));
        self
    }

    /// Dimension of the pooled features.
    pub fn channels(&self) -> usize {
        self.conv.weight.dims()[0]
    }

    /// Dimension of what it gives.
    pub fn dimension(&self) -> usize {
        self.linear.as_ref().map_or_else(|| self.channels(), |linear| linear.weight.dims()[1])
    }

    pub(super) fn fold(self) -> Self {
        let ConvNorm { conv, norm } = ConvNorm { conv: self.conv, norm: self.norm }.fold();
        Self { conv, norm, ..self }
    }
}

/// The convolution of a fresh head.
pub(super) fn fresh_conv(map_channels: usize, channels: usize) -> ConvPlan {
    ConvPlan {
        channels_in: map_channels,
        channels_out: channels,
        kernel: 1,
        stride: 1,
        groups: 1,
        padding: Padding::Symmetric,
        norm_epsilon: None,
        bias: false,
    }
}

impl HeadConfig {
    /// The convolution that a head of this configuration has on a network.
    pub fn conv(self, plan: &Plan) -> ConvPlan {
        match (self.channels, &plan.last) {
            (None, Some(last)) => last.clone(),
            (channels, _) => {
                let map_channels = plan.map_channels();
                fresh_conv(map_channels, channels.unwrap_or(FRESH_FACTOR * map_channels))
            }
        }
    }

    /// Side of what is pooled of maps of side `side`.
    pub fn pooled_side(self, side: usize) -> usize {
        side - 2 * inset(side, self.margin)
    }

    /// Weights (and bias) of its projection to `dimension`; as many multiply-adds as weights.
    pub fn projection_weights(self, channels: usize, dimension: usize) -> usize {
        self.rank.map_or(channels * dimension, |rank| channels * rank + rank * dimension)
    }
}

/// W = U S V^T cut after `rank` singular values, as U sqrt(S) and sqrt(S) V^T.
fn low_rank(projection: &Projection, rank: usize) -> (Projection, Projection) {
    let dimension = projection.bias.len();
    let channels = projection.weight.len() / dimension;
    let weight =
        DMatrix::from_row_iterator(channels, dimension, projection.weight.iter().map(|&w| f64::from(w)));
    let rank = rank.min(dimension).min(channels);
    let svd = weight.svd(true, true);
    let (u, v_t) = (svd.u.expect("it was asked for"), svd.v_t.expect("it was asked for"));
    let root = |i: usize| svd.singular_values[i].sqrt();
    let reduce = (0..channels).flat_map(|row| (0..rank).map(move |i| (row, i)));
    let reduce = reduce.map(|(row, i)| (u[(row, i)] * root(i)) as f32).collect();
    let expand = (0..rank).flat_map(|i| (0..dimension).map(move |column| (i, column)));
    let expand = expand.map(|(i, column)| (root(i) * v_t[(i, column)]) as f32).collect();
    (
        Projection { weight: reduce, bias: vec![0.0; rank] },
        Projection { weight: expand, bias: projection.bias.clone() },
    )
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

/// The numbers of a tensor, row-major.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("the tensors here are float tensors")
}

/// Maps without `margin` cells at each edge.
fn middle(maps: Tensor<4>, margin: usize) -> Tensor<4> {
    if margin == 0 {
        return maps;
    }
    let [n, channels, height, width] = maps.dims();
    let kept = |side| inset(side, margin)..side - inset(side, margin);
    maps.slice([0..n, 0..channels, kept(height), kept(width)])
}

/// The margin on a map of this side, which leaves a cell (two, of an even side) at least.
fn inset(side: usize, margin: usize) -> usize {
    margin.min(side.saturating_sub(1) / 2)
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
    fn a_margin_leaves_the_middle_and_never_nothing() {
        let device = Device::flex();
        let maps = Tensor::arange(0..20, &device).float().reshape([1, 1, 4, 5]);
        assert_eq!(values(middle(maps.clone(), 1)), [6.0, 7.0, 8.0, 11.0, 12.0, 13.0]);
        assert_eq!(values(middle(maps.clone(), 9)), [7.0, 12.0], "one cell of five, two of four");
        assert_eq!(values(middle(maps.clone(), 0)), values(maps));
        let config = HeadConfig { margin: 2, ..HeadConfig::default() };
        assert_eq!([9, 5, 4, 1].map(|side| config.pooled_side(side)), [5, 1, 2, 1]);
    }

    #[test]
    fn unit_rows_have_norm_one_and_zero_stays_zero() {
        let device = Device::flex();
        let rows = Tensor::<2>::from_data(TensorData::new(vec![3.0_f32, 4.0, 0.0, 0.0], [2, 2]), &device);
        let values = values(unit(rows));
        assert_eq!(values, [0.6, 0.8, 0.0, 0.0]);
    }

    #[test]
    fn a_low_rank_projection_of_full_rank_is_the_projection() {
        let weight: Vec<f32> = (0..12).map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0).collect();
        let projection = Projection { weight, bias: vec![0.5, -0.5, 0.25] };
        let x = [0.3, -1.0, 2.0, 0.7];
        let whole = projection.apply(&x);
        let through = |rank| {
            let (reduce, expand) = low_rank(&projection, rank);
            assert_eq!(reduce.bias.len(), rank);
            expand.apply(&reduce.apply(&x))
        };
        let error = |rank| through(rank).iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error(3) < 1e-5 && error(1) > 1e-2, "{} {}", error(3), error(1));
    }
}
