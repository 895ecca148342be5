//! What `make demo` runs: a simulated device recognises real photos, over MQTT, against the gallery server.
//!
//! 1. ingest the gallery (resumable: a second run finds it done), and start the server with its broker
//! 2. the device asks about every held-out photo, with the tiny network
//! 3. the server answers the same photos with its own large network: what could be reached at best; at the same time the
//!    control, the tiny network with a random head, asks them too, so that nobody takes luck for recognition
//! 4. figures and page into `target/reports`, and a verdict
//!
//! In reading order: [`ground_truth`], [`control`], [`metrics`], [`report`], [`page`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use glimpse_embedder::SpaceBundle;
use indicatif::{ProgressBar, ProgressStyle};

use crate::programs::Programs;
use crate::queries::{Answer, ask};
use crate::server::Server;
use crate::workspace;

pub mod control;
pub mod ground_truth;
pub mod metrics;
pub mod page;
pub mod report;

use ground_truth::GroundTruth;
use metrics::Accuracy;
use report::Report;

/// All that the protocol gives: ranks beyond it count as not found.
pub const TOP_K: usize = glimpse_protocol::TOP_K_MAX;

/// Recognise the demo's photos from a simulated device, over MQTT, against the gallery server
#[derive(Debug, Parser)]
#[command(
    name = "glimpse-demo",
    version,
    after_help = "Writes target/reports/demo.html and demo.json. Ends with status 1 where a bar is missed: at least 200 \
                  queries and 300 gallery photos, retention >= 0.85, control <= 0.10, median reply <= 5 ms."
)]
pub struct Options {
    /// Folder of the space bundle [default: models/demo of the repository]
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// How embeddings travel: f32, f16, i8 or pq
    #[arg(long, default_value_t = glimpse_protocol::Codec::I8)]
    pub codec: glimpse_protocol::Codec,
}

