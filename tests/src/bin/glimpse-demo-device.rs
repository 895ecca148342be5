//! `make demo-device`: a device from nothing to its answer. An image is made and flashed to a file, a board is emulated that starts
//! from it, its button is pressed, its camera (the kernel's `vivid`, which draws colour bars) takes a photo, the gallery server on this
//! machine knows the picture, and the device posts the answer to a webhook.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use glimpse_embedder::RgbImage;
use glimpse_tests::authority::Authority;
use glimpse_tests::board::Board;
use glimpse_tests::browser::Browser;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::server::Server;
use glimpse_tests::workspace;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// The device.
const DEVICE: &str = "door-1";

/// What its camera sees, in the gallery.
const LABEL: &str = "colour bars";

/// From power-on to the server, on a machine that does other things too.
const CONNECTS_WITHIN: Duration = Duration::from_mins(6);

/// From the button to the answer.
const ANSWERS_WITHIN: Duration = Duration::from_mins(2);

/// When a plug is pulled, in seconds after power-on: from the firmware's first moments to a device that runs.
const PULLED: std::ops::Range<f64> = 2.0..75.0;

/// The largest body of a webhook.
const BODY_BYTES_MAX: usize = 1 << 20;

/// "75% colour bar" of television, from left to right.
const BARS: [[u8; 3]; 8] = [
    [191, 191, 191],
    [191, 191, 0],
    [0, 191, 191],
    [0, 191, 0],
    [191, 0, 191],
    [191, 0, 0],
    [0, 0, 191],
    [0, 0, 0],
];

/// Make an image, flash it, start it, and have it answer
#[derive(Debug, Parser)]
struct Arguments {
    /// Plugs to pull
    #[arg(long, default_value_t = 20)]
    pulls: u32,
    /// Seed of the moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Package of glimpse-edge for 64-bit ARM [default: that of `make edge-arm`]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where the log and the card are left
    #[arg(long, default_value = "target/demo-device")]
    work: PathBuf,
    /// The report
    #[arg(long, default_value = "target/reports/device.json")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let work = std::path::absolute(&arguments.work)?;
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let package = arguments.program.clone().map_or_else(package, Ok)?;
    eprintln!("the gallery server, with TLS, and a picture of what the camera will see");
    let fixture = Fixture::ingested()?;
    let (server, ca) = serve(&fixture)?;
    let (address, outcomes) = webhook()?;
    eprintln!("the device's credentials");
    let device = provision(&fixture, &server, &ca, &address)?;
    eprintln!("the image");
    let image = work.join("card.img.zst");
    run(fixture
        .programs
        .firmware()
        .args(["image", "--force", "--board", "qemu-virt", "--program"])
        .arg(package)
        .arg("--out")
        .arg(&image))?;
    let image_mb = std::fs::metadata(&image)?.len() as f64 / 1e6;
    eprintln!("flashing it");
    let card = work.join("card.img");
    let mut flash = fixture.programs.firmware();
    run(flash.arg("flash").arg(&image).arg(&card).args(["--replace", "--device"]).arg(&device))?;

    let demo = Demo { fixture, card, log: work.join("board.log"), outcomes };
    let _ = std::fs::remove_file(&demo.log);
    eprintln!("starting it; its serial line goes to {}", demo.log.display());
    let first = demo.answer();
    let (answered, tls) = (first.is_ok(), is_tls(&demo.fixture)?);
    let mut failures = Vec::new();
    let (mut pulled, mut boot_to_answer) = (0, None);
    match first {
        Ok((board, took)) => {
            eprintln!("answered {:.0} s after power-on", took.as_secs_f64());
            boot_to_answer = Some(took.as_secs_f64());
            photograph(&server, &demo.fixture)?;
            drop(board);
            pulled = demo.pull_plugs(arguments.pulls, arguments.seed, &mut failures)?;
        }
        Err(error) => failures.push(format!("{error:#}")),
    }
    let report = json!({
        "answered": answered,
        "tls": tls,
        "boot_to_answer_s": boot_to_answer,
        "image_mb": image_mb,
        "plug_pulls": pulled,
        "plug_failures": if answered { failures.len() } else { 0 },
        "failures": failures,
    });
    let out = workspace::root().join(&arguments.out);
    std::fs::create_dir_all(out.parent().context("the report is in a folder")?)?;
    std::fs::write(&out, format!("{report:#}\n"))
        .with_context(|| format!("cannot write {}", out.display()))?;
    println!("{report:#}");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    ensure!(tls, "the device did not come over TLS");
    Ok(())
}

