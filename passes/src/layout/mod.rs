//! What the controller adds to a program, for whoever runs it.
//!
//! A [`ControllerLayout`] says which inputs and outputs were appended and what
//! every element of them means: enough to make the first state, to fill the
//! policy vector, and to read telemetry, without the module. It is stored beside
//! an injected module, so it carries a format version.
//!
//! Appended inputs, after all the step's own: `entropic.policy` f32\[P\] (kept by
//! the caller, the same buffer every step), `entropic.state` f32\[S\] and
//! `entropic.counters` s32\[C\] (both donated to their successors), and under a policy with
//! snapshots a copy of each held state, donated as well and zero at first. Appended
//! outputs: the new state, the new counters, the new copies, `entropic.telemetry` f32\[T\].
//!
//! Per-tensor fields have one element per controlled tensor, in the order of
//! [`ControllerLayout::tensors`]; fields that also cover the whole gradient have
//! one more, the last.

mod numbers;
mod structure;

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::policy::{EntropyOf, EntropyPolicy, Policy, PolicyError, Signal, SpectralTensor, Timing};

pub use numbers::forgetting_rate;
use numbers::policy_numbers;
pub(crate) use numbers::{
    BACKOFF_LOG, MICRO_BELOW, MICRO_FACTOR, MOMENTUM, MOMENTUM_CAP, MOMENTUM_SCALE, MOMENTUM_TENSORS, SPECTRAL_ALPHA,
    SPECTRAL_ENTROPY, SPECTRAL_K, SPECTRAL_TARGET, SWITCH_RATE, TEMPERATURE, TENSOR_LOG_MAX, TENSOR_MOMENTUM_LOG_MAX,
    TENSOR_SCALES, micro_numbers,
};
pub use structure::{LawStructure, SpectralStructure, StepFacts, SwitchStructure, TensorSpectral, TensorSwitch};

/// The version of the layout format that this crate reads and writes.
pub const LAYOUT_FORMAT_VERSION: u32 = 1;

/// Marks an absent entropy, target or ratio in state and telemetry; none of them is ever negative.
pub(crate) const NONE: f32 = -1.0;

/// What the controller adds to a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControllerLayout {
    /// [`LAYOUT_FORMAT_VERSION`].
    pub format_version: u32,
    /// Steps of one launch, where the program loops over steps by itself. Where it is more than one, telemetry has it as its
    /// first dimension, which [`ControllerOutput::dims`] leaves out.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub steps: NonZeroU32,
    /// The policy's `[entropy]` at injection; what of it shapes the graph cannot be changed.
    pub entropy: EntropyPolicy,
    /// Whose gradients are measured where several replicas train together. Structure.
    #[serde(default)]
    pub entropy_of: EntropyOf,
    /// Whether held states are guarded by the controller's decision. Structure.
    pub gated: bool,
    /// Whether updates pass through a scale. Structure.
    pub scaled: bool,
    /// Which laws there are. Structure.
    pub laws: LawStructure,
    /// Whether momentum coefficients pass through a scale. Structure.
    pub scaled_momentum: bool,
    /// Whether there are copies of the held states to return to. Structure.
    pub rollback: bool,
    /// How the optimizer may be switched, where it may. Structure.
    pub switch: Option<SwitchStructure>,
    /// How singular values of updates are made equal, where they are. Structure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectral: Option<SpectralStructure>,
    /// Whether the step scales its loss and skips what overflows, so that such a skip is no anomaly.
    pub loss_scaled: bool,
    /// The controlled tensors, in order.
    pub tensors: Vec<ControlledTensor>,
    /// Appended inputs, in order.
    pub inputs: Vec<ControllerInput>,
    /// Appended outputs, in order.
    pub outputs: Vec<ControllerOutput>,
    /// Elements of `entropic.policy`.
    pub policy: Vec<Field>,
    /// Elements of `entropic.state`.
    pub state: Vec<Field>,
    /// Elements of `entropic.counters`.
    pub counters: Vec<Field>,
    /// Elements of `entropic.telemetry`.
    pub telemetry: Vec<Field>,
    /// What a refused step does with each state of the step; empty where nothing is gated.
    pub states: Vec<ClassifiedState>,
    /// The momentum of each of [`ControllerLayout::tensors`]; empty where none is scaled.
    pub momentum: Vec<TensorMomentum>,
    /// Whether the optimizer of each of [`ControllerLayout::tensors`] may be switched; empty where none may.
    pub switched: Vec<TensorSwitch>,
    /// What becomes of the update of each of [`ControllerLayout::tensors`] where singular values are made equal; empty where
    /// none are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matrices: Vec<TensorSpectral>,
    /// Bytes of all copies of held states together: so much more memory on the device, and as much that is read and
    /// written in every step. 0 without copies.
    pub snapshot_bytes: u64,
}

