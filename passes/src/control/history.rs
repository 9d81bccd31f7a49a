//! What earlier steps were like: smoothed entropies, their target, and the running mean of the norm.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Opcode, PrimitiveType};

use super::decision::{Decision, Pause};
use super::emit::{Array, Emitter};
use super::law::{Followed, Made, Measured};
use crate::layout::{ControllerLayout, NONE};
use crate::pass::PassError;

/// What entropies are compared with, before this step; vectors have n + 1 elements.
pub(super) struct Target {
    /// The base in the state: the forgetting mean at the last calibration, or −1.
    pub(super) calibrated: InstructionId,
    /// Whether the policy fixes the target, pred\[\].
    pub(super) fixed: InstructionId,
    /// The product of the decays since the last calibration, f32\[\].
    pub(super) factor: InstructionId,
}

pub(super) fn target(e: &mut Emitter<'_>) -> Made<Target> {
    e.part("target");
    let calibrated = e.vector(Array::State, "target")?;
    let value = e.number("target.fixed")?;
    let fixed = e.is(value, Is::Ge, 0.0)?;
    let factor = e.scalar(Array::State, "target_factor")?;
    Ok(Target { calibrated, fixed, factor })
}

/// The target: the fixed value or the calibrated base, times the decay; −1 where there is none.
pub(super) fn effective(
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

/// Window, forgetting mean, target and ratio of the entropies; returns the ratio, −1 where there is none.
///
/// Re-armed gates take the mean entropy of the pause for the whole gradient's mean and target, where these come from
/// history and are of gradients.
pub(super) fn follow_entropy(
    e: &mut Emitter<'_>,
    layout: &ControllerLayout,
    m: &Followed,
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
    let renews = if m.of_gradient { e.and(renews, history)? } else { e.b.constant(PrimitiveType::PRED, 0.0)? };
    let zero_sum = e.f32(0.0)?;
    for (name, values, renewed) in [("mean", mean.value, paused.entropy), ("mean_carry", mean.carry, zero_sum)] {
        let values = with_last(e, values, renews, renewed)?;
        e.set(Array::State, name, values);
    }
    let whole = e.whole(calibrated)?;
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
    e.show("calibrated", due)?;
    Ok(ratio)
}

/// A vector whose last element is another where `event` holds.
fn with_last(
    e: &mut Emitter<'_>,
    vector: InstructionId,
    event: InstructionId,
    value: InstructionId,
) -> Made<InstructionId> {
    let old = e.whole(vector)?;
    let new = e.select(event, value, old)?;
    let others = e.b.shape(vector)?.num_elements() as i64 - 1;
    let others = e.b.slice_vector(vector, 0, others)?;
    Ok(e.b.append(others, new)?)
}

/// Running mean of the norm, which re-arming sets to what was seen, and of its distance from that mean.
pub(super) fn follow_norm(e: &mut Emitter<'_>, m: &Measured, d: &Decision, paused: &Pause) -> Made<()> {
    e.part("norm_deviation");
    let rate = e.number("gate.norm.rate")?;
    let before = e.scalar(Array::State, "norm_mean")?;
    let distance = e.sub(m.norm, before)?;
    let distance = e.b.abs(distance)?;
    let weight = e.scalar(Array::State, "norm_weight")?;
    let known = e.is(weight, Is::Gt, 0.0)?;
    let moves = e.and(d.accepted, known)?;
    let fields = ["norm_deviation", "norm_deviation_carry", "norm_deviation_weight"];
    forget(e, fields, Width::Scalar, rate, distance, moves)?;

    e.part("norm_mean");
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
pub(super) enum Width {
    Scalar,
    Vector,
}

pub(super) struct Mean {
    pub(super) value: InstructionId,
    carry: InstructionId,
    weight: InstructionId,
}

/// One step of a forgetting mean held in three fields of the state, where `moves` holds; sets those fields.
pub(super) fn forget(
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
