//! Searches against the definition: every option, every size, from memory and from the file.

use std::sync::Arc;

use super::*;
use crate::testing::{codebook, images, random_units, snapshot};
use crate::view::{QueryOptions, View};

const GO: fn(Stage, usize, usize) -> bool = |_, _, _| true;

/// Unit vectors around centres, as photos of things are.
fn clustered(count: usize, dimension: usize, seed: u64) -> Vec<f32> {
    let things = random_units(count.div_ceil(20), dimension, seed);
    let noise = random_units(count, dimension, seed + 1);
    let mut all = noise;
    for (number, x) in all.chunks_exact_mut(dimension).enumerate() {
        let thing = &things[number / 20 * dimension..][..dimension];
        x.iter_mut().zip(thing).for_each(|(x, thing)| *x = thing + 0.7 * *x);
        normalize(x);
    }
    all
}

fn vectors(features: &[f32], dimension: usize, options: &IndexOptions) -> VectorIndex {
    VectorIndex::build(features, dimension, options, &mut { GO }).unwrap()
}

/// A gallery of nothing but an index.
fn view(snapshot: Snapshot, options: &IndexOptions) -> View {
    View::of(Arc::new(Index::build(snapshot, None, options, &mut { GO }).unwrap()))
}

/// The definition, in double precision.
fn naive(
    features: &[f32],
    query: &[f32],
    top_k: usize,
    admitted: impl Fn(usize) -> bool,
) -> Vec<(usize, f64)> {
    let mut all: Vec<(usize, f64)> = features
        .chunks(query.len())
        .map(|row| row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        .enumerate()
        .filter(|(row, _)| admitted(*row))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(top_k);
    all
}

#[test]
fn exact_search_agrees_with_the_definition() {
    let features = random_units(500, 20, 1);
    let options = IndexOptions { precision: Precision::F32, ..IndexOptions::default() };
    let gallery = view(snapshot(20, &features), &options);
    let exactly = SearchOptions { exact: true, ..SearchOptions::top(7) };
    for query in random_units(20, 20, 2).chunks(20) {
        let hits = gallery.search(query, &exactly.into(), None).remove(0);
        assert_eq!(hits.len(), 7);
        for (hit, (image, similarity)) in hits.iter().zip(naive(&features, query, 7, |_| true)) {
            assert_eq!(hit.image.id, format!("{image:06}"));
            // 20 products of at most 1 in single precision.
            assert!((f64::from(hit.similarity) - similarity).abs() < 1e-5);
        }
    }
}

/// Which indexes there are: codes of 4 and 8 bits and a given codebook, with and without lists, residual or not, at each
/// precision.
fn kinds(features: &[f32], dimension: usize) -> Vec<(String, IndexOptions)> {
    let given = codebook(dimension, dimension / 4, 16, features);
    let mut all = Vec::new();
    for codes in [
        CodesOption::Four { sub_spaces: None },
        CodesOption::Eight { sub_spaces: None },
        CodesOption::Given(given),
    ] {
        for (lists, residual) in [(0, false), (30, false), (30, true)] {
            for precision in [Precision::F16, Precision::I8] {
                if residual && matches!(codes, CodesOption::Given(_)) {
                    continue;
                }
                let codes = codes.clone();
                let kind = match codes {
                    CodesOption::Given(_) => "given",
                    CodesOption::Eight { .. } => "8 bits",
                    _ => "4 bits",
                };
                let name = format!("{kind} {lists} {residual} {precision:?}");
                let options = IndexOptions {
                    lists: Some(lists),
                    codes,
                    residual,
                    precision,
                    ..IndexOptions::default()
                };
                all.push((name, options));
            }
        }
    }
    all
}

/// Queries near vectors, as photos of one thing are, find them through any codes: the exact ranking repairs what they confuse.
#[test]
fn every_kind_of_codes_finds_what_exact_search_finds() {
    let (dimension, count) = (32, 3000);
    let features = clustered(count, dimension, 3);
    let queries = clustered(count, dimension, 3 + 1000)[..100 * dimension].to_vec();
    let truth: Vec<Vec<usize>> = queries
        .chunks(dimension)
        .map(|query| naive(&features, query, 10, |_| true).into_iter().map(|found| found.0).collect())
        .collect();
    for (name, options) in kinds(&features, dimension) {
        let index = vectors(&features, dimension, &options);
        let found = index.search(
            &queries,
            &SearchOptions { rerank: Some(300), probes: Some(30), ..SearchOptions::top(10) },
            None,
        );
        let hits = truth.iter().zip(&found).map(|(truth, found)| {
            found.iter().filter(|neighbour| truth.contains(&(neighbour.row as usize))).count()
        });
        let recall = hits.sum::<usize>() as f32 / 1000.0;
        // The given codebook is no trained one.
        assert!(recall > if name.starts_with("given") { 0.8 } else { 0.93 }, "{name}: {recall}");
        for (query, found) in queries.chunks(dimension).zip(&found) {
            assert!(found.is_sorted_by(|a, b| a.similarity >= b.similarity), "{name}");
            for neighbour in found {
                let row = &features[neighbour.row as usize * dimension..][..dimension];
                let exact: f32 = row.iter().zip(query).map(|(a, b)| a * b).sum();
                let most = options.precision.error_max(dimension) + 1e-5;
                assert!((neighbour.similarity - exact).abs() <= most, "{name}");
            }
        }
        // What was measured on vectors of the gallery holds.
        let measured = index.recall().unwrap();
        assert!(measured.curve.is_sorted_by(|a, b| a.0 < b.0), "{name}: {measured:?}");
        assert!(measured.curve.last().unwrap().1 > 0.8, "{name}: {measured:?}");
    }
}

#[test]
fn queries_of_a_batch_get_the_answers_that_each_gets_alone() {
    let (dimension, count) = (16, 2000);
    let features = clustered(count, dimension, 5);
    for (name, options) in kinds(&features, dimension) {
        let index = vectors(&features, dimension, &options);
        let queries = &features[..150 * dimension];
        for search in [
            SearchOptions::top(5),
            SearchOptions { rerank: Some(0), ..SearchOptions::top(5) },
            SearchOptions { probes: Some(4), ..SearchOptions::top(5) },
        ] {
            let together = index.search(queries, &search, None);
            for (query, found) in queries.chunks(dimension).zip(&together) {
                assert_eq!(index.search(query, &search, None), std::slice::from_ref(found), "{name}");
            }
        }
    }
}

/// From one vector that passes to all of them, with every kind of index.
#[test]
fn filters_are_exact_where_few_pass_and_find_what_passes_elsewhere() {
    let (dimension, count) = (16, 12_000);
    let features = clustered(count, dimension, 7);
    let queries = &features[..20 * dimension];
    for lists in [0, 50] {
        let options = IndexOptions {
            codes: CodesOption::Four { sub_spaces: None },
            lists: Some(lists),
            precision: Precision::F32,
            ..IndexOptions::default()
        };
        let index = vectors(&features, dimension, &options);
        for share in [12_000, 3000, 200, 11, 2, 1] {
            let passes = |row: usize| row % share == 7 % share;
            let filter = index.filter(|row| passes(row as usize));
            assert_eq!(filter.len(), (0..count).filter(|row| passes(*row)).count());
            let found = index.search(queries, &SearchOptions::top(5), Some(&filter));
            let mut hits = 0;
            for (query, found) in queries.chunks(dimension).zip(found) {
                let truth = naive(&features, query, 5, passes);
                assert_eq!(found.len(), truth.len(), "one of {share}");
                assert!(found.iter().all(|neighbour| passes(neighbour.row as usize)));
                hits +=
                    found.iter().filter(|one| truth.iter().any(|(row, _)| *row == one.row as usize)).count();
            }
            let wanted = 20 * 5.min(filter.len());
            // Up to 10 000 that pass are compared exactly.
            let least = if filter.len() <= 10_000 { 1.0 } else { 0.9 };
            assert!(
                hits as f32 >= least * wanted as f32,
                "{hits} of {wanted}, one of {share}, {lists} lists"
            );
        }
        let none = index.filter(|_| false);
        assert!(
            none.is_empty()
                && index.search(queries, &SearchOptions::top(5), Some(&none)).iter().all(Vec::is_empty)
        );
    }
}

#[test]
fn many_images_are_searched_on_all_cores_with_the_same_result() {
    let (dimension, count) = (8, 100_077);
    let features = random_units(count, dimension, 5);
    let options = IndexOptions { codes: CodesOption::Four { sub_spaces: None }, ..IndexOptions::default() };
    let index = vectors(&features, dimension, &options);
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let several = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for row in [0, 9_999, 100_076] {
        let query = &features[row * dimension..][..dimension];
        for search in [
            SearchOptions { exact: true, ..SearchOptions::top(3) },
            SearchOptions { rerank: Some(0), ..SearchOptions::top(20) },
            SearchOptions::top(3),
        ] {
            let alone = single.install(|| index.search(query, &search, None));
            assert_eq!(alone, several.install(|| index.search(query, &search, None)));
            assert!(search.rerank == Some(0) || alone[0][0].row as usize == row);
        }
    }
}

#[test]
fn small_and_empty_galleries_answer_with_what_they_have() {
    let features = random_units(3, 8, 6);
    for codes in [CodesOption::Auto, CodesOption::Given(codebook(8, 4, 2, &features))] {
        let options = IndexOptions { codes, ..IndexOptions::default() };
        let found = |features: &[f32], top_k| {
            let gallery = view(snapshot(8, features), &options);
            assert_eq!(gallery.is_empty(), features.is_empty());
            gallery.search(&random_units(1, 8, 7), &SearchOptions::top(top_k).into(), None).remove(0).len()
        };
        assert_eq!((found(&features, 10), found(&features, 0), found(&[], 10)), (3, 0, 0));
    }
}

#[test]
fn what_does_not_fit_the_gallery_is_refused() {
    let features = random_units(300, 8, 7);
    let error = |codes: Option<Codebook>, options: &IndexOptions| {
        Index::build(snapshot(8, &features), codes, options, &mut { GO }).unwrap_err().to_string()
    };
    let other = codebook(4, 2, 16, &random_units(300, 4, 8));
    let default = IndexOptions::default();
    assert!(error(Some(other.clone()), &default).contains("4 dimensions"));
    assert!(
        error(None, &IndexOptions { codes: CodesOption::Given(other), ..default.clone() })
            .contains("4 dimensions")
    );
    let four = IndexOptions { codes: CodesOption::Four { sub_spaces: None }, ..default.clone() };
    assert!(error(None, &IndexOptions { lists: Some(301), ..four.clone() }).contains("301 lists"));
    assert!(
        error(None, &IndexOptions { codes: CodesOption::Four { sub_spaces: Some(3) }, ..default.clone() })
            .contains("3 equal")
    );
    let given = CodesOption::Given(codebook(8, 2, 16, &features));
    assert!(
        error(None, &IndexOptions { codes: given, residual: true, lists: Some(4), ..default })
            .contains("residual")
    );
    let stopped =
        VectorIndex::build(&features, 8, &four, &mut |stage, _, _| stage != Stage::Encoding).unwrap_err();
    assert_eq!(stopped.to_string(), "stopped");
}

#[test]
fn an_index_from_its_file_answers_as_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let (dimension, count) = (16, 1500);
    let features = clustered(count, dimension, 9);
    for (number, (name, options)) in kinds(&features, dimension).into_iter().enumerate() {
        let path = dir.path().join(format!("{number}.glimpse"));
        let index = vectors(&features, dimension, &options);
        index.save(&path).unwrap();
        let again = VectorIndex::open(&path).unwrap();
        for search in [SearchOptions::top(5), SearchOptions { rerank: Some(0), ..SearchOptions::top(5) }] {
            let queries = &features[..40 * dimension];
            assert_eq!(again.search(queries, &search, None), index.search(queries, &search, None), "{name}");
        }
        assert_eq!(
            (again.describe(), again.recall(), again.bytes()),
            (index.describe(), index.recall(), index.bytes())
        );
    }
    assert!(matches!(VectorIndex::open(&dir.path().join("none")).unwrap_err(), FileError::Missing { .. }));
}

