//! Steps of one device that train together, on devices of the CPU plugin.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::refusals::refused;
use super::{root, succeed};

/// Losses and entropies of a run, step by step.
fn metrics(run: &Path) -> Vec<(Value, Value)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let record = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    text.lines().map(record).map(|r| (r["loss"].clone(), r["entropy"].clone())).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn replicas_train_together_however_they_are_launched() {
    let at = tempfile::tempdir().unwrap();
    let text: String = (0..4000).map(|n| format!("{} is {} and then some.\n", n * 7919 % 1000, n % 13)).collect();
    fs::write(at.path().join("text"), text).unwrap();
    let mlp = root().join("models/mlp");
    let train = |model: &str, rest: &str| {
        succeed(at.path(), &format!("train {model} --data text --steps 12 {rest}"));
    };
    let mlp = mlp.display().to_string();
    train(&mlp, "--replicas 2 --out controlled");
    train(&mlp, "--replicas 2 --steps-per-launch 5 --out fused");
    train(&mlp, "--replicas 2 --no-control --out plain");
    train(&mlp, "--out alone");
    let told = succeed(at.path(), &format!("inject {mlp} -o injected --replicas 2"));
    assert!(told.contains("2 replicas"), "{told}");
    assert_eq!(json(&at.path().join("injected/manifest.json"))["launch"]["replicas"], 2);
    train("injected", "--out injected-run");

    let controlled = metrics(&at.path().join("controlled"));
    assert_eq!(controlled.len(), 12);
    assert_eq!(controlled, metrics(&at.path().join("fused")));
    assert_eq!(controlled, metrics(&at.path().join("injected-run")));
    let losses = |run: &str| metrics(&at.path().join(run)).into_iter().map(|(loss, _)| loss).collect::<Vec<_>>();
    assert_eq!(losses("controlled"), losses("plain"), "watching changes no loss");
    assert_ne!(losses("controlled"), losses("alone"), "the second replica had no part in it");
    assert_eq!(json(&at.path().join("controlled/run.json"))["replicas"], 2);
}

#[test]
fn what_cannot_be_made_data_parallel_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let mlp = root().join("models/mlp").display().to_string();
    let masked = root().join("tests/corpus_replicas/masked_b4.hlo.pb").display().to_string();
    refused(
        at.path(),
        &format!("inject {masked} -o out.hlo.pb --replicas 2"),
        &["--weighting count", "--weighting equal"],
    );
    succeed(at.path(), &format!("inject {masked} -o out.hlo.pb --replicas 2 --weighting count"));
    refused(at.path(), &format!("inject {mlp} -o out --replicas 2 --weighting count"), &["no count to weigh"]);
    refused(at.path(), &format!("inject {mlp} -o out --replicas 2 --verify"), &["on one device"]);
    succeed(at.path(), &format!("inject {mlp} -o injected"));
    fs::write(at.path().join("text"), "some text").unwrap();
    let line = format!("train {mlp} --data {} --steps 1 --replicas 100000", root().join("docs").display());
    refused(at.path(), &line, &["256 device(s)", "100000 replica(s)", "ask for fewer replicas"]);
    refused(at.path(), "train injected --data text --steps 1 --replicas 2", &["inject that with --replicas"]);
}
