//! `device.toml`: what describes one device, written by `glimpse-firmware` and read by `glimpse-edge run`.
//!
//! Text becomes a [`RawDevice`] (every key optional, unknown keys refused), flags of the command line are laid over
//! it, and [`RawDevice::validate`] makes the [`Device`] that a program works with. Whatever is wrong is told at once:
//! every step adds to one list of [`Problem`]s, each with its line and column. That is why the table is walked here
//! rather than by a serde derive, which stops at the first.
//!
//! What is the image's alone (`board`, `[network]`) is validated here too, so that no program passes over a slip in it.

use core::fmt;
use core::ops::Range;
use core::str::FromStr;
use core::time::Duration;
use std::borrow::ToOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::{Codec, CodecError, DeviceId, IdError, ModelKey, TOP_K_MAX};

mod actions;
mod keys;
mod network;
mod problem;
mod processors;

use problem::{Lines, fix_of_syntax, nearest};

pub use actions::{Actions, GpioLine, Webhook, WebhookUrl, similarity, similarity_of_text};
pub use keys::{ALL_KEYS, Key, Kind, TABLES};
pub use network::{
    Board, GroupName, HostName, Network, Subnet, address, country, hostname, ssid, time_server,
};
pub use problem::{PROBLEMS_MAX, Place, Problem, Problems};
pub use processors::{Cores, THREADS_MAX, threads, threads_of_text};

/// The keys of `device.toml` that `glimpse-edge run` works with; it has a flag of the same name for each, with `-` for `_`.
/// [`ALL_KEYS`] has those of the image too.
pub const KEYS: [&str; 34] = [
    "device",
    "server",
    "camera",
    "camera_size",
    "camera_format",
    "trigger",
    "sharpness_min",
    "bundle",
    "model",
    "codebook",
    "codec",
    "top_k",
    "timeout",
    "password_file",
    "ca",
    "certificate",
    "key",
    "state",
    "model_key",
    "outbox",
    "outbox_mb",
    "outbox_hours",
    "unknown_below",
    "exec",
    "webhook",
    "webhook_token_file",
    "webhook_ca",
    "led",
    "led_unknown",
    "button",
    "keep_alive",
    "queries_per_minute",
    "threads",
    "cores",
];

/// The port of MQTT without TLS, where an address names none.
pub const PORT_DEFAULT: u16 = 1883;

/// The port of MQTT by TLS, where an address names none.
pub const PORT_TLS_DEFAULT: u16 = 8883;

/// What the address of a server that is met by TLS begins with.
const TLS_SCHEME: &str = "mqtts://";

/// The largest `timeout`.
pub const TIMEOUT_MAX: Duration = Duration::from_hours(1);

/// The sides that `camera_size` may have, in pixels. Networks look at far less than the largest.
pub const CAMERA_SIDE: core::ops::RangeInclusive<u32> = 16..=8192;

/// The shortest `trigger = "interval:SECONDS"`.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The longest: a day.
pub const INTERVAL_MAX: Duration = Duration::from_hours(24);

/// The largest `sharpness_min`; no photo is sharper.
pub const SHARPNESS_MAX: f32 = 1000.0;

/// `outbox_mb` at least: some messages of the largest size.
pub const OUTBOX_MB_MIN: u16 = 4;

/// `outbox_mb` at most: the outbox is read as a whole when the device starts.
pub const OUTBOX_MB_MAX: u16 = 512;

/// `outbox_hours` at most: a year.
pub const OUTBOX_HOURS_MAX: u16 = 8784;

/// `keep_alive` at least, in seconds.
pub const KEEP_ALIVE_MIN: u16 = 5;

/// `keep_alive` at most, in seconds: half an hour, after which networks forget a connection.
pub const KEEP_ALIVE_MAX: u16 = 1800;

/// `queries_per_minute` at most: as good as no limit.
pub const QUERIES_PER_MINUTE_MAX: u16 = 6000;

/// Host and port of the server's MQTT, and whether it is met by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    is_tls: bool,
}

impl ServerAddress {
    /// A name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is met by TLS (`mqtts://`).
    pub const fn is_tls(&self) -> bool {
        self.is_tls
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { TLS_SCHEME } else { "" })?;
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is no value of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ValueError {
    /// An address is `HOST` or `HOST:PORT`.
    #[error(
        "expected HOST:PORT, such as 192.168.1.20:1883, gallery.local:1883 or [fe80::1]:1883, or mqtts://HOST:PORT for TLS"
    )]
    Server,
    /// Where photos come from.
    #[error(
        "expected folder:DIR, the photos in a folder; v4l2:/dev/videoN, a USB camera; rpicam, a Raspberry Pi's camera; \
         or video:FILE, a file in MJPEG or YUV4MPEG2"
    )]
    Camera,
    /// A device is named by its whole path.
    #[error("expected v4l2: and the whole path of a device, such as v4l2:/dev/video0")]
    VideoDevice,
    /// How large photos are.
    #[error(
        "expected WIDTHxHEIGHT, such as 1280x720, with sides of {} to {} pixels", CAMERA_SIDE.start(), CAMERA_SIDE.end()
    )]
    CameraSize,
    /// How a camera sends its pictures.
    #[error("expected nv12, yuyv or mjpeg")]
    CameraFormat,
    /// When photos are taken.
    #[error(
        "expected always, motion, button, or interval:SECONDS with {} to {} seconds", INTERVAL_MIN.as_secs_f64(), INTERVAL_MAX.as_secs()
    )]
    Trigger,
    /// How sharp photos have to be.
    #[error("expected a number from 0, which takes blurred photos too, to {SHARPNESS_MAX}")]
    Sharpness,
    /// A time is a number of seconds.
    #[error("expected seconds, more than 0 and at most {}", TIMEOUT_MAX.as_secs())]
    Seconds,
    /// A number of matches.
    #[error("expected a whole number from 1 to {TOP_K_MAX}")]
    TopK,
    /// What an outbox may take.
    #[error("expected a whole number of megabytes from {OUTBOX_MB_MIN} to {OUTBOX_MB_MAX}")]
    OutboxMb,
    /// How long a connection may be silent.
    #[error("expected a whole number of seconds from {KEEP_ALIVE_MIN} to {KEEP_ALIVE_MAX}")]
    KeepAlive,
    /// How many queries a device sends.
    #[error("expected a whole number of queries from 1 to {QUERIES_PER_MINUTE_MAX}")]
    QueriesPerMinute,
    /// How many threads run the network.
    #[error("expected a whole number of threads from 1 to {THREADS_MAX}")]
    Threads,
    /// Which processors.
    #[error("expected the numbers of processors, such as \"2-3\" or \"0,2\"")]
    Cores,
    /// How long a query may wait in an outbox.
    #[error("expected a whole number of hours from 1 to {OUTBOX_HOURS_MAX}")]
    OutboxHours,
    /// A cosine.
    #[error("expected a similarity from -1 to 1; larger is nearer")]
    Similarity,
    /// An address for HTTP.
    #[error("expected http://HOST/PATH or https://HOST/PATH")]
    Webhook,
    /// A secret in an address is in every log.
    #[error("an address must hold no user or password: {WEBHOOK_SECRET_FIX}")]
    WebhookSecret,
    /// A line of a chip.
    #[error(
        "expected gpiochipN:LINE, such as gpiochip0:17, or gpiochip0:17:low for a line that is low when it is on"
    )]
    Gpio,
    /// What a device is in.
    #[error("expected 1 to 64 letters, digits, '-', '_' or '.'")]
    Group,
    /// What a device is.
    #[error("expected one of {}", Board::NAMES.join(", "))]
    Board,
    /// A device's name in its network.
    #[error("expected a host's name: 1 to 63 letters, digits and '-', without a dot")]
    HostName,
    /// The name of a wireless network.
    #[error("expected the name of a wireless network, 1 to 32 bytes")]
    Ssid,
    /// A country.
    #[error("expected the two capital letters of a country, such as DE or CH")]
    Country,
    /// An address with its network.
    #[error("expected an address and how many of its bits are the network's, such as 192.168.1.50/24")]
    Subnet,
    /// An address that no device can have.
    #[error("no device can have this address in this network")]
    HostAddress,
    /// An address of something else.
    #[error("expected an IP address, such as 192.168.1.1")]
    Address,
    /// Who is asked for the time.
    #[error("expected the name or the IP address of a time server, without a port")]
    TimeServer,
}

/// What to do about a secret in an address.
const WEBHOOK_SECRET_FIX: &str = "put a secret into a file, and write webhook_token_file = \"FILE\"";

impl FromStr for ServerAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (is_tls, text) = text.strip_prefix(TLS_SCHEME).map_or((false, text), |rest| (true, rest));
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or(ValueError::Server)?;
            host.parse::<core::net::Ipv6Addr>().map_err(|_| ValueError::Server)?;
            (
                host,
                if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(ValueError::Server)?) },
            )
        } else {
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
        };
        let default = if is_tls { PORT_TLS_DEFAULT } else { PORT_DEFAULT };
        let port = port.map_or(Ok(default), str::parse).map_err(|_| ValueError::Server)?;
        let is_host = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
        if is_host && port > 0 {
            Ok(Self { host: host.to_owned(), port, is_tls })
        } else {
            Err(ValueError::Server)
        }
    }
}

/// Where photos come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CameraSource {
    /// The photos in a folder, then new ones as they appear.
    Folder(PathBuf),
    /// A camera that the kernel's V4L2 serves, by the path of its device.
    V4l2(PathBuf),
    /// A Raspberry Pi's camera, by the program `rpicam-still`.
    Rpicam,
    /// The frames of a video file.
    Video(PathBuf),
}

