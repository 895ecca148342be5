//! The text of a new `device.toml`: each key with what it means, those with a default commented out where they have it.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use glimpse_protocol::DeviceId;
use glimpse_protocol::device::{
    ALL_KEYS, CameraSource, Device, HostName, Key, TABLES, TriggerKind, WebhookUrl,
};

use crate::boards::Pins;

/// The name of the schema's file, beside the new one.
pub const SCHEMA_FILE: &str = "device.schema.json";

/// The file that describes `device`, with the pins of its board as examples.
///
/// # Errors
/// A path that is no Unicode text, which TOML cannot hold.
pub fn device_toml(device: &Device, pins: Option<&Pins>) -> anyhow::Result<String> {
    let mut text = format!(
        "#:schema {SCHEMA_FILE}\n\
         # A Glimpse device. `glimpse-firmware check` tells what is wrong with this file, `glimpse-edge run --config`\n\
         # runs it. Relative paths are taken from the folder of this file.\n"
    );
    let mut table = "";
    for key in &ALL_KEYS {
        let (of, name) = key.table_and_name();
        if of != table {
            table = of;
            let about = TABLES.iter().find(|(name, _)| *name == of).map_or("", |(_, about)| about);
            text += &format!("\n{}[{of}]\n", comment(about));
        }
        let set = value(device, key)?;
        let mark = if set.is_some() { "" } else { "# " };
        let value = set.unwrap_or_else(|| example(key, pins));
        text += &format!("\n{}{mark}{name} = {value}\n", comment(key.about));
    }
    Ok(text)
}

