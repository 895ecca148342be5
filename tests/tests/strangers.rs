//! Strangers: who has no business with the server, and everything that they try. Each is refused, the audit log tells
//! it, and those who may connect are served all the while.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use glimpse_embedder::SpaceBundle;
use glimpse_tests::authority::{self, Authority, Identity};
use glimpse_tests::fixture::Fixture;
use glimpse_tests::foreign::Python;
use glimpse_tests::server::Server;
use glimpse_tests::stranger::{self, Login, Stranger, WAIT, reason};
use glimpse_tests::workspace;
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse battery staple";

fn query_topic(device: &str) -> String {
    format!("glimpse/v1/devices/{device}/query")
}

fn reply_topic(device: &str) -> String {
    format!("glimpse/v1/devices/{device}/reply")
}

/// A gallery with these devices, all with [`PASSWORD`].
fn gallery_with(devices: &[&str]) -> Fixture {
    let fixture = Fixture::ingested_of(3).unwrap();
    for device in devices {
        fixture.devices(&["add", device], PASSWORD).unwrap();
    }
    fixture
}

fn serve(fixture: &Fixture) -> (Server, String) {
    let server = fixture.serve().unwrap();
    let address = server.address().unwrap().to_owned();
    (server, address)
}

/// A server with TLS on localhost beside its usual listener.
fn serve_tls(fixture: &Fixture, identity: &Identity, more: &[&str]) -> (Server, String) {
    let [certificate, key] = identity.texts();
    let mut flags = vec!["--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"];
    flags.extend(["--tls-certificate", certificate, "--tls-key", key]);
    flags.extend(more);
    let server = fixture.serve_with(&flags).unwrap();
    let address = server.word("mqtts").unwrap().to_owned();
    (server, address)
}

/// The broker is unavailable to a name while it clears up after its last connection.
fn connect(address: &str, login: &Login<'_>) -> Result<Stranger, u8> {
    soon("an answer", || match Stranger::connect(address, login).unwrap() {
        Err(reason::UNAVAILABLE) => None,
        connected => Some(connected),
    })
}

fn let_in(address: &str, login: &Login<'_>) -> Stranger {
    connect(address, login).unwrap_or_else(|code| panic!("refused with {code:#x}"))
}

fn refusal(address: &str, login: &Login<'_>) -> u8 {
    connect(address, login).expect_err("it was let in")
}

/// Tries until it succeeds: the server takes a change up within a second, and the machine may be busy.
fn soon<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(started.elapsed() < WAIT, "{what}: not within {WAIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The audit log's lines of one kind.
fn audited(fixture: &Fixture, event: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture.gallery().join("access/audit.jsonl")).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).collect()
}

/// Whether there is such a line, or soon: what a client sees may come a moment before.
fn is_audited(fixture: &Fixture, event: &str, fields: &[(&str, &str)]) -> bool {
    let is_it = |line: &Value| fields.iter().all(|(field, value)| line[field] == *value);
    soon(event, || audited(fixture, event).iter().any(is_it).then_some(true))
}

fn query(fixture: &Fixture, id: u8) -> Vec<u8> {
    let space = SpaceBundle::load(&workspace::bundle()).unwrap().space;
    let embedding = fixture.embedding(&fixture.queries[0].photo).unwrap();
    let id = format!("{id:02x}").repeat(16);
    json!({ "v": 1, "id": id, "space": space.to_string(), "embedding": embedding, "top_k": 1 })
        .to_string()
        .into_bytes()
}

