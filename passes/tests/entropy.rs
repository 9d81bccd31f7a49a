//! `measure-entropy` on the CPU plugin against the definitions in `f64`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Array, Compiled, Random};
use hlo::build::Builder;
use hlo::{Module, PrimitiveType, Shape};
use ndarray::Array1;
use passes::measure_entropy::{ReductionStyle, SHARES_LIMIT, statistics_of};
use passes::reference;

/// S and normalised entropy of one gradient, as the emitted program computes them.
fn emitted(program: &Compiled, gradient: &[f32]) -> (f32, f32) {
    let outputs = program.run(&[Array::vector(gradient)]);
    (outputs[0].floats()[0], outputs[1].floats()[0])
}

fn program(n: usize, reduction: ReductionStyle) -> Compiled {
    let mut module = Module::new("statistics");
    let mut b = Builder::at_entry(&mut module);
    let g = b.parameter("g", Shape::array(PrimitiveType::F32, &[n as i64])).unwrap();
    let (energy, nats) = statistics_of(&mut module, &[g], reduction).unwrap();
    module.set_outputs(&[energy, nats]).unwrap();
    Compiled::new(&module)
}

fn check(name: &str, program: &Compiled, gradient: &[f32], tolerance: f64, worst: &mut (f64, f64)) {
    let (energy, nats) = emitted(program, gradient);
    let exact: Array1<f64> = gradient.iter().map(|&g| f64::from(g)).collect();
    let expected = reference::statistics(exact.view());
    let n = gradient.len() as f64;
    let in_range = gradient.iter().all(|&g| g == 0.0 || (g * g >= f32::MIN_POSITIVE && (g * g).is_finite()));
    let told_by_energy = energy < f32::MIN_POSITIVE || !energy.is_finite();
    if expected.energy == 0.0 || !expected.energy.is_finite() || expected.energy > f64::from(f32::MAX) {
        // Inactive or an anomaly.
        assert!(told_by_energy, "{name}: {energy} {nats}");
        return;
    }
    if !in_range {
        // Some squares are below what the device can tell from zero: what is left is measured.
        assert!(told_by_energy || nats.is_finite(), "{name}: {energy} {nats}");
        return;
    }
    let relative = (f64::from(energy) / expected.energy - 1.0).abs();
    let absolute = if n > 1.0 { (f64::from(nats) - expected.nats).abs() / n.ln() } else { 0.0 };
    worst.0 = worst.0.max(relative);
    worst.1 = worst.1.max(absolute);
    assert!(relative <= 1e-5, "{name}, n = {n}: S = {energy} for {}", expected.energy);
    assert!(absolute <= tolerance, "{name}, n = {n}: h = {nats} for {}, {absolute:e} apart", expected.nats);
}

fn cases(n: usize, random: &mut Random) -> Vec<(String, Vec<f32>)> {
    let mut cases: Vec<(String, Vec<f32>)> = Vec::new();
    let mut add = |name: &str, f: &mut dyn FnMut(usize) -> f64| {
        cases.push((name.to_owned(), (0..n).map(|i| f(i) as f32).collect()));
    };
    for exponent in [-18, -15, -9, -4, 0, 4, 9, 15, 17] {
        let scale = 10.0_f64.powi(exponent);
        add(&format!("normal at 1e{exponent}"), &mut |_| {
            let g = random.normal();
            scale * if g.abs() < 0.2 { 0.2 } else { g }
        });
        add(&format!("constant 1e{exponent}"), &mut |_| scale);
        add(&format!("one-hot 1e{exponent}"), &mut |i| if i == n / 2 { scale } else { 0.0 });
        add(&format!("one large among small at 1e{exponent}"), &mut |i| if i == 0 { scale } else { scale * 1e-2 });
    }
    add("smallest normal square", &mut |_| 1.085e-19);
    add("heavy tails", &mut |_| (3.0 * random.normal()).exp());
    add("many scales", &mut |i| 10.0_f64.powi(i as i32 % 30 - 15));
    add("zeros", &mut |_| 0.0);
    add("1e-30", &mut |_| 1e-30);
    add("1e30", &mut |_| 1e30);
    add("a NaN", &mut |i| if i == n - 1 { f64::NAN } else { 1.0 });
    add("an infinity", &mut |i| if i == 0 { f64::NEG_INFINITY } else { 1.0 });
    cases
}

/// All cases at sizes around every boundary.
fn check_all(reduction: ReductionStyle, sizes: &[usize], tolerance: f64) {
    let mut random = Random::new(1);
    for &n in sizes {
        let program = program(n, reduction);
        let mut worst = (0.0, 0.0);
        for (name, gradient) in cases(n, &mut random) {
            check(&name, &program, &gradient, tolerance, &mut worst);
        }
        println!("{reduction:?}, n = {n}: relative error of S {:.1e}, of entropy {:.1e}", worst.0, worst.1);
    }
}

#[test]
fn statistics_are_exact_at_any_size_and_scale() {
    check_all(ReductionStyle::Shares, &[1, 2, 3, 7, 64, 1000, 20_000, 100_003], 1e-5);
}

#[test]
fn sums_by_offset_are_nearly_as_exact() {
    let limit = SHARES_LIMIT as usize;
    check_all(ReductionStyle::Separate, &[limit, limit + 1, 100_003], 2e-5);
}

#[test]
fn one_variadic_reduce_is_exact_enough_where_gradients_are_of_common_size() {
    let mut random = Random::new(3);
    for n in [3, 1000, 20_000] {
        let gradient: Vec<f32> = (0..n).map(|_| 1e-3 * random.normal() as f32).collect();
        check("variadic", &program(n, ReductionStyle::Variadic), &gradient, 3e-5, &mut (0.0, 0.0));
    }
}

#[test]
fn a_tensor_of_forty_million_elements() {
    let n = 40_000_000;
    let program = program(n, ReductionStyle::Shares);
    let mut random = Random::new(2);
    let mut worst = (0.0, 0.0);
    let normal: Vec<f32> =
        (0..n).map(|_| (1e-6 * random.normal()) as f32).map(|g| if g.abs() < 1e-12 { 0.0 } else { g }).collect();
    check("normal at 1e-6", &program, &normal, 1e-5, &mut worst);
    let tiny: Vec<f32> = normal.iter().map(|&g| if g.abs() < 1e-7 { 1e-16 } else { g * 1e-9 }).collect();
    check("normal at 1e-15", &program, &tiny, 1e-5, &mut worst);
    check("constant", &program, &vec![1.1e-3; n], 1e-5, &mut worst);
    let mut one_hot = vec![0.0; n];
    one_hot[n / 3] = 1e-15;
    check("one-hot", &program, &one_hot, 1e-5, &mut worst);
    one_hot[n - 1] = f32::NAN;
    check("NaN", &program, &one_hot, 1e-5, &mut worst);
    println!("relative error of S {:.1e}, absolute error of entropy {:.1e}", worst.0, worst.1);
}
