//! The uplink over MQTT 5: topics, CBOR and rumqttc, and nothing of them anywhere else.
//!
//! A thread of its own polls rumqttc's event loop, reconnects with exponential back-off, and hands what arrives to
//! the session through a bounded channel. A connection counts as made when the broker has granted the subscription to
//! the reply topic: a query sent earlier could be answered into the void.
//!
//! Sessions are clean: they go on at the level of queries. What a broker would keep for us is worth nothing, because a
//! query without a reply is sent again under the same id anyway, and its server answers that from a cache; a broker that
//! was replaced or lost its memory does no harm. What is resumed is TLS: a device that reconnects shows the ticket of its
//! last connection, where the server gave it one, in place of certificates.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use glimpse_protocol::device::ServerAddress;
use glimpse_protocol::model::Fetch;
use glimpse_protocol::topics::GALLERY_STATUS;
use glimpse_protocol::{
    DeviceId, DeviceStatus, DeviceTopic, ErrorBody, ErrorCode, GalleryStatus, Header, MESSAGE_BYTES_MAX,
    ModelId, Query, QueryId, Reply, SpaceId, Topic, Update, VERSION,
};
use rumqttc::tokio_rustls::rustls::{self, CertificateError};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, DisconnectReasonCode, Event, EventLoop,
    IncomingPacketSizeLimit, LastWill, LastWillProperties, MqttOptions, NetworkOptions, Packet, Publish,
    PublishOptions, PublishProperties, QoS, StateError, SubscribeFilterInput, SubscribeReasonCode,
    TlsConfiguration, TlsError, Transport,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::backoff::{Backoff, Jitter};
use crate::linux::credentials::Credentials;
use crate::linux::host;
use crate::linux::time::{Taken, Times};
use crate::linux::update::Updating;
use crate::ports::{Error, ErrorKind, Received, Uplink};

const CONTENT_TYPE: &str = "application/cbor";

/// Topic and properties that a reply carries beside its payload.
const PACKET_OVERHEAD_BYTES_MAX: u32 = 2048;

/// Messages that the broker has not acknowledged. The client has memory for as many from the start, 6 MB for all that MQTT allows.
const UNACKNOWLEDGED_MAX: u16 = 256;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_LONGEST: Duration = Duration::from_secs(30);

/// How long leaving may take: sending the status and the broker's acknowledgement of it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Packets on their way between the session and the event loop, either way.
const CHANNEL_PACKETS: usize = 64;

/// What the server answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The matches, nearest first.
    Matches(Box<Reply>),
    /// The server cannot or will not answer.
    Refused(ErrorBody),
    /// Bytes that are no reply, and why.
    Malformed(String),
}

/// Why there is no connection, or something was not sent.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// Nothing listens there.
    #[error("connection to {server} refused: is glimpse-gallery serve running?")]
    Refused {
        /// The server.
        server: ServerAddress,
    },
    /// The server cannot be reached.
    #[error("no connection to {server}: check the address and the network")]
    Unreachable {
        /// The server.
        server: ServerAddress,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server did not answer the attempt to connect.
    #[error("no answer from {server} within {} s: check the address and the firewall", CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// The server.
        server: ServerAddress,
    },
    /// The broker does not let this device in.
    #[error("{server} does not let the device {device} in ({code:?}): check its name and credentials")]
    Rejected {
        /// The server.
        server: ServerAddress,
        /// The device.
        device: DeviceId,
        /// The broker's reason.
        code: ConnectReturnCode,
    },
    /// The server does not prove itself, or not to be the one that is meant, or refuses our certificate.
    #[error("no TLS to {server}: {reason}: check the server's name, ca, certificate and key")]
    Untrusted {
        /// The server.
        server: ServerAddress,
        /// What rustls said.
        reason: String,
    },
    /// A certificate that is not valid by this device's clock: the clock may be wrong.
    #[error(
        "no TLS to {server}: a certificate is {problem} at the time that this device's clock says ({}): {}",
        shown(*clock_ms), clock_advice(*is_trusted)
    )]
    NotNow {
        /// The server.
        server: ServerAddress,
        /// What is wrong with it.
        problem: &'static str,
        /// The device's clock, Unix time in milliseconds.
        clock_ms: u64,
        /// Whether it is believed.
        is_trusted: bool,
    },
    /// The broker does not grant the device its own topics.
    #[error("{server} does not grant {topic} to this device ({code:?}): check the broker's permissions")]
    NotGranted {
        /// The server.
        server: ServerAddress,
        /// The topic.
        topic: Topic,
        /// The broker's reason.
        code: SubscribeReasonCode,
    },
    /// Another client connected under the same name.
    #[error("another client connected as {device}: give each device its own name with --device")]
    TakenOver {
        /// The name.
        device: DeviceId,
    },
    /// The connection was lost.
    #[error("connection to {server} lost: {reason}")]
    Lost {
        /// The server.
        server: ServerAddress,
        /// What rumqttc said.
        reason: String,
    },
    /// Too much waits to be sent.
    #[error("too many messages wait to be sent")]
    Full,
    /// A message could not be written.
    #[error("cannot write the message: {0}")]
    Encode(String),
    /// The thread of the connection ended.
    #[error("the connection's thread ended")]
    Ended,
    /// The thread of the connection could not be started.
    #[error("cannot start the connection's thread")]
    Thread(#[source] io::Error),
}

