//! Modules in every format: what is read is what JAX lowers, or it is refused by name.
//!
//! `tests/corpus_inputs/export.py` made the files. Needs the CPU plugin; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::PathBuf;

use common::{Array, Compiled, Contraction};
use entropic::input::jax_export::Exported;
use entropic::input::{Format, Input, InputError, Reader};
use entropic::isolate::Worker;
use entropic::model::Model;
use entropic::report::Report;
use entropic::target::Platform;
use hlo::{Module, Opcode};
use passes::Policy;
use pjrt::ElementType;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus_inputs").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

fn reader() -> Reader {
    Reader::default().worker(Worker::new(env!("CARGO_BIN_EXE_entropic")))
}

fn on(platform: &str) -> Reader {
    reader().platform(Some(platform))
}

fn read(name: &str, reader: &Reader) -> Input {
    reader.read_module(&bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}; run `make plugin`"))
}

fn refused(name: &str, reader: &Reader, parts: &[&str]) -> InputError {
    let error = reader.read_module(&bytes(name)).unwrap_err();
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{name}: {text:?} lacks {part:?}");
    }
    error
}

/// The module as text, without what a front end only put there for people, and without the first line: it has the layouts
/// of results, which StableHLO does not say.
fn text(module: &Module) -> String {
    let mut module = module.clone();
    module.strip_metadata();
    let text = hlo::text::print(&module, hlo::text::Preset::Canonical);
    text.split_once('\n').unwrap().1.to_owned()
}

fn parameters(module: &Module) -> Vec<String> {
    let entry = module.entry_computation();
    entry.parameters().into_iter().map(|id| entry.get(id).unwrap().op_name().to_owned()).collect()
}

/// Inputs of that module: small numbers that differ.
fn inputs(module: &Module) -> Vec<Array> {
    let entry = module.entry_computation();
    let array = |(number, id): (usize, hlo::InstructionId)| {
        let shape = &entry.get(id).unwrap().shape;
        let count = shape.num_elements() as usize;
        let value = |i: usize| ((i * 7 + number * 5) % 13) as f32 / 13.0;
        match shape.element_type().name().parse().unwrap() {
            ElementType::F32 => Array::f32(shape.dims(), &(0..count).map(value).collect::<Vec<_>>()),
            element_type => {
                Array { element_type, dims: shape.dims().to_vec(), bytes: vec![0; shape.byte_size() as usize] }
            }
        }
    };
    entry.parameters().into_iter().enumerate().map(array).collect()
}

fn run(module: &Module) -> Vec<Array> {
    Compiled::with(module, Contraction::Impossible).run(&inputs(module))
}

#[test]
fn bytecode_and_export_become_the_module_that_jax_lowers() {
    let expected = read("mlp.hlo.pb", &reader());
    assert_eq!(expected.origin.format, Format::Hlo);
    for (name, format) in [("mlp.mlirbc", Format::StableHloBytecode), ("mlp.jax_export", Format::JaxExport)] {
        let Input { module, origin } = read(name, &reader());
        hlo::verify::verify(&module).unwrap();
        assert_eq!(origin.format, format);
        assert_eq!(text(&module), text(&expected.module), "{name}");
        assert_eq!(parameters(&module), parameters(&expected.module));
        assert_eq!(module.aliases(), expected.module.aliases());
        assert_eq!(module.aliases().len(), 10);
    }
}

#[test]
fn every_format_computes_the_same_bits() {
    let expected = run(&read("mlp.hlo.pb", &reader()).module);
    for name in ["mlp.mlir", "mlp.mlirbc", "mlp.jax_export"] {
        let module = read(name, &reader()).module;
        assert_eq!(module.aliases().len(), 10, "{name}");
        assert!(run(&module) == expected, "{name} computes something else");
    }
}

#[test]
fn discovery_finds_the_same_in_every_format() {
    let report = |name: &str| {
        let model = Model::open_with(&path(name), &reader()).unwrap();
        let report = Report::new("", &model.find().unwrap());
        serde_json::to_value(&report).unwrap()
    };
    let expected = report("mlp.hlo.pb");
    assert_eq!(expected["parameters"].as_array().unwrap().len(), 3);
    for name in ["mlp.mlirbc", "mlp.jax_export"] {
        let found = report(name);
        for part in ["parameters", "states", "batch"] {
            assert_eq!(found[part], expected[part], "{name}: {part}");
        }
    }
    // Text comes without the names of values, as JAX prints it.
    let found = report("mlp.mlir");
    for (found, expected) in
        found["parameters"].as_array().unwrap().iter().zip(expected["parameters"].as_array().unwrap())
    {
        assert_eq!(found["shape"], expected["shape"]);
        assert_eq!(found["moments"].as_array().unwrap().len(), 2);
        assert_eq!(found["confidence"], expected["confidence"]);
    }
}

