//! Products of row-major matrices.

use nalgebra::DMatrix;

/// a b^T: rows `[n, d]` and `[m, d]` to all inner products `[n, m]`.
///
/// # Panics
/// If a length is no multiple of `d`.
pub fn inner_products(a: &[f32], b: &[f32], d: usize) -> Vec<f32> {
    assert!(a.len().is_multiple_of(d) && b.len().is_multiple_of(d), "whole rows");
    let (n, m) = (a.len() / d, b.len() / d);
    let mut out = vec![0.0; n * m];
    // SAFETY: a is n x d row-major, the transpose of b is d x m, and the result is n x m row-major; all lengths were checked.
    unsafe {
        matrixmultiply::sgemm(
            n,
            d,
            m,
            1.0,
            a.as_ptr(),
            d as isize,
            1,
            b.as_ptr(),
            1,
            d as isize,
            0.0,
            out.as_mut_ptr(),
            m as isize,
            1,
        );
    }
    out
}

/// a^T b for row-major a `[n, p]` and b `[n, q]`.
///
/// # Panics
/// If the two do not have the same number of rows.
pub fn cross_products(a: &[f64], p: usize, b: &[f64], q: usize) -> DMatrix<f64> {
    let n = a.len() / p;
    assert!(a.len() == n * p && b.len() == n * q, "as many rows");
    let mut out = DMatrix::zeros(p, q);
    // SAFETY: a^T is p x n with strides (1, p), b is n x q with strides (q, 1), and `out` is column-major p x q; all lengths
    // were checked.
    unsafe {
        matrixmultiply::dgemm(
            p,
            n,
            q,
            1.0,
            a.as_ptr(),
            1,
            p as isize,
            b.as_ptr(),
            q as isize,
            1,
            0.0,
            out.as_mut_ptr(),
            1,
            p as isize,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, -1.0, 2.0, 2.0, 2.0]);
        // [1 2 3] and [4 5 6] against [1 0 -1] and [2 2 2].
        assert_eq!(inner_products(&a, &b, 3), [-2.0, 12.0, -2.0, 30.0]);
        let (a, b) = (a.map(f64::from), b.map(f64::from));
        let product = cross_products(&a, 3, &b, 3);
        assert_eq!(
            product,
            DMatrix::from_row_slice(3, 3, &[9.0, 8.0, 7.0, 12.0, 10.0, 8.0, 15.0, 12.0, 9.0])
        );
    }
}
