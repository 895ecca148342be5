//! Who may see the console.
//!
//! The password's hash is the file `access/console` in the gallery's folder. It is looked at with every request, so that a
//! password set or changed while the server runs counts at once, and ends every session of the one before. A file that is no
//! hash lets nobody in.
//!
//! Without a password the console is for this machine alone: the server listens on a loopback address, and a request must
//! name one as its host, so that no web page can reach it through a name of its own (DNS rebinding).
//!
//! A session is 256 random bits in a cookie that scripts cannot read and other sites cannot send; the server keeps its hash.
//! What changes something must come from a page of ours, by its `Origin`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method};
use rand::TryRngCore as _;

use crate::password;

/// Where the hash is, in the gallery's folder.
pub const PASSWORD_FILE: &str = "access/console";

/// Sessions at a time; the one that was idle for longest makes room.
const SESSIONS_MAX: usize = 64;

/// A session ends after so long without a request, and after so long in any case.
const IDLE_MAX: Duration = Duration::from_hours(8);
const AGE_MAX: Duration = Duration::from_hours(7 * 24);

/// Wrong passwords that an address may try before it has to wait, twice as long after each more.
const FREE_FAILURES: u32 = 5;
const PENALTY_MAX: Duration = Duration::from_mins(5);

/// Attempts of all addresses together in a minute: each costs 20 ms of a core.
const ATTEMPTS_A_MINUTE_MAX: u32 = 60;

/// Addresses whose failures are remembered.
const ADDRESSES_MAX: usize = 4096;

/// The longest hash that is read, in bytes; ours have some hundred.
const HASH_BYTES_MAX: u64 = 1024;

const COOKIE_NAME: &str = "glimpse_session";

/// What a request may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// No password is set, and the request is from this machine.
    Open,
    /// Of a session.
    Session,
    /// Neither.
    Refused(Refusal),
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no session.
    LogIn,
    /// It names a host that is not this machine, while no password is set.
    ForeignHost,
    /// It would change something and comes from another site.
    ForeignOrigin,
}

/// What came of an attempt to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// The cookie of the new session.
    In(String),
    /// The wrong password, or none is set.
    Wrong,
    /// Too many attempts.
    Wait(Duration),
    /// The operating system gave no random numbers.
    NoRandom,
}

pub(super) struct Access {
    file: PathBuf,
    /// Whether requests come through TLS.
    tls: bool,
    metrics_token: Option<[u8; 32]>,
    password: Mutex<Password>,
    sessions: Mutex<HashMap<[u8; 32], Session>>,
    attempts: Mutex<Attempts>,
}

#[derive(Default)]
struct Password {
    stamp: Option<(SystemTime, u64)>,
    /// `None`: no file. Not a hash: nobody gets in.
    hash: Option<String>,
}

#[derive(Clone, Copy)]
struct Session {
    began: Instant,
    used: Instant,
}

struct Attempts {
    of: HashMap<IpAddr, (u32, Instant)>,
    minute: (Instant, u32),
    failures: u64,
}

impl Access {
    pub(super) fn new(gallery: &Path, tls: bool, metrics_token: Option<&str>) -> Self {
        let minute = (Instant::now(), 0);
        Self {
            file: gallery.join(PASSWORD_FILE),
            tls,
            metrics_token: metrics_token.map(|token| fingerprint(token.as_bytes())),
            password: Mutex::default(),
            sessions: Mutex::default(),
            attempts: Mutex::new(Attempts { of: HashMap::new(), minute, failures: 0 }),
        }
    }

    /// The hash of the password; `None` while none is set.
    pub(super) fn password(&self) -> Option<String> {
        let stamp = match std::fs::metadata(&self.file) {
            Ok(metadata) => Some((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            // It is there, and nobody can tell what it says.
            Err(_) => Some((SystemTime::UNIX_EPOCH, u64::MAX)),
        };
        let mut password = lock(&self.password);
        if password.stamp != stamp {
            let hash = stamp.map(|(_, bytes)| read_hash(&self.file, bytes));
            // A session belongs to the password that it was begun with.
            if password.hash.is_some() && password.hash != hash {
                lock(&self.sessions).clear();
            }
            *password = Password { stamp, hash };
        }
        password.hash.clone()
    }

    /// What a request may see, by its headers.
    pub(super) fn admit(&self, method: &Method, headers: &HeaderMap) -> Admission {
        let changes = !matches!(*method, Method::GET | Method::HEAD);
        if changes && !is_own_origin(headers) {
            return Admission::Refused(Refusal::ForeignOrigin);
        }
        if self.password().is_none() {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let local = host.is_some_and(is_local_host);
            return if local { Admission::Open } else { Admission::Refused(Refusal::ForeignHost) };
        }
        if self.session_of(headers) { Admission::Session } else { Admission::Refused(Refusal::LogIn) }
    }

    /// Whether a request carries the token for metrics.
    pub(super) fn has_metrics_token(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given =
            given.and_then(|value| value.strip_prefix("Bearer ")).map(|token| fingerprint(token.as_bytes()));
        // Hashes are compared, so that the time tells nothing of the token.
        self.metrics_token.is_some() && given == self.metrics_token
    }

    /// Tries a password, on a thread that may block: hashing takes 20 ms.
    pub(super) fn log_in(&self, from: IpAddr, given: &[u8]) -> Login {
        if let Some(wait) = lock(&self.attempts).begin(from, Instant::now()) {
            return Login::Wait(wait);
        }
        let right = self.password().is_some_and(|hash| password::verify(given, &hash));
        lock(&self.attempts).end(from, right, Instant::now());
        if !right {
            tracing::warn!(%from, "a wrong password for the console");
            return Login::Wrong;
        }
        let mut bytes = [0; 32];
        if rand::rngs::OsRng.try_fill_bytes(&mut bytes).is_err() {
            return Login::NoRandom;
        }
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.open(fingerprint(token.as_bytes()));
        tracing::info!(%from, "logged in to the console");
        Login::In(self.cookie(&token, AGE_MAX))
    }

    /// Ends the session of a request; gives the cookie that takes the old one away.
    pub(super) fn log_out(&self, headers: &HeaderMap) -> String {
        if let Some(token) = token_of(headers) {
            lock(&self.sessions).remove(&token);
        }
        self.cookie("", Duration::ZERO)
    }

    /// Sessions now.
    pub(super) fn sessions(&self) -> usize {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| session.lives(Instant::now()));
        sessions.len()
    }

    /// Wrong passwords since the start.
    pub(super) fn failures(&self) -> u64 {
        lock(&self.attempts).failures
    }

    fn open(&self, token: [u8; 32]) {
        let now = Instant::now();
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| session.lives(now));
        if sessions.len() >= SESSIONS_MAX {
            let idle = sessions.iter().min_by_key(|(_, session)| session.used).map(|(token, _)| *token);
            idle.map(|token| sessions.remove(&token));
        }
        sessions.insert(token, Session { began: now, used: now });
    }

