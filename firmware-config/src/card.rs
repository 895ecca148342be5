//! Writing an image to a card, and reading it back.
//!
//! The image's first block holds the partition table, and without it a card is empty to every computer. It is written last, when all else is
//! on the card, and zeros stand there until then: a card that was taken out half written does not start half a system.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use thiserror::Error;

/// Bytes that are read and written at once.
pub const BLOCK: usize = 4 << 20;

/// Blocks that wait to be written.
const WAITING: usize = 4;

/// Bytes after which what was written is brought to the card, so that the progress that is shown is the card's.
const SYNC_EVERY: u64 = 64 << 20;

/// Where the copy of a partition table is that an earlier image left at a disk's end: 33 sectors, of 4096 bytes at most.
const END: u64 = 33 * 4096;

/// Why a card is not as the image is.
#[derive(Debug, Error)]
pub enum CardError {
    /// The image ends, or is damaged.
    #[error("cannot read the image: is it damaged, or was it not downloaded whole?")]
    Image(#[source] io::Error),
    /// The card takes no more.
    #[error("cannot write to {}, after {}", .path.display(), megabytes(*.at))]
    Write {
        /// The card.
        path: PathBuf,
        /// Bytes before it.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image has more bytes.
    #[error("the image is larger than {}, which has {}: take a larger card", .path.display(), megabytes(*.bytes))]
    TooSmall {
        /// The card.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The card cannot be read back.
    #[error("cannot read {} back, after {}: the card is broken, or its reader", .path.display(), megabytes(*.at))]
    ReadBack {
        /// The card.
        path: PathBuf,
        /// Bytes before it.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is read is not what was written.
    #[error("{} does not hold what was written to it, between byte {from} and {to}: the card is broken or a fake, or its reader is", .path.display())]
    Differs {
        /// The card.
        path: PathBuf,
        /// The first byte of the block.
        from: u64,
        /// The first after it.
        to: u64,
    },
    /// Somebody stopped it.
    #[error("stopped: {} is not usable, and has to be written anew", .0.display())]
    Stopped(PathBuf),
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A card that is open to be written to.
#[derive(Debug)]
pub struct Card {
    /// Its name, for errors.
    pub path: PathBuf,
    /// The card, or a file in place of one.
    pub file: File,
    /// What it holds; `None` for a file, which grows.
    pub bytes: Option<u64>,
}

/// How far it is, for whoever shows it, and whether it is to stop.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes that were written, or read back.
    pub done: AtomicU64,
    /// Set by whoever wants it to stop.
    pub stop: AtomicBool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// How many bytes.
    pub bytes: u64,
    blocks: Vec<blake3::Hash>,
}

struct Block {
    bytes: Vec<u8>,
    hash: blake3::Hash,
}

/// Writes all of an image: a thread reads and, where it is compressed, unpacks it, and this one writes.
///
/// # Errors
/// [`CardError`]; what is on the card is then of no use.
pub fn write(image: impl Read + Send, card: &mut Card, watch: &Watch) -> Result<Written, CardError> {
    thread::scope(|scope| {
        let (sender, blocks) = sync_channel(WAITING);
        let (give_back, empty) = sync_channel(WAITING + 2);
        scope.spawn(move || read_blocks(image, &sender, &empty));
        write_blocks(&blocks, &give_back, card, watch)
    })
}

fn read_blocks(mut image: impl Read, sender: &SyncSender<io::Result<Block>>, empty: &Receiver<Vec<u8>>) {
    loop {
        let mut bytes = empty.try_recv().unwrap_or_default();
        bytes.clear();
        bytes.reserve_exact(BLOCK);
        let read = image.by_ref().take(BLOCK as u64).read_to_end(&mut bytes);
        let is_last = bytes.len() < BLOCK;
        let block = read.map(|_| Block { hash: blake3::hash(&bytes), bytes });
        let is_wrong = block.is_err();
        // Where nobody takes it the writer has ended, and says why.
        if sender.send(block).is_err() || is_last || is_wrong {
            return;
        }
    }
}

fn write_blocks(
    blocks: &Receiver<io::Result<Block>>,
    give_back: &SyncSender<Vec<u8>>,
    card: &mut Card,
    watch: &Watch,
) -> Result<Written, CardError> {
    let (mut written, mut first, mut unsynced) = (Written { bytes: 0, blocks: Vec::new() }, Vec::new(), 0);
    let path = card.path.clone();
    let failed = |at: u64| move |source| CardError::Write { path: path.clone(), at, source };
    let wipe = |card: &mut Card| {
        blank(card)?;
        if let Some(end) = card.bytes.map(|bytes| bytes.saturating_sub(END)).filter(|end| *end > BLOCK as u64)
        {
            card.file.seek(SeekFrom::Start(end))?;
            card.file.write_all(&vec![0; END as usize])?;
        }
        card.file.sync_data()?;
        card.file.seek(SeekFrom::Start(BLOCK as u64)).map(drop)
    };
    wipe(card).map_err(failed.clone()(0))?;
    for block in blocks {
        let Block { bytes, hash } = block.map_err(CardError::Image)?;
        if watch.stop.load(Ordering::Relaxed) {
            return Err(CardError::Stopped(card.path.clone()));
        }
        let after = written.bytes + bytes.len() as u64;
        if let Some(size) = card.bytes.filter(|size| after > *size) {
            return Err(CardError::TooSmall { path: card.path.clone(), bytes: size });
        }
        if written.blocks.is_empty() {
            first = bytes;
        } else {
            card.file.write_all(&bytes).map_err(failed.clone()(written.bytes))?;
            unsynced += bytes.len() as u64;
            if card.bytes.is_some() && unsynced >= SYNC_EVERY {
                card.file.sync_data().map_err(failed.clone()(written.bytes))?;
                unsynced = 0;
            }
            // Full where the reader has ended.
            let _ = give_back.try_send(bytes);
        }
        written.bytes = after;
        written.blocks.push(hash);
        watch.done.store(after, Ordering::Relaxed);
    }
    let finish = |card: &mut Card| {
        card.file.sync_data()?;
        card.file.seek(SeekFrom::Start(0))?;
        card.file.write_all(&first)?;
        if card.bytes.is_none() {
            card.file.set_len(written.bytes)?;
        }
        card.file.sync_all()
    };
    finish(card).map_err(failed(written.bytes))?;
    Ok(written)
}

/// Writes zeros where the first block belongs.
fn blank(card: &mut Card) -> io::Result<()> {
    card.file.seek(SeekFrom::Start(0))?;
    let size = card.bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(BLOCK);
    card.file.write_all(&vec![0; BLOCK.min(size)])?;
    card.file.sync_data()
}

/// Reads a card back, past whatever the system remembers of it, and compares it block by block. One that is not as the image is, or not
/// known to be, is left without its first block.
///
/// # Errors
/// [`CardError`]
pub fn verify(card: &mut Card, written: &Written, watch: &Watch) -> Result<(), CardError> {
    watch.done.store(0, Ordering::Relaxed);
    let compared = compare(card, written, watch);
    if compared.is_err() {
        // Where it takes no more zeros either, what is wrong with it is told all the same.
        let _ = blank(card);
    }
    compared
}

fn compare(card: &mut Card, written: &Written, watch: &Watch) -> Result<(), CardError> {
    let failed = |at: u64, path: &PathBuf| {
        let path = path.clone();
        move |source| CardError::ReadBack { path, at, source }
    };
    forget(&card.file).and_then(|()| card.file.seek(SeekFrom::Start(0))).map_err(failed(0, &card.path))?;
    let mut bytes = vec![0; BLOCK];
    let mut at = 0;
    for wanted in &written.blocks {
        if watch.stop.load(Ordering::Relaxed) {
            return Err(CardError::Stopped(card.path.clone()));
        }
        let length = (written.bytes - at).min(BLOCK as u64);
        let block = &mut bytes[..length as usize];
        card.file.read_exact(block).map_err(failed(at, &card.path))?;
        if blake3::hash(block) != *wanted {
            return Err(CardError::Differs { path: card.path.clone(), from: at, to: at + length });
        }
        at += length;
        watch.done.store(at, Ordering::Relaxed);
    }
    Ok(())
}

/// Has the system forget what it remembers of a file that is on its disk.
///
/// # Errors
/// A file that does not reach its disk.
pub fn forget(file: &File) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}