/// A tensor whose gradient is measured and whose update is scaled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlledTensor {
    /// Tree path.
    pub name: String,
    /// Its input number.
    pub input: usize,
    /// Number of elements.
    pub elements: u64,
    /// Number of dimensions.
    pub rank: u32,
    /// Name of the instruction whose value is measured.
    pub measured: String,
    /// How its update is scaled; filled in by `scale-updates`.
    pub scaling: Option<Scaling>,
}

/// The momentum coefficients of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorMomentum {
    /// Every coefficient that is scaled, where it is a constant, in the order of discovery.
    pub coefficients: Vec<Option<f64>>,
    /// Why none is scaled; absent where some is.
    pub reason: Option<String>,
}

/// How an update is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `p + s·u`, with the update of the graph.
    Update,
    /// `p + s·(p' - p)`, since the graph holds no usable update.
    Difference,
}

/// What an appended array is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArrayKind {
    /// The policy's numbers.
    Policy,
    /// The controller's state.
    State,
    /// The controller's counters.
    Counters,
    /// What one step has to tell.
    Telemetry,
    /// A copy of a held state.
    Snapshot,
}

/// An appended input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerInput {
    /// Its name in the module.
    pub name: String,
    /// What it is.
    pub kind: ArrayKind,
    /// Parameter number.
    pub parameter: usize,
    /// Element type as HLO writes it.
    pub element_type: String,
    /// Dimensions.
    pub dims: Vec<i64>,
    /// The input that it is a copy of, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<usize>,
}

/// An appended output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerOutput {
    /// A name to show.
    pub name: String,
    /// What it is.
    pub kind: ArrayKind,
    /// Index among the outputs.
    pub output: usize,
    /// Element type as HLO writes it.
    pub element_type: String,
    /// Dimensions.
    pub dims: Vec<i64>,
    /// The input that its value is a copy of, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<usize>,
}

/// A run of elements with one meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Field {
    /// What it is.
    pub name: String,
    /// Position of its first element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// The value of all its elements at first; for the policy, of its one element at injection.
    pub initial: f64,
}

/// What a refused step does with a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassifiedState {
    /// Tree path.
    pub name: String,
    /// Input number.
    pub input: usize,
    /// Output index.
    pub output: usize,
    /// Whether it keeps its bits.
    pub held: bool,
}

const COUNTERS: &[&str] = &[
    "steps",
    "accepted",
    "non_finite",
    "refused_norm",
    "rearmed",
    "calibrations",
    "since_calibration",
    "non_finite_streak",
    "pause_streak",
    "refused_low",
    "refused_high",
    "loss_scale_skips",
];

/// Counters of a rollback to a snapshot.
const ROLLBACK_COUNTERS: &[&str] = &["refused_streak", "calm_streak", "rollbacks", "snapshots"];

/// Counters of a switch of the optimizer: whether it is on, and how often that changed.
const SWITCH_COUNTERS: &[&str] = &["switched", "switches"];

/// Names of one-element telemetry fields, in order.
const TELEMETRY_SCALARS: &[&str] = &[
    "applied",
    "finite",
    "norm_exceeded",
    "entropy_low",
    "entropy_high",
    "rearmed",
    "calibrated",
    "stop",
    "norm_mean",
    "norm_threshold",
    "steps",
    "accepted",
    "non_finite",
    "refused_norm",
    "refused_low",
    "refused_high",
    "rearmings",
    "loss_scale_skips",
];

/// Those of a rollback to a snapshot.
const ROLLBACK_TELEMETRY: &[&str] = &["rolled_back", "snapshot_taken", "rollbacks", "snapshots", "backoff"];

struct Fields(Vec<Field>);

impl Fields {
    fn push(&mut self, name: &str, len: usize, initial: f64) {
        let offset = self.0.last().map_or(0, |f| f.offset + f.len);
        self.0.push(Field { name: name.to_owned(), offset, len, initial });
    }
}

/// Refuses what a policy wants of the structure, where the module has something else.
fn structure(key: &'static str, injected: &dyn ToString, wanted: &dyn ToString) -> Result<(), PolicyError> {
    let (injected, wanted) = (injected.to_string(), wanted.to_string());
    if injected == wanted { Ok(()) } else { Err(PolicyError::Structure { key, injected, wanted }) }
}

