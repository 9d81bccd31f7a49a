//! What the commands take as MODEL: a bundle or a bare module, and the train step in it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use hlo::Module;
use passes::inject::{Discover, inject_step};
use passes::inline_calls::InlineCalls;
use passes::layout::ArrayKind;
use passes::{
    Context, ControllerLayout, InjectError, InjectOptions, Pipeline, PipelineError, Policy, Replicas, TrainStep,
    replicate_step,
};
use thiserror::Error;

use crate::bundle::manifest::{self, Controller, InputRole, Output, OutputRole};
use crate::bundle::{self, Bundle, BundleError, CheckError, Dtype, Manifest, check};
use crate::input::{Input, Origin, Reader};
use crate::target::Platform;

/// A bundle or a bare module.
#[derive(Debug, Clone)]
pub enum Model {
    /// A folder with a manifest.
    Bundle(Box<Bundle>),
    /// A file with a module.
    Bare {
        /// The file.
        path: PathBuf,
        /// The module.
        module: Box<Module>,
        /// What it was read from.
        origin: Origin,
    },
}

/// A model with the train step that was found in it, its calls inlined.
#[derive(Debug, Clone)]
pub struct Found {
    /// The module, calls inlined; ids of `step` belong to it.
    pub module: Module,
    /// The manifest: the bundle's, or one derived from the module.
    pub manifest: Manifest,
    /// The step. Names are the manifest's.
    pub step: TrainStep,
}

/// A module with the controller in it.
#[derive(Debug, Clone)]
pub struct Controlled {
    /// The module.
    pub module: Module,
    /// The manifest of what it was before.
    pub manifest: Manifest,
    /// What the controller added.
    pub layout: ControllerLayout,
}

impl Found {
    /// The model, in which this was found, as a bundle.
    #[must_use]
    pub fn original(&self, model: &Model) -> Bundle {
        let (folder, reader) = model.folder();
        let module = model.module().clone();
        Bundle { folder, manifest: self.manifest.clone(), module, origin: model.origin().clone(), reader }
    }
}

/// Why a model is of no use.
#[derive(Debug, Error)]
pub enum ModelError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] BundleError),
    /// No step was found in it.
    #[error("{}: {source}", path.display())]
    Find {
        /// The model.
        path: PathBuf,
        /// Why.
        source: Box<PipelineError>,
    },
    /// Nothing was injected.
    #[error("{}: {source}", path.display())]
    Inject {
        /// The model.
        path: PathBuf,
        /// Why.
        source: Box<InjectError>,
    },
    /// No manifest can describe it.
    #[error("{}: {source}", path.display())]
    Describe {
        /// The model.
        path: PathBuf,
        /// Why.
        source: CheckError,
    },
    /// It does several steps in one launch, and not by a loop that was exported so.
    #[error(
        "{} does {steps} steps in one launch, and no loop over as many train steps was found in it; give the bundle that it was \
         made from",
        path.display()
    )]
    Fused {
        /// The model.
        path: PathBuf,
        /// Steps of one launch.
        steps: NonZeroU32,
    },
    /// It loops over steps, and cannot be described as a launch of so many.
    #[error("{}: {reason}", path.display())]
    Looped {
        /// The model.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// It has a controller.
    #[error("{} has a controller already; inject into the original, or train this one as it is", path.display())]
    Controlled {
        /// The model.
        path: PathBuf,
    },
}

