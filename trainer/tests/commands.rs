//! The program, as a person runs it: from pretrained weights to a query network, on photos that are drawn here.

use burn_onnx_export::proto::{DimensionValue, GraphProto};
use glimpse_trainer::features::Features;
use glimpse_trainer::networks::{Architecture, GalleryNetwork};
use glimpse_trainer::onnx;

mod common;
use common::place::{self, Place, draw, weights};
use common::weights_of;

const SIDE: &str = "64";

#[test]
fn from_pretrained_weights_to_a_query_network_that_finds_what_the_gallery_network_finds() {
    let Some(weights) = weights_of("efficientnet-lite0") else { return };
    let weights = weights.display();
    let place = Place::new();
    draw(&place.path("train"), 8, 4);
    draw(&place.path("val"), 6, 3);
    // Two networks joined; one file of weights is enough to see that.
    let network = format!("--network efficientnet-lite0 --weights {weights}");
    let gallery = format!("import {network} {network} --size {SIDE}");
    place.good(&format!("{gallery} --out raw.onnx"));
    place.good("features --model raw.onnx --photos train/photos.csv --out raw.safetensors");
    std::fs::create_dir(place.path("bundle")).unwrap();
    place.good(&format!(
        "{gallery} --out bundle/gallery.onnx --whiten raw.safetensors --dimension 8 --embeddings embeddings.safetensors"
    ));
    place.good(
        "quantizer --features embeddings.safetensors --bundle bundle --sub-spaces 4 --centroids 8 --seed 1",
    );
    let train = format!(
        "train --bundle bundle {network} --size {SIDE} --photos train/photos.csv --val val/photos.csv --run run \
         --batch 8 --warm-up 1 --seed 1"
    );
    place.good(&format!("{train} --steps 6"));
    place.bad(&format!("{train} --steps 6"), "add --resume");
    place.bad(&format!("{train} --steps 7 --resume"), "resume with the same settings");
    place.good(&format!("{train} --steps 6 --resume"));
    let metrics = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2, "four batches an epoch: {metrics}");

    place.good("export --run run --bundle bundle");
    let report = place.good("eval --bundle bundle --photos val/photos.csv --json");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["asymmetric"][0]["queries"], &report["gallery"]), (&12.into(), &6.into()));
    // The query network's backbone is the gallery network's: what it was not taught it can hardly lose.
    let retention = report["retention"][0].as_f64().unwrap();
    assert!(retention > 0.8, "{report}");

    // The same figures from features in files, and fewer with a distractor that stands in front of everything.
    for (model, roles, out) in
        [("gallery", "gallery", "gg"), ("gallery", "query", "gq"), ("query", "query", "qq")]
    {
        place.good(&format!(
            "features --model bundle/{model}.onnx --photos val/photos.csv --roles {roles} --out {out}.safetensors"
        ));
    }
    let files = "eval --photos val/photos.csv --json --gallery-features gg.safetensors --teacher-query-features \
                 gq.safetensors --query-features qq.safetensors";
    let of_files: serde_json::Value = serde_json::from_str(&place.good(files)).unwrap();
    assert_eq!(of_files["asymmetric"], report["asymmetric"]);
    assert_eq!(of_files["symmetric"], report["symmetric"]);
    // Each photo expanded by all others is the mean of all, nearly: what was found is then lost.
    let helped = place.good(&format!("{files} --expand 1 --augment 5"));
    let helped: serde_json::Value = serde_json::from_str(&helped).unwrap();
    assert_eq!(helped["gallery"], 6);
    assert_ne!(helped["asymmetric"], report["asymmetric"]);
    let more = place.good(&format!("{files} --distractor-features qq.safetensors"));
    let more: serde_json::Value = serde_json::from_str(&more).unwrap();
    assert_eq!(more["gallery"], 18);
    assert!(
        more["asymmetric"][0]["values"]["mAP"].as_f64() < report["asymmetric"][0]["values"]["mAP"].as_f64()
    );
    place.bad(&files.replace("gg.", "gq."), "gq.safetensors has 12 rows, and there are 6 gallery photos");

    // A teacher that is only known by its embeddings; the training photos' own have the right shape for a test.
    place.good("features --model raw.onnx --photos val/photos.csv --out raw-val.safetensors");
    place.good(
        "whiten --learn raw.safetensors --dimension 8 --apply raw.safetensors --out t.safetensors --apply \
         raw-val.safetensors --out v.safetensors",
    );
    place.good("space --bundle elsewhere --name whitened-lite0 --dimension 8");
    place.bad("space --bundle elsewhere --name other --dimension 8", "is there already");
    place.good("quantizer --features t.safetensors --bundle elsewhere --sub-spaces 4 --centroids 8");
    let train = train.replace("--bundle bundle", "--bundle elsewhere").replace("--run run", "--run run-2");
    let teacher = "--teacher-features t.safetensors --val-teacher-features v.safetensors";
    place.good(&format!("{train} --steps 2 {teacher}"));
    place.good("export --run run-2 --bundle elsewhere");
    let swapped = "--teacher-features v.safetensors --val-teacher-features t.safetensors";
    place.bad(&format!("{train} --steps 2 {swapped}"), "rows, and there are");
    let raw = "--teacher-features raw.safetensors --val-teacher-features raw-val.safetensors";
    place.bad(&format!("{train} --steps 2 {raw}"), "has 2560 dimensions, and the space has 8");
}

