//! Passes and the pipeline that runs them.
//!
//! The pipeline verifies the module before the first pass and after the last, and
//! every failure says which pass it belongs to (see [`Pipeline::run`]).
//! Passes get all their settings at construction and hand values to later
//! passes through a [`Context`] only.

use std::collections::BTreeMap;

use hlo::build::BuildError;
use hlo::edit::EditError;
use hlo::partitioning::PartitioningError;
use hlo::verify::VerifyErrors;
use hlo::{InstructionId, Module};
use thiserror::Error;

use crate::control::{Controlled, Projections};
use crate::discover::DiscoverError;
use crate::fuse_steps::FuseError;
use crate::gradient_all_reduce::Replicas;
use crate::layout::ControllerLayout;
use crate::listed::listed;
use crate::loops::Looped;
use crate::manual::Entered;
use crate::measure_entropy::Statistics;
use crate::policy::PolicyError;
use crate::rollback::Snapshot;
use crate::step::{TrainStep, Update, Value};

/// Whether a pass changed the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It did.
    Yes,
    /// The module is as it was.
    No,
}

/// One rewrite or analysis of a module.
pub trait Pass {
    /// The pass's name, in kebab case.
    fn name(&self) -> &'static str;

    /// Runs it.
    ///
    /// # Errors
    ///
    /// Where the pass cannot do what it is for; the module may be half rewritten then and must be dropped.
    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError>;
}

/// What passes hand to those after them.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Of outputs the parameter whose next value they are, as far as whoever made the program knows.
    pub successors: BTreeMap<usize, usize>,
    /// The train step, once found.
    pub step: Option<TrainStep>,
    /// What the controller adds to the program, once known.
    pub layout: Option<ControllerLayout>,
    pub(crate) statistics: Option<Statistics>,
    pub(crate) control: Option<Controlled>,
    pub(crate) projections: Option<Projections>,
    /// The update of each controlled tensor, once another than the step's own may be chosen.
    pub(crate) updates: Option<Vec<Update>>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// How the step was made data-parallel, where it was.
    pub(crate) replicas: Option<Replicas>,
    /// What each gradient was on this replica, by input number of the parameter.
    pub(crate) local_gradients: BTreeMap<usize, InstructionId>,
    /// What is outside while passes work inside a body.
    pub(crate) entered: Option<Entered>,
    /// What is outside while passes work inside a loop.
    pub(crate) looped: Option<Looped>,
}

impl Context {
    /// A context for a module of which somebody knows [successors](Self::successors).
    #[must_use]
    pub fn with_successors(successors: BTreeMap<usize, usize>) -> Self {
        Self { successors, ..Self::default() }
    }

    /// A context for a step that was found already.
    #[must_use]
    pub fn with_step(step: TrainStep) -> Self {
        Self { step: Some(step), ..Self::default() }
    }

    /// The train step.
    ///
    /// # Errors
    ///
    /// Where no pass has found it.
    pub fn step(&self) -> Result<&TrainStep, PassError> {
        self.step.as_ref().ok_or(PassError::Needs { pass: "discover" })
    }

    /// What the controller adds.
    ///
    /// # Errors
    ///
    /// Where `measure-entropy` has not run.
    pub fn layout(&self) -> Result<&ControllerLayout, PassError> {
        self.layout.as_ref().ok_or(PassError::Needs { pass: "measure-entropy" })
    }

    /// Refuses a value of `tensor` that is to be measured, where the step is inside a body of which devices may have different
    /// ones.
    pub(crate) fn refuse_own(&self, module: &Module, tensor: &str, value: Value) -> Result<(), PassError> {
        self.entered.as_ref().map_or(Ok(()), |entered| entered.refuse_own(module, tensor, value))
    }

    pub(crate) fn statistics(&self) -> Result<&Statistics, PassError> {
        self.statistics.as_ref().ok_or(PassError::Needs { pass: "measure-entropy" })
    }

    /// The update of a controlled tensor, where another than the step's own may be chosen.
    pub(crate) fn update(&self, tensor: usize) -> Option<&Update> {
        self.updates.as_ref()?.get(tensor)
    }

    pub(crate) fn control(&self) -> Result<&Controlled, PassError> {
        self.control.as_ref().ok_or(PassError::Needs { pass: "control" })
    }
}