impl ControllerLayout {
    /// The layout for these tensors under a policy; inputs and outputs are numbered when they are appended.
    ///
    /// # Errors
    ///
    /// Where a pattern of the policy names no tensor.
    pub(crate) fn new(tensors: Vec<ControlledTensor>, policy: &Policy, facts: StepFacts) -> Result<Self, PolicyError> {
        let n = tensors.len();
        let with_global = n + 1;
        let laws = LawStructure::of(policy);
        let scaled_momentum = policy.scales_momentum();
        let rollback = policy.rollback.keeps_snapshot();
        let switch = SwitchStructure::of(policy);
        let spectral = SpectralStructure::of(policy);
        let mut numbers = Fields(Vec::new());
        let values =
            policy_numbers(laws, rollback, switch.is_some(), spectral.is_some(), scaled_momentum, &tensors, policy)?;
        for (name, values) in values {
            numbers.push(name, values.len(), values.first().copied().unwrap_or_default());
        }

        let mut state = Fields(Vec::new());
        for row in 0..policy.entropy.smoothing {
            state.push(&format!("window.{row}"), with_global, f64::from(NONE));
        }
        for name in ["mean", "mean_carry", "mean_weight"] {
            state.push(name, with_global, 0.0);
        }
        state.push("target", with_global, f64::from(NONE));
        state.push("target_factor", 1, 1.0);
        for name in [
            "norm_mean",
            "norm_carry",
            "norm_weight",
            "norm_deviation",
            "norm_deviation_carry",
            "norm_deviation_weight",
            "paused_norms",
            "paused_entropies",
            "paused_entropy_count",
        ] {
            state.push(name, 1, 0.0);
        }
        if laws.micro {
            state.push("micro_log", n, 0.0);
        }
        if laws.rule || laws.pi {
            state.push("lr_log", 1, 0.0);
        }
        if laws.rule {
            state.push("momentum_log", 1, 0.0);
        }
        if laws.pi {
            state.push("integral", 1, 0.0);
        }
        if rollback {
            state.push(BACKOFF_LOG, 1, 0.0);
        }
        if let Some(switch) = switch {
            for (name, per_tensor) in switch.state() {
                state.push(name, if per_tensor { n } else { 1 }, 0.0);
            }
        }

        // The last of all: it is written behind control, where updates are known.
        if laws.signal == Signal::Spectral {
            state.push(SPECTRAL_ENTROPY, with_global, f64::from(NONE));
        }

        let mut counters = Fields(Vec::new());
        let rollback_counters = if rollback { ROLLBACK_COUNTERS } else { &[] };
        let switch_counters = if switch.is_some() { SWITCH_COUNTERS } else { &[] };
        for name in COUNTERS.iter().chain(rollback_counters).chain(switch_counters) {
            counters.push(name, 1, 0.0);
        }

        let mut telemetry = Fields(Vec::new());
        let rollback_telemetry = if rollback { ROLLBACK_TELEMETRY } else { &[] };
        for name in TELEMETRY_SCALARS.iter().chain(rollback_telemetry) {
            telemetry.push(name, 1, 0.0);
        }
        for name in ["entropy", "smoothed", "target", "ratio", "norm"] {
            telemetry.push(name, with_global, 0.0);
        }
        telemetry.push("scale", n, 1.0);
        if laws.any() {
            telemetry.push("lr_scale", 1, 1.0);
            telemetry.push("momentum_scale", 1, 1.0);
        }
        if scaled_momentum {
            telemetry.push(MOMENTUM, n, 1.0);
        }
        if let Some(switch) = switch {
            for name in switch.telemetry() {
                telemetry.push(name, 1, 0.0);
            }
            telemetry.push(SWITCH_RATE, n, 0.0);
        }
        // The last of all: it is told behind control, where updates are known.
        if spectral.is_some() {
            telemetry.push(SPECTRAL_ENTROPY, with_global, f64::from(NONE));
        }

        Ok(Self {
            format_version: LAYOUT_FORMAT_VERSION,
            steps: NonZeroU32::MIN,
            entropy: policy.entropy.clone(),
            entropy_of: policy.replicas.entropy_of,
            gated: policy.gates(),
            scaled: policy.scales(),
            laws,
            scaled_momentum,
            rollback,
            switch,
            spectral,
            loss_scaled: facts.loss_scaled,
            tensors,
            inputs: Vec::new(),
            outputs: Vec::new(),
            policy: numbers.0,
            state: state.0,
            counters: counters.0,
            telemetry: telemetry.0,
            states: Vec::new(),
            momentum: Vec::new(),
            switched: Vec::new(),
            matrices: Vec::new(),
            snapshot_bytes: 0,
        })
    }

