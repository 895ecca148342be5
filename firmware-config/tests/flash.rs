//! `glimpse-firmware flash`: images onto files in place of cards, and onto a loop device where there is one.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use glimpse_firmware::card::{self, BLOCK, Card, CardError, Watch};
use glimpse_firmware::packed::Image;
use glimpse_firmware::partition::{self, Files};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Where the tests' images have their FAT, and how large it is.
const FAT: (usize, usize) = (MIB, 8 * MIB);

/// More than three blocks, and no whole number of them.
const IMAGE_BYTES: usize = 3 * BLOCK + 12_288;

#[derive(Clone, Copy)]
enum Table {
    Mbr,
    Gpt,
}

/// An image with a FAT of this name, a file in it, and noise behind it.
fn image(table: Table, label: &[u8; 11]) -> Vec<u8> {
    let mut fat = Cursor::new(vec![0; FAT.1]);
    fatfs::format_volume(&mut fat, FormatVolumeOptions::new().volume_label(*label)).unwrap();
    let system = FileSystem::new(&mut fat, FsOptions::new()).unwrap();
    system.root_dir().create_file("device.toml").unwrap().write_all(&[b'#'; 9000]).unwrap();
    system.unmount().unwrap();
    let mut image = vec![0_u8; IMAGE_BYTES];
    let mut state = 1_u32;
    image.iter_mut().skip(FAT.0 + FAT.1).for_each(|byte| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    });
    image[FAT.0..FAT.0 + FAT.1].copy_from_slice(&fat.into_inner());
    let [start, length] = [FAT.0, FAT.1].map(|bytes| (bytes / 512) as u32);
    match table {
        Table::Mbr => {
            image[446 + 4] = 0x0c;
            image[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
            image[446 + 12..446 + 16].copy_from_slice(&length.to_le_bytes());
        }
        Table::Gpt => {
            let mut disk = Cursor::new(image);
            let mut gpt = gptman::GPT::new_from(&mut disk, 512, [7; 16]).unwrap();
            gpt[1] = gptman::GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: [2; 16],
                starting_lba: start.into(),
                ending_lba: u64::from(start + length) - 1,
                attribute_bits: 0,
                partition_name: "configuration".into(),
            };
            gpt.write_into(&mut disk).unwrap();
            gptman::GPT::write_protective_mbr_into(&mut disk, 512).unwrap();
            image = disk.into_inner();
        }
    }
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

