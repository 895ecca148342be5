//! `stats`: what a gallery holds.

use std::collections::BTreeSet;

use super::{GalleryArgs, write_line};
use crate::gallery::INDEX;
use crate::store::{FILE, Reader};

pub(super) fn run(args: &GalleryArgs) -> anyhow::Result<()> {
    let now = Reader::open(&args.folder.gallery)?.now()?;
    let (mut labels, mut attributes) = (BTreeSet::new(), BTreeSet::new());
    now.images(|image| {
        attributes.extend(image.attributes.iter().map(|(name, _)| name.clone()));
        labels.insert(image.label);
        true
    })?;
    let bytes = |file| std::fs::metadata(args.folder.gallery.join(file)).map_or(0, |metadata| metadata.len());
    let (file_bytes, index_bytes) = (bytes(FILE), bytes(INDEX));
    let (meta, images, labels) = (now.meta(), now.len(), labels.len());
    if args.json {
        let stats = serde_json::json!({
            "images": images, "labels": labels, "space": meta.space.to_string(), "dimension": meta.dimension,
            "generation": meta.generation, "file_bytes": file_bytes, "index_bytes": index_bytes, "attributes": attributes,
        });
        return write_line(format_args!("{stats}"));
    }
    write_line(format_args!("images      {images}"))?;
    write_line(format_args!("labels      {labels}"))?;
    write_line(format_args!("attributes  {}", attributes.into_iter().collect::<Vec<_>>().join(", ")))?;
    write_line(format_args!("space       {}", meta.space))?;
    write_line(format_args!("dimension   {}", meta.dimension))?;
    write_line(format_args!("generation  {}", meta.generation))?;
    write_line(format_args!("file        {:.1} MB", file_bytes as f64 / 1e6))?;
    write_line(format_args!("index       {:.1} MB", index_bytes as f64 / 1e6))
}
