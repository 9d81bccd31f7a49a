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

use serde::{Deserialize, Serialize};

use crate::policy::{
    EntropyPolicy, MicroPolicy, MicroTensor, Policy, PolicyError, SwitchRate, TargetKind, TensorLaws, Timing, Trigger,
    Votes,
};

/// The version of the layout format that this crate reads and writes.
pub const LAYOUT_FORMAT_VERSION: u32 = 1;

/// Marks an absent entropy, target or ratio in state and telemetry; none of them is ever negative.
pub(crate) const NONE: f32 = -1.0;

/// What the controller adds to a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControllerLayout {
    /// [`LAYOUT_FORMAT_VERSION`].
    pub format_version: u32,
    /// The policy's `[entropy]` at injection; what of it shapes the graph cannot be changed.
    pub entropy: EntropyPolicy,
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
    /// Bytes of all copies of held states together: so much more memory on the device, and as much that is read and
    /// written in every step. 0 without copies.
    pub snapshot_bytes: u64,
}

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

    fn of(policy: &Policy) -> Self {
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
    fn of(policy: &Policy) -> Option<Self> {
        let switch = &policy.switch;
        switch.enabled.then_some(Self { trigger: switch.trigger, rate: switch.rate })
    }

    /// Fields of the state, and whether they have an element for each tensor.
    fn state(self) -> Vec<(&'static str, bool)> {
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
    fn telemetry(self) -> Vec<&'static str> {
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

type PolicyGetter = fn(&Policy) -> f64;

/// Numbers of the policy that every controller reads, in order.
const POLICY_FIELDS: &[(&str, PolicyGetter)] = &[
    (TEMPERATURE, |p| p.entropy.temperature),
    ("gate.non_finite", |p| flag(p.gate.non_finite)),
    ("gate.max_pause", |p| f64::from(p.gate.max_pause)),
    ("gate.all", |p| flag(p.gate.votes == Votes::All)),
    ("gate.norm.enabled", |p| flag(p.gate.norm.enabled)),
    ("gate.norm.multiple", |p| p.gate.norm.multiple),
    ("gate.norm.rate", |p| forgetting_rate(p.gate.norm.half_life)),
    ("gate.norm.warmup", |p| f64::from(p.gate.norm.warmup)),
    ("gate.entropy.enabled", |p| flag(p.gate.entropy.enabled)),
    ("gate.entropy.low", |p| p.gate.entropy.low),
    ("gate.entropy.high", |p| p.gate.entropy.high),
    ("gate.entropy.warmup", |p| f64::from(p.gate.entropy.warmup)),
    ("target.fixed", |p| if p.target.kind == TargetKind::Fixed { p.target.value } else { f64::from(NONE) }),
    ("target.decay", |p| p.target.decay),
    ("target.rate", |p| forgetting_rate(p.target.half_life)),
    ("target.first", |p| f64::from(p.target.first)),
    ("target.every", |p| f64::from(p.target.every)),
    ("scale.global", |p| p.scale.global),
];

/// Those of all laws.
const LAW_FIELDS: &[(&str, PolicyGetter)] =
    &[("laws.warmup", |p| f64::from(p.laws.warmup)), ("laws.log_max", |p| p.laws.max.ln())];

const MICRO_FIELDS: &[(&str, PolicyGetter)] =
    &[("laws.micro.relax", |p| p.laws.micro.relax), ("laws.micro.period", |p| f64::from(p.laws.micro.period))];

/// Those of a switch of the optimizer.
const SWITCH_FIELDS: &[(&str, PolicyGetter)] = &[
    ("switch.enabled", |p| flag(p.switch.enabled)),
    ("switch.step", |p| f64::from(p.switch.step)),
    ("switch.warmup", |p| f64::from(p.switch.warmup)),
    ("switch.forgetting", |p| forgetting_rate(p.switch.half_life)),
    ("switch.tolerance", |p| p.switch.tolerance),
    ("switch.period", |p| f64::from(p.switch.period)),
    ("switch.share", |p| p.switch.share),
    ("switch.return_above", |p| p.switch.return_above),
    ("switch.factor", |p| p.switch.factor),
];

/// Those of a rollback to a snapshot; a patience of 0 is never exceeded.
const ROLLBACK_FIELDS: &[(&str, PolicyGetter)] = &[
    ("rollback.patience", |p| only_if(p.rollback.keeps_snapshot(), f64::from(p.rollback.patience))),
    ("rollback.refresh", |p| f64::from(p.rollback.refresh)),
    ("rollback.calm", |p| p.rollback.calm),
    ("rollback.log_backoff", |p| p.rollback.backoff.ln()),
    ("rollback.log_min", |p| p.rollback.backoff_min.ln()),
    ("rollback.kept", |p| 1.0 - forgetting_rate(p.rollback.recover)),
];

/// What a law multiplies or adds: a law that is in the module and off in the policy does neither.
fn only_if(enabled: bool, value: f64) -> f64 {
    if enabled { value } else { 0.0 }
}

const RULE_FIELDS: &[(&str, PolicyGetter)] = &[
    ("laws.rule.low", |p| p.laws.rule.low),
    ("laws.rule.high", |p| p.laws.rule.high),
    ("laws.rule.lr_low", |p| only_if(p.laws.rule.enabled, p.laws.rule.lr_low.ln())),
    ("laws.rule.lr_high", |p| only_if(p.laws.rule.enabled, p.laws.rule.lr_high.ln())),
    ("laws.rule.momentum_low", |p| only_if(p.laws.rule.enabled, p.laws.rule.momentum_low.ln())),
    ("laws.rule.momentum_high", |p| only_if(p.laws.rule.enabled, p.laws.rule.momentum_high.ln())),
    ("laws.rule.momentum_log_max", |p| p.laws.rule.momentum_max.ln()),
    ("laws.rule.relax", |p| p.laws.rule.relax),
    ("laws.rule.period", |p| f64::from(p.laws.rule.period)),
];

const PI_FIELDS: &[(&str, PolicyGetter)] = &[
    ("laws.pi.kp", |p| only_if(p.laws.pi.enabled, p.laws.pi.kp)),
    ("laws.pi.ki", |p| only_if(p.laws.pi.enabled, p.laws.pi.ki)),
    ("laws.pi.period", |p| f64::from(p.laws.pi.period)),
];

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Bound and logarithmic factor of the law of one tensor.
///
/// A tensor without the law has the factor 1: its scale stays where it is, which is 1.
pub(crate) fn micro_numbers(micro: &MicroPolicy, said: MicroTensor, elements: u64, rank: u32) -> (f64, f64) {
    let large = elements >= micro.min_elements && rank >= micro.min_rank;
    let acts = micro.enabled && said.enabled.unwrap_or(large);
    let factor = if acts { said.factor.unwrap_or(micro.factor) } else { 1.0 };
    (said.below.unwrap_or(micro.below), factor.ln())
}

/// The name of the policy field that holds T of `softmax`, in its unit.
pub(crate) const TEMPERATURE: &str = "entropy.temperature";

/// The name of the policy field that holds the per-tensor scales.
pub(crate) const TENSOR_SCALES: &str = "scale.tensors";
/// That of the ratio of each tensor below which its law raises.
pub(crate) const MICRO_BELOW: &str = "laws.micro.below";
/// That of the logarithm of the factor of one raise, per tensor.
pub(crate) const MICRO_FACTOR: &str = "laws.micro.log_factor";

/// The name of the state's field that holds the logarithm of all back-offs together.
pub(crate) const BACKOFF_LOG: &str = "backoff_log";

/// The name of the telemetry's field that holds the projected rate of each tensor, 0 where there is none.
pub(crate) const SWITCH_RATE: &str = "switch_rate";

/// Those of the logarithms of each tensor's clamps, where a group sets one: of the learning rate, and of the momentum.
pub(crate) const TENSOR_LOG_MAX: &str = "laws.tensors.log_max";
pub(crate) const TENSOR_MOMENTUM_LOG_MAX: &str = "laws.tensors.momentum_log_max";

/// Names of the policy's fields on momentum, and of that in telemetry.
pub(crate) const MOMENTUM_SCALE: &str = "momentum.scale";
pub(crate) const MOMENTUM_CAP: &str = "momentum.cap";
pub(crate) const MOMENTUM_TENSORS: &str = "momentum.tensors";
pub(crate) const MOMENTUM: &str = "momentum";

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

/// The weight of one observation in an exponentially forgetting mean that forgets half in `half_life` steps.
#[must_use]
pub fn forgetting_rate(half_life: f64) -> f64 {
    -f64::exp_m1(-std::f64::consts::LN_2 / half_life)
}

/// Names and values of all numbers of a policy for these laws and tensors, in the order of `entropic.policy`.
fn policy_numbers(
    laws: LawStructure,
    rollback: bool,
    switch: bool,
    scaled_momentum: bool,
    tensors: &[ControlledTensor],
    policy: &Policy,
) -> Result<Vec<(&'static str, Vec<f64>)>, PolicyError> {
    let names = || tensors.iter().map(|t| t.name.as_str());
    let mut numbers = Vec::new();
    for (present, fields) in [
        (true, POLICY_FIELDS),
        (laws.any(), LAW_FIELDS),
        (laws.micro, MICRO_FIELDS),
        (laws.rule, RULE_FIELDS),
        (laws.pi, PI_FIELDS),
        (rollback, ROLLBACK_FIELDS),
        (switch, SWITCH_FIELDS),
    ] {
        if present {
            numbers.extend(fields.iter().map(|(name, get)| (*name, vec![get(policy)])));
        }
    }
    numbers.push((TENSOR_SCALES, policy.tensor_scales(names())?));
    if scaled_momentum {
        let momentum = &policy.momentum;
        numbers.extend([(MOMENTUM_SCALE, vec![momentum.scale]), (MOMENTUM_CAP, vec![momentum.cap])]);
        numbers.push((MOMENTUM_TENSORS, policy.tensor_momentum(names())?));
    }
    let said = policy.tensor_laws(names())?;
    if laws.micro {
        let micro = &policy.laws.micro;
        let of = |(tensor, said): (&ControlledTensor, &TensorLaws)| {
            micro_numbers(micro, said.micro, tensor.elements, tensor.rank)
        };
        let (below, factor) = tensors.iter().zip(&said).map(of).unzip();
        numbers.extend([(MICRO_BELOW, below), (MICRO_FACTOR, factor)]);
    }
    if laws.clamps {
        numbers.push((TENSOR_LOG_MAX, said.iter().map(|tensor| tensor.log_max(&policy.laws)).collect()));
        if laws.rule && scaled_momentum {
            let log_max = said.iter().map(|tensor| tensor.momentum_log_max(&policy.laws)).collect();
            numbers.push((TENSOR_MOMENTUM_LOG_MAX, log_max));
        }
    }
    Ok(numbers)
}

struct Fields(Vec<Field>);

impl Fields {
    fn push(&mut self, name: &str, len: usize, initial: f64) {
        let offset = self.0.last().map_or(0, |f| f.offset + f.len);
        self.0.push(Field { name: name.to_owned(), offset, len, initial });
    }
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
        let mut numbers = Fields(Vec::new());
        for (name, values) in policy_numbers(laws, rollback, switch.is_some(), scaled_momentum, &tensors, policy)? {
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
        for name in
            ["norm_mean", "norm_carry", "norm_weight", "paused_norms", "paused_entropies", "paused_entropy_count"]
        {
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

        Ok(Self {
            format_version: LAYOUT_FORMAT_VERSION,
            entropy: policy.entropy.clone(),
            gated: policy.gates(),
            scaled: policy.scales(),
            laws,
            scaled_momentum,
            rollback,
            switch,
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
            snapshot_bytes: 0,
        })
    }

    /// The contents of `entropic.policy` for a policy, which may differ from that of the injection in numbers.
    ///
    /// # Errors
    ///
    /// Where the policy differs in structure, or a pattern names no tensor.
    pub fn policy_vector(&self, policy: &Policy) -> Result<Vec<f32>, PolicyError> {
        let structure = |key, injected: &dyn ToString, wanted: &dyn ToString| {
            let (injected, wanted) = (injected.to_string(), wanted.to_string());
            if injected == wanted { Ok(()) } else { Err(PolicyError::Structure { key, injected, wanted }) }
        };
        for ((key, injected), (_, wanted)) in self.entropy.structure().iter().zip(policy.entropy.structure()) {
            structure(key, injected, &wanted)?;
        }
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
        self.check_momentum(policy)?;
        let numbers = policy_numbers(
            self.laws,
            self.rollback,
            self.switch.is_some(),
            self.scaled_momentum,
            &self.tensors,
            policy,
        )?;
        #[allow(clippy::cast_possible_truncation, reason = "the device computes in f32")]
        Ok(numbers.into_iter().flat_map(|(_, values)| values).map(|v| v as f32).collect())
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
