use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec as StdVec;

const SECOND: Duration = Duration::from_secs(1);

fn id(n: u8) -> QueryId {
    QueryId::from_bytes([n; 16])
}

fn patience() -> Patience {
    Patience { attempts: 3, breaks: 0, reply_timeout: SECOND, reply_timeout_max: 2 * SECOND, deadline: None }
}

fn connected() -> QueryClient<&'static str, 2> {
    let mut client = QueryClient::new(patience(), Jitter::new(1));
    client.connected();
    client
}

fn drain<P, const N: usize>(client: &mut QueryClient<P, N>, now: Duration) -> StdVec<Action<P>> {
    core::iter::from_fn(|| client.poll(now)).collect()
}

#[test]
fn sends_a_query_once_and_ends_it_with_its_reply() {
    let mut client = connected();
    client.submit(id(1), "a", SECOND).unwrap();
    assert_eq!(drain(&mut client, SECOND), [Action::Publish { id: id(1), attempt: 1 }]);
    assert_eq!(client.payload(id(1)), Some(&"a"));
    let answered = client.reply(id(1), SECOND + SECOND / 4).unwrap();
    assert_eq!(answered, Answered { payload: "a", attempts: 1, reply_time: SECOND / 4 });
    assert_eq!((client.in_flight(), client.next_wakeup()), (0, None));
}

#[test]
fn sends_nothing_before_it_is_connected() {
    let mut client = QueryClient::<_, 2>::new(patience(), Jitter::new(1));
    client.submit(id(1), (), SECOND).unwrap();
    assert_eq!((client.poll(100 * SECOND), client.next_wakeup()), (None, None));
    client.connected();
    assert_eq!(client.poll(100 * SECOND), Some(Action::Publish { id: id(1), attempt: 1 }));
}

#[test]
fn sends_again_after_growing_timeouts_and_then_gives_up() {
    let mut client = connected();
    client.submit(id(1), "a", SECOND).unwrap();
    let mut now = SECOND;
    let mut waits = StdVec::new();
    let last = loop {
        let before = now;
        match client.poll(now) {
            Some(Action::Publish { .. }) => {
                now = client.next_wakeup().unwrap();
                waits.push(now.checked_sub(before).unwrap());
            }
            last => break last,
        }
    };
    assert_eq!(last, Some(Action::GiveUp { id: id(1), payload: "a", reason: GiveUp::NoReply, attempts: 3 }));
    for (wait, least) in waits.iter().zip([SECOND, 2 * SECOND, 2 * SECOND]) {
        assert!(*wait >= least && *wait <= least * 3 / 2, "{waits:?}");
    }
    assert_eq!(waits.len(), 3);
}

#[test]
fn sends_again_after_reconnection_but_not_more_often_than_allowed() {
    let mut client = connected();
    client.submit(id(1), "a", SECOND).unwrap();
    for attempt in 1..=3 {
        assert_eq!(drain(&mut client, SECOND), [Action::Publish { id: id(1), attempt }]);
        client.disconnected();
        assert_eq!(drain(&mut client, SECOND), []);
        client.connected();
    }
    assert_eq!(drain(&mut client, SECOND), []);
    assert!(client.next_wakeup().is_some_and(|at| at > SECOND));
    assert!(matches!(client.poll(10 * SECOND), Some(Action::GiveUp { attempts: 3, .. })));
}

#[test]
fn a_connection_that_breaks_costs_breaks_and_then_attempts() {
    let patience = Patience { attempts: 2, breaks: 3, ..patience() };
    let mut client = QueryClient::<_, 1>::new(patience, Jitter::new(1));
    client.submit(id(1), (), SECOND).unwrap();
    for attempt in 1..=5 {
        client.connected();
        assert_eq!(drain(&mut client, SECOND), [Action::Publish { id: id(1), attempt }]);
        // A break costs no longer wait.
        let first = attempt <= 4;
        assert_eq!(client.next_wakeup().unwrap() <= SECOND * 5 / 2, first, "{attempt}");
        client.disconnected();
    }
    client.connected();
    assert_eq!(drain(&mut client, SECOND), []);
    assert!(matches!(client.poll(10 * SECOND), Some(Action::GiveUp { attempts: 5, .. })));
}

