//! Search over a gallery: codes find candidates, features rank them.
//!
//! A query is compared with codes of 4 or 8 bits a sub-space by tables that stay in registers (asymmetric in the sense of the
//! quantizer: the query is not quantized; [`glimpse_quantizer::scan`]), with all of them or, in large galleries, with those of
//! the nearest inverted lists. The best candidates are then compared exactly, on features kept in half precision or in
//! bytes. Small galleries have no codes: every image is compared exactly.
//!
//! The 4-bit codes are of a codebook of the gallery's own, trained in seconds when the index is made; the space's codebook, whose
//! centroids are the anchors of the query network, reads and writes the `pq` codes of messages, and can be searched with
//! too ([`CodesOption::Given`]).
//!
//! An index is immutable and follows from one generation of the store: [`Index::build`] makes it, [`Index::save`] and
//! [`Index::open`] keep it in a file that is mapped into memory. What has changed since then is [`crate::view`]'s affair. In reading order: `core`
//! (the search), `build`, `measure` (recall, and what "unknown" means), `file`.

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use glimpse_quantizer::expansion::normalize;
use glimpse_quantizer::{Codebook, Expansion, Precision};

use crate::catalogue::{Catalogue, Entry};
use crate::store::{Meta, Snapshot, State};

mod build;
mod core;
mod file;
mod measure;
#[cfg(test)]
mod tests;

pub use build::{BuildError, CODES_FROM, CodesOption, IndexOptions, LISTS_FROM, Stage, Watch};
pub use core::{Filter, Neighbour};
pub use file::FileError;
pub use measure::{Recall, Unknown, UnknownError};

use core::{Core, Plan};

/// Share of the photos of unknown things that would still get a match at the learned threshold.
const UNKNOWN_ACCEPTED: f32 = 0.01;

/// How the nearest vectors are looked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchOptions {
    /// Matches at most.
    pub top_k: usize,
    /// Compare with every feature.
    pub exact: bool,
    /// Candidates to compare exactly, at least `top_k`; 0 ranks by codes alone. `None`: what the wanted recall takes, and ten
    /// for each match.
    pub rerank: Option<usize>,
    /// Inverted lists to look up. `None`: what the wanted recall takes.
    pub probes: Option<usize>,
}

impl SearchOptions {
    /// Defaults for so many matches.
    pub const fn top(top_k: usize) -> Self {
        Self { top_k, exact: false, rerank: None, probes: None }
    }
}

/// An image that answers a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit<'a> {
    /// The image.
    pub image: Entry<'a>,
    /// Cosine with the query; larger means nearer. Exact up to the precision of the kept features, and without exact ranking an
    /// estimate that is right on average.
    pub similarity: f32,
}

/// An immutable gallery, ready to be searched from many threads.
#[derive(Debug)]
pub struct Index {
    vectors: VectorIndex,
    meta: Meta,
    images: Catalogue,
    /// Of the space.
    codebook: Option<Codebook>,
}

impl Index {
    /// Makes an index of a gallery, on all cores. `codebook` is the space's, for messages.
    ///
    /// # Errors
    /// Where codebook and gallery differ in dimension, or the options do not fit the gallery.
    pub fn build(
        snapshot: Snapshot,
        codebook: Option<Codebook>,
        options: &IndexOptions,
        watch: Watch<'_>,
    ) -> Result<Self, BuildError> {
        let Snapshot { meta, state, images, features } = snapshot;
        let codebook = check_codebook(codebook, meta.dimension)?;
        let mut vectors = VectorIndex::build(&features, meta.dimension, options, watch)?;
        vectors.state = state;
        // Queries are not augmented, and lie elsewhere than the features then do.
        if options.augment.is_none() {
            vectors.learn_unknown(|row| {
                let label = images.get(row).label;
                (!label.is_empty()).then_some(label)
            });
        }
        Ok(Self { vectors, meta, images, codebook })
    }

    /// An index without codes, of few images: every one is compared, and nothing is measured.
    ///
    /// # Errors
    /// Where there are more than can be numbered.
    pub fn exact(snapshot: Snapshot, precision: Precision) -> Result<Self, BuildError> {
        let Snapshot { meta, state, images, features } = snapshot;
        let options = IndexOptions { codes: CodesOption::Exact, precision, ..IndexOptions::default() };
        let mut vectors = VectorIndex::build(&features, meta.dimension, &options, &mut |_, _, _| true)?;
        vectors.state = state;
        Ok(Self { vectors, meta, images, codebook: None })
    }

