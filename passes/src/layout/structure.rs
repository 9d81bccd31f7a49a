//! What of a policy shapes the graph, and what control needs to know of a step.

use serde::{Deserialize, Serialize};

use crate::policy::{Policy, SwitchRate, Timing, Trigger};

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

/// What control needs to know of a step besides its tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepFacts {
    /// It scales its loss and skips what overflows, so that such a skip is no anomaly.
    pub loss_scaled: bool,
}
