//! The loop on a tiny problem: it learns, and a run that was stopped and resumed is the run that was not.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use glimpse_quantizer::Codebook;
use glimpse_trainer::features::Features;
use glimpse_trainer::losses::{GlobalCosine, Loss, Ssp, Temperatures};
use glimpse_trainer::networks::{
    Architecture, Blueprint, EmbeddingNetwork, Frozen, HeadConfig, Norms, Parameters,
};
use glimpse_trainer::training::{
    Arithmetic, Inputs, OptimizerName, Report, Run, TrainingConfig, TrainingError, TrainingSet, Validation,
    initialise, plain, read_best, read_metrics,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Maps of a miniature after six of its seven stages.
const MAP: [usize; 3] = [8, 2, 2];
const FROZEN: Frozen = Frozen::Stages(6);
const D: usize = 4;
const VIEWS: usize = 40;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn maps(n: usize, seed: u64) -> Features {
    Features::from_f32(MAP.to_vec(), (0..n as u32).collect(), random(n * MAP.iter().product::<usize>(), seed))
}

fn blueprint(norms: Norms) -> Blueprint {
    Blueprint { network: Architecture::MINIATURE, head: HeadConfig::default(), norms, dimension: D }
}

/// Always the same network for the same number: Burn's own seed is one for all threads, and tests run side by side, so the
/// numbers come from elsewhere.
fn network(number: u64, norms: Norms) -> EmbeddingNetwork {
    let device = Device::flex();
    let template = blueprint(norms).at_random(&device);
    let drawn = Parameters::of(&template).map(|path, i| {
        let value = random(1, number * 1_000_003 + i as u64 * 31 + path.len() as u64)[0];
        // Variances have to be positive.
        if path.ends_with("running_var") { 0.5 + value.abs() } else { value * 0.5 }
    });
    drawn.apply(template).unwrap()
}

/// The teacher is a network like the student, with other weights: what it does can be learned.
fn problem() -> (TrainingSet, Validation, Vec<(f64, Box<dyn Loss>)>) {
    let teacher = network(10, Norms::Folded);
    let embed = |maps: &Features| -> Vec<f32> {
        let tensor = Tensor::<4>::from_data(
            TensorData::new(maps.to_f32(), [maps.len(), MAP[0], MAP[1], MAP[2]]),
            &Device::flex(),
        );
        teacher.forward_after(FROZEN, tensor).try_into_vec_as().unwrap()
    };
    let train = maps(VIEWS, 1);
    let embeddings = Features::from_f32(vec![D], (0..VIEWS as u32).collect(), embed(&train));
    let queries = maps(12, 2);
    let gallery = embed(&queries);
    let answers = (0..12).map(|i| vec![i]).collect();
    let validation = Validation { queries: Inputs::Maps(queries), gallery, answers };
    let device = Device::flex().autodiff();
    let codebook = Codebook::new(2, 8, D, random(2 * 8 * 2, 5), None).unwrap();
    let losses: Vec<(f64, Box<dyn Loss>)> = vec![
        (1.0, Box::new(Ssp::new(&codebook, Temperatures::PUBLISHED, &device))),
        (0.5, Box::new(GlobalCosine)),
    ];
    (TrainingSet::new(Inputs::Maps(train), embeddings).unwrap(), validation, losses)
}

fn config() -> TrainingConfig {
    TrainingConfig {
        steps: 20,
        batch: 16,
        accumulate: 1,
        optimizer: OptimizerName::AdamW,
        learning_rate: 0.01,
        warm_up: 3,
        weight_decay: 0.01,
        ema: 0.0,
        seed: 7,
        arithmetic: Arithmetic::F32,
    }
}

/// Runs `act` on a run in `folder`.
fn with_run<T>(folder: &Path, config: &TrainingConfig, act: impl FnOnce(&Run) -> T) -> T {
    with_run_and(folder, config, None, act)
}

/// The same, with a term that stops the run.
fn with_run_and<T>(
    folder: &Path,
    config: &TrainingConfig,
    stops: Option<StopsIn>,
    act: impl FnOnce(&Run) -> T,
) -> T {
    let (set, validation, mut losses) = problem();
    losses.extend(stops.map(|stops| (1.0, Box::new(stops) as Box<dyn Loss>)));
    let settings = json!({ "training": config, "network": "tiny" });
    act(&Run {
        config,
        settings: &settings,
        losses: &losses,
        set: &set,
        validation: &validation,
        frozen: FROZEN,
        device: &Device::flex(),
        folder,
        watch: &plain,
    })
}

/// Raises the flag in the given step, as a Ctrl-C would.
struct StopsIn {
    step: usize,
    seen: AtomicUsize,
    flag: Arc<AtomicBool>,
}

impl Loss for StopsIn {
    fn name(&self) -> &'static str {
        "stop"
    }

    fn loss(&self, student: Tensor<2>, _teacher: Tensor<2>) -> Tensor<1> {
        if self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.step {
            self.flag.store(true, Ordering::Relaxed);
        }
        student.sum() * 0.0
    }
}

