//! What holds whatever the policy and whatever the gradients: scales inside their clamps, a finite state, counters that
//! do not turn negative, coefficients below 1, and the decisions of the reference.
//!
//! A program is compiled for each structure, once; numbers are random inside the ranges that a policy allows. The cases
//! are the same in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` choose others.

use std::cell::RefCell;

use hlo::build::Builder;
use hlo::{Module, Opcode, PrimitiveType, Shape};
use passes::policy::{GroupPolicy, TargetKind, Votes};
use passes::reference::{Statistics, Step};
use passes::{Policy, Telemetry};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use super::common::Array;
use super::controlled::Controlled;
use super::pair::whole;
use super::{ELEMENTS, Fed, Pair};

/// The same cases every time, unless the environment asks for others.
fn config(cases: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    let rng_seed = if given.rng_seed == RngSeed::Random { RngSeed::Fixed(20) } else { given.rng_seed };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { given.cases } else { cases };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..given }
}

/// Everything that shapes the program; the numbers are drawn.
const STRUCTURES: [&str; 6] = [
    "[scale.tensors]\n\"*\" = 1.0",
    "[entropy]\nsmoothing = 1\n[laws.micro]\nenabled = true\n[laws.rule]\nenabled = true",
    "[laws]\ntiming = \"delayed\"\n[laws.pi]\nenabled = true",
    "[entropy]\nsmoothing = 7\n[laws.micro]\nenabled = true\n[laws.pi]\nenabled = true\n[groups.a]\ninclude = [\"*t0*\"]\nmax = 2",
    "[laws]\ntiming = \"delayed\"\n[laws.micro]\nenabled = true\n[laws.rule]\nenabled = true\n[momentum]\nscale = 0.9\n\
     [groups.a]\ninclude = [\"*t0*\", \"*t2*\"]\nlaws = false",
    "[rollback]\nkind = \"snapshot\"\n[laws.rule]\nenabled = true\n[switch]\nenabled = true\ntrigger = \"settled\"",
];

/// A number that is mostly of a size at which things happen, and now and then anywhere in its range.
fn number(low: f64, high: f64, [from, to]: [f64; 2]) -> impl Strategy<Value = f64> {
    prop_oneof![6 => from..=to, 1 => low..=high, 1 => Just(low), 1 => Just(high)]
}

/// A count that is mostly small.
fn count(low: u32, usual: u32) -> impl Strategy<Value = u32> {
    prop_oneof![8 => low..=usual, 1 => low..=1_000_000]
}

