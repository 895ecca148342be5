//! `make bench-server`: what the whole server does under load, beside what its search core does alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use glimpse_protocol::SpaceId;
use glimpse_tests::durability::{Victim, write_bundle, write_npy};
use glimpse_tests::load::{Fleet, Phase};
use glimpse_tests::programs::Programs;
use glimpse_tests::server::Server;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Vectors lie around so many centres.
const CENTRES: usize = 1000;

/// Latency that counts as recovered.
const RECOVERED: Duration = Duration::from_millis(50);

/// Measure the gallery server under load
#[derive(Debug, Parser)]
struct Arguments {
    /// Images in the gallery
    #[arg(long, default_value_t = 1_000_000)]
    images: usize,
    /// Dimension of the space
    #[arg(long, default_value_t = 512)]
    dimension: usize,
    /// Sub-spaces of the 4-bit codes
    #[arg(long, default_value_t = 32)]
    sub_spaces: usize,
    /// Devices
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Seconds of each phase
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Rounds of the kill test
    #[arg(long, default_value_t = 200)]
    kill_rounds: usize,
    /// Seed of vectors, moments and kills
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder that the gallery is kept in from one run to the next
    #[arg(long)]
    cache: PathBuf,
    /// The report
    #[arg(long, default_value = "target/reports/server.json")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let programs = Programs::find()?;
    let place = arguments.cache.join(format!(
        "{}x{}-{}-{}",
        arguments.images, arguments.dimension, arguments.sub_spaces, arguments.seed
    ));
    prepare(&arguments, &programs, &place)?;
    let mut report = loaded(&arguments, &programs, &place)?;
    let kills = tempfile::tempdir()?;
    let mut victim = Victim::new(&programs, kills.path(), arguments.seed)?;
    let bar = indicatif::ProgressBar::new(arguments.kill_rounds as u64).with_message("kills");
    let rounds = victim.rounds(arguments.kill_rounds, &mut || bar.inc(1))?;
    let damage = victim.damage(60, &mut || ())?;
    report["kill_rounds"] = json!(rounds.rounds);
    report["killed"] = json!(rounds.killed);
    report["killed_servers"] = json!(rounds.servers);
    report["killed_after_swap"] = json!(rounds.swapped);
    report["killed_after_commit"] = json!(rounds.committed);
    report["damage_found"] = json!(damage.found);
    report["damage_harmless"] = json!(damage.harmless);
    if let Some(folder) = arguments.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&arguments.out, serde_json::to_vec_pretty(&report)?)?;
    println!("{report:#}");
    Ok(())
}

