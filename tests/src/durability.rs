//! Kills and damage: what a gallery has acknowledged is there afterwards, and nothing half of it.
//!
//! Each round lets a command change the gallery (or a server run beside it) and kills it with SIGKILL at a random moment. A
//! command that ended had its change acknowledged; of one that was killed all is there or nothing. After each round the
//! gallery must be what one of these says, to the last bit of its features, and `verify` must find nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use glimpse_embedder::matrix::{MatrixFile, Rows as _};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::programs::Programs;
use crate::server::Server;

/// Components of a feature: the network has no part in this.
const D: usize = 16;

/// Ids that there can be.
const IDS: usize = 600;

/// What the gallery holds: which version of each image.
type Content = BTreeMap<String, u64>;

/// What was done and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Rounds.
    pub rounds: usize,
    /// Commands that were killed before they ended.
    pub killed: usize,
    /// Of these, those whose change had been committed.
    pub committed: usize,
    /// Servers that ran meanwhile and were killed.
    pub servers: usize,
    /// Of these, those under which the index was replaced.
    pub swapped: usize,
}

/// What was found in damaged copies of a gallery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Copies in which damage was found and named.
    pub found: usize,
    /// Copies in which no byte that counts was touched: they hold what the gallery holds.
    pub harmless: usize,
}

/// A gallery that is written to and killed.
pub struct Victim<'a> {
    programs: &'a Programs,
    place: PathBuf,
    random: ChaCha8Rng,
    content: Content,
    version: u64,
}

impl<'a> Victim<'a> {
    /// An empty gallery in the folder `place`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(programs: &'a Programs, place: &Path, seed: u64) -> anyhow::Result<Self> {
        write_bundle(&place.join("bundle"), D)?;
        let random = ChaCha8Rng::seed_from_u64(seed);
        let mut victim =
            Self { programs, place: place.to_owned(), random, content: Content::new(), version: 0 };
        let (mut first, after) = victim.import(300)?;
        let output = first.output()?;
        ensure!(
            output.status.success(),
            "the first import failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        victim.content = after;
        victim.check()?;
        Ok(victim)
    }

    /// Plays so many rounds; `each` is called after every one.
    ///
    /// # Errors
    /// What was lost, or half there.
    pub fn rounds(&mut self, rounds: usize, each: &mut dyn FnMut()) -> anyhow::Result<Report> {
        let mut report = Report::default();
        // How long each kind of command takes when nobody kills it.
        let mut usual = [Duration::from_millis(60); 5];
        for round in 0..rounds {
            let server = if round % 4 == 0 { Some(self.serve()?) } else { None };
            let index = self.index_time();
            let kind = self.random.random_range(0..usual.len());
            let (mut command, after) = match kind {
                0 => {
                    let count = self.random.random_range(1..300);
                    self.import(count)?
                }
                1 => self.remove()?,
                2 => (self.command("compact"), self.content.clone()),
                3 => (self.index(), self.content.clone()),
                _ => self.import(400)?,
            };
            let started = Instant::now();
            let mut child =
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            let until = usual[kind].mul_f64(self.random.random_range(0.0..1.3));
            let ended = wait(&mut child, until)?;
            report.rounds += 1;
            match ended {
                Some(true) => {
                    usual[kind] = (usual[kind] + started.elapsed()) / 2;
                    self.content = after;
                }
                Some(false) => bail!("round {round}: {command:?} failed without being killed"),
                None => {
                    report.killed += 1;
                    usual[kind] = usual[kind].mul_f64(1.03);
                    child.kill()?;
                    child.wait()?;
                    let there = self.listed().with_context(|| format!("round {round}, after {command:?}"))?;
                    if there == after && after != self.content {
                        report.committed += 1;
                        self.content = after;
                    }
                }
            }
            if let Some(mut server) = server {
                // At some moment after the command, in which it may be making an index, or taking one up.
                std::thread::sleep(Duration::from_millis(self.random.random_range(0..150)));
                ensure!(server.is_alive(), "round {round}: the server has ended{}", server.log_end());
                drop(server);
                report.servers += 1;
                report.swapped += usize::from(self.index_time() != index);
            }
            self.check().with_context(|| format!("round {round}, after {command:?}"))?;
            each();
        }
        Ok(report)
    }

