//! A device with a compiler: the plugin, a client on it, and one device of that client.

use std::path::{Path, PathBuf};

use hlo::Module;
use pjrt::{Buffer, Client, CompileOptions, Device, Executable, OptionValue, Plugin, Program};
use thiserror::Error;

use crate::build;
use crate::bundle::Dtype;
use crate::isolate::{IsolateError, Worker};
use crate::plugin::{self, FindError};

/// A compiler flag of the CPU plugin that must be off where state is donated.
///
/// With it, some matrix products whose right side is a parameter of the program keep that matrix in packed form from one
/// execution to the next, and pack it anew only when its address changes. A donated parameter is updated in place, so
/// that later steps would compute with the matrix of the first.
const CPU_PACKS_WEIGHTS: &str = "xla_cpu_use_xnnpack";

/// Why there is no engine, or it would not do what it was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The plugin was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The plugin does not load.
    #[error(transparent)]
    Load(pjrt::Error),
    /// The plugin makes no client.
    #[error("the plugin {} cannot open its devices: {source}", path.display())]
    Client {
        /// The plugin.
        path: PathBuf,
        /// What it says.
        source: pjrt::Error,
    },
    /// The module breaks a rule; the compiler never saw it.
    #[error("{what} is not compiled, it breaks the rules of HLO: {source}")]
    Verify {
        /// Which module.
        what: String,
        /// All violations.
        source: hlo::verify::VerifyErrors,
    },
    /// The compiler refused the module.
    #[error("{what} does not compile: {source}")]
    Compile {
        /// Which module.
        what: String,
        /// What the compiler says.
        source: pjrt::Error,
    },
    /// The compiler refused the module, or died of it.
    #[error("{}{source}", apart(what, source))]
    Apart {
        /// Which module.
        what: String,
        /// What happened.
        source: IsolateError,
    },
    /// Something failed on the device.
    #[error("{what}: {source}")]
    Device {
        /// What was being done.
        what: &'static str,
        /// What the plugin says.
        source: pjrt::Error,
    },
}

/// One device of one plugin.
#[derive(Debug, Clone)]
pub struct Engine {
    client: Client,
    device: Device,
    worker: Option<Worker>,
}

impl Engine {
    /// Opens the first device of the plugin that `given` names, see [`plugin::find`].
    ///
    /// # Errors
    ///
    /// Where the plugin is missing, does not load, or has no device.
    pub fn open(given: &str) -> Result<Self, EngineError> {
        Self::open_file(&plugin::find(given)?)
    }

    /// Opens the first device of the plugin in that file.
    ///
    /// # Errors
    ///
    /// Where it does not load, or has no device.
    pub fn open_file(path: &Path) -> Result<Self, EngineError> {
        let plugin = Plugin::load(path).map_err(EngineError::Load)?;
        let failed = |source| EngineError::Client { path: path.to_owned(), source };
        let client = Client::create(&plugin, &[]).map_err(failed)?;
        let device = client.device(0).map_err(failed)?.clone();
        Ok(Self { client, device, worker: None })
    }

    /// Compiles in a child process from now on where the device can be shared with one, that is on the CPU: a module that
    /// makes the compiler abort is an error then. On other devices only the verifier stands in front of the compiler.
    #[must_use]
    pub fn isolated(self, worker: Option<Worker>) -> Self {
        let worker = worker.filter(|_| self.client.platform_name() == "cpu");
        Self { worker, ..self }
    }

    /// The plugin.
    #[must_use]
    pub fn plugin(&self) -> &Plugin {
        self.client.plugin()
    }

    /// The platform and its version, for a person to read.
    #[must_use]
    pub fn platform(&self) -> String {
        format!("{} ({})", self.client.platform_name(), self.device.kind())
    }

    /// Compiles a module that obeys the rules of HLO. `what` names it in errors.
    ///
    /// # Errors
    ///
    /// Where it breaks a rule or the compiler refuses it.
    pub fn compile(&self, module: &Module, what: &str) -> Result<Executable, EngineError> {
        let what = || what.to_owned();
        hlo::verify::verify(module).map_err(|source| EngineError::Verify { what: what(), source })?;
        let code = module.export();
        if let Some(worker) = &self.worker {
            let built = build::build(worker, self.plugin().path(), &code, &what());
            if let Some(bytes) = built.map_err(|source| EngineError::Apart { what: what(), source })? {
                let failed = |source| EngineError::Compile { what: what(), source };
                return self.client.deserialize_executable(&bytes).map_err(failed);
            }
        }
        let program = Program::hlo(&code);
        let mut options = CompileOptions::default();
        if self.client.platform_name() == "cpu" {
            options.env_option_overrides.insert(CPU_PACKS_WEIGHTS.to_owned(), OptionValue::Bool(false));
        }
        let compiled = match self.client.compile(&program, &options) {
            // A release of the plugin without that flag has no such weights.
            Err(error) if error.to_string().contains(CPU_PACKS_WEIGHTS) => {
                self.client.compile(&program, &CompileOptions::default())
            }
            compiled => compiled,
        };
        compiled.map_err(|source| EngineError::Compile { what: what(), source })
    }

    /// Copies a dense row-major array to the device.
    ///
    /// # Errors
    ///
    /// Where the bytes do not fit the shape, or the device refuses.
    pub fn upload(&self, bytes: &[u8], dtype: Dtype, shape: &[i64]) -> Result<Buffer, EngineError> {
        dtype
            .element_type()
            .and_then(|element_type| self.client.buffer_from_host(bytes, element_type, shape, &self.device))
            .map_err(|source| EngineError::Device { what: "copying an array to the device failed", source })
    }
}

/// What the child says names the module already.
fn apart(what: &str, source: &IsolateError) -> String {
    match source {
        IsolateError::Failed { .. } => String::new(),
        _ => format!("{what} does not compile: "),
    }
}