    /// The contents of `entropic.policy` for a policy, which may differ from that of the injection in numbers.
    ///
    /// # Errors
    ///
    /// Where the policy differs in structure, or a pattern names no tensor.
    pub fn policy_vector(&self, policy: &Policy) -> Result<Vec<f32>, PolicyError> {
        for ((key, injected), (_, wanted)) in self.entropy.structure().iter().zip(policy.entropy.structure()) {
            structure(key, injected, &wanted)?;
        }
        structure("replicas.entropy_of", &self.entropy_of.name(), &policy.replicas.entropy_of.name())?;
        if !self.gated && policy.gates() {
            structure("gate", &"nothing gated", &"a gate")?;
        }
        if !self.scaled && policy.scales() {
            structure("scale", &"nothing scaled", &"scaled updates")?;
        }
        let wanted = LawStructure::of(policy);
        for (key, injected, wanted) in [
            ("laws.micro.enabled", self.laws.micro, wanted.micro),
            ("laws.rule.enabled", self.laws.rule, wanted.rule),
            ("laws.pi.enabled", self.laws.pi, wanted.pi),
            ("groups: `laws` or `max`", self.laws.clamps, wanted.clamps),
        ] {
            if wanted && !injected {
                structure(key, &injected, &wanted)?;
            }
        }
        if wanted.any() && wanted.timing != self.laws.timing {
            let name = |timing| if timing == Timing::Sync { "sync" } else { "delayed" };
            structure("laws.timing", &name(self.laws.timing), &name(wanted.timing))?;
        }
        if wanted.any() {
            structure("laws.signal", &self.laws.signal.name(), &wanted.signal.name())?;
        }
        if !self.scaled_momentum && policy.scales_momentum() {
            structure("momentum", &"nothing scaled", &"scaled momentum")?;
        }
        if !self.rollback && policy.rollback.keeps_snapshot() {
            structure("rollback.kind", &"gate", &"snapshot")?;
        }
        if let Some(wanted) = SwitchStructure::of(policy) {
            let Some(injected) = self.switch else {
                return Err(PolicyError::Structure {
                    key: "switch.enabled",
                    injected: false.to_string(),
                    wanted: true.to_string(),
                });
            };
            structure("switch.trigger", &injected.trigger.name(), &wanted.trigger.name())?;
            structure("switch.rate", &injected.rate.name(), &wanted.rate.name())?;
        }
        self.check_spectral(policy)?;
        self.check_momentum(policy)?;
        let numbers = policy_numbers(
            self.laws,
            self.rollback,
            self.switch.is_some(),
            self.spectral.is_some(),
            self.scaled_momentum,
            &self.tensors,
            policy,
        )?;
        #[allow(clippy::cast_possible_truncation, reason = "the device computes in f32")]
        Ok(numbers.into_iter().flat_map(|(_, values)| values).map(|v| v as f32).collect())
    }

    /// Refuses a policy that makes singular values equal in another way than the module does.
    fn check_spectral(&self, policy: &Policy) -> Result<(), PolicyError> {
        let Some(wanted) = SpectralStructure::of(policy) else { return Ok(()) };
        let Some(injected) = self.spectral else {
            return structure("spectral.enabled", &false, &true);
        };
        structure("spectral.iterations", &injected.iterations, &wanted.iterations)?;
        structure("spectral.dtype", &injected.dtype.name(), &wanted.dtype.name())?;
        structure("spectral.min_side", &injected.min_side, &wanted.min_side)?;
        structure("spectral.replicas", &injected.replicas.name(), &wanted.replicas.name())?;
        let said = policy.spectral_tensors(self.tensors.iter().map(|t| t.name.as_str()))?;
        let told = |name: &str, said: SpectralTensor| format!("{name}: {said}");
        for ((tensor, was), said) in self.tensors.iter().zip(&self.matrices).zip(said) {
            structure("spectral.tensors", &told(&tensor.name, was.said), &told(&tensor.name, said.structure()))?;
        }
        Ok(())
    }

