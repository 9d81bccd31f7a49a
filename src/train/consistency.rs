//! Whether replicas still hold the same: all held states are compared, now and then, on the devices.
//!
//! Replicas begin alike and stay alike, bit for bit, unless a device computes something else than another, or loses a bit; and
//! replicas that differ stay different, whatever is done to their updates. The program of
//! [`passes::state_checksum`] makes a number of each state and compares these numbers in one exchange. It is launched behind
//! a step, before the next one takes the states over, and read as late as what that step reports; so it costs the time
//! that the devices need for it, and the host waits for nothing.

use std::ops::Range;
use std::time::Instant;

use hlo::Shape;
use passes::policy::{OnMismatch, ReplicasPolicy};
use passes::state_checksum::{ChecksumError, Compared, state_checksum};
use pjrt::{Buffer, Executable, ExecuteOptions, HostCopy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::TrainError;
use super::stepper::{Stepper, device};
use crate::bundle::manifest::InputRole;
use crate::bundle::{Bundle, Dtype};
use crate::engine::{Engine, EngineError};

/// So many states are named in a text; `summary.json` names all.
const NAMED: usize = 8;

/// Why replicas cannot be compared.
#[derive(Debug, Error)]
pub enum ConsistencyError {
    /// There is no such program.
    #[error(
        "the states of replicas cannot be compared: {0}; `replicas.check_every = 0` in the policy trains without comparing them"
    )]
    Program(#[from] ChecksumError),
    /// It does not compile.
    #[error(
        "{0}; it compares the states of replicas, and `replicas.check_every = 0` in the policy trains without comparing them"
    )]
    Compile(EngineError),
    /// What the devices say is not what that program says.
    #[error("the comparison of replicas gave {bytes} bytes, which are not those of {states} states; please report it")]
    Report {
        /// How many it gave.
        bytes: usize,
        /// How many states there are.
        states: usize,
    },
}

/// The check of a run, compiled.
#[derive(Debug)]
pub struct ConsistencyCheck {
    executable: Executable,
    states: Vec<HeldState>,
    every: u64,
    on_mismatch: OnMismatch,
    cost: CheckCost,
}

/// A state that all replicas hold alike.
#[derive(Debug, Clone)]
struct HeldState {
    input: usize,
    name: String,
    dtype: Dtype,
    shape: Vec<i64>,
}

/// What one check costs, as far as is known before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CheckCost {
    /// Bytes that each device reads.
    pub bytes: u64,
    /// Those over the bytes that a step reads and writes, as its compiler counts them; `null` where it does not. Since a
    /// step reads and writes every state, it is at most about a half.
    pub of_step: Option<f64>,
}

/// A check that has not been read.
#[derive(Debug)]
pub struct PendingCheck {
    /// Steps that were done before it.
    after: u64,
    copy: HostCopy,
    /// On each device.
    outputs: Vec<Buffer>,
}

impl PendingCheck {
    /// Steps that were done before it.
    #[must_use]
    pub fn after(&self) -> u64 {
        self.after
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What is not alike; `None` where all replicas hold the same.
    pub mismatch: Option<Mismatch>,
    /// One number of all states of replica 0.
    pub checksum: u32,
}

/// Replicas that do not hold the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Steps that were done before it.
    pub after_steps: u64,
    /// The states that are not alike.
    pub states: Vec<Differing>,
}

/// A state that is not alike on all replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    /// Its name.
    pub state: String,
    /// Numbers of the replicas that have another one than replica 0.
    pub replicas: Vec<usize>,
}

impl Mismatch {
    /// In words: which states, on which replicas, after how many steps.
    #[must_use]
    pub fn told(&self) -> String {
        let one = |d: &Differing| {
            let replicas: Vec<_> = d.replicas.iter().map(ToString::to_string).collect();
            format!("{} (replica {})", d.state, replicas.join(", "))
        };
        let named: Vec<_> = self.states.iter().take(NAMED).map(one).collect();
        let more = match self.states.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("after {} steps these are not as on replica 0: {}{more}", self.after_steps, named.join(", "))
    }
}

/// What checks found so far, in `metrics.jsonl` with the last step before a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Checks that were read.
    pub replica_checks_total: u64,
    /// Those of them that found replicas which are not alike.
    pub replica_mismatches_total: u64,
    /// How often states of replica 0 were copied to all others.
    pub replica_copies_total: u64,
    /// One number of all states of replica 0: equal in two runs that hold the same after that step.
    pub replica_checksum: u32,
    /// What this one found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replica_differences: Vec<Differing>,
}

/// What the checks of a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Consistency {
    /// Steps from one check to the next; there is one before the first step and one after the last, too.
    pub check_every: u64,
    /// What becomes of replicas that are not alike.
    pub on_mismatch: OnMismatch,
    /// States that are compared.
    pub states: usize,
    /// What a check costs.
    #[serde(flatten)]
    pub cost: CheckCost,
    /// Seconds of one check, measured before the first step with nothing else under way; `null` where none was done.
    pub seconds_per_check: Option<f64>,
    /// Checks that were read.
    pub replica_checks_total: u64,
    /// Those of them that found replicas which are not alike.
    pub replica_mismatches_total: u64,
    /// How often states of replica 0 were copied to all others.
    pub replica_copies_total: u64,
    /// The first that was found.
    pub first_mismatch: Option<Mismatch>,
}

