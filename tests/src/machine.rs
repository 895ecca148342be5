//! A board as this machine emulates it: `qemu-system-aarch64`, Debian's kernel with a camera that draws colour bars, and a chip with
//! pins, one of which a button pulls up when it is pressed from here.
//!
//! The board starts, runs a script in a folder that it shares with this machine, and switches itself off. What it does can be
//! followed in the folder's files, which both see at once. This machine is `10.0.2.2` there.
//!
//! It has no disk; `tools/arm/init` says what it does have.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::emulated::MACHINES;
use crate::server::end_of;
use crate::workspace::{self, root};

/// The camera, for `glimpse-edge` there.
pub const CAMERA: &str = "v4l2:/dev/video0";

/// The line of the button, for `glimpse-edge` there. It is high for a tenth of a second when it is pressed.
pub const BUTTON: &str = "gpiochip0:3";

/// For whatever the board does next: it starts in ten seconds, and two at a time on a busy machine are several times as slow.
const STEP_WITHIN: Duration = Duration::from_mins(5);

/// The monitor answers at once, where the machine is not busy.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What a board is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    emulator: PathBuf,
    kernel: PathBuf,
    program: PathBuf,
}

impl Parts {
    /// Brings them, the first time from Debian's archive (130 MB). `None`, with a line on standard error, where `test` has to be left
    /// out: `glimpse-edge` was not built for ARM, or they cannot be had.
    ///
    /// # Errors
    /// Where they should be there and something else is wrong.
    ///
    /// # Panics
    /// Where they cannot be had under continuous integration (`CI=true`).
    pub fn find(test: &str) -> anyhow::Result<Option<Self>> {
        let program = MACHINES[0].program();
        if !program.is_file() {
            eprintln!("left out: {test} (`make edge-arm` was not run)");
            return Ok(None);
        }
        let mut folders = Vec::new();
        for script in ["qemu-system.sh", "machine.sh"] {
            let output =
                Command::new(root().join("tools/arm").join(script)).stderr(Stdio::inherit()).output()?;
            let said = String::from_utf8(output.stdout)?.trim().to_owned();
            match output.status.code() {
                Some(0) => folders.push(PathBuf::from(said)),
                Some(3) => {
                    workspace::leave_out(test, &said);
                    return Ok(None);
                }
                _ => bail!("tools/arm/{script} ended with {}", output.status),
            }
        }
        let [emulator, kernel] = folders.try_into().ok().context("a folder of each script")?;
        Ok(Some(Self { emulator: emulator.join("qemu-system-aarch64"), kernel, program }))
    }
}

/// A board that runs. Dropping it ends it at once.
pub struct Machine {
    process: Child,
    monitor: ChildStdin,
    answers: mpsc::Receiver<String>,
    folder: PathBuf,
}

impl Machine {
    /// Switches a board on that runs `script` by its `sh`, in `folder`, where `glimpse-edge` and `files` are put beside it. What the
    /// script says is in the files `said` and `log` there, and the board's own messages in `console`.
    ///
    /// # Errors
    /// Where the emulator cannot be started.
    pub fn start(parts: &Parts, folder: &Path, files: &[&Path], script: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for file in [parts.program.as_path()].iter().chain(files) {
            let name = file.file_name().context("a file has a name")?;
            std::fs::copy(file, folder.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        std::fs::rename(folder.join("glimpse-edge-aarch64"), folder.join("glimpse-edge"))?;
        std::fs::write(folder.join("run"), script)?;
        let mut command = Command::new(&parts.emulator);
        // A Raspberry Pi 4's processor, on a board of qemu's own.
        command.args([
            "-M",
            "virt",
            "-cpu",
            "cortex-a72",
            "-smp",
            "2",
            "-m",
            "512",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command.arg("-kernel").arg(parts.kernel.join("vmlinuz"));
        command.arg("-initrd").arg(parts.kernel.join("initramfs.cpio"));
        command.args(["-append", "console=ttyAMA0 quiet panic=-1", "-no-reboot", "-qmp", "stdio"]);
        command.arg("-serial").arg(format!("file:{}", folder.join("console").display()));
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        // A comma in a path is written twice.
        let shared = folder.display().to_string().replace(',', ",,");
        command.arg("-fsdev").arg(format!("local,id=host,path={shared},security_model=none"));
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(folder.join("qemu"))?);
        let mut process =
            command.spawn().with_context(|| format!("cannot start {}", parts.emulator.display()))?;
        let monitor = process.stdin.take().context("its input is piped")?;
        let stdout = BufReader::new(process.stdout.take().context("its output is piped")?);
        let (send, answers) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut machine = Self { process, monitor, answers, folder: folder.to_owned() };
        machine.ask("qmp_capabilities")?;
        Ok(machine)
    }

    /// Presses the button, and lets it go.
    ///
    /// # Errors
    /// Where the board is off.
    pub fn press(&mut self) -> anyhow::Result<()> {
        self.ask("system_powerdown")
    }

    /// Gives the monitor a command, and waits until it is done.
    fn ask(&mut self, command: &str) -> anyhow::Result<()> {
        writeln!(self.monitor, "{{\"execute\": \"{command}\"}}").and_then(|()| self.monitor.flush())?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.answers.recv_timeout(left);
            let line =
                line.with_context(|| format!("no answer to {command}{}", end_of(&self.folder.join("qemu"))))?;
            let answer: serde_json::Value = serde_json::from_str(&line).context(line)?;
            ensure!(answer.get("error").is_none(), "{command}: {answer}");
            // Events and the greeting come in between.
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    /// A file of the folder as it is now; nothing where it is not there yet.
    pub fn read(&self, name: &str) -> String {
        std::fs::read(self.folder.join(name))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until a file of the folder holds what is looked for, and returns it.
    ///
    /// # Errors
    /// With the end of the board's messages where it does not in time, or the board is off.
    pub fn wait_for(&mut self, name: &str, holds: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let deadline = Instant::now() + STEP_WITHIN;
        loop {
            // In this order: what it wrote last is seen.
            let is_off = self.process.try_wait()?.is_some();
            let text = self.read(name);
            if holds(&text) {
                return Ok(text);
            }
            ensure!(!is_off, "the board is off, and {name} holds:\n{text}{}", self.said());
            ensure!(
                Instant::now() < deadline,
                "in {STEP_WITHIN:?} {name} holds only:\n{text}{}",
                self.said()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the script has ended and the board is off; the script's status.
    ///
    /// # Errors
    /// Where that does not happen in time.
    pub fn finish(mut self) -> anyhow::Result<i32> {
        let status = self.wait_for("status", |status| !status.is_empty())?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        while self.process.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the board does not switch itself off{}", self.said());
            std::thread::sleep(LOOK);
        }
        Ok(status.trim().parse()?)
    }

    /// What the board said last, for an error message.
    fn said(&self) -> String {
        ["console", "qemu", "log"].map(|name| format!("\n{name}{}", end_of(&self.folder.join(name)))).concat()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
