//! The policy: what the controller does, as numbers and structure.
//!
//! *Structure* shapes the graph: the estimator, the length of the smoothing
//! window, whether anything is gated, the classes of states. *Numbers* enter the
//! program as one small vector on the device, so that other numbers need no
//! other program. [`Policy::parse`] reads TOML; unknown keys are refused with the
//! nearest known one, values outside their range with key, value and range.

mod entropy;
mod groups;
mod laws;
mod momentum;
mod parse;
mod pattern;
mod replicas;
mod rollback;
mod spectral;
mod switch;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::listed::listed;
use crate::step::StateClass;

pub use entropy::{EntropyPolicy, Estimator, TemperatureUnit};
pub use groups::{GroupPolicy, TensorLaws};
pub use laws::{LawsPolicy, MicroPolicy, MicroTensor, PiPolicy, RulePolicy, Signal, Timing};
pub use momentum::MomentumPolicy;
pub use pattern::Pattern;
pub use replicas::{EntropyOf, OnMismatch, ReplicasPolicy};
pub use rollback::{RollbackKind, RollbackPolicy};
pub use spectral::{SpectralDtype, SpectralPolicy, SpectralTensor, SpectralWork};
pub use switch::{SwitchPolicy, SwitchRate, Trigger};

/// The version of the policy format that this crate reads and writes.
pub const POLICY_FORMAT_VERSION: u32 = 1;

/// The text of the default policy, commented for its readers.
pub const DEFAULT_POLICY: &str = include_str!("../../policies/default.toml");

/// The text of a policy with the constants of the article that the controller comes from.
pub const ARTICLE_POLICY: &str = include_str!("../../policies/article.toml");

/// The text of a policy that makes the singular values of hidden matrices' updates equal.
pub const SPECTRAL_POLICY: &str = include_str!("../../policies/spectral.toml");

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
    /// What gates that refuse one step after another come to.
    pub rollback: RollbackPolicy,
    /// By how much updates are scaled.
    pub scale: ScalePolicy,
    /// How entropies move learning rate and momentum.
    pub laws: LawsPolicy,
    /// By how much momentum coefficients are scaled.
    pub momentum: MomentumPolicy,
    /// How updates of matrices are moved towards equal singular values.
    pub spectral: SpectralPolicy,
    /// When the optimizer gives way to SGD.
    pub switch: SwitchPolicy,
    /// What is different where several replicas train together.
    pub replicas: ReplicasPolicy,
    /// What is different for tensors of a group, by its name.
    pub groups: BTreeMap<String, GroupPolicy>,
    /// Classes of states by tree-path pattern; they override what discovery says.
    pub states: BTreeMap<String, AssignedClass>,
}

/// What the entropy is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetPolicy {
    /// Where it comes from.
    pub kind: TargetKind,
    /// The fixed target, in \[0, 1\].
    pub value: f64,
    /// Factor of the target per accepted step; a target from history starts anew at each calibration.
    pub decay: f64,
    /// Accepted steps after which an observation counts half.
    pub half_life: f64,
    /// Accepted steps before the first calibration.
    pub first: u32,
    /// Accepted steps between calibrations.
    pub every: u32,
}

/// Where the target comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// The exponentially forgetting mean of the entropy, held between calibrations.
    History,
    /// One number for every tensor.
    Fixed,
}

/// Which updates are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatePolicy {
    /// Refuse updates from non-finite gradients.
    pub non_finite: bool,
    /// Refusals in a row after which thresholds are re-set, or the run stops.
    pub max_pause: u32,
    /// Which of the gates below must agree for a refusal.
    pub votes: Votes,
    /// Refuse updates from gradients of extraordinary norm.
    pub norm: NormGatePolicy,
    /// Refuse updates from gradients of extraordinary entropy.
    pub entropy: EntropyGatePolicy,
}

/// How many of the norm gate and the entropy gate it takes to refuse a step. Non-finite steps are refused alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Votes {
    /// One.
    Any,
    /// Every one that is enabled; one that is not armed yet does not agree.
    All,
}

/// The entropy gate: refuses when the global entropy of this step, over its target, lies outside a band.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EntropyGatePolicy {
    /// Whether it acts.
    pub enabled: bool,
    /// Lower end of the band.
    pub low: f64,
    /// Upper end of the band.
    pub high: f64,
    /// Accepted steps before it acts.
    pub warmup: u32,
}

