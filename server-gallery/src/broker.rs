//! The MQTT broker inside the server: rmqtt as a library, for one machine, closed to strangers.
//!
//! While there is no registry of devices ([`crate::access`]), it listens on loopback addresses only, and a client is
//! who its client id says. With a registry every client proves itself: MQTT's client id and user name are the
//! device's name, and a password or a certificate shows that it is. Other machines reach it through the
//! [`crate::door`], by TLS 1.3, and in the clear only where the configuration says so in as many words.
//!
//! Whoever is in keeps to its own topics. A device `d` may
//!
//! - publish `glimpse/v1/devices/d/query` and `glimpse/v1/devices/d/status` (its last will goes to the latter alone),
//! - subscribe to `glimpse/v1/devices/d/reply`, to `.../d/model`, to what is below these two, and to
//!   `glimpse/v1/gallery/status`.
//!
//! Only the server's own client, known by a client id and a password made at random at every start, may do more; it
//! never comes through the door. Sessions, packet sizes, queues and retained messages are bounded. Nothing is kept on
//! disk: the broker is as durable as the process, and devices keep their queries until they are answered.
//!
//! Twice a second the registry is looked at: a device that was revoked, removed or given another credential, or whose
//! time is over, is sent away, its session with it; what it publishes until then is refused.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use glimpse_protocol::topics::GALLERY_STATUS;
use glimpse_protocol::{DeviceId, DeviceTopic};
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::net::Builder;
use rmqtt::retain::{DefaultRetainStorage, RetainStorage};
use rmqtt::server::MqttServer;
use rmqtt::subscribe::SharedSubscription;
use rmqtt::types::{
    AuthResult, ClientId, ConnectInfo, Id, IsOnline, LastWill, ListenerId, NodeId, PublishAclResult, Retain,
    SharedGroup, SubscribeReturn, SubscriptionIdentifier, SubscriptionOptions, TopicFilter, TopicName,
};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::access::login::{Attempt, Login};
use crate::access::registry::{Registry, Timestamp};
use crate::access::tls::{ServerTls, TlsError};
use crate::access::{Access, Credential, Event, Refusal};
use crate::config::ListenSecurity;
use crate::door::{Behind, Door, Peer, Peers, waiting_places};
use crate::mqtt::{Credentials, PACKET_BYTES_MAX};

/// How often the registry is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// After so long a login without a session is forgotten: the session follows within the time of a handshake.
const GRANT_LIFE: Duration = Duration::from_mins(1);

/// Retained messages that are kept; a status a device, and the gallery's.
const RETAINED_MAX: isize = 100_000;

/// Bytes of a message that is retained: a status has some hundred.
const RETAINED_BYTES_MAX: usize = 4096;

