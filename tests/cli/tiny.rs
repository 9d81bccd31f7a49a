//! The smallest bundle there can be, for what the committed ones cannot show: `w' = w - 0.1·g` with `g = w·batch/4096`.

use std::fs;
use std::path::Path;

use hlo::build::Builder;
use hlo::{AliasKind, Module, Opcode, PrimitiveType, Shape};

const ROWS: i64 = 2;
const WINDOW: i64 = 8;

/// Writes the bundle; every element of `w` starts as `initial`.
pub(crate) fn write(folder: &Path, initial: f64) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("module.hlo.pb"), step().export()).unwrap();
    fs::write(folder.join("init.hlo.pb"), init(initial).export()).unwrap();
    fs::write(
        folder.join("manifest.json"),
        format!(
            r#"{{
  "format_version": 1, "name": "tiny", "module": "module.hlo.pb",
  "inputs": [
    {{"name": "w", "dtype": "float32", "shape": [{ROWS}, {WINDOW}], "role": "param"}},
    {{"name": "tokens", "dtype": "int32", "shape": [{ROWS}, {WINDOW}], "role": "batch"}}
  ],
  "outputs": [
    {{"name": "w", "dtype": "float32", "shape": [{ROWS}, {WINDOW}], "role": "param", "input": 0}},
    {{"name": "loss", "dtype": "float32", "shape": [], "role": "loss", "input": null}}
  ],
  "init": {{"file": "init.hlo.pb", "seed_dtype": "uint32", "outputs": [0]}},
  "eval": null,
  "data": {{"kind": "bytes", "input": 1, "batch": {ROWS}, "window": {WINDOW}, "vocab": 256, "loss_unit": "units"}},
  "target_platforms": ["cpu"], "versions": {{}}
}}"#
        ),
    )
    .unwrap();
}

fn step() -> Module {
    let mut module = Module::new("tiny");
    let add = Builder::reducer(&mut module, "add", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let w = b.parameter("w", Shape::array(PrimitiveType::F32, &[ROWS, WINDOW])).unwrap();
    let tokens = b.parameter("tokens", Shape::array(PrimitiveType::S32, &[ROWS, WINDOW])).unwrap();
    let tokens = b.convert(tokens, PrimitiveType::F32).unwrap();
    let share = b.constant_f32(1.0 / 4096.0).unwrap();
    let share = b.broadcast_scalar_like(share, w).unwrap();
    let curvature = b.multiply(tokens, share).unwrap();
    let g = b.multiply(curvature, w).unwrap();
    let rate = b.constant_f32(0.1).unwrap();
    let rate = b.broadcast_scalar_like(rate, w).unwrap();
    let u = b.multiply(rate, g).unwrap();
    let next = b.subtract(w, u).unwrap();
    let products = b.multiply(g, w).unwrap();
    let zero = b.constant_f32(0.0).unwrap();
    let loss = b.reduce_all(products, zero, add).unwrap();
    module.set_outputs(&[next, loss]).unwrap();
    module.alias(0, 0, AliasKind::May).unwrap();
    hlo::verify::verify(&module).unwrap();
    module
}

fn init(initial: f64) -> Module {
    let mut module = Module::new("tiny_init");
    let mut b = Builder::at_entry(&mut module);
    b.parameter("seed", Shape::scalar(PrimitiveType::U32)).unwrap();
    let value = b.constant(PrimitiveType::F32, initial).unwrap();
    let w = b.broadcast_to_vector(value, ROWS * WINDOW).unwrap();
    let w = b.reshape(w, &[ROWS, WINDOW]).unwrap();
    module.set_outputs(&[w]).unwrap();
    module
}
