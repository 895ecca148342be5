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
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How often a sensor of power is read.
const EVERY: Duration = Duration::from_millis(100);

/// How often, where a program has to be started for it.
const PROGRAM_EVERY: Duration = Duration::from_secs(1);

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

/// What a board measures.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sensor {
    /// A counter in millionths of a joule, and where it begins anew.
    Counter { energy: PathBuf, range: Option<u64> },
    /// Millionths of a watt.
    Power(PathBuf),
    /// Millionths of an ampere and of a volt.
    CurrentAndVoltage(PathBuf, PathBuf),
    /// A program that prints currents and voltages by name.
    Pmic(PathBuf),
}

impl Sensor {
    /// The first of those that are there, and can be read.
    fn find(root: &Path) -> Option<Self> {
        let classes = root.join("sys/class");
        Self::in_powercap(&classes.join("powercap"))
            .into_iter()
            .chain(folders(&classes.join("hwmon")).iter().flat_map(|folder| Self::in_hwmon(folder)))
            .chain(folders(&classes.join("power_supply")).iter().filter_map(|folder| Self::in_supply(folder)))
            .chain(["usr/bin/vcgencmd", "opt/vc/bin/vcgencmd"].map(|program| Self::Pmic(root.join(program))))
            .find(|sensor| sensor.read().is_some())
    }

    /// The whole system's counter, or the first processor's.
    fn in_powercap(powercap: &Path) -> Option<Self> {
        let named = |name: &str| {
            folders(powercap)
                .into_iter()
                .find(|folder| text(&folder.join("name")).is_some_and(|found| found == name))
        };
        let folder = named("psys").or_else(|| named("package-0"))?;
        let range = number(&folder.join("max_energy_range_uj"));
        Some(Self::Counter { energy: folder.join("energy_uj"), range })
    }

    fn in_hwmon(folder: &Path) -> Vec<Self> {
        let counter =
            |place: u32| Self::Counter { energy: folder.join(format!("energy{place}_input")), range: None };
        let average = |place: u32| Self::Power(folder.join(format!("power{place}_average")));
        let power = |place: u32| Self::Power(folder.join(format!("power{place}_input")));
        (1..=4).map(counter).chain((1..=4).map(average)).chain((1..=4).map(power)).collect()
    }

    fn in_supply(folder: &Path) -> Option<Self> {
        let power = folder.join("power_now");
        let (current, voltage) = (folder.join("current_now"), folder.join("voltage_now"));
        if number(&power).is_some() {
            Some(Self::Power(power))
        } else {
            voltage.exists().then_some(Self::CurrentAndVoltage(current, voltage))
        }
    }

    /// Joules so far of a counter, watts now of anything else.
    fn read(&self) -> Option<f64> {
        match self {
            Self::Counter { energy: file, .. } | Self::Power(file) => Some(number(file)? as f64 / 1e6),
            Self::CurrentAndVoltage(current, voltage) => {
                Some(signed(current)?.abs() as f64 / 1e6 * signed(voltage)?.abs() as f64 / 1e6)
            }
            Self::Pmic(program) => {
                let output = Command::new(program).arg("pmic_read_adc").output().ok()?;
                watts_of_pmic(&String::from_utf8_lossy(&output.stdout))
            }
        }
    }

    fn every(&self) -> Duration {
        if matches!(self, Self::Pmic(_)) { PROGRAM_EVERY } else { EVERY }
    }

    fn name(&self) -> String {
        match self {
            Self::Counter { energy: file, .. } | Self::Power(file) | Self::CurrentAndVoltage(file, _) => {
                let name = file.parent().and_then(|folder| text(&folder.join("name")));
                name.map_or_else(|| file.display().to_string(), |name| format!("{name} ({})", file.display()))
            }
            Self::Pmic(program) => format!("{} pmic_read_adc", program.display()),
        }
    }
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
    /// What a counter said at first.
    first: Option<f64>,
    ends: Arc<AtomicBool>,
    /// Joules, of a sensor of power.
    sampler: Option<JoinHandle<f64>>,
}

impl Meter {
    /// Begins to measure, where the board has something to do so.
    pub fn start(root: &Path) -> Option<Self> {
        let sensor = Sensor::find(root)?;
        let first = sensor.read();
        let ends = Arc::new(AtomicBool::new(false));
        let is_counter = matches!(sensor, Sensor::Counter { .. });
        let sampler = (!is_counter).then(|| {
            let (sensor, ends) = (sensor.clone(), Arc::clone(&ends));
            thread::Builder::new().name("energy".to_owned()).spawn(move || integrate(&sensor, &ends))
        });
        Some(Self { sensor, started: Instant::now(), first, ends, sampler: sampler.transpose().ok()? })
    }

    /// What was used since; `None` where the sensor fell silent.
    pub fn end(self) -> Option<Energy> {
        self.ends.store(true, Ordering::Relaxed);
        let joules = match (self.sampler, &self.sensor) {
            (Some(sampler), _) => sampler.join().ok()?,
            (None, Sensor::Counter { range, .. }) => {
                let used = self.sensor.read()? - self.first?;
                // It began anew.
                if used < 0.0 { used + range.map(|range| range as f64 / 1e6)? } else { used }
            }
            (None, _) => return None,
        };
        let seconds = self.started.elapsed().as_secs_f64();
        let watts = joules / seconds;
        watts.is_finite().then(|| Energy { joules, watts, sensor: self.sensor.name() })
    }
}

/// Joules until it ends: each power stands for the time since the one before.
fn integrate(sensor: &Sensor, ends: &AtomicBool) -> f64 {
    let (mut joules, mut last) = (0.0, Instant::now());
    loop {
        let is_last = ends.load(Ordering::Relaxed);
        let watts = sensor.read();
        let now = Instant::now();
        joules += watts.unwrap_or(0.0) * (now - last).as_secs_f64();
        last = now;
        if is_last {
            return joules;
        }
        let until = now + sensor.every();
        while !ends.load(Ordering::Relaxed) && Instant::now() < until {
            thread::sleep(EVERY.min(until.saturating_duration_since(Instant::now())));
        }
    }
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
        thread::sleep(Duration::from_millis(250));
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
            (&[("sys/class/power_supply/bat/power_now", "1500000")], 1.5),
            // Out of a battery the current is negative on some.
            (
                &[
                    ("sys/class/power_supply/bat/current_now", "-500000"),
                    ("sys/class/power_supply/bat/voltage_now", "4000000"),
                ],
                2.0,
            ),
        ] {
            let found = used(lay_out(files).path(), || {}).unwrap();
            // All of the time, whatever it was.
            assert!((found.watts - watts).abs() < 0.1 * watts, "{files:?}: {found:?}");
            assert!(found.joules > 0.2 * watts, "{files:?}: {found:?}");
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
        let found = used(root.path(), || {}).unwrap();
        assert!((found.watts - 1.7).abs() < 0.2 && found.sensor.contains("pmic"), "{found:?}");
    }

    #[test]
    fn a_board_that_measures_nothing_has_no_energy() {
        let root = lay_out(&[
            ("sys/class/power_supply/ac/online", "1"),
            ("sys/class/hwmon/hwmon0/temp1_input", "1"),
        ]);
        assert!(Meter::start(root.path()).is_none());
    }
}
