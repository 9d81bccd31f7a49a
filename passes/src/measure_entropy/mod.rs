//! `measure-entropy`: sufficient statistics of every controlled gradient.
//!
//! What is measured is the gradient before clipping: entropies of shares do not change
//! under a common factor, but a clipped norm is constant and would tell nothing. Where
//! a loss scale is divided out before that, the value after the division is taken, so
//! that a change of the loss scale is no change of the norm. Accumulation is in `f32`
//! whatever the gradient's type.
//!
//! Of each tensor i, and of all as one gradient (the *whole*), this pass emits the entropy
//! h in nats under the policy's [`Estimator`]; the whole's follows from the statistics
//! of the tensors exactly, not as an average. The energy S = Σ g² is emitted whatever the
//! estimator, since its root is the norm.
//!
//! | estimator | statistics of a tensor | h | of the whole |
//! |---|---|---|---|
//! | `energy` | S | −Σ p ln p, p = g²/S | by the chain rule, weights S |
//! | `magnitude` | M = Σ\|g\| | −Σ p ln p, p = \|g\|/M | by the chain rule, weights M |
//! | `softmax` | m = max \|g\|, Z = Σ eˣ, B = Σ x·eˣ, x = (\|g\| − m)/T | ln Z − B/Z | Z and B moved to max m |
//! | `histogram` | c, counts per bin of log2 \|g\| | −Σ p ln p, p = c/n | counts added up |
//!
//! Infinite and NaN gradients make S infinite or NaN; h is then meaningless, and
//! `control` looks at S first. For `softmax` in units of the whole gradient's root mean square,
//! that goes for h of all tensors at once.
//!
//! How the sums are emitted is the [`ReductionStyle`], a property of the target; each
//! estimator's file says what it makes of it.
//!
//! Where several replicas train together under `replicas.entropy_of = "local-mean"`, what is measured is each replica's own raw
//! gradient, and energies and entropies are the means over replicas (`reduce-statistics`).
//!
//! The policy vector becomes an input of the program here, since this is the first pass that may read it.

pub(crate) mod emit;
mod histogram;
mod shares;
mod softmax;

use std::num::NonZeroU32;

use hlo::build::{BuildError, Builder};
use hlo::{Instruction, InstructionId, Module, Opcode, PrimitiveType};

use emit::{Emitter, Gradient};

use crate::append_state::append_input;
use crate::layout::{ArrayKind, ControlledTensor, ControllerLayout, StepFacts, TEMPERATURE};
use crate::listed::listed;
use crate::names;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::{EntropyOf, EntropyPolicy, Estimator, Policy};
use crate::step::{GradientStatus, StateRole, TrainStep, Value};
use crate::values::materialise;

pub use shares::SHARES_LIMIT;

/// How the sums over a gradient are emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReductionStyle {
    /// One `reduce` per sum, those of an entropy over shares: for CPU, where every `reduce` reads its operand anyhow. A
    /// variadic one accumulates naively there; only the counts of `histogram`, which are integers, go together in one.
    /// The gradient passes through a `reduce-precision` to its own precision, which keeps our sums apart from equal ones
    /// of the step, such as those of clipping: merged with ours they would be compiled as part of other fusions, there
    /// with another order of additions.
    #[default]
    Shares,
    /// Independent `reduce`s that do not wait for each other, so that a compiler can fuse them into one reading, as
    /// TPU's does: entropies of `energy` and `magnitude` by offset, over shares up to [`SHARES_LIMIT`] elements.
    Separate,
    /// One variadic `reduce` for all sums that do not wait for each other: for GPU, where every `reduce` is a kernel. Of
    /// `energy` and `magnitude`, gradients of the same dimensions are stacked and share one.
    /// Entropies by offset: below 2¹⁴ elements and for gradients far from 1 the error of `energy` can reach 3e-5.
    /// Steps over a mesh get `Separate` instead: partitioners gather the parts of a variadic sum.
    Variadic,
}

/// The pass, see the module's documentation.
#[derive(Debug, Clone)]
pub struct MeasureEntropy {
    /// The policy, for its estimator and for the vector of its numbers.
    pub policy: Policy,
    /// How sums are emitted.
    pub reduction: ReductionStyle,
}

