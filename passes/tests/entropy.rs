//! `measure-entropy` on the CPU plugin against the definitions in `f64`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Array, Compiled, Random};
use half::bf16;
use hlo::build::Builder;
use hlo::{Module, Opcode, PrimitiveType, Shape};
use ndarray::Array1;
use passes::layout::ArrayKind;
use passes::measure_entropy::{ReductionStyle, SHARES_LIMIT, statistics_of};
use passes::policy::{EntropyPolicy, Estimator, TemperatureUnit};
use passes::{InjectOptions, Policy, Telemetry, inject, reference};
use pjrt::ElementType;

/// Every estimator, those with settings at more than one.
fn estimators() -> Vec<EntropyPolicy> {
    let policy = |estimator| EntropyPolicy { estimator, ..EntropyPolicy::default() };
    let softmax =
        |temperature, temperature_unit| EntropyPolicy { temperature, temperature_unit, ..policy(Estimator::Softmax) };
    vec![
        policy(Estimator::Energy),
        policy(Estimator::Magnitude),
        softmax(1.0, TemperatureUnit::Literal),
        softmax(1e-3, TemperatureUnit::Literal),
        softmax(1.0, TemperatureUnit::Rms),
        softmax(0.2, TemperatureUnit::Rms),
        policy(Estimator::Histogram),
        EntropyPolicy { bins: 7, range: [-10.3, 2.9], ..policy(Estimator::Histogram) },
    ]
}

fn shown(entropy: &EntropyPolicy) -> String {
    match entropy.estimator {
        Estimator::Softmax => format!("softmax at {} {}", entropy.temperature, entropy.temperature_unit),
        Estimator::Histogram => format!("histogram of {} bins", entropy.bins),
        other => other.to_string(),
    }
}

/// The statistics of gradients of certain sizes as a program, beside their definition.
struct Check {
    entropy: EntropyPolicy,
    program: Compiled,
    /// Largest relative error of S so far.
    worst_energy: f64,
    /// Largest absolute error of a normalised entropy so far.
    worst_entropy: f64,
    tolerance: f64,
}

impl Check {
    fn new(entropy: &EntropyPolicy, sizes: &[usize], reduction: ReductionStyle, tolerance: f64) -> Self {
        let mut module = Module::new("statistics");
        let mut b = Builder::at_entry(&mut module);
        let mut parameter = |(i, &n): (usize, &usize)| {
            b.parameter(&format!("g{i}"), Shape::array(PrimitiveType::F32, &[n as i64])).unwrap()
        };
        let gradients: Vec<_> = sizes.iter().enumerate().map(&mut parameter).collect();
        let measured = statistics_of(&mut module, &gradients, entropy, None, reduction).unwrap();
        module.set_outputs(&[measured.energy, measured.nats]).unwrap();
        let program = Compiled::new(&module);
        Self { entropy: entropy.clone(), program, worst_energy: 0.0, worst_entropy: 0.0, tolerance }
    }

