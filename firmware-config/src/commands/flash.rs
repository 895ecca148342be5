//! `glimpse-firmware flash`: an image onto a card, read back, with what makes it this device.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::check::{Look, device_of};
use super::disks::size;
use crate::card::{self, Card, CardError, Watch, Written};
use crate::disks::{self, Disk, Refusal};
use crate::output::{complain, say, shown};
use crate::packed::Image;
use crate::partition::{Files, files_of, put};
use crate::prompt::{Prompt, Question};

/// The status of a program that Ctrl-C ended, as shells have it.
const STOPPED: u8 = 130;

/// How often the progress is drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(100);

/// Flags of `glimpse-firmware flash`.
#[derive(Debug, Args)]
#[command(after_help = "\
A disk that is mounted, that this computer runs from, or that is not made to be taken out is refused.

Examples:
  glimpse-firmware disks
  glimpse-firmware flash glimpse-generic-uefi.img.zst /dev/sdb --device devices/door-1
  for device in devices/*; do glimpse-firmware flash glimpse.img.zst /dev/sdb --device \"$device\"; done")]
pub struct FlashArgs {
    /// The image: raw, or packed by zstd, xz or gzip
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// The card, as `glimpse-firmware disks` lists it, or a file that is made
    #[arg(value_name = "CARD")]
    pub card: PathBuf,
    /// The device that it becomes: its folder, as `glimpse-firmware provision` makes it
    #[arg(long, value_name = "DIR")]
    pub device: Option<PathBuf>,
    /// Does not ask whether the card may be overwritten
    #[arg(long)]
    pub yes: bool,
    /// The serial number of a disk that is built in, and is meant
    #[arg(long, value_name = "SERIAL")]
    pub serial: Option<String>,
    /// Where the card is a file that is there already: replaces it
    #[arg(long)]
    pub replace: bool,
    /// Does not read the card back
    #[arg(long)]
    pub no_verify: bool,
}

/// Writes, reads back, and puts the device's files there.
///
/// # Errors
/// An image, device or card that cannot be used; a card that is not as the image is.
pub fn run(args: &FlashArgs) -> anyhow::Result<ExitCode> {
    let files = args.device.as_deref().map(device_files).transpose()?;
    let image = Image::open(&args.image)?;
    let Some(mut card) = open(args, &image)? else {
        complain("nothing was written");
        return Ok(ExitCode::FAILURE);
    };
    let watch = Arc::new(Watch::default());
    let stops = Arc::clone(&watch);
    // A second Ctrl-C ends the program as any other.
    stop_on_signals(stops).context("cannot wait for Ctrl-C")?;
    match flash(args, image, &mut card, &watch, files.as_ref()) {
        Ok(took) => {
            let device = args
                .device
                .as_ref()
                .map_or(String::new(), |folder| format!(", for the device of {}", folder.display()));
            let (bytes, seconds) = (watch.done.load(Ordering::Relaxed), took.as_secs_f64().max(1e-3));
            say(&format!(
                "{}: {} written{} in {seconds:.0} s{}; it can be taken out\n",
                shown(&args.card.display().to_string()),
                size(bytes),
                if args.no_verify { "" } else { " and read back" },
                shown(&device)
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            complain(&format!("error: {error:#}"));
            let is_stopped = matches!(error.downcast_ref(), Some(CardError::Stopped(_)));
            Ok(if is_stopped { ExitCode::from(STOPPED) } else { ExitCode::FAILURE })
        }
    }
}

fn flash(
    args: &FlashArgs,
    image: Image,
    card: &mut Card,
    watch: &Watch,
    files: Option<&Files>,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let (file_bytes, taken) = (image.file_bytes, Arc::clone(&image.taken));
    let bar = bar("writing", file_bytes);
    let written: Written =
        shown_while(&bar, || taken.load(Ordering::Relaxed), || card::write(image, card, watch))?;
    if !args.no_verify {
        let bar = self::bar("reading back", written.bytes);
        shown_while(&bar, || watch.done.load(Ordering::Relaxed), || card::verify(card, &written, watch))?;
    }
    if let Some(files) = files {
        put(card, files)?;
    }
    card.file.sync_all().with_context(|| format!("cannot write to {}", card.path.display()))?;
    watch.done.store(written.bytes, Ordering::Relaxed);
    Ok(start.elapsed())
}

fn bar(what: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:12} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    ProgressBar::new(length)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(what.to_owned())
}

/// Does `work`, and draws meanwhile what `done` says.
fn shown_while<T>(bar: &ProgressBar, done: impl Fn() -> u64 + Sync, work: impl FnOnce() -> T) -> T {
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let drawing = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                bar.set_position(done());
                std::thread::park_timeout(DRAWN_EVERY);
            }
        });
        let result = work();
        ended.store(true, Ordering::Relaxed);
        drawing.thread().unpark();
        bar.finish_and_clear();
        result
    })
}

#[cfg(unix)]
fn stop_on_signals(watch: Arc<Watch>) -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if watch.stop.swap(true, Ordering::Relaxed) {
                // Asked twice: at once.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    })?;
    Ok(())
}

#[cfg(not(unix))]
fn stop_on_signals(_watch: Arc<Watch>) -> io::Result<()> {
    Ok(())
}

/// What goes onto the card beside the image; `device.toml` is checked as `check` does it.
pub(super) fn device_files(folder: &Path) -> anyhow::Result<Files> {
    let file = folder.join("device.toml");
    if let Err(wrong) = device_of(&file, Look::Nowhere) {
        wrong.tell(&file);
        bail!("{} has to be good first", file.display());
    }
    files_of(folder)
}

/// Opens the card, once it is sure that it is meant; `None` where it is not.
fn open(args: &FlashArgs, image: &Image) -> anyhow::Result<Option<Card>> {
    let path = &args.card;
    let name = path.display();
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => bail!("{name} is a folder: name a disk, or a file"),
        #[cfg(target_os = "linux")]
        Ok(metadata) if std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type()) => {
            open_disk(args, image, &metadata)
        }
        Ok(metadata) if metadata.is_file() => {
            ensure!(!same(&args.image, path), "{name} is the image itself");
            ensure!(args.replace, "{name} is there already: --replace writes over it");
            let file = OpenOptions::new().read(true).write(true).open(path);
            let file = file.with_context(|| format!("cannot write to {name}"))?;
            file.set_len(0).with_context(|| format!("cannot write to {name}"))?;
            Ok(Some(Card { path: path.clone(), file, bytes: None }))
        }
        Ok(_) => bail!("{name} is neither a disk nor a file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ensure!(
                !path.starts_with("/dev"),
                "there is no {name}: is the card in its reader? `glimpse-firmware disks` lists them"
            );
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
            Ok(Some(Card {
                path: path.clone(),
                file: file.with_context(|| format!("cannot make {name}"))?,
                bytes: None,
            }))
        }
        Err(error) => Err(error).with_context(|| format!("cannot look at {name}")),
    }
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(target_os = "linux")]
fn open_disk(args: &FlashArgs, image: &Image, metadata: &std::fs::Metadata) -> anyhow::Result<Option<Card>> {
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let name = args.card.display();
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let link = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"));
    let link = link.with_context(|| format!("the system does not know {name}"))?;
    let kernels = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let disk = disks::find(Path::new("/"), kernels).map_err(anyhow::Error::msg)?;
    match (disk.refusal(), &args.serial) {
        (Some(Refusal::NotRemovable(Some(serial))), Some(typed)) if *typed == serial => {}
        (Some(refusal), _) => bail!("{name}, {}, is not written to: {refusal}", described(&disk)),
        (None, Some(typed)) if disk.serial.as_ref() != Some(typed) => {
            bail!(
                "{name}, {}, has another serial number than {typed}: is it the right one?",
                described(&disk)
            );
        }
        (None, _) => {}
    }
    if let Some(bytes) = image.bytes.filter(|bytes| *bytes > disk.bytes) {
        bail!("the image has {}, and {name} has {}: take a larger card", size(bytes), size(disk.bytes));
    }
    if !args.yes && !confirmed(args, &disk)? {
        return Ok(None);
    }
    // Nobody mounts it meanwhile, and it is nobody's now.
    let flags = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let file = File::options().read(true).write(true).custom_flags(flags).open(&args.card);
    let advice = || format!("cannot write to {name}: is it mounted, or may only root write to it (sudo)?");
    Ok(Some(Card { path: args.card.clone(), file: file.with_context(advice)?, bytes: Some(disk.bytes) }))
}

fn described(disk: &Disk) -> String {
    let model = disk.model.as_deref().unwrap_or("no model named");
    format!("{} ({})", shown(model), size(disk.bytes))
}

fn confirmed(args: &FlashArgs, disk: &Disk) -> anyhow::Result<bool> {
    ensure!(
        io::stdin().is_terminal(),
        "nobody is here to ask whether {} may be overwritten: --yes says so",
        args.card.display()
    );
    let mut prompt = Prompt::new(io::stdin().lock(), io::stderr());
    prompt.say(&format!("{}: {}. All that is on it is lost.", args.card.display(), described(disk)))?;
    let question = Question {
        text: "Write to it (yes or no)",
        default: "no",
        about: "It is overwritten from its first byte on.",
    };
    prompt.ask(question, |answer| match answer {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("yes or no".to_owned()),
    })
}