impl Error for UplinkError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Lost { .. }
            | Self::NotNow { is_trusted: false, .. }
            | Self::Full => ErrorKind::Unavailable,
            Self::Rejected { .. }
            | Self::Untrusted { .. }
            | Self::NotNow { .. }
            | Self::NotGranted { .. }
            | Self::TakenOver { .. } => ErrorKind::Configuration,
            Self::Encode(_) => ErrorKind::Input,
            Self::Ended | Self::Thread(_) => ErrorKind::Other,
        }
    }
}

impl UplinkError {
    fn from_rumqttc(error: ConnectionError, server: &ServerAddress, device: &DeviceId) -> Self {
        let (server, device) = (server.clone(), device.clone());
        match error {
            ConnectionError::Io(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
                Self::Refused { server }
            }
            // What rustls finds wrong comes as invalid data; the rest is the network's.
            ConnectionError::Tls(TlsError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
                Self::Unreachable { server, source }
            }
            ConnectionError::Tls(error) => match not_now(&error) {
                Some(problem) => {
                    let now = Times::now();
                    let (clock_ms, is_trusted) = (now.clock_ms, now.is_trusted);
                    Self::NotNow { server, problem, clock_ms, is_trusted }
                }
                None => Self::Untrusted { server, reason: error.to_string() },
            },
            // A certificate that the server refuses is told after the handshake, as TLS 1.3 has it.
            ConnectionError::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
                Self::Untrusted { server, reason: source.to_string() }
            }
            ConnectionError::Io(source) => Self::Unreachable { server, source },
            ConnectionError::Timeout(_) => Self::Timeout { server },
            ConnectionError::ConnectionRefused(code)
            | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => {
                Self::Rejected { server, device, code }
            }
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            }) => Self::TakenOver { device },
            other => Self::Lost { server, reason: other.to_string() },
        }
    }
}

/// What a time has to do with it that a certificate is not taken.
fn not_now(error: &TlsError) -> Option<&'static str> {
    let inner = match error {
        TlsError::Io(source) => source.get_ref()?.downcast_ref::<rustls::Error>()?,
        TlsError::TLS(error) => error,
        _ => return None,
    };
    match inner {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some("not valid yet"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Some("no longer valid"),
        _ => None,
    }
}

fn shown(clock_ms: u64) -> humantime::Rfc3339Timestamp {
    // No clock shows what this could not.
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(clock_ms.min(CLOCK_MS_MAX)))
}

const fn clock_advice(is_trusted: bool) -> &'static str {
    if is_trusted {
        "renew the certificate, or set the clock where it is wrong"
    } else {
        "nobody has set this clock yet, so wait for the time from the network, or set it"
    }
}

/// The end of the year 9999.
const CLOCK_MS_MAX: u64 = 253_402_300_799_000;

/// Who connects, where to, and how.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The server.
    pub server: ServerAddress,
    /// The device: client id and topics.
    pub device: DeviceId,
    /// The space of its query network, for its status.
    pub space: SpaceId,
    /// How long a broker may keep a query for a server that is away.
    pub expiry: Duration,
    /// Whether the device has a status: retained while it is there, and left behind as a last will.
    pub has_status: bool,
    /// How long the connection may be silent, in seconds. Both sides find a dead one by it: the broker after half as long again, and
    /// then it sends the last will.
    pub keep_alive_s: u16,
    /// How it proves itself.
    pub credentials: Credentials,
    /// What it says of its networks, until it says otherwise.
    pub presence: Presence,
    /// Who hears of networks from the server, where `presence` says that the device takes some.
    pub updating: Updating,
}

