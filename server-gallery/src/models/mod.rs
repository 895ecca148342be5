//! Roll-outs of query networks: from an operator's file to the devices of a group.
//!
//! `glimpse-gallery models push` tests a network, signs a manifest of it ([`key`]) and puts both into the gallery's
//! folder ([`folder`]); a server that runs finds them there and offers them to the devices that they are for
//! ([`courier`]). The messages are [`glimpse_protocol::model`]'s.
//!
//! A server needs no key and keeps nothing of a device: what a device runs stands in its status, and it asks for the
//! chunks that it lacks. So any server of a gallery serves any device, and what nobody needs to know is not there to
//! be stolen: a server that is broken into can hold a network back, or give one that was signed for some devices to
//! others of the space, and cannot give devices one that was never signed.

use std::fmt;
use std::str::FromStr;

use glimpse_protocol::{DeviceId, ModelId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::access::registry::Timestamp;

pub mod courier;
pub mod folder;
pub mod key;

/// The folder of roll-outs in a gallery's folder.
pub const FOLDER: &str = "models";

/// Which devices a roll-out is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every device.
    All,
    /// Those that the registry has in this group.
    Group(String),
    /// One.
    Device(DeviceId),
}

impl Target {
    /// Whether a device, of this group, is one of them.
    pub fn is_for(&self, device: &DeviceId, group: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Group(name) => group == Some(name),
            Self::Device(one) => one == device,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Device(device) => write!(f, "device {device}"),
        }
    }
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected `all`, `group NAME` or `device NAME`";
        match text.split_once(' ') {
            None if text == "all" => Ok(Self::All),
            // A group is named as a device is.
            Some(("group", name)) => {
                DeviceId::new(name).map(|_| Self::Group(name.to_owned())).map_err(|_| wrong)
            }
            Some(("device", name)) => DeviceId::new(name).map(Self::Device).map_err(|_| wrong),
            _ => Err(wrong),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A network and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Grows from one to the next: the manifest's.
    pub serial: u64,
    /// The network.
    pub model: ModelId,
    /// The name of the file that it was, for people.
    pub name: String,
    /// Whom it is for.
    pub to: Target,
    /// When it was begun.
    pub created: Timestamp,
    /// When it was stopped: it is not offered any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Timestamp>,
}

/// How far a roll-out has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Which one.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// So many devices failed that it is not offered to further ones.
    pub halted: bool,
    /// Devices that it is for, as far as they were heard of, by what became of it.
    pub devices: Counts,
}

/// Devices by what became of a roll-out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Not yet: offline, or others come first.
    pub waiting: u32,
    /// It comes in.
    pub receiving: u32,
    /// It runs, and has not proved itself.
    pub trial: u32,
    /// It runs.
    pub done: u32,
    /// The device could not use it, and says why.
    pub failed: u32,
    /// The device takes no networks, or took a later one up.
    pub unable: u32,
}

impl Counts {
    /// Each with its word.
    pub const fn named(&self) -> [(&'static str, u32); 6] {
        [
            ("waiting", self.waiting),
            ("receiving", self.receiving),
            ("trial", self.trial),
            ("done", self.done),
            ("failed", self.failed),
            ("unable", self.unable),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_come_back_from_their_text_and_know_their_devices() {
        let id = |name| DeviceId::new(name).unwrap();
        for (text, own, other) in
            [("all", true, true), ("group hall", true, false), ("device cam-1", true, false)]
        {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
            assert_eq!(target.is_for(&id("cam-1"), Some("hall")), own, "{text}");
            assert_eq!(target.is_for(&id("cam-2"), Some("door")), other, "{text}");
        }
        assert!(!"group hall".parse::<Target>().unwrap().is_for(&id("cam-1"), None));
        for wrong in ["", "every", "group", "group ", "group two words", "device a/b", "ALL"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
