//! How a problem of a file is shown: the line, a mark below what is meant, and what to do.

use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};
use glimpse_protocol::device::Problem;
use serde_json::json;

use crate::output::shown;

/// A problem in the file of this name, with the colours of a terminal; whoever prints it takes them out where none is.
///
/// What may be a secret is hidden: user and password in an address, and the value of a key that has the name of a secret.
pub fn drawn(file: &str, text: &str, problem: &Problem) -> String {
    let file = shown(file);
    let title = Level::ERROR.primary_title(shown(&problem.title()));
    let excerpt = problem.place.as_ref().map(|place| (place.line, Excerpt::of(text, place.span.clone())));
    let element: Element<'_> = match &excerpt {
        Some((line, Excerpt { text, span })) => Snippet::source(text.as_str())
            .line_start(*line)
            .path(file.as_str())
            .annotation(AnnotationKind::Primary.span(span.clone()))
            .into(),
        None => Origin::path(file.as_str()).into(),
    };
    let mut group = Group::with_title(title).element(element);
    if !problem.fix.is_empty() {
        group = group.element(Level::HELP.message(shown(&problem.fix)));
    }
    Renderer::styled().term_width(LINE_CHARACTERS).render(&[group])
}

/// The same for programs.
pub fn json(file: &str, problem: &Problem) -> serde_json::Value {
    let key = Some(&problem.key).filter(|key| !key.is_empty());
    json!({
        "file": file,
        "line": problem.line(),
        "column": problem.place.as_ref().map(|place| place.column),
        "key": key,
        "reason": problem.reason,
        "fix": problem.fix,
    })
}

/// How wide a line may be that is shown whole.
const LINE_CHARACTERS: usize = 140;

/// One line of a text as it may reach a terminal, and what of it is meant.
struct Excerpt {
    text: String,
    span: std::ops::Range<usize>,
}

impl Excerpt {
    /// The line in which `span` begins.
    fn of(text: &str, span: std::ops::Range<usize>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = text.get(start..).unwrap_or_default();
        let line = line.split('\n').next().unwrap_or_default();
        let line = line.strip_suffix('\r').unwrap_or(line);
        let hidden = hidden(line);
        let mut shown = Self { text: String::with_capacity(line.len()), span: 0..0 };
        for (place, character) in line.char_indices() {
            if start + place <= span.start {
                shown.span.start = shown.text.len();
            }
            match character {
                // A mark of the byte order.
                '\u{feff}' => {}
                _ if hidden.iter().any(|range| range.contains(&place)) => shown.text.push('*'),
                '\t' => shown.text.push('\t'),
                character if character.is_control() => shown.text.push('\u{fffd}'),
                character => shown.text.push(character),
            }
            if start + place < span.end {
                shown.span.end = shown.text.len();
            }
        }
        if span.start >= start + line.len() {
            shown.span.start = shown.text.len();
        }
        shown.span.end = shown.span.end.max(shown.span.start);
        shown
    }
}

/// What of a line may be a secret, in bytes.
fn hidden(line: &str) -> Vec<std::ops::Range<usize>> {
    let mut hidden = Vec::new();
    // http://USER:PASSWORD@HOST
    for (scheme, _) in line.match_indices("://") {
        let start = scheme + 3;
        let rest = line.get(start..).unwrap_or_default();
        let authority = rest.split(['/', '?', '"', '\'', ' ']).next().unwrap_or_default();
        hidden.extend(authority.rfind('@').map(|end| start..start + end));
    }
    // password = "..": a key that nobody knows, for secrets have files.
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    let key = key.trim().to_ascii_lowercase();
    let is_secret =
        ["password", "passwd", "passphrase", "token", "secret", "psk"].iter().any(|it| key.contains(it));
    if is_secret && !key.trim_end_matches(['"', '\'']).ends_with("_file") {
        let trimmed = value.trim_start().trim_start_matches(['"', '\'']);
        hidden.push(line.len() - trimmed.len()..line.trim_end().trim_end_matches(['"', '\'']).len());
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_protocol::device::Place;

    fn excerpt(text: &str, part: &str) -> (String, String) {
        let start = text.find(part).unwrap();
        let Excerpt { text, span } = Excerpt::of(text, start..start + part.len());
        let meant = text[span].to_owned();
        (text, meant)
    }

    #[test]
    fn a_line_is_shown_without_what_moves_a_cursor_and_without_secrets() {
        for (text, part, line, meant) in [
            ("a = 1\nb = 'x'\r\nc = 2", "'x'", "b = 'x'", "'x'"),
            ("\u{feff}a = 1", "1", "a = 1", "1"),
            ("\u{feff}a = 1", "a", "a = 1", "a"),
            (
                "a = '\u{1b}[2J\u{9b}'",
                "'\u{1b}[2J\u{9b}'",
                "a = '\u{fffd}[2J\u{fffd}'",
                "'\u{fffd}[2J\u{fffd}'",
            ),
            ("a = '''x\ny'''", "'''x\ny'''", "a = '''x", "'''x"),
            ("u = 'http://me:w\u{f6}rd@a/b@c'", "'http", "u = 'http://*******@a/b@c'", "'http"),
            ("password = 'abc' ", "password", "password = '***' ", "password"),
            ("wifi_password = abc", "abc", "wifi_password = ***", "***"),
            ("password_file = 'abc'", "'abc'", "password_file = 'abc'", "'abc'"),
            ("psk=\"a=b\"", "psk", "psk=\"***\"", "psk"),
        ] {
            assert_eq!(excerpt(text, part), (line.to_owned(), meant.to_owned()));
        }
        let end = Excerpt::of("a =\nb = 1", 3..3);
        assert_eq!((end.text.as_str(), end.span), ("a =", 3..3));
        assert_eq!(Excerpt::of("", 0..0).span, 0..0);
    }

    #[test]
    fn colours_are_those_of_a_terminal_and_a_long_line_is_cut() {
        let text = format!("a = '{}'", "x".repeat(5000));
        let problem = Problem {
            place: Some(Place::of(&text, 4..5006)),
            key: "a".to_owned(),
            reason: "is \u{1b}wrong".to_owned(),
            fix: "write a = 1".to_owned(),
        };
        let drawn = drawn("f\n.toml", &text, &problem);
        assert!(drawn.contains("\u{1b}[1m"), "{drawn:?}");
        assert!(drawn.contains("f\\n.toml:1:5") && drawn.contains("is \\u{1b}wrong"), "{drawn}");
        assert!(drawn.len() < 1500, "{} bytes", drawn.len());
    }
}
