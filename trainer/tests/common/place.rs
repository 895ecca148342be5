//! A folder, photos drawn into it, and the program.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
