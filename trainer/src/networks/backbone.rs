//! A backbone in stages, and the query network that it makes with a head.

use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::tensor::{Device, Tensor};

use super::blocks::{Activation, Block, ConvNorm, MbConv, ShuffleUnit};
use super::head::Head;
use super::plan::{BlockPlan, Plan};

/// Stem and stages: image `[N, 3, H, W]` to maps `[N, C, H/32, W/32]` (larger maps where stages were cut off).
#[derive(Module, Debug)]
pub struct Backbone {
    stem: ConvNorm,
    blocks: Vec<Block>,
    /// For each stage the number of blocks up to its end.
    #[module(skip)]
    stage_ends: Vec<usize>,
    max_pool: Option<MaxPool2d>,
    #[module(skip)]
    activation: Activation,
}

impl Backbone {
    pub(super) fn new(plan: &Plan, device: &Device) -> Self {
        let blocks = plan.stages.iter().flatten().map(|block| match block {
            BlockPlan::MbConv(plan) => Block::MbConv(MbConv::new(plan, device)),
            BlockPlan::Shuffle(plan) => Block::Shuffle(ShuffleUnit::new(plan, device)),
        });
        let mut end = 0;
        let stage_ends = plan.stages.iter().map(|stage| {
            end += stage.len();
            end
        });
        Self {
            stem: ConvNorm::new(&plan.stem, device),
            stage_ends: stage_ends.collect(),
            blocks: blocks.collect(),
            max_pool: plan.max_pool.then(|| {
                let pool = MaxPool2dConfig::new([3, 3]).with_strides([2, 2]);
                pool.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init()
            }),
            activation: plan.activation,
        }
    }

    /// Image `[N, 3, H, W]`, normalised as the architecture wants it, to the maps of the last stage.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        self.forward_after(0, self.forward_to(0, image))
    }

    /// Image to the maps after `stage` stages; 0 is the stem alone.
    pub fn forward_to(&self, stage: usize, image: Tensor<4>) -> Tensor<4> {
        let mut maps = self.activation.forward(self.stem.forward(image));
        if let Some(pool) = &self.max_pool {
            maps = pool.forward(maps);
        }
        self.blocks[..self.blocks_before(stage)].iter().fold(maps, |maps, block| block.forward(maps))
    }

    /// The maps after `stage` stages to those of the last stage.
    pub fn forward_after(&self, stage: usize, maps: Tensor<4>) -> Tensor<4> {
        self.blocks[self.blocks_before(stage)..].iter().fold(maps, |maps, block| block.forward(maps))
    }

    /// Channels of the maps after `stage` stages.
    pub fn channels_after(&self, stage: usize) -> usize {
        match self.blocks_before(stage).checked_sub(1) {
            Some(last) => self.blocks[last].channels_out(),
            None => self.stem.channels_out(),
        }
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stage_ends.len()
    }

    /// Blocks up to the end of a stage.
    fn blocks_before(&self, stage: usize) -> usize {
        match stage.min(self.stages()).checked_sub(1) {
            Some(last) => self.stage_ends[last],
            None => 0,
        }
    }

    /// Whether a parameter of this path (within the backbone) belongs to stem or stages up to `stage`.
    pub(super) fn is_before(&self, stage: usize, path: &str) -> bool {
        let mut parts = path.split('.');
        match (parts.next(), parts.next().and_then(|number| number.parse::<usize>().ok())) {
            (Some("blocks"), Some(block)) => block < self.blocks_before(stage),
            _ => true,
        }
    }

    /// Folds every batch norm into its convolution: the same function, frozen statistics, half the nodes.
    pub fn fold(self) -> Self {
        Self { stem: self.stem.fold(), blocks: self.blocks.into_iter().map(Block::fold).collect(), ..self }
    }
}

/// Backbone and head: image to unit embedding, or to unit features while the head has no projection.
#[derive(Module, Debug)]
pub struct EmbeddingNetwork {
    /// Image to maps.
    pub backbone: Backbone,
    /// Maps to embedding.
    pub head: Head,
}

