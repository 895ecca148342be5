//! Losses that look at relations between the photos of a batch.

use burn::tensor::{Int, Tensor};

use super::ssp::divergence;
use super::{GlobalCosine, Loss, Temperatures};

/// Keeps the gradient of a norm finite where the norm is zero.
const SQUARE_FLOOR: f64 = 1e-12;

/// Contextual similarity distillation (Wu et al., CVPR 2022): softmaxes over the similarities to the teacher's nearest
/// neighbours, KL(teacher || student). Neighbours are sought in the batch, the photo itself among them, as the
/// comparison in D3still's published code does.
pub struct Csd {
    /// How many neighbours.
    pub neighbours: usize,
    /// tau_q and tau_g.
    pub temperatures: Temperatures,
}

impl Csd {
    /// 96 neighbours, tau_q 1 and tau_g 0.01: the values of D3still's comparison.
    pub const PUBLISHED: Self =
        Self { neighbours: 96, temperatures: Temperatures { student: 1.0, teacher: 0.01 } };
}

impl Loss for Csd {
    fn name(&self) -> &'static str {
        "csd"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let [batch, _] = student.dims();
        let (student, teacher) = nearest(student, teacher, self.neighbours);
        divergence(teacher / self.temperatures.teacher, student / self.temperatures.student) / batch as f64
    }
}

/// Regression with relations (Suma and Tolias, "Large-to-small image resolution asymmetry in deep metric learning",
/// WACV 2023): the mean of (1 - cos)^2, and mean squared differences of the similarity matrices student-teacher and
/// student-student from teacher-teacher, their diagonals left out.
pub struct Raml {
    /// Weight of student-teacher.
    pub asymmetric: f64,
    /// Weight of student-student.
    pub symmetric: f64,
}

impl Raml {
    /// The values of D3still's comparison.
    pub const PUBLISHED: Self = Self { asymmetric: 0.7482, symmetric: 0.6778 };
}

impl Loss for Raml {
    fn name(&self) -> &'static str {
        "raml"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let [batch, _] = student.dims();
        let off_diagonal = Tensor::<2>::eye(batch, &student.device()) * -1.0 + 1.0;
        let pairs = (batch * (batch - 1)).max(1) as f64;
        let wanted = teacher.clone().matmul(teacher.clone().transpose());
        let error = |found: Tensor<2>| {
            let difference = (found - wanted.clone()) * off_diagonal.clone();
            (difference.clone() * difference).sum() / pairs
        };
        let asymmetric = error(student.clone().matmul(teacher.clone().transpose()));
        let symmetric = error(student.clone().matmul(student.clone().transpose()));
        GlobalCosine.loss(student, teacher) + asymmetric * self.asymmetric + symmetric * self.symmetric
    }
}

/// Decoupled differential distillation (Xie et al., CVPR 2024): for the teacher's `top` nearest photos of the batch, the
/// first being the photo itself, differences between pairs of similarities shall be the teacher's, relative to their
/// size; pairs in the wrong order and pairs in the right one are weighted apart.
pub struct D3still {
    /// How many nearest photos, the photo itself among them.
    pub top: usize,
    /// Weight of the photo's own similarity.
    pub alpha: f64,
    /// Weight of pairs in the wrong order.
    pub beta: f64,
    /// Weight of pairs in the right order.
    pub gamma: f64,
}

impl D3still {
    /// The published values.
    pub const PUBLISHED: Self = Self { top: 10, alpha: 100.0, beta: 5.0, gamma: 1.0 };
    /// Added to a difference before it divides.
    const RELATIVE_TO: f64 = 0.1;
}

impl Loss for D3still {
    fn name(&self) -> &'static str {
        "d3still"
    }

    fn loss(&self, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
        let [batch, _] = student.dims();
        let (student, teacher) = nearest(student, teacher, self.top);
        let [_, top] = student.dims();
        let gap = teacher.clone().narrow(1, 0, 1) - student.clone().narrow(1, 0, 1);
        let own = ((gap.clone() * gap).sum() + SQUARE_FLOOR).sqrt() * self.alpha / batch as f64;
        if top < 2 {
            return own;
        }
        let (found, wanted) = (pair_differences(student, top), pair_differences(teacher, top));
        let order = (found.clone() * wanted.clone()).detach();
        let (wrong, right) = (order.clone().lower_elem(0.0).float(), order.greater_elem(0.0).float());
        let error = (found - wanted.clone()) / (wanted.abs() + Self::RELATIVE_TO);
        let norm = |mask: Tensor<3>| {
            let masked = error.clone() * mask;
            let squares = (masked.clone() * masked).sum_dim(2).sum_dim(1);
            (squares + SQUARE_FLOOR).sqrt().mean() / (top - 1) as f64
        };
        own + norm(wrong) * self.beta + norm(right) * self.gamma
    }
}

/// Similarities of student and teacher to the teacher's `count` nearest photos of the batch (all of them, where there are
/// fewer), nearest first: `[batch, count]` twice.
fn nearest(student: Tensor<2>, teacher: Tensor<2>, count: usize) -> (Tensor<2>, Tensor<2>) {
    let [batch, _] = student.dims();
    let similarities = teacher.clone().matmul(teacher.clone().transpose());
    let (teacher_nearest, indices): (Tensor<2>, Tensor<2, Int>) =
        similarities.topk_with_indices(count.min(batch), 1);
    (student.matmul(teacher.transpose()).gather(1, indices), teacher_nearest.detach())
}

/// Differences between all pairs of columns but the first: `[batch, top]` to `[batch, top - 1, top - 1]`.
fn pair_differences(similarities: Tensor<2>, top: usize) -> Tensor<3> {
    let others = similarities.narrow(1, 1, top - 1);
    others.clone().unsqueeze_dim::<3>(1) - others.unsqueeze_dim::<3>(2)
}
