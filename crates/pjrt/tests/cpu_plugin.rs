//! The whole path on the CPU plugin: real programs, checked against what JAX computed.
//!
//! The plugin is `xla_cpu_pjrt.so` in the folder `ENTROPIC_PLUGIN_DIR`, else in the per-user cache. A missing
//! plugin fails these tests.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use npyz::npz::NpzArchive;
use pjrt::{
    ArraySpec, Buffer, Client, Code, CompileOptions, DeviceAssignment, ElementType, Error, Executable, ExecuteOptions,
    LoadFailure, NamedValue, OptionValue, Plugin, Program,
};

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

fn run(step: &Executable, inputs: &[Buffer]) -> pjrt::Result<Vec<Buffer>> {
    step.execute_single(&inputs.iter().collect::<Vec<_>>())
}

/// A refusal must name what is wrong; the code tells whether we or the plugin refused.
fn check_refused<T: std::fmt::Debug>(result: pjrt::Result<T>, code: Code, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
}

fn ours<T: std::fmt::Debug>(result: pjrt::Result<T>, part: &str) {
    assert!(
        matches!(result, Err(Error::Argument(_))),
        "{result:?} should have been refused before the plugin was called"
    );
    check_refused(result, Code::InvalidArgument, &[part]);
}

#[test]
fn says_what_it_is() {
    let plugin = plugin();
    assert_eq!(plugin.api_version().major, 0);
    assert!(plugin.path().is_absolute());
    let attributes = plugin.attributes().unwrap();
    assert!(attributes.iter().any(|(name, value)| name == "xla_version" && matches!(value, NamedValue::Int64(_))));

    let client = client(3);
    assert_eq!(client.platform_name(), "cpu");
    assert!(!client.platform_version().is_empty());
    assert_eq!(client.devices().len(), 3);
    let ids: Vec<i32> = client.addressable_devices().iter().map(pjrt::Device::id).collect();
    assert_eq!(ids, [0, 1, 2]);
    for device in client.devices() {
        assert_eq!((device.kind(), device.process_index()), ("cpu", 0));
        assert!(!device.description().is_empty());
    }
    ours(client.device(3), "3 addressable");
}

#[test]
fn donated_inputs_are_gone() {
    let client = client(1);
    let case = case("mlp_sgd");
    let step = compile(&client, &case, &CompileOptions::default());
    let inputs = upload(&client, 0, &case.inputs);
    check_outputs(&case, &run(&step, &inputs).unwrap());
    // The four parameters become the next parameters; the batch stays.
    let gone: Vec<bool> = inputs.iter().map(|input| input.is_deleted().unwrap()).collect();
    assert_eq!(gone, [true, true, true, true, false, false]);
    // Facts stay, the value does not, and none of this is worse than an error.
    assert_eq!(inputs[0].dims().unwrap(), [24]);
    check_refused(inputs[0].to_vec(), Code::InvalidArgument, &["deleted or donated"]);
    check_refused(run(&step, &inputs), Code::InvalidArgument, &["PJRT_LoadedExecutable_Execute", "deleted or donated"]);
    inputs[0].delete().unwrap();
    assert_eq!(numbers(ElementType::F32, &inputs[4].to_vec().unwrap()), case.inputs[4].numbers());
}

#[test]
fn donation_can_be_declined() {
    let client = client(1);
    let case = case("mlp_sgd");
    let step = compile(&client, &case, &CompileOptions::default());
    let execute = |non_donatable_inputs: &[usize]| {
        let inputs = upload(&client, 0, &case.inputs);
        let options =
            ExecuteOptions { non_donatable_inputs: non_donatable_inputs.to_vec(), ..ExecuteOptions::default() };
        let execution = step.execute(&[inputs.iter().collect::<Vec<_>>()], &options);
        (inputs, execution)
    };
    for declined in [&[3][..], &[0, 2]] {
        let (inputs, execution) = execute(declined);
        check_outputs(&case, &execution.unwrap().outputs[0]);
        for &index in declined {
            assert_eq!(inputs[index].to_vec().unwrap(), case.inputs[index].bytes);
        }
    }
    let (inputs, _) = execute(&[3]);
    let gone: Vec<bool> = inputs.iter().map(|input| input.is_deleted().unwrap()).collect();
    assert_eq!(gone, [true, true, true, false, false, false]);
    ours(execute(&[6]).1, "input 6 is beyond its 6");
}

