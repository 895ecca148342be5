//! The program, as a person runs it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::process::{Command, Output};

fn firmware(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_glimpse-firmware")).current_dir(folder).args(args).output().unwrap()
}

/// Runs the program and expects a status, and parts of what it says on either channel.
fn check(folder: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let output = firmware(folder, args);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{args:?} does not say `{part}`: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_new_file_passes_the_check_once_its_folders_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    check(folder, &["init"], 0, &["wrote device.toml", "glimpse-firmware check device.toml"]);
    check(
        folder,
        &["check", "device.toml"],
        1,
        &["camera: there is no folder", "bundle: there is no folder"],
    );
    check(folder, &["check", "--no-paths", "device.toml"], 0, &["device.toml: good", "127.0.0.1:1883"]);
    std::fs::create_dir_all(folder.join("models/demo")).unwrap();
    std::fs::create_dir(folder.join("photos")).unwrap();
    check(folder, &["check", "device.toml"], 1, &["bundle: there is no file", "query.onnx"]);
    std::fs::write(folder.join("models/demo/query.onnx"), "").unwrap();
    check(folder, &["check", "device.toml"], 0, &["device.toml: good", "codec     i8"]);
}

#[test]
fn a_file_that_is_there_is_kept_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device.toml");
    std::fs::write(&file, "mine").unwrap();
    check(folder.path(), &["init"], 1, &["device.toml is there already", "--force"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    check(folder.path(), &["init", "--force", "--device", "door-1", "--codec", "pq"], 0, &["wrote"]);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\ndevice = \"door-1\"\n") && text.contains("\ncodec = \"pq\"\n"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn every_problem_is_told_with_its_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.toml"), "servr = 'a'\ncamera = 'usb'\n").unwrap();
    std::fs::write(folder.path().join("b.toml"), "server = \n").unwrap();
    let parts = [
        "a.toml:1: servr: unknown key",
        "a.toml:2: camera: expected folder:DIR",
        "a.toml: server: missing",
        "a.toml: bundle: missing",
        "b.toml:1: no TOML",
    ];
    check(folder.path(), &["check", "a.toml", "b.toml"], 1, &parts);
}

#[test]
fn what_is_no_device_file_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("bytes"), [0xff, 0xfe, 0]).unwrap();
    std::fs::write(folder.join("large"), vec![b' '; (1 << 20) + 1]).unwrap();
    check(folder, &["check", "bytes"], 1, &["bytes is no UTF-8 text"]);
    check(folder, &["check", "large"], 1, &["large is larger than"]);
    check(folder, &["check", "."], 1, &[". is no file"]);
    check(folder, &["check", "absent.toml"], 1, &["cannot read absent.toml"]);
    check(folder, &["init", "no/such/device.toml"], 1, &["cannot write no/such/device.toml"]);
    check(folder, &["check"], 2, &["FILE"]);
    check(folder, &["init", "--top-k", "0"], 2, &["from 1 to 100"]);
}
