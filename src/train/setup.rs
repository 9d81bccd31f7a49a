//! Everything between the command and the first step: data, device, programs, initial state, run folder.
//!
//! What is cheap to refuse is refused first: data before the plugin, the plugin before a compilation. The run
//! folder comes last, so that a run that cannot start leaves nothing behind.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use hlo::{PrimitiveType, Shape};
use passes::layout::ArrayKind;
use passes::policy::ReplicasPolicy;
use passes::telemetry::{Telemetry, TelemetryError};
use passes::{ControllerLayout, Policy, PolicyError};
use pjrt::{Buffer, Executable, ExecuteOptions, NamedValue};

use super::batch::BatchMaker;
use super::checkpoint::{Array, Checkpoint, Fingerprint, Machine, Store, Tallies, Writer};
use super::consistency::ConsistencyCheck;
use super::corruption::Corruption;
use super::invocation::Invocation;
use super::resume::{Checkpointing, OnWriteError, Resume, ResumeError};
use super::run_folder::{FORMAT_VERSION, PluginDescription, RunDescription, RunFolder};
use super::stepper::{Evaluator, State, StepProgram, Stepper, device};
use super::{ControlRecord, Observer, TrainError};
use crate::bundle::manifest::{Input, InputRole, Launch, OutputRole};
use crate::bundle::{Bundle, Dtype, Manifest, check};
use crate::cache::CompileCache;
use crate::engine::{Engine, EngineError};
use crate::files;
use crate::isolate::Worker;
use crate::target::Platform;

/// What to train, on what, and how long. [`Options::new`] has a value for each of them.
#[derive(Debug)]
pub struct Options {
    /// The step, with or without a controller.
    pub bundle: Bundle,
    /// Other policy numbers than those that the controller was injected with.
    pub policy: Option<Policy>,
    /// Files and folders of text, or of arrays.
    pub data: Vec<PathBuf>,
    /// Number of steps.
    pub steps: u64,
    /// Steps of one launch, those of the bundle if there is no number. What is left at the end is done in single steps, where
    /// the bundle does single steps.
    pub steps_per_launch: Option<NonZeroU32>,
    /// Seeds the initial state and the order of the data.
    pub seed: u32,
    /// Takes kernels of a GPU alone that give the same bits in every run.
    pub deterministic: bool,
    /// Training batches to spoil on purpose.
    pub corruption: Option<Corruption>,
    /// Name or path of the plugin.
    pub plugin: String,
    /// Keeps compiled programs from run to run.
    pub cache: Option<CompileCache>,
    /// The run's folder; the next free one below `runs` if there is none given.
    pub out: Option<PathBuf>,
    /// How the run was asked for, to be written down, so that it can go on after an early end.
    pub invocation: Option<Invocation>,
    /// When checkpoints are written, if they are.
    pub checkpoints: Option<Checkpointing>,
    /// What becomes of the run where its record or a checkpoint cannot be written.
    pub on_write_error: OnWriteError,
    /// The run that goes on, where it is not a new one.
    pub resume: Option<Resume>,
    /// When the program was started, from where the time to the first step is counted.
    pub started: Instant,
    /// Compiles in such child processes, see [`Engine::isolated`].
    pub worker: Option<Worker>,
}

impl Options {
    /// A run of a bundle as it is, on these data, in a folder of its own: seed 0, no checkpoints, nothing from or into a cache,
    /// compiled in this process, ended by what cannot be written.
    #[must_use]
    pub fn new(bundle: Bundle, data: Vec<PathBuf>, steps: u64, plugin: &str) -> Self {
        Self {
            bundle,
            policy: None,
            data,
            steps,
            steps_per_launch: None,
            seed: 0,
            deterministic: false,
            corruption: None,
            plugin: plugin.to_owned(),
            cache: None,
            out: None,
            invocation: None,
            checkpoints: None,
            on_write_error: OnWriteError::Stop,
            resume: None,
            started: Instant::now(),
            worker: None,
        }
    }
}

