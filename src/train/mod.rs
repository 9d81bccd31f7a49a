//! Training: data in, steps on the device, metrics out.
//!
//! The host never decides anything between two launches, each of one step or of several. After the first it launches
//! the next before it has read what the one before reports, keeps at most [`IN_FLIGHT`] under way, and reads the losses and
//! telemetry of each once it is `IN_FLIGHT - 1` launches old. Everything in a run but the clock follows from bundle,
//! policy, data and seed.

mod batch;
mod corruption;
mod run_folder;
mod setup;
mod stepper;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use passes::PolicyError;
use passes::telemetry::{Telemetry, TelemetryError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bundle::{BundleError, FuseBundleError};
use crate::data::DataError;
use crate::engine::EngineError;
use crate::files::WriteError;

pub use batch::{BatchArray, BatchMaker, decode_scalar, upload};
pub use corruption::{Corruption, Fault, Share, ShareError};
pub use run_folder::{FORMAT_VERSION as RUN_FORMAT_VERSION, RunFolder, RunFolderError};
pub use setup::{ControllerArray, InitialState, Options, Setup, TelemetryReader, controller_arrays};
pub use stepper::{Evaluator, Launched, State, StepProgram, Stepper};

/// Launches that may be under way at a time.
pub const IN_FLIGHT: usize = 3;

/// What one step reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 0.
    pub step: u64,
    /// Training loss on this step's batch, before its update; `null` where it is not finite.
    pub loss: Option<f64>,
    /// Seconds from the first launch to the moment the host had read this step, with all others of its launch.
    pub seconds: f64,
    /// What was wrong with the batch on purpose, where [`Options::corruption`] asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What the controller reports, where there is one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlRecord>,
}

/// What the controller reports of one step. What is absent or not finite is `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlRecord {
    /// Entropy of the whole gradient, in \[0, 1\].
    pub entropy: Option<f32>,
    /// Its mean over the last accepted steps.
    pub smoothed: Option<f32>,
    /// Its target, once there is one.
    pub target: Option<f32>,
    /// Norm of the whole gradient, before clipping.
    #[serde(deserialize_with = "not_finite_is_null")]
    pub norm: f32,
    /// The norm above which the step would have been refused, where the norm gate was armed.
    pub norm_threshold: Option<f32>,
    /// Why the update was refused; `null` where it was applied.
    pub gate: Option<GateReason>,
    /// Whether the gates were re-armed by this step.
    pub rearmed: bool,
    /// Whether targets were calibrated by this step.
    pub calibrated: bool,
    /// Whether the controller asks for the end of the run.
    pub stop: bool,
    /// Accepted steps so far.
    pub accepted: u64,
    /// Steps with a non-finite gradient so far.
    pub non_finite: u64,
    /// Steps refused for their norm so far.
    pub refused_norm: u64,
    /// Steps refused for too low an entropy so far.
    pub refused_low: u64,
    /// Steps refused for too high an entropy so far.
    pub refused_high: u64,
    /// How often the gates were re-armed so far.
    pub rearmings: u64,
    /// Steps so far that overflowed under the step's own loss scale, which answers that itself.
    #[serde(default)]
    pub loss_scale_skips: u64,
    /// What became of the copies of held states, where such are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRecord>,
    /// Whether it was SGD that made this step, where the optimizer may be switched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched: Option<bool>,
    /// The projected rate of each tensor then, `null` where there is none yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensor_switch_rate: Vec<Option<f32>>,
    /// Ratio of smoothed entropy to target, once there is one.
    pub ratio: Option<f32>,
    /// What the laws of all tensors make of the learning rate, where there is a law.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f32>,
    /// What they make of the momentum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum_scale: Option<f32>,
    /// Entropy of each tensor's gradient; the names are in `run.json`.
    pub tensor_entropy: Vec<Option<f32>>,
    /// Norm of each tensor's gradient.
    #[serde(deserialize_with = "not_finite_are_null")]
    pub tensor_norm: Vec<f32>,
    /// Scale of each tensor's update.
    pub tensor_scale: Vec<f32>,
    /// Scale of each tensor's momentum coefficients; empty where the policy scales none.
    pub tensor_momentum: Vec<f32>,
}

