//! Plugs are pulled at every operation, on a disk that forgets what was not brought to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const LIMITS: Limits = Limits { bytes: BYTES_MIN, age: 3600 };

fn id(n: u64) -> QueryId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    QueryId::from_bytes(bytes)
}

fn number(id: QueryId) -> u64 {
    u64::from_le_bytes(*id.as_bytes().first_chunk().unwrap())
}

/// A disk in memory.
#[derive(Debug, Clone)]
struct Simulated(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    /// What a program sees, and how much of each is on the disk.
    files: BTreeMap<u64, (Vec<u8>, usize)>,
    /// Operations until the power goes.
    power: Option<usize>,
    /// One operation in so many fails; 0 for none.
    faults: u32,
    rng: SmallRng,
}

impl Simulated {
    fn new(seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self(Rc::new(RefCell::new(State { files: BTreeMap::new(), power: None, faults: 0, rng })))
    }

    /// The power went: of what was not brought to the disk any part may be there, the last of it perhaps wrong.
    fn restart(&self) {
        let state = &mut *self.0.borrow_mut();
        state.power = None;
        for (bytes, synced) in state.files.values_mut() {
            let kept = state.rng.random_range(*synced..=bytes.len());
            bytes.truncate(kept);
            if kept > *synced && state.rng.random_bool(0.3) {
                let from = state.rng.random_range(*synced..kept);
                let noise = state.rng.random_bool(0.5);
                for byte in &mut bytes[from..] {
                    *byte = if noise { state.rng.random() } else { 0 };
                }
            }
            *synced = bytes.len();
        }
    }

    fn is_off(&self) -> bool {
        self.0.borrow().power == Some(0)
    }
}

impl State {
    /// How far an operation comes: done, or an error after so many parts of a hundred of it.
    fn operation(&mut self) -> Result<(), (u32, io::Error)> {
        let part = self.rng.random_range(0..=100);
        match &mut self.power {
            Some(0) => return Err((0, io::Error::other("off"))),
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    return Err((part, io::Error::other("the power went")));
                }
            }
            None => {}
        }
        if self.faults > 0 && self.rng.random_ratio(1, self.faults) {
            return Err((part, io::Error::from(io::ErrorKind::StorageFull)));
        }
        Ok(())
    }
}

impl Disk for Simulated {
    type File = u64;

    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.borrow().files.keys().rev().copied().collect())
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().files[&segment].0.clone())
    }

    fn read_at(&self, segment: u64, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let state = self.0.borrow();
        let bytes =
            state.files.get(&segment).and_then(|(bytes, _)| bytes.get(at as usize..at as usize + length));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn create(&mut self, segment: u64) -> io::Result<u64> {
        let state = &mut *self.0.borrow_mut();
        let result = state.operation();
        if result.as_ref().err().is_none_or(|(part, _)| *part > 50) {
            assert!(state.files.insert(segment, (Vec::new(), 0)).is_none(), "segments are not made twice");
        }
        result.map(|()| segment).map_err(|(_, error)| error)
    }

    fn append(&mut self, file: &mut u64, bytes: &[u8]) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let result = state.operation();
        let part = result.as_ref().err().map_or(100, |(part, _)| *part) as usize;
        state.files.get_mut(file).unwrap().0.extend(&bytes[..bytes.len() * part / 100]);
        result.map_err(|(_, error)| error)
    }

    fn sync(&mut self, file: &mut u64) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let result = state.operation();
        // One that was removed meanwhile has nothing to bring there.
        let Some((bytes, synced)) = state.files.get_mut(file) else { return Ok(()) };
        match &result {
            Ok(()) => *synced = bytes.len(),
            // Some of it may have come there; and the rest never will.
            Err((part, _)) => *synced += (bytes.len() - *synced) * *part as usize / 100,
        }
        result.map_err(|(_, error)| error)
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let result = state.operation();
        if result.as_ref().err().is_none_or(|(part, _)| *part > 50) {
            state.files.remove(&segment);
        }
        result.map_err(|(_, error)| error)
    }
}

