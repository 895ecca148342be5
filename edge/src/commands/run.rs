//! `glimpse-edge run`: camera, embedding, query, print; until stopped.
//!
//! Two threads: one captures and embeds, the other keeps the connection and prints, so that a slow network never
//! stops the camera and a slow network (the other kind) never delays a reply. Between them a short channel; behind
//! it, while the server is away, an outbox, which drops its oldest query for a new one and says so. With `outbox = DIR` it is on
//! the disk: what waits there is sent after a restart, and no query is acted upon twice. Without, it lives in
//! memory: what waits in it when the program ends is lost, and counted.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use glimpse_embedder::{EmbedError, test_photo};
use glimpse_protocol::device::{
    self, CameraFormat, CameraSize, CameraSource, Cores, Device, RawDevice, TriggerKind,
};
use glimpse_protocol::{ErrorCode, QueryId};

use super::query::{Pending, embed_query, not_asked};
use super::{
    ATTEMPTS, ActionFlags, Misconfigured, ModelArgs, QueryFlags, Server, UpdateFlags, chain, model_files,
    raw_device,
};
use crate::backoff::{Backoff, Jitter};
use crate::client::{GiveUp, Patience};
use crate::duty::Duty;
use crate::linux::actions::Actions;
use crate::linux::camera::{CameraError, Photo, Wanted, Watch};
use crate::linux::credentials::Credentials;
use crate::linux::gpio::ButtonLine;
use crate::linux::host::{self, Stop, SystemClock};
use crate::linux::model::{Encoder, QueryModel, QueryModelError};
use crate::linux::mqtt::{Answer, Connection, MqttUplink, Presence, Waker};
use crate::linux::output::{self, Answered, Failure, Outcome};
use crate::linux::time::Times;
use crate::linux::update::{self, Updater, Updating};
use crate::linux::waiting::{GRACE, TOGETHER, Waiting};
use crate::ports::{Camera, Capture, Embedder as _, Error as _, ErrorKind};
use crate::session::{Event, EventOf, Session};

/// Queries in flight at once.
const IN_FLIGHT: usize = 8;

/// Queries that wait while the server is away.
const OUTBOX: usize = 256;

/// Queries between the two threads.
const HANDED_OVER: usize = 4;

/// How long a camera that failed is left alone at first.
const CAMERA_INTERVAL: Duration = Duration::from_millis(500);

/// The longest wait before a camera that failed is asked again.
const CAMERA_LONGEST: Duration = Duration::from_mins(1);

/// The largest `device.toml`.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Flags of `glimpse-edge run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Reads device.toml, which glimpse-firmware writes; flags go over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where photos come from: v4l2:/dev/videoN, a USB camera; rpicam, a Raspberry Pi's; folder:DIR, in the order of their
    /// names, then new ones as they appear; or video:FILE, in MJPEG or YUV4MPEG2
    #[arg(long, value_name = "CAMERA")]
    pub camera: Option<CameraSource>,
    /// How large photos of v4l2 and rpicam should be [default: 1280x720]
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub camera_size: Option<CameraSize>,
    /// How a camera of v4l2 sends them: nv12, yuyv or mjpeg [default: as takes the least work]
    #[arg(long, value_name = "FORMAT")]
    pub camera_format: Option<CameraFormat>,
    /// When photos are taken: always, motion, button or interval:SECONDS [default: interval:10; of folder and video: always]
    #[arg(long, value_name = "WHEN")]
    pub trigger: Option<TriggerKind>,
    /// How sharp photos have to be, as `capture` measures it; 0 takes blurred ones too [default: 0.5; of folder and video: 0]
    #[arg(long, value_name = "SHARPNESS", value_parser = device::sharpness_of_text)]
    pub sharpness_min: Option<f32>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    flags: QueryFlags,
    #[command(flatten)]
    updates: UpdateFlags,
    /// Folder where queries wait for their answers, across restarts [default: they wait in memory]
    #[arg(long, value_name = "DIR")]
    outbox: Option<PathBuf>,
    /// What that folder may take, in megabytes; the oldest queries are dropped for new ones [default: 64]
    #[arg(long, value_name = "MB", value_parser = device::outbox_mb_of_text)]
    outbox_mb: Option<u16>,
    /// How long a query may wait there, in hours [default: 72]
    #[arg(long, value_name = "HOURS", value_parser = device::outbox_hours_of_text)]
    outbox_hours: Option<u16>,
    /// Seconds for which the connection may be silent: fewer find a dead one sooner, more save a battery [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = device::keep_alive_of_text)]
    keep_alive: Option<u16>,
    /// How many queries are sent in any minute at most; more wait in the outbox [default: no limit]
    #[arg(long, value_name = "N", value_parser = device::queries_per_minute_of_text)]
    queries_per_minute: Option<u16>,
    /// How many threads run the network together [default: 1]
    #[arg(long, value_name = "N", value_parser = device::threads_of_text)]
    threads: Option<u16>,
    /// The processors that the program runs on, such as 2-3 [default: the system chooses]
    #[arg(long, value_name = "CORES")]
    cores: Option<Cores>,
    #[command(flatten)]
    actions: ActionFlags,
    /// Ends after the photos that are there at the beginning, a video's last, or one of a camera
    #[arg(long)]
    pub once: bool,
    /// Prints one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Asks about each photo of the camera.