/// The newest package that `make edge-arm` left.
fn package() -> anyhow::Result<PathBuf> {
    let folder = workspace::root().join("target/edge");
    let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_package = |path: &PathBuf| path.to_str().is_some_and(|name| name.ends_with("_arm64.deb"));
    let packages = files.filter(is_package);
    packages.max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok()).with_context(
        || format!("there is no package of glimpse-edge in {}: `make edge-arm` makes it", folder.display()),
    )
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

/// A server whose gallery holds a drawing of the camera's picture; with it, who signed its certificate.
fn serve(fixture: &Fixture) -> anyhow::Result<(Server, PathBuf)> {
    let picture = fixture.path("bars.png");
    let (width, height) = (640, 480);
    let row: Vec<u8> = (0..width).flat_map(|x| BARS[x * BARS.len() / width]).collect();
    let bars = RgbImage::from_raw(width as u32, height as u32, row.repeat(height));
    bars.context("as many bytes as pixels want")?.save(&picture)?;
    let bundle = workspace::bundle();
    let words = ["add", text(&picture)?, "--id", "bars", "--label", LABEL, "--bundle", text(&bundle)?];
    let output = fixture.run(&words)?;
    ensure!(output.status.success(), "add failed: {}", String::from_utf8_lossy(&output.stderr));
    let authority = Authority::new(fixture.folder(), "server-ca")?;
    let identity = authority.server("server")?;
    let [certificate, key] = identity.texts();
    let flags = ["--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let server =
        fixture.serve_with(&[&flags[..], &["--tls-certificate", certificate, "--tls-key", key]].concat())?;
    Ok((server, authority.certificate.clone()))
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("temporary folders have plain names")
}

/// The device's folder.
fn provision(fixture: &Fixture, server: &Server, ca: &Path, webhook: &str) -> anyhow::Result<PathBuf> {
    let (_, port) = server.word("mqtts")?.rsplit_once(':').context("the server says its port")?;
    let config = fixture.path("device.toml");
    let lines = [
        "board = \"qemu-virt\"".to_owned(),
        format!("server = \"mqtts://10.0.2.2:{port}\""),
        "camera = \"v4l2:/dev/video0\"".to_owned(),
        "trigger = \"button\"".to_owned(),
        "button = \"gpiochip0:3\"".to_owned(),
        format!("bundle = {:?}", text(&workspace::bundle())?),
        format!("ca = {:?}", text(ca)?),
        "outbox = \"/var/lib/glimpse-edge/outbox\"".to_owned(),
        format!("webhook = {webhook:?}"),
    ];
    std::fs::write(&config, lines.join("\n") + "\n")?;
    let (authority, out) = (fixture.path("ca"), fixture.path("devices"));
    run(fixture.programs.firmware().args(["ca", "init"]).arg(&authority))?;
    let mut command = fixture.programs.firmware();
    command
        .args(["provision", DEVICE, "--config"])
        .arg(config)
        .arg("--ca")
        .arg(authority)
        .arg("--out")
        .arg(&out);
    command
        .arg("--gallery")
        .arg(fixture.gallery())
        .arg("--gallery-program")
        .arg(fixture.programs.gallery().get_program());
    run(&mut command)?;
    Ok(out.join(DEVICE))
}

/// A host that takes posts: its address as the board sees it, and the bodies.
fn webhook() -> anyhow::Result<(String, Receiver<Value>)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    let port = listener.local_addr()?.port();
    let (send, outcomes) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // What comes in half when a plug is pulled is nobody's answer.
            if let Ok(body) = posted(stream)
                && send.send(body).is_err()
            {
                return;
            }
        }
    });
    Ok((format!("http://10.0.2.2:{port}/answer"), outcomes))
}