impl CameraSource {
    /// The same, with a relative path taken from `base`.
    #[must_use]
    pub fn based_on(self, base: &Path) -> Self {
        match self {
            Self::Folder(folder) => Self::Folder(base.join(folder)),
            Self::Video(file) => Self::Video(base.join(file)),
            Self::V4l2(_) | Self::Rpicam => self,
        }
    }

    /// Whether it looks at the world now. Files were taken earlier, each on purpose.
    pub const fn is_live(&self) -> bool {
        matches!(self, Self::V4l2(_) | Self::Rpicam)
    }

    /// When it takes photos, where nothing is said.
    pub const fn trigger_default(&self) -> TriggerKind {
        if self.is_live() { TriggerKind::Interval(Duration::from_secs(10)) } else { TriggerKind::Always }
    }

    /// How sharp its photos have to be, where nothing is said.
    pub const fn sharpness_min_default(&self) -> f32 {
        if self.is_live() { Device::SHARPNESS_MIN_LIVE } else { 0.0 }
    }
}

impl FromStr for CameraSource {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("folder", folder) if !folder.is_empty() => Ok(Self::Folder(folder.into())),
            ("v4l2", device) if device.starts_with('/') => Ok(Self::V4l2(device.into())),
            ("v4l2", _) => Err(ValueError::VideoDevice),
            ("video", file) if !file.is_empty() => Ok(Self::Video(file.into())),
            _ if text == "rpicam" => Ok(Self::Rpicam),
            _ => Err(ValueError::Camera),
        }
    }
}

impl fmt::Display for CameraSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "folder:{}", folder.display()),
            Self::V4l2(device) => write!(f, "v4l2:{}", device.display()),
            Self::Rpicam => f.write_str("rpicam"),
            Self::Video(file) => write!(f, "video:{}", file.display()),
        }
    }
}

/// How large photos should be; a camera takes the nearest that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CameraSize {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl FromStr for CameraSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let side = |text: &str| text.parse().ok().filter(|side| CAMERA_SIDE.contains(side));
        let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        sides.map(|(width, height)| Self { width, height }).ok_or(ValueError::CameraSize)
    }
}

impl fmt::Display for CameraSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// How a camera that the kernel serves sends its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CameraFormat {
    /// 4:2:0 in two planes.
    Nv12,
    /// 4:2:2.
    Yuyv,
    /// One JPEG a picture.
    Mjpeg,
}

impl CameraFormat {
    const NAMES: [(Self, &str); 3] = [(Self::Nv12, "nv12"), (Self::Yuyv, "yuyv"), (Self::Mjpeg, "mjpeg")];
}

impl FromStr for CameraFormat {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let found = Self::NAMES.into_iter().find(|(_, name)| *name == text);
        found.map(|(format, _)| format).ok_or(ValueError::CameraFormat)
    }
}

impl fmt::Display for CameraFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.into_iter().find(|(format, _)| format == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

/// When photos are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerKind {
    /// As fast as they come.
    Always,
    /// One each time that this has passed.
    Interval(Duration),
    /// When something moves.
    Motion,
    /// When the button is pressed.
    Button,
}

impl FromStr for TriggerKind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.split_once(':') {
            None if text == "always" => Ok(Self::Always),
            None if text == "motion" => Ok(Self::Motion),
            None if text == "button" => Ok(Self::Button),
            Some(("interval", seconds)) => {
                let time = seconds.parse().ok().and_then(|time| Duration::try_from_secs_f64(time).ok());
                let time = time.filter(|time| (INTERVAL_MIN..=INTERVAL_MAX).contains(time));
                time.map(Self::Interval).ok_or(ValueError::Trigger)
            }
            _ => Err(ValueError::Trigger),
        }
    }
}

impl fmt::Display for TriggerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Interval(time) => write!(f, "interval:{}", time.as_secs_f64()),
            Self::Motion => f.write_str("motion"),
            Self::Button => f.write_str("button"),
        }
    }
}

/// How sharp photos have to be.
///
/// # Errors
/// [`ValueError::Sharpness`].
pub fn sharpness(value: f64) -> Result<f32, ValueError> {
    if (0.0..=f64::from(SHARPNESS_MAX)).contains(&value) {
        Ok(value as f32)
    } else {
        Err(ValueError::Sharpness)
    }
}

/// [`sharpness`] of a command line.
///
/// # Errors
/// [`ValueError::Sharpness`].
pub fn sharpness_of_text(text: &str) -> Result<f32, ValueError> {
    text.parse().map_or(Err(ValueError::Sharpness), sharpness)
}

/// Seconds as a person writes them.
///
/// # Errors
/// [`ValueError::Seconds`].
pub fn seconds(value: f64) -> Result<Duration, ValueError> {
    match Duration::try_from_secs_f64(value) {
        Ok(time) if !time.is_zero() && time <= TIMEOUT_MAX => Ok(time),
        _ => Err(ValueError::Seconds),
    }
}

/// How many matches a query may ask for.
///
/// # Errors
/// [`ValueError::TopK`].
pub fn top_k(value: i64) -> Result<u16, ValueError> {
    match u16::try_from(value) {
        Ok(value) if (1..=TOP_K_MAX).contains(&usize::from(value)) => Ok(value),
        _ => Err(ValueError::TopK),
    }
}

/// [`seconds`] of a command line.
///
/// # Errors
/// [`ValueError::Seconds`].
pub fn seconds_of_text(text: &str) -> Result<Duration, ValueError> {
    text.parse().map_or(Err(ValueError::Seconds), seconds)
}

/// How many megabytes an outbox may take.
///
/// # Errors
/// [`ValueError::OutboxMb`].
pub fn outbox_mb(value: i64) -> Result<u16, ValueError> {
    match u16::try_from(value) {
        Ok(value) if (OUTBOX_MB_MIN..=OUTBOX_MB_MAX).contains(&value) => Ok(value),
        _ => Err(ValueError::OutboxMb),
    }
}

/// [`outbox_mb`] of a command line.
///
/// # Errors
/// [`ValueError::OutboxMb`].
pub fn outbox_mb_of_text(text: &str) -> Result<u16, ValueError> {
    text.parse().map_or(Err(ValueError::OutboxMb), outbox_mb)
}

/// How many hours a query may wait in an outbox.
///
/// # Errors
/// [`ValueError::OutboxHours`].
pub fn outbox_hours(value: i64) -> Result<u16, ValueError> {
    match u16::try_from(value) {
        Ok(value) if (1..=OUTBOX_HOURS_MAX).contains(&value) => Ok(value),
        _ => Err(ValueError::OutboxHours),
    }
}

/// [`outbox_hours`] of a command line.
///
/// # Errors
/// [`ValueError::OutboxHours`].
pub fn outbox_hours_of_text(text: &str) -> Result<u16, ValueError> {
    text.parse().map_or(Err(ValueError::OutboxHours), outbox_hours)
}

/// How long a connection may be silent, in seconds.
///
/// # Errors
/// [`ValueError::KeepAlive`].
pub fn keep_alive(value: i64) -> Result<u16, ValueError> {
    match u16::try_from(value) {
        Ok(value) if (KEEP_ALIVE_MIN..=KEEP_ALIVE_MAX).contains(&value) => Ok(value),
        _ => Err(ValueError::KeepAlive),
    }
}

/// [`keep_alive`] of a command line.
///
/// # Errors
/// [`ValueError::KeepAlive`].
pub fn keep_alive_of_text(text: &str) -> Result<u16, ValueError> {
    text.parse().map_or(Err(ValueError::KeepAlive), keep_alive)
}

/// How many queries a device sends in a minute.
///
/// # Errors
/// [`ValueError::QueriesPerMinute`].
pub fn queries_per_minute(value: i64) -> Result<u16, ValueError> {
    match u16::try_from(value) {
        Ok(value) if (1..=QUERIES_PER_MINUTE_MAX).contains(&value) => Ok(value),
        _ => Err(ValueError::QueriesPerMinute),
    }
}

/// [`queries_per_minute`] of a command line.
///
/// # Errors
/// [`ValueError::QueriesPerMinute`].
pub fn queries_per_minute_of_text(text: &str) -> Result<u16, ValueError> {
    text.parse().map_or(Err(ValueError::QueriesPerMinute), queries_per_minute)
}

/// [`top_k`] of a command line.
///
/// # Errors
/// [`ValueError::TopK`].
pub fn top_k_of_text(text: &str) -> Result<u16, ValueError> {
    text.parse().map_or(Err(ValueError::TopK), top_k)
}

