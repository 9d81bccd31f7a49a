//! Clients and their devices.

use std::fmt;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::element_type::{Element, ElementType};
use crate::error::{Error, Result};
use crate::executable::Executable;
use crate::options::CompileOptions;
use crate::plugin::Plugin;
use crate::sys::{self, ClientHandle, DeviceRef};
use crate::value::NamedValue;

/// A connection to the devices of one plugin. Clones share it.
#[derive(Clone)]
pub struct Client {
    raw: ClientHandle,
    facts: Arc<Facts>,
}

/// Everything about a client that never changes.
struct Facts {
    plugin: Plugin,
    platform_name: String,
    platform_version: String,
    devices: Vec<Device>,
    /// Those of `devices` that this process can run on.
    addressable: Vec<Device>,
}

/// A device of a client.
#[derive(Clone)]
pub struct Device {
    raw: DeviceRef,
    id: i32,
    process_index: i32,
    kind: String,
    description: String,
    local_hardware_id: Option<i32>,
}

/// A program to compile, in one of the formats that the plugin takes.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// `hlo` for a serialised `HloModuleProto`, `mlir` for StableHLO as text or bytecode.
    pub format: &'a str,
    /// The program.
    pub code: &'a [u8],
}

impl<'a> Program<'a> {
    /// A serialised `HloModuleProto`.
    #[must_use]
    pub fn hlo(code: &'a [u8]) -> Self {
        Self { format: "hlo", code }
    }

    /// StableHLO, as text or portable bytecode.
    #[must_use]
    pub fn mlir(code: &'a [u8]) -> Self {
        Self { format: "mlir", code }
    }
}

impl Client {
    /// Creates a client. What options there are depends on the plugin; the CPU plugin knows `cpu_device_count` (an
    /// `i64`, 4 if not given).
    ///
    /// # Errors
    ///
    /// The plugin's, such as an option that it does not know or a device that is in use.
    pub fn create(plugin: &Plugin, options: &[(&str, NamedValue)]) -> Result<Self> {
        let raw = plugin.api().create_client(options)?;
        let addressable = sys::addressable_devices(&raw)?
            .into_iter()
            .map(|device| Device::new(device, true))
            .collect::<Result<Vec<_>>>()?;
        let devices = sys::devices(&raw)?
            .into_iter()
            .map(|device| match addressable.iter().find(|known| known.raw.same(&device)) {
                Some(known) => Ok(known.clone()),
                None => Device::new(device, false),
            })
            .collect::<Result<_>>()?;
        let facts = Facts {
            plugin: plugin.clone(),
            platform_name: raw.platform_name()?,
            platform_version: raw.platform_version()?,
            devices,
            addressable,
        };
        Ok(Self { raw, facts: Arc::new(facts) })
    }

    /// The plugin behind this client.
    #[must_use]
    pub fn plugin(&self) -> &Plugin {
        &self.facts.plugin
    }

    /// The platform, as in `cpu`, `cuda`, `tpu`.
    #[must_use]
    pub fn platform_name(&self) -> &str {
        &self.facts.platform_name
    }

    /// The platform's version, in the plugin's words.
    #[must_use]
    pub fn platform_version(&self) -> &str {
        &self.facts.platform_version
    }

    /// All devices that the client sees, those of other processes included.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.facts.devices
    }

    /// The devices that this process can run on.
    #[must_use]
    pub fn addressable_devices(&self) -> &[Device] {
        &self.facts.addressable
    }

    /// The addressable device at this position.
    ///
    /// # Errors
    ///
    /// There are fewer devices.
    pub fn device(&self, index: usize) -> Result<&Device> {
        let devices = self.addressable_devices();
        devices.get(index).ok_or_else(|| {
            Error::Argument(format!(
                "there is no device {index}: the client has {} addressable device(s)",
                devices.len()
            ))
        })
    }

    /// Compiles a program for the devices of this client and loads it on them.
    ///
    /// # Errors
    ///
    /// The plugin's, such as a program that does not parse. Options that contradict each other are refused here.
    pub fn compile(&self, program: &Program<'_>, options: &CompileOptions) -> Result<Executable> {
        let options = options.to_bytes()?;
        Executable::new(sys::compile(&self.raw, program.format, program.code, &options)?)
    }

    /// Loads what [`Executable::serialize`] wrote, on the same platform and with the same version of the plugin.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn deserialize_executable(&self, serialized: &[u8]) -> Result<Executable> {
        Executable::new(sys::deserialize(&self.raw, serialized)?)
    }

    /// Copies a dense row-major array to a device. `data` may be reused as soon as this returns; the transfer
    /// itself may still be under way, and whatever uses the buffer waits for it.
    ///
    /// # Errors
    ///
    /// `data` must have exactly the bytes of `dims` elements (types narrower than a byte take a whole one), and the
    /// device must be this client's. Else the plugin's, such as no memory.
    pub fn buffer_from_host(
        &self,
        data: &[u8],
        element_type: ElementType,
        dims: &[i64],
        device: &Device,
    ) -> Result<Buffer> {
        sys::buffer_from_host(&self.raw, data, element_type, dims, &device.raw).map(Buffer::new)
    }

    /// Copies one number to a device, as an array of rank zero.
    ///
    /// # Errors
    ///
    /// As [`Client::buffer_from_host`].
    pub fn scalar<E: Element>(&self, value: E, device: &Device) -> Result<Buffer> {
        self.buffer_from_host(&value.to_bytes(), E::TYPE, &[], device)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("platform_name", &self.facts.platform_name)
            .field("devices", &self.facts.devices)
            .finish_non_exhaustive()
    }
}

impl Device {
    fn new(raw: DeviceRef, addressable: bool) -> Result<Self> {
        let facts = raw.facts()?;
        // Only a device of this process has a number here.
        let local_hardware_id = if addressable { raw.local_hardware_id()? } else { None };
        Ok(Self {
            raw,
            id: facts.id,
            process_index: facts.process_index,
            kind: facts.kind,
            description: facts.description,
            local_hardware_id,
        })
    }

    /// The device's number, unique among all devices of the client. Device assignments are made of these.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.id
    }

    /// The process that the device belongs to.
    #[must_use]
    pub fn process_index(&self) -> i32 {
        self.process_index
    }

    /// The vendor's name of this kind of device, as in `cpu` or `TPU v5 lite`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The device in the plugin's words, for a person to read.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The number that the hardware has on this host, where it has one (a CUDA device number, say).
    #[must_use]
    pub fn local_hardware_id(&self) -> Option<i32> {
        self.local_hardware_id
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}