#[test]
fn nobody_is_anonymous_once_a_device_exists() {
    let fixture = gallery_with(&[]);
    let (mut server, address) = serve(&fixture);
    let mut early = let_in(&address, &Login::anonymous("cam-1"));
    fixture.devices(&["add", "cam-1"], PASSWORD).unwrap();
    early.wait_until_closed().unwrap();
    assert_eq!(refusal(&address, &Login::anonymous("cam-1")), reason::BAD_LOGIN);

    let wrong = [
        Login::anonymous("somebody"),
        Login::anonymous(""),
        Login { password: "", ..Login::of("cam-1", PASSWORD) },
        Login { username: "", ..Login::of("cam-1", PASSWORD) },
        Login { username: "admin", ..Login::of("cam-1", PASSWORD) },
        Login { device: "cam-9", ..Login::of("cam-1", PASSWORD) },
        Login::of("cam-2", PASSWORD),
        Login::of("cam-1", "wrong"),
        Login::of("cam-1", &PASSWORD[1..]),
        // The name of the server's own client begins like this.
        Login::of("gallery-0123456789abcdef0123456789abcdef", PASSWORD),
    ];
    for login in &wrong {
        let code = refusal(&address, login);
        assert_eq!(code, reason::BAD_LOGIN, "{login:?}");
    }
    let _device = let_in(&address, &Login::of("cam-1", PASSWORD));
    assert!(is_audited(&fixture, "refused", &[("device", "cam-1"), ("reason", "wrong password")]));
    assert!(is_audited(&fixture, "refused", &[("device", "cam-2"), ("reason", "unknown device")]));
    assert!(is_audited(&fixture, "connected", &[("device", "cam-1"), ("credential", "password")]));
    assert!(is_audited(&fixture, "disconnected", &[("device", "cam-1"), ("reason", "no credentials")]));
    let log = std::fs::read_to_string(fixture.gallery().join("access/audit.jsonl")).unwrap();
    for text in [log, server.log().unwrap()] {
        assert!(!text.contains(PASSWORD) && !text.contains("argon2"), "a secret in a log");
    }
    // The door stays closed when the last device has gone, and after a new start.
    fixture.devices(&["remove", "cam-1"], "").unwrap();
    soon("the removal", || Stranger::connect(&address, &Login::of("cam-1", PASSWORD)).unwrap().err());
    assert!(server.stop().unwrap().success());
    let (_server, address) = serve(&fixture);
    assert_eq!(refusal(&address, &Login::anonymous("cam-1")), reason::BAD_LOGIN);
}

#[test]
fn a_client_of_mqtt_3_1_1_proves_itself_too() {
    let fixture = gallery_with(&["cam-1"]);
    let (_server, address) = serve(&fixture);
    for (password, code) in [("wrong", 4), (PASSWORD, 0)] {
        let mut body = b"\x00\x04MQTT\x04\xc2\x00\x3c\x00\x05cam-1\x00\x05cam-1".to_vec();
        body.extend_from_slice(&(password.len() as u16).to_be_bytes());
        body.extend_from_slice(password.as_bytes());
        let mut stream = stranger::tcp(&address).unwrap();
        stream.write_all(&stranger::packet(0x10, &body)).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, code], "{password}");
    }
}

#[test]
fn a_device_keeps_to_its_own_topics_and_its_replies_come_home() {
    let fixture = gallery_with(&["cam-1", "cam-2"]);
    let (mut server, address) = serve(&fixture);
    let mut device = let_in(&address, &Login::of("cam-1", PASSWORD));
    let mut other = let_in(&address, &Login::of("cam-2", PASSWORD));
    assert_eq!(other.subscribe(&reply_topic("cam-2")).unwrap(), reason::GRANTED_QOS_1);
    assert_eq!(device.subscribe(&reply_topic("cam-1")).unwrap(), reason::GRANTED_QOS_1);
    for filter in [
        "#",
        "+/#",
        "$SYS/#",
        "glimpse/v1/devices/+/reply",
        "glimpse/v1/devices/cam-2/reply",
        "glimpse/v1/devices/cam-1/#",
        "glimpse/v1/devices/cam-1/query",
        "$share/gallery/glimpse/v1/devices/+/query",
        "$share/x/glimpse/v1/devices/cam-2/reply",
    ] {
        assert_eq!(device.subscribe(filter).unwrap(), reason::NOT_AUTHORIZED, "{filter}");
    }
    let message = query(&fixture, 1);
    for topic in [
        query_topic("cam-2"),
        reply_topic("cam-2"),
        reply_topic("cam-1"),
        "glimpse/v1/devices/cam-1/model".to_owned(),
        "glimpse/v1/gallery/status".to_owned(),
        "$SYS/x".to_owned(),
        "elsewhere".to_owned(),
    ] {
        assert_eq!(device.publish(&topic, &message, None).unwrap(), reason::NOT_AUTHORIZED, "{topic}");
    }
    let foreign_will = Login { will: "glimpse/v1/devices/cam-2/status", ..Login::of("cam-1", PASSWORD) };
    assert_eq!(refusal(&address, &foreign_will), reason::NOT_AUTHORIZED);
    // Nobody waits for the answer to a query that is asked when its device has gone.
    let asking_will = Login { will: "glimpse/v1/devices/cam-1/query", ..Login::of("cam-1", PASSWORD) };
    assert_eq!(refusal(&address, &asking_will), reason::NOT_AUTHORIZED);
    assert!(is_audited(&fixture, "topic_refused", &[("device", "cam-1"), ("action", "publish")]));
    assert!(is_audited(&fixture, "topic_refused", &[("action", "subscribe"), ("topic", "#")]));
    assert!(is_audited(&fixture, "refused", &[("reason", "a last will for a foreign topic")]));

    // Its own query is answered, at home also where it wants the reply sent to another; a repeat is answered the same.
    let (topic, foreign) = (query_topic("cam-1"), reply_topic("cam-2"));
    assert_eq!(device.publish(&topic, &message, Some(&foreign)).unwrap(), reason::SUCCESS);
    let answer = device.message().unwrap();
    assert_eq!(answer.topic, reply_topic("cam-1"));
    let reply: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(reply["matches"].as_array().unwrap().len(), 1, "{reply}");
    assert_eq!(device.publish(&topic, &message, None).unwrap(), reason::SUCCESS);
    assert_eq!(device.message().unwrap().payload, answer.payload, "from the cache, to the microsecond");
    assert!(!other.has_message_soon().unwrap(), "another device was sent something");
    assert!(server.is_alive());
}

