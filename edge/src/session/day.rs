//! A day of a device in virtual time: the real session, client, outbox, back-off and duty, over a camera, a clock and
//! an uplink that are made up.
//!
//! The weather of the day is a list of spells, which proptest draws and shrinks; dice of one seed decide the rest.
//! The uplink behaves as the real one does: it tries to reconnect by itself, with a [`Backoff`]; what was on its way
//! when a connection breaks may be lost or come later; the server answers each message that reaches it, under its id.
//! Whenever the device goes to sleep, the world checks that there was nothing for it to do.

use super::*;
use crate::backoff::Backoff;
use crate::ports::{Camera, Capture, Error, ErrorKind};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::vec::Vec;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// As `glimpse-edge run` has them.
const IN_FLIGHT: usize = 8;
const OUTBOX: usize = 256;
const LOOK_AROUND: Duration = Duration::from_secs(10);
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// More steps than this without time passing are a device that turns in circles: a full outbox takes one an entry.
const STEPS_MAX: usize = 2000;

/// What the network and the server are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// All is well.
    Fine,
    /// No broker.
    Away,
    /// A broker for a second, then none for a second.
    Flapping,
    /// Messages are lost, doubled, late and out of order, and the uplink does not take some.
    Lossy,
    /// The server has too much to do.
    Busy,
    /// There is a broker, and no server.
    Deaf,
}

#[derive(Debug, Clone)]
struct Spell {
    weather: Weather,
    lasts: Duration,
    /// Mean time between photos.
    photos_every: Duration,
}

fn spell() -> impl Strategy<Value = Spell> {
    use Weather::{Away, Busy, Deaf, Fine, Flapping, Lossy};
    let weather = prop_oneof![
        3 => Just(Fine), 2 => Just(Away), 1 => Just(Flapping), 3 => Just(Lossy), 1 => Just(Busy), 1 => Just(Deaf),
    ];
    (weather, 1..7200_u64, 1..200_u64).prop_map(|(weather, lasts, every)| Spell {
        weather,
        lasts: Duration::from_secs(lasts),
        photos_every: Duration::from_secs(every),
    })
}

/// A day, or less where nothing but the spells is of interest.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    spells: Vec<Spell>,
    lasts: Duration,
    patience: Patience,
    per_minute: u32,
}

impl Plan {
    /// The spell of a moment; they begin anew when all are over.
    fn at(&self, now: Duration) -> &Spell {
        let all: Duration = self.spells.iter().map(|spell| spell.lasts).sum();
        let mut left = Duration::from_nanos((now.as_nanos() % all.as_nanos()) as u64);
        for spell in &self.spells {
            match left.checked_sub(spell.lasts) {
                Some(rest) => left = rest,
                None => return spell,
            }
        }
        &self.spells[0]
    }

    fn weather(&self, now: Duration) -> Weather {
        if now >= self.lasts { Weather::Fine } else { self.at(now).weather }
    }