/// What a file, or a command line, says of a device: each value is valid by itself, and any may be missing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawDevice {
    /// `device`: its name.
    pub device: Option<DeviceId>,
    /// `group`: what it belongs to.
    pub group: Option<GroupName>,
    /// `board`: what it is.
    pub board: Option<Board>,
    /// `server`.
    pub server: Option<ServerAddress>,
    /// `camera`.
    pub camera: Option<CameraSource>,
    /// `camera_size`: how large photos should be.
    pub camera_size: Option<CameraSize>,
    /// `camera_format`: how a camera of V4L2 should send them.
    pub camera_format: Option<CameraFormat>,
    /// `trigger`: when photos are taken.
    pub trigger: Option<TriggerKind>,
    /// `sharpness_min`: how sharp they have to be.
    pub sharpness_min: Option<f32>,
    /// `bundle`: a folder with the query network and the codebook.
    pub bundle: Option<PathBuf>,
    /// `model`: the query network, in place of the bundle's.
    pub model: Option<PathBuf>,
    /// `codebook`: in place of the bundle's.
    pub codebook: Option<PathBuf>,
    /// `codec`.
    pub codec: Option<Codec>,
    /// `top_k`.
    pub top_k: Option<u16>,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `password_file`: the device's password at the server.
    pub password_file: Option<PathBuf>,
    /// `ca`: who vouches for the server.
    pub ca: Option<PathBuf>,
    /// `certificate`: the device's own.
    pub certificate: Option<PathBuf>,
    /// `key`: the private key of `certificate`.
    pub key: Option<PathBuf>,
    /// `state`: where the device keeps query networks that the server gave it.
    pub state: Option<PathBuf>,
    /// `model_key`: who may give it networks.
    pub model_key: Option<ModelKey>,
    /// `outbox`: where queries wait for their answers.
    pub outbox: Option<PathBuf>,
    /// `outbox_mb`: what it may take, in megabytes.
    pub outbox_mb: Option<u16>,
    /// `outbox_hours`: how long a query may wait there.
    pub outbox_hours: Option<u16>,
    /// `unknown_below`: a best match of a smaller similarity is none.
    pub unknown_below: Option<f32>,
    /// `exec`: the program that is given each outcome.
    pub exec: Option<PathBuf>,
    /// `webhook`: where each outcome is posted to.
    pub webhook: Option<WebhookUrl>,
    /// `webhook_token_file`: the secret that is sent along.
    pub webhook_token_file: Option<PathBuf>,
    /// `webhook_ca`: who vouches for the webhook's host.
    pub webhook_ca: Option<PathBuf>,
    /// `led`: lit for a match.
    pub led: Option<GpioLine>,
    /// `led_unknown`: lit for a photo that is unknown.
    pub led_unknown: Option<GpioLine>,
    /// `button`: a button on the device.
    pub button: Option<GpioLine>,
    /// `keep_alive`: how long a connection may be silent, in seconds.
    pub keep_alive: Option<u16>,
    /// `queries_per_minute`: how many queries it sends at most.
    pub queries_per_minute: Option<u16>,
    /// `threads`: how many run the network together.
    pub threads: Option<u16>,
    /// `cores`: the processors that the program runs on.
    pub cores: Option<Cores>,
    /// `[network]`.
    pub network: Network,
    /// Where each key of a file stands, and its value.
    places: BTreeMap<&'static str, (Place, Place)>,
}

/// How a device proves itself to its server, and the server to it; all of it in files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// The device's password; its user name is the device's name.
    pub password_file: Option<PathBuf>,
    /// Who vouches for the server; present where the server is met by TLS.
    pub ca: Option<PathBuf>,
    /// The device's certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How a device takes new query networks from its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updates {
    /// A folder that the device can write, where it keeps them.
    pub state: PathBuf,
    /// Only networks that this key signed are taken.
    pub key: ModelKey,
}

/// Where queries wait for their answers, across restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// A folder that the device can write.
    pub folder: PathBuf,
    /// What it may take, in megabytes.
    pub megabytes: u16,
    /// How long a query may wait there, in hours.
    pub hours: u16,
}

/// A device whose description holds together.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Device {
    /// Its name; `None` leaves it to the device, which takes its host name.
    pub name: Option<DeviceId>,
    /// The group that it is in; for whoever looks after a fleet.
    pub group: Option<GroupName>,
    /// What it is; for the image.
    pub board: Option<Board>,
    /// Its network; for the image.
    pub network: Network,
    /// The server that it asks.
    pub server: ServerAddress,
    /// Where its photos come from.
    pub camera: CameraSource,
    /// How large they should be; a folder's and a video's are as they are.
    pub camera_size: CameraSize,
    /// How a camera of V4L2 should send them; `None`: as costs least.
    pub camera_format: Option<CameraFormat>,
    /// When they are taken.
    pub trigger: TriggerKind,
    /// How sharp they have to be, in the measure of `glimpse-edge capture`; 0 takes blurred ones too.
    pub sharpness_min: f32,
    /// The folder with query network and codebook; present where `model` is not.
    pub bundle: Option<PathBuf>,
    /// The query network, in place of the bundle's.
    pub model: Option<PathBuf>,
    /// The codebook, in place of the bundle's; it or `bundle` is present where `codec` is `pq`.
    pub codebook: Option<PathBuf>,
    /// How embeddings travel.
    pub codec: Codec,
    /// Matches asked for.
    pub top_k: u16,
    /// How long a query waits for its reply, repeats included.
    pub timeout: Duration,
    /// How it proves itself.
    pub security: Security,
    /// How it takes new query networks; `None`: it runs the one that is named here.
    pub updates: Option<Updates>,
    /// Where queries wait for their answers; `None`: in memory.
    pub outbox: Option<Outbox>,
    /// What it does with an answer.
    pub actions: Actions,
    /// A button on the device.
    pub button: Option<GpioLine>,
    /// How long its connection may be silent, in seconds.
    pub keep_alive: u16,
    /// How many queries it sends in any minute at most; `None`: as many as there are photos.
    pub queries_per_minute: Option<u16>,
    /// How many threads run the network together.
    pub threads: u16,
    /// The processors that the program runs on; `None`: all.
    pub cores: Option<Cores>,
}

impl Device {
    /// How long a connection may be silent where nothing is said, in seconds. Networks of phones forget a silent connection
    /// after minutes, and each sign of life costs one with a battery a second or more of its radio.
    pub const KEEP_ALIVE_DEFAULT: u16 = 60;
    /// The codec where none is named: a quarter of `f32`, at a loss that the benchmark table shows to be negligible.
    pub const CODEC_DEFAULT: Codec = Codec::I8;
    /// The size of photos where none is named: more than networks of 512 px look at, in either direction.
    pub const CAMERA_SIZE_DEFAULT: CameraSize = CameraSize { width: 1280, height: 720 };
    /// How sharp photos of a live camera have to be where nothing is said; `docs/edge.md` has what was measured.
    pub const SHARPNESS_MIN_LIVE: f32 = 0.5;
    /// The matches where no number is named.
    pub const TOP_K_DEFAULT: u16 = 10;
    /// What an outbox may take where nothing is said, in megabytes: a hundred thousand queries of the codec i8.
    pub const OUTBOX_MB_DEFAULT: u16 = 64;
    /// How long a query may wait where nothing is said, in hours.
    pub const OUTBOX_HOURS_DEFAULT: u16 = 72;
    /// The timeout where none is named.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
}

impl RawDevice {
    /// Reads `device.toml`, with all that is wrong in it. Relative paths are taken from `base`, the file's folder.
    pub fn parse(text: &str, base: &Path) -> (Self, Vec<Problem>) {
        let lines = Lines::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut found: Vec<Found> =
            errors.iter().map(|error| Found::of_syntax(error.span(), error.message(), text)).collect();
        found.sort_by_key(|found| found.span.start);
        // What follows a fault in its line follows from it.
        found.dedup_by_key(|found| lines.place(found.span.clone()).line);
        let faulty: BTreeSet<usize> =
            found.iter().map(|found| lines.place(found.span.clone()).line).collect();
        let from = Source { text, base, lines: &lines, faulty: &faulty };
        let mut raw = Self::default();
        for (key, value) in table.get_ref() {
            let name: &str = key.get_ref();
            let inner = TABLES.iter().find(|(table, _)| *table == name).map(|_| value.get_ref().as_table());
            match inner {
                None => raw.take(("", key, value), &from, &mut found),
                Some(Some(inner)) => {
                    for (key, value) in inner {
                        raw.take((name, key, value), &from, &mut found);
                    }
                }
                Some(None) => found.push(Found {
                    span: key.span(),
                    key: name.to_owned(),
                    reason: "expected a table".to_owned(),
                    fix: format!("write [{name}], and its keys in the lines below"),
                }),
            }
        }
        found.sort_by_key(|found| found.span.start);
        let more = found.len().saturating_sub(PROBLEMS_MAX);
        found.truncate(PROBLEMS_MAX);
        let mut problems: Vec<Problem> = found.into_iter().map(|found| found.at(&lines)).collect();
        if more > 0 {
            problems.push(Problem {
                place: None,
                key: String::new(),
                reason: format!("there are {more} problems more"),
                fix: "look whether it is the right file".to_owned(),
            });
        }
        (raw, problems)
    }

    /// One key of a table, and its value.
    fn take(
        &mut self,
        (table, key, value): (&str, &Spanned<DeString<'_>>, &Spanned<DeValue<'_>>),
        from: &Source<'_>,
        found: &mut Vec<Found>,
    ) {
        let name: &str = key.get_ref();
        let place = from.lines.place(value.span());
        let is_faulty = from.faulty.contains(&place.line);
        let Some(known) = ALL_KEYS.iter().find(|known| known.table_and_name() == (table, name)) else {
            if is_faulty {
                return;
            }
            let path = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
            let (reason, fix) = ("unknown key".to_owned(), fix_of_unknown(table, name));
            found.push(Found { span: key.span(), key: path, reason, fix });
            return;
        };
        self.places.insert(known.path, (from.lines.place(key.span()), place));
        if is_faulty {
            // There is a value, of which nobody knows what it should be.
            return;
        }
        if let Err(wrong) = self.put(known.path, value.get_ref(), from.base) {
            let written = from.text.get(value.span()).unwrap_or_default();
            let fix = wrong.fix.unwrap_or_else(|| fix_of_value(known, value.get_ref(), written));
            found.push(Found { span: value.span(), key: known.path.to_owned(), reason: wrong.reason, fix });
        }
    }

