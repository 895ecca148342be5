//! The registry of devices: who they are, what proves it, and until when.
//!
//! Pure: text in, text out, and the time is an argument. A device proves itself by a password, kept as an Argon2id
//! hash, or by a certificate, known by the SHA-256 fingerprint of its DER form; it may have both, and either will do.
//! A revoked device stays listed, so that its name is not given away by accident and the list tells what happened.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glimpse_protocol::{DeviceId, IdError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::password;

/// Devices that a registry holds, as many as the broker has clients.
pub const DEVICES_MAX: usize = 10_000;

/// The longest file that is read: some 400 bytes a device.
pub const REGISTRY_BYTES_MAX: u64 = 8 << 20;

/// The longest hash that is kept; ours have 97 characters.
const HASH_BYTES_MAX: usize = 256;

/// The version of the file.
const VERSION: u32 = 1;

const HEAD: &str = "# The devices of a Glimpse gallery server. `glimpse-gallery devices add|revoke|remove|list` \
                    changes and shows it; keep it to yourself.\n";

/// A second in UTC, written as RFC 3339 (`2026-03-01T12:00:00Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last second that RFC 3339 writes with four digits of year.
    const MAX: u64 = 253_402_300_799;

    /// The current second.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(Self::MAX))
    }

    /// So much later, at most the end of the year 9999.
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_secs()).min(Self::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = humantime::parse_rfc3339(text)?;
        // The parser takes nothing before 1970 and nothing after 9999.
        Ok(Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(Self::MAX)))
    }
}

/// The SHA-256 hash of a certificate's DER form, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate's DER form.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NoFingerprint);
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(NoFingerprint);
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Timestamp, Fingerprint);

/// What is known of one device.
#[derive(Clone, PartialEq, Eq)]
pub struct Device {
    /// Hash of its password, as [`password::hash`] makes it.
    pub password: Option<String>,
    /// Its certificate.
    pub certificate: Option<Fingerprint>,
    /// The group that model roll-outs name; letters, digits, `-`, `_` and `.`, as a device's name.
    pub group: Option<String>,
    /// When it was added.
    pub created: Timestamp,
    /// From when on its credentials are no longer good.
    pub expires: Option<Timestamp>,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the hash: whoever has it can try passwords at leisure.
        let mut shown = f.debug_struct("Device");
        shown.field("has_password", &self.password.is_some()).field("certificate", &self.certificate);
        shown.field("group", &self.group).field("created", &self.created);
        shown.field("expires", &self.expires).field("revoked", &self.revoked).finish()
    }
}

impl Device {
    /// Whether its credentials are good at a time.
    ///
    /// # Errors
    /// [`Refusal::Revoked`] and [`Refusal::Expired`].
    pub fn check(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.revoked.is_some() {
            return Err(Refusal::Revoked);
        }
        if self.expires.is_some_and(|expires| expires <= now) { Err(Refusal::Expired) } else { Ok(()) }
    }
}

/// What a client proved itself with.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// The password with this hash.
    Password(String),
    /// The key of the certificate with this fingerprint.
    Certificate(Fingerprint),
}

impl Credential {
    /// Its kind, for logs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Password(_) => "password",
            Self::Certificate(_) => "certificate",
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// Why a client is not let in, or not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// No such device.
    #[error("unknown device")]
    UnknownDevice,
    /// The client id is no device name.
    #[error("the client id is no device name")]
    NoDeviceName,
    /// The user name is not the client id.
    #[error("the user name is not the client id")]
    OtherName,
    /// Neither password nor certificate.
    #[error("no credentials")]
    NoCredentials,
    /// Not the device's password.
    #[error("wrong password")]
    WrongPassword,
    /// The certificate is nobody's, or of another device.
    #[error("the certificate is not this device's")]
    OtherCertificate,
    /// Past its time.
    #[error("expired")]
    Expired,
    /// Revoked by the administrator.
    #[error("revoked")]
    Revoked,
    /// The credential that it came with is no longer the device's.
    #[error("the credential was replaced")]
    Replaced,
    /// Too many wrong passwords, from this address or for this device from it.
    #[error("too many failed attempts")]
    TooManyFailures,
    /// More clients ask at once than are checked in time.
    #[error("too many logins at once")]
    Busy,
    /// The last will is for a topic that is not the device's.
    #[error("a last will for a foreign topic")]
    ForeignWill,
    /// Another program of this machine at the listener behind the door, or a client that left before it was asked.
    #[error("not through the door, or gone already")]
    NotThroughTheDoor,
}

