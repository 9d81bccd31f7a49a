//! Devices with a compiler: the plugin, a client on it, and as many devices of that client as a launch takes.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hlo::Module;
use pjrt::{Buffer, Client, CompileOptions, Device, Executable, OptionValue, Plugin, Program};
use thiserror::Error;

use crate::build;
use crate::bundle::Dtype;
use crate::bundle::manifest::Launch;
use crate::cache::{CompileCache, Key, Target};
use crate::isolate::{IsolateError, Worker};
use crate::partition::{PartitionError, partition};
use crate::plugin::{self, FindError, cuda};
use crate::target::Platform;

/// A compiler flag of the CPU plugin that must be off where state is donated.
///
/// With it, some matrix products whose right side is a parameter of the program keep that matrix in packed form from one
/// execution to the next, and pack it anew only when its address changes. A donated parameter is updated in place, so
/// that later steps would compute with the matrix of the first.
const CPU_PACKS_WEIGHTS: &str = "xla_cpu_use_xnnpack";

/// The option of the CPU plugin's client that says as how many devices it appears.
const CPU_DEVICE_COUNT: &str = "cpu_device_count";

/// As so many devices a CPU appears at most. With a thousand the plugin waits for all of them in the first reduction, in vain,
/// and ends the process.
const MOST_CPU_DEVICES: usize = 256;

/// A pass of XLA that the CPU plugin does without, by the flag that names such passes.
///
/// It computes what is the same in all iterations of a loop, such as an attention mask, before the loop. What is fused with
/// what in its body changes by that, and with it where a multiplication and an addition are contracted, so that steps in a
/// loop would not round as the same step by itself does.
const CPU_HOISTS: (&str, &str) = ("xla_disable_hlo_passes", "while-loop-invariant-code-motion");