    fn put(&mut self, path: &str, value: &DeValue<'_>, base: &Path) -> Result<(), Wrong> {
        use ValueError as E;
        match path {
            "device" => self.device = Some(parsed(value)?),
            "group" => self.group = Some(parsed(value)?),
            "board" => self.board = Some(parsed(value)?),
            "server" => self.server = Some(parsed(value)?),
            "camera" => self.camera = Some(parsed::<CameraSource>(value)?.based_on(base)),
            "camera_size" => self.camera_size = Some(parsed(value)?),
            "camera_format" => self.camera_format = Some(parsed(value)?),
            "trigger" => self.trigger = Some(parsed(value)?),
            "sharpness_min" => self.sharpness_min = Some(real(value, E::Sharpness, sharpness)?),
            "bundle" => self.bundle = Some(file(value, base)?),
            "model" => self.model = Some(file(value, base)?),
            "codebook" => self.codebook = Some(file(value, base)?),
            "codec" => self.codec = Some(parsed(value)?),
            "top_k" => self.top_k = Some(whole(value, E::TopK, top_k)?),
            "timeout" => self.timeout = Some(real(value, E::Seconds, seconds)?),
            "password_file" => self.password_file = Some(file(value, base)?),
            "ca" => self.ca = Some(file(value, base)?),
            "certificate" => self.certificate = Some(file(value, base)?),
            "key" => self.key = Some(file(value, base)?),
            "state" => self.state = Some(file(value, base)?),
            "model_key" => self.model_key = Some(parsed(value)?),
            "outbox" => self.outbox = Some(file(value, base)?),
            "outbox_mb" => self.outbox_mb = Some(whole(value, E::OutboxMb, outbox_mb)?),
            "outbox_hours" => self.outbox_hours = Some(whole(value, E::OutboxHours, outbox_hours)?),
            "unknown_below" => self.unknown_below = Some(real(value, E::Similarity, similarity)?),
            "exec" => self.exec = Some(file(value, base)?),
            "webhook" => self.webhook = Some(parsed(value)?),
            "webhook_token_file" => self.webhook_token_file = Some(file(value, base)?),
            "webhook_ca" => self.webhook_ca = Some(file(value, base)?),
            "led" => self.led = Some(parsed(value)?),
            "led_unknown" => self.led_unknown = Some(parsed(value)?),
            "button" => self.button = Some(parsed(value)?),
            "keep_alive" => self.keep_alive = Some(whole(value, E::KeepAlive, keep_alive)?),
            "queries_per_minute" => {
                self.queries_per_minute = Some(whole(value, E::QueriesPerMinute, queries_per_minute)?);
            }
            "threads" => self.threads = Some(whole(value, E::Threads, threads)?),
            "cores" => self.cores = Some(parsed(value)?),
            "network.hostname" => self.network.hostname = Some(hostname(text(value)?)?),
            "network.wifi_ssid" => self.network.wifi_ssid = Some(ssid(text(value)?)?),
            "network.wifi_password_file" => self.network.wifi_password_file = Some(file(value, base)?),
            "network.wifi_country" => self.network.wifi_country = Some(country(text(value)?)?),
            "network.address" => self.network.address = Some(parsed(value)?),
            "network.gateway" => self.network.gateway = Some(address(text(value)?)?),
            "network.dns" => self.network.dns = list(value, address)?,
            "network.ntp" => self.network.ntp = list(value, time_server)?,
            _ => promise(value)?,
        }
        Ok(())
    }

    /// Where the value of a key stands that came from a file.
    pub fn place(&self, key: &str) -> Option<&Place> {
        self.places.get(key).map(|(_, value)| value)
    }

