//! Disks, what is known of each, and why one is not to be written to.
//!
//! All of it is read from `/sys` and `/proc`, below a root that tests make up.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a sector, as `/sys/block/*/size` counts whatever the disk's own are.
const SECTOR: u64 = 512;

/// A whole disk, with or without partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, such as `sdb`.
    pub name: String,
    /// Maker and model, or what the card says of itself.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its size; a reader without a card has none.
    pub bytes: u64,
    /// What is made to be taken out: a card, or a stick.
    pub is_removable: bool,
    /// A card whose lock is on.
    pub is_read_only: bool,
    /// Who uses it.
    pub uses: Vec<Use>,
}

/// A use of a disk, by the name of the disk or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// A file system is mounted there.
    Mounted(String, PathBuf),
    /// The system swaps there.
    Swap(String),
    /// Another device is made of it: LVM, encryption, RAID.
    Holder(String, String),
}

/// Why a disk is not written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The system that runs here is on it.
    System(PathBuf),
    /// It is used.
    Used(Use),
    /// There is no card in the reader.
    Empty,
    /// The card's lock is on.
    ReadOnly,
    /// It stays where it is built in. Whoever types its serial number means it.
    NotRemovable(Option<String>),
}

/// Where a running system is mounted.
const SYSTEM: [&str; 7] = ["/", "/boot", "/boot/efi", "/boot/firmware", "/home", "/usr", "/var"];

impl Disk {
    /// The file that the disk is.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Why it is not to be written to, the gravest reason first.
    pub fn refusal(&self) -> Option<Refusal> {
        let system = self.uses.iter().find_map(|used| match used {
            Use::Mounted(_, at) if SYSTEM.iter().any(|system| at == Path::new(system)) => Some(at.clone()),
            _ => None,
        });
        if let Some(at) = system {
            return Some(Refusal::System(at));
        }
        if let Some(used) = self.uses.first() {
            return Some(Refusal::Used(used.clone()));
        }
        if self.bytes == 0 {
            return Some(Refusal::Empty);
        }
        if self.is_read_only {
            return Some(Refusal::ReadOnly);
        }
        (!self.is_removable).then(|| Refusal::NotRemovable(self.serial.clone()))
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted(part, at) => write!(f, "{part} is mounted at {}", at.display()),
            Self::Swap(part) => write!(f, "the system swaps to {part}"),
            Self::Holder(part, holder) => write!(f, "{part} is part of {holder}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(at) => write!(f, "this computer runs from it ({})", at.display()),
            Self::Used(used @ Use::Mounted(part, _)) => {
                write!(f, "{used}: unmount it first, `umount /dev/{part}`")
            }
            Self::Used(used @ Use::Swap(part)) => write!(f, "{used}: `swapoff /dev/{part}` first"),
            Self::Used(used) => write!(f, "{used}, which has to be closed first"),
            Self::Empty => f.write_str("there is no card in it"),
            Self::ReadOnly => f.write_str("it cannot be written to: slide the lock at the card's side"),
            Self::NotRemovable(Some(serial)) => {
                write!(
                    f,
                    "it is built in, not a card or stick; if it is meant all the same, add --serial {serial}"
                )
            }
            Self::NotRemovable(None) => {
                f.write_str("it is built in, not a card or stick, and has no serial number to name it by")
            }
        }
    }
}

/// All disks, by name; what has no size and is no reader, and what is made of other disks or files, is left out.
///
/// # Errors
/// A system that does not tell of its disks, which is any but Linux.
pub fn disks(root: &Path) -> io::Result<Vec<Disk>> {
    let users = Users::read(root);
    let mut names: Vec<String> = fs::read_dir(root.join("sys/block"))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with("sr") && root.join("sys/block").join(name).join("device").exists())
        .collect();
    names.sort();
    // One that is unplugged meanwhile is none.
    Ok(names.iter().filter_map(|name| disk(root, name, &users)).collect())
}

/// The disk of this name, a loop device among them.
///
/// # Errors
/// Where there is none, or it is a partition.
pub fn find(root: &Path, name: &str) -> Result<Disk, String> {
    if let Some(found) = disk(root, name, &Users::read(root)) {
        return Ok(found);
    }
    for whole in names_in(&root.join("sys/block")) {
        if root.join("sys/block").join(&whole).join(name).is_dir() {
            return Err(format!("/dev/{name} is a partition: name the disk, /dev/{whole}"));
        }
    }
    Err(format!("/dev/{name} is no disk: `glimpse-firmware disks` lists them"))
}

