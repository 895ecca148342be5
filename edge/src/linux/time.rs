//! What time it is, and whether to believe it.
//!
//! A board without a battery starts in 1970, or where its image or its last shutdown says, and is told the time over
//! the network, minutes later or never. Until then a photo has only the machine's uptime ([`Taken::Uptime`]), which
//! becomes a time once there is a clock ([`Taken::resolved`]): in the same run of the machine, since uptimes of
//! another say nothing.
//!
//! A clock is believed that says 2026 or later and that somebody vouches for: the kernel says that it is synchronised,
//! systemd-timesyncd says so, or it was set from a battery clock when the machine started.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// No clock of a device that runs this program shows less: 2026, in Unix milliseconds.
pub const WALL_MS_MIN: u64 = 1_767_225_600_000;

/// A file may be this much newer than now: file systems and clocks round.
const AHEAD_MS: u64 = 60_000;

/// The times of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Unix time in milliseconds, believed or not; 0 before 1970.
    pub clock_ms: u64,
    /// Whether to believe it.
    pub is_trusted: bool,
    /// How long the machine has been running, in milliseconds.
    pub uptime_ms: u64,
    /// Which run of the machine this is, at random; 0: nobody knows.
    pub boot: u64,
}

impl Times {
    /// Those of now. A clock that was believed once stays so: a network that is away for a day makes the kernel say that
    /// its time may be some milliseconds wrong, which is all the same here.
    pub fn now() -> Self {
        static WAS_TRUSTED: AtomicBool = AtomicBool::new(false);
        let mut times = Self::of(Path::new("/"));
        times.is_trusted |= times.clock_ms >= WALL_MS_MIN && WAS_TRUSTED.load(Ordering::Relaxed);
        WAS_TRUSTED.fetch_or(times.is_trusted, Ordering::Relaxed);
        times
    }

    fn of(root: &Path) -> Self {
        let clock_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let is_vouched_for = || {
            is_synchronised() == Some(true)
                || root.join("run/systemd/timesync/synchronized").exists()
                || was_set_from_a_battery_clock(root)
        };
        let is_trusted = clock_ms >= WALL_MS_MIN && is_vouched_for();
        let uptime_ms =
            text(root, "proc/uptime").as_deref().and_then(uptime_ms).unwrap_or_else(since_first_asked);
        let boot = text(root, "proc/sys/kernel/random/boot_id").map_or(0, |id| boot_of(&id));
        Self { clock_ms, is_trusted, uptime_ms, boot }
    }

    /// Unix time in milliseconds, where it is believed.
    pub fn wall_ms(&self) -> Option<u64> {
        self.is_trusted.then_some(self.clock_ms)
    }
}