#[test]
fn trains_without_leaving_the_device() {
    let client = client(1);
    let case = case("mlp_sgd");
    let step = compile(&client, &case, &CompileOptions::default());
    let mut state = upload(&client, 0, &case.inputs);
    let batch = state.split_off(4);
    let mut losses = Vec::new();
    for _ in 0..20 {
        let arguments: Vec<&Buffer> = state.iter().chain(&batch).collect();
        let mut outputs = step.execute_single(&arguments).unwrap();
        let loss = outputs.pop().unwrap().start_to_host().unwrap();
        state = outputs;
        losses.push(loss);
    }
    let losses: Vec<f64> = losses.into_iter().map(|loss| numbers(ElementType::F32, &loss.wait().unwrap())[0]).collect();
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "on one batch the loss falls: {losses:?}");
}

#[test]
fn arguments_that_do_not_fit() {
    let client = client(2);
    let case = case("mlp_sgd");
    let step = compile(&client, &case, &CompileOptions::default());
    let inputs = upload(&client, 0, &case.inputs);
    let fitting: Vec<&Buffer> = inputs.iter().collect();
    let device = client.device(0).unwrap();
    let ints = client.buffer_from_host(&case.inputs[0].bytes, ElementType::S32, &[24], device).unwrap();
    let square = client.buffer_from_host(&case.inputs[0].bytes, ElementType::F32, &[4, 6], device).unwrap();
    let with_first = |first| [&[first], &fitting[1..]].concat();

    ours(step.execute_single(&fitting[1..]), "takes 6 argument(s), but 5 were given");
    ours(step.execute_single(&with_first(&ints)), "argument 0 must be f32[24], but s32[24] was given");
    ours(step.execute_single(&with_first(&square)), "argument 0 must be f32[24], but f32[4,6] was given");
    ours(
        step.execute(&[&fitting[..], &fitting[..]], &ExecuteOptions::default()),
        "1 device(s), but argument lists for 2",
    );
    ours(step.execute::<Vec<&Buffer>>(&[], &ExecuteOptions::default()), "argument lists for 0");

    // Without declared parameters the plugin is asked, and counts.
    let undeclared = client.compile(&Program::hlo(&case.module), &CompileOptions::default()).unwrap();
    check_refused(undeclared.execute_single(&fitting[1..]), Code::InvalidArgument, &["PJRT_LoadedExecutable_Execute"]);
    let small = client.buffer_from_host(&[0; 40], ElementType::F32, &[10], device).unwrap();
    check_refused(
        undeclared.execute_single(&with_first(&small)),
        Code::InvalidArgument,
        &["PJRT_LoadedExecutable_Execute"],
    );
    // Nothing of the above has consumed the arguments.
    check_outputs(&case, &step.execute_single(&fitting).unwrap());
}

#[test]
fn a_buffer_cannot_be_donated_twice_at_once() {
    let client = client(1);
    let case = case("mlp_adam");
    let step = compile(&client, &case, &CompileOptions::default());
    let inputs = upload(&client, 0, &case.inputs);
    let mut arguments: Vec<&Buffer> = inputs.iter().collect();
    // A bias and its first moment have one shape.
    arguments[5] = arguments[0];
    check_refused(step.execute_single(&arguments), Code::InvalidArgument, &["PJRT_LoadedExecutable_Execute", "donate"]);
}

#[test]
fn objects_of_another_client_are_refused() {
    let (here, there) = (client(1), client(1));
    let case = case("mlp_sgd");
    let step = compile(&here, &case, &CompileOptions::default());
    ours(run(&step, &upload(&there, 0, &case.inputs)), "argument 0 for device 0 belongs to another client");
    ours(here.scalar(1_f32, there.device(0).unwrap()), "belongs to another client");
}

