//! What the index finds of what it should, measured on the queries that come.
//!
//! Now and then an answered query is kept, searched again by comparing with every image, and its answer held against that.
//! One thread at the lowest priority does it and rests twenty times as long as it worked, so that it takes a twentieth of a
//! core at most; between two samples a query costs one load of a flag.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use glimpse_protocol::Reply;
use serde::Serialize;

use crate::matcher::Encoding;

/// Nearest images that count: recall@10.
const NEAREST: usize = 10;

/// Samples that the running figure is a mean of.
const WINDOW: usize = 1000;

/// The shortest rest between two samples, and the longest.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

/// So much less similar than the last of the nearest may an image be that counts as equally near: rounding.
const TIE: f32 = 1e-6;

/// Searches by comparing with every image.
pub trait Exact: Send + Sync {
    /// The `count` nearest images to the query in a message, as a device sent it. `None` where it would be refused now.
    fn exact(&self, content_type: Option<&str>, query: &[u8], count: usize) -> Option<Nearest>;
}

/// What an exact search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Nearest {
    /// Of the gallery that was searched.
    pub generation: u64,
    /// Ids and similarities, nearest first.
    pub images: Vec<(String, f32)>,
}

/// The running figure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RecallFigure {
    /// Mean share of the ten nearest images that were found, over the last thousand samples; `None` before the first.
    pub mean: Option<f64>,
    /// Samples in the mean.
    pub window: usize,
    /// Samples since the server started.
    pub samples: u64,
}

/// An answered query, to be searched again.
struct Sample {
    content_type: Option<String>,
    query: Vec<u8>,
    encoding: Encoding,
    reply: Vec<u8>,
}

/// Takes samples and keeps the figure.
pub(super) struct Sampler {
    wanted: AtomicBool,
    samples: Mutex<Option<SyncSender<Sample>>>,
    figure: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    shares: VecDeque<f32>,
    samples: u64,
}

impl Sampler {
    pub(super) fn new() -> Self {
        Self { wanted: AtomicBool::new(false), samples: Mutex::default(), figure: Mutex::default() }
    }

    /// Keeps the query if one is wanted now.
    pub(super) fn offer(&self, content_type: Option<&str>, query: &[u8], encoding: Encoding, reply: &[u8]) {
        if !self.wanted.load(Ordering::Relaxed) || !self.wanted.swap(false, Ordering::Relaxed) {
            return;
        }
        let content_type = content_type.map(str::to_owned);
        let sample = Sample { content_type, query: query.to_vec(), encoding, reply: reply.to_vec() };
        if let Some(samples) = &*self.samples.lock().unwrap_or_else(PoisonError::into_inner) {
            // One waits at most: `wanted` is raised when it was taken.
            let _ = samples.try_send(sample);
        }
    }

    pub(super) fn figure(&self) -> RecallFigure {
        let figure = self.figure.lock().unwrap_or_else(PoisonError::into_inner);
        let window = figure.shares.len();
        let sum: f64 = figure.shares.iter().copied().map(f64::from).sum();
        RecallFigure { mean: (window > 0).then(|| sum / window as f64), window, samples: figure.samples }
    }

    fn add(&self, share: f32) {
        let mut figure = self.figure.lock().unwrap_or_else(PoisonError::into_inner);
        if figure.shares.len() == WINDOW {
            figure.shares.pop_front();
        }
        figure.shares.push_back(share);
        figure.samples += 1;
    }
}

