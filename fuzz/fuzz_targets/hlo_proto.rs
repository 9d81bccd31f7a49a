//! Serialized modules: what imports comes out byte for byte, and neither rules nor discovery trip over it.

#![no_main]

use hlo::Module;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(module) = Module::import(bytes) else { return };
    let again = Module::import(&module.export()).expect("what was exported is imported");
    assert_eq!(module.export(), again.export());
    if hlo::verify::verify(&module).is_ok() {
        let _ = passes::discover(&module);
    }
});
