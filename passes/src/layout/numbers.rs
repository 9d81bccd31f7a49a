//! The numbers of a policy, as the program reads them: names, order and values of `entropic.policy`.

use super::structure::LawStructure;
use super::{ControlledTensor, NONE};
use crate::policy::{MicroPolicy, MicroTensor, Policy, PolicyError, TargetKind, TensorLaws, Votes};

type PolicyGetter = fn(&Policy) -> f64;

/// Numbers of the policy that every controller reads, in order.
const POLICY_FIELDS: &[(&str, PolicyGetter)] = &[
    (TEMPERATURE, |p| p.entropy.temperature),
    ("gate.non_finite", |p| flag(p.gate.non_finite)),
    ("gate.max_pause", |p| f64::from(p.gate.max_pause)),
    ("gate.all", |p| flag(p.gate.votes == Votes::All)),
    ("gate.norm.enabled", |p| flag(p.gate.norm.enabled)),
    ("gate.norm.multiple", |p| p.gate.norm.multiple),
    ("gate.norm.deviations", |p| p.gate.norm.deviations),
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

/// Those of updates whose singular values are made equal; off is a share of 0.
const SPECTRAL_FIELDS: &[(&str, PolicyGetter)] =
    &[(SPECTRAL_ALPHA, |p| only_if(p.spectral.enabled, p.spectral.alpha)), (SPECTRAL_TARGET, |p| p.spectral.target)];

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

/// Names of the policy's fields on singular values of updates, the last with an element for each tensor.
pub(crate) const SPECTRAL_ALPHA: &str = "spectral.alpha";
pub(crate) const SPECTRAL_TARGET: &str = "spectral.target";
pub(crate) const SPECTRAL_K: &str = "spectral.k";
/// The name of the telemetry's field with the spectral entropy of each tensor's update, and last their mean.
pub(crate) const SPECTRAL_ENTROPY: &str = "spectral_entropy";

/// The weight of one observation in an exponentially forgetting mean that forgets half in `half_life` steps.
#[must_use]
pub fn forgetting_rate(half_life: f64) -> f64 {
    -f64::exp_m1(-std::f64::consts::LN_2 / half_life)
}

/// Names and values of all numbers of a policy for these laws and tensors, in the order of `entropic.policy`.
pub(super) fn policy_numbers(
    laws: LawStructure,
    rollback: bool,
    switch: bool,
    spectral: bool,
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
        (spectral, SPECTRAL_FIELDS),
    ] {
        if present {
            numbers.extend(fields.iter().map(|(name, get)| (*name, vec![get(policy)])));
        }
    }
    if spectral {
        let said = policy.spectral_tensors(names())?;
        numbers.push((SPECTRAL_K, said.iter().map(|tensor| tensor.k.unwrap_or(policy.spectral.k)).collect()));
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