#[test]
fn one_step_on_two_devices() {
    let client = client(2);
    let case = case("mlp_sgd");
    for device_ids in [None, Some([1, 0])] {
        let options = CompileOptions {
            num_replicas: 2,
            device_assignment: device_ids.map(|ids| DeviceAssignment::new(2, 1, ids.to_vec()).unwrap()),
            ..CompileOptions::default()
        };
        let step = compile(&client, &case, &options);
        assert_eq!(step.num_devices(), 2);
        let [first, second] = device_ids.unwrap_or([0, 1]);
        let inputs = [upload(&client, first as usize, &case.inputs), upload(&client, second as usize, &case.inputs)];
        let lists: Vec<Vec<&Buffer>> = inputs.iter().map(|list| list.iter().collect()).collect();
        let execution = step.execute(&lists, &ExecuteOptions::default()).unwrap();
        assert_eq!((execution.outputs.len(), execution.events.len()), (2, 2));
        for event in &execution.events {
            event.wait().unwrap();
            assert!(event.is_ready().unwrap());
        }
        for outputs in &execution.outputs {
            check_outputs(&case, outputs);
        }
        ours(step.execute(&[&lists[0][..], &lists[1][..3]], &ExecuteOptions::default()), "takes 6 argument(s), but 3");
    }
}

/// Adds its argument over two replicas.
const ALL_REDUCE: &str = r#"module @sum attributes {mhlo.num_replicas = 2 : i32} {
  func.func public @main(%x: tensor<3xf32>) -> tensor<3xf32> {
    %sum = "stablehlo.all_reduce"(%x) ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      %c = stablehlo.add %a, %b : tensor<f32>
      stablehlo.return %c : tensor<f32>
    }) {replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>} : (tensor<3xf32>) -> tensor<3xf32>
    return %sum : tensor<3xf32>
  }
}"#;

#[test]
fn replicas_talk_to_each_other() {
    let client = client(2);
    let options = CompileOptions { num_replicas: 2, ..CompileOptions::default() };
    let sum = client.compile(&Program::mlir(ALL_REDUCE.as_bytes()), &options).unwrap();
    let input = |device: usize, values: [f32; 3]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        client.buffer_from_host(&bytes, ElementType::F32, &[3], client.device(device).unwrap()).unwrap()
    };
    let (first, second) = (input(0, [1.0, 2.0, 3.0]), input(1, [10.0, 20.0, 30.0]));
    let execution = sum.execute(&[[&first], [&second]], &ExecuteOptions::default()).unwrap();
    for outputs in &execution.outputs {
        assert_eq!(numbers(ElementType::F32, &outputs[0].to_vec().unwrap()), [11.0, 22.0, 33.0]);
    }
    // Buffers on the wrong devices are the plugin's to refuse.
    check_refused(
        sum.execute(&[[&second], [&first]], &ExecuteOptions::default()),
        Code::InvalidArgument,
        &["PJRT_LoadedExecutable_Execute"],
    );
}

#[test]
fn programs_that_do_not_compile() {
    let client = client(1);
    let options = CompileOptions::default();
    let whole = module("mlp_sgd");
    for garbage in [&b"HloModule jit_step"[..], &[0xff; 64], &whole[..whole.len() / 2]] {
        let result = client.compile(&Program::hlo(garbage), &options);
        assert_eq!(result.unwrap_err().function(), Some("PJRT_Client_Compile"));
    }
    for (program, part) in [
        (Program::mlir(b"no module"), "custom op 'no' is unknown"),
        (Program { format: "basic", code: b"10 PRINT" }, "basic"),
    ] {
        let error = client.compile(&program, &options).unwrap_err();
        for part in [part, "PJRT_Client_Compile failed with", "PJRT API 0."] {
            assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        }
    }
}

#[test]
fn compiler_flags() {
    let client = client(1);
    let case = case("mlp_sgd");
    let with = |name: &str, value: OptionValue| {
        let env_option_overrides = [(name.to_owned(), value)].into();
        client
            .compile(&Program::hlo(&case.module), &CompileOptions { env_option_overrides, ..CompileOptions::default() })
    };
    let step = with("xla_cpu_enable_fast_math", OptionValue::Bool(false)).unwrap();
    check_outputs(&case, &run(&step, &upload(&client, 0, &case.inputs)).unwrap());
    with("xla_backend_optimization_level", OptionValue::Int(0)).unwrap();
    assert_eq!(with("xla_no_such_flag", OptionValue::Bool(true)).unwrap_err().function(), Some("PJRT_Client_Compile"));
    // The dump shows that a text value arrives.
    let folder = tempfile::tempdir().unwrap();
    with("xla_dump_to", OptionValue::String(folder.path().display().to_string())).unwrap();
    assert!(std::fs::read_dir(folder.path()).unwrap().count() > 0);
}