/// What became of the copies of held states in one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RollbackRecord {
    /// Whether held states returned to their copies in this step.
    pub rolled_back: bool,
    /// Whether the copies were renewed by this step.
    pub snapshot_taken: bool,
    /// Returns so far.
    pub rollbacks: u64,
    /// Copies taken so far.
    pub snapshots: u64,
    /// The back-off's scale of every learning rate in this step.
    pub backoff: f32,
}

/// JSON has no NaN: a number that is not finite is written as `null`.
fn not_finite_is_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f32::NAN))
}

fn not_finite_are_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
    let values: Vec<Option<f32>> = Vec::deserialize(from)?;
    Ok(values.into_iter().map(|v| v.unwrap_or(f32::NAN)).collect())
}

/// Why an update was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateReason {
    /// Some gradient held NaN or infinity.
    NonFinite,
    /// The same, in a step that scales its loss: how a loss scale finds its level, and no anomaly.
    LossScale,
    /// The norm of the gradient was extraordinary.
    Norm,
    /// Its entropy was far below the target.
    EntropyLow,
    /// Its entropy was far above the target.
    EntropyHigh,
    /// The controller does not say.
    Other,
}

impl From<Telemetry> for ControlRecord {
    fn from(t: Telemetry) -> Self {
        let gate = match (t.applied, t.finite, t.norm_exceeded) {
            (true, ..) => None,
            (false, false, _) if t.skipped => Some(GateReason::LossScale),
            (false, false, _) => Some(GateReason::NonFinite),
            (false, true, true) => Some(GateReason::Norm),
            (false, true, false) if t.entropy_low => Some(GateReason::EntropyLow),
            (false, true, false) if t.entropy_high => Some(GateReason::EntropyHigh),
            (false, true, false) => Some(GateReason::Other),
        };
        // The device counts in f32; no count is negative.
        let count = |value: f32| value as u64;
        Self {
            entropy: t.global.entropy,
            smoothed: t.global.smoothed,
            target: t.global.target,
            norm: t.global.norm,
            norm_threshold: t.norm_threshold,
            gate,
            rearmed: t.rearmed,
            calibrated: t.calibrated,
            stop: t.stop,
            accepted: count(t.accepted),
            non_finite: count(t.non_finite),
            refused_norm: count(t.refused_norm),
            refused_low: count(t.refused_low),
            refused_high: count(t.refused_high),
            rearmings: count(t.rearmings),
            loss_scale_skips: count(t.loss_scale_skips),
            rollback: t.rollback.map(|r| RollbackRecord {
                rolled_back: r.rolled_back,
                snapshot_taken: r.snapshot_taken,
                rollbacks: count(r.rollbacks),
                snapshots: count(r.snapshots),
                backoff: r.backoff,
            }),
            switched: t.switch.as_ref().map(|s| s.switched),
            tensor_switch_rate: t.switch.map_or(Vec::new(), |s| s.rates),
            ratio: t.global.ratio,
            lr_scale: t.lr_scale,
            momentum_scale: t.momentum_scale,
            tensor_entropy: t.tensors.iter().map(|m| m.entropy).collect(),
            tensor_norm: t.tensors.iter().map(|m| m.norm).collect(),
            tensor_scale: t.scales,
            tensor_momentum: t.momentum,
        }
    }
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
    /// Seconds from the start of the program to the end of the first step; `null` if there was none.
    pub first_step_seconds: Option<f64>,
    /// Programs that were compiled for the run.
    pub compiled: usize,
    /// Programs that came from the compile cache.
    pub cached: usize,
    /// Seconds of training, without compiling and evaluating.
    pub seconds: f64,
    /// Steps per second.
    pub steps_per_second: f64,
    /// Steps whose loss was not finite.
    pub non_finite_losses: u64,
    /// What the gates did; `null` without a controller.
    pub gates: Option<Gates>,
    /// The run's folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// What the gates did over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Gates {
    /// Updates refused because a gradient was not finite.
    pub non_finite: u64,
    /// Updates refused for the norm of the gradient.
    pub norm: u64,
    /// Updates refused for an entropy of the gradient below the band.
    pub entropy_low: u64,
    /// Updates refused for one above it.
    pub entropy_high: u64,
    /// Updates refused for another reason.
    pub other: u64,
    /// How often the gates were re-armed.
    pub rearmed: u64,
    /// Steps skipped for an overflow under the step's own loss scale.
    pub loss_scale_skips: u64,
    /// How often held states returned to their copies.
    pub rolled_back: u64,
}

