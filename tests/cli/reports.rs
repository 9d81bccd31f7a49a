//! Runs as pages, side by side, and as event files. What is recorded here is written by hand, so no plugin is needed.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::refusals::refused;
use super::succeed;

const EVIL: &str = "<script>alert(1)</script>";

/// A run's folder without a step.
fn folder(at: &Path, controlled: bool, tensors: usize) {
    fs::create_dir(at).unwrap();
    let tensors: Vec<String> = (0..tensors).map(|n| format!("{EVIL}{n}")).collect();
    let mut policy = passes::Policy::default();
    policy.gate.entropy.enabled = true;
    let policy = controlled.then(|| serde_json::to_value(policy).unwrap());
    let run = json!({
        "format_version": 1, "program": "entropic", "version": "0.1.0", "model": EVIL, "model_path": EVIL,
        "module_sha256": "00", "policy": policy, "tensors": tensors, "seed": 7, "steps": 1000, "steps_per_launch": 1,
        "replicas": 1, "corruption": null, "invocation": null, "loss_unit": EVIL,
        "data": {"paths": [EVIL], "files": 1}, "plugin": {"platform": EVIL},
    });
    fs::write(at.join("run.json"), run.to_string()).unwrap();
    fs::write(at.join("metrics.jsonl"), "").unwrap();
}

fn record(step: u64, loss: Value, tensors: Option<usize>) -> Value {
    let mut record = json!({"step": step, "loss": loss, "seconds": step as f64 / 100.0});
    if let Some(tensors) = tensors {
        let refused = step % 10 == 3;
        let control = json!({
            "entropy": 0.8, "smoothed": 0.75, "target": 0.7, "norm": if step == 5 { Value::Null } else { json!(1.5) },
            "norm_threshold": 3.0, "gate": refused.then_some("norm"), "rearmed": step == 13, "calibrated": false,
            "stop": false, "accepted": step + 1, "non_finite": 0, "refused_norm": step / 10, "refused_low": 0,
            "refused_high": 0, "rearmings": 0, "loss_scale_skips": 0, "ratio": 1.1, "lr_scale": 1.0, "momentum_scale": 1.0,
            "rollback": {"rolled_back": step == 23, "snapshot_taken": false, "rollbacks": 0, "snapshots": 1, "backoff": 1.0},
            "switched": step >= 30,
            "tensor_entropy": (0..tensors).map(|n| (n != 1).then(|| n as f64 / tensors as f64)).collect::<Vec<_>>(),
            "tensor_norm": vec![1.0; tensors], "tensor_scale": vec![0.9; tensors], "tensor_momentum": [],
        });
        record.as_object_mut().unwrap().extend(control.as_object().unwrap().clone());
    }
    record
}

fn write(at: &Path, records: &[Value]) {
    let lines: Vec<String> = records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(at.join("metrics.jsonl"), lines.concat()).unwrap();
}

fn report(at: &Path, name: &str) -> String {
    succeed(at, &format!("report {name}"));
    let page = fs::read_to_string(at.join(name).join("report.html")).unwrap();
    assert!(page.contains("default-src 'none'"), "the policy against scripts and the network is there");
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"), "{page}");
    assert!(!page.contains("NaN") && !page.contains("inf\""), "{page}");
    page
}

#[test]
fn a_page_tells_what_happened_and_escapes_every_name() {
    let at = tempfile::tempdir().unwrap();
    let run = at.path().join("run");
    folder(&run, true, 3);
    let records: Vec<_> = (0..40).map(|step| record(step, json!(5.0 - step as f64 / 10.0), Some(3))).collect();
    write(&run, &records);
    let page = report(at.path(), "run");
    for text in [
        "refused: norm · 4",
        "rolled back · 1",
        "gates re-armed · 1",
        "optimizer gave way to SGD · 1",
        "There is no summary.json",
        "&lt;script&gt;alert(1)&lt;/script&gt;2",
        "Scale of updates by tensor",
        "band of the gate",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // Losses, entropy, norm, throughput, events, two heat maps with a legend each; nothing moved the scales of all tensors.
    assert_eq!(page.matches("<svg").count(), 9);
}

#[test]
fn pages_of_odd_runs() {
    let at = tempfile::tempdir().unwrap();
    for (name, tensors, records, text) in [
        ("empty", Some(2), vec![], "No step was recorded"),
        ("single", Some(2), vec![record(0, json!(5.0), Some(2))], "<circle"),
        ("plain", None, (0..9).map(|n| record(n, json!(1.0), None)).collect(), "no controller"),
        ("lossless", None, (0..9).map(|n| record(n, Value::Null, None)).collect(), "No loss is finite"),
        ("none", Some(0), vec![record(0, json!(5.0), Some(0))], "No tensor has a value"),
        ("gap", None, vec![record(0, json!(1.0), None), record(4, json!(1.0), None)], "3 are not in metrics.jsonl"),
    ] {
        let run = at.path().join(name);
        folder(&run, tensors.is_some(), tensors.unwrap_or_default());
        write(&run, &records);
        let page = report(at.path(), name);
        assert!(page.contains(text), "{name}: {page}");
    }
}

#[test]
fn a_line_that_was_cut_short_is_left_out_and_damage_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let run = at.path().join("run");
    folder(&run, false, 0);
    let lines: Vec<String> = (0..3).map(|n| format!("{}\n", record(n, json!(1.0), None))).collect();
    let whole = lines.concat();
    fs::write(run.join("metrics.jsonl"), &whole[..whole.len() - 9]).unwrap();
    let page = report(at.path(), "run");
    assert!(page.contains("Line 3, the last one of metrics.jsonl, was cut short"), "{page}");
    // Only the newline is missing: the record is whole.
    fs::write(run.join("metrics.jsonl"), whole.trim_end()).unwrap();
    assert!(!report(at.path(), "run").contains("cut short"));
    fs::write(run.join("metrics.jsonl"), [&lines[0], "{\"step\": 1, \"lo\n", &lines[2]].concat()).unwrap();
    refused(at.path(), "report run", &["run/metrics.jsonl, line 2"]);
    fs::write(run.join("metrics.jsonl"), [&lines[1], &lines[0]].map(String::as_str).concat()).unwrap();
    refused(at.path(), "report run", &["metrics.jsonl, line 2", "step 0 is recorded behind step 1"]);
    // A whole record without what it must have is damage, too, wherever it stands.
    fs::write(run.join("metrics.jsonl"), "{\"step\": 0}").unwrap();
    refused(at.path(), "report run", &["metrics.jsonl, line 1", "seconds"]);
    fs::write(run.join("summary.json"), "{").unwrap();
    refused(at.path(), "report run", &["summary.json"]);
    refused(at.path(), "report nothing", &["nothing/run.json", "a run's folder holds"]);
    refused(at.path(), "report run -o .", &["summary.json"]);
}

