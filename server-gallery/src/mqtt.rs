//! The server's own MQTT 5 client: queries in, replies out.
//!
//! ```text
//! event loop ──try_send──► jobs (bounded) ──► matcher thread ──► replies (bounded) ──► publisher ──► event loop
//!      └── queue full: busy ──────────────────────────────────────────▲
//! ```
//!
//! The matcher takes what waits, up to as many queries as it can answer within the latency budget, and searches them together: a
//! server that has little to do answers each at once, and one that has much shares its passes over the codes. What does not
//! fit the queue, or comes from a device that asks too often, is answered `busy` with a time to wait, and costs no search.
//!
//! A query is acknowledged to the broker after its reply went out, so that a broker with a persistent session delivers
//! again what a killed server had not answered. The receive maximum lets the broker hold back the rest.
//!
//! A device chooses the response topic of its query, but the server publishes only to that device's own reply topic or
//! below it: a foreign one is replaced by the device's reply topic.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use glimpse_protocol::topics::{GALLERY_STATUS, SHARED_FETCHES, SHARED_QUERIES, STATUSES};
use glimpse_protocol::{DeviceId, DeviceStatus, DeviceTopic, GalleryStatus, MESSAGE_BYTES_MAX};
use rand::TryRngCore;
use rumqttc::{
    AckMode, AsyncClient, Broker, ClientError, Event, EventLoop, LastWill, LastWillProperties, MqttOptions,
    NetworkOptions, Packet, Publish, PublishOptions, PublishProperties, QoS, SubscribeFilter,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::{mpsc, watch};
use tokio_rustls::rustls::ClientConfig;

use crate::limits::RateLimits;
use crate::matcher::{Encoding, Matcher, Outcome, Request, Response};
use crate::models::courier::Courier;
use crate::monitor::{Monitor, QueryRecord};
use crate::session::NothingInFlight;

/// The largest MQTT packet, both ways: a payload of 1 MiB, its topic and its properties.
pub const PACKET_BYTES_MAX: u32 = (1 << 20) + 4096;

/// Correlation data that is copied to the reply; ours have 16 bytes, and MQTT allows 64 KiB.
const CORRELATION_BYTES_MAX: usize = 1024;

/// The longest response topic that is followed.
const RESPONSE_TOPIC_BYTES_MAX: usize = 256;

/// Places in the queue of replies beyond those for the queries that wait: so many may be told `busy` in one burst. A reply
/// without its query has at most some 25 KB.
const BUSY_REPLIES_WAITING_MAX: usize = 1024;

/// Queries that are searched together at most.
const BATCH_MAX: usize = 256;

/// The shortest and the longest time that a device is told to wait.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How often the retained status is brought up to date, where the gallery has changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How long an external broker keeps our session, and with it queries, while the server is away: a restart takes seconds.
/// Not longer, because mosquitto 2.0 gives a share of the group's queries to members that are away, and devices then wait
/// for their time-out before they ask again.
const SESSION_EXPIRY_S: u32 = 300;

/// The longest pause between two attempts to reach an external broker.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How the server's client names and proves itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Client id.
    pub client_id: String,
    /// User name, sent with a password.
    pub username: String,
    /// Password; empty: none is sent.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// Client id and password from 128 random bits each, for the embedded broker.
    ///
    /// # Errors
    /// When the operating system has no random numbers.
    pub fn random() -> Result<Self, rand::rand_core::OsError> {
        let mut random = rand::rngs::OsRng;
        let mut hex = || Ok(format!("{:016x}{:016x}", random.try_next_u64()?, random.try_next_u64()?));
        let (client_id, password) = (format!("gallery-{}", hex()?), hex()?);
        Ok(Self { username: client_id.clone(), client_id, password })
    }

    /// A name without a password, for an external broker.
    pub const fn named(client_id: String) -> Self {
        Self { client_id, username: String::new(), password: String::new() }
    }

    /// The same with a user name and a password.
    #[must_use]
    pub fn with_login(self, username: String, password: String) -> Self {
        Self { username, password, ..self }
    }
}

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct MqttConfig {
    /// Host name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who we are.
    pub credentials: Credentials,
    /// TLS, with who vouches for the broker, and our certificate if we have one.
    pub tls: Option<Arc<ClientConfig>>,
    /// Keep subscription and unanswered queries in the broker while the server is away.
    pub persistent: bool,
    /// Queries that wait for the matcher; more are answered `busy`.
    pub queries_waiting_max: u16,
    /// Folders of the gallery and of who may connect, for roll-outs of networks.
    pub folders: (PathBuf, PathBuf),
}

