//! The law itself, part by part; formulas are in the parent's documentation.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Module, Opcode, PrimitiveType};

use super::emit::{Array, Emitter};
use super::{Controlled, Inputs, MomentumControl};
use crate::layout::{
    ControllerLayout, MICRO_BELOW, MICRO_FACTOR, MOMENTUM, MOMENTUM_CAP, MOMENTUM_SCALE, MOMENTUM_TENSORS, NONE,
    TENSOR_SCALES,
};
use crate::pass::PassError;
use crate::policy::Timing;

type Made<T> = Result<T, PassError>;

pub(super) fn emit(module: &mut Module, layout: &ControllerLayout, inputs: &Inputs) -> Made<Controlled> {
    let e = &mut Emitter::new(module, layout, inputs)?;
    let measured = measure(e, layout, inputs)?;
    let target = target(e)?;
    let decision = decide(e, &measured, &target)?;
    let paused = pause(e, &measured, &decision)?;
    let ratio = follow_entropy(e, layout, &measured, &decision, &target, &paused)?;
    follow_norm(e, &measured, &decision, &paused)?;
    let laws = laws(e, layout, &decision, ratio)?;
    let scales = scale(e, &laws)?;
    let momentum = if layout.scaled_momentum { Some(scale_momentum(e, &laws)?) } else { None };
    e.part("state");
    let state = e.assemble(Array::State, "entropic.new_state")?;
    let counters = e.assemble(Array::Counters, "entropic.new_counters")?;
    let telemetry = tell(e, &measured, &decision, scales)?;
    Ok(Controlled { applied: decision.applied, scales, momentum, state, counters, telemetry })
}

/// What this step's gradient is like; vectors have n + 1 elements.
struct Measured {
    /// S of each tensor and of all.
    energy: InstructionId,
    /// E where active, else −1.
    entropy: InstructionId,
    /// Where there is an entropy, pred.
    active: InstructionId,
    /// √ΣS, which may be infinite or NaN.
    norm: InstructionId,
    /// Whether ΣS is finite.
    finite: InstructionId,
}

fn measure(e: &mut Emitter<'_>, layout: &ControllerLayout, inputs: &Inputs) -> Made<Measured> {
    e.part("entropy");
    let total = e.total(inputs.energy)?;
    let norm = e.b.named("entropic.norm").sqrt(total)?;
    let finite = e.b.named("entropic.finite").is_finite(total)?;
    let energy = e.append(inputs.energy, total)?;

    let counts: Vec<u64> = layout.tensors.iter().map(|t| t.elements).collect();
    let all = counts.iter().fold(0_u64, |sum, &n| sum.saturating_add(n));
    let most = counts.iter().chain([&all]).map(|&n| layout.entropy.most_nats(n));
    #[allow(clippy::cast_possible_truncation, reason = "f32 is the device's precision")]
    let per_most: Vec<f32> = most.map(|most| if most > 0.0 { (1.0 / most) as f32 } else { 0.0 }).collect();
    let per_most = e.b.constant_f32_vector(&per_most)?;
    let value = e.mul(inputs.nats, per_most)?;
    let zero = e.f32(0.0)?;
    let one = e.f32(1.0)?;
    let value = e.binary(Opcode::Maximum, value, zero)?;
    let value = e.binary(Opcode::Minimum, value, one)?;

    let normal = e.is(energy, Is::Ge, f32::MIN_POSITIVE)?;
    let bounded = e.is(energy, Is::Le, f32::MAX)?;
    let several = e.is(per_most, Is::Gt, 0.0)?;
    let number = e.b.is_finite(inputs.nats)?;
    let active = e.and(normal, bounded)?;
    let active = e.and(active, several)?;
    let active = e.and(active, number)?;
    let none = e.f32(NONE)?;
    let entropy = e.select(active, value, none)?;
    Ok(Measured { energy, entropy, active, norm, finite })
}