/// The norm gate: refuses when the norm exceeds a multiple of its running mean, and by more than is usual.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NormGatePolicy {
    /// Whether it acts.
    pub enabled: bool,
    /// The multiple.
    pub multiple: f64,
    /// How many running mean absolute deviations above its running mean the norm must be as well.
    pub deviations: f64,
    /// Accepted steps after which an observation counts half in the running means.
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
            rollback: RollbackPolicy::default(),
            scale: ScalePolicy::default(),
            laws: LawsPolicy::default(),
            momentum: MomentumPolicy::default(),
            spectral: SpectralPolicy::default(),
            switch: SwitchPolicy::default(),
            replicas: ReplicasPolicy::default(),
            groups: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }
}

impl Default for TargetPolicy {
    fn default() -> Self {
        Self { kind: TargetKind::History, value: 0.5, decay: 1.0, half_life: 1000.0, first: 50, every: 1000 }
    }
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self {
            non_finite: true,
            max_pause: 50,
            votes: Votes::Any,
            norm: NormGatePolicy::default(),
            entropy: EntropyGatePolicy::default(),
        }
    }
}

impl Default for NormGatePolicy {
    fn default() -> Self {
        Self { enabled: true, multiple: 2.0, deviations: 12.0, half_life: 20.0, warmup: 20 }
    }
}

impl Default for EntropyGatePolicy {
    fn default() -> Self {
        Self { enabled: false, low: 0.8, high: 1.2, warmup: 100 }
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
    /// Both laws of all tensors are on.
    #[error(
        "`laws.rule` and `laws.pi` are both enabled in the policy, and both scale the learning rate of every tensor; \
         disable one of them"
    )]
    TwoGlobalLaws,
    /// A way back that the trigger does not have.
    #[error(
        "`switch.return_above` is set in the policy, and `switch.trigger` is \"{trigger}\": only `trigger = \"entropy\"` \
         returns to the optimizer; set `switch.return_above` to 0"
    )]
    ReturnWithoutEntropy {
        /// The trigger.
        trigger: &'static str,
    },
    /// Laws that act on what is not measured.
    #[error(
        "`laws.signal` is \"spectral\" in the policy, and `spectral.enabled` is false, so that no update has a spectral entropy; \
         enable it (with `spectral.alpha = 0.0` updates stay as they are), or set `laws.signal` to \"gradient\""
    )]
    SignalWithoutSpectral,
    /// A gate that would compare the entropy of gradients with a target of another entropy.
    #[error(
        "`laws.signal` is \"spectral\" and `gate.entropy` is enabled in the policy: the gate compares the entropy of this \
         step's gradient with the target, which would be that of spectral entropies; disable one of them"
    )]
    SignalWithEntropyGate,
    /// Updates of matrices to be treated in a step where none can be.
    #[error(
        "the policy makes singular values of updates equal, and no tensor of this step is treated: {}. Set \
         `spectral.enabled` to false, or name tensors under `[spectral.tensors]`",
        listed(tensors.iter().cloned())
    )]
    NothingSpectral {
        /// Name and reason of each.
        tensors: Vec<(String, String)>,
    },
    /// Tensors that a pattern asks to be treated, and that cannot be.
    #[error(
        "the policy makes singular values of updates equal that cannot be: {}. Name only matrices; `entropic inspect` \
         lists them",
        by_key(tensors)
    )]
    NotSpectral {
        /// Name, key of the policy and reason of each.
        tensors: Vec<(String, String, String)>,
    },
    /// A switch of the optimizer in a step where nothing can be switched.
    #[error(
        "the policy switches the optimizer to SGD with its own first moment, and no tensor of this step can be switched: {}. \
         Set `switch.enabled` to false, or train with an optimizer that keeps a first moment",
        listed(tensors.iter().cloned())
    )]
    NothingToSwitch {
        /// Name and reason of each.
        tensors: Vec<(String, String)>,
    },
    /// A copy to return to, and nothing that would.
    #[error(
        "`rollback.kind` is \"snapshot\" in the policy, and no gate is enabled that could refuse a step and return to \
         it; enable one, or set it to \"gate\""
    )]
    SnapshotWithoutGate,
    /// An answer to what is never asked.
    #[error(
        "`replicas.on_mismatch` is \"{on_mismatch}\" in the policy, and `replicas.check_every` is 0, so that no replica is \
         ever compared with another; set `replicas.check_every` to a number of steps, or take `replicas.on_mismatch` out"
    )]
    MismatchWithoutCheck {
        /// What should be done about it.
        on_mismatch: &'static str,
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
    /// A tensor that is in two groups.
    #[error(
        "{tensor:?} is in two groups of the policy, `groups.{first}` and `groups.{second}`; exclude it from one of them"
    )]
    TwoGroups {
        /// Tree path of the tensor.
        tensor: String,
        /// One group.
        first: String,
        /// The other.
        second: String,
    },
    /// A group whose every tensor is excluded.
    #[error("the policy's `groups.{group}` excludes every tensor that it includes; take patterns out of its `exclude`")]
    EmptyGroup {
        /// The group.
        group: String,
    },
    /// Tensors whose momentum a pattern scales, and that have none.
    #[error(
        "the policy scales the momentum of tensors that have none to scale: {}. Name only tensors that have one; \
         `entropic inspect` lists them",
        by_key(tensors)
    )]
    NoMomentum {
        /// Name, key of the policy and reason of each.
        tensors: Vec<(String, String, String)>,
    },
    /// A policy that scales momentum, and a step without any.
    #[error(
        "the policy scales momentum, and no tensor of this step has a coefficient to scale: {}. Take `[momentum]` \
         out of the policy and set `laws.rule.momentum_low` and `momentum_high` to 1, or train with an optimizer that has \
         momentum",
        listed(tensors.iter().cloned())
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

