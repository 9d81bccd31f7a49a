//! Gradients that are accumulated over several calls: measured as the moments take them in, and the controller goes on in
//! the call that consumes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "../../tests/support/controlled.rs"]
mod controlled;
#[path = "../../tests/support/corpus.rs"]
mod corpus;

use common::{Array, Compiled};
use controlled::Controlled;
use hlo::Module;
use passes::Pass;
use passes::expose::{View, expose};
use passes::inline_calls::InlineCalls;
use passes::{Context, Policy, TrainStep, discover};

const CASE: &str = "mlp_multisteps";

fn found() -> (Module, TrainStep) {
    let mut module = corpus::module(CASE);
    InlineCalls.run(&mut module, &mut Context::default()).unwrap();
    let step = discover(&module).unwrap();
    (module, step)
}

/// Energy entropy over ln n, and the norm.
fn measure(gradient: &[f64]) -> (f64, f64) {
    let total: f64 = gradient.iter().map(|g| g * g).sum();
    let shares = gradient.iter().map(|g| g * g / total).filter(|p| *p > 0.0);
    (-shares.map(|p| p * p.ln()).sum::<f64>() / (gradient.len() as f64).ln(), total.sqrt())
}

/// Number of the state with that name.
fn state(step: &TrainStep, name: &str) -> (usize, usize) {
    let found = step.states.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no state {name}"));
    (found.input, found.output)
}

fn doubles(array: &Array) -> Vec<f64> {
    array.floats().into_iter().map(f64::from).collect()
}

/// The same batch, multiplied.
fn times(inputs: &[Array], step: &TrainStep, factor: f32) -> Vec<Array> {
    let mut inputs = inputs.to_vec();
    let x = &inputs[step.batch[0]];
    inputs[step.batch[0]] = Array::f32(&x.dims, &x.floats().iter().map(|v| v * factor).collect::<Vec<_>>());
    inputs
}

#[test]
fn what_moments_take_in_is_measured_and_the_controller_goes_on_when_they_do() {
    let case = corpus::case(CASE);
    let (mut module, step) = found();
    let exposed = expose(&mut module, &step, View::Raw).unwrap();
    let micro = Compiled::new(&module);
    let mut controlled = Controlled::new(&case.module, &Policy::monitor()).unwrap();
    let counter = state(&step, "s.mini_step").1;
    let mut inputs = case.inputs.clone();
    let (mut consumed, mut smoothed, mut in_cycle) = (0, None, 0);
    for call in 0..9 {
        inputs = times(&inputs, &step, 1.0 + 0.3 * (call % 3) as f32);
        let gradients = micro.run(&inputs);
        let outputs = controlled.run(&inputs);
        let told = controlled.told().clone();
        in_cycle += 1;
        for (tensor, exposed) in controlled.layout.tensors.iter().zip(&exposed) {
            let accumulator = tensor.name.replace("p[", "s.acc_grads[");
            let before = doubles(&inputs[state(&step, &accumulator).0]);
            let gradient = doubles(&gradients[exposed.output]);
            let mean: Vec<f64> = before.iter().zip(&gradient).map(|(a, g)| a + (g - a) / f64::from(in_cycle)).collect();
            let index = controlled.layout.tensors.iter().position(|t| t.name == tensor.name).unwrap();
            let (entropy, norm) = measure(&mean);
            let measured = told.tensors[index];
            assert!((f64::from(measured.entropy.unwrap()) - entropy).abs() < 2e-5, "{call} {}: {entropy}", tensor.name);
            assert!((f64::from(measured.norm) - norm).abs() < 1e-5 * norm, "{call} {}: {norm}", tensor.name);
        }
        let consumes = outputs[counter].ints() == [0];
        if consumes {
            (consumed, in_cycle) = (consumed + 1, 0);
            assert_ne!(told.global.smoothed, smoothed);
        } else if consumed > 0 {
            assert_eq!(told.global.smoothed, smoothed);
        }
        smoothed = told.global.smoothed;
        assert_eq!((told.accepted, told.applied, told.steps), (consumed as f32, true, (call + 1) as f32));
        inputs = case.next(&case.inputs, &outputs);
    }
    assert!(consumed >= 2, "only {consumed} gradients were consumed");
}

#[test]
fn a_gate_judges_the_accumulated_gradient_when_it_is_complete() {
    let case = corpus::case(CASE);
    let (_, step) = found();
    let mut policy = Policy::default();
    policy.gate.norm.multiple = 3.0;
    policy.gate.norm.warmup = 1;
    let mut controlled = Controlled::new(&case.module, &policy).unwrap();
    let counter = state(&step, "s.mini_step").1;
    let mut inputs = case.inputs.clone();
    let mut consumed = 0;
    for call in 0..20 {
        let spoilt = consumed == 2;
        let given = if spoilt { times(&inputs, &step, 100.0) } else { inputs.clone() };
        let outputs = controlled.run(&given);
        let told = controlled.told();
        let parameters_moved = step.parameters.iter().any(|p| outputs[p.output] != given[p.input]);
        let consuming = outputs[counter].ints() == [0] || !told.applied;
        if spoilt && consuming {
            assert!(told.norm_exceeded && !told.applied, "call {call}: {told:?}");
            assert!(!parameters_moved);
            return;
        }
        assert!(told.applied, "call {call} refused what is not complete");
        assert_eq!(parameters_moved, consuming, "call {call}");
        consumed += i32::from(consuming);
        inputs = case.next(&case.inputs, &outputs);
    }
    panic!("no spoilt gradient was consumed");
}

#[test]
fn other_steps_consume_in_every_call() {
    for name in ["mlp_adam", "mlp_apply_if_finite", "mlp_sgd", "ema_params"] {
        let mut module = corpus::module(name);
        InlineCalls.run(&mut module, &mut Context::default()).unwrap();
        assert!(discover(&module).unwrap().consumes.is_none(), "{name}");
    }
    assert!(found().1.consumes.is_some());
}