/// The gallery, made once.
fn prepare(arguments: &Arguments, programs: &Programs, place: &Path) -> anyhow::Result<()> {
    if place.join("ready").exists() {
        return Ok(());
    }
    let (gallery, bundle) = (place.join("gallery"), place.join("bundle"));
    if gallery.exists() {
        std::fs::remove_dir_all(&gallery)?;
    }
    write_bundle(&bundle, arguments.dimension)?;
    eprintln!("drawing {} vectors of {} dimensions", arguments.images, arguments.dimension);
    let (features, table) = (place.join("features.npy"), place.join("images.csv"));
    let rows = draw(arguments.images, arguments.dimension, arguments.seed, 0);
    write_npy(&features, arguments.dimension, &rows)?;
    let mut csv = csv::Writer::from_path(&table)?;
    csv.write_record(["id", "label", "path", "room"])?;
    for number in 0..arguments.images {
        let id = format!("hall-{:02}/photo-{number:07}.jpg", number % 40);
        csv.write_record([
            &id,
            &format!("object {}", number / 3),
            &format!("/photos/{id}"),
            &(number % 40).to_string(),
        ])?;
    }
    csv.flush()?;
    let of = |name: &str| {
        let mut command = programs.gallery();
        command.arg(name).arg("--gallery").arg(&gallery).arg("--bundle").arg(&bundle);
        command
    };
    done(of("import").arg("--no-index").arg(&features).arg(&table))?;
    let sub_spaces = arguments.sub_spaces.to_string();
    done(of("index").args(["--codes", "4", "--lists", "0", "--sub-spaces", &sub_spaces]))?;
    std::fs::remove_file(features)?;
    std::fs::remove_file(table)?;
    std::fs::write(place.join("ready"), b"")?;
    Ok(())
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Unit vectors around centres; `part` tells one draw from another of the same centres.
fn draw(count: usize, dimension: usize, seed: u64, part: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = move || (0..4).map(|_| random.random_range(-1.0_f32..1.0)).sum::<f32>();
    let centres: Vec<f32> = (0..CENTRES * dimension).map(|_| normal()).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ (part + 1) << 32);
    let mut rows = Vec::with_capacity(count * dimension);
    for _ in 0..count {
        let centre = random.random_range(0..CENTRES) * dimension;
        let start = rows.len();
        rows.extend(
            centres[centre..centre + dimension].iter().map(|x| x + random.random_range(-2.0_f32..2.0)),
        );
        let norm = rows[start..].iter().map(|x| x * x).sum::<f32>().sqrt();
        rows[start..].iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

fn loaded(arguments: &Arguments, programs: &Programs, place: &Path) -> anyhow::Result<Value> {
    let (gallery, bundle) = (place.join("gallery"), place.join("bundle"));
    let mut core = programs.gallery();
    core.args(["bench", "--json", "--gallery"]).arg(&gallery);
    let core = core.output()?;
    ensure!(core.status.success(), "{}", String::from_utf8_lossy(&core.stderr));
    let core: Value = serde_json::from_slice(&core.stdout)?;
    let core_qps = core["queries_per_second"].as_f64().context("the core's queries a second")?;
    eprintln!("the core alone: {core_qps:.0} queries a second on one core");

    let started = Instant::now();
    // One thread searches: it is held against the core on one core.
    let mut command = programs.gallery();
    command
        .env("RAYON_NUM_THREADS", "1")
        .arg("serve")
        .arg("--gallery")
        .arg(&gallery)
        .arg("--bundle")
        .arg(&bundle);
    command
        .args(["--listen", "127.0.0.1:0", "--http", "none"])
        .args(["--clients-max", &(arguments.devices + 10).to_string()]);
    let server = Server::spawn(command, &place.join("server.log"))?;
    let ready_s = started.elapsed().as_secs_f64();
    let rss_ready = resident(server.id())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let phases = runtime.block_on(async {
        let embeddings = draw(500, arguments.dimension, arguments.seed, 1);
        let embeddings = embeddings.chunks_exact(arguments.dimension).map(<[f32]>::to_vec).collect();
        let space = SpaceId::from_bytes([0xab; 16]);
        let mut fleet =
            Fleet::connect(server.address()?, arguments.devices, space, embeddings, arguments.seed).await?;
        eprintln!("{} devices connected", arguments.devices);
        let seconds = Duration::from_secs(arguments.seconds);
        fleet.closed(128, Duration::from_secs(5)).await?;
        let full = fleet.closed(128, seconds).await?;
        let qps = full.answered_per_second();
        eprintln!("{qps:.0} queries a second");
        let mut open = fleet.open(&[(qps / 2.0, seconds)]).await?;
        // The load falls back at once: what has piled up is part of the recovery.
        open.extend(fleet.open(&[(3.0 * qps, seconds), (qps / 2.0, seconds / 3)]).await?);
        let rss_overload = resident(server.id())?;
        let [half, threefold, after] = open.try_into().map_err(|_| anyhow::anyhow!("a phase is missing"))?;
        anyhow::Ok((full, half, threefold, after, rss_overload))
    })?;
    let (full, half, threefold, after, rss_overload) = phases;
    let qps = full.answered_per_second();
    let all = [&full, &half, &threefold, &after];
    let count = |of: fn(&Phase) -> usize| all.iter().map(|phase| of(phase)).sum::<usize>();
    let (lost, duplicated, refused) = (count(Phase::lost), count(Phase::duplicated), count(Phase::refused));
    ensure!(
        refused == 0,
        "{refused} queries were refused, or answered with something else than was asked for"
    );
    Ok(json!({
        "machine": core["machine"], "images": arguments.images, "dimension": arguments.dimension,
        "index": core["search"], "recall": core["recall"], "devices": arguments.devices, "seed": arguments.seed,
        "core_qps": core_qps, "qps": qps, "fraction_of_core": qps / core_qps,
        "p50_ms": half.latency_ms(0.5), "p99_ms_at_half_load": half.latency_ms(0.99),
        "p50_ms_at_full_load": full.latency_ms(0.5), "p99_ms_at_full_load": full.latency_ms(0.99),
        "busy_rate_at_half_load": half.busy_rate(),
        "busy_rate_at_3x": threefold.busy_rate(), "answered_per_second_at_3x": threefold.answered_per_second(),
        "p99_ms_at_3x": threefold.latency_ms(0.99), "recovery_s": after.until_within(RECOVERED),
        "lost": lost, "duplicated": duplicated,
        "queries": count(|phase| phase.asked.len()),
        "rss_mb": rss_ready.beyond_files, "rss_mb_after_overload": rss_overload.beyond_files,
        "rss_mb_with_files": rss_ready.all, "ready_s": ready_s,
    }))
}

/// Resident memory in megabytes.
struct Resident {
    all: f64,
    /// Without pages of mapped files.
    beyond_files: f64,
}

fn resident(process: u32) -> anyhow::Result<Resident> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = |name: &str| -> anyhow::Result<f64> {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        Ok(number.parse::<f64>()? * 1024.0 / 1e6)
    };
    Ok(Resident { all: kib("VmRSS")?, beyond_files: kib("RssAnon")? + kib("RssShmem")? })
}
