//! Burn's terminal dashboard, fed by our loop: progress, curves and numbers of a run while it trains.
//!
//! Burn draws in a thread of its own, on the terminal's other screen and in raw mode. Three things it leaves to us:
//!
//! - Ctrl-C would be a key that it ignores. Here it stays a signal ([`keep_interrupts`]), so that it stops a run as it does
//!   without a dashboard; the dashboard's own `q`, `s` raises the same flag. (Its `q`, `k` is a panic that Burn words kindly:
//!   like a kill, it leaves the last epoch's checkpoint.)
//! - Remarks would tear the picture: they go to the run folder's `train.log` ([`Diverted`]).
//! - A process that ends at once has to give the terminal back: [`restore_terminal`].
//!
//! Every number is a mean since the last line of `metrics.jsonl`, and at the end of an epoch that line's own.

use std::io::{Error, IsTerminal, Result, stderr, stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burn::train::Interrupter;
use burn::train::logger::TrainingProgressLogger;
use burn::train::metric::{
    MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining};
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::DisableMouseCapture;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{LeaveAlternateScreen, disable_raw_mode, is_raw_mode_enabled};
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcgetpgrp, tcsetattr};

use crate::log::Diverted;
use crate::retrieval::Scores;
use crate::training::{Epoch, Plan, Stretch, Watcher, plain, read_metrics};

/// The dashboard has this long to take the terminal.
const OPENING_TIME_MAX: Duration = Duration::from_secs(5);

/// What is charted, beside the terms of the loss. A small terminal has no room for all numbers: these come first.
const LOSS: &str = "loss";
const MAP: &str = "mAP";
const RECALL: &str = "recall@1";
const RATE: &str = "learning rate";
const IMAGES: &str = "images/s";
const WAITED: &str = "waited";

/// Watches over a run in `folder`: with the dashboard where there is a terminal for it, in plain lines elsewhere.
pub fn watch<'a>(plan: Plan, folder: &Path, stop: &'a AtomicBool) -> Box<dyn Watcher + 'a> {
    if plan.done >= plan.steps || !has_terminal() {
        return plain(plan);
    }
    match Dashboard::open(plan.clone(), folder, stop) {
        Ok(dashboard) => Box::new(dashboard),
        Err(error) => {
            tracing::warn!("no dashboard, plain lines instead: {error}");
            plain(plan)
        }
    }
}

/// Whether somebody can see a dashboard, and wants remarks at all. A job in the background would be stopped by its terminal.
fn has_terminal() -> bool {
    let capable = std::env::var_os("TERM").is_some_and(|name| name != "dumb");
    let foreground = || tcgetpgrp(stdout()).is_ok_and(|group| group == getpgrp());
    stdout().is_terminal()
        && stderr().is_terminal()
        && capable
        && foreground()
        && tracing::enabled!(tracing::Level::INFO)
}

/// Gives the terminal back, where a dashboard has it: for a process that is about to end without further ado.
pub fn restore_terminal() {
    if is_raw_mode_enabled().unwrap_or(false) {
        // Nobody is left to hear of a failure.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), DisableMouseCapture, LeaveAlternateScreen, Show);
    }
}

/// Its fields are dropped in this order: the terminal is given back first, and then remarks may go there again.
struct Dashboard<'a> {
    renderer: TuiMetricsRendererWrapper,
    _log: Diverted,
    interrupter: Interrupter,
    stop: &'a AtomicBool,
    plan: Plan,
}