    /// Runs the program on gradients and compares whatever is promised.
    fn run(&mut self, name: &str, gradients: &[Vec<f32>]) {
        let inputs: Vec<_> = gradients.iter().map(|g| Array::vector(g)).collect();
        let outputs = self.program.run(&inputs);
        let (energy, nats) = (outputs[0].floats(), outputs[1].floats());
        let exact: Vec<Array1<f64>> = gradients.iter().map(|g| g.iter().map(|&g| f64::from(g)).collect()).collect();
        let views: Vec<_> = exact.iter().map(|g| g.view()).collect();
        let expected = reference::statistics(&views, &self.entropy);

        // The norm is control's, which adds up S.
        let total = energy.iter().sum::<f32>();
        let energies = energy.iter().chain([&total]);
        let in_range: Vec<bool> = gradients.iter().map(|g| g.iter().all(|&g| normal_square(g))).collect();
        let all_in_range = in_range.iter().all(|&r| r);
        let relative =
            self.entropy.estimator == Estimator::Softmax && self.entropy.temperature_unit == TemperatureUnit::Rms;
        let counts = gradients.iter().map(|g| g.len() as u64);
        let counts = counts.chain([gradients.iter().map(|g| g.len() as u64).sum()]);
        for (i, (((&energy, &nats), expected), n)) in energies.zip(&nats).zip(&expected).zip(counts).enumerate() {
            let at = format!("{}, {name}, tensor {i} of {n} elements: {energy} {nats}", shown(&self.entropy));
            let told_by_energy = energy < f32::MIN_POSITIVE || !energy.is_finite();
            if expected.energy == 0.0 || !expected.energy.is_finite() || expected.energy > f64::from(f32::MAX) {
                assert!(told_by_energy, "{at}: neither inactive nor an anomaly");
                continue;
            }
            let own = in_range.get(i).copied().unwrap_or(all_in_range);
            if !own || (relative && !all_in_range) {
                // Some squares are below what the device can tell from zero: what is left is measured. Beside a
                // gradient that is not finite there is no root mean square.
                let whole_is_finite = total.is_finite() || !relative;
                assert!(told_by_energy || nats.is_finite() || !whole_is_finite, "{at}: not finite");
                continue;
            }
            let error = (f64::from(energy) / expected.energy - 1.0).abs();
            assert!(error <= 1e-5, "{at}: S is {error:e} from {}", expected.energy);
            self.worst_energy = self.worst_energy.max(error);
            if n > 1 {
                let error = (f64::from(nats) - expected.nats).abs() / self.entropy.most_nats(n);
                assert!(error <= self.tolerance, "{at}: h is {error:e} from {}", expected.nats);
                self.worst_entropy = self.worst_entropy.max(error);
            }
        }
    }

    fn report(&self, what: &str) {
        let (s, h) = (self.worst_energy, self.worst_entropy);
        println!("{}, {what}: relative error of S {s:.1e}, of entropy {h:.1e}", shown(&self.entropy));
    }
}

/// Whether g is zero, or its square a normal `f32`.
fn normal_square(g: f32) -> bool {
    g == 0.0 || (g * g >= f32::MIN_POSITIVE && (g * g).is_finite())
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
    add("powers of two", &mut |i| 2.0_f64.powi(i as i32 % 40 - 35));
    add("next to powers of two", &mut |i| f64::from((2.0_f32.powi(i as i32 % 40 - 35)).next_down()));
    add("zeros", &mut |_| 0.0);
    add("1e-30", &mut |_| 1e-30);
    add("1e30", &mut |_| 1e30);
    add("a NaN", &mut |i| if i == n - 1 { f64::NAN } else { 1.0 });
    add("an infinity", &mut |i| if i == 0 { f64::NEG_INFINITY } else { 1.0 });
    cases
}

/// All cases at sizes around every boundary.
fn check_all(reduction: ReductionStyle, estimators: &[EntropyPolicy], sizes: &[usize], tolerance: f64) {
    let mut random = Random::new(1);
    for entropy in estimators {
        for &n in sizes {
            let mut check = Check::new(entropy, &[n], reduction, tolerance);
            for (name, gradient) in cases(n, &mut random) {
                check.run(&name, &[gradient]);
            }
            check.report(&format!("{reduction:?}, n = {n}"));
        }
    }
}

#[test]
fn statistics_are_exact_at_any_size_and_scale() {
    check_all(ReductionStyle::Shares, &estimators(), &[1, 2, 3, 7, 64, 1000, 20_000, 100_003], 1e-5);
}

#[test]
fn sums_by_offset_are_nearly_as_exact() {
    let limit = SHARES_LIMIT as usize;
    check_all(ReductionStyle::Separate, &estimators(), &[limit, limit + 1, 100_003], 2e-5);
}

#[test]
fn one_variadic_reduce_is_exact_enough_where_gradients_are_of_common_size() {
    let mut random = Random::new(3);
    for entropy in estimators() {
        let sizes = [3, 1000, 20_000];
        let mut check = Check::new(&entropy, &sizes, ReductionStyle::Variadic, 3e-5);
        let gradients = sizes.map(|n| (0..n).map(|_| 1e-3 * random.normal() as f32).collect());
        check.run("normal", &gradients);
        check.report("Variadic");
    }
}

