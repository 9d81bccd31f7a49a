//! A plugin that exists only as a function table, and does as it is told: succeed, fail, or break the contract.
//!
//! Its state belongs to the thread, so that tests run side by side. It keeps a list of live objects: an object
//! destroyed twice, used after its end, or outliving its client makes the test fail.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};

use super::abi::{self, Args, Function, TableHead};
use super::api::Api;
use crate::error::LoadFailure;

/// How a function of the fake behaves, where it does not simply succeed.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Returns an error.
    Fail { code: i32, message: &'static [u8] },
    /// Reports success and writes no output.
    Silent,
    /// Reports success and writes an absurd output.
    Absurd,
}

/// What has happened and what shall happen, per thread.
#[derive(Default)]
pub(crate) struct State {
    behaviour: BTreeMap<&'static str, Behaviour>,
    live: BTreeMap<usize, &'static str>,
    made: usize,
    /// What the client under test was told, and hence has room for.
    num_outputs: usize,
    /// Broken rules, in words.
    violations: Vec<String>,
    calls: BTreeMap<&'static str, usize>,
    /// The arguments of the last execution: device lists of object numbers, non-donatable positions, launch id.
    pub(crate) executed: Option<(Vec<Vec<usize>>, Vec<i64>, i32)>,
    /// Names and values of the options of the last client.
    pub(crate) options: Vec<(String, String)>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Starts over, with these behaviours.
pub(crate) fn reset(behaviour: &[(&'static str, Behaviour)]) {
    with(|state| *state = State { behaviour: behaviour.iter().cloned().collect(), ..State::default() });
}

pub(crate) fn with<T>(look: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(look)
}

impl State {
    pub(crate) fn calls(&self, function: &str) -> usize {
        self.calls.get(function).copied().unwrap_or(0)
    }

    /// The kinds of objects that still live, and the rules broken so far.
    pub(crate) fn leftovers(&self) -> (Vec<&'static str>, Vec<String>) {
        (self.live.values().copied().collect(), self.violations.clone())
    }

    fn make<T>(&mut self, kind: &'static str) -> *mut T {
        self.made += 1;
        let number = 0x1000 + 16 * self.made;
        self.live.insert(number, kind);
        std::ptr::without_provenance_mut(number)
    }

    fn end(&mut self, number: usize, kind: &'static str) {
        let found = self.live.remove(&number);
        if found != Some(kind) {
            self.violations.push(format!("{kind} {number:#x} was destroyed while it was {found:?}"));
        }
        if kind == "client" && !self.live.is_empty() {
            self.violations.push(format!("the client ended before {:?}", self.live.values()));
        }
    }

    fn live(&mut self, number: usize, kind: &'static str) {
        let found = self.live.get(&number).copied();
        if found != Some(kind) {
            self.violations.push(format!("{kind} {number:#x} was used while it was {found:?}"));
        }
    }
}

/// What every function does first: check the size of its struct, count the call, and misbehave if told to.
unsafe fn enter<F: Function>(args: *mut c_void, act: impl FnOnce(&mut State, &mut F::Args, bool)) -> *mut abi::Error {
    with(|state| {
        *state.calls.entry(F::NAME).or_default() += 1;
        // SAFETY: every argument struct starts with its size.
        let size = unsafe { args.cast::<usize>().read() };
        if size != F::Args::STRUCT_SIZE {
            state.violations.push(format!("{} was given a struct of {size} bytes", F::NAME));
        }
        // SAFETY: the caller of `F` passes its struct.
        let args = unsafe { &mut *args.cast::<F::Args>() };
        match state.behaviour.get(F::NAME).cloned() {
            Some(Behaviour::Fail { code, message }) => {
                let error = Box::into_raw(Box::new(FakeError { code, message }));
                state.live.insert(error.addr(), "error");
                return error.cast();
            }
            Some(Behaviour::Silent) => {}
            Some(Behaviour::Absurd) => act(state, args, true),
            None => act(state, args, false),
        }
        std::ptr::null_mut()
    })
}

struct FakeError {
    code: i32,
    message: &'static [u8],
}

/// A size that no list has.
const ABSURD: usize = usize::MAX / 2;

macro_rules! fakes {
    ($($function:ident |$state:pat_param, $args:pat_param, $absurd:pat_param| $body:block)*) => {$(
        #[allow(non_snake_case)]
        unsafe extern "C" fn $function(args: *mut c_void) -> *mut abi::Error {
            let act = |$state: &mut State, $args: &mut <abi::$function as Function>::Args, $absurd: bool| $body;
            // SAFETY: `args` is what the caller of this function passed.
            unsafe { enter::<abi::$function>(args, act) }
        }
    )*

        /// Slot and pointer of every function but the two that return nothing.
        fn fallible() -> Vec<(usize, *const ())> {
            vec![$((abi::$function::SLOT, $function as *const ())),*]
        }
    };
}

static DIMS: [i64; 2] = [2, 3];
static NEGATIVE_DIMS: [i64; 2] = [2, -3];
static PROGRAM: &[u8] = b"optimised";
static LIST: [i64; 3] = [1, 2, 3];

fn text<T>(args: &mut abi::StringArgs<T>, text: &'static str, absurd: bool) {
    args.string = if absurd { std::ptr::null() } else { text.as_ptr().cast() };
    args.string_size = text.len();
}

/// The two devices of the fake; the second only if it is asked for all.
static DEVICES: [usize; 2] = [0x100, 0x110];

fn devices<T>(args: &mut abi::DevicesArgs<T>, count: usize, absurd: bool) {
    args.devices = (&raw const DEVICES).cast();
    args.num_devices = if absurd { ABSURD } else { count };
}

/// One value of each kind, and one of a kind that does not exist.
fn named_values(absurd: bool) -> &'static [abi::NamedValue] {
    use abi::named_value_kind as kind;
    let value = |name: &'static str, kind: i32, data: abi::NamedValueData, size: usize| {
        let mut value = abi::NamedValue::new();
        value.name = name.as_ptr().cast();
        value.name_size = name.len();
        (value.kind, value.data, value.value_size) = (kind, data, size);
        value
    };
    let string = if absurd { std::ptr::null() } else { PROGRAM.as_ptr().cast() };
    Vec::leak(vec![
        value("text", kind::STRING, abi::NamedValueData { string }, PROGRAM.len()),
        value("int", kind::INT64, abi::NamedValueData { int64: -7 }, 1),
        value("list", kind::INT64_LIST, abi::NamedValueData { int64_list: LIST.as_ptr() }, LIST.len()),
        value("float", kind::FLOAT, abi::NamedValueData { float: 0.5 }, 1),
        value("odd", 99, abi::NamedValueData { int64: 0 }, 1),
        value("truth", kind::BOOL, abi::NamedValueData { boolean: 2 }, 1),
    ])
}

fn write_option(value: &abi::NamedValue) -> (String, String) {
    use abi::named_value_kind as kind;
    let bytes = |pointer: *const c_char, size: usize| {
        // SAFETY: the client under test passes valid strings.
        String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) }).into_owned()
    };
    // SAFETY: the kind tells the live member.
    let text = unsafe {
        match value.kind {
            kind::STRING => bytes(value.data.string, value.value_size),
            kind::INT64 => value.data.int64.to_string(),
            kind::INT64_LIST => {
                format!("{:?}", std::slice::from_raw_parts(value.data.int64_list, value.value_size))
            }
            kind::FLOAT => value.data.float.to_string(),
            _ => value.data.boolean.to_string(),
        }
    };
    (bytes(value.name, value.name_size), text)
}