/// Why text is no registry, or a change to one is not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// No TOML, or fields that do not belong there.
    #[error("{0}")]
    Toml(String),
    /// Of a later program.
    #[error("it has version {0}, and this program reads {VERSION}: take a newer glimpse-gallery")]
    Version(u32),
    /// A name that is none.
    #[error("device {name:?}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: IdError,
    },
    /// A group that is none.
    #[error("device {device}: its group {group:?} must have 1 to 64 letters, digits, '-', '_' or '.'")]
    Group {
        /// The device.
        device: DeviceId,
        /// The group.
        group: String,
    },
    /// A password that is not a hash.
    #[error("device {0}: its password is no Argon2id hash")]
    NoHash(DeviceId),
    /// Nothing to prove itself with.
    #[error("device {0} has neither password nor certificate")]
    NoCredential(DeviceId),
    /// A name that is taken.
    #[error("there is a device {0} already: --replace gives it new credentials")]
    Taken(DeviceId),
    /// A certificate that is taken.
    #[error("the certificate of {device} is that of {other} too: each device needs its own")]
    CertificateTaken {
        /// The device.
        device: DeviceId,
        /// Who has it already.
        other: DeviceId,
    },
    /// A name that is not there.
    #[error("there is no device {0}: `glimpse-gallery devices list` shows those that are")]
    Unknown(DeviceId),
    /// Too many.
    #[error("a registry holds {DEVICES_MAX} devices at most: remove those that are gone")]
    Full,
}

/// All devices, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    devices: BTreeMap<DeviceId, Device>,
    by_certificate: HashMap<Fingerprint, DeviceId>,
}

