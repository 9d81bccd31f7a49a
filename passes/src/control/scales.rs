//! The laws that move scales of learning rate and momentum, and the scales they come to.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Opcode};

use super::MomentumControl;
use super::decision::Decision;
use super::emit::{Array, Emitter};
use super::law::Made;
use crate::layout::{
    ControllerLayout, MICRO_BELOW, MICRO_FACTOR, MOMENTUM, MOMENTUM_CAP, MOMENTUM_SCALE, MOMENTUM_TENSORS,
    TENSOR_LOG_MAX, TENSOR_MOMENTUM_LOG_MAX, TENSOR_SCALES,
};
use crate::policy::Timing;

/// Logarithms of the scales that the laws come to, before this step or after it as the timing says.
#[derive(Default)]
pub(super) struct Laws {
    /// Of each tensor's learning rate, f32\[n\].
    micro: Option<InstructionId>,
    /// Of every learning rate, f32\[\].
    lr: Option<InstructionId>,
    /// Of every momentum, f32\[\].
    momentum: Option<InstructionId>,
    /// Whether each tensor has clamps of its own.
    clamps: bool,
}

pub(super) fn laws(e: &mut Emitter<'_>, layout: &ControllerLayout, d: &Decision, ratio: InstructionId) -> Made<Laws> {
    let n = layout.tensors.len() as i64;
    let acting = |old, new| Some(if layout.laws.timing == Timing::Delayed { old } else { new });
    let mut laws = Laws { clamps: layout.laws.clamps, ..Laws::default() };
    if layout.laws.micro {
        e.part("micro");
        let old = e.vector(Array::State, "micro_log")?;
        let tensors = e.b.slice_vector(ratio, 0, n)?;
        let new = micro(e, d, tensors, old, laws.clamps)?;
        e.set(Array::State, "micro_log", new);
        laws.micro = acting(old, new);
    }
    let whole = e.b.element(ratio, n)?;
    if layout.laws.rule {
        e.part("rule");
        let acts = acts(e, d, "laws.rule.period", whole)?;
        let limit = e.number("laws.log_max")?;
        let old = e.scalar(Array::State, "lr_log")?;
        let new = by_band(e, whole, ["laws.rule.lr_low", "laws.rule.lr_high"], limit, old, acts)?;
        e.set(Array::State, "lr_log", new);
        laws.lr = acting(old, new);
        let limit = e.number("laws.rule.momentum_log_max")?;
        let old = e.scalar(Array::State, "momentum_log")?;
        let new = by_band(e, whole, ["laws.rule.momentum_low", "laws.rule.momentum_high"], limit, old, acts)?;
        e.set(Array::State, "momentum_log", new);
        laws.momentum = acting(old, new);
    }
    if layout.laws.pi {
        e.part("pi");
        let old = e.scalar(Array::State, "lr_log")?;
        let new = proportional_integral(e, d, whole, old)?;
        e.set(Array::State, "lr_log", new);
        laws.lr = acting(old, new);
    }
    if layout.laws.any() {
        for (name, log) in [("lr_scale", laws.lr), ("momentum_scale", laws.momentum)] {
            let zero = e.f32(0.0)?;
            let scale = e.b.exp(log.unwrap_or(zero))?;
            e.set(Array::Telemetry, name, scale);
        }
    }
    Ok(laws)
}

/// Where a law acts in this step: it is accepted and one of its period's, warmup is over, and there is a ratio.
fn acts(e: &mut Emitter<'_>, d: &Decision, period: &str, ratio: InstructionId) -> Made<InstructionId> {
    let warmup = e.count("laws.warmup")?;
    let warm = e.compare(d.accepted_steps, warmup, Is::Gt)?;
    let period = e.count(period)?;
    let rest = e.binary(Opcode::Remainder, d.accepted_steps, period)?;
    let zero = e.s32(0)?;
    let due = e.compare(rest, zero, Is::Eq)?;
    let due = e.and(due, warm)?;
    let due = e.and(due, d.accepted)?;
    let present = e.is(ratio, Is::Ge, 0.0)?;
    Ok(e.and(due, present)?)
}

/// x between −limit and limit.
fn clamp(e: &mut Emitter<'_>, x: InstructionId, limit: InstructionId) -> Made<InstructionId> {
    let low = e.b.negate(limit)?;
    let x = e.binary(Opcode::Maximum, x, low)?;
    Ok(e.binary(Opcode::Minimum, x, limit)?)
}

/// Where the logarithms of the tensors' scales are clamped: f32\[n\] where each has a clamp of its own, else f32\[\].
fn tensor_limit(e: &mut Emitter<'_>, clamps: bool) -> Made<InstructionId> {
    if clamps { e.vector(Array::Policy, TENSOR_LOG_MAX) } else { e.number("laws.log_max") }
}

/// x less a share of it.
fn relaxed(e: &mut Emitter<'_>, x: InstructionId, share: &str) -> Made<InstructionId> {
    let one = e.f32(1.0)?;
    let share = e.number(share)?;
    let kept = e.sub(one, share)?;
    Ok(e.mul(x, kept)?)
}

