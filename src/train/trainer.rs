//! The loop: launches go out ahead, and what they report is read late.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use passes::policy::OnMismatch;

use super::batch::{decode_scalar, upload};
use super::checkpoint::{Checkpoint, Job, Tallies, Writer, Written};
use super::consistency::{Consistency, Found, PendingCheck, ReplicaRecord};
use super::record::StepRecord;
use super::resume::OnWriteError;
use super::run_folder::{FORMAT_VERSION, RunFolderError};
use super::setup::Setup;
use super::stepper::{Launched, StateCopy, Stepper};
use super::summary::{Ending, Gates, Summary};
use super::{IN_FLIGHT, Observer, TrainError};

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
    /// What comparing replicas found.
    consistency: Option<Consistency>,
    /// Steps that were done when replicas were compared last.
    compared: Option<u64>,
    /// Steps that were launched when states of replica 0 were copied to all others: what was compared before is settled.
    settled: Option<u64>,
    start: Instant,
    /// Seconds of training before the run went on.
    seconds_before: f64,
    /// Where the run went on from, in order.
    resumed_from: Vec<u64>,
    /// Steps in the last checkpoint that was handed to the writer.
    handed_over: Option<u64>,
    /// Steps in the last checkpoint that was written.
    checkpoint: Option<u64>,
    checkpoints_failed: u64,
    /// Whether the record cannot be written for the moment.
    record_fails: bool,
    /// When the first step was read.
    first_step: Option<Instant>,
}

impl Trainer {
    /// A run before its next step, which is its first unless it goes on.
    #[must_use]
    pub fn new(mut setup: Setup) -> Self {
        let before = setup.before.take();
        let (done, tallies) = before.clone().unwrap_or_default();
        let gates = setup.telemetry.as_ref().map(|_| tallies.gates.unwrap_or_default());
        let consistency =
            setup.consistency.as_ref().map(|check| Consistency::after(check, tallies.consistency.as_ref()));
        Self {
            setup,
            next: done,
            done,
            non_finite_losses: tallies.non_finite_losses,
            gates,
            consistency,
            // What goes on begins with one copy of the state for all.
            compared: before.is_some().then_some(done),
            settled: None,
            start: Instant::now(),
            seconds_before: tallies.seconds,
            resumed_from: tallies.resumed_from,
            handed_over: before.is_some().then_some(done),
            checkpoint: before.is_some().then_some(done),
            checkpoints_failed: 0,
            record_fails: false,
            first_step: None,
        }
    }

    /// Number of the next step to launch.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// What the run is made of.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The step and what it begins with next, to look at or to change.
    pub fn stepper_mut(&mut self) -> &mut Stepper {
        &mut self.setup.stepper
    }

    /// What comparing replicas found so far, where they are compared.
    #[must_use]
    pub fn consistency(&self) -> Option<&Consistency> {
        self.consistency.as_ref()
    }

    /// Compares replicas before the first step, and measures what that takes; says so where the run is to end for what was
    /// found.
    ///
    /// # Errors
    ///
    /// Where the device fails.
    pub fn compare_at_start(&mut self) -> Result<Option<Ending>, TrainError> {
        let Some(check) = self.setup.consistency.as_ref().filter(|_| self.compared != Some(self.next)) else {
            return Ok(None);
        };
        // The first time waits for the initial state as well.
        let (found, _) = check.check(&self.setup.stepper, self.next)?;
        let (_, seconds) = check.check(&self.setup.stepper, self.next)?;
        if let Some(consistency) = &mut self.consistency {
            consistency.seconds_per_check = Some(seconds);
        }
        self.compared = Some(self.next);
        let (_, ending) = self.answer(found)?;
        Ok(ending)
    }

