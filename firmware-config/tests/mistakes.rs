//! The mistakes that people make in a `device.toml`, and what `glimpse-firmware check` says to each, word for word.
//!
//! `mistakes.txt` has a case each: its name behind `===`, the file, and behind `---` what is said. A line of two dots stands for
//! what every device needs. Where something else is said, the test writes that into a file beside its own and names it: read
//! it, and copy it over by hand.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::process::Command;

const NEEDED: &str = "server = \"gallery.local\"\ncamera = \"rpicam\"\nbundle = \"space\"";

/// A folder with what the cases name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["space", "photos"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    for name in
        ["space/query.onnx", "space/space.toml", "ca.pem", "device.pem", "device.key", "device.password"]
    {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

/// What `check` says of a file, and its status.
fn said(folder: &Path, file: &str, flags: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"))
        .current_dir(folder)
        .arg("check")
        .args(flags)
        .arg(file)
        .env_remove("CLICOLOR_FORCE")
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (said, output.status.code())
}

#[test]
fn every_mistake_is_told_in_these_words() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes.txt");
    let cases = std::fs::read_to_string(&file).unwrap();
    let folder = folder();
    let (mut found, mut count) = (String::new(), 0);
    for case in cases.split("=== ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let (text, _) = rest.split_once("---\n").unwrap();
        let whole = text.replace("..\n", &format!("{NEEDED}\n"));
        std::fs::write(folder.path().join("device.toml"), whole).unwrap();
        let (said, status) = said(folder.path(), "device.toml", &[]);
        assert_eq!(status, Some(1), "{name}: {said}");
        assert!(!said.contains("s3cret"), "{name} shows a secret: {said}");
        let has_fix = said.matches("= help: ").count() == said.matches("error: ").count();
        assert!(has_fix, "{name} does not say what to do: {said}");
        found += &format!("=== {name}\n{text}---\n{said}\n");
        count += 1;
    }
    assert!(count >= 40, "{count} cases");
    if found != cases {
        let other = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mistakes.txt");
        std::fs::write(&other, found).unwrap();
        panic!("other words than in {}: compare it with {}", file.display(), other.display());
    }
}

#[test]
fn files_that_are_none_are_told_in_the_same_form() {
    let folder = folder();
    let folder = folder.path();
    let good = format!("{NEEDED}\n");
    let bytes = |text: &[u8]| [good.as_bytes(), text].concat();
    let utf_16: Vec<u8> =
        [0xfeff].into_iter().chain(good.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    for (name, content, parts) in [
        (
            "latin.toml",
            bytes(b"device = \"caf\xe9\"\n"),
            &["is no UTF-8 text: the byte 0xe9", "latin.toml:4:14", "4 | device = \"caf", "save it as UTF-8"]
                [..],
        ),
        ("wide.toml", utf_16, &["is UTF-16 text", "--> wide.toml", "save it as UTF-8"]),
        ("zeros.toml", vec![0; 64], &["no TOML: ", "zeros.toml:1:1"]),
        (
            "large.toml",
            vec![b'#'; (1 << 20) + 1],
            &["large.toml is larger than 1048576 bytes", "--> large.toml"],
        ),
        ("empty.toml", Vec::new(), &["server: missing", "camera: missing", "bundle: missing", "3 problems"]),
        (
            "many.toml",
            (0..30_000).flat_map(|number| format!("k{number} = 1\n").into_bytes()).collect(),
            &["k0: unknown key", "there are 29950 problems more", "54 problems"],
        ),
        (
            "long.toml",
            bytes(format!("device = \"{}\"\n", "x".repeat(100_000)).as_bytes()),
            &["long.toml:4:10", "a device name has 1 to 64 characters"],
        ),
        (
            "crlf.toml",
            bytes(b"top_k = 0\r\ncodec = 1\r\n"),
            &["crlf.toml:4:9", "4 | top_k = 0\n", "crlf.toml:5:9"],
        ),
        (
            "mark.toml",
            [b"\xef\xbb\xbftop_k = 0\n", good.as_bytes()].concat(),
            &["mark.toml:1:9", "1 | top_k = 0\n  |         ^\n"],
        ),
    ] {
        std::fs::write(folder.join(name), content).unwrap();
        let (said, status) = said(folder, name, &[]);
        assert_eq!(status, Some(1), "{name}: {said}");
        assert!(said.len() < 40_000, "{name}: {} bytes are said", said.len());
        for part in parts {
            assert!(said.contains(part), "{name} does not say `{part}`: {said}");
        }
    }
    for (name, part) in
        [("photos", "photos is no file, but a folder"), ("none.toml", "cannot read none.toml")]
    {
        let (said, status) = said(folder, name, &[]);
        assert!(status == Some(1) && said.contains(part) && said.contains("= help: "), "{said}");
    }
}

#[test]
fn marks_of_the_byte_order_and_ends_of_lines_of_windows_are_no_mistakes() {
    let folder = folder();
    let text = format!("\u{feff}{NEEDED}\n[network]\nhostname = \"door-1\"\n").replace('\n', "\r\n");
    std::fs::write(folder.path().join("a.toml"), text).unwrap();
    let (said, status) = said(folder.path(), "a.toml", &[]);
    assert!(status == Some(0) && said.contains("a.toml: good") && said.contains("called door-1"), "{said}");
}

#[test]
fn programs_get_the_same_as_json() {
    let folder = folder();
    std::fs::write(folder.path().join("a.toml"), format!("{NEEDED}\n[network]\ndns = \"10.0.0.1\"\n"))
        .unwrap();
    let (text, status) = said(folder.path(), "a.toml", &["--json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({ "ok": false, "problems": [{
        "file": "a.toml",
        "line": 5,
        "column": 7,
        "key": "network.dns",
        "reason": "expected a list of texts",
        "fix": "write dns = [\"10.0.0.1\"]",
    }] });
    assert_eq!((found, status), (expected, Some(1)));
    std::fs::write(folder.path().join("a.toml"), NEEDED).unwrap();
    let (text, status) = said(folder.path(), "a.toml", &["--json"]);
    assert_eq!((text.as_str(), status), ("{\"ok\":true,\"problems\":[]}\n", Some(0)));
}

#[test]
fn colours_are_for_terminals() {
    let folder = folder();
    std::fs::write(folder.path().join("a.toml"), "top_k = 0\n").unwrap();
    let said = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glimpse-firmware"));
        command.current_dir(folder.path()).args(["check", "a.toml"]);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").envs(variables.iter().copied());
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    assert!(!said(&[]).contains('\u{1b}'));
    assert!(said(&[("CLICOLOR_FORCE", "1")]).contains("\u{1b}["));
    assert!(!said(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\u{1b}'));
}
