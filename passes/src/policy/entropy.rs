//! The policy's `[entropy]`: how gradients become entropies.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Checks, PolicyError};

/// How gradients become entropies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EntropyPolicy {
    /// What the shares are made of. Structure.
    pub estimator: Estimator,
    /// T of `softmax`, in [`EntropyPolicy::temperature_unit`].
    pub temperature: f64,
    /// What T of `softmax` is measured in. Structure.
    pub temperature_unit: TemperatureUnit,
    /// The number of bins of `histogram`. Structure.
    pub bins: u32,
    /// Where the bins of `histogram` begin and end, as log2 |g|. Structure.
    pub range: [f64; 2],
    /// The number of accepted steps in the moving average. Structure.
    pub smoothing: u32,
}

/// What the shares of a gradient are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// `p = g² / Σg²`.
    Energy,
    /// `p = |g| / Σ|g|`.
    Magnitude,
    /// `p = softmax(|g| / T)`.
    Softmax,
    /// p is the share of elements in each bin of log2 |g|.
    Histogram,
}

/// What the temperature of `softmax` is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemperatureUnit {
    /// The gradient's own: T is the temperature itself.
    Literal,
    /// The root mean square of the whole gradient at this step: T does not depend on the gradient's scale.
    Rms,
}

impl Default for EntropyPolicy {
    fn default() -> Self {
        Self {
            estimator: Estimator::Energy,
            temperature: 1.0,
            temperature_unit: TemperatureUnit::Literal,
            bins: 32,
            range: [-32.0, 0.0],
            smoothing: 3,
        }
    }
}

impl EntropyPolicy {
    /// The largest entropy that a tensor of `elements` can have, in nats: what entropies are divided by.
    ///
    /// ln n, and for `histogram` ln bins. 0 for a tensor of a single element or none, which has no entropy.
    #[must_use]
    pub fn most_nats(&self, elements: u64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a logarithm does not tell 2^53 from its neighbour")]
        match self.estimator {
            _ if elements <= 1 => 0.0,
            Estimator::Energy | Estimator::Magnitude | Estimator::Softmax => (elements as f64).ln(),
            Estimator::Histogram => f64::from(self.bins).ln(),
        }
    }

    /// Lower edges of the bins of `histogram` but the lowest, which has none: |g| belongs to bin k where exactly the
    /// first k of these are at most |g|.
    ///
    /// `bins - 1` increasing numbers. They are 2^(low + k·(high − low)/bins) rounded to `f32`, and what is compared
    /// with them is exact, so that host and device agree about every element.
    #[must_use]
    pub fn edges(&self) -> Vec<f32> {
        let [low, high] = self.range;
        let width = (high - low) / f64::from(self.bins);
        #[allow(clippy::cast_possible_truncation, reason = "f32 is the device's precision")]
        (1..self.bins).map(|k| (low + f64::from(k) * width).exp2() as f32).collect()
    }

    /// Every key that shapes the graph under this estimator, and its value.
    pub(crate) fn structure(&self) -> Vec<(&'static str, String)> {
        let mut keys = vec![("entropy.estimator", self.estimator.to_string())];
        match self.estimator {
            Estimator::Energy | Estimator::Magnitude => {}
            Estimator::Softmax => keys.push(("entropy.temperature_unit", self.temperature_unit.to_string())),
            Estimator::Histogram => {
                keys.push(("entropy.bins", self.bins.to_string()));
                keys.push(("entropy.range", self.shown_range()));
            }
        }
        keys.push(("entropy.smoothing", self.smoothing.to_string()));
        keys
    }

    fn shown_range(&self) -> String {
        let [low, high] = self.range;
        format!("[{low}, {high}]")
    }

    /// Checks every value's range.
    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        let warm = (1e-12..=1e12).contains(&self.temperature);
        check.number("entropy.temperature", self.temperature, warm, "from 1e-12 to 1e12")?;
        check.number("entropy.bins", self.bins, (2..=256).contains(&self.bins), "from 2 to 256")?;
        let [low, high] = self.range;
        let wide = low >= -126.0 && high <= 127.0 && high - low >= 1.0;
        let range = "two powers of two from -126 to 127, the second larger than the first by 1 or more";
        check.number("entropy.range", self.shown_range(), wide, range)?;
        check.number("entropy.smoothing", self.smoothing, (1..=64).contains(&self.smoothing), "from 1 to 64")
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Energy => "energy",
            Self::Magnitude => "magnitude",
            Self::Softmax => "softmax",
            Self::Histogram => "histogram",
        })
    }
}

