//! A step of the size that people train: GPT-2 with 124 million parameters, twelve layers unrolled, in bf16 with state in
//! f32. It is injected, verified and compiled; running it is for machines with more than two cores.
//!
//! Needs the CPU plugin; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use entropic::bundle::Bundle;
use entropic::engine::Engine;
use entropic::model::Model;
use entropic::target::Platform;
use passes::Policy;

/// The controlled step under a policy that emits every pass.
fn controlled(name: &str) -> Bundle {
    let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)).unwrap();
    let inputs = model.module().entry_computation().parameters().len();
    let mut policy = Policy::default();
    policy.scale.tensors.insert("*".to_owned(), 1.0);
    let controlled = model.inject(&policy, Platform::Cpu).unwrap();
    let tensors = &controlled.manifest.controller.as_ref().unwrap().layout.tensors;
    assert_eq!(tensors.len(), 148);
    assert_eq!(tensors.iter().map(|t| t.elements).sum::<u64>(), 124_475_904);
    assert_eq!(controlled.manifest.inputs.len(), inputs + 3);
    hlo::verify::verify(&controlled.module).unwrap();
    controlled
}

#[test]
fn gpt2_small_compiles_under_control() {
    let controlled = controlled("gpt2-small");
    let engine = Engine::open("cpu").expect("the CPU plugin is missing: run `make plugin`");
    let compiled = engine.compile(&controlled.module, "the controlled step").unwrap();
    assert_eq!(compiled.num_outputs(), controlled.manifest.outputs.len());
}

#[test]
fn gpt2_small_with_clipping_is_controlled() {
    controlled("gpt2-small-clip");
}