#[test]
fn the_whole_gradient_follows_exactly() {
    const SIZES: [usize; 5] = [1, 3, 64, 500, 4000];
    let odd = [0.0, 1e-30, 1e30, f64::NAN, f64::INFINITY];
    for entropy in estimators() {
        let mut check = Check::new(&entropy, &SIZES, ReductionStyle::Shares, 1e-5);
        let mut random = Random::new(5);
        for t in 0..500 {
            // Scales drift apart, by tensor: up and down over thirty orders of magnitude in all.
            let mut gradients: Vec<Vec<f32>> = Vec::new();
            for (i, n) in SIZES.into_iter().enumerate() {
                let scale = 10.0_f64.powf(-3.0 + f64::from(t) / 500.0 * (6.0 - 3.0 * i as f64));
                let mut draw = || Some(random.normal()).filter(|g| g.abs() > 1e-3).unwrap_or(0.0) * scale;
                gradients.push((0..n).map(|_| draw() as f32).collect());
            }
            if t % 3 == 0 {
                let tensor = (random.bits() % 5) as usize;
                match random.bits() % 4 {
                    0 => gradients[tensor].fill(odd[(random.bits() % 3) as usize] as f32),
                    1 => gradients[tensor][0] = odd[(random.bits() % 5) as usize] as f32,
                    2 => gradients[tensor].iter_mut().skip(1).for_each(|g| *g = 0.0),
                    _ => gradients.iter_mut().for_each(|g| g.fill(0.0)),
                }
            }
            check.run(&format!("step {t}"), &gradients);
        }
        check.report("five tensors, 500 steps");
    }
}

#[test]
fn any_rank_and_any_type() {
    let types = [
        (PrimitiveType::F32, ElementType::F32),
        (PrimitiveType::F32, ElementType::F32),
        (PrimitiveType::BF16, ElementType::Bf16),
        (PrimitiveType::F64, ElementType::F64),
        // Of the same dimensions as one before: measured together where that is the style.
        (PrimitiveType::BF16, ElementType::Bf16),
        (PrimitiveType::F32, ElementType::F32),
        (PrimitiveType::F32, ElementType::F32),
    ];
    let dims: [&[i64]; 7] = [&[], &[3, 5], &[7], &[2, 1, 2], &[3, 5], &[7], &[]];
    let mut random = Random::new(8);
    // Values that every type holds exactly.
    let draw = |count: usize| (0..count).map(|_| f64::from(bf16::from_f64(1e-3 * random.normal()))).collect();
    let gradients: Vec<Array1<f64>> = dims.iter().map(|d| d.iter().product::<i64>() as usize).map(draw).collect();
    let arrays = gradients.iter().zip(types).zip(dims).map(|((gradient, (_, element_type)), dims)| {
        let bytes = gradient.iter().flat_map(|&g| match element_type {
            ElementType::F64 => g.to_ne_bytes().to_vec(),
            ElementType::F32 => (g as f32).to_ne_bytes().to_vec(),
            _ => bf16::from_f64(g).to_ne_bytes().to_vec(),
        });
        Array { element_type, dims: dims.to_vec(), bytes: bytes.collect() }
    });
    let arrays: Vec<_> = arrays.collect();
    let views: Vec<_> = gradients.iter().map(|g| g.view()).collect();
    for entropy in estimators() {
        let expected = reference::statistics(&views, &entropy);
        for reduction in [ReductionStyle::Shares, ReductionStyle::Separate, ReductionStyle::Variadic] {
            let mut module = Module::new("statistics");
            let mut b = Builder::at_entry(&mut module);
            let parameters = types.iter().zip(dims).map(|((t, _), dims)| b.parameter("g", Shape::array(*t, dims)));
            let parameters: Vec<_> = parameters.map(Result::unwrap).collect();
            let measured = statistics_of(&mut module, &parameters, &entropy, None, reduction).unwrap();
            module.set_outputs(&[measured.energy, measured.nats]).unwrap();
            let outputs = Compiled::new(&module).run(&arrays);
            for (i, (found, expected)) in outputs[1].floats().into_iter().zip(&expected).enumerate() {
                let at = format!("{}, {reduction:?}, tensor {i}: {found} for {}", shown(&entropy), expected.nats);
                assert!((f64::from(found) - expected.nats).abs() <= 3e-5, "{at}");
            }
            for (found, expected) in outputs[0].floats().into_iter().zip(&expected) {
                assert!((f64::from(found) / expected.energy - 1.0).abs() <= 1e-5, "{found} for {}", expected.energy);
            }
        }
    }
}

