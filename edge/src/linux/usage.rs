//! What the program takes: memory, and energy where the board measures it.
//!
//! | where | what |
//! |---|---|
//! | `/sys/class/powercap/*/energy_uj` | counters of x86 processors (RAPL); the kernel lets only root read them |
//! | `/sys/class/hwmon/*/energyN_input`, `powerN_average`, `powerN_input` | sensors on boards, such as an INA219 |
//! | `/sys/class/power_supply/*/power_now`, or `current_now` and `voltage_now` | batteries |
//! | `vcgencmd pmic_read_adc` | the power chip of a Raspberry Pi 5 |
//!
//! Whatever they measure is taken together with all else that runs there: the board's, and not the program's alone.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::host;

/// How often a sensor of power is read.
const EVERY: Duration = Duration::from_millis(100);

/// How often, where a program has to be started for it.
const PROGRAM_EVERY: Duration = Duration::from_millis(500);

/// How long that program may take.
const PROGRAM_WITHIN: Duration = Duration::from_secs(2);

/// What is read of what it prints.
const PRINTED_BYTES_MAX: u64 = 64 << 10;

/// Fewer samples of power say nothing.
const SAMPLES_MIN: usize = 3;

/// Samples that are kept.
const SAMPLES_MAX: usize = 1 << 16;

/// The most memory that this program ever had, in bytes; `None` where the kernel does not say.
pub fn peak_memory(root: &Path) -> Option<u64> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"))?;
    peak.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What was used while something was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Energy {
    /// Of the whole board, or of what the sensor sees of it.
    pub joules: f64,
    /// The mean power.
    pub watts: f64,
    /// What measured it.
    pub sensor: String,
}

/// Sensors that are known to see one chip alone, which is none that embeds.
const PARTS: [&str; 4] = ["amdgpu", "amd_energy", "nouveau", "radeon"];

/// What a board measures.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sensor {
    /// Counters in millionths of a joule, each with where it begins anew; their sum.
    Counters(Vec<(PathBuf, Option<u64>)>),
    /// Millionths of a watt.
    Power(PathBuf),
    /// Millionths of an ampere and of a volt.
    CurrentAndVoltage(PathBuf, PathBuf),
    /// A program that prints currents and voltages by name.
    Pmic(PathBuf),
}

impl Sensor {
    /// The first of those that are there, can be read, and measure something.
    fn find(root: &Path) -> Option<Self> {
        let classes = root.join("sys/class");
        Self::in_powercap(&classes.join("powercap"))
            .into_iter()
            .chain(folders(&classes.join("hwmon")).iter().flat_map(|folder| Self::in_hwmon(folder)))
            .chain(folders(&classes.join("power_supply")).iter().filter_map(|folder| Self::in_supply(folder)))
            .chain(["usr/bin/vcgencmd", "opt/vc/bin/vcgencmd"].map(|program| Self::Pmic(root.join(program))))
            .find(|sensor| sensor.read().is_some_and(|read| read > 0.0))
    }

    /// The whole system's counter, or those of all processors.
    fn in_powercap(powercap: &Path) -> Option<Self> {
        let named = |what: fn(&str) -> bool| -> Vec<(PathBuf, Option<u64>)> {
            let folders = folders(powercap).into_iter();
            let folders = folders.filter(|folder| text(&folder.join("name")).is_some_and(|name| what(&name)));
            folders
                .map(|folder| (folder.join("energy_uj"), number(&folder.join("max_energy_range_uj"))))
                .collect()
        };
        let system = named(|name| name == "psys");
        let counters = if system.is_empty() { named(|name| name.starts_with("package-")) } else { system };
        (!counters.is_empty()).then_some(Self::Counters(counters))
    }

    fn in_hwmon(folder: &Path) -> Vec<Self> {
        if text(&folder.join("name")).is_some_and(|name| PARTS.contains(&name.as_str())) {
            return Vec::new();
        }
        let counter = |place: u32| Self::Counters(vec![(folder.join(format!("energy{place}_input")), None)]);
        let average = |place: u32| Self::Power(folder.join(format!("power{place}_average")));
        let power = |place: u32| Self::Power(folder.join(format!("power{place}_input")));
        (1..=4).map(counter).chain((1..=4).map(average)).chain((1..=4).map(power)).collect()
    }

