//! When held states return to their copies, when the copies are renewed, and how learning rates back off.
//!
//! Let r be the number of steps refused since the last accepted one (a skip for a loss scale's overflow is none) and a
//! the number of steps accepted since the last refusal, return or renewal.
//!
//! * the state **returns** in the step that makes r = `patience`, once there is a copy;
//! * the copy is **taken** from an accepted step with a ≥ `refresh` whose norm is at most `calm` times the running mean;
//! * **back-off**: z, a logarithm of all learning rates, is 0 at first; a return adds ln `backoff`, down to
//!   ln `backoff_min`; an accepted step multiplies it by 2^(−1/`recover`), and makes it 0 again once exp z is above 0.999.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Opcode};

use super::RollbackControl;
use super::decision::Decision;
use super::emit::{Array, Emitter};
use super::law::{Made, Measured};
use crate::layout::BACKOFF_LOG;

/// A back-off whose logarithm is closer to 0 than this is over.
pub(crate) const NEGLIGIBLE: f32 = 1e-3;

/// What becomes of the copies in this step.
pub(super) struct Rollback {
    pub(super) control: RollbackControl,
    /// Logarithm of the scale of every learning rate in this step, f32\[\].
    pub(super) backoff: InstructionId,
}

pub(super) fn rollback(e: &mut Emitter<'_>, m: &Measured, d: &Decision) -> Made<Rollback> {
    e.part("rollback");
    let none = e.s32(0)?;

    let refused = e.counted("refused_streak", d.refused)?;
    let refused = e.select(d.accepted, none, refused)?;
    e.set(Array::Counters, "refused_streak", refused);
    let patience = e.count("rollback.patience")?;
    let at_patience = e.compare(refused, patience, Is::Eq)?;
    let taken = e.scalar(Array::Counters, "snapshots")?;
    let exists = e.compare(taken, none, Is::Gt)?;
    let returns = e.and(at_patience, d.refused)?;
    let returns = e.b.named("entropic.returns").emit(Opcode::And, &[returns, exists])?;

    let calm = e.counted("calm_streak", d.accepted)?;
    let refresh = e.count("rollback.refresh")?;
    let due = e.compare(calm, refresh, Is::Ge)?;
    let weight = e.scalar(Array::State, "norm_weight")?;
    let unknown = e.is(weight, Is::Le, 0.0)?;
    let mean = e.scalar(Array::State, "norm_mean")?;
    let multiple = e.number("rollback.calm")?;
    let limit = e.mul(multiple, mean)?;
    let ordinary = e.compare(m.norm, limit, Is::Le)?;
    let ordinary = e.binary(Opcode::Or, ordinary, unknown)?;
    let takes = e.and(due, d.accepted)?;
    let takes = e.b.named("entropic.takes_snapshot").emit(Opcode::And, &[takes, ordinary])?;
    let over = e.binary(Opcode::Or, d.refused, takes)?;
    let calm = e.select(over, none, calm)?;
    e.set(Array::Counters, "calm_streak", calm);

    for (flag, counter, event) in [("rolled_back", "rollbacks", returns), ("snapshot_taken", "snapshots", takes)] {
        e.show(flag, event)?;
        let count = e.counted(counter, event)?;
        e.set(Array::Counters, counter, count);
        e.show(counter, count)?;
    }

    let backoff = e.scalar(Array::State, BACKOFF_LOG)?;
    let more = e.number("rollback.log_backoff")?;
    let lowered = e.add(backoff, more)?;
    let least = e.number("rollback.log_min")?;
    let lowered = e.binary(Opcode::Maximum, lowered, least)?;
    let kept = e.number("rollback.kept")?;
    let recovered = e.mul(backoff, kept)?;
    let zero = e.f32(0.0)?;
    let over = e.is(recovered, Is::Gt, -NEGLIGIBLE)?;
    let recovered = e.select(over, zero, recovered)?;
    let next = e.select(d.accepted, recovered, backoff)?;
    let next = e.select(returns, lowered, next)?;
    e.set(Array::State, BACKOFF_LOG, next);
    let shown = e.b.exp(backoff)?;
    e.set(Array::Telemetry, "backoff", shown);
    Ok(Rollback { control: RollbackControl { returns, takes }, backoff })
}
