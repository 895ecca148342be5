//! `glimpse-firmware check`: all that is wrong with device files, before a device starts with them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use glimpse_protocol::Codec;
use glimpse_protocol::device::{
    Actions, Board, CameraSource, Device, Network, Outbox, Place, Problem, Problems, RawDevice,
};
use serde_json::json;

use crate::output::{complain, complain_drawn, say, shown};
use crate::template::shown_webhook;
use crate::{boards, report};

/// The largest file that is read; a complete one has two kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags of `glimpse-firmware check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Device files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Does not look for the folders and files that they name: they are on the device, and this is another machine
    #[arg(long)]
    pub no_paths: bool,
    /// Prints one JSON object: {"ok", "problems": [{"file", "line", "column", "key", "reason", "fix"}]}
    #[arg(long)]
    pub json: bool,
}

/// Checks every file; status 1 where one has problems.
///
/// # Errors
/// Output that cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    let mut is_good = true;
    let look = if args.no_paths { Look::Nowhere } else { Look::Everywhere };
    for file in &args.files {
        let name = file.display().to_string();
        match device_of(file, look) {
            Ok(device) if !args.json => say(&format!("{}: good\n{}", shown(&name), table(&device)))?,
            Ok(_) => {}
            Err(wrong) => {
                is_good = false;
                let problems = &wrong.problems.0;
                if args.json {
                    found.extend(problems.iter().map(|problem| report::json(&name, problem)));
                } else {
                    wrong.tell(file);
                    let many = if problems.len() == 1 { "problem" } else { "problems" };
                    complain(&format!("{name}: {} {many}", problems.len()));
                }
            }
        }
    }
    if args.json {
        say(&format!("{}\n", json!({ "ok": is_good, "problems": found })))?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is wrong with a file.
#[derive(Debug)]
pub struct Wrong {
    /// The file's text, as far as it is text.
    pub text: String,
    /// All that is wrong with it.
    pub problems: Problems,
}

impl Wrong {
    /// Draws each problem into the line of `file` that it is about.
    pub fn tell(&self, file: &Path) {
        let name = file.display().to_string();
        for problem in &self.problems.0 {
            complain_drawn(&report::drawn(&name, &self.text, problem));
        }
    }
}

/// Which of the files that a device file names are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// None: they are on the device.
    Nowhere,
    /// Those that `provision` copies; camera and programs are the device's, and credentials are made anew.
    Copied,
    /// All.
    Everywhere,
}

/// The device that a file describes.
///
/// # Errors
/// All that is wrong.
pub fn device_of(file: &Path, look: Look) -> Result<Device, Wrong> {
    let text = read(file)?;
    let (raw, mut problems) = RawDevice::parse(&text, file.parent().unwrap_or(Path::new("")));
    if let Some(board) = raw.board {
        match boards::profile(board) {
            Ok(profile) => problems.extend(boards::problems(&raw, board, &profile)),
            Err(error) => {
                problems.push(raw.problem("board", &error.to_string(), "report it, for it is our mistake"));
            }
        }
    }
    if look != Look::Nowhere {
        problems.extend(path_problems(&raw, look));
    }
    raw.validate(problems).map_err(|problems| Wrong { text, problems })
}

/// The text of a device file.
fn read(file: &Path) -> Result<String, Wrong> {
    let whole = |text: String, place: Option<Place>, reason: String, fix: &str| Wrong {
        text,
        problems: Problems(vec![Problem { place, key: String::new(), reason, fix: fix.to_owned() }]),
    };
    let bytes = read_bytes(file).map_err(|error| {
        whole(String::new(), None, format!("{error:#}"), "name the file that describes a device")
    })?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let fix = "save it as UTF-8, as editors offer under `encoding`";
        return Err(whole(String::new(), None, "is UTF-16 text".to_owned(), fix));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let place = Place::of(&text, at..at + char::REPLACEMENT_CHARACTER.len_utf8());
        let fix = "save it as UTF-8, as editors offer under `encoding`, or look whether it is the right file";
        whole(text, Some(place), format!("is no UTF-8 text: the byte {byte:#04x}"), fix)
    })
}

/// Reads a regular file of at most [`FILE_BYTES_MAX`]. What it is gets asked before it is opened: opening a pipe would wait
/// for its other end.
fn read_bytes(file: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || format!("cannot read {}", file.display());
    let metadata = std::fs::metadata(file).with_context(context)?;
    ensure!(!metadata.is_dir(), "{} is no file, but a folder", file.display());
    ensure!(metadata.is_file(), "{} is no file", file.display());
    let opened = std::fs::File::open(file).with_context(context)?;
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(context)?;
    ensure!(bytes.len() as u64 <= FILE_BYTES_MAX, "{} is larger than {FILE_BYTES_MAX} bytes", file.display());
    Ok(bytes)
}

