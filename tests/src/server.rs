//! A running `glimpse-gallery serve`.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::programs::Programs;

/// A gallery may be large and the machine slow; a server that hangs is found all the same.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// It has nothing to save, and queries that wait are answered first.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A gallery server with its embedded broker on a free port. Dropping it kills the process.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// What the server said when it was ready: `key=value` words.
    ready: String,
    log: PathBuf,
}

impl Server {
    /// Starts a server of `gallery` on a free port and waits until it answers queries. It logs to `log`.
    ///
    /// # Errors
    /// With the end of the log where it does not come up.
    pub fn start(programs: &Programs, gallery: &Path, bundle: &Path, log: &Path) -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1:0", programs, gallery, bundle, log)
    }

    /// The same, with its broker on this address.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_at(
        address: &str,
        programs: &Programs,
        gallery: &Path,
        bundle: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = programs.gallery();
        command.arg("serve").arg("--gallery").arg(gallery).arg("--bundle").arg(bundle);
        command.args(["--listen", address, "--http", "127.0.0.1:0"]);
        Self::spawn(command, log)
    }

    /// The same, with its console on this address.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with_http(
        http: &str,
        programs: &Programs,
        gallery: &Path,
        bundle: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = programs.gallery();
        command.arg("serve").arg("--gallery").arg(gallery).arg("--bundle").arg(bundle);
        command.args(["--listen", "127.0.0.1:0", "--http", http]);
        Self::spawn(command, log)
    }

    fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let stderr = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdout = process.stdout.take().context("the server's output is piped")?;
        let (send, receive) = mpsc::channel();
        // On a thread, since reading a pipe has no time-out. It ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut server = Self { process, ready: String::new(), log: log.to_owned() };
        match receive.recv_timeout(START_TIMEOUT) {
            Ok(line) if line.starts_with("ready ") => server.ready = line,
            Ok(line) => bail!("the server said `{line}` instead of `ready ..`{}", server.log_end()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the server was not ready within {START_TIMEOUT:?}{}", server.log_end())
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the server ended{}", server.log_end()),
        }
        Ok(server)
    }

    /// `HOST:PORT` of its broker.
    ///
    /// # Errors
    /// When the ready line does not tell.
    pub fn address(&self) -> anyhow::Result<&str> {
        self.word("mqtt")
    }

    /// A word of the ready line.
    ///
    /// # Errors
    /// When it is not there.
    pub fn word(&self, key: &str) -> anyhow::Result<&str> {
        let mut words = self.ready.split_whitespace().filter_map(|word| word.split_once('='));
        let found = words.find(|(name, _)| *name == key).map(|(_, value)| value);
        found.with_context(|| format!("the server's line `{}` has no `{key}=`", self.ready))
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Asks the process to stop, as a service manager does, and waits for its exit status.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let status =
            Command::new("kill").arg(self.process.id().to_string()).status().context("cannot run kill")?;
        ensure!(status.success(), "kill ended with {status}");
        let started = Instant::now();
        while started.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the server did not stop within {STOP_TIMEOUT:?}{}", self.log_end())
    }

    /// The last lines of the log, for an error message.
    pub fn log_end(&self) -> String {
        end_of(&self.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The last lines of a log, for an error message.
pub(crate) fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(20)..].join("\n  ");
    if end.is_empty() { "; its log is empty".to_owned() } else { format!("; its log ends with\n  {end}") }
}
