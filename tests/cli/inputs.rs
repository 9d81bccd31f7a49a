//! Commands on modules that are no HLO protos.

use std::fs;
use std::path::Path;

use super::refusals::{check, refused};
use super::{Ran, program, root, run, succeed, tiny, workplace};

/// The step of [`tiny`] as StableHLO.
const TINY: &str = r#"
module @tiny {
  func.func public @main(%w: tensor<2x8xf32> {tf.aliasing_output = 0 : i32}, %tokens: tensor<2x8xi32>)
      -> (tensor<2x8xf32>, tensor<f32>) {
    %t = stablehlo.convert %tokens : (tensor<2x8xi32>) -> tensor<2x8xf32>
    %share = stablehlo.constant dense<2.44140625e-4> : tensor<2x8xf32>
    %curvature = stablehlo.multiply %t, %share : tensor<2x8xf32>
    %g = stablehlo.multiply %curvature, %w : tensor<2x8xf32>
    %rate = stablehlo.constant dense<0.1> : tensor<2x8xf32>
    %u = stablehlo.multiply %rate, %g : tensor<2x8xf32>
    %next = stablehlo.subtract %w, %u : tensor<2x8xf32>
    %products = stablehlo.multiply %g, %w : tensor<2x8xf32>
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %loss = stablehlo.reduce(%products init: %zero) applies stablehlo.add across dimensions = [0, 1]
        : (tensor<2x8xf32>, tensor<f32>) -> tensor<f32>
    return %next, %loss : tensor<2x8xf32>, tensor<f32>
  }
}
"#;

fn bring(at: &Path, name: &str) {
    fs::copy(root().join("tests").join("corpus_inputs").join(name), at.join(name)).unwrap();
}

#[test]
fn a_bundle_of_stablehlo_is_inspected_injected_and_trained() {
    let at = workplace();
    let bundle = at.path().join("tiny");
    tiny::write(&bundle, 0.5);
    let train = |model: &str, out: &str| {
        let ran = run(at.path(), &["train", model, "--data", "text", "--steps", "3", "--out", out]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let metrics = fs::read_to_string(at.path().join(out).join("metrics.jsonl")).unwrap();
        let losses =
            metrics.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap().get("loss").cloned());
        losses.collect::<Vec<_>>()
    };
    let expected = train("tiny", "expected");
    assert_eq!(expected.len(), 3, "{expected:?}");
    let manifest = fs::read_to_string(bundle.join("manifest.json")).unwrap();
    fs::write(bundle.join("manifest.json"), manifest.replace("module.hlo.pb", "step.mlir")).unwrap();
    fs::remove_file(bundle.join("module.hlo.pb")).unwrap();
    fs::write(bundle.join("step.mlir"), TINY).unwrap();

    let report = succeed(at.path(), "inspect tiny");
    assert!(report.contains("w - ") || report.contains("p - "), "{report}");
    assert!(report.contains("note: converted from StableHLO text"), "{report}");
    assert_eq!(train("tiny", "converted"), expected);
    succeed(at.path(), "inject tiny -o controlled --verify");
    // What was injected is HLO, and its name says so.
    assert!(at.path().join("controlled/step.hlo.pb").is_file());
    assert_eq!(train("controlled", "again"), expected);
}

#[test]
fn an_export_is_inspected_shown_and_injected() {
    let at = workplace();
    for name in ["mlp.jax_export", "qr.jax_export", "x64.jax_export", "fp8.jax_export", "key.jax_export"] {
        bring(at.path(), name);
    }
    // The name of a file says nothing.
    fs::rename(at.path().join("mlp.jax_export"), at.path().join("exported.bin")).unwrap();
    let shown = succeed(at.path(), "show exported.bin");
    assert!(shown.starts_with("HloModule jit_step") && shown.contains("op_name=\"opt_state[0].count\""), "{shown}");
    assert!(succeed(at.path(), "inspect qr.jax_export --platform cuda").contains("of cpu, cuda the code for cuda"));
    refused(at.path(), "inspect qr.jax_export", &["qr.jax_export", "cpu, cuda", "--platform"]);
    refused(at.path(), "inject qr.jax_export -o out.hlo.pb --platform tpu", &["not for tpu"]);
    for (name, tensors) in [("exported.bin", 3), ("x64.jax_export", 3), ("fp8.jax_export", 3), ("key.jax_export", 3)] {
        let told = succeed(at.path(), &format!("inject {name} -o {name}.out.hlo.pb --verify"));
        assert!(told.contains("bit-identical") && told.contains(&format!("{tensors} tensors under control")), "{told}");
    }
    assert!(at.path().join("x64.jax_export.out.manifest.json").is_file());
}

#[test]
fn kernels_that_the_cpu_does_not_have_are_named() {
    let at = workplace();
    bring(at.path(), "pallas_tpu.jax_export");
    bring(at.path(), "cholesky_cuda.jax_export");
    let line = "inject pallas_tpu.jax_export -o out.hlo.pb --verify";
    refused(at.path(), line, &["does not compile", "tpu_custom_call"]);
    refused(at.path(), "inject cholesky_cuda.jax_export -o out.hlo.pb --verify", &["cusolver_potrf_ffi"]);
    succeed(at.path(), "inject cholesky_cuda.jax_export -o out.hlo.pb");
}

#[test]
fn exports_that_are_none() {
    let at = workplace();
    for name in ["symbolic.jax_export", "ordered.jax_export"] {
        bring(at.path(), name);
    }
    refused(at.path(), "show symbolic.jax_export", &["symbolic.jax_export", "rows"]);
    refused(at.path(), "inspect ordered.jax_export", &["ordered effects"]);
    let whole = fs::read(root().join("tests/corpus_inputs/mlp.jax_export")).unwrap();
    fs::write(at.path().join("half"), &whole[..whole.len() / 2]).unwrap();
    refused(at.path(), "inspect half", &["half", "damaged or truncated"]);
    fs::write(at.path().join("text.mlir"), "module @m { func.func }").unwrap();
    refused(at.path(), "inspect text.mlir", &["text.mlir", "StableHLO text", "expected"]);
    refused(at.path(), "train text.mlir --data text --steps 1 --out run", &["bare module", "bundle"]);
}

#[test]
fn a_conversion_without_the_plugin_says_how_to_get_it() {
    let at = workplace();
    bring(at.path(), "mlp.mlir");
    let words = ["inspect", "mlp.mlir"];
    let ran: Ran = program(at.path())
        .env("ENTROPIC_PLUGIN_DIR", at.path().join("none"))
        .env("XDG_CACHE_HOME", at.path())
        .env("VIRTUAL_ENV", at.path())
        .args(words)
        .output()
        .unwrap()
        .into();
    check(&ran, "inspect mlp.mlir", &["StableHLO text", "CPU plugin", "entropic plugin fetch cpu"]);
}
