//! The MQTT broker inside the server: rmqtt as a library, for one machine, closed to strangers.
//!
//! It listens on a loopback address only, because it knows no credentials yet: a client is who its client id says. What
//! it does enforce is that a client keeps to its own topics. A device `d` connects with the client id `d` and may
//!
//! - publish `glimpse/v1/devices/d/query` and `glimpse/v1/devices/d/status` (its last will goes nowhere else either),
//! - subscribe to `glimpse/v1/devices/d/reply`, to `.../d/model`, to what is below these two, and to
//!   `glimpse/v1/gallery/status`.
//!
//! Only the server's own client, known by a client id and a password made at random at every start, may do more.
//! Sessions, packet sizes, queues and retained messages are bounded. Nothing is kept on disk: the broker is as durable as
//! the process, and devices keep their queries until they are answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
    AuthResult, ClientId, ConnectInfo, Id, IsOnline, LastWill, NodeId, PublishAclResult, Retain, SharedGroup,
    SubscribeReturn, SubscriptionIdentifier, SubscriptionOptions, TopicFilter, TopicName,
};
use thiserror::Error;

use crate::mqtt::{Credentials, PACKET_BYTES_MAX};

/// Retained messages that are kept; a status a device, and the gallery's.
const RETAINED_MAX: isize = 100_000;

/// Why the broker cannot start.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The address is reachable from other machines.
    #[error(
        "cannot listen on {0}: credentials are not configured, so the embedded broker serves this machine only. \
         Listen on 127.0.0.1, or run a broker with credentials and name it with --broker HOST:PORT"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {reason}; choose another --listen, or port 0 for any free one")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The operating system gave no random numbers.
    #[error("cannot make the password of the server's own client: {0}")]
    Random(String),
}

/// A running broker. Dropping it stops the listener; clients that are connected stay until the runtime ends.
pub struct Broker {
    address: SocketAddr,
    credentials: Credentials,
    listener: tokio::task::JoinHandle<()>,
}

impl Broker {
    /// Refuses an address that other machines can reach.
    ///
    /// # Errors
    /// [`BrokerError::NotLoopback`].
    pub fn check_address(listen: SocketAddr) -> Result<(), BrokerError> {
        if listen.ip().to_canonical().is_loopback() { Ok(()) } else { Err(BrokerError::NotLoopback(listen)) }
    }

    /// Listens on `listen` (port 0: any free one) for at most `clients_max` clients.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn start(listen: SocketAddr, clients_max: u16) -> Result<Self, BrokerError> {
        Self::check_address(listen)?;
        let bind_error = |reason: String| BrokerError::Bind { address: listen, reason };
        let credentials = Credentials::random().map_err(|error| BrokerError::Random(error.to_string()))?;
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
        let rules = Arc::new(Rules { own: credentials.clone() });
        let register = context.extends.hook_mgr().register();
        for kind in [Type::ClientAuthenticate, Type::ClientSubscribeCheckAcl, Type::MessagePublishCheckAcl] {
            register.add(kind, Box::new(Guard(rules.clone()))).await;
        }
        register.start().await;

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
        let server = MqttServer::new(context).listener_by_id(listener, address.port()).build();
        let listener = tokio::spawn(async move {
            if let Err(error) = server.run().await {
                tracing::error!(%error, "the embedded broker stopped");
            }
        });
        tracing::info!(%address, clients_max, "embedded broker listens");
        Ok(Self { address, credentials, listener })
    }

    /// Where it listens, with the port that it got.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the server's own client connects with.
    pub const fn credentials(&self) -> &Credentials {
        &self.credentials
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Who may do what.
struct Rules {
    own: Credentials,
}

impl Rules {
    fn may_publish(client: &str, topic: &str) -> bool {
        DeviceTopic::parse(topic).is_some_and(|(device, kind)| {
            device.as_str() == client && matches!(kind, DeviceTopic::Query | DeviceTopic::Status)
        })
    }

    fn may_subscribe(client: &str, filter: &str) -> bool {
        let Ok(device) = DeviceId::new(client) else { return filter == GALLERY_STATUS };
        let below = |kind: DeviceTopic| {
            let rest = filter.strip_prefix(kind.of(&device).as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        filter == GALLERY_STATUS || below(DeviceTopic::Reply) || below(DeviceTopic::Model)
    }

    fn authenticate(&self, info: &ConnectInfo) -> AuthResult {
        let client: &str = &info.id().client_id;
        if client == self.own.client_id {
            let password = info.password().map_or(&b""[..], |password| password.as_ref());
            return if equal_in_constant_time(password, self.own.password.as_bytes()) {
                AuthResult::Allow(true, None)
            } else {
                AuthResult::BadUsernameOrPassword
            };
        }
        // The broker publishes a last will without asking again.
        let will = info.last_will().map(|will| match will {
            LastWill::V3(will) => will.topic.to_string(),
            LastWill::V5(will) => will.topic.to_string(),
        });
        match will {
            Some(topic) if !Self::may_publish(client, &topic) => {
                tracing::warn!(client, topic, "refused a client whose last will is for a foreign topic");
                AuthResult::NotAuthorized
            }
            _ => AuthResult::Allow(false, None),
        }
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
                (false, Some(HookResult::AuthResult(self.0.authenticate(info))))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let client: &str = &session.id.client_id;
                if Rules::may_subscribe(client, &subscribe.topic_filter) {
                    return (true, result);
                }
                tracing::warn!(client, filter = %subscribe.topic_filter, "refused a subscription to a foreign topic");
                let refused = SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized);
                (false, Some(HookResult::SubscribeAclResult(refused)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let client: &str = &session.id.client_id;
                if Rules::may_publish(client, &publish.topic) {
                    return (true, result);
                }
                tracing::warn!(client, topic = %publish.topic, "refused a publish to a foreign topic");
                let reason = "a client publishes only to its own query and status topics".into();
                (false, Some(HookResult::PublishAclResult(PublishAclResult::rejected(false, Some(reason)))))
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
        if !is_status || (!is_deletion && self.0.count().await >= RETAINED_MAX) {
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
            ("glimpse/v1/devices/cam-1/reply", false),
            ("glimpse/v1/devices/cam-1/model", false),
            ("glimpse/v1/devices/cam-2/query", false),
            ("glimpse/v1/devices/cam-1/query/x", false),
            ("glimpse/v1/gallery/status", false),
            ("$SYS/broker", false),
            ("", false),
        ] {
            assert_eq!(Rules::may_publish("cam-1", topic), allowed, "publish {topic}");
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
    fn only_loopback_addresses_are_listened_on() {
        for (address, allowed) in [
            ("127.0.0.1:0", true),
            ("127.9.9.9:1883", true),
            ("[::1]:1883", true),
            ("0.0.0.0:1883", false),
            ("[::]:1883", false),
            ("192.168.1.5:1883", false),
            ("[::ffff:10.0.0.1]:1883", false),
        ] {
            assert_eq!(Broker::check_address(address.parse().unwrap()).is_ok(), allowed, "{address}");
        }
    }
}
