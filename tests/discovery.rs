//! Discovery on the corpus: every gradient against the true one, every refusal for its reason, and the same answers
//! without names and metadata.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/corpus.rs"]
mod corpus;

use std::collections::BTreeSet;

use common::{Array, Compiled};
use corpus::Truth;
use hlo::{Module, testing::shuffle_names};
use passes::discover::discover;
use passes::expose::{View, expose};
use passes::step::{Confidence, GradientStatus, StateClass, StateRole, TrainStep};

/// What a view shows instead of the true gradient, where that is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instead {
    /// Adaptive clipping comes before it.
    Clipped,
    /// Weight decay is in it.
    Decayed,
    /// The gradient times a constant, which is flagged.
    Scaled,
    /// The part of the loss that depends on parameters alone is not in it.
    WithoutPenalty,
}

/// Views that differ from the truth, and why; everything else must equal it.
const INSTEAD: &[(&str, View, Instead)] = &[
    ("mlp_agc", View::Eff, Instead::Clipped),
    ("mlp_coupled_wd_sgdm", View::Eff, Instead::Decayed),
    ("mlp_coupled_wd_sgdm", View::Preclip, Instead::Decayed),
    ("mlp_hand_torch_sgdm", View::Eff, Instead::Scaled),
    ("mlp_hand_torch_sgdm", View::Preclip, Instead::Scaled),
    ("mlp_hand_torch_sgdm", View::Raw, Instead::Scaled),
    ("mlp_l2loss_adam", View::Raw, Instead::WithoutPenalty),
];

/// Cases that are refused, and what the message says.
const REFUSED: &[(&str, &str)] =
    &[("mlp_flatten", "coupled"), ("adv_grad_in_cond", "inside a branch of a conditional")];

/// Parameters without a gradient.
const ABSENT: &[(&str, &str, &str)] =
    &[("mlp_multitransform", "p['b2']", "frozen"), ("unused_param", "p['dead']", "unused")];

/// Steps that are not in the entry; their gradients are found, but cannot be exposed.
const NOT_IN_ENTRY: &[&str] = &["multistep_loop"];

fn refused(name: &str) -> bool {
    REFUSED.iter().any(|(n, _)| *n == name)
}

fn inlined(mut module: Module) -> Module {
    module.inline_calls(|callee| callee.contains("xla.sdy")).unwrap();
    module
}

fn decode(array: &Array) -> Vec<f64> {
    let halves = || array.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match array.element_type {
        pjrt::ElementType::Bf16 => halves().map(|b| half::bf16::from_bits(b).to_f64()).collect(),
        pjrt::ElementType::F16 => halves().map(|b| half::f16::from_bits(b).to_f64()).collect(),
        _ => array.floats().into_iter().map(f64::from).collect(),
    }
}