/// What a device says of its query networks in its status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// The one that runs.
    pub model: Option<ModelId>,
    /// What became of those that the server offered; `None`: the device takes none.
    pub update: Option<Update>,
}

/// What goes through the channel to the session.
enum Signal {
    Received(Received<Answer, UplinkError>),
    Woken,
}

/// Makes a waiting [`MqttUplink::receive`] return.
#[derive(Clone)]
pub struct Waker(SyncSender<Signal>);

impl Waker {
    /// Wakes it now; does nothing where so much has arrived that it is awake anyway.
    pub fn wake(&self) {
        let _ = self.0.try_send(Signal::Woken);
    }
}

/// The uplink over MQTT 5.
pub struct MqttUplink {
    connection: Connection,
    query_topic: Topic,
    query_properties: PublishProperties,
    client: AsyncClient,
    link: Link,
    incoming: Receiver<Signal>,
    waker: Waker,
    state: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    connected: AtomicBool,
    closing: AtomicBool,
    /// Queries that wait, as the session said last.
    outbox: AtomicUsize,
    presence: Mutex<Presence>,
    /// Whether the broker refuses the topic that networks come on.
    no_networks: AtomicBool,
}

impl Shared {
    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the server for whoever has no queries to send.
#[derive(Clone)]
pub struct Link {
    client: AsyncClient,
    space: SpaceId,
    status_topic: Topic,
    fetch_topic: Topic,
    state: Arc<Shared>,
}

impl Link {
    /// Asks for chunks of a network. Nobody repeats it but who asks.
    ///
    /// # Errors
    /// [`UplinkError::Full`], also while there is no connection.
    pub fn fetch(&self, fetch: &Fetch) -> Result<(), UplinkError> {
        if !self.state.connected.load(Ordering::Relaxed) {
            return Err(UplinkError::Full);
        }
        let options = PublishOptions::new(QoS::AtMostOnce).properties(cbor_properties());
        self.client
            .try_publish(self.fetch_topic.as_str(), cbor(fetch)?, options)
            .map_err(|_| UplinkError::Full)
    }

    /// Says something else of the device's networks than before: now, and with every status.
    ///
    /// # Errors
    /// [`UplinkError::Full`].
    pub fn tell(&self, presence: Presence) -> Result<(), UplinkError> {
        *self.state.presence() = presence;
        if self.state.connected.load(Ordering::Relaxed) { self.publish_status(true) } else { Ok(()) }
    }

    #[cfg(test)]
    pub(super) fn to_nowhere() -> Self {
        let (client, _) =
            AsyncClient::builder(MqttOptions::new("nobody", ("127.0.0.1", 1))).capacity(1).build();
        let (status_topic, fetch_topic) = (Topic::new(), Topic::new());
        Self { client, space: SpaceId::from_bytes([0; 16]), status_topic, fetch_topic, state: Arc::default() }
    }

