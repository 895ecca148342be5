//! A headless Chromium that is driven by a script in Python (`tests/python/console.py`), one scenario at a time.
//!
//! `make test` brings both (`tools/browser/fetch.sh`); without them (a bare `cargo test`) the tests that need them say that they
//! are left out, and under continuous integration that is a failure. A scenario and its test speak in lines: the script says when
//! it has come to a point, and waits there for the test.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::server::end_of;
use crate::workspace;

/// Between two lines of a script; a browser on a loaded machine is slow.
const LINE_TIMEOUT: Duration = Duration::from_mins(3);

/// Where the browser and its driver are.
#[derive(Debug, Clone)]
pub struct Browser {
    folder: PathBuf,
}

impl Browser {
    /// Finds the browser. `None`, with a line on standard error, where `test` has to be left out.
    ///
    /// # Panics
    /// Where it is missing under continuous integration (`CI=true`).
    pub fn find(test: &str) -> Option<Self> {
        let files = ["packages/playwright", "chromium"];
        workspace::fetched(test, "browser", &files, "browser").map(|folder| Self { folder })
    }

    /// Starts a scenario of `tests/python/console.py` against the console at `address`. Its own messages go to `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn play(
        &self,
        scenario: &str,
        address: &str,
        arguments: &[&str],
        log: PathBuf,
    ) -> anyhow::Result<Scenario> {
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(workspace::root().join("tests/python/console.py")).arg(self.folder.join("chromium"));
        command.arg(workspace::screenshots()?).arg(scenario).arg(format!("http://{address}")).args(arguments);
        command.env("PYTHONPATH", self.folder.join("packages")).env("PYTHONDONTWRITEBYTECODE", "1");
        let stderr = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdin = process.stdin.take().context("its input is piped")?;
        let stdout = process.stdout.take().context("its output is piped")?;
        let (send, lines) = channel();
        // On a thread, since reading a pipe has no time-out. It ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Scenario { process, stdin: Some(stdin), lines, log })
    }
}

/// A scenario that is being played. Dropping it ends the browser.
#[derive(Debug)]
pub struct Scenario {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Scenario {
    /// Waits until the script says this line.
    ///
    /// # Errors
    /// Where it says another, ends, or takes too long.
    pub fn reaches(&self, point: &str) -> anyhow::Result<()> {
        match self.lines.recv_timeout(LINE_TIMEOUT) {
            Ok(line) if line == point => Ok(()),
            Ok(line) => bail!("the script said `{line}` instead of `{point}`{}", end_of(&self.log)),
            Err(_) => bail!("the script did not say `{point}`{}", end_of(&self.log)),
        }
    }

    /// Lets the script go on from the point that it has reached.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn goes_on(&mut self) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("its input is open until the end")?;
        stdin.write_all(b"\n").with_context(|| format!("the script has ended{}", end_of(&self.log)))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// With the end of its log where the script fails, or takes too long.
    pub fn ends_well(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let started = Instant::now();
        while started.elapsed() < LINE_TIMEOUT {
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "the scenario failed ({status}){}", end_of(&self.log));
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the scenario did not end{}", end_of(&self.log))
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