/// What can be changed while queries are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pacing {
    /// Queries that are searched together take no longer than this, as far as can be foreseen.
    pub latency_budget: Duration,
    /// Queries that one device may ask a second, on average.
    pub device_rate_max: f64,
}

impl Default for Pacing {
    fn default() -> Self {
        Self { latency_budget: Duration::from_millis(20), device_rate_max: 100.0 }
    }
}

/// Answers queries until `shutdown` turns true, then drains: queries received are answered, the retained status says
/// offline, and the connection is closed in order. `ready` is called after the first subscription.
///
/// A broker that cannot be reached, or goes away, is tried again for ever with growing pauses.
///
/// # Errors
/// When the broker refuses the subscription, or the matcher's thread cannot be started.
pub async fn serve(
    config: &MqttConfig,
    pacing: watch::Receiver<Pacing>,
    matcher: Arc<Matcher>,
    monitor: Arc<Monitor>,
    ready: impl FnOnce(),
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), MqttError> {
    let (client, mut events) = connect(config, &matcher);
    let waiting_max = usize::from(config.queries_waiting_max);
    let (jobs, queued) = mpsc::channel(waiting_max);
    let (replies, to_publish) = mpsc::channel(waiting_max + BUSY_REPLIES_WAITING_MAX);
    let unpublished = Arc::new(AtomicUsize::new(0));
    let pace = Arc::new(Pace::default());
    let answering = Answering {
        matcher: matcher.clone(),
        monitor: monitor.clone(),
        replies: replies.clone(),
        pace: pace.clone(),
        pacing: pacing.clone(),
    };
    answering.spawn(queued)?;
    let publisher = tokio::spawn(publish_replies(client.clone(), to_publish, unpublished.clone()));
    let limits = RateLimits::default();
    let (gallery, access) = &config.folders;
    let courier = Courier::start(gallery, access, client.clone(), monitor.clone());
    let mut intake = Intake {
        client: client.clone(),
        monitor: monitor.clone(),
        jobs,
        replies,
        unpublished,
        limits,
        pace,
        pacing,
        places_lost: 0,
        courier,
    };

    let mut ready = Some(ready);
    let mut backoff = Backoff::new();
    // On a task of its own: what `poll` is in the midst of must not be dropped for it.
    let telling = tokio::spawn(tell_changes(client.clone(), matcher.clone(), monitor.clone()));
    loop {
        let event = tokio::select! {
            event = events.poll() => event,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                backoff = Backoff::new();
                // It was asked at the start; later rumqttc knows its own session, and would copy it into the store with
                // every packet.
                events.options.clear_session_store();
                // On its own task: the loop that empties the client's queue must not wait for room in it.
                tokio::spawn(announce(client.clone(), status(&matcher, true)));
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                // In the order of `announce`: without queries there is nothing to do, without statuses less to see.
                if let Some(reason) = ack.return_codes.first().filter(refused) {
                    return Err(MqttError::SubscriptionRefused(format!("{reason:?}")));
                }
                let less = [
                    (STATUSES, "the devices' statuses: the console will not show them"),
                    (SHARED_FETCHES, "requests for networks: no roll-out reaches a device"),
                ];
                for ((topic, what), code) in less.into_iter().zip(ack.return_codes.iter().skip(1)) {
                    if refused(&code) {
                        tracing::warn!(reason = ?code, topic, "the broker refuses {what}");
                    }
                }
                monitor.set_subscribed(true);
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            Ok(Event::Incoming(Packet::Publish(query))) => {
                intake.accept(query);
                if intake.jobs.is_closed() {
                    return Err(MqttError::MatcherEnded);
                }
                if intake.places_lost >= waiting_max {
                    tracing::warn!("connecting anew: too many queries could not even be let go");
                    intake.places_lost = 0;
                    events.clean();
                }
            }
            Ok(_) => {}
            Err(error) => {
                monitor.set_subscribed(false);
                let pause = backoff.next_pause();
                tracing::warn!(broker = %format_args!("{}:{}", config.host, config.port), %error, ?pause, "not connected to the broker: trying again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = shutdown.wait_for(|stop| *stop) => break,
                }
            }
        }
    }
    telling.abort();
    monitor.set_subscribed(false);
    drain(client, events, intake, publisher, &matcher).await;
    Ok(())
}