fn disk(root: &Path, name: &str, users: &Users) -> Option<Disk> {
    let folder = root.join("sys/block").join(name);
    let sectors: u64 = text(&folder.join("size"))?.parse().ok()?;
    let flag = |file: &str| text(&folder.join(file)).is_some_and(|text| text == "1");
    // eMMC is soldered in, and says so; a slot's card may not say that it is removable.
    let is_card = text(&folder.join("device/type")).is_some_and(|kind| kind == "SD");
    let is_loop = name.starts_with("loop");
    let vendor = text(&folder.join("device/vendor")).filter(|vendor| !vendor.starts_with("0x"));
    let model = text(&folder.join("device/model")).or_else(|| text(&folder.join("device/name")));
    let words: Vec<String> = vendor.into_iter().chain(model).collect();
    let backing = text(&folder.join("loop/backing_file"));
    Some(Disk {
        name: name.to_owned(),
        model: if words.is_empty() { backing } else { Some(words.join(" ")) },
        serial: serial(&folder),
        bytes: sectors.saturating_mul(SECTOR),
        is_removable: flag("removable") || is_card || is_loop,
        is_read_only: flag("ro"),
        uses: uses(&folder, name, users),
    })
}

fn uses(folder: &Path, name: &str, users: &Users) -> Vec<Use> {
    let partitions = names_in(folder).into_iter().filter(|part| folder.join(part).join("partition").exists());
    let mut uses = Vec::new();
    for part in std::iter::once(name.to_owned()).chain(partitions) {
        let place = if part == name { folder.to_owned() } else { folder.join(&part) };
        let number = text(&place.join("dev")).unwrap_or_default();
        let mounted = users.mounts.iter().filter(|(by, _)| *by == number || *by == part);
        uses.extend(mounted.map(|(_, at)| Use::Mounted(part.clone(), at.clone())));
        uses.extend(users.swaps.contains(&part).then(|| Use::Swap(part.clone())));
        for holder in names_in(&place.join("holders")) {
            let called = text(&place.join("holders").join(&holder).join("dm/name"));
            uses.push(Use::Holder(part.clone(), called.unwrap_or(holder)));
        }
    }
    uses.dedup();
    uses
}

/// Of the disk itself, or of the USB device that it is in.
fn serial(folder: &Path) -> Option<String> {
    let own = ["device/serial", "serial"].iter().find_map(|file| text(&folder.join(file)));
    own.or_else(|| {
        let device = fs::canonicalize(folder.join("device")).ok()?;
        device
            .ancestors()
            .find(|above| above.join("idVendor").exists())
            .and_then(|usb| text(&usb.join("serial")))
    })
}

/// What the system has mounted, by number and by name of the device, and where it swaps.
struct Users {
    mounts: Vec<(String, PathBuf)>,
    swaps: Vec<String>,
}

impl Users {
    fn read(root: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(root.join("proc").join(file)).unwrap_or_default();
        let mut mounts = Vec::new();
        for line in read("self/mountinfo").lines() {
            // proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, options, tags, "-", type, source.
            let mut words = line.split(' ');
            let (Some(number), Some(at)) = (words.nth(2), words.nth(1)) else { continue };
            let at = PathBuf::from(unescaped(at));
            // File systems over several disks have numbers of their own, and the name of one.
            let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1)).map(unescaped);
            mounts.push((number.to_owned(), at.clone()));
            mounts.extend(source.and_then(|source| Some((source.strip_prefix("/dev/")?.to_owned(), at))));
        }
        let swaps = read("swaps");
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        Self {
            mounts,
            swaps: swaps.filter_map(|file| Some(file.strip_prefix("/dev/")?.to_owned())).collect(),
        }
    }
}

