//! Graph passes that find the train step in an HLO module and inject the entropy controller.
//!
//! Pure: no files, no environment, no clock, no randomness. The same module and
//! policy give the same bytes.

pub mod step;

pub use step::TrainStep;