/// What must be true of queries, whatever the disk does.
#[derive(Default)]
struct Ledger {
    next: u64,
    /// Of those, nobody can say whether they were kept.
    in_hand: BTreeSet<u64>,
    kept: BTreeSet<u64>,
    acted: BTreeSet<u64>,
    lost: u64,
}

impl Ledger {
    /// What waits after a restart.
    fn check(&mut self, mut journal: Journal<Simulated>) {
        let waiting: Vec<u64> = std::iter::from_fn(|| journal.take())
            .map(|(id, body)| {
                assert_eq!(body, body_of(number(id)), "a query comes back as it was");
                number(id)
            })
            .collect();
        assert!(waiting.is_sorted(), "in the order in which they came: {waiting:?}");
        let waiting: BTreeSet<u64> = waiting.into_iter().collect();
        assert!(waiting.is_disjoint(&self.acted), "acted upon twice: {waiting:?}");
        for query in &waiting {
            assert!(self.kept.contains(query) || self.in_hand.contains(query), "{query} came from nowhere");
        }
        for query in &self.kept {
            assert!(waiting.contains(query) || self.in_hand.contains(query), "{query} is lost");
        }
        self.lost += self.in_hand.difference(&waiting).count() as u64;
        (self.kept, self.in_hand) = (waiting, BTreeSet::new());
    }

    /// A while of work; ends early where the power goes.
    fn work(&mut self, journal: &mut Journal<Simulated>, disk: &Simulated, rng: &mut SmallRng) {
        let mut pushed = BTreeSet::new();
        for _ in 0..200 {
            if disk.is_off() {
                break;
            }
            if rng.random_bool(0.6) {
                let query = self.next;
                self.next += 1;
                if let Ok(dropped) = journal.push(id(query), Now::default(), &body_of(query)) {
                    assert!(dropped.is_empty());
                    pushed.insert(query);
                } else {
                    self.in_hand.insert(query);
                }
                if rng.random_bool(0.7) {
                    match journal.sync() {
                        Ok(()) => self.kept.append(&mut pushed),
                        Err(_) => self.in_hand.append(&mut pushed),
                    }
                }
            } else if let Some((answered, _)) = journal.take() {
                // Acted upon after all is on the disk, and not otherwise.
                let finished = journal.finish(answered);
                let synced = journal.sync();
                if finished.is_ok() && synced.is_ok() {
                    self.kept.append(&mut pushed);
                    assert!(self.acted.insert(number(answered)), "{answered} is acted upon twice");
                    self.kept.remove(&number(answered));
                } else {
                    self.in_hand.append(&mut pushed);
                    self.in_hand.insert(number(answered));
                }
            }
        }
        self.in_hand.append(&mut pushed);
    }
}

fn body_of(query: u64) -> Vec<u8> {
    vec![query as u8; (query * 7919 % 3000) as usize]
}

/// 500 plugs, each at another operation.
#[test]
fn a_pulled_plug_loses_what_is_in_hand_and_nothing_is_acted_upon_twice() {
    let disk = Simulated::new(1);
    let mut rng = SmallRng::seed_from_u64(2);
    let mut ledger = Ledger::default();
    let mut pulled = 0;
    for round in 0..500 {
        let open = || Journal::open(disk.clone(), LIMITS).unwrap().0;
        ledger.check(open());
        let mut journal = open();
        disk.0.borrow_mut().power = Some(1 + round % 97);
        ledger.work(&mut journal, &disk, &mut rng);
        pulled += usize::from(disk.is_off());
        disk.restart();
    }
    assert!(pulled >= 400 && ledger.acted.len() > 1000, "{pulled} plugs, {} acted upon", ledger.acted.len());
    // Three operations are under way at most: a query that is kept, one that has its outcome, and a removal.
    assert!(ledger.lost <= 3 * 500, "{} lost", ledger.lost);
}

