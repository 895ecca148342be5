//! Which networks there are: families, widths, and where they are cut.
//!
//! | family | table | pretrained weights |
//! |---|---|---|
//! | EfficientNet-Lite 0 to 4 | "EfficientNet: Rethinking Model Scaling" (Tan and Le, arXiv 1905.11946), table 1, with the Lite changes of the TensorFlow release: no squeeze-excitation, ReLU6, stem, head and the depth of first and last stage not scaled | TensorFlow's, padding included |
//! | MobileNetV2 | "MobileNetV2" (Sandler et al., arXiv 1801.04381), table 2 | width 1.0 |
//! | MobileNetV3-Small | "Searching for MobileNetV3" (Howard et al., arXiv 1905.02244), table 2 | none in a package |
//! | ShuffleNetV2 | "ShuffleNet V2" (Ma et al., arXiv 1807.11164), table 5 | none in a package |

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use glimpse_embedder::Preprocessing;

use super::backbone::{Backbone, EmbeddingNetwork};
use super::blocks::Activation;
use super::head::Head;
use super::plan::{BlockPlan, MbConvPlan, Padding, Plan, ShufflePlan, Style};

/// A family of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// EfficientNet-Lite, 0 to 4.
    EfficientNetLite(u8),
    /// MobileNetV2.
    MobileNetV2,
    /// MobileNetV3-Small.
    MobileNetV3Small,
    /// ShuffleNetV2.
    ShuffleNetV2,
    /// For tests: eight channels a stage at most.
    Miniature,
}

impl Family {
    const ALL: [Self; 9] = [
        Self::EfficientNetLite(0),
        Self::EfficientNetLite(1),
        Self::EfficientNetLite(2),
        Self::EfficientNetLite(3),
        Self::EfficientNetLite(4),
        Self::MobileNetV2,
        Self::MobileNetV3Small,
        Self::ShuffleNetV2,
        Self::Miniature,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::EfficientNetLite(0) => "efficientnet-lite0",
            Self::EfficientNetLite(1) => "efficientnet-lite1",
            Self::EfficientNetLite(2) => "efficientnet-lite2",
            Self::EfficientNetLite(3) => "efficientnet-lite3",
            Self::EfficientNetLite(_) => "efficientnet-lite4",
            Self::MobileNetV2 => "mobilenet-v2",
            Self::MobileNetV3Small => "mobilenet-v3-small",
            Self::ShuffleNetV2 => "shufflenet-v2",
            Self::Miniature => "miniature",
        }
    }
}

/// A network: its family, its width in hundredths, and after which stage it is cut (all stages where `None`).
///
/// Written `FAMILY[-xWIDTH][-sSTAGES]`: `mobilenet-v2-x0.5`, `shufflenet-v2-x1.0`, `efficientnet-lite0-s5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Architecture {
    family: Family,
    width_percent: u16,
    stages: Option<u8>,
}

/// Widths that a factor may have.
const WIDTHS_PERCENT: std::ops::RangeInclusive<u16> = 10..=200;

impl Architecture {
    /// 3.4 M parameters without its classifier, native input 224.
    pub const EFFICIENTNET_LITE0: Self = Self::whole(Family::EfficientNetLite(0));
    /// 2.2 M parameters without its classifier, native input 224.
    pub const MOBILENET_V2: Self = Self::whole(Family::MobileNetV2);
    /// 0.9 M parameters without its classifier, native input 224.
    pub const MOBILENET_V3_SMALL: Self = Self::whole(Family::MobileNetV3Small);
    /// 1.3 M parameters without its classifier, native input 224.
    pub const SHUFFLENET_V2: Self = Self::whole(Family::ShuffleNetV2);
    /// For tests.
    pub const MINIATURE: Self = Self::whole(Family::Miniature);

    const fn whole(family: Family) -> Self {
        Self { family, width_percent: 100, stages: None }
    }

    /// Every network that `describe` lists.
    pub fn listed() -> Vec<Self> {
        let whole = Family::ALL.into_iter().filter(|family| *family != Family::Miniature).map(Self::whole);
        whole
            .flat_map(|network| match network.family {
                Family::ShuffleNetV2 => vec![Self { width_percent: 50, ..network }, network],
                _ => vec![network],
            })
            .collect()
    }

