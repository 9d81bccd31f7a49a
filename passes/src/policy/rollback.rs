//! The `[rollback]` table.

use serde::{Deserialize, Serialize};

use super::{Checks, PolicyError};

/// What becomes of the state when gates refuse one step after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RollbackPolicy {
    /// Whether there is a copy to return to. Structure.
    pub kind: RollbackKind,
    /// Refused steps in a row after which the state returns to the copy.
    pub patience: u32,
    /// Accepted steps in a row before the copy is renewed.
    pub refresh: u32,
    /// It is renewed only by a step whose norm is at most this multiple of the running mean.
    pub calm: f64,
    /// Factor of every learning rate that each return brings.
    pub backoff: f64,
    /// These factors together are at least this.
    pub backoff_min: f64,
    /// Accepted steps after which half of their logarithm is taken back.
    pub recover: f64,
}

/// What a pause falls back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackKind {
    /// Nothing but the state as it is: what a gate refuses was never applied.
    Gate,
    /// A copy of every held state, on the device, from a time when all was well.
    Snapshot,
}

impl Default for RollbackPolicy {
    fn default() -> Self {
        Self {
            kind: RollbackKind::Gate,
            patience: 3,
            refresh: 50,
            calm: 1.5,
            backoff: 0.5,
            backoff_min: 0.05,
            recover: 50.0,
        }
    }
}

impl RollbackPolicy {
    /// Whether a copy is kept. Structure.
    #[must_use]
    pub fn keeps_snapshot(&self) -> bool {
        self.kind == RollbackKind::Snapshot
    }

    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        check.count("rollback.patience", self.patience, 1)?;
        check.count("rollback.refresh", self.refresh, 1)?;
        let calm = self.calm >= 1.0 && self.calm <= 1e6;
        check.number("rollback.calm", self.calm, calm, "from 1 to 1000000")?;
        let factor =
            |key: &str, value: f64| check.number(key, value, value > 0.0 && value <= 1.0, "above 0 and at most 1");
        factor("rollback.backoff", self.backoff)?;
        factor("rollback.backoff_min", self.backoff_min)?;
        let recover = (1.0..=1e6).contains(&self.recover);
        check.number("rollback.recover", self.recover, recover, "from 1 to 1000000")
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;

    #[test]
    fn values_outside_their_range_are_refused() {
        for (text, expected) in [
            ("[rollback]\nkind = \"host\"", "snapshot"),
            ("[rollback]\npatience = 0", "`rollback.patience` is 0 in the policy; it must be from 1 to 1000000"),
            ("[rollback]\nrefresh = 0", "rollback.refresh"),
            ("[rollback]\ncalm = 0.9", "`rollback.calm` is 0.9"),
            ("[rollback]\nbackoff = 0.0", "`rollback.backoff` is 0"),
            ("[rollback]\nbackoff = nan", "rollback.backoff"),
            ("[rollback]\nbackoff_min = 1.5", "`rollback.backoff_min` is 1.5"),
            ("[rollback]\nrecover = 0.5", "`rollback.recover` is 0.5"),
            ("[rollback]\npatients = 2", "did you mean `rollback.patience`?"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        Policy::parse("[rollback]\nkind = \"snapshot\"\nbackoff = 1.0\ncalm = 1.0\npatience = 1").unwrap();
    }

    #[test]
    fn a_snapshot_that_nothing_returns_to_is_refused() {
        let text = "[gate]\nnon_finite = false\n[gate.norm]\nenabled = false\n[rollback]\nkind = \"snapshot\"";
        let error = Policy::parse(text).unwrap_err().to_string();
        assert!(error.contains("no gate"), "{error}");
    }
}
