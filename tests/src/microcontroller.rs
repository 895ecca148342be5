//! `glimpse-mcu` on an emulated board, and the gateway at the other end of its serial line.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::workspace::{leave_out, root};

/// How long a run may take: twenty times what it takes on a machine that has nothing else to do.
const RUN_MAX: Duration = Duration::from_secs(180);

/// Between two looks at whether it has ended.
const POLL: Duration = Duration::from_millis(50);

/// Where the board finds the query network's plan, and the camera's picture (`edge/mcu/src/board.rs`).
const PLAN: &str = "0x21000000";
const PICTURE: &str = "0x20200000";

/// RFC 1055.
const END: u8 = 0xc0;
const ESCAPE: u8 = 0xdb;
const ESCAPED: [(u8, u8); 2] = [(0xdc, END), (0xdd, ESCAPE)];

/// The emulator and the program.
#[derive(Debug)]
pub struct Microcontroller {
    emulator: PathBuf,
    program: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// Whether the program says that all went well.
    pub success: bool,
    /// What it reported.
    pub said: String,
    /// What it complained of.
    pub complaint: String,
    /// What the program did with the board's lamps, a line each, as the emulator saw it.
    pub lamps: Vec<String>,
}

impl Microcontroller {
    /// What `make microcontroller` made. `None`, with a line on standard error, where `test` has to be left out.
    ///
    /// # Panics
    /// Where it is missing under continuous integration.
    pub fn find(test: &str) -> Option<Self> {
        let program = root().join("target/edge/glimpse-mcu");
        // The emulator came with the program; this only says where it is.
        let folder = || Command::new(root().join("tools/arm/qemu-system.sh")).output().ok();
        let folder = program.is_file().then(folder).flatten().filter(|output| output.status.success());
        let folder = folder.and_then(|output| String::from_utf8(output.stdout).ok());
        let Some(folder) = folder else {
            leave_out(test, "`make microcontroller` was not run, or says why it cannot be had");
            return None;
        };
        Some(Self { emulator: Path::new(folder.trim()).join("qemu-system-arm"), program })
    }

    /// Runs the program with these bytes in its memory until it ends; files go into `folder`. `gateway` is given each message that
    /// comes over the serial line, and what it returns goes back as it is ([`framed`] makes messages of bytes).
    ///
    /// # Errors
    /// Where it does not end in time, or the gateway fails.
    pub fn run(
        &self,
        folder: &Path,
        [plan, picture]: [&[u8]; 2],
        mut gateway: impl FnMut(&[u8]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Run> {
        let path = |name: &str| folder.join(name);
        let mut command = Command::new(&self.emulator);
        command.args(["-M", "mps2-an386", "-display", "none", "-monitor", "none"]);
        command.args([
            "-semihosting-config",
            "enable=on,target=native",
            "-trace",
            "led_change_intensity",
            "-D",
        ]);
        command.arg(path("lamps.log")).arg("-kernel").arg(&self.program);
        for (name, address, bytes) in [("network.plan", PLAN, plan), ("picture.ppm", PICTURE, picture)] {
            // The emulator loads no file that is empty.
            if !bytes.is_empty() {
                std::fs::write(path(name), bytes)?;
                let file = path(name).display().to_string().replace(',', ",,");
                command.arg("-device").arg(format!("loader,file={file},addr={address},force-raw=on"));
            }
        }
        let socket = UnixListener::bind(path("line"))?;
        let line = path("line").display().to_string().replace(',', ",,");
        command.arg("-chardev").arg(format!("socket,id=line,path={line}"));
        command.args(["-serial", "chardev:line"]).stdin(Stdio::null());
        let files = [path("said"), path("complaint")];
        command.stdout(File::create(&files[0])?).stderr(File::create(&files[1])?);
        let mut process = Process(command.spawn().with_context(|| format!("cannot start {command:?}"))?);

        let started = Instant::now();
        socket.set_nonblocking(true)?;
        let mut line = None;
        let mut received = Vec::new();
        let status = loop {
            if let Some(status) = process.0.try_wait()? {
                break status;
            }
            ensure!(started.elapsed() < RUN_MAX, "the microcontroller is still at it after {RUN_MAX:?}");
            let Some(open) = &mut line else {
                line = socket.accept().map(|(line, _)| line).ok();
                if let Some(line) = &line {
                    line.set_nonblocking(false)?;
                    line.set_read_timeout(Some(POLL))?;
                } else {
                    std::thread::sleep(POLL);
                }
                continue;
            };
            let mut bytes = [0; 4096];
            match open.read(&mut bytes) {
                // It has ended, or is about to.
                Ok(0) => line = None,
                Ok(count) => received.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => line = None,
            }
            while let Some(message) = next_message(&mut received) {
                let answer = gateway(&message)?;
                // Whoever has ended wants no answer.
                let _ = line.as_mut().map(|line| line.write_all(&answer));
            }
        };
        let [said, complaint] = files.map(std::fs::read_to_string);
        let lamps = std::fs::read_to_string(path("lamps.log"))?;
        std::fs::remove_file(path("line"))?;
        // Its reset has them come on; the program begins by putting them out.
        let lamps = lamps
            .lines()
            .filter(|line| line.contains("led_change"))
            .skip_while(|line| !line.ends_with("-> 0%"));
        Ok(Run {
            success: status.success(),
            said: said?,
            complaint: complaint?,
            lamps: lamps.map(str::to_owned).collect(),
        })
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A message as a frame of RFC 1055.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![END];
    for byte in message {
        match ESCAPED.iter().find(|(_, meant)| meant == byte) {
            Some((code, _)) => frame.extend([ESCAPE, *code]),
            None => frame.push(*byte),
        }
    }
    frame.push(END);
    frame
}

/// Takes the next whole message out of what was received.
fn next_message(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        let end = received.iter().position(|byte| *byte == END)?;
        let frame: Vec<u8> = received.drain(..=end).collect();
        let mut message = Vec::new();
        let mut bytes = frame[..end].iter();
        while let Some(byte) = bytes.next() {
            let code = if *byte == ESCAPE { bytes.next() } else { None };
            let meant = code.and_then(|code| ESCAPED.iter().find(|(known, _)| known == code));
            message.push(meant.map_or(*byte, |(_, meant)| *meant));
        }
        if !message.is_empty() {
            return Some(message);
        }
    }
}
