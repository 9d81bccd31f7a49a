//! What a run came to, as `summary.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::consistency::Consistency;
use super::record::{ControlRecord, GateReason};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// All steps were done.
    Complete,
    /// The user asked it to end early.
    Interrupted,
    /// The controller asked for it.
    Stopped,
    /// Replicas were not alike, and the policy ends the run there.
    Inconsistent,
}

impl Ending {
    /// In words.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Interrupted => "interrupted",
            Self::Stopped => "stopped by the controller",
            Self::Inconsistent => "ended because replicas differed",
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this format.
    pub format_version: u32,
    /// How the run ended.
    pub ending: Ending,
    /// Steps done.
    pub steps: u64,
    /// Loss on held-out data before the first step.
    pub held_out_before: Option<f64>,
    /// Loss on held-out data after the last step.
    pub held_out_after: Option<f64>,
    /// Unit of the losses.
    pub loss_unit: String,
    /// Seconds from the start of the program to the end of the first step; `null` if there was none.
    pub first_step_seconds: Option<f64>,
    /// Programs that were compiled for the run.
    pub compiled: usize,
    /// Programs that came from the compile cache.
    pub cached: usize,
    /// Seconds of training, without compiling and evaluating.
    pub seconds: f64,
    /// Steps per second.
    pub steps_per_second: f64,
    /// Steps whose loss was not finite.
    pub non_finite_losses: u64,
    /// What the gates did; `null` without a controller.
    pub gates: Option<Gates>,
    /// What comparing replicas found; `null` where they are not compared.
    pub consistency: Option<Consistency>,
    /// The steps from which the run went on after it had ended early, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed_from: Vec<u64>,
    /// Steps in the last checkpoint that was written; `null` where there is none.
    #[serde(default)]
    pub checkpoint: Option<u64>,
    /// Checkpoints that could not be written.
    #[serde(default)]
    pub checkpoints_failed: u64,
    /// The run's folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// What the gates did over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// Updates refused because a gradient was not finite.
    pub non_finite: u64,
    /// Updates refused for the norm of the gradient.
    pub norm: u64,
    /// Updates refused for an entropy of the gradient below the band.
    pub entropy_low: u64,
    /// Updates refused for one above it.
    pub entropy_high: u64,
    /// Updates refused for another reason.
    pub other: u64,
    /// How often the gates were re-armed.
    pub rearmed: u64,
    /// Steps skipped for an overflow under the step's own loss scale.
    pub loss_scale_skips: u64,
    /// How often held states returned to their copies.
    pub rolled_back: u64,
}

impl Gates {
    /// What happened, with how often, in words; what did not happen is left out.
    #[must_use]
    pub fn told(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("not finite", self.non_finite),
            ("norm", self.norm),
            ("entropy below the band", self.entropy_low),
            ("entropy above the band", self.entropy_high),
            ("other", self.other),
            ("skipped by the loss scale", self.loss_scale_skips),
            ("rolled back", self.rolled_back),
            ("re-armed", self.rearmed),
        ];
        all.into_iter().filter(|&(_, count)| count > 0).collect()
    }

    /// Updates refused for whatever reason, skips of the loss scale left out.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.non_finite + self.norm + self.entropy_low + self.entropy_high + self.other
    }

    pub(super) fn count(&mut self, record: &ControlRecord) {
        match record.gate {
            None => {}
            Some(GateReason::NonFinite) => self.non_finite += 1,
            Some(GateReason::Norm) => self.norm += 1,
            Some(GateReason::EntropyLow) => self.entropy_low += 1,
            Some(GateReason::EntropyHigh) => self.entropy_high += 1,
            Some(GateReason::LossScale) => self.loss_scale_skips += 1,
            Some(GateReason::Other) => self.other += 1,
        }
        self.rolled_back += u64::from(record.rollback.is_some_and(|r| r.rolled_back));
        self.rearmed += u64::from(record.rearmed);
    }
}