///
/// # Errors
/// A configuration that does not hold together (all problems at once), a model, codebook or folder that cannot be
/// used, and output that cannot be written.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (once, json) = (args.once, args.json);
    let device = configuration(args)?;
    if let Some(cores) = &device.cores {
        // Before there is another thread: those that come have what this one has.
        host::run_on(cores).map_err(|error| Misconfigured(chain(&error)))?;
    }
    let files = model_files(&device);
    let home = files.describe()?;
    let encoder = Encoder::new(device.codec, &files, home.dimension)?;
    if let CameraSource::Folder(folder) = &device.camera {
        std::fs::read_dir(folder).with_context(|| format!("cannot list the folder {}", folder.display()))?;
    }
    let button = device.button.as_ref().map(ButtonLine::open).transpose()?;
    let trigger = (device.trigger, button);
    let camera = Watch::new(&device.camera, Wanted::of(&device), trigger, device.sharpness_min, once);
    let waiting = device.outbox.as_ref().map(Waiting::open).transpose()?;

    let name = device.name.clone().map_or_else(host::device_name, Ok)?;
    let credentials = Credentials::load(&device.security)?;
    let actions = Actions::start(&device.actions, host::jitter()?)?;
    // After everything else that can fail: a network on trial is not to blame for that.
    let (model, updater) = match &device.updates {
        Some(updates) => {
            update::start(&files, home, updates).map(|(model, updater)| (model, Some(updater)))?
        }
        None => (QueryModel::load(&files)?, None),
    };
    let (updating, listening) = Updating::channel();
    let connection = Connection {
        server: device.server.clone(),
        device: name.clone(),
        space: model.space(),
        expiry: device.timeout,
        has_status: true,
        keep_alive_s: device.keep_alive,
        credentials,
        presence: updater
            .as_ref()
            .map_or_else(|| Presence { model: Some(model.id()), update: None }, Updater::presence),
        updating: updating.clone(),
    };
    let server = Server::new(device.server.clone(), model.space(), device.timeout);
    tracing::info!(device = %name, server = %device.server, camera = %device.camera, trigger = %device.trigger, space = %model.space(), "started");
    let uplink = MqttUplink::start(connection, host::jitter()?)?;
    let waker = uplink.waker();
    actions.on_idle({
        let waker = waker.clone();
        move || waker.wake()
    });
    if let Some(updater) = updater {
        updater.spawn(&updating, listening, uplink.link())?;
    }
    let stop = Stop::on_signals({
        let waker = waker.clone();
        move || waker.wake()
    })?;
    let mut patience = Patience::within(device.timeout, ATTEMPTS);
    if once {
        // Nobody waits for a server for ever with a finite job; a device that runs on does.
        patience = patience.with_deadline(device.timeout);
    }
    let (queries, captured) = sync_channel(HANDED_OVER);
    let jitter = host::jitter()?;
    let top_k = device.top_k;
    let producer = {
        let (updating, stop) = (updating.clone(), stop.clone());
        Producer { camera, model, updating, encoder, top_k, queries, waker, stop, once }
    };
    thread::Builder::new()
        .name("camera".to_owned())
        .spawn(move || producer.run(jitter))
        .context("cannot start the camera's thread")?;
    let session = Session::new(uplink, SystemClock::start(), patience, host::jitter()?, true)
        .with_duty(Duty::per_minute(device.queries_per_minute.map_or(0, u32::from)));
    Running {
        session,
        server,
        updating,
        stop,
        captured,
        waiting,
        actions,
        unknown_below: device.actions.unknown_below,
        fresh: VecDeque::new(),
        held: VecDeque::new(),
        again: VecDeque::new(),
        is_dated: Times::now().is_trusted,
        once,
        json,
        ended: false,
        failures: 0,
    }
    .run()
}

