//! Any text as the registry of devices: what is one comes back the same from its own text.
#![no_main]

use glimpse_gallery::access::Registry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Registry::parse(text) {
        Ok(registry) => assert_eq!(Registry::parse(&registry.to_toml()).as_ref(), Ok(&registry)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
