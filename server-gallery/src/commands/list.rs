//! `list`: the images of a gallery, one a line.

use serde_json::{Value, json};

use super::{GalleryArgs, write_line};
use crate::store::{Image, Reader};

pub(super) fn run(args: &GalleryArgs) -> anyhow::Result<()> {
    let mut written = Ok(());
    Reader::open(&args.gallery)?.now()?.images(|image| {
        written = one(args, &image);
        written.is_ok()
    })?;
    written
}

fn one(args: &GalleryArgs, image: &Image) -> anyhow::Result<()> {
    if !args.json {
        return write_line(format_args!("{}\t{}\t{}", image.id, image.label, image.path));
    }
    let attributes: serde_json::Map<String, Value> =
        image.attributes.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let image = json!({
        "image": image.id, "label": image.label, "path": image.path, "attributes": attributes,
    });
    write_line(format_args!("{image}"))
}
