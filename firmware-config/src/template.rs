//! The text of a new `device.toml`: each key with what it means, those with a default commented out where they have it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use glimpse_protocol::device::{
    Actions, CameraFormat, CameraSize, CameraSource, Cores, Device, GpioLine, Outbox, Security,
    ServerAddress, TriggerKind, Updates, WebhookUrl,
};
use glimpse_protocol::{Codec, DeviceId};

/// What a new file says.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The device's name; `None` leaves it to the device.
    pub device: Option<&'a DeviceId>,
    /// The gallery server.
    pub server: &'a ServerAddress,
    /// Where photos come from.
    pub camera: &'a CameraSource,
    /// How large they should be.
    pub camera_size: CameraSize,
    /// How a camera of V4L2 should send them; `None`: as costs least.
    pub camera_format: Option<CameraFormat>,
    /// When they are taken.
    pub trigger: TriggerKind,
    /// How sharp they have to be.
    pub sharpness_min: f32,
    /// The space bundle.
    pub bundle: &'a Path,
    /// A query network in place of the bundle's.
    pub model: Option<&'a Path>,
    /// A codebook in place of the bundle's.
    pub codebook: Option<&'a Path>,
    /// How embeddings travel.
    pub codec: Codec,
    /// Matches asked for.
    pub top_k: u16,
    /// How long to wait for a reply.
    pub timeout: Duration,
    /// How the device proves itself.
    pub security: &'a Security,
    /// How the device takes new query networks, if it does.
    pub updates: Option<&'a Updates>,
    /// Where queries wait for their answers; `None`: in memory.
    pub outbox: Option<&'a Outbox>,
    /// What it does with an answer.
    pub actions: &'a Actions,
    /// A button on the device.
    pub button: Option<&'a GpioLine>,
    /// How long the connection may be silent, in seconds.
    pub keep_alive: u16,
    /// How many queries it sends in a minute at most; `None`: no limit.
    pub queries_per_minute: Option<u16>,
    /// How many threads run the network together.
    pub threads: u16,
    /// The processors that the program runs on; `None`: all.
    pub cores: Option<&'a Cores>,
}

