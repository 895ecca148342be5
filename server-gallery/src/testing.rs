//! Data for the tests of this crate: seeded features, snapshots and codebooks, without any model.

use std::sync::Arc;

use glimpse_protocol::SpaceId;
use glimpse_quantizer::Codebook;
use rand::{Rng, SeedableRng};

use crate::index::{Index, IndexOptions};
use crate::store::{Attributes, Content, Features, Image, Meta, Snapshot, State};
use crate::view::View;

/// The space of all test galleries.
pub(crate) const SPACE: SpaceId = SpaceId::from_bytes([9; 16]);

/// `count` unit vectors of `dimension` components, row after row.
pub(crate) fn random_units(count: usize, dimension: usize, seed: u64) -> Vec<f32> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut units = Vec::with_capacity(count * dimension);
    for _ in 0..count {
        // The sum of twelve uniform numbers is near enough to a normal one.
        let row: Vec<f32> =
            (0..dimension).map(|_| (0..12).map(|_| random.random_range(-0.5_f32..0.5)).sum()).collect();
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        units.extend(row.iter().map(|x| x / norm));
    }
    units
}

/// A gallery of these features: ids `000000`, `000001`, .., labels `label 0`, ...
pub(crate) fn snapshot(dimension: usize, features: &[f32]) -> Snapshot {
    let meta = Meta { space: SPACE, dimension, generation: 3 };
    let state = State { gallery: [7; 16], generation: 3, content: Content::default() };
    let images = images(features.len() / dimension).iter().collect();
    Snapshot { meta, state, images, features: Features::Memory(features.to_vec()) }
}

/// So many images, without features.
pub(crate) fn images(count: usize) -> Vec<Image> {
    let image = |number| Image {
        id: format!("{number:06}"),
        path: String::new(),
        label: format!("label {number}"),
        attributes: Attributes::default(),
        photo_hash: [0; 32],
    };
    (0..count).map(image).collect()
}

/// A codebook whose centroids are the sub-vectors of evenly spaced features: crude, and needs no training.
pub(crate) fn codebook(dimension: usize, sub_spaces: usize, centroids: usize, features: &[f32]) -> Codebook {
    let (sub_dimension, count) = (dimension / sub_spaces, features.len() / dimension);
    let mut all = Vec::with_capacity(centroids * dimension);
    for m in 0..sub_spaces {
        for k in 0..centroids {
            let row = &features[k * (count / centroids) * dimension..][..dimension];
            all.extend_from_slice(&row[m * sub_dimension..][..sub_dimension]);
        }
    }
    Codebook::new(sub_spaces, centroids, dimension, all, None).unwrap()
}

/// A view of an index with default options.
pub(crate) fn view(dimension: usize, features: &[f32], codebook: Option<Codebook>) -> View {
    View::of(Arc::new(index(dimension, features, codebook)))
}

/// An index with default options.
pub(crate) fn index(dimension: usize, features: &[f32], codebook: Option<Codebook>) -> Index {
    Index::build(snapshot(dimension, features), codebook, &IndexOptions::default(), &mut |_, _, _| true)
        .unwrap()
}
