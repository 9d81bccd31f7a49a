//! Neutral control: with every scale 1 and nothing refused, a controlled step is the step.
//!
//! Bit for bit where nothing is gated or scaled. A `select` that takes the old value leaves its bits alone too, but it
//! changes what the compiler fuses, and with that where it contracts a multiplication and an addition: so bits are compared
//! where there is no such instruction, and rounding elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use common::{Array, Compiled, Contraction};
use controlled::Controlled;
use corpus::Case;
use passes::policy::Timing;
use passes::{InjectOptions, Policy, inject};

/// Steps not controlled in this version: refused for the reason named.
const REFUSED: &[(&str, &str)] = &[("mlp_flatten", "discover"), ("adv_grad_in_cond", "discover")];

/// Steps that report a sum over something that a gate selects: fused differently, it is added up in another order.
#[cfg(target_arch = "x86_64")]
const OWN_SUMS: &[&str] = &["adv_single_param"];

/// Steps that LLVM takes long to optimize; they are compared bit for bit without that. `gptscan_adamw_clip` is as large, and
/// optimized.
const LARGE: &[&str] = &["gptscan_muon", "gpttied_unroll_adamw", "gptunroll_lion", "gptremat_adam"];

/// Whether two arrays are equal up to the rounding of one step.
fn close(a: &Array, b: &Array) -> bool {
    if a.element_type != pjrt::ElementType::F32 {
        return a == b;
    }
    let (a, b) = (a.floats(), b.floats());
    let largest = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-4 * largest + 1e-12)
}

/// Runs the plain step and one controlled by each policy side by side for 20 steps; returns what differs, if anything does.
fn difference(
    case: &Case,
    policies: &[Policy],
    contraction: Contraction,
    same: impl Fn(&Array, &Array) -> bool,
) -> Option<String> {
    let plain = Compiled::with(&case.module, contraction);
    let controlled: Result<Vec<_>, _> =
        policies.iter().map(|policy| Controlled::with(&case.module, policy, contraction)).collect();
    let mut controlled = match controlled {
        Ok(steps) => steps,
        Err(error) => return Some(error.to_string()),
    };
    let mut inputs = case.inputs.clone();
    for step in 0..20 {
        let expected = plain.run(&inputs);
        for (number, controlled) in controlled.iter_mut().enumerate() {
            let found = controlled.run(&inputs);
            let different: Vec<usize> = (0..expected.len()).filter(|&i| !same(&expected[i], &found[i])).collect();
            if !different.is_empty() {
                return Some(format!("policy {number}: outputs {different:?} differ in step {step}"));
            }
        }
        inputs = case.next(&inputs, &expected);
    }
    None
}

/// Asserts that nothing differs in any controlled step of the corpus.
fn assert_neutral(
    policies: impl Fn(&str) -> Vec<Policy>,
    contraction: Contraction,
    same: impl Fn(&str, &Array, &Array) -> bool,
) {
    let mut failures = Vec::new();
    for name in corpus::names().iter().filter(|n| !REFUSED.iter().any(|(refused, _)| refused == n)) {
        let contraction = if LARGE.contains(&name.as_str()) { Contraction::Impossible } else { contraction };
        let found = difference(&corpus::case(name), &policies(name), contraction, |a, b| same(name, a, b));
        failures.extend(found.map(|difference| format!("{name}: {difference}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A policy with gates that admit everything, laws that are not yet warm, a scale of 1 for every update, and copies of
/// held states that are renewed and never returned to.
fn armed(timing: Timing) -> Policy {
    let mut policy = Policy::default();
    policy.gate.norm.multiple = 1e6;
    policy.gate.entropy.enabled = true;
    policy.laws.timing = timing;
    policy.laws.micro.enabled = true;
    policy.laws.pi.enabled = true;
    policy.scale.tensors.insert("*".into(), 1.0);
    policy.rollback = passes::policy::RollbackPolicy {
        kind: passes::policy::RollbackKind::Snapshot,
        refresh: 4,
        ..Default::default()
    };
    policy
}

/// [`armed`], in turns with scales that apply at once and with such that apply a step later, and with a switch of the
/// optimizer that never comes where the step can be switched.
fn armed_in_turns(name: &str) -> Vec<Policy> {
    let place = corpus::names().iter().position(|n| n == name).unwrap();
    let mut policy = armed([Timing::Sync, Timing::Delayed][place % 2]);
    policy.switch.enabled = true;
    if inject(&mut corpus::module(name), &policy, InjectOptions::default()).is_err() {
        policy.switch.enabled = false;
    }
    vec![policy]
}

#[test]
fn a_watched_step_is_the_step_bit_for_bit() {
    assert_neutral(|_| vec![Policy::monitor()], Contraction::Allowed, |_, a, b| a == b);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_armed_step_is_the_step_bit_for_bit_where_rounding_does_not_depend_on_fusion() {
    assert_neutral(armed_in_turns, Contraction::Impossible, |name, a, b| {
        if OWN_SUMS.contains(&name) { close(a, b) } else { a == b }
    });
}

#[test]
fn an_armed_step_is_the_step_up_to_contraction() {
    for name in ["mlp_adam", "mlp_adamw_clip", "mlp_hand_adam", "mlp_masked_wd", "nnx_adamw", "ema_params"] {
        let policies = [armed(Timing::Delayed)];
        let difference = difference(&corpus::case(name), &policies, Contraction::Allowed, close);
        assert!(difference.is_none(), "{name}: {}", difference.unwrap_or_default());
    }
}

#[test]
fn what_is_not_controlled_is_refused_with_the_reason() {
    for (name, reason) in REFUSED {
        let mut module = corpus::case(name).module;
        let error = inject(&mut module, &Policy::monitor(), InjectOptions::default()).unwrap_err();
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
}
