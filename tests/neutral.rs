//! Neutral control: with every scale 1 and nothing refused, a controlled step is the step, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use common::Compiled;
use controlled::Controlled;
use corpus::Case;
use passes::{InjectOptions, Policy, inject};

/// Steps not controlled in this version: refused for the reason named.
const REFUSED: &[(&str, &str)] =
    &[("mlp_flatten", "discover"), ("adv_grad_in_cond", "discover"), ("multistep_loop", "inside the loop")];

/// Runs plain and controlled steps side by side for 20 steps; returns what differs, if anything does.
fn difference(case: &Case, policies: &[Policy]) -> Option<String> {
    let plain = Compiled::new(&case.module);
    let mut controlled = Vec::new();
    for policy in policies {
        match Controlled::new(&case.module, policy) {
            Ok(step) => controlled.push((policy.gates(), step)),
            Err(error) => return Some(error.to_string()),
        }
    }
    let mut inputs = case.inputs.clone();
    for step in 0..20 {
        let expected = plain.run(&inputs);
        for (gates, controlled) in &mut controlled {
            let found = controlled.run(&inputs);
            let different: Vec<usize> = (0..expected.len()).filter(|&i| expected[i] != found[i]).collect();
            if !different.is_empty() {
                return Some(format!("gates {gates}: outputs {different:?} differ in step {step}"));
            }
        }
        inputs = case.next(&inputs, &expected);
    }
    None
}

#[test]
fn a_controlled_step_is_the_step_bit_for_bit() {
    let mut failures = Vec::new();
    for name in corpus::names() {
        if REFUSED.iter().any(|(refused, _)| *refused == name) {
            continue;
        }
        // A gate that admits everything is neutral, too; the small steps show it in a tenth of the compile time.
        let policies = if name.starts_with("gpt") || name.starts_with("cnn") {
            vec![Policy::monitor()]
        } else {
            vec![Policy::monitor(), Policy::default()]
        };
        if let Some(difference) = difference(&corpus::case(&name), &policies) {
            failures.push(format!("{name}: {difference}"));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn what_is_not_controlled_is_refused_with_the_reason() {
    for (name, reason) in REFUSED {
        let mut module = corpus::case(name).module;
        let error = inject(&mut module, &Policy::monitor(), InjectOptions::default()).unwrap_err();
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
}
