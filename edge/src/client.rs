//! The query client: which queries are in flight, when to send one again, when to give one up.
//!
//! Sans-I/O: events go in by methods ([`submit`](QueryClient::submit), [`connected`](QueryClient::connected),
//! [`disconnected`](QueryClient::disconnected), [`reply`](QueryClient::reply), [`busy`](QueryClient::busy)), actions
//! come out of [`poll`](QueryClient::poll), and [`next_wakeup`](QueryClient::next_wakeup) tells when to poll again.
//! Time is a [`Duration`] since any fixed moment, and must not go back. Nothing here allocates, sleeps or sends.
//!
//! A PUBACK says only that the broker has the query: every broker tried loses queries of a server that dies. So a
//! query without a reply is sent again *under the same id*, after a timeout that doubles each time, and once more
//! after each reconnection; servers answer repeats from a cache. Both kinds are counted and bounded, each by itself: a
//! connection that flaps neither makes a device send for ever nor uses up what the server's silence is allowed.
//!
//! Every submitted query gets exactly one outcome: the payload comes back from `reply`, from `busy`, or in
//! [`Action::GiveUp`].
//!
//! What is deliberately absent: the reply's content, and any memory of queries beyond the last `N` outcomes.

use core::time::Duration;

use glimpse_protocol::QueryId;
use heapless::{Deque, Vec};

use crate::backoff::{Jitter, doubled};
use crate::duty::Duty;

/// How patient the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often a query is sent at most, where the connection holds; at least once.
    pub attempts: u8,
    /// How often more where it breaks while the reply is awaited: that says nothing of the server.
    pub breaks: u8,
    /// How long the first attempt waits for its reply; each further one twice as long, all stretched by the jitter.
    pub reply_timeout: Duration,
    /// No attempt waits longer than this, before the jitter.
    pub reply_timeout_max: Duration,
    /// Time after which a query is given up, connected or not: from submission as long as it was not sent, and anew
    /// from first sending it. `None` waits for a connection for ever. The time for which its [`Duty`] holds a
    /// connected client back does not count.
    pub deadline: Option<Duration>,
}

impl Patience {
    /// Enough for a connection that breaks every second to answer a query in one of its seconds, and few enough for a link
    /// that is paid by the megabyte.
    pub const BREAKS: u8 = 16;

    /// Attempts that together take at most `total`, whatever the jitter; at most 16, since the first of more would be
    /// over in microseconds.
    pub fn within(total: Duration, attempts: u8) -> Self {
        let attempts = attempts.clamp(1, 16);
        // The timeouts are 1, 2, 4, .. times the first and stretch by half at most.
        let shares = ((1 << attempts) - 1) * 3;
        let reply_timeout = (total / shares).saturating_mul(2);
        Self { attempts, breaks: Self::BREAKS, reply_timeout, reply_timeout_max: total, deadline: None }
    }

    /// The same, giving up at `deadline` after submission even without a connection.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P> {
    /// Send the query's payload (see [`QueryClient::payload`]).
    Publish {
        /// The query.
        id: QueryId,
        /// 1 the first time, more for a repeat.
        attempt: u8,
    },
    /// Tell whoever asked that there is no answer.
    GiveUp {
        /// The query.
        id: QueryId,
        /// Its payload.
        payload: P,
        /// Why.
        reason: GiveUp,
        /// How often it was sent.
        attempts: u8,
    },
}

/// Why a query was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// It was sent as often as allowed, or its deadline passed after it was sent, and no reply came.
    NoReply,
    /// Its deadline passed before there was a connection to send it over.
    NotConnected,
}

/// A query that was not taken; the payload comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused<P> {
    /// `N` queries are in flight.
    Full(P),
    /// A query with this id is in flight.
    SameId(P),
}

/// A query that has its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered<P> {
    /// The query's payload.
    pub payload: P,
    /// How often it was sent.
    pub attempts: u8,
    /// Time from first sending it to the reply.
    pub reply_time: Duration,
}

/// What a server's "try again later" leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Busy<P> {
    /// The query will be sent again.
    WillRetry,
    /// It was sent as often as allowed: this is its outcome.
    Exhausted(Answered<P>),
    /// No query in flight has this id; counted.
    Ignored,
}

/// Everything that happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Queries taken.
    pub submitted: u64,
    /// Times that a query was sent, repeats included.
    pub published: u64,
    /// Queries that got a reply.
    pub answered: u64,
    /// Queries given up.
    pub given_up: u64,
    /// Replies to queries that had one already.
    pub duplicate_replies: u64,
    /// Replies to queries that were given up.
    pub late_replies: u64,
    /// Replies to no query of ours (or of so long ago that it is forgotten).
    pub foreign_replies: u64,
}

