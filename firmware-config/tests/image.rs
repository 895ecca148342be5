//! What runs on a device beside `glimpse-edge`, and images as they are built and started. The scripts are tried by this machine's shell;
//! images are built by `make test-image` alone (`GLIMPSE_IMAGE=1`), for they take minutes, and Debian's packages the first time.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Emulated boards start in a minute, on a busy machine in several.
const STARTS_WITHIN: Duration = Duration::from_mins(6);

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("image/device/usr/lib/glimpse").join(name)
}

/// Runs `configure` over a device.toml, and expects these parts in the file that it writes; where there are none, that it writes none.
fn check(toml: &str, file: &str, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (boot, run) = (folder.path().join("boot"), folder.path().join("run"));
    std::fs::create_dir_all(&boot).unwrap();
    std::fs::write(boot.join("device.toml"), toml).unwrap();
    std::fs::write(boot.join("wifi.password"), "correct horse\r\n").unwrap();
    let mut command = Command::new("sh");
    command.arg(script("configure")).env("CONFIGURATION", boot.join("device.toml")).env("RUN", &run);
    assert!(command.status().unwrap().success());
    let written = std::fs::read_to_string(run.join(file)).unwrap_or_default();
    assert_eq!(written.is_empty(), parts.is_empty(), "{toml}: {written}");
    for part in parts {
        assert!(written.contains(part), "{toml} gives no `{part}` in {file}: {written}");
    }
}

#[test]
fn device_toml_becomes_what_the_network_programs_read() {
    let network = "systemd/network/10-glimpse.network";
    check("device = 'a'\n", network, &[]);
    check(
        "[network]\naddress = \"192.168.1.50/24\" # fixed\n",
        network,
        &["Name=eth* en*", "Address=192.168.1.50/24"],
    );
    check(
        "[network]\r\naddress = '10.0.0.2/8'\r\ngateway = '10.0.0.1'\r\ndns = ['10.0.0.3', \"10.0.0.4\"]\r\nwifi_ssid = 'a'\r\n",
        network,
        &["Name=wlan* wl*", "Gateway=10.0.0.1", "DNS=10.0.0.3\nDNS=10.0.0.4\n"],
    );
    check(
        "network.dns = [\n  '1.1.1.1',\n  '9.9.9.9',\n]\nserver = 'x'\n",
        network,
        &["DNS=1.1.1.1\nDNS=9.9.9.9\n", "DHCP=yes", "UseDNS=no"],
    );
    check("# address = '1.2.3.4/8'\n[other]\naddress = '1.2.3.4/8'\n", network, &[]);
    check(
        "[network]\nntp = ['a.example', 'b.example']\n",
        "systemd/timesyncd.conf.d/glimpse.conf",
        &["NTP=a.example b.example"],
    );
    check("device = 'door_1.east'\n", "hostname", &["door-1-east\n"]);
    check("device = 'door-1'\n[network]\nhostname = 'east'\n", "hostname", &["east\n"]);
    // Whatever is in a name, it is digits in the file.
    check(
        "[network]\nwifi_ssid = 'a \"b'\nwifi_password_file = 'wifi.password'\nwifi_country = 'DE'\n",
        "glimpse/wifi.conf",
        &["country=DE", "ssid=61202262\n", "psk=\"correct horse\"\n"],
    );
    check("[network]\nwifi_ssid = 'a'\n", "glimpse/wifi.conf", &["ssid=61\n", "key_mgmt=NONE"]);
    check(
        "[network]\nwifi_ssid = 'a'\nwifi_password_file = 'gone'\n",
        "glimpse/problems",
        &["wifi_password_file", "gone has no password"],
    );
    check("network = { hostname = 'a' }\n", "glimpse/problems", &["write [network] as a table of its own"]);
}

