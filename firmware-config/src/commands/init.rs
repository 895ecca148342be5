//! `glimpse-firmware init`: a commented `device.toml` to start from.

use std::fmt::Display;
use std::io::{BufRead, IsTerminal as _, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use glimpse_protocol::device::{
    self, Board, CameraFormat, CameraSize, CameraSource, Cores, Device, GpioLine, GroupName, HostName, Key,
    Network, RawDevice, ServerAddress, Subnet, TriggerKind, WebhookUrl,
};
use glimpse_protocol::{Codec, DeviceId, ModelKey};

use crate::boards::{self, Profile};
use crate::output::{say, shown};
use crate::prompt::{Prompt, Question};
use crate::template::{SCHEMA_FILE, device_toml};

/// Flags of `glimpse-firmware init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to write
    #[arg(default_value = "device.toml")]
    pub file: PathBuf,
    /// The device's name, also its MQTT client id [default: the device's host name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<DeviceId>,
    /// The group that `glimpse-gallery models push --to` reaches it by
    #[arg(long, value_name = "NAME")]
    pub group: Option<GroupName>,
    /// The board that it is: its camera is taken, and its pins are offered
    #[arg(long, value_name = "BOARD", value_parser = board_parser())]
    pub board: Option<Board>,
    /// The gallery server's MQTT address [default: 127.0.0.1:1883]
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<ServerAddress>,
    /// Where photos come from: folder:DIR, v4l2:/dev/videoN, rpicam or video:FILE [default: the board's, or folder:photos]
    #[arg(long, value_name = "CAMERA")]
    pub camera: Option<CameraSource>,
    /// How large photos should be [default: 1280x720]
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub camera_size: Option<CameraSize>,
    /// How a camera of v4l2 sends them: nv12, yuyv or mjpeg [default: as takes the least work]
    #[arg(long, value_name = "FORMAT")]
    pub camera_format: Option<CameraFormat>,
    /// When photos are taken: always, motion, button or interval:SECONDS [default: interval:10; of files: always]
    #[arg(long, value_name = "WHEN")]
    pub trigger: Option<TriggerKind>,
    /// How sharp photos have to be; 0 takes blurred ones too [default: 0.5; of files: 0]
    #[arg(long, value_name = "SHARPNESS", value_parser = device::sharpness_of_text)]
    pub sharpness_min: Option<f32>,
    /// Space bundle, with query network and codebook
    #[arg(long, value_name = "DIR", default_value = "models/demo")]
    pub bundle: PathBuf,
    /// A query network in place of the bundle's
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// A codebook in place of the bundle's, for the codec pq
    #[arg(long, value_name = "FILE")]
    pub codebook: Option<PathBuf>,
    /// How embeddings travel [default: i8]
    #[arg(long, value_parser = codec_parser())]
    pub codec: Option<Codec>,
    /// How many matches to ask for [default: 10]
    #[arg(long, value_name = "N", value_parser = device::top_k_of_text)]
    pub top_k: Option<u16>,
    /// Seconds to wait for a reply [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = device::seconds_of_text)]
    pub timeout: Option<Duration>,
    /// File with the device's password at the server
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Authority that signed the server's certificate (PEM), for --server mqtts://HOST:PORT
    #[arg(long, value_name = "PEM")]
    pub ca: Option<PathBuf>,
    /// The device's certificate (PEM)
    #[arg(long, value_name = "PEM", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// The private key of the device's certificate (PEM)
    #[arg(long, value_name = "PEM", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Folder on the device for query networks that the server gives it
    #[arg(long, value_name = "DIR", requires = "model_key")]
    pub state: Option<PathBuf>,
    /// The key that signs those networks, as `glimpse-gallery models key` prints it
    #[arg(long, value_name = "HEX", requires = "state")]
    pub model_key: Option<ModelKey>,
    /// Folder on the device for queries that wait for their answers [default: they wait in memory]
    #[arg(long, value_name = "DIR")]
    pub outbox: Option<PathBuf>,
    /// What that folder may take, in megabytes [default: 64]
    #[arg(long, value_name = "MB", value_parser = device::outbox_mb_of_text, requires = "outbox")]
    pub outbox_mb: Option<u16>,
    /// How long a query may wait there [default: 72]
    #[arg(long, value_name = "HOURS", value_parser = device::outbox_hours_of_text, requires = "outbox")]
    pub outbox_hours: Option<u16>,
    /// Similarity below which the best match is none: the photo is unknown
    #[arg(long, value_name = "SIMILARITY", value_parser = device::similarity_of_text, allow_negative_numbers = true)]
    pub unknown_below: Option<f32>,
    /// Program on the device that is given the JSON of each outcome
    #[arg(long, value_name = "PROGRAM")]
    pub exec: Option<PathBuf>,
    /// Address that the JSON of each outcome is posted to
    #[arg(long, value_name = "URL")]
    pub webhook: Option<WebhookUrl>,
    /// File with the secret that is sent to it
    #[arg(long, value_name = "FILE", requires = "webhook")]
    pub webhook_token_file: Option<PathBuf>,
    /// Authority that signed the certificate of its host (PEM) [default: the public ones]
    #[arg(long, value_name = "PEM", requires = "webhook")]
    pub webhook_ca: Option<PathBuf>,
    /// Line of a GPIO chip that is lit for a match; with :low where low is lit
    #[arg(long, value_name = "gpiochipN:LINE")]
    pub led: Option<GpioLine>,
    /// Line that is lit for a photo that is unknown
    #[arg(long, value_name = "gpiochipN:LINE")]
    pub led_unknown: Option<GpioLine>,
    /// Line of a button; with :low where the line is low while it is pressed
    #[arg(long, value_name = "gpiochipN:LINE")]
    pub button: Option<GpioLine>,
    /// Seconds for which the connection may be silent [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = device::keep_alive_of_text)]
    pub keep_alive: Option<u16>,
    /// How many queries the device sends in any minute at most [default: no limit]
    #[arg(long, value_name = "N", value_parser = device::queries_per_minute_of_text)]
    pub queries_per_minute: Option<u16>,
    /// How many threads run the network together [default: 1]
    #[arg(long, value_name = "N", value_parser = device::threads_of_text)]
    pub threads: Option<u16>,
    /// The processors that the program runs on, such as 2-3 [default: the system chooses]
    #[arg(long, value_name = "CORES")]
    pub cores: Option<Cores>,
    /// For the image
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Asks nothing, on a terminal either
    #[arg(long)]
    pub yes: bool,
    /// Replaces a file that is there
    #[arg(long)]
    pub force: bool,
}

