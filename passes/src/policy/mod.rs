//! The policy: what the controller does, as numbers and structure.
//!
//! *Structure* shapes the graph: the estimator, the length of the smoothing
//! window, whether anything is gated, the classes of states. *Numbers* enter the
//! program as one small vector on the device, so that other numbers need no
//! other program. [`Policy::parse`] reads TOML; unknown keys are refused with the
//! nearest known one, values outside their range with key, value and range.

mod momentum;
mod parse;
mod pattern;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::step::StateClass;

pub use momentum::MomentumPolicy;
pub use pattern::Pattern;

/// The version of the policy format that this crate reads and writes.
pub const POLICY_FORMAT_VERSION: u32 = 1;

/// The text of the default policy, commented for its readers.
pub const DEFAULT_POLICY: &str = include_str!("../../policies/default.toml");

/// Everything a user decides about control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// [`POLICY_FORMAT_VERSION`].
    pub format_version: u32,
    /// How gradients become entropies.
    pub entropy: EntropyPolicy,
    /// What the entropy is compared with.
    pub target: TargetPolicy,
    /// Which updates are refused.
    pub gate: GatePolicy,
    /// By how much updates are scaled.
    pub scale: ScalePolicy,
    /// By how much momentum coefficients are scaled.
    pub momentum: MomentumPolicy,
    /// Classes of states by tree-path pattern; they override what discovery says.
    pub states: BTreeMap<String, AssignedClass>,
}

/// How gradients become entropies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EntropyPolicy {
    /// What the shares are made of. Structure.
    pub estimator: Estimator,
    /// The number of accepted steps in the moving average. Structure.
    pub smoothing: u32,
}

/// What the shares of a gradient are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// `p = g² / Σg²`.
    Energy,
}

/// What the entropy is compared with: an exponentially forgetting mean, held between calibrations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetPolicy {
    /// Accepted steps after which an observation counts half.
    pub half_life: f64,
    /// Accepted steps before the first calibration.
    pub first: u32,
    /// Accepted steps between calibrations.
    pub every: u32,
}

/// Which updates are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatePolicy {
    /// Refuse updates from non-finite gradients.
    pub non_finite: bool,
    /// Refusals in a row after which thresholds are re-set, or the run stops.
    pub max_pause: u32,
    /// Refuse updates from gradients of extraordinary norm.
    pub norm: NormGatePolicy,
}

/// The norm gate: refuses when the norm exceeds a multiple of its running mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NormGatePolicy {
    /// Whether it acts.
    pub enabled: bool,
    /// The multiple.
    pub multiple: f64,
    /// Accepted steps after which an observation counts half in the running mean.
    pub half_life: f64,
    /// Accepted steps before it acts.
    pub warmup: u32,
}

/// By how much updates are scaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScalePolicy {
    /// Factor of every update.
    pub global: f64,
    /// Further factors by tree-path pattern.
    pub tensors: BTreeMap<String, f64>,
}

/// What a refused step does with a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AssignedClass {
    /// It keeps its bits.
    Held,
    /// It goes on.
    Advancing,
}

impl From<AssignedClass> for StateClass {
    fn from(class: AssignedClass) -> Self {
        match class {
            AssignedClass::Held => Self::Held,
            AssignedClass::Advancing => Self::Advancing,
        }
    }
}

impl Default for Policy {
    /// The default policy, as in [`DEFAULT_POLICY`].
    fn default() -> Self {
        Self {
            format_version: POLICY_FORMAT_VERSION,
            entropy: EntropyPolicy::default(),
            target: TargetPolicy::default(),
            gate: GatePolicy::default(),
            scale: ScalePolicy::default(),
            momentum: MomentumPolicy::default(),
            states: BTreeMap::new(),
        }
    }
}

impl Default for EntropyPolicy {
    fn default() -> Self {
        Self { estimator: Estimator::Energy, smoothing: 3 }
    }
}

impl Default for TargetPolicy {
    fn default() -> Self {
        Self { half_life: 1000.0, first: 50, every: 1000 }
    }
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self { non_finite: true, max_pause: 50, norm: NormGatePolicy::default() }
    }
}

impl Default for NormGatePolicy {
    fn default() -> Self {
        Self { enabled: true, multiple: 3.0, half_life: 100.0, warmup: 100 }
    }
}

impl Default for ScalePolicy {
    fn default() -> Self {
        Self { global: 1.0, tensors: BTreeMap::new() }
    }
}

