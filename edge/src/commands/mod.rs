//! What `glimpse-edge` can do, one file a command, and the flags that commands share.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use glimpse_embedder::Threads;
use glimpse_protocol::device::{self, CameraSource, Device, GpioLine, RawDevice, ServerAddress, WebhookUrl};
use glimpse_protocol::{Codec, DeviceId, GalleryStatus, ModelKey, SpaceId};
use thiserror::Error;

use crate::client::GiveUp;
use crate::linux::model::ModelFiles;
use crate::linux::mqtt::{Answer, UplinkError};
use crate::linux::output::{Failure, chain};

pub mod bench;
pub mod capture;
pub mod doctor;
pub mod embed;
pub mod plan;
pub mod query;
pub mod run;

/// How often a query is sent at most, within its timeout.
const ATTEMPTS: u8 = 3;

/// A description of the device that does not hold together. To start again does not help, which the exit status says to a service
/// manager ([`Misconfigured::EXIT_STATUS`]).
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Misconfigured(String);

impl Misconfigured {
    /// `EX_CONFIG` of `sysexits.h`; the systemd unit names it.
    pub const EXIT_STATUS: u8 = 78;
}

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "glimpse-edge",
    version,
    about = "Finds the images of a gallery that are nearest to a photo"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Asks the gallery server about photos
    Query(query::QueryArgs),
    /// Embeds photos, without any server
    Embed(embed::EmbedArgs),
    /// Asks about each photo that the camera takes, until stopped
    Run(run::RunArgs),
    /// Takes one photo and says how sharp and bright it is, for aiming and focus
    Capture(capture::CaptureArgs),
    /// Measures how fast this device embeds
    Bench(bench::BenchArgs),
    /// Looks at all that this device needs, and says what to do about what is missing; takes the flags of run
    #[command(mut_arg("once", |arg| arg.hide(true)))]
    Doctor(doctor::DoctorArgs),
    /// Writes the query network as a plan, the file that a microcontroller runs
    ///
    /// A microcontroller has no engine that reads ONNX files. A plan is the same network as a list of steps, with its weights packed
    /// for plain processors, its preprocessing, its space and a checksum. A network with an operator that no step does is refused.
    Plan(plan::PlanArgs),
}

/// Where the query network is.
#[derive(Debug, Clone, Default, Args)]
pub struct ModelArgs {
    /// Query network, an ONNX file of `glimpse-trainer`
    #[arg(long, value_name = "ONNX")]
    pub model: Option<PathBuf>,
    /// Space bundle, for its query network and codebook
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
}

/// How embeddings travel and where to.
#[derive(Debug, Clone, Default, Args)]
pub struct QueryFlags {
    /// The quantizer's codebook, for the codec pq
    #[arg(long, value_name = "FILE")]
    pub codebook: Option<PathBuf>,
    /// How embeddings are written [default: i8]
    #[arg(long, value_parser = codec_parser())]
    pub codec: Option<Codec>,
    /// The server's MQTT address; mqtts://HOST:PORT for TLS [for query: default 127.0.0.1:1883]
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<ServerAddress>,
    /// This device's name, also its MQTT client id [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<DeviceId>,
    /// How many matches to ask for [default: 10]
    #[arg(long, value_name = "N", value_parser = device::top_k_of_text)]
    pub top_k: Option<u16>,
    /// Seconds to wait for a reply, in which a query is sent up to three times [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = device::seconds_of_text)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    credentials: CredentialFlags,
}

/// How the device takes new query networks from its server.
#[derive(Debug, Clone, Default, Args)]
pub struct UpdateFlags {
    /// Folder for networks that the server gives this device [default: it takes none]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The key that signs them, as `glimpse-gallery models key` prints it
    #[arg(long, value_name = "HEX")]
    pub model_key: Option<ModelKey>,
}

/// How the device proves itself to the server; secrets are in files, never on the command line.
#[derive(Debug, Clone, Default, Args)]
pub struct CredentialFlags {
    /// File with the device's password at the server; its user name is the device's name
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Authority that signed the server's certificate (PEM), for --server mqtts://HOST:PORT
    #[arg(long, value_name = "PEM")]
    pub ca: Option<PathBuf>,
    /// The device's certificate (PEM)
    #[arg(long, value_name = "PEM")]
    pub certificate: Option<PathBuf>,
    /// The private key of the device's certificate (PEM)
    #[arg(long, value_name = "PEM")]
    pub key: Option<PathBuf>,
}