/// The device's network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network, for the image that the device starts from")]
pub struct NetworkArgs {
    /// The device's name in its network
    #[arg(long, value_name = "NAME", value_parser = device::hostname)]
    pub hostname: Option<HostName>,
    /// Wireless network that it joins
    #[arg(long, value_name = "NAME", value_parser = device::ssid, requires = "wifi_country")]
    pub wifi_ssid: Option<String>,
    /// File with the password of that network
    #[arg(long, value_name = "FILE", requires = "wifi_ssid")]
    pub wifi_password_file: Option<PathBuf>,
    /// Country whose rules the radio keeps, by its two letters
    #[arg(long, value_name = "XX", value_parser = device::country, requires = "wifi_ssid")]
    pub wifi_country: Option<String>,
    /// Its address, and how many of its bits are the network's [default: by DHCP]
    #[arg(long, value_name = "ADDRESS/BITS")]
    pub address: Option<Subnet>,
    /// What leads to other networks
    #[arg(long, value_name = "ADDRESS", value_parser = device::address, requires = "address")]
    pub gateway: Option<IpAddr>,
    /// Who is asked for names; may be given several times
    #[arg(long, value_name = "ADDRESS", value_parser = device::address)]
    pub dns: Vec<IpAddr>,
    /// Who is asked for the time; may be given several times
    #[arg(long, value_name = "HOST", value_parser = device::time_server)]
    pub ntp: Vec<HostName>,
}

pub(crate) fn board_parser() -> impl TypedValueParser<Value = Board> {
    PossibleValuesParser::new(Board::NAMES).try_map(|name| name.parse::<Board>())
}

fn codec_parser() -> impl TypedValueParser<Value = Codec> {
    PossibleValuesParser::new(Codec::ALL.map(Codec::name)).try_map(|name| name.parse::<Codec>())
}

