//! EntroPIC: entropy control for JAX-exported train steps.
//!
//! This library is what the program `entropic` is made of: model bundles,
//! plugins, data, the train loop and its metrics. The graph work is in [`passes`] and
//! [`hlo`], the device in [`pjrt`]; this is the only room that touches files,
//! the environment and the clock.

pub mod bundle;
pub mod data;
pub mod diff;
pub mod engine;
pub mod explain;
pub mod files;
pub mod model;
pub mod plugin;
pub mod report;
pub mod train;
pub mod verify;
