//! `scale-momentum`: every momentum coefficient times its scale.
//!
//! Where a first moment is m' = b·m + c·x, every product with b in it (and in what the
//! update looks at beyond it) is one with
//!
//! ```text
//! select(s = 1, b, b'),   b' = min(b·s, max(b, cap))
//! ```
//!
//! instead, and where c is 1 - b, every product with c one with `select(s = 1, c, 1 - b')`.
//! The select is on the scalar, since 1 - 0.9 in `f32` is not the 0.1 of the graph: a
//! scale of 1 leaves the bits of the coefficients alone. b' stays below 1 in the
//! coefficient's own type, too (the largest `bf16` below 1 is 0.996). Only this
//! parameter's products are changed, not the scalar, which others may share.
//!
//! Bias correction keeps the original b: its 1 - b^t is the sum of the weights only for as
//! long as b was never scaled. See `docs/controller.md` for the size of the effect.
//!
//! It needs the coefficients that discovery found and the scales of `control`, and
//! adds no state. A policy that demands momentum where there is none is refused.

use std::collections::BTreeMap;

use hlo::build::{Builder, Built, ComparisonDirection};
use hlo::{InstructionId, Module, PrimitiveType};

use crate::control::MomentumControl;
use crate::layout::TensorMomentum;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::Policy;
use crate::step::{Coefficient, CoefficientPart, CoefficientUse, MomentumStatus, TrainStep, Value};
use crate::values::scalar;

/// The pass, see the module's documentation.
#[derive(Debug, Clone)]
pub struct ScaleMomentum {
    /// The policy, for the tensors of which it demands momentum.
    pub policy: Policy,
}

impl Pass for ScaleMomentum {
    fn name(&self) -> &'static str {
        "scale-momentum"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let found = tensors(context.step()?);
        let layout = context.layout.as_mut().ok_or(PassError::Needs { pass: "control" })?;
        layout.momentum = found;
        layout.check_momentum(&self.policy)?;
        let control = context.control()?.momentum.ok_or(PassError::Needs { pass: "control" })?;

        let step = context.step()?;
        let short_names = &context.statistics()?.short_names;
        let names: Vec<(&str, &String)> = step.controlled().map(|(p, _)| p.name.as_str()).zip(short_names).collect();
        let coefficients: Vec<(usize, &Coefficient)> = step
            .controlled()
            .enumerate()
            .flat_map(|(i, (p, _))| p.found_momentum().iter().flat_map(|m| &m.coefficients).map(move |c| (i, c)))
            .collect();
        let users = module.entry_computation().users();
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.momentum", "entropic/scale-momentum");
        let chosen = choose(&mut b, &coefficients, control)?;
        for (k, &(i, coefficient)) in coefficients.iter().enumerate() {
            if let Some((name, short)) = names.get(i) {
                b.set_scope(&format!("entropic.momentum.{short}"), &format!("entropic/scale-momentum/{name}"));
            }
            let mut scalars: BTreeMap<bool, InstructionId> = BTreeMap::new();
            for used in &coefficient.uses {
                let complement = used.part == CoefficientPart::Complement;
                let vector = if complement { chosen.complement } else { chosen.decay };
                let scalar = match scalars.get(&complement) {
                    Some(&scalar) => scalar,
                    None => b.element(vector, k as i64)?,
                };
                scalars.insert(complement, scalar);
                multiply_by(&mut b, used, scalar, &users)?;
            }
        }
        let entry = module.entry();
        module.sort(entry)?;
        Ok(Changed::Yes)
    }
}

/// What the layout says of each controlled tensor.
fn tensors(step: &TrainStep) -> Vec<TensorMomentum> {
    step.controlled()
        .map(|(parameter, _)| match &parameter.momentum {
            MomentumStatus::Found(found) => TensorMomentum {
                coefficients: found.iter().flat_map(|m| &m.coefficients).map(|c| c.constant).collect(),
                reason: None,
            },
            MomentumStatus::Absent { reason } => {
                TensorMomentum { coefficients: Vec::new(), reason: Some(reason.clone()) }
            }
        })
        .collect()
}

/// The coefficients that count in this step, one element for each.
struct Chosen {
    /// b or b'.
    decay: InstructionId,
    /// 1 - b, as the graph has it, or 1 - b'.
    complement: InstructionId,
}

