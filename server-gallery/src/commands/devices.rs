//! `devices`: who may connect.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args, Subcommand};
use glimpse_protocol::DeviceId;
use rand::TryRngCore as _;
use serde::Serialize;

use super::write_line;
use crate::access::file::{self, FileError};
use crate::access::registry::{Device, Fingerprint, RegistryError, Timestamp};
use crate::access::{Audit, Event, Registry, tls};
use crate::password;

/// What can be done with devices.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  (umask 077; glimpse-gallery devices add door-1 --gallery gallery --generate > door-1.password)
  glimpse-gallery devices add door-2 --gallery gallery --certificate door-2.pem --group entrance --expires 90d
  glimpse-gallery devices list --gallery gallery
  glimpse-gallery devices revoke door-1 --gallery gallery

A running server takes up each change within a second; a device that was revoked is disconnected.")]
pub enum DevicesCommand {
    /// Let a device connect
    Add(AddArgs),
    /// Disconnect a device and let it in no more; it stays listed
    Revoke(NameArgs),
    /// Take a device out of the list; it is disconnected, and its name is free
    Remove(NameArgs),
    /// Show the devices
    List(ListArgs),
}

/// Where the registry is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Folder of the gallery, whose folder `access` says who may connect
    #[arg(long, env = "GLIMPSE_GALLERY", value_name = "DIR", required_unless_present = "access")]
    gallery: Option<PathBuf>,
    /// That folder, where the server is configured with another
    #[arg(long, env = "GLIMPSE_ACCESS", value_name = "DIR")]
    access: Option<PathBuf>,
}

impl Place {
    pub(super) fn folder(&self) -> PathBuf {
        let of_gallery = || self.gallery.clone().unwrap_or_default().join("access");
        self.access.clone().unwrap_or_else(of_gallery)
    }

    /// The gallery that the folder is in; `None` where it is elsewhere.
    pub(super) fn gallery_beside(&self) -> Option<&Path> {
        self.gallery.as_deref().filter(|_| self.access.is_none())
    }

    #[cfg(test)]
    pub(super) fn of_gallery(gallery: &Path) -> Self {
        Self { gallery: Some(gallery.to_owned()), access: None }
    }
}

/// Flags of `devices add`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("password").multiple(false),
    after_help = "\
Examples:
  (umask 077; glimpse-gallery devices add door-1 --gallery gallery --generate > door-1.password)
  glimpse-gallery devices add door-1 --gallery gallery --password-file door-1.password --replace
  glimpse-gallery devices add door-2 --gallery gallery --certificate door-2.pem --expires 90d
  pass show door-3 | glimpse-gallery devices add door-3 --gallery gallery

Without --generate, --password-file or --certificate, the password is read from standard input: one line. No password is
ever given on the command line, where every process of the machine can read it."
)]
pub struct AddArgs {
    /// The device's name: its MQTT client id and user name
    #[arg(value_name = "NAME")]
    device: DeviceId,
    #[command(flatten)]
    place: Place,
    /// Group that roll-outs of models can name
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// File with the password in its one line
    #[arg(long, value_name = "FILE", group = "password")]
    password_file: Option<PathBuf>,
    /// Make a password of 160 random bits, and print it, this once
    #[arg(long, group = "password")]
    generate: bool,
    /// The device's certificate (PEM), for TLS; with a password beside it, either lets the device in
    #[arg(long, value_name = "PEM")]
    certificate: Option<PathBuf>,
    /// For how long its credentials are good, as 90d or 12h [default: until they are revoked]
    #[arg(long, value_name = "TIME", value_parser = life)]
    expires: Option<Duration>,
    /// Give a device that is there already these credentials, and no others; undoes a revocation
    #[arg(long)]
    replace: bool,
}

/// A device and where the registry is.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The device's name
    #[arg(value_name = "NAME")]
    device: DeviceId,
    #[command(flatten)]
    place: Place,
}

