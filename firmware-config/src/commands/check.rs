//! `glimpse-firmware check`: all that is wrong with device files, before a device starts with them.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use glimpse_protocol::Codec;
use glimpse_protocol::device::{CameraSource, Device, RawDevice};

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
    let mut out = std::io::stdout().lock();
    for file in &args.files {
        match check(file, !args.no_paths) {
            Ok(device) => write!(out, "{}: good\n{}", file.display(), table(&device))?,
            Err(problems) => {
                status = ExitCode::FAILURE;
                problems.iter().for_each(|problem| eprintln!("{problem}"));
            }
        }
    }
    Ok(status)
}

/// The device that a file describes, or all that is wrong, a line each.
fn check(file: &Path, look: bool) -> Result<Device, Vec<String>> {
    let name = file.display();
    let text = read(file).map_err(|error| vec![format!("{error:#}")])?;
    let (raw, problems) = RawDevice::parse(&text, file.parent().unwrap_or(Path::new("")));
    let device = raw.validate(problems).map_err(|problems| {
        let line = |problem: &glimpse_protocol::device::Problem| match problem.line {
            Some(line) => format!("{name}:{line}: {}", problem.message),
            None => format!("{name}: {}", problem.message),
        };
        problems.0.iter().map(line).collect::<Vec<_>>()
    })?;
    let missing = if look { missing_paths(&device) } else { Vec::new() };
    if missing.is_empty() {
        Ok(device)
    } else {
        Err(missing.into_iter().map(|problem| format!("{name}: {problem}")).collect())
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", file.display());
    let opened = std::fs::File::open(file).with_context(context)?;
    ensure!(opened.metadata().with_context(context)?.is_file(), "{} is no file", file.display());
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(context)?;
    ensure!(
        bytes.len() as u64 <= FILE_BYTES_MAX,
        "{} is larger than {FILE_BYTES_MAX} bytes: is it a device file?",
        file.display()
    );
    String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("{} is no UTF-8 text: is it a device file?", file.display()))
}

/// What the device would look for and not find.
fn missing_paths(device: &Device) -> Vec<String> {
    let CameraSource::Folder(photos) = &device.camera;
    let mut needed: Vec<(&str, PathBuf, bool)> = vec![("camera", photos.clone(), true)];
    let in_bundle = |name: &str| device.bundle.as_ref().map(|bundle| bundle.join(name));
    if let Some(bundle) = &device.bundle {
        needed.push(("bundle", bundle.clone(), true));
    }
    let of_bundle = device.bundle.as_ref().is_some_and(|bundle| bundle.is_dir());
    match &device.model {
        Some(model) => needed.push(("model", model.clone(), false)),
        None if of_bundle => needed.extend(in_bundle("query.onnx").map(|path| ("bundle", path, false))),
        None => {}
    }
    match &device.codebook {
        Some(codebook) => needed.push(("codebook", codebook.clone(), false)),
        None if of_bundle && device.codec == Codec::Pq => {
            needed.extend(in_bundle("codebook.safetensors").map(|path| ("bundle", path, false)));
        }
        None => {}
    }
    let is_missing = |(_, path, folder): &(&str, PathBuf, bool)| {
        if *folder { !path.is_dir() } else { !path.is_file() }
    };
    let tell = |(key, path, folder): (&str, PathBuf, bool)| {
        let kind = if folder { "folder" } else { "file" };
        format!(
            "{key}: there is no {kind} {}: make it, or use --no-paths where it is only on the device",
            path.display()
        )
    };
    needed.into_iter().filter(is_missing).map(tell).collect()
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
    ];
    rows.map(|(key, value)| format!("  {key:<9} {value}\n")).concat()
}
