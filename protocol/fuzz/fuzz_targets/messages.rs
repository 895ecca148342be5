//! Any bytes as each message, in CBOR and in JSON: refused, or a message that comes back the same from both, and whose embedding,
//! if it has one, is decoded or refused too.
#![no_main]

use glimpse_protocol::{
    DeviceStatus, DeviceTopic, ErrorReply, FilterOf, GalleryStatus, Header, MESSAGE_BYTES_MAX, Query, Reply,
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return;
    }
    if let Ok(topic) = std::str::from_utf8(bytes)
        && let Some((device, kind)) = DeviceTopic::parse(topic)
    {
        assert_eq!(kind.of(&device), topic);
    }
    check::<Header>(bytes);
    check::<Reply>(bytes);
    check::<ErrorReply>(bytes);
    check::<DeviceStatus>(bytes);
    check::<GalleryStatus>(bytes);
    let _ = ciborium::from_reader::<FilterOf<serde_json::Value>, _>(bytes);
    let _ = serde_json::from_slice::<FilterOf<serde_json::Value>>(bytes);
    let queries =
        [ciborium::from_reader::<Query, _>(bytes).ok(), serde_json::from_slice::<Query>(bytes).ok()];
    for query in queries.into_iter().flatten() {
        let mut components = [0.0; 256];
        let _ = query.embedding.decode_into(&mut components);
        comes_back(&query);
    }
});

fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = ciborium::from_reader::<T, _>(bytes) {
        comes_back(&message);
    }
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        comes_back(&message);
    }
}

/// Compared as bytes: a similarity that is no number equals nothing.
fn comes_back<T: Serialize + DeserializeOwned>(message: &T) {
    let written = cbor(message);
    let read: T = ciborium::from_reader(written.as_slice()).expect("what was written reads");
    assert_eq!(cbor(&read), written);
    let text = serde_json::to_string(message).expect("a message can be written");
    // JSON has no number that is none, and writes it as null.
    if !text.contains("null") {
        let read: T = serde_json::from_str(&text).expect("what was written reads");
        assert_eq!(serde_json::to_string(&read).expect("a message can be written"), text);
    }
}

fn cbor<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).expect("a message can be written");
    bytes
}
