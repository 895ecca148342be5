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
        Self::start_with(&["--listen", address], programs, gallery, bundle, log)
    }

    /// The same with more flags, `--listen` among them or not. There is no console unless they say where: its usual port is for
    /// one server of a machine.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(
        flags: &[&str],
        programs: &Programs,
        gallery: &Path,
        bundle: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = programs.gallery();
        command.arg("serve").arg("--gallery").arg(gallery).arg("--bundle").arg(bundle).args(flags);
        if !flags.contains(&"--http") {
            command.args(["--http", "none"]);
        }
        Self::spawn(command, log)
    }

    /// Starts a server with the arguments of `command`, and waits until it answers queries.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
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

    /// The process.
    pub fn id(&self) -> u32 {
        self.process.id()
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
        self.signal("TERM")?;
        let started = Instant::now();
        while started.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the server did not stop within {STOP_TIMEOUT:?}{}", self.log_end())
    }

    /// Sends the process a signal, as `HUP`.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let mut kill = Command::new("kill");
        let status = kill.args(["-s", name]).arg(self.process.id().to_string()).status();
        ensure!(status.context("cannot run kill")?.success(), "kill -s {name} failed");
        Ok(())
    }

    /// Ports of 127.0.0.1 where the process listens, as Linux tells.
    ///
    /// # Errors
    /// When they cannot be found out.
    pub fn listening_ports(&self) -> anyhow::Result<Vec<u16>> {
        let mut sockets = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.process.id()))? {
            // A descriptor may have been closed since.
            let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let socket = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            sockets.extend(socket.map(str::to_owned));
        }
        let table = std::fs::read_to_string("/proc/net/tcp")?;
        let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        // Local address and port, state 10 (listening), and the socket's number.
        let own = rows
            .filter(|row| row.len() > 9 && row[3] == "0A" && sockets.iter().any(|socket| socket == row[9]));
        let ports = own.filter_map(|row| row[1].strip_prefix("0100007F:"));
        ports.map(|port| Ok(u16::from_str_radix(port, 16)?)).collect()
    }

    /// What the server logged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
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
