//! The gallery while it is served: what other processes commit becomes visible within a fraction of a second, and once much
//! has changed a new index is made beside the searches and swapped in.
//!
//! A thread looks several times a second which generation the store has. It lays what has changed over the index
//! ([`View::advance`]), or takes up an index that another process has made. Making an index is the work of a second thread, on
//! fewer cores than there are, at a lower priority. Whatever fails leaves the view that there is: it is said once, told by
//! [`Live::trouble`], and tried again.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use glimpse_embedder::SpaceBundle;

use crate::gallery::{self, CHANGES_MAX, GalleryError, INDEX};
use crate::index::{IndexOptions, Watch};
use crate::store::{Committed, Reader};
use crate::told::told;
use crate::view::View;

/// Between two looks at the store.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After something failed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How long an index that is being made is waited for when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The least time between two indexes of one server.
const INDEX_EVERY: Duration = Duration::from_secs(10);

/// The gallery that a server answers from.
pub struct Live {
    view: RwLock<Arc<View>>,
    trouble: Mutex<Option<String>>,
    indexing: AtomicBool,
}

/// Keeps a [`Live`] up to date until it is dropped.
pub struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// A gallery that stays as it is.
    pub fn fixed(view: View) -> Arc<Self> {
        let view = RwLock::new(Arc::new(view));
        Arc::new(Self { view, trouble: Mutex::default(), indexing: AtomicBool::new(false) })
    }

    /// The gallery as it is now. Whoever searches keeps it for one query, or one batch.
    pub fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the newest changes cannot be seen, where they cannot.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a new index is being made.
    pub fn is_indexing(&self) -> bool {
        self.indexing.load(Ordering::Relaxed)
    }

    fn show(&self, view: View) {
        let (state, size) = (view.state(), view.len());
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        tracing::debug!(generation = state.generation, size, "a new generation is served");
    }

    /// Says what is wrong once, until it is another thing.
    fn tell(&self, trouble: Option<String>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != trouble {
            if let Some(trouble) = &trouble {
                tracing::error!("the gallery stays as it was: {trouble}");
            } else {
                tracing::info!("the gallery is up to date again");
            }
            *known = trouble;
        }
    }
}

