//! Whether a step is applied, and when gates that refuse for long are re-armed.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Opcode, PrimitiveType};

use super::emit::{Array, Emitter};
use super::history::{Target, effective};
use super::law::{Made, Measured};
use crate::layout::{ControllerLayout, NONE};

/// What happens with this step; scalars of pred unless said otherwise.
pub(super) struct Decision {
    /// The update is applied.
    pub(super) applied: InstructionId,
    /// The step enters window, means and history.
    pub(super) accepted: InstructionId,
    /// Norm gate or entropy gate refuses.
    pub(super) paused: InstructionId,
    /// The update is not applied, and not for an overflow that the step's own loss scale answers.
    pub(super) refused: InstructionId,
    /// The norm gate's limit, f32, −1 where it is not armed.
    pub(super) threshold: InstructionId,
    /// Too many non-finite steps in a row.
    pub(super) stop: InstructionId,
    /// Accepted steps so far, s32.
    pub(super) accepted_steps: InstructionId,
}

/// One gate's say in a step, pred\[\] both.
struct Vote {
    enabled: InstructionId,
    cast: InstructionId,
}

pub(super) fn decide(
    e: &mut Emitter<'_>,
    layout: &ControllerLayout,
    consumes: Option<InstructionId>,
    measured: &Measured,
    target: &Target,
) -> Made<Decision> {
    e.part("decision");
    let finite = measured.finite;
    let not_finite = e.b.not(finite)?;
    let gate_finite = e.number("gate.non_finite")?;
    let gate_finite = e.is(gate_finite, Is::Ne, 0.0)?;
    let accepted = e.scalar(Array::Counters, "accepted")?;
    let (mut norm, threshold) = vote_by_norm(e, measured, accepted)?;
    let (mut entropy, low, high) = vote_by_entropy(e, measured, target, accepted)?;
    if let Some(consumes) = consumes {
        // What is being accumulated is judged when it is complete.
        norm.cast = e.and(norm.cast, consumes)?;
        entropy.cast = e.and(entropy.cast, consumes)?;
    }

    let all = e.number("gate.all")?;
    let all = e.is(all, Is::Ne, 0.0)?;
    let any = e.binary(Opcode::Or, norm.cast, entropy.cast)?;
    let mut unanimous = any;
    for vote in [&norm, &entropy] {
        let abstains = e.b.not(vote.enabled)?;
        let agrees = e.binary(Opcode::Or, vote.cast, abstains)?;
        unanimous = e.and(unanimous, agrees)?;
    }
    let paused = e.select(all, unanimous, any)?;
    let stopped = e.and(not_finite, gate_finite)?;
    let held = e.binary(Opcode::Or, stopped, paused)?;
    let applied = e.b.named("entropic.applied").not(held)?;
    let accepted = e.and(applied, finite)?;
    let accepted = match consumes {
        Some(consumes) => e.and(accepted, consumes)?,
        None => accepted,
    };

    let streak = e.counted("non_finite_streak", not_finite)?;
    let zero = e.s32(0)?;
    let streak = e.select(finite, zero, streak)?;
    let max_pause = e.count("gate.max_pause")?;
    let exhausted = e.compare(streak, max_pause, Is::Ge)?;
    let stop = e.and(exhausted, gate_finite)?;
    e.set(Array::Counters, "non_finite_streak", streak);

    let always = e.b.constant(PrimitiveType::PRED, 1.0)?;
    let never = e.b.constant(PrimitiveType::PRED, 0.0)?;
    // An overflow under a loss scale is how that finds its level, and no anomaly.
    let (skipped, anomalous, refused) =
        if layout.loss_scaled { (not_finite, never, paused) } else { (never, not_finite, held) };
    let by_norm = e.and(paused, norm.cast)?;
    let by_low = e.and(paused, low)?;
    let by_high = e.and(paused, high)?;
    for (flag, event) in [("norm_exceeded", by_norm), ("entropy_low", by_low), ("entropy_high", by_high)] {
        e.show(flag, event)?;
    }
    for (counter, event) in [
        ("steps", always),
        ("non_finite", anomalous),
        ("loss_scale_skips", skipped),
        ("refused_norm", by_norm),
        ("refused_low", by_low),
        ("refused_high", by_high),
    ] {
        count(e, counter, event)?;
    }
    let accepted_steps = count(e, "accepted", accepted)?;
    Ok(Decision { applied, accepted, paused, refused, threshold, stop, accepted_steps })
}

/// Counts an event, and shows the count.
fn count(e: &mut Emitter<'_>, counter: &str, event: InstructionId) -> Made<InstructionId> {
    let count = e.counted(counter, event)?;
    e.set(Array::Counters, counter, count);
    e.show(counter, count)?;
    Ok(count)
}