#[test]
fn a_duty_holds_first_sendings_back_and_no_repeats() {
    let mut client = QueryClient::<_, 3>::new(patience().with_deadline(4 * SECOND), Jitter::new(1))
        .with_duty(Duty::every(10 * SECOND));
    client.connected();
    for n in 1..=3 {
        client.submit(id(n), n, SECOND).unwrap();
    }
    assert_eq!(drain(&mut client, SECOND), [Action::Publish { id: id(1), attempt: 1 }]);
    let again = client.next_wakeup().unwrap();
    assert_eq!(drain(&mut client, again), [Action::Publish { id: id(1), attempt: 2 }]);
    assert!(client.reply(id(1), again).is_some());
    assert_eq!((drain(&mut client, 10 * SECOND), client.next_wakeup()), (StdVec::new(), Some(11 * SECOND)));
    // The deadline of the second has passed meanwhile: it is sent all the same, and has its time from then on.
    assert_eq!(drain(&mut client, 11 * SECOND), [Action::Publish { id: id(2), attempt: 1 }]);
    client.disconnected();
    assert!(matches!(client.poll(15 * SECOND), Some(Action::GiveUp { reason: GiveUp::NoReply, .. })));
    assert!(matches!(client.poll(15 * SECOND), Some(Action::GiveUp { reason: GiveUp::NotConnected, .. })));
}

#[test]
fn the_last_attempt_is_given_up_without_a_connection_too() {
    let mut client = QueryClient::<_, 1>::new(Patience { attempts: 1, ..patience() }, Jitter::new(1));
    client.connected();
    client.submit(id(1), (), SECOND).unwrap();
    drain(&mut client, SECOND);
    client.disconnected();
    assert!(matches!(client.poll(3 * SECOND), Some(Action::GiveUp { reason: GiveUp::NoReply, .. })));
}

#[test]
fn a_deadline_ends_a_query_that_was_never_sent() {
    let patience = patience().with_deadline(5 * SECOND);
    let mut client = QueryClient::<_, 1>::new(patience, Jitter::new(1));
    client.submit(id(1), (), SECOND).unwrap();
    assert_eq!(client.next_wakeup(), Some(6 * SECOND));
    assert_eq!(client.poll(5 * SECOND), None);
    let given_up = Action::GiveUp { id: id(1), payload: (), reason: GiveUp::NotConnected, attempts: 0 };
    assert_eq!(client.poll(6 * SECOND), Some(given_up));
}

#[test]
fn a_full_client_gives_the_payload_back() {
    let mut client = connected();
    client.submit(id(1), "a", SECOND).unwrap();
    assert_eq!(client.submit(id(1), "b", SECOND), Err(Refused::SameId("b")));
    client.submit(id(2), "b", SECOND).unwrap();
    assert!(client.is_full());
    assert_eq!(client.submit(id(3), "c", SECOND), Err(Refused::Full("c")));
    assert_eq!(client.counters().submitted, 2);
}

#[test]
fn other_replies_are_ignored_and_counted() {
    let mut client = connected();
    client.submit(id(1), "a", SECOND).unwrap();
    assert_eq!(client.reply(id(1), SECOND), None, "a reply before the query was sent is foreign");
    drain(&mut client, SECOND);
    assert_eq!(client.reply(id(9), SECOND), None);
    assert!(client.reply(id(1), SECOND).is_some());
    assert_eq!(client.reply(id(1), SECOND), None);
    client.submit(id(2), "b", SECOND).unwrap();
    let mut now = SECOND;
    while client.in_flight() > 0 {
        drain(&mut client, now);
        now += SECOND;
    }
    assert_eq!(client.reply(id(2), now), None);
    let Counters { duplicate_replies, late_replies, foreign_replies, .. } = client.counters();
    assert_eq!((duplicate_replies, late_replies, foreign_replies), (1, 1, 2));
}

#[test]
fn a_busy_server_is_asked_again_later_and_finally_taken_at_its_word() {
    let mut client = connected();
    client.submit(id(1), "a", SECOND).unwrap();
    let mut now = SECOND;
    for _ in 0..2 {
        assert_eq!(drain(&mut client, now).len(), 1);
        assert_eq!(client.busy(id(1), now), Busy::WillRetry);
        assert_eq!(drain(&mut client, now), []);
        now = client.next_wakeup().unwrap();
    }
    assert_eq!(drain(&mut client, now).len(), 1);
    assert!(matches!(client.busy(id(1), now), Busy::Exhausted(Answered { attempts: 3, .. })));
    assert_eq!(client.busy(id(1), now), Busy::Ignored);
    assert_eq!(client.counters().duplicate_replies, 1);
}