/// Why the broker cannot start.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The address is reachable from other machines, and what is said there could be read by others.
    #[error(
        "cannot listen on {0} without TLS: passwords and photos' embeddings would cross the network in the clear. Listen \
         there with --listen-tls, or set insecure_plaintext = true where the network itself is private"
    )]
    Plaintext(SocketAddr),
    /// The address is reachable from other machines, and there is no device that could prove itself.
    #[error(
        "cannot listen on {0}: credentials are not configured, so the embedded broker serves this machine only. Add a \
         device with `glimpse-gallery devices add`, listen on 127.0.0.1, or run a broker with credentials and name it with \
         --broker HOST:PORT"
    )]
    NoDevices(SocketAddr),
    /// The files of TLS.
    #[error("no TLS: {0}")]
    Tls(#[from] TlsError),
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {reason}; choose another --listen, or port 0 for any free one")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The operating system gave no random numbers.
    #[error("cannot make a secret: {0}")]
    Random(String),
    /// Passwords could not be checked.
    #[error("cannot get ready to check passwords: {0}")]
    Login(#[source] std::io::Error),
}

/// A running broker. Dropping it stops the listeners; clients that are connected stay until the runtime ends.
pub struct Broker {
    address: SocketAddr,
    own_address: SocketAddr,
    tls_address: Option<SocketAddr>,
    credentials: Credentials,
    access: Arc<Access>,
    tls: Option<Arc<ServerTls>>,
    _doors: Vec<Door>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Broker {
    /// Refuses an address that other machines can reach unencrypted, unless that is wanted.
    ///
    /// # Errors
    /// [`BrokerError::Plaintext`].
    pub fn check_address(listen: SocketAddr, insecure_plaintext: bool) -> Result<(), BrokerError> {
        if is_local(listen) || insecure_plaintext { Ok(()) } else { Err(BrokerError::Plaintext(listen)) }
    }

    /// Refuses addresses that other machines can reach while there is no device that could prove itself.
    ///
    /// # Errors
    /// [`BrokerError::NoDevices`].
    pub fn check_devices(
        listen: SocketAddr,
        listen_tls: Option<SocketAddr>,
        devices: usize,
    ) -> Result<(), BrokerError> {
        let mut addresses = [Some(listen), listen_tls].into_iter().flatten();
        match addresses.find(|address| devices == 0 && !is_local(*address)) {
            Some(open) => Err(BrokerError::NoDevices(open)),
            None => Ok(()),
        }
    }

    /// Listens on `listen` and, with TLS, where `security` says (port 0: any free one), for at most `clients_max`
    /// clients that `access` lets in.
    ///
    /// # Errors
    /// When it cannot listen there, or must not.
    pub async fn start(
        listen: SocketAddr,
        clients_max: u16,
        security: &ListenSecurity,
        access: Arc<Access>,
    ) -> Result<Self, BrokerError> {
        Self::check_address(listen, security.insecure_plaintext)?;
        Self::check_devices(listen, security.listen_tls, access.devices())?;
        let tls = security.tls.clone().map(|files| ServerTls::load(files, access.clone())).transpose()?;
        let tls = tls.map(Arc::new);

        let random = |error: rand::rand_core::OsError| BrokerError::Random(error.to_string());
        let credentials = Credentials::random().map_err(random)?;
        let context = context(clients_max).await;
        // The door's listener is there also where it serves nobody but our own client.
        let inner = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), clients_max)?;
        let plain = is_local(listen).then(|| bind(listen, clients_max)).transpose()?;
        let peers = Arc::new(Peers::default());
        let rules = Arc::new(Rules {
            own: credentials.clone(),
            door: inner.1.port(),
            peers: peers.clone(),
            login: Login::new(access.clone()).map_err(BrokerError::Login)?,
            access: access.clone(),
            grants: Mutex::default(),
        });
        register(&context, &rules).await;

        let behind = Arc::new(Behind {
            broker: inner.1,
            peers,
            access: access.clone(),
            places: Arc::new(Semaphore::new(usize::from(clients_max))),
            waiting: waiting_places(),
        });
        let mut doors = Vec::new();
        let mut open = |listen, tls| {
            let door = Door::open(listen, tls, behind.clone());
            let door =
                door.map_err(|error| BrokerError::Bind { address: listen, reason: error.to_string() })?;
            let address = door.address();
            doors.push(door);
            Ok::<_, BrokerError>(address)
        };
        let own_address = plain.as_ref().map_or(inner.1, |(_, address)| *address);
        let address = if plain.is_some() { own_address } else { open(listen, None)? };
        let tls_address = match (security.listen_tls, &tls) {
            (Some(listen), Some(tls)) => Some(open(listen, Some(tls.clone()))?),
            _ => None,
        };

        let mut server = MqttServer::new(context.clone());
        for (listener, address) in [Some(inner), plain].into_iter().flatten() {
            server = server.listener_by_id(listener, address.port());
        }
        let server = server.build();
        let listening = tokio::spawn(async move {
            if let Err(error) = server.run().await {
                tracing::error!(%error, "the embedded broker stopped");
            }
        });
        let tasks = [listening, tokio::spawn(watch(rules, context))];
        tracing::info!(%address, ?tls_address, clients_max, devices = access.devices(), "embedded broker listens");
        if !is_local(address) {
            tracing::warn!(%address, "insecure_plaintext: passwords cross the network in the clear");
        }
        Ok(Self { address, own_address, tls_address, credentials, access, tls, _doors: doors, tasks })
    }

    /// Where it listens, with the port that it got.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for the server's own client.
    pub const fn own_address(&self) -> SocketAddr {
        self.own_address
    }

    /// Where it listens for TLS.
    pub const fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// What the server's own client connects with.
    pub const fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Reads certificate and key of TLS again, for connections from now on; a fault is told and changes nothing. The
    /// registry needs no asking: it is looked at twice a second.
    pub fn reload(&self) {
        let Some(tls) = &self.tls else { return };
        match tls.reload() {
            Ok(fingerprint) => {
                let fingerprint = fingerprint.to_string();
                tracing::info!(fingerprint, "took up the certificate");
                self.access.audit().record(Event::CertificateReloaded { fingerprint: &fingerprint });
            }
            Err(error) => {
                tracing::error!(%error, "the certificate cannot be used: going by the last good one");
                self.access.audit().record(Event::CertificateRefused { reason: &error.to_string() });
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

async fn context(clients_max: u16) -> ServerContext {
    let context = ServerContext::new()
        // rmqtt would refuse clients while the machine is loaded, which an ingest or a training run is no reason for.
        .busy_check_enable(false)
        // The server's own client is one more.
        .mqtt_max_sessions(isize::from(i16::try_from(clients_max).unwrap_or(i16::MAX)) + 1)
        .task_exec_workers(64)
        .task_exec_queue_max(10_000)
        .build()
        .await;
    *context.extends.retain_mut().await = Box::new(Retained(DefaultRetainStorage::new()));
    *context.extends.shared_subscription_mut().await = Box::new(FirstOnline);
    context
}

/// A listener on a loopback address.
fn bind(listen: SocketAddr, clients_max: u16) -> Result<(rmqtt::net::Listener, SocketAddr), BrokerError> {
    let bind_error = |reason: String| BrokerError::Bind { address: listen, reason };
    let listener = Builder::new()
        .name("glimpse")
        .laddr(listen)
        // A reply is one small packet: waiting for more to send costs up to 40 ms.
        .nodelay(true)
        // A server that was killed leaves connections in TIME_WAIT, and its successor must not wait for their end.
        .reuseaddr(Some(cfg!(unix)))
        .allow_anonymous(false)
        .max_connections(usize::from(clients_max) + 1)
        .max_handshaking_limit(usize::from(clients_max).clamp(16, 500))
        .max_packet_size(PACKET_BYTES_MAX)
        .max_clientid_len(64)
        .max_topic_levels(8)
        .max_subscriptions(16)
        .max_mqueue_len(1000)
        .max_inflight(std::num::NonZeroU16::new(1024).expect("1024 is not zero"))
        .handshake_timeout(Duration::from_secs(10))
        .max_session_expiry_interval(Duration::from_hours(24))
        .bind()
        .and_then(rmqtt::net::Listener::tcp)
        .map_err(|error| bind_error(format!("{error:#}")))?;
    let address = listener.local_addr().map_err(|error| bind_error(error.to_string()))?;
    Ok((listener, address))
}

async fn register(context: &ServerContext, rules: &Arc<Rules>) {
    let register = context.extends.hook_mgr().register();
    let kinds = [
        Type::ClientAuthenticate,
        Type::ClientConnected,
        Type::ClientSubscribeCheckAcl,
        Type::MessagePublishCheckAcl,
    ];
    for kind in kinds {
        register.add(kind, Box::new(Guard(rules.clone()))).await;
    }
    register.start().await;
}

/// Takes up changes of the registry, and sends away who may no longer be there.
async fn watch(rules: Arc<Rules>, context: ServerContext) {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let access = rules.access.clone();
        if tokio::task::spawn_blocking(move || access.refresh()).await.is_err() {
            tracing::error!("looking at the registry of devices failed: see the panic above, and report it");
        }
        rules.expel(&context).await;
    }
}

/// A login that was good.
struct Grant {
    /// `None` for a client that had to prove nothing.
    credential: Option<Credential>,
    since: Instant,
}

/// Who may do what.
struct Rules {
    own: Credentials,
    /// The listener of the door.
    door: ListenerId,
    peers: Arc<Peers>,
    login: Login,
    access: Arc<Access>,
    /// The last good login of each client that is connected, or was a moment ago.
    grants: Mutex<HashMap<String, Grant>>,
}

impl Rules {
    fn may_publish(client: &str, topic: &str) -> bool {
        DeviceTopic::parse(topic).is_some_and(|(device, kind)| {
            device.as_str() == client
                && matches!(kind, DeviceTopic::Query | DeviceTopic::Status | DeviceTopic::Fetch)
        })
    }

    /// Whether a last will may be for this topic: the device's status, for a query of somebody who has gone is nobody's.
    fn may_leave_behind(client: &str, topic: &str) -> bool {
        DeviceTopic::parse(topic)
            .is_some_and(|(device, kind)| device.as_str() == client && kind == DeviceTopic::Status)
    }

    fn may_subscribe(client: &str, filter: &str) -> bool {
        let Ok(device) = DeviceId::new(client) else { return filter == GALLERY_STATUS };
        let below = |kind: DeviceTopic| {
            let rest = filter.strip_prefix(kind.of(&device).as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        filter == GALLERY_STATUS || below(DeviceTopic::Reply) || below(DeviceTopic::Model)
    }

    async fn authenticate(&self, info: &ConnectInfo) -> AuthResult {
        let id = info.id();
        let client: &str = &id.client_id;
        let peer = self.peer(id);
        if client == self.own.client_id {
            let password = info.password().map_or(&b""[..], |password| password.as_ref());
            let is_own = peer.is_none() && equal_in_constant_time(password, self.own.password.as_bytes());
            return if is_own { AuthResult::Allow(true, None) } else { AuthResult::BadUsernameOrPassword };
        }
        match self.log_in(info, peer).await {
            Ok(credential) => {
                let grant = Grant { credential, since: Instant::now() };
                self.grants().insert(client.to_owned(), grant);
                AuthResult::Allow(false, None)
            }
            Err(refusal) => {
                let address = peer.map(|peer| peer.address).or(id.remote_addr);
                let reason = refusal.to_string();
                let event = Event::Refused { device: Some(client), address, reason: &reason };
                // Whoever knocks again and again does not fill the log.
                if self.access.audit().record(event) {
                    tracing::warn!(client, ?address, reason, "refused a client");
                }
                match refusal {
                    Refusal::UnknownDevice
                    | Refusal::WrongPassword
                    | Refusal::OtherName
                    | Refusal::NoCredentials => AuthResult::BadUsernameOrPassword,
                    _ => AuthResult::NotAuthorized,
                }
            }
        }
    }

    async fn log_in(&self, info: &ConnectInfo, peer: Option<Peer>) -> Result<Option<Credential>, Refusal> {
        let id = info.id();
        let address = match (peer, id.lid == self.door) {
            (Some(peer), _) => peer.address,
            (None, true) => return Err(Refusal::NotThroughTheDoor),
            (None, false) => id.remote_addr.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
        };
        let credential = self
            .login
            .check(Attempt {
                client_id: &id.client_id,
                username: info.username().map(AsRef::as_ref),
                password: info.password().map(AsRef::as_ref),
                certificate: peer.and_then(|peer| peer.certificate),
                address: address.ip(),
            })
            .await?;
        if credential.is_none() && peer.is_some() {
            // There is no registry: then this machine's own clients need not prove themselves, and others cannot.
            return Err(Refusal::NoCredentials);
        }
        // The broker publishes a last will without asking again.
        let will = info.last_will().map(|will| match will {
            LastWill::V3(will) => will.topic.to_string(),
            LastWill::V5(will) => will.topic.to_string(),
        });
        if will.is_some_and(|topic| !Self::may_leave_behind(&id.client_id, &topic)) {
            return Err(Refusal::ForeignWill);
        }
        Ok(credential)
    }

    fn peer(&self, id: &Id) -> Option<Peer> {
        id.remote_addr.filter(|_| id.lid == self.door).and_then(|address| self.peers.of(address))
    }

    /// Whether a client that is connected may stay.
    fn may_stay(&self, registry: Option<&Registry>, client: &str) -> Result<(), Refusal> {
        if client == self.own.client_id {
            return Ok(());
        }
        let Some(registry) = registry else { return Ok(()) };
        let grants = self.grants();
        let credential = grants.get(client).and_then(|grant| grant.credential.as_ref());
        let credential = credential.ok_or(Refusal::NoCredentials)?;
        let id = DeviceId::new(client).map_err(|_| Refusal::NoDeviceName)?;
        registry.allows(&id, credential, Timestamp::now())
    }

    /// Sends away who may no longer be there, with all that the broker keeps for them.
    async fn expel(&self, context: &ServerContext) {
        let registry = self.access.registry();
        let mut leaving = Vec::new();
        {
            let shared = context.extends.shared().await;
            for entry in shared.iter() {
                let id = entry.id();
                if let Err(refusal) = self.may_stay(registry.as_deref(), &id.client_id) {
                    leaving.push((shared.entry(id), refusal));
                }
            }
            let now = Instant::now();
            self.grants()
                .retain(|client, grant| now.duration_since(grant.since) < GRANT_LIFE || shared.exist(client));
        }
        let mut kicking = tokio::task::JoinSet::new();
        for (entry, refusal) in leaving {
            kicking.spawn(async move {
                // Where it logs in at this moment, the next round finds it.
                let mut entry = entry.try_lock().await.ok()?;
                // Not asked what it found: the session may have cleaned up after itself meanwhile.
                entry.kick(true, true, true).await.ok().map(|_| (entry.id(), refusal))
            });
        }
        while let Some(kicked) = kicking.join_next().await {
            let Ok(Some((id, refusal))) = kicked else { continue };
            let client: &str = &id.client_id;
            tracing::warn!(client, reason = %refusal, "sent a client away");
            self.access.audit().record(Event::Disconnected { device: client, reason: &refusal.to_string() });
        }
    }

    fn connected(&self, id: &Id) {
        let client: &str = &id.client_id;
        let peer = self.peer(id);
        // Behind the door an address of its own says nothing; who has no peer there any more has left already.
        let address = if id.lid == self.door { peer.map(|peer| peer.address) } else { id.remote_addr };
        let Some(address) = address.filter(|_| client != self.own.client_id) else { return };
        let credential = {
            let grants = self.grants();
            let credential = grants.get(client).and_then(|grant| grant.credential.as_ref());
            credential.map_or("none", Credential::kind)
        };
        let tls = peer.is_some_and(|peer| peer.tls);
        self.access.audit().record(Event::Connected { device: client, address, credential, tls });
    }

    fn topic_refused(&self, client: &str, action: &str, topic: &str) {
        if self.access.audit().record(Event::TopicRefused { device: client, action, topic }) {
            tracing::warn!(client, action, topic, "refused a foreign topic");
        }
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<String, Grant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The password cannot be found out byte by byte from the time that a comparison takes.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

struct Guard(Arc<Rules>);

#[async_trait]
impl Handler for Guard {
    async fn hook(&self, parameter: &Parameter, result: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(info) => {
                (false, Some(HookResult::AuthResult(self.0.authenticate(info).await)))
            }
            Parameter::ClientConnected(session) => {
                self.0.connected(&session.id);
                (true, result)
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let client: &str = &session.id.client_id;
                if Rules::may_subscribe(client, &subscribe.topic_filter) {
                    return (true, result);
                }
                self.0.topic_refused(client, "subscribe", &subscribe.topic_filter);
                let refused = SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized);
                (false, Some(HookResult::SubscribeAclResult(refused)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let client: &str = &session.id.client_id;
                let refused = |reason: String| {
                    (
                        false,
                        Some(HookResult::PublishAclResult(PublishAclResult::rejected(
                            false,
                            Some(reason.into()),
                        ))),
                    )
                };
                if !Rules::may_publish(client, &publish.topic) {
                    self.0.topic_refused(client, "publish", &publish.topic);
                    return refused(
                        "a client publishes only to its own query, status and fetch topics".to_owned(),
                    );
                }
                // It is sent away within half a second; nothing of it is taken until then.
                match self.0.may_stay(self.0.access.registry().as_deref(), client) {
                    Ok(()) => (true, result),
                    Err(refusal) => refused(refusal.to_string()),
                }
            }
            _ => (true, result),
        }
    }
}

/// rmqtt's tree of retained messages, which its own default leaves unused, with a bound.
struct Retained(DefaultRetainStorage);

#[async_trait]
impl RetainStorage for Retained {
    fn enable(&self) -> bool {
        true
    }

    async fn set(&self, topic: &TopicName, retain: Retain, expiry: Option<Duration>) -> rmqtt::Result<()> {
        // Only a status is worth keeping: a retained query would be asked again at every start.
        let is_status = &**topic == GALLERY_STATUS
            || DeviceTopic::parse(topic).is_some_and(|(_, kind)| kind == DeviceTopic::Status);
        let is_deletion = retain.publish.payload.is_empty();
        if !is_status || retain.publish.payload.len() > RETAINED_BYTES_MAX {
            return Ok(());
        }
        if !is_deletion && self.0.count().await >= RETAINED_MAX {
            return Ok(());
        }
        // rmqtt gives messages that name no expiry five minutes, which suits queues; a status holds until the next.
        let named =
            retain.publish.properties.as_ref().and_then(|properties| properties.message_expiry_interval);
        self.0.set_with_timeout(topic, retain, expiry.filter(|_| named.is_some())).await
    }

    async fn get(&self, filter: &TopicFilter) -> rmqtt::Result<Vec<(TopicName, Retain)>> {
        self.0.get_message(filter).await
    }

    async fn count(&self) -> isize {
        self.0.count().await
    }

    async fn max(&self) -> isize {
        self.0.max().await
    }
}

/// Shared subscriptions, which rmqtt grants but does not deliver without this: only the server's own client may
/// subscribe to queries here, so there is nothing to balance.
struct FirstOnline;

type Subscriber =
    (NodeId, ClientId, SubscriptionOptions, Option<Vec<SubscriptionIdentifier>>, Option<IsOnline>);

#[async_trait]
impl SharedSubscription for FirstOnline {
    fn is_supported(&self) -> bool {
        true
    }

    async fn choice(
        &self,
        _: &ServerContext,
        _: &SharedGroup,
        _: &Id,
        _: &TopicName,
        subscribers: &[Subscriber],
    ) -> Option<(usize, IsOnline)> {
        let online = subscribers.iter().position(|(.., online)| *online == Some(true));
        // A subscriber that is away for a moment keeps its session, and gets the message when it is back.
        online.map(|place| (place, true)).or_else(|| (!subscribers.is_empty()).then_some((0, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_to_its_own_topics() {
        for (topic, allowed) in [
            ("glimpse/v1/devices/cam-1/query", true),
            ("glimpse/v1/devices/cam-1/status", true),
            ("glimpse/v1/devices/cam-1/fetch", true),
            ("glimpse/v1/devices/cam-2/fetch", false),
            ("glimpse/v1/devices/cam-1/reply", false),
            ("glimpse/v1/devices/cam-1/model", false),
            ("glimpse/v1/devices/cam-2/query", false),
            ("glimpse/v1/devices/cam-1/query/x", false),
            ("glimpse/v1/gallery/status", false),
            ("$SYS/broker", false),
            ("", false),
        ] {
            assert_eq!(Rules::may_publish("cam-1", topic), allowed, "publish {topic}");
            let status = topic == "glimpse/v1/devices/cam-1/status";
            assert_eq!(Rules::may_leave_behind("cam-1", topic), status, "a last will for {topic}");
        }
        for (filter, allowed) in [
            ("glimpse/v1/devices/cam-1/reply", true),
            ("glimpse/v1/devices/cam-1/reply/7", true),
            ("glimpse/v1/devices/cam-1/reply/#", true),
            ("glimpse/v1/devices/cam-1/model", true),
            ("glimpse/v1/gallery/status", true),
            ("glimpse/v1/devices/cam-1/replyx", false),
            ("glimpse/v1/devices/cam-1/+", false),
            ("glimpse/v1/devices/cam-1/#", false),
            ("glimpse/v1/devices/+/reply", false),
            ("glimpse/v1/devices/cam-2/reply", false),
            ("glimpse/v1/devices/+/query", false),
            ("#", false),
            ("+/v1/gallery/status", false),
        ] {
            assert_eq!(Rules::may_subscribe("cam-1", filter), allowed, "subscribe {filter}");
        }
        assert!(!Rules::may_subscribe("+", "glimpse/v1/devices/+/reply"));
        assert!(Rules::may_subscribe("two words", "glimpse/v1/gallery/status"));
    }

    #[test]
    fn only_loopback_addresses_are_listened_on_in_the_clear() {
        for (address, allowed) in [
            ("127.0.0.1:0", true),
            ("127.9.9.9:1883", true),
            ("[::1]:1883", true),
            ("0.0.0.0:1883", false),
            ("[::]:1883", false),
            ("192.168.1.5:1883", false),
            ("[::ffff:10.0.0.1]:1883", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(Broker::check_address(address, false).is_ok(), allowed, "{address}");
            assert!(Broker::check_address(address, true).is_ok());
        }
    }

    #[tokio::test]
    async fn without_a_device_no_other_machine_is_served() {
        let place = tempfile::tempdir().unwrap();
        let access = Arc::new(Access::open(place.path()).unwrap());
        let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let security = ListenSecurity { insecure_plaintext: true, ..ListenSecurity::default() };
        let refused = Broker::start(everywhere, 10, &security, access.clone()).await;
        assert!(matches!(refused, Err(BrokerError::NoDevices(_))));
        let security = ListenSecurity { listen_tls: Some(everywhere), ..ListenSecurity::default() };
        let local = "127.0.0.1:0".parse().unwrap();
        let refused = Broker::start(local, 10, &security, access).await;
        assert!(matches!(refused, Err(BrokerError::NoDevices(_))));
    }
}
