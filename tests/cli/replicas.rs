//! Steps of one device that train together, on devices of the CPU plugin.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::refusals::refused;
use super::{root, succeed};

/// Something to train on, as `text`.
fn write_text(at: &Path) {
    let text: String = (0..4000).map(|n| format!("{} is {} and then some.\n", n * 7919 % 1000, n % 13)).collect();
    fs::write(at.join("text"), text).unwrap();
}

/// What a run has on record, step by step.
fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Losses and entropies of a run, step by step.
fn metrics(run: &Path) -> Vec<(Value, Value)> {
    records(run).into_iter().map(|r| (r["loss"].clone(), r["entropy"].clone())).collect()
}

/// How often replicas of a run were compared, and the steps that a comparison is noted with.
fn compared(run: &Path) -> (u64, Vec<u64>) {
    let consistency = json(&run.join("summary.json"))["consistency"].clone();
    assert_eq!(consistency["replica_mismatches_total"], 0);
    let noted = records(run).into_iter().filter(|r| r.get("replica_checks_total").is_some());
    (consistency["replica_checks_total"].as_u64().unwrap(), noted.map(|r| r["step"].as_u64().unwrap()).collect())
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn replicas_train_together_however_they_are_launched() {
    let at = tempfile::tempdir().unwrap();
    write_text(at.path());
    let mlp = root().join("models/mlp");
    let train = |model: &str, rest: &str| succeed(at.path(), &format!("train {model} --data text --steps 12 {rest}"));
    let mlp = mlp.display().to_string();
    fs::write(at.path().join("policy.toml"), "[replicas]\ncheck_every = 4\n").unwrap();
    let said = train(&mlp, "--replicas 2 --policy policy.toml --out controlled");
    assert!(said.contains("always alike"), "{said}");
    let said = train(&mlp, "--replicas 2 --policy policy.toml --steps-per-launch 5 --out fused");
    assert!(said.contains("always alike"), "{said}");
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

    // Before the first step, and behind 4, 8 and 12; in launches of 5 behind 5 and 10, then as the last steps do.
    assert_eq!(compared(&at.path().join("controlled")), (4, vec![3, 7, 11]));
    assert_eq!(compared(&at.path().join("fused")), (4, vec![4, 9, 11]));
    // By default, before the first step and behind the last.
    assert_eq!(compared(&at.path().join("plain")), (2, vec![]));
    assert_eq!(json(&at.path().join("alone/summary.json"))["consistency"], Value::Null);
}

#[test]
fn replicas_whose_updates_have_equal_singular_values_stay_alike_however_they_are_launched() {
    let at = tempfile::tempdir().unwrap();
    write_text(at.path());
    let mlp = root().join("models/mlp").display().to_string();
    for replicas in [2, 8] {
        let train = |rest: &str| {
            let line = format!("train {mlp} --data text --steps 10 --policy spectral --replicas {replicas} {rest}");
            let said = succeed(at.path(), &line);
            assert!(said.contains("always alike"), "{replicas}: {said}");
        };
        let run = |name: &str| at.path().join(format!("{name}-{replicas}"));
        train(&format!("--out single-{replicas}"));
        train(&format!("--steps-per-launch 5 --out fused-{replicas}"));
        assert_eq!(metrics(&run("single")), metrics(&run("fused")), "{replicas} replicas");
        let spectral =
            |name| records(&run(name)).into_iter().map(|r| r["spectral_entropy"].clone()).collect::<Vec<_>>();
        assert_eq!(spectral("single"), spectral("fused"), "{replicas} replicas");
        assert!(spectral("single").iter().all(|entropy| entropy.as_f64().is_some_and(|e| 0.0 < e && e < 1.0)));
        assert_eq!(json(&run("single").join("run.json"))["replicas"], replicas);
    }
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