/// Whole, and stopped and resumed: the same network in the end, the same lines on the way.
fn check_resume(config: &TrainingConfig, norms: Norms) {
    let whole = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    let start = || network(20, norms);
    let expected = with_run(whole.path(), config, |run| run.start(start(), &never).unwrap());
    assert!(expected.complete && expected.step == 20);
    let metrics = |folder: &Path| -> Vec<(u64, f64)> {
        read_metrics(folder).iter().map(|line| (line.training.step, line.validation.map)).collect()
    };
    assert_eq!(metrics(whole.path()).len(), 10);

    // In the first step, at the end of an epoch of two steps, and within one.
    for step in [1, 6, 13] {
        let parts = tempfile::tempdir().unwrap();
        let flag = Arc::new(AtomicBool::new(false));
        let stops = StopsIn { step, seen: AtomicUsize::new(0), flag: flag.clone() };
        let first = with_run_and(parts.path(), config, Some(stops), |run| run.start(start(), &flag).unwrap());
        assert_eq!((first.complete, first.step), (false, step as u64));
        // A checkpoint brings its own weights: those of the network that is handed in do not matter.
        let resumed = with_run(parts.path(), config, |run| run.resume(network(21, norms), &never).unwrap());
        assert_eq!(resumed.last.differing(&expected.last), Vec::<String>::new(), "stopped in step {step}");
        assert!(resumed == expected, "stopped in step {step}: the best network is not the same");
        assert_eq!(metrics(whole.path()), metrics(parts.path()));
    }
}

#[test]
fn a_stopped_and_resumed_run_equals_one_that_was_not() {
    check_resume(&config(), Norms::Folded);
}

#[test]
fn so_it_does_with_sgd_a_moving_average_and_live_norms() {
    let config = TrainingConfig { optimizer: OptimizerName::Sgd, ema: 0.9, learning_rate: 0.1, ..config() };
    check_resume(&config, Norms::Live);
}

#[test]
fn so_it_does_with_half_precision_and_its_scale_of_the_loss() {
    check_resume(&TrainingConfig { arithmetic: Arithmetic::F16, ..config() }, Norms::Folded);
}

/// On the processor no one would train in half precision, but it computes it, and so shows what casts do.
#[test]
fn a_step_in_half_precision_goes_where_one_in_full_precision_goes() {
    let step = |arithmetic| -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let config = TrainingConfig {
            steps: 1,
            batch: VIEWS,
            warm_up: 0,
            optimizer: OptimizerName::Sgd,
            arithmetic,
            ..config()
        };
        let start = network(20, Norms::Live);
        let numbers = |parameters: &Parameters| -> Vec<f64> {
            let bytes = parameters.tensors().into_iter().flat_map(|(.., bytes)| bytes).collect::<Vec<u8>>();
            bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
        };
        let before = numbers(&Parameters::of(&start));
        let run = |run: &Run| run.start(start, &AtomicBool::new(false)).unwrap().last;
        let after = numbers(&with_run(folder.path(), &config, run));
        after.iter().zip(&before).map(|(after, before)| after - before).collect()
    };
    let full = step(Arithmetic::F32);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Relative rounding of 2^-11 and 2^-8, through the three blocks that learn and back.
    for (arithmetic, cosine_min) in [(Arithmetic::F16, 0.9999), (Arithmetic::Bf16, 0.99)] {
        let half = step(arithmetic);
        let cosine = dot(&full, &half) / (dot(&full, &full) * dot(&half, &half)).sqrt();
        assert!(cosine > cosine_min && half != full, "{arithmetic:?}: {cosine}");
    }
}

#[test]
fn only_what_comes_after_the_frozen_stages_learns() {
    let folder = tempfile::tempdir().unwrap();
    let start = network(20, Norms::Live);
    let before = Parameters::of(&start);
    let after =
        with_run(folder.path(), &config(), |run| run.start(start, &AtomicBool::new(false)).unwrap().last);
    let changed = before.differing(&after);
    assert!(changed.iter().any(|path| path.starts_with("head.linear.weight")), "{changed:?}");
    assert!(changed.iter().any(|path| path.starts_with("backbone.blocks.")), "{changed:?}");
    // Six stages of a miniature have nine blocks: 1, 1, 1, 2, 2, 2.
    let frozen = |path: &&String| {
        let block = path.strip_prefix("backbone.blocks.").and_then(|rest| rest.split('.').next());
        path.starts_with("backbone.stem") || block.is_some_and(|block| block.parse::<usize>().unwrap() < 9)
    };
    assert!(!changed.iter().any(|path| frozen(&path)), "{changed:?}");
}

