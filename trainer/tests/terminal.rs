//! The program in a real terminal, as a person sees it and stops it.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use glimpse_trainer::training::read_metrics;
use serde::Deserialize;
use serde_json::json;

mod common;
use common::place::{Place, small_run, weights};

/// What takes a terminal to another screen, and back.
const OTHER_SCREEN: &str = "\x1b[?1049h";
const FIRST_SCREEN: &str = "\x1b[?1049l";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
/// A number that validation has brought.
const VALIDATED: &str = r"Valid\s+0\.\d{4}";

/// See `python/terminal.py`.
#[derive(Deserialize)]
struct Seen {
    status: i32,
    output: String,
    screens: Vec<String>,
    restored: bool,
}

/// Columns and rows.
const SMALL: (u32, u32) = (80, 24);
const LARGE: (u32, u32) = (120, 40);

/// Runs the program in a terminal; types the keys as soon as the screen shows the expressions before them.
fn in_terminal(place: &Place, args: &str, (columns, rows): (u32, u32), keys: &[(&str, &str)]) -> Seen {
    let command = std::iter::once(env!("CARGO_BIN_EXE_glimpse-trainer")).chain(args.split_whitespace());
    let command: Vec<&str> = command.collect();
    let wanted = json!({ "command": command, "folder": place.path(""), "columns": columns, "rows": rows, "keys": keys });
    let script = common::crate_folder().join("tests/python/terminal.py");
    let mut python = Command::new("python3");
    let mut python =
        python.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("there is Python 3");
    python.stdin.take().unwrap().write_all(wanted.to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let seen: Seen = serde_json::from_slice(&output.stdout).unwrap();
    assert!(seen.restored, "{}", seen.output);
    seen
}

impl Seen {
    /// What came before the dashboard, and after it.
    fn around_the_dashboard(&self) -> (&str, &str) {
        let (before, rest) = self.output.split_once(OTHER_SCREEN).expect("the dashboard opens");
        let (_, after) = rest.split_once(FIRST_SCREEN).expect("the dashboard closes");
        assert!(rest.rfind(HIDE_CURSOR) < rest.rfind(SHOW_CURSOR), "the cursor is back: {after}");
        (before, after)
    }
}

#[test]
fn a_terminal_shows_the_dashboard_and_a_pipe_the_same_run_in_lines() {
    let place = Place::new();
    place.prepare_small_run();
    let piped = place.run(&small_run("piped", 200));
    let lines = String::from_utf8(piped.stderr).unwrap();
    assert!(piped.status.success() && !lines.contains('\x1b'), "{lines}");
    assert!(lines.contains("epoch  50, step   200 of 200: loss ") && lines.contains("images/s"), "{lines}");

    let seen = in_terminal(&place, &small_run("watched", 200), LARGE, &[]);
    let (_, after) = seen.around_the_dashboard();
    assert!(seen.status == 0 && after.contains("best after step") && after.contains("train.log"), "{after}");
    let words = ["loss", "ssp ", "mAP", "recall@1", "images/s", "% of the time", "Epochs : ", "of 200"];
    for words in words.into_iter().chain(["q    Stop the training."]) {
        assert!(
            seen.screens.iter().any(|screen| screen.contains(words)),
            "{words}: {:?}",
            seen.screens.last()
        );
    }
    // Whatever mAP it showed is that of an epoch, with the best one then.
    let metrics = read_metrics(&place.path("watched"));
    let known =
        metrics.iter().map(|line| format!("Valid {:.4}, best {:.4}", line.validation.map, line.best_map));
    let known: BTreeSet<String> = known.collect();
    let shown = seen.screens.iter().filter_map(|screen| screen.split("Valid ").nth(1));
    let shown: BTreeSet<String> =
        shown.filter(|text| text.starts_with("0.")).map(|text| format!("Valid {}", &text[..19])).collect();
    assert!(!shown.is_empty() && shown.is_subset(&known), "{shown:?}, {known:?}");

    let log = std::fs::read_to_string(place.path("watched/train.log")).unwrap();
    assert!(log.contains("epoch  50, step   200 of 200") && !log.contains('\x1b'), "{log}");
    for file in ["checkpoint.safetensors", "best.safetensors"] {
        let [piped, watched] = ["piped", "watched"].map(|run| weights(&place.path(run).join(file)));
        assert!(piped == watched, "{file}");
    }
}

#[test]
fn keys_end_a_run_in_a_checkpoint_from_which_it_goes_on_to_the_same_weights() {
    let place = Place::new();
    place.prepare_small_run();
    place.good(&small_run("whole", 400));
    let its_own = [(VALIDATED, "q"), ("Stop the training immediately", "s")];
    let ctrl_c = [(VALIDATED, "\x03")];
    for (run, keys) in [("own-key", &its_own[..]), ("ctrl-c", &ctrl_c[..])] {
        let seen = in_terminal(&place, &small_run(run, 400), SMALL, keys);
        let (_, after) = seen.around_the_dashboard();
        assert_eq!(seen.status, 1, "{run}: {after}");
        assert!(after.contains("of 400; continue with the same command and --resume"), "{run}: {after}");
        let report = std::fs::read_to_string(place.path(run).join("report.md")).unwrap();
        assert!(
            report.contains("of 400, stopped |") && place.path(run).join("curves.svg").exists(),
            "{report}"
        );

        let resumed = in_terminal(&place, &format!("{} --resume", small_run(run, 400)), SMALL, &[]);
        assert_eq!(resumed.status, 0, "{run}: {}", resumed.output);
        let [whole, parts] =
            ["whole", run].map(|run| weights(&place.path(run).join("checkpoint.safetensors")));
        assert!(whole == parts, "{run}");
    }
}

#[test]
fn an_end_without_a_checkpoint_gives_the_terminal_back_too() {
    let place = Place::new();
    place.prepare_small_run();
    // The second Ctrl-C ends the process at once; the two may also arrive as one, and then there is a checkpoint.
    let seen = in_terminal(&place, &small_run("twice", 100_000), SMALL, &[(VALIDATED, "\x03\x03")]);
    seen.around_the_dashboard();
    assert_eq!(seen.status, 1, "{}", seen.output);
    // This choice of Burn's dialogue is a panic within the loop.
    let kill = [(VALIDATED, "q"), ("Stop the training immediately", "k")];
    let seen = in_terminal(&place, &small_run("killed", 100_000), SMALL, &kill);
    let (_, after) = seen.around_the_dashboard();
    assert!(seen.status == 101 && after.contains("Training killed by user"), "{}", seen.output);
    assert!(place.path("killed/checkpoint.safetensors").exists());
}

#[test]
fn a_terminal_gets_lines_on_demand_and_nothing_at_all() {
    let place = Place::new();
    place.prepare_small_run();
    let plain = in_terminal(&place, &small_run("plain --plain", 8), SMALL, &[]);
    assert_eq!(plain.status, 0, "{}", plain.output);
    assert!(plain.output.contains("epoch   2") && !plain.output.contains(OTHER_SCREEN), "{}", plain.output);
    let quiet = in_terminal(&place, &format!("--quiet {}", small_run("quiet", 8)), SMALL, &[]);
    assert_eq!((quiet.status, quiet.output.as_str()), (0, ""));
}
