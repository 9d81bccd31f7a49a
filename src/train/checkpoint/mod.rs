//! Checkpoints: all that a run needs to go on as if it had never ended.
//!
//! A checkpoint is a folder `checkpoints/step-NNNNNNNNN` in the run's folder:
//!
//! | file | what |
//! |---|---|
//! | `state.safetensors` | what the step carries: parameters, moments, counters, random keys |
//! | `controller.safetensors` | what the controller carries: statistics, targets, counters, copies of held states |
//! | `checkpoint.json` | number of steps done, what ran, how much of the metrics belongs to it, every array |
//! | `SHA256SUMS` | a checksum of each file, for `sha256sum --check`, too |
//!
//! It is written aside, synced and renamed, so that a folder of that name is whole, and every byte of it is held against its
//! checksum before anything goes on from it. Data come from seed and number of the step, so their position is the number.

mod fingerprint;
mod format;
mod store;
mod writer;

pub use fingerprint::{Difference, Fingerprint, Machine};
pub use format::{Array, Checkpoint, FORMAT_VERSION, Tallies, decode};
pub use store::{CheckpointError, Damage, Found, Store};
pub use writer::{Job, Writer, Written};
