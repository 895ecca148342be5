//! `glimpse-firmware boot`: an image as a board that is emulated, so that anyone can try a device without one.
//!
//! It is QEMU's board `virt` with a Raspberry Pi 4's processor, UEFI, and the host at 10.0.2.2. The image stays as it is, unless its
//! changes are asked for. What the board says on its serial line goes to standard output.

use std::ffi::OsStr;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::builder::Builder;
use crate::output::complain;

/// Flags of `glimpse-firmware boot`.
#[derive(Debug, Args)]
#[command(after_help = "\
The enter key presses the board's button (gpiochip0:3); `q` and enter, or Ctrl-C, pulls the plug.

Examples:
  glimpse-firmware boot door-1.img
  glimpse-firmware boot door-1.img --persist --card-mb 2000")]
pub struct BootArgs {
    /// The image, not compressed, of the board qemu-virt or generic-uefi
    pub image: PathBuf,
    /// Writes what the board changes into the image
    #[arg(long)]
    pub persist: bool,
    /// Makes the card larger than the image first, as real ones are
    #[arg(long, value_name = "MB", requires = "persist")]
    pub card_mb: Option<u64>,
    /// Ends after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// The emulator [default: Debian's qemu, unpacked below ~/.cache/glimpse]
    #[arg(long, value_name = "PROGRAM")]
    pub emulator: Option<PathBuf>,
    /// The board's firmware [default: Debian's QEMU_EFI.fd]
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
}

/// How often the emulator is looked after.
const LOOK: Duration = Duration::from_millis(100);

/// Starts an image, and stays until it ends.
///
/// # Errors
/// An image that is none, or an emulator that cannot be had.
pub fn run(args: &BootArgs) -> anyhow::Result<ExitCode> {
    is_card(&args.image)?;
    if let Some(megabytes) = args.card_mb {
        enlarge(&args.image, megabytes * 1_000_000)?;
    }
    let builder = Builder::new()?;
    let emulator = match &args.emulator {
        Some(program) => program.clone(),
        None => builder.run("tools/arm/qemu-system.sh", &[], &[])?.join("qemu-system-aarch64"),
    };
    let firmware = match &args.firmware {
        Some(file) => file.clone(),
        None => builder
            .run("firmware-config/image/tools.sh", &[], &[])?
            .join("../share/qemu-efi-aarch64/QEMU_EFI.fd"),
    };
    // Of a short name, for sockets bear no long ones.
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let monitor = folder.path().join("monitor");
    let mut board = Command::new(&emulator);
    board.args(arguments(&args.image, &firmware, &monitor, args.persist)).stdin(Stdio::null());
    let mut board = board.spawn().with_context(|| format!("cannot start {}", emulator.display()))?;
    let (send, keys) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = board.try_wait().context("cannot wait for the emulator")? {
            break status;
        }
        let is_over = args.seconds.is_some_and(|seconds| begun.elapsed() >= Duration::from_secs(seconds));
        let key = keys.try_recv().ok();
        if is_over || key.as_deref().map(str::trim) == Some("q") {
            return pull_the_plug(&mut board);
        }
        if key.is_some() {
            press(&monitor).context("the button cannot be pressed")?;
            complain("the button is pressed");
        }
        std::thread::sleep(LOOK);
    };
    ensure!(status.success(), "the emulator ended with {status}");
    Ok(ExitCode::SUCCESS)
}

/// Tells the emulator's monitor to press the button, and to let it go.
#[cfg(unix)]
fn press(monitor: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    std::os::unix::net::UnixStream::connect(monitor)?.write_all(b"system_powerdown\n")
}

