//! `list`: the images of a gallery, one a line.

use super::{GalleryArgs, write_line};
use crate::store;

pub(super) fn run(args: &GalleryArgs) -> anyhow::Result<()> {
    for image in store::load(&args.gallery)?.images {
        if args.json {
            let image = serde_json::json!({"image": image.id, "label": image.label, "path": image.path});
            write_line(format_args!("{image}"))?;
        } else {
            write_line(format_args!("{}\t{}\t{}", image.id, image.label, image.path))?;
        }
    }
    Ok(())
}