#[test]
fn a_tensor_of_forty_million_elements() {
    let n = 40_000_000;
    let mut random = Random::new(2);
    let normal: Vec<f32> =
        (0..n).map(|_| (1e-6 * random.normal()) as f32).map(|g| if g.abs() < 1e-12 { 0.0 } else { g }).collect();
    let tiny: Vec<f32> = normal.iter().map(|&g| if g.abs() < 1e-7 { 1e-16 } else { g * 1e-9 }).collect();
    let mut one_hot = vec![0.0; n];
    one_hot[n / 3] = 1e-15;
    let mut nan = one_hot.clone();
    nan[n - 1] = f32::NAN;
    let gradients = [("normal at 1e-6", [normal]), ("one-hot", [one_hot]), ("NaN", [nan])];
    let others = [("normal at 1e-15", [tiny]), ("constant", [vec![1.1e-3; n]])];
    // One of each kind, and all gradients for the first.
    for (i, entropy) in [0, 1, 2, 5, 6].map(|i| (i, estimators().remove(i))) {
        let mut check = Check::new(&entropy, &[n], ReductionStyle::Shares, 1e-5);
        for (name, gradient) in gradients.iter().chain(others.iter().filter(|_| i == 0)) {
            check.run(name, gradient);
        }
        check.report("n = 40000000");
    }
}