    /// Opens the index that [`save`](Self::save) has written; of which gallery and generation it is, its [`state`](Self::state)
    /// tells.
    ///
    /// # Errors
    /// Where there is none, or it is damaged, or of vectors alone: it has to be made anew.
    pub fn open(path: &Path, codebook: Option<Codebook>) -> Result<Self, FileError> {
        let (vectors, kept) = VectorIndex::open_with(path)?;
        let (space, images) = kept.ok_or_else(|| FileError::Stale { path: path.to_owned() })?;
        let meta = Meta { space, dimension: vectors.dimension(), generation: vectors.state.generation };
        let codebook = check_codebook(codebook, meta.dimension).map_err(FileError::Codebook)?;
        Ok(Self { vectors, meta, images, codebook })
    }

    /// Writes the index into a file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        self.vectors.save_with(path, Some((self.meta.space, &self.images)))
    }

    /// The generation of the gallery that it was made of.
    pub const fn state(&self) -> State {
        self.vectors.state
    }

    /// Whether its features are expanded by their neighbours.
    pub const fn is_augmented(&self) -> bool {
        self.vectors.augmented
    }

    /// Its images; a row is a place among them.
    pub const fn images(&self) -> &Catalogue {
        &self.images
    }

    /// What the gallery is.
    pub const fn meta(&self) -> Meta {
        self.meta
    }

    /// Number of images.
    pub const fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there is no image.
    pub const fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The codebook that reads and writes `pq` codes of messages, if there is one.
    pub fn codebook(&self) -> Option<&Codebook> {
        self.codebook.as_ref()
    }

    /// The vectors alone.
    pub const fn vectors(&self) -> &VectorIndex {
        &self.vectors
    }

    /// Admits the images of which `admitted` holds.
    pub fn filter(&self, admitted: impl Fn(Entry<'_>) -> bool) -> Filter {
        self.vectors.filter(|row| admitted(self.images.get(row)))
    }

    /// The image of a neighbour that [`VectorIndex::search`] has found.
    pub(crate) fn hit(&self, neighbour: Neighbour) -> Hit<'_> {
        Hit { image: self.images.get(neighbour.row), similarity: neighbour.similarity }
    }
}

fn check_codebook(codebook: Option<Codebook>, dimension: usize) -> Result<Option<Codebook>, BuildError> {
    match codebook {
        Some(codebook) if codebook.dimension() != dimension => {
            Err(BuildError::Mismatch { codebook: codebook.dimension(), gallery: dimension })
        }
        codebook => Ok(codebook),
    }
}

/// An index of vectors that are known by their rows.
#[derive(Debug)]
pub struct VectorIndex {
    core: Core,
    recall: Option<Recall>,
    unknown: Option<Unknown>,
    /// Of the gallery that it was made of; nothing for vectors of no gallery.
    state: State,
    seconds_measuring: f64,
    /// The features are not those that it was made of, but expanded.
    augmented: bool,
}

impl VectorIndex {
    /// Makes an index of `features`, `[n, D]`, unit vectors, on all cores of the current rayon pool.
    ///
    /// # Errors
    /// Where the options do not fit the features.
    pub fn build(
        features: &[f32],
        dimension: usize,
        options: &IndexOptions,
        watch: Watch<'_>,
    ) -> Result<Self, BuildError> {
        let measuring = Cell::new(None);
        let mut watch = |stage, done, all| {
            if stage == Stage::Measuring && measuring.get().is_none() {
                measuring.set(Some(Instant::now()));
            }
            watch(stage, done, all)
        };
        let (core, recall) = build::build(features, dimension, options, &mut watch)?;
        let seconds_measuring = measuring.get().map_or(0.0, |start: Instant| start.elapsed().as_secs_f64());
        let first = Self {
            core,
            recall,
            unknown: None,
            state: State::default(),
            seconds_measuring,
            augmented: false,
        };
        let Some(expansion) = options.augment else { return Ok(first) };
        // Each feature by its neighbours among the others, found with the index of the features as they are.
        let mut augmented = features.to_vec();
        const PART: usize = 4096;
        for (number, part) in augmented.chunks_mut(PART * dimension).enumerate() {
            if !watch(Stage::Augmenting, number * PART, first.len()) {
                return Err(BuildError::Stopped);
            }
            first.augment(part, number * PART, expansion);
        }
        let (core, recall) =
            build::build(&augmented, dimension, options, &mut |stage, done, all| watch(stage, done, all))?;
        Ok(Self { core, recall, augmented: true, ..first })
    }

    /// Number of vectors.
    pub const fn len(&self) -> usize {
        self.core.count
    }

    /// Whether there is no vector.
    pub const fn is_empty(&self) -> bool {
        self.core.count == 0
    }

    /// D
    pub const fn dimension(&self) -> usize {
        self.core.dimension
    }

    /// What a search finds, where there are codes.
    pub const fn recall(&self) -> Option<&Recall> {
        self.recall.as_ref()
    }

