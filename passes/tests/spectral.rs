//! Updates with equal singular values: numbers on the CPU plugin against a singular value decomposition, what is treated and
//! what is not, and that a share of 0 leaves every bit alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "../../tests/support/controlled.rs"]
mod controlled;
#[path = "../../tests/support/corpus.rs"]
mod corpus;

use common::{Array, Compiled, Contraction, Random};
use controlled::Controlled;
use hlo::Module;
use nalgebra::DMatrix;
use passes::discover::discover;
use passes::policy::{SpectralDtype, SpectralPolicy};
use passes::spectral::{COEFFICIENTS, Cost, MatrixStyle, classify, standalone, step_flops};
use passes::{InjectOptions, Policy, inject};

// ---------------------------------------------------------------------------------------------------------------------
// The oracle

/// What the iterations make of one singular value.
fn iterated(mut s: f64, iterations: u32) -> f64 {
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..iterations {
        s = a * s + b * s.powi(3) + c * s.powi(5);
    }
    s
}

/// A matrix with singular values that the iterations made, its norm `k` times what it was; and its spectral entropy before.
fn oracle(d: &DMatrix<f64>, iterations: u32, k: f64) -> (DMatrix<f64>, f64) {
    let norm = d.norm();
    let svd = (d / norm).svd(true, true);
    let shares = svd.singular_values.map(|s| s * s);
    let entropy = -(shares.dot(&shares)).ln() / (d.nrows().min(d.ncols()) as f64).ln();
    let mut made = svd;
    made.singular_values = made.singular_values.map(|s| iterated(s, iterations));
    let made = made.recompose().unwrap();
    (&made * (k * norm / made.norm()), entropy)
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> DMatrix<f64> {
    DMatrix::from_row_iterator(rows, columns, values.iter().map(|&v| f64::from(v)))
}

/// Largest deviation, as a share of the largest element.
fn off(found: &DMatrix<f64>, expected: &DMatrix<f64>) -> f64 {
    (found - expected).amax() / expected.amax()
}

fn random(rows: usize, columns: usize, seed: u64) -> DMatrix<f64> {
    let mut random = Random::new(seed);
    DMatrix::from_fn(rows, columns, |_, _| random.normal())
}

/// A matrix with these singular values.
fn with_singular_values(rows: usize, columns: usize, values: &[f64], seed: u64) -> DMatrix<f64> {
    let mut svd = random(rows, columns, seed).svd(true, true);
    svd.singular_values.iter_mut().enumerate().for_each(|(i, s)| *s = values.get(i).copied().unwrap_or(0.0));
    svd.recompose().unwrap()
}

fn row_major(d: &DMatrix<f64>) -> Vec<f32> {
    d.transpose().iter().map(|&v| v as f32).collect()
}

struct Told {
    matrices: Vec<f32>,
    entropy: Vec<f32>,
    differs: bool,
}

/// Runs a stack of `count` matrices through the program alone.
fn run(dims: [i64; 3], d: &[f32], numbers: [f32; 3], spectral: &SpectralPolicy) -> Told {
    let scalar = |v: f32| Array::f32(&[], &[v]);
    let module = standalone(dims, spectral).unwrap();
    let [alpha, target, k] = numbers;
    let outputs = Compiled::shared(&module).run(&[Array::f32(&dims, d), scalar(alpha), scalar(target), scalar(k)]);
    Told { matrices: outputs[0].floats(), entropy: outputs[1].floats(), differs: outputs[2].bytes == [1] }
}

#[test]
fn singular_values_are_made_equal_as_a_decomposition_says() {
    for (rows, columns, iterations) in [(16, 16, 5), (16, 40, 5), (40, 16, 3), (33, 20, 4)] {
        let spectral = SpectralPolicy { iterations, ..Default::default() };
        let values: Vec<f64> = (0..rows.min(columns)).map(|i| 0.7_f64.powi(i as i32)).collect();
        for d in [random(rows, columns, 1), with_singular_values(rows, columns, &values, 2)] {
            let dims = [1, rows as i64, columns as i64];
            let told = run(dims, &row_major(&d), [1.0, 1.0, 2.0], &spectral);
            let (expected, entropy) = oracle(&d, iterations, 2.0);
            let found = matrix(rows, columns, &told.matrices);
            assert!(off(&found, &expected) < 2e-4, "{rows} x {columns}: off by {}", off(&found, &expected));
            assert!((found.norm() / (2.0 * d.norm()) - 1.0).abs() < 1e-5, "{rows} x {columns}");
            assert!((f64::from(told.entropy[0]) - entropy).abs() < 1e-5, "{} is not {entropy}", told.entropy[0]);
            assert!(told.differs);
        }
    }
}

#[test]
fn bf16_products_are_near_and_keep_norm_and_entropy() {
    let spectral = SpectralPolicy { dtype: SpectralDtype::Bf16, ..Default::default() };
    let d = random(24, 48, 3);
    let told = run([1, 24, 48], &row_major(&d), [1.0, 1.0, 1.0], &spectral);
    let (expected, entropy) = oracle(&d, 5, 1.0);
    let found = matrix(24, 48, &told.matrices);
    assert!(off(&found, &expected) < 0.06, "{}", off(&found, &expected));
    assert!((found.norm() / d.norm() - 1.0).abs() < 1e-4);
    assert!((f64::from(told.entropy[0]) - entropy).abs() < 3e-3);
}

#[test]
fn entropy_is_0_for_one_direction_and_1_for_all() {
    let entropy = |d: &DMatrix<f64>| {
        let dims = [1, d.nrows() as i64, d.ncols() as i64];
        run(dims, &row_major(d), [1.0, 1.0, 1.0], &SpectralPolicy::default()).entropy[0]
    };
    assert!(entropy(&with_singular_values(16, 32, &[3.0], 4)) < 1e-5);
    assert!((entropy(&with_singular_values(16, 32, &[2.0; 16], 4)) - 1.0).abs() < 1e-5);
    // Four of sixteen directions: ln 4 / ln 16.
    assert!((entropy(&with_singular_values(16, 32, &[2.0; 4], 4)) - 0.5).abs() < 1e-5);
}

#[test]
fn the_mix_is_a_mix_and_a_target_moves_only_what_is_short_of_it() {
    let d = with_singular_values(16, 32, &[2.0; 4], 5);
    let at = |alpha: f32, target: f32| {
        let told = run([1, 16, 32], &row_major(&d), [alpha, target, 2.0], &SpectralPolicy::default());
        (matrix(16, 32, &told.matrices), told.differs)
    };
    let (equal, _) = oracle(&d, 5, 2.0);
    let mixed = |alpha: f64| &d * (1.0 - alpha) + &equal * alpha;
    assert!(off(&at(0.3, 1.0).0, &mixed(0.3)) < 1e-4);
    // The entropy is 0.5, half of the way from there to 0.75.
    assert!(off(&at(1.0, 0.75).0, &mixed(0.5)) < 1e-4);
    assert!(off(&at(0.5, 0.75).0, &mixed(0.25)) < 1e-4);
    for (alpha, target) in [(0.0, 1.0), (1.0, 0.4)] {
        let (found, differs) = at(alpha, target);
        assert_eq!(row_major(&found), row_major(&d));
        assert!(!differs);
    }
}

#[test]
fn zero_rank_one_huge_tiny_and_non_finite_matrices_are_safe() {
    let spectral = SpectralPolicy::default();
    let one = with_singular_values(16, 16, &[1.0], 6);
    let full = random(16, 16, 7);
    for scale in [1e-30, 1e-20, 1.0, 1e20, 1e36] {
        for d in [&one * scale, &full * scale] {
            let values = row_major(&d);
            let told = run([1, 16, 16], &values, [1.0, 1.0, 1.5], &spectral);
            let d = matrix(16, 16, &values);
            let (expected, _) = oracle(&d, 5, 1.5);
            let found = matrix(16, 16, &told.matrices);
            assert!(told.differs && off(&found, &expected) < 1e-3, "{scale}: {}", off(&found, &expected));
        }
    }
    // Each matrix of a stack by itself: what is not sound is left as it is, bit for bit, and others are treated.
    let mut stack: Vec<f32> = Vec::new();
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    stack.extend(vec![0.0; 256]);
    for value in odd {
        let mut values = row_major(&full);
        values[37] = value;
        stack.extend(values);
    }
    // Times k its norm is more than f32 holds.
    stack.extend(row_major(&(&full * 8e37)));
    stack.extend(row_major(&full));
    let told = run([6, 16, 16], &stack, [1.0, 1.0, 100.0], &spectral);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&told.matrices[..5 * 256]), bits(&stack[..5 * 256]));
    let (expected, _) = oracle(&full, 5, 100.0);
    assert!(off(&matrix(16, 16, &told.matrices[5 * 256..]), &expected) < 1e-3);
    let told = run([1, 16, 16], &vec![0.0; 256], [1.0, 1.0, 1.0], &spectral);
    assert!(!told.differs && told.matrices == vec![0.0; 256]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps

/// A policy that does nothing else.
fn policy(text: &str) -> Policy {
    let spectral = Policy::parse(&format!("[spectral]\nenabled = true\n{text}")).unwrap().spectral;
    Policy { spectral, ..Policy::monitor() }
}

/// Two products and momentum with decoupled weight decay, by hand: m' = 0.9·m + g, p' = p - 0.01·(m' + 0.1·p).
const STEP: &str = r#"HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: f32[16,32], q: f32[32,4], m: f32[16,32], n: f32[32,4], x: f32[8,16], y: f32[8,4]) -> (f32[16,32], f32[32,4], f32[16,32], f32[32,4], f32[]) {
  %p = f32[16,32]{1,0} parameter(0), metadata={op_name="p"}
  %q = f32[32,4]{1,0} parameter(1), metadata={op_name="q"}
  %m = f32[16,32]{1,0} parameter(2)
  %n = f32[32,4]{1,0} parameter(3)
  %x = f32[8,16]{1,0} parameter(4)
  %y = f32[8,4]{1,0} parameter(5)
  %h = f32[8,32]{1,0} dot(%x, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[8,4]{1,0} dot(%h, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %e = f32[8,4]{1,0} subtract(%z, %y)
  %s = f32[8,4]{1,0} multiply(%e, %e)
  %zero = f32[] constant(0)
  %loss = f32[] reduce(%s, %zero), dimensions={0,1}, to_apply=%sum
  %gq = f32[32,4]{1,0} dot(%h, %e), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %dh = f32[8,32]{1,0} dot(%e, %q), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %gp = f32[16,32]{1,0} dot(%x, %dh), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %b = f32[] constant(0.9)
  %lr = f32[] constant(0.01)
  %wd = f32[] constant(0.1)
  %bp = f32[16,32]{1,0} broadcast(%b), dimensions={}
  %bq = f32[32,4]{1,0} broadcast(%b), dimensions={}
  %lp = f32[16,32]{1,0} broadcast(%lr), dimensions={}
  %lq = f32[32,4]{1,0} broadcast(%lr), dimensions={}
  %wp = f32[16,32]{1,0} broadcast(%wd), dimensions={}
  %mk = f32[16,32]{1,0} multiply(%bp, %m)
  %m1 = f32[16,32]{1,0} add(%mk, %gp)
  %nk = f32[32,4]{1,0} multiply(%bq, %n)
  %n1 = f32[32,4]{1,0} add(%nk, %gq)
  %dp = f32[16,32]{1,0} multiply(%wp, %p)
  %tp = f32[16,32]{1,0} add(%m1, %dp)
  %up = f32[16,32]{1,0} multiply(%lp, %tp)
  %uq = f32[32,4]{1,0} multiply(%lq, %n1)
  %p1 = f32[16,32]{1,0} subtract(%p, %up)
  %q1 = f32[32,4]{1,0} subtract(%q, %uq)
  ROOT %out = (f32[16,32]{1,0}, f32[32,4]{1,0}, f32[16,32]{1,0}, f32[32,4]{1,0}, f32[]) tuple(%p1, %q1, %m1, %n1, %loss)
}
"#;

fn step() -> Module {
    hlo::text::parse(STEP).unwrap()
}

/// Inputs of [`STEP`], x times `scale`.
fn inputs(scale: f32) -> Vec<Array> {
    let mut random = Random::new(8);
    let mut draw = |dims: &[i64], scale: f32| {
        let count = dims.iter().product::<i64>();
        Array::f32(dims, &(0..count).map(|_| random.normal() as f32 * scale).collect::<Vec<_>>())
    };
    let [p, q, m, n] = [[16, 32], [32, 4], [16, 32], [32, 4]].map(|dims| draw(&dims, 0.1));
    vec![p, q, m, n, draw(&[8, 16], scale), draw(&[8, 4], 1.0)]
}

/// The new value of p in [`STEP`], where `made` is what became of the momentum: p - 0.01·(made + 0.1·p).
fn decayed(p: &Array, made: &DMatrix<f64>) -> DMatrix<f64> {
    let p = matrix(16, 32, &p.floats());
    &p - (made + &p * 0.1) * 0.01
}

#[test]
fn the_update_is_treated_and_weight_decay_is_left_alone() {
    let inputs = inputs(1.0);
    let plain = Compiled::new(&step()).run(&inputs);
    let moment = matrix(16, 32, &plain[2].floats());
    let (made, entropy) = oracle(&moment, 5, 2.0);

    let mut controlled = Controlled::new(&step(), &policy("k = 2.0")).unwrap();
    let found = controlled.run(&inputs);
    let expected = decayed(&inputs[0], &made);
    assert!(off(&matrix(16, 32, &found[0].floats()), &expected) < 1e-5);
    // The head, the moments and the loss are as they were.
    assert!(found[1..] == plain[1..]);
    let told = controlled.told().spectral.clone().unwrap();
    assert!((f64::from(told.tensors[0].unwrap()) - entropy).abs() < 1e-5, "{told:?}, not {entropy}");
    assert_eq!((told.tensors[1], told.entropy), (None, told.tensors[0]));

    // Query and key side by side, each by itself.
    let mut split = Controlled::new(&step(), &policy("k = 2.0\n[spectral.tensors]\n\"p\" = { split = 2 }")).unwrap();
    let found = split.run(&inputs);
    let halves = [0, 16].map(|first| oracle(&moment.columns(first, 16).into_owned(), 5, 2.0));
    let side_by_side = DMatrix::from_fn(16, 32, |r, c| halves[c / 16].0[(r, c % 16)]);
    assert!(off(&matrix(16, 32, &found[0].floats()), &decayed(&inputs[0], &side_by_side)) < 1e-5);
    let mean = (halves[0].1 + halves[1].1) / 2.0;
    assert!((f64::from(split.told().spectral.as_ref().unwrap().entropy.unwrap()) - mean).abs() < 1e-5);
}

#[test]
fn numbers_can_be_changed_and_scales_scale_what_was_chosen() {
    let inputs = inputs(1.0);
    let plain = Compiled::new(&step()).run(&inputs);
    let (made, _) = oracle(&matrix(16, 32, &plain[2].floats()), 5, 1.0);
    let mut policy = policy("");
    policy.scale.tensors.insert("*".into(), 0.5);
    let mut controlled = Controlled::new(&step(), &policy).unwrap();
    let p = matrix(16, 32, &inputs[0].floats());
    let half = |new: &DMatrix<f64>| &p + (new - &p) * 0.5;
    let run = |controlled: &mut Controlled| matrix(16, 32, &controlled.run(&inputs)[0].floats());
    assert!(off(&run(&mut controlled), &half(&decayed(&inputs[0], &made))) < 1e-5);
    policy.spectral.tensors.insert("p".into(), passes::policy::SpectralTensor { k: Some(3.0), ..Default::default() });
    controlled.obey(&policy);
    assert!(off(&run(&mut controlled), &half(&decayed(&inputs[0], &(&made * 3.0)))) < 1e-5);
    policy.spectral.enabled = false;
    controlled.obey(&policy);
    assert!(off(&run(&mut controlled), &half(&matrix(16, 32, &plain[0].floats()))) < 1e-6);
}

#[test]
fn laws_see_the_entropies_of_the_last_applied_step() {
    let text = "[laws]\nsignal = \"spectral\"\n[laws.micro]\nenabled = true\nmin_elements = 1";
    let laws = Policy::parse(&format!("[spectral]\nenabled = true\n{text}")).unwrap().laws;
    let mut controlled = Controlled::new(&step(), &Policy { laws, ..policy("alpha = 0.0") }).unwrap();
    let first = inputs(1.0);
    controlled.run(&first);
    let told = controlled.told().clone();
    // Nothing has been told before the first step, and what that told is what the second one follows.
    assert_eq!((told.tensors[0].smoothed, told.global.smoothed), (None, None));
    controlled.run(&first);
    let spectral = told.spectral.unwrap();
    let second = controlled.told();
    assert_eq!((second.tensors[0].smoothed, second.tensors[1].smoothed), (spectral.tensors[0], None));
    assert_eq!(second.global.smoothed, spectral.entropy);
}

#[test]
fn what_is_not_finite_or_zero_is_the_plain_step_bit_for_bit() {
    let mut odd = inputs(1.0);
    odd[4] = Array::f32(&[8, 16], &[f32::NAN; 128]);
    let mut still = inputs(0.0);
    still[2] = Array::f32(&[16, 32], &[0.0; 512]);
    let plain = Compiled::with(&step(), Contraction::Impossible);
    let mut controlled = Controlled::with(&step(), &policy("k = 2.0"), Contraction::Impossible).unwrap();
    for inputs in [odd, still] {
        assert!(controlled.run(&inputs) == plain.run(&inputs));
        assert_eq!(controlled.told().spectral.as_ref().unwrap().entropy, None);
    }
    // A gate sees what it saw: the gradient.
    let gated = Policy { spectral: policy("").spectral, ..Policy::default() };
    let mut gated = Controlled::new(&step(), &gated).unwrap();
    let mut odd = inputs(1.0);
    odd[4] = Array::f32(&[8, 16], &[f32::NAN; 128]);
    let found = gated.run(&odd);
    assert!(!gated.told().applied && found[..4] == odd[..4]);
}

#[test]
fn matrices_of_one_size_together_are_the_same_as_each_by_itself() {
    let case = corpus::case("rnn_rmsprop");
    let run = |matrices| {
        let options = InjectOptions { matrices, ..Default::default() };
        // The recurrent matrix and the head are of one size.
        let asked = "[spectral.tensors]\n\"*['wo']\" = { enabled = true, k = 3.0 }";
        let policy = policy(&format!("k = 2.0\niterations = 3\n{asked}"));
        let mut step = Controlled::emitted(&case.module, &policy, options, Contraction::Indifferent).unwrap();
        let outputs = step.run(&case.inputs);
        (outputs, step.told().spectral.clone().unwrap())
    };
    let ((each, told), (together, told_together)) = (run(MatrixStyle::Each), run(MatrixStyle::Together));
    for (x, y) in each.iter().zip(&together).filter(|(x, _)| x.element_type == pjrt::ElementType::F32) {
        let largest = x.floats().iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let close = |(x, y): (f32, f32)| (x - y).abs() <= 1e-5 * largest;
        assert!(x.floats().into_iter().zip(y.floats()).all(close));
    }
    assert_eq!(told.tensors.iter().flatten().count(), 2);
    for (x, y) in told.tensors.iter().zip(&told_together.tensors) {
        assert!(x.is_some() == y.is_some() && x.zip(*y).is_none_or(|(x, y)| (x - y).abs() < 1e-5));
    }
}

/// The new value of a matrix under each optimizer whose update holds no weight decay, as the decomposition says.
#[test]
fn every_optimizer_s_update_is_treated() {
    for name in [
        "mlp_adam",
        "mlp_sgd",
        "mlp_nesterov",
        "mlp_adafactor",
        "mlp_hand_adam",
        "mlp_apply_if_finite",
        "mlp_bf16params_master",
        "mlp_lamb",
    ] {
        let case = corpus::case(name);
        let mut step =
            Controlled::new(&case.module, &policy("k = 2.0\niterations = 3")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = step.run(&case.inputs);
        let told = step.told().spectral.as_ref().unwrap().entropy.unwrap();
        // With a share of 0 it is the plain step.
        step.obey(&policy("alpha = 0.0\niterations = 3"));
        let expected = step.run(&case.inputs);
        let treated = step.step.controlled().zip(&step.layout.matrices).filter(|(_, m)| m.matrices.is_some());
        let treated: Vec<_> = treated.map(|((parameter, _), _)| parameter).collect();
        assert_eq!(treated.len(), 1, "{name}");
        let (input, parameter) = (treated[0].master.unwrap_or(treated[0].input), treated[0]);
        let output = step.step.state(input).unwrap().output;
        let dims = parameter.shape.dims();
        let of = |array: &Array| matrix(dims[0] as usize, dims[1] as usize, &array.floats());
        let (old, plain, new) = (of(&case.inputs[input]), of(&expected[output]), of(&found[output]));
        let (made, entropy) = oracle(&(&plain - &old), 3, 2.0);
        // The update is known as precisely as the parameter is.
        assert!(off(&(&new - &old), &made) < 0.03, "{name}: {}", off(&(&new - &old), &made));
        assert!((f64::from(told) - entropy).abs() < 2e-3, "{name}: {told}, not {entropy}");
    }
}

#[test]
fn a_switched_update_is_treated_as_well() {
    let case = corpus::case("mlp_adam");
    let mut policies = [Policy::monitor(), policy("k = 2.0\nalpha = 1.0")];
    for policy in &mut policies {
        policy.switch = Policy::parse("[switch]\nenabled = true\ntrigger = \"step\"\nstep = 3").unwrap().switch;
    }
    let mut neutral = policies[1].clone();
    neutral.spectral.alpha = 0.0;
    let mut by_sgd = Controlled::new(&case.module, &policies[0]).unwrap();
    let mut treated = Controlled::new(&case.module, &policies[1]).unwrap();
    treated.obey(&neutral);
    let mut inputs = case.inputs.clone();
    for _ in 0..3 {
        let outputs = by_sgd.run(&inputs);
        treated.run(&inputs);
        inputs = case.next(&inputs, &outputs);
    }
    treated.obey(&policies[1]);
    let (plain, found) = (by_sgd.run(&inputs), treated.run(&inputs));
    assert!(by_sgd.told().switch.as_ref().unwrap().switched && treated.told().switch.as_ref().unwrap().switched);
    let (parameter, _) =
        treated.step.controlled().zip(&treated.layout.matrices).find(|(_, m)| m.matrices.is_some()).unwrap();
    let of = |array: &Array| matrix(16, 24, &array.floats());
    let old = of(&inputs[parameter.0.input]);
    let (plain, found) = (of(&plain[parameter.0.output]) - &old, of(&found[parameter.0.output]) - &old);
    let (made, _) = oracle(&plain, 5, 2.0);
    assert!(off(&found, &made) < 0.03, "{}", off(&found, &made));
}

// ---------------------------------------------------------------------------------------------------------------------
// What is treated

#[test]
fn each_tensor_of_the_corpus_has_its_class() {
    let classes = |name: &str| {
        let mut module = corpus::module(name);
        module.inline_calls(|callee| callee.contains("xla.sdy")).unwrap();
        let step = discover(&module).unwrap();
        let classes = classify(&module, &step);
        let told = step.parameters.iter().zip(classes).map(|(p, found)| {
            let matrices = found.matrices.map_or(String::new(), |m| format!(" {m}"));
            format!("{}: {}{matrices}", p.name.rsplit("['").next().unwrap().trim_end_matches("']"), found.class)
        });
        told.collect::<Vec<_>>()
    };
    let scanned = [
        "fc: stack 3 of 16 x 64",
        "ln1: no matrix",
        "ln2: no matrix",
        "o: stack 3 of 16 x 16",
        "pr: stack 3 of 64 x 16",
        "qkv: stack 3 of 16 x 48",
        "emb: embedding",
        "head: head 16 x 32",
        "lnf: no matrix",
        "pos: no matrix",
    ];
    for name in ["gptscan_adamw_clip", "gptremat_adam", "gptscan_muon"] {
        assert_eq!(classes(name), scanned, "{name}");
    }
    assert_eq!(classes("mlp_adam"), ["b1: no matrix", "b2: no matrix", "w1: matrix 16 x 24", "w2: head 24 x 10"]);
    assert_eq!(classes("multistep_loop"), classes("mlp_adam"));
    assert_eq!(classes("mesh_shardmap"), classes("mlp_adam"));
    assert_eq!(classes("mesh_jit"), classes("mlp_adam"));
    assert_eq!(classes("rnn_rmsprop")[2..], ["wh: matrix 16 x 16", "wo: head 16 x 16", "wx: matrix 8 x 16"]);
    let convolutions = classes("cnn_trainstate_adamw_clip");
    assert_eq!(
        [&convolutions[3], &convolutions[5], &convolutions[7]],
        ["kernel: kernel", "kernel: kernel", "kernel: head 32 x 10"]
    );
    let tied = classes("gpttied_unroll_adamw");
    assert!(
        tied.contains(&"emb: embedding 32 x 16".to_owned()) && !tied.iter().any(|told| told.contains("head")),
        "{tied:?}"
    );
}

#[test]
fn a_share_of_0_leaves_every_bit_alone() {
    for name in ["mlp_adamw_clip", "mlp_bf16params_master"] {
        let case = corpus::case(name);
        let plain = Compiled::with(&case.module, Contraction::Impossible);
        let policy = policy("alpha = 0.0\niterations = 3");
        let mut step = Controlled::with(&case.module, &policy, Contraction::Impossible).unwrap();
        let mut inputs = case.inputs.clone();
        for t in 0..3 {
            let expected = plain.run(&inputs);
            let found = step.run(&inputs);
            assert!(found == expected, "{name}: step {t}");
            assert!(step.told().spectral.as_ref().unwrap().entropy.unwrap() > 0.0);
            inputs = case.next(&inputs, &expected);
        }
    }
}

#[test]
fn what_is_left_alone_has_its_reason() {
    let injected = |module: &Module, text: &str| inject(&mut module.clone(), &policy(text), InjectOptions::default());
    let layout = injected(&step(), "").unwrap().layout;
    assert_eq!(layout.matrices[0].matrices.unwrap().to_string(), "16 x 32");
    assert!(layout.matrices[1].reason.as_ref().unwrap().starts_with("head: the loss has no product"), "{layout:?}");
    let asked = injected(&step(), "[spectral.tensors]\n\"q\" = { enabled = true }").unwrap().layout;
    assert_eq!(asked.matrices[1].matrices.unwrap().to_string(), "32 x 4");
    for (text, expected) in [
        ("min_side = 17", "no tensor of this step is treated: p: 16 x 32 has a side shorter than 17"),
        ("[spectral.tensors]\n\"p\" = { enabled = false }", "treated: p: the policy says so"),
        ("[spectral.tensors]\n\"p\" = { split = 3, enabled = true }", "p (`spectral.tensors.\"p\"`): axis 1"),
        ("[spectral.tensors]\n\"r\" = { k = 2.0 }", "names no tensor"),
    ] {
        let error = injected(&step(), text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    // Of tensors that devices of a mesh have parts of.
    let error = injected(&corpus::module("mesh_jit"), "").map(|i| i.layout.matrices).unwrap_err().to_string();
    assert!(error.contains("is split over devices") && error.contains("w1"), "{error}");
}

#[test]
fn structure_stays_and_numbers_may_change() {
    let layout = inject(&mut step(), &policy(""), InjectOptions::default()).unwrap().layout;
    let refused = |text: &str| layout.policy_vector(&policy(text)).unwrap_err().to_string();
    assert!(refused("iterations = 4").contains("spectral.iterations = 5, and the policy says 4"));
    assert!(refused("dtype = \"bf16\"").contains("spectral.dtype = f32"));
    assert!(refused("min_side = 8").contains("spectral.min_side = 16"));
    let split = refused("[spectral.tensors]\n\"p\" = { split = 2 }");
    assert!(split.contains("p: nothing is different, and the policy says p: split = 2"), "{split}");
    let plain = inject(&mut step(), &Policy::monitor(), InjectOptions::default()).unwrap().layout;
    let error = plain.policy_vector(&policy("")).unwrap_err().to_string();
    assert!(error.contains("spectral.enabled = false"), "{error}");
    layout
        .policy_vector(&policy("k = 3.0\nalpha = 0.5\ntarget = 0.9\n[spectral.tensors]\n\"p\" = { k = 2.0 }"))
        .unwrap();
    layout.policy_vector(&Policy::monitor()).unwrap();
    // In the body of a loop over steps as anywhere else.
    let looped = inject(&mut corpus::module("multistep_loop"), &policy(""), InjectOptions::default()).unwrap().layout;
    assert_eq!(looped.matrices.iter().filter(|m| m.matrices.is_some()).count(), 1);
}

#[test]
fn what_is_emitted_is_as_it_was() {
    let module = standalone([1, 16, 24], &SpectralPolicy { iterations: 3, ..Default::default() }).unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let text = hlo::text::print(&module, hlo::text::Preset::Snapshot);
    settings.bind(|| insta::assert_snapshot!("spectral-alone", text));
}

#[test]
fn the_cost_follows_from_shapes_and_trips() {
    let layout = inject(&mut step(), &policy(""), InjectOptions::default()).unwrap().layout;
    let cost = Cost::of(&step(), &layout);
    // Three products with p, of 2·8·16·32 each, and ones with q, of 2·8·32·4.
    assert_eq!(cost.step, 2 * 2 * 8 * 16 * 32 + 3 * 2 * 8 * 32 * 4);
    assert_eq!(cost.spectral, 5 * (2 * 2 * 16 * 16 * 32 + 2 * 16 * 16 * 16));
    assert!(!cost.unknown_loops && cost.share() > 1.0);
    // Four steps in a loop cost four times what one costs.
    let [(one, _), (loops, unknown)] = ["mlp_adam", "multistep_loop"].map(|name| step_flops(&corpus::module(name)));
    assert!(one > 0 && loops % one == 0 && loops > one && !unknown, "{one} and {loops}");
}
