//! The corpus of exported train steps: modules, one set of inputs each, and which output succeeds which input.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of this module")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use hlo::Module;
use npyz::npz::NpzArchive;

use crate::common::Array;

/// A train step with inputs.
pub struct Case {
    pub name: String,
    pub module: Module,
    /// By parameter number.
    pub inputs: Vec<Array>,
    /// Tree paths, by parameter number.
    pub input_names: Vec<String>,
    /// `param`, `opt`, `batch` and so on, by parameter number.
    pub roles: Vec<String>,
    /// For each output, the parameter number that it succeeds.
    pub successor_of: Vec<Option<usize>>,
}

/// The corpus lies beside the root package's tests, whichever package's tests use it.
fn folder() -> PathBuf {
    let mut parents = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|p| p.join("tests/corpus"));
    parents.find(|p| p.is_dir()).unwrap()
}

/// Names of all cases that come with inputs.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".npz")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 41, "the corpus is incomplete: {} cases", names.len());
    names
}

/// The module of a case, with or without inputs.
pub fn module(name: &str) -> Module {
    Module::import(&fs::read(folder().join(format!("{name}.hlo.pb"))).unwrap()).unwrap()
}

/// The true gradients of a case.
pub struct Truth {
    path: PathBuf,
    kept: Vec<u64>,
}

impl Truth {
    /// The truth about case `name`.
    pub fn open(name: &str) -> Self {
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap();
        let kept = manifest["kept"].as_array().unwrap().iter().map(|k| k.as_u64().unwrap()).collect();
        Self { path: folder().join(format!("{name}.npz")), kept }
    }

    /// The gradient with respect to parameter number `input`, after clipping where `clipped` and the step clips.
    pub fn gradient(&self, input: usize, clipped: bool) -> Vec<f64> {
        let mut archive = NpzArchive::open(&self.path).unwrap();
        let k = self.kept[input];
        if clipped && let Ok(Some(npy)) = archive.by_name(&format!("post:{k}")) {
            return floats(npy);
        }
        floats(archive.by_name(&format!("raw:{k}")).unwrap().unwrap())
    }
}

/// A stored gradient; 16-bit ones are bf16 bits.
fn floats(npy: npyz::NpyFile<impl Read>) -> Vec<f64> {
    let descr = npy.dtype().descr();
    match descr.trim_matches('\'') {
        "<f4" => npy.into_vec::<f32>().unwrap().into_iter().map(f64::from).collect(),
        "<f8" => npy.into_vec::<f64>().unwrap(),
        "<u2" => npy.into_vec::<u16>().unwrap().into_iter().map(|b| half::bf16::from_bits(b).to_f64()).collect(),
        other => panic!("a gradient of {other}"),
    }
}

/// Reads a case.
pub fn case(name: &str) -> Case {
    let file = |extension: &str| folder().join(format!("{name}.{extension}"));
    let module = Module::import(&fs::read(file("hlo.pb")).unwrap()).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(file("json")).unwrap()).unwrap();
    let mut archive = NpzArchive::open(file("npz")).unwrap();
    let kept: Vec<u64> = manifest["kept"].as_array().unwrap().iter().map(|k| k.as_u64().unwrap()).collect();
    let entry = module.entry_computation();
    let inputs = kept
        .iter()
        .zip(entry.parameters())
        .map(|(k, parameter)| {
            let shape = &entry.get(parameter).unwrap().shape;
            let bytes = bytes(archive.by_name(&format!("in{k}")).unwrap().unwrap());
            assert_eq!(bytes.len() as u64, shape.byte_size(), "{name}: in{k} for {shape}");
            let element_type = shape.element_type().name().parse().unwrap();
            Array { element_type, dims: shape.dims().to_vec(), bytes }
        })
        .collect();
    let described = |k: &u64, key: &str| manifest["inputs"][*k as usize][key].as_str().unwrap().to_owned();
    let successor_of = manifest["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|output| output["input"].as_u64().and_then(|input| kept.iter().position(|&k| k == input)))
        .collect();
    Case {
        name: name.to_owned(),
        module,
        inputs,
        input_names: kept.iter().map(|k| described(k, "name")).collect(),
        roles: kept.iter().map(|k| described(k, "role")).collect(),
        successor_of,
    }
}

fn bytes(npy: npyz::NpyFile<impl Read>) -> Vec<u8> {
    let descr = npy.dtype().descr();
    macro_rules! read {
        ($type:ty) => {
            npy.into_vec::<$type>().unwrap().iter().flat_map(|v| v.to_ne_bytes()).collect()
        };
    }
    match descr.trim_matches('\'') {
        "<f4" => read!(f32),
        "<i4" => read!(i32),
        "<u4" => read!(u32),
        "<u2" => read!(u16),
        "|b1" => npy.into_vec::<bool>().unwrap().iter().map(|&v| u8::from(v)).collect(),
        other => panic!("an array of {other}"),
    }
}

impl Case {
    /// The inputs with one element of the first floating-point batch made NaN.
    pub fn poisoned(&self, inputs: &[Array]) -> Vec<Array> {
        let mut inputs = inputs.to_vec();
        let batch = |k: &usize| self.roles[*k] == "batch" && self.inputs[*k].element_type == pjrt::ElementType::F32;
        let victim = (0..inputs.len()).find(batch).unwrap_or_else(|| panic!("{}: no f32 batch", self.name));
        inputs[victim].bytes[..4].copy_from_slice(&f32::NAN.to_ne_bytes());
        inputs
    }

    /// The next step's inputs: outputs where they succeed an input, else what went in.
    pub fn next(&self, inputs: &[Array], outputs: &[Array]) -> Vec<Array> {
        let mut next = inputs.to_vec();
        for (output, input) in self.successor_of.iter().enumerate() {
            if let Some(input) = input {
                next[*input] = outputs[output].clone();
            }
        }
        next
    }
}
