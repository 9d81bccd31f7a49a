//! What works.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{corpus, listing, model, program, root, run, succeed, tiny, workplace};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn metrics(run: &Path) -> Vec<Value> {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().map(json).collect()
}

fn losses(run: &Path) -> Vec<f64> {
    metrics(run).iter().map(|m| m["loss"].as_f64().unwrap()).collect()
}

#[test]
fn help_states_commands_and_exit_codes() {
    let help = succeed(&root(), "--help");
    for part in ["inspect", "inject", "train", "diff", "show", "plugin", "Exit codes", "130"] {
        assert!(help.contains(part), "{help}");
    }
}

#[test]
fn inspect_finds_the_step_of_a_bundle_and_of_a_bare_module() {
    let at = workplace();
    for (arguments, first, second) in [
        ("inspect mlp --json", "params['embedding']", "params['hidden']"),
        ("inspect mlp/module.hlo.pb --json", "params['embedding']", "params['hidden']"),
    ] {
        let report = json(&succeed(at.path(), arguments));
        let parameters = report["parameters"].as_array().unwrap();
        assert_eq!(parameters.len(), 5);
        assert_eq!(
            (&parameters[0]["name"], &parameters[1]["name"]),
            (&json(&format!("{first:?}")), &json(&format!("{second:?}")))
        );
        for parameter in parameters {
            assert!(parameter["gradient"]["eff"].as_str().unwrap().starts_with('%'));
            assert_eq!(parameter["moments"].as_array().unwrap().len(), 2);
            assert_eq!(parameter["confidence"], "strong");
        }
        assert_eq!(report["states"].as_array().unwrap().len(), 16);
        assert_eq!(report["loss"]["index"], 16);
    }
    let tables = succeed(at.path(), "inspect mlp");
    for part in ["params['out_bias']", "opt_state[0].mu['hidden']", "bias-correction-counter", "measure-entropy"] {
        assert!(tables.contains(part), "{tables}");
    }
}

