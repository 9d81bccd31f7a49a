//! Arrays on a device.

use std::fmt;
use std::sync::OnceLock;

use crate::element_type::ElementType;
use crate::error::Result;
use crate::event::Event;
use crate::sys::{self, Owned, abi};

/// An array on a device. Its memory is freed on drop.
///
/// A buffer may exist before its value does: reading it waits. An execution that failed shows up when its outputs
/// are read.
pub struct Buffer {
    raw: Owned<abi::Buffer>,
    element_type: OnceLock<ElementType>,
    dims: OnceLock<Vec<i64>>,
}

impl Buffer {
    pub(crate) fn new(raw: Owned<abi::Buffer>) -> Self {
        Self { raw, element_type: OnceLock::new(), dims: OnceLock::new() }
    }

    pub(crate) fn raw(&self) -> &Owned<abi::Buffer> {
        &self.raw
    }

    /// The type of one element.
    ///
    /// # Errors
    ///
    /// The plugin's, or a type that this crate does not know.
    pub fn element_type(&self) -> Result<ElementType> {
        match self.element_type.get() {
            Some(known) => Ok(*known),
            None => self.raw.element_type().map(|found| *self.element_type.get_or_init(|| found)),
        }
    }

    /// The dimensions, outermost first; empty for a scalar.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn dims(&self) -> Result<&[i64]> {
        match self.dims.get() {
            Some(known) => Ok(known),
            None => self.raw.dims().map(|found| self.dims.get_or_init(|| found).as_slice()),
        }
    }

    /// Bytes of the array on the host, dense and row-major.
    ///
    /// # Errors
    ///
    /// As [`Buffer::dims`].
    pub fn size_bytes(&self) -> Result<usize> {
        self.element_type()?.byte_count(self.dims()?)
    }

    /// Whether the device memory is gone, because an execution took it ([donation](crate::Executable#donation)) or
    /// by [`Buffer::delete`].
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn is_deleted(&self) -> Result<bool> {
        self.raw.is_deleted()
    }

    /// Frees the device memory now, whoever else holds a reference. Later uses are errors.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn delete(&self) -> Result<()> {
        self.raw.delete()
    }

    /// Fires when the buffer holds its value, or will never hold one.
    ///
    /// # Errors
    ///
    /// The plugin's, or the buffer is deleted.
    pub fn ready_event(&self) -> Result<Event> {
        self.raw.ready_event().map(Event::new)
    }

    /// Copies the array to `destination`, dense and row-major, and returns when it is there.
    ///
    /// # Errors
    ///
    /// `destination` must have exactly [`Buffer::size_bytes`]. Else the plugin's: the buffer is deleted, or what
    /// should have computed it failed.
    pub fn to_host(&self, destination: &mut [u8]) -> Result<()> {
        self.raw.copy_to_host(destination)
    }

    /// Starts copying the array to the host, and returns at once. For reading late what a step left behind.
    ///
    /// # Errors
    ///
    /// As [`Buffer::to_host`].
    pub fn start_to_host(&self) -> Result<HostCopy> {
        self.raw.start_copy_to_host().map(|raw| HostCopy { raw })
    }

    /// The array's bytes, dense and row-major, in the machine's byte order.
    ///
    /// # Errors
    ///
    /// As [`Buffer::to_host`].
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        self.start_to_host()?.wait()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.element_type(), self.dims()) {
            (Ok(element_type), Ok(dims)) => write!(f, "Buffer({element_type}{dims:?})"),
            _ => f.write_str("Buffer(unknown)"),
        }
    }
}

/// A copy to the host under way. It may outlive the buffer. Dropping it waits for the copy to end.
pub struct HostCopy {
    raw: sys::HostCopy,
}

impl HostCopy {
    /// Whether the copy is done, with or without success. Does not block.
    ///
    /// # Errors
    ///
    /// The plugin's, where it cannot tell.
    pub fn is_ready(&self) -> Result<bool> {
        self.raw.is_ready()
    }

    /// Blocks until the copy is done and returns its bytes, dense and row-major.
    ///
    /// # Errors
    ///
    /// The error with which the copy, or what computed the buffer, ended.
    pub fn wait(self) -> Result<Vec<u8>> {
        self.raw.wait()
    }
}

impl fmt::Debug for HostCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostCopy").finish_non_exhaustive()
    }
}