    fn has_broker(&self, now: Duration) -> bool {
        match self.weather(now) {
            Weather::Away => false,
            Weather::Flapping => now.as_secs().is_multiple_of(2),
            _ => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Broken;

impl Error for Broken {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// What the world knows of a query without an outcome.
#[derive(Debug, Default)]
struct Open {
    sent: u8,
    /// When it was first sent, and when something last happened to it.
    first: Option<Duration>,
    last: Duration,
}

/// What is on its way.
enum Coming {
    Query(u64),
    Reply { number: u64, busy: bool },
    Dial,
}

struct World {
    plan: Plan,
    now: Duration,
    dice: SmallRng,
    backoff: Backoff,
    /// Whether there is a connection, and whether the device has heard of it.
    linked: bool,
    heard: bool,
    news: VecDeque<Received<u64, Broken>>,
    coming: BTreeMap<(Duration, u64), Coming>,
    serial: u64,
    open: BTreeMap<u64, Open>,
    /// The last query that was sent for the first time, and when.
    newest: Option<(u64, Duration)>,
    announced: u64,
    published: u64,
}

type Shared = Rc<RefCell<World>>;

impl World {
    fn new(plan: Plan) -> Self {
        let mut world = Self {
            dice: SmallRng::seed_from_u64(plan.seed),
            backoff: Backoff::new(RECONNECT.0, RECONNECT.1, Jitter::new(plan.seed)),
            plan,
            now: Duration::ZERO,
            linked: false,
            heard: false,
            news: VecDeque::new(),
            coming: BTreeMap::new(),
            serial: 0,
            open: BTreeMap::new(),
            newest: None,
            announced: 0,
            published: 0,
        };
        world.send(Duration::ZERO, Coming::Dial);
        world
    }

    fn send(&mut self, wait: Duration, what: Coming) {
        self.serial += 1;
        self.coming.insert((self.now + wait, self.serial), what);
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.dice.random_range(1..=most))
    }

    fn weather(&self) -> Weather {
        self.plan.weather(self.now)
    }

    /// The moment at which a broker that flaps, or a spell, ends the connection.
    fn breaks_at(&self) -> Option<Duration> {
        // The broker comes and goes at whole seconds only.
        self.linked.then(|| Duration::from_secs(self.now.as_secs() + 1))
    }

    /// Lets time pass up to the next thing that happens, `until` at the latest.
    fn pass(&mut self, until: Duration) {
        while self.news.is_empty() {
            let next = self.coming.first_key_value().map(|((at, _), _)| *at);
            let at = next.into_iter().chain(self.breaks_at()).chain([until]).min().unwrap_or(until);
            self.now = self.now.max(at);
            if self.linked && !self.plan.has_broker(self.now) {
                self.linked = false;
                self.hang_up();
            } else if let Some(entry) = self.coming.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let what = entry.remove();
                self.happens(what);
            } else if self.now >= until {
                return;
            }
        }
    }

    /// The uplink finds no connection, and tries again later.
    fn hang_up(&mut self) {
        self.news.push_back(Received::Disconnected(Broken));
        let wait = self.backoff.after_failure();
        assert!(wait <= RECONNECT.1 * 3 / 2, "the uplink waits for {wait:?}");
        self.send(wait, Coming::Dial);
    }

    fn happens(&mut self, what: Coming) {
        match what {
            Coming::Dial if self.plan.has_broker(self.now) => {
                self.linked = true;
                self.backoff.reset();
                self.news.push_back(Received::Connected);
            }
            Coming::Dial => self.hang_up(),
            Coming::Query(number) => self.served(number),
            Coming::Reply { number, busy } if self.linked => {
                let id = id(number);
                self.news.push_back(Received::Reply { id, reply: number, busy });
            }
            // Some brokers keep it until the device is back, for a while.
            Coming::Reply { number, busy } => {
                if self.dice.random_bool(0.3) {
                    let wait = self.millis(60_000);
                    self.send(wait, Coming::Reply { number, busy });
                }
            }
        }
    }

    /// A query reached the server.
    fn served(&mut self, number: u64) {
        let weather = self.weather();
        if weather == Weather::Deaf || !self.linked {
            return;
        }
        let busy = weather == Weather::Busy && self.dice.random_bool(0.7);
        let wait = self.millis(if weather == Weather::Lossy { 3000 } else { 40 });
        if weather == Weather::Lossy {
            if self.dice.random_bool(0.3) {
                return;
            }
            while self.dice.random_bool(0.2) {
                let wait = self.millis(120_000);
                self.send(wait, Coming::Reply { number, busy });
            }
        }
        self.send(wait, Coming::Reply { number, busy });
    }

    /// The device sleeps for `wait` from now on: there must be nothing that it could do.
    fn check_asleep(&self, wait: Duration) {
        let patience = self.plan.patience;
        let begun = self.open.values().filter(|open| open.sent > 0).count();
        let held = self.newest.is_some_and(|(_, at)| {
            self.plan.per_minute > 0 && self.now <= at + Duration::from_mins(1) / self.plan.per_minute
        });
        let room = begun < IN_FLIGHT;
        assert!(
            !self.heard || !room || held || begun == self.open.len(),
            "at {:?} the device sleeps on {} queries that it could send",
            self.now,
            self.open.len() - begun
        );
        let longest = patience.reply_timeout_max * 3 / 2;
        for (number, open) in self.open.iter().filter(|(_, open)| open.sent > 0) {
            assert!(
                !self.heard || open.last + longest >= self.now,
                "at {:?} query {number}, sent {} times, last touched at {:?}, is forgotten",
                self.now,
                open.sent,
                open.last
            );
            assert!(!self.heard || wait <= longest, "the device sleeps past the time-out of query {number}");
        }
    }
}

/// The fake uplink and the fake clock are two ends of the world.
struct End(Shared);

impl Clock for End {
    fn now(&self) -> Duration {
        self.0.borrow().now
    }
}

impl Uplink for End {
    type Reply = u64;
    type Error = Broken;

    fn publish(&mut self, query: QueryId, message: &[u8]) -> Result<(), Broken> {
        let world = &mut *self.0.borrow_mut();
        let number = u64::from_le_bytes(message.try_into().expect("the message is a photo's number"));
        assert_eq!(query, id(number));
        assert!(world.heard, "sent without a connection");
        world.published += 1;
        let (now, attempts) = (world.now, world.plan.patience.attempts + world.plan.patience.breaks);
        let open = world.open.get_mut(&number).expect("what is sent has no outcome yet");
        open.sent += 1;
        open.last = now;
        assert!(open.sent <= attempts, "query {number} is sent {} times", open.sent);
        if open.first.is_none() {
            open.first = Some(now);
            if let Some((before, at)) = world.newest {
                assert!(number > before, "query {number} is begun after query {before}");
                let pause = Duration::from_mins(1).checked_div(world.plan.per_minute).unwrap_or_default();
                assert!(now >= at + pause, "queries {before} and {number} are begun too soon after another");
            }
            world.newest = Some((number, now));
        }
        let lossy = world.weather() == Weather::Lossy;
        if lossy && world.dice.random_bool(0.05) {
            return Err(Broken);
        }
        if world.linked && !(lossy && world.dice.random_bool(0.3)) {
            let wait = world.millis(20);
            world.send(wait, Coming::Query(number));
        }
        Ok(())
    }

    fn announce(&mut self, outbox: usize) -> Result<(), Broken> {
        assert!(outbox <= OUTBOX);
        let world = &mut *self.0.borrow_mut();
        world.announced += 1;
        if world.weather() == Weather::Lossy && world.dice.random_bool(0.1) { Err(Broken) } else { Ok(()) }
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Received<u64, Broken>>, Broken> {
        let world = &mut *self.0.borrow_mut();
        if world.news.is_empty() && !wait.is_zero() {
            world.check_asleep(wait);
            // Now and then somebody wakes it.
            let until = world.now + if world.dice.random_bool(0.05) { wait / 3 } else { wait };
            world.pass(until);
        }
        let received = world.news.pop_front();
        match &received {
            Some(Received::Connected) => world.heard = true,
            Some(Received::Disconnected(_)) => world.heard = false,
            Some(Received::Reply { reply, busy: true, .. }) => {
                let now = world.now;
                if let Some(open) = world.open.get_mut(reply) {
                    open.last = now;
                }
            }
            _ => {}
        }
        Ok(received)
    }
}

/// A camera that somebody presses at random moments, and that fails now and then.
struct Shutter {
    world: Shared,
    next: Duration,
    taken: u64,
}

impl Camera for Shutter {
    type Photo = u64;
    type Error = Broken;

    fn capture(&mut self) -> Result<Capture<u64>, Broken> {
        let world = &mut *self.world.borrow_mut();
        if world.now >= world.plan.lasts {
            return Ok(Capture::End);
        }
        if world.now < self.next {
            return Ok(Capture::NotYet);
        }
        if world.dice.random_bool(0.01) {
            return Err(Broken);
        }
        let every = world.plan.at(world.now).photos_every;
        self.next += every.mul_f64(world.dice.random_range(0.0..2.0));
        self.taken += 1;
        Ok(Capture::Photo(self.taken))
    }
}

fn id(number: u64) -> QueryId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    QueryId::from_bytes(bytes)
}

/// What became of all photos.
#[derive(Debug, Default)]
struct Day {
    taken: u64,
    answered: Vec<u64>,
    given_up: u64,
    dropped: u64,
    unanswered_max: usize,
    published: u64,
}

/// Lives through a plan, and then waits for what is left in fine weather.
fn live(plan: &Plan) -> Day {
    let world = Rc::new(RefCell::new(World::new(plan.clone())));
    let mut camera = Shutter { world: Rc::clone(&world), next: Duration::ZERO, taken: 0 };
    let mut session: Session<End, End, [u8; 8], IN_FLIGHT, OUTBOX> = Session::new(
        End(Rc::clone(&world)),
        End(Rc::clone(&world)),
        plan.patience,
        Jitter::new(plan.seed ^ 1),
        true,
    )
    .with_duty(Duty::per_minute(plan.per_minute));
    let mut again = Backoff::new(SECOND / 2, 60 * SECOND, Jitter::new(plan.seed ^ 2));
    let (mut day, mut still, mut before, mut ended) = (Day::default(), 0, Duration::ZERO, false);
    // An outbox full takes that long where the duty is what holds it up, and as long again where the weather was.
    let slowest = Duration::from_mins(1).checked_div(plan.per_minute).unwrap_or_default().max(8 * SECOND);
    let end = plan.lasts + slowest * (OUTBOX + IN_FLIGHT) as u32;
    while !ended || session.unanswered() > 0 {
        let now = world.borrow().now;
        still = if now > before { 0 } else { still + 1 };
        before = now;
        assert!(still < STEPS_MAX, "the device turns in circles at {now:?}");
        assert!(now < end, "{} queries never end", session.unanswered());
        let wait = match camera.capture() {
            Ok(Capture::Photo(number)) => {
                again.reset();
                world.borrow_mut().open.insert(number, Open::default());
                if let Some((dropped, message)) = session.submit(id(number), number.to_le_bytes()) {
                    assert_eq!(dropped, id(u64::from_le_bytes(message)));
                    let open = world.borrow_mut().open.remove(&u64::from_le_bytes(message));
                    assert_eq!(open.map(|open| open.sent), Some(0), "what is dropped was never sent");
                    day.dropped += 1;
                }
                Duration::ZERO
            }
            Ok(Capture::NotYet) => camera.next.saturating_sub(now),
            Ok(Capture::End) => {
                ended = true;
                LOOK_AROUND
            }
            Err(Broken) => {
                camera.next = now + again.after_failure();
                camera.next.saturating_sub(now)
            }
        };
        match session.step(wait.min(LOOK_AROUND)).expect("the uplink never ends") {
            Some(Event::Answered { id: query, payload, reply, attempts, reply_time }) => {
                let number = u64::from_le_bytes(payload);
                assert_eq!((query, reply), (id(number), number), "a reply is to its own query");
                let open = world.borrow_mut().open.remove(&number).expect("each query has one outcome");
                assert_eq!(open.sent, attempts);
                assert_eq!(open.first.map(|first| first + reply_time), Some(world.borrow().now));
                day.answered.push(number);
            }
            Some(Event::GivenUp { id: query, payload, reason, attempts }) => {
                let number = u64::from_le_bytes(payload);
                assert_eq!(query, id(number));
                let open = world.borrow_mut().open.remove(&number).expect("each query has one outcome");
                assert_eq!(open.sent, attempts);
                assert_eq!(reason == GiveUp::NotConnected, attempts == 0);
                assert!(plan.patience.deadline.is_some() || attempts >= plan.patience.attempts);
                day.given_up += 1;
            }
            Some(Event::Connected | Event::Disconnected(_) | Event::Gallery(_) | Event::NotSent(_))
            | None => {}
        }
        let (unanswered, counters) = (session.unanswered(), session.counters());
        assert_eq!(unanswered, world.borrow().open.len());
        assert_eq!(session.queries().count(), unanswered);
        let in_flight = unanswered - session.waiting();
        assert!(in_flight <= IN_FLIGHT && session.waiting() <= OUTBOX);
        assert_eq!(counters.submitted, counters.answered + counters.given_up + in_flight as u64);
        assert_eq!((counters.published, session.dropped()), (world.borrow().published, day.dropped));
        day.unanswered_max = day.unanswered_max.max(unanswered);
    }
    let counters = session.counters();
    assert_eq!((counters.answered, counters.given_up), (day.answered.len() as u64, day.given_up));
    assert_eq!(camera.taken, counters.answered + counters.given_up + day.dropped);
    assert_eq!(world.borrow().open.len(), 0);
    (day.taken, day.published) = (camera.taken, counters.published);
    day
}

fn patience() -> impl Strategy<Value = Patience> {
    (1..5_u8, 0..20_u8, 1..20_u32, proptest::option::of(1..60_u32)).prop_map(
        |(attempts, breaks, timeout, deadline)| {
            let patience = Patience::within(timeout * SECOND, attempts);
            Patience { breaks, deadline: deadline.map(|seconds| seconds * SECOND), ..patience }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn in_a_day_of_any_weather_each_query_has_one_outcome_and_nothing_hangs_or_grows(
        seed in any::<u64>(),
        spells in proptest::collection::vec(spell(), 1..24),
        patience in patience(),
        per_minute in prop_oneof![3 => Just(0_u32), 1 => 1..100_u32],
    ) {
        live(&Plan { seed, spells, lasts: DAY, patience, per_minute });
    }
}

/// The patience of `glimpse-edge run`.
const RUN: Duration = Duration::from_secs(5);

fn plan(spells: &[(Weather, Duration)], photos_every: u32, lasts: Duration) -> Plan {
    let spells = spells
        .iter()
        .map(|(weather, lasts)| Spell {
            weather: *weather,
            lasts: *lasts,
            photos_every: photos_every * SECOND,
        })
        .collect();
    Plan { seed: 1, spells, lasts, patience: Patience::within(RUN, 3), per_minute: 0 }
}

fn check_all_answered_once_in_order(plan: &Plan) -> Day {
    let day = live(plan);
    assert_eq!((day.given_up, day.dropped), (0, 0), "{day:?}");
    assert_eq!(day.answered, (1..=day.taken).collect::<Vec<_>>(), "each once, in order");
    assert!(day.taken > 100, "{day:?}");
    day
}

/// With a pause between queries, so that the order of answers is that of queries: replies may pass one another.
#[test]
fn all_queries_of_an_hour_without_a_broker_are_answered_once_and_in_order() {
    let spells = [(Weather::Away, HOUR), (Weather::Fine, HOUR / 2)];
    for seed in 0..20 {
        let mut plan = plan(&spells, 20, HOUR * 3 / 2);
        (plan.seed, plan.per_minute) = (seed, 200);
        let day = check_all_answered_once_in_order(&plan);
        assert!(day.unanswered_max > 100 && day.unanswered_max <= IN_FLIGHT + OUTBOX, "{day:?}");
        assert_eq!(day.published, day.taken, "nothing is sent twice");
    }
}

#[test]
fn all_queries_of_a_broker_that_flaps_every_second_are_answered_once() {
    for seed in 0..20 {
        let mut plan = plan(&[(Weather::Flapping, HOUR)], 5, 2 * HOUR);
        plan.seed = seed;
        let day = live(&plan);
        let mut answered = day.answered.clone();
        answered.sort_unstable();
        assert_eq!(answered, (1..=day.taken).collect::<Vec<_>>(), "{day:?}");
        // A back-off that grows may miss the second in which the broker is there, some times in a row.
        assert!(day.unanswered_max <= 64, "{day:?}");
    }
}

#[test]
fn a_day_without_a_broker_keeps_the_newest_and_counts_the_rest() {
    let day = live(&plan(&[(Weather::Away, DAY)], 20, DAY));
    let kept = (IN_FLIGHT + OUTBOX) as u64;
    assert_eq!((day.unanswered_max as u64, day.dropped), (kept, day.taken - kept), "{day:?}");
    assert_eq!(day.answered.len() as u64 + day.given_up, kept);
    // Those that were in flight before the others came, and the newest.
    let mut answered = day.answered;
    answered.sort_unstable();
    let newest = (day.taken - OUTBOX as u64 + 1)..=day.taken;
    assert_eq!(answered, (1..=IN_FLIGHT as u64).chain(newest).collect::<Vec<_>>());
}

#[test]
fn a_server_that_never_answers_is_asked_as_often_as_allowed_and_no_more() {
    let day = live(&plan(&[(Weather::Deaf, DAY)], 30, HOUR * 10));
    assert!(day.given_up > 1000, "{day:?}");
    assert!(day.published <= 3 * day.taken, "{day:?}");
}
