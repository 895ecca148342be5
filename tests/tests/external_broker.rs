//! Two servers behind a broker that is not ours, with passwords, permissions and TLS; the broker is killed, and a server is.

use std::process::Stdio;
use std::time::{Duration, Instant};

use glimpse_tests::authority::private;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::mosquitto::Mosquitto;
use glimpse_tests::queries::ask;
use glimpse_tests::server::Server;
use glimpse_tests::workspace;

#[test]
fn every_query_is_answered_once_while_mosquitto_and_a_server_are_killed() {
    let test = "every_query_is_answered_once_while_mosquitto_and_a_server_are_killed";
    let Some(programs) = Mosquitto::find(test) else { return };
    let fixture = Fixture::ingested().unwrap();
    let users = [("gallery-1", "one"), ("gallery-2", "two"), ("cam-1", "three")];
    let mut broker = Mosquitto::start(programs, &fixture.path("mosquitto"), &users).unwrap();
    let (address, authority) = (broker.address(), broker.authority.clone());
    let secret = |name: &str, text: &str| {
        let path = fixture.path(name);
        private(&path, text).unwrap();
        path
    };
    let serve = |name: &str, password: &str| {
        let mut command = fixture.programs.gallery();
        command.args(["serve", "--http", "none", "--broker", &address, "--client-id", name]);
        command.arg("--gallery").arg(fixture.gallery()).arg("--bundle").arg(workspace::bundle());
        command.args(["--broker-username", name, "--broker-ca"]).arg(&authority);
        command.arg("--broker-password-file").arg(secret(&format!("{name}.password"), password));
        command
    };
    let log = |name: &str| fixture.path(&format!("{name}.log"));
    let first = Server::spawn(serve("gallery-1", "one"), &log("gallery-1")).unwrap();
    let mut second = Some(Server::spawn(serve("gallery-2", "two"), &log("gallery-2")).unwrap());

    let mut command = fixture.programs.edge();
    command.args(["query", "--json", "--server", &address, "--device", "cam-1", "--timeout", "20"]);
    command.arg("--password-file").arg(secret("cam-1.password", "three"));
    command.arg("--ca").arg(&authority).arg("--bundle").arg(workspace::bundle());
    let photos: Vec<_> =
        (0..4).flat_map(|_| fixture.queries.iter().map(|query| query.photo.clone())).collect();
    let mut answered = 0;
    let answers = ask(command, &photos, &fixture.path("edge.log"), &mut |_| {
        answered += 1;
        match answered {
            6 => {
                broker.kill().unwrap();
                std::thread::sleep(Duration::from_millis(700));
                broker.restart().unwrap();
            }
            // Killed, and not asked to stop. Mosquitto 2.0 goes on to give it its share of the queries, so that every second one
            // is asked again.
            42 => drop(second.take()),
            _ => {}
        }
    })
    .unwrap();
    assert_eq!(answers.len(), photos.len(), "one outcome a photo, in their order");
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.matches.len(), 10, "photo {number}: {answer:?}");
    }

    // A server with a wrong password is not let in, says so, and tries again.
    drop(first);
    let mut wrong = serve("gallery-1", "wrong");
    let log = log("wrong");
    wrong.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut wrong = wrong.spawn().unwrap();
    let started = Instant::now();
    while !std::fs::read_to_string(&log).unwrap().contains("not connected to the broker") {
        assert!(started.elapsed() < Duration::from_secs(30), "it says nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(wrong.try_wait().unwrap().is_none());
    wrong.kill().unwrap();
    wrong.wait().unwrap();
}
