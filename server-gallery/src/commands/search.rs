//! `search`: photos on this machine against the gallery, embedded with the gallery's own network (the symmetric case of
//! the networks; devices query with the small one).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use glimpse_embedder::{Embedder, read_photo};
use glimpse_protocol::TOP_K_MAX;
use rayon::prelude::*;
use serde_json::json;

use super::{Folders, write_line};
use crate::config::unknown_photos;
use crate::filter::Condition;
use crate::gallery;
use crate::matcher::MatcherConfig;
use crate::view::{QueryOptions, View};

/// Arguments of `search`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery search photo.jpg --gallery gallery --bundle models/demo
  glimpse-gallery search photos/*.jpg --gallery gallery --bundle models/demo --top-k 3 --json")]
pub struct SearchArgs {
    /// Photos to search for
    #[arg(required = true, value_name = "PHOTO")]
    photos: Vec<PathBuf>,
    #[command(flatten)]
    folders: Folders,
    /// Matches for each photo
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=TOP_K_MAX as i64), value_name = "N")]
    top_k: u16,
    /// Compare with every image
    #[arg(long)]
    exact: bool,
    /// Only among images with one of these labels
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Only among images with one of these values of an attribute
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    attributes: Vec<String>,
    /// Search again with the query expanded by its N nearest images (alpha query expansion)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    expand: Option<u16>,
    /// Photos that get no match: none (`matched`), those less similar to every image than was `learned` from the gallery,
    /// or than a similarity
    #[arg(long, default_value = "matched", value_name = "matched|learned|SIMILARITY")]
    unknown: String,
    /// Write one JSON object a photo
    #[arg(long)]
    json: bool,
}

/// What all photos are searched with.
struct Search<'a> {
    embedder: &'a Embedder,
    view: &'a View,
    options: QueryOptions,
    condition: Condition,
}

impl SearchArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let unknown = unknown_photos(&self.unknown).map_err(anyhow::Error::msg)?;
        let (bundle, view) =
            gallery::open(&self.folders.gallery, &self.folders.bundle, &mut super::index::watch(None))?;
        let embedder = super::ingest::gallery_embedder(&bundle, 1)?;
        let expand = self.expand.map_or(0, usize::from);
        let config = MatcherConfig { exact: self.exact, unknown, expand, ..MatcherConfig::default() };
        let options = config.search(usize::from(self.top_k), view.base());
        let condition = self.condition()?;
        if !condition.is_empty() && view.count(Some(&condition)) == 0 {
            let wanted = self.label.iter().chain(&self.attributes).map(String::as_str).collect::<Vec<_>>();
            bail!("no image is {}: `list --json` shows labels and attributes", wanted.join(" and "));
        }
        let search = Search { embedder: &embedder, view: &view, options, condition };
        let mut failed = 0;
        // In groups, so that the first lines come soon and the order is that of the arguments.
        for photos in self.photos.chunks(4 * rayon::current_num_threads()) {
            let lines: Vec<anyhow::Result<String>> =
                photos.par_iter().map(|photo| self.one(photo, &search)).collect();
            for (photo, line) in photos.iter().zip(lines) {
                match line {
                    Ok(line) => write_line(format_args!("{line}"))?,
                    Err(error) => {
                        failed += 1;
                        tracing::error!("{error:#}");
                        if self.json {
                            let line =
                                json!({"photo": photo.to_string_lossy(), "error": format!("{error:#}")});
                            write_line(format_args!("{line}"))?;
                        }
                    }
                }
            }
        }
        if failed > 0 {
            bail!("{failed} of {} photos could not be searched for", self.photos.len());
        }
        Ok(())
    }

    fn condition(&self) -> anyhow::Result<Condition> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for label in &self.label {
            values.entry("label".to_owned()).or_default().push(label.clone());
        }
        for pair in &self.attributes {
            let (name, value) = super::name_and_value(pair)?;
            values.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        Ok(Condition::new(values)?)
    }

    fn one(&self, path: &Path, search: &Search<'_>) -> anyhow::Result<String> {
        let Search { embedder, view, options, condition } = search;
        let photo = read_photo(path)?;
        let started = Instant::now();
        let embedding = embedder.embed(&photo).with_context(|| path.display().to_string())?;
        let embed_ms = started.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        let hits = view.search(&embedding, options, Some(condition)).pop().unwrap_or_default();
        let search_us = started.elapsed().as_micros();
        if self.json {
            let matches: Vec<_> = hits.iter().map(|hit| json!({"image": hit.image.id, "label": hit.image.label, "similarity": hit.similarity})).collect();
            let line = json!({"photo": path.to_string_lossy(), "matches": matches, "embed_ms": embed_ms, "search_us": search_us as u64});
            return Ok(line.to_string());
        }
        let mut text =
            format!("{}  (embedded in {embed_ms:.0} ms, searched in {search_us} us)", path.display());
        if hits.is_empty() {
            text.push_str("\n       no match");
        }
        for (rank, hit) in hits.iter().enumerate() {
            write!(text, "\n  {:>3}  {:.4}  {}  {}", rank + 1, hit.similarity, hit.image.id, hit.image.label)
                .expect("a string takes any text");
        }
        Ok(text)
    }
}
