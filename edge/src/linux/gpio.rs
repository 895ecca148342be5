//! Lines of GPIO chips, through the kernel's character devices: a line to be set, and a button.
//!
//! Which level means lit or pressed is the core's affair ([`crate::pins`]): the kernel is asked for levels as they are.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glimpse_protocol::device::GpioLine;
use gpio_cdev::{Chip, EventRequestFlags, EventType, Line, LineEventHandle, LineRequestFlags};
use linux_embedded_hal::{CdevPin, CdevPinError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::pins::{Active, Debounce, SETTLE};

/// Where the kernel has its chips.
const DEV: &str = "/dev";

/// What the kernel says of a line that we hold.
pub(crate) const CONSUMER: &str = "glimpse-edge";

/// Edges that are looked at in one go. The kernel keeps sixteen; more means a line that is noise.
const EDGES_MAX: usize = 256;

/// Why a line cannot be used.
#[derive(Debug, Error)]
pub enum GpioError {
    /// There is no such chip.
    #[error("there is no {}: {}", path.display(), told_chips(.chips))]
    NoChip {
        /// The chip.
        path: PathBuf,
        /// Those that are there.
        chips: Vec<String>,
    },
    /// We may not use it.
    #[error("no permission for {}: {}", path.display(), permission(path, group.as_deref()))]
    Denied {
        /// The chip.
        path: PathBuf,
        /// The group that may.
        group: Option<String>,
    },
    /// It is something else.
    #[error("{} is no GPIO chip: the lines of a chip are given as gpiochipN:LINE", .0.display())]
    NoGpio(PathBuf),
    /// The chip has fewer lines.
    #[error("{line}: the chip has lines 0 to {}: see `gpioinfo`", lines.saturating_sub(1))]
    NoLine {
        /// The line.
        line: GpioLine,
        /// How many there are.
        lines: u32,
    },
    /// Somebody else has the line.
    #[error("{line} is taken by {user}: give another line, or end or unload what holds it (see `gpioinfo`)")]
    Busy {
        /// The line.
        line: GpioLine,
        /// Who.
        user: String,
    },
    /// Anything else.
    #[error("{line} cannot be used")]
    Other {
        /// The line.
        line: GpioLine,
        /// What the kernel said.
        #[source]
        source: gpio_cdev::Error,
    },
    /// A pin that cannot be set or read.
    #[error("a line cannot be set or read")]
    Pin(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn told_chips(found: &[String]) -> String {
    if found.is_empty() {
        "this machine has no GPIO chip, or its driver is not loaded".to_owned()
    } else {
        format!("there are {}: see `gpiodetect`", found.join(", "))
    }
}

/// What to do where a device node is closed to us.
pub(crate) fn permission(path: &Path, group: Option<&str>) -> String {
    match group {
        Some(group) if group != "root" => format!(
            "let the user that runs this program be in the group {group}: `usermod -aG {group} USER`, or \
             SupplementaryGroups={group} in its unit; then start it again"
        ),
        _ => format!(
            "it belongs to root alone: a udev rule gives it to a group, such as \
             KERNEL==\"{}\", GROUP=\"gpio\", MODE=\"0660\"",
            path.file_name().map_or("gpiochip*".into(), |name| name.to_string_lossy())
        ),
    }
}

/// The name of the group that a file belongs to.
pub(crate) fn group_of(path: &Path) -> Option<String> {
    let group = fs::metadata(path).ok()?.gid();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)?.parse() == Ok(group)).then(|| name.to_owned())
    });
    Some(name.unwrap_or_else(|| group.to_string()))
}

impl GpioError {
    pub(super) fn from_pin(error: CdevPinError) -> Self {
        Self::Pin(Box::new(error))
    }

    fn from_open(dev: &Path, path: PathBuf, line: &GpioLine, error: gpio_cdev::Error) -> Self {
        let kind = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .map(io::Error::kind);
        match kind {
            Some(io::ErrorKind::NotFound) => Self::NoChip { path, chips: chips_in(dev) },
            Some(io::ErrorKind::PermissionDenied) => {
                let group = group_of(&path);
                Self::Denied { path, group }
            }
            Some(_) => Self::Other { line: line.clone(), source: error },
            // It was opened, and knows nothing of chips.
            None => Self::NoGpio(path),
        }
    }

