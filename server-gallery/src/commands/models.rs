//! `models`: query networks for the devices.

use std::path::PathBuf;

use anyhow::bail;
use clap::{ArgGroup, Args, Subcommand};
use glimpse_protocol::{DeviceId, ModelId};

use super::{GalleryFolder, write_line};
use crate::access::registry::Registry;
use crate::access::{Audit, Event, file};
use crate::models::folder::Folder;
use crate::models::key::{self, OperatorKey};
use crate::models::{Rollout, Target};
use crate::store::Reader;

/// What can be done with networks for devices.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  glimpse-gallery models key --gallery gallery
  glimpse-gallery models push query.onnx --gallery gallery --to entrance
  glimpse-gallery models push query.onnx --gallery gallery --to-device door-1
  glimpse-gallery models list --gallery gallery
  glimpse-gallery models stop 1795000000000 --gallery gallery

A device takes networks where its device.toml has `state`, a folder for them, and `model_key`, the key that `models key`
prints. It checks signature and space, fetches the network, tests it, runs it on trial until the server has answered a
query with it, and goes back to the one before where that fails. A running server begins and stops roll-outs within a
second; the console shows how far they have come.")]
pub enum ModelsCommand {
    /// Print the key that devices need to take networks from here; makes it where there is none
    Key(KeyArgs),
    /// Roll a query network out to devices; it takes the place of an earlier roll-out to the same devices
    Push(PushArgs),
    /// Show the roll-outs: serial number, network, file, whom it is for, since when, and whether it was stopped
    List(ListArgs),
    /// Stop a roll-out: devices that have not got the network yet do not get it
    Stop(StopArgs),
}

/// Where the gallery, and the key of networks, are.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    folder: GalleryFolder,
    /// Folder of the registry, where the server is configured with another than the gallery's `access`
    #[arg(long, env = "GLIMPSE_ACCESS", value_name = "DIR")]
    access: Option<PathBuf>,
}

impl Place {
    fn access(&self) -> PathBuf {
        self.access.clone().unwrap_or_else(|| self.folder.gallery.join("access"))
    }

    fn rollouts(&self) -> Folder {
        Folder::of_gallery(&self.folder.gallery)
    }

    /// A folder that is no gallery is a mistake, and nothing is made in it.
    fn reader(&self) -> anyhow::Result<Reader> {
        Ok(Reader::open(&self.folder.gallery)?)
    }
}

/// Which key.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(flatten)]
    place: Place,
    /// The key's file, where it is kept elsewhere, as on a stick [default: model.key in the folder `access`]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl KeyArgs {
    fn path(&self) -> PathBuf {
        self.key.clone().unwrap_or_else(|| self.place.access().join(key::FILE))
    }
}

/// Flags of `models push`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whom").args(["to", "to_device", "to_all"]).required(true))]
pub struct PushArgs {
    /// The query network, an ONNX file of glimpse-trainer
    #[arg(value_name = "ONNX")]
    network: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    /// The devices of this group (`devices add --group`)
    #[arg(long, value_name = "GROUP")]
    to: Option<String>,
    /// One device
    #[arg(long, value_name = "NAME")]
    to_device: Option<DeviceId>,
    /// Every device
    #[arg(long)]
    to_all: bool,
}

/// Flags of `models list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `models stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The roll-out's serial number, as `models list` shows it
    #[arg(value_name = "SERIAL")]
    serial: u64,
    #[command(flatten)]
    place: Place,
}

