use super::*;
use glimpse_embedder::test_photo;
use glimpse_protocol::SpaceId;
use glimpse_protocol::model::{DIGEST_BYTES, Signature};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_bytes::ByteBuf;
use std::path::PathBuf;

const SEED: [u8; 32] = [7; 32];
const CHUNK: usize = glimpse_protocol::model::CHUNK_BYTES_MAX as usize;

fn key(seed: &[u8; 32]) -> (Ed25519KeyPair, ModelKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).unwrap();
    let public = ModelKey::from_bytes(pair.public_key().as_ref().try_into().unwrap());
    (pair, public)
}

/// A manifest for these bytes, of no particular space; in small chunks, where the bytes are few.
pub(super) fn manifest(serial: u64, bytes: &[u8]) -> Manifest {
    let chunk_bytes = if bytes.len() < 100_000 { 1000 } else { CHUNK };
    let digests =
        bytes.chunks(chunk_bytes).flat_map(|chunk| blake3::hash(chunk).as_bytes()[..DIGEST_BYTES].to_vec());
    Manifest {
        v: Manifest::VERSION,
        serial,
        model: ModelId::from_bytes(*blake3::hash(bytes).as_bytes()),
        space: SpaceId::from_bytes([2; 16]),
        bytes: bytes.len() as u64,
        chunk_bytes: chunk_bytes as u32,
        digests: ByteBuf::from(digests.collect::<Vec<u8>>()),
        test_embeddings: ByteBuf::from([0; 16]),
        test_photos: 2,
    }
}

fn cbor<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).unwrap();
    bytes
}

fn offer(manifest: &Manifest, seed: &[u8; 32]) -> Vec<u8> {
    let manifest = cbor(manifest);
    let signature = key(seed).0.sign(&signed(&manifest));
    let signature = Signature(signature.as_ref().try_into().unwrap());
    cbor(&Offer { v: VERSION, manifest: ByteBuf::from(manifest), signature })
}

/// A device with the demo's network, its folder, and the thread's part of it without a thread.
struct Bench {
    place: tempfile::TempDir,
    files: ModelFiles,
    thread: Thread,
    updating: Updating,
    first: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/query.onnx");
        let first = std::fs::read(&model).unwrap();
        let files = ModelFiles { model: Some(model), ..ModelFiles::default() };
        let (_, thread, updating) = started(&files, place.path());
        Self { place, files, thread, updating, first }
    }

    /// As after a power cut; returns the network that runs.
    fn restart(&mut self) -> ModelId {
        // The folder's lock goes first.
        let elsewhere = tempfile::tempdir().unwrap();
        let slots = Slots::open(elsewhere.path(), ModelId::from_bytes([0; 32])).unwrap();
        drop(std::mem::replace(&mut self.thread.updater.slots, slots));
        let (running, thread, updating) = started(&self.files, self.place.path());
        (self.thread, self.updating) = (thread, updating);
        running
    }

    /// Another network: the same but for a comment in its file, or for nothing but its comment.
    fn second(&self) -> Vec<u8> {
        // Field 6 of ONNX's ModelProto: doc_string.
        [&self.first[..], b"\x32\x06second"].concat()
    }

    fn manifest(&self, serial: u64, bytes: &[u8]) -> Manifest {
        let model = QueryModel::load(&self.files).unwrap();
        let photos: Vec<u8> = (0..2)
            .flat_map(|photo| {
                let embedding = model.embedding(&test_photo(photo)).unwrap();
                Embedding::<EMBEDDING_BYTES_MAX>::encode(Codec::F16, &embedding).unwrap().bytes
            })
            .collect();
        Manifest { space: model.space(), test_embeddings: ByteBuf::from(photos), ..manifest(serial, bytes) }
    }

    /// Sends every chunk that is asked for.
    fn send(&mut self, manifest: &Manifest, bytes: &[u8]) {
        for chunk in 0..manifest.chunks() {
            let (begin, length) = manifest.place(chunk).unwrap();
            let bytes = ByteBuf::from(&bytes[begin as usize..][..length]);
            let chunk = Chunk { v: VERSION, model: manifest.model, chunk, bytes };
            self.thread.message(&cbor(&chunk));
        }
    }

    fn state(&self) -> (UpdateState, u64, String) {
        let update = self.thread.updater.presence().update.unwrap();
        (update.state, update.serial, update.reason.as_str().to_owned())
    }

    fn running(&self) -> ModelId {
        self.thread.updater.running
    }
}

fn started(files: &ModelFiles, folder: &Path) -> (ModelId, Thread, Updating) {
    let updates = Updates { state: folder.to_owned(), key: key(&SEED).1 };
    let (model, updater) = start(files, files.describe().unwrap(), &updates).unwrap();
    let (updating, _) = Updating::channel();
    let thread = Thread { updater, link: Link::to_nowhere(), next: updating.next.clone() };
    (model.id(), thread, updating)
}

