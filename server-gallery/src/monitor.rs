//! What happens in the server, for people and programs that watch it.
//!
//! [`Monitor::record`] is told of every query once, after its answer is known, and [`Monitor::status`] of what devices say of
//! themselves. Everything is kept in fixed memory: counters since the start, a [`Histogram`] of waiting and one of searching,
//! ten minutes of seconds ([`Second`]) and of ten-second slots, the last [`QUERIES_MAX`] queries, the devices ([`Device`]), and
//! the recall of the index measured on live queries ([`Exact`]).
//!
//! Recording a query copies its reply and touches three locks that readers hold for as long as a copy takes: about a
//! microsecond (`recording_a_query_is_cheap`). What a reply says is read only when somebody looks ([`Seen::view`]). Followers get
//! queries through a channel that drops for the slow ones. Embeddings are never kept, but for the one query that waits to have its
//! recall measured.

mod devices;
mod histogram;
mod recall;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use glimpse_protocol::{DeviceId, DeviceStatus, ErrorCode, ErrorReply, QueryId, Reply};
use serde::Serialize;
use tokio::sync::broadcast;

pub use devices::{DEVICES_MAX, Device, LastError};
pub use histogram::Histogram;
pub use recall::{Exact, Nearest, RecallFigure};

use crate::matcher::{Encoding, Outcome, Response};
use crate::models::Progress;
use devices::Devices;

/// Queries that are remembered.
pub const QUERIES_MAX: usize = 500;

/// Bytes of replies that are remembered: with many matches a query, fewer than [`QUERIES_MAX`] are.
const QUERIES_BYTES_MAX: usize = 4 << 20;

/// Seconds of which the counts are kept one by one.
pub const SECONDS_MAX: usize = 600;

/// Length of a slot of the latency's course, in seconds, and their number.
pub const SLOT_S: u64 = 10;
const SLOTS_MAX: usize = 60;

/// Events that wait for a slow follower before it misses some.
const EVENTS_MAX: usize = 256;

/// A query and what became of it, as the server tells of it.
#[derive(Debug, Clone, Copy)]
pub struct QueryRecord<'a> {
    /// Who asked.
    pub device: &'a DeviceId,
    /// The MQTT 5 content type of the query, if there is one.
    pub content_type: Option<&'a str>,
    /// The query's bytes; may be empty where it was not searched for.
    pub query: &'a [u8],
    /// The reply; `None`: nobody waits for it any more.
    pub response: Option<&'a Response>,
    /// From its arrival to the begin of its search.
    pub waited: Duration,
    /// From the begin of its search to its reply.
    pub took: Duration,
}

/// What became of a query: the word of its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Searched and answered.
    Answered,
    /// Answered from memory.
    Repeated,
    /// Told why not.
    Refused,
    /// Told to come back later.
    Busy,
    /// Its time was over before its turn came.
    Expired,
}

impl Fate {
    /// All of them, in the order of [`Counts`].
    pub const ALL: [Self; 5] = [Self::Answered, Self::Repeated, Self::Refused, Self::Busy, Self::Expired];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Expired => "expired",
        }
    }

    const fn of(response: Option<&Response>) -> Self {
        match response {
            None => Self::Expired,
            Some(response) => match response.outcome {
                Outcome::Answered => Self::Answered,
                Outcome::Repeated => Self::Repeated,
                Outcome::Refused(ErrorCode::Busy) => Self::Busy,
                Outcome::Refused(_) => Self::Refused,
            },
        }
    }
}

/// Queries by [`Fate`], in the order of [`Fate::ALL`].
pub type Counts = [u64; Fate::ALL.len()];

/// The codes of refusals that are counted apart; `busy` is a fate of its own.
pub const REFUSALS: [ErrorCode; 11] = [
    ErrorCode::Malformed,
    ErrorCode::UnknownVersion,
    ErrorCode::WrongSpace,
    ErrorCode::WrongDimension,
    ErrorCode::NotFinite,
    ErrorCode::ZeroNorm,
    ErrorCode::TooLarge,
    ErrorCode::BadTopK,
    ErrorCode::Unsupported,
    ErrorCode::Unavailable,
    ErrorCode::Other,
];

/// A query that is remembered. What it was answered stands in its reply, and is read by [`Seen::view`].
#[derive(Debug)]
pub struct Seen {
    /// Its number since the start of the server.
    pub number: u64,
    /// When it was answered, Unix time in milliseconds.
    pub at_ms: u64,
    /// Who asked.
    pub device: DeviceId,
    /// What became of it.
    pub fate: Fate,
    waited: Duration,
    took: Duration,
    id: Option<QueryId>,
    reply: Vec<u8>,
    encoding: Encoding,
}