/// A run that is ready for its first step.
#[derive(Debug)]
pub struct Setup {
    /// The device.
    pub engine: Engine,
    /// The step and its state.
    pub stepper: Stepper,
    /// The same step as a program of its own, where the last steps are fewer than a launch does.
    pub rest: Option<StepProgram>,
    /// Makes the state that the run begins with.
    pub initial: InitialState,
    /// The held-out loss, where the bundle has one.
    pub evaluator: Option<Evaluator>,
    /// Makes the batches.
    pub batches: BatchMaker,
    /// Name of the model.
    pub model: String,
    /// Where the run is recorded.
    pub folder: RunFolder,
    /// Unit of the losses; empty where the bundle does not say.
    pub loss_unit: String,
    /// Where the loss is among the arrays that the host reads, and its type.
    pub loss: Option<(usize, PrimitiveType)>,
    /// How to read the controller's telemetry, where there is a controller.
    pub telemetry: Option<TelemetryReader>,
    /// Compares what replicas hold, where there are several and the policy asks for it.
    pub consistency: Option<ConsistencyCheck>,
    /// Writes checkpoints, where they are asked for.
    pub checkpoints: Option<Checkpoints>,
    /// What becomes of the run where its record or a checkpoint cannot be written.
    pub on_write_error: OnWriteError,
    /// What the run came to before, where it goes on.
    pub before: Option<(u64, Tallies)>,
    /// Steps that the run is to have done in the end.
    pub steps: u64,
    /// When the program was started.
    pub started: Instant,
}

/// Makes the state that a run begins with, the same one whenever it is asked.
#[derive(Debug)]
pub struct InitialState {
    executable: Executable,
    /// On each device.
    seeds: Vec<Buffer>,
    /// The step's input that each output is for.
    inputs: Vec<usize>,
}

impl InitialState {
    /// Numbers of the inputs that it makes values for.
    #[must_use]
    pub fn inputs(&self) -> &[usize] {
        &self.inputs
    }

    /// Starts computing the state of all devices, and puts its values where they belong. Devices begin alike: they run
    /// one program with one seed.
    ///
    /// # Errors
    ///
    /// Where a device refuses.
    pub fn make_into(&self, states: &mut [State]) -> Result<(), EngineError> {
        // The seed is kept, for the next time.
        let options = ExecuteOptions { non_donatable_inputs: vec![0], ..Default::default() };
        let failed = device("computing the initial state failed");
        let seeds: Vec<_> = self.seeds.iter().map(|seed| [seed]).collect();
        let execution = self.executable.execute(&seeds, &options).map_err(failed)?;
        for (state, outputs) in states.iter_mut().zip(execution.outputs) {
            for (&input, value) in self.inputs.iter().zip(outputs) {
                if let Some(slot) = state.get_mut(input) {
                    *slot = Some(value);
                }
            }
        }
        Ok(())
    }
}

/// Reads the controller's telemetry.
#[derive(Debug)]
pub struct TelemetryReader {
    layout: ControllerLayout,
    /// Position among the arrays that the host reads.
    position: usize,
}

impl TelemetryReader {
    /// Names of the tensors whose gradients are measured, in the order of what is read.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.layout.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Reads it out of what a step reports.
    ///
    /// # Errors
    ///
    /// Where it is of another layout.
    pub fn read(&self, report: &[&[u8]]) -> Result<ControlRecord, TelemetryError> {
        let bytes = report.get(self.position).copied().unwrap_or_default();
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
        Telemetry::decode(&self.layout, &values).map(ControlRecord::from)
    }
}

