//! The control law, one step at a time, in `f64`.

use ndarray::{Array1, Array2, Axis};

use super::Statistics;
use super::switch::{Projections, Seen, Switch, Switched};
use crate::control::NEGLIGIBLE;
use crate::layout::{forgetting_rate, micro_numbers};
use crate::policy::{Policy, TargetKind, TensorLaws, Timing, Votes};

/// The controller's state; arrays have one element per tensor and a last one for the whole gradient.
#[derive(Debug, Clone)]
pub struct Controller {
    /// The entropies that targets and ratios are of in the next step, NaN where there is none; those of its gradients where
    /// there are none at all.
    pub signal: Option<Array1<f64>>,
    /// The largest entropy of each tensor and of all, in nats; 0 where there is none.
    most_nats: Array1<f64>,
    /// Entropies of the last accepted steps, newest first; NaN where there is none.
    window: Array2<f64>,
    mean: Forgetting,
    target: Array1<f64>,
    target_factor: f64,
    norm: Forgetting,
    norm_deviation: Forgetting,
    /// Norms and global entropies of the steps refused since the last accepted one.
    paused: Vec<(f64, f64)>,
    /// Number of elements of each tensor, and what the policy's groups and patterns say of its laws.
    elements: Vec<u64>,
    tensor_laws: Vec<TensorLaws>,
    /// Logarithms of the scales of the laws.
    micro_log: Array1<f64>,
    lr_log: f64,
    momentum_log: f64,
    integral: f64,
    backoff_log: f64,
    refused_streak: u64,
    calm_streak: u64,
    /// The switch of the optimizer.
    pub switch: Switch,
    /// Whether the step scales its loss, so that an overflow is no anomaly.
    pub loss_scaled: bool,
    /// Returns to the copies so far.
    pub rollbacks: u64,
    /// Copies taken so far.
    pub snapshots: u64,
    /// Overflows under the step's loss scale so far.
    pub loss_scale_skips: u64,
    /// Steps so far.
    pub steps: u64,
    /// Accepted steps so far.
    pub accepted: u64,
    /// Non-finite steps so far.
    pub non_finite: u64,
    /// Steps refused for their norm so far.
    pub refused_norm: u64,
    /// Steps refused for too low an entropy so far.
    pub refused_low: u64,
    /// Steps refused for too high an entropy so far.
    pub refused_high: u64,
    /// Re-armings so far.
    pub rearmed: u64,
    /// Calibrations so far.
    pub calibrations: u64,
    since_calibration: u64,
    non_finite_streak: u64,
}

/// What one step comes to; NaN stands for an absent value.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The update is applied.
    pub applied: bool,
    /// The step enters the history.
    pub accepted: bool,
    /// The norm gate refused.
    pub norm_exceeded: bool,
    /// The entropy gate refused, for too low an entropy.
    pub entropy_low: bool,
    /// The entropy gate refused, for too high an entropy.
    pub entropy_high: bool,
    /// The gates were re-armed.
    pub rearmed: bool,
    /// Targets were calibrated.
    pub calibrated: bool,
    /// The run must stop.
    pub stop: bool,
    /// Held states returned to their copies.
    pub rolled_back: bool,
    /// The copies were renewed.
    pub snapshot_taken: bool,
    /// The scale of every learning rate that earlier returns left.
    pub backoff: f64,
    /// Which tensors SGD moved, where the optimizer may be switched.
    pub switched: Option<Switched>,
    /// Entropy of this step.
    pub entropy: Array1<f64>,
    /// Mean over the window.
    pub smoothed: Array1<f64>,
    /// The target.
    pub target: Array1<f64>,
    /// Smoothed over target.
    pub ratio: Array1<f64>,
    /// Norm of this step's gradient.
    pub norm: f64,
    /// The norm's running mean.
    pub norm_mean: f64,
    /// The norm above which this step would be refused; NaN where the gate is not armed.
    pub norm_threshold: f64,
    /// Scale of each tensor's update.
    pub scales: Array1<f64>,
    /// What the laws of all tensors make of the learning rate.
    pub lr_scale: f64,
    /// What they make of the momentum.
    pub momentum_scale: f64,
    /// What that comes to for each tensor.
    pub momentum_scales: Array1<f64>,
}

/// Σ wᵢxᵢ / Σ wᵢ with weights that halve in a half-life, by definition: numerator and weight apart.
#[derive(Debug, Clone)]
pub(super) struct Forgetting {
    numerator: Array1<f64>,
    weight: Array1<f64>,
}

impl Forgetting {
    pub(super) fn new(len: usize) -> Self {
        Self { numerator: Array1::zeros(len), weight: Array1::zeros(len) }
    }

