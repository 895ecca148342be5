//! Data sets with the protocols that they are published with.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::measures::{
    average_precision, average_precision_at, precision_at, recall_at, trapezoid_average_precision,
};
use super::pickle::{Node, Pickle};
use super::ranking::Judgement;
use crate::files::{FileError, read};
use crate::photos::{Photo, PhotoList, PhotoListError};
use crate::retrieval::Task;

/// Why there is no data set.
#[derive(Debug, Error)]
pub enum DataSetError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The photos cannot be listed.
    #[error(transparent)]
    Photos(#[from] PhotoListError),
    /// The ground truth is something else, or contradicts itself.
    #[error("{} is no ground truth of this protocol: {reason}", path.display())]
    GroundTruth {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The ground truth names a photo that is not there.
    #[error("{} names the photo {id}, which is not in {}", truth.display(), photos.display())]
    Missing {
        /// The ground truth.
        truth: PathBuf,
        /// The photo.
        id: String,
        /// Where it was looked for.
        photos: PathBuf,
    },
    /// No query has an answer.
    #[error("{} has no query with an answer in the gallery", .0.display())]
    NoQuery(PathBuf),
}

/// Photos, and what answers what.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// The gallery, its distractors among it.
    pub gallery: PhotoList,
    /// The queries, with their crops.
    pub queries: PhotoList,
    /// Ways to read the same ranking.
    pub settings: Vec<Setting>,
    /// What is measured.
    pub measures: Measures,
    /// Whether photos that cannot be decoded may be left out; a published protocol needs all of them.
    pub may_lack_photos: bool,
}

/// One way to read a ranking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `easy`, `medium`, `hard`; empty where there is one only.
    pub name: &'static str,
    /// One for each query. Those without answers do not count.
    pub judgements: Vec<Judgement>,
}

/// What a protocol measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measures {
    /// mAP, recall@1, recall@10.
    Recall,
    /// Trapezoid mAP and mP@1, 5, 10.
    Revisited,
    /// mAP@100.
    At100,
}

impl Measures {
    /// Means over the queries that have an answer.
    pub fn means(self, ranks: &[Vec<usize>]) -> Vec<(&'static str, f64)> {
        type Measure = (&'static str, fn(&[usize]) -> f64);
        let all: &[Measure] = match self {
            Self::Recall => &[
                ("mAP", average_precision),
                ("recall@1", |ranks| recall_at(ranks, 1)),
                ("recall@10", |ranks| recall_at(ranks, 10)),
            ],
            Self::Revisited => &[
                ("mAP", trapezoid_average_precision),
                ("mP@1", |ranks| precision_at(ranks, 1)),
                ("mP@5", |ranks| precision_at(ranks, 5)),
                ("mP@10", |ranks| precision_at(ranks, 10)),
            ],
            Self::At100 => &[("mAP@100", |ranks| average_precision_at(ranks, 100))],
        };
        let judged: Vec<&Vec<usize>> = ranks.iter().filter(|ranks| !ranks.is_empty()).collect();
        let count = judged.len().max(1) as f64;
        let mean =
            |measure: fn(&[usize]) -> f64| judged.iter().map(|ranks| measure(ranks)).sum::<f64>() / count;
        all.iter().map(|(name, measure)| (*name, mean(*measure))).collect()
    }
}

impl DataSet {
    /// A CSV table with the columns `path`, `role` (query, gallery, distractor) and `object`: a query's answers are the gallery
    /// photos of the same object, and queries without any are left out.
    ///
    /// # Errors
    /// [`DataSetError`].
    pub fn table(path: &Path) -> Result<Self, DataSetError> {
        let list = PhotoList::read(path)?;
        let Task { queries, gallery, answers } = Task::new(list.photos(), |_| true);
        if queries.is_empty() {
            return Err(DataSetError::NoQuery(path.into()));
        }
        let judgements = answers.into_iter().map(|answers| Judgement::new(answers, Vec::new())).collect();
        let (gallery, queries) = (list.pick(&gallery), list.pick(&queries));
        let settings = vec![Setting { name: "", judgements }];
        Ok(Self { gallery, queries, settings, measures: Measures::Recall, may_lack_photos: true })
    }

