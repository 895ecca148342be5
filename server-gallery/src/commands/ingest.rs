//! `ingest`: photos into a gallery.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use clap::Args;
use glimpse_embedder::{Embedder, EmbedderOptions, SpaceBundle};

use super::{Folders, write_line};
use crate::gallery;
use crate::ingest::{self, Report};
use crate::sources;
use crate::store::Store;

/// Arguments of `ingest`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery ingest photos/ --gallery gallery --bundle models/demo
  glimpse-gallery ingest gallery.csv --root photos/ --gallery gallery --bundle models/demo

A CSV file has the columns path and label; every other column is an attribute, which queries can filter by. The image id
is the path relative to the folder, or to --root. An ingest that was interrupted goes on where it stopped when it is run
again; photos that have not changed are passed over. Photos that cannot be read are listed at the
end; the command fails only when there is no photo that could be.")]
pub struct IngestArgs {
    /// Folder of photos, or CSV file with the columns path and label
    #[arg(value_name = "DIR|CSV")]
    input: PathBuf,
    #[command(flatten)]
    folders: Folders,
    /// CSV file with labels for the photos of a folder: columns path and label, and any attributes
    #[arg(long, value_name = "CSV")]
    labels: Option<PathBuf>,
    /// Folder that the paths in the CSV file are relative to [default: the file's]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Photos that each core gives the network together: more take more memory, and are not faster with small networks
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    batch: u8,
}

impl IngestArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let sources = sources::list(&self.input, self.root.as_deref(), self.labels.as_deref())?;
        let bundle = SpaceBundle::load(&self.folders.bundle)?;
        let embedder = gallery_embedder(&bundle, self.batch)?;
        let mut store = Store::open(&self.folders.gallery, bundle.space, bundle.dimension)?;
        let stop = stop_on_signals()?;
        let report = ingest::run(&mut store, &embedder, &sources, &stop)?;
        let meta = store.meta();
        drop(store);
        tell(&report)?;
        if report.left > 0 {
            bail!("interrupted: {} photos are left; run the same command again to go on", report.left);
        }
        if report.good() == 0 {
            bail!("none of {} photos could be embedded", report.failed.len());
        }
        let watched = &mut super::index::watch(Some(stop));
        let view = gallery::refresh(&self.folders.gallery, &bundle, watched)
            .context("the photos are stored; only the index is missing")?;
        tracing::info!(search = view.base().vectors().describe(), "index ready");
        tracing::info!(generation = meta.generation, gallery = %self.folders.gallery.display(), "ingest complete");
        Ok(())
    }
}

/// The bundle's gallery network, if it is the one that the bundle was made with.
pub(super) fn gallery_embedder(bundle: &SpaceBundle, batch: u8) -> anyhow::Result<Embedder> {
    bundle.verify()?;
    let batch = NonZeroUsize::new(batch.into()).unwrap_or(NonZeroUsize::MIN);
    let options = EmbedderOptions { batch, ..EmbedderOptions::default() };
    Ok(Embedder::load_preferred(&bundle.gallery_model(), &options)?)
}

/// Says what became of the photos.
pub(super) fn tell(report: &Report) -> anyhow::Result<()> {
    for (path, reason) in &report.failed {
        tracing::warn!("passed over {}: {reason}", path.display());
    }
    let Report { stored, unchanged, relabelled, failed, .. } = report;
    let failed = failed.len();
    write_line(format_args!(
        "stored {stored}, unchanged {unchanged}, relabelled {relabelled}, failed {failed}"
    ))
}

/// Raised by the first SIGINT or SIGTERM; the second ends the process at once.
pub(super) fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the first signal finds the flag down.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}