    /// What `self` says, and what `below` says where `self` is silent: flags over a file.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            device: self.device.or(below.device),
            group: self.group.or(below.group),
            board: self.board.or(below.board),
            server: self.server.or(below.server),
            camera: self.camera.or(below.camera),
            camera_size: self.camera_size.or(below.camera_size),
            camera_format: self.camera_format.or(below.camera_format),
            trigger: self.trigger.or(below.trigger),
            sharpness_min: self.sharpness_min.or(below.sharpness_min),
            bundle: self.bundle.or(below.bundle),
            model: self.model.or(below.model),
            codebook: self.codebook.or(below.codebook),
            codec: self.codec.or(below.codec),
            top_k: self.top_k.or(below.top_k),
            timeout: self.timeout.or(below.timeout),
            password_file: self.password_file.or(below.password_file),
            ca: self.ca.or(below.ca),
            certificate: self.certificate.or(below.certificate),
            key: self.key.or(below.key),
            state: self.state.or(below.state),
            model_key: self.model_key.or(below.model_key),
            outbox: self.outbox.or(below.outbox),
            outbox_mb: self.outbox_mb.or(below.outbox_mb),
            outbox_hours: self.outbox_hours.or(below.outbox_hours),
            unknown_below: self.unknown_below.or(below.unknown_below),
            exec: self.exec.or(below.exec),
            webhook: self.webhook.or(below.webhook),
            webhook_token_file: self.webhook_token_file.or(below.webhook_token_file),
            webhook_ca: self.webhook_ca.or(below.webhook_ca),
            led: self.led.or(below.led),
            led_unknown: self.led_unknown.or(below.led_unknown),
            button: self.button.or(below.button),
            keep_alive: self.keep_alive.or(below.keep_alive),
            queries_per_minute: self.queries_per_minute.or(below.queries_per_minute),
            threads: self.threads.or(below.threads),
            cores: self.cores.or(below.cores),
            network: if self.network == Network::default() { below.network } else { self.network },
            places: below.places,
        }
    }

    /// Checks that everything needed is there and fits together, and adds what is not to `problems` found before.
    ///
    /// # Errors
    /// All problems, old and new.
    pub fn validate(self, mut problems: Vec<Problem>) -> Result<Device, Problems> {
        // A key that is there with a bad value is told already, and is not missing.
        let mut needed = |key: &str, is_there: bool, example: &str| {
            if !is_there && !self.places.contains_key(key) {
                problems.push(self.problem(key, "missing", &format!("write {example}")));
            }
        };
        needed("server", self.server.is_some(), "server = \"HOST:PORT\"");
        needed("camera", self.camera.is_some(), "camera = \"folder:DIR\"");
        let has_model = self.bundle.is_some() || self.model.is_some() || self.places.contains_key("model");
        needed("bundle", has_model, "bundle = \"DIR\", or model = \"FILE\"");
        if self.codec == Some(Codec::Pq)
            && self.codebook.is_none()
            && self.bundle.is_none()
            && !["codebook", "bundle"].iter().any(|key| self.places.contains_key(key))
        {
            problems.push(self.problem(
                "codec",
                "pq needs the quantizer's codebook",
                "write codebook = \"FILE\" or bundle = \"DIR\"",
            ));
        }
        let security = match self.server.as_ref().map(|server| self.security(server)) {
            Some(Ok(security)) => security,
            Some(Err(problem)) => {
                problems.push(problem);
                Security::default()
            }
            None => Security::default(),
        };
        let updates = match self.updates() {
            Ok(updates) => updates,
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        if self.outbox.is_none() && !self.places.contains_key("outbox") {
            let settings =
                [("outbox_mb", self.outbox_mb.is_some()), ("outbox_hours", self.outbox_hours.is_some())];
            for (key, _) in settings.into_iter().filter(|(_, is_there)| *is_there) {
                problems.push(self.problem(
                    key,
                    "is about a folder where queries wait",
                    "write outbox = \"DIR\" too",
                ));
            }
        }
        let actions = self.actions(&mut problems);
        self.network_problems(&mut problems);
        match (self.server, self.camera) {
            (Some(server), Some(camera)) if problems.is_empty() => Ok(Device {
                name: self.device,
                group: self.group,
                board: self.board,
                network: self.network,
                server,
                camera_size: self.camera_size.unwrap_or(Device::CAMERA_SIZE_DEFAULT),
                camera_format: self.camera_format,
                trigger: self.trigger.unwrap_or_else(|| match &self.button {
                    Some(_) => TriggerKind::Button,
                    None => camera.trigger_default(),
                }),
                sharpness_min: self.sharpness_min.unwrap_or_else(|| camera.sharpness_min_default()),
                camera,
                bundle: self.bundle,
                model: self.model,
                codebook: self.codebook,
                codec: self.codec.unwrap_or(Device::CODEC_DEFAULT),
                top_k: self.top_k.unwrap_or(Device::TOP_K_DEFAULT),
                timeout: self.timeout.unwrap_or(Device::TIMEOUT_DEFAULT),
                security,
                updates,
                outbox: self.outbox.map(|folder| Outbox {
                    folder,
                    megabytes: self.outbox_mb.unwrap_or(Device::OUTBOX_MB_DEFAULT),
                    hours: self.outbox_hours.unwrap_or(Device::OUTBOX_HOURS_DEFAULT),
                }),
                actions,
                button: self.button,
                keep_alive: self.keep_alive.unwrap_or(Device::KEEP_ALIVE_DEFAULT),
                queries_per_minute: self.queries_per_minute,
                threads: self.threads.unwrap_or(1),
                cores: self.cores,
            }),
            _ => {
                let mut problems = Problems(problems);
                problems.sort();
                Err(problems)
            }
        }
    }

    /// What is wrong with the value of a key, which may come from a file or not.
    pub fn problem(&self, key: &str, reason: &str, fix: &str) -> Problem {
        Problem {
            place: self.place(key).cloned(),
            key: key.to_owned(),
            reason: reason.to_owned(),
            fix: fix.to_owned(),
        }
    }

    /// What does not fit together in `[network]`.
    fn network_problems(&self, problems: &mut Vec<Problem>) {
        let network = &self.network;
        let mut add = |key: &str, reason: &str, fix: &str| problems.push(self.problem(key, reason, fix));
        let is_silent = |key: &str| !self.places.contains_key(key);
        if network.wifi_ssid.is_none() && is_silent("network.wifi_ssid") {
            let settings = [
                ("network.wifi_password_file", network.wifi_password_file.is_some()),
                ("network.wifi_country", network.wifi_country.is_some()),
            ];
            for (key, _) in settings.into_iter().filter(|(_, is_there)| *is_there) {
                add(key, "is about a wireless network", "write wifi_ssid = \"NAME\" too");
            }
        }
        if network.wifi_ssid.is_some() && network.wifi_country.is_none() && is_silent("network.wifi_country")
        {
            let reason = "a radio has to know whose rules it keeps";
            add("network.wifi_ssid", reason, "write wifi_country = \"DE\", with the letters of your country");
        }
        match (&network.address, network.gateway) {
            (None, Some(_)) if is_silent("network.address") => add(
                "network.gateway",
                "has no use without a fixed address: DHCP names its own",
                "write address = \"192.168.1.50/24\" too, or leave it out",
            ),
            (Some(subnet), Some(gateway)) if gateway == subnet.address() => {
                add("network.gateway", "is the device's own address", "write the router's address");
            }
            (Some(subnet), Some(gateway)) if !subnet.has(gateway) => add(
                "network.gateway",
                &format!("cannot be reached from {subnet}"),
                "write an address of that network, or correct address",
            ),
            _ => {}
        }
        // Names that end in .local are asked of the neighbours, and need no server.
        let is_name = self.server.as_ref().is_some_and(|server| {
            server.host().parse::<core::net::IpAddr>().is_err()
                && server.host().rsplit('.').next() != Some("local")
        });
        if network.address.is_some() && network.dns.is_empty() && is_name && is_silent("network.dns") {
            let reason = "no name server comes with a fixed address, and the gallery server has a name";
            add("network.address", reason, "write dns = [\"192.168.1.1\"], or the address of the server");
        }
    }

    /// A key of which the value is bad is told already.
    fn updates(&self) -> Result<Option<Updates>, Problem> {
        match (&self.state, self.model_key) {
            (_, Some(key)) if key.is_weak() => Err(self.problem(
                "model_key",
                "anybody can sign for this key",
                "take the one that `glimpse-gallery models key` prints",
            )),
            (Some(state), Some(key)) => Ok(Some(Updates { state: state.clone(), key })),
            (Some(_), None) if !self.places.contains_key("model_key") => Err(self.problem(
                "state",
                "is where networks from the server are kept, and needs the key that signs them",
                "write model_key = \"..\", as `glimpse-gallery models key` prints it",
            )),
            (None, Some(_)) if !self.places.contains_key("state") => Err(self.problem(
                "model_key",
                "lets the server give this device networks, and needs a folder to keep them in",
                "write state = \"DIR\"",
            )),
            _ => Ok(None),
        }
    }

    /// What the device does with an answer. Adds what has no use without something else, or is meant twice.
    pub fn actions(&self, problems: &mut Vec<Problem>) -> Actions {
        let webhook = self.webhook.clone();
        if webhook.is_none() && !self.places.contains_key("webhook") {
            let settings = [
                ("webhook_token_file", self.webhook_token_file.is_some()),
                ("webhook_ca", self.webhook_ca.is_some()),
            ];
            for (key, _) in settings.into_iter().filter(|(_, is_there)| *is_there) {
                problems.push(self.problem(
                    key,
                    "is about an address that outcomes are posted to",
                    "write webhook = \"https://HOST/PATH\" too",
                ));
            }
        }
        if webhook.as_ref().is_some_and(|url| !url.is_tls()) && self.webhook_ca.is_some() {
            problems.push(self.problem(
                "webhook_ca",
                "is for TLS",
                "write webhook = \"https://..\", or leave it out",
            ));
        }
        match (self.trigger, &self.button) {
            (Some(TriggerKind::Button), None) if !self.places.contains_key("button") => {
                problems.push(self.problem(
                    "trigger",
                    "button needs the line that the button is on",
                    "write button = \"gpiochip0:3\"",
                ));
            }
            (Some(other), Some(_)) if other != TriggerKind::Button => problems.push(self.problem(
                "button",
                &format!("is not looked at with trigger = \"{other}\""),
                "write trigger = \"button\", or leave one out",
            )),
            _ => {}
        }
        let lines = [("led", &self.led), ("led_unknown", &self.led_unknown), ("button", &self.button)];
        for (place, (key, line)) in lines.iter().enumerate() {
            let Some(line) = line else { continue };
            let other = lines
                .iter()
                .take(place)
                .find(|(_, other)| other.as_ref().is_some_and(|other| other.is_line_of(line)));
            if let Some((other, _)) = other {
                let reason = format!("{line} is taken by {other} already");
                problems.push(self.problem(key, &reason, "give another line"));
            }
        }
        Actions {
            unknown_below: self.unknown_below,
            exec: self.exec.clone(),
            webhook: webhook.map(|url| Webhook {
                url,
                token_file: self.webhook_token_file.clone(),
                ca: self.webhook_ca.clone(),
            }),
            led: self.led.clone(),
            led_unknown: self.led_unknown.clone(),
        }
    }

    /// How the device proves itself to `server`.
    ///
    /// # Errors
    /// What is missing, or has no use without something else.
    pub fn security(&self, server: &ServerAddress) -> Result<Security, Problem> {
        let problem = |key, reason, fix| Err(self.problem(key, reason, fix));
        let is_silent = |key: &str| !self.places.contains_key(key);
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (Some(_), None) if is_silent("key") => {
                return problem("certificate", "needs its private key", "write key = \"FILE\"");
            }
            (None, Some(_)) if is_silent("certificate") => {
                return problem("key", "needs its certificate", "write certificate = \"FILE\"");
            }
            // The other one has a bad value, which is told already.
            _ => None,
        };
        match (server.is_tls(), &self.ca) {
            (true, None) if is_silent("ca") => problem(
                "server",
                "mqtts:// needs the authority that signed the server's certificate",
                "write ca = \"FILE\"",
            ),
            (false, Some(_)) => {
                problem("ca", "is for TLS", "write server = \"mqtts://HOST:PORT\", or leave it out")
            }
            (false, None) if identity.is_some() => {
                problem("certificate", "is for TLS", "write server = \"mqtts://HOST:PORT\" and ca = \"FILE\"")
            }
            _ => Ok(Security { password_file: self.password_file.clone(), ca: self.ca.clone(), identity }),
        }
    }
}

/// Where keys and values are read from.
struct Source<'a> {
    text: &'a str,
    /// What relative paths are taken from.
    base: &'a Path,
    lines: &'a Lines<'a>,
    /// The lines that TOML finds fault with.
    faulty: &'a BTreeSet<usize>,
}

/// A problem before its line is known.
struct Found {
    span: Range<usize>,
    key: String,
    reason: String,
    fix: String,
}

