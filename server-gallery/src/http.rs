//! HTTP: whether the server is well, what it measures, and the console that shows it to a person.
//!
//! | path | who | what |
//! |---|---|---|
//! | `/healthz` | everybody | the process is alive |
//! | `/readyz` | everybody | the gallery is loaded and queries reach the server; 503 otherwise |
//! | `/metrics` | whoever has the token, or this machine while none is set; a session | Prometheus text ([`metrics`]) |
//! | `/login`, `/assets/..` | everybody | the page that asks for the password, and how it looks |
//! | `/`, `/api/..`, `/photo` | a session, or this machine while no password is set | the console |
//!
//! In reading order: [`source`] (what is shown of a gallery), `access` (who may see it), `api` (JSON), `feed` (live events),
//! `photos` (thumbnails), [`metrics`], `assets` (the pages, which are in the binary), `listener` (connections, bounded in number
//! and time).
//!
//! The listener is there before the gallery is loaded, so that `/readyz` can say so. Nothing here serves a file by a path from a
//! request, and nothing on a page comes from another host: the content security policy forbids both page and browser to try.
//! What is not here: a way to change the gallery, and photos of devices, which the server never gets.

mod access;
mod api;
mod assets;
mod feed;
mod listener;
pub mod metrics;
mod photos;
pub mod source;

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::json;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub use access::PASSWORD_FILE;
use access::{Access, Admission, Refusal};
pub use source::{ServedGallery, Source};

use crate::access::Audit;
use crate::access::file::open_secret;
use crate::monitor::Monitor;
use photos::Photos;

/// Followers of the live feed at a time.
const FOLLOWERS_MAX: usize = 32;

/// Searches for photos at a time, and those that may wait for their turn.
const SEARCHES_AT_ONCE_MAX: usize = 1;
const SEARCHES_WAITING_MAX: usize = 4;

/// Passwords that are tried at a time: each takes 19 MiB.
const LOGINS_AT_ONCE_MAX: usize = 1;

/// The longest token for metrics that is read, and the shortest that is accepted.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

/// How long connections get to end when the server stops.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Where HTTP is served, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Address and port; port 0 is any free one.
    pub listen: SocketAddr,
    /// File with the token that lets a program read `/metrics`; without one this machine may.
    pub metrics_token: Option<PathBuf>,
}

/// Why there is no HTTP.
#[derive(Debug, Error)]
pub enum HttpError {
    /// Other machines could reach it, and nothing would keep them out.
    #[error(
        "cannot serve HTTP on {0}: the console has no password. Set one with `glimpse-gallery console-password`, or listen on \
         127.0.0.1"
    )]
    NoPassword(SocketAddr),
    /// The address is taken, or not ours.
    #[error(
        "cannot serve HTTP on {address}: {source}; choose another --http, port 0 for any free one, or none"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The token for metrics cannot be read.
    #[error("cannot read the token for metrics from {path}: {reason}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl HttpConfig {
    /// Whether only this machine reaches it.
    pub fn is_local(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    /// Whether it could be served, with this access folder: a password where others reach it, and a token that can be read.
    ///
    /// # Errors
    /// [`HttpError::NoPassword`] and [`HttpError::Token`].
    pub fn check(&self, access: &Path) -> Result<(), HttpError> {
        self.token()?;
        self.access(access, None).map(|_| ())
    }

    fn access(&self, folder: &Path, token: Option<&str>) -> Result<Access, HttpError> {
        let access = Access::new(folder, self.is_local(), token);
        if !self.is_local() && access.password().is_none() {
            return Err(HttpError::NoPassword(self.listen));
        }
        Ok(access)
    }

    fn token(&self) -> Result<Option<String>, HttpError> {
        let Some(path) = &self.metrics_token else { return Ok(None) };
        let failed = |reason: String| HttpError::Token { path: path.clone(), reason };
        let file = open_secret(path).map_err(|error| failed(error.to_string()))?;
        let mut text = String::new();
        let read = file.take(*TOKEN_BYTES.end() as u64 + 1).read_to_string(&mut text);
        if read.map_err(|error| failed(error.to_string()))? > *TOKEN_BYTES.end() {
            return Err(failed(format!("it has more than {} bytes", TOKEN_BYTES.end())));
        }
        let token = text.trim();
        if !TOKEN_BYTES.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(failed(format!(
                "it must hold {} letters or more, as from `openssl rand -hex 32`",
                TOKEN_BYTES.start()
            )));
        }
        Ok(Some(token.to_owned()))
    }
}

/// The running HTTP server. Dropping it stops it at once; [`Http::stop`] lets connections end.
pub struct Http {
    address: SocketAddr,
    site: Arc<Site>,
    stop: watch::Sender<bool>,
    listener: tokio::task::JoinHandle<()>,
}

