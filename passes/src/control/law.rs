//! The law itself, part by part; formulas are in the parent's documentation.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Module, Opcode, PrimitiveType};

use super::emit::{Array, Emitter};
use super::{Controlled, Inputs, MomentumControl};
use crate::layout::{ControllerLayout, MOMENTUM, MOMENTUM_CAP, MOMENTUM_SCALE, MOMENTUM_TENSORS, NONE, TENSOR_SCALES};
use crate::pass::PassError;

type Made<T> = Result<T, PassError>;

pub(super) fn emit(module: &mut Module, layout: &ControllerLayout, inputs: &Inputs) -> Made<Controlled> {
    let e = &mut Emitter::new(module, layout, inputs)?;
    let measured = measure(e, layout, inputs)?;
    let decision = decide(e, &measured)?;
    follow_entropy(e, layout, &measured, &decision)?;
    follow_norm(e, &measured, &decision)?;
    let scales = scale(e)?;
    let momentum = if layout.scaled_momentum { Some(scale_momentum(e)?) } else { None };
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
    let smallest = e.f32(f32::MIN_POSITIVE)?;
    let total = e.total(inputs.energy)?;
    let norm = e.b.named("entropic.norm").sqrt(total)?;
    let finite = e.b.named("entropic.finite").is_finite(total)?;

    // Divided by at least the smallest normal number, w is 0 and not NaN for a zero gradient.
    let divisor = e.binary(Opcode::Maximum, total, smallest)?;
    let w = e.div(inputs.energy, divisor)?;
    let floor = e.binary(Opcode::Maximum, w, smallest)?;
    let log = e.b.log(floor)?;
    let inner = e.sub(inputs.nats, log)?;
    let inner = e.mul(w, inner)?;
    let total_nats = e.total(inner)?;

    let energy = e.append(inputs.energy, total)?;
    let nats = e.append(inputs.nats, total_nats)?;
    let counts: Vec<u64> = layout.tensors.iter().map(|t| t.elements).collect();
    let all = counts.iter().fold(0_u64, |sum, &n| sum.saturating_add(n));
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "f32 is the device's precision")]
    let per_log: Vec<f32> =
        counts.iter().chain([&all]).map(|&n| if n > 1 { (1.0 / (n as f64).ln()) as f32 } else { 0.0 }).collect();
    let per_log = e.b.constant_f32_vector(&per_log)?;
    let value = e.mul(nats, per_log)?;
    let zero = e.f32(0.0)?;
    let one = e.f32(1.0)?;
    let value = e.binary(Opcode::Maximum, value, zero)?;
    let value = e.binary(Opcode::Minimum, value, one)?;

    let normal = e.is(energy, Is::Ge, f32::MIN_POSITIVE)?;
    let bounded = e.is(energy, Is::Le, f32::MAX)?;
    let several = e.is(per_log, Is::Gt, 0.0)?;
    let active = e.and(normal, bounded)?;
    let active = e.and(active, several)?;
    let none = e.f32(NONE)?;
    let entropy = e.select(active, value, none)?;
    Ok(Measured { energy, entropy, active, norm, finite })
}

/// What happens with this step; scalars of pred unless said otherwise.
struct Decision {
    /// The update is applied.
    applied: InstructionId,
    /// The step enters window, means and history.
    accepted: InstructionId,
    /// The norm gate refuses.
    norm_exceeded: InstructionId,
    /// The norm gate's limit, f32, −1 where it is not armed.
    threshold: InstructionId,
    /// Too many non-finite steps in a row.
    stop: InstructionId,
}

fn decide(e: &mut Emitter<'_>, measured: &Measured) -> Made<Decision> {
    e.part("decision");
    let finite = measured.finite;
    let not_finite = e.b.not(finite)?;
    let gate_finite = e.number("gate.non_finite")?;
    let gate_finite = e.is(gate_finite, Is::Ne, 0.0)?;
    let gate_norm = e.number("gate.norm.enabled")?;
    let gate_norm = e.is(gate_norm, Is::Ne, 0.0)?;

    let accepted = e.scalar(Array::Counters, "accepted")?;
    let warmup = e.count("gate.norm.warmup")?;
    let warm = e.compare(accepted, warmup, Is::Ge)?;
    let weight = e.scalar(Array::State, "norm_weight")?;
    let known = e.is(weight, Is::Gt, 0.0)?;
    let armed = e.and(warm, known)?;
    let armed = e.and(armed, gate_norm)?;
    let multiple = e.number("gate.norm.multiple")?;
    let mean = e.scalar(Array::State, "norm_mean")?;
    let limit = e.mul(multiple, mean)?;
    let none = e.f32(NONE)?;
    let threshold = e.b.named("entropic.norm_threshold").select(armed, limit, none)?;
    let above = e.compare(measured.norm, limit, Is::Gt)?;
    let norm_exceeded = e.and(above, armed)?;
    let norm_exceeded = e.and(norm_exceeded, finite)?;

    let refused = e.and(not_finite, gate_finite)?;
    let refused = e.binary(Opcode::Or, refused, norm_exceeded)?;
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
    for (counter, event) in
        [("steps", always), ("accepted", accepted), ("non_finite", not_finite), ("refused_norm", norm_exceeded)]
    {
        let count = e.counted(counter, event)?;
        e.set(Array::Counters, counter, count);
        let shown = e.b.convert(count, PrimitiveType::F32)?;
        e.set(Array::Telemetry, counter, shown);
    }
    Ok(Decision { applied, accepted, norm_exceeded, threshold, stop })
}