#[test]
fn a_manifest_has_the_names_and_platforms_of_the_export() {
    let model = Model::open_with(&path("mlp.jax_export"), &reader()).unwrap();
    let manifest = model.find().unwrap().manifest;
    let names = |wanted: &[usize]| wanted.iter().map(|&i| manifest.outputs[i].name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&[0, 3, 10]), ["result[0]['b1']", "result[1][0][<flat index 0>]", "result[2]"]);
    assert_eq!(manifest.inputs[4].name, "opt_state[0].mu['b1']");
    assert_eq!(manifest.target_platforms, ["cpu"]);
    let inherited = model.inject(&Policy::default(), Platform::Cpu).unwrap().manifest;
    assert_eq!(inherited.outputs[10].name, "result[2]");
}

fn opcodes(module: &Module) -> Vec<Opcode> {
    module.computations().flat_map(|(_, c)| c.instructions()).map(|(_, i)| i.opcode).collect()
}

fn custom_calls(module: &Module) -> Vec<String> {
    let all = module.computations().flat_map(|(_, c)| c.instructions());
    let calls = all.filter(|(_, i)| i.opcode == Opcode::CustomCall);
    calls.map(|(_, i)| i.attributes.custom_call_target.clone()).collect()
}

#[test]
fn an_export_for_several_platforms_becomes_the_step_of_one() {
    let expected = read("platforms.hlo.pb", &reader()).module;
    for platform in ["cpu", "cuda"] {
        let Input { module, origin } = read("platforms.jax_export", &on(platform));
        hlo::verify::verify(&module).unwrap();
        assert_eq!(origin.chosen.as_deref(), Some(platform));
        assert_eq!(origin.platforms, ["cuda", "cpu"]);
        assert!(origin.note().unwrap().contains(&format!("of cuda, cpu the code for {platform} is taken")));
        let left = opcodes(&module);
        assert!(!left.contains(&Opcode::Conditional) && left.contains(&Opcode::While), "{left:?}");
        assert_eq!(parameters(&module), parameters(&expected));
        assert_eq!(module.aliases(), expected.aliases());
        assert!(run(&module) == run(&expected), "the step for {platform} computes something else");
    }
}

#[test]
fn the_code_of_the_chosen_platform_is_taken() {
    let calls = |reader: &Reader| custom_calls(&read("qr.jax_export", reader).module);
    assert_eq!(calls(&on("cpu")), ["lapack_sgeqrf_ffi", "lapack_sorgqr_ffi", "lapack_strsm_ffi"]);
    let cuda = ["cusolver_geqrf_ffi", "cusolver_orgqr_ffi"];
    assert_eq!(calls(&on("cuda")), cuda);
    assert_eq!(calls(&reader().prefer("cuda")), cuda);
    // What is preferred does not matter where there is no choice.
    read("mlp.jax_export", &reader().prefer("cuda"));
}

#[test]
fn a_choice_that_is_missing_or_wrong_is_refused() {
    refused("qr.jax_export", &reader(), &["exported for cpu, cuda", "--platform"]);
    refused("qr.jax_export", &reader().prefer("tpu"), &["exported for cpu, cuda", "--platform"]);
    refused("qr.jax_export", &on("tpu"), &["exported for cpu, cuda, not for tpu"]);
    refused("mlp.jax_export", &on("cuda"), &["exported for cpu, not for cuda"]);
    refused("mlp.hlo.pb", &on("cpu"), &["--platform cpu", "HloModuleProto"]);
    refused("mlp.mlir", &on("cpu"), &["--platform cpu", "StableHLO text"]);
    let module = Exported::read(&bytes("qr.jax_export")).unwrap().module;
    let error = reader().read_module(&module).unwrap_err().to_string();
    assert!(error.contains("exported.serialize()"), "{error}");
}

