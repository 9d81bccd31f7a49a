//! The `[switch]` table.

use serde::{Deserialize, Serialize};

use super::{Checks, PolicyError};

/// When the optimizer of the graph gives way to SGD with its own first moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwitchPolicy {
    /// Whether it may. Structure.
    pub enabled: bool,
    /// What it waits for. Structure.
    pub trigger: Trigger,
    /// How far SGD goes along the first moment, for a step of the optimizer. Structure.
    pub rate: SwitchRate,
    /// `step`: the first step that SGD makes, counted from 0.
    pub step: u32,
    /// Accepted steps before `settled` and `entropy` may fire.
    pub warmup: u32,
    /// Accepted steps after which an observation counts half, in projections and in the trend of the entropy.
    pub half_life: f64,
    /// `settled`: the projected learning rates moved by less than this share ...
    pub tolerance: f64,
    /// ... in this many accepted steps.
    pub period: u32,
    /// `entropy`: its trend lies below this share of its peak.
    pub share: f64,
    /// `entropy`: the optimizer comes back once the trend lies above this share of the peak; 0 for never.
    pub return_above: f64,
    /// Factor of every projected learning rate.
    pub factor: f64,
}

/// What the switch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// A number of steps.
    Step,
    /// Projected learning rates that no longer move.
    Settled,
    /// The slow trend of the global entropy falling below a share of its peak.
    Entropy,
}

/// How far SGD goes along the first moment m', for a step of the optimizer in direction A with gradient g.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchRate {
    /// A·m' / m'·m': to the point nearest to where the optimizer goes, which is the projection of A on m'.
    Nearest,
    /// A·A / A·g, as SWATS has it: so far that the projection on A is A.
    Swats,
}

impl Default for SwitchPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            trigger: Trigger::Settled,
            rate: SwitchRate::Nearest,
            step: 10_000,
            warmup: 1000,
            half_life: 100.0,
            tolerance: 0.05,
            period: 100,
            share: 0.9,
            return_above: 0.0,
            factor: 1.0,
        }
    }
}

impl Trigger {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Settled => "settled",
            Self::Entropy => "entropy",
        }
    }
}

impl SwitchRate {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Swats => "swats",
        }
    }
}

impl SwitchPolicy {
    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        check.count("switch.step", self.step, 0)?;
        check.count("switch.warmup", self.warmup, 0)?;
        let half_life = (1.0..=1e6).contains(&self.half_life);
        check.number("switch.half_life", self.half_life, half_life, "from 1 to 1000000")?;
        check.number("switch.tolerance", self.tolerance, (0.0..=1.0).contains(&self.tolerance), "from 0 to 1")?;
        check.count("switch.period", self.period, 1)?;
        check.number("switch.share", self.share, (0.0..=1.0).contains(&self.share), "from 0 to 1")?;
        let returns = self.return_above == 0.0 || (self.return_above > self.share && self.return_above <= 10.0);
        check.number("switch.return_above", self.return_above, returns, "0, or above switch.share and at most 10")?;
        if self.return_above != 0.0 && self.trigger != Trigger::Entropy {
            return Err(PolicyError::ReturnWithoutEntropy { trigger: self.trigger.name() });
        }
        let factor = self.factor > 0.0 && self.factor <= 100.0;
        check.number("switch.factor", self.factor, factor, "above 0 and at most 100")
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;

    #[test]
    fn values_outside_their_range_are_refused() {
        for (text, expected) in [
            ("[switch]\ntrigger = \"loss\"", "settled"),
            ("[switch]\nrate = \"adam\"", "nearest"),
            ("[switch]\nhalf_life = 0.5", "`switch.half_life` is 0.5"),
            ("[switch]\ntolerance = 2.0", "switch.tolerance"),
            ("[switch]\nperiod = 0", "switch.period"),
            ("[switch]\nshare = -0.1", "switch.share"),
            ("[switch]\nfactor = 0.0", "`switch.factor` is 0"),
            ("[switch]\nfactor = nan", "switch.factor"),
            ("[switch]\ntrigger = \"entropy\"\nreturn_above = 0.5", "above switch.share"),
            ("[switch]\ntrigger = \"step\"\nreturn_above = 0.95", "only `trigger = \"entropy\"` returns"),
            ("[switch]\ntriger = \"step\"", "did you mean `switch.trigger`?"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        Policy::parse("[switch]\nenabled = true\ntrigger = \"entropy\"\nshare = 0.8\nreturn_above = 0.9").unwrap();
    }
}