    /// Refuses a policy that scales momentum where there is none.
    ///
    /// # Errors
    ///
    /// Where a pattern that names some tensors names one without momentum, or no tensor has any.
    pub(crate) fn check_momentum(&self, policy: &Policy) -> Result<(), PolicyError> {
        let tensors = self.tensors.iter().zip(&self.momentum);
        let without: Vec<(&str, &str)> =
            tensors.filter_map(|(t, m)| Some((t.name.as_str(), m.reason.as_deref()?))).collect();
        let demanded =
            |&(name, reason): &(&str, &str)| Some((name.to_owned(), policy.demands_momentum(name)?, reason.to_owned()));
        let refused: Vec<_> = without.iter().filter_map(demanded).collect();
        if !refused.is_empty() {
            return Err(PolicyError::NoMomentum { tensors: refused });
        }
        if !without.is_empty() && without.len() == self.tensors.len() {
            let tensors = without.into_iter().map(|(name, reason)| (name.to_owned(), reason.to_owned())).collect();
            return Err(PolicyError::NoMomentumAtAll { tensors });
        }
        Ok(())
    }

    /// The contents of `entropic.state` before the first step.
    #[must_use]
    pub fn initial_state(&self) -> Vec<f32> {
        #[allow(clippy::cast_possible_truncation, reason = "initial values are small integers")]
        self.state.iter().flat_map(|f| std::iter::repeat_n(f.initial as f32, f.len)).collect()
    }

    /// The contents of `entropic.counters` before the first step.
    #[must_use]
    pub fn initial_counters(&self) -> Vec<i32> {
        vec![0; length(&self.counters)]
    }

    /// Position and length of a named field among `fields`.
    #[must_use]
    pub fn field<'a>(fields: &'a [Field], name: &str) -> Option<&'a Field> {
        fields.iter().find(|f| f.name == name)
    }
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it in so")]
fn is_one(steps: &NonZeroU32) -> bool {
    *steps == NonZeroU32::MIN
}

/// Number of elements of all fields together.
#[must_use]
pub fn length(fields: &[Field]) -> usize {
    fields.last().map_or(0, |f| f.offset + f.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Estimator;

    fn layout(policy: &Policy) -> ControllerLayout {
        let tensor = |name: &str| ControlledTensor {
            name: name.into(),
            input: 0,
            elements: 4,
            rank: 1,
            measured: "%g".into(),
            scaling: None,
        };
        ControllerLayout::new(vec![tensor("p['a']"), tensor("p['b']")], policy, StepFacts::default()).unwrap()
    }

    #[test]
    fn fields_lie_side_by_side() {
        let layout = layout(&Policy::default());
        for fields in [&layout.policy, &layout.state, &layout.counters, &layout.telemetry] {
            let mut end = 0;
            for field in fields {
                assert_eq!(field.offset, end, "{}", field.name);
                end += field.len;
            }
            assert_eq!(end, length(fields));
        }
        assert_eq!(layout.initial_state().len(), length(&layout.state));
        assert_eq!(layout.policy_vector(&Policy::default()).unwrap().len(), length(&layout.policy));
    }

    #[test]
    fn numbers_may_change_and_structure_may_not() {
        let mut policy = Policy::monitor();
        policy.scale.tensors.insert("*".into(), 1.0);
        let injected = layout(&policy);
        policy.scale.tensors.insert("*['b']".into(), 0.5);
        assert_eq!(injected.policy_vector(&policy).unwrap()[length(&injected.policy) - 2..], [1.0, 0.5]);
        policy.entropy.smoothing = 4;
        let error = injected.policy_vector(&policy).unwrap_err().to_string();
        assert!(error.contains("entropy.smoothing = 3") && error.contains("says 4"), "{error}");
        assert!(injected.policy_vector(&Policy::default()).unwrap_err().to_string().contains("gate"));
        assert!(injected.policy_vector(&Policy::monitor()).is_ok());
        policy.entropy.smoothing = 3;
        policy.entropy.temperature = 2.0;
        assert_eq!(injected.policy_vector(&policy).unwrap()[0], 2.0);
        policy.entropy.estimator = Estimator::Softmax;
        let error = injected.policy_vector(&policy).unwrap_err().to_string();
        assert!(error.contains("entropy.estimator = energy") && error.contains("says softmax"), "{error}");
        policy.entropy = EntropyPolicy::default();
        assert!(layout(&Policy::monitor()).policy_vector(&policy).unwrap_err().to_string().contains("scale"));
        assert!(layout(&Policy::default()).policy_vector(&Policy::monitor()).is_ok());
    }

    #[test]
    fn forgetting_rate_halves_in_a_half_life() {
        for half_life in [1.0, 3.0, 1000.0, 1e6] {
            let kept = (1.0 - forgetting_rate(half_life)).powf(half_life);
            assert!((kept - 0.5).abs() < 1e-9, "{half_life}: {kept}");
        }
    }
}
