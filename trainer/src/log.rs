//! Where remarks go: standard error, or a file while a dashboard has the terminal.
//!
//! What decides is one for the process, as the subscriber of `tracing` is that it serves.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write, sink, stderr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::files::FileError;

static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Installs the subscriber. `quiet` leaves warnings and errors, whatever `GLIMPSE_LOG` asks for.
pub fn install(quiet: bool) {
    let asked = if quiet { None } else { EnvFilter::try_from_env("GLIMPSE_LOG").ok() };
    let filter = asked.unwrap_or_else(|| EnvFilter::new(if quiet { "warn" } else { "info,tract=warn" }));
    // Each layer is silent while the other one speaks; colours are for terminals only.
    let terminal = fmt::layer().with_target(false).with_ansi(stderr().is_terminal()).with_writer(to_terminal);
    let file = fmt::layer().with_target(false).with_ansi(false).with_writer(to_file);
    registry().with(filter).with(terminal).with(file).init();
}

/// While this lives, remarks go to a file; then the next remark says which.
#[derive(Debug)]
pub struct Diverted(PathBuf);

impl Diverted {
    /// Appends to `path` from now on.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be opened.
    pub fn to(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        *current() = Some(file.map_err(|source| FileError::write(path, source))?);
        Ok(Self(path.into()))
    }
}

impl Drop for Diverted {
    fn drop(&mut self) {
        *current() = None;
        tracing::info!("what was said behind the dashboard is in {}", self.0.display());
    }
}

fn current() -> MutexGuard<'static, Option<File>> {
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_terminal() -> Box<dyn Write> {
    if current().is_none() { Box::new(stderr()) } else { Box::new(sink()) }
}

fn to_file() -> Box<dyn Write> {
    match current().as_ref().map(File::try_clone) {
        Some(Ok(file)) => Box::new(file),
        _ => Box::new(sink()),
    }
}