/// A disk that is full every now and then, and plugs.
#[test]
fn a_failing_disk_makes_nothing_be_acted_upon_twice() {
    for seed in 0..50 {
        let disk = Simulated::new(seed);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut ledger = Ledger::default();
        for round in 0..20 {
            disk.0.borrow_mut().faults = 0;
            let open = || Journal::open(disk.clone(), LIMITS).unwrap().0;
            ledger.check(open());
            let mut journal = open();
            {
                let state = &mut *disk.0.borrow_mut();
                (state.faults, state.power) = (10, (round % 2 == 0).then_some(150));
            }
            ledger.work(&mut journal, &disk, &mut rng);
            disk.restart();
        }
    }
}

#[test]
fn the_oldest_are_dropped_for_new_ones_and_the_disk_is_bounded() {
    let disk = Simulated::new(3);
    let (mut journal, _) = Journal::open(disk.clone(), LIMITS).unwrap();
    let body = vec![7; BODY_BYTES_MAX];
    let mut dropped = Vec::new();
    for query in 0..500 {
        dropped.extend(journal.push(id(query), Now::default(), &body).unwrap().into_iter().map(number));
        assert!(journal.bytes() <= BYTES_MIN, "{} bytes", journal.bytes());
        let on_disk: usize = disk.0.borrow().files.values().map(|(bytes, _)| bytes.len()).sum();
        assert_eq!(journal.bytes(), on_disk as u64);
    }
    assert_eq!(journal.dropped(), dropped.len() as u64);
    assert_eq!(dropped, (0..500 - journal.len() as u64).collect::<Vec<_>>());
    assert!(journal.len() > 40, "{}", journal.len());
    assert_eq!(number(journal.take().unwrap().0), dropped.len() as u64);
    assert!(journal.push(id(999), Now::default(), &[body, vec![0]].concat()).is_err());
}

const fn at(wall: u64, uptime: u64) -> Now {
    Now { wall: if wall == 0 { None } else { Some(wall) }, uptime }
}

#[test]
fn queries_that_waited_for_too_long_are_dropped_whatever_the_clock_does() {
    let (mut journal, _) = Journal::open(Simulated::new(4), LIMITS).unwrap();
    // The clock is not set at first, then is, then is set wrongly and back.
    for (query, now) in
        [(1, at(0, 10)), (2, at(1_900_000_000, 20)), (3, at(9_900_000_000, 30)), (4, at(0, 40))]
    {
        journal.push(id(query), now, b"").unwrap();
        assert_eq!(journal.expire(now).unwrap(), []);
    }
    assert_eq!(journal.expire(at(1_900_000_000, 3610)).unwrap(), []);
    assert_eq!(journal.expire(at(0, 3611)).unwrap(), [id(1)]);
    assert_eq!(journal.expire(at(5, 3630)).unwrap(), [id(2)]);
    assert_eq!(journal.expire(at(9_900_000_000, 3640)).unwrap(), [id(3)]);
    assert_eq!(journal.expire(at(9_900_000_000, 9999)).unwrap(), [id(4)]);
    assert_eq!((journal.len(), journal.dropped()), (0, 4));
}

#[test]
fn after_a_restart_ages_are_known_once_a_clock_is_trusted() {
    let disk = Simulated::new(4);
    let (mut journal, _) = Journal::open(disk.clone(), LIMITS).unwrap();
    for (query, wall) in [(1, 0), (2, 10_000), (3, 12_000), (4, 20_000)] {
        journal.push(id(query), at(wall, 5), b"").unwrap();
    }
    journal.sync().unwrap();
    let (mut journal, _) = Journal::open(disk, LIMITS).unwrap();
    // The machine was off for an unknown time.
    assert_eq!(journal.expire(at(0, 3)).unwrap(), []);
    // One waits for longer than allowed since 10 000, which stands behind one of an unknown age.
    assert_eq!(journal.expire(at(13_601, 103)).unwrap(), [id(2)]);
    // What was known once stays known; a clock that goes forward afterwards drops nothing.
    assert_eq!(journal.expire(at(9_000_000, 104)).unwrap(), []);
    assert_eq!(journal.expire(at(0, 2103)).unwrap(), [id(3)]);
    // The first, and one that claims to come from after now.
    assert_eq!(journal.expire(at(0, 3603)).unwrap(), []);
    assert_eq!(journal.expire(at(0, 3604)).unwrap(), [id(1), id(4)]);
}

