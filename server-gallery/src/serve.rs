//! The server process, without the process: arguments, logging and signals are the caller's, so that a test runs it on
//! port 0.

use std::future::Future;
use std::sync::Arc;

use glimpse_protocol::SpaceId;
use thiserror::Error;
use tokio::sync::watch;

#[cfg(feature = "embedded-broker")]
use crate::broker::{Broker, BrokerError};
use crate::config::{BrokerConfig, ServeConfig};
use crate::gallery::{self, GalleryError};
use crate::matcher::Matcher;
use crate::mqtt::{self, Credentials, MqttConfig, MqttError};

/// What the server is, once it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Host and port of the broker, with the port that it got.
    pub mqtt: String,
    /// The space that is served.
    pub space: SpaceId,
    /// Images in the gallery.
    pub size: usize,
}

/// Why the server stopped.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The gallery cannot be loaded.
    #[error(transparent)]
    Gallery(#[from] GalleryError),
    /// The embedded broker cannot start.
    #[cfg(feature = "embedded-broker")]
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The broker does not let us serve.
    #[error(transparent)]
    Mqtt(#[from] MqttError),
}

/// Loads the gallery and serves it until `shutdown` completes; then drains and returns. `ready` is called once, when
/// queries are answered.
///
/// # Errors
/// When the gallery cannot be loaded, or the broker cannot start or refuses us.
pub async fn run(
    config: &ServeConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (bundle, index) = gallery::open(&config.gallery, &config.bundle)?;
    let codebook = index.codebook().is_some() && !config.matcher.exact;
    let search = if codebook { "codes, then exact ranking" } else { "exact" };
    tracing::info!(space = %bundle.space, name = bundle.name, size = index.len(), search, "gallery loaded");
    if index.is_empty() {
        tracing::warn!("the gallery is empty: every reply will be");
    }
    serve(Arc::new(Matcher::new(index, config.matcher)), config, ready, shutdown).await
}

/// As [`run`], with a gallery that is loaded already.
///
/// # Errors
/// When the broker cannot start or refuses us.
pub async fn serve(
    matcher: Arc<Matcher>,
    config: &ServeConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    #[cfg(feature = "embedded-broker")]
    let mut embedded = None;
    let (host, port, credentials, persistent) = match &config.broker {
        #[cfg(feature = "embedded-broker")]
        BrokerConfig::Embedded { listen, clients_max } => {
            let broker = embedded.insert(Broker::start(*listen, *clients_max).await?);
            (broker.address().ip().to_string(), broker.address().port(), broker.credentials().clone(), false)
        }
        #[cfg(not(feature = "embedded-broker"))]
        BrokerConfig::Embedded { .. } => unreachable!("RawConfig::validate refuses it without the feature"),
        BrokerConfig::External { host, port, client_id } => {
            (host.clone(), *port, Credentials::named(client_id.clone()), true)
        }
    };
    let mqtt = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let say_ready = {
        let index = matcher.index();
        let now = Ready { mqtt, space: index.meta().space, size: index.len() };
        move || ready(now)
    };
    let (stop, stopped) = watch::channel(false);
    let waiting = tokio::spawn(async move {
        shutdown.await;
        let _ = stop.send(true);
        // Held until the server is done: a closed channel would read as a signal of its own.
        std::future::pending::<()>().await;
    });
    let queries_waiting_max = config.queries_waiting_max;
    let config = MqttConfig { host, port, credentials, persistent, queries_waiting_max };
    let served = mqtt::serve(&config, matcher, say_ready, stopped).await;
    waiting.abort();
    Ok(served?)
}