unsafe extern "C" fn delete_serialized(serialized: *mut abi::SerializedExecutable) {
    with(|state| state.end(serialized.addr(), "serialized executable"));
}

fakes! {
    Error_GetCode |_, args, _| {
        // SAFETY: the error is one of ours.
        args.code = unsafe { (*args.error.cast::<FakeError>()).code };
    }
    Plugin_Initialize |_, _, _| {}
    Plugin_Attributes |_, args, absurd| {
        let values = named_values(absurd);
        (args.attributes, args.num_attributes) = (values.as_ptr(), values.len());
    }
    Event_Destroy |state, args, _| { state.end(args.object.addr(), "event"); }
    Event_IsReady |state, args, _| {
        state.live(args.event.addr(), "event");
        args.is_ready = 1;
    }
    Event_Await |state, args, _| { state.live(args.object.addr(), "event"); }
    Client_Create |state, args, _| {
        // SAFETY: the client under test passes a valid list.
        let options = unsafe { std::slice::from_raw_parts(args.create_options, args.num_options) };
        state.options = options.iter().map(write_option).collect();
        args.client = state.make("client");
    }
    Client_Destroy |state, args, _| { state.end(args.object.addr(), "client"); }
    Client_PlatformName |state, args, absurd| {
        state.live(args.object.addr(), "client");
        text(args, "fake", absurd);
    }
    Client_PlatformVersion |_, args, absurd| { text(args, "fake 1", absurd); }
    Client_Devices |_, args, absurd| { devices(args, 2, absurd); }
    Client_AddressableDevices |_, args, absurd| { devices(args, 1, absurd); }
    Client_Compile |state, args, _| {
        state.live(args.client.addr(), "client");
        args.executable = state.make("loaded executable");
    }
    Client_BufferFromHostBuffer |state, args, _| {
        state.live(args.client.addr(), "client");
        args.done_with_host_buffer = state.make("event");
        args.buffer = state.make("buffer");
    }
    DeviceDescription_Id |_, args, _| { args.value = args.object.addr() as i32; }
    DeviceDescription_ProcessIndex |_, args, _| { args.value = 0; }
    DeviceDescription_Kind |_, args, absurd| { text(args, "fake device", absurd); }
    DeviceDescription_ToString |_, args, absurd| { text(args, "FakeDevice", absurd); }
    Device_GetDescription |_, args, _| { args.device_description = args.device.cast(); }
    Device_LocalHardwareId |_, args, _| { args.value = -1; }
    Executable_Destroy |state, args, _| { state.end(args.object.addr(), "executable"); }
    Executable_Name |state, args, absurd| {
        state.live(args.object.addr(), "executable");
        text(args, "step", absurd);
    }
    Executable_NumOutputs |state, args, _| {
        state.num_outputs = 2;
        args.value = state.num_outputs;
    }
    Executable_GetCostAnalysis |_, args, absurd| {
        let values = named_values(absurd);
        (args.properties, args.num_properties) = (values.as_ptr(), values.len());
    }
    Executable_OptimizedProgram |_, args, absurd| {
        // SAFETY: the program is the caller's.
        let program = unsafe { &mut *args.program };
        if program.code.is_null() {
            program.code_size = if absurd { ABSURD } else { PROGRAM.len() };
        } else {
            // SAFETY: the caller has made the room that it was told.
            unsafe { std::ptr::copy_nonoverlapping(PROGRAM.as_ptr(), program.code.cast(), PROGRAM.len()) };
        }
        program.format = c"hlo".as_ptr();
        program.format_size = 3;
    }
    Executable_Serialize |state, args, absurd| {
        args.serialized_bytes = if absurd { std::ptr::null() } else { PROGRAM.as_ptr().cast() };
        args.serialized_bytes_size = PROGRAM.len();
        args.serialized_executable = state.make("serialized executable");
        args.serialized_executable_deleter = Some(delete_serialized);
    }
    LoadedExecutable_Destroy |state, args, _| { state.end(args.object.addr(), "loaded executable"); }
    LoadedExecutable_GetExecutable |state, args, _| {
        state.live(args.loaded_executable.addr(), "loaded executable");
        args.executable = state.make("executable");
    }
    LoadedExecutable_AddressableDevices |_, args, absurd| { devices(args, 2, absurd); }
    LoadedExecutable_Execute |state, args, absurd| {
        state.live(args.executable.addr(), "loaded executable");
        // SAFETY: the client under test passes lists of the lengths that it says, and room for the outputs it was
        // told of.
        unsafe {
            let options = &*args.options;
            let kept = std::slice::from_raw_parts(options.non_donatable_input_indices, options.num_non_donatable_input_indices);
            let lists = std::slice::from_raw_parts(args.argument_lists, args.num_devices);
            let numbers = lists
                .iter()
                .map(|&list| (0..args.num_args).map(|index| (*list.add(index)).addr()).collect())
                .collect();
            state.executed = Some((numbers, kept.to_vec(), options.launch_id));
            for device in 0..args.num_devices {
                for output in 0..state.num_outputs {
                    // The absurd execution returns all but its very last output.
                    if !(absurd && device + 1 == args.num_devices && output == 1) {
                        *(*args.output_lists.add(device)).add(output) = state.make("buffer");
                    }
                }
                *args.device_complete_events.add(device) = state.make("event");
            }
        }
    }
    Executable_DeserializeAndLoad |state, args, _| { args.loaded_executable = state.make("loaded executable"); }
    Buffer_Destroy |state, args, _| { state.end(args.object.addr(), "buffer"); }
    Buffer_ElementType |state, args, absurd| {
        state.live(args.buffer.addr(), "buffer");
        args.element_type = if absurd { 999 } else { 11 };
    }
    Buffer_Dimensions |_, args, absurd| {
        (args.dims, args.num_dims) = (if absurd { NEGATIVE_DIMS.as_ptr() } else { DIMS.as_ptr() }, 2);
    }
    Buffer_Delete |state, args, _| { state.live(args.object.addr(), "buffer"); }
    Buffer_IsDeleted |_, args, _| { args.value = 3; }
    Buffer_ToHostBuffer |state, args, _| {
        state.live(args.src.addr(), "buffer");
        // SAFETY: the client under test passes its layout and a destination of the size that it says.
        unsafe {
            let layout = &(*args.host_layout).tiled;
            let order = std::slice::from_raw_parts(layout.minor_to_major, layout.minor_to_major_size);
            if order != [1, 0] {
                state.violations.push(format!("asked for the layout {order:?}, which is not row-major"));
            }
            std::ptr::write_bytes(args.dst.cast::<u8>(), 7, args.dst_size);
        }
        args.event = state.make("event");
    }
    Buffer_ReadyEvent |state, args, _| { args.event = state.make("event"); }
    TopologyDescription_Create |state, args, _| {
        // SAFETY: the client under test passes a valid list.
        let options = unsafe { std::slice::from_raw_parts(args.create_options, args.num_options) };
        state.options = options.iter().map(write_option).collect();
        args.topology = state.make("topology");
    }
    TopologyDescription_Destroy |state, args, _| { state.end(args.object.addr(), "topology"); }
    TopologyDescription_PlatformName |state, args, absurd| {
        state.live(args.object.addr(), "topology");
        text(args, "fake", absurd);
    }
    TopologyDescription_PlatformVersion |_, args, absurd| { text(args, "fake 1", absurd); }
    TopologyDescription_GetDeviceDescriptions |state, args, absurd| {
        state.live(args.topology.addr(), "topology");
        args.descriptions = (&raw const DEVICES).cast();
        args.num_descriptions = if absurd { ABSURD } else { 2 };
    }
    Compile |state, args, _| {
        state.live(args.topology.addr(), "topology");
        args.executable = state.make("executable");
    }
    Executable_Fingerprint |_, args, absurd| { text(args, "print", absurd); }
    Executable_GetCompiledMemoryStats |_, args, _| { args.temp_size_in_bytes = 42; }
}

