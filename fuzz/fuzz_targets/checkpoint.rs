//! Checkpoints whose files are whole and say anything: the input is `checkpoint.json`, a zero, and `state.safetensors`.

#![no_main]

use entropic::train::checkpoint::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (manifest, state) = bytes.split_at(at);
    let state = state.get(1..).unwrap_or_default();
    let _ = decode(manifest, |name| Ok(if name == "state.safetensors" { state.to_vec() } else { Vec::new() }));
});