impl Gates {
    /// What happened, with how often, in words; what did not happen is left out.
    #[must_use]
    pub fn told(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("not finite", self.non_finite),
            ("norm", self.norm),
            ("entropy below the band", self.entropy_low),
            ("entropy above the band", self.entropy_high),
            ("other", self.other),
            ("skipped by the loss scale", self.loss_scale_skips),
            ("rolled back", self.rolled_back),
            ("re-armed", self.rearmed),
        ];
        all.into_iter().filter(|&(_, count)| count > 0).collect()
    }

    /// Updates refused for whatever reason, skips of the loss scale left out.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.non_finite + self.norm + self.entropy_low + self.entropy_high + self.other
    }

    fn count(&mut self, record: &ControlRecord) {
        match record.gate {
            None => {}
            Some(GateReason::NonFinite) => self.non_finite += 1,
            Some(GateReason::Norm) => self.norm += 1,
            Some(GateReason::EntropyLow) => self.entropy_low += 1,
            Some(GateReason::EntropyHigh) => self.entropy_high += 1,
            Some(GateReason::LossScale) => self.loss_scale_skips += 1,
            Some(GateReason::Other) => self.other += 1,
        }
        self.rolled_back += u64::from(record.rollback.is_some_and(|r| r.rolled_back));
        self.rearmed += u64::from(record.rearmed);
    }
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
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Telemetry that cannot be read.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
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

/// Trains: runs the steps, evaluates the states after and before them, and leaves a run folder behind.
///
/// The initial state is made again when the steps are done, so that the first of them need not wait for its evaluation.
///
/// `interrupt` is looked at before each launch, and so is what the controller asked for in launches that were read; once one
/// of them says so, steps under way are read and the run ends in order.
///
/// # Errors
///
/// See [`TrainError`]. Metrics of the steps that were read are on disk then.
pub fn run(options: &Options, interrupt: &AtomicBool, observer: &mut dyn Observer) -> Result<Summary, TrainError> {
    let mut trainer = Trainer::new(Setup::new(options, observer)?);
    observer.start(options.steps);
    let start = Instant::now();
    let ending = trainer.train(options.steps, interrupt, observer);
    let seconds = start.elapsed();
    observer.finish();
    let ending = ending?;

    observer.phase("evaluating");
    let held_out_after = trainer.held_out_loss()?;
    let held_out_before = trainer.initial_held_out_loss()?;
    let summary = Summary {
        format_version: run_folder::FORMAT_VERSION,
        ending,
        steps: trainer.done,
        held_out_before,
        held_out_after,
        loss_unit: trainer.setup.loss_unit.clone(),
        first_step_seconds: trainer.first_step.map(|time| (time - options.started).as_secs_f64()),
        compiled: trainer.setup.engine.programs().compiled(),
        cached: trainer.setup.engine.programs().cached(),
        seconds: seconds.as_secs_f64(),
        steps_per_second: rate(trainer.done, seconds),
        non_finite_losses: trainer.non_finite_losses,
        gates: trainer.gates,
        folder: trainer.setup.folder.path().to_owned(),
    };
    trainer.setup.folder.summary(&summary)?;
    Ok(summary)
}

/// A run under way.
#[derive(Debug)]
pub struct Trainer {
    setup: Setup,
    /// Number of the next step to launch.
    next: u64,
    /// Steps that were read.
    done: u64,
    non_finite_losses: u64,
    gates: Option<Gates>,
    start: Instant,
    /// When the first step was read.
    first_step: Option<Instant>,
}

