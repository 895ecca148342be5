//! Queries that wait for their outcome, on the disk: they outlive the program, and a plug that is pulled.
//!
//! ```text
//! DIR/00000007.queries   segments: records one after the other, the oldest first; only the last one grows
//! DIR/00000008.queries
//!
//! record: check (8 bytes) | length of what follows the kind (4) | kind (1) | query: id, time, body; outcome: id
//! ```
//!
//! A query is written once, and once more it is written that it has its outcome. A segment without queries that wait is removed;
//! none is ever written over, which is what cheap flash wears least from. What was half written when the power went is cut off; what
//! is damaged otherwise is passed over, and said. Each file begins on the disk, and each removal ends there, before anything is done
//! that relies on it.
//!
//! Whoever acts on an outcome calls [`Journal::finish`] and [`Journal::sync`] first: then no query is acted upon twice, whenever
//! the power goes. Only a disk that damages an outcome after it took it makes its query come back. A query is lost only where the power goes between [`Journal::push`] and [`Journal::sync`].
//!
//! What is deliberately absent: what queries say, time of its own, and threads.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

use glimpse_protocol::QueryId;
use thiserror::Error;

mod disk;
#[cfg(test)]
mod tests;

pub use disk::{Disk, Folder};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on the disk, at most; the oldest queries are dropped for new ones.
    pub bytes: u64,
    /// Seconds for which a query waits, at most.
    pub age: u64,
}

/// The time, for the ages of queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970, where the clock is trusted.
    pub wall: Option<u64>,
    /// Seconds since the machine started; never goes back while the program runs.
    pub uptime: u64,
}

/// The largest body of a query, in bytes: the largest message and what is told of its photo.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Parts of the whole that a segment is: the last one is kept, and what is dropped is dropped by segments.
const SEGMENTS: u64 = 8;

/// The smallest that holds some queries of the largest size.
pub const BYTES_MIN: u64 = 4 << 20;

const CHECK: usize = 8;
const HEAD: usize = CHECK + 4 + 1;
const ID: usize = 16;
const QUERY: u8 = b'q';
const OUTCOME: u8 = b'o';

/// What was found on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Queries that wait.
    pub waiting: usize,
    /// Bytes that were half written at the end: the power went.
    pub cut_off: u64,
    /// Bytes that say nothing, before others that do: the disk is damaged.
    pub damaged: u64,
    /// Segments that cannot be read at all; they are left where they are.
    pub unreadable: usize,
}

/// A query that is too large to be kept.
#[derive(Debug, Error)]
#[error("a query of {0} bytes is larger than any that is kept")]
pub struct TooLarge(usize);

/// Queries without an outcome, oldest first.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: D,
    limits: Limits,
    segments: VecDeque<Segment>,
    /// The last segment, where it can grow.
    growing: Option<D::File>,
    /// Segments that no longer grow and are not on the disk yet, by number.
    closed: Vec<(u64, D::File)>,
    /// In the order in which they came.
    waiting: VecDeque<Entry>,
    /// How many of them have not been handed out.
    left: usize,
    dropped: u64,
    unsynced: bool,
    /// The number of the next segment.
    next: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    /// Queries in it that wait.
    waiting: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: QueryId,
    /// Seconds since 1970; 0 where no clock knew.
    time: u64,
    /// By the uptime of now, since when it waits; of one that was found, once somebody has said what time it is.
    born: Option<i64>,
    /// Whether `born` cannot be known any better.
    is_dated: bool,
    segment: u64,
    /// Of its record.
    at: u64,
    length: usize,
    /// Whether it has been handed out.
    taken: bool,
}

