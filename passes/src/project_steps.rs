//! `project-steps`: how long the optimizer's steps are, and how far they go along what SGD would follow.
//!
//! Of each tensor whose update has a direction A, with the first moment m' and the gradient g that the optimizer consumes,
//! two sums, in `f32` whatever the types:
//!
//! ```text
//! nearest   m'·m',   A·m'
//! swats     A·A,     A·g
//! ```
//!
//! It adds no state; [`control`](crate::control) keeps their means. A policy that may switch the optimizer of a step in
//! which nothing can be switched is refused here.

use hlo::build::{Builder, Built};
use hlo::{InstructionId, Module, PrimitiveType};

use crate::control::Projections;
use crate::layout::TensorSwitch;
use crate::measure_entropy::ReductionStyle;
use crate::measure_entropy::emit::{Emitter, sum};
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::{PolicyError, SwitchRate};
use crate::step::{Direction, DirectionStatus, Factors, Gradient, TrainStep};
use crate::values::{materialise, product};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct ProjectSteps {
    /// Which sums are wanted.
    pub rate: SwitchRate,
    /// How sums are emitted.
    pub reduction: ReductionStyle,
}

impl Pass for ProjectSteps {
    fn name(&self) -> &'static str {
        "project-steps"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let switched = tensors(context.step()?);
        let layout = context.layout.as_mut().ok_or(PassError::Needs { pass: "measure-entropy" })?;
        layout.switched = switched;
        refuse_where_nothing_switches(context)?;

        let step = context.step()?;
        let names = &context.statistics()?.short_names;
        let mut e = Emitter::new(module, self.reduction)?;
        let (mut energies, mut products) = (Vec::new(), Vec::new());
        for ((parameter, gradient), short) in step.controlled().zip(names) {
            e.b.set_scope(&format!("entropic.project.{short}"), &format!("entropic/project-steps/{}", parameter.name));
            let (energy, product) = match &parameter.direction {
                DirectionStatus::Found(direction) => {
                    for value in [direction.parts.value, direction.moment] {
                        context.refuse_own(e.b.module(), &parameter.name, value)?;
                    }
                    self.project(&mut e, direction, gradient, short)?
                }
                DirectionStatus::Absent { .. } => (e.zero, e.zero),
            };
            energies.push(energy);
            products.push(product);
        }
        e.b.set_scope("entropic.project", "entropic/project-steps");
        let energy = e.b.pack(&energies)?;
        let product = e.b.pack(&products)?;
        context.projections = Some(Projections { energy, product });
        Ok(Changed::Yes)
    }
}

impl ProjectSteps {
    fn project(
        &self,
        e: &mut Emitter<'_>,
        direction: &Direction,
        gradient: &Gradient,
        short: &str,
    ) -> Result<(InstructionId, InstructionId), PassError> {
        let along = match self.rate {
            SwitchRate::Nearest => direction.moment,
            SwitchRate::Swats => gradient.eff,
        };
        let taken = materialise(&mut e.b, direction.parts.value)?;
        let along = materialise(&mut e.b, along)?;
        let taken = wide(&mut e.b, taken)?;
        let along = wide(&mut e.b, along)?;
        let taken = without(&mut e.b, taken, &direction.buried)?;
        let taken = e.own(taken)?;
        let along = e.own(along)?;
        let measured = if self.rate == SwitchRate::Nearest { along } else { taken };
        let square = e.b.multiply(measured, measured)?;
        let product = e.b.multiply(taken, along)?;
        let [energy, product] = e.fold([sum(square, "step_energy"), sum(product, "step_product")], 0, short)?;
        Ok((energy, product))
    }
}

fn wide(b: &mut Builder<'_>, x: InstructionId) -> Built {
    b.convert(x, PrimitiveType::F32)
}

/// x with factors that are inside it taken out; not finite where one is 0, which keeps the step out of all means.
fn without(b: &mut Builder<'_>, x: InstructionId, factors: &Factors) -> Result<InstructionId, PassError> {
    let Some(factor) = product(b, None, factors, PrimitiveType::F32)? else { return Ok(x) };
    let factor = b.broadcast_scalar_like(factor, x)?;
    Ok(b.divide(x, factor)?)
}

/// What the layout says of each controlled tensor.
fn tensors(step: &TrainStep) -> Vec<TensorSwitch> {
    step.controlled()
        .map(|(parameter, _)| TensorSwitch {
            reason: match &parameter.direction {
                DirectionStatus::Found(_) => None,
                DirectionStatus::Absent { reason } => Some(reason.clone()),
            },
        })
        .collect()
}

fn refuse_where_nothing_switches(context: &Context) -> Result<(), PassError> {
    let layout = context.layout()?;
    let kept = layout.tensors.iter().zip(&layout.switched);
    let kept: Vec<_> = kept.filter_map(|(t, s)| Some((t.name.clone(), s.reason.clone()?))).collect();
    if kept.len() == layout.tensors.len() {
        return Err(PolicyError::NothingToSwitch { tensors: kept }.into());
    }
    Ok(())
}
