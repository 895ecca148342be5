//! A device and its server over networks that lose, flap, stall and are away: each query is answered once, in order, and the
//! device's memory stays small.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use glimpse_tests::device::Device;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::link::{Link, Namespace};
use glimpse_tests::queries::Answer;
use glimpse_tests::server::Server;
use glimpse_tests::workspace;

/// For an answer: a back-off may have grown to half a minute, and a connection may have to be found dead first.
const WAIT: Duration = Duration::from_mins(3);

/// As `glimpse-edge run` has them in flight at once.
const IN_FLIGHT: usize = 8;

/// The bar for a device with a network of 5 M parameters.
const PEAK_BYTES_MAX: u64 = 100 << 20;

/// A camera's folder, with photos that are there from the start.
struct Camera {
    fixture: Fixture,
    folder: PathBuf,
    photos: usize,
}

impl Camera {
    fn with(photos: usize) -> Self {
        let fixture = Fixture::ingested().unwrap();
        let folder = fixture.path("camera");
        std::fs::create_dir(&folder).unwrap();
        let camera = Self { fixture, folder, photos };
        (0..photos).for_each(|number| camera.take(number));
        camera
    }

    /// Takes a photo: it is there at once.
    fn take(&self, number: usize) {
        let query = &self.fixture.queries[number % self.fixture.queries.len()];
        let new = self.fixture.path("new.jpg");
        std::fs::copy(workspace::root().join(&query.photo), &new).unwrap();
        std::fs::rename(new, self.folder.join(format!("{number:03}.jpg"))).unwrap();
    }

    fn serve(&self) -> Command {
        let mut command = self.fixture.programs.gallery();
        command.args(["serve", "--http", "none", "--listen", "127.0.0.1:0", "--gallery"]);
        command.arg(self.fixture.gallery()).arg("--bundle").arg(workspace::bundle());
        command
    }

    fn device(&self, address: &str, more: &[&str]) -> Command {
        let mut command = self.fixture.programs.edge();
        command.args(["run", "--json", "--device", "cam-1", "--server", address]).args(more);
        command.arg("--camera").arg(format!("folder:{}", self.folder.display()));
        command.arg("--bundle").arg(workspace::bundle());
        command
    }

    fn outbox(&self) -> String {
        self.fixture.path("outbox").to_str().unwrap().to_owned()
    }

    fn log(&self) -> PathBuf {
        self.fixture.path("edge.log")
    }

    /// The number of the photo that an answer is about, which must be a right one.
    fn number(&self, answer: &Answer) -> usize {
        let number: usize = answer.photo.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(answer.error, None, "{answer:?}");
        let query = &self.fixture.queries[number % self.fixture.queries.len()];
        assert!(query.rank(answer).is_some(), "{answer:?}");
        number
    }

    /// The photos in the order of their answers, of which there is one for each and no more.
    fn answers(&self, device: Device) -> Vec<usize> {
        self.answers_with_attempts(device).into_iter().map(|(number, _)| number).collect()
    }

    /// The same, with how often each was sent.
    fn answers_with_attempts(&self, device: Device) -> Vec<(usize, u32)> {
        let wait = |_| {
            let answer = device.answer_within(WAIT).unwrap_or_else(|error| {
                panic!("{error}: {}", std::fs::read_to_string(self.log()).unwrap_or_default())
            });
            (self.number(&answer), answer.attempts.unwrap())
        };
        let numbers: Vec<(usize, u32)> = (0..self.photos).map(wait).collect();
        let peak = device.peak_bytes().unwrap();
        assert!(peak <= PEAK_BYTES_MAX, "the device has taken {} MB", peak >> 20);
        assert_eq!(device.kill().unwrap().len(), 0, "one was answered twice");
        let each: BTreeSet<_> = numbers.iter().map(|(number, _)| *number).collect();
        assert_eq!(each.len(), self.photos, "one was answered twice: {numbers:?}");
        numbers
    }
}

/// No answer is further from its place than queries are in flight.
fn check_order(numbers: &[usize]) {
    for (place, number) in numbers.iter().enumerate() {
        assert!(
            place.abs_diff(*number) < IN_FLIGHT,
            "photo {number} is answered at place {place}: {numbers:?}"
        );
    }
}

/// A query that is sent again is answered later than others that were sent after it, and those that were sent once come in their order.
fn check_order_of_first_attempts(answers: &[(usize, u32)]) {
    let again = answers.iter().filter(|(_, attempts)| *attempts > 1).count();
    eprintln!("{again} of {} were sent again", answers.len());
    let once = answers.iter().filter(|(_, attempts)| *attempts == 1);
    let numbers: Vec<usize> = once.map(|(number, _)| *number).collect();
    assert!(numbers.len() > answers.len() / 3, "hardly any came through: {answers:?}");
    let places = |number: &usize| numbers.iter().filter(|other| *other < number).count();
    check_order(&numbers.iter().map(places).collect::<Vec<_>>());
}