/// Window, forgetting mean, target and ratio of the entropies.
fn follow_entropy(e: &mut Emitter<'_>, layout: &ControllerLayout, m: &Measured, d: &Decision) -> Made<()> {
    e.part("smoothed");
    let moves = e.and(m.active, d.accepted)?;
    let mut newer = m.entropy;
    let mut sum = None;
    let mut count = None;
    for row in 0..layout.smoothing {
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
    let target = e.vector(Array::State, "target")?;
    let target = e.select(sets, mean.value, target)?;
    e.set(Array::State, "target", target);

    e.part("ratio");
    let usable = e.is(target, Is::Ge, f32::MIN_POSITIVE)?;
    let both = e.and(usable, any)?;
    let ratio = e.div(smoothed, target)?;
    let ratio = e.select(both, ratio, none)?;

    e.set(Array::Telemetry, "smoothed", smoothed);
    e.set(Array::Telemetry, "target", target);
    e.set(Array::Telemetry, "ratio", ratio);
    let calibrated = e.b.convert(due, PrimitiveType::F32)?;
    e.set(Array::Telemetry, "calibrated", calibrated);
    Ok(())
}

/// Running mean of the norm, and its re-arming.
fn follow_norm(e: &mut Emitter<'_>, m: &Measured, d: &Decision) -> Made<()> {
    e.part("norm_mean");
    let rate = e.number("gate.norm.rate")?;
    let mean = forget(e, ["norm_mean", "norm_carry", "norm_weight"], Width::Scalar, rate, m.norm, d.accepted)?;

    e.part("rearm");
    let zero = e.f32(0.0)?;
    let none = e.s32(0)?;
    let paused = e.scalar(Array::State, "paused_norms")?;
    let more = e.add(paused, m.norm)?;
    let paused = e.select(d.norm_exceeded, more, paused)?;
    let streak = e.counted("norm_streak", d.norm_exceeded)?;
    let max_pause = e.count("gate.max_pause")?;
    let long = e.compare(streak, max_pause, Is::Ge)?;
    let rearm = e.and(long, d.norm_exceeded)?;
    let length = e.b.convert(streak, PrimitiveType::F32)?;
    let seen = e.div(paused, length)?;
    let value = e.select(rearm, seen, mean.value)?;
    let carry = e.select(rearm, zero, mean.carry)?;
    let over = e.binary(Opcode::Or, rearm, d.accepted)?;
    let paused = e.select(over, zero, paused)?;
    let streak = e.select(over, none, streak)?;
    let rearmed = e.counted("rearmed", rearm)?;

    e.set(Array::State, "norm_mean", value);
    e.set(Array::State, "norm_carry", carry);
    e.set(Array::State, "paused_norms", paused);
    e.set(Array::Counters, "norm_streak", streak);
    e.set(Array::Counters, "rearmed", rearmed);
    e.set(Array::Telemetry, "norm_mean", value);
    let shown = e.b.convert(rearmed, PrimitiveType::F32)?;
    e.set(Array::Telemetry, "rearmings", shown);
    let flag = e.b.convert(rearm, PrimitiveType::F32)?;
    e.set(Array::Telemetry, "rearmed", flag);
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

fn scale(e: &mut Emitter<'_>) -> Made<InstructionId> {
    e.part("scales");
    let tensors = e.vector(Array::Policy, TENSOR_SCALES)?;
    let global = e.number("scale.global")?;
    Ok(e.mul(tensors, global)?)
}

fn scale_momentum(e: &mut Emitter<'_>) -> Made<MomentumControl> {
    e.part("momentum");
    let tensors = e.vector(Array::Policy, MOMENTUM_TENSORS)?;
    let all = e.number(MOMENTUM_SCALE)?;
    let scales = e.mul(tensors, all)?;
    e.set(Array::Telemetry, MOMENTUM, scales);
    Ok(MomentumControl { scales, cap: e.number(MOMENTUM_CAP)? })
}

fn tell(e: &mut Emitter<'_>, m: &Measured, d: &Decision, scales: InstructionId) -> Made<InstructionId> {
    e.part("telemetry");
    for (name, flag) in
        [("applied", d.applied), ("finite", m.finite), ("norm_exceeded", d.norm_exceeded), ("stop", d.stop)]
    {
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
