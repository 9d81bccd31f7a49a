//! The `[replicas]` table.

use serde::{Deserialize, Serialize};

use super::{Checks, PolicyError};

/// What is different where several replicas train together. A step of one replica alone takes no notice of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicasPolicy {
    /// Whose gradients are measured. Structure.
    pub entropy_of: EntropyOf,
    /// Steps from one comparison of all held states over all replicas to the next; 0 for never. Of the run alone.
    pub check_every: u32,
    /// What becomes of replicas that are not alike. Of the run alone.
    pub on_mismatch: OnMismatch,
}

impl Default for ReplicasPolicy {
    fn default() -> Self {
        Self { entropy_of: EntropyOf::default(), check_every: 500, on_mismatch: OnMismatch::default() }
    }
}

impl ReplicasPolicy {
    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        check.count("replicas.check_every", self.check_every, 0)?;
        match self.on_mismatch {
            OnMismatch::Copy | OnMismatch::Count if self.check_every == 0 => {
                Err(PolicyError::MismatchWithoutCheck { on_mismatch: self.on_mismatch.name() })
            }
            _ => Ok(()),
        }
    }
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

/// What becomes of replicas whose held states are not alike. To refuse updates is no answer: replicas that differ would
/// stay different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMismatch {
    /// The run ends in order, and says which states differ on which replicas.
    #[default]
    Error,
    /// All held states of replica 0 are copied to all others, and the run goes on.
    Copy,
    /// It is counted and said, and the run goes on.
    Count,
}

impl OnMismatch {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Copy => "copy",
            Self::Count => "count",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    #[test]
    fn checks_are_read_and_off_at_zero() {
        let read = |text: &str| Policy::parse(&format!("[replicas]\n{text}")).unwrap().replicas;
        assert_eq!(read("").check_every, 500);
        assert_eq!(read("check_every = 0"), ReplicasPolicy { check_every: 0, ..ReplicasPolicy::default() });
        assert_eq!(read("check_every = 1000000").check_every, 1_000_000);
        for (name, expected) in [("error", OnMismatch::Error), ("copy", OnMismatch::Copy), ("count", OnMismatch::Count)]
        {
            assert_eq!(read(&format!("on_mismatch = {name:?}")).on_mismatch, expected);
            assert_eq!(expected.name(), name);
        }
        read("check_every = 0\non_mismatch = \"error\"");
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, expected) in [
            ("check_every = 1000001", "`replicas.check_every` is 1000001 in the policy; it must be from 0 to 1000000"),
            ("check_every = -1", "line 2"),
            ("check_every = 0.5", "line 2"),
            ("check_evry = 5", "did you mean `replicas.check_every`?"),
            ("on_mismatch = \"gate\"", "copy"),
            ("check_every = 0\non_mismatch = \"copy\"", "no replica is ever compared"),
            ("check_every = 0\non_mismatch = \"count\"", "set `replicas.check_every` to a number of steps"),
        ] {
            let error = Policy::parse(&format!("[replicas]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
