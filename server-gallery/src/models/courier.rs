//! What a running server does about roll-outs: offers to devices that say what they run, and chunks to those that ask.
//!
//! Each second it looks at the list of roll-outs, the registry's groups and what the devices said last. A device that
//! is online, takes networks and runs another one than the newest roll-out for it says, is offered that: so many at a
//! time, and again after a while where it did not take the offer up. Where a roll-out fails on several devices, and on
//! more than it succeeds on, it is offered to no further one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use glimpse_protocol::model::{Chunk, Fetch, Manifest};
use glimpse_protocol::{DeviceId, DeviceTopic, UpdateState, VERSION};
use rumqttc::{AsyncClient, PublishOptions, PublishProperties, QoS};
use tokio::sync::mpsc;

use super::folder::Folder;
use super::{Counts, Progress, Rollout};
use crate::access::Registry;
use crate::access::file::{self, REGISTRY};
use crate::matcher::Encoding;
use crate::monitor::{DEVICES_MAX, Device, Monitor};

/// How often devices and roll-outs are compared.
const EVERY: Duration = Duration::from_secs(1);

/// How long a device has to take an offer up before another one has its place, and it is offered again: twice as long
/// each time, so that devices that never react keep nobody waiting.
const OFFER_AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_hours(1));

/// Devices that receive a network at once. The others wait, so that the first failures are seen before all have it.
const RECEIVING_MAX: usize = 32;

/// A roll-out that failed on so many devices, and on more than it succeeded on, is halted.
const FAILED_MIN: u32 = 3;

/// Bytes of chunks a second, to all devices together: replies to queries share their way.
const BYTES_PER_SECOND: f64 = (8 << 20) as f64;

/// Requests for chunks that wait; devices repeat those that find no place.
const FETCHES_WAITING_MAX: usize = 256;

/// A chunk that has not reached its device by then is asked for again.
const CHUNK_EXPIRY_S: u32 = 30;

/// Roll-outs of a gallery, as far as they can be served.
#[derive(Default)]
struct Known {
    active: Vec<Active>,
    groups: HashMap<DeviceId, String>,
}

/// A roll-out with what is sent of it.
#[derive(Clone)]
struct Active {
    rollout: Rollout,
    offer: Vec<u8>,
    manifest: Arc<Manifest>,
}

impl Known {
    /// The newest roll-out for a device that was not stopped.
    fn newest(&self, device: &DeviceId) -> Option<&Active> {
        let group = self.groups.get(device).map(String::as_str);
        let going_on = |active: &&Active| active.rollout.stopped.is_none();
        self.active.iter().rev().filter(going_on).find(|active| active.rollout.to.is_for(device, group))
    }
}

/// When a file was changed, and how large it is: enough to see that it is another, since ours are replaced whole.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The two files, and what was read of them.
struct Source {
    folder: Folder,
    access: PathBuf,
    seen: Option<(Stamp, Stamp)>,
    /// What was told.
    troubles: Vec<String>,
    known: Arc<Mutex<Arc<Known>>>,
}

impl Source {
    /// Reads what has changed. What cannot be read is told once, and read again; what was read before goes on.
    fn refresh(&mut self) {
        let now = (stamp(&self.folder.list_file()), stamp(&self.access.join(REGISTRY)));
        if self.seen == Some(now) {
            return;
        }
        let before = current(&self.known);
        let mut troubles = Vec::new();
        let active = self.active(&before, &mut troubles);
        let groups = match file::load(&self.access) {
            Ok(None) if !before.groups.is_empty() => {
                troubles.push(
                    "the registry of devices is gone: roll-outs go by the groups read before".to_owned(),
                );
                before.groups.clone()
            }
            Ok(registry) => registry
                .iter()
                .flat_map(Registry::devices)
                .filter_map(|(device, known)| Some((device.clone(), known.group.clone()?)))
                .collect(),
            Err(error) => {
                troubles.push(format!("the groups of devices cannot be read: {}", chain(&error)));
                before.groups.clone()
            }
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Known { active, groups });
        self.seen = troubles.is_empty().then_some(now);
        if self.troubles != troubles {
            troubles.iter().for_each(|trouble| tracing::error!("roll-outs of networks: {trouble}"));
            self.troubles = troubles;
        }
    }

