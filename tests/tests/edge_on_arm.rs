//! The programs that `make edge-arm` makes, in an emulator: they see and embed photos as this machine does, and a server answers
//! them. Where that was not run there is nothing to test: it takes three quarters of an hour to build.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::Command;

use glimpse_tests::fixture::Fixture;
use glimpse_tests::programs::{Programs, said};
use glimpse_tests::queries::ask;
use glimpse_tests::workspace::{self, root};

/// What the devices of a space have in common.
const COSINE_MIN: f64 = 0.99999;

/// The name in `make edge-arm`, the emulator, its processor, and where the C library is in the toolchain.
type Machine = (&'static str, &'static str, &'static str, &'static str);

const MACHINES: [Machine; 2] = [
    // Without the dot product, as a Raspberry Pi 4.
    ("aarch64", "qemu-aarch64", "cortex-a72", ""),
    ("armv7", "qemu-arm", "cortex-a7", "usr/arm-linux-gnueabihf"),
];

/// `glimpse-edge` for ARM, as a command of this machine; `None`, with a line on standard error, where it was not built.
fn emulated((name, emulator, processor, library): Machine, test: &str) -> Option<Command> {
    let program = root().join(format!("target/edge/glimpse-edge-{name}"));
    if !program.is_file() {
        eprintln!("left out: {test} on {name} (`make edge-arm` was not run)");
        return None;
    }
    // It is there, for it built the program; so this only says where.
    let toolchain = said(Command::new(root().join("tools/arm/toolchain.sh")).arg(name).output());
    let toolchain = PathBuf::from(toolchain.trim());
    let mut command = Command::new(toolchain.join("usr/bin").join(emulator));
    command.args(["-cpu", processor, "-L"]).arg(toolchain.join(library)).arg(program).current_dir(root());
    Some(command)
}

/// The file with what the network was given, and the embeddings.
fn embedded(mut command: Command, folder: &Path, photos: &[PathBuf]) -> (Vec<u8>, Vec<f32>) {
    let (tensors, embeddings) = (folder.join("tensors.npy"), folder.join("embeddings.npy"));
    command.arg("embed").args(photos).arg("--model").arg(workspace::bundle().join("query.onnx"));
    command.arg("--tensors").arg(&tensors).arg("--out").arg(&embeddings);
    said(command.output());
    let file = std::fs::read(embeddings).unwrap();
    let embeddings = npyz::NpyFile::new(&file[..]).unwrap().into_vec().unwrap();
    (std::fs::read(tensors).unwrap(), embeddings)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn a_photo_is_the_same_tensor_and_embedding_on_every_processor() {
    const PHOTOS: usize = 3;
    let test = "a photo is the same tensor and embedding on every processor";
    let fixture = Fixture::of(PHOTOS).unwrap();
    let photos: Vec<PathBuf> = fixture.queries.iter().map(|query| query.photo.clone()).collect();
    let folder = tempfile::tempdir().unwrap();
    let (tensors, embeddings) = embedded(Programs::find().unwrap().edge(), folder.path(), &photos);
    let dimension = embeddings.len() / PHOTOS;
    for machine in MACHINES {
        let Some(command) = emulated(machine, test) else { continue };
        let (arm_tensors, arm_embeddings) = embedded(command, folder.path(), &photos);
        assert!(arm_tensors == tensors, "on {} the network is given something else", machine.0);
        assert_eq!(arm_embeddings.len(), embeddings.len());
        for (row, arm_row) in embeddings.chunks_exact(dimension).zip(arm_embeddings.chunks_exact(dimension)) {
            let cosine = cosine(row, arm_row);
            eprintln!("{}: cosine {cosine:.9}", machine.0);
            assert!(cosine >= COSINE_MIN, "on {} the cosine is {cosine}", machine.0);
        }
    }
}

#[test]
fn a_server_answers_devices_of_every_processor() {
    let test = "a server answers devices of every processor";
    let commands: Vec<_> =
        MACHINES.into_iter().filter_map(|machine| Some((machine.0, emulated(machine, test)?))).collect();
    if commands.is_empty() {
        return;
    }
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let photos: Vec<_> = fixture.queries.iter().take(3).map(|query| query.photo.clone()).collect();
    // What the same program finds here, for a photo in a dozen is found second.
    let ask_by = |mut command: Command, name: &str| {
        command.args(["query", "--json", "--server", server.address().unwrap(), "--device", name]);
        command.args(["--timeout", "60", "--bundle"]).arg(workspace::bundle());
        let answers = ask(command, &photos, &fixture.path("edge.log"), &mut |_| ()).unwrap();
        answers
            .iter()
            .map(|answer| answer.matches.first().map(|found| found.image.clone()))
            .collect::<Vec<_>>()
    };
    let here = ask_by(fixture.programs.edge(), "x86-64");
    assert!(here.iter().all(Option::is_some), "{here:?}");
    for (name, command) in commands {
        assert_eq!(ask_by(command, name), here, "{name}");
    }
}
