//! Energy and entropy of gradients by their definitions.

use ndarray::ArrayView1;

use crate::policy::{EntropyPolicy, Estimator, TemperatureUnit};

/// Statistics of one gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Σ g².
    pub energy: f64,
    /// −Σ p ln p in nats, with p as the estimator says; 0 for a zero gradient under `energy` and `magnitude`.
    pub nats: f64,
}

/// Statistics of each gradient, and last those of the whole: of all gradients, one after another, as one.
#[must_use]
pub fn statistics(gradients: &[ArrayView1<'_, f64>], entropy: &EntropyPolicy) -> Vec<Statistics> {
    let whole = gradients.iter().flat_map(|g| g.iter().copied());
    let temperature = match entropy.temperature_unit {
        TemperatureUnit::Literal => entropy.temperature,
        TemperatureUnit::Rms => entropy.temperature * (energy(whole.clone()) / count(whole.clone())).sqrt(),
    };
    let mut all: Vec<_> = gradients.iter().map(|g| of(g.iter().copied(), entropy, temperature)).collect();
    let whole = match all.as_slice() {
        [single] => *single,
        _ => of(whole, entropy, temperature),
    };
    all.push(whole);
    all
}

/// Statistics of what `gradient` runs through.
fn of(gradient: impl Iterator<Item = f64> + Clone, entropy: &EntropyPolicy, temperature: f64) -> Statistics {
    let magnitudes = gradient.clone().map(f64::abs);
    let nats = match entropy.estimator {
        Estimator::Energy => of_shares(gradient.clone().map(|g| g * g)),
        Estimator::Magnitude => of_shares(magnitudes),
        Estimator::Softmax => {
            let largest = magnitudes.clone().fold(0.0, f64::max);
            of_shares(magnitudes.map(|a| ((a - largest) / temperature).exp()))
        }
        Estimator::Histogram => {
            let edges: Vec<f64> = entropy.edges().into_iter().map(f64::from).collect();
            let mut counts = vec![0.0; edges.len() + 1];
            for a in magnitudes {
                if let Some(bin) = counts.get_mut(edges.partition_point(|&edge| edge <= a)) {
                    *bin += 1.0;
                }
            }
            of_shares(counts.iter().copied())
        }
    };
    Statistics { energy: energy(gradient), nats }
}

/// −Σ p ln p with p = x/Σx.
fn of_shares(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let total: f64 = x.clone().sum();
    x.map(|x| x / total).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum()
}

fn energy(gradient: impl Iterator<Item = f64>) -> f64 {
    gradient.map(|g| g * g).sum()
}

fn count(gradient: impl Iterator<Item = f64>) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "numbers of elements are far below 2^53")]
    let count = gradient.count() as f64;
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, array};

    fn policy(estimator: Estimator) -> EntropyPolicy {
        EntropyPolicy { estimator, ..EntropyPolicy::default() }
    }

    fn check(entropy: &EntropyPolicy, gradient: Array1<f64>, energy: f64, nats: f64) {
        let found = statistics(&[gradient.view()], entropy);
        let close = |s: &Statistics| (s.energy - energy).abs() < 1e-12 && (s.nats - nats).abs() < 1e-12;
        assert!(found.len() == 2 && found.iter().all(close), "{gradient}: {found:?} for {energy} {nats}");
    }

    /// Entropy of two shares.
    fn two(p: f64) -> f64 {
        -p * p.ln() - (1.0 - p) * (1.0 - p).ln()
    }

    #[test]
    fn by_hand() {
        let energy = policy(Estimator::Energy);
        check(&energy, array![1.0, 1.0, -1.0, 1.0], 4.0, 4.0_f64.ln());
        check(&energy, array![0.0, 3.0, 0.0], 9.0, 0.0);
        check(&energy, array![0.0, 0.0], 0.0, 0.0);
        check(&energy, array![1.0, 2.0], 5.0, two(0.2));
        check(&policy(Estimator::Magnitude), array![1.0, -3.0, 0.0], 10.0, two(0.25));
    }

    #[test]
    fn softmax_by_hand() {
        let literal = EntropyPolicy { temperature: 2.0, ..policy(Estimator::Softmax) };
        let p = 1.0 / (1.0 + 1.5_f64.exp());
        check(&literal, array![0.0, -3.0], 9.0, two(p));
        let rms = EntropyPolicy { temperature: 0.5, temperature_unit: TemperatureUnit::Rms, ..literal };
        let t = 0.5 * 4.5_f64.sqrt();
        check(&rms, array![0.0, -3.0], 9.0, two(1.0 / (1.0 + (3.0 / t).exp())));
        check(&rms, array![-2.0, 2.0, 2.0], 12.0, 3.0_f64.ln());
    }

    #[test]
    fn histogram_by_hand() {
        let four = EntropyPolicy { bins: 4, range: [-2.0, 2.0], ..policy(Estimator::Histogram) };
        // Bins begin at nothing, 1/2, 1 and 2.
        check(&four, array![0.5, 0.99, -0.5], 0.5 + 0.99 * 0.99, 0.0);
        check(&four, array![0.0, 0.49, 1.0, -1.5], 0.49 * 0.49 + 3.25, 2.0_f64.ln());
        check(&four, array![1e-30, 0.7, 1.0, 8.0], 0.49 + 65.0, 4.0_f64.ln());
    }

    #[test]
    fn the_whole_is_one_gradient() {
        let parts = [array![1.0, -2.0, 0.0], array![0.25], array![4.0, 1e-3]];
        let views: Vec<_> = parts.iter().map(|g| g.view()).collect();
        let joined = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
        for estimator in [Estimator::Energy, Estimator::Magnitude, Estimator::Softmax, Estimator::Histogram] {
            let whole = *statistics(&views, &policy(estimator)).last().unwrap();
            assert_eq!(whole, statistics(&[joined.view()], &policy(estimator))[0], "{estimator}");
        }
    }
}
