//! `remove`: images out of a gallery, also one that is being served.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use super::{GalleryFolder, write_line};
use crate::store::{Reader, Store};

/// Ids in one commit: a commit is as long in other writers' way as it takes.
const BATCH: usize = 4096;

/// The longest list of ids that is read, in bytes: some ten million.
const LIST_BYTES_MAX: u64 = 1 << 30;

/// Arguments of `remove`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery remove vase.jpg --gallery gallery
  glimpse-gallery remove --label 'vase, blue' --gallery gallery
  glimpse-gallery list --gallery gallery | grep ^old/ | glimpse-gallery remove --from - --gallery gallery

When the command has ended the images are gone from the disk, and a server of the gallery stops showing them within a second.
Their photos stay where they are. The command fails when none of what was named is there.")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct RemoveArgs {
    /// Images to remove
    #[arg(value_name = "ID", group = "what")]
    ids: Vec<String>,
    #[command(flatten)]
    folder: GalleryFolder,
    /// Remove all images with one of these labels
    #[arg(long, value_name = "TEXT", group = "what")]
    label: Vec<String>,
    /// Remove the images that a file lists, one id a line; what follows a tab is passed over. `-` is standard input
    #[arg(long, value_name = "FILE", group = "what")]
    from: Option<PathBuf>,
}

impl RemoveArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut ids = self.ids.clone();
        if let Some(file) = &self.from {
            ids.extend(listed(file)?);
        }
        if !self.label.is_empty() {
            Reader::open(&self.folder.gallery)?.now()?.images(|image| {
                if self.label.contains(&image.label) {
                    ids.push(image.id);
                }
                true
            })?;
        }
        ids.sort_unstable();
        ids.dedup();
        let mut store = Store::open_existing(&self.folder.gallery)?;
        let mut removed = 0;
        for batch in ids.chunks(BATCH) {
            removed += store.remove(batch.iter().map(String::as_str))?;
        }
        let absent = ids.len() - removed;
        write_line(format_args!("removed {removed}, not there {absent}"))?;
        if removed == 0 {
            bail!("there is no such image: `list` shows those that there are");
        }
        Ok(())
    }
}

fn listed(file: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let source: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
    };
    let mut text = String::new();
    let read = source.take(LIST_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(read as u64 <= LIST_BYTES_MAX, "{} is too long: split it", file.display());
    let id = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    Ok(text.lines().map(id).filter(|id| !id.is_empty()).collect())
}
