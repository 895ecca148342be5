//! What a device does with an answer, as `device.toml` and the command line say it.

use core::fmt;
use core::str::FromStr;
use std::borrow::ToOwned;
use std::path::PathBuf;
use std::string::String;

use super::ValueError;

/// The longest `webhook`.
const WEBHOOK_BYTES_MAX: usize = 2048;

/// The largest line of a chip: no chip has as many.
const LINE_MAX: u32 = 4095;

/// What a device does with an answer, beside printing it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Actions {
    /// A best match of a smaller similarity is none: the photo is unknown.
    pub unknown_below: Option<f32>,
    /// The program that is given each outcome.
    pub exec: Option<PathBuf>,
    /// Where each outcome is posted to.
    pub webhook: Option<Webhook>,
    /// The line that is lit for a match.
    pub led: Option<GpioLine>,
    /// The line that is lit for a photo that is unknown.
    pub led_unknown: Option<GpioLine>,
}

/// Where outcomes are posted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The address.
    pub url: WebhookUrl,
    /// A file with the secret that is sent along.
    pub token_file: Option<PathBuf>,
    /// Who vouches for the host; `None`: the public authorities.
    pub ca: Option<PathBuf>,
}

/// An address for HTTP. What stands behind the host may be a secret, and is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl(String);

impl WebhookUrl {
    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Scheme, host and port: what may be shown.
    pub fn origin(&self) -> &str {
        let end = self.0.find("://").map_or(0, |scheme| scheme + 3);
        let rest = self.0.get(end..).unwrap_or_default();
        let host = rest.find(['/', '?']).unwrap_or(rest.len());
        self.0.get(..end + host).unwrap_or_default()
    }

    /// Whether it is met by TLS.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// The host, without brackets, and the port.
    pub fn host_and_port(&self) -> (&str, u16) {
        let authority = self.origin().split_once("://").map_or("", |(_, authority)| authority);
        let default = if self.is_tls() { 443 } else { 80 };
        split_authority(authority)
            .map_or((authority, default), |(host, port)| (host, port.unwrap_or(default)))
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/..", self.origin())
    }
}

fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<core::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let is_host = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    let port = port.map(str::parse::<u16>).transpose().ok()?;
    (is_host && port != Some(0)).then_some((host, port))
}

impl FromStr for WebhookUrl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let rest = rest.ok_or(ValueError::Webhook)?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(ValueError::WebhookSecret);
        }
        let is_plain = text.len() <= WEBHOOK_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain && !text.contains('#') && split_authority(authority).is_some() {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::Webhook)
        }
    }
}

/// A line of a GPIO chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpioLine {
    chip: u16,
    line: u32,
    is_active_low: bool,
}

impl GpioLine {
    /// The number of `/dev/gpiochipN`.
    pub const fn chip(&self) -> u16 {
        self.chip
    }

    /// The line, from 0.
    pub const fn line(&self) -> u32 {
        self.line
    }

    /// Whether a lamp is lit, and a button pressed, where the line is low.
    pub const fn is_active_low(&self) -> bool {
        self.is_active_low
    }

    /// Whether it is the same line, whatever it is at rest.
    pub const fn is_line_of(&self, other: &Self) -> bool {
        self.chip == other.chip && self.line == other.line
    }
}

impl fmt::Display for GpioLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = if self.is_active_low { ":low" } else { "" };
        write!(f, "gpiochip{}:{}{low}", self.chip, self.line)
    }
}

impl FromStr for GpioLine {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse::<u32>().ok()).flatten()
        };
        let mut parts = text.split(':');
        let chip = parts.next().and_then(|part| number(part.strip_prefix("gpiochip")?));
        let line = parts.next().and_then(number);
        let is_active_low = match (parts.next(), parts.next()) {
            (None, None) => false,
            (Some("low"), None) => true,
            _ => return Err(ValueError::Gpio),
        };
        match (chip.and_then(|chip| u16::try_from(chip).ok()), line) {
            (Some(chip), Some(line)) if line <= LINE_MAX => Ok(Self { chip, line, is_active_low }),
            _ => Err(ValueError::Gpio),
        }
    }
}

/// A cosine below which a match is none.
///
/// # Errors
/// [`ValueError::Similarity`].
pub fn similarity(value: f64) -> Result<f32, ValueError> {
    if (-1.0..=1.0).contains(&value) { Ok(value as f32) } else { Err(ValueError::Similarity) }
}

/// [`similarity`] of a command line.
///
/// # Errors
/// [`ValueError::Similarity`].
pub fn similarity_of_text(text: &str) -> Result<f32, ValueError> {
    text.parse().map_or(Err(ValueError::Similarity), similarity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    #[test]
    fn lines_of_chips_read_and_come_back_as_text() {
        for (text, expected) in [
            ("gpiochip0:17", Some((0, 17, false))),
            ("gpiochip4:3:low", Some((4, 3, true))),
            ("gpiochip0", None),
            ("gpiochip0:", None),
            ("gpiochip:1", None),
            ("gpiochip0:+1", None),
            ("gpiochip0:1:high", None),
            ("gpiochip0:1:low:low", None),
            ("gpiochip99999:1", None),
            ("gpiochip0:4096", None),
            ("/dev/gpiochip0:1", None),
            ("17", None),
        ] {
            let line = text.parse::<GpioLine>().ok();
            let parts = line.as_ref().map(|line| (line.chip(), line.line(), line.is_active_low()));
            assert_eq!(parts, expected, "{text}");
            if let Some(line) = line {
                assert_eq!(line.to_string(), text);
            }
        }
    }

    #[test]
    fn webhooks_are_addresses_without_secrets_before_the_host() {
        for (text, expected) in [
            ("http://a", Some(("http://a", "a", 80))),
            (
                "https://hooks.example.org/x/y?z=1",
                Some(("https://hooks.example.org", "hooks.example.org", 443)),
            ),
            ("http://127.0.0.1:8080/x", Some(("http://127.0.0.1:8080", "127.0.0.1", 8080))),
            ("https://[::1]:9?z", Some(("https://[::1]:9", "::1", 9))),
            ("ftp://a", None),
            ("a", None),
            ("http://", None),
            ("http:///x", None),
            ("http://a:0/", None),
            ("http://a:b/", None),
            ("http://a/two words", None),
            ("http://a/#part", None),
        ] {
            let url = text.parse::<WebhookUrl>().ok();
            let parts = url.as_ref().map(|url| (url.origin(), url.host_and_port().0, url.host_and_port().1));
            assert_eq!(parts, expected, "{text}");
        }
        assert_eq!("https://me:word@a/".parse::<WebhookUrl>(), Err(ValueError::WebhookSecret));
        let url: WebhookUrl = "https://a/secret".parse().unwrap();
        assert!(!format!("{url:?}").contains("secret"));
    }

    #[test]
    fn similarities_are_cosines() {
        assert_eq!((similarity(0.5), similarity(-1.0)), (Ok(0.5), Ok(-1.0)));
        for value in [1.5, -1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(similarity(value), Err(ValueError::Similarity), "{value}");
        }
        assert_eq!(similarity_of_text("high"), Err(ValueError::Similarity));
    }
}
