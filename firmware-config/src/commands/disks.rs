//! `glimpse-firmware disks`: the disks here, and which of them a card is.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::disks::{Disk, disks};
use crate::output::{say, shown};

/// Flags of `glimpse-firmware disks`.
#[derive(Debug, Args)]
pub struct DisksArgs {
    /// Prints one JSON object: {"disks": [{"path", "model", "serial", "bytes", "removable", "refused"}]}
    #[arg(long)]
    pub json: bool,
}

/// Lists the disks.
///
/// # Errors
/// A system that does not tell of them, and output that cannot be written.
pub fn run(args: &DisksArgs) -> anyhow::Result<ExitCode> {
    let disks = disks(Path::new("/"))
        .context("this system does not tell of its disks (/sys/block): it has to be Linux")?;
    if args.json {
        let disks: Vec<_> = disks.iter().map(object).collect();
        say(&format!("{}\n", json!({ "disks": disks })))?;
    } else {
        say(&table(&disks))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn object(disk: &Disk) -> serde_json::Value {
    json!({
        "path": disk.path(),
        "model": disk.model,
        "serial": disk.serial,
        "bytes": disk.bytes,
        "removable": disk.is_removable,
        "refused": disk.refusal().map(|refusal| refusal.to_string()),
    })
}

fn table(disks: &[Disk]) -> String {
    let mut out = format!("{:<14} {:>10}  {:<28} {}\n", "disk", "size", "model", "for `flash`");
    for disk in disks {
        let refused = disk.refusal().map_or_else(|| "yes".to_owned(), |refusal| format!("no: {refusal}"));
        let model = disk.model.as_deref().unwrap_or("-");
        out.push_str(&format!(
            "{:<14} {:>10}  {:<28} {}\n",
            shown(&disk.path().display().to_string()),
            size(disk.bytes),
            shown(model),
            shown(&refused)
        ));
    }
    if disks.is_empty() {
        out.push_str("none\n");
    }
    out
}

/// As it is printed on cards: in thousands of thousands.
pub(super) fn size(bytes: u64) -> String {
    if bytes >= 1_000_000_000 {
        format!("{:.1} GB", bytes as f64 / 1e9)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}