    /// The similarity below which a photo is taken to show nothing of the gallery, where it could be learned.
    pub const fn unknown(&self) -> Option<Unknown> {
        self.unknown
    }

    /// What the index is, in a few words.
    pub fn describe(&self) -> String {
        let precision = self.core.precision.name();
        let Some(codes) = &self.core.codes else { return format!("exact, {precision}") };
        let bits = match codes.shape.width {
            glimpse_quantizer::scan::Width::Four => 4,
            glimpse_quantizer::scan::Width::Eight => 8,
        };
        let lists =
            codes.lists.as_ref().map_or(String::new(), |lists| format!("{} lists, ", lists.starts.len() - 1));
        let (m, kernel) = (codes.shape.sub_spaces, codes.encoder.kernel().name());
        format!("{lists}{m} x {bits} bits ({kernel}), then exact ranking in {precision}")
    }

    /// Bytes of codes and features, with all that finds them.
    pub fn bytes(&self) -> usize {
        let codes = self.core.codes.as_ref().map_or(0, |codes| {
            let lists = codes.lists.as_ref();
            codes.packed.len()
                + lists.map_or(0, |lists| 4 * (lists.coarse.values().len() + lists.starts.len()))
        });
        codes + self.core.features.len() + 4 * self.core.rows.as_ref().map_or(0, Vec::len)
    }

    /// Seconds that the making of the index spent on measuring what it finds.
    pub const fn seconds_measuring(&self) -> f64 {
        self.seconds_measuring
    }

    /// The packed codes.
    pub fn packed(&self) -> &[u8] {
        self.core.codes.as_ref().map_or(&[], |codes| &codes.packed)
    }

    /// How features are kept.
    pub(crate) const fn precision(&self) -> Precision {
        self.core.precision
    }

    /// Reads a feature, as it is kept, into `[D]` components.
    pub(crate) fn read(&self, row: u32, feature: &mut [f32]) {
        let place = self.core.places().map_or(row, |places| places[row as usize]);
        self.core.exact().read(place as usize, feature);
    }

    /// Admits all rows but these.
    pub(crate) fn filter_without(&self, rows: &[u32]) -> Filter {
        self.core.filter_without(rows)
    }

    /// Admits the rows of which `admitted` holds.
    pub fn filter(&self, admitted: impl Fn(u32) -> bool) -> Filter {
        self.core.filter(admitted)
    }

    /// The nearest vectors to each of `queries`, `[n, D]`, unit vectors: nearest first, ties by row. Queries that come
    /// together share passes over the codes, so that a batch costs less than its queries one by one.
    pub fn search(
        &self,
        queries: &[f32],
        options: &SearchOptions,
        filter: Option<&Filter>,
    ) -> Vec<Vec<Neighbour>> {
        assert!(queries.len().is_multiple_of(self.dimension()), "whole queries");
        let SearchOptions { top_k, exact, rerank, probes } = *options;
        if exact || top_k == 0 {
            self.core.exactly(queries, top_k, filter)
        } else {
            let measured = self.recall.as_ref();
            let rerank = match rerank {
                Some(0) => 0,
                Some(rerank) => rerank.max(top_k),
                None => measured.map_or(100, |recall| recall.rerank).max(top_k.saturating_mul(10)),
            };
            let probes = probes.or(measured.map(|recall| recall.probes)).unwrap_or(1).max(1);
            self.core.by_codes(queries, top_k, Plan { rerank, probes }, filter)
        }
    }

    /// Expands each of `features`, the rows from `first` on, by its nearest others.
    fn augment(&self, features: &mut [f32], first: usize, expansion: Expansion) {
        let found = self.search(features, &SearchOptions::top(expansion.neighbours + 1), None);
        let mut other = vec![0.0; self.dimension()];
        for ((feature, found), own) in features.chunks_exact_mut(self.core.dimension).zip(found).zip(first..)
        {
            let others = found.into_iter().filter(|neighbour| neighbour.row as usize != own);
            for neighbour in others.take(expansion.neighbours) {
                self.read(neighbour.row, &mut other);
                expansion.add(feature, &other, neighbour.similarity);
            }
            normalize(feature);
        }
    }

    fn learn_unknown<L: PartialEq>(&mut self, label: impl Fn(u32) -> Option<L>) {
        let plan = self
            .recall
            .as_ref()
            .map_or(Plan { rerank: 0, probes: 1 }, |recall| Plan { rerank: 400, probes: recall.probes });
        match measure::learn_unknown(&self.core, plan, UNKNOWN_ACCEPTED, 1, label) {
            Ok(unknown) => self.unknown = Some(unknown),
            Err(error) => tracing::debug!(%error, "no threshold for unknown photos"),
        }
    }
}