/// A policy of drawn numbers, with one group; see [`with`].
fn numbers() -> impl Strategy<Value = Policy> {
    let gates = (
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        count(1, 6),
        (number(1.000_001, 1e6, [1.01, 3.0]), number(0.0, 100.0, [0.0, 8.0])),
        number(1.0, 1e6, [1.0, 30.0]),
        count(0, 20),
        (number(0.0, 0.999_999, [0.5, 0.99]), number(1.000_001, 100.0, [1.01, 1.5]), count(0, 20)),
    );
    let target = (
        any::<bool>(),
        number(0.01, 1.0, [0.3, 0.9]),
        number(0.9, 1.0, [0.98, 1.0]),
        number(1.0, 1e6, [1.0, 50.0]),
        (count(1, 12), count(1, 25)),
    );
    let factor = || number(0.1, 10.0, [0.7, 1.4]);
    let micro = (number(0.0, 10.0, [0.7, 1.3]), factor(), number(0.0, 1.0, [0.0, 0.5]), count(1, 4));
    let rule = (
        (number(0.0, 1.0, [0.8, 1.0]), number(1.0, 10.0, [1.0, 1.2])),
        [factor(), factor(), factor(), factor()],
        number(1.0, 100.0, [1.0, 2.0]),
        number(0.0, 1.0, [0.0, 0.5]),
        count(1, 4),
    );
    let pi = (number(0.0, 100.0, [0.0, 6.0]), number(0.0, 100.0, [0.0, 1.0]), count(1, 4));
    let laws = (count(0, 15), number(1.0, 100.0, [1.0, 4.0]), micro, rule, pi);
    let scales = (number(0.0, 1e3, [0.5, 2.0]), number(0.0, 1e3, [0.5, 2.0]), number(0.0, 0.9999, [0.9, 0.9999]));
    let group = (
        proptest::option::of(any::<bool>()),
        proptest::option::of(number(1.0, 100.0, [1.0, 6.0])),
        proptest::option::of(number(0.0, 1e3, [0.5, 2.0])),
        proptest::option::of(factor()),
    );
    let rollback = (
        (count(1, 4), count(1, 8), number(1.0, 1e6, [1.0, 3.0])),
        (number(0.01, 1.0, [0.3, 1.0]), number(0.01, 1.0, [0.05, 0.5]), number(1.0, 1e6, [1.0, 20.0])),
        (count(0, 20), number(1.0, 1e6, [1.0, 30.0]), number(0.0, 1.0, [0.0, 0.5]), count(1, 10)),
    );
    (gates, target, laws, scales, group, rollback).prop_map(|(gates, target, laws, scales, group, rollback)| {
        let mut policy = Policy::default();
        let gate = &mut policy.gate;
        ((gate.non_finite, gate.norm.enabled, gate.entropy.enabled, _), gate.max_pause, ..) = gates;
        gate.votes = if gates.0.3 { Votes::All } else { Votes::Any };
        (_, _, (gate.norm.multiple, gate.norm.deviations), gate.norm.half_life, gate.norm.warmup, _) = gates;
        (gate.entropy.low, gate.entropy.high, gate.entropy.warmup) = gates.5;
        policy.target.kind = if target.0 { TargetKind::Fixed } else { TargetKind::History };
        (_, policy.target.value, policy.target.decay, policy.target.half_life, _) = target;
        (policy.target.first, policy.target.every) = target.4;
        let to = &mut policy.laws;
        (to.warmup, to.max, ..) = laws;
        (to.micro.below, to.micro.factor, to.micro.relax, to.micro.period) = laws.2;
        to.micro.min_elements = 1;
        (to.rule.low, to.rule.high) = laws.3.0;
        [to.rule.lr_low, to.rule.lr_high, to.rule.momentum_low, to.rule.momentum_high] = laws.3.1;
        (_, _, to.rule.momentum_max, to.rule.relax, to.rule.period) = laws.3;
        (to.pi.kp, to.pi.ki, to.pi.period) = laws.4;
        (policy.scale.global, policy.momentum.scale, policy.momentum.cap) = scales;
        let (laws, max, scale, factor) = group;
        let (include, exclude) = (vec!["*".to_owned()], Vec::new());
        let group = GroupPolicy { include, exclude, scale, momentum: None, laws, below: None, factor, max };
        (policy.rollback.patience, policy.rollback.refresh, policy.rollback.calm) = rollback.0;
        (policy.rollback.backoff, policy.rollback.backoff_min, policy.rollback.recover) = rollback.1;
        (policy.switch.warmup, policy.switch.half_life, policy.switch.tolerance, policy.switch.period) = rollback.2;
        policy.groups.insert("drawn".to_owned(), group);
        policy
    })
}

/// The structure of one policy with the numbers of another.
fn with(numbers: &Policy, structure: &Policy) -> Policy {
    let mut policy = Policy { entropy: structure.entropy.clone(), ..numbers.clone() };
    (policy.scale.tensors, policy.groups) = (structure.scale.tensors.clone(), structure.groups.clone());
    if !structure.scales_momentum() {
        policy.momentum = structure.momentum.clone();
    }
    policy.rollback.kind = structure.rollback.kind;
    (policy.switch.enabled, policy.switch.trigger) = (structure.switch.enabled, structure.switch.trigger);
    if policy.rollback.keeps_snapshot() && !policy.gates() {
        policy.gate.non_finite = true;
    }
    let (laws, shaped) = (&mut policy.laws, &structure.laws);
    laws.timing = shaped.timing;
    (laws.micro.enabled, laws.rule.enabled, laws.pi.enabled) =
        (shaped.micro.enabled, shaped.rule.enabled, shaped.pi.enabled);
    // That tensors have clamps of their own is structure; what they are, is not.
    for (group, drawn) in policy.groups.values_mut().zip(numbers.groups.values()) {
        *group = GroupPolicy { include: std::mem::take(&mut group.include), ..drawn.clone() };
    }
    policy.validate().unwrap();
    policy
}

