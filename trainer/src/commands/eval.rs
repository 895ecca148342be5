//! `eval`: how much of the gallery model's accuracy the query network keeps, by published protocols.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use glimpse_embedder::{Embedder, SpaceBundle};
use glimpse_protocol::{Codec, SpaceId};
use glimpse_quantizer::{Codebook, Expansion};
use serde::Serialize;

use super::SightOptions;
use crate::evaluation::codecs::{Arrived, arrived, read_codebook};
use crate::evaluation::expansion::expanded;
use crate::evaluation::{DataSet, Figures, evaluate};
use crate::features::{Extraction, Features, Sight};
use crate::matrix::{InMemory, MatrixFile, Rows, Stacked};
use crate::photos::PhotoList;

/// Measure gallery and query network on labelled photos.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  glimpse-trainer eval --bundle models/demo --photos data/scenes/test.csv
  glimpse-trainer eval --protocol revisited --ground-truth gnd_roxford5k.pkl --photos roxford5k/jpg --bundle models/mine \\
      --longest-side 1024 --scales 1,1.4142,0.7071 --distractor-features revisitop1m.npy
  glimpse-trainer eval --protocol landmarks --ground-truth retrieval_solution_v2.1.csv --photos index --query-photos test \\
      --gallery-features index.npy --teacher-query-features test-large.npy --query-features test-tiny.npy")]
pub struct Eval {
    /// The rules.
    #[arg(long, default_value = "table")]
    protocol: Protocol,
    /// The photos: a CSV table with the columns path, role and object (table), the folder of NAME.jpg (revisited), or the
    /// index as folder or table (landmarks).
    #[arg(long)]
    photos: PathBuf,
    /// gnd_*.pkl (revisited), or retrieval_solution_v2.1.csv (landmarks).
    #[arg(long, required_if_eq_any = [("protocol", "revisited"), ("protocol", "landmarks")])]
    ground_truth: Option<PathBuf>,
    /// Query photos of landmarks: a folder or a table.
    #[arg(long, required_if_eq("protocol", "landmarks"))]
    query_photos: Option<PathBuf>,
    /// The space bundle, with both networks.
    #[arg(long, required_unless_present = "gallery_features", conflicts_with = "gallery_features")]
    bundle: Option<PathBuf>,
    /// Another query network than the bundle's.
    #[arg(long, requires = "bundle")]
    query: Option<PathBuf>,
    #[command(flatten)]
    sight: SightOptions,
    /// Where embeddings are kept for the next time; a temporary folder by default.
    #[arg(long, requires = "bundle")]
    cache: Option<PathBuf>,
    /// The gallery network's features of the gallery photos.
    #[arg(long)]
    gallery_features: Option<PathBuf>,
    /// The gallery network's features of the query photos, for the symmetric figures.
    #[arg(long, requires = "gallery_features")]
    teacher_query_features: Option<PathBuf>,
    /// The query network's features of the query photos, for the asymmetric figures.
    #[arg(long, requires = "gallery_features")]
    query_features: Option<PathBuf>,
    /// The query network's features of the gallery photos, for that network on both sides.
    #[arg(long, requires = "query_features")]
    query_gallery_features: Option<PathBuf>,
    /// The gallery network's features of more distractors, read block by block; may be given several times. `features` makes
    /// such files.
    #[arg(long)]
    distractor_features: Vec<PathBuf>,
    /// Expand each query by its N nearest gallery photos, and rank again (alpha query expansion, alpha = 3).
    #[arg(long, value_name = "N")]
    expand: Option<usize>,
    /// Expand each gallery photo by its N nearest others first (database-side augmentation).
    #[arg(long, value_name = "N")]
    augment: Option<usize>,
    /// Also send the query network's embeddings through each codec of the device, and say what it loses and how large its messages are.
    #[arg(long, requires = "bundle")]
    codecs: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// A CSV table that says what shows what: mAP, recall@1, recall@10.
    Table,
    /// Revisited Oxford and Paris, easy, medium and hard: mAP, mP@1, 5, 10.
    Revisited,
    /// Google Landmarks v2, retrieval: mAP@100.
    Landmarks,
}