/// Tensors w of dimensions `dims` with w' = w - 0.1·g, g = x·(w·x - y) each; inputs are w, x and y of each.
fn step(dims: &[&[i64]]) -> Module {
    let mut module = Module::new("step");
    let sum = Builder::reducer(&mut module, "sum", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let mut outputs = Vec::new();
    let mut losses = Vec::new();
    for (i, dims) in dims.iter().enumerate() {
        let mut input =
            |name: &str| b.parameter(&format!("{name}{i}"), Shape::array(PrimitiveType::F32, dims)).unwrap();
        let [w, x, y] = ["w", "x", "y"].map(&mut input);
        let product = b.multiply(w, x).unwrap();
        let error = b.subtract(product, y).unwrap();
        let gradient = b.multiply(error, x).unwrap();
        let rate = b.constant_f32(-0.1).unwrap();
        let rate = b.broadcast_scalar_like(rate, gradient).unwrap();
        let update = b.emit(Opcode::Multiply, &[gradient, rate]).unwrap();
        outputs.push(b.add(w, update).unwrap());
        let square = b.multiply(error, error).unwrap();
        let zero = b.constant_f32(0.0).unwrap();
        losses.push(b.reduce_all(square, zero, sum).unwrap());
    }
    let loss = losses.into_iter().reduce(|x, y| b.add(x, y).unwrap()).unwrap();
    outputs.push(loss);
    module.set_outputs(&outputs).unwrap();
    module
}

#[test]
fn injected_steps_tell_entropies_and_keep_their_state_finite() {
    for entropy in estimators() {
        let mut module = step(&[&[2, 3], &[3]]);
        let mut policy = Policy { entropy, ..Policy::default() };
        let layout = inject(&mut module, &policy, InjectOptions::default()).unwrap().layout;
        let kinds: Vec<_> = layout.inputs.iter().map(|input| (input.kind, input.parameter)).collect();
        assert_eq!(kinds, [(ArrayKind::Policy, 6), (ArrayKind::State, 7), (ArrayKind::Counters, 8)]);
        let program = Compiled::new(&module);
        let output = |kind| layout.outputs.iter().find(|o| o.kind == kind).unwrap().output;
        let [state_output, counters_output, telemetry_output] =
            [ArrayKind::State, ArrayKind::Counters, ArrayKind::Telemetry].map(output);
        let (mut state, mut counters) = (layout.initial_state(), layout.initial_counters());
        let mut random = Random::new(7);
        let odd = [f32::NAN, f32::INFINITY, 0.0, 1e30, 1e-30, 1e-19, 3e-45];
        let mut accepted = 0;
        for t in 0..200 {
            if t == 100 {
                // Another number of the policy, the same program.
                policy.entropy.temperature *= 3.0;
            }
            let mut gradients = [6, 3].map(|n| (0..n).map(|_| 0.1 * random.normal() as f32).collect::<Vec<_>>());
            if t % 2 == 1 {
                for gradient in &mut gradients {
                    let odd = odd[(random.bits() % odd.len() as u64) as usize];
                    let count = random.bits() as usize % (gradient.len() + 1);
                    gradient.iter_mut().take(count).for_each(|g| *g = odd);
                }
            }
            let mut inputs = Vec::new();
            for (gradient, dims) in gradients.iter().zip([&[2, 3][..], &[3]]) {
                let y: Vec<f32> = gradient.iter().map(|g| -g).collect();
                let (zeros, ones) = (vec![0.0; y.len()], vec![1.0; y.len()]);
                inputs.extend([&zeros, &ones, &y].map(|values| Array::f32(dims, values)));
            }
            inputs.push(Array::vector(&layout.policy_vector(&policy).unwrap()));
            inputs.push(Array::vector(&state));
            inputs.push(Array::s32(&[counters.len() as i64], &counters));
            let outputs = program.run(&inputs);
            state = outputs[state_output].floats();
            counters = outputs[counters_output].ints();
            let telemetry = Telemetry::decode(&layout, &outputs[telemetry_output].floats()).unwrap();
            let at = format!("{}, step {t}, {gradients:?}: {telemetry:?}", shown(&policy.entropy));
            assert!(state.iter().all(|v| v.is_finite()), "{at}");
            let measured: Vec<_> = telemetry.tensors.iter().chain([&telemetry.global]).collect();
            for m in &measured {
                assert!(m.entropy.is_none_or(|e| (0.0..=1.0).contains(&e)), "{at}");
            }
            assert_eq!(telemetry.finite, gradients.iter().flatten().all(|g| (g * g).is_finite()), "{at}");
            if gradients.iter().flatten().all(|&g| normal_square(g)) {
                accepted += 1;
                let exact = gradients.map(|g| g.iter().map(|&g| f64::from(g)).collect::<Array1<f64>>());
                let expected = reference::statistics(&[exact[0].view(), exact[1].view()], &policy.entropy);
                for ((m, expected), n) in measured.iter().zip(expected).zip([6, 3, 9]) {
                    let expected_entropy = expected.nats / policy.entropy.most_nats(n);
                    match m.entropy {
                        Some(e) => assert!((f64::from(e) - expected_entropy).abs() <= 1e-5, "{at}"),
                        None => assert_eq!(expected.energy, 0.0, "{at}"),
                    }
                }
            }
        }
        assert!(accepted > 100, "{accepted} of 200 steps were compared");
    }
}

#[test]
fn a_histogram_refuses_what_it_cannot_count_and_counts_the_rest() {
    let histogram = "[entropy]\nestimator = \"histogram\"";
    let inject = |rows, policy: &str| {
        let mut module = step(&[&[rows, 32768]]);
        inject(&mut module, &Policy::parse(policy).unwrap(), InjectOptions::default())
    };
    let error = inject(65536, histogram).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_else(|| error.to_string());
    assert!(source.contains("2147483648 elements") && source.contains("counts to 2147483647"), "{source}");
    inject(65535, histogram).unwrap();
    inject(65536, "").unwrap();
}
