//! Roll-outs of networks as people make them: `models push` here, devices that change their network there.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use glimpse_tests::authority::private;
use glimpse_tests::device::Device;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::programs::{complaint, said};
use glimpse_tests::server::Server;
use glimpse_tests::workspace;
use serde_json::Value;

/// A network of 14 MB takes two seconds, and a device that was killed up to half a minute to be offered it again.
const WAIT: Duration = Duration::from_secs(90);

/// A gallery with a server, and the demo's network twice: as it is, and with another comment in its file.
struct Site {
    fixture: Fixture,
    key: String,
    second: PathBuf,
    ids: [String; 2],
}

impl Site {
    fn new() -> Self {
        let fixture = Fixture::ingested().unwrap();
        let key = said(fixture.run(&["models", "key"])).trim().to_owned();
        let second = fixture.another_network().unwrap();
        let ids = [&workspace::bundle().join("query.onnx"), &second].map(|path| blake3(path));
        Self { fixture, key, second, ids }
    }

    fn push(&self, whom: &[&str]) -> String {
        said(self.fixture.run(&[&["models", "push", self.second.to_str().unwrap()], whom].concat()))
    }

    /// A device with a password, a camera and a folder for networks.
    fn device(&self, name: &str, server: &str, key: &str) -> Device {
        let camera = self.fixture.path(&format!("camera-{name}"));
        std::fs::create_dir_all(&camera).unwrap();
        let mut command = self.fixture.programs.edge();
        command.args(["run", "--json", "--timeout", "20", "--device", name, "--server", server]);
        command.arg("--camera").arg(format!("folder:{}", camera.display()));
        command.arg("--bundle").arg(workspace::bundle());
        command.arg("--state").arg(self.state(name)).args(["--model-key", key]);
        let password = self.password(name);
        if password.exists() {
            command.arg("--password-file").arg(password);
        }
        Device::start(command, &self.fixture.path(&format!("{name}.log"))).unwrap()
    }

    fn state(&self, name: &str) -> PathBuf {
        self.fixture.path(&format!("state-{name}"))
    }

    fn password(&self, name: &str) -> PathBuf {
        self.fixture.path(&format!("{name}.password"))
    }

    fn register(&self, name: &str, group: &str) {
        let password = self.fixture.devices(&["add", name, "--group", group, "--generate"], "").unwrap();
        private(&self.password(name), &password).unwrap();
    }

    /// Lets a device take a photo.
    fn take(&self, name: &str, number: usize) {
        let photo = workspace::root().join(&self.fixture.queries[number].photo);
        std::fs::copy(photo, self.fixture.path("new.jpg")).unwrap();
        let camera = self.fixture.path(&format!("camera-{name}"));
        std::fs::rename(self.fixture.path("new.jpg"), camera.join(format!("{number}.jpg"))).unwrap();
    }
}

fn blake3(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).unwrap()).to_hex().to_string()
}

/// What the console shows of devices and roll-outs.
fn console(server: &Server) -> Value {
    serde_json::from_str(&get(server, "/api/devices")).unwrap()
}

