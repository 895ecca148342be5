//! Errors as people read them: [`told`].

/// An error with its causes, each said once: many of our errors say their cause themselves.
pub fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.contains(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let inner = || anyhow::Error::from(io::Error::other("disk full"));
        assert_eq!(
            told(&inner().context("cannot write a.toml: disk full")),
            "cannot write a.toml: disk full"
        );
        assert_eq!(told(&inner().context("cannot write a.toml")), "cannot write a.toml: disk full");
        assert_eq!(told(&inner()), "disk full");
    }
}
