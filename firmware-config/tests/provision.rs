//! Devices get credentials that the server knows; a script stands for the server's command, and says how it was called.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Writes its arguments into `calls`, refuses the device `unwanted`, and prints a password where one is to be made.
const GALLERY: &str = "#!/bin/sh\necho \"$@\" >> calls\ncase \"$*\" in\n*unwanted) echo 'no such gallery' >&2; exit 1 ;;\n\
                       *--generate*) echo s3cret ;;\n*) echo added ;;\nesac\n";

/// A folder with a configuration, a bundle, an authority of the server, and the script.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("bundle")).unwrap();
    for name in ["bundle/query.onnx", "bundle/space.toml", "gallery.pem"] {
        std::fs::write(at(name), "").unwrap();
    }
    let text = "server = 'mqtts://gallery.lan'\nca = 'gallery.pem'\ncamera = 'rpicam'\nbundle = 'bundle'\n";
    std::fs::write(at("device.toml"), text).unwrap();
    std::fs::write(at("gallery.sh"), GALLERY).unwrap();
    std::fs::set_permissions(at("gallery.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs the program and expects a status, and parts of what it says on either channel.
fn check(folder: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"));
    let output = command.current_dir(folder).args(args).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{args:?} does not say `{part}`: {said}");
    }
    assert!(!said.contains("s3cret") && !said.contains("PRIVATE KEY"), "{said}");
}

/// `provision` with these flags, and the server's.
fn provision(folder: &Path, flags: &[&str], status: i32, parts: &[&str]) {
    let server = ["--gallery", "g", "--gallery-program", "./gallery.sh"];
    check(folder, &[&["provision"], flags, &server].concat(), status, parts);
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_only_the_device_has_is_not_looked_for_here() {
    let folder = folder();
    let folder = folder.path();
    let text = std::fs::read_to_string(folder.join("device.toml")).unwrap();
    let text = text.replace("'rpicam'", "'v4l2:/dev/a-boards'") + "exec = '/usr/bin/of-the-board'\n";
    std::fs::write(folder.join("device.toml"), &text).unwrap();
    check(folder, &["ca", "init"], 0, &[]);
    provision(folder, &["door-1"], 0, &["1 made"]);
    // What is copied has to be there.
    std::fs::write(folder.join("device.toml"), text.replace("'bundle'", "'gone'")).unwrap();
    provision(folder, &["door-2"], 1, &["there is no folder", "gone", "has to be good first"]);
}

#[test]
fn a_fleet_gets_a_certificate_each_and_goes_on_where_it_was() {
    let folder = folder();
    let folder = folder.path();
    check(folder, &["ca", "init"], 0, &["made ca/ca.pem"]);
    check(folder, &["ca", "init"], 1, &["holds an authority already"]);
    assert_eq!((mode(&folder.join("ca")), mode(&folder.join("ca/ca.key"))), (0o700, 0o600));
    let rows: String = (1..=20)
        .map(|number| format!("door-{number}, entrance, raspberry-pi-4, 10.0.0.{number}/8\n"))
        .collect();
    std::fs::write(folder.join("fleet.csv"), format!("device,group,board,address\n{rows}")).unwrap();
    // A fixed address comes without name servers.
    provision(folder, &["--fleet", "fleet.csv"], 1, &["door-1 was not made", "write dns"]);
    let text = std::fs::read_to_string(folder.join("device.toml")).unwrap();
    std::fs::write(folder.join("device.toml"), format!("{text}[network]\ndns = ['10.0.0.100']\n")).unwrap();
    provision(
        folder,
        &["--fleet", "fleet.csv", "--expires", "90d"],
        0,
        &["devices/door-20", "20 made, 0 there already"],
    );
    provision(folder, &["--fleet", "fleet.csv"], 0, &["0 made, 20 there already"]);
    let door = folder.join("devices/door-7");
    assert_eq!((mode(&door), mode(&door.join("device.key"))), (0o700, 0o600));
    check(
        &door,
        &["check", "device.toml"],
        0,
        &["device    door-7", "by certificate, over TLS", "10.0.0.7/8", "group     entrance"],
    );
    let key =
        |name: &str| std::fs::read_to_string(folder.join("devices").join(name).join("device.key")).unwrap();
    assert_ne!(key("door-7"), key("door-8"));
    let calls = std::fs::read_to_string(folder.join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 20, "{calls}");
    assert!(
        calls
            .lines()
            .all(|call| call.starts_with("devices add --group entrance --expires 90d --certificate ")),
        "{calls}"
    );
    assert_eq!(std::fs::read_dir(folder.join("devices")).unwrap().count(), 20);
    verified_by_openssl(folder, &door);
}

/// Another program's opinion of the certificate, where there is one.
fn verified_by_openssl(folder: &Path, door: &Path) {
    let verify = Command::new("openssl")
        .args(["verify", "-purpose", "sslclient", "-CAfile"])
        .args([folder.join("ca/ca.pem"), door.join("device.pem")])
        .output();
    match verify {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("skipped: openssl cannot be run: {error}"),
    }
}

#[test]
fn passwords_are_the_servers_and_a_device_that_is_refused_leaves_nothing() {
    let folder = folder();
    let folder = folder.path();
    provision(folder, &["door-1", "--credentials", "password"], 0, &["devices/door-1"]);
    let password = folder.join("devices/door-1/device.password");
    assert_eq!((std::fs::read_to_string(&password).unwrap().as_str(), mode(&password)), ("s3cret\n", 0o600));
    provision(
        folder,
        &["unwanted", "--credentials", "password"],
        1,
        &["unwanted was not made", "no such gallery"],
    );
    assert_eq!(std::fs::read_dir(folder.join("devices")).unwrap().count(), 1);
    check(
        folder,
        &["revoke", "door-1", "--gallery", "g", "--gallery-program", "./gallery.sh"],
        0,
        &["added"],
    );
    let calls = std::fs::read_to_string(folder.join("calls")).unwrap();
    assert!(calls.ends_with("devices revoke --gallery g -- door-1\n"), "{calls}");
}

#[test]
fn what_does_not_hold_together_is_told_before_anything_is_made() {
    let folder = folder();
    let folder = folder.path();
    provision(folder, &["door-1"], 1, &["glimpse-firmware ca init"]);
    check(folder, &["provision", "door-1"], 1, &["give --gallery DIR"]);
    check(folder, &["provision"], 2, &["<NAME>"]);
    let server = ["door-1", "--credentials", "password", "--gallery", "g", "--gallery-program", "./none"];
    check(folder, &[&["provision"][..], &server].concat(), 1, &["cannot run ./none"]);
    for (table, parts) in [
        ("device,colour\n", &["line 1: colour: unknown column"][..]),
        ("group\na\n", &["there is no column `device`"]),
        ("device\n", &["names no device"]),
        ("device\na\na\n", &["a is there twice"]),
        (
            "device,board,hostname\na b,pi,x.y\n,qemu-virt,\n",
            &["line 2: device: ", "line 2: board: ", "line 2: hostname: ", "line 3: device: missing"],
        ),
    ] {
        std::fs::write(folder.join("fleet.csv"), table).unwrap();
        provision(folder, &["--fleet", "fleet.csv", "--credentials", "password"], 1, parts);
    }
    std::fs::write(folder.join("device.toml"), "sever = 'a'\n").unwrap();
    provision(folder, &["door-1"], 1, &["sever: unknown key", "has to be good first"]);
    assert!(!folder.join("calls").exists());
}