/// What there is to see of a query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeenView {
    /// Its number since the start of the server.
    pub number: u64,
    /// When it was answered, Unix time in milliseconds.
    pub at_ms: u64,
    /// Who asked.
    pub device: String,
    /// Its id; `None` where it was not read.
    pub query: Option<QueryId>,
    /// What became of it.
    pub outcome: Fate,
    /// Why it was refused: a code and a sentence.
    pub error: Option<(ErrorCode, String)>,
    /// From its arrival to the begin of its search.
    pub waited_us: u64,
    /// From the begin of its search to its reply.
    pub took_us: u64,
    /// The gallery that was searched.
    pub generation: Option<u64>,
    /// Nearest first.
    pub matches: Vec<SeenMatch>,
}

/// A gallery image that answered a query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeenMatch {
    /// Its id.
    pub image: String,
    /// What it shows.
    pub label: String,
    /// Cosine; larger means nearer.
    pub similarity: f32,
}

impl Seen {
    /// What there is to see, with so many matches at most.
    pub fn view(&self, matches_max: usize) -> SeenView {
        let mut view = SeenView {
            number: self.number,
            at_ms: self.at_ms,
            device: self.device.as_str().to_owned(),
            query: self.id,
            outcome: self.fate,
            error: None,
            waited_us: micros(self.waited),
            took_us: micros(self.took),
            generation: None,
            matches: Vec::new(),
        };
        match self.fate {
            Fate::Answered | Fate::Repeated => {
                let Ok(reply) = self.encoding.read::<Reply>(&self.reply) else { return view };
                view.generation = Some(reply.generation);
                let matches = reply.matches.into_iter().take(matches_max).map(|found| SeenMatch {
                    image: found.image.as_str().to_owned(),
                    label: found.label.as_str().to_owned(),
                    similarity: found.similarity,
                });
                view.matches = matches.collect();
            }
            Fate::Refused | Fate::Busy => {
                let reply = self.encoding.read::<ErrorReply>(&self.reply).ok();
                view.error = reply.map(|reply| (reply.error.code, reply.error.message.as_str().to_owned()));
            }
            Fate::Expired => {}
        }
        view
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What followers are told.
#[derive(Debug, Clone)]
pub enum Event {
    /// A query was answered.
    Query(Arc<Seen>),
    /// A device said something of itself.
    Device(DeviceId),
}

/// The queries of one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Seconds since the start of the server.
    pub second: u64,
    /// Queries by fate.
    pub counts: Counts,
}

/// Percentiles of a stretch of time, in microseconds; `None` without queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half of the queries took less.
    pub p50_us: Option<u64>,
    /// 90 % took less.
    pub p90_us: Option<u64>,
    /// 99 % took less.
    pub p99_us: Option<u64>,
}

impl Percentiles {
    fn of(histogram: &Histogram) -> Self {
        let at = |share| histogram.percentile_us(share);
        Self { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99) }
    }
}

/// The latency of one slot of [`SLOT_S`] seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LatencySlot {
    /// When it began, in seconds since the start of the server.
    pub second: u64,
    /// Waiting for the search.
    pub waiting: Percentiles,
    /// The search.
    pub searching: Percentiles,
}

/// Counters and histograms since the start.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Queries by fate.
    pub counts: Counts,
    /// Refusals by code, in the order of [`REFUSALS`].
    pub refused: [u64; REFUSALS.len()],
    /// Waiting, of queries that were searched for.
    pub waiting: Histogram,
    /// Searching, of queries that were searched for.
    pub searching: Histogram,
}

/// What the server is doing now: of the last whole second, and the latency of the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pulse {
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Queries by fate since the start.
    pub counts: Counts,
    /// Queries by fate in the last whole second.
    pub last_second: Counts,
    /// Waiting, in the last minute.
    pub waiting: Percentiles,
    /// Searching, in the last minute.
    pub searching: Percentiles,
    /// Measured live.
    pub recall: RecallFigure,
    /// Whether queries reach the server.
    pub subscribed: bool,
}

#[derive(Default)]
struct Traffic {
    totals: Totals,
    seconds: VecDeque<Second>,
    slots: VecDeque<Slot>,
}

struct Slot {
    number: u64,
    waiting: Histogram,
    searching: Histogram,
}

#[derive(Default)]
struct Recent {
    number: u64,
    bytes: usize,
    queries: VecDeque<Arc<Seen>>,
}

