//! Numbers from the ranks of a query's answers. Ranks are 0-based, ascending, and do not count ignored rows.

/// Average precision as the Oxford and Paris protocols integrate it: the trapezoid rule over the steps of recall,
/// 1 / n sum_j (p(j) + p'(j)) / 2, where before the j-th answer (0-based, at rank r) precision is j / r (1 at rank 0), and
/// after it (j + 1) / (r + 1). Radenović et al., "Revisiting Oxford and Paris", CVPR 2018, and the official script.
pub fn trapezoid_average_precision(ranks: &[usize]) -> f64 {
    let area = |(j, &rank): (usize, &usize)| {
        let before = if rank == 0 { 1.0 } else { j as f64 / rank as f64 };
        let after = (j + 1) as f64 / (rank + 1) as f64;
        f64::midpoint(before, after)
    };
    mean_over(ranks.len(), ranks.iter().enumerate().map(area))
}

/// Average precision: the mean, over all answers, of the precision at the answer's rank.
pub fn average_precision(ranks: &[usize]) -> f64 {
    average_precision_at(ranks, usize::MAX)
}

/// Average precision of a list that ends after `k` places: the sum of the precisions at the answers in it, over
/// min(answers, k). Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, with k = 100.
pub fn average_precision_at(ranks: &[usize], k: usize) -> f64 {
    let precisions = ranks
        .iter()
        .enumerate()
        .filter(|(_, rank)| **rank < k)
        .map(|(j, &rank)| (j + 1) as f64 / (rank + 1) as f64);
    mean_over(ranks.len().min(k), precisions)
}

/// Precision at k as the Oxford and Paris protocols have it: of the first K places, the part that answers, where K is k or,
/// if it is less, the place of the last answer: a query with three answers can reach 1 at k = 10.
pub fn precision_at(ranks: &[usize], k: usize) -> f64 {
    let Some(last) = ranks.last() else { return 0.0 };
    let places = k.min(last + 1);
    ranks.iter().filter(|rank| **rank < places).count() as f64 / places.max(1) as f64
}

/// 1 where one of the first `k` places answers, else 0.
pub fn recall_at(ranks: &[usize], k: usize) -> f64 {
    f64::from(u8::from(ranks.first().is_some_and(|rank| *rank < k)))
}

fn mean_over(count: usize, values: impl Iterator<Item = f64>) -> f64 {
    if count == 0 { 0.0 } else { values.sum::<f64>() / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn the_trapezoids_area_is_that_of_the_drawing() {
        close(trapezoid_average_precision(&[0]), 1.0);
        close(trapezoid_average_precision(&[0, 1, 2]), 1.0);
        // One answer in second place: from (0, 0) up to 1/2.
        close(trapezoid_average_precision(&[1]), 0.25);
        // First and fourth: (1 + 1)/2, then (1/3 + 2/4)/2, halved.
        close(trapezoid_average_precision(&[0, 3]), f64::midpoint(1.0, f64::midpoint(1.0 / 3.0, 0.5)));
        close(trapezoid_average_precision(&[]), 0.0);
    }

    #[test]
    fn precision_is_averaged_over_all_answers() {
        close(average_precision(&[1, 3]), 0.5);
        close(average_precision(&[0, 4]), f64::midpoint(1.0, 0.4));
        close(average_precision(&[]), 0.0);
    }

    #[test]
    fn a_list_of_a_hundred_ends_after_a_hundred() {
        // 99 is its last place; of three answers one is beyond.
        close(average_precision_at(&[0, 99, 100], 100), (1.0 + 2.0 / 100.0) / 3.0);
        // 150 answers, all of the first hundred places: perfect.
        close(average_precision_at(&(0..150).collect::<Vec<_>>(), 100), 1.0);
        close(average_precision_at(&[200], 100), 0.0);
    }

    #[test]
    fn precision_at_k_knows_how_many_answers_there_are() {
        close(precision_at(&[0, 1, 2], 10), 1.0);
        close(precision_at(&[0, 1, 2], 1), 1.0);
        close(precision_at(&[1, 3], 10), 0.5);
        close(precision_at(&[4, 20], 5), 0.2);
        close(precision_at(&[20], 5), 0.0);
        close(precision_at(&[], 5), 0.0);
    }

    #[test]
    fn recall_asks_for_one_answer() {
        close(recall_at(&[3, 9], 3), 0.0);
        close(recall_at(&[3, 9], 4), 1.0);
        close(recall_at(&[], 4), 0.0);
    }
}