impl Found {
    /// What TOML finds fault with. A value that is missing it takes for text without quotation marks.
    fn of_syntax(span: Option<Range<usize>>, message: &str, text: &str) -> Self {
        let span = span.unwrap_or_default();
        let (before, after) = (text.get(..span.start), text.get(span.start..));
        let is_missing = before.is_some_and(|before| before.trim_end_matches([' ', '\t']).ends_with('='))
            && after.is_some_and(|after| {
                let after = after.trim_start_matches([' ', '\t']);
                after.is_empty() || after.starts_with(['\r', '\n', '#'])
            });
        let rest = text.get(span.end..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let (message, fix) = if is_missing {
            ("a value is missing", "write KEY = VALUE, or put # before the line".to_owned())
        } else if message.contains("must be quoted") && rest.contains('=') {
            (message, "write one KEY = VALUE a line, with text in quotation marks".to_owned())
        } else {
            (message, fix_of_syntax(message))
        };
        Self { span, key: String::new(), reason: format!("no TOML: {message}"), fix }
    }

    fn at(self, lines: &Lines<'_>) -> Problem {
        let Self { span, key, reason, fix } = self;
        Problem { place: Some(lines.place(span)), key, reason, fix }
    }
}

/// Why a value is none, and what to do where the table of keys does not say it.
struct Wrong {
    reason: String,
    fix: Option<String>,
}

impl Wrong {
    fn new(reason: &str) -> Self {
        Self { reason: reason.to_owned(), fix: None }
    }
}

impl From<ValueError> for Wrong {
    fn from(error: ValueError) -> Self {
        match error {
            ValueError::WebhookSecret => Self {
                reason: "an address must hold no user or password".to_owned(),
                fix: Some(WEBHOOK_SECRET_FIX.to_owned()),
            },
            ValueError::HostAddress => Self {
                reason: error.to_string(),
                fix: Some("write one between the first and the last of the network".to_owned()),
            },
            error => Self { reason: error.to_string(), fix: None },
        }
    }
}

impl From<IdError> for Wrong {
    fn from(error: IdError) -> Self {
        let fix = matches!(error, IdError::NotHex(_))
            .then(|| "write what `glimpse-gallery models key` prints".to_owned());
        Self { reason: error.to_string(), fix }
    }
}

impl From<CodecError> for Wrong {
    fn from(_: CodecError) -> Self {
        Self::new("expected f32, f16, i8 or pq")
    }
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, Wrong> {
    value.as_str().ok_or_else(|| Wrong::new("expected text in quotation marks"))
}

fn parsed<T: FromStr<Err: Into<Wrong>>>(value: &DeValue<'_>) -> Result<T, Wrong> {
    text(value)?.parse().map_err(Into::into)
}

fn file(value: &DeValue<'_>, base: &Path) -> Result<PathBuf, Wrong> {
    match text(value)? {
        "" => Err(Wrong::new("expected a path")),
        path if path.contains('\0') => Err(Wrong::new("no path has a NUL in it")),
        path => Ok(base.join(path)),
    }
}

fn whole(
    value: &DeValue<'_>,
    error: ValueError,
    read: fn(i64) -> Result<u16, ValueError>,
) -> Result<u16, Wrong> {
    Ok(read(integer(value).ok_or(error)?)?)
}

fn real<T>(
    value: &DeValue<'_>,
    error: ValueError,
    read: fn(f64) -> Result<T, ValueError>,
) -> Result<T, Wrong> {
    Ok(read(number(value).ok_or(error)?)?)
}

fn list<T>(value: &DeValue<'_>, read: fn(&str) -> Result<T, ValueError>) -> Result<Vec<T>, Wrong> {
    let array = value.as_array().ok_or_else(|| Wrong::new("expected a list of texts"))?;
    array.iter().map(|item| Ok(read(text(item.get_ref())?)?)).collect()
}

/// `[privacy]` says what the program does; it can do no other.
fn promise(value: &DeValue<'_>) -> Result<(), Wrong> {
    match value.as_bool() {
        Some(false) => Ok(()),
        Some(true) => Err(Wrong {
            reason: "the program cannot do that: it keeps and sends no photo".to_owned(),
            fix: Some("write false, or leave it out".to_owned()),
        }),
        None => Err(Wrong::new("expected false")),
    }
}

/// What to write in place of a value that is none: itself in another form where that is what was missing.
fn fix_of_value(key: &Key, value: &DeValue<'_>, written: &str) -> String {
    let (_, name) = key.table_and_name();
    let quoted = |text: &str| format!("\"{text}\"");
    let candidates: Vec<String> = match (value.as_str(), key.kind) {
        // It may be the secret itself.
        _ if name.ends_with("_file") => Vec::new(),
        (Some(text), Kind::OneOf(words)) => {
            nearest(text, words.iter().copied()).into_iter().map(quoted).collect()
        }
        (Some(text), Kind::Texts(_)) => [format!("[\"{text}\"]")].into(),
        (Some(text), _) => {
            let plain = text.trim();
            let host = plain.split_once("://").map_or(plain, |(_, host)| host);
            let forms =
                [plain, host, &format!("[{plain}]"), &plain.replace(' ', "-"), &plain.replace('*', "x")];
            core::iter::once(text.to_owned()).chain(forms.map(quoted)).collect()
        }
        (None, Kind::Texts(_)) => Vec::new(),
        (None, _) => [quoted(written), format!("\"gpiochip0:{written}\"")].into(),
    };
    let is_value = |candidate: &String| {
        let text = format!("x = {candidate}");
        let Ok(table) = DeTable::parse(&text) else { return false };
        let mut values = table.get_ref().iter().map(|(_, value)| value.get_ref());
        // A text of many lines could hold more than a value.
        candidate.len() <= 64
            && !candidate.contains(['\n', '\r'])
            && values
                .next()
                .is_some_and(|value| RawDevice::default().put(key.path, value, Path::new("")).is_ok())
    };
    let value = candidates.into_iter().find(is_value).unwrap_or_else(|| key.example.to_owned());
    format!("write {name} = {value}")
}

/// What people call a key, and which it is.
const OTHER_NAMES: [(&str, &str); 16] = [
    ("name id client_id", "device"),
    ("broker host mqtt url", "server"),
    ("source", "camera"),
    ("size resolution", "camera_size"),
    ("format", "camera_format"),
    ("interval", "trigger"),
    ("space", "bundle"),
    ("password passwd secret", "password_file"),
    ("token", "webhook_token_file"),
    ("cert tls_certificate", "certificate"),
    ("private_key tls_key", "key"),
    ("wifi wlan ssid", "network.wifi_ssid"),
    ("password psk wifi_password wifi_psk passphrase", "network.wifi_password_file"),
    ("country", "network.wifi_country"),
    ("ip static_address", "network.address"),
    ("nameserver nameservers dns_servers", "network.dns"),
];

/// What to do about a key that no table has, or another.
fn fix_of_unknown(table: &str, written: &str) -> String {
    let names = |table: &'static str| {
        ALL_KEYS.iter().map(Key::table_and_name).filter(move |(of, _)| *of == table).map(|(_, name)| name)
    };
    let tables = || core::iter::once("").chain(TABLES.iter().map(|(name, _)| *name));
    let place = |of: &str| match of {
        "" => "above the first [table]".to_owned(),
        of => format!("below [{of}]"),
    };
    let here = tables().find(|of| *of == table).unwrap_or_default();
    let plain = written.to_ascii_lowercase().replace('-', "_");
    let other_names = OTHER_NAMES.iter().filter(|(others, _)| others.split(' ').any(|other| other == plain));
    let meant: Vec<(&str, &str)> =
        other_names.map(|(_, path)| path.split_once('.').unwrap_or(("", path))).collect();
    // `address` without more is the network's, and `password` there the radio's.
    if let Some((of, name)) = meant.iter().find(|(of, _)| *of == here).or(meant.first()) {
        let secret = if name.ends_with("_file") { " = \"FILE\", with the secret in that file" } else { "" };
        return if *of == here {
            format!("write {name}{secret}")
        } else {
            format!("write {name}{secret}, {}", place(of))
        };
    }
    if let Some(known) = nearest(written, names(here)) {
        return format!("write {known}");
    }
    if table.is_empty()
        && let Some(known) = nearest(written, TABLES.iter().map(|(name, _)| *name))
    {
        return format!("write [{known}]");
    }
    for other in tables().filter(|of| *of != here) {
        if let Some(known) = nearest(written, names(other)) {
            return format!("write {known} {}", place(other));
        }
    }
    let all: Vec<&str> = names(here).collect();
    match here {
        "" => format!("leave it out; the keys are {}", all.join(", ")),
        of => format!("leave it out; the keys of [{of}] are {}", all.join(", ")),
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value.as_float() {
        Some(float) => float.as_str().to_string().parse().ok(),
        None => integer(value).map(|integer| integer as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Device, Problems> {
        let (raw, problems) = RawDevice::parse(text, Path::new("/etc/glimpse"));
        raw.validate(problems)
    }

    /// Expects these problems, by the beginnings of their lines, and without their columns.
    fn check_problems(text: &str, expected: &[&str]) {
        let problems = read(text).unwrap_err().0;
        let without_column = |problem: &Problem| {
            let line = problem.line().map_or_else(String::new, |line| format!("line {line}: "));
            format!("{line}{}: {}", problem.title(), problem.fix)
        };
        let problems: Vec<String> = problems.iter().map(without_column).collect();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem}\nis not\n{expected}");
        }
    }

    #[test]
    fn a_problem_has_its_column_its_reason_and_what_to_write() {
        for (text, expected) in [
            (
                "top_k = '7'",
                "line 1, column 9: top_k: expected a whole number from 1 to 100: write top_k = 7",
            ),
            (
                "device = 7",
                "line 1, column 10: device: expected text in quotation marks: write device = \"7\"",
            ),
            ("device = '7", "line 1, column 12: no TOML: invalid literal string"),
            ("codec = 'pg'", "line 1, column 9: codec: expected f32, f16, i8 or pq: write codec = \"pq\""),
            (" servr = 'a'", "line 1, column 2: servr: unknown key: write server"),
            ("server = # later", "line 1, column 10: no TOML: a value is missing: write KEY = VALUE"),
            ("name = 'a'", "line 1, column 1: name: unknown key: write device"),
            (
                "psk = 'a'",
                "line 1, column 1: psk: unknown key: write wifi_password_file = \"FILE\", with the secret in that file, below [network]",
            ),
            ("dns = []", "line 1, column 1: dns: unknown key: write dns below [network]"),
            (
                "[network]\n threads = 2",
                "line 2, column 2: network.threads: unknown key: write threads above the first [table]",
            ),
            ("[netwrk]", "line 1, column 2: netwrk: unknown key: write [network]"),
            (
                "network = 1",
                "line 1, column 1: network: expected a table: write [network], and its keys in the lines below",
            ),
            (
                "[network]\ndns = '10.0.0.1'",
                "line 2, column 7: network.dns: expected a list of texts: write dns = [\"10.0.0.1\"]",
            ),
            (
                "webhook = 'http://me:word@a'",
                "line 1, column 11: webhook: an address must hold no user or password: put a secret into a file, and write \
                 webhook_token_file = \"FILE\"",
            ),
            (
                "[privacy]\nkeep_photos = true",
                "line 2, column 15: privacy.keep_photos: the program cannot do that: it keeps and sends no photo: write false, \
                 or leave it out",
            ),
        ] {
            let problems = read(text).unwrap_err().0;
            assert!(problems[0].to_string().starts_with(expected), "{}\nis not\n{expected}", problems[0]);
        }
    }

    #[test]
    fn a_network_fits_together() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'gallery.lan'\n[network]\n";
        for (more, expected) in [
            ("wifi_ssid = 'a'", "line 5: network.wifi_ssid: a radio has to know whose rules it keeps: "),
            ("wifi_country = 'CH'", "line 5: network.wifi_country: is about a wireless network: "),
            ("wifi_password_file = 'p'", "line 5: network.wifi_password_file: is about a wireless network: "),
            ("gateway = '10.0.0.1'", "line 5: network.gateway: has no use without a fixed address"),
            (
                "address = '10.0.0.2/24'\ndns = ['10.0.0.1']\ngateway = '10.0.1.1'",
                "line 7: network.gateway: cannot be reached from 10.0.0.2/24: ",
            ),
            (
                "address = '10.0.0.2/24'\ndns = ['10.0.0.1']\ngateway = '10.0.0.2'",
                "line 7: network.gateway: is the device's own address: ",
            ),
            ("address = '10.0.0.2/24'", "line 5: network.address: no name server comes with a fixed address"),
            ("adress = '10.0.0.2/24'", "line 5: network.adress: unknown key: write address"),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
        let whole = "hostname = 'door-1'\nwifi_ssid = 'a b'\nwifi_password_file = 'wifi'\nwifi_country = 'CH'\n\
                     address = '10.0.0.2/24'\ngateway = '10.0.0.1'\ndns = ['10.0.0.1', 'fd00::1']\nntp = ['ntp.lan']\n";
        let text = format!(
            "group = 'entrance'\nboard = 'raspberry-pi-5'\n{head}{whole}[privacy]\nkeep_photos = false\n"
        );
        let device = read(&text).unwrap();
        assert_eq!((device.group.unwrap().as_str(), device.board), ("entrance", Some(Board::RaspberryPi5)));
        let network = device.network;
        assert_eq!(network.wifi_password_file, Some("/etc/glimpse/wifi".into()));
        assert_eq!((network.dns.len(), network.ntp[0].as_str()), (2, "ntp.lan"));
        assert_eq!(network.address, Some("10.0.0.2/24".parse().unwrap()));
    }

    #[test]
    fn problems_are_bounded() {
        let text: String = (0..10_000).map(|number| format!("k{number} = 1\n")).collect();
        let (_, problems) = RawDevice::parse(&text, Path::new(""));
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems.last().unwrap().reason, "there are 9950 problems more");
    }