impl Model {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// Where there is none, or it is damaged or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::open_with(path, &Reader::default())
    }

    /// The same, with a choice of how modules are read.
    ///
    /// # Errors
    ///
    /// See [`Model::open`].
    pub fn open_with(path: &Path, reader: &Reader) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Ok(Self::Bundle(Box::new(Bundle::open_with(path, reader)?)));
        }
        let Input { module, origin } = bundle::read_module(path, reader)?;
        Ok(Self::Bare { path: path.to_owned(), module: Box::new(module), origin })
    }

    /// What its module was read from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Bundle(bundle) => &bundle.origin,
            Self::Bare { origin, .. } => origin,
        }
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Bundle(bundle) => &bundle.folder,
            Self::Bare { path, .. } => path,
        }
    }

    /// The module as it was read.
    #[must_use]
    pub fn module(&self) -> &Module {
        match self {
            Self::Bundle(bundle) => &bundle.module,
            Self::Bare { module, .. } => module,
        }
    }

    /// Whether a controller is in it already, as far as can be told.
    #[must_use]
    pub fn is_controlled(&self) -> bool {
        match self {
            Self::Bundle(bundle) => bundle.manifest.controller.is_some(),
            // The names that injection gives to what it appends.
            Self::Bare { module, .. } => {
                let entry = module.entry_computation();
                entry.parameters().into_iter().any(|id| entry.get(id).is_some_and(|i| i.name.starts_with("entropic.")))
            }
        }
    }

    /// Inlines calls and finds the train step.
    ///
    /// # Errors
    ///
    /// Where there is none, or it is not decided.
    pub fn find(&self) -> Result<Found, ModelError> {
        let said = match self {
            Self::Bundle(bundle) => bundle.manifest.launch.steps,
            Self::Bare { .. } => NonZeroU32::MIN,
        };
        let fused = || ModelError::Fused { path: self.path().to_owned(), steps: said };
        let failed = |source| ModelError::Find { path: self.path().to_owned(), source: Box::new(source) };
        let mut module = self.module().clone();
        let mut context = Context::with_successors(self.successors());
        Pipeline::new()
            .with(InlineCalls)
            .with(Discover)
            .run(&mut module, &mut context, &mut |_, _, _| {})
            // What launches of several single steps were made of is not found again.
            .map_err(|source| if said > NonZeroU32::MIN { fused() } else { failed(source) })?;
        let needs = |source| failed(PipelineError::Failed { pass: "discover", source });
        let mut step = context.step.take().ok_or_else(|| needs(passes::pass::PassError::Needs { pass: "discover" }))?;
        if said > NonZeroU32::MIN && step.inside_loop.is_none() {
            return Err(fused());
        }
        let manifest = match self {
            Self::Bundle(bundle) => {
                rename(&mut step, &bundle.manifest);
                bundle.manifest.clone()
            }
            Self::Bare { path, origin, .. } => {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                bundle::derive(&module, &step, &file, origin).map_err(|source| self.describe_error(source))?
            }
        };
        Ok(Found { module, manifest, step })
    }

    /// The same, where there is no controller yet.
    ///
    /// # Errors
    ///
    /// As [`Model::find`], and where there is one.
    pub fn find_uncontrolled(&self) -> Result<Found, ModelError> {
        if self.is_controlled() {
            return Err(ModelError::Controlled { path: self.path().to_owned() });
        }
        self.find()
    }

    /// Of outputs the input whose next value they are, as far as that was said.
    fn successors(&self) -> BTreeMap<usize, usize> {
        match self {
            Self::Bundle(bundle) => {
                let outputs = bundle.manifest.outputs.iter().enumerate();
                outputs.filter_map(|(number, output)| Some((number, output.input?))).collect()
            }
            Self::Bare { origin, .. } => origin.successors.clone(),
        }
    }

    /// Injects the controller, emitted as the compiler of `platform` likes it. The result is a bundle in the folder of this
    /// model, not saved yet.
    ///
    /// # Errors
    ///
    /// Where no step is found, a pass refuses, or there is a controller already.
    pub fn inject(&self, policy: &Policy, platform: Platform) -> Result<Bundle, ModelError> {
        self.inject_into(policy, platform, None)
    }

    /// The same for a step of one device that is to become data-parallel, where there are replicas.
    ///
    /// # Errors
    ///
    /// As [`Model::inject`], and where the step cannot be made so.
    pub fn inject_into(
        &self,
        policy: &Policy,
        platform: Platform,
        replicas: Option<Replicas>,
    ) -> Result<Bundle, ModelError> {
        let found = self.find_uncontrolled()?;
        self.check_loop(&found.step, &found.manifest)?;
        let Controlled { module, mut manifest, layout } = self.inject_found(found, policy, platform, replicas)?;
        manifest.launch.replicas = replicas.map_or(manifest.launch.replicas, |replicas| replicas.count);
        let array = |element_type: &str, dims: &[i64]| {
            let dtype = element_type.parse::<pjrt::ElementType>().ok().and_then(Dtype::from_element_type);
            dtype.map(|dtype| (dtype, dims.to_vec())).ok_or_else(|| {
                self.describe_error(CheckError {
                    place: "controller".to_owned(),
                    message: format!("{element_type} is no dtype"),
                })
            })
        };
        for input in &layout.inputs {
            let (dtype, shape) = array(&input.element_type, &input.dims)?;
            let role = if input.kind == ArrayKind::Policy { InputRole::Policy } else { InputRole::Control };
            manifest.inputs.push(manifest::Input { name: input.name.clone(), dtype, shape, role });
        }
        for output in &layout.outputs {
            let (dtype, mut shape) = array(&output.element_type, &output.dims)?;
            if output.kind == ArrayKind::Telemetry && layout.steps > NonZeroU32::MIN {
                shape.insert(0, i64::from(layout.steps.get()));
            }
            let input = layout.inputs.iter().find(|i| i.kind == output.kind && i.copy_of == output.copy_of);
            let input = input.map(|i| i.parameter);
            let role = if output.kind == ArrayKind::Telemetry { OutputRole::Telemetry } else { OutputRole::Control };
            manifest.outputs.push(Output { name: output.name.clone(), dtype, shape, role, input });
        }
        manifest.controller = Some(Controller { policy: policy.clone(), platform, layout });
        self.rewritten(manifest, module)
    }

    /// Injects the controller into what was found. Whoever calls the module says how it is called: a loop over steps may be
    /// any, and what the controller appends is in no manifest yet.
    ///
    /// # Errors
    ///
    /// Where a pass refuses.
    pub fn inject_found(
        &self,
        found: Found,
        policy: &Policy,
        platform: Platform,
        replicas: Option<Replicas>,
    ) -> Result<Controlled, ModelError> {
        let Found { mut module, manifest, step } = found;
        let options = InjectOptions { replicas, ..platform.emission() };
        let injection = inject_step(&mut module, step, policy, options, &mut |_, _, _| {})
            .map_err(|source| ModelError::Inject { path: self.path().to_owned(), source: Box::new(source) })?;
        Ok(Controlled { module, manifest, layout: injection.layout })
    }

    /// Makes a step of one device data-parallel, without a controller. The result is a bundle in the folder of this model,
    /// not saved yet.
    ///
    /// # Errors
    ///
    /// Where no step is found, or it cannot be made so.
    pub fn replicate(&self, replicas: Replicas) -> Result<Bundle, ModelError> {
        let Found { mut module, mut manifest, step } = self.find()?;
        self.check_loop(&step, &manifest)?;
        replicate_step(&mut module, step, replicas)
            .map_err(|source| ModelError::Inject { path: self.path().to_owned(), source: Box::new(source) })?;
        manifest.launch.replicas = replicas.count;
        self.rewritten(manifest, module)
    }

    /// Refuses a loop over steps that is no launch of so many steps, each with its own batch.
    fn check_loop(&self, step: &TrainStep, manifest: &Manifest) -> Result<(), ModelError> {
        let Some(around) = &step.inside_loop else { return Ok(()) };
        // `enter-loop` says why it is not known.
        let Ok(trips) = &around.trips else { return Ok(()) };
        let refuse = |reason: String| Err(ModelError::Looped { path: self.path().to_owned(), reason });
        let said = manifest.launch.steps;
        if said != trips.steps {
            return refuse(format!(
                "its loop {} does {} steps in one launch, and its manifest says {said}; export it with `steps_per_launch={1}`, \
                 which writes `\"launch\": {{\"steps\": {1}}}`",
                around.name, trips.steps
            ));
        }
        let each = |input: &usize| around.leaves.iter().any(|leaf| leaf.input == Some(*input) && leaf.each);
        let has_dimensions = |input: &&usize| manifest.inputs.get(**input).is_some_and(|i| !i.shape.is_empty());
        match step.batch.iter().filter(has_dimensions).find(|input| !each(input)) {
            Some(&input) if said > NonZeroU32::MIN => {
                let name = manifest.inputs.get(input).map_or("", |i| &i.name);
                refuse(format!(
                    "the steps of its loop {} do not each take their own part of {name}; loop over batches [{said}, ..] \
                     (`lax.scan(step, state, batches)`), or export a single step",
                    around.name
                ))
            }
            _ => Ok(()),
        }
    }

    /// A bundle of what passes made of this model.
    fn rewritten(&self, mut manifest: Manifest, module: Module) -> Result<Bundle, ModelError> {
        check::check(&manifest, &module).map_err(|source| self.describe_error(source))?;
        let (folder, reader) = self.folder();
        rename_module(&mut manifest);
        Ok(Bundle { folder, manifest, module, origin: Origin::default(), reader })
    }

    /// Where what goes along with the module lies, and how it is read.
    fn folder(&self) -> (PathBuf, Reader) {
        match self {
            Self::Bundle(bundle) => (bundle.folder.clone(), bundle.reader.clone()),
            Self::Bare { path, .. } => (path.parent().unwrap_or(Path::new("")).to_owned(), Reader::default()),
        }
    }

    fn describe_error(&self, source: CheckError) -> ModelError {
        ModelError::Describe { path: self.path().to_owned(), source }
    }
}

/// What is written is HLO, whatever was read: its name says so.
fn rename_module(manifest: &mut Manifest) {
    if manifest.module.ends_with(".pb") {
        return;
    }
    let stem = manifest.module.split('.').next().unwrap_or_default();
    let taken: Vec<_> = manifest.init.iter().map(|i| &i.file).chain(manifest.eval.iter().map(|e| &e.file)).collect();
    let mut candidates = ["", ".step", ".controlled"].iter().map(|part| format!("{stem}{part}.hlo.pb"));
    if let Some(name) = candidates.find(|name| !taken.contains(&name)) {
        manifest.module = name;
    }
}

/// Gives parameters and states the manifest's names: those of the module may be missing.
fn rename(step: &mut TrainStep, manifest: &Manifest) {
    let name = |input: usize| manifest.inputs.get(input).map(|i| i.name.clone());
    for parameter in &mut step.parameters {
        parameter.name = name(parameter.input).unwrap_or_else(|| std::mem::take(&mut parameter.name));
    }
    for state in &mut step.states {
        state.name = name(state.input).unwrap_or_else(|| std::mem::take(&mut state.name));
    }
}
