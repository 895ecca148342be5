//! EfficientNet-Lite 0 to 4: MBConv blocks without squeeze-excitation, ReLU6 only.
//!
//! Table of stages and scaling: "EfficientNet: Rethinking Model Scaling" (Tan and Le, arXiv 1905.11946), table 1, with
//! the Lite changes of the TensorFlow release (stem and head are not scaled, nor the depth of the first and
//! last stage).
//!
//! **Padding.** The weights were trained with TensorFlow's SAME padding, which depends on the input's size. For sides that
//! are multiples of 32 every stride-2 layer sees an even size, and SAME is then always one pixel more at the
//! bottom and right: (0, 1) for a kernel of 3, (1, 2) for 5. We fix it so, and the graph has no size-dependent
//! padding. Other sizes run too, with a border that the weights did not see in training.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use super::head::Head;

/// TensorFlow's batch norm constant for these weights.
const NORM_EPSILON: f64 = 1e-3;
/// Channels after the stem and after the head's convolution: the Lite family does not scale them.
const STEM_CHANNELS: usize = 32;
const HEAD_CHANNELS: usize = 1280;

/// One row of table 1, before scaling.
struct Stage {
    repeats: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
}

#[rustfmt::skip]
const STAGES: [Stage; 7] = [
    Stage { repeats: 1, kernel: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { repeats: 2, kernel: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { repeats: 2, kernel: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { repeats: 3, kernel: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { repeats: 3, kernel: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { repeats: 4, kernel: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { repeats: 1, kernel: 3, stride: 1, expansion: 6, channels: 320 },
];

/// Which member of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 4.7 M parameters with its classifier, native input 224.
    EfficientNetLite0,
    /// Native input 240.
    EfficientNetLite1,
    /// 6.1 M parameters with its classifier, native input 260.
    EfficientNetLite2,
    /// Native input 280.
    EfficientNetLite3,
    /// Native input 300.
    EfficientNetLite4,
    /// A random-weight miniature for tests: eight channels a stage at most, no checkpoint exists.
    Miniature,
}

impl Architecture {
    /// All that have checkpoints.
    pub const ALL: [Self; 5] = [
        Self::EfficientNetLite0,
        Self::EfficientNetLite1,
        Self::EfficientNetLite2,
        Self::EfficientNetLite3,
        Self::EfficientNetLite4,
    ];

    /// The name on command lines and in run folders.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EfficientNetLite0 => "efficientnet-lite0",
            Self::EfficientNetLite1 => "efficientnet-lite1",
            Self::EfficientNetLite2 => "efficientnet-lite2",
            Self::EfficientNetLite3 => "efficientnet-lite3",
            Self::EfficientNetLite4 => "efficientnet-lite4",
            Self::Miniature => "miniature",
        }
    }

    /// Width and depth factors.
    const fn scaling(self) -> (f64, f64) {
        match self {
            Self::EfficientNetLite0 => (1.0, 1.0),
            Self::EfficientNetLite1 => (1.0, 1.1),
            Self::EfficientNetLite2 => (1.1, 1.2),
            Self::EfficientNetLite3 => (1.2, 1.4),
            Self::EfficientNetLite4 => (1.4, 1.8),
            Self::Miniature => (0.01, 0.4),
        }
    }

    /// Channels of a stage: the scaled number rounded to a multiple of 8, never more than 10 % down.
    fn channels(self, stage: &Stage) -> usize {
        let scaled = self.scaling().0 * stage.channels as f64;
        let rounded = (((scaled + 4.0) / 8.0).floor() * 8.0).max(8.0);
        (if rounded < 0.9 * scaled { rounded + 8.0 } else { rounded }) as usize
    }

    fn repeats(self, index: usize, stage: &Stage) -> usize {
        let fixed = index == 0 || index == STAGES.len() - 1;
        if fixed { stage.repeats } else { (self.scaling().1 * stage.repeats as f64).ceil() as usize }
    }

    /// Channels of the backbone's maps.
    pub fn map_channels(self) -> usize {
        STAGES.last().map_or(STEM_CHANNELS, |stage| self.channels(stage))
    }

    /// Channels after the head's convolution, which is the dimension of raw features.
    pub fn feature_channels(self) -> usize {
        if self == Self::Miniature { 16 } else { HEAD_CHANNELS }
    }

    /// The network with random weights.
    pub fn init(self, device: &Device) -> Pretrained {
        let mut blocks = Vec::new();
        let mut channels = STEM_CHANNELS;
        for (index, stage) in STAGES.iter().enumerate() {
            let channels_out = self.channels(stage);
            for repeat in 0..self.repeats(index, stage) {
                let stride = if repeat == 0 { stage.stride } else { 1 };
                blocks.push(MbConv::new(channels, channels_out, stage, stride, device));
                channels = channels_out;
            }
        }
        Pretrained {
            backbone: Backbone { stem: ConvNorm::new([3, STEM_CHANNELS], 3, 2, 1, device), blocks },
            head: ConvNorm::new([channels, self.feature_channels()], 1, 1, 1, device),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|architecture| architecture.name()).collect();
            format!("unknown network '{text}': the networks are {}", names.join(", "))
        })
    }
}

/// What a checkpoint holds, apart from its classifier: every convolution with its own batch norm.
#[derive(Module, Debug)]
pub struct Pretrained {
    backbone: Backbone,
    head: ConvNorm,
}

impl Pretrained {
    /// Folds every batch norm into its convolution: the same function, frozen statistics, half the nodes.
    pub fn fold(self) -> EfficientNet {
        EfficientNet {
            backbone: self.backbone.fold(),
            head: Head { conv: self.head.fold().conv, linear: None },
        }
    }
}

/// A folded network: the frozen backbone, and a head without a projection yet.
#[derive(Debug, Clone)]
pub struct EfficientNet {
    /// Up to and with the last MBConv stage.
    pub backbone: Backbone,
    /// The last 1x1 convolution.
    pub head: Head,
}

/// Stem and MBConv stages: image `[N, 3, H, W]` to maps `[N, C, H/32, W/32]`.
#[derive(Module, Debug)]
pub struct Backbone {
    stem: ConvNorm,
    blocks: Vec<MbConv>,
}

impl Backbone {
    /// Image `[N, 3, H, W]`, normalised as [`preprocessing`](super::preprocessing) does, to maps `[N, C, H/32, W/32]`, which
    /// are linear (no activation follows the last projection).
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let stem = relu6(self.stem.forward(image));
        self.blocks.iter().fold(stem, |maps, block| block.forward(maps))
    }

    fn fold(self) -> Self {
        Self { stem: self.stem.fold(), blocks: self.blocks.into_iter().map(MbConv::fold).collect() }
    }
}

