//! Neutral control: with every scale 1 and no gate, a controlled step is the step, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use common::{Array, Compiled};
use controlled::Controlled;
use corpus::Case;
use passes::{InjectOptions, Policy, inject};

/// Steps not controlled in this version: refused for the reason named.
const REFUSED: &[(&str, &str)] =
    &[("mlp_flatten", "discover"), ("adv_grad_in_cond", "discover"), ("multistep_loop", "inside the loop")];

/// Steps in which the compiler rounds one sum differently when the same squares are summed for the entropy as well:
/// equal to rounding, not to the bit.
const ROUNDED: &[&str] = &["cnn_trainstate_adamw_clip"];

/// Whether two arrays are equal up to the rounding of one step.
fn close(a: &Array, b: &Array) -> bool {
    if a.element_type != pjrt::ElementType::F32 {
        return a == b;
    }
    let (a, b) = (a.floats(), b.floats());
    let largest = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-4 * largest + 1e-12)
}

/// Runs plain and controlled steps side by side for 20 steps; returns what differs, if anything does.
fn difference(case: &Case, policy: &Policy, same: impl Fn(&Array, &Array) -> bool) -> Option<String> {
    let plain = Compiled::new(&case.module);
    let mut controlled = match Controlled::new(&case.module, policy) {
        Ok(step) => step,
        Err(error) => return Some(error.to_string()),
    };
    let mut inputs = case.inputs.clone();
    for step in 0..20 {
        let expected = plain.run(&inputs);
        let found = controlled.run(&inputs);
        let different: Vec<usize> = (0..expected.len()).filter(|&i| !same(&expected[i], &found[i])).collect();
        if !different.is_empty() {
            return Some(format!("outputs {different:?} differ in step {step}"));
        }
        inputs = case.next(&inputs, &expected);
    }
    None
}

#[test]
fn a_controlled_step_is_the_step_bit_for_bit() {
    let mut failures = Vec::new();
    for name in corpus::names().iter().filter(|n| !REFUSED.iter().any(|(refused, _)| refused == n)) {
        let case = corpus::case(name);
        let found = if ROUNDED.contains(&name.as_str()) {
            difference(&case, &Policy::monitor(), close)
        } else {
            difference(&case, &Policy::monitor(), |a, b| a == b)
        };
        failures.extend(found.map(|difference| format!("{name}: {difference}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_gate_that_admits_everything_changes_roundings_at_most() {
    for name in ["mlp_adam", "mlp_adamw_clip", "mlp_hand_adam", "mlp_masked_wd", "nnx_adamw", "ema_params"] {
        let difference = difference(&corpus::case(name), &Policy::default(), close);
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
