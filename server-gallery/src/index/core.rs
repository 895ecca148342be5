//! The part of an index that knows only vectors: codes that find candidates, features that rank them.
//!
//! Vectors are numbered twice. A *row* is where a vector was when the index was made; a *position* is where it lies now. They
//! differ where there are inverted lists: a list's vectors lie together, so that a probe reads one stretch of codes and
//! few pages of features. Ties are decided by row; where only some of equals are among the nearest, by position.
//!
//! A search, on one thread:
//!
//! 1. Each query becomes a table. With lists, the `probes` lists with the nearest centroids are looked up; queries that probe
//!    the same list share one pass over its codes.
//! 2. The scan leaves `rerank` candidates a query.
//! 3. Their features are compared exactly, and the best are the answer.

use std::ops::Range;
use std::sync::OnceLock;

use glimpse_quantizer::scan::{Bitmap, Candidates, PackedView, Probe, ScanTable, Shape, Width};
use glimpse_quantizer::{Centroids, Encoder, ExactRows, Precision};
use rayon::prelude::*;

use crate::memory::Bytes;

/// Vectors from which on one query is spread over all cores: below, handing the work over costs more than it saves.
const PARALLEL_FROM: usize = 100_000;

/// Queries of a batch that one thread answers together: more of them share a pass over the codes, and their
/// candidates still fit the second-level cache.
const BATCH: usize = 128;

/// Vectors of which at most as many are compared exactly where a filter admits no more.
const EXACT_BELOW: usize = 10_000;

/// Similarities that exact search computes before it looks at them.
const EXACT_BLOCK: usize = 256;

/// Codes, and where they lie.
#[derive(Debug)]
pub(super) struct Codes {
    pub(super) encoder: Encoder,
    pub(super) shape: Shape,
    /// Packed; each list begins with a block of its own.
    pub(super) packed: Bytes,
    pub(super) lists: Option<Lists>,
    /// The similarity of the vectors as a function of that of the codes: offset and slope.
    pub(super) calibration: (f32, f32),
}

/// Inverted lists.
#[derive(Debug)]
pub(super) struct Lists {
    pub(super) coarse: Centroids,
    /// Position of the first vector of each list, and the number of vectors in the end.
    pub(super) starts: Vec<u32>,
    /// Codes are those of the differences from the centroid.
    pub(super) residual: bool,
    /// Place of each list's first block among all blocks, and the number of blocks in the end.
    pub(super) blocks: Vec<usize>,
}

impl Lists {
    /// Lists whose vectors, `[n]` by position, belong to `starts.len() - 1` lists.
    pub(super) fn new(coarse: Centroids, starts: Vec<u32>, residual: bool, block: usize) -> Self {
        let mut blocks = Vec::with_capacity(starts.len());
        let mut all = 0;
        for bounds in starts.windows(2) {
            blocks.push(all);
            all += ((bounds[1] - bounds[0]) as usize).div_ceil(block);
        }
        blocks.push(all);
        Self { coarse, starts, residual, blocks }
    }

    fn len(&self, list: u32) -> usize {
        (self.starts[list as usize + 1] - self.starts[list as usize]) as usize
    }
}

/// How to look for candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Candidates that are compared exactly; 0 leaves the ranking to the codes.
    pub(super) rerank: usize,
    /// Lists that are looked up.
    pub(super) probes: usize,
}

/// Vectors of which only some may be found.
#[derive(Debug, Clone)]
pub struct Filter {
    /// By position.
    pub(super) admitted: Bitmap,
}

impl Filter {
    /// Number of vectors that it admits.
    pub const fn len(&self) -> usize {
        self.admitted.len()
    }

    /// Whether it admits none.
    pub const fn is_empty(&self) -> bool {
        self.admitted.is_empty()
    }
}

/// A vector that answers a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Its number when the index was made.
    pub row: u32,
    /// Inner product with the query, which for unit vectors is the cosine; larger means nearer.
    pub similarity: f32,
}