/// What entropies are compared with, before this step; vectors have n + 1 elements.
struct Target {
    /// The base in the state: the forgetting mean at the last calibration, or −1.
    calibrated: InstructionId,
    /// Whether the policy fixes the target, pred\[\].
    fixed: InstructionId,
    /// The product of the decays since the last calibration, f32\[\].
    factor: InstructionId,
}

fn target(e: &mut Emitter<'_>) -> Made<Target> {
    e.part("target");
    let calibrated = e.vector(Array::State, "target")?;
    let value = e.number("target.fixed")?;
    let fixed = e.is(value, Is::Ge, 0.0)?;
    let factor = e.scalar(Array::State, "target_factor")?;
    Ok(Target { calibrated, fixed, factor })
}

/// The target: the fixed value or the calibrated base, times the decay; −1 where there is none.
fn effective(
    e: &mut Emitter<'_>,
    target: &Target,
    calibrated: InstructionId,
    factor: InstructionId,
) -> Made<InstructionId> {
    let value = e.number("target.fixed")?;
    let base = e.select(target.fixed, value, calibrated)?;
    let present = e.is(base, Is::Ge, 0.0)?;
    let none = e.f32(NONE)?;
    let decayed = e.mul(base, factor)?;
    Ok(e.select(present, decayed, none)?)
}

/// What happens with this step; scalars of pred unless said otherwise.
struct Decision {
    /// The update is applied.
    applied: InstructionId,
    /// The step enters window, means and history.
    accepted: InstructionId,
    /// Norm gate or entropy gate refuses.
    paused: InstructionId,
    /// The norm gate's limit, f32, −1 where it is not armed.
    threshold: InstructionId,
    /// Too many non-finite steps in a row.
    stop: InstructionId,
    /// Accepted steps so far, s32.
    accepted_steps: InstructionId,
}

/// One gate's say in a step, pred\[\] both.
struct Vote {
    enabled: InstructionId,
    cast: InstructionId,
}