/// Why a policy was refused.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The text is no TOML, or a value is of the wrong kind.
    #[error("the policy cannot be read: {0}")]
    Toml(String),
    /// A key that no policy has.
    #[error("line {line} of the policy: there is no key `{key}`{}", match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    })]
    UnknownKey {
        /// Line of the text, from 1.
        line: usize,
        /// The key, with its tables.
        key: String,
        /// The nearest known key.
        nearest: Option<String>,
    },
    /// A format version that this crate does not read.
    #[error("the policy has format_version {found}; this version of entropic reads {POLICY_FORMAT_VERSION}")]
    FormatVersion {
        /// The version found.
        found: u32,
    },
    /// A value outside its range.
    #[error("`{key}` is {value} in the policy; it must be {range}")]
    Range {
        /// The key, with its tables.
        key: String,
        /// The value.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
    /// A pattern that names nothing in this step.
    #[error("the policy's `{key}` names no {what} of this step{}", match nearest {
        Some(nearest) => format!("; did you mean {nearest:?}?"),
        None => String::new(),
    })]
    NoMatch {
        /// The table and the pattern.
        key: String,
        /// `tensor` or `state`.
        what: &'static str,
        /// The nearest name there is.
        nearest: Option<String>,
    },
    /// Two patterns that match one name equally well and say different things.
    #[error(
        "{name:?} matches both {first:?} and {second:?} in the policy's `{table}`, equally well; make one of them longer"
    )]
    Ambiguous {
        /// The table.
        table: &'static str,
        /// The name.
        name: String,
        /// One pattern.
        first: String,
        /// The other.
        second: String,
    },
    /// Tensors whose momentum a pattern scales, and that have none.
    #[error(
        "the policy scales the momentum of tensors that have none to scale:\n{}\nname only tensors that have one; \
         `entropic inspect` lists them",
        tensors.iter().map(|(name, pattern, reason)| format!("  {name} (`momentum.tensors.{pattern:?}`): {reason}"))
            .collect::<Vec<_>>().join("\n")
    )]
    NoMomentum {
        /// Name, pattern and reason of each.
        tensors: Vec<(String, String, String)>,
    },
    /// A policy that scales momentum, and a step without any.
    #[error(
        "the policy scales momentum, and no tensor of this step has a coefficient to scale:\n{}\ntake `[momentum]` \
         out of the policy, or train with an optimizer that has momentum",
        tensors.iter().map(|(name, reason)| format!("  {name}: {reason}")).collect::<Vec<_>>().join("\n")
    )]
    NoMomentumAtAll {
        /// Name and reason of each.
        tensors: Vec<(String, String)>,
    },
    /// Other structure than the injected module has.
    #[error(
        "the module was injected with {key} = {injected}, and the policy says {wanted}; this shapes the graph, so \
         inject again with the new policy"
    )]
    Structure {
        /// The key.
        key: &'static str,
        /// Its value at injection.
        injected: String,
        /// Its value now.
        wanted: String,
    },
}

impl Policy {
    /// The policy that only watches: every scale 1, nothing refused.
    #[must_use]
    pub fn monitor() -> Self {
        let norm = NormGatePolicy { enabled: false, ..NormGatePolicy::default() };
        Self { gate: GatePolicy { non_finite: false, norm, ..GatePolicy::default() }, ..Self::default() }
    }

