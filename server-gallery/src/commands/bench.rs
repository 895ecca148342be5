//! `bench`: how fast this machine searches, and what it finds; beside Faiss where its peer program is given. And how fast it
//! embeds, with a network.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use glimpse_embedder::bench::measure;
use glimpse_embedder::{Embedder, EmbedderOptions, Threads};
use glimpse_quantizer::expansion::normalize;
use glimpse_quantizer::train::{TrainOptions, quantization_error, train};
use glimpse_quantizer::{Kernel, Precision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::write_line;
use crate::gallery::INDEX;
use crate::index::{CodesOption, IndexOptions, Neighbour, SearchOptions, VectorIndex};

/// Neighbours that are searched for, and that recall is measured on.
const K: usize = 10;

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery bench --index PQ32x4fs --index PQ32x4fs+SQ8
  glimpse-gallery bench --rows 200000 --dimension 512 --index IVF512,PQ128x4fs+SQ8 --probes 16,64
  glimpse-gallery bench --gallery gallery
  glimpse-gallery bench --features features.f32 --dimension 224 --index PQ56x4fs+SQ8
  glimpse-gallery bench --network models/demo/gallery.onnx --profile

An index is named as Faiss's factory names it: [IVF<lists>,]PQ<sub-spaces>[x4fs][+SQ8 or +SQfp16]. Vectors are drawn around
centres by the seed, or read from a file. With --peer a program that speaks Faiss's part runs beside, its turns between
ours; `make bench-search` does all that. One thread each.")]
pub struct BenchArgs {
    /// Measure the index that a gallery has, instead of others; queries are drawn around its features
    #[arg(long, value_name = "DIR", conflicts_with_all = ["indexes", "features", "peer", "trained", "out"])]
    gallery: Option<PathBuf>,
    /// Measure how fast a network embeds, instead of an index
    #[arg(long, value_name = "ONNX", conflicts_with_all = ["gallery", "indexes", "features", "peer", "trained", "out"])]
    network: Option<PathBuf>,
    /// With --network: a JPEG or PNG to embed, which is decoded each time [default: one drawn by a formula]
    #[arg(long, value_name = "PHOTO", requires = "network")]
    photo: Option<PathBuf>,
    /// With --network: threads that run it together, a number or all [default: 1]
    #[arg(long, requires = "network", value_name = "N|all")]
    threads: Option<Threads>,
    /// With --network: where the network's time goes, by operator
    #[arg(long, requires = "network")]
    profile: bool,
    /// With --network: photos to measure
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// With --gallery or --network: write JSON
    #[arg(long)]
    json: bool,
    /// Vectors to draw
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    rows: usize,
    /// Their dimension
    #[arg(long, default_value_t = 128, value_name = "D")]
    dimension: usize,
    /// Vectors from a file instead: little-endian 32-bit floats, row after row; the last of them are the queries
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Name of the vectors in the report [default: made from rows and dimension]
    #[arg(long)]
    dataset: Option<String>,
    /// Queries
    #[arg(long, default_value_t = 1000, value_name = "N")]
    queries: usize,
    /// Seed of the vectors
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Indexes to measure
    #[arg(long = "index", required_unless_present_any = ["gallery", "network"], value_name = "NAME")]
    indexes: Vec<String>,
    /// Inverted lists to look up
    #[arg(long, value_delimiter = ',', default_value = "16", value_name = "N,..")]
    probes: Vec<usize>,
    /// Candidates that are ranked exactly, where an index ranks
    #[arg(long, default_value_t = 100, value_name = "N")]
    candidates: usize,
    /// Turns of each side
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Queries of a turn that are asked one by one
    #[arg(long, default_value_t = 200, value_name = "N")]
    singles: usize,
    /// Compare the training of a quantizer too: sub-spaces and bits, as 16x8
    #[arg(long = "train", value_name = "MxBITS")]
    trained: Vec<String>,
    /// Program that speaks Faiss's part
    #[arg(long, value_name = "COMMAND", num_args = 1.., value_delimiter = ' ')]
    peer: Vec<String>,
    /// Report to add the rows to; rows of the same dataset, index and probes are replaced
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A row of the report.
#[derive(Debug, Clone, Serialize)]
struct Row {
    dataset: String,
    index: String,
    peer: Option<String>,
    nprobe: Option<usize>,
    ratio_batch: Option<f64>,
    ratio_single: Option<f64>,
    recall_ours: f64,
    recall_peer: Option<f64>,
    /// Of ours, one query at a time.
    p50_us: f64,
    p99_us: f64,
    peer_p50_us: Option<f64>,
    peer_p99_us: Option<f64>,
    queries_per_second: f64,
    bytes_per_vector: f64,
    build_s_ours: f64,
    build_s_peer: Option<f64>,
    /// Bytes of codes that one query reads, and how fast a core here reads memory of that size.
    bytes_read: usize,
    memory_gb_per_second: f64,
    kernel: &'static str,
    machine: String,
    seed: u64,
}

/// A row of the report on training.
#[derive(Debug, Clone, Serialize)]
struct TrainRow {
    dataset: String,
    index: String,
    peer: String,
    error_ours: f64,
    error_peer: f64,
    train_s_ours: f64,
    train_s_peer: f64,
    machine: String,
    seed: u64,
}

impl BenchArgs {
    /// How fast a network embeds.
    fn embeds(&self, network: &Path) -> anyhow::Result<()> {
        let threads = self.threads.unwrap_or(Threads::ONE);
        let options = EmbedderOptions { threads, ..EmbedderOptions::default() };
        let embedder = Embedder::load_with(network, &options)?;
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("cannot read the photo {}", path.display()))
        };
        let photo = self.photo.as_ref().map(read).transpose()?;
        let measured = measure(&embedder, photo.as_deref(), self.runs as usize, self.profile)?;
        if self.json {
            write_line(format_args!("{}", serde_json::to_string_pretty(&measured)?))
        } else {
            write_line(format_args!("{measured}"))
        }
    }

    pub(super) fn run(self) -> anyhow::Result<()> {
        ensure!(
            self.rows > K && self.dimension > 0 && self.queries > 0 && self.rounds > 0 && self.singles > 0,
            "nothing to measure"
        );
        if let Some(network) = &self.network {
            return self.embeds(network);
        }
        if let Some(gallery) = &self.gallery {
            return self.kept(gallery);
        }
        ensure!(
            !self.json,
            "--json goes with --gallery or --network; an index's report is written by --out FILE"
        );
        let names = self.indexes.iter().map(|name| Named::parse(name)).collect::<anyhow::Result<Vec<_>>>()?;
        let shapes = self.trained.iter().map(|text| shape(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let (features, queries) = match &self.features {
            Some(file) => read(file, self.dimension, self.queries)?,
            None => draw(self.rows, self.queries, self.dimension, self.seed),
        };
        let rows = features.len() / self.dimension;
        let dataset = self.dataset.clone().unwrap_or_else(|| named(rows, self.dimension));
        tracing::info!(rows, dimension = self.dimension, dataset, "vectors ready");
        let truth = truth(&features, &queries, self.dimension)?;
        tracing::info!("exact neighbours found");

        ensure!(!self.probes.contains(&0), "--probes must be at least 1");
        let folder = Folder(std::env::temp_dir().join(format!("glimpse-bench-{}", std::process::id())));
        let mut peer = if self.peer.is_empty() {
            None
        } else {
            Some(Peer::start(&self.peer, &folder.0, &features, &queries, self.dimension)?)
        };
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        single.install(|| -> anyhow::Result<()> {
            let data = Data { dataset, features, queries, truth, dimension: self.dimension };
            for shape in shapes {
                self.compare_training(&data, shape, peer.as_mut())?;
            }
            for name in names {
                self.compare(&data, &name, peer.as_mut())?;
            }
            Ok(())
        })
    }

    /// The index that a gallery has, as a server searches it, on one core.
    fn kept(&self, gallery: &Path) -> anyhow::Result<()> {
        let index = VectorIndex::open(&gallery.join(INDEX))?;
        ensure!(!index.is_empty(), "the gallery is empty");
        let dimension = index.dimension();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut queries = vec![0.0; self.queries * dimension];
        for query in queries.chunks_exact_mut(dimension) {
            index.read(random.random_range(0..index.len() as u32), query);
            // As long as the query itself: as near as another photo of the same thing may be.
            let noise = (3.0 / dimension as f32).sqrt();
            query.iter_mut().for_each(|x| *x += random.random_range(-noise..noise));
            normalize(query);
        }
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let options = SearchOptions::top(K);
        let (batches, singles, found) = single.install(|| {
            let (mut batches, mut singles, mut found) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.rounds {
                let started = Instant::now();
                found = index.search(&queries, &options, None);
                batches.push(started.elapsed().as_secs_f64());
                for query in queries.chunks_exact(dimension).take(self.singles) {
                    let started = Instant::now();
                    std::hint::black_box(index.search(query, &options, None));
                    singles.push(started.elapsed().as_secs_f64());
                }
            }
            (batches, singles, found)
        });
        let sampled = self.queries.min(100);
        let exact = SearchOptions { exact: true, ..options };
        let rows = |found: &[Neighbour]| found.iter().map(|one| i64::from(one.row)).collect::<Vec<_>>();
        let truth: Vec<Vec<i64>> = index
            .search(&queries[..sampled * dimension], &exact, None)
            .iter()
            .map(|found| rows(found))
            .collect();
        let recall = recall(&truth, found[..sampled].iter().map(|found| rows(found).into_iter()));
        let per_second = self.queries as f64 / quantile(&batches, 0.5);
        let (p50_us, p99_us) = (1e6 * quantile(&singles, 0.5), 1e6 * quantile(&singles, 0.99));
        if self.json {
            let report = json!({
                "images": index.len(), "dimension": dimension, "search": index.describe(), "recall": recall,
                "queries_per_second": per_second, "p50_us": p50_us, "p99_us": p99_us, "machine": machine(),
            });
            return write_line(format_args!("{report}"));
        }
        write_line(format_args!("{} images of {dimension} dimensions: {}", index.len(), index.describe()))?;
        write_line(format_args!(
            "together   {per_second:.0} queries a second on one core, recall@{K} {recall:.3}"
        ))?;
        write_line(format_args!("one by one {p50_us:.0} us, 99 of 100 within {p99_us:.0} us"))
    }

    fn compare(&self, data: &Data, name: &Named, mut peer: Option<&mut Peer>) -> anyhow::Result<()> {
        let options = name.options(self.seed);
        let started = Instant::now();
        let index = VectorIndex::build(&data.features, data.dimension, &options, &mut |stage, done, all| {
            tracing::debug!(?stage, done, all);
            true
        })?;
        let measuring = index.seconds_measuring();
        let build_s_ours = started.elapsed().as_secs_f64() - measuring;
        let probes: Vec<Option<usize>> = if name.lists > 0 {
            self.probes.iter().map(|probes| Some(*probes)).collect()
        } else {
            vec![None]
        };
        let candidates = if name.ranked.is_some() { self.candidates } else { 0 };
        for probes in probes {
            let search = SearchOptions { rerank: Some(candidates), probes, ..SearchOptions::top(K) };
            let build_s_peer = match peer.as_deref_mut() {
                None => None,
                Some(peer) => Some(seconds(&peer.ask(&json!({
                    "do": "build", "factory": name.factory(), "k": K, "candidates": candidates, "probes": probes,
                }))?)?),
            };
            let mut batch = Sides::default();
            let mut singles = Sides::default();
            let (mut recall_ours, mut recall_peer) = (0.0, None);
            let count = self.singles.min(data.truth.len());
            for _ in 0..self.rounds {
                let started = Instant::now();
                let found = index.search(&data.queries, &search, None);
                batch.ours.push(started.elapsed().as_secs_f64());
                recall_ours =
                    recall(&data.truth, found.iter().map(|found| found.iter().map(|one| i64::from(one.row))));
                if let Some(peer) = peer.as_deref_mut() {
                    let reply = peer.ask(&json!({"do": "batch", "k": K}))?;
                    batch.peer.push(seconds(&reply)?);
                    let ids: Vec<Vec<i64>> = serde_json::from_value(reply["ids"].clone())?;
                    recall_peer = Some(recall(&data.truth, ids.iter().map(|ids| ids.iter().copied())));
                }
                for query in data.queries.chunks_exact(data.dimension).take(count) {
                    let started = Instant::now();
                    std::hint::black_box(index.search(query, &search, None));
                    singles.ours.push(started.elapsed().as_secs_f64());
                }
                if let Some(peer) = peer.as_deref_mut() {
                    let reply = peer.ask(&json!({"do": "single", "k": K, "count": count}))?;
                    singles.peer.extend(serde_json::from_value::<Vec<f64>>(reply["each"].clone())?);
                }
            }
            let read = index.packed().len() * probes.unwrap_or(1) / name.lists.max(1);
            let row = Row {
                dataset: data.dataset.clone(),
                index: name.text.clone(),
                peer: peer.as_ref().map(|peer| peer.name.clone()),
                nprobe: probes,
                ratio_batch: batch.ratio(1),
                ratio_single: singles.ratio(count),
                recall_ours,
                recall_peer,
                p50_us: 1e6 * quantile(&singles.ours, 0.5),
                p99_us: 1e6 * quantile(&singles.ours, 0.99),
                peer_p50_us: peer.as_ref().map(|_| 1e6 * quantile(&singles.peer, 0.5)),
                peer_p99_us: peer.as_ref().map(|_| 1e6 * quantile(&singles.peer, 0.99)),
                queries_per_second: data.truth.len() as f64 / quantile(&batch.ours, 0.5),
                bytes_per_vector: index.bytes() as f64 / index.len() as f64,
                build_s_ours,
                build_s_peer,
                bytes_read: read,
                memory_gb_per_second: memory_speed(index.packed(), read),
                kernel: Kernel::detect().name(),
                machine: machine(),
                seed: self.seed,
            };
            write_line(format_args!("{}", told(&row)))?;
            self.report(&serde_json::to_value(&row)?, &["dataset", "index", "nprobe"])?;
        }
        Ok(())
    }

    fn compare_training(
        &self,
        data: &Data,
        (m, bits): (usize, u32),
        peer: Option<&mut Peer>,
    ) -> anyhow::Result<()> {
        const POINTS: usize = 256;
        const ITERATIONS: usize = 25;
        let options = TrainOptions {
            sub_spaces: m,
            centroids: 1 << bits,
            iterations: ITERATIONS,
            restarts: 1,
            seed: self.seed,
            max_points_per_centroid: POINTS,
            ..TrainOptions::default()
        };
        let started = Instant::now();
        let codebook = train(&data.features, data.dimension, &options, &mut |_| true)?;
        let train_s_ours = started.elapsed().as_secs_f64();
        let test = (data.features.len() / data.dimension).min(20_000);
        let error_ours = f64::from(quantization_error(&codebook, &data.features[..test * data.dimension]));
        let index = format!("PQ{m}x{bits}");
        let Some(peer) = peer else {
            return write_line(format_args!(
                "{index}: trained in {train_s_ours:.2} s, error {error_ours:.5}"
            ));
        };
        let reply = peer.ask(&json!({
            "do": "train", "sub_spaces": m, "bits": bits, "points": POINTS, "iterations": ITERATIONS, "test": test,
        }))?;
        let row = TrainRow {
            dataset: data.dataset.clone(),
            index,
            peer: peer.name.clone(),
            error_ours,
            error_peer: number(&reply, "error")?,
            train_s_ours,
            train_s_peer: seconds(&reply)?,
            machine: machine(),
            seed: self.seed,
        };
        write_line(format_args!(
            "{}  {}: trained in {:.2} s ({:.2} s), error {:.5} ({:.5})",
            row.dataset, row.index, row.train_s_ours, row.train_s_peer, row.error_ours, row.error_peer
        ))?;
        self.report(&serde_json::to_value(&row)?, &["dataset", "index"])
    }

    /// Adds a row to the report; one with the same keys is replaced.
    fn report(&self, row: &Value, keys: &[&str]) -> anyhow::Result<()> {
        let Some(path) = &self.out else { return Ok(()) };
        let mut rows: Vec<Value> = match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is no report", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let kind = |row: &Value| row.get("error_ours").is_some();
        rows.retain(|other| kind(other) != kind(row) || keys.iter().any(|key| other[*key] != row[*key]));
        rows.push(row.clone());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let draft = path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec_pretty(&rows)?)?;
        Ok(std::fs::rename(&draft, path)?)
    }
}

/// A folder that goes when this does.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Only ours is removed, and a failure to remove it costs disk space only.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What is searched, and what should be found.
struct Data {
    dataset: String,
    features: Vec<f32>,
    queries: Vec<f32>,
    truth: Vec<Vec<i64>>,
    dimension: usize,
}

/// Seconds of both sides, turn by turn.
#[derive(Default)]
struct Sides {
    ours: Vec<f64>,
    peer: Vec<f64>,
}

impl Sides {
    /// How many times as fast ours is: the median over the turns, of `each` measurements.
    fn ratio(&self, each: usize) -> Option<f64> {
        let turns =
            |side: &[f64]| side.chunks(each).map(|turn| turn.iter().sum::<f64>()).collect::<Vec<f64>>();
        let ratios: Vec<f64> =
            turns(&self.peer).iter().zip(turns(&self.ours)).map(|(peer, ours)| peer / ours).collect();
        (!ratios.is_empty()).then(|| quantile(&ratios, 0.5))
    }
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// An index by its name.
#[derive(Debug, Clone)]
struct Named {
    text: String,
    lists: usize,
    sub_spaces: usize,
    bits: u32,
    ranked: Option<Precision>,
}

impl Named {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let wrong =
            || format!("`{text}` names no index: use [IVF<lists>,]PQ<sub-spaces>[x4fs][+SQ8 or +SQfp16]");
        let (found, ranked) = match text.split_once('+') {
            None => (text, None),
            Some((found, "SQ8")) => (found, Some(Precision::I8)),
            Some((found, "SQfp16")) => (found, Some(Precision::F16)),
            Some(_) => bail!(wrong()),
        };
        let (lists, codes) = match found.split_once(',') {
            Some((lists, codes)) => {
                (lists.strip_prefix("IVF").and_then(|n| n.parse().ok()).with_context(wrong)?, codes)
            }
            None => (0, found),
        };
        let codes = codes.strip_prefix("PQ").with_context(wrong)?;
        let (sub_spaces, bits) = match codes.strip_suffix("x4fs") {
            Some(m) => (m, 4),
            None => (codes, 8),
        };
        let sub_spaces = sub_spaces.parse().ok().with_context(wrong)?;
        Ok(Self { text: text.to_owned(), lists, sub_spaces, bits, ranked })
    }

    fn options(&self, seed: u64) -> IndexOptions {
        let sub_spaces = Some(self.sub_spaces);
        IndexOptions {
            codes: if self.bits == 4 {
                CodesOption::Four { sub_spaces }
            } else {
                CodesOption::Eight { sub_spaces }
            },
            lists: Some(self.lists),
            precision: self.ranked.unwrap_or(Precision::I8),
            iterations: 25,
            seed,
            ..IndexOptions::default()
        }
    }

    fn factory(&self) -> String {
        let found = self.text.split('+').next().unwrap_or_default();
        match self.ranked {
            Some(Precision::I8) => format!("{found},Refine(SQ8)"),
            Some(_) => format!("{found},Refine(SQfp16)"),
            None => found.to_owned(),
        }
    }
}

fn shape(text: &str) -> anyhow::Result<(usize, u32)> {
    let parsed = text.split_once('x').and_then(|(m, bits)| Some((m.parse().ok()?, bits.parse().ok()?)));
    let (m, bits) = parsed
        .filter(|(_, bits)| (1..=8).contains(bits))
        .with_context(|| format!("`{text}` is no MxBITS, as 16x8"))?;
    Ok((m, bits))
}

/// Faiss, in a process of its own.
struct Peer {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    name: String,
}

impl Peer {
    fn start(
        command: &[String],
        folder: &Path,
        features: &[f32],
        queries: &[f32],
        dimension: usize,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let write = |name: &str, values: &[f32]| -> anyhow::Result<PathBuf> {
            let path = folder.join(name);
            let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
            for values in values.chunks(1 << 16) {
                file.write_all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
            }
            file.flush()?;
            Ok(path)
        };
        let (features, queries) = (write("features.f32", features)?, write("queries.f32", queries)?);
        let (program, arguments) = command.split_first().context("no peer")?;
        let mut process = Command::new(program)
            .args(arguments)
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the peer `{program}`"))?;
        let (to, from) =
            (process.stdin.take().context("no stdin")?, process.stdout.take().context("no stdout")?);
        let mut peer = Self { process, to, from: BufReader::new(from), name: String::new() };
        let reply = peer
            .ask(&json!({"do": "load", "features": features, "queries": queries, "dimension": dimension}))?;
        peer.name = format!(
            "faiss {} ({})",
            reply["version"].as_str().unwrap_or("?"),
            reply["options"].as_str().unwrap_or("?").trim()
        );
        Ok(peer)
    }

    fn ask(&mut self, command: &Value) -> anyhow::Result<Value> {
        writeln!(self.to, "{command}").and_then(|()| self.to.flush()).context("the peer has gone away")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the peer has ended: see what it wrote above");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn number(reply: &Value, name: &str) -> anyhow::Result<f64> {
    reply[name].as_f64().with_context(|| format!("the peer told no {name}"))
}

fn seconds(reply: &Value) -> anyhow::Result<f64> {
    number(reply, "seconds")
}

/// Unit vectors around centres, fifty each, and queries around the same centres. The centres gather around others, a tenth as
/// many, so that neighbours of a cluster are neighbours too.
fn draw(rows: usize, queries: usize, dimension: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let centres = (rows / 50).max(1);
    let groups = (centres / 10).max(1);
    let vector = |stream: u64, out: &mut [f32]| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        for x in out.iter_mut() {
            // The sum of four uniform numbers is near enough to a normal one; this has a variance of 1.
            *x = (0..4)
                .map(|_| random.random::<f32>())
                .sum::<f32>()
                .mul_add(3.0_f32.sqrt(), -2.0 * 3.0_f32.sqrt());
        }
        random.random::<u64>() as usize
    };
    // Streams: groups, then centres, then vectors, then queries.
    let around = |count: usize, first: usize, others: &[f32], spread: f32| {
        let mut all = vec![0.0; count * dimension];
        all.par_chunks_exact_mut(dimension).enumerate().for_each(|(number, x)| {
            let choice = vector((first + number) as u64, x);
            if !others.is_empty() {
                let centre = &others[choice % (others.len() / dimension) * dimension..][..dimension];
                x.iter_mut().zip(centre).for_each(|(x, centre)| *x = centre + spread * *x);
            }
        });
        all
    };
    let groups_at = around(groups, 0, &[], 1.0);
    let centres_at = around(centres, groups, &groups_at, 0.7);
    let mut features = around(rows, groups + centres, &centres_at, 0.6);
    let mut asked = around(queries, groups + centres + rows, &centres_at, 0.6);
    features.par_chunks_exact_mut(dimension).for_each(normalize);
    asked.par_chunks_exact_mut(dimension).for_each(normalize);
    (features, asked)
}

fn read(file: &Path, dimension: usize, queries: usize) -> anyhow::Result<(Vec<f32>, Vec<f32>)> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let (values, rest) = bytes.as_chunks::<4>();
    let whole = rest.is_empty() && values.len().is_multiple_of(dimension);
    ensure!(whole, "{} has no whole rows of {dimension} 32-bit floats", file.display());
    let mut features: Vec<f32> = values.iter().map(|x| f32::from_le_bytes(*x)).collect();
    ensure!(features.iter().all(|x| x.is_finite()), "{} holds values that are not finite", file.display());
    let rows = features.len() / dimension;
    ensure!(rows > queries + K, "{} has {rows} rows, too few for {queries} queries", file.display());
    features.chunks_exact_mut(dimension).for_each(normalize);
    let asked = features.split_off((rows - queries) * dimension);
    Ok((features, asked))
}

