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
use crate::access::Access;
use crate::access::file::{FileError, SecretError, read_secret};
use crate::access::tls::{self, TlsError};
#[cfg(feature = "embedded-broker")]
use crate::broker::{Broker, BrokerError};
use crate::config::{BrokerConfig, ClientSecurity, ClientTls, ServeConfig};
use crate::gallery::GalleryError;
use crate::http::{Http, HttpError, ServedGallery};
use crate::live::Follower;
use crate::matcher::{Matcher, UnknownPhotos};
use crate::monitor::Monitor;
use crate::mqtt::{self, Credentials, MqttConfig, MqttError, Pacing};

/// What the server is, once it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Host and port of the broker, with the port that it got.
    pub mqtt: String,
    /// The same for TLS, where the embedded broker listens for it.
    pub mqtts: Option<String>,
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
    /// The registry of devices cannot be used.
    #[error(transparent)]
    Access(#[from] FileError),
    /// The password for an external broker cannot be read.
    #[error("no password for the broker: {0}")]
    Secret(#[from] SecretError),
    /// TLS to an external broker cannot be set up.
    #[error("no TLS to the broker: {0}")]
    Tls(#[from] TlsError),
    /// There is no HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The broker does not let us serve.
    #[error(transparent)]
    Mqtt(#[from] MqttError),
}

/// Loads the gallery and serves it until `shutdown` completes; then drains and returns. `ready` is called once, when
/// queries are answered. Of a configuration that is sent to `reloads`, what can change while queries are answered does, and the
/// certificate of TLS is read again.
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
    let monitor = Arc::new(Monitor::new());
    // Before the gallery, which takes a while: `/readyz` says that it does.
    let http = match &config.http {
        Some(http) => Some(Http::start(http, &config.access, monitor.clone()).await?),
        None => None,
    };
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
    let matcher = Arc::new(Matcher::new(live, config.matcher));
    let shown = Arc::new(ServedGallery::new(matcher.clone(), bundle));
    if let Err(error) = monitor.measure_recall(shown.clone()) {
        tracing::warn!(%error, "recall is not measured");
    }
    if let Some(http) = &http {
        http.open(shown);
    }
    let address = http.as_ref().map(Http::address);
    let ready = |now: Ready| ready(Ready { http: address, ..now });
    let served = serve(matcher, reloads, monitor.clone(), ready, shutdown).await;
    monitor.end();
    if let Some(http) = http {
        http.stop().await;
    }
    // It may be in the midst of an index, and looks up between two steps.
    let _ = tokio::task::spawn_blocking(move || drop(follower)).await;
    served
}

/// As [`run`], with a gallery that is loaded already, and without HTTP; `monitor` is told of every query.
///
/// # Errors
/// When the broker cannot start or refuses us.
pub async fn serve(
    matcher: Arc<Matcher>,
    reloads: watch::Receiver<ServeConfig>,
    monitor: Arc<Monitor>,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let config = reloads.borrow().clone();
    #[cfg(feature = "embedded-broker")]
    let mut embedded = None;
    let mut tls = None;
    let (host, port, credentials, persistent) = match &config.broker {
        #[cfg(feature = "embedded-broker")]
        BrokerConfig::Embedded { listen, clients_max, security } => {
            let access = Arc::new(Access::open(&config.access)?);
            let broker = Broker::start(*listen, *clients_max, security, access).await?;
            let broker = embedded.insert(Arc::new(broker));
            let address = broker.own_address();
            (address.ip().to_string(), address.port(), broker.credentials().clone(), false)
        }
        #[cfg(not(feature = "embedded-broker"))]
        BrokerConfig::Embedded { .. } => unreachable!("RawConfig::validate refuses it without the feature"),
        BrokerConfig::External { host, port, client_id, security } => {
            tls = security.tls.as_ref().map(tls_to_broker).transpose()?;
            (host.clone(), *port, login(client_id, security, host)?, true)
        }
    };
    let mqtt = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    #[cfg(feature = "embedded-broker")]
    let mqtt = embedded.as_ref().map_or(mqtt, |broker| broker.address().to_string());
    #[cfg(feature = "embedded-broker")]
    let mqtts = embedded.as_ref().and_then(|broker| broker.tls_address()).map(|address| address.to_string());
    #[cfg(not(feature = "embedded-broker"))]
    let mqtts = None;
    let say_ready = {
        let view = matcher.live().view();
        let now = Ready { mqtt, mqtts, http: None, space: view.meta().space, size: view.len() };
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
    #[cfg(feature = "embedded-broker")]
    let read_certificate = {
        let broker = embedded.clone();
        move || broker.iter().for_each(|broker| broker.reload())
    };
    #[cfg(not(feature = "embedded-broker"))]
    let read_certificate = || ();
    let reloading = follow_reloads(reloads, config.clone(), matcher.clone(), pace, read_certificate);
    let reloading = tokio::spawn(reloading);
    let queries_waiting_max = config.queries_waiting_max;
    let folders = (config.gallery.clone(), config.access.clone());
    let config = MqttConfig { host, port, credentials, tls, persistent, queries_waiting_max, folders };
    let served = mqtt::serve(&config, pacing, matcher, monitor, say_ready, stopped).await;
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
    read_certificate: impl Fn() + Clone + Send + 'static,
) {
    while reloads.changed().await.is_ok() {
        let new = reloads.borrow().clone();
        matcher.set_config(new.matcher);
        pace.send_replace(new.pacing);
        if tokio::task::spawn_blocking(read_certificate.clone()).await.is_err() {
            tracing::error!("reading the certificate again failed: see the panic above, and report it");
        }
        let fixed = [
            ("gallery", new.gallery != started.gallery),
            ("bundle", new.bundle != started.bundle),
            ("access", new.access != started.access),
            ("the broker", new.broker != started.broker),
            ("http", new.http != started.http),
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

fn login(client_id: &str, security: &ClientSecurity, host: &str) -> Result<Credentials, SecretError> {
    let credentials = Credentials::named(client_id.to_owned());
    let Some((username, password_file)) = &security.login else { return Ok(credentials) };
    let is_local = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    if security.tls.is_none() && !is_local {
        tracing::warn!(host, "the broker's password crosses the network in the clear: use mqtts://");
    }
    Ok(credentials.with_login(username.clone(), read_secret(password_file)?))
}

fn tls_to_broker(tls: &ClientTls) -> Result<Arc<tokio_rustls::rustls::ClientConfig>, TlsError> {
    let identity = tls.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    tls::client_config(&tls.ca, identity)
}
