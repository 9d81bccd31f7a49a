//! What the controller saw in one step of a recorded run, which threshold it crossed, and what it did, in words.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use passes::Policy;
use passes::policy::{TargetKind, Votes};
use thiserror::Error;

use crate::recorded::{Line, Lines, RecordedError, RunDocument, StepNumber};
use crate::train::{ControlRecord, GateReason, StepRecord};

/// Tensors that are named one by one.
const NAMED: usize = 3;

/// Why a step cannot be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The run cannot be read.
    #[error(transparent)]
    Recorded(#[from] RecordedError),
    /// The run has no such step.
    #[error("{} has no step {step}{}", run.display(), match last {
        Some(last) => format!("; its last one is {last}"),
        None => "; it has none at all".to_owned(),
    })]
    NoStep {
        /// The run.
        run: PathBuf,
        /// The step asked for.
        step: u64,
        /// The last step recorded.
        last: Option<u64>,
    },
    /// The step's record does not hold what this version looks for.
    #[error(
        "step {step} in {} has no complete record of the controller; the run was recorded by another version of entropic",
        run.join("metrics.jsonl").display()
    )]
    Incomplete {
        /// The run.
        run: PathBuf,
        /// The step.
        step: u64,
    },
    /// The run was not controlled.
    #[error("{} was trained with --no-control, so there is nothing to explain", run.display())]
    NotControlled {
        /// The run.
        run: PathBuf,
    },
}

/// Explains one step of the run in `folder`.
///
/// # Errors
///
/// Where the folder is no run of a controlled step, or the run has no such step.
pub fn explain(folder: &Path, step: u64) -> Result<String, ExplainError> {
    let run = RunDocument::read(folder)?;
    let policy = run.policy.as_ref().ok_or_else(|| ExplainError::NotControlled { run: folder.to_owned() })?;
    let (before, record) = read_steps(folder, step)?;
    let control = record.control.as_ref().ok_or_else(|| ExplainError::Incomplete { run: folder.to_owned(), step })?;
    let before = before.and_then(|b| b.control);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = tell(&mut text, &run, policy, &record, control, before.as_ref());
    Ok(text)
}

/// The record of a step, and of the one before it.
fn read_steps(folder: &Path, step: u64) -> Result<(Option<StepRecord>, StepRecord), ExplainError> {
    let mut lines = Lines::open(folder)?;
    let mut before: Option<Line> = None;
    let mut last = None;
    while let Some(line) = lines.next_line()? {
        let Some(StepNumber { step: found }) = lines.parse(&line)? else { break };
        if found == step
            && let Some(record) = lines.parse(&line)?
        {
            let before = before.map(|line| lines.parse(&line)).transpose()?.flatten();
            return Ok((before, record));
        }
        before = Some(line);
        last = Some(found);
    }
    Err(ExplainError::NoStep { run: folder.to_owned(), step, last })
}

fn tell(
    text: &mut String,
    run: &RunDocument,
    policy: &Policy,
    record: &StepRecord,
    control: &ControlRecord,
    before: Option<&ControlRecord>,
) -> std::fmt::Result {
    let loss = record
        .loss
        .map_or("not finite".to_owned(), |loss| format!("{loss:.4} {}", run.loss_unit).trim_end().to_owned());
    let outcome = if control.gate.is_none() { "its update was applied" } else { "its update was refused" };
    writeln!(text, "Step {} of {}: {outcome}. Loss {loss}.\n", record.step, run.model)?;
    if let Some(fault) = record.fault {
        writeln!(text, "Its batch had been spoilt on purpose (--corrupt): {fault}.")?;
    }
    for differing in record.replicas.iter().flat_map(|r| &r.replica_differences) {
        let replicas: Vec<_> = differing.replicas.iter().map(ToString::to_string).collect();
        writeln!(
            text,
            "Behind it, {} was not the same on all replicas: {} had another one than 0 (replicas.on_mismatch = {:?}).",
            differing.state,
            replicas.join(", "),
            policy.replicas.on_mismatch.name()
        )?;
    }
    why(text, policy, control)?;
    if control.gate.is_some() {
        writeln!(
            text,
            "Parameters, moments and the other held states kept their bits; advancing states (schedules, random keys, loss \
             scales) went on. `entropic inspect` shows which is which."
        )?;
    }
    rearmed(text, policy, control)?;
    rolled_back(text, policy, control)?;
    writeln!(text)?;
    seen(text, policy, control)?;
    laws(text, run, control, before)?;
    tensors(text, run, control)?;
    writeln!(
        text,
        "\nSo far: {} steps accepted; refused for norm {}, for entropy below the band {}, above it {}; not finite {}; \
         skipped by the loss scale {}; rolled back {}; re-armed {}.",
        control.accepted,
        control.refused_norm,
        control.refused_low,
        control.refused_high,
        control.non_finite,
        control.loss_scale_skips,
        control.rollback.map_or(0, |r| r.rollbacks),
        control.rearmings
    )
}

