//! The programs that `make edge-arm` makes, in an emulator: they see and embed photos as this machine does, and a server answers
//! them. Where that was not run there is nothing to test: it takes three quarters of an hour to build.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::PathBuf;
use std::process::Command;

use glimpse_tests::emulated::{MACHINES, Machine, cosine, embed};
use glimpse_tests::fixture::Fixture;
use glimpse_tests::programs::Programs;
use glimpse_tests::queries::ask;
use glimpse_tests::workspace;

/// What the devices of a space have in common.
const COSINE_MIN: f64 = 0.99999;

/// `glimpse-edge` for a processor; `None`, with a line on standard error, where it was not built.
fn emulated(machine: Machine, test: &str) -> Option<Command> {
    let command = machine.edge().unwrap();
    if command.is_none() {
        eprintln!("left out: {test} on {} (`make edge-arm` was not run)", machine.name);
    }
    command
}

#[test]
fn a_photo_is_the_same_tensor_and_embedding_on_every_processor() {
    const PHOTOS: usize = 3;
    let test = "a photo is the same tensor and embedding on every processor";
    let fixture = Fixture::of(PHOTOS).unwrap();
    let photos: Vec<PathBuf> = fixture.queries.iter().map(|query| query.photo.clone()).collect();
    let folder = tempfile::tempdir().unwrap();
    let here = embed(Programs::find().unwrap().edge(), folder.path(), &photos).unwrap();
    let dimension = here.embeddings.len() / PHOTOS;
    for machine in MACHINES {
        let Some(command) = emulated(machine, test) else { continue };
        let there = embed(command, folder.path(), &photos).unwrap();
        assert!(there.tensors == here.tensors, "on {} the network is given something else", machine.name);
        assert_eq!(there.embeddings.len(), here.embeddings.len());
        let rows = |all: &[f32]| all.chunks_exact(dimension).map(<[f32]>::to_vec).collect::<Vec<_>>();
        for (row, arm_row) in rows(&here.embeddings).iter().zip(rows(&there.embeddings)) {
            let cosine = cosine(row, &arm_row);
            eprintln!("{}: cosine {cosine:.9}", machine.name);
            assert!(cosine >= COSINE_MIN, "on {} the cosine is {cosine}", machine.name);
        }
    }
}

#[test]
fn a_server_answers_devices_of_every_processor() {
    let test = "a server answers devices of every processor";
    let commands: Vec<_> =
        MACHINES.into_iter().filter_map(|machine| Some((machine.name, emulated(machine, test)?))).collect();
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