/// A path that a key leads to.
struct Needed {
    key: &'static str,
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Folder,
    File,
    Device,
}

impl Needed {
    fn folder(key: &'static str, path: &Path) -> Self {
        Self { key, path: path.to_owned(), kind: Kind::Folder }
    }

    fn file(key: &'static str, path: &Path) -> Self {
        Self { key, path: path.to_owned(), kind: Kind::File }
    }

    fn device(key: &'static str, path: &Path) -> Self {
        Self { key, path: path.to_owned(), kind: Kind::Device }
    }

    /// What is missing, and what to do.
    fn problem(&self) -> Option<(String, &'static str)> {
        let Self { path, kind, .. } = self;
        let (is_there, kind, fix) = match kind {
            Kind::Folder => {
                (path.is_dir(), "folder", "make it, or use --no-paths where it is only on the device")
            }
            Kind::File => {
                (path.is_file(), "file", "make it, or use --no-paths where it is only on the device")
            }
            Kind::Device => (
                path.exists(),
                "device",
                "plug the camera in, or use --no-paths where it is only on the device",
            ),
        };
        (!is_there).then(|| (format!("there is no {kind} {}", path.display()), fix))
    }
}

/// What the device would look for and not find, or not be able to use.
fn path_problems(raw: &RawDevice, look: Look) -> Vec<Problem> {
    let mut needed = Vec::new();
    if look == Look::Everywhere {
        match &raw.camera {
            Some(CameraSource::Folder(photos)) => needed.push(Needed::folder("camera", photos)),
            Some(CameraSource::Video(file)) => needed.push(Needed::file("camera", file)),
            Some(CameraSource::V4l2(device)) => needed.push(Needed::device("camera", device)),
            Some(CameraSource::Rpicam) | None => {}
        }
        for (key, path) in [
            ("password_file", &raw.password_file),
            ("certificate", &raw.certificate),
            ("key", &raw.key),
            ("exec", &raw.exec),
        ] {
            needed.extend(path.as_deref().map(|path| Needed::file(key, path)));
        }
    }
    for (key, path) in [
        ("model", &raw.model),
        ("codebook", &raw.codebook),
        ("ca", &raw.ca),
        ("webhook_token_file", &raw.webhook_token_file),
        ("webhook_ca", &raw.webhook_ca),
        ("network.wifi_password_file", &raw.network.wifi_password_file),
    ] {
        needed.extend(path.as_deref().map(|path| Needed::file(key, path)));
    }
    let mut problems = Vec::new();
    if let Some(bundle) = &raw.bundle {
        needed.push(Needed::folder("bundle", bundle));
        if bundle.is_dir() {
            let space = bundle.join("space.toml");
            problems.extend(space_problem(raw, &space));
            if raw.model.is_none() {
                needed.push(Needed::file("bundle", &bundle.join("query.onnx")));
            }
            if raw.codebook.is_none() && raw.codec == Some(Codec::Pq) {
                needed.push(Needed::file("bundle", &bundle.join("codebook.safetensors")));
            }
        }
    }
    for needed in needed {
        problems.extend(needed.problem().map(|(reason, fix)| raw.problem(needed.key, &reason, fix)));
    }
    problems
}

