//! Whether a gallery's folder holds what was committed.

use std::path::Path;

use glimpse_quantizer::Precision;

use crate::gallery::{CHANGES_MAX, INDEX};
use crate::index::{FileError, Index};
use crate::progress::Progress;
use crate::store::{Committed, Reader, Store, StoreError};
use crate::told::told;

/// How far a kept feature may be from the stored one, for each component: half a step of the precision. Those of `i8` are scaled by the
/// largest component of a unit vector, which is at most 1.
fn tolerance(precision: Precision) -> f32 {
    match precision {
        Precision::F32 => 0.0,
        Precision::F16 => 1.0 / 2048.0,
        Precision::I8 => 1.0 / 254.0 + 1e-6,
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What is there, for people.
    pub found: Vec<String>,
    /// What is damaged.
    pub damaged: Vec<String>,
}

/// Reads and compares everything.
pub fn run(dir: &Path) -> Report {
    let mut report = Report { found: Vec::new(), damaged: Vec::new() };
    if let Err(error) = pages(dir, &mut report).and_then(|()| records(dir, &mut report)) {
        report.damaged.push(error.to_string());
    }
    report
}

fn pages(dir: &Path, report: &mut Report) -> Result<(), StoreError> {
    let whole = Store::open_existing(dir)?.check_pages()?;
    report.found.push(if whole {
        "pages    every checksum is right".to_owned()
    } else {
        "pages    something was repaired: what an interrupted writer had left".to_owned()
    });
    Ok(())
}

fn records(dir: &Path, report: &mut Report) -> Result<(), StoreError> {
    let reader = Reader::open(dir)?;
    let now = reader.now()?;
    let progress = Progress::new("verifying", usize::try_from(now.len()).unwrap_or(usize::MAX));
    now.each(|_, _| {
        progress.done_one();
        true
    })?;
    report.found.push(format!("store    {} images, generation {}", now.len(), now.meta().generation));
    match Index::open(&dir.join(INDEX), None) {
        Ok(index) => match compare(&index, &now)? {
            Compared::Same(changes) => report.found.push(format!(
                "index    of generation {}, {changes} changes since: {}",
                index.state().generation,
                index.vectors().describe()
            )),
            Compared::Other => report
                .found
                .push("index    of another state of the gallery: `serve` makes a new one".to_owned()),
            Compared::Differs(reason) => {
                report.damaged.push(format!("{}: {reason}", dir.join(INDEX).display()));
            }
        },
        Err(FileError::Missing { .. }) => report.found.push("index    none yet: `serve` makes it".to_owned()),
        Err(FileError::Stale { .. }) => {
            report.found.push("index    of another version or processor: `serve` makes a new one".to_owned());
        }
        Err(error) => report.damaged.push(told(&error.into())),
    }
    Ok(())
}

enum Compared {
    /// With so many changes since.
    Same(usize),
    Other,
    Differs(String),
}

/// Holds every image of the index that has not changed since against the store.
fn compare(index: &Index, now: &Committed) -> Result<Compared, StoreError> {
    let Some(changed) = now.changed_since(&index.state(), CHANGES_MAX)? else { return Ok(Compared::Other) };
    // Augmented features are expanded by their neighbours, and differ by that.
    let tolerance = (!index.is_augmented()).then(|| tolerance(index.vectors().precision()));
    let mut differs = None;
    let mut unchanged = 0;
    let mut kept = vec![0.0; now.meta().dimension];
    now.each(|image, feature| {
        if changed.binary_search(&image.id).is_ok() {
            return true;
        }
        unchanged += 1;
        let Some(row) = index.images().find(&image.id) else {
            differs = Some(format!("it lacks {}", image.id));
            return false;
        };
        let entry = index.images().get(row);
        let attributes = image.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        if (entry.label, entry.path, entry.photo_hash)
            != (image.label.as_str(), image.path.as_str(), &image.photo_hash)
            || !entry.attributes().eq(attributes)
        {
            differs = Some(format!("what it says of {} is not what was stored", image.id));
        }
        index.vectors().read(row, &mut kept);
        let far =
            |tolerance| kept.iter().zip(feature).any(|(kept, stored)| (kept - stored).abs() > tolerance);
        if tolerance.is_some_and(far) {
            differs = Some(format!("its feature of {} is not the one that was stored", image.id));
        }
        differs.is_none()
    })?;
    let gone = index
        .images()
        .iter()
        .filter(|entry| changed.binary_search_by(|id| id.as_str().cmp(entry.id)).is_ok());
    if differs.is_none() && index.len() - gone.count() != unchanged {
        differs = Some("it has images that are not in the store".to_owned());
    }
    Ok(differs.map_or(Compared::Same(changed.len()), Compared::Differs))
}