    /// Reads a policy from TOML. What the text leaves out is as in the default policy.
    ///
    /// # Errors
    ///
    /// Where the text is no TOML, has a key that no policy has, or a value outside its range.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy = parse::parse(text)?;
        policy.validate()?;
        Ok(policy)
    }

    /// Whether updates are scaled at all: a factor other than 1, or any pattern. Structure.
    #[must_use]
    pub fn scales(&self) -> bool {
        self.scale.global != 1.0 || !self.scale.tensors.is_empty()
    }

    /// Whether any update can be refused: if not, no gate is emitted.
    #[must_use]
    pub fn gates(&self) -> bool {
        self.gate.non_finite || self.gate.norm.enabled
    }

    /// Checks every value's range.
    ///
    /// # Errors
    ///
    /// For the first value outside its range.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if self.format_version != POLICY_FORMAT_VERSION {
            return Err(PolicyError::FormatVersion { found: self.format_version });
        }
        let count = |key: &str, value: u32, low: u32, high: u32, range| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(out_of_range(key, &value, range)) }
        };
        // Comparisons are written so that NaN is out of range.
        let number = |key: &str, value: f64, ok: bool, range| {
            if ok { Ok(()) } else { Err(out_of_range(key, &value, range)) }
        };
        const PERIOD: &str = "from 1 to 1000000";
        const SCALE: &str = "from 0 to 1000";
        let period = |key, value: f64| number(key, value, (1.0..=1e6).contains(&value), PERIOD);
        let scale = |key: &str, value: f64| number(key, value, (0.0..=1e3).contains(&value), SCALE);
        count("entropy.smoothing", self.entropy.smoothing, 1, 64, "from 1 to 64")?;
        period("target.half_life", self.target.half_life)?;
        count("target.first", self.target.first, 1, 1_000_000, PERIOD)?;
        count("target.every", self.target.every, 1, 1_000_000, PERIOD)?;
        count("gate.max_pause", self.gate.max_pause, 1, 1_000_000, PERIOD)?;
        let norm = &self.gate.norm;
        let above_one = norm.multiple > 1.0 && norm.multiple <= 1e6;
        number("gate.norm.multiple", norm.multiple, above_one, "above 1 and at most 1000000")?;
        period("gate.norm.half_life", norm.half_life)?;
        count("gate.norm.warmup", norm.warmup, 0, 1_000_000, "from 0 to 1000000")?;
        scale("scale.global", self.scale.global)?;
        for (pattern, &value) in &self.scale.tensors {
            scale(&format!("scale.tensors.{pattern:?}"), value)?;
        }
        self.momentum.validate()?;
        Ok(())
    }

    /// The factor that this policy gives each of `names`, without the global one.
    ///
    /// # Errors
    ///
    /// Where a pattern matches none of them, or two match one equally well.
    pub fn tensor_scales<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<f64>, PolicyError> {
        let names: Vec<_> = names.into_iter().collect();
        let found = pattern::assign("scale.tensors", "tensor", &self.scale.tensors, &names)?;
        Ok(found.into_iter().map(|scale| scale.unwrap_or(1.0)).collect())
    }

    /// The class that this policy assigns each of `names`, where it assigns one.
    ///
    /// # Errors
    ///
    /// As [`Policy::tensor_scales`].
    pub fn state_classes<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Option<AssignedClass>>, PolicyError> {
        let names: Vec<_> = names.into_iter().collect();
        pattern::assign("states", "state", &self.states, &names)
    }
}

fn out_of_range(key: &str, value: &dyn std::fmt::Display, range: &'static str) -> PolicyError {
    PolicyError::Range { key: key.to_owned(), value: value.to_string(), range }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_default_is_the_default() {
        assert_eq!(Policy::parse(DEFAULT_POLICY).unwrap(), Policy::default());
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
    }

    #[test]
    fn text_and_value_agree() {
        let mut policy = Policy::monitor();
        policy.scale.tensors.insert("*['w']".into(), 0.25);
        policy.states.insert("s.count".into(), AssignedClass::Advancing);
        let text = toml::to_string(&policy).unwrap();
        assert_eq!(Policy::parse(&text).unwrap(), policy);
        assert!(!policy.gates());
    }

    #[test]
    fn refusals() {
        let check = |text: &str, expected: &str| {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        };
        check("format_version = 2", "format_version 2; this version of entropic reads 1");
        check(
            "[gate.norm]\n\nmultiplier = 2.0",
            "line 3 of the policy: there is no key `gate.norm.multiplier`; did you mean `gate.norm.multiple`?",
        );
        check("[gates]\nnon_finite = true", "line 1 of the policy: there is no key `gates`; did you mean `gate`?");
        check("zzzzzzzz = 1", "there is no key `zzzzzzzz`");
        check("[entropy]\nsmoothing = 0", "`entropy.smoothing` is 0 in the policy; it must be from 1 to 64");
        check("[entropy]\nsmoothing = 65", "from 1 to 64");
        check("[gate.norm]\nmultiple = 1.0", "`gate.norm.multiple` is 1 in the policy; it must be above 1");
        check("[gate.norm]\nmultiple = nan", "above 1");
        check("[scale]\nglobal = -0.1", "`scale.global` is -0.1");
        check("[scale.tensors]\n\"*\" = 1e4", "`scale.tensors.\"*\"` is 10000");
        check("[target]\nhalf_life = 0.5", "from 1 to 1000000");
        check("[gate]\nnon_finite = 1", "line 2");
        check("[entropy]\nestimator = \"softmix\"", "energy");
        check("[states]\ns = \"hold\"", "held");
        check("gate = 3", "line 1");
        check("[gate", "TOML");
    }

    #[test]
    fn boundary_values_are_allowed() {
        for text in
            ["[entropy]\nsmoothing = 1", "[entropy]\nsmoothing = 64", "[scale]\nglobal = 0.0", "[scale]\nglobal = 1000"]
        {
            Policy::parse(text).unwrap();
        }
    }
}
