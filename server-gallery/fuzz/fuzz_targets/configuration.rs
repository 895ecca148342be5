//! Any text as `gallery.toml`: problems are told, or there is a configuration.
#![no_main]

use glimpse_gallery::config::RawConfig;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|text: &[u8]| {
    let file = PLACE.path().join("gallery.toml");
    std::fs::write(&file, text).unwrap();
    let mut problems = Vec::new();
    let raw = RawConfig::default().or_file(&file, &mut problems);
    let told = !problems.is_empty();
    match raw.validate(problems) {
        Ok(_) => assert!(!told),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