pub(super) fn configuration(args: RunArgs) -> anyhow::Result<Device> {
    let flags = {
        let mut raw = raw_device(args.model, args.flags, args.camera);
        (raw.camera_size, raw.camera_format) = (args.camera_size, args.camera_format);
        (raw.trigger, raw.sharpness_min) = (args.trigger, args.sharpness_min);
        (raw.state, raw.model_key) = (args.updates.state, args.updates.model_key);
        (raw.outbox, raw.outbox_mb, raw.outbox_hours) = (args.outbox, args.outbox_mb, args.outbox_hours);
        args.actions.into_raw(&mut raw);
        (raw.keep_alive, raw.queries_per_minute) = (args.keep_alive, args.queries_per_minute);
        (raw.threads, raw.cores) = (args.threads, args.cores);
        raw
    };
    let (file, problems) = match &args.config {
        None => (RawDevice::default(), Vec::new()),
        Some(path) => {
            let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            anyhow::ensure!(bytes <= CONFIG_BYTES_MAX, "{} is too large for a device.toml", path.display());
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?;
            RawDevice::parse(&text, path.parent().unwrap_or(&PathBuf::new()))
        }
    };
    flags.over(file).validate(problems).map_err(|problems| {
        let wrong = match &args.config {
            Some(path) => format!("{}:\n{problems}", path.display()),
            None => format!("the device is not described, by flags or --config FILE:\n{problems}"),
        };
        Misconfigured(wrong).into()
    })
}

/// What the camera's thread hands over.
enum Captured {
    Query(QueryId, Pending),
    Failed(Outcome),
    /// There will be no further photo; with the reason, where it is an error.
    End(Option<CameraError>),
}

/// Captures and embeds.
struct Producer {
    camera: Watch,
    model: QueryModel,
    updating: Updating,
    encoder: Encoder,
    top_k: u16,
    queries: SyncSender<Captured>,
    waker: Waker,
    stop: Stop,
    once: bool,
}

impl Producer {
    fn run(mut self, jitter: Jitter) {
        if self.camera.waits_for_somebody() {
            // The first run finds no buffers, and its weights on the disk: nobody should wait for that.
            if let Err(error) = self.model.embedding(&test_photo(0)) {
                tracing::debug!(error = chain(&error), "the network cannot embed a test photo");
            }
        }
        let mut backoff = Backoff::new(CAMERA_INTERVAL, CAMERA_LONGEST, jitter);
        while !self.stop.asked() {
            let captured = match self.camera.capture() {
                Ok(Capture::Photo(photo)) => {
                    backoff.reset();
                    if let Some(model) = self.updating.next() {
                        tracing::info!(model = %model.id(), "another query network runs");
                        self.model = model;
                    }
                    self.embedded(photo)
                }
                Ok(Capture::NotYet) => {
                    backoff.reset();
                    thread::sleep(self.camera.rest());
                    continue;
                }
                Ok(Capture::End) => Captured::End(None),
                // A finite job does not wait for a camera to be plugged in.
                Err(error) if error.kind() == ErrorKind::Unavailable && !self.once => {
                    tracing::warn!(error = chain(&error), "the camera failed, and is asked again");
                    self.wait(backoff.after_failure());
                    continue;
                }
                Err(error) => match error.photo() {
                    Some(photo) => {
                        Captured::Failed(not_asked(photo, Failure::new("unreadable_photo", chain(&error))))
                    }
                    None => Captured::End(Some(error)),
                },
            };
            let end = matches!(captured, Captured::End(_));
            // Waits while the other thread is behind; fails when it has ended.
            if self.queries.send(captured).is_err() || end {
                break;
            }
            self.waker.wake();
        }
        let skipped = self.camera.skipped();
        if skipped > 0 {
            tracing::info!(
                skipped,
                "pictures that were too dark, too bright or blurred were not asked about"
            );
        }
        self.waker.wake();
    }