/// The compiler flag that names the folder of CUDA's assembler and device library.
const CUDA_DATA_DIR: &str = "xla_gpu_cuda_data_dir";

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
    #[error("the plugin {} cannot open its devices: {source}{hint}", path.display())]
    Client {
        /// The plugin.
        path: PathBuf,
        /// What it says.
        source: pjrt::Error,
        /// What it may lack.
        hint: String,
    },
    /// The platform has fewer devices than are asked for.
    #[error(
        "{platform} has {found} device(s) here, and {replicas} replica(s) of {partitions} partition(s) need {}; ask for fewer \
         replicas, or run it where there are more devices", u64::from(*replicas) * u64::from(*partitions)
    )]
    TooFewDevices {
        /// The platform.
        platform: String,
        /// Devices that this process can use.
        found: usize,
        /// Replicas that are asked for.
        replicas: u32,
        /// Partitions of each.
        partitions: u32,
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
    /// A thread that compiled ended without a result.
    #[error("compiling {what} ended without a result, which is a fault of this program; please report it")]
    Thread {
        /// Which module.
        what: String,
    },
    /// The module is split over several devices, or how it is cannot be told.
    #[error("{what} does not run here: {source}")]
    Partition {
        /// Which module.
        what: String,
        /// Why.
        source: PartitionError,
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

/// Which GPU kernels may be taken: none whose result depends on the order in which threads come.
const DETERMINISTIC: [&str; 2] = ["xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops"];

/// The devices of one launch, of one plugin.
#[derive(Debug, Clone)]
pub struct Engine {
    client: Client,
    /// The first device.
    device: Device,
    launch: Launch,
    options: CompileOptions,
    cache: Option<(CompileCache, Target)>,
    programs: Arc<Programs>,
    worker: Option<Worker>,
}

/// Where the programs of an engine came from.
#[derive(Debug, Default)]
pub struct Programs {
    compiled: AtomicUsize,
    cached: AtomicUsize,
}

impl Programs {
    /// How many were compiled.
    #[must_use]
    pub fn compiled(&self) -> usize {
        self.compiled.load(Ordering::Relaxed)
    }

    /// How many came from the cache.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cached.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Opens the first device of the plugin that `given` names, see [`plugin::find`]. The plugin's own defaults decide about
    /// its devices and their memory.
    ///
    /// # Errors
    ///
    /// Where the plugin is missing, does not load, or has no device.
    pub fn open(given: &str) -> Result<Self, EngineError> {
        Self::open_for(given, Launch::default())
    }

    /// Opens as many devices of the plugin that `given` names as a launch takes. A CPU is as many devices as are asked for.
    ///
    /// # Errors
    ///
    /// As [`Engine::open`], and where there are fewer devices.
    pub fn open_for(given: &str, launch: Launch) -> Result<Self, EngineError> {
        Self::open_file(&plugin::find(given)?, launch)
    }

    /// The same, of the plugin in that file.
    ///
    /// # Errors
    ///
    /// Where it does not load, or has fewer devices.
    pub fn open_file(path: &Path, launch: Launch) -> Result<Self, EngineError> {
        let hint = if cuda::is_plugin(path) { preload(&cuda::libraries(path)) } else { String::new() };
        let plugin = Plugin::load(path).map_err(EngineError::Load)?;
        let failed = |source| EngineError::Client { path: path.to_owned(), source, hint: hint.clone() };
        let wanted = usize::try_from(launch.devices()).unwrap_or(usize::MAX);
        let mut client = Client::create(&plugin, &[]).map_err(failed)?;
        let present = client.addressable_devices().len();
        let on_cpu = client.platform_name() == "cpu";
        let found = if on_cpu { present.max(MOST_CPU_DEVICES) } else { present };
        if found < wanted {
            let (platform, replicas) = (client.platform_name().to_owned(), launch.replicas.get());
            return Err(EngineError::TooFewDevices { platform, found, replicas, partitions: launch.partitions.get() });
        }
        if present < wanted {
            drop(client);
            let count = i64::try_from(wanted).unwrap_or(i64::MAX);
            client = Client::create(&plugin, &[(CPU_DEVICE_COUNT, count.into())]).map_err(failed)?;
        }
        let device = client.device(0).map_err(failed)?.clone();
        let mut options = CompileOptions::default();
        match client.platform_name() {
            "cpu" => {
                options.env_option_overrides.insert(CPU_PACKS_WEIGHTS.to_owned(), OptionValue::Bool(false));
                let (flag, pass) = CPU_HOISTS;
                options.env_option_overrides.insert(flag.to_owned(), OptionValue::String(pass.to_owned()));
            }
            "cuda" => {
                if let Some(folder) = cuda::data_dir(path) {
                    let folder = OptionValue::String(folder.display().to_string());
                    options.env_option_overrides.insert(CUDA_DATA_DIR.to_owned(), folder);
                }
            }
            _ => {}
        }
        Ok(Self { client, device, launch, options, cache: None, programs: Arc::default(), worker: None })
    }

    /// Opens as many devices of the plugin in that file as a module is split over.
    ///
    /// # Errors
    ///
    /// As [`Engine::open_file`], and where the module contradicts itself.
    pub fn open_for_module(path: &Path, module: &Module) -> Result<Self, EngineError> {
        let unknown = |source| EngineError::Partition { what: module.name().to_owned(), source };
        let count = partition(&mut CompileOptions::default(), module).map_err(unknown)?;
        let partitions = u32::try_from(count).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        Self::open_file(path, Launch { partitions, ..Launch::default() })
    }

    /// Compiles in a child process from now on where the device can be shared with one, that is on the CPU: a module that
    /// makes the compiler abort is an error then. On other devices only the verifier stands in front of the compiler.
    #[must_use]
    pub fn isolated(self, worker: Option<Worker>) -> Self {
        let worker = worker.filter(|_| self.client.platform_name() == "cpu");
        Self { worker, ..self }
    }

    /// Has the compiler of a GPU take kernels alone that give the same bits in every run, where that is asked for. A CPU's do
    /// anyway, for the same number of threads, and a TPU's.
    #[must_use]
    pub fn deterministic(mut self, asked: bool) -> Self {
        if asked && matches!(self.client.platform_name(), "cuda" | "rocm") {
            let flags = DETERMINISTIC.map(|flag| (flag.to_owned(), OptionValue::Bool(true)));
            self.options.env_option_overrides.extend(flags);
        }
        self
    }

    /// The same engine, which takes programs from a cache and puts there what it compiles.
    #[must_use]
    pub fn with_cache(self, cache: Option<CompileCache>) -> Self {
        let cache = cache.map(|cache| (cache, Target::new(&self.client, &self.device)));
        Self { cache, ..self }
    }

    /// Where the programs came from, of this engine and its clones.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
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

    /// The plugin and its version, as it tells them.
    #[must_use]
    pub fn plugin_version(&self) -> String {
        format!("{}, PJRT API {}", self.client.platform_version(), self.plugin().api_version())
    }

    /// The kind of platform, where this program knows it.
    #[must_use]
    pub fn kind(&self) -> Option<Platform> {
        Platform::from_name(self.client.platform_name())
    }

    /// Devices of a launch.
    #[must_use]
    pub fn devices(&self) -> usize {
        usize::try_from(self.launch.devices()).unwrap_or(usize::MAX)
    }

    /// Compiles a module that obeys the rules of HLO for the first device, or takes it from the cache. `what` names it in
    /// errors.
    ///
    /// # Errors
    ///
    /// Where it breaks a rule or the compiler refuses it.
    pub fn compile(&self, module: &Module, what: &str) -> Result<Executable, EngineError> {
        self.compile_for(module, Launch::default(), what)
    }

    /// The same for all devices of a launch.
    ///
    /// # Errors
    ///
    /// As [`Engine::compile`].
    pub fn compile_spread(&self, module: &Module, what: &str) -> Result<Executable, EngineError> {
        self.compile_for(module, self.launch, what)
    }

    fn compile_for(&self, module: &Module, launch: Launch, what: &str) -> Result<Executable, EngineError> {
        hlo::verify::verify(module).map_err(|source| EngineError::Verify { what: what.to_owned(), source })?;
        let failed = |source| EngineError::Compile { what: what.to_owned(), source };
        let options = self.options_for(module, launch, what)?;
        let code = module.export();
        let entry = match &self.cache {
            Some((cache, target)) => Some((cache, target.key(&code, &options.to_bytes().map_err(failed)?))),
            None => None,
        };
        if let Some(executable) = entry.as_ref().and_then(|(cache, key)| self.load(cache, key, what)) {
            self.programs.cached.fetch_add(1, Ordering::Relaxed);
            return Ok(executable);
        }
        if let Some(bytes) = self.build_apart(&code, launch, what)? {
            let executable = self.client.deserialize_executable(&bytes).map_err(failed)?;
            self.programs.compiled.fetch_add(1, Ordering::Relaxed);
            if let Some((cache, key)) = &entry {
                cache.put(key, &bytes);
            }
            return Ok(executable);
        }
        let program = Program::hlo(&code);
        let executable = match self.client.compile(&program, &options) {
            // A release of the plugin without that flag has no such weights.
            Err(error) if error.to_string().contains(CPU_PACKS_WEIGHTS) => {
                let mut options = options;
                options.env_option_overrides.remove(CPU_PACKS_WEIGHTS);
                self.client.compile(&program, &options)
            }
            compiled => compiled,
        }
        .map_err(failed)?;
        self.programs.compiled.fetch_add(1, Ordering::Relaxed);
        if let Some((cache, key)) = &entry {
            match executable.compiled().serialize() {
                Ok(bytes) => cache.put(key, &bytes),
                Err(error) => tracing::debug!("{what} is not kept: {error}"),
            }
        }
        Ok(executable)
    }

    /// How the module is compiled: for all replicas of a launch, each over as many devices as it is split over.
    fn options_for(&self, module: &Module, launch: Launch, what: &str) -> Result<CompileOptions, EngineError> {
        let failed = |source| EngineError::Partition { what: what.to_owned(), source };
        let mut options = CompileOptions { num_replicas: launch.replicas.get() as usize, ..self.options.clone() };
        let wanted = partition(&mut options, module).map_err(failed)?;
        let present = self.launch.partitions.get() as usize;
        if wanted > present {
            let what = format!("this {}", self.client.platform_name());
            let hint = "`entropic audit` compiles it for all of them; to train here, export the step for one device";
            return Err(failed(PartitionError::Devices { wanted, what, present, hint }));
        }
        Ok(options)
    }

    /// What a child makes of the module, in the plugin's serialized form; nothing where there is no child or no such form.
    fn build_apart(&self, code: &[u8], launch: Launch, what: &str) -> Result<Option<Vec<u8>>, EngineError> {
        let Some(worker) = &self.worker else { return Ok(None) };
        let built = build::build(worker, self.plugin().path(), code, launch, what);
        built.map_err(|source| EngineError::Apart { what: what.to_owned(), source })
    }

    /// The program of that key, where the cache has it and the plugin takes it.
    fn load(&self, cache: &CompileCache, key: &Key, what: &str) -> Option<Executable> {
        match self.client.deserialize_executable(&cache.get(key)?) {
            Ok(executable) => Some(executable),
            Err(error) => {
                tracing::warn!("{what} from the cache does not load and is compiled again: {error}");
                cache.remove(key);
                None
            }
        }
    }

    /// Copies a dense row-major array to the first device.
    ///
    /// # Errors
    ///
    /// Where the bytes do not fit the shape, or the device refuses.
    pub fn upload(&self, bytes: &[u8], dtype: Dtype, shape: &[i64]) -> Result<Buffer, EngineError> {
        self.upload_to(0, bytes, dtype, shape)
    }

    /// Copies a dense row-major array to the device of that number.
    ///
    /// # Errors
    ///
    /// Where there is no such device, the bytes do not fit the shape, or the device refuses.
    pub fn upload_to(&self, device: usize, bytes: &[u8], dtype: Dtype, shape: &[i64]) -> Result<Buffer, EngineError> {
        let element_type = dtype.element_type();
        element_type
            .and_then(|element_type| {
                self.client.buffer_from_host(bytes, element_type, shape, self.client.device(device)?)
            })
            .map_err(|source| EngineError::Device { what: "copying an array to the device failed", source })
    }
}

/// Loads CUDA's libraries of the Python environment. What was missing there is returned in words, for the case that the plugin
/// does not find it elsewhere either.
fn preload(libraries: &cuda::Libraries) -> String {
    let mut hint = String::new();
    for path in &libraries.present {
        if let Err(reason) = pjrt::preload(path) {
            hint += &format!("; {} does not load: {reason}", path.display());
        }
    }
    if !libraries.absent.is_empty() {
        let names = libraries.absent.join(", ");
        hint +=
            &format!("; not in the Python environment: {names} (`pip install jax[cuda13]` brings CUDA's libraries)");
    }
    hint
}

/// What the child says names the module already.
fn apart(what: &str, source: &IsolateError) -> String {
    match source {
        IsolateError::Failed { .. } => String::new(),
        _ => format!("{what} does not compile: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_libraries_are_told_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("libcudart.so.13");
        std::fs::write(&broken, "no library").unwrap();
        let hint = preload(&cuda::Libraries { present: vec![broken.clone()], absent: vec!["libcudnn.so.9"] });
        for part in [&*broken.display().to_string(), "not a shared library", "libcudnn.so.9", "pip install"] {
            assert!(hint.contains(part), "{hint}");
        }
        assert_eq!(preload(&cuda::Libraries::default()), "");
    }
}
