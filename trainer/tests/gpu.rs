//! The GPU path, run: `make test-gpu` has Mesa's software driver for it, and any GPU will do.
//!
//! Gradients of the first step are compared, not losses after several: on small batches two devices drift apart within three
//! steps by rounding alone.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use glimpse_quantizer::Codebook;
use glimpse_trainer::device::{DeviceName, Precision};
use glimpse_trainer::features::Features;
use glimpse_trainer::losses::{LossConfig, LossName};
use glimpse_trainer::networks::{Blueprint, HeadConfig, Norms, Parameters};
use glimpse_trainer::training::Arithmetic;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod common;
use common::left_out;
use common::place::{Place, draw, fails};

const D: usize = 32;
const BATCH: usize = 8;
const SIDE: usize = 96;

/// The GPU. A test that finds none says that it is left out.
fn gpu(test: &str) -> Option<Device> {
    static GPU: OnceLock<Result<Device, String>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| DeviceName::Wgpu.open().map_err(|error| error.to_string()));
    gpu.as_ref().inspect_err(|reason| left_out(&format!("{test}: {reason}"))).ok().cloned()
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn unit_rows(n: usize, seed: u64) -> Vec<f32> {
    let mut rows = random(n * D, seed);
    for row in rows.chunks_exact_mut(D) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

fn blueprint() -> Blueprint {
    let network = "mobilenet-v2-x0.35".parse().unwrap();
    Blueprint { network, head: HeadConfig::default(), norms: Norms::Live, dimension: D }
}

/// Loss and gradients by path of the first step of one and the same network.
fn first_step(device: &Device, loss: LossName, arithmetic: Arithmetic) -> (f32, BTreeMap<String, Vec<f32>>) {
    static START: OnceLock<Parameters> = OnceLock::new();
    let start = START.get_or_init(|| {
        let device = Device::flex();
        device.seed(3);
        Parameters::of(&blueprint().at_random(&device))
    });
    let network = start.apply(blueprint().at_random(device)).unwrap().train();
    let device = device.clone().autodiff();
    let codebook = Codebook::new(4, 16, D, random(16 * D, 1), None).unwrap();
    let terms = LossConfig::new(loss).terms(&codebook, |_| unit_rows(64, 2), &device);

    let image = TensorData::new(random(BATCH * 3 * SIDE * SIDE, 3), [BATCH, 3, SIDE, SIDE]);
    let image = arithmetic.cast(Tensor::<4>::from_data(image, &device));
    let teacher = Tensor::<2>::from_data(TensorData::new(unit_rows(BATCH, 4), [BATCH, D]), &device);
    let student = network.forward(image);
    let terms = terms.iter().map(|(weight, loss)| loss.loss(student.clone(), teacher.clone()) * *weight);
    let total = terms.reduce(|a, b| a + b).unwrap();
    let gradients = GradientsParams::from_grads(total.backward(), &network);
    let mut reader = Reader { path: Vec::new(), gradients, found: BTreeMap::new() };
    network.visit(&mut reader);
    (total.into_scalar(), reader.found)
}

struct Reader {
    path: Vec<String>,
    gradients: GradientsParams,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
        let Some(gradient) = self.gradients.remove::<N>(param.id) else { return };
        self.found.insert(self.path.join("."), gradient.try_into_vec_as().unwrap());
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn the_first_step_on_a_gpu_is_that_of_the_processor() {
    let Some(gpu) = gpu("the_first_step_on_a_gpu_is_that_of_the_processor") else { return };
    for loss in [LossName::Ssp, LossName::Ours] {
        let (expected_loss, expected) = first_step(&Device::flex(), loss, Arithmetic::F32);
        let (found_loss, found) = first_step(&gpu, loss, Arithmetic::F32);
        // Sums of some ten thousand products in another order, in 32 bits.
        let off = (found_loss - expected_loss).abs() / expected_loss;
        eprintln!("{loss}: loss {expected_loss} and {found_loss}, {off:.1e} apart");
        assert!(off < 1e-4, "{loss}: {found_loss} is not {expected_loss}");
        assert!(found.keys().eq(expected.keys()) && found.len() > 100);
        // A vector that another normalisation follows has a gradient of nearly zero, which is all rounding: vectors are held
        // against the largest of them, matrices and kernels against their own largest number.
        let is_vector = |path: &str| ["bias", "gamma", "beta"].iter().any(|end| path.ends_with(end));
        let vectors = expected.iter().filter(|(path, _)| is_vector(path));
        let of_vectors = vectors.map(|(_, values)| largest(values)).fold(0.0, f32::max);
        let mut worst = 0.0_f32;
        for (path, expected) in &expected {
            let scale = if is_vector(path) { of_vectors } else { largest(expected) };
            let apart = expected.iter().zip(&found[path]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            worst = worst.max(apart / scale);
            assert!(apart <= 0.01 * scale && scale > 0.0, "{loss}: {path} is {apart} of {scale} apart");
        }
        eprintln!("{loss}: {} gradients, at most {worst:.1e} of their largest apart", expected.len());
    }
}

#[test]
fn mixed_precision_goes_where_full_precision_goes() {
    let test = "mixed_precision_goes_where_full_precision_goes";
    let Some(gpu) = gpu(test) else { return };
    let arithmetic = match DeviceName::Wgpu.arithmetic(&gpu, Precision::Mixed) {
        Ok(arithmetic) => arithmetic,
        // Not for want of anything that could be installed.
        Err(error) => return eprintln!("left out: {test}: {error}"),
    };
    let [full, mixed] =
        [Arithmetic::F32, arithmetic].map(|arithmetic| first_step(&gpu, LossName::Ours, arithmetic));
    let pairs = full.1.iter().flat_map(|(path, full)| full.iter().zip(&mixed.1[path]));
    let [mut dot, mut a2, mut b2] = [0.0_f64; 3];
    for (a, b) in pairs {
        let (a, b) = (f64::from(*a), f64::from(*b));
        (dot, a2, b2) = (dot + a * b, a2 + a * a, b2 + b * b);
    }
    let cosine = dot / (a2 * b2).sqrt();
    eprintln!("{}: loss {} and {}, cosine of the gradients {cosine:.5}", arithmetic.name(), full.0, mixed.0);
    assert!((mixed.0 - full.0).abs() < 0.02 * full.0, "loss {} and {}", full.0, mixed.0);
    assert!(cosine > 0.99, "{cosine}");
}

/// A command that finds no driver, whatever there is.
fn without_driver(mut command: Command) -> Command {
    let nothing = "/nonexistent/driver.json";
    for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
        command.env(variable, nothing);
    }
    command.env_remove("VK_ADD_DRIVER_FILES");
    command
}

#[test]
fn a_missing_driver_is_named_before_any_work() {
    let place = Place::new();
    // Neither bundle nor photos are there, and no one gets to see that.
    let train = "train --bundle none --network miniature --photos none --val none --run run --device";
    fails(&mut without_driver(place.command(&format!("{train} wgpu"))), "there is no driver for device wgpu");
    assert!(!place.path("run").exists());
    let bench = "bench --network miniature --size 32 --device wgpu";
    fails(&mut without_driver(place.command(bench)), "there is no driver for device wgpu");
    let output = without_driver(place.command("devices")).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let line = |device: &str| table.lines().find(|line| line.starts_with(device)).unwrap().to_owned();
    assert!(output.status.success() && line("wgpu").contains("no driver: install"), "{table}");
    if !DeviceName::Cuda.is_built_in() {
        fails(&mut place.command(&format!("{train} cuda")), "--features cuda");
        assert!(line("cuda").contains("not built in"), "{table}");
    }
}

#[test]
fn a_run_on_a_gpu_learns_is_killed_and_goes_on_there_and_elsewhere() {
    let Some(gpu) = gpu("a_run_on_a_gpu_learns_is_killed_and_goes_on_there_and_elsewhere") else { return };
    let place = Place::new();
    draw(&place.path("train"), 8, 4);
    draw(&place.path("val"), 6, 3);
    for (name, count) in [("t", 32), ("v", 18)] {
        let features = Features::from_f32(vec![D], (0..count).collect(), unit_rows(count as usize, 5));
        features.write(&place.path(&format!("{name}.safetensors")), HashMap::new()).unwrap();
    }
    place.good("space --bundle bundle --name numbers --dimension 32");
    place.good("quantizer --features t.safetensors --bundle bundle --sub-spaces 4 --centroids 8");
    let train = |run: &str, steps: u32, more: &str| {
        format!(
            "train --bundle bundle --network miniature --size 32 --photos train/photos.csv --val val/photos.csv \
             --freeze-to none --init random --ema 0.9 --batch 8 --lr 0.003 --warm-up 2 --steps {steps} --teacher-features \
             t.safetensors --val-teacher-features v.safetensors --run {run} {more}"
        )
    };
    let lines = |run: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(place.path(&format!("{run}/metrics.jsonl"))).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };

    let on_gpu = train("run", 40, "--loss ssp --device wgpu");
    let mut child = place.command(&on_gpu).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while lines("run").len() < 2 && start.elapsed() < Duration::from_mins(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((2..9).contains(&lines("run").len()), "killed in the middle: {:?}", lines("run"));
    place.good(&format!("{on_gpu} --resume"));
    let epochs = lines("run");
    let losses: Vec<f64> = epochs.iter().map(|epoch| epoch["losses"]["ssp"].as_f64().unwrap()).collect();
    assert_eq!(epochs.iter().map(|epoch| epoch["epoch"].as_u64().unwrap()).max(), Some(10));
    assert!(losses.iter().all(|loss| loss.is_finite()) && losses[9] < losses[0], "{losses:?}");
    eprintln!("ssp on the GPU, epoch by epoch: {losses:?}");

    // A checkpoint belongs to no device, but Burn reads the optimizer's part of it through a GPU.
    let on_cpu = on_gpu.replace("wgpu", "cpu") + " --resume";
    fails(&mut without_driver(place.command(&on_cpu)), "set BURN_DEVICE=flex");
    let resumed = without_driver(place.command(&on_cpu)).env("BURN_DEVICE", "flex").output().unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    place.good(&on_cpu);
    place.good("export --run run --bundle bundle");

    let mixed = train("mixed", 4, "--device wgpu --precision mixed");
    if DeviceName::Wgpu.arithmetic(&gpu, Precision::Mixed).is_ok() {
        place.good(&mixed);
        assert!(lines("mixed")[0]["losses"]["global"].as_f64().unwrap().is_finite());
    } else {
        place.bad(&mixed, "computes neither bf16 nor f16");
    }
    place.bad(&mixed.replace("wgpu", "cpu"), "--precision mixed is for GPUs");
    place.good("bench --network miniature --size 32 --batch 2 --batches 1 --device wgpu --out gpu.json");
    let page = std::fs::read_to_string(place.path("gpu.json")).unwrap();
    assert!(page.contains("\"device\": \"wgpu\"") && page.contains("training_photos_per_s"), "{page}");
}