/// What a device says of a key, where that is not the default.
fn value(device: &Device, key: &Key) -> anyhow::Result<Option<String>> {
    let path = |path: Option<&Path>| path.map(text).transpose().map(|path| path.map(quoted));
    let written = |value: Option<&dyn ToString>| value.map(|value| quoted(&value.to_string()));
    let number = |value: u16, default: u16| (value != default).then(|| value.to_string());
    let list = |texts: Vec<String>| (!texts.is_empty()).then(|| toml::Value::from(texts).to_string());
    let float = |value: f64| toml::Value::Float(value).to_string();
    let identity = device.security.identity.as_ref();
    let (actions, network) = (&device.actions, &device.network);
    let (webhook, outbox) = (actions.webhook.as_ref(), device.outbox.as_ref());
    Ok(match key.path {
        "device" => device.name.as_ref().map(|name| quoted(DeviceId::as_str(name))),
        "group" => written(device.group.as_ref().map(|it| it as _)),
        "board" => written(device.board.as_ref().map(|it| it as _)),
        "server" => Some(quoted(&device.server.to_string())),
        "camera" => Some(quoted(&match &device.camera {
            CameraSource::Folder(folder) => format!("folder:{}", text(folder)?),
            CameraSource::V4l2(device) => format!("v4l2:{}", text(device)?),
            CameraSource::Video(file) => format!("video:{}", text(file)?),
            CameraSource::Rpicam => device.camera.to_string(),
        })),
        "camera_size" if device.camera_size == Device::CAMERA_SIZE_DEFAULT => None,
        "camera_size" => Some(quoted(&device.camera_size.to_string())),
        "camera_format" => written(device.camera_format.as_ref().map(|it| it as _)),
        // A button is the trigger where there is one.
        "trigger"
            if device.trigger == device.camera.trigger_default() || device.trigger == TriggerKind::Button =>
        {
            None
        }
        "trigger" => Some(quoted(&device.trigger.to_string())),
        "sharpness_min" if device.sharpness_min == device.camera.sharpness_min_default() => None,
        "sharpness_min" => Some(float(shortest(device.sharpness_min))),
        "bundle" => path(device.bundle.as_deref())?,
        "model" => path(device.model.as_deref())?,
        "codebook" => path(device.codebook.as_deref())?,
        "codec" => (device.codec != Device::CODEC_DEFAULT).then(|| quoted(device.codec.name())),
        "top_k" => number(device.top_k, Device::TOP_K_DEFAULT),
        "timeout" if device.timeout == Device::TIMEOUT_DEFAULT => None,
        "timeout" => Some(float(device.timeout.as_secs_f64())),
        "password_file" => path(device.security.password_file.as_deref())?,
        "ca" => path(device.security.ca.as_deref())?,
        "certificate" => path(identity.map(|(certificate, _)| certificate.as_path()))?,
        "key" => path(identity.map(|(_, key)| key.as_path()))?,
        "state" => path(device.updates.as_ref().map(|it| it.state.as_path()))?,
        "model_key" => written(device.updates.as_ref().map(|it| &it.key as _)),
        "outbox" => path(outbox.map(|it| it.folder.as_path()))?,
        "outbox_mb" => outbox.and_then(|it| number(it.megabytes, Device::OUTBOX_MB_DEFAULT)),
        "outbox_hours" => outbox.and_then(|it| number(it.hours, Device::OUTBOX_HOURS_DEFAULT)),
        "unknown_below" => actions.unknown_below.map(|below| float(shortest(below))),
        "exec" => path(actions.exec.as_deref())?,
        "webhook" => webhook.map(|webhook| quoted(webhook.url.as_str())),
        "webhook_token_file" => path(webhook.and_then(|webhook| webhook.token_file.as_deref()))?,
        "webhook_ca" => path(webhook.and_then(|webhook| webhook.ca.as_deref()))?,
        "led" => written(actions.led.as_ref().map(|it| it as _)),
        "led_unknown" => written(actions.led_unknown.as_ref().map(|it| it as _)),
        "button" => written(device.button.as_ref().map(|it| it as _)),
        "keep_alive" => number(device.keep_alive, Device::KEEP_ALIVE_DEFAULT),
        "queries_per_minute" => device.queries_per_minute.map(|count| count.to_string()),
        "threads" => number(device.threads, 1),
        "cores" => written(device.cores.as_ref().map(|it| it as _)),
        "network.hostname" => network.hostname.as_ref().map(|name| quoted(name.as_str())),
        "network.wifi_ssid" => network.wifi_ssid.as_deref().map(quoted),
        "network.wifi_password_file" => path(network.wifi_password_file.as_deref())?,
        "network.wifi_country" => network.wifi_country.as_deref().map(quoted),
        "network.address" => written(network.address.as_ref().map(|it| it as _)),
        "network.gateway" => written(network.gateway.as_ref().map(|it| it as _)),
        "network.dns" => list(network.dns.iter().map(IpAddr::to_string).collect()),
        "network.ntp" => list(network.ntp.iter().map(|host| HostName::as_str(host).to_owned()).collect()),
        _ => None,
    })
}

/// What stands there as an example, behind a `#`.
fn example(key: &Key, pins: Option<&Pins>) -> String {
    let line = match (key.path, pins) {
        ("led", Some(pins)) => &pins.led,
        ("led_unknown", Some(pins)) => &pins.led_unknown,
        ("button", Some(pins)) => &pins.button,
        _ => return key.example.to_owned(),
    };
    quoted(&line.to_string())
}

