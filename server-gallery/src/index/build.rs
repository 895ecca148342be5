//! Making an index: codebook, lists, codes, features, and what is measured on them.

use std::sync::OnceLock;

use glimpse_quantizer::scan::{Layout, PackError, Shape};
use glimpse_quantizer::train::{self, ClusterOptions, TrainError, TrainOptions};
use glimpse_quantizer::{Codebook, CodebookError, DIMENSION_MAX, Encoder, Expansion, Kernel, Precision};
use rayon::prelude::*;
use thiserror::Error;

use super::core::{Codes, Core, Lists};
use super::measure::{Recall, measure_codes};
use crate::memory::Bytes;

/// Vectors below which no codes are made, unless they are asked for: every one is compared exactly in a millisecond or two.
pub const CODES_FROM: usize = 10_000;

/// Vectors from which on there are inverted lists, unless asked otherwise: a full scan of fewer takes a core less than a
/// millisecond, and misses nothing.
pub const LISTS_FROM: usize = 1_000_000;

/// The most lists there can be.
pub(super) const LISTS_MAX: usize = 1 << 20;

/// Components of a sub-space of 4-bit codes, where the dimension allows it: half a byte for four, as Faiss's `PQ<D/4>x4fs`.
const SUB_DIMENSION_4: usize = 4;

/// As many for 8-bit codes.
const SUB_DIMENSION_8: usize = 8;

/// Vectors encoded at a time by one thread.
const CHUNK: usize = 4096;

/// How an index is made. What is not said is chosen by the size of the gallery.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexOptions {
    /// Which codes.
    pub codes: CodesOption,
    /// Number of inverted lists; 0 is none.
    pub lists: Option<usize>,
    /// Codes of the differences from the list's centroid: a little better, and of no use once candidates are compared exactly.
    pub residual: bool,
    /// How features are kept.
    pub precision: Precision,
    /// Database-side augmentation: each feature is expanded by its nearest others before it is indexed. Similarities are
    /// then those with the expanded features.
    pub augment: Option<Expansion>,
    /// The share of the ten nearest vectors that a search should find; from it follow how many lists are looked up, and how
    /// many candidates are compared exactly.
    pub recall: f32,
    /// Lloyd iterations.
    pub iterations: usize,
    /// Vectors that train a centroid, at most.
    pub max_points_per_centroid: usize,
    /// The same seed and features give the same index on the same kind of processor.
    pub seed: u64,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            codes: CodesOption::Auto,
            lists: None,
            residual: false,
            precision: Precision::F16,
            augment: None,
            recall: 0.95,
            iterations: 15,
            max_points_per_centroid: 256,
            seed: 1,
        }
    }
}

/// Which codes an index has.
#[derive(Debug, Clone, PartialEq)]
pub enum CodesOption {
    /// 4 bits from [`CODES_FROM`] vectors on.
    Auto,
    /// None: every vector is compared.
    Exact,
    /// 4 bits in so many sub-spaces, by a codebook of the gallery's own.
    Four {
        /// M; a quarter of the dimension where it is not said.
        sub_spaces: Option<usize>,
    },
    /// 8 bits in so many sub-spaces, by a codebook of the gallery's own.
    Eight {
        /// M; an eighth of the dimension where it is not said.
        sub_spaces: Option<usize>,
    },
    /// By a given codebook: the space's.
    Given(Codebook),
}

/// Why no index can be made.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Codebook or centroids cannot be trained.
    #[error(transparent)]
    Train(TrainError),
    /// Codes cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The codebook is of another dimension.
    #[error(
        "the codebook is for {codebook} dimensions, and the gallery has {gallery}: the bundle's files do not belong together"
    )]
    Mismatch {
        /// Of the codebook.
        codebook: usize,
        /// Of the gallery.
        gallery: usize,
    },
    /// Residual codes are of differences, and a given codebook is of whole vectors.
    #[error(
        "residual codes need a codebook of their own: leave out either `residual` or the space's codebook"
    )]
    ResidualOfGiven,
    /// Too many lists.
    #[error(
        "{lists} lists are more than {LISTS_MAX}, or than the {vectors} vectors: use about their square root"
    )]
    Lists {
        /// What was asked for.
        lists: usize,
        /// How many vectors there are.
        vectors: usize,
    },
    /// More vectors than can be numbered.
    #[error("{0} vectors are more than one index can hold: use several galleries")]
    TooMany(usize),
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

impl From<TrainError> for BuildError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Stopped => Self::Stopped,
            error => Self::Train(error),
        }
    }
}

/// How far the making is; returning `false` stops it.
pub type Watch<'a> = &'a mut dyn FnMut(Stage, usize, usize) -> bool;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the gallery.
    Reading,
    /// Training the centroids of the lists.
    Lists,
    /// Training the codebook.
    Codebook,
    /// Expanding the vectors by their neighbours.
    Augmenting,
    /// Encoding the vectors.
    Encoding,
    /// Measuring how many of the nearest are found.
    Measuring,
}

