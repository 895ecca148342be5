//! What several test files need.
#![allow(dead_code, reason = "each test file uses its own part, and `expect` would be unfulfilled in some")]

pub(crate) mod place;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where the trainer's sources are: asked as the test runs, since another clone may have compiled it.
pub(crate) fn crate_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says it to tests").into()
}

/// The pretrained weights of a network, which are not in the repository. Where they are missing the test says that it is
/// left out; under continuous integration that is a failure.
pub(crate) fn weights_of(network: &str) -> Option<PathBuf> {
    let path = crate_folder().join("../data/weights").join(format!("{network}.pth"));
    if path.exists() {
        return Some(path);
    }
    left_out(&format!("{} is not there: run `make weights`", path.display()));
    None
}

/// Python with NumPy, for independent versions of what is tested. Where it is missing the test says that it is left out;
/// under continuous integration that is a failure.
pub(crate) fn python(test: &str) -> Option<Python> {
    let python = Python { packages: std::env::var_os("GLIMPSE_PYTHON_PACKAGES").map(PathBuf::from) };
    let numpy = python.command().args(["-c", "import numpy"]).output();
    if numpy.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    left_out(&format!("{test}: Python has no NumPy, `make test` brings it"));
    None
}

/// A test that cannot run here says so; under continuous integration that is a failure.
pub(crate) fn left_out(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{reason}");
    eprintln!("left out: {reason}");
}

/// See [`python`].
pub(crate) struct Python {
    packages: Option<PathBuf>,
}

impl Python {
    fn command(&self) -> Command {
        let mut command = Command::new("python3");
        if let Some(packages) = &self.packages {
            command.env("PYTHONPATH", packages);
        }
        command
    }

    /// Runs a script of `tests/python`, and returns what it writes to standard output.
    pub(crate) fn run(&self, script: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let path = crate_folder().join("tests/python").join(script);
        let mut command = self.command();
        command.arg(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python was there a moment ago");
        child.stdin.take().expect("it is piped").write_all(input).expect("the script reads its input");
        let output = child.wait_with_output().expect("the script ends");
        assert!(output.status.success(), "{script} failed");
        output.stdout
    }
}
