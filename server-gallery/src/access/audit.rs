//! The audit log: who was let in and who was not, what was changed, and when; a JSON object a line.
//!
//! The server and the commands append to one file, each line under the file's lock. A file that has reached its size
//! becomes `audit.1.jsonl`, that one `audit.2.jsonl`, and the oldest goes. What strangers can cause is limited to a
//! number of lines a second for each kind, and what a device can cause by coming and going to a number a minute, with
//! a count of what was left out, so that nobody washes the log away by knocking, nor one kind of line another; and
//! what strangers write is cut to a length. No line has a secret. A log that cannot be written is told in the
//! server's log and stops nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::file::append_private;

/// A log of this size makes room for a new one.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Older logs that are kept.
const OLDER_LOGS: usize = 4;

/// Lines of each kind that strangers can cause in a second.
const STRANGERS_PER_SECOND: u32 = 20;

/// Connections of one device that are written down in a minute.
const CONNECTIONS_PER_MINUTE: u32 = 20;

/// Devices whose connections are counted apart; any more share one count.
const DEVICES_COUNTED_MAX: usize = 16_384;

/// The longest text of a stranger that is kept.
const TEXT_BYTES_MAX: usize = 256;

/// Something to be remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A device was added to the registry, or got new credentials.
    DeviceAdded {
        /// Its name.
        device: &'a str,
        /// Whether it was there before.
        replaced: bool,
    },
    /// A device was revoked.
    DeviceRevoked {
        /// Its name.
        device: &'a str,
    },
    /// A device was taken out of the registry.
    DeviceRemoved {
        /// Its name.
        device: &'a str,
    },
    /// A roll-out of a network was begun or stopped.
    Model {
        /// `push` or `stop`.
        action: &'a str,
        /// The roll-out's serial number.
        serial: u64,
        /// The network.
        model: &'a str,
        /// Whom it is for.
        to: &'a str,
    },
    /// The server took up a changed registry.
    RegistryReloaded {
        /// Devices in it.
        devices: usize,
    },
    /// The registry cannot be read: the server goes by the last good one.
    RegistryRefused {
        /// Why.
        reason: &'a str,
    },
    /// The server took up a certificate.
    CertificateReloaded {
        /// SHA-256 of its DER form.
        fingerprint: &'a str,
    },
    /// The certificate cannot be read: the server goes by the last good one.
    CertificateRefused {
        /// Why.
        reason: &'a str,
    },
    /// A device was let in.
    Connected {
        /// Its name.
        device: &'a str,
        /// Where it comes from.
        address: SocketAddr,
        /// `password`, `certificate`, or `none` where nobody has to prove anything.
        credential: &'a str,
        /// Whether the connection is encrypted.
        tls: bool,
    },
    /// A device that was connected was sent away.
    Disconnected {
        /// Its name.
        device: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// Somebody was not let in.
    Refused {
        /// Who it claimed to be, where it came to that.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<&'a str>,
        /// Where it comes from.
        address: Option<SocketAddr>,
        /// Why.
        reason: &'a str,
    },
    /// A device wanted a topic that is not its own.
    TopicRefused {
        /// Its name.
        device: &'a str,
        /// `publish` or `subscribe`.
        action: &'a str,
        /// The topic.
        topic: &'a str,
    },
    /// Somebody logged in to the console, or tried to.
    ConsoleLogin {
        /// Where they come from.
        address: SocketAddr,
        /// Whether they got in.
        accepted: bool,
    },
}

impl Event<'_> {
    /// The same with its texts cut to a length.
    fn bounded(self) -> Self {
        match self {
            Self::Refused { device, address, reason } => {
                Self::Refused { device: device.map(cut), address, reason: cut(reason) }
            }
            Self::TopicRefused { device, action, topic } => {
                Self::TopicRefused { device: cut(device), action, topic: cut(topic) }
            }
            Self::RegistryRefused { reason } => Self::RegistryRefused { reason: cut(reason) },
            Self::CertificateRefused { reason } => Self::CertificateRefused { reason: cut(reason) },
            Self::Connected { device, address, credential, tls } => {
                Self::Connected { device: cut(device), address, credential, tls }
            }
            Self::Disconnected { device, reason } => Self::Disconnected { device: cut(device), reason },
            other => other,
        }
    }
}

fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX.min(text.len()));
    &text[..end]
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: Event<'a>,
    /// Lines like this that were left out since the last one.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The log of an access folder.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    budgets: Mutex<Budgets>,
}

impl Audit {
    /// The log in this folder; the file is made with its first line.
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join("audit.jsonl"), budgets: Mutex::new(Budgets::new(Instant::now())) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an event down, and returns whether it did: of what strangers cause it leaves some out, and so should
    /// other logs. Takes some ten microseconds; not brought to the disk each time.
    pub fn record(&self, event: Event<'_>) -> bool {
        let left_out = {
            let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            match budgets.of(&event, now).map(|budget| budget.take(now)) {
                None => 0,
                Some(Some(left_out)) => left_out,
                Some(None) => return false,
            }
        };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let written = serde_json::to_vec(&Line { time, event: event.bounded(), left_out })
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.append(&line)
            });
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "the audit log cannot be written");
        }
        true
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        // Another process may make room between opening and locking: then the open file is an older log.
        for _ in 0..8 {
            let mut file = self.open()?;
            file.lock()?;
            if !is_at(&file, &self.path) {
                continue;
            }
            if file.metadata()?.len() + line.len() as u64 > LOG_BYTES_MAX {
                self.rotate()?;
                continue;
            }
            return file.write_all(line);
        }
        Err(io::Error::other("it is being replaced again and again"))
    }

    fn open(&self) -> io::Result<File> {
        match append_private(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Only a server without a registry has no folder yet.
                let folder = self.path.parent().unwrap_or(Path::new("."));
                super::file::make_private_folder(folder).map_err(io::Error::other)?;
                append_private(&self.path)
            }
            other => other,
        }
    }

    fn rotate(&self) -> io::Result<()> {
        let older = |number: usize| self.path.with_extension(format!("{number}.jsonl"));
        for number in (1..OLDER_LOGS).rev() {
            match fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, older(1))
    }
}

/// Whether an open file is the one at a path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let both = file.metadata().and_then(|file| Ok((file, fs::metadata(path)?)));
    both.is_ok_and(|(file, path)| (file.dev(), file.ino()) == (path.dev(), path.ino()))
}

/// Elsewhere a file that is open is not renamed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// What may still be written down of what others can cause as often as they like.
#[derive(Debug)]
struct Budgets {
    refused: Budget,
    topics: Budget,
    console: Budget,
    connected: HashMap<String, Budget>,
    other_devices: Budget,
}

impl Budgets {
    fn new(now: Instant) -> Self {
        Self {
            refused: Budget::of_strangers(now),
            topics: Budget::of_strangers(now),
            console: Budget::of_strangers(now),
            connected: HashMap::new(),
            other_devices: Budget::of_device(now),
        }
    }

    /// The budget of an event; `None` where nobody can cause it at will.
    fn of(&mut self, event: &Event<'_>, now: Instant) -> Option<&mut Budget> {
        match event {
            Event::Refused { .. } => Some(&mut self.refused),
            Event::TopicRefused { .. } => Some(&mut self.topics),
            Event::ConsoleLogin { accepted: false, .. } => Some(&mut self.console),
            Event::Connected { device, .. } => Some(self.of_device(cut(device), now)),
            _ => None,
        }
    }

    fn of_device(&mut self, device: &str, now: Instant) -> &mut Budget {
        if self.connected.len() >= DEVICES_COUNTED_MAX && !self.connected.contains_key(device) {
            self.connected.retain(|_, budget| budget.is_of_now(now));
            if self.connected.len() >= DEVICES_COUNTED_MAX {
                return &mut self.other_devices;
            }
        }
        self.connected.entry(device.to_owned()).or_insert_with(|| Budget::of_device(now))
    }
}

/// Lines that may be written in this period.
#[derive(Debug)]
struct Budget {
    of_period: u32,
    period: Duration,
    began: Instant,
    left: u32,
    left_out: u64,
}

