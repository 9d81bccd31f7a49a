//! What of a policy shapes the graph, and what control needs to know of a step.

use serde::{Deserialize, Serialize};

use crate::policy::{
    Policy, Signal, SpectralDtype, SpectralPolicy, SpectralTensor, SpectralWork, SwitchRate, Timing, Trigger,
};
use crate::spectral::{Matrices, TensorClass};

/// Which laws an injected module has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LawStructure {
    /// The law of each tensor.
    pub micro: bool,
    /// The law of all tensors by bands.
    pub rule: bool,
    /// The proportional and integral law of all tensors.
    pub pi: bool,
    /// Which entropy scales a step.
    pub timing: Timing,
    /// Which entropies they act on.
    #[serde(default)]
    pub signal: Signal,
    /// Whether each tensor has a clamp of its own, since a group says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clamps: bool,
}

impl LawStructure {
    /// Whether there is any.
    #[must_use]
    pub fn any(self) -> bool {
        self.micro || self.rule || self.pi
    }

    pub(super) fn of(policy: &Policy) -> Self {
        let laws = &policy.laws;
        Self {
            micro: laws.micro.enabled,
            rule: laws.rule.enabled,
            pi: laws.pi.enabled,
            timing: laws.timing,
            signal: if laws.any() { laws.signal } else { Signal::Gradient },
            clamps: laws.any() && policy.groups_clamp(),
        }
    }
}

/// How the optimizer may be switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStructure {
    /// What it waits for.
    pub trigger: Trigger,
    /// How far SGD goes for a step of the optimizer.
    pub rate: SwitchRate,
}

impl SwitchStructure {
    pub(super) fn of(policy: &Policy) -> Option<Self> {
        let switch = &policy.switch;
        switch.enabled.then_some(Self { trigger: switch.trigger, rate: switch.rate })
    }

    /// Fields of the state, and whether they have an element for each tensor.
    pub(super) fn state(self) -> Vec<(&'static str, bool)> {
        let mut fields = vec![
            ("switch_energy", true),
            ("switch_energy_carry", true),
            ("switch_energy_weight", true),
            ("switch_product", true),
            ("switch_product_carry", true),
            ("switch_product_weight", true),
        ];
        match self.trigger {
            Trigger::Step => {}
            Trigger::Settled => fields.push(("switch_reference", true)),
            Trigger::Entropy => fields.extend(
                ["switch_trend", "switch_trend_carry", "switch_trend_weight", "switch_peak"].map(|name| (name, false)),
            ),
        }
        fields
    }

    /// Names of one-element telemetry fields.
    pub(super) fn telemetry(self) -> Vec<&'static str> {
        let mut fields = vec!["switched", "switches"];
        match self.trigger {
            Trigger::Step => {}
            Trigger::Settled => fields.push("switch_movement"),
            Trigger::Entropy => fields.extend(["switch_trend", "switch_peak"]),
        }
        fields
    }
}

/// Whether the optimizer of a tensor may be switched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSwitch {
    /// Why not; absent where it may.
    pub reason: Option<String>,
}

/// How singular values of updates are made equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpectralStructure {
    /// Newton-Schulz iterations.
    pub iterations: u32,
    /// What matrices are multiplied in.
    pub dtype: SpectralDtype,
    /// Matrices with a shorter side are left alone.
    pub min_side: u32,
    /// Who does the work where several replicas train together.
    pub replicas: SpectralWork,
}

impl SpectralStructure {
    pub(super) fn of(policy: &Policy) -> Option<Self> {
        let spectral = &policy.spectral;
        let &SpectralPolicy { iterations, dtype, min_side, replicas, .. } = spectral;
        spectral.enabled.then_some(Self { iterations, dtype, min_side, replicas })
    }
}

/// What becomes of the update of a tensor where singular values are made equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorSpectral {
    /// What the tensor is for.
    pub class: TensorClass,
    /// Why, in words.
    pub why: String,
    /// What the policy said of it at injection, as far as it shapes the graph.
    pub said: SpectralTensor,
    /// The matrices that are treated, each by itself; absent where the update is left alone.
    pub matrices: Option<Matrices>,
    /// Why it is left alone; absent where it is not.
    pub reason: Option<String>,
    /// Why the whole of the new value less the old one is treated, weight decay included; absent where only what data
    /// decides is.
    pub difference: Option<String>,
}

/// What control needs to know of a step besides its tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepFacts {
    /// It scales its loss and skips what overflows, so that such a skip is no anomaly.
    pub loss_scaled: bool,
}
