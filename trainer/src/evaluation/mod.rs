//! How well queries find their answers, by the rules that others publish by.
//!
//! - [`DataSet`]: which photos there are and what answers what, from ground-truth files ([`pickle`] reads Python's).
//! - [`ranking`]: where the answers stand, with galleries that are streamed from disk.
//! - [`measures`]: numbers from those ranks.
//! - [`expansion`]: queries and galleries expanded by their neighbours first.

pub mod codecs;
mod dataset;
pub mod expansion;
pub mod measures;
pub mod pickle;
pub mod ranking;

pub use dataset::{DataSet, DataSetError, Measures, Setting};

use serde::{Serialize, Serializer};

use crate::matrix::{MatrixError, Rows};
use crate::progress::Progress;

/// The figures of one setting: means over its queries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Of the data set's settings; most have one only, without a name.
    pub setting: String,
    /// Queries that have an answer in this setting.
    pub queries: usize,
    /// Each with its name, the main one first.
    #[serde(serialize_with = "as_object")]
    pub values: Vec<(&'static str, f64)>,
}

fn as_object<S: Serializer>(values: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().copied())
}

/// Ranks the gallery for each query and scores the order, for every setting of the data set.
///
/// # Errors
/// [`MatrixError`] of either side.
///
/// # Panics
/// If the rows are not as many as the data set's photos.
pub fn evaluate(
    data: &DataSet,
    queries: &dyn Rows,
    gallery: &dyn Rows,
    title: &str,
) -> Result<Vec<Figures>, MatrixError> {
    assert_eq!(queries.count(), data.queries.photos().len(), "a row for each query");
    let judgements: Vec<_> = data.settings.iter().map(|setting| setting.judgements.clone()).collect();
    let progress = Progress::new(title, gallery.count() as u64);
    let values = queries.read(0..queries.count())?;
    let ranks = ranking::ranks(&values, gallery, &judgements, &mut |rows| progress.set(rows as u64))?;
    progress.finish();
    let figures = data.settings.iter().zip(&ranks).map(|(setting, ranks)| Figures {
        setting: setting.name.to_owned(),
        queries: ranks.iter().filter(|ranks| !ranks.is_empty()).count(),
        values: data.measures.means(ranks),
    });
    Ok(figures.collect())
}
