//! The query client at work: outbox, client and uplink together, still without a socket or a thread of its own.
//!
//! ```text
//! submit ─► client ─────────► uplink ─► server
//!     └─► outbox ─┘ (when N are in flight)   │
//! step ◄── outcome ◄── client ◄── uplink ◄───┘
//! ```
//!
//! Every query handed to [`Session::submit`] comes back exactly once: as [`Event::Answered`], [`Event::GivenUp`], or,
//! where the outbox was full, as the return value of a later `submit`.

use core::time::Duration;

use glimpse_protocol::{GalleryStatus, QueryId};

use crate::backoff::Jitter;
use crate::client::{Action, Busy, Counters, GiveUp, Patience, QueryClient, Refused};
use crate::duty::Duty;
use crate::outbox::Outbox;
use crate::ports::{Clock, Received, Uplink};

/// What a step of a session brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<P, R, E> {
    /// Queries are sent from now on.
    Connected,
    /// There is no connection, for this reason.
    Disconnected(E),
    /// What the server says of its gallery.
    Gallery(GalleryStatus),
    /// A query has its reply.
    Answered {
        /// The query.
        id: QueryId,
        /// What was submitted.
        payload: P,
        /// What the server says.
        reply: R,
        /// How often the query was sent.
        attempts: u8,
        /// Time from first sending to the reply.
        reply_time: Duration,
    },
    /// A query gets no reply.
    GivenUp {
        /// The query.
        id: QueryId,
        /// What was submitted.
        payload: P,
        /// Why.
        reason: GiveUp,
        /// How often the query was sent.
        attempts: u8,
    },
    /// The uplink did not take something; the query concerned, if any, has lost one attempt.
    NotSent(E),
}

/// What a step of the session over the uplink `U` brings.
pub type EventOf<U, P> = Event<P, <U as Uplink>::Reply, <U as Uplink>::Error>;

/// At most `N` queries in flight and `OUTBOX` waiting, over the uplink `U`. The payload `P` gives the message's bytes
/// and may carry what the shell wants back with the outcome.
pub struct Session<U, C, P, const N: usize, const OUTBOX: usize> {
    uplink: U,
    clock: C,
    client: QueryClient<P, N>,
    outbox: Outbox<(QueryId, P), OUTBOX>,
    announce: bool,
    /// Queries that wait somewhere else.
    elsewhere: usize,
}

impl<U: Uplink, C: Clock, P: AsRef<[u8]>, const N: usize, const OUTBOX: usize> Session<U, C, P, N, OUTBOX> {
    /// A session over an uplink that is not connected yet. `announce` says whether the device presents itself by a
    /// status: a one-shot query has none.
    pub const fn new(uplink: U, clock: C, patience: Patience, jitter: Jitter, announce: bool) -> Self {
        let client = QueryClient::new(patience, jitter);
        Self { uplink, clock, client, outbox: Outbox::new(), announce, elsewhere: 0 }
    }

    /// Bounds how often a query is sent for the first time.
    #[must_use]
    pub fn with_duty(self, duty: Duty) -> Self {
        Self { client: self.client.with_duty(duty), ..self }
    }

    /// Takes a query; returns the one that had to be dropped for it, the oldest of the outbox.
    #[must_use = "a dropped query needs an outcome too"]
    pub fn submit(&mut self, id: QueryId, payload: P) -> Option<(QueryId, P)> {
        if !self.outbox.is_empty() {
            return self.outbox.push((id, payload));
        }
        match self.client.submit(id, payload, self.clock.now()) {
            Ok(()) => None,
            Err(Refused::Full(payload)) => self.outbox.push((id, payload)),
            // Ids are random: the only way here is a caller that submits twice.
            Err(Refused::SameId(payload)) => Some((id, payload)),
        }
    }