/// A device reads a bundle's `space.toml` before anything else of it. What stands in it is the embedder's to judge; that it
/// is there, and TOML, is seen here.
fn space_problem(raw: &RawDevice, path: &Path) -> Option<Problem> {
    if let Some((reason, fix)) = Needed::file("bundle", path).problem() {
        return Some(raw.problem("bundle", &reason, fix));
    }
    let text = read_bytes(path).and_then(|bytes| Ok(String::from_utf8(bytes)?));
    let error = match text.map(|text| text.parse::<toml::Table>()) {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error.message().to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let reason = format!("{} cannot be used: {error}", path.display());
    Some(raw.problem("bundle", &reason, "copy the bundle anew"))
}

/// How the device proves itself, without its secrets.
fn login(device: &Device) -> String {
    let password = device.security.password_file.is_some().then_some("by password");
    let certificate = device.security.identity.is_some().then_some("by certificate");
    let ways: Vec<&str> = password.into_iter().chain(certificate).collect();
    let tls = if device.server.is_tls() { ", over TLS" } else { "" };
    format!("{}{tls}", if ways.is_empty() { "none".to_owned() } else { ways.join(" and ") })
}

fn sharpness(min: f32) -> String {
    if min > 0.0 { format!("at least {min}") } else { "any: blurred photos are taken too".to_owned() }
}

/// What it does with an answer.
fn actions(device: &Device) -> String {
    let Actions { unknown_below, exec, webhook, led, led_unknown } = &device.actions;
    let told = [
        Some("printed".to_owned()),
        exec.as_ref().map(|exec| format!("given to {}", exec.display())),
        webhook.as_ref().map(|webhook| format!("posted to {}", shown_webhook(&webhook.url))),
        led.as_ref().map(|led| format!("a match lights {led}")),
        led_unknown.as_ref().map(|led| format!("what is unknown lights {led}")),
        unknown_below.map(|below| format!("unknown below {below}")),
    ];
    told.into_iter().flatten().collect::<Vec<String>>().join(", ")
}

/// What runs the network.
fn threads(device: &Device) -> String {
    let on = device.cores.as_ref().map_or_else(String::new, |cores| format!(", on the processors {cores}"));
    format!("{}{on}", device.threads)
}

/// The network, for the image.
fn network(network: &Network) -> String {
    let wifi = network.wifi_ssid.as_ref().map(|ssid| {
        let lock = if network.wifi_password_file.is_some() { "" } else { ", without a password" };
        format!("wireless {ssid}{lock}")
    });
    let address = network.address.map_or_else(|| "address by DHCP".to_owned(), |it| it.to_string());
    let gateway = network.gateway.map(|gateway| format!("by {gateway}"));
    let name = network.hostname.as_ref().map(|name| format!("called {}", name.as_str()));
    let list =
        |what: &str, names: Vec<String>| (!names.is_empty()).then(|| format!("{what} {}", names.join(" ")));
    let dns = list("names from", network.dns.iter().map(ToString::to_string).collect());
    let ntp = list("time from", network.ntp.iter().map(|host| host.as_str().to_owned()).collect());
    let parts = [wifi, Some(address), gateway, name, dns, ntp];
    parts.into_iter().flatten().collect::<Vec<String>>().join(", ")
}

/// What the device would work with, defaults filled in.
fn table(device: &Device) -> String {
    let path = |path: &Option<PathBuf>| {
        path.as_ref().map_or_else(|| "from the bundle".to_owned(), |path| path.display().to_string())
    };
    let rows = [
        ("device", device.name.as_ref().map_or("the host's name", |name| name.as_str()).to_owned()),
        ("group", device.group.as_ref().map_or("none", |group| group.as_str()).to_owned()),
        ("board", device.board.map_or("not named: its pins are not checked", Board::name).to_owned()),
        ("server", device.server.to_string()),
        ("camera", device.camera.to_string()),
        (
            "size",
            match device.camera_format.filter(|_| matches!(device.camera, CameraSource::V4l2(_))) {
                Some(format) => format!("{}, {format}", device.camera_size),
                None if device.camera.is_live() => device.camera_size.to_string(),
                None => "as it is".to_owned(),
            },
        ),
        ("trigger", device.trigger.to_string()),
        ("sharpness", sharpness(device.sharpness_min)),
        (
            "bundle",
            device.bundle.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string()),
        ),
        ("model", path(&device.model)),
        (
            "codebook",
            if device.codec == Codec::Pq { path(&device.codebook) } else { "not needed".to_owned() },
        ),
        ("codec", device.codec.name().to_owned()),
        ("top_k", device.top_k.to_string()),
        ("timeout", format!("{} s", device.timeout.as_secs_f64())),
        ("login", login(device)),
        (
            "state",
            device.updates.as_ref().map_or_else(
                || "none: no network is taken from the server".to_owned(),
                |updates| updates.state.display().to_string(),
            ),
        ),
        (
            "outbox",
            device.outbox.as_ref().map_or_else(
                || "in memory: what waits is lost when the device stops".to_owned(),
                |outbox| {
                    let Outbox { folder, megabytes, hours } = outbox;
                    format!("{}, at most {megabytes} MB and {hours} hours", folder.display())
                },
            ),
        ),
        ("actions", actions(device)),
        ("button", device.button.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)),
        (
            "link",
            device.queries_per_minute.map_or_else(
                || format!("silent for at most {} s, as many queries as photos", device.keep_alive),
                |count| {
                    format!("silent for at most {} s, at most {count} queries a minute", device.keep_alive)
                },
            ),
        ),
        ("threads", threads(device)),
        ("network", network(&device.network)),
        ("privacy", "no photo is kept or sent".to_owned()),
    ];
    rows.map(|(key, value)| format!("  {key:<9} {}\n", shown(&value))).concat()
}
