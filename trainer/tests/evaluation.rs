//! The protocols against an independent Python version on random rankings, and ground-truth files as Python writes them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use glimpse_trainer::evaluation::{DataSet, DataSetError, Measures, Setting, evaluate, ranking::Judgement};
use glimpse_trainer::matrix::{InMemory, Stacked};
use glimpse_trainer::photos::{Photo, PhotoList};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

mod common;

const QUERIES: usize = 12;
const ROWS: usize = 160;
const DISTRACTORS: usize = 300;
const D: usize = 3;

/// One query's rows, drawn without repeats.
#[derive(Clone)]
struct Truth {
    easy: Vec<usize>,
    hard: Vec<usize>,
    junk: Vec<usize>,
}

fn truths(random: &mut ChaCha8Rng) -> Vec<Truth> {
    let mut truth = |number: usize| {
        let mut rows: Vec<usize> = (0..ROWS).collect();
        rows.shuffle(random);
        // Some queries have no easy answer, some no hard one, and one has more than a hundred.
        if number == 0 {
            return Truth { easy: rows[..120].to_vec(), hard: Vec::new(), junk: rows[120..].to_vec() };
        }
        let mut take = |most: usize| rows.split_off(rows.len() - random.random_range(0..=most));
        Truth { easy: take(6), hard: take(9), junk: take(20) }
    };
    (0..QUERIES).map(&mut truth).collect()
}

fn vectors(count: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    // Coarse steps, so that many similarities are equal, exactly representable in both languages.
    (0..count * D).map(|_| f32::from(random.random_range(-4_i8..=4)) / 4.0).collect()
}

fn photos(count: usize) -> PhotoList {
    PhotoList::of(Path::new(""), (0..count).map(|number| Photo::at(format!("{number}.jpg"))).collect())
}

fn ground_truth(truth: &[Truth]) -> Value {
    let entry = |t: &Truth| json!({ "bbx": [10.5, 20.5, 300, 400.2], "easy": t.easy, "hard": t.hard, "junk": t.junk });
    json!({
        "imlist": (0..ROWS).map(|row| format!("photo_{row:04}")).collect::<Vec<_>>(),
        "qimlist": (0..truth.len()).map(|query| format!("frage_{query}_ü")).collect::<Vec<_>>(),
        "gnd": truth.iter().map(entry).collect::<Vec<_>>(),
    })
}

fn assert_close(ours: &[(&'static str, f64)], theirs: &Value, what: &str) {
    let theirs: Vec<f64> = serde_json::from_value(theirs.clone()).unwrap();
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for ((name, ours), theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 1e-9, "{what} {name}: {ours}, and Python has {theirs}");
    }
}

#[test]
fn every_protocol_agrees_with_python_on_random_rankings() {
    let Some(python) = common::python("every_protocol_agrees_with_python_on_random_rankings") else { return };
    for seed in 0..5 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let truth = truths(&mut random);
        let (queries, gallery) = (vectors(QUERIES, &mut random), vectors(ROWS, &mut random));
        let distractors = vectors(DISTRACTORS, &mut random);
        let rows = || gallery.chunks_exact(D).chain(distractors.chunks_exact(D));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let similarities: Vec<Vec<f64>> =
            queries.chunks_exact(D).map(|query| rows().map(|row| dot(query, row)).collect()).collect();
        let truth_json = ground_truth(&truth);
        let case = json!({ "similarities": similarities, "truth": truth_json["gnd"] });
        let theirs: Value =
            serde_json::from_slice(&python.run("evaluation.py", &[], case.to_string().as_bytes())).unwrap();

        // Through the pickle, as users would.
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        python.run("evaluation.py", &["pickles", folder], truth_json.to_string().as_bytes());
        let revisited = DataSet::revisited(&dir.path().join("4.pkl"), Path::new("photos")).unwrap();
        let memory = |values| InMemory { values, dimension: D };
        let (core, more) = (memory(&gallery), memory(&distractors));
        let all = Stacked::new(vec![&core, &more]);
        for figures in evaluate(&revisited, &memory(&queries), &all, "test").unwrap() {
            assert_close(&figures.values, &theirs[&figures.setting], &figures.setting);
        }

        let judgements = truth.iter().map(|truth| Judgement::new(truth.easy.clone(), Vec::new())).collect();
        for (measures, name) in [(Measures::At100, "landmarks"), (Measures::Recall, "recall")] {
            let data = DataSet {
                gallery: photos(ROWS),
                queries: photos(QUERIES),
                settings: vec![Setting { name: "", judgements: Vec::clone(&judgements) }],
                measures,
                may_lack_photos: false,
            };
            let figures = evaluate(&data, &memory(&queries), &all, "test").unwrap();
            assert_close(&figures[0].values, &theirs[name], name);
        }
    }
}