    /// Compares replicas after the last step, unless that was done just then; says so where the run ends for what was found.
    ///
    /// # Errors
    ///
    /// Where the device fails.
    pub fn compare_at_end(&mut self) -> Result<Option<Ending>, TrainError> {
        let Some(check) = self.setup.consistency.as_ref().filter(|_| self.compared != Some(self.next)) else {
            return Ok(None);
        };
        let (found, _) = check.check(&self.setup.stepper, self.next)?;
        self.compared = Some(self.next);
        let (_, ending) = self.answer(found)?;
        Ok(ending)
    }

    /// Counts what a check found, and does what the policy says about it.
    fn answer(&mut self, found: Found) -> Result<(Option<ReplicaRecord>, Option<Ending>), TrainError> {
        let Setup { engine, stepper, consistency: check, .. } = &mut self.setup;
        let (Some(check), Some(consistency)) = (check, &mut self.consistency) else { return Ok((None, None)) };
        consistency.count(&found);
        let mut ending = None;
        if let Some(mismatch) = &found.mismatch {
            let answer = match check.on_mismatch() {
                OnMismatch::Error => {
                    ending = Some(Ending::Inconsistent);
                    "the run ends"
                }
                OnMismatch::Copy => {
                    check.copy_from_first(engine, stepper)?;
                    consistency.replica_copies_total += 1;
                    self.settled = Some(self.next);
                    self.compared = None;
                    "all states of replica 0 are copied to the others"
                }
                OnMismatch::Count => "the run goes on with replicas that differ",
            };
            tracing::warn!("replicas do not hold the same: {}; {answer}", mismatch.told());
        }
        Ok((Some(consistency.record(found)), ending))
    }