    /// Damages copies of the gallery: a byte that is another, a page of zeros, an end that is missing; of the store or of the index.
    ///
    /// # Errors
    /// Damage that was not found, and changed what the gallery holds.
    pub fn damage(&mut self, copies: usize, each: &mut dyn FnMut()) -> anyhow::Result<Damage> {
        let mut damage = Damage::default();
        let output = self.index().output()?;
        ensure!(output.status.success(), "no index: {}", String::from_utf8_lossy(&output.stderr));
        // A store that fell back to the commit before would show it.
        let (mut last, after) = self.import(50)?;
        succeeded(last.output()?)?;
        self.content = after;
        let copy = self.place.join("damaged");
        for number in 0..copies {
            std::fs::create_dir_all(&copy)?;
            for name in ["gallery.redb", "index.glimpse"] {
                std::fs::copy(self.gallery().join(name), copy.join(name))?;
            }
            let file = copy.join(["gallery.redb", "index.glimpse"][number % 2]);
            let what = self.spoil(&file, number / 2 % 3)?;
            let context = || format!("{what} of {}", file.display());
            let output = self.of("verify", &copy).output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!said.contains("panicked at") || !output.status.success(), "{}: {said}", context());
            if output.status.success() {
                self.check_in(&copy).with_context(context)?;
                damage.harmless += 1;
            } else {
                ensure!(output.status.code() == Some(1) && said.contains("error: "), "{}: {said}", context());
                ensure!(
                    said.contains("damaged") && said.contains("damaged/"),
                    "{} is not named: {said}",
                    context()
                );
                damage.found += 1;
            }
            std::fs::remove_dir_all(&copy)?;
            each();
        }
        Ok(damage)
    }

    fn spoil(&mut self, file: &Path, kind: usize) -> anyhow::Result<String> {
        const PAGE: usize = 4096;
        let mut bytes = std::fs::read(file)?;
        let place = self.random.random_range(0..bytes.len());
        let what = match kind {
            0 => {
                bytes[place] ^= 1 << self.random.random_range(0..8);
                format!("another bit in byte {place}")
            }
            1 => {
                let page = place / PAGE * PAGE;
                let end = (page + PAGE).min(bytes.len());
                bytes[page..end].fill(0);
                format!("zeros from byte {page} on")
            }
            _ => {
                // The last pages that were written are those that a power cut tears.
                let kept = bytes.len().saturating_sub(PAGE * self.random.random_range(1..8));
                bytes.truncate(kept);
                format!("an end at byte {kept}")
            }
        };
        std::fs::write(file, bytes)?;
        Ok(what)
    }

    /// The gallery is what was acknowledged, and nothing in it is damaged.
    fn check(&self) -> anyhow::Result<()> {
        let said = succeeded(self.command("verify").output()?)?;
        ensure!(said.ends_with("ok\n"), "verify said {said}");
        self.check_in(&self.gallery())
    }

    fn check_in(&self, gallery: &Path) -> anyhow::Result<()> {
        let (features, table) = (self.place.join("out.npy"), self.place.join("out.csv"));
        succeeded(self.of("export", gallery).arg(&features).arg(&table).output()?)?;
        let mut content = Content::new();
        let ids = ids_of(&table)?;
        if !ids.is_empty() {
            let features = MatrixFile::open(&features)?;
            ensure!(features.count() == ids.len(), "a feature for each image");
            for (row, (id, version)) in ids.into_iter().enumerate() {
                ensure!(
                    features.read(row..row + 1)? == feature(&id, version),
                    "{id} has the feature of another version"
                );
                content.insert(id, version);
            }
        }
        ensure!(content == self.content, "{}", difference(&self.content, &content));
        Ok(())
    }

    fn listed(&self) -> anyhow::Result<Content> {
        let list = succeeded(self.command("list").output()?)?;
        list.lines()
            .map(|line| {
                let mut fields = line.split('\t');
                let (id, label) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
                Ok((id.to_owned(), label.parse().with_context(|| format!("the label of {line}"))?))
            })
            .collect()
    }

    /// A command that puts so many images under a new version, in one commit, and what the gallery holds then.
    fn import(&mut self, count: usize) -> anyhow::Result<(Command, Content)> {
        self.version += 1;
        let mut after = self.content.clone();
        let mut chosen = BTreeMap::new();
        for _ in 0..count {
            chosen.insert(format!("{:04}", self.random.random_range(0..IDS)), self.version);
        }
        let (features, table) = (self.place.join("in.npy"), self.place.join("in.csv"));
        let rows: Vec<f32> = chosen.iter().flat_map(|(id, version)| feature(id, *version)).collect();
        write_npy(&features, D, &rows)?;
        let mut csv = csv::Writer::from_path(&table)?;
        csv.write_record(["id", "label", "odd"])?;
        for (id, version) in &chosen {
            csv.write_record([id.as_str(), &version.to_string(), if version % 2 == 1 { "yes" } else { "" }])?;
        }
        csv.flush()?;
        after.extend(chosen);
        let mut command = self.command("import");
        command.arg(features).arg(table).arg("--bundle").arg(self.place.join("bundle"));
        Ok((command, after))
    }

    fn remove(&mut self) -> anyhow::Result<(Command, Content)> {
        let mut after = self.content.clone();
        let ids: Vec<String> = after.keys().filter(|_| self.random.random_bool(0.2)).cloned().collect();
        let first = after.keys().next().cloned().context("there is always an image left")?;
        let ids = if ids.is_empty() { vec![first] } else { ids };
        after.retain(|id, _| !ids.contains(id));
        let list = self.place.join("ids.txt");
        std::fs::write(&list, ids.join("\n"))?;
        let mut command = self.command("remove");
        command.arg("--from").arg(list);
        Ok((command, after))
    }

    fn index(&self) -> Command {
        let mut command = self.command("index");
        command.args(["--codes", "4", "--sub-spaces", "4"]).arg("--bundle").arg(self.place.join("bundle"));
        command
    }

    /// A server that follows the gallery, and answers by now.
    fn serve(&self) -> anyhow::Result<Server> {
        let flags = ["--listen", "127.0.0.1:0"];
        let (bundle, log) = (self.place.join("bundle"), self.place.join("server.log"));
        Server::start_with(&flags, self.programs, &self.gallery(), &bundle, &log)
    }

    /// When the index was written.
    fn index_time(&self) -> Option<std::time::SystemTime> {
        std::fs::metadata(self.gallery().join("index.glimpse")).and_then(|metadata| metadata.modified()).ok()
    }

    fn command(&self, name: &str) -> Command {
        self.of(name, &self.gallery())
    }

    fn of(&self, name: &str, gallery: &Path) -> Command {
        let mut command = self.programs.gallery();
        command.arg(name).arg("--gallery").arg(gallery);
        command
    }

    fn gallery(&self) -> PathBuf {
        self.place.join("gallery")
    }
}