#[test]
fn kernels_of_other_platforms_are_ordinary_nodes() {
    for (name, target, parameters) in
        [("pallas_tpu.jax_export", "tpu_custom_call", 3), ("cholesky_cuda.jax_export", "cusolver_potrf_ffi", 2)]
    {
        let model = Model::open_with(&path(name), &reader()).unwrap();
        assert!(custom_calls(model.module()).contains(&target.to_owned()));
        let step = model.find().unwrap().step;
        assert_eq!(step.parameters.len(), parameters, "{name}");
        let injected = model.inject(&Policy::default(), Platform::Cpu).unwrap();
        hlo::verify::verify(&injected.module).unwrap();
        assert_eq!(injected.manifest.controller.unwrap().layout.tensors.len(), parameters);
    }
}

#[test]
fn custom_calls_of_gpus_survive_the_conversion() {
    for target in ["__cudnn$fmhaSoftmax", "__cublas$lt$matmul", "__gpu$xla.gpu.triton", "triton_kernel_call"] {
        let text = format!(
            "module {{ func.func public @main(%x: tensor<4xf32>) -> tensor<4xf32> {{ %y = stablehlo.custom_call \
             @\"{target}\"(%x) {{backend_config = \"a: 1\", api_version = 2 : i32}} : (tensor<4xf32>) -> tensor<4xf32> \
             return %y : tensor<4xf32> }} }}"
        );
        let module = reader().read_module(text.as_bytes()).unwrap().module;
        hlo::verify::verify(&module).unwrap();
        assert_eq!(custom_calls(&module), [target]);
        let call = module.entry_computation().root_instruction().unwrap();
        assert_eq!(call.attributes.backend_config, b"a: 1");
    }
}

#[test]
fn arguments_that_the_module_does_not_take_are_left_out() {
    let exported = Exported::read(&bytes("unused.jax_export")).unwrap();
    assert_eq!(exported.inputs.last().unwrap().path, "kwargs['flag']");
    assert_eq!(exported.inputs.len(), exported.kept.len() + 2);
    let module = read("unused.jax_export", &reader()).module;
    assert_eq!(parameters(&module), parameters(&read("mlp.hlo.pb", &reader()).module));
    // A typed key is two words in the module.
    assert_eq!(Exported::read(&bytes("key.jax_export")).unwrap().inputs[10].shape.to_string(), "u32[2]");
    read("key.jax_export", &reader());
}

#[test]
fn functions_that_cannot_be_a_step_are_refused_by_name() {
    refused("symbolic.jax_export", &reader(), &["args[2]", "symbolic dimension \"rows\"", "export the step"]);
    refused("ordered.jax_export", &reader(), &["ordered effects", "OrderedEffect", "tokens"]);
}

#[test]
fn exports_over_a_mesh_stay_over_it() {
    let model = Model::open_with(&path("mesh.jax_export"), &reader()).unwrap();
    let found = model.find().unwrap();
    assert_eq!((found.step.parameters.len(), found.manifest.launch.partitions.get()), (3, 8));
    let injected = model.inject(&Policy::default(), Platform::Cpu).unwrap();
    assert_eq!(injected.manifest.launch.partitions.get(), 8);
}

#[test]
fn stablehlo_that_is_none_is_refused_with_the_plugins_words() {
    let convert = |text: &str| reader().read_module(text.as_bytes()).unwrap_err().to_string();
    let error = convert("module @m { func.func public @main() { return %x : tensor<f32> } }");
    assert!(error.contains("StableHLO text") && error.contains("undeclared SSA value"), "{error}");
    let error = convert(
        "module { func.func public @main(%x: tensor<?xf32>, %n: tensor<1xi32>) -> tensor<?xf32> { \
         %y = stablehlo.dynamic_reshape %x, %n : (tensor<?xf32>, tensor<1xi32>) -> tensor<?xf32> \
         return %y : tensor<?xf32> } }",
    );
    assert!(error.contains("conversion of StableHLO text to HLO failed"), "{error}");
    let damaged = &bytes("mlp.mlirbc")[..3000];
    let error = reader().read_module(damaged).unwrap_err().to_string();
    assert!(error.contains("StableHLO bytecode"), "{error}");
}

#[test]
fn no_bytes_make_the_reader_of_exports_panic_or_run_away() {
    let whole = bytes("key.jax_export");
    Exported::read(&whole).unwrap();
    for cut in 0..whole.len() {
        // What is cut off may have been padding.
        let _ = Exported::read(&whole[..cut]);
    }
    assert!(Exported::read(&whole[..whole.len() / 2]).unwrap_err().to_string().contains("truncated"));
    for at in 0..whole.len() {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = Exported::read(&damaged);
        }
    }
}
