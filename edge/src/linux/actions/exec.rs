//! A program that is given each outcome, as JSON on its standard input.
//!
//! No shell, and an environment of four variables. It is the leader of a process group of its own. When it has ended, or has
//! taken too long, what is left of the group is killed: a device that runs for months must not gather processes. What it writes
//! to standard error comes into our log, of much only the end; what it writes to standard output goes nowhere, since ours is data.
//!
//! One thread does it all: both pipes are without blocking, and looked at together.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use thiserror::Error;

use super::queue::Queue;
use crate::linux::host;
use crate::linux::output::{chain, printable};

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked at whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What is kept of its standard error: the end.
const STDERR_BYTES_MAX: usize = 2048;
const STDERR_LINES_MAX: usize = 8;

/// What of our environment it sees. Not, for one, what a service manager put there for us alone.
const VARIABLES: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not do what it was to do.
#[derive(Debug, Error)]
pub enum HookError {
    /// It is not there, or cannot be looked at.
    #[error("cannot find the program {}: is it there?", path.display())]
    NotFound {
        /// The program.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no program.
    #[error("{} is no program: it must be a file that may be executed: run `chmod +x {}`", .0.display(), .0.display())]
    NoProgram(PathBuf),
    /// It could not be started.
    #[error("cannot start {}: has it a first line such as #!/bin/sh, and is that program there?", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended with a status other than 0.
    #[error("{} failed: {status}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// It took too long, and was killed.
    #[error("{} was killed: it had not ended within {} s", path.display(), limit.as_secs_f64())]
    TooLong {
        /// The program.
        path: PathBuf,
        /// How long it may take.
        limit: Duration,
    },
    /// Our own program ends.
    #[error("{} was killed: this program ends", .0.display())]
    Abandoned(PathBuf),
    /// The system does not say what becomes of it.
    #[error("cannot watch {}", path.display())]
    Watch {
        /// The program.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether the file is there, and may be executed.
///
/// # Errors
/// [`HookError::NotFound`] and [`HookError::NoProgram`].
pub fn check(path: &Path) -> Result<(), HookError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| HookError::NotFound { path: path.to_owned(), source })?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(HookError::NoProgram(path.to_owned()))
    }
}

/// The program.
#[derive(Debug)]
pub(super) struct Exec {
    program: PathBuf,
    limit: Duration,
}

impl Exec {
    pub(super) fn new(program: &Path) -> Result<Self, HookError> {
        // It runs in another folder than we do.
        let program = std::path::absolute(program)
            .map_err(|source| HookError::NotFound { path: program.to_owned(), source })?;
        check(&program)?;
        Ok(Self { program, limit: LIMIT })
    }

    /// Gives it each outcome, until the queue ends.
    pub(super) fn run(&self, queue: &Queue) {
        while let Some((told, dropped)) = queue.next() {
            if dropped > 0 {
                tracing::warn!(
                    outcomes = dropped,
                    "exec: dropped, since the program is slower than the answers come"
                );
            }
            let (said, result) = self.once(&told.json, || queue.is_abandoned());
            for line in said.lines() {
                tracing::info!(query_id = told.key, "exec: {line}");
            }
            if let Err(error) = result {
                tracing::warn!(query_id = told.key, "exec: {}", chain(&error));
            }
        }
    }

    /// Runs it once. Returns the end of what it said on standard error, too.
    fn once(&self, input: &[u8], is_abandoned: impl Fn() -> bool) -> (Tail, Result<(), HookError>) {
        let path = || self.program.clone();
        let mut tail = Tail::default();
        let mut child = match self.start() {
            Ok(child) => child,
            Err(source) => return (tail, Err(HookError::Start { path: path(), source })),
        };
        let result = watch(&mut child, input, &mut tail, self.limit, is_abandoned);
        // Its group is there as long as it has not been waited for: no other can have its number.
        if let Some(group) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = child.wait();
        let result = match (result, status) {
            (Ok(Ended::ByItself), Ok(status)) if status.success() => Ok(()),
            (Ok(Ended::ByItself), Ok(status)) => Err(HookError::Failed { path: path(), status }),
            (Ok(Ended::TooLate), _) => Err(HookError::TooLong { path: path(), limit: self.limit }),
            (Ok(Ended::Abandoned), _) => Err(HookError::Abandoned(path())),
            (Err(source), _) | (_, Err(source)) => Err(HookError::Watch { path: path(), source }),
        };
        (tail, result)
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", OsString::from(PATH_DEFAULT));
        }
        host::start(&mut command)
    }
}