#[test]
fn patience_within_a_total_never_takes_longer() {
    for attempts in [0, 1, 2, 3, 8, 40] {
        for seed in 0..20 {
            let patience = Patience::within(5 * SECOND, attempts);
            let mut client = QueryClient::<_, 1>::new(patience, Jitter::new(seed));
            client.connected();
            client.submit(id(1), (), SECOND).unwrap();
            let mut now = SECOND;
            while let Some(action) = client.poll(now) {
                if matches!(action, Action::GiveUp { .. }) {
                    break;
                }
                now = client.next_wakeup().unwrap();
            }
            assert_eq!(client.in_flight(), 0);
            assert!(
                now.checked_sub(SECOND).unwrap() <= 5 * SECOND,
                "{attempts} attempts took {:?}",
                now.checked_sub(SECOND).unwrap()
            );
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Submit(u8),
    Connected,
    Disconnected,
    Reply(u8),
    Busy(u8),
    Tick(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12_u8).prop_map(Event::Submit),
        2 => Just(Event::Connected),
        1 => Just(Event::Disconnected),
        3 => (0..12_u8).prop_map(Event::Reply),
        1 => (0..12_u8).prop_map(Event::Busy),
        4 => (0..3000_u16).prop_map(Event::Tick),
    ]
}

/// A naive account of what each id may do, checked against every action.
#[derive(Default)]
struct Account {
    /// Times sent, of queries in flight.
    open: BTreeMap<u8, u8>,
    submitted: u64,
    outcomes: u64,
}

impl Account {
    fn end(&mut self, n: u8) -> u8 {
        self.outcomes += 1;
        self.open.remove(&n).expect("an outcome is for a query in flight")
    }

    /// Polls until nothing is due, then checks that nothing comes due before the announced time, and something then.
    fn poll(&mut self, client: &mut QueryClient<u8, 4>, patience: Patience, now: Duration) {
        while let Some(action) = client.poll(now) {
            match action {
                Action::Publish { id, attempt } => {
                    assert!(client.is_connected());
                    let n = *client.payload(id).expect("a sent query is in flight");
                    assert_eq!(id.as_bytes()[0], n);
                    let sent = self.open.get_mut(&n).expect("no action for an unknown id");
                    *sent += 1;
                    assert_eq!(*sent, attempt);
                    assert!(attempt <= patience.attempts + patience.breaks);
                }
                Action::GiveUp { id, payload, reason, attempts } => {
                    assert_eq!(id.as_bytes()[0], payload);
                    let sent = self.end(payload);
                    assert_eq!(sent, attempts);
                    assert_eq!(reason == GiveUp::NotConnected, sent == 0);
                }
            }
        }
        if let Some(wakeup) = client.next_wakeup() {
            assert!(wakeup > now, "nothing is due any more");
            assert!(client.clone().poll(wakeup.saturating_sub(Duration::from_nanos(1)).max(now)).is_none());
            assert!(client.clone().poll(wakeup).is_some(), "the announced time brings something");
        } else {
            assert!(client.clone().poll(now + 10_000 * SECOND).is_none(), "nothing was announced");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_query_gets_exactly_one_outcome(
        events in proptest::collection::vec(event(), 0..120),
        seed in any::<u64>(),
        attempts in 1..5_u8,
        breaks in 0..3_u8,
        deadline in proptest::option::of(1..20_u32),
    ) {
        let patience = Patience { attempts, breaks, deadline: deadline.map(|n| n * SECOND), ..patience() };
        let mut client = QueryClient::<u8, 4>::new(patience, Jitter::new(seed));
        let mut account = Account::default();
        let mut now = SECOND;
        for event in events {
            match event {
                Event::Submit(n) => match client.submit(id(n), n, now) {
                    Ok(()) => {
                        account.submitted += 1;
                        prop_assert_eq!(account.open.insert(n, 0), None);
                    }
                    Err(Refused::Full(back)) => prop_assert!(back == n && account.open.len() == 4),
                    Err(Refused::SameId(back)) => prop_assert!(back == n && account.open.contains_key(&n)),
                },
                Event::Connected => client.connected(),
                Event::Disconnected => client.disconnected(),
                Event::Reply(n) => {
                    let expected = account.open.get(&n).is_some_and(|sent| *sent > 0);
                    let answered = client.reply(id(n), now);
                    prop_assert_eq!(answered.is_some(), expected);
                    if let Some(answered) = answered {
                        prop_assert_eq!((answered.payload, answered.attempts), (n, account.end(n)));
                    }
                }
                Event::Busy(n) => {
                    let sent = account.open.get(&n).copied().unwrap_or(0);
                    match client.busy(id(n), now) {
                        Busy::Ignored => prop_assert_eq!(sent, 0),
                        Busy::WillRetry => prop_assert!(sent > 0 && sent < attempts + breaks),
                        Busy::Exhausted(answered) => {
                            prop_assert!(answered.payload == n && sent >= attempts);
                            account.end(n);
                        }
                    }
                }
                Event::Tick(ms) => now += Duration::from_millis(ms.into()),
            }
            account.poll(&mut client, patience, now);
            prop_assert_eq!(client.in_flight(), account.open.len());
            prop_assert!(client.in_flight() <= 4);
        }
        // Connected for long enough, whatever is left ends too.
        client.connected();
        account.poll(&mut client, patience, now);
        while let Some(wakeup) = client.next_wakeup() {
            account.poll(&mut client, patience, wakeup);
        }
        prop_assert_eq!(account.open.len(), 0);
        prop_assert_eq!(account.submitted, account.outcomes);
        let counters = client.counters();
        prop_assert_eq!(counters.submitted, counters.answered + counters.given_up);
    }
}