    fn publish_status(&self, online: bool) -> Result<(), UplinkError> {
        // Held until the message has its place in the queue: a later state must not be overtaken by an earlier one, nor
        // the goodbye by any.
        let presence = self.state.presence();
        if online && self.state.closing.load(Ordering::Relaxed) {
            return Ok(());
        }
        let payload = cbor(&status(self.space, &self.state, &presence, online))?;
        let options = PublishOptions::new(QoS::AtLeastOnce).retained().properties(cbor_properties());
        self.client.try_publish(self.status_topic.as_str(), payload, options).map_err(|_| UplinkError::Full)
    }
}

fn cbor_properties() -> PublishProperties {
    PublishProperties { content_type: Some(CONTENT_TYPE.to_owned()), ..PublishProperties::default() }
}

impl MqttUplink {
    /// Begins to connect; [`Received::Connected`] or [`Received::Disconnected`] tells how it went.
    ///
    /// # Errors
    /// [`UplinkError::Thread`].
    pub fn start(connection: Connection, jitter: Jitter) -> Result<Self, UplinkError> {
        let status_topic = DeviceTopic::Status.of(&connection.device);
        if connection.credentials.has_naked_password() && !host::is_this_machine(connection.server.host()) {
            tracing::warn!(server = %connection.server, "the password crosses the network in the clear: use mqtts:// and ca");
        }
        let state =
            Arc::new(Shared { presence: Mutex::new(connection.presence.clone()), ..Shared::default() });
        let options = options(&connection, &status_topic, &state)?;
        let (client, events) = AsyncClient::builder(options).capacity(CHANNEL_PACKETS).build();
        let (waker, incoming) = sync_channel(CHANNEL_PACKETS);
        let link = Link {
            client: client.clone(),
            space: connection.space,
            status_topic,
            fetch_topic: DeviceTopic::Fetch.of(&connection.device),
            state: Arc::clone(&state),
        };
        let pump = Pump {
            connection: connection.clone(),
            reply_topic: DeviceTopic::Reply.of(&connection.device),
            model_topic: DeviceTopic::Model.of(&connection.device),
            status_topic: DeviceTopic::Status.of(&connection.device),
            client: client.clone(),
            session: waker.clone(),
            state: Arc::clone(&state),
            backoff: Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST, jitter),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(UplinkError::Thread)?;
        let thread = thread::Builder::new()
            .name("mqtt".to_owned())
            .spawn(move || runtime.block_on(pump.run(events)))
            .map_err(UplinkError::Thread)?;
        let query_properties = PublishProperties {
            message_expiry_interval: Some(connection.expiry.as_secs().clamp(1, u64::from(u32::MAX)) as u32),
            response_topic: Some(DeviceTopic::Reply.of(&connection.device).as_str().to_owned()),
            ..cbor_properties()
        };
        Ok(Self {
            query_topic: DeviceTopic::Query.of(&connection.device),
            connection,
            query_properties,
            client,
            link,
            incoming,
            waker: Waker(waker),
            state,
            thread,
        })
    }

    /// What wakes a waiting `receive`.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The way to the server for whoever has no queries to send.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// Leaves: says so in the status, then disconnects, so that the last will is not sent. Takes
    /// two seconds at most.
    pub fn close(self, outbox: usize) {
        self.state.closing.store(true, Ordering::Relaxed);
        if !self.state.connected.load(Ordering::Relaxed) {
            return;
        }
        self.state.outbox.store(outbox, Ordering::Relaxed);
        if self.connection.has_status
            && let Err(error) = self.link.publish_status(false)
        {
            tracing::warn!(%error, "the status still says online");
        }
        if self.client.try_disconnect_with_timeout(CLOSE_TIMEOUT / 2).is_err() {
            return;
        }
        // What still arrives is of no interest, but a full channel would keep the thread from ending.
        let give_up = std::time::Instant::now() + CLOSE_TIMEOUT;
        while !self.thread.is_finished() && std::time::Instant::now() < give_up {
            let _ = self.incoming.recv_timeout(Duration::from_millis(5));
        }
    }
}

impl Uplink for MqttUplink {
    type Reply = Answer;
    type Error = UplinkError;

    fn publish(&mut self, id: QueryId, message: &[u8]) -> Result<(), UplinkError> {
        let properties = PublishProperties {
            correlation_data: Some(id.as_bytes().to_vec().into()),
            ..self.query_properties.clone()
        };
        let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
        self.client
            .try_publish(self.query_topic.as_str(), message.to_vec(), options)
            .map_err(|_| UplinkError::Full)
    }

    fn announce(&mut self, outbox: usize) -> Result<(), UplinkError> {
        self.state.outbox.store(outbox, Ordering::Relaxed);
        self.link.publish_status(true)
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Received<Answer, UplinkError>>, UplinkError> {
        match self.incoming.recv_timeout(wait) {
            Ok(Signal::Received(received)) => Ok(Some(received)),
            Ok(Signal::Woken) => Ok(None),
            Err(RecvTimeoutError::Timeout) if !self.thread.is_finished() => Ok(None),
            Err(_) => Err(UplinkError::Ended),
        }
    }
}

fn options(
    connection: &Connection,
    status_topic: &Topic,
    state: &Shared,
) -> Result<MqttOptions, UplinkError> {
    let server = &connection.server;
    let mut options = MqttOptions::new(connection.device.as_str(), (server.host(), server.port()));
    let mut network = NetworkOptions::new();
    // Without it Nagle's algorithm holds a query back until the previous packet is acknowledged: up to 40 ms.
    network.set_tcp_nodelay(true);
    options
        .set_network_options(network)
        .set_keep_alive(connection.keep_alive_s)
        .set_clean_start(true)
        .set_connect_timeout(CONNECT_TIMEOUT)
        .set_outgoing_inflight_upper_limit(UNACKNOWLEDGED_MAX)
        .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(
            MESSAGE_BYTES_MAX as u32 + PACKET_OVERHEAD_BYTES_MAX,
        ));
    if let Some(password) = &connection.credentials.password {
        options.set_credentials(connection.device.as_str(), password.clone());
    }
    if let Some(tls) = &connection.credentials.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))));
    }
    if connection.has_status {
        options.set_last_will(last_will(connection.space, status_topic, state)?);
    }
    Ok(options)
}