#[test]
fn a_revoked_device_is_disconnected_and_is_not_let_in_again() {
    let fixture = gallery_with(&["cam-1", "cam-2", "cam-3"]);
    let (_server, address) = serve(&fixture);
    let mut device = let_in(&address, &Login::of("cam-1", PASSWORD));
    let mut replaced = let_in(&address, &Login::of("cam-2", PASSWORD));
    let mut removed = let_in(&address, &Login::of("cam-3", PASSWORD));
    fixture.devices(&["revoke", "cam-1"], "").unwrap();
    device.wait_until_closed().unwrap();
    assert_eq!(refusal(&address, &Login::of("cam-1", PASSWORD)), reason::NOT_AUTHORIZED);
    assert!(is_audited(&fixture, "disconnected", &[("device", "cam-1"), ("reason", "revoked")]));
    assert!(is_audited(&fixture, "device_revoked", &[("device", "cam-1")]));

    assert_eq!(replaced.publish("glimpse/v1/devices/cam-2/status", b"x", None).unwrap(), reason::SUCCESS);
    fixture.devices(&["add", "cam-2", "--replace"], "another password").unwrap();
    replaced.wait_until_closed().unwrap();
    assert_eq!(refusal(&address, &Login::of("cam-2", PASSWORD)), reason::BAD_LOGIN);
    let_in(&address, &Login::of("cam-2", "another password"));

    fixture.devices(&["remove", "cam-3"], "").unwrap();
    removed.wait_until_closed().unwrap();
    assert_eq!(refusal(&address, &Login::of("cam-3", PASSWORD)), reason::BAD_LOGIN);

    let list: Value = serde_json::from_str(&fixture.devices(&["list", "--json"], "").unwrap()).unwrap();
    let states: Vec<_> = list.as_array().unwrap().iter().map(|row| (&row["device"], &row["state"])).collect();
    assert_eq!(states, [(&json!("cam-1"), &json!("revoked")), (&json!("cam-2"), &json!("good"))]);
    // It can be let in again, by new credentials alone.
    let error = fixture.devices(&["add", "cam-1"], PASSWORD).unwrap_err().to_string();
    assert!(error.contains("--replace"), "{error}");
    let password = fixture.devices(&["add", "cam-1", "--generate", "--replace"], "").unwrap();
    soon("the new password", || {
        Stranger::connect(&address, &Login::of("cam-1", password.trim())).unwrap().ok()
    });
}

#[test]
fn an_expired_device_is_disconnected_and_is_not_let_in_again() {
    let fixture = gallery_with(&["cam-2"]);
    let (_server, address) = serve(&fixture);
    let mut other = let_in(&address, &Login::of("cam-2", PASSWORD));
    fixture.devices(&["add", "cam-1", "--expires", "4s"], PASSWORD).unwrap();
    let mut device =
        soon("the new device", || Stranger::connect(&address, &Login::of("cam-1", PASSWORD)).unwrap().ok());
    device.wait_until_closed().unwrap();
    assert_eq!(refusal(&address, &Login::of("cam-1", PASSWORD)), reason::NOT_AUTHORIZED);
    assert!(is_audited(&fixture, "disconnected", &[("device", "cam-1"), ("reason", "expired")]));
    assert!(is_audited(&fixture, "refused", &[("device", "cam-1"), ("reason", "expired")]));
    assert!(!other.has_message_soon().unwrap(), "the other is still there");
}

