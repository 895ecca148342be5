//! Simulated devices: a thousand real MQTT connections that ask, all in one thread, and what became of each query.
//!
//! Queries are sent in two ways. *Closed*: so many are on their way, and each reply is followed by the next query; that finds
//! out how many a second the server answers. *Open*: they are due at random moments (a Poisson process) whatever the server
//! does, and a latency counts from the moment at which its query was due, so that a server that stalls is not spared the
//! queries that nobody could send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use glimpse_protocol::{
    Codec, DeviceId, DeviceTopic, Embedding, ErrorCode, ErrorReply, Header, Query, QueryId, Reply, SpaceId,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, NetworkOptions, PublishOptions, QoS};
use tokio::sync::{mpsc, watch};

/// How long a query is waited for in the end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Matches that every query asks for.
const TOP_K: u16 = 10;

/// The largest packet that a device takes, in bytes: a long reply is a tenth of it.
const PACKET_BYTES_MAX: u32 = 256 << 10;

/// Queries of one device that the broker has not acknowledged. The client has memory for as many from the start: without a limit 6 MB,
/// and a thousand devices more than many machines have.
const UNACKNOWLEDGED_MAX: u16 = 256;

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered,
    /// The server was busy.
    Busy,
    /// It was refused for another reason: no query of ours should be.
    Refused,
}

/// A query and its first reply.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// When it was due.
    pub due: Instant,
    /// When its reply came, and what it was.
    pub reply: Option<(Instant, Outcome)>,
    /// Replies beyond the first.
    pub again: u32,
}

impl Asked {
    /// From when it was due to its reply, if that is an answer.
    pub fn latency(&self) -> Option<Duration> {
        self.reply
            .filter(|(_, outcome)| *outcome == Outcome::Answered)
            .map(|(at, _)| at.saturating_duration_since(self.due))
    }

    fn is_busy(&self) -> bool {
        self.reply.is_some_and(|(_, outcome)| outcome == Outcome::Busy)
    }
}

/// What became of the queries of one phase.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    /// Every query, in the order in which they were due.
    pub asked: Vec<Asked>,
    /// How long queries were sent.
    pub seconds: f64,
}

impl Phase {
    /// Queries that were answered, a second.
    pub fn answered_per_second(&self) -> f64 {
        self.asked.iter().filter(|one| one.latency().is_some()).count() as f64 / self.seconds
    }

    /// A quantile of the latencies of answers, in milliseconds.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        let mut all: Vec<Duration> = self.asked.iter().filter_map(Asked::latency).collect();
        all.sort_unstable();
        let place = (quantile * all.len() as f64).ceil() as usize;
        all.get(place.saturating_sub(1)).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }

    /// The share of queries that were told that the server is busy.
    pub fn busy_rate(&self) -> f64 {
        self.asked.iter().filter(|one| one.is_busy()).count() as f64 / self.asked.len().max(1) as f64
    }

    /// Queries without any reply.
    pub fn lost(&self) -> usize {
        self.asked.iter().filter(|one| one.reply.is_none()).count()
    }

    /// Replies beyond the first of their query.
    pub fn duplicated(&self) -> usize {
        self.asked.iter().map(|one| one.again as usize).sum()
    }

    /// Queries that were refused for another reason than a busy server, or answered with something else than was asked for.
    pub fn refused(&self) -> usize {
        self.asked
            .iter()
            .filter(|one| one.reply.is_some_and(|(_, outcome)| outcome == Outcome::Refused))
            .count()
    }

    /// Seconds from the first query to the last one that was not answered within `latency`.
    pub fn until_within(&self, latency: Duration) -> f64 {
        let Some(first) = self.asked.first() else { return 0.0 };
        let late = self.asked.iter().rev().find(|one| one.latency().is_none_or(|took| took > latency));
        late.map_or(0.0, |last| last.due.saturating_duration_since(first.due).as_secs_f64())
    }
}

/// Connected devices.
pub struct Fleet {
    devices: Vec<(AsyncClient, String)>,
    ledger: Arc<Ledger>,
    replied: watch::Receiver<u64>,
    space: SpaceId,
    /// Embeddings to ask with, each of the space's dimension.
    embeddings: Vec<Vec<f32>>,
    random: ChaCha8Rng,
    next: usize,
}

