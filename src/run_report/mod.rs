//! What is shown of recorded runs: one as a page, several side by side, one as event files for TensorBoard.
//!
//! Metrics are read once, one step at a time. What a page holds is bounded by bins, not by steps: a run of a million steps
//! makes a page as large as one of a thousand.

mod chart;
mod compare;
mod heat;
mod overview;
mod page;
mod series;
mod tensorboard;

pub use compare::{Agreement, Row, comparison, outcomes, settings};
pub use overview::{Event, FINAL, Overview, Weight};
pub use page::page;
pub use series::{Bin, Series, rates};
pub use tensorboard::{Events, TensorBoardError, tensorboard};