#[test]
fn guessing_is_slowed_down_and_the_device_itself_is_not() {
    let fixture = gallery_with(&["cam-1"]);
    let (_server, address) = serve(&fixture);
    let_in(&address, &Login::of("cam-1", PASSWORD));
    let guesses: Vec<u8> =
        (0..10).map(|guess| refusal(&address, &Login::of("cam-1", &format!("guess {guess}")))).collect();
    assert_eq!(guesses[..4], [reason::BAD_LOGIN; 4]);
    assert!(guesses[4..].contains(&reason::NOT_AUTHORIZED), "{guesses:x?}");
    assert!(is_audited(&fixture, "refused", &[("reason", "too many failed attempts")]));
    let_in(&address, &Login::of("cam-1", PASSWORD));
}

#[test]
fn only_tls_1_3_is_spoken() {
    let fixture = gallery_with(&["cam-1"]);
    let ca = Authority::new(fixture.folder(), "ca").unwrap();
    let (_server, address) = serve_tls(&fixture, &ca.server("server").unwrap(), &[]);
    let trusting = stranger::tls(&ca.certificate, None).unwrap();
    let login = Login::of("cam-1", PASSWORD);
    let mut device = Stranger::connect_tls(&address, trusting.clone(), &login).unwrap().unwrap();
    assert_eq!(device.subscribe(&reply_topic("cam-1")).unwrap(), reason::GRANTED_QOS_1);
    let connected = audited(&fixture, "connected");
    assert_eq!((&connected[0]["tls"], &connected[0]["credential"]), (&json!(true), &json!("password")));
    let wrong = Login::of("cam-1", "wrong");
    let code = Stranger::connect_tls(&address, trusting.clone(), &wrong).unwrap().unwrap_err();
    assert_eq!(code, reason::BAD_LOGIN);
    let anonymous = Login::anonymous("cam-1");
    assert!(Stranger::connect_tls(&address, trusting, &anonymous).unwrap().is_err());

    // A ClientHello of TLS 1.2, as it was: a fatal alert (21, 3.3, 2 bytes: 2) protocol_version (70).
    let mut stream = stranger::tcp(&address).unwrap();
    stream.write_all(&client_hello_of_tls_1_2()).unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
    // MQTT without TLS on that port is no TLS at all.
    let mut stream = stranger::tcp(&address).unwrap();
    stream.write_all(&login.packet()).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert_ne!(rest.first(), Some(&0x20), "it was answered in MQTT"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    soon("the audit log", || {
        let reasons = audited(&fixture, "refused");
        let has = |part: &str| reasons.iter().any(|line| line["reason"].as_str().unwrap().contains(part));
        (has("no TLS") && has("wrong password")).then_some(())
    });
}

fn client_hello_of_tls_1_2() -> Vec<u8> {
    // The curves x25519 and P-256, uncompressed points, signatures by ECDSA and RSA-PSS; no supported_versions.
    let extensions = b"\x00\x0a\x00\x06\x00\x04\x00\x1d\x00\x17\x00\x0b\x00\x02\x01\x00\x00\x0d\x00\x06\x00\x04\x04\x03\x08\x04";
    // Version 3.3, 32 random bytes, no session, two cipher suites of TLS 1.2, no compression.
    let mut hello = b"\x03\x03".to_vec();
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(b"\x00\x00\x04\xc0\x2b\xc0\x2f\x01\x00");
    hello.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    hello.extend_from_slice(extensions);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(hello.len() as u16 + 4).to_be_bytes());
    record.extend_from_slice(&[1, 0]);
    record.extend_from_slice(&(hello.len() as u16).to_be_bytes());
    record.extend_from_slice(&hello);
    record
}

