//! `demo.html`: what was asked and what was found, photo beside photo.
//!
//! One file without scripts. It links to the photos in `demo/photos` of the same clone, so that it stays small.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::ground_truth::{GroundTruth, Query};
use super::report::Report;
use crate::queries::{Answer, Found};

/// Matches shown beside each query.
const SHOWN: usize = 5;
/// From the folder of reports to the root of the repository: `target/reports/`.
const ROOT: &str = "../../";

/// Writes `demo.html` into `reports`.
///
/// # Errors
/// When it cannot be written.
pub fn write(reports: &Path, report: &Report, truth: &GroundTruth, answers: &[Answer]) -> anyhow::Result<()> {
    let path = reports.join("demo.html");
    std::fs::write(&path, page(report, truth, answers)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn page(report: &Report, truth: &GroundTruth, answers: &[Answer]) -> Result<String, fmt::Error> {
    let mut page = String::new();
    page.push_str(HEAD);
    summary(&mut page, report)?;
    let (right, wrong): (Vec<_>, Vec<_>) =
        truth.queries.iter().zip(answers).partition(|(query, answer)| query.rank(answer) == Some(1));
    page.push_str(FILTER);
    for (class, title, shown) in [("first", "Found first", &right), ("not-first", "Not found first", &wrong)]
    {
        writeln!(page, "<div class={class}><h2>{title}: {} of {} photos</h2>", shown.len(), answers.len())?;
        for (query, answer) in shown {
            row(&mut page, query, answer)?;
        }
        page.push_str("</div>\n");
    }
    page.push_str("</main></body></html>\n");
    Ok(page)
}

fn summary(page: &mut String, report: &Report) -> fmt::Result {
    writeln!(
        page,
        "<p>{} photos, asked by a simulated device with its tiny network over MQTT, against a gallery of {} photos that \
         the server embedded with its large network. Each query of the device is {:.0} bytes; its photo never left it. \
         The scenes are synthetic compositions of real photographs, and neither their objects nor their backgrounds \
         were seen in training.</p>",
        report.queries, report.gallery_size, report.bytes_per_query
    )?;
    page.push_str(
        "<table><tr><th>queries embedded by</th><th>recall@1</th><th>recall@10</th><th>mAP</th></tr>\n",
    );
    for (name, [at_1, at_10, map]) in report.rows() {
        writeln!(
            page,
            "<tr><td>{}</td><td>{:.1} %</td><td>{:.1} %</td><td>{map:.3}</td></tr>",
            Escaped(name),
            100.0 * at_1,
            100.0 * at_10
        )?;
    }
    writeln!(
        page,
        "</table>\n<p>The tiny network keeps <b>{:.1} %</b> of the large one's mAP (with a random head: {:.1} %). \
         A reply takes {:.2} ms at the median and {:.2} ms at the 99th percentile, embedding {:.1} ms, on {} \
         ({} cores).</p>",
        100.0 * report.retention,
        100.0 * report.control_retention,
        report.reply_p50_ms,
        report.reply_p99_ms,
        report.embed_p50_ms,
        Escaped(&report.machine.cpu),
        report.machine.cores
    )
}

fn row(page: &mut String, query: &Query, answer: &Answer) -> fmt::Result {
    let verdict = match (query.rank(answer), &answer.error) {
        (Some(1), _) => String::new(),
        (Some(rank), _) => format!(", found at rank {rank}"),
        (None, Some(error)) => format!(", no answer: {error}"),
        (None, None) => format!(", not among the first {}", answer.matches.len()),
    };
    page.push_str("<section>");
    figure(page, "query", &query.photo, &format!("asked: {}{verdict}", query.label))?;
    page.push_str("<div class=matches>");
    for (rank, found) in (1..=SHOWN).zip(&answer.matches) {
        let Found { image, label, similarity } = found;
        let class = if *image == query.answer { "match right" } else { "match" };
        figure(page, class, &gallery_photo(image), &format!("{rank}. {label} {similarity:.2}"))?;
    }
    page.push_str("</div></section>\n");
    Ok(())
}

fn gallery_photo(image: &str) -> PathBuf {
    Path::new("demo/photos").join(image)
}

fn figure(page: &mut String, class: &str, photo: &Path, caption: &str) -> fmt::Result {
    let caption = Escaped(caption);
    write!(
        page,
        "<figure class=\"{class}\"><img loading=lazy src=\"{ROOT}{}\" alt=\"{caption}\"><figcaption>{caption}</figcaption></figure>",
        Link(photo)
    )
}

/// Text in HTML, attributes in double quotes included.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A relative path as a link: everything but the characters that need no care is percent-encoded (RFC 3986, 2.3).
struct Link<'a>(&'a Path);

impl fmt::Display for Link<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0.as_os_str().as_encoded_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Glimpse: what the device recognised</title>
<style>
:root { color-scheme: light dark; --line: #8885; --right: #1a9850; --card: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0 0 .5rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; }
.filter label { margin-right: 1.2rem; white-space: nowrap; }
main:has(#only-first:checked) .not-first, main:has(#only-not-first:checked) .first { display: none; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
section { display: grid; grid-template-columns: minmax(9rem, 15rem) 1fr; gap: 1rem; padding: 1rem 0;
  border-top: 1px solid var(--line); align-items: start; }
.matches { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .6rem; }
figure { margin: 0; }
img { width: 100%; display: block; background: var(--card); border-radius: 6px; object-fit: contain; }
.query img { aspect-ratio: 4 / 3; }
.match img { aspect-ratio: 1; }
.right img { outline: 4px solid var(--right); outline-offset: 1px; }
.right figcaption { color: var(--right); font-weight: 600; }
figcaption { font-size: .82rem; line-height: 1.3; margin-top: .4rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { section { grid-template-columns: 1fr; } .query { max-width: 15rem; }
  .matches { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
</style></head><body><main>
<h1>What the device recognised</h1>
"#;

/// Which queries are shown; by style alone.
const FILTER: &str = r#"<p class="filter"><label><input type="radio" name="shown" checked> all photos</label>
<label><input type="radio" name="shown" id="only-first"> found first</label>
<label><input type="radio" name="shown" id="only-not-first"> not found first</label></p>
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::metrics::Accuracy;
    use std::time::Duration;

    #[test]
    fn shows_each_query_with_its_matches_and_escapes_what_they_are_called() {
        let query = |photo: &str, label: &str, answer: &str| Query {
            photo: photo.into(),
            label: label.to_owned(),
            answer: answer.to_owned(),
        };
        let truth = GroundTruth {
            gallery_size: 2,
            queries: vec![
                query("demo/photos/queries/a b.jpg", "<b>cat</b>", "gallery/cat.jpg"),
                query("demo/photos/queries/dog.jpg", "dog & \"co\"", "gallery/dog.jpg"),
            ],
        };
        let answer = |line: &str| serde_json::from_str::<Answer>(line).unwrap();
        let answers = [
            answer(
                r#"{"photo":"a","matches":[{"image":"gallery/cat.jpg","label":"<b>cat</b>","similarity":0.9}],"reply_ms":1.0}"#,
            ),
            answer(
                r#"{"photo":"b","matches":[{"image":"gallery/cat.jpg","label":"cat","similarity":0.5},
                    {"image":"gallery/dog.jpg","label":"dog","similarity":0.4}],"reply_ms":1.0}"#,
            ),
        ];
        let accuracy = Accuracy::of(&truth.ranks(&answers));
        let codec = glimpse_protocol::Codec::I8;
        let report = Report::new(&truth, codec, &answers, [accuracy; 3], Duration::from_secs(1));
        let page = page(&report, &truth, &answers).unwrap();
        assert!(!page.contains("<b>cat"), "labels are text");
        assert!(page.contains("src=\"../../demo/photos/queries/a%20b.jpg\""), "links are encoded");
        assert!(page.contains("asked: &lt;b&gt;cat&lt;/b&gt;<"), "a photo found first has no remark");
        assert!(page.contains("alt=\"asked: dog &amp; &quot;co&quot;, found at rank 2\""));
        assert_eq!(page.matches("class=\"match right\"").count(), 2);
        assert_eq!(page.matches("<section>").count(), 2);
        assert_eq!(page.matches(">1. ").count(), 2, "matches show their rank");
        assert!(page.contains("<figcaption>2. dog 0.40<") && !page.contains("<script"));
        assert!(
            page.contains("Found first: 1 of 2 photos") && page.contains("Not found first: 1 of 2 photos")
        );
    }
}