/// Asks what the flags do not say, where there is a terminal, and writes the file, whole or not at all.
///
/// # Errors
/// Flags that do not fit together, a file that is there already, and one that cannot be written.
pub fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    let (file, force) = (args.file.clone(), args.force);
    if !force && file.exists() {
        // Before anybody has answered a dozen questions.
        return Err(is_there(&file));
    }
    let asks = !args.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let mut raw = raw(args);
    if asks {
        questions(&mut raw, &mut Prompt::new(std::io::stdin().lock(), std::io::stderr()))?;
    }
    let profile = raw.board.map(boards::profile).transpose()?;
    let camera =
        profile.as_ref().map_or(CameraSource::Folder("photos".into()), |profile| profile.camera.clone());
    raw.camera.get_or_insert(camera);
    if raw.server.is_none() {
        raw.server = Some(SERVER_DEFAULT.parse()?);
    }
    let problems = match (raw.board, &profile) {
        (Some(board), Some(profile)) => boards::problems(&raw, board, profile),
        _ => Vec::new(),
    };
    let device = raw.validate(problems)?;
    let text = device_toml(&device, profile.as_ref().and_then(|profile| profile.pins.as_ref()))?;
    write_whole(&file, &text, force)?;
    let file = shown(&file.display().to_string());
    say(&format!(
        "wrote {file}: read it, change what differs, then `glimpse-firmware check {file}`\n\
         paths in it are taken from its own folder; the device runs it with `glimpse-edge run --config {file}`\n\
         editors that know TOML help with it: `glimpse-firmware schema > {SCHEMA_FILE}` in its folder\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The server where none is named: the one of this machine.
const SERVER_DEFAULT: &str = "127.0.0.1:1883";

fn raw(args: InitArgs) -> RawDevice {
    let mut raw = RawDevice::default();
    (raw.device, raw.group, raw.board) = (args.device, args.group, args.board);
    (raw.server, raw.camera) = (args.server, args.camera);
    (raw.camera_size, raw.camera_format) = (args.camera_size, args.camera_format);
    (raw.trigger, raw.sharpness_min) = (args.trigger, args.sharpness_min);
    (raw.bundle, raw.model, raw.codebook) = (Some(args.bundle), args.model, args.codebook);
    (raw.codec, raw.top_k, raw.timeout) = (args.codec, args.top_k, args.timeout);
    (raw.password_file, raw.ca) = (args.password_file, args.ca);
    (raw.certificate, raw.key) = (args.certificate, args.key);
    (raw.state, raw.model_key) = (args.state, args.model_key);
    (raw.outbox, raw.outbox_mb, raw.outbox_hours) = (args.outbox, args.outbox_mb, args.outbox_hours);
    (raw.unknown_below, raw.exec, raw.webhook) = (args.unknown_below, args.exec, args.webhook);
    (raw.webhook_token_file, raw.webhook_ca) = (args.webhook_token_file, args.webhook_ca);
    (raw.led, raw.led_unknown, raw.button) = (args.led, args.led_unknown, args.button);
    (raw.keep_alive, raw.queries_per_minute) = (args.keep_alive, args.queries_per_minute);
    (raw.threads, raw.cores) = (args.threads, args.cores);
    let NetworkArgs { hostname, wifi_ssid, wifi_password_file, wifi_country, address, gateway, dns, ntp } =
        args.network;
    raw.network =
        Network { hostname, wifi_ssid, wifi_password_file, wifi_country, address, gateway, dns, ntp };
    raw
}

/// Asks for what a person has to decide and `raw` does not say.
fn questions(raw: &mut RawDevice, prompt: &mut Prompt<impl BufRead, impl Write>) -> anyhow::Result<()> {
    prompt.say("An empty answer takes what stands in brackets; ? explains.")?;
    let about = |key: &str| Key::of(key).map_or("", |key| key.about);
    if raw.board.is_none() {
        let text = format!("Board: {}", Board::NAMES.join(", "));
        let question = Question { text: &text, default: "", about: about("board") };
        raw.board = prompt.ask(question, optional)?;
    }
    let profile = raw.board.map(boards::profile).transpose()?;
    if raw.server.is_none() {
        let question =
            Question { text: "Gallery server, HOST:PORT", default: SERVER_DEFAULT, about: about("server") };
        raw.server = Some(prompt.ask(question, read)?);
    }
    if raw.ca.is_none() && raw.server.as_ref().is_some_and(ServerAddress::is_tls) {
        let question =
            Question { text: "Authority of the server's certificate", default: "ca.pem", about: about("ca") };
        raw.ca = Some(prompt.ask(question, read)?);
    }
    if raw.camera.is_none() {
        let default =
            profile.as_ref().map_or("folder:photos".to_owned(), |profile| profile.camera.to_string());
        let question = Question { text: "Camera", default: &default, about: about("camera") };
        raw.camera = Some(prompt.ask(question, |text| {
            let camera: CameraSource = read(text)?;
            match (&camera, &profile) {
                (CameraSource::Rpicam, Some(profile)) if !profile.has_csi => {
                    Err(format!("{} has no connector for it", profile.title))
                }
                _ => Ok(camera),
            }
        })?);
    }
    if raw.device.is_none() {
        let question = Question { text: "Name of the device", default: "", about: about("device") };
        raw.device = prompt.ask(question, optional)?;
    }
    if raw.group.is_none() {
        let question = Question { text: "Group", default: "", about: about("group") };
        raw.group = prompt.ask(question, optional)?;
    }
    if raw.codec.is_none() {
        let default = Device::CODEC_DEFAULT.name();
        let question = Question { text: "Codec: f32, f16, i8, pq", default, about: about("codec") };
        raw.codec = Some(prompt.ask(question, read)?);
    }
    if raw.exec.is_none() {
        let question = Question { text: "Program for each answer", default: "", about: about("exec") };
        raw.exec = prompt.ask(question, optional)?;
    }
    if raw.webhook.is_none() {
        let question =
            Question { text: "Address that answers are posted to", default: "", about: about("webhook") };
        raw.webhook = prompt.ask(question, optional)?;
    }
    pins(raw, profile.as_ref(), prompt)
}

/// Asks for lamps and button.
fn pins(
    raw: &mut RawDevice,
    profile: Option<&Profile>,
    prompt: &mut Prompt<impl BufRead, impl Write>,
) -> anyhow::Result<()> {
    let pins = profile.and_then(|profile| profile.pins.as_ref());
    let such = |line: Option<&GpioLine>| line.map_or_else(String::new, |line| format!(", such as {line}"));
    for (key, text, example) in [
        ("led", "Lamp for a match", pins.map(|pins| &pins.led)),
        ("led_unknown", "Lamp for an unknown photo", pins.map(|pins| &pins.led_unknown)),
        ("button", "Button", pins.map(|pins| &pins.button)),
    ] {
        let is_asked = match key {
            "led" => raw.led.is_none(),
            "led_unknown" => raw.led_unknown.is_none(),
            // With another trigger it would not be looked at.
            _ => raw.button.is_none() && raw.trigger.is_none(),
        };
        if !is_asked {
            continue;
        }
        let text = format!("{text}, gpiochipN:LINE{}", such(example));
        let about = Key::of(key).map_or("", |key| key.about);
        let set = |raw: &RawDevice, line| {
            let mut with = raw.clone();
            match key {
                "led" => with.led = line,
                "led_unknown" => with.led_unknown = line,
                _ => with.button = line,
            }
            with
        };
        let line = prompt.ask(Question { text: &text, default: "", about }, |text| {
            let line: Option<GpioLine> = optional(text)?;
            let with = set(raw, line.clone());
            let mut problems = Vec::new();
            with.actions(&mut problems);
            if let (Some(board), Some(profile)) = (raw.board, profile) {
                problems.extend(boards::problems(&with, board, profile));
            }
            let problem = problems.iter().find(|problem| problem.key == key);
            problem.map_or(Ok(line), |problem| Err(problem.to_string()))
        })?;
        *raw = set(raw, line);
    }
    Ok(())
}

fn read<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn optional<T: FromStr<Err: Display>>(text: &str) -> Result<Option<T>, String> {
    if text.is_empty() || text == "none" { Ok(None) } else { read(text).map(Some) }
}

fn is_there(file: &Path) -> anyhow::Error {
    anyhow::anyhow!("{} is there already: give another name, or --force to replace it", file.display())
}

fn write_whole(file: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", file.display());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new().prefix(".device-").tempfile_in(folder).with_context(context)?;
    new.write_all(text.as_bytes()).with_context(context)?;
    readable_by_all(new.path()).with_context(context)?;
    new.as_file().sync_all().with_context(context)?;
    // What is there is asked by the step that would replace it, so that no file appears in between.
    let done = if force { new.persist(file) } else { new.persist_noclobber(file) };
    match done {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(is_there(file)),
        Err(error) => Err(error.error).with_context(context),
    }
}

/// Temporary files are their owner's alone; a configuration without secrets is for everybody, whoever runs the device.
#[cfg(unix)]
fn readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the questions make of these answers, and what they said.
    fn answered(raw: RawDevice, answers: &str) -> (anyhow::Result<RawDevice>, String) {
        let (mut raw, mut output) = (raw, Vec::new());
        let done = questions(&mut raw, &mut Prompt::new(answers.as_bytes(), &mut output));
        (done.map(|()| raw), String::from_utf8(output).unwrap())
    }

    #[test]
    fn empty_answers_take_the_defaults() {
        let (raw, said) = answered(RawDevice::default(), &"\n".repeat(12));
        let raw = raw.unwrap();
        assert_eq!(raw.server.unwrap().to_string(), SERVER_DEFAULT);
        assert_eq!((raw.camera.unwrap().to_string().as_str(), raw.codec), ("folder:photos", Some(Codec::I8)));
        assert_eq!((raw.board, raw.device, raw.group, raw.button), (None, None, None, None));
        assert_eq!(said.lines().count(), 2, "{said}");
    }

    #[test]
    fn answers_are_validated_as_they_are_typed() {
        let answers = "raspberry-pi-2\nqemu-virt\na b\nmqtts://gallery.lan\n\nrpicam\nv4l2:/dev/video1\ntwo words\ndoor-1\n?\n\
                       entrance\nf64\npq\n/opt/on-answer\nhttp://me:word@a\nhttps://a/b\ngpiochip0:8\ngpiochip0:4\n\
                       gpiochip0:4\n\ngpiochip0:3\n";
        let (raw, said) = answered(RawDevice::default(), answers);
        let raw = raw.unwrap();
        for part in [
            "expected one of raspberry-pi-3, ",
            "expected HOST:PORT",
            "QEMU's board `virt` has no connector",
            "a device name has only letters",
            "`glimpse-gallery models push --to GROUP`",
            "unknown codec",
            "an address must hold no user or password",
            "led: the pins of QEMU's board `virt` are the lines 0 to 7",
            "led_unknown: gpiochip0:4 is taken by led already",
            "Button, gpiochipN:LINE, such as gpiochip0:3 [none]: ",
        ] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
        assert_eq!((raw.board, raw.ca.clone()), (Some(Board::QemuVirt), Some("ca.pem".into())));
        assert_eq!(raw.camera.clone().unwrap().to_string(), "v4l2:/dev/video1");
        assert_eq!((raw.led.clone(), raw.led_unknown.clone()), ("gpiochip0:4".parse().ok(), None));
        let mut raw = raw;
        raw.bundle = Some("b".into());
        let device = raw.validate(Vec::new()).unwrap();
        assert_eq!((device.trigger, device.codec), (TriggerKind::Button, Codec::Pq));
    }

    #[test]
    fn what_flags_say_is_not_asked() {
        let mut raw = RawDevice::default();
        (raw.board, raw.server) = (Some(Board::RaspberryPi4), "a".parse().ok());
        (raw.device, raw.codec) = ("door-1".parse().ok(), Some(Codec::F16));
        raw.trigger = Some(TriggerKind::Motion);
        let (raw, said) = answered(raw, "\nentrance\n\n\n\n\n");
        assert_eq!(raw.unwrap().camera, Some(CameraSource::Rpicam));
        assert!(!said.contains("Board") && !said.contains("Button") && said.contains("Group"), "{said}");
    }

    #[test]
    fn answers_that_end_early_write_nothing() {
        let (raw, _) = answered(RawDevice::default(), "\n\n");
        assert!(raw.unwrap_err().to_string().contains("nothing was written"));
    }
}
