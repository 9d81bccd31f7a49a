//! Control of steps over a mesh: injected before they are partitioned, and run on eight devices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "mesh/collectives.rs"]
mod collectives;
mod common;
#[path = "mesh/placed.rs"]
mod placed;

use collectives::Collectives;
use common::{Array, Contraction};
use passes::measure_entropy::ReductionStyle;
use passes::policy::{RollbackKind, RollbackPolicy, Timing};
use passes::{InjectOptions, Policy, inject};
use placed::{Controlled, Placed, STEPS, Single, first_inputs, found, module, next_inputs, unsplit};

/// Gates that admit everything, laws that are not warm, a scale of 1 for every update, copies to return to.
fn armed() -> Policy {
    let mut policy = Policy::default();
    policy.gate.norm.multiple = 1e6;
    policy.gate.entropy.enabled = true;
    policy.laws.timing = Timing::Sync;
    policy.laws.micro.enabled = true;
    policy.scale.tensors.insert("*".into(), 1.0);
    policy.rollback = RollbackPolicy { kind: RollbackKind::Snapshot, refresh: 2, ..Default::default() };
    policy
}

/// Runs the plain step and a controlled one side by side on eight devices; both must return the same bits on each.
fn assert_neutral(name: &str, policy: &Policy, contraction: Contraction) {
    let module = module(name);
    let step = found(&module);
    let plain = Placed::new(&module, contraction);
    let mut controlled = Controlled::new(&module, policy, InjectOptions::default(), contraction);
    let mut inputs = plain.place(&first_inputs(&module, &step, 1), 0);
    for number in 0..5 {
        let expected = plain.run(&inputs);
        let found = controlled.run(&inputs);
        for (device, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let differing: Vec<_> = (0..expected.len()).filter(|&k| expected[k] != found[k]).collect();
            assert!(differing.is_empty(), "{name}: outputs {differing:?} of device {device} differ in step {number}");
        }
        let data = plain.place(&first_inputs(&module, &step, 2 + number), 0);
        for ((inputs, outputs), data) in inputs.iter_mut().zip(expected).zip(data) {
            *inputs = data;
            for state in &step.states {
                assert_eq!(inputs[state.input].dims, outputs[state.output].dims, "{name}: {}", state.name);
                inputs[state.input] = outputs[state.output].clone();
            }
        }
    }
    assert!(controlled.told.is_some_and(|t| t.applied && t.accepted == 5.0));
}

#[test]
fn a_watched_step_over_a_mesh_is_the_step_bit_for_bit() {
    for name in STEPS {
        assert_neutral(name, &Policy::monitor(), Contraction::Allowed);
    }
}

#[test]
fn an_armed_step_over_a_mesh_is_the_step_bit_for_bit() {
    assert_neutral("gpt_tp", &Policy::default(), Contraction::Impossible);
    for name in STEPS {
        assert_neutral(name, &armed(), Contraction::Impossible);
    }
}

/// What is measured of one gradient on eight devices and on one differs by rounding alone.
///
/// A gradient's elements are sums of at most 128 products, each sum in another order on eight devices: they agree to a
/// relative 128·2⁻²⁴ < 8e-6 of their terms' magnitudes. E changes by at most 4 times a relative change of all elements
/// (∂h/∂ln g = −2p(ln p + h), and Σp|ln p + h| ≤ 2h), and is itself within 1e-5 on either side; norms change as the
/// elements do.
const ENTROPY: f32 = 4.0 * 8e-6 + 2e-5;
const NORM: f32 = 2.0 * 8e-6;

#[test]
fn a_step_in_a_shard_map_is_controlled_inside_and_stays_the_step() {
    assert_neutral("mlp_manual", &Policy::monitor(), Contraction::Allowed);
    assert_neutral("mlp_manual", &armed(), Contraction::Impossible);
}

#[test]
fn a_pmapped_step_is_controlled_inside_and_stays_the_step() {
    assert_neutral("mlp_pmap", &Policy::monitor(), Contraction::Allowed);
    assert_neutral("mlp_pmap", &armed(), Contraction::Impossible);
}

#[test]
fn copies_of_pmapped_states_have_the_dimension_for_devices() {
    let mut pmapped = module("mlp_pmap");
    let injection = inject(&mut pmapped, &armed(), InjectOptions::default()).unwrap();
    let entry = pmapped.entry_computation();
    let parameters = entry.parameters();
    let copies: Vec<_> = injection.layout.inputs.iter().filter_map(|i| Some((i.copy_of?, i.dims.as_slice()))).collect();
    // Four parameters, a counter, two moments of each.
    assert_eq!(copies.len(), 13);
    for (of, dims) in copies {
        assert_eq!(dims, entry.get(parameters[of]).unwrap().shape.dims());
        assert_eq!(dims[0], 8);
    }
}

#[test]
fn what_would_be_measured_of_a_state_that_each_device_has_is_refused() {
    let policy = Policy::parse("[switch]\nenabled = true\ntrigger = \"step\"\nstep = 10").unwrap();
    let error = inject(&mut module("mlp_pmap"), &policy, InjectOptions::default()).unwrap_err().to_string();
    assert!(error.contains("project-steps") && error.contains("in_axes=None, out_axes=None"), "{error}");
    let equal = Policy::parse("[spectral]\nenabled = true\nmin_side = 4").unwrap();
    let error = inject(&mut module("mlp_pmap"), &equal, InjectOptions::default()).unwrap_err().to_string();
    assert!(error.contains("spectral: "), "{error}");
    // The same step with one state for all of them.
    for policy in [policy, equal] {
        inject(&mut module("mlp_manual"), &policy, InjectOptions::default()).unwrap();
    }
}