    fn active(&self, before: &Known, troubles: &mut Vec<String>) -> Vec<Active> {
        let list = match self.folder.list() {
            Ok(list) => list,
            Err(error) => {
                troubles.push(chain(&error));
                return before.active.clone();
            }
        };
        let mut active = Vec::new();
        for rollout in list {
            if let Some(same) = before.active.iter().find(|known| known.rollout.serial == rollout.serial) {
                active.push(Active { rollout, ..same.clone() });
                continue;
            }
            match self.folder.offer(&rollout) {
                Ok((offer, manifest)) => {
                    tracing::info!(model = %rollout.model, to = %rollout.to, name = rollout.name, "rolling out a network");
                    active.push(Active { rollout, offer, manifest: Arc::new(manifest) });
                }
                Err(error) => troubles.push(chain(&error)),
            }
        }
        active
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn current(known: &Mutex<Arc<Known>>) -> Arc<Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

type Waiting = Arc<Mutex<HashSet<DeviceId>>>;

/// Serves the roll-outs of one gallery, until it is dropped.
pub struct Courier {
    fetches: mpsc::Sender<(DeviceId, Fetch)>,
    /// Devices whose request waits: one has one.
    waiting: Waiting,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Courier {
    /// Begins to offer the roll-outs in the gallery's folder by this client, to the devices that the monitor hears of
    /// and that the registry in `access` has in their groups.
    pub fn start(gallery: &Path, access: &Path, client: AsyncClient, monitor: Arc<Monitor>) -> Self {
        let known = Arc::<Mutex<Arc<Known>>>::default();
        let folder = Folder::of_gallery(gallery);
        let source = Source {
            folder: folder.clone(),
            access: access.to_owned(),
            seen: None,
            troubles: Vec::new(),
            known: known.clone(),
        };
        let (fetches, asked) = mpsc::channel(FETCHES_WAITING_MAX);
        let offering = tokio::spawn(offer(client.clone(), monitor, source));
        let waiting = Waiting::default();
        let sending = tokio::spawn(send(client, known, folder, asked, waiting.clone()));
        Self { fetches, waiting, tasks: [offering, sending] }
    }

    /// A device asks for chunks. Where too many ask it is passed over, and asks again.
    pub fn fetch(&self, device: DeviceId, payload: &[u8]) {
        match Encoding::Cbor.read::<Fetch>(payload) {
            Ok(fetch) if fetch.v == VERSION => {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.contains(&device) && self.fetches.try_send((device.clone(), fetch)).is_ok() {
                    waiting.insert(device);
                }
            }
            Ok(fetch) => tracing::debug!(%device, version = fetch.v, "passed over a request for chunks"),
            Err(reason) => tracing::debug!(%device, reason, "passed over a request for chunks"),
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn offer(client: AsyncClient, monitor: Arc<Monitor>, mut source: Source) {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut desk = Desk::default();
    loop {
        due.tick().await;
        let refreshed = tokio::task::spawn_blocking(move || {
            source.refresh();
            source
        });
        source = match refreshed.await {
            Ok(source) => source,
            Err(error) => {
                tracing::error!(%error, "roll-outs have ended: see the panic above, and report it");
                return;
            }
        };
        let known = current(&source.known);
        if known.active.is_empty() && desk.offered.is_empty() {
            monitor.set_rollouts(Vec::new());
            continue;
        }
        let (progress, offers) = desk.plan(&known, &monitor.devices(), Instant::now());
        monitor.set_rollouts(progress);
        if !monitor.subscribed() {
            continue;
        }
        for (device, payload) in offers {
            let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties(None));
            let topic = DeviceTopic::Model.of(&device);
            if let Err(error) = client.publish(topic.as_str(), payload, options).await {
                tracing::warn!(%device, %error, "could not offer a network");
            }
        }
    }
}

fn properties(expiry_s: Option<u32>) -> PublishProperties {
    PublishProperties {
        content_type: Some(Encoding::Cbor.content_type().to_owned()),
        message_expiry_interval: expiry_s,
        ..PublishProperties::default()
    }
}

/// What was offered to whom.
#[derive(Default)]
struct Desk {
    offered: HashMap<DeviceId, Offered>,
    halted: Vec<u64>,
}

/// The last offer to a device.
struct Offered {
    serial: u64,
    at: Instant,
    /// How often it was made.
    times: u32,
}

impl Offered {
    fn is_due_again(&self, now: Instant) -> bool {
        let (first, longest) = OFFER_AGAIN_AFTER;
        let wait = first.saturating_mul(1 << (self.times - 1).min(16)).min(longest);
        now.saturating_duration_since(self.at) >= wait
    }

    /// It may still be taken up.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < OFFER_AGAIN_AFTER.0
    }
}

/// What a roll-out has come to on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Receiving,
    Trial,
    Done,
    Failed,
    Unable,
}

impl Stage {
    fn of(device: &Device, rollout: &Rollout) -> Self {
        let Some(update) = &device.update else { return Self::Unable };
        let of_this = update.serial == rollout.serial;
        match update.state {
            UpdateState::Failed if of_this => Self::Failed,
            UpdateState::Receiving if of_this => Self::Receiving,
            UpdateState::Trial if device.model == Some(rollout.model) => Self::Trial,
            _ if device.model == Some(rollout.model) => Self::Done,
            // It has taken up a later one, which was stopped since, or somebody gave it another by hand.
            UpdateState::Settled if update.serial >= rollout.serial => Self::Unable,
            _ => Self::Waiting,
        }
    }
}

impl Counts {
    fn add(&mut self, stage: Stage) {
        let count = match stage {
            Stage::Waiting => &mut self.waiting,
            Stage::Receiving => &mut self.receiving,
            Stage::Trial => &mut self.trial,
            Stage::Done => &mut self.done,
            Stage::Failed => &mut self.failed,
            Stage::Unable => &mut self.unable,
        };
        *count += 1;
    }
}

impl Desk {
    /// How far each roll-out has come, and who is to be offered what now.
    fn plan(
        &mut self,
        known: &Known,
        devices: &[(DeviceId, Device)],
        now: Instant,
    ) -> (Vec<Progress>, Vec<(DeviceId, Vec<u8>)>) {
        let mut counts: HashMap<u64, Counts> = HashMap::new();
        let mut stages = Vec::new();
        for (id, device) in devices {
            let Some(active) = known.newest(id) else { continue };
            let stage = Stage::of(device, &active.rollout);
            counts.entry(active.rollout.serial).or_default().add(stage);
            stages.push((id, device, active, stage));
        }
        let halted =
            |counts: &Counts| counts.failed >= FAILED_MIN && counts.failed > counts.done + counts.trial;
        let progress: Vec<Progress> = known
            .active
            .iter()
            .map(|active| {
                let devices = counts.get(&active.rollout.serial).copied().unwrap_or_default();
                Progress { rollout: active.rollout.clone(), halted: halted(&devices), devices }
            })
            .collect();
        for halted in progress.iter().filter(|progress| progress.halted) {
            if !self.halted.contains(&halted.rollout.serial) {
                tracing::error!(
                    model = %halted.rollout.model, to = %halted.rollout.to, failed = halted.devices.failed,
                    "halted a roll-out, which fails on most devices: see why in the console, and push another network"
                );
            }
        }
        self.halted = progress.iter().filter(|it| it.halted).map(|it| it.rollout.serial).collect();
        (progress, self.offers(&stages, now))
    }

    fn offers(
        &mut self,
        stages: &[(&DeviceId, &Device, &Active, Stage)],
        now: Instant,
    ) -> Vec<(DeviceId, Vec<u8>)> {
        // What nobody was offered for long is forgotten.
        self.offered.retain(|_, offered| now.saturating_duration_since(offered.at) < 2 * OFFER_AGAIN_AFTER.1);
        let offered_this = |desk: &Self, id: &DeviceId, serial: u64, holds: &dyn Fn(&Offered) -> bool| {
            desk.offered.get(id).is_some_and(|offered| offered.serial == serial && holds(offered))
        };
        // A device that was offered a network and has not said what it does about it takes a place too.
        let busy = stages.iter().filter(|(id, device, active, stage)| match stage {
            Stage::Receiving => device.online == Some(true),
            Stage::Waiting => offered_this(self, id, active.rollout.serial, &|offered| offered.is_fresh(now)),
            _ => false,
        });
        let mut places = RECEIVING_MAX.saturating_sub(busy.count());
        let mut offers = Vec::new();
        // Who was never offered it comes first, then who was longest ago.
        let mut stages: Vec<_> = stages.iter().collect();
        stages.sort_by_key(|(id, ..)| self.offered.get(*id).map(|offered| offered.at));
        for (id, device, active, stage) in stages {
            let serial = active.rollout.serial;
            let is_due = *stage == Stage::Waiting
                && device.online == Some(true)
                && !self.halted.contains(&serial)
                && !offered_this(self, id, serial, &|offered| !offered.is_due_again(now));
            if is_due && places > 0 && self.offered.len() < DEVICES_MAX {
                places -= 1;
                let before = self.offered.get(*id).filter(|offered| offered.serial == serial);
                let times = before.map_or(1, |offered| offered.times.saturating_add(1));
                self.offered.insert((*id).clone(), Offered { serial, at: now, times });
                offers.push(((*id).clone(), active.offer.clone()));
            }
        }
        offers
    }
}

/// Sends the chunks that are asked for, no faster than agreed.
async fn send(
    client: AsyncClient,
    known: Arc<Mutex<Arc<Known>>>,
    folder: Folder,
    mut asked: mpsc::Receiver<(DeviceId, Fetch)>,
    waiting: Waiting,
) {
    let mut due = tokio::time::Instant::now();
    while let Some((device, fetch)) = asked.recv().await {
        waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
        let known = current(&known);
        let Some(active) = known.newest(&device).filter(|active| active.rollout.model == fetch.model) else {
            tracing::debug!(%device, model = %fetch.model, "passed over a request for a network that is not for this device");
            continue;
        };
        let (folder, manifest) = (folder.clone(), active.manifest.clone());
        let read = tokio::task::spawn_blocking(move || read_chunks(&folder, &manifest, &fetch)).await;
        let chunks = match read {
            Ok(Ok(chunks)) => chunks,
            Ok(Err(error)) => {
                tracing::error!(model = %active.rollout.model, %error, "the file of a network cannot be read");
                continue;
            }
            Err(_) => continue,
        };
        let topic = DeviceTopic::Model.of(&device);
        for chunk in chunks {
            tokio::time::sleep_until(due).await;
            due = due.max(tokio::time::Instant::now())
                + Duration::from_secs_f64(chunk.bytes.len() as f64 / BYTES_PER_SECOND);
            let options = PublishOptions::new(QoS::AtMostOnce).properties(properties(Some(CHUNK_EXPIRY_S)));
            if client.publish(topic.as_str(), Encoding::Cbor.write(&chunk), options).await.is_err() {
                break;
            }
        }
    }
}

fn read_chunks(folder: &Folder, manifest: &Manifest, fetch: &Fetch) -> std::io::Result<Vec<Chunk>> {
    let file = folder.network(&manifest.model)?;
    let mut chunks = Vec::new();
    for chunk in fetch.chunks.iter().copied().collect::<BTreeSet<u32>>() {
        let (Some((begin, length)), Some(digest)) = (manifest.place(chunk), manifest.digest(chunk)) else {
            continue;
        };
        let bytes = read_at(&file, begin, length)?;
        // No device would take it.
        if !blake3::hash(&bytes).as_bytes().starts_with(digest) {
            let reason = format!("chunk {chunk} is not what was signed: push the network again");
            return Err(std::io::Error::other(reason));
        }
        chunks.push(Chunk { v: VERSION, model: manifest.model, chunk, bytes: bytes.into() });
    }
    Ok(chunks)
}

fn read_at(mut file: &File, begin: u64, length: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::registry::Timestamp;
    use crate::models::Target;
    use glimpse_protocol::{ModelId, SpaceId, Update};

    fn id(number: u32) -> DeviceId {
        DeviceId::new(&format!("cam-{number}")).unwrap()
    }

    fn active(serial: u64, to: &str) -> Active {
        let model = ModelId::from_bytes([serial as u8; 32]);
        let rollout = Rollout {
            serial,
            model,
            name: "query.onnx".to_owned(),
            to: to.parse().unwrap(),
            created: Timestamp::now(),
            stopped: None,
        };
        let manifest = Manifest {
            v: 1,
            serial,
            model,
            space: SpaceId::from_bytes([0; 16]),
            bytes: 1,
            chunk_bytes: 1,
            digests: Vec::new().into(),
            test_embeddings: Vec::new().into(),
            test_photos: 1,
        };
        Active { rollout, offer: vec![serial as u8], manifest: Arc::new(manifest) }
    }

    fn known(active: Vec<Active>) -> Known {
        let groups = (0..50).map(|number| (id(number), "hall".to_owned())).collect();
        Known { active, groups }
    }

    /// A device that is online, runs the network of `runs`, and says this of the roll-out `serial`.
    fn device(runs: u8, serial: u64, state: UpdateState) -> Device {
        Device {
            online: Some(true),
            model: Some(ModelId::from_bytes([runs; 32])),
            update: Some(Update { serial, state, ..Update::default() }),
            ..Device::default()
        }
    }

    fn offered(offers: &[(DeviceId, Vec<u8>)]) -> Vec<(&str, u8)> {
        offers.iter().map(|(id, payload)| (id.as_str(), payload[0])).collect()
    }

    #[test]
    fn devices_are_offered_the_newest_network_that_is_for_them_once_and_again_later() {
        let known = known(vec![active(5, "all"), active(6, "group hall"), active(7, "device cam-2")]);
        let devices: Vec<_> = [1, 2, 90].map(|n| (id(n), device(1, 0, UpdateState::Settled))).into();
        let (mut desk, now) = (Desk::default(), Instant::now());
        let (progress, offers) = desk.plan(&known, &devices, now);
        assert_eq!(offered(&offers), [("cam-1", 6), ("cam-2", 7), ("cam-90", 5)]);
        assert!(progress.iter().all(|it| it.devices == Counts { waiting: 1, ..Counts::default() }));
        // After half a minute, then after a whole one.
        for (seconds, again) in [(29, 0), (31, 3), (62, 0), (92, 3), (200, 0)] {
            assert_eq!(desk.plan(&known, &devices, now + Duration::from_secs(seconds)).1.len(), again);
        }
    }

    #[test]
    fn who_has_it_is_at_it_cannot_take_it_or_is_away_is_not_offered_it() {
        let known = known(vec![active(5, "all")]);
        let mut away = device(1, 0, UpdateState::Settled);
        away.online = Some(false);
        let devices = [
            device(5, 0, UpdateState::Settled),
            device(1, 5, UpdateState::Receiving),
            device(5, 5, UpdateState::Trial),
            device(1, 5, UpdateState::Failed),
            Device { update: None, ..device(1, 0, UpdateState::Settled) },
            away,
        ];
        let devices: Vec<_> = (0..).map(id).zip(devices).collect();
        let (progress, offers) = Desk::default().plan(&known, &devices, Instant::now());
        assert_eq!(offered(&offers), []);
        let one_each = Counts { waiting: 1, receiving: 1, trial: 1, done: 1, failed: 1, unable: 1 };
        assert_eq!(progress[0].devices, one_each);
    }

    #[test]
    fn devices_that_never_react_keep_nobody_waiting_for_long() {
        let known = known(vec![active(5, "all")]);
        let mut devices: Vec<_> = (0..40).map(|n| (id(n), device(1, 0, UpdateState::Settled))).collect();
        devices.extend((40..80).map(|n| {
            // It was on its way when it was switched off.
            (id(n), Device { online: Some(false), ..device(1, 5, UpdateState::Receiving) })
        }));
        devices.sort_by(|a, b| a.0.cmp(&b.0));
        let (mut desk, now) = (Desk::default(), Instant::now());
        let offers = |desk: &mut Desk, seconds| {
            let (_, offers) = desk.plan(&known, &devices, now + Duration::from_secs(seconds));
            offers.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>()
        };
        let first = offers(&mut desk, 0);
        assert_eq!((first.len(), offers(&mut desk, 20).len()), (RECEIVING_MAX, 0));
        // Their places are free, and who was never offered it comes first.
        let second = offers(&mut desk, 30);
        let all: BTreeSet<_> = (0..40).map(id).collect();
        assert_eq!(
            (second.len(), first.union(&second).cloned().collect::<BTreeSet<_>>()),
            (RECEIVING_MAX, all)
        );
    }

    #[test]
    fn a_device_that_took_a_later_one_up_is_left_alone() {
        let known = known(vec![active(5, "all")]);
        // 6 was stopped after this one had it; another was given a network by hand after it had 5.
        let devices =
            [(id(1), device(6, 6, UpdateState::Settled)), (id(2), device(9, 5, UpdateState::Settled))];
        let (progress, offers) = Desk::default().plan(&known, &devices, Instant::now());
        assert_eq!((offers.len(), progress[0].devices.unable), (0, 2));
    }

    #[test]
    fn a_failure_of_an_earlier_network_keeps_nobody_from_the_next() {
        let known = known(vec![active(5, "all")]);
        let devices = [(id(1), device(1, 4, UpdateState::Failed)), (id(2), device(4, 4, UpdateState::Trial))];
        let (_, offers) = Desk::default().plan(&known, &devices, Instant::now());
        assert_eq!(offered(&offers), [("cam-1", 5), ("cam-2", 5)]);
    }

    #[test]
    fn so_many_receive_at_once_and_a_stopped_one_is_offered_to_nobody() {
        let mut known = known(vec![active(5, "all")]);
        let mut devices: Vec<_> = (0..100).map(|n| (id(n), device(1, 0, UpdateState::Settled))).collect();
        let (mut desk, now) = (Desk::default(), Instant::now());
        assert_eq!(desk.plan(&known, &devices, now).1.len(), RECEIVING_MAX);
        // Half of them took it up, and four have got it.
        let mut has = desk.offered.keys().cloned().collect::<Vec<_>>();
        has.sort();
        for (place, id) in has.iter().take(16).enumerate() {
            let state = if place < 4 {
                device(5, 5, UpdateState::Settled)
            } else {
                device(1, 5, UpdateState::Receiving)
            };
            devices.iter_mut().find(|device| device.0 == *id).unwrap().1 = state;
        }
        assert_eq!(desk.plan(&known, &devices, now).1.len(), 4);
        known.active[0].rollout.stopped = Some(Timestamp::now());
        assert_eq!(desk.plan(&known, &devices, now + Duration::from_mins(5)).1.len(), 0);
    }

    #[test]
    fn a_roll_out_that_fails_on_most_devices_is_halted() {
        let known = known(vec![active(5, "all")]);
        let mut devices: Vec<_> = (0..10).map(|n| (id(n), device(1, 0, UpdateState::Settled))).collect();
        for (count, state) in [(0..2, UpdateState::Failed), (2..4, UpdateState::Settled)] {
            for (_, device_then) in &mut devices[count] {
                *device_then = device(if state == UpdateState::Settled { 5 } else { 1 }, 5, state);
            }
        }
        let plan = |devices: &[(DeviceId, Device)]| {
            let (progress, offers) = Desk::default().plan(&known, devices, Instant::now());
            (progress[0].halted, offers.len())
        };
        assert_eq!(plan(&devices), (false, 6));
        devices[4].1 = device(1, 5, UpdateState::Failed);
        assert_eq!(plan(&devices), (true, 0));
        devices[5].1 = device(5, 5, UpdateState::Settled);
        assert_eq!(plan(&devices), (false, 4), "as many succeed");
    }

    #[test]
    fn what_changes_on_disk_is_taken_up_and_what_is_damaged_is_not() {
        use crate::models::folder::tests::demo;
        use crate::models::key::OperatorKey;
        let place = tempfile::tempdir().unwrap();
        let (gallery, access) = (place.path().join("gallery"), place.path().join("access"));
        let (key, _) = OperatorKey::load_or_make(&access.join("model.key")).unwrap();
        let folder = Folder::of_gallery(&gallery);
        let mut source = Source {
            folder: folder.clone(),
            access,
            seen: None,
            troubles: Vec::new(),
            known: Arc::default(),
        };
        source.refresh();
        assert!(current(&source.known).active.is_empty());
        let (network, space) = demo();
        let rollout = folder.push(&network, space, Target::All, &key).unwrap();
        source.refresh();
        let known = current(&source.known);
        assert_eq!(known.newest(&id(1)).unwrap().rollout, rollout);
        let fetch = Fetch { v: 1, model: rollout.model, chunks: [0, 9999, 1].into_iter().collect() };
        let chunks = read_chunks(&folder, &known.active[0].manifest, &fetch).unwrap();
        assert_eq!(chunks.iter().map(|chunk| chunk.chunk).collect::<Vec<_>>(), [0, 1]);
        let whole = std::fs::read(&network).unwrap();
        assert_eq!(whole[..65536], [chunks[0].bytes.to_vec(), chunks[1].bytes.to_vec()].concat());
        std::fs::write(folder.list_file(), "nonsense").unwrap();
        source.refresh();
        assert_eq!((current(&source.known).active.len(), source.troubles.len(), source.seen), (1, 1, None));
        let mut file = std::fs::read(&network).unwrap();
        file[5] ^= 1;
        let path = gallery.join(crate::models::FOLDER).join(format!("{}.onnx", rollout.model));
        std::fs::write(path, file).unwrap();
        let error = read_chunks(&folder, &known.active[0].manifest, &fetch).unwrap_err();
        assert!(error.to_string().contains("not what was signed"), "{error}");
    }
}
