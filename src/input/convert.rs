//! StableHLO to HLO, by the plugin's own front end.
//!
//! XLA writes down the module that a compilation starts from; that is the conversion. What the compilation makes of it does
//! not matter: the CPU has no kernel for a custom call of a GPU, and optimizing takes longer than all the rest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use pjrt::{Client, CompileOptions, OptionValue, Plugin, Program};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::isolate::{Request, Task, TaskError};

/// How the file ends that has the module before anything was done to it.
const DUMPED: &str = ".before_optimizations.hlo.pb";

/// How often the dump is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Converts the StableHLO (text or bytecode) in [`Convert::PROGRAM`] of the job's folder to the HLO in
/// [`Convert::MODULE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convert {
    /// Absolute path of the plugin.
    pub plugin: PathBuf,
}

/// Why nothing was converted.
#[derive(Debug, Error)]
enum ConvertError {
    /// A file of the job.
    #[error("a file of the conversion: {0}")]
    File(#[from] io::Error),
    /// The plugin is none.
    #[error(transparent)]
    Plugin(#[from] pjrt::Error),
    /// The front end wrote nothing.
    #[error("the plugin compiled the program, but did not write down the HLO that it started from")]
    NothingWritten,
}

impl Convert {
    /// What is converted.
    pub const PROGRAM: &str = "program.mlir";
    /// What comes of it, an `HloProto`.
    pub const MODULE: &str = "module.hlo.pb";
}

impl From<Convert> for Request {
    fn from(task: Convert) -> Self {
        Self::Convert(task)
    }
}

impl Task for Convert {
    type Reply = ();

    fn run(&self, folder: &Path) -> Result<(), TaskError> {
        Ok(convert(&self.plugin, folder)?)
    }
}

fn convert(plugin: &Path, folder: &Path) -> Result<(), ConvertError> {
    let program = fs::read(folder.join(Convert::PROGRAM))?;
    let dump = folder.join("dump");
    fs::create_dir(&dump)?;
    let client = Client::create(&Plugin::load(plugin)?, &[("cpu_device_count", 1.into())])?;
    let mut options = CompileOptions::default();
    let overrides = &mut options.env_option_overrides;
    overrides.insert("xla_dump_to".to_owned(), OptionValue::String(dump.display().to_string()));
    overrides.insert("xla_dump_hlo_as_proto".to_owned(), OptionValue::Bool(true));
    let compilation = thread::spawn(move || client.compile(&Program::mlir(&program), &options).map(drop));
    loop {
        let finished = compilation.is_finished();
        // The compiler writes one file after the other, so the first is complete when there is a second. The rest of the
        // compilation is of no use to anybody; it ends with this process.
        let (module, others): (Vec<_>, Vec<_>) = fs::read_dir(&dump)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .partition(|path| path.to_string_lossy().ends_with(DUMPED));
        if let Some(module) = module.first().filter(|_| finished || !others.is_empty()) {
            fs::rename(module, folder.join(Convert::MODULE))?;
            return Ok(());
        }
        if finished {
            return match compilation.join() {
                Ok(Err(error)) => Err(error.into()),
                _ => Err(ConvertError::NothingWritten),
            };
        }
        thread::sleep(POLL);
    }
}