#[test]
fn a_shard_map_measures_what_the_same_step_over_a_mesh_does() {
    let [mapped, split] = ["mlp_manual", "mlp_dp"].map(module);
    let step = found(&split);
    let policy = Policy::monitor();
    let [mut mapped, mut split] =
        [mapped, split].map(|module| Controlled::new(&module, &policy, InjectOptions::default(), Contraction::Allowed));
    for seed in 0..3 {
        let inputs = first_inputs(&module("mlp_dp"), &step, seed);
        // Every device has all parameters and, in the program's own view, a part of the batch.
        let _ = mapped.run(&mapped.program.place(&inputs, 0));
        let _ = split.run(&split.program.place(&inputs, 0));
        let (a, b) = (mapped.told.as_ref().unwrap(), split.told.as_ref().unwrap());
        for (a, b) in a.tensors.iter().chain([&a.global]).zip(b.tensors.iter().chain([&b.global])) {
            assert!((a.entropy.unwrap() - b.entropy.unwrap()).abs() <= ENTROPY, "{a:?} {b:?}");
            assert!((a.norm - b.norm).abs() <= NORM * b.norm, "{a:?} {b:?}");
        }
    }
    let names: Vec<_> = mapped.injection.layout.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["p['b1']", "p['b2']", "p['w1']", "p['w2']"]);
}

#[test]
fn a_shard_map_that_cannot_be_controlled_is_refused_with_the_reason() {
    let refused = |name, parts: &[&str]| {
        let error = inject(&mut module(name), &Policy::default(), InjectOptions::default()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{name}: {error}");
        }
    };
    refused("mlp_manual_local", &["enter-body", "the gradient of p['b1']", "differs from device to device", "pmean"]);
    refused("mlp_manual_gspmd", &["SPMDFullToShardShape", "export with Shardy"]);
}

#[test]
fn eight_devices_measure_and_decide_as_one() {
    let mut policy = Policy::default();
    policy.gate.norm.multiple = 3.0;
    policy.gate.norm.warmup = 2;
    policy.gate.entropy.enabled = true;
    policy.gate.entropy.warmup = 3;
    policy.target.first = 2;
    for name in ["mlp_fsdp", "mlp_tp", "gpt_fsdp", "gpt_tp", "mlp_fsdp_gspmd", "gpt_tp_gspmd"] {
        let module = module(name);
        let step = found(&module);
        let single = unsplit(&module);
        let mut one = Single::new(&single, &policy);
        let mut eight = Controlled::new(&module, &policy, InjectOptions::default(), Contraction::Allowed);
        let mut inputs = first_inputs(&module, &step, 1);
        let mut refused = 0;
        for number in 0..8 {
            if number == 5 {
                // A batch with which the gradient explodes: larger parameters, for any model.
                spoil(&mut inputs, &step);
            }
            let outputs = one.run(&inputs);
            let _ = eight.run(&eight.program.place(&inputs, 0));
            let (a, b) = (one.told.as_ref().unwrap(), eight.told.as_ref().unwrap());
            assert_eq!((a.applied, a.norm_exceeded, a.accepted), (b.applied, b.norm_exceeded, b.accepted), "{name}");
            assert_eq!((a.entropy_low, a.entropy_high), (b.entropy_low, b.entropy_high), "{name}");
            refused += u32::from(!a.applied);
            for (a, b) in a.tensors.iter().chain([&a.global]).zip(b.tensors.iter().chain([&b.global])) {
                let (x, y) = (a.entropy.unwrap(), b.entropy.unwrap());
                assert!((x - y).abs() <= ENTROPY, "{name} step {number}: entropy {x} and {y}");
                assert!((a.norm - b.norm).abs() <= NORM * a.norm, "{name} step {number}: {} and {}", a.norm, b.norm);
            }
            if number != 5 {
                inputs = next_inputs(&module, &step, &outputs, 10 + number);
            } else {
                inputs = first_inputs(&module, &step, 1);
            }
        }
        assert!(refused >= 1, "{name}: the gates were never tried");
    }
}

/// Parameters 50 times as large.
fn spoil(inputs: &mut [Array], step: &passes::TrainStep) {
    for parameter in &step.parameters {
        let array = &inputs[parameter.input];
        inputs[parameter.input] = Array::f32(&array.dims, &array.floats().iter().map(|v| v * 50.0).collect::<Vec<_>>());
    }
}

#[test]
fn no_parameter_or_gradient_is_gathered_for_control() {
    // Separate sums for TPU are what Variadic comes to over a mesh.
    let styles = [ReductionStyle::Shares, ReductionStyle::Variadic];
    for name in ["mlp_fsdp", "gpt_tp", "gpt_fsdp_gspmd", "mlp_manual"] {
        let compiled =
            |module: &hlo::Module| Collectives::of(&Placed::new(module, Contraction::Impossible).optimized());
        let plain = compiled(&module(name));
        for reduction in styles {
            let options = InjectOptions { reduction, ..Default::default() };
            let mut injected = module(name);
            let tensors = inject(&mut injected, &armed(), options).unwrap().layout.tensors.len() as u64;
            compiled(&injected).beyond(&plain).assert_small(name, tensors);
        }
    }
}
