//! What is written to a person's terminal.

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;

/// Writes to standard output. A reader that has gone away is no error: it has read what it wanted.
///
/// # Errors
/// Whatever else keeps it from being written.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to standard output"),
    }
}

/// Writes a line to standard error, where nothing can be done about a failure.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", shown(line));
}

/// Writes what has colours to standard error: without them where that is no terminal, or `NO_COLOR` is set.
pub fn complain_drawn(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}\n");
}

/// Text from a file or a name as it may reach a terminal: control characters, which could move the cursor or worse, are
/// written as escapes.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { out.extend(character.escape_default()) } else { out.push(character) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_others_kept() {
        assert_eq!(shown("caf\u{e9} \u{1b}[31m\n\u{9b}1m"), "caf\u{e9} \\u{1b}[31m\\n\\u{9b}1m");
    }
}