#[test]
fn two_accumulated_batches_are_one_of_twice_the_size() {
    let train = |batch, accumulate| {
        let folder = tempfile::tempdir().unwrap();
        // One step over the whole set: which rows stand in which half does not matter then.
        let config = TrainingConfig {
            steps: 1,
            batch,
            accumulate,
            warm_up: 0,
            optimizer: OptimizerName::Sgd,
            ..config()
        };
        let start = network(20, Norms::Folded);
        with_run(folder.path(), &config, |run| run.start(start, &AtomicBool::new(false)).unwrap().last)
    };
    let difference = train(VIEWS, 1).largest_difference(&train(VIEWS / 2, 2));
    // Sums in another order, in 32 bits, through one step.
    assert!(difference < 1e-5, "{difference}");
    let unequal = train(VIEWS, 1).largest_difference(&train(VIEWS / 2, 1));
    assert!(unequal > 1e-4, "half of the set gives another step: {unequal}");
}

#[test]
fn training_lowers_the_loss_and_keeps_the_best_network() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainingConfig { learning_rate: 0.03, ..config() };
    let start = network(20, Norms::Folded);
    let outcome = with_run(folder.path(), &config, |run| run.start(start, &AtomicBool::new(false)).unwrap());
    let lines = read_metrics(folder.path());
    assert!(lines.last().unwrap().training.losses["ssp"] < lines[0].training.losses["ssp"], "{lines:?}");
    let (best, settings) = read_best(folder.path()).unwrap();
    assert_eq!(best, outcome.best);
    assert_eq!(settings["network"], "tiny");

    Report { title: "a run", facts: &[("network", "tiny".to_owned())], epochs: &lines }
        .write(folder.path())
        .unwrap();
    let page = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    assert!(page.contains("| network | tiny |") && page.contains("| 10 | 20 | global "), "{page}");
    let svg = std::fs::read_to_string(folder.path().join("curves.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("validation mAP") && svg.contains("polyline"), "{svg}");
}

#[test]
fn a_checkpoint_of_another_configuration_names_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    let start = || network(20, Norms::Folded);
    let outcome = with_run(folder.path(), &config(), |run| run.start(start(), &stop).unwrap());
    assert_eq!((outcome.step, outcome.complete), (1, false));
    let other = TrainingConfig { learning_rate: 0.02, ..config() };
    let error = with_run(folder.path(), &other, |run| run.resume(start(), &stop).unwrap_err());
    let TrainingError::AnotherConfiguration { setting, found, asked, .. } = &error else { panic!("{error}") };
    assert_eq!(
        (setting.as_str(), found.as_str(), asked.as_str()),
        ("training.learning_rate", "0.01", "0.02")
    );
    let error =
        with_run(folder.path(), &config(), |run| run.resume(network(20, Norms::Live), &stop).unwrap_err());
    assert!(matches!(error, TrainingError::AnotherNetwork { .. }), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for bytes in [&b""[..], b"nonsense that is longer than eight bytes", &[0; 64]] {
        std::fs::write(&path, bytes).unwrap();
        let start = network(20, Norms::Folded);
        let error =
            with_run(folder.path(), &config(), |run| run.resume(start, &AtomicBool::new(false)).unwrap_err());
        assert!(error.to_string().contains("checkpoint.safetensors is no checkpoint"), "{error}");
    }
}

#[test]
fn the_closed_form_finds_a_linear_teacher() {
    let (set, validation, _) = problem();
    // The teacher's own convolutions: what is left to find is its projection, which is linear before the last norm.
    let teacher = network(10, Norms::Folded);
    let head = teacher.head.clone().project_at_random(D, None, &Device::flex());
    let start = EmbeddingNetwork { head, ..teacher.clone() };
    let (found, ridge, scores) = initialise(&start, FROZEN, None, &set, &validation, &[100.0, 1e-3]).unwrap();
    assert!((ridge - 1e-3).abs() < 1e-12);
    assert!(scores.map > 0.9, "{scores:?}");
    let changed = Parameters::of(&start).differing(&Parameters::of(&found));
    assert_eq!(changed, ["head.linear.bias", "head.linear.weight"]);
}