#[test]
fn a_network_is_fetched_tested_tried_and_kept() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    assert_eq!(bench.state(), (UpdateState::Receiving, 5, String::new()));
    let window = bench.thread.updater.receiving.as_ref().unwrap().window.clone();
    assert!(window.iter().copied().eq(0..WINDOW as u32));
    bench.send(&manifest, &second);
    assert_eq!((bench.state().0, bench.running()), (UpdateState::Trial, manifest.model));
    let next = bench.updating.next().unwrap();
    assert_eq!((next.id(), bench.updating.next().is_none()), (manifest.model, true));
    // An answer to a query of the network before proves nothing.
    bench.thread.answered(factory);
    assert_eq!(bench.state().0, UpdateState::Trial);
    bench.thread.answered(manifest.model);
    assert_eq!(bench.state(), (UpdateState::Settled, 5, String::new()));
    assert_eq!((bench.restart(), bench.state().0), (manifest.model, UpdateState::Settled));
    // What is offered again is not fetched again.
    bench.thread.message(&offer(&manifest, &SEED));
    bench.thread.message(&offer(&Manifest { serial: 6, ..manifest }, &SEED));
    assert_eq!(bench.state(), (UpdateState::Settled, 6, String::new()));
}

#[test]
fn a_download_goes_on_after_a_power_cut() {
    let mut bench = Bench::new();
    let second = bench.second();
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    let half = Chunk {
        v: VERSION,
        model: manifest.model,
        chunk: 1,
        bytes: ByteBuf::from(&second[CHUNK..2 * CHUNK]),
    };
    bench.thread.message(&cbor(&half));
    assert_ne!(bench.restart(), manifest.model);
    assert_eq!(bench.state(), (UpdateState::Settled, 0, String::new()));
    bench.thread.message(&offer(&manifest, &SEED));
    let missing: Vec<u32> =
        bench.thread.updater.receiving.as_ref().unwrap().incoming.missing().take(2).collect();
    assert_eq!(missing, [0, 2]);
    bench.send(&manifest, &second);
    assert_eq!(bench.restart(), manifest.model, "on trial it starts too");
}

#[test]
fn offers_that_are_not_signed_old_or_of_another_space_are_not_taken_up() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let good = bench.manifest(5, &second);
    bench.thread.message(&offer(&good, &[8; 32]));
    let (state, serial, reason) = bench.state();
    assert_eq!((state, serial, reason.contains("model_key")), (UpdateState::Failed, 5, true), "{reason}");
    // Any bit of what is signed, and of the signature.
    let whole = offer(&good, &SEED);
    for place in (0..whole.len()).step_by(7) {
        let mut tampered = whole.clone();
        tampered[place] ^= 1;
        bench.thread.message(&tampered);
        assert!(bench.thread.updater.receiving.is_none(), "bit {place}");
    }
    let other = Manifest { space: SpaceId::from_bytes([9; 16]), serial: 6, ..good.clone() };
    bench.thread.message(&offer(&other, &SEED));
    let (state, serial, reason) = bench.state();
    assert_eq!((state, serial, reason.contains("0909")), (UpdateState::Failed, 6, true), "{reason}");
    let broken = Manifest { serial: 7, bytes: 1, ..good.clone() };
    bench.thread.message(&offer(&broken, &SEED));
    assert_eq!(bench.state().1, 7);
    // Played again: its serial number is not larger than one that was judged.
    bench.thread.message(&offer(&good, &SEED));
    assert!(bench.thread.updater.receiving.is_none());
    for bytes in [&b""[..], b"\xa1\x00\x01", &[0x9f; 1000]] {
        bench.thread.message(bytes);
    }
    assert_eq!((bench.restart(), bench.state().0), (factory, UpdateState::Failed));
}

#[test]
fn a_network_that_fails_its_test_is_not_run() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let good = bench.manifest(5, &second);
    // Those of the two photos, the other way round.
    let mut wrong = good.test_embeddings.clone();
    let half = wrong.len() / 2;
    wrong.rotate_left(half);
    let wrong = Manifest { test_embeddings: wrong, ..good.clone() };
    let noise = vec![0x55; 3000];
    for (serial, manifest, bytes, expected) in [
        (6, wrong, &second, "test photo 0"),
        (7, bench.manifest(7, &noise), &noise, "incoming.part"),
        (
            8,
            Manifest { model: ModelId::from_bytes([1; 32]), ..good },
            &second,
            "not the network that was signed",
        ),
    ] {
        let manifest = Manifest { serial, ..manifest };
        bench.thread.message(&offer(&manifest, &SEED));
        bench.send(&manifest, bytes);
        let (state, told, reason) = bench.state();
        assert_eq!((state, told, bench.running()), (UpdateState::Failed, serial, factory));
        assert!(reason.contains(expected), "{reason}");
        assert!(bench.updating.next().is_none());
    }
    assert_eq!(bench.restart(), factory);
}

