//! Who may see the console.
//!
//! The password's hash is the file `console` in the access folder. It is looked at with every request, so that a password set
//! or changed while the server runs counts at once, and ends every session of the one before. A file that is no hash lets
//! nobody in.
//!
//! Without a password the console is for this machine alone: the server listens on a loopback address, and a request must
//! name one as its host, so that no web page can reach it through a name of its own (DNS rebinding), and must not say that a
//! proxy passed it on. A server that listens beyond loopback and whose password was taken away lets nobody in.
//!
//! A session is 256 random bits in a cookie that scripts cannot read and other sites cannot send; the server keeps its hash.
//! What changes something must come from a page of ours, by its `Origin`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::header::{AUTHORIZATION, COOKIE, FORWARDED, HOST, ORIGIN};
use axum::http::{HeaderMap, Method};
use rand::TryRngCore as _;

use crate::access::throttle::network;
use crate::password;

/// Where the hash is, in the access folder.
pub const PASSWORD_FILE: &str = "console";

/// Sessions at a time; the one that was idle for longest makes room.
const SESSIONS_MAX: usize = 64;

/// A session ends after so long without a request, and after so long in any case.
const IDLE_MAX: Duration = Duration::from_hours(8);
const AGE_MAX: Duration = Duration::from_hours(7 * 24);

/// Wrong passwords that a network may try before it has to wait, twice as long after each more.
const FREE_FAILURES: u32 = 5;
const PENALTY_MAX: Duration = Duration::from_mins(5);

/// Attempts of all networks together in a minute: each costs 20 ms of a core. Some are kept for this machine, whose
/// administrator gets in whatever the others do.
const ATTEMPTS_A_MINUTE_MAX: u32 = 60;
const ATTEMPTS_KEPT: u32 = 10;

/// Networks whose failures are remembered.
const NETWORKS_MAX: usize = 4096;

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
    /// A proxy passed it on, while no password is set.
    Forwarded,
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
    /// Whether only this machine reaches the server.
    local: bool,
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
    /// The hash that the password was held against, itself hashed.
    password: [u8; 32],
}

struct Attempts {
    of: HashMap<IpAddr, (u32, Instant)>,
    minute: (Instant, u32),
    failures: u64,
}

impl Access {
    pub(super) fn new(folder: &Path, local: bool, metrics_token: Option<&str>) -> Self {
        let minute = (Instant::now(), 0);
        Self {
            file: folder.join(PASSWORD_FILE),
            local,
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
            if hash.is_none() && password.hash.is_some() && !self.local {
                tracing::error!(
                    file = %self.file.display(),
                    "the console's password has gone, and others can reach the console: it is closed until one is set"
                );
            }
            *password = Password { stamp, hash };
        }
        password.hash.clone()
    }

    /// What a request may see, by its headers; one of a session keeps that alive.
    pub(super) fn admit(&self, method: &Method, headers: &HeaderMap) -> Admission {
        let admission = self.admits(method, headers);
        if admission == Admission::Session
            && let Some(token) = token_of(headers)
            && let Some(session) = lock(&self.sessions).get_mut(&token)
        {
            session.used = Instant::now();
        }
        admission
    }

    /// The same, of a request that goes on by itself and keeps no session alive: a feed.
    pub(super) fn admits(&self, method: &Method, headers: &HeaderMap) -> Admission {
        let changes = !matches!(*method, Method::GET | Method::HEAD);
        if changes && !is_own_origin(headers) {
            return Admission::Refused(Refusal::ForeignOrigin);
        }
        let Some(hash) = self.password() else {
            return match self.of_this_machine(headers) {
                Ok(()) => Admission::Open,
                Err(refusal) => Admission::Refused(refusal),
            };
        };
        if self.is_in_session(headers, &hash) {
            Admission::Session
        } else {
            Admission::Refused(Refusal::LogIn)
        }
    }

    /// Whether a request is from this machine: others cannot reach the server, and no page and no proxy speaks for them.
    fn of_this_machine(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        if !self.local {
            Err(Refusal::LogIn)
        } else if headers.contains_key(FORWARDED) || headers.contains_key("x-forwarded-for") {
            Err(Refusal::Forwarded)
        } else if host.is_some_and(is_local_host) {
            Ok(())
        } else {
            Err(Refusal::ForeignHost)
        }
    }

    /// Whether a request may read what is measured: by the token where one is set, else from this machine; with a session in
    /// any case.
    pub(super) fn may_measure(&self, headers: &HeaderMap) -> bool {
        let admitted = match self.metrics_token {
            Some(_) => self.has_metrics_token(headers),
            None => self.of_this_machine(headers).is_ok(),
        };
        admitted || self.admit(&Method::GET, headers) == Admission::Session
    }

