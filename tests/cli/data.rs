//! Training on arrays: a step whose batch is a dictionary of points and labels, and a manifest that says nothing of it.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use npyz::npz::NpzWriter;
use serde_json::Value;

use super::refusals::refused;
use super::{root, succeed};

fn bundle(name: &str) -> PathBuf {
    root().join("tests/corpus_data").join(name)
}

/// Points around three corners, which a linear classifier tells apart, as an `.npz` file with those arrays.
fn points(path: &Path, count: usize) {
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24) - 0.5
    };
    let labels: Vec<i64> = (0..count as i64).map(|n| n * 7 % 3).collect();
    let points: Vec<f64> = labels
        .iter()
        .flat_map(|&label| [0, 1, 2, 3].map(|k| f64::from(u8::from(k == label))))
        .map(|corner| corner * 2.0 + noise())
        .collect();
    let mut npz = NpzWriter::new(BufWriter::new(File::create(path).unwrap()));
    let mut array =
        npz.array("point", Default::default()).unwrap().default_dtype().shape(&[count as u64, 4]).begin_nd().unwrap();
    array.extend(points).unwrap();
    array.finish().unwrap();
    let mut array =
        npz.array("label", Default::default()).unwrap().default_dtype().shape(&[count as u64]).begin_nd().unwrap();
    array.extend(labels).unwrap();
    array.finish().unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn losses(run: &Path) -> Vec<f64> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap()).collect()
}

#[test]
fn a_step_without_text_trains_on_arrays() {
    let at = tempfile::tempdir().unwrap();
    points(&at.path().join("points.npz"), 500);
    let line = format!("train {} --data points.npz --steps 80 --seed 3 --out", bundle("classifier").display());
    let said = succeed(at.path(), &format!("{line} a"));
    assert!(said.contains("held-out loss after"), "{said}");
    let summary = json(&at.path().join("a/summary.json"));
    let held_out = |key: &str| summary[key].as_f64().unwrap();
    assert!(held_out("held_out_after") < 0.5 * held_out("held_out_before"), "{summary}");
    let curve = losses(&at.path().join("a"));
    assert!(curve[70..].iter().sum::<f64>() < 0.5 * curve[..10].iter().sum::<f64>(), "{curve:?}");
    let run = json(&at.path().join("a/run.json"));
    assert_eq!((&run["data"]["examples"], &run["data"]["held_out_examples"]), (&500.into(), &48.into()));

    // The same run again, also without the controller, which refused nothing; another seed gives another one.
    succeed(at.path(), &format!("{line} b --no-control"));
    assert_eq!(losses(&at.path().join("b")), curve);
    succeed(at.path(), &format!("{line} c").replace("--seed 3", "--seed 4"));
    assert_ne!(losses(&at.path().join("c")), curve);
    let explained = succeed(at.path(), "explain a --step 5");
    assert!(explained.contains("loss"), "{explained}");
}

#[test]
fn what_is_held_out_does_not_depend_on_the_size_of_a_step() {
    let at = tempfile::tempdir().unwrap();
    // 43 blocks, of which 4 are held out: 64 examples.
    points(&at.path().join("points.npz"), 700);
    let before = ["classifier", "classifier-64"].map(|name| {
        succeed(
            at.path(),
            &format!("train {} --data points.npz --steps 1 --seed 3 --out {name}", bundle(name).display()),
        );
        json(&at.path().join(name).join("summary.json"))["held_out_before"].as_f64().unwrap()
    });
    // Sums of 64 losses near 1, in another order.
    assert!((before[0] - before[1]).abs() < 1e-5, "{before:?}");
}

#[test]
fn windows_of_tokens_may_come_as_an_array() {
    let at = super::workplace();
    let mut npz = NpzWriter::new(BufWriter::new(File::create(at.path().join("tokens.npz")).unwrap()));
    let mut array = npz.array("ids", Default::default()).unwrap().default_dtype().shape(&[300, 9]).begin_nd().unwrap();
    array.extend((0..2700u16).map(|n| n % 50)).unwrap();
    array.finish().unwrap();
    drop(npz);
    succeed(at.path(), "train mlp --data tokens.npz --steps 30 --seed 0 --out run");
    let curve = losses(&at.path().join("run"));
    assert!(curve[29] < curve[0], "{curve:?}");
    // A folder with arrays is one of arrays, until there is text in it.
    fs::create_dir(at.path().join("folder")).unwrap();
    fs::rename(at.path().join("tokens.npz"), at.path().join("folder/tokens.npz")).unwrap();
    succeed(at.path(), "train mlp --data folder --steps 30 --seed 0 --out again");
    assert_eq!(losses(&at.path().join("again")), curve);
    fs::copy(at.path().join("text"), at.path().join("folder/text")).unwrap();
    succeed(at.path(), "train mlp --data folder --steps 2 --seed 0 --out other");
    assert!(json(&at.path().join("other/run.json"))["data"]["bytes"].is_number());
}

#[test]
fn arrays_that_do_not_fit_are_refused_before_anything_is_compiled() {
    let at = super::workplace();
    points(&at.path().join("points.npz"), 100);
    points(&at.path().join("few.npz"), 16);
    let npz = fs::read(at.path().join("points.npz")).unwrap();
    fs::write(at.path().join("cut.npz"), &npz[..npz.len() / 2]).unwrap();
    let classifier = bundle("classifier").display().to_string();
    let train = |model: &str, data: &str| format!("train {model} --data {data} --steps 1 --out run");
    for (line, parts) in [
        (train(&classifier, "text"), &["classifier", "no `data`", "text is no .npz", "batch['label']"][..]),
        (train(&classifier, "none.npz"), &["none.npz", "No such file"]),
        (train(&classifier, "cut.npz"), &["cut.npz", "truncated"]),
        (train(&classifier, "few.npz"), &["few.npz", "16 examples, 15 of them to train on", "takes 16"]),
        (train(&classifier, "mlp"), &["no data", "mlp", "files with arrays"]),
        (train("mlp", "text points.npz"), &["points.npz", "holds arrays", "one kind"]),
        (train("mlp", "points.npz"), &["points.npz", "tokens", "there are: point, label"]),
        (train(&classifier, "points.npz --corrupt 0.1"), &["--corrupt", "these data are arrays"]),
    ] {
        refused(at.path(), &line, parts);
    }
}
