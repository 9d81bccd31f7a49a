//! Telemetry as values with names.
//!
//! One step writes one `f32` vector; [`Telemetry::decode`] turns it into what a
//! person reads. Counts are exact up to 2^24; the counters' own array is exact.

use serde::Serialize;
use thiserror::Error;

use crate::layout::{ControllerLayout, MOMENTUM, SPECTRAL_ENTROPY, SWITCH_RATE, length};

/// What one step had to tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Telemetry {
    /// Whether the update was applied.
    pub applied: bool,
    /// Whether every gradient was finite.
    pub finite: bool,
    /// Whether gradients overflowed under the step's own loss scale, which answers that itself.
    pub skipped: bool,
    /// Whether the norm gate refused this step.
    pub norm_exceeded: bool,
    /// Whether the entropy gate refused this step, for too low an entropy.
    pub entropy_low: bool,
    /// Whether the entropy gate refused this step, for too high an entropy.
    pub entropy_high: bool,
    /// Whether the gates were re-armed by this step.
    pub rearmed: bool,
    /// Whether targets were calibrated by this step.
    pub calibrated: bool,
    /// Whether the run must stop: too many non-finite steps in a row.
    pub stop: bool,
    /// Running mean of the global gradient norm after this step.
    pub norm_mean: f32,
    /// The norm above which this step would have been refused, where the norm gate was armed.
    pub norm_threshold: Option<f32>,
    /// Steps so far.
    pub steps: f32,
    /// Accepted steps so far: finite, and not refused.
    pub accepted: f32,
    /// Steps with a non-finite gradient so far.
    pub non_finite: f32,
    /// Steps refused for their norm so far.
    pub refused_norm: f32,
    /// Steps refused for too low an entropy so far.
    pub refused_low: f32,
    /// Steps refused for too high an entropy so far.
    pub refused_high: f32,
    /// How often the gates were re-armed so far.
    pub rearmings: f32,
    /// Steps so far that overflowed under the step's loss scale, which answers that itself.
    pub loss_scale_skips: f32,
    /// What became of the copies of held states; none where none are kept.
    pub rollback: Option<RollbackTelemetry>,
    /// Whether the optimizer gave way to SGD; none where it never may.
    pub switch: Option<SwitchTelemetry>,
    /// Spectral entropies of updates; none where they are left alone.
    pub spectral: Option<SpectralTelemetry>,
    /// The whole gradient.
    pub global: Measured,
    /// Each tensor, in the layout's order.
    pub tensors: Vec<Measured>,
    /// The scale of each tensor's update, the global one included, in the layout's order.
    pub scales: Vec<f32>,
    /// What the laws of all tensors make of the learning rate; none where there is no law.
    pub lr_scale: Option<f32>,
    /// What they make of the momentum; none where there is no law.
    pub momentum_scale: Option<f32>,
    /// The scale of each tensor's momentum coefficients, in the layout's order; empty where the policy scales none.
    pub momentum: Vec<f32>,
}

/// What became of the copies of held states.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RollbackTelemetry {
    /// Whether held states returned to their copies in this step.
    pub rolled_back: bool,
    /// Whether the copies were renewed by this step.
    pub snapshot_taken: bool,
    /// Returns so far.
    pub rollbacks: f32,
    /// Copies taken so far.
    pub snapshots: f32,
    /// The back-off's scale of every learning rate in this step.
    pub backoff: f32,
}

/// Whether the optimizer gave way to SGD.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwitchTelemetry {
    /// Whether it was SGD that made this step.
    pub switched: bool,
    /// How often the optimizer changed so far, that of the next step included.
    pub switches: f32,
    /// The projected rate of each tensor, in the layout's order; none where there is none yet.
    pub rates: Vec<Option<f32>>,
    /// `settled`: how far rates moved since they were last compared, as a logarithm.
    pub movement: Option<f32>,
    /// `entropy`: the trend of the global entropy.
    pub trend: Option<f32>,
    /// `entropy`: its peak since warmup.
    pub peak: Option<f32>,
}

/// How alike the singular values of updates are, before they are made equal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpectralTelemetry {
    /// Mean over all matrices that are treated, weighted by their elements; none where no update is sound.
    pub entropy: Option<f32>,
    /// Mean over the matrices of each tensor, in the layout's order; none where none of them is treated, or sound.
    pub tensors: Vec<Option<f32>>,
}