    /// Its family.
    pub fn family(self) -> Family {
        self.family
    }

    /// Channels after the network's own last convolution, which is the dimension of raw features; of the maps, where
    /// stages were cut off before it.
    pub fn feature_channels(self) -> usize {
        let plan = self.plan();
        plan.last.as_ref().map_or(plan.map_channels(), |last| last.channels_out)
    }

    /// What the network expects of a photo squashed to `size` x `size`.
    pub fn preprocessing(self, size: u32) -> Preprocessing {
        match self.family {
            // Levels centred on 127 and divided by 128, as TensorFlow's weights were trained.
            Family::EfficientNetLite(_) | Family::Miniature => {
                Preprocessing { width: size, height: size, mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] }
            }
            // The mean and deviation of ImageNet's pixels, as PyTorch's weights were trained.
            _ => Preprocessing {
                width: size,
                height: size,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
            },
        }
    }

    /// The network with random weights; its head has the network's own last convolution where there is one, else a
    /// fresh one of as many channels as the maps have, times four.
    pub fn init(self, device: &Device) -> EmbeddingNetwork {
        let plan = self.plan();
        let backbone = Backbone::new(&plan, device);
        EmbeddingNetwork { backbone, head: Head::new(&plan, device) }
    }

    /// Its shapes.
    pub fn plan(self) -> Plan {
        let mut plan = match self.family {
            Family::EfficientNetLite(number) => {
                self.efficientnet_lite(LITE_SCALING[usize::from(number.min(4))])
            }
            Family::Miniature => self.efficientnet_lite((0.01, 0.4)),
            Family::MobileNetV2 => self.mobilenet_v2(),
            Family::MobileNetV3Small => self.mobilenet_v3_small(),
            Family::ShuffleNetV2 => self.shufflenet_v2(),
        };
        if let Some(stages) = self.stages.map(usize::from).filter(|stages| *stages < plan.stages.len()) {
            plan.stages.truncate(stages);
            plan.last = None;
        }
        plan
    }

    fn width(self) -> f64 {
        f64::from(self.width_percent) / 100.0
    }

    fn efficientnet_lite(self, (width, depth): (f64, f64)) -> Plan {
        let style = Style { padding: Padding::SameOfEven, norm_epsilon: 1e-3 };
        let mini = self.family == Family::Miniature;
        let (stem, features) = (32, if mini { 16 } else { 1280 });
        let last_stage = LITE_STAGES.len() - 1;
        let rows = LITE_STAGES.iter().enumerate().map(|(index, row)| {
            let fixed = index == 0 || index == last_stage;
            let repeats = if fixed { row.repeats } else { (depth * row.repeats as f64).ceil() as usize };
            Row { repeats, channels: divisible(width * self.width() * row.channels as f64), ..*row }
        });
        let stages = bottlenecks(style, stem, rows);
        let mut plan = Plan {
            stem: style.conv([3, stem], 3, 2, 1),
            max_pool: false,
            stages,
            activation: Activation::Relu6,
            last: None,
        };
        plan.last = Some(style.conv([plan.map_channels(), features], 1, 1, 1));
        plan
    }

    fn mobilenet_v2(self) -> Plan {
        let style = Style { padding: Padding::Symmetric, norm_epsilon: 1e-5 };
        let stem = divisible(32.0 * self.width());
        let rows = MOBILENET_V2_STAGES
            .iter()
            .map(|row| Row { channels: divisible(row.channels as f64 * self.width()), ..*row });
        let stages = bottlenecks(style, stem, rows);
        let mut plan = Plan {
            stem: style.conv([3, stem], 3, 2, 1),
            max_pool: false,
            stages,
            activation: Activation::Relu6,
            last: None,
        };
        // The last convolution grows with the width, but does not shrink.
        let features = divisible(1280.0 * self.width().max(1.0));
        plan.last = Some(style.conv([plan.map_channels(), features], 1, 1, 1));
        plan
    }

    fn mobilenet_v3_small(self) -> Plan {
        let style = Style { padding: Padding::Symmetric, norm_epsilon: 1e-3 };
        let scaled = |channels: usize| divisible(channels as f64 * self.width());
        let stem = scaled(16);
        let mut stages: Vec<Vec<BlockPlan>> = Vec::new();
        let mut channels = stem;
        for &(kernel, inner, out, squeeze, activation, stride) in &MOBILENET_V3_SMALL_ROWS {
            let (inner, out) = (scaled(inner), scaled(out));
            let block = MbConvPlan {
                style,
                channels_in: channels,
                inner,
                channels_out: out,
                kernel,
                stride,
                squeeze_channels: squeeze.then(|| divisible(inner as f64 / 4.0)),
                activation,
            };
            channels = out;
            // A stage is what stands between two changes of size or channels.
            match stages.last_mut().and_then(|stage| stage.last().cloned().map(|last| (stage, last))) {
                Some((stage, last)) if stride == 1 && last.channels_out() == out => {
                    stage.push(BlockPlan::MbConv(block));
                }
                _ => stages.push(vec![BlockPlan::MbConv(block)]),
            }
        }
        Plan {
            stem: style.conv([3, stem], 3, 2, 1),
            max_pool: false,
            stages,
            activation: Activation::HardSwish,
            last: Some(style.conv([channels, 6 * channels], 1, 1, 1)),
        }
    }

    fn shufflenet_v2(self) -> Plan {
        let style = Style { padding: Padding::Symmetric, norm_epsilon: 1e-5 };
        let stem = 24;
        let mut channels_in = stem;
        let stages = (0..3).map(|stage| {
            let channels_out = self.shufflenet_channels(stage);
            let units = (0..SHUFFLENET_REPEATS[stage]).map(|unit| {
                let channels_in = if unit == 0 { channels_in } else { channels_out };
                let stride = if unit == 0 { 2 } else { 1 };
                BlockPlan::Shuffle(ShufflePlan { style, channels_in, channels_out, stride })
            });
            let units = units.collect();
            channels_in = channels_out;
            units
        });
        let stages = stages.collect();
        let mut plan = Plan {
            stem: style.conv([3, stem], 3, 2, 1),
            max_pool: true,
            stages,
            activation: Activation::Relu,
            last: None,
        };
        plan.last = Some(style.conv([plan.map_channels(), 1024], 1, 1, 1));
        plan
    }

    /// Table 5 has channels for four widths; between them they are scaled, and even.
    fn shufflenet_channels(self, stage: usize) -> usize {
        let published = SHUFFLENET_CHANNELS.iter().find(|(percent, _)| *percent == self.width_percent);
        published.map_or_else(
            || 2 * (f64::from(116 << stage) * self.width() / 2.0).round().max(1.0) as usize,
            |(_, channels)| channels[stage],
        )
    }
}

