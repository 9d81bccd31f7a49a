//! Graph passes that find the train step in an HLO module and inject the entropy controller.
//!
//! Pure: no files, no environment, no clock, no randomness. The same module and
//! policy give the same bytes.

pub mod step;

pub mod discover;

pub mod expose;

pub mod policy;

pub mod layout;

pub mod telemetry;

pub mod pass;

pub mod inline_calls;

pub mod gradient_all_reduce;

pub mod loops;

pub mod manual;

pub mod measure_entropy;

pub mod project_steps;

pub mod control;

pub mod scale_momentum;

pub mod switch_optimizer;

pub mod spectral;

pub mod scale_updates;

pub mod gate;

pub mod rollback;

pub mod append_state;

pub mod inject;

pub mod fuse_steps;

pub mod state_checksum;

pub mod reference;

pub mod values;

mod listed;

mod mesh;

mod names;

pub use discover::{DiscoverError, discover, discover_with};
pub use fuse_steps::{FuseError, FuseSteps, StepInput, StepOutput};
pub use gradient_all_reduce::{Reduction, Replicas, Weighting};
pub use inject::{InjectError, InjectOptions, Injection, inject, inject_observed, inject_step, replicate_step};
pub use layout::ControllerLayout;
pub use pass::{Changed, Context, Pass, PassError, Pipeline, PipelineError};
pub use policy::{Policy, PolicyError};
pub use step::TrainStep;
pub use telemetry::Telemetry;
