//! Import, verification, export and printing of the GPT-2 train step.
//!
//! `cargo bench -p entropic-hlo`

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use hlo::Module;
use hlo::text::{Preset, print};

fn round_trip(c: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/gpt2-small/module.hlo.pb");
    let loaded = std::fs::read(&path).map_err(|e| e.to_string()).and_then(|bytes| {
        let module = Module::import(&bytes).map_err(|e| e.to_string())?;
        Ok((bytes, module))
    });
    let (bytes, module) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            std::process::exit(1);
        }
    };
    let mut group = c.benchmark_group("gpt2-small");
    group.bench_function("import", |b| b.iter(|| Module::import(black_box(&bytes))));
    group.bench_function("verify", |b| b.iter(|| hlo::verify::verify(black_box(&module))));
    group.bench_function("export", |b| b.iter(|| black_box(&module).export()));
    group.bench_function("print", |b| b.iter(|| print(black_box(&module), Preset::Canonical)));
    group.bench_function("import, verify and export", |b| {
        b.iter(|| {
            let module = Module::import(black_box(&bytes)).ok()?;
            hlo::verify::verify(&module).ok()?;
            Some(module.export())
        });
    });
    group.finish();
}

criterion_group!(benches, round_trip);
criterion_main!(benches);