impl CredentialFlags {
    fn raw(self) -> RawDevice {
        let mut raw = RawDevice::default();
        raw.password_file = self.password_file;
        raw.ca = self.ca;
        raw.certificate = self.certificate;
        raw.key = self.key;
        raw
    }
}

/// What the device does with an answer, beside printing it, and its button.
#[derive(Debug, Clone, Default, Args)]
pub struct ActionFlags {
    /// Similarity below which the best match is none: the photo is unknown [default: every match counts]
    #[arg(long, value_name = "SIMILARITY", value_parser = device::similarity_of_text, allow_negative_numbers = true)]
    pub unknown_below: Option<f32>,
    /// Program that is given the JSON of each outcome on standard input; it has ten seconds
    #[arg(long, value_name = "PROGRAM")]
    pub exec: Option<PathBuf>,
    /// Address that the JSON of each outcome is posted to
    #[arg(long, value_name = "URL")]
    pub webhook: Option<WebhookUrl>,
    /// File with the secret that is sent to it, as Authorization: Bearer
    #[arg(long, value_name = "FILE")]
    pub webhook_token_file: Option<PathBuf>,
    /// Authority that signed the certificate of its host (PEM) [default: the public ones]
    #[arg(long, value_name = "PEM")]
    pub webhook_ca: Option<PathBuf>,
    /// Line of a GPIO chip that is lit for a match, for a second; with :low where low is lit
    #[arg(long, value_name = "gpiochipN:LINE")]
    pub led: Option<GpioLine>,
    /// The same for a photo that is unknown
    #[arg(long, value_name = "gpiochipN:LINE")]
    pub led_unknown: Option<GpioLine>,
    /// Line of a button; with :low where the line is low while it is pressed
    #[arg(long, value_name = "gpiochipN:LINE")]
    pub button: Option<GpioLine>,
}

impl ActionFlags {
    fn into_raw(self, raw: &mut RawDevice) {
        raw.unknown_below = self.unknown_below;
        raw.exec = self.exec;
        raw.webhook = self.webhook;
        raw.webhook_token_file = self.webhook_token_file;
        raw.webhook_ca = self.webhook_ca;
        raw.led = self.led;
        raw.led_unknown = self.led_unknown;
        raw.button = self.button;
    }
}

fn codec_parser() -> impl TypedValueParser<Value = Codec> {
    PossibleValuesParser::new(Codec::ALL.map(Codec::name)).try_map(|name| name.parse::<Codec>())
}

/// The flags as a device description, to be laid over that of a file.
fn raw_device(model: ModelArgs, flags: QueryFlags, camera: Option<CameraSource>) -> RawDevice {
    let mut raw = flags.credentials.raw();
    raw.camera = camera;
    raw.model = model.model;
    raw.bundle = model.bundle;
    raw.codebook = flags.codebook;
    raw.codec = flags.codec;
    raw.server = flags.server;
    raw.device = flags.device;
    raw.top_k = flags.top_k;
    raw.timeout = flags.timeout;
    raw
}

fn model_files(device: &Device) -> ModelFiles {
    ModelFiles {
        bundle: device.bundle.clone(),
        model: device.model.clone(),
        codebook: device.codebook.clone(),
        threads: NonZeroUsize::new(device.threads.into()).map_or(Threads::ONE, Threads::from),
    }
}

/// What is known of the server, to explain why a query has no answer.
struct Server {
    address: ServerAddress,
    space: SpaceId,
    timeout: Duration,
    /// Why there is no connection, while there is none.
    away: Option<UplinkError>,
    gallery: Option<GalleryStatus>,
}

impl Server {
    const fn new(address: ServerAddress, space: SpaceId, timeout: Duration) -> Self {
        Self { address, space, timeout, away: None, gallery: None }
    }

    /// The failure that every query will meet, where the gallery is known to be of another space.
    fn other_space(&self) -> Option<Failure> {
        let served = self.gallery.as_ref().filter(|gallery| gallery.online)?.space;
        (served != self.space).then(|| {
            let message = format!(
                "the server at {} serves the space {served} and the model lives in the space {}: take the query network \
                 of the server's space bundle",
                self.address, self.space
            );
            Failure::from_server(glimpse_protocol::ErrorCode::WrongSpace, message)
        })
    }

