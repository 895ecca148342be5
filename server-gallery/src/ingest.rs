//! Photos into the store: hashed, decoded and embedded on all cores, committed batch by batch.
//!
//! A photo whose bytes the store has already seen under the same id is not embedded again, so an ingest that was
//! interrupted, or killed, goes on where it stopped: at most one batch is embedded twice. Photos that cannot be read
//! are passed over and listed at the end. Nothing is ever removed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use glimpse_embedder::{EmbedError, Embedder, decode_photo};
use glimpse_protocol::SpaceId;
use rayon::prelude::*;

use crate::progress::Progress;
use crate::sources::Source;
use crate::store::{Image, ImageError, Store, StoreError};

/// Photos in one commit: a second of work or so, and a commit costs some milliseconds.
const BATCH_PER_CORE: usize = 16;

/// The largest photo file that is read, in bytes.
const PHOTO_BYTES_MAX: u64 = 256 << 20;

/// Turns a photo into a feature. A seam for tests, which have no network; [`Embedder`] is the one real implementation.
pub trait Embed: Sync {
    /// The space of its features.
    fn space(&self) -> SpaceId;
    /// Components of a feature, `D`.
    fn dimension(&self) -> usize;
    /// Photos that are embedded together.
    fn batch(&self) -> usize;
    /// What is embedded of the photo file with these bytes.
    ///
    /// # Errors
    /// Why this photo cannot be, for people.
    fn prepare(&self, photo: &[u8]) -> Result<Vec<f32>, String>;
    /// The unit feature, shape `[D]`, of each, or why it has none.
    fn embed(&self, prepared: &[Vec<f32>]) -> Vec<Result<Vec<f32>, String>>;
}

impl Embed for Embedder {
    fn space(&self) -> SpaceId {
        self.space()
    }

    fn dimension(&self) -> usize {
        self.dimension()
    }

    fn batch(&self) -> usize {
        self.network().batch()
    }

    fn prepare(&self, photo: &[u8]) -> Result<Vec<f32>, String> {
        let photo = decode_photo(photo).map_err(|error| error.to_string())?;
        Ok(self.metadata().preprocessing.tensor(&photo))
    }

    fn embed(&self, prepared: &[Vec<f32>]) -> Vec<Result<Vec<f32>, String>> {
        let told = |feature: Result<_, EmbedError>| feature.map_err(|error| error.to_string());
        self.embed_tensors(prepared).into_iter().map(told).collect()
    }
}

/// What an ingest did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Photos embedded and stored.
    pub stored: usize,
    /// Photos that were stored already, with the same label.
    pub unchanged: usize,
    /// Photos that were stored already, with another label, path or attribute.
    pub relabelled: usize,
    /// Photos passed over, and why.
    pub failed: Vec<(PathBuf, String)>,
    /// Photos left because `stop` was raised.
    pub left: usize,
}

impl Report {
    /// Photos that the gallery now holds.
    pub const fn good(&self) -> usize {
        self.stored + self.unchanged + self.relabelled
    }
}

/// Brings the store up to date with `sources`. When `stop` turns true the batch at hand is finished and committed.
///
/// # Errors
/// When the store fails. What was committed before stays.
pub fn run(
    store: &mut Store,
    embed: &impl Embed,
    sources: &[Source],
    stop: &AtomicBool,
) -> Result<Report, StoreError> {
    let known = store.images()?;
    let progress = Progress::new("ingesting", sources.len());
    let mut report = Report::default();
    let mut done = 0;
    for batch in sources.chunks(BATCH_PER_CORE * rayon::current_num_threads()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let photos: Vec<Photo> = batch
            .par_chunks(embed.batch().max(1))
            .flat_map_iter(|sources| {
                let photos = read(sources, embed, &known);
                sources.iter().for_each(|_| progress.done_one());
                photos
            })
            .collect();
        let (mut new, mut relabelled) = (Vec::new(), Vec::new());
        for (source, photo) in batch.iter().zip(photos) {
            match photo {
                Photo::New(image, feature) => new.push((image, feature)),
                Photo::Relabelled(image) => relabelled.push(image),
                Photo::Unchanged => report.unchanged += 1,
                Photo::Bad(reason) => report.failed.push((source.path.clone(), reason)),
            }
        }
        if !new.is_empty() {
            store.put(&new)?;
        }
        let changed = if relabelled.is_empty() { Vec::new() } else { store.relabel(&relabelled)? };
        report.relabelled += relabelled.len() - changed.len();
        let mut stored = new.len();
        // Somebody else has put another photo under their ids, or removed them, since we looked.
        let again = batch.iter().filter(|source| changed.contains(&source.id));
        for source in again {
            let photos = read(std::slice::from_ref(source), embed, &HashMap::new());
            match photos.into_iter().next().unwrap_or(Photo::Unchanged) {
                Photo::New(image, feature) => {
                    store.put(&[(image, feature)])?;
                    stored += 1;
                }
                Photo::Bad(reason) => report.failed.push((source.path.clone(), reason)),
                Photo::Relabelled(_) | Photo::Unchanged => {}
            }
        }
        report.stored += stored;
        done += batch.len();
    }
    report.left = sources.len() - done;
    Ok(report)
}

