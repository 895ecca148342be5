//! Training: against naive k-means, across thread pools, and on data that must be refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use glimpse_quantizer::scan::{Candidates, Probe};
use glimpse_quantizer::train::{
    ClusterOptions, Progress, TrainError, TrainOptions, cluster, quantization_error, train,
};
use glimpse_quantizer::{Centroids, Codebook, CodebookError, Encoder, Kernel};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const D: usize = 12;

fn options(centroids: usize) -> TrainOptions {
    TrainOptions { sub_spaces: 3, centroids, seed: 7, ..TrainOptions::default() }
}

/// `count` features around 20 centres.
fn features(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..20 * D).map(|_| random.random_range(-1.0..1.0)).collect();
    (0..count)
        .flat_map(|_| {
            let centre = &centres[random.random_range(0..20) * D..][..D];
            centre.iter().map(|c| c + random.random_range(-0.1..0.1)).collect::<Vec<f32>>()
        })
        .collect()
}

fn trained(features: &[f32], options: &TrainOptions) -> Codebook {
    train(features, D, options, &mut |_| true).unwrap()
}

#[test]
fn the_error_falls_with_the_number_of_centroids() {
    let features = features(2000, 1);
    let errors =
        [1, 2, 4, 16, 64, 256].map(|k| quantization_error(&trained(&features, &options(k)), &features));
    assert!(errors.is_sorted_by(|more, fewer| more > fewer), "{errors:?}");
    assert!(errors[5] < 0.05 * errors[0], "{errors:?}");
}

#[test]
fn one_centroid_is_the_mean() {
    let features = features(500, 2);
    let codebook = trained(&features, &options(1));
    for (i, c) in codebook.centroids().iter().enumerate() {
        let mean = features.iter().skip(i).step_by(D).map(|x| f64::from(*x)).sum::<f64>() / 500.0;
        assert!((f64::from(*c) - mean).abs() < 1e-6);
    }
}

#[test]
fn as_many_centroids_as_different_points_leave_no_error() {
    let features = features(40, 3);
    let error = quantization_error(&trained(&features, &options(40)), &features);
    assert!(error < 1e-10, "{error}");
}

/// Lloyd's iterations are at rest: each centroid is the mean of the points that encode to it.
#[test]
fn trained_centroids_are_means_of_their_points() {
    let features = features(1000, 4);
    let codebook = trained(&features, &TrainOptions { iterations: 100, ..options(16) });
    let codes: Vec<[u8; 3]> = features
        .chunks(D)
        .map(|x| {
            let mut code = [0; 3];
            codebook.encode(x, &mut code).unwrap();
            code
        })
        .collect();
    for (m, k) in (0..3).flat_map(|m| (0..16).map(move |k| (m, k))) {
        let members = || features.chunks(D).zip(&codes).filter(|(_, code)| usize::from(code[m]) == k);
        let size = members().count();
        assert!(size > 0, "cluster {k} of sub-space {m} is empty");
        for (i, c) in codebook.centroid(m, k).iter().enumerate() {
            let mean = members().map(|(x, _)| f64::from(x[4 * m + i])).sum::<f64>() / size as f64;
            assert!((f64::from(*c) - mean).abs() < 1e-4, "sub-space {m}, centroid {k}");
        }
    }
}

#[test]
fn it_is_no_worse_than_naive_k_means_from_the_same_data() {
    let features = features(600, 5);
    let ours = quantization_error(&trained(&features, &options(16)), &features);
    let naive = quantization_error(&naive_k_means(&features, 16), &features);
    assert!(ours <= 1.05 * naive, "ours {ours}, naive {naive}");
}

/// The oracle: the first K points as seeds, then ten plain iterations.
fn naive_k_means(features: &[f32], k: usize) -> Codebook {
    let mut centroids = vec![0.0; k * D];
    for (m, c) in centroids.chunks_mut(k * 4).enumerate() {
        let points: Vec<&[f32]> = features.chunks(D).map(|x| &x[4 * m..4 * m + 4]).collect();
        c.chunks_mut(4).zip(&points).for_each(|(c, x)| c.copy_from_slice(x));
        for _ in 0..10 {
            let mut sums = vec![[0.0_f32; 5]; k];
            for x in &points {
                let distance = |c: &[f32]| x.iter().zip(c).map(|(x, c)| (x - c).powi(2)).sum::<f32>();
                let nearest = (0..k)
                    .min_by(|a, b| distance(&c[4 * a..4 * a + 4]).total_cmp(&distance(&c[4 * b..4 * b + 4])))
                    .unwrap();
                (0..4).for_each(|i| sums[nearest][i] += x[i]);
                sums[nearest][4] += 1.0;
            }
            for (c, sum) in c.chunks_mut(4).zip(&sums).filter(|(_, sum)| sum[4] > 0.0) {
                (0..4).for_each(|i| c[i] = sum[i] / sum[4]);
            }
        }
    }
    Codebook::new(3, k, D, centroids, None).unwrap()
}

