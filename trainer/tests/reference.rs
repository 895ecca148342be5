//! Our networks against the PyTorch definition that the checkpoints come with. The values were written once by that
//! definition.

use burn::tensor::{Device, Tensor, TensorData};
use glimpse_trainer::networks::{Architecture, load_pretrained};
use serde_json::Value;

mod common;
use common::weights_of;

/// PyTorch and Burn sum thousands of products in different orders; a wrong border or epsilon moves the second digit.
const TOLERANCE: f32 = 1e-3;

#[test]
fn features_agree_with_the_reference_definition() {
    let fixture: Value =
        serde_json::from_str(include_str!("fixtures/efficientnet-lite.json")).expect("the fixture is JSON");
    for (name, expected) in fixture["networks"].as_object().expect("networks by name") {
        let Some(path) = weights_of(name) else { continue };
        let architecture: Architecture = name.parse().expect("a known network");
        let network =
            load_pretrained(architecture, &path, &Device::flex()).expect("the checkpoint loads").fold();
        let size = expected["size"].as_u64().expect("a size") as usize;
        let maps = network.backbone.forward(photo(size));
        let [_, channels, height, width] = maps.dims();
        assert_eq!((channels, height, width), (architecture.plan().map_channels(), size / 32, size / 32));
        let features = values(network.head.pool(maps.clone()));
        let maps = values(maps);
        let maps: Vec<f32> = (0..16).map(|c| maps[(c * height + 3) * width + 3]).collect();
        check(name, &maps, &expected["maps_channels_0_to_15_at_3_3"]);
        let features: Vec<f32> = features.into_iter().step_by(80).collect();
        check(name, &features, &expected["features_every_80th"]);
    }
}

#[test]
fn a_network_that_is_cut_off_takes_the_stages_that_it_has() {
    let Some(path) = weights_of("efficientnet-lite0") else { return };
    let load = |name: &str| {
        let architecture: Architecture = name.parse().expect("a known network");
        load_pretrained(architecture, &path, &Device::flex()).expect("the checkpoint loads").fold()
    };
    let (whole, cut) = (load("efficientnet-lite0"), load("efficientnet-lite0-s5"));
    let expected = values(whole.backbone.forward_to(5, photo(64)));
    assert_eq!(values(cut.backbone.forward(photo(64))), expected);
}

fn check(name: &str, found: &[f32], expected: &Value) {
    let expected = expected.as_array().expect("a list");
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let expected = expected.as_f64().expect("a number") as f32;
        assert!(
            (found - expected).abs() < TOLERANCE * (1.0 + expected.abs()),
            "{name}[{i}]: {found} is not {expected}"
        );
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().expect("32-bit floats")
}

/// The fixture's synthetic photo, `[1, 3, size, size]`.
fn photo(size: usize) -> Tensor<4> {
    let level = |channel: usize, x: usize, y: usize| match channel {
        0 => 2 * x % 256,
        1 => 3 * y % 256,
        _ => x * y / 16 % 256,
    };
    let pixels = (0..3 * size * size).map(|i| (i / (size * size), i % size, i / size % size));
    let values = pixels.map(|(channel, x, y)| (level(channel, x, y) as f32 - 127.0) / 128.0).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [1, 3, size, size]), &Device::flex())
}
