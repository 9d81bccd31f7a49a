//! Opening a shared library and asking it for its function table.

use std::path::Path;

use super::abi::TableHead;
use super::api::Api;
use crate::error::LoadFailure;

/// The table of the plugin in this file. The library is never unloaded: its threads and the objects it made
/// may outlive every handle that we hold.
pub(crate) fn open(path: &Path) -> Result<Api, LoadFailure> {
    // SAFETY: loading runs the library's initialisers. That is what the caller asks for by naming a plugin; nothing
    // short of not loading it could make that safer.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| LoadFailure::Linker(error.to_string()))?;
    // Leaked at once, so that the table is valid for the life of the process on every path below.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    // SAFETY: this is the signature that the PJRT C API gives this symbol.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const TableHead>(b"GetPjrtApi\0") }
        .map_err(|_| LoadFailure::NoEntryPoint)?;
    // SAFETY: the entry point takes nothing and returns null or a table that is never freed.
    unsafe { Api::new(entry()) }
}
