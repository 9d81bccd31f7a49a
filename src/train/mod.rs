//! Training: data in, steps on the device, metrics out.
//!
//! The host never decides anything between two launches, each of one step or of several. After the first it launches
//! the next before it has read what the one before reports, keeps at most [`IN_FLIGHT`] under way, and reads the losses and
//! telemetry of each once it is `IN_FLIGHT - 1` launches old; what comparing replicas gave is read then, too. Everything in a run but the clock follows from bundle,
//! policy, data and seed.

mod batch;
pub mod checkpoint;
mod consistency;
mod corruption;
mod invocation;
mod metrics_file;
mod record;
mod resume;
mod run_folder;
mod setup;
mod stepper;
mod summary;
mod trainer;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use passes::PolicyError;
use passes::telemetry::TelemetryError;
use thiserror::Error;

use crate::bundle::{BundleError, FuseBundleError};
use crate::data::DataError;
use crate::engine::EngineError;
use crate::files::WriteError;

use checkpoint::CheckpointError;

pub use batch::{BatchArray, BatchMaker, decode_scalar, upload};
pub use checkpoint::Written;
pub use consistency::{
    CheckCost, Consistency, ConsistencyCheck, ConsistencyError, Differing, Found, Mismatch, PendingCheck, ReplicaRecord,
};
pub use corruption::{Corruption, Fault, Share, ShareError};
pub use invocation::{Invocation, PrepareError};
pub use record::{ControlRecord, GateReason, RollbackRecord, StepRecord};
pub use resume::{Checkpointing, OnWriteError, Resume, ResumeError};
pub use run_folder::{FORMAT_VERSION as RUN_FORMAT_VERSION, RunFolder, RunFolderError};
pub use setup::{ControllerArray, InitialState, Options, Setup, TelemetryReader, controller_arrays};
pub use stepper::{Evaluator, Launched, State, StateCopy, StepProgram, Stepper};
pub use summary::{Ending, Gates, Summary};
pub use trainer::Trainer;

/// Launches that may be under way at a time.
pub const IN_FLIGHT: usize = 3;

/// Why training did not start or did not end well.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle lacks something that training needs.
    #[error("{bundle} cannot be trained: {what}")]
    Untrainable {
        /// The bundle.
        bundle: String,
        /// What it lacks, and what to do.
        what: String,
    },
    /// Steps that do not go into one launch.
    #[error(transparent)]
    Fuse(#[from] FuseBundleError),
    /// Fewer steps are left than a launch does.
    #[error(
        "{left} more steps are asked for, a launch does {steps} at once, and there is no program for single ones; ask for a \
         multiple of {steps}, or train the bundle that this one was made from"
    )]
    Rest {
        /// How many are left.
        left: u64,
        /// Steps of one launch.
        steps: u64,
    },
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Arrays are not spoilt on purpose.
    #[error(
        "--corrupt spoils text, and these data are arrays: what their values mean, and so what is wrong with them, is not known; \
         spoil a copy of the arrays instead"
    )]
    CorruptArrays,
    /// The device.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The run's folder.
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    /// The comparison of replicas.
    #[error(transparent)]
    Consistency(#[from] ConsistencyError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Telemetry that cannot be read.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// A file of the run.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A checkpoint, where the run is to end if one cannot be written.
    #[error("{0}; --on-write-error continue goes on without it")]
    Checkpoint(CheckpointError),
    /// The run cannot go on.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

/// Told what happens while it happens.
pub trait Observer {
    /// A phase before or after the steps begins.
    fn phase(&mut self, _what: &str) {}
    /// Something about the run that its reader should know, before the steps.
    fn note(&mut self, _what: &str) {}
    /// Something that went wrong and does not end the run.
    fn warn(&mut self, _what: &str) {}
    /// The steps begin, or go on: `done` of `steps` are done.
    fn start(&mut self, _done: u64, _steps: u64) {}
    /// A step was read.
    fn step(&mut self, _record: &StepRecord) {}
    /// A checkpoint was written, or could not be.
    fn checkpoint(&mut self, _written: &Written) {}
    /// No more steps follow.
    fn finish(&mut self) {}
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Trains: runs the steps, evaluates the states after and before them, and leaves a run folder behind.
///
/// The initial state is made again when the steps are done, so that the first of them need not wait for its evaluation.
///
/// `interrupt` is looked at before each launch, and so is what the controller asked for in launches that were read, and what
/// comparing replicas found; once one of them says so, steps under way are read and the run ends in order.
///
/// # Errors
///
/// See [`TrainError`]. Metrics of the steps that were read are on disk then.
pub fn run(options: Options, interrupt: &AtomicBool, observer: &mut dyn Observer) -> Result<Summary, TrainError> {
    run_prepared(Trainer::new(Setup::new(options, observer)?), interrupt, observer)
}

/// The same for a run that is prepared, and may have done steps before those that are asked for.
///
/// # Errors
///
/// As [`run`].
pub fn run_prepared(
    mut trainer: Trainer,
    interrupt: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Summary, TrainError> {
    let steps = trainer.setup().steps;
    if let Some(check) = &trainer.setup().consistency {
        observer.note(&check.told());
    }
    let begin = trainer.compare_at_start()?;
    observer.start(trainer.next(), steps);
    let start = Instant::now();
    let ending = match begin {
        Some(ending) => Ok(ending),
        None => trainer.train(steps.saturating_sub(trainer.next()), interrupt, observer),
    };
    let seconds = start.elapsed();
    observer.finish();
    let ending = ending?;
    let ending = trainer.compare_at_end()?.unwrap_or(ending);
    trainer.last_checkpoint(ending, observer)?;

    observer.phase("evaluating");
    let held_out_after = trainer.held_out_loss()?;
    let held_out_before = trainer.initial_held_out_loss()?;
    trainer.summarize(ending, seconds, [held_out_before, held_out_after])
}
