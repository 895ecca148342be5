//! The server process, without the process: arguments, logging and signals are the caller's, so that a test runs it on
//! port 0.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use glimpse_protocol::SpaceId;
use thiserror::Error;
use tokio::sync::watch;

#[cfg(feature = "embedded-broker")]
use crate::broker::{Broker, BrokerError};
use crate::config::{BrokerConfig, ServeConfig};
use crate::gallery::{self, GalleryError};
use crate::http::{Http, HttpError, ServedGallery};
use crate::matcher::{Matcher, UnknownPhotos};
use crate::monitor::Monitor;
use crate::mqtt::{self, Credentials, MqttConfig, MqttError};

/// What the server is, once it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Host and port of the broker, with the port that it got.
    pub mqtt: String,
    /// Address of the console, if there is one.
    pub http: Option<SocketAddr>,
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
    /// There is no HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
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
    let mut shutdown = Box::pin(shutdown);
    let monitor = Arc::new(Monitor::new());
    // Before the gallery, which takes a while: `/readyz` says that it does.
    let http = match &config.http {
        Some(http) => Some(Http::start(http, &config.gallery, monitor.clone()).await?),
        None => None,
    };
    // A new index takes a while to make: a signal stops that too.
    let stop = Arc::new(AtomicBool::new(false));
    let mut opening = tokio::task::spawn_blocking({
        let (gallery, bundle, stop) = (config.gallery.clone(), config.bundle.clone(), stop.clone());
        move || gallery::open(&gallery, &bundle, &mut |_, _, _| !stop.load(Ordering::Relaxed))
    });
    let opened = tokio::select! {
        opened = &mut opening => opened,
        () = &mut shutdown => {
            stop.store(true, Ordering::Relaxed);
            let _ = opening.await;
            tracing::info!("stopped before the gallery was loaded");
            return Ok(());
        }
    };
    let (bundle, index) = match opened {
        Ok(opened) => opened?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    let search = if config.matcher.exact { "exact".to_owned() } else { index.vectors().describe() };
    tracing::info!(space = %bundle.space, name = bundle.name, size = index.len(), search, "gallery loaded");
    if config.matcher.unknown == UnknownPhotos::Learned && index.vectors().unknown().is_none() {
        tracing::warn!(
            "no threshold for unknown photos could be learned from this gallery: every query is matched"
        );
    }
    if index.is_empty() {
        tracing::warn!("the gallery is empty: every reply will be");
    }
    let matcher = Arc::new(Matcher::new(index, config.matcher));
    let shown = Arc::new(ServedGallery::new(matcher.clone(), bundle));
    if let Err(error) = monitor.measure_recall(shown.clone()) {
        tracing::warn!(%error, "recall is not measured");
    }
    if let Some(http) = &http {
        http.open(shown);
    }
    let address = http.as_ref().map(Http::address);
    let ready = |now: Ready| ready(Ready { http: address, ..now });
    let served = serve(matcher, config, monitor.clone(), ready, shutdown).await;
    monitor.end();
    if let Some(http) = http {
        http.stop().await;
    }
    served
}

/// As [`run`], with a gallery that is loaded already, and without HTTP; `monitor` is told of every query.
///
/// # Errors
/// When the broker cannot start or refuses us.
pub async fn serve(
    matcher: Arc<Matcher>,
    config: &ServeConfig,
    monitor: Arc<Monitor>,
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
        let now = Ready { mqtt, http: None, space: index.meta().space, size: index.len() };
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
    let served = mqtt::serve(&config, matcher, monitor, say_ready, stopped).await;
    waiting.abort();
    Ok(served?)
}