/// Codes and features, ready to be searched.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) dimension: usize,
    pub(super) count: usize,
    pub(super) precision: Precision,
    /// `[n]` rows of the precision, by position.
    pub(super) features: Bytes,
    pub(super) codes: Option<Codes>,
    /// The row at each position; `None` where they are the same.
    pub(super) rows: Option<Vec<u32>>,
    /// The position of each row, made when it is first asked for.
    pub(super) places: OnceLock<Vec<u32>>,
}

impl Core {
    /// The row at a position.
    pub(super) fn row(&self, position: u32) -> u32 {
        self.rows.as_ref().map_or(position, |rows| rows[position as usize])
    }

    /// The position of each row; `None` where they are the same.
    pub(super) fn places(&self) -> Option<&[u32]> {
        let rows = self.rows.as_ref()?;
        let invert = || {
            let mut places = vec![0; rows.len()];
            rows.iter().zip(0..).for_each(|(row, position)| places[*row as usize] = position);
            places
        };
        Some(self.places.get_or_init(invert))
    }

    /// The features, by position.
    pub(super) fn exact(&self) -> ExactRows<'_> {
        ExactRows::new(self.precision, self.dimension, &self.features)
            .expect("whole rows: checked when the index was made or read")
    }

    /// Admits all rows but these: it costs what they are.
    pub(super) fn filter_without(&self, rows: &[u32]) -> Filter {
        let mut set = Bitmap::full(self.count);
        let places = self.places();
        rows.iter().for_each(|row| set.remove(places.map_or(*row, |places| places[*row as usize])));
        Filter { admitted: set }
    }

    /// Admits the rows in a set.
    pub(super) fn filter(&self, admitted: impl Fn(u32) -> bool) -> Filter {
        let mut set = Bitmap::new(self.count);
        (0..self.count as u32)
            .filter(|position| admitted(self.row(*position)))
            .for_each(|position| set.insert(position));
        Filter { admitted: set }
    }

    /// The `top_k` nearest vectors of each of `queries`, `[n, D]`, by comparing with every one that a filter admits.
    pub(super) fn exactly(
        &self,
        queries: &[f32],
        top_k: usize,
        filter: Option<&Filter>,
    ) -> Vec<Vec<Neighbour>> {
        let queries: Vec<&[f32]> = queries.chunks_exact(self.dimension).collect();
        let part = |positions: Range<usize>, queries: &[&[f32]]| match filter {
            None => self.compare_all(positions, queries, top_k),
            Some(filter) => queries.iter().map(|query| self.compare_some(query, top_k, filter)).collect(),
        };
        let spread =
            filter.is_none() && queries.len() < rayon::current_num_threads() && self.count >= PARALLEL_FROM;
        let found: Vec<Candidates> = if spread {
            self.spread(|positions| part(positions, &queries))
        } else {
            queries.par_chunks(BATCH).flat_map_iter(|queries| part(0..self.count, queries)).collect()
        };
        found.into_iter().map(|candidates| self.in_rows(candidates.into_similarities(), top_k)).collect()
    }

    fn compare_all(&self, positions: Range<usize>, queries: &[&[f32]], top_k: usize) -> Vec<Candidates> {
        let exact = self.exact();
        let mut candidates = vec![Candidates::new(top_k); queries.len()];
        let mut similarities = [0.0; EXACT_BLOCK];
        for start in positions.clone().step_by(EXACT_BLOCK) {
            let similarities = &mut similarities[..EXACT_BLOCK.min(positions.end - start)];
            for (query, candidates) in queries.iter().zip(&mut candidates) {
                exact.similarities_from(query, start, similarities);
                for (similarity, position) in similarities.iter().zip(start as u32..) {
                    candidates.offer(*similarity, position);
                }
            }
        }
        candidates
    }

    fn compare_some(&self, query: &[f32], top_k: usize, filter: &Filter) -> Candidates {
        let exact = self.exact();
        let mut candidates = Candidates::new(top_k);
        let positions: Vec<u32> = filter.admitted.iter().collect();
        let mut similarities = [0.0; EXACT_BLOCK];
        for positions in positions.chunks(EXACT_BLOCK) {
            let similarities = &mut similarities[..positions.len()];
            exact.similarities(query, positions, similarities);
            for (similarity, position) in similarities.iter().zip(positions) {
                candidates.offer(*similarity, *position);
            }
        }
        candidates
    }

    /// The `top_k` nearest vectors of each of `queries`, `[n, D]`, found by their codes.
    pub(super) fn by_codes(
        &self,
        queries: &[f32],
        top_k: usize,
        plan: Plan,
        filter: Option<&Filter>,
    ) -> Vec<Vec<Neighbour>> {
        let admitted = filter.map_or(self.count, |filter| filter.admitted.len());
        let Some(codes) = &self.codes else { return self.exactly(queries, top_k, filter) };
        // Codes cannot narrow down what is not more than the candidates, and lists that are mostly passed over leave holes.
        if admitted <= plan.rerank.max(top_k)
            || (filter.is_some() && admitted <= EXACT_BELOW.max(self.count / 50))
        {
            return self.exactly(queries, top_k, filter);
        }
        let queries: Vec<&[f32]> = queries.chunks_exact(self.dimension).collect();
        let wanted = plan.rerank.max(top_k);
        // A filter that takes as large a share of every list needs as many more of them; where it takes whole lists, what
        // is missing is found below.
        let probes = plan.probes.saturating_mul(self.count) / admitted;
        let set = filter.map(|filter| &filter.admitted);
        let rank = |query: &[f32], table: &ScanTable, candidates: Candidates| {
            if plan.rerank > 0 {
                return self.rank(query, candidates.into_positions().collect(), top_k);
            }
            let (offset, slope) = codes.calibration;
            let calibrated = |sum| offset + slope * table.similarity(sum);
            self.in_rows(candidates.into_sorted().map(|(sum, position)| (calibrated(sum), position)), top_k)
        };
        if queries.len() < rayon::current_num_threads()
            && codes.lists.is_none()
            && self.count >= PARALLEL_FROM
        {
            let tables = codes.tables(&queries);
            let found = self.spread(|positions| codes.scan_flat(positions, self.count, &tables, wanted, set));
            return found
                .into_iter()
                .zip(&tables)
                .zip(queries)
                .map(|((found, table), query)| rank(query, table, found))
                .collect();
        }
        queries
            .par_chunks(BATCH)
            .flat_map_iter(|queries| {
                let tables = codes.tables(queries);
                let found = match &codes.lists {
                    None => codes.scan_flat(0..self.count, self.count, &tables, wanted, set),
                    Some(lists) => codes.scan_lists(lists, queries, &tables, wanted, probes, set),
                };
                let ranked = found.into_iter().zip(&tables).zip(queries);
                ranked
                    .map(|((found, table), query)| {
                        let nearest = rank(query, table, found);
                        // The lists that were looked up hold too few that are admitted.
                        if nearest.len() < top_k.min(admitted) {
                            return self.exactly(query, top_k, filter).pop().unwrap_or_default();
                        }
                        nearest
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Cuts the positions into one part for each core, and merges what `part` finds for each query.
    fn spread(&self, part: impl Fn(Range<usize>) -> Vec<Candidates> + Sync) -> Vec<Candidates> {
        // Whole blocks of either width.
        let size = self.count.div_ceil(rayon::current_num_threads()).next_multiple_of(64);
        let parts: Vec<Vec<Candidates>> = (0..self.count)
            .step_by(size)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|start| part(start..(start + size).min(self.count)))
            .collect();
        let merge = |mut all: Vec<Candidates>, part: Vec<Candidates>| {
            all.iter_mut().zip(&part).for_each(|(all, part)| all.merge(part));
            all
        };
        parts.into_iter().reduce(merge).unwrap_or_default()
    }

    /// The best of some positions by their features.
    fn rank(&self, query: &[f32], mut positions: Vec<u32>, top_k: usize) -> Vec<Neighbour> {
        // Neighbours in memory after one another.
        positions.sort_unstable();
        let mut similarities = vec![0.0; positions.len()];
        self.exact().similarities(query, &positions, &mut similarities);
        self.in_rows(similarities.into_iter().zip(positions), top_k)
    }

    /// Rows instead of positions, nearest first; ties by row.
    fn in_rows(&self, found: impl Iterator<Item = (f32, u32)>, top_k: usize) -> Vec<Neighbour> {
        let mut neighbours: Vec<Neighbour> =
            found.map(|(similarity, position)| Neighbour { row: self.row(position), similarity }).collect();
        neighbours.sort_unstable_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.row.cmp(&b.row)));
        neighbours.truncate(top_k);
        neighbours
    }
}

impl Codes {
    fn tables(&self, queries: &[&[f32]]) -> Vec<ScanTable> {
        // Differences from a centroid are of no particular length.
        let residual = self.lists.as_ref().is_some_and(|lists| lists.residual);
        let table = |query: &&[f32]| {
            let table = if residual { self.encoder.table(query) } else { self.encoder.distance_table(query) };
            table.expect("queries have the dimension of the index")
        };
        queries.iter().map(table).collect()
    }

    fn view(&self, blocks: Range<usize>, count: usize) -> PackedView<'_> {
        let bytes = self.shape.width.block_bytes(self.shape.sub_spaces);
        PackedView::new(
            self.shape,
            self.encoder.kernel(),
            count,
            &self.packed[blocks.start * bytes..blocks.end * bytes],
        )
        .expect("whole blocks for this kernel: checked when the index was made or read")
    }

    fn scan_flat(
        &self,
        positions: Range<usize>,
        count: usize,
        tables: &[ScanTable],
        wanted: usize,
        admitted: Option<&Bitmap>,
    ) -> Vec<Candidates> {
        let size = self.shape.width.block();
        let all = self.view(0..count.div_ceil(size), count);
        let probes: Vec<Probe> = (0..tables.len() as u32).map(|query| Probe { query, bias: 0 }).collect();
        let mut candidates = vec![Candidates::new(wanted); tables.len()];
        let blocks = positions.start / size..positions.end.div_ceil(size);
        all.blocks(blocks).scan(positions.start as u32, tables, &probes, &mut candidates, admitted);
        candidates
    }

    fn scan_lists(
        &self,
        lists: &Lists,
        queries: &[&[f32]],
        tables: &[ScanTable],
        wanted: usize,
        probes: usize,
        admitted: Option<&Bitmap>,
    ) -> Vec<Candidates> {
        // The nearest list of each query first: its vectors raise the bar for all others.
        let (mut first, mut others) = (Vec::with_capacity(queries.len()), Vec::new());
        for ((query, table), number) in queries.iter().zip(tables).zip(0..) {
            let nearest =
                lists.coarse.nearest(query, probes.max(1)).expect("queries have the dimension of the index");
            let mut probes = nearest.into_iter().map(|(list, similarity)| {
                let bias = if lists.residual { table.bias(similarity) } else { 0 };
                (list, Probe { query: number, bias })
            });
            first.extend(probes.next());
            others.extend(probes);
        }
        let mut candidates = vec![Candidates::new(wanted); queries.len()];
        let mut together = Vec::new();
        for mut all in [first, others] {
            all.sort_unstable_by_key(|(list, probe)| (*list, probe.query));
            for probes in all.chunk_by(|a, b| a.0 == b.0) {
                let list = probes[0].0;
                together.clear();
                together.extend(probes.iter().map(|(_, probe)| *probe));
                let codes =
                    self.view(lists.blocks[list as usize]..lists.blocks[list as usize + 1], lists.len(list));
                codes.scan(lists.starts[list as usize], tables, &together, &mut candidates, admitted);
            }
        }
        candidates
    }
}

const _: () =
    assert!(Width::Eight.block() == 64 && Width::Four.block() == 32, "`Core::spread` cuts at whole blocks");