    /// Waits, as long as nobody wants to stop.
    fn wait(&self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time && !self.stop.asked() {
            thread::sleep(CAMERA_INTERVAL.min(time.saturating_sub(begun.elapsed())));
        }
    }

    fn embedded(&self, photo: Photo) -> Captured {
        let Photo { name, taken_at, picture } = photo;
        match embed_query(name.clone(), &picture.frame(), taken_at, &self.model, &self.encoder, self.top_k) {
            Ok((id, pending)) => {
                self.updating.embedded(self.model.id());
                Captured::Query(id, pending)
            }
            Err(error) => {
                let reason = chain(&*error);
                if is_the_networks(&*error) {
                    self.updating.refused(self.model.id(), &reason);
                }
                Captured::Failed(not_asked(name, Failure::new("not_embedded", reason)))
            }
        }
    }
}

/// Whether it is the network that failed. A photo of one colour may have a zero embedding in any network.
fn is_the_networks(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref() {
        Some(QueryModelError::Embed(EmbedError::Network(_))) => true,
        Some(QueryModelError::Embed(EmbedError::NoDirection(found))) => !found.norm.is_finite(),
        _ => false,
    }
}

/// Sends and prints.
struct Running {
    session: Session<MqttUplink, SystemClock, Pending, IN_FLIGHT, OUTBOX>,
    server: Server,
    updating: Updating,
    stop: Stop,
    captured: Receiver<Captured>,
    /// The outbox on the disk, where there is one.
    waiting: Option<Waiting>,
    /// What is done with an outcome, beside printing it.
    actions: Actions,
    unknown_below: Option<f32>,
    /// Queries in the session that are not on the disk yet, and since when.
    fresh: VecDeque<(QueryId, Instant)>,
    /// Outcomes that wait for the actions of others, oldest first: on the disk their queries have none yet.
    held: VecDeque<(QueryId, Outcome)>,
    /// Queries on the disk that got no reply, and when they are sent again.
    again: VecDeque<(Instant, QueryId, Pending)>,
    /// Whether the clock is trusted, so that no query waits for its time.
    is_dated: bool,
    once: bool,
    json: bool,
    ended: bool,
    failures: u64,
}

/// Outcomes that wait for the actions of others, at most: as many as those queries that wait in memory.
const HELD: usize = OUTBOX;

/// How long a query that got no reply rests before it is sent again.
const REST: Duration = Duration::from_secs(10);

/// Whether a refusal says that the network is the wrong one, and not the query or the time.
const fn is_of_the_network(code: ErrorCode) -> bool {
    use ErrorCode::{NotFinite, WrongDimension, WrongSpace, ZeroNorm};
    matches!(code, WrongSpace | WrongDimension | NotFinite | ZeroNorm)
}

/// The waker ends a wait earlier.
const LOOK_AROUND: Duration = Duration::from_secs(10);

