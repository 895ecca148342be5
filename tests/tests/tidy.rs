//! What `DESIGN` and `ARCHITECTURE.md` promise about the repository, held true.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use glimpse_tests::workspace::root;
use toml::{Table, Value};

/// Folder, crate, and the crates of ours that it may depend on.
#[rustfmt::skip]
const CRATES: [(&str, &str, &[&str]); 13] = [
    ("protocol", "glimpse-protocol", &[]),
    ("quantizer", "glimpse-quantizer", &["glimpse-protocol"]),
    ("embedder", "glimpse-embedder", &["glimpse-protocol", "glimpse-embedder-core", "glimpse-kernels", "glimpse-plan"]),
    ("embedder/core", "glimpse-embedder-core", &["glimpse-protocol", "glimpse-kernels", "glimpse-plan"]),
    ("embedder/kernels", "glimpse-kernels", &[]),
    ("embedder/plan", "glimpse-plan", &["glimpse-kernels"]),
    ("edge", "glimpse-edge", &["glimpse-protocol", "glimpse-quantizer", "glimpse-embedder"]),
    ("edge/mcu", "glimpse-mcu", &["glimpse-edge", "glimpse-protocol", "glimpse-embedder-core", "glimpse-plan"]),
    ("server-gallery", "glimpse-gallery", &["glimpse-protocol", "glimpse-quantizer", "glimpse-embedder"]),
    ("trainer", "glimpse-trainer", &["glimpse-protocol", "glimpse-quantizer", "glimpse-embedder", "burn-onnx-export"]),
    ("trainer/onnx-export", "burn-onnx-export", &[]),
    ("firmware-config", "glimpse-firmware", &["glimpse-protocol"]),
    ("tests", "glimpse-tests", &["glimpse-protocol", "glimpse-embedder"]),
];

// The gallery network, and the query network in f32 and int8.
const MODELS_BYTES_MAX: u64 = 55_000_000;
const DEMO_PHOTOS_BYTES_MAX: u64 = 15_000_000;

#[test]
fn the_workspace_has_the_crates_of_the_design_and_no_others() {
    let members: BTreeSet<&str> = CRATES.iter().map(|(folder, ..)| *folder).collect();
    let workspace = manifest(".");
    let found = workspace["workspace"]["members"].as_array().unwrap();
    assert_eq!(found.iter().map(|member| member.as_str().unwrap()).collect::<BTreeSet<_>>(), members);
    for (folder, name, _) in CRATES {
        assert_eq!(manifest(folder)["package"]["name"].as_str(), Some(name), "{folder}");
    }
}

#[test]
fn crates_depend_only_on_those_that_the_design_allows() {
    for (folder, name, allowed) in CRATES {
        for dependency in dependencies(folder).into_keys() {
            let ours = CRATES.iter().any(|(_, other, _)| *other == dependency);
            let itself = dependency == name;
            assert!(
                !ours || itself || allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}: put what both need into a shared crate"
            );
        }
    }
}

