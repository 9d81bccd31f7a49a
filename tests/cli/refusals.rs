//! What is refused: each with one paragraph that says what, where and what to do, a non-zero exit, and nothing written.

use std::fs;
use std::path::Path;

use hlo::build::Builder;
use hlo::{Module, PrimitiveType, Shape};

use super::{Ran, corpus, listing, model, run, workplace};

/// Runs `line` (words) and expects a refusal that contains all of `parts`.
pub(super) fn refused(at: &Path, line: &str, parts: &[&str]) {
    let before = listing(at);
    let ran = run(at, &line.split_whitespace().collect::<Vec<_>>());
    check(&ran, line, parts);
    assert_eq!(listing(at), before, "`{line}` left something behind");
}

pub(super) fn check(ran: &Ran, line: &str, parts: &[&str]) {
    assert_eq!(ran.code, Some(1), "`{line}`: {}\n{}", ran.err, ran.out);
    let errors: Vec<_> = ran.err.lines().filter(|l| l.starts_with("error: ")).collect();
    let [error] = errors.as_slice() else { panic!("`{line}` must say why in one paragraph:\n{}", ran.err) };
    assert!(ran.err.trim_end().ends_with(error), "`{line}`: the error must come last:\n{}", ran.err);
    for part in parts {
        assert!(error.contains(part), "`{line}`: {error:?} lacks {part:?}");
    }
    // `{}` left in a message, a debug print, or an internal path would show here.
    for leak in ["Err(", "Some(", "RUST_BACKTRACE", "panicked", ".rs:"] {
        assert!(!ran.err.contains(leak), "`{line}` leaks {leak}:\n{}", ran.err);
    }
}

#[test]
fn files_that_hold_no_module() {
    let at = workplace();
    let module = fs::read(model("mlp").join("module.hlo.pb")).unwrap();
    let garbage: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mlir = b"module @jit_step {\n  func.func public @main() {\n";
    let text = b"HloModule m\n\nENTRY e {\n  x = f32[] parameter(0), color=3\n}\n";
    let latin = b"HloModule m\n\nENTRY e {\n  x = f32[] parameter(0), metadata={op_name=\"\xe9\"}\n}\n";
    let proto_of_another_kind = [0x0a, 0x03, b'a', b'b', b'c'];
    for (bytes, parts) in [
        (&module[..module.len() / 2], &["x.hlo.pb", "truncated"][..]),
        (&module[..module.len() - 1], &["x.hlo.pb", "truncated"]),
        (&module[..100], &["x.hlo.pb"]),
        (&garbage, &["x.hlo.pb", "not a serialized HloModuleProto"]),
        (mlir, &["x.hlo.pb", "the conversion of StableHLO text to HLO failed"]),
        (text, &["x.hlo.pb: line 4, column 27: `color`: parameter has no such attribute"]),
        (latin, &["x.hlo.pb: it is HLO text, but not UTF-8 from byte 68 on"]),
        (b"", &["x.hlo.pb", "empty"]),
        (&proto_of_another_kind, &["x.hlo.pb", "no computations"]),
    ] {
        fs::write(at.path().join("x.hlo.pb"), bytes).unwrap();
        for line in ["inspect x.hlo.pb", "inject x.hlo.pb -o out.hlo.pb", "show x.hlo.pb"] {
            refused(at.path(), line, parts);
        }
    }
    refused(at.path(), "inspect none.hlo.pb", &["none.hlo.pb", "No such file"]);
    fs::create_dir(at.path().join("folder")).unwrap();
    refused(at.path(), "inspect folder", &["folder", "no model bundle", "manifest.json"]);
}

#[test]
fn every_truncation_is_refused() {
    let at = workplace();
    let module = fs::read(model("mlp").join("module.hlo.pb")).unwrap();
    for cut in (1..module.len()).step_by(module.len() / 23) {
        fs::write(at.path().join("x.hlo.pb"), &module[..cut]).unwrap();
        refused(at.path(), "inspect x.hlo.pb", &["x.hlo.pb"]);
    }
}

