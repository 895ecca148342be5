//! The programs under test.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail, ensure};

use crate::workspace;

/// The programs, as cargo built them in the same profile as the running test or demo.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Finds the programs in the folder of the running one, and builds them where one is missing.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find out where this program is")?;
        let mut dir = own.parent().context("this program is in no folder")?;
        if dir.ends_with("deps") {
            dir = dir.parent().context("cargo's folder `deps` is in a profile's folder")?;
        }
        let programs = Self { dir: dir.to_owned() };
        if ["glimpse-edge", "glimpse-gallery"].iter().any(|name| !programs.path(name).is_file()) {
            build(dir)?;
        }
        Ok(programs)
    }

    /// `glimpse-edge`, to be run in the repository's root.
    pub fn edge(&self) -> Command {
        self.command("glimpse-edge")
    }

    /// `glimpse-gallery`, to be run in the repository's root.
    pub fn gallery(&self) -> Command {
        self.command("glimpse-gallery")
    }

    /// `glimpse-trainer`, to be run in the repository's root. Only `make test` builds it, not the demo.
    pub fn trainer(&self) -> Command {
        self.command("glimpse-trainer")
    }

    /// `glimpse-firmware`, the same. Only `make test` and `make demo-device` build it.
    pub fn firmware(&self) -> Command {
        let mut command = self.command("glimpse-firmware");
        // What it fetches is the machine's, as is what the Makefile's scripts do.
        match std::env::var_os("XDG_CACHE_HOME") {
            Some(cache) => command.env("XDG_CACHE_HOME", cache),
            None => command.env_remove("XDG_CACHE_HOME"),
        };
        command
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path(name));
        command.current_dir(workspace::root());
        // What it keeps for the next time is not that of whoever runs us.
        command.env_remove("CACHE_DIRECTORY").env("XDG_CACHE_HOME", self.dir.join("test-cache"));
        // Settings of whoever runs us are not the test's.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("GLIMPSE_")) {
            command.env_remove(key);
        }
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }
}

/// Builds both programs into `dir`, the folder of a cargo profile.
fn build(dir: &Path) -> anyhow::Result<()> {
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} is no folder of a cargo profile", dir.display()),
    };
    let target = dir.parent().context("a profile's folder is in the target folder")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root()).args(["build", "--profile", profile, "--target-dir"]).arg(target);
    cargo.args(["-p", "glimpse-edge", "-p", "glimpse-gallery"]);
    eprintln!("building glimpse-edge and glimpse-gallery");
    let status = cargo.status().with_context(|| format!("cannot run {cargo:?}"))?;
    ensure!(status.success(), "{cargo:?} failed");
    Ok(())
}

/// What a command wrote that succeeded.
///
/// # Panics
/// Where it failed, with what it said.
pub fn said(output: io::Result<Output>) -> String {
    let output = output.expect("the program can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The message of a command that failed.
///
/// # Panics
/// Where it did not, or by a bug of ours.
pub fn complaint(output: io::Result<Output>) -> String {
    let output = output.expect("the program can be started");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: ") && !message.contains("panicked"), "{message}");
    message
}
