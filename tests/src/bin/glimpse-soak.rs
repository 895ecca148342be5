//! `make soak`: servers and brokers through half an hour of mixed load, restarts and bad manners.
//!
//! Two sites answer from one gallery that commands change all the while. One is a server with its own broker, which stays up
//! beside clients that behave badly. The other is mosquitto with two servers: one stays up, the other is killed or stopped, and
//! the broker is killed, in turn. Both have simulated devices and ours, `glimpse-edge run`. At the end every query must have been
//! answered, and the servers that stayed up must not have grown.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use glimpse_protocol::{DeviceId, SpaceId};
use glimpse_tests::authority::private;
use glimpse_tests::device::Device;
use glimpse_tests::durability::write_npy;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::mosquitto::Mosquitto;
use glimpse_tests::server::Server;
use glimpse_tests::soak::{Broker, Tally, ask_on, growth_per_minute, misbehave, resident_mb};
use glimpse_tests::{stranger, workspace};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Features beside the photos, half of which come and go.
const SYNTHETIC: usize = 4000;

/// Our own devices at each site.
const CAMERAS: usize = 2;

/// What a server may grow, in MB: over the second half, by the line through its samples.
const GROWTH_MAX_MB: f64 = 8.0;

/// Soak the gallery server
#[derive(Debug, Parser)]
struct Arguments {
    /// How long
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Simulated devices at each site
    #[arg(long, default_value_t = 50)]
    devices: usize,
    /// Seed of queries and moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The report
    #[arg(long, default_value = "target/reports/soak.json")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(soak(&arguments))?;
    if let Some(folder) = arguments.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&arguments.out, serde_json::to_vec_pretty(&report)?)?;
    println!("{report:#}");
    let number = |site: &str, key: &str| report[site][key].as_u64().unwrap_or(u64::MAX);
    for site in ["embedded", "mosquitto"] {
        for key in ["lost", "refused", "cameras_unanswered"] {
            ensure!(number(site, key) == 0, "{site}: {key} is {}", number(site, key));
        }
        ensure!(number(site, "asked") == number(site, "answered"), "{site}: not every query was answered");
        let growth = report[site]["growth_mb"].as_f64().unwrap_or(f64::INFINITY);
        ensure!(growth <= GROWTH_MAX_MB, "{site}: the server grew by {growth:.1} MB in the second half");
    }
    ensure!(number("embedded", "unasked") == 0, "the embedded broker answered a query twice");
    Ok(())
}

/// Features that stand for photos.
struct Changes<'a> {
    fixture: &'a Fixture,
    table: [PathBuf; 2],
    features: [PathBuf; 2],
}

impl<'a> Changes<'a> {
    fn prepare(fixture: &'a Fixture, embeddings: &[Vec<f32>]) -> anyhow::Result<Self> {
        let path = |name: &str, half: usize, kind: &str| fixture.path(&format!("{name}-{half}.{kind}"));
        let (table, features) =
            ([0, 1].map(|half| path("table", half, "csv")), [0, 1].map(|half| path("rows", half, "npy")));
        let size = embeddings.len() / 2;
        for half in [0, 1] {
            let rows = &embeddings[half * size..][..size];
            write_npy(&features[half], rows[0].len(), &rows.concat())?;
            let ids: String = (0..size)
                .map(|number| format!("synthetic-{half}/{number},object {}\n", number / 3))
                .collect();
            std::fs::write(&table[half], format!("id,label\n{ids}"))?;
        }
        let changes = Self { fixture, table, features };
        changes.import(0)?;
        changes.import(1)?;
        Ok(changes)
    }

    fn import(&self, half: usize) -> anyhow::Result<()> {
        let mut command = self.fixture.programs.gallery();
        command.arg("import").arg(&self.features[half]).arg(&self.table[half]);
        command.arg("--gallery").arg(self.fixture.gallery()).arg("--bundle").arg(workspace::bundle());
        done(command)
    }

    fn remove(&self) -> anyhow::Result<()> {
        let mut command = self.fixture.programs.gallery();
        let ids = (0..SYNTHETIC / 4).map(|number| format!("synthetic-1/{number}"));
        command.arg("remove").args(ids).arg("--gallery").arg(self.fixture.gallery());
        done(command)
    }
}

fn done(mut command: Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "a command that changes the gallery failed: {}", said());
    Ok(())
}

fn draw(dimension: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || {
        let row: Vec<f32> = (0..dimension).map(|_| random.random_range(-1.0_f32..1.0)).collect();
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.into_iter().map(|x| x / norm).collect()
    };
    (0..SYNTHETIC).map(|_| unit()).collect()
}

/// A site: where devices connect, what became of their queries, and how large its server was.
struct Site {
    name: &'static str,
    address: String,
    broker: Broker,
    ca: Option<PathBuf>,
    tally: Arc<Tally>,
    server: u32,
    memory: Vec<(f64, f64)>,
}