impl Stage {
    /// What a progress bar says.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Lists => "training the lists",
            Self::Codebook => "training the codebook",
            Self::Augmenting => "augmenting",
            Self::Encoding => "encoding",
            Self::Measuring => "measuring recall",
        }
    }
}

/// Makes an index of `features`, `[n, D]`, unit vectors.
pub(super) fn build(
    features: &[f32],
    dimension: usize,
    options: &IndexOptions,
    watch: Watch<'_>,
) -> Result<(Core, Option<Recall>), BuildError> {
    let count = features.len() / dimension;
    u32::try_from(count).map_err(|_| BuildError::TooMany(count))?;
    let choice = codes_of(options, dimension, count)?;
    let lists = match choice {
        None => 0,
        Some(_) => lists_of(options, count)?,
    };
    let step = |stage: Stage, watch: Watch<'_>, done: usize, all: usize| {
        if watch(stage, done, all) { Ok(()) } else { Err(BuildError::Stopped) }
    };

    let coarse = if lists > 0 {
        let options = ClusterOptions {
            centroids: lists,
            iterations: options.iterations.min(10),
            seed: options.seed,
            max_points_per_centroid: options.max_points_per_centroid,
        };
        let coarse =
            train::cluster(features, dimension, &options, &mut |at| watch(Stage::Lists, at.step, at.steps))?;
        let mut nearest = vec![0; count];
        nearest.par_chunks_mut(CHUNK).zip(features.par_chunks(CHUNK * dimension)).for_each(
            |(nearest, features)| coarse.assign(features, nearest).expect("whole vectors of one dimension"),
        );
        Some((coarse, nearest))
    } else {
        None
    };

    // From here on by position.
    let rows = coarse.as_ref().map(|(_, nearest)| by_list(nearest, lists));
    let row = |position: usize| rows.as_ref().map_or(position, |(rows, _)| rows[position] as usize);
    let feature = |position: usize| &features[row(position) * dimension..][..dimension];

    let codes = match choice {
        None => None,
        Some(choice) => {
            let residuals = coarse.as_ref().filter(|_| options.residual);
            let codebook = match choice {
                Choice::Given(codebook) => codebook,
                Choice::Train { sub_spaces, centroids } => {
                    let train_options = TrainOptions {
                        sub_spaces,
                        centroids,
                        iterations: options.iterations,
                        restarts: 1,
                        seed: options.seed,
                        max_points_per_centroid: options.max_points_per_centroid,
                        ..TrainOptions::default()
                    };
                    let mut watched = |at: train::Progress| watch(Stage::Codebook, at.step, at.steps);
                    match residuals {
                        None => train::train(features, dimension, &train_options, &mut watched)?,
                        Some((coarse, nearest)) => {
                            let mut differences = features.to_vec();
                            let all = differences.par_chunks_exact_mut(dimension).zip(nearest);
                            all.for_each(|(x, list)| subtract(x, coarse.get(*list)));
                            train::train(&differences, dimension, &train_options, &mut watched)?
                        }
                    }
                }
            };
            let encoder = Encoder::new(codebook);
            let sub_spaces = encoder.codebook().sub_spaces();
            let mut all = vec![0; count * sub_spaces];
            // In parts, so that somebody who waits sees it move and can stop it.
            let part = (count / 50).max(16 * CHUNK).next_multiple_of(CHUNK);
            for (number, codes) in all.chunks_mut(part * sub_spaces).enumerate() {
                step(Stage::Encoding, watch, number * part, count)?;
                codes.par_chunks_mut(CHUNK * sub_spaces).enumerate().for_each(|(chunk, codes)| {
                    let first = number * part + chunk * CHUNK;
                    let positions = first..first + codes.len() / sub_spaces;
                    let mut vectors = Vec::with_capacity(positions.len() * dimension);
                    for position in positions {
                        vectors.extend_from_slice(feature(position));
                        if let Some((coarse, nearest)) = residuals {
                            let start = vectors.len() - dimension;
                            subtract(&mut vectors[start..], coarse.get(nearest[row(position)]));
                        }
                    }
                    encoder.encode(&vectors, codes).expect("whole vectors and codes");
                });
            }
            let width = encoder.width();
            let shape = Shape { sub_spaces, width, layout: Layout::of(encoder.kernel()) };
            let lists = coarse.as_ref().zip(rows.as_ref()).map(|((coarse, _), (_, starts))| {
                Lists::new(coarse.clone(), starts.clone(), options.residual, width.block())
            });
            let packed = pack(&all, shape, lists.as_ref())?;
            Some(Codes {
                encoder,
                shape,
                packed: Bytes::in_large_pages(&packed),
                lists,
                calibration: (0.0, 1.0),
            })
        }
    };

    let row_bytes = options.precision.row_bytes(dimension);
    let mut kept = Bytes::zeros(count * row_bytes);
    kept.as_mut_slice().par_chunks_mut(CHUNK * row_bytes).enumerate().for_each(|(chunk, kept)| {
        let mut bytes = Vec::with_capacity(kept.len());
        for i in 0..kept.len() / row_bytes {
            options.precision.write(feature(chunk * CHUNK + i), &mut bytes);
        }
        kept.copy_from_slice(&bytes);
    });

    let mut core = Core {
        dimension,
        count,
        precision: options.precision,
        features: kept,
        codes,
        rows: rows.map(|(rows, _)| rows),
        places: OnceLock::new(),
    };
    let recall = if core.codes.is_some() {
        Some(measure_codes(&mut core, options.recall, options.seed, &mut |done, all| {
            step(Stage::Measuring, watch, done, all)
        })?)
    } else {
        None
    };
    Ok((core, recall))
}