    const WHOLE: &str = "device = 'door-1'\nserver = 'mqtts://gallery.local'\ncamera = 'folder:photos'\n\
                         camera_size = '640x480'\ncamera_format = 'mjpeg'\ntrigger = 'button'\nsharpness_min = 0x2\nbundle = '/opt/b'\n\
                         model = 'm.onnx'\ncodebook = 'c.safetensors'\ncodec = 'pq'\ntop_k = 0x14\ntimeout = 2.5\n\
                         password_file = '/run/secret'\nca = 'ca.pem'\ncertificate = 'door-1.pem'\nkey = 'door-1.key'\nstate = '/var/lib/glimpse'\n\
                         model_key = '000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'\n\
                         outbox = 'outbox'\noutbox_mb = 32\noutbox_hours = 24\n\
                         unknown_below = 0.5\nexec = 'hook'\nwebhook = 'https://a/b'\nwebhook_token_file = 'token'\n\
                         webhook_ca = 'hook.pem'\nled = 'gpiochip0:17'\nled_unknown = 'gpiochip0:18:low'\n\
                         button = 'gpiochip1:3'\nkeep_alive = 300\nqueries_per_minute = 6\nthreads = 4\n\
                         cores = '0,2-3'\n";

    #[test]
    fn reads_every_key() {
        let device = read(WHOLE).unwrap();
        assert_eq!(device.name.unwrap().as_str(), "door-1");
        assert_eq!(device.server.to_string(), "mqtts://gallery.local:8883");
        assert_eq!(device.camera.to_string(), "folder:/etc/glimpse/photos");
        assert_eq!(device.camera_size, CameraSize { width: 640, height: 480 });
        assert_eq!(device.camera_format, Some(CameraFormat::Mjpeg));
        assert_eq!(device.trigger, TriggerKind::Button);
        assert_eq!(device.sharpness_min, 2.0);
        assert_eq!(device.bundle, Some("/opt/b".into()));
        assert_eq!(device.model, Some("/etc/glimpse/m.onnx".into()));
        assert_eq!(device.codebook, Some("/etc/glimpse/c.safetensors".into()));
        assert_eq!(
            (device.codec, device.top_k, device.timeout),
            (Codec::Pq, 20, Duration::from_millis(2500))
        );
        let file = |name: &str| Path::new("/etc/glimpse").join(name);
        assert_eq!(device.security.password_file, Some("/run/secret".into()));
        assert_eq!(device.security.ca, Some(file("ca.pem")));
        assert_eq!(device.security.identity, Some((file("door-1.pem"), file("door-1.key"))));
        let key = ModelKey::from_bytes(core::array::from_fn(|place| place as u8));
        assert_eq!(device.updates, Some(Updates { state: "/var/lib/glimpse".into(), key }));
        assert_eq!(device.outbox, Some(Outbox { folder: file("outbox"), megabytes: 32, hours: 24 }));
        let line = |text: &str| Some(text.parse::<GpioLine>().unwrap());
        let webhook = Webhook {
            url: "https://a/b".parse().unwrap(),
            token_file: Some(file("token")),
            ca: Some(file("hook.pem")),
        };
        let actions = Actions {
            unknown_below: Some(0.5),
            exec: Some(file("hook")),
            webhook: Some(webhook),
            led: line("gpiochip0:17"),
            led_unknown: line("gpiochip0:18:low"),
        };
        assert_eq!((device.actions, device.button), (actions, line("gpiochip1:3")));
        assert_eq!((device.keep_alive, device.queries_per_minute), (300, Some(6)));
        assert_eq!((device.threads, device.cores), (4, Some("0,2-3".parse().unwrap())));
        let keys: Vec<&str> = WHOLE.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(keys, KEYS);
    }

    #[test]
    fn fills_in_what_may_be_left_out() {
        let device = read("server = 'a:1'\ncamera = 'folder:/p'\nmodel = '/m'").unwrap();
        assert_eq!((device.codec, device.top_k, device.timeout.as_secs()), (Codec::I8, 10, 5));
        assert_eq!((device.name, device.bundle, device.codebook), (None, None, None));
        assert_eq!((device.keep_alive, device.queries_per_minute), (60, None));
        assert_eq!((device.threads, device.cores), (1, None));
    }

    #[test]
    fn tells_all_problems_at_once_with_their_lines() {
        check_problems(
            "device = 'two words'\ntop-k = 3\n\nserver = 'a:b'\nthing = 1\ncamera = 'usb'\ntop_k = 101\ncodec = 7\n\
             timeout = 'long'\n",
            &[
                "line 1: device: a device name has only letters, digits, '-', '_' and '.'",
                "line 2: top-k: unknown key: write top_k",
                "line 4: server: expected HOST:PORT, such as 192.168.1.20:1883, gallery.local:1883 or [fe80::1]:1883, \
                 or mqtts://HOST:PORT for TLS",
                "line 5: thing: unknown key: leave it out; the keys are device, group, board, server, camera, ",
                "line 6: camera: expected folder:DIR, the photos in a folder; v4l2:/dev/videoN, a USB camera; rpicam, a \
                 Raspberry Pi's camera; or video:FILE, a file in MJPEG or YUV4MPEG2",
                "line 7: top_k: expected a whole number from 1 to 100",
                "line 8: codec: expected text in quotation marks",
                "line 9: timeout: expected seconds, more than 0 and at most 3600",
                "bundle: missing: write bundle = \"DIR\", or model = \"FILE\"",
            ],
        );
        check_problems(
            "",
            &[
                "server: missing: write server = \"HOST:PORT\"",
                "camera: missing: write camera = \"folder:DIR\"",
                "bundle: missing: write bundle = \"DIR\", or model = \"FILE\"",
            ],
        );
    }