/// Why a pass refused.
#[derive(Debug, Error)]
pub enum PassError {
    /// An instruction could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// No train step, or an undecided one.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The policy does not fit this step.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Several steps do not go into one launch.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// A pass that this one builds on has not run.
    #[error("it needs the results of `{pass}`, which has not run before it in this pipeline")]
    Needs {
        /// The missing pass.
        pass: &'static str,
    },
    /// Control cannot be put into the loop whose body is the step.
    #[error("the train step is the body of the loop {loop_name}, and control cannot be put there: {reason}")]
    InsideLoop {
        /// Name of the `while`.
        loop_name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Part of the step is in a computation that must stay one.
    #[error(
        "gradients are computed inside {computation} and used outside; put all of the step inside the `shard_map`, \
         optimizer included, or export it under `jax.jit` with shardings"
    )]
    InsideCall {
        /// The computation.
        computation: String,
    },
    /// The step cannot be made data-parallel as was asked.
    #[error("the step cannot be made data-parallel: {reason}")]
    NotReplicable {
        /// Why, and what to do.
        reason: String,
    },
    /// States of replicas would not stay alike.
    #[error(
        "the step cannot be made data-parallel: the new value of {} would differ from replica to replica, for it depends on \
         their data by other ways than gradients, and there is no rule for it: {}. Export a step that is parallel itself \
         (`jax.jit` over a mesh, or `shard_map`)",
        if states.len() == 1 { "a state" } else { "some states" },
        listed(states.iter().cloned())
    )]
    Drifts {
        /// Tree path of each, and why discovery put it into its class.
        states: Vec<(String, String)>,
    },
    /// The body of a `shard_map` that control cannot be put into.
    #[error("control cannot be put into {body}, the body of a `shard_map`: {reason}")]
    Manual {
        /// The computation.
        body: String,
        /// Why.
        reason: String,
    },
    /// A gradient that is not the same on all devices.
    #[error(
        "the gradient of {tensor}, {gradient}, differs from device to device, so that devices would decide differently; \
         add it up over all axes of the mesh (`jax.lax.pmean`) before the optimizer takes it, or export the step under \
         `jax.jit` with shardings"
    )]
    Varying {
        /// Tree path.
        tensor: String,
        /// The gradient.
        gradient: String,
    },
    /// What would be measured holds a state that every device has its own of.
    #[error(
        "what would be measured of {tensor}, {value}, holds more than the gradient: a state that every device has its own \
         of, so that devices might decide differently (a parameter in its weight decay, gradients accumulated so far, a \
         moment that a switch looks at); hand in and return one state for all of them, by `in_axes=None, out_axes=None` of \
         `jax.pmap` or `PartitionSpec()` of `jax.shard_map`"
    )]
    OwnState {
        /// Tree path.
        tensor: String,
        /// The value.
        value: String,
    },
    /// How the module is split over devices cannot be told.
    #[error("how the module is split over devices cannot be told: {0}")]
    Partitioning(#[from] PartitioningError),
    /// There is no gradient to measure.
    #[error("no parameter has a gradient, so there is nothing to control: {reasons}")]
    NothingToControl {
        /// Per parameter, why.
        reasons: String,
    },
    /// A gradient of an element type whose entropy is not defined.
    #[error(
        "the gradient of {tensor} is {shape}; entropy is defined for real floating-point gradients with at least one \
         element"
    )]
    UnsupportedGradient {
        /// Tree path.
        tensor: String,
        /// The gradient's shape.
        shape: String,
    },
    /// A gradient too large for the counters of the `histogram` estimator.
    #[error(
        "the gradient of {tensor} has {elements} elements, and `entropy.estimator = \"histogram\"` counts to {most}; \
         choose another estimator"
    )]
    Uncountable {
        /// Tree path.
        tensor: String,
        /// Its number of elements.
        elements: u64,
        /// The largest number that can be counted.
        most: u64,
    },
    /// Something the step names is not in the module.
    #[error("the train step names {what}, which the module does not have; it was found in another module")]
    Stale {
        /// What is missing.
        what: String,
    },
    /// A value inside a tuple that is used as a whole.
    #[error(
        "the new value of {tensor} is element {leaf} of {producer}, and {user} uses that tuple as a whole, so not \
         every use can be made to see the scaled value"
    )]
    WholeTupleUse {
        /// Tree path of the parameter.
        tensor: String,
        /// The instruction with a tuple result.
        producer: String,
        /// Which leaf.
        leaf: usize,
        /// The user.
        user: String,
    },
    /// States without a class, under a policy that gates.
    #[error(
        "the policy gates, but {} not be classified, and a refused step would not know whether to keep {} or let {} go on: {}. \
         Decide under `[states]` of the policy, as in `{} = \"held\"` or `\"advancing\"`",
        if states.len() == 1 { "a state could" } else { "states could" },
        if states.len() == 1 { "it" } else { "them" },
        if states.len() == 1 { "it" } else { "them" },
        listed(states.iter().cloned()),
        states.first().map_or_else(String::new, |(name, _)| toml_key(name)),
    )]
    Unclassified {
        /// Tree path and reason of each.
        states: Vec<(String, String)>,
    },
}

fn toml_key(name: &str) -> String {
    toml::Value::String(name.to_owned()).to_string()
}

/// Why a pipeline stopped.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The module breaks a rule.
    #[error("the module is invalid {when}")]
    Invalid {
        /// `before the first pass` or `after PASS`.
        when: String,
        /// Which rules.
        source: VerifyErrors,
    },
    /// A pass refused.
    #[error("{pass}: {source}")]
    Failed {
        /// The pass.
        pass: &'static str,
        /// Why.
        source: PassError,
    },
}

