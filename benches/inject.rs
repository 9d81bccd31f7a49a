//! `inject`, from the bytes of a module to the bytes of the controlled one, without any file.
//!
//! `cargo bench --bench inject [-- BUNDLE...]`; both variants of `models/gpt2-small` if none is given. Promised: below
//! 150 ms for 12 layers, and at most 12 times that for 120; `python -m entropic_export.bundles gpt2-small --layers 120
//! --out DIR` makes a bundle of 120 (see models/README.md). Give both: the time of every bundle over that of the first
//! one is measured as well, in turns.

mod support;

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use criterion::Criterion;
use hlo::Module;
use passes::{InjectOptions, Policy, inject};

/// The second of two modules is injected once for so many times of the first: it may be ten times as large.
const SHARE: u64 = 10;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().sample_size(20);
    let mut modules = Vec::new();
    for bundle in support::bundles(&["gpt2-small", "gpt2-small-clip"]) {
        let file = bundle.join("module.hlo.pb");
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        injected(&bytes)?;
        criterion.bench_function(&format!("inject {}", name(&bundle)), |b| b.iter(|| injected(black_box(&bytes))));
        modules.push((bundle, bytes));
    }
    criterion.final_summary();
    let Some(((first, first_bytes), others)) = modules.split_first() else { return Ok(()) };
    for (other, bytes) in others {
        let few = |times: u64| times.div_ceil(SHARE);
        let ratio = support::ratio(
            |times| seconds(first_bytes, times),
            |times| Ok(seconds(bytes, few(times))? * times as f64 / few(times) as f64),
        )?;
        println!("inject {} over {}: {ratio}", name(other), name(first));
    }
    Ok(())
}

fn name(bundle: &Path) -> String {
    bundle.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// How long some injections take.
fn seconds(bytes: &[u8], times: u64) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..times {
        black_box(injected(black_box(bytes))?);
    }
    Ok(begin.elapsed().as_secs_f64())
}

fn injected(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut module = Module::import(bytes)?;
    inject(&mut module, &Policy::default(), InjectOptions::default())?;
    Ok(module.export())
}
