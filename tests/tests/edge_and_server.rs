//! The programs as people run them: device and server against each other, through kills, restarts and bad files.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use glimpse_tests::fixture::{Fixture, PHOTOS};
use glimpse_tests::queries::{Answer, ask};
use glimpse_tests::server::Server;
use glimpse_tests::workspace;
use prost::Message as _;
use tract_onnx::pb::ModelProto;

const WAIT: Duration = Duration::from_secs(30);

#[test]
fn a_device_finds_what_its_photos_show_with_every_codec() {
    let fixture = Fixture::ingested().unwrap();
    let mut server = fixture.serve().unwrap();
    let photos: Vec<_> = fixture.queries.iter().map(|query| query.photo.clone()).collect();
    for codec in glimpse_protocol::Codec::ALL {
        let mut command = fixture.programs.edge();
        command.args(["query", "--json", "--server", server.address().unwrap(), "--device", "cam-1"]);
        command.args(["--codec", codec.name(), "--bundle"]).arg(workspace::bundle());
        let answers = ask(command, &photos, &fixture.path("edge.log"), &mut |_| ()).unwrap();
        let first = fixture
            .queries
            .iter()
            .zip(&answers)
            .filter(|(query, answer)| query.rank(answer) == Some(1))
            .count();
        // Twelve photos against twelve: chance finds one.
        assert!(first >= 9, "codec {codec}: only {first} of {PHOTOS} were found first");
        if codec == glimpse_protocol::Codec::Pq {
            assert!(
                answers.iter().all(|answer| answer.bytes.unwrap() <= 100),
                "a query in PQ codes fits in 100 bytes"
            );
        }
    }
    assert_eq!(server.stop().unwrap().code(), Some(0));
}

