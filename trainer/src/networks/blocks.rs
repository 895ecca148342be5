//! What the backbones are made of: convolution with batch norm, inverted bottleneck, shuffle unit.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, PaddingConfig2d};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::plan::{ConvPlan, MbConvPlan, ShufflePlan};

/// What follows a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// min(max(x, 0), 6).
    Relu6,
    /// max(x, 0).
    Relu,
    /// x min(max(x + 3, 0), 6) / 6 (Howard et al., arXiv 1905.02244, section 5.2).
    HardSwish,
}

impl Activation {
    /// Applies it to each element.
    pub fn forward(self, maps: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Relu6 => maps.clamp(0.0, 6.0),
            Self::Relu => maps.clamp_min(0.0),
            Self::HardSwish => maps.clone() * (maps + 3.0).clamp(0.0, 6.0) / 6.0,
        }
    }
}

/// A convolution and the batch norm after it, until that is folded into the convolution's weight and bias.
#[derive(Module, Debug)]
pub struct ConvNorm {
    pub(super) conv: Conv2d,
    pub(super) norm: Option<BatchNorm>,
}

impl ConvNorm {
    pub(super) fn new(plan: &ConvPlan, device: &Device) -> Self {
        let conv = Conv2dConfig::new([plan.channels_in, plan.channels_out], [plan.kernel; 2])
            .with_stride([plan.stride; 2])
            .with_groups(plan.groups)
            .with_padding(padding(plan))
            .with_bias(plan.norm_epsilon.is_none() && plan.bias)
            .init(device);
        let norm = plan
            .norm_epsilon
            .map(|epsilon| BatchNormConfig::new(plan.channels_out).with_epsilon(epsilon).init(device));
        Self { conv, norm }
    }

    pub(super) fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        let maps = convolve(&self.conv, maps);
        match &self.norm {
            // In 32 bits, whatever the maps have: the statistics are sums over a batch.
            Some(norm) => in_f32(maps, |maps| norm.forward(maps)),
            None => maps,
        }
    }

    pub(super) fn channels_out(&self) -> usize {
        self.conv.weight.dims()[0]
    }

    /// gamma (w x - mean) / sqrt(var + epsilon) + beta, as one convolution.
    pub(super) fn fold(self) -> Self {
        let Some(norm) = self.norm else { return self };
        let scale = norm.gamma.val() / (norm.running_var.value() + norm.epsilon).sqrt();
        let bias = norm.beta.val() - norm.running_mean.value() * scale.clone();
        let mut conv = self.conv;
        let [channels] = scale.dims();
        conv.weight = Param::from_tensor(conv.weight.val() * scale.reshape([channels, 1, 1, 1]));
        conv.bias = Some(Param::from_tensor(bias));
        Self { conv, norm: None }
    }
}

/// A convolution in the number format of its input: the weights are kept in 32 bits, and cast where the maps have 16.
pub(super) fn convolve(conv: &Conv2d, maps: Tensor<4>) -> Tensor<4> {
    let format = maps.dtype();
    if format == DType::F32 {
        return conv.forward(maps);
    }
    let PaddingConfig2d::Explicit(top, left, bottom, right) = conv.padding else {
        unreachable!("`padding` makes no other");
    };
    let padding = [(top, bottom), (left, right)];
    let options = ConvOptions::new_with_padding(conv.stride, padding, conv.dilation, conv.groups);
    let bias = conv.bias.as_ref().map(|bias| bias.val().cast(format));
    conv2d(maps, conv.weight.val().cast(format), bias, options)
}

/// `act` in 32 bits, and back to what the maps had. No more than `act` where they have 32.
fn in_f32(maps: Tensor<4>, act: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    let format = maps.dtype();
    act(maps.cast(DType::F32)).cast(format)
}

/// The story of the two paddings is in [`Padding`].
fn padding(plan: &ConvPlan) -> PaddingConfig2d {
    let (before, after) = plan.padding.before_and_after(plan.kernel, plan.stride);
    PaddingConfig2d::Explicit(before, before, after, after)
}