impl Site {
    fn report(&self, cameras: (u64, u64)) -> Value {
        let mut report = json!({ "cameras_answered": cameras.0, "cameras_unanswered": cameras.1 });
        for (name, count) in self.tally.named() {
            report[name] = json!(count);
        }
        let half = &self.memory[self.memory.len() / 2..];
        let minutes = half.last().map_or(0.0, |last| last.0) - half.first().map_or(0.0, |first| first.0);
        report["growth_mb"] = json!(growth_per_minute(half) * minutes);
        let at = |place: usize| self.memory.get(place).map(|sample| sample.1);
        report["resident_mb"] =
            json!([at(0), at(self.memory.len() / 2), self.memory.last().map(|sample| sample.1)]);
        report
    }
}

async fn soak(arguments: &Arguments) -> anyhow::Result<Value> {
    let mosquitto =
        Mosquitto::find("glimpse-soak").context("mosquitto is not there: run `make mosquitto`")?;
    let fixture = Fixture::ingested()?;
    let embedding = fixture.embedding(&fixture.queries[0].photo)?;
    let embeddings = Arc::new(draw(embedding.len(), arguments.seed));
    let changes = Changes::prepare(&fixture, &embeddings)?;

    let names: Vec<String> = (0..arguments.devices)
        .map(|number| format!("sim-{number}"))
        .chain((0..CAMERAS).map(|number| format!("cam-{number}")))
        .chain(["rogue".to_owned()])
        .collect();
    let password = |name: &str| format!("password of {name}");
    for name in &names {
        fixture.devices(&["add", name], &format!("{}\n", password(name)))?;
        private(&fixture.path(&format!("{name}.password")), &password(name))?;
    }
    let passwords: Vec<String> = names.iter().map(|name| password(name)).collect();
    let mut users: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(passwords.iter().map(String::as_str)).collect();
    users.extend([("gallery-1", "one"), ("gallery-2", "two")]);
    let mut other = Mosquitto::start(mosquitto, &fixture.path("mosquitto"), &users)?;

    let embedded = fixture.serve()?;
    let (address, authority) = (other.address(), other.authority.clone());
    let serve = |name: &str, word: &str| -> anyhow::Result<Server> {
        let secret = fixture.path(&format!("{name}.password"));
        private(&secret, word)?;
        let mut command = fixture.programs.gallery();
        command.args(["serve", "--http", "none", "--broker", &address, "--client-id", name]);
        command.arg("--gallery").arg(fixture.gallery()).arg("--bundle").arg(workspace::bundle());
        command.args(["--broker-username", name, "--broker-ca"]).arg(&authority);
        command.arg("--broker-password-file").arg(secret);
        Server::spawn(command, &fixture.path(&format!("{name}.log")))
    };
    let steady = serve("gallery-1", "one")?;
    let mut second = Some(serve("gallery-2", "two")?);
    let space: SpaceId = embedded.word("space")?.parse()?;
    let mut sites = [
        site("embedded", embedded.address()?, None, embedded.id())?,
        site("mosquitto", &address, Some(&authority), steady.id())?,
    ];

    let (stop, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut devices = Vec::new();
    let mut cameras = Vec::new();
    for (number, site) in sites.iter().enumerate() {
        for (place, name) in names.iter().take(arguments.devices).enumerate() {
            let asked_with = (space, embeddings.clone());
            let seed = arguments.seed + (number * 10_000 + place) as u64;
            let task = ask_on(
                site.broker.clone(),
                DeviceId::new(name)?,
                password(name),
                asked_with,
                seed,
                site.tally.clone(),
                stop.clone(),
            );
            devices.push(tokio::spawn(task));
        }
        for camera in 0..CAMERAS {
            cameras.push((number, film(&fixture, site, camera, stop.clone())?));
        }
    }
    let rogue = std::thread::spawn({
        let (address, stop) = (sites[0].address.clone(), leave.clone());
        let password = password("rogue");
        move || misbehave(&address, "rogue", &password, &stop)
    });

    let (began, length) = (Instant::now(), Duration::from_secs(60 * arguments.minutes));
    let bar = indicatif::ProgressBar::new(length.as_secs()).with_message("soak");
    let (mut kills, mut stops, mut broker_kills, mut changed) = (0, 0, 0, 0);
    let mut step = 0_u64;
    while began.elapsed() < length {
        tokio::time::sleep(Duration::from_secs(10)).await;
        step += 1;
        bar.set_position(began.elapsed().as_secs());
        for site in &mut sites {
            let resident = resident_mb(site.server);
            let resident = resident.with_context(|| format!("the server of the site {} ended", site.name))?;
            site.memory.push((began.elapsed().as_secs_f64() / 60.0, resident));
        }
        match step % 6 {
            1 => changes.remove()?,
            3 => changes.import(1)?,
            4 if step % 12 == 4 => {
                // Dropped servers are killed.
                drop(second.take());
                kills += 1;
                tokio::time::sleep(Duration::from_secs(3)).await;
                second = Some(serve("gallery-2", "two")?);
            }
            4 => {
                if let Some(mut server) = second.take() {
                    server.stop()?;
                }
                stops += 1;
                second = Some(serve("gallery-2", "two")?);
            }
            0 => {
                other.kill()?;
                tokio::time::sleep(Duration::from_secs(2)).await;
                other.restart()?;
                broker_kills += 1;
            }
            _ => continue,
        }
        changed += u64::from(step % 6 == 1 || step % 6 == 3);
    }
    stop.store(true, Ordering::Relaxed);
    for device in devices {
        device.await?;
    }
    let mut filmed = [(0, 0); 2];
    for (site, camera) in cameras {
        let (answered, unanswered) =
            camera.join().map_err(|_| anyhow::anyhow!("a camera's thread ended"))??;
        filmed[site] = (filmed[site].0 + answered, filmed[site].1 + unanswered);
    }
    leave.store(true, Ordering::Relaxed);
    let (tried, entered) = rogue.join().map_err(|_| anyhow::anyhow!("the rogue's thread ended"))?;
    ensure!(entered > tried / 4, "the rogue got in {entered} times in {tried} attempts: it was no test");
    bar.finish_and_clear();
    drop(second);
    let mut report = json!({
        "minutes": arguments.minutes, "servers_killed": kills, "servers_stopped": stops, "brokers_killed": broker_kills,
        "gallery_changes": changed, "misbehaved": tried, "rogue_let_in": entered,
    });
    for (site, filmed) in sites.iter().zip(filmed) {
        report[site.name] = site.report(filmed);
    }
    Ok(report)
}

fn site(name: &'static str, address: &str, ca: Option<&Path>, server: u32) -> anyhow::Result<Site> {
    let plain = address.trim_start_matches("mqtts://");
    let (host, port) = plain.rsplit_once(':').context("an address is HOST:PORT")?;
    let tls = ca.map(|ca| stranger::tls(ca, None)).transpose()?;
    let broker = Broker { host: host.to_owned(), port: port.parse()?, tls };
    Ok(Site {
        name,
        address: address.to_owned(),
        broker,
        ca: ca.map(Path::to_owned),
        tally: Arc::default(),
        server,
        memory: Vec::new(),
    })
}

/// A thread: how many of its photos had an answer, and how many none.
type Filming = std::thread::JoinHandle<anyhow::Result<(u64, u64)>>;

/// One of our own devices, which takes a photo a second; each must come to one answer.
fn film(fixture: &Fixture, site: &Site, camera: usize, stop: Arc<AtomicBool>) -> anyhow::Result<Filming> {
    let name = format!("cam-{camera}");
    let folder = fixture.path(&format!("{}-{name}", site.name));
    std::fs::create_dir(&folder)?;
    let mut command = fixture.programs.edge();
    command.args(["run", "--json", "--timeout", "60", "--device", &name, "--server", &site.address]);
    command
        .arg("--camera")
        .arg(format!("folder:{}", folder.display()))
        .arg("--bundle")
        .arg(workspace::bundle());
    command.arg("--password-file").arg(fixture.path(&format!("{name}.password")));
    if let Some(ca) = &site.ca {
        command.arg("--ca").arg(ca);
    }
    let device = Device::start(command, &fixture.path(&format!("{}-{name}.log", site.name)))?;
    let photos: Vec<PathBuf> = fixture.queries.iter().map(|query| query.photo.clone()).collect();
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    Ok(std::thread::spawn(move || {
        let (mut answered, mut unanswered) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let photo = workspace::root().join(&photos[number as usize % photos.len()]);
            let taken = folder.join(format!("{number:08}.jpg"));
            let draft = folder.join("draft");
            std::fs::copy(photo, &draft)?;
            std::fs::rename(draft, &taken)?;
            let answer = device.answer_within(Duration::from_secs(150))?;
            ensure!(
                answer.photo == taken,
                "{} was answered in the place of {}",
                answer.photo.display(),
                taken.display()
            );
            if answer.error.is_none() && answer.matches.len() == 10 {
                answered += 1;
            } else {
                unanswered += 1;
            }
            std::fs::remove_file(taken)?;
            std::thread::sleep(Duration::from_millis(700));
        }
        // A second outcome of a photo would come now.
        ensure!(device.answer_within(Duration::from_secs(2)).is_err(), "a photo had two outcomes");
        Ok((answered, unanswered))
    }))
}
