//! Plugs pulled: devices with an outbox are killed at random moments, while their server is away and while it answers.
//!
//! Each round a device finds one new photo, and is killed with SIGKILL within some seconds; half of the rounds it does not reach its
//! server, so that queries go to the disk, and the other half they are answered from there. What is done with an answer is a program
//! that writes it down. Afterwards no query may have been acted upon twice, no outbox may be damaged, and a kill may have cost
//! the one outcome that was in hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::fixture::Fixture;
use crate::link::Link;
use crate::workspace;

/// How long what is left may take at the end.
const SETTLED: Duration = Duration::from_mins(2);

/// How long a device runs at a time at the end, for what is left and for the last program that it started.
const TURN: Duration = Duration::from_secs(4);

/// What was done and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Kills.
    pub pulls: usize,
    /// Photos that were there.
    pub photos: usize,
    /// Photos whose query was on the disk after a kill.
    pub kept: usize,
    /// Outcomes that were acted upon.
    pub acted: usize,
    /// Queries that were on the disk and never acted upon: outcomes in hand when the plug was pulled.
    pub lost: usize,
    /// Queries that were acted upon more than once.
    pub twice: usize,
    /// Complaints of devices about their outbox.
    pub damaged: usize,
}

impl Report {
    /// What must not be: each action that was done twice, each damage, and each lost outcome beyond one a pull.
    pub const fn failures(&self) -> usize {
        self.twice + self.damaged + self.lost.saturating_sub(self.pulls)
    }

    fn add(&mut self, other: &Self) {
        self.pulls += other.pulls;
        self.photos += other.photos;
        self.kept += other.kept;
        self.acted += other.acted;
        self.lost += other.lost;
        self.twice += other.twice;
        self.damaged += other.damaged;
    }
}

