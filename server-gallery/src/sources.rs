//! Which photos to ingest: those below a folder, or those listed in a CSV file.
//!
//! An image's id is its path relative to the folder (for a CSV file: relative to `--root`, or to the folder that the
//! file is in), with `/` between its parts, so that ids stay the same when the whole folder moves.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::store::Attributes;

/// A photo to ingest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The image id.
    pub id: String,
    /// Where the photo is.
    pub path: PathBuf,
    /// What it shows; may be empty.
    pub label: String,
    /// What else is known of it.
    pub attributes: Attributes,
}

/// Why the list of photos cannot be made.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Neither folder nor file.
    #[error("{path}: {source}")]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder without photos.
    #[error("{0} holds no photos: .jpg, .jpeg and .png files are looked for, in its folders too")]
    NoPhotos(PathBuf),
    /// No header, or a column is missing.
    #[error("{path} has no column {column}: its first line must name the columns path and label")]
    Column {
        /// The file.
        path: PathBuf,
        /// What is missing.
        column: &'static str,
    },
    /// Rows that cannot be used, all of them.
    #[error("{path} has {} row{} that cannot be used:{}", .rows.len(), if .rows.len() == 1 { "" } else { "s" }, listed(.rows))]
    Rows {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        rows: Vec<(u64, String)>,
    },
}

/// The first few of many problems, one a line.
fn listed(rows: &[(u64, String)]) -> String {
    const SHOWN: usize = 20;
    let mut lines = Vec::with_capacity(SHOWN + 1);
    lines.extend(rows.iter().take(SHOWN).map(|(line, reason)| format!("\n  line {line}: {reason}")));
    if rows.len() > SHOWN {
        lines.push(format!("\n  and {} more", rows.len() - SHOWN));
    }
    lines.concat()
}

/// Lists the photos of `input`: a folder, or a CSV file with the columns `path` and `label`; every other column is an
/// attribute. `labels` names a CSV file with labels and attributes for the photos of a folder. The list is in the order of the ids (folder) or of the rows (CSV).
///
/// # Errors
/// Everything that is wrong with the input, before any photo is read.
pub fn list(input: &Path, root: Option<&Path>, labels: Option<&Path>) -> Result<Vec<Source>, SourceError> {
    let metadata =
        std::fs::metadata(input).map_err(|source| SourceError::Read { path: input.to_owned(), source })?;
    let mut sources = if metadata.is_dir() { folder(input)? } else { table(input, root)? };
    if let Some(labels) = labels {
        let mut by_id: HashMap<String, Row> =
            table_rows(labels)?.into_iter().map(|row| (row.id.clone(), row)).collect();
        for source in &mut sources {
            if let Some(row) = by_id.remove(&source.id) {
                (source.label, source.attributes) = (row.label, row.attributes);
            }
        }
    }
    Ok(sources)
}

fn folder(root: &Path) -> Result<Vec<Source>, SourceError> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |source| SourceError::Read { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            // A link to a folder may lead in a circle: links are followed to photos only.
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(path);
            } else if is_photo(&path) && path.is_file() {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                let (label, attributes) = (String::new(), Attributes::default());
                sources.push(Source { id: id_of(relative), path, label, attributes });
            }
        }
    }
    if sources.is_empty() {
        return Err(SourceError::NoPhotos(root.to_owned()));
    }
    sources.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(sources)
}