fn decide(e: &mut Emitter<'_>, measured: &Measured, target: &Target) -> Made<Decision> {
    e.part("decision");
    let finite = measured.finite;
    let not_finite = e.b.not(finite)?;
    let gate_finite = e.number("gate.non_finite")?;
    let gate_finite = e.is(gate_finite, Is::Ne, 0.0)?;
    let accepted = e.scalar(Array::Counters, "accepted")?;
    let (norm, threshold) = vote_by_norm(e, measured, accepted)?;
    let (entropy, low, high) = vote_by_entropy(e, measured, target, accepted)?;

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
    let refused = e.and(not_finite, gate_finite)?;
    let refused = e.binary(Opcode::Or, refused, paused)?;
    let applied = e.b.named("entropic.applied").not(refused)?;
    let accepted = e.and(applied, finite)?;

    let streak = e.counted("non_finite_streak", not_finite)?;
    let zero = e.s32(0)?;
    let streak = e.select(finite, zero, streak)?;
    let max_pause = e.count("gate.max_pause")?;
    let exhausted = e.compare(streak, max_pause, Is::Ge)?;
    let stop = e.and(exhausted, gate_finite)?;
    e.set(Array::Counters, "non_finite_streak", streak);

    let always = e.b.constant(PrimitiveType::PRED, 1.0)?;
    let by_norm = e.and(paused, norm.cast)?;
    let by_low = e.and(paused, low)?;
    let by_high = e.and(paused, high)?;
    for (flag, event) in [("norm_exceeded", by_norm), ("entropy_low", by_low), ("entropy_high", by_high)] {
        let shown = e.b.convert(event, PrimitiveType::F32)?;
        e.set(Array::Telemetry, flag, shown);
    }
    let mut accepted_steps = zero;
    for (counter, event) in [
        ("steps", always),
        ("non_finite", not_finite),
        ("refused_norm", by_norm),
        ("refused_low", by_low),
        ("refused_high", by_high),
        ("accepted", accepted),
    ] {
        let count = e.counted(counter, event)?;
        e.set(Array::Counters, counter, count);
        let shown = e.b.convert(count, PrimitiveType::F32)?;
        e.set(Array::Telemetry, counter, shown);
        accepted_steps = count;
    }
    Ok(Decision { applied, accepted, paused, threshold, stop, accepted_steps })
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
    let limit = e.mul(multiple, mean)?;
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
    let last = e.b.shape(before)?.num_elements() as i64 - 1;
    let before = e.b.element(before, last)?;
    let entropy = e.b.element(measured.entropy, last)?;
    let active = e.b.element(measured.active, last)?;
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
struct Pause {
    /// Thresholds are re-set in this step, pred.
    rearm: InstructionId,
    /// Mean norm of the refused steps, f32.
    norm: InstructionId,
    /// Mean global entropy of the refused steps, f32; meaningless where none had one.
    entropy: InstructionId,
    /// Whether any had one, pred.
    entropy_seen: InstructionId,
}

fn pause(e: &mut Emitter<'_>, m: &Measured, d: &Decision) -> Made<Pause> {
    e.part("rearm");
    let zero = e.f32(0.0)?;
    let none = e.s32(0)?;
    let last = e.b.shape(m.entropy)?.num_elements() as i64 - 1;
    let active = e.b.element(m.active, last)?;
    let seen = e.and(d.paused, active)?;
    let entropy = e.b.element(m.entropy, last)?;

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
    let shown = e.b.convert(rearmed, PrimitiveType::F32)?;
    e.set(Array::Telemetry, "rearmings", shown);
    let flag = e.b.convert(rearm, PrimitiveType::F32)?;
    e.set(Array::Telemetry, "rearmed", flag);
    Ok(Pause { rearm, norm, entropy: mean_entropy, entropy_seen })
}

/// A scalar of the state, and x more where `event` holds.
fn add_where(e: &mut Emitter<'_>, name: &str, x: InstructionId, event: InstructionId) -> Made<InstructionId> {
    let old = e.scalar(Array::State, name)?;
    let more = e.add(old, x)?;
    Ok(e.select(event, more, old)?)
}

/// Window, forgetting mean, target and ratio of the entropies; returns the ratio, −1 where there is none.
///
/// Re-armed gates take the mean entropy of the pause for the whole gradient's mean and target, where these come from
/// history.
fn follow_entropy(
    e: &mut Emitter<'_>,
    layout: &ControllerLayout,
    m: &Measured,
    d: &Decision,
    target: &Target,
    paused: &Pause,
) -> Made<InstructionId> {
    e.part("smoothed");
    let moves = e.and(m.active, d.accepted)?;
    let mut newer = m.entropy;
    let mut sum = None;
    let mut count = None;
    for row in 0..layout.entropy.smoothing {
        let name = format!("window.{row}");
        let old = e.vector(Array::State, &name)?;
        let row = e.select(moves, newer, old)?;
        newer = old;
        e.set(Array::State, &name, row);
        let present = e.is(row, Is::Ge, 0.0)?;
        let zero = e.f32(0.0)?;
        let value = e.select(present, row, zero)?;
        let one = e.b.convert(present, PrimitiveType::F32)?;
        sum = Some(if let Some(sum) = sum { e.add(sum, value)? } else { value });
        count = Some(if let Some(count) = count { e.add(count, one)? } else { one });
    }
    let (Some(sum), Some(count)) = (sum, count) else {
        return Err(PassError::Stale { what: "the controller's smoothing window".to_owned() });
    };
    let one = e.f32(1.0)?;
    let none = e.f32(NONE)?;
    let divisor = e.binary(Opcode::Maximum, count, one)?;
    let smoothed = e.div(sum, divisor)?;
    let any = e.is(count, Is::Gt, 0.0)?;
    let smoothed = e.select(any, smoothed, none)?;

    e.part("target");
    let rate = e.number("target.rate")?;
    let mean = forget(e, ["mean", "mean_carry", "mean_weight"], Width::Vector, rate, m.entropy, moves)?;
    let since = e.counted("since_calibration", d.accepted)?;
    let calibrations = e.scalar(Array::Counters, "calibrations")?;
    let zero = e.s32(0)?;
    let uncalibrated = e.compare(calibrations, zero, Is::Eq)?;
    let first = e.count("target.first")?;
    let every = e.count("target.every")?;
    let period = e.select(uncalibrated, first, every)?;
    let due = e.compare(since, period, Is::Ge)?;
    let due = e.and(due, d.accepted)?;
    let since = e.select(due, zero, since)?;
    e.set(Array::Counters, "since_calibration", since);
    let calibrations = e.counted("calibrations", due)?;
    e.set(Array::Counters, "calibrations", calibrations);
    let known = e.is(mean.weight, Is::Gt, 0.0)?;
    let sets = e.and(known, due)?;
    let calibrated = e.select(sets, mean.value, target.calibrated)?;
    let history = e.b.not(target.fixed)?;
    let renews = e.and(paused.rearm, paused.entropy_seen)?;
    let renews = e.and(renews, history)?;
    let zero_sum = e.f32(0.0)?;
    for (name, values, renewed) in [("mean", mean.value, paused.entropy), ("mean_carry", mean.carry, zero_sum)] {
        let values = with_last(e, values, renews, renewed)?;
        e.set(Array::State, name, values);
    }
    let last = e.b.shape(calibrated)?.num_elements() as i64 - 1;
    let whole = e.b.element(calibrated, last)?;
    let whole_known = e.is(whole, Is::Ge, 0.0)?;
    let moves = e.and(renews, whole_known)?;
    let calibrated = with_last(e, calibrated, moves, paused.entropy)?;
    e.set(Array::State, "target", calibrated);
    let decay = e.number("target.decay")?;
    let decayed = e.mul(target.factor, decay)?;
    let factor = e.select(d.accepted, decayed, target.factor)?;
    let renewed = e.binary(Opcode::Or, due, paused.rearm)?;
    let renewed = e.and(renewed, history)?;
    let factor = e.select(renewed, one, factor)?;
    e.set(Array::State, "target_factor", factor);
    let now = effective(e, target, calibrated, factor)?;

    e.part("ratio");
    let usable = e.is(now, Is::Ge, f32::MIN_POSITIVE)?;
    let both = e.and(usable, any)?;
    let ratio = e.div(smoothed, now)?;
    let ratio = e.select(both, ratio, none)?;

    e.set(Array::Telemetry, "smoothed", smoothed);
    e.set(Array::Telemetry, "target", now);
    e.set(Array::Telemetry, "ratio", ratio);
    let calibrated = e.b.convert(due, PrimitiveType::F32)?;
    e.set(Array::Telemetry, "calibrated", calibrated);
    Ok(ratio)
}

/// A vector whose last element is another where `event` holds.
fn with_last(
    e: &mut Emitter<'_>,
    vector: InstructionId,
    event: InstructionId,
    value: InstructionId,
) -> Made<InstructionId> {
    let last = e.b.shape(vector)?.num_elements() as i64 - 1;
    let old = e.b.element(vector, last)?;
    let new = e.select(event, value, old)?;
    let others = e.b.slice_vector(vector, 0, last)?;
    Ok(e.append(others, new)?)
}

/// Running mean of the norm; re-arming sets it to what was seen.
fn follow_norm(e: &mut Emitter<'_>, m: &Measured, d: &Decision, paused: &Pause) -> Made<()> {
    e.part("norm_mean");
    let rate = e.number("gate.norm.rate")?;
    let mean = forget(e, ["norm_mean", "norm_carry", "norm_weight"], Width::Scalar, rate, m.norm, d.accepted)?;
    let zero = e.f32(0.0)?;
    let value = e.select(paused.rearm, paused.norm, mean.value)?;
    let carry = e.select(paused.rearm, zero, mean.carry)?;
    e.set(Array::State, "norm_mean", value);
    e.set(Array::State, "norm_carry", carry);
    e.set(Array::Telemetry, "norm_mean", value);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Scalar,
    Vector,
}

struct Mean {
    value: InstructionId,
    carry: InstructionId,
    weight: InstructionId,
}

/// One step of a forgetting mean held in three fields of the state, where `moves` holds; sets those fields.
fn forget(
    e: &mut Emitter<'_>,
    [value_field, carry_field, weight_field]: [&str; 3],
    width: Width,
    rate: InstructionId,
    x: InstructionId,
    moves: InstructionId,
) -> Made<Mean> {
    let read = |e: &mut Emitter<'_>, name| match width {
        Width::Scalar => e.scalar(Array::State, name),
        Width::Vector => e.vector(Array::State, name),
    };
    let value = read(e, value_field)?;
    let carry = read(e, carry_field)?;
    let weight = read(e, weight_field)?;
    let one = e.f32(1.0)?;
    let missing = e.sub(one, weight)?;
    let gained = e.mul(rate, missing)?;
    let new_weight = e.add(weight, gained)?;
    let gain = e.div(rate, new_weight)?;
    let distance = e.sub(x, value)?;
    let step = e.mul(gain, distance)?;
    let step = e.sub(step, carry)?;
    let new_value = e.add(value, step)?;
    let new_carry = e.sub(new_value, value)?;
    let new_carry = e.sub(new_carry, step)?;
    let made = Mean {
        value: e.select(moves, new_value, value)?,
        carry: e.select(moves, new_carry, carry)?,
        weight: e.select(moves, new_weight, weight)?,
    };
    e.set(Array::State, value_field, made.value);
    e.set(Array::State, carry_field, made.carry);
    e.set(Array::State, weight_field, made.weight);
    Ok(made)
}

