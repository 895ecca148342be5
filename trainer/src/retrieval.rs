//! How well queries find their answers.

use serde::{Deserialize, Serialize};

use crate::photos::Photo;

/// Which gallery photos answer which query: all of the same object. Distractors stand in the gallery and answer nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Numbers of the query photos in the list.
    pub queries: Vec<u32>,
    /// Numbers of the gallery and distractor photos in the list.
    pub gallery: Vec<u32>,
    /// For each query the positions in `gallery` that answer it; never empty.
    pub answers: Vec<Vec<usize>>,
}

impl Task {
    /// Reads roles and objects of the photos that are `present` (could be decoded); queries without an answer in the
    /// gallery are left out.
    pub fn new(photos: &[Photo], present: impl Fn(u32) -> bool) -> Self {
        let numbered = || (0_u32..).zip(photos).filter(|(number, _)| present(*number));
        let gallery: Vec<(u32, &Photo)> = numbered()
            .filter(|(_, photo)| ["gallery", "distractor"].contains(&photo.role.as_str()))
            .collect();
        let answers = |query: &Photo| -> Vec<usize> {
            let same = |photo: &Photo| photo.role == "gallery" && photo.object == query.object;
            (0..gallery.len()).filter(|&position| same(gallery[position].1)).collect()
        };
        let (queries, answers) = numbered()
            .filter(|(_, photo)| photo.role == "query")
            .map(|(number, photo)| (number, answers(photo)))
            .filter(|(_, answers)| !answers.is_empty())
            .unzip();
        Self { queries, gallery: gallery.iter().map(|(number, _)| *number).collect(), answers }
    }
}

/// Means over all queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean average precision: for each query the mean, over its answers, of the precision at that answer's rank.
    pub map: f64,
    /// Part of the queries with an answer in first place.
    pub recall_at_1: f64,
    /// Part of the queries with an answer among the first ten.
    pub recall_at_10: f64,
}

/// Ranks the gallery for each query by inner product (larger means nearer) and scores the order. Queries are `[q, D]`,
/// the gallery is `[n, D]`, both unit rows; `answers` are those of [`Task`].
pub fn score(queries: &[f32], gallery: &[f32], dimension: usize, answers: &[Vec<usize>]) -> Scores {
    let (q, n) = (answers.len(), gallery.len() / dimension);
    assert_eq!(queries.len(), q * dimension, "one row for each query");
    let mut similarities = vec![0.0_f32; q * n];
    // SAFETY: queries are q x D row-major, the transposed gallery is D x n, and the result is q x n row-major.
    unsafe {
        matrixmultiply::sgemm(
            q,
            dimension,
            n,
            1.0,
            queries.as_ptr(),
            dimension as isize,
            1,
            gallery.as_ptr(),
            1,
            dimension as isize,
            0.0,
            similarities.as_mut_ptr(),
            n as isize,
            1,
        );
    }
    let mut sums = Scores { map: 0.0, recall_at_1: 0.0, recall_at_10: 0.0 };
    for (similarities, answers) in similarities.chunks_exact(n.max(1)).zip(answers) {
        let mut ranks: Vec<usize> = answers.iter().map(|&answer| rank(similarities, answer)).collect();
        ranks.sort_unstable();
        let first = ranks.first().copied().unwrap_or(usize::MAX);
        let precisions = (1..).zip(&ranks).map(|(found, &rank)| f64::from(found) / (rank + 1) as f64);
        sums.map += precisions.sum::<f64>() / ranks.len() as f64;
        sums.recall_at_1 += f64::from(u8::from(first == 0));
        sums.recall_at_10 += f64::from(u8::from(first < 10));
    }
    let count = q.max(1) as f64;
    Scores {
        map: sums.map / count,
        recall_at_1: sums.recall_at_1 / count,
        recall_at_10: sums.recall_at_10 / count,
    }
}

/// How many stand before `answer`; of equals, those with a smaller number. A network that gives one vector for
/// everything must not look good, so an answer stands behind whatever is not less similar.
fn rank(similarities: &[f32], answer: usize) -> usize {
    let own = similarities[answer];
    let before = |(position, &other): (usize, &f32)| {
        other > own || (other == own && position < answer) || other.is_nan()
    };
    similarities.iter().enumerate().filter(|&entry| before(entry)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(role: &str, object: &str) -> Photo {
        Photo { path: "x.jpg".into(), role: role.into(), object: object.into() }
    }

    #[test]
    fn answers_are_the_gallery_photos_of_the_same_object() {
        let photos = [
            photo("gallery", "a"),
            photo("query", "a"),
            photo("distractor", ""),
            photo("query", "nowhere"),
            photo("gallery", "a"),
            photo("unlabelled", ""),
            photo("query", ""),
            photo("gallery", "a"),
        ];
        let task = Task::new(&photos, |number| number != 7);
        assert_eq!(task, Task { queries: vec![1], gallery: vec![0, 2, 4], answers: vec![vec![0, 2]] });
    }

    #[test]
    fn average_precision_is_the_mean_precision_at_each_answer() {
        // Similarities of the one query: .9 .8 .7 .6; answers in places 2 and 4: (1/2 + 2/4) / 2.
        let scores = score(&[1.0], &[0.9, 0.8, 0.7, 0.6], 1, &[vec![3, 1]]);
        assert_eq!(scores, Scores { map: 0.5, recall_at_1: 0.0, recall_at_10: 1.0 });
    }

    #[test]
    fn a_constant_network_is_no_better_than_the_list_order() {
        let scores = score(&[1.0, 1.0], &[1.0; 20], 1, &[vec![0], vec![19]]);
        assert_eq!(
            scores,
            Scores { map: f64::midpoint(1.0, 1.0 / 20.0), recall_at_1: 0.5, recall_at_10: 0.5 }
        );
    }
}