enum Ended {
    ByItself,
    TooLate,
    Abandoned,
}

/// Writes `input`, reads standard error, and returns when the child has ended (it is not waited for) or is to be killed.
fn watch(
    child: &mut Child,
    input: &[u8],
    tail: &mut Tail,
    limit: Duration,
    is_abandoned: impl Fn() -> bool,
) -> io::Result<Ended> {
    let start = Instant::now();
    let pid = Pid::from_raw(child.id() as i32).ok_or(io::ErrorKind::NotFound)?;
    let (mut stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
    if let Some(stdin) = &stdin {
        ioctl_fionbio(stdin, true)?;
    }
    if let Some(stderr) = &stderr {
        ioctl_fionbio(stderr, true)?;
    }
    let mut input = input;
    let ended = loop {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(pid), ended) {
            Ok(Some(_)) => break Ended::ByItself,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if is_abandoned() {
            return Ok(Ended::Abandoned);
        }
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(Ended::TooLate);
        }
        look_at(&mut stdin, &mut stderr, left.min(LOOK))?;
        if let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(written) => input = input.get(written..).unwrap_or_default(),
                Err(error) if is_for_later(&error) => {}
                // It does not want to know: that is its affair.
                Err(_) => input = &[],
            }
        }
        if input.is_empty() {
            // Its end of file.
            stdin = None;
        }
        if let Some(pipe) = &mut stderr
            && !tail.read_some(pipe)
        {
            stderr = None;
        }
    };
    // What it said last. Others of its group may go on writing: no more than a pipe holds.
    for _ in 0..64 {
        if stderr.as_mut().is_none_or(|pipe| !tail.read_some(pipe)) || tail.is_dry {
            break;
        }
    }
    Ok(ended)
}

