//! `list`: the images of a gallery, one a line.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{GalleryArgs, write_line};
use crate::store::{Image, Reader};

pub(super) fn run(args: &GalleryArgs) -> anyhow::Result<()> {
    let mut written = Ok(());
    Reader::open(&args.folder.gallery)?.now()?.images(|image| {
        written = one(args, &image);
        written.is_ok()
    })?;
    written
}

fn one(args: &GalleryArgs, image: &Image) -> anyhow::Result<()> {
    if !args.json {
        let [id, label, path] = [&image.id, &image.label, &image.path].map(|text| in_one_line(text));
        return write_line(format_args!("{id}\t{label}\t{path}"));
    }
    let attributes: serde_json::Map<String, Value> =
        image.attributes.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let image = json!({
        "image": image.id, "label": image.label, "path": image.path, "attributes": attributes,
    });
    write_line(format_args!("{image}"))
}

/// Earlier versions stored labels with line breaks.
fn in_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}
