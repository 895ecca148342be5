//! The loop on a tiny problem: it learns, and a run that was stopped and resumed is the run that was not.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor};
use glimpse_quantizer::Codebook;
use glimpse_trainer::features::Features;
use glimpse_trainer::losses::{GlobalCosine, Loss, Ssp};
use glimpse_trainer::networks::HeadWeights;
use glimpse_trainer::projection::Projection;
use glimpse_trainer::training::{
    Run, TrainingConfig, TrainingError, TrainingSet, Validation, initialise, read_best,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const MAP: [usize; 3] = [4, 2, 2];
const CHANNELS: usize = 6;
const D: usize = 4;
const VIEWS: usize = 40;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn maps(n: usize, seed: u64) -> Features {
    Features::from_f32(MAP.to_vec(), (0..n as u32).collect(), random(n * 16, seed))
}

fn head(seed: u64) -> HeadWeights {
    HeadWeights {
        map_channels: MAP[0],
        channels: CHANNELS,
        conv_weight: random(CHANNELS * MAP[0], seed),
        conv_bias: vec![0.5; CHANNELS],
        projection: Projection { weight: random(CHANNELS * D, seed + 1), bias: vec![0.0; D] },
    }
}

/// The teacher is a head like the student, with other weights: what it does can be learned.
fn problem() -> (TrainingSet, Validation, Vec<(f64, Box<dyn Loss>)>) {
    let teacher = head(10).head(&Device::flex());
    let embed = |maps: &Features| -> Vec<f32> {
        let tensor = Tensor::<4>::from_data(
            burn::tensor::TensorData::new(maps.to_f32(), [maps.len(), MAP[0], MAP[1], MAP[2]]),
            &Device::flex(),
        );
        teacher.forward(tensor).try_into_vec_as().unwrap()
    };
    let train = maps(VIEWS, 1);
    let embeddings = Features::from_f32(vec![D], (0..VIEWS as u32).collect(), embed(&train));
    let queries = maps(12, 2);
    let gallery = embed(&queries);
    let validation = Validation { queries, gallery, answers: (0..12).map(|i| vec![i]).collect() };
    let device = Device::flex().autodiff();
    let codebook = Codebook::new(2, 8, D, random(2 * 8 * 2, 5), None).unwrap();
    let losses: Vec<(f64, Box<dyn Loss>)> =
        vec![(1.0, Box::new(Ssp::new(&codebook, 0.1, &device))), (0.5, Box::new(GlobalCosine))];
    (TrainingSet::new(train, embeddings).unwrap(), validation, losses)
}

/// Runs `act` on a run in `folder`.
fn with_run<T>(folder: &Path, learning_rate: f64, act: impl FnOnce(&Run) -> T) -> T {
    let (set, validation, losses) = problem();
    let config =
        TrainingConfig { steps: 20, batch: 16, learning_rate, warm_up: 3, weight_decay: 0.01, seed: 7 };
    let settings = json!({ "training": &config, "network": "tiny" });
    act(&Run {
        config: &config,
        settings: &settings,
        losses: &losses,
        set: &set,
        validation: &validation,
        folder,
    })
}

/// Raises the flag as soon as the checkpoint of an epoch is there.
fn stop_after_the_first_epoch(folder: &Path, stop: &AtomicBool, done: &AtomicBool) {
    while !folder.join("checkpoint.safetensors").exists() && !done.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
}

#[test]
fn a_stopped_and_resumed_run_equals_one_that_was_not() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let never = AtomicBool::new(false);
    let expected = with_run(whole.path(), 0.01, |run| run.start(head(20), &never).unwrap());
    assert!(expected.complete && expected.step == 20);

    let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let first = std::thread::scope(|scope| {
        scope.spawn(|| stop_after_the_first_epoch(parts.path(), &stop, &done));
        let outcome = with_run(parts.path(), 0.01, |run| run.start(head(20), &stop).unwrap());
        done.store(true, Ordering::Relaxed);
        outcome
    });
    // The flag is raised from outside; where the run was quicker, the test below holds all the same.
    assert_eq!(first.complete, first.step == 20);
    let resumed = with_run(parts.path(), 0.01, |run| run.resume(&never).unwrap());
    assert_eq!(resumed, expected);
    let metrics = |folder: &Path| -> Vec<(u64, f64)> {
        let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| (line["step"].as_u64().unwrap(), line["validation"]["map"].as_f64().unwrap()))
            .collect()
    };
    assert_eq!(metrics(whole.path()), metrics(parts.path()));
    assert_eq!(metrics(whole.path()).len(), 10);
}

#[test]
fn training_lowers_the_loss_and_keeps_the_best_head() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = with_run(folder.path(), 0.03, |run| run.start(head(20), &AtomicBool::new(false)).unwrap());
    let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["losses"]["ssp"].as_f64().unwrap()
        })
        .collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    let (best, settings) = read_best(folder.path()).unwrap();
    assert_eq!(best, outcome.best);
    assert_eq!(settings["network"], "tiny");
}

#[test]
fn a_checkpoint_of_another_configuration_names_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    let outcome = with_run(folder.path(), 0.01, |run| run.start(head(20), &stop).unwrap());
    assert_eq!((outcome.step, outcome.complete), (1, false));
    let error = with_run(folder.path(), 0.02, |run| run.resume(&stop).unwrap_err());
    let TrainingError::AnotherConfiguration { setting, found, asked, .. } = &error else { panic!("{error}") };
    assert_eq!(
        (setting.as_str(), found.as_str(), asked.as_str()),
        ("training.learning_rate", "0.01", "0.02")
    );
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for bytes in [&b""[..], b"nonsense that is longer than eight bytes", &[0; 64]] {
        std::fs::write(&path, bytes).unwrap();
        let error = with_run(folder.path(), 0.01, |run| run.resume(&AtomicBool::new(false)).unwrap_err());
        assert!(error.to_string().contains("checkpoint.safetensors is no checkpoint"), "{error}");
    }
}

#[test]
fn the_closed_form_finds_a_linear_teacher() {
    let (set, validation, _) = problem();
    // The teacher's own convolution: what is left to find is its projection, which is linear before the last norm.
    let start = HeadWeights {
        projection: Projection { weight: vec![0.0; CHANNELS * D], bias: vec![0.0; D] },
        ..head(10)
    };
    let (found, ridge, scores) =
        initialise(&start.head(&Device::flex()), &set, &validation, &[100.0, 1e-3]).unwrap();
    assert!((ridge - 1e-3).abs() < 1e-12);
    assert!(scores.map > 0.9, "{scores:?}");
    assert_eq!(found.conv_weight, start.conv_weight);
}
