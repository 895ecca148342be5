//! Any text as `device.toml`: each problem has a line of the text, and what has none is a device.
#![no_main]

use glimpse_protocol::device::RawDevice;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    let (raw, problems) = RawDevice::parse(text, Path::new("/etc/glimpse"));
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    assert!(problems.iter().all(|problem| problem.line.is_none_or(|line| (1..=lines).contains(&line))));
    assert!(problems.iter().all(|problem| !problem.message.is_empty()));
    let were_problems = !problems.is_empty();
    match raw.validate(problems) {
        Ok(device) => {
            assert!(!were_problems);
            assert!(device.bundle.is_some() || device.model.is_some());
        }
        Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
    }
});