    /// Revisited Oxford or Paris (or another set in that form): `gnd_*.pkl`, and the folder of the photos as `NAME.jpg`.
    /// Queries are cropped to their boxes.
    ///
    /// | setting | answers | ignored |
    /// |---|---|---|
    /// | easy | easy | junk, hard |
    /// | medium | easy, hard | junk |
    /// | hard | hard | junk, easy |
    ///
    /// # Errors
    /// [`DataSetError`].
    pub fn revisited(ground_truth: &Path, photos: &Path) -> Result<Self, DataSetError> {
        let wrong = |reason| DataSetError::GroundTruth { path: ground_truth.into(), reason };
        let truth = Pickle::parse(&read(ground_truth)?).and_then(|pickle| Truth::read(pickle.root()));
        let Truth { gallery, queries, answers } = truth.map_err(wrong)?;
        let list = |photos: Vec<(String, Option<[u32; 4]>)>, root: &Path| {
            let photo = |(name, crop): (String, _)| Photo { crop, ..Photo::at(format!("{name}.jpg")) };
            PhotoList::of(root, photos.into_iter().map(photo).collect())
        };
        let judged = |positives: fn(&Answers) -> Vec<usize>, ignored: fn(&Answers) -> Vec<usize>| {
            answers.iter().map(|answers| Judgement::new(positives(answers), ignored(answers))).collect()
        };
        let settings = vec![
            Setting {
                name: "easy",
                judgements: judged(|a| a.easy.clone(), |a| [&a.junk[..], &a.hard].concat()),
            },
            Setting {
                name: "medium",
                judgements: judged(|a| [&a.easy[..], &a.hard].concat(), |a| a.junk.clone()),
            },
            Setting {
                name: "hard",
                judgements: judged(|a| a.hard.clone(), |a| [&a.junk[..], &a.easy].concat()),
            },
        ];
        Ok(Self {
            gallery: list(gallery.into_iter().map(|name| (name, None)).collect(), photos),
            queries: list(queries, photos),
            settings,
            measures: Measures::Revisited,
            may_lack_photos: false,
        })
    }

    /// Google Landmarks v2, retrieval: `retrieval_solution_v2.1.csv` (id, images, Usage), and index and query photos as folders
    /// or tables, in which a photo's id is its file's name without extension. Queries of usage `Ignored` are left out.
    ///
    /// # Errors
    /// [`DataSetError`].
    pub fn landmarks(solution: &Path, index: &Path, queries: &Path) -> Result<Self, DataSetError> {
        let gallery = PhotoList::read(index)?;
        let all_queries = PhotoList::read(queries)?;
        let (gallery_ids, query_ids) = (ids(&gallery), ids(&all_queries));
        let missing = |id: &str, photos: &Path| DataSetError::Missing {
            truth: solution.into(),
            id: id.to_owned(),
            photos: photos.into(),
        };
        let (mut kept, mut judgements) = (Vec::new(), Vec::new());
        for (id, answers) in landmark_solution(solution)? {
            kept.push(*query_ids.get(id.as_str()).ok_or_else(|| missing(&id, queries))?);
            let positions = answers.iter().map(|answer| {
                gallery_ids
                    .get(answer.as_str())
                    .map(|&row| row as usize)
                    .ok_or_else(|| missing(answer, index))
            });
            judgements.push(Judgement::new(positions.collect::<Result<_, _>>()?, Vec::new()));
        }
        if judgements.is_empty() {
            return Err(DataSetError::NoQuery(solution.into()));
        }
        Ok(Self {
            queries: all_queries.pick(&kept),
            settings: vec![Setting { name: "", judgements }],
            gallery,
            measures: Measures::At100,
            may_lack_photos: false,
        })
    }