/// Scales all coefficients at once; in `f64` where one of them is, else in `f32`.
fn choose(b: &mut Builder<'_>, coefficients: &[(usize, &Coefficient)], control: MomentumControl) -> Made<Chosen> {
    let types = coefficients.iter().map(|(_, c)| element_type(b, c)).collect::<Made<Vec<_>>>()?;
    let wide = if types.contains(&PrimitiveType::F64) { PrimitiveType::F64 } else { PrimitiveType::F32 };
    let one = b.constant(wide, 1.0)?;
    let zero = b.constant(wide, 0.0)?;
    let (mut decays, mut complements) = (Vec::new(), Vec::new());
    for (_, coefficient) in coefficients {
        let mut read = |value: Option<Value>| value.map(|v| scalar(b, v, wide)).transpose();
        let (decay, complement) = (read(coefficient.decay)?, read(coefficient.complement)?);
        decays.push(match (decay, complement) {
            (Some(decay), _) => decay,
            (None, Some(complement)) => b.subtract(one, complement)?,
            (None, None) => zero,
        });
        complements.push(complement.unwrap_or(zero));
    }
    let decay = b.pack(&decays)?;
    let complement = b.pack(&complements)?;

    let mut scales = Vec::new();
    for &(tensor, _) in coefficients {
        scales.push(b.element(control.scales, tensor as i64)?);
    }
    let scales = b.pack(&scales)?;
    let ones = b.constant_f32(1.0)?;
    let ones = b.broadcast_scalar_like(ones, scales)?;
    let neutral = b.compare(scales, ones, ComparisonDirection::Eq)?;
    let scales = b.convert(scales, wide)?;

    let cap = b.convert(control.cap, wide)?;
    let mut cap = b.broadcast_scalar_like(cap, decay)?;
    if types.iter().any(|t| t.bits() < 32) {
        let highest: Vec<f32> = types.iter().map(|&t| highest_below_one(t)).collect();
        let highest = b.constant_f32_vector(&highest)?;
        let highest = b.convert(highest, wide)?;
        cap = b.minimum(cap, highest)?;
    }
    let bound = b.maximum(decay, cap)?;
    let scaled = b.multiply(decay, scales)?;
    let scaled = b.minimum(scaled, bound)?;
    let ones = b.broadcast_scalar_like(one, scaled)?;
    let rest = b.subtract(ones, scaled)?;
    Ok(Chosen {
        decay: b.named("entropic.momentum.decay").select(neutral, decay, scaled)?,
        complement: b.named("entropic.momentum.complement").select(neutral, complement, rest)?,
    })
}

type Made<T> = Result<T, PassError>;

/// The largest number below 1 that a narrow type holds; b' rounds to it at most.
fn highest_below_one(element_type: PrimitiveType) -> f32 {
    match element_type {
        PrimitiveType::BF16 => 1.0 - 1.0 / 256.0,
        PrimitiveType::F16 => 1.0 - 1.0 / 2048.0,
        // The coarsest of the 8-bit types has two bits of mantissa.
        t if t.bits() < 16 => 1.0 - 1.0 / 8.0,
        _ => 1.0,
    }
}

fn element_type(b: &Builder<'_>, coefficient: &Coefficient) -> Made<PrimitiveType> {
    let value = coefficient.decay.or(coefficient.complement);
    let value = value.ok_or_else(|| PassError::Stale { what: "a coefficient without a value".to_owned() })?;
    let shape = value.shape(b.module(), b.module().entry());
    let shape = shape.ok_or_else(|| PassError::Stale { what: value.display(b.module(), b.module().entry()) })?;
    Ok(shape.element_type())
}

/// Makes the product that `used` names one with `scalar`. Where something other than the moment reads the product,
/// the moment gets one of its own.
fn multiply_by(
    b: &mut Builder<'_>,
    used: &CoefficientUse,
    scalar: InstructionId,
    users: &[Vec<InstructionId>],
) -> Made<()> {
    let stale = || PassError::Stale { what: format!("instruction {}", used.instruction.index()) };
    let product = b.module().entry_computation().get(used.instruction).ok_or_else(stale)?;
    let (opcode, mut operands) = (product.opcode, product.operands.clone());
    let slot = operands.get_mut(used.operand).ok_or_else(stale)?;
    *slot = spread(b, scalar, *slot)?;
    let readers = users.get(used.instruction.index()).map_or(&[][..], Vec::as_slice);
    let shared = !used.readers.is_empty() && readers.iter().any(|r| !used.readers.contains(r));
    if shared {
        let own = b.emit(opcode, &operands)?;
        for &reader in &used.readers {
            let reader = b.module_mut().entry_computation_mut().get_mut(reader).ok_or_else(stale)?;
            reader.operands.iter_mut().filter(|o| **o == used.instruction).for_each(|o| *o = own);
        }
    } else {
        let product = b.module_mut().entry_computation_mut().get_mut(used.instruction).ok_or_else(stale)?;
        product.operands = operands;
    }
    Ok(())
}

/// `scalar` in the element type and the dimensions of `like`.
fn spread(b: &mut Builder<'_>, scalar: InstructionId, like: InstructionId) -> Built {
    let narrow = b.shape(like)?.element_type();
    let scalar = b.convert(scalar, narrow)?;
    b.broadcast_scalar_like(scalar, like)
}
