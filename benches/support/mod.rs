//! Timing in pairs.
//!
//! On a busy machine no time means much, but two programs that take turns slow down together: each pair of short stretches
//! gives a ratio, and what is reported is the median of the ratios with its 95% confidence interval.

#![allow(unreachable_pub, reason = "a benchmark has no other crates to hide things from")]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

/// Pairs of stretches, after one that is not counted.
const PAIRS: usize = 24;

/// How long a stretch takes, about.
const STRETCH: Duration = Duration::from_millis(2500);

/// A median of ratios of times.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// Ends of its 95% confidence interval.
    pub interval: [f64; 2],
    pairs: usize,
    steps: u64,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.interval;
        write!(
            f,
            "{:.4}, 95% interval [{low:.4}, {high:.4}], {} pairs of {} steps",
            self.median, self.pairs, self.steps
        )
    }
}

/// The time of `second` over that of `first`. Each takes a number of steps and returns the seconds that they took.
pub fn ratio(mut first: impl FnMut(u64) -> Result<f64>, mut second: impl FnMut(u64) -> Result<f64>) -> Result<Ratio> {
    let steps = (STRETCH.as_secs_f64() / (first(3)? / 3.0)).ceil().clamp(3.0, 1e5) as u64;
    let mut ratios = Vec::new();
    for pair in 0..=PAIRS {
        // Turns alternate, so that a machine that slows down steadily favours neither.
        let (one, other) = if pair % 2 == 0 {
            let one = first(steps)?;
            (one, second(steps)?)
        } else {
            let other = second(steps)?;
            (first(steps)?, other)
        };
        if pair > 0 {
            ratios.push(other / one);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios.get((share * (ratios.len() - 1) as f64).round() as usize).copied().unwrap_or(f64::NAN);
    // Order statistics: the median lies between ranks n/2 ∓ 0.98·√n with 95% probability.
    let spread = 0.98 / (ratios.len() as f64).sqrt();
    Ok(Ratio { median: at(0.5), interval: [at(0.5 - spread), at(0.5 + spread)], pairs: ratios.len(), steps })
}

/// The bundles that the command line names, to which cargo adds `--bench`, or these in `models`.
pub fn bundles(default: &[&str]) -> Vec<PathBuf> {
    let given: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    if given.is_empty() { default.iter().map(|name| models.join(name)).collect() } else { given }
}
