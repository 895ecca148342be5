//! Devices that ask for half an hour, over servers and brokers that come and go, beside clients that behave badly; and what
//! became of each query.
//!
//! A device here does what ours do: it keeps a query's id until it has an answer, and asks again where none comes. A query is
//! *answered* when its first reply came, *lost* where none did within [`PATIENCE`]. A reply more than the attempts that were made
//! is *unasked*: a server that answers one message twice, or a broker that delivers one twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use glimpse_protocol::{
    Codec, DeviceId, DeviceTopic, Embedding, ErrorCode, ErrorReply, Query, QueryId, Reply, SpaceId,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rumqttc::{
    AsyncClient, Event, Incoming, MqttOptions, NetworkOptions, PublishOptions, QoS, TlsConfiguration,
    Transport,
};
use tokio::sync::mpsc;
use tokio_rustls::rustls::ClientConfig;

use crate::stranger::{self, Login, Stranger, packet};

/// How long an attempt waits for its reply.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How long a query is asked again before it is lost: longer than any server or broker is away.
const PATIENCE: Duration = Duration::from_mins(2);

/// Replies of so many earlier queries are told from those that nobody asked for.
const REMEMBERED: usize = 64;

/// Where devices connect.
#[derive(Clone)]
pub struct Broker {
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS, where it has it.
    pub tls: Option<Arc<ClientConfig>>,
}

/// What all devices count together.
#[derive(Debug, Default)]
pub struct Tally {
    /// Queries asked.
    pub asked: AtomicU64,
    /// Queries answered.
    pub answered: AtomicU64,
    /// Queries that had no answer within [`PATIENCE`].
    pub lost: AtomicU64,
    /// Queries that were refused for another reason than a busy server, or answered with something else than was asked for.
    pub refused: AtomicU64,
    /// Attempts beyond the first of their query.
    pub repeats: AtomicU64,
    /// Replies that said that the server was busy.
    pub busy: AtomicU64,
    /// Replies beyond the attempts.
    pub unasked: AtomicU64,
    /// Connections that were lost.
    pub reconnects: AtomicU64,
}

impl Tally {
    /// All of it, by name.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("asked", &self.asked),
            ("answered", &self.answered),
            ("lost", &self.lost),
            ("refused", &self.refused),
            ("repeats", &self.repeats),
            ("busy", &self.busy),
            ("unasked", &self.unasked),
            ("reconnects", &self.reconnects),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// A device that asks about once a second until `stop`, and then waits for its last reply.
pub async fn ask_on(
    broker: Broker,
    device: DeviceId,
    password: String,
    (space, embeddings): (SpaceId, Arc<Vec<Vec<f32>>>),
    seed: u64,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
) {
    let mut options = MqttOptions::new(device.as_str(), (broker.host.clone(), broker.port));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network).set_keep_alive(20).set_max_packet_size(Some(256 << 10));
    options.set_credentials(device.as_str(), password);
    if let Some(tls) = broker.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    }
    let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
    let (replies, mut replied) = mpsc::unbounded_channel();
    let (own, topic, count) = (client.clone(), DeviceTopic::Reply.of(&device), tally.clone());
    let polling = tokio::spawn(async move {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    let (own, topic) = (own.clone(), topic.as_str().to_owned());
                    tokio::spawn(async move { own.subscribe(topic, QoS::AtLeastOnce).await });
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    drop(replies.send(publish.payload.to_vec()));
                }
                Ok(_) => {}
                Err(_) => {
                    add(&count.reconnects);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    });
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut memory = Memory::default();
    let topic = DeviceTopic::Query.of(&device);
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(500..1500))).await;
        let id = QueryId::from_bytes(random.random());
        let embedding = &embeddings[random.random_range(0..embeddings.len())];
        let Ok(embedding) = Embedding::encode(Codec::I8, embedding) else { continue };
        let query: Query = Query::new(id, space, embedding, 10);
        let mut message = Vec::new();
        if ciborium::into_writer(&query, &mut message).is_err() {
            continue;
        }
        add(&tally.asked);
        let began = Instant::now();
        'asking: loop {
            memory.attempt(id);
            let options = PublishOptions::new(QoS::AtLeastOnce);
            // A queue that is full while there is no connection: the next attempt comes.
            let _ = client.try_publish(topic.as_str(), message.clone(), options);
            let give_up = Instant::now() + ATTEMPT;
            while let Ok(Some(reply)) = tokio::time::timeout_at(give_up.into(), replied.recv()).await {
                let Some((of, said)) = read(&reply) else {
                    add(&tally.refused);
                    continue;
                };
                if !memory.replied(of) {
                    add(&tally.unasked);
                }
                match said {
                    _ if of != id => {}
                    Said::Busy(wait) => {
                        add(&tally.busy);
                        tokio::time::sleep(wait.min(ATTEMPT)).await;
                        continue 'asking;
                    }
                    Said::Matches => {
                        add(&tally.answered);
                        break 'asking;
                    }
                    Said::Refused => {
                        add(&tally.refused);
                        break 'asking;
                    }
                }
            }
            if began.elapsed() > PATIENCE {
                add(&tally.lost);
                break;
            }
            add(&tally.repeats);
        }
    }
    polling.abort();
}

/// Attempts without their reply, of the last queries.
#[derive(Default)]
struct Memory {
    open: HashMap<QueryId, u32>,
    order: std::collections::VecDeque<QueryId>,
}

