//! What one step reports, as a line of `metrics.jsonl`.

use passes::telemetry::Telemetry;
use serde::{Deserialize, Serialize};

use super::consistency::ReplicaRecord;
use super::corruption::Fault;

/// What one step reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 0.
    pub step: u64,
    /// Training loss on this step's batch, before its update; `null` where it is not finite.
    pub loss: Option<f64>,
    /// Seconds from the first launch to the moment the host had read this step, with all others of its launch.
    pub seconds: f64,
    /// What was wrong with the batch on purpose, where [`Options::corruption`](super::Options::corruption) asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What was found where replicas were compared behind this step.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<ReplicaRecord>,
    /// What the controller reports, where there is one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlRecord>,
}

/// What the controller reports of one step. What is absent or not finite is `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlRecord {
    /// Entropy of the whole gradient, in \[0, 1\].
    pub entropy: Option<f32>,
    /// Its mean over the last accepted steps.
    pub smoothed: Option<f32>,
    /// Its target, once there is one.
    pub target: Option<f32>,
    /// Norm of the whole gradient, before clipping.
    #[serde(deserialize_with = "not_finite_is_null")]
    pub norm: f32,
    /// The norm above which the step would have been refused, where the norm gate was armed.
    pub norm_threshold: Option<f32>,
    /// Why the update was refused; `null` where it was applied.
    pub gate: Option<GateReason>,
    /// Whether the gates were re-armed by this step.
    pub rearmed: bool,
    /// Whether targets were calibrated by this step.
    pub calibrated: bool,
    /// Whether the controller asks for the end of the run.
    pub stop: bool,
    /// Accepted steps so far.
    pub accepted: u64,
    /// Steps with a non-finite gradient so far.
    pub non_finite: u64,
    /// Steps refused for their norm so far.
    pub refused_norm: u64,
    /// Steps refused for too low an entropy so far.
    pub refused_low: u64,
    /// Steps refused for too high an entropy so far.
    pub refused_high: u64,
    /// How often the gates were re-armed so far.
    pub rearmings: u64,
    /// Steps so far that overflowed under the step's own loss scale, which answers that itself.
    #[serde(default)]
    pub loss_scale_skips: u64,
    /// What became of the copies of held states, where such are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRecord>,
    /// Whether it was SGD that made this step, where the optimizer may be switched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched: Option<bool>,
    /// The projected rate of each tensor then, `null` where there is none yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensor_switch_rate: Vec<Option<f32>>,
    /// Mean spectral entropy of the updates of matrices, before singular values are made equal, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectral_entropy: Option<f32>,
    /// That of each tensor, `null` where none is treated; empty where nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensor_spectral_entropy: Vec<Option<f32>>,
    /// Ratio of smoothed entropy to target, once there is one.
    pub ratio: Option<f32>,
    /// What the laws of all tensors make of the learning rate, where there is a law.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f32>,
    /// What they make of the momentum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum_scale: Option<f32>,
    /// Entropy of each tensor's gradient; the names are in `run.json`.
    pub tensor_entropy: Vec<Option<f32>>,
    /// Norm of each tensor's gradient.
    #[serde(deserialize_with = "not_finite_are_null")]
    pub tensor_norm: Vec<f32>,
    /// Scale of each tensor's update.
    pub tensor_scale: Vec<f32>,
    /// Scale of each tensor's momentum coefficients; empty where the policy scales none.
    pub tensor_momentum: Vec<f32>,
}

/// What became of the copies of held states in one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RollbackRecord {
    /// Whether held states returned to their copies in this step.
    pub rolled_back: bool,
    /// Whether the copies were renewed by this step.
    pub snapshot_taken: bool,
    /// Returns so far.
    pub rollbacks: u64,
    /// Copies taken so far.
    pub snapshots: u64,
    /// The back-off's scale of every learning rate in this step.
    pub backoff: f32,
}

/// JSON has no NaN: a number that is not finite is written as `null`.
fn not_finite_is_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f32::NAN))
}

fn not_finite_are_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
    let values: Vec<Option<f32>> = Vec::deserialize(from)?;
    Ok(values.into_iter().map(|v| v.unwrap_or(f32::NAN)).collect())
}

/// Why an update was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateReason {
    /// Some gradient held NaN or infinity.
    NonFinite,
    /// The same, in a step that scales its loss: how a loss scale finds its level, and no anomaly.
    LossScale,
    /// The norm of the gradient was extraordinary.
    Norm,
    /// Its entropy was far below the target.
    EntropyLow,
    /// Its entropy was far above the target.
    EntropyHigh,
    /// The controller does not say.
    Other,
}

impl GateReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NonFinite, Self::LossScale, Self::Norm, Self::EntropyLow, Self::EntropyHigh, Self::Other];

    /// Its name in `metrics.jsonl`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NonFinite => "non-finite",
            Self::LossScale => "loss-scale",
            Self::Norm => "norm",
            Self::EntropyLow => "entropy-low",
            Self::EntropyHigh => "entropy-high",
            Self::Other => "other",
        }
    }
}

impl From<Telemetry> for ControlRecord {
    fn from(t: Telemetry) -> Self {
        let gate = match (t.applied, t.finite, t.norm_exceeded) {
            (true, ..) => None,
            (false, false, _) if t.skipped => Some(GateReason::LossScale),
            (false, false, _) => Some(GateReason::NonFinite),
            (false, true, true) => Some(GateReason::Norm),
            (false, true, false) if t.entropy_low => Some(GateReason::EntropyLow),
            (false, true, false) if t.entropy_high => Some(GateReason::EntropyHigh),
            (false, true, false) => Some(GateReason::Other),
        };
        // The device counts in f32; no count is negative.
        let count = |value: f32| value as u64;
        Self {
            entropy: t.global.entropy,
            smoothed: t.global.smoothed,
            target: t.global.target,
            norm: t.global.norm,
            norm_threshold: t.norm_threshold,
            gate,
            rearmed: t.rearmed,
            calibrated: t.calibrated,
            stop: t.stop,
            accepted: count(t.accepted),
            non_finite: count(t.non_finite),
            refused_norm: count(t.refused_norm),
            refused_low: count(t.refused_low),
            refused_high: count(t.refused_high),
            rearmings: count(t.rearmings),
            loss_scale_skips: count(t.loss_scale_skips),
            rollback: t.rollback.map(|r| RollbackRecord {
                rolled_back: r.rolled_back,
                snapshot_taken: r.snapshot_taken,
                rollbacks: count(r.rollbacks),
                snapshots: count(r.snapshots),
                backoff: r.backoff,
            }),
            switched: t.switch.as_ref().map(|s| s.switched),
            tensor_switch_rate: t.switch.map_or(Vec::new(), |s| s.rates),
            spectral_entropy: t.spectral.as_ref().and_then(|s| s.entropy),
            tensor_spectral_entropy: t.spectral.map_or(Vec::new(), |s| s.tensors),
            ratio: t.global.ratio,
            lr_scale: t.lr_scale,
            momentum_scale: t.momentum_scale,
            tensor_entropy: t.tensors.iter().map(|m| m.entropy).collect(),
            tensor_norm: t.tensors.iter().map(|m| m.norm).collect(),
            tensor_scale: t.scales,
            tensor_momentum: t.momentum,
        }
    }
}
