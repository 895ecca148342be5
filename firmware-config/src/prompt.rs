//! Questions on a terminal: each answer is read as it is typed, and asked for again where it is none.

use std::io::{BufRead, Read as _, Write};

use anyhow::{Context as _, bail, ensure};

use crate::output::shown;

/// The longest answer.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Where questions are asked.
#[derive(Debug)]
pub struct Prompt<R, W> {
    input: R,
    output: W,
}

/// A question.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is asked.
    pub text: &'a str,
    /// What an empty answer means; empty: nothing.
    pub default: &'a str,
    /// What `?` is answered with.
    pub about: &'a str,
}

impl<R: BufRead, W: Write> Prompt<R, W> {
    /// Reads answers from `input`, and asks on `output`.
    pub const fn new(input: R, output: W) -> Self {
        Self { input, output }
    }

    /// Says a line.
    ///
    /// # Errors
    /// A terminal that is gone.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.output, "{line}").context("cannot write to the terminal")
    }

    /// Asks until `read` makes something of the answer.
    ///
    /// # Errors
    /// A terminal that is gone, or ends before there is an answer.
    pub fn ask<T>(
        &mut self,
        question: Question<'_>,
        mut read: impl FnMut(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let Question { text, default, about } = question;
        loop {
            let shown_default = if default.is_empty() { "none" } else { default };
            write!(self.output, "{text} [{shown_default}]: ")
                .and_then(|()| self.output.flush())
                .context("cannot write to the terminal")?;
            let answer = self.line()?;
            let answer = match answer.trim() {
                "?" => {
                    self.say(&format!("  {about}"))?;
                    continue;
                }
                "" => default,
                answer => answer,
            };
            match read(answer) {
                Ok(value) => return Ok(value),
                Err(reason) => self.say(&format!("  {}", shown(&reason)))?,
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut bytes = Vec::new();
        let mut input = self.input.by_ref().take(ANSWER_BYTES_MAX);
        input.read_until(b'\n', &mut bytes).context("cannot read from the terminal")?;
        ensure!(!bytes.is_empty(), "the answers ended before the questions: nothing was written");
        if bytes.len() as u64 == ANSWER_BYTES_MAX {
            bail!("an answer has at most {ANSWER_BYTES_MAX} bytes");
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(answers: &str) -> (anyhow::Result<u16>, String) {
        let mut output = Vec::new();
        let question = Question { text: "How many", default: "10", about: "From 1 to 100." };
        let answer = Prompt::new(answers.as_bytes(), &mut output)
            .ask(question, |text| text.parse().map_err(|_| format!("{text} is no number")));
        (answer, String::from_utf8(output).unwrap())
    }

    #[test]
    fn an_answer_is_asked_for_until_it_is_one() {
        let (answer, said) = ask("many\n?\n\u{1b}[2J\n7\n");
        assert_eq!(answer.unwrap(), 7);
        assert_eq!(
            said,
            "How many [10]:   many is no number\nHow many [10]:   From 1 to 100.\n\
             How many [10]:   \\u{1b}[2J is no number\nHow many [10]: "
        );
        assert_eq!(ask("\n").0.unwrap(), 10);
        assert_eq!(ask(" 8 ").0.unwrap(), 8);
    }

    #[test]
    fn answers_that_end_or_never_end_are_errors() {
        assert!(ask("").0.unwrap_err().to_string().contains("ended before"));
        assert!(ask(&"1".repeat(5000)).0.unwrap_err().to_string().contains("at most 4096 bytes"));
    }
}
