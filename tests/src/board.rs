//! A board that starts from an image, as `glimpse-firmware boot` emulates it: what it says, its button, and its plug.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// A board that runs. What it writes stays on its card; dropping it pulls the plug.
#[derive(Debug)]
pub struct Board {
    process: Child,
    lines: Receiver<String>,
    log: std::fs::File,
    /// When it was switched on.
    pub begun: Instant,
}

impl Board {
    /// Switches it on; `boot` is `glimpse-firmware boot` with its flags. What it says is added to the file `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(mut boot: Command, log: &Path) -> anyhow::Result<Self> {
        let log =
            std::fs::File::options().create(true).append(true).open(log).context("cannot write the log")?;
        boot.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?);
        let begun = Instant::now();
        let mut process = boot.spawn().with_context(|| format!("cannot start {boot:?}"))?;
        let mut said = BufReader::new(process.stdout.take().context("its output is piped")?);
        let (send, lines) = channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            // A serial line has no end of its own: one without a break is cut.
            while said.by_ref().take(1 << 16).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if send.send(text).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, lines, log, begun })
    }

    /// Waits until a line has this in it.
    ///
    /// # Errors
    /// Where it does not come in time, or the board ends.
    pub fn waits_for(&mut self, text: &str, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("the board did not say `{text}` within {} s", within.as_secs());
            };
            writeln!(self.log, "{line}")?;
            if line.contains(text) {
                return Ok(());
            }
        }
    }

    /// Presses its button.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn press(&mut self) -> anyhow::Result<()> {
        let keys = self.process.stdin.as_mut().context("its input is open until the end")?;
        keys.write_all(b"\n").and_then(|()| keys.flush()).context("the board has ended")
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.process.stdin.take().map(|mut keys| keys.write_all(b"q\n"));
        let _ = self.process.wait();
    }
}