impl<D: Disk> Journal<D> {
    /// Reads what there is.
    ///
    /// # Errors
    /// A disk that does not say what there is, or from which nothing can be removed.
    pub fn open(disk: D, limits: Limits) -> io::Result<(Self, Found)> {
        let limits = Limits { bytes: limits.bytes.max(BYTES_MIN), ..limits };
        let mut journal = Self {
            disk,
            limits,
            segments: VecDeque::new(),
            growing: None,
            closed: Vec::new(),
            waiting: VecDeque::new(),
            left: 0,
            dropped: 0,
            unsynced: false,
            next: 1,
        };
        let mut found = Found::default();
        let mut finished = HashSet::new();
        let mut numbers = journal.disk.list()?;
        numbers.sort_unstable();
        let last = numbers.last().copied();
        journal.next = last.map_or(1, |last| last.saturating_add(1));
        for number in numbers {
            let Ok(bytes) = journal.disk.read(number) else {
                found.unreadable += 1;
                continue;
            };
            let mut at = 0;
            let mut silent = 0;
            while at < bytes.len() {
                let Some((record, length)) = Record::first(&bytes[at..]) else {
                    (at, silent) = (at + 1, silent + 1);
                    continue;
                };
                found.damaged += std::mem::take(&mut silent);
                match record {
                    Record::Outcome(id) => {
                        finished.insert(id);
                    }
                    Record::Query { id, time, .. } => {
                        let at = at as u64;
                        let (born, is_dated) = (None, time == 0);
                        let entry =
                            Entry { id, time, born, is_dated, segment: number, at, length, taken: false };
                        journal.waiting.push_back(entry);
                    }
                }
                at += length;
            }
            if Some(number) == last {
                found.cut_off += silent;
            } else {
                found.damaged += silent;
            }
            journal.segments.push_back(Segment { number, bytes: bytes.len() as u64, waiting: 0 });
        }
        // A query that is there twice is one: a segment may have been copied.
        let mut seen = HashSet::new();
        journal.waiting.retain(|entry| !finished.contains(&entry.id) && seen.insert(entry.id));
        let mut waiting: HashMap<u64, usize> = HashMap::new();
        for entry in &journal.waiting {
            *waiting.entry(entry.segment).or_default() += 1;
        }
        for segment in &mut journal.segments {
            segment.waiting = waiting.get(&segment.number).copied().unwrap_or(0);
        }
        (found.waiting, journal.left) = (journal.waiting.len(), journal.waiting.len());
        journal.remove_finished()?;
        Ok((journal, found))
    }

