//! A codebook made ready for many embeddings: the same codes and tables as the [`Codebook`] itself gives, faster.

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

use crate::codebook::DimensionError;
use crate::lanes::{Rows, Transposed, nearest};
use crate::scan::{PackError, PackedCodes, ScanTable, Width};
use crate::{Codebook, Kernel};

/// Embeddings that are encoded sub-space by sub-space: few enough to stay in the second-level cache.
const BLOCK: usize = 64;

/// Encodes embeddings, and turns queries into tables.
///
/// It keeps the centroids of its codebook a second time, transposed.
#[derive(Debug, Clone)]
pub struct Encoder {
    codebook: Codebook,
    kernel: Kernel,
    /// Of each sub-space, `[K, D / M]`.
    centroids: Vec<Transposed>,
    /// Of the rotation, by rows.
    rotation: Option<Transposed>,
}

impl Encoder {
    /// With the fastest kernel of this processor.
    pub fn new(codebook: Codebook) -> Self {
        Self::with_kernel(codebook, Kernel::detect())
    }

    /// With a kernel of one's choice; a kernel that this processor lacks is replaced by the portable one.
    pub fn with_kernel(codebook: Codebook, kernel: Kernel) -> Self {
        let kernel = kernel.checked().unwrap_or(Kernel::Portable);
        let dimension = codebook.dimension();
        let per_sub_space = codebook.centroids_per_sub_space() * codebook.sub_dimension();
        let sub_spaces = codebook.centroids().chunks_exact(per_sub_space);
        let centroids = sub_spaces.map(|all| Transposed::new(all, codebook.sub_dimension())).collect();
        let rotation = codebook.rotation().map(|rotation| Transposed::new(rotation, dimension));
        Self { codebook, kernel, centroids, rotation }
    }

    /// The codebook.
    pub const fn codebook(&self) -> &Codebook {
        &self.codebook
    }

    /// The kernel of its scans.
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The width of its packed codes.
    pub fn width(&self) -> Width {
        Width::of(self.codebook.centroids_per_sub_space())
    }

    /// Writes the codes of `embeddings`, `[n, D]`, into `codes`, `[n, M]`: those that [`Codebook::encode`] gives, to the last
    /// one.
    ///
    /// # Errors
    /// Lengths that do not fit.
    pub fn encode(&self, embeddings: &[f32], codes: &mut [u8]) -> Result<(), DimensionError> {
        let (d, m) = (self.codebook.dimension(), self.codebook.sub_spaces());
        if !embeddings.len().is_multiple_of(d) {
            return Err(DimensionError::Embedding { got: embeddings.len() % d, expected: d });
        }
        if codes.len() != embeddings.len() / d * m {
            return Err(DimensionError::Codes {
                got: codes.len(),
                codes: embeddings.len() / d,
                sub_spaces: m,
            });
        }
        for (embeddings, codes) in embeddings.chunks(BLOCK * d).zip(codes.chunks_mut(BLOCK * m)) {
            let rotated: Cow<'_, [f32]> = match &self.rotation {
                None => embeddings.into(),
                Some(_) => embeddings.chunks_exact(d).flat_map(|x| self.rotated(x).into_owned()).collect(),
            };
            for (s, centroids) in self.codebook.sub_space_centroids().enumerate() {
                let sub_dimension = self.codebook.sub_dimension();
                let points = Rows::new(&rotated[s * sub_dimension..], rotated.len() / d, sub_dimension, d);
                nearest(self.kernel, centroids, &points, &mut codes[s..], m);
            }
        }
        Ok(())
    }

    /// Inner products of `embedding`, `[D]`, with every centroid, rounded for a scan.
    ///
    /// # Errors
    /// A length that does not fit.
    pub fn table(&self, embedding: &[f32]) -> Result<ScanTable, DimensionError> {
        if embedding.len() != self.codebook.dimension() {
            let (got, expected) = (embedding.len(), self.codebook.dimension());
            return Err(DimensionError::Embedding { got, expected });
        }
        let rotated = self.rotated(embedding);
        let lanes = self.centroids.first().map_or(0, Transposed::lanes);
        let mut products = vec![0.0; lanes * self.centroids.len()];
        let sub_vectors = rotated.chunks_exact(self.codebook.sub_dimension());
        for ((products, sub_vector), centroids) in
            products.chunks_exact_mut(lanes).zip(sub_vectors).zip(&self.centroids)
        {
            centroids.products(self.kernel, sub_vector, products);
        }
        Ok(ScanTable::new(&products, lanes, self.codebook.centroids_per_sub_space()))
    }

    /// Packs codes, `[n, M]`, for scans.
    ///
    /// # Errors
    /// Where they are no codes of this codebook.
    pub fn pack(&self, codes: &[u8]) -> Result<PackedCodes, PackError> {
        PackedCodes::new(codes, self.codebook.sub_spaces(), self.width(), self.kernel)
    }

    /// R x, or x where there is no rotation. The length is checked by the callers.
    fn rotated<'a>(&self, embedding: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(rotation) = &self.rotation else { return embedding.into() };
        let mut turned = vec![0.0; rotation.lanes()];
        rotation.products(self.kernel, embedding, &mut turned);
        turned.truncate(embedding.len());
        turned.into()
    }
}
