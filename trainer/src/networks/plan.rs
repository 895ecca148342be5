//! Shapes of the networks as plain data: modules, parameter counts and multiply-adds are all made from one plan.

use super::blocks::Activation;

/// How a convolution's border is filled with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// As many before as after: PyTorch's networks.
    Symmetric,
    /// TensorFlow's SAME, which depends on the input's size. For sides that are multiples of 32 every stride-2 layer sees
    /// an even size, and SAME is then always one pixel more at the bottom and right: (0, 1) for a kernel of 3, (1, 2)
    /// for 5. We fix it so, and the graph has no size-dependent padding. Other sizes run too, with a border that the
    /// weights did not see in training.
    SameOfEven,
}

impl Padding {
    /// Pixels before and after, along each axis.
    pub fn before_and_after(self, kernel: usize, stride: usize) -> (usize, usize) {
        match self {
            Self::Symmetric => (kernel / 2, kernel / 2),
            Self::SameOfEven => {
                let total = kernel - stride.min(kernel);
                (total / 2, total - total / 2)
            }
        }
    }
}

/// One convolution, with its batch norm where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvPlan {
    /// Channels of the maps that come in.
    pub channels_in: usize,
    /// Channels of those that go out.
    pub channels_out: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// 1, or 2 to halve height and width.
    pub stride: usize,
    /// Equal to the channels for a depthwise convolution.
    pub groups: usize,
    /// How the border is filled.
    pub padding: Padding,
    /// Of the batch norm; `None` where there is no norm.
    pub norm_epsilon: Option<f64>,
    /// Whether a convolution without norm has a bias.
    pub bias: bool,
}

impl ConvPlan {
    /// Weights and biases; a batch norm counts as its scale and bias, as published tables do.
    pub fn parameters(&self) -> usize {
        let weights = self.channels_in / self.groups * self.channels_out * self.kernel * self.kernel;
        let offsets = match (self.norm_epsilon, self.bias) {
            (Some(_), _) => 2 * self.channels_out,
            (None, true) => self.channels_out,
            (None, false) => 0,
        };
        weights + offsets
    }

    /// Multiply-adds on maps of height and width `side`, and the side of what comes out.
    fn cost(&self, side: usize) -> (u64, usize) {
        let side = side.div_ceil(self.stride);
        let each = self.channels_in / self.groups * self.channels_out * self.kernel * self.kernel;
        (each as u64 * (side * side) as u64, side)
    }
}

/// Norm, padding and activation that a whole network shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Style {
    pub(super) padding: Padding,
    pub(super) norm_epsilon: f64,
}

impl Style {
    pub(super) fn conv(self, channels: [usize; 2], kernel: usize, stride: usize, groups: usize) -> ConvPlan {
        ConvPlan {
            channels_in: channels[0],
            channels_out: channels[1],
            kernel,
            stride,
            groups,
            padding: self.padding,
            norm_epsilon: Some(self.norm_epsilon),
            bias: false,
        }
    }
}

/// An inverted bottleneck.
#[derive(Debug, Clone, PartialEq)]
pub struct MbConvPlan {
    pub(super) style: Style,
    pub(super) channels_in: usize,
    pub(super) inner: usize,
    pub(super) channels_out: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Channels between the two layers of the squeeze-excitation.
    pub(super) squeeze_channels: Option<usize>,
    pub(super) activation: Activation,
}

impl MbConvPlan {
    pub(super) fn expand(&self) -> Option<ConvPlan> {
        (self.inner != self.channels_in).then(|| self.style.conv([self.channels_in, self.inner], 1, 1, 1))
    }

    pub(super) fn depthwise(&self) -> ConvPlan {
        self.style.conv([self.inner; 2], self.kernel, self.stride, self.inner)
    }

    pub(super) fn squeeze(&self) -> Option<[ConvPlan; 2]> {
        let plain =
            |channels| ConvPlan { norm_epsilon: None, bias: true, ..self.style.conv(channels, 1, 1, 1) };
        self.squeeze_channels.map(|squeezed| [plain([self.inner, squeezed]), plain([squeezed, self.inner])])
    }

    pub(super) fn project(&self) -> ConvPlan {
        self.style.conv([self.inner, self.channels_out], 1, 1, 1)
    }

    pub(super) fn residual(&self) -> bool {
        self.stride == 1 && self.channels_in == self.channels_out
    }
}

/// A unit of ShuffleNetV2.
#[derive(Debug, Clone, PartialEq)]
pub struct ShufflePlan {
    pub(super) style: Style,
    pub(super) channels_in: usize,
    pub(super) channels_out: usize,
    pub(super) stride: usize,
}