    /// Keeps a query, last. Returns those that had to be dropped for it, the oldest; what was handed out of them is acted upon all the
    /// same.
    ///
    /// # Errors
    /// A body of more than [`BODY_BYTES_MAX`], or a disk that does not take it: it is not kept.
    pub fn push(&mut self, id: QueryId, now: Now, body: &[u8]) -> io::Result<Vec<QueryId>> {
        if body.len() > BODY_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, TooLarge(body.len())));
        }
        let time = now.wall.unwrap_or(0);
        let record = [&id.as_bytes()[..], &time.to_le_bytes(), body].concat();
        let (segment, at, length) = self.append(QUERY, &record)?;
        let born = Some(seconds(now.uptime));
        self.waiting.push_back(Entry { id, time, born, is_dated: true, segment, at, length, taken: false });
        self.left += 1;
        if let Some(segment) = self.segments.back_mut() {
            segment.waiting += 1;
        }
        let mut dropped = Vec::new();
        while self.bytes() > self.limits.bytes && self.segments.len() > 1 {
            let first = self.segments.front().map_or(0, |segment| segment.number);
            while self.waiting.front().is_some_and(|entry| entry.segment == first) {
                dropped.extend(self.drop_front());
            }
            // What cannot be removed now is removed later, or said then.
            if self.remove_finished().is_err() {
                break;
            }
        }
        Ok(dropped)
    }

    /// Drops queries that have waited for too long. What came since this journal was opened has the age that it has waited, whatever
    /// the clock does meanwhile: a board without a battery starts in 1970, and is told the time later. What was found has the age that
    /// a trusted clock gives it, and until there is one, or where none ever was, that since the journal was opened.
    ///
    /// # Errors
    /// A disk from which nothing can be removed.
    pub fn expire(&mut self, now: Now) -> io::Result<Vec<QueryId>> {
        let uptime = seconds(now.uptime);
        let age_max = seconds(self.limits.age);
        let mut dropped = Vec::new();
        for entry in &mut self.waiting {
            let born = entry.born.get_or_insert(uptime);
            if let Some(wall) = now.wall.filter(|_| !entry.is_dated) {
                // A clock that went back makes nothing younger than it was seen to be.
                *born = (*born).min(uptime.saturating_sub(seconds(wall.saturating_sub(entry.time))));
                entry.is_dated = true;
            }
            if uptime.saturating_sub(*born) > age_max {
                dropped.push(entry.id);
            }
        }
        for id in &dropped {
            if let Some(place) = self.waiting.iter().position(|entry| entry.id == *id) {
                self.forget(place);
                self.dropped += 1;
            }
        }
        self.remove_finished()?;
        Ok(dropped)
    }

    /// The oldest query that has not been handed out, and its body; it goes on waiting. One that can no longer be read is dropped.
    pub fn take(&mut self) -> Option<(QueryId, Vec<u8>)> {
        while self.left > 0 {
            // What has been handed out stands in front of it, and is little.
            let place = self.waiting.iter().position(|entry| !entry.taken)?;
            let entry = &mut self.waiting[place];
            let bytes = self.disk.read_at(entry.segment, entry.at, entry.length);
            if let Some((Record::Query { id, body, .. }, _)) = bytes.as_deref().ok().and_then(Record::first)
                && id == entry.id
            {
                entry.taken = true;
                self.left -= 1;
                return Some((id, body.to_vec()));
            }
            self.forget(place);
            self.dropped += 1;
        }
        None
    }

    /// A query is handed out already: whoever pushed it goes on with it.
    pub fn taken(&mut self, id: QueryId) {
        if let Some(entry) = self.waiting.iter_mut().rev().find(|entry| entry.id == id && !entry.taken) {
            entry.taken = true;
            self.left -= 1;
        }
    }

    /// How many queries that wait came before this one; `None` where it does not wait.
    pub fn place(&self, id: QueryId) -> Option<usize> {
        self.waiting.iter().position(|entry| entry.id == id)
    }

    /// Whether a query waits.
    pub fn has(&self, id: QueryId) -> bool {
        self.place(id).is_some()
    }

    /// A query has its outcome; false where none like it waits.
    ///
    /// # Errors
    /// A disk that does not take it: the query will be there again after a restart.
    pub fn finish(&mut self, id: QueryId) -> io::Result<bool> {
        let Some(place) = self.waiting.iter().position(|entry| entry.id == id) else { return Ok(false) };
        self.append(OUTCOME, id.as_bytes())?;
        self.forget(place);
        Ok(true)
    }

    /// Brings all that was written to the disk, and removes what nobody needs any more.
    ///
    /// # Errors
    /// A disk that does not take it. What was written since the last time may or may not be there after a restart.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            let mut result = Ok(());
            // Nobody knows what is on the disk of one that fails, and asking again would not tell.
            for (_, mut file) in self.closed.drain(..) {
                result = result.and(self.disk.sync(&mut file));
            }
            if let Some(file) = &mut self.growing
                && let Err(error) = self.disk.sync(file)
            {
                self.growing = None;
                result = Err(error);
            }
            self.unsynced = false;
            result?;
        }
        self.remove_finished()
    }

    /// Queries that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Queries that wait and have not been handed out.
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Whether something was written and not yet brought to the disk.
    pub const fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Queries dropped since it was opened.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Appends a record. Returns the number of its segment, where it begins there, and how many bytes it takes.
    fn append(&mut self, kind: u8, rest: &[u8]) -> io::Result<(u64, u64, usize)> {
        let record = Record::bytes(kind, rest);
        let full = self.segments.back().is_none_or(|segment| {
            segment.bytes > 0 && segment.bytes + record.len() as u64 > self.limits.bytes / SEGMENTS
        });
        if full || self.growing.is_none() {
            self.close();
            // Never one that was there before: its removal might have failed.
            let number = self.next;
            self.next += 1;
            self.growing = Some(self.disk.create(number)?);
            self.segments.push_back(Segment { number, bytes: 0, waiting: 0 });
        }
        let (Some(file), Some(segment)) = (&mut self.growing, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment"));
        };
        let (number, at) = (segment.number, segment.bytes);
        if let Err(error) = self.disk.append(file, &record) {
            // Part of it may be there. What follows goes to another segment, where nothing stands before it.
            segment.bytes += record.len() as u64;
            self.close();
            // On a full disk there would be more and more segments with nothing in them.
            if at == 0 && self.disk.remove(number).is_ok() {
                self.closed.retain(|(closed, _)| *closed != number);
                self.segments.pop_back();
            }
            return Err(error);
        }
        segment.bytes += record.len() as u64;
        self.unsynced = true;
        Ok((number, at, record.len()))
    }

    /// The last segment grows no more.
    fn close(&mut self) {
        if let (Some(file), Some(segment)) = (self.growing.take(), self.segments.back()) {
            self.closed.push((segment.number, file));
        }
    }

    fn drop_front(&mut self) -> Option<QueryId> {
        let id = self.waiting.front()?.id;
        self.forget(0);
        self.dropped += 1;
        Some(id)
    }

    fn forget(&mut self, place: usize) {
        let Some(entry) = self.waiting.remove(place) else { return };
        self.left -= usize::from(!entry.taken);
        // Segments are few.
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == entry.segment) {
            segment.waiting -= 1;
        }
    }

    /// Removes segments from the front as long as nothing in them waits. Outcomes in them are of queries in them, or before them.
    fn remove_finished(&mut self) -> io::Result<()> {
        while let Some(first) = self.segments.front() {
            let grows = self.growing.is_some() && self.segments.len() == 1;
            if first.waiting > 0 || (grows && first.bytes < self.limits.bytes / SEGMENTS) {
                break;
            }
            let number = first.number;
            if grows {
                self.growing = None;
            }
            self.disk.remove(number)?;
            self.closed.retain(|(closed, _)| *closed != number);
            self.segments.pop_front();
        }
        Ok(())
    }
}

