//! A Raspberry Pi's camera, by the program that its system brings: `rpicam-still`, in older ones `libcamera-still`.
//!
//! A process a photo: it starts the camera, lets exposure and white balance settle, writes a JPEG to its standard output and
//! ends. That takes some seconds, and needs no C++ library of ours. It may hang or write without end; both end here, by a
//! time limit and a bound, with all its child processes.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use glimpse_embedder::{PhotoError, decode_photo};
use glimpse_protocol::device::CameraSize;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use thiserror::Error;

use super::picture::{Photo, Picture};
use super::unix_time;
use crate::linux::host;
use crate::ports::{Error, ErrorKind};

/// The programs, the newer one first. They take the same arguments.
const PROGRAMS: [&str; 2] = ["rpicam-still", "libcamera-still"];

/// How long exposure and white balance may settle, in milliseconds.
const SETTLES_MS: &str = "1500";

/// The longest that a photo may take, on the slowest board.
const PHOTO_WITHIN: Duration = Duration::from_secs(30);

/// The largest JPEG: more than twice that of a camera with 64 megapixels.
const JPEG_BYTES_MAX: u64 = 48 << 20;

/// What is kept of its messages.
const MESSAGES_BYTES_MAX: usize = 4096;

/// Why there is no photo.
#[derive(Debug, Error)]
pub enum RpicamError {
    /// None of the programs is there.
    #[error(
        "there is neither {} nor {}: install rpicam-apps, or name a USB camera with camera = \"v4l2:/dev/video0\"",
        PROGRAMS[0], PROGRAMS[1]
    )]
    NoProgram,
    /// It cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It failed, or its camera did.
    #[error("{program} took no photo ({status}): {said}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The last line of its messages.
        said: String,
    },
    /// It took too long, and was ended.
    #[error(
        "{program} took no photo within {seconds} s, and was ended: is the camera's cable in its place? it said: {said}"
    )]
    TooSlow {
        /// The program.
        program: PathBuf,
        /// How long it was given.
        seconds: u64,
        /// The last line of its messages.
        said: String,
    },
    /// It wrote more than a photo, and was ended.
    #[error("{program} wrote more than {} MiB, which is no photo, and was ended", JPEG_BYTES_MAX >> 20)]
    TooLarge {
        /// The program.
        program: PathBuf,
    },
    /// What it wrote is no photo.
    #[error("what {program} wrote is no photo; it said: {said}")]
    NoPhoto {
        /// The program.
        program: PathBuf,
        /// The last line of its messages.
        said: String,
        /// Why.
        #[source]
        source: PhotoError,
    },
}

impl RpicamError {
    /// Whether another program has the camera, which libcamera gives to one at a time.
    pub fn is_busy(&self) -> bool {
        let says = |said: &str| {
            ["failed to acquire camera", "in use by another process"].iter().any(|says| said.contains(says))
        };
        matches!(self, Self::Failed { said, .. } if says(said))
    }
}

impl Error for RpicamError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoProgram => ErrorKind::Configuration,
            _ => ErrorKind::Unavailable,
        }
    }
}

/// A Raspberry Pi's camera.
#[derive(Debug)]
pub struct RpicamCamera {
    size: CameraSize,
    within: Duration,
    /// Where programs are looked for, in place of `PATH`.
    folders: Option<Vec<PathBuf>>,
    taken: u64,
}

impl RpicamCamera {
    /// Photos of this size, as near as the sensor comes.
    pub const fn new(size: CameraSize) -> Self {
        Self { size, within: PHOTO_WITHIN, folders: None, taken: 0 }
    }

    /// A photo, taken now; takes some seconds.
    ///
    /// # Errors
    /// [`RpicamError`]
    pub fn photo(&mut self) -> Result<Photo, RpicamError> {
        let program = self.program()?;
        let mut command = Command::new(&program);
        command.args(["--nopreview", "--encoding", "jpg", "--timeout", SETTLES_MS]);
        command.args(["--width", &self.size.width.to_string(), "--height", &self.size.height.to_string()]);
        command.args(["--output", "-"]);
        let Output { jpeg, said } = output_of(command, &program, self.within)?;
        let image = decode_photo(&jpeg).map_err(|source| RpicamError::NoPhoto { program, said, source })?;
        self.taken += 1;
        let picture = Picture::from(image);
        Ok(Photo { name: format!("rpicam #{}", self.taken), taken_at: unix_time(), picture })
    }