/// A sequence of passes.
#[derive(Default)]
pub struct Pipeline {
    passes: Vec<Box<dyn Pass>>,
}

impl Pipeline {
    /// A pipeline without passes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pass at the end.
    #[must_use]
    pub fn with(mut self, pass: impl Pass + 'static) -> Self {
        self.passes.push(Box::new(pass));
        self
    }

    /// The passes' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.passes.iter().map(|p| p.name())
    }

    /// Runs all passes; `observe` sees the module after each, with the pass's name and whether it changed anything.
    ///
    /// The module is verified before the first pass and after the last. Where that fails, or a pass does, all passes run
    /// once more on the module as it was, which is verified after each: so a failure is put down to the pass that it
    /// belongs to, and a module without failures, which is most of them, is not read a dozen times.
    ///
    /// # Errors
    ///
    /// Where the module is invalid, or a pass refuses.
    pub fn run(
        &self,
        module: &mut Module,
        context: &mut Context,
        observe: &mut dyn FnMut(&'static str, Changed, &Module),
    ) -> Result<Changed, PipelineError> {
        verify(module, || "before the first pass".to_owned())?;
        let before = (module.clone(), context.clone());
        let ran = self.run_all(module, context, observe, |_, _| Ok(()));
        let ran = ran.and_then(|changed| {
            if changed == Changed::Yes {
                verify(module, || "after the last pass".to_owned())?;
            }
            Ok(changed)
        });
        ran.map_err(|error| {
            let (mut module, mut context) = before;
            let again = self.run_all(&mut module, &mut context, &mut |_, _, _| {}, |pass, module| {
                verify(module, || format!("after `{pass}`"))
            });
            again.err().unwrap_or(error)
        })
    }

    fn run_all(
        &self,
        module: &mut Module,
        context: &mut Context,
        observe: &mut dyn FnMut(&'static str, Changed, &Module),
        check: impl Fn(&'static str, &Module) -> Result<(), PipelineError>,
    ) -> Result<Changed, PipelineError> {
        let mut any = Changed::No;
        for pass in &self.passes {
            let name = pass.name();
            let changed = pass.run(module, context).map_err(|source| PipelineError::Failed { pass: name, source })?;
            if changed == Changed::Yes {
                any = Changed::Yes;
                check(name, module)?;
            }
            observe(name, changed, module);
        }
        Ok(any)
    }
}

fn verify(module: &Module, when: impl FnOnce() -> String) -> Result<(), PipelineError> {
    hlo::verify::verify(module).map_err(|source| PipelineError::Invalid { when: when(), source })
}

#[cfg(test)]
mod tests {
    use hlo::build::Builder;
    use hlo::{PrimitiveType, Shape};

    use super::*;

    /// Does nothing, or gives two instructions one name.
    struct Named(&'static str, bool);

    impl Pass for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        fn run(&self, module: &mut Module, _: &mut Context) -> Result<Changed, PassError> {
            if self.1 {
                let entry = module.entry_computation_mut();
                let parameters = entry.parameters();
                let name = entry.get(parameters[0]).unwrap().name.clone();
                entry.get_mut(parameters[1]).unwrap().name = name;
            }
            Ok(Changed::Yes)
        }
    }

    struct Refuses;

    impl Pass for Refuses {
        fn name(&self) -> &'static str {
            "refuses"
        }

        fn run(&self, _: &mut Module, _: &mut Context) -> Result<Changed, PassError> {
            Err(PassError::Needs { pass: "another" })
        }
    }

    fn module() -> Module {
        let mut module = Module::new("two");
        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", Shape::scalar(PrimitiveType::F32)).unwrap();
        let y = b.parameter("y", Shape::scalar(PrimitiveType::F32)).unwrap();
        module.set_outputs(&[x, y]).unwrap();
        module
    }

    fn failure(pipeline: &Pipeline) -> String {
        pipeline.run(&mut module(), &mut Context::default(), &mut |_, _, _| {}).unwrap_err().to_string()
    }

    #[test]
    fn a_broken_module_is_put_down_to_the_pass_that_broke_it() {
        let pipeline = || Pipeline::new().with(Named("first", false)).with(Named("breaks", true));
        assert_eq!(failure(&pipeline().with(Named("last", false))), "the module is invalid after `breaks`");
        assert_eq!(failure(&pipeline().with(Refuses)), "the module is invalid after `breaks`");
        let refused = failure(&Pipeline::new().with(Named("first", false)).with(Refuses));
        assert!(refused.starts_with("refuses: it needs the results of `another`"), "{refused}");
    }

    #[test]
    fn a_module_that_is_invalid_from_the_start_is_no_pass_s_fault() {
        let mut module = module();
        Named("breaks", true).run(&mut module, &mut Context::default()).unwrap();
        let ran =
            Pipeline::new().with(Named("first", false)).run(&mut module, &mut Context::default(), &mut |_, _, _| {});
        assert_eq!(ran.unwrap_err().to_string(), "the module is invalid before the first pass");
    }
}
