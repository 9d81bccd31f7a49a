//! Replicas that do not hold the same are found, named, and answered as the policy says; those that do cost nothing but time.
//!
//! Needs the CPU plugin; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use entropic::bundle::Bundle;
use entropic::bundle::manifest::{InputRole, Launch};
use entropic::cache::CompileCache;
use entropic::engine::Engine;
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{
    ConsistencyCheck, Ending, IN_FLIGHT, Observer, Options, ReplicaRecord, Setup, Silent, StepRecord, Trainer,
    run_prepared,
};
use passes::policy::ReplicasPolicy;
use passes::{Policy, Reduction, Replicas};
use serde_json::Value;
use tempfile::TempDir;

/// Keeps what comparisons said, with the step that each is behind.
#[derive(Default)]
struct Recorder(Vec<(u64, ReplicaRecord)>);

impl Observer for Recorder {
    fn step(&mut self, record: &StepRecord) {
        self.0.extend(record.replicas.clone().map(|replicas| (record.step, replicas)));
    }
}

/// A run of the bundle `mlp` on two replicas, under a policy that has these lines in `[replicas]`.
struct Case {
    bundle: Bundle,
    /// Steps that a run to its end does.
    steps: u64,
    folder: TempDir,
}

impl Case {
    fn new(lines: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().unwrap();
        let text: String = (0..2000).map(|i| format!("{i} squared is {}.\n", i * i)).collect();
        std::fs::write(folder.path().join("text"), text).unwrap();
        let replicas = Replicas { count: NonZeroU32::new(2).unwrap(), reduction: Reduction::Mean, weighting: None };
        let policy = Policy::parse(&format!("[replicas]\n{lines}")).unwrap();
        let model = Model::open(&root.join("models/mlp")).unwrap();
        let bundle = model.inject_into(&policy, Platform::Cpu, Some(replicas)).unwrap();
        Self { bundle, steps: 0, folder }
    }

    fn trainer(&self) -> Trainer {
        // All tests want the same programs, and what one has compiled the others take from the cache.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _compiling = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("executables");
        let options = Options {
            cache: Some(CompileCache::open(&cache, 1 << 30).unwrap()),
            out: Some(self.folder.path().join("run")),
            ..Options::new(self.bundle.clone(), vec![self.folder.path().join("text")], self.steps, "cpu")
        };
        Trainer::new(Setup::new(options, &mut Silent).expect("the CPU plugin is missing: run `make plugin`"))
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.folder.path().join("run").join(file)).unwrap()).unwrap()
    }
}

fn train(trainer: &mut Trainer, steps: u64) -> (Ending, Vec<(u64, ReplicaRecord)>) {
    let mut recorder = Recorder::default();
    let ending = trainer.train(steps, &AtomicBool::new(false), &mut recorder).unwrap();
    (ending, recorder.0)
}

/// Flips one bit of a state on the last replica; returns the state's name.
fn desynchronise(case: &Case, trainer: &mut Trainer, input: usize) -> String {
    let declared = &case.bundle.manifest.inputs[input];
    let last = trainer.setup().engine.devices() - 1;
    let mut bytes = trainer.setup().stepper.state_on(last, input).unwrap().to_vec().unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let value = trainer.setup().engine.upload_to(last, &bytes, declared.dtype, &declared.shape).unwrap();
    trainer.stepper_mut().set_state_on(last, input, value);
    declared.name.clone()
}

/// Names of the states that two replicas do not hold alike, by their bytes.
fn differing(case: &Case, trainer: &Trainer) -> Vec<String> {
    let inputs = case.bundle.manifest.inputs.iter().enumerate();
    let held = |device, input| trainer.setup().stepper.state_on(device, input).map(|b| b.to_vec().unwrap());
    inputs.filter(|&(input, _)| held(0, input) != held(1, input)).map(|(_, i)| i.name.clone()).collect()
}