impl<'a> Dashboard<'a> {
    fn open(plan: Plan, folder: &Path, stop: &'a AtomicBool) -> Result<Self> {
        let log = Diverted::to(&folder.join("train.log")).map_err(Error::other)?;
        let interrupter = Interrupter::new();
        let epochs_done = (plan.done / plan.steps_per_epoch) as usize;
        let renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), Some(epochs_done));
        let mut dashboard = Self { renderer, _log: log, interrupter, stop, plan };
        keep_interrupts()?;
        dashboard.announce();
        for line in read_metrics(folder) {
            dashboard.show_training(&line.training);
            dashboard.show_validation(&line);
        }
        let Plan { done, steps_per_epoch, .. } = dashboard.plan;
        dashboard.show_progress("train", done / steps_per_epoch + 1, done);
        Ok(dashboard)
    }

    /// Says what there will be, in the order in which it is to appear.
    fn announce(&mut self) {
        for name in [LOSS, MAP, RECALL, RATE, IMAGES, WAITED].into_iter().chain(self.plan.terms.clone()) {
            self.renderer.register_metric(MetricDefinition {
                metric_id: id(name),
                name: Arc::new(name.to_owned()),
                description: None,
                attributes: NumericAttributes {
                    unit: None,
                    higher_is_better: matches!(name, MAP | RECALL | IMAGES),
                }
                .into(),
            });
            let nothing = MetricState::Generic(entry(name, "-".to_owned()));
            if matches!(name, MAP | RECALL) {
                self.renderer.update_valid(nothing);
            } else {
                self.renderer.update_train(nothing);
            }
        }
    }

    fn show_training(&mut self, training: &Stretch) {
        let mut show = |name, value, text| self.renderer.update_train(number(name, value, text));
        let Stretch { loss, learning_rate, images_per_second, waited, .. } = *training;
        show(LOSS, loss, format!("{loss:.4} ({})", training.describe_terms()));
        show(RATE, learning_rate, format!("{learning_rate:.2e}"));
        show(IMAGES, images_per_second, format!("{images_per_second:.1}"));
        show(WAITED, 100.0 * waited, format!("{:.0} % of the time", 100.0 * waited));
        for (name, mean) in &training.losses {
            show(name, *mean, format!("{mean:.4}"));
        }
    }

    fn show_validation(&mut self, line: &Epoch) {
        let Scores { map, recall_at_1, .. } = line.validation;
        let text = format!("{map:.4}, best {:.4}", line.best_map);
        self.renderer.update_valid(number(MAP, map, text));
        self.renderer.update_valid(number(RECALL, recall_at_1, format!("{recall_at_1:.4}")));
    }

    /// `split` is Burn's word for what goes on: train or valid.
    fn show_progress(&mut self, split: &str, epoch: u64, step: u64) {
        let Plan { steps, steps_per_epoch, .. } = self.plan;
        let label = format!("step {step} of {steps}");
        self.renderer.start(steps.div_ceil(steps_per_epoch) as usize, epoch as usize, None, Some(&label));
        self.renderer.start_split(split, steps_per_epoch as usize);
        self.renderer.update_split((step - (epoch - 1) * steps_per_epoch) as usize);
    }
}

impl Drop for Dashboard<'_> {
    fn drop(&mut self) {
        // Burn's panic hook has given the terminal back, but for the cursor.
        if std::thread::panicking() {
            let _ = execute!(stdout(), Show);
        }
    }
}

impl Watcher for Dashboard<'_> {
    fn step(&mut self, training: &Stretch) {
        self.show_training(training);
        self.show_progress("train", training.epoch, training.step);
        if self.interrupter.should_stop() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn validation(&mut self, training: &Stretch) {
        self.show_progress("valid", training.epoch, training.step);
    }

    fn epoch(&mut self, line: &Epoch) {
        tracing::info!("{}", line.describe(self.plan.steps));
        self.show_validation(line);
    }

    fn end(&mut self) {}
}

fn id(name: &str) -> MetricId {
    MetricId::new(Arc::new(name.to_owned()))
}

fn entry(name: &str, text: String) -> MetricEntry {
    MetricEntry::new(id(name), SerializedEntry::new(text, String::new()))
}

fn number(name: &str, value: f64, text: String) -> MetricState {
    MetricState::Numeric(entry(name, text), Some(NumericEntry::Value(value)))
}

/// Waits until the dashboard has put the terminal into raw mode, and makes Ctrl-C a signal again. Ctrl-Z and Ctrl-\ stay keys:
/// they would leave the shell with a terminal in raw mode.
fn keep_interrupts() -> Result<()> {
    let start = Instant::now();
    while !is_raw_mode_enabled()? {
        if start.elapsed() > OPENING_TIME_MAX {
            return Err(Error::other("the terminal has no raw mode"));
        }
        sleep(Duration::from_millis(1));
    }
    let mut settings = tcgetattr(stdout())?;
    settings.local_modes.insert(LocalModes::ISIG);
    for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
        settings.special_codes[key] = 0;
    }
    Ok(tcsetattr(stdout(), OptionalActions::Now, &settings)?)
}
