use super::*;

const SPACE: SpaceId = SpaceId::from_bytes([1; 16]);

/// An image and a unit feature of four components that differ with `number`.
fn entry(number: usize) -> (Image, Vec<f32>) {
    let image = Image {
        id: format!("fruit/{number:04}.jpg"),
        path: format!("/photos/fruit/{number:04}.jpg"),
        label: format!("fruit {number}"),
        photo_hash: [number as u8; 32],
    };
    let angle = number as f32;
    (image, vec![angle.cos(), 0.0, angle.sin(), 0.0])
}

fn filled(dir: &Path, count: usize) -> Store {
    let mut store = Store::open(dir, SPACE, 4).unwrap();
    store.put(&(0..count).map(entry).collect::<Vec<_>>()).unwrap();
    store
}

fn message<T>(result: Result<T, StoreError>) -> String {
    result.map(|_| "no error").unwrap_err().to_string()
}

#[test]
fn what_was_put_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 100));
    let snapshot = load(dir.path()).unwrap();
    assert_eq!(snapshot.meta, Meta { space: SPACE, dimension: 4, generation: 2 });
    for (number, image) in snapshot.images.iter().enumerate() {
        let (expected, feature) = entry(number);
        assert_eq!(image, &expected);
        assert_eq!(snapshot.features[number * 4..][..4], feature);
    }
    let store = Store::open(dir.path(), SPACE, 4).unwrap();
    assert_eq!(store.images().unwrap().len(), 100);
    assert_eq!(store.meta().generation, 2, "opening changes nothing");
}

#[test]
fn a_batch_with_one_bad_image_stores_none_of_it() {
    type Spoil = Box<dyn Fn(&mut Image, &mut Vec<f32>)>;
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 3);
    let bad: [(&str, Spoil); 6] = [
        ("1 to 128", Box::new(|image, _| image.id = "x".repeat(129))),
        ("1 to 128", Box::new(|image, _| image.id.clear())),
        ("at most 96", Box::new(|image, _| image.label = "x".repeat(97))),
        ("3 components", Box::new(|_, feature| feature.truncate(3))),
        ("unit vector", Box::new(|_, feature| feature[0] = f32::NAN)),
        ("unit vector", Box::new(|_, feature| feature.fill(0.0))),
    ];
    for (named, spoil) in bad {
        let mut batch = [entry(7), entry(8)];
        let (image, feature) = &mut batch[1];
        spoil(image, feature);
        let error = message(store.put(&batch));
        assert!(error.contains(named), "{named}: {error}");
    }
    assert_eq!((store.images().unwrap().len(), store.meta().generation), (3, 2));
}

#[test]
fn a_label_changes_without_its_feature() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 2);
    let relabelled = Image { label: "pear".to_owned(), ..entry(1).0 };
    store.relabel(&[relabelled.clone(), entry(9).0]).unwrap();
    drop(store);
    let snapshot = load(dir.path()).unwrap();
    assert_eq!(snapshot.images, [entry(0).0, relabelled]);
    assert_eq!(snapshot.features[4..], entry(1).1);
}

/// A kill at any moment leaves the file as some prefix of the writes, and never drops what was committed before.
/// The file is copied while a writer is in the midst of a transaction: exactly what a kill leaves behind.
#[test]
fn a_writer_killed_between_commits_loses_only_what_it_had_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 50);
    let write = store.database.begin_write().unwrap();
    {
        let mut features = write.open_table(FEATURES).unwrap();
        for number in 50..5000 {
            features.insert(entry(number).0.id.as_str(), [7_u8; 16].as_slice()).unwrap();
        }
    }
    let killed = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join(FILE), killed.path().join(FILE)).unwrap();
    write.abort().unwrap();

    assert_eq!(load(killed.path()).unwrap().images.len(), 50);
    let mut reopened = Store::open(killed.path(), SPACE, 4).unwrap();
    reopened.put(&[entry(50)]).unwrap();
    drop(reopened);
    assert_eq!(load(killed.path()).unwrap().images.len(), 51);
}

#[test]
fn another_space_or_dimension_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 1));
    let other = SpaceId::from_bytes([2; 16]);
    let error = message(Store::open(dir.path(), other, 4));
    assert!(error.contains(&SPACE.to_string()) && error.contains(&other.to_string()), "{error}");
    assert!(message(Store::open(dir.path(), SPACE, 5)).contains("4 dimensions"));
    let snapshot = load(dir.path()).unwrap();
    assert!(snapshot.meta.check_space(dir.path(), SPACE, 4).is_ok());
    assert!(message(snapshot.meta.check_space(dir.path(), other, 4)).contains("another --gallery"));
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 1);
    let write = store.database.begin_write().unwrap();
    write.open_table(META).unwrap().insert("format", 2_u64.to_le_bytes().as_slice()).unwrap();
    write.commit().unwrap();
    drop(store);
    assert!(message(load(dir.path())).contains("update glimpse-gallery"));
    assert!(message(Store::open(dir.path(), SPACE, 4)).contains("format 2"));
}

#[test]
fn a_gallery_open_elsewhere_or_absent_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let _store = filled(dir.path(), 1);
    assert!(message(Store::open(dir.path(), SPACE, 4)).contains("another process"));
    assert!(message(load(dir.path())).contains("another process"));
    let empty = tempfile::tempdir().unwrap();
    assert!(message(load(empty.path())).contains("glimpse-gallery ingest"));
    std::fs::write(empty.path().join("file"), "").unwrap();
    assert!(message(Store::open(&empty.path().join("file"), SPACE, 4)).contains("cannot open"));
}

#[test]
fn two_readers_share_a_gallery() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 1));
    let _reader = ReadOnlyDatabase::open(dir.path().join(FILE)).unwrap();
    assert_eq!(load(dir.path()).unwrap().images.len(), 1);
}

/// Every byte counts: a damaged or truncated file is an error, or reads as what was written; never another content,
/// and never a panic.
#[test]
fn a_damaged_file_is_an_error_and_never_another_gallery() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 60));
    let whole = std::fs::read(dir.path().join(FILE)).unwrap();
    let expected = load(dir.path()).unwrap();
    let damaged = tempfile::tempdir().unwrap();
    let path = damaged.path().join(FILE);
    let (mut errors, mut harmless) = (0, 0);
    let mut check = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        match load(damaged.path()) {
            Err(_) => errors += 1,
            Ok(read) => {
                let same = read.images == expected.images && read.features == expected.features;
                assert!(same, "{what} changed the gallery");
                harmless += 1;
            }
        }
    };
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for place in (0..used).step_by(used / 400) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        check(&bytes, &format!("byte {place}"));
    }
    for length in (0..whole.len()).step_by(whole.len() / 60) {
        check(&whole[..length], &format!("length {length}"));
    }
    check(b"not a database at all", "another file");
    assert!(errors > 20, "{errors} errors, {harmless} harmless");
}
