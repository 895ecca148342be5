//! What is known of each board: its camera, and the pins that lamps and buttons can be on. The data is in
//! `firmware-config/boards`, one file a board, and part of the program.

use glimpse_protocol::device::{Board, CameraSource, GpioLine, Problem, RawDevice};

/// What is known of a board.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What people call it.
    pub title: String,
    /// How many processors it has; `None`: more than one kind is called so.
    pub processors: Option<u16>,
    /// Whether a camera can be plugged into the board itself, as `rpicam` wants.
    pub has_csi: bool,
    /// The camera that it likely has.
    pub camera: CameraSource,
    /// Where lamps and buttons can be; `None`: nothing is known.
    pub pins: Option<Pins>,
}

/// The pins of a board.
#[derive(Debug, Clone, PartialEq)]
pub struct Pins {
    /// The numbers of the chips that may have them: kernels differ.
    pub chips: Vec<u16>,
    /// The first and the last line that a person can reach.
    pub lines: (u32, u32),
    /// A line for a lamp that is lit for a match.
    pub led: GpioLine,
    /// A line for the other lamp.
    pub led_unknown: GpioLine,
    /// A line for a button.
    pub button: GpioLine,
}

/// What is known of `board`.
///
/// # Errors
/// A file of ours that is damaged; a test holds that none is.
pub fn profile(board: Board) -> anyhow::Result<Profile> {
    let text = match board {
        Board::RaspberryPi3 => include_str!("../boards/raspberry-pi-3.toml"),
        Board::RaspberryPi4 => include_str!("../boards/raspberry-pi-4.toml"),
        Board::RaspberryPi5 => include_str!("../boards/raspberry-pi-5.toml"),
        Board::RaspberryPiZero2W => include_str!("../boards/raspberry-pi-zero-2-w.toml"),
        Board::GenericUefi => include_str!("../boards/generic-uefi.toml"),
        Board::QemuVirt => include_str!("../boards/qemu-virt.toml"),
    };
    read(text).ok_or_else(|| anyhow::anyhow!("what is known of the board {board} cannot be read"))
}

fn read(text: &str) -> Option<Profile> {
    let table: toml::Table = text.parse().ok()?;
    let text = |table: &toml::Table, key: &str| Some(table.get(key)?.as_str()?.to_owned());
    let pins = match table.get("pins") {
        None => None,
        Some(pins) => {
            let pins = pins.as_table()?;
            let numbers = |key: &str| -> Option<Vec<i64>> {
                pins.get(key)?.as_array()?.iter().map(toml::Value::as_integer).collect()
            };
            let line = |key: &str| text(pins, key)?.parse::<GpioLine>().ok();
            let (chips, lines) = (numbers("chips")?, numbers("lines")?);
            let &[first, last] = lines.as_slice() else { return None };
            Some(Pins {
                chips: chips.into_iter().map(|chip| u16::try_from(chip).ok()).collect::<Option<_>>()?,
                lines: (u32::try_from(first).ok()?, u32::try_from(last).ok()?),
                led: line("led")?,
                led_unknown: line("led_unknown")?,
                button: line("button")?,
            })
        }
    };
    Some(Profile {
        title: text(&table, "title")?,
        processors: match table.get("processors") {
            None => None,
            Some(count) => Some(u16::try_from(count.as_integer()?).ok()?),
        },
        has_csi: table.get("has_csi")?.as_bool()?,
        camera: text(&table, "camera")?.parse().ok()?,
        pins,
    })
}