#[test]
fn a_seed_gives_one_codebook_at_any_number_of_threads() {
    let features = features(1500, 6);
    for spherical in [false, true] {
        let options = TrainOptions { spherical, max_points_per_centroid: 40, ..options(32) };
        let in_pool = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| trained(&features, &options))
        };
        let one = in_pool(1);
        assert_eq!(one, in_pool(2));
        assert_eq!(one, in_pool(7));
        assert_ne!(one, trained(&features, &TrainOptions { seed: 8, ..options }));
    }
}

#[test]
fn more_restarts_are_never_worse() {
    let features = features(800, 8);
    let error = |restarts| {
        quantization_error(&trained(&features, &TrainOptions { restarts, ..options(24) }), &features)
    };
    let errors = [1, 2, 5].map(error);
    // Each sub-space keeps its best; f32 rounding between training and encoding is all that may differ.
    assert!(errors[1] <= errors[0] * 1.0001 && errors[2] <= errors[1] * 1.0001, "{errors:?}");
}

#[test]
fn spherical_training_finds_directions_whatever_the_lengths() {
    // Three directions at lengths from 0.01 to 10, and zeros: L2 k-means would cut the long ones apart.
    let directions = [[1.0_f32, 0.0], [-0.6, 0.8], [-0.6, -0.8]];
    let mut features: Vec<f32> = Vec::new();
    for i in 0..300_usize {
        let length = 0.01 * 1000_f32.powf(i as f32 / 299.0);
        features.extend(directions[i % 3].map(|x| x * length));
    }
    features.extend([0.0; 2]);
    let options = TrainOptions { sub_spaces: 1, centroids: 3, spherical: true, restarts: 5, ..options(3) };
    let codebook = train(&features, 2, &options, &mut |_| true).unwrap();
    for direction in directions {
        let best = codebook
            .centroids()
            .chunks(2)
            .map(|c| (c[0] * direction[0] + c[1] * direction[1]) / c[0].hypot(c[1]))
            .fold(-1.0, f32::max);
        assert!(best > 0.9999, "{direction:?}: {best}");
    }
}

#[test]
fn repeated_points_leave_finite_centroids() {
    for spherical in [false, true] {
        for value in [0.0, 0.5] {
            let options = TrainOptions { spherical, ..options(16) };
            let codebook = trained(&[value; 50 * D], &options);
            assert_eq!(quantization_error(&codebook, &[value; 50 * D]), 0.0);
        }
    }
}

#[test]
fn empty_clusters_are_repaired() {
    // 990 copies of one point and 10 others: seeds drawn among copies would leave most clusters empty.
    let mut features = vec![0.1; 990 * D];
    features.extend(self::features(10, 9));
    let error = quantization_error(&trained(&features, &options(11)), &features);
    assert!(error < 1e-10, "{error}");
}

