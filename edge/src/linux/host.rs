//! What comes from the system: the device's name, randomness, monotonic time, and the wish to stop.

use std::io;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use glimpse_protocol::device::Cores;
use glimpse_protocol::{DeviceId, QueryId};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;

use crate::backoff::Jitter;
use crate::ports::Clock;

/// The system has no randomness to give.
#[derive(Debug, Error)]
#[error("the system gives no random numbers: {0}")]
pub struct NoRandomness(String);

fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| NoRandomness(error.to_string()))?;
    Ok(bytes)
}

/// A new query's id. Ids of one device must be hard to guess, or another could claim its replies.
///
/// # Errors
/// [`NoRandomness`].
pub fn query_id() -> Result<QueryId, NoRandomness> {
    random().map(QueryId::from_bytes)
}

/// How often, and how far apart, a program that is being replaced is tried again: it is busy for a moment.
const BUSY: (u32, Duration) = (50, Duration::from_millis(10));

/// Starts a program.
///
/// # Errors
/// It cannot be started.
pub fn start(command: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY.0 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(BUSY.1),
            other => return other,
        }
    }
    command.spawn()
}

/// Jitter that differs from any other device's.
///
/// # Errors
/// [`NoRandomness`].
pub fn jitter() -> Result<Jitter, NoRandomness> {
    random().map(u64::from_le_bytes).map(Jitter::new)
}

/// The host's name as far as it can be a device's, or `edge-` and a random number.
///
/// # Errors
/// [`NoRandomness`], where the host has no name.
pub fn device_name() -> Result<DeviceId, NoRandomness> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    if let Some(name) = sanitised(&host) {
        return Ok(name);
    }
    let number = random().map(u32::from_le_bytes)?;
    Ok(DeviceId::new(&format!("edge-{number:08x}")).expect("letters, digits and a hyphen are allowed"))
}

/// The text with everything that a device's name may not have replaced by `-`; `None` where nothing is left.
fn sanitised(host: &str) -> Option<DeviceId> {
    let host = host.trim();
    // What a system says that nobody has named.
    if host == "localhost" || host == "(none)" {
        return None;
    }
    let name: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .take(64)
        .collect();
    DeviceId::new(name.trim_matches('-')).ok()
}

/// The program cannot run on these processors.
#[derive(Debug, Error)]
pub enum CoresError {
    /// One of them is not there, or not this program's.
    #[error(
        "cannot run on the processors {cores}: this program may use {available}; write cores = \"..\" of them, or leave it out"
    )]
    NoSuch {
        /// What was asked for.
        cores: Cores,
        /// Those that there are.
        available: String,
    },
    /// The system refuses.
    #[error("cannot choose the processors to run on")]
    System(#[source] std::io::Error),
}

/// Those of `cores` as the system has them, where this program may run on all of them.
///
/// # Errors
/// [`CoresError`].
pub fn may_run_on(cores: &Cores) -> Result<CpuSet, CoresError> {
    let mine = sched_getaffinity(None).map_err(|error| CoresError::System(error.into()))?;
    let mut set = CpuSet::new();
    for core in cores.numbers().iter().map(|core| usize::from(*core)) {
        if core >= CpuSet::MAX_CPU || !mine.is_set(core) {
            let numbers: Vec<String> =
                (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core)).map(|core| core.to_string()).collect();
            let available: Option<Cores> = numbers.join(",").parse().ok();
            let available = available.map_or_else(|| "others".to_owned(), |cores| cores.to_string());
            return Err(CoresError::NoSuch { cores: cores.clone(), available });
        }
        set.set(core);
    }
    Ok(set)
}

/// Lets this thread, and those that it starts from now on, run on these processors alone.
///
/// # Errors
/// [`CoresError`].
pub fn run_on(cores: &Cores) -> Result<(), CoresError> {
    sched_setaffinity(None, &may_run_on(cores)?).map_err(|error| CoresError::System(error.into()))
}

/// Whether what is sent to `host` does not leave this machine.
pub fn is_this_machine(host: &str) -> bool {
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Time since the program began.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that shows zero now.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Whether Ctrl-C or SIGTERM asked the program to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for the signals from now on; `wake` is called when the first one comes. A second one ends the program
    /// at once, with the status that shells give to a program that was interrupted.
    ///
    /// # Errors
    /// The thread or the handlers cannot be had.
    pub fn on_signals(wake: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let stop = Self::default();
        let asked = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate) = {
            use tokio::signal::unix::{SignalKind, signal};
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if asked.0.swap(true, Ordering::Relaxed) {
                        std::process::exit(130);
                    }
                    wake();
                }
            });
        })?;
        Ok(stop)
    }

    /// Whether to stop.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_device_names() {
        for (host, expected) in [
            ("door-1\n", Some("door-1")),
            ("my laptop.local", Some("my-laptop.local")),
            ("caf\u{e9}", Some("caf")),
            ("a/b+c#", Some("a-b-c")),
            ("", None),
            ("///", None),
            ("localhost\n", None),
            ("(none)", None),
        ] {
            assert_eq!(sanitised(host).as_ref().map(DeviceId::as_str), expected, "{host}");
        }
        assert_eq!(sanitised(&"x".repeat(300)).unwrap().as_str().len(), 64);
    }

    #[test]
    fn every_query_has_its_own_id() {
        assert_ne!(query_id().unwrap(), query_id().unwrap());
    }
}