fn posted(mut stream: TcpStream) -> anyhow::Result<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut from = BufReader::new(stream.try_clone()?).take(BODY_BYTES_MAX as u64);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(from.read_line(&mut line)? > 0, "the request ends too early");
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) =
            line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value.trim().parse::<usize>().with_context(|| format!("{name} is no number"))?;
        }
    }
    ensure!(length <= BODY_BYTES_MAX, "the body is too large");
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(serde_json::from_slice(&body)?)
}

struct Demo {
    fixture: Fixture,
    card: PathBuf,
    log: PathBuf,
    outcomes: Receiver<Value>,
}

impl Demo {
    fn start(&self) -> anyhow::Result<Board> {
        let mut boot = self.fixture.programs.firmware();
        boot.args(["boot", "--persist", "--card-mb", "1500"]).arg(&self.card);
        Board::start(boot, &self.log)
    }

    /// Pulls this many plugs, or one more: one between power-on and connection, then one of a device that has answered. Returns how many.
    fn pull_plugs(&self, pulls: u32, seed: u64, failures: &mut Vec<String>) -> anyhow::Result<u32> {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let mut pulled = 0;
        while pulled < pulls {
            let at = Duration::from_secs_f64(dice.random_range(PULLED));
            let board = self.start()?;
            std::thread::sleep(at);
            drop(board);
            pulled += 1;
            match self.answer() {
                Ok((board, took)) => {
                    let [at, took] = [at, took].map(|time| time.as_secs_f64());
                    eprintln!("pulled after {at:.0} s; the next start answered after {took:.0} s");
                    drop(board);
                    pulled += 1;
                }
                Err(error) => {
                    failures.push(format!("after a plug pulled at {:.1} s: {error:#}", at.as_secs_f64()))
                }
            }
        }
        if pulled > 0 {
            self.answer().map(drop).unwrap_or_else(|error| failures.push(format!("at last: {error:#}")));
        }
        Ok(pulled)
    }

    /// Starts the board, presses its button once it is connected, and waits for the answer; with it the time since power-on.
    fn answer(&self) -> anyhow::Result<(Board, Duration)> {
        let mut board = self.start()?;
        board.waits_for("glimpse: connected ", CONNECTS_WITHIN)?;
        // What was asked before a plug was pulled is answered first, and is not what is pressed for.
        while self.outcomes.try_recv().is_ok() {}
        board.press()?;
        let Ok(outcome) = self.outcomes.recv_timeout(ANSWERS_WITHIN) else {
            bail!("no answer came within {} s of the button", ANSWERS_WITHIN.as_secs());
        };
        let took = board.begun.elapsed();
        ensure!(outcome["error"].is_null(), "the query failed: {}", outcome["error"]);
        let found = &outcome["matches"][0];
        ensure!(found["label"] == LABEL, "another picture was found: {found}");
        Ok((board, took))
    }
}

/// Whether the server let the device in over TLS, by its certificate.
fn is_tls(fixture: &Fixture) -> anyhow::Result<bool> {
    let file = fixture.gallery().join("access/audit.jsonl");
    let lines = std::fs::read_to_string(file).context("the server keeps no record of who came")?;
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let connected = lines.filter(|line| line["event"] == "connected" && line["device"] == DEVICE);
    Ok(connected.clone().count() > 0
        && connected.clone().all(|line| line["tls"] == true && line["credential"] == "certificate"))
}

/// The console with the answer, where there is a browser.
fn photograph(server: &Server, fixture: &Fixture) -> anyhow::Result<()> {
    let Some(browser) = Browser::find("the console's picture") else { return Ok(()) };
    let http = server.word("http")?;
    let scenario = browser.play("photograph_a_query", http, &[LABEL, DEVICE], fixture.path("browser.log"))?;
    scenario.ends_well()
}
