//! A client's password or certificate against the registry.
//!
//! A password costs some 20 ms of a core, so hashing is done on few threads of its own, and what is more
//! than can be done in time is refused. Because a thousand devices may come back at once after a power cut, the last
//! good password of each device is remembered, as a BLAKE3 hash under a key that exists only in this process: it
//! never leaves memory, and is of no use without the key. Wrong guesses are slowed down by [`Throttle`]; a remembered
//! password is not a guess, and gets in also while its address has to wait.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use glimpse_protocol::DeviceId;
use rand::TryRngCore as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::live::Access;
use super::registry::{Credential, Fingerprint, Refusal, Timestamp};
use super::throttle::Throttle;
use crate::password;

/// How long a client waits for its turn; within the broker's time for a handshake.
const TURN_TIMEOUT: Duration = Duration::from_secs(8);

/// Hashes that are computed at once: each takes 19 MiB of memory.
const HASHES_AT_ONCE_MAX: usize = 4;

/// What a client shows.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// MQTT's client id.
    pub client_id: &'a str,
    /// MQTT's user name.
    pub username: Option<&'a str>,
    /// MQTT's password.
    pub password: Option<&'a [u8]>,
    /// The certificate of its TLS connection; that it has the key is proven.
    pub certificate: Option<Fingerprint>,
    /// Where it comes from.
    pub address: IpAddr,
}

/// Checks logins against the registry.
pub struct Login {
    access: Arc<Access>,
    key: [u8; 32],
    /// A device's last good password; as many as there are devices.
    remembered: Mutex<HashMap<DeviceId, blake3::Hash>>,
    throttle: Mutex<Throttle>,
    turns: Arc<Semaphore>,
    /// Threads of their own, as many as there are turns: each thread that ever hashed keeps its 19 MiB, and the blocking
    /// threads of tokio are many.
    hashing: rayon::ThreadPool,
}

impl Login {
    /// Logins to this registry.
    ///
    /// # Errors
    /// When the operating system has no random numbers, or no threads.
    pub fn new(access: Arc<Access>) -> io::Result<Self> {
        let mut key = [0; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Half of the cores, so that queries are answered while a thousand devices log in.
        let turns = (cores / 2).clamp(1, HASHES_AT_ONCE_MAX);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(turns);
        let pool = pool.thread_name(|number| format!("password-{number}"));
        // Whoever waits for the answer sees that there is none.
        let pool = pool.panic_handler(|_| ());
        Ok(Self {
            access,
            key,
            remembered: Mutex::default(),
            throttle: Mutex::default(),
            turns: Arc::new(Semaphore::new(turns)),
            hashing: pool.build().map_err(io::Error::other)?,
        })
    }

    /// Who this is, and how it proved that; `None` where there is no registry, and nobody has to.
    ///
    /// # Errors
    /// Why it is not let in.
    pub async fn check(&self, attempt: Attempt<'_>) -> Result<Option<Credential>, Refusal> {
        let Some(registry) = self.access.registry() else { return Ok(None) };
        let id = DeviceId::new(attempt.client_id).map_err(|_| Refusal::NoDeviceName)?;
        if attempt.username.is_some_and(|name| name != attempt.client_id) {
            return Err(Refusal::OtherName);
        }
        if let Some(fingerprint) = attempt.certificate {
            // A certificate says who its owner is, and a password beside it does not make it somebody else's.
            if registry.owner(&fingerprint) != Some(&id) {
                return Err(Refusal::OtherCertificate);
            }
            let credential = Credential::Certificate(fingerprint);
            registry.allows(&id, &credential, Timestamp::now())?;
            return Ok(Some(credential));
        }
        let (Some(_), Some(password)) = (attempt.username, attempt.password) else {
            return Err(Refusal::NoCredentials);
        };
        let device = registry.device(&id);
        let Some(hash) = device.and_then(|device| device.password.clone()) else {
            drop(self.wait_your_turn(attempt.address, &id).await?);
            lock(&self.throttle).failed(attempt.address, &id, Instant::now());
            return Err(if device.is_some() { Refusal::WrongPassword } else { Refusal::UnknownDevice });
        };
        self.check_password(attempt.address, &id, password, &hash).await?;
        let credential = Credential::Password(hash);
        // The registry of now: it may have changed while the password was checked.
        let registry = self.access.registry().unwrap_or(registry);
        registry.allows(&id, &credential, Timestamp::now())?;
        Ok(Some(credential))
    }

    async fn check_password(
        &self,
        address: IpAddr,
        id: &DeviceId,
        password: &[u8],
        hash: &str,
    ) -> Result<(), Refusal> {
        let print = self.print(id, password, hash);
        if lock(&self.remembered).get(id) == Some(&print) {
            return Ok(());
        }
        let turn = self.wait_your_turn(address, id).await?;
        let (kept, password) = (hash.to_owned(), password.to_owned());
        let (tell, checked) = oneshot::channel();
        // The turn goes along, so that no more is hashed than there are turns when whoever asked has gone meanwhile.
        self.hashing.spawn(move || {
            let _ = tell.send((password::verify(&password, &kept), turn));
        });
        let (is_right, turn) = checked.await.map_or((false, None), |(is_right, turn)| (is_right, Some(turn)));
        // Counted before the next one has its turn, so that many guesses at once gain nothing.
        if is_right {
            lock(&self.throttle).succeeded(address, id);
            lock(&self.remembered).insert(id.clone(), print);
        } else {
            lock(&self.throttle).failed(address, id, Instant::now());
        }
        drop(turn);
        if is_right { Ok(()) } else { Err(Refusal::WrongPassword) }
    }

    /// A turn at the hash, unless this client has failed too often, also while it waited.
    async fn wait_your_turn(&self, address: IpAddr, id: &DeviceId) -> Result<OwnedSemaphorePermit, Refusal> {
        let allowed = || {
            let allowed = lock(&self.throttle).allows(address, id, Instant::now());
            if allowed { Ok(()) } else { Err(Refusal::TooManyFailures) }
        };
        allowed()?;
        // Waiting clients are bounded by the broker's handshakes, and each by its time.
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| Refusal::Busy)?.map_err(|_| Refusal::Busy)?;
        allowed()?;
        Ok(turn)
    }