    /// The data set without photos that could not be decoded: rows of the gallery and of the queries that are there, ascending.
    /// A query all of whose answers are missing stays, and does not count.
    #[must_use]
    pub fn keep(&self, gallery: &[u32], queries: &[u32]) -> Self {
        let row_of = |row: &usize| gallery.binary_search(&(*row as u32)).ok();
        let rows = |rows: &[usize]| rows.iter().filter_map(row_of).collect();
        let judgement = |&query: &u32, setting: &Setting| {
            let Judgement { positives, ignored } = &setting.judgements[query as usize];
            Judgement { positives: rows(positives), ignored: rows(ignored) }
        };
        let setting = |setting: &Setting| Setting {
            name: setting.name,
            judgements: queries.iter().map(|query| judgement(query, setting)).collect(),
        };
        Self {
            gallery: self.gallery.pick(gallery),
            queries: self.queries.pick(queries),
            settings: self.settings.iter().map(setting).collect(),
            ..*self
        }
    }
}

/// What a pickle of the revisited protocol holds.
struct Truth {
    gallery: Vec<String>,
    queries: Vec<(String, Option<[u32; 4]>)>,
    answers: Vec<Answers>,
}

struct Answers {
    easy: Vec<usize>,
    hard: Vec<usize>,
    junk: Vec<usize>,
}

impl Truth {
    fn read(root: Node) -> Result<Self, String> {
        let gallery = names(root, "imlist")?;
        let query_names = names(root, "qimlist")?;
        let entries = root.get("gnd")?.elements().map_err(|reason| format!("gnd: {reason}"))?;
        if entries.len() != query_names.len() {
            return Err(format!("{} queries have {} entries in gnd", query_names.len(), entries.len()));
        }
        let (mut queries, mut answers) = (Vec::new(), Vec::new());
        for (number, (entry, name)) in entries.zip(query_names).enumerate() {
            let at = |reason: String| format!("gnd[{number}]: {reason}");
            let rows = |key: &str| rows(entry, key, gallery.len()).map_err(at);
            answers.push(Answers { easy: rows("easy")?, hard: rows("hard")?, junk: rows("junk")? });
            queries.push((name, Some(crop(entry).map_err(at)?)));
        }
        Ok(Self { gallery, queries, answers })
    }
}

/// Names of photos, which must not lead out of their folder.
fn names(root: Node, key: &str) -> Result<Vec<String>, String> {
    let name = |node: Node| {
        let name = node.text()?;
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if plain && !name.is_empty() {
            Ok(name.to_owned())
        } else {
            Err(format!("{name:?} is no name of a photo"))
        }
    };
    let names = root.get(key)?.elements().and_then(|nodes| nodes.map(name).collect());
    names.map_err(|reason| format!("{key}: {reason}"))
}

fn rows(entry: Node, key: &str, count: usize) -> Result<Vec<usize>, String> {
    let row = |node: Node| {
        let row = node.index()?;
        if row < count { Ok(row) } else { Err(format!("row {row} of {count}")) }
    };
    let rows = entry.get(key)?.elements().and_then(|nodes| nodes.map(row).collect());
    rows.map_err(|reason| format!("{key}: {reason}"))
}

/// `bbx`: left, top, right, bottom in pixels, rounded as the official script's image library does, halves to even.
fn crop(entry: Node) -> Result<[u32; 4], String> {
    let side =
        |node: Node| node.number().map(|side| side.round_ties_even().clamp(0.0, f64::from(u32::MAX)) as u32);
    let sides: Vec<u32> = entry.get("bbx")?.elements()?.map(side).collect::<Result<_, _>>()?;
    let sides: [u32; 4] =
        sides.try_into().map_err(|sides: Vec<u32>| format!("bbx has {} sides", sides.len()))?;
    let [left, top, right, bottom] = sides;
    if left < right && top < bottom { Ok(sides) } else { Err(format!("bbx {sides:?} is empty")) }
}

/// Ids of photos to their numbers.
fn ids(photos: &PhotoList) -> HashMap<String, u32> {
    let id = |(number, photo): (u32, &Photo)| Some((photo.path.file_stem()?.to_str()?.to_owned(), number));
    (0..).zip(photos.photos()).filter_map(id).collect()
}

/// Query ids with the ids of their answers.
fn landmark_solution(path: &Path) -> Result<Vec<(String, Vec<String>)>, DataSetError> {
    let wrong = |reason: String| DataSetError::GroundTruth { path: path.into(), reason };
    let bytes = read(path)?;
    let mut reader = csv::Reader::from_reader(bytes.as_slice());
    let headers = reader.headers().map_err(|error| wrong(error.to_string()))?.clone();
    let column = |name: &str| {
        let place = headers.iter().position(|header| header.eq_ignore_ascii_case(name));
        place.ok_or_else(|| wrong(format!("it has no column `{name}`")))
    };
    let (id, images, usage) = (column("id")?, column("images")?, column("usage")?);
    let mut solution = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|error| wrong(error.to_string()))?;
        if !row[usage].eq_ignore_ascii_case("ignored") {
            solution.push((row[id].to_owned(), row[images].split_whitespace().map(str::to_owned).collect()));
        }
    }
    Ok(solution)
}
