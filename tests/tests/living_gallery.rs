//! A gallery that people change while a server answers from it, by the commands that they have.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use glimpse_tests::fixture::Fixture;
use glimpse_tests::programs::{complaint, said};
use glimpse_tests::queries::{Answer, ask};
use glimpse_tests::server::Server;
use glimpse_tests::workspace;

/// Changes are seen within a fraction of a second; a machine that is busy elsewhere takes longer.
const WAIT: Duration = Duration::from_secs(30);

fn answer(fixture: &Fixture, server: &Server, photo: &Path) -> Answer {
    let mut command: Command = fixture.programs.edge();
    command.args(["query", "--json", "--server", server.address().unwrap(), "--device", "cam-1", "--bundle"]);
    command.arg(workspace::bundle());
    ask(command, &[photo.to_owned()], &fixture.path("edge.log"), &mut |_| ()).unwrap().remove(0)
}

/// Asks until the answer is as it should be.
fn until(fixture: &Fixture, server: &Server, photo: &Path, what: &str, holds: impl Fn(&Answer) -> bool) {
    let started = Instant::now();
    loop {
        let answer = answer(fixture, server, photo);
        if holds(&answer) {
            return;
        }
        assert!(started.elapsed() < WAIT, "{what}: {answer:?}");
    }
}

#[test]
fn photos_that_are_removed_and_added_are_seen_by_the_server_that_runs() {
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let query = &fixture.queries[0];
    let is_there = |answer: &Answer| answer.matches.iter().any(|found| found.image == query.answer);
    until(&fixture, &server, &query.photo, "at first", is_there);

    assert_eq!(said(fixture.run(&["remove", &query.answer])), "removed 1, not there 0\n");
    until(&fixture, &server, &query.photo, "removed", |answer| {
        !is_there(answer) && answer.matches.len() == 10
    });

    let photo = workspace::demo().join("photos").join(&query.answer);
    let bundle = workspace::bundle();
    let add = ["add", photo.to_str().unwrap(), "--id", &query.answer, "--label", "back again", "--bundle"];
    said(fixture.run(&[&add[..], &[bundle.to_str().unwrap(), "--attribute", "room=3"]].concat()));
    until(&fixture, &server, &query.photo, "added", |answer| {
        answer.matches.iter().any(|found| found.image == query.answer && found.label == "back again")
    });
    let stats: serde_json::Value = serde_json::from_str(&said(fixture.run(&["stats", "--json"]))).unwrap();
    assert_eq!((&stats["images"], &stats["attributes"][0]), (&12.into(), &"room".into()));
    assert!(said(fixture.run(&["verify"])).ends_with("ok\n"));
}

#[test]
fn features_leave_and_come_back_and_a_copy_takes_the_place_of_a_gallery() {
    let fixture = Fixture::ingested().unwrap();
    let (bundle, listed) = (workspace::bundle(), || said(fixture.run(&["list", "--json"])));
    let (before, server) = (listed(), fixture.serve().unwrap());
    let path = |name: &str| fixture.path(name).to_str().unwrap().to_owned();
    for name in ["features.npy", "features.safetensors"] {
        said(fixture.run(&["export", &path(name), &path("images.csv")]));
        // A list as `list` prints it: what follows the first tab is passed over.
        std::fs::write(path("ids.txt"), said(fixture.run(&["list"]))).unwrap();
        said(fixture.run(&["remove", "--from", &path("ids.txt")]));
        assert_eq!(listed(), "");
        let import = ["import", &path(name), &path("images.csv"), "--bundle", bundle.to_str().unwrap()];
        assert_eq!(said(fixture.run(&import)), "imported 12\n");
        assert_eq!(listed(), before, "{name}");
    }
    assert!(complaint(fixture.run(&["export", &path("features.txt"), &path("images.csv")])).contains(".npy"));

    said(fixture.run(&["backup", &path("copy")]));
    assert!(complaint(fixture.run(&["backup", &path("copy")])).contains("holds a gallery already"));
    let query = &fixture.queries[1];
    said(fixture.run(&["remove", &query.answer]));
    said(fixture.run(&["compact"]));
    said(fixture.run(&["restore", &path("copy")]));
    assert_eq!(listed(), before);
    let is_there = |answer: &Answer| answer.matches.iter().any(|found| found.image == query.answer);
    until(&fixture, &server, &query.photo, "restored", is_there);
    assert!(complaint(fixture.run(&["remove", "no such image"])).contains("`list` shows"));
    assert!(complaint(fixture.run(&["restore", &path("nowhere")])).contains("nowhere"));
}

#[test]
fn tables_and_features_that_do_not_belong_together_are_refused_by_name() {
    let fixture = Fixture::ingested().unwrap();
    let bundle = workspace::bundle();
    let path = |name: &str| fixture.path(name).to_str().unwrap().to_owned();
    said(fixture.run(&["export", &path("f.npy"), &path("i.csv")]));
    let table = std::fs::read_to_string(path("i.csv")).unwrap();
    let import = |features: &str, csv: &str| {
        std::fs::write(path("x.csv"), csv).unwrap();
        complaint(fixture.run(&["import", features, &path("x.csv"), "--bundle", bundle.to_str().unwrap()]))
    };
    let features = path("f.npy");
    assert!(import(&features, "label\nx\n").contains("no column id"));
    assert!(import(&features, "id\nx\n").contains("has 12 rows"));
    let twice = table.lines().take(12).chain(table.lines().nth(1)).collect::<Vec<_>>().join("\n");
    assert!(import(&features, &twice).contains("listed twice"));
    assert!(import(&path("x.csv"), &table).contains("no matrix of features"));
    glimpse_tests::durability::write_npy(fixture.path("short.npy").as_path(), 16, &[0.25; 12 * 16]).unwrap();
    assert!(import(&path("short.npy"), &table).contains("16 dimensions"));
    let long: Vec<f32> = vec![2.0; 12 * 224];
    glimpse_tests::durability::write_npy(fixture.path("long.npy").as_path(), 224, &long).unwrap();
    assert!(import(&path("long.npy"), &table).contains("not a finite unit vector"));
    assert_eq!(said(fixture.run(&["list"])).lines().count(), 12);
}

#[test]
fn a_server_reads_its_configuration_again_and_keeps_the_old_one_when_it_is_wrong() {
    let fixture = Fixture::ingested().unwrap();
    let config = fixture.path("gallery.toml");
    std::fs::write(&config, "unknown = \"matched\"\n").unwrap();
    let mut command = fixture.programs.gallery();
    command.args(["serve", "--listen", "127.0.0.1:0", "--http", "none", "--config"]).arg(&config);
    command.arg("--gallery").arg(fixture.gallery()).arg("--bundle").arg(workspace::bundle());
    let server = Server::spawn(command, &fixture.path("server.log")).unwrap();
    let photo = &fixture.queries[0].photo;
    let matches = |count: usize| move |answer: &Answer| answer.matches.len() == count;
    until(&fixture, &server, photo, "at first", matches(10));
    std::fs::write(&config, "unknown = 0.999\n").unwrap();
    server.signal("HUP").unwrap();
    until(&fixture, &server, photo, "changed", matches(0));
    std::fs::write(&config, "unknown = 7\ntypo = 1\n").unwrap();
    server.signal("HUP").unwrap();
    let started = Instant::now();
    while !std::fs::read_to_string(fixture.path("server.log")).unwrap().contains("typo") {
        assert!(started.elapsed() < WAIT, "the mistake is not named");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(answer(&fixture, &server, photo).matches.len(), 0);
}
