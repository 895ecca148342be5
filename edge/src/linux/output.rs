//! What a query came to, for people (tables) and for programs (one JSON object a line).
//!
//! Data goes to stdout, one write a query, so that lines of several programs do not mix. Labels and image ids are the
//! server's words: control characters in them do not reach the terminal.

use std::io::{self, Write};
use std::time::Duration;

use glimpse_protocol::{ErrorCode, QueryId, Reply};
use serde::Serialize;

/// What a query came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The photo, as it was named.
    pub photo: String,
    /// The query, if the photo got that far.
    pub id: Option<QueryId>,
    /// Time for preprocessing and the network; without reading the file and without the server.
    pub embed_time: Option<Duration>,
    /// The answer, or why there is none.
    pub result: Result<Answered, Failure>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The matches, nearest first.
    pub reply: Box<Reply>,
    /// From first sending the query to the reply.
    pub reply_time: Duration,
    /// How often the query was sent.
    pub attempts: u8,
    /// Bytes of the query's MQTT payload.
    pub bytes: usize,
    /// Nothing in the gallery is what the photo shows: there is no match, or none that is near enough.
    pub unknown: bool,
}

/// Whether a reply says that the photo is of nothing in the gallery: no match, or the best of a similarity below `below`.
pub fn is_unknown(reply: &Reply, below: Option<f32>) -> bool {
    let best = reply.matches.first().map(|found| found.similarity);
    best.is_none_or(|best| below.is_some_and(|below| best < below))
}

/// Why there is no answer: the `error` of a JSON line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// For programs: one of the server's codes ([`ErrorCode`]), or `unreadable_photo`, `not_embedded`, `no_server`,
    /// `no_reply`, `malformed_reply`, `dropped`, `interrupted`.
    pub code: String,
    /// For people; says what to do.
    pub message: String,
}

impl Failure {
    /// A failure on this side.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    /// The server's word.
    pub fn from_server(code: ErrorCode, message: impl Into<String>) -> Self {
        let name = serde_json::to_value(code).ok().and_then(|name| name.as_str().map(str::to_owned));
        Self { code: name.unwrap_or_else(|| "other".to_owned()), message: message.into() }
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    photo: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<Vec<JsonMatch<'a>>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unknown: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embed_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
}

#[derive(Serialize)]
struct JsonMatch<'a> {
    image: &'a str,
    label: &'a str,
    similarity: f32,
}

/// Milliseconds to the microsecond.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// Writes one JSON object and ends the line.
///
/// # Errors
/// Whatever writing says.
pub fn write_json(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    let answered = outcome.result.as_ref().ok();
    let matches = answered.map(|answered| {
        answered
            .reply
            .matches
            .iter()
            .map(|found| JsonMatch { image: &found.image, label: &found.label, similarity: found.similarity })
            .collect()
    });
    let line = JsonLine {
        photo: &outcome.photo,
        id: outcome.id.map(|id| id.to_string()),
        matches,
        unknown: answered.is_some_and(|answered| answered.unknown),
        error: outcome.result.as_ref().err(),
        embed_ms: outcome.embed_time.map(milliseconds),
        reply_ms: answered.map(|answered| milliseconds(answered.reply_time)),
        attempts: answered.map(|answered| answered.attempts),
        bytes: answered.map(|answered| answered.bytes),
    };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()
}

/// Writes a header and a table of all matches; a failure is for stderr, and writes nothing here.
///
/// # Errors
/// Whatever writing says.
pub fn write_table(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    let Ok(answered) = &outcome.result else { return Ok(()) };
    let mut text = Vec::new();
    let embed = outcome.embed_time.map_or(0.0, milliseconds);
    let again =
        if answered.attempts > 1 { format!(", sent {} times", answered.attempts) } else { String::new() };
    writeln!(
        text,
        "{}: embedded in {embed:.1} ms, answered in {:.1} ms ({} bytes{again})",
        printable(&outcome.photo),
        milliseconds(answered.reply_time),
        answered.bytes,
    )?;
    let matches = &answered.reply.matches;
    if matches.is_empty() {
        writeln!(text, "  no matches: the gallery is empty")?;
    } else {
        let labels: Vec<String> = matches.iter().map(|found| printable(&found.label)).collect();
        let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(5);
        writeln!(text, "  rank  similarity  {:width$}  image", "label")?;
        for (rank, (found, label)) in matches.iter().zip(&labels).enumerate() {
            let (similarity, image) = (found.similarity, printable(&found.image));
            writeln!(text, "  {:>4}  {similarity:>10.3}  {label:width$}  {image}", rank + 1)?;
        }
    }
    out.write_all(&text)?;
    out.flush()
}