impl Registry {
    /// Reads the file's text.
    ///
    /// # Errors
    /// The first thing that is wrong: no half of a registry is ever used.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        let file: File = toml::from_str(text).map_err(|error| RegistryError::Toml(without_text(&error)))?;
        if file.version != VERSION {
            return Err(RegistryError::Version(file.version));
        }
        let mut registry = Self::default();
        for Entry { name, password, certificate, group, created, expires, revoked } in file.device {
            let id =
                DeviceId::new(&name).map_err(|reason| RegistryError::Name { name: name.clone(), reason })?;
            let device = Device { password, certificate, group, created, expires, revoked };
            registry.add(id, device)?;
        }
        Ok(registry)
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let entry = |(id, device): (&DeviceId, &Device)| Entry {
            name: id.as_str().to_owned(),
            password: device.password.clone(),
            certificate: device.certificate,
            group: device.group.clone(),
            created: device.created,
            expires: device.expires,
            revoked: device.revoked,
        };
        let file = File { version: VERSION, device: self.devices.iter().map(entry).collect() };
        let text = toml::to_string(&file).expect("strings and numbers in tables are TOML");
        format!("{HEAD}\n{text}")
    }

    /// Adds a device.
    ///
    /// # Errors
    /// A name or certificate that is taken, a group that is none, no credential at all, or no room.
    pub fn add(&mut self, id: DeviceId, device: Device) -> Result<(), RegistryError> {
        if self.devices.contains_key(&id) {
            return Err(RegistryError::Taken(id));
        }
        if self.devices.len() >= DEVICES_MAX {
            return Err(RegistryError::Full);
        }
        check(&id, &device)?;
        if let Some(fingerprint) = device.certificate {
            if let Some(other) = self.by_certificate.get(&fingerprint) {
                return Err(RegistryError::CertificateTaken { device: id, other: other.clone() });
            }
            self.by_certificate.insert(fingerprint, id.clone());
        }
        self.devices.insert(id, device);
        Ok(())
    }

    /// Takes a device out of the list.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn remove(&mut self, id: &DeviceId) -> Result<Device, RegistryError> {
        let device = self.devices.remove(id).ok_or_else(|| RegistryError::Unknown(id.clone()))?;
        if let Some(fingerprint) = device.certificate {
            self.by_certificate.remove(&fingerprint);
        }
        Ok(device)
    }

    /// Marks a device as revoked; one that is keeps its time.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn revoke(&mut self, id: &DeviceId, now: Timestamp) -> Result<(), RegistryError> {
        let device = self.devices.get_mut(id).ok_or_else(|| RegistryError::Unknown(id.clone()))?;
        device.revoked.get_or_insert(now);
        Ok(())
    }

    /// What is known of a device.
    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// Whose certificate it is.
    pub fn owner(&self, fingerprint: &Fingerprint) -> Option<&DeviceId> {
        self.by_certificate.get(fingerprint)
    }

    /// All devices, in the order of their names.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = (&DeviceId, &Device)> {
        self.devices.iter()
    }

    /// Devices, revoked and expired ones too.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether nobody is listed.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Whether a device that came with a credential may stay.
    ///
    /// # Errors
    /// Why not: unknown, revoked, expired, or with another credential now.
    pub fn allows(&self, id: &DeviceId, credential: &Credential, now: Timestamp) -> Result<(), Refusal> {
        let device = self.devices.get(id).ok_or(Refusal::UnknownDevice)?;
        device.check(now)?;
        let is_current = match credential {
            Credential::Password(hash) => device.password.as_ref() == Some(hash),
            Credential::Certificate(fingerprint) => device.certificate == Some(*fingerprint),
        };
        if is_current { Ok(()) } else { Err(Refusal::Replaced) }
    }
}

fn check(id: &DeviceId, device: &Device) -> Result<(), RegistryError> {
    // A group is named on command lines and in topics, so it follows the rule of device names.
    if let Some(group) = device.group.as_ref().filter(|group| DeviceId::new(group).is_err()) {
        return Err(RegistryError::Group { device: id.clone(), group: group.clone() });
    }
    match &device.password {
        None if device.certificate.is_none() => Err(RegistryError::NoCredential(id.clone())),
        Some(hash) if hash.len() > HASH_BYTES_MAX || !password::is_hash(hash) => {
            Err(RegistryError::NoHash(id.clone()))
        }
        _ => Ok(()),
    }
}

