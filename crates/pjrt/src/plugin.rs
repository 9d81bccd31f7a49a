//! Loading a plugin.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, LoadFailure, Result};
use crate::inspect;
use crate::sys::{self, Api};
use crate::value::NamedValue;

/// A version of the PJRT C API. It prints as `0.81`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiVersion {
    /// Grows when layouts change incompatibly.
    pub major: i32,
    /// Grows when something is added.
    pub minor: i32,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A loaded and initialised plugin. Clones share it; its library stays loaded for the life of the process.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<Inner>,
}

struct Inner {
    api: Api,
    path: PathBuf,
}

/// Every plugin loaded so far. Initialisation must happen once per library, and a library never goes away.
static LOADED: Mutex<Vec<Plugin>> = Mutex::new(Vec::new());

/// Loads a shared library that a plugin will open by its bare name, for the life of the process: the linker finds it by
/// that name from then on, wherever the file lies. Libraries that it is linked with must be loadable or loaded before.
///
/// # Errors
///
/// As for a plugin: no such file, no shared library, another processor, refused by the dynamic linker.
pub fn preload(library: &Path) -> std::result::Result<(), LoadFailure> {
    sys::preload(&inspect::check(library)?)
}

impl Plugin {
    /// The version of the PJRT C API that the library at `path` was built with, read without initialising the plugin: no
    /// device is looked for, and none is locked. The library stays loaded.
    ///
    /// # Errors
    ///
    /// [`Error::Load`], as for [`Plugin::load`].
    pub fn api_version_of(path: &Path) -> Result<ApiVersion> {
        let api = inspect::check(path).and_then(|file| sys::open(&file));
        api.map(Api::version).map_err(|reason| Error::Load { path: path.to_owned(), reason })
    }

    /// Loads the library at `path`, checks its API version and initialises it. A library loaded before is not
    /// initialised again.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] tells apart: no such file, no shared library, a library for another processor, one that the
    /// dynamic linker refuses, one without `GetPjrtApi`, a null or truncated function table, another major version.
    /// [`Error::Call`] where initialisation fails.
    pub fn load(path: &Path) -> Result<Self> {
        let failed = |reason| Error::Load { path: path.to_owned(), reason };
        let file = inspect::check(path).map_err(failed)?;
        // Held across the load, so that two threads cannot initialise one library twice.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let api = sys::open(&file).map_err(failed)?;
        if let Some(plugin) = loaded.iter().find(|plugin| plugin.api().address() == api.address()) {
            return Ok(plugin.clone());
        }
        let plugin = Self::initialize(api, file)?;
        loaded.push(plugin.clone());
        Ok(plugin)
    }

    pub(crate) fn initialize(api: Api, path: PathBuf) -> Result<Self> {
        api.initialize()?;
        Ok(Self { inner: Arc::new(Inner { api, path }) })
    }

    pub(crate) fn api(&self) -> Api {
        self.inner.api
    }

    /// The version of the PJRT C API that the plugin was built with.
    #[must_use]
    pub fn api_version(&self) -> ApiVersion {
        self.inner.api.version()
    }

    /// The file that was loaded, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What the plugin says about itself, such as `xla_version` and `stablehlo_current_version`.
    ///
    /// # Errors
    ///
    /// The plugin's.
    pub fn attributes(&self) -> Result<Vec<(String, NamedValue)>> {
        self.inner.api.plugin_attributes()
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("path", &self.path()).field("api_version", &self.api_version()).finish()
    }
}