/// Watches one server. Shared between threads by reference.
pub struct Monitor {
    started: Instant,
    started_at_ms: u64,
    traffic: Mutex<Traffic>,
    recent: Mutex<Recent>,
    devices: Mutex<Devices>,
    events: broadcast::Sender<Event>,
    recall: Arc<recall::Sampler>,
    subscribed: AtomicBool,
    rollouts: Mutex<Vec<Progress>>,
}

impl Default for Monitor {
    fn default() -> Self {
        Self::new()
    }
}

impl Monitor {
    /// A monitor that has seen nothing.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            started_at_ms: now_ms(),
            traffic: Mutex::default(),
            recent: Mutex::default(),
            devices: Mutex::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            recall: Arc::new(recall::Sampler::new()),
            subscribed: AtomicBool::new(false),
            rollouts: Mutex::default(),
        }
    }

    /// Notes a query and what became of it. To be called once for each, from whichever thread.
    pub fn record(&self, record: QueryRecord<'_>) {
        let at_ms = now_ms();
        let fate = Fate::of(record.response);
        let refused = match record.response.map(|response| response.outcome) {
            Some(Outcome::Refused(code)) => Some(code),
            _ => None,
        };
        lock(&self.traffic).count(self.started.elapsed().as_secs(), fate, refused, &record);
        lock(&self.devices).asked(record.device, at_ms, refused);
        self.remember(at_ms, fate, &record);
        if let (Fate::Answered, Some(response)) = (fate, record.response) {
            self.recall.offer(record.content_type, record.query, response.encoding, &response.payload);
        }
    }

    fn remember(&self, at_ms: u64, fate: Fate, record: &QueryRecord<'_>) {
        let response = record.response;
        let mut seen = Seen {
            number: 0,
            at_ms,
            device: record.device.clone(),
            fate,
            waited: record.waited,
            took: record.took,
            id: response.map(|response| response.id),
            reply: response.map_or_else(Vec::new, |response| response.payload.clone()),
            encoding: response.map_or(Encoding::Cbor, |response| response.encoding),
        };
        let seen = {
            let mut recent = lock(&self.recent);
            recent.number += 1;
            seen.number = recent.number;
            let seen = Arc::new(seen);
            recent.push(seen.clone());
            seen
        };
        // No follower is no error.
        let _ = self.events.send(Event::Query(seen));
    }

    /// Notes what a device says of itself. `retained`: the broker kept it, from whenever.
    pub fn status(&self, device: &DeviceId, status: &DeviceStatus, retained: bool) {
        lock(&self.devices).said(device, now_ms(), status, retained);
        let _ = self.events.send(Event::Device(device.clone()));
    }

    /// Forgets a device whose retained status was cleared.
    pub fn forget(&self, device: &DeviceId) {
        lock(&self.devices).forget(device);
        let _ = self.events.send(Event::Device(device.clone()));
    }

    /// Notes whether queries reach the server: connected to its broker, and subscribed.
    pub fn set_subscribed(&self, subscribed: bool) {
        self.subscribed.store(subscribed, Ordering::Release);
    }

    /// Whether queries reach the server.
    pub fn subscribed(&self) -> bool {
        self.subscribed.load(Ordering::Acquire)
    }

    /// Notes how far roll-outs have come.
    pub fn set_rollouts(&self, rollouts: Vec<Progress>) {
        *lock(&self.rollouts) = rollouts;
    }

    /// How far roll-outs have come, oldest first.
    pub fn rollouts(&self) -> Vec<Progress> {
        lock(&self.rollouts).clone()
    }

    /// Measures recall from now on, until [`Monitor::end`].
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn measure_recall(&self, exact: Arc<dyn Exact>) -> std::io::Result<()> {
        recall::start(&self.recall, exact)
    }

    /// Lets go of what is searched for recall.
    pub fn end(&self) {
        recall::stop(&self.recall);
    }

    /// Queries and devices from now on. Whoever reads slower than they come misses some, and is told how many.
    pub fn follow(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// The last queries, newest first.
    pub fn queries(&self) -> Vec<Arc<Seen>> {
        lock(&self.recent).queries.iter().rev().cloned().collect()
    }

    /// The query of this number, while it is remembered.
    pub fn query(&self, number: u64) -> Option<Arc<Seen>> {
        let recent = lock(&self.recent);
        let first = recent.queries.front()?.number;
        recent.queries.get(usize::try_from(number.checked_sub(first)?).ok()?).cloned()
    }

    /// All devices, by id.
    pub fn devices(&self) -> Vec<(DeviceId, Device)> {
        let mut devices: Vec<_> =
            lock(&self.devices).all().map(|(id, device)| (id.clone(), device.clone())).collect();
        devices.sort_by(|a, b| a.0.cmp(&b.0));
        devices
    }

    /// What is known of a device.
    pub fn device(&self, id: &DeviceId) -> Option<Device> {
        lock(&self.devices).get(id).cloned()
    }

    /// Counters and histograms since the start.
    pub fn totals(&self) -> Totals {
        lock(&self.traffic).totals.clone()
    }

    /// Recall, measured live.
    pub fn recall(&self) -> RecallFigure {
        self.recall.figure()
    }

    /// When the server started, Unix time in milliseconds.
    pub const fn started_at_ms(&self) -> u64 {
        self.started_at_ms
    }

    /// What the server is doing now.
    pub fn pulse(&self) -> Pulse {
        let uptime_s = self.started.elapsed().as_secs();
        let (counts, last_second, minute) = {
            let traffic = lock(&self.traffic);
            let last = traffic.seconds.iter().rev().find(|second| second.second + 1 == uptime_s);
            let last = last.map_or_else(Counts::default, |second| second.counts);
            (traffic.totals.counts, last, traffic.latency(uptime_s, 60))
        };
        Pulse {
            uptime_s,
            counts,
            last_second,
            waiting: Percentiles::of(&minute.0),
            searching: Percentiles::of(&minute.1),
            recall: self.recall(),
            subscribed: self.subscribed(),
        }
    }

    /// The last [`SECONDS_MAX`] seconds that had queries, oldest first, and the second that is now.
    pub fn seconds(&self) -> (u64, Vec<Second>) {
        (self.started.elapsed().as_secs(), lock(&self.traffic).seconds.iter().copied().collect())
    }

    /// The latency's course over ten minutes, oldest first; slots without queries are left out.
    pub fn latency(&self) -> Vec<LatencySlot> {
        let traffic = lock(&self.traffic);
        let slot = |slot: &Slot| LatencySlot {
            second: slot.number * SLOT_S,
            waiting: Percentiles::of(&slot.waiting),
            searching: Percentiles::of(&slot.searching),
        };
        traffic.slots.iter().map(slot).collect()
    }
}