    fn from_request(line: &GpioLine, of: &Line, error: gpio_cdev::Error) -> Self {
        match of.info() {
            Ok(info) if info.is_used() => {
                let user = info.consumer().unwrap_or("the kernel or another program").to_owned();
                Self::Busy { line: line.clone(), user }
            }
            _ => Self::Other { line: line.clone(), source: error },
        }
    }
}

fn chips_in(dev: &Path) -> Vec<String> {
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("gpiochip"))
        .collect();
    names.sort_unstable();
    names
}

/// Opens the chip and finds the line, without taking it.
fn find(dev: &Path, line: &GpioLine) -> Result<Line, GpioError> {
    let path = dev.join(format!("gpiochip{}", line.chip()));
    // A node that is none would be waited for, such as a pipe without a writer.
    if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() || metadata.is_dir()) {
        return Err(GpioError::NoGpio(path));
    }
    let mut chip = Chip::new(&path).map_err(|error| GpioError::from_open(dev, path.clone(), line, error))?;
    if line.line() >= chip.num_lines() {
        return Err(GpioError::NoLine { line: line.clone(), lines: chip.num_lines() });
    }
    chip.get_line(line.line()).map_err(|source| GpioError::Other { line: line.clone(), source })
}

/// Whether the line is there, and free; takes nothing.
///
/// # Errors
/// [`GpioError`].
pub fn check(line: &GpioLine) -> Result<(), GpioError> {
    let found = find(Path::new(DEV), line)?;
    match found.info() {
        Ok(info) if info.is_used() => {
            let user = info.consumer().unwrap_or("the kernel or another program").to_owned();
            Err(GpioError::Busy { line: line.clone(), user })
        }
        Ok(_) => Ok(()),
        Err(source) => Err(GpioError::Other { line: line.clone(), source }),
    }
}

/// The level at which a lamp is lit, or a button pressed.
pub const fn active(line: &GpioLine) -> Active {
    if line.is_active_low() { Active::Low } else { Active::High }
}

/// Takes a line to be set, for a lamp that is out.
///
/// # Errors
/// [`GpioError`].
pub fn output(line: &GpioLine) -> Result<CdevPin, GpioError> {
    let found = find(Path::new(DEV), line)?;
    let out = u8::from(line.is_active_low());
    let handle = found
        .request(LineRequestFlags::OUTPUT, out, CONSUMER)
        .map_err(|error| GpioError::from_request(line, &found, error))?;
    CdevPin::new(handle).map_err(|source| GpioError::Other { line: line.clone(), source })
}

/// A button on a line.
pub struct ButtonLine {
    presses: Presses<LineEdges>,
}

impl ButtonLine {
    /// Takes the line, and listens from now on.
    ///
    /// # Errors
    /// [`GpioError`].
    pub fn open(line: &GpioLine) -> Result<Self, GpioError> {
        let found = find(Path::new(DEV), line)?;
        let events = found
            .events(LineRequestFlags::INPUT, EventRequestFlags::BOTH_EDGES, CONSUMER)
            .map_err(|error| GpioError::from_request(line, &found, error))?;
        Ok(Self { presses: Presses::new(LineEdges { line: line.clone(), events }, SETTLE)? })
    }

    /// Waits for a press, at most so long; whether there was one since the last call. A press while nobody waited counts,
    /// and several of them count as one.
    ///
    /// # Errors
    /// A line that cannot be read any more, such as that of a chip that was unplugged.
    pub fn pressed(&mut self, wait: Duration) -> Result<bool, GpioError> {
        self.presses.pressed(wait)
    }
}

/// What a button's line tells, and the clock that its times are of.
trait Edges {
    type Error;

    fn now(&self) -> Duration;

    /// Whether it is pressed now, bouncing or not.
    fn is_pressed(&self) -> Result<bool, Self::Error>;

    /// The next edge, and when it was; waits for it at most so long.
    fn next(&mut self, wait: Duration) -> Result<Option<(bool, Duration)>, Self::Error>;
}

/// Presses by edges. An edge has its own time, so that a press is known as one however late it is heard of.
struct Presses<E> {
    edges: E,
    debounce: Debounce,
}

