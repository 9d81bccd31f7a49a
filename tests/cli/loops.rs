//! Programs that loop over train steps by themselves.

use std::fs;
use std::io::BufWriter;
use std::path::Path;

use npyz::WriterBuilder;
use npyz::npz::NpzWriter;
use serde_json::Value;

use super::refusals::refused;
use super::{root, succeed};

/// Numbers to learn from, as arrays `batch['x']` and `batch['y']`.
fn numbers(path: &Path) {
    let mut npz = NpzWriter::new(BufWriter::new(fs::File::create(path).unwrap()));
    for (name, width) in [("x", 16_u64), ("y", 8)] {
        let array = npz.array(name, Default::default()).unwrap().default_dtype().shape(&[300, width]);
        let mut array = array.begin_nd().unwrap();
        array.extend((0..300 * width).map(|n| ((n * width) as f32).sin())).unwrap();
        array.finish().unwrap();
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn records(run: &Path) -> Vec<Value> {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().map(json).collect()
}

fn bundle(name: &str) -> String {
    root().join("tests/corpus_loops").join(name).display().to_string()
}

#[test]
fn a_loop_over_steps_trains_as_its_steps_do_and_tells_of_each() {
    let at = tempfile::tempdir().unwrap();
    numbers(&at.path().join("data.npz"));
    let train = |model: &str, run: &str| {
        succeed(at.path(), &format!("train {model} --data data.npz --steps 12 --seed 1 --out {run}"));
        records(&at.path().join(run))
    };
    let (one, several) = (train(&bundle("bundle"), "one"), train(&bundle("bundle_scan"), "several"));
    assert_eq!((one.len(), several.len()), (12, 12));
    for (step, (one, several)) in one.iter().zip(&several).enumerate() {
        assert_eq!(several["step"].as_u64(), Some(step as u64));
        // Another program, which rounds otherwise.
        for what in ["loss", "entropy", "norm"] {
            let [a, b] = [one, several].map(|record| record[what].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4 * a.abs(), "step {step}, {what}: {a} and {b}");
        }
        assert_eq!(several["accepted"].as_u64(), Some(step as u64 + 1));
    }
    let summary = |run: &str| json(&fs::read_to_string(at.path().join(run).join("summary.json")).unwrap());
    let [a, b] = ["one", "several"].map(|run| summary(run)["held_out_after"].as_f64().unwrap());
    assert!((a - b).abs() < 1e-4 * a, "{a} and {b}");
    let run = json(&fs::read_to_string(at.path().join("several/run.json")).unwrap());
    assert_eq!(run["steps_per_launch"], 4);
    let line = format!("train {} --data data.npz --steps 10 --out none", bundle("bundle_scan"));
    refused(at.path(), &line, &["4 steps in a launch", "8 or 12"]);
}

#[test]
fn a_loop_over_steps_is_injected_verified_and_looked_at() {
    let at = tempfile::tempdir().unwrap();
    let scan = bundle("bundle_scan");
    let report = succeed(at.path(), &format!("inspect {scan}"));
    for part in ["does 4 steps in one launch", "loss: output 13", "batch['x'], batch['y']", "scale-updates"] {
        assert!(report.contains(part), "{report} lacks {part}");
    }
    assert!(!report.contains("| no "), "{report}");
    let told = succeed(at.path(), &format!("inject {scan} -o out --policy monitor --verify"));
    assert!(told.contains("14 outputs of 20 steps are bit-identical"), "{told}");
    let manifest = json(&fs::read_to_string(at.path().join("out/manifest.json")).unwrap());
    assert_eq!(manifest["launch"]["steps"], 4);
    let telemetry = manifest["outputs"].as_array().unwrap().last().unwrap();
    assert_eq!((telemetry["role"].as_str(), telemetry["shape"][0].as_i64()), (Some("telemetry"), Some(4)));
    let audit = json(&succeed(at.path(), &format!("audit {scan} --target cpu --policy monitor --json --no-host")));
    assert_eq!(audit["aliases_kept"].as_u64(), Some(13));

    succeed(at.path(), &format!("inject {scan} -o replicas --replicas 2"));
    let manifest = json(&fs::read_to_string(at.path().join("replicas/manifest.json")).unwrap());
    assert_eq!((&manifest["launch"]["steps"], &manifest["launch"]["replicas"]), (&4.into(), &2.into()));

    let bare = root().join("tests/corpus_loops/adamw_fori.hlo.pb").display().to_string();
    succeed(at.path(), &format!("inject {bare} -o fori.hlo.pb"));
    let manifest = json(&fs::read_to_string(at.path().join("fori.manifest.json")).unwrap());
    assert_eq!((&manifest["launch"]["steps"], &manifest["outputs"][13]["role"]), (&4.into(), &"loss".into()));
}

#[test]
fn what_is_no_launch_of_so_many_steps_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let scan = bundle("bundle_scan");
    refused(
        at.path(),
        &format!("inject {scan} -o out --steps-per-launch 2"),
        &["4 steps in one launch already", "longer loop"],
    );
    let asked = root().join("tests/corpus_loops/asked.hlo.pb").display().to_string();
    refused(at.path(), &format!("inject {asked} -o out.hlo.pb"), &["bound of its counter is no constant", "lax.scan"]);
    let edited = at.path().join("edited");
    fs::create_dir(&edited).unwrap();
    for file in ["module.hlo.pb", "init.hlo.pb", "manifest.json"] {
        fs::copy(Path::new(&scan).join(file), edited.join(file)).unwrap();
    }
    let text = fs::read_to_string(edited.join("manifest.json")).unwrap();
    let eval = text.lines().find(|line| line.contains("\"eval\"")).unwrap();
    let text = text.replace(eval, "  \"eval\": null,").replace("\"steps\": 4", "\"steps\": 1");
    fs::write(edited.join("manifest.json"), text.replace("\"role\": \"loss\"", "\"role\": \"aux\"")).unwrap();
    refused(at.path(), "inject edited -o out", &["does 4 steps", "manifest says 1", "steps_per_launch=4"]);
}
