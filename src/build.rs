//! Compilation in a child process.
//!
//! The verifier stands in front of every compiler, but it does not know each rule of each plugin, and a plugin that meets
//! what it did not expect may abort. Where a module comes from outside, a child compiles it and hands the executable over
//! in the plugin's own serialized form.

use std::fs;
use std::path::{Path, PathBuf};

use hlo::Module;
use serde::{Deserialize, Serialize};

use crate::bundle::manifest::Launch;
use crate::engine::Engine;
use crate::isolate::{IsolateError, Request, Task, TaskError, Worker};

/// Compiles the module in [`Build::MODULE`] of the job's folder into [`Build::EXECUTABLE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Absolute path of the plugin.
    pub plugin: PathBuf,
    /// The devices that it is for.
    pub launch: Launch,
    /// What the module is, for errors.
    pub what: String,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Built {
    /// The executable is in its file.
    Serialized,
    /// The plugin compiles the module, and cannot serialize the executable.
    NotSerializable,
}

impl Build {
    /// A serialized `HloModuleProto`.
    pub const MODULE: &str = "module.hlo.pb";
    /// What the plugin's deserialization takes.
    pub const EXECUTABLE: &str = "executable";
}

impl From<Build> for Request {
    fn from(task: Build) -> Self {
        Self::Build(task)
    }
}

impl Task for Build {
    type Reply = Built;

    fn run(&self, folder: &Path) -> Result<Built, TaskError> {
        let module = Module::import(&fs::read(folder.join(Self::MODULE))?)?;
        let engine = Engine::open_file(&self.plugin, self.launch)?;
        let executable = engine.compile_spread(&module, &self.what)?;
        let Ok(bytes) = executable.compiled().serialize() else { return Ok(Built::NotSerializable) };
        fs::write(folder.join(Self::EXECUTABLE), bytes)?;
        Ok(Built::Serialized)
    }
}

/// Has a child compile an exported module; returns the serialized executable, or nothing where the plugin has no such form.
///
/// # Errors
///
/// Where the module does not compile, whatever that does to the child.
pub fn build(
    worker: &Worker,
    plugin: &Path,
    code: &[u8],
    launch: Launch,
    what: &str,
) -> Result<Option<Vec<u8>>, IsolateError> {
    let job = worker.job()?;
    job.write(Build::MODULE, code)?;
    let plugin = std::path::absolute(plugin).unwrap_or_else(|_| plugin.to_owned());
    match job.run(&Build { plugin, launch, what: what.to_owned() })? {
        Built::Serialized => job.read(Build::EXECUTABLE).map(Some),
        Built::NotSerializable => Ok(None),
    }
}
