//! `scale-updates`: every update times its scale.
//!
//! With p the old value, u the update and p' = p ± u the new value as the graph has it, every use of p' sees
//!
//! ```text
//! select(s = 1, p', q),   q = p ± s·u
//! ```
//!
//! so that a scale of 1 leaves the step bit for bit as it was, and everything
//! derived from p' (averages, narrow copies of a wide master) follows the scaled
//! value. q is computed in the widest type in which u exists, at least `f32`, and
//! rounded once. Where the graph has no usable u, q = p + s·(p' − p).

use std::collections::{HashMap, HashSet};

use hlo::build::{Builder, Built, ComparisonDirection};
use hlo::{InstructionId, Module, Opcode, PrimitiveType};

use crate::layout::Scaling;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::step::UpdateForm;
use crate::values::{materialise, own_copy, readers, wide_type};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScaleUpdates;

impl Pass for ScaleUpdates {
    fn name(&self) -> &'static str {
        "scale-updates"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let step = context.step()?;
        let scales = context.control()?.scales;
        let names = &context.statistics()?.short_names;
        let users = module.entry_computation().users();
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.scale", "entropic/scale-updates");
        let one = b.constant_f32(1.0)?;
        let ones = b.broadcast_scalar_like(one, scales)?;
        let neutral = b.compare(scales, ones, ComparisonDirection::Eq)?;

        let mut replacements = HashMap::new();
        let mut keep = HashSet::new();
        let mut forms = Vec::new();
        for (i, ((parameter, _), short)) in step.controlled().zip(names).enumerate() {
            b.set_scope(&format!("entropic.scale.{short}"), &format!("entropic/scale-updates/{}", parameter.name));
            let update = context.update(i).unwrap_or(&parameter.update);
            let targets = readers(b.module().entry_computation(), &users, update.new, &parameter.name)?;
            let new = materialise(&mut b, update.new)?;
            let old = materialise(&mut b, update.old)?;
            let scale = b.element(scales, i as i64)?;
            let neutral = b.element(neutral, i as i64)?;
            let first = b.module().entry_computation().arena_len();
            let (scaled, form) = match &update.form {
                UpdateForm::Add { u } => {
                    let u = materialise(&mut b, *u)?;
                    (scaled(&mut b, Opcode::Add, old, u, scale)?, Scaling::Update)
                }
                UpdateForm::Subtract { u } => {
                    let u = materialise(&mut b, *u)?;
                    (scaled(&mut b, Opcode::Subtract, old, u, scale)?, Scaling::Update)
                }
                UpdateForm::Difference { .. } => (by_difference(&mut b, old, new, scale)?, Scaling::Difference),
            };
            let chosen = b.named(&format!("entropic.scaled.{short}")).select(neutral, new, scaled)?;
            let entry = b.module().entry_computation();
            keep.extend(entry.order().iter().rev().take_while(|id| id.index() >= first));
            replacements.extend(targets.into_iter().chain([new]).map(|target| (target, chosen)));
            forms.push(form);
        }
        let entry = module.entry();
        module.replace_uses(entry, &replacements, &keep)?;
        module.sort(entry)?;
        if let Some(layout) = &mut context.layout {
            for (tensor, form) in layout.tensors.iter_mut().zip(forms) {
                tensor.scaling = Some(form);
            }
        }
        Ok(Changed::Yes)
    }
}

/// p ± s·u, rounded once to p's type.
fn scaled(
    b: &mut Builder<'_>,
    opcode: Opcode,
    old: InstructionId,
    u: InstructionId,
    scale: InstructionId,
) -> Result<InstructionId, PassError> {
    let u = own_copy(b, u)?;
    let wide = wide_type(b, &[u, old])?;
    let narrow = b.shape(old)?.element_type();
    let old = b.convert(old, wide)?;
    let u = b.convert(u, wide)?;
    let step = times(b, scale, u, wide)?;
    let q = b.emit(opcode, &[old, step])?;
    Ok(b.convert(q, narrow)?)
}

/// p + s·(p' − p), rounded once to p's type.
fn by_difference(b: &mut Builder<'_>, old: InstructionId, new: InstructionId, scale: InstructionId) -> Built {
    let wide = wide_type(b, &[old, new])?;
    let narrow = b.shape(new)?.element_type();
    let old = b.convert(old, wide)?;
    let new = b.convert(new, wide)?;
    let u = b.subtract(new, old)?;
    let step = times(b, scale, u, wide)?;
    let q = b.add(old, step)?;
    b.convert(q, narrow)
}

fn times(b: &mut Builder<'_>, scale: InstructionId, u: InstructionId, wide: PrimitiveType) -> Built {
    let scale = b.convert(scale, wide)?;
    let scale = b.broadcast_scalar_like(scale, u)?;
    b.multiply(scale, u)
}
