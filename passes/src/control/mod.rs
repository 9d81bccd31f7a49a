//! `control`: from statistics to a decision and the controller's next state.
//!
//! Everything is computed on vectors with one element per tensor and a last one
//! for the whole gradient. With S of each tensor, and h of each and of the whole (see
//! [`measure_entropy`](crate::measure_entropy)):
//!
//! * **entropy** E = h / ln n, or h / ln bins for `histogram`, in \[0, 1\]. A tensor is *active*
//!   where S is a normal number, h is finite and n > 1; an inactive one moves nothing below;
//! * **decision**: the norm gate votes against a step whose norm √ΣS exceeds both a multiple of its running mean and
//!   that mean by so many running mean absolute deviations from it, the entropy gate against one whose global E leaves
//!   a band around the target as it was before the step. A step is refused when ΣS is not finite, or when one or all of
//!   the gates that are on vote so, as the policy says. It is *accepted* when it is finite and not refused: only
//!   accepted steps enter what follows;
//! * **smoothed**: mean of E over the last W accepted steps, rows of a shift register;
//! * **mean**: exponentially forgetting, bias-corrected: with rate r, weight q ← q + r(1 − q)
//!   and m ← m + (r/q)(E − m), summed with Kahan's carry, since r is small;
//! * **target**: a fixed value, or m as of the first calibration and then of every so many accepted steps, held in
//!   between; times a factor that may decay with every accepted step and starts again with a calibration.
//!   **ratio** = smoothed / target;
//! * **re-arming**: after `max_pause` refusals by gates since the last accepted step, the norm's running mean becomes
//!   the mean of the refused norms, and the global mean and target become the mean of the refused entropies. Non-finite
//!   steps in between neither count nor reset; `max_pause` of them in a row raise `stop`, and are never admitted;
//! * **laws**: `micro` raises the logarithm of a tensor's scale while its ratio is low; `rule` moves those of learning
//!   rate and momentum while the global ratio leaves a band; `pi` sets that of the learning rate from the logarithm of
//!   the global ratio and its sum, which stands still where it would push further out of the clamp. Each acts on some of
//!   the accepted steps and is clamped; their scales are of this step, or of the one before where control is delayed;
//! * **switch**: when the optimizer gives way to SGD, and with which rates (`switch.rs`);
//! * **rollback**: after `patience` refused steps in a row held states return to the copy that was taken when all was
//!   well, and learning rates back off for a while (`rollback.rs`).
//!
//! Every element of the state is chosen by `select` between its old bits and a
//! finite new value, so that no NaN enters. Absent values are −1. Numbers of the
//! policy are read from the policy vector; see [`layout`](crate::layout) for all fields.

mod decision;
mod emit;
mod history;
mod law;
mod rollback;
mod scales;
mod switch;

pub(crate) use rollback::NEGLIGIBLE;

use hlo::build::Builder;
use hlo::{InstructionId, Module, PrimitiveType, Shape};

use crate::append_state::append_input;
use crate::layout::{ArrayKind, ControlledTensor, ControllerLayout, StepFacts, length};
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::Policy;
use crate::values::scalar;

/// The pass, see the module's documentation; the layout that `measure-entropy` made holds what it needs of the policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Control;

/// What control computes, for the passes that act on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Controlled {
    /// Whether the update is applied, pred\[\].
    pub(crate) applied: InstructionId,
    /// Scale of each tensor's update, the global one included, f32\[n\].
    pub(crate) scales: InstructionId,
    /// How momentum is scaled, where the policy asks for it.
    pub(crate) momentum: Option<MomentumControl>,
    /// Which tensors SGD moves, where the policy asks for it.
    pub(crate) switch: Option<SwitchControl>,
    /// When held states return to their copies, where the policy asks for it.
    pub(crate) rollback: Option<RollbackControl>,
    /// The state's successor, f32\[S\].
    pub(crate) state: InstructionId,
    /// The counters' successor, s32\[C\].
    pub(crate) counters: InstructionId,
    /// f32\[T\].
    pub(crate) telemetry: InstructionId,
}

/// How momentum coefficients are scaled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MomentumControl {
    /// Scale of each tensor's coefficients, the one for all included, f32\[n\].
    pub(crate) scales: InstructionId,
    /// No coefficient is raised above this, f32\[\].
    pub(crate) cap: InstructionId,
}

