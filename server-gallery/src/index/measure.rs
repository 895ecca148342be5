//! What is measured on an index once it is made: how much a search finds, and which similarity means "unknown".
//!
//! Vectors of the gallery serve as queries, each without itself: what is nearest to it among the others is what has to be found.
//! Queries of devices lie further away, but among the same lists.

use rand::SeedableRng;
use rand::seq::index;

use super::build::BuildError;
use super::core::{Core, Neighbour, Plan};

/// Vectors that serve as queries.
const SAMPLE: usize = 256;

/// Of a gallery where comparing with every vector takes long.
const SAMPLE_OF_MILLIONS: usize = 64;

/// Neighbours that have to be found: recall@10.
const NEAREST: usize = 10;

/// Candidates to compare exactly that are tried.
const RERANK: [usize; 7] = [50, 100, 200, 400, 800, 1600, 3200];

/// What a search finds of the ten nearest, and at what cost.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Recall {
    /// What was wanted.
    pub wanted: f32,
    /// Candidates that are compared exactly.
    pub rerank: usize,
    /// Lists that are looked up; 1 without lists.
    pub probes: usize,
    /// Recall by number of lists, ascending.
    pub curve: Vec<(usize, f32)>,
    /// Queries it was measured with.
    pub queries: usize,
}

impl Recall {
    /// The smallest number of lists that reaches a recall, or the largest that was measured.
    pub fn probes_for(&self, recall: f32) -> usize {
        let enough = self.curve.iter().find(|(_, found)| *found >= recall);
        enough.or(self.curve.last()).map_or(1, |(probes, _)| *probes)
    }
}

/// Chooses how many candidates and lists a recall takes, and fits the similarities of codes to those of features.
pub(super) fn measure_codes(
    core: &mut Core,
    wanted: f32,
    seed: u64,
    step: &mut dyn FnMut(usize, usize) -> Result<(), BuildError>,
) -> Result<Recall, BuildError> {
    let size = if core.count > 2_000_000 { SAMPLE_OF_MILLIONS } else { SAMPLE };
    let positions = sample(core.count, size, seed);
    let mut queries = vec![0.0; positions.len() * core.dimension];
    for (query, position) in queries.chunks_exact_mut(core.dimension).zip(&positions) {
        core.exact().read(*position, query);
    }
    let own: Vec<u32> = positions.iter().map(|position| core.row(*position as u32)).collect();
    let lists =
        core.codes.as_ref().and_then(|codes| codes.lists.as_ref()).map_or(1, |lists| lists.starts.len() - 1);
    let steps: Vec<usize> = std::iter::successors(Some(1), |probes| Some(probes * 2))
        .take_while(|p| *p < lists)
        .chain([lists])
        .collect();
    let all = 2 + steps.len();
    step(0, all)?;
    let truth = others(core.exactly(&queries, NEAREST + 1, None), &own);
    step(1, all)?;
    calibrate(core, &queries, lists);

    let recall_of =
        |plan: Plan| recall(&truth, &others(core.by_codes(&queries, NEAREST + 1, plan, None), &own));
    // Half of what may be lost is lost to the codes, the other half to lists that are passed over.
    let by_codes = if lists > 1 { wanted + (1.0 - wanted) / 2.0 } else { wanted };
    let mut rerank = RERANK[0];
    for candidates in RERANK {
        rerank = candidates;
        if recall_of(Plan { rerank, probes: lists }) >= by_codes {
            break;
        }
    }
    let mut curve = Vec::new();
    for (number, probes) in steps.into_iter().enumerate() {
        step(2 + number, all)?;
        curve.push((probes, recall_of(Plan { rerank, probes })));
        if curve.last().is_some_and(|(_, found)| *found >= 0.999) {
            break;
        }
    }
    step(all, all)?;
    let mut recall = Recall { wanted, rerank, probes: 1, curve, queries: own.len() };
    recall.probes = recall.probes_for(wanted);
    Ok(recall)
}

/// Fits `exact = offset + slope * coded` on the candidates that searches find.
fn calibrate(core: &mut Core, queries: &[f32], lists: usize) {
    // A hundred candidates for each, as a search by codes alone would return them, and what they are. Not all of a small
    // gallery: then every vector would be compared exactly.
    let coded = core.by_codes(queries, 100.min(core.count / 2), Plan { rerank: 0, probes: lists }, None);
    let (mut n, mut x, mut y, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (query, found) in queries.chunks_exact(core.dimension).zip(coded) {
        let positions: Vec<u32> = found
            .iter()
            .map(|neighbour| core.places().map_or(neighbour.row, |places| places[neighbour.row as usize]))
            .collect();
        let mut exact = vec![0.0; positions.len()];
        core.exact().similarities(query, &positions, &mut exact);
        for (neighbour, exact) in found.iter().zip(exact) {
            let (coded, exact) = (f64::from(neighbour.similarity), f64::from(exact));
            n += 1.0;
            x += coded;
            y += exact;
            xx += coded * coded;
            xy += coded * exact;
        }
    }
    let spread = xx - x * x / n;
    if let Some(codes) = core.codes.as_mut().filter(|_| n > 1.0 && spread > 1e-9) {
        let slope = (xy - x * y / n) / spread;
        // One that falls would turn the order around.
        if slope > 0.0 {
            codes.calibration = (((y - slope * x) / n) as f32, slope as f32);
        }
    }
}

/// At most `size` numbers below `count`, ascending.
fn sample(count: usize, size: usize, seed: u64) -> Vec<usize> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = index::sample(&mut random, count, size.min(count)).into_vec();
    chosen.sort_unstable();
    chosen
}

