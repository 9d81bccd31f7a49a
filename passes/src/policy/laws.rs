//! Laws: how entropies move learning rate and momentum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Checks, PolicyError};

/// Which laws there are, and what bounds them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LawsPolicy {
    /// Whether a step is scaled by its own entropy or by that of the steps before. Structure.
    pub timing: Timing,
    /// Which entropies targets and ratios are of. Structure.
    pub signal: Signal,
    /// Accepted steps before any law acts.
    pub warmup: u32,
    /// The laws together scale the learning rate of a tensor by at least 1/max and at most max.
    pub max: f64,
    /// The law of each tensor.
    pub micro: MicroPolicy,
    /// A law of all tensors: by bands.
    pub rule: RulePolicy,
    /// A law of all tensors: proportional and integral.
    pub pi: PiPolicy,
}

/// Which entropy scales a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timing {
    /// This step's: every gradient is read before the first update is applied.
    Sync,
    /// That of the steps before, which is known when the step begins.
    Delayed,
}

/// Which entropies laws act on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// Those of gradients.
    #[default]
    Gradient,
    /// The spectral entropies of updates, of the last step that was applied. Tensors whose updates are not treated have none.
    Spectral,
}

impl Signal {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Spectral => "spectral",
        }
    }
}

/// The law of each tensor: a ratio below a bound raises its learning rate, otherwise the scale relaxes to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MicroPolicy {
    /// Whether it acts. Structure.
    pub enabled: bool,
    /// The ratio of smoothed entropy to target below which it raises.
    pub below: f64,
    /// The factor of one raise.
    pub factor: f64,
    /// The share of the logarithm of the scale that is taken away where nothing is raised.
    pub relax: f64,
    /// Accepted steps from one action to the next.
    pub period: u32,
    /// Tensors of fewer elements are left out.
    pub min_elements: u64,
    /// Tensors of fewer dimensions, such as biases and the gains of norms, are left out.
    pub min_rank: u32,
    /// What is different for tensors by tree-path pattern.
    pub tensors: BTreeMap<String, MicroTensor>,
}

/// What is different for some tensors.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MicroTensor {
    /// Whether the law acts on them, whatever their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Instead of [`MicroPolicy::below`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Instead of [`MicroPolicy::factor`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
}

/// A law of all tensors: the global ratio outside a band multiplies learning rate and momentum, inside they relax to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RulePolicy {
    /// Whether it acts. Structure.
    pub enabled: bool,
    /// Lower end of the band.
    pub low: f64,
    /// Upper end of the band.
    pub high: f64,
    /// Factor of the learning rate below the band.
    pub lr_low: f64,
    /// Factor of the learning rate above the band.
    pub lr_high: f64,
    /// Factor of the momentum below the band.
    pub momentum_low: f64,
    /// Factor of the momentum above the band.
    pub momentum_high: f64,
    /// The momentum's scale is at least 1/max and at most this.
    pub momentum_max: f64,
    /// The share of the logarithm of both scales that is taken away inside the band.
    pub relax: f64,
    /// Accepted steps from one action to the next.
    pub period: u32,
}

/// A law of all tensors: the logarithm of the learning rate's scale is `kp·e + ki·Σe`, with `e = ln ratio`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PiPolicy {
    /// Whether it acts. Structure.
    pub enabled: bool,
    /// Proportional gain.
    pub kp: f64,
    /// Integral gain, per action.
    pub ki: f64,
    /// Accepted steps from one action to the next.
    pub period: u32,
}

impl Default for LawsPolicy {
    fn default() -> Self {
        Self {
            timing: Timing::Sync,
            signal: Signal::Gradient,
            warmup: 100,
            max: 2.0,
            micro: MicroPolicy::default(),
            rule: RulePolicy::default(),
            pi: PiPolicy::default(),
        }
    }
}

impl Default for MicroPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            below: 0.8,
            factor: 1.15,
            relax: 0.1,
            period: 10,
            min_elements: 1024,
            min_rank: 2,
            tensors: BTreeMap::new(),
        }
    }
}

impl Default for RulePolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            low: 0.9,
            high: 1.1,
            lr_low: 0.8,
            lr_high: 1.2,
            momentum_low: 1.2,
            momentum_high: 0.9,
            momentum_max: 1.2,
            relax: 0.1,
            period: 10,
        }
    }
}

impl Default for PiPolicy {
    fn default() -> Self {
        Self { enabled: false, kp: 3.0, ki: 0.1, period: 10 }
    }
}

impl RulePolicy {
    /// Whether it scales momentum.
    #[must_use]
    pub fn moves_momentum(&self) -> bool {
        self.enabled && (self.momentum_low != 1.0 || self.momentum_high != 1.0)
    }
}

impl LawsPolicy {
    /// Whether any law moves a learning rate.
    #[must_use]
    pub fn any(&self) -> bool {
        self.micro.enabled || self.rule.enabled || self.pi.enabled
    }

    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        const FACTOR: &str = "from 0.1 to 10";
        let factor = |key: &str, value: f64| check.number(key, value, (0.1..=10.0).contains(&value), FACTOR);
        let ratio = |key: &str, value: f64| check.number(key, value, (0.0..=10.0).contains(&value), "from 0 to 10");
        let share = |key: &str, value: f64| check.number(key, value, (0.0..=1.0).contains(&value), "from 0 to 1");
        let gain = |key: &str, value: f64| check.number(key, value, (0.0..=100.0).contains(&value), "from 0 to 100");
        let clamp = |key: &str, value: f64| {
            check.number(
                key,
                value,
                (1.0..=100.0).contains(&value),
                "from 1 to 100, since scales lie between 1/max and max",
            )
        };
        check.count("laws.warmup", self.warmup, 0)?;
        clamp("laws.max", self.max)?;

        let micro = &self.micro;
        ratio("laws.micro.below", micro.below)?;
        factor("laws.micro.factor", micro.factor)?;
        share("laws.micro.relax", micro.relax)?;
        check.count("laws.micro.period", micro.period, 1)?;
        for (pattern, tensor) in &micro.tensors {
            let key = |name: &str| format!("laws.micro.tensors.{pattern:?}.{name}");
            tensor.below.map_or(Ok(()), |v| ratio(&key("below"), v))?;
            tensor.factor.map_or(Ok(()), |v| factor(&key("factor"), v))?;
        }

        let rule = &self.rule;
        ratio("laws.rule.low", rule.low)?;
        let ordered = rule.high >= rule.low && rule.high <= 10.0;
        check.number("laws.rule.high", rule.high, ordered, "from laws.rule.low to 10")?;
        factor("laws.rule.lr_low", rule.lr_low)?;
        factor("laws.rule.lr_high", rule.lr_high)?;
        factor("laws.rule.momentum_low", rule.momentum_low)?;
        factor("laws.rule.momentum_high", rule.momentum_high)?;
        clamp("laws.rule.momentum_max", rule.momentum_max)?;
        share("laws.rule.relax", rule.relax)?;
        check.count("laws.rule.period", rule.period, 1)?;

        gain("laws.pi.kp", self.pi.kp)?;
        gain("laws.pi.ki", self.pi.ki)?;
        check.count("laws.pi.period", self.pi.period, 1)?;
        if self.rule.enabled && self.pi.enabled {
            return Err(PolicyError::TwoGlobalLaws);
        }
        Ok(())
    }
}
