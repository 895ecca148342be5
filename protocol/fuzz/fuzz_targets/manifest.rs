//! Any bytes as what a device is sent of networks: a manifest that holds together has a place and a digest for each chunk.
#![no_main]

use glimpse_protocol::model::{Chunk, Fetch, Manifest, Offer};
use libfuzzer_sys::fuzz_target;

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    ciborium::from_reader(bytes).ok()
}

fuzz_target!(|bytes: &[u8]| {
    let _ = (read::<Fetch>(bytes), read::<Chunk>(bytes));
    let inner = read::<Offer>(bytes).map(|offer| offer.manifest);
    let Some(manifest) = read::<Manifest>(inner.as_deref().map_or(bytes, |inner| inner)) else { return };
    if manifest.check().is_err() {
        return;
    }
    let mut total = 0;
    for chunk in 0..manifest.chunks() {
        let (begin, length) = manifest.place(chunk).unwrap();
        assert_eq!(begin, total);
        assert!(manifest.digest(chunk).is_some());
        total += length as u64;
    }
    assert_eq!((total, manifest.place(manifest.chunks())), (manifest.bytes, None));
    assert_eq!(manifest.dimension() * 2 * usize::from(manifest.test_photos), manifest.test_embeddings.len());
    let mut again = Vec::new();
    ciborium::into_writer(&manifest, &mut again).unwrap();
    assert_eq!(read::<Manifest>(&again).as_ref(), Some(&manifest));
});
