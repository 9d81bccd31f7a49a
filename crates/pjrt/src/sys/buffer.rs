//! Buffers: host to device, device to host, facts.

use std::sync::Arc;

use super::abi::{self, Args};
use super::client::DeviceRef;
use super::event;
use super::object::{ClientHandle, Owned};
use crate::element_type::ElementType;
use crate::error::{Error, Result};

/// Copies `data` to `device`. The plugin has read it by the time this returns.
pub(crate) fn buffer_from_host(
    client: &ClientHandle,
    data: &[u8],
    element_type: ElementType,
    dims: &[i64],
    device: &DeviceRef,
) -> Result<Owned<abi::Buffer>> {
    let needed = element_type.byte_count(dims)?;
    if data.len() != needed {
        return Err(Error::Argument(format!(
            "an array {element_type}{dims:?} has {needed} bytes, but {} were given",
            data.len()
        )));
    }
    if !device.belongs_to(client) {
        return Err(Error::Argument(
            "the device belongs to another client; take one of this client's devices".to_owned(),
        ));
    }
    let api = client.api();
    let mut args = abi::ClientBufferFromHostBufferArgs::new();
    args.client = client.as_ptr();
    args.data = data.as_ptr().cast();
    args.element_type = element_type.code();
    args.dims = dims.as_ptr();
    args.num_dims = dims.len();
    args.host_buffer_semantics = abi::IMMUTABLE_ONLY_DURING_CALL;
    args.device = device.as_ptr();
    // SAFETY: client and device are live, `data` and `dims` outlive the call and have the lengths given, and with
    // these semantics the plugin does not look at `data` after it has returned.
    unsafe {
        api.call::<abi::Client_BufferFromHostBuffer>(&mut args)?;
        // The event says when `data` may be freed, which it already may.
        drop(event::adopt(api, args.done_with_host_buffer, Some(Arc::clone(client))));
        let buffer = api.non_null::<abi::Client_BufferFromHostBuffer, _>(args.buffer, "buffer")?;
        Ok(Owned::new(api, buffer, Some(Arc::clone(client))))
    }
}

impl Owned<abi::Buffer> {
    pub(crate) fn element_type(&self) -> Result<ElementType> {
        let mut args = abi::BufferElementTypeArgs::new();
        args.buffer = self.as_ptr();
        // SAFETY: the buffer is live.
        unsafe { self.api().call::<abi::Buffer_ElementType>(&mut args) }?;
        ElementType::from_code(args.element_type).ok_or_else(|| {
            self.api()
                .broken::<abi::Buffer_ElementType>(&format!("returned the unknown element type {}", args.element_type))
        })
    }

    pub(crate) fn dims(&self) -> Result<Vec<i64>> {
        let mut args = abi::BufferDimensionsArgs::new();
        args.buffer = self.as_ptr();
        // SAFETY: the buffer is live, and the list, which it owns, is copied at once.
        unsafe {
            self.api().call::<abi::Buffer_Dimensions>(&mut args)?;
            Ok(self.api().slice::<abi::Buffer_Dimensions, _>(args.dims, args.num_dims, "dimensions")?.to_vec())
        }
    }

    pub(crate) fn is_deleted(&self) -> Result<bool> {
        let mut args = abi::BoolArgs::new();
        args.object = self.as_ptr();
        // SAFETY: the buffer is live (a deleted buffer still is an object).
        unsafe { self.api().call::<abi::Buffer_IsDeleted>(&mut args) }?;
        Ok(args.value != 0)
    }

    /// Frees the device memory; the object stays.
    pub(crate) fn delete(&self) -> Result<()> {
        let mut args = abi::ObjectArgs::new();
        args.object = self.as_ptr();
        // SAFETY: the buffer is live.
        unsafe { self.api().call::<abi::Buffer_Delete>(&mut args) }
    }