    /// Why a query was given up.
    fn gave_up(&self, reason: GiveUp) -> Failure {
        if let Some(away) = &self.away {
            return Failure::new("no_server", chain(away));
        }
        let (server, seconds) = (&self.address, self.timeout.as_secs_f64());
        let message = match (&self.gallery, reason) {
            (_, GiveUp::NotConnected) => format!("no connection to {server} within {seconds} s"),
            (Some(gallery), _) if gallery.online => format!(
                "no reply from {server} within {seconds} s, though the gallery server is online: is it overloaded? try a \
                 longer --timeout"
            ),
            _ => format!(
                "no reply within {seconds} s: {server} is a broker without a gallery server; is glimpse-gallery serve \
                 connected to it?"
            ),
        };
        Failure::new("no_reply", message)
    }

    /// The matches, or why the server gives none.
    fn answer(&self, answer: Answer) -> Result<Box<glimpse_protocol::Reply>, Failure> {
        match answer {
            Answer::Matches(reply) => Ok(reply),
            Answer::Refused(error) if error.code == glimpse_protocol::ErrorCode::WrongSpace => {
                Err(self.other_space().unwrap_or_else(|| {
                    let message = format!("{} (the model lives in the space {})", error.message, self.space);
                    Failure::from_server(error.code, message)
                }))
            }
            Answer::Refused(error) => Err(Failure::from_server(error.code, error.message.as_str())),
            Answer::Malformed(reason) => Err(Failure::new(
                "malformed_reply",
                format!(
                    "the server's reply cannot be read ({reason}): are both programs of the same version?"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use glimpse_protocol::{ErrorBody, ErrorCode};

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_key_of_device_toml_is_a_flag_of_run() {
        let command = Cli::command();
        let run = command.find_subcommand("run").expect("there is run");
        for key in device::KEYS {
            let flag = key.replace('_', "-");
            assert!(run.get_arguments().any(|arg| arg.get_long() == Some(&flag)), "--{flag}");
        }
    }

    #[test]
    fn bad_values_are_usage_errors() {
        for bad in [
            ["--codec", "f64"],
            ["--top-k", "0"],
            ["--top-k", "101"],
            ["--timeout", "0"],
            ["--timeout", "soon"],
            ["--server", "a:b"],
            ["--device", "a/b"],
        ] {
            let args = ["glimpse-edge", "query", "a.jpg", "--model", "m.onnx"].into_iter().chain(bad);
            let error = Cli::try_parse_from(args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}: {error}");
        }
        let error = Cli::try_parse_from(["glimpse-edge", "query", "a.jpg"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    fn server(gallery: Option<(bool, u8)>) -> Server {
        let mut server = Server::new(
            "127.0.0.1:1883".parse().unwrap(),
            SpaceId::from_bytes([1; 16]),
            Duration::from_secs(5),
        );
        server.gallery = gallery.map(|(online, space)| GalleryStatus {
            online,
            space: SpaceId::from_bytes([space; 16]),
            size: 3,
            generation: 1,
        });
        server
    }

    #[test]
    fn a_gallery_of_another_space_is_told_with_both_spaces() {
        let refused = Answer::Refused(ErrorBody::new(ErrorCode::WrongSpace, "this is space 02"));
        for (server, answer) in [(server(Some((true, 2))), refused.clone()), (server(None), refused)] {
            let failure = server.answer(answer).unwrap_err();
            assert_eq!(failure.code, "wrong_space");
            assert!(
                failure.message.contains("02") && failure.message.contains("0101"),
                "{}",
                failure.message
            );
        }
        assert!(server(Some((true, 1))).other_space().is_none());
        assert!(server(Some((false, 2))).other_space().is_none());
    }

    #[test]
    fn silence_is_explained_by_what_is_known() {
        let message = |server: Server| server.gave_up(GiveUp::NoReply).message;
        assert!(message(server(None)).contains("is glimpse-gallery serve connected"));
        assert!(message(server(Some((false, 1)))).contains("is glimpse-gallery serve connected"));
        assert!(message(server(Some((true, 1)))).contains("overloaded"));
        let mut away = server(None);
        away.away = Some(UplinkError::Refused { server: away.address.clone() });
        let failure = away.gave_up(GiveUp::NotConnected);
        assert_eq!(failure.code, "no_server");
        assert_eq!(
            failure.message,
            "connection to 127.0.0.1:1883 refused: is glimpse-gallery serve running?"
        );
    }
}
