//! State that stays on the device is the state that a trip through the host would have brought back.
//!
//! Needs the CPU plugin; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::Path;

use entropic::bundle::Bundle;
use entropic::cache::CompileCache;
use entropic::engine::Engine;
use entropic::isolate::Worker;
use pjrt::{Buffer, Executable};
use sha2::{Digest, Sha256};

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
fn a_program_from_the_cache_gives_the_same_bits_and_donates() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CompileCache::open(folder.path(), 1 << 30).unwrap();
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("mlp")).unwrap();
    let manifest = &bundle.manifest;
    // State and outputs after some steps on the same batch, and how many inputs were donated to the last.
    let train = |cached: usize, compiled: usize| {
        let engine = Engine::open("cpu").unwrap().with_cache(Some(cache.clone()));
        let init = engine.compile(&bundle.init_module().unwrap().unwrap(), "the initial state").unwrap();
        let step = engine.compile(&bundle.module, "the step").unwrap();
        assert_eq!((engine.programs().cached(), engine.programs().compiled()), (cached, compiled));
        let seed = engine.upload(&[7, 0, 0, 0], manifest.init.as_ref().unwrap().seed_dtype, &[]).unwrap();
        let batch = manifest.inputs.last().unwrap();
        let count = usize::try_from(batch.shape.iter().product::<i64>()).unwrap();
        let batch = engine.upload(&vec![1; 4 * count], batch.dtype, &batch.shape).unwrap();
        let mut state = init.execute_single(&[&seed]).unwrap();
        let mut donated = 0;
        for _ in 0..3 {
            let mut outputs = step.execute_single(&state.iter().chain([&batch]).collect::<Vec<_>>()).unwrap();
            donated = state.iter().filter(|buffer| buffer.is_deleted().unwrap()).count();
            outputs.truncate(state.len());
            state = outputs;
        }
        (state.iter().map(|buffer| buffer.to_vec().unwrap()).collect::<Vec<_>>(), donated)
    };
    let (compiled, cached) = (train(0, 2), train(2, 0));
    assert!(compiled == cached, "a program from the cache computes something else");
    assert!(compiled.1 > 0, "the step donates nothing");
}

#[test]
fn what_the_plugin_does_not_load_is_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CompileCache::open(folder.path(), 1 << 30).unwrap();
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("mlp")).unwrap();
    let engine = || Engine::open("cpu").unwrap().with_cache(Some(cache.clone()));
    engine().compile(&bundle.module, "the step").unwrap();
    // A sound entry whose executable is none: the checksum is right.
    let path = cache.entries().unwrap()[0].path.clone();
    let bytes = std::fs::read(&path).unwrap();
    let executable = b"another plugin's";
    std::fs::write(&path, [&bytes[..40], &Sha256::digest(executable)[..], executable].concat()).unwrap();
    let again = engine();
    again.compile(&bundle.module, "the step").unwrap();
    assert_eq!((again.programs().cached(), again.programs().compiled()), (0, 1));
    let third = engine();
    third.compile(&bundle.module, "the step").unwrap();
    assert_eq!((third.programs().cached(), third.programs().compiled()), (1, 0));
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
