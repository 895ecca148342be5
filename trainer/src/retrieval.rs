//! How well queries find their answers.

use serde::{Deserialize, Serialize};

use crate::evaluation::measures::{average_precision, recall_at};
use crate::evaluation::ranking::{Judgement, ranks};
use crate::matrix::InMemory;
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
    assert_eq!(queries.len(), answers.len() * dimension, "one row for each query");
    let judgements = answers.iter().map(|answers| Judgement::new(answers.clone(), Vec::new())).collect();
    let gallery = InMemory { values: gallery, dimension };
    let ranks = match ranks(queries, &gallery, &[judgements], &mut |_| ()) {
        Ok(ranks) => ranks.concat(),
        Err(error) => unreachable!("rows in memory can be read: {error}"),
    };
    let mean = |of: fn(&[usize]) -> f64| {
        ranks.iter().map(|ranks| of(ranks)).sum::<f64>() / ranks.len().max(1) as f64
    };
    Scores {
        map: mean(average_precision),
        recall_at_1: mean(|ranks| recall_at(ranks, 1)),
        recall_at_10: mean(|ranks| recall_at(ranks, 10)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(role: &str, object: &str) -> Photo {
        Photo { role: role.into(), object: object.into(), ..Photo::at("x.jpg") }
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