/// All queries that are on their way.
struct Ledger {
    asked: Mutex<HashMap<QueryId, (usize, Asked)>>,
    replies: watch::Sender<u64>,
}

impl Ledger {
    fn note(&self, payload: &[u8], at: Instant) {
        let Ok(Header { id: Some(id), .. }) = ciborium::from_reader(payload) else { return };
        // An error is short, and a reply is none.
        let error =
            (payload.len() < 400).then(|| ciborium::from_reader::<ErrorReply, _>(payload).ok()).flatten();
        let outcome = match error.map(|error| error.error.code) {
            None if self.is_good(payload) => Outcome::Answered,
            Some(ErrorCode::Busy) => Outcome::Busy,
            None | Some(_) => Outcome::Refused,
        };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, one)) = asked.get_mut(&id) {
            match one.reply {
                None => one.reply = Some((at, outcome)),
                Some(_) => one.again += 1,
            }
        }
        drop(asked);
        self.replies.send_modify(|count| *count += 1);
    }

    /// Looks into every fiftieth answer: it must have as many matches as were asked for.
    fn is_good(&self, payload: &[u8]) -> bool {
        if !self.replies.borrow().is_multiple_of(50) {
            return true;
        }
        let reply = ciborium::from_reader::<Reply, _>(payload);
        reply.is_ok_and(|reply| {
            reply.matches.len() == usize::from(TOP_K)
                && reply.matches.is_sorted_by(|a, b| a.similarity >= b.similarity)
        })
    }

    fn is_settled(&self) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.values().all(|(_, one)| one.reply.is_some())
    }

    fn take(&self, seconds: f64) -> Phase {
        let mut asked: Vec<(usize, Asked)> =
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, one)| one).collect();
        asked.sort_unstable_by_key(|(number, _)| *number);
        Phase { asked: asked.into_iter().map(|(_, one)| one).collect(), seconds }
    }
}