impl EmbeddingNetwork {
    /// Image `[N, 3, H, W]` to unit vectors `[N, D]`.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<2> {
        self.head.forward(self.backbone.forward(image))
    }

    /// The input of training to unit vectors: images for [`Frozen::Nothing`], else the maps after the frozen stages.
    pub fn forward_after(&self, frozen: Frozen, input: Tensor<4>) -> Tensor<2> {
        match frozen {
            Frozen::Nothing => self.forward(input),
            Frozen::Stages(stage) => self.head.forward(self.backbone.forward_after(stage, input)),
        }
    }

    /// The input of training to unit features `[N, channels]`, before the projection.
    pub fn pool_after(&self, frozen: Frozen, input: Tensor<4>) -> Tensor<2> {
        self.head.pool(match frozen {
            Frozen::Nothing => self.backbone.forward(input),
            Frozen::Stages(stage) => self.backbone.forward_after(stage, input),
        })
    }

    /// Folds every batch norm into its convolution.
    pub fn fold(self) -> Self {
        Self { backbone: self.backbone.fold(), head: self.head.fold() }
    }

    /// Whether training changes the parameter of this path.
    pub fn is_trained(&self, frozen: Frozen, path: &str) -> bool {
        match (frozen, path.strip_prefix("backbone.")) {
            (Frozen::Nothing, _) | (_, None) => true,
            (Frozen::Stages(stage), Some(path)) => !self.backbone.is_before(stage, path),
        }
    }
}

/// What training leaves as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    /// The whole network is trained, on photos.
    Nothing,
    /// Stem and so many stages are frozen, and their maps are cached.
    Stages(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::{Architecture, values};

    fn image(device: &Device) -> Tensor<4> {
        Tensor::random([2, 3, 64, 32], burn::tensor::Distribution::Uniform(-1.0, 1.0), device)
    }

    /// The norms of a new network do nothing; these do something.
    fn disturbed(name: &str, device: &Device) -> Backbone {
        let training = device.clone().autodiff();
        let network = name.parse::<Architecture>().unwrap().init(&training);
        for _ in 0..2 {
            network.backbone.forward(image(&training));
        }
        network.valid().backbone
    }

    #[test]
    fn folding_keeps_the_function_of_every_family() {
        let device = Device::flex();
        for name in ["miniature", "mobilenet-v2-x0.25", "mobilenet-v3-small-x0.25", "shufflenet-v2-x0.2"] {
            let backbone = disturbed(name, &device);
            let image = image(&device);
            let before = backbone.forward(image.clone());
            assert_eq!(before.dims()[2..], [2, 1], "{name}");
            let largest: f32 = before.clone().abs().max().into_scalar();
            let after = backbone.fold().forward(image);
            let difference: f32 = (before - after).abs().max().into_scalar();
            assert!(
                difference < 1e-4 * largest.max(1.0) && largest > 1e-6,
                "{name}: {difference} of {largest}"
            );
        }
    }

    #[test]
    fn the_stages_one_after_the_other_are_the_whole() {
        let device = Device::flex();
        let backbone = disturbed("shufflenet-v2-x0.2", &device);
        let image = image(&device);
        let whole = values(backbone.forward(image.clone()));
        for stage in 0..=backbone.stages() {
            let maps = backbone.forward_to(stage, image.clone());
            assert_eq!(values(backbone.forward_after(stage, maps)), whole, "{stage}");
        }
    }

    #[test]
    fn what_is_frozen_is_what_comes_first() {
        let network = Architecture::MINIATURE.init(&Device::flex());
        // Two stages of one block each come before block 2.
        let trained = |path| network.is_trained(Frozen::Stages(2), path);
        assert!(!trained("backbone.stem.conv.weight") && !trained("backbone.blocks.1.project.conv.weight"));
        assert!(trained("backbone.blocks.2.expand.conv.weight") && trained("head.linear.bias"));
        assert!(network.is_trained(Frozen::Nothing, "backbone.stem.conv.weight"));
    }
}
