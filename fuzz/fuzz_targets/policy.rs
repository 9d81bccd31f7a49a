//! Policies in TOML.

#![no_main]

use libfuzzer_sys::fuzz_target;
use passes::Policy;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Policy::parse(text);
    }
});