fn relative_error(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(truth).map(|(a, b)| a - b));
    if difference < 1e-7 * (found.len() as f64).sqrt() { 0.0 } else { difference / norm(&mut truth.iter().copied()) }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn every_gradient_is_the_true_one() {
    let mut checked = 0;
    for name in corpus::names().iter().filter(|n| !refused(n) && !NOT_IN_ENTRY.contains(&n.as_str())) {
        let case = corpus::case(name);
        let module = inlined(case.module.clone());
        let step = discover(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
        let trained: BTreeSet<usize> = step.parameters.iter().map(|p| p.input).collect();
        let told: BTreeSet<usize> =
            case.roles.iter().enumerate().filter(|(_, r)| *r == "param").map(|(k, _)| k).collect();
        assert_eq!(trained, told, "{name}: parameters");

        let views = [View::Eff, View::Preclip, View::Raw];
        let mut exposing = module.clone();
        let exposed = views.map(|view| expose(&mut exposing, &step, view).unwrap());
        let outputs = Compiled::new(&exposing).run(&case.inputs);
        let truth = Truth::open(name);
        // Rounding to eight bits of mantissa on the way allows no more.
        let low = name.contains("bf16") || name.contains("fp16");
        let tolerance = if low { 2e-2 } else { 2e-3 };
        for (view, list) in views.into_iter().zip(exposed) {
            for e in list {
                let found = decode(&outputs[e.output]);
                let raw = truth.gradient(e.input, false);
                let expected = if view == View::Eff { truth.gradient(e.input, true) } else { raw.clone() };
                let error = relative_error(&found, &expected);
                let parameter = step.parameters.iter().find(|p| p.input == e.input).unwrap();
                let instead = INSTEAD.iter().find(|(n, v, _)| n == name && *v == view).map(|i| i.2);
                let what = format!("{name} {} {view:?} {}: error {error:.1e}", e.parameter, e.instruction);
                match instead {
                    None => assert!(error < tolerance, "{what}"),
                    Some(Instead::Scaled) => {
                        assert!(cosine(&found, &expected) > 1.0 - 1e-6, "{what}");
                        let flag = parameter.found_gradient().unwrap().constant_scale.as_ref();
                        let factor = flag.unwrap_or_else(|| panic!("{what}: not flagged")).factor;
                        let restored: Vec<f64> = found.iter().map(|v| v / factor).collect();
                        assert!(relative_error(&restored, &expected) < tolerance, "{what}: factor {factor}");
                        assert_eq!(parameter.confidence, Confidence::Weak, "{what}");
                    }
                    // Biases carry neither decay nor penalty, and may be clipped to nothing.
                    Some(Instead::Clipped) => assert!(error > tolerance, "{what}: not clipped"),
                    Some(Instead::Decayed | Instead::WithoutPenalty) => {
                        assert!(e.parameter.contains("'b") || error > tolerance, "{what}: the same");
                    }
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 600, "only {checked} gradients were compared");
}

#[test]
fn outputs_are_paired_with_the_inputs_they_succeed() {
    for name in corpus::names().iter().filter(|n| !refused(n) && !NOT_IN_ENTRY.contains(&n.as_str())) {
        let case = corpus::case(name);
        let step = discover(&inlined(case.module.clone())).unwrap();
        for (output, told) in case.successor_of.iter().enumerate() {
            if let Some(input) = told {
                let found = step.states.iter().find(|s| s.output == output).map(|s| s.input);
                assert_eq!(found, Some(*input), "{name}: output {output}");
            }
        }
    }
}

#[test]
fn what_cannot_be_decided_is_refused_with_the_reason() {
    for (name, reason) in REFUSED {
        let error = discover(&inlined(corpus::case(name).module)).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn parameters_without_a_gradient_are_reported_as_such() {
    for (name, path, word) in ABSENT {
        let step = discover(&inlined(corpus::case(name).module)).unwrap();
        let parameter = step.parameters.iter().find(|p| p.name == *path).unwrap();
        let GradientStatus::Absent { reason } = &parameter.gradient else { panic!("{name}: {path} has a gradient") };
        assert!(reason.contains(word), "{name}: {reason}");
    }
}

#[test]
fn a_step_inside_a_loop_is_found_in_its_body() {
    let module = inlined(corpus::case("multistep_loop").module);
    let step = discover(&module).unwrap();
    assert!(step.inside_loop.is_some());
    assert_ne!(step.computation, module.entry());
    assert_eq!(step.controlled().count(), 4);
    let names: Vec<_> = step.parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["p['b1']", "p['b2']", "p['w1']", "p['w2']"]);
}

#[test]
fn steps_over_a_mesh_are_analysed() {
    for name in ["mesh_jit", "mesh_shardmap"] {
        let step = discover(&inlined(corpus::module(name))).unwrap();
        assert_eq!(step.controlled().count(), 4, "{name}");
        assert!(step.parameters.iter().all(|p| p.confidence == Confidence::Strong), "{name}");
    }
}

/// Everything of an answer that does not depend on names.
fn answer(step: &TrainStep) -> String {
    let mut lines = Vec::new();
    for p in &step.parameters {
        let gradient = p.found_gradient().map(|g| (g.eff, g.preclip, g.measured, g.raw));
        let moments: Vec<_> = p.moments.iter().map(|m| (m.input, m.form, m.of)).collect();
        let update = (p.update.old, p.update.new);
        lines.push(format!("{} {} {gradient:?} {moments:?} {update:?} {:?}", p.input, p.output, p.confidence));
    }
    for s in &step.states {
        lines.push(format!("{} {} {:?} {:?} {:?}", s.input, s.output, s.role, s.class, s.pairing));
    }
    lines.push(format!("{:?} {:?}", step.batch, step.loss));
    lines.join("\n")
}

#[test]
fn names_and_metadata_do_not_matter() {
    for name in corpus::names().iter().map(String::as_str).chain(["mesh_jit", "mesh_shardmap"]) {
        let module = inlined(corpus::module(name));
        let mut bare = module.clone();
        bare.strip_metadata();
        shuffle_names(&mut bare, 7);
        match (discover(&module), discover(&bare)) {
            (Ok(named), Ok(nameless)) => assert_eq!(answer(&named), answer(&nameless), "{name}"),
            (Err(named), Err(nameless)) => {
                assert_eq!(std::mem::discriminant(&named), std::mem::discriminant(&nameless), "{name}");
            }
            (named, nameless) => panic!("{name}: {:?} against {:?}", named.err(), nameless.err()),
        }
    }
}

#[test]
fn every_state_of_the_corpus_is_classified() {
    let expected = [
        ("mlp_fp16_lossscale", "s['scale']", StateRole::LossScale, StateClass::Advancing),
        ("mlp_fp16_lossscale", "s['cnt']", StateRole::FiniteCheck, StateClass::Advancing),
        ("mlp_fp16_lossscale", "s['opt'][0].count", StateRole::BiasCorrectionCounter, StateClass::Held),
        ("mlp_apply_if_finite", "s.notfinite_count", StateRole::FiniteCheck, StateClass::Advancing),
        ("mlp_adamw_sched", "s[0].count", StateRole::BiasCorrectionCounter, StateClass::Held),
        ("mlp_adamw_sched", "s[2].count", StateRole::ScheduleCounter, StateClass::Advancing),
        ("mlp_multisteps", "s.mini_step", StateRole::AccumulationCounter, StateClass::Held),
        ("mlp_multisteps", "s.acc_grads['w1']", StateRole::Moment, StateClass::Held),
        ("mlp_bf16params_master", "p['w1']", StateRole::LowPrecisionCopy, StateClass::Held),
        ("mlp_bf16params_master", "s['master']['w1']", StateRole::Master, StateClass::Held),
        ("nnx_adamw", "state[0]['bn']['mean'].value", StateRole::BatchStatistic, StateClass::Held),
        ("nnx_adamw", "state[0]['dr']['rngs']['count'].value", StateRole::RngKey, StateClass::Advancing),
        ("dropout_rng", "key", StateRole::RngKey, StateClass::Advancing),
    ];
    for (name, path, role, class) in expected {
        let step = discover(&inlined(corpus::case(name).module)).unwrap();
        let state = step.states.iter().find(|s| s.name == path);
        let state = state.unwrap_or_else(|| {
            panic!("{name} has no {path}, but {:?}", step.states.iter().map(|s| &s.name).collect::<Vec<_>>())
        });
        assert_eq!((state.role, state.class), (role, class), "{name} {path}: {}", state.reason);
    }
    for name in corpus::names().iter().filter(|n| !refused(n)) {
        let step = discover(&inlined(corpus::case(name).module)).unwrap();
        let open: Vec<_> =
            step.states.iter().filter(|s| s.class == StateClass::Unclassified).map(|s| &s.name).collect();
        assert!(open.is_empty(), "{name}: {open:?}");
    }
}
