//! What runs on a device beside `glimpse-edge`, and images as they are built and started. The scripts are tried by this machine's shell;
//! images are built by `make test-image` alone (`GLIMPSE_IMAGE=1`), for they take minutes, and Debian's packages the first time.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Cursor, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
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

#[test]
fn the_service_is_shut_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let units = folder.path().join("usr/lib/systemd/system");
    std::fs::create_dir_all(units.join("glimpse-edge.service.d")).unwrap();
    let drop_in = "usr/lib/systemd/system/glimpse-edge.service.d/image.conf";
    std::fs::copy(root.join("firmware-config/image/device").join(drop_in), folder.path().join(drop_in))
        .unwrap();
    std::fs::copy(root.join("edge/deploy/glimpse-edge.service"), units.join("glimpse-edge.service")).unwrap();
    for target in ["sysinit", "basic", "network-online", "shutdown", "multi-user"] {
        std::fs::write(units.join(format!("{target}.target")), "[Unit]\nDescription=a\n").unwrap();
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=yes", "--no-pager", "--threshold=20"]);
    command.arg(format!("--root={}", folder.path().display())).arg("glimpse-edge.service");
    let Ok(output) = command.output() else {
        eprintln!("left out: the service is shut in (there is no systemd-analyze)");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    assert!(output.status.success(), "{last}");
}

/// A package of what stands in for `glimpse-edge`: what it does is this, in the device's shell.
fn stand_in(folder: &Path, version: &str, does: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tree = folder.join(version);
    for inside in ["DEBIAN", "usr/bin", "usr/lib/systemd/system", "etc/glimpse"] {
        std::fs::create_dir_all(tree.join(inside)).unwrap();
    }
    let unit = "glimpse-edge.service";
    std::fs::copy(root.join("edge/deploy").join(unit), tree.join("usr/lib/systemd/system").join(unit))
        .unwrap();
    std::fs::write(tree.join("etc/glimpse/device.toml"), "# server = \"\"\n").unwrap();
    let control = format!(
        "Package: glimpse-edge\nVersion: {version}\nArchitecture: arm64\nMaintainer: a <a@a.invalid>\nDescription: stand-in\n"
    );
    std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let file = tree.join("usr/bin/glimpse-edge");
    std::fs::write(&file, format!("#!/bin/sh\n{does}\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let package = folder.join(format!("glimpse-edge_{version}_arm64.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-b"]).arg(&tree).arg(&package).stdout(Stdio::null());
    assert!(command.env("SOURCE_DATE_EPOCH", "0").status().unwrap().success());
    package
}

/// It connects to a port of this machine, which it says, and stays.
const CONNECTS: &str = "port=$(sed -n 's/^server = \"10.0.2.2:\\([0-9]*\\)\".*/\\1/p' /etc/glimpse/device.toml)\n\
                        until nc -w 2 10.0.2.2 $port </dev/null; do sleep 1; done\necho connected\nexec sleep 100000";

/// It refuses its configuration.
const REFUSES: &str = "echo 'error: no good' >&2; exit 78";

fn firmware(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"));
    command.args(arguments);
    command
}

/// Makes an image, or an update.
fn build(package: &Path, out: &Path, more: &[&OsStr]) {
    let mut command = firmware(&["image", "--board", "qemu-virt", "--program"]);
    command.arg(package).arg("--out").arg(out).args(more);
    assert!(command.status().unwrap().success());
}

/// A board that runs from an image, whose changes stay. Dropping it pulls the plug.
struct Board {
    process: Child,
    lines: mpsc::Receiver<String>,
    said: String,
}

impl Board {
    fn start(image: &Path) -> Self {
        let mut command = firmware(&["boot", "--persist", "--card-mb", "1500"]);
        let mut process = command.arg(image).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).split(b'\n').map_while(Result::ok);
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines {
                let _ = send.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { process, lines: receive, said: String::new() }
    }

    /// Waits until it has said this, and forgets what came before.
    fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + STARTS_WITHIN;
        while !self.said.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line
                .unwrap_or_else(|error| panic!("the board did not say `{text}` ({error}): {}", self.said));
            self.said += &line;
            self.said.push('\n');
        }
        std::mem::take(&mut self.said)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.process.stdin.take().map(|mut keys| keys.write_all(b"q\n"));
        let _ = self.process.wait();
    }
}

/// Whether images are to be built, for a test.
fn is_wanted(test: &str) -> bool {
    let wanted = std::env::var_os("GLIMPSE_IMAGE").is_some();
    if !wanted {
        eprintln!("left out: {test} (`make test-image`)");
    }
    wanted
}

/// A device's folder that names the operator's key and a server, which takes connections and ends them.
fn device_with_server(folder: &Path) -> PathBuf {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || server.incoming().for_each(drop));
    let device = folder.join("door-1");
    std::fs::create_dir_all(&device).unwrap();
    let toml = format!(
        "device = \"door-1\"\nserver = \"10.0.2.2:{port}\"\ncamera = \"v4l2:/dev/video0\"\nbundle = \"space\"\nmodel_key = \"{PUBLIC_KEY}\"\nstate = \"/var/lib/glimpse-edge\"\n"
    );
    std::fs::write(device.join("device.toml"), toml).unwrap();
    device
}