/// Why the server cannot answer through a broker.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    /// The broker is there and does not let us serve.
    #[error(
        "the broker refuses the subscription {SHARED_QUERIES} ({0}): allow it for this server's client id"
    )]
    SubscriptionRefused(String),
    /// A bug of ours: whoever supervises the process should start it again.
    #[error("the matcher's thread has ended: see the panic above, and report it")]
    MatcherEnded,
    /// The operating system gave no thread.
    #[error("cannot start the matcher's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A query on its way to the matcher.
struct Job {
    query: Publish,
    device: DeviceId,
    arrived: Instant,
    /// After which nobody waits for the reply.
    expires_at: Option<Instant>,
}

impl Job {
    /// Gives back what is no query of a device.
    fn of(query: Publish) -> Result<Self, Publish> {
        let topic = std::str::from_utf8(&query.topic).ok().and_then(DeviceTopic::parse);
        let Some((device, DeviceTopic::Query)) = topic else { return Err(query) };
        let seconds = query.properties.as_ref().and_then(|properties| properties.message_expiry_interval);
        let expires_at =
            seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds.into())));
        Ok(Self { query, device, arrived: Instant::now(), expires_at })
    }

    fn request(&self) -> Request<'_> {
        let properties = self.query.properties.as_ref();
        let content_type = properties.and_then(|properties| properties.content_type.as_deref());
        Request { device: &self.device, content_type, payload: &self.query.payload }
    }

    /// What became of it, for whoever watches.
    fn record<'a>(&'a self, response: Option<&'a Response>, began: Instant) -> QueryRecord<'a> {
        let Request { device, content_type, payload: query } = self.request();
        let waited = began.saturating_duration_since(self.arrived);
        QueryRecord { device, content_type, query, response, waited, took: began.elapsed() }
    }

    /// What is needed to send the reply; the query itself, up to 1 MiB, is done with.
    fn without_payload(mut self) -> Self {
        self.query.payload.clear();
        self
    }

    fn expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= Instant::now())
    }

    fn reply_topic(&self) -> String {
        let own = DeviceTopic::Reply.of(&self.device);
        let wanted =
            self.query.properties.as_ref().and_then(|properties| properties.response_topic.as_deref());
        match wanted {
            Some(topic) if is_own_reply_topic(topic, &own) => topic.to_owned(),
            Some(_) => {
                tracing::warn!(device = %self.device, "replaced a foreign response topic by the device's own");
                own.as_str().to_owned()
            }
            None => own.as_str().to_owned(),
        }
    }

    /// The reply's properties: correlation data as they came, and no longer life than the query had.
    fn reply_properties(&self, encoding: Encoding) -> PublishProperties {
        let correlation_data =
            self.query.properties.as_ref().and_then(|asked| asked.correlation_data.clone());
        let left = self.expires_at.map(|at| at.saturating_duration_since(Instant::now()).as_secs().max(1));
        PublishProperties {
            content_type: Some(encoding.content_type().to_owned()),
            correlation_data: correlation_data.filter(|data| data.len() <= CORRELATION_BYTES_MAX),
            message_expiry_interval: left.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
            ..PublishProperties::default()
        }
    }
}