impl Memory {
    fn attempt(&mut self, id: QueryId) {
        if !self.open.contains_key(&id) {
            self.order.push_back(id);
            if self.order.len() > REMEMBERED {
                self.order.pop_front().map(|oldest| self.open.remove(&oldest));
            }
        }
        *self.open.entry(id).or_default() += 1;
    }

    /// Whether an attempt was waiting for this reply.
    fn replied(&mut self, id: QueryId) -> bool {
        match self.open.get_mut(&id) {
            Some(open) if *open > 0 => {
                *open -= 1;
                true
            }
            _ => false,
        }
    }
}

enum Said {
    Matches,
    Busy(Duration),
    Refused,
}

fn read(payload: &[u8]) -> Option<(QueryId, Said)> {
    if let Ok(reply) = ciborium::from_reader::<Reply, _>(payload) {
        let good =
            reply.matches.len() == 10 && reply.matches.is_sorted_by(|a, b| a.similarity >= b.similarity);
        return Some((reply.id, if good { Said::Matches } else { Said::Refused }));
    }
    let refused = ciborium::from_reader::<ErrorReply, _>(payload).ok()?;
    let said = match refused.error.code {
        ErrorCode::Busy | ErrorCode::Unavailable => {
            Said::Busy(Duration::from_millis(refused.error.retry_after_ms.unwrap_or(500).into()))
        }
        _ => Said::Refused,
    };
    Some((refused.id, said))
}

/// One after another, what clients do that mean no good or know no better, to the broker at `HOST:PORT` in the clear; `rogue` and
/// its password are a device's that is let in. Each takes a second or two. Returns how many were tried, and how often the rogue
/// got in.
pub fn misbehave(address: &str, rogue: &str, password: &str, stop: &AtomicBool) -> (u64, u64) {
    let own = |topic: &str| format!("glimpse/v1/devices/{rogue}/{topic}");
    let login = Login::of(rogue, password);
    let (mut tried, entered) = (0, AtomicU64::new(0));
    let mut silent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // The broker cuts off whoever breaks its rules: what a step does not get through is not this loop's business.
        let enter = || {
            let client = Stranger::connect(address, &login).ok().and_then(Result::ok);
            entered.fetch_add(u64::from(client.is_some()), Ordering::Relaxed);
            client
        };
        match tried % 10 {
            0 => {
                // They say nothing, and stay.
                silent.extend(stranger::tcp(address));
                silent.drain(..silent.len().saturating_sub(20));
            }
            1 => drop(Stranger::connect(address, &Login::of(rogue, "wrong"))),
            2 => {
                use std::io::Write as _;
                let _ = stranger::tcp(address).map(|mut stream| stream.write_all(&[0xff; 5000]));
            }
            3 => {
                use std::io::Write as _;
                if let Ok(mut stream) = stranger::tcp(address) {
                    for byte in login.packet().into_iter().take(10) {
                        let _ = stream.write_all(&[byte]);
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
            4 => {
                if let Some(mut client) = enter() {
                    for payload in [&b""[..], b"{", b"\xa1\x00\x01", &[0x9f; 3000], &vec![0; 100_000]] {
                        let _ = client.post(&own("query"), payload, false);
                    }
                }
            }
            5 => {
                if let Some(mut client) = enter() {
                    let _ = client.send(&packet(0x30, &vec![0x41; 3 << 20]));
                }
            }
            6 => {
                if let Some(mut client) = enter() {
                    let _ = client.post("glimpse/v1/devices/other/query", b"{}", false);
                    let _ = client.subscribe("glimpse/v1/devices/+/reply");
                }
            }
            7 => {
                // A flood, of which nobody reads the answers.
                if let Some(mut client) = enter() {
                    let _ = client.subscribe(&own("reply"));
                    for _ in 0..400 {
                        if client.post(&own("query"), br#"{"v":1}"#, false).is_err() {
                            break;
                        }
                    }
                    std::thread::sleep(Duration::from_secs(3));
                }
            }
            8 => {
                if let Some(mut client) = enter() {
                    let _ = client.post(&own("query"), b"{}", true);
                    let _ = client.post(&own("fetch"), &[0xff; 100], false);
                    let _ = client.post(&own("status"), &[0xff; 5000], true);
                }
            }
            _ => (0..5).for_each(|_| drop(enter())),
        }
        tried += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    (tried, entered.into_inner())
}

/// Resident memory of a process, in MB; `None` where it is gone.
pub fn resident_mb(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// What a megabyte series has grown by a minute: the slope of the least squares line through it.
pub fn growth_per_minute(samples: &[(f64, f64)]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let covariance: f64 = samples.iter().map(|sample| (sample.0 - x) * (sample.1 - y)).sum();
    let variance: f64 = samples.iter().map(|sample| (sample.0 - x).powi(2)).sum();
    covariance / variance.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_more_than_the_attempts_is_unasked() {
        let mut memory = Memory::default();
        let id = |n| QueryId::from_bytes([n; 16]);
        memory.attempt(id(1));
        memory.attempt(id(1));
        assert_eq!([(); 3].map(|()| memory.replied(id(1))), [true, true, false]);
        assert!(!memory.replied(id(2)));
        (2..100).for_each(|n| memory.attempt(id(n)));
        assert!(memory.open.len() <= REMEMBERED && memory.order.len() <= REMEMBERED);
    }

    #[test]
    fn growth_is_the_slope() {
        let samples: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 5.0 + 2.0 * f64::from(x))).collect();
        assert!((growth_per_minute(&samples) - 2.0).abs() < 1e-9);
    }
}