/// What was refused for which reason, or what was compared with what.
fn why(text: &mut String, policy: &Policy, control: &ControlRecord) -> std::fmt::Result {
    let gate = &policy.gate;
    match control.gate {
        Some(GateReason::NonFinite) => writeln!(
            text,
            "Some gradient held NaN or infinity, and the policy refuses such updates (gate.non_finite). Such a step is never \
             admitted; {} in a row stop the run (gate.max_pause).",
            gate.max_pause
        )?,
        Some(GateReason::LossScale) => writeln!(
            text,
            "Gradients overflowed under the step's own loss scale, which is how it finds its level: no anomaly. The scale and its \
             counters went on."
        )?,
        Some(GateReason::Other) => writeln!(text, "The controller does not say why.")?,
        Some(GateReason::Norm | GateReason::EntropyLow | GateReason::EntropyHigh) | None => {}
    }
    if let Some(threshold) = control.norm_threshold {
        let crossed = if control.norm > threshold { "above" } else { "not above" };
        writeln!(
            text,
            "The norm of the whole gradient was {}, {crossed} the limit {}: {} times its running mean (gate.norm.multiple), or {} \
             mean deviations above it (gate.norm.deviations), whichever is more.",
            number(control.norm),
            number(threshold),
            gate.norm.multiple,
            gate.norm.deviations
        )?;
    } else {
        writeln!(text, "The norm of the whole gradient was {}; the norm gate was not armed.", number(control.norm))?;
    }
    if gate.entropy.enabled
        && let (Some(entropy), Some(target)) = (control.entropy, control.target)
        && target > 0.0
    {
        let side = match control.gate {
            Some(GateReason::EntropyLow) => "below",
            Some(GateReason::EntropyHigh) => "above",
            _ => "compared with",
        };
        writeln!(
            text,
            "The entropy of this step was {:.3} of its target, {side} the band [{}, {}] (gate.entropy).",
            entropy / target,
            gate.entropy.low,
            gate.entropy.high
        )?;
    }
    if gate.votes == Votes::All && gate.norm.enabled && gate.entropy.enabled {
        writeln!(text, "Both gates must agree to refuse a step (gate.votes = \"all\").")?;
    }
    Ok(())
}

fn rearmed(text: &mut String, policy: &Policy, control: &ControlRecord) -> std::fmt::Result {
    if control.rearmed {
        writeln!(
            text,
            "This was refusal {} since the last accepted step (gate.max_pause), so the gates were re-armed: their thresholds \
             are now what was seen meanwhile.",
            policy.gate.max_pause
        )?;
    }
    if control.stop {
        writeln!(text, "The controller asked for the end of the run: too many steps in a row were not finite.")?;
    }
    Ok(())
}

fn rolled_back(text: &mut String, policy: &Policy, control: &ControlRecord) -> std::fmt::Result {
    let Some(record) = control.rollback else { return Ok(()) };
    if record.rolled_back {
        writeln!(
            text,
            "This was refusal {} in a row (rollback.patience), so every held state returned to its copy. From the next step on \
             all learning rates are multiplied by rollback.backoff = {} more, which wears off.",
            policy.rollback.patience, policy.rollback.backoff
        )?;
    }
    if record.snapshot_taken {
        writeln!(text, "A copy of every held state was taken after this step (number {}).", record.snapshots)?;
    }
    if record.backoff != 1.0 {
        writeln!(text, "After an earlier return, learning rates were scaled by {:.4} in this step.", record.backoff)?;
    }
    Ok(())
}