    /// Writes down what the run came to. The losses on held-out data are those before the first step and after the last.
    ///
    /// # Errors
    ///
    /// Where the run folder cannot be written.
    pub(super) fn summarize(
        self,
        ending: Ending,
        seconds: Duration,
        [held_out_before, held_out_after]: [Option<f64>; 2],
    ) -> Result<Summary, TrainError> {
        let Setup { engine, folder, loss_unit, started, .. } = self.setup;
        let here = self.done.saturating_sub(self.resumed_from.last().copied().unwrap_or_default());
        let summary = Summary {
            format_version: FORMAT_VERSION,
            ending,
            steps: self.done,
            held_out_before,
            held_out_after,
            loss_unit,
            first_step_seconds: self.first_step.map(|time| (time - started).as_secs_f64()),
            compiled: engine.programs().compiled(),
            cached: engine.programs().cached(),
            seconds: self.seconds_before + seconds.as_secs_f64(),
            steps_per_second: rate(here, seconds),
            non_finite_losses: self.non_finite_losses,
            gates: self.gates,
            consistency: self.consistency,
            resumed_from: self.resumed_from,
            checkpoint: self.checkpoint,
            checkpoints_failed: self.checkpoints_failed,
            folder: folder.path().to_owned(),
        };
        folder.summary(&summary)?;
        Ok(summary)
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
        if self.first_step.is_none() {
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
                if in_flight.len() < IN_FLIGHT && self.first_step.is_some() {
                    continue;
                }
            }
            let Some(oldest) = in_flight.pop_front() else { return Ok(ending) };
            let (records, inconsistent) = self.read(oldest, observer)?;
            for record in records {
                observer.step(&record);
                if record.control.is_some_and(|c| c.stop) {
                    ending = Ending::Stopped;
                }
            }
            ending = inconsistent.unwrap_or(ending);
            self.hear_of_checkpoints(observer)?;
        }
    }

    /// Launches the next steps, as many as one launch does, but none beyond `end`.
    fn launch(&mut self, end: u64) -> Result<UnderWay, TrainError> {
        let Setup { engine, stepper, rest, batches, consistency, checkpoints, .. } = &mut self.setup;
        let left = end.saturating_sub(self.next);
        if stepper.steps() > left {
            let single = rest.take().ok_or(TrainError::Rest { left, steps: stepper.steps() })?;
            stepper.go_on_with(single);
        }
        let steps = self.next..self.next.saturating_add(stepper.steps());
        let uploaded = |device| upload(engine, device, &batches.training(steps.clone(), device));
        let launched = stepper.launch_on_all(&(0..engine.devices()).map(uploaded).collect::<Result<Vec<_>, _>>()?)?;
        self.next = steps.end;
        let due = consistency.as_ref().filter(|check| check.is_due(&steps));
        let check = due.map(|check| check.launch(stepper, steps.end)).transpose()?;
        if check.is_some() {
            self.compared = Some(steps.end);
        }
        let due = checkpoints.as_ref().filter(|c| c.is_due(&steps));
        let copies = due.map(|checkpoints| stepper.copy_state(&checkpoints.inputs)).transpose()?;
        Ok(UnderWay { steps, launched, check, copies })
    }

    /// Has a checkpoint written of what is read now: the state was copied when the last of these steps was launched.
    fn hand_over(&mut self, copies: StateCopy, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Setup { checkpoints, folder, .. } = &mut self.setup;
        let Some((checkpoints, writer)) = checkpoints.as_ref().and_then(|c| Some((c, c.writer.as_ref()?))) else {
            return Ok(());
        };
        let metrics = match folder.metrics_handle() {
            Ok(metrics) => metrics,
            Err(error) => {
                self.checkpoints_failed += 1;
                let what = format!("no checkpoint after {} steps: {error}", self.done);
                return self.went_wrong(what, TrainError::Folder(error), observer);
            }
        };
        let tallies = Tallies {
            seconds: self.seconds_before + self.start.elapsed().as_secs_f64(),
            non_finite_losses: self.non_finite_losses,
            gates: self.gates,
            consistency: self.consistency.clone(),
            resumed_from: self.resumed_from.clone(),
        };
        let checkpoint = Checkpoint {
            step: self.done,
            fingerprint: checkpoints.fingerprint.clone(),
            tallies,
            metrics_bytes: folder.metrics_bytes(),
            arrays: checkpoints.arrays.clone(),
        };
        writer.write(Job { checkpoint, copies, metrics });
        self.handed_over = Some(self.done);
        Ok(())
    }

    /// What became of the checkpoints that were handed over.
    fn hear_of_checkpoints(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let writer = self.setup.checkpoints.as_ref().and_then(|c| c.writer.as_ref());
        let written = writer.map(Writer::written).unwrap_or_default();
        self.take_note(written, observer)
    }

    fn take_note(&mut self, written: Vec<Written>, observer: &mut dyn Observer) -> Result<(), TrainError> {
        for written in written {
            observer.checkpoint(&written);
            match written.result {
                Ok(_) => self.checkpoint = Some(written.step),
                Err(error) => {
                    self.checkpoints_failed += 1;
                    let what = format!("no checkpoint after {} steps: {error}", written.step);
                    self.went_wrong(what, TrainError::Checkpoint(error), observer)?;
                }
            }
        }
        Ok(())
    }

    /// Says what could not be written, or ends the run for it.
    fn went_wrong(&self, what: String, error: TrainError, observer: &mut dyn Observer) -> Result<(), TrainError> {
        match self.setup.on_write_error {
            OnWriteError::Stop => Err(error),
            OnWriteError::Continue => {
                observer.warn(&format!("{what}; training goes on"));
                Ok(())
            }
        }
    }

    /// Writes a checkpoint of the state as it is now, unless there is one, and waits until all are written. Of replicas that are
    /// not alike there is none: which of them is right cannot be told.
    ///
    /// # Errors
    ///
    /// Where one cannot be written, and the run is to end for that.
    pub fn last_checkpoint(&mut self, ending: Ending, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if let Some(checkpoints) = &self.setup.checkpoints
            && ending != Ending::Inconsistent
            && self.done > 0
            && self.handed_over != Some(self.done)
        {
            let copies = self.setup.stepper.copy_state(&checkpoints.inputs)?;
            self.hand_over(copies, observer)?;
        }
        let writer = self.setup.checkpoints.as_mut().and_then(|c| c.writer.take());
        let written = writer.map(Writer::finish).unwrap_or_default();
        self.take_note(written, observer)
    }

    /// What a launch reports, step by step, and whether the run is to end for what replicas hold.
    fn read(
        &mut self,
        under_way: UnderWay,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<StepRecord>, Option<Ending>), TrainError> {
        let UnderWay { steps, launched, check, copies } = under_way;
        let report = launched.wait()?;
        self.first_step.get_or_insert_with(Instant::now);
        let seconds = self.seconds_before + self.start.elapsed().as_secs_f64();
        let (mut replicas, ending) = match (check, &self.setup.consistency) {
            // One that was under way when all became alike again saw what was seen before.
            (Some(pending), Some(check)) if self.settled.is_none_or(|settled| pending.after() > settled) => {
                let found = check.read(pending)?;
                self.answer(found)?
            }
            _ => (None, None),
        };
        let count = steps.clone().count();
        let mut records = Vec::with_capacity(count);
        for (position, step) in (0..).zip(steps) {
            let report: Vec<&[u8]> = report.iter().map(|array| one_of(array, position, count)).collect();
            // A check is behind the last of the steps.
            let replicas = if position + 1 == count { replicas.take() } else { None };
            records.push(self.record(step, seconds, &report, replicas, observer)?);
        }
        if let Some(copies) = copies {
            self.hand_over(copies, observer)?;
        }
        Ok((records, ending))
    }

    /// Notes what a step reports.
    fn record(
        &mut self,
        step: u64,
        seconds: f64,
        report: &[&[u8]],
        replicas: Option<ReplicaRecord>,
        observer: &mut dyn Observer,
    ) -> Result<StepRecord, TrainError> {
        let Setup { loss, telemetry, folder, batches, .. } = &mut self.setup;
        let loss = loss
            .and_then(|(position, element_type)| decode_scalar(report.get(position)?, element_type))
            .filter(|loss| loss.is_finite());
        let control = telemetry.as_ref().map(|t| t.read(report)).transpose()?;
        let record = StepRecord { step, loss, seconds, fault: batches.fault(step), replicas, control };
        if let (Some(gates), Some(control)) = (&mut self.gates, &record.control) {
            gates.count(control);
        }
        self.done += 1;
        self.non_finite_losses += u64::from(loss.is_none());
        let recorded = folder.record(&record);
        self.recorded(recorded, observer)?;
        Ok(record)
    }

    /// Says when the record cannot be written, and when it can again.
    fn recorded(
        &mut self,
        recorded: Result<(), RunFolderError>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        match recorded {
            Ok(()) if self.record_fails => {
                // Lines are written once a second: most of the time there is no attempt that could fail.
                if self.setup.folder.is_written() {
                    self.record_fails = false;
                    observer.warn("the record of the run is written again; nothing of it is missing");
                }
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) if error.loses_record() => Err(error.into()),
            Err(_) if self.record_fails => Ok(()),
            Err(error) => {
                self.record_fails = true;
                self.went_wrong(format!("{error}; it waits in memory"), error.into(), observer)
            }
        }
    }
}

/// A launch that has not been read.
#[derive(Debug)]
struct UnderWay {
    steps: Range<u64>,
    launched: Launched,
    /// The comparison of replicas behind it.
    check: Option<PendingCheck>,
    /// The state after it, for a checkpoint.
    copies: Option<StateCopy>,
}

/// The part of an array that step `position` of `count` made.
fn one_of(array: &[u8], position: usize, count: usize) -> &[u8] {
    array.chunks(array.len().div_ceil(count.max(1)).max(1)).nth(position).unwrap_or_default()
}

fn rate(steps: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { steps as f64 / time.as_secs_f64() }
}
