//! The programs as people run them: device and server against each other, through kills, restarts and bad files.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use glimpse_tests::device::Device;
use glimpse_tests::fixture::{Fixture, PHOTOS};
use glimpse_tests::programs::Programs;
use glimpse_tests::queries::ask;
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
    // More than one batch for one thread: some photos are stored while others are still to come.
    const COUNT: usize = 24;
    let fixture = Fixture::of(COUNT).unwrap();
    let mut ingest = fixture.ingest();
    ingest.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::null());
    let mut killed = ingest.spawn().unwrap();
    wait_for_a_first_commit(&fixture.gallery().join("gallery.redb"));
    assert_eq!(killed.try_wait().unwrap(), None, "it must be killed at work");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let listed = || {
        let list = output(fixture.programs.gallery().arg("list").arg("--gallery").arg(fixture.gallery()));
        list.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let kept = listed().len();
    assert!((1..COUNT).contains(&kept), "{kept} photos survived: the kill was not in the middle");

    let said = output(&mut fixture.ingest());
    let (stored, unchanged) = (format!("stored {},", COUNT - kept), format!("unchanged {kept},"));
    assert!(said.contains(&stored) && said.contains(&unchanged), "no photo is embedded twice: {said}");
    assert_eq!(listed(), fixture.queries.iter().map(|query| query.answer.clone()).collect());
    let stats = || {
        let mut stats = fixture.programs.gallery();
        let stats = output(stats.args(["stats", "--json"]).arg("--gallery").arg(fixture.gallery()));
        let mut stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        // redb makes its file larger and smaller as it is opened and closed.
        stats["file_bytes"].take();
        stats
    };
    let before = stats();
    assert!(fixture.ingest().output().unwrap().status.success());
    assert_eq!(stats(), before, "a second ingest changes nothing");
}