struct Bench {
    folder: TempDir,
    image: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap(), image: image(Table::Mbr, b"GLIMPSE    ") };
        fs::write(bench.path("card.img"), &bench.image).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"));
        command.arg("flash").args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn flash(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Flashes, which has to fail, and gives what it said.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.flash(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    fn flashed(&self, arguments: &[&str]) -> String {
        let output = self.flash(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn device(&self) -> PathBuf {
        let device = self.path("door-1");
        fs::create_dir_all(device.join("space")).unwrap();
        let text =
            "device = \"door-1\"\nserver = \"gallery.local\"\ncamera = \"rpicam\"\nbundle = \"space\"\n";
        fs::write(device.join("device.toml"), text).unwrap();
        fs::write(device.join("device.password"), "secret").unwrap();
        fs::write(device.join("space/space.toml"), vec![b'x'; 70_000]).unwrap();
        device
    }
}

fn files_in(card: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut fat = Cursor::new(card[FAT.0..FAT.0 + FAT.1].to_vec());
    let system = FileSystem::new(&mut fat, FsOptions::new()).unwrap();
    let read = |path: &str| {
        let mut bytes = Vec::new();
        system.root_dir().open_file(path).and_then(|mut file| file.read_to_end(&mut bytes)).ok()?;
        Some((path.to_owned(), bytes))
    };
    ["device.toml", "device.password", "space/space.toml"].into_iter().filter_map(read).collect()
}

#[test]
fn images_of_every_packing_arrive_as_they_are() {
    let bench = Bench::new();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
    xz.write_all(&bench.image).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&bench.image).unwrap();
    let zstd =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    // Of one frame, and of two.
    let (start, end) = bench.image.split_at(BLOCK + 1);
    for (packing, bytes) in [
        ("raw", bench.image.clone()),
        ("xz", xz.finish().unwrap()),
        ("gz", gz.finish().unwrap()),
        ("zst", zstd(&bench.image)),
        ("two", [zstd(start), zstd(end)].concat()),
    ] {
        // Its bytes say what it is, not its name.
        fs::write(bench.path("packed"), bytes).unwrap();
        let said = bench.flashed(&["packed", packing]);
        assert!(said.contains("written and read back"), "{said}");
        assert!(fs::read(bench.path(packing)).unwrap() == bench.image, "{packing}");
    }
    assert!(bench.flashed(&["card.img", "unread", "--no-verify"]).contains("12.6 MB written in"));
}

#[test]
fn images_that_are_none_or_damaged_are_told() {
    let bench = Bench::new();
    let packed =
        ruzstd::encoding::compress_to_vec(&bench.image[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0x10;
    for (name, bytes, wanted) in [
        ("text", &b"no image of anything, but long enough for a sector"[..], "no partition table"),
        ("empty", b"", "no partition table"),
        ("half.zst", &packed[..packed.len() / 2], "downloaded whole"),
        ("flipped.zst", &flipped, "is it damaged"),
        ("broken.xz", b"\xfd7zXZ\0nonsense", "is it damaged"),
        ("broken.gz", b"\x1f\x8bnonsense", "is it damaged"),
        (
            "text.zst",
            &ruzstd::encoding::compress_to_vec(&b"no image"[..], ruzstd::encoding::CompressionLevel::Fastest),
            "no partition table",
        ),
    ] {
        fs::write(bench.path(name), bytes).unwrap();
        let said = bench.refused(&[name, "out"]);
        assert!(said.contains(wanted), "{name}: {said}");
        let _ = fs::remove_file(bench.path("out"));
    }
    assert!(bench.refused(&["missing.img", "out"]).contains("cannot read the image missing.img"));
    assert!(bench.refused(&[".", "out"]).contains("is no file"));
}

#[test]
fn a_card_that_is_not_meant_is_refused() {
    let bench = Bench::new();
    fs::write(bench.path("other"), "somebody's").unwrap();
    for (card, wanted) in [
        ("card.img", "is the image itself"),
        ("other", "--replace writes over it"),
        (".", "is a folder"),
        ("/dev/null", "neither a disk nor a file"),
        ("/dev/sdzz", "is the card in its reader?"),
        ("no/such/folder/card", "cannot make"),
    ] {
        let said = bench.refused(&["card.img", card, "--yes"]);
        assert!(said.contains(wanted), "{card}: {said}");
    }
    assert_eq!(fs::read(bench.path("card.img")).unwrap(), bench.image);
    assert_eq!(fs::read(bench.path("other")).unwrap(), b"somebody's");
    bench.flashed(&["card.img", "other", "--replace"]);
    assert_eq!(fs::read(bench.path("other")).unwrap(), bench.image);
}

/// The disk that these tests run from is the one that must never be written to.
#[test]
fn the_disk_of_this_computer_is_refused_whatever_is_said() {
    let bench = Bench::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    let source = root.split_once(" - ").unwrap().1.split(' ').nth(1).unwrap();
    let is_disk = fs::metadata(source)
        .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type()));
    if !is_disk {
        eprintln!("this computer's root is no disk, but {source}: what `/sys` says is tested in disks.rs");
        return;
    }
    let said = bench.refused(&["card.img", source, "--yes", "--serial", "any"]);
    assert!(said.contains("this computer runs from it") || said.contains("is a partition"), "{said}");
}

#[test]
fn a_devices_files_are_put_into_the_partition_for_them() {
    for (table, label) in
        [(Table::Mbr, b"GLIMPSE    "), (Table::Gpt, b"GLIMPSE    "), (Table::Gpt, b"OTHER      ")]
    {
        let bench = Bench { image: image(table, label), folder: tempfile::tempdir().unwrap() };
        fs::write(bench.path("card.img"), &bench.image).unwrap();
        let device = bench.device();
        let said = bench.flashed(&["card.img", "card", "--device", "door-1"]);
        assert!(said.contains("for the device of door-1"), "{said}");
        let card = fs::read(bench.path("card")).unwrap();
        let wanted: BTreeMap<String, Vec<u8>> = ["device.toml", "device.password", "space/space.toml"]
            .into_iter()
            .map(|path| (path.to_owned(), fs::read(device.join(path)).unwrap()))
            .collect();
        assert_eq!(files_in(&card), wanted);
        assert!(card[FAT.0 + FAT.1..] == bench.image[FAT.0 + FAT.1..], "nothing else is touched");
    }
}

#[test]
fn a_device_that_cannot_be_used_stops_it_before_anything_is_written() {
    let bench = Bench::new();
    let device = bench.device();
    let flash = || bench.refused(&["card.img", "card", "--device", "door-1"]);
    fs::write(device.join("device.toml"), "server = \"gallery.local\"\ncamera = \"rpicam\"\ntop_k = 0\n")
        .unwrap();
    let said = flash();
    assert!(
        said.contains("top_k")
            && said.contains("door-1/device.toml")
            && said.contains("has to be good first"),
        "{said}"
    );
    bench.device();
    fs::write(device.join("a:b"), "").unwrap();
    assert!(flash().contains("no such names"));
    fs::remove_file(device.join("a:b")).unwrap();
    fs::write(device.join("Device.toml"), "").unwrap();
    assert!(flash().contains("one name"));
    fs::remove_file(device.join("Device.toml")).unwrap();
    fs::remove_file(device.join("device.toml")).unwrap();
    assert!(flash().contains("device.toml"));
    assert!(!bench.path("card").exists());
    // What only the card can tell comes after it was written.
    bench.device();
    fs::write(device.join("space/query.onnx"), vec![0; 9 * MIB]).unwrap();
    let said = flash();
    assert!(said.contains("MB left"), "{said}");
    let no_table = {
        let mut image = bench.image.clone();
        image[446..462].fill(0);
        image
    };
    fs::write(bench.path("card.img"), no_table).unwrap();
    let said = bench.refused(&["card.img", "card", "--replace", "--device", "door-1"]);
    assert!(said.contains("no partition (FAT)"), "{said}");
}

fn open(path: &Path) -> Card {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    Card { path: path.to_owned(), file, bytes: None }
}

#[test]
fn one_byte_that_is_not_as_it_was_written_is_found() {
    let bench = Bench::new();
    let mut card = open(&bench.path("card"));
    let watch = Watch::default();
    let write = |card: &mut Card| {
        card::write(Image::open(&bench.path("card.img")).unwrap(), card, &Watch::default()).unwrap()
    };
    let written = write(&mut card);
    assert_eq!(written.bytes as usize, IMAGE_BYTES);
    card::verify(&mut card, &written, &watch).unwrap();
    assert!(fs::read(bench.path("card")).unwrap() == bench.image);
    for place in [0, 511, BLOCK - 1, BLOCK, 2 * BLOCK + 77, IMAGE_BYTES - 1] {
        card.file.write_all_at(&[bench.image[place] ^ 1], place as u64).unwrap();
        match card::verify(&mut card, &written, &watch) {
            Err(CardError::Differs { from, to, .. }) => {
                assert!((from..to).contains(&(place as u64)), "{place}: {from} to {to}");
            }
            other => panic!("{place}: {other:?}"),
        }
        // Nothing starts from it.
        assert!(is_blank(&bench.path("card")), "{place}");
        write(&mut card);
    }
    card.file.set_len(IMAGE_BYTES as u64 - 1).unwrap();
    assert!(matches!(card::verify(&mut card, &written, &watch), Err(CardError::ReadBack { .. })));
    write(&mut card);
    watch.stop.store(true, Ordering::Relaxed);
    assert!(matches!(card::verify(&mut card, &written, &watch), Err(CardError::Stopped(_))));
    assert!(is_blank(&bench.path("card")));
}

fn is_blank(card: &Path) -> bool {
    fs::read(card).unwrap()[..BLOCK].iter().all(|byte| *byte == 0)
}

/// The card's first block is empty until all else is there.
#[test]
fn a_card_that_was_not_finished_has_no_partition_table() {
    let bench = Bench::new();
    let old = vec![0xee; IMAGE_BYTES];
    // The image's file ends too early, and the card is full too early.
    let short = &bench.image[..BLOCK + 100];
    for (name, bytes) in [("ends", None), ("full", Some((2 * BLOCK) as u64))] {
        fs::write(bench.path(name), &old).unwrap();
        let mut card = Card { bytes, ..open(&bench.path(name)) };
        let watch = Watch::default();
        let result = match bytes {
            None => card::write(short.chain(Failing), &mut card, &watch),
            Some(_) => card::write(&bench.image[..], &mut card, &watch),
        };
        let error = result.unwrap_err();
        assert!(matches!(error, CardError::Image(_) | CardError::TooSmall { .. }), "{error}");
        assert!(is_blank(&bench.path(name)), "{name}");
    }
    let mut card = open(&bench.path("stopped"));
    let watch = Watch::default();
    watch.stop.store(true, Ordering::Relaxed);
    let error = card::write(&bench.image[..], &mut card, &watch).unwrap_err();
    assert!(error.to_string().contains("has to be written anew"), "{error}");
}

struct Failing;

impl std::io::Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the download ends here"))
    }
}

