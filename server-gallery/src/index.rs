//! Search over a gallery in memory: product quantizer codes to find candidates, exact features to rank them.
//!
//! A query is compared with every code through one ADC table (asymmetric in the sense of the quantizer: the query is
//! not quantized), which costs `M` look-ups an image instead of `D` multiplications and reads `M` bytes instead of
//! `4 D`. The best `rerank` candidates are then compared exactly. Without a codebook, or on request, every image is
//! compared exactly.
//!
//! Codes are computed here, when a gallery is loaded, and are stored nowhere: encoding costs `K D` multiplications an
//! image (about a second for 50 000 images of 256 dimensions on two cores), and a stored code would be wrong, without
//! anybody noticing, from the day the bundle gets another codebook.

use glimpse_quantizer::Codebook;
use rayon::prelude::*;
use thiserror::Error;

use crate::store::{Image, Meta, Snapshot};

/// Images from which on one query is spread over all cores: below, handing the work over costs more than it saves.
const PARALLEL_FROM: usize = 20_000;

/// How a query is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Compare with every feature.
    Exact,
    /// Find `rerank` candidates by their codes, then compare with their features. Exact where there is no codebook.
    Adc {
        /// Candidates to compare exactly; at least `top_k` are taken.
        rerank: usize,
    },
}

impl Mode {
    /// ADC with the default number of candidates for `top_k` matches: ten times as many, and at least 100.
    pub fn default_for(top_k: usize) -> Self {
        Self::Adc { rerank: (10 * top_k).max(100) }
    }
}

/// An image that answers a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit<'a> {
    /// The image.
    pub image: &'a Image,
    /// Cosine with the query; larger means nearer.
    pub similarity: f32,
}

/// Why a gallery cannot be searched with a codebook.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the codebook is for {codebook} dimensions, and the gallery has {gallery}: the bundle's files do not belong together"
)]
pub struct CodebookMismatch {
    codebook: usize,
    gallery: usize,
}

/// An immutable gallery, ready to be searched from many threads.
pub struct Index {
    meta: Meta,
    images: Vec<Image>,
    /// `[n, D]` row-major.
    features: Vec<f32>,
    /// With its codes, `[n, M]` row-major.
    codebook: Option<(Codebook, Vec<u8>)>,
}

impl Index {
    /// Encodes all features with the codebook, on all cores.
    ///
    /// # Errors
    /// Where codebook and gallery differ in dimension.
    pub fn new(snapshot: Snapshot, codebook: Option<Codebook>) -> Result<Self, CodebookMismatch> {
        let Snapshot { meta, images, features } = snapshot;
        let mismatch = |codebook: &Codebook| CodebookMismatch {
            codebook: codebook.dimension(),
            gallery: meta.dimension,
        };
        let codebook = codebook.map(|codebook| {
            if codebook.dimension() != meta.dimension {
                return Err(mismatch(&codebook));
            }
            let mut codes = vec![0; images.len() * codebook.sub_spaces()];
            codes
                .par_chunks_exact_mut(codebook.sub_spaces())
                .zip(features.par_chunks_exact(meta.dimension))
                .try_for_each(|(code, feature)| codebook.encode(feature, code))
                .map_err(|_| mismatch(&codebook))?;
            Ok((codebook, codes))
        });
        Ok(Self { meta, images, features, codebook: codebook.transpose()? })
    }

    /// What the gallery is.
    pub const fn meta(&self) -> Meta {
        self.meta
    }

    /// Number of images.
    pub const fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is no image.
    pub const fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The codebook that reads and writes `pq` codes, if there is one.
    pub fn codebook(&self) -> Option<&Codebook> {
        self.codebook.as_ref().map(|(codebook, _)| codebook)
    }

    /// The `top_k` images nearest to a unit query of shape `[D]`, nearest first; fewer where the gallery is smaller.
    /// Equally near images come in the order of their ids.
    pub fn search(&self, query: &[f32], top_k: usize, mode: Mode) -> Vec<Hit<'_>> {
        debug_assert_eq!(query.len(), self.meta.dimension);
        let candidates = match (mode, &self.codebook) {
            // Codes cannot narrow a gallery down that is not larger than the candidates.
            (Mode::Adc { rerank }, Some((codebook, codes))) if rerank.max(top_k) < self.len() => {
                nearest_by_code(codebook, codes, query, rerank.max(top_k))
            }
            _ => None,
        };
        let exact =
            |image: usize| dot(query, &self.features[image * self.meta.dimension..][..self.meta.dimension]);
        let scored: Vec<Scored> = match candidates {
            Some(candidates) => candidates.into_iter().map(|(image, _)| (image, exact(image))).collect(),
            None if self.len() < PARALLEL_FROM => {
                (0..self.len()).map(|image| (image, exact(image))).collect()
            }
            None => (0..self.len()).into_par_iter().map(|image| (image, exact(image))).collect(),
        };
        let nearest = largest(scored, top_k).into_iter();
        nearest.map(|(image, similarity)| Hit { image: &self.images[image], similarity }).collect()
    }
}

/// Number of an image, and its similarity to the query.
type Scored = (usize, f32);

