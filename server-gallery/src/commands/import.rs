//! `import`: features that were made elsewhere into a gallery.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use glimpse_embedder::SpaceBundle;
use glimpse_embedder::matrix::{MatrixFile, Rows as _};

use super::{Folders, ingest, write_line};
use crate::gallery;
use crate::progress::Progress;
use crate::store::{Attributes, Image, Store};

/// Rows in one commit.
const BATCH: usize = 4096;

/// Arguments of `import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery import features.npy images.csv --gallery gallery --bundle models/demo
  glimpse-gallery import features.safetensors images.csv --normalize --gallery gallery --bundle models/demo

Row n of the features, [n, D], is of the n-th image in the table. The table has the column id, and may have label and path; every
other column is an attribute. The features must be those of the bundle's gallery model: nothing else is in its space, and no
program can tell. An import that was interrupted goes on when it is run again: rows are replaced by themselves.")]
pub struct ImportArgs {
    /// Features: a .npy or .safetensors file
    #[arg(value_name = "FEATURES")]
    features: PathBuf,
    /// Table of images: a CSV file with the column id
    #[arg(value_name = "CSV")]
    images: PathBuf,
    #[command(flatten)]
    folders: Folders,
    /// Divide each feature by its norm, instead of refusing those that are not of unit norm
    #[arg(long)]
    normalize: bool,
    /// Leave the index to `serve`, or to a later `index`
    #[arg(long)]
    no_index: bool,
}

impl ImportArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let bundle = SpaceBundle::load(&self.folders.bundle)?;
        let features = MatrixFile::open(&self.features)?;
        ensure!(
            features.dimension() == bundle.dimension,
            "{} has {} dimensions, and the bundle has {}",
            self.features.display(),
            features.dimension(),
            bundle.dimension
        );
        let images = table(&self.images)?;
        ensure!(
            images.len() == features.count(),
            "{} has {} rows, and {} has {}",
            self.features.display(),
            features.count(),
            self.images.display(),
            images.len()
        );
        let mut store = Store::open(&self.folders.gallery, bundle.space, bundle.dimension)?;
        let stop = ingest::stop_on_signals()?;
        let progress = Progress::new("importing", images.len());
        let mut done = 0;
        for batch in images.chunks(BATCH) {
            if stop.load(Ordering::Relaxed) {
                bail!(
                    "interrupted: {} rows are left; run the same command again to go on",
                    images.len() - done
                );
            }
            let mut rows = features.read(done..done + batch.len())?;
            if self.normalize {
                rows.chunks_exact_mut(bundle.dimension).for_each(glimpse_quantizer::expansion::normalize);
            }
            let rows = rows.chunks_exact(bundle.dimension).map(<[f32]>::to_vec);
            store
                .put(&batch.iter().cloned().zip(rows).collect::<Vec<_>>())
                .with_context(|| format!("rows {done} to {} were not stored", done + batch.len()))?;
            done += batch.len();
            progress.at(done);
        }
        drop(progress);
        drop(store);
        write_line(format_args!("imported {done}"))?;
        if !self.no_index {
            let watched = &mut super::index::watch(Some(stop));
            gallery::refresh(&self.folders.gallery, &bundle, watched)
                .context("the features are stored; only the index is missing")?;
        }
        Ok(())
    }
}

fn table(path: &Path) -> anyhow::Result<Vec<Image>> {
    let context = || format!("cannot read {}", path.display());
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_path(path).with_context(context)?;
    let headers = reader.headers().with_context(context)?.clone();
    let names: Vec<&str> = headers.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
    ensure!(names.contains(&"id"), "{} has no column id in its first line", path.display());
    let (mut images, mut seen) = (Vec::new(), HashSet::new());
    for record in reader.records() {
        let record = record.with_context(context)?;
        let line = record.position().map_or(0, csv::Position::line);
        let place = || format!("{}, line {line}", path.display());
        let mut image = Image {
            id: String::new(),
            path: String::new(),
            label: String::new(),
            attributes: Attributes::default(),
            photo_hash: [0; 32],
        };
        for (name, value) in names.iter().zip(&record) {
            match *name {
                "id" => value.clone_into(&mut image.id),
                "label" => value.clone_into(&mut image.label),
                "path" => value.clone_into(&mut image.path),
                name => image.attributes.set(name, value).with_context(place)?,
            }
        }
        image.check().with_context(place)?;
        ensure!(seen.insert(image.id.clone()), "{}: {} is listed twice", place(), image.id);
        images.push(image);
    }
    Ok(images)
}
