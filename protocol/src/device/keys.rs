//! The keys of `device.toml`, once: what each means, which values it takes, and what it needs beside it. The parser's
//! advice, the file that `glimpse-firmware init` writes, the schema for editors and the table for people are made of this.

use super::network::Board;
use super::{
    CAMERA_SIDE, KEEP_ALIVE_MAX, KEEP_ALIVE_MIN, OUTBOX_HOURS_MAX, OUTBOX_MB_MAX, OUTBOX_MB_MIN,
    QUERIES_PER_MINUTE_MAX, SHARPNESS_MAX, THREADS_MAX, TIMEOUT_MAX,
};
use crate::TOP_K_MAX;

/// A key of `device.toml`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// Its name, behind that of its table: `network.gateway`.
    pub path: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// A value, as TOML.
    pub example: &'static str,
    /// The value where nothing is said, as TOML; `None` where there is none, or `about` tells it.
    pub default: Option<&'static str>,
    /// The keys of the same table without which it has no use, or does not work.
    pub needs: &'static [&'static str],
    /// What it means.
    pub about: &'static str,
}

/// Which values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Text that this regular expression matches; the parser is stricter.
    Text(&'static str),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A path; relative ones are taken from the file's folder.
    Path,
    /// A whole number, both bounds included.
    Integer(i64, i64),
    /// A number, both bounds included.
    Number(f64, f64),
    /// A number above the first bound, and at most the second.
    NumberAbove(f64, f64),
    /// `false` alone.
    False,
    /// A list of texts, each of which this regular expression matches.
    Texts(&'static str),
}

impl Key {
    /// The key of this path.
    pub fn of(path: &str) -> Option<&'static Self> {
        ALL_KEYS.iter().find(|key| key.path == path)
    }

    /// Its table, empty at the top, and its name there.
    pub fn table_and_name(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }
}

/// The tables of `device.toml`, and what each is for.
pub const TABLES: [(&str, &str); 2] = [
    (
        "network",
        "The device's network, for the image that it starts from. `glimpse-edge` validates it, and takes no notice of it otherwise.",
    ),
    (
        "privacy",
        "What is promised to the people before the camera. The program can do no other: it keeps and sends no photo, whatever \
         stands here. What it keeps, where there is an outbox, are embeddings that wait for their answer.",
    ),
];

const GPIO: Kind = Kind::Text(r"^gpiochip[0-9]{1,5}:[0-9]{1,4}(:low)?$");
const HOST: &str = r"^[A-Za-z0-9.:-]{1,253}$";
const ADDRESS: &str = r"^[0-9A-Fa-f.:]{2,45}$";
const NAME: Kind = Kind::Text(r"^[A-Za-z0-9._-]{1,64}$");

/// A key without a default and without needs.
const fn key(path: &'static str, kind: Kind, example: &'static str, about: &'static str) -> Key {
    Key { path, kind, example, default: None, needs: &[], about }
}

impl Key {
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn with(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }
}