/// The file.
///
/// # Errors
/// A path that is no Unicode text, which TOML cannot hold.
pub fn device_toml(settings: &Settings<'_>) -> anyhow::Result<String> {
    let camera = match settings.camera {
        CameraSource::Folder(folder) => format!("folder:{}", text(folder)?),
        CameraSource::V4l2(device) => format!("v4l2:{}", text(device)?),
        CameraSource::Video(file) => format!("video:{}", text(file)?),
        CameraSource::Rpicam => settings.camera.to_string(),
    };
    let identity = settings.security.identity.as_ref();
    let actions = settings.actions;
    let webhook = actions.webhook.as_ref();
    let gpio = |example: &str, line: Option<&GpioLine>| {
        quoted(&line.map_or_else(|| example.to_owned(), ToString::to_string))
    };
    let entries = [
        Entry {
            comment: "Its name, also its MQTT client id: letters, digits, '-', '_' and '.'. Two devices with one name push \
                      each other off the server. Without it the device takes its host name.",
            line: assignment("device", quoted(settings.device.map_or("camera-1", DeviceId::as_str))),
            is_set: settings.device.is_some(),
        },
        Entry {
            comment: "The gallery server's MQTT address, HOST or HOST:PORT; mqtts://HOST:PORT for TLS.",
            line: assignment("server", quoted(&settings.server.to_string())),
            is_set: true,
        },
        Entry {
            comment: "Where photos come from. folder:DIR: the photos in a folder, then new ones as they appear. v4l2:/dev/videoN: \
                      a USB camera (the names in /dev/v4l/by-id stay as they are when it is plugged in again). rpicam: a \
                      Raspberry Pi's camera. video:FILE: a file in MJPEG or YUV4MPEG2.",
            line: assignment("camera", quoted(&camera)),
            is_set: true,
        },
        Entry {
            comment: "How large photos of v4l2 and rpicam should be; the nearest size that the camera has is taken.",
            line: assignment("camera_size", quoted(&settings.camera_size.to_string())),
            is_set: settings.camera_size != Device::CAMERA_SIZE_DEFAULT,
        },
        Entry {
            comment: "How a camera of v4l2 sends its photos: nv12, yuyv, or mjpeg, which takes the least of a USB bus. Left out, it is the \
                      one of the right size that takes the least work.",
            line: assignment(
                "camera_format",
                quoted(&settings.camera_format.unwrap_or(CameraFormat::Mjpeg).to_string()),
            ),
            is_set: settings.camera_format.is_some(),
        },
        Entry {
            comment: "When photos are taken: always, interval:SECONDS, motion, or button. Left out, a camera takes one every ten seconds, \
                      and all of a folder or video are taken.",
            line: assignment("trigger", quoted(&settings.trigger.to_string())),
            is_set: settings.trigger != settings.camera.trigger_default()
                && settings.trigger != TriggerKind::Button,
        },
        Entry {
            comment: "How sharp photos have to be: `glimpse-edge capture` prints what they are. 0 takes blurred ones too. Left out, it is \
                      0.5 for cameras and 0 for files.",
            line: assignment(
                "sharpness_min",
                toml::Value::Float(f64::from(settings.sharpness_min)).to_string(),
            ),
            is_set: settings.sharpness_min != settings.camera.sharpness_min_default(),
        },
        Entry {
            comment: "The space bundle: a folder with the query network and the codebook of the space that the server serves.",
            line: assignment("bundle", quoted(text(settings.bundle)?)),
            is_set: true,
        },
        Entry {
            comment: "A query network in place of the bundle's.",
            line: assignment("model", quoted(settings.model.map_or(Ok("query.onnx"), text)?)),
            is_set: settings.model.is_some(),
        },
        Entry {
            comment: "A codebook in place of the bundle's, for the codec pq.",
            line: assignment("codebook", quoted(settings.codebook.map_or(Ok("codebook.safetensors"), text)?)),
            is_set: settings.codebook.is_some(),
        },
        Entry {
            comment: "How embeddings travel: f32, f16, i8, or pq, which is the smallest.",
            line: assignment("codec", quoted(settings.codec.name())),
            is_set: settings.codec != Device::CODEC_DEFAULT,
        },
        Entry {
            comment: "How many matches to ask for, 1 to 100.",
            line: assignment("top_k", settings.top_k.to_string()),
            is_set: settings.top_k != Device::TOP_K_DEFAULT,
        },
        Entry {
            comment: "Seconds to wait for a reply, in which a query is sent up to three times.",
            line: assignment("timeout", toml::Value::Float(settings.timeout.as_secs_f64()).to_string()),
            is_set: settings.timeout != Device::TIMEOUT_DEFAULT,
        },
        Entry {
            comment: "The device's password at the server, in a file that nobody else can read (mode 600). Its user name is its \
                      name. `glimpse-gallery devices add NAME --generate` prints such a password.",
            line: assignment(
                "password_file",
                example_or("device.password", settings.security.password_file.as_deref())?,
            ),
            is_set: settings.security.password_file.is_some(),
        },
        Entry {
            comment: "The authority that signed the server's certificate (PEM); a server at mqtts:// needs it.",
            line: assignment("ca", example_or("ca.pem", settings.security.ca.as_deref())?),
            is_set: settings.security.ca.is_some(),
        },
        Entry {
            comment: "The device's own certificate (PEM), where the server knows it by that.",
            line: assignment(
                "certificate",
                example_or("device.pem", identity.map(|(certificate, _)| certificate.as_path()))?,
            ),
            is_set: identity.is_some(),
        },
        Entry {
            comment: "The private key of that certificate (PEM), in a file that nobody else can read (mode 600).",
            line: assignment("key", example_or("device.key", identity.map(|(_, key)| key.as_path()))?),
            is_set: identity.is_some(),
        },
        Entry {
            comment: "A folder that the device can write, where it keeps query networks that the server gives it: with it and \
                      model_key, `glimpse-gallery models push` reaches this device. It runs the network named above until then, \
                      and again where that one is replaced by hand.",
            line: assignment(
                "state",
                example_or("/var/lib/glimpse-edge", settings.updates.map(|it| it.state.as_path()))?,
            ),
            is_set: settings.updates.is_some(),
        },
        Entry {
            comment: "The key that signs those networks, as `glimpse-gallery models key` prints it. No other is taken.",
            line: assignment(
                "model_key",
                quoted(
                    &settings
                        .updates
                        .map_or_else(|| "64 digits".to_owned(), |updates| updates.key.to_string()),
                ),
            ),
            is_set: settings.updates.is_some(),
        },
        Entry {
            comment: "A folder that the device can write, where queries wait for their answers: through a network that is away, a \
                      restart, and a plug that is pulled. Without it they wait in memory.",
            line: assignment(
                "outbox",
                example_or("/var/lib/glimpse-edge/outbox", settings.outbox.map(|it| it.folder.as_path()))?,
            ),
            is_set: settings.outbox.is_some(),
        },
        Entry {
            comment: "What it may take, in megabytes; the oldest queries are dropped for new ones.",
            line: assignment(
                "outbox_mb",
                settings.outbox.map_or(Device::OUTBOX_MB_DEFAULT, |it| it.megabytes).to_string(),
            ),
            is_set: settings.outbox.is_some_and(|it| it.megabytes != Device::OUTBOX_MB_DEFAULT),
        },
        Entry {
            comment: "How long a query may wait there, in hours.",
            line: assignment(
                "outbox_hours",
                settings.outbox.map_or(Device::OUTBOX_HOURS_DEFAULT, |it| it.hours).to_string(),
            ),
            is_set: settings.outbox.is_some_and(|it| it.hours != Device::OUTBOX_HOURS_DEFAULT),
        },
        Entry {
            comment: "A best match of a smaller similarity is none: the photo is unknown, and is told as such. Which similarity parts right from wrong depends on space and photos: look at some answers first.",
            line: assignment(
                "unknown_below",
                toml::Value::Float(shortest(actions.unknown_below.unwrap_or(0.3))).to_string(),
            ),
            is_set: actions.unknown_below.is_some(),
        },
        Entry {
            comment: "A program that is started for each outcome, with its JSON on standard input. It has 10 seconds.",
            line: assignment("exec", example_or("/usr/local/bin/on-answer", actions.exec.as_deref())?),
            is_set: actions.exec.is_some(),
        },
        Entry {
            comment: "An address that the JSON of each outcome is posted to.",
            line: assignment(
                "webhook",
                quoted(webhook.map_or("https://home.example/glimpse", |webhook| webhook.url.as_str())),
            ),
            is_set: webhook.is_some(),
        },
        Entry {
            comment: "The secret that is sent along (Authorization: Bearer), in a file that nobody else can read (mode 600).",
            line: assignment(
                "webhook_token_file",
                example_or("webhook.token", webhook.and_then(|webhook| webhook.token_file.as_deref()))?,
            ),
            is_set: webhook.is_some_and(|webhook| webhook.token_file.is_some()),
        },
        Entry {
            comment: "The authority that signed the certificate of that host (PEM); without it, the public ones.",
            line: assignment(
                "webhook_ca",
                example_or("webhook-ca.pem", webhook.and_then(|webhook| webhook.ca.as_deref()))?,
            ),
            is_set: webhook.is_some_and(|webhook| webhook.ca.is_some()),
        },
        Entry {
            comment: "A line of a GPIO chip that is lit for a match, for a second: gpiochipN:LINE, with :low where low is lit.",
            line: assignment("led", gpio("gpiochip0:17", actions.led.as_ref())),
            is_set: actions.led.is_some(),
        },
        Entry {
            comment: "The same for a photo that is unknown.",
            line: assignment("led_unknown", gpio("gpiochip0:27", actions.led_unknown.as_ref())),
            is_set: actions.led_unknown.is_some(),
        },
        Entry {
            comment: "A button on a line of a GPIO chip; :low where the line is low while it is pressed.",
            line: assignment("button", gpio("gpiochip0:3:low", settings.button)),
            is_set: settings.button.is_some(),
        },
        Entry {
            comment: "Seconds for which the connection may be silent. Fewer find a dead one sooner; more save a battery, but networks \
                      of phones forget a connection that is silent for minutes.",
            line: assignment("keep_alive", settings.keep_alive.to_string()),
            is_set: settings.keep_alive != Device::KEEP_ALIVE_DEFAULT,
        },
        Entry {
            comment: "How many queries it sends in any minute at most, for a battery or a link that is paid by the megabyte; more wait \
                      in the outbox. Without it there is no limit.",
            line: assignment("queries_per_minute", settings.queries_per_minute.unwrap_or(6).to_string()),
            is_set: settings.queries_per_minute.is_some(),
        },
        Entry {
            comment: "How many threads run the network together: with as many as there are processors a photo takes the least time, with \
                      one the least energy. `glimpse-edge bench --threads N` measures it.",
            line: assignment("threads", settings.threads.to_string()),
            is_set: settings.threads != 1,
        },
        Entry {
            comment: "The processors that the program runs on, by their numbers. Without it the system chooses.",
            line: assignment(
                "cores",
                quoted(&settings.cores.map_or_else(|| "2-3".to_owned(), ToString::to_string)),
            ),
            is_set: settings.cores.is_some(),
        },
    ];
    let head = "# A Glimpse device. `glimpse-firmware check` tells what is wrong with this file, `glimpse-edge run --config`\n\
                # runs it. Relative paths are taken from the folder of this file.\n";
    Ok(entries.iter().fold(head.to_owned(), |text, entry| text + "\n" + &entry.to_toml()))
}

