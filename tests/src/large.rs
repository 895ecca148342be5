//! A query network of five million parameters in the demo's space, for what depends upon its size alone.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::demo::ground_truth::GroundTruth;
use crate::programs::Programs;
use crate::workspace;

/// Its backbone's pretrained weights, which `make weights` fetches.
const WEIGHTS: &str = "data/weights/efficientnet-lite2.pth";

/// Photos that its projection is made of, by the closed form: it need not be good.
const PHOTOS: usize = 16;

/// Makes `FOLDER/query.onnx`: EfficientNet-Lite2 and a projection into the demo's space, for photos of 256 pixels.
///
/// # Errors
/// Where the weights are missing or the trainer fails.
pub fn network(programs: &Programs, folder: &Path) -> anyhow::Result<PathBuf> {
    let weights = workspace::root().join(WEIGHTS);
    ensure!(weights.is_file(), "there is no {WEIGHTS}: `make weights` fetches it");
    let photos = workspace::demo().join("photos");
    let queries = GroundTruth::read(&workspace::demo())?.queries;
    let (train, val, run, model) =
        (folder.join("train.csv"), folder.join("val.csv"), folder.join("run"), folder.join("query.onnx"));
    let mut table = csv::Writer::from_path(&train)?;
    table.write_record(["path", "label"])?;
    for query in queries.iter().take(PHOTOS) {
        table.write_record([&path(&photos, &query.answer), &query.label])?;
    }
    table.flush()?;
    // Photos find themselves.
    let mut table = csv::Writer::from_path(&val)?;
    table.write_record(["path", "label", "role", "object"])?;
    for role in ["gallery", "query"] {
        for query in queries.iter().take(PHOTOS) {
            table.write_record([&path(&photos, &query.answer), &query.label, role, &query.answer])?;
        }
    }
    table.flush()?;
    let mut train_command = programs.trainer();
    train_command.args([
        "train",
        "--quiet",
        "--network",
        "efficientnet-lite2",
        "--size",
        "256",
        "--steps",
        "0",
    ]);
    train_command.args(["--ridge", "1", "--bundle"]).arg(workspace::bundle());
    train_command.arg("--weights").arg(&weights).arg("--photos").arg(&train).arg("--val").arg(&val);
    train_command.arg("--run").arg(&run);
    let mut export = programs.trainer();
    export.args(["export", "--quiet", "--run"]).arg(&run).arg("--bundle").arg(workspace::bundle());
    export.arg("--out").arg(&model);
    for mut command in [train_command, export] {
        let output = command.output().context("cannot start the trainer")?;
        ensure!(output.status.success(), "the trainer failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(model)
}

fn path(photos: &Path, photo: &str) -> String {
    photos.join(photo).to_string_lossy().into_owned()
}
