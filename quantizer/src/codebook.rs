//! The codebook: centroids `[M, K, D / M]` and, optionally, a rotation `[D, D]`.
//!
//! With a rotation R (orthogonal, row-major) the sub-vectors are those of `y = R x`; decoding turns back with the
//! transpose. A codebook is checked once, when it is made, and never changes.

use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;

use crate::{AdcTable, file};

/// The largest dimension of a codebook. It bounds what a file can make us allocate: 4 MiB of centroids and a
/// rotation of 64 MiB.
pub const DIMENSION_MAX: usize = 4096;

/// The largest number of centroids in a sub-space: a code is one byte.
pub const CENTROIDS_MAX: usize = 256;

/// A trained product quantizer, validated and immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    sub_spaces: usize,
    centroids_per_sub_space: usize,
    dimension: usize,
    /// `[M, K, D / M]`
    centroids: Vec<f32>,
    /// `[D, D]`
    rotation: Option<Vec<f32>>,
}

impl Codebook {
    /// Checks and keeps `centroids`, shape `[sub_spaces, centroids_per_sub_space, dimension / sub_spaces]`, and the
    /// orthogonal `rotation`, shape `[dimension, dimension]`, row-major.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn new(
        sub_spaces: usize,
        centroids_per_sub_space: usize,
        dimension: usize,
        centroids: Vec<f32>,
        rotation: Option<Vec<f32>>,
    ) -> Result<Self, CodebookError> {
        check_shape(sub_spaces, centroids_per_sub_space, dimension)?;
        check_tensor(file::CENTROIDS, &centroids, centroids_per_sub_space * dimension)?;
        if let Some(rotation) = &rotation {
            check_tensor(file::ROTATION, rotation, dimension * dimension)?;
            if !keeps_lengths(rotation, dimension) {
                return Err(CodebookError::NotOrthogonal);
            }
        }
        Ok(Self { sub_spaces, centroids_per_sub_space, dimension, centroids, rotation })
    }

    /// Reads a codebook file: safetensors with `centroids` and, optionally, `rotation`, both `F32`. Other tensors are
    /// ignored.
    ///
    /// # Errors
    /// What is wrong with the file. Nothing is allocated before the sizes are checked.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, CodebookError> {
        file::read(bytes)
    }

    /// Writes a codebook file. The same codebook always gives the same bytes.
    ///
    /// # Errors
    /// [`CodebookError::NotSafetensors`] with the writer's reason; it has none for a valid codebook.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, CodebookError> {
        file::write(self)
    }

    /// D, the dimension of the embeddings.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// M, the number of sub-spaces, which is the number of bytes in a code.
    pub fn sub_spaces(&self) -> usize {
        self.sub_spaces
    }

    /// K, the number of centroids in each sub-space, at most [`CENTROIDS_MAX`].
    pub fn centroids_per_sub_space(&self) -> usize {
        self.centroids_per_sub_space
    }

    /// D / M, the dimension of a sub-space.
    pub fn sub_dimension(&self) -> usize {
        self.dimension / self.sub_spaces
    }

    /// All centroids, `[M, K, D / M]`.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Centroid `k` of sub-space `m`, `[D / M]`.
    ///
    /// # Panics
    /// Where there is no such sub-space or centroid.
    pub fn centroid(&self, m: usize, k: usize) -> &[f32] {
        assert!(m < self.sub_spaces && k < self.centroids_per_sub_space, "no centroid {k} in sub-space {m}");
        let start = (m * self.centroids_per_sub_space + k) * self.sub_dimension();
        &self.centroids[start..start + self.sub_dimension()]
    }

    /// The rotation before the sub-spaces are cut, `[D, D]`, row-major.
    pub fn rotation(&self) -> Option<&[f32]> {
        self.rotation.as_deref()
    }

    /// Writes the nearest centroid (by L2 distance, the first of equals) of each sub-space into `code`, `[M]`.
    ///
    /// Components should be finite: a sub-vector with a NaN gets code 0.
    ///
    /// # Errors
    /// A length that does not fit.
    pub fn encode(&self, embedding: &[f32], code: &mut [u8]) -> Result<(), DimensionError> {
        self.check_code(code)?;
        let sub_vectors = self.rotated(embedding)?;
        for ((sub_vector, centroids), code) in
            sub_vectors.chunks_exact(self.sub_dimension()).zip(self.sub_space_centroids()).zip(code)
        {
            *code = nearest(sub_vector, centroids);
        }
        Ok(())
    }

    /// Writes the embedding that `code` stands for, `[D]`.
    ///
    /// # Errors
    /// A length that does not fit, or a code that names no centroid.
    pub fn decode(&self, code: &[u8], embedding: &mut [f32]) -> Result<(), CodeError> {
        self.check_code(code)?;
        self.check_embedding(embedding)?;
        if let Some(sub_space) = code.iter().position(|&k| usize::from(k) >= self.centroids_per_sub_space) {
            return Err(CodeError::NoCentroid {
                sub_space,
                code: code[sub_space],
                centroids: self.centroids_per_sub_space,
            });
        }
        let centroids = code.iter().enumerate().map(|(m, &k)| self.centroid(m, usize::from(k)));
        match &self.rotation {
            None => {
                for (part, centroid) in embedding.chunks_exact_mut(self.sub_dimension()).zip(centroids) {
                    part.copy_from_slice(centroid);
                }
            }
            Some(rotation) => {
                embedding.fill(0.0);
                for (row, y) in rotation.chunks_exact(self.dimension).zip(centroids.flatten()) {
                    embedding.iter_mut().zip(row).for_each(|(x, r)| *x += r * y);
                }
            }
        }
        Ok(())
    }

    /// Inner products of `embedding`, `[D]`, with every centroid: what a scan over codes adds up.
    ///
    /// # Errors
    /// A length that does not fit.
    pub fn adc_table(&self, embedding: &[f32]) -> Result<AdcTable, DimensionError> {
        let sub_vectors = self.rotated(embedding)?;
        let parts = sub_vectors.chunks_exact(self.sub_dimension()).zip(self.sub_space_centroids());
        Ok(AdcTable::new(parts.map(|(sub_vector, centroids)| {
            centroids.chunks_exact(sub_vector.len()).map(move |centroid| dot(sub_vector, centroid))
        })))
    }

    /// The centroids of each sub-space in turn, `[K, D / M]`.
    pub(crate) fn sub_space_centroids(&self) -> impl Iterator<Item = &[f32]> {
        self.centroids.chunks_exact(self.centroids_per_sub_space * self.sub_dimension())
    }

    /// R x, or x where there is no rotation.
    fn rotated<'a>(&self, embedding: &'a [f32]) -> Result<alloc::borrow::Cow<'a, [f32]>, DimensionError> {
        self.check_embedding(embedding)?;
        Ok(match &self.rotation {
            None => embedding.into(),
            Some(rotation) => rotation
                .chunks_exact(self.dimension)
                .map(|row| dot(row, embedding))
                .collect::<Vec<_>>()
                .into(),
        })
    }

    fn check_embedding(&self, embedding: &[f32]) -> Result<(), DimensionError> {
        if embedding.len() == self.dimension {
            return Ok(());
        }
        Err(DimensionError::Embedding { got: embedding.len(), expected: self.dimension })
    }

    fn check_code(&self, code: &[u8]) -> Result<(), DimensionError> {
        if code.len() == self.sub_spaces {
            return Ok(());
        }
        Err(DimensionError::Code { got: code.len(), expected: self.sub_spaces })
    }
}