fn is_photo(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The image id of a path: its parts with `/` between them.
pub(crate) fn id_of(relative: &Path) -> String {
    let parts = relative.components().filter(|part| !matches!(part, Component::CurDir));
    parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>().join("/")
}

struct Row {
    line: u64,
    id: String,
    label: String,
    attributes: Attributes,
    relative: PathBuf,
}

fn table(file: &Path, root: Option<&Path>) -> Result<Vec<Source>, SourceError> {
    let rows = table_rows(file)?;
    let root = root.or_else(|| file.parent()).unwrap_or(Path::new("."));
    let (mut sources, mut wrong, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for Row { line, id, label, attributes, relative } in rows {
        let path = root.join(&relative);
        let outside =
            relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
        if relative.as_os_str().is_empty() {
            wrong.push((line, "the path is empty".to_owned()));
        } else if outside {
            let root = root.display();
            wrong.push((
                line,
                format!("{} leads out of {root}: name a folder above it with --root", relative.display()),
            ));
        } else if !path.is_file() {
            wrong.push((
                line,
                format!("there is no file {}: --root names the folder that paths begin in", path.display()),
            ));
        } else if !seen.insert(id.clone()) {
            wrong.push((line, format!("{id} is listed twice")));
        } else {
            sources.push(Source { id, path, label, attributes });
        }
    }
    if !wrong.is_empty() {
        return Err(SourceError::Rows { path: file.to_owned(), rows: wrong });
    }
    if sources.is_empty() {
        return Err(SourceError::NoPhotos(file.to_owned()));
    }
    Ok(sources)
}

fn table_rows(file: &Path) -> Result<Vec<Row>, SourceError> {
    let unreadable = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        match error.into_kind() {
            csv::ErrorKind::Io(source) => SourceError::Read { path: file.to_owned(), source },
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => SourceError::Rows {
                path: file.to_owned(),
                rows: vec![(
                    line,
                    format!(
                        "it has {len} fields, and the first line has {expected_len}: quote a field that has a comma"
                    ),
                )],
            },
            csv::ErrorKind::Utf8 { .. } => {
                SourceError::Rows { path: file.to_owned(), rows: vec![(line, "it is not UTF-8".to_owned())] }
            }
            other => SourceError::Rows { path: file.to_owned(), rows: vec![(line, format!("{other:?}"))] },
        }
    };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).map_err(unreadable)?;
    let headers = reader.headers().map_err(unreadable)?.clone();
    let column = |column: &'static str| {
        // Spreadsheets begin the file with a byte order mark.
        let place =
            headers.iter().position(|name| name.trim_start_matches('\u{feff}').eq_ignore_ascii_case(column));
        place.ok_or_else(|| SourceError::Column { path: file.to_owned(), column })
    };
    let (path, label) = (column("path")?, column("label")?);
    let others: Vec<(usize, &str)> =
        headers.iter().enumerate().filter(|(place, _)| ![path, label].contains(place)).collect();
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let line = record.position().map_or(0, csv::Position::line);
        let relative = PathBuf::from(record.get(path).unwrap_or_default());
        let label = record.get(label).unwrap_or_default().to_owned();
        let mut attributes = Attributes::default();
        for (place, name) in &others {
            if let Err(error) =
                attributes.set(name.trim_start_matches('\u{feff}'), record.get(*place).unwrap_or_default())
            {
                wrong.push((line, format!("column {}: {error}", place + 1)));
            }
        }
        rows.push(Row { line, id: id_of(&relative), label, attributes, relative });
    }
    if wrong.is_empty() { Ok(rows) } else { Err(SourceError::Rows { path: file.to_owned(), rows: wrong }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photos(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "photo").unwrap();
        }
        dir
    }

    fn ids(sources: &[Source]) -> Vec<(&str, &str)> {
        sources.iter().map(|source| (source.id.as_str(), source.label.as_str())).collect()
    }

    #[test]
    fn a_folder_gives_its_photos_in_order_with_labels_from_a_table() {
        let dir = photos(&["b/2.PNG", "a/1.jpg", "a/note.txt", "3.jpeg"]);
        std::fs::write(
            dir.path().join("labels.csv"),
            "\u{feff}Label,Path\n\"pear, green\", a/1.jpg\nx,unknown.jpg\n",
        )
        .unwrap();
        let sources = list(dir.path(), None, Some(&dir.path().join("labels.csv"))).unwrap();
        assert_eq!(ids(&sources), [("3.jpeg", ""), ("a/1.jpg", "pear, green"), ("b/2.PNG", "")]);
    }

    #[cfg(unix)]
    #[test]
    fn a_circle_of_links_ends() {
        let dir = photos(&["a/1.jpg"]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/circle")).unwrap();
        assert_eq!(list(dir.path(), None, None).unwrap().len(), 1);
    }

    #[test]
    fn a_table_gives_its_rows_in_order() {
        let dir = photos(&["p/2.jpg", "p/1.jpg"]);
        std::fs::write(dir.path().join("gallery.csv"), "path,label\n./p/2.jpg,two\np/1.jpg,one\n").unwrap();
        let sources = list(&dir.path().join("gallery.csv"), None, None).unwrap();
        assert_eq!(ids(&sources), [("p/2.jpg", "two"), ("p/1.jpg", "one")]);
        std::fs::write(dir.path().join("p.csv"), "path,label\n1.jpg,one\n").unwrap();
        let root = dir.path().join("p");
        assert_eq!(ids(&list(&dir.path().join("p.csv"), Some(&root), None).unwrap()), [("1.jpg", "one")]);
    }

    #[test]
    fn other_columns_are_attributes() {
        let dir = photos(&["1.jpg", "2.jpg"]);
        let table = dir.path().join("gallery.csv");
        std::fs::write(&table, "path,room,label,artist\n1.jpg,3,one,Käthe\n2.jpg,,two,\n").unwrap();
        let attributes = |sources: Vec<Source>| -> Vec<Vec<(String, String)>> {
            let pairs =
                |source: Source| source.attributes.iter().map(|(a, b)| (a.clone(), b.clone())).collect();
            sources.into_iter().map(pairs).collect()
        };
        let expected = [vec![("artist", "Käthe"), ("room", "3")], vec![]];
        let expected: Vec<Vec<(String, String)>> = expected
            .into_iter()
            .map(|pairs| pairs.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
            .collect();
        assert_eq!(attributes(list(&table, None, None).unwrap()), expected);
        assert_eq!(attributes(list(dir.path(), None, Some(&table)).unwrap()), expected);
        std::fs::write(&table, format!("path,label,two words,a\n1.jpg,one,x,{}\n", "y".repeat(97))).unwrap();
        let message = list(&table, None, None).unwrap_err().to_string();
        for named in ["2 rows", "line 2: column 3", "`two words`", "column 4: the attribute a has 97 bytes"] {
            assert!(message.contains(named), "{named}: {message}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_input_is_said_all_at_once() {
        let dir = photos(&["1.jpg"]);
        let empty = tempfile::tempdir().unwrap();
        let message = |path: &Path| list(path, None, None).unwrap_err().to_string();
        assert!(message(empty.path()).contains("holds no photos"));
        assert!(message(&empty.path().join("absent")).contains("absent"));
        let csv = dir.path().join("gallery.csv");
        for (content, named) in [
            ("", vec!["no column path"]),
            ("file,label\n1.jpg,x\n", vec!["no column path"]),
            ("path,name\n1.jpg,x\n", vec!["no column label"]),
            ("path,label\n", vec!["holds no photos"]),
            ("path,label\n1.jpg,x,y\n", vec!["line 2", "3 fields"]),
            (
                "path,label\n1.jpg,x\n2.jpg,x\n/etc/x.jpg,x\n../x.jpg,x\n1.jpg,x\n,x\n",
                vec![
                    "5 rows",
                    "line 3: there is no file",
                    "2.jpg",
                    "line 4",
                    "line 5",
                    "--root",
                    "line 6: 1.jpg is listed twice",
                    "line 7",
                ],
            ),
        ] {
            std::fs::write(&csv, content).unwrap();
            let message = message(&csv);
            for named in named {
                assert!(message.contains(named), "{content:?}: {named}: {message}");
            }
        }
        std::fs::write(&csv, b"path,label\n\xff\xfe.jpg,x\n").unwrap();
        assert!(message(&csv).contains("UTF-8"));
    }
}
