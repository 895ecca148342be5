//! The partition of a card that any computer can read, and files that are put there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use fatfs::{Dir, FileSystem, FsOptions};

use crate::card::{Card, forget};

/// The name of the partition with the configuration.
pub const LABEL: &str = "GLIMPSE";

/// Bytes of a sector, as an MBR counts.
const SECTOR: u64 = 512;

/// The most that a device's folder may hold: networks are the largest of it.
const FOLDER_BYTES_MAX: u64 = 512 << 20;

/// How deep folders may lie.
const DEPTH_MAX: usize = 8;

/// The MBR's type of a disk that has a GPT.
const PROTECTIVE: u8 = 0xee;

/// Files with their paths, parts divided by `/`.
pub type Files = BTreeMap<String, Vec<u8>>;

/// All files of a folder.
///
/// # Errors
/// What cannot be read, is no file, or has a name that FAT does not know.
pub fn files_of(folder: &Path) -> anyhow::Result<Files> {
    let mut files = Files::new();
    let mut left = FOLDER_BYTES_MAX;
    collect(folder, "", 0, &mut left, &mut files)?;
    let mut lower = BTreeMap::new();
    for path in files.keys() {
        if let Some(other) = lower.insert(path.to_lowercase(), path) {
            bail!("{}: {other} and {path} are one name to a card's partition", folder.display());
        }
    }
    Ok(files)
}