    /// Takes in the elements of `x` that are not NaN.
    pub(super) fn observe(&mut self, x: &Array1<f64>, rate: f64) {
        for ((numerator, weight), &x) in self.numerator.iter_mut().zip(&mut self.weight).zip(x) {
            if !x.is_nan() {
                *numerator = (1.0 - rate) * *numerator + rate * x;
                *weight = (1.0 - rate) * *weight + rate;
            }
        }
    }

    pub(super) fn mean(&self) -> Array1<f64> {
        &self.numerator / &self.weight
    }
}

impl Controller {
    /// A controller before its first step, for tensors of these numbers of elements, all of two dimensions.
    #[must_use]
    pub fn new(elements: &[u64], policy: &Policy) -> Self {
        let all = elements.iter().sum();
        let most_nats: Array1<f64> = elements.iter().chain([&all]).map(|&n| policy.entropy.most_nats(n)).collect();
        let len = most_nats.len();
        Self {
            signal: None,
            most_nats,
            window: Array2::from_elem((policy.entropy.smoothing as usize, len), f64::NAN),
            mean: Forgetting::new(len),
            target: Array1::from_elem(len, f64::NAN),
            target_factor: 1.0,
            norm: Forgetting::new(1),
            norm_deviation: Forgetting::new(1),
            paused: Vec::new(),
            elements: elements.to_vec(),
            tensor_laws: vec![TensorLaws::default(); elements.len()],
            micro_log: Array1::zeros(elements.len()),
            lr_log: 0.0,
            momentum_log: 0.0,
            integral: 0.0,
            backoff_log: 0.0,
            switch: Switch::new(elements),
            refused_streak: 0,
            calm_streak: 0,
            loss_scaled: false,
            rollbacks: 0,
            snapshots: 0,
            loss_scale_skips: 0,
            steps: 0,
            accepted: 0,
            non_finite: 0,
            refused_norm: 0,
            refused_low: 0,
            refused_high: 0,
            rearmed: 0,
            calibrations: 0,
            since_calibration: 0,
            non_finite_streak: 0,
        }
    }

    /// From now on, what groups and patterns of the policy say of each tensor's laws.
    pub fn obey(&mut self, tensor_laws: Vec<TensorLaws>) {
        self.tensor_laws = tensor_laws;
    }

    /// The target now: fixed or from history, decayed; NaN where there is none.
    fn target(&self, policy: &Policy) -> Array1<f64> {
        let base = match policy.target.kind {
            TargetKind::History => self.target.clone(),
            TargetKind::Fixed => Array1::from_elem(self.target.len(), policy.target.value),
        };
        base * self.target_factor
    }

    /// The target of the whole gradient now; NaN where there is none.
    #[must_use]
    pub fn global_target(&self, policy: &Policy) -> f64 {
        last(&self.target(policy))
    }

    /// Entropies of tensors and of the whole gradient, from statistics of each and of the whole; NaN where a gradient
    /// is zero, not finite, or of one element.
    #[must_use]
    pub fn entropies(&self, statistics: &[Statistics]) -> Array1<f64> {
        let entropy = |(s, &most): (&Statistics, &f64)| {
            let active = representable(s.energy) && s.energy >= f64::from(f32::MIN_POSITIVE) && most > 0.0;
            if active { (s.nats / most).clamp(0.0, 1.0) } else { f64::NAN }
        };
        statistics.iter().zip(&self.most_nats).map(entropy).collect()
    }