/// Energy of a tensor's gradient, per element: ordinary, or as bad as it gets.
fn energy(hostile: bool) -> BoxedStrategy<f32> {
    let ordinary = (-1.0_f32..1.0).prop_map(|e| 10.0_f32.powf(e)).boxed();
    let odd = prop::sample::select(vec![0.0, 1e-38, 1e-30, f32::MIN_POSITIVE, 1e30, 1e38, f32::INFINITY, f32::NAN]);
    if hostile { prop_oneof![3 => ordinary, 1 => odd].boxed() } else { ordinary }
}

/// Statistics of some steps: random, drifting in norm and entropy, or hostile.
fn stream() -> impl Strategy<Value = Vec<Fed>> {
    (any::<bool>(), -0.1_f32..0.1, 0.002_f32..0.02).prop_flat_map(|(hostile, drift, wander)| {
        let tensor = (energy(hostile), prop_oneof![8 => 0.6_f32..0.8, 1 => 0.0_f32..=1.0]);
        let step = prop::collection::vec(tensor, ELEMENTS.len());
        prop::collection::vec(step, 20..100).prop_map(move |steps| {
            let at = |(t, step): (usize, Vec<(f32, f32)>)| {
                let level = (drift * t as f32).exp();
                let entropy = 1.0 + 0.3 * (wander * 50.0 * t as f32 / 10.0).sin();
                let tensors = step.into_iter().zip(ELEMENTS);
                tensors.map(|((energy, share), n)| fed(energy, level, share * entropy, n)).collect()
            };
            steps.into_iter().enumerate().map(at).collect()
        })
    })
}

/// What the emitter promises: no entropy where the energy is zero or below the normal numbers, and none that counts
/// where it is no number.
fn fed(energy: f32, level: f32, share: f32, elements: u64) -> (f32, f32) {
    let drifted = if (1e-20..1e20).contains(&energy) { energy * level } else { energy };
    if drifted < f32::MIN_POSITIVE {
        (0.0, 0.0)
    } else if drifted.is_finite() {
        (drifted, share.min(1.0) * (elements as f32).ln())
    } else {
        (drifted, f32::NAN)
    }
}

/// Whether `f32` may take this step's decision otherwise, so close to a threshold is it.
fn near_a_threshold(policy: &Policy, target: f64, now: &Step) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
    let ratio = now.entropy.last().copied().unwrap_or(f64::NAN) / target;
    near(now.norm, now.norm_threshold) || near(ratio, policy.gate.entropy.low) || near(ratio, policy.gate.entropy.high)
}

/// Whether `scale`, without the `factor` that the policy gives, is one that laws clamped to `max` come to.
fn inside(scale: f32, factor: f64, max: f64) -> bool {
    let limit = |x: f64| x * (1.0 + 1e-5);
    let scale = f64::from(scale);
    scale >= 0.0 && scale <= limit(factor * max) && limit(scale) >= factor / max
}

fn check_bounds(pair: &Pair, told: &Telemetry) {
    let (policy, laws) = (&pair.policy, &pair.policy.laws);
    assert!(pair.counters.iter().all(|&c| c >= 0), "{:?}", pair.counters);
    let names = || pair.layout.tensors.iter().map(|t| t.name.as_str());
    let said = policy.tensor_laws(names()).unwrap();
    let max = |moves: bool, max: f64| if moves { max } else { 1.0 };
    let backoff = told.rollback.map_or(1.0, |r| f64::from(r.backoff));
    assert!(backoff <= 1.0 && backoff >= policy.rollback.backoff_min * (1.0 - 1e-5), "back-off {backoff}");
    for ((&scale, factor), said) in told.scales.iter().zip(policy.tensor_scales(names()).unwrap()).zip(&said) {
        let max = max(said.moves, said.max.unwrap_or(laws.max));
        assert!(inside(scale, factor * policy.scale.global * backoff, max), "{scale} for {factor} and {said:?}");
    }
    for ((&scale, factor), said) in told.momentum.iter().zip(policy.tensor_momentum(names()).unwrap()).zip(&said) {
        let max = max(said.moves, laws.rule.momentum_max);
        assert!(inside(scale, factor * policy.momentum.scale, max), "momentum {scale} for {factor} and {said:?}");
    }
    assert!(told.lr_scale.is_none_or(|scale| inside(scale, 1.0, laws.max)), "{:?}", told.lr_scale);
    assert!(told.momentum_scale.is_none_or(|scale| inside(scale, 1.0, laws.rule.momentum_max)));
}