unsafe extern "C" fn error_destroy(args: *mut c_void) {
    // SAFETY: the caller passes the struct of this function, with an error of ours that is live.
    unsafe {
        let error = (*args.cast::<abi::ObjectArgs<abi::Error>>()).object;
        with(|state| {
            if state.live.remove(&error.addr()) == Some("error") {
                drop(Box::from_raw(error.cast::<FakeError>()));
            } else {
                state.violations.push("an error was destroyed twice".to_owned());
            }
        });
    }
}

unsafe extern "C" fn error_message(args: *mut c_void) {
    // SAFETY: the caller passes the struct of this function, with an error of ours that is live.
    unsafe {
        let args = &mut *args.cast::<abi::ErrorMessageArgs>();
        with(|state| state.live(args.error.addr(), "error"));
        let message = (*args.error.cast::<FakeError>()).message;
        args.message = message.as_ptr().cast();
        args.message_size = message.len();
        if with(|state| matches!(state.behaviour.get("PJRT_Error_Message"), Some(Behaviour::Absurd))) {
            args.message = std::ptr::null();
        }
    }
}

/// How the table deviates from a sound one.
pub(crate) struct Shape<'a> {
    /// The version that it declares.
    pub(crate) version: (i32, i32),
    /// Its size in bytes, where not that of all its slots.
    pub(crate) size: Option<usize>,
    /// Functions whose slots are null.
    pub(crate) absent: &'a [&'a str],
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Self { version: (0, 81), size: None, absent: &[] }
    }
}