    /// One step of control, with statistics of each tensor and last those of the whole gradient, and with how the
    /// optimizer steps (of no account where the policy never switches it).
    pub fn step(&mut self, statistics: &[Statistics], projections: &Projections, policy: &Policy) -> Step {
        let gate = &policy.gate;
        let total = statistics.last().map_or(0.0, |whole| whole.energy);
        let finite = representable(total);
        let entropy = self.entropies(statistics);
        let norm = total.sqrt();

        let norm_mean = self.norm.mean().sum();
        let armed = gate.norm.enabled && self.accepted >= u64::from(gate.norm.warmup) && !norm_mean.is_nan();
        // There is no deviation before the second norm.
        let deviation = self.norm_deviation.mean().sum();
        let usual = norm_mean + gate.norm.deviations * if deviation.is_nan() { 0.0 } else { deviation };
        let norm_threshold = if armed { usual.max(gate.norm.multiple * norm_mean) } else { f64::NAN };
        let by_norm = finite && norm > norm_threshold;
        let whole = last(&entropy);
        let before = last(&self.target(policy));
        let armed = gate.entropy.enabled && self.accepted >= u64::from(gate.entropy.warmup) && before > 0.0;
        let low = armed && whole / before < gate.entropy.low;
        let high = armed && whole / before > gate.entropy.high;
        let votes = [(gate.norm.enabled, by_norm), (gate.entropy.enabled, low || high)];
        let any = votes.iter().any(|&(_, cast)| cast);
        let paused = match gate.votes {
            Votes::Any => any,
            Votes::All => any && votes.iter().all(|&(enabled, cast)| cast || !enabled),
        };
        let applied = !paused && (finite || !gate.non_finite);
        let accepted = applied && finite;
        let [norm_exceeded, entropy_low, entropy_high] = [by_norm, low, high].map(|vote| vote && paused);

        self.steps += 1;
        self.accepted += u64::from(accepted);
        let skipped = self.loss_scaled && !finite;
        self.non_finite += u64::from(!finite && !skipped);
        self.loss_scale_skips += u64::from(skipped);
        self.refused_norm += u64::from(norm_exceeded);
        self.refused_low += u64::from(entropy_low);
        self.refused_high += u64::from(entropy_high);
        self.non_finite_streak = if finite { 0 } else { self.non_finite_streak + 1 };
        let stop = gate.non_finite && self.non_finite_streak >= u64::from(gate.max_pause);

        let (rolled_back, snapshot_taken, backoff) = if policy.rollback.keeps_snapshot() {
            self.rollback(accepted, !applied && !skipped, norm, policy)
        } else {
            (false, false, 1.0)
        };
        let followed = self.signal.clone().unwrap_or_else(|| entropy.clone());
        let calibrated = accepted && self.observe(&followed, norm, policy);
        let rearmed = paused && self.pause(norm, if self.signal.is_some() { f64::NAN } else { whole }, policy);

        let smoothed = self.window.map_axis(Axis(0), |row| {
            let present: Vec<f64> = row.iter().copied().filter(|e| !e.is_nan()).collect();
            #[allow(clippy::cast_precision_loss, reason = "a window is short")]
            let count = present.len() as f64;
            present.iter().sum::<f64>() / count
        });
        let target = self.target(policy);
        let mut ratio = &smoothed / &target;
        ratio.zip_mut_with(&target, |r, &t| *r = if t > 0.0 { *r } else { f64::NAN });
        let seen = Seen { accepted, steps: self.steps, accepted_steps: self.accepted, entropy: whole };
        let switched = policy.switch.enabled.then(|| self.switch.step(&policy.switch, projections, seen));
        let (scales, lr_scale, momentum_scale, momentum_scales) = self.laws(&ratio, accepted, policy);
        let scales = scales * backoff;
        Step {
            applied,
            accepted,
            norm_exceeded,
            entropy_low,
            entropy_high,
            rearmed,
            calibrated,
            stop,
            rolled_back,
            snapshot_taken,
            backoff,
            switched,
            entropy,
            smoothed,
            target,
            ratio,
            norm,
            norm_mean: self.norm.mean().sum(),
            norm_threshold,
            scales,
            lr_scale,
            momentum_scale,
            momentum_scales,
        }
    }

    /// One step of the laws: scales of the tensors' updates (by the laws alone), of every learning rate, of the momentum,
    /// and of each tensor's momentum.
    fn laws(&mut self, ratio: &Array1<f64>, accepted: bool, policy: &Policy) -> (Array1<f64>, f64, f64, Array1<f64>) {
        let laws = &policy.laws;
        let log_max = laws.max.ln();
        let before = (self.micro_log.clone(), self.lr_log, self.momentum_log);
        let acts = |period: u32| {
            accepted && self.accepted > u64::from(laws.warmup) && self.accepted.is_multiple_of(u64::from(period))
        };
        if laws.micro.enabled && acts(laws.micro.period) {
            let tensors = self.elements.iter().zip(&self.tensor_laws);
            for ((log, &r), (&n, tensor)) in self.micro_log.iter_mut().zip(ratio).zip(tensors) {
                let (below, factor) = micro_numbers(&laws.micro, tensor.micro, n, 2);
                let log_max = tensor.log_max(laws);
                if r < below {
                    *log = (*log + factor).clamp(-log_max, log_max);
                } else if !r.is_nan() {
                    *log *= 1.0 - laws.micro.relax;
                }
            }
        }
        let whole = last(ratio);
        let rule = &laws.rule;
        if rule.enabled && acts(rule.period) && !whole.is_nan() {
            let moved = |log: f64, low: f64, high: f64, limit: f64| {
                if whole > rule.high {
                    (log + high.ln()).clamp(-limit, limit)
                } else if whole < rule.low {
                    (log + low.ln()).clamp(-limit, limit)
                } else {
                    log * (1.0 - rule.relax)
                }
            };
            self.lr_log = moved(self.lr_log, rule.lr_low, rule.lr_high, log_max);
            self.momentum_log = moved(self.momentum_log, rule.momentum_low, rule.momentum_high, rule.momentum_max.ln());
        }
        if laws.pi.enabled && acts(laws.pi.period) && whole > 0.0 {
            let error = whole.ln();
            let wanted = laws.pi.kp * error + laws.pi.ki * (self.integral + error);
            self.lr_log = wanted.clamp(-log_max, log_max);
            if (wanted - self.lr_log) * error <= 0.0 {
                self.integral += error;
            }
        }
        let (micro, lr, momentum) = match laws.timing {
            Timing::Sync => (self.micro_log.clone(), self.lr_log, self.momentum_log),
            Timing::Delayed => before,
        };
        let clamped = |log: f64, limit: f64| log.clamp(-limit, limit).exp();
        let tensors = micro.iter().zip(&self.tensor_laws);
        let scales = tensors.map(|(log, tensor)| clamped(log + lr, tensor.log_max(laws))).collect();
        let momenta = self.tensor_laws.iter().map(|tensor| clamped(momentum, tensor.momentum_log_max(laws))).collect();
        (scales, lr.exp(), momentum.exp(), momenta)
    }

