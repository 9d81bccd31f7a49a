//! State that stays on the device is the state that a trip through the host would have brought back.
//!
//! Needs the CPU plugin; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::Path;

use entropic::bundle::Bundle;
use entropic::engine::Engine;
use entropic::isolate::Worker;
use pjrt::{Buffer, Executable};

const STEPS: u32 = 5;

/// Runs some steps of a bundle and returns the loss of each. Between two steps all state goes to the host and comes
/// back in new buffers if `through_host`; else outputs become inputs as they are, and are donated.
fn losses(engine: &Engine, bundle: &Bundle, step: &Executable, through_host: bool) -> Vec<f32> {
    let manifest = &bundle.manifest;
    let init = bundle.init_module().unwrap().unwrap();
    let init = engine.compile(&init, "the initial state").unwrap();
    let seed = engine.upload(&[0; 4], manifest.init.as_ref().unwrap().seed_dtype, &[]).unwrap();
    let mut state: Vec<Buffer> = init.execute_single(&[&seed]).unwrap();
    let tokens = manifest.inputs.last().unwrap();
    let count = u32::try_from(tokens.shape.iter().product::<i64>()).unwrap();
    let mut losses = Vec::new();
    for number in 0..STEPS {
        if through_host {
            state = state
                .iter()
                .zip(&manifest.inputs)
                .map(|(value, input)| engine.upload(&value.to_vec().unwrap(), input.dtype, &input.shape).unwrap())
                .collect();
        }
        let token = |i: u32| (i + number * count).wrapping_mul(2_654_435_761) >> 24;
        let bytes: Vec<u8> = (0..count).flat_map(|i| token(i).to_le_bytes()).collect();
        let batch = engine.upload(&bytes, tokens.dtype, &tokens.shape).unwrap();
        let mut outputs = step.execute_single(&state.iter().chain([&batch]).collect::<Vec<_>>()).unwrap();
        let loss = outputs.pop().unwrap().to_vec().unwrap();
        losses.push(f32::from_le_bytes(loss.try_into().unwrap()));
        state = outputs;
    }
    losses
}

#[test]
fn donated_state_is_read_anew_in_every_step() {
    let engine = Engine::open("cpu").expect("the CPU plugin is missing: run `make plugin`");
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("gpt-nano")).unwrap();
    let step = engine.compile(&bundle.module, "the step").unwrap();
    let [on_device, through_host] = [false, true].map(|host| losses(&engine, &bundle, &step, host));
    assert_eq!(on_device, through_host);
}

#[test]
fn what_a_child_compiles_computes_the_same() {
    let engine = Engine::open("cpu").expect("the CPU plugin is missing: run `make plugin`");
    let apart = engine.clone().isolated(Some(Worker::new(env!("CARGO_BIN_EXE_entropic"))));
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("mlp")).unwrap();
    let [here, there] = [&engine, &apart]
        .map(|engine| losses(engine, &bundle, &engine.compile(&bundle.module, "the step").unwrap(), false));
    assert_eq!(here, there);
}

#[test]
fn a_child_that_is_no_entropic_is_an_error() {
    let engine = Engine::open("cpu").unwrap().isolated(Some(Worker::new("/bin/true")));
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("mlp")).unwrap();
    let error = engine.compile(&bundle.module, "the step").unwrap_err().to_string();
    assert!(error.contains("the step does not compile") && error.contains("gave no reply"), "{error}");
}
