//! HLO text: what is read is printed, and what is printed is read.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(module) = hlo::text::parse(text) else { return };
    if hlo::verify::verify(&module).is_ok() {
        let printed = hlo::text::print(&module, hlo::text::Preset::Canonical);
        hlo::text::parse(&printed).expect("what is printed is read");
    }
});