fn text(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

/// From `/proc/uptime`: seconds, with two digits behind the point.
fn uptime_ms(text: &str) -> Option<u64> {
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then_some((seconds * 1000.0) as u64)
}

/// Where there is no `/proc`.
fn since_first_asked() -> u64 {
    static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// The first 64 of the 128 random bits.
fn boot_of(id: &str) -> u64 {
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// The kernel took the time from one of its battery clocks.
fn was_set_from_a_battery_clock(root: &Path) -> bool {
    let clocks = std::fs::read_dir(root.join("sys/class/rtc")).into_iter().flatten().flatten();
    clocks
        .filter_map(|clock| std::fs::read_to_string(clock.path().join("hctosys")).ok())
        .any(|set| set.trim() == "1")
}

/// Whether the kernel's clock is kept right by a time server; `None` where the kernel does not say.
#[cfg(target_os = "linux")]
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: `timex` is plain numbers, of which zeros are valid; `adjtimex` reads and writes this one alone, and with
    // no bit of `modes` set it changes nothing.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0)
}

/// No such kernel.
#[cfg(not(target_os = "linux"))]
pub const fn is_synchronised() -> Option<bool> {
    None
}

/// When a photo was taken, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// Unix time in milliseconds, of a clock that was believed.
    At(u64),
    /// No clock was believed: so many milliseconds after the start of the machine.
    Uptime {
        /// Which run of the machine.
        boot: u64,
        /// Milliseconds.
        ms: u64,
    },
    /// Nobody knows.
    #[default]
    Unknown,
}

impl Taken {
    /// When a photo was taken to which the system gave a time (Unix milliseconds), by its clock as it is now.
    pub fn of(photo_ms: Option<u64>, now: &Times) -> Self {
        let Some(photo_ms) = photo_ms else { return Self::Unknown };
        if now.is_trusted {
            let is_sane = photo_ms >= WALL_MS_MIN && photo_ms <= now.clock_ms + AHEAD_MS;
            return if is_sane { Self::At(photo_ms) } else { Self::Unknown };
        }
        // Wrong as the clock is, it tells how long ago that was; but not where it was set meanwhile, or stood still while the machine was
        // off.
        let age_ms =
            now.clock_ms.checked_sub(photo_ms).or((photo_ms <= now.clock_ms + AHEAD_MS).then_some(0));
        match age_ms.and_then(|age_ms| now.uptime_ms.checked_sub(age_ms)) {
            Some(ms) if now.boot != 0 => Self::Uptime { boot: now.boot, ms },
            _ => Self::Unknown,
        }
    }

    /// The same, with what is known now: an uptime is a time once there is a clock, and nothing in another run of the machine.
    #[must_use]
    pub fn resolved(self, now: &Times) -> Self {
        match self {
            Self::Uptime { boot, .. } if boot != now.boot => Self::Unknown,
            Self::Uptime { ms, .. } if now.is_trusted => {
                Self::At(now.clock_ms.saturating_sub(now.uptime_ms.saturating_sub(ms)))
            }
            known => known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten minutes after the start of run 7.
    const EARLY: Times = Times { clock_ms: 600_000, is_trusted: false, uptime_ms: 600_000, boot: 7 };
    const SET: Times =
        Times { clock_ms: WALL_MS_MIN + 9_000_000, is_trusted: true, uptime_ms: 900_000, boot: 7 };

    #[test]
    fn a_photo_has_an_uptime_until_the_clock_is_set_and_then_its_time() {
        let taken = Taken::of(Some(599_000), &EARLY);
        assert_eq!(taken, Taken::Uptime { boot: 7, ms: 599_000 });
        assert_eq!(taken.resolved(&EARLY), taken);
        assert_eq!(taken.resolved(&SET), Taken::At(SET.clock_ms - 301_000));
        assert_eq!(Taken::of(Some(SET.clock_ms - 5), &SET), Taken::At(SET.clock_ms - 5));
    }

    #[test]
    fn a_wrong_clock_of_the_right_year_is_no_better_than_one_of_1970() {
        // The image, or the last shutdown, said what year it is.
        let stale = Times { clock_ms: WALL_MS_MIN + 5_000, ..EARLY };
        assert_eq!(Taken::of(Some(WALL_MS_MIN + 4_000), &stale), Taken::Uptime { boot: 7, ms: 599_000 });
    }

    #[test]
    fn what_nobody_can_know_is_unknown() {
        let other = Times { boot: 8, ..SET };
        let taken = Taken::Uptime { boot: 7, ms: 1 };
        assert_eq!(taken.resolved(&other), Taken::Unknown, "the machine was started anew");
        assert_eq!(Taken::At(5).resolved(&other), Taken::At(5));
        for (photo_ms, now) in [
            (None, SET),
            // The file is from before the start, or of a wrong clock.
            (Some(1_000), SET),
            (Some(SET.clock_ms + AHEAD_MS + 1), SET),
            (Some(0), Times { uptime_ms: 500_000, ..EARLY }),
            (Some(EARLY.clock_ms + AHEAD_MS + 1), EARLY),
            (Some(599_000), Times { boot: 0, ..EARLY }),
        ] {
            assert_eq!(Taken::of(photo_ms, &now), Taken::Unknown, "{photo_ms:?}");
        }
    }

    #[test]
    fn who_vouches_for_the_clock_is_found_where_systems_keep_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/uptime", "350735.47 234388.90\n");
        write("proc/sys/kernel/random/boot_id", "12345678-9abc-def0-1234-56789abcdef0\n");
        let times = Times::of(root);
        assert_eq!((times.uptime_ms, times.boot), (350_735_470, 0x1234_5678_9abc_def0));
        // The test machine's kernel may vouch for the clock all the same.
        write("sys/class/rtc/rtc0/hctosys", "0\n");
        assert!(!was_set_from_a_battery_clock(root));
        write("sys/class/rtc/rtc1/hctosys", "1\n");
        assert!(was_set_from_a_battery_clock(root) && Times::of(root).is_trusted);
        std::fs::remove_dir_all(root.join("sys")).unwrap();
        write("run/systemd/timesync/synchronized", "");
        assert!(Times::of(root).is_trusted);
    }

    #[test]
    fn a_machine_without_proc_has_an_uptime_that_grows() {
        let place = tempfile::tempdir().unwrap();
        let first = Times::of(place.path());
        let second = Times::of(place.path());
        assert!(second.uptime_ms >= first.uptime_ms && first.boot == 0);
        for text in ["", "soon", "-1.0 3", "nan"] {
            assert_eq!(uptime_ms(text), None, "{text}");
        }
    }
}
