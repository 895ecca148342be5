//! `glimpse-firmware check`: all that is wrong with device files, before a device starts with them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use glimpse_protocol::Codec;
use glimpse_protocol::device::{Actions, CameraSource, Device, Outbox, Problem, RawDevice};

use crate::output::{complain, say, shown};
use crate::template::shown_webhook;

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
}

/// Checks every file; status 1 where one has problems.
///
/// # Errors
/// Output that cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for file in &args.files {
        match check(file, !args.no_paths) {
            Ok(device) => say(&format!("{}: good\n{}", shown(&file.display().to_string()), table(&device)))?,
            Err(problems) => {
                status = ExitCode::FAILURE;
                problems.iter().for_each(|problem| complain(problem));
            }
        }
    }
    Ok(status)
}

/// The device that a file describes, or all that is wrong, a line each.
fn check(file: &Path, look: bool) -> Result<Device, Vec<String>> {
    let name = file.display();
    let text = read(file).map_err(|error| vec![format!("{error:#}")])?;
    let (raw, mut problems) = RawDevice::parse(&text, file.parent().unwrap_or(Path::new("")));
    if look {
        problems.extend(path_problems(&raw));
    }
    raw.validate(problems).map_err(|mut problems| {
        // What is missing has no line, and comes last.
        problems.0.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        let line = |problem: &Problem| match problem.line {
            Some(line) => format!("{name}:{line}: {}", problem.message),
            None => format!("{name}: {}", problem.message),
        };
        problems.0.iter().map(line).collect()
    })
}

/// Reads a regular file of at most [`FILE_BYTES_MAX`]. What it is gets asked before it is opened: opening a pipe would wait
/// for its other end.
fn read(file: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", file.display());
    let metadata = std::fs::metadata(file).with_context(context)?;
    ensure!(metadata.is_file(), "{} is no file", file.display());
    let opened = std::fs::File::open(file).with_context(context)?;
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(context)?;
    ensure!(
        bytes.len() as u64 <= FILE_BYTES_MAX,
        "{} is larger than {FILE_BYTES_MAX} bytes: is it the right file?",
        file.display()
    );
    String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("{} is no UTF-8 text: is it the right file?", file.display()))
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

    fn problem(&self) -> Option<String> {
        let Self { key, path, kind } = self;
        let (is_there, kind, way) = match kind {
            Kind::Folder => (path.is_dir(), "folder", "make it"),
            Kind::File => (path.is_file(), "file", "make it"),
            Kind::Device => (path.exists(), "device", "plug the camera in"),
        };
        (!is_there).then(|| {
            format!(
                "{key}: there is no {kind} {}: {way}, or use --no-paths where it is only on the device",
                path.display()
            )
        })
    }
}

/// What the device would look for and not find, or not be able to use.
fn path_problems(raw: &RawDevice) -> Vec<Problem> {
    let mut needed = Vec::new();
    match &raw.camera {
        Some(CameraSource::Folder(photos)) => needed.push(Needed::folder("camera", photos)),
        Some(CameraSource::Video(file)) => needed.push(Needed::file("camera", file)),
        Some(CameraSource::V4l2(device)) => needed.push(Needed::device("camera", device)),
        Some(CameraSource::Rpicam) | None => {}
    }
    needed.extend(raw.model.as_deref().map(|model| Needed::file("model", model)));
    needed.extend(raw.codebook.as_deref().map(|codebook| Needed::file("codebook", codebook)));
    for (key, path) in [
        ("password_file", &raw.password_file),
        ("ca", &raw.ca),
        ("certificate", &raw.certificate),
        ("key", &raw.key),
        ("exec", &raw.exec),
        ("webhook_token_file", &raw.webhook_token_file),
        ("webhook_ca", &raw.webhook_ca),
    ] {
        needed.extend(path.as_deref().map(|path| Needed::file(key, path)));
    }
    let mut messages: Vec<(&str, String)> = Vec::new();
    if let Some(bundle) = &raw.bundle {
        needed.push(Needed::folder("bundle", bundle));
        if bundle.is_dir() {
            let space = bundle.join("space.toml");
            messages.extend(space_problem(&space).map(|message| ("bundle", message)));
            if raw.model.is_none() {
                needed.push(Needed::file("bundle", &bundle.join("query.onnx")));
            }
            if raw.codebook.is_none() && raw.codec == Some(Codec::Pq) {
                needed.push(Needed::file("bundle", &bundle.join("codebook.safetensors")));
            }
        }
    }
    messages.extend(needed.iter().filter_map(|needed| Some((needed.key, needed.problem()?))));
    messages.into_iter().map(|(key, message)| Problem { line: raw.line(key), message }).collect()
}

/// A device reads a bundle's `space.toml` before anything else of it. What stands in it is the embedder's to judge; that it
/// is there, and TOML, is seen here.
fn space_problem(path: &Path) -> Option<String> {
    if let Some(missing) = Needed::file("bundle", path).problem() {
        return Some(missing);
    }
    match read(path).and_then(|text| Ok(text.parse::<toml::Table>()?)) {
        Ok(_) => None,
        Err(error) => Some(format!("bundle: {} cannot be used: {error:#}", path.display())),
    }
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

/// What the device would work with, defaults filled in.
fn table(device: &Device) -> String {
    let path = |path: &Option<PathBuf>| {
        path.as_ref().map_or_else(|| "from the bundle".to_owned(), |path| path.display().to_string())
    };
    let rows = [
        ("device", device.name.as_ref().map_or("the host's name", |name| name.as_str()).to_owned()),
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
    ];
    rows.map(|(key, value)| format!("  {key:<9} {}\n", shown(&value))).concat()
}