#[test]
fn arrays_survive_the_round_trip() {
    let client = client(1);
    let device = client.device(0).unwrap();
    let mut bytes = (0..).map(|byte: u32| (byte % 251) as u8);
    for element_type in
        ["s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32", "f64", "c64", "f8e4m3fn", "f8e5m2"]
    {
        let element_type: ElementType = element_type.parse().unwrap();
        for dims in [&[][..], &[5], &[2, 3], &[2, 1, 4], &[0], &[3, 0]] {
            let data: Vec<u8> = bytes.by_ref().take(element_type.byte_count(dims).unwrap()).collect();
            let buffer = client.buffer_from_host(&data, element_type, dims, device).unwrap();
            buffer.ready_event().unwrap().wait().unwrap();
            assert_eq!((buffer.element_type().unwrap(), buffer.dims().unwrap()), (element_type, dims));
            assert_eq!(buffer.to_vec().unwrap(), data, "{buffer:?}");
            let mut destination = vec![0xee; data.len()];
            buffer.to_host(&mut destination).unwrap();
            assert_eq!(destination, data, "{buffer:?}");
        }
    }
    // Truth values and narrow types, one byte each on the host.
    for (element_type, data) in
        [(ElementType::Pred, [0, 1, 1]), (ElementType::S4, [7, 0xf8, 3]), (ElementType::U4, [15, 0, 3])]
    {
        let buffer = client.buffer_from_host(&data, element_type, &[3], device).unwrap();
        let low_bits = |bytes: &[u8]| -> Vec<u8> { bytes.iter().map(|byte| byte & 0x0f).collect() };
        assert_eq!(low_bits(&buffer.to_vec().unwrap()), low_bits(&data), "{buffer:?}");
    }
}

#[test]
fn sizes_must_match() {
    let client = client(1);
    let device = client.device(0).unwrap();
    ours(client.buffer_from_host(&[0; 7], ElementType::F32, &[2], device), "f32[2] has 8 bytes, but 7 were given");
    ours(client.buffer_from_host(&[], ElementType::F32, &[-2], device), "no valid shape");
    let buffer = client.buffer_from_host(&[0; 8], ElementType::F32, &[2], device).unwrap();
    ours(buffer.to_host(&mut [0; 9]), "8 bytes, but the destination has room for 9");
}

#[test]
fn scalars() {
    let client = client(1);
    let device = client.device(0).unwrap();
    let check = |buffer: pjrt::Result<Buffer>, element_type, bytes: &[u8]| {
        let buffer = buffer.unwrap();
        assert_eq!((buffer.element_type().unwrap(), buffer.dims().unwrap()), (element_type, &[][..]));
        assert_eq!(buffer.to_vec().unwrap(), bytes);
    };
    check(client.scalar(1.5_f32, device), ElementType::F32, &1.5_f32.to_ne_bytes());
    check(client.scalar(-7_i32, device), ElementType::S32, &(-7_i32).to_ne_bytes());
    check(client.scalar(u64::MAX, device), ElementType::U64, &[0xff; 8]);
    check(client.scalar(true, device), ElementType::Pred, &[1]);
}

#[test]
fn copies_outlive_buffers_and_objects_outlive_handles() {
    let copy = {
        let client = client(1);
        let buffer = client.buffer_from_host(&[7; 4096], ElementType::U8, &[4096], client.device(0).unwrap()).unwrap();
        drop(client);
        drop(buffer.start_to_host().unwrap());
        buffer.start_to_host().unwrap()
    };
    assert_eq!(copy.wait().unwrap(), [7; 4096]);
}