/// Pulls plugs `pulls` times, of as many devices at a time; `each` is told of every one.
///
/// # Errors
/// Where a program cannot be started, or a device does not come to its end.
pub fn pull(
    fixture: &Fixture,
    address: &str,
    (devices, pulls): (usize, usize),
    seed: u64,
    each: &(dyn Fn() + Sync),
) -> anyhow::Result<Report> {
    let (next, total) = (AtomicUsize::new(0), Mutex::new(Report::default()));
    std::thread::scope(|scope| {
        let run = |number: usize| -> anyhow::Result<()> {
            let mut device = Plugged::new(fixture, address, number, seed)?;
            while next.fetch_add(1, Ordering::SeqCst) < pulls {
                device.round()?;
                each();
            }
            let report = device.settle()?;
            total
                .lock()
                .map_or_else(|poisoned| poisoned.into_inner().add(&report), |mut total| total.add(&report));
            Ok(())
        };
        let threads: Vec<_> = (0..devices).map(|number| scope.spawn(move || run(number))).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a device's thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// One device, and what is known of it.
struct Plugged<'a> {
    fixture: &'a Fixture,
    place: PathBuf,
    name: String,
    link: Link,
    random: ChaCha8Rng,
    rounds: usize,
    /// Photos that were in the outbox after some kill.
    kept: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Acted {
    photo: PathBuf,
    id: Option<String>,
}

impl<'a> Plugged<'a> {
    fn new(fixture: &'a Fixture, address: &str, number: usize, seed: u64) -> anyhow::Result<Self> {
        let place = fixture.path(&format!("plugged-{number}"));
        fs::create_dir_all(place.join("photos"))?;
        let hook = place.join("hook");
        fs::write(&hook, format!("#!/bin/sh\nexec cat >> '{}'\n", place.join("acted").display()))?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o700))?;
        File::create(place.join("acted"))?;
        let random = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1000) + number as u64);
        let link = Link::to(address, 0)?;
        Ok(Self {
            fixture,
            place,
            name: format!("plug-{number}"),
            link,
            random,
            rounds: 0,
            kept: BTreeSet::new(),
        })
    }

    fn start(&self) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(self.place.join("log"))?;
        let mut command: Command = self.fixture.programs.edge();
        command.args(["run", "--json", "--server", &self.link.address(), "--device", &self.name]);
        command.arg("--camera").arg(format!("folder:{}", self.place.join("photos").display()));
        command.arg("--bundle").arg(workspace::bundle()).arg("--outbox").arg(self.place.join("outbox"));
        command.arg("--exec").arg(self.place.join("hook"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().context("cannot start glimpse-edge")
    }

    /// Runs the device with a new photo, and pulls its plug.
    fn round(&mut self) -> anyhow::Result<()> {
        self.clear()?;
        let photos = self.place.join("photos");
        let query = &self.fixture.queries[self.rounds % self.fixture.queries.len()];
        fs::copy(workspace::root().join(&query.photo), photos.join(format!("{:05}.jpg", self.rounds)))?;
        self.rounds += 1;
        let is_away = self.random.random();
        if is_away {
            self.link.cut()
        } else {
            self.link.mend()
        }
        let mut device = self.start()?;
        // A query without an answer is written down a second after it was embedded.
        let longest = if is_away { 2500 } else { 1200 };
        std::thread::sleep(Duration::from_millis(self.random.random_range(50..longest)));
        ensure!(device.try_wait()?.is_none(), "the device ended by itself: {}", self.log());
        device.kill()?;
        device.wait()?;
        self.kept.extend(self.waiting());
        Ok(())
    }

    /// Takes the photos away.
    fn clear(&self) -> anyhow::Result<()> {
        for old in fs::read_dir(self.place.join("photos"))? {
            fs::remove_file(old?.path())?;
        }
        Ok(())
    }

    /// Names of photos whose queries are in the outbox's files, those with an outcome among them.
    fn waiting(&self) -> BTreeSet<String> {
        let files = fs::read_dir(self.place.join("outbox")).into_iter().flatten().flatten();
        let bytes: Vec<u8> = files.filter_map(|file| fs::read(file.path()).ok()).flatten().collect();
        let name = |name: &[u8]| {
            let is_name = name.ends_with(b".jpg") && name[..5].iter().all(u8::is_ascii_digit);
            is_name.then(|| String::from_utf8_lossy(name).into_owned())
        };
        bytes.windows(9).filter_map(name).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.join("log")).unwrap_or_default()
    }

    /// Lets everything be answered that is left, and looks at what was done.
    fn settle(self) -> anyhow::Result<Report> {
        self.link.mend();
        self.clear()?;
        let started = Instant::now();
        loop {
            let before = self.log().len();
            let mut device = self.start()?;
            std::thread::sleep(TURN);
            device.kill()?;
            device.wait()?;
            // A device that finds queries in its outbox says so.
            if !self.log().get(before..).unwrap_or_default().contains("they wait since before") {
                break;
            }
            ensure!(started.elapsed() < SETTLED, "queries are left in the outbox: {}", self.log());
        }
        let acted = acted(&self.place.join("acted"))?;
        let mut by_id: BTreeMap<&str, usize> = BTreeMap::new();
        for id in acted.iter().filter_map(|acted| acted.id.as_deref()) {
            *by_id.entry(id).or_default() += 1;
        }
        let named = |acted: &Acted| acted.photo.file_name().map(|name| name.to_string_lossy().into_owned());
        let photos: BTreeSet<String> = acted.iter().filter_map(named).collect();
        let log = self.log();
        let complaints = ["outbox is damaged", "cannot be used", "of another version", "cannot be read"];
        Ok(Report {
            pulls: self.rounds,
            photos: self.rounds,
            kept: self.kept.len(),
            acted: acted.len(),
            lost: self.kept.difference(&photos).count(),
            twice: by_id.values().map(|times| times - 1).sum(),
            damaged: log.lines().filter(|line| complaints.iter().any(|part| line.contains(part))).count(),
        })
    }
}

/// What the program wrote down.
fn acted(file: &Path) -> anyhow::Result<Vec<Acted>> {
    let text = fs::read_to_string(file)?;
    let read = |line: &str| serde_json::from_str(line).with_context(|| format!("not an outcome: {line}"));
    text.lines().map(read).collect()
}
