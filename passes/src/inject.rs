//! Injection: all passes in order, from an uncontrolled module to a controlled one.

use hlo::Module;
use thiserror::Error;

use crate::append_state::AppendState;
use crate::control::Control;
use crate::discover::discover_with;
use crate::gate::{Gate, PredicateStyle};
use crate::gradient_all_reduce::{GradientAllReduce, Replicas};
use crate::inline_calls::InlineCalls;
use crate::layout::ControllerLayout;
use crate::loops::{EnterLoop, LeaveLoop};
use crate::manual::{EnterBody, LeaveBody};
use crate::measure_entropy::{MeasureEntropy, ReductionStyle};
use crate::pass::{Changed, Context, Pass, PassError, Pipeline, PipelineError};
use crate::policy::{Policy, PolicyError};
use crate::project_steps::ProjectSteps;
use crate::rollback::Rollback;
use crate::scale_momentum::ScaleMomentum;
use crate::scale_updates::ScaleUpdates;
use crate::spectral::{MatrixStyle, Spectral};
use crate::step::TrainStep;
use crate::switch_optimizer::SwitchOptimizer;

/// What an injection depends on besides module and policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct InjectOptions {
    /// How sums over gradients are emitted; a property of the target.
    pub reduction: ReductionStyle,
    /// How a gate's predicate reaches the states; a property of the target.
    pub predicate: PredicateStyle,
    /// How products of matrices are emitted; a property of the target.
    pub matrices: MatrixStyle,
    /// Replicas that train together, where a step of one device is to become data-parallel.
    pub replicas: Option<Replicas>,
}

/// What came of an injection.
#[derive(Debug, Clone)]
pub struct Injection {
    /// The train step that was found.
    pub step: TrainStep,
    /// What the controller added.
    pub layout: ControllerLayout,
}

/// Why nothing was injected.
#[derive(Debug, Error)]
pub enum InjectError {
    /// The policy has a value outside its range.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A pass refused, or the module is invalid.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl InjectError {
    /// Whether it is the policy that has to change, and not the module.
    #[must_use]
    pub fn is_of_policy(&self) -> bool {
        match self {
            Self::Policy(_) => true,
            Self::Pipeline(PipelineError::Failed { source, .. }) => matches!(source, PassError::Policy(_)),
            Self::Pipeline(_) => false,
        }
    }
}

/// `discover` as a pass: an analysis that changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discover;

impl Pass for Discover {
    fn name(&self) -> &'static str {
        "discover"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        context.step = Some(discover_with(module, &context.successors)?);
        Ok(Changed::No)
    }
}

/// The passes that control a step once it is found, in order.
#[must_use]
pub fn control_pipeline(policy: &Policy, options: InjectOptions) -> Pipeline {
    add_control(Pipeline::new(), policy, options)
}

fn add_control(pipeline: Pipeline, policy: &Policy, options: InjectOptions) -> Pipeline {
    let pipeline = pipeline.with(EnterLoop);
    let pipeline = match options.replicas {
        Some(replicas) => pipeline.with(GradientAllReduce { replicas }),
        None => pipeline,
    };
    let measure = MeasureEntropy { policy: policy.clone(), reduction: options.reduction };
    let mut measured = pipeline.with(EnterBody).with(measure);
    if policy.switch.enabled {
        measured = measured.with(ProjectSteps { rate: policy.switch.rate, reduction: options.reduction });
    }
    let measured = measured.with(Control);
    // A select beside an update moves fusions, and with them the last bit of a rounding: what is not asked for is not
    // in the graph.
    let momentum =
        if policy.scales_momentum() { measured.with(ScaleMomentum { policy: policy.clone() }) } else { measured };
    let switched = if policy.switch.enabled { momentum.with(SwitchOptimizer) } else { momentum };
    let equalised = if policy.spectral.enabled {
        switched.with(Spectral { policy: policy.clone(), style: options.matrices })
    } else {
        switched
    };
    let scaled = if policy.scales() { equalised.with(ScaleUpdates) } else { equalised };
    let gated = scaled.with(Gate { policy: policy.clone(), predicate: options.predicate });
    let kept = if policy.rollback.keeps_snapshot() { gated.with(Rollback) } else { gated };
    kept.with(AppendState).with(LeaveBody).with(LeaveLoop)
}

/// Finds the train step in `module` and injects the controller.
///
/// ```no_run
/// use hlo::Module;
/// use passes::{InjectOptions, Policy, inject};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut module = Module::import(&std::fs::read("step.hlo.pb")?)?;
/// let policy = Policy::parse("[gate.norm]\nmultiple = 2.0")?;
/// let injection = inject(&mut module, &policy, InjectOptions::default())?;
/// for tensor in &injection.layout.tensors {
///     println!("{}: {} elements", tensor.name, tensor.elements);
/// }
/// std::fs::write("controlled.hlo.pb", module.export())?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Where the policy or the module is invalid, no step is found, or a pass refuses; the module must be dropped then.
pub fn inject(module: &mut Module, policy: &Policy, options: InjectOptions) -> Result<Injection, InjectError> {
    inject_observed(module, policy, options, &mut |_, _, _| {})
}

/// [`inject`], with the module shown to `observe` after each pass.
///
/// # Errors
///
/// As [`inject`].
pub fn inject_observed(
    module: &mut Module,
    policy: &Policy,
    options: InjectOptions,
    observe: &mut dyn FnMut(&'static str, Changed, &Module),
) -> Result<Injection, InjectError> {
    policy.validate()?;
    let mut context = Context::default();
    let pipeline = Pipeline::new().with(InlineCalls).with(Discover);
    add_control(pipeline, policy, options).run(module, &mut context, observe)?;
    finish(context)
}

/// Injects the controller into `module`, in which `step` was found.
///
/// # Errors
///
/// Where the policy is invalid, the module is, or a pass refuses; the module must be dropped then.
pub fn inject_step(
    module: &mut Module,
    step: TrainStep,
    policy: &Policy,
    options: InjectOptions,
    observe: &mut dyn FnMut(&'static str, Changed, &Module),
) -> Result<Injection, InjectError> {
    policy.validate()?;
    let mut context = Context::with_step(step);
    control_pipeline(policy, options).run(module, &mut context, observe)?;
    finish(context)
}

/// Makes `module`, in which `step` was found, data-parallel, without a controller. Returns the step as it is then.
///
/// # Errors
///
/// Where the module is invalid, or the step cannot be made so; the module must be dropped then.
pub fn replicate_step(module: &mut Module, step: TrainStep, replicas: Replicas) -> Result<TrainStep, InjectError> {
    let mut context = Context::with_step(step);
    Pipeline::new().with(EnterLoop).with(GradientAllReduce { replicas }).with(LeaveLoop).run(
        module,
        &mut context,
        &mut |_, _, _| {},
    )?;
    let needs = PipelineError::Failed { pass: "gradient-all-reduce", source: PassError::Needs { pass: "discover" } };
    Ok(context.step.ok_or(needs)?)
}

fn finish(context: Context) -> Result<Injection, InjectError> {
    let needs = |pass| PipelineError::Failed { pass: "append-state", source: PassError::Needs { pass } };
    let step = context.step.ok_or_else(|| needs("discover"))?;
    let layout = context.layout.ok_or_else(|| needs("control"))?;
    Ok(Injection { step, layout })
}
