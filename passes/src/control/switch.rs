//! When the optimizer gives way to SGD, and with which learning rates.
//!
//! With A the optimizer's direction, g the gradient it consumes and m' its first moment, each tensor keeps forgetting
//! means over accepted steps and has, as a quotient of them, its **rate** κ:
//!
//! ```text
//! nearest   κ = mean(A·m') / mean(m'·m')   κ·m' is the projection of A on m', the point nearest to A
//! swats     κ = mean(A·A) / mean(A·g)      the projection of κ·g on A is A (SWATS, arXiv 1712.07628)
//! ```
//!
//! With φ the angle between them, the former is shorter than A by cos φ, the latter longer by 1/cos φ. The correction for
//! the bias of both means is the same, and cancels. (SWATS averages the quotients instead; where A·g comes near 0 a single
//! one of them outweighs all others.)
//!
//! * `step`: fires with step number `step`;
//! * `settled`: every `period` accepted steps the rates are compared with those `period` steps ago; fires when
//!   |ln κ/κ_ref|, averaged over tensors by their size, is below `tolerance`;
//! * `entropy`: fires when the forgetting mean of the global entropy is below `share` of its peak since `warmup`; with
//!   `return_above`, the optimizer comes back when it is above that share.
//!
//! What is decided in a step takes effect in the next, so that no update waits for it. A tensor without a rate keeps its
//! optimizer until it has one; rates stand still once they are in use.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Opcode, PrimitiveType};

use super::decision::Decision;
use super::emit::{Array, Emitter};
use super::history::{Width, forget};
use super::law::{Made, Measured};
use super::{Projections, SwitchControl};
use crate::layout::{ControllerLayout, SWITCH_RATE, SwitchStructure};
use crate::policy::{SwitchRate, Trigger};

pub(super) fn switch(
    e: &mut Emitter<'_>,
    layout: &ControllerLayout,
    structure: SwitchStructure,
    steps: Projections,
    m: &Measured,
    d: &Decision,
) -> Made<SwitchControl> {
    e.part("switch");
    let enabled = e.number("switch.enabled")?;
    let enabled = e.is(enabled, Is::Ne, 0.0)?;
    let none = e.s32(0)?;
    let on = e.scalar(Array::Counters, "switched")?;
    let on = e.compare(on, none, Is::Gt)?;
    let acts = e.and(on, enabled)?;

    let energy = e.vector(Array::State, "switch_energy")?;
    let product = e.vector(Array::State, "switch_product")?;
    let rate = match structure.rate {
        SwitchRate::Nearest => e.div(product, energy)?,
        SwitchRate::Swats => e.div(energy, product)?,
    };
    let size = e.b.abs(rate)?;
    let sensible = e.is(size, Is::Ge, f32::MIN_POSITIVE)?;
    let bounded = e.is(size, Is::Le, f32::MAX)?;
    let mut valid = e.and(sensible, bounded)?;
    if structure.rate == SwitchRate::Swats {
        let ahead = e.is(product, Is::Gt, 0.0)?;
        valid = e.and(valid, ahead)?;
    }
    let zero = e.f32(0.0)?;
    let rate = e.select(valid, rate, zero)?;

    observe(e, steps, d, on, valid)?;
    let warmup = e.count("switch.warmup")?;
    let warm = e.compare(d.accepted_steps, warmup, Is::Gt)?;
    let never = e.b.constant(PrimitiveType::PRED, 0.0)?;
    let (fires, returns) = match structure.trigger {
        Trigger::Step => (at_step(e)?, never),
        Trigger::Settled => (settled(e, layout, d, rate, valid, warm)?, never),
        Trigger::Entropy => by_entropy(e, m, d, warm)?,
    };
    let fires = e.and(fires, enabled)?;
    let stays = e.b.not(returns)?;
    let next = e.select(on, stays, fires)?;
    let changed = e.compare(next, on, Is::Ne)?;
    let next = e.b.convert(next, PrimitiveType::S32)?;
    e.set(Array::Counters, "switched", next);
    let switches = e.counted("switches", changed)?;
    e.set(Array::Counters, "switches", switches);
    e.show("switched", acts)?;
    e.show("switches", switches)?;
    e.set(Array::Telemetry, SWITCH_RATE, rate);

    let factor = e.number("switch.factor")?;
    let rates = e.mul(rate, factor)?;
    let spread = e.b.broadcast_scalar_like(acts, rates)?;
    let by_sgd = e.and(spread, valid)?;
    Ok(SwitchControl { by_sgd, rates })
}