/// Logarithms of the scales that the laws come to, before this step or after it as the timing says.
#[derive(Default)]
struct Laws {
    /// Of each tensor's learning rate, f32\[n\].
    micro: Option<InstructionId>,
    /// Of every learning rate, f32\[\].
    lr: Option<InstructionId>,
    /// Of every momentum, f32\[\].
    momentum: Option<InstructionId>,
}

fn laws(e: &mut Emitter<'_>, layout: &ControllerLayout, d: &Decision, ratio: InstructionId) -> Made<Laws> {
    let n = layout.tensors.len() as i64;
    let delayed = layout.laws.timing == Timing::Delayed;
    let mut laws = Laws::default();
    if layout.laws.micro {
        e.part("micro");
        let old = e.vector(Array::State, "micro_log")?;
        let tensors = e.b.slice_vector(ratio, 0, n)?;
        let new = micro(e, d, tensors, old)?;
        e.set(Array::State, "micro_log", new);
        laws.micro = Some(if delayed { old } else { new });
    }
    let whole = e.b.element(ratio, n)?;
    if layout.laws.rule {
        e.part("rule");
        let acts = acts(e, d, "laws.rule.period", whole)?;
        let limit = e.number("laws.log_max")?;
        let old = e.scalar(Array::State, "lr_log")?;
        let new = by_band(e, whole, ["laws.rule.lr_low", "laws.rule.lr_high"], limit, old, acts)?;
        e.set(Array::State, "lr_log", new);
        laws.lr = Some(if delayed { old } else { new });
        let limit = e.number("laws.rule.momentum_log_max")?;
        let old = e.scalar(Array::State, "momentum_log")?;
        let new = by_band(e, whole, ["laws.rule.momentum_low", "laws.rule.momentum_high"], limit, old, acts)?;
        e.set(Array::State, "momentum_log", new);
        laws.momentum = Some(if delayed { old } else { new });
    }
    if layout.laws.pi {
        e.part("pi");
        let old = e.scalar(Array::State, "lr_log")?;
        let new = proportional_integral(e, d, whole, old)?;
        e.set(Array::State, "lr_log", new);
        laws.lr = Some(if delayed { old } else { new });
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
    let due = e.binary(Opcode::And, due, present)?;
    Ok(due)
}

/// x between −limit and limit.
fn clamp(e: &mut Emitter<'_>, x: InstructionId, limit: InstructionId) -> Made<InstructionId> {
    let low = e.b.negate(limit)?;
    let x = e.binary(Opcode::Maximum, x, low)?;
    Ok(e.binary(Opcode::Minimum, x, limit)?)
}

/// x less a share of it.
fn relaxed(e: &mut Emitter<'_>, x: InstructionId, share: &str) -> Made<InstructionId> {
    let one = e.f32(1.0)?;
    let share = e.number(share)?;
    let kept = e.sub(one, share)?;
    Ok(e.mul(x, kept)?)
}

/// One step of the law of each tensor on the logarithms of its scales.
fn micro(e: &mut Emitter<'_>, d: &Decision, ratio: InstructionId, old: InstructionId) -> Made<InstructionId> {
    let acts = acts(e, d, "laws.micro.period", ratio)?;
    let below = e.vector(Array::Policy, MICRO_BELOW)?;
    let factor = e.vector(Array::Policy, MICRO_FACTOR)?;
    let raises = e.compare(ratio, below, Is::Lt)?;
    let raised = e.add(old, factor)?;
    let limit = e.number("laws.log_max")?;
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

fn scale(e: &mut Emitter<'_>, laws: &Laws) -> Made<InstructionId> {
    e.part("scales");
    let tensors = e.vector(Array::Policy, TENSOR_SCALES)?;
    let global = e.number("scale.global")?;
    let base = e.mul(tensors, global)?;
    let log = match (laws.micro, laws.lr) {
        (Some(micro), Some(lr)) => e.add(micro, lr)?,
        (Some(log), None) | (None, Some(log)) => log,
        (None, None) => return Ok(base),
    };
    let limit = e.number("laws.log_max")?;
    let log = clamp(e, log, limit)?;
    // An approximation of exp need not give 1 at 0, and only 1 is neutral.
    let neutral = e.is(log, Is::Eq, 0.0)?;
    let factor = e.b.exp(log)?;
    let scaled = e.mul(base, factor)?;
    Ok(e.select(neutral, base, scaled)?)
}

fn scale_momentum(e: &mut Emitter<'_>, laws: &Laws) -> Made<MomentumControl> {
    e.part("momentum");
    let tensors = e.vector(Array::Policy, MOMENTUM_TENSORS)?;
    let all = e.number(MOMENTUM_SCALE)?;
    let mut scales = e.mul(tensors, all)?;
    if let Some(log) = laws.momentum {
        let neutral = e.is(log, Is::Eq, 0.0)?;
        let factor = e.b.exp(log)?;
        let moved = e.mul(scales, factor)?;
        scales = e.select(neutral, scales, moved)?;
    }
    e.set(Array::Telemetry, MOMENTUM, scales);
    Ok(MomentumControl { scales, cap: e.number(MOMENTUM_CAP)? })
}

fn tell(e: &mut Emitter<'_>, m: &Measured, d: &Decision, scales: InstructionId) -> Made<InstructionId> {
    e.part("telemetry");
    for (name, flag) in [("applied", d.applied), ("finite", m.finite), ("stop", d.stop)] {
        let value = e.b.convert(flag, PrimitiveType::F32)?;
        e.set(Array::Telemetry, name, value);
    }
    let norms = e.b.sqrt(m.energy)?;
    e.set(Array::Telemetry, "norm", norms);
    e.set(Array::Telemetry, "entropy", m.entropy);
    e.set(Array::Telemetry, "norm_threshold", d.threshold);
    e.set(Array::Telemetry, "scale", scales);
    e.assemble(Array::Telemetry, "entropic.telemetry")
}