impl ModelsCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Key(args) => {
                args.place.reader()?;
                let (key, made) = OperatorKey::load_or_make(&args.path())?;
                if made {
                    tracing::info!(
                        file = %args.path().display(),
                        "made a key: who has this file can give every device another network, so keep it, and a copy, safe"
                    );
                }
                write_line(format_args!("{}", key.public()))
            }
            Self::Push(args) => args.run(),
            Self::List(ListArgs { place, json }) => {
                place.reader()?;
                let rollouts = place.rollouts().list()?;
                if json {
                    return write_line(format_args!("{}", serde_json::to_string(&rollouts)?));
                }
                rollouts.iter().try_for_each(|rollout| {
                    let Rollout { serial, model, name, to, created, stopped } = rollout;
                    let stopped = stopped.map_or_else(|| "going on".to_owned(), |at| format!("stopped {at}"));
                    let model = short(model);
                    write_line(format_args!("{serial}\t{model}\t{name}\t{to}\t{created}\t{stopped}"))
                })
            }
            Self::Stop(StopArgs { serial, place }) => {
                place.reader()?;
                let stopped = place.rollouts().stop(serial)?;
                record(&place, "stop", &stopped);
                write_line(format_args!("stopped {serial} ({} to {})", stopped.name, stopped.to))
            }
        }
    }
}

/// Enough of a network's id to tell it from others.
fn short(model: &ModelId) -> String {
    model.to_string().chars().take(8).collect()
}

fn record(place: &Place, action: &str, rollout: &Rollout) {
    let (model, to) = (rollout.model.to_string(), rollout.to.to_string());
    Audit::new(&place.access()).record(Event::Model {
        action,
        serial: rollout.serial,
        model: &model,
        to: &to,
    });
}

impl PushArgs {
    fn run(self) -> anyhow::Result<()> {
        let place = &self.key.place;
        let meta = place.reader()?.now()?.meta();
        let to = self.target()?;
        let path = self.key.path();
        anyhow::ensure!(
            path.exists(),
            "there is no key in {}: `glimpse-gallery models key` makes one and prints what devices need to know of it",
            path.display()
        );
        let key = OperatorKey::load(&path)?;
        let rollout = place.rollouts().push(&self.network, meta.space, to, &key)?;
        record(place, "push", &rollout);
        write_line(format_args!(
            "rolling out {} ({}) to {}, serial {}",
            rollout.name,
            short(&rollout.model),
            rollout.to,
            rollout.serial
        ))
    }

    /// A group or a device that nobody knows is a mistake where there is a registry.
    fn target(&self) -> anyhow::Result<Target> {
        let registry = file::load(&self.key.place.access())?;
        let known = |is_it: &dyn Fn(&Registry) -> bool| registry.as_ref().is_some_and(is_it);
        match (&self.to, &self.to_device) {
            (Some(group), _) => {
                let group: Target = format!("group {group}").parse().map_err(anyhow::Error::msg)?;
                let has = |registry: &Registry| {
                    registry.devices().any(|(id, device)| group.is_for(id, device.group.as_deref()))
                };
                if !known(&has) {
                    bail!(
                        "no device is in the {group}: `glimpse-gallery devices list` shows the groups that are"
                    );
                }
                Ok(group)
            }
            (None, Some(device)) => {
                if registry.is_some() && !known(&|registry| registry.device(device).is_some()) {
                    bail!("there is no device {device}: `glimpse-gallery devices list` shows those that are");
                }
                Ok(Target::Device(device.clone()))
            }
            (None, None) => Ok(Target::All),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use clap::{CommandFactory as _, Parser};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        _command: Command,
    }

    #[test]
    fn a_push_names_its_devices_in_one_way() {
        let parse = |words: &str| Cli::command().try_get_matches_from(words.split(' '));
        for right in ["--to hall", "--to-device cam-1", "--to-all"] {
            parse(&format!("g models push q.onnx --gallery g {right}")).unwrap();
        }
        for wrong in ["--to hall --to-all", "--to-device a/b", "--to-device cam-1 --to hall"] {
            assert!(parse(&format!("g models push q.onnx --gallery g {wrong}")).is_err(), "{wrong}");
        }
        assert!(parse("g models push q.onnx --gallery g").is_err());
        assert!(parse("g models stop all --gallery g").is_err());
    }
}
