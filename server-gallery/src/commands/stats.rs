//! `stats`: what a gallery holds.

use std::collections::BTreeSet;

use super::{GalleryArgs, write_line};
use crate::store::{self, FILE};

pub(super) fn run(args: &GalleryArgs) -> anyhow::Result<()> {
    let snapshot = store::load(&args.gallery)?;
    let labels: BTreeSet<&str> = snapshot.images.iter().map(|image| image.label.as_str()).collect();
    let file_bytes = std::fs::metadata(args.gallery.join(FILE))?.len();
    let (meta, images, labels) = (snapshot.meta, snapshot.images.len(), labels.len());
    if args.json {
        let stats = serde_json::json!({
            "images": images, "labels": labels, "space": meta.space.to_string(), "dimension": meta.dimension,
            "generation": meta.generation, "file_bytes": file_bytes,
        });
        return write_line(format_args!("{stats}"));
    }
    write_line(format_args!("images      {images}"))?;
    write_line(format_args!("labels      {labels}"))?;
    write_line(format_args!("space       {}", meta.space))?;
    write_line(format_args!("dimension   {}", meta.dimension))?;
    write_line(format_args!("generation  {}", meta.generation))?;
    write_line(format_args!("file        {:.1} MB", file_bytes as f64 / 1e6))
}
