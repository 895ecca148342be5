//! Where answers stand in a ranking, found by counting, so that the gallery only has to pass by once, in blocks.

use rayon::prelude::*;

use crate::linalg::inner_products;
use crate::matrix::{MatrixError, Rows};

/// Gallery rows of a block.
const BLOCK: usize = 8192;
/// Queries that one thread compares with a block at a time.
const QUERIES: usize = 32;

/// What answers one query. Both lists are numbers of gallery rows, ascending, without repeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The answers.
    pub positives: Vec<usize>,
    /// Rows that count neither way ("junk"): the ranking is read as if they were not there.
    pub ignored: Vec<usize>,
}

impl Judgement {
    /// Sorts both lists; what is an answer is not ignored.
    pub fn new(mut positives: Vec<usize>, mut ignored: Vec<usize>) -> Self {
        for list in [&mut positives, &mut ignored] {
            list.sort_unstable();
            list.dedup();
        }
        ignored.retain(|row| positives.binary_search(row).is_err());
        Self { positives, ignored }
    }
}

/// The 0-based ranks of each query's answers, ascending: `[setting][query][answer]`, for `judgements[setting][query]`.
///
/// Rows rank by inner product, larger first; equal ones by their number, so that a network that gives one vector for
/// everything gets the order of the list. A similarity that is NaN is the worst for an answer and the best for anything
/// else. `queries` is `[q, D]`.
///
/// `seen` is told how many gallery rows have passed by.
///
/// # Errors
/// [`MatrixError`] of the gallery.
///
/// # Panics
/// If a judgement names a row that the gallery has not, or there is not one for each query.
pub fn ranks(
    queries: &[f32],
    gallery: &dyn Rows,
    judgements: &[Vec<Judgement>],
    seen: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Vec<usize>>>, MatrixError> {
    let d = gallery.dimension();
    let count = queries.len() / d;
    assert!(judgements.iter().all(|setting| setting.len() == count), "one judgement for each query");
    let mut boards = boards(queries, gallery, judgements)?;
    for start in (0..gallery.count()).step_by(BLOCK) {
        let end = (start + BLOCK).min(gallery.count());
        let block = gallery.read(start..end)?;
        boards.par_chunks_mut(QUERIES).zip(queries.par_chunks(QUERIES * d)).for_each(|(boards, queries)| {
            let similarities = inner_products(queries, &block, d);
            for (board, similarities) in boards.iter_mut().zip(similarities.chunks_exact(end - start)) {
                board.count(start, similarities);
            }
        });
        seen(end);
    }
    boards.par_iter_mut().for_each(Board::finish);
    let of_setting = |setting: &Vec<Judgement>| {
        let pairs = boards.iter().zip(setting);
        pairs.map(|(board, judgement)| board.ranks(judgement)).collect()
    };
    Ok(judgements.iter().map(of_setting).collect())
}

/// The rows that one query has a judgement on, and how many gallery rows stand before each.
struct Board {
    /// By rank.
    entries: Vec<Entry>,
    /// How many rows stand after entry i - 1 and before entry i; sums of that from the front once it is finished.
    before: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq)]
struct Entry {
    similarity: f32,
    row: usize,
}

impl Entry {
    /// Whether it ranks before the other, or is it.
    fn at_or_before(self, other: Self) -> bool {
        self.similarity > other.similarity || (self.similarity == other.similarity && self.row <= other.row)
    }
}

/// One board a query, with the similarities of its own rows.
fn boards(
    queries: &[f32],
    gallery: &dyn Rows,
    judgements: &[Vec<Judgement>],
) -> Result<Vec<Board>, MatrixError> {
    let d = gallery.dimension();
    let rows_of = |query: usize| {
        let mut rows: Vec<usize> = judgements
            .iter()
            .flat_map(|setting| setting[query].positives.iter().chain(&setting[query].ignored))
            .copied()
            .collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    };
    let board = |(query, values): (usize, &[f32])| {
        let rows = rows_of(query);
        let mut own = Vec::with_capacity(rows.len() * d);
        for &row in &rows {
            own.extend(gallery.read(row..row + 1)?);
        }
        // The same product as that of the blocks, so that a row is as similar here as there, to the last bit.
        let similarities = inner_products(values, &own, d);
        let worst = |similarity: f32| if similarity.is_nan() { f32::NEG_INFINITY } else { similarity };
        let mut entries: Vec<Entry> = rows
            .iter()
            .zip(similarities)
            .map(|(&row, similarity)| Entry { similarity: worst(similarity), row })
            .collect();
        entries.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.row.cmp(&b.row)));
        let before = vec![0; entries.len() + 1];
        Ok(Board { entries, before })
    };
    queries.par_chunks_exact(d).enumerate().map(board).collect()
}

