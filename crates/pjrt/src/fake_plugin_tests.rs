//! Every error path, on a plugin that fails, lacks functions, or breaks the contract on demand.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Once;

use crate::sys::abi::FUNCTIONS;
use crate::sys::fake::{self, Behaviour, Shape};
use crate::{
    ApiVersion, Client, Code, CompileOptions, ElementType, Error, ExecuteOptions, LoadFailure, NamedValue, Plugin,
    Program, Result, Topology,
};

/// Starts over, with these behaviours and no warnings.
fn reset(behaviour: &[(&'static str, Behaviour)]) {
    Warnings::watch();
    fake::reset(behaviour);
}

fn plugin(shape: &Shape<'_>) -> Result<Plugin> {
    let api = fake::open(shape).map_err(|reason| Error::Load { path: "fake".into(), reason })?;
    Plugin::initialize(api, PathBuf::from("fake"))
}

/// Calls every function of the C API that this crate calls at all, and looks at nothing. The program has two
/// devices and two outputs.
fn tour(shape: &Shape<'_>) -> Result<()> {
    let plugin = plugin(shape)?;
    plugin.attributes()?;
    let client = client(&plugin)?;
    let device = client.device(0)?;
    let step = client.compile(&Program::hlo(b"module"), &CompileOptions::default())?;
    let input = client.buffer_from_host(&[0; 24], ElementType::F32, &[2, 3], device)?;
    input.ready_event()?.wait()?;
    input.is_deleted()?;
    input.to_host(&mut [0; 24])?;
    let copy = input.start_to_host()?;
    copy.is_ready()?;
    copy.wait()?;
    input.delete()?;
    let execution = step.execute(&[[&input], [&input]], &ExecuteOptions::default())?;
    for event in execution.events {
        event.is_ready()?;
        event.wait()?;
    }
    step.compiled().fingerprint()?;
    step.compiled().cost_analysis()?;
    step.compiled().memory_stats()?;
    step.compiled().optimized_program()?;
    client.deserialize_executable(&step.compiled().serialize()?)?;
    let topology = Topology::create(&plugin, "2x2", &[("config", "text".into())])?;
    topology.compile(&Program::hlo(b"module"), &CompileOptions::default())?.name()?;
    Ok(())
}

fn client(plugin: &Plugin) -> Result<Client> {
    Client::create(plugin, &[("count", 3_i64.into())])
}

fn run(behaviour: &[(&'static str, Behaviour)]) -> Result<()> {
    reset(behaviour);
    tour(&Shape::default())
}

/// Nothing is left, nothing was destroyed twice or used after its end.
fn check_clean(context: &str) {
    let (live, violations) = fake::with(|state| state.leftovers());
    assert!(live.is_empty(), "{context}: {live:?} left");
    assert!(violations.is_empty(), "{context}: {violations:?}");
}

fn is_destroy(function: &str) -> bool {
    function.ends_with("_Destroy")
}

/// Functions that are called only about an error.
fn is_about_errors(function: &str) -> bool {
    function.starts_with("PJRT_Error_")
}

fn ordinary_functions() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|(name, _)| *name).filter(|name| !is_destroy(name) && !is_about_errors(name))
}

#[test]
fn the_tour_calls_everything() {
    run(&[]).unwrap();
    check_clean("a sound plugin");
    for name in ordinary_functions().chain(FUNCTIONS.iter().map(|(name, _)| *name).filter(|name| is_destroy(name))) {
        assert!(is_about_errors(name) || fake::with(|state| state.calls(name)) > 0, "{name} is never called");
    }
}

#[test]
fn what_a_sound_plugin_says_is_passed_on() {
    reset(&[]);
    let plugin = plugin(&Shape::default()).unwrap();
    // A value of a kind that nobody knows is left out; any byte but zero is true.
    let expected = [
        ("text", NamedValue::String("optimised".to_owned())),
        ("int", NamedValue::Int64(-7)),
        ("list", NamedValue::Int64List(vec![1, 2, 3])),
        ("float", NamedValue::Float(0.5)),
        ("truth", NamedValue::Bool(true)),
    ];
    let expected: Vec<(String, NamedValue)> = expected.map(|(name, value)| (name.to_owned(), value)).into();
    assert_eq!(plugin.attributes().unwrap(), expected);
    let client = client(&plugin).unwrap();
    assert_eq!((client.platform_name(), client.platform_version()), ("fake", "fake 1"));
    let device = client.device(0).unwrap();
    assert_eq!((device.id(), device.kind(), device.description()), (0x100, "fake device", "FakeDevice"));
    let step = client.compile(&Program::hlo(b"module"), &CompileOptions::default()).unwrap();
    assert_eq!((step.name(), step.num_outputs(), step.num_devices()), ("step", 2, 2));
    assert_eq!(step.compiled().fingerprint().unwrap(), "print");
    assert_eq!(step.compiled().cost_analysis().unwrap(), expected);
    assert_eq!(step.compiled().memory_stats().unwrap().temporary, 42);
    let optimized = step.compiled().optimized_program().unwrap();
    assert_eq!((optimized.format.as_str(), optimized.code.as_slice()), ("hlo", &b"optimised"[..]));
    assert_eq!(step.compiled().serialize().unwrap(), b"optimised");
    let buffer = client.scalar(1_f32, device).unwrap();
    assert_eq!((buffer.element_type().unwrap(), buffer.dims().unwrap()), (ElementType::F32, &[2, 3][..]));
    assert_eq!((buffer.size_bytes().unwrap(), buffer.is_deleted().unwrap()), (24, true));
    assert_eq!(buffer.to_vec().unwrap(), [7; 24]);
    let mut host = [0; 24];
    buffer.to_host(&mut host).unwrap();
    assert_eq!(host, [7; 24]);
    let execution = step.execute(&[[&buffer], [&buffer]], &ExecuteOptions::default()).unwrap();
    assert_eq!(execution.outputs.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    drop((execution, buffer, step, client));
    check_clean("a sound plugin");
}

#[test]
fn a_topology_needs_no_client() {
    reset(&[]);
    let plugin = plugin(&Shape::default()).unwrap();
    let topology = Topology::create(&plugin, "2x2", &[("config", "text".into())]).unwrap();
    assert_eq!(fake::with(|state| state.options.clone()), [("config".to_owned(), "text".to_owned())]);
    assert_eq!((topology.platform_name(), topology.platform_version()), ("fake", "fake 1"));
    let devices: Vec<_> = topology.devices().iter().map(|d| (d.id, d.kind.as_str())).collect();
    assert_eq!(devices, [(0x100, "fake device"), (0x110, "fake device")]);
    let step = topology.compile(&Program::hlo(b"module"), &CompileOptions::default()).unwrap();
    drop(topology);
    assert_eq!((step.name().unwrap(), step.memory_stats().unwrap().temporary), ("step".to_owned(), 42));
    drop(step);
    check_clean("a sound plugin");
}

#[test]
fn every_function_may_fail() {
    for name in ordinary_functions() {
        let error = run(&[(name, Behaviour::Fail { code: 8, message: b"out of cheese" })]).unwrap_err();
        check_clean(name);
        assert_eq!((error.code(), error.function()), (Code::ResourceExhausted, Some(name)));
        assert_eq!(
            error.to_string(),
            format!("{name} failed with RESOURCE_EXHAUSTED: out of cheese (plugin speaks PJRT API 0.81)")
        );
    }
}

#[test]
fn every_function_may_be_absent() {
    for name in ordinary_functions() {
        reset(&[]);
        let error = tour(&Shape { absent: &[name], ..Shape::default() }).unwrap_err();
        check_clean(name);
        assert_eq!((error.code(), error.function()), (Code::Unimplemented, Some(name)));
    }
}

#[test]
fn a_table_may_end_anywhere() {
    for &(name, slot) in FUNCTIONS.iter().filter(|(name, _)| !is_destroy(name)) {
        // One byte short of the slot's end: the slot does not exist.
        for size in [fake::size_before(slot), fake::size_before(slot + 1) - 1] {
            reset(&[]);
            let error = tour(&Shape { size: Some(size), ..Shape::default() }).unwrap_err();
            assert_eq!(error.code(), Code::Unimplemented, "{error}");
            let missed = FUNCTIONS.iter().find(|(known, _)| Some(*known) == error.function()).unwrap().1;
            assert!(missed >= slot, "{error}, though the table only ends before {name}");
        }
    }
    let (_, last) = FUNCTIONS.last().unwrap();
    reset(&[]);
    tour(&Shape { size: Some(fake::size_before(last + 1)), ..Shape::default() }).unwrap();
}

#[test]
fn every_output_may_be_missing() {
    // Zero and the empty list are answers too, so not every silence is an error. But none is worse than one.
    for name in ordinary_functions() {
        if let Err(error) = run(&[(name, Behaviour::Silent)]) {
            assert!(matches!(error.code(), Code::Internal | Code::InvalidArgument), "{name}: {error}");
        }
        check_clean(name);
    }
    for (name, part) in [
        ("PJRT_Client_Create", "returned a null client"),
        ("PJRT_Client_Compile", "returned a null executable"),
        ("PJRT_Client_BufferFromHostBuffer", "returned a null buffer"),
        ("PJRT_Device_GetDescription", "returned a null device description"),
        ("PJRT_LoadedExecutable_GetExecutable", "returned a null executable"),
        ("PJRT_LoadedExecutable_Execute", "returned a null output buffer"),
        ("PJRT_Buffer_ElementType", "unknown element type 0"),
        ("PJRT_Executable_DeserializeAndLoad", "returned a null executable"),
        ("PJRT_Buffer_ToHostBuffer", "returned a null event"),
        ("PJRT_Buffer_ReadyEvent", "returned a null event"),
        ("PJRT_TopologyDescription_Create", "returned a null topology"),
        ("PJRT_Compile", "returned a null executable"),
    ] {
        let error = run(&[(name, Behaviour::Silent)]).unwrap_err();
        assert_eq!((error.code(), error.function()), (Code::Internal, Some(name)));
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
}

#[test]
fn absurd_outputs_are_not_believed() {
    for (name, part) in [
        ("PJRT_Plugin_Attributes", "returned null for 9 items of string value"),
        ("PJRT_Client_PlatformName", "returned null for 4 items"),
        ("PJRT_Client_PlatformVersion", "returned null for 6 items"),
        ("PJRT_Client_Devices", "impossible devices"),
        ("PJRT_Client_AddressableDevices", "impossible devices"),
        ("PJRT_DeviceDescription_Kind", "returned null for 11 items"),
        ("PJRT_DeviceDescription_ToString", "returned null for 10 items"),
        ("PJRT_Executable_Name", "returned null for 4 items"),
        ("PJRT_Executable_GetCostAnalysis", "returned null for 9 items"),
        ("PJRT_Executable_OptimizedProgram", "wants room for"),
        ("PJRT_Executable_Serialize", "returned null for 9 items of serialized bytes"),
        ("PJRT_LoadedExecutable_AddressableDevices", "impossible devices"),
        ("PJRT_LoadedExecutable_Execute", "returned a null output buffer"),
        ("PJRT_Buffer_ElementType", "unknown element type 999"),
        ("PJRT_Executable_Fingerprint", "returned null for 5 items"),
    ] {
        let error = run(&[(name, Behaviour::Absurd)]).unwrap_err();
        check_clean(name);
        assert_eq!((error.code(), error.function()), (Code::Internal, Some(name)), "{error}");
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
    // A negative dimension reads well and is no size.
    reset(&[("PJRT_Buffer_Dimensions", Behaviour::Absurd)]);
    let client = client(&plugin(&Shape::default()).unwrap()).unwrap();
    let buffer = client.scalar(1_i32, client.device(0).unwrap()).unwrap();
    assert!(buffer.to_vec().unwrap_err().to_string().contains("no valid shape"));
}

#[test]
fn errors_that_cannot_be_read() {
    let fail = |code, message| ("PJRT_Client_Create", Behaviour::Fail { code, message });
    let check = |behaviour: &[(&'static str, Behaviour)], absent: &[&str], code, message: &str, left: usize| {
        reset(behaviour);
        let error = tour(&Shape { absent, ..Shape::default() }).unwrap_err();
        assert_eq!(error.code(), code);
        assert_eq!(
            error.to_string(),
            format!("PJRT_Client_Create failed with {code}: {message} (plugin speaks PJRT API 0.81)")
        );
        let (live, violations) = fake::with(|state| state.leftovers());
        assert_eq!(live, vec!["error"; left]);
        assert!(violations.is_empty(), "{violations:?}");
    };
    let none = "the plugin gives no message";
    check(&[fail(3, b"caf\xe9 \xff")], &[], Code::InvalidArgument, "caf\u{fffd} \u{fffd}", 0);
    check(&[fail(3, b"")], &[], Code::InvalidArgument, none, 0);
    check(&[fail(0, b"fine")], &[], Code::Unknown, "fine", 0);
    check(&[fail(99, b"new")], &[], Code::Unknown, "new", 0);
    check(&[fail(3, b"lost"), ("PJRT_Error_Message", Behaviour::Absurd)], &[], Code::InvalidArgument, none, 0);
    // An error about the error is destroyed as well.
    let second = ("PJRT_Error_GetCode", Behaviour::Fail { code: 13, message: b"second" });
    check(&[fail(3, b"first"), second], &[], Code::Unknown, "first", 0);
    check(&[fail(3, b"x")], &["PJRT_Error_GetCode"], Code::Unknown, "x", 0);
    check(&[fail(3, b"x")], &["PJRT_Error_Message"], Code::InvalidArgument, none, 0);
    // What cannot be destroyed stays, and that is all.
    check(&[fail(3, b"x")], &["PJRT_Error_Destroy"], Code::InvalidArgument, "x", 1);
}

#[test]
fn every_code_is_read() {
    for raw in 1..=16 {
        let error = run(&[("PJRT_Plugin_Initialize", Behaviour::Fail { code: raw, message: b"x" })]).unwrap_err();
        assert_eq!(error.code() as i32, raw);
    }
}

#[test]
fn a_drop_that_fails_is_logged() {
    for (name, _) in FUNCTIONS.iter().filter(|(name, _)| is_destroy(name) && !is_about_errors(name)) {
        let failing = [(*name, Behaviour::Fail { code: 13, message: b"stuck" })];
        for (behaviour, absent) in [(&failing[..], &[][..]), (&[], &[*name])] {
            reset(behaviour);
            tour(&Shape { absent, ..Shape::default() }).unwrap();
            // One more comes with every list of named values, for its value of an unknown kind.
            let left = fake::with(|state| state.leftovers()).0.len();
            assert!(left > 0, "{name} did not fail");
            assert_eq!(Warnings::count(), left + 2, "{name}");
        }
    }
}

/// Counts the warnings of each thread.
///
/// It is the default of all threads, and from before any of them calls the library: a thread without a subscriber of
/// its own that reaches a callsite first can turn that callsite off for the others, which a subscriber of one thread
/// cannot prevent.
struct Warnings;

thread_local! {
    static WARNINGS: Cell<usize> = const { Cell::new(0) };
}

impl Warnings {
    fn watch() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| tracing::subscriber::set_global_default(Warnings).unwrap());
        WARNINGS.set(0);
    }

    fn count() -> usize {
        WARNINGS.get()
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::WARN {
            WARNINGS.set(WARNINGS.get() + 1);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn tables_that_are_refused() {
    assert_eq!(fake::open_null().unwrap_err(), LoadFailure::NullTable);
    for size in [0, 8, 39] {
        let shape = Shape { size: Some(size), ..Shape::default() };
        assert_eq!(fake::open(&shape).unwrap_err(), LoadFailure::TruncatedTable { size });
    }
    for version in [(1, 0), (-1, 81), (7, 117)] {
        let failure = fake::open(&Shape { version, ..Shape::default() }).unwrap_err();
        let found = ApiVersion { major: version.0, minor: version.1 };
        assert_eq!(failure, LoadFailure::MajorVersion { found, needed: 0 });
        assert!(failure.to_string().contains(&format!("speaks PJRT API {found}")));
    }
    // A minor version is never a reason: what a plugin lacks is found out function by function.
    for minor in [54, 81, 117, 500] {
        let api = fake::open(&Shape { version: (0, minor), ..Shape::default() }).unwrap();
        assert_eq!(api.version(), ApiVersion { major: 0, minor });
    }
}

#[test]
fn options_and_arguments_arrive() {
    reset(&[]);
    let plugin = plugin(&Shape::default()).unwrap();
    let options: [(&str, NamedValue); 6] = [
        ("text", "word".into()),
        ("empty", String::new().into()),
        ("int", (-3_i64).into()),
        ("list", vec![4, 5].into()),
        ("float", 0.25_f32.into()),
        ("truth", true.into()),
    ];
    let client = Client::create(&plugin, &options).unwrap();
    let arrived = fake::with(|state| std::mem::take(&mut state.options));
    let expected = ["word", "", "-3", "[4, 5]", "0.25", "1"];
    for ((name, value), (expected_name, expected)) in
        arrived.iter().zip(options.iter().map(|(name, _)| name).zip(expected))
    {
        assert_eq!((name.as_str(), value.as_str()), (*expected_name, expected));
    }
    assert_eq!(arrived.len(), expected.len());
    assert_eq!((client.devices().len(), client.addressable_devices().len()), (2, 1));
    assert_eq!(client.device(0).unwrap().local_hardware_id(), None);

    let step = client.compile(&Program::hlo(b"module"), &CompileOptions::default()).unwrap();
    let device = client.device(0).unwrap();
    let buffers: Vec<_> = (0..4).map(|number| client.scalar(number, device).unwrap()).collect();
    let options = ExecuteOptions { non_donatable_inputs: vec![1], launch_id: 9 };
    step.execute(&[[&buffers[0], &buffers[1]], [&buffers[2], &buffers[3]]], &options).unwrap();
    let (lists, kept, launch) = fake::with(|state| state.executed.take()).unwrap();
    assert_eq!((kept, launch), (vec![1], 9));
    assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let numbers: Vec<usize> = lists.concat();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "each argument in its place: {numbers:x?}");
}

#[test]
fn refusals_do_not_reach_the_plugin() {
    reset(&[]);
    let client = client(&plugin(&Shape::default()).unwrap()).unwrap();
    let device = client.device(0).unwrap();
    let step = client.compile(&Program::hlo(b"module"), &CompileOptions::default()).unwrap();
    let buffer = client.scalar(1_f32, device).unwrap();
    let plain = ExecuteOptions::default();
    for error in [
        step.execute(&[[&buffer]], &plain).unwrap_err(),
        step.execute(&[vec![&buffer], vec![]], &plain).unwrap_err(),
        step.execute_single(&[&buffer]).unwrap_err(),
        client.buffer_from_host(&[0; 3], ElementType::F32, &[1], device).unwrap_err(),
        buffer.to_host(&mut [0; 3]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Argument(_)), "{error}");
        assert_eq!((error.code(), error.function()), (Code::InvalidArgument, None));
    }
    let calls = |name| fake::with(|state| state.calls(name));
    assert_eq!(calls("PJRT_LoadedExecutable_Execute"), 0);
    assert_eq!(calls("PJRT_Client_BufferFromHostBuffer"), 1);
    assert_eq!(calls("PJRT_Buffer_ToHostBuffer"), 0);
}