#[test]
fn progress_counts_every_iteration_and_the_error_falls_within_a_restart() {
    let mut seen: Vec<Progress> = Vec::new();
    train(&features(500, 10), D, &options(8), &mut |progress| {
        seen.push(progress);
        true
    })
    .unwrap();
    let steps: Vec<usize> = seen.iter().map(|progress| progress.step).collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>());
    assert!(seen.iter().all(|progress| progress.steps == 20));
    for restart in seen.chunks(10) {
        // Lloyd never rises; 1e-6 is f32 rounding.
        assert!(restart.is_sorted_by(|a, b| b.error <= a.error * (1.0 + 1e-6)), "{restart:?}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let features = features(10, 11);
    let error =
        |features: &[f32], options: TrainOptions| train(features, D, &options, &mut |_| true).unwrap_err();
    assert_eq!(error(&features, options(11)), TrainError::TooFewPoints { features: 10, centroids: 11 });
    assert_eq!(error(&[], options(1)), TrainError::TooFewPoints { features: 0, centroids: 1 });
    assert_eq!(error(&features[1..], options(2)), TrainError::Ragged { values: 119, dimension: D });
    assert_eq!(
        error(&features, TrainOptions { sub_spaces: 5, ..options(2) }),
        TrainError::Shape(CodebookError::NotDivisible { dimension: D, sub_spaces: 5 })
    );
    assert_eq!(
        error(&features, options(257)),
        TrainError::Shape(CodebookError::Centroids { centroids: 257 })
    );
    assert_eq!(
        error(&features, TrainOptions { iterations: 0, ..options(2) }),
        TrainError::Zero { option: "iterations" }
    );
    assert_eq!(
        error(&features, TrainOptions { restarts: 0, ..options(2) }),
        TrainError::Zero { option: "restarts" }
    );
    for bad in [f32::NAN, f32::INFINITY] {
        let mut features = features.clone();
        features[3 * D + 1] = bad;
        assert_eq!(error(&features, options(2)), TrainError::NotFinite { row: 3 });
    }
}

/// Features whose variance lies across the sub-spaces: three axes, turned away from the coordinates.
fn turned(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let axes: Vec<f32> = (0..3 * D).map(|_| random.random_range(-1.0..1.0)).collect();
    (0..count)
        .flat_map(|_| {
            let along: [f32; 3] = std::array::from_fn(|_| random.random_range(-1.0..1.0));
            let noise: [f32; D] = std::array::from_fn(|_| random.random_range(-0.01..0.01));
            (0..D)
                .map(|i| noise[i] + (0..3).map(|a| along[a] * axes[a * D + i]).sum::<f32>())
                .collect::<Vec<f32>>()
        })
        .collect()
}

#[test]
fn a_rotation_lowers_the_error_where_variance_lies_across_sub_spaces() {
    let features = turned(2000, 1);
    let without = quantization_error(&trained(&features, &options(16)), &features);
    let rotated = trained(&features, &TrainOptions { rotation_rounds: 10, ..options(16) });
    assert!(rotated.rotation().is_some());
    let with = quantization_error(&rotated, &features);
    assert!(with < 0.5 * without, "{with} against {without}");
}

#[test]
fn rounds_of_the_rotation_never_raise_the_error() {
    let mut errors = Vec::new();
    let options = TrainOptions { rotation_rounds: 15, restarts: 1, ..options(16) };
    train(&turned(1000, 2), D, &options, &mut |progress| {
        errors.push(progress.error);
        true
    })
    .unwrap();
    assert_eq!(errors.len(), 25);
    // Both halves of a round lower it; 1e-4 is what a decomposition in f32 may lose.
    assert!(errors[..15].is_sorted_by(|a, b| *b <= a * 1.0001), "{errors:?}");
}

#[test]
fn a_rotation_is_the_same_at_any_number_of_threads() {
    let features = turned(500, 3);
    let options = TrainOptions { rotation_rounds: 3, ..options(8) };
    let in_pool = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| trained(&features, &options))
    };
    assert_eq!(in_pool(1), in_pool(5));
}

#[test]
fn features_without_any_variance_still_get_a_rotation() {
    let codebook = trained(&[0.5; 50 * D], &TrainOptions { rotation_rounds: 2, ..options(4) });
    assert!(quantization_error(&codebook, &[0.5; 50 * D]) < 1e-9);
}

#[test]
fn clusters_of_whole_vectors_find_the_centres_they_were_drawn_around() {
    let features = features(2000, 12);
    let options = ClusterOptions { centroids: 40, iterations: 20, seed: 3, max_points_per_centroid: 256 };
    let mut errors = Vec::new();
    let centroids = cluster(&features, D, &options, &mut |progress| {
        errors.push(progress.error);
        true
    })
    .unwrap();
    assert!(errors.is_sorted_by(|a, b| *b <= a * (1.0 + 1e-6)), "{errors:?}");
    // Noise of 0.1 either way has a variance of 0.01 / 3 in each dimension.
    assert!(errors[19] < 0.01 / 3.0 * D as f64 * 1.5, "{errors:?}");
    let mut nearest = vec![0; 2000];
    centroids.assign(&features, &mut nearest).unwrap();
    for (x, k) in features.chunks(D).zip(nearest) {
        let distance = |c: &[f32]| x.iter().zip(c).map(|(x, c)| (x - c).powi(2)).sum::<f32>();
        let smallest = centroids.values().chunks(D).map(distance).fold(f32::INFINITY, f32::min);
        assert!(distance(centroids.get(k)) <= smallest + 1e-5);
        let ranked = centroids.nearest(x, 40).unwrap();
        let product = |k: u32| x.iter().zip(centroids.get(k)).map(|(x, c)| x * c).sum::<f32>();
        assert!(ranked.len() == 40 && ranked[..5] == centroids.nearest(x, 5).unwrap());
        assert!(
            ranked.is_sorted_by(|a, b| distance(centroids.get(a.0)) <= distance(centroids.get(b.0)) + 1e-5)
        );
        assert!(ranked.iter().all(|(k, found)| (product(*k) - found).abs() < 1e-5));
    }
}