impl Setup {
    /// Prepares a run.
    ///
    /// # Errors
    ///
    /// See [`TrainError`]; no run folder is left behind.
    pub fn new(options: Options, observer: &mut dyn Observer) -> Result<Self, TrainError> {
        let (fused, rest) = launches(&options)?;
        let bundle = fused.as_ref().unwrap_or(&options.bundle);
        let manifest = &bundle.manifest;
        let reached = |what: &str| tracing::debug!("{:.3} s: {what}", options.started.elapsed().as_secs_f64());
        reached("model ready");
        let untrainable =
            |what: &str| TrainError::Untrainable { bundle: bundle.folder.display().to_string(), what: what.to_owned() };
        let (Some(init), Some(init_module)) = (&manifest.init, bundle.init_module()?) else {
            return Err(untrainable(
                "it has no `init`, so there is no initial state; export it with an `init` function",
            ));
        };
        let eval_module = bundle.eval_module()?;
        let batches = BatchMaker::open(bundle, &options.data, u64::from(options.seed), options.corruption)?;

        reached("data open");
        // A program that is split over devices is refused when it is compiled.
        let replicas = Launch { replicas: manifest.launch.replicas, ..Launch::default() };
        let engine = Engine::open_for(&options.plugin, replicas)?;
        let engine = engine.deterministic(options.deterministic);
        let engine = engine.with_cache(options.cache.clone()).isolated(options.worker.clone());
        reached("plugin open");
        if let (Some(controller), Some(here)) = (&manifest.controller, engine.kind())
            && controller.platform != here
        {
            tracing::warn!(
                "the controller of {} was emitted for {} and runs on {here}: the same control, at another cost and on large \
                 tensors less exact; inject it again with --target",
                bundle.folder.display(),
                controller.platform
            );
        }
        let found = options.resume.as_ref().and_then(|resume| resume.found.as_ref());
        observer.phase("compiling");
        // Each may take as long as all others together.
        let replicas = match (&options.policy, &manifest.controller) {
            (Some(policy), _) => policy.replicas.clone(),
            (None, Some(controller)) => controller.policy.replicas.clone(),
            (None, None) => ReplicasPolicy::default(),
        };
        let (step, rest, evaluate, make_state, consistency, data_sha256) = thread::scope(|scope| {
            // Whoever goes on must know that the data are the same; who begins says it in the first checkpoint.
            let goes_on = found.is_some();
            let data_sha256 = goes_on.then(|| scope.spawn(|| Ok::<_, EngineError>(batches.sha256()())));
            let consistency = scope.spawn(|| ConsistencyCheck::new(&engine, bundle, &replicas));
            let evaluate = eval_module.as_ref().map(|m| scope.spawn(|| engine.compile(m, "the evaluation")));
            let make_state = scope.spawn(|| engine.compile_spread(&init_module, "the initial state"));
            let step = engine.compile_spread(&bundle.module, "the train step");
            let rest = rest.map(|bundle| {
                let executable = engine.compile_spread(&bundle.module, "the train step by itself")?;
                Ok::<_, EngineError>(StepProgram::new(executable, &bundle.manifest))
            });
            let evaluate = evaluate.map(|thread| joined(thread, "the evaluation")).transpose();
            let consistency = joined(consistency, "the comparison of replicas");
            let data_sha256 = data_sha256.map(|thread| joined(thread, "the checksum of the data")).transpose();
            (step, rest.transpose(), evaluate, joined(make_state, "the initial state"), consistency, data_sha256)
        });
        let (step, rest, evaluate, make_state, mut consistency) = (step?, rest?, evaluate?, make_state?, consistency?);
        let policy = manifest.controller.as_ref().map(|c| options.policy.as_ref().unwrap_or(&c.policy));
        let data_sha256 = data_sha256?;
        let step_sha256 = files::sha256_hex(&options.bundle.module.export());
        let fingerprint = Fingerprint {
            module_sha256: step_sha256.clone(),
            policy: policy.cloned(),
            data_sha256: data_sha256.clone().unwrap_or_default(),
            seed: options.seed,
            replicas: manifest.launch.replicas,
            corruption: options.corruption,
            machine: Machine {
                device: engine.platform(),
                plugin: engine.plugin_version(),
                deterministic: options.deterministic,
                threads: thread::available_parallelism().map_or(1, usize::from),
            },
        };
        if let Some(resume) = &options.resume {
            for difference in resume.compare(&fingerprint)? {
                observer.warn(&format!("{difference}: the run goes on, and not as one that was never interrupted"));
            }
        }
        if let Some(check) = &mut consistency {
            // What a compiler counts of a loop is not told apart from what it counts of one round.
            let single = manifest.launch.steps == NonZeroU32::MIN;
            check.beside_step(bytes_accessed(&step).filter(|_| single));
        }
        let evaluator = match (&manifest.eval, &eval_module, evaluate) {
            (Some(eval), Some(module), Some(executable)) => {
                let loss_type = check::output_shapes(module).first().map_or(PrimitiveType::F32, |s| s.element_type());
                Some(Evaluator::new(executable, eval.inputs.clone(), loss_type))
            }
            _ => None,
        };
        reached("programs compiled");
        let seed = encode_integer(u64::from(options.seed), init.seed_dtype);
        let devices = 0..engine.devices();
        let seeds = devices.clone().map(|device| engine.upload_to(device, &seed, init.seed_dtype, &[]));
        let seeds = seeds.collect::<Result<_, _>>()?;
        let initial = InitialState { executable: make_state, seeds, inputs: init.outputs.clone() };
        let mut states: Vec<State> = devices.clone().map(|_| manifest.inputs.iter().map(|_| None).collect()).collect();
        if found.is_none() {
            initial.make_into(&mut states)?;
        }
        if let (Some(controller), Some(policy)) = (&manifest.controller, policy) {
            for array in controller_arrays(&controller.layout, policy)? {
                for (device, state) in devices.clone().zip(&mut states) {
                    if let Some(slot) = state.get_mut(array.input) {
                        *slot = Some(engine.upload_to(device, &array.bytes, array.dtype, &array.shape)?);
                    }
                }
            }
        }
        if let Some(found) = found {
            restore(&engine, manifest, &mut states, &found.checkpoint, &found.path)?;
        }
        reached("initial state launched");
        let stepper = Stepper::spread(step, manifest, states)?;
        let telemetry = manifest.controller.as_ref().and_then(|controller| {
            let is_telemetry =
                |&output: &usize| manifest.outputs.get(output).is_some_and(|o| o.role == OutputRole::Telemetry);
            let position = stepper.host_outputs().iter().position(is_telemetry)?;
            Some(TelemetryReader { layout: controller.layout.clone(), position })
        });
        let loss = stepper.host_outputs().iter().enumerate().find_map(|(position, &output)| {
            let output = manifest.outputs.get(output).filter(|o| o.role == OutputRole::Loss)?;
            Some((position, output.dtype.primitive()))
        });

        let loss_unit = manifest.data.as_ref().map(|data| data.loss_unit.clone()).unwrap_or_default();
        let folder = match &options.resume {
            Some(resume) => {
                let metrics_bytes = resume.found.as_ref().map_or(0, |found| found.checkpoint.metrics_bytes);
                let folder = RunFolder::reopen(&resume.folder, metrics_bytes)?;
                if folder.lost() > 0 {
                    let lost = folder.lost();
                    observer
                        .warn(&format!("the record of the run lacks {lost} bytes that were in it at the checkpoint"));
                }
                folder
            }
            None => RunFolder::create(options.out.as_deref(), &manifest.name)?,
        };
        folder.describe(&RunDescription {
            format_version: FORMAT_VERSION,
            program: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            model: &manifest.name,
            model_path: bundle.folder.display().to_string(),
            module_sha256: fused.as_ref().map_or(step_sha256, |fused| files::sha256_hex(&fused.module.export())),
            policy,
            tensors: telemetry.iter().flat_map(|t| &t.layout.tensors).map(|t| t.name.as_str()).collect(),
            seed: options.seed,
            steps: options.steps,
            steps_per_launch: manifest.launch.steps,
            replicas: manifest.launch.replicas,
            corruption: options.corruption.as_ref(),
            invocation: options.invocation.as_ref(),
            loss_unit: &loss_unit,
            data: batches.describe(&options.data),
            plugin: PluginDescription {
                path: engine.plugin().path().display().to_string(),
                api_version: engine.plugin().api_version().to_string(),
                platform: engine.platform(),
            },
        })?;
        reached("run folder made");
        let checkpoints = options.checkpoints.map(|checkpointing| {
            let store = Store::new(folder.path(), checkpointing.keep);
            if let Some(found) = found {
                // Newer ones are damaged. They would take the places of good ones among those that are kept.
                store.forget_after(found.checkpoint.step).map_err(ResumeError::from)?;
            }
            let writer = match data_sha256 {
                Some(known) => Writer::new(store, || known),
                None => Writer::new(store, batches.sha256()),
            };
            Ok::<_, ResumeError>(Checkpoints::new(checkpointing, writer, manifest, fingerprint))
        });
        let checkpoints = checkpoints.transpose()?;
        let before = found.map(|found| {
            let mut tallies = found.checkpoint.tallies.clone();
            tallies.resumed_from.push(found.checkpoint.step);
            (found.checkpoint.step, tallies)
        });
        Ok(Self {
            engine,
            stepper,
            rest,
            initial,
            evaluator,
            batches,
            model: manifest.name.clone(),
            folder,
            loss_unit,
            loss,
            telemetry,
            consistency,
            checkpoints,
            on_write_error: options.on_write_error,
            before,
            steps: options.steps,
            started: options.started,
        })
    }
}