/// One row of a table of inverted bottlenecks.
#[derive(Debug, Clone, Copy)]
struct Row {
    repeats: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
}

const fn row(repeats: usize, kernel: usize, stride: usize, expansion: usize, channels: usize) -> Row {
    Row { repeats, kernel, stride, expansion, channels }
}

const LITE_STAGES: [Row; 7] = [
    row(1, 3, 1, 1, 16),
    row(2, 3, 2, 6, 24),
    row(2, 5, 2, 6, 40),
    row(3, 3, 2, 6, 80),
    row(3, 5, 1, 6, 112),
    row(4, 5, 2, 6, 192),
    row(1, 3, 1, 6, 320),
];

/// Width and depth factors of EfficientNet-Lite 0 to 4.
const LITE_SCALING: [(f64, f64); 5] = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)];

const MOBILENET_V2_STAGES: [Row; 7] = [
    row(1, 3, 1, 1, 16),
    row(2, 3, 2, 6, 24),
    row(3, 3, 2, 6, 32),
    row(4, 3, 2, 6, 64),
    row(3, 3, 1, 6, 96),
    row(3, 3, 2, 6, 160),
    row(1, 3, 1, 6, 320),
];

/// Kernel, expanded channels, channels, squeeze-excitation, activation, stride.
type V3Row = (usize, usize, usize, bool, Activation, usize);