fn is_own_reply_topic(topic: &str, own: &str) -> bool {
    let below = topic.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below && topic.len() <= RESPONSE_TOPIC_BYTES_MAX && !topic.contains(['+', '#', '\0'])
}

/// How fast queries are answered: the matcher measures, and who sizes batches and tells devices to wait reads.
#[derive(Default)]
struct Pace {
    /// For one query of a batch, in nanoseconds; 0 before the first.
    query_ns: AtomicU64,
}

impl Pace {
    fn measured(&self, batch: usize, took: Duration) {
        let now = took.as_nanos() as u64 / batch.max(1) as u64;
        let before = self.query_ns.load(Ordering::Relaxed);
        // An eighth of what is new: one slow batch does not make the next ones small.
        let smooth = if before == 0 { now } else { before - before / 8 + now / 8 };
        self.query_ns.store(smooth.max(1), Ordering::Relaxed);
    }

    /// Queries that can be searched together within a time.
    fn batch(&self, budget: Duration) -> usize {
        let query_ns = self.query_ns.load(Ordering::Relaxed).max(1);
        (budget.as_nanos() as u64 / query_ns).clamp(1, BATCH_MAX as u64) as usize
    }

    /// When so many queries will have been answered.
    fn retry_after(&self, waiting: usize) -> Duration {
        let (least, most) = RETRY_AFTER;
        let wait = Duration::from_nanos(self.query_ns.load(Ordering::Relaxed).saturating_mul(waiting as u64));
        // Devices that were refused together must not come back together.
        let random = rand::rngs::OsRng.try_next_u32().unwrap_or(0);
        (wait.max(least).mul_f64(1.0 + f64::from(random) / f64::from(u32::MAX))).min(most)
    }
}

/// The event loop's end of the queues.
struct Intake {
    client: AsyncClient,
    monitor: Arc<Monitor>,
    jobs: mpsc::Sender<Job>,
    replies: mpsc::Sender<(Job, Option<Response>)>,
    /// Queries taken in and not yet answered: [`drain`] waits for zero.
    unpublished: Arc<AtomicUsize>,
    limits: RateLimits,
    pace: Arc<Pace>,
    pacing: watch::Receiver<Pacing>,
    /// Places of the receive window that unacknowledged messages hold until the next connection.
    places_lost: usize,
    courier: Courier,
}

impl Intake {
    fn accept(&mut self, query: Publish) {
        if self.heard(&query) {
            // Statuses and requests for chunks are subscribed to at QoS 0, at which nothing is acknowledged.
            return;
        }
        // A retained message is no question of now: it would be asked again at every start.
        let job = if query.retain { Err(query) } else { Job::of(query) };
        let job = match job {
            Ok(job) => job,
            Err(other) => {
                tracing::warn!(
                    bytes = other.payload.len(),
                    "passed over a message that is no device's query"
                );
                return self.let_go(&other);
            }
        };
        self.unpublished.fetch_add(1, Ordering::AcqRel);
        let rate = self.pacing.borrow().device_rate_max;
        let admitted = self.limits.admit(&job.device, rate, Instant::now());
        let (job, retry_after) = if let Err(retry_after) = admitted {
            (job, retry_after)
        } else {
            let Err(error) = self.jobs.try_send(job) else { return };
            (error.into_inner(), self.pace.retry_after(self.jobs.max_capacity()))
        };
        let busy = Matcher::busy(job.request(), retry_after);
        self.monitor.record(job.record(Some(&busy), Instant::now()));
        if let Err(error) = self.replies.try_send((job.without_payload(), Some(busy))) {
            tracing::warn!("dropped a query, whose device asks again: the queue of replies is full too");
            self.unpublished.fetch_sub(1, Ordering::AcqRel);
            self.let_go(&error.into_inner().0.query);
        }
    }

