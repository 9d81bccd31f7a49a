//! Lines of `metrics.jsonl`, as `explain` and `report` read them.

#![no_main]

use entropic::train::StepRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|&b| b == b'\n') {
        if let Ok(record) = serde_json::from_slice::<StepRecord>(line) {
            serde_json::to_string(&record).expect("a record is JSON");
        }
    }
});