#[test]
fn ground_truth_of_every_pickle_protocol_is_read() {
    let Some(python) = common::python("ground_truth_of_every_pickle_protocol_is_read") else { return };
    let truth = [
        Truth { easy: vec![3, 0], hard: vec![], junk: vec![159] },
        Truth { easy: vec![], hard: vec![1, 2, 70], junk: vec![] },
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut names = ground_truth(&truth);
    // Protocol 0 escapes what is not ASCII, which our reader leaves to later protocols.
    names["qimlist"] = json!(["all_souls_000013", "ashmolean_000058"]);
    python.run("evaluation.py", &["pickles", dir.path().to_str().unwrap()], names.to_string().as_bytes());
    for protocol in 0..=5 {
        let path = dir.path().join(format!("{protocol}.pkl"));
        let data = DataSet::revisited(&path, Path::new("jpg")).unwrap();
        assert_eq!((data.gallery.photos().len(), data.queries.photos().len()), (ROWS, 2), "{protocol}");
        assert_eq!(data.queries.file(1), Path::new("jpg/ashmolean_000058.jpg"));
        // Halves go to the even side.
        assert_eq!(data.queries.photos()[0].crop, Some([10, 20, 300, 400]));
        let judgement = |positives: &[usize], ignored: &[usize]| Judgement {
            positives: positives.to_vec(),
            ignored: ignored.to_vec(),
        };
        assert_eq!(data.settings[0].judgements, [judgement(&[0, 3], &[159]), judgement(&[], &[1, 2, 70])]);
        assert_eq!(data.settings[1].judgements, [judgement(&[0, 3], &[159]), judgement(&[1, 2, 70], &[])]);
        assert_eq!(data.settings[2].judgements, [judgement(&[], &[0, 3, 159]), judgement(&[1, 2, 70], &[])]);
    }
}

#[test]
fn ground_truth_that_contradicts_itself_is_named() {
    let Some(python) = common::python("ground_truth_that_contradicts_itself_is_named") else { return };
    let truth = [Truth { easy: vec![3], hard: vec![], junk: vec![] }];
    let with = |change: &dyn Fn(&mut Value)| {
        let mut truth = ground_truth(&truth);
        change(&mut truth);
        let dir = tempfile::tempdir().unwrap();
        python.run("evaluation.py", &["pickles", dir.path().to_str().unwrap()], truth.to_string().as_bytes());
        DataSet::revisited(&dir.path().join("2.pkl"), Path::new("jpg")).unwrap_err().to_string()
    };
    for (wanted, change) in [
        (
            "gnd[0]: easy: row 160 of 160",
            (&|t: &mut Value| t["gnd"][0]["easy"] = json!([160])) as &dyn Fn(&mut Value),
        ),
        ("gnd[0]: easy: it is no list", &|t| t["gnd"][0]["easy"] = json!("3")),
        ("gnd[0]: hard: it is no whole number", &|t| t["gnd"][0]["hard"] = json!([0.5])),
        ("gnd[0]: bbx has 3 sides", &|t| t["gnd"][0]["bbx"] = json!([1, 2, 3])),
        ("is empty", &|t| t["gnd"][0]["bbx"] = json!([5, 5, 5, 9])),
        ("it has no `junk`", &|t| drop(t["gnd"][0].as_object_mut().unwrap().remove("junk"))),
        ("1 queries have 0 entries", &|t| t["gnd"] = json!([])),
        ("no name of a photo", &|t| t["imlist"][0] = json!("../../etc/passwd")),
        ("it is no dictionary", &|t| *t = json!([1])),
    ] {
        let error = with(change);
        assert!(error.contains("is no ground truth of this protocol") && error.contains(wanted), "{error}");
    }
}

#[test]
fn the_landmarks_solution_leaves_ignored_queries_out_and_misses_no_photo() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let touch = |name: &str| {
        std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        std::fs::write(path(name), b"").unwrap();
    };
    for name in
        ["index/a/b/c/abc1.jpg", "index/d/e/f/def2.jpg", "index/x.jpg", "test/0/q1.jpg", "test/0/q2.jpg"]
    {
        touch(name);
    }
    let read = |solution: &str| {
        std::fs::write(path("solution.csv"), solution).unwrap();
        DataSet::landmarks(&path("solution.csv"), &path("index"), &path("test"))
    };
    let data = read("id,images,Usage\nq2,def2 abc1,Private\nq1,None,Ignored\n").unwrap();
    assert_eq!(data.gallery.photos().len(), 3);
    assert_eq!(data.queries.photos()[0].path, Path::new("0/q2.jpg"));
    assert_eq!(data.settings[0].judgements, [Judgement::new(vec![0, 1], Vec::new())]);

    let error = read("id,images,Usage\nq2,gone,Public\n").unwrap_err();
    assert!(matches!(&error, DataSetError::Missing { id, .. } if id == "gone"), "{error}");
    let error = read("id,images,Usage\nq9,abc1,Public\n").unwrap_err();
    assert!(matches!(&error, DataSetError::Missing { id, .. } if id == "q9"), "{error}");
    assert!(matches!(read("id,images,Usage\nq1,abc1,Ignored\n"), Err(DataSetError::NoQuery(_))));
    assert!(read("id,pictures\n").unwrap_err().to_string().contains("no column `images`"));
    assert!(read("id,images,Usage\nq1\n").unwrap_err().to_string().contains("is no ground truth"));
}

#[test]
fn photos_that_are_missing_leave_the_rest_in_place() {
    let data = DataSet {
        gallery: photos(5),
        queries: photos(3),
        settings: vec![Setting {
            name: "",
            judgements: vec![
                Judgement::new(vec![0, 4], vec![2]),
                Judgement::new(vec![1], vec![]),
                Judgement::new(vec![3], vec![]),
            ],
        }],
        measures: Measures::Recall,
        may_lack_photos: true,
    };
    let kept = data.keep(&[0, 2, 3, 4], &[0, 1]);
    assert_eq!((kept.gallery.photos().len(), kept.queries.photos().len()), (4, 2));
    assert_eq!(
        kept.settings[0].judgements,
        [Judgement::new(vec![0, 3], vec![1]), Judgement::new(vec![], vec![])]
    );
}
