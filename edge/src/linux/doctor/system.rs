//! Clock, disk, temperature and memory. What the kernel tells is read below a folder, which is `/` but in tests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glimpse_protocol::device::Cores;

use super::Finding;
use crate::linux::host;

/// Nobody has set a clock that says less: seconds from 1970 to 2024.
const YEAR_2024_S: u64 = 1_704_067_200;
/// Or more: to 2100.
const YEAR_2100_S: u64 = 4_102_444_800;

/// What the device needs beside its network and the system, in MB.
const MEMORY_MB_MIN: u64 = 100;

/// Warm enough for boards to slow down, in degrees Celsius: 80 for those of Raspberry Pi.
const HOT_C: i64 = 80;

const MB: u64 = 1 << 20;

/// The clock, and whether it is kept right; `None` where the kernel does not say.
pub fn clock(now: SystemTime, is_synchronised: Option<bool>, is_tls: bool) -> Finding {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let year = 1970 + seconds / 31_556_952;
    let set = "let systemd-timesyncd or chrony run and reach a time server (`timedatectl`), or set it: `date -s ..`";
    if !(YEAR_2024_S..YEAR_2100_S).contains(&seconds) {
        let message = format!("the clock says that it is the year {year}");
        let because = if is_tls { "; until then no certificate of the server is valid" } else { "" };
        return Finding::failure("clock", message, format!("{set}{because}"));
    }
    match is_synchronised {
        Some(false) => Finding::warning(
            "clock",
            format!("set ({year}), and kept right by nobody: it may be off"),
            "let systemd-timesyncd or chrony run and reach a time server (`timedatectl`)",
        ),
        Some(true) => Finding::ok("clock", format!("set ({year}), and kept right by a time server")),
        None => {
            Finding::ok("clock", format!("set ({year}); the kernel does not say whether it is kept right"))
        }
    }
}

/// A folder that the device writes to, and the room that it may take there.
pub fn folder(check: &'static str, folder: &Path, megabytes: u64) -> Finding {
    let Some(there) = folder.ancestors().map(or_here).find(|path| path.is_dir()) else {
        return Finding::failure(check, format!("there is no {}", folder.display()), "make it: `mkdir -p`");
    };
    let shown = folder.display();
    if there != folder && folder.exists() {
        return Finding::failure(check, format!("{shown} is no folder"), "name another one, or move it away");
    }
    if let Err(error) = can_write(there) {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "let it belong to the user that runs this program: `chown -R USER {shown}`, or StateDirectory= in its unit"
            ),
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount it for writing, or name a folder elsewhere".to_owned()
            }
            io::ErrorKind::StorageFull => {
                "the disk is full: make room, or name a folder on another one".to_owned()
            }
            _ => "look at the disk: `dmesg`".to_owned(),
        };
        return Finding::failure(check, format!("{} cannot be written: {error}", there.display()), advice);
    }
    let taken = taken_mb(folder);
    let Some(free) = free_mb(there) else {
        return Finding::ok(check, format!("{shown} can be written; the room there is unknown"));
    };
    room(check, folder, there != folder, free, megabytes.saturating_sub(taken))
}

fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Whether there is room for what the folder may still take.
fn room(check: &'static str, folder: &Path, is_new: bool, free_mb: u64, needed_mb: u64) -> Finding {
    let shown = folder.display();
    let made = if is_new { " will be made, and" } else { "" };
    if free_mb < 2 {
        let message = format!("{shown}: the disk is full");
        return Finding::failure(
            check,
            message,
            "make room: `du -xh / | sort -h`, `journalctl --vacuum-size=50M`",
        );
    }
    if free_mb < needed_mb {
        let message = format!("{shown} may still take {needed_mb} MB, and the disk has {free_mb} MB");
        return Finding::warning(check, message, "make room, or let it take less: outbox_mb");
    }
    Finding::ok(check, format!("{shown}{made} can be written; {free_mb} MB are free there"))
}

fn can_write(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".glimpse-doctor-{}", std::process::id()));
    let written =
        fs::File::create_new(&path).and_then(|mut file| io::Write::write_all(&mut file, &[0; 4096]));
    if path.is_file() {
        fs::remove_file(&path)?;
    }
    written
}

fn free_mb(folder: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(folder).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize) / MB)
}

fn taken_mb(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(10_000);
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum::<u64>() / MB
}