#[test]
fn a_journal_in_a_folder_is_there_again() {
    let place = tempfile::tempdir().unwrap();
    let open = || Journal::open(Folder::open(&place.path().join("outbox")).unwrap(), LIMITS).unwrap();
    let (mut journal, found) = open();
    assert_eq!(found, Found::default());
    let second = Folder::open(&place.path().join("outbox")).unwrap_err();
    assert!(second.to_string().contains("another program"), "{second}");
    for query in 0..5 {
        journal.push(id(query), Now::default(), b"a query").unwrap();
    }
    assert!(journal.finish(id(1)).unwrap() && !journal.finish(id(1)).unwrap());
    journal.sync().unwrap();
    drop(journal);
    std::fs::write(place.path().join("outbox/notes.txt"), "not ours").unwrap();
    let (mut journal, found) = open();
    assert_eq!(found, Found { waiting: 4, ..Found::default() });
    let all: Vec<u64> = std::iter::from_fn(|| journal.take()).map(|(id, _)| number(id)).collect();
    assert_eq!(all, [0, 2, 3, 4]);
    for query in all {
        assert!(journal.finish(id(query)).unwrap());
    }
    journal.sync().unwrap();
    drop(journal);
    let (journal, found) = open();
    assert_eq!((found, journal.bytes()), (Found::default(), 0));
    drop(journal);
    // A folder in the place of a file stands for a file that cannot be read.
    std::fs::create_dir(place.path().join("outbox/00000100.queries")).unwrap();
    let (mut journal, found) = open();
    assert_eq!(found, Found { unreadable: 1, ..Found::default() });
    journal.push(id(9), Now::default(), b"a query").unwrap();
    assert_eq!(number(journal.take().unwrap().0), 9);
}

proptest! {
    #[test]
    fn damaged_bytes_cost_the_queries_that_they_are_of(
        queries in 1_u64..30, flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let disk = Simulated::new(5);
        let (mut journal, _) = Journal::open(disk.clone(), LIMITS).unwrap();
        for query in 0..queries {
            journal.push(id(query), Now::default(), &[query as u8; 50]).unwrap();
        }
        journal.sync().unwrap();
        for (place, bit) in &flips {
            let state = &mut *disk.0.borrow_mut();
            let bytes = &mut state.files.values_mut().next().unwrap().0;
            let place = place.index(bytes.len());
            bytes[place] ^= bit;
        }
        let (mut journal, found) = Journal::open(disk, LIMITS).unwrap();
        prop_assert!(journal.len() as u64 + flips.len() as u64 >= queries);
        prop_assert_eq!(found.waiting, journal.len());
        prop_assert!(journal.len() as u64 == queries || found.damaged + found.cut_off > 0);
        while let Some((query, body)) = journal.take() {
            prop_assert_eq!(body, vec![number(query) as u8; 50]);
        }
    }

    #[test]
    fn any_bytes_are_a_journal(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let disk = Simulated::new(6);
        disk.0.borrow_mut().files.insert(7, (bytes.clone(), bytes.len()));
        let (mut journal, found) = Journal::open(disk, LIMITS).unwrap();
        prop_assert_eq!((found.waiting, found.cut_off), (0, bytes.len() as u64));
        prop_assert!(journal.push(id(1), Now::default(), b"one").is_ok());
    }
}