#[test]
fn classes_are_shown_and_inject_says_what_equal_singular_values_cost() {
    let at = workplace();
    let report = json(&succeed(at.path(), "inspect mlp --json"));
    let classes: Vec<&str> =
        report["parameters"].as_array().unwrap().iter().map(|p| p["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["embedding", "matrix", "no-matrix", "head", "no-matrix"]);
    assert_eq!(report["parameters"][1]["matrices"]["rows"], 256);
    let tables = succeed(at.path(), "inspect mlp");
    for part in ["params['hidden']: matrix: %", "1 of 5 parameters are matrices inside the model", "1 x embedding"] {
        assert!(tables.contains(part), "{part}: {tables}");
    }
    let said = succeed(at.path(), "inject mlp -o spectral --policy spectral");
    for part in [
        "spectral: 1 matrices in 1 tensors; left alone: 1 x embedding, 1 x head, 2 x no matrix",
        "5 iterations come to 187.50% of the operations of the step's products (from shapes)",
        "warning: that is more than 5%",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn expose_appends_gradients_in_parameter_order() {
    let at = workplace();
    let said = json(&succeed(at.path(), "inspect mlp --expose raw -o exposed.hlo.pb --json"));
    let outputs = said["outputs"].as_array().unwrap();
    let indices: Vec<_> = outputs.iter().map(|o| o["output"].as_u64().unwrap()).collect();
    assert_eq!(indices, [17, 18, 19, 20, 21]);
    let module = hlo::Module::import(&fs::read(at.path().join("exposed.hlo.pb")).unwrap()).unwrap();
    hlo::verify::verify(&module).unwrap();
    let entry = module.entry_computation();
    let (parameters, results) = (entry.parameters(), entry.outputs());
    for (index, exposed) in outputs.iter().enumerate() {
        let value = entry.get(results[17 + index]).unwrap();
        assert_eq!(exposed["instruction"], value.to_string());
        assert!(value.shape.same_array(&entry.get(parameters[index]).unwrap().shape));
    }
}

#[test]
fn expose_says_which_parameters_have_no_gradient() {
    let at = workplace();
    let line = format!("inspect {} --expose eff -o x.hlo.pb --json", corpus("mlp_multitransform").display());
    let said = json(&succeed(at.path(), &line));
    let (found, missing) = (said["outputs"].as_array().unwrap(), said["missing"].as_array().unwrap());
    assert_eq!((found.len(), missing.len()), (3, 1), "{said}");
    assert!(!missing[0]["reason"].as_str().unwrap().is_empty());
}

#[test]
fn inject_says_which_tensors_are_in_which_group() {
    let at = workplace();
    let groups = "[groups.small]\ninclude = [\"*\"]\nexclude = [\"*embedding*\", \"*['hidden']\", \"*['out']\"]\nlaws = false\n\
                  [groups.table]\ninclude = [\"*embedding*\"]\nscale = 0.5\nmax = 1.5\n";
    fs::write(at.path().join("groups.toml"), format!("[laws.micro]\nenabled = true\n{groups}")).unwrap();
    let said = succeed(at.path(), "inject mlp -o out --policy groups.toml --verify");
    assert!(said.contains("group small (no laws): params['hidden_bias'], params['out_bias']\n"), "{said}");
    assert!(said.contains("group table (scale 0.5, max 1.5): params['embedding']\n"), "{said}");
    fs::write(at.path().join("other.toml"), "[groups.small]\ninclude = [\"*bias*\"]\nlaws = false\nscale = 0.1\n")
        .unwrap();
    succeed(at.path(), "train out --policy other.toml --data text --steps 2 --seed 0 --out run");
}

#[test]
fn show_prints_hlo_text() {
    let at = workplace();
    let bundle = succeed(at.path(), "show mlp");
    assert_eq!(bundle, succeed(at.path(), "show mlp/module.hlo.pb"));
    assert!(bundle.starts_with("HloModule jit_step"), "{}", &bundle[..80]);
    assert!(bundle.contains("ENTRY %main") && bundle.contains("ROOT %"));
}

#[test]
fn hlo_text_is_read_wherever_a_module_is() {
    let at = workplace();
    let text = succeed(at.path(), "show mlp");
    fs::write(at.path().join("step.txt"), &text).unwrap();
    assert_eq!(succeed(at.path(), "show step.txt"), text);
    let inspected = |file: &str| json(&succeed(at.path(), &format!("inspect {file} --json")))["parameters"].clone();
    assert_eq!(inspected("step.txt"), inspected("mlp/module.hlo.pb"));
    succeed(at.path(), "inject step.txt -o a.hlo.pb");
    succeed(at.path(), "inject mlp/module.hlo.pb -o b.hlo.pb");
    assert_eq!(succeed(at.path(), "show a.hlo.pb"), succeed(at.path(), "show b.hlo.pb"));
    // A manifest may name text; what is written is a proto all the same.
    let manifest = fs::read_to_string(at.path().join("mlp/manifest.json")).unwrap();
    fs::write(at.path().join("mlp/manifest.json"), manifest.replace("module.hlo.pb", "step.hlo")).unwrap();
    fs::write(at.path().join("mlp/step.hlo"), &text).unwrap();
    fs::remove_file(at.path().join("mlp/module.hlo.pb")).unwrap();
    succeed(at.path(), "inject mlp -o injected");
    assert!(hlo::Module::import(&fs::read(at.path().join("injected/step.hlo.pb")).unwrap()).is_ok());
    assert_eq!(succeed(at.path(), "show injected"), succeed(at.path(), "show b.hlo.pb"));
}

#[test]
fn a_bundle_is_injected_verified_and_trained_as_if_it_had_been_injected_in_memory() {
    let at = workplace();
    let said = succeed(at.path(), "inject mlp -o controlled --verify");
    assert!(said.contains("bit-identical") && said.contains("5 tensors under control"), "{said}");
    let train = "--data text --steps 12 --seed 3 --out";
    succeed(at.path(), &format!("train controlled {train} a"));
    succeed(at.path(), &format!("train mlp {train} b"));
    succeed(at.path(), &format!("train mlp --no-control {train} c"));
    let [a, b, c] = ["a", "b", "c"].map(|run| losses(&at.path().join(run)));
    assert_eq!(a, b);
    // Nothing was refused, so that the controller changed nothing: the bits are those of the uncontrolled step.
    assert_eq!(a, c);
    let [controlled, plain] = ["b", "c"].map(|run| metrics(&at.path().join(run)));
    assert!(
        controlled.iter().all(|m| m["entropy"].as_f64().is_some_and(|e| e > 0.0 && e < 1.0) && m["gate"].is_null())
    );
    assert!(plain.iter().all(|m| m.get("entropy").is_none()));
}

#[test]
fn a_bare_module_is_injected_with_its_manifest_beside_it() {
    let at = workplace();
    fs::copy(corpus("mlp_adam"), at.path().join("step.hlo.pb")).unwrap();
    succeed(at.path(), "inject step.hlo.pb -o out.hlo.pb --verify");
    let manifest = json(&fs::read_to_string(at.path().join("out.manifest.json")).unwrap());
    assert_eq!(manifest["module"], "out.hlo.pb");
    let roles: Vec<_> = manifest["inputs"].as_array().unwrap().iter().map(|i| i["role"].as_str().unwrap()).collect();
    assert_eq!(roles.iter().filter(|&&r| r == "param").count(), 4);
    assert_eq!(roles[roles.len() - 3..], ["policy", "control", "control"]);
    let again = run(at.path(), &["inject", "out.hlo.pb", "-o", "twice.hlo.pb"]);
    assert!(again.code == Some(1) && again.err.contains("has a controller already"), "{}", again.err);
}

#[test]
fn injection_is_deterministic() {
    let at = workplace();
    succeed(at.path(), "inject mlp -o a");
    succeed(at.path(), "inject mlp -o b");
    for file in ["module.hlo.pb", "manifest.json"] {
        assert_eq!(
            fs::read(at.path().join("a").join(file)).unwrap(),
            fs::read(at.path().join("b").join(file)).unwrap()
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    let at = workplace();
    for (seed, out) in [(1, "a"), (1, "b"), (2, "c")] {
        succeed(at.path(), &format!("train mlp --data text --steps 20 --seed {seed} --out {out}"));
    }
    let strip = |run: &str| -> Vec<Value> {
        let mut lines = metrics(&at.path().join(run));
        // The clock is the only thing that may differ.
        lines.iter_mut().for_each(|m| _ = m.as_object_mut().unwrap().remove("seconds"));
        lines
    };
    assert_eq!(strip("a"), strip("b"));
    assert_ne!(strip("a"), strip("c"));
}

#[test]
fn spoilt_batches_are_recorded_and_held_out_text_is_not_touched() {
    let at = workplace();
    for (corrupt, out) in [("", "clean"), ("--corrupt 0.25", "a"), ("--corrupt 0.25", "b")] {
        succeed(at.path(), &format!("train mlp --data text --steps 40 --seed 1 {corrupt} --out {out}"));
    }
    let document = |run: &str, name: &str| json(&fs::read_to_string(at.path().join(run).join(name)).unwrap());
    assert_eq!(document("a", "run.json")["corruption"], json(r#"{"share": 0.25, "seed": 1}"#));
    assert!(document("clean", "run.json")["corruption"].is_null());
    let spoilt = metrics(&at.path().join("a"));
    assert_eq!(spoilt.iter().filter(|m| m["fault"].is_string()).count(), 10);
    assert_eq!(losses(&at.path().join("a")), losses(&at.path().join("b")));

    let clean = metrics(&at.path().join("clean"));
    assert!(clean.iter().all(|m| m.get("fault").is_none()));
    let first = spoilt.iter().position(|m| m["fault"].is_string()).unwrap();
    let [before, after] = ["held_out_before", "held_out_after"]
        .map(|key| ["clean", "a"].map(|run| document(run, "summary.json")[key].as_f64().unwrap()));
    assert_eq!(before[0], before[1]);
    assert_ne!(after[0], after[1]);
    // Batches before the first fault are those of the clean run.
    for (step, (spoilt, clean)) in spoilt.iter().zip(&clean).enumerate().take(first + 1) {
        assert_eq!(spoilt["loss"] == clean["loss"], step < first, "step {step}");
    }
    let told = succeed(at.path(), &format!("explain a --step {first}"));
    assert!(told.contains("spoilt on purpose"), "{told}");
}

#[test]
fn training_lowers_the_held_out_loss_and_leaves_a_complete_run_folder() {
    let at = workplace();
    let said = succeed(at.path(), "train mlp --data text --steps 200 --out run");
    assert!(said.contains("held-out loss after") && said.contains("run"), "{said}");
    let summary = json(&fs::read_to_string(at.path().join("run/summary.json")).unwrap());
    let (before, after) = (summary["held_out_before"].as_f64().unwrap(), summary["held_out_after"].as_f64().unwrap());
    assert!(after < before * 2.0 / 3.0, "{before} to {after}");
    // The loss before is that of the state before, although it is computed last.
    succeed(at.path(), "train mlp --data text --steps 0 --out none");
    let none = json(&fs::read_to_string(at.path().join("none/summary.json")).unwrap());
    assert_eq!(summary["held_out_before"], none["held_out_after"]);
    assert_eq!((&summary["ending"], &summary["steps"]), (&json("\"complete\""), &json("200")));
    let steps: Vec<_> = metrics(&at.path().join("run")).iter().map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (0..200).collect::<Vec<_>>());
    let description = json(&fs::read_to_string(at.path().join("run/run.json")).unwrap());
    assert_eq!(description["tensors"].as_array().unwrap().len(), 5);
    assert_eq!(description["policy"]["gate"]["non_finite"], true);
}

#[test]
fn runs_without_a_folder_are_numbered() {
    let at = workplace();
    for number in ["001", "002"] {
        let said = succeed(at.path(), "train mlp --data text --steps 1 --no-control");
        assert!(said.contains(&format!("runs/mlp-{number}")), "{said}");
    }
}

#[test]
fn zero_steps_evaluate_only() {
    let at = workplace();
    succeed(at.path(), "train mlp --data text --steps 0 --out run");
    let summary = json(&fs::read_to_string(at.path().join("run/summary.json")).unwrap());
    assert_eq!(summary["held_out_before"], summary["held_out_after"]);
    assert!(metrics(&at.path().join("run")).is_empty());
}

#[test]
fn policy_numbers_of_an_injected_bundle_can_be_changed_without_injecting_again() {
    let at = workplace();
    fs::write(at.path().join("still.toml"), "[scale]\nglobal = 0.0\n").unwrap();
    fs::write(at.path().join("scaled.toml"), "[scale.tensors]\n\"*\" = 1.0\n").unwrap();
    succeed(at.path(), "inject mlp -o controlled --policy scaled.toml");
    succeed(at.path(), "train controlled --policy still.toml --data text --steps 5 --out run");
    let summary = json(&fs::read_to_string(at.path().join("run/summary.json")).unwrap());
    assert_eq!(summary["held_out_before"], summary["held_out_after"], "updates scaled by 0 must change nothing");
}

#[test]
fn explain_says_which_threshold_a_step_crossed() {
    let at = workplace();
    let policy = "[target]\nfirst = 2\n[gate.norm]\nwarmup = 2\nmultiple = 1.0001\ndeviations = 0\n[gate]\nmax_pause = 3\n\
                  [laws]\nwarmup = 2\n[laws.pi]\nenabled = true\nperiod = 1\n";
    fs::write(at.path().join("p.toml"), policy).unwrap();
    succeed(at.path(), "train mlp --data text --steps 30 --policy p.toml --out run");
    let metrics = metrics(&at.path().join("run"));
    let step = |what: &dyn Fn(&Value) -> bool| metrics.iter().position(what).unwrap();
    let refused = step(&|m| m["gate"] == "norm" && m["rearmed"] == false);
    let told = succeed(at.path(), &format!("explain run --step {refused}"));
    let norm = metrics[refused]["norm"].as_f64().unwrap();
    for part in
        ["was refused", &format!("{norm:.4}, above the limit"), "1.0001 times its running mean", "kept their bits"]
    {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
    let rearmed = step(&|m| m["rearmed"] == true);
    assert!(succeed(at.path(), &format!("explain run --step {rearmed}")).contains("re-armed: their thresholds"));
    let applied = step(&|m| m["gate"].is_null() && m["ratio"].is_number() && m["step"].as_u64() > Some(3));
    let told = succeed(at.path(), &format!("explain run --step {applied}"));
    for part in ["was applied", "target (from history) 0.", "scale the learning rate by", "Largest norms: "] {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
}

#[test]
fn what_rollback_and_switch_did_is_told() {
    let at = workplace();
    let policy = "[gate.norm]\nwarmup = 8\nmultiple = 1.0001\ndeviations = 0\n[gate]\nmax_pause = 9\n\
                  [rollback]\nkind = \"snapshot\"\npatience = 2\nrefresh = 3\ncalm = 100.0\n\
                  [switch]\nenabled = true\ntrigger = \"step\"\nstep = 6\n";
    fs::write(at.path().join("p.toml"), policy).unwrap();
    let told = succeed(at.path(), "inject mlp -o out --policy p.toml --verify");
    assert!(told.contains("bit-identical") && told.contains("copies of 16 held states take"), "{told}");
    let told = succeed(at.path(), "train mlp --data text --steps 60 --policy p.toml --out run");
    assert!(told.contains("rolled back"), "{told}");
    let metrics = metrics(&at.path().join("run"));
    let returned = metrics.iter().position(|m| m["rollback"]["rolled_back"] == true).unwrap();
    let told = succeed(at.path(), &format!("explain run --step {returned}"));
    for part in ["refusal 2 in a row (rollback.patience)", "every held state returned to its copy", "rolled back 1"] {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
    let after = metrics.iter().position(|m| m["rollback"]["backoff"].as_f64() < Some(0.9)).unwrap();
    assert!(succeed(at.path(), &format!("explain run --step {after}")).contains("learning rates were scaled by 0."));
    let taken = metrics.iter().position(|m| m["rollback"]["snapshot_taken"] == true).unwrap();
    assert!(succeed(at.path(), &format!("explain run --step {taken}")).contains("copy of every held state was taken"));
    assert!(succeed(at.path(), "explain run --step 6").contains("This is the first step of SGD with momentum"));
    assert!(!succeed(at.path(), "explain run --step 7").contains("first step of SGD"));
}

#[test]
fn explain_names_tensors_that_are_not_finite() {
    let at = workplace();
    tiny::write(&at.path().join("tiny"), f64::INFINITY);
    succeed(at.path(), "train tiny --data text --steps 3 --out run");
    let told = succeed(at.path(), "explain run --step 1");
    assert!(told.contains("held NaN or infinity") && told.contains("Not finite: "), "{told}");
}

#[test]
fn the_controller_can_end_a_run() {
    let at = workplace();
    tiny::write(&at.path().join("tiny"), f64::INFINITY);
    fs::write(at.path().join("p.toml"), "[gate]\nmax_pause = 4\n").unwrap();
    let ran =
        run(at.path(), &["train", "tiny", "--data", "text", "--steps", "50", "--policy", "p.toml", "--out", "run"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("the controller stopped the run") && ran.err.contains("gate.max_pause"), "{}", ran.err);
    let metrics = metrics(&at.path().join("run"));
    assert!(metrics.len() < 50 && metrics.iter().all(|m| m["gate"] == "non-finite"), "{metrics:?}");
    let summary = json(&fs::read_to_string(at.path().join("run/summary.json")).unwrap());
    assert_eq!(summary["ending"], "stopped");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_ends_in_order() {
    let at = workplace();
    let child = program(at.path())
        .args(["train", "mlp", "--data", "text", "--steps", "100000000", "--out", "run"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics_file = at.path().join("run/metrics.jsonl");
    let begin = Instant::now();
    while !fs::metadata(&metrics_file).is_ok_and(|m| m.len() > 0) {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "no step was recorded; if the plugin is missing, run `make plugin`"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ran: super::Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    let summary = json(&fs::read_to_string(at.path().join("run/summary.json")).unwrap());
    assert_eq!(summary["ending"], "interrupted");
    assert_eq!(summary["steps"].as_u64().unwrap() as usize, metrics(&at.path().join("run")).len());
}

#[test]
fn reading_leaves_no_trace() {
    let at = workplace();
    let before = listing(at.path());
    for line in ["inspect mlp", "show mlp", "inspect mlp --json"] {
        succeed(at.path(), line);
    }
    assert_eq!(listing(at.path()), before);
    assert!(model("mlp").is_dir());
}

#[test]
fn several_steps_in_one_launch_are_the_same_run() {
    let at = workplace();
    let said = succeed(at.path(), "inject mlp -o fused --steps-per-launch 4 --verify");
    assert!(said.contains("5 launches of 4 steps are bit-identical to 20 of one"), "{said}");
    let train = "--data text --seed 3 --corrupt 0.3 --out";
    succeed(at.path(), &format!("train mlp --steps 11 {train} single"));
    succeed(at.path(), &format!("train mlp --steps 11 --steps-per-launch 4 {train} several"));
    succeed(at.path(), &format!("train fused --steps 8 {train} bundle"));
    let [single, several, bundle] = ["single", "several", "bundle"].map(|run| {
        let mut records = metrics(&at.path().join(run));
        for record in &mut records {
            record.as_object_mut().unwrap().remove("seconds");
        }
        records
    });
    assert_eq!(single.len(), 11);
    assert!(single.iter().any(|record| record.get("fault").is_some()));
    assert_eq!(single, several);
    assert_eq!(single[..8], bundle);
    let [one, other] = ["single", "several"].map(|run| {
        let summary = json(&fs::read_to_string(at.path().join(run).join("summary.json")).unwrap());
        summary["held_out_after"].clone()
    });
    assert_eq!(one, other);
    let told = json(&fs::read_to_string(at.path().join("several/run.json")).unwrap());
    assert_eq!(told["steps_per_launch"], 4);
}

#[test]
fn a_bare_module_with_several_steps_in_a_launch_is_verified_and_written_with_its_manifest() {
    let at = workplace();
    let line = format!("inject {} -o fused.hlo.pb --steps-per-launch 3 --verify", corpus("dropout_rng").display());
    let said = succeed(at.path(), &line);
    assert!(said.contains("7 launches of 3 steps are bit-identical to 21 of one"), "{said}");
    let manifest = json(&fs::read_to_string(at.path().join("fused.manifest.json")).unwrap());
    assert_eq!(manifest["launch"]["steps"], 3);
    let module = hlo::Module::import(&fs::read(at.path().join("fused.hlo.pb")).unwrap()).unwrap();
    hlo::verify::verify(&module).unwrap();
}
