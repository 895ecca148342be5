//! What of its processors a device uses, as `device.toml` and the command line say it.

use core::fmt;
use core::str::FromStr;
use std::vec::Vec;

use super::ValueError;

/// `threads` at most: no board has as many processors.
pub const THREADS_MAX: u16 = 32;

/// The largest number of a processor that `cores` may name.
const CORE_MAX: u16 = 1023;

/// How many threads run the network.
///
/// # Errors
/// [`ValueError::Threads`].
pub fn threads(value: i64) -> Result<u16, ValueError> {
    match u16::try_from(value) {
        Ok(value) if (1..=THREADS_MAX).contains(&value) => Ok(value),
        _ => Err(ValueError::Threads),
    }
}

/// [`threads`] of a command line.
///
/// # Errors
/// [`ValueError::Threads`].
pub fn threads_of_text(text: &str) -> Result<u16, ValueError> {
    text.parse().map_or(Err(ValueError::Threads), threads)
}

/// Processors by their numbers, written as the kernel does: `0,2-3`. There is one at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(Vec<u16>);

impl Cores {
    /// Their numbers, each once, the smallest first.
    pub fn numbers(&self) -> &[u16] {
        &self.0
    }
}

impl FromStr for Cores {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = |text: &str| {
            // To `parse` a sign belongs to a number.
            let digits = Some(text.trim()).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let core = digits.and_then(|text| text.parse::<u16>().ok());
            core.filter(|core| *core <= CORE_MAX).ok_or(ValueError::Cores)
        };
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(ValueError::Cores);
            }
            cores.extend(first..=last);
            // `0-1023` a thousand times is still a thousand numbers.
            cores.sort_unstable();
            cores.dedup();
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match *run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [core] => write!(f, "{comma}{core}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString as _;

    #[test]
    fn cores_are_read_and_written_as_the_kernel_does() {
        for (text, numbers, written) in [
            ("0", &[0][..], "0"),
            ("2-3", &[2, 3], "2-3"),
            ("3, 0,1 ,7-9", &[0, 1, 3, 7, 8, 9], "0-1,3,7-9"),
            ("1,1-1,0-2", &[0, 1, 2], "0-2"),
        ] {
            let cores: Cores = text.parse().unwrap();
            assert_eq!((cores.numbers(), cores.to_string().as_str()), (numbers, written));
        }
        for wrong in
            ["", "a", "-", "1-", "-1", "3-2", "0,,1", "1024", "0-1024", "0x1", "+1", "+2-+3", "99999999999"]
        {
            assert_eq!(wrong.parse::<Cores>(), Err(ValueError::Cores), "{wrong}");
        }
    }
}
