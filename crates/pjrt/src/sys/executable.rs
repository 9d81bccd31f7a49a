//! Programs loaded on devices: compile, load, execute.

use std::sync::Arc;

use super::abi::{self, Args};
use super::client::DeviceRef;
use super::object::{ClientHandle, Owned};
use super::program::{Compiled, program};
use crate::error::{Error, Result};

/// An executable loaded on its devices, with the two numbers that the layout of an execute call depends on.
pub(crate) struct Loaded {
    loaded: Owned<abi::LoadedExecutable>,
    devices: Vec<DeviceRef>,
    num_outputs: usize,
}

/// What an execute call gives back, one entry per device.
pub(crate) struct Launched {
    pub(crate) outputs: Vec<Vec<Owned<abi::Buffer>>>,
    pub(crate) events: Vec<Owned<abi::Event>>,
}

/// Compiles `code` and loads the result.
pub(crate) fn compile(client: &ClientHandle, format: &str, code: &[u8], options: &[u8]) -> Result<(Loaded, Compiled)> {
    let program = program(format, code);
    let mut args = abi::ClientCompileArgs::new();
    args.client = client.as_ptr();
    args.program = &raw const program;
    args.compile_options = options.as_ptr().cast();
    args.compile_options_size = options.len();
    // SAFETY: the client is live, and program and options outlive the call; the plugin only reads them.
    unsafe { client.api().call::<abi::Client_Compile>(&mut args) }?;
    let loaded = client.api().non_null::<abi::Client_Compile, _>(args.executable, "executable")?;
    // SAFETY: the plugin has just made this executable for us.
    Loaded::new(client, unsafe { Owned::new(client.api(), loaded, Some(Arc::clone(client))) })
}

/// Loads what [`Loaded::serialize`] wrote.
pub(crate) fn deserialize(client: &ClientHandle, serialized: &[u8]) -> Result<(Loaded, Compiled)> {
    let mut args = abi::ExecutableDeserializeAndLoadArgs::new();
    args.client = client.as_ptr();
    args.serialized_executable = serialized.as_ptr().cast();
    args.serialized_executable_size = serialized.len();
    // SAFETY: the client is live and the bytes outlive the call.
    unsafe { client.api().call::<abi::Executable_DeserializeAndLoad>(&mut args) }?;
    let loaded =
        client.api().non_null::<abi::Executable_DeserializeAndLoad, _>(args.loaded_executable, "executable")?;
    // SAFETY: the plugin has just made this executable for us.
    Loaded::new(client, unsafe { Owned::new(client.api(), loaded, Some(Arc::clone(client))) })
}

impl Loaded {
    fn new(client: &ClientHandle, loaded: Owned<abi::LoadedExecutable>) -> Result<(Self, Compiled)> {
        let api = client.api();
        let mut args = abi::LoadedExecutableGetExecutableArgs::new();
        args.loaded_executable = loaded.as_ptr();
        // SAFETY: the loaded executable is live, and what it returns is ours to destroy.
        let executable = unsafe {
            api.call::<abi::LoadedExecutable_GetExecutable>(&mut args)?;
            let executable = api.non_null::<abi::LoadedExecutable_GetExecutable, _>(args.executable, "executable")?;
            Owned::new(api, executable, Some(Arc::clone(client)))
        };
        let mut args = abi::SizeArgs::new();
        args.object = executable.as_ptr();
        // SAFETY: both objects are live.
        let devices = unsafe {
            api.call::<abi::Executable_NumOutputs>(&mut args)?;
            api.devices_of::<abi::LoadedExecutable_AddressableDevices, _>(loaded.as_ptr(), client)?
        };
        Ok((Self { loaded, devices, num_outputs: args.value }, Compiled::new(executable)))
    }

    pub(crate) fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    pub(crate) fn devices(&self) -> &[DeviceRef] {
        &self.devices
    }

