//! `add`: a few photos into a gallery, also one that is being served.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use glimpse_embedder::SpaceBundle;

use super::Folders;
use super::ingest::{self, gallery_embedder};
use crate::sources::Source;
use crate::store::{Attributes, Store};

/// Arguments of `add`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery add vase.jpg --label 'vase, blue' --gallery gallery --bundle models/demo
  glimpse-gallery add new/*.jpg --attribute room=3 --gallery gallery --bundle models/demo

The image id is the file's name, or its path relative to --root; a photo with an id that is stored replaces it. When the command
has ended the photos are on the disk, and a server of the gallery shows them within a second. For a folder or a table of
photos there is `ingest`.")]
pub struct AddArgs {
    /// Photos to add
    #[arg(required = true, value_name = "PHOTO")]
    photos: Vec<PathBuf>,
    #[command(flatten)]
    folders: Folders,
    /// What the photos show
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    label: String,
    /// What else is known of them, for filters
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    attributes: Vec<String>,
    /// The image id, for one photo
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Folder that ids are relative to [default: that of each photo]
    #[arg(long, value_name = "DIR", conflicts_with = "id")]
    root: Option<PathBuf>,
}

impl AddArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        ensure!(self.id.is_none() || self.photos.len() == 1, "--id goes with one photo");
        let mut attributes = Attributes::default();
        for pair in &self.attributes {
            let (name, value) = super::name_and_value(pair)?;
            attributes.set(name, value)?;
        }
        let mut ids = HashSet::new();
        let mut sources = Vec::with_capacity(self.photos.len());
        for photo in &self.photos {
            ensure!(
                !photo.is_dir(),
                "{0} is a folder: `glimpse-gallery ingest {0}` adds the photos in it",
                photo.display()
            );
            let id = match &self.id {
                Some(id) => id.clone(),
                None => id_of(photo, self.root.as_deref())?,
            };
            ensure!(
                ids.insert(id.clone()),
                "two photos have the id {id}: name a folder above them with --root"
            );
            let (path, label, attributes) = (photo.clone(), self.label.clone(), attributes.clone());
            sources.push(Source { id, path, label, attributes });
        }
        let bundle = SpaceBundle::load(&self.folders.bundle)?;
        let embedder = gallery_embedder(&bundle, 1)?;
        let mut store = Store::open(&self.folders.gallery, bundle.space, bundle.dimension)?;
        let report =
            crate::ingest::run(&mut store, &embedder, &sources, &*super::ingest::stop_on_signals()?)?;
        ingest::tell(&report)?;
        match (report.left, report.failed.len()) {
            (0, 0) => Ok(()),
            (0, failed) => bail!("{failed} of {} photos could not be added", sources.len()),
            (left, _) => bail!("interrupted: {left} photos are left; run the same command again to go on"),
        }
    }
}

fn id_of(photo: &Path, root: Option<&Path>) -> anyhow::Result<String> {
    let name = || photo.file_name().map(Path::new);
    let relative = match root {
        None => name().with_context(|| format!("{} is no photo", photo.display()))?,
        Some(root) => photo
            .strip_prefix(root)
            .with_context(|| format!("{} is not below --root {}", photo.display(), root.display()))?,
    };
    Ok(crate::sources::id_of(relative))
}