/// One block of a backbone.
#[derive(Module, Debug)]
pub enum Block {
    /// EfficientNet-Lite and both MobileNets.
    MbConv(MbConv),
    /// ShuffleNetV2.
    Shuffle(ShuffleUnit),
}

impl Block {
    pub(super) fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        match self {
            Self::MbConv(block) => block.forward(maps),
            Self::Shuffle(block) => block.forward(maps),
        }
    }

    pub(super) fn channels_out(&self) -> usize {
        match self {
            Self::MbConv(block) => block.project.channels_out(),
            Self::Shuffle(block) => block.channels_out,
        }
    }

    pub(super) fn fold(self) -> Self {
        match self {
            Self::MbConv(block) => Self::MbConv(block.fold()),
            Self::Shuffle(block) => Self::Shuffle(block.fold()),
        }
    }
}

/// Inverted bottleneck: expand 1x1, depthwise, squeeze-excitation where the network has it, project 1x1, and a residual
/// where the shapes allow.
#[derive(Module, Debug)]
pub struct MbConv {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    squeeze: Option<SqueezeExcitation>,
    project: ConvNorm,
    residual: bool,
    #[module(skip)]
    activation: Activation,
}

impl MbConv {
    pub(super) fn new(plan: &MbConvPlan, device: &Device) -> Self {
        Self {
            expand: plan.expand().map(|plan| ConvNorm::new(&plan, device)),
            depthwise: ConvNorm::new(&plan.depthwise(), device),
            squeeze: plan.squeeze().map(|[down, up]| SqueezeExcitation {
                down: ConvNorm::new(&down, device),
                up: ConvNorm::new(&up, device),
            }),
            project: ConvNorm::new(&plan.project(), device),
            residual: plan.residual(),
            activation: plan.activation,
        }
    }

    fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        let inner = match &self.expand {
            Some(expand) => self.activation.forward(expand.forward(maps.clone())),
            None => maps.clone(),
        };
        let inner = self.activation.forward(self.depthwise.forward(inner));
        let inner = match &self.squeeze {
            Some(squeeze) => squeeze.forward(inner),
            None => inner,
        };
        let projected = self.project.forward(inner);
        if self.residual { projected + maps } else { projected }
    }

    fn fold(self) -> Self {
        Self {
            expand: self.expand.map(ConvNorm::fold),
            depthwise: self.depthwise.fold(),
            project: self.project.fold(),
            ..self
        }
    }
}

/// Scales each channel by what all of them are on average: mean, 1x1, ReLU, 1x1, hard sigmoid.
#[derive(Module, Debug)]
pub struct SqueezeExcitation {
    down: ConvNorm,
    up: ConvNorm,
}

impl SqueezeExcitation {
    fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        // A sum over a large map leaves the range of 16-bit floats.
        let mean = in_f32(maps.clone(), |maps| maps.mean_dim(3).mean_dim(2));
        let inner = Activation::Relu.forward(self.down.forward(mean));
        let scale = ((self.up.forward(inner) + 3.0) / 6.0).clamp(0.0, 1.0);
        maps * scale
    }
}

/// Unit of ShuffleNetV2 (Ma et al., arXiv 1807.11164, figure 3 c and d): one half of the channels passes (or is reduced,
/// where the unit halves the maps), the other is convolved, and the two are interleaved.
#[derive(Module, Debug)]
pub struct ShuffleUnit {
    /// Depthwise and 1x1, where the unit halves the maps.
    shortcut: Option<(ConvNorm, ConvNorm)>,
    /// 1x1, depthwise, 1x1.
    branch: (ConvNorm, ConvNorm, ConvNorm),
    #[module(skip)]
    channels_out: usize,
}

impl ShuffleUnit {
    pub(super) fn new(plan: &ShufflePlan, device: &Device) -> Self {
        let [first, depthwise, last] = plan.branch();
        let shortcut = plan.shortcut();
        Self {
            shortcut: shortcut
                .map(|[depthwise, last]| (ConvNorm::new(&depthwise, device), ConvNorm::new(&last, device))),
            branch: (
                ConvNorm::new(&first, device),
                ConvNorm::new(&depthwise, device),
                ConvNorm::new(&last, device),
            ),
            channels_out: plan.channels_out,
        }
    }

    fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        let relu = |maps| Activation::Relu.forward(maps);
        let (passed, convolved) = if let Some((depthwise, last)) = &self.shortcut {
            (relu(last.forward(depthwise.forward(maps.clone()))), maps)
        } else {
            let half = self.channels_out / 2;
            (maps.clone().narrow(1, 0, half), maps.narrow(1, half, half))
        };
        let (first, depthwise, last) = &self.branch;
        let convolved = relu(last.forward(depthwise.forward(relu(first.forward(convolved)))));
        interleave(Tensor::cat(vec![passed, convolved], 1))
    }

    fn fold(self) -> Self {
        let (first, depthwise, last) = self.branch;
        Self {
            shortcut: self.shortcut.map(|(depthwise, last)| (depthwise.fold(), last.fold())),
            branch: (first.fold(), depthwise.fold(), last.fold()),
            channels_out: self.channels_out,
        }
    }
}

/// Channels 0, n/2, 1, n/2 + 1, ...: the channel shuffle of two groups, as one gather, which is the same in every
/// runtime and needs no sizes of the maps.
fn interleave(maps: Tensor<4>) -> Tensor<4> {
    let [_, channels, _, _] = maps.dims();
    let half = channels / 2;
    let order: Vec<i32> = (0..channels).map(|i| (i / 2 + (i % 2) * half) as i32).collect();
    let order = Tensor::<1, Int>::from_data(TensorData::new(order, [channels]), &maps.device());
    maps.select(1, order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::plan::Padding;
    use crate::networks::values;

    #[test]
    fn activations_are_what_they_say() {
        let device = Device::flex();
        let x = [-4.0_f32, -1.0, 0.0, 2.0, 5.0, 9.0];
        let apply = |activation: Activation| {
            let maps = Tensor::<4>::from_data(TensorData::new(x.to_vec(), [1, 6, 1, 1]), &device);
            values(activation.forward(maps))
        };
        assert_eq!(apply(Activation::Relu6), [0.0, 0.0, 0.0, 2.0, 5.0, 6.0]);
        assert_eq!(apply(Activation::Relu), [0.0, 0.0, 0.0, 2.0, 5.0, 9.0]);
        let expected = [0.0, -1.0 / 3.0, 0.0, 5.0 / 3.0, 5.0, 9.0];
        assert!(apply(Activation::HardSwish).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn channels_of_the_two_halves_alternate() {
        let device = Device::flex();
        let maps = Tensor::<4>::from_data(
            TensorData::new((0..12).map(|i| i as f32).collect(), [1, 6, 1, 2]),
            &device,
        );
        assert_eq!(values(interleave(maps)), [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
    }

    #[test]
    fn the_excitation_scales_channels_by_their_means() {
        let device = Device::flex();
        let plan = ConvPlan {
            channels_in: 1,
            channels_out: 1,
            kernel: 1,
            stride: 1,
            groups: 1,
            padding: Padding::Symmetric,
            norm_epsilon: None,
            bias: true,
        };
        let constant = |weight: f32, bias: f32| {
            let mut conv = ConvNorm::new(&plan, &device);
            conv.conv.weight = Param::from_tensor(Tensor::full([1, 1, 1, 1], weight, &device));
            conv.conv.bias = Some(Param::from_tensor(Tensor::full([1], bias, &device)));
            conv
        };
        let block = SqueezeExcitation { down: constant(2.0, -1.0), up: constant(0.5, 0.25) };
        let maps = Tensor::<4>::from_data(TensorData::new(vec![1.0_f32, 2.0], [1, 1, 1, 2]), &device);
        // Mean 1.5, 2 x 1.5 - 1 = 2, 0.5 x 2 + 0.25 = 1.25, (1.25 + 3) / 6.
        let scale = 4.25 / 6.0;
        let scaled = values(block.forward(maps));
        assert!((scaled[0] - scale).abs() < 1e-6 && (scaled[1] - 2.0 * scale).abs() < 1e-6, "{scaled:?}");
    }
}
