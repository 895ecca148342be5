//! What training minimises, all behind one trait, so that tables are fair.
//!
//! | name | loss |
//! |---|---|
//! | `ssp` | [`Ssp`]: soft assignments to the anchors of each sub-space, exactly as in the paper |
//! | `reg` | [`Regression`]: squared distance |
//! | `csd` | [`Csd`]: similarities to the teacher's nearest of the batch |
//! | `raml` | [`Raml`]: regression and matrices of similarities |
//! | `d3still` | [`D3still`]: differences between the similarities to the teacher's nearest |
//! | `ours` | SSP, SSP on the whole embedding with a bank of photos as anchors, and [`GlobalCosine`] |
//!
//! Student and teacher are unit embeddings `[batch, D]` of the same photos, and larger inner products mean nearer.

mod config;
mod relations;
mod ssp;

pub use config::{LossConfig, LossName, OursConfig};
pub use relations::{Csd, D3still, Raml};
pub use ssp::{Ssp, Temperatures};

use burn::tensor::Tensor;

/// One way to compare student and teacher; smaller is better, zero is equal.
pub trait Loss {
    /// The name in metrics.
    fn name(&self) -> &'static str;

    /// `[batch, D]` twice, to one number. Only the student carries gradients.
    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1>;
}

/// The mean of (1 - cos)^2 over whole embeddings. SSP does not see the norms of sub-vectors, and the inner product of a
/// search does; this term does too.
pub struct GlobalCosine;

impl Loss for GlobalCosine {
    fn name(&self) -> &'static str {
        "global"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let distance = -(student * teacher).sum_dim(1) + 1.0;
        (distance.clone() * distance).mean()
    }
}

/// The mean of |q - g|^2, which for unit vectors is 2 (1 - cos).
pub struct Regression;

impl Loss for Regression {
    fn name(&self) -> &'static str {
        "reg"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let difference = student - teacher;
        (difference.clone() * difference).sum_dim(1).mean()
    }
}
