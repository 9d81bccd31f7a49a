//! Timing in pairs, and the bare execute loop, for the benchmarks.
//!
//! On a busy machine no time means much, but two programs that take turns slow down together: each pair of short stretches
//! gives a ratio, and what is reported is the median of the ratios with its 95% confidence interval.

#![allow(dead_code, unreachable_pub, reason = "each benchmark uses a part of this module")]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use entropic::bundle::Bundle;
use entropic::bundle::manifest::InputRole;
use entropic::train::{Options, Setup, Silent};
use pjrt::Buffer;

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

/// An uncontrolled run that is ready for its first step, on this repository's own text; its folder is inside `folder`.
pub fn setup(bundle: Bundle, folder: &Path) -> Result<Setup> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let options = Options {
        bundle,
        policy: None,
        data: vec![root.join("src"), root.join("passes"), root.join("crates")],
        steps: 0,
        seed: 0,
        corruption: None,
        plugin: "cpu".to_owned(),
        cache: None,
        out: Some(folder.to_owned()),
        started: std::time::Instant::now(),
        worker: None,
    };
    Ok(Setup::new(&options, &mut Silent)?)
}

/// The bare execute loop: its own copy of the state, one batch, nothing read; only the last step is waited for.
pub struct Bare {
    /// By input number.
    arguments: Vec<Buffer>,
    /// The input that each output succeeds.
    successors: Vec<Option<usize>>,
    batch: Vec<usize>,
}

impl Bare {
    pub fn new(setup: &Setup, bundle: &Bundle) -> Result<Self> {
        let manifest = &bundle.manifest;
        let mut arguments = Vec::new();
        for (index, input) in manifest.inputs.iter().enumerate() {
            let bytes = match setup.stepper.state(index) {
                Some(value) => value.to_vec()?,
                None => {
                    let elements: i64 = input.shape.iter().product();
                    vec![0; usize::try_from(elements)? * usize::try_from(input.dtype.primitive().bits() / 8)?]
                }
            };
            arguments.push(setup.engine.upload(&bytes, input.dtype, &input.shape)?);
        }
        let is_batch = |i: &usize| manifest.inputs.get(*i).is_some_and(|n| n.role == InputRole::Batch);
        Ok(Self {
            successors: manifest.outputs.iter().map(|o| o.input).collect(),
            batch: (0..manifest.inputs.len()).filter(is_batch).collect(),
            arguments,
        })
    }

    /// Runs some steps and returns the seconds that they took.
    pub fn run(&mut self, setup: &Setup, steps: u64) -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..steps {
            let arguments: Vec<&Buffer> = self.arguments.iter().collect();
            let outputs = setup.stepper.executable().execute_single(&arguments)?;
            for (output, input) in outputs.into_iter().zip(&self.successors) {
                if let Some(slot) = input.and_then(|i| self.arguments.get_mut(i)) {
                    *slot = output;
                }
            }
        }
        let state = (0..self.arguments.len()).find(|i| !self.batch.contains(i)).context("the step has no state")?;
        self.arguments.get(state).context("the step has no state")?.ready_event()?.wait()?;
        Ok(begin.elapsed().as_secs_f64())
    }
}
