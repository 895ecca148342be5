//! What a run says about itself: a line an epoch, curves, and a page at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use super::TrainingError;
use super::checkpoint::State;
use crate::files::{FileError, read, write_whole};
use crate::losses::Loss;
use crate::retrieval::Scores;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u64,
    /// Steps that are done.
    pub step: u64,
    /// Of the last of them.
    pub learning_rate: f64,
    /// Mean of each term, before its weight.
    pub losses: BTreeMap<String, f64>,
    /// Of the network, or of its average.
    pub validation: Scores,
    /// Best mAP so far.
    pub best_map: f64,
    /// Since the last line.
    pub seconds: f64,
    /// Share of them that the device waited for batches.
    pub waited: f64,
}

impl Epoch {
    pub(super) fn describe(&self, steps: u64) -> String {
        let losses: Vec<String> =
            self.losses.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
        format!(
            "epoch {:>3}, step {:>5} of {steps}: {}, validation mAP {:.4} (best {:.4}), recall@1 {:.4}, waited {:.0} %",
            self.epoch,
            self.step,
            losses.join(", "),
            self.validation.map,
            self.best_map,
            self.validation.recall_at_1,
            100.0 * self.waited
        )
    }
}

/// Losses of the batches since the last report.
pub(super) struct Sums {
    sums: Vec<f64>,
    batches: u64,
    start: Instant,
}

impl Sums {
    pub(super) fn new(losses: usize) -> Self {
        Self { sums: vec![0.0; losses], batches: 0, start: Instant::now() }
    }

    pub(super) fn add(&mut self, loss: usize, value: f32) {
        self.sums[loss] += f64::from(value);
    }

    pub(super) fn count(&mut self) {
        self.batches += 1;
    }

    /// The line of the epoch that ends here; a new one begins.
    pub(super) fn epoch(
        &mut self,
        losses: &[(f64, Box<dyn Loss>)],
        epoch: u64,
        state: &State,
        learning_rate: f64,
        validation: Scores,
        waited: Duration,
    ) -> Epoch {
        let batches = self.batches.max(1) as f64;
        let means =
            losses.iter().zip(&self.sums).map(|((_, loss), sum)| (loss.name().to_owned(), sum / batches));
        let seconds = self.start.elapsed().as_secs_f64();
        let line = Epoch {
            epoch,
            step: state.step,
            learning_rate,
            losses: means.collect(),
            validation,
            best_map: state.best_map,
            seconds,
            waited: waited.as_secs_f64() / seconds.max(f64::MIN_POSITIVE),
        };
        *self = Self::new(self.sums.len());
        line
    }
}

pub(super) fn metrics_path(folder: &Path) -> PathBuf {
    folder.join("metrics.jsonl")
}

/// The lines of a run so far; what cannot be read as such is left out.
pub fn read_metrics(folder: &Path) -> Vec<Epoch> {
    let text = String::from_utf8(read(&metrics_path(folder)).unwrap_or_default()).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn write_metrics(folder: &Path, lines: &[Epoch]) -> Result<(), FileError> {
    let line = |epoch| serde_json::to_string(epoch).expect("numbers are always JSON") + "\n";
    let text: String = lines.iter().map(line).collect();
    write_whole(&metrics_path(folder), text.as_bytes())
}

pub(super) fn append_metrics(folder: &Path, line: &Epoch) -> Result<(), FileError> {
    let mut lines = read_metrics(folder);
    lines.push(line.clone());
    write_metrics(folder, &lines)
}

/// An epoch that ended after the last checkpoint will be done again.
pub(super) fn forget_metrics_after(folder: &Path, step: u64) -> Result<(), FileError> {
    let mut lines = read_metrics(folder);
    lines.retain(|line| line.step <= step);
    write_metrics(folder, &lines)
}

/// The page at the end of a run.
pub struct Report<'a> {
    /// What was trained, in a few words.
    pub title: &'a str,
    /// Name and value, in order.
    pub facts: &'a [(&'a str, String)],
    /// The lines of the run.
    pub epochs: &'a [Epoch],
}

/// Pixels of the curves.
const CURVES_SIZE: (u32, u32) = (900, 420);

impl Report<'_> {
    /// Writes `curves.svg` and `report.md`.
    ///
    /// # Errors
    /// [`TrainingError::File`] and [`TrainingError::Drawing`].
    pub fn write(&self, folder: &Path) -> Result<(), TrainingError> {
        let path = folder.join("curves.svg");
        let svg =
            self.curves().map_err(|error| TrainingError::Drawing { path: path.clone(), reason: error })?;
        write_whole(&path, svg.as_bytes())?;
        Ok(write_whole(&folder.join("report.md"), self.markdown().as_bytes())?)
    }

    fn markdown(&self) -> String {
        let mut page = format!("# {}\n\n| | |\n|---|---|\n", self.title);
        for (name, value) in self.facts {
            let _ = writeln!(page, "| {name} | {value} |");
        }
        page += "\n![loss and validation mAP](curves.svg)\n\n";
        page += "| epoch | step | losses | validation mAP | recall@1 | seconds | device waited |\n|---|---|---|---|---|---|---|\n";
        for line in self.epochs {
            let losses: Vec<String> =
                line.losses.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:.4} | {:.4} | {:.1} | {:.0} % |",
                line.epoch,
                line.step,
                losses.join(", "),
                line.validation.map,
                line.validation.recall_at_1,
                line.seconds,
                100.0 * line.waited
            );
        }
        page
    }

    /// Each term relative to its first value, on the left; validation mAP on the right.
    fn curves(&self) -> Result<String, String> {
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, CURVES_SIZE)).map_err(|error| error.to_string())?;
        Ok(svg)
    }

    fn draw<'b>(
        &self,
        backend: SVGBackend<'b>,
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>> {
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(CURVES_SIZE.0 / 2);
        let last = self.epochs.last().map_or(1, |line| line.step.max(1)) as f64;
        let first = self.epochs.first();
        let names: Vec<&String> = first.iter().flat_map(|line| line.losses.keys()).collect();
        let term = |name: &str| -> Vec<(f64, f64)> {
            let start = first.map_or(1.0, |line| line.losses[name]).max(f64::MIN_POSITIVE);
            let values = self
                .epochs
                .iter()
                .filter_map(|line| Some((line.step as f64, line.losses.get(name)? / start)));
            values.collect()
        };
        let top = names.iter().flat_map(|name| term(name)).map(|(_, y)| y).fold(1.0, f64::max);
        let mut losses = ChartBuilder::on(&left)
            .caption("loss, relative to the first epoch", ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(45)
            .build_cartesian_2d(0.0..last, 0.0..top * 1.05)?;
        losses.configure_mesh().x_desc("step").draw()?;
        for (i, name) in names.iter().enumerate() {
            let colour = Palette99::pick(i).to_rgba();
            losses
                .draw_series(LineSeries::new(term(name), colour.stroke_width(2)))?
                .label(name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour));
        }
        losses.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;

        let map: Vec<(f64, f64)> =
            self.epochs.iter().map(|line| (line.step as f64, line.validation.map)).collect();
        let (low, high) =
            map.iter().fold((f64::MAX, 0.0_f64), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
        let low = if low > high { 0.0 } else { low };
        let space = ((high - low) * 0.1).max(0.005);
        let mut chart = ChartBuilder::on(&right)
            .caption("validation mAP", ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..last, low - space..high + space)?;
        chart.configure_mesh().x_desc("step").draw()?;
        chart.draw_series(LineSeries::new(map, BLUE.stroke_width(2)))?;
        area.present()
    }
}