impl Trainer {
    /// A run that has not done a step yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let gates = setup.telemetry.as_ref().map(|_| Gates::default());
        Self { setup, next: 0, done: 0, non_finite_losses: 0, gates, start: Instant::now(), first_step: None }
    }

    /// What the run is made of.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The loss on held-out data as the state is now; `None` where the bundle cannot compute it, or it is not finite.
    ///
    /// # Errors
    ///
    /// Where the device fails.
    pub fn held_out_loss(&mut self) -> Result<Option<f64>, TrainError> {
        let Setup { engine, evaluator, batches, stepper, .. } = &mut self.setup;
        Ok(match evaluator {
            Some(evaluator) => batches.held_out_loss(engine, evaluator, stepper)?,
            None => None,
        })
    }

    /// The loss on held-out data before the first step. The state is the initial one afterwards, so this ends the run.
    ///
    /// # Errors
    ///
    /// Where the device fails.
    pub fn initial_held_out_loss(&mut self) -> Result<Option<f64>, TrainError> {
        if self.setup.evaluator.is_none() {
            return Ok(None);
        }
        self.setup.stepper.restart(&self.setup.initial)?;
        self.held_out_loss()
    }

    /// Does `steps` more steps, and returns when all of them have been read.
    ///
    /// # Errors
    ///
    /// Where the device or the run folder fails; what was read until then is on disk.
    pub fn train(
        &mut self,
        steps: u64,
        interrupt: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Ending, TrainError> {
        if self.done == 0 {
            self.start = Instant::now();
        }
        let result = self.pump(self.next.saturating_add(steps), interrupt, observer);
        let flushed = self.setup.folder.flush();
        let ending = result?;
        flushed?;
        Ok(ending)
    }

    fn pump(&mut self, end: u64, interrupt: &AtomicBool, observer: &mut dyn Observer) -> Result<Ending, TrainError> {
        let mut in_flight = VecDeque::with_capacity(IN_FLIGHT);
        let mut ending = Ending::Complete;
        loop {
            if self.next < end && ending == Ending::Complete && interrupt.load(Ordering::Relaxed) {
                ending = Ending::Interrupted;
            }
            if self.next < end && ending == Ending::Complete {
                in_flight.push_back(self.launch(end)?);
                // The first step of a run is read at once, so that it is known when it was done.
                if in_flight.len() < IN_FLIGHT && self.done > 0 {
                    continue;
                }
            }
            let Some(oldest) = in_flight.pop_front() else { return Ok(ending) };
            for record in self.read(oldest)? {
                observer.step(&record);
                if record.control.is_some_and(|c| c.stop) {
                    ending = Ending::Stopped;
                }
            }
        }
    }

    /// Launches the next steps, as many as one launch does, but none beyond `end`.
    fn launch(&mut self, end: u64) -> Result<UnderWay, TrainError> {
        let Setup { engine, stepper, rest, batches, .. } = &mut self.setup;
        let left = end.saturating_sub(self.next);
        if stepper.steps() > left {
            let single = rest.take().ok_or(TrainError::Rest { left, steps: stepper.steps() })?;
            stepper.go_on_with(single);
        }
        let steps = self.next..self.next.saturating_add(stepper.steps());
        let uploaded = |device| upload(engine, device, &batches.training(steps.clone(), device));
        let launched = stepper.launch_on_all(&(0..engine.devices()).map(uploaded).collect::<Result<Vec<_>, _>>()?)?;
        self.next = steps.end;
        Ok(UnderWay { steps, launched })
    }

    fn read(&mut self, UnderWay { steps, launched }: UnderWay) -> Result<Vec<StepRecord>, TrainError> {
        let report = launched.wait()?;
        self.first_step.get_or_insert_with(Instant::now);
        let seconds = self.start.elapsed().as_secs_f64();
        let count = steps.clone().count();
        let one = |(position, step)| {
            let report: Vec<&[u8]> = report.iter().map(|array| one_of(array, position, count)).collect();
            self.record(step, seconds, &report)
        };
        (0..).zip(steps).map(one).collect()
    }

    /// Notes what a step reports.
    fn record(&mut self, step: u64, seconds: f64, report: &[&[u8]]) -> Result<StepRecord, TrainError> {
        let Setup { loss, telemetry, folder, batches, .. } = &mut self.setup;
        let loss = loss
            .and_then(|(position, element_type)| decode_scalar(report.get(position)?, element_type))
            .filter(|loss| loss.is_finite());
        let control = telemetry.as_ref().map(|t| t.read(report)).transpose()?;
        let record = StepRecord { step, loss, seconds, fault: batches.fault(step), control };
        if let (Some(gates), Some(control)) = (&mut self.gates, &record.control) {
            gates.count(control);
        }
        self.done += 1;
        self.non_finite_losses += u64::from(loss.is_none());
        folder.record(&record)?;
        Ok(record)
    }
}

/// A launch that has not been read.
#[derive(Debug)]
struct UnderWay {
    steps: Range<u64>,
    launched: Launched,
}

/// The part of an array that step `position` of `count` made.
fn one_of(array: &[u8], position: usize, count: usize) -> &[u8] {
    array.chunks(array.len().div_ceil(count.max(1)).max(1)).nth(position).unwrap_or_default()
}

fn rate(steps: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { steps as f64 / time.as_secs_f64() }
}