/// All keys, in the order of a new file: those of the top first, then table by table.
pub const ALL_KEYS: [Key; 46] = [
    key(
        "device",
        NAME,
        "\"camera-1\"",
        "Its name, also its MQTT client id: letters, digits, '-', '_' and '.'. Two devices with one name push each other off \
         the server. Without it the device takes its host name.",
    ),
    key(
        "group",
        NAME,
        "\"entrance\"",
        "The group that `glimpse-gallery models push --to GROUP` reaches it by; written as a name is. The server has its own \
         list, which `devices add --group` writes.",
    ),
    key(
        "board",
        Kind::OneOf(&Board::NAMES),
        "\"raspberry-pi-4\"",
        "The board that it is: raspberry-pi-3, raspberry-pi-4, raspberry-pi-5, raspberry-pi-zero-2-w, generic-uefi or qemu-virt. \
         Pins and camera are checked against it.",
    ),
    key(
        "server",
        Kind::Text(r"^(mqtts://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?$"),
        "\"gallery.local:1883\"",
        "The gallery server's MQTT address, HOST or HOST:PORT; mqtts://HOST:PORT for TLS.",
    ),
    key(
        "camera",
        Kind::Text(r"^(folder:.+|v4l2:/.*|rpicam|video:.+)$"),
        "\"v4l2:/dev/video0\"",
        "Where photos come from. folder:DIR: the photos in a folder, then new ones as they appear. v4l2:/dev/videoN: a USB camera \
         (the names in /dev/v4l/by-id stay as they are when it is plugged in again). rpicam: a Raspberry Pi's camera. video:FILE: \
         a file in MJPEG or YUV4MPEG2.",
    ),
    key(
        "camera_size",
        Kind::Text(r"^[0-9]{2,4}x[0-9]{2,4}$"),
        "\"1280x720\"",
        "How large photos of v4l2 and rpicam should be; the nearest size that the camera has is taken.",
    )
    .or("\"1280x720\""),
    key(
        "camera_format",
        Kind::OneOf(&["nv12", "yuyv", "mjpeg"]),
        "\"mjpeg\"",
        "How a camera of v4l2 sends its photos: nv12, yuyv, or mjpeg, which takes the least of a USB bus. Left out, it is the \
         one of the right size that takes the least work.",
    ),
    key(
        "trigger",
        Kind::Text(r"^(always|motion|button|interval:[0-9]+(\.[0-9]+)?)$"),
        "\"interval:10\"",
        "When photos are taken: always, interval:SECONDS, motion, or button. Left out, a camera takes one every ten seconds, and \
         all of a folder or video are taken.",
    ),
    key(
        "sharpness_min",
        Kind::Number(0.0, SHARPNESS_MAX as f64),
        "0.5",
        "How sharp photos have to be: `glimpse-edge capture` prints what they are. 0 takes blurred ones too. Left out, it is 0.5 \
         for cameras and 0 for files.",
    ),
    key(
        "bundle",
        Kind::Path,
        "\"space\"",
        "The space bundle: a folder with the query network and the codebook of the space that the server serves.",
    ),
    key("model", Kind::Path, "\"query.onnx\"", "A query network in place of the bundle's."),
    key(
        "codebook",
        Kind::Path,
        "\"codebook.safetensors\"",
        "A codebook in place of the bundle's, for the codec pq.",
    ),
    key(
        "codec",
        Kind::OneOf(&["f32", "f16", "i8", "pq"]),
        "\"i8\"",
        "How embeddings travel: f32, f16, i8, or pq, which is the smallest.",
    )
    .or("\"i8\""),
    key("top_k", Kind::Integer(1, TOP_K_MAX as i64), "10", "How many matches to ask for, 1 to 100.").or("10"),
    key(
        "timeout",
        Kind::NumberAbove(0.0, TIMEOUT_MAX.as_secs() as f64),
        "5.0",
        "Seconds to wait for a reply, in which a query is sent up to three times.",
    )
    .or("5.0"),
    key(
        "password_file",
        Kind::Path,
        "\"device.password\"",
        "The device's password at the server, in a file that nobody else can read (mode 600). Its user name is its name. \
         `glimpse-gallery devices add NAME --generate` prints such a password.",
    ),
    key(
        "ca",
        Kind::Path,
        "\"ca.pem\"",
        "The authority that signed the server's certificate (PEM); a server at mqtts:// needs it.",
    ),
    key(
        "certificate",
        Kind::Path,
        "\"device.pem\"",
        "The device's own certificate (PEM), where the server knows it by that.",
    )
    .with(&["key", "ca"]),
    key(
        "key",
        Kind::Path,
        "\"device.key\"",
        "The private key of that certificate (PEM), in a file that nobody else can read (mode 600).",
    )
    .with(&["certificate"]),
    key(
        "state",
        Kind::Path,
        "\"/var/lib/glimpse-edge\"",
        "A folder that the device can write, where it keeps query networks that the server gives it: with it and model_key, \
         `glimpse-gallery models push` reaches this device. It runs the network named above until then, and again where that \
         one is replaced by hand.",
    )
    .with(&["model_key"]),
    key(
        "model_key",
        Kind::Text(r"^[0-9A-Fa-f]{64}$"),
        "\"64 digits\"",
        "The key that signs those networks, as `glimpse-gallery models key` prints it. No other is taken.",
    )
    .with(&["state"]),
    key(
        "outbox",
        Kind::Path,
        "\"/var/lib/glimpse-edge/outbox\"",
        "A folder that the device can write, where queries wait for their answers: through a network that is away, a restart, \
         and a plug that is pulled. Without it they wait in memory.",
    ),
    key(
        "outbox_mb",
        Kind::Integer(OUTBOX_MB_MIN as i64, OUTBOX_MB_MAX as i64),
        "64",
        "What it may take, in megabytes; the oldest queries are dropped for new ones.",
    )
    .or("64")
    .with(&["outbox"]),
    key(
        "outbox_hours",
        Kind::Integer(1, OUTBOX_HOURS_MAX as i64),
        "72",
        "How long a query may wait there, in hours.",
    )
    .or("72")
    .with(&["outbox"]),
    key(
        "unknown_below",
        Kind::Number(-1.0, 1.0),
        "0.3",
        "A best match of a smaller similarity is none: the photo is unknown, and is told as such. Which similarity parts right \
         from wrong depends on space and photos: look at some answers first.",
    ),
    key(
        "exec",
        Kind::Path,
        "\"/usr/local/bin/on-answer\"",
        "A program that is started for each outcome, with its JSON on standard input. It has 10 seconds.",
    ),
    key(
        "webhook",
        Kind::Text(r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?([/?][!-~]*)?$"),
        "\"https://home.example/glimpse\"",
        "An address that the JSON of each outcome is posted to.",
    ),
    key(
        "webhook_token_file",
        Kind::Path,
        "\"webhook.token\"",
        "The secret that is sent along (Authorization: Bearer), in a file that nobody else can read (mode 600).",
    )
    .with(&["webhook"]),
    key(
        "webhook_ca",
        Kind::Path,
        "\"webhook-ca.pem\"",
        "The authority that signed the certificate of that host (PEM); without it, the public ones.",
    )
    .with(&["webhook"]),
    key(
        "led",
        GPIO,
        "\"gpiochip0:17\"",
        "A line of a GPIO chip that is lit for a match, for a second: gpiochipN:LINE, with :low where low is lit.",
    ),
    key("led_unknown", GPIO, "\"gpiochip0:27\"", "The same for a photo that is unknown."),
    key(
        "button",
        GPIO,
        "\"gpiochip0:3:low\"",
        "A button on a line of a GPIO chip; :low where the line is low while it is pressed.",
    ),
    key(
        "keep_alive",
        Kind::Integer(KEEP_ALIVE_MIN as i64, KEEP_ALIVE_MAX as i64),
        "60",
        "Seconds for which the connection may be silent. Fewer find a dead one sooner; more save a battery, but networks of phones \
         forget a connection that is silent for minutes.",
    )
    .or("60"),
    key(
        "queries_per_minute",
        Kind::Integer(1, QUERIES_PER_MINUTE_MAX as i64),
        "6",
        "How many queries it sends in any minute at most, for a battery or a link that is paid by the megabyte; more wait in the \
         outbox. Without it there is no limit.",
    ),
    key(
        "threads",
        Kind::Integer(1, THREADS_MAX as i64),
        "1",
        "How many threads run the network together: with as many as there are processors a photo takes the least time, with one \
         the least energy. `glimpse-edge bench --threads N` measures it.",
    )
    .or("1"),
    key(
        "cores",
        Kind::Text(r"^[0-9, -]+$"),
        "\"2-3\"",
        "The processors that the program runs on, by their numbers. Without it the system chooses.",
    ),
    key(
        "network.hostname",
        Kind::Text(r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"),
        "\"door-1\"",
        "The device's name in its network: letters, digits and '-'.",
    ),
    key(
        "network.wifi_ssid",
        Kind::Text(r"^.{1,32}$"),
        "\"workshop\"",
        "The wireless network that it joins.",
    )
    .with(&["wifi_country"]),
    key(
        "network.wifi_password_file",
        Kind::Path,
        "\"wifi.password\"",
        "Its password, in a file that nobody else can read (mode 600). Without it the network is an open one.",
    )
    .with(&["wifi_ssid"]),
    key(
        "network.wifi_country",
        Kind::Text(r"^[A-Z]{2}$"),
        "\"DE\"",
        "The country whose rules the radio keeps, by its two letters.",
    )
    .with(&["wifi_ssid"]),
    key(
        "network.address",
        Kind::Text(r"^[0-9A-Fa-f.:]{2,45}/[0-9]{1,3}$"),
        "\"192.168.1.50/24\"",
        "The device's address, and how many of its bits are the network's. Without it DHCP gives one.",
    ),
    key(
        "network.gateway",
        Kind::Text(ADDRESS),
        "\"192.168.1.1\"",
        "What leads to other networks, where the address is a fixed one.",
    )
    .with(&["address"]),
    key(
        "network.dns",
        Kind::Texts(ADDRESS),
        "[\"192.168.1.1\"]",
        "Who is asked for names. Without it, whom DHCP names.",
    ),
    key(
        "network.ntp",
        Kind::Texts(HOST),
        "[\"pool.ntp.org\"]",
        "Who is asked for the time. Without it, whom the system asks.",
    ),
    key("privacy.keep_photos", Kind::False, "false", "No photo is kept, on the disk or elsewhere.").or("false"),
    key("privacy.share_photos", Kind::False, "false", "No photo leaves the device; embeddings do.").or("false"),
];

// The sides of a photo in `camera_size` have two to four digits.
const _: () = assert!(*CAMERA_SIDE.start() >= 10 && *CAMERA_SIDE.end() <= 9999);

#[cfg(test)]
mod tests {
    use super::super::{Device, KEYS, RawDevice};
    use super::*;
    use crate::Codec;
    use std::format;
    use std::path::Path;
    use std::string::{String, ToString as _};
    use std::vec::Vec;

    #[test]
    fn every_key_of_the_program_is_in_the_table_in_its_order() {
        let here = ALL_KEYS.iter().map(|key| key.path).filter(|path| KEYS.contains(path));
        assert_eq!(here.collect::<Vec<&str>>(), KEYS);
        for (place, key) in ALL_KEYS.iter().enumerate() {
            assert!(
                ALL_KEYS.iter().take(place).all(|other| other.path != key.path),
                "{} is there twice",
                key.path
            );
            let (table, _) = key.table_and_name();
            assert!(table.is_empty() || TABLES.iter().any(|(name, _)| *name == table), "{}", key.path);
            for needed in key.needs {
                let path = if table.is_empty() { (*needed).to_string() } else { format!("{table}.{needed}") };
                assert!(Key::of(&path).is_some(), "{} needs {path}", key.path);
            }
        }
    }

    #[test]
    fn every_example_and_default_is_a_value_of_its_key() {
        for key in ALL_KEYS {
            let (table, name) = key.table_and_name();
            let head = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
            for value in core::iter::once(key.example).chain(key.default) {
                let value = value.replace("64 digits", &"0f".repeat(32));
                let (_, problems) = RawDevice::parse(&format!("{head}{name} = {value}"), Path::new(""));
                assert_eq!(problems, [], "{}", key.path);
            }
        }
    }

    #[test]
    fn defaults_are_those_of_the_device() {
        let default = |path: &str| Key::of(path).and_then(|key| key.default).unwrap();
        assert_eq!(default("codec"), format!("\"{}\"", Device::CODEC_DEFAULT));
        assert_eq!(default("camera_size"), format!("\"{}\"", Device::CAMERA_SIZE_DEFAULT));
        assert_eq!(default("top_k"), Device::TOP_K_DEFAULT.to_string());
        assert_eq!(default("timeout"), format!("{:?}", Device::TIMEOUT_DEFAULT.as_secs_f64()));
        assert_eq!(default("outbox_mb"), Device::OUTBOX_MB_DEFAULT.to_string());
        assert_eq!(default("outbox_hours"), Device::OUTBOX_HOURS_DEFAULT.to_string());
        assert_eq!(default("keep_alive"), Device::KEEP_ALIVE_DEFAULT.to_string());
        let Kind::OneOf(codecs) = Key::of("codec").unwrap().kind else { panic!("codecs have names") };
        assert_eq!(codecs, Codec::ALL.map(Codec::name));
    }
}