impl Consistency {
    /// Of a run that has not begun.
    #[must_use]
    pub fn new(check: &ConsistencyCheck) -> Self {
        Self {
            check_every: check.every,
            on_mismatch: check.on_mismatch,
            states: check.states.len(),
            cost: check.cost,
            seconds_per_check: None,
            replica_checks_total: 0,
            replica_mismatches_total: 0,
            replica_copies_total: 0,
            first_mismatch: None,
        }
    }

    /// Of a run that goes on after these checks.
    pub(super) fn after(check: &ConsistencyCheck, before: Option<&Self>) -> Self {
        let Some(before) = before else { return Self::new(check) };
        Self {
            seconds_per_check: before.seconds_per_check,
            replica_checks_total: before.replica_checks_total,
            replica_mismatches_total: before.replica_mismatches_total,
            replica_copies_total: before.replica_copies_total,
            first_mismatch: before.first_mismatch.clone(),
            ..Self::new(check)
        }
    }

    /// Counts a check.
    pub(super) fn count(&mut self, found: &Found) {
        self.replica_checks_total += 1;
        self.replica_mismatches_total += u64::from(found.mismatch.is_some());
        if self.first_mismatch.is_none() {
            self.first_mismatch.clone_from(&found.mismatch);
        }
    }

    /// The counters as of now, for a check that found this.
    pub(super) fn record(&self, found: Found) -> ReplicaRecord {
        ReplicaRecord {
            replica_checks_total: self.replica_checks_total,
            replica_mismatches_total: self.replica_mismatches_total,
            replica_copies_total: self.replica_copies_total,
            replica_checksum: found.checksum,
            replica_differences: found.mismatch.map_or(Vec::new(), |mismatch| mismatch.states),
        }
    }
}

impl ConsistencyCheck {
    /// The check of a bundle's states over all devices of the engine; nothing where there is one replica, or the policy asks
    /// for none.
    ///
    /// # Errors
    ///
    /// Where there is no such program, or it does not compile.
    pub fn new(engine: &Engine, bundle: &Bundle, policy: &ReplicasPolicy) -> Result<Option<Self>, TrainError> {
        if engine.devices() < 2 || policy.check_every == 0 {
            return Ok(None);
        }
        let entry = bundle.module.entry_computation();
        let parameters = entry.parameters();
        let held = bundle.manifest.inputs.iter().enumerate().filter(|(_, input)| input.role != InputRole::Batch);
        let (mut states, mut shapes) = (Vec::new(), Vec::new());
        for (input, declared) in held {
            let Some(parameter) = parameters.get(input).and_then(|&id| entry.get(id)) else { continue };
            let (name, shape) = (declared.name.clone(), declared.shape.clone());
            states.push(HeldState { input, name, dtype: declared.dtype, shape });
            shapes.push(parameter.shape.clone());
        }
        let bytes = shapes.iter().map(Shape::byte_size).fold(0, u64::saturating_add);
        let module = state_checksum(&shapes).map_err(ConsistencyError::Program)?;
        let executable =
            engine.compile_spread(&module, "the comparison of replicas").map_err(ConsistencyError::Compile)?;
        let cost = CheckCost { bytes, of_step: None };
        Ok(Some(Self { executable, states, every: policy.check_every.into(), on_mismatch: policy.on_mismatch, cost }))
    }

    /// Notes what a step moves, in bytes, to compare the check with.
    pub(super) fn beside_step(&mut self, bytes_accessed: Option<f64>) {
        let positive = bytes_accessed.filter(|&bytes| bytes > 0.0);
        self.cost.of_step = positive.map(|bytes| self.cost.bytes as f64 / bytes);
    }

    /// What is compared how often, and what that costs.
    #[must_use]
    pub fn told(&self) -> String {
        let bytes = indicatif::BinaryBytes(self.cost.bytes);
        let share = self.cost.of_step.unwrap_or(0.5);
        let of_step = match self.cost.of_step {
            Some(_) => format!("{:.1}% of the bytes that a step moves", share * 100.0),
            None => "at most half of the bytes that a step moves, since a step reads and writes all of them".to_owned(),
        };
        format!(
            "replicas are compared every {} steps: {} states, {bytes} read on each device, {of_step}, {:.3}% of the run",
            self.every,
            self.states.len(),
            share / self.every as f64 * 100.0
        )
    }

    /// What becomes of replicas that are not alike.
    #[must_use]
    pub fn on_mismatch(&self) -> OnMismatch {
        self.on_mismatch
    }