fn collect(
    folder: &Path,
    above: &str,
    depth: usize,
    left: &mut u64,
    files: &mut Files,
) -> anyhow::Result<()> {
    ensure!(depth <= DEPTH_MAX, "{} has folders more than {DEPTH_MAX} deep", folder.display());
    let cannot = |path: &Path| format!("cannot read {}", path.display());
    for entry in std::fs::read_dir(folder).with_context(|| cannot(folder))? {
        let path = entry.with_context(|| cannot(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| is_fat_name(name)) else {
            bail!(
                "{}: a card's partition has no such names: letters, digits, '-', '_' and '.' are sure",
                path.display()
            );
        };
        let below = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        let metadata = std::fs::metadata(&path).with_context(|| cannot(&path))?;
        if metadata.is_dir() {
            collect(&path, &below, depth + 1, left, files)?;
            continue;
        }
        ensure!(metadata.is_file(), "{} is neither a file nor a folder", path.display());
        *left = left.checked_sub(metadata.len()).with_context(|| {
            format!(
                "{} holds more than {} MB, which is no device's folder",
                folder.display(),
                FOLDER_BYTES_MAX >> 20
            )
        })?;
        files.insert(below, std::fs::read(&path).with_context(|| cannot(&path))?);
    }
    Ok(())
}

/// Whether every computer takes it as the name of a file on FAT.
fn is_fat_name(name: &str) -> bool {
    let is_bad = |character: char| character.is_control() || "\"*/:<>?\\|".contains(character);
    name.len() <= 255 && !name.is_empty() && !name.ends_with(['.', ' ']) && !name.chars().any(is_bad)
}

/// Puts files into the card's partition for them, over those of the same names, and reads them back.
///
/// # Errors
/// A card without such a partition, or with too little room, or that does not hold what was written.
pub fn put(card: &mut Card, files: &Files) -> anyhow::Result<()> {
    let place = find(&mut card.file)
        .with_context(|| format!("{} was written, but nothing was put there", card.path.display()))?;
    let cannot = || format!("cannot write into the partition {LABEL} of {}", card.path.display());
    {
        let system = open(&card.file, place).with_context(cannot)?;
        let needed: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
        let stats = system.stats().with_context(cannot)?;
        // Each file ends within a cluster, and each folder has one.
        let cluster = u64::from(stats.cluster_size());
        let free = u64::from(stats.free_clusters()) * cluster;
        ensure!(
            needed + 2 * cluster * files.len() as u64 <= free,
            "the partition {LABEL} has {:.1} MB left, and the device's files have {:.1} MB",
            free as f64 / 1e6,
            needed as f64 / 1e6
        );
        for (path, bytes) in files {
            write_file(&system.root_dir(), path, bytes)
                .with_context(|| format!("cannot write {path} to the partition {LABEL}"))?;
        }
        system.unmount().with_context(cannot)?;
    }
    forget(&card.file).with_context(cannot)?;
    let system = open(&card.file, place).with_context(cannot)?;
    for (path, wanted) in files {
        let mut found = Vec::new();
        let read = system
            .root_dir()
            .open_file(path)
            .and_then(|file| file.take(wanted.len() as u64 + 1).read_to_end(&mut found));
        read.with_context(|| format!("cannot read {path} back from the partition {LABEL}"))?;
        ensure!(
            found == *wanted,
            "{path} in the partition {LABEL} is not what was written: the card is broken, or its reader"
        );
    }
    Ok(())
}

fn write_file(root: &Dir<'_, Window<'_>>, path: &str, bytes: &[u8]) -> io::Result<()> {
    if let Some((folders, _)) = path.rsplit_once('/') {
        let mut at = String::new();
        for folder in folders.split('/') {
            at.push_str(folder);
            root.create_dir(&at)?;
            at.push('/');
        }
    }
    let mut file = root.create_file(path)?;
    file.truncate()?;
    file.write_all(bytes)?;
    file.flush()
}

/// Where a partition begins, and how long it is, in bytes.
type Place = (u64, u64);

/// The partition with the configuration: the one of that name, or else the only one with a FAT.
fn find(file: &mut File) -> anyhow::Result<Place> {
    let places = places(file).context("cannot read the partition table")?;
    let mut fats = Vec::new();
    for place in places {
        if let Ok(system) = open(file, place) {
            if system.volume_label().trim() == LABEL {
                return Ok(place);
            }
            fats.push(place);
        }
    }
    match fats[..] {
        [only] => Ok(only),
        [] => bail!(
            "the image has no partition (FAT) for a device's files: it is none of `glimpse-firmware image`"
        ),
        _ => bail!("the image has several partitions with FAT, and none is called {LABEL}"),
    }
}

fn places(file: &mut File) -> anyhow::Result<Vec<Place>> {
    let mut sector = [0; SECTOR as usize];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut sector)?;
    let number =
        |bytes: &[u8]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) * SECTOR;
    let entries = sector[446..510].chunks(16).filter(|entry| entry[4] != 0);
    if entries.clone().all(|entry| entry[4] != PROTECTIVE) {
        return Ok(entries.map(|entry| (number(&entry[8..12]), number(&entry[12..16]))).collect());
    }
    let table = gptman::GPT::find_from(file)?;
    let used = table.iter().filter(|(_, entry)| entry.is_used());
    Ok(used
        .filter_map(|(_, entry)| {
            let sectors = (entry.ending_lba + 1).checked_sub(entry.starting_lba)?;
            Some((
                entry.starting_lba.checked_mul(table.sector_size)?,
                sectors.checked_mul(table.sector_size)?,
            ))
        })
        .collect())
}

fn open(file: &File, (start, length): Place) -> io::Result<FileSystem<Window<'_>>> {
    FileSystem::new(Window { file, start, length, at: 0 }, FsOptions::new())
}

/// A part of a file as a file of its own.
struct Window<'a> {
    file: &'a File,
    start: u64,
    length: u64,
    at: u64,
}

impl Window<'_> {
    fn part(&mut self, wanted: usize) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at);
        let place = self.start.checked_add(self.at).ok_or(io::ErrorKind::InvalidInput)?;
        (&*self.file).seek(SeekFrom::Start(place))?;
        Ok(usize::try_from(left).unwrap_or(usize::MAX).min(wanted))
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.part(buffer.len())?;
        let read = (&*self.file).read(&mut buffer[..length])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.part(buffer.len())?;
        let written = (&*self.file).write(&buffer[..length])?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.file).flush()
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