/// Flags of `devices list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl DevicesCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add(args) => args.run(),
            Self::Revoke(NameArgs { device, place }) => {
                let folder = place.folder();
                change(&folder, |registry| registry.revoke(&device, Timestamp::now()))?;
                Audit::new(&folder).record(Event::DeviceRevoked { device: device.as_str() });
                write_line(format_args!("revoked {device}"))
            }
            Self::Remove(NameArgs { device, place }) => {
                let folder = place.folder();
                let left = change(&folder, |registry| {
                    registry.remove(&device)?;
                    Ok(registry.len())
                })?;
                Audit::new(&folder).record(Event::DeviceRemoved { device: device.as_str() });
                write_line(format_args!("removed {device}"))?;
                if left == 0 {
                    tracing::warn!(
                        "no device is left: the server lets nobody in until one is added, or {} is deleted and it is \
                         started again",
                        folder.join(file::REGISTRY).display()
                    );
                }
                Ok(())
            }
            Self::List(args) => args.run(),
        }
    }
}

/// Changes a registry that is there: a name in a folder that has none is a mistake of the folder.
fn change<T>(
    folder: &Path,
    change: impl FnOnce(&mut Registry) -> Result<T, RegistryError>,
) -> anyhow::Result<T> {
    if file::load(folder)?.is_none() {
        bail!("there is no registry of devices in {}: is it the right folder?", folder.display());
    }
    Ok(file::edit(folder, change)?)
}

impl AddArgs {
    fn run(self) -> anyhow::Result<()> {
        if let Some(gallery) = self.place.gallery_beside()
            && !gallery.is_dir()
        {
            bail!(
                "there is no gallery {}: is it the right folder? `glimpse-gallery ingest` makes a gallery",
                gallery.display()
            );
        }
        let certificate = self.certificate.as_deref().map(tls::fingerprint).transpose()?;
        let password = self.password()?;
        let hash = password.as_deref().map(password::hash).transpose()?;
        let now = Timestamp::now();
        let new = Device {
            password: hash,
            certificate,
            group: self.group,
            created: now,
            expires: self.expires.map(|life| now.after(life)),
            revoked: None,
        };
        let (id, folder, replace) = (self.device, self.place.folder(), self.replace);
        let replaced = file::edit(&folder, |registry| add(registry, &id, new, replace)).map_err(named)?;
        Audit::new(&folder).record(Event::DeviceAdded { device: id.as_str(), replaced });
        match password.filter(|_| self.generate) {
            // The password alone, so that it can be sent into a file.
            Some(password) => write_line(format_args!("{password}")),
            None => write_line(format_args!("{} {id}", if replaced { "replaced" } else { "added" })),
        }
    }

    fn password(&self) -> anyhow::Result<Option<String>> {
        if self.generate {
            return Ok(Some(generate()?));
        }
        if let Some(path) = &self.password_file {
            return Ok(Some(file::read_secret(path)?));
        }
        if self.certificate.is_some() {
            return Ok(None);
        }
        if io::stdin().is_terminal() {
            // A terminal would show what is typed.
            bail!(
                "no credentials: give --generate, --password-file or --certificate, or the password by a pipe"
            );
        }
        let read =
            file::password_of(io::stdin().lock()).context("cannot read the password from standard input")?;
        let limit = password::PASSWORD_BYTES_MAX;
        Ok(Some(read.with_context(|| {
            format!("standard input must be one line with a password of 1 to {limit} bytes")
        })?))
    }
}

/// Returns whether the device was there before; then it keeps its group and its age.
fn add(
    registry: &mut Registry,
    id: &DeviceId,
    mut new: Device,
    replace: bool,
) -> Result<bool, RegistryError> {
    let Some(old) = registry.device(id).filter(|_| replace).cloned() else {
        return registry.add(id.clone(), new).map(|()| false);
    };
    new.group = new.group.or(old.group);
    new.created = old.created;
    registry.remove(id)?;
    registry.add(id.clone(), new).map(|()| true)
}

fn named(error: FileError) -> anyhow::Error {
    anyhow::Error::from(error).context("the device was not added")
}

