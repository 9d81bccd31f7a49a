//! Short forms of the experiments of docs/demos.md, on `gpt-nano` and a text that never changes.
//!
//! Needs the CPU plugin; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::{self, Corruption, Fault, GateReason, Observer, Options, StepRecord, Summary};
use passes::Policy;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// Keeps what steps report.
#[derive(Default)]
struct Recorder(Vec<StepRecord>);

impl Observer for Recorder {
    fn step(&mut self, record: &StepRecord) {
        self.0.push(record.clone());
    }
}

/// Sentences of made-up words, common and rare ones: the same on every machine, with enough order in them to learn from.
fn text() -> String {
    const ONSETS: [&str; 12] = ["b", "d", "f", "gr", "k", "l", "m", "n", "p", "r", "st", "t"];
    const RHYMES: [&str; 8] = ["a", "en", "i", "o", "um", "ar", "el", "is"];
    let mut random = common::Random::new(7);
    let mut below = |n: usize| (random.uniform() * n as f64) as usize;
    let mut syllables = |n| (0..n).map(|_| [ONSETS[below(12)], RHYMES[below(8)]].concat()).collect::<String>();
    let words: Vec<String> = (0..400).map(|rank| syllables(1 + rank % 3)).collect();
    let mut random = common::Random::new(11);
    let mut text = String::new();
    while text.len() < 400_000 {
        for place in 0..4 + (random.uniform() * 9.0) as usize {
            // Ranks follow Zipf's law, nearly.
            let rank = (words.len() as f64).powf(random.uniform()) as usize - 1;
            text.push_str(if place == 0 { "" } else { " " });
            text.push_str(&words[rank]);
        }
        text.push_str(if random.uniform() < 0.8 { ".\n" } else { "?\n\n" });
    }
    text
}

/// Trains under a policy; always with the same seed, so on the same batches.
fn train(model: &Path, policy: &str, steps: u64, corruption: Option<Corruption>) -> (Vec<StepRecord>, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("text");
    std::fs::write(&data, text()).unwrap();
    let bundle = Model::open(model).unwrap().inject(&Policy::parse(policy).unwrap(), Platform::Cpu).unwrap();
    let options =
        Options { corruption, out: Some(folder.path().join("run")), ..Options::new(bundle, vec![data], steps, "cpu") };
    let mut recorder = Recorder::default();
    let summary = train::run(options, &AtomicBool::new(false), &mut recorder)
        .expect("if the CPU plugin is missing, run `make plugin`");
    (recorder.0, summary)
}

#[test]
fn a_spoilt_batch_is_refused_and_costs_no_more_than_its_step() {
    const STEPS: u64 = 36;
    // One batch of the run is spoilt, with UTF-16, after the gate was armed and with steps left in which harm would show.
    let only_wide = |c: &Corruption| {
        let faults: Vec<_> = (0..STEPS).filter_map(|step| Some((step, c.fault(step)?))).collect();
        matches!(faults.as_slice(), [(21..31, Fault::Wide)])
    };
    let spoil = (0..).map(|seed| Corruption { share: "0.025".parse().unwrap(), seed }).find(only_wide).unwrap();

    let (steps, clean) = train(&model("gpt-nano"), "", STEPS, None);
    let refused = |steps: &[StepRecord]| -> Vec<_> {
        steps.iter().filter_map(|s| Some((s.fault, s.control.as_ref()?.gate?))).collect()
    };
    assert_eq!(refused(&steps), [], "healthy batches were refused");
    let (steps, spoilt) = train(&model("gpt-nano"), "", STEPS, Some(spoil));
    assert_eq!(refused(&steps), [(Some(Fault::Wide), GateReason::Norm)]);

    assert_eq!(clean.held_out_before, spoilt.held_out_before, "held-out text was spoilt");
    let [clean, spoilt] = [clean, spoilt].map(|summary| summary.held_out_after.unwrap());
    assert!((spoilt / clean - 1.0).abs() < 0.04, "held-out loss {clean} without, {spoilt} with a spoilt batch");
}

/// The mean loss of some steps.
fn mean(steps: &[StepRecord]) -> f64 {
    steps.iter().map(|s| s.loss.unwrap()).sum::<f64>() / steps.len() as f64
}

#[test]
fn a_spike_in_the_learning_rate_is_returned_from() {
    // The schedule of `gpt-nano-spike` is 30 times too high from step 100 to 119.
    const STEPS: u64 = 150;
    let rollback = "[rollback]\nkind = \"snapshot\"\npatience = 3\nrefresh = 25\n";
    let (steps, returned) = train(&model("gpt-nano-spike"), rollback, STEPS, None);
    let told = steps.last().unwrap().control.as_ref().unwrap().rollback.unwrap();
    assert!(told.rollbacks >= 1 && told.snapshots >= 3, "{told:?}");
    assert_eq!(returned.gates.unwrap().rolled_back, told.rollbacks);
    let before = mean(&steps[85..95]);
    let after = mean(&steps[140..]);
    assert!(after < 1.1 * before, "the loss was {before} before the spike, and is {after} after it");

    let (steps, broken) = train(&model("gpt-nano-spike"), "[gate.norm]\nenabled = false\n", STEPS, None);
    assert!(mean(&steps[140..]) > 1.2 * before, "the spike does no harm, so this tests nothing");
    assert!(returned.held_out_after.unwrap() < 0.9 * broken.held_out_after.unwrap());
}

#[test]
fn from_the_optimizer_to_sgd_the_loss_does_not_jump() {
    const STEPS: u64 = 70;
    const AT: usize = 60;
    let (plain, _) = train(&model("gpt-nano"), "", STEPS, None);
    let switch = format!("[switch]\nenabled = true\ntrigger = \"step\"\nstep = {AT}\n");
    let (switched, _) = train(&model("gpt-nano"), &switch, STEPS, None);
    let by_sgd = |s: &StepRecord| s.control.as_ref().unwrap().switched;
    assert!(switched.iter().enumerate().all(|(t, s)| by_sgd(s) == Some(t >= AT)));
    assert!(plain.iter().all(|s| by_sgd(s).is_none()));
    let losses = |steps: &[StepRecord]| steps[..AT].iter().map(|s| s.loss).collect::<Vec<_>>();
    assert_eq!(losses(&plain), losses(&switched), "a switch that has not happened changes nothing");
    let jump = mean(&switched[AT..]) / mean(&plain[AT..]);
    assert!(jump < 1.05, "the loss is {jump} times that of the run that does not switch");
}