    fn session_of(&self, headers: &HeaderMap) -> bool {
        let Some(token) = token_of(headers) else { return false };
        let now = Instant::now();
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.get_mut(&token) else { return false };
        if session.lives(now) {
            session.used = now;
            return true;
        }
        sessions.remove(&token);
        false
    }

    fn cookie(&self, token: &str, age: Duration) -> String {
        let secure = if self.tls { "; Secure" } else { "" };
        let seconds = age.as_secs();
        format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
    }
}

impl Session {
    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.used) < IDLE_MAX && now.duration_since(self.began) < AGE_MAX
    }
}

impl Attempts {
    /// How long an address has to wait; `None`: it may try now.
    fn begin(&mut self, from: IpAddr, now: Instant) -> Option<Duration> {
        if let Some((failed, last)) = self.of.get(&from) {
            let wait = penalty(*failed).saturating_sub(now.duration_since(*last));
            if !wait.is_zero() {
                return Some(wait);
            }
        }
        if now.duration_since(self.minute.0) >= Duration::from_mins(1) {
            self.minute = (now, 0);
        }
        if self.minute.1 >= ATTEMPTS_A_MINUTE_MAX {
            return Some(Duration::from_mins(1).saturating_sub(now.duration_since(self.minute.0)));
        }
        self.minute.1 += 1;
        None
    }

    fn end(&mut self, from: IpAddr, right: bool, now: Instant) {
        if right {
            self.of.remove(&from);
            return;
        }
        self.failures += 1;
        if self.of.len() >= ADDRESSES_MAX && !self.of.contains_key(&from) {
            self.of.retain(|_, (failed, last)| now.duration_since(*last) < penalty(*failed));
        }
        // With all places taken by addresses that have to wait, the bound of all attempts together holds.
        if self.of.len() < ADDRESSES_MAX || self.of.contains_key(&from) {
            let entry = self.of.entry(from).or_insert((0, now));
            *entry = (entry.0.saturating_add(1), now);
        }
    }
}

fn penalty(failed: u32) -> Duration {
    match failed.checked_sub(FREE_FAILURES) {
        None => Duration::ZERO,
        Some(more) => Duration::from_secs(1 << more.min(10)).min(PENALTY_MAX),
    }
}

/// The hash in a file, or what is no hash where it has none.
fn read_hash(file: &Path, bytes: u64) -> String {
    let text = if bytes <= HASH_BYTES_MAX { std::fs::read_to_string(file).ok() } else { None };
    let hash = text.map(|text| text.trim().to_owned()).filter(|text| password::is_hash(text));
    if hash.is_none() {
        tracing::error!(
            file = %file.display(),
            "the console's password cannot be read, so nobody can log in: set it again with `glimpse-gallery console-password`"
        );
    }
    hash.unwrap_or_default()
}

fn token_of(headers: &HeaderMap) -> Option<[u8; 32]> {
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let token = pairs.find(|(name, _)| *name == COOKIE_NAME)?.1;
    (token.len() == 64).then(|| fingerprint(token.as_bytes()))
}

fn fingerprint(token: &[u8]) -> [u8; 32] {
    *blake3::hash(token).as_bytes()
}

/// Browsers name the origin of what changes something; other programs send none, and carry no cookie by accident.
fn is_own_origin(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return false;
    }
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == headers.get(HOST).and_then(|host| host.to_str().ok())
}

/// Whether the host of a request is this machine by a name that nobody else can give to another.
fn is_local_host(host: &str) -> bool {
    // An address of IPv6 stands in brackets, with or without a port behind them.
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if rest.is_empty() || rest.starts_with(':') => address,
        Some(_) => return false,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Each of these is changed in steps that leave it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
