//! The device's camera and pins on an emulated board: V4L2 and GPIO of a real kernel, by the program that `make edge-arm` makes.
//! Where that was not run there is nothing to test: it takes three quarters of an hour to build.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use glimpse_embedder::{RgbImage, read_photo};
use glimpse_tests::fixture::Fixture;
use glimpse_tests::machine::{BUTTON, CAMERA, Machine, Parts};
use glimpse_tests::queries::Answer;
use glimpse_tests::server::Server;
use glimpse_tests::workspace;
use serde_json::Value;

/// How `vivid` begins: "75% colour bar" of television, from left to right.
const BARS: [(&str, [u8; 3]); 8] = [
    ("white", [191, 191, 191]),
    ("yellow", [191, 191, 0]),
    ("cyan", [0, 191, 191]),
    ("green", [0, 191, 0]),
    ("magenta", [191, 0, 191]),
    ("red", [191, 0, 0]),
    ("blue", [0, 0, 191]),
    ("black", [0, 0, 0]),
];

/// Rounding to YCbCr with 16 to 235 and back moves a colour by two steps at most; other conversions (BT.709 for BT.601, or 0 to 255)
/// by twenty and more.
const COLOUR_TOLERANCE: u8 = 4;

/// Longer than a press is noticed after, and a photo with its query takes.
const QUIET: Duration = Duration::from_secs(5);

/// A line of the script: a command of `glimpse-edge` whose output, log and status go into files of this name.
fn step(name: &str, words: &str) -> String {
    format!("./glimpse-edge {words} >{name}.json 2>{name}.log; echo $? >{name}.status\n")
}

fn status(machine: &Machine, name: &str) -> i32 {
    let log = machine.read(&format!("{name}.log"));
    machine
        .read(&format!("{name}.status"))
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("no status of {name}: {log}"))
}

fn json(machine: &Machine, name: &str) -> Value {
    let text = machine.read(&format!("{name}.json"));
    let log = machine.read(&format!("{name}.log"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}\n{log}"))
}

/// Each bar, in the middle of its width, below the text that the camera writes over the picture.
fn check_bars(name: &str, photo: &RgbImage) {
    let (width, height) = photo.dimensions();
    for (place, (colour, expected)) in BARS.iter().enumerate() {
        let x = (2 * place as u32 + 1) * width / 16;
        let found = photo.get_pixel(x, height * 3 / 4).0;
        let is_near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= COLOUR_TOLERANCE);
        assert!(is_near, "{name}: {colour} is {found:?}, not {expected:?}");
    }
}

#[test]
fn the_kernels_camera_gives_photos_with_its_colours_in_every_format() {
    let Some(parts) =
        Parts::find("the kernel's camera gives photos with its colours in every format").unwrap()
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let capture = |name: &str, camera: &str, words: &str| {
        step(
            name,
            &format!("capture --json --sharpness-min 0 --camera {camera} --camera-size 640x480 {words}"),
        )
    };
    let script = [
        capture("usual", CAMERA, "--out usual.png"),
        capture("nv12", CAMERA, "--camera-format nv12 --out nv12.png"),
        capture("yuyv", CAMERA, "--camera-format yuyv --out yuyv.png"),
        capture("mjpeg", CAMERA, "--camera-format mjpeg --out mjpeg.png"),
        capture("missing", "v4l2:/dev/video7", ""),
        capture("another", "v4l2:/dev/null", ""),
    ];
    let mut machine = Machine::start(&parts, folder.path(), &[], &script.concat()).unwrap();
    machine.wait_for("another.status", |status| status.ends_with('\n')).unwrap();
    // A format that needs no decoding, and of those the one that has the least bytes.
    for (name, format) in [("usual", "NV12"), ("nv12", "NV12"), ("yuyv", "YUYV")] {
        let told = json(&machine, name);
        assert_eq!(status(&machine, name), 0, "{told} {}", machine.read(&format!("{name}.log")));
        assert_eq!((told["width"].as_u64(), told["height"].as_u64()), (Some(640), Some(480)), "{told}");
        assert_eq!(told["camera"].as_str().unwrap(), format!("vivid, {format}"));
        check_bars(name, &read_photo(&folder.path().join(format!("{name}.png"))).unwrap());
    }
    for (name, parts) in [
        ("mjpeg", ["gives no MJPEG, but NV12, YUYV", "camera_format"]),
        ("missing", ["/dev/video7", "is it plugged in?"]),
        ("another", ["/dev/null", "is it a camera?"]),
    ] {
        let log = machine.read(&format!("{name}.log"));
        assert_eq!(status(&machine, name), 1, "{name}: {log}");
        assert!(parts.iter().all(|part| log.contains(part)) && !log.contains("panicked"), "{name}: {log}");
    }
    assert_eq!(machine.finish().unwrap(), 0);
}

/// `device.toml` of the board, with this in it.
fn configuration(server: &Server, more: &str) -> String {
    // The server is on this machine, whose name there is another.
    let port = server.address().unwrap().rsplit_once(':').unwrap().1.to_owned();
    format!(
        "device = \"board-1\"\nserver = \"10.0.2.2:{port}\"\nbundle = \".\"\ncamera_size = \"640x480\"\nsharpness_min = 0\n\
         timeout = 60\nunknown_below = 1.0\n{more}\n"
    )
}