/// Packs codes, `[n, M]` by position, each list from a block of its own on.
pub(super) fn pack(codes: &[u8], shape: Shape, lists: Option<&Lists>) -> Result<Vec<u8>, PackError> {
    let mut packed = Vec::new();
    match lists {
        None => shape.pack_into(codes, &mut packed)?,
        Some(lists) => {
            for bounds in lists.starts.windows(2) {
                let list = bounds[0] as usize * shape.sub_spaces..bounds[1] as usize * shape.sub_spaces;
                shape.pack_into(&codes[list], &mut packed)?;
            }
        }
    }
    Ok(packed)
}

enum Choice {
    Given(Codebook),
    Train { sub_spaces: usize, centroids: usize },
}

fn codes_of(options: &IndexOptions, dimension: usize, count: usize) -> Result<Option<Choice>, BuildError> {
    let train = |sub_spaces: Option<usize>, sub_dimension: usize, centroids: usize| {
        let sub_spaces = sub_spaces.unwrap_or_else(|| {
            let fits = (1..=sub_dimension).rev().find(|size| dimension.is_multiple_of(*size));
            dimension / fits.unwrap_or(1)
        });
        // Before the lists are trained, which takes longer.
        if sub_spaces == 0 || !dimension.is_multiple_of(sub_spaces) {
            return Err(TrainError::Shape(CodebookError::NotDivisible { dimension, sub_spaces }));
        }
        if count < centroids {
            return Err(TrainError::TooFewPoints { features: count, centroids });
        }
        Ok(Some(Choice::Train { sub_spaces, centroids }))
    };
    Ok(match &options.codes {
        CodesOption::Exact => None,
        CodesOption::Auto if dimension > DIMENSION_MAX => None,
        CodesOption::Auto if count < CODES_FROM && options.lists.is_none_or(|lists| lists == 0) => None,
        CodesOption::Auto => train(None, SUB_DIMENSION_4, 16)?,
        CodesOption::Four { sub_spaces } => train(*sub_spaces, SUB_DIMENSION_4, 16)?,
        CodesOption::Eight { sub_spaces } => train(*sub_spaces, SUB_DIMENSION_8, 256)?,
        CodesOption::Given(codebook) if codebook.dimension() != dimension => {
            return Err(BuildError::Mismatch { codebook: codebook.dimension(), gallery: dimension });
        }
        CodesOption::Given(_) if options.residual => return Err(BuildError::ResidualOfGiven),
        CodesOption::Given(_) if count == 0 => None,
        CodesOption::Given(codebook) => Some(Choice::Given(codebook.clone())),
    })
}

fn lists_of(options: &IndexOptions, count: usize) -> Result<usize, BuildError> {
    let lists = match options.lists {
        Some(lists) => lists,
        None if count < LISTS_FROM => 0,
        // The square root, to the next power of two: as many centroids to compare as vectors in a list, about.
        None => ((count as f64).sqrt() as usize).next_power_of_two(),
    };
    if lists > LISTS_MAX || lists > count {
        Err(BuildError::Lists { lists, vectors: count })
    } else {
        Ok(lists)
    }
}

/// Rows in the order of their lists, and where each list starts.
fn by_list(nearest: &[u32], lists: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0_u32; lists + 1];
    nearest.iter().for_each(|list| starts[*list as usize + 1] += 1);
    for list in 0..lists {
        starts[list + 1] += starts[list];
    }
    let mut next = starts.clone();
    let mut rows = vec![0; nearest.len()];
    for (list, row) in nearest.iter().zip(0..) {
        let place = &mut next[*list as usize];
        rows[*place as usize] = row;
        *place += 1;
    }
    (rows, starts)
}

fn subtract(x: &mut [f32], centroid: &[f32]) {
    x.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
}

/// Whether codes of this layout can be scanned here as they are.
pub(super) fn layout_here() -> Layout {
    Layout::of(Kernel::detect())
}