#[cfg(not(unix))]
fn press(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Ends the emulator at once.
fn pull_the_plug(board: &mut Child) -> anyhow::Result<ExitCode> {
    board.kill().and_then(|()| board.wait().map(|_| ())).context("cannot end the emulator")?;
    Ok(ExitCode::SUCCESS)
}

/// The emulator's, for an image.
fn arguments(image: &Path, firmware: &Path, monitor: &Path, persist: bool) -> Vec<std::ffi::OsString> {
    // A comma in a path is written twice.
    let written = |path: &Path| path.display().to_string().replace(',', ",,");
    let path = written(image);
    let snapshot = if persist { "off" } else { "on" };
    let drive = format!("if=none,id=card,format=raw,snapshot={snapshot},cache=writethrough,file={path}");
    // Without ACPI, or a press of the button would not come through its line.
    let fixed = [
        "-M",
        "virt,acpi=off",
        "-cpu",
        "cortex-a72",
        "-smp",
        "2",
        "-m",
        "1024",
        "-nodefaults",
        "-display",
        "none",
        "-device",
        "virtio-blk-pci,drive=card,bootindex=1",
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
        "-device",
        "virtio-rng-pci",
        "-device",
        "i6300esb",
        "-serial",
        "stdio",
        "-bios",
    ];
    let mut arguments: Vec<std::ffi::OsString> =
        fixed.iter().map(|word| OsStr::new(word).to_owned()).collect();
    arguments.extend([firmware.as_os_str().to_owned(), "-drive".into(), drive.into()]);
    arguments.extend(["-monitor".into(), format!("unix:{},server=on,wait=off", written(monitor)).into()]);
    arguments
}

/// Whether a file has a table of partitions, as an image for UEFI has.
fn is_card(image: &Path) -> anyhow::Result<()> {
    use std::io::Read as _;
    let mut head = [0; 520];
    let mut file = std::fs::File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
    let is_whole = file.read_exact(&mut head).is_ok();
    let is_packed = [&b"\x28\xb5\x2f\xfd"[..], b"\xfd7zXZ"].iter().any(|magic| head.starts_with(magic));
    ensure!(!is_packed, "{} is compressed: unpack it first, by `zstd -d` or `xz -d`", image.display());
    ensure!(
        is_whole && head.ends_with(b"EFI PART"),
        "{} is no image for UEFI: only those of the boards qemu-virt and generic-uefi can be started here",
        image.display()
    );
    Ok(())
}

/// Makes a card of so many bytes.
fn enlarge(image: &Path, bytes: u64) -> anyhow::Result<()> {
    let name = image.display();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(image)
        .with_context(|| format!("cannot write {name}"))?;
    let now = file.metadata().with_context(|| format!("cannot read {name}"))?.len();
    ensure!(bytes >= now, "{name} has {} MB: --card-mb cannot be less", now.div_ceil(1_000_000));
    file.set_len(bytes / 512 * 512).with_context(|| format!("cannot write {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_started_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("card.img");
        for (content, expected) in [
            (&b"\xfd7zXZ\0"[..], "is compressed"),
            (b"\x28\xb5\x2f\xfd.", "is compressed"),
            (&[0; 600][..], "no image for UEFI"),
            (b"", "no image for UEFI"),
        ] {
            std::fs::write(&file, content).unwrap();
            let error = is_card(&file).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let mut card = vec![0; 1024];
        card[512..520].copy_from_slice(b"EFI PART");
        std::fs::write(&file, &card).unwrap();
        is_card(&file).unwrap();
        enlarge(&file, 1_000_000).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 999_936);
        assert!(enlarge(&file, 1000).unwrap_err().to_string().contains("cannot be less"));
    }

    #[test]
    fn the_image_stays_as_it_is_unless_its_changes_are_wanted() {
        let words = |persist| {
            arguments(Path::new("a,b.img"), Path::new("fd"), Path::new("m"), persist).join(OsStr::new(" "))
        };
        assert!(words(false).to_str().unwrap().contains("snapshot=on,cache=writethrough,file=a,,b.img"));
        assert!(words(true).to_str().unwrap().contains("snapshot=off"));
    }
}
