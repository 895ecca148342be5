//! `glimpse-firmware image`: an image for a board's card.
//!
//! Scripts of the builder do the work ([`crate::builder`]); here is what a person says, and what is wrong with it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use glimpse_protocol::device::Board;

use crate::builder::Builder;
use crate::commands::flash::device_files;
use crate::commands::init::board_parser;
use crate::output::{complain, say, shown};
use crate::update::{OperatorKey, write_update};

/// Flags of `glimpse-firmware image`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-firmware image --board raspberry-pi-4 --program glimpse-edge_0.1.0_arm64.deb --out card.img.xz
  glimpse-firmware image --board qemu-virt --program glimpse-edge_0.1.0_arm64.deb --device devices/door-1 --out door-1.img
  glimpse-firmware image --board raspberry-pi-4 --program glimpse-edge_0.2.0_arm64.deb --update --key gallery/access/model.key \
      --out update.glimpse")]
pub struct ImageArgs {
    /// The board that it is for
    #[arg(long, value_name = "BOARD", value_parser = board_parser())]
    pub board: Board,
    /// Package of glimpse-edge for 64 bits, which `make edge-arm` makes
    #[arg(long, value_name = "DEB")]
    pub program: PathBuf,
    /// The image to write; .zst and .xz compress it
    #[arg(long, value_name = "IMAGE")]
    pub out: PathBuf,
    /// A device's folder of `provision`, whose files the card gets: for one device alone [default: `flash --device` adds them]
    #[arg(long, value_name = "DIR")]
    pub device: Option<PathBuf>,
    /// Debian's packages by name, version and checksum, as an earlier image left them in IMAGE.packages [default: those of the last
    /// image, or of the archive]
    #[arg(long, value_name = "FILE", conflicts_with = "refresh")]
    pub packages: Option<PathBuf>,
    /// Looks for newer packages in Debian's archive
    #[arg(long)]
    pub refresh: bool,
    /// Makes a program update for devices with such a card, in place of a card
    #[arg(long, requires = "key", conflicts_with = "device")]
    pub update: bool,
    /// The key that signs updates: the file of `glimpse-gallery models key`, in the gallery's folder `access`
    #[arg(long, value_name = "FILE", requires = "update")]
    pub key: Option<PathBuf>,
    /// Whether to replace a file that is there
    #[arg(long)]
    pub force: bool,
}

/// What starts a board, and with which options.
fn family(board: Board) -> (&'static str, &'static str) {
    match board {
        Board::GenericUefi => ("uefi", ""),
        // The kernel's camera for tests.
        Board::QemuVirt => ("uefi", "modules_load=vivid"),
        Board::RaspberryPi3 | Board::RaspberryPi4 | Board::RaspberryPi5 | Board::RaspberryPiZero2W => {
            ("raspberry-pi", "")
        }
    }
}

/// Makes an image.
///
/// # Errors
/// What is wrong with the arguments, before anything is made; then why it cannot be made here.
pub fn run(args: &ImageArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    ensure!(
        args.force || !args.out.exists(),
        "{} is there already: give --force to replace it",
        args.out.display()
    );
    ensure!(
        args.program.is_file(),
        "there is no {}: `make edge-arm` makes target/edge/glimpse-edge_VERSION_arm64.deb",
        args.program.display()
    );
    if let Some(device) = &args.device {
        device_files(device)?;
    }
    let of = args.out.parent().filter(|of| !of.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(of.is_dir(), "there is no folder {}", of.display());
    if let Some(key) = &args.key {
        // What would fail at the end is told at the beginning.
        OperatorKey::read(key)?;
    }
    let (family, options) = family(args.board);
    let builder = Builder::new()?;
    let packages = args.packages.as_deref().map(absolute).transpose()?;
    let mut arguments = vec![OsStr::new(family)];
    arguments.extend(packages.as_deref().map(Path::as_os_str));
    let refresh = OsStr::new(if args.refresh { "1" } else { "" });
    let base = builder.run("firmware-config/image/base.sh", &arguments, &[("REFRESH", refresh)])?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let device = args.device.as_deref().unwrap_or(folder.path());
    // Of an update, the parts come first.
    let made = if args.update { folder.path() } else { args.out.as_path() };
    let arguments: [&OsStr; 6] = [
        family.as_ref(),
        base.as_ref(),
        args.program.as_ref(),
        device.as_ref(),
        options.as_ref(),
        made.as_ref(),
    ];
    let update = OsStr::new(if args.update { "1" } else { "" });
    builder.run("firmware-config/image/assemble.sh", &arguments, &[("UPDATE", update)])?;
    if let Some(key) = &args.key {
        write_update(folder.path(), &OperatorKey::read(key)?, &args.out)?;
    }
    let mut list = args.out.clone().into_os_string();
    list.push(".packages");
    std::fs::copy(base.join("packages"), &list).context("cannot write the list of packages")?;
    let bytes = std::fs::metadata(&args.out).context("the image is not there")?.len();
    complain(&format!("{} MB in {} s", bytes.div_ceil(1_000_000), begun.elapsed().as_secs()));
    say(&format!("{}\n", shown(&args.out.display().to_string())))?;
    Ok(ExitCode::SUCCESS)
}

fn absolute(file: &Path) -> anyhow::Result<PathBuf> {
    match std::fs::canonicalize(file) {
        Ok(file) => Ok(file),
        Err(error) => bail!("cannot read {}: {error}", file.display()),
    }
}