impl Http {
    /// Listens, and answers from now on; there is no gallery until [`Http::open`]. The folder `access` has the password, and
    /// the audit log that logins are written down in.
    ///
    /// # Errors
    /// When it cannot listen there, or must not.
    pub async fn start(config: &HttpConfig, access: &Path, monitor: Arc<Monitor>) -> Result<Self, HttpError> {
        let token = config.token()?;
        let audit = Audit::new(access);
        let access = config.access(access, token.as_deref())?;
        let bind = |source| HttpError::Bind { address: config.listen, source };
        let socket = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = socket.local_addr().map_err(bind)?;
        let (stop, stopped) = watch::channel(false);
        let site = Arc::new(Site {
            monitor,
            source: OnceLock::new(),
            access,
            audit,
            local: config.is_local(),
            photos: Photos::new(),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            searches: Arc::new(Semaphore::new(SEARCHES_AT_ONCE_MAX)),
            searches_waiting: Semaphore::new(SEARCHES_AT_ONCE_MAX + SEARCHES_WAITING_MAX),
            logins: Arc::new(Semaphore::new(LOGINS_AT_ONCE_MAX)),
            stopped: stopped.clone(),
        });
        let listener = tokio::spawn(listener::run(socket, routes(site.clone()), stopped));
        tracing::info!(%address, password = site.access.password().is_some(), "HTTP is served");
        Ok(Self { address, site, stop, listener })
    }

    /// Where it listens, with the port that it got.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows this gallery from now on. Only the first counts.
    pub fn open(&self, gallery: Arc<dyn Source>) {
        if self.site.source.set(gallery).is_err() {
            tracing::warn!("a second gallery for the console was passed over");
        }
    }

    /// Takes no connection any more, and lets those that are there end.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        if tokio::time::timeout(STOP_WAIT, &mut self.listener).await.is_err() {
            tracing::debug!("some HTTP connections did not end in time");
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// What all requests share.
struct Site {
    monitor: Arc<Monitor>,
    source: OnceLock<Arc<dyn Source>>,
    access: Access,
    audit: Audit,
    /// Only this machine reaches it.
    local: bool,
    photos: Photos,
    followers: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    searches_waiting: Semaphore,
    logins: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

/// Who sent a request.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

/// What the request was let in by.
#[derive(Debug, Clone, Copy)]
struct Admitted(Admission);

impl Site {
    fn source(&self) -> Option<Arc<dyn Source>> {
        self.source.get().cloned()
    }

    fn ready(&self) -> bool {
        self.source.get().is_some() && self.monitor.subscribed()
    }
}

fn routes(site: Arc<Site>) -> Router {
    let console = Router::new()
        .route("/", get(assets::console))
        .route("/api/state", get(api::state))
        .route("/api/queries", get(api::queries))
        .route("/api/queries/{number}", get(api::query))
        .route("/api/devices", get(api::devices))
        .route("/api/course", get(api::course))
        .route("/api/images", get(api::images))
        .route("/api/search", post(api::search))
        .route("/api/events", get(feed::events))
        .route("/api/session", axum::routing::delete(api::log_out))
        .route("/photo", get(api::photo))
        .layer(from_fn_with_state(site.clone(), only_admitted));
    Router::new()
        .merge(console)
        .route("/api/session", post(api::log_in))
        .route("/login", get(assets::login))
        .route("/assets/{name}", get(assets::asset))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(measured))
        .fallback(async || problem(StatusCode::NOT_FOUND, "not_found", "there is no such page"))
        .layer(from_fn(secured))
        .with_state(site)
}

async fn only_admitted(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let admission = site.access.admit(request.method(), request.headers());
    match admission {
        Admission::Open | Admission::Session => {
            request.extensions_mut().insert(Admitted(admission));
            next.run(request).await
        }
        Admission::Refused(Refusal::LogIn) if request.uri().path() == "/" => {
            Redirect::to("/login").into_response()
        }
        Admission::Refused(refusal) => refused(refusal),
    }
}

fn refused(refusal: Refusal) -> Response {
    let (status, code, message) = match refusal {
        Refusal::LogIn => (StatusCode::UNAUTHORIZED, "log_in", "log in first"),
        Refusal::ForeignHost => (
            StatusCode::FORBIDDEN,
            "foreign_host",
            "without a password the console answers to 127.0.0.1 and localhost only: set one with `glimpse-gallery \
             console-password`",
        ),
        Refusal::Forwarded => (
            StatusCode::FORBIDDEN,
            "forwarded",
            "without a password the console answers to nobody through a proxy: set one with `glimpse-gallery console-password`",
        ),
        Refusal::ForeignOrigin => {
            (StatusCode::FORBIDDEN, "foreign_origin", "this must come from the console's own page")
        }
    };
    problem(status, code, message)
}

/// A refusal, as JSON: a code for programs and a sentence for people.
fn problem(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

async fn ready(State(site): State<Arc<Site>>) -> Response {
    let says = |yes: bool| if yes { "yes" } else { "no" };
    let text = format!(
        "gallery loaded: {}\nqueries arrive: {}\n",
        says(site.source.get().is_some()),
        says(site.monitor.subscribed())
    );
    let status = if site.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}

async fn measured(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    if !site.access.may_measure(&headers) {
        let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        return (challenge, refused(Refusal::LogIn)).into_response();
    }
    let gallery = site.source().map(|source| source.describe());
    let console = metrics::Console {
        sessions: site.access.sessions(),
        followers: FOLLOWERS_MAX - site.followers.available_permits(),
        login_failures: site.access.failures(),
    };
    let text = metrics::write(&site.monitor, gallery.as_ref(), console);
    ([(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))], text).into_response()
}

/// What every response tells the browser: load nothing from elsewhere, guess no types, be in nobody's frame.
async fn secured(request: Request, next: Next) -> Response {
    const POLICY: &str = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; \
                          frame-ancestors 'none'";
    const HEADERS: [(HeaderName, &str); 6] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response: Response<Body> = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The peer is known to every handler.
fn for_peer(router: &Router, peer: SocketAddr) -> Router {
    router.clone().layer(Extension(Peer(peer)))
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;