/// How warm it is, and whether the board has slowed down for that or for a weak supply.
pub fn temperature(root: &Path) -> Finding {
    const CHECK: &str = "temperature";
    if let Some(problem) = firmware(root) {
        return problem;
    }
    let thermal = root.join("sys/class/thermal");
    let hottest = numbered(&thermal, "thermal_zone").iter().filter_map(|zone| Zone::read(zone)).max();
    let cool = "cool it: a heat sink, a fan, shade, or room around its case";
    let is_slowed = numbered(&thermal, "cooling_device").iter().any(|device| slows_processor(device));
    match hottest {
        Some(zone) if is_slowed => {
            Finding::warning(CHECK, format!("{zone}, and the processor is slowed down for it"), cool)
        }
        Some(zone) if zone.milli_c >= zone.limit_milli_c => {
            Finding::warning(CHECK, format!("{zone}: the processor is slowed down at this temperature"), cool)
        }
        Some(zone) => Finding::ok(CHECK, zone.to_string()),
        None => Finding::ok(CHECK, "this machine tells none"),
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Zone {
    milli_c: i64,
    /// From here on the processor is slowed down.
    limit_milli_c: i64,
    name: String,
}

impl std::fmt::Display for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} \u{b0}C ({})", self.milli_c / 1000, self.name)
    }
}

impl Zone {
    fn read(folder: &Path) -> Option<Self> {
        let milli_c: i64 = value(&folder.join("temp"))?.parse().ok()?;
        // What is no sensor of a working board says 0 or nonsense.
        if !(-60_000..=200_000).contains(&milli_c) {
            return None;
        }
        let limits = (0..16).filter_map(|number| {
            let kind = value(&folder.join(format!("trip_point_{number}_type")))?;
            let slows = ["passive", "hot", "critical"].contains(&kind.as_str());
            let limit: i64 = value(&folder.join(format!("trip_point_{number}_temp")))?.parse().ok()?;
            (slows && limit > 0).then_some(limit)
        });
        let name = value(&folder.join("type")).unwrap_or_else(|| "a sensor".to_owned());
        Some(Self { milli_c, limit_milli_c: limits.min().unwrap_or(HOT_C * 1000), name })
    }
}

fn slows_processor(folder: &Path) -> bool {
    let kind = value(&folder.join("type")).unwrap_or_default().to_ascii_lowercase();
    let state = value(&folder.join("cur_state")).and_then(|state| state.parse::<u64>().ok());
    (kind.contains("cpufreq") || kind.contains("processor")) && state.is_some_and(|state| state > 0)
}

/// What the firmware of Raspberry Pi says, in bits.
fn firmware(root: &Path) -> Option<Finding> {
    let text = value(&root.join("sys/devices/platform/soc/soc:firmware/get_throttled"))?;
    let bits = u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
    let now = |bit: u64| bits & (1 << bit) != 0;
    if now(0) {
        let advice = "take a stronger power supply, and a shorter cable";
        Some(Finding::warning("temperature", "the supply's voltage is too low: the board slows down", advice))
    } else if now(1) || now(2) || now(3) {
        let advice = "cool it: a heat sink, a fan, shade, or room around its case";
        Some(Finding::warning("temperature", "the board slows down since it is too hot", advice))
    } else {
        None
    }
}

fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).take(64).collect()
}