    #[test]
    fn tls_needs_an_authority_and_a_certificate_its_key() {
        let tls = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'mqtts://a'\n";
        let plain = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        for (head, more, expected) in [
            (
                tls,
                "",
                "line 3: server: mqtts:// needs the authority that signed the server's certificate: write ca = \"FILE\"",
            ),
            (
                tls,
                "ca = 'c'\ncertificate = 'c'",
                "line 5: certificate: needs its private key: write key = \"FILE\"",
            ),
            (tls, "ca = 'c'\nkey = 'k'", "line 5: key: needs its certificate: write certificate = \"FILE\""),
            (
                plain,
                "ca = 'c'",
                "line 4: ca: is for TLS: write server = \"mqtts://HOST:PORT\", or leave it out",
            ),
            (
                plain,
                "certificate = 'c'\nkey = 'k'",
                "line 4: certificate: is for TLS: write server = \"mqtts://HOST:PORT\" and ca = \"FILE\"",
            ),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
        read(&format!("{plain}password_file = 'p'")).unwrap();
    }

    #[test]
    fn networks_from_the_server_need_a_folder_and_a_key() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        for (more, expected) in [
            (
                "state = 's'",
                "line 4: state: is where networks from the server are kept, and needs the key that signs them: write \
                 model_key = \"..\", as `glimpse-gallery models key` prints it",
            ),
            (
                &format!("model_key = '{}'", "0f".repeat(32)),
                "line 4: model_key: lets the server give this device networks, and needs a folder to keep them in: write \
                 state = \"DIR\"",
            ),
            (
                &format!("state = 's'\nmodel_key = '{}'", "00".repeat(32)),
                "line 5: model_key: anybody can sign for this key: take the one that `glimpse-gallery models key` prints",
            ),
            ("model_key = 'secret'", "line 4: model_key: expected 64 hexadecimal digits"),
            ("state = 's'\nmodel_key = '00'", "line 5: model_key: expected 64 hexadecimal digits"),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
    }

    #[test]
    fn an_outbox_has_a_folder_and_bounds() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        let outbox = read(&format!("{head}outbox = '/var/lib/glimpse/outbox'")).unwrap().outbox.unwrap();
        assert_eq!((outbox.megabytes, outbox.hours), (64, 72));
        for (more, expected) in [
            (
                "outbox_hours = 5",
                "line 4: outbox_hours: is about a folder where queries wait: write outbox = \"DIR\" too",
            ),
            ("outbox_mb = 3", "line 4: outbox_mb: expected a whole number of megabytes from 4 to 512"),
            (
                "outbox = 'o'\noutbox_hours = 1.5",
                "line 5: outbox_hours: expected a whole number of hours from 1 to 8784",
            ),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
    }

    #[test]
    fn actions_are_told_what_they_lack() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        for (more, expected) in [
            (
                "webhook_token_file = 't'",
                "line 4: webhook_token_file: is about an address that outcomes are posted to: write webhook = \
                 \"https://HOST/PATH\" too",
            ),
            (
                "webhook = 'http://a'\nwebhook_ca = 'c'",
                "line 5: webhook_ca: is for TLS: write webhook = \"https://..\", or leave it out",
            ),
            (
                "led = 'gpiochip0:1'\nbutton = 'gpiochip0:1:low'",
                "line 5: button: gpiochip0:1:low is taken by led already: give another line",
            ),
            (
                "unknown_below = 'x'",
                "line 4: unknown_below: expected a similarity from -1 to 1; larger is nearer",
            ),
            ("webhook = 'a.org'", "line 4: webhook: expected http://HOST/PATH or https://HOST/PATH"),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
        let device = read(&format!("{head}unknown_below = 0")).unwrap();
        assert_eq!(device.actions, Actions { unknown_below: Some(0.0), ..Actions::default() });
    }

    #[test]
    fn processors_are_counted_and_named() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        for (more, expected) in [
            ("threads = 0", "line 4: threads: expected a whole number of threads from 1 to 32"),
            ("threads = 'all'", "line 4: threads: expected a whole number of threads from 1 to 32"),
            (
                "cores = '3-2'",
                "line 4: cores: expected the numbers of processors, such as \"2-3\" or \"0,2\"",
            ),
            ("cores = 1", "line 4: cores: expected text in quotation marks"),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
    }

    #[test]
    fn a_link_that_costs_has_bounds() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        for (more, expected) in [
            ("keep_alive = 4", "line 4: keep_alive: expected a whole number of seconds from 5 to 1800"),
            ("keep_alive = '1m'", "line 4: keep_alive: expected a whole number of seconds from 5 to 1800"),
            (
                "queries_per_minute = 0",
                "line 4: queries_per_minute: expected a whole number of queries from 1 to 6000",
            ),
        ] {
            check_problems(&format!("{head}{more}"), &[expected]);
        }
    }

    #[test]
    fn pq_needs_a_codebook() {
        check_problems(
            "server = 'a'\ncamera = 'folder:/p'\ncodec = 'pq'\nmodel = '/m'",
            &[
                "line 3: codec: pq needs the quantizer's codebook: write codebook = \"FILE\" or bundle = \"DIR\"",
            ],
        );
    }

    #[test]
    fn text_that_is_no_toml_is_told_beside_the_other_problems() {
        let problems = read("server = \ncamera = 'usb'\nmodel = '/m'\n").unwrap_err().0;
        assert_eq!(problems[0].line(), Some(1), "{problems:?}");
        assert!(problems[0].reason.starts_with("no TOML: "), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.line() == Some(2)), "{problems:?}");
    }

    #[test]
    fn flags_go_over_the_file() {
        let (file, problems) = RawDevice::parse(WHOLE, Path::new("/etc/glimpse"));
        let flags = RawDevice { codec: Some(Codec::F16), top_k: Some(3), ..RawDevice::default() };
        let device = flags.over(file).validate(problems).unwrap();
        assert_eq!((device.codec, device.top_k), (Codec::F16, 3));
        assert_eq!(device.name.unwrap().as_str(), "door-1");
    }

    #[test]
    fn addresses_read_and_come_back_as_text() {
        for (text, expected) in [
            ("127.0.0.1:1884", Some("127.0.0.1:1884")),
            ("gallery.local", Some("gallery.local:1883")),
            ("[fe80::1]:1", Some("[fe80::1]:1")),
            ("[::1]", Some("[::1]:1883")),
            ("", None),
            (":1883", None),
            ("a:0", None),
            ("a:65536", None),
            ("::1", None),
            ("[::1]1", None),
            ("[a]:1", None),
            ("mqtt://a:1", None),
            ("mqtts://a:1", Some("mqtts://a:1")),
            ("mqtts://[::1]", Some("mqtts://[::1]:8883")),
            ("mqtts://", None),
        ] {
            let address = text.parse::<ServerAddress>().ok().map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn cameras_read_and_come_back_as_text() {
        for (text, is_good) in [
            ("folder:photos", true),
            ("folder:a:b", true),
            ("v4l2:/dev/video0", true),
            ("v4l2:/dev/v4l/by-id/usb-046d_HD_Webcam-video-index0", true),
            ("rpicam", true),
            ("video:clip.y4m", true),
            ("folder:", false),
            ("video:", false),
            ("v4l2:video0", false),
            ("v4l2:", false),
            ("rpicam:", false),
            ("rpicam:--hdr", false),
            ("/dev/video0", false),
            ("", false),
        ] {
            let camera = text.parse::<CameraSource>();
            assert_eq!(camera.is_ok(), is_good, "{text}");
            assert!(camera.is_err() || camera.unwrap().to_string() == text, "{text}");
        }
    }

    #[test]
    fn live_cameras_take_a_sharp_photo_every_ten_seconds_and_files_are_all_taken() {
        for (camera, trigger, sharpness) in [
            ("folder:p", "always", 0.0),
            ("video:p", "always", 0.0),
            ("v4l2:/dev/video0", "interval:10", Device::SHARPNESS_MIN_LIVE),
            ("rpicam", "interval:10", Device::SHARPNESS_MIN_LIVE),
        ] {
            let device = read(&format!("server = 'a'\nmodel = '/m'\ncamera = '{camera}'")).unwrap();
            assert_eq!((device.trigger.to_string().as_str(), device.sharpness_min), (trigger, sharpness));
            assert_eq!((device.camera_size.to_string().as_str(), device.camera_format), ("1280x720", None));
        }
    }

    #[test]
    fn a_button_is_a_trigger() {
        let head = "camera = 'folder:/p'\nmodel = '/m'\nserver = 'a'\n";
        let device = read(&format!("{head}button = 'gpiochip0:3'")).unwrap();
        assert_eq!(device.trigger, TriggerKind::Button);
        check_problems(
            &format!("{head}trigger = 'button'"),
            &["line 4: trigger: button needs the line that the button is on: write button = \"gpiochip0:3\""],
        );
        check_problems(
            &format!("{head}trigger = 'motion'\nbutton = 'gpiochip0:3'"),
            &[
                "line 5: button: is not looked at with trigger = \"motion\": write trigger = \"button\", or leave one out",
            ],
        );
    }

    #[test]
    fn formats_have_names() {
        for name in ["nv12", "yuyv", "mjpeg"] {
            assert_eq!(name.parse::<CameraFormat>().unwrap().to_string(), name);
        }
        for text in ["", "NV12", "jpeg", "yuyv "] {
            assert_eq!(text.parse::<CameraFormat>(), Err(ValueError::CameraFormat), "{text}");
        }
    }

    #[test]
    fn sizes_triggers_and_sharpness_are_bounded() {
        for text in ["", "640", "640x", "x480", "640x480x3", "-640x480", "15x480", "640x8193", "640X480"] {
            assert_eq!(text.parse::<CameraSize>(), Err(ValueError::CameraSize), "{text}");
        }
        for text in ["", "Always", "interval", "interval:", "interval:0", "interval:0.09", "interval:86401"]
            .into_iter()
            .chain(["interval:NaN", "interval:inf", "interval:-1", "motion:", "button:3"])
        {
            assert_eq!(text.parse::<TriggerKind>(), Err(ValueError::Trigger), "{text}");
        }
        for text in ["always", "motion", "button", "interval:0.1", "interval:86400"] {
            assert_eq!(text.parse::<TriggerKind>().unwrap().to_string(), text);
        }
        for value in [-0.1, 1000.1, f64::NAN, f64::INFINITY] {
            assert_eq!(sharpness(value), Err(ValueError::Sharpness), "{value}");
        }
        assert_eq!(sharpness_of_text("2.5"), Ok(2.5));
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds(0.5), Ok(Duration::from_millis(500)));
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY, 3601.0, 1e300, 1e-12] {
            assert_eq!(seconds(value), Err(ValueError::Seconds), "{value}");
        }
    }
}