impl Running {
    fn run(mut self) -> anyhow::Result<ExitCode> {
        let result = self.turns();
        let lost = self.put_by();
        let (counters, dropped) = (self.session.counters(), self.session.dropped());
        let on_disk = self.waiting.as_ref().map_or(0, Waiting::len);
        tracing::info!(
            answered = counters.answered,
            given_up = counters.given_up,
            dropped,
            repeats = counters.published.saturating_sub(counters.submitted),
            duplicate_replies = counters.duplicate_replies,
            waiting = on_disk,
            "stopped"
        );
        if lost > 0 {
            tracing::warn!("{lost} queries had no reply yet, and are lost");
        }
        let waiting = if on_disk > 0 { on_disk } else { self.session.waiting() };
        self.updating.stop();
        self.session.into_uplink().close(waiting);
        self.actions.close(self.once, || self.stop.asked());
        result?;
        let failed = self.once && (self.failures > 0 || lost > 0);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn turns(&mut self) -> anyhow::Result<()> {
        loop {
            self.take_captured()?;
            self.let_go()?;
            self.date();
            self.tend()?;
            if self.stop.asked() || (self.ended && self.session.unanswered() == 0 && self.held.is_empty()) {
                return Ok(());
            }
            let soon = !self.fresh.is_empty()
                || (self.once && self.actions.is_behind())
                || !self.again.is_empty()
                || self.waiting.as_ref().is_some_and(Waiting::is_unsynced);
            if let Some(event) = self.session.step(if soon { TOGETHER } else { LOOK_AROUND })? {
                self.note(event)?;
            }
        }
    }

    fn take_captured(&mut self) -> anyhow::Result<()> {
        // With a finite number of photos there is no hurry: better to wait than to drop.
        while !(self.once && (self.session.waiting() > 0 || self.actions.is_behind())) {
            match self.captured.try_recv() {
                Ok(Captured::Query(id, pending)) => self.captured(id, pending)?,
                Ok(Captured::Failed(outcome)) => self.print(&outcome)?,
                Ok(Captured::End(error)) => {
                    self.ended = true;
                    if let Some(error) = error {
                        return Err(error).context("the camera failed");
                    }
                    return Ok(());
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) if self.ended || self.stop.asked() => return Ok(()),
                Err(TryRecvError::Disconnected) => anyhow::bail!("the camera's thread ended"),
            }
        }
        Ok(())
    }

    /// A query goes to the disk at once where it cannot be sent at once.
    fn captured(&mut self, id: QueryId, pending: Pending) -> anyhow::Result<()> {
        if let Some(mut waiting) = self.waiting.take() {
            let at_once =
                self.session.is_connected() && waiting.is_empty() && self.session.unanswered() < IN_FLIGHT;
            if !at_once {
                // Those before it stand before it there, too.
                self.write_fresh(&mut waiting, Duration::ZERO);
            }
            let is_kept = !at_once && waiting.keep(id, &pending.to_bytes());
            self.waiting = Some(waiting);
            if is_kept {
                return Ok(());
            }
            self.fresh.push_back((id, Instant::now()));
        }
        self.submit(id, pending)
    }

    /// Writes down what is being sent for so long without an answer.
    fn write_fresh(&mut self, waiting: &mut Waiting, wait: Duration) {
        while let Some((id, _)) = self.fresh.pop_front_if(|(_, since)| since.elapsed() >= wait) {
            if let Some((_, pending)) = self.session.queries().find(|(query, _)| *query == id) {
                waiting.keep_sent(id, &pending.to_bytes());
            }
        }
    }

    /// Once the clock is trusted, all queries here get their times.
    fn date(&mut self) {
        if self.is_dated {
            return;
        }
        let now = Times::now();
        if now.is_trusted {
            tracing::info!("the clock is set: queries have their times from now on");
            self.session.payloads_mut().for_each(|pending| pending.date(&now));
            self.is_dated = true;
        }
    }

    fn submit(&mut self, id: QueryId, mut pending: Pending) -> anyhow::Result<()> {
        pending.date(&Times::now());
        if let Some((id, pending)) = self.session.submit(id, pending) {
            let failure = Failure::new("dropped", "the outbox was full, and newer photos were taken");
            self.print(&pending.came_to(id, Err(failure)))?;
        }
        Ok(())
    }

    /// Moves queries between session and disk.
    fn tend(&mut self) -> anyhow::Result<()> {
        let Some(mut waiting) = self.waiting.take() else { return Ok(()) };
        self.write_fresh(&mut waiting, GRACE);
        let mut result = Ok(());
        while let Some((_, id, pending)) = self.again.pop_front_if(|(due, ..)| *due <= Instant::now()) {
            result = result.and(self.submit(id, pending));
        }
        // With a finite number of photos nobody waits for a server that is away.
        while !(self.once && self.failures > 0)
            && self.session.unanswered() + self.again.len() < IN_FLIGHT
            && let Some((id, body)) = waiting.take()
        {
            if let Some(pending) = Pending::from_bytes(&body) {
                result = result.and(self.submit(id, pending));
            } else {
                tracing::error!(query_id = %id, "a query of the outbox is of another version of this program, and is dropped");
                waiting.done(id);
            }
        }
        waiting.sync_if_due();
        self.session.wait_elsewhere(waiting.left());
        self.waiting = Some(waiting);
        result
    }

    /// What has no outcome when the program ends goes to the disk. Returns how many queries are lost.
    fn put_by(&mut self) -> usize {
        let Some(waiting) = &mut self.waiting else { return self.session.unanswered() };
        let lost = self
            .session
            .queries()
            .filter(|(id, pending)| !waiting.has(*id) && !waiting.keep_sent(*id, &pending.to_bytes()))
            .count();
        waiting.sync();
        lost
    }

    /// Whether an outcome has to wait for the actions of others: a power cut would take what waits in memory, and on the disk it
    /// would be done. Where too many wait, the oldest do there, and are dropped there.
    fn is_to_be_held(&self) -> bool {
        self.waiting.is_some() && self.held.len() < HELD && (self.actions.is_busy() || !self.held.is_empty())
    }

    /// Whether a query is on the disk now.
    fn keep(&mut self, id: QueryId, pending: &Pending) -> bool {
        self.fresh.retain(|(fresh, _)| *fresh != id);
        let waiting = self.waiting.as_mut();
        waiting.is_some_and(|waiting| waiting.has(id) || waiting.keep_sent(id, &pending.to_bytes()))
    }

    /// Acts upon what was held, one by one.
    fn let_go(&mut self) -> anyhow::Result<()> {
        while (!self.actions.is_busy() || self.held.len() >= HELD)
            && let Some((id, outcome)) = self.held.pop_front()
        {
            self.conclude(id, &outcome)?;
        }
        Ok(())
    }

    /// Writes down that a query has its outcome, and acts upon it.
    fn conclude(&mut self, id: QueryId, outcome: &Outcome) -> anyhow::Result<()> {
        if self.is_done(id) {
            self.print(outcome)?;
        } else {
            tracing::error!(query_id = %id, "answered, but not acted upon: it waits for a disk that works");
        }
        Ok(())
    }

    /// Whether the outcome of a query may be acted upon.
    fn is_done(&mut self, id: QueryId) -> bool {
        self.fresh.retain(|(fresh, _)| *fresh != id);
        self.waiting.as_mut().is_none_or(|waiting| waiting.done(id))
    }

    fn note(&mut self, event: EventOf<MqttUplink, Pending>) -> anyhow::Result<()> {
        match event {
            Event::Connected => {
                tracing::info!(server = %self.server.address, "connected");
                self.server.away = None;
                self.rested();
            }
            Event::Disconnected(error) => {
                // Once, and then only what somebody has to change.
                if self.server.away.is_none() || error.kind() == ErrorKind::Configuration {
                    tracing::warn!("{}; trying again", chain(&error));
                }
                self.server.away = Some(error);
            }
            Event::Gallery(status) => {
                self.server.gallery = Some(status);
                if let Some(failure) = self.server.other_space() {
                    tracing::error!("{}", failure.message);
                }
            }
            Event::NotSent(error) => tracing::warn!(%error, "a message was not sent"),
            Event::Answered { id, payload, reply, attempts, reply_time } => {
                let bytes = payload.message.len();
                match &reply {
                    Answer::Matches(_) => self.updating.answered(payload.model),
                    Answer::Refused(error) if is_of_the_network(error.code) => {
                        self.updating.refused(payload.model, &error.message);
                    }
                    Answer::Refused(_) | Answer::Malformed(_) => {}
                }
                let below = self.unknown_below;
                let result = self.server.answer(reply).map(|reply| {
                    let unknown = output::is_unknown(&reply, below);
                    Answered { reply, reply_time, attempts, bytes, unknown }
                });
                let is_kept = self.is_to_be_held() && self.keep(id, &payload);
                let outcome = payload.came_to(id, result);
                if is_kept {
                    self.held.push_back((id, outcome));
                } else {
                    self.conclude(id, &outcome)?;
                }
            }
            Event::GivenUp { id, payload, reason, .. } => self.given_up(id, payload, reason)?,
        }
        Ok(())
    }

    /// What got no reply over the last connection goes over this one at once, before all that came later.
    fn rested(&mut self) {
        let Some(waiting) = &self.waiting else { return };
        let now = Instant::now();
        self.again.iter_mut().for_each(|(due, ..)| *due = now);
        self.again.make_contiguous().sort_by_key(|(_, id, _)| waiting.place(*id));
    }

    /// A query on the disk has time.
    fn given_up(&mut self, id: QueryId, payload: Pending, reason: GiveUp) -> anyhow::Result<()> {
        let kept = self.keep(id, &payload);
        let failure = self.server.gave_up(reason);
        if kept && self.once {
            self.failures += 1;
            tracing::error!(photo = %payload.photo, query_id = %id, code = failure.code, "{}; it waits in the outbox", failure.message);
        } else if kept {
            self.again.push_back((Instant::now() + REST, id, payload));
        } else {
            self.print(&payload.came_to(id, Err(failure)))?;
        }
        Ok(())
    }

    fn print(&mut self, outcome: &Outcome) -> io::Result<()> {
        if let Err(failure) = &outcome.result {
            self.failures += 1;
            let id = outcome.id.map(tracing::field::display);
            tracing::error!(photo = %outcome.photo, query_id = id, code = failure.code, "{}", failure.message);
        }
        self.actions.act(outcome);
        let mut out = io::stdout().lock();
        if self.json { output::write_json(&mut out, outcome) } else { output::write_line(&mut out, outcome) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{Cli, Command};
    use clap::Parser as _;

    fn configured(args: &[&str]) -> anyhow::Result<Device> {
        let cli = Cli::try_parse_from(["glimpse-edge", "run"].iter().chain(args))?;
        match cli.command {
            Command::Run(args) => configuration(args),
            other => anyhow::bail!("{other:?}"),
        }
    }

    #[test]
    fn flags_and_file_describe_the_device_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.toml");
        std::fs::write(&path, "server = 'a:1'\ncamera = 'folder:photos'\nbundle = 'demo'\ntop_k = 3\n")
            .unwrap();
        let device = configured(&["--config", path.to_str().unwrap(), "--top-k", "7"]).unwrap();
        assert_eq!((device.top_k, device.bundle), (7, Some(dir.path().join("demo"))));
        let device =
            configured(&["--camera", "folder:/p", "--bundle", "/b", "--server", "h:2", "--codec", "pq"])
                .unwrap();
        assert_eq!(device.server.to_string(), "h:2");
    }

    #[test]
    fn all_problems_of_a_configuration_are_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.toml");
        std::fs::write(&path, "servr = 'a:1'\ncamera = 'usb'\ncodec = 'f64'\n").unwrap();
        let text = configured(&["--config", path.to_str().unwrap()]).unwrap_err().to_string();
        for part in [
            "device.toml",
            "line 1, column 1: servr",
            "line 2, column 10: camera",
            "line 3, column 9: codec",
            "server: missing",
            "bundle: missing",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = configured(&[]).unwrap_err().to_string();
        assert!(text.contains("--config FILE") && text.contains("camera: missing"), "{text}");
        let text = format!("{:#}", configured(&["--config", "/no/such/device.toml"]).unwrap_err());
        assert!(text.contains("/no/such/device.toml"), "{text}");
    }
}
