//! Asymmetric distance computation: one uncoded query against many codes, by table.
//!
//! The similarity of a query q with the embedding x' that a code stands for is the inner product `<q, x'>`, which is a sum
//! over sub-spaces of `<q_m, c_mk>`; all M x K of them are computed once a query. A scan is then M table reads and
//! additions a code.

use alloc::boxed::Box;

use crate::DimensionError;

/// Inner products of one query with all centroids. Similarities are inner products: larger means nearer.
#[derive(Debug, Clone)]
pub struct AdcTable {
    /// One row of 256 a sub-space. Rows are filled up with minus infinity where K < 256, so that any byte is a valid
    /// index (no bounds check in the scan) and a damaged code is infinitely far instead of a panic or a false match.
    rows: Box<[[f32; 256]]>,
}

impl AdcTable {
    /// One iterator of at most 256 inner products for each sub-space.
    pub(crate) fn new(products: impl Iterator<Item = impl Iterator<Item = f32>>) -> Self {
        let rows = products.map(|products| {
            let mut row = [f32::NEG_INFINITY; 256];
            row.iter_mut().zip(products).for_each(|(place, product)| *place = product);
            row
        });
        Self { rows: rows.collect() }
    }

    /// M, the number of bytes in a code.
    pub fn sub_spaces(&self) -> usize {
        self.rows.len()
    }

    /// The inner products of the query with the centroids of sub-space `m`; places beyond K hold minus infinity.
    pub fn row(&self, m: usize) -> Option<&[f32; 256]> {
        self.rows.get(m)
    }

    /// The similarity of the query with what `code`, `[M]`, stands for. Minus infinity where it has another length or
    /// names no centroid.
    pub fn similarity(&self, code: &[u8]) -> f32 {
        if code.len() != self.rows.len() {
            return f32::NEG_INFINITY;
        }
        self.rows.iter().zip(code).map(|(row, &k)| row[usize::from(k)]).sum()
    }

    /// The similarities of the query with `codes`, `[n, M]`, into `similarities`, `[n]`.
    ///
    /// # Errors
    /// [`DimensionError::Codes`] where `codes` are not n codes.
    pub fn scan(&self, codes: &[u8], similarities: &mut [f32]) -> Result<(), DimensionError> {
        let sub_spaces = self.rows.len();
        if similarities.len().checked_mul(sub_spaces) != Some(codes.len()) {
            return Err(DimensionError::Codes { got: codes.len(), codes: similarities.len(), sub_spaces });
        }
        for (similarity, code) in similarities.iter_mut().zip(codes.chunks_exact(sub_spaces)) {
            *similarity = self.similarity(code);
        }
        Ok(())
    }
}
