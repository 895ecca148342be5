//! Any text as `device.toml`: each problem has a place in the text, and what has none is a device.
#![no_main]

use glimpse_protocol::device::RawDevice;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    let (raw, problems) = RawDevice::parse(text, Path::new("/etc/glimpse"));
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for place in problems.iter().filter_map(|problem| problem.place.as_ref()) {
        assert!((1..=lines).contains(&place.line) && place.column >= 1);
        assert!(text.get(place.span.clone()).is_some());
    }
    assert!(problems.iter().all(|problem| !problem.reason.is_empty() && !problem.fix.is_empty()));
    let were_problems = !problems.is_empty();
    match raw.validate(problems) {
        Ok(device) => {
            assert!(!were_problems);
            assert!(device.bundle.is_some() || device.model.is_some());
        }
        Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
    }
});