impl Follower {
    /// Opens a gallery and follows it.
    ///
    /// # Errors
    /// As [`gallery::open`].
    pub fn start(
        dir: &Path,
        bundle: &Path,
        watch: Watch<'_>,
    ) -> Result<(SpaceBundle, Arc<Live>, Self), GalleryError> {
        let bundle = SpaceBundle::load(bundle)?;
        // Before the index is opened: one that is replaced meanwhile is opened once more, and none is missed.
        let index = IndexFile::of(&dir.join(INDEX));
        let reader = Reader::open(dir)?;
        let live = Live::fixed(gallery::view(dir, &bundle, &reader, watch)?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut following = Following {
            dir: dir.to_owned(),
            bundle: bundle.clone(),
            live: live.clone(),
            reader: Some(reader),
            index,
            indexer: None,
            made: None,
            last_index: None,
            failed: None,
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new().name("gallery".to_owned()).spawn(move || following.run());
        let thread = thread.map_err(GalleryError::Thread)?;
        Ok((bundle, live, Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows the gallery has panicked: report it");
        }
    }
}

/// What tells one index file from another: they are only ever replaced as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IndexFile(Option<(u64, SystemTime)>);

impl IndexFile {
    fn of(path: &Path) -> Self {
        let of = |metadata: std::fs::Metadata| Some((metadata.len(), metadata.modified().ok()?));
        Self(std::fs::metadata(path).ok().and_then(of))
    }
}

struct Following {
    dir: PathBuf,
    bundle: SpaceBundle,
    live: Arc<Live>,
    /// `None` after a failure: it is opened anew.
    reader: Option<Reader>,
    index: IndexFile,
    indexer: Option<Indexer>,
    /// A new index that is not shown yet.
    made: Option<View>,
    /// When the last index was begun.
    last_index: Option<Instant>,
    /// Why the last one could not be made, and how often in a row.
    failed: Option<(String, u32)>,
    stop: Arc<AtomicBool>,
}

/// A new index being made.
struct Indexer {
    thread: JoinHandle<Result<View, GalleryError>>,
    started: Instant,
}

impl Following {
    fn run(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let looked = std::panic::catch_unwind(AssertUnwindSafe(|| self.look()));
            let pause = match looked.unwrap_or(Err(GalleryError::Panicked)) {
                Ok(()) => {
                    self.live.tell(self.failed.as_ref().map(|(reason, _)| format!("no new index: {reason}")));
                    LOOK_EVERY
                }
                Err(error) => {
                    self.reader = None;
                    self.live.tell(Some(told(&error.into())));
                    LOOK_AGAIN_AFTER
                }
            };
            let until = Instant::now() + pause;
            while !self.stop.load(Ordering::Relaxed) && Instant::now() < until {
                std::thread::sleep(LOOK_EVERY.min(pause));
            }
        }
        // It sees `stop` between two steps of its work. One that is writing is left behind: what it writes is renamed as a whole.
        let until = Instant::now() + STOP_WITHIN;
        while self.indexer.as_ref().is_some_and(|indexer| !indexer.thread.is_finished())
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn look(&mut self) -> Result<(), GalleryError> {
        self.take_made_index();
        let reader = match self.reader.take().filter(|reader| !reader.is_replaced()) {
            Some(reader) => reader,
            None => Reader::open(&self.dir)?,
        };
        let now = reader.now()?;
        self.reader = Some(reader);
        now.meta().check_space(&self.dir, self.bundle.space, self.bundle.dimension)?;
        if let Some(made) = &self.made {
            let next = made.advance(&now, CHANGES_MAX)?;
            // One that is behind by more than that is nearer to now than what is shown.
            if let Some(next) = next.or_else(|| self.made.take_if(|made| is_newer(made, &self.live, &now))) {
                self.live.show(next);
            }
            self.made = None;
            gallery::forget_changes(&self.dir, self.live.view().base().state().generation);
        } else if let Some(other) = self.index_of_another_process()?
            && let Some(other) = other.advance(&now, CHANGES_MAX)?
        {
            self.live.show(other);
        }
        let view = self.live.view();
        let mut too_far = false;
        if view.state() != now.state() {
            match view.advance(&now, CHANGES_MAX.saturating_sub(view.changes()))? {
                Some(next) => self.live.show(next),
                None => too_far = true,
            }
        }
        let wanted = too_far || gallery::worth_an_index(&self.live.view());
        if self.indexer.is_none() && wanted && self.has_rested() {
            self.last_index = Some(Instant::now());
            self.start_index(now)?;
        }
        if !wanted {
            self.failed = None;
        }
        Ok(())
    }

    /// Whether the last index is long enough ago; after failures longer and longer.
    fn has_rested(&self) -> bool {
        let failures = self.failed.as_ref().map_or(0, |(_, times)| *times);
        let rest = INDEX_EVERY.saturating_mul(1 << failures.min(6));
        self.last_index.is_none_or(|last| last.elapsed() >= rest)
    }

    /// The view of an index file that was replaced. One that is damaged changes nothing.
    fn index_of_another_process(&mut self) -> Result<Option<View>, GalleryError> {
        let file = IndexFile::of(&self.dir.join(INDEX));
        if file == self.index {
            return Ok(None);
        }
        let other = gallery::kept(&self.dir, &self.bundle)?;
        self.index = file;
        let shown = self.live.view().base().state();
        Ok(other.filter(|other| other.state() != shown).map(|index| View::of(Arc::new(index))))
    }

    fn take_made_index(&mut self) {
        let Some(indexer) = self.indexer.take_if(|indexer| indexer.thread.is_finished()) else { return };
        self.live.indexing.store(false, Ordering::Relaxed);
        match indexer.thread.join().unwrap_or(Err(GalleryError::Panicked)) {
            Ok(made) => {
                let seconds = indexer.started.elapsed().as_secs_f64();
                tracing::info!(generation = made.state().generation, size = made.len(), seconds, "new index");
                self.index = IndexFile::of(&self.dir.join(INDEX));
                self.failed = None;
                self.made = Some(made);
            }
            Err(error) => {
                let times = self.failed.as_ref().map_or(0, |(_, times)| *times) + 1;
                self.failed = Some((told(&error.into()), times));
            }
        }
    }

    fn start_index(&mut self, of: Committed) -> Result<(), GalleryError> {
        tracing::info!(generation = of.state().generation, "making a new index");
        let (dir, bundle, stop) = (self.dir.clone(), self.bundle.clone(), self.stop.clone());
        let make = move || {
            let mut watch = |_, _, _| !stop.load(Ordering::Relaxed);
            let index = gallery::make(&dir, &bundle, of, &IndexOptions::default(), &mut watch)?;
            Ok(View::of(Arc::new(index)))
        };
        let in_background = move || match background_pool() {
            Ok(pool) => pool.install(make),
            Err(error) => {
                tracing::debug!(%error, "no threads of their own for the index: it takes those of the searches");
                make()
            }
        };
        let thread = std::thread::Builder::new().name("indexer".to_owned()).spawn(in_background);
        let thread = thread.map_err(GalleryError::Thread)?;
        self.live.indexing.store(true, Ordering::Relaxed);
        self.indexer = Some(Indexer { thread, started: Instant::now() });
        Ok(())
    }
}

/// Whether a view is of the gallery that there is now, and what is shown is of another, or is older.
fn is_newer(view: &View, live: &Live, now: &Committed) -> bool {
    let (state, shown, now) = (view.state(), live.view().state(), now.state());
    let later = shown.generation < state.generation && state.generation <= now.generation;
    state.gallery == now.gallery && (shown.gallery != now.gallery || later)
}

/// Half of the cores, which give way to whoever answers.
fn background_pool() -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(rayon::current_num_threads().div_ceil(2))
        .thread_name(|number| format!("indexer-{number}"))
        .start_handler(|_| {
            // On Linux a thread's own. Where it is refused the index is only made sooner.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::nice(10);
        })
        .build()
}

#[cfg(test)]
mod tests {
    use glimpse_embedder::Preprocessing;

    use super::*;
    use crate::index::SearchOptions;
    use crate::store::Store;
    use crate::testing::{SPACE, images, random_units};

    const D: usize = 16;
    const WAIT: Duration = Duration::from_secs(30);

    struct Served {
        place: tempfile::TempDir,
        live: Arc<Live>,
        _follower: Follower,
    }

    impl Served {
        fn start(count: usize) -> Self {
            let place = tempfile::tempdir().unwrap();
            let bundle = place.path().join("b");
            std::fs::create_dir(&bundle).unwrap();
            let preprocessing = Preprocessing { width: 32, height: 32, mean: [0.5; 3], std: [0.5; 3] };
            let (name, dir) = ("test".to_owned(), bundle.clone());
            SpaceBundle { dir, name, space: SPACE, dimension: D, preprocessing, quantizer: None }
                .write()
                .unwrap();
            put(&place.path().join("g"), 0..count);
            let (_, live, follower) =
                Follower::start(&place.path().join("g"), &bundle, &mut |_, _, _| true).unwrap();
            Self { place, live, _follower: follower }
        }

        fn gallery(&self) -> PathBuf {
            self.place.path().join("g")
        }

        fn until(&self, what: &str, holds: impl Fn(&View) -> bool) {
            let started = Instant::now();
            while !holds(&self.live.view()) {
                assert!(started.elapsed() < WAIT, "{what}: {:?}", self.live.trouble());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn put(dir: &Path, rows: std::ops::Range<usize>) {
        let all = random_units(rows.end, D, 1);
        let rows: Vec<_> =
            images(rows.end).into_iter().zip(all.chunks(D).map(<[f32]>::to_vec)).skip(rows.start).collect();
        Store::open(dir, SPACE, D).unwrap().put(&rows).unwrap();
    }

    #[test]
    fn what_others_commit_is_seen_and_a_query_keeps_what_it_began_with() {
        let served = Served::start(20);
        let before = served.live.view();
        put(&served.gallery(), 20..25);
        served.until("added", |view| view.len() == 25);
        Store::open_existing(&served.gallery()).unwrap().remove(["000003", "000024"]).unwrap();
        served.until("removed", |view| view.len() == 23 && view.image("000003").is_none());
        assert_eq!((before.len(), before.image("000003").is_some()), (20, true));
        assert_eq!(served.live.trouble(), None);
    }

    #[test]
    fn a_new_index_is_made_once_much_has_changed_and_taken_up_from_other_processes() {
        let served = Served::start(20);
        let first = served.live.view().base().state();
        put(&served.gallery(), 20..400);
        served.until("indexed", |view| view.base().len() == 400 && view.changes() == 0);
        assert_ne!(served.live.view().base().state(), first);
        let query = &random_units(400, D, 1)[399 * D..];
        let view = served.live.view();
        assert_eq!(view.search(query, &SearchOptions::top(1).into(), None)[0][0].image.id, "000399");

        put(&served.gallery(), 400..401);
        served.until("added", |view| view.changes() == 1);
        let bundle = SpaceBundle::load(&served.place.path().join("b")).unwrap();
        let now = Reader::open(&served.gallery()).unwrap().now().unwrap();
        gallery::make(&served.gallery(), &bundle, now, &IndexOptions::default(), &mut |_, _, _| true)
            .unwrap();
        served.until("taken up", |view| view.base().len() == 401 && view.changes() == 0);
    }

    #[test]
    fn a_gallery_that_is_damaged_while_it_is_served_stays_as_it_was_until_it_is_restored() {
        let served = Served::start(30);
        let copies = served.place.path().join("copies");
        crate::backup::backup(&served.gallery(), &copies).unwrap();
        put(&served.gallery(), 30..31);
        served.until("added", |view| view.len() == 31);
        std::fs::rename(served.gallery().join(crate::store::FILE), served.place.path().join("away")).unwrap();
        let started = Instant::now();
        while served.live.trouble().is_none() {
            assert!(started.elapsed() < WAIT, "nobody noticed");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(served.live.view().len(), 31);
        crate::backup::restore(&copies, &served.gallery()).unwrap();
        served.until("restored", |view| view.len() == 30);
        // The index was still of what is gone.
        put(&served.gallery(), 30..32);
        served.until("added again", |view| view.len() == 32);
        assert_eq!(served.live.trouble(), None);
    }
}
