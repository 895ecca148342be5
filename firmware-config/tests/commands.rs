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
    check(folder, &["check", "device.toml"], 1, &["bundle: there is no file", "query.onnx", "space.toml"]);
    std::fs::write(folder.join("models/demo/query.onnx"), "").unwrap();
    std::fs::write(folder.join("models/demo/space.toml"), "name =").unwrap();
    check(folder, &["check", "device.toml"], 1, &["space.toml cannot be used"]);
    std::fs::write(folder.join("models/demo/space.toml"), "name = 'demo'\n").unwrap();
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
        "error: servr: unknown key\n --> a.toml:1:1\n",
        "error: camera: expected folder:DIR",
        "server: missing\n--> a.toml\n",
        "bundle: missing",
        "no TOML: a value is missing\n --> b.toml:1:10\n",
    ];
    check(folder.path(), &["check", "a.toml", "b.toml"], 1, &parts);
}

#[test]
fn missing_paths_have_their_lines_and_stand_beside_other_problems() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.toml"), "top_k = 0\ncamera = 'folder:none'\nmodel = 'none.onnx'\n")
        .unwrap();
    let parts = [
        "a.toml:1:9",
        "camera: there is no folder none\n --> a.toml:2:10\n",
        "model: there is no file none.onnx\n --> a.toml:3:9\n",
        "server: missing\n--> a.toml\n",
    ];
    check(folder.path(), &["check", "a.toml"], 1, &parts);
}

#[test]
fn cameras_are_looked_for_by_their_kind() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (camera, part) in [
        ("v4l2:/dev/no-such-camera", "camera: there is no device /dev/no-such-camera"),
        ("video:none.mjpeg", "camera: there is no file"),
        ("v4l2:video0", "camera: expected v4l2: and the whole path of a device"),
    ] {
        std::fs::write(folder.join("a.toml"), format!("camera = '{camera}'\n")).unwrap();
        check(folder, &["check", "a.toml"], 1, &[part]);
    }
    check(folder, &["init", "--camera", "rpicam", "--trigger", "motion"], 0, &["wrote"]);
    let parts = ["camera    rpicam", "trigger   motion", "size      1280x720", "sharpness at least 0.5"];
    check(folder, &["check", "--no-paths", "device.toml"], 0, &parts);
}

#[test]
fn model_and_codebook_can_be_given() {
    let folder = tempfile::tempdir().unwrap();
    check(
        folder.path(),
        &["init", "--model", "q.onnx", "--codebook", "c.safetensors", "--codec", "pq"],
        0,
        &["wrote"],
    );
    check(folder.path(), &["check", "--no-paths", "device.toml"], 0, &["q.onnx", "c.safetensors"]);
}

#[test]
fn control_characters_never_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.toml"), "\"a\\u001b[31m\" = 1\nserver = 'a\u{9b}b'\n").unwrap();
    std::fs::write(folder.path().join("b\u{1b}[2J.toml"), "x").unwrap();
    for name in ["a.toml", "b\u{1b}[2J.toml", "absent\u{1b}.toml"] {
        let output = firmware(folder.path(), &["check", name]);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
        assert!(said.contains("\\u{"), "{said:?}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_panic() {
    use std::process::Stdio;
    let folder = tempfile::tempdir().unwrap();
    for args in [&["init"][..], &["check", "--no-paths", "device.toml"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"));
        let mut child = command
            .current_dir(folder.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code().is_some() && !said.contains("panicked"), "{args:?}: {said}");
    }
}

#[test]
#[cfg(unix)]
fn a_pipe_in_place_of_a_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    // A program that waited for the pipe's other end would hang here, and fail by the test's own time limit.
    check(folder.path(), &["check", "pipe"], 1, &["pipe is no file"]);
    std::fs::create_dir(folder.path().join("photos")).unwrap();
    let text = "server = 'a'\ncamera = 'folder:photos'\nmodel = 'pipe'\n";
    std::fs::write(folder.path().join("a.toml"), text).unwrap();
    check(folder.path(), &["check", "a.toml"], 1, &["model: there is no file"]);
}

#[test]
fn what_is_no_device_file_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("bytes"), [0xff, 0xfe, 0]).unwrap();
    std::fs::write(folder.join("large"), vec![b' '; (1 << 20) + 1]).unwrap();
    check(folder, &["check", "bytes"], 1, &["is UTF-16 text"]);
    check(folder, &["check", "large"], 1, &["large is larger than"]);
    check(folder, &["check", "."], 1, &[". is no file"]);
    check(folder, &["check", "absent.toml"], 1, &["cannot read absent.toml"]);
    check(folder, &["init", "no/such/device.toml"], 1, &["cannot write no/such/device.toml"]);
    check(folder, &["check"], 2, &["FILE"]);
    check(folder, &["init", "--top-k", "0"], 2, &["from 1 to 100"]);
}