#[test]
fn modules_that_are_no_train_step() {
    let at = workplace();
    let mut module = Module::new("constant");
    let mut b = Builder::at_entry(&mut module);
    let one = b.constant_f32(1.0).unwrap();
    b.set_root(one).unwrap();
    fs::write(at.path().join("constant.hlo.pb"), module.export()).unwrap();

    let mut module = Module::new("forward");
    let mut b = Builder::at_entry(&mut module);
    let x = b.parameter("x", Shape::array(PrimitiveType::F32, &[4])).unwrap();
    let y = b.convert(x, PrimitiveType::F64).unwrap();
    b.set_root(y).unwrap();
    fs::write(at.path().join("forward.hlo.pb"), module.export()).unwrap();

    fs::copy(model("mlp").join("eval.hlo.pb"), at.path().join("eval.hlo.pb")).unwrap();
    for name in ["mlp_flatten", "adv_grad_in_cond"] {
        fs::copy(corpus(name), at.path().join(format!("{name}.hlo.pb"))).unwrap();
    }
    for (file, parts) in [
        ("constant", &["0 input(s)"][..]),
        ("forward", &["without training"]),
        ("eval", &["without training", "export the function"]),
        ("mlp_flatten", &["mlp_flatten"]),
        ("adv_grad_in_cond", &["adv_grad_in_cond"]),
    ] {
        refused(at.path(), &format!("inject {file}.hlo.pb -o out.hlo.pb"), parts);
    }
}