    pub(crate) fn ready_event(&self) -> Result<Owned<abi::Event>> {
        let mut args = abi::BufferReadyEventArgs::new();
        args.buffer = self.as_ptr();
        // SAFETY: the buffer is live, and the event is handed to us.
        unsafe {
            self.api().call::<abi::Buffer_ReadyEvent>(&mut args)?;
            let event = self.api().non_null::<abi::Buffer_ReadyEvent, _>(args.event, "event")?;
            Ok(Owned::new(self.api(), event, self.client()))
        }
    }

    /// Copies the array to `destination` and returns when it is there.
    pub(crate) fn copy_to_host(&self, destination: &mut [u8]) -> Result<()> {
        let needed = self.element_type()?.byte_count(&self.dims()?)?;
        if destination.len() != needed {
            return Err(Error::Argument(format!(
                "the buffer holds {needed} bytes, but the destination has room for {}",
                destination.len()
            )));
        }
        // SAFETY: `destination` is borrowed until this function returns, which is after the copy has ended.
        unsafe { self.start_copy(destination.as_mut_ptr(), destination.len()) }?.wait()
    }

    /// Starts copying the array to memory of its own.
    pub(crate) fn start_copy_to_host(&self) -> Result<HostCopy> {
        let size = self.element_type()?.byte_count(&self.dims()?)?;
        let mut data = Vec::new();
        data.try_reserve_exact(size)
            .map_err(|_| Error::Argument(format!("there is no memory for a copy of {size} bytes")))?;
        data.resize(size, 0);
        // SAFETY: the allocation lives in the `HostCopy`, which does not let go of it before the copy has ended; it
        // does not move when the vector does.
        let event = unsafe { self.start_copy(data.as_mut_ptr(), size) }?;
        Ok(HostCopy { data, event })
    }

    /// # Safety
    ///
    /// `destination` has room for `size` bytes, and stays allocated and untouched until the event has fired.
    unsafe fn start_copy(&self, destination: *mut u8, size: usize) -> Result<Owned<abi::Event>> {
        let api = self.api();
        // A copy that cannot be awaited must not begin: nobody could tell when the memory is free again.
        api.require::<abi::Event_Await>()?;
        let dims = self.dims()?;
        let mut minor_to_major: Vec<i64> = (0..).take(dims.len()).collect();
        minor_to_major.reverse();
        // Without a layout the bytes would come in the device's own order, which on accelerators need not be row-major.
        let mut layout = abi::MemoryLayout::new();
        layout.tiled = abi::MemoryLayoutTiled::new();
        layout.tiled.minor_to_major = minor_to_major.as_ptr();
        layout.tiled.minor_to_major_size = minor_to_major.len();
        layout.kind = abi::LAYOUT_TILED;
        let mut args = abi::BufferToHostBufferArgs::new();
        args.src = self.as_ptr();
        args.host_layout = &raw mut layout;
        args.dst = destination.cast();
        args.dst_size = size;
        // SAFETY: the buffer is live, the layout outlives the call, and the destination is as the caller promises.
        unsafe {
            api.call::<abi::Buffer_ToHostBuffer>(&mut args)?;
            let event = api.non_null::<abi::Buffer_ToHostBuffer, _>(args.event, "event")?;
            Ok(Owned::new(api, event, self.client()))
        }
    }
}

/// A copy to the host under way. Dropping it waits for the copy, for the plugin writes to its memory.
pub(crate) struct HostCopy {
    data: Vec<u8>,
    event: Owned<abi::Event>,
}

impl HostCopy {
    pub(crate) fn is_ready(&self) -> Result<bool> {
        self.event.is_ready()
    }

    pub(crate) fn wait(mut self) -> Result<Vec<u8>> {
        self.event.wait()?;
        Ok(std::mem::take(&mut self.data))
    }
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        // After `wait` this returns at once. A failed copy is over as well, and whoever wanted its error has called
        // `wait`.
        if let Err(error) = self.event.wait() {
            tracing::debug!(%error, "a copy to the host that nobody waited for has failed");
        }
    }
}
