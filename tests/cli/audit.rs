//! `entropic audit`, for the CPU: the plugin that every machine has.

use std::fs;

use serde_json::Value;

use super::broken_programs::all;
use super::refusals::refused;
use super::{root, run, succeed, workplace};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn products_of_equal_singular_values_are_those_that_shapes_predict() {
    let at = workplace();
    let audit = json(&succeed(at.path(), "audit mlp --target cpu --policy spectral --json"));
    let [plain, injected] = ["plain", "injected"].map(|side| audit[side]["product_flops"].as_u64().unwrap());
    assert_eq!(injected - plain, passes::spectral::newton_schulz_flops(256, 64, 5));
}

#[test]
fn both_steps_are_compiled_and_compared() {
    let at = workplace();
    let audit = json(&succeed(at.path(), "audit mlp --target cpu --json"));
    assert_eq!(audit["target"], "cpu");
    let [plain, injected] = ["plain", "injected"].map(|side| audit[side].clone());
    assert!(injected["all_launches"].as_u64() > plain["all_launches"].as_u64());
    let net = injected["all_launches"].as_i64().unwrap() - plain["all_launches"].as_i64().unwrap();
    let launches =
        |side: &str| -> i64 { audit[side].as_array().unwrap().iter().map(|k| k["launches"].as_i64().unwrap()).sum() };
    assert_eq!(launches("added") - launches("removed"), net);
    // 16 states are donated, and go on to be; policy, state and counters come with the controller.
    assert_eq!((audit["aliases_kept"].as_u64(), audit["aliases_lost"].as_array().unwrap().len()), (Some(16), 0));
    assert_eq!(injected["aliases"].as_u64(), Some(18));
    assert!(injected["host"].as_array().unwrap().is_empty());
    let ops = audit["controller_ops"].as_object().unwrap();
    for part in ["entropic/measure-entropy/params", "entropic/gate", "entropic/control"] {
        assert!(ops.keys().any(|op| op.starts_with(part)), "nothing of {part} in {:?}", ops.keys());
    }
}