enum Photo {
    New(Image, Vec<f32>),
    Relabelled(Image),
    Unchanged,
    Bad(String),
}

/// What becomes of each; those that are new are embedded together.
fn read(sources: &[Source], embed: &impl Embed, known: &HashMap<String, Image>) -> Vec<Photo> {
    let mut prepared = Vec::new();
    let mut look = |source| {
        let (image, photo) = look(source, embed, known)?;
        prepared.push(photo);
        Ok(image)
    };
    let looked: Vec<Result<Image, Photo>> = sources.iter().map(&mut look).collect();
    let mut features = embed.embed(&prepared).into_iter();
    let mut embedded = |image| match features.next() {
        Some(Ok(feature)) => Photo::New(image, feature),
        Some(Err(reason)) => Photo::Bad(reason),
        None => Photo::Bad("it was not embedded".to_owned()),
    };
    looked.into_iter().map(|looked| looked.map_or_else(|known| known, &mut embedded)).collect()
}

/// A photo that is to be embedded, and what is embedded of it; or what became of it without.
fn look(
    source: &Source,
    embed: &impl Embed,
    known: &HashMap<String, Image>,
) -> Result<(Image, Vec<f32>), Photo> {
    let bytes = read_bounded(source).map_err(Photo::Bad)?;
    let image = Image {
        id: source.id.clone(),
        // A server may run in another folder.
        path: std::path::absolute(&source.path)
            .as_ref()
            .unwrap_or(&source.path)
            .to_string_lossy()
            .into_owned(),
        label: source.label.clone(),
        attributes: source.attributes.clone(),
        photo_hash: *blake3::hash(&bytes).as_bytes(),
    };
    let stored = known.get(&image.id);
    if stored == Some(&image) {
        return Err(Photo::Unchanged);
    }
    // Before the work of embedding; the feature's shape and norm after it, so that one bad photo spoils no batch.
    image.check().map_err(|error: ImageError| Photo::Bad(error.to_string()))?;
    if stored.is_some_and(|stored| stored.photo_hash == image.photo_hash) {
        return Err(Photo::Relabelled(image));
    }
    let prepared = embed.prepare(&bytes).map_err(Photo::Bad)?;
    Ok((image, prepared))
}