#[test]
fn a_certificate_lets_its_own_device_in_and_a_rogue_one_nobody() {
    let fixture = gallery_with(&["cam-9"]);
    let folder = fixture.folder();
    let (ca, rogue_ca) = (Authority::new(folder, "ca").unwrap(), Authority::new(folder, "rogue-ca").unwrap());
    let door = authority::self_signed(folder, "door-1").unwrap();
    let signed = ca.device("door-2").unwrap();
    for (name, identity) in [("door-1", &door), ("door-2", &signed)] {
        fixture.devices(&["add", name, "--certificate", identity.texts()[0]], "").unwrap();
    }
    let error = fixture.devices(&["add", "door-3", "--certificate", door.texts()[0]], "").unwrap_err();
    assert!(error.to_string().contains("is that of door-1 too"), "{error}");

    let server_identity = ca.server("server").unwrap();
    let connect = |address: &str, identity: &Identity, login: &Login<'_>| {
        let tls = stranger::tls(&ca.certificate, Some(identity.paths())).unwrap();
        Stranger::connect_tls(address, tls, login)
    };
    let anonymous = |name: &'static str| Login::anonymous(name);
    {
        let (_server, address) = serve_tls(&fixture, &server_identity, &[]);
        let mut device = connect(&address, &door, &anonymous("door-1")).unwrap().unwrap();
        assert_eq!(device.subscribe(&reply_topic("door-1")).unwrap(), reason::GRANTED_QOS_1);
        assert!(is_audited(&fixture, "connected", &[("device", "door-1"), ("credential", "certificate")]));
        // Another's name, also with that other's password.
        assert!(connect(&address, &door, &anonymous("door-2")).unwrap().is_err());
        assert!(connect(&address, &door, &Login::of("cam-9", PASSWORD)).unwrap().is_err());
        // Signed by nobody, by another authority, and by the right one under a registered name: not registered.
        let namesake = ca.device("namesake").unwrap();
        for rogue in
            [authority::self_signed(folder, "rogue").unwrap(), rogue_ca.device("rogue-2").unwrap(), namesake]
        {
            for login in [anonymous("door-1"), Login::of("cam-9", PASSWORD)] {
                assert!(connect(&address, &rogue, &login).is_err(), "no TLS with {rogue:?}");
            }
        }
        // The right certificate with another key.
        let stolen = Identity { certificate: signed.certificate.clone(), key: door.key.clone() };
        assert!(stranger::tls(&ca.certificate, Some(stolen.paths())).is_err(), "rustls itself sees that");

        fixture.devices(&["revoke", "door-1"], "").unwrap();
        device.wait_until_closed().unwrap();
        assert!(connect(&address, &door, &anonymous("door-1")).unwrap().is_err());
        fixture.devices(&["add", "door-1", "--replace", "--certificate", door.texts()[0]], "").unwrap();
    }
    // With an authority it must have signed a registered certificate, too.
    let ca_text = ca.certificate.to_str().unwrap().to_owned();
    let (_server, address) = serve_tls(&fixture, &server_identity, &["--tls-client-ca", &ca_text]);
    assert!(connect(&address, &signed, &anonymous("door-2")).unwrap().is_ok());
    assert!(connect(&address, &door, &anonymous("door-1")).is_err());
    let by_password = stranger::tls(&ca.certificate, None).unwrap();
    assert!(Stranger::connect_tls(&address, by_password, &Login::of("cam-9", PASSWORD)).unwrap().is_ok());
}

#[test]
fn a_new_certificate_is_taken_up_while_devices_stay_connected() {
    let fixture = gallery_with(&["cam-1", "cam-2"]);
    let folder = fixture.folder();
    let (old, new) = (Authority::new(folder, "old-ca").unwrap(), Authority::new(folder, "new-ca").unwrap());
    let identity = old.server("server").unwrap();
    let (server, address) = serve_tls(&fixture, &identity, &[]);
    let connect = |ca: &Authority, device| {
        let tls = stranger::tls(&ca.certificate, None).unwrap();
        Stranger::connect_tls(&address, tls, &Login::of(device, PASSWORD))
    };
    let mut device = connect(&old, "cam-1").unwrap().unwrap();
    assert!(connect(&new, "cam-2").is_err());

    // Half of a change: the old certificate stays.
    let good = std::fs::read(&identity.certificate).unwrap();
    std::fs::write(&identity.certificate, "damaged").unwrap();
    server.signal("HUP").unwrap();
    assert!(is_audited(&fixture, "certificate_refused", &[]));
    std::fs::write(&identity.certificate, good).unwrap();
    connect(&old, "cam-2").unwrap().unwrap();

    assert_eq!(new.server("server").unwrap().certificate, identity.certificate);
    server.signal("HUP").unwrap();
    soon("the new certificate", || connect(&new, "cam-2").ok()).unwrap();
    assert!(connect(&old, "cam-2").is_err());
    assert!(is_audited(&fixture, "certificate_reloaded", &[]));
    assert!(!device.has_message_soon().unwrap(), "who is connected stays");
}