    /// With the hash in it, so that a password that was replaced is not remembered.
    fn print(&self, id: &DeviceId, password: &[u8], hash: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [id.as_str().as_bytes(), hash.as_bytes(), password] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::super::registry::Device;
    use super::super::registry::tests::{id, with_password};
    use super::*;

    fn login(folder: &std::path::Path) -> Login {
        file::edit(folder, |registry| {
            registry.add(id("a"), with_password(&password::hash("right").unwrap()))?;
            let certificate = Some(Fingerprint::of(b"b"));
            registry.add(id("b"), Device { password: None, certificate, ..with_password("") })
        })
        .unwrap();
        Login::new(Arc::new(Access::open(folder).unwrap())).unwrap()
    }

    fn attempt<'a>(client_id: &'a str, password: &'a str) -> Attempt<'a> {
        let address = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let password = Some(password.as_bytes());
        Attempt { client_id, username: Some(client_id), password, certificate: None, address }
    }

    #[tokio::test]
    async fn a_device_proves_itself_by_its_own_password_or_certificate() {
        let place = tempfile::tempdir().unwrap();
        let login = login(place.path());
        let certificate = |name: &'static str, der: &[u8]| Attempt {
            password: None,
            username: None,
            certificate: Some(Fingerprint::of(der)),
            ..attempt(name, "")
        };
        let cases = [
            (attempt("a", "right"), Ok("password")),
            (attempt("a", "right"), Ok("password")),
            (attempt("a", "wrong"), Err(Refusal::WrongPassword)),
            (attempt("a", ""), Err(Refusal::WrongPassword)),
            (attempt("c", "right"), Err(Refusal::UnknownDevice)),
            (attempt("a/b", "right"), Err(Refusal::NoDeviceName)),
            (attempt("b", "right"), Err(Refusal::WrongPassword)),
            (Attempt { username: Some("b"), ..attempt("a", "right") }, Err(Refusal::OtherName)),
            (Attempt { username: None, ..attempt("a", "right") }, Err(Refusal::NoCredentials)),
            (Attempt { password: None, ..attempt("a", "right") }, Err(Refusal::NoCredentials)),
            (certificate("b", b"b"), Ok("certificate")),
            (certificate("b", b"x"), Err(Refusal::OtherCertificate)),
            (certificate("a", b"b"), Err(Refusal::OtherCertificate)),
            (
                Attempt { certificate: Some(Fingerprint::of(b"b")), ..attempt("a", "right") },
                Err(Refusal::OtherCertificate),
            ),
        ];
        for (number, (attempt, expected)) in cases.into_iter().enumerate() {
            let found = login.check(attempt).await.map(|credential| credential.unwrap().kind());
            assert_eq!(found, expected, "case {number}");
        }
    }

    #[tokio::test]
    async fn guessing_is_slowed_down_and_the_device_itself_is_not() {
        let place = tempfile::tempdir().unwrap();
        let login = login(place.path());
        login.check(attempt("a", "right")).await.unwrap();
        let guesses = (0..12).map(|number| format!("guess {number}")).collect::<Vec<_>>();
        let mut refused = Vec::new();
        for guess in &guesses {
            refused.push(login.check(attempt("a", guess)).await.unwrap_err());
        }
        let looked_at = refused.iter().filter(|refusal| **refusal == Refusal::WrongPassword).count();
        assert!((4..=5).contains(&looked_at), "{refused:?}");
        assert_eq!(refused.last(), Some(&Refusal::TooManyFailures));
        login.check(attempt("a", "right")).await.expect("it is remembered");
    }

    #[tokio::test]
    async fn a_replaced_password_is_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let login = login(place.path());
        login.check(attempt("a", "right")).await.unwrap();
        file::edit(place.path(), |registry| {
            registry.remove(&id("a"))?;
            registry.add(id("a"), with_password(&password::hash("new").unwrap()))
        })
        .unwrap();
        assert!(login.access.refresh());
        assert_eq!(login.check(attempt("a", "right")).await, Err(Refusal::WrongPassword));
        login.check(attempt("a", "new")).await.unwrap();
    }

    #[tokio::test]
    async fn without_a_registry_nobody_proves_anything() {
        let place = tempfile::tempdir().unwrap();
        let login = Login::new(Arc::new(Access::open(place.path()).unwrap())).unwrap();
        assert_eq!(login.check(attempt("anybody at all", "")).await, Ok(None));
    }
}
