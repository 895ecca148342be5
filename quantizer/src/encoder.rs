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
    /// Half the squared length of each, `[M, lanes]`.
    halves: Vec<f32>,
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
        let centroids: Vec<Transposed> =
            sub_spaces.map(|all| Transposed::new(all, codebook.sub_dimension())).collect();
        let mut halves = Vec::new();
        for (centroids, transposed) in codebook.sub_space_centroids().zip(&centroids) {
            let end = halves.len() + transposed.lanes();
            let half = |c: &[f32]| 0.5 * c.iter().map(|x| x * x).sum::<f32>();
            halves.extend(centroids.chunks_exact(codebook.sub_dimension()).map(half));
            halves.resize(end, 0.0);
        }
        let rotation = codebook.rotation().map(|rotation| Transposed::new(rotation, dimension));
        Self { codebook, kernel, centroids, halves, rotation }
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
        let products = self.products(embedding)?;
        Ok(ScanTable::new(&products, self.lanes(), self.codebook.centroids_per_sub_space()))
    }

    /// As [`table`](Self::table), less half the squared length of each centroid: a scan then ranks by L2 distance,
    /// `<q, y> - ||y||^2 / 2 = (||q||^2 - ||q - y||^2) / 2`. Of vectors of equal length that finds more of the nearest than the
    /// product alone (recall@10 of .434 against .412 at 32 x 4 bits), since what a code has lost in length says how far off it is.
    ///
    /// # Errors
    /// A length that does not fit.
    pub fn distance_table(&self, embedding: &[f32]) -> Result<ScanTable, DimensionError> {
        let mut products = self.products(embedding)?;
        products.iter_mut().zip(&self.halves).for_each(|(product, half)| *product -= half);
        Ok(ScanTable::new(&products, self.lanes(), self.codebook.centroids_per_sub_space()))
    }

    /// K, rounded up to whole registers.
    fn lanes(&self) -> usize {
        self.centroids.first().map_or(0, Transposed::lanes)
    }

    /// `[M, lanes]`
    fn products(&self, embedding: &[f32]) -> Result<Vec<f32>, DimensionError> {
        if embedding.len() != self.codebook.dimension() {
            let (got, expected) = (embedding.len(), self.codebook.dimension());
            return Err(DimensionError::Embedding { got, expected });
        }
        let rotated = self.rotated(embedding);
        let lanes = self.lanes();
        let mut products = vec![0.0; lanes * self.centroids.len()];
        let sub_vectors = rotated.chunks_exact(self.codebook.sub_dimension());
        for ((products, sub_vector), centroids) in
            products.chunks_exact_mut(lanes).zip(sub_vectors).zip(&self.centroids)
        {
            centroids.products(self.kernel, sub_vector, products);
        }
        Ok(products)
    }

    /// Packs codes, `[n, M]`, for scans.
    ///
    /// # Errors
    /// Where they are no whole codes, or need more bits than this codebook's.
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