#[derive(Serialize)]
struct Report {
    gallery: usize,
    /// Gallery network on both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    symmetric: Option<Vec<Figures>>,
    /// Query network against the gallery network.
    #[serde(skip_serializing_if = "Option::is_none")]
    asymmetric: Option<Vec<Figures>>,
    /// Query network on both sides, which is a gallery of its own and needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    query_on_both_sides: Option<Vec<Figures>>,
    /// Asymmetric over symmetric, of the main figure, for each setting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    retention: Vec<f64>,
    /// The query network's embeddings as they travel, against the gallery network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    codecs: Vec<Travelled>,
}

/// What a codec makes of the queries.
#[derive(Serialize)]
struct Travelled {
    codec: &'static str,
    /// The largest message, in bytes of MQTT payload.
    message_bytes: usize,
    figures: Vec<Figures>,
}

/// What is compared: features of the same data set.
struct Sides<'a> {
    data: &'a DataSet,
    gallery: &'a dyn Rows,
    teacher_queries: Option<&'a dyn Rows>,
    queries: Option<&'a dyn Rows>,
    query_gallery: Option<&'a dyn Rows>,
    /// The space that the queries travel in, and its codebook, where codecs are judged.
    travel: Option<(SpaceId, Codebook)>,
}

impl Eval {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let data = self.data()?;
        let report = match &self.bundle {
            Some(bundle) => self.with_networks(data, &SpaceBundle::load(bundle)?, stop)?,
            None => self.with_files(&data)?,
        };
        self.print(&report)
    }

    fn data(&self) -> Result<DataSet> {
        let truth = || self.ground_truth.as_deref().context("--ground-truth is missing");
        Ok(match self.protocol {
            Protocol::Table => DataSet::table(&self.photos)?,
            Protocol::Revisited => DataSet::revisited(truth()?, &self.photos)?,
            Protocol::Landmarks => {
                let queries = self.query_photos.as_deref().context("--query-photos is missing")?;
                DataSet::landmarks(truth()?, &self.photos, queries)?
            }
        })
    }

    fn with_files(&self, data: &DataSet) -> Result<Report> {
        let open = |path: &Option<PathBuf>, photos: &PhotoList, what: &str| {
            path.as_ref().map(|path| matrix(path, photos.photos().len(), what)).transpose()
        };
        let gallery = open(&self.gallery_features, &data.gallery, "gallery photos")?;
        let gallery = gallery.context("--gallery-features is missing")?;
        let teacher_queries = open(&self.teacher_query_features, &data.queries, "queries")?;
        let queries = open(&self.query_features, &data.queries, "queries")?;
        let query_gallery = open(&self.query_gallery_features, &data.gallery, "gallery photos")?;
        ensure!(
            teacher_queries.is_some() || queries.is_some(),
            "there is nothing to judge: give --teacher-query-features, --query-features, or both"
        );
        for other in [&teacher_queries, &queries].into_iter().flatten() {
            same_dimension(other, gallery.dimension(), gallery.path())?;
        }
        if let (Some(queries), Some(query_gallery)) = (&queries, &query_gallery) {
            same_dimension(query_gallery, queries.dimension(), queries.path())?;
        }
        self.judge(&Sides {
            data,
            gallery: &gallery,
            teacher_queries: teacher_queries.as_ref().map(|rows| rows as &dyn Rows),
            queries: queries.as_ref().map(|rows| rows as &dyn Rows),
            query_gallery: query_gallery.as_ref().map(|rows| rows as &dyn Rows),
            travel: None,
        })
    }

    fn with_networks(&self, data: DataSet, bundle: &SpaceBundle, stop: &AtomicBool) -> Result<Report> {
        let temporary = std::env::temp_dir().join(format!("glimpse-eval-{}", std::process::id()));
        let cache = self.cache.clone().unwrap_or_else(|| temporary.clone());
        let features = self.embed(&data, bundle, &cache, stop);
        if self.cache.is_none() {
            // Only ours is removed, and a failure to remove it costs disk space only.
            let _ = std::fs::remove_dir_all(&temporary);
        }
        let [gallery, teacher_queries, query_gallery, queries] = features?;
        // A photo that one network could not decode the other could not either; whoever reads both must have both.
        let (rows, query_rows) = (common(&gallery, &query_gallery), common(&teacher_queries, &queries));
        let data = if rows.len() == data.gallery.photos().len()
            && query_rows.len() == data.queries.photos().len()
        {
            data
        } else {
            ensure!(
                data.may_lack_photos,
                "{} of {} gallery photos and {} of {} queries could be decoded, and this protocol needs all of them",
                rows.len(),
                data.gallery.photos().len(),
                query_rows.len(),
                data.queries.photos().len()
            );
            data.keep(&rows, &query_rows)
        };
        let kept = |features: Features, rows: &[u32]| features.keep(rows).to_f32();
        let [gallery, query_gallery] = [gallery, query_gallery].map(|features| kept(features, &rows));
        let [teacher_queries, queries] =
            [teacher_queries, queries].map(|features| kept(features, &query_rows));
        let travel =
            if self.codecs { Some((bundle.space, read_codebook(&bundle.codebook())?)) } else { None };
        let rows = |values| InMemory { values, dimension: bundle.dimension };
        self.judge(&Sides {
            data: &data,
            gallery: &rows(&gallery),
            teacher_queries: Some(&rows(&teacher_queries)),
            queries: Some(&rows(&queries)),
            query_gallery: Some(&rows(&query_gallery)),
            travel,
        })
    }

    /// Gallery network on gallery and queries, then the query network on both.
    fn embed(
        &self,
        data: &DataSet,
        bundle: &SpaceBundle,
        cache: &Path,
        stop: &AtomicBool,
    ) -> Result<[Features; 4]> {
        let query_model = self.query.clone().unwrap_or_else(|| bundle.query_model());
        let sight = self.sight.sight();
        let one = |name: &str, model: &Path, photos: &PhotoList, sight: &Sight| -> Result<Features> {
            let embedder = Embedder::load(model)?;
            ensure!(
                embedder.space() == bundle.space,
                "{} gives embeddings of the space {}, and the bundle is {}",
                model.display(),
                embedder.space(),
                bundle.space
            );
            let preprocessing = embedder.metadata().preprocessing;
            let title = name.replace('-', " ");
            let extraction = Extraction {
                name: &title,
                model,
                preprocessing,
                sight,
                photos,
                views: 1,
                seed: 0,
                half: false,
            };
            Ok(extraction.run(&cache.join(format!("{name}.safetensors")), stop)?)
        };
        let gallery_model = bundle.gallery_model();
        Ok([
            one("gallery", &gallery_model, &data.gallery, &sight)?,
            one("gallery-on-queries", &gallery_model, &data.queries, &sight)?,
            one("query-on-gallery", &query_model, &data.gallery, &sight)?,
            one("query", &query_model, &data.queries, &sight)?,
        ])
    }

    fn judge(&self, sides: &Sides) -> Result<Report> {
        let dimension = sides.gallery.dimension();
        let distractors = self.distractor_features.iter().map(|path| {
            let matrix = MatrixFile::open(path)?;
            same_dimension(&matrix, dimension, Path::new("the gallery"))?;
            Ok(matrix)
        });
        let distractors: Vec<MatrixFile> = distractors.collect::<Result<_>>()?;
        let mut parts = vec![sides.gallery];
        parts.extend(distractors.iter().map(|matrix| matrix as &dyn Rows));
        let gallery = Stacked::new(parts);
        let figures = |queries: Option<&dyn Rows>, gallery: &dyn Rows, title| {
            queries.map(|queries| self.evaluate(sides.data, queries, gallery, title)).transpose()
        };
        let symmetric = figures(sides.teacher_queries, &gallery, "ranking, symmetric")?;
        let asymmetric = figures(sides.queries, &gallery, "ranking, asymmetric")?;
        let query_on_both_sides = match (sides.query_gallery, distractors.is_empty()) {
            (Some(own), true) => figures(sides.queries, own, "ranking, query network alone")?,
            // The distractors are of the gallery network's space side.
            _ => None,
        };
        let main = |figures: &Figures| figures.values.first().map_or(f64::NAN, |(_, value)| *value);
        let pairs = symmetric.iter().flatten().zip(asymmetric.iter().flatten());
        let retention = pairs.map(|(symmetric, asymmetric)| main(asymmetric) / main(symmetric)).collect();
        let mut codecs = Vec::new();
        if let (Some((space, codebook)), Some(queries)) = (&sides.travel, sides.queries) {
            for codec in Codec::ALL {
                let Arrived { rows, message_bytes } = arrived(queries, codec, codebook, *space)?;
                let rows = InMemory { values: &rows, dimension };
                let figures = self.evaluate(sides.data, &rows, &gallery, "ranking, by codec")?;
                codecs.push(Travelled { codec: codec.name(), message_bytes, figures });
            }
        }
        Ok(Report { gallery: gallery.count(), symmetric, asymmetric, query_on_both_sides, retention, codecs })
    }

    /// By the protocol, after what `--augment` and `--expand` say. Both look at every gallery photo for each vector, in memory.
    fn evaluate(
        &self,
        data: &DataSet,
        queries: &dyn Rows,
        gallery: &dyn Rows,
        title: &str,
    ) -> Result<Vec<Figures>> {
        if self.expand.is_none() && self.augment.is_none() {
            return Ok(evaluate(data, queries, gallery, title)?);
        }
        let dimension = gallery.dimension();
        let mut rows = gallery.read(0..gallery.count())?;
        if let Some(neighbours) = self.augment {
            rows = expanded(&rows, &rows, dimension, Expansion::new(neighbours), true);
        }
        let mut asked = queries.read(0..queries.count())?;
        if let Some(neighbours) = self.expand {
            asked = expanded(&asked, &rows, dimension, Expansion::new(neighbours), false);
        }
        let in_memory = |values| InMemory { values, dimension };
        Ok(evaluate(data, &in_memory(&asked), &in_memory(&rows), title)?)
    }

    fn print(&self, report: &Report) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(report)?)?;
            return Ok(());
        }
        let sides = [
            ("gallery network -> gallery network", &report.symmetric),
            ("query network -> gallery network", &report.asymmetric),
            ("query network -> query network", &report.query_on_both_sides),
        ];
        let Some(first) = sides.iter().find_map(|(_, figures)| figures.as_ref()) else {
            bail!("nothing was judged")
        };
        for (place, Figures { setting, queries, values }) in first.iter().enumerate() {
            let title = if setting.is_empty() { String::new() } else { format!("{setting}: ") };
            writeln!(out, "{title}{queries} queries against {} gallery photos\n", report.gallery)?;
            let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
            writeln!(out, "| query side -> gallery side | {} |", names.join(" | "))?;
            writeln!(out, "|---|{}", "---|".repeat(names.len()))?;
            for (name, figures) in &sides {
                let Some(figures) = figures.as_ref().and_then(|figures| figures.get(place)) else { continue };
                let values: Vec<String> =
                    figures.values.iter().map(|(_, value)| format!("{value:.4}")).collect();
                writeln!(out, "| {name} | {} |", values.join(" | "))?;
            }
            if let Some(retention) = report.retention.get(place) {
                writeln!(
                    out,
                    "\nretention: {:.1} % of the gallery network's {}",
                    100.0 * retention,
                    names[0]
                )?;
            }
            writeln!(out)?;
            if report.codecs.is_empty() {
                continue;
            }
            writeln!(out, "| codec | bytes of a message | {} |", names.join(" | "))?;
            writeln!(out, "|---|---|{}", "---|".repeat(names.len()))?;
            for Travelled { codec, message_bytes, figures } in &report.codecs {
                let Some(figures) = figures.get(place) else { continue };
                let values: Vec<String> =
                    figures.values.iter().map(|(_, value)| format!("{value:.4}")).collect();
                writeln!(out, "| {codec} | {message_bytes} | {} |", values.join(" | "))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// A file with a row for each photo.
fn matrix(path: &Path, count: usize, what: &str) -> Result<MatrixFile> {
    let matrix = MatrixFile::open(path)?;
    ensure!(
        matrix.count() == count,
        "{} has {} rows, and there are {count} {what}: one row each is needed, in their order",
        path.display(),
        matrix.count()
    );
    Ok(matrix)
}

fn same_dimension(matrix: &MatrixFile, dimension: usize, other: &Path) -> Result<()> {
    ensure!(
        matrix.dimension() == dimension,
        "{} has {} dimensions, and {} has {dimension}",
        matrix.path().display(),
        matrix.dimension(),
        other.display()
    );
    Ok(())
}

/// The items that both have.
fn common(a: &Features, b: &Features) -> Vec<u32> {
    a.items.iter().copied().filter(|item| b.items.binary_search(item).is_ok()).collect()
}