impl Fleet {
    /// Connects so many devices to the broker at `HOST:PORT`; they ask with `embeddings`, in turn.
    ///
    /// # Errors
    /// When one of them cannot connect or subscribe.
    pub async fn connect(
        address: &str,
        devices: usize,
        space: SpaceId,
        embeddings: Vec<Vec<f32>>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let (host, port) = address.rsplit_once(':').context("an address is HOST:PORT")?;
        let port: u16 = port.parse().context("an address is HOST:PORT")?;
        let (replies, replied) = watch::channel(0);
        let ledger = Arc::new(Ledger { asked: Mutex::default(), replies });
        let mut fleet = Self {
            devices: Vec::with_capacity(devices),
            ledger,
            replied,
            space,
            embeddings,
            random: ChaCha8Rng::seed_from_u64(seed),
            next: 0,
        };
        let (ready, mut is_ready) = mpsc::unbounded_channel();
        for number in 0..devices {
            let device = DeviceId::new(&format!("load-{number}"))?;
            let mut options = MqttOptions::new(device.as_str(), (host.to_owned(), port));
            let mut network = NetworkOptions::new();
            network.set_tcp_nodelay(true);
            options
                .set_network_options(network)
                .set_keep_alive(60)
                .set_max_packet_size(Some(PACKET_BYTES_MAX))
                .set_outgoing_inflight_upper_limit(UNACKNOWLEDGED_MAX);
            let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
            let (ledger, ready) = (fleet.ledger.clone(), ready.clone());
            let (own, reply) = (client.clone(), DeviceTopic::Reply.of(&device).as_str().to_owned());
            tokio::spawn(async move {
                loop {
                    match events.poll().await {
                        Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                            let (own, reply) = (own.clone(), reply.clone());
                            tokio::spawn(async move { own.subscribe(reply, QoS::AtLeastOnce).await });
                        }
                        Ok(Event::Incoming(Incoming::SubAck(_))) => drop(ready.send(Ok(()))),
                        Ok(Event::Incoming(Incoming::Publish(publish))) => {
                            ledger.note(&publish.payload, Instant::now());
                        }
                        Ok(_) => {}
                        Err(error) => {
                            if ready.send(Err(error.to_string())).is_err() {
                                tokio::time::sleep(Duration::from_millis(200)).await;
                            }
                        }
                    }
                }
            });
            fleet.devices.push((client, DeviceTopic::Query.of(&device).as_str().to_owned()));
            // Not all at once: a broker takes so many handshakes at a time.
            while fleet.devices.len() - fleet.next > 100 {
                fleet.one_ready(&mut is_ready).await?;
            }
        }
        while fleet.next < devices {
            fleet.one_ready(&mut is_ready).await?;
        }
        fleet.next = 0;
        Ok(fleet)
    }

    async fn one_ready(
        &mut self,
        ready: &mut mpsc::UnboundedReceiver<Result<(), String>>,
    ) -> anyhow::Result<()> {
        let one = tokio::time::timeout(PATIENCE, ready.recv()).await.context("the broker does not answer")?;
        if let Some(Err(error)) = one {
            anyhow::bail!("a device cannot connect: {error}");
        }
        self.next += 1;
        Ok(())
    }

    /// Keeps so many queries on their way for so long.
    ///
    /// # Errors
    /// When a query cannot be sent.
    pub async fn closed(&mut self, on_their_way: usize, time: Duration) -> anyhow::Result<Phase> {
        let started = Instant::now();
        let before = *self.replied.borrow_and_update();
        let mut sent = 0_u64;
        while started.elapsed() < time {
            let answered = *self.replied.borrow_and_update() - before;
            while sent < answered + on_their_way as u64 {
                self.ask(sent as usize, Instant::now())?;
                sent += 1;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), self.replied.changed()).await;
        }
        let seconds = started.elapsed().as_secs_f64();
        self.settle(seconds).await
    }

    /// Asks at random moments, in phases that follow one another without a pause: so many times a second on average, for so long.
    ///
    /// # Errors
    /// When a query cannot be sent.
    pub async fn open(&mut self, phases: &[(f64, Duration)]) -> anyhow::Result<Vec<Phase>> {
        let mut start = Instant::now();
        let mut sent = 0;
        let mut ends = Vec::with_capacity(phases.len());
        for (per_second, time) in phases {
            let mut due = start;
            loop {
                let gap = -(1.0 - self.random.random::<f64>()).ln() / per_second;
                due += Duration::from_secs_f64(gap);
                if due.saturating_duration_since(start) >= *time {
                    break;
                }
                if due > Instant::now() {
                    tokio::time::sleep_until(due.into()).await;
                } else if sent % 32 == 0 {
                    tokio::task::yield_now().await;
                }
                self.ask(sent, due)?;
                sent += 1;
            }
            start += *time;
            ends.push(sent);
        }
        let all = self.settle(0.0).await?.asked;
        let mut from = 0;
        let part = |(end, (_, time)): (usize, &(f64, Duration))| {
            let asked = all[from..end].to_vec();
            from = end;
            Phase { asked, seconds: time.as_secs_f64() }
        };
        Ok(ends.into_iter().zip(phases).map(part).collect())
    }

    async fn settle(&mut self, seconds: f64) -> anyhow::Result<Phase> {
        let until = Instant::now() + PATIENCE;
        while !self.ledger.is_settled() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A second reply would come soon after the first.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(self.ledger.take(seconds))
    }

    fn ask(&mut self, number: usize, due: Instant) -> anyhow::Result<()> {
        ensure!(!self.embeddings.is_empty(), "something to ask with");
        let (client, topic) = &self.devices[self.next % self.devices.len()];
        let embedding = Embedding::encode(Codec::I8, &self.embeddings[self.next % self.embeddings.len()])?;
        self.next += 1;
        let id = QueryId::from_bytes(self.random.random());
        let query: Query = Query::new(id, self.space, embedding, TOP_K);
        let mut payload = Vec::new();
        ciborium::into_writer(&query, &mut payload)?;
        let one = Asked { due, reply: None, again: 0 };
        self.ledger.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (number, one));
        client
            .try_publish(topic.as_str(), payload, PublishOptions::new(QoS::AtLeastOnce))
            .context("a device has more queries on their way than it can hold")
    }
}
