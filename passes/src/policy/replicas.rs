//! The `[replicas]` table.

use serde::{Deserialize, Serialize};

/// What is different where several replicas train together. A step of one replica alone takes no notice of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicasPolicy {
    /// Whose gradients are measured. Structure.
    pub entropy_of: EntropyOf,
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
