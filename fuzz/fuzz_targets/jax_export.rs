//! Files of `jax.export`: headers and trees; the StableHLO inside goes to a compiler in a process of its own.

#![no_main]

use entropic::input::jax_export::Exported;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(exported) = Exported::read(bytes) {
        let _ = exported.kept_inputs().count();
    }
});
