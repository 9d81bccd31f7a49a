//! The control law, one step at a time, in `f64`.

use ndarray::{Array1, Array2, Axis};

use super::Statistics;
use crate::layout::forgetting_rate;
use crate::policy::Policy;

/// The controller's state; arrays have one element per tensor and a last one for the whole gradient.
#[derive(Debug, Clone)]
pub struct Controller {
    /// The largest entropy of each tensor and of all, in nats; 0 where there is none.
    most_nats: Array1<f64>,
    /// Entropies of the last accepted steps, newest first; NaN where there is none.
    window: Array2<f64>,
    mean: Forgetting,
    target: Array1<f64>,
    norm: Forgetting,
    paused_norms: f64,
    /// Steps so far.
    pub steps: u64,
    /// Accepted steps so far.
    pub accepted: u64,
    /// Non-finite steps so far.
    pub non_finite: u64,
    /// Steps refused for their norm so far.
    pub refused_norm: u64,
    /// Re-armings so far.
    pub rearmed: u64,
    /// Calibrations so far.
    pub calibrations: u64,
    since_calibration: u64,
    non_finite_streak: u64,
    norm_streak: u64,
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
    /// The norm gate was re-armed.
    pub rearmed: bool,
    /// Targets were calibrated.
    pub calibrated: bool,
    /// The run must stop.
    pub stop: bool,
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
}

/// Σ wᵢxᵢ / Σ wᵢ with weights that halve in a half-life, by definition: numerator and weight apart.
#[derive(Debug, Clone)]
struct Forgetting {
    numerator: Array1<f64>,
    weight: Array1<f64>,
}

impl Forgetting {
    fn new(len: usize) -> Self {
        Self { numerator: Array1::zeros(len), weight: Array1::zeros(len) }
    }

    /// Takes in the elements of `x` that are not NaN.
    fn observe(&mut self, x: &Array1<f64>, rate: f64) {
        for ((numerator, weight), &x) in self.numerator.iter_mut().zip(&mut self.weight).zip(x) {
            if !x.is_nan() {
                *numerator = (1.0 - rate) * *numerator + rate * x;
                *weight = (1.0 - rate) * *weight + rate;
            }
        }
    }

    fn mean(&self) -> Array1<f64> {
        &self.numerator / &self.weight
    }
}

impl Controller {
    /// A controller before its first step, for tensors of these numbers of elements.
    #[must_use]
    pub fn new(elements: &[u64], policy: &Policy) -> Self {
        let all = elements.iter().sum();
        let most_nats: Array1<f64> = elements.iter().chain([&all]).map(|&n| policy.entropy.most_nats(n)).collect();
        let len = most_nats.len();
        Self {
            most_nats,
            window: Array2::from_elem((policy.entropy.smoothing as usize, len), f64::NAN),
            mean: Forgetting::new(len),
            target: Array1::from_elem(len, f64::NAN),
            norm: Forgetting::new(1),
            paused_norms: 0.0,
            steps: 0,
            accepted: 0,
            non_finite: 0,
            refused_norm: 0,
            rearmed: 0,
            calibrations: 0,
            since_calibration: 0,
            non_finite_streak: 0,
            norm_streak: 0,
        }
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

    /// One step of control, with statistics of each tensor and last those of the whole gradient.
    pub fn step(&mut self, statistics: &[Statistics], policy: &Policy) -> Step {
        let gate = &policy.gate;
        let total = statistics.last().map_or(0.0, |whole| whole.energy);
        let finite = representable(total);
        let entropy = self.entropies(statistics);
        let norm = total.sqrt();

        let norm_mean = self.norm.mean().sum();
        let armed = gate.norm.enabled && self.accepted >= u64::from(gate.norm.warmup) && !norm_mean.is_nan();
        let norm_exceeded = finite && armed && norm > gate.norm.multiple * norm_mean;
        let applied = !norm_exceeded && (finite || !gate.non_finite);
        let accepted = applied && finite;

        self.steps += 1;
        self.accepted += u64::from(accepted);
        self.non_finite += u64::from(!finite);
        self.refused_norm += u64::from(norm_exceeded);
        self.non_finite_streak = if finite { 0 } else { self.non_finite_streak + 1 };
        let stop = gate.non_finite && self.non_finite_streak >= u64::from(gate.max_pause);

        let calibrated = accepted && self.observe(&entropy, norm, policy);
        let rearmed = norm_exceeded && self.pause(norm, u64::from(gate.max_pause));

        let smoothed = self.window.map_axis(Axis(0), |row| {
            let present: Vec<f64> = row.iter().copied().filter(|e| !e.is_nan()).collect();
            #[allow(clippy::cast_precision_loss, reason = "a window is short")]
            let count = present.len() as f64;
            present.iter().sum::<f64>() / count
        });
        let mut ratio = &smoothed / &self.target;
        ratio.zip_mut_with(&self.target, |r, &t| *r = if t > 0.0 { *r } else { f64::NAN });
        Step {
            applied,
            accepted,
            norm_exceeded,
            rearmed,
            calibrated,
            stop,
            entropy,
            smoothed,
            target: self.target.clone(),
            ratio,
            norm,
            norm_mean: self.norm.mean().sum(),
        }
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
        self.norm.observe(&Array1::from_elem(1, norm), forgetting_rate(policy.gate.norm.half_life));
        self.paused_norms = 0.0;
        self.norm_streak = 0;
        self.since_calibration += 1;
        let period = if self.calibrations == 0 { policy.target.first } else { policy.target.every };
        let due = self.since_calibration >= u64::from(period);
        if due {
            self.since_calibration = 0;
            self.calibrations += 1;
            for (target, mean) in self.target.iter_mut().zip(self.mean.mean()) {
                *target = if mean.is_nan() { *target } else { mean };
            }
        }
        due
    }

    /// Takes in a step refused for its norm; returns whether that re-armed the gate.
    fn pause(&mut self, norm: f64, max_pause: u64) -> bool {
        self.paused_norms += norm;
        self.norm_streak += 1;
        if self.norm_streak < max_pause {
            return false;
        }
        #[allow(clippy::cast_precision_loss, reason = "a pause is short")]
        let seen = self.paused_norms / self.norm_streak as f64;
        self.norm.numerator = &self.norm.weight * seen;
        self.paused_norms = 0.0;
        self.norm_streak = 0;
        self.rearmed += 1;
        true
    }
}

/// Whether a sum is finite on the device, which computes in `f32`.
fn representable(energy: f64) -> bool {
    energy <= f64::from(f32::MAX)
}