impl<E: Edges> Presses<E> {
    fn new(edges: E, settle: Duration) -> Result<Self, E::Error> {
        let is_pressed = edges.is_pressed()?;
        Ok(Self { edges, debounce: Debounce::new(settle, is_pressed) })
    }

    fn pressed(&mut self, wait: Duration) -> Result<bool, E::Error> {
        let deadline = self.edges.now().saturating_add(wait);
        let mut is_told = false;
        let mut seen = 0;
        loop {
            let now = self.edges.now();
            let until = self.debounce.due().map_or(deadline, |due| due.min(deadline));
            let wait = if is_told { Duration::ZERO } else { until.saturating_sub(now) };
            if let Some((is_pressed, at)) = self.edges.next(wait)? {
                is_told |= self.debounce.is(is_pressed, at);
                seen += 1;
                if seen < EDGES_MAX || !(is_told || now >= deadline) {
                    continue;
                }
            }
            // Nothing more waits. The kernel may have dropped edges: the line itself knows how it is.
            let is_pressed = self.edges.is_pressed()?;
            let now = self.edges.now();
            is_told |= self.debounce.is(is_pressed, now);
            if is_told || now >= deadline {
                return Ok(is_told);
            }
        }
    }
}

struct LineEdges {
    line: GpioLine,
    events: LineEventHandle,
}

impl LineEdges {
    fn is_on(&self, is_high: bool) -> bool {
        is_high != self.line.is_active_low()
    }

    fn failed(&self, source: gpio_cdev::Error) -> GpioError {
        GpioError::Other { line: self.line.clone(), source }
    }
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Kernels before 5.7 tell the time of the day.
fn monotonic(at: Duration, now: Duration, time_of_day: impl Fn() -> Duration) -> Duration {
    if at <= now { at } else { now.saturating_sub(time_of_day().saturating_sub(at)) }
}

impl Edges for LineEdges {
    type Error = GpioError;

    fn now(&self) -> Duration {
        clock(ClockId::Monotonic)
    }

    fn is_pressed(&self) -> Result<bool, GpioError> {
        let level = self.events.get_value().map_err(|source| self.failed(source))?;
        Ok(self.is_on(level != 0))
    }

