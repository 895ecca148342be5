//! `man` and `completions`: manual pages and shell completions, from the definitions of the commands themselves.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command as Definition, Subcommand as _};
use clap_complete::Shell;

use super::{Command, write_line};

const NAME: &str = "glimpse-gallery";

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  glimpse-gallery man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder for the pages, made where it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let cannot = || format!("cannot write manual pages into {}", self.out.display());
        std::fs::create_dir_all(&self.out).with_context(cannot)?;
        clap_mangen::generate_to(definition(), &self.out).with_context(cannot)
    }
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery completions bash > ~/.local/share/bash-completion/completions/glimpse-gallery
  glimpse-gallery completions fish > ~/.config/fish/completions/glimpse-gallery.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut definition(), NAME, &mut script);
        write_line(format_args!("{}", String::from_utf8_lossy(&script).trim_end()))
    }
}

fn definition() -> Definition {
    let about = "The Glimpse gallery server: photos in, matches over MQTT out";
    let definition = Definition::new(NAME).version(env!("CARGO_PKG_VERSION")).about(about);
    Command::augment_subcommands(definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        ManArgs { out: dir.path().join("man1") }.run().unwrap();
        let definition = definition();
        let mut bash = Vec::new();
        clap_complete::generate(Shell::Bash, &mut definition.clone(), NAME, &mut bash);
        let bash = String::from_utf8(bash).unwrap();
        let names: Vec<&str> = definition.get_subcommands().map(Definition::get_name).collect();
        assert!(names.contains(&"serve") && names.contains(&"console-password"), "{names:?}");
        for name in names {
            let page = dir.path().join(format!("man1/glimpse-gallery-{name}.1"));
            assert!(page.is_file(), "{}", page.display());
            assert!(bash.contains(name), "{name}");
        }
    }
}