/// At most `N` queries in flight, each with a payload `P`; `N` is at least 1, which the compiler checks.
#[derive(Debug, Clone)]
pub struct QueryClient<P, const N: usize> {
    patience: Patience,
    jitter: Jitter,
    duty: Duty,
    connected: bool,
    /// In order of submission.
    in_flight: Vec<InFlight<P>, N>,
    /// The last outcomes, to tell a repeated reply from a foreign one: id and whether it was answered.
    finished: Deque<(QueryId, bool), N>,
    counters: Counters,
}

#[derive(Debug, Clone)]
struct InFlight<P> {
    id: QueryId,
    payload: P,
    give_up_at: Option<Duration>,
    first_published: Option<Duration>,
    attempts: u8,
    /// Of these, those that a connection broke and that are made up for.
    broken: u8,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be sent as soon as there is a connection.
    Ready,
    /// Sent; its reply is awaited until then.
    Sent { until: Duration },
    /// The server was busy; to be sent again then.
    Postponed { until: Duration },
}

impl<P, const N: usize> QueryClient<P, N> {
    /// A client that is not connected and has nothing in flight.
    pub const fn new(patience: Patience, jitter: Jitter) -> Self {
        Self {
            patience,
            jitter,
            duty: Duty::UNLIMITED,
            connected: false,
            in_flight: Vec::new(),
            finished: Deque::new(),
            counters: Counters {
                submitted: 0,
                published: 0,
                answered: 0,
                given_up: 0,
                duplicate_replies: 0,
                late_replies: 0,
                foreign_replies: 0,
            },
        }
    }

    /// Bounds how often a query is sent for the first time. Repeats are bounded by their attempts, and cost nothing
    /// more: a query that was begun is to be ended.
    #[must_use]
    pub const fn with_duty(mut self, duty: Duty) -> Self {
        self.duty = duty;
        self
    }

    /// Takes a query, to be sent under `id`.
    ///
    /// # Errors
    /// [`Refused`] gives the payload back where there is no room or the id is in flight.
    pub fn submit(&mut self, id: QueryId, payload: P, now: Duration) -> Result<(), Refused<P>> {
        if self.find(id).is_some() {
            return Err(Refused::SameId(payload));
        }
        let entry = InFlight {
            id,
            payload,
            give_up_at: self.patience.deadline.map(|deadline| now.saturating_add(deadline)),
            first_published: None,
            attempts: 0,
            broken: 0,
            state: State::Ready,
        };
        self.in_flight.push(entry).map_err(|entry| Refused::Full(entry.payload))?;
        self.counters.submitted += 1;
        Ok(())
    }

    /// Queries can be sent and replies received from now on.
    pub const fn connected(&mut self) {
        self.connected = true;
    }

    /// Whatever was on its way may be lost: queries with attempts left are sent again after reconnection.
    pub fn disconnected(&mut self) {
        self.connected = false;
        let attempts = self.patience.attempts.max(1);
        for entry in &mut self.in_flight {
            if !matches!(entry.state, State::Sent { .. }) {
                continue;
            }
            if entry.broken < self.patience.breaks {
                entry.broken += 1;
                entry.state = State::Ready;
            } else if entry.counted() < attempts {
                entry.state = State::Ready;
            }
        }
    }

    /// A reply came. The first one for a query in flight ends it; `None` for any other, which is counted.
    pub fn reply(&mut self, id: QueryId, now: Duration) -> Option<Answered<P>> {
        let (place, first) = self.expected(id)?;
        let entry = self.in_flight.remove(place);
        self.remember(id, true);
        self.counters.answered += 1;
        Some(Answered {
            payload: entry.payload,
            attempts: entry.attempts,
            reply_time: now.saturating_sub(first),
        })
    }

    /// The server asks to try again later: it will be, after as long a wait as for a reply, while attempts are left.
    pub fn busy(&mut self, id: QueryId, now: Duration) -> Busy<P> {
        let Some((place, _)) = self.expected(id) else { return Busy::Ignored };
        let entry = &mut self.in_flight[place];
        if entry.counted() < self.patience.attempts.max(1) {
            let wait = doubled(
                self.patience.reply_timeout,
                u32::from(entry.counted()).saturating_sub(1),
                self.patience.reply_timeout_max,
            );
            entry.state = State::Postponed { until: now.saturating_add(self.jitter.stretch(wait)) };
            return Busy::WillRetry;
        }
        // `expected` found it, so `reply` does.
        self.reply(id, now).map_or(Busy::Ignored, Busy::Exhausted)
    }

