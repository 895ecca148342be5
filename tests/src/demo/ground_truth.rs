//! Which gallery photo is right for which query photo: `demo/gallery.csv` and `demo/queries.csv`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::queries::Answer;

/// The demo's photos and what is right.
#[derive(Debug)]
pub struct GroundTruth {
    /// How many photos the gallery has.
    pub gallery_size: usize,
    /// The held-out photos.
    pub queries: Vec<Query>,
}

/// A held-out photo.
#[derive(Debug)]
pub struct Query {
    /// The file, relative to the repository's root.
    pub photo: PathBuf,
    /// What it shows.
    pub label: String,
    /// Id of the one gallery photo that is right.
    pub answer: String,
}

#[derive(Deserialize)]
struct GalleryRow {
    path: String,
}

#[derive(Deserialize)]
struct QueryRow {
    path: String,
    label: String,
    answer: String,
}

impl GroundTruth {
    /// Reads both files of `demo` and checks that every answer is in the gallery.
    ///
    /// # Errors
    /// A file that cannot be read, or an answer that is not in the gallery.
    pub fn read(demo: &Path) -> anyhow::Result<Self> {
        let gallery: Vec<GalleryRow> = rows(&demo.join("gallery.csv"))?;
        let ids: HashSet<&str> = gallery.iter().map(|row| row.path.as_str()).collect();
        let rows: Vec<QueryRow> = rows(&demo.join("queries.csv"))?;
        for row in &rows {
            ensure!(
                ids.contains(row.answer.as_str()),
                "the answer {} of {} is not in the gallery",
                row.answer,
                row.path
            );
        }
        let queries = rows.into_iter().map(|QueryRow { path, label, answer }| Query {
            photo: Path::new("demo/photos").join(path),
            label,
            answer,
        });
        Ok(Self { gallery_size: ids.len(), queries: queries.collect() })
    }

    /// The rank of the right photo in each answer, from 1; `None` where it is not among the matches.
    pub fn ranks(&self, answers: &[Answer]) -> Vec<Option<usize>> {
        assert_eq!(answers.len(), self.queries.len(), "one answer a query");
        self.queries.iter().zip(answers).map(|(query, answer)| query.rank(answer)).collect()
    }
}

impl Query {
    /// The rank of the right photo among the matches, from 1.
    pub fn rank(&self, answer: &Answer) -> Option<usize> {
        answer.matches.iter().position(|found| found.image == self.answer).map(|place| place + 1)
    }
}

fn rows<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<Vec<T>> {
    let context = || format!("cannot read {}", path.display());
    let mut reader = csv::Reader::from_path(path).with_context(context)?;
    reader.deserialize().collect::<Result<_, _>>().with_context(context)
}
