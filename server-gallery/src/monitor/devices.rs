//! The devices that were heard of: what they say of themselves, and what they asked.

use std::collections::HashMap;

use glimpse_protocol::{DeviceId, DeviceStatus, ErrorCode, ModelId, SpaceId, Update};
use serde::Serialize;

/// Devices that are remembered. When one more comes, the eighth that has been silent for longest is forgotten.
pub const DEVICES_MAX: usize = 16_384;

/// What is known of a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Device {
    /// Whether it is connected, where it says so.
    pub online: Option<bool>,
    /// When it last asked or said something, Unix time in milliseconds; `None` where only a retained message is known.
    pub seen_at_ms: Option<u64>,
    /// Version of its program.
    pub version: Option<String>,
    /// The space of its query network.
    pub space: Option<SpaceId>,
    /// Queries that wait in its outbox.
    pub outbox: Option<u32>,
    /// Its query network, where it tells.
    pub model: Option<ModelId>,
    /// What it says of networks that it was offered; `None`: it takes none, or said nothing.
    pub update: Option<Update>,
    /// Queries that it asked since the server started.
    pub queries: u64,
    /// Those of them that were refused.
    pub refused: u64,
    /// The last refusal: when, and why.
    pub last_error: Option<LastError>,
}

/// Why a query of a device was refused, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Why.
    pub code: ErrorCode,
}

/// All devices.
#[derive(Debug, Default)]
pub(super) struct Devices {
    known: HashMap<DeviceId, Device>,
}

impl Devices {
    pub(super) fn asked(&mut self, device: &DeviceId, at_ms: u64, refused: Option<ErrorCode>) {
        let entry = self.entry(device);
        entry.seen_at_ms = Some(at_ms);
        entry.queries += 1;
        if let Some(code) = refused {
            entry.refused += 1;
            entry.last_error = Some(LastError { at_ms, code });
        }
    }

    /// A retained status was said at a time that nobody knows, and an offline one by the broker.
    pub(super) fn said(&mut self, device: &DeviceId, at_ms: u64, status: &DeviceStatus, retained: bool) {
        let entry = self.entry(device);
        entry.online = Some(status.online);
        entry.version = Some(status.version.as_str().to_owned());
        entry.space = Some(status.space);
        entry.outbox = Some(status.outbox);
        // A last will is as old as the connection: what the device has said since is newer.
        if status.online || entry.model.is_none() {
            entry.model = status.model;
            entry.update.clone_from(&status.update);
        }
        if status.online && !retained {
            entry.seen_at_ms = Some(at_ms);
        }
    }

    pub(super) fn forget(&mut self, device: &DeviceId) {
        self.known.remove(device);
    }

    pub(super) fn get(&self, device: &DeviceId) -> Option<&Device> {
        self.known.get(device)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&DeviceId, &Device)> {
        self.known.iter()
    }

    fn entry(&mut self, device: &DeviceId) -> &mut Device {
        if self.known.len() >= DEVICES_MAX && !self.known.contains_key(device) {
            self.forget_the_silent();
        }
        self.known.entry(device.clone()).or_default()
    }

    fn forget_the_silent(&mut self) {
        // Who is online is kept before who is not, and then who spoke last.
        let rank = |device: &Device| (device.online == Some(true), device.seen_at_ms);
        let mut ranks: Vec<_> = self.known.values().map(rank).collect();
        let (_, last, _) = ranks.select_nth_unstable(DEVICES_MAX / 8);
        let last = *last;
        let mut left = DEVICES_MAX / 8;
        self.known.retain(|_, device| {
            let goes = left > 0 && rank(device) <= last;
            left -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> DeviceId {
        DeviceId::new(&format!("cam-{number}")).unwrap()
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_silent() {
        let mut devices = Devices::default();
        for number in 0..=DEVICES_MAX {
            devices.asked(&id(number), number as u64, None);
        }
        assert_eq!(devices.all().count(), DEVICES_MAX - DEVICES_MAX / 8 + 1);
        assert!(devices.get(&id(0)).is_none() && devices.get(&id(DEVICES_MAX - 1)).is_some());
    }

    #[test]
    fn a_retained_status_tells_no_time() {
        let mut devices = Devices::default();
        let version = "0.1.0".try_into().unwrap();
        let (model, update) = (Some(ModelId::from_bytes([7; 32])), Some(Update::failed(3, "no room")));
        let space = SpaceId::from_bytes([1; 16]);
        let status = DeviceStatus { online: true, version, space, outbox: 2, model, update: update.clone() };
        devices.said(&id(1), 5, &status, true);
        assert_eq!(devices.get(&id(1)).unwrap().seen_at_ms, None);
        devices.said(&id(1), 6, &status, false);
        devices.said(&id(1), 9, &DeviceStatus { online: false, model: None, update: None, ..status }, false);
        let device = devices.get(&id(1)).unwrap();
        assert_eq!((device.seen_at_ms, device.online, device.outbox), (Some(6), Some(false), Some(2)));
        assert_eq!((device.model, &device.update), (model, &update));
        devices.forget(&id(1));
        assert_eq!(devices.get(&id(1)), None);
    }

    #[test]
    fn a_refusal_is_remembered_with_its_device() {
        let mut devices = Devices::default();
        devices.asked(&id(1), 5, Some(ErrorCode::WrongSpace));
        devices.asked(&id(1), 6, None);
        let device = devices.get(&id(1)).unwrap();
        assert_eq!((device.queries, device.refused), (2, 1));
        assert_eq!(device.last_error, Some(LastError { at_ms: 5, code: ErrorCode::WrongSpace }));
    }
}