fn seconds(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// One record.
enum Record<'a> {
    Query { id: QueryId, time: u64, body: &'a [u8] },
    Outcome(QueryId),
}

impl<'a> Record<'a> {
    fn bytes(kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; CHECK];
        bytes.extend((rest.len() as u32).to_le_bytes());
        bytes.push(kind);
        bytes.extend(rest);
        let check = check(&bytes[CHECK..]);
        bytes[..CHECK].copy_from_slice(&check);
        bytes
    }

    /// The record that these bytes begin with, and how many it takes.
    fn first(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let length = u32::from_le_bytes(*bytes.get(CHECK..)?.first_chunk()?) as usize;
        if length > ID + 8 + BODY_BYTES_MAX {
            return None;
        }
        let all = bytes.get(..HEAD + length)?;
        if check(&all[CHECK..]) != all[..CHECK] {
            return None;
        }
        let (id, rest) = all[HEAD..].split_first_chunk::<ID>()?;
        let id = QueryId::from_bytes(*id);
        let record = match all[CHECK + 4] {
            QUERY => {
                let (time, body) = rest.split_first_chunk()?;
                Self::Query { id, time: u64::from_le_bytes(*time), body }
            }
            OUTCOME if rest.is_empty() => Self::Outcome(id),
            _ => return None,
        };
        Some((record, all.len()))
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK] {
    let mut check = [0; CHECK];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK]);
    check
}