fn read_bounded(source: &Source) -> Result<Vec<u8>, String> {
    let bytes = std::fs::metadata(&source.path).map_err(|error| error.to_string())?.len();
    if bytes > PHOTO_BYTES_MAX {
        return Err(format!("the file has {bytes} bytes, and at most {PHOTO_BYTES_MAX} are read"));
    }
    std::fs::read(&source.path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::store::{self, Attributes};
    use crate::testing::SPACE;

    /// Embeds a file's first byte as an angle; a file that begins with `!` is no photo.
    #[derive(Default)]
    struct FirstByte {
        embedded: AtomicUsize,
        stop_after: Option<(usize, AtomicBool)>,
    }

    impl Embed for FirstByte {
        fn space(&self) -> SpaceId {
            SPACE
        }

        fn dimension(&self) -> usize {
            2
        }

        fn batch(&self) -> usize {
            2
        }

        fn prepare(&self, photo: &[u8]) -> Result<Vec<f32>, String> {
            let count = self.embedded.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some((after, stop)) = &self.stop_after {
                stop.fetch_or(count >= *after, Ordering::Relaxed);
            }
            match photo.first() {
                None | Some(b'!') => Err("not a photo".to_owned()),
                Some(byte) => Ok(vec![f32::from(*byte)]),
            }
        }

        fn embed(&self, prepared: &[Vec<f32>]) -> Vec<Result<Vec<f32>, String>> {
            prepared.iter().map(|angle| Ok(vec![angle[0].cos(), angle[0].sin()])).collect()
        }
    }

    fn write_photos(
        dir: &std::path::Path,
        names: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Vec<Source> {
        std::fs::create_dir_all(dir).unwrap();
        let write = |(id, bytes): (String, Vec<u8>)| {
            let path = dir.join(&id);
            std::fs::write(&path, bytes).unwrap();
            Source { label: format!("label of {id}"), id, path, attributes: Attributes::default() }
        };
        names.into_iter().map(write).collect()
    }

    fn ingest(dir: &std::path::Path, embed: &FirstByte, sources: &[Source]) -> Report {
        let mut store = Store::open(dir, embed.space(), embed.dimension()).unwrap();
        let never = AtomicBool::new(false);
        let stop = embed.stop_after.as_ref().map_or(&never, |(_, stop)| stop);
        run(&mut store, embed, sources, stop).unwrap()
    }

    #[test]
    fn a_bad_photo_is_passed_over_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let names = [("a.jpg", "a"), ("bad.jpg", "!"), ("c.jpg", "c")];
        let mut sources = write_photos(
            &dir.path().join("photos"),
            names.map(|(name, bytes)| (name.to_owned(), bytes.as_bytes().to_vec())),
        );
        sources.push(Source {
            id: "gone.jpg".to_owned(),
            path: dir.path().join("gone.jpg"),
            label: String::new(),
            attributes: Attributes::default(),
        });
        sources[2].label = "x".repeat(200);
        let report = ingest(&dir.path().join("g"), &FirstByte::default(), &sources);
        assert_eq!((report.stored, report.good(), report.failed.len()), (1, 1, 3));
        let reasons: Vec<&str> = report.failed.iter().map(|(_, reason)| reason.as_str()).collect();
        assert!(
            reasons[0] == "not a photo"
                && reasons[1].contains("shorten it")
                && reasons[2].contains("No such file"),
            "{reasons:?}"
        );
        assert_eq!(store::load(&dir.path().join("g")).unwrap().images.get(0).id, "a.jpg");
    }

    #[test]
    fn an_ingest_that_was_stopped_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let count = BATCH_PER_CORE * rayon::current_num_threads() * 4;
        let sources = write_photos(
            &dir.path().join("photos"),
            (0..count).map(|n| (format!("{n:05}.jpg"), vec![n as u8 | 0x80])),
        );
        let stopped =
            FirstByte { stop_after: Some((count / 3, AtomicBool::new(false))), ..FirstByte::default() };
        let first = ingest(&dir.path().join("g"), &stopped, &sources);
        assert_eq!((first.stored, first.left), (count / 2, count / 2));

        let resumed = FirstByte::default();
        let second = ingest(&dir.path().join("g"), &resumed, &sources);
        assert_eq!((second.stored, second.unchanged, second.left), (count / 2, count / 2, 0));
        assert_eq!(
            resumed.embedded.load(Ordering::Relaxed),
            count / 2,
            "stored photos are not embedded again"
        );
        assert_eq!(store::load(&dir.path().join("g")).unwrap().images.len(), count);
    }

    #[test]
    fn changed_photos_are_embedded_again_and_changed_labels_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let photos = dir.path().join("photos");
        let mut sources = write_photos(
            &photos,
            ["a", "b", "c"].map(|name| (format!("{name}.jpg"), name.as_bytes().to_vec())),
        );
        ingest(&dir.path().join("g"), &FirstByte::default(), &sources);
        std::fs::write(photos.join("a.jpg"), "z").unwrap();
        sources[1].label = "pear".to_owned();
        let embed = FirstByte::default();
        let report = ingest(&dir.path().join("g"), &embed, &sources);
        assert_eq!((report.stored, report.relabelled, report.unchanged), (1, 1, 1));
        assert_eq!(embed.embedded.load(Ordering::Relaxed), 1);
        let snapshot = store::load(&dir.path().join("g")).unwrap();
        assert_eq!(snapshot.features[..2], [f32::from(b'z').cos(), f32::from(b'z').sin()]);
        assert_eq!(snapshot.images.get(1).label, "pear");
    }
}
