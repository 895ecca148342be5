//! Parts that are not ours, in Python: an MQTT client (paho) and an ONNX engine (onnxruntime).
//!
//! `make test` installs them into the folder that `GLIMPSE_PYTHON_PACKAGES` names. Without it (a bare `cargo test`)
//! the tests that need them say that they are left out; under continuous integration that is a failure.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::workspace;

/// What one script may take; each takes seconds.
const TIME_MAX: Duration = Duration::from_mins(2);

/// Python with the foreign packages.
#[derive(Debug)]
pub struct Python {
    packages: PathBuf,
}

impl Python {
    /// Finds the packages. `None`, with a line on standard error, where `test` has to be left out.
    ///
    /// # Panics
    /// Where they are missing under continuous integration (`CI=true`).
    pub fn find(test: &str) -> Option<Self> {
        let packages =
            std::env::var_os("GLIMPSE_PYTHON_PACKAGES").map(PathBuf::from).filter(|path| path.is_dir());
        if packages.is_none() {
            workspace::leave_out(test, "no Python packages: run `make test`, which installs them");
        }
        packages.map(|packages| Self { packages })
    }

    /// The shared library in the package onnxruntime.
    ///
    /// # Errors
    /// Where there is none.
    pub fn onnxruntime(&self) -> anyhow::Result<PathBuf> {
        let folder = self.packages.join("onnxruntime/capi");
        let files =
            std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut files = files.filter_map(|entry| Some(entry.ok()?.path()));
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
        };
        files.find(is_it).with_context(|| format!("no libonnxruntime.so in {}", folder.display()))
    }

    /// Runs `tests/python/SCRIPT` and returns what it writes.
    ///
    /// # Errors
    /// With its standard error where it fails, and where it takes too long.
    pub fn run(&self, script: &str, arguments: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(workspace::root().join("tests/python").join(script)).args(arguments);
        command.env("PYTHONPATH", &self.packages).env("PYTHONDONTWRITEBYTECODE", "1");
        // Files, not pipes: nobody waits for anybody to read.
        let place = tempfile::tempdir()?;
        let [stdin, stdout, stderr] = ["in", "out", "err"].map(|name| place.path().join(name));
        std::fs::File::create(&stdin)?.write_all(input)?;
        command.stdin(std::fs::File::open(&stdin)?).stdout(std::fs::File::create(&stdout)?);
        command.stderr(Stdio::from(std::fs::File::create(&stderr)?));
        let mut process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.try_wait()? {
                break status;
            }
            if started.elapsed() > TIME_MAX {
                // It may just have ended, which is as well.
                let _ = process.kill();
                let _ = process.wait();
                bail!("{script} took more than {TIME_MAX:?}: {}", std::fs::read_to_string(&stderr)?);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        ensure!(status.success(), "{script} ended with {status}: {}", std::fs::read_to_string(&stderr)?);
        Ok(std::fs::read(&stdout)?)
    }
}