/// Waits until one of the pipes is ready, at most so long.
fn look_at(
    stdin: &mut Option<std::process::ChildStdin>,
    stderr: &mut Option<std::process::ChildStderr>,
    wait: Duration,
) -> io::Result<()> {
    let mut fds = Vec::with_capacity(2);
    fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
    fds.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    let wait = Timespec::try_from(wait).unwrap_or_default();
    match poll(&mut fds, Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The end of what was said.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// Something before it is left out.
    is_cut: bool,
    /// There was nothing to read just now.
    is_dry: bool,
}

impl Tail {
    /// Reads what is there; false at its end.
    fn read_some(&mut self, pipe: &mut impl Read) -> bool {
        let mut buffer = [0; 1024];
        self.is_dry = false;
        match pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.bytes.extend(buffer.iter().take(length));
                let over = self.bytes.len().saturating_sub(STDERR_BYTES_MAX);
                self.is_cut |= over > 0;
                self.bytes.drain(..over);
                true
            }
            Err(error) => {
                self.is_dry = is_for_later(&error);
                self.is_dry
            }
        }
    }

    /// The last lines, without what would drive a terminal.
    fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let skipped = lines.len().saturating_sub(STDERR_LINES_MAX);
        let cut = (self.is_cut || skipped > 0).then(|| "(the end of what it said)".to_owned());
        cut.into_iter().chain(lines.into_iter().skip(skipped).map(printable)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::Arc;
    use std::thread;

    use super::super::queue::Told;

    /// A program of these lines.
    fn script(folder: &Path, text: &str) -> Exec {
        let path = folder.join("hook");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Exec { limit: Duration::from_mins(1), ..Exec::new(&path).unwrap() }
    }

    fn run(hook: &Exec, input: &[u8]) -> (Vec<String>, Result<(), String>) {
        let (said, result) = hook.once(input, || false);
        (said.lines(), result.map_err(|error| chain(&error)))
    }

    /// Whether a process is there, and no zombie.
    fn is_alive(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_program_is_given_the_outcome_and_little_else() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().display();
        let hook = script(
            place.path(),
            &format!("cat > {folder}/input; env > {folder}/env; pwd > {folder}/pwd; echo data"),
        );
        // More than a pipe holds.
        let input: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(run(&hook, &input), (vec![], Ok(())));
        assert!(fs::read(place.path().join("input")).unwrap() == input);
        let env = fs::read_to_string(place.path().join("env")).unwrap();
        let names: Vec<&str> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // The shell adds some of its own.
        let foreign: Vec<&&str> = names
            .iter()
            .filter(|name| !VARIABLES.contains(name) && !["PWD", "OLDPWD", "SHLVL", "_"].contains(name))
            .collect();
        assert!(foreign.is_empty() && names.contains(&"PATH"), "{env}");
        assert_eq!(fs::read_to_string(place.path().join("pwd")).unwrap(), "/\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().display();
        let text = format!("sleep 1000 & echo $! > {folder}/other; echo hangs >&2; sleep 1000");
        let hook = Exec { limit: Duration::from_secs(2), ..script(place.path(), &text) };
        let (said, result) = run(&hook, b"{}\n");
        assert_eq!(said, ["hangs"]);
        assert!(result.unwrap_err().contains("had not ended within 2 s"));
        let other = fs::read_to_string(place.path().join("other")).unwrap();
        // Killed at once, and gone when its new parent has noticed.
        let gone = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !is_alive(&other)
        });
        assert!(gone, "{other} is alive");
    }

    #[test]
    fn what_a_program_leaves_running_is_killed_and_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let text = format!("sleep 1000 & echo $! > {}/other; echo done >&2", place.path().display());
        let hook = script(place.path(), &text);
        assert_eq!(run(&hook, b"{}\n"), (vec!["done".to_owned()], Ok(())));
        let other = fs::read_to_string(place.path().join("other")).unwrap();
        assert!((0..500).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !is_alive(&other)
        }));
    }

    #[test]
    fn of_a_flood_on_standard_error_the_end_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let hook = script(place.path(), "seq 1 200000 >&2; printf 'the \\033[2Jend' >&2");
        let (said, result) = run(&hook, b"{}\n");
        assert_eq!(result, Ok(()));
        assert_eq!(said.len(), STDERR_LINES_MAX + 1, "{said:?}");
        assert_eq!(said.first().unwrap(), "(the end of what it said)");
        assert_eq!(said.last().unwrap(), "the \u{fffd}[2Jend");
        assert!(said.contains(&"200000".to_owned()), "{said:?}");
    }

    #[test]
    fn a_program_that_fails_or_does_not_listen_is_told() {
        let place = tempfile::tempdir().unwrap();
        let hook = script(place.path(), "exec 0<&-; echo no >&2; exit 3");
        let (said, result) = run(&hook, &vec![b'x'; 1 << 20]);
        assert_eq!(said, ["no"]);
        assert!(result.unwrap_err().contains("exit status: 3"));
        let hook = script(place.path(), "kill -9 $$");
        assert!(run(&hook, b"{}\n").1.unwrap_err().contains("signal: 9"));
    }

    #[test]
    fn a_program_that_is_gone_or_none_is_told_with_its_path() {
        let place = tempfile::tempdir().unwrap();
        let hook = script(place.path(), "true");
        fs::remove_file(&hook.program).unwrap();
        let error = run(&hook, b"{}\n").1.unwrap_err();
        assert!(error.contains("hook") && error.contains("No such file"), "{error}");
        assert!(matches!(Exec::new(&hook.program), Err(HookError::NotFound { .. })));
        fs::write(&hook.program, "text").unwrap();
        assert!(Exec::new(&hook.program).unwrap_err().to_string().contains("chmod +x"));
        assert!(matches!(Exec::new(place.path()), Err(HookError::NoProgram(_))));
        let hook = script(place.path(), "");
        fs::write(&hook.program, "#!/no/such/shell\n").unwrap();
        assert!(run(&hook, b"").1.unwrap_err().contains("first line such as #!/bin/sh"));
    }

    #[test]
    fn the_worker_goes_on_after_failures_and_ends_with_its_queue() {
        let place = tempfile::tempdir().unwrap();
        let text = format!("read line; echo \"$line\" >> {}/lines; exit 1", place.path().display());
        let hook = script(place.path(), &text);
        let queue = Queue::default();
        for number in 0..3 {
            queue.push(Arc::new(Told { key: number.to_string(), json: format!("{number}\n").into() }));
        }
        queue.close();
        hook.run(&queue);
        assert_eq!(fs::read_to_string(place.path().join("lines")).unwrap(), "0\n1\n2\n");
    }

    #[test]
    fn a_program_in_hand_is_killed_when_ours_ends() {
        let place = tempfile::tempdir().unwrap();
        let hook = script(place.path(), "sleep 1000");
        let start = Instant::now();
        let (_, result) = hook.once(b"{}\n", || start.elapsed() > Duration::from_millis(100));
        assert!(matches!(result, Err(HookError::Abandoned(_))), "{result:?}");
    }
}
