//! The program, as a person runs it: from pretrained weights to a query network, on photos that are drawn here.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};

mod common;
use common::weights_of;

const SIDE: &str = "64";

/// A folder in which the commands run.
struct Place(tempfile::TempDir);

impl Place {
    fn run(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-trainer"));
        command.current_dir(self.0.path()).args(args.split_whitespace()).output().unwrap()
    }

    /// Runs a command that has to succeed; returns what it writes to standard output.
    fn good(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that has to fail with these words.
    fn bad(&self, args: &str, words: &str) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args}: {said}");
        assert!(said.contains(words) && !said.contains("panicked at"), "{args}: {said}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Coloured discs on coloured ground: `things` of them, each seen `views` times at another place.
fn draw(folder: &Path, things: u32, views: u32) {
    std::fs::create_dir(folder).unwrap();
    let mut table = String::from("path,role,object\n");
    for thing in 0..things {
        for view in 0..views {
            let (colour, ground) =
                ([thing * 40, 255 - thing * 30, thing * 90], [view * 60, 90, thing * 70 + view * 20]);
            let (x0, y0, radius) = (30 + 15 * view, 60 - 10 * view, 14 + 3 * thing);
            let photo = RgbImage::from_fn(96, 96, |x, y| {
                let inside = x.abs_diff(x0).pow(2) + y.abs_diff(y0).pow(2) < radius * radius;
                let striped = inside && (x / (2 + thing)) % 2 == 0;
                Rgb(if striped { colour } else { ground }.map(|level| (level % 256) as u8))
            });
            let name = format!("{thing}-{view}.png");
            photo.save(folder.join(&name)).unwrap();
            let role = if view == 0 { "gallery" } else { "query" };
            table += &format!("{name},{role},{thing}\n");
        }
    }
    std::fs::write(folder.join("photos.csv"), table).unwrap();
}

#[test]
fn from_pretrained_weights_to_a_query_network_that_finds_what_the_gallery_network_finds() {
    let Some(weights) = weights_of("efficientnet-lite0") else { return };
    let weights = weights.display();
    let place = Place(tempfile::tempdir().unwrap());
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
    assert_eq!((&report["queries"], &report["gallery"]), (&12.into(), &6.into()));
    // The query network's backbone is the gallery network's: what it was not taught it can hardly lose.
    let retention = report["retention"].as_f64().unwrap();
    assert!(retention > 0.8, "{report}");
}

#[test]
fn what_cannot_be_used_is_named() {
    let place = Place(tempfile::tempdir().unwrap());
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
    let output = place.run("import --network resnet50 --weights weights.pth --out raw.onnx");
    assert_eq!(output.status.code(), Some(2), "clap tells the networks that there are");
}
