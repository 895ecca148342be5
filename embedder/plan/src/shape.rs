//! How large values are.

/// Height of a batch, and three sides more; what has fewer begins with ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape(
    /// The sides, the last of which lies together in memory.
    pub [usize; 4],
);

impl Shape {
    /// From at most four sides; `None` where there are more.
    pub fn of(sides: &[usize]) -> Option<Self> {
        let mut shape = [1; 4];
        shape.get_mut(4usize.checked_sub(sides.len())?..)?.copy_from_slice(sides);
        Some(Self(shape))
    }

    /// Values; `None` where no memory holds them.
    pub fn len(self) -> Option<usize> {
        self.0.iter().try_fold(1_usize, |product, side| product.checked_mul(*side))
    }

    /// Values from one place along each side to the next, nothing along sides of one: those stand for any number.
    pub(crate) const fn strides(self) -> [usize; 4] {
        let [_, a, b, c] = self.0;
        let all = [a * b * c, b * c, c, 1];
        let mut strides = [0; 4];
        let mut side = 0;
        while side < 4 {
            if self.0[side] > 1 {
                strides[side] = all[side];
            }
            side += 1;
        }
        strides
    }
}

/// A value that steps write and read: its number in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(pub(crate) usize);