/// RFC 8032, section 7.1, test 1.
const SECRET_KEY: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

#[test]
fn an_image_is_the_same_twice_and_a_board_starts_from_it_whenever_the_plug_is_pulled() {
    if !is_wanted("an image is built and started") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let device = device_with_server(folder);
    let package = stand_in(folder, "0.0.1", CONNECTS);
    let images = ["one.img", "two.img"].map(|name| folder.join(name));
    for image in &images {
        build(&package, image, &[OsStr::new("--device"), device.as_os_str()]);
    }
    let [one, two] = images.each_ref().map(|image| std::fs::read(image).unwrap());
    assert!(one == two, "the same inputs gave two images");

    // For good: each start finds what the one before left, from the first seconds on.
    let pulls: u64 = std::env::var("GLIMPSE_PULLS").map_or(3, |count| count.parse().unwrap());
    for pull in 0..pulls {
        let board = Board::start(&images[0]);
        // Spread over a start and what follows.
        std::thread::sleep(Duration::from_secs(3 + pull * 37 % 61));
        drop(board);
    }
    let begun = Instant::now();
    let mut board = Board::start(&images[0]);
    let said = board.wait_for("glimpse: connected ");
    assert!(said.contains("root file system a"), "{said}");
    eprintln!("connected after {} s, {pulls} pulls before", begun.elapsed().as_secs());
}

/// Puts a file onto an image's first partition.
fn put(image: &Path, name: &str, content: &[u8]) {
    const START: u64 = 4 << 20;
    const BYTES: usize = 256 << 20;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut partition = vec![0; BYTES];
    file.seek(SeekFrom::Start(START)).unwrap();
    file.read_exact(&mut partition).unwrap();
    {
        let mut disk = Cursor::new(&mut partition[..]);
        let files = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
        files.root_dir().create_file(name).unwrap().write_all(content).unwrap();
    }
    file.seek(SeekFrom::Start(START)).unwrap();
    file.write_all(&partition).unwrap();
}

#[test]
fn an_update_that_connects_is_kept_and_one_that_does_not_is_given_up() {
    if !is_wanted("updates are kept or given up") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let device = device_with_server(folder);
    let image = folder.join("card.img");
    build(&stand_in(folder, "0.0.1", CONNECTS), &image, &[OsStr::new("--device"), device.as_os_str()]);
    let (key, other) = (folder.join("model.key"), folder.join("other.key"));
    std::fs::write(&key, SECRET_KEY).unwrap();
    std::fs::write(&other, PUBLIC_KEY).unwrap();
    let update = |version: &str, does: &str, key: &Path| {
        let out = folder.join(format!("{version}.glimpse"));
        build(
            &stand_in(folder, version, does),
            &out,
            &[OsStr::new("--update"), OsStr::new("--key"), key.as_os_str()],
        );
        std::fs::read(out).unwrap()
    };
    put(&image, "update.glimpse", &update("0.0.2", CONNECTS, &other));
    Board::start(&image).wait_for("not signed by the model_key");

    put(&image, "update.glimpse", &update("0.0.3", CONNECTS, &key));
    Board::start(&image).wait_for("glimpse: root file system b is kept");

    put(&image, "update.glimpse", &update("0.0.4", REFUSES, &key));
    let mut board = Board::start(&image);
    board.wait_for("writing version 0.0.4 as root file system a");
    for _ in 0..3 {
        board.wait_for("/dev/vda, root file system a");
        board.wait_for("the new root file system is given up for now");
    }
    board.wait_for("/dev/vda, root file system b");
    board.wait_for("glimpse: connected ");
}