    /// A battery that gives, or mains that are plugged in.
    fn in_supply(folder: &Path) -> Option<Self> {
        let says = |file: &str, what: &str| text(&folder.join(file)).is_some_and(|text| text == what);
        let gives = if says("type", "Battery") { says("status", "Discharging") } else { says("online", "1") };
        if !gives {
            return None;
        }
        let power = folder.join("power_now");
        let (current, voltage) = (folder.join("current_now"), folder.join("voltage_now"));
        if power.exists() {
            Some(Self::Power(power))
        } else {
            Some(Self::CurrentAndVoltage(current, voltage))
        }
    }

    /// Joules so far of a counter, watts now of anything else.
    fn read(&self) -> Option<f64> {
        match self {
            Self::Counters(counters) => {
                counters.iter().map(|(file, _)| Some(number(file)? as f64 / 1e6)).sum()
            }
            Self::Power(file) => Some(number(file)? as f64 / 1e6),
            Self::CurrentAndVoltage(current, voltage) => {
                Some(signed(current)?.abs() as f64 / 1e6 * signed(voltage)?.abs() as f64 / 1e6)
            }
            Self::Pmic(program) => watts_of_pmic(&printed_by(program)?),
        }
    }

    fn every(&self) -> Duration {
        if matches!(self, Self::Pmic(_)) { PROGRAM_EVERY } else { EVERY }
    }

    fn name(&self) -> String {
        let file = match self {
            Self::Counters(counters) => counters.first().map(|(file, _)| file),
            Self::Power(file) | Self::CurrentAndVoltage(file, _) => Some(file),
            Self::Pmic(program) => return format!("{} pmic_read_adc", program.display()),
        };
        let Some(file) = file else { return String::new() };
        let name = file.parent().and_then(|folder| text(&folder.join("name")));
        name.map_or_else(|| file.display().to_string(), |name| format!("{name} ({})", file.display()))
    }
}

/// What a program prints in time; it is killed after that.
fn printed_by(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("pmic_read_adc").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let until = Instant::now() + PROGRAM_WITHIN;
    let mut child = host::start(&mut command).ok()?;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= until {
            // It may have ended in between.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let mut printed = String::new();
    // It has ended, so there is no more than a pipe holds; what it started may hold the pipe still.
    child.stdout.take()?.take(PRINTED_BYTES_MAX).read_to_string(&mut printed).ok()?;
    Some(printed)
}

/// The sum over all rails, of lines such as `3V3_SYS_A current(1)=0.05A` and `3V3_SYS_V volt(9)=3.31V`.
fn watts_of_pmic(printed: &str) -> Option<f64> {
    let value = |name: &str| {
        let line = printed.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")))?;
        line.rsplit_once('=')?.1.trim().trim_end_matches(['A', 'V']).parse::<f64>().ok()
    };
    let rails = printed.lines().filter_map(|line| line.split_whitespace().next()?.strip_suffix("_A"));
    let watts: Vec<f64> =
        rails.filter_map(|rail| Some(value(&format!("{rail}_A"))? * value(&format!("{rail}_V"))?)).collect();
    (!watts.is_empty()).then(|| watts.iter().sum::<f64>()).filter(|watts| watts.is_finite())
}

/// Measures until it is asked.
#[derive(Debug)]
pub struct Meter {
    sensor: Sensor,
    started: Instant,
    measuring: Measuring,
}

#[derive(Debug)]
enum Measuring {
    /// What each counter said at first.
    Counters(Vec<u64>),
    /// A thread that reads power, and gives what it read and when.
    Samples { ends: Arc<AtomicBool>, sampler: JoinHandle<Option<Vec<Sample>>> },
}

/// Watts at a time.
type Sample = (Instant, f64);

impl Meter {
    /// Begins to measure, where the board has something to do so.
    pub fn start(root: &Path) -> Option<Self> {
        let sensor = Sensor::find(root)?;
        let measuring = if let Sensor::Counters(counters) = &sensor {
            Measuring::Counters(counters.iter().map(|(file, _)| number(file)).collect::<Option<_>>()?)
        } else {
            let ends = Arc::new(AtomicBool::new(false));
            let (sensor, asked) = (sensor.clone(), Arc::clone(&ends));
            let sampler = thread::Builder::new().name("energy".to_owned());
            let sampler = sampler.spawn(move || samples(&sensor, &asked)).ok()?;
            Measuring::Samples { ends, sampler }
        };
        Some(Self { sensor, started: Instant::now(), measuring })
    }

    /// What was used since; `None` where the sensor fell silent, or the time was too short for it.
    pub fn end(self) -> Option<Energy> {
        let ended = Instant::now();
        let joules = match (self.measuring, &self.sensor) {
            (Measuring::Counters(first), Sensor::Counters(counters)) => {
                let used = counters.iter().zip(first).map(|((file, range), first)| {
                    let now = number(file)?;
                    // It may have begun anew.
                    let used =
                        now.checked_sub(first).or_else(|| range.map(|range| range - first.min(range) + now));
                    Some(used? as f64 / 1e6)
                });
                used.sum::<Option<f64>>()?
            }
            (Measuring::Counters(_), _) => return None,
            (Measuring::Samples { ends, sampler }, _) => {
                ends.store(true, Ordering::Relaxed);
                sampler.thread().unpark();
                integral(&sampler.join().ok()??, self.started, ended)?
            }
        };
        let watts = joules / (ended - self.started).as_secs_f64();
        watts.is_finite().then(|| Energy { joules, watts, sensor: self.sensor.name() })
    }
}

/// Power from now until it ends; `None` where it cannot be read once.
fn samples(sensor: &Sensor, ends: &AtomicBool) -> Option<Vec<Sample>> {
    let mut samples = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let watts = sensor.read()?;
        samples.push((Instant::now(), watts));
        if samples.len() >= SAMPLES_MAX {
            // Days: every second sample tells as much.
            let mut place = 0;
            samples.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
        thread::park_timeout(sensor.every());
    }
    Some(samples)
}

/// Joules between two times, power being a line from each sample to the next; `None` with fewer than [`SAMPLES_MIN`].
fn integral(samples: &[Sample], from: Instant, to: Instant) -> Option<f64> {
    let within: Vec<Sample> = samples.iter().copied().filter(|(at, _)| *at <= to).collect();
    let (first, last) = (*within.first()?, *within.last()?);
    if within.len() < SAMPLES_MIN {
        return None;
    }
    let between = within.windows(2).map(|pair| {
        let [(from, before), (to, after)] = [pair[0], pair[1]];
        (before + after) / 2.0 * (to - from).as_secs_f64()
    });
    let seconds = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier).as_secs_f64();
    Some(between.sum::<f64>() + first.1 * seconds(first.0, from) + last.1 * seconds(to, last.0))
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path()).take(256).collect();
    folders.sort();
    folders
}

