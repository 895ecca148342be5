//! Mixed precision: convolutions in 16 bits, everything that is kept or summed over a whole batch in 32.
//!
//! Burn 0.22 has neither autocast nor a gradient scaler, so this is the least that makes them (Micikevicius et al.,
//! "Mixed Precision Training", arXiv 1710.03740): maps enter the network in half precision, and each convolution casts its
//! 32-bit weights to the format of the maps that it sees. Autodiff casts the gradient back, so weights, their gradients and
//! the optimizer stay in 32 bits. Norms, means over maps, pooling, projection and losses are computed in 32 bits.
//!
//! f16 ends at 65504 and at 6e-8, so the loss is multiplied by a [`LossScale`] before backpropagation. bf16 has the range
//! of f32 and needs none.
//!
//! Validation is in full precision: it is the network that is exported.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// The number format of convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// Full precision.
    #[default]
    F32,
    /// Eight bits of exponent.
    Bf16,
    /// Five bits of exponent, with a scaled loss.
    F16,
}

impl Arithmetic {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// A network's input in this format, which its convolutions then follow.
    pub fn cast(self, maps: Tensor<4>) -> Tensor<4> {
        maps.cast(match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        })
    }

    /// For `serde`: runs in full precision are written as they were before there was another.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(super) fn is_full(&self) -> bool {
        *self == Self::F32
    }

    pub(super) fn loss_scale(self) -> Option<LossScale> {
        (self == Self::F16).then_some(LossScale { factor: FACTOR_FIRST, steps: 0 })
    }
}

/// PyTorch's GradScaler starts there too.
const FACTOR_FIRST: f32 = 65536.0;
/// A factor below it means that gradients overflow without help.
const FACTOR_MIN: f32 = 1.0;
/// The factor is doubled after so many steps without overflow (GradScaler's growth interval).
const STEPS_UNTIL_GROWTH: u32 = 2000;

/// What the loss is multiplied by, and gradients are divided by: halved where they overflow, and that step is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct LossScale {
    pub(super) factor: f32,
    /// Since it last changed.
    steps: u32,
}

/// Gradients overflow however small the factor is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl LossScale {
    /// The gradients of the loss itself, or `None` where they overflowed.
    pub(super) fn unscale(
        &mut self,
        network: &impl Module,
        gradients: GradientsParams,
    ) -> Result<Option<GradientsParams>, Overflow> {
        let mut unscale = Unscale { factor: self.factor, gradients, sum: None };
        network.visit(&mut unscale);
        let sum: f32 = unscale.sum.map_or(0.0, |sum| sum.into_scalar());
        if !sum.is_finite() {
            (self.factor, self.steps) = (self.factor / 2.0, 0);
            return if self.factor < FACTOR_MIN { Err(Overflow) } else { Ok(None) };
        }
        self.steps += 1;
        if self.steps == STEPS_UNTIL_GROWTH {
            (self.factor, self.steps) = (self.factor * 2.0, 0);
        }
        Ok(Some(unscale.gradients))
    }
}

struct Unscale {
    factor: f32,
    gradients: GradientsParams,
    /// Of all absolute values: infinite or no number where one of them is.
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for Unscale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
        let gradient = gradient / self.factor;
        let sum = gradient.clone().abs().sum();
        self.sum = Some(match self.sum.take() {
            Some(total) => total + sum,
            None => sum,
        });
        self.gradients.register(param.id, gradient);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    /// `scale` times the sum of what a layer makes of ones, and the gradient of that.
    fn gradients(layer: &Linear, scale: f32) -> GradientsParams {
        let ones = Tensor::<2>::ones([3, 2], &Device::flex().autodiff());
        GradientsParams::from_grads((layer.forward(ones).sum() * scale).backward(), layer)
    }

    #[test]
    fn gradients_are_divided_by_the_factor_that_grows_while_they_fit() {
        let layer = LinearConfig::new(2, 2).init(&Device::flex()).train();
        let mut scale = LossScale { factor: 8.0, steps: STEPS_UNTIL_GROWTH - 2 };
        for factor in [8.0, 16.0] {
            let gradients = scale.unscale(&layer, gradients(&layer, 8.0)).unwrap().unwrap();
            let weight = gradients.get::<2>(layer.weight.id).unwrap();
            assert_eq!(weight.try_into_vec_as::<f32>().unwrap(), [3.0; 4]);
            assert_eq!(scale.factor, factor);
        }
    }

    #[test]
    fn a_step_that_overflows_is_left_out_and_the_factor_halved_until_there_is_none() {
        let layer = LinearConfig::new(2, 2).init(&Device::flex()).train();
        let mut scale = LossScale { factor: 2.0, steps: 7 };
        let overflow = || gradients(&layer, f32::INFINITY);
        assert!(scale.unscale(&layer, overflow()).unwrap().is_none());
        assert_eq!(scale, LossScale { factor: 1.0, steps: 0 });
        assert!(matches!(scale.unscale(&layer, overflow()), Err(Overflow)));
    }
}