/// 160 random bits in 32 characters that are not taken for one another (Crockford's base 32).
fn generate() -> anyhow::Result<String> {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bytes = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).context("the operating system has no random numbers")?;
    Ok(bytes.iter().map(|byte| char::from(DIGITS[usize::from(byte & 31)])).collect())
}

fn life(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(life) if life.as_secs() > 0 => Ok(life),
        _ => Err("expected a time, as 90d, 12h or 1y".to_owned()),
    }
}

#[derive(Serialize)]
struct Row<'a> {
    device: &'a str,
    state: &'static str,
    credentials: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Fingerprint>,
    group: Option<&'a str>,
    created: Timestamp,
    expires: Option<Timestamp>,
    revoked: Option<Timestamp>,
}

impl<'a> Row<'a> {
    fn of(id: &'a DeviceId, device: &'a Device, now: Timestamp) -> Self {
        let state = match device.check(now) {
            Ok(()) => "good",
            Err(crate::access::Refusal::Revoked) => "revoked",
            Err(_) => "expired",
        };
        let password = device.password.as_ref().map(|_| "password");
        let certificate = device.certificate.map(|_| "certificate");
        Self {
            device: id.as_str(),
            state,
            credentials: password.into_iter().chain(certificate).collect(),
            certificate: device.certificate,
            group: device.group.as_deref(),
            created: device.created,
            expires: device.expires,
            revoked: device.revoked,
        }
    }
}

impl ListArgs {
    fn run(self) -> anyhow::Result<()> {
        let folder = self.place.folder();
        let registry = file::load(&folder)?.unwrap_or_default();
        let now = Timestamp::now();
        let rows: Vec<Row<'_>> = registry.devices().map(|(id, device)| Row::of(id, device, now)).collect();
        if self.json {
            return write_line(format_args!("{}", serde_json::to_string(&rows)?));
        }
        let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
        for row in rows {
            write_line(format_args!(
                "{}\t{}\t{}\t{}\t{}\t{}",
                row.device,
                row.state,
                row.credentials.join("+"),
                row.group.unwrap_or("-"),
                row.created,
                time(row.expires)
            ))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
        let parse = |words: &str| Cli::command().try_get_matches_from(words.split(' '));
        let added = parse("g devices add cam-1 --gallery g --generate --expires 90d --group hall").unwrap();
        let Command::Devices(DevicesCommand::Add(args)) = Cli::from_arg_matches(&added).unwrap().command
        else {
            panic!("devices add")
        };
        assert_eq!(args.expires, Some(Duration::from_hours(90 * 24)));
        for wrong in [
            "g devices add cam/1 --gallery g --generate",
            "g devices add cam-1 --generate",
            "g devices add cam-1 --gallery g --generate --password-file p",
            "g devices add cam-1 --gallery g --password secret",
            "g devices add cam-1 --gallery g --expires soon",
            "g devices add cam-1 --gallery g --expires 0s",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn generated_passwords_are_long_and_different() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert!(a.len() == 32 && a != b && a.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    #[test]
    fn replacing_keeps_group_and_age_and_undoes_a_revocation() {
        use crate::access::registry::tests::{id, with_password};
        let (first, second) = (password::hash("first").unwrap(), password::hash("second").unwrap());
        let mut registry = Registry::default();
        let device = Device { group: Some("hall".to_owned()), ..with_password(&first) };
        assert_eq!(add(&mut registry, &id("a"), device.clone(), false), Ok(false));
        registry.revoke(&id("a"), Timestamp::now()).unwrap();
        let new = Device { created: Timestamp::now(), ..with_password(&second) };
        assert_eq!(add(&mut registry, &id("a"), new.clone(), false), Err(RegistryError::Taken(id("a"))));
        assert_eq!(add(&mut registry, &id("a"), new, true), Ok(true));
        assert_eq!(registry.device(&id("a")), Some(&Device { password: Some(second), ..device }));
    }
}
