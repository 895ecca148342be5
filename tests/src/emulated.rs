//! The programs that `make edge-arm` makes, in an emulator on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::workspace::{self, root};

/// A processor.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Its name in `make edge-arm`.
    pub name: &'static str,
    emulator: &'static str,
    processor: &'static str,
    /// Where its C library is in the toolchain.
    library: &'static str,
}

/// Those that there are programs for.
pub const MACHINES: [Machine; 2] = [
    // Without the dot product, as a Raspberry Pi 4.
    Machine { name: "aarch64", emulator: "qemu-aarch64", processor: "cortex-a72", library: "" },
    Machine {
        name: "armv7",
        emulator: "qemu-arm",
        processor: "cortex-a7",
        library: "usr/arm-linux-gnueabihf",
    },
];

impl Machine {
    /// The file of `glimpse-edge`, which may not have been built.
    pub fn program(&self) -> PathBuf {
        root().join(format!("target/edge/glimpse-edge-{}", self.name))
    }

    /// `glimpse-edge`, as a command of this machine; `None` where it was not built.
    ///
    /// # Errors
    /// Where it was, and there is no emulator.
    pub fn edge(&self) -> anyhow::Result<Option<Command>> {
        if !self.program().is_file() {
            return Ok(None);
        }
        // The toolchain is there, for it built the program; so this only says where.
        let toolchain = Command::new(root().join("tools/arm/toolchain.sh")).arg(self.name).output()?;
        ensure!(toolchain.status.success(), "{}", String::from_utf8_lossy(&toolchain.stdout));
        let toolchain = PathBuf::from(String::from_utf8(toolchain.stdout)?.trim());
        let mut command = Command::new(toolchain.join("usr/bin").join(self.emulator));
        command.args(["-cpu", self.processor, "-L"]).arg(toolchain.join(self.library)).arg(self.program());
        // What it keeps for the next time is not that of whoever runs us.
        command.current_dir(root()).env("CACHE_DIRECTORY", root().join("target/edge/cache"));
        Ok(Some(command))
    }
}

/// What `glimpse-edge embed` makes of photos with the demo's query network.
#[derive(Debug)]
pub struct Embedded {
    /// The file with what the network was given.
    pub tensors: Vec<u8>,
    /// The embeddings, one after the other.
    pub embeddings: Vec<f32>,
}

/// Embeds photos by the program of `command`, by way of files in `folder`.
///
/// # Errors
/// Where it fails.
pub fn embed(mut command: Command, folder: &Path, photos: &[PathBuf]) -> anyhow::Result<Embedded> {
    let (tensors, embeddings) = (folder.join("tensors.npy"), folder.join("embeddings.npy"));
    command.arg("embed").args(photos).arg("--model").arg(workspace::bundle().join("query.onnx"));
    command.arg("--tensors").arg(&tensors).arg("--out").arg(&embeddings);
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "embed failed: {}", String::from_utf8_lossy(&output.stderr));
    let file = std::fs::read(embeddings)?;
    let embeddings = npyz::NpyFile::new(&file[..])?.into_vec()?;
    Ok(Embedded { tensors: std::fs::read(tensors)?, embeddings })
}

/// The cosine of two embeddings.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
