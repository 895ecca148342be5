//! MQTT topics: `glimpse/v1/devices/{device}/{query|reply|status|model|fetch}` and `glimpse/v1/gallery/status`.

use core::fmt::Write as _;

use heapless::String;

use crate::DeviceId;

/// A topic as text; the longest is `glimpse/v1/devices/` + 64 + `/status`.
pub type Topic = String<96>;

/// Where servers keep their retained status.
pub const GALLERY_STATUS: &str = "glimpse/v1/gallery/status";

/// What a server subscribes to: the queries of all devices, shared between the servers of the group `gallery`.
pub const SHARED_QUERIES: &str = "$share/gallery/glimpse/v1/devices/+/query";

/// What a server subscribes to besides: what the devices say of themselves.
pub const STATUSES: &str = "glimpse/v1/devices/+/status";

/// And the chunks of query networks that devices want, shared as the queries are: any server has them all.
pub const SHARED_FETCHES: &str = "$share/gallery/glimpse/v1/devices/+/fetch";

const DEVICES: &str = "glimpse/v1/devices/";

/// The topics of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceTopic {
    /// Device to server: queries.
    Query,
    /// Server to device: replies.
    Reply,
    /// Retained by the device, and its last will.
    Status,
    /// Server to device: a new query network is offered, and comes in chunks.
    Model,
    /// Device to server: which chunks of it the device wants.
    Fetch,
}

impl DeviceTopic {
    const ALL: [Self; 5] = [Self::Query, Self::Reply, Self::Status, Self::Model, Self::Fetch];

    const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Reply => "reply",
            Self::Status => "status",
            Self::Model => "model",
            Self::Fetch => "fetch",
        }
    }

    /// The topic for a device.
    pub fn of(self, device: &DeviceId) -> Topic {
        let mut topic = Topic::new();
        write!(topic, "{DEVICES}{device}/{}", self.name()).expect("19 + 64 + 7 bytes fit in 96");
        topic
    }

    /// Which device and which of its topics this is; `None` for any other topic.
    pub fn parse(topic: &str) -> Option<(DeviceId, Self)> {
        let (device, name) = topic.strip_prefix(DEVICES)?.split_once('/')?;
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name)?;
        Some((DeviceId::new(device).ok()?, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_back_from_their_text() {
        let device = DeviceId::new(&"d".repeat(64)).unwrap();
        for kind in DeviceTopic::ALL {
            assert_eq!(DeviceTopic::parse(&kind.of(&device)), Some((device.clone(), kind)));
        }
    }

    #[test]
    fn foreign_topics_are_no_device_topics() {
        for topic in [
            "",
            "glimpse/v1/devices/",
            "glimpse/v1/devices/a",
            "glimpse/v1/devices/a/b/query",
            "glimpse/v1/devices/a/queries",
            "glimpse/v2/devices/a/query",
        ] {
            assert_eq!(DeviceTopic::parse(topic), None, "{topic}");
        }
    }
}