/// What was measured, as vectors in the order of the layout's tensors, and the policy's numbers.
#[derive(Debug, Clone)]
pub(crate) struct Statistics {
    /// Names of the tensors inside HLO names.
    pub(crate) short_names: Vec<String>,
    /// What came of the gradients.
    pub(crate) measured: Measured,
    /// `entropic.policy`, f32\[P\].
    pub(crate) policy: InstructionId,
}

/// Statistics of n gradients, as values of the entry.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// S of each, f32\[n\].
    pub energy: InstructionId,
    /// h of each in nats, and last that of the whole, f32\[n + 1\]; meaningless where S is no positive normal number.
    pub nats: InstructionId,
}

impl Pass for MeasureEntropy {
    fn name(&self) -> &'static str {
        "measure-entropy"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let step = context.step()?;
        refuse_unsupported(module, step)?;
        let local = self.local_replicas(context, step)?;
        let measured = |input: usize, value: Value| match context.local_gradients.get(&input) {
            Some(&own) if local.is_some() => Value::array(own),
            _ => value,
        };
        let found = step.controlled().map(|(p, g)| (p.name.clone(), p.input, measured(p.input, g.measured)));
        let found: Vec<_> = found.collect();
        if found.is_empty() {
            return Err(PassError::NothingToControl { reasons: reasons(step) });
        }
        let facts = StepFacts { loss_scaled: step.states.iter().any(|s| s.role == StateRole::LossScale) };
        let short_names = names::short(&found.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>());
        let mut tensors = Vec::with_capacity(found.len());
        let mut gradients = Vec::with_capacity(found.len());
        let mut b = Builder::at_entry(module);
        for ((name, input, value), short) in found.into_iter().zip(&short_names) {
            b.set_scope(&format!("entropic.measure.{short}"), &format!("entropic/measure-entropy/{name}"));
            let value = materialise(&mut b, value)?;
            let shape = b.shape(value)?;
            let (elements, rank) = (shape.num_elements(), shape.rank() as u32);
            if !shape.element_type().is_floating() || elements == 0 {
                return Err(PassError::UnsupportedGradient { tensor: name, shape: shape.to_string() });
            }
            if self.policy.entropy.estimator == Estimator::Histogram && elements > histogram::MOST_ELEMENTS {
                return Err(PassError::Uncountable { tensor: name, elements, most: histogram::MOST_ELEMENTS });
            }
            let measured = b.module().entry_computation().get(value).map(ToString::to_string).unwrap_or_default();
            gradients.push(Gradient { value, short: short.clone(), name: name.clone(), elements });
            tensors.push(ControlledTensor { name, input, elements, rank, measured, scaling: None });
        }
        let mut layout = ControllerLayout::new(tensors, &self.policy, facts)?;
        let policy = append_input(module, &mut layout, ArrayKind::Policy)?;
        let temperature = ControllerLayout::field(&layout.policy, TEMPERATURE);
        let temperature =
            temperature.ok_or_else(|| PassError::Stale { what: format!("the policy's {TEMPERATURE}") })?;
        let temperature = temperature.offset as i64;
        let mut emitter = Emitter::new(module, self.reduction)?;
        let mut measured = emitter.measure(&gradients, &self.policy.entropy, &|e| e.b.element(policy, temperature))?;
        if let Some(replicas) = local {
            measured = reduce_statistics(&mut emitter.b, measured, replicas)?;
        }
        context.statistics = Some(Statistics { short_names, measured, policy });
        context.layout = Some(layout);
        Ok(Changed::Yes)
    }
}

