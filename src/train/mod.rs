//! Training: data in, steps on the device, metrics out.
//!
//! The host never decides anything between two steps. It launches step `t + 1`
//! before it has read what step `t` reports, keeps at most [`IN_FLIGHT`] steps under way, and reads each step's loss and
//! telemetry once it is `IN_FLIGHT - 1` steps old. Everything in a run but the clock follows from bundle,
//! policy, data and seed.

mod batch;
mod run_folder;
mod setup;
mod stepper;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::bundle::BundleError;
use crate::data::DataError;
use crate::engine::EngineError;
use crate::files::WriteError;

pub use batch::{BatchMaker, decode_scalar};
pub use run_folder::{RunFolder, RunFolderError};
pub use setup::{Options, Setup};
pub use stepper::{Evaluator, Launched, Stepper};

/// Steps that may be under way at a time.
pub const IN_FLIGHT: usize = 3;

/// What one step reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRecord {
    /// Number of the step, from 0.
    pub step: u64,
    /// Training loss on this step's batch, before its update; `null` where it is not finite.
    pub loss: Option<f64>,
    /// Seconds from the first launch to the moment the host had read this step.
    pub seconds: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// All steps were done.
    Complete,
    /// The user asked it to end early.
    Interrupted,
    /// The controller asked for it.
    Stopped,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Version of this format.
    pub format_version: u32,
    /// How the run ended.
    pub ending: Ending,
    /// Steps done.
    pub steps: u64,
    /// Loss on held-out data before the first step.
    pub held_out_before: Option<f64>,
    /// Loss on held-out data after the last step.
    pub held_out_after: Option<f64>,
    /// Unit of the losses.
    pub loss_unit: String,
    /// Seconds of training, without compiling and evaluating.
    pub seconds: f64,
    /// Steps per second.
    pub steps_per_second: f64,
    /// Steps whose loss was not finite.
    pub non_finite_losses: u64,
    /// The run's folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

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
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The run's folder.
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    /// A file of the run.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Told what happens while it happens.
pub trait Observer {
    /// A phase before or after the steps begins.
    fn phase(&mut self, what: &str);
    /// The steps begin.
    fn start(&mut self, steps: u64);
    /// A step was read.
    fn step(&mut self, record: &StepRecord);
    /// No more steps follow.
    fn finish(&mut self);
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn phase(&mut self, _: &str) {}
    fn start(&mut self, _: u64) {}
    fn step(&mut self, _: &StepRecord) {}
    fn finish(&mut self) {}
}

/// Trains: evaluates, runs the steps, evaluates again, and leaves a run folder behind.
///
/// `interrupt` is looked at before each launch; once it is set, steps under way are read and the run ends in order.
///
/// # Errors
///
/// See [`TrainError`]. Metrics of the steps that were read are on disk then.
pub fn run(options: &Options, interrupt: &AtomicBool, observer: &mut dyn Observer) -> Result<Summary, TrainError> {
    let setup = Setup::new(options, observer)?;
    let Setup { mut stepper, evaluator, mut batches, split, mut folder, loss_unit, loss } = setup;
    let held_out = |batches: &mut BatchMaker, stepper: &Stepper| match &evaluator {
        Some(evaluator) => batches.held_out_loss(evaluator, stepper, &split),
        None => Ok(None),
    };

    observer.phase("evaluating before training");
    let held_out_before = held_out(&mut batches, &stepper)?;

    observer.start(options.steps);
    let start = Instant::now();
    let mut in_flight: VecDeque<(u64, Launched)> = VecDeque::with_capacity(IN_FLIGHT);
    let (mut done, mut non_finite_losses) = (0, 0);
    let mut ending = Ending::Complete;
    let mut next = 0;
    loop {
        if next < options.steps && interrupt.load(Ordering::Relaxed) {
            ending = Ending::Interrupted;
        }
        let launching = next < options.steps && ending == Ending::Complete;
        if launching {
            let batch = batches.training(&split, u64::from(options.seed), next)?;
            in_flight.push_back((next, stepper.launch(&[batch])?));
            next += 1;
            if in_flight.len() < IN_FLIGHT {
                continue;
            }
        }
        let Some((step, launched)) = in_flight.pop_front() else { break };
        let report = launched.wait()?;
        let loss = loss
            .and_then(|(position, element_type)| decode_scalar(report.get(position)?, element_type))
            .filter(|loss| loss.is_finite());
        let record = StepRecord { step, loss, seconds: start.elapsed().as_secs_f64() };
        done += 1;
        non_finite_losses += u64::from(record.loss.is_none());
        folder.record(&record)?;
        observer.step(&record);
    }
    let seconds = start.elapsed();
    observer.finish();
    folder.flush()?;

    observer.phase("evaluating after training");
    let held_out_after = held_out(&mut batches, &stepper)?;
    let summary = Summary {
        format_version: run_folder::FORMAT_VERSION,
        ending,
        steps: done,
        held_out_before,
        held_out_after,
        loss_unit,
        seconds: seconds.as_secs_f64(),
        steps_per_second: rate(done, seconds),
        non_finite_losses,
        folder: folder.path().to_owned(),
    };
    folder.summary(&summary)?;
    Ok(summary)
}

fn rate(steps: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { steps as f64 / time.as_secs_f64() }
}