/// How the optimizer steps, as vectors in the order of the layout's tensors; 0 where a tensor keeps its optimizer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projections {
    /// A·A of each direction, or m'·m' of each moment, as the policy's rate wants it; f32\[n\].
    pub(crate) energy: InstructionId,
    /// A·g with the gradient, or A·m', likewise; f32\[n\].
    pub(crate) product: InstructionId,
}

/// Which tensors SGD moves, and how far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SwitchControl {
    /// Whether this tensor's update is SGD's, pred\[n\].
    pub(crate) by_sgd: InstructionId,
    /// The length of its step along the first moment, before learning rate and schedule, f32\[n\].
    pub(crate) rates: InstructionId,
}

/// What becomes of held states and their copies, pred\[\] both and never both at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RollbackControl {
    /// Held states take the values of their copies.
    pub(crate) returns: InstructionId,
    /// Copies take the values of their states.
    pub(crate) takes: InstructionId,
}

impl Pass for Control {
    fn name(&self) -> &'static str {
        "control"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let statistics = context.statistics()?;
        let (policy, measured) = (statistics.policy, statistics.measured);
        let mut layout = context.layout()?.clone();
        let consumes = context.step.as_ref().and_then(|step| step.consumes);
        let consumes = match consumes {
            Some(value) => Some(scalar(&mut Builder::at_entry(module), value, PrimitiveType::PRED)?),
            None => None,
        };
        let inputs = Inputs {
            consumes,
            energy: measured.energy,
            nats: measured.nats,
            projections: context.projections,
            policy,
            state: append_input(module, &mut layout, ArrayKind::State)?,
            counters: append_input(module, &mut layout, ArrayKind::Counters)?,
        };
        context.control = Some(law::emit(module, &layout, &inputs)?);
        context.layout = Some(layout);
        Ok(Changed::Yes)
    }
}

/// A module that is control and nothing else: from (energy f32\[n\], nats f32\[n + 1\], policy, state, counters) to
/// (state, counters, telemetry, scales f32\[n\], applied pred\[\]). Under a policy that may switch the optimizer, its
/// projections, f32\[n\] both, come after nats, and by_sgd pred\[n\] and rates f32\[n\] at the end.
///
/// For trying policies on recorded statistics, and for tests.
///
/// # Errors
///
/// Where the policy names tensors that are not there, or there are none.
pub fn standalone(
    tensors: Vec<ControlledTensor>,
    policy: &Policy,
    facts: StepFacts,
) -> Result<(Module, ControllerLayout), PassError> {
    if tensors.is_empty() {
        return Err(PassError::NothingToControl { reasons: "  no tensors are given".to_owned() });
    }
    let mut module = Module::new("control");
    let n = tensors.len();
    let layout = ControllerLayout::new(tensors, policy, facts)?;
    let mut b = Builder::at_entry(&mut module);
    let mut input = |name, element_type, len: usize| b.parameter(name, Shape::array(element_type, &[len as i64]));
    let inputs = Inputs {
        consumes: None,
        energy: input("energy", PrimitiveType::F32, n)?,
        nats: input("nats", PrimitiveType::F32, n + 1)?,
        projections: match layout.switch {
            Some(_) => Some(Projections {
                energy: input("step_energy", PrimitiveType::F32, n)?,
                product: input("step_product", PrimitiveType::F32, n)?,
            }),
            None => None,
        },
        policy: input("policy", PrimitiveType::F32, length(&layout.policy))?,
        state: input("state", PrimitiveType::F32, length(&layout.state))?,
        counters: input("counters", PrimitiveType::S32, length(&layout.counters))?,
    };
    let made = law::emit(&mut module, &layout, &inputs)?;
    let mut outputs = vec![made.state, made.counters, made.telemetry, made.scales, made.applied];
    outputs.extend(made.switch.iter().flat_map(|s| [s.by_sgd, s.rates]));
    module.set_outputs(&outputs)?;
    Ok((module, layout))
}

/// What control reads.
struct Inputs {
    /// Whether the step consumes the gradient, where it accumulates it over several; pred\[\].
    consumes: Option<InstructionId>,
    /// S of each tensor, f32\[n\].
    energy: InstructionId,
    /// h of each tensor and last that of the whole gradient, f32\[n + 1\].
    nats: InstructionId,
    /// How the optimizer steps, where it may be switched.
    projections: Option<Projections>,
    /// f32\[P\].
    policy: InstructionId,
    /// f32\[S\].
    state: InstructionId,
    /// s32\[C\].
    counters: InstructionId,
}