    /// Launches one execution, with one list of arguments per device.
    pub(crate) fn execute(
        &self,
        arguments: &[Vec<&Owned<abi::Buffer>>],
        non_donatable: &[i64],
        launch_id: i32,
    ) -> Result<Launched> {
        let num_args = arguments.first().map_or(0, Vec::len);
        self.check_arguments(arguments, num_args)?;
        let inputs: Vec<Vec<*mut abi::Buffer>> =
            arguments.iter().map(|list| list.iter().map(|buffer| buffer.as_ptr()).collect()).collect();
        let input_lists: Vec<*const *mut abi::Buffer> = inputs.iter().map(|list| list.as_ptr()).collect();
        let mut outputs = vec![vec![std::ptr::null_mut::<abi::Buffer>(); self.num_outputs]; arguments.len()];
        let output_lists: Vec<*mut *mut abi::Buffer> = outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![std::ptr::null_mut::<abi::Event>(); arguments.len()];

        let mut options = abi::ExecuteOptions::new();
        options.launch_id = launch_id;
        options.non_donatable_input_indices = non_donatable.as_ptr();
        options.num_non_donatable_input_indices = non_donatable.len();
        let mut args = abi::LoadedExecutableExecuteArgs::new();
        args.executable = self.loaded.as_ptr();
        args.options = &raw mut options;
        args.argument_lists = input_lists.as_ptr();
        args.num_devices = arguments.len();
        args.num_args = num_args;
        args.output_lists = output_lists.as_ptr();
        args.device_complete_events = events.as_mut_ptr();
        // SAFETY: every object is live and of one client; there are as many lists as devices, all of the lengths
        // given, and the output lists have room for what the executable said it returns.
        unsafe { self.loaded.api().call::<abi::LoadedExecutable_Execute>(&mut args) }?;
        self.adopt(&outputs, &events)
    }

    /// What the plugin cannot check for itself, because it would already have gone wrong.
    fn check_arguments(&self, arguments: &[Vec<&Owned<abi::Buffer>>], num_args: usize) -> Result<()> {
        if arguments.len() != self.devices.len() {
            return Err(Error::Argument(format!(
                "the executable runs on {} device(s), but argument lists for {} were given",
                self.devices.len(),
                arguments.len()
            )));
        }
        let client = self.loaded.client();
        for (device, list) in arguments.iter().enumerate() {
            if list.len() != num_args {
                return Err(Error::Argument(format!(
                    "the argument lists differ in length: {num_args} for device 0, {} for device {device}",
                    list.len()
                )));
            }
            let foreign =
                list.iter().position(|buffer| !client.as_ref().is_some_and(|client| buffer.belongs_to(client)));
            if let Some(index) = foreign {
                return Err(Error::Argument(format!(
                    "argument {index} for device {device} belongs to another client than the executable"
                )));
            }
        }
        Ok(())
    }

    /// Takes ownership of everything that was returned before any of it is judged, so that nothing leaks.
    fn adopt(&self, outputs: &[Vec<*mut abi::Buffer>], events: &[*mut abi::Event]) -> Result<Launched> {
        let api = self.loaded.api();
        let own_buffer = |&pointer: &*mut abi::Buffer| {
            let pointer = api.non_null::<abi::LoadedExecutable_Execute, _>(pointer, "output buffer")?;
            // SAFETY: the plugin has just handed us this buffer.
            Ok(unsafe { Owned::new(api, pointer, self.loaded.client()) })
        };
        let own_event = |&pointer: &*mut abi::Event| {
            let pointer = api.non_null::<abi::LoadedExecutable_Execute, _>(pointer, "completion event")?;
            // SAFETY: the plugin has just handed us this event.
            Ok(unsafe { Owned::new(api, pointer, self.loaded.client()) })
        };
        let outputs: Vec<Vec<Result<_>>> = outputs.iter().map(|list| list.iter().map(own_buffer).collect()).collect();
        let events: Vec<Result<_>> = events.iter().map(own_event).collect();
        Ok(Launched {
            outputs: outputs.into_iter().map(|list| list.into_iter().collect()).collect::<Result<_>>()?,
            events: events.into_iter().collect::<Result<_>>()?,
        })
    }
}