#[test]
fn an_ingest_that_was_killed_goes_on_and_a_second_one_has_nothing_to_do() {
    let fixture = Fixture::new().unwrap();
    let mut killed = fixture.ingest().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    // Whether it was still at work or not, what follows must hold.
    let _ = killed.kill();
    killed.wait().unwrap();
    assert!(fixture.ingest().output().unwrap().status.success());
    let list = output(fixture.programs.gallery().arg("list").arg("--gallery").arg(fixture.gallery()));
    let mut listed: Vec<&str> = list.lines().filter_map(|line| line.split('\t').next()).collect();
    listed.sort_unstable();
    let mut expected: Vec<&str> = fixture.queries.iter().map(|query| query.answer.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let stats = || {
        output(fixture.programs.gallery().args(["stats", "--json"]).arg("--gallery").arg(fixture.gallery()))
    };
    let before = stats();
    assert!(fixture.ingest().output().unwrap().status.success());
    assert_eq!(stats(), before, "a second ingest changes nothing");
}

#[test]
fn a_device_that_runs_on_asks_again_after_the_server_was_killed_and_restarted() {
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let address = server.address().unwrap().to_owned();
    let camera = fixture.path("camera");
    std::fs::create_dir(&camera).unwrap();
    let take = |number: usize| {
        let photo = workspace::root().join(&fixture.queries[number].photo);
        std::fs::copy(photo, fixture.path("new.jpg")).unwrap();
        std::fs::rename(fixture.path("new.jpg"), camera.join(format!("{number}.jpg"))).unwrap();
    };
    take(0);
    let mut command = fixture.programs.edge();
    command.args(["run", "--json", "--server", &address, "--device", "cam-1", "--timeout", "20"]);
    command
        .arg("--camera")
        .arg(format!("folder:{}", camera.display()))
        .arg("--bundle")
        .arg(workspace::bundle());
    let device = Device::start(command);
    assert!(device.answer().error.is_none());
    drop(server);
    take(1);
    let log = fixture.path("second.log");
    let _server =
        Server::start_at(&address, &fixture.programs, &fixture.gallery(), &workspace::bundle(), &log)
            .unwrap();
    take(2);
    for number in [1, 2] {
        let answer = device.answer();
        assert!(answer.photo.ends_with(format!("{number}.jpg")), "{answer:?}");
        assert_eq!(answer.error, None);
        assert!(fixture.queries[number].rank(&answer).is_some(), "{answer:?}");
    }
}

/// `glimpse-edge run`, whose lines are read with a time limit.
struct Device {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Device {
    fn start(mut command: Command) -> Self {
        let mut process =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { process, lines }
    }

    fn answer(&self) -> Answer {
        serde_json::from_str(&self.lines.recv_timeout(WAIT).expect("an answer in time")).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_model_of_another_space_is_told_so_by_name() {
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let foreign = fixture.path("foreign.onnx");
    let mut proto =
        ModelProto::decode(std::fs::read(workspace::bundle().join("query.onnx")).unwrap().as_slice())
            .unwrap();
    let space = proto.metadata_props.iter_mut().find(|entry| entry.key == "glimpse.space").unwrap();
    space.value = "ab".repeat(16);
    std::fs::write(&foreign, proto.encode_to_vec()).unwrap();
    let mut command = fixture.programs.edge();
    command
        .args(["query", "--json", "--server", server.address().unwrap(), "--device", "cam-1", "--model"])
        .arg(&foreign);
    command.arg(&fixture.queries[0].photo);
    let found = command.output().unwrap();
    assert_eq!(found.status.code(), Some(1));
    let said = String::from_utf8(found.stdout).unwrap();
    assert!(said.contains("wrong_space") && said.contains(&"ab".repeat(16)), "{said}");
}

#[test]
fn files_that_cannot_be_used_are_named_and_nothing_panics() {
    let fixture = Fixture::new().unwrap();
    let bad = fixture.path("bad");
    std::fs::create_dir(&bad).unwrap();
    let truncated = fixture.path("truncated.onnx");
    let model = std::fs::read(workspace::bundle().join("query.onnx")).unwrap();
    std::fs::write(&truncated, &model[..model.len() / 2]).unwrap();
    let text = fixture.path("text.jpg");
    std::fs::File::create(&text).unwrap().write_all(b"no photo").unwrap();
    let photo = workspace::root().join(&fixture.queries[0].photo);
    let (bundle, folder) = (workspace::bundle(), fixture.folder().to_owned());

    let edge = |args: &[&Path]| fixture.programs.edge().arg("embed").args(args).output().unwrap();
    check(&edge(&["--bundle".as_ref(), &bad, &photo]), "bad");
    check(&edge(&["--model".as_ref(), &truncated, &photo]), "truncated.onnx");
    check(&edge(&["--model".as_ref(), &text, &photo]), "text.jpg");
    check(&edge(&["--bundle".as_ref(), &bundle, &text]), "text.jpg");
    check(&edge(&["--bundle".as_ref(), &bundle, &folder]), &folder.display().to_string());
    check(&edge(&["--bundle".as_ref(), &bundle, "absent.jpg".as_ref()]), "absent.jpg");

    let gallery = |args: &[&Path]| fixture.programs.gallery().args(args).output().unwrap();
    let (store, none) = (fixture.path("store"), fixture.path("none"));
    let ingest = |source: &Path, bundle: &Path| {
        gallery(&["ingest".as_ref(), source, "--gallery".as_ref(), &store, "--bundle".as_ref(), bundle])
    };
    check(&ingest(&bad, &bad), "bad");
    check(&ingest(&none, &bundle), "none");
    check(&gallery(&["serve".as_ref(), "--gallery".as_ref(), &none, "--bundle".as_ref(), &bundle]), "none");
    std::fs::create_dir_all(&store).unwrap();
    for name in ["gallery.redb", "gallery.toml"] {
        std::fs::write(store.join(name), b"no gallery at all").unwrap();
    }
    check(&gallery(&["stats".as_ref(), "--gallery".as_ref(), &store]), "store");
}

/// A failure that names what it is about, in words.
fn check(output: &Output, name: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{name}: {said}");
    assert!(said.contains(name) && !said.contains("panicked at"), "{name}: {said}");
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
