//! The whole path on the CPU plugin: real programs, checked against what JAX computed.
//!
//! The plugin is `xla_cpu_pjrt.so` in the folder `ENTROPIC_PLUGIN_DIR`, else in the per-user cache. A missing plugin fails these tests.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use npyz::npz::NpzArchive;
use pjrt::{ArraySpec, Buffer, Client, CompileOptions, ElementType, Executable, Plugin, Program};

fn plugin_file() -> PathBuf {
    const NAME: &str = "xla_cpu_pjrt.so";
    if let Some(folder) = std::env::var_os("ENTROPIC_PLUGIN_DIR") {
        return Path::new(&folder).join(NAME);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_default();
    cache.join("entropic/plugins/xla-cpu-pjrt-0.0.1").join(NAME)
}

fn plugin() -> Plugin {
    let file = plugin_file();
    Plugin::load(&file).unwrap_or_else(|error| panic!("{error}\nrun `make plugin`, or set ENTROPIC_PLUGIN_DIR"))
}

fn client(devices: i64) -> Client {
    Client::create(&plugin(), &[("cpu_device_count", devices.into())]).unwrap()
}

fn corpus(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(file)
}

fn module(name: &str) -> Vec<u8> {
    std::fs::read(corpus(&format!("{name}.hlo.pb"))).unwrap()
}

/// One array of a case: type, dimensions, bytes.
struct Array {
    element_type: ElementType,
    dims: Vec<i64>,
    bytes: Vec<u8>,
}

impl Array {
    fn spec(&self) -> ArraySpec {
        ArraySpec { element_type: self.element_type, dims: self.dims.clone() }
    }

    fn numbers(&self) -> Vec<f64> {
        numbers(self.element_type, &self.bytes)
    }
}

fn numbers(element_type: ElementType, bytes: &[u8]) -> Vec<f64> {
    let fours = bytes.chunks_exact(4).map(|four| four.try_into().unwrap());
    match element_type {
        ElementType::F32 => fours.map(|four| f32::from_ne_bytes(four).into()).collect(),
        ElementType::S32 => fours.map(|four| i32::from_ne_bytes(four).into()).collect(),
        other => panic!("these tests read f32 and s32, not {other}"),
    }
}

/// A step of the corpus: its module, what goes in and what JAX says comes out.
struct Case {
    module: Vec<u8>,
    inputs: Vec<Array>,
    outputs: Vec<Array>,
}

fn case(name: &str) -> Case {
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(corpus(&format!("{name}.json"))).unwrap()).unwrap();
    let mut archive = NpzArchive::open(corpus(&format!("{name}.npz"))).unwrap();
    let mut read = |array: &str| {
        let npy = archive.by_name(array).unwrap().unwrap_or_else(|| panic!("{name}.npz has no {array}"));
        let dims = npy.shape().iter().map(|&dim| dim as i64).collect();
        match npy.dtype().descr().trim_matches('\'') {
            "<f4" => {
                let bytes = npy.into_vec::<f32>().unwrap().iter().flat_map(|value| value.to_ne_bytes()).collect();
                Array { element_type: ElementType::F32, dims, bytes }
            }
            "<i4" => {
                let bytes = npy.into_vec::<i32>().unwrap().iter().flat_map(|value| value.to_ne_bytes()).collect();
                Array { element_type: ElementType::S32, dims, bytes }
            }
            other => panic!("{array} is {other}"),
        }
    };
    let kept: Vec<u64> = manifest["kept"].as_array().unwrap().iter().map(|index| index.as_u64().unwrap()).collect();
    let inputs = kept.iter().map(|index| read(&format!("in{index}"))).collect();
    let described = manifest["outputs"].as_array().unwrap();
    let outputs = (0..described.len()).map(|index| read(&format!("out{index}"))).collect();
    Case { module: module(name), inputs, outputs }
}

fn upload(client: &Client, device: usize, arrays: &[Array]) -> Vec<Buffer> {
    let device = client.device(device).unwrap();
    arrays
        .iter()
        .map(|array| client.buffer_from_host(&array.bytes, array.element_type, &array.dims, device).unwrap())
        .collect()
}

fn compile(client: &Client, case: &Case, options: &CompileOptions) -> Executable {
    client
        .compile(&Program::hlo(&case.module), options)
        .unwrap()
        .with_parameters(case.inputs.iter().map(Array::spec).collect())
}

/// The corpus stores a few integer outputs as floats, so types are checked where they are compiled, and values here.
fn check_outputs(case: &Case, outputs: &[Buffer]) {
    assert_eq!(outputs.len(), case.outputs.len());
    for (index, (output, expected)) in outputs.iter().zip(&case.outputs).enumerate() {
        assert_eq!(output.dims().unwrap(), expected.dims);
        let found = output.to_vec().unwrap();
        assert_eq!(found.len(), output.size_bytes().unwrap());
        let found = numbers(output.element_type().unwrap(), &found);
        for (found, expected) in found.into_iter().zip(expected.numbers()) {
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "output {index}: {found} for {expected}"
            );
        }
    }
}

#[test]
fn computes_what_jax_computed() {
    let client = client(1);
    for name in ["mlp_sgd", "mlp_adam"] {
        let case = case(name);
        let step = compile(&client, &case, &CompileOptions::default());
        assert_eq!(step.num_outputs(), case.outputs.len());
        let inputs = upload(&client, 0, &case.inputs);
        check_outputs(&case, &step.execute_single(&inputs.iter().collect::<Vec<_>>()).unwrap());
    }
}