/// Checksums tell damage; these files have the right ones and wrong content.
#[test]
fn a_file_that_lies_about_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.glimpse");
    let features = clustered(600, 16, 11);
    let options = IndexOptions {
        codes: CodesOption::Four { sub_spaces: None },
        lists: Some(5),
        ..IndexOptions::default()
    };
    vectors(&features, 16, &options).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*whole[8..].first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[48..48 + length]).unwrap();
    let edits: [(&str, fn(&mut serde_json::Value)); 10] = [
        ("count", |header| header["count"] = 601.into()),
        ("dimension", |header| header["dimension"] = 8.into()),
        ("no dimension", |header| header["dimension"] = 0.into()),
        ("huge dimension", |header| header["dimension"] = (1_u64 << 62).into()),
        ("precision", |header| header["precision"] = "f32".into()),
        ("lists", |header| header["codes"]["lists"] = false.into()),
        ("offset", |header| header["sections"][0]["offset"] = u64::MAX.into()),
        ("length", |header| header["sections"][0]["bytes"] = 1.into()),
        ("section", |header| header["sections"][1]["name"] = "other".into()),
        ("layout", |header| header["layout"] = "Other".into()),
    ];
    for (name, edit) in edits {
        let mut header = header.clone();
        edit(&mut header);
        let mut text = serde_json::to_vec(&header).unwrap();
        text.resize(length, b' ');
        let mut bytes = whole.clone();
        bytes[16..48].copy_from_slice(blake3::hash(&text).as_bytes());
        bytes[48..48 + length].copy_from_slice(&text);
        std::fs::write(&path, &bytes).unwrap();
        assert!(VectorIndex::open(&path).is_err(), "{name}");
    }
    std::fs::write(&path, &whole).unwrap();
    assert!(VectorIndex::open(&path).is_ok());
    // Vectors alone are no gallery.
    assert!(matches!(Index::open(&path, None).unwrap_err(), FileError::Stale { .. }));
}