#[test]
fn a_network_that_the_server_refuses_is_given_up() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    bench.send(&manifest, &second);
    bench.thread.refused(factory, "of before");
    assert_eq!(bench.state().0, UpdateState::Trial);
    bench.thread.refused(manifest.model, "this gallery is another");
    assert_eq!(bench.state(), (UpdateState::Failed, 5, "this gallery is another".to_owned()));
    assert_eq!((bench.running(), bench.updating.next().unwrap().id()), (factory, factory));
    assert_eq!(bench.restart(), factory);
}

#[test]
fn a_damaged_slot_is_not_run_and_bad_chunks_are_asked_for_again() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    let bad = Chunk { v: VERSION, model: manifest.model, chunk: 0, bytes: ByteBuf::from([0; 1000]) };
    bench.thread.message(&cbor(&bad));
    assert_eq!(bench.thread.updater.receiving.as_ref().unwrap().incoming.missing().next(), Some(0));
    bench.send(&manifest, &second);
    bench.thread.answered(manifest.model);
    let slot: PathBuf = bench.place.path().join("a.onnx");
    let mut bytes = std::fs::read(&slot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&slot, bytes).unwrap();
    assert_eq!(bench.restart(), factory);
    let (state, _, reason) = bench.state();
    assert!(state == UpdateState::Failed && reason.contains("not the network that was signed"), "{reason}");
}

#[test]
fn a_network_that_ends_the_program_in_its_test_is_not_tested_again() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let manifest = bench.manifest(5, &second);
    // As it stands on the disk while the test runs.
    bench.thread.updater.slots.close(5, Some("the program ended while it tested the network"));
    assert_eq!(bench.restart(), factory);
    bench.thread.message(&offer(&manifest, &SEED));
    assert!(bench.thread.updater.receiving.is_none());
    assert_eq!((bench.state().0, bench.state().1), (UpdateState::Failed, 5));
}

#[test]
fn a_network_that_does_not_let_the_device_stay_up_is_given_up_at_the_fourth_start() {
    let mut bench = Bench::new();
    let (factory, second) = (bench.running(), bench.second());
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    bench.send(&manifest, &second);
    for _ in 0..3 {
        assert_eq!(bench.restart(), manifest.model);
        // It lives for long, and embeds nothing: that is not enough.
        bench.thread.updater.started -= 2 * STANDS_AFTER;
        bench.thread.due();
    }
    assert_eq!(bench.restart(), factory);
    assert!(bench.state().2.contains("did not stay up"));
    // One that embedded a photo, or ended in order, did.
    let manifest = Manifest { serial: 6, ..manifest };
    bench.thread.message(&offer(&manifest, &SEED));
    bench.send(&manifest, &second);
    for _ in 0..5 {
        assert_eq!(bench.restart(), manifest.model);
        bench.thread.updater.has_embedded = true;
        bench.thread.updater.started -= 2 * STANDS_AFTER;
        bench.thread.due();
    }
}

#[test]
fn a_network_before_that_cannot_be_loaded_is_tried_again() {
    let mut bench = Bench::new();
    let moved = bench.place.path().join("factory.onnx");
    let whole = std::fs::read(bench.files.model.as_ref().unwrap()).unwrap();
    std::fs::write(&moved, &whole).unwrap();
    bench.files.model = Some(moved.clone());
    let (factory, second) = (bench.restart(), bench.second());
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    bench.send(&manifest, &second);
    bench.updating.next().unwrap();
    std::fs::remove_file(&moved).unwrap();
    bench.thread.refused(manifest.model, "another space");
    assert!(bench.updating.next().is_none() && bench.thread.wait() <= TELL_EVERY);
    bench.thread.due();
    assert!(bench.updating.next().is_none());
    std::fs::write(&moved, &whole).unwrap();
    bench.thread.due();
    assert_eq!((bench.updating.next().unwrap().id(), bench.state().0), (factory, UpdateState::Failed));
}

#[test]
fn chunks_that_do_not_come_are_asked_for_again_and_in_the_end_not() {
    let mut bench = Bench::new();
    let second = bench.second();
    let manifest = bench.manifest(5, &second);
    bench.thread.message(&offer(&manifest, &SEED));
    let mut later = |seconds| {
        let receiving = bench.thread.updater.receiving.as_mut().unwrap();
        receiving.asked -= Duration::from_secs(seconds);
        receiving.heard -= Duration::from_secs(seconds);
        bench.thread.due();
        bench.thread.updater.receiving.as_ref().map(|receiving| receiving.wait.as_secs())
    };
    // The wait grows to a minute; with ten minutes of silence it is over.
    assert_eq!([6, 11, 21, 41, 61].map(&mut later), [10, 20, 40, 60, 60].map(Some));
    assert_eq!(later(600), None);
    assert_eq!(bench.state().0, UpdateState::Settled);
    bench.thread.message(&offer(&manifest, &SEED));
    assert_eq!(bench.state().0, UpdateState::Receiving);
}
