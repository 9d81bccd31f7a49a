//! EntroPIC: entropy control for JAX-exported train steps.
//!
//! This library is what the program `entropic` is made of: model bundles,
//! plugins, data, the train loop and its metrics. The graph work is in [`passes`] and
//! [`hlo`], the device in [`pjrt`]; this is the only room that touches files,
//! the environment and the clock.

pub mod audit;
pub mod build;
pub mod bundle;
pub mod cache;
pub mod cli;
pub mod data;
pub mod diff;
pub mod document;
pub mod engine;
mod environment;
pub mod explain;
pub mod exporter;
pub mod files;
pub mod input;
pub mod isolate;
pub mod model;
pub mod partition;
pub mod plugin;
pub mod policy_file;
pub mod recorded;
pub mod report;
pub mod run_report;
mod table;
pub mod target;
pub mod train;
pub mod verify;
#[cfg(feature = "xla-rs")]
pub mod xla_rs;
