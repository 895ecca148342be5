//! Features of a folder of photos: damaged ones are left out, a stopped run goes on, a changed network starts over.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use glimpse_embedder::{ModelMetadata, RgbImage, Role};
use glimpse_trainer::features::{Extraction, FeatureError, Features, Sight};
use glimpse_trainer::networks::{Architecture, Backbone, GalleryNetwork};
use glimpse_trainer::onnx;
use glimpse_trainer::photos::PhotoList;

/// A miniature backbone with random weights, and `count` photos, of which number 3 is damaged.
fn prepare(dir: &Path, count: u32, seed: u64) -> PhotoList {
    write_backbone(&dir.join("backbone.onnx"), seed);
    let photos = dir.join("photos");
    std::fs::create_dir_all(&photos).unwrap();
    for i in 0..count {
        let photo =
            RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * 20 + i) as u8, (y * 30) as u8, (i * 7) as u8]));
        photo.save(photos.join(format!("{i:04}.png"))).unwrap();
    }
    std::fs::write(photos.join("0003.png"), b"damaged").unwrap();
    PhotoList::read(&photos).unwrap()
}

fn write_backbone(path: &Path, seed: u64) {
    let device = Device::flex();
    device.seed(seed);
    let backbone = Architecture::MINIATURE.init(&device).fold().backbone;
    let model = onnx::export(&backbone, "maps", Backbone::forward).unwrap();
    let metadata = ModelMetadata {
        role: Role::Features,
        space: None,
        dimension: 8,
        preprocessing: Architecture::MINIATURE.preprocessing(32),
    };
    onnx::write(model, &metadata, path).unwrap();
}

fn extract(
    dir: &Path,
    photos: &PhotoList,
    views: usize,
    stop: &AtomicBool,
) -> Result<Features, FeatureError> {
    let model = dir.join("backbone.onnx");
    let preprocessing = Architecture::MINIATURE.preprocessing(32);
    let extraction = Extraction {
        name: "maps",
        model: &model,
        preprocessing,
        sight: &Sight::default(),
        photos,
        views,
        seed: 1,
        half: true,
    };
    extraction.run(&dir.join("maps.safetensors"), stop)
}

#[test]
fn several_sizes_are_averaged_as_unit_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let photos = prepare(dir.path(), 2, 1);
    let model = dir.path().join("features.onnx");
    let network = GalleryNetwork::new([Architecture::MINIATURE.init(&Device::flex()).fold()]);
    let preprocessing = Architecture::MINIATURE.preprocessing(64);
    let dimension = GalleryNetwork::feature_channels(&[Architecture::MINIATURE]);
    let metadata = ModelMetadata { role: Role::Features, space: None, dimension, preprocessing };
    let file = onnx::export(&network, "features", GalleryNetwork::forward).unwrap();
    onnx::write(file, &metadata, &model).unwrap();
    let look = |scales: &[f64], longest_side, out: &str| {
        let sight = Sight { scales: scales.to_vec(), longest_side };
        let extraction = Extraction {
            name: "features",
            model: &model,
            preprocessing,
            sight: &sight,
            photos: &photos,
            views: 1,
            seed: 1,
            half: false,
        };
        extraction.run(&dir.path().join(out), &AtomicBool::new(false)).unwrap().gather([0])
    };
    let (own, half) = (look(&[1.0], None, "1"), look(&[0.5], None, "2"));
    let sum: Vec<f32> = own.iter().zip(&half).map(|(a, b)| a + b).collect();
    let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    let both = look(&[1.0, 0.5], None, "3");
    assert!(both.iter().zip(&sum).all(|(a, b)| (a - b / norm).abs() < 1e-6), "{both:?}");
    // 9 x 7 pixels to 96 x 64 (74.7): the nearest multiples of 32.
    let wide = look(&[1.0], Some(96), "4");
    assert_ne!(wide, own);
    assert_ne!(wide, look(&[1.0], Some(64), "5"));
}

#[test]
fn a_damaged_photo_is_left_out_of_every_view() {
    let dir = tempfile::tempdir().unwrap();
    let photos = prepare(dir.path(), 6, 1);
    let features = extract(dir.path(), &photos, 2, &AtomicBool::new(false)).unwrap();
    assert_eq!(features.items, [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]);
    assert_eq!(features.shape, [8, 1, 1]);
    assert_ne!(features.gather([0]), features.gather([5]), "the second view is another view");
}

#[test]
fn a_stopped_extraction_goes_on_and_gives_the_same() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Two chunks of 128.
    let expected = extract(whole.path(), &prepare(whole.path(), 200, 1), 1, &AtomicBool::new(false)).unwrap();
    let photos = prepare(parts.path(), 200, 1);
    // The very same file: Burn's seed is one for all threads, and other tests draw from it at the same time.
    std::fs::copy(whole.path().join("backbone.onnx"), parts.path().join("backbone.onnx")).unwrap();
    let first = parts.path().join("maps.safetensors.parts/00000000.safetensors");
    let stop = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !first.exists() && !done.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        match extract(parts.path(), &photos, 1, &stop) {
            Err(FeatureError::Stopped) => assert!(first.exists()),
            // The second chunk was quicker than the flag.
            other => drop(other.unwrap()),
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(extract(parts.path(), &photos, 1, &AtomicBool::new(false)).unwrap(), expected);
    assert!(!first.exists());
}

#[test]
fn only_the_same_network_finds_its_features_again() {
    let dir = tempfile::tempdir().unwrap();
    let photos = prepare(dir.path(), 6, 1);
    let never = AtomicBool::new(false);
    let stopped = AtomicBool::new(true);
    let features = extract(dir.path(), &photos, 1, &never).unwrap();
    // Nothing is computed, or it would be stopped.
    assert_eq!(extract(dir.path(), &photos, 1, &stopped).unwrap(), features);
    write_backbone(&dir.path().join("backbone.onnx"), 2);
    assert!(matches!(extract(dir.path(), &photos, 1, &stopped), Err(FeatureError::Stopped)));
    assert_ne!(extract(dir.path(), &photos, 1, &never).unwrap(), features);
}

#[test]
fn a_file_of_something_else_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("maps.safetensors");
    for bytes in [&b""[..], b"nonsense", &[0xff; 100]] {
        std::fs::write(&path, bytes).unwrap();
        let error = Features::read(&path).unwrap_err().to_string();
        assert!(error.contains("maps.safetensors is no feature file"), "{error}");
    }
}
