//! `export`: a gallery's features and what is known of its images, for other programs.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use npyz::WriterBuilder as _;
use safetensors::tensor::{Dtype, TensorView};

use super::{GalleryFolder, write_line};
use crate::store::{self, Snapshot};

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  glimpse-gallery export features.npy images.csv --gallery gallery
  glimpse-gallery export features.safetensors images.csv --gallery gallery

Row n of the features, [n, D] in single precision, is of the n-th image in the table. The table has the columns id, label,
path and one for each attribute; `import` reads both. A server may run meanwhile: what is written is one generation.")]
pub struct ExportArgs {
    /// Where the features go: a .npy or .safetensors file
    #[arg(value_name = "FEATURES")]
    features: PathBuf,
    /// Where the table of images goes: a CSV file
    #[arg(value_name = "CSV")]
    images: PathBuf,
    #[command(flatten)]
    folder: GalleryFolder,
}

impl ExportArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let snapshot = store::load(&self.folder.gallery)?;
        whole(&self.features, |draft| features(&self.features, draft, &snapshot))?;
        whole(&self.images, |draft| table(draft, &snapshot))?;
        let (count, generation) = (snapshot.images.len(), snapshot.meta.generation);
        write_line(format_args!("exported {count} images of generation {generation}"))
    }
}

/// Writes a file whole or not at all.
fn whole(path: &Path, write: impl FnOnce(&mut std::fs::File) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    write(draft.as_file_mut()).with_context(context)?;
    draft.as_file().sync_all().with_context(context)?;
    draft.persist(path).map_err(|error| error.error).with_context(context)?;
    Ok(())
}

fn features(path: &Path, draft: &mut std::fs::File, snapshot: &Snapshot) -> anyhow::Result<()> {
    let shape = [snapshot.images.len(), snapshot.meta.dimension];
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => {
            let mut out = BufWriter::with_capacity(1 << 20, draft);
            let options = npyz::WriteOptions::new().default_dtype().shape(&shape.map(|side| side as u64));
            let mut npy = options.writer(&mut out).begin_nd()?;
            npy.extend(snapshot.features.iter().copied())?;
            npy.finish()?;
            out.flush()?;
        }
        Some("safetensors") => {
            let bytes: &[u8] = bytemuck::cast_slice(&snapshot.features);
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes)?;
            let (space, generation) = (snapshot.meta.space.to_string(), snapshot.meta.generation.to_string());
            let about = [("space".to_owned(), space), ("generation".to_owned(), generation)];
            let whole = safetensors::serialize([("features", view)], Some(about.into()))?;
            draft.write_all(&whole)?;
        }
        _ => bail!("name it .npy or .safetensors"),
    }
    Ok(())
}

fn table(draft: &mut std::fs::File, snapshot: &Snapshot) -> anyhow::Result<()> {
    let names: BTreeSet<&str> = snapshot
        .images
        .iter()
        .flat_map(|image| image.attributes().map(|(name, _)| name).collect::<Vec<_>>())
        .collect();
    let mut table = csv::Writer::from_writer(BufWriter::new(draft));
    table.write_record(["id", "label", "path"].into_iter().chain(names.iter().copied()))?;
    for image in snapshot.images.iter() {
        let attributes = names.iter().map(|name| image.attribute(name).unwrap_or_default());
        table.write_record([image.id, image.label, image.path].into_iter().chain(attributes))?;
    }
    table.flush()?;
    Ok(())
}