    fn has_metrics_token(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given =
            given.and_then(|value| value.strip_prefix("Bearer ")).map(|token| fingerprint(token.as_bytes()));
        // Hashes are compared, so that the time tells nothing of the token.
        self.metrics_token.is_some() && given == self.metrics_token
    }

    /// Tries a password, on a thread that may block and alone: hashing takes 20 ms and 19 MiB. The cookie is for TLS where
    /// the page came through it, as `headers` say.
    pub(super) fn log_in(&self, from: IpAddr, given: &[u8], headers: &HeaderMap) -> Login {
        if let Some(wait) = lock(&self.attempts).begin(from, Instant::now()) {
            return Login::Wait(wait);
        }
        let Some(hash) = self.password().filter(|hash| password::verify(given, hash)) else {
            tracing::warn!(%from, "a wrong password for the console");
            return Login::Wrong;
        };
        lock(&self.attempts).succeeded(from);
        let mut bytes = [0; 32];
        if rand::rngs::OsRng.try_fill_bytes(&mut bytes).is_err() {
            return Login::NoRandom;
        }
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.open(fingerprint(token.as_bytes()), &hash);
        tracing::info!(%from, "logged in to the console");
        Login::In(cookie(&token, AGE_MAX, headers))
    }

    /// Ends the session of a request; gives the cookie that takes the old one away.
    pub(super) fn log_out(&self, headers: &HeaderMap) -> String {
        if let Some(token) = token_of(headers) {
            lock(&self.sessions).remove(&token);
        }
        cookie("", Duration::ZERO, headers)
    }

    /// Sessions now.
    pub(super) fn sessions(&self) -> usize {
        let password = self.password().map(|hash| fingerprint(hash.as_bytes()));
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| session.lives(Instant::now()) && Some(session.password) == password);
        sessions.len()
    }

    /// Wrong passwords since the start.
    pub(super) fn failures(&self) -> u64 {
        lock(&self.attempts).failures
    }

    fn open(&self, token: [u8; 32], hash: &str) {
        let now = Instant::now();
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| session.lives(now));
        if sessions.len() >= SESSIONS_MAX {
            let idle = sessions.iter().min_by_key(|(_, session)| session.used).map(|(token, _)| *token);
            idle.map(|token| sessions.remove(&token));
        }
        sessions.insert(token, Session { began: now, used: now, password: fingerprint(hash.as_bytes()) });
    }

    /// Whether a session lives that was begun with the password of this hash.
    fn is_in_session(&self, headers: &HeaderMap, hash: &str) -> bool {
        let Some(token) = token_of(headers) else { return false };
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.get(&token) else { return false };
        if session.lives(Instant::now()) && session.password == fingerprint(hash.as_bytes()) {
            return true;
        }
        sessions.remove(&token);
        false
    }
}

/// A cookie that goes through TLS only where the page that wants it came through TLS, which a proxy ends.
fn cookie(token: &str, age: Duration, headers: &HeaderMap) -> String {
    let origin = headers.get(ORIGIN).map_or(&b""[..], |origin| origin.as_bytes());
    let secure = if origin.starts_with(b"https://") { "; Secure" } else { "" };
    let seconds = age.as_secs();
    format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}

impl Session {
    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.used) < IDLE_MAX && now.duration_since(self.began) < AGE_MAX
    }
}

impl Attempts {
    /// How long an address has to wait; `None`: it may try now, and counts as wrong until it is known to be right, so that
    /// many attempts at once are no more than many in turn.
    fn begin(&mut self, from: IpAddr, now: Instant) -> Option<Duration> {
        let places =
            if from.is_loopback() { ATTEMPTS_A_MINUTE_MAX } else { ATTEMPTS_A_MINUTE_MAX - ATTEMPTS_KEPT };
        let from = network(from);
        if let Some((failed, last)) = self.of.get(&from) {
            let wait = penalty(*failed).saturating_sub(now.duration_since(*last));
            if !wait.is_zero() {
                return Some(wait);
            }
        }
        if now.duration_since(self.minute.0) >= Duration::from_mins(1) {
            self.minute = (now, 0);
        }
        if self.minute.1 >= places {
            return Some(Duration::from_mins(1).saturating_sub(now.duration_since(self.minute.0)));
        }
        self.minute.1 += 1;
        self.failed(from, now);
        None
    }

    /// The attempt was right after all.
    fn succeeded(&mut self, from: IpAddr) {
        self.of.remove(&network(from));
        self.failures = self.failures.saturating_sub(1);
    }

    fn failed(&mut self, from: IpAddr, now: Instant) {
        self.failures += 1;
        if self.of.len() >= NETWORKS_MAX && !self.of.contains_key(&from) {
            self.of.retain(|_, (failed, last)| now.duration_since(*last) < penalty(*failed));
        }
        // With all places taken by networks that have to wait, the bound of all attempts together holds.
        if self.of.len() < NETWORKS_MAX || self.of.contains_key(&from) {
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
