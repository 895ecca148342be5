//! What the console asks for, as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Query, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use glimpse_protocol::{DeviceId, SpaceId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::access::{Admission, Login};
use super::assets::PLACEHOLDER;
use super::source::{SearchError, Source};
use super::{Admitted, Peer, Site, photos, problem};
use crate::monitor::{Counts, Device, Fate, LatencySlot, SLOT_S, Second};

/// Queries in the answer to one request, and the matches of each.
const QUERIES_DEFAULT: usize = 100;
pub(super) const MATCHES_MAX: usize = 10;

/// Images of one page.
const IMAGES_DEFAULT: usize = 48;
const IMAGES_MAX: usize = 200;

/// The longest text that is searched for.
const TEXT_BYTES_MAX: usize = 200;

/// Bytes of a photo that is searched for.
const PHOTO_BYTES_MAX: usize = 24 << 20;

/// Images that a search for a photo finds.
const FOUND: usize = 24;

/// How long the body of a request may take to come.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// Bytes of an attempt to log in.
const LOGIN_BYTES_MAX: usize = 4096;

pub(super) async fn state(
    State(site): State<Arc<Site>>,
    Extension(admitted): Extension<Admitted>,
) -> Json<Value> {
    let gallery = site.source().map(|source| source.describe());
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started_at_ms": site.monitor.started_at_ms(),
        "ready": site.ready(),
        "protected": admitted.0 == Admission::Session,
        "local": site.local,
        "gallery": gallery,
        "outcomes": Fate::ALL,
        "pulse": site.monitor.pulse(),
    }))
}

#[derive(Deserialize)]
pub(super) struct QueriesWanted {
    limit: Option<usize>,
}

pub(super) async fn queries(
    State(site): State<Arc<Site>>,
    Query(wanted): Query<QueriesWanted>,
) -> Json<Value> {
    let seen = site.monitor.queries();
    let limit = wanted.limit.unwrap_or(QUERIES_DEFAULT);
    let views: Vec<_> = seen.iter().take(limit).map(|seen| seen.view(MATCHES_MAX)).collect();
    Json(json!({ "queries": views }))
}

pub(super) async fn query(State(site): State<Arc<Site>>, Path(number): Path<u64>) -> Response {
    let Some(seen) = site.monitor.query(number) else {
        return problem(StatusCode::NOT_FOUND, "forgotten", "this query is not remembered any more");
    };
    let device = site.monitor.device(&seen.device);
    let device = device.map(|device| DeviceView::of(&seen.device, device, space_of(&site)));
    Json(json!({ "query": seen.view(usize::MAX), "device": device })).into_response()
}

/// A device, as it is shown.
#[derive(Serialize)]
pub(super) struct DeviceView {
    id: String,
    /// Whether its network is of the gallery's space; `None` where one of them is not known.
    space_fits: Option<bool>,
    #[serde(flatten)]
    device: Device,
}

impl DeviceView {
    pub(super) fn of(id: &DeviceId, device: Device, space: Option<SpaceId>) -> Self {
        let space_fits = device.space.zip(space).map(|(own, gallery)| own == gallery);
        Self { id: id.as_str().to_owned(), space_fits, device }
    }
}

pub(super) fn space_of(site: &Site) -> Option<SpaceId> {
    site.source.get().map(|source| source.describe().space)
}

pub(super) async fn devices(State(site): State<Arc<Site>>) -> Json<Value> {
    let space = space_of(&site);
    let devices: Vec<_> =
        site.monitor.devices().into_iter().map(|(id, device)| DeviceView::of(&id, device, space)).collect();
    Json(json!({ "devices": devices, "rollouts": site.monitor.rollouts() }))
}

/// Throughput and latency of the last ten minutes.
#[derive(Serialize)]
pub(super) struct Course {
    now_s: u64,
    slot_s: u64,
    outcomes: [Fate; Fate::ALL.len()],
    seconds: Vec<Second>,
    latency: Vec<LatencySlot>,
    counts: Counts,
}

pub(super) async fn course(State(site): State<Arc<Site>>) -> Json<Course> {
    let (now_s, seconds) = site.monitor.seconds();
    Json(Course {
        now_s,
        slot_s: SLOT_S,
        outcomes: Fate::ALL,
        seconds,
        latency: site.monitor.latency(),
        counts: site.monitor.pulse().counts,
    })
}

#[derive(Deserialize)]
pub(super) struct ImagesWanted {
    after: Option<String>,
    #[serde(default)]
    text: String,
    limit: Option<usize>,
}

pub(super) async fn images(State(site): State<Arc<Site>>, Query(wanted): Query<ImagesWanted>) -> Response {
    let source = match gallery(&site) {
        Ok(source) => source,
        Err(loading) => return loading,
    };
    if wanted.text.len() > TEXT_BYTES_MAX {
        return problem(StatusCode::BAD_REQUEST, "too_long", "search for a shorter text");
    }
    let limit = wanted.limit.unwrap_or(IMAGES_DEFAULT).clamp(1, IMAGES_MAX);
    // It looks at every image where the text is rare.
    let page = blocking(move || source.page(wanted.after.as_deref(), wanted.text.trim(), limit)).await;
    page.map_or_else(|failed| failed, |page| Json(page).into_response())
}

