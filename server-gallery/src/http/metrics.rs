//! What the server measures, in the text format of Prometheus (0.0.4).
//!
//! Every metric is listed in [`METRICS`]: name, kind and meaning. Units are the last word of a name. Counters count since the
//! process started. `glimpse_ready` and the gallery's figures are what `/readyz` and the console show.

use std::fmt::Write as _;

use serde::Serialize;

use super::source::Description;
use crate::monitor::{Fate, Histogram, Monitor, REFUSALS};

/// The content type of what [`write`] makes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The bounds of the histograms: 2^6 to 2^24 us (64 us to 17 s), where the buckets of [`Histogram`] have theirs.
const OCTAVES: std::ops::RangeInclusive<u32> = 6..=24;

/// How many devices are in each state, by name.
const DEVICE_STATES: [&str; 3] = ["online", "offline", "unknown"];

/// Name, kind and meaning of every metric.
pub const METRICS: [(&str, &str, &str); 25] = [
    ("glimpse_build_info", "gauge", "1, with the version of the program and the space that it serves"),
    ("glimpse_start_time_seconds", "gauge", "When the process started, Unix time"),
    ("glimpse_ready", "gauge", "1 while the gallery is loaded and queries arrive"),
    ("glimpse_mqtt_subscribed", "gauge", "1 while connected to the broker and subscribed to queries"),
    (
        "glimpse_queries_total",
        "counter",
        "Queries, by outcome: answered, repeated (answered from memory), refused, busy, expired",
    ),
    ("glimpse_queries_refused_total", "counter", "Queries refused, by the code that the device was told"),
    ("glimpse_query_waiting_seconds", "histogram", "From the arrival of a query to the begin of its search"),
    ("glimpse_query_searching_seconds", "histogram", "From the begin of a search to its reply"),
    (
        "glimpse_recall_at_10_ratio",
        "gauge",
        "Share of the ten nearest images that was found, mean of the last 1000 queries measured; absent before the first",
    ),
    ("glimpse_recall_samples_total", "counter", "Queries of which the recall was measured"),
    ("glimpse_gallery_images", "gauge", "Images in the gallery"),
    ("glimpse_gallery_generation", "gauge", "Generation of the gallery: it grows with every change"),
    ("glimpse_gallery_changes", "gauge", "Images that have changed since the index was made"),
    ("glimpse_gallery_indexing", "gauge", "1 while a new index is being made"),
    ("glimpse_gallery_behind", "gauge", "1 while the newest changes cannot be read"),
    ("glimpse_devices", "gauge", "Devices heard of, by state; unknown are those that never said"),
    ("glimpse_devices_outbox_queries", "gauge", "Queries that wait in the outboxes of all devices"),
    (
        "glimpse_rollout_devices",
        "gauge",
        "Devices that a network is rolled out to, by serial number and what became of it",
    ),
    (
        "glimpse_rollout_halted",
        "gauge",
        "1 while a network is offered no further, because it fails on most devices",
    ),
    ("glimpse_console_sessions", "gauge", "Sessions of the console"),
    ("glimpse_console_followers", "gauge", "Pages that follow the live feed"),
    ("glimpse_console_login_failures_total", "counter", "Wrong passwords given to the console"),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the process"),
    ("process_open_fds", "gauge", "Open file descriptors of the process"),
    ("process_threads", "gauge", "Threads of the process"),
];

/// What the console itself has to tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Console {
    /// Sessions.
    pub sessions: usize,
    /// Pages that follow the feed.
    pub followers: usize,
    /// Wrong passwords.
    pub login_failures: u64,
}

/// Everything measured.
pub fn write(monitor: &Monitor, gallery: Option<&Description>, console: Console) -> String {
    let mut text = Exposition(String::with_capacity(8192));
    server(&mut text, monitor, gallery);
    queries(&mut text, monitor);
    if let Some(gallery) = gallery {
        text.one("glimpse_gallery_images", gallery.size as f64);
        text.one("glimpse_gallery_generation", gallery.generation as f64);
        text.one("glimpse_gallery_changes", gallery.changes as f64);
        text.one("glimpse_gallery_indexing", f64::from(u8::from(gallery.indexing)));
        text.one("glimpse_gallery_behind", f64::from(u8::from(gallery.trouble.is_some())));
    }
    devices(&mut text, monitor);
    rollouts(&mut text, monitor);
    text.one("glimpse_console_sessions", console.sessions as f64);
    text.one("glimpse_console_followers", console.followers as f64);
    text.one("glimpse_console_login_failures_total", console.login_failures as f64);
    process(&mut text);
    text.0
}