fn status(space: SpaceId, state: &Shared, presence: &Presence, online: bool) -> DeviceStatus {
    let takes_networks = !state.no_networks.load(Ordering::Relaxed);
    DeviceStatus {
        online,
        version: env!("CARGO_PKG_VERSION").try_into().unwrap_or_default(),
        space,
        outbox: u32::try_from(state.outbox.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
        model: presence.model,
        update: presence.update.clone().filter(|_| takes_networks),
    }
}

/// What the broker says of a device that is gone.
fn last_will(space: SpaceId, status_topic: &Topic, state: &Shared) -> Result<LastWill, UplinkError> {
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: Some(CONTENT_TYPE.to_owned()),
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let payload = cbor(&status(space, state, &state.presence(), false))?;
    Ok(LastWill::new(status_topic.as_str(), payload, QoS::AtLeastOnce, true, Some(properties)))
}

/// What runs in the thread of the connection.
struct Pump {
    connection: Connection,
    reply_topic: Topic,
    model_topic: Topic,
    status_topic: Topic,
    client: AsyncClient,
    session: SyncSender<Signal>,
    state: Arc<Shared>,
    backoff: Backoff,
}

/// The session does not listen any more.
struct Unheard;

impl Pump {
    async fn run(mut self, mut events: EventLoop) {
        while !matches!(self.turn(&mut events).await, Err(Unheard)) {}
        self.state.connected.store(false, Ordering::Relaxed);
    }

    async fn turn(&mut self, events: &mut EventLoop) -> Result<(), Unheard> {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                self.subscribe();
                Ok(())
            }
            Ok(Event::Incoming(Packet::SubAck(granted))) => {
                if let Some(refused) = self.refused_topic(&granted.return_codes) {
                    // Forget the connection, so that the next poll makes a new one.
                    events.clean();
                    self.failed(refused).await
                } else {
                    let of_model = granted.return_codes.get(2);
                    let refused =
                        of_model.is_some_and(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                    self.state.no_networks.store(refused, Ordering::Relaxed);
                    if refused {
                        tracing::warn!(topic = %self.model_topic, "the broker does not grant this topic: no network comes");
                    }
                    self.backoff.reset();
                    self.state.connected.store(true, Ordering::Relaxed);
                    self.tell(Received::Connected)
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) if publish.topic == self.model_topic.as_bytes() => {
                self.connection.updating.message(&publish.payload);
                Ok(())
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => match Self::read(&publish) {
                Some(received) => self.tell(received),
                None => Ok(()),
            },
            Ok(_) => Ok(()),
            Err(ConnectionError::RequestsDone) => Err(Unheard),
            Err(error) => {
                // The next connection leaves behind what is true by then.
                if self.connection.has_status
                    && let Ok(will) = last_will(self.connection.space, &self.status_topic, &self.state)
                {
                    events.options.set_last_will(will);
                }
                let (server, device) = (&self.connection.server, &self.connection.device);
                let error = UplinkError::from_rumqttc(error, server, device);
                self.failed(error).await
            }
        }
    }

    async fn failed(&mut self, error: UplinkError) -> Result<(), Unheard> {
        self.state.connected.store(false, Ordering::Relaxed);
        if self.state.closing.load(Ordering::Relaxed) {
            return Err(Unheard);
        }
        self.tell(Received::Disconnected(error))?;
        tokio::time::sleep(self.backoff.after_failure()).await;
        Ok(())
    }

    /// Blocks while the session has not taken what came before: then the broker is to wait, not our memory to grow.
    fn tell(&self, received: Received<Answer, UplinkError>) -> Result<(), Unheard> {
        self.session.send(Signal::Received(received)).map_err(|_| Unheard)
    }

    fn subscribe(&self) {
        let takes_networks = self.connection.presence.update.is_some();
        let filters = [self.reply_topic.as_str(), GALLERY_STATUS]
            .into_iter()
            .chain(takes_networks.then_some(self.model_topic.as_str()))
            .map(|topic| SubscribeFilterInput::new(topic, QoS::AtLeastOnce));
        // It can fail only while 64 packets wait, and a new connection follows then.
        if let Err(error) = self.client.try_subscribe_many(filters) {
            tracing::warn!(%error, "cannot subscribe to the replies");
        }
    }

    /// The reply topic must be granted; a gallery status that is not is only a worse error message later.
    fn refused_topic(&self, granted: &[SubscribeReasonCode]) -> Option<UplinkError> {
        match granted.first() {
            Some(SubscribeReasonCode::Success(_)) => None,
            code => Some(UplinkError::NotGranted {
                server: self.connection.server.clone(),
                topic: self.reply_topic.clone(),
                code: code.copied().unwrap_or(SubscribeReasonCode::Unspecified),
            }),
        }
    }

    fn read(publish: &Publish) -> Option<Received<Answer, UplinkError>> {
        if publish.topic == GALLERY_STATUS.as_bytes() {
            let status = from_cbor::<GalleryStatus>(&publish.payload)
                .inspect_err(|reason| tracing::debug!(%reason, "a gallery status that cannot be read"))
                .ok()?;
            return Some(Received::Gallery(status));
        }
        let correlation =
            publish.properties.as_ref().and_then(|properties| properties.correlation_data.as_deref());
        let (id, answer) = read_reply(&publish.payload, correlation);
        let Some(id) = id else {
            tracing::debug!("a reply that does not say what it answers");
            return None;
        };
        let busy = matches!(&answer, Answer::Refused(error) if is_busy(error.code));
        Some(Received::Reply { id, reply: answer, busy })
    }
}

const fn is_busy(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Busy | ErrorCode::Unavailable)
}

/// A query as it travels, of a photo that was taken then.
///
/// # Errors
/// [`UplinkError::Encode`].
pub fn message(mut query: Query, taken: Taken) -> Result<Vec<u8>, UplinkError> {
    (query.taken_at, query.uptime_ms) = match taken {
        Taken::At(ms) => (Some(ms), None),
        Taken::Uptime { ms, .. } => (None, Some(ms)),
        Taken::Unknown => (None, None),
    };
    cbor(&query)
}

/// The same query, of which more is known by now.
///
/// # Errors
/// [`UplinkError::Encode`], where it is none.
pub fn dated(message: &[u8], taken: Taken) -> Result<Vec<u8>, UplinkError> {
    self::message(from_cbor(message).map_err(UplinkError::Encode)?, taken)
}

/// Which query the bytes answer, by the correlation data or by their own word, and what they say.
fn read_reply(payload: &[u8], correlation: Option<&[u8]>) -> (Option<QueryId>, Answer) {
    let correlated = correlation.and_then(|data| data.try_into().ok()).map(QueryId::from_bytes);
    let malformed = |id, reason: String| (id, Answer::Malformed(reason));
    let header: Header = match from_cbor(payload) {
        Ok(header) => header,
        Err(reason) => return malformed(correlated, reason),
    };
    // A server that could not read the query's id answers with zeros.
    let own = header.id.filter(|id| *id != QueryId::from_bytes([0; 16]));
    let id = correlated.or(own);
    if own.is_some() && own != id {
        return malformed(id, "the reply's id is not that of its correlation data".to_owned());
    }
    if header.v != VERSION {
        return malformed(
            id,
            format!("the reply has version {}, and this program reads {VERSION}", header.v),
        );
    }
    match from_cbor::<Reply>(payload) {
        Ok(reply) if reply.matches.iter().all(|found| found.similarity.is_finite()) => {
            (id, Answer::Matches(Box::new(reply)))
        }
        Ok(_) => malformed(id, "a similarity is not finite".to_owned()),
        Err(reason) => match from_cbor::<glimpse_protocol::ErrorReply>(payload) {
            Ok(refused) => (id, Answer::Refused(refused.error)),
            Err(_) => malformed(id, reason),
        },
    }
}

fn cbor<T: Serialize>(message: &T) -> Result<Vec<u8>, UplinkError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).map_err(|error| UplinkError::Encode(error.to_string()))?;
    Ok(bytes)
}

pub(crate) fn from_cbor<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(format!("{} bytes, and at most {MESSAGE_BYTES_MAX} are read", bytes.len()));
    }
    ciborium::from_reader(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