/// `about` as lines of a comment.
fn comment(about: &str) -> String {
    let mut text = String::new();
    let mut width = 0;
    for word in about.split(' ') {
        if width == 0 || width + 1 + word.len() > 100 {
            text += if width == 0 { "#" } else { "\n#" };
            width = 1;
        }
        text += " ";
        text += word;
        width += 1 + word.len();
    }
    text + "\n"
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
    use glimpse_protocol::device::RawDevice;

    fn read(text: &str) -> Device {
        let (raw, problems) = RawDevice::parse(text, Path::new(""));
        raw.validate(problems).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    /// Writes the device of a text, and expects the same device again.
    fn check(text: &str) -> String {
        let device = read(text);
        let written = device_toml(&device, None).unwrap();
        assert_eq!(read(&written), device, "{written}");
        written
    }

    const SMALL: &str = "server = 'a:1'\ncamera = 'folder:p'\nbundle = 'b'\n";

    #[test]
    fn a_new_file_explains_every_key_and_is_valid() {
        let text = check(SMALL);
        for key in ALL_KEYS {
            let (_, name) = key.table_and_name();
            let has =
                text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{name} = ")));
            assert!(has, "{} is not in\n{text}", key.path);
        }
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        // With every comment mark removed from the examples it is a valid file still, but for what is meant for TLS and the key
        // that is none.
        let is_example = |line: &str| {
            let name = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")).map(|(name, _)| name);
            name.is_some_and(|name| ALL_KEYS.iter().any(|key| key.table_and_name().1 == name))
                && !["# ca", "# certificate", "# key", "# state", "# model_key", "# trigger", "# webhook_ca"]
                    .iter()
                    .any(|start| line.starts_with(&format!("{start} =")))
        };
        let all: String = text
            .lines()
            .map(|line| if is_example(line) { line[2..].to_owned() } else { line.to_owned() } + "\n")
            .collect();
        let device = read(&all);
        assert_eq!(device.network.wifi_country.as_deref(), Some("DE"));
    }

    #[test]
    fn values_come_back_whatever_characters_they_have() {
        let strange = toml::Value::from("a \"b\" \\ c'd\u{e9}\n#").to_string();
        let text = check(&format!(
            "device = 'door-1'\ngroup = 'entrance'\nboard = 'raspberry-pi-5'\nserver = 'mqtts://[fe80::1]:7'\n\
             camera = 'folder:p \"q\" \\ \u{e9}'\ncamera_size = '640x480'\ncamera_format = 'yuyv'\ntrigger = 'button'\n\
             sharpness_min = 2.5\nbundle = {strange}\nmodel = {strange}\ncodebook = {strange}\ncodec = 'pq'\ntop_k = 3\n\
             timeout = 2.5\npassword_file = {strange}\nca = {strange}\ncertificate = {strange}\nkey = 'k'\nstate = {strange}\n\
             model_key = '{}'\noutbox = {strange}\noutbox_mb = 4\noutbox_hours = 5\nunknown_below = 0.6\nexec = {strange}\n\
             webhook = 'https://a/%22b%22?c=1'\nwebhook_token_file = {strange}\nwebhook_ca = {strange}\nled = 'gpiochip0:1'\n\
             led_unknown = 'gpiochip0:2:low'\nbutton = 'gpiochip1:1'\nkeep_alive = 300\nqueries_per_minute = 7\nthreads = 4\n\
             cores = '0,2-3'\n[network]\nhostname = 'door-1'\nwifi_ssid = 'a \"b\"'\nwifi_password_file = {strange}\n\
             wifi_country = 'CH'\naddress = '10.0.0.2/24'\ngateway = '10.0.0.1'\ndns = ['10.0.0.1', 'fd00::1']\n\
             ntp = ['ntp.lan']\n[privacy]\nkeep_photos = false\n",
            "a5".repeat(32)
        ));
        assert!(text.contains("unknown_below = 0.6\n"), "{text}");
        let set =
            |key: &&Key| text.lines().any(|line| line.starts_with(&format!("{} = ", key.table_and_name().1)));
        let silent: Vec<&str> = ALL_KEYS.iter().filter(|key| !set(key)).map(|key| key.path).collect();
        assert_eq!(silent, ["trigger", "privacy.keep_photos", "privacy.share_photos"]);
    }

    #[test]
    fn every_kind_of_camera_comes_back() {
        for camera in ["folder:p", "v4l2:/dev/video0", "rpicam", "video:clip.y4m"] {
            for trigger in ["", "trigger = 'interval:1.5'", "trigger = 'always'", "trigger = 'motion'"] {
                check(&format!("server = 'a'\nmodel = 'm'\ncamera = '{camera}'\n{trigger}\n"));
            }
        }
    }

    #[test]
    fn the_pins_of_a_board_are_its_examples() {
        let profile = crate::boards::profile(glimpse_protocol::device::Board::QemuVirt).unwrap();
        let text = device_toml(&read(SMALL), profile.pins.as_ref()).unwrap();
        assert!(
            text.contains("\n# led = \"gpiochip0:4\"\n") && text.contains("\n# button = \"gpiochip0:3\"\n"),
            "{text}"
        );
    }
}