    /// Does what is due, then waits for at most `wait` for something to happen. `None` says only that nothing for the
    /// caller happened; it may come early.
    ///
    /// # Errors
    /// The uplink has ended for good.
    pub fn step(&mut self, wait: Duration) -> Result<Option<EventOf<U, P>>, U::Error> {
        while let Some((id, payload)) = self.room().then(|| self.outbox.pop()).flatten() {
            if let Err(Refused::Full(payload) | Refused::SameId(payload)) =
                self.client.submit(id, payload, self.clock.now())
            {
                // Unreachable by `room` and random ids; even so the query is not lost.
                return Ok(Some(Event::GivenUp { id, payload, reason: GiveUp::NotConnected, attempts: 0 }));
            }
        }
        while let Some(action) = self.client.poll(self.clock.now()) {
            match action {
                Action::Publish { id, .. } => {
                    let Some(payload) = self.client.payload(id) else { continue };
                    if let Err(error) = self.uplink.publish(id, payload.as_ref()) {
                        return Ok(Some(Event::NotSent(error)));
                    }
                }
                Action::GiveUp { id, payload, reason, attempts } => {
                    return Ok(Some(Event::GivenUp { id, payload, reason, attempts }));
                }
            }
        }
        let until_wakeup = self.client.next_wakeup().map(|at| at.saturating_sub(self.clock.now()));
        let wait = until_wakeup.map_or(wait, |until_wakeup| wait.min(until_wakeup));
        Ok(self.uplink.receive(wait)?.and_then(|received| self.handle(received)))
    }

    fn handle(&mut self, received: Received<U::Reply, U::Error>) -> Option<EventOf<U, P>> {
        match received {
            Received::Connected => {
                self.client.connected();
                if self.announce
                    && let Err(error) = self.uplink.announce(self.outbox.len() + self.elsewhere)
                {
                    return Some(Event::NotSent(error));
                }
                Some(Event::Connected)
            }
            Received::Disconnected(error) => {
                self.client.disconnected();
                Some(Event::Disconnected(error))
            }
            Received::Gallery(status) => Some(Event::Gallery(status)),
            Received::Reply { id, reply, busy } => {
                let now = self.clock.now();
                let answered = if busy {
                    match self.client.busy(id, now) {
                        Busy::Exhausted(answered) => Some(answered),
                        Busy::WillRetry | Busy::Ignored => None,
                    }
                } else {
                    self.client.reply(id, now)
                }?;
                let (payload, attempts, reply_time) =
                    (answered.payload, answered.attempts, answered.reply_time);
                Some(Event::Answered { id, payload, reply, attempts, reply_time })
            }
        }
    }

    fn room(&self) -> bool {
        !self.client.is_full()
    }

    /// Queries without an outcome, in flight or waiting.
    pub fn unanswered(&self) -> usize {
        self.client.in_flight() + self.outbox.len()
    }

    /// Queries without an outcome, oldest first.
    pub fn queries(&self) -> impl Iterator<Item = (QueryId, &P)> {
        self.client.queries().chain(self.outbox.iter().map(|(id, payload)| (*id, payload)))
    }

    /// The same, to be changed: a message may know more than before, under the same id.
    pub fn payloads_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.client.payloads_mut().chain(self.outbox.iter_mut().map(|(_, payload)| payload))
    }

    /// How many queries wait somewhere else, on a disk say: the device tells its server of them too.
    pub const fn wait_elsewhere(&mut self, count: usize) {
        self.elsewhere = count;
    }

    /// Queries waiting in the outbox.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Queries dropped from the outbox.
    pub const fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    /// Whether queries can be sent.
    pub const fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    /// What happened to queries so far.
    pub const fn counters(&self) -> Counters {
        self.client.counters()
    }

    /// Ends the session and gives its uplink back, to be closed.
    pub fn into_uplink(self) -> U {
        self.uplink
    }
}

