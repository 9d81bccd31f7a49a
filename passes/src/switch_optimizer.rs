//! `switch-optimizer`: from the optimizer of the graph to SGD with its own first moment.
//!
//! Where discovery wrote a new value as p' = b + η·(w + ι·β·A), with the base b that the step is added to, a learning
//! rate η, decoupled weight decay w, further uniform factors ι and β and the direction A of the optimizer, SGD's is
//!
//! ```text
//! p_sgd = b + η·(w + ι·β·κ·m')
//! ```
//!
//! with the first moment m' that the optimizer keeps anyway and the rate κ of `control`; so the schedule goes on, weight
//! decay stays, and no second copy of any state is needed. Every use of p' sees `select(by_sgd, p_sgd, p')`: a
//! switch that has not happened leaves the step's bits alone. All states of the optimizer go on being computed, so that it
//! can come back.
//!
//! It runs after `control` and before `spectral` and `scale-updates`, which treat and scale whichever update was chosen.

use std::collections::{HashMap, HashSet};

use hlo::build::Builder;
use hlo::{InstructionId, Module, PrimitiveType};

use crate::pass::{Changed, Context, Pass, PassError};
use crate::step::{Direction, DirectionStatus, Update, UpdateForm, Value};
use crate::values::{materialise, product, readers, stepped, summed, update_of, wide_type};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct SwitchOptimizer;

impl Pass for SwitchOptimizer {
    fn name(&self) -> &'static str {
        "switch-optimizer"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let control = context.control()?.switch.ok_or(PassError::Needs { pass: "control" })?;
        let step = context.step()?;
        let names = &context.statistics()?.short_names;
        let users = module.entry_computation().users();
        let mut b = Builder::at_entry(module);
        let mut replacements = HashMap::new();
        let mut keep = HashSet::new();
        let mut updates = Vec::new();
        for (i, ((parameter, _), short)) in step.controlled().zip(names).enumerate() {
            let update = &parameter.update;
            let DirectionStatus::Found(direction) = &parameter.direction else {
                updates.push(update.clone());
                continue;
            };
            b.set_scope(&format!("entropic.switch.{short}"), &format!("entropic/switch-optimizer/{}", parameter.name));
            let targets = readers(b.module().entry_computation(), &users, update.new, &parameter.name)?;
            let new = materialise(&mut b, update.new)?;
            let old = materialise(&mut b, update.old)?;
            let by_sgd = b.element(control.by_sgd, i as i64)?;
            let rate = b.element(control.rates, i as i64)?;
            let first = b.module().entry_computation().arena_len();
            let narrow = b.shape(new)?.element_type();
            let wide = wide_type(&b, &[old, new])?;
            let step = by_moment(&mut b, direction, rate, wide)?;
            let moved = summed(&mut b, step, &direction.parts.base, wide)?;
            let narrowed = b.convert(moved, narrow)?;
            let chosen = b.named(&format!("entropic.switched.{short}")).select(by_sgd, narrowed, new)?;
            // What `scale-updates` scales; it goes unused, and away, where nothing is scaled.
            let u = update_of(&mut b, update, wide)?;
            let wide_old = b.convert(old, wide)?;
            let by_step = b.subtract(moved, wide_old)?;
            let u = b.named(&format!("entropic.update.{short}")).select(by_sgd, by_step, u)?;
            let entry = b.module().entry_computation();
            keep.extend(entry.order().iter().rev().take_while(|id| id.index() >= first));
            replacements.extend(targets.into_iter().chain([new]).map(|target| (target, chosen)));
            updates.push(Update {
                form: UpdateForm::Add { u: Value::array(u) },
                new: Value::array(chosen),
                ..update.clone()
            });
        }
        let entry = module.entry();
        module.replace_uses(entry, &replacements, &keep)?;
        module.sort(entry)?;
        context.updates = Some(updates);
        Ok(Changed::Yes)
    }
}

/// η·(w + ι·β·κ·m') in a wide type.
fn by_moment(
    b: &mut Builder<'_>,
    direction: &Direction,
    rate: InstructionId,
    wide: PrimitiveType,
) -> Result<InstructionId, PassError> {
    let moment = materialise(b, direction.moment)?;
    let moment = b.convert(moment, wide)?;
    let mut rate = Some(b.convert(rate, wide)?);
    rate = product(b, rate, &direction.parts.inner, wide)?;
    rate = product(b, rate, &direction.buried, wide)?;
    stepped(b, &direction.parts, rate, moment, wide)
}