/// Inverted bottleneck: expand 1x1, depthwise, project 1x1, and a residual where the shapes allow.
#[derive(Module, Debug)]
pub struct MbConv {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    project: ConvNorm,
    residual: bool,
}

impl MbConv {
    fn new(channels: usize, channels_out: usize, stage: &Stage, stride: usize, device: &Device) -> Self {
        let inner = channels * stage.expansion;
        Self {
            expand: (stage.expansion > 1).then(|| ConvNorm::new([channels, inner], 1, 1, 1, device)),
            depthwise: ConvNorm::new([inner, inner], stage.kernel, stride, inner, device),
            project: ConvNorm::new([inner, channels_out], 1, 1, 1, device),
            residual: stride == 1 && channels == channels_out,
        }
    }

    fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        let inner = match &self.expand {
            Some(expand) => relu6(expand.forward(maps.clone())),
            None => maps.clone(),
        };
        let inner = relu6(self.depthwise.forward(inner));
        let projected = self.project.forward(inner);
        if self.residual { projected + maps } else { projected }
    }

    fn fold(self) -> Self {
        Self {
            expand: self.expand.map(ConvNorm::fold),
            depthwise: self.depthwise.fold(),
            project: self.project.fold(),
            residual: self.residual,
        }
    }
}

/// A convolution and the batch norm after it, until that is folded into the convolution's weight and bias.
#[derive(Module, Debug)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: Option<BatchNorm>,
}