const MOBILENET_V3_SMALL_ROWS: [V3Row; 11] = [
    (3, 16, 16, true, Activation::Relu, 2),
    (3, 72, 24, false, Activation::Relu, 2),
    (3, 88, 24, false, Activation::Relu, 1),
    (5, 96, 40, true, Activation::HardSwish, 2),
    (5, 240, 40, true, Activation::HardSwish, 1),
    (5, 240, 40, true, Activation::HardSwish, 1),
    (5, 120, 48, true, Activation::HardSwish, 1),
    (5, 144, 48, true, Activation::HardSwish, 1),
    (5, 288, 96, true, Activation::HardSwish, 2),
    (5, 576, 96, true, Activation::HardSwish, 1),
    (5, 576, 96, true, Activation::HardSwish, 1),
];

const SHUFFLENET_REPEATS: [usize; 3] = [4, 8, 4];
const SHUFFLENET_CHANNELS: [(u16, [usize; 3]); 4] =
    [(50, [48, 96, 192]), (100, [116, 232, 464]), (150, [176, 352, 704]), (200, [244, 488, 976])];

/// Stages of inverted bottlenecks without squeeze-excitation; only a stage's first block has its stride.
fn bottlenecks(style: Style, stem: usize, rows: impl Iterator<Item = Row>) -> Vec<Vec<BlockPlan>> {
    let mut channels_in = stem;
    let stages = rows.map(|row| {
        let blocks = (0..row.repeats).map(|repeat| {
            let block = MbConvPlan {
                style,
                channels_in,
                inner: channels_in * row.expansion,
                channels_out: row.channels,
                kernel: row.kernel,
                stride: if repeat == 0 { row.stride } else { 1 },
                squeeze_channels: None,
                activation: Activation::Relu6,
            };
            channels_in = row.channels;
            BlockPlan::MbConv(block)
        });
        blocks.collect()
    });
    stages.collect()
}