    /// Looked for each time: it may be installed meanwhile, and that costs little beside a photo.
    fn program(&self) -> Result<PathBuf, RpicamError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.folders.clone().unwrap_or_else(|| std::env::split_paths(&path).collect());
        let named = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        PROGRAMS.into_iter().find_map(named).ok_or(RpicamError::NoProgram)
    }
}

struct Output {
    jpeg: Vec<u8>,
    said: String,
}

/// What comes from the threads that read the program's output.
enum Came {
    Jpeg(io::Result<Vec<u8>>),
    Said(String),
}

/// Runs a program, at most for `within`, and takes at most [`JPEG_BYTES_MAX`] from it.
fn output_of(mut command: Command, program: &Path, within: Duration) -> Result<Output, RpicamError> {
    let start = |source| RpicamError::Start { program: program.to_owned(), source };
    // A group of its own, so that what it starts ends with it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut running = Running { child: host::start(&mut command).map_err(start)?, is_over: false };
    let deadline = Instant::now() + within;
    let (sender, came) = channel();
    if let (Some(stdout), Some(stderr)) = (running.child.stdout.take(), running.child.stderr.take()) {
        read(sender.clone(), move || {
            let mut jpeg = Vec::new();
            Came::Jpeg(stdout.take(JPEG_BYTES_MAX + 1).read_to_end(&mut jpeg).map(|_| jpeg))
        })
        .map_err(start)?;
        read(sender, move || Came::Said(last_line(stderr))).map_err(start)?;
    }
    let (jpeg, mut said) = collect(&came, deadline);
    let is_too_large = jpeg.as_ref().is_some_and(|jpeg| jpeg.len() as u64 > JPEG_BYTES_MAX);
    let ended = !is_too_large && running.ends_by(deadline);
    let status = running.end().map_err(start)?;
    if said.is_empty() {
        // Its messages end with it.
        said = collect(&came, Instant::now() + Duration::from_secs(1)).1;
    }
    let program = program.to_owned();
    let said = if said.is_empty() { "nothing".to_owned() } else { said };
    match (jpeg, ended) {
        _ if is_too_large => Err(RpicamError::TooLarge { program }),
        (Some(jpeg), true) if status.success() => Ok(Output { jpeg, said }),
        (_, true) => Err(RpicamError::Failed { program, status: status.to_string(), said }),
        (_, false) => Err(RpicamError::TooSlow { program, seconds: within.as_secs(), said }),
    }
}

/// Reads in a thread of its own: a program that writes to both would wait for ever for one that reads one of them.
fn read(sender: Sender<Came>, work: impl FnOnce() -> Came + Send + 'static) -> io::Result<()> {
    // Nobody listens any more where the program was given up.
    let work = move || drop(sender.send(work()));
    thread::Builder::new().name("rpicam".to_owned()).spawn(work).map(drop)
}

/// The JPEG, where it comes in time, and the last message, where it has come by then.
fn collect(came: &Receiver<Came>, deadline: Instant) -> (Option<Vec<u8>>, String) {
    let (mut jpeg, mut said) = (None, String::new());
    loop {
        match came.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Came::Jpeg(read)) => {
                jpeg = read.ok();
                if jpeg.as_ref().is_none_or(|jpeg| jpeg.len() as u64 > JPEG_BYTES_MAX) {
                    return (jpeg, said);
                }
            }
            Ok(Came::Said(text)) => said = text,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return (jpeg, said),
        }
    }
}