/// `None` where codebook and query do not fit, which [`Index::new`] has excluded: the caller then searches exactly.
fn nearest_by_code(codebook: &Codebook, codes: &[u8], query: &[f32], count: usize) -> Option<Vec<Scored>> {
    let table = codebook.adc_table(query).ok()?;
    let images = codes.len() / codebook.sub_spaces();
    let mut similarities = vec![0.0; images];
    // One chunk a core; a small gallery is one chunk.
    let chunk = if images < PARALLEL_FROM { images } else { images.div_ceil(rayon::current_num_threads()) };
    let scan = |(codes, similarities): (&[u8], &mut [f32])| table.scan(codes, similarities);
    if chunk == images {
        scan((codes, &mut similarities)).ok()?;
    } else {
        let codes = codes.par_chunks(chunk * codebook.sub_spaces());
        codes.zip(similarities.par_chunks_mut(chunk)).try_for_each(scan).ok()?;
    }
    Some(largest(similarities.into_iter().enumerate().collect(), count))
}

/// The `count` largest, largest first; ties by number. Linear in the number of candidates.
fn largest(mut scored: Vec<Scored>, count: usize) -> Vec<Scored> {
    let nearer = |a: &Scored, b: &Scored| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count == 0 {
        return Vec::new();
    }
    if count < scored.len() {
        scored.select_nth_unstable_by(count - 1, nearer);
        scored.truncate(count);
    }
    scored.sort_unstable_by(nearer);
    scored
}

/// Inner product in eight independent sums, which the compiler turns into vector instructions; a single running sum
/// it may not reorder.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{codebook, random_units, snapshot};

    #[test]
    fn exact_search_agrees_with_the_definition() {
        let features = random_units(500, 20, 1);
        let index = Index::new(snapshot(20, &features), None).unwrap();
        for query in random_units(20, 20, 2).chunks(20) {
            let mut naive: Vec<(usize, f64)> = features
                .chunks(20)
                .map(|row| row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
                .enumerate()
                .collect();
            naive.sort_by(|a, b| b.1.total_cmp(&a.1));
            let hits = index.search(query, 7, Mode::Exact);
            assert_eq!(hits.len(), 7);
            for (hit, (image, similarity)) in hits.iter().zip(naive) {
                assert_eq!(hit.image.id, format!("{image:06}"));
                // 20 products of at most 1 in single precision.
                assert!((f64::from(hit.similarity) - similarity).abs() < 1e-5);
            }
        }
    }

    /// Queries near an image, as photos of one thing are, find it through the codes: the exact ranking of 100
    /// candidates repairs what 8 coarse codes confuse.
    #[test]
    fn codes_with_exact_ranking_find_the_exact_nearest() {
        let (dimension, count) = (32, 3000);
        let features = random_units(count, dimension, 3);
        let codebook = codebook(dimension, 8, 16, &features);
        let index = Index::new(snapshot(dimension, &features), Some(codebook)).unwrap();
        let noise = random_units(200, dimension, 4);
        let mut same = 0;
        for (number, noise) in noise.chunks(dimension).enumerate() {
            let target = &features[number * 14 * dimension..][..dimension];
            let mixed: Vec<f32> = target.iter().zip(noise).map(|(x, n)| x + 0.5 * n).collect();
            let norm = dot(&mixed, &mixed).sqrt();
            let query: Vec<f32> = mixed.iter().map(|x| x / norm).collect();
            let exact = index.search(&query, 1, Mode::Exact);
            let by_code = index.search(&query, 1, Mode::default_for(1));
            same += usize::from(exact == by_code);
        }
        assert!(same >= 198, "{same} of 200");
    }

    #[test]
    fn many_images_are_searched_on_all_cores_with_the_same_result() {
        let features = random_units(PARALLEL_FROM + 77, 8, 5);
        let codebook = codebook(8, 4, 16, &features[..8 * 2000]);
        let index = Index::new(snapshot(8, &features), Some(codebook)).unwrap();
        for number in [0, 9_999, PARALLEL_FROM + 76] {
            let query = &features[number * 8..][..8];
            for mode in [Mode::Exact, Mode::Adc { rerank: 1000 }] {
                assert_eq!(index.search(query, 3, mode)[0].image.id, format!("{number:06}"));
            }
        }
    }

    #[test]
    fn small_and_empty_galleries_answer_with_what_they_have() {
        let features = random_units(3, 8, 6);
        let index = Index::new(snapshot(8, &features), None).unwrap();
        assert_eq!(index.search(&features[..8], 10, Mode::default_for(10)).len(), 3);
        assert_eq!(index.search(&features[..8], 0, Mode::Exact).len(), 0);
        let empty = Index::new(snapshot(8, &[]), None).unwrap();
        assert!(empty.is_empty() && empty.search(&features[..8], 10, Mode::Exact).is_empty());
    }

    #[test]
    fn a_codebook_of_another_dimension_is_refused() {
        let features = random_units(300, 8, 7);
        let codebook = codebook(8, 4, 16, &features);
        let error = Index::new(snapshot(4, &random_units(3, 4, 8)), Some(codebook)).err().unwrap();
        assert!(error.to_string().contains("8 dimensions"));
    }
}
