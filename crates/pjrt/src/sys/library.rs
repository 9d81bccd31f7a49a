//! Opening a shared library and asking it for its function table.

use std::ffi::OsStr;
use std::path::Path;

use super::abi::TableHead;
use super::api::Api;
use crate::error::LoadFailure;

/// The table of the plugin in this file. The library is never unloaded: its threads and the objects it made
/// may outlive every handle that we hold.
pub(crate) fn open(path: &Path) -> Result<Api, LoadFailure> {
    let library = load(path.as_ref())?;
    // SAFETY: this is the signature that the PJRT C API gives this symbol.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const TableHead>(b"GetPjrtApi\0") }
        .map_err(|_| LoadFailure::NoEntryPoint)?;
    // SAFETY: the entry point takes nothing and returns null or a table that is never freed.
    unsafe { Api::new(entry()) }
}

/// Loads a library that others will ask for by its name.
///
/// Its symbols are not made global: the linker finds a loaded library again by its name, and whoever wants its
/// symbols then asks that library.
pub(crate) fn preload(path: &Path) -> Result<(), LoadFailure> {
    load(path.as_ref()).map(|_| ())
}

/// Loads a library for the life of the process, with all its symbols resolved.
fn load(path: &OsStr) -> Result<&'static libloading::Library, LoadFailure> {
    #[cfg(unix)]
    // SAFETY: loading runs the library's initialisers. That is what the caller asks for by naming it; nothing short
    // of not loading it could make that safer.
    let library = unsafe {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map(libloading::Library::from)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let library = unsafe { libloading::Library::new(path) };
    let library = library.map_err(|error| LoadFailure::Linker(error.to_string()))?;
    // Leaked at once, so that what is read out of it is valid for the life of the process.
    Ok(Box::leak(Box::new(library)))
}
