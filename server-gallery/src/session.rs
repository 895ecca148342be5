//! Taking up a session that an external broker kept while the server was down.
//!
//! The broker then says "session present", and rumqttc either refuses a session that it does not know, or accepts it and
//! publishes nothing in it (0.34, `BrokerSessionResumePolicy`). What it wants to know is which packet identifiers are in
//! use. For this client the answer after a start is always none: it subscribes and publishes at QoS 1, where the receiver
//! keeps no identifiers, and what the dead process had not acknowledged the broker delivers again. So this store has
//! one session, without anything in flight, and saves nothing.

use std::future::{Future, ready};
use std::pin::Pin;

use rumqttc::{PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

type Stored<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

/// The session of a client that has just started.
#[derive(Debug)]
pub(crate) struct NothingInFlight {
    /// As in the CONNECT packet: rumqttc compares them.
    pub(crate) expiry_s: u32,
}

impl SessionStore for NothingInFlight {
    fn load<'a>(&'a self, key: &'a SessionStoreKey) -> Stored<'a, Option<PersistedSession>> {
        let session = PersistedSession {
            format_version: 1,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: Some(self.expiry_s),
            outgoing_inflight_upper_limit: None,
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(ready(Ok(Some(session))))
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> Stored<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> Stored<'a, ()> {
        Box::pin(ready(Ok(())))
    }
}
