//! `eval`: how much of the gallery model's accuracy the query network keeps.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, ensure};
use clap::Args;
use glimpse_embedder::{Embedder, SpaceBundle};
use serde::Serialize;

use crate::features::{Extraction, Features};
use crate::photos::PhotoList;
use crate::retrieval::{Scores, Task, score};

/// Measure gallery and query network on labelled photos.
#[derive(Debug, Args)]
pub struct Eval {
    /// The space bundle, with both networks.
    #[arg(long)]
    bundle: PathBuf,
    /// A CSV table with the columns path, role and object.
    #[arg(long)]
    photos: PathBuf,
    /// Another query network than the bundle's.
    #[arg(long)]
    query: Option<PathBuf>,
    /// Where embeddings are kept for the next time; a temporary folder by default.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    queries: usize,
    gallery: usize,
    /// Gallery network on both sides.
    symmetric: Scores,
    /// Query network against the gallery network.
    asymmetric: Scores,
    /// Query network on both sides, which is a gallery of its own and needs it.
    query_on_both_sides: Scores,
    /// Asymmetric mAP over symmetric mAP.
    retention: f64,
}

impl Eval {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let bundle = SpaceBundle::load(&self.bundle)?;
        let photos = PhotoList::read(&self.photos)?;
        let query_model = self.query.clone().unwrap_or_else(|| bundle.query_model());
        let temporary = std::env::temp_dir().join(format!("glimpse-eval-{}", std::process::id()));
        let cache = self.cache.clone().unwrap_or_else(|| temporary.clone());
        let embed = |name: &str, model: &PathBuf| -> Result<Features> {
            let embedder = Embedder::load(model)?;
            ensure!(
                embedder.space() == bundle.space,
                "{} gives embeddings of the space {}, and the bundle is {}",
                model.display(),
                embedder.space(),
                bundle.space
            );
            let preprocessing = embedder.metadata().preprocessing;
            let extraction =
                Extraction { name, model, preprocessing, photos: &photos, views: 1, seed: 0, half: false };
            Ok(extraction.run(&cache.join(format!("{name}.safetensors")), stop)?)
        };
        let features = embed("gallery", &bundle.gallery_model())
            .and_then(|gallery| Ok((gallery, embed("query", &query_model)?)));
        // Only ours is removed, and a failure to remove it costs disk space only.
        let _ = std::fs::remove_dir_all(&temporary);
        let (gallery, query) = features?;

        let task = Task::new(photos.photos(), |number| {
            gallery.items.contains(&number) && query.items.contains(&number)
        });
        ensure!(
            !task.queries.is_empty(),
            "{} has no query with an answer in the gallery",
            self.photos.display()
        );
        let scores = |queries: &Features, answers: &Features| {
            let (queries, answers) =
                (queries.keep(&task.queries).to_f32(), answers.keep(&task.gallery).to_f32());
            score(&queries, &answers, bundle.dimension, &task.answers)
        };
        let (symmetric, asymmetric) = (scores(&gallery, &gallery), scores(&query, &gallery));
        self.print(&Report {
            queries: task.queries.len(),
            gallery: task.gallery.len(),
            symmetric,
            asymmetric,
            query_on_both_sides: scores(&query, &query),
            retention: asymmetric.map / symmetric.map,
        })
    }

    fn print(&self, report: &Report) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(report)?)?;
            return Ok(());
        }
        writeln!(out, "{} queries against {} gallery photos\n", report.queries, report.gallery)?;
        writeln!(out, "| query side -> gallery side | mAP | recall@1 | recall@10 |\n|---|---|---|---|")?;
        let rows = [
            ("gallery network -> gallery network", report.symmetric),
            ("query network -> gallery network", report.asymmetric),
            ("query network -> query network", report.query_on_both_sides),
        ];
        for (name, Scores { map, recall_at_1, recall_at_10 }) in rows {
            writeln!(out, "| {name} | {map:.4} | {recall_at_1:.4} | {recall_at_10:.4} |")?;
        }
        writeln!(out, "\nretention: {:.1} % of the gallery network's mAP", 100.0 * report.retention)?;
        Ok(())
    }
}