pub(super) async fn search(State(site): State<Arc<Site>>, body: Body) -> Response {
    let source = match gallery(&site) {
        Ok(source) => source,
        Err(loading) => return loading,
    };
    let Ok(_waiting) = site.searches_waiting.try_acquire() else {
        let busy = problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "other photos are being searched for: try again",
        );
        return ([(header::RETRY_AFTER, HeaderValue::from_static("2"))], busy).into_response();
    };
    let photo = match read(body, PHOTO_BYTES_MAX).await {
        Ok(photo) => photo,
        Err(refused) => return refused,
    };
    let Ok(turn) = site.searches.clone().acquire_owned().await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping");
    };
    let found = blocking(move || {
        let _turn = turn;
        let started = std::time::Instant::now();
        source.search_photo(&photo, FOUND).map(|matches| (matches, started.elapsed()))
    });
    match found.await {
        Err(failed) => failed,
        Ok(Ok((matches, took))) => {
            Json(json!({ "matches": matches, "took_ms": took.as_secs_f64() * 1e3 })).into_response()
        }
        Ok(Err(error @ SearchError::Photo(_))) => {
            problem(StatusCode::UNPROCESSABLE_ENTITY, "no_photo", &error.to_string())
        }
        Ok(Err(error @ SearchError::Network(_))) => {
            tracing::error!(%error, "a photo could not be searched for");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "network", &error.to_string())
        }
    }
}

#[derive(Deserialize)]
pub(super) struct PhotoWanted {
    image: String,
    side: Option<u32>,
}

pub(super) async fn photo(State(site): State<Arc<Site>>, Query(wanted): Query<PhotoWanted>) -> Response {
    let source = match gallery(&site) {
        Ok(source) => source,
        Err(loading) => return loading,
    };
    let side = wanted.side.unwrap_or(photos::SIDES[0]);
    if !photos::SIDES.contains(&side) {
        return problem(StatusCode::BAD_REQUEST, "side", "a side is 320 or 960");
    }
    let typed = |kind: &'static str| (header::CONTENT_TYPE, HeaderValue::from_static(kind));
    match site.photos.thumbnail(source, wanted.image, side).await {
        Some(jpeg) => {
            let kept = (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=600"));
            ([typed("image/jpeg"), kept], jpeg).into_response()
        }
        // Shown in its place, whatever the status.
        None => (StatusCode::NOT_FOUND, [typed("image/svg+xml")], PLACEHOLDER).into_response(),
    }
}

#[derive(Deserialize)]
struct Password {
    password: String,
}

pub(super) async fn log_in(
    State(site): State<Arc<Site>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match site.access.admits(&axum::http::Method::POST, &headers) {
        Admission::Refused(super::Refusal::LogIn) | Admission::Open | Admission::Session => {}
        Admission::Refused(refusal) => return super::refused(refusal),
    }
    let body = match read(body, LOGIN_BYTES_MAX).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let Ok(Password { password }) = serde_json::from_slice(&body) else {
        return problem(StatusCode::BAD_REQUEST, "malformed", "a JSON object with `password` is expected");
    };
    let Ok(turn) = site.logins.clone().acquire_owned().await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping");
    };
    let attempt = blocking(move || {
        let _turn = turn;
        let login = site.access.log_in(peer.ip().to_canonical(), password.as_bytes(), &headers);
        if login != Login::NoRandom {
            let accepted = matches!(login, Login::In(_));
            site.audit.record(crate::access::Event::ConsoleLogin { address: peer, accepted });
        }
        login
    });
    match attempt.await {
        Err(failed) => failed,
        Ok(Login::In(cookie)) => with_cookie(cookie),
        Ok(Login::Wrong) => problem(StatusCode::UNAUTHORIZED, "wrong_password", "this is not the password"),
        Ok(Login::Wait(wait)) => {
            let seconds = wait.as_secs() + 1;
            let message = format!("too many attempts: try again in {seconds} s");
            let refused = problem(StatusCode::TOO_MANY_REQUESTS, "wait", &message);
            ([(header::RETRY_AFTER, seconds.to_string())], refused).into_response()
        }
        Ok(Login::NoRandom) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "no_random", "the machine gives no random numbers")
        }
    }
}

pub(super) async fn log_out(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    with_cookie(site.access.log_out(&headers))
}

fn with_cookie(cookie: String) -> Response {
    ([(header::SET_COOKIE, cookie)], StatusCode::NO_CONTENT).into_response()
}

fn gallery(site: &Site) -> Result<Arc<dyn Source>, Response> {
    site.source().ok_or_else(|| {
        problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "loading",
            "the gallery is being loaded: try again in a moment",
        )
    })
}

async fn read(body: Body, bytes_max: usize) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY_WAIT, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let message = format!("at most {} KiB are read", bytes_max >> 10);
            Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &message))
        }
        Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "too_slow", "the request took too long to come")),
    }
}

/// On a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request failed by a bug of ours");
        problem(StatusCode::INTERNAL_SERVER_ERROR, "bug", "this is a bug of ours: see the server's log")
    })
}
