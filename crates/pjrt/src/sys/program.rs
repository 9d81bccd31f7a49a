//! Programs on no device: compiled ahead of time for a topology, or the part of a loaded one that can be analysed.

use super::abi::{self, Args};
use super::api::Api;
use super::object::Owned;
use super::value;
use crate::error::Result;
use crate::value::NamedValue;

/// A compiled program. Analyses and serialisation need no device.
pub(crate) struct Compiled {
    executable: Owned<abi::Executable>,
}

/// A description of devices that need not be there.
pub(crate) struct Topology {
    raw: Owned<abi::TopologyDescription>,
}

/// `code` in `format` as the plugin takes it. The result must not outlive either.
pub(super) fn program(format: &str, code: &[u8]) -> abi::Program {
    let mut program = abi::Program::new();
    program.code = code.as_ptr().cast_mut().cast();
    program.code_size = code.len();
    program.format = format.as_ptr().cast();
    program.format_size = format.len();
    program
}

impl Topology {
    pub(crate) fn create(api: Api, name: &str, options: &[(&str, NamedValue)]) -> Result<Self> {
        let options = value::to_raw(options);
        let mut args = abi::TopologyDescriptionCreateArgs::new();
        args.topology_name = name.as_ptr().cast();
        args.topology_name_size = name.len();
        args.create_options = options.as_ptr();
        args.num_options = options.len();
        // SAFETY: name and options live until the call returns.
        unsafe { api.call::<abi::TopologyDescription_Create>(&mut args) }?;
        let raw = api.non_null::<abi::TopologyDescription_Create, _>(args.topology, "topology")?;
        // SAFETY: the plugin has just made this topology for us.
        Ok(Self { raw: unsafe { Owned::new(api, raw, None) } })
    }

    pub(crate) fn platform_name(&self) -> Result<String> {
        // SAFETY: the topology is live.
        unsafe {
            self.raw.api().string_of::<abi::TopologyDescription_PlatformName, _>(self.raw.as_ptr(), "platform name")
        }
    }

    pub(crate) fn platform_version(&self) -> Result<String> {
        let api = self.raw.api();
        // SAFETY: the topology is live.
        unsafe { api.string_of::<abi::TopologyDescription_PlatformVersion, _>(self.raw.as_ptr(), "platform version") }
    }

    /// Id and kind of every device.
    pub(crate) fn devices(&self) -> Result<Vec<(i32, String)>> {
        let api = self.raw.api();
        let mut args = abi::TopologyDescriptionGetDeviceDescriptionsArgs::new();
        args.topology = self.raw.as_ptr();
        // SAFETY: the topology is live; the descriptions live as long as it, and what they say is copied at once.
        unsafe {
            api.call::<abi::TopologyDescription_GetDeviceDescriptions>(&mut args)?;
            let descriptions = api.slice::<abi::TopologyDescription_GetDeviceDescriptions, _>(
                args.descriptions,
                args.num_descriptions,
                "device descriptions",
            )?;
            descriptions
                .iter()
                .map(|&description| {
                    let description = api
                        .non_null::<abi::TopologyDescription_GetDeviceDescriptions, _>(
                            description,
                            "device description",
                        )?
                        .as_ptr();
                    Ok((
                        api.int_of::<abi::DeviceDescription_Id, _>(description)?,
                        api.string_of::<abi::DeviceDescription_Kind, _>(description, "device kind")?,
                    ))
                })
                .collect()
        }
    }

    /// Compiles `code` for these devices.
    pub(crate) fn compile(&self, format: &str, code: &[u8], options: &[u8]) -> Result<Compiled> {
        let api = self.raw.api();
        let program = program(format, code);
        let mut args = abi::CompileArgs::new();
        args.topology = self.raw.as_ptr();
        args.program = &raw const program;
        args.compile_options = options.as_ptr().cast();
        args.compile_options_size = options.len();
        // SAFETY: the topology is live, program and options outlive the call, and no client is allowed.
        unsafe { api.call::<abi::Compile>(&mut args) }?;
        let executable = api.non_null::<abi::Compile, _>(args.executable, "executable")?;
        // SAFETY: the plugin has just made this executable for us.
        Ok(Compiled::new(unsafe { Owned::new(api, executable, None) }))
    }
}