#[test]
fn burn_is_only_under_trainer_and_the_broker_only_in_the_server() {
    for (folder, name, _) in CRATES {
        for dependency in dependencies(folder).into_keys() {
            let burn = dependency.starts_with("burn");
            assert!(!burn || folder.starts_with("trainer"), "{name} must not depend on {dependency}");
            let broker = dependency.starts_with("rmqtt");
            assert!(!broker || folder == "server-gallery", "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn versions_are_pinned_in_the_workspace_manifest_alone() {
    for (folder, name, _) in CRATES {
        for (dependency, value) in dependencies(folder) {
            let inherited = value.get("workspace").and_then(Value::as_bool) == Some(true);
            let itself = dependency == name;
            assert!(inherited || itself, "{name}: write `{dependency}.workspace = true`");
        }
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for (folder, name, _) in CRATES {
        let lints = manifest(folder).get("lints").and_then(|lints| lints["workspace"].as_bool());
        assert_eq!(lints, Some(true), "{name}: write `[lints] workspace = true`");
    }
}

#[test]
fn no_test_is_ignored_and_no_machine_is_named() {
    // Put together here, or this file would be the first finding.
    let forbidden = [["#[", "ignore"].concat(), ["/wo", "rk/"].concat(), ["/ro", "ot/"].concat()];
    for path in tracked() {
        // Photos and networks are no text.
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(found) = forbidden.iter().find(|word| line.contains(word.as_str())) {
                // A registry's checksum file may hold anything.
                assert!(path.ends_with("Cargo.lock"), "{}:{}: remove `{found}`", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn models_and_demo_photos_stay_small() {
    for (folder, most) in [("models", MODELS_BYTES_MAX), ("demo/photos", DEMO_PHOTOS_BYTES_MAX)] {
        let bytes = bytes_in(&root().join(folder));
        assert!(bytes > 0 && bytes <= most, "{folder} holds {bytes} bytes, at most {most} are allowed");
    }
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let mut found = 0;
    for document in ["README.md", "ARCHITECTURE.md", "models/demo/README.md", "demo/README.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        let folder = Path::new(document).parent().unwrap();
        for name in named_paths(&text) {
            let exists = [Path::new(""), folder].iter().any(|base| root().join(base).join(&name).exists());
            assert!(exists, "{document} names {name}, which is not there");
            found += 1;
        }
    }
    assert!(found > 20, "only {found} paths were found: the search for them is broken");
}

/// Every link into this repository, and what stands between backticks and has the form of a path into it.
fn named_paths(text: &str) -> Vec<String> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link));
    let links = links.filter(|link| !link.contains(':') && !link.starts_with('#'));
    let links = links.map(|link| link.split_once('#').map_or(link, |(path, _)| path));
    let code = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        // What programs make, and what stands in packages, is elsewhere.
        let made =
            ["target/", "data/", "runs/", "photos/", "glimpse/"].iter().any(|start| word.starts_with(start));
        word.contains('/') && !word.starts_with('/') && word.chars().all(plain) && !made
    };
    links.chain(code.filter(is_path)).map(str::to_owned).collect()
}

/// Where a source photo may be used: on one side of the split only.
#[test]
fn no_source_photo_is_on_two_sides_of_the_split() {
    let mut side_of: HashMap<String, String> = HashMap::new();
    let mut content_of: HashMap<String, String> = HashMap::new();
    for row in rows("tools/data/split.csv") {
        let side = row["split"].clone();
        let source = format!("{}: {}", row["package"], row["source"]);
        let other = side_of.insert(source.clone(), side.clone());
        assert_eq!(other, None, "{source} stands twice in the split");
        let other = content_of.insert(row["sha256"].clone(), side.clone());
        assert!(other.is_none_or(|other| other == side), "{source} has a twin on another side");
    }
    assert!(["train", "val", "test"].iter().all(|side| side_of.values().any(|found| found == side)));

    let photos = rows("demo/photos.csv");
    assert!(!photos.is_empty());
    for row in photos {
        for source in
            [&row["object_source"], &row["scene_source"]].into_iter().filter(|source| !source.is_empty())
        {
            let side = side_of.get(source).map(String::as_str);
            assert_eq!(side, Some("test"), "{source}, in {}, is no test photo", row["path"]);
        }
    }
}

fn rows(path: &str) -> Vec<HashMap<String, String>> {
    let mut reader = csv::Reader::from_path(root().join(path)).unwrap();
    reader.deserialize().collect::<Result<_, _>>().unwrap()
}

fn manifest(folder: &str) -> Table {
    std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

/// Of all kinds and for all targets, by the name of the package, whatever the crate calls it.
fn dependencies(folder: &str) -> BTreeMap<String, Value> {
    let (own, workspace) = (manifest(folder), manifest("."));
    let package_of = |value: &Value| value.get("package").and_then(Value::as_str).map(str::to_owned);
    let inherited = |name: &str| package_of(workspace["workspace"]["dependencies"].get(name)?);
    let targets = own.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flatten().filter_map(|(_, target)| target.as_table());
    let mut found = BTreeMap::new();
    for table in std::iter::once(&own).chain(targets) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in table.get(kind).and_then(Value::as_table).into_iter().flatten() {
                let package = package_of(value).or_else(|| inherited(name)).unwrap_or_else(|| name.clone());
                found.insert(package, value.clone());
            }
        }
    }
    found
}

/// Files that git knows, or would on the next `git add`.
fn tracked() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let output = git.output().expect("git is among the things that have to be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> = files.split_terminator('\0').map(PathBuf::from).collect();
    assert!(files.len() > 100, "only {} files are tracked", files.len());
    files
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() { bytes_in(&entry.path()) } else { metadata.len() }
        })
        .sum()
}
