//! The figures, `demo.json`, and the bars that they must meet.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::ground_truth::GroundTruth;
use super::metrics::{Accuracy, percentile};
use crate::queries::Answer;

/// What was measured; `demo.json` as it is.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of demo.json and say it")]
pub struct Report {
    pub queries: usize,
    pub answered: usize,
    pub gallery_size: usize,
    pub recall_at_1: f64,
    pub recall_at_10: f64,
    /// Mean reciprocal rank of the one right photo; 0 beyond rank 100, which is as far as an answer goes.
    pub map: f64,
    pub symmetric_recall_at_1: f64,
    pub symmetric_recall_at_10: f64,
    pub symmetric_map: f64,
    /// `map / symmetric_map`: what the tiny network keeps of the large one's accuracy.
    pub retention: f64,
    pub control_recall_at_1: f64,
    pub control_recall_at_10: f64,
    pub control_map: f64,
    /// `control_map / symmetric_map`
    pub control_retention: f64,
    /// Mean MQTT payload of a query.
    pub bytes_per_query: f64,
    pub codec: &'static str,
    pub reply_p50_ms: f64,
    pub reply_p99_ms: f64,
    pub embed_p50_ms: f64,
    pub machine: Machine,
    pub seconds: f64,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that the programs could use.
    pub cores: usize,
}

impl Report {
    /// From the device's answers, and the accuracies of device, large network and control.
    pub fn new(
        truth: &GroundTruth,
        codec: glimpse_protocol::Codec,
        answers: &[Answer],
        [device, symmetric, control]: [Accuracy; 3],
        elapsed: Duration,
    ) -> Self {
        let answered = answers.iter().filter(|answer| answer.error.is_none()).count();
        let bytes: usize = answers.iter().filter_map(|answer| answer.bytes).sum();
        // A ratio to nothing is no retention at all.
        let kept = |map: f64| if symmetric.map > 0.0 { map / symmetric.map } else { 0.0 };
        // Without a single reply there is no time that could meet a bar.
        let reply = |percent| {
            percentile(answers.iter().filter_map(|answer| answer.reply_ms), percent).unwrap_or(f64::MAX)
        };
        Self {
            queries: answers.len(),
            answered,
            gallery_size: truth.gallery_size,
            recall_at_1: device.recall_at_1,
            recall_at_10: device.recall_at_10,
            map: device.map,
            symmetric_recall_at_1: symmetric.recall_at_1,
            symmetric_recall_at_10: symmetric.recall_at_10,
            symmetric_map: symmetric.map,
            retention: kept(device.map),
            control_recall_at_1: control.recall_at_1,
            control_recall_at_10: control.recall_at_10,
            control_map: control.map,
            control_retention: kept(control.map),
            bytes_per_query: bytes as f64 / answered.max(1) as f64,
            codec: codec.name(),
            reply_p50_ms: reply(50),
            reply_p99_ms: reply(99),
            embed_p50_ms: percentile(answers.iter().filter_map(|answer| answer.embed_ms), 50)
                .unwrap_or_default(),
            machine: Machine::this(),
            seconds: elapsed.as_secs_f64(),
        }
    }

    /// The bars that are missed, each with its figure.
    pub fn missed_bars(&self) -> Vec<String> {
        let bars = [
            (self.queries >= 200, format!("queries: {}, at least 200 are needed", self.queries)),
            (
                self.answered == self.queries,
                format!("answered: {} of {} queries", self.answered, self.queries),
            ),
            (
                self.gallery_size >= 300,
                format!("gallery: {} photos, at least 300 are needed", self.gallery_size),
            ),
            (self.retention >= 0.85, format!("retention: {:.3}, at least 0.85 is needed", self.retention)),
            (
                self.control_retention <= 0.10,
                format!("control: {:.3}, at most 0.10 is allowed", self.control_retention),
            ),
            (
                self.reply_p50_ms <= 5.0,
                format!("median reply: {:.2} ms, at most 5 ms are allowed", self.reply_p50_ms),
            ),
        ];
        bars.into_iter().filter(|(met, _)| !met).map(|(_, text)| text).collect()
    }

    /// Writes `demo.json` into `reports`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, reports: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(reports).with_context(|| format!("cannot make {}", reports.display()))?;
        let path = reports.join("demo.json");
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Name, recall@1, recall@10 and mAP of the three networks.
    pub fn rows(&self) -> [(&'static str, [f64; 3]); 3] {
        [
            ("device, tiny network", [self.recall_at_1, self.recall_at_10, self.map]),
            (
                "server, large network",
                [self.symmetric_recall_at_1, self.symmetric_recall_at_10, self.symmetric_map],
            ),
            (
                "control, tiny network with a random head",
                [self.control_recall_at_1, self.control_recall_at_10, self.control_map],
            ),
        ]
    }
}

/// The summary on a terminal.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queries, gallery) = (self.queries, self.gallery_size);
        writeln!(
            f,
            "\n{queries} photos against a gallery of {gallery}{:>19}{:>10}{:>8}",
            "recall@1", "recall@10", "mAP"
        )?;
        for (name, [at_1, at_10, map]) in self.rows() {
            writeln!(f, "  {name:<42} {:>6.1} % {:>7.1} % {map:>7.3}", 100.0 * at_1, 100.0 * at_10)?;
        }
        writeln!(
            f,
            "retention {:.3} (control {:.3}); mAP looks at the first 100 matches",
            self.retention, self.control_retention
        )?;
        write!(
            f,
            "{:.0} bytes a query ({}), reply p50 {:.2} ms, p99 {:.2} ms, embedding p50 {:.1} ms, {:.0} s in all",
            self.bytes_per_query,
            self.codec,
            self.reply_p50_ms,
            self.reply_p99_ms,
            self.embed_p50_ms,
            self.seconds
        )
    }
}

impl Machine {
    fn this() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}
