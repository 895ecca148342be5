//! What may keep a device from working, one check after the other, each with what to do: `glimpse-edge doctor`.
//!
//! A check looks and changes nothing, but for a file that it writes into a folder and removes, to see that it can. None hangs: each
//! wait for the network is bounded. In reading order:
//!
//! - [`Finding`] and its tables, here.
//! - [`system`]: clock, disk, temperature, memory; of folders that a test can lay out.
//! - [`files`]: camera, network, secrets, programs, pins.
//! - [`network`]: broker, gallery, webhook.

use std::io::{self, Write};

use serde::Serialize;

use super::output::printable;

pub mod files;
pub mod network;
pub mod system;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// The device works, and somebody should know.
    Warning,
    /// It does not work.
    Failure,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it; there where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, message: message.into(), advice: None }
    }

    /// The device works, and somebody should do this.
    pub fn warning(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, status: Status::Warning, message: message.into(), advice: Some(advice.into()) }
    }

    /// It does not work until somebody does this.
    pub fn failure(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, status: Status::Failure, message: message.into(), advice: Some(advice.into()) }
    }

    /// A failure of which the message says itself what to do.
    pub fn from_error(check: &'static str, error: &dyn std::error::Error) -> Self {
        Self { check, status: Status::Failure, message: super::output::chain(error), advice: None }
    }
}

/// Writes a finding for people.
///
/// # Errors
/// Whatever writing says.
pub fn write_line(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let status = match finding.status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Failure => "FAILURE",
    };
    let Finding { check, message, advice, .. } = finding;
    let mut text = String::new();
    for (place, line) in message.lines().enumerate() {
        let (status, check) = if place == 0 { (status, *check) } else { ("", "") };
        text += &format!("{status:<8} {check:<13} {}\n", printable(line));
    }
    for line in advice.iter().flat_map(|advice| advice.lines()) {
        text += &format!("{:<8} {:<13} -> {}\n", "", "", printable(line));
    }
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a last line for people.
///
/// # Errors
/// Whatever writing says.
pub fn write_summary(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (failures, warnings) = (count(Status::Failure), count(Status::Warning));
    writeln!(out, "{} checks: {failures} failures, {warnings} warnings", findings.len())?;
    out.flush()
}

/// Writes one JSON object: `ok`, which is false where something failed, and `checks`.
///
/// # Errors
/// Whatever writing says.
pub fn write_json(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        checks: &'a [Finding],
    }
    let mut text = serde_json::to_vec(&Report { ok: !has_failed(findings), checks: findings })?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()
}

/// Whether anything failed.
pub fn has_failed(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.status == Status::Failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_a_table_for_people_and_an_object_for_programs() {
        let findings = [
            Finding::ok("memory", "900 MB are free"),
            Finding::failure("configuration", "line 1: a\nline 2: \u{1b}[2Jb", "do this"),
        ];
        let mut out = Vec::new();
        findings.iter().for_each(|finding| write_line(&mut out, finding).unwrap());
        write_summary(&mut out, &findings).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ok       memory        900 MB are free\n\
             FAILURE  configuration line 1: a\n                       line 2: \u{fffd}[2Jb\n                       -> do this\n\
             2 checks: 1 failures, 0 warnings\n"
        );
        let mut out = Vec::new();
        write_json(&mut out, &findings[..1]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"ok\":true,\"checks\":[{\"check\":\"memory\",\"status\":\"ok\",\"message\":\"900 MB are free\"}]}\n"
        );
        assert!(has_failed(&findings) && !has_failed(&findings[..1]));
    }
}