struct Entry {
    comment: &'static str,
    line: String,
    /// Otherwise it stands there as an example, behind a `#`.
    is_set: bool,
}

impl Entry {
    fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut width = 0;
        for word in self.comment.split(' ') {
            if width == 0 || width + 1 + word.len() > 100 {
                text += if width == 0 { "#" } else { "\n#" };
                width = 1;
            }
            text += " ";
            text += word;
            width += 1 + word.len();
        }
        text + if self.is_set { "\n" } else { "\n# " } + &self.line + "\n"
    }
}

fn assignment(key: &str, value: String) -> String {
    format!("{key} = {value}")
}

fn example_or(example: &str, path: Option<&Path>) -> anyhow::Result<String> {
    Ok(quoted(path.map_or(Ok(example), text)?))
}

fn quoted(value: &str) -> String {
    toml::Value::String(value.to_owned()).to_string()
}

/// The number that a person would have written: 0.3 is no 0.30000001192.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// The address of a webhook may hold a secret; where it is shown, only what leads to the host is.
pub fn shown_webhook(url: &WebhookUrl) -> String {
    format!("{}/..", url.origin())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no Unicode text, which TOML cannot hold", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_protocol::ModelKey;
    use glimpse_protocol::device::{KEYS, RawDevice, Webhook};

    const NO_SECURITY: &Security = &Security { password_file: None, ca: None, identity: None };

    const NO_ACTIONS: &Actions =
        &Actions { unknown_below: None, exec: None, webhook: None, led: None, led_unknown: None };

    fn check(settings: &Settings<'_>) -> (String, Device) {
        let text = device_toml(settings).unwrap();
        let (raw, problems) = RawDevice::parse(&text, Path::new(""));
        let device = raw.validate(problems).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        (text, device)
    }

    fn settings<'a>(server: &'a ServerAddress, camera: &'a CameraSource, bundle: &'a Path) -> Settings<'a> {
        let (codec, top_k) = (Device::CODEC_DEFAULT, Device::TOP_K_DEFAULT);
        let timeout = Device::TIMEOUT_DEFAULT;
        let (security, updates) = (NO_SECURITY, None);
        Settings {
            device: None,
            server,
            camera,
            camera_size: Device::CAMERA_SIZE_DEFAULT,
            camera_format: None,
            trigger: camera.trigger_default(),
            sharpness_min: camera.sharpness_min_default(),
            bundle,
            model: None,
            codebook: None,
            codec,
            top_k,
            timeout,
            security,
            updates,
            outbox: None,
            actions: NO_ACTIONS,
            button: None,
            keep_alive: Device::KEEP_ALIVE_DEFAULT,
            queries_per_minute: None,
            threads: 1,
            cores: None,
        }
    }

    #[test]
    fn a_new_file_explains_every_key_and_is_valid() {
        let (server, camera) = ("a:1".parse().unwrap(), "folder:p".parse().unwrap());
        let (text, device) = check(&settings(&server, &camera, Path::new("b")));
        for key in KEYS {
            let has =
                text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            assert!(has, "{key} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        assert_eq!((device.name, device.codec), (None, Codec::I8));
        // With every comment mark removed from the examples it is a valid file still.
        let all = text.replace("# device =", "device =").replace("# model =", "model =");
        let (raw, problems) = RawDevice::parse(&all.replace("# top_k =", "top_k ="), Path::new(""));
        raw.validate(problems).unwrap();
    }

    #[test]
    fn values_come_back_whatever_characters_they_have() {
        let strange = "a \"b\" \\ c'd\u{e9}\n#";
        let (server, camera) = ("mqtts://[fe80::1]:7".parse().unwrap(), CameraSource::Folder(strange.into()));
        let security = Security {
            password_file: Some(strange.into()),
            ca: Some("ca \" 1.pem".into()),
            identity: Some((strange.into(), "k".into())),
        };
        let updates = Updates { state: "s \" 1".into(), key: ModelKey::from_bytes([0xa5; 32]) };
        let outbox = Outbox { folder: "o \" 1".into(), megabytes: 4, hours: 5 };
        let webhook = Webhook {
            url: "https://a/%22b%22?c=1".parse().unwrap(),
            token_file: Some("t \" 1".into()),
            ca: Some(strange.into()),
        };
        let actions = Actions {
            unknown_below: Some(0.6),
            exec: Some(strange.into()),
            webhook: Some(webhook),
            led: Some("gpiochip0:1".parse().unwrap()),
            led_unknown: Some("gpiochip0:2:low".parse().unwrap()),
        };
        let button = "gpiochip1:1".parse().unwrap();
        let cores: Cores = "0,2-3".parse().unwrap();
        let name = DeviceId::new("door-1").unwrap();
        let settings = Settings {
            device: Some(&name),
            camera_size: CameraSize { width: 640, height: 480 },
            camera_format: Some(CameraFormat::Yuyv),
            trigger: TriggerKind::Button,
            sharpness_min: 2.5,
            model: Some(Path::new("q \" 1.onnx")),
            codebook: Some(Path::new(strange)),
            codec: Codec::Pq,
            top_k: 3,
            timeout: Duration::from_millis(2500),
            security: &security,
            updates: Some(&updates),
            outbox: Some(&outbox),
            actions: &actions,
            button: Some(&button),
            keep_alive: 300,
            queries_per_minute: Some(7),
            threads: 4,
            cores: Some(&cores),
            ..settings(&server, &camera, Path::new(strange))
        };
        let (text, device) = check(&settings);
        assert!(text.contains("unknown_below = 0.6\n"), "{text}");
        assert_eq!(
            (device.name, device.server, device.camera),
            (Some(name.clone()), server.clone(), camera.clone())
        );
        assert_eq!(device.camera_size, CameraSize { width: 640, height: 480 });
        assert_eq!(device.camera_format, Some(CameraFormat::Yuyv));
        assert_eq!((device.trigger, device.sharpness_min), (TriggerKind::Button, 2.5));
        assert_eq!((device.bundle.as_deref(), device.top_k), (Some(Path::new(strange)), 3));
        assert_eq!(device.model.as_deref(), Some(Path::new("q \" 1.onnx")));
        assert_eq!(device.codebook.as_deref(), Some(Path::new(strange)));
        assert_eq!((device.codec, device.timeout), (Codec::Pq, Duration::from_millis(2500)));
        assert_eq!((device.security, device.updates), (security, Some(updates)));
        assert_eq!(device.outbox, Some(outbox));
        assert_eq!((device.actions, device.button), (actions, Some(button)));
        assert_eq!((device.keep_alive, device.queries_per_minute), (300, Some(7)));
        assert_eq!((device.threads, device.cores), (4, Some(cores)));
    }

    #[test]
    fn every_kind_of_camera_comes_back() {
        let server = "a:1".parse().unwrap();
        for text in ["folder:p", "v4l2:/dev/video0", "rpicam", "video:clip.y4m"] {
            let camera = text.parse().unwrap();
            let (_, device) = check(&settings(&server, &camera, Path::new("b")));
            assert_eq!((device.trigger, &device.camera), (camera.trigger_default(), &camera));
            let trigger = TriggerKind::Interval(Duration::from_millis(1500));
            let (_, device) = check(&Settings { trigger, ..settings(&server, &camera, Path::new("b")) });
            assert_eq!(device.trigger, trigger);
        }
    }
}
