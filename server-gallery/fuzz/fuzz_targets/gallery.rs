//! The database of a gallery, changed at any places: it is refused with a reason, or gives exactly what was stored.
//!
//! Each four bytes of the input are a change: where, counted in bytes that are not zero, and what is there now.
#![no_main]

use std::sync::{LazyLock, Mutex};

use glimpse_gallery::store::{Attributes, FILE, Image, Reader, Store};
use glimpse_protocol::SpaceId;
use libfuzzer_sys::fuzz_target;

struct Whole {
    place: tempfile::TempDir,
    file: Vec<u8>,
    /// Where the file is not zero.
    used: Vec<usize>,
    images: Vec<(Image, Vec<f32>)>,
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| {
    // The store contains panics of its database, which libFuzzer's hook would take for findings. One that gets out is told, and
    // ends the run.
    std::panic::set_hook(Box::new(|what| *LAST.lock().unwrap() = format!("{what}")));
    let place = tempfile::tempdir().unwrap();
    let mut store = Store::open(place.path(), SpaceId::from_bytes([9; 16]), 4).unwrap();
    let images: Vec<(Image, Vec<f32>)> = (0..40_usize).map(image).collect();
    images.chunks(10).for_each(|batch| store.put(batch).unwrap());
    store.remove(["0007"]).unwrap();
    drop(store);
    let file = std::fs::read(place.path().join(FILE)).unwrap();
    let used = (0..file.len()).filter(|place| file[*place] != 0).collect();
    let images = images.into_iter().filter(|(image, _)| image.id != "0007").collect();
    Whole { place, file, used, images }
});

fn image(number: usize) -> (Image, Vec<f32>) {
    let mut attributes = Attributes::default();
    attributes.set("room", if number % 2 == 0 { "hall" } else { "yard" }).unwrap();
    let image = Image {
        id: format!("{number:04}"),
        path: format!("photos/{number}.jpg"),
        label: format!("label {}", number % 7),
        attributes,
        photo_hash: [number as u8; 32],
    };
    let angle = number as f32;
    (image, vec![angle.cos(), angle.sin(), 0.0, 0.0])
}

static LAST: Mutex<String> = Mutex::new(String::new());

fuzz_target!(|input: &[u8]| {
    if std::panic::catch_unwind(|| look(input)).is_err() {
        // The gallery's identity is random, so that the input alone does not show it again: the file does.
        let kept = std::env::temp_dir().join("glimpse-fuzz-gallery.redb");
        let copied = std::fs::copy(WHOLE.place.path().join(FILE), &kept);
        eprintln!("{}\nthe file: {} ({copied:?})", LAST.lock().unwrap(), kept.display());
        std::process::abort();
    }
});

fn look(input: &[u8]) {
    let Whole { place, file, used, images } = &*WHOLE;
    let mut damaged = file.clone();
    for change in input.as_chunks::<4>().0 {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        damaged[used[place % used.len()]] = change[3];
    }
    std::fs::write(place.path().join(FILE), &damaged).unwrap();
    let read = Reader::open(place.path()).and_then(|reader| {
        let now = reader.now()?;
        now.snapshot(place.path(), &mut || true)
    });
    match read {
        Ok(snapshot) => {
            assert_eq!(snapshot.images.len(), images.len());
            for (entry, (image, _)) in snapshot.images.iter().zip(images) {
                assert_eq!((entry.id, entry.label, entry.path), (&*image.id, &*image.label, &*image.path));
                assert_eq!(entry.attribute("room"), image.attributes.get("room"));
            }
            let features: Vec<f32> = images.iter().flat_map(|(_, feature)| feature.clone()).collect();
            assert_eq!(&snapshot.features[..], &features[..]);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