impl Board {
    /// Counts a block of rows that begins with row `start`.
    fn count(&mut self, start: usize, similarities: &[f32]) {
        for (row, &similarity) in (start..).zip(similarities) {
            let similarity = if similarity.is_nan() { f32::INFINITY } else { similarity };
            let row = Entry { similarity, row };
            // The first entry that the row stands before; its own entry it does not.
            let place = self.entries.partition_point(|entry| entry.at_or_before(row));
            self.before[place] += 1;
        }
    }

    fn finish(&mut self) {
        let mut sum = 0;
        for before in &mut self.before {
            sum += *before;
            *before = sum;
        }
    }

    fn ranks(&self, judgement: &Judgement) -> Vec<usize> {
        let mut ignored = 0;
        let mut ranks = Vec::with_capacity(judgement.positives.len());
        for (entry, before) in self.entries.iter().zip(&self.before) {
            if judgement.ignored.binary_search(&entry.row).is_ok() {
                ignored += 1;
            } else if judgement.positives.binary_search(&entry.row).is_ok() {
                ranks.push(before.saturating_sub(ignored));
            }
        }
        ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::InMemory;

    fn one(similarities: &[f32], positives: &[usize], ignored: &[usize]) -> Vec<usize> {
        let gallery = InMemory { values: similarities, dimension: 1 };
        let judgement = Judgement::new(positives.to_vec(), ignored.to_vec());
        let mut passed = 0;
        let ranks = ranks(&[1.0], &gallery, &[vec![judgement]], &mut |rows| passed = rows).unwrap();
        assert_eq!(passed, similarities.len());
        ranks[0][0].clone()
    }

    #[test]
    fn answers_stand_where_sorting_would_put_them() {
        assert_eq!(one(&[0.9, 0.8, 0.7, 0.6], &[3, 1], &[]), [1, 3]);
        assert_eq!(one(&[0.9, 0.8, 0.7, 0.6], &[3, 1], &[0, 2]), [0, 1]);
        assert_eq!(one(&[0.5; 6], &[4, 1], &[0]), [0, 3]);
        assert_eq!(one(&[0.5, 0.5], &[], &[1]), Vec::<usize>::new());
        // Of an answer that is ignored too, the answer counts.
        assert_eq!(one(&[0.9, 0.8], &[1], &[0, 1]), [0]);
    }

    #[test]
    fn what_is_no_number_helps_no_answer() {
        let gallery = InMemory { values: &[1.0, 2.0, 3.0], dimension: 1 };
        let judgement = vec![vec![Judgement::new(vec![0], Vec::new())]];
        let ranks = ranks(&[f32::NAN], &gallery, &judgement, &mut |_| ()).unwrap();
        assert!(ranks[0][0][0] >= 2, "{ranks:?}");
    }

    #[test]
    fn several_blocks_are_one_gallery() {
        let n = 2 * BLOCK + 17;
        let values: Vec<f32> = (0..n).map(|row| ((row * 7919) % n) as f32 / n as f32).collect();
        let positives: Vec<usize> = (0..n).step_by(511).collect();
        let ignored: Vec<usize> = (5..n).step_by(97).collect();
        let judgement = Judgement::new(positives, ignored);
        let mut order: Vec<usize> = (0..n).filter(|row| !judgement.ignored.contains(row)).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        let wanted: Vec<usize> =
            (0..order.len()).filter(|&rank| judgement.positives.contains(&order[rank])).collect();
        assert_eq!(one(&values, &judgement.positives, &judgement.ignored), wanted);
    }
}
