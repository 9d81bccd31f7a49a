//! What a part measured, as `benches/compare` writes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::statistics::Estimate;

/// Times of all contenders of a part, round by round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Samples {
    /// Programs and their versions.
    pub(super) versions: Vec<String>,
    /// What could not be measured, and why.
    pub(super) notes: Vec<String>,
    /// Steps of each contender in each round.
    pub(super) steps: u64,
    /// Seconds, per step where there are several, by contender.
    pub(super) rounds: Vec<BTreeMap<String, f64>>,
}

impl Samples {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not what the benchmark writes; delete it", path.display()))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A number from the times of each round, such as a ratio of two; `None` where a round lacks one of them.
    fn each<const N: usize>(&self, names: [&str; N], of: impl Fn([f64; N]) -> f64) -> Option<Estimate> {
        let values = self.rounds.iter().map(|round| {
            let mut times = [0.0; N];
            for (time, name) in times.iter_mut().zip(names) {
                *time = *round.get(name)?;
            }
            Some(of(times))
        });
        Estimate::of(&values.collect::<Option<Vec<_>>>()?)
    }

    /// Seconds.
    pub(super) fn time(&self, name: &str) -> Option<Estimate> {
        self.each([name], |[time]| time)
    }

    /// The time of one over that of another.
    pub(super) fn ratio(&self, of: &str, over: &str) -> Option<Estimate> {
        self.each([of, over], |[of, over]| of / over)
    }

    /// How much more time one takes than another, as a share of the other's, where it were so many times rarer.
    pub(super) fn share_more(&self, of: &str, than: &str, rarer: f64) -> Option<Estimate> {
        self.each([of, than], |[of, than]| (of / than - 1.0) / rarer)
    }

    /// Milliseconds of one less those of another.
    pub(super) fn more_ms(&self, of: &str, less: &str) -> Option<Estimate> {
        self.each([of, less], |[of, less]| (of - less) * 1e3)
    }

    /// The ratio of two ratios.
    pub(super) fn double_ratio(&self, one: [&str; 2], over: [&str; 2]) -> Option<Estimate> {
        let ([a, b], [c, d]) = (one, over);
        self.each([a, b, c, d], |[a, b, c, d]| (a / b) / (c / d))
    }

    /// The contenders.
    pub(super) fn names(&self) -> Vec<&str> {
        self.rounds.first().into_iter().flat_map(|round| round.keys().map(String::as_str)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    pub(crate) fn samples(rounds: &[&[(&str, f64)]]) -> Samples {
        let round = |round: &&[(&str, f64)]| round.iter().map(|(name, time)| ((*name).to_owned(), *time)).collect();
        Samples { rounds: rounds.iter().map(round).collect(), ..Samples::default() }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The machine is ten times slower in the second round, and twice in the third.
        let times = samples(&[&[("a", 1.0), ("b", 1.5)], &[("a", 10.0), ("b", 15.0)], &[("a", 2.0), ("b", 3.0)]]);
        assert_eq!(times.ratio("b", "a").unwrap(), Estimate { median: 1.5, low: 1.5, high: 1.5 });
        assert_eq!(times.more_ms("b", "a").unwrap().median, 1000.0);
        assert_eq!(times.double_ratio(["b", "a"], ["a", "a"]).unwrap().median, 1.5);
        assert_eq!(times.time("a").unwrap().median, 2.0);
        assert_eq!(times.names(), ["a", "b"]);
    }

    #[test]
    fn what_was_not_measured_gives_nothing() {
        let times = samples(&[&[("a", 1.0), ("b", 1.5)], &[("a", 1.0)]]);
        assert_eq!(times.ratio("b", "a"), None);
        assert_eq!(times.ratio("c", "a"), None);
        assert_eq!(Samples::default().time("a"), None);
    }
}
