//! What the train loop costs on top of the device: `train --no-control` against a bare execute loop.
//!
//! Both run the same executable in the same process. The bare loop passes one batch again and again, reads nothing, and
//! waits for the last step only. The two take turns in short stretches, each pair gives a ratio of their times, and the
//! median of the ratios is printed with its 95% confidence interval: on a busy machine both slow down together.
//!
//! `cargo bench --bench train_loop [-- BUNDLE]`; the bundle is `models/gpt-nano` if none is given.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use entropic::bundle::Bundle;
use entropic::bundle::manifest::InputRole;
use entropic::train::{Options, Setup, Silent, Trainer};
use pjrt::Buffer;

/// Pairs of stretches, after one that is not counted.
const PAIRS: usize = 24;

/// How long a stretch takes, about.
const STRETCH: Duration = Duration::from_millis(2500);

/// The promise: steps per second of the train loop over those of the bare loop.
const PROMISED: f64 = 0.98;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Cargo passes `--bench`.
    let given = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let bundle = given.map_or_else(|| root.join("models").join("gpt-nano"), PathBuf::from);
    let folder = tempfile::tempdir()?;
    let options = Options {
        bundle: Bundle::open(&bundle)?,
        policy: None,
        data: vec![root.join("src"), root.join("passes"), root.join("crates")],
        steps: 0,
        seed: 0,
        plugin: "cpu".to_owned(),
        out: Some(folder.path().join("run")),
    };
    let mut trainer = Trainer::new(Setup::new(&options, &mut Silent)?);
    let mut bare = Bare::new(trainer.setup(), &options.bundle)?;

    let begin = Instant::now();
    bare.run(trainer.setup(), 3)?;
    let steps = (STRETCH.as_secs_f64() / (begin.elapsed().as_secs_f64() / 3.0)).ceil().clamp(3.0, 1e5) as u64;
    let interrupt = AtomicBool::new(false);
    let mut ratios = Vec::new();
    for pair in 0..=PAIRS {
        // Turns alternate, so that a machine that slows down steadily favours neither.
        let (train, bare) = if pair % 2 == 0 {
            let first = train(&mut trainer, steps, &interrupt)?;
            (first, bare.run(trainer.setup(), steps)?)
        } else {
            let first = bare.run(trainer.setup(), steps)?;
            (train(&mut trainer, steps, &interrupt)?, first)
        };
        if pair > 0 {
            ratios.push(bare / train);
        }
    }
    report(&bundle, steps, &mut ratios);
    Ok(())
}

/// Runs some steps of the train loop and returns the seconds that they took.
fn train(trainer: &mut Trainer, steps: u64, interrupt: &AtomicBool) -> Result<f64> {
    let begin = Instant::now();
    trainer.train(steps, interrupt, &mut Silent)?;
    Ok(begin.elapsed().as_secs_f64())
}

fn report(bundle: &Path, steps: u64, ratios: &mut [f64]) {
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios.get((share * (ratios.len() - 1) as f64).round() as usize).copied().unwrap_or(f64::NAN);
    // Order statistics: the median lies between ranks n/2 ∓ 0.98·√n with 95% probability.
    let spread = 0.98 / (ratios.len() as f64).sqrt();
    let (low, median, high) = (at(0.5 - spread), at(0.5), at(0.5 + spread));
    println!(
        "{}: steps/s of `train --no-control` over those of a bare execute loop: median {median:.4}, 95% interval \
         [{low:.4}, {high:.4}], {} pairs of {steps} steps; promised: {PROMISED}: {}",
        bundle.display(),
        ratios.len(),
        if median >= PROMISED { "held" } else { "NOT held" }
    );
}

/// The bare execute loop: its own copy of the state, one batch, nothing read.
struct Bare {
    /// By input number.
    arguments: Vec<Buffer>,
    /// The input that each output succeeds.
    successors: Vec<Option<usize>>,
    batch: Vec<usize>,
}

impl Bare {
    fn new(setup: &Setup, bundle: &Bundle) -> Result<Self> {
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
    fn run(&mut self, setup: &Setup, steps: u64) -> Result<f64> {
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
