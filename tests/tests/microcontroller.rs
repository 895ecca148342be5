//! The query client on a microcontroller: `glimpse-mcu` on an emulated board, from the picture to the lamp, with the demo's network and
//! a real server. Where `make microcontroller` was not run there is nothing to test.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use glimpse_embedder::{Embedder, read_photo};
use glimpse_protocol::{Codec, ErrorBody, ErrorCode, ErrorReply, Match, Query, Reply, VERSION};
use glimpse_tests::fixture::Fixture;
use glimpse_tests::microcontroller::{Microcontroller, Run, framed};
use glimpse_tests::programs::{Programs, said};
use glimpse_tests::queries::ask;
use glimpse_tests::stranger::{Login, Stranger};
use glimpse_tests::workspace;

/// Between an embedding of the board and one of this machine: what is left is the rounding of `i8`.
const COSINE_MIN: f64 = 0.9999;

const MATCHES: usize = 3;

fn model() -> PathBuf {
    workspace::bundle().join("query-int8.onnx")
}

/// What `glimpse-edge plan` makes of the demo's int8 network.
fn plan() -> &'static [u8] {
    static PLAN: OnceLock<Vec<u8>> = OnceLock::new();
    PLAN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("query.plan");
        let mut command = Programs::find().unwrap().edge();
        let report = said(command.arg("plan").arg("--model").arg(model()).arg("--out").arg(&out).output());
        assert!(report.contains("query.plan") && report.contains("224x224"), "{report}");
        std::fs::read(out).unwrap()
    })
}

/// A photo as a camera without a decoder gives it.
fn picture(photo: &Path) -> Vec<u8> {
    let photo = read_photo(&workspace::root().join(photo)).unwrap();
    let (width, height) = photo.dimensions();
    // What the board has room for.
    assert!(width * height * 3 < 2 << 20, "{width}x{height}");
    let mut picture = format!("P6\n{width} {height}\n255\n").into_bytes();
    picture.extend(photo.as_raw());
    picture
}

fn cbor(message: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).unwrap();
    bytes
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn reply_to(query: &Query, matches: impl IntoIterator<Item = Match>) -> Vec<u8> {
    let matches = matches.into_iter().collect();
    framed(&cbor(&Reply::<MATCHES> { v: VERSION, id: query.id, matches, took_us: 1, generation: 1 }))
}

/// Lamps that came on.
fn lit(run: &Run) -> Vec<&str> {
    let on = run.lamps.iter().filter(|line| line.contains("-> 100%"));
    on.filter_map(|line| ["USERLED0", "USERLED1"].into_iter().find(|lamp| line.contains(lamp))).collect()
}

#[test]
fn a_picture_becomes_a_query_that_a_server_answers_and_a_lamp_is_lit() {
    let test = "a microcontroller's query is answered by a server";
    let Some(board) = Microcontroller::find(test) else { return };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let photo = &fixture.queries[0];
    let embedder = Embedder::load(&model()).unwrap();
    let wanted = embedder.embed(&read_photo(&workspace::root().join(&photo.photo)).unwrap()).unwrap();

    // What a device with an operating system finds, by the same network.
    let mut command = fixture.programs.edge();
    command.args(["query", "--json", "--server", server.address().unwrap(), "--device", "here", "--model"]);
    command.arg(model());
    let here = ask(command, &[photo.photo.clone()], &fixture.path("edge.log"), &mut |_| ()).unwrap();
    let nearest = &here[0].matches[0];

    // The gateway speaks MQTT for the device.
    let mut gateway =
        Stranger::connect(server.address().unwrap(), &Login::anonymous("board")).unwrap().unwrap();
    let [query_topic, reply_topic] =
        ["query", "reply"].map(|topic| format!("glimpse/v1/devices/board/{topic}"));
    gateway.subscribe(&reply_topic).unwrap();
    let mut cosines = Vec::new();
    let run = board
        .run(fixture.folder(), [plan(), &picture(&photo.photo)], |message| {
            let query: Query = ciborium::from_reader(message)?;
            assert_eq!((query.v, query.space, query.embedding.codec), (VERSION, embedder.space(), Codec::I8));
            let mut embedding = vec![0.0; embedder.dimension()];
            query.embedding.decode_into(&mut embedding)?;
            eprintln!("a message of {} bytes, cosine {:.6}", message.len(), cosine(&embedding, &wanted));
            cosines.push(cosine(&embedding, &wanted));
            gateway.publish(&query_topic, message, Some(&reply_topic))?;
            Ok(framed(&gateway.message()?.payload))
        })
        .unwrap();
    eprintln!("{}", run.said);
    assert!(run.success && run.complaint.is_empty(), "{run:#?}");
    assert!(!cosines.is_empty() && cosines.iter().all(|cosine| *cosine >= COSINE_MIN), "{cosines:?}");
    let first = run.said.lines().find(|line| line.starts_with("match: ")).unwrap();
    assert!(first.starts_with(&format!("match: {} ({})", nearest.image, nearest.label)), "{run:#?}");
    assert!(run.said.contains("lamps: match true, unknown false"), "{run:#?}");
    // Weights stay where the plan is: the heap has what steps need, picture and message.
    let steps = Embedder::portable_model(&model()).unwrap().memory_bytes();
    let heap = run.said.split_once(" ms; ").and_then(|(_, rest)| rest.split_once(" of ")).unwrap().0;
    assert!(heap.parse::<usize>().unwrap() < steps + 500_000, "{run:#?}");
    assert_eq!(lit(&run), ["USERLED0"], "{run:#?}");
    assert!(run.lamps.last().unwrap().ends_with("-> 0%"), "it goes out again: {run:#?}");
}

