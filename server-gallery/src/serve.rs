//! The server process, without the process: arguments, logging and signals are the caller's, so that a test runs it on
//! port 0.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use glimpse_protocol::SpaceId;
use thiserror::Error;
use tokio::sync::watch;

#[cfg(feature = "embedded-broker")]
use crate::broker::{Broker, BrokerError};
use crate::config::{BrokerConfig, ServeConfig};
use crate::gallery::GalleryError;
use crate::live::Follower;
use crate::matcher::{Matcher, UnknownPhotos};
use crate::mqtt::{self, Credentials, MqttConfig, MqttError, Pacing};

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
/// queries are answered. Of a configuration that is sent to `reloads`, what can change while queries are answered does.
///
/// # Errors
/// When the gallery cannot be loaded, or the broker cannot start or refuses us.
pub async fn run(
    reloads: watch::Receiver<ServeConfig>,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let config = reloads.borrow().clone();
    let mut shutdown = Box::pin(shutdown);
    // A new index takes a while to make: a signal stops that too.
    let stop = Arc::new(AtomicBool::new(false));
    let mut opening = tokio::task::spawn_blocking({
        let (gallery, bundle, stop) = (config.gallery.clone(), config.bundle.clone(), stop.clone());
        move || Follower::start(&gallery, &bundle, &mut |_, _, _| !stop.load(Ordering::Relaxed))
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
    let (bundle, live, follower) = match opened {
        Ok(opened) => opened?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    let view = live.view();
    let vectors = view.base().vectors();
    let search = if config.matcher.exact { "exact".to_owned() } else { vectors.describe() };
    tracing::info!(space = %bundle.space, name = bundle.name, size = view.len(), search, "gallery loaded");
    if config.matcher.unknown == UnknownPhotos::Learned && vectors.unknown().is_none() {
        tracing::warn!(
            "no threshold for unknown photos could be learned from this gallery: every query is matched"
        );
    }
    if view.is_empty() {
        tracing::warn!("the gallery is empty: every reply will be, until photos are added");
    }
    drop(view);
    let served = serve(Arc::new(Matcher::new(live, config.matcher)), reloads, ready, shutdown).await;
    // It may be in the midst of an index, and looks up between two steps.
    let _ = tokio::task::spawn_blocking(move || drop(follower)).await;
    served
}

/// As [`run`], with a gallery that is loaded already.
///
/// # Errors
/// When the broker cannot start or refuses us.
pub async fn serve(
    matcher: Arc<Matcher>,
    reloads: watch::Receiver<ServeConfig>,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let config = reloads.borrow().clone();
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
        let view = matcher.live().view();
        let now = Ready { mqtt, space: view.meta().space, size: view.len() };
        move || ready(now)
    };
    let (stop, stopped) = watch::channel(false);
    let waiting = tokio::spawn(async move {
        shutdown.await;
        let _ = stop.send(true);
        // Held until the server is done: a closed channel would read as a signal of its own.
        std::future::pending::<()>().await;
    });
    let (pace, pacing) = watch::channel(config.pacing);
    let reloading = tokio::spawn(follow_reloads(reloads, config.clone(), matcher.clone(), pace));
    let queries_waiting_max = config.queries_waiting_max;
    let config = MqttConfig { host, port, credentials, persistent, queries_waiting_max };
    let served = mqtt::serve(&config, pacing, matcher, say_ready, stopped).await;
    waiting.abort();
    reloading.abort();
    Ok(served?)
}

/// Takes over what can change while queries are answered, and names what cannot.
async fn follow_reloads(
    mut reloads: watch::Receiver<ServeConfig>,
    started: ServeConfig,
    matcher: Arc<Matcher>,
    pace: watch::Sender<Pacing>,
) {
    while reloads.changed().await.is_ok() {
        let new = reloads.borrow().clone();
        matcher.set_config(new.matcher);
        pace.send_replace(new.pacing);
        let fixed = [
            ("gallery", new.gallery != started.gallery),
            ("bundle", new.bundle != started.bundle),
            ("the broker", new.broker != started.broker),
            ("queries_waiting_max", new.queries_waiting_max != started.queries_waiting_max),
        ];
        let fixed: Vec<&str> = fixed.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect();
        if fixed.is_empty() {
            tracing::info!("configuration loaded again");
        } else {
            let restart = fixed.join(", ");
            tracing::warn!(restart, "configuration loaded again; these settings need a restart");
        }
    }
}
