//! Compiled programs, on a device or for one that is not here.

use std::fmt;

use crate::client::Program;
use crate::error::Result;
use crate::options::CompileOptions;
use crate::plugin::Plugin;
use crate::sys;
use crate::value::NamedValue;

/// Devices that a plugin can compile for, whether or not they are here.
pub struct Topology {
    raw: sys::Topology,
    platform_name: String,
    platform_version: String,
    devices: Vec<TopologyDevice>,
}

/// A device of a [`Topology`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyDevice {
    /// The device's number. Device assignments are made of these.
    pub id: i32,
    /// The vendor's name of this kind of device, as in `TPU v5 lite`.
    pub kind: String,
}

/// A compiled program that can be analysed and serialised, but not executed.
pub struct Compiled {
    raw: sys::Compiled,
}

/// What the compiled program needs, per device, in bytes. A figure that the plugin does not give is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CompiledMemoryStats {
    /// Machine code.
    pub generated_code: i64,
    /// Arguments.
    pub arguments: i64,
    /// Outputs, those that take over an argument included.
    pub outputs: i64,
    /// Arguments whose memory becomes that of an output.
    pub aliased: i64,
    /// Scratch memory.
    pub temporary: i64,
    /// The largest amount in use at one time.
    pub peak: i64,
    /// Arguments, outputs and scratch memory that lie on the host.
    pub host: i64,
}

/// A program after the plugin's optimisations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptimizedProgram {
    /// The plugin's name for the format, as in `hlo_with_config` (an `HloModuleProtoWithConfig`, whose field 1 is
    /// the module).
    pub format: String,
    /// The program.
    pub code: Vec<u8>,
}

impl Topology {
    /// Describes devices by the plugin's name for them, as in `v5e:2x2` for TPUs. What options there are depends on the
    /// plugin; the CUDA plugin takes `topology` (`hosts x processes x devices`, as in `1x1x1`) and `target_config` (a
    /// `GpuTargetConfigProto` as text).
    ///
    /// # Errors
    ///
    /// The plugin's, such as a name that it does not know; the CPU plugin of API 0.81 has no topologies.
    pub fn create(plugin: &Plugin, name: &str, options: &[(&str, NamedValue)]) -> Result<Self> {
        let raw = sys::Topology::create(plugin.api(), name, options)?;
        let devices = raw.devices()?.into_iter().map(|(id, kind)| TopologyDevice { id, kind }).collect();
        Ok(Self { platform_name: raw.platform_name()?, platform_version: raw.platform_version()?, devices, raw })
    }

    /// The platform, as in `cuda`, `tpu`.
    #[must_use]
    pub fn platform_name(&self) -> &str {
        &self.platform_name
    }

    /// The platform's version, in the plugin's words.
    #[must_use]
    pub fn platform_version(&self) -> &str {
        &self.platform_version
    }

    /// All devices of it.
    #[must_use]
    pub fn devices(&self) -> &[TopologyDevice] {
        &self.devices
    }

    /// Compiles a program for these devices; no device is needed.
    ///
    /// # Errors
    ///
    /// The plugin's, such as a program that does not parse. Options that contradict each other are refused here.
    pub fn compile(&self, program: &Program<'_>, options: &CompileOptions) -> Result<Compiled> {
        let options = options.to_bytes()?;
        self.raw.compile(program.format, program.code, &options).map(|raw| Compiled { raw })
    }
}

impl Compiled {
    pub(crate) fn new(raw: sys::Compiled) -> Self {
        Self { raw }
    }

    /// The name of the program.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn name(&self) -> Result<String> {
        self.raw.name()
    }

    /// A string that is equal for equal compiled programs.
    ///
    /// # Errors
    ///
    /// The plugin's; not every plugin has fingerprints.
    pub fn fingerprint(&self) -> Result<String> {
        self.raw.fingerprint()
    }

    /// What the program needs in memory.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        let raw = self.raw.memory_stats()?;
        let host = [
            raw.host_generated_code_size_in_bytes,
            raw.host_argument_size_in_bytes,
            raw.host_output_size_in_bytes,
            raw.host_temp_size_in_bytes,
        ];
        Ok(CompiledMemoryStats {
            generated_code: raw.generated_code_size_in_bytes,
            arguments: raw.argument_size_in_bytes,
            outputs: raw.output_size_in_bytes,
            aliased: raw.alias_size_in_bytes,
            temporary: raw.temp_size_in_bytes,
            peak: raw.peak_memory_in_bytes,
            host: host.into_iter().fold(0, i64::saturating_add),
        })
    }

    /// The plugin's estimate of the work, such as `flops` and `bytes accessed`.
    ///
    /// # Errors
    ///
    /// The plugin's; not every plugin has cost analysis.
    pub fn cost_analysis(&self) -> Result<Vec<(String, NamedValue)>> {
        self.raw.cost_analysis()
    }

    /// The program after the plugin's optimisations.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn optimized_program(&self) -> Result<OptimizedProgram> {
        let (format, code) = self.raw.optimized_program()?;
        Ok(OptimizedProgram { format, code })
    }

    /// The compiled program as bytes, for [`Client::deserialize_executable`](crate::Client::deserialize_executable).
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        self.raw.serialize()
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology")
            .field("platform_name", &self.platform_name)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").field("name", &self.name().ok()).finish_non_exhaustive()
    }
}