fn text(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

fn number(file: &Path) -> Option<u64> {
    text(file)?.parse().ok()
}

fn signed(file: &Path) -> Option<i64> {
    text(file)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn lay_out(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    fn used(root: &Path, change: impl FnOnce()) -> Option<Energy> {
        let meter = Meter::start(root)?;
        thread::sleep(Duration::from_millis(450));
        change();
        meter.end()
    }

    #[test]
    fn the_peak_of_this_very_program_is_known() {
        let peak = peak_memory(Path::new("/")).unwrap();
        assert!((1 << 20..1 << 40).contains(&peak), "{peak}");
        assert_eq!(peak_memory(Path::new("/no/such/folder")), None);
    }

    #[test]
    fn a_counter_gives_what_it_grew_by_and_may_begin_anew() {
        let place = "sys/class/powercap/intel-rapl:0";
        let root = lay_out(&[
            (&format!("{place}/name"), "package-0"),
            (&format!("{place}/energy_uj"), "9000000"),
            (&format!("{place}/max_energy_range_uj"), "10000000"),
            ("sys/class/hwmon/hwmon0/power1_input", "5000000"),
        ]);
        let to = |text: &str| fs::write(root.path().join(place).join("energy_uj"), text).unwrap();
        let found = used(root.path(), || to("9500000")).unwrap();
        assert!((found.joules - 0.5).abs() < 1e-9 && found.sensor.contains("package-0"), "{found:?}");
        to("9000000");
        let found = used(root.path(), || to("1500000")).unwrap();
        assert!((found.joules - 2.5).abs() < 1e-9, "{found:?}");
        assert!(found.watts > 2.0 && found.watts < 10.0, "{found:?}");
        // A sensor of root's alone is none to others.
        to("no number");
        assert!(used(root.path(), || {}).unwrap().sensor.contains("power1_input"));
    }

    #[test]
    fn power_is_added_up_over_the_time() {
        for (files, watts) in [
            (&[("sys/class/hwmon/hwmon1/power1_input", "3000000")][..], 3.0),
            (&[("sys/class/hwmon/hwmon1/power2_average", "2000000")], 2.0),
            (
                &[
                    ("sys/class/power_supply/usb/power_now", "1500000"),
                    ("sys/class/power_supply/usb/online", "1"),
                ],
                1.5,
            ),
            // Out of a battery the current is negative on some.
            (
                &[
                    ("sys/class/power_supply/bat/type", "Battery"),
                    ("sys/class/power_supply/bat/status", "Discharging"),
                    ("sys/class/power_supply/bat/current_now", "-500000"),
                    ("sys/class/power_supply/bat/voltage_now", "4000000"),
                ],
                2.0,
            ),
        ] {
            let found = used(lay_out(files).path(), || {}).unwrap();
            // All of the time, whatever it was.
            assert!((found.watts - watts).abs() < 0.1 * watts, "{files:?}: {found:?}");
            assert!(found.joules > 0.4 * watts, "{files:?}: {found:?}");
        }
    }

    #[test]
    fn a_raspberry_pi_5_is_asked_by_its_program() {
        let printed = "  3V7_WL_SW_A current(0)=0.05A\n  VDD_CORE_A current(7)=2.00A\n  3V7_WL_SW_V volt(8)=4.00V\n\
                       VDD_CORE_V volt(15)=0.75V\n EXT5V_V volt(24)=5.1V\n";
        assert!((watts_of_pmic(printed).unwrap() - 1.7).abs() < 1e-9);
        for nothing in
            ["", "error=1 error_msg=\"Command not registered\"", "X_A current(0)=nanA\nX_V volt(1)=1V"]
        {
            assert_eq!(watts_of_pmic(nothing), None, "{nothing}");
        }
        let root = lay_out(&[("usr/bin/vcgencmd", &format!("#!/bin/sh\ncat <<END\n{printed}END"))]);
        let program = root.path().join("usr/bin/vcgencmd");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        // A program is not started as often as a file is read.
        let found = used(root.path(), || thread::sleep(3 * PROGRAM_EVERY)).unwrap();
        assert!((found.watts - 1.7).abs() < 0.2 && found.sensor.contains("pmic"), "{found:?}");
    }

    #[test]
    fn power_between_samples_is_a_line_and_what_is_read_too_late_is_nothing() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let samples = [(at(100), 2.0), (at(200), 4.0), (at(400), 4.0), (at(600), 100.0)];
        let joules = integral(&samples, start, at(500)).unwrap();
        assert!((joules - (0.2 + 0.3 + 0.8 + 0.4)).abs() < 1e-9, "{joules}");
        assert_eq!(integral(&samples[..2], start, at(500)), None, "too few");
        assert_eq!(integral(&samples, start, at(300)), None, "too few in time");
    }

    #[test]
    fn a_sensor_that_falls_silent_gives_nothing() {
        let root = lay_out(&[("sys/class/hwmon/hwmon1/power1_input", "3000000")]);
        let meter = Meter::start(root.path()).unwrap();
        thread::sleep(Duration::from_millis(350));
        fs::remove_file(root.path().join("sys/class/hwmon/hwmon1/power1_input")).unwrap();
        thread::sleep(Duration::from_millis(250));
        assert_eq!(meter.end(), None);
    }

    #[test]
    fn a_board_that_measures_nothing_has_no_energy() {
        for files in [
            &[("sys/class/power_supply/ac/online", "1"), ("sys/class/hwmon/hwmon0/temp1_input", "1")][..],
            // Neither a graphics card's power nor what goes into a battery is what a photo takes.
            &[
                ("sys/class/hwmon/hwmon0/name", "amdgpu"),
                ("sys/class/hwmon/hwmon0/power1_average", "9000000"),
            ],
            &[
                ("sys/class/power_supply/bat/type", "Battery"),
                ("sys/class/power_supply/bat/status", "Charging"),
                ("sys/class/power_supply/bat/power_now", "9000000"),
            ],
            &[("sys/class/power_supply/ac/online", "1"), ("sys/class/power_supply/ac/power_now", "0")],
        ] {
            assert!(Meter::start(lay_out(files).path()).is_none(), "{files:?}");
        }
    }
}
