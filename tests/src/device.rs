//! `glimpse-edge run` as a process, whose lines are read with a time limit.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;

use crate::queries::Answer;

const WAIT: Duration = Duration::from_secs(30);

/// A device that runs, until it is dropped; then it is killed.
pub struct Device {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Device {
    /// Starts it; what it logs is added to the file `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(process.stdout.take().context("the device's output is piped")?);
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Ok(Self { process, lines })
    }

    /// The most memory that it has had so far, in bytes, as Linux tells.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn peak_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(peak.context("no VmHWM in its status")?.trim().parse::<u64>()? << 10)
    }

    /// Its next answer.
    ///
    /// # Errors
    /// Where none comes in time, or it is none.
    pub fn answer(&self) -> anyhow::Result<Answer> {
        self.answer_within(WAIT)
    }

    /// Its next answer, waited for so long.
    ///
    /// # Errors
    /// Where none comes in time, or it is none.
    pub fn answer_within(&self, time: Duration) -> anyhow::Result<Answer> {
        let line = self.lines.recv_timeout(time).context("no answer in time")?;
        serde_json::from_str(&line).with_context(|| format!("not an answer: {line}"))
    }

    /// Kills it, and returns the answers that it had still given.
    ///
    /// # Errors
    /// Where one is none.
    pub fn kill(mut self) -> anyhow::Result<Vec<Answer>> {
        self.process.kill()?;
        self.process.wait()?;
        let mut answers = Vec::new();
        // Its output ends with it.
        while let Ok(line) = self.lines.recv_timeout(WAIT) {
            answers.push(serde_json::from_str(&line).with_context(|| format!("not an answer: {line}"))?);
        }
        Ok(answers)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
