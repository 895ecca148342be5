//! The live feed: server-sent events.
//!
//! `pulse` comes every second, `query` and `device` as they happen. A follower gets [`QUERIES_A_SECOND_MAX`] queries a second at
//! most, as many as a person can see; how many more there were stands in the next pulse. A feed ends with its
//! session, and does not keep it alive.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::sse::{Event as Sent, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::access::Admission;
use super::api::{DeviceView, MATCHES_MAX, space_of};
use super::{Site, problem};
use crate::monitor::Event;

/// Queries that a follower is shown in a second.
const QUERIES_A_SECOND_MAX: u32 = 20;

/// Statuses of devices, likewise.
const DEVICES_A_SECOND_MAX: u32 = 50;

pub(super) async fn events(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let Ok(place) = site.followers.clone().try_acquire_owned() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many pages follow the server: close one",
        );
    };
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (events, stopped) = (site.monitor.follow(), site.stopped.clone());
    let follower =
        Follower { site, headers, events, stopped, ticks, queries: 0, devices: 0, missed: 0, _place: place };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Sse::new(events).into_response()
}

struct Follower {
    site: Arc<Site>,
    /// Its request's, which tell whether its session still is.
    headers: HeaderMap,
    events: Receiver<Event>,
    stopped: watch::Receiver<bool>,
    ticks: Interval,
    /// Sent since the last pulse.
    queries: u32,
    devices: u32,
    /// Not sent since the last pulse.
    missed: u64,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event; `None` at the end of session or server.
    async fn next(&mut self) -> Option<Sent> {
        loop {
            let event = tokio::select! {
                _ = self.stopped.wait_for(|stop| *stop) => return None,
                _ = self.ticks.tick() => None,
                event = self.events.recv() => Some(event),
            };
            let Some(event) = event else { return self.pulse() };
            match event {
                Ok(Event::Query(seen)) if self.queries < QUERIES_A_SECOND_MAX => {
                    self.queries += 1;
                    return Some(sent("query", &seen.view(MATCHES_MAX)));
                }
                Ok(Event::Device(id)) if self.devices < DEVICES_A_SECOND_MAX => {
                    self.devices += 1;
                    let device = self.site.monitor.device(&id);
                    return Some(match device {
                        Some(device) => sent("device", &DeviceView::of(&id, device, space_of(&self.site))),
                        None => sent("gone", &json!({ "id": id.as_str() })),
                    });
                }
                Ok(Event::Query(_)) => self.missed += 1,
                // The table of devices is asked for again by whoever looks at it.
                Ok(Event::Device(_)) => {}
                Err(RecvError::Lagged(missed)) => self.missed += missed,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn pulse(&mut self) -> Option<Sent> {
        if matches!(self.site.access.admits(&Method::GET, &self.headers), Admission::Refused(_)) {
            return None;
        }
        let gallery = self.site.source().map(|source| source.describe());
        let missed = std::mem::take(&mut self.missed);
        (self.queries, self.devices) = (0, 0);
        Some(sent(
            "pulse",
            &json!({
                "pulse": self.site.monitor.pulse(),
                "ready": self.site.ready(),
                "size": gallery.as_ref().map(|gallery| gallery.size),
                "generation": gallery.as_ref().map(|gallery| gallery.generation),
                "missed": missed,
            }),
        ))
    }
}

fn sent(name: &str, data: &impl Serialize) -> Sent {
    let data = serde_json::to_string(data).expect("our views are JSON");
    Sent::default().event(name).data(data)
}
