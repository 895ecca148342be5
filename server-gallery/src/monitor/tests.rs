use glimpse_protocol::{ErrorBody, Match, SpaceId, VERSION};

use super::*;

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn answer(id: u8, matches: usize) -> Response {
    let found =
        Match { image: "a/b.jpg".try_into().unwrap(), label: "apple".try_into().unwrap(), similarity: 0.75 };
    let matches = std::iter::repeat_n(found, matches).collect();
    let id = QueryId::from_bytes([id; 16]);
    let reply: Reply = Reply { v: VERSION, id, matches, took_us: 12, generation: 7 };
    let encoding = Encoding::Cbor;
    Response { payload: encoding.write(&reply), encoding, id, outcome: Outcome::Answered }
}

fn refusal(code: ErrorCode) -> Response {
    let id = QueryId::from_bytes([9; 16]);
    let reply = ErrorReply { v: VERSION, id, error: ErrorBody::new(code, "because") };
    let encoding = Encoding::Json;
    Response { payload: encoding.write(&reply), encoding, id, outcome: Outcome::Refused(code) }
}

fn record(monitor: &Monitor, device: &DeviceId, response: Option<&Response>) {
    let (waited, took) = (Duration::from_micros(100), Duration::from_millis(1));
    monitor.record(QueryRecord { device, content_type: None, query: &[], response, waited, took });
}

#[test]
fn every_query_is_counted_once_by_what_became_of_it() {
    let monitor = Monitor::new();
    let cam = device("cam-1");
    record(&monitor, &cam, Some(&answer(1, 2)));
    record(&monitor, &cam, Some(&Response { outcome: Outcome::Repeated, ..answer(1, 2) }));
    record(&monitor, &cam, Some(&refusal(ErrorCode::WrongSpace)));
    record(&monitor, &cam, Some(&refusal(ErrorCode::Busy)));
    record(&monitor, &cam, None);
    let totals = monitor.totals();
    assert_eq!(totals.counts, [1; 5]);
    assert_eq!(totals.refused.iter().sum::<u64>(), 1, "busy is no refusal");
    assert_eq!((totals.searching.count(), totals.waiting.count()), (2, 2));
    assert_eq!(monitor.seconds().1.iter().map(|second| second.counts.iter().sum::<u64>()).sum::<u64>(), 5);
    let known = monitor.device(&cam).unwrap();
    assert_eq!((known.queries, known.refused), (5, 2));
    let pulse = monitor.pulse();
    assert!(pulse.searching.p50_us.is_some_and(|us| (1000..1125).contains(&us)), "{pulse:?}");
    assert_eq!(monitor.latency().len(), 1);
}

#[test]
fn what_a_query_was_answered_is_read_when_somebody_looks() {
    let monitor = Monitor::new();
    record(&monitor, &device("cam-1"), Some(&answer(1, 3)));
    record(&monitor, &device("cam-2"), Some(&refusal(ErrorCode::WrongSpace)));
    record(&monitor, &device("cam-3"), None);
    let views: Vec<SeenView> = monitor.queries().iter().map(|seen| seen.view(2)).collect();
    assert_eq!(views.iter().map(|view| view.number).collect::<Vec<_>>(), [3, 2, 1], "newest first");
    assert_eq!((views[2].matches.len(), views[2].matches[0].label.as_str()), (2, "apple"));
    assert_eq!((views[2].generation, views[2].waited_us, views[2].took_us), (Some(7), 100, 1000));
    assert_eq!(views[1].error, Some((ErrorCode::WrongSpace, "because".to_owned())));
    assert_eq!((views[0].outcome, views[0].query), (Fate::Expired, None));
    assert_eq!(monitor.query(2).unwrap().view(1), views[1].clone());
    assert!(monitor.query(0).is_none() && monitor.query(4).is_none());
}

#[test]
fn memory_is_bounded_by_number_and_by_bytes() {
    let monitor = Monitor::new();
    for number in 0..2 * QUERIES_MAX {
        record(&monitor, &device(&format!("cam-{}", number % 7)), Some(&answer(number as u8, 1)));
    }
    assert_eq!(monitor.queries().len(), QUERIES_MAX);
    assert_eq!(monitor.queries()[0].number, 2 * QUERIES_MAX as u64);
    let large = Response { payload: vec![0; QUERIES_BYTES_MAX / 4], ..answer(1, 1) };
    for _ in 0..10 {
        record(&monitor, &device("cam-1"), Some(&large));
    }
    assert!(monitor.queries().len() <= 5, "{}", monitor.queries().len());
    // A reply that cannot be read shows no matches, and harms nobody.
    assert_eq!(monitor.queries()[0].view(10).matches, []);
}

#[test]
fn a_slow_follower_misses_queries_and_holds_nobody_up() {
    let monitor = Monitor::new();
    let mut slow = monitor.follow();
    for number in 0..2 * EVENTS_MAX {
        record(&monitor, &device("cam-1"), Some(&answer(number as u8, 1)));
    }
    assert!(
        matches!(slow.try_recv(), Err(broadcast::error::TryRecvError::Lagged(missed)) if missed == EVENTS_MAX as u64)
    );
    assert!(matches!(slow.try_recv(), Ok(Event::Query(_))));
}

#[test]
fn devices_are_told_of_and_forgotten() {
    let monitor = Monitor::new();
    let mut events = monitor.follow();
    let version = "1.2.3".try_into().unwrap();
    let space = SpaceId::from_bytes([1; 16]);
    let status = DeviceStatus { online: true, version, space, outbox: 4, model: None, update: None };
    monitor.status(&device("b"), &status, false);
    monitor.status(&device("a"), &status, true);
    assert!(matches!(events.try_recv(), Ok(Event::Device(id)) if id == device("b")));
    let ids: Vec<String> = monitor.devices().iter().map(|(id, _)| id.as_str().to_owned()).collect();
    assert_eq!(ids, ["a", "b"]);
    monitor.forget(&device("a"));
    assert_eq!(monitor.devices().len(), 1);
}

#[test]
fn recording_a_query_is_cheap() {
    let monitor = Monitor::new();
    let (cam, answer) = (device("cam-1"), answer(1, 10));
    const COUNT: u32 = 100_000;
    let started = Instant::now();
    for _ in 0..COUNT {
        record(&monitor, &cam, Some(&answer));
    }
    // Shown with `--nocapture`; only a cost of another kind is a failure, whatever else the machine does.
    let each = started.elapsed() / COUNT;
    println!("one query costs {each:?}");
    assert!(each < Duration::from_micros(200), "{each:?}");
}