impl Traffic {
    fn count(&mut self, second: u64, fate: Fate, refused: Option<ErrorCode>, record: &QueryRecord<'_>) {
        self.totals.counts[fate as usize] += 1;
        if let Some(place) = refused.and_then(|code| REFUSALS.iter().position(|known| *known == code)) {
            self.totals.refused[place] += 1;
        }
        self.second(second).counts[fate as usize] += 1;
        if matches!(fate, Fate::Answered | Fate::Repeated) {
            let slot = self.slot(second / SLOT_S);
            slot.waiting.add(record.waited);
            slot.searching.add(record.took);
            self.totals.waiting.add(record.waited);
            self.totals.searching.add(record.took);
        }
    }

    fn second(&mut self, second: u64) -> &mut Second {
        // Two threads may come in the other order than their clocks: the newest takes both.
        if self.seconds.back().is_none_or(|last| last.second < second) {
            if self.seconds.len() == SECONDS_MAX {
                self.seconds.pop_front();
            }
            self.seconds.push_back(Second { second, ..Second::default() });
        }
        self.seconds.back_mut().expect("there is one, or it was just added")
    }

    fn slot(&mut self, number: u64) -> &mut Slot {
        if self.slots.back().is_none_or(|last| last.number < number) {
            if self.slots.len() == SLOTS_MAX {
                self.slots.pop_front();
            }
            let empty = Histogram::default();
            self.slots.push_back(Slot { number, waiting: empty.clone(), searching: empty });
        }
        self.slots.back_mut().expect("there is one, or it was just added")
    }

    /// Waiting and searching in the last seconds, by whole slots.
    fn latency(&self, now_s: u64, seconds: u64) -> (Histogram, Histogram) {
        let from = now_s.saturating_sub(seconds) / SLOT_S;
        let (mut waiting, mut searching) = (Histogram::default(), Histogram::default());
        for slot in self.slots.iter().filter(|slot| slot.number >= from) {
            waiting.merge(&slot.waiting);
            searching.merge(&slot.searching);
        }
        (waiting, searching)
    }
}

impl Recent {
    fn push(&mut self, seen: Arc<Seen>) {
        self.bytes += seen.reply.len();
        self.queries.push_back(seen);
        while self.queries.len() > QUERIES_MAX || (self.bytes > QUERIES_BYTES_MAX && self.queries.len() > 1) {
            let oldest = self.queries.pop_front().map_or(0, |oldest| oldest.reply.len());
            self.bytes -= oldest;
        }
    }
}

/// A panic elsewhere leaves each of these whole: no step of theirs can fail half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unix time in milliseconds; 0 where the clock stands before 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "monitor/tests.rs"]
mod tests;