/// Tensors that a policy asks something of, each with the key by which it does and why it cannot be done.
fn by_key(tensors: &[(String, String, String)]) -> String {
    listed(tensors.iter().map(|(name, key, reason)| (format!("{name} (`{key}`)"), reason.clone())))
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

    /// Every key that a policy can have, with its tables, as in `gate.norm.multiple`; a table whose keys are patterns
    /// is listed as `scale.tensors."PATTERN"`.
    #[must_use]
    pub fn keys() -> Vec<String> {
        parse::keys()
    }

    /// Whether updates are scaled at all: by a law, after a rollback, by a factor other than 1, or any pattern or group.
    /// Structure.
    #[must_use]
    pub fn scales(&self) -> bool {
        let factors = self.scale.global != 1.0 || !self.scale.tensors.is_empty() || self.groups_scale();
        self.laws.any() || self.rollback.keeps_snapshot() || factors
    }

    /// Whether momentum coefficients are scaled at all: by the rule, a factor other than 1, or any pattern or group.
    /// Structure.
    #[must_use]
    pub fn scales_momentum(&self) -> bool {
        self.momentum.scales() || self.laws.rule.moves_momentum() || self.groups_scale_momentum()
    }

    /// Whether any update can be refused: if not, no gate is emitted.
    #[must_use]
    pub fn gates(&self) -> bool {
        self.gate.non_finite || self.gate.norm.enabled || self.gate.entropy.enabled
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
        let check = Checks;
        let period =
            |key: &str, value: f64| check.number(key, value, (1.0..=1e6).contains(&value), "from 1 to 1000000");
        let scale = |key: &str, value: f64| check.number(key, value, (0.0..=1e3).contains(&value), "from 0 to 1000");
        self.entropy.validate(check)?;
        let target = &self.target;
        check.number(
            "target.value",
            target.value,
            target.value > 0.0 && target.value <= 1.0,
            "above 0 and at most 1",
        )?;
        check.number("target.decay", target.decay, (0.9..=1.0).contains(&target.decay), "from 0.9 to 1")?;
        period("target.half_life", target.half_life)?;
        check.count("target.first", target.first, 1)?;
        check.count("target.every", target.every, 1)?;
        check.count("gate.max_pause", self.gate.max_pause, 1)?;
        let norm = &self.gate.norm;
        let above_one = norm.multiple > 1.0 && norm.multiple <= 1e6;
        check.number("gate.norm.multiple", norm.multiple, above_one, "above 1 and at most 1000000")?;
        let deviations = (0.0..=100.0).contains(&norm.deviations);
        check.number("gate.norm.deviations", norm.deviations, deviations, "from 0 to 100")?;
        period("gate.norm.half_life", norm.half_life)?;
        check.count("gate.norm.warmup", norm.warmup, 0)?;
        let band = &self.gate.entropy;
        check.number("gate.entropy.low", band.low, (0.0..1.0).contains(&band.low), "at least 0 and below 1")?;
        check.number(
            "gate.entropy.high",
            band.high,
            band.high > 1.0 && band.high <= 100.0,
            "above 1 and at most 100",
        )?;
        check.count("gate.entropy.warmup", band.warmup, 0)?;
        self.rollback.validate(check)?;
        if self.rollback.keeps_snapshot() && !self.gates() {
            return Err(PolicyError::SnapshotWithoutGate);
        }
        scale("scale.global", self.scale.global)?;
        for (pattern, &value) in &self.scale.tensors {
            scale(&format!("scale.tensors.{pattern:?}"), value)?;
        }
        self.momentum.validate(check)?;
        self.spectral.validate(check)?;
        self.switch.validate(check)?;
        self.replicas.validate(check)?;
        self.groups.iter().try_for_each(|(name, group)| group.validate(name, check))?;
        if self.laws.any() && self.laws.signal == Signal::Spectral {
            if !self.spectral.enabled {
                return Err(PolicyError::SignalWithoutSpectral);
            }
            if self.gate.entropy.enabled {
                return Err(PolicyError::SignalWithEntropyGate);
            }
        }
        self.laws.validate(check)
    }

    /// The factor that patterns and groups give each of `names`, without the global one.
    ///
    /// # Errors
    ///
    /// Where a pattern matches none of them, two match one equally well, or one is in two groups.
    pub fn tensor_scales<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<f64>, PolicyError> {
        let names: Vec<_> = names.into_iter().collect();
        let found = pattern::assign("scale.tensors", "tensor", &self.scale.tensors, &names)?;
        self.times_groups(found.into_iter().map(|scale| scale.unwrap_or(1.0)), &names, |group| group.scale)
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

/// Checks of single values. Conditions are written so that NaN is out of range.
#[derive(Debug, Clone, Copy)]
struct Checks;

impl Checks {
    fn number(
        self,
        key: &str,
        value: impl std::fmt::Display,
        ok: bool,
        range: &'static str,
    ) -> Result<(), PolicyError> {
        if ok { Ok(()) } else { Err(PolicyError::Range { key: key.to_owned(), value: value.to_string(), range }) }
    }

    /// A number of steps: at most a million, which `f32` and `i32` count exactly.
    fn count(self, key: &str, value: u32, low: u32) -> Result<(), PolicyError> {
        let range = if low == 0 { "from 0 to 1000000" } else { "from 1 to 1000000" };
        self.number(key, value, (low..=1_000_000).contains(&value), range)
    }
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
    fn the_article_s_policy_has_its_laws_and_its_band() {
        let policy = Policy::parse(ARTICLE_POLICY).unwrap();
        let laws = &policy.laws;
        assert!(laws.micro.enabled && laws.rule.enabled && !laws.pi.enabled);
        assert!(policy.gate.entropy.enabled && !policy.gate.norm.enabled);
        assert!(policy.gates() && policy.scales());
    }

    #[test]
    fn the_spectral_policy_is_the_default_and_its_table() {
        let policy = Policy::parse(SPECTRAL_POLICY).unwrap();
        let spectral = SpectralPolicy { enabled: true, k: 2.0, ..SpectralPolicy::default() };
        assert_eq!(policy, Policy { spectral, ..Policy::default() });
    }

    #[test]
    fn text_and_value_agree() {
        let mut policy = Policy::monitor();
        policy.scale.tensors.insert("*['w']".into(), 0.25);
        policy.states.insert("s.count".into(), AssignedClass::Advancing);
        policy.spectral.tensors.insert("*['q']".into(), SpectralTensor { split: Some(3), ..Default::default() });
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
        check("[gate.entropy]\nlow = 1.0", "`gate.entropy.low` is 1 in the policy; it must be at least 0 and below 1");
        check("[gate]\nvotes = \"most\"", "any");
        check("[target]\nvalue = 0.0", "above 0 and at most 1");
        check("[target]\ndecay = 0.5", "from 0.9 to 1");
        check("[laws]\nmax = 0.5", "`laws.max` is 0.5 in the policy; it must be from 1 to 100");
        check("[laws.micro]\nfaktor = 1.1", "did you mean `laws.micro.factor`?");
        check("[laws.micro.tensors]\n\"*\" = { factr = 1.1 }", "factor");
        check("[laws.micro.tensors]\n\"*\" = { factor = 0.0 }", "`laws.micro.tensors.\"*\".factor` is 0");
        check("[laws.rule]\nlow = 1.5", "`laws.rule.high` is 1.1 in the policy; it must be from laws.rule.low");
        check("[laws.rule]\nenabled = true\n[laws.pi]\nenabled = true", "disable one of them");
        check("[laws.pi]\nkp = -1.0", "from 0 to 100");
        let signal = "[laws]\nsignal = \"spectral\"\n[laws.pi]\nenabled = true\n";
        check(signal, "`spectral.enabled` is false");
        check(&format!("{signal}[spectral]\nenabled = true\n[gate.entropy]\nenabled = true"), "disable one of them");
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
