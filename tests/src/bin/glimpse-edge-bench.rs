//! `make bench-edge`: what a device takes, and what pulled plugs do to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;
use glimpse_tests::device::Device;
use glimpse_tests::emulated::{self, MACHINES, Machine};
use glimpse_tests::fixture::Fixture;
use glimpse_tests::large;
use glimpse_tests::plugs;
use glimpse_tests::workspace;
use serde_json::{Value, json};

/// Photos whose embeddings are compared between processors.
const COMPARED: usize = 3;

/// Measure the device's program
#[derive(Debug, Parser)]
struct Arguments {
    /// Plugs to pull
    #[arg(long, default_value_t = 500)]
    pulls: usize,
    /// Devices that run, and are killed, at a time
    #[arg(long, default_value_t = 6)]
    devices: usize,
    /// Seed of the moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The report
    #[arg(long, default_value = "target/reports/edge.json")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let fixture = Fixture::ingested()?;
    let server = fixture.serve()?;
    let address = server.address()?;
    let mut report = json!({"machine": machine(), "binary_mb": binaries()?});
    let demos = workspace::bundle().join("query.onnx");
    // Empty, so that the first start is one.
    let cache = tempfile::tempdir()?;
    let measured = |model: &Path, codec: &str| run(&fixture, address, (model, cache.path()), codec);
    // The first start of a network keeps its plan; those that follow are what a device does each day.
    report["first_start_to_answer_s"] = measured(&demos, "i8")?.start_to_answer_s.into();
    let mut starts = Vec::new();
    let (mut rss, mut bytes) = (0.0_f64, json!({}));
    for codec in ["f32", "f16", "i8", "pq", "i8"] {
        let found = measured(&demos, codec)?;
        starts.push(found.start_to_answer_s);
        rss = rss.max(found.rss_mb);
        bytes[codec] = found.query_bytes.into();
    }
    starts.sort_by(f64::total_cmp);
    report["start_to_answer_s"] = starts[starts.len() / 2].into();
    report["rss_demo_mb"] = rss.into();
    // A first start and those that follow: it is when a plan is made that most memory is taken.
    let folder = tempfile::tempdir()?;
    let large = large::network(&fixture.programs, folder.path())?;
    report["rss_parameters"] = (fs::metadata(&large)?.len() / 4).into();
    let mut peaks = Vec::new();
    for _ in 0..3 {
        peaks.push(measured(&large, "pq")?.rss_mb);
    }
    report["rss_first_start_mb"] = peaks[0].into();
    report["rss_mb"] = peaks.into_iter().fold(0.0, f64::max).into();
    report["pq_query_bytes"] = bytes["pq"].clone();
    report["query_bytes"] = bytes;
    for machine in MACHINES {
        let name = machine.name;
        let cosine = compared(&fixture, machine)?;
        report[format!("cosine_{name}")] =
            cosine.map_or_else(|| json!("`make edge-arm` was not run"), Value::from);
    }
    let bar = indicatif::ProgressBar::new(arguments.pulls as u64).with_message("plugs");
    let pulled =
        plugs::pull(&fixture, address, (arguments.devices, arguments.pulls), arguments.seed, &|| bar.inc(1))?;
    bar.finish_and_clear();
    report["plug_pulls"] = pulled.pulls.into();
    report["plug_failures"] = pulled.failures().into();
    report["plug"] = json!({
        "kept": pulled.kept, "acted": pulled.acted, "in_hand": pulled.lost, "acted_twice": pulled.twice,
        "complaints": pulled.damaged,
    });
    if let Some(folder) = arguments.out.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&arguments.out, serde_json::to_vec_pretty(&report)?)?;
    println!("{report:#}");
    Ok(())
}

/// One run of a device with a photo.
struct Measured {
    start_to_answer_s: f64,
    rss_mb: f64,
    query_bytes: usize,
}

/// Starts a device with one photo in its folder, and waits for its answer.
fn run(
    fixture: &Fixture,
    address: &str,
    (model, cache): (&Path, &Path),
    codec: &str,
) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let photo = workspace::root().join(&fixture.queries[0].photo);
    fs::copy(photo, folder.path().join("photo.jpg"))?;
    let mut command = fixture.programs.edge();
    command.env("CACHE_DIRECTORY", cache);
    command.args(["run", "--json", "--server", address, "--device", "bench", "--codec", codec]);
    command.arg("--camera").arg(format!("folder:{}", folder.path().display()));
    command
        .arg("--bundle")
        .arg(workspace::bundle())
        .arg("--model")
        .arg(model)
        .arg("--outbox")
        .arg(fixture.path("bench-outbox"));
    let started = Instant::now();
    let device = Device::start(command, &fixture.path("bench.log"))?;
    let answer = device.answer()?;
    let start_to_answer_s = started.elapsed().as_secs_f64();
    ensure!(answer.error.is_none(), "the device has no answer: {answer:?}");
    let rss_mb = device.peak_bytes()? as f64 / 1e6;
    Ok(Measured { start_to_answer_s, rss_mb, query_bytes: answer.bytes.context("an answer says its bytes")? })
}

/// Megabytes of the programs for ARM, as `make edge-arm` strips them.
fn binaries() -> anyhow::Result<Value> {
    let mut sizes = json!({});
    for machine in MACHINES {
        let size = |file: &Path| fs::metadata(file).map(|metadata| metadata.len() as f64 / 1e6);
        let file = machine.program();
        sizes[machine.name] =
            if file.is_file() { size(&file)?.into() } else { json!("`make edge-arm` was not run") };
    }
    Ok(sizes)
}

/// The least cosine between embeddings of this processor and of another; `None` where there is no program for that.
fn compared(fixture: &Fixture, machine: Machine) -> anyhow::Result<Option<f64>> {
    let Some(command) = machine.edge()? else { return Ok(None) };
    let photos: Vec<PathBuf> =
        fixture.queries.iter().take(COMPARED).map(|query| query.photo.clone()).collect();
    let folder = tempfile::tempdir()?;
    let here = emulated::embed(fixture.programs.edge(), folder.path(), &photos)?;
    let there = emulated::embed(command, folder.path(), &photos)?;
    ensure!(here.tensors == there.tensors, "on {} the network is given something else", machine.name);
    ensure!(
        here.embeddings.len() == there.embeddings.len(),
        "on {} there are other embeddings",
        machine.name
    );
    let dimension = here.embeddings.len() / COMPARED;
    let pairs = here.embeddings.chunks_exact(dimension).zip(there.embeddings.chunks_exact(dimension));
    Ok(pairs.map(|(a, b)| emulated::cosine(a, b)).min_by(f64::total_cmp))
}

/// The processor's name, and how many cores there are.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|name| name.1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.unwrap_or("unknown processor"))
}
