//! What each pass emits, as text. That it computes the right numbers is shown elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::num::NonZeroU32;

use hlo::build::Builder;
use hlo::text::{Preset, print};
use hlo::{AliasKind, InstructionId, Module, Opcode, PrimitiveType, Shape};
use passes::{
    Changed, Context, FuseSteps, InjectOptions, Pipeline, Policy, StepInput, StepOutput, inject, inject_observed,
};

/// `w' = w + (-0.1)·g` with g = x·(w·x - y) summed over the batch by hand: the smallest step there is.
fn tiny() -> Module {
    let f32s = |dims: &[i64]| Shape::array(PrimitiveType::F32, dims);
    let mut module = Module::new("tiny");
    let sum = Builder::reducer(&mut module, "sum", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let w = b.parameter("w", f32s(&[4])).unwrap();
    let x = b.parameter("x", f32s(&[4])).unwrap();
    let y = b.parameter("y", f32s(&[4])).unwrap();
    let product = b.multiply(w, x).unwrap();
    let error = b.subtract(product, y).unwrap();
    let gradient = b.multiply(error, x).unwrap();
    let rate = b.constant_f32(-0.1).unwrap();
    let rate = b.broadcast_scalar_like(rate, gradient).unwrap();
    let update = b.multiply(gradient, rate).unwrap();
    let new = b.add(w, update).unwrap();
    let square = b.multiply(error, error).unwrap();
    let zero = b.constant_f32(0.0).unwrap();
    let loss = b.reduce_all(square, zero, sum).unwrap();
    module.set_outputs(&[new, loss]).unwrap();
    module.alias(0, 0, AliasKind::May).unwrap();
    module
}

/// The smallest step with momentum: `m' = 0.9·m + 0.1·g`, `w' = w + (-0.1)·d` with a direction d made of m'.
fn tiny_with_momentum(direction: impl Fn(&mut Builder<'_>, InstructionId) -> InstructionId) -> Module {
    let f32s = |dims: &[i64]| Shape::array(PrimitiveType::F32, dims);
    let mut module = Module::new("tiny");
    let sum = Builder::reducer(&mut module, "sum", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let w = b.parameter("w", f32s(&[4])).unwrap();
    let m = b.parameter("m", f32s(&[4])).unwrap();
    let x = b.parameter("x", f32s(&[4])).unwrap();
    let product = b.multiply(w, x).unwrap();
    let gradient = b.multiply(product, x).unwrap();
    let times = |b: &mut Builder<'_>, x, factor| {
        let factor = b.constant_f32(factor).unwrap();
        let factor = b.broadcast_scalar_like(factor, x).unwrap();
        b.multiply(x, factor).unwrap()
    };
    let old = times(&mut b, m, 0.9);
    let share = times(&mut b, gradient, 0.1);
    let moment = b.add(old, share).unwrap();
    let direction = direction(&mut b, moment);
    let update = times(&mut b, direction, -0.1);
    let new = b.add(w, update).unwrap();
    let square = b.multiply(product, product).unwrap();
    let zero = b.constant_f32(0.0).unwrap();
    let loss = b.reduce_all(square, zero, sum).unwrap();
    module.set_outputs(&[new, moment, loss]).unwrap();
    module
}

fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

/// Dead instructions out, verified, printed: an unrelated edit repaints nothing.
fn normalised(module: &Module) -> String {
    let mut module = module.clone();
    let entry = module.entry();
    module.remove_dead_instructions(entry).unwrap();
    hlo::verify::verify(&module).unwrap();
    print(&module, Preset::Snapshot)
}

#[test]
fn each_pass_on_a_small_module() {
    let mut module = tiny();
    let mut stages = Vec::new();
    let policy = Policy::parse("[scale.tensors]\n\"*\" = 1.0\n").unwrap();
    inject_observed(&mut module, &policy, InjectOptions::default(), &mut |pass, changed, module| {
        if changed == Changed::Yes {
            stages.push((pass, print(module, Preset::Snapshot)));
        }
    })
    .unwrap();
    assert!(stages.len() >= 4, "only {} stages", stages.len());
    settings().bind(|| {
        for (pass, text) in stages {
            insta::assert_snapshot!(format!("tiny-after-{pass}"), text);
        }
    });
}

#[test]
fn each_estimator_on_a_small_module() {
    for (name, keys) in [
        ("magnitude", "estimator = \"magnitude\""),
        ("softmax-literal", "estimator = \"softmax\""),
        ("softmax-rms", "estimator = \"softmax\"\ntemperature_unit = \"rms\""),
        ("histogram", "estimator = \"histogram\"\nbins = 8\nrange = [-8, 0]"),
    ] {
        let policy = Policy::parse(&format!("[entropy]\n{keys}\n")).unwrap();
        let mut measured = None;
        inject_observed(&mut tiny(), &policy, InjectOptions::default(), &mut |pass, _, module| {
            if pass == "measure-entropy" {
                measured = Some(print(module, Preset::Snapshot));
            }
        })
        .unwrap();
        let text = measured.unwrap();
        settings().bind(|| insta::assert_snapshot!(format!("tiny-measured-by-{name}"), text));
    }
}

#[test]
fn scaled_momentum_on_a_small_module() {
    let mut module = tiny_with_momentum(|_, moment| moment);
    let mut policy = Policy::monitor();
    policy.momentum.tensors.insert("*".into(), 1.0);
    let mut text = None;
    inject_observed(&mut module, &policy, InjectOptions::default(), &mut |pass, _, module| {
        if pass == "scale-momentum" {
            text = Some(normalised(module));
        }
    })
    .unwrap();
    settings().bind(|| insta::assert_snapshot!("tiny-after-scale-momentum", text.unwrap()));
}

/// The module after each of some passes.
fn after(module: &Module, policy: &Policy, passes: &[&str]) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    inject_observed(&mut module.clone(), policy, InjectOptions::default(), &mut |pass, _, module| {
        if passes.contains(&pass) {
            found.push((pass, normalised(module)));
        }
    })
    .unwrap();
    assert_eq!(found.len(), passes.len());
    found
}

#[test]
fn a_switch_on_a_small_module() {
    let module = tiny_with_momentum(|b, moment| b.emit(Opcode::Sign, &[moment]).unwrap());
    let mut policy = Policy::monitor();
    policy.switch.enabled = true;
    for (pass, text) in after(&module, &policy, &["project-steps", "switch-optimizer"]) {
        settings().bind(|| insta::assert_snapshot!(format!("tiny-after-{pass}"), text));
    }
}

#[test]
fn a_rollback_on_a_small_module() {
    let policy = Policy::parse("[rollback]\nkind = \"snapshot\"").unwrap();
    for (pass, text) in after(&tiny(), &policy, &["rollback"]) {
        settings().bind(|| insta::assert_snapshot!(format!("tiny-after-{pass}"), text));
    }
}

#[test]
fn two_steps_in_one_launch_on_a_small_module() {
    let mut module = tiny();
    let fuse = FuseSteps {
        steps: NonZeroU32::new(2).unwrap(),
        inputs: vec![StepInput::State, StepInput::Batch, StepInput::Same],
        outputs: vec![StepOutput::Next(0), StepOutput::Report],
    };
    Pipeline::new().with(fuse).run(&mut module, &mut Context::default(), &mut |_, _, _| {}).unwrap();
    settings().bind(|| insta::assert_snapshot!("tiny-after-fuse-steps", normalised(&module)));
}

#[test]
fn the_controlled_mlp() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/mlp/module.hlo.pb");
    let mut module = Module::import(&std::fs::read(path).unwrap()).unwrap();
    inject(&mut module, &Policy::default(), InjectOptions::default()).unwrap();
    settings().bind(|| insta::assert_snapshot!("mlp-controlled", normalised(&module)));
}

#[test]
fn emission_is_deterministic() {
    let emit = || {
        let mut module = tiny();
        inject(&mut module, &Policy::default(), InjectOptions::default()).unwrap();
        module.export()
    };
    assert_eq!(emit(), emit());
}