#[test]
fn vectors_that_cannot_be_clustered_are_refused_by_name() {
    let options = ClusterOptions { centroids: 4, iterations: 2, seed: 0, max_points_per_centroid: 256 };
    let error = |features: &[f32], dimension, options: ClusterOptions| {
        cluster(features, dimension, &options, &mut |_| true).unwrap_err()
    };
    assert_eq!(error(&[0.0; 3 * D], D, options), TrainError::TooFewPoints { features: 3, centroids: 4 });
    assert_eq!(error(&[], 0, options), TrainError::Shape(CodebookError::Dimension { dimension: 0 }));
    let zero = ClusterOptions { centroids: 0, ..options };
    assert_eq!(error(&[0.0; 3 * D], D, zero), TrainError::Zero { option: "centroids" });
    assert!(Centroids::new(Vec::new(), D).is_err() && Centroids::new(vec![0.0; D + 1], D).is_err());
    let centroids = Centroids::new(vec![0.5; D], D).unwrap();
    assert!(centroids.nearest(&[0.0; 3], 1).is_err() && centroids.assign(&[0.0; D], &mut [0; 2]).is_err());
}

/// At every width, with and without a rotation, at every kernel here.
#[test]
fn an_encoder_gives_the_codes_of_its_codebook() {
    let features = features(500, 13);
    for (centroids, rotation_rounds) in [(16, 0), (16, 2), (100, 0), (256, 2)] {
        let codebook = trained(&features, &TrainOptions { rotation_rounds, ..options(centroids) });
        let mut expected = vec![0; 500 * 3];
        for (x, code) in features.chunks(D).zip(expected.chunks_mut(3)) {
            codebook.encode(x, code).unwrap();
        }
        for kernel in Kernel::available() {
            let encoder = Encoder::with_kernel(codebook.clone(), kernel);
            let mut codes = vec![0; 500 * 3];
            encoder.encode(&features, &mut codes).unwrap();
            assert_eq!(codes, expected, "{kernel:?}");
            let (table, exact) =
                (encoder.table(&features[..D]).unwrap(), codebook.adc_table(&features[..D]).unwrap());
            let packed = encoder.pack(&codes).unwrap();
            let mut candidates = [Candidates::new(500)];
            packed.view().scan(
                0,
                std::slice::from_ref(&table),
                &[Probe { query: 0, bias: 0 }],
                &mut candidates,
                None,
            );
            let [candidates] = candidates;
            for (sum, position) in candidates.into_sorted() {
                let similarity = exact.similarity(&codes[position as usize * 3..][..3]);
                // 1e-5: rounding of sums of a dozen numbers.
                assert!((table.similarity(sum) - similarity).abs() <= table.error_max() + 1e-5);
            }
            assert!(encoder.encode(&features[1..], &mut codes).is_err() && encoder.table(&[0.0]).is_err());
            assert!(encoder.encode(&features, &mut codes[1..]).is_err() && encoder.pack(&[0]).is_err());
        }
    }
}

#[test]
fn training_stops_when_it_is_told_to() {
    let features = features(500, 14);
    for rotation_rounds in [0, 3] {
        let mut told = 0;
        let mut until_two = |_| {
            told += 1;
            told < 2
        };
        let options = TrainOptions { rotation_rounds, ..options(8) };
        assert_eq!(train(&features, D, &options, &mut until_two).unwrap_err(), TrainError::Stopped);
        assert_eq!(told, 2);
    }
    let options = ClusterOptions { centroids: 4, iterations: 5, seed: 0, max_points_per_centroid: 256 };
    assert_eq!(cluster(&features, D, &options, &mut |_| false).unwrap_err(), TrainError::Stopped);
}
