//! New query networks from the server: judged by an operator's signature, fetched in chunks, tested, run on trial, and
//! kept or given up. The messages are [`glimpse_protocol::model`]'s, what lies on the disk is [`slots`]'s.
//!
//! A thread of its own listens and writes, so that neither the camera nor the connection waits for a disk. A network
//! goes through these states, which the device tells in its status:
//!
//! 1. *receiving*: an offer is signed by the right key, newer than all before, and of this device's space. Chunks are
//!    asked for a window at a time, and again where they do not come; each is kept only with the digest that was signed.
//! 2. *trial*: the whole file has its hash, loads, and gives the embeddings for the test photos that it gave where it
//!    was made. It runs now, without a restart.
//! 3. *settled*: the server has answered a query that it embedded. Or *failed*: it could not be used, the server
//!    refuses its embeddings, or the device did not stay up with it; then the network before runs again.
//!
//! A network may do anything when it is run for the first time, up to ending the process. So a failure is written down
//! before the test, and taken back after it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use glimpse_embedder::Threads;
use glimpse_protocol::device::Updates;
use glimpse_protocol::model::{Chunk, FETCH_CHUNKS_MAX, Fetch, Manifest, Offer, signed};
use glimpse_protocol::{
    Codec, EMBEDDING_BYTES_MAX, Embedding, ModelId, ModelKey, Update, UpdateState, VERSION,
};
use ring::signature::{ED25519, UnparsedPublicKey};
use thiserror::Error;

use self::slots::{Incoming, Put, Slots, SlotsError};
use super::model::{Described, ModelFiles, QueryModel, QueryModelError, model_id};
use super::mqtt::{self, Link, Presence};
use super::output::chain;
use crate::ports::Embedder as _;

pub mod slots;

/// Chunks that are asked for at once: with the largest, 256 KiB in flight.
const WINDOW: usize = 8;
const _: () = assert!(WINDOW <= FETCH_CHUNKS_MAX as usize);

/// How long chunks are waited for before they are asked for again; twice as long each time that none came.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

/// How long a network is asked for of which nothing comes. What is there of it stays, for when it is offered again.
const GIVE_UP_AFTER: Duration = Duration::from_mins(10);

/// How often the progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A network on trial that has embedded a photo, so long after its start, does not keep the device from staying up.
pub const STANDS_AFTER: Duration = Duration::from_mins(1);

/// Messages between the connection and this thread. The broker's come again where there is no room.
const HEARD: usize = 32;

/// Why there are no networks from the server.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// The folder.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// The network of the configuration.
    #[error(transparent)]
    Model(#[from] QueryModelError),
    /// The system gives no thread.
    #[error("cannot start the thread of updates")]
    Thread(#[source] std::io::Error),
}

/// What this thread is told.
enum Heard {
    /// On the device's model topic.
    Message(Vec<u8>),
    /// This network embedded a photo.
    Embedded(ModelId),
    /// The server answered a query that this network embedded.
    Answered(ModelId),
    /// The server refuses the embeddings of this network, or it gives none.
    Refused(ModelId, String),
    Stop,
}

/// What tells the updater's thread, and where its networks are taken from. Without updates it does nothing.
#[derive(Clone, Default)]
pub struct Updating {
    heard: Option<SyncSender<Heard>>,
    next: Arc<Mutex<Option<QueryModel>>>,
}

impl fmt::Debug for Updating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updating").field("is_heard", &self.heard.is_some()).finish_non_exhaustive()
    }
}

impl Updating {
    /// Both ends. While nobody listens, what is said is forgotten.
    pub fn channel() -> (Self, Listening) {
        let (heard, listening) = sync_channel(HEARD);
        (Self { heard: Some(heard), next: Arc::default() }, Listening(listening))
    }

    /// A message on the device's model topic.
    pub fn message(&self, payload: &[u8]) {
        self.tell(Heard::Message(payload.to_vec()));
    }

    /// This network embedded a photo.
    pub fn embedded(&self, model: ModelId) {
        self.tell(Heard::Embedded(model));
    }

