//! Runs that end early and go on.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::refusals::{check, refused};
use super::{program, run, succeed, workplace};

/// A policy whose gates arm within a few steps, and which keeps copies to return to.
const POLICY: &str = "[gate.norm]\nmultiple = 1.05\ndeviations = 0\nwarmup = 5\n[target]\nfirst = 10\nevery = 20\n[laws]\nwarmup = 5\n\
                      [laws.micro]\nenabled = true\n[rollback]\nkind = \"snapshot\"\nrefresh = 10\n";

const TRAIN: &str = "train mlp --data text --policy policy.toml --corrupt 0.1 --checkpoint-every 20";

fn place() -> tempfile::TempDir {
    let at = workplace();
    fs::write(at.path().join("policy.toml"), POLICY).unwrap();
    at
}

/// The checkpoints of a run, oldest first.
fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-"));
    found.sort();
    found
}

/// What a run recorded, but for times and for what it does not repeat.
fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let record = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("seconds");
        value
    };
    text.lines().map(record).collect()
}

fn summary(run: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

/// Asserts that two runs came to the same: states, controller, every step's record.
fn assert_alike(a: &Path, b: &Path) {
    assert_eq!(records(a), records(b));
    let [a, b] = [a, b].map(|run| checkpoints(run).pop().unwrap());
    assert_eq!(a.file_name(), b.file_name());
    for file in ["state.safetensors", "controller.safetensors"] {
        assert_eq!(fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap(), "{file}");
    }
}

fn start(at: &Path, line: &str) -> Child {
    let mut command = program(at);
    command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until something holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited two minutes until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_run_that_was_killed_goes_on_bit_for_bit() {
    let at = place();
    succeed(at.path(), &format!("{TRAIN} --steps 600 --out whole"));
    let whole = at.path().join("whole");
    let told = records(&whole);
    let holds = |key: &str| told.iter().filter(|r| !r[key].is_null() && r[key] != Value::Bool(false)).count();
    assert!(holds("gate") > 10 && holds("fault") > 10 && holds("calibrated") > 1, "the run has too little to repeat");

    // One command starts the run and has it go on.
    let line = format!("{TRAIN} --steps 600 --resume killed");
    let killed = at.path().join("killed");
    for _ in 0..2 {
        let before = checkpoints(&killed).pop();
        let mut child = start(at.path(), &line);
        wait_until("there is a new checkpoint", || checkpoints(&killed).pop() > before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(at.path(), "train --resume killed");
    assert_alike(&whole, &killed);
    let summaries = [&whole, &killed].map(|run| summary(run));
    for key in ["held_out_before", "held_out_after", "gates", "steps", "non_finite_losses"] {
        assert_eq!(summaries[0][key], summaries[1][key], "{key}");
    }
    assert!(!summaries[1]["resumed_from"].as_array().unwrap().is_empty());
    let told = succeed(at.path(), "compare whole killed");
    assert!(told.contains("whole and killed are the same in all 600 steps, up to times"), "{told}");
    assert!(!told.contains("policy.") && !told.contains("seed"), "{told}");
    succeed(at.path(), "report killed");
    let page = fs::read_to_string(killed.join("report.html")).unwrap();
    for text in ["went on after an end", "steps of 600, complete", "held-out loss", "after 600 steps"] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn several_steps_per_launch_and_replicas_go_on_bit_for_bit() {
    let at = place();
    let line = "train mlp --data text --policy policy.toml --replicas 2 --steps-per-launch 4 --checkpoint-every 10";
    succeed(at.path(), &format!("{line} --steps 42 --out whole"));
    succeed(at.path(), &format!("{line} --steps 24 --out parts"));
    // A checkpoint is taken at the first launch that reaches it, and at the end.
    let steps: Vec<_> =
        checkpoints(&at.path().join("parts")).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(steps, ["step-000000012", "step-000000020", "step-000000024"]);
    succeed(at.path(), "train --resume parts --steps 42");
    assert_alike(&at.path().join("whole"), &at.path().join("parts"));
    // What is left is counted from where the run goes on, not from its beginning.
    succeed(at.path(), "train --resume whole --steps 64");
    succeed(at.path(), "train --resume parts --steps 50");
    succeed(at.path(), "train --resume parts --steps 64");
    assert_alike(&at.path().join("whole"), &at.path().join("parts"));
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_in_order_and_it_goes_on() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let at = place();
    let path = at.path().join("ended");
    let line = TRAIN.replace("--checkpoint-every 20", "--checkpoint-every 100000000");
    let line = format!("{line} --steps 100000000 --resume ended");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let before = checkpoints(&path).len();
        // So many steps that it does not end by itself.
        let mut child = start(at.path(), &line);
        wait_until("it trains", || fs::metadata(path.join("metrics.jsonl")).is_ok_and(|m| m.len() > 0) || before > 0);
        std::thread::sleep(Duration::from_millis(300));
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let code = child.wait().unwrap().code();
        let said = said(&mut child);
        assert_eq!(code, Some(130), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        assert_eq!(summary(&path)["ending"], "interrupted");
        assert_eq!(summary(&path)["checkpoint"], summary(&path)["steps"], "what was done is in a checkpoint");
    }
}

#[test]
fn a_damaged_checkpoint_is_told_and_passed_over() {
    let at = place();
    succeed(at.path(), &format!("{TRAIN} --steps 60 --keep 2 --out run"));
    let path = at.path().join("run");
    let whole = records(&path);
    let newest = checkpoints(&path).pop().unwrap();
    assert_eq!(checkpoints(&path).len(), 2, "--keep 2");
    let state = newest.join("state.safetensors");
    let mut bytes = fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&state, bytes).unwrap();
    let ran = run(at.path(), &["train", "--resume", "run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for part in ["warning: ", "step-000000060 cannot be used: state.safetensors is damaged", "going on after 40 steps"]
    {
        assert!(ran.err.contains(part), "no {part:?} in {}", ran.err);
    }
    assert_eq!(records(&path), whole);

    // One that is damaged takes no place among those that are kept.
    let newest = checkpoints(&path).pop().unwrap();
    fs::write(newest.join("state.safetensors"), "damaged").unwrap();
    let line = "train --resume run --checkpoint-every 5 --keep 1 --steps 55";
    let ran = run(at.path(), &line.split(' ').collect::<Vec<_>>());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let kept: Vec<_> = checkpoints(&path).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(kept, ["step-000000055"]);

    for checkpoint in checkpoints(&path) {
        fs::remove_file(checkpoint.join("checkpoint.json")).unwrap();
    }
    refused(at.path(), "train --resume run", &["no checkpoint in", "checkpoint.json cannot be read", "backup"]);
}

#[test]
fn what_would_be_another_run_is_refused() {
    let at = place();
    succeed(at.path(), &format!("{TRAIN} --steps 20 --out run"));
    let again = |change: &str, parts: &[&str]| {
        refused(at.path(), &format!("{TRAIN} --steps 40 --resume run {change}"), parts);
    };
    again("--seed 1", &["the seed is another one"]);
    again("--replicas 2", &["the number of replicas is another one", "the train step is another one"]);
    fs::write(at.path().join("policy.toml"), POLICY.replace("1.05", "1.5")).unwrap();
    again("", &["the policy has other numbers", "--allow-policy-change"]);
    fs::write(at.path().join("policy.toml"), POLICY).unwrap();
    fs::write(at.path().join("more"), "another text, long enough to train on. ".repeat(100)).unwrap();
    again("--data text more", &["the data are others"]);
    refused(at.path(), "train --resume run --steps 10", &["has done 20 steps", "ask for more"]);
    refused(at.path(), "train --resume nowhere", &["there is no run in nowhere", "MODEL"]);
    fs::write(at.path().join("run/run.json"), "{\"format_version\": 7}").unwrap();
    refused(at.path(), "train --resume run", &["run.json", "format_version 7"]);
}

#[test]
fn a_policy_may_change_when_that_is_asked_for() {
    let at = place();
    succeed(at.path(), &format!("{TRAIN} --steps 20 --out run"));
    fs::write(at.path().join("other.toml"), POLICY.replace("1.05", "1e6")).unwrap();
    let ran = run(
        at.path(),
        &"train --resume run --steps 80 --policy other.toml --allow-policy-change".split(' ').collect::<Vec<_>>(),
    );
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("not as one that was never interrupted"), "{}", ran.err);
    let refused_for_norm =
        |from: usize| records(&at.path().join("run"))[from..].iter().filter(|r| r["gate"] == "norm").count();
    assert!(records(&at.path().join("run"))[..20].iter().any(|r| r["gate"] == "norm"));
    assert_eq!(refused_for_norm(20), 0, "the new numbers apply");
}

/// Starts a run without end, waits for its first checkpoint, and puts a file where checkpoints go. Returns the newest one.
fn blocked(at: &Path, name: &str, more: &str) -> (Child, PathBuf) {
    let run = at.join(name);
    let line = "train mlp --data text --policy policy.toml --checkpoint-every 20 --steps 100000000";
    let child = start(at, &format!("{line} --resume {name} {more}"));
    wait_until("it has a checkpoint", || !checkpoints(&run).is_empty());
    fs::rename(run.join("checkpoints"), run.join("aside")).unwrap();
    fs::write(run.join("checkpoints"), "a file in the way").unwrap();
    let newest = fs::read_dir(run.join("aside")).unwrap().map(|entry| entry.unwrap().path());
    let newest = newest.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-")).max().unwrap();
    (child, newest)
}

fn said(child: &mut Child) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_run_goes_on_without_checkpoints_and_writes_them_when_it_can() {
    let at = place();
    let run = at.path().join("run");
    let (mut child, good) = blocked(at.path(), "run", "");
    let then = lines(&run);
    wait_until("it trains on", || lines(&run) > then + 100);
    fs::remove_file(run.join("checkpoints")).unwrap();
    wait_until("it writes checkpoints again", || !checkpoints(&run).is_empty());
    child.kill().unwrap();
    let said = said(&mut child);
    child.wait().unwrap();
    assert!(said.contains("warning: no checkpoint after") && said.contains("training goes on"), "{said}");
    assert!(good.join("SHA256SUMS").is_file(), "the last good one is intact");
}

#[test]
fn a_run_stops_without_checkpoints_where_that_is_asked_for() {
    let at = place();
    let (mut child, good) = blocked(at.path(), "run", "--on-write-error stop");
    let code = child.wait().unwrap().code();
    let said = said(&mut child);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot write") && said.contains("--on-write-error continue"), "{said}");
    // What was there before goes on.
    let run = at.path().join("run");
    fs::remove_file(run.join("checkpoints")).unwrap();
    fs::rename(run.join("aside"), run.join("checkpoints")).unwrap();
    let step: u64 = good.file_name().unwrap().to_str().unwrap().trim_start_matches("step-").parse().unwrap();
    succeed(at.path(), &format!("train --resume run --steps {}", step + 20));
}

/// Lines of the record, also while it is written.
fn lines(run: &Path) -> usize {
    fs::read(run.join("metrics.jsonl")).map_or(0, |text| text.iter().filter(|&&b| b == b'\n').count())
}

#[test]
fn two_processes_do_not_train_one_run() {
    let at = place();
    let path = at.path().join("run");
    let mut child = start(at.path(), "train mlp --data text --steps 100000000 --checkpoint-every 20 --resume run");
    wait_until("it has a checkpoint", || !checkpoints(&path).is_empty());
    let line = "train --resume run";
    check(&run(at.path(), &line.split(' ').collect::<Vec<_>>()), line, &["another process is training this run"]);
    child.kill().unwrap();
    child.wait().unwrap();
}