    /// Acknowledges what is not answered: unacknowledged, it would take a place in the receive window until the next connection.
    fn let_go(&mut self, message: &Publish) {
        if self.client.try_ack(message).is_err() {
            self.places_lost += 1;
        }
    }

    /// Whether the message was no query, but what a device says of itself, or asks of a network.
    fn heard(&self, said: &Publish) -> bool {
        let topic = std::str::from_utf8(&said.topic).ok().and_then(DeviceTopic::parse);
        let device = match topic {
            Some((device, DeviceTopic::Status)) => device,
            Some((device, DeviceTopic::Fetch)) => {
                if said.payload.len() <= MESSAGE_BYTES_MAX && !said.retain {
                    self.courier.fetch(device, &said.payload);
                }
                return true;
            }
            _ => return false,
        };
        if said.payload.is_empty() {
            self.monitor.forget(&device);
            return true;
        }
        let content_type = said.properties.as_ref().and_then(|properties| properties.content_type.as_deref());
        let readable = said.payload.len() <= MESSAGE_BYTES_MAX;
        let status =
            readable.then(|| Encoding::of(content_type, &said.payload).read::<DeviceStatus>(&said.payload));
        match status {
            Some(Ok(status)) => self.monitor.status(&device, &status, said.retain),
            _ => {
                tracing::debug!(%device, bytes = said.payload.len(), "passed over a status that cannot be read");
            }
        }
        true
    }
}

/// The matcher's end of the queues.
struct Answering {
    matcher: Arc<Matcher>,
    monitor: Arc<Monitor>,
    replies: mpsc::Sender<(Job, Option<Response>)>,
    pace: Arc<Pace>,
    pacing: watch::Receiver<Pacing>,
}

