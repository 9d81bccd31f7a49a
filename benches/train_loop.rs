//! What the train loop costs on top of the device: `train --no-control` against a bare execute loop.
//!
//! Both run the same executable in the same process. The bare loop passes one batch again and again, reads nothing, and
//! waits for the last step only.
//!
//! `cargo bench --bench train_loop [-- BUNDLE...]`; `models/gpt-nano` if none is given.

mod support;

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use entropic::bundle::Bundle;
use entropic::train::{Silent, Trainer};
use support::Bare;

/// The promise: steps per second of the train loop over those of the bare loop.
const PROMISED: f64 = 0.98;

fn main() -> Result<()> {
    for path in support::bundles(&["gpt-nano"]) {
        compare(&path)?;
    }
    Ok(())
}

fn compare(path: &Path) -> Result<()> {
    let bundle = Bundle::open(path)?;
    let folder = tempfile::tempdir()?;
    let trainer = RefCell::new(Trainer::new(support::setup(bundle.clone(), &folder.path().join("run"))?));
    let mut bare = Bare::new(trainer.borrow().setup(), &bundle)?;
    let interrupt = AtomicBool::new(false);
    let ratio = support::ratio(
        |steps| {
            let begin = Instant::now();
            trainer.borrow_mut().train(steps, &interrupt, &mut Silent)?;
            Ok(begin.elapsed().as_secs_f64())
        },
        |steps| bare.run(trainer.borrow().setup(), steps),
    )?;
    println!(
        "{}: steps/s of `train --no-control` over those of a bare execute loop: {ratio}; promised {PROMISED}: {}",
        path.display(),
        if ratio.median >= PROMISED { "held" } else { "NOT held" }
    );
    Ok(())
}