#[test]
fn the_table_says_what_counts() {
    let at = workplace();
    let table = succeed(at.path(), "audit mlp --target cpu --policy article");
    for part in
        ["fusions", "bytes accessed", "scratch memory", "16 of 16 kept", "constructs with the host", "target cpu"]
    {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn limits_make_it_a_check() {
    let at = workplace();
    succeed(
        at.path(),
        "audit mlp --target cpu --max-extra-kernels 1000 --max-extra-bytes 1000 --max-extra-temp 1000 --no-host",
    );
    refused(at.path(), "audit mlp --target cpu --max-extra-kernels 0", &["more kernels are launched", "0 are allowed"]);
    refused(at.path(), "audit mlp --target cpu --max-extra-bytes 0.5", &["bytes accessed grow by", "0.5% are allowed"]);
    refused(at.path(), "audit mlp --target cpu --max-extra-temp 0.1", &["scratch memory grow by"]);
}

#[test]
fn steps_over_a_mesh_are_compiled_for_all_of_it() {
    let at = workplace();
    for name in ["mlp_fsdp", "mlp_manual_local"] {
        let file = format!("{name}.hlo.pb");
        fs::copy(root().join("tests/corpus_mesh").join(&file), at.path().join(&file)).unwrap();
    }
    let table = succeed(at.path(), "audit mlp_fsdp.hlo.pb --target cpu --only-sums");
    assert!(table.contains("13 of 13 kept") && table.contains("all-reduce: +"), "{table}");
    assert!(!table.contains("all-gather: +"), "{table}");
    assert!(
        succeed(at.path(), "inspect mlp_fsdp.hlo.pb").contains("split over 8 devices by Shardy (mesh data=4, model=2)")
    );
    succeed(at.path(), "inject mlp_fsdp.hlo.pb -o controlled.hlo.pb");
    let manifest = json(&fs::read_to_string(at.path().join("controlled.manifest.json")).unwrap());
    assert_eq!(manifest["launch"]["partitions"], 8);
    let verify = "inject mlp_fsdp.hlo.pb -o verified.hlo.pb --verify";
    refused(at.path(), verify, &["split over 8 devices", "this cpu has 1", "export the step for one device"]);
    let local = "inject mlp_manual_local.hlo.pb -o out.hlo.pb";
    refused(at.path(), local, &["the gradient of p['b1']", "differs from device to device"]);
}

#[test]
fn what_replicas_send_each_other_is_told_apart() {
    let at = workplace();
    fs::copy(root().join("tests/corpus_replicas/mean_b4.hlo.pb"), at.path().join("small.hlo.pb")).unwrap();
    fs::write(at.path().join("local.toml"), "[replicas]\nentropy_of = \"local-mean\"\n").unwrap();
    let audit = |policy: &str| {
        let audit = json(&succeed(at.path(), &format!("audit small.hlo.pb --target cpu --replicas 2 --json {policy}")));
        audit["replicas"].clone()
    };
    let number = |of: &Value, path: &str| of.pointer(path).and_then(Value::as_i64).unwrap();
    let exchanged =
        |of: &Value, path: &str| [number(of, &format!("{path}/launches")), number(of, &format!("{path}/bytes"))];
    let [global, local] = ["", "--policy local.toml"].map(audit);
    for of in [&global, &local] {
        assert_eq!(number(of, "/replicas"), 2);
        // Policy numbers, state and counters come with the controller.
        assert_eq!(number(of, "/controlled_states/states") - number(of, "/plain_states/states"), 3);
        assert_eq!(exchanged(of, "/emitted/other"), [1, 4], "the loss");
        let ([launches, bytes], [_, other]) = (exchanged(of, "/emitted/gradients"), exchanged(of, "/emitted/other"));
        assert!(launches > 1 && bytes > 0);
        assert_eq!(exchanged(of, "/plain")[1], bytes + other);
    }
    // The shared gradient is measured: nothing more is sent.
    assert_eq!(exchanged(&global, "/emitted/statistics"), [0, 0]);
    assert_eq!(exchanged(&global, "/plain"), exchanged(&global, "/controlled"));
    // Each replica's own: 8 bytes for each tensor and 4 for the whole, at once.
    let tensors = exchanged(&local, "/emitted/gradients")[0];
    assert_eq!(exchanged(&local, "/emitted/statistics"), [1, 8 * tensors + 4]);
    let [before, after] = ["/plain", "/controlled"].map(|side| exchanged(&local, side));
    // The compiler puts it into one with the gradients'.
    assert_eq!([after[0] - before[0], after[1] - before[1]], [0, 8 * tensors + 4]);
    let table = succeed(at.path(), "audit small.hlo.pb --target cpu --replicas 2");
    assert!(
        table.contains("2 replicas, each of which holds") && table.contains("control adds +0 and +0 bytes"),
        "{table}"
    );
    refused(at.path(), "audit mlp --target cpu --replicas 2 --weighting count", &["no count to weigh"]);
}

#[test]
fn what_the_compilers_made_can_be_kept() {
    let at = workplace();
    succeed(at.path(), "audit mlp --target cpu --dump made");
    for (file, entropic) in [("plain.hlo.pb", false), ("controlled.hlo.pb", true)] {
        let text = succeed(at.path(), &format!("show made/{file}"));
        assert!(text.contains("fusion(") && text.contains("is_scheduled=true"), "{file} is not optimized");
        assert_eq!(text.contains("entropic/gate"), entropic, "{file}");
    }
}

#[test]
fn refusals() {
    let at = workplace();
    let ran = run(at.path(), &["audit", "mlp", "--target", "h300"]);
    assert_eq!(ran.code, Some(2));
    for part in ["h300", "h200", "tpu-v5e"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
    succeed(at.path(), "inject mlp -o controlled");
    refused(at.path(), "audit controlled --target cpu", &["has a controller already"]);
    refused(at.path(), "audit none --target cpu", &["none"]);
    // The plugins are neither in this folder nor anywhere else.
    let missing = super::program(at.path())
        .args(["audit", "mlp", "--target", "h200"])
        .env("ENTROPIC_PLUGIN_DIR", at.path())
        .env("PATH", at.path())
        .env_remove("VIRTUAL_ENV")
        .env_remove("CONDA_PREFIX")
        .env("XDG_CACHE_HOME", at.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(1) && said.contains("plugin fetch cuda"), "{said}");
}

#[test]
fn programs_that_no_compiler_takes_end_in_an_error() {
    let at = workplace();
    for broken in all() {
        println!("{}", broken.name);
        fs::write(at.path().join("broken.hlo.pb"), &broken.code).unwrap();
        // Whether it is discovery that refuses or the compiler that dies is not the point: there is one clear error.
        refused(at.path(), "audit broken.hlo.pb --target cpu", &[]);
    }
}