#[test]
fn malformed_and_oversized_packets_cost_their_sender_the_connection_and_nobody_else() {
    let fixture = gallery_with(&["cam-1", "cam-2"]);
    let ca = Authority::new(fixture.folder(), "ca").unwrap();
    let (mut server, tls_address) = serve_tls(&fixture, &ca.server("server").unwrap(), &[]);
    let plain = server.address().unwrap().to_owned();
    let tls = stranger::tls(&ca.certificate, None).unwrap();
    let login = Login::of("cam-1", PASSWORD);
    let mut other = let_in(&plain, &Login::of("cam-2", PASSWORD));

    // Before anybody has said who they are.
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: gallery\r\n\r\n"[..],
        b"\x16\x03\x01\x00\x05hello",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x30\x0a\x00\x03a/bhello",
        b"\x10\x0a\x00\x04XXXX\x05\x02\x00\x3c",
        b"\x10\x0a\x00\x04MQTT\x63\x02\x00\x3c",
    ] {
        for address in [&plain, &tls_address] {
            let mut stream = stranger::tcp(address).unwrap();
            let _ = stream.write_all(bytes);
            let mut rest = Vec::new();
            let ended = stream.read_to_end(&mut rest);
            let is_closed =
                ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
            assert!(is_closed, "{bytes:?} to {address} and the connection stays");
            assert!(!rest.starts_with(&[0x20, 3, 0, 0]), "{bytes:?} was let in");
        }
    }
    // From somebody who is in: a packet that is too large, of no kind, cut short in itself, and a topic that is no
    // text.
    let oversized = [&[0x30, 0x80, 0x80, 0x80, 0x01][..], &vec![0; 100_000]].concat();
    for bytes in [
        &oversized[..],
        &[0xf7, 0, 0],
        &[0x30, 2, 0, 200],
        b"\x30\x05\x00\x02\xff\xfe\x00",
        b"\x82\x02\x00\x00",
        &login.packet(),
    ] {
        for over_tls in [false, true] {
            // The broker may still be clearing up after the last connection of this name.
            let mut device = soon("a login", || {
                let connected = if over_tls {
                    Stranger::connect_tls(&tls_address, tls.clone(), &login)
                } else {
                    Stranger::connect(&plain, &login)
                };
                connected.unwrap().ok()
            });
            let _ = device.send(bytes);
            device.wait_until_closed().unwrap_or_else(|error| panic!("{:x?}: {error}", &bytes[..2]));
        }
    }
    // A message that is no query of ours is answered with an error: the gallery's affair, see `foreign_client.rs`.
    other.subscribe(&reply_topic("cam-2")).unwrap();
    other.publish(&query_topic("cam-2"), &query(&fixture, 7), None).unwrap();
    assert!(other.message().unwrap().payload.starts_with(b"{"));
    assert!(server.is_alive());
}

