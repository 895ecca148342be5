//! Progress on stderr: a bar with rate and remaining time on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts done items; shared between threads by reference.
pub struct Progress {
    what: &'static str,
    bar: ProgressBar,
    plain: Option<Mutex<Instant>>,
}

impl Progress {
    /// Starts at zero of `total`.
    pub fn new(what: &'static str, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(total as u64) } else { ProgressBar::hidden() };
        bar.set_length(total as u64);
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}  {per_sec}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        Self { what, bar, plain: (!terminal).then(|| Mutex::new(Instant::now())) }
    }

    /// Counts one item.
    pub fn done_one(&self) {
        self.bar.inc(1);
        self.tell();
    }

    /// Counts up to `done` items.
    pub fn at(&self, done: usize) {
        self.bar.set_position(done as u64);
        self.tell();
    }

    /// A plain line, where it is time for one.
    fn tell(&self) {
        // Another thread is writing a line: this one need not.
        let Some(Ok(mut last)) = self.plain.as_ref().map(Mutex::try_lock) else { return };
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let rate = done as f64 / self.bar.elapsed().as_secs_f64();
            let left_s = (total.saturating_sub(done) as f64 / rate.max(1e-9)) as u64;
            tracing::info!(
                done,
                total,
                rate = format_args!("{rate:.1}/s"),
                left = format_args!("{left_s} s"),
                "{}",
                self.what
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
