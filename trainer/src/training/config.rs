//! Numbers of a run, and the optimizer that they make.

use std::fmt;
use std::str::FromStr;

use burn::grad_clipping::GradientClipping;
use burn::module::Module;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, ModuleOptimizer, SgdConfig};
use serde::{Deserialize, Serialize};

use super::arithmetic::Arithmetic;
use crate::networks::group;

/// Gradients of a parameter are scaled down to this norm: far above what a healthy step has.
const GRADIENT_NORM_MAX: f32 = 5.0;
/// Of SGD (Wu et al., arXiv 2403.00648).
const MOMENTUM: f64 = 0.9;

/// How a gradient becomes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW, decoupled weight decay.
    AdamW,
    /// SGD with Nesterov momentum 0.9, as in the paper.
    Sgd,
}

impl fmt::Display for OptimizerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AdamW => "adamw",
            Self::Sgd => "sgd",
        })
    }
}

impl FromStr for OptimizerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "adamw" => Ok(Self::AdamW),
            "sgd" => Ok(Self::Sgd),
            _ => Err(format!("unknown optimizer '{text}': adamw or sgd")),
        }
    }
}

/// Numbers of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Gradient steps in all.
    pub steps: u64,
    /// Rows in a batch.
    pub batch: usize,
    /// Batches whose gradients are added up for a step.
    pub accumulate: u32,
    /// AdamW or SGD.
    pub optimizer: OptimizerName,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps until the peak.
    pub warm_up: u64,
    /// Decay of weights (not of biases and norms).
    pub weight_decay: f64,
    /// Decay a step of the exponential moving average that is judged and kept; 0 judges the network itself.
    pub ema: f64,
    /// Seed of the order of batches, and of whatever else a run draws.
    pub seed: u64,
    /// Of convolutions.
    #[serde(default, skip_serializing_if = "Arithmetic::is_full")]
    pub arithmetic: Arithmetic,
}

impl TrainingConfig {
    /// The optimizer, without a state yet.
    pub(super) fn optimizer(&self, network: &impl Module) -> ModuleOptimizer {
        match self.optimizer {
            OptimizerName::AdamW => {
                let build = |decay: f64| AdamWConfig::new().with_weight_decay(decay as f32).build();
                let optimizer = ModuleOptimizer::from(build(self.weight_decay));
                let clipping = GradientClipping::Norm(GRADIENT_NORM_MAX);
                optimizer.with_grad_clipping(clipping.clone()).with_group(
                    group(network, is_undecayed),
                    build(0.0),
                    Some(clipping),
                )
            }
            OptimizerName::Sgd => {
                let build = |decay: f64| {
                    let momentum =
                        MomentumConfig::new().with_momentum(MOMENTUM).with_dampening(0.0).with_nesterov(true);
                    let decay = (decay > 0.0).then(|| WeightDecayConfig::new(decay as f32));
                    SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(decay).build()
                };
                let clipping = GradientClipping::Norm(GRADIENT_NORM_MAX);
                ModuleOptimizer::from(build(self.weight_decay))
                    .with_grad_clipping(clipping.clone())
                    .with_group(group(network, is_undecayed), build(0.0), Some(clipping))
            }
        }
    }
}

/// Whether a parameter of this path is a bias or belongs to a norm.
fn is_undecayed(path: &str) -> bool {
    matches!(path.rsplit('.').next(), Some("bias" | "gamma" | "beta"))
}