/// What writes the checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    /// When.
    pub(super) when: Checkpointing,
    pub(super) writer: Option<Writer>,
    /// Without the checksum of the data, which the writer knows.
    pub(super) fingerprint: Fingerprint,
    /// Numbers of the inputs that go into a checkpoint.
    pub(super) inputs: Vec<usize>,
    /// These arrays, without elements.
    pub(super) arrays: Vec<Array>,
}

impl Checkpoints {
    /// Whether there is one after these steps.
    pub(super) fn is_due(&self, steps: &Range<u64>) -> bool {
        let every = self.when.every.get();
        steps.end / every > steps.start / every
    }

    fn new(when: Checkpointing, writer: Writer, manifest: &Manifest, fingerprint: Fingerprint) -> Self {
        let (inputs, arrays) = saved(manifest).unzip();
        Self { when, writer: Some(writer), fingerprint, inputs, arrays }
    }
}

/// What goes into a checkpoint: all that is on the device from step to step but the numbers of the policy, which the run is given
/// anew. Arrays are without elements.
fn saved(manifest: &Manifest) -> impl Iterator<Item = (usize, Array)> + '_ {
    let kept = |input: &Input| !matches!(input.role, InputRole::Batch | InputRole::Policy);
    manifest.inputs.iter().enumerate().filter(move |(_, input)| kept(input)).map(|(number, input)| {
        let array = Array {
            name: input.name.clone(),
            controller: input.role == InputRole::Control,
            dtype: input.dtype,
            shape: input.shape.clone(),
            bytes: Vec::new(),
        };
        (number, array)
    })
}