/// The database takes more of the disk with the first batch than it took empty.
fn wait_for_a_first_commit(database: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let blocks = || std::fs::metadata(database).map_or(0, |metadata| metadata.blocks());
    let started = Instant::now();
    let (mut empty, mut since) = (0, started);
    loop {
        let now = blocks();
        // An empty one is made in a few steps; the network takes longer for a batch than those do.
        if since.elapsed() < Duration::from_millis(300) || empty == 0 {
            if now != empty {
                (empty, since) = (now, Instant::now());
            }
        } else if now > empty {
            // Until the commit that made it grow is on the disk.
            std::thread::sleep(Duration::from_millis(150));
            return;
        }
        assert!(started.elapsed() < WAIT, "the ingest stores nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The service of the Debian package does not start again after that one.
#[test]
fn a_device_that_is_described_wrongly_ends_with_a_status_of_its_own() {
    let programs = Programs::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device.toml");
    for (text, expected) in
        [("", 78), ("server = 7\n", 78), ("server = \"a\"\ncamera = \"folder:c\"\nbundle = \"b\"\n", 1)]
    {
        std::fs::write(&file, text).unwrap();
        let output = programs.edge().arg("run").arg("--config").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{text}: {said}");
        assert!(said.contains(if expected == 78 { "device.toml" } else { "space" }), "{text}: {said}");
    }
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
    let device = Device::start(command, &fixture.path("edge.log")).unwrap();
    assert!(device.answer().unwrap().error.is_none());
    drop(server);
    take(1);
    let log = fixture.path("second.log");
    let _server =
        Server::start_at(&address, &fixture.programs, &fixture.gallery(), &workspace::bundle(), &log)
            .unwrap();
    take(2);
    for number in [1, 2] {
        let answer = device.answer().unwrap();
        assert!(answer.photo.ends_with(format!("{number}.jpg")), "{answer:?}");
        assert_eq!(answer.error, None);
        assert!(fixture.queries[number].rank(&answer).is_some(), "{answer:?}");
    }
}

/// Queries of an outbox folder that have not been removed from it.
fn queries_in(outbox: &Path) -> usize {
    let files = std::fs::read_dir(outbox).into_iter().flatten().flatten();
    let bytes: Vec<u8> = files.filter_map(|file| std::fs::read(file.path()).ok()).flatten().collect();
    bytes.windows(4).filter(|name| name == b".jpg").count()
}

#[test]
fn queries_outlive_a_device_that_is_killed_and_each_is_answered_once() {
    let fixture = Fixture::ingested().unwrap();
    let address = fixture.serve().unwrap().address().unwrap().to_owned();
    let (outbox, camera, empty) = (fixture.path("outbox"), fixture.path("camera"), fixture.path("empty"));
    std::fs::create_dir(&camera).unwrap();
    std::fs::create_dir(&empty).unwrap();
    for (number, query) in fixture.queries.iter().enumerate() {
        std::fs::copy(workspace::root().join(&query.photo), camera.join(format!("{number:02}.jpg"))).unwrap();
    }
    let start = |camera: &Path| {
        let mut command = fixture.programs.edge();
        command.args(["run", "--json", "--server", &address, "--device", "cam-1"]);
        command.arg("--camera").arg(format!("folder:{}", camera.display()));
        command.arg("--bundle").arg(workspace::bundle()).arg("--outbox").arg(&outbox);
        Device::start(command, &fixture.path("edge.log")).unwrap()
    };
    // The server is away.
    let device = start(&camera);
    let wait_for = |count: usize| {
        let started = Instant::now();
        while queries_in(&outbox) != count {
            assert!(
                started.elapsed() < WAIT,
                "{} queries are in the outbox, not {count}",
                queries_in(&outbox)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for(PHOTOS);
    assert!(device.kill().unwrap().is_empty());
    let log = fixture.path("second.log");
    let _server =
        Server::start_at(&address, &fixture.programs, &fixture.gallery(), &workspace::bundle(), &log)
            .unwrap();
    let mut answered = Vec::new();
    for pulled in 0..3 {
        let device = start(&empty);
        if pulled < 2 {
            // There may be none left.
            answered.extend(device.answer_within(Duration::from_secs(3)));
        } else {
            wait_for(0);
        }
        answered.extend(device.kill().unwrap());
    }
    let photos: BTreeSet<_> = answered.iter().map(|answer| answer.photo.clone()).collect();
    assert_eq!(photos.len(), answered.len(), "one is answered twice: {answered:?}");
    // A kill may come between an outcome that is on the disk and the line that tells it.
    assert!(answered.len() + 3 >= PHOTOS, "only {} of {PHOTOS} are answered", answered.len());
    for answer in answered {
        let number: usize = answer.photo.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        assert!(answer.error.is_none() && fixture.queries[number].rank(&answer).is_some(), "{answer:?}");
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

    // A device that has the bundle knows without asking.
    let mut command = fixture.programs.edge();
    command.args(["query", "--json", "--server", "127.0.0.1:1", "--device", "cam-1", "--bundle"]);
    command.arg(workspace::bundle()).arg("--model").arg(&foreign).arg(&fixture.queries[0].photo);
    let refused = command.output().unwrap();
    check(&refused, "foreign.onnx");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&"ab".repeat(16)) && said.contains("lives in the space"), "{said}");
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

/// `index`, `search` and `check` as a person uses them: an index of one's own serves until the gallery changes.
#[test]
fn an_index_of_ones_own_says_what_it_finds_and_is_searched() {
    let fixture = Fixture::of(24).unwrap();
    assert!(fixture.ingest().output().unwrap().status.success());
    let (bundle, store) = (workspace::bundle(), fixture.gallery());
    let run = |command: &str, more: &[&str]| {
        let mut program = fixture.programs.gallery();
        program.arg(command).args(more).arg("--gallery").arg(&store).arg("--bundle").arg(&bundle);
        program.output().unwrap()
    };
    let said = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let index = said(run("index", &["--codes", "4", "--lists", "3", "--precision", "i8", "--json"]));
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let search = index["search"].as_str().unwrap();
    assert!(
        search.starts_with("3 lists, ") && search.contains("4 bits") && search.ends_with("i8"),
        "{index}"
    );
    assert!(index["recall"]["curve"][0][1].as_f64().unwrap() > 0.0 && index["images"] == 24, "{index}");
    assert!(said(run("check", &[])).contains("search   3 lists"));
    // An address that is taken may be this server's own; one that is not this machine's is nobody's.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    assert!(said(run("check", &["--http", &taken])).contains(&format!("http://{taken} (in use")));
    check(&run("check", &["--http", "192.0.2.1:8080"]), "cannot listen on 192.0.2.1:8080");

    let photo = workspace::root().join(&fixture.queries[0].photo);
    let photo = photo.to_str().unwrap();
    let matches = |more: &[&str]| {
        let line = said(run("search", &[&[photo, "--json", "--top-k", "5"], more].concat()));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        line["matches"].as_array().unwrap().clone()
    };
    let all = matches(&[]);
    assert_eq!(all.len(), 5);
    let label = all[2]["label"].as_str().unwrap();
    let of_label = matches(&["--label", label]);
    assert_eq!((of_label.len(), &of_label[0]["image"]), (1, &all[2]["image"]));
    assert_eq!(matches(&["--unknown", "1"]).len(), 0);
    assert_eq!(matches(&["--expand", "3"]).len(), 5);
    check(&run("search", &[photo, "--label", "no such thing"]), "no such thing");
    check(&run("search", &[photo, "--unknown", "never"]), "never");
    let folder = store.to_str().unwrap();
    check(&run("add", &[folder]), &format!("glimpse-gallery ingest {folder}"));
    check(&run("index", &["--lists", "25", "--codes", "4"]), "25 lists");
    check(&run("index", &["--sub-spaces", "4"]), "--sub-spaces");
    check(&run("index", &["--codes", "4", "--sub-spaces", "5"]), "5 equal sub-spaces");

    // A damaged one is made anew, and said so.
    std::fs::write(store.join("index.glimpse"), b"GLMPIDX").unwrap();
    assert_eq!(matches(&[]).len(), 5);
    assert!(said(run("check", &[])).contains("search   exact, f16"));
}

#[test]
fn the_benchmark_of_search_runs_without_a_peer_and_writes_a_report() {
    let fixture = Fixture::new().unwrap();
    let report = fixture.path("reports/search.json");
    let bench = |index: &str| {
        let mut program = fixture.programs.gallery();
        program.args(["bench", "--rows", "3000", "--dimension", "16", "--queries", "20", "--rounds", "2"]);
        program.args(["--singles", "5", "--probes", "4,8", "--index", index, "--out"]).arg(&report);
        program.output().unwrap()
    };
    for index in ["PQ4x4fs+SQ8", "IVF20,PQ4x4fs+SQfp16", "PQ2", "PQ4x4fs+SQ8"] {
        let output = bench(index);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    // The repeated index took the place of the first; the lists have a row for each number of probes.
    assert_eq!(rows.len(), 4, "{rows:?}");
    for row in &rows {
        let recall = row["recall_ours"].as_f64().unwrap();
        let ranked = row["index"].as_str().unwrap().contains('+');
        assert!(recall > if ranked { 0.9 } else { 0.2 } && row["p50_us"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!((&row["ratio_batch"], &row["dataset"]), (&serde_json::Value::Null, &"3k16".into()));
    }
    check(&bench("PQ"), "names no index");
}

/// Makes a command that reads this bundle.
type MakeCommand<'a> = &'a dyn Fn(&Path) -> Command;

#[test]
fn a_damaged_file_of_a_bundle_is_named_by_every_command_that_reads_it() {
    let fixture = Fixture::ingested().unwrap();
    let photo = workspace::root().join(&fixture.queries[0].photo);
    let embed = |bundle: &Path| {
        let mut command = fixture.programs.edge();
        command.arg("embed").arg("--bundle").arg(bundle).arg(&photo);
        command
    };
    let query = |bundle: &Path| {
        let mut command = fixture.programs.edge();
        command.args(["query", "--codec", "pq", "--server", "127.0.0.1:1", "--device", "cam-1", "--bundle"]);
        command.arg(bundle).arg(&photo);
        command
    };
    let ingest = |bundle: &Path| {
        let mut command = fixture.programs.gallery();
        command.arg("ingest").arg(workspace::demo().join("photos/gallery")).arg("--bundle").arg(bundle);
        command.arg("--gallery").arg(fixture.path("never"));
        command
    };
    let serve = |bundle: &Path| {
        let mut command = fixture.programs.gallery();
        command.args(["serve", "--listen", "127.0.0.1:0"]).arg("--bundle").arg(bundle);
        command.arg("--gallery").arg(fixture.gallery());
        command
    };
    let damages: [(&str, &[MakeCommand]); 4] = [
        ("space.toml", &[&embed, &query, &ingest, &serve]),
        ("query.onnx", &[&embed, &query]),
        ("gallery.onnx", &[&ingest]),
        ("codebook.safetensors", &[&query, &serve]),
    ];
    for (name, commands) in damages {
        let whole = std::fs::read(workspace::bundle().join(name)).unwrap();
        for (number, damaged) in [&whole[..whole.len() / 2], b"neither of the kind"].iter().enumerate() {
            let bundle = fixture.path(&format!("{number}-{name}"));
            bundle_with(&bundle, name, damaged);
            for command in commands {
                check(&command(&bundle).stdin(Stdio::null()).output().unwrap(), name);
            }
        }
    }
}

/// The committed bundle, but for one file.
fn bundle_with(bundle: &Path, name: &str, content: &[u8]) {
    std::fs::create_dir(bundle).unwrap();
    for file in ["space.toml", "query.onnx", "gallery.onnx", "codebook.safetensors"] {
        if file != name {
            std::os::unix::fs::symlink(workspace::bundle().join(file), bundle.join(file)).unwrap();
        }
    }
    std::fs::write(bundle.join(name), content).unwrap();
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