/// The rows of the exact neighbours of each query, on all cores.
fn truth(features: &[f32], queries: &[f32], dimension: usize) -> anyhow::Result<Vec<Vec<i64>>> {
    let options =
        IndexOptions { codes: CodesOption::Exact, precision: Precision::F32, ..IndexOptions::default() };
    let exact = VectorIndex::build(features, dimension, &options, &mut |_, _, _| true)?;
    let found = exact.search(queries, &SearchOptions { exact: true, ..SearchOptions::top(K) }, None);
    Ok(found
        .into_iter()
        .map(|found| found.iter().map(|one: &Neighbour| i64::from(one.row)).collect())
        .collect())
}

fn recall<I: Iterator<Item = i64>>(truth: &[Vec<i64>], found: impl Iterator<Item = I>) -> f64 {
    let hits: usize =
        truth.iter().zip(found).map(|(truth, found)| found.filter(|id| truth.contains(id)).count()).sum();
    hits as f64 / truth.iter().map(Vec::len).sum::<usize>() as f64
}

/// Gigabytes a second at which one core adds up as many bytes as a query reads, over and over: the limit of a query alone.
fn memory_speed(bytes: &[u8], read: usize) -> f64 {
    let part = &bytes[..read.min(bytes.len())];
    if part.is_empty() {
        return 0.0;
    }
    let sum = |part: &[u8]| {
        part.as_chunks::<64>().0.iter().fold([0_u64; 8], |mut sums, line| {
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
            sums
        })
    };
    let turns = ((256 << 20) / part.len()).clamp(3, 1000);
    let mut fastest = f64::INFINITY;
    for _ in 0..turns {
        let started = Instant::now();
        std::hint::black_box(sum(std::hint::black_box(part)));
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    part.len() as f64 / fastest / 1e9
}

fn named(rows: usize, dimension: usize) -> String {
    match rows {
        _ if rows.is_multiple_of(1_000_000) => format!("{}m{dimension}", rows / 1_000_000),
        _ if rows.is_multiple_of(1000) => format!("{}k{dimension}", rows / 1000),
        _ => format!("{rows}x{dimension}"),
    }
}

/// What the processor calls itself.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    // Not those that this process may use: it may be bound to one.
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{}, {cores} cores", name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()))
}

fn told(row: &Row) -> String {
    let times = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let probes = row.nprobe.map_or(String::new(), |probes| format!(" nprobe {probes}"));
    let peer = row.recall_peer.map_or(String::new(), |recall| format!(" ({recall:.3})"));
    let slower = row.peer_p50_us.map_or(String::new(), |p50| format!(" ({p50:.0})"));
    let built = row.build_s_peer.map_or(String::new(), |seconds| format!(" ({seconds:.1})"));
    format!(
        "{}  {}{probes}: batch {}, single {} times as fast; recall@10 {:.3}{peer}; {:.0} q/s; p50 {:.0}{slower} us, p99 {:.0} us; {:.0} bytes; built in {:.1}{built} s",
        row.dataset,
        row.index,
        times(row.ratio_batch),
        times(row.ratio_single),
        row.recall_ours,
        row.queries_per_second,
        row.p50_us,
        row.p99_us,
        row.bytes_per_vector,
        row.build_s_ours
    )
}