impl fmt::Display for TemperatureUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Literal => "literal",
            Self::Rms => "rms",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    #[test]
    fn edges_are_powers_of_two_by_default_and_always_increase() {
        let edges = EntropyPolicy::default().edges();
        assert_eq!(edges.len(), 31);
        assert_eq!((edges[0], edges[30]), (2.0_f32.powi(-31), 0.5));
        for (bins, range) in [(2, [-1.0, 0.0]), (256, [-126.0, -125.0]), (256, [126.0, 127.0]), (255, [-126.0, 127.0])]
        {
            let edges = EntropyPolicy { bins, range, ..EntropyPolicy::default() }.edges();
            assert_eq!(edges.len(), bins as usize - 1);
            assert!(edges.windows(2).all(|pair| pair[0] < pair[1]), "{bins} bins in {range:?}");
            assert!(edges.iter().all(|e| e.is_normal()));
        }
    }

    #[test]
    fn entropies_are_divided_by_their_maximum() {
        let policy = |estimator| EntropyPolicy { estimator, ..EntropyPolicy::default() };
        for estimator in [Estimator::Energy, Estimator::Magnitude, Estimator::Softmax] {
            assert_eq!(policy(estimator).most_nats(8), 8.0_f64.ln());
            assert_eq!(policy(estimator).most_nats(1), 0.0);
        }
        assert_eq!(policy(Estimator::Histogram).most_nats(8), 32.0_f64.ln());
        assert_eq!(policy(Estimator::Histogram).most_nats(1), 0.0);
    }

    #[test]
    fn every_key_is_read_and_checked() {
        let text = "[entropy]\nestimator = \"softmax\"\ntemperature = 2\ntemperature_unit = \"rms\"\nbins = 2\n\
                    range = [-126, 127]\nsmoothing = 1";
        let expected = EntropyPolicy {
            estimator: Estimator::Softmax,
            temperature: 2.0,
            temperature_unit: TemperatureUnit::Rms,
            bins: 2,
            range: [-126.0, 127.0],
            smoothing: 1,
        };
        assert_eq!(Policy::parse(text).unwrap().entropy, expected);
        let check = |line: &str, expected: &str| {
            let error = Policy::parse(&format!("[entropy]\n{line}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("temperature = 0", "`entropy.temperature` is 0 in the policy; it must be from 1e-12 to 1e12");
        check("temperature = nan", "1e-12");
        check("temperature = 2e12", "1e-12");
        check("bins = 1", "`entropy.bins` is 1 in the policy; it must be from 2 to 256");
        check("bins = 257", "2 to 256");
        check("range = [-4, -3.5]", "`entropy.range` is [-4, -3.5] in the policy; it must be two powers of two");
        check("range = [0, -8]", "the second larger");
        check("range = [-127, 0]", "-126");
        check("range = [0, 128]", "127");
        check("range = [nan, 0]", "[NaN, 0]");
        check("range = [-8]", "line 2");
        check("temperature_unit = \"kelvin\"", "rms");
        check("estimator = \"softmix\"", "softmax");
        check("bin = 4", "did you mean `entropy.bins`?");
    }

    #[test]
    fn only_what_the_estimator_reads_is_structure() {
        let mut policy = EntropyPolicy::default();
        let keys = |policy: &EntropyPolicy| policy.structure().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(&policy), ["entropy.estimator", "entropy.smoothing"]);
        policy.estimator = Estimator::Softmax;
        assert_eq!(keys(&policy), ["entropy.estimator", "entropy.temperature_unit", "entropy.smoothing"]);
        policy.estimator = Estimator::Histogram;
        assert_eq!(keys(&policy), ["entropy.estimator", "entropy.bins", "entropy.range", "entropy.smoothing"]);
    }
}