    /// The server answered a query that this network embedded.
    pub fn answered(&self, model: ModelId) {
        self.tell(Heard::Answered(model));
    }

    /// The network's embeddings are refused, or there are none.
    pub fn refused(&self, model: ModelId, reason: &str) {
        self.tell(Heard::Refused(model, reason.to_owned()));
    }

    /// The network to run from now on, where it is another one.
    pub fn next(&self) -> Option<QueryModel> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets the thread end.
    pub fn stop(&self) {
        self.tell(Heard::Stop);
    }

    fn tell(&self, heard: Heard) {
        if let Some(channel) = &self.heard {
            // Full: whatever it is, it comes again.
            let _ = channel.try_send(heard);
        }
    }
}

/// The network to start with, and what the device says of it; the updates wait for the connection. `home` is the
/// network of `files`.
///
/// # Errors
/// A folder that another program uses, and no network that can be used, that of the configuration neither.
pub fn start(
    files: &ModelFiles,
    home: Described,
    updates: &Updates,
) -> Result<(QueryModel, Updater), UpdateError> {
    let mut slots = Slots::open(&updates.state, home.id)?;
    let running = choose(files, &home, &mut slots)?;
    let updater = Updater {
        key: updates.key,
        files: files.clone(),
        home,
        running: running.id(),
        receiving: None,
        refused: None,
        told: None,
        untold: false,
        started: Instant::now(),
        has_embedded: false,
        goes_back: false,
        slots,
    };
    Ok((running, updater))
}

/// The network that the slots say, as far as it can be used, or that of the configuration, which is loaded only then: a
/// small device has no memory for both.
fn choose(files: &ModelFiles, home: &Described, slots: &mut Slots) -> Result<QueryModel, QueryModelError> {
    while let Some((model, path, on_trial)) = slots.begin() {
        match load(&path, model, home, files.threads) {
            Ok(loaded) => return Ok(loaded),
            Err(reason) if on_trial => slots.roll_back(&reason),
            Err(reason) => {
                tracing::warn!(%model, "the network from the server cannot be used any more: {reason}");
                slots.give_up_current(&reason);
            }
        }
    }
    QueryModel::load(files)
}

