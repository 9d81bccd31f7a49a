//! Energy and entropy of a gradient by their definitions.

use ndarray::ArrayView1;

/// Sufficient statistics of one gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Σ g².
    pub energy: f64,
    /// −Σ p ln p with p = g²/Σ g², in nats; 0 for a zero gradient.
    pub nats: f64,
}

/// Statistics of a gradient.
#[must_use]
pub fn statistics(gradient: ArrayView1<'_, f64>) -> Statistics {
    let energy: f64 = gradient.iter().map(|g| g * g).sum();
    let share = |g: &f64| g * g / energy;
    let nats = gradient.iter().map(share).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
    Statistics { energy, nats }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, array};

    #[test]
    fn by_hand() {
        let check = |gradient: Array1<f64>, energy: f64, nats: f64| {
            let found = statistics(gradient.view());
            assert!((found.energy - energy).abs() < 1e-12 && (found.nats - nats).abs() < 1e-12, "{found:?}");
        };
        check(array![1.0, 1.0, -1.0, 1.0], 4.0, 4.0_f64.ln());
        check(array![0.0, 3.0, 0.0], 9.0, 0.0);
        check(array![0.0, 0.0], 0.0, 0.0);
        let (p, q) = (0.2_f64, 0.8_f64);
        check(array![1.0, 2.0], 5.0, -p * p.ln() - q * q.ln());
    }
}