fn get(server: &Server, path: &str) -> String {
    let address = server.word("http").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits until what the console shows of a device holds.
fn until(site: &Site, server: &Server, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let shown = console(server);
        let device = shown["devices"].as_array().unwrap().iter().find(|device| device["id"] == name).cloned();
        if let Some(device) = device.as_ref().filter(|device| holds(device)) {
            return device.clone();
        }
        let log = || std::fs::read_to_string(site.fixture.path(&format!("{name}.log"))).unwrap_or_default();
        assert!(started.elapsed() < WAIT, "{name} {what}: {shown:#}\n{}\n{}", log(), server.log().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn state(device: &Value) -> (&str, &str) {
    (device["model"].as_str().unwrap_or_default(), device["update"]["state"].as_str().unwrap_or_default())
}

#[test]
fn a_network_reaches_the_devices_of_its_group_and_no_other() {
    let site = Site::new();
    for (name, group) in [("door-1", "entrance"), ("door-2", "entrance"), ("yard-1", "yard")] {
        site.register(name, group);
    }
    let server = site.fixture.serve_at("127.0.0.1:0").unwrap();
    let address = server.address().unwrap();
    let names = ["door-1", "door-2", "yard-1"];
    let devices = names.map(|name| site.device(name, address, &site.key));
    let [first, second] = &site.ids;
    for name in names {
        until(&site, &server, name, "is there", |device| state(device) == (first, "settled"));
    }
    let pushed = site.push(&["--to", "entrance"]);
    assert!(pushed.contains("another.onnx") && pushed.contains("group entrance"), "{pushed}");
    for name in ["door-1", "door-2"] {
        until(&site, &server, name, "has it on trial", |device| state(device) == (second, "trial"));
    }
    // Its first answer proves it; the query is embedded by it already.
    site.take("door-1", 0);
    let answer = devices[0].answer().unwrap();
    assert!(site.fixture.queries[0].rank(&answer).is_some(), "{answer:?}");
    until(&site, &server, "door-1", "keeps it", |device| state(device) == (second, "settled"));
    // Counted once a second.
    wait_until(|| {
        let counts = &console(&server)["rollouts"][0]["devices"];
        (&counts["done"], &counts["trial"], &counts["waiting"]) == (&1.into(), &1.into(), &0.into())
    });
    until(&site, &server, "yard-1", "is left alone", |device| state(device) == (first, "settled"));
    let metrics = get(&server, "/metrics");
    assert!(metrics.contains("stage=\"done\"} 1"), "{metrics}");

    // It is what starts after a power cut, and what the server finds after its own restart.
    drop(devices);
    let door = site.device("door-1", address, &site.key);
    until(&site, &server, "door-1", "starts with it", |device| {
        device["online"] == true && state(device) == (second, "settled")
    });
    site.take("door-1", 1);
    assert!(site.fixture.queries[1].rank(&door.answer().unwrap()).is_some());

    let listed = said(site.fixture.run(&["models", "list", "--json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let serial = listed[0]["serial"].to_string();
    assert_eq!((&listed[0]["model"], &listed[0]["to"]), (&second.as_str().into(), &"group entrance".into()));
    said(site.fixture.run(&["models", "stop", &serial]));
    assert!(said(site.fixture.run(&["models", "list"])).contains("stopped 2"));
    let audit = std::fs::read_to_string(site.fixture.gallery().join("access/audit.jsonl")).unwrap();
    assert!(audit.contains("\"push\"") && audit.contains("\"stop\""), "{audit}");
}

#[test]
fn a_download_survives_kills_of_the_device_and_of_the_server() {
    let site = Site::new();
    let mut server = site.fixture.serve_at("127.0.0.1:0").unwrap();
    let address = server.address().unwrap().to_owned();
    let http = server.word("http").unwrap().to_owned();
    let device = site.device("cam-1", &address, &site.key);
    let [first, second] = &site.ids;
    until(&site, &server, "cam-1", "is there", |device| state(device) == (first, "settled"));
    site.push(&["--to-device", "cam-1"]);
    let part = site.state("cam-1").join("incoming.part");
    let receiving = |device: &Value| state(device).1 == "receiving";
    until(&site, &server, "cam-1", "receives it", receiving);
    wait_until(|| some_chunks(&part));
    drop(device);
    assert!(!site.state("cam-1").join("a.onnx").exists(), "it was to be killed in the middle");

    let device = site.device("cam-1", &address, &site.key);
    until(&site, &server, "cam-1", "receives it again", |device| {
        receiving(device) && device["update"]["percent"].as_u64() > Some(0)
    });
    server.signal("KILL").unwrap();
    wait_until(|| !server.is_alive());
    assert!(!site.state("cam-1").join("a.onnx").exists(), "it was to be killed in the middle");
    let server = site.fixture.serve_with(&["--listen", &address, "--http", &http]).unwrap();
    until(&site, &server, "cam-1", "has it", |device| state(device) == (second, "trial"));
    site.take("cam-1", 2);
    assert!(site.fixture.queries[2].rank(&device.answer().unwrap()).is_some());
    until(&site, &server, "cam-1", "keeps it", |device| state(device) == (second, "settled"));
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The file has its length from the beginning, and takes its place on the disk with its chunks.
fn some_chunks(part: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(part).is_ok_and(|metadata| metadata.blocks() * 512 > 500_000)
}

#[test]
fn a_device_takes_nothing_that_its_operator_did_not_sign() {
    let site = Site::new();
    let server = site.fixture.serve_at("127.0.0.1:0").unwrap();
    let address = server.address().unwrap();
    let stranger = site.device("cam-1", address, &"ab".repeat(32));
    let own = site.device("cam-2", address, &site.key);
    let [first, second] = &site.ids;
    for name in ["cam-1", "cam-2"] {
        until(&site, &server, name, "is there", |device| state(device) == (first, "settled"));
    }
    site.push(&["--to-all"]);
    let device = until(&site, &server, "cam-1", "refuses it", |device| state(device) == (first, "failed"));
    assert!(device["update"]["reason"].as_str().unwrap().contains("model_key"), "{device}");
    until(&site, &server, "cam-2", "has it", |device| state(device) == (second, "trial"));
    for (name, device, number) in [("cam-1", &stranger, 3), ("cam-2", &own, 4)] {
        site.take(name, number);
        assert!(site.fixture.queries[number].rank(&device.answer().unwrap()).is_some());
    }
}

#[test]
fn a_network_that_was_damaged_on_the_server_is_not_sent_and_changes_nothing() {
    let site = Site::new();
    site.push(&["--to-all"]);
    let file = site.fixture.gallery().join(format!("models/{}.onnx", site.ids[1]));
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let server = site.fixture.serve_at("127.0.0.1:0").unwrap();
    let device = site.device("cam-1", server.address().unwrap(), &site.key);
    let [first, _] = &site.ids;
    wait_until(|| server.log().unwrap().contains("is not what was signed"));
    until(&site, &server, "cam-1", "waits for the rest", |device| {
        let percent = device["update"]["percent"].as_u64();
        state(device) == (first, "receiving") && (Some(40)..Some(60)).contains(&percent)
    });
    site.take("cam-1", 0);
    assert!(site.fixture.queries[0].rank(&device.answer().unwrap()).is_some());
    until(&site, &server, "cam-1", "runs what it ran", |device| state(device).0 == first);
}

#[test]
fn mistakes_of_a_push_are_told_and_change_nothing() {
    let fixture = Fixture::ingested().unwrap();
    let network = workspace::bundle().join("query.onnx");
    let network = network.to_str().unwrap();
    let push = |words: &[&str]| complaint(fixture.run(&[&["models", "push"], words].concat()));
    assert!(push(&[network, "--to-all"]).contains("models key"), "there is no key yet");
    said(fixture.run(&["models", "key"]));
    assert!(push(&["absent.onnx", "--to-all"]).contains("absent.onnx"));
    let gallery = workspace::bundle().join("gallery.onnx");
    assert!(push(&[gallery.to_str().unwrap(), "--to-all"]).contains("gallery.onnx"));
    assert!(push(&[network, "--to", "hall"]).contains("no device is in the group hall"));
    fixture.devices(&["add", "cam-1", "--group", "hall"], "secret\n").unwrap();
    assert!(push(&[network, "--to-device", "cam-2"]).contains("no device cam-2"));
    assert!(complaint(fixture.run(&["models", "stop", "7"])).contains("no roll-out 7"));
    assert_eq!(said(fixture.run(&["models", "list"])), "");
    let mut elsewhere = fixture.programs.gallery();
    elsewhere.args(["models", "key", "--gallery"]).arg(fixture.path("nowhere"));
    assert!(complaint(elsewhere.output()).contains("nowhere"));
    assert!(!fixture.path("nowhere").exists());
}
