//! What a device does with an answer, and what its doctor says, over the real programs.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use glimpse_tests::fixture::{Fixture, PHOTOS};
use glimpse_tests::workspace;
use serde_json::Value;

/// A program that writes each outcome that it is given to a file of its own.
fn hook(fixture: &Fixture) -> std::path::PathBuf {
    let (hook, told) = (fixture.path("hook"), fixture.path("told"));
    std::fs::create_dir(&told).unwrap();
    std::fs::write(&hook, format!("#!/bin/sh\ncat > {}/$$.json\n", told.display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    hook
}

fn edge(fixture: &Fixture, words: &[&str], address: &str) -> Command {
    let camera = fixture.path("camera");
    if !camera.exists() {
        std::fs::create_dir(&camera).unwrap();
        for (number, query) in fixture.queries.iter().enumerate() {
            let photo = workspace::root().join(&query.photo);
            std::fs::copy(photo, camera.join(format!("{number:02}.jpg"))).unwrap();
        }
    }
    let mut command = fixture.programs.edge();
    command.args(words).args(["--json", "--server", address, "--device", "cam-1"]);
    command.arg("--camera").arg(format!("folder:{}", camera.display()));
    command.arg("--bundle").arg(workspace::bundle());
    command
}

#[test]
fn a_program_is_given_each_outcome_once_and_is_told_of_what_is_unknown() {
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let mut command = edge(&fixture, &["run", "--once", "--unknown-below", "1"], server.address().unwrap());
    let output = command.arg("--exec").arg(hook(&fixture)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: BTreeSet<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| format!("{line}\n")).collect();
    assert_eq!(printed.len(), PHOTOS);
    let files = std::fs::read_dir(fixture.path("told")).unwrap();
    let told: Vec<String> =
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    assert_eq!(told.len(), PHOTOS, "each once");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), printed, "the same lines");
    for line in &printed {
        let outcome: Value = serde_json::from_str(line).unwrap();
        assert_eq!(outcome["unknown"], true, "no match has a similarity of 1: {line}");
        assert!(!outcome["matches"].as_array().unwrap().is_empty());
    }
}

#[test]
fn the_doctor_finds_a_good_device_good_and_says_what_is_wrong_with_another() {
    let fixture = Fixture::ingested().unwrap();
    let mut server = fixture.serve().unwrap();
    let address = server.address().unwrap().to_owned();
    let examine = |address: &str| {
        let outbox = fixture.path("outbox");
        let mut command = edge(&fixture, &["doctor", "--codec", "pq"], address);
        let output = command.arg("--outbox").arg(outbox).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report)
    };
    let status = |report: &Value, check: &str| {
        let checks = report["checks"].as_array().unwrap().iter();
        let found = checks.clone().find(|found| found["check"] == check);
        found.unwrap_or_else(|| panic!("no {check}: {report}"))["status"].as_str().unwrap().to_owned()
    };
    let (code, report) = examine(&address);
    assert_eq!((code, report["ok"].as_bool()), (Some(0), Some(true)), "{report}");
    for check in ["configuration", "camera", "model", "codec", "credentials", "broker", "gallery"] {
        assert_eq!(status(&report, check), "ok", "{check}: {report}");
    }
    server.stop().unwrap();
    let (code, report) = examine(&address);
    assert_eq!((code, report["ok"].as_bool()), (Some(1), Some(false)), "{report}");
    assert_eq!(status(&report, "broker"), "failure", "{report}");
    assert_eq!(status(&report, "model"), "ok", "one that fails hides no other: {report}");
}