/// Writes one line with the nearest match; a failure writes nothing here.
///
/// # Errors
/// Whatever writing says.
pub fn write_line(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    let Ok(answered) = &outcome.result else { return Ok(()) };
    let found = answered.reply.matches.first().map_or_else(
        || "no matches".to_owned(),
        |found| format!("{:.3}  {}  {}", found.similarity, printable(&found.label), printable(&found.image)),
    );
    let unknown =
        if answered.unknown && !answered.reply.matches.is_empty() { "unknown: at best " } else { "" };
    let embed = outcome.embed_time.map_or(0.0, milliseconds);
    let reply = milliseconds(answered.reply_time);
    let line = format!(
        "{}  {unknown}{found}  (embed {embed:.1} ms, reply {reply:.1} ms)\n",
        printable(&outcome.photo)
    );
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// The text without control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_protocol::Match;

    fn answered(matches: &[(&str, &str, f32)]) -> Outcome {
        let id = QueryId::from_bytes([0xab; 16]);
        let matches = matches.iter().map(|(image, label, similarity)| Match {
            image: (*image).try_into().unwrap(),
            label: (*label).try_into().unwrap(),
            similarity: *similarity,
        });
        let reply = Box::new(Reply { v: 1, id, matches: matches.collect(), took_us: 200, generation: 3 });
        let unknown = is_unknown(&reply, None);
        let reply_time = Duration::from_micros(1234);
        let answered = Answered { reply, reply_time, attempts: 1, bytes: 300, unknown };
        Outcome {
            photo: "p/a.jpg".to_owned(),
            id: Some(id),
            embed_time: Some(Duration::from_micros(9876)),
            result: Ok(answered),
        }
    }

    fn failed() -> Outcome {
        Outcome {
            photo: "b.jpg".to_owned(),
            id: None,
            embed_time: None,
            result: Err(Failure::from_server(ErrorCode::WrongSpace, "this is space 09")),
        }
    }

    fn text(write: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_line_has_the_fields_that_the_contract_names() {
        let outcome = answered(&[("apples/1.jpg", "apple", 0.5)]);
        assert_eq!(
            text(|out| write_json(out, &outcome)),
            "{\"photo\":\"p/a.jpg\",\"id\":\"abababababababababababababababab\",\"matches\":[{\"image\":\"apples/1.jpg\",\
             \"label\":\"apple\",\"similarity\":0.5}],\"embed_ms\":9.876,\"reply_ms\":1.234,\"attempts\":1,\"bytes\":300}\n"
        );
        assert_eq!(
            text(|out| write_json(out, &failed())),
            "{\"photo\":\"b.jpg\",\"error\":{\"code\":\"wrong_space\",\"message\":\"this is space 09\"}}\n"
        );
    }

    #[test]
    fn a_table_has_a_header_and_a_row_for_each_match() {
        let outcome = answered(&[("apples/1.jpg", "apple", 0.91), ("p/2.jpg", "pomegranate", -0.1)]);
        assert_eq!(
            text(|out| write_table(out, &outcome)),
            "p/a.jpg: embedded in 9.9 ms, answered in 1.2 ms (300 bytes)\n\
             \x20 rank  similarity  label        image\n\
             \x20    1       0.910  apple        apples/1.jpg\n\
             \x20    2      -0.100  pomegranate  p/2.jpg\n"
        );
        assert!(text(|out| write_table(out, &answered(&[]))).contains("the gallery is empty"));
        assert_eq!(text(|out| write_table(out, &failed())), "");
    }

    #[test]
    fn a_line_has_the_nearest_match() {
        let outcome = answered(&[("apples/1.jpg", "apple", 0.91)]);
        assert_eq!(
            text(|out| write_line(out, &outcome)),
            "p/a.jpg  0.910  apple  apples/1.jpg  (embed 9.9 ms, reply 1.2 ms)\n"
        );
    }

    #[test]
    fn a_photo_without_a_match_that_is_near_enough_is_unknown() {
        let mut outcome = answered(&[("apples/1.jpg", "apple", 0.5), ("p/2.jpg", "pear", 0.4)]);
        let reply = |outcome: &Outcome| outcome.result.as_ref().unwrap().reply.clone();
        for (below, expected) in [(None, false), (Some(0.5), false), (Some(0.51), true), (Some(-1.0), false)]
        {
            assert_eq!(is_unknown(&reply(&outcome), below), expected, "{below:?}");
        }
        assert!(is_unknown(&reply(&answered(&[])), None), "the server itself may know that there is none");
        outcome.result.as_mut().unwrap().unknown = true;
        let json = text(|out| write_json(out, &outcome));
        assert!(json.contains("\"similarity\":0.4}],\"unknown\":true,\"embed_ms\""), "{json}");
        assert_eq!(
            text(|out| write_line(out, &outcome)),
            "p/a.jpg  unknown: at best 0.500  apple  apples/1.jpg  (embed 9.9 ms, reply 1.2 ms)\n"
        );
        let json = text(|out| write_json(out, &answered(&[])));
        assert!(json.contains("\"matches\":[],\"unknown\":true"), "{json}");
        assert!(text(|out| write_line(out, &answered(&[]))).contains("p/a.jpg  no matches  ("));
    }

    #[test]
    fn what_the_server_says_cannot_drive_the_terminal() {
        let outcome = answered(&[("\u{1b}[2J.jpg", "a\nb", 0.91)]);
        for written in [text(|out| write_table(out, &outcome)), text(|out| write_line(out, &outcome))] {
            assert!(!written.contains('\u{1b}') && !written.contains("a\nb"), "{written}");
        }
    }
}