#[test]
fn compiled_programs_explain_themselves() {
    let client = client(1);
    let case = case("mlp_sgd");
    let step = compile(&client, &case, &CompileOptions::default());
    assert!(step.name().starts_with("jit_"), "{}", step.name());
    let stats = step.compiled().memory_stats().unwrap();
    let parameters: i64 = case.inputs[..4].iter().map(|input| input.bytes.len() as i64).sum();
    assert_eq!(stats.aliased, parameters);
    assert_eq!(stats.arguments, case.inputs.iter().map(|input| input.bytes.len() as i64).sum::<i64>());
    let costs = step.compiled().cost_analysis().unwrap();
    assert!(
        costs.iter().any(|(name, value)| name == "flops" && matches!(value, NamedValue::Float(flops) if *flops > 0.0))
    );
    let optimized = step.compiled().optimized_program().unwrap();
    assert_eq!(optimized.format, "hlo_with_config");
    assert!(optimized.code.windows(step.name().len()).any(|window| window == step.name().as_bytes()));

    let serialized = step.compiled().serialize().unwrap();
    let again = client.deserialize_executable(&serialized).unwrap();
    assert_eq!((again.name(), again.num_outputs()), (step.name(), step.num_outputs()));
    check_outputs(&case, &run(&again, &upload(&client, 0, &case.inputs)).unwrap());
    assert_eq!(
        client.deserialize_executable(b"garbage").unwrap_err().function(),
        Some("PJRT_Executable_DeserializeAndLoad")
    );
}

#[test]
fn threads_share_an_executable() {
    let client = client(1);
    let case = case("mlp_sgd");
    let step = compile(&client, &case, &CompileOptions::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    check_outputs(&case, &run(&step, &upload(&client, 0, &case.inputs)).unwrap());
                }
            });
        }
    });
}

#[test]
fn files_that_are_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let check = |path: &Path, code: Code, part: &str| {
        let error = Plugin::load(path).unwrap_err();
        assert!(matches!(error, Error::Load { .. }), "{error}");
        assert_eq!(error.code(), code);
        for part in [part, &path.display().to_string()] {
            assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        }
    };
    check(&folder.path().join("absent.so"), Code::NotFound, "there is no such file");
    check(folder.path(), Code::FailedPrecondition, "a folder");
    check(&write("text.so", b"HloModule jit_step"), Code::FailedPrecondition, "not a shared library");
    check(&write("empty.so", b""), Code::FailedPrecondition, "an empty file");

    // Real libraries, spoiled: the other of two processors, and half a file.
    let library = std::fs::read(plugin_file()).unwrap()[..4096].to_vec();
    let mut foreign = library.clone();
    let (machine, name) = if cfg!(target_arch = "x86_64") { (183_u16, "aarch64") } else { (62, "x86_64") };
    foreign[18..20].copy_from_slice(&machine.to_le_bytes());
    check(&write("foreign.so", &foreign), Code::FailedPrecondition, &format!("built for {name}"));
    check(&write("half.so", &library), Code::FailedPrecondition, "a truncated ELF file");
    // A program that could be mapped anywhere looks like a library, but not to the linker.
    check(&std::env::current_exe().unwrap(), Code::FailedPrecondition, "dynamic linker refuses");

    // A sound library that is no plugin: the C library of this very process.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.split_whitespace().find(|word| word.contains("/libc.so") || word.contains("/libc-")).unwrap();
    check(Path::new(libc), Code::FailedPrecondition, "exports no `GetPjrtApi`");
    let error = Plugin::load(Path::new(libc)).unwrap_err();
    assert!(matches!(error, Error::Load { reason: LoadFailure::NoEntryPoint, .. }));
}

#[test]
fn a_plugin_is_loaded_once() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link.so");
    std::os::unix::fs::symlink(plugin_file(), &link).unwrap();
    let (first, second) = (plugin(), Plugin::load(&link).unwrap());
    assert_eq!(first.path(), second.path());
    assert_eq!(second.path(), plugin_file().canonicalize().unwrap());
}

#[test]
fn a_version_is_read_without_initialising() {
    assert_eq!(Plugin::api_version_of(&plugin_file()).unwrap(), plugin().api_version());
    let folder = tempfile::tempdir().unwrap();
    let error = Plugin::api_version_of(&folder.path().join("absent.so")).unwrap_err();
    assert!(matches!(error, Error::Load { reason: LoadFailure::Missing, .. }), "{error}");
}

#[test]
fn libraries_are_loaded_beforehand_or_refused() {
    // It is loaded already, so it loads again.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.split_whitespace().find(|word| word.contains("/libc.so") || word.contains("/libc-")).unwrap();
    pjrt::preload(Path::new(libc)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("libcudart.so.13");
    assert_eq!(pjrt::preload(&text), Err(LoadFailure::Missing));
    std::fs::write(&text, "INPUT(elsewhere)").unwrap();
    assert!(matches!(pjrt::preload(&text), Err(LoadFailure::NotALibrary { .. })));
}