/// An end of an old partition table would be read by some systems.
#[test]
fn a_larger_cards_end_is_wiped() {
    let bench = Bench::new();
    let size = 4 * IMAGE_BYTES;
    fs::write(bench.path("card"), vec![0xee; size]).unwrap();
    let mut card = Card { bytes: Some(size as u64), ..open(&bench.path("card")) };
    card::write(&bench.image[..], &mut card, &Watch::default()).unwrap();
    let card = fs::read(bench.path("card")).unwrap();
    assert!(card[..IMAGE_BYTES] == bench.image[..] && card[size - 17 * 512..].iter().all(|byte| *byte == 0));
}

#[test]
fn ctrl_c_stops_it_and_says_that_the_card_is_not_usable() {
    let bench = Bench::new();
    // From a pipe's speed no image comes; a large sparse one takes its time.
    let large = File::options().write(true).open(bench.path("card.img")).unwrap();
    large.set_len(3 << 30).unwrap();
    let mut command = bench.command(&["card.img", "card"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while fs::metadata(bench.path("card")).map_or(0, |metadata| metadata.len()) < 2 * BLOCK as u64 {
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was stopped");
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("stopped") && said.contains("has to be written anew"), "{said}");
}

#[test]
fn a_file_system_that_is_full_is_told() {
    let bench = Bench::new();
    // The shell's limit counts blocks of 512 or 1024 bytes; either is less than the image.
    let mut shell = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f 9000; exec \"$0\" flash card.img card";
    let output = shell
        .args(["-c", script, env!("CARGO_BIN_EXE_glimpse-firmware")])
        .current_dir(bench.folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to card, after"), "{said}");
}

#[test]
fn what_nobody_may_write_to_is_told() {
    let bench = Bench::new();
    fs::write(bench.path("locked"), "").unwrap();
    fs::set_permissions(bench.path("locked"), fs::Permissions::from_mode(0o400)).unwrap();
    let is_root = File::options().write(true).open(bench.path("locked")).is_ok();
    if !is_root {
        assert!(bench.refused(&["card.img", "locked", "--replace"]).contains("cannot write to locked"));
    }
}

/// A loop device, where this system lets us have one.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_disk_is_written_when_it_is_said_that_it_may_be() {
    let bench = Bench::new();
    let backing = bench.path("backing");
    File::create(&backing).unwrap().set_len(4 * IMAGE_BYTES as u64).unwrap();
    let disk = match Loop::over(&backing) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("left out: a disk is written: no loop device here: {reason}");
            return;
        }
    };
    bench.device();
    assert!(bench.refused(&["card.img", &disk.0]).contains("--yes says so"));
    bench.flashed(&["card.img", &disk.0, "--yes", "--device", "door-1"]);
    let mut card = vec![0; IMAGE_BYTES];
    let mut file = File::open(&disk.0).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_exact(&mut card).unwrap();
    assert_eq!(files_in(&card).len(), 3);
    assert!(card[FAT.0 + FAT.1..] == bench.image[FAT.0 + FAT.1..]);
    File::options()
        .write(true)
        .open(bench.path("card.img"))
        .unwrap()
        .set_len(5 * IMAGE_BYTES as u64)
        .unwrap();
    assert!(bench.refused(&["card.img", &disk.0, "--yes"]).contains("take a larger card"));
}

#[test]
fn files_are_read_back_from_the_partition() {
    let bench = Bench::new();
    let mut card = open(&bench.path("card.img"));
    let files = Files::from([("a/b/c.txt".to_owned(), vec![7; 5000]), ("empty".to_owned(), Vec::new())]);
    partition::put(&mut card, &files).unwrap();
    // And again, over those that are there.
    partition::put(&mut card, &files).unwrap();
}

#[test]
fn disks_are_listed_for_people_and_programs() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_glimpse-firmware")).args(arguments).output().unwrap()
    };
    let table = run(&["disks"]);
    assert!(
        table.status.success() && String::from_utf8_lossy(&table.stdout).starts_with("disk"),
        "{table:?}"
    );
    let object: serde_json::Value = serde_json::from_slice(&run(&["disks", "--json"]).stdout).unwrap();
    for disk in object["disks"].as_array().unwrap() {
        assert!(
            disk["path"].is_string() && disk["bytes"].is_u64() && disk["removable"].is_boolean(),
            "{disk}"
        );
    }
}