#[test]
fn who_says_nothing_is_shown_the_door() {
    let fixture = gallery_with(&["cam-1"]);
    let ca = Authority::new(fixture.folder(), "ca").unwrap();
    let (_server, address) = serve_tls(&fixture, &ca.server("server").unwrap(), &[]);
    let mut silent: Vec<_> = (0..80).map(|_| stranger::tcp(&address).unwrap()).collect();
    // One address does not get every place; those that got one are not waited for for ever.
    for stream in &mut silent {
        match stream.read(&mut [0]) {
            Ok(bytes) => assert_eq!(bytes, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert!(is_audited(&fixture, "refused", &[("reason", "too many connections that say nothing")]));
    assert!(is_audited(&fixture, "refused", &[("reason", "no TLS in time")]));
    let tls = stranger::tls(&ca.certificate, None).unwrap();
    assert!(Stranger::connect_tls(&address, tls, &Login::of("cam-1", PASSWORD)).unwrap().is_ok());
}

#[test]
fn the_brokers_listener_behind_the_door_lets_nobody_in() {
    let fixture = gallery_with(&["cam-1"]);
    let (server, _) = serve(&fixture);
    let own: u16 = server.address().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let ports = server.listening_ports().unwrap();
    let behind: Vec<u16> = ports.into_iter().filter(|port| *port != own).collect();
    assert_eq!(behind.len(), 1, "{behind:?}");
    let address = format!("127.0.0.1:{}", behind[0]);
    assert_eq!(refusal(&address, &Login::of("cam-1", PASSWORD)), reason::NOT_AUTHORIZED);
    assert_eq!(refusal(&address, &Login::anonymous("cam-1")), reason::NOT_AUTHORIZED);
    assert!(is_audited(&fixture, "refused", &[("reason", "not through the door, or gone already")]));
}

#[test]
fn a_damaged_registry_stops_the_start_and_changes_nothing_later() {
    let fixture = gallery_with(&["cam-1"]);
    let registry = fixture.gallery().join("access/devices.toml");
    let good = std::fs::read_to_string(&registry).unwrap();
    let damaged = [good[..good.len() / 2].to_owned(), String::new(), good.replace("argon2id", "plain")];
    for text in &damaged {
        authority::private(&registry, text).unwrap();
        let error = fixture.serve().unwrap_err().to_string();
        assert!(error.contains("devices.toml cannot be used"), "{error}");
    }
    authority::private(&registry, &good).unwrap();
    std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = fixture.serve().unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o600)).unwrap();

    let (_server, address) = serve(&fixture);
    let mut device = let_in(&address, &Login::of("cam-1", PASSWORD));
    for (number, text) in damaged.iter().enumerate() {
        authority::private(&registry, text).unwrap();
        soon("the refusal", || (audited(&fixture, "registry_refused").len() > number).then_some(()));
        assert_eq!(refusal(&address, &Login::anonymous("cam-1")), reason::BAD_LOGIN);
    }
    std::fs::remove_file(&registry).unwrap();
    soon("the refusal", || (audited(&fixture, "registry_refused").len() > damaged.len()).then_some(()));
    assert_eq!(refusal(&address, &Login::anonymous("cam-1")), reason::BAD_LOGIN);
    assert_eq!(refusal(&address, &Login::of("cam-1", "wrong")), reason::BAD_LOGIN);
    assert!(!device.has_message_soon().unwrap(), "who is in stays in");
    let_in(&address, &Login::of("cam-1", PASSWORD));
    // A mended registry is taken up again.
    authority::private(&registry, &good).unwrap();
    fixture.devices(&["revoke", "cam-1"], "").unwrap();
    soon("the revocation", || {
        (Stranger::connect(&address, &Login::of("cam-1", PASSWORD)).unwrap().err()
            == Some(reason::NOT_AUTHORIZED))
        .then_some(())
    });
}

#[test]
fn other_machines_are_served_with_devices_and_tls_alone() {
    let fixture = gallery_with(&[]);
    let ca = Authority::new(fixture.folder(), "ca").unwrap();
    let identity = ca.server("server").unwrap();
    let [certificate, key] = identity.texts();
    let tls = [
        "--listen",
        "127.0.0.1:0",
        "--listen-tls",
        "0.0.0.0:0",
        "--tls-certificate",
        certificate,
        "--tls-key",
        key,
    ];
    let plain = ["--listen", "0.0.0.0:0"];
    let insecure = ["--listen", "0.0.0.0:0", "--insecure-plaintext"];
    for (flags, expected) in [(&tls[..], "devices add"), (&plain, "without TLS"), (&insecure, "devices add")]
    {
        let error = fixture.serve_with(flags).unwrap_err().to_string();
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    fixture.devices(&["add", "cam-1"], PASSWORD).unwrap();
    let error = fixture.serve_with(&plain).unwrap_err().to_string();
    assert!(error.contains("insecure_plaintext = true"), "{error}");
    std::fs::set_permissions(&identity.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = fixture.serve_with(&tls).unwrap_err().to_string();
    assert!(error.contains("chmod o-rwx"), "{error}");
    std::fs::set_permissions(&identity.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let port = |address: &str| format!("127.0.0.1:{}", address.rsplit_once(':').unwrap().1);
    {
        let server = fixture.serve_with(&tls).unwrap();
        let trusting = stranger::tls(&ca.certificate, None).unwrap();
        let address = port(server.word("mqtts").unwrap());
        assert!(Stranger::connect_tls(&address, trusting, &Login::of("cam-1", PASSWORD)).unwrap().is_ok());
    }
    let server = fixture.serve_with(&insecure).unwrap();
    let address = port(server.address().unwrap());
    let mut device = let_in(&address, &Login::of("cam-1", PASSWORD));
    assert_eq!(refusal(&address, &Login::of("cam-1", "wrong")), reason::BAD_LOGIN);
    device.subscribe(&reply_topic("cam-1")).unwrap();
    device.publish(&query_topic("cam-1"), &query(&fixture, 3), None).unwrap();
    assert_eq!(device.message().unwrap().topic, reply_topic("cam-1"));
    assert!(server.log().unwrap().contains("in the clear"));
}

#[test]
fn glimpse_edge_proves_itself_by_password_and_by_certificate() {
    let fixture = gallery_with(&["door-1"]);
    let folder = fixture.folder();
    let (ca, other_ca) = (Authority::new(folder, "ca").unwrap(), Authority::new(folder, "other-ca").unwrap());
    let identity = authority::self_signed(folder, "door-2").unwrap();
    fixture.devices(&["add", "door-2", "--certificate", identity.texts()[0]], "").unwrap();
    let (server, address) = serve_tls(&fixture, &ca.server("server").unwrap(), &[]);
    let (right, wrong) = (fixture.path("right"), fixture.path("wrong"));
    authority::private(&right, &format!("{PASSWORD}\n")).unwrap();
    authority::private(&wrong, "guess").unwrap();
    let tls_address = format!("mqtts://localhost:{}", address.rsplit_once(':').unwrap().1);
    let plain = server.address().unwrap();
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (ca, other_ca) = (text(&ca.certificate), text(&other_ca.certificate));
    let (right, wrong) = (text(&right), text(&wrong));
    let [certificate, key] = identity.texts();
    let ask = |device: &str, server: &str, flags: &[&str]| {
        let mut edge = fixture.programs.edge();
        edge.args(["query", "--json", "--device", device, "--server", server, "--bundle"]);
        edge.arg(workspace::bundle()).args(flags).arg(&fixture.queries[0].photo);
        let output = edge.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    for (device, server, flags, expected) in [
        ("door-1", tls_address.as_str(), &["--ca", &ca, "--password-file", &right][..], Ok(())),
        ("door-1", plain, &["--password-file", &right], Ok(())),
        ("door-2", &tls_address, &["--ca", &ca, "--certificate", certificate, "--key", key], Ok(())),
        ("door-1", plain, &["--password-file", &wrong], Err("does not let the device door-1 in")),
        ("door-1", plain, &[], Err("does not let the device door-1 in")),
        (
            "door-1",
            &tls_address,
            &["--ca", &other_ca, "--password-file", &right],
            Err("no TLS to mqtts://localhost"),
        ),
        ("door-1", &tls_address, &["--password-file", &right], Err("write ca")),
        ("door-2", &tls_address, &["--ca", &ca, "--certificate", certificate], Err("needs its private key")),
    ] {
        let (is_answered, said) = ask(device, server, flags);
        match expected {
            Ok(()) => assert!(is_answered && said.contains(&fixture.queries[0].answer), "{flags:?}: {said}"),
            Err(part) => assert!(!is_answered && said.contains(part), "{flags:?}: {said}"),
        }
        assert!(!said.contains(PASSWORD), "{said}");
    }
}

#[test]
fn paho_proves_itself_over_tls() {
    let Some(python) = Python::find("paho_proves_itself_over_tls") else { return };
    let fixture = gallery_with(&["paho-1"]);
    let ca = Authority::new(fixture.folder(), "ca").unwrap();
    let (_server, address) = serve_tls(&fixture, &ca.server("server").unwrap(), &[]);
    let address = format!("localhost:{}", address.rsplit_once(':').unwrap().1);
    let password = fixture.path("password");
    authority::private(&password, PASSWORD).unwrap();
    let hex: String = query(&fixture, 5).iter().map(|byte| format!("{byte:02x}")).collect();
    let request = json!({ "payload": hex, "content_type": "application/json" }).to_string();
    let (ca, file) = (ca.certificate.to_str().unwrap(), password.to_str().unwrap());
    for version in ["5", "3.1.1"] {
        let arguments = [&address, "paho-1", "--version", version, "--ca", ca, "--password-file", file];
        let output = python.run("mqtt_client.py", &arguments, request.as_bytes()).unwrap();
        let answer: Value = serde_json::from_slice(&output).unwrap();
        assert!(answer["payload"].as_str().is_some_and(|payload| !payload.is_empty()), "{answer}");
    }
}