#[test]
fn candidates_and_lists_follow_from_the_recall_that_is_wanted() {
    let (dimension, count) = (32, 6000);
    let features = clustered(count, dimension, 13);
    let index = |recall| {
        let codes = CodesOption::Four { sub_spaces: None };
        vectors(
            &features,
            dimension,
            &IndexOptions { codes, lists: Some(64), recall, ..IndexOptions::default() },
        )
    };
    let (low, high) = (index(0.7), index(0.99));
    let (low, high) = (low.recall().unwrap(), high.recall().unwrap());
    assert!(low.probes < high.probes && low.rerank <= high.rerank, "{low:?} {high:?}");
    let found = high.curve.iter().find(|(probes, _)| *probes == high.probes).unwrap().1;
    assert!(found >= 0.99, "{high:?}");
    assert!(high.probes_for(0.7) < high.probes && high.probes_for(2.0) == high.curve.last().unwrap().0);
}

/// Without exact ranking similarities are those of codes, and right on average.
#[test]
fn similarities_of_codes_are_calibrated() {
    let (dimension, count) = (32, 4000);
    let features = clustered(count, dimension, 15);
    let codes = CodesOption::Four { sub_spaces: None };
    let index = vectors(&features, dimension, &IndexOptions { codes, ..IndexOptions::default() });
    let queries = &features[..300 * dimension];
    let by_codes = SearchOptions { rerank: Some(0), ..SearchOptions::top(20) };
    let (mut error, mut all) = (0.0, 0.0);
    for (query, found) in queries.chunks(dimension).zip(index.search(queries, &by_codes, None)) {
        for neighbour in found {
            let row = &features[neighbour.row as usize * dimension..][..dimension];
            let exact: f32 = row.iter().zip(query).map(|(a, b)| a * b).sum();
            error += neighbour.similarity - exact;
            all += 1.0;
        }
    }
    let bias: f32 = error / all;
    assert!(bias.abs() < 0.03, "{bias}");
}