/// What is wrong and where, but not the line itself: it may hold a hash.
fn without_text(error: &toml::de::Error) -> String {
    let place = error.span().map_or_else(String::new, |span| format!(" (at byte {})", span.start));
    format!("{}{place}", error.message())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    device: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    created: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<Timestamp>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HASH: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    pub(crate) fn id(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    pub(crate) fn with_password(hash: &str) -> Device {
        let created = "2026-01-01T00:00:00Z".parse().unwrap();
        let password = Some(hash.to_owned());
        Device { password, certificate: None, group: None, created, expires: None, revoked: None }
    }

    #[test]
    fn a_registry_comes_back_from_its_text() {
        let mut registry = Registry::default();
        registry.add(id("cam-2"), with_password(HASH)).unwrap();
        let certificate = Some(Fingerprint::of(b"der"));
        let group = Some("entrance".to_owned());
        let expires = Some("2027-06-30T12:00:00Z".parse().unwrap());
        registry
            .add(id("cam-1"), Device { password: None, certificate, group, expires, ..with_password("") })
            .unwrap();
        registry.revoke(&id("cam-2"), "2026-02-02T00:00:00Z".parse().unwrap()).unwrap();
        let text = registry.to_toml();
        assert!(text.starts_with("# ") && text.contains("revoked = \"2026-02-02T00:00:00Z\""), "{text}");
        assert_eq!(Registry::parse(&text).unwrap(), registry);
        assert_eq!(registry.owner(&Fingerprint::of(b"der")), Some(&id("cam-1")));
        assert_eq!(Registry::parse(&Registry::default().to_toml()).unwrap(), Registry::default());
    }

    #[test]
    fn what_is_no_registry_is_refused_as_a_whole() {
        let device =
            |more: &str| format!("version = 1\n[[device]]\ncreated = \"2026-01-01T00:00:00Z\"\n{more}");
        let certificate = format!("certificate = \"{}\"\n", "ab".repeat(32));
        for (text, expected) in [
            (String::new(), "missing field `version`"),
            ("version = 2".to_owned(), "version 2"),
            ("version = 1\n[[device".to_owned(), "at byte"),
            ("version = 1\nopen = true".to_owned(), "unknown field `open`"),
            (device("name = \"a\""), "neither password nor certificate"),
            (device("name = \"a b\"\ncertificate = \"00\""), "64 hexadecimal digits"),
            (device(&format!("name = \"a/b\"\n{certificate}")), "device \"a/b\""),
            (device(&format!("name = \"a\"\ngroup = \"\"\n{certificate}")), "its group \"\""),
            (device("name = \"a\"\npassword = \"open sesame\""), "no Argon2id hash"),
            (device(&format!("name = \"a\"\nexpires = \"soon\"\n{certificate}")), "expires"),
            (
                device(&format!(
                    "name = \"a\"\n{certificate}[[device]]\nname = \"b\"\ncreated = \"2026-01-01T00:00:00Z\"\n{certificate}"
                )),
                "is that of a too",
            ),
        ] {
            let error = Registry::parse(&text).map(|_| ()).unwrap_err().to_string();
            let is_told = error.contains(expected) || (expected == "expires" && error.contains("at byte"));
            assert!(is_told && !error.contains("sesame"), "{text}: {error}");
        }
    }

    #[test]
    fn a_credential_is_good_until_it_expires_is_revoked_or_is_replaced() {
        let (before, at): (Timestamp, Timestamp) =
            ("2026-05-31T23:59:59Z".parse().unwrap(), "2026-06-01T00:00:00Z".parse().unwrap());
        let mut registry = Registry::default();
        registry.add(id("a"), Device { expires: Some(at), ..with_password(HASH) }).unwrap();
        let credential = Credential::Password(HASH.to_owned());
        assert_eq!(registry.allows(&id("a"), &credential, before), Ok(()));
        assert_eq!(registry.allows(&id("a"), &credential, at), Err(Refusal::Expired));
        assert_eq!(registry.allows(&id("b"), &credential, before), Err(Refusal::UnknownDevice));
        let other = Credential::Certificate(Fingerprint::of(b""));
        assert_eq!(registry.allows(&id("a"), &other, before), Err(Refusal::Replaced));
        registry.revoke(&id("a"), before).unwrap();
        assert_eq!(registry.allows(&id("a"), &credential, before), Err(Refusal::Revoked));
        registry.remove(&id("a")).unwrap();
        assert_eq!(registry.remove(&id("a")), Err(RegistryError::Unknown(id("a"))));
    }

    #[test]
    fn hashes_are_never_shown() {
        let shown = format!("{:?} {:?}", with_password(HASH), Credential::Password(HASH.to_owned()));
        assert!(!shown.contains("argon2"), "{shown}");
    }

    #[test]
    fn times_are_bounded() {
        let last: Timestamp = "9999-12-31T23:59:59Z".parse().unwrap();
        assert_eq!(Timestamp::now().after(Duration::MAX), last);
        assert_eq!(last.to_string(), "9999-12-31T23:59:59Z");
        assert!(Timestamp::now() > "2025-01-01T00:00:00Z".parse().unwrap());
    }
}