/// One step of the law of each tensor on the logarithms of its scales.
fn micro(
    e: &mut Emitter<'_>,
    d: &Decision,
    ratio: InstructionId,
    old: InstructionId,
    clamps: bool,
) -> Made<InstructionId> {
    let acts = acts(e, d, "laws.micro.period", ratio)?;
    let below = e.vector(Array::Policy, MICRO_BELOW)?;
    let factor = e.vector(Array::Policy, MICRO_FACTOR)?;
    let raises = e.compare(ratio, below, Is::Lt)?;
    let raised = e.add(old, factor)?;
    let limit = tensor_limit(e, clamps)?;
    let raised = clamp(e, raised, limit)?;
    let relaxed = relaxed(e, old, "laws.micro.relax")?;
    let new = e.select(raises, raised, relaxed)?;
    Ok(e.select(acts, new, old)?)
}

/// One step of the band law on the logarithm of a scale: outside the band it moves, inside it relaxes.
fn by_band(
    e: &mut Emitter<'_>,
    ratio: InstructionId,
    [low_step, high_step]: [&str; 2],
    limit: InstructionId,
    old: InstructionId,
    acts: InstructionId,
) -> Made<InstructionId> {
    let low = e.number("laws.rule.low")?;
    let low = e.compare(ratio, low, Is::Lt)?;
    let high = e.number("laws.rule.high")?;
    let high = e.compare(ratio, high, Is::Gt)?;
    let mut new = relaxed(e, old, "laws.rule.relax")?;
    for (outside, step) in [(low, low_step), (high, high_step)] {
        let step = e.number(step)?;
        let moved = e.add(old, step)?;
        let moved = clamp(e, moved, limit)?;
        new = e.select(outside, moved, new)?;
    }
    Ok(e.select(acts, new, old)?)
}

/// One step of the proportional and integral law on the logarithm of a scale. The integral stands still where it would
/// push further out of the clamp.
fn proportional_integral(
    e: &mut Emitter<'_>,
    d: &Decision,
    ratio: InstructionId,
    old: InstructionId,
) -> Made<InstructionId> {
    let positive = e.is(ratio, Is::Ge, f32::MIN_POSITIVE)?;
    let acts = acts(e, d, "laws.pi.period", ratio)?;
    let acts = e.and(acts, positive)?;
    let one = e.f32(1.0)?;
    let ratio = e.select(positive, ratio, one)?;
    let error = e.b.log(ratio)?;
    let kp = e.number("laws.pi.kp")?;
    let ki = e.number("laws.pi.ki")?;
    let sum = e.scalar(Array::State, "integral")?;
    let more = e.add(sum, error)?;
    let proportional = e.mul(kp, error)?;
    let integral = e.mul(ki, more)?;
    let wanted = e.add(proportional, integral)?;
    let limit = e.number("laws.log_max")?;
    let new = clamp(e, wanted, limit)?;
    let excess = e.sub(wanted, new)?;
    let outwards = e.mul(excess, error)?;
    let outwards = e.is(outwards, Is::Gt, 0.0)?;
    let moves = e.b.not(outwards)?;
    let moves = e.and(moves, acts)?;
    let sum = e.select(moves, more, sum)?;
    e.set(Array::State, "integral", sum);
    Ok(e.select(acts, new, old)?)
}

/// Scales of all updates; `backoff` is a logarithm that all of them share.
pub(super) fn scale(e: &mut Emitter<'_>, laws: &Laws, backoff: Option<InstructionId>) -> Made<InstructionId> {
    e.part("scales");
    let tensors = e.vector(Array::Policy, TENSOR_SCALES)?;
    let global = e.number("scale.global")?;
    let mut base = e.mul(tensors, global)?;
    if let Some(log) = backoff {
        base = scaled_by(e, base, log)?;
    }
    let log = match (laws.micro, laws.lr) {
        (Some(micro), Some(lr)) => e.add(micro, lr)?,
        (Some(log), None) | (None, Some(log)) => log,
        (None, None) => return Ok(base),
    };
    let limit = tensor_limit(e, laws.clamps)?;
    let log = clamp(e, log, limit)?;
    scaled_by(e, base, log)
}

/// base · exp(log), and base itself where log is 0: an approximation of exp need not give 1 there, and only 1 is neutral.
fn scaled_by(e: &mut Emitter<'_>, base: InstructionId, log: InstructionId) -> Made<InstructionId> {
    let neutral = e.is(log, Is::Eq, 0.0)?;
    let factor = e.b.exp(log)?;
    let scaled = e.mul(base, factor)?;
    Ok(e.select(neutral, base, scaled)?)
}

pub(super) fn scale_momentum(e: &mut Emitter<'_>, laws: &Laws) -> Made<MomentumControl> {
    e.part("momentum");
    let tensors = e.vector(Array::Policy, MOMENTUM_TENSORS)?;
    let all = e.number(MOMENTUM_SCALE)?;
    let mut scales = e.mul(tensors, all)?;
    if let Some(mut log) = laws.momentum {
        if laws.clamps {
            let limit = e.vector(Array::Policy, TENSOR_MOMENTUM_LOG_MAX)?;
            log = clamp(e, log, limit)?;
        }
        scales = scaled_by(e, scales, log)?;
    }
    e.set(Array::Telemetry, MOMENTUM, scales);
    Ok(MomentumControl { scales, cap: e.number(MOMENTUM_CAP)? })
}