/// Runs the demo. Returns the bars that it misses.
///
/// # Errors
/// What kept it from coming to figures.
pub fn run(options: &Options) -> anyhow::Result<Vec<String>> {
    let started = Instant::now();
    let bundle_dir = options.bundle.clone().unwrap_or_else(workspace::bundle);
    let bundle = SpaceBundle::load(&bundle_dir)?;
    let truth = GroundTruth::read(&workspace::demo())?;
    let place = workspace::root().join("target/demo");
    std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let demo = Demo { programs: Programs::find()?, codec: options.codec, bundle, truth, place };

    step(1, &format!("gallery of {} photos, embedded with the large network", demo.truth.gallery_size));
    demo.ingest()?;
    let server = Server::start(&demo.programs, &demo.gallery(), &demo.bundle.dir, &demo.log("server"))?;
    eprintln!("      the server answers on {}, MQTT broker inside", server.address()?);

    let count = demo.truth.queries.len();
    step(2, &format!("{count} photos from the device, embedded with the tiny network"));
    let device =
        demo.query("device", &demo.bundle.query_model(), server.address()?, Some(demo.progress()))?;
    demo.show_some(&device);

    step(3, "the same photos with the server's large network, and with a tiny network whose head is random");
    let model = demo.place.join("control.onnx");
    control::randomise_head(&demo.bundle.query_model(), &model)?;
    let address = server.address()?;
    let (symmetric, control) = std::thread::scope(|scope| {
        let control = scope.spawn(|| demo.query("control", &model, address, None));
        let symmetric = demo.search();
        (symmetric, control.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the control's thread failed"))))
    });
    let (symmetric, control) = (symmetric?, control?);
    drop(server);

    step(4, "report");
    let accuracy = |answers: &[Answer]| Accuracy::of(&demo.truth.ranks(answers));
    let report = Report::new(
        &demo.truth,
        options.codec,
        &device,
        [accuracy(&device), accuracy(&symmetric), accuracy(&control)],
        started.elapsed(),
    );
    let reports = workspace::reports();
    report.write(&reports)?;
    page::write(&reports, &report, &demo.truth, &device)?;
    println!("{report}");
    println!("see {}", reports.join("demo.html").display());
    Ok(report.missed_bars())
}

/// What the steps share.
struct Demo {
    programs: Programs,
    codec: glimpse_protocol::Codec,
    bundle: SpaceBundle,
    truth: GroundTruth,
    /// `target/demo`: store, control network, logs.
    place: PathBuf,
}

impl Demo {
    fn gallery(&self) -> PathBuf {
        self.place.join("gallery")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.place.join(format!("{name}.log"))
    }

    /// Brings the gallery up to date; one of another space or of other photos is made anew.
    fn ingest(&self) -> anyhow::Result<()> {
        let stamp_file = self.place.join("gallery.stamp");
        let stamp = format!(
            "{}\n{}",
            self.bundle.space,
            std::fs::read_to_string(workspace::demo().join("gallery.csv"))?
        );
        if std::fs::read_to_string(&stamp_file).ok().as_ref() != Some(&stamp) && self.gallery().exists() {
            std::fs::remove_dir_all(self.gallery())?;
        }
        std::fs::write(&stamp_file, stamp)?;
        let mut command = self.programs.gallery();
        command.arg("ingest").arg(workspace::demo().join("gallery.csv"));
        command.arg("--root").arg(workspace::demo().join("photos"));
        command.arg("--gallery").arg(self.gallery()).arg("--bundle").arg(&self.bundle.dir);
        // Its progress and its warnings are for whoever watches the demo; its summary line is not data here.
        command.stdout(std::process::Stdio::null());
        let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
        ensure!(
            status.success(),
            "the ingest failed ({status}); run `make demo` again to go on where it stopped"
        );
        Ok(())
    }

    /// All queries, from a device with `model`.
    fn query(
        &self,
        device: &str,
        model: &Path,
        server: &str,
        progress: Option<Progress>,
    ) -> anyhow::Result<Vec<Answer>> {
        let mut command = self.programs.edge();
        command.arg("query").arg("--json").arg("--model").arg(model);
        command.arg("--codebook").arg(self.bundle.codebook());
        command.args([
            "--server",
            server,
            "--device",
            &format!("demo-{device}"),
            "--codec",
            self.codec.name(),
        ]);
        command.args(["--top-k", &TOP_K.to_string()]);
        self.ask(command, device, progress)
    }

    /// All queries, with the gallery's own network and exact search.
    fn search(&self) -> anyhow::Result<Vec<Answer>> {
        let mut command = self.programs.gallery();
        command.args(["search", "--json", "--exact", "--top-k", &TOP_K.to_string()]);
        command.arg("--gallery").arg(self.gallery()).arg("--bundle").arg(&self.bundle.dir);
        self.ask(command, "search", Some(self.progress()))
    }

    fn progress(&self) -> Progress {
        Progress::new(self.truth.queries.len())
    }

    fn ask(
        &self,
        command: std::process::Command,
        name: &str,
        progress: Option<Progress>,
    ) -> anyhow::Result<Vec<Answer>> {
        let photos: Vec<PathBuf> = self.truth.queries.iter().map(|query| query.photo.clone()).collect();
        let answers =
            ask(command, &photos, &self.log(name), &mut |_| progress.iter().for_each(Progress::one))?;
        if let Some(progress) = progress {
            progress.finish();
        }
        let unanswered: Vec<&Answer> = answers.iter().filter(|answer| answer.error.is_some()).collect();
        if let Some(Answer { photo, error: Some(error), .. }) = unanswered.first() {
            let (photo, count) = (photo.display(), unanswered.len());
            ensure!(count < answers.len(), "no photo was answered; the first, {photo}: {error}");
            eprintln!("      {count} photos have no answer; the first, {photo}: {error}");
        }
        Ok(answers)
    }

    /// A dozen answers, evenly over all queries.
    fn show_some(&self, answers: &[Answer]) {
        let every = answers.len().div_ceil(12).max(1);
        for (query, answer) in self.truth.queries.iter().zip(answers).step_by(every) {
            let right = answer.matches.first().is_some_and(|found| found.image == query.answer);
            let best: Vec<String> = answer
                .matches
                .iter()
                .take(3)
                .map(|found| format!("{} {:.2}", found.label, found.similarity))
                .collect();
            println!("{} {:<28} {}", if right { "right" } else { "WRONG" }, query.label, best.join("  |  "));
        }
    }
}

fn step(number: u32, what: &str) {
    eprintln!("[{number}/4] {what}");
}

/// A bar on a terminal, a line every few seconds elsewhere.
struct Progress {
    bar: ProgressBar,
    started: Instant,
    last_line: std::cell::Cell<Instant>,
}

impl Progress {
    fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("      {wide_bar} {pos}/{len}, {eta} left") {
            bar.set_style(style);
        }
        Self { bar, started: Instant::now(), last_line: Instant::now().into() }
    }

    fn one(&self) {
        self.bar.inc(1);
        if self.bar.is_hidden() && self.last_line.get().elapsed() >= Duration::from_secs(5) {
            eprintln!("      {} of {}", self.bar.position(), self.bar.length().unwrap_or_default());
            self.last_line.set(Instant::now());
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
        eprintln!("      {} in {:.1} s", self.bar.position(), self.started.elapsed().as_secs_f64());
    }
}