/// What is measured per tensor and of the whole gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Entropy of this step's gradient, in \[0, 1\]; none for a zero, non-finite or one-element gradient.
    pub entropy: Option<f32>,
    /// Mean over the last accepted steps.
    pub smoothed: Option<f32>,
    /// The target, once calibrated.
    pub target: Option<f32>,
    /// Smoothed entropy over target.
    pub ratio: Option<f32>,
    /// Euclidean norm of this step's gradient, before clipping; may be infinite or NaN.
    pub norm: f32,
}

/// Telemetry of another layout.
#[derive(Debug, Error)]
#[error("telemetry has {found} elements, and the layout says {expected}; they belong to different injections")]
pub struct TelemetryError {
    /// Elements given.
    pub found: usize,
    /// Elements of the layout.
    pub expected: usize,
}

impl Telemetry {
    /// Reads the vector that one step wrote.
    ///
    /// # Errors
    ///
    /// Where its length is not the layout's.
    pub fn decode(layout: &ControllerLayout, values: &[f32]) -> Result<Self, TelemetryError> {
        let expected = length(&layout.telemetry);
        let refused = || TelemetryError { found: values.len(), expected };
        if values.len() != expected {
            return Err(refused());
        }
        let slice = |name: &str| {
            let field = ControllerLayout::field(&layout.telemetry, name)?;
            values.get(field.offset..field.offset + field.len)
        };
        let array = |name: &str| slice(name).ok_or_else(refused);
        let scalar = |name: &str| array(name)?.first().copied().ok_or_else(refused);
        let flag = |name: &str| Ok::<_, TelemetryError>(scalar(name)? != 0.0);
        let [entropy, smoothed, target, ratio, norm] =
            [array("entropy")?, array("smoothed")?, array("target")?, array("ratio")?, array("norm")?];
        let present = |v: Option<&f32>| v.copied().filter(|&v| v >= 0.0);
        let mut tensors: Vec<_> = norm
            .iter()
            .enumerate()
            .map(|(i, &norm)| Measured {
                entropy: present(entropy.get(i)),
                smoothed: present(smoothed.get(i)),
                target: present(target.get(i)),
                ratio: present(ratio.get(i)),
                norm,
            })
            .collect();
        let switch = if layout.switch.is_some() {
            Some(SwitchTelemetry {
                switched: flag("switched")?,
                switches: scalar("switches")?,
                rates: array(SWITCH_RATE)?.iter().map(|&rate| Some(rate).filter(|&r| r != 0.0)).collect(),
                movement: scalar("switch_movement").ok(),
                trend: scalar("switch_trend").ok(),
                peak: scalar("switch_peak").ok(),
            })
        } else {
            None
        };
        let spectral = slice(SPECTRAL_ENTROPY).and_then(|values| {
            let (last, tensors) = values.split_last()?;
            let tensors = tensors.iter().map(|value| present(Some(value))).collect();
            Some(SpectralTelemetry { entropy: present(Some(last)), tensors })
        });
        let finite = flag("finite")?;
        let global = tensors.pop().ok_or_else(refused)?;
        let rollback = if layout.rollback {
            Some(RollbackTelemetry {
                rolled_back: flag("rolled_back")?,
                snapshot_taken: flag("snapshot_taken")?,
                rollbacks: scalar("rollbacks")?,
                snapshots: scalar("snapshots")?,
                backoff: scalar("backoff")?,
            })
        } else {
            None
        };
        Ok(Self {
            applied: flag("applied")?,
            finite,
            skipped: layout.loss_scaled && !finite,
            norm_exceeded: flag("norm_exceeded")?,
            entropy_low: flag("entropy_low")?,
            entropy_high: flag("entropy_high")?,
            rearmed: flag("rearmed")?,
            calibrated: flag("calibrated")?,
            stop: flag("stop")?,
            norm_mean: scalar("norm_mean")?,
            norm_threshold: present(Some(&scalar("norm_threshold")?)),
            steps: scalar("steps")?,
            accepted: scalar("accepted")?,
            non_finite: scalar("non_finite")?,
            refused_norm: scalar("refused_norm")?,
            refused_low: scalar("refused_low")?,
            refused_high: scalar("refused_high")?,
            rearmings: scalar("rearmings")?,
            loss_scale_skips: scalar("loss_scale_skips")?,
            rollback,
            switch,
            spectral,
            global,
            tensors,
            scales: array("scale")?.to_vec(),
            lr_scale: scalar("lr_scale").ok(),
            momentum_scale: scalar("momentum_scale").ok(),
            momentum: slice(MOMENTUM).unwrap_or_default().to_vec(),
        })
    }
}