impl ShufflePlan {
    pub(super) fn branch(&self) -> [ConvPlan; 3] {
        let half = self.channels_out / 2;
        let channels_in = if self.stride == 1 { half } else { self.channels_in };
        [
            self.style.conv([channels_in, half], 1, 1, 1),
            self.style.conv([half, half], 3, self.stride, half),
            self.style.conv([half, half], 1, 1, 1),
        ]
    }

    pub(super) fn shortcut(&self) -> Option<[ConvPlan; 2]> {
        (self.stride != 1).then(|| {
            [
                self.style.conv([self.channels_in; 2], 3, self.stride, self.channels_in),
                self.style.conv([self.channels_in, self.channels_out / 2], 1, 1, 1),
            ]
        })
    }
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockPlan {
    /// See [`MbConvPlan`].
    MbConv(MbConvPlan),
    /// See [`ShufflePlan`].
    Shuffle(ShufflePlan),
}

impl BlockPlan {
    pub(super) fn channels_out(&self) -> usize {
        match self {
            Self::MbConv(plan) => plan.channels_out,
            Self::Shuffle(plan) => plan.channels_out,
        }
    }

    /// Its convolutions, and whether each runs on the block's input size (`true`) or its output size. The layers of a
    /// squeeze-excitation run on one pixel and are left out.
    fn convs(&self) -> Vec<(ConvPlan, bool)> {
        match self {
            Self::MbConv(plan) => {
                let expand = plan.expand().map(|expand| (expand, true));
                expand.into_iter().chain([(plan.depthwise(), true), (plan.project(), false)]).collect()
            }
            Self::Shuffle(plan) => {
                let [first, depthwise, last] = plan.branch();
                let shortcut = plan.shortcut().into_iter().flatten().zip([true, false]);
                shortcut.chain([(first, true), (depthwise, true), (last, false)]).collect()
            }
        }
    }

    fn pixel_convs(&self) -> Vec<ConvPlan> {
        match self {
            Self::MbConv(plan) => plan.squeeze().into_iter().flatten().collect(),
            Self::Shuffle(_) => Vec::new(),
        }
    }

    fn stride(&self) -> usize {
        match self {
            Self::MbConv(plan) => plan.stride,
            Self::Shuffle(plan) => plan.stride,
        }
    }
}

/// A whole backbone with the last convolution of its head.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The first convolution, which halves the image.
    pub stem: ConvPlan,
    /// Whether a max-pooling halves the maps after the stem.
    pub max_pool: bool,
    /// Blocks by stage.
    pub stages: Vec<Vec<BlockPlan>>,
    /// After the stem, and after the head's convolution.
    pub activation: Activation,
    /// The network's own last convolution; `None` where stages were cut off before it.
    pub last: Option<ConvPlan>,
}

/// What a network needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Weights and biases.
    pub parameters: usize,
    /// Products and sums for one image.
    pub multiply_adds: u64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parameters: self.parameters + other.parameters,
            multiply_adds: self.multiply_adds + other.multiply_adds,
        }
    }
}

impl Plan {
    /// Channels of the backbone's maps.
    pub fn map_channels(&self) -> usize {
        self.stages.iter().flatten().next_back().map_or(self.stem.channels_out, BlockPlan::channels_out)
    }

    /// Stem and stages for an image of `side` x `side` pixels, one after the other, and the side of the maps after each.
    pub fn stage_costs(&self, side: usize) -> Vec<(Cost, usize)> {
        let (multiply_adds, mut side) = self.stem.cost(side);
        if self.max_pool {
            side = side.div_ceil(2);
        }
        let mut costs = vec![(Cost { parameters: self.stem.parameters(), multiply_adds }, side)];
        for stage in &self.stages {
            let mut cost = Cost::default();
            for block in stage {
                for (conv, before) in block.convs() {
                    let at = if before { side } else { side.div_ceil(block.stride()) };
                    cost = cost + Cost { parameters: conv.parameters(), multiply_adds: conv.cost(at).0 };
                }
                for conv in block.pixel_convs() {
                    cost = cost + Cost { parameters: conv.parameters(), multiply_adds: conv.cost(1).0 };
                }
                side = side.div_ceil(block.stride());
            }
            costs.push((cost, side));
        }
        costs
    }

    /// A 1x1 convolution on maps of side `side`.
    pub fn conv_cost(conv: &ConvPlan, side: usize) -> Cost {
        Cost { parameters: conv.parameters(), multiply_adds: conv.cost(side).0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_of_stride_two_has_one_more_at_the_end() {
        assert_eq!(Padding::SameOfEven.before_and_after(3, 2), (0, 1));
        assert_eq!(Padding::SameOfEven.before_and_after(5, 2), (1, 2));
        assert_eq!(Padding::SameOfEven.before_and_after(3, 1), (1, 1));
        assert_eq!(Padding::SameOfEven.before_and_after(1, 1), (0, 0));
        assert_eq!(Padding::Symmetric.before_and_after(5, 2), (2, 2));
    }
}