/// The kernel writes a space as `\040`.
fn unescaped(text: &str) -> String {
    let codes = HashMap::from([("040", ' '), ("011", '\t'), ("012", '\n'), ("134", '\\')]);
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let Some(character) = part.get(..3).and_then(|code| codes.get(code)) {
            out.push(*character);
            out.push_str(&part[3..]);
        } else {
            out.push('\\');
            out.push_str(part);
        }
    }
    out
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system of these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    const STICK: [(&str, &str); 7] = [
        ("sys/block/sdb/size", "61440000"),
        ("sys/block/sdb/removable", "1"),
        ("sys/block/sdb/dev", "8:16"),
        ("sys/block/sdb/device/vendor", "SanDisk "),
        ("sys/block/sdb/device/model", "Ultra Fit"),
        ("sys/block/sdb/sdb1/partition", "1"),
        ("sys/block/sdb/sdb1/dev", "8:17"),
    ];

    fn refusal(more: &[(&str, &str)]) -> Option<String> {
        let files: Vec<(&str, &str)> = STICK.iter().chain(more).copied().collect();
        find(system(&files).path(), "sdb").unwrap().refusal().map(|refusal| refusal.to_string())
    }

    #[test]
    fn a_stick_is_known_and_may_be_written_to() {
        let root = system(&STICK);
        let disks = disks(root.path()).unwrap();
        let [stick] = &disks[..] else { panic!("{disks:?}") };
        assert_eq!(
            (stick.model.as_deref(), stick.bytes, stick.path()),
            (Some("SanDisk Ultra Fit"), 61_440_000 * 512, PathBuf::from("/dev/sdb"))
        );
        assert_eq!(stick.refusal(), None);
    }

    #[test]
    fn what_is_used_is_refused_and_told_by_what() {
        for (file, text, wanted) in [
            (
                "proc/self/mountinfo",
                "25 1 8:17 / /media/my\\040card rw - vfat /dev/sdb1 rw",
                "sdb1 is mounted at /media/my card: unmount it first, `umount /dev/sdb1`",
            ),
            // The root of a file system over several disks.
            (
                "proc/self/mountinfo",
                "25 1 0:31 /@ / rw shared:1 - btrfs /dev/sdb1 rw",
                "this computer runs from it (/)",
            ),
            ("proc/self/mountinfo", "25 1 8:16 / /srv rw - ext4 /dev/disk rw", "sdb is mounted at /srv"),
            (
                "proc/swaps",
                "Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2",
                "the system swaps to sdb1",
            ),
            (
                "sys/block/sdb/sdb1/holders/dm-0/dm/name",
                "vault",
                "sdb1 is part of vault, which has to be closed first",
            ),
            ("sys/block/sdb/holders/md0/size", "1", "sdb is part of md0"),
            ("sys/block/sdb/size", "0", "there is no card in it"),
            ("sys/block/sdb/ro", "1", "slide the lock"),
            ("sys/block/sdb/removable", "0", "no serial number"),
        ] {
            let found = refusal(&[(file, text)]).unwrap_or_default();
            assert!(found.contains(wanted), "{file}: {found}");
        }
        // The root comes before another mount.
        let both = "25 1 8:17 / /media rw - vfat /dev/sdb1 rw\n26 1 8:17 / / rw - vfat /dev/sdb1 rw";
        assert!(refusal(&[("proc/self/mountinfo", both)]).unwrap().contains("runs from it"));
        assert_eq!(
            refusal(&[("proc/self/mountinfo", "25 1 8:33 / / rw - ext4 /dev/sdc1 rw\nnonsense")]),
            None
        );
    }

    #[test]
    fn built_in_disks_want_their_serial_number_and_slots_have_cards() {
        let card = [
            ("sys/block/mmcblk0/size", "100"),
            ("sys/block/mmcblk0/removable", "0"),
            ("sys/block/mmcblk0/device/name", "SC32G"),
        ];
        let kind = |kind| {
            let files: Vec<_> = card
                .into_iter()
                .chain([
                    ("sys/block/mmcblk0/device/type", kind),
                    ("sys/block/mmcblk0/device/serial", "0x12ab"),
                ])
                .collect();
            disks(system(&files).path()).unwrap().remove(0)
        };
        assert_eq!((kind("SD").model.as_deref(), kind("SD").refusal()), (Some("SC32G"), None));
        let refusal = kind("MMC").refusal().unwrap();
        assert_eq!(refusal, Refusal::NotRemovable(Some("0x12ab".to_owned())));
        assert!(refusal.to_string().ends_with("add --serial 0x12ab"));
    }

    #[test]
    fn what_is_no_disk_is_told_and_not_listed() {
        let root = system(&STICK);
        for made in ["loop0/size", "dm-0/size", "sr0/device/model"] {
            let file = root.path().join("sys/block").join(made);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "8").unwrap();
        }
        assert_eq!(disks(root.path()).unwrap().len(), 1);
        assert_eq!(
            find(root.path(), "sdb1").unwrap_err(),
            "/dev/sdb1 is a partition: name the disk, /dev/sdb"
        );
        assert!(find(root.path(), "sdz").unwrap_err().contains("is no disk"));
        assert!(find(root.path(), "loop0").unwrap().is_removable);
        assert!(disks(&root.path().join("nowhere")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_sticks_serial_number_is_that_of_its_usb_device() {
        let usb = "sys/devices/usb1/1-2";
        let root = system(&[
            (&format!("{usb}/idVendor"), "0781"),
            (&format!("{usb}/serial"), "4C530001"),
            (&format!("{usb}/host0/target0/model"), "Ultra"),
            ("sys/block/sdb/size", "8"),
        ]);
        let device = root.path().join("sys/block/sdb/device");
        std::os::unix::fs::symlink(root.path().join(usb).join("host0/target0"), device).unwrap();
        assert_eq!(disks(root.path()).unwrap()[0].serial.as_deref(), Some("4C530001"));
    }
}