/// A file of one line, as the kernel has them.
fn value(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// The processors that the program is to run on.
pub fn cores(cores: &Cores) -> Finding {
    const CHECK: &str = "cores";
    match host::may_run_on(cores) {
        Ok(_) => Finding::ok(CHECK, format!("the processors {cores} are there")),
        Err(error) => Finding::from_error(CHECK, &error),
    }
}

/// The memory that is to be had.
pub fn memory(root: &Path) -> Finding {
    const CHECK: &str = "memory";
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let available = text.lines().find_map(|line| {
        let kilobytes = line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?;
        kilobytes.trim().parse::<u64>().ok()
    });
    let Some(megabytes) = available.map(|kilobytes| kilobytes / 1024) else {
        return Finding::ok(CHECK, "the kernel does not say how much is free");
    };
    let message = format!("{megabytes} MB are free");
    if megabytes < MEMORY_MB_MIN {
        let advice = format!(
            "the device takes up to {MEMORY_MB_MIN} MB: end other programs (`ps aux --sort=-rss`), or take a smaller network"
        );
        Finding::warning(CHECK, message, advice)
    } else {
        Finding::ok(CHECK, message)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn processors_that_are_not_there_are_told() {
        assert_eq!(cores(&"1023".parse().unwrap()).status, Status::Failure);
        let found = cores(&"0-1023".parse().unwrap());
        let may = found.message.split_once("may use ").unwrap().1.split_once(';').unwrap().0;
        assert_eq!(cores(&may.parse().unwrap()).status, Status::Ok, "{may}");
    }

    fn lay_out(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    fn check(finding: &Finding, status: Status, parts: &[&str]) {
        assert_eq!(finding.status, status, "{finding:?}");
        let text = format!("{}\n{}", finding.message, finding.advice.as_deref().unwrap_or_default());
        parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
    }

    #[test]
    fn a_clock_is_set_and_kept_right_or_it_is_told() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        check(&clock(at(1_800_000_000), Some(true), true), Status::Ok, &["2027", "time server"]);
        check(&clock(at(1_800_000_000), Some(false), true), Status::Warning, &["timesyncd"]);
        check(&clock(at(1_800_000_000), None, true), Status::Ok, &["does not say"]);
        check(&clock(at(5), None, true), Status::Failure, &["1970", "date -s", "certificate"]);
        let text = clock(at(5_000_000_000), Some(true), false);
        check(&text, Status::Failure, &["2128"]);
        assert!(!text.advice.unwrap().contains("certificate"));
        // Whatever it says here, it says it.
        assert!(crate::linux::time::is_synchronised().is_some());
    }

    #[test]
    fn a_folder_can_be_written_and_has_room_or_it_is_told() {
        let place = tempfile::tempdir().unwrap();
        check(&folder("outbox", place.path(), 0), Status::Ok, &["can be written", "MB are free"]);
        check(&folder("outbox", &place.path().join("a/b"), 0), Status::Ok, &["will be made"]);
        check(&folder("outbox", place.path(), u64::MAX), Status::Warning, &["outbox_mb"]);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left behind");
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        check(&folder("outbox", &file, 0), Status::Failure, &["is no folder"]);
        check(&folder("outbox", Path::new("/proc/here"), 0), Status::Failure, &["cannot be written"]);
        // root may write anywhere.
        if !rustix::process::geteuid().is_root() {
            fs::set_permissions(place.path(), fs::Permissions::from_mode(0o500)).unwrap();
            check(&folder("outbox", place.path(), 0), Status::Failure, &["chown -R USER"]);
            fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn room_is_compared_with_what_may_still_come() {
        let at = Path::new("/o");
        check(&room("outbox", at, false, 64, 64), Status::Ok, &["64 MB are free"]);
        check(&room("outbox", at, false, 63, 64), Status::Warning, &["may still take 64 MB", "has 63 MB"]);
        check(&room("outbox", at, false, 1, 0), Status::Failure, &["full", "make room"]);
    }

    #[test]
    fn a_hot_board_is_told_by_its_own_limits() {
        let zone = "sys/class/thermal/thermal_zone0";
        let file = |name: &str| format!("{zone}/{name}");
        for (temperature, limit, status) in [
            ("45000", "85000", Status::Ok),
            ("85000", "85000", Status::Warning),
            ("79999", "", Status::Ok),
            ("80000", "", Status::Warning),
            ("-99999999", "", Status::Ok),
            ("nonsense", "", Status::Ok),
        ] {
            let root = lay_out(&[
                (&file("type"), "cpu-thermal"),
                (&file("temp"), temperature),
                (&file("trip_point_0_type"), "active"),
                (&file("trip_point_0_temp"), "40000"),
                (&file("trip_point_1_type"), "passive"),
                (&file("trip_point_1_temp"), limit),
            ]);
            check(&super::temperature(root.path()), status, &[]);
        }
        check(&temperature(lay_out(&[]).path()), Status::Ok, &["tells none"]);
    }

    #[test]
    fn a_board_that_slows_down_is_told() {
        let zone = ("sys/class/thermal/thermal_zone0/temp", "70000");
        let device = "sys/class/thermal/cooling_device1";
        for (kind, state, status) in [
            ("thermal-cpufreq-0", "3", Status::Warning),
            ("thermal-cpufreq-0", "0", Status::Ok),
            ("pwm-fan", "3", Status::Ok),
        ] {
            let root =
                lay_out(&[zone, (&format!("{device}/type"), kind), (&format!("{device}/cur_state"), state)]);
            check(&temperature(root.path()), status, &["70 \u{b0}C"]);
        }
        let throttled = "sys/devices/platform/soc/soc:firmware/get_throttled";
        check(&temperature(lay_out(&[zone, (throttled, "50005")]).path()), Status::Warning, &["supply"]);
        check(&temperature(lay_out(&[zone, (throttled, "0x4")]).path()), Status::Warning, &["too hot"]);
        // It was so once, and is not now.
        check(&temperature(lay_out(&[zone, (throttled, "50000")]).path()), Status::Ok, &["70"]);
    }

    #[test]
    fn little_memory_is_told() {
        let memory = |text: &str| memory(lay_out(&[("proc/meminfo", text)]).path());
        check(&memory("MemTotal: 500000 kB\nMemAvailable:  409600 kB"), Status::Ok, &["400 MB"]);
        check(&memory("MemAvailable:    40960 kB"), Status::Warning, &["40 MB", "smaller network"]);
        check(&memory(""), Status::Ok, &["does not say"]);
    }
}