#[test]
fn what_the_line_loses_is_asked_again_and_what_a_server_says_is_understood() {
    let Some(board) = Microcontroller::find("a microcontroller asks again") else { return };
    let folder = tempfile::tempdir().unwrap();
    let photo = picture(&Fixture::of(1).unwrap().queries[0].photo);
    let run = |answer: &mut dyn FnMut(usize, &Query) -> Vec<u8>| {
        let mut queries = Vec::new();
        let run = board.run(folder.path(), [plan(), &photo], |message| {
            queries.push(ciborium::from_reader::<Query, _>(message)?);
            Ok(answer(queries.len(), &queries[queries.len() - 1]))
        });
        assert!(queries.iter().all(|query| query.id == queries[0].id), "a repeat has the same id");
        (run.unwrap(), queries.len())
    };

    // Noise, half a reply, and then one without a match.
    let (found, asked) = run(&mut |number, query| match number {
        1 => b"\xc0noise\xdb\x00".to_vec(),
        2 => reply_to(query, [])[..20].to_vec(),
        _ => reply_to(query, []),
    });
    assert!(found.success && asked >= 3, "{found:#?}");
    assert_eq!(lit(&found), ["USERLED1"], "nothing is like it: {found:#?}");

    let (found, asked) = run(&mut |_, query| {
        let error = ErrorBody::new(ErrorCode::WrongSpace, "this is another space");
        framed(&cbor(&ErrorReply { v: VERSION, id: query.id, error }))
    });
    // More than once only where this machine is slower than the board's patience.
    assert!(!found.success && asked >= 1 && found.complaint.contains("this is another space"), "{found:#?}");

    let (found, asked) = run(&mut |_, _| Vec::new());
    assert!(!found.success && asked == 3 && found.complaint.contains("asked 3 times"), "{found:#?}");
    assert_eq!(lit(&found), [""; 0], "{found:#?}");
}

#[test]
fn bad_memory_is_told_and_neither_panics_nor_hangs() {
    let Some(board) = Microcontroller::find("bad memory is told") else { return };
    let folder = tempfile::tempdir().unwrap();
    let photo = b"P6 2 2 255 ............";
    let flipped = |place: usize| {
        let mut plan = plan().to_vec();
        plan[place] ^= 1;
        plan
    };
    let half = plan().len() / 2;
    for (plan, photo, wanted) in [
        (&plan()[..half], &photo[..], "checksum"),
        (&flipped(half), photo, "checksum"),
        (&flipped(0), photo, "no portable model"),
        // It says that it is larger than the memory.
        (&flipped(12), photo, "was it cut off?"),
        (&[], photo, "no portable model"),
        (plan(), b"P6 9000 9000 255 ", "was it cut off?"),
        (plan(), b"GIF89a", "no picture"),
    ] {
        let run = board.run(folder.path(), [plan, photo], |_| panic!("nothing is asked")).unwrap();
        let complaint = &run.complaint;
        assert!(!run.success && complaint.starts_with("error: ") && complaint.contains(wanted), "{run:#?}");
        assert_eq!(complaint.lines().count(), 1, "{run:#?}");
    }
}

#[test]
fn a_plan_that_cannot_be_made_or_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |model: &Path, out: &Path| {
        Programs::find().unwrap().edge().arg("plan").arg("--model").arg(model).arg("--out").arg(out).output()
    };
    let (missing, out) = (Path::new("missing.onnx"), folder.path().join("query.plan"));
    let nowhere = folder.path().join("no/folder.plan");
    for (output, wanted) in
        [(plan(missing, &out), "missing.onnx"), (plan(&model(), &nowhere), "no/folder.plan")]
    {
        let output = output.unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(wanted) && !message.contains("panicked"), "{message}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}