fn labelled(dimension: usize, features: &[f32], label: impl Fn(usize) -> String) -> Snapshot {
    let mut images = images(features.len() / dimension);
    images.iter_mut().enumerate().for_each(|(row, image)| image.label = label(row));
    Snapshot { images: images.iter().collect(), ..snapshot(dimension, features) }
}

#[test]
fn photos_of_things_that_are_not_there_get_no_match() {
    let (dimension, things) = (32, 100);
    // Twenty photos of each thing; those of the last twenty things are not in the gallery.
    let all = clustered(things * 20, dimension, 17);
    let known = 80 * 20;
    let gallery = labelled(dimension, &all[..known * dimension], |row| format!("thing {}", row / 20));
    let gallery = view(gallery, &IndexOptions::default());
    let unknown = gallery.base().vectors().unknown().unwrap();
    let search = QueryOptions { unknown_below: Some(unknown.below), ..SearchOptions::top(3).into() };
    let answered = |rows: std::ops::Range<usize>, options: &QueryOptions| -> Vec<bool> {
        let found = gallery.search(&all[rows.start * dimension..rows.end * dimension], options, None);
        found.into_iter().map(|found| !found.is_empty()).collect()
    };
    let matched = |rows: std::ops::Range<usize>| {
        let answered = answered(rows, &search);
        answered.iter().filter(|answered| **answered).count() as f32 / answered.len() as f32
    };
    assert_eq!(matched(0..known), 1.0);
    // A hundredth was wanted; 400 photos tell it to about as much.
    assert!(matched(known..things * 20) <= 0.03);
    assert!(unknown.kept.unwrap() > 0.9 && unknown.photos == known, "{unknown:?}");

    // Expansion must not bring a match back.
    let expanded = QueryOptions { expansion: Some(Expansion::new(5)), ..search };
    let strangers = known..things * 20;
    assert_eq!(answered(strangers.clone(), &expanded), answered(strangers, &search));
}