impl Compiled {
    pub(super) fn new(executable: Owned<abi::Executable>) -> Self {
        Self { executable }
    }

    pub(crate) fn name(&self) -> Result<String> {
        // SAFETY: the executable is live.
        unsafe { self.executable.api().string_of::<abi::Executable_Name, _>(self.executable.as_ptr(), "name") }
    }

    pub(crate) fn fingerprint(&self) -> Result<String> {
        let api = self.executable.api();
        // SAFETY: the executable is live.
        unsafe { api.string_of::<abi::Executable_Fingerprint, _>(self.executable.as_ptr(), "fingerprint") }
    }

    pub(crate) fn cost_analysis(&self) -> Result<Vec<(String, NamedValue)>> {
        let api = self.executable.api();
        let mut args = abi::ExecutableGetCostAnalysisArgs::new();
        args.executable = self.executable.as_ptr();
        // SAFETY: the executable is live; the properties live as long as it and are copied at once.
        unsafe {
            api.call::<abi::Executable_GetCostAnalysis>(&mut args)?;
            value::from_raw::<abi::Executable_GetCostAnalysis>(api, args.properties, args.num_properties)
        }
    }

    pub(crate) fn memory_stats(&self) -> Result<abi::ExecutableGetCompiledMemoryStatsArgs> {
        let mut args = abi::ExecutableGetCompiledMemoryStatsArgs::new();
        args.executable = self.executable.as_ptr();
        // SAFETY: the executable is live.
        unsafe { self.executable.api().call::<abi::Executable_GetCompiledMemoryStats>(&mut args) }?;
        Ok(args)
    }

    /// Format and bytes of the program after optimisation.
    pub(crate) fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        let api = self.executable.api();
        let mut program = abi::Program::new();
        let mut args = abi::ExecutableOptimizedProgramArgs::new();
        args.executable = self.executable.as_ptr();
        args.program = &raw mut program;
        // SAFETY: the executable is live; with null code this call only asks for the size.
        unsafe { api.call::<abi::Executable_OptimizedProgram>(&mut args) }?;
        let size = program.code_size;
        let mut code = Vec::new();
        code.try_reserve_exact(size)
            .map_err(|_| api.broken::<abi::Executable_OptimizedProgram>(&format!("wants room for {size} bytes")))?;
        code.resize(size, 0_u8);
        if size > 0 {
            program.code = code.as_mut_ptr().cast();
            // SAFETY: the code has the room that the plugin asked for.
            unsafe { api.call::<abi::Executable_OptimizedProgram>(&mut args) }?;
        }
        // SAFETY: the format is owned by the executable, and copied at once.
        let format =
            unsafe { api.string::<abi::Executable_OptimizedProgram>(program.format, program.format_size, "format") }?;
        Ok((format, code))
    }

    pub(crate) fn serialize(&self) -> Result<Vec<u8>> {
        let api = self.executable.api();
        let mut args = abi::ExecutableSerializeArgs::new();
        args.executable = self.executable.as_ptr();
        // SAFETY: the executable is live. The bytes are copied before what backs them is released, which happens
        // exactly once.
        unsafe {
            api.call::<abi::Executable_Serialize>(&mut args)?;
            let bytes = api
                .slice::<abi::Executable_Serialize, u8>(
                    args.serialized_bytes.cast(),
                    args.serialized_bytes_size,
                    "serialized bytes",
                )
                .map(<[u8]>::to_vec);
            if let Some(deleter) = args.serialized_executable_deleter {
                deleter(args.serialized_executable);
            }
            bytes
        }
    }
}
