//! The rollback returns: after refusals in a row every held state is, bit for bit, what it was when the copy was taken,
//! every advancing state goes on, and training continues from there.

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

/// Adam, a schedule, BatchNorm, averages of parameters, random keys, narrow copies, a transposed layout.
const CASES: &[&str] = &[
    "mlp_adam",
    "mlp_adamw_sched",
    "cnn_trainstate_adamw_clip",
    "ema_params",
    "nnx_adamw",
    "dropout_rng",
    "mlp_bf16params_master",
];

fn policy() -> Policy {
    let text = "[gate.norm]\nenabled = false\n[rollback]\nkind = \"snapshot\"\npatience = 2\nrefresh = 3\ncalm = 100.0";
    Policy::parse(text).unwrap()
}

/// Inputs of the next step, with a batch that is healthy again.
fn next(case: &Case, inputs: &[common::Array], outputs: &[common::Array]) -> Vec<common::Array> {
    let mut inputs = case.next(inputs, outputs);
    for (k, _) in case.roles.iter().enumerate().filter(|(_, r)| *r == "batch") {
        inputs[k] = case.inputs[k].clone();
    }
    inputs
}

#[test]
fn refusals_in_a_row_return_every_held_state_to_its_copy() {
    for name in CASES {
        let case = corpus::case(name);
        let plain = Compiled::new(&case.module);
        let mut step = Controlled::new(&case.module, &policy()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(step.layout.snapshot_bytes > 0, "{name}");
        let mut inputs = case.inputs.clone();
        let mut copied = Vec::new();
        for t in 1..=4 {
            let outputs = step.run(&inputs);
            let told = step.told().rollback.unwrap();
            assert_eq!(told.snapshot_taken, t == 3, "{name}, step {t}");
            inputs = next(&case, &inputs, &outputs);
            if t == 3 {
                copied = inputs.clone();
            }
        }
        let held: Vec<_> = step.layout.states.iter().filter(|s| s.held).cloned().collect();
        let moved = held.iter().filter(|s| inputs[s.input] != copied[s.input]).count();
        assert!(moved > 0, "{name}: nothing moved since the copy was taken");

        for t in 1..=2 {
            let bad = case.poisoned(&inputs);
            let expected = plain.run(&bad);
            let outputs = step.run(&bad);
            let returned = step.told().rollback.unwrap().rolled_back;
            assert_eq!(returned, t == 2, "{name}");
            let from = if returned { &copied } else { &inputs };
            for state in &step.layout.states {
                if state.held {
                    assert!(outputs[state.output] == from[state.input], "{name}: {} in refusal {t}", state.name);
                } else {
                    assert!(outputs[state.output] == expected[state.output], "{name}: {} does not go on", state.name);
                }
            }
            inputs = next(&case, &inputs, &outputs);
        }

        let outputs = step.run(&inputs);
        assert!(step.told().applied, "{name}: training does not continue");
        let scales = &step.told().scales;
        assert!(scales.iter().all(|&s| (s - 0.5).abs() < 1e-6), "{name}: no back-off: {scales:?}");
        assert!(held.iter().any(|s| outputs[s.output] != copied[s.input]), "{name}: nothing moves afterwards");
    }
}

#[test]
fn what_the_copies_cost_is_what_the_held_states_take() {
    let case = corpus::case("mlp_adam");
    let mut module = case.module.clone();
    let layout = inject(&mut module, &policy(), InjectOptions::default()).unwrap().layout;
    let held: u64 = layout.states.iter().filter(|s| s.held).map(|s| case.inputs[s.input].bytes.len() as u64).sum();
    assert_eq!(layout.snapshot_bytes, held);
    let mut module = case.module.clone();
    let layout = inject(&mut module, &Policy::default(), InjectOptions::default()).unwrap().layout;
    assert_eq!((layout.snapshot_bytes, layout.inputs.len()), (0, 3));
}