/// By `tc netem` in a network of its own, or where the kernel has none by filters at sockets.
#[test]
fn every_query_is_answered_once_over_a_network_that_loses_a_third() {
    const LOSS_PERCENT: u8 = 30;
    let camera = Camera::with(36);
    let log = camera.fixture.path("server.log");
    match Namespace::lossy(LOSS_PERCENT) {
        Ok(namespace) => {
            let server = Server::spawn(namespace.command(camera.serve()), &log).unwrap();
            let outbox = camera.outbox();
            let device = camera.device(server.address().unwrap(), &["--outbox", &outbox]);
            let device = Device::start(namespace.command(device), &camera.log()).unwrap();
            check_order_of_first_attempts(&camera.answers_with_attempts(device));
        }
        Err(reason) => {
            eprintln!("segments are lost at sockets, not packets by netem: {reason:#}");
            let server = Server::spawn(camera.serve(), &log).unwrap();
            let link = Link::to(server.address().unwrap(), LOSS_PERCENT).unwrap();
            let outbox = camera.outbox();
            let device = camera.device(&link.address(), &["--outbox", &outbox]);
            let device = Device::start(device, &camera.log()).unwrap();
            check_order_of_first_attempts(&camera.answers_with_attempts(device));
        }
    }
}

/// Without an outbox on the disk, which would send again what was given up.
#[test]
fn every_query_is_answered_once_over_a_link_that_flaps_every_second() {
    let camera = Camera::with(24);
    let server = Server::spawn(camera.serve(), &camera.fixture.path("server.log")).unwrap();
    let link = Link::to(server.address().unwrap(), 0).unwrap();
    let flapping = link.flap(Duration::from_secs(1));
    let device = Device::start(camera.device(&link.address(), &[]), &camera.log()).unwrap();
    check_order(&camera.answers(device));
    drop(flapping);
    assert!(link.accepted() > 0);
}

#[test]
fn queries_that_queue_while_the_broker_is_away_are_answered_once_in_order() {
    let camera = Camera::with(48);
    let server = Server::spawn(camera.serve(), &camera.fixture.path("server.log")).unwrap();
    let link = Link::to(server.address().unwrap(), 0).unwrap();
    link.cut();
    let outbox = camera.outbox();
    let device =
        Device::start(camera.device(&link.address(), &["--outbox", &outbox]), &camera.log()).unwrap();
    // All photos are queries on the disk before there is a broker.
    wait_for("query of each photo in the outbox", || queries_in(&outbox) == camera.photos);
    assert!(link.accepted() > 1, "the device tries again");
    link.mend();
    let numbers = camera.answers(device);
    assert!(numbers.is_sorted(), "{numbers:?}");
}

/// A connection over which nothing arrives any more, and that nobody ends: a phone's network that forgot it.
#[test]
fn a_dead_connection_is_found_by_the_keep_alive_and_every_query_is_answered_once() {
    let mut camera = Camera::with(6);
    let server = Server::spawn(camera.serve(), &camera.fixture.path("server.log")).unwrap();
    let link = Link::to(server.address().unwrap(), 0).unwrap();
    let outbox = camera.outbox();
    let device = camera.device(&link.address(), &["--outbox", &outbox, "--keep-alive", "5"]);
    let device = Device::start(device, &camera.log()).unwrap();
    for number in 0..camera.photos {
        assert_eq!(camera.number(&device.answer_within(WAIT).unwrap()), number);
    }
    link.stall();
    let (old, connections) = (camera.photos, link.accepted());
    (old..30).for_each(|number| camera.take(number));
    // Some of them are sent by now, into nothing.
    let waiting = || queries_in(&outbox);
    wait_for("queries in the outbox", || waiting() > IN_FLIGHT);
    link.mend();
    camera.photos = 30 - old;
    let numbers: Vec<usize> = camera.answers(device).into_iter().map(|number| number - old).collect();
    check_order(&numbers);
    assert!(link.accepted() > connections, "answers came over a dead connection");
}

/// Queries of an outbox's folder that have not been removed from it.
fn queries_in(outbox: &str) -> usize {
    let files = std::fs::read_dir(outbox).into_iter().flatten().flatten();
    let bytes: Vec<u8> = files.filter_map(|file| std::fs::read(file.path()).ok()).flatten().collect();
    bytes.windows(4).filter(|name| name == b".jpg").count()
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_there() {
        assert!(started.elapsed() < WAIT, "no {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