fn server(text: &mut Exposition, monitor: &Monitor, gallery: Option<&Description>) {
    let space = gallery.map(|gallery| gallery.space.to_string()).unwrap_or_default();
    text.head("glimpse_build_info");
    text.sample("glimpse_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("space", &space)], 1.0);
    text.one("glimpse_start_time_seconds", monitor.started_at_ms() as f64 / 1e3);
    let number = |yes: bool| f64::from(u8::from(yes));
    text.one("glimpse_ready", number(gallery.is_some() && monitor.subscribed()));
    text.one("glimpse_mqtt_subscribed", number(monitor.subscribed()));
}

fn queries(text: &mut Exposition, monitor: &Monitor) {
    let totals = monitor.totals();
    text.head("glimpse_queries_total");
    for (fate, count) in Fate::ALL.into_iter().zip(totals.counts) {
        text.sample("glimpse_queries_total", &[("outcome", fate.name())], count as f64);
    }
    text.head("glimpse_queries_refused_total");
    for (code, count) in REFUSALS.into_iter().zip(totals.refused) {
        text.sample("glimpse_queries_refused_total", &[("code", &word(&code))], count as f64);
    }
    text.histogram("glimpse_query_waiting_seconds", &totals.waiting);
    text.histogram("glimpse_query_searching_seconds", &totals.searching);
    let recall = monitor.recall();
    if let Some(mean) = recall.mean {
        text.one("glimpse_recall_at_10_ratio", mean);
    }
    text.one("glimpse_recall_samples_total", recall.samples as f64);
}

fn devices(text: &mut Exposition, monitor: &Monitor) {
    let (mut states, mut waiting) = ([0_u64; 3], 0_u64);
    for (_, device) in monitor.devices() {
        let state = match device.online {
            Some(true) => 0,
            Some(false) => 1,
            None => 2,
        };
        states[state] += 1;
        waiting += u64::from(device.outbox.unwrap_or(0));
    }
    text.head("glimpse_devices");
    for (state, count) in DEVICE_STATES.into_iter().zip(states) {
        text.sample("glimpse_devices", &[("state", state)], count as f64);
    }
    text.one("glimpse_devices_outbox_queries", waiting as f64);
}

fn rollouts(text: &mut Exposition, monitor: &Monitor) {
    let rollouts = monitor.rollouts();
    let going_on = || rollouts.iter().filter(|progress| progress.rollout.stopped.is_none());
    text.head("glimpse_rollout_devices");
    for progress in going_on() {
        let serial = progress.rollout.serial.to_string();
        for (stage, count) in progress.devices.named() {
            let labels = [("serial", serial.as_str()), ("stage", stage)];
            text.sample("glimpse_rollout_devices", &labels, f64::from(count));
        }
    }
    text.head("glimpse_rollout_halted");
    for progress in going_on() {
        let serial = progress.rollout.serial.to_string();
        text.sample("glimpse_rollout_halted", &[("serial", &serial)], f64::from(u8::from(progress.halted)));
    }
}

/// As far as the system tells; only Linux does.
fn process(text: &mut Exposition) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    if let Some(kib) = field("VmRSS:") {
        text.one("process_resident_memory_bytes", kib * 1024.0);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        text.one("process_open_fds", descriptors.count() as f64);
    }
    if let Some(threads) = field("Threads:") {
        text.one("process_threads", threads);
    }
}

/// The word by which a value is known in messages.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

struct Exposition(String);

impl Exposition {
    /// A metric with one sample.
    fn one(&mut self, name: &str, value: f64) {
        self.head(name);
        self.sample(name, &[], value);
    }

    fn head(&mut self, name: &str) {
        let (_, kind, help) = METRICS.iter().find(|metric| metric.0 == name).expect("every metric is listed");
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    /// Values of labels are words of ours, a version and a space: nothing in them has to be escaped.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        match labels.as_slice() {
            [] => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.head(name);
        for octave in OCTAVES {
            let bound = (1_u64 << octave) as f64 / 1e6;
            let below = histogram.below_octave(octave);
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {below}"));
        }
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {}", histogram.count()));
        self.line(format_args!("{name}_sum {}", histogram.sum().as_secs_f64()));
        self.line(format_args!("{name}_count {}", histogram.count()));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes any text");
    }
}