/// Loads a network that is to be this one, of this space.
fn load(path: &Path, model: ModelId, home: &Described, threads: Threads) -> Result<QueryModel, String> {
    let found = model_id(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if found != model {
        return Err(format!("{} is not the network that was signed", path.display()));
    }
    let loaded = QueryModel::load_file(path, threads).map_err(|error| chain(&error))?;
    if (loaded.space(), loaded.dimension()) != (home.space, home.dimension) {
        return Err(format!("it lives in the space {}, and this device in {}", loaded.space(), home.space));
    }
    Ok(loaded)
}

/// A network that comes in.
struct Receiving {
    manifest: Manifest,
    incoming: Incoming,
    /// Asked for, and not there.
    window: heapless::Vec<u32, WINDOW>,
    asked: Instant,
    wait: Duration,
    /// When the last chunk came that was missing.
    heard: Instant,
    /// Whether a chunk came that was not what was signed: told once.
    has_wrong: bool,
}

impl Receiving {
    /// Since it was asked for chunks, or one came.
    fn quiet_for(&self) -> Duration {
        self.asked.max(self.heard).elapsed()
    }
}

/// What the thread knows.
pub struct Updater {
    key: ModelKey,
    files: ModelFiles,
    /// The network of the configuration: of its space are all that run here.
    home: Described,
    running: ModelId,
    receiving: Option<Receiving>,
    /// An offer that was not taken up, for the status. Where it was not signed, its serial number is not to be trusted.
    refused: Option<Update>,
    /// When the progress was told last.
    told: Option<Instant>,
    /// Something that could not be told.
    untold: bool,
    /// When the network that runs was started, and whether it has embedded a photo since.
    started: Instant,
    has_embedded: bool,
    /// The network that runs was given up, and the one before is not loaded yet.
    goes_back: bool,
    slots: Slots,
}

impl Updater {
    /// What the device says of its networks.
    pub fn presence(&self) -> Presence {
        Presence { model: Some(self.running), update: Some(self.update()) }
    }

    fn update(&self) -> Update {
        let with =
            |serial, state, percent| Update { serial, state, percent, reason: heapless::String::new() };
        if let Some(Receiving { manifest, incoming, .. }) = &self.receiving {
            return with(manifest.serial, UpdateState::Receiving, incoming.percent());
        }
        if let Some(serial) = self.slots.on_trial() {
            return with(serial, UpdateState::Trial, 100);
        }
        if let Some(refused) = &self.refused {
            return refused.clone();
        }
        let settled = || with(self.slots.serial(), UpdateState::Settled, 0);
        self.slots.failed().map_or_else(settled, |(serial, reason)| Update::failed(serial, reason))
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(self, updating: &Updating, listening: Listening, link: Link) -> Result<(), UpdateError> {
        let thread = Thread { updater: self, link, next: updating.next.clone() };
        thread::Builder::new()
            .name("updates".to_owned())
            .spawn(move || thread.run(&listening.0))
            .map_err(UpdateError::Thread)?;
        Ok(())
    }

    /// What an offer is worth; a sentence where it is nothing.
    fn judge(&self, offer: &Offer) -> Result<Manifest, Refusal> {
        UnparsedPublicKey::new(&ED25519, self.key.as_bytes())
            .verify(&signed(&offer.manifest), &offer.signature.0)
            .map_err(|_| {
                Refusal::NotSigned(mqtt::from_cbor(&offer.manifest).map_or(0, |it: Manifest| it.serial))
            })?;
        let manifest: Manifest =
            mqtt::from_cbor(&offer.manifest).map_err(|_| Refusal::Nothing("it is no manifest"))?;
        if manifest.serial <= self.slots.serial() {
            return Err(Refusal::Nothing("it is not newer than what was offered before"));
        }
        let serial = manifest.serial;
        manifest.check().map_err(|error| Refusal::Final(serial, error.to_string()))?;
        if (manifest.space, manifest.dimension()) != (self.home.space, self.home.dimension) {
            let reason =
                format!("it lives in the space {}, and this device in {}", manifest.space, self.home.space);
            return Err(Refusal::Final(serial, reason));
        }
        Ok(manifest)
    }
}

/// Why an offer is not taken up.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Passed over.
    Nothing(&'static str),
    /// The key of the configuration did not sign it. It says that its serial number is this.
    NotSigned(u64),
    /// It is signed, and cannot be used.
    Final(u64, String),
}

/// The other end of [`Updating`].
pub struct Listening(Receiver<Heard>);

struct Thread {
    updater: Updater,
    link: Link,
    next: Arc<Mutex<Option<QueryModel>>>,
}

impl Thread {
    fn run(mut self, heard: &Receiver<Heard>) {
        loop {
            match heard.recv_timeout(self.wait()) {
                Ok(Heard::Message(payload)) => self.message(&payload),
                Ok(Heard::Embedded(model)) => self.updater.has_embedded |= model == self.updater.running,
                Ok(Heard::Answered(model)) => self.answered(model),
                Ok(Heard::Refused(model, reason)) => self.refused(model, &reason),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Heard::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    // A program that ends in order stayed up.
                    return self.updater.slots.stands();
                }
            }
            self.due();
        }
    }

    /// Until something is to be done.
    fn wait(&self) -> Duration {
        let Updater { receiving, slots, started, goes_back, untold, .. } = &self.updater;
        let again = receiving.as_ref().map(|receiving| receiving.wait.saturating_sub(receiving.quiet_for()));
        let stands = slots.on_trial().map(|_| STANDS_AFTER.saturating_sub(started.elapsed()));
        let stands = stands.filter(|left| !left.is_zero());
        let soon = (*goes_back || *untold).then_some(TELL_EVERY);
        let longest = Duration::from_mins(10);
        again.into_iter().chain(stands).chain(soon).min().unwrap_or(longest).max(Duration::from_millis(10))
    }

    fn due(&mut self) {
        let updater = &mut self.updater;
        let stands = updater.has_embedded && updater.started.elapsed() >= STANDS_AFTER;
        if stands {
            updater.slots.stands();
        }
        if updater.goes_back {
            self.go_back();
        }
        if self.updater.untold {
            self.tell();
        }
        let Some(receiving) = &mut self.updater.receiving else { return };
        if receiving.quiet_for() < receiving.wait {
            return;
        }
        if receiving.heard.elapsed() >= GIVE_UP_AFTER {
            tracing::warn!(model = %receiving.manifest.model, "nothing of the network comes: waiting until it is offered again");
            self.updater.receiving = None;
            return self.tell();
        }
        receiving.wait = (receiving.wait * 2).min(RETRY.1);
        self.ask();
    }

    fn message(&mut self, payload: &[u8]) {
        if let Ok(chunk) = mqtt::from_cbor::<Chunk>(payload) {
            return self.chunk(&chunk);
        }
        match mqtt::from_cbor::<Offer>(payload) {
            Ok(offer) if offer.v == VERSION => self.offer(&offer),
            Ok(offer) => {
                tracing::warn!(
                    "an offer of a network has version {}, and this program reads {VERSION}",
                    offer.v
                );
            }
            Err(reason) => tracing::warn!(%reason, "a message on the model topic cannot be read"),
        }
    }

    fn offer(&mut self, offer: &Offer) {
        let manifest = match self.updater.judge(offer) {
            Ok(manifest) => manifest,
            Err(Refusal::Nothing(reason)) => {
                return tracing::debug!("an offer of a network was passed over: {reason}");
            }
            Err(Refusal::NotSigned(serial)) => {
                let reason =
                    "it is not signed with the key that this device's configuration names (model_key)";
                tracing::warn!("refused the offer of a network: {reason}");
                if self.updater.receiving.is_none() {
                    self.updater.refused = Some(Update::failed(serial, reason));
                    self.tell();
                }
                return;
            }
            Err(Refusal::Final(serial, reason)) => return self.failed(serial, &reason),
        };
        self.updater.refused = None;
        if self.updater.receiving.as_ref().is_some_and(|now| now.manifest.serial >= manifest.serial) {
            return;
        }
        if manifest.model == self.updater.running {
            self.updater.receiving = None;
            self.updater.slots.close(manifest.serial, None);
            return self.tell();
        }
        tracing::info!(model = %manifest.model, bytes = manifest.bytes, "the server offers another network");
        let incoming = match self.updater.slots.incoming(&manifest) {
            Ok(incoming) => incoming,
            Err(error) => return self.failed(manifest.serial, &chain(&error)),
        };
        let (now, window) = (Instant::now(), heapless::Vec::new());
        let (wait, has_wrong) = (RETRY.0, false);
        let receiving = Receiving { manifest, incoming, window, asked: now, wait, heard: now, has_wrong };
        self.updater.receiving = Some(receiving);
        self.tell();
        self.go_on();
    }

    fn chunk(&mut self, chunk: &Chunk) {
        let Some(receiving) = &mut self.updater.receiving else { return };
        if chunk.model != receiving.manifest.model {
            return;
        }
        match receiving.incoming.put(&receiving.manifest, chunk.chunk, &chunk.bytes) {
            Ok(Put::New) => {}
            Ok(Put::Known) => return,
            Ok(Put::Wrong) => {
                if !receiving.has_wrong {
                    tracing::warn!(
                        chunk = chunk.chunk,
                        "a chunk is not what was signed, and is asked for again"
                    );
                }
                receiving.has_wrong = true;
                return;
            }
            Err(source) => {
                let (serial, error) = (receiving.manifest.serial, self.updater.slots.error(source));
                return self.failed(serial, &chain(&error));
            }
        }
        receiving.heard = Instant::now();
        receiving.wait = RETRY.0;
        receiving.window.retain(|wanted| *wanted != chunk.chunk);
        if !receiving.window.is_empty() {
            return;
        }
        if self.updater.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.tell();
        }
        self.go_on();
    }

    /// Asks for the next window, or puts the whole network to the test.
    fn go_on(&mut self) {
        let Some(receiving) = &self.updater.receiving else { return };
        if receiving.incoming.missing().next().is_some() {
            return self.ask();
        }
        let Some(Receiving { manifest, incoming, .. }) = self.updater.receiving.take() else { return };
        // Taken back by `install`, if it comes to that.
        self.updater.slots.close(manifest.serial, Some("the program ended while it tested the network"));
        let tested = catch_unwind(AssertUnwindSafe(|| self.updater.tested(&manifest, incoming.path())));
        let model = match tested.unwrap_or_else(|_| Err("the engine gave up on it".to_owned())) {
            Ok(model) => model,
            Err(reason) => return self.failed(manifest.serial, &reason),
        };
        if let Err(error) = self.updater.slots.install(incoming, &manifest) {
            return self.failed(manifest.serial, &chain(&error));
        }
        tracing::info!(model = %manifest.model, "the network passed its test, and runs on trial");
        self.run_from_now_on(model);
    }

    fn ask(&mut self) {
        let Some(receiving) = &mut self.updater.receiving else { return };
        receiving.window = receiving.incoming.missing().take(WINDOW).collect();
        receiving.asked = Instant::now();
        let chunks = receiving.window.iter().copied().collect();
        let fetch = Fetch { v: VERSION, model: receiving.manifest.model, chunks };
        if let Err(error) = self.link.fetch(&fetch) {
            tracing::debug!(%error, "chunks were not asked for, and will be");
        }
    }

    fn answered(&mut self, model: ModelId) {
        if model == self.updater.running && self.updater.slots.on_trial().is_some() {
            self.updater.slots.keep();
            tracing::info!(%model, "the server answers this network's queries: it is kept");
            self.tell();
        }
    }

    fn refused(&mut self, model: ModelId, reason: &str) {
        if model == self.updater.running && self.updater.slots.on_trial().is_some() {
            self.updater.slots.roll_back(reason);
            self.go_back();
        }
    }

    /// Loads what runs where nothing is on trial; where that fails it is tried again.
    fn go_back(&mut self) {
        let Updater { files, home, slots, .. } = &mut self.updater;
        match choose(files, home, slots) {
            Ok(before) => self.run_from_now_on(before),
            Err(error) => {
                if !self.updater.goes_back {
                    tracing::error!(
                        error = chain(&error),
                        "the network before cannot be loaded: trying again"
                    );
                }
                self.updater.goes_back = true;
            }
        }
    }

    fn failed(&mut self, serial: u64, reason: &str) {
        tracing::warn!("the network that the server offers cannot be used: {reason}");
        self.updater.receiving = None;
        self.updater.refused = None;
        self.updater.slots.close(serial, Some(reason));
        self.tell();
    }

    fn run_from_now_on(&mut self, model: QueryModel) {
        self.updater.running = model.id();
        self.updater.started = Instant::now();
        (self.updater.has_embedded, self.updater.goes_back) = (false, false);
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(model);
        self.tell();
    }

    fn tell(&mut self) {
        self.updater.told = Some(Instant::now());
        let told = self.link.tell(self.updater.presence());
        self.updater.untold = told.is_err();
    }
}

impl Updater {
    /// The network of a file that came in, if it is what was signed and does what it should.
    fn tested(&self, manifest: &Manifest, path: &Path) -> Result<QueryModel, String> {
        let expected = expected(manifest).ok_or("its manifest has no embeddings of test photos")?;
        let model = load(path, manifest.model, &self.home, self.files.threads)?;
        model.self_test(&expected).map_err(|error| chain(&error))?;
        Ok(model)
    }
}

/// The embeddings of the test photos, `[photos, dimension]`.
fn expected(manifest: &Manifest) -> Option<Vec<f32>> {
    let dimension = manifest.dimension();
    let mut all = vec![0.0; dimension * usize::from(manifest.test_photos)];
    for (row, bytes) in all.chunks_mut(dimension).zip(manifest.test_embeddings.chunks(2 * dimension)) {
        let bytes = heapless::Vec::from_slice(bytes).ok()?;
        let embedding = Embedding::<EMBEDDING_BYTES_MAX> { codec: Codec::F16, bytes };
        embedding.decode_into(row).ok()?;
    }
    Some(all)
}

#[cfg(test)]
mod tests;