/// The index of the nearest of `centroids`, `[K, D / M]`, by L2 distance; the first of equals.
fn nearest(sub_vector: &[f32], centroids: &[f32]) -> u8 {
    let mut best = (f32::INFINITY, 0);
    for (k, centroid) in centroids.chunks_exact(sub_vector.len()).enumerate() {
        let distance = sub_vector.iter().zip(centroid).map(|(x, c)| (x - c) * (x - c)).sum();
        if distance < best.0 {
            best = (distance, k as u8);
        }
    }
    best.1
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks M, K and D before anything of their size is looked at.
pub(crate) fn check_shape(
    sub_spaces: usize,
    centroids: usize,
    dimension: usize,
) -> Result<(), CodebookError> {
    if dimension == 0 || dimension > DIMENSION_MAX {
        return Err(CodebookError::Dimension { dimension });
    }
    if sub_spaces == 0 || !dimension.is_multiple_of(sub_spaces) {
        return Err(CodebookError::NotDivisible { dimension, sub_spaces });
    }
    if centroids == 0 || centroids > CENTROIDS_MAX {
        return Err(CodebookError::Centroids { centroids });
    }
    Ok(())
}

fn check_tensor(tensor: &'static str, values: &[f32], expected: usize) -> Result<(), CodebookError> {
    if values.len() != expected {
        return Err(CodebookError::Length { tensor, got: values.len(), expected });
    }
    if values.iter().any(|x| !x.is_finite()) {
        return Err(CodebookError::NotFinite { tensor });
    }
    Ok(())
}

/// Whether `|| Rt R v - v || <= 1e-3 ||v||` for a few fixed vectors v of signs. A matrix that is not orthogonal passes only
/// if all of them happen to be nearly kept; checking `Rt R = I` itself costs D^3.
fn keeps_lengths(rotation: &[f32], dimension: usize) -> bool {
    const TOLERANCE_SQUARED: f64 = 1e-6;
    (1..=4_u32).all(|round| {
        let sign = |i: usize| {
            let mixed = (i as u32 + 1).wrapping_mul(0x9e37_79b9).wrapping_mul(2 * round + 1);
            if (mixed ^ (mixed >> 15)).count_ones().is_multiple_of(2) { 1.0_f64 } else { -1.0 }
        };
        let mut back = alloc::vec![0.0_f64; dimension];
        for row in rotation.chunks_exact(dimension) {
            let y: f64 = row.iter().enumerate().map(|(i, r)| f64::from(*r) * sign(i)).sum();
            back.iter_mut().zip(row).for_each(|(x, r)| *x += f64::from(*r) * y);
        }
        let off: f64 = back.iter().enumerate().map(|(i, x)| (x - sign(i)) * (x - sign(i))).sum();
        off <= TOLERANCE_SQUARED * dimension as f64
    })
}

/// Why something is no codebook.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodebookError {
    /// The bytes are more than the largest codebook needs.
    #[error("{bytes} bytes are more than any codebook file has ({max})")]
    TooLarge {
        /// How many bytes there are.
        bytes: usize,
        /// The most a codebook file has.
        max: usize,
    },
    /// The bytes are no safetensors file.
    #[error("no safetensors file: {reason}")]
    NotSafetensors {
        /// What the reader or writer said.
        reason: String,
    },
    /// A tensor is not in the file.
    #[error("the tensor `{tensor}` is missing; is this a codebook file?")]
    Missing {
        /// Which one.
        tensor: &'static str,
    },
    /// A tensor has another type than `F32`.
    #[error("the tensor `{tensor}` holds {found}, not F32")]
    Type {
        /// Which one.
        tensor: &'static str,
        /// Its type.
        found: String,
    },
    /// A tensor has the wrong shape.
    #[error("the tensor `{tensor}` has the shape {found:?}, not {expected}")]
    Shape {
        /// Which one.
        tensor: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What it must be.
        expected: &'static str,
    },
    /// The dimension is 0 or too large.
    #[error("a codebook has 1 to {DIMENSION_MAX} dimensions, not {dimension}")]
    Dimension {
        /// What was asked for.
        dimension: usize,
    },
    /// The sub-spaces cannot be equally large.
    #[error("{dimension} dimensions cannot be cut into {sub_spaces} equal sub-spaces")]
    NotDivisible {
        /// D
        dimension: usize,
        /// M
        sub_spaces: usize,
    },
    /// The number of centroids in a sub-space does not fit one byte.
    #[error("a sub-space has 1 to {CENTROIDS_MAX} centroids, not {centroids}")]
    Centroids {
        /// What was asked for.
        centroids: usize,
    },
    /// A tensor has another number of values than its shape.
    #[error("`{tensor}` has {got} values and needs {expected}")]
    Length {
        /// Which one.
        tensor: &'static str,
        /// How many there are.
        got: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A value is NaN or infinite.
    #[error("`{tensor}` has a value that is not finite")]
    NotFinite {
        /// Where.
        tensor: &'static str,
    },
    /// The rotation is no rotation.
    #[error("`rotation` is not orthogonal, so that decoding could not turn back")]
    NotOrthogonal,
}

/// A length that does not fit the codebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DimensionError {
    /// An embedding of another dimension.
    #[error("the embedding has {got} dimensions and the codebook has {expected}")]
    Embedding {
        /// Dimensions found.
        got: usize,
        /// D
        expected: usize,
    },
    /// A code of another length.
    #[error("the code has {got} bytes and the codebook has {expected} sub-spaces")]
    Code {
        /// Bytes found.
        got: usize,
        /// M
        expected: usize,
    },
    /// Codes and the places for their similarities differ in number.
    #[error("{got} bytes of codes are not {codes} codes of {sub_spaces} bytes")]
    Codes {
        /// Bytes found.
        got: usize,
        /// How many similarities are wanted.
        codes: usize,
        /// M
        sub_spaces: usize,
    },
}

/// Why a code cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CodeError {
    /// A length that does not fit.
    #[error(transparent)]
    Dimension(#[from] DimensionError),
    /// A code names no centroid.
    #[error("code {code} in sub-space {sub_space} names no centroid: there are {centroids}")]
    NoCentroid {
        /// Which sub-space.
        sub_space: usize,
        /// The code.
        code: u8,
        /// K
        centroids: usize,
    },
}