/// Takes this step's projections into the means, of tensors whose rate is not in use.
fn observe(e: &mut Emitter<'_>, steps: Projections, d: &Decision, on: InstructionId, valid: InstructionId) -> Made<()> {
    let normal = e.is(steps.energy, Is::Ge, f32::MIN_POSITIVE)?;
    let bounded = e.is(steps.energy, Is::Le, f32::MAX)?;
    let known = e.b.is_finite(steps.product)?;
    let used = e.and(on, valid)?;
    let free = e.b.not(used)?;
    let mut moves = e.and(normal, bounded)?;
    for condition in [known, free, d.accepted] {
        moves = e.and(moves, condition)?;
    }
    let rate = e.number("switch.forgetting")?;
    let fields = ["switch_energy", "switch_energy_carry", "switch_energy_weight"];
    forget(e, fields, Width::Vector, rate, steps.energy, moves)?;
    let fields = ["switch_product", "switch_product_carry", "switch_product_weight"];
    forget(e, fields, Width::Vector, rate, steps.product, moves)?;
    Ok(())
}

/// Whether the next step has the number that the policy names, or a later one.
fn at_step(e: &mut Emitter<'_>) -> Made<InstructionId> {
    let steps = e.scalar(Array::Counters, "steps")?;
    let one = e.s32(1)?;
    let next = e.add(steps, one)?;
    let step = e.count("switch.step")?;
    Ok(e.compare(next, step, Is::Ge)?)
}

/// Whether rates stopped to move.
fn settled(
    e: &mut Emitter<'_>,
    layout: &ControllerLayout,
    d: &Decision,
    rate: InstructionId,
    valid: InstructionId,
    warm: InstructionId,
) -> Made<InstructionId> {
    let period = e.count("switch.period")?;
    let rest = e.binary(Opcode::Remainder, d.accepted_steps, period)?;
    let none = e.s32(0)?;
    let due = e.compare(rest, none, Is::Eq)?;
    let due = e.and(due, d.accepted)?;

    let reference = e.vector(Array::State, "switch_reference")?;
    let known = e.is(reference, Is::Ne, 0.0)?;
    let compared = e.and(known, valid)?;
    let one = e.f32(1.0)?;
    let zero = e.f32(0.0)?;
    let quotient = e.div(rate, reference)?;
    let quotient = e.b.abs(quotient)?;
    let quotient = e.select(compared, quotient, one)?;
    let movement = e.b.log(quotient)?;
    let movement = e.b.abs(movement)?;
    #[allow(clippy::cast_precision_loss, reason = "f32 is the device's precision")]
    let sizes: Vec<f32> = layout.tensors.iter().map(|t| t.elements as f32).collect();
    let sizes = e.b.constant_f32_vector(&sizes)?;
    let weights = e.select(compared, sizes, zero)?;
    let weighted = e.mul(weights, movement)?;
    let weighted = e.total(weighted)?;
    let weight = e.total(weights)?;
    let any = e.is(weight, Is::Gt, 0.0)?;
    let divisor = e.binary(Opcode::Maximum, weight, one)?;
    let movement = e.div(weighted, divisor)?;
    let tolerance = e.number("switch.tolerance")?;
    let still = e.compare(movement, tolerance, Is::Lt)?;
    let fires = e.and(still, any)?;
    let fires = e.and(fires, due)?;

    let reference = e.select(due, rate, reference)?;
    e.set(Array::State, "switch_reference", reference);
    e.set(Array::Telemetry, "switch_movement", movement);
    Ok(e.and(fires, warm)?)
}

/// Whether the entropy's trend fell, and whether it rose again.
fn by_entropy(
    e: &mut Emitter<'_>,
    m: &Measured,
    d: &Decision,
    warm: InstructionId,
) -> Made<(InstructionId, InstructionId)> {
    let entropy = e.whole(m.entropy)?;
    let active = e.whole(m.active)?;
    let moves = e.and(active, d.accepted)?;
    let rate = e.number("switch.forgetting")?;
    let trend =
        forget(e, ["switch_trend", "switch_trend_carry", "switch_trend_weight"], Width::Scalar, rate, entropy, moves)?;
    let peak = e.scalar(Array::State, "switch_peak")?;
    let higher = e.binary(Opcode::Maximum, peak, trend.value)?;
    let peak = e.select(warm, higher, peak)?;
    e.set(Array::State, "switch_peak", peak);
    e.set(Array::Telemetry, "switch_trend", trend.value);
    e.set(Array::Telemetry, "switch_peak", peak);
    let share = e.number("switch.share")?;
    let bound = e.mul(share, peak)?;
    let fell = e.compare(trend.value, bound, Is::Lt)?;
    let fires = e.and(fell, warm)?;
    let share = e.number("switch.return_above")?;
    let wanted = e.is(share, Is::Gt, 0.0)?;
    let bound = e.mul(share, peak)?;
    let rose = e.compare(trend.value, bound, Is::Gt)?;
    let returns = e.and(rose, wanted)?;
    Ok((fires, returns))
}