fn check<'a>(report: &'a Value, name: &str) -> (&'a str, String) {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["check"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name}: {report}"));
    (found["status"].as_str().unwrap(), found["message"].as_str().unwrap_or_default().to_owned())
}

/// How many queries the server has answered, repeats left out.
fn answered(server: &Server) -> u64 {
    let address = server.word("http").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let count =
        response.lines().find_map(|line| line.strip_prefix("glimpse_queries_total{outcome=\"answered\"} "));
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {response}"))
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

#[test]
fn a_press_of_the_boards_button_is_one_query_and_its_answer_lights_a_lamp() {
    let test = "a press of the board's button is one query and its answer lights a lamp";
    let Some(parts) = Parts::find(test).unwrap() else { return };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve_at("127.0.0.1:0").unwrap();
    let folder = fixture.path("board");
    std::fs::create_dir(&folder).unwrap();
    let pins = format!(
        "camera = \"{CAMERA}\"\nbutton = \"{BUTTON}\"\nled = \"gpiochip0:4\"\nled_unknown = \"gpiochip0:5\""
    );
    write(&folder, "device.toml", &configuration(&server, &pins));
    // A camera that is not there, a line that is not there, and a chip that is not there.
    let wrong = "camera = \"v4l2:/dev/video7\"\nbutton = \"gpiochip0:8\"\nled = \"gpiochip3:1\"";
    write(&folder, "wrong.toml", &configuration(&server, wrong));
    let script = [
        step("wrong", "doctor --config wrong.toml --json"),
        step("doctor", "doctor --config device.toml --json"),
        "./glimpse-edge run --config device.toml --json >answers 2>run.log & run=$!\n".to_owned(),
        // What the kernel knows of the chip's lines, in one line each time that it changes. By what the shell has in itself, for a lamp
        // is lit for a second only.
        "while [ ! -e stop ]; do now=\n\
         while read -r line; do now=\"$now$line;\"; done </sys/kernel/debug/gpio\n\
         [ \"$now\" = \"$before\" ] || echo \"$now\" >>pins; before=$now; sleep 0.02; done\n"
            .to_owned(),
        step("busy", "doctor --config device.toml --json"),
        "kill $run; wait $run\n".to_owned(),
    ];
    let files =
        ["query.onnx", "codebook.safetensors", "space.toml"].map(|name| workspace::bundle().join(name));
    let files = files.each_ref().map(std::path::PathBuf::as_path);
    let mut machine = Machine::start(&parts, &folder, &files, &script.concat()).unwrap();

    machine.wait_for("doctor.status", |status| status.ends_with('\n')).unwrap();
    let report = json(&machine, "doctor");
    for (name, part) in [
        ("camera", "vivid, NV12): a photo has 640 x 480 pixels"),
        ("button", "gpiochip0:3 is free"),
        ("led", "gpiochip0:4 is free"),
        ("led_unknown", "gpiochip0:5 is free"),
        ("model", "a photo takes"),
        ("broker", ""),
        ("gallery", ""),
    ] {
        let (status, message) = check(&report, name);
        assert!(status == "ok" && message.contains(part), "{name} is {status}: {message}");
    }
    let report = json(&machine, "wrong");
    assert_eq!(status(&machine, "wrong"), 1);
    for (name, part) in [
        ("camera", "/dev/video7"),
        ("button", "gpiochip0:8: the chip has lines 0 to 7"),
        ("led", "gpiochip3"),
    ] {
        let (status, message) = check(&report, name);
        assert!(status == "failure" && message.contains(part), "{name} is {status}: {message}");
    }

    machine.wait_for("run.log", |log| log.contains("connected")).unwrap();
    std::thread::sleep(QUIET);
    assert_eq!(machine.read("answers"), "", "nobody has pressed it");
    assert_eq!(answered(&server), 0);
    for presses in 1..=2 {
        machine.press().unwrap();
        let answers = machine.wait_for("answers", |answers| answers.lines().count() >= presses).unwrap();
        std::thread::sleep(QUIET);
        assert_eq!(machine.read("answers"), answers, "one press is one query");
        assert_eq!(answered(&server), presses as u64);
        let answer: Answer = serde_json::from_str(answers.lines().last().unwrap()).unwrap();
        assert!(answer.error.is_none() && answer.matches.len() == 10, "{answers}");
    }

    write(&folder, "stop", "");
    machine.wait_for("status", |status| !status.is_empty()).unwrap();
    let report = json(&machine, "busy");
    assert_eq!(check(&report, "button"), ("ok", "gpiochip0:3 is in use by a device that runs".to_owned()));
    // No photo has a similarity of 1, so each answer lights the lamp for what is unknown: twice, and the other one never.
    let pins = machine.read("pins");
    let lit = |line: u32| {
        let name = format!("gpio-{} ", FIRST_LINE + line);
        let of = |all: &str| all.split(';').any(|one| one.starts_with(&name) && one.contains("out hi"));
        let mut levels: Vec<bool> = pins.lines().map(of).collect();
        levels.dedup();
        levels.iter().filter(|is_lit| **is_lit).count()
    };
    assert_eq!((lit(4), lit(5)), (0, 2), "{pins}");
    machine.finish().unwrap();
}

/// Which number the kernel gives the chip's line 0 in its own list.
const FIRST_LINE: u32 = 512;