#[test]
fn many_steps_and_tensors_make_a_page_of_bounded_size() {
    let at = tempfile::tempdir().unwrap();
    let run = at.path().join("run");
    folder(&run, true, 200);
    let records: Vec<_> = (0..700).map(|n| record(n, json!(1.0 + (n * 7919 % 1000) as f64), Some(200))).collect();
    write(&run, &records);
    let page = report(at.path(), "run");
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    assert!(page.contains("each cell is the mean of 4 steps"));
    assert_eq!(page.matches("class=\"name low\"").count(), 400, "both maps name every tensor");
}

#[test]
fn runs_are_compared_by_what_was_asked_what_came_of_it_and_step_by_step() {
    let at = tempfile::tempdir().unwrap();
    let losses = |changed: Option<u64>| -> Vec<Value> {
        let loss = |n| if Some(n) == changed { json!(9.0) } else { json!(1.0) };
        (0..20).map(|n| record(n, loss(n), Some(2))).collect()
    };
    for (name, records) in [("a", losses(None)), ("b", losses(None)), ("c", losses(Some(12)))] {
        let run = at.path().join(name);
        folder(&run, true, 2);
        write(&run, &records);
    }
    // Another time is no difference.
    let metrics = at.path().join("b/metrics.jsonl");
    fs::write(&metrics, fs::read_to_string(&metrics).unwrap().replace("\"seconds\":0.1", "\"seconds\":0.3")).unwrap();
    let told = succeed(at.path(), "compare a b -o page.html");
    assert!(
        told.contains("All were asked for the same") && told.contains("a and b are the same in all 20 steps"),
        "{told}"
    );
    let seed = fs::read_to_string(at.path().join("c/run.json")).unwrap().replace("\"seed\":7", "\"seed\":8");
    fs::write(at.path().join("c/run.json"), seed).unwrap();
    let told = succeed(at.path(), "compare a b c -o page.html");
    assert!(told.contains("a and c differ from step 12 on: loss is 1.0 and 9.0"), "{told}");
    let row = |name: &str| told.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    assert!(row("seed").contains('7') && row("seed").contains('8'), "{told}");
    assert!(row("training loss").contains("1.4"), "{told}");
    assert!(!told.contains("loss_unit"), "{told}");
    let page = fs::read_to_string(at.path().join("page.html")).unwrap();
    assert!(page.contains("default-src 'none'") && !page.contains("<script"));
    let text = fs::read_to_string(at.path().join("c/metrics.jsonl")).unwrap();
    let first: Vec<_> = text.lines().take(5).collect();
    fs::write(at.path().join("c/metrics.jsonl"), first.join("\n")).unwrap();
    assert!(succeed(at.path(), "compare a c").contains("a and c are the same in 5 steps, up to times; a has more"));
}

#[test]
fn an_event_file_holds_every_step_and_is_replaced() {
    let at = tempfile::tempdir().unwrap();
    let run = at.path().join("run");
    folder(&run, true, 2);
    write(&run, &(0..3).map(|n| record(n, json!(1.0), Some(2))).collect::<Vec<_>>());
    for _ in 0..2 {
        assert!(succeed(at.path(), "report run --tensorboard tb/deep").starts_with("3 steps in "));
    }
    let files: Vec<_> = fs::read_dir(at.path().join("tb/deep")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = fs::read(&files[0]).unwrap();
    let (mut at_byte, mut records) = (0, 0);
    while at_byte < bytes.len() {
        let length = u64::from_le_bytes(bytes[at_byte..at_byte + 8].try_into().unwrap());
        at_byte += 16 + usize::try_from(length).unwrap();
        records += 1;
    }
    assert_eq!((at_byte, records), (bytes.len(), 4));
    assert!(!run.join("report.html").exists(), "a page only where it is asked for");
}