/// The norm gate's vote, and its limit.
fn vote_by_norm(e: &mut Emitter<'_>, measured: &Measured, accepted: InstructionId) -> Made<(Vote, InstructionId)> {
    let enabled = e.number("gate.norm.enabled")?;
    let enabled = e.is(enabled, Is::Ne, 0.0)?;
    let warmup = e.count("gate.norm.warmup")?;
    let warm = e.compare(accepted, warmup, Is::Ge)?;
    let weight = e.scalar(Array::State, "norm_weight")?;
    let known = e.is(weight, Is::Gt, 0.0)?;
    let armed = e.and(warm, known)?;
    let armed = e.and(armed, enabled)?;
    let multiple = e.number("gate.norm.multiple")?;
    let mean = e.scalar(Array::State, "norm_mean")?;
    let multiple = e.mul(multiple, mean)?;
    let deviations = e.number("gate.norm.deviations")?;
    let deviation = e.scalar(Array::State, "norm_deviation")?;
    let usual = e.mul(deviations, deviation)?;
    let usual = e.add(mean, usual)?;
    let limit = e.binary(Opcode::Maximum, multiple, usual)?;
    let none = e.f32(NONE)?;
    let threshold = e.b.named("entropic.norm_threshold").select(armed, limit, none)?;
    let above = e.compare(measured.norm, limit, Is::Gt)?;
    let cast = e.and(above, armed)?;
    let cast = e.and(cast, measured.finite)?;
    Ok((Vote { enabled, cast }, threshold))
}

/// The entropy gate's vote, and on which side of its band the step lies.
fn vote_by_entropy(
    e: &mut Emitter<'_>,
    measured: &Measured,
    target: &Target,
    accepted: InstructionId,
) -> Made<(Vote, InstructionId, InstructionId)> {
    let enabled = e.number("gate.entropy.enabled")?;
    let enabled = e.is(enabled, Is::Ne, 0.0)?;
    let warmup = e.count("gate.entropy.warmup")?;
    let warm = e.compare(accepted, warmup, Is::Ge)?;
    let before = effective(e, target, target.calibrated, target.factor)?;
    let before = e.whole(before)?;
    let entropy = e.whole(measured.entropy)?;
    let active = e.whole(measured.active)?;
    let usable = e.is(before, Is::Ge, f32::MIN_POSITIVE)?;
    let armed = e.and(warm, usable)?;
    let armed = e.and(armed, active)?;
    let armed = e.and(armed, enabled)?;
    let ratio = e.b.named("entropic.ratio_of_this_step").divide(entropy, before)?;
    let low = e.number("gate.entropy.low")?;
    let low = e.compare(ratio, low, Is::Lt)?;
    let low = e.and(low, armed)?;
    let high = e.number("gate.entropy.high")?;
    let high = e.compare(ratio, high, Is::Gt)?;
    let high = e.and(high, armed)?;
    let cast = e.binary(Opcode::Or, low, high)?;
    Ok((Vote { enabled, cast }, low, high))
}

/// What was seen while gates refused, and whether that re-arms them; scalars.
pub(super) struct Pause {
    /// Thresholds are re-set in this step, pred.
    pub(super) rearm: InstructionId,
    /// Mean norm of the refused steps, f32.
    pub(super) norm: InstructionId,
    /// Mean global entropy of the refused steps, f32; meaningless where none had one.
    pub(super) entropy: InstructionId,
    /// Whether any had one, pred.
    pub(super) entropy_seen: InstructionId,
}

pub(super) fn pause(e: &mut Emitter<'_>, m: &Measured, d: &Decision) -> Made<Pause> {
    e.part("rearm");
    let zero = e.f32(0.0)?;
    let none = e.s32(0)?;
    let active = e.whole(m.active)?;
    let seen = e.and(d.paused, active)?;
    let entropy = e.whole(m.entropy)?;

    let norms = add_where(e, "paused_norms", m.norm, d.paused)?;
    let entropies = add_where(e, "paused_entropies", entropy, seen)?;
    let one = e.f32(1.0)?;
    let entropy_count = add_where(e, "paused_entropy_count", one, seen)?;
    let streak = e.counted("pause_streak", d.paused)?;
    let max_pause = e.count("gate.max_pause")?;
    let long = e.compare(streak, max_pause, Is::Ge)?;
    let rearm = e.and(long, d.paused)?;
    let length = e.b.convert(streak, PrimitiveType::F32)?;
    let norm = e.div(norms, length)?;
    let divisor = e.binary(Opcode::Maximum, entropy_count, one)?;
    let mean_entropy = e.div(entropies, divisor)?;
    let entropy_seen = e.is(entropy_count, Is::Gt, 0.0)?;

    let over = e.binary(Opcode::Or, rearm, d.accepted)?;
    for (name, value) in
        [("paused_norms", norms), ("paused_entropies", entropies), ("paused_entropy_count", entropy_count)]
    {
        let value = e.select(over, zero, value)?;
        e.set(Array::State, name, value);
    }
    let streak = e.select(over, none, streak)?;
    e.set(Array::Counters, "pause_streak", streak);
    let rearmed = e.counted("rearmed", rearm)?;
    e.set(Array::Counters, "rearmed", rearmed);
    e.show("rearmings", rearmed)?;
    e.show("rearmed", rearm)?;
    Ok(Pause { rearm, norm, entropy: mean_entropy, entropy_seen })
}

/// A scalar of the state, and x more where `event` holds.
fn add_where(e: &mut Emitter<'_>, name: &str, x: InstructionId, event: InstructionId) -> Made<InstructionId> {
    let old = e.scalar(Array::State, name)?;
    let more = e.add(old, x)?;
    Ok(e.select(event, more, old)?)
}