impl MeasureEntropy {
    /// The replicas whose own gradients are measured; `None` where the one of all of them is.
    fn local_replicas(&self, context: &Context, step: &TrainStep) -> Result<Option<NonZeroU32>, PassError> {
        if self.policy.replicas.entropy_of == EntropyOf::Global {
            return Ok(None);
        }
        let Some(replicas) = context.replicas else { return Ok(None) };
        let hides = match step.states.iter().any(|s| s.role == StateRole::LossScale) {
            true => "its loss scale is taken out of the gradient after the reduction",
            false if step.consumes.is_some() => "gradients are accumulated after the reduction",
            false => return Ok(Some(replicas.count)),
        };
        let reason = format!(
            "the policy measures each replica's own gradient (`replicas.entropy_of = \"local-mean\"`), and {hides}; measure the \
             \"global\" one"
        );
        Err(PassError::NotReplicable { reason })
    }
}

/// Means over replicas of energies and entropies, by one `all-reduce` of 8 bytes per tensor, and 4 for the whole.
///
/// What is not finite on one replica is not finite in the mean, so all of them decide alike.
fn reduce_statistics(b: &mut Builder<'_>, own: Measured, replicas: NonZeroU32) -> Result<Measured, BuildError> {
    b.set_scope("entropic.reduce_statistics", "entropic/reduce-statistics");
    let adder = Builder::reducer(b.module_mut(), "entropic.add_statistics", Opcode::Add, PrimitiveType::F32)?;
    let packed = b.concatenate(&[own.energy, own.nats], 0)?;
    let sum = b.all_reduce(packed, adder)?;
    let number = b.constant(PrimitiveType::F32, f64::from(replicas.get()))?;
    let number = b.broadcast_scalar_like(number, sum)?;
    let mean = b.divide(sum, number)?;
    let tensors = b.shape(own.energy)?.num_elements() as i64;
    let energy = b.slice_vector(mean, 0, tensors)?;
    let nats = b.slice_vector(mean, tensors, 2 * tensors + 1)?;
    Ok(Measured { energy, nats })
}

/// Emits the statistics of some gradients at the end of the entry.
///
/// `temperature` is the scalar of type f32 that `softmax` divides by, in the policy's unit; without one that of the
/// policy is put into the program.
///
/// # Errors
///
/// Where a gradient is no floating-point array of the entry, or there are none.
pub fn statistics_of(
    module: &mut Module,
    gradients: &[InstructionId],
    entropy: &EntropyPolicy,
    temperature: Option<InstructionId>,
    reduction: ReductionStyle,
) -> Result<Measured, BuildError> {
    let mut emitter = Emitter::new(module, reduction)?;
    let mut measured = Vec::with_capacity(gradients.len());
    for (i, &value) in gradients.iter().enumerate() {
        let elements = emitter.b.shape(value)?.num_elements();
        measured.push(Gradient { value, short: i.to_string(), name: i.to_string(), elements });
    }
    #[allow(clippy::cast_possible_truncation, reason = "the device computes in f32")]
    let literal = entropy.temperature as f32;
    emitter.measure(&measured, entropy, &|e| temperature.map_or_else(|| e.b.constant_f32(literal), Ok))
}

/// What leads into the body of a `shard_map` under GSPMD.
const TO_SHARD: &str = "SPMDFullToShardShape";

pub(crate) fn refuse_unsupported(module: &Module, step: &TrainStep) -> Result<(), PassError> {
    if step.inside_loop.is_some() {
        return Err(PassError::Needs { pass: "enter-loop" });
    }
    if step.computation != module.entry() {
        let computation = module.computation(step.computation).map_or("another computation", |c| c.name.as_str());
        return Err(PassError::InsideCall { computation: computation.to_owned() });
    }
    let manual = |i: &Instruction| i.attributes.custom_call_target == TO_SHARD;
    if let Some((_, call)) = module.entry_computation().instructions().find(|(_, i)| manual(i)) {
        let reason =
            "it was written for GSPMD, where its operations are among all others; export with Shardy".to_owned();
        return Err(PassError::Manual { body: format!("{call} ({TO_SHARD})"), reason });
    }
    Ok(())
}

fn reasons(step: &TrainStep) -> String {
    if step.parameters.is_empty() {
        return "the step has no parameters".to_owned();
    }
    listed(step.parameters.iter().filter_map(|p| match &p.gradient {
        GradientStatus::Absent { reason } => Some((p.name.clone(), reason.clone())),
        GradientStatus::Found(_) => None,
    }))
}
