//! Photos asked about, from a device (`glimpse-edge query --json`) or on the server (`glimpse-gallery search --json`):
//! both write one object a line.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::server::end_of;

/// A line: the answer for one photo.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    /// The photo, as it was named on the command line.
    pub photo: PathBuf,
    /// Nearest first.
    #[serde(default)]
    pub matches: Vec<Found>,
    /// Why there is no answer: an object from the device, a text from the server.
    pub error: Option<serde_json::Value>,
    /// Preprocessing and network.
    pub embed_ms: Option<f64>,
    /// From publishing the query to receiving the reply; only from a device.
    pub reply_ms: Option<f64>,
    /// How often it was sent; only from a device.
    pub attempts: Option<u32>,
    /// Bytes of the MQTT payload; only from a device.
    pub bytes: Option<usize>,
}

/// One match.
#[derive(Debug, Clone, Deserialize)]
pub struct Found {
    /// Id in the gallery.
    pub image: String,
    /// What it shows.
    pub label: String,
    /// Cosine; larger means nearer.
    pub similarity: f64,
}

/// Runs a command that writes answers, one for each of `photos`, in their order; `each` is told of every one as it comes.
/// The command's own log goes to `log`. Photos without an answer are the caller's to judge, whatever the exit status.
///
/// # Errors
/// With the end of the log where the command writes something else than one answer a photo.
pub fn ask(
    mut command: Command,
    photos: &[PathBuf],
    log: &Path,
    each: &mut dyn FnMut(&Answer),
) -> anyhow::Result<Vec<Answer>> {
    let stderr = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.args(photos).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let program = command.get_program().to_owned();
    let mut process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let stdout = process.stdout.take().context("its output is piped")?;
    let mut answers = Vec::with_capacity(photos.len());
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let answer: Answer = serde_json::from_str(&line)
            .with_context(|| format!("{} wrote `{line}`{}", program.display(), end_of(log)))?;
        each(&answer);
        answers.push(answer);
    }
    let status = process.wait()?;
    let in_order = answers.iter().map(|answer| &answer.photo).eq(photos);
    ensure!(
        in_order,
        "{} ended with {status} and {} answers for {} photos{}",
        program.display(),
        answers.len(),
        photos.len(),
        end_of(log)
    );
    Ok(answers)
}