    /// One step of the copies: whether states returned, whether copies were taken, and the back-off of this step.
    fn rollback(&mut self, accepted: bool, refused: bool, norm: f64, policy: &Policy) -> (bool, bool, f64) {
        let rollback = &policy.rollback;
        let backoff = self.backoff_log.exp();
        self.refused_streak = if accepted { 0 } else { self.refused_streak + u64::from(refused) };
        let returns = refused && self.refused_streak == u64::from(rollback.patience) && self.snapshots > 0;
        self.calm_streak += u64::from(accepted);
        let mean = self.norm.mean().sum();
        let ordinary = mean.is_nan() || norm <= rollback.calm * mean;
        let takes = accepted && ordinary && self.calm_streak >= u64::from(rollback.refresh);
        if refused || takes {
            self.calm_streak = 0;
        }
        self.rollbacks += u64::from(returns);
        self.snapshots += u64::from(takes);
        if returns {
            self.backoff_log = (self.backoff_log + rollback.backoff.ln()).max(rollback.backoff_min.ln());
        } else if accepted {
            self.backoff_log *= 1.0 - forgetting_rate(rollback.recover);
            if self.backoff_log > -f64::from(NEGLIGIBLE) {
                self.backoff_log = 0.0;
            }
        }
        (returns, takes, backoff)
    }

    /// Takes in an accepted step; returns whether it calibrated the targets.
    fn observe(&mut self, entropy: &Array1<f64>, norm: f64, policy: &Policy) -> bool {
        for (mut column, &e) in self.window.columns_mut().into_iter().zip(entropy) {
            if e.is_nan() {
                continue;
            }
            let mut newer = e;
            for slot in &mut column {
                newer = std::mem::replace(slot, newer);
            }
        }
        self.mean.observe(entropy, forgetting_rate(policy.target.half_life));
        let rate = forgetting_rate(policy.gate.norm.half_life);
        self.norm_deviation.observe(&(self.norm.mean() - norm).abs(), rate);
        self.norm.observe(&Array1::from_elem(1, norm), rate);
        self.paused.clear();
        self.target_factor *= policy.target.decay;
        self.since_calibration += 1;
        let period = if self.calibrations == 0 { policy.target.first } else { policy.target.every };
        let due = self.since_calibration >= u64::from(period);
        if due {
            self.since_calibration = 0;
            self.calibrations += 1;
            for (target, mean) in self.target.iter_mut().zip(self.mean.mean()) {
                *target = if mean.is_nan() { *target } else { mean };
            }
            if policy.target.kind == TargetKind::History {
                self.target_factor = 1.0;
            }
        }
        due
    }

    /// Takes in a step that a gate refused; returns whether that re-armed the gates.
    fn pause(&mut self, norm: f64, entropy: f64, policy: &Policy) -> bool {
        self.paused.push((norm, entropy));
        if self.paused.len() < policy.gate.max_pause as usize {
            return false;
        }
        let paused = std::mem::take(&mut self.paused);
        let norm = mean(paused.iter().map(|&(norm, _)| norm));
        self.norm.numerator = &self.norm.weight * norm;
        let entropy = mean(paused.iter().map(|&(_, entropy)| entropy).filter(|e| !e.is_nan()));
        if policy.target.kind == TargetKind::History {
            self.target_factor = 1.0;
            let weight = last(&self.mean.weight);
            let slots = [(self.mean.numerator.last_mut(), entropy * weight), (self.target.last_mut(), entropy)];
            for (slot, value) in slots {
                if let Some(slot) = slot.filter(|old| !old.is_nan() && !entropy.is_nan()) {
                    *slot = value;
                }
            }
        }
        self.rearmed += 1;
        true
    }
}

/// The element of the whole gradient.
fn last(values: &Array1<f64>) -> f64 {
    values.last().copied().unwrap_or(f64::NAN)
}

/// NaN for no values.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    sum / count
}

/// Whether a sum is finite on the device, which computes in `f32`.
fn representable(energy: f64) -> bool {
    energy <= f64::from(f32::MAX)
}
