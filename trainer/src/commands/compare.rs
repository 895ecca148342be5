//! `compare`: the benchmark of accuracy.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::comparison::{Comparison, Plan};
use crate::files::{read, write_whole};

/// The generated part of a page stands between these lines.
const BEGIN: &str = "<!-- written by `glimpse-trainer compare`: from here -->";
const END: &str = "<!-- to here -->";

/// Train every loss of a plan from the same start, and compare them on test photos.
#[derive(Debug, Args)]
pub struct Compare {
    /// What to compare, for example trainer/accuracy.toml.
    #[arg(long)]
    plan: PathBuf,
    /// The rows, as a JSON list.
    #[arg(long)]
    out: PathBuf,
    /// A Markdown page whose marked part is replaced by the tables.
    #[arg(long)]
    page: Option<PathBuf>,
}

impl Compare {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let plan = Plan::read(&self.plan)?;
        // Found out now, not after hours.
        let page =
            self.page.as_ref().map(|path| Ok::<_, anyhow::Error>((path, Page::read(path)?))).transpose()?;
        let mut last = None;
        plan.run(stop, |comparison: &Comparison| {
            write_whole(&self.out, serde_json::to_string_pretty(&comparison.rows)?.as_bytes())?;
            last = Some(comparison.markdown());
            Ok(())
        })?;
        if let (Some(markdown), Some((path, page))) = (last, page) {
            write_whole(path, page.with(&markdown).as_bytes())?;
        }
        tracing::info!("wrote {}", self.out.display());
        Ok(())
    }
}

/// A page around its generated part.
struct Page {
    before: String,
    after: String,
}

impl Page {
    fn read(path: &Path) -> Result<Self> {
        let text =
            String::from_utf8(read(path)?).with_context(|| format!("{} is no text", path.display()))?;
        let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        ensure!(parts.is_some(), "{} has no lines `{BEGIN}` and `{END}` for the tables", path.display());
        let (before, after) = parts.unwrap_or_default();
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }

    fn with(&self, markdown: &str) -> String {
        format!("{}{BEGIN}\n\n{}\n{END}{}", self.before, markdown, self.after)
    }
}