    /// The next thing to do at this time; call again until it returns `None`.
    pub fn poll(&mut self, now: Duration) -> Option<Action<P>> {
        let connected = self.connected;
        let attempts = self.patience.attempts.max(1);
        let fresh_at = self.duty.next();
        let (place, due) = self
            .in_flight
            .iter()
            .enumerate()
            .find_map(|(place, entry)| Some((place, entry.due(now, connected, attempts, fresh_at)?)))?;
        match due {
            Due::Publish => {
                let entry = &mut self.in_flight[place];
                let wait = doubled(
                    self.patience.reply_timeout,
                    u32::from(entry.counted()),
                    self.patience.reply_timeout_max,
                );
                if entry.first_published.is_none() {
                    entry.first_published = Some(now);
                    entry.give_up_at = self.patience.deadline.map(|deadline| now.saturating_add(deadline));
                    self.duty.spend(now);
                }
                entry.attempts = entry.attempts.saturating_add(1);
                entry.state = State::Sent { until: now.saturating_add(self.jitter.stretch(wait)) };
                self.counters.published += 1;
                Some(Action::Publish { id: entry.id, attempt: entry.attempts })
            }
            Due::GiveUp(reason) => {
                let InFlight { id, payload, attempts, .. } = self.in_flight.remove(place);
                self.remember(id, false);
                self.counters.given_up += 1;
                Some(Action::GiveUp { id, payload, reason, attempts })
            }
        }
    }

    /// When `poll` will next have something to do if no event comes before; `None` if never.
    pub fn next_wakeup(&self) -> Option<Duration> {
        self.in_flight.iter().filter_map(|entry| entry.wakeup(self.connected, self.duty.next())).min()
    }

    /// The payload of a query in flight.
    pub fn payload(&self, id: QueryId) -> Option<&P> {
        self.find(id).map(|place| &self.in_flight[place].payload)
    }

    /// The queries in flight, in order of submission.
    pub fn queries(&self) -> impl Iterator<Item = (QueryId, &P)> {
        self.in_flight.iter().map(|entry| (entry.id, &entry.payload))
    }

    /// Their payloads, to be changed.
    pub fn payloads_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.in_flight.iter_mut().map(|entry| &mut entry.payload)
    }

    /// Queries in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether `N` queries are in flight.
    pub fn is_full(&self) -> bool {
        self.in_flight.is_full()
    }

    /// Whether queries can be sent.
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// What happened so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn find(&self, id: QueryId) -> Option<usize> {
        self.in_flight.iter().position(|entry| entry.id == id)
    }

    /// Where the query in flight is and when it was first sent, or counts why no reply is expected. A reply to a
    /// query that was never sent is forged or mistaken: foreign.
    fn expected(&mut self, id: QueryId) -> Option<(usize, Duration)> {
        let place = self.find(id);
        let sent = place.and_then(|place| Some((place, self.in_flight[place].first_published?)));
        if sent.is_none() {
            let before = self.finished.iter().rev().find(|finished| place.is_none() && finished.0 == id);
            let counter = match before {
                Some((_, true)) => &mut self.counters.duplicate_replies,
                Some((_, false)) => &mut self.counters.late_replies,
                None => &mut self.counters.foreign_replies,
            };
            *counter += 1;
        }
        sent
    }

    fn remember(&mut self, id: QueryId, answered: bool) {
        if self.finished.is_full() {
            self.finished.pop_front();
        }
        // There is room now.
        let _ = self.finished.push_back((id, answered));
    }
}

/// What is to be done with one entry.
enum Due {
    Publish,
    GiveUp(GiveUp),
}

impl<P> InFlight<P> {
    /// Attempts that count: the connection held, or the breaks are used up.
    const fn counted(&self) -> u8 {
        self.attempts.saturating_sub(self.broken)
    }

    /// `fresh_at` is when a query may be sent for the first time.
    fn due(&self, now: Duration, connected: bool, attempts: u8, fresh_at: Duration) -> Option<Due> {
        if self.attempts == 0 && connected {
            return (now >= fresh_at).then_some(Due::Publish);
        }
        if self.give_up_at.is_some_and(|at| now >= at) {
            let reason = if self.attempts == 0 { GiveUp::NotConnected } else { GiveUp::NoReply };
            return Some(Due::GiveUp(reason));
        }
        match self.state {
            State::Ready => connected.then_some(Due::Publish),
            State::Sent { until } if now >= until && self.counted() >= attempts => {
                Some(Due::GiveUp(GiveUp::NoReply))
            }
            State::Sent { until } | State::Postponed { until } => {
                (now >= until && connected).then_some(Due::Publish)
            }
        }
    }

    fn wakeup(&self, connected: bool, fresh_at: Duration) -> Option<Duration> {
        if self.attempts == 0 && connected {
            return Some(fresh_at);
        }
        // Without a connection only what has no attempts left can come due, and `disconnected` left only that `Sent`.
        let due = match self.state {
            State::Ready => connected.then_some(Duration::ZERO),
            State::Sent { until } => Some(until),
            State::Postponed { until } => connected.then_some(until),
        };
        match (due, self.give_up_at) {
            (Some(due), Some(at)) => Some(due.min(at)),
            (due, at) => due.or(at),
        }
    }
}

#[cfg(test)]
mod tests;
