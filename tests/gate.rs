//! The gate protects: a batch with a NaN leaves every held state as it was, bit for bit, lets every advancing state go
//! on as in the plain step, and training continues after it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use common::{Array, Compiled};
use controlled::Controlled;
use passes::Policy;

/// Adam, a schedule, a loss scale, BatchNorm, averages of parameters, random keys, accumulation, narrow copies.
const CASES: &[&str] = &[
    "mlp_adam",
    "mlp_adamw_sched",
    "mlp_fp16_lossscale",
    "cnn_trainstate_adamw_clip",
    "ema_params",
    "nnx_adamw",
    "dropout_rng",
    "mlp_multisteps",
    "mlp_bf16params_master",
];

fn floats_are_finite(array: &Array) -> bool {
    array.element_type != pjrt::ElementType::F32 || array.floats().iter().all(|v| v.is_finite())
}

#[test]
fn a_nan_in_one_batch_touches_no_held_state() {
    for name in CASES {
        let case = corpus::case(name);
        let plain = Compiled::new(&case.module);
        let mut step = Controlled::new(&case.module, &Policy::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut inputs = case.inputs.clone();
        for _ in 0..3 {
            let outputs = step.run(&inputs);
            assert!(step.told().applied, "{name}: a healthy step was refused");
            inputs = case.next(&inputs, &outputs);
        }

        let bad = case.poisoned(&inputs);
        let expected = plain.run(&bad);
        let outputs = step.run(&bad);
        assert!(!step.told().applied && !step.told().finite, "{name}: the bad step was applied");
        let (mut held, mut advancing) = (0, 0);
        for state in &step.layout.states {
            if state.held {
                assert!(outputs[state.output] == inputs[state.input], "{name}: {} is not held", state.name);
                held += 1;
            } else {
                assert!(outputs[state.output] == expected[state.output], "{name}: {} does not go on", state.name);
                advancing += 1;
            }
        }
        for (output, (found, expected)) in outputs.iter().zip(&expected).enumerate() {
            let of_state = step.layout.states.iter().any(|s| s.output == output);
            assert!(of_state || found == expected, "{name}: output {output}, which is no state, is another");
        }
        assert!(held > 0, "{name}: nothing is held");
        assert!(advancing > 0 || *name != "mlp_fp16_lossscale", "{name}: the loss scale does not go on");
        inputs = case.next(&inputs, &outputs);
        // The batch itself is no state: the next one is healthy again.
        for (k, role) in case.roles.iter().enumerate().filter(|(_, r)| *r == "batch") {
            assert_eq!(role, "batch");
            inputs[k] = case.inputs[k].clone();
        }

        let before = inputs.clone();
        for _ in 0..3 {
            let outputs = step.run(&inputs);
            assert!(step.told().applied, "{name}: training does not continue");
            assert!(outputs.iter().all(floats_are_finite), "{name}: something is not finite afterwards");
            inputs = case.next(&inputs, &outputs);
        }
        let moved = step.layout.states.iter().any(|s| s.held && before[s.input] != inputs[s.input]);
        assert!(moved, "{name}: nothing moves afterwards");
        // Under a loss scale it is an overflow like any other, which that answers itself.
        let counted = (step.told().non_finite, step.told().loss_scale_skips);
        assert_eq!(counted, if *name == "mlp_fp16_lossscale" { (0.0, 1.0) } else { (1.0, 0.0) }, "{name}");
    }
}

#[test]
fn a_loss_scale_comes_down_until_gradients_are_finite() {
    let case = corpus::case("mlp_fp16_lossscale");
    let mut step = Controlled::new(&case.module, &Policy::default()).unwrap();
    let scale = case.input_names.iter().position(|n| n == "s['scale']").unwrap();
    let mut inputs = case.inputs.clone();
    // So large that f16 gradients overflow.
    inputs[scale] = Array::f32(&[], &[1.0e8]);
    let mut refused = 0;
    for _ in 0..40 {
        let outputs = step.run(&inputs);
        inputs = case.next(&inputs, &outputs);
        if step.told().applied {
            break;
        }
        refused += 1;
    }
    assert!(step.told().applied, "the loss scale never came down: {:?}", inputs[scale].floats());
    assert!(refused > 0, "the loss scale was not too large");
    assert!(inputs[scale].floats()[0] < 1.0e8);
}

#[test]
fn a_controller_that_sees_nothing_finite_asks_to_stop() {
    let case = corpus::case("mlp_adam");
    let policy = Policy::parse("format_version = 1\n[gate]\nmax_pause = 3\n").unwrap();
    let mut step = Controlled::new(&case.module, &policy).unwrap();
    let bad = case.poisoned(&case.inputs);
    let stops: Vec<bool> = (0..4)
        .map(|_| {
            step.run(&bad);
            step.told().stop
        })
        .collect();
    assert_eq!(stops, [false, false, true, true]);
}