/// The neighbours of each query without itself, at most [`NEAREST`].
fn others(found: Vec<Vec<Neighbour>>, own: &[u32]) -> Vec<Vec<Neighbour>> {
    let without = |(mut found, own): (Vec<Neighbour>, &u32)| {
        found.retain(|neighbour| neighbour.row != *own);
        found.truncate(NEAREST);
        found
    };
    found.into_iter().zip(own).map(without).collect()
}

/// The share of `truth` that is in `found`. What is as near as the last of the truth counts as well.
fn recall(truth: &[Vec<Neighbour>], found: &[Vec<Neighbour>]) -> f32 {
    let (mut all, mut hit) = (0, 0);
    for (truth, found) in truth.iter().zip(found) {
        let Some(last) = truth.last() else { continue };
        all += truth.len();
        hit +=
            found.iter().filter(|neighbour| neighbour.similarity >= last.similarity).count().min(truth.len());
    }
    if all == 0 { 1.0 } else { hit as f32 / all as f32 }
}

/// A similarity below which a photo is taken to show nothing that is in the gallery.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Unknown {
    /// Matches of a smaller similarity are none.
    pub below: f32,
    /// The share of photos of unknown things that still get a match, as wanted.
    pub accepted: f32,
    /// The share of photos of known things, on the sample, whose best match stays; `None` where no label has two photos.
    pub kept: Option<f32>,
    /// Photos it was learned from.
    pub photos: usize,
}

/// Why no threshold can be learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a threshold can be learned from at least {UNKNOWN_PHOTOS_MIN} photos with labels, of at least two things, and this gallery has {photos} that could serve"
)]
pub struct UnknownError {
    photos: usize,
}

/// Photos that a threshold is learned from at least: a hundredth of fewer is no number.
const UNKNOWN_PHOTOS_MIN: usize = 100;

/// Photos that a threshold is learned from at most.
const UNKNOWN_PHOTOS_MAX: usize = 2000;

/// Neighbours among which the nearest photo of another thing is looked for.
const UNKNOWN_NEIGHBOURS: usize = 200;

/// Learns the threshold at which a share `accepted` of the photos of unknown things would still get a match.
///
/// Each photo of a sample is searched for as if the thing it shows (`label`, by row) were not in the gallery: its nearest photo of
/// another thing is what an unknown photo would be answered with. The threshold is a quantile of those similarities. Photos
/// without a label could show the same thing, and serve neither as queries nor as answers.
pub(super) fn learn_unknown<L: PartialEq>(
    core: &Core,
    plan: Plan,
    accepted: f32,
    seed: u64,
    label: impl Fn(u32) -> Option<L>,
) -> Result<Unknown, UnknownError> {
    let mut strangers = Vec::new();
    let mut friends = Vec::new();
    let positions = sample(core.count, UNKNOWN_PHOTOS_MAX, seed);
    let mut query = vec![0.0; core.dimension * positions.len()];
    for (query, position) in query.chunks_exact_mut(core.dimension).zip(&positions) {
        core.exact().read(*position, query);
    }
    let found = core.by_codes(&query, UNKNOWN_NEIGHBOURS, plan, None);
    for (position, found) in positions.into_iter().zip(found) {
        let own = core.row(position as u32);
        let Some(mine) = label(own) else { continue };
        let others = found.into_iter().filter(|neighbour| neighbour.row != own);
        let labelled: Vec<(f32, bool)> =
            others.filter_map(|one| Some((one.similarity, label(one.row)? == mine))).collect();
        let Some(stranger) = labelled.iter().find(|(_, same)| !same) else { continue };
        strangers.push(stranger.0);
        friends.extend(labelled.iter().find(|(_, same)| *same).map(|friend| friend.0));
    }
    if strangers.len() < UNKNOWN_PHOTOS_MIN {
        return Err(UnknownError { photos: strangers.len() });
    }
    strangers.sort_unstable_by(f32::total_cmp);
    let place = ((1.0 - accepted.clamp(0.0, 1.0)) * strangers.len() as f32).ceil() as usize;
    let below = strangers[place.min(strangers.len() - 1)];
    let kept = friends.iter().filter(|similarity| **similarity >= below).count();
    let kept = (!friends.is_empty()).then(|| kept as f32 / friends.len() as f32);
    Ok(Unknown { below, accepted, kept, photos: strangers.len() })
}