/// Whether it succeeded, if it ended in time.
fn wait(child: &mut Child, time: Duration) -> anyhow::Result<Option<bool>> {
    let until = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn succeeded(output: Output) -> anyhow::Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn ids_of(table: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let mut ids = Vec::new();
    for record in csv::Reader::from_path(table)?.records() {
        let record = record?;
        ids.push((record[0].to_owned(), record[1].parse()?));
    }
    Ok(ids)
}

fn difference(expected: &Content, found: &Content) -> String {
    let missing: Vec<_> =
        expected.iter().filter(|(id, version)| found.get(*id) != Some(version)).take(5).collect();
    let extra: Vec<_> = found.iter().filter(|(id, _)| !expected.contains_key(*id)).take(5).collect();
    format!(
        "of {} images {} are there; missing or old: {missing:?}, extra: {extra:?}",
        expected.len(),
        found.len()
    )
}

/// The unit feature of a version of an image: no other has it.
fn feature(id: &str, version: u64) -> Vec<f32> {
    let number: u64 = id.parse().unwrap_or_default();
    let mut random = ChaCha8Rng::seed_from_u64(version * IDS as u64 + number);
    let row: Vec<f32> = (0..D).map(|_| random.random_range(-1.0_f32..1.0)).collect();
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    row.into_iter().map(|x| x / norm).collect()
}

/// A bundle of a space without networks: enough to import and to serve.
///
/// # Errors
/// When it cannot be written.
pub fn write_bundle(dir: &Path, dimension: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let text = format!(
        "version = 1\nname = \"test\"\nspace = \"{}\"\ndimension = {dimension}\n\n[preprocessing]\nwidth = 32\nheight = 32\n\
         mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n",
        "ab".repeat(16)
    );
    Ok(std::fs::write(dir.join("space.toml"), text)?)
}

/// A `.npy` file of rows, `[n, D]`.
///
/// # Errors
/// When it cannot be written.
pub fn write_npy(path: &Path, dimension: usize, rows: &[f32]) -> anyhow::Result<()> {
    use npyz::WriterBuilder as _;
    let shape = [(rows.len() / dimension) as u64, dimension as u64];
    let file = std::io::BufWriter::new(File::create(path)?);
    let mut npy = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    npy.extend(rows.iter().copied())?;
    npy.finish()?;
    Ok(())
}
