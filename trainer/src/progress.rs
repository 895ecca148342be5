//! Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Seconds between two lines.
const LINE_EVERY_S: u64 = 10;

/// One long piece of work. Threads share it by reference.
pub struct Progress {
    name: String,
    total: u64,
    done: AtomicU64,
    start: Instant,
    /// Seconds after the start at which the next line is due.
    next_line_s: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts with nothing done.
    pub fn new(name: &str, total: u64) -> Self {
        // Whoever wants no remarks wants no bar.
        let wanted = stderr().is_terminal() && tracing::enabled!(tracing::Level::INFO);
        let bar = wanted.then(|| {
            let style = ProgressStyle::with_template("{msg:>24} {wide_bar} {pos}/{len} {per_sec} {eta}");
            let bar = ProgressBar::new(total).with_message(name.to_owned());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let next_line_s = AtomicU64::new(LINE_EVERY_S);
        Self {
            name: name.to_owned(),
            total,
            done: AtomicU64::new(0),
            start: Instant::now(),
            next_line_s,
            bar,
        }
    }

    /// One more is done.
    pub fn step(&self) {
        self.show(self.done.fetch_add(1, Ordering::Relaxed) + 1);
    }

    /// So many are done in all.
    pub fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    /// Says something without breaking the bar.
    pub fn say(&self, line: &str) {
        if let Some(bar) = &self.bar { bar.println(line) } else { tracing::info!("{line}") }
    }

    /// Ends the bar, and says how long it took.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        tracing::info!("{}: {} in {:.1} s", self.name, self.total, self.start.elapsed().as_secs_f64());
    }

    fn show(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let (elapsed_s, due_s) = (self.start.elapsed().as_secs(), self.next_line_s.load(Ordering::Relaxed));
        let next_s = elapsed_s + LINE_EVERY_S;
        // Of several threads only the one that moves the due time writes.
        let due = elapsed_s >= due_s
            && self.next_line_s.compare_exchange(due_s, next_s, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if due {
            tracing::info!("{}: {done} of {} after {elapsed_s} s", self.name, self.total);
        }
    }
}
