use redb::Database;

use super::*;

const SPACE: SpaceId = SpaceId::from_bytes([1; 16]);

fn attributes(number: usize) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.set("basket", &(number % 3).to_string()).unwrap();
    attributes
}

/// What a snapshot says of an image.
fn shown(snapshot: &Snapshot, row: u32) -> (String, String, String, Option<String>) {
    let entry = snapshot.images.get(row);
    let basket = entry.attribute("basket").map(str::to_owned);
    (entry.id.to_owned(), entry.label.to_owned(), entry.path.to_owned(), basket)
}

fn expected(image: &Image) -> (String, String, String, Option<String>) {
    let basket = image.attributes.get("basket").map(str::to_owned);
    (image.id.clone(), image.label.clone(), image.path.clone(), basket)
}

/// An image and a unit feature of four components that differ with `number`.
fn entry(number: usize) -> (Image, Vec<f32>) {
    let image = Image {
        id: format!("fruit/{number:04}.jpg"),
        path: format!("/photos/fruit/{number:04}.jpg"),
        label: format!("fruit {number}"),
        attributes: attributes(number),
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
    assert_eq!((snapshot.images.len(), snapshot.state.generation), (100, 2));
    for number in 0..100 {
        let (image, feature) = entry(number);
        assert_eq!(shown(&snapshot, number as u32), expected(&image));
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
    assert_eq!([0, 1].map(|row| shown(&snapshot, row)), [&entry(0).0, &relabelled].map(expected));
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
    write.open_table(META).unwrap().insert("format", 3_u64.to_le_bytes().as_slice()).unwrap();
    write.commit().unwrap();
    drop(store);
    assert!(message(load(dir.path())).contains("update glimpse-gallery"));
    assert!(message(Store::open(dir.path(), SPACE, 4)).contains("format 3"));
}

#[test]
fn a_gallery_that_is_absent_or_cannot_be_shared_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 1));
    let alone = Database::open(dir.path().join(FILE)).unwrap();
    assert!(message(Store::open(dir.path(), SPACE, 4)).contains("another process"));
    assert!(message(load(dir.path())).contains("another process"));
    drop(alone);
    let empty = tempfile::tempdir().unwrap();
    assert!(message(load(empty.path())).contains("glimpse-gallery ingest"));
    assert!(message(Store::open_existing(empty.path())).contains("glimpse-gallery ingest"));
    std::fs::write(empty.path().join("file"), "").unwrap();
    assert!(message(Store::open(&empty.path().join("file"), SPACE, 4)).contains("cannot open"));
}

#[test]
fn readers_see_one_generation_whatever_is_written_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 3);
    let reader = Reader::open(dir.path()).unwrap();
    let before = reader.now().unwrap();
    let mut other = Store::open(dir.path(), SPACE, 4).unwrap();
    other.put(&[entry(5)]).unwrap();
    store.put(&[entry(4)]).unwrap();
    assert_eq!(store.remove([entry(0).0.id.as_str(), "absent"]).unwrap(), 1);
    assert_eq!(store.meta().generation, 5, "commits of several writers are counted together");
    let after = reader.now().unwrap();
    assert_eq!((before.len(), before.meta().generation), (3, 2));
    assert!(before.get(&entry(0).0.id).unwrap().is_some());
    assert_eq!((after.len(), after.meta().generation), (4, 5));
    assert!(after.get(&entry(0).0.id).unwrap().is_none());
    assert_eq!(after.get(&entry(4).0.id).unwrap(), Some(entry(4)));
    let changed = after.changed_since(&before.state(), 100).unwrap().unwrap();
    assert_eq!(changed, [0, 4, 5].map(|number| entry(number).0.id));
    assert_eq!(after.changed_since(&after.state(), 100).unwrap().unwrap(), [""; 0]);
    assert_eq!(after.changed_since(&before.state(), 2).unwrap(), None, "more than were asked for");
    assert_eq!(before.changed_since(&after.state(), 100).unwrap(), None, "it cannot know");
    after.each(|_, _| true).unwrap();
}

