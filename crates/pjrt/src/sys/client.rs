//! Plugins, clients and devices.

use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, Args, Function};
use super::api::Api;
use super::object::{ClientHandle, Owned};
use super::value;
use crate::error::Result;
use crate::value::NamedValue;

/// A device of a client, which it keeps alive: a device lives as long as its client.
#[derive(Clone)]
pub(crate) struct DeviceRef {
    pointer: NonNull<abi::Device>,
    client: ClientHandle,
}

// SAFETY: a device is immutable data of its client, which is thread-safe.
unsafe impl Send for DeviceRef {}
// SAFETY: as above.
unsafe impl Sync for DeviceRef {}

/// What a plugin says about a device.
pub(crate) struct DeviceFacts {
    pub(crate) id: i32,
    pub(crate) process_index: i32,
    pub(crate) kind: String,
    pub(crate) description: String,
}

impl Api {
    /// One-time setup, before any other function.
    pub(crate) fn initialize(self) -> Result<()> {
        // SAFETY: the struct has no pointer of ours.
        unsafe { self.call::<abi::Plugin_Initialize>(&mut abi::NoArgs::new()) }
    }

    pub(crate) fn plugin_attributes(self) -> Result<Vec<(String, NamedValue)>> {
        let mut args = abi::PluginAttributesArgs::new();
        // SAFETY: the struct has outputs only; they live as long as the process and are copied.
        unsafe {
            self.call::<abi::Plugin_Attributes>(&mut args)?;
            value::from_raw::<abi::Plugin_Attributes>(self, args.attributes, args.num_attributes)
        }
    }

    pub(crate) fn create_client(self, options: &[(&str, NamedValue)]) -> Result<ClientHandle> {
        let options = value::to_raw(options);
        let mut args = abi::ClientCreateArgs::new();
        args.create_options = options.as_ptr();
        args.num_options = options.len();
        // SAFETY: the options live until the call returns; the callbacks are null, which PJRT allows.
        unsafe { self.call::<abi::Client_Create>(&mut args) }?;
        let client = self.non_null::<abi::Client_Create, _>(args.client, "client")?;
        // SAFETY: the plugin has just made this client for us.
        Ok(Arc::new(unsafe { Owned::new(self, client, None) }))
    }

    /// A string that `F` returns, owned by `object`.
    ///
    /// # Safety
    ///
    /// `object` is live.
    pub(super) unsafe fn string_of<F, T>(self, object: *mut T, what: &str) -> Result<String>
    where
        F: Function<Args = abi::StringArgs<T>>,
    {
        let mut args = abi::StringArgs::new();
        args.object = object;
        // SAFETY: the object is live, and the string, which it owns, is copied at once.
        unsafe {
            self.call::<F>(&mut args)?;
            self.string::<F>(args.string, args.string_size, what)
        }
    }

    /// An `int` that `F` returns.
    ///
    /// # Safety
    ///
    /// `object` is live.
    pub(super) unsafe fn int_of<F, T>(self, object: *mut T) -> Result<i32>
    where
        F: Function<Args = abi::IntArgs<T>>,
    {
        let mut args = abi::IntArgs::new();
        args.object = object;
        // SAFETY: the object is live.
        unsafe { self.call::<F>(&mut args) }?;
        Ok(args.value)
    }

    /// The devices that `F` lists for `object`.
    ///
    /// # Safety
    ///
    /// `object` is live and belongs to `client`.
    pub(super) unsafe fn devices_of<F, T>(self, object: *mut T, client: &ClientHandle) -> Result<Vec<DeviceRef>>
    where
        F: Function<Args = abi::DevicesArgs<T>>,
    {
        let mut args = abi::DevicesArgs::new();
        args.object = object;
        // SAFETY: the object is live, and the list, which it owns, is copied at once.
        let devices = unsafe {
            self.call::<F>(&mut args)?;
            self.slice::<F, _>(args.devices, args.num_devices, "devices")?
        };
        devices
            .iter()
            .map(|&device| {
                let pointer = self.non_null::<F, _>(device, "device")?;
                Ok(DeviceRef { pointer, client: Arc::clone(client) })
            })
            .collect()
    }
}

impl Owned<abi::Client> {
    pub(crate) fn platform_name(&self) -> Result<String> {
        // SAFETY: the client is live.
        unsafe { self.api().string_of::<abi::Client_PlatformName, _>(self.as_ptr(), "platform name") }
    }

    pub(crate) fn platform_version(&self) -> Result<String> {
        // SAFETY: the client is live.
        unsafe { self.api().string_of::<abi::Client_PlatformVersion, _>(self.as_ptr(), "platform version") }
    }
}

/// All devices that `client` sees, those of other processes included.
pub(crate) fn devices(client: &ClientHandle) -> Result<Vec<DeviceRef>> {
    // SAFETY: the client is live.
    unsafe { client.api().devices_of::<abi::Client_Devices, _>(client.as_ptr(), client) }
}

/// The devices that `client` can run on.
pub(crate) fn addressable_devices(client: &ClientHandle) -> Result<Vec<DeviceRef>> {
    // SAFETY: the client is live.
    unsafe { client.api().devices_of::<abi::Client_AddressableDevices, _>(client.as_ptr(), client) }
}

impl DeviceRef {
    pub(crate) fn as_ptr(&self) -> *mut abi::Device {
        self.pointer.as_ptr()
    }

    pub(crate) fn belongs_to(&self, client: &ClientHandle) -> bool {
        Arc::ptr_eq(&self.client, client)
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        self.pointer == other.pointer && Arc::ptr_eq(&self.client, &other.client)
    }

    pub(crate) fn facts(&self) -> Result<DeviceFacts> {
        let api = self.client.api();
        let mut args = abi::DeviceGetDescriptionArgs::new();
        args.device = self.as_ptr();
        // SAFETY: the device lives as long as its client, which `self` keeps.
        unsafe { api.call::<abi::Device_GetDescription>(&mut args) }?;
        let description =
            api.non_null::<abi::Device_GetDescription, _>(args.device_description, "device description")?.as_ptr();
        // SAFETY: the description lives as long as its device.
        unsafe {
            Ok(DeviceFacts {
                id: api.int_of::<abi::DeviceDescription_Id, _>(description)?,
                process_index: api.int_of::<abi::DeviceDescription_ProcessIndex, _>(description)?,
                kind: api.string_of::<abi::DeviceDescription_Kind, _>(description, "device kind")?,
                description: api.string_of::<abi::DeviceDescription_ToString, _>(description, "device name")?,
            })
        }
    }

    /// The number that the hardware has on this host, where it has one.
    pub(crate) fn local_hardware_id(&self) -> Result<Option<i32>> {
        // SAFETY: the device lives as long as its client.
        let id = unsafe { self.client.api().int_of::<abi::Device_LocalHardwareId, _>(self.as_ptr()) }?;
        Ok((id >= 0).then_some(id))
    }
}