/// What a device asks of its board that the board does not have.
pub fn problems(raw: &RawDevice, board: Board, profile: &Profile) -> Vec<Problem> {
    let mut problems = Vec::new();
    let title = &profile.title;
    if raw.camera == Some(CameraSource::Rpicam) && !profile.has_csi {
        let reason = format!("{board} has no connector for a camera of rpicam");
        let fix = format!("write camera = \"{}\", or another board", profile.camera);
        problems.push(raw.problem("camera", &reason, &fix));
    }
    if let Some(pins) = &profile.pins {
        let lines = [
            ("led", &raw.led, &pins.led),
            ("led_unknown", &raw.led_unknown, &pins.led_unknown),
            ("button", &raw.button, &pins.button),
        ];
        for (key, line, example) in lines {
            let Some(line) = line else { continue };
            let (first, last) = pins.lines;
            let reason = if !pins.chips.contains(&line.chip()) {
                let chips: Vec<String> = pins.chips.iter().map(|chip| format!("gpiochip{chip}")).collect();
                format!("the pins of {title} are on {}", chips.join(" or "))
            } else if (first..=last).contains(&line.line()) {
                continue;
            } else {
                format!("the pins of {title} are the lines {first} to {last}")
            };
            problems.push(raw.problem(
                key,
                &reason,
                &format!("write {key} = \"{example}\", or another of them"),
            ));
        }
    }
    if let Some(processors) = profile.processors {
        if raw.threads.is_some_and(|threads| threads > processors) {
            let reason = format!("{title} has {processors} processors: more threads make it slower");
            problems.push(raw.problem(
                "threads",
                &reason,
                &format!("write threads = {processors}, or fewer"),
            ));
        }
        let last = raw.cores.as_ref().and_then(|cores| cores.numbers().last().copied());
        if last.is_some_and(|last| last >= processors) {
            let reason =
                format!("{title} has {processors} processors, numbered from 0 to {}", processors - 1);
            let fix = format!("write cores = \"0-{}\", or some of them", processors - 1);
            problems.push(raw.problem("cores", &reason, &fix));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_board_has_a_file_and_fits_itself() {
        for board in Board::ALL {
            let profile = profile(board).unwrap();
            let pins = profile.pins.as_ref().map_or_else(String::new, |pins| {
                format!(
                    "led = '{}'\nled_unknown = '{}'\nbutton = '{}'\n",
                    pins.led, pins.led_unknown, pins.button
                )
            });
            let text = format!("server = 'a'\nmodel = 'm'\ncamera = '{}'\n{pins}", profile.camera);
            let (raw, found) = RawDevice::parse(&text, Path::new(""));
            assert_eq!(problems(&raw, board, &profile), [], "{board}");
            raw.validate(found).unwrap();
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("boards");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), Board::ALL.len());
    }

    #[test]
    fn what_a_board_does_not_have_is_told() {
        for (board, text, expected) in [
            (Board::GenericUefi, "camera = 'rpicam'", "camera: generic-uefi has no connector"),
            (
                Board::QemuVirt,
                "led = 'gpiochip0:8'",
                "led: the pins of QEMU's board `virt` are the lines 0 to 7",
            ),
            (
                Board::RaspberryPi4,
                "button = 'gpiochip4:3'",
                "button: the pins of Raspberry Pi 4 are on gpiochip0",
            ),
            (Board::RaspberryPi3, "threads = 5", "threads: Raspberry Pi 3 has 4 processors"),
            (Board::RaspberryPi3, "cores = '2-4'", "cores: Raspberry Pi 3 has 4 processors"),
        ] {
            let (raw, _) = RawDevice::parse(text, Path::new(""));
            let found = problems(&raw, board, &profile(board).unwrap());
            assert!(found.len() == 1 && found[0].title().starts_with(expected), "{found:?}");
        }
        for (board, text) in [
            (Board::RaspberryPi5, "button = 'gpiochip4:3'\ncamera = 'rpicam'\nthreads = 4\ncores = '0-3'"),
            (Board::GenericUefi, "led = 'gpiochip9:99'\nthreads = 64"),
        ] {
            let (raw, _) = RawDevice::parse(text, Path::new(""));
            assert_eq!(problems(&raw, board, &profile(board).unwrap()), []);
        }
    }
}