fn seen(text: &mut String, policy: &Policy, control: &ControlRecord) -> std::fmt::Result {
    let shown = |value: Option<f32>| value.map_or("none yet".to_owned(), |v| format!("{v:.4}"));
    let source = match policy.target.kind {
        TargetKind::History => "from history",
        TargetKind::Fixed => "fixed",
    };
    writeln!(
        text,
        "Entropy {}; mean of the last {} accepted steps {}; target ({source}) {}; ratio {}.{}",
        shown(control.entropy),
        policy.entropy.smoothing,
        shown(control.smoothed),
        shown(control.target),
        shown(control.ratio),
        if control.calibrated { " The targets were calibrated in this step." } else { "" }
    )
}

/// What the laws came to, and what they moved.
fn laws(
    text: &mut String,
    run: &RunDocument,
    control: &ControlRecord,
    before: Option<&ControlRecord>,
) -> std::fmt::Result {
    if let (Some(lr), Some(momentum)) = (control.lr_scale, control.momentum_scale) {
        writeln!(
            text,
            "The laws of all tensors scale the learning rate by {lr:.4} and the momentum by {momentum:.4}."
        )?;
    }
    let Some(before) = before else { return Ok(()) };
    match (before.switched, control.switched) {
        (Some(false), Some(true)) => writeln!(
            text,
            "This is the first step of SGD with momentum: the optimizer's own update gave way to its first moment (switch)."
        )?,
        (Some(true), Some(false)) => {
            writeln!(text, "This is the first step of the optimizer after SGD (switch.return_above).")?
        }
        _ => {}
    }
    let mut moved: Vec<_> = run
        .tensors
        .iter()
        .zip(before.tensor_scale.iter().zip(&control.tensor_scale))
        .filter(|(_, (old, new))| old != new)
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    let size = |(_, (old, new)): &(&String, (&f32, &f32))| (*new / *old).ln().abs();
    moved.sort_by(|a, b| size(b).total_cmp(&size(a)));
    write!(text, "The scale of {} tensors' updates changed:", moved.len())?;
    for (name, (old, new)) in moved.iter().take(NAMED) {
        write!(text, " {name} {old:.4} to {new:.4};")?;
    }
    if moved.len() > NAMED {
        write!(text, " and {} more", moved.len() - NAMED)?;
    }
    writeln!(text)
}

/// The tensors that stand out.
fn tensors(text: &mut String, run: &RunDocument, control: &ControlRecord) -> std::fmt::Result {
    let mut norms: Vec<_> = run.tensors.iter().zip(&control.tensor_norm).collect();
    norms.sort_by(|a, b| b.1.total_cmp(a.1));
    let odd: Vec<_> = norms.iter().filter(|(_, norm)| !norm.is_finite()).map(|(name, _)| name.as_str()).collect();
    if !odd.is_empty() {
        let more = if odd.len() > NAMED { format!(" and {} more", odd.len() - NAMED) } else { String::new() };
        let named: Vec<_> = odd.iter().take(NAMED).copied().collect();
        writeln!(text, "Not finite: {}{more}.", named.join(", "))?;
    }
    let list: Vec<_> = norms
        .iter()
        .filter(|(_, norm)| norm.is_finite())
        .take(NAMED)
        .map(|(name, norm)| format!("{name} {}", number(**norm)))
        .collect();
    writeln!(text, "Largest norms: {}.", list.join(", "))?;
    let mut entropies: Vec<_> =
        run.tensors.iter().zip(&control.tensor_entropy).filter_map(|(name, e)| e.map(|e| (name, e))).collect();
    entropies.sort_by(|a, b| a.1.total_cmp(&b.1));
    let list: Vec<_> = entropies.iter().take(NAMED).map(|(name, e)| format!("{name} {e:.4}")).collect();
    if !list.is_empty() {
        writeln!(text, "Lowest entropies: {}.", list.join(", "))?;
    }
    Ok(())
}

/// A number with four digits that count.
fn number(value: f32) -> String {
    if !value.is_finite() {
        return "not finite".to_owned();
    }
    if value == 0.0 || (1e-3..1e5).contains(&value) { format!("{value:.4}") } else { format!("{value:.3e}") }
}
