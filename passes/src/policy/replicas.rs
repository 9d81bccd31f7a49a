//! The `[replicas]` table.

use serde::{Deserialize, Serialize};

use super::{Checks, PolicyError};

/// What is different where several replicas train together. A step of one replica alone takes no notice of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicasPolicy {
    /// Whose gradients are measured. Structure.
    pub entropy_of: EntropyOf,
    /// Steps between comparisons of the states that all replicas hold; 0 for never.
    pub check_every: u32,
    /// What a difference comes to.
    pub on_mismatch: OnMismatch,
}

/// Whose gradients are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntropyOf {
    /// The one that all replicas share, after its reduction: nothing more goes over the network.
    #[default]
    Global,
    /// Each replica's own: energy and entropy are the means over replicas, by one reduction of 8 bytes per tensor.
    LocalMean,
}

/// What happens when replicas hold different states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMismatch {
    /// The run ends with an error that names the states.
    Error,
    /// It is counted and reported, and the run goes on.
    Count,
}

impl Default for ReplicasPolicy {
    fn default() -> Self {
        Self { entropy_of: EntropyOf::Global, check_every: 1000, on_mismatch: OnMismatch::Error }
    }
}

impl EntropyOf {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::LocalMean => "local-mean",
        }
    }
}

impl ReplicasPolicy {
    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        check.count("replicas.check_every", self.check_every, 0)
    }
}
