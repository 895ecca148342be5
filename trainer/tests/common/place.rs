//! A folder with drawn photos, in which the program runs as a person runs it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use glimpse_trainer::features::Features;
use image::{Rgb, RgbImage};

/// A folder in which the commands run.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A command that has not started.
    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-trainer"));
        command.current_dir(self.0.path()).args(args.split_whitespace());
        command
    }

    pub(crate) fn run(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that has to succeed; returns what it writes to standard output.
    pub(crate) fn good(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that has to fail with these words.
    pub(crate) fn bad(&self, args: &str, words: &str) {
        fails(&mut self.command(args), words);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What [`small_run`] needs. Any embeddings teach; these are 8 numbers of each photo's place in the list.
    pub(crate) fn prepare_small_run(&self) {
        draw(&self.path("train"), 8, 4);
        draw(&self.path("val"), 6, 3);
        let rows = |count: u32| -> Vec<f32> { (0..count * 8).map(|i| (i as f32 * 0.7).sin()).collect() };
        for (name, count) in [("t", 32), ("v", 18)] {
            let features = Features::from_f32(vec![8], (0..count).collect(), rows(count));
            features.write(&self.path(&format!("{name}.safetensors")), HashMap::new()).unwrap();
        }
        self.good("space --bundle bundle --name numbers --dimension 8");
        self.good("quantizer --features t.safetensors --bundle bundle --sub-spaces 4 --centroids 8");
    }
}

/// A command that has to fail with these words, and without a panic.
pub(crate) fn fails(command: &mut Command, words: &str) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(said.contains(words) && !said.contains("panicked at"), "{command:?}: {said}");
}

/// Coloured discs on coloured ground: `things` of them, each seen `views` times at another place.
pub(crate) fn draw(folder: &Path, things: u32, views: u32) {
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

/// Trains a network of few numbers, four steps an epoch, in the folder `run`.
pub(crate) fn small_run(run: &str, steps: u32) -> String {
    format!(
        "train --bundle bundle --network miniature --size 32 --photos train/photos.csv --val val/photos.csv --freeze-to none \
         --norms live --init random --ema 0.9 --batch 8 --steps {steps} --teacher-features t.safetensors \
         --val-teacher-features v.safetensors --run {run}"
    )
}

/// All tensors but the optimizer's state, whose entries are written in any order.
pub(crate) fn weights(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().filter(|(name, _)| name != "optimizer");
    tensors.map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
}
