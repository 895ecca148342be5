//! Any bytes as the list of roll-outs, and as an offer on disk.
#![no_main]

use glimpse_gallery::models::folder::{parse_list, read_offer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(rollouts) = parse_list(bytes) {
        assert!(rollouts.is_sorted_by(|a, b| a.serial < b.serial));
    }
    if let Ok(manifest) = read_offer(bytes) {
        let places = (0..manifest.chunks()).map(|chunk| manifest.place(chunk).unwrap().1 as u64);
        assert_eq!(places.sum::<u64>(), manifest.bytes);
        assert!(manifest.digest(manifest.chunks() - 1).is_some() && manifest.dimension() > 0);
    }
});