/// The entries of the boot loader, after a command of `slot` that runs from root file system A.
fn entries(before: &[&str], arguments: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let entries = folder.path().join("loader/entries");
    std::fs::create_dir_all(&entries).unwrap();
    for (version, name) in before.iter().enumerate() {
        std::fs::write(entries.join(name), format!("version {}\n", version + 1)).unwrap();
    }
    let line = folder.path().join("cmdline");
    std::fs::write(&line, "glimpse.disk=12AB-34CD glimpse.slot=a ro\n").unwrap();
    let mut command = Command::new("sh");
    command.arg(script("slot")).args(arguments).env("BOOT", folder.path()).env("CMDLINE", line);
    assert!(command.status().unwrap().success());
    let mut names: Vec<String> = std::fs::read_dir(&entries)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    if arguments[0] == "try" {
        let text = std::fs::read_to_string(entries.join("glimpse-b+3.conf")).unwrap();
        let version = format!("version {}\n", before.len() + 1);
        for part in [
            version.as_str(),
            "linux /slot-b/vmlinuz",
            "options glimpse.disk=12AB-34CD glimpse.slot=b ro panic=10\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    names
}

#[test]
fn a_root_file_system_is_tried_three_times_and_kept_once_it_has_worked() {
    assert_eq!(entries(&["glimpse-a.conf"], &["try", "ro panic=10"]), ["glimpse-a.conf", "glimpse-b+3.conf"]);
    let given_up = ["glimpse-a.conf", "glimpse-b+0-3.conf"];
    assert_eq!(entries(&given_up, &["try", "ro panic=10"]), ["glimpse-a.conf", "glimpse-b+3.conf"]);
    assert_eq!(
        entries(&["glimpse-b.conf", "glimpse-a+2-1.conf"], &["keep"]),
        ["glimpse-a.conf", "glimpse-b.conf"]
    );
    assert_eq!(entries(&["glimpse-b.conf", "glimpse-a+2-1.conf"], &["is-trial"]).len(), 2);
}

/// A package of what stands in for `glimpse-edge`: it connects to a port of this machine, by the shell of the device.
fn stand_in(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tree = folder.join("tree");
    for inside in ["DEBIAN", "usr/bin", "usr/lib/systemd/system", "etc/glimpse"] {
        std::fs::create_dir_all(tree.join(inside)).unwrap();
    }
    let unit = "glimpse-edge.service";
    std::fs::copy(root.join("edge/deploy").join(unit), tree.join("usr/lib/systemd/system").join(unit))
        .unwrap();
    std::fs::write(tree.join("etc/glimpse/device.toml"), "# server = \"\"\n").unwrap();
    let control = "Package: glimpse-edge\nVersion: 0.0.1\nArchitecture: arm64\nMaintainer: a <a@a.invalid>\nDescription: stand-in\n";
    std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let program = "#!/bin/sh\nport=$(sed -n 's/^server = \"10.0.2.2:\\([0-9]*\\)\".*/\\1/p' /etc/glimpse/device.toml)\n\
                   until nc -w 2 10.0.2.2 $port </dev/null; do sleep 1; done\necho connected\n\
                   head -c 1 /dev/video0 >/dev/null 2>&1; exec sleep 100000\n";
    let file = tree.join("usr/bin/glimpse-edge");
    std::fs::write(&file, program).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let package = folder.join("glimpse-edge_0.0.1_arm64.deb");
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-b"]).arg(&tree).arg(&package).stdout(Stdio::null());
    assert!(command.env("SOURCE_DATE_EPOCH", "0").status().unwrap().success());
    package
}

fn firmware(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"));
    command.args(arguments);
    command
}

#[test]
fn an_image_is_the_same_twice_and_a_board_that_starts_from_it_reaches_its_server() {
    if std::env::var_os("GLIMPSE_IMAGE").is_none() {
        eprintln!("left out: an image is built and started (`make test-image`)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let package = stand_in(folder);
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let device = folder.join("door-1");
    std::fs::create_dir_all(&device).unwrap();
    let toml = format!(
        "device = \"door-1\"\nserver = \"10.0.2.2:{port}\"\ncamera = \"v4l2:/dev/video0\"\nbundle = \"space\"\n"
    );
    std::fs::write(device.join("device.toml"), toml).unwrap();
    let images = ["one.img", "two.img"].map(|name| folder.join(name));
    for image in &images {
        let mut command = firmware(&["image", "--board", "qemu-virt", "--program"]);
        command.arg(&package).arg("--device").arg(&device).arg("--out").arg(image);
        assert!(command.status().unwrap().success());
    }
    let [one, two] = images.each_ref().map(|image| std::fs::read(image).unwrap());
    assert!(one == two, "the same inputs gave two images");

    // For good, so that the second start finds what the first one made.
    for (start, found) in
        ["made the file system of the data partition", "root file system a"].iter().enumerate()
    {
        let mut command = firmware(&["boot", "--persist", "--card-mb", "1500", "--seconds"]);
        command.arg(STARTS_WITHIN.as_secs().to_string()).arg(&images[0]);
        let mut board = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        let lines = BufReader::new(board.stdout.take().unwrap()).split(b'\n').map_while(Result::ok);
        let mut said = String::new();
        for line in lines {
            said += &String::from_utf8_lossy(&line);
            said.push('\n');
            if said.contains("glimpse: connected ") {
                break;
            }
        }
        assert!(said.contains("glimpse: connected "), "start {start}: {said}");
        assert!(said.contains(found), "start {start}: {said}");
        assert_eq!(start == 0, said.contains("made the file system"), "start {start}: {said}");
        eprintln!("start {start}: connected after {} s", begun.elapsed().as_secs());
        // The plug is pulled.
        board.stdin.take().map(|mut keys| std::io::Write::write_all(&mut keys, b"q\n")).unwrap().unwrap();
        board.wait().unwrap();
    }
}
