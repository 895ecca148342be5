//! `index`: the index of a gallery, made with options of one's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use glimpse_embedder::SpaceBundle;
use glimpse_quantizer::{Expansion, Precision};

use super::{Folders, ingest, write_line};
use crate::gallery;
use crate::index::{CodesOption, Index, IndexOptions, Stage};
use crate::progress::Progress;
use crate::store::Reader;

/// Arguments of `index`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery index --gallery gallery --bundle models/demo
  glimpse-gallery index --gallery gallery --bundle models/demo --lists 1024 --recall 0.98
  glimpse-gallery index --gallery gallery --bundle models/demo --codes exact

`ingest` and `serve` make an index by themselves where there is none that fits the gallery: with 4-bit codes from 10 000
images on, and with inverted lists from a million on. An index made here is used until a twentieth of the gallery has changed: then
a server makes one with the usual options.")]
pub struct IndexArgs {
    #[command(flatten)]
    folders: Folders,
    /// Which codes find the candidates
    #[arg(long, value_enum, default_value_t = Codes::Auto)]
    codes: Codes,
    /// Sub-spaces of the codes [default: a quarter of the dimension at 4 bits, an eighth at 8]
    #[arg(long, value_name = "M")]
    sub_spaces: Option<usize>,
    /// Inverted lists; 0 for none [default: by the size of the gallery]
    #[arg(long, value_name = "N")]
    lists: Option<usize>,
    /// Encode differences from the centroid of the list
    #[arg(long)]
    residual: bool,
    /// How features are kept for exact ranking
    #[arg(long, value_enum, default_value_t = Kept::F16)]
    precision: Kept,
    /// Share of the ten nearest images that a search should find
    #[arg(long, default_value_t = 0.95, value_name = "SHARE")]
    recall: f32,
    /// Expand each feature by its N nearest others (database-side augmentation)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    augment: Option<u16>,
    /// Seed of centroids and of the sample that recall is measured on
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Codes {
    /// By the size of the gallery
    Auto,
    /// None: every image is compared
    Exact,
    /// 4 bits a sub-space, by a codebook of the gallery's own
    #[value(name = "4")]
    Four,
    /// 8 bits a sub-space, by a codebook of the gallery's own
    #[value(name = "8")]
    Eight,
    /// By the space's codebook
    Space,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kept {
    /// 4 bytes a component
    F32,
    /// 2 bytes a component
    F16,
    /// 1 byte a component
    I8,
}

impl IndexArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let own_codebook = matches!(self.codes, Codes::Four | Codes::Eight);
        ensure!(self.sub_spaces.is_none() || own_codebook, "--sub-spaces goes with --codes 4 or 8");
        let lists = self.lists.is_some_and(|lists| lists > 0);
        ensure!(!lists || self.codes != Codes::Exact, "--lists go with codes, and --codes is exact");
        ensure!(!self.residual || lists, "--residual goes with --lists: name how many");
        ensure!((0.5..=1.0).contains(&self.recall), "--recall is {}, and must be 0.5 to 1", self.recall);
        let bundle = SpaceBundle::load(&self.folders.bundle)?;
        let options = IndexOptions {
            codes: match self.codes {
                Codes::Auto => CodesOption::Auto,
                Codes::Exact => CodesOption::Exact,
                Codes::Four => CodesOption::Four { sub_spaces: self.sub_spaces },
                Codes::Eight => CodesOption::Eight { sub_spaces: self.sub_spaces },
                Codes::Space => gallery::codes_of_space(&bundle)?,
            },
            lists: self.lists,
            residual: self.residual,
            precision: match self.precision {
                Kept::F32 => Precision::F32,
                Kept::F16 => Precision::F16,
                Kept::I8 => Precision::I8,
            },
            recall: self.recall,
            augment: self.augment.map(|neighbours| Expansion::new(usize::from(neighbours))),
            seed: self.seed,
            ..IndexOptions::default()
        };
        let stop = ingest::stop_on_signals()?;
        let now = Reader::open(&self.folders.gallery)?.now()?;
        let index = gallery::make(&self.folders.gallery, &bundle, now, &options, &mut watch(Some(stop)))?;
        gallery::forget_changes(&self.folders.gallery, index.state().generation);
        self.tell(&index)
    }

    fn tell(&self, index: &Index) -> anyhow::Result<()> {
        let vectors = index.vectors();
        let per_image = vectors.bytes() as f64 / index.len().max(1) as f64;
        if self.json {
            let report = serde_json::json!({
                "images": index.len(), "search": vectors.describe(), "bytes_per_image": per_image,
                "recall": vectors.recall(), "unknown": vectors.unknown(),
            });
            return write_line(format_args!("{report}"));
        }
        write_line(format_args!("images   {}", index.len()))?;
        write_line(format_args!("search   {}", vectors.describe()))?;
        write_line(format_args!("memory   {per_image:.0} bytes an image"))?;
        if let Some(recall) = vectors.recall() {
            for (probes, found) in recall.curve.iter().filter(|_| recall.curve.len() > 1) {
                let chosen = if *probes == recall.probes { "  <- this is what is taken" } else { "" };
                write_line(format_args!("recall   {found:.3} with {probes} lists{chosen}"))?;
            }
            let found =
                recall.curve.iter().find(|(probes, _)| *probes == recall.probes).map_or(0.0, |point| point.1);
            write_line(format_args!(
                "recall   {found:.3} of the 10 nearest, with {} candidates ranked exactly",
                recall.rerank
            ))?;
        }
        if let Some(unknown) = vectors.unknown() {
            let kept = unknown.kept.map_or(String::new(), |kept| {
                format!(", {:.0} % of those of known ones keep theirs", 100.0 * kept)
            });
            write_line(format_args!(
                "unknown  below {:.3}: {:.0} % of photos of other things would get a match{kept}",
                unknown.below,
                100.0 * unknown.accepted,
            ))?;
        }
        Ok(())
    }
}

/// Shows each stage as a progress bar; a raised flag stops the making.
pub(super) fn watch(stop: Option<Arc<AtomicBool>>) -> impl FnMut(Stage, usize, usize) -> bool {
    let mut shown: Option<(Stage, Progress)> = None;
    move |stage, done, all| {
        if all > 0 && shown.as_ref().is_none_or(|(now, _)| *now != stage) {
            shown = Some((stage, Progress::new(stage.name(), all)));
        }
        if let Some((_, progress)) = &shown {
            progress.at(done);
        }
        !stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}