    /// Whether there is to be a check behind these steps: where one of them ends a round of so many.
    #[must_use]
    pub fn is_due(&self, steps: &Range<u64>) -> bool {
        is_due(steps, self.every)
    }

    /// Starts comparing what replicas hold after so many steps, and returns at once. States stay as they are, also where the
    /// next step takes them over: a device does that when they have been read.
    ///
    /// # Errors
    ///
    /// Where the launch is refused.
    pub fn launch(&self, stepper: &Stepper, after: u64) -> Result<PendingCheck, EngineError> {
        let held = |device| self.states.iter().filter_map(move |s| stepper.state_on(device, s.input)).collect();
        let arguments: Vec<Vec<&Buffer>> = (0..self.executable.num_devices()).map(held).collect();
        let options = ExecuteOptions { non_donatable_inputs: (0..self.states.len()).collect(), ..Default::default() };
        let execution = self.executable.execute(&arguments, &options).map_err(device("comparing replicas failed"))?;
        let outputs: Vec<Buffer> = execution.outputs.into_iter().filter_map(|list| list.into_iter().next()).collect();
        let missing = || pjrt::Error::Argument("the comparison has no output".to_owned());
        let copy = outputs.first().ok_or_else(missing).and_then(Buffer::start_to_host);
        Ok(PendingCheck { after, copy: copy.map_err(device("reading the comparison of replicas failed"))?, outputs })
    }

    /// Waits for what a check says.
    ///
    /// # Errors
    ///
    /// Where a device failed.
    pub fn read(&self, pending: PendingCheck) -> Result<Found, TrainError> {
        let failed = device("comparing replicas failed on the device");
        let decode = |bytes: Vec<u8>| {
            let (bytes_given, states) = (bytes.len(), self.states.len());
            let report = || ConsistencyError::Report { bytes: bytes_given, states };
            Compared::decode(&bytes, states).ok_or_else(report)
        };
        let first = decode(pending.copy.wait().map_err(&failed)?)?;
        let checksum = first.digest();
        if first.differing().next().is_none() {
            return Ok(Found { mismatch: None, checksum });
        }
        let mut all = Vec::with_capacity(pending.outputs.len());
        for output in &pending.outputs {
            all.push(decode(output.to_vec().map_err(&failed)?)?);
        }
        let differing = first.differing().filter_map(|index| {
            let own = first.checksums.get(index);
            let others = all.iter().enumerate().filter(|(_, replica)| replica.checksums.get(index) != own);
            let state = self.states.get(index)?.name.clone();
            Some(Differing { state, replicas: others.map(|(number, _)| number).collect() })
        });
        let mismatch = Mismatch { after_steps: pending.after, states: differing.collect() };
        Ok(Found { mismatch: Some(mismatch), checksum })
    }

    /// Compares what replicas hold now and waits for it; returns also how many seconds it took.
    ///
    /// # Errors
    ///
    /// Where a device failed.
    pub fn check(&self, stepper: &Stepper, after: u64) -> Result<(Found, f64), TrainError> {
        let begin = Instant::now();
        let found = self.read(self.launch(stepper, after)?)?;
        Ok((found, begin.elapsed().as_secs_f64()))
    }

    /// Copies every state of replica 0 to all others, once the steps under way are done.
    ///
    /// # Errors
    ///
    /// Where a device failed; replicas may differ then.
    pub fn copy_from_first(&self, engine: &Engine, stepper: &mut Stepper) -> Result<(), EngineError> {
        for state in &self.states {
            let Some(value) = stepper.state(state.input) else { continue };
            let bytes = value.to_vec().map_err(device("reading a state of replica 0 failed"))?;
            for number in 1..engine.devices() {
                let copy = engine.upload_to(number, &bytes, state.dtype, &state.shape)?;
                stepper.set_state_on(number, state.input, copy);
            }
        }
        Ok(())
    }
}

fn is_due(steps: &Range<u64>, every: u64) -> bool {
    let rounds = |done: u64| done / every.max(1);
    rounds(steps.end) > rounds(steps.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_in_words_alone() {
        let states = (0..10).map(|n| Differing { state: format!("s{n}"), replicas: vec![1, 3] }).collect();
        let told = Mismatch { after_steps: 12, states }.told();
        assert!(told.starts_with("after 12 steps these are not as on replica 0: s0 (replica 1, 3), s1"), "{told}");
        assert!(told.ends_with("s7 (replica 1, 3) and 2 more"), "{told}");
    }

    #[test]
    fn a_check_is_due_where_a_launch_ends_a_round() {
        let due = |steps: Range<u64>, every| is_due(&steps, every);
        let launches = |each: u64, every| {
            let ends = (1..=12 / each).map(|n| n * each);
            ends.filter(|&end| due(end - each..end, every)).collect::<Vec<_>>()
        };
        assert_eq!(launches(1, 4), [4, 8, 12]);
        assert_eq!(launches(3, 4), [6, 9, 12]);
        assert_eq!(launches(6, 4), [6, 12]);
        assert_eq!(launches(4, 1), [4, 8, 12]);
    }
}