/// The nearest multiple of 8, never more than 10 % down.
fn divisible(channels: f64) -> usize {
    let rounded = (((channels + 4.0) / 8.0).floor() * 8.0).max(8.0);
    (if rounded < 0.9 * channels { rounded + 8.0 } else { rounded }) as usize
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.family.name().to_owned();
        if self.width_percent != 100 || self.family == Family::ShuffleNetV2 {
            let decimals = if self.width_percent.is_multiple_of(10) { 1 } else { 2 };
            text += &format!("-x{:.decimals$}", self.width());
        }
        if let Some(stages) = self.stages {
            text += &format!("-s{stages}");
        }
        f.pad(&text)
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            let names: Vec<&str> =
                Family::ALL.into_iter().map(Family::name).filter(|name| *name != "miniature").collect();
            format!(
                "unknown network '{text}': FAMILY[-xWIDTH][-sSTAGES], where the families are {}",
                names.join(", ")
            )
        };
        let family = Family::ALL
            .into_iter()
            .filter(|family| {
                text.strip_prefix(family.name()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            })
            .max_by_key(|family| family.name().len())
            .ok_or_else(unknown)?;
        let mut network = Self::whole(family);
        for part in text[family.name().len()..].split('-').skip(1) {
            if let Some(width) = part.strip_prefix('x') {
                let width: f64 = width.parse().map_err(|_| unknown())?;
                network.width_percent = (width * 100.0).round() as u16;
                if !WIDTHS_PERCENT.contains(&network.width_percent) {
                    return Err(format!("the width of '{text}' must be between 0.1 and 2"));
                }
            } else if let Some(stages) = part.strip_prefix('s') {
                let stages: u8 = stages.parse().map_err(|_| unknown())?;
                let count = Self::whole(family).plan().stages.len();
                if stages == 0 || usize::from(stages) > count {
                    return Err(format!("{} has {count} stages, so '{text}' does not exist", family.name()));
                }
                network.stages = (usize::from(stages) < count).then_some(stages);
            } else {
                return Err(unknown());
            }
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights and scale-and-bias of all convolutions, which is what published counts are without the classifier.
    fn cost(name: &str) -> (usize, u64) {
        let plan = name.parse::<Architecture>().unwrap().plan();
        let stages = plan.stage_costs(224);
        let side = stages.last().unwrap().1;
        let total = stages
            .iter()
            .fold(Plan::conv_cost(&plan.last.clone().unwrap(), side), |sum, (cost, _)| sum + *cost);
        (total.parameters, total.multiply_adds)
    }

    #[test]
    fn parameters_and_multiply_adds_are_the_published_ones() {
        // Published counts less the classifier: 1281000 of 1280 features, 1615848 of V3-Small's two layers, 1025000 of 1024.
        assert_eq!(cost("efficientnet-lite0").0, 4_652_008 - 1_281_000);
        assert_eq!(cost("mobilenet-v2").0, 3_504_872 - 1_281_000);
        assert_eq!(cost("mobilenet-v3-small").0, 2_542_856 - 1_615_848);
        assert_eq!(cost("shufflenet-v2-x1.0").0, 2_278_604 - 1_025_000);
        assert_eq!(cost("shufflenet-v2-x0.5").0, 1_366_792 - 1_025_000);
        // Multiply-adds at 224 px in the papers' tables, in millions, rounded there: 300, 56 and 146, with classifiers.
        for (name, millions) in
            [("mobilenet-v2", 300.0), ("mobilenet-v3-small", 56.0), ("shufflenet-v2-x1.0", 146.0)]
        {
            let found = cost(name).1 as f64 / 1e6;
            assert!((found - millions).abs() < 0.03 * millions, "{name}: {found}");
        }
    }

    #[test]
    fn a_plan_counts_what_its_module_has() {
        use burn::module::Module;
        for name in
            ["miniature", "mobilenet-v2-x0.25", "mobilenet-v3-small-x0.25-s2", "shufflenet-v2-x0.2-s1"]
        {
            let network: Architecture = name.parse().unwrap();
            let plan = network.plan();
            let counted: usize = plan.stage_costs(64).iter().map(|(cost, _)| cost.parameters).sum();
            // Burn counts a norm's running mean and variance too; folded, a norm is one bias.
            let folded = network.init(&Device::flex()).fold().backbone.num_params();
            let norms: usize = norm_channels(&plan);
            assert_eq!(folded, counted - norms, "{name}");
        }
    }

    fn norm_channels(plan: &Plan) -> usize {
        let blocks = plan.stages.iter().flatten().flat_map(|block| match block {
            BlockPlan::MbConv(plan) => {
                plan.expand().into_iter().chain([plan.depthwise(), plan.project()]).collect::<Vec<_>>()
            }
            BlockPlan::Shuffle(plan) => plan.shortcut().into_iter().flatten().chain(plan.branch()).collect(),
        });
        plan.stem.channels_out + blocks.map(|conv| conv.channels_out).sum::<usize>()
    }

    #[test]
    fn scaling_follows_the_published_family() {
        let shape = |name: &str| -> (Vec<usize>, Vec<usize>) {
            let plan = name.parse::<Architecture>().unwrap().plan();
            plan.stages.iter().map(|stage| (stage[0].channels_out(), stage.len())).unzip()
        };
        assert_eq!(
            shape("efficientnet-lite0"),
            (vec![16, 24, 40, 80, 112, 192, 320], vec![1, 2, 2, 3, 3, 4, 1])
        );
        assert_eq!(
            shape("efficientnet-lite2"),
            (vec![16, 24, 48, 88, 120, 208, 352], vec![1, 3, 3, 4, 4, 5, 1])
        );
        assert_eq!(shape("mobilenet-v3-small"), (vec![16, 24, 40, 48, 96], vec![1, 2, 3, 2, 3]));
    }

    #[test]
    fn names_round_trip() {
        let names = [
            "efficientnet-lite0",
            "efficientnet-lite4",
            "efficientnet-lite0-s5",
            "mobilenet-v2-x0.35-s6",
            "mobilenet-v3-small",
            "shufflenet-v2-x0.5",
            "shufflenet-v2-x1.0",
        ];
        for name in names {
            assert_eq!(name.parse::<Architecture>().unwrap().to_string(), name);
        }
        for name in [
            "resnet",
            "mobilenet-v2-x9",
            "mobilenet-v2-s0",
            "mobilenet-v2-s8",
            "mobilenet-v2-q1",
            "mobilenet-v2x1",
            "mobilenet-v2-x",
            "mobilenet-v2-xNaN",
        ] {
            assert!(name.parse::<Architecture>().is_err(), "{name}");
        }
        assert_eq!("mobilenet-v2-s7".parse::<Architecture>(), Ok(Architecture::MOBILENET_V2));
    }
}
