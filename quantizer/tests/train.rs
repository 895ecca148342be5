//! Training: against naive k-means, across thread pools, and on data that must be refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use glimpse_quantizer::train::{Progress, TrainError, TrainOptions, quantization_error, train};
use glimpse_quantizer::{Codebook, CodebookError};
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
    train(features, D, options, &mut |_| ()).unwrap()
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
    let codebook = train(&features, 2, &options, &mut |_| ()).unwrap();
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
    train(&features(500, 10), D, &options(8), &mut |progress| seen.push(progress)).unwrap();
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
        |features: &[f32], options: TrainOptions| train(features, D, &options, &mut |_| ()).unwrap_err();
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