#[test]
fn a_gallery_of_one_thing_teaches_nothing_about_unknown_ones() {
    let features = clustered(300, 8, 19);
    let gallery = labelled(8, &features, |_| "the thing".to_owned());
    let index = Index::build(gallery, None, &IndexOptions::default(), &mut { GO }).unwrap();
    assert_eq!(index.vectors().unknown(), None);
    // Nor do photos without labels, which may show one thing or many.
    let gallery = labelled(8, &features, |_| String::new());
    let index = Index::build(gallery, None, &IndexOptions::default(), &mut { GO }).unwrap();
    assert_eq!(index.vectors().unknown(), None);
}

/// A filter that takes whole lists, and none of those near the query; and more matches than the lists at hand have.
#[test]
fn what_the_lists_at_hand_do_not_hold_is_found_all_the_same() {
    let (dimension, count) = (16, 25_000);
    let features = clustered(count, dimension, 25);
    let codes = CodesOption::Four { sub_spaces: None };
    let index =
        vectors(&features, dimension, &IndexOptions { codes, lists: Some(500), ..IndexOptions::default() });
    let query = &features[..dimension];
    let far = naive(&features, query, count, |_| true).split_off(count / 2);
    let admitted: std::collections::HashSet<usize> = far.iter().map(|found| found.0).collect();
    let filter = index.filter(|row| admitted.contains(&(row as usize)));
    let search = SearchOptions { probes: Some(1), ..SearchOptions::top(5) };
    let found = index.search(query, &search, Some(&filter)).remove(0);
    assert!(found.len() == 5 && found.iter().all(|one| admitted.contains(&(one.row as usize))), "{found:?}");
    assert_eq!(index.search(query, &SearchOptions { top_k: 300, ..search }, None)[0].len(), 300);
}

/// Photos of one thing help each other: with the query or the features expanded, more of them are found.
#[test]
fn expansion_and_augmentation_find_more_of_a_thing() {
    let (dimension, count) = (24, 2000);
    let features = {
        let mut features = clustered(count, dimension, 21);
        let noise = random_units(count, dimension, 23);
        for (x, noise) in features.chunks_exact_mut(dimension).zip(noise.chunks_exact(dimension)) {
            x.iter_mut().zip(noise).for_each(|(x, noise)| *x += 0.5 * noise);
            normalize(x);
        }
        features
    };
    let found = |gallery: &View, options: &QueryOptions| {
        let queries = &features[..400 * dimension];
        let found = gallery.search(queries, options, None);
        let same = |(query, found): (usize, Vec<Hit<'_>>)| {
            found.into_iter().filter(|hit| hit.image.label == format!("thing {}", query / 20)).count()
        };
        found.into_iter().enumerate().map(same).sum::<usize>() as f32 / (400.0 * 20.0)
    };
    let things = || labelled(dimension, &features, |row| format!("thing {}", row / 20));
    let augment = Some(Expansion::new(8));
    let plain = view(things(), &IndexOptions::default());
    let augmented = view(things(), &IndexOptions { augment, ..IndexOptions::default() });
    let search = QueryOptions::from(SearchOptions::top(20));
    let expanded = QueryOptions { expansion: augment, ..search };
    let (before, by_query, by_gallery) =
        (found(&plain, &search), found(&plain, &expanded), found(&augmented, &search));
    assert!(by_query > before + 0.02 && by_gallery > before + 0.02, "{before} {by_query} {by_gallery}");
}