/// Puts the arrays of a checkpoint on all devices.
fn restore(
    engine: &Engine,
    manifest: &Manifest,
    states: &mut [State],
    checkpoint: &Checkpoint,
    path: &Path,
) -> Result<(), TrainError> {
    let by_name: BTreeMap<&str, &Array> = checkpoint.arrays.iter().map(|array| (array.name.as_str(), array)).collect();
    for (input, wanted) in saved(manifest) {
        let fits = |array: &&&Array| (array.dtype, &array.shape) == (wanted.dtype, &wanted.shape);
        let array = by_name.get(wanted.name.as_str()).filter(fits).ok_or_else(|| ResumeError::Array {
            path: path.to_owned(),
            name: wanted.name.clone(),
            expected: format!("{} {:?}", wanted.dtype.name(), wanted.shape),
        })?;
        for (device, state) in states.iter_mut().enumerate() {
            if let Some(slot) = state.get_mut(input) {
                *slot = Some(engine.upload_to(device, &array.bytes, array.dtype, &array.shape)?);
            }
        }
    }
    Ok(())
}

/// The bundle with as many steps in a launch as are asked for, where that is another than the options have; and the one
/// that does the rest.
fn launches(options: &Options) -> Result<(Option<Bundle>, Option<&Bundle>), TrainError> {
    let bundle = &options.bundle;
    let has = bundle.manifest.launch.steps;
    let steps = options.steps_per_launch.unwrap_or(has);
    let done = options.resume.as_ref().map_or(0, Resume::done);
    let left = options.steps.saturating_sub(done) % u64::from(steps.get());
    if has == NonZeroU32::MIN {
        let fused = if steps == has { None } else { Some(bundle.fuse(steps, Platform::of_plugin(&options.plugin))?) };
        return Ok((fused, (left > 0).then_some(bundle)));
    }
    let refuse = |what| Err(TrainError::Untrainable { bundle: bundle.folder.display().to_string(), what });
    if steps != has {
        return refuse(format!(
            "it does {has} steps in a launch, and {steps} are asked for; train the bundle that it was made from, or export a loop of \
             so many steps"
        ));
    }
    if left > 0 {
        let (below, above) = (options.steps - left, options.steps - left + u64::from(has.get()));
        let works = if below == 0 { above.to_string() } else { format!("{below} or {above}") };
        return refuse(format!(
            "it does {has} steps in a launch, and {} are no multiple of that; {works} would be one, and a bundle of \
             single steps does any number",
            options.steps
        ));
    }
    Ok((None, None))
}

