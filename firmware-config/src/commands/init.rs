//! `glimpse-firmware init`: a commented `device.toml` to start from.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use glimpse_protocol::device::{
    self, CameraFormat, CameraSize, CameraSource, Cores, Device, GpioLine, Outbox, Problems, RawDevice,
    ServerAddress, TriggerKind, Updates, WebhookUrl,
};
use glimpse_protocol::{Codec, DeviceId, ModelKey};

use crate::output::{say, shown};
use crate::template::{Settings, device_toml};

/// Flags of `glimpse-firmware init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to write
    #[arg(default_value = "device.toml")]
    pub file: PathBuf,
    /// The device's name, also its MQTT client id [default: the device's host name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<DeviceId>,
    /// The gallery server's MQTT address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    pub server: ServerAddress,
    /// Where photos come from: folder:DIR, v4l2:/dev/videoN, rpicam or video:FILE
    #[arg(long, value_name = "CAMERA", default_value = "folder:photos")]
    pub camera: CameraSource,
    /// How large photos should be
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value_t = Device::CAMERA_SIZE_DEFAULT)]
    pub camera_size: CameraSize,
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
    /// How embeddings travel
    #[arg(long, value_parser = codec_parser(), default_value = "i8")]
    pub codec: Codec,
    /// How many matches to ask for
    #[arg(long, value_name = "N", value_parser = device::top_k_of_text, default_value = "10")]
    pub top_k: u16,
    /// Seconds to wait for a reply
    #[arg(long, value_name = "SECONDS", value_parser = device::seconds_of_text, default_value = "5")]
    pub timeout: Duration,
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
    /// What that folder may take, in megabytes
    #[arg(long, value_name = "MB", value_parser = device::outbox_mb_of_text, default_value_t = Device::OUTBOX_MB_DEFAULT)]
    pub outbox_mb: u16,
    /// How long a query may wait there
    #[arg(long, value_name = "HOURS", value_parser = device::outbox_hours_of_text, default_value_t = Device::OUTBOX_HOURS_DEFAULT)]
    pub outbox_hours: u16,
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
    /// Seconds for which the connection may be silent
    #[arg(long, value_name = "SECONDS", value_parser = device::keep_alive_of_text, default_value_t = Device::KEEP_ALIVE_DEFAULT)]
    pub keep_alive: u16,
    /// How many queries the device sends in any minute at most [default: no limit]
    #[arg(long, value_name = "N", value_parser = device::queries_per_minute_of_text)]
    pub queries_per_minute: Option<u16>,
    /// How many threads run the network together
    #[arg(long, value_name = "N", value_parser = device::threads_of_text, default_value_t = 1)]
    pub threads: u16,
    /// The processors that the program runs on, such as 2-3 [default: the system chooses]
    #[arg(long, value_name = "CORES")]
    pub cores: Option<Cores>,
    /// Replaces a file that is there
    #[arg(long)]
    pub force: bool,
}

fn codec_parser() -> impl TypedValueParser<Value = Codec> {
    PossibleValuesParser::new(Codec::ALL.map(Codec::name)).try_map(|name| name.parse::<Codec>())
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// A file that is there already, and one that cannot be written.
pub fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let mut raw = RawDevice::default();
    raw.password_file.clone_from(&args.password_file);
    raw.ca.clone_from(&args.ca);
    raw.certificate.clone_from(&args.certificate);
    raw.key.clone_from(&args.key);
    let security = raw.security(&args.server).map_err(anyhow::Error::msg)?;
    let updates = args.state.clone().zip(args.model_key).map(|(state, key)| Updates { state, key });
    let outbox = args.outbox.clone().map(|folder| Outbox {
        folder,
        megabytes: args.outbox_mb,
        hours: args.outbox_hours,
    });
    raw.unknown_below = args.unknown_below;
    raw.exec.clone_from(&args.exec);
    raw.webhook.clone_from(&args.webhook);
    raw.webhook_token_file.clone_from(&args.webhook_token_file);
    raw.webhook_ca.clone_from(&args.webhook_ca);
    raw.led.clone_from(&args.led);
    raw.led_unknown.clone_from(&args.led_unknown);
    raw.button.clone_from(&args.button);
    let mut problems = Vec::new();
    let actions = raw.actions(&mut problems);
    if !problems.is_empty() {
        return Err(anyhow::Error::msg(Problems(problems)));
    }
    let settings = Settings {
        device: args.device.as_ref(),
        server: &args.server,
        camera: &args.camera,
        camera_size: args.camera_size,
        camera_format: args.camera_format,
        trigger: args.trigger.unwrap_or_else(|| match &args.button {
            Some(_) => TriggerKind::Button,
            None => args.camera.trigger_default(),
        }),
        sharpness_min: args.sharpness_min.unwrap_or_else(|| args.camera.sharpness_min_default()),
        bundle: &args.bundle,
        model: args.model.as_deref(),
        codebook: args.codebook.as_deref(),
        codec: args.codec,
        top_k: args.top_k,
        timeout: args.timeout,
        security: &security,
        updates: updates.as_ref(),
        outbox: outbox.as_ref(),
        actions: &actions,
        button: args.button.as_ref(),
        keep_alive: args.keep_alive,
        queries_per_minute: args.queries_per_minute,
        threads: args.threads,
        cores: args.cores.as_ref(),
    };
    let text = device_toml(&settings)?;
    write_whole(&args.file, &text, args.force)?;
    let file = shown(&args.file.display().to_string());
    say(&format!(
        "wrote {file}: read it, change what differs, then `glimpse-firmware check {file}`\n\
         paths in it are taken from its own folder; the device runs it with `glimpse-edge run --config {file}`\n"
    ))?;
    Ok(ExitCode::SUCCESS)
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
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already: give another name, or --force to replace it", file.display())
        }
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
