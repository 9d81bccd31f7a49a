//! Compilation for a target in a child process, and what comes back.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use hlo::Module;
use pjrt::{CompileOptions, NamedValue, Plugin, Program, Topology};
use serde::{Deserialize, Serialize};

use super::AuditError;
use crate::bundle::manifest::Launch;
use crate::engine::Engine;
use crate::isolate::{Request, Task, TaskError, Worker};
use crate::partition::{assign, partition};
use crate::plugin;
use crate::target::{Platform, Target};

/// Compiles the module in [`Compile::PROGRAM`] of the job's folder for devices that need not be here, and leaves what
/// the compiler made of it in [`Compile::OPTIMIZED`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compile {
    /// Absolute path of the plugin.
    pub plugin: PathBuf,
    /// The topology's name; `None` to compile for the plugin's own devices.
    pub topology: Option<String>,
    /// Text options of the topology.
    pub topology_options: Vec<(String, String)>,
    /// Replicas that run the program together.
    pub replicas: NonZeroU32,
}

/// What a compiler says about a program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CompilerReport {
    /// The platform's version, in the plugin's words.
    pub platform_version: String,
    /// Memory in bytes.
    pub memory: Memory,
    /// Floating-point operations, where the compiler counts them.
    pub flops: Option<f64>,
    /// Bytes read and written, where the compiler counts them.
    pub bytes_accessed: Option<f64>,
}

/// What a program needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Arguments.
    pub arguments: i64,
    /// Outputs, those that take over an argument included.
    pub outputs: i64,
    /// Arguments whose memory becomes that of an output.
    pub aliased: i64,
    /// Scratch memory.
    pub temporary: i64,
}

impl Compile {
    /// What is compiled.
    pub const PROGRAM: &str = "program.hlo.pb";
    /// What comes of it.
    pub const OPTIMIZED: &str = "optimized.pb";
}

impl From<Compile> for Request {
    fn from(task: Compile) -> Self {
        Self::Compile(task)
    }
}

impl Task for Compile {
    type Reply = CompilerReport;

    fn run(&self, folder: &Path) -> Result<CompilerReport, TaskError> {
        let code = fs::read(folder.join(Self::PROGRAM))?;
        let report = |compiled: &pjrt::Compiled, platform_version: &str| {
            fs::write(folder.join(Self::OPTIMIZED), compiled.optimized_program()?.code)?;
            let memory = compiled.memory_stats()?;
            // Not every compiler counts; those that do not say so.
            let costs = compiled.cost_analysis().unwrap_or_default();
            Ok(CompilerReport {
                platform_version: platform_version.to_owned(),
                memory: Memory {
                    arguments: memory.arguments,
                    outputs: memory.outputs,
                    aliased: memory.aliased,
                    temporary: memory.temporary,
                },
                flops: number(&costs, "flops"),
                bytes_accessed: number(&costs, "bytes accessed"),
            })
        };
        if let Some(name) = &self.topology {
            let options: Vec<(&str, NamedValue)> =
                self.topology_options.iter().map(|(name, value)| (name.as_str(), value.as_str().into())).collect();
            let topology = Topology::create(&Plugin::load(&self.plugin)?, name, &options)?;
            let mut options =
                CompileOptions { num_replicas: self.replicas.get() as usize, ..CompileOptions::default() };
            if partition(&mut options, &Module::import(&code)?)? > 1 || options.num_replicas > 1 {
                let devices: Vec<i32> = topology.devices().iter().map(|device| device.id).collect();
                assign(&mut options, &devices, name)?;
            }
            let compiled = topology.compile(&Program::hlo(&code), &options)?;
            return report(&compiled, topology.platform_version());
        }
        let module = Module::import(&code)?;
        // A module of several replicas is that of one device each.
        if self.replicas > NonZeroU32::MIN {
            let engine = Engine::open_file(&self.plugin, Launch { replicas: self.replicas, ..Launch::default() })?;
            return report(engine.compile_spread(&module, "the program")?.compiled(), &engine.platform());
        }
        let engine = Engine::open_for_module(&self.plugin, &module)?;
        let executable = engine.compile(&module, "the program")?;
        report(executable.compiled(), &engine.platform())
    }
}

fn number(costs: &[(String, NamedValue)], name: &str) -> Option<f64> {
    costs.iter().find(|(known, _)| known == name).and_then(|(_, value)| match value {
        NamedValue::Float(number) => Some(f64::from(*number)),
        _ => None,
    })
}

/// A module as the compiler of a target leaves it.
#[derive(Debug)]
pub struct Optimized {
    /// What it says about it.
    pub report: CompilerReport,
    /// The module.
    pub module: Module,
}

/// Compiles for `target` in a child of `worker`.
///
/// # Errors
///
/// Where the module breaks a rule, the plugin is missing, refuses the module or dies of it.
pub fn compile(worker: &Worker, target: &Target, module: &Module, what: &str) -> Result<Optimized, AuditError> {
    compile_spread(worker, target, NonZeroU32::MIN, module, what)
}

/// The same for a module that so many replicas run together.
///
/// # Errors
///
/// As [`compile`], and where the target has fewer devices.
pub fn compile_spread(
    worker: &Worker,
    target: &Target,
    replicas: NonZeroU32,
    module: &Module,
    what: &str,
) -> Result<Optimized, AuditError> {
    hlo::verify::verify(module).map_err(|source| AuditError::Verify { what: what.to_owned(), source })?;
    let path = plugin::find(target.platform().plugin())?;
    let mut worker = worker.clone();
    for (name, value) in environment(target, &path) {
        worker = worker.environment(name, value);
    }
    let failed = |source| AuditError::Compile { what: what.to_owned(), target: target.to_string(), source };
    let job = worker.job().map_err(failed)?;
    job.write(Compile::PROGRAM, &module.export()).map_err(failed)?;
    let task = Compile {
        plugin: path,
        topology: target.topology().map(str::to_owned),
        topology_options: target.topology_options(replicas),
        replicas,
    };
    let report = job.run(&task).map_err(failed)?;
    let code = job.read(Compile::OPTIMIZED).map_err(failed)?;
    let module = Module::import(&code).map_err(|source| AuditError::Optimized { what: what.to_owned(), source })?;
    Ok(Optimized { report, module })
}

/// What the child's environment needs for a plugin to compile without its devices.
fn environment(target: &Target, plugin: &Path) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut variables: Vec<_> = target.environment().iter().map(owned).collect();
    if target.platform() == Platform::Cuda {
        // Without a device nothing can be timed.
        let mut flags = "--xla_gpu_autotune_level=0".to_owned();
        if let Some(folder) = plugin::cuda_data_dir(plugin) {
            flags += &format!(" --xla_gpu_cuda_data_dir={}", folder.display());
            // The assembler is looked for on the path first.
            let path = std::env::var("PATH").unwrap_or_default();
            variables.push(("PATH".to_owned(), format!("{}:{path}", folder.join("bin").display())));
        }
        if let Ok(own) = std::env::var("XLA_FLAGS") {
            flags += &format!(" {own}");
        }
        variables.push(("XLA_FLAGS".to_owned(), flags));
    }
    variables
}
