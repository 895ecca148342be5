//! `console-password`: the password of the console, kept as a hash in the access folder, for its owner's eyes only.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::devices::Place;
use super::write_line;
use crate::access::file;
use crate::http::PASSWORD_FILE;
use crate::password::{self, PASSWORD_BYTES_MAX};

/// What is shorter is guessed, whatever the server does about guessing.
const PASSWORD_CHARS_MIN: usize = 8;

/// Arguments of `console-password`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery console-password --gallery gallery
  glimpse-gallery console-password --gallery gallery --password-file /run/secrets/console

A server that runs takes the new password at once, and whoever is logged in has to log in again.")]
pub struct ConsolePasswordArgs {
    #[command(flatten)]
    place: Place,
    /// Read the password from the first line of this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl ConsolePasswordArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (folder, gallery) = (self.place.folder(), self.place.gallery_beside());
        if let Some(gallery) = gallery {
            ensure!(
                gallery.is_dir(),
                "{} holds no gallery: make one with `glimpse-gallery ingest`",
                gallery.display()
            );
        }
        let password = match &self.password_file {
            Some(path) => first_line(std::io::BufReader::new(file::open_secret(path)?))?,
            None if std::io::stdin().is_terminal() => ask_twice()?,
            None => first_line(std::io::stdin().lock())?,
        };
        let chars = password.chars().count();
        ensure!(
            chars >= PASSWORD_CHARS_MIN,
            "the password has {chars} characters, and at least {PASSWORD_CHARS_MIN} are needed"
        );
        file::make_private_folder(&folder)?;
        let file = folder.join(PASSWORD_FILE);
        file::write_private(&file, format!("{}\n", password::hash(&password)?).as_bytes())?;
        write_line(format_args!("{}", file.display()))
    }
}

fn first_line(from: impl std::io::BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    from.take(PASSWORD_BYTES_MAX as u64 + 2).read_line(&mut line).context("cannot read the password")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

fn ask_twice() -> anyhow::Result<String> {
    let first = ask("password of the console: ")?;
    if ask("once more: ")? != first {
        bail!("these were two different passwords: nothing is changed");
    }
    Ok(first)
}

/// Asks on the terminal, which does not show what is typed.
fn ask(prompt: &str) -> anyhow::Result<String> {
    let mut terminal = std::io::stderr();
    terminal.write_all(prompt.as_bytes())?;
    let line = {
        let _silent = Silent::begin()?;
        first_line(std::io::stdin().lock())
    };
    terminal.write_all(b"\n")?;
    line
}

/// The terminal without echo, until it is dropped.
struct Silent(Termios);

impl Silent {
    fn begin() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("cannot silence the terminal")?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent)
            .context("cannot silence the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // The terminal may be gone, and then needs no echo.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    fn set(gallery: &Path, text: &str) -> anyhow::Result<()> {
        let given = gallery.join("given");
        file::write_private(&given, text.as_bytes()).unwrap();
        ConsolePasswordArgs { place: Place::of_gallery(gallery), password_file: Some(given) }.run()
    }

    #[test]
    fn the_password_is_kept_as_a_hash_that_only_its_owner_reads() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["correct horse\nsecond line\n", "another horse"] {
            set(dir.path(), text).unwrap();
            let file = dir.path().join("access").join(PASSWORD_FILE);
            let kept = std::fs::read_to_string(&file).unwrap();
            assert!(password::verify(text.lines().next().unwrap().as_bytes(), kept.trim()), "{kept}");
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(
                std::fs::metadata(dir.path().join("access")).unwrap().permissions().mode() & 0o777,
                0o700
            );
        }
    }

    #[test]
    fn a_short_password_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "\n", "seven77"] {
            assert!(set(dir.path(), text).unwrap_err().to_string().contains("at least 8"), "{text}");
        }
        let open = dir.path().join("open");
        std::fs::write(&open, "correct horse").unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        let place = Place::of_gallery(dir.path());
        let error = ConsolePasswordArgs { place, password_file: Some(open) }.run().unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        let error = set(dir.path(), &"x".repeat(2000)).unwrap_err();
        assert!(error.to_string().contains("1024"), "{error}");
        let nowhere =
            ConsolePasswordArgs { place: Place::of_gallery(Path::new("no/gallery")), password_file: None };
        assert!(nowhere.run().unwrap_err().to_string().contains("holds no gallery"));
    }
}