/// The last line that says something, of whatever length the text is.
fn last_line(mut stderr: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let surplus = kept.len().saturating_sub(MESSAGES_BYTES_MAX);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// A program, which ends with this value, and all that it has started.
struct Running {
    child: Child,
    is_over: bool,
}

/// How often it is asked whether it has ended.
const ASKED: Duration = Duration::from_millis(10);

impl Running {
    /// Whether it ends in time. It is not waited for by that: its number, and its group's, stay its own.
    fn ends_by(&self, deadline: Instant) -> bool {
        let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) else { return false };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while let Ok(None) = waitid(WaitId::Pid(pid), options) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(ASKED);
        }
        true
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // Fails where all of it has ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.is_over = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            // Nobody is there to hear of it.
            let _ = self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mjpeg::tests::jpeg;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    /// A folder with a shell script under the name of a program.
    fn stand_in(name: &str, script: &str) -> (tempfile::TempDir, RpicamCamera) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("photo.jpg"), jpeg([64, 48], 120)).unwrap();
        let path = dir.path().join(name);
        let script = format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.path().display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let camera = RpicamCamera {
            folders: Some(vec![dir.path().join("absent"), dir.path().to_owned()]),
            ..RpicamCamera::new(CameraSize { width: 640, height: 480 })
        };
        (dir, camera)
    }

    #[test]
    fn a_photo_comes_from_whichever_program_is_there() {
        for name in PROGRAMS {
            let script = "echo \"$@\" > arguments; echo noise >&2; cat photo.jpg";
            let (dir, mut camera) = stand_in(name, script);
            let photo = camera.photo().unwrap();
            assert_eq!((photo.name.as_str(), photo.picture.size()), ("rpicam #1", [64, 48]));
            assert_eq!(camera.photo().unwrap().name, "rpicam #2");
            let arguments = fs::read_to_string(dir.path().join("arguments")).unwrap();
            assert_eq!(
                arguments.trim(),
                "--nopreview --encoding jpg --timeout 1500 --width 640 --height 480 --output -"
            );
        }
    }

    #[test]
    fn a_failure_says_what_the_program_said_last() {
        let (_dir, mut camera) = stand_in(
            PROGRAMS[0],
            "echo one >&2; echo 'ERROR: *** no cameras available ***' >&2; echo >&2; exit 255",
        );
        let error = camera.photo().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("rpicam-still") && text.contains("255"), "{text}");
        assert!(text.ends_with("ERROR: *** no cameras available ***") && !error.is_busy(), "{text}");

        let busy =
            "echo 'ERROR: *** failed to acquire camera /base/soc/i2c0mux/i2c@1/imx219@10 ***' >&2; exit 255";
        let (_dir, mut camera) = stand_in(PROGRAMS[0], busy);
        assert!(camera.photo().unwrap_err().is_busy());
    }

    #[test]
    fn a_program_that_is_missing_is_named_for_good() {
        let mut camera = RpicamCamera {
            folders: Some(vec!["/no/such/folder".into()]),
            ..RpicamCamera::new(CameraSize { width: 640, height: 480 })
        };
        let error = camera.photo().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("libcamera-still"), "{error}");
    }

    /// Whether a process of this number is there, and no zombie.
    fn is_alive(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let (dir, mut camera) = stand_in(
            PROGRAMS[0],
            "sleep 1000 & echo $! > child; echo $$ > self; echo waiting >&2; sleep 1000",
        );
        camera.within = Duration::from_millis(1500);
        let error = camera.photo().unwrap_err();
        assert!(matches!(&error, RpicamError::TooSlow { said, .. } if said == "waiting"), "{error}");
        for name in ["child", "self"] {
            let pid = fs::read_to_string(dir.path().join(name)).unwrap();
            // The kernel takes a moment to end what was killed.
            let ended = (0..500).any(|_| {
                thread::sleep(Duration::from_millis(10));
                !is_alive(&pid)
            });
            assert!(ended, "{name} lives on");
        }
    }

    #[test]
    fn a_program_that_ends_and_leaves_its_pipe_to_a_child_does_not_hang() {
        let (_dir, mut camera) = stand_in(PROGRAMS[0], "cat photo.jpg; sleep 1000 & exit 0");
        camera.within = Duration::from_millis(1500);
        let error = camera.photo().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_flood_is_cut_off() {
        let (_dir, mut camera) = stand_in(PROGRAMS[0], "cat /dev/zero");
        let error = camera.photo().unwrap_err();
        assert!(matches!(error, RpicamError::TooLarge { .. }), "{error}");
        // And one of messages, whose end is kept.
        let script =
            "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the end >&2; cat photo.jpg; exit 3";
        let (_dir, mut camera) = stand_in(PROGRAMS[0], script);
        let error = camera.photo().unwrap_err();
        assert!(error.to_string().ends_with("the end"), "{error}");
    }

    #[test]
    fn what_is_no_photo_is_told_with_what_the_program_said() {
        let (_dir, mut camera) = stand_in(PROGRAMS[0], "echo no photo; echo 'sensor off' >&2");
        let error = camera.photo().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().ends_with("sensor off"), "{error}");
    }
}
