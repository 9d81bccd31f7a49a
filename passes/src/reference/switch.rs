//! The switch of the optimizer, one step at a time, in `f64`.

use ndarray::Array1;

use super::controller::Forgetting;
use crate::layout::forgetting_rate;
use crate::policy::{SwitchPolicy, SwitchRate, Trigger};

/// How the optimizer steps: A·A and A·g, or m'·m' and A·m', of each tensor.
pub type Projections = [(f64, f64)];

/// What is kept from step to step.
#[derive(Debug, Clone)]
pub struct Switch {
    energy: Forgetting,
    product: Forgetting,
    reference: Array1<f64>,
    elements: Vec<u64>,
    trend: Forgetting,
    peak: f64,
    /// Whether the next step is SGD's.
    pub on: bool,
    /// How often that changed.
    pub switches: u64,
}

/// What one step comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Switched {
    /// Whether each tensor's update is SGD's.
    pub by_sgd: Vec<bool>,
    /// The projected rate of each; NaN where there is none.
    pub rates: Array1<f64>,
}

/// What of a step the switch looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) accepted: bool,
    /// Steps so far, this one included.
    pub(super) steps: u64,
    /// Accepted ones.
    pub(super) accepted_steps: u64,
    /// Global entropy; NaN where there is none.
    pub(super) entropy: f64,
}

impl Switch {
    pub(super) fn new(elements: &[u64]) -> Self {
        let n = elements.len();
        Self {
            energy: Forgetting::new(n),
            product: Forgetting::new(n),
            reference: Array1::from_elem(n, f64::NAN),
            elements: elements.to_vec(),
            trend: Forgetting::new(1),
            peak: 0.0,
            on: false,
            switches: 0,
        }
    }

    pub(super) fn step(&mut self, policy: &SwitchPolicy, projections: &Projections, seen: Seen) -> Switched {
        let usable = |rate: f64| {
            let sensible = rate.abs() >= f64::from(f32::MIN_POSITIVE) && rate.abs() <= f64::from(f32::MAX);
            sensible && (policy.rate == SwitchRate::Nearest || rate > 0.0)
        };
        let quotients = match policy.rate {
            SwitchRate::Nearest => self.product.mean() / self.energy.mean(),
            SwitchRate::Swats => self.energy.mean() / self.product.mean(),
        };
        let rates = quotients.mapv(|r| if usable(r) { r } else { f64::NAN });
        let by_sgd: Vec<bool> = rates.iter().map(|r| self.on && !r.is_nan()).collect();
        if seen.accepted {
            self.observe(policy, projections, &by_sgd);
        }
        let warm = seen.accepted_steps > u64::from(policy.warmup);
        let (fires, returns) = match policy.trigger {
            Trigger::Step => (seen.steps >= u64::from(policy.step), false),
            Trigger::Settled => (self.settled(policy, &rates, seen) && warm, false),
            Trigger::Entropy => self.by_entropy(policy, seen, warm),
        };
        let next = if self.on { !returns } else { fires };
        self.switches += u64::from(next != self.on);
        self.on = next;
        Switched { by_sgd, rates }
    }

    fn observe(&mut self, policy: &SwitchPolicy, projections: &Projections, in_use: &[bool]) {
        let countable = |&(energy, product): &(f64, f64)| {
            let normal = energy >= f64::from(f32::MIN_POSITIVE) && energy <= f64::from(f32::MAX);
            normal && product.abs() <= f64::from(f32::MAX)
        };
        let taken = |(p, &used): (&(f64, f64), &bool)| {
            if countable(p) && !used { *p } else { (f64::NAN, f64::NAN) }
        };
        let (energies, products): (Vec<_>, Vec<_>) = projections.iter().zip(in_use).map(taken).unzip();
        let rate = forgetting_rate(policy.half_life);
        self.energy.observe(&Array1::from(energies), rate);
        self.product.observe(&Array1::from(products), rate);
    }

    fn settled(&mut self, policy: &SwitchPolicy, rates: &Array1<f64>, seen: Seen) -> bool {
        if !seen.accepted || !seen.accepted_steps.is_multiple_of(u64::from(policy.period)) {
            return false;
        }
        let (mut sum, mut weight) = (0.0, 0.0);
        for ((rate, reference), &elements) in rates.iter().zip(&self.reference).zip(&self.elements) {
            let movement = (rate / reference).abs().ln().abs();
            if !movement.is_nan() {
                #[allow(clippy::cast_precision_loss, reason = "a weight")]
                let size = elements as f64;
                sum += size * movement;
                weight += size;
            }
        }
        self.reference.clone_from(rates);
        weight > 0.0 && sum / weight < policy.tolerance
    }

    fn by_entropy(&mut self, policy: &SwitchPolicy, seen: Seen, warm: bool) -> (bool, bool) {
        if seen.accepted {
            self.trend.observe(&Array1::from_elem(1, seen.entropy), forgetting_rate(policy.half_life));
        }
        let trend = self.trend.mean().sum();
        let trend = if trend.is_nan() { 0.0 } else { trend };
        if warm {
            self.peak = self.peak.max(trend);
        }
        let returns = policy.return_above > 0.0 && trend > policy.return_above * self.peak;
        (warm && trend < policy.share * self.peak, returns)
    }
}