#[cfg(test)]
mod day;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Error, ErrorKind};
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::vec::Vec;

    #[derive(Debug, Clone, PartialEq)]
    struct Broken;

    impl Error for Broken {
        fn kind(&self) -> ErrorKind {
            ErrorKind::Unavailable
        }
    }

    /// A server that answers each query with its own bytes, over a clock that moves only while someone waits.
    #[derive(Default)]
    struct Echo {
        incoming: VecDeque<Received<Vec<u8>, Broken>>,
        sent: Rc<Cell<usize>>,
        deaf: bool,
        now: Rc<Cell<Duration>>,
    }

    struct FakeClock(Rc<Cell<Duration>>);

    impl Clock for FakeClock {
        fn now(&self) -> Duration {
            self.0.get()
        }
    }

    impl Uplink for Echo {
        type Reply = Vec<u8>;
        type Error = Broken;

        fn publish(&mut self, id: QueryId, message: &[u8]) -> Result<(), Broken> {
            self.sent.set(self.sent.get() + 1);
            if !self.deaf {
                self.incoming.push_back(Received::Reply { id, reply: message.to_vec(), busy: false });
            }
            Ok(())
        }

        fn announce(&mut self, _outbox: usize) -> Result<(), Broken> {
            Err(Broken)
        }

        fn receive(&mut self, wait: Duration) -> Result<Option<Received<Vec<u8>, Broken>>, Broken> {
            let received = self.incoming.pop_front();
            if received.is_none() {
                self.now.set(self.now.get() + wait);
            }
            Ok(received)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn session(uplink: Echo, announce: bool) -> Session<Echo, FakeClock, Vec<u8>, 2, 3> {
        let clock = FakeClock(Rc::clone(&uplink.now));
        Session::new(uplink, clock, Patience::within(5 * SECOND, 3), Jitter::new(1), announce)
    }

    fn id(n: u8) -> QueryId {
        QueryId::from_bytes([n; 16])
    }

    #[test]
    fn queries_wait_for_the_connection_and_the_oldest_of_the_outbox_is_dropped() {
        let mut session = session(Echo::default(), false);
        let dropped: Vec<_> =
            (0..7).filter_map(|n| session.submit(id(n), [n].to_vec())).map(|dropped| dropped.1[0]).collect();
        assert_eq!((dropped, session.unanswered(), session.dropped()), ([2, 3].to_vec(), 5, 2));
        assert_eq!(session.step(SECOND), Ok(None));
        session.uplink.incoming.push_back(Received::Connected);
        let mut answered = Vec::new();
        while session.unanswered() > 0 {
            if let Some(Event::Answered { id, payload, reply, .. }) = session.step(SECOND).unwrap() {
                assert_eq!((id.as_bytes()[0], &payload), (reply[0], &reply));
                answered.push(reply[0]);
            }
        }
        assert_eq!(answered, [0, 1, 4, 5, 6]);
    }

    #[test]
    fn a_message_that_is_changed_while_it_waits_is_sent_as_it_is_then() {
        let mut session = session(Echo::default(), false);
        for n in 0..4 {
            assert_eq!(session.submit(id(n), [n].to_vec()), None);
        }
        session.payloads_mut().for_each(|payload| payload.push(9));
        session.uplink.incoming.push_back(Received::Connected);
        let mut answered = 0;
        while session.unanswered() > 0 {
            if let Some(Event::Answered { reply, .. }) = session.step(SECOND).unwrap() {
                assert_eq!(reply, [answered, 9]);
                answered += 1;
            }
        }
        assert_eq!(answered, 4);
    }

    #[test]
    fn a_silent_server_is_asked_three_times_in_the_time_allowed() {
        let uplink = Echo { deaf: true, incoming: VecDeque::from([Received::Connected]), ..Echo::default() };
        let (sent, now) = (Rc::clone(&uplink.sent), Rc::clone(&uplink.now));
        let mut session = session(uplink, false);
        assert_eq!(session.submit(id(1), [1].to_vec()), None);
        let outcome = loop {
            match session.step(60 * SECOND).unwrap() {
                None | Some(Event::Connected) => {}
                Some(outcome) => break outcome,
            }
        };
        let given_up =
            Event::GivenUp { id: id(1), payload: [1].to_vec(), reason: GiveUp::NoReply, attempts: 3 };
        assert_eq!((outcome, sent.get()), (given_up, 3));
        assert!(now.get() <= 5 * SECOND && now.get() > 3 * SECOND, "{:?}", now.get());
    }

    #[test]
    fn a_status_that_cannot_be_sent_does_not_stop_the_session() {
        let uplink = Echo { incoming: VecDeque::from([Received::Connected]), ..Echo::default() };
        let mut session = session(uplink, true);
        assert_eq!(session.step(SECOND), Ok(Some(Event::NotSent(Broken))));
        assert!(session.is_connected());
    }
}