/// Edits the copied manifest of mlp by replacing text.
fn edit(at: &Path, from: &str, to: &str) {
    let path = at.join("mlp").join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn wrong_manifests() {
    let missing =
        "    {\"name\": \"params['hidden_bias']\", \"dtype\": \"float32\", \"shape\": [64], \"role\": \"param\"},\n";
    for (from, to, parts) in [
        (missing, "", &["manifest.json", "inputs", "missing"][..]),
        (missing, &missing.repeat(2), &["manifest.json", "inputs", "18"]),
        ("params['hidden']", "params['embedding']", &["manifest.json", "inputs[1].name", "unique"]),
        ("\"shape\": [64, 9]", "\"shape\": [64, 8]", &["manifest.json", "tokens", "s32[64,8]", "s32[64,9]"]),
        (
            "\"dtype\": \"int32\", \"shape\": []",
            "\"dtype\": \"float32\", \"shape\": []",
            &["inputs[5]", "f32[]", "s32[]"],
        ),
        ("\"role\": \"batch\"", "\"role\": \"param\"", &["manifest.json", "tokens", "no output"]),
        ("\"role\": \"batch\"", "\"role\": \"data\"", &["manifest.json", "inputs[16].role", "data"]),
        ("\"file\": \"eval.hlo.pb\"", "\"file\": \"none.hlo.pb\"", &["none.hlo.pb"]),
        ("\"file\": \"init.hlo.pb\"", "\"file\": \"eval.hlo.pb\"", &["init", "not one seed"]),
        ("\"file\": \"init.hlo.pb\"", "\"file\": \"../mlp/init.hlo.pb\"", &["init.file", "inside"]),
        ("\"format_version\": 1", "\"format_version\": 2", &["format_version 2"]),
        ("{\n", "{\n{", &["manifest.json", "line 2"]),
    ] {
        let at = workplace();
        edit(at.path(), from, to);
        refused(at.path(), "train mlp --data text --steps 1 --out run", parts);
    }
}

#[test]
fn bundles_that_cannot_be_trained() {
    for (key, parts) in [("init", &["init", "export it"][..]), ("data", &["data", "export it"])] {
        let at = workplace();
        let path = at.path().join("mlp").join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let start = text.find(&format!("  \"{key}\": ")).unwrap();
        let end = start + text[start..].find('\n').unwrap();
        fs::write(&path, format!("{}  \"{key}\": null,{}", &text[..start], &text[end..])).unwrap();
        refused(at.path(), "train mlp --data text --steps 1 --out run", parts);
    }
    let at = workplace();
    refused(at.path(), "train mlp/module.hlo.pb --data text --steps 1 --out run", &["bare module", "bundle"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let at = workplace();
    fs::create_dir(at.path().join("thesis")).unwrap();
    fs::write(at.path().join("thesis").join("chapter"), "1").unwrap();
    for (line, parts) in [
        ("inject mlp -o none/out", &["none/out"][..]),
        ("inject mlp -o text/out", &["text/out"]),
        ("inject mlp -o text", &["text", "a file"]),
        ("inject mlp -o thesis", &["thesis", "other content"]),
        ("inject mlp -o mlp", &["the model itself"]),
        ("inject mlp/module.hlo.pb -o none/out.hlo.pb", &["none/out", "folder exists"]),
        ("inject mlp/module.hlo.pb -o thesis", &["thesis"]),
        ("inspect mlp --expose eff -o none/out.hlo.pb", &["none/out.hlo.pb"]),
        ("train mlp --data text --steps 1 --out thesis", &["thesis", "not empty"]),
        ("train mlp --data text --steps 1 --out text/run", &["text/run", "--out"]),
    ] {
        refused(at.path(), line, parts);
    }
}

#[test]
fn plugins_that_are_none() {
    let at = workplace();
    let train = "train mlp --data text --steps 1 --out run --plugin";
    fs::write(at.path().join("notes.so"), "not a library").unwrap();
    fs::write(at.path().join("empty.so"), "").unwrap();
    // An ELF header of a processor that nobody tests on: class, byte order and machine are wrong at once.
    let mut foreign = b"\x7fELF\x02\x02\x01".to_vec();
    foreign.resize(64, 0);
    foreign[16..20].copy_from_slice(&[0, 3, 0, 22]);
    fs::write(at.path().join("foreign.so"), &foreign).unwrap();
    // A real program for this machine that exports nothing.
    fs::copy(env!("CARGO_BIN_EXE_entropic"), at.path().join("program.so")).unwrap();
    for (plugin, parts) in [
        ("gpuu", &["gpuu", "neither a known name"][..]),
        ("none.so", &["none.so", "neither a known name"]),
        ("notes.so", &["notes.so", "ELF"]),
        ("empty.so", &["empty.so", "empty file"]),
        ("foreign.so", &["foreign.so", "s390x"]),
        ("program.so", &["program.so"]),
        ("mlp", &["mlp", "folder"]),
    ] {
        refused(at.path(), &format!("{train} {plugin}"), parts);
    }
}

#[test]
fn data_that_is_none() {
    let at = workplace();
    fs::write(at.path().join("empty"), "").unwrap();
    fs::write(at.path().join("short"), "12345678").unwrap();
    fs::write(at.path().join("single"), "123456789").unwrap();
    fs::create_dir(at.path().join("folder")).unwrap();
    fs::write(at.path().join("folder").join("binary"), b"\0\0\0\0").unwrap();
    for (data, parts) in [
        ("empty", &["no data", "empty", "no bytes"][..]),
        ("short", &["8 bytes", "window has 9"]),
        ("single", &["9 bytes", "18 bytes are needed"]),
        ("folder", &["no data", "folder", "no text files"]),
        ("none", &["none", "No such file"]),
    ] {
        refused(at.path(), &format!("train mlp --data {data} --steps 1 --out run"), parts);
    }
}

#[test]
fn policies_that_are_none() {
    let at = workplace();
    fs::write(at.path().join("typo.toml"), "[gate.norm]\nmultiplier = 2.0\n").unwrap();
    fs::write(at.path().join("range.toml"), "[scale]\nglobal = -1.0\n").unwrap();
    fs::write(at.path().join("pattern.toml"), "[scale.tensors]\n\"params['hiden']\" = 0.5\n").unwrap();
    fs::write(at.path().join("structure.toml"), "[entropy]\nsmoothing = 5\n").unwrap();
    for (policy, parts) in [
        ("typo.toml", &["typo.toml", "line 2", "gate.norm.multiplier", "did you mean `gate.norm.multiple`"][..]),
        ("range.toml", &["range.toml", "scale.global", "-1"]),
        ("pattern.toml", &["hiden", "did you mean"]),
        ("none.toml", &["none.toml"]),
    ] {
        refused(at.path(), &format!("inject mlp -o out --policy {policy}"), parts);
        refused(at.path(), &format!("train mlp --data text --steps 1 --out run --policy {policy}"), parts);
    }
    super::succeed(at.path(), "inject mlp -o controlled");
    let train = "train controlled --data text --steps 1 --out run";
    refused(at.path(), &format!("{train} --policy structure.toml"), &["entropy.smoothing", "inject again"]);
    refused(at.path(), &format!("{train} --no-control"), &["has a controller"]);
    refused(at.path(), "inject controlled -o twice", &["has a controller already"]);
}

#[test]
fn wrong_command_lines_exit_with_2() {
    let at = workplace();
    for line in [
        "",
        "trane mlp",
        "train mlp --steps 1",
        "train mlp --data text --steps -1",
        "train mlp --data text --steps 1 --seed 4294967296",
        "train mlp --data text --steps 1 --corrupt 2%",
        "inspect mlp --expose eff",
        "inspect mlp -o x",
        "inspect mlp --expose grad -o x",
        "inject mlp",
        "plugin fetch gpu",
        "train mlp --data text --steps 1 --no-control --policy p.toml",
    ] {
        let ran = run(at.path(), &line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(ran.code, Some(2), "`{line}`: {}", ran.err);
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn runs_that_cannot_be_explained() {
    let at = workplace();
    refused(at.path(), "explain none --step 0", &["none/run.json", "a run's folder holds"]);
    let trained = run(at.path(), &["train", "mlp", "--data", "text", "--steps", "2", "--no-control", "--out", "plain"]);
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    refused(at.path(), "explain plain --step 0", &["plain", "--no-control"]);
    let trained = run(at.path(), &["train", "mlp", "--data", "text", "--steps", "2", "--out", "run"]);
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    refused(at.path(), "explain run --step 2", &["run has no step 2", "last one is 1"]);
    let metrics = at.path().join("run/metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, text.replace("\"norm\":", "\"size\":")).unwrap();
    refused(at.path(), "explain run --step 0", &["metrics.jsonl", "no complete record", "another version"]);
    // A line that was cut short is not there; one that others follow is damaged.
    fs::write(&metrics, &text[..text.len() / 4]).unwrap();
    refused(at.path(), "explain run --step 0", &["run has no step 0", "none at all"]);
    fs::write(&metrics, format!("{}\n{text}", &text[..text.len() / 4])).unwrap();
    refused(at.path(), "explain run --step 1", &["metrics.jsonl, line 1"]);
}

#[test]
fn steps_that_do_not_go_into_one_launch() {
    let at = workplace();
    let fused = run(at.path(), &["inject", "mlp", "-o", "fused", "--steps-per-launch", "8"]);
    assert_eq!(fused.code, Some(0), "{}", fused.err);
    let train = "train fused --data text --steps";
    refused(at.path(), &format!("{train} 12"), &["8 steps in a launch", "12", "8 or 16"]);
    refused(at.path(), &format!("{train} 3"), &["3 are no multiple", "8 would be"]);
    refused(at.path(), &format!("{train} 16 --steps-per-launch 4"), &["8 steps in a launch", "4 are asked for"]);
    for line in ["inspect fused", "audit fused --target cpu"] {
        refused(at.path(), line, &["fused"]);
    }
    refused(at.path(), "inject fused -o twice --steps-per-launch 2", &["has a controller already"]);
    let convolutions =
        format!("inject {} -o x.hlo.pb --steps-per-launch 2", corpus("cnn_trainstate_adamw_clip").display());
    refused(at.path(), &convolutions, &["convolutions (%", "launch single steps on the CPU"]);
    let none = run(at.path(), &["inject", "mlp", "-o", "none", "--steps-per-launch", "0"]);
    assert_eq!(none.code, Some(2), "{}", none.err);
}
