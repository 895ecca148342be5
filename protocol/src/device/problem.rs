//! What is wrong with a `device.toml`: each problem has its place in the text, a reason, and what to do.

use core::fmt;
use core::ops::Range;
use std::format;
use std::string::{String, ToString as _};
use std::vec::Vec;

use thiserror::Error;

/// So many problems of one text are told; a file of another kind has thousands.
pub const PROBLEMS_MAX: usize = 50;

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// In bytes of the text.
    pub span: Range<usize>,
}

impl Place {
    /// Where `span` is in `text`.
    pub fn of(text: &str, span: Range<usize>) -> Self {
        Lines::new(text).place(span)
    }
}

/// One thing that is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands in the file; `None` where something is missing or comes from a flag.
    pub place: Option<Place>,
    /// The key with its table, such as `network.gateway`; empty where it is about the text as a whole.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do; empty where `reason` says it already.
    pub fix: String,
}

impl Problem {
    /// The line in the file, from 1.
    pub fn line(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.line)
    }

    /// `key: reason`.
    pub fn title(&self) -> String {
        if self.key.is_empty() { self.reason.clone() } else { format!("{}: {}", self.key, self.reason) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { line, column, .. }) = &self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.title())?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, ": {}", self.fix) }
    }
}

/// All problems of a configuration, in the order of their places; what is missing comes last.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Puts them into their order.
    pub fn sort(&mut self) {
        self.0.sort_by_key(|problem| problem.place.as_ref().map_or(usize::MAX, |place| place.span.start));
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Finds the lines and columns of a text.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(place, _)| place + 1);
        Self { text, starts: core::iter::once(0).chain(after).collect() }
    }

    pub(super) fn place(&self, span: Range<usize>) -> Place {
        let line = self.starts.partition_point(|start| *start <= span.start).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let before = self.text.get(start..span.start).unwrap_or_default();
        // A mark of the byte order has no width.
        let column = 1 + before.chars().filter(|character| *character != '\u{feff}').count();
        Place { line, column, span }
    }
}

/// The name of `names` that was most likely meant.
pub(super) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_ascii_lowercase().replace(['-', ' '], "_");
    // A longer text is no slip of a finger, and comparing it would take long.
    if written.len() > 64 {
        return None;
    }
    let distances = names.into_iter().map(|name| {
        let plain = name.replace('-', "_");
        (strsim::osa_distance(&written, &plain), name)
    });
    let most = (written.chars().count() / 3).max(1);
    distances
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// What TOML's own message leaves open.
pub(super) fn fix_of_syntax(message: &str) -> String {
    let fixes = [
        ("duplicate key", "leave one of the two out"),
        ("string values must be quoted", "put the text in quotation marks"),
        ("visible characters", "leave the character out that cannot be seen"),
        ("invalid basic string", "end the text with a quotation mark on its own line"),
        ("invalid literal string", "end the text with a quotation mark on its own line"),
        ("invalid unquoted key", "write KEY = VALUE, with = behind a key of letters, digits, - and _"),
        ("key with no value", "write KEY = VALUE"),
        ("missing value", "write KEY = VALUE"),
        ("missing assignment", "write KEY = VALUE"),
        ("unexpected key or value", "write one KEY = VALUE a line"),
        ("unclosed table", "write [NAME]"),
        ("unclosed array", "end the list with ]"),
        ("unicode value digits", "write \\\\ for \\, or put the text in single quotation marks"),
        ("missing escaped value", "write \\\\ for \\, or put the text in single quotation marks"),
    ];
    let known = fixes.iter().find(|(part, _)| message.contains(part)).map(|(_, fix)| *fix);
    known.unwrap_or("write KEY = VALUE, with text in quotation marks").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let text = "\u{feff}a = 1\r\n\u{e9}\u{e9} = 2\n";
        let lines = Lines::new(text);
        for (part, line, column) in [("a", 1, 1), ("1", 1, 5), ("= 2", 2, 4), ("2", 2, 6)] {
            let start = text.find(part).unwrap();
            let place = lines.place(start..start + part.len());
            assert_eq!((place.line, place.column), (line, column), "{part}");
        }
        assert_eq!((lines.place(14..14).line, lines.place(14..14).column), (2, 3));
        assert_eq!(Lines::new("").place(0..0), Place { line: 1, column: 1, span: 0..0 });
    }

    #[test]
    fn the_nearest_name_is_one_that_was_likely_meant() {
        let names = ["server", "camera", "camera_size", "led", "key"];
        for (written, expected) in [
            ("servr", Some("server")),
            ("Camera-Size", Some("camera_size")),
            ("cmaera", Some("camera")),
            ("lde", Some("led")),
            ("broker", None),
            ("x", None),
            (&"x".repeat(1000), None),
        ] {
            assert_eq!(nearest(written, names), expected, "{written}");
        }
    }
}