#[test]
fn what_has_changed_is_known_only_of_the_same_gallery_and_not_from_too_long_ago() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = filled(dir.path(), 3);
    let state = |dir: &Path| Reader::open(dir).unwrap().now().unwrap().state();
    let first = state(dir.path());
    drop(filled(other.path(), 3));
    let foreign = state(other.path());
    assert_eq!(first.content, foreign.content, "the same images");
    store.put(&[entry(7)]).unwrap();
    let second = state(dir.path());
    let now = || Reader::open(dir.path()).unwrap().now().unwrap();
    assert_eq!(now().changed_since(&foreign, 9).unwrap(), None);
    assert_eq!(now().changed_since(&State { content: second.content, ..first }, 9).unwrap(), None);
    store.forget_changes(second.generation).unwrap();
    assert_eq!(now().changed_since(&first, 9).unwrap(), None);
    assert_eq!(now().changed_since(&second, 9).unwrap().unwrap().len(), 0);
    store.remove([entry(7).0.id.as_str()]).unwrap();
    assert_eq!(now().changed_since(&second, 9).unwrap().unwrap(), [entry(7).0.id]);
    assert_eq!(state(dir.path()).content, first.content, "what was added and removed leaves no trace");
    // Nothing to do is no generation.
    store.remove(["absent"]).unwrap();
    store.forget_changes(0).unwrap();
    assert_eq!(state(dir.path()).generation, second.generation + 1);
}

/// A record that damage has hidden, or one that nobody has committed, is found by counting and by the content.
#[test]
fn a_record_that_is_missing_or_was_slipped_in_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 5);
    let tamper = |change: &dyn Fn(&redb::WriteTransaction)| {
        let write = store.database.begin_write().unwrap();
        change(&write);
        write.commit().unwrap();
        message(load(dir.path()))
    };
    let id = entry(2).0.id;
    let gone = tamper(&|write| {
        write.open_table(RECORDS).unwrap().remove(id.as_str()).unwrap();
        write.open_table(FEATURES).unwrap().remove(id.as_str()).unwrap();
    });
    assert!(gone.contains("4 of 5 images"), "{gone}");
    let (other, feature) = entry(9);
    let bytes: Vec<u8> = feature.iter().flat_map(|x| x.to_le_bytes()).collect();
    let slipped = tamper(&|write| {
        let (attributes, check) = (other.attributes.encode(), other.record_check(&bytes));
        let row: (&str, &str, &[u8], &[u8; 32], &[u8; 8]) =
            (&other.path, &other.label, &attributes, &other.photo_hash, &check);
        write.open_table(RECORDS).unwrap().insert(other.id.as_str(), row).unwrap();
        write.open_table(FEATURES).unwrap().insert(other.id.as_str(), bytes.as_slice()).unwrap();
    });
    assert!(slipped.contains("not those that were committed"), "{slipped}");
}

