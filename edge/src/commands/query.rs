//! `glimpse-edge query`: asks about photos, one after another, so that each reply time is a latency and not a queue.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use glimpse_embedder::{Frame, Threads, read_photo};
use glimpse_protocol::device::{Device, PORT_DEFAULT, ServerAddress};
use glimpse_protocol::{DeviceId, ModelId, Query, QueryId};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::{ATTEMPTS, ModelArgs, QueryFlags, Server, chain};
use crate::client::{GiveUp, Patience};
use crate::linux::credentials::Credentials;
use crate::linux::host::{self, Stop, SystemClock};
use crate::linux::model::{Encoder, ModelFiles, QueryModel};
use crate::linux::mqtt::{self, Connection, MqttUplink, Presence};
use crate::linux::output::{self, Answered, Failure, Outcome};
use crate::linux::time::{Taken, Times};
use crate::linux::update::Updating;
use crate::ports::Embedder as _;
use crate::session::{Event, EventOf, Session};

/// Flags of `glimpse-edge query`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("network").args(["model", "bundle"]).required(true).multiple(true)))]
pub struct QueryArgs {
    /// Photos, JPEG or PNG
    #[arg(required = true, value_name = "PHOTO")]
    pub photos: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    flags: QueryFlags,
    /// Prints one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Asks about the photos; the status tells whether all were answered.
///
/// # Errors
/// A model or codebook that cannot be used, and output that cannot be written. What goes wrong with one photo, or
/// with the server, is told for each photo.
pub fn run(args: QueryArgs) -> anyhow::Result<ExitCode> {
    let files = ModelFiles {
        bundle: args.model.bundle,
        model: args.model.model,
        codebook: args.flags.codebook,
        threads: Threads::ONE,
    };
    let model = QueryModel::load(&files)?;
    let codec = args.flags.codec.unwrap_or(Device::CODEC_DEFAULT);
    let encoder = Encoder::new(codec, &files, model.dimension())?;
    let device = args.flags.device.map_or_else(host::device_name, Ok::<DeviceId, _>)?;
    let address = args.flags.server.map_or_else(default_server, Ok)?;
    let security = args.flags.credentials.raw().security(&address).map_err(anyhow::Error::msg)?;
    let credentials = Credentials::load(&security)?;
    let timeout = args.flags.timeout.unwrap_or(Device::TIMEOUT_DEFAULT);
    let top_k = args.flags.top_k.unwrap_or(Device::TOP_K_DEFAULT);
    let server = Server::new(address.clone(), model.space(), timeout);
    let mut asking = Asking::start(device, address, server, timeout, credentials)?;

    let bar = progress(args.photos.len());
    let mut out = io::stdout().lock();
    let (mut answered, mut away) = (0, asking.connect()?);
    for path in &args.photos {
        if asking.stop.asked() {
            break;
        }
        let outcome = match &away {
            Some(failure) => not_asked(name_of(path), failure.clone()),
            None => match prepare(path, &model, &encoder, top_k) {
                Ok((id, pending)) => asking.ask(id, pending)?,
                Err(outcome) => *outcome,
            },
        };
        answered += usize::from(outcome.result.is_ok());
        bar.suspend(|| {
            if let Err(failure) = &outcome.result {
                tracing::error!(photo = %outcome.photo, code = failure.code, "{}", failure.message);
            }
            if args.json {
                output::write_json(&mut out, &outcome)
            } else {
                output::write_table(&mut out, &outcome)
            }
        })?;
        bar.inc(1);
        // A broker that comes back is used again; one that was never there, or of another space, is not.
        away = away.or_else(|| asking.server.other_space());
    }
    bar.finish_and_clear();
    out.flush()?;
    let stopped = asking.stop.asked();
    asking.session.into_uplink().close(0);
    if stopped {
        tracing::warn!("interrupted: {answered} of {} photos were answered", args.photos.len());
        return Ok(ExitCode::from(130));
    }
    Ok(if answered == args.photos.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn default_server() -> anyhow::Result<ServerAddress> {
    Ok(format!("127.0.0.1:{PORT_DEFAULT}").parse()?)
}

/// A progress bar on stderr for several photos, invisible where stderr is no terminal.
pub(super) fn progress(photos: usize) -> ProgressBar {
    if photos < 2 {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(photos as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{bar:30} {pos}/{len} photos, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What a journal keeps beside a query's message.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    photo: String,
    embed_us: u64,
    model: ModelId,
    /// Absent in what a version before this one has written.
    #[serde(default)]
    taken: Taken,
}

/// A query on its way, with what its outcome will tell.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) photo: String,
    pub(super) embed_time: Duration,
    pub(super) message: Vec<u8>,
    /// The network that embedded the photo.
    pub(super) model: ModelId,
    /// When the photo was taken, as `message` says it.
    pub(super) taken: Taken,
}

impl AsRef<[u8]> for Pending {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Pending {
    /// As bytes, for a journal: what the outcome will tell, its length before it, then the message.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let told = Told {
            photo: self.photo.clone(),
            embed_us: u64::try_from(self.embed_time.as_micros()).unwrap_or(u64::MAX),
            model: self.model,
            taken: self.taken,
        };
        let mut head = Vec::new();
        if ciborium::into_writer(&told, &mut head).is_err() {
            // Writing to memory does not fail; without a head it would not be read again, and is dropped then.
            head.clear();
        }
        [&(head.len() as u32).to_le_bytes()[..], &head, &self.message].concat()
    }

    /// From such bytes; `None` where they are none.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (head, message) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let Told { photo, embed_us, model, taken } = ciborium::from_reader(head).ok()?;
        let embed_time = Duration::from_micros(embed_us);
        Some(Self { photo, embed_time, message: message.to_vec(), model, taken })
    }

    /// Says in the message what is known now of when the photo was taken.
    pub(super) fn date(&mut self, now: &Times) {
        let taken = self.taken.resolved(now);
        if taken == self.taken {
            return;
        }
        if taken == Taken::Unknown {
            tracing::warn!(photo = %self.photo, "nobody knows when it was taken: the clock was not set before the device started anew");
        }
        match mqtt::dated(&self.message, taken) {
            Ok(message) => (self.message, self.taken) = (message, taken),
            // It is still a query, with less in it.
            Err(error) => tracing::error!(%error, photo = %self.photo, "it keeps the time that it has"),
        }
    }

    /// The outcome of this query.
    pub(super) fn came_to(self, id: QueryId, result: Result<Answered, Failure>) -> Outcome {
        Outcome { photo: self.photo, id: Some(id), embed_time: Some(self.embed_time), result }
    }
}

fn name_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn not_asked(photo: String, failure: Failure) -> Outcome {
    Outcome { photo, id: None, embed_time: None, result: Err(failure) }
}

/// Reads, embeds and encodes a photo; an outcome already where that fails.
fn prepare(
    path: &Path,
    model: &QueryModel,
    encoder: &Encoder,
    top_k: u16,
) -> Result<(QueryId, Pending), Box<Outcome>> {
    let failed = |code, error: &dyn std::error::Error| {
        Box::new(not_asked(name_of(path), Failure::new(code, chain(error))))
    };
    let image = read_photo(path).map_err(|error| failed("unreadable_photo", &error))?;
    embed_query(name_of(path), &(&image).into(), None, model, encoder, top_k)
        .map_err(|error| failed("not_embedded", &*error))
}

/// Embeds a photo and writes the query.
pub(super) fn embed_query(
    photo: String,
    frame: &Frame<'_>,
    taken_at: Option<u64>,
    model: &QueryModel,
    encoder: &Encoder,
    top_k: u16,
) -> Result<(QueryId, Pending), Box<dyn std::error::Error + Send + Sync>> {
    let start = Instant::now();
    let embedding = model.embedding_of(frame)?;
    let embed_time = start.elapsed();
    let id = host::query_id()?;
    let query: Query = Query::new(id, model.space(), encoder.encode(&embedding)?, top_k);
    let taken = Taken::of(taken_at, &Times::now());
    let message = mqtt::message(query, taken)?;
    Ok((id, Pending { photo, embed_time, message, model: model.id(), taken }))
}

/// A connection over which one query is asked at a time.
struct Asking {
    session: Session<MqttUplink, SystemClock, Pending, 1, 1>,
    server: Server,
    stop: Stop,
}

/// How long a wait lasts before the loop looks around.
const LOOK_AROUND: Duration = Duration::from_secs(1);

impl Asking {
    fn start(
        device: DeviceId,
        address: ServerAddress,
        server: Server,
        timeout: Duration,
        credentials: Credentials,
    ) -> anyhow::Result<Self> {
        let (space, expiry) = (server.space, timeout);
        let connection = Connection {
            server: address,
            device,
            space,
            expiry,
            has_status: false,
            keep_alive_s: Device::KEEP_ALIVE_DEFAULT,
            credentials,
            presence: Presence::default(),
            updating: Updating::default(),
        };
        let uplink = MqttUplink::start(connection, host::jitter()?)?;
        let waker = uplink.waker();
        let stop = Stop::on_signals(move || waker.wake())?;
        let patience = Patience::within(timeout, ATTEMPTS).with_deadline(timeout);
        let session = Session::new(uplink, SystemClock::start(), patience, host::jitter()?, false);
        Ok(Self { session, server, stop })
    }

    /// Waits until there is a connection, or tells why there is none: the first failure is final here.
    fn connect(&mut self) -> anyhow::Result<Option<Failure>> {
        while !self.session.is_connected() && !self.stop.asked() {
            if let Some(event) = self.session.step(LOOK_AROUND)? {
                self.note(event);
            }
            if self.server.away.is_some() {
                return Ok(Some(self.server.gave_up(GiveUp::NotConnected)));
            }
        }
        Ok(None)
    }

    /// Asks, and waits for what it comes to.
    fn ask(&mut self, id: QueryId, pending: Pending) -> anyhow::Result<Outcome> {
        let (photo, embed_time) = (pending.photo.clone(), pending.embed_time);
        // With one query at a time there is always room: this cannot be.
        if let Some((id, pending)) = self.session.submit(id, pending) {
            return Ok(pending.came_to(id, Err(Failure::new("dropped", "another query is in flight"))));
        }
        loop {
            let event = self.session.step(LOOK_AROUND)?;
            if let Some(outcome) = event.and_then(|event| self.note(event)) {
                return Ok(outcome);
            }
            if self.stop.asked() {
                // The process ends: the query's outcome is that there is none.
                let failure = Failure::new("interrupted", "interrupted before the reply came");
                return Ok(Outcome {
                    photo,
                    id: Some(id),
                    embed_time: Some(embed_time),
                    result: Err(failure),
                });
            }
        }
    }

    fn note(&mut self, event: EventOf<MqttUplink, Pending>) -> Option<Outcome> {
        match event {
            Event::Connected => self.server.away = None,
            Event::Disconnected(error) => {
                tracing::debug!(error = chain(&error), "not connected");
                self.server.away = Some(error);
            }
            Event::Gallery(status) => self.server.gallery = Some(status),
            Event::NotSent(error) => tracing::warn!(%error, "a query was not sent"),
            Event::Answered { id, payload, reply, attempts, reply_time } => {
                let bytes = payload.message.len();
                let result = self.server.answer(reply).map(|reply| {
                    let unknown = output::is_unknown(&reply, None);
                    Answered { reply, reply_time, attempts, bytes, unknown }
                });
                return Some(payload.came_to(id, result));
            }
            Event::GivenUp { id, payload, reason, .. } => {
                return Some(payload.came_to(id, Err(self.server.gave_up(reason))));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_protocol::{Codec, Embedding, SpaceId};

    fn pending(taken: Taken) -> Pending {
        let embedding = Embedding::encode(Codec::I8, &[0.5, -0.5]).unwrap();
        let query = Query::new(QueryId::from_bytes([1; 16]), SpaceId::from_bytes([2; 16]), embedding, 3);
        Pending {
            photo: "a.jpg".to_owned(),
            embed_time: Duration::from_micros(5),
            message: mqtt::message(query, taken).unwrap(),
            model: ModelId::from_bytes([3; 32]),
            taken,
        }
    }

    fn times(pending: &Pending) -> (Option<u64>, Option<u64>) {
        let query: Query = mqtt::from_cbor(&pending.message).unwrap();
        (query.taken_at, query.uptime_ms)
    }

    const NOW: Times = Times { clock_ms: 1_800_000_000_000, is_trusted: true, uptime_ms: 60_000, boot: 7 };

    #[test]
    fn a_query_that_waited_for_a_clock_gets_its_time_across_a_restart_of_the_program() {
        let before = pending(Taken::Uptime { boot: 7, ms: 50_000 });
        assert_eq!(times(&before), (None, Some(50_000)));
        let mut after = Pending::from_bytes(&before.to_bytes()).unwrap();
        after.date(&Times { is_trusted: false, ..NOW });
        assert_eq!((after.taken, &after.message), (before.taken, &before.message));
        after.date(&NOW);
        assert_eq!(times(&after), (Some(NOW.clock_ms - 10_000), None));
        let again = Pending::from_bytes(&after.to_bytes()).unwrap();
        assert_eq!(again.taken, Taken::At(NOW.clock_ms - 10_000));
    }

    #[test]
    fn a_query_of_another_run_of_the_machine_says_that_its_age_is_unknown() {
        let mut query = pending(Taken::Uptime { boot: 6, ms: 50_000 });
        query.date(&NOW);
        assert_eq!((times(&query), query.taken), ((None, None), Taken::Unknown));
    }

    #[test]
    fn what_an_older_version_kept_is_read_and_what_is_no_query_keeps_its_bytes() {
        #[derive(Serialize)]
        struct Old {
            photo: &'static str,
            embed_us: u64,
            model: ModelId,
        }
        let mut head = Vec::new();
        let old = Old { photo: "a.jpg", embed_us: 7, model: ModelId::from_bytes([3; 32]) };
        ciborium::into_writer(&old, &mut head).unwrap();
        let bytes = [&(head.len() as u32).to_le_bytes()[..], &head, b"message"].concat();
        let mut query = Pending::from_bytes(&bytes).unwrap();
        assert_eq!((query.taken, query.photo.as_str()), (Taken::Unknown, "a.jpg"));
        query.taken = Taken::Uptime { boot: 7, ms: 1 };
        query.date(&NOW);
        assert_eq!(query.message, b"message");
    }
}