impl Budget {
    const fn of_strangers(now: Instant) -> Self {
        Self::new(STRANGERS_PER_SECOND, Duration::from_secs(1), now)
    }

    const fn of_device(now: Instant) -> Self {
        Self::new(CONNECTIONS_PER_MINUTE, Duration::from_mins(1), now)
    }

    const fn new(of_period: u32, period: Duration, now: Instant) -> Self {
        Self { of_period, period, began: now, left: of_period, left_out: 0 }
    }

    fn is_of_now(&self, now: Instant) -> bool {
        now.duration_since(self.began) < self.period
    }

    /// How many were left out before this one, or `None` where it is left out itself.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if !self.is_of_now(now) {
            (self.began, self.left) = (now, self.of_period);
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.left_out += 1;
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_event_is_one_line_of_json_that_only_the_owner_reads() {
        let place = tempfile::tempdir().unwrap();
        let audit = Audit::new(&place.path().join("access"));
        let address = "192.0.2.1:4000".parse().unwrap();
        audit.record(Event::Connected { device: "cam-1", address, credential: "password", tls: true });
        let strange = format!("a\n\u{1b}[2J{}", "\u{e9}".repeat(500));
        audit.record(Event::Refused {
            device: Some(&strange),
            address: Some(address),
            reason: "unknown device",
        });
        let lines = lines(audit.path());
        assert_eq!((&lines[0]["event"], &lines[0]["device"]), (&"connected".into(), &"cam-1".into()));
        assert_eq!(lines[0]["address"], "192.0.2.1:4000");
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
        assert!(lines[1]["device"].as_str().unwrap().len() <= TEXT_BYTES_MAX);
        assert_eq!(lines.len(), 2);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(audit.path()).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn strangers_cannot_wash_the_log_away() {
        let place = tempfile::tempdir().unwrap();
        let audit = Audit::new(place.path());
        let started = Instant::now();
        for _ in 0..1000 {
            audit.record(Event::Refused { device: None, address: None, reason: "unknown device" });
        }
        let seconds = started.elapsed().as_secs() as usize + 1;
        assert!(lines(audit.path()).len() <= seconds * STRANGERS_PER_SECOND as usize);
        let mut budget = Budget::of_strangers(started);
        let taken = (0..25).filter_map(|_| budget.take(started)).count();
        assert_eq!((taken, budget.take(started + Duration::from_secs(1))), (20, Some(5)));
    }

    #[test]
    fn one_kind_of_line_leaves_the_others_their_room_and_one_device_too() {
        let place = tempfile::tempdir().unwrap();
        let audit = Audit::new(place.path());
        let address = "192.0.2.1:4000".parse().unwrap();
        let connected =
            |device| audit.record(Event::Connected { device, address, credential: "none", tls: true });
        let refused =
            || audit.record(Event::Refused { device: None, address: None, reason: "unknown device" });
        while refused() {}
        while connected("cam-1") {}
        assert!(audit.record(Event::ConsoleLogin { address, accepted: false }));
        assert!(audit.record(Event::TopicRefused { device: "cam-1", action: "publish", topic: "#" }));
        assert!(connected("cam-2"));
        let mut budgets = Budgets::new(Instant::now());
        for number in 0..2 * DEVICES_COUNTED_MAX {
            budgets.of_device(&number.to_string(), Instant::now());
        }
        assert!(budgets.connected.len() <= DEVICES_COUNTED_MAX);
    }

    #[test]
    fn a_full_log_makes_room_and_the_oldest_goes() {
        let place = tempfile::tempdir().unwrap();
        let audit = Audit::new(place.path());
        for round in 0..OLDER_LOGS + 2 {
            let full = append_private(audit.path()).unwrap();
            full.set_len(LOG_BYTES_MAX - 10).unwrap();
            audit.record(Event::RegistryReloaded { devices: round });
            assert_eq!(lines(audit.path()), [lines(audit.path())[0].clone()]);
        }
        let mut names: Vec<_> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            ["audit.1.jsonl", "audit.2.jsonl", "audit.3.jsonl", "audit.4.jsonl", "audit.jsonl"]
        );
    }
}
