//! A small gallery of the demo's photos, as the tests use it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};

use crate::demo::ground_truth::{GroundTruth, Query};
use crate::programs::Programs;
use crate::server::Server;
use crate::workspace;

/// Photos of a small gallery: the large network takes a tenth of a second for each.
pub const PHOTOS: usize = 12;

/// A folder with a gallery of a few demo photos, and the queries that they answer.
#[derive(Debug)]
pub struct Fixture {
    /// The programs.
    pub programs: Programs,
    /// Demo queries whose answers are in the gallery.
    pub queries: Vec<Query>,
    place: tempfile::TempDir,
}

impl Fixture {
    /// Makes the table of [`PHOTOS`] photos; nothing is ingested yet.
    ///
    /// # Errors
    /// Where files cannot be read or written.
    pub fn new() -> anyhow::Result<Self> {
        Self::of(PHOTOS)
    }

    /// The same, of so many photos.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn of(photos: usize) -> anyhow::Result<Self> {
        let place = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut queries = GroundTruth::read(&workspace::demo())?.queries;
        queries.sort_by(|a, b| a.answer.cmp(&b.answer));
        queries.dedup_by(|a, b| a.answer == b.answer);
        // Evenly over all objects: neighbours in the alphabet look alike.
        let every = (queries.len() / photos).max(1);
        let queries: Vec<Query> = queries.into_iter().step_by(every).take(photos).collect();
        ensure!(queries.len() == photos, "the demo has only {} objects", queries.len());
        let mut table = csv::Writer::from_path(place.path().join("photos.csv"))?;
        table.write_record(["path", "label"])?;
        for query in &queries {
            table.write_record([&query.answer, &query.label])?;
        }
        table.flush()?;
        Ok(Self { programs: Programs::find()?, queries, place })
    }

    /// The same, ingested.
    ///
    /// # Errors
    /// Where the ingest fails.
    pub fn ingested() -> anyhow::Result<Self> {
        Self::ingested_of(PHOTOS)
    }

    /// The same, of so many photos.
    ///
    /// # Errors
    /// Where the ingest fails.
    pub fn ingested_of(photos: usize) -> anyhow::Result<Self> {
        let fixture = Self::of(photos)?;
        let output = fixture.ingest().output().context("cannot start the ingest")?;
        ensure!(output.status.success(), "the ingest failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(fixture)
    }

    /// The command that ingests the photos.
    pub fn ingest(&self) -> Command {
        let mut command = self.programs.gallery();
        command.arg("ingest").arg(self.place.path().join("photos.csv"));
        command.arg("--root").arg(workspace::demo().join("photos"));
        command.arg("--gallery").arg(self.gallery()).arg("--bundle").arg(workspace::bundle());
        command.stdin(Stdio::null());
        command
    }

    /// Starts a server of the gallery.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn serve(&self) -> anyhow::Result<Server> {
        Server::start(&self.programs, &self.gallery(), &workspace::bundle(), &self.path("server.log"))
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn serve_with(&self, flags: &[&str]) -> anyhow::Result<Server> {
        let log = self.path("server.log");
        Server::start_with(flags, &self.programs, &self.gallery(), &workspace::bundle(), &log)
    }

    /// The same, with its console on this address.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn serve_at(&self, http: &str) -> anyhow::Result<Server> {
        self.serve_with(&["--listen", "127.0.0.1:0", "--http", http])
    }

    /// Runs `glimpse-gallery devices` with these words, and `input` at its standard input; returns what it prints.
    ///
    /// # Errors
    /// With what it says where it fails.
    pub fn devices(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        use std::io::Write as _;
        let mut command = self.programs.gallery();
        command.arg("devices").args(words).arg("--gallery").arg(self.gallery());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().context("cannot start glimpse-gallery")?;
        // A command that wants no password may have ended already.
        let _ = process.stdin.take().context("its input is piped")?.write_all(input.as_bytes());
        let output = process.wait_with_output()?;
        ensure!(output.status.success(), "devices failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `glimpse-gallery` with these words on the gallery.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, words: &[&str]) -> std::io::Result<Output> {
        self.programs.gallery().args(words).arg("--gallery").arg(self.gallery()).output()
    }

    /// The query network of the bundle in a file that is another: it has a comment.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn another_network(&self) -> std::io::Result<PathBuf> {
        let mut bytes = std::fs::read(workspace::bundle().join("query.onnx"))?;
        // Field 6 of ONNX's ModelProto: doc_string.
        bytes.extend_from_slice(b"\x32\x07another");
        let path = self.path("another.onnx");
        std::fs::write(&path, bytes)?;
        Ok(path)
    }

    /// The gallery's folder.
    pub fn gallery(&self) -> PathBuf {
        self.path("gallery")
    }

    /// A file of the temporary folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The temporary folder; it goes with the fixture.
    pub fn folder(&self) -> &Path {
        self.place.path()
    }

    /// What the query network makes of a photo, by `glimpse-edge embed`.
    ///
    /// # Errors
    /// Where the program fails.
    pub fn embedding(&self, photo: &Path) -> anyhow::Result<Vec<f32>> {
        let mut command = self.programs.edge();
        command.args(["embed", "--json", "--bundle"]).arg(workspace::bundle()).arg(photo);
        let output = command.output().context("cannot start glimpse-edge")?;
        ensure!(output.status.success(), "embed failed: {}", String::from_utf8_lossy(&output.stderr));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(serde_json::from_value(line["embedding"].clone())?)
    }
}