/// A gallery network that somebody else exported: here ours, whose metadata `adopt` has no use for.
#[test]
fn a_foreign_onnx_model_becomes_a_gallery_model() {
    let place = Place::new();
    draw(&place.path("train"), 8, 4);
    let device = burn::tensor::Device::flex();
    device.seed(9);
    let network = GalleryNetwork::new([Architecture::MINIATURE.init(&device).fold()]);
    let model = onnx::export(&network, "pooled", GalleryNetwork::forward).unwrap();
    let channels = GalleryNetwork::feature_channels(&[Architecture::MINIATURE]);
    std::fs::write(place.path("foreign.onnx"), model.to_bytes()).unwrap();
    let adopt = "adopt --model foreign.onnx --size 64";
    place.good(&format!("{adopt} --raw --out raw.onnx"));
    place.good("features --model raw.onnx --photos train/photos.csv --out raw.safetensors");
    std::fs::create_dir(place.path("bundle")).unwrap();
    place.good(&format!(
        "{adopt} --whiten raw.safetensors --dimension 6 --out bundle/gallery.onnx --embeddings e.safetensors"
    ));
    // What the whitening gives outside of the graph, the graph gives too.
    place.good("features --model bundle/gallery.onnx --photos train/photos.csv --out again.safetensors");
    let rows = |name: &str| Features::read(&place.path(name)).unwrap().0;
    let (outside, inside) = (rows("e.safetensors"), rows("again.safetensors"));
    assert_eq!((outside.shape.clone(), outside.len()), (vec![6], 32));
    assert!(outside.to_f32().iter().zip(inside.to_f32()).all(|(a, b)| (a - b).abs() < 1e-4));
    place.good("quantizer --features e.safetensors --bundle bundle --sub-spaces 3 --centroids 8");
    std::fs::create_dir(place.path("plain")).unwrap();
    place.good(&format!("{adopt} --out plain/gallery.onnx --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25"));
    let space = std::fs::read_to_string(place.path("plain/space.toml")).unwrap();
    assert!(space.contains(&format!("dimension = {channels}")), "{space}");

    // Models that cannot be adopted say why.
    place.bad(&format!("{adopt} --out plain/other.onnx"), "is called gallery.onnx");
    let change = |name: &str, words: &str, change: &dyn Fn(&mut GraphProto)| {
        let mut model = model.clone();
        change(model.proto.graph.as_mut().unwrap());
        std::fs::write(place.path(name), model.to_bytes()).unwrap();
        place.bad(&format!("adopt --model {name} --size 64 --out x/gallery.onnx"), words);
    };
    let fix = |graph: &mut GraphProto, place: usize, value: i64| {
        let kind = graph.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        kind.shape.as_mut().unwrap().dim[place].value = Some(DimensionValue::DimValue(value));
    };
    change("batch.onnx", "its batch is fixed to 8 photos", &|graph| fix(graph, 0, 8));
    change("grey.onnx", "[N, 1, H, W], not [N, 3, height, width]", &|graph| fix(graph, 1, 1));
    change("side.onnx", "use --size 96", &|graph| {
        fix(graph, 2, 96);
        fix(graph, 3, 96);
    });
    change("ends.onnx", "1 inputs and 0 outputs", &|graph| graph.output.clear());
    std::fs::write(place.path("text.onnx"), b"<html>").unwrap();
    place.bad("adopt --model text.onnx --out x/gallery.onnx", "text.onnx is no ONNX model");
}

