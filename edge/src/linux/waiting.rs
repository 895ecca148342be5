//! Queries that wait on the disk, and when they go there: [`Waiting`].
//!
//! A query that is answered within [`GRACE`] never touches the disk. One that is not, or that cannot be sent at all, is written down,
//! and brought to the disk with all that came within [`TOGETHER`]. Whoever acts on an outcome asks [`Waiting::done`] first.
//!
//! A disk that fails while the device runs does not stop it: its queries wait in memory then, and the log says so once. A folder that cannot
//! be written at the start is a mistake that somebody has to know of, and ends it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use glimpse_protocol::QueryId;
use glimpse_protocol::device::Outbox;
use thiserror::Error;

use super::journal::{Folder, Journal, Limits, Now};
use super::time::Times;

/// How long an answer is waited for before a query is written down.
pub const GRACE: Duration = Duration::from_secs(1);

/// Queries that are written within this time are brought to the disk together: each time costs the flash a block.
pub const TOGETHER: Duration = Duration::from_millis(250);

/// An outbox that cannot be used.
#[derive(Debug, Error)]
#[error("the outbox {} cannot be used", path.display())]
pub struct OutboxError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Queries on the disk.
#[derive(Debug)]
pub struct Waiting {
    journal: Journal<Folder>,
    /// When the first of those was written that are not on the disk yet.
    since: Option<Instant>,
    failing: bool,
}

impl Waiting {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// A folder that cannot be made or read.
    pub fn open(settings: &Outbox) -> Result<Self, OutboxError> {
        let failed = |source| OutboxError { path: settings.folder.clone(), source };
        let limits =
            Limits { bytes: u64::from(settings.megabytes) << 20, age: u64::from(settings.hours) * 3600 };
        let folder = Folder::open(&settings.folder).map_err(failed)?;
        let (journal, found) = Journal::open(folder, limits).map_err(failed)?;
        if found.damaged > 0 {
            tracing::error!(bytes = found.damaged, "the outbox is damaged: what stood there is passed over");
        }
        if found.unreadable > 0 {
            tracing::error!(
                files = found.unreadable,
                "files of the outbox cannot be read, and stay where they are"
            );
        }
        if found.waiting > 0 {
            tracing::info!(queries = found.waiting, "they wait since before");
        }
        let mut waiting = Self { journal, since: None, failing: false };
        waiting.expire();
        Ok(waiting)
    }

    /// Writes a query down; false where the disk does not take it.
    pub fn keep(&mut self, id: QueryId, body: &[u8]) -> bool {
        self.expire();
        let pushed = self.journal.push(id, now(), body);
        let Some(dropped) = self.tell(pushed) else { return false };
        if !dropped.is_empty() {
            tracing::error!(
                queries = dropped.len(),
                "the outbox was full: the oldest were dropped for a new one"
            );
        }
        self.since.get_or_insert_with(Instant::now);
        true
    }

    /// The same, of a query that is being sent already.
    pub fn keep_sent(&mut self, id: QueryId, body: &[u8]) -> bool {
        let kept = self.keep(id, body);
        if kept {
            self.journal.taken(id);
        }
        kept
    }

    /// The oldest that is not being sent.
    pub fn take(&mut self) -> Option<(QueryId, Vec<u8>)> {
        self.journal.take()
    }

    /// A query has its outcome. Whether it may be acted upon: not where it would be asked about again after a restart, since the disk does
    /// not take that it has one. A query that never came to the disk may.
    pub fn done(&mut self, id: QueryId) -> bool {
        if !self.journal.has(id) {
            return true;
        }
        let finished = self.journal.finish(id).and_then(|_| self.journal.sync());
        self.since = None;
        self.tell(finished).is_some()
    }

    /// Brings what was written to the disk, where it is time.
    pub fn sync_if_due(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() >= TOGETHER) {
            self.sync();
        }
    }

    /// Brings what was written to the disk.
    pub fn sync(&mut self) {
        self.since = None;
        // Where nothing was to be brought there it says nothing of whether the disk works.
        if let Err(error) = self.journal.sync() {
            self.tell::<()>(Err(error));
        }
    }

    /// Whether something is to be brought to the disk soon.
    pub const fn is_unsynced(&self) -> bool {
        self.since.is_some()
    }

    /// Whether a query is on the disk.
    pub fn has(&self, id: QueryId) -> bool {
        self.journal.has(id)
    }

    /// How many queries on the disk came before this one, which is there.
    pub fn place(&self, id: QueryId) -> Option<usize> {
        self.journal.place(id)
    }

    /// Queries that are not being sent.
    pub const fn left(&self) -> usize {
        self.journal.left()
    }

    /// Queries on the disk.
    pub fn len(&self) -> usize {
        self.journal.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.journal.is_empty()
    }

    fn expire(&mut self) {
        // It says nothing of whether the disk works: mostly there is nothing to remove. What cannot be is tried again by `sync`.
        if let Ok(expired) = self.journal.expire(now())
            && !expired.is_empty()
        {
            tracing::error!(
                queries = expired.len(),
                "they waited in the outbox for too long, and are dropped"
            );
        }
    }

    /// Says once that the disk fails, and once that it works again.
    fn tell<T>(&mut self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the outbox's disk works again");
                }
                Some(value)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the outbox's disk fails: queries wait in memory, and are lost with the program");
                }
                None
            }
        }
    }
}

fn now() -> Now {
    let times = Times::now();
    Now { wall: times.wall_ms().map(|ms| ms / 1000), uptime: times.uptime_ms / 1000 }
}