fn check_decision(pair: &Pair, found: &Telemetry, expected: &Step) {
    let r = &pair.reference;
    let found_all = [found.applied, found.norm_exceeded, found.entropy_low, found.entropy_high, found.rearmed];
    let wanted =
        [expected.applied, expected.norm_exceeded, expected.entropy_low, expected.entropy_high, expected.rearmed];
    assert_eq!(found_all, wanted, "step {}: {found:?}\n{expected:?}", r.steps);
    assert_eq!((found.calibrated, found.stop), (expected.calibrated, expected.stop), "step {}", r.steps);
    let wanted = [r.steps, r.accepted, r.non_finite, r.refused_norm, r.rearmed, r.calibrations];
    let counted: Vec<u64> = pair.counters[..6].iter().map(|&c| c as u64).collect();
    assert_eq!(counted, wanted);
}

/// What a run of cases has seen, so that it can be told whether it tested anything.
#[derive(Debug, Default)]
struct Seen {
    steps: u32,
    compared: u32,
    refused: u32,
    rearmed: u32,
    calibrated: u32,
    non_finite: u32,
    scaled: u32,
}

#[test]
fn bounds_hold_and_decisions_are_those_of_the_reference() {
    let seen = RefCell::new(Seen::default());
    let cases = (0..STRUCTURES.len(), numbers(), stream());
    let property = |(structure, numbers, stream): (usize, Policy, Vec<Fed>)| {
        let injected = Policy::parse(STRUCTURES[structure]).unwrap();
        let mut pair = Pair::new(&ELEMENTS, &injected);
        pair.policy = with(&numbers, &injected);
        let said = pair.policy.tensor_laws(pair.layout.tensors.iter().map(|t| t.name.as_str())).unwrap();
        pair.reference.obey(said);
        let mut comparable = true;
        for fed in &stream {
            let of = |&(s, h): &(f32, f32)| Statistics { energy: f64::from(s), nats: f64::from(h) };
            let statistics: Vec<_> = fed.iter().map(of).chain([whole(fed)]).collect();
            let target = pair.reference.global_target(&pair.policy);
            // Steps of the optimizer that are as odd as the gradients.
            pair.projections = fed.iter().map(|&(energy, nats)| (energy, energy * (nats - 1.0))).collect();
            let projections: Vec<_> = pair.projections.iter().map(|&(a, x)| (f64::from(a), f64::from(x))).collect();
            let expected = pair.reference.step(&statistics, &projections, &pair.policy);
            let found = pair.emitted(fed);
            check_bounds(&pair, &found);
            // Beyond such a step the two may have gone different ways.
            comparable = comparable && !near_a_threshold(&pair.policy, target, &expected);
            if comparable {
                check_decision(&pair, &found, &expected);
            }
            let mut seen = seen.borrow_mut();
            seen.steps += 1;
            seen.compared += u32::from(comparable);
            seen.refused += u32::from(!found.applied);
            seen.rearmed += u32::from(found.rearmed);
            seen.calibrated += u32::from(found.calibrated);
            seen.non_finite += u32::from(!found.finite);
            seen.scaled += u32::from(found.scales.windows(2).any(|pair| pair[0] != pair[1]));
        }
        Ok(())
    };
    TestRunner::new(config(120)).run(&cases, property).unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    assert!(seen.compared * 4 > seen.steps * 3, "most steps are compared: {seen:?}");
    for events in [seen.refused, seen.rearmed, seen.calibrated, seen.non_finite, seen.scaled] {
        assert!(events * 100 > seen.steps, "the cases test little: {seen:?}");
    }
}

