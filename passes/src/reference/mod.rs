//! The same mathematics in plain `f64`, to hold the emitted programs to.
//!
//! Nothing here is used by a pass. Tests run what the passes emit on a device and
//! compare: statistics against [`statistics`], decisions and state against [`Controller`].

mod checksum;
mod controller;
mod statistics;
mod switch;

pub use checksum::checksum;
pub use controller::{Controller, Step};
pub use statistics::{Statistics, statistics};
pub use switch::{Projections, Switch, Switched};
