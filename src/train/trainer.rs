//! The loop: launches go out ahead, and what they report is read late.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use passes::policy::OnMismatch;

use super::batch::{decode_scalar, upload};
use super::consistency::{Consistency, Found, PendingCheck, ReplicaRecord};
use super::record::StepRecord;
use super::run_folder::FORMAT_VERSION;
use super::setup::Setup;
use super::stepper::{Launched, Stepper};
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
    /// When the first step was read.
    first_step: Option<Instant>,
}

impl Trainer {
    /// A run that has not done a step yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let gates = setup.telemetry.as_ref().map(|_| Gates::default());
        let consistency = setup.consistency.as_ref().map(Consistency::new);
        Self {
            setup,
            next: 0,
            done: 0,
            non_finite_losses: 0,
            gates,
            consistency,
            compared: None,
            settled: None,
            start: Instant::now(),
            first_step: None,
        }
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
        let Some(check) = &self.setup.consistency else { return Ok(None) };
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
        started: Instant,
        seconds: Duration,
        [held_out_before, held_out_after]: [Option<f64>; 2],
    ) -> Result<Summary, TrainError> {
        let Setup { engine, folder, loss_unit, .. } = self.setup;
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
            seconds: seconds.as_secs_f64(),
            steps_per_second: rate(self.done, seconds),
            non_finite_losses: self.non_finite_losses,
            gates: self.gates,
            consistency: self.consistency,
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
            let (records, inconsistent) = self.read(oldest)?;
            for record in records {
                observer.step(&record);
                if record.control.is_some_and(|c| c.stop) {
                    ending = Ending::Stopped;
                }
            }
            ending = inconsistent.unwrap_or(ending);
        }
    }

    /// Launches the next steps, as many as one launch does, but none beyond `end`.
    fn launch(&mut self, end: u64) -> Result<UnderWay, TrainError> {
        let Setup { engine, stepper, rest, batches, consistency, .. } = &mut self.setup;
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
        Ok(UnderWay { steps, launched, check })
    }

    /// What a launch reports, step by step, and whether the run is to end for what replicas hold.
    fn read(&mut self, under_way: UnderWay) -> Result<(Vec<StepRecord>, Option<Ending>), TrainError> {
        let UnderWay { steps, launched, check } = under_way;
        let report = launched.wait()?;
        self.first_step.get_or_insert_with(Instant::now);
        let seconds = self.start.elapsed().as_secs_f64();
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
            records.push(self.record(step, seconds, &report, replicas)?);
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
        folder.record(&record)?;
        Ok(record)
    }
}

/// A launch that has not been read.
#[derive(Debug)]
struct UnderWay {
    steps: Range<u64>,
    launched: Launched,
    /// The comparison of replicas behind it.
    check: Option<PendingCheck>,
}

/// The part of an array that step `position` of `count` made.
fn one_of(array: &[u8], position: usize, count: usize) -> &[u8] {
    array.chunks(array.len().div_ceil(count.max(1)).max(1)).nth(position).unwrap_or_default()
}

fn rate(steps: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { steps as f64 / time.as_secs_f64() }
}
