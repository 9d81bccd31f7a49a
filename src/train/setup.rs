//! Everything between the command and the first step: data, device, programs, initial state, run folder.
//!
//! What is cheap to refuse is refused first: data before the plugin, the plugin before a compilation. The run
//! folder comes last, so that a run that cannot start leaves nothing behind.

use std::path::PathBuf;

use hlo::PrimitiveType;
use pjrt::Buffer;

use super::batch::BatchMaker;
use super::run_folder::{DataDescription, FORMAT_VERSION, PluginDescription, RunDescription, RunFolder};
use super::stepper::{Evaluator, Stepper, device};
use super::{Observer, TrainError};
use crate::bundle::manifest::{InputRole, OutputRole};
use crate::bundle::{Bundle, Dtype, check};
use crate::data::{Corpus, Split};
use crate::engine::Engine;
use crate::files;

/// What to train, on what, and how long.
#[derive(Debug)]
pub struct Options {
    /// The step, with or without a controller.
    pub bundle: Bundle,
    /// Files and folders of text.
    pub data: Vec<PathBuf>,
    /// Number of steps.
    pub steps: u64,
    /// Seeds the initial state and the order of windows.
    pub seed: u32,
    /// Name or path of the plugin.
    pub plugin: String,
    /// The run's folder; the next free one below `runs` if there is none given.
    pub out: Option<PathBuf>,
}

/// A run that is ready for its first step.
#[derive(Debug)]
pub struct Setup {
    /// The step and its state.
    pub stepper: Stepper,
    /// The held-out loss, where the bundle has one.
    pub evaluator: Option<Evaluator>,
    /// Makes the batches.
    pub batches: BatchMaker,
    /// The text.
    pub split: Split,
    /// Where the run is recorded.
    pub folder: RunFolder,
    /// Unit of the losses.
    pub loss_unit: String,
    /// Where the loss is among the arrays that the host reads, and its type.
    pub loss: Option<(usize, PrimitiveType)>,
}

impl Setup {
    /// Prepares a run.
    ///
    /// # Errors
    ///
    /// See [`TrainError`]; no run folder is left behind.
    pub fn new(options: &Options, observer: &mut dyn Observer) -> Result<Self, TrainError> {
        let bundle = &options.bundle;
        let manifest = &bundle.manifest;
        let untrainable =
            |what: &str| TrainError::Untrainable { bundle: bundle.folder.display().to_string(), what: what.to_owned() };
        let data = manifest.data.as_ref().ok_or_else(|| {
            untrainable(
                "its manifest has no `data`, so nobody knows how to make a batch; export it with `data=\"bytes\"`",
            )
        })?;
        let (Some(init), Some(init_module)) = (&manifest.init, bundle.init_module()?) else {
            return Err(untrainable(
                "it has no `init`, so there is no initial state; export it with an `init` function",
            ));
        };
        let eval_module = bundle.eval_module()?;
        let split = Split::new(Corpus::open(&options.data)?, data.window)?;

        let engine = Engine::open(&options.plugin)?;
        observer.phase("compiling");
        let step = engine.compile(&bundle.module, "the train step")?;
        let evaluator = match (&manifest.eval, &eval_module) {
            (Some(eval), Some(module)) => {
                let loss_type = check::output_shapes(module).first().map_or(PrimitiveType::F32, |s| s.element_type());
                let executable = engine.compile(module, "the evaluation")?;
                Some(Evaluator::new(executable, eval.inputs.clone(), loss_type))
            }
            _ => None,
        };
        let make_state = engine.compile(&init_module, "the initial state")?;
        let seed = encode_integer(u64::from(options.seed), init.seed_dtype);
        let seed = engine.upload(&seed, init.seed_dtype, &[])?;
        let values = make_state.execute_single(&[&seed]).map_err(device("computing the initial state failed"))?;
        let mut state: Vec<Option<Buffer>> = manifest.inputs.iter().map(|_| None).collect();
        for (&input, value) in init.outputs.iter().zip(values) {
            if let Some(slot) = state.get_mut(input) {
                *slot = Some(value);
            }
        }
        let stepper = Stepper::new(step, manifest, state)?;
        let batches =
            BatchMaker::new(&engine, manifest, data).ok_or_else(|| untrainable("its batch input is missing"))?;
        let loss = stepper.host_outputs().iter().enumerate().find_map(|(position, &output)| {
            let output = manifest.outputs.get(output).filter(|o| o.role == OutputRole::Loss)?;
            Some((position, output.dtype.primitive()))
        });

        let folder = RunFolder::create(options.out.as_deref(), &manifest.name)?;
        folder.describe(&RunDescription {
            format_version: FORMAT_VERSION,
            program: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            model: &manifest.name,
            model_path: bundle.folder.display().to_string(),
            module_sha256: files::sha256_hex(&bundle.module.export()),
            controlled: manifest.inputs.iter().any(|i| i.role == InputRole::Control),
            policy: manifest.controller.as_ref().map(|c| c.policy.as_str()),
            tensors: Vec::new(),
            seed: options.seed,
            steps: options.steps,
            loss_unit: &data.loss_unit,
            data: DataDescription {
                paths: options.data.iter().map(|p| p.display().to_string()).collect(),
                files: split.corpus().files().len(),
                bytes: split.corpus().len(),
                training_bytes: split.training_len(),
                held_out_bytes: split.held_out_len(),
            },
            plugin: PluginDescription {
                path: engine.plugin().path().display().to_string(),
                api_version: engine.plugin().api_version().to_string(),
                platform: engine.platform(),
            },
        })?;
        Ok(Self { stepper, evaluator, batches, split, folder, loss_unit: data.loss_unit.clone(), loss })
    }
}

/// An integer as the device wants it, cut to the width of its type.
fn encode_integer(value: u64, dtype: Dtype) -> Vec<u8> {
    let width = usize::try_from(dtype.primitive().bits().div_ceil(8)).unwrap_or(8);
    value.to_le_bytes().into_iter().take(width).collect()
}
