//! What a run says about itself: numbers after every step, a line an epoch, curves, and a page at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use super::TrainingError;
use crate::files::{FileError, read, write_whole};
use crate::losses::Loss;
use crate::retrieval::Scores;

/// Training since the last epoch's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stretch {
    /// The epoch of the last step, from 1.
    pub epoch: u64,
    /// Steps that are done.
    pub step: u64,
    /// Of the last of them.
    pub learning_rate: f64,
    /// Mean of what is minimised: all terms, each times its weight.
    pub loss: f64,
    /// Mean of each term, before its weight.
    pub losses: BTreeMap<String, f64>,
    /// Trained in a second.
    pub images_per_second: f64,
    /// Share of the time that the device waited for batches.
    pub waited: f64,
}

impl Stretch {
    /// `name mean, name mean`.
    pub fn describe_terms(&self) -> String {
        let terms: Vec<String> = self.losses.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
        terms.join(", ")
    }
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Up to the epoch's end; validation's time does not count.
    #[serde(flatten)]
    pub training: Stretch,
    /// Of the network, or of its average.
    pub validation: Scores,
    /// Best mAP so far.
    pub best_map: f64,
    /// Since the last line, with validation.
    pub seconds: f64,
}

impl Epoch {
    /// For people, in one line.
    pub fn describe(&self, steps: u64) -> String {
        let Self { training, validation, best_map, .. } = self;
        format!(
            "epoch {:>3}, step {:>5} of {steps}: loss {:.4} ({}), validation mAP {:.4} (best {best_map:.4}), recall@1 {:.4}, \
             {:.1} images/s, waited {:.0} %",
            training.epoch,
            training.step,
            training.loss,
            training.describe_terms(),
            validation.map,
            validation.recall_at_1,
            training.images_per_second,
            100.0 * training.waited
        )
    }
}

/// Sums over the batches since the last line.
pub(super) struct Sums {
    losses: Vec<f64>,
    batches: u64,
    images: u64,
    waited: Duration,
    start: Instant,
}

impl Sums {
    pub(super) fn new(losses: usize) -> Self {
        Self {
            losses: vec![0.0; losses],
            batches: 0,
            images: 0,
            waited: Duration::ZERO,
            start: Instant::now(),
        }
    }

    pub(super) fn add(&mut self, loss: usize, value: f32) {
        self.losses[loss] += f64::from(value);
    }

    /// A batch of so many images is done.
    pub(super) fn count(&mut self, images: usize) {
        self.batches += 1;
        self.images += images as u64;
    }

    /// How long a step's batches were waited for.
    pub(super) fn wait(&mut self, waited: Duration) {
        self.waited += waited;
    }

    /// The means so far, after step `step` of epoch `epoch`.
    pub(super) fn stretch(
        &self,
        losses: &[(f64, Box<dyn Loss>)],
        epoch: u64,
        step: u64,
        learning_rate: f64,
    ) -> Stretch {
        let batches = self.batches.max(1) as f64;
        let seconds = self.start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let means =
            || losses.iter().zip(&self.losses).map(|((weight, loss), sum)| (weight, loss, sum / batches));
        Stretch {
            epoch,
            step,
            learning_rate,
            loss: means().map(|(weight, _, mean)| weight * mean).sum(),
            losses: means().map(|(_, loss, mean)| (loss.name().to_owned(), mean)).collect(),
            images_per_second: self.images as f64 / seconds,
            waited: self.waited.as_secs_f64() / seconds,
        }
    }

    /// The line of the epoch that ends with this training; a new one begins.
    pub(super) fn epoch(&mut self, training: Stretch, validation: Scores, best_map: f64) -> Epoch {
        let seconds = self.start.elapsed().as_secs_f64();
        *self = Self::new(self.losses.len());
        Epoch { training, validation, best_map, seconds }
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
    lines.retain(|line| line.training.step <= step);
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
        page += "| epoch | step | terms of the loss | loss | learning rate | validation mAP | recall@1 | images/s | seconds | \
                 device waited |\n|---|---|---|---|---|---|---|---|---|---|\n";
        for line in self.epochs {
            let Epoch { training, validation, seconds, .. } = line;
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:.4} | {:.2e} | {:.4} | {:.4} | {:.1} | {seconds:.1} | {:.0} % |",
                training.epoch,
                training.step,
                training.describe_terms(),
                training.loss,
                training.learning_rate,
                validation.map,
                validation.recall_at_1,
                training.images_per_second,
                100.0 * training.waited
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
        let last = self.epochs.last().map_or(1, |line| line.training.step.max(1)) as f64;
        let first = self.epochs.first().map(|line| &line.training.losses);
        let names: Vec<&String> = first.iter().flat_map(|losses| losses.keys()).collect();
        let term = |name: &str| -> Vec<(f64, f64)> {
            let start = first.map_or(1.0, |losses| losses[name]).max(f64::MIN_POSITIVE);
            let values = self.epochs.iter().filter_map(|Epoch { training, .. }| {
                Some((training.step as f64, training.losses.get(name)? / start))
            });
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
            self.epochs.iter().map(|line| (line.training.step as f64, line.validation.map)).collect();
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
