//! Turns: in every round each contender does the same number of steps.
//!
//! On a busy machine no time means much, but programs that take turns slow down together, and what is compared are times of
//! the same round.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Something that is timed.
pub(crate) struct Contender {
    name: String,
    run: Box<dyn FnMut(u64) -> Result<f64>>,
}

impl Contender {
    /// `run` does a number of steps and returns the seconds that they took.
    pub(crate) fn new(name: &str, run: impl FnMut(u64) -> Result<f64> + 'static) -> Self {
        Self { name: name.to_owned(), run: Box::new(run) }
    }

    /// Does some steps; the seconds that they took.
    pub(crate) fn run(&mut self, steps: u64) -> Result<f64> {
        (self.run)(steps).with_context(|| format!("{} failed", self.name))
    }
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// The steps of a stretch are a multiple of this.
    pub(crate) multiple: u64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Samples {
    /// Programs and their versions.
    pub(crate) versions: Vec<String>,
    /// What could not be measured, and why.
    pub(crate) notes: Vec<String>,
    /// Steps of each contender in each round.
    steps: u64,
    /// Seconds per step by contender.
    rounds: Vec<BTreeMap<String, f64>>,
}

impl Schedule {
    pub(crate) fn run(self, mut contenders: Vec<Contender>, versions: Vec<String>) -> Result<Samples> {
        // The first steps of some contenders compile.
        for contender in &mut contenders {
            contender.run(2)?;
        }
        let first = contenders.first_mut().context("there is nothing to compare")?;
        let steps = (self.seconds / (first.run(3)? / 3.0)).ceil().clamp(3.0, 1e5) as u64;
        let steps = steps.next_multiple_of(self.multiple);
        let mut rounds = Vec::new();
        for round in 0..=self.rounds {
            // Each begins a round as often as any other and follows each neighbour as often as it precedes it, so that a
            // machine that slows down steadily favours none.
            contenders.rotate_left(1);
            if round % 2 == 1 {
                contenders.reverse();
            }
            let mut times = BTreeMap::new();
            for contender in &mut contenders {
                times.insert(contender.name.clone(), contender.run(steps)? / steps as f64);
            }
            if round > 0 {
                eprintln!("round {round} of {}: {}", self.rounds, told(&times));
                rounds.push(times);
            }
        }
        Ok(Samples { versions, notes: Vec::new(), steps, rounds })
    }
}

fn told(times: &BTreeMap<String, f64>) -> String {
    let each: Vec<_> = times.iter().map(|(name, time)| format!("{name} {:.2} ms", time * 1e3)).collect();
    each.join(", ")
}

impl Samples {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