#[test]
fn a_gallery_of_the_first_format_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let write_first = |spoil: bool| {
        let _ = std::fs::remove_file(dir.path().join(FILE));
        let database = Database::create(dir.path().join(FILE)).unwrap();
        let write = database.begin_write().unwrap();
        {
            let mut images = write.open_table(migrate::IMAGES_1).unwrap();
            let mut features = write.open_table(FEATURES).unwrap();
            for number in 0..20 {
                let (image, feature) = entry(number);
                let bytes: Vec<u8> = feature.iter().flat_map(|x| x.to_le_bytes()).collect();
                let mut check = migrate::check_1(&image, &bytes);
                check[0] ^= u8::from(spoil && number == 7);
                let row = (image.path.as_str(), image.label.as_str(), &image.photo_hash, &check);
                images.insert(image.id.as_str(), row).unwrap();
                features.insert(image.id.as_str(), bytes.as_slice()).unwrap();
            }
            let mut meta = write.open_table(META).unwrap();
            for (name, number) in [("format", 1_u64), ("dimension", 4), ("generation", 6)] {
                meta.insert(name, number.to_le_bytes().as_slice()).unwrap();
            }
            meta.insert("space", SPACE.as_bytes().as_slice()).unwrap();
        }
        write.commit().unwrap();
    };
    write_first(false);
    let snapshot = load(dir.path()).unwrap();
    assert_eq!((snapshot.meta.generation, snapshot.images.len()), (6, 20));
    for row in 0..20 {
        let (image, feature) = entry(row as usize);
        let image = Image { attributes: Attributes::default(), ..image };
        assert_eq!(shown(&snapshot, row), expected(&image));
        assert_eq!(snapshot.features[row as usize * 4..][..4], feature);
    }
    let mut store = Store::open(dir.path(), SPACE, 4).unwrap();
    store.put(&[entry(3)]).unwrap();
    let now = Reader::open(dir.path()).unwrap().now().unwrap();
    assert_eq!(now.changed_since(&snapshot.state, 9).unwrap().unwrap(), [entry(3).0.id]);
    drop((store, now));

    write_first(true);
    let error = message(load(dir.path()));
    assert!(error.contains("fruit/0007.jpg"), "{error}");
}

#[test]
fn a_copy_is_of_one_generation_and_takes_the_place_of_a_gallery() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = filled(dir.path(), 30);
    let copied = crate::backup::backup(dir.path(), copies.path()).unwrap();
    assert_eq!((copied.images, copied.generation), (30, 2));
    let (copy, whole) = (load(copies.path()).unwrap(), load(dir.path()).unwrap());
    assert_eq!((copy.state, &copy.features[..]), (whole.state, &whole.features[..]));
    assert!(message(crate::backup::backup(dir.path(), copies.path())).contains("holds a gallery already"));

    store.remove([entry(0).0.id.as_str()]).unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    crate::backup::restore(copies.path(), dir.path()).unwrap();
    assert!(reader.is_replaced());
    // A writer that had the old file open does not lose what it is given in it.
    assert!(message(store.put(&[entry(99)])).contains("was replaced"));
    assert_eq!(load(dir.path()).unwrap().state, copy.state);
    assert!(dir.path().join("gallery.redb.before-restore").exists());
    // What is damaged is not restored, and leaves what there is.
    std::fs::write(copies.path().join(FILE), b"no gallery").unwrap();
    assert!(crate::backup::restore(copies.path(), dir.path()).is_err());
    assert_eq!(load(dir.path()).unwrap().images.len(), 30);
}

#[test]
fn compaction_keeps_everything_and_waits_for_readers() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path(), 3000);
    let ids: Vec<String> = (0..2990).map(|number| entry(number).0.id).collect();
    store.remove(ids.iter().map(String::as_str)).unwrap();
    store.forget_changes(u64::MAX).unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    let held = reader.now().unwrap();
    assert!(message(store.compact()).contains("try again"));
    drop(held);
    let bytes = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    let before = bytes();
    assert!(store.compact().unwrap());
    assert!(bytes() < before / 2, "{} of {before} bytes", bytes());
    assert_eq!(load(dir.path()).unwrap().images.len(), 10);
    assert!(store.check_pages().unwrap());
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
                let same = read.state == expected.state
                    && read.images.iter().eq(expected.images.iter())
                    && read.features[..] == expected.features[..];
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
    // The header, which says which of two commits counts, bit by bit.
    for bit in 0..8 * 320 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        check(&bytes, &format!("bit {bit}"));
    }
    for length in (0..whole.len()).step_by(whole.len() / 60) {
        check(&whole[..length], &format!("length {length}"));
    }
    check(b"not a database at all", "another file");
    assert!(errors > 20, "{errors} errors, {harmless} harmless");
}