/// Measures from now on, against what `exact` finds, until [`stop`] or the sampler's end.
///
/// # Errors
/// When there is no thread to be had.
pub(super) fn start(sampler: &Arc<Sampler>, exact: Arc<dyn Exact>) -> std::io::Result<()> {
    // One thread of its own for a search that otherwise takes all cores.
    let alone = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| "recall".to_owned())
        .start_handler(|_| yield_to_all_others())
        .build()
        .map_err(std::io::Error::other)?;
    let (send, samples) = sync_channel(1);
    *sampler.samples.lock().unwrap_or_else(PoisonError::into_inner) = Some(send);
    sampler.wanted.store(true, Ordering::Relaxed);
    let sampler = Arc::downgrade(sampler);
    alone.spawn(move || {
        while let Some((sample, measured)) = next(&samples).zip(sampler.upgrade()) {
            let started = Instant::now();
            if let Some(share) = measure(&sample, &*exact) {
                measured.add(share);
            }
            let rest = (20 * started.elapsed()).clamp(REST.0, REST.1);
            drop(measured);
            std::thread::sleep(rest);
            let Some(sampler) = sampler.upgrade() else { return };
            sampler.wanted.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Takes no sample any more; the thread ends, and lets go of the gallery.
pub(super) fn stop(sampler: &Sampler) {
    sampler.wanted.store(false, Ordering::Relaxed);
    *sampler.samples.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn next(samples: &Receiver<Sample>) -> Option<Sample> {
    samples.recv().ok()
}

/// The share of the nearest images that the reply has, at most [`NEAREST`] and as many as it has matches. `None` where there
/// are none, or the gallery has changed since.
fn measure(sample: &Sample, exact: &dyn Exact) -> Option<f32> {
    let reply: Reply = sample.encoding.read(&sample.reply).ok()?;
    let wanted = reply.matches.len().min(NEAREST);
    // Twice as many, so that images as near as the last one that counts are known.
    let nearest = exact.exact(sample.content_type.as_deref(), &sample.query, 2 * wanted.max(1))?;
    if wanted == 0 || nearest.generation != reply.generation {
        return None;
    }
    let last = nearest.images.get(wanted - 1)?.1 - TIE;
    let near: Vec<&str> =
        nearest.images.iter().filter(|image| image.1 >= last).map(|image| image.0.as_str()).collect();
    let found =
        reply.matches.iter().take(wanted).filter(|found| near.contains(&found.image.as_str())).count();
    Some(found as f32 / wanted as f32)
}

fn yield_to_all_others() {
    // On Linux this is the calling thread's alone; elsewhere it would be the process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the measuring of recall keeps the usual priority");
    }
}

#[cfg(test)]
mod tests {
    use glimpse_protocol::{Match, QueryId, VERSION};

    use super::*;

    struct Fixed(u64, Vec<(String, f32)>);

    impl Exact for Fixed {
        fn exact(&self, _: Option<&str>, _: &[u8], count: usize) -> Option<Nearest> {
            Some(Nearest { generation: self.0, images: self.1.iter().take(count).cloned().collect() })
        }
    }

    fn sample(images: &[&str], encoding: Encoding) -> Sample {
        let found = |image: &&str| Match {
            image: (*image).try_into().unwrap(),
            label: "l".try_into().unwrap(),
            similarity: 0.5,
        };
        let matches = images.iter().map(found).collect();
        let reply: Reply =
            Reply { v: VERSION, id: QueryId::from_bytes([1; 16]), matches, took_us: 1, generation: 3 };
        Sample { content_type: None, query: vec![1], encoding, reply: encoding.write(&reply) }
    }

    #[test]
    fn recall_is_the_share_of_the_nearest_images_that_were_found() {
        let exact = |similarities: &[f32]| {
            let images = similarities.iter().enumerate().map(|(n, similarity)| (format!("{n}"), *similarity));
            Fixed(3, images.collect())
        };
        let ranked = exact(&[0.9, 0.8, 0.7, 0.6]);
        let tied = exact(&[0.9, 0.8, 0.8, 0.6]);
        for (found, against, expected) in [
            (&["0", "1"][..], &ranked, Some(1.0)),
            (&["1", "0"], &ranked, Some(1.0)),
            (&["0", "3"], &ranked, Some(0.5)),
            (&["3", "2"], &ranked, Some(0.0)),
            (&["0", "2"], &tied, Some(1.0)),
            (&[], &ranked, None),
        ] {
            for encoding in [Encoding::Cbor, Encoding::Json] {
                assert_eq!(measure(&sample(found, encoding), against), expected, "{found:?}");
            }
        }
        assert_eq!(measure(&sample(&["0"], Encoding::Cbor), &Fixed(4, ranked.1)), None, "another generation");
    }

    #[test]
    fn a_sample_is_taken_only_when_one_is_wanted() {
        let sampler = Arc::new(Sampler::new());
        let offer = || {
            let Sample { query, encoding, reply, .. } = sample(&["0"], Encoding::Cbor);
            sampler.offer(None, &query, encoding, &reply);
        };
        offer();
        assert_eq!(sampler.figure(), RecallFigure::default());
        start(&sampler, Arc::new(Fixed(3, vec![("0".to_owned(), 0.9)]))).unwrap();
        offer();
        offer();
        let started = Instant::now();
        while sampler.figure().samples == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "no sample was measured");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(sampler.figure(), RecallFigure { mean: Some(1.0), window: 1, samples: 1 });
        stop(&sampler);
    }
}