/// `kill -9` within a run of 200 steps: the rest of the run gives the same weights as a run that nobody killed.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_to_the_same_weights() {
    use std::time::{Duration, Instant};
    let place = Place::new();
    place.prepare_small_run();
    let train = |run| place::small_run(run, 200);
    place.good(&train("whole"));
    let mut child = place.command(&train("parts")).stderr(std::process::Stdio::null()).spawn().unwrap();
    let lines =
        || std::fs::read_to_string(place.path("parts/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let start = Instant::now();
    while lines() < 10 && start.elapsed() < Duration::from_mins(2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((10..50).contains(&lines()), "killed in the middle: {} of 50 epochs", lines());
    place.good(&format!("{} --resume", train("parts")));
    for file in ["checkpoint.safetensors", "best.safetensors"] {
        let [whole, parts] = ["whole", "parts"].map(|run| weights(&place.path(run).join(file)));
        assert!(whole.len() > 20 && whole.keys().eq(parts.keys()));
        let differing: Vec<&String> = whole.keys().filter(|name| whole[*name] != parts[*name]).collect();
        assert_eq!(differing, Vec::<&String>::new(), "{file}");
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let place = Place::new();
    std::fs::write(place.path("weights.pth"), b"no checkpoint").unwrap();
    let network = "--network efficientnet-lite0 --weights weights.pth";
    place.bad(&format!("import {network} --out raw.onnx"), "weights.pth is not a PyTorch checkpoint");
    place.bad(
        &format!("import {network} --weights weights.pth --out raw.onnx"),
        "each network needs its own checkpoint",
    );
    place.bad("features --model none.onnx --photos . --out f.safetensors", ". names no photo");
    draw(&place.path("photos"), 1, 1);
    place.bad("features --model none.onnx --photos photos/photos.csv --out f.safetensors", "none.onnx");
    place.bad("quantizer --features none.safetensors --bundle none --sub-spaces 4", "none");
    place.bad("eval --bundle none --photos none.csv", "none");
    place.bad("export --run none --bundle none", "none");
    std::fs::create_dir(place.path("empty")).unwrap();
    place.bad("features --model none.onnx --photos empty --out f.safetensors", "empty names no photo");
    std::fs::write(place.path("gnd.pkl"), b"<html>").unwrap();
    place.bad("eval --protocol revisited --ground-truth gnd.pkl --photos . --bundle none", "is it a pickle?");
    std::fs::write(place.path("f.npy"), b"nothing").unwrap();
    place.bad("eval --photos photos/photos.csv --gallery-features f.npy", "no query with an answer");
    let output = place.run("import --network resnet50 --weights weights.pth --out raw.onnx");
    assert_eq!(output.status.code(), Some(2), "clap tells the networks that there are");
}
