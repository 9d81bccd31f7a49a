//! `inject`, from the bytes of a module to the bytes of the controlled one, without any file.
//!
//! `cargo bench --bench inject [-- BUNDLE...]`; both variants of `models/gpt2-small` if none is given. Promised: below
//! 150 ms for 12 layers, and at most 12 times that for 120; `python -m entropic_export.bundles gpt2-small --layers 120
//! --out DIR` makes a bundle of 120 (see models/README.md), which is given here.

mod support;

use std::hint::black_box;

use anyhow::{Context, Result};
use criterion::Criterion;
use hlo::Module;
use passes::{InjectOptions, Policy, inject};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().sample_size(20);
    for bundle in support::bundles(&["gpt2-small", "gpt2-small-clip"]) {
        let file = bundle.join("module.hlo.pb");
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        injected(&bytes)?;
        let name = bundle.file_name().unwrap_or_default().to_string_lossy().into_owned();
        criterion.bench_function(&format!("inject {name}"), |b| b.iter(|| injected(black_box(&bytes))));
    }
    criterion.final_summary();
    Ok(())
}

fn injected(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut module = Module::import(bytes)?;
    inject(&mut module, &Policy::default(), InjectOptions::default())?;
    Ok(module.export())
}
