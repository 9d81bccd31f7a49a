//! `manifest.json` of a bundle, and its comparison with a module.

#![no_main]

use entropic::bundle::{Manifest, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(manifest) = Manifest::from_json(text) else { return };
    let _ = check::check(&manifest, &hlo::Module::new("empty"));
    let again = Manifest::from_json(&manifest.to_json().expect("a manifest is JSON")).expect("what is written is read");
    assert_eq!(manifest, again);
});