/// The step `w, m, b, x, y -> w', m', b, loss` of heavy ball with its coefficient as an input; g = x·(w·x - y), and m is
/// kept in the type that is given.
fn heavy_ball(kept: PrimitiveType) -> Module {
    let mut module = Module::new("heavy_ball");
    let sum = Builder::reducer(&mut module, "sum", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut e = Builder::at_entry(&mut module);
    let vector = Shape::array(PrimitiveType::F32, &[4]);
    let w = e.parameter("w", vector.clone()).unwrap();
    let m = e.parameter("m", Shape::array(kept, &[4])).unwrap();
    let b = e.parameter("b", Shape::array(kept, &[])).unwrap();
    let x = e.parameter("x", vector.clone()).unwrap();
    let y = e.parameter("y", vector).unwrap();
    let product = e.multiply(w, x).unwrap();
    let error = e.subtract(product, y).unwrap();
    let g = e.multiply(error, x).unwrap();
    let square = e.multiply(error, error).unwrap();
    let zero = e.constant_f32(0.0).unwrap();
    let loss = e.reduce_all(square, zero, sum).unwrap();
    let spread = e.broadcast_scalar_like(b, m).unwrap();
    let old = e.multiply(spread, m).unwrap();
    let g = e.convert(g, kept).unwrap();
    let new = e.add(old, g).unwrap();
    let step = e.convert(new, PrimitiveType::F32).unwrap();
    let rate = e.constant_f32(0.1).unwrap();
    let rate = e.broadcast_scalar_like(rate, step).unwrap();
    let step = e.multiply(rate, step).unwrap();
    let w = e.subtract(w, step).unwrap();
    module.set_outputs(&[w, new, b, loss]).unwrap();
    module
}

/// Values in the type that they are kept in.
fn array(kept: PrimitiveType, dims: &[i64], value: f64) -> Array {
    let count = dims.iter().product::<i64>() as usize;
    match kept {
        PrimitiveType::F32 => Array::f32(dims, &vec![value as f32; count]),
        _ => Array {
            element_type: pjrt::ElementType::Bf16,
            dims: dims.to_vec(),
            bytes: half::bf16::from_f64(value).to_le_bytes().repeat(count),
        },
    }
}

/// The first element of an array.
fn first(array: &Array) -> f64 {
    match array.element_type {
        pjrt::ElementType::F32 => f64::from(array.floats()[0]),
        _ => half::bf16::from_le_bytes([array.bytes[0], array.bytes[1]]).to_f64(),
    }
}

#[test]
fn momentum_coefficients_stay_below_one() {
    let mut injected = Policy::parse("[groups.a]\ninclude = [\"*\"]\nmomentum = 1.0\nmax = 2.0").unwrap();
    injected.laws.rule.enabled = true;
    injected.gate = Policy::monitor().gate;
    for (kept, rounding) in [(PrimitiveType::F32, 1e-6), (PrimitiveType::BF16, 1.0 / 256.0)] {
        // State goes on from case to case, so that it is not always that of the case's own bounds.
        let step = RefCell::new(Controlled::new(&heavy_ball(kept), &injected).unwrap());
        // 0.999999 would be 1 in bf16, which is no momentum.
        let b =
            prop_oneof![4 => 0.5_f64..0.995, 1 => Just(0.0), 1 => Just(if rounding > 1e-3 { 0.99 } else { 0.999_999 })];
        let data = prop::collection::vec((-3.0_f32..3.0, -3.0_f32..3.0), 4..16);
        let property = |(numbers, b, data): (Policy, f64, Vec<(f32, f32)>)| {
            let policy = Policy { gate: injected.gate.clone(), ..with(&numbers, &injected) };
            let mut step = step.borrow_mut();
            step.obey(&policy);
            let given = first(&array(kept, &[], b));
            let w = Array::vector(&[1.0, -2.0, 3.0, 0.5]);
            for (x, y) in data {
                let [m, b] = [array(kept, &[4], 1.0), array(kept, &[], b)];
                let inputs = |x: f32| [w.clone(), m.clone(), b.clone(), Array::vector(&[x; 4]), Array::vector(&[y; 4])];
                // Without data the gradient is zero, and the new moment is the coefficient itself.
                let coefficient = first(&step.run(&inputs(0.0))[1]);
                prop_assert!((0.0..1.0).contains(&coefficient), "{coefficient} from {given}");
                let most = given.max(policy.momentum.cap);
                prop_assert!(coefficient <= most + rounding, "{coefficient} from {given} and {}", policy.momentum.cap);
                step.run(&inputs(x));
            }
            Ok(())
        };
        TestRunner::new(config(60)).run(&(numbers(), b, data), property).unwrap_or_else(|error| panic!("{error}"));
    }
}