#[test]
fn a_clean_run_is_compared_and_always_alike() {
    let mut case = Case::new("check_every = 4");
    case.steps = 9;
    let mut recorder = Recorder::default();
    let summary = run_prepared(case.trainer(), &AtomicBool::new(false), &mut recorder).unwrap();
    assert_eq!(summary.ending, Ending::Complete);
    // Before the first step, after 4 and 8, and after the last.
    let consistency = summary.consistency.unwrap();
    assert_eq!((consistency.replica_checks_total, consistency.replica_mismatches_total), (4, 0));
    let manifest = &case.bundle.manifest;
    let held = manifest.inputs.iter().filter(|i| i.role != InputRole::Batch);
    assert_eq!(consistency.states, held.count());
    assert!(consistency.cost.bytes > 100_000 && consistency.seconds_per_check.unwrap() > 0.0, "{consistency:?}");
    assert_eq!(
        recorder.0.iter().map(|(step, r)| (*step, r.replica_checks_total)).collect::<Vec<_>>(),
        [(3, 2), (7, 3)]
    );
    let json = case.json("summary.json");
    assert_eq!(json["consistency"]["replica_checks_total"], 4);
    assert_eq!(json["consistency"]["first_mismatch"], Value::Null);
    let metrics = std::fs::read_to_string(case.folder.path().join("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[3]["replica_checks_total"], &lines[3]["replica_mismatches_total"]), (&2.into(), &0.into()));
    assert!(lines[4].get("replica_checks_total").is_none());
}

#[test]
fn one_replica_alone_and_a_policy_that_asks_for_none_compare_nothing() {
    let case = Case::new("check_every = 0");
    let launch = |replicas: u32| Launch { replicas: NonZeroU32::new(replicas).unwrap(), ..Launch::default() };
    let none = |replicas, policy: &ReplicasPolicy| {
        let engine = Engine::open_for("cpu", launch(replicas)).unwrap();
        ConsistencyCheck::new(&engine, &case.bundle, policy).unwrap().is_none()
    };
    assert!(none(1, &ReplicasPolicy::default()));
    assert!(none(2, &ReplicasPolicy { check_every: 0, ..ReplicasPolicy::default() }));
}

#[test]
fn a_replica_that_differs_ends_the_run_in_order_and_is_named() {
    let mut case = Case::new("check_every = 4");
    case.steps = 5;
    let mut trainer = case.trainer();
    assert_eq!(trainer.compare_at_start().unwrap(), None);
    assert_eq!(train(&mut trainer, 2).0, Ending::Complete);
    let name = desynchronise(&case, &mut trainer, 0);
    let (ending, found) = train(&mut trainer, 20);
    assert_eq!(ending, Ending::Inconsistent);
    let (step, record) = &found[0];
    // The gradient is the same on all replicas, and so nothing follows the one that differs.
    let differences: Vec<_> =
        record.replica_differences.iter().map(|d| (d.state.clone(), d.replicas.clone())).collect();
    assert_eq!((*step, differences), (3, vec![(name.clone(), vec![1])]));
    let first = trainer.consistency().unwrap().first_mismatch.clone().unwrap();
    assert_eq!(first.told(), format!("after 4 steps these are not as on replica 0: {name} (replica 1)"));
    // What is left of such a run is complete.
    let summary = run_prepared(trainer, &AtomicBool::new(false), &mut Silent).unwrap();
    assert_eq!((summary.ending, summary.held_out_after.is_some()), (Ending::Inconsistent, true));
    assert!(summary.steps < 3 + IN_FLIGHT as u64 + 2, "it went on for {} steps", summary.steps);
    let json = case.json("summary.json");
    assert_eq!(json["ending"], "inconsistent");
    assert_eq!(json["consistency"]["first_mismatch"]["states"][0]["state"], Value::from(name));
    assert_eq!(json["consistency"]["first_mismatch"]["after_steps"], 4);
}

#[test]
fn replicas_that_differ_are_counted_and_go_on() {
    let case = Case::new("check_every = 4\non_mismatch = \"count\"");
    let mut trainer = case.trainer();
    train(&mut trainer, 2);
    let name = desynchronise(&case, &mut trainer, 1);
    let (ending, found) = train(&mut trainer, 8);
    assert_eq!((ending, found.len()), (Ending::Complete, 2));
    assert_eq!(trainer.consistency().unwrap().replica_mismatches_total, 2);
    assert_eq!(differing(&case, &trainer), [name]);
}

#[test]
fn states_of_the_first_replica_make_all_alike_again() {
    let case = Case::new("check_every = 2\non_mismatch = \"copy\"");
    let mut trainer = case.trainer();
    train(&mut trainer, 2);
    let name = desynchronise(&case, &mut trainer, 1);
    assert_eq!(differing(&case, &trainer), [name]);
    let (ending, found) = train(&mut trainer, 10);
    assert_eq!(ending, Ending::Complete);
    let differences: Vec<_> = found.iter().map(|(_, r)| r.replica_differences.len()).collect();
    assert_eq!(differences.iter().sum::<usize>(), 1, "{found:?}");
    let consistency = trainer.consistency().unwrap();
    assert_eq!((consistency.replica_mismatches_total, consistency.replica_copies_total), (1, 1));
    assert!(differing(&case, &trainer).is_empty());
    assert_eq!(trainer.compare_at_end().unwrap(), None);
}

#[test]
fn what_is_compared_is_the_state_between_two_steps_though_the_next_takes_it_over() {
    // Steps donate their states: a check that read them too late would see those of a later step.
    let late = Case::new("check_every = 1");
    let (_, ahead) = train(&mut late.trainer(), 24);
    let prompt = Case::new("check_every = 1");
    let mut trainer = prompt.trainer();
    let one_by_one: Vec<_> = (0..24).flat_map(|_| train(&mut trainer, 1).1).collect();
    assert_eq!((ahead.len(), ahead.last().unwrap().1.replica_mismatches_total), (24, 0));
    let checksums = |found: &[(u64, ReplicaRecord)]| found.iter().map(|(_, r)| r.replica_checksum).collect::<Vec<_>>();
    assert_eq!(checksums(&ahead), checksums(&one_by_one));
    let mut distinct = checksums(&ahead);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 24, "states change in every step");
}