/// Bytes of a table that ends before this slot.
pub(crate) fn size_before(slot: usize) -> usize {
    std::mem::size_of::<TableHead>() + 8 * slot
}

/// Opens a fake of this shape. The table is leaked, as a plugin's is.
pub(crate) fn open(shape: &Shape<'_>) -> Result<Api, LoadFailure> {
    const SLOTS: usize = 120;
    #[repr(C)]
    struct Table {
        head: TableHead,
        slots: [*const (); SLOTS],
    }
    let mut slots = [std::ptr::null(); SLOTS];
    for (slot, function) in fallible() {
        slots[slot] = function;
    }
    slots[abi::Error_Destroy::SLOT] = error_destroy as *const ();
    slots[abi::Error_Message::SLOT] = error_message as *const ();
    for name in shape.absent {
        let (_, slot) = abi::FUNCTIONS.iter().find(|(known, _)| known == name).unwrap();
        slots[*slot] = std::ptr::null();
    }
    let head = TableHead {
        struct_size: shape.size.unwrap_or(std::mem::size_of::<Table>()),
        extension_start: std::ptr::null_mut(),
        version: abi::ApiVersionFields {
            struct_size: 24,
            extension_start: std::ptr::null_mut(),
            major: shape.version.0,
            minor: shape.version.1,
        },
    };
    let table = Box::leak(Box::new(Table { head, slots }));
    // SAFETY: the table is leaked and at least as large as it says.
    unsafe { Api::new((&raw const *table).cast()) }
}

/// What becomes of a null table.
pub(crate) fn open_null() -> Result<Api, LoadFailure> {
    // SAFETY: null is allowed.
    unsafe { Api::new(std::ptr::null()) }
}