impl ConvNorm {
    fn new(channels: [usize; 2], kernel: usize, stride: usize, groups: usize, device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new(channels, [kernel; 2])
                .with_stride([stride; 2])
                .with_groups(groups)
                .with_padding(same_padding(kernel, stride))
                .with_bias(false)
                .init(device),
            norm: Some(BatchNormConfig::new(channels[1]).with_epsilon(NORM_EPSILON).init(device)),
        }
    }

    fn forward(&self, maps: Tensor<4>) -> Tensor<4> {
        let maps = self.conv.forward(maps);
        match &self.norm {
            Some(norm) => norm.forward(maps),
            None => maps,
        }
    }

    /// gamma (w x - mean) / sqrt(var + epsilon) + beta, as one convolution.
    fn fold(self) -> Self {
        let Some(norm) = self.norm else { return self };
        let scale = norm.gamma.val() / (norm.running_var.value() + NORM_EPSILON).sqrt();
        let bias = norm.beta.val() - norm.running_mean.value() * scale.clone();
        let mut conv = self.conv;
        let [channels] = scale.dims();
        conv.weight = Param::from_tensor(conv.weight.val() * scale.reshape([channels, 1, 1, 1]));
        conv.bias = Some(Param::from_tensor(bias));
        Self { conv, norm: None }
    }
}

/// SAME padding for even input sizes; see the module's story.
fn same_padding(kernel: usize, stride: usize) -> PaddingConfig2d {
    let total = kernel - stride.min(kernel);
    let (before, after) = (total / 2, total - total / 2);
    PaddingConfig2d::Explicit(before, before, after, after)
}

fn relu6(maps: Tensor<4>) -> Tensor<4> {
    maps.clamp(0.0, 6.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stride_two_pads_one_more_at_the_end() {
        assert_eq!(same_padding(3, 2), PaddingConfig2d::Explicit(0, 0, 1, 1));
        assert_eq!(same_padding(5, 2), PaddingConfig2d::Explicit(1, 1, 2, 2));
        assert_eq!(same_padding(3, 1), PaddingConfig2d::Explicit(1, 1, 1, 1));
        assert_eq!(same_padding(1, 1), PaddingConfig2d::Explicit(0, 0, 0, 0));
    }

    #[test]
    fn scaling_follows_the_published_family() {
        let shape = |architecture: Architecture| -> (Vec<usize>, Vec<usize>) {
            STAGES
                .iter()
                .enumerate()
                .map(|(i, stage)| (architecture.channels(stage), architecture.repeats(i, stage)))
                .unzip()
        };
        assert_eq!(
            shape(Architecture::EfficientNetLite0),
            (vec![16, 24, 40, 80, 112, 192, 320], vec![1, 2, 2, 3, 3, 4, 1])
        );
        assert_eq!(
            shape(Architecture::EfficientNetLite2),
            (vec![16, 24, 48, 88, 120, 208, 352], vec![1, 3, 3, 4, 4, 5, 1])
        );
    }

    #[test]
    fn folding_keeps_the_function() {
        let device = Device::flex();
        device.seed(3);
        let network = Architecture::Miniature.init(&device);
        let image =
            Tensor::<4>::random([2, 3, 64, 32], burn::tensor::Distribution::Uniform(-1.0, 1.0), &device);
        let before = network.backbone.forward(image.clone());
        assert_eq!(before.dims(), [2, 8, 2, 1]);
        let after = network.fold().backbone.forward(image);
        let difference: f32 = (before - after).abs().max().into_scalar();
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn names_round_trip() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.name().parse(), Ok(architecture));
        }
        assert!("resnet".parse::<Architecture>().is_err());
    }
}
