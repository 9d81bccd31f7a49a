//! Every committed module: it imports, passes the verifier, and exports byte for byte.

#[cfg(test)]
mod common;

use hlo::Module;

#[test]
fn every_module_passes_the_verifier_and_exports_byte_for_byte() {
    let files = common::modules();
    assert!(files.len() > 40, "only {} modules found", files.len());
    for (name, bytes) in files {
        let module = Module::import(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        hlo::verify::verify(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(module.export() == bytes, "{name}: exported bytes differ");
    }
}