    fn next(&mut self, wait: Duration) -> Result<Option<(bool, Duration)>, GpioError> {
        // An hour: more would not fit, and whoever waits asks again.
        let wait = wait.min(Duration::from_hours(1));
        let wait = Timespec::try_from(wait).unwrap_or_default();
        match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(GpioError::Pin(Box::new(io::Error::from(error)))),
        }
        let event = self.events.get_event();
        let event = event.map_err(|source| GpioError::Other { line: self.line.clone(), source })?;
        let at = monotonic(Duration::from_nanos(event.timestamp()), self.now(), || clock(ClockId::Realtime));
        Ok(Some((self.is_on(event.event_type() == EventType::RisingEdge), at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::convert::Infallible;

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// A line of which a test knows the future.
    struct Future {
        now: Cell<Duration>,
        is_pressed: Cell<bool>,
        edges: VecDeque<(u64, bool)>,
    }

    impl Future {
        fn of(edges: &[(u64, bool)]) -> Self {
            Self {
                now: Cell::default(),
                is_pressed: Cell::new(false),
                edges: edges.iter().copied().collect(),
            }
        }
    }

    impl Edges for Future {
        type Error = Infallible;

        fn now(&self) -> Duration {
            self.now.get()
        }

        fn is_pressed(&self) -> Result<bool, Infallible> {
            Ok(self.is_pressed.get())
        }

        fn next(&mut self, wait: Duration) -> Result<Option<(bool, Duration)>, Infallible> {
            let until = self.now.get() + wait;
            let Some((at, is_pressed)) = self.edges.pop_front_if(|(at, _)| ms(*at) <= until) else {
                self.now.set(until);
                return Ok(None);
            };
            self.now.set(self.now.get().max(ms(at)));
            self.is_pressed.set(is_pressed);
            Ok(Some((is_pressed, ms(at))))
        }
    }

    fn presses(edges: &[(u64, bool)]) -> Presses<Future> {
        let Ok(presses) = Presses::new(Future::of(edges), ms(20));
        presses
    }

    #[test]
    fn a_press_is_told_when_it_has_settled_and_once() {
        let mut button = presses(&[(100, true), (103, false), (105, true), (300, false)]);
        assert_eq!(button.pressed(ms(50)), Ok(false));
        assert_eq!(button.edges.now(), ms(50));
        assert_eq!(button.pressed(ms(1000)), Ok(true));
        assert_eq!(button.edges.now(), ms(125));
        assert_eq!(button.pressed(ms(1000)), Ok(false));
        assert_eq!(button.edges.now(), ms(1125));
    }

    #[test]
    fn presses_while_nobody_waits_count_as_one() {
        let mut button = presses(&[(100, true), (200, false), (300, true), (400, false), (900, true)]);
        button.edges.now.set(ms(600));
        assert_eq!(button.pressed(ms(0)), Ok(true));
        assert_eq!(button.edges.now(), ms(600));
        assert_eq!(button.pressed(ms(100)), Ok(false));
        assert_eq!(button.pressed(ms(1000)), Ok(true));
    }

    #[test]
    fn a_short_touch_is_no_press() {
        let mut button = presses(&[(100, true), (110, false)]);
        assert_eq!(button.pressed(ms(500)), Ok(false));
    }

    #[test]
    fn edges_that_the_kernel_dropped_are_made_up_by_the_level() {
        let mut button = presses(&[]);
        button.edges.is_pressed.set(true);
        assert_eq!(button.pressed(ms(10)), Ok(false), "it has only been seen now");
        assert_eq!(button.pressed(ms(30)), Ok(true));
        button.edges.is_pressed.set(false);
        assert_eq!(button.pressed(ms(30)), Ok(false));
    }

    #[test]
    fn a_line_that_is_noise_does_not_keep_the_caller() {
        let noise: Vec<(u64, bool)> = (0..10_000).map(|number| (number / 10, number % 2 == 0)).collect();
        let mut button = presses(&noise);
        assert_eq!(button.pressed(ms(50)), Ok(false));
        assert!(button.edges.now() < ms(100), "{:?}", button.edges.now());
    }

    #[test]
    fn times_of_the_day_become_times_since_the_start() {
        let day = Duration::from_secs(1_700_000_000);
        assert_eq!(monotonic(ms(900), ms(1000), || day), ms(900));
        assert_eq!(monotonic(Duration::from_millis(1_699_999_999_900), ms(1000), || day), ms(900));
        // A clock that was set back meanwhile.
        assert_eq!(monotonic(day, ms(1000), || Duration::ZERO), ms(1000));
    }

    fn refused(dev: &Path, text: &str) -> String {
        find(dev, &text.parse().unwrap()).expect_err("refused").to_string()
    }

    #[test]
    fn what_is_no_chip_is_told_with_those_that_are_there() {
        let dev = tempfile::tempdir().unwrap();
        let text = refused(dev.path(), "gpiochip0:1");
        assert!(text.contains("gpiochip0: this machine has no GPIO chip"), "{text}");
        fs::write(dev.path().join("gpiochip4"), "").unwrap();
        let text = refused(dev.path(), "gpiochip0:1");
        assert!(text.contains("there are gpiochip4"), "{text}");
        let text = refused(dev.path(), "gpiochip4:1");
        assert!(text.contains("gpiochip4 is no GPIO chip"), "{text}");
        // A node of another driver.
        std::os::unix::fs::symlink("/dev/null", dev.path().join("gpiochip5")).unwrap();
        let text = refused(dev.path(), "gpiochip5:1");
        assert!(text.contains("gpiochip5 is no GPIO chip"), "{text}");
    }

    #[test]
    fn a_closed_node_names_the_group_that_may() {
        let path = Path::new("/dev/gpiochip0");
        let text = GpioError::Denied { path: path.into(), group: Some("gpio".into()) }.to_string();
        assert!(text.contains("usermod -aG gpio"), "{text}");
        let text = GpioError::Denied { path: path.into(), group: Some("root".into()) }.to_string();
        assert!(text.contains("udev") && text.contains("KERNEL==\"gpiochip0\""), "{text}");
        assert_eq!(group_of(Path::new("/")).as_deref(), Some("root"));
    }
}