/// What a thread compiled.
fn joined<T, E: From<EngineError>>(thread: ScopedJoinHandle<'_, Result<T, E>>, what: &str) -> Result<T, E> {
    thread.join().map_err(|_| EngineError::Thread { what: what.to_owned() })?
}

/// Bytes that one launch of a step reads and writes, where the compiler counts them.
fn bytes_accessed(step: &Executable) -> Option<f64> {
    let costs = step.compiled().cost_analysis().ok()?;
    costs.iter().find_map(|(name, value)| match value {
        NamedValue::Float(bytes) if name == "bytes accessed" => Some(f64::from(*bytes)),
        _ => None,
    })
}

/// One of the arrays that the controller takes beside the step's own.
#[derive(Debug, Clone, PartialEq)]
pub struct ControllerArray {
    /// Its input number.
    pub input: usize,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// Its elements, little-endian.
    pub bytes: Vec<u8>,
}

/// The controller's inputs before the first step, in order: policy numbers, state, counters, copies of states.
///
/// # Errors
///
/// Where the policy has another structure than the one that was injected.
pub fn controller_arrays(layout: &ControllerLayout, policy: &Policy) -> Result<Vec<ControllerArray>, PolicyError> {
    let floats = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect();
    let integers = |values: Vec<i32>| values.into_iter().flat_map(i32::to_le_bytes).collect();
    let mut arrays = Vec::new();
    for input in &layout.inputs {
        let Some(dtype) = input.element_type.parse().ok().and_then(Dtype::from_element_type) else { continue };
        let bytes = match input.kind {
            ArrayKind::Policy => floats(layout.policy_vector(policy)?),
            ArrayKind::State => floats(layout.initial_state()),
            ArrayKind::Counters => integers(layout.initial_counters()),
            // Nothing returns to a copy before one was taken.
            ArrayKind::Snapshot => {
                let size = Shape::array(dtype.primitive(), &input.dims).byte_size();
                vec![0; usize::try_from(size).unwrap_or(usize::MAX)]
            }
            ArrayKind::Telemetry => continue,
        };
        arrays.push(ControllerArray { input: input.parameter, dtype, shape: input.dims.clone(), bytes });
    }
    Ok(arrays)
}

/// An integer as the device wants it, cut to the width of its type.
fn encode_integer(value: u64, dtype: Dtype) -> Vec<u8> {
    let width = usize::try_from(dtype.primitive().bits().div_ceil(8)).unwrap_or(8);
    value.to_le_bytes().into_iter().take(width).collect()
}
