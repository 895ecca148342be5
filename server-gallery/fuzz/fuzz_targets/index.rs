//! The file of an index, changed at any places, with checksums that fit what was changed: it is refused, or can be searched.
//!
//! Each four bytes of the input are a change: where, and what is there now. Every second one is in the header, which decides how
//! the rest is read.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use glimpse_gallery::index::{CodesOption, Index, IndexOptions, SearchOptions};
use glimpse_gallery::store::{Attributes, Image, Store, load};
use glimpse_protocol::SpaceId;
use libfuzzer_sys::fuzz_target;

const DIMENSION: usize = 8;

/// Files of an index without codes, with codes, and with lists.
static FILES: LazyLock<(tempfile::TempDir, Vec<Vec<u8>>)> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap();
    let mut store = Store::open(place.path(), SpaceId::from_bytes([9; 16]), DIMENSION).unwrap();
    let images: Vec<(Image, Vec<f32>)> = (0..300_usize).map(image).collect();
    store.put(&images).unwrap();
    drop(store);
    let (four, eight) = (CodesOption::Four { sub_spaces: None }, CodesOption::Eight { sub_spaces: None });
    let files = [(CodesOption::Exact, 0), (four.clone(), 0), (eight, 0), (four, 3)].map(|(codes, lists)| {
        let options = IndexOptions { codes, lists: Some(lists), ..IndexOptions::default() };
        let index = Index::build(load(place.path()).unwrap(), None, &options, &mut |_, _, _| true).unwrap();
        let path = place.path().join("index.glimpse");
        index.save(&path).unwrap();
        std::fs::read(path).unwrap()
    });
    (place, files.into())
});

fn image(number: usize) -> (Image, Vec<f32>) {
    let mut feature: Vec<f32> =
        (0..DIMENSION).map(|i| ((number * (i + 3) * 7919) % 97) as f32 - 48.5).collect();
    let norm = feature.iter().map(|x| x * x).sum::<f32>().sqrt();
    feature.iter_mut().for_each(|x| *x /= norm);
    let image = Image {
        id: format!("{number:04}"),
        path: String::new(),
        label: format!("label {}", number % 7),
        attributes: Attributes::default(),
        photo_hash: [0; 32],
    };
    (image, feature)
}

fuzz_target!(|input: &[u8]| {
    let (place, files) = &*FILES;
    let Some((kind, changes)) = input.split_first() else { return };
    let mut file = files[usize::from(*kind) % files.len()].clone();
    let header = 48..48 + u64::from_le_bytes(*file[8..].first_chunk().unwrap()) as usize;
    for (number, change) in changes.as_chunks::<4>().0.iter().enumerate() {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let range = if number % 2 == 0 { header.clone() } else { header.end..file.len() };
        let place = range.start + place % range.len();
        file[place] = change[3];
    }
    seal(&mut file, header);
    let path = place.path().join("damaged.glimpse");
    std::fs::write(&path, &file).unwrap();
    search(&path);
});

/// Puts the checksums right: they stop accidents, and here is somebody who means it.
fn seal(file: &mut [u8], header: std::ops::Range<usize>) {
    let text = file[header.clone()].to_vec();
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    let sections = parsed.as_ref().and_then(|header| header["sections"].as_array()).into_iter().flatten();
    for section in sections {
        let (Some(offset), Some(bytes), Some(told)) =
            (section["offset"].as_u64(), section["bytes"].as_u64(), section["blake3"].as_str())
        else {
            continue;
        };
        let begin = header.end.saturating_add(offset as usize);
        let Some(content) = file.get(begin..begin.saturating_add(bytes as usize)) else { continue };
        let right = blake3::hash(content).to_hex();
        let place = text.windows(told.len().max(1)).position(|window| window == told.as_bytes());
        if let Some(place) = place.filter(|_| told.len() == right.len()) {
            file[header.start + place..][..right.len()].copy_from_slice(right.as_bytes());
        }
    }
    let hash = blake3::hash(&file[header]);
    file[16..48].copy_from_slice(hash.as_bytes());
}

fn search(path: &Path) {
    let index = match Index::open(path, None) {
        Ok(index) => index,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let catalogue = index.images();
    assert!(catalogue.iter().all(|entry| entry.id.len() <= 128));
    let dimension = index.vectors().dimension();
    let query = vec![1.0 / (dimension as f32).sqrt(); dimension];
    let found = index.vectors().search(&query, &SearchOptions::top(10), None);
    assert!(found.iter().flatten().all(|found| catalogue.len() > found.row as usize));
}