impl Answering {
    fn spawn(self, mut jobs: mpsc::Receiver<Job>) -> Result<(), std::io::Error> {
        // One thread keeps the order of a device's queries; a large gallery is searched on all cores within one query.
        std::thread::Builder::new().name("matcher".to_owned()).spawn(move || {
            let mut waiting = Vec::with_capacity(BATCH_MAX);
            // Whatever waits by now, and never for more to come: the next batch is what arrives while this one is searched.
            let batch = || self.pace.batch(self.pacing.borrow().latency_budget);
            while jobs.blocking_recv_many(&mut waiting, batch()) > 0 {
                if self.answer(waiting.drain(..)).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// Fails when nobody takes replies any more.
    fn answer(&self, waiting: impl Iterator<Item = Job>) -> Result<(), ()> {
        let began = Instant::now();
        let (expired, live): (Vec<Job>, Vec<Job>) = waiting.partition(Job::expired);
        let requests: Vec<Request<'_>> = live.iter().map(Job::request).collect();
        let responses = self.matcher.answer_all(&requests);
        if !live.is_empty() {
            self.pace.measured(live.len(), began.elapsed());
        }
        let answered = live.into_iter().zip(responses.into_iter().map(Some));
        for (job, response) in answered.chain(expired.into_iter().map(|job| (job, None))) {
            self.monitor.record(job.record(response.as_ref(), began));
            if let Some(response) = &response {
                log_response(&job.device, response);
            } else {
                tracing::debug!(device = %job.device, "passed over a query that has expired");
            }
            self.replies.blocking_send((job.without_payload(), response)).map_err(drop)?;
        }
        Ok(())
    }
}

fn log_response(device: &DeviceId, response: &Response) {
    let (query_id, bytes) = (response.id, response.payload.len());
    match response.outcome {
        Outcome::Answered => tracing::debug!(%device, %query_id, bytes, "answered"),
        Outcome::Repeated => tracing::debug!(%device, %query_id, bytes, "answered a repeat"),
        Outcome::Refused(code) => tracing::info!(%device, %query_id, ?code, "refused"),
    }
}

async fn publish_replies(
    client: AsyncClient,
    mut replies: mpsc::Receiver<(Job, Option<Response>)>,
    unpublished: Arc<AtomicUsize>,
) {
    while let Some((job, response)) = replies.recv().await {
        let sent = match response {
            Some(Response { payload, encoding, .. }) => {
                let options =
                    PublishOptions::new(QoS::AtLeastOnce).properties(job.reply_properties(encoding));
                client.publish(job.reply_topic(), payload, options).await
            }
            None => Ok(()),
        };
        let acknowledged = match sent {
            Ok(()) => client.ack(&job.query).await,
            Err(error) => Err(error),
        };
        if let Err(error) = acknowledged {
            tracing::warn!(device = %job.device, %error, "could not send a reply");
        }
        unpublished.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Subscribes and says that the gallery is there: after every connect, because the broker may have forgotten both.
async fn announce(client: AsyncClient, status: Vec<u8>) {
    let announced: Result<(), ClientError> = async {
        // Statuses are news at best: what is missed of them, the next one says.
        let filters = [
            SubscribeFilter::new(SHARED_QUERIES, QoS::AtLeastOnce),
            SubscribeFilter::new(STATUSES, QoS::AtMostOnce),
            // What is missed of these, devices ask for again.
            SubscribeFilter::new(SHARED_FETCHES, QoS::AtMostOnce),
        ];
        client.subscribe_many(filters).await?;
        client.publish(GALLERY_STATUS, status, status_options()).await
    }
    .await;
    if let Err(error) = announced {
        tracing::warn!(%error, "could not subscribe");
    }
}

/// Keeps the retained status up to date, where the gallery changes while we are connected.
async fn tell_changes(client: AsyncClient, matcher: Arc<Matcher>, monitor: Arc<Monitor>) {
    let mut due = tokio::time::interval(STATUS_EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        due.tick().await;
        let generation = matcher.live().view().meta().generation;
        // What was announced with the subscription may be a generation behind; saying it twice does no harm.
        if !monitor.subscribed() || told == Some(generation) {
            continue;
        }
        match client.publish(GALLERY_STATUS, status(&matcher, true), status_options()).await {
            Ok(()) => told = Some(generation),
            Err(error) => tracing::warn!(%error, "could not tell the gallery's status"),
        }
    }
}

fn status(matcher: &Matcher, online: bool) -> Vec<u8> {
    let view = matcher.live().view();
    let (meta, size) = (view.meta(), view.len() as u64);
    Encoding::Cbor.write(&GalleryStatus { online, space: meta.space, size, generation: meta.generation })
}

fn status_options() -> PublishOptions {
    let content_type = Some(Encoding::Cbor.content_type().to_owned());
    let properties = PublishProperties { content_type, ..PublishProperties::default() };
    PublishOptions::new(QoS::AtLeastOnce).retained().properties(properties)
}

fn connect(config: &MqttConfig, matcher: &Matcher) -> (AsyncClient, EventLoop) {
    let broker = Broker::tcp(config.host.clone(), config.port);
    let mut options = MqttOptions::new(config.credentials.client_id.clone(), broker);
    let content_type = Some(Encoding::Cbor.content_type().to_owned());
    let will_properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let will =
        LastWill::new(GALLERY_STATUS, status(matcher, false), QoS::AtLeastOnce, true, Some(will_properties));
    let mut network = NetworkOptions::new();
    // A reply is one small packet: waiting for more to send costs up to 40 ms.
    network.set_tcp_nodelay(true);
    // Twice what waits: at QoS 1 too, a device learns that the server is busy before the broker holds its query back.
    let receive_max = config.queries_waiting_max.saturating_mul(2).max(1);
    options
        .set_keep_alive(30)
        .set_connect_timeout(Duration::from_secs(10))
        .set_last_will(will)
        .set_ack_mode(AckMode::Manual)
        .set_clean_start(!config.persistent)
        .set_session_expiry_interval(config.persistent.then_some(SESSION_EXPIRY_S))
        .set_receive_maximum(Some(receive_max))
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_pending_throttle(Duration::ZERO)
        .set_network_options(network);
    if config.persistent {
        options.set_session_store(NothingInFlight { expiry_s: SESSION_EXPIRY_S });
    }
    if !config.credentials.password.is_empty() {
        options.set_credentials(config.credentials.username.clone(), config.credentials.password.clone());
    }
    if let Some(tls) = &config.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    AsyncClient::builder(options).capacity(usize::from(config.queries_waiting_max).max(16)).build()
}

/// Answers what has been taken in, says goodbye, and gives the network five seconds for it.
async fn drain(
    client: AsyncClient,
    mut events: EventLoop,
    intake: Intake,
    publisher: tokio::task::JoinHandle<()>,
    matcher: &Matcher,
) {
    tracing::info!(waiting = intake.unpublished.load(Ordering::Acquire), "stopping: answering what waits");
    let goodbye = status(matcher, false);
    let unpublished = intake.unpublished.clone();
    let farewell = tokio::spawn(async move {
        while unpublished.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.publish(GALLERY_STATUS, goodbye, status_options()).await?;
        client.disconnect().await
    });
    let work = async {
        // Until the connection is closed; what arrives meanwhile stays with the broker, unacknowledged.
        while !matches!(events.poll().await, Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_)) {}
    };
    if tokio::time::timeout(Duration::from_secs(5), work).await.is_err() {
        tracing::warn!("the broker did not take everything within 5 s");
    }
    farewell.abort();
    publisher.abort();
}

/// Pauses that double from a tenth of a second, with up to a quarter added at random so that many servers do not knock
/// at once.
struct Backoff {
    pause: Duration,
}

impl Backoff {
    const fn new() -> Self {
        Self { pause: Duration::from_millis(100) }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(BACKOFF_MAX);
        let random = rand::rngs::OsRng.try_next_u32().unwrap_or(0);
        pause + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_go_only_to_the_devices_own_topics() {
        let own = "glimpse/v1/devices/cam-1/reply";
        for (topic, allowed) in [
            (own.to_owned(), true),
            (format!("{own}/7"), true),
            (format!("{own}x"), false),
            (format!("{own}/+"), false),
            (format!("{own}/#"), false),
            (format!("{own}/{}", "x".repeat(300)), false),
            ("glimpse/v1/devices/cam-2/reply".to_owned(), false),
            ("glimpse/v1/gallery/status".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_own_reply_topic(&topic, own), allowed, "{topic}");
        }
    }

    #[test]
    fn batches_fit_the_budget_and_waits_their_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.batch(Duration::from_millis(20)), BATCH_MAX, "nothing is known yet");
        (0..100).for_each(|_| pace.measured(10, Duration::from_millis(10)));
        assert!((19..=21).contains(&pace.batch(Duration::from_millis(20))));
        assert_eq!(pace.batch(Duration::ZERO), 1);
        for (waiting, least, most) in [(0, 0.2, 0.4), (1000, 0.95, 2.1), (1_000_000, 30.0, 30.0)] {
            let wait = pace.retry_after(waiting).as_secs_f64();
            assert!((least..=most).contains(&wait), "{waiting}: {wait}");
        }
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.next_pause()).collect();
        assert!(pauses[0] < Duration::from_millis(126));
        assert!(pauses[11] >= BACKOFF_MAX && pauses[11] <= BACKOFF_MAX.mul_f32(1.25));
    }

    #[test]
    fn credentials_are_random_and_never_shown() {
        let (a, b) = (Credentials::random().unwrap(), Credentials::random().unwrap());
        assert_ne!(a, b);
        assert_eq!((a.password.len(), a.client_id.len()), (32, 40));
        assert!(!format!("{a:?}").contains(&a.password));
    }
}
