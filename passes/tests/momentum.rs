//! Momentum: which coefficients are found, that scaling them computes what the formula says and touches nothing else,
//! and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "../../tests/support/controlled.rs"]
mod controlled;
#[path = "../../tests/support/corpus.rs"]
mod corpus;

use std::collections::BTreeSet;

use common::{Array, Compiled, Contraction};
use controlled::Controlled;
use corpus::Case;
use hlo::build::Builder;
use hlo::testing::shuffle_names;
use hlo::{InstructionId, Module, Opcode, PrimitiveType, Shape};
use passes::discover::discover;
use passes::expose::{View, expose};
use passes::step::{Coefficient, CoefficientPlace, MomentumForm, MomentumStatus, Parameter, TrainStep};
use passes::{InjectOptions, Policy, inject};

// ---------------------------------------------------------------------------------------------------------------------
// Analysis

/// What is found in each step of the corpus: every answer that some parameter gets.
const FOUND: &[(&[&str], &[&str])] = &[
    (
        &[
            "adv_gan_two_opts",
            "cnn_trainstate_adamw_clip",
            "dropout_rng",
            "ema_params",
            "gptremat_adam",
            "gptscan_adamw_clip",
            "gpttied_unroll_adamw",
            "mesh_jit",
            "mesh_shardmap",
            // An average of the preconditioned update, and no other moment.
            "mlp_adafactor",
            "mlp_adam",
            "mlp_adamw_clip",
            "mlp_adamw_sched",
            "mlp_agc",
            "mlp_bf16compute_adamw",
            "mlp_bf16params_master",
            "mlp_fp16_lossscale",
            "mlp_hand_adam",
            "mlp_l2loss_adam",
            "mlp_lamb",
            "mlp_masked_wd",
            // Not the accumulated micro-batches.
            "mlp_multisteps",
            "multistep_loop",
            "nnx_adamw",
            "nodonate_adam",
            "permuted_outputs",
            "scalar_params_adam_clip",
        ],
        &["ema 0.9"],
    ),
    (
        &[
            "adv_single_param",
            "mlp_coupled_wd_sgdm",
            // A velocity: m' = 0.9·m - 0.1·g is no average, although 0.9 + 0.1 = 1.
            "mlp_hand_torch_sgdm",
            // Of the scaled update; not the mean that the variance is centred by.
            "mlp_rmsprop",
            "mlp_sgdm",
        ],
        &["heavy-ball 0.9"],
    ),
    (&["mlp_nesterov"], &["heavy-ball 0.9, look-ahead 0.9"]),
    (&["gptunroll_lion"], &["ema 0.99, look-ahead 0.9"]),
    (&["gptscan_muon"], &["ema 0.9, look-ahead 0.9", "ema 0.95, look-ahead 0.95"]),
    (&["mlp_inject"], &["ema computed"]),
    (&["mlp_multitransform"], &["ema 0.9", "heavy-ball 0.9", "none: no gradient"]),
    (&["unused_param"], &["ema 0.9", "none: no gradient"]),
    (&["mlp_sgd"], &["none: keeps no state"]),
    (&["rnn_rmsprop"], &["none: a second moment"]),
    (&["mlp_apply_if_finite"], &["none: inside a branch"]),
    (&["mlp_flatten", "adv_grad_in_cond"], &[]),
];

fn inlined(mut module: Module) -> Module {
    module.inline_calls(|callee| callee.contains("xla.sdy")).unwrap();
    module
}

fn number(coefficient: &Coefficient) -> String {
    coefficient.constant.map_or("computed".to_owned(), |b| format!("{}", (b * 1e4).round() / 1e4))
}

/// A parameter's momentum in words; of the reasons why there is none, the first of `words`.
fn told(parameter: &Parameter, words: &[&str]) -> String {
    match &parameter.momentum {
        MomentumStatus::Found(found) => {
            let one = |m: &passes::step::Momentum| {
                let form = if m.form == MomentumForm::Ema { "ema" } else { "heavy-ball" };
                let rest = m.coefficients[1..].iter().map(|c| {
                    assert_eq!(c.place, CoefficientPlace::LookAhead);
                    format!(", look-ahead {}", number(c))
                });
                format!("{form} {}{}", number(&m.coefficients[0]), rest.collect::<String>())
            };
            found.iter().map(one).collect::<Vec<_>>().join("; ")
        }
        MomentumStatus::Absent { reason } => {
            let word = words.iter().find(|w| reason.contains(**w)).unwrap_or(&reason.as_str()).to_owned();
            format!("none: {word}")
        }
    }
}

fn all_told(step: &TrainStep) -> BTreeSet<String> {
    let words = ["no gradient", "keeps no state", "inside a branch", "a second moment"];
    step.parameters.iter().map(|p| told(p, &words)).collect()
}

#[test]
fn every_step_of_the_corpus_has_the_momentum_it_has() {
    let covered: BTreeSet<String> = FOUND.iter().flat_map(|(names, _)| names.iter().map(|n| n.to_string())).collect();
    let all: BTreeSet<String> =
        corpus::names().into_iter().chain(["mesh_jit", "mesh_shardmap"].map(str::to_owned)).collect();
    assert_eq!(covered, all, "the table and the corpus differ");
    for (names, expected) in FOUND {
        for name in *names {
            let found = discover(&inlined(corpus::module(name))).map(|step| all_told(&step)).unwrap_or_default();
            assert_eq!(found, expected.iter().map(|e| e.to_string()).collect(), "{name}");
        }
    }
}

#[test]
fn names_and_metadata_do_not_matter() {
    for name in corpus::names() {
        let module = inlined(corpus::module(&name));
        let mut bare = module.clone();
        bare.strip_metadata();
        shuffle_names(&mut bare, 11);
        let answer = |module: &Module| -> Vec<String> {
            let Ok(step) = discover(module) else { return Vec::new() };
            let of = |p: &Parameter| {
                let uses = |c: &Coefficient| format!("{:?} {:?} {:?} {:?}", c.place, c.decay, c.complement, c.uses);
                p.found_momentum()
                    .iter()
                    .map(|m| (m.input, m.form, m.coefficients.iter().map(uses).collect::<Vec<_>>()))
                    .collect::<Vec<_>>()
            };
            step.parameters.iter().map(|p| format!("{} {:?}", p.input, of(p))).collect()
        };
        assert_eq!(answer(&module), answer(&bare), "{name}");
    }
}

/// Emits the rest of a step from a parameter, its gradient and its states; returns their new values.
struct Small<'a> {
    b: Builder<'a>,
    w: InstructionId,
    g: InstructionId,
    s: Vec<InstructionId>,
}

impl Small<'_> {
    fn scaled(&mut self, x: InstructionId, factor: f32) -> InstructionId {
        let factor = self.b.constant_f32(factor).unwrap();
        let factor = self.b.convert(factor, self.b.shape(x).unwrap().element_type()).unwrap();
        let factor = self.b.broadcast_scalar_like(factor, x).unwrap();
        self.b.multiply(factor, x).unwrap()
    }

    fn sum(&mut self, x: InstructionId, y: InstructionId) -> InstructionId {
        self.b.add(x, y).unwrap()
    }

    /// b·m + c·x
    fn linear(&mut self, (b, m): (f32, InstructionId), (c, x): (f32, InstructionId)) -> InstructionId {
        let old = self.scaled(m, b);
        let new = self.scaled(x, c);
        self.sum(old, new)
    }

    /// w - 0.1·u
    fn down(&mut self, u: InstructionId) -> InstructionId {
        let step = self.scaled(u, -0.1);
        self.sum(self.w, step)
    }

    /// x / √v
    fn by_root(&mut self, x: InstructionId, v: InstructionId) -> InstructionId {
        let root = self.b.sqrt(v).unwrap();
        self.b.divide(x, root).unwrap()
    }
}

/// The step `w, s.. -> w', s'.., loss` on four numbers; g = x·(w·x - y).
fn small(states: &[PrimitiveType], build: impl FnOnce(&mut Small<'_>) -> Vec<InstructionId>) -> Module {
    let f32s = |t| Shape::array(t, &[4]);
    let mut module = Module::new("small");
    let sum = Builder::reducer(&mut module, "sum", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let w = b.parameter("w", f32s(PrimitiveType::F32)).unwrap();
    let s: Vec<_> = states.iter().enumerate().map(|(i, &t)| b.parameter(&format!("s{i}"), f32s(t)).unwrap()).collect();
    let x = b.parameter("x", f32s(PrimitiveType::F32)).unwrap();
    let y = b.parameter("y", f32s(PrimitiveType::F32)).unwrap();
    let product = b.multiply(w, x).unwrap();
    let error = b.subtract(product, y).unwrap();
    let g = b.multiply(error, x).unwrap();
    let square = b.multiply(error, error).unwrap();
    let zero = b.constant_f32(0.0).unwrap();
    let loss = b.reduce_all(square, zero, sum).unwrap();
    let mut small = Small { b, w, g, s };
    let mut outputs = build(&mut small);
    outputs.push(loss);
    module.set_outputs(&outputs).unwrap();
    hlo::verify::verify(&module).unwrap();
    module
}

const F32: PrimitiveType = PrimitiveType::F32;

/// What is found in a small step, with the whole reason where nothing is.
fn of_small(module: &Module) -> String {
    told(&discover(module).unwrap().parameters[0], &[])
}

/// An average in f32 that is kept in bf16.
fn narrow_average() -> Module {
    small(&[PrimitiveType::BF16], |s| {
        let old = s.scaled(s.s[0], 0.9);
        let old = s.b.convert(old, F32).unwrap();
        let new = s.scaled(s.g, 0.1);
        let m = s.sum(old, new);
        let stored = s.b.convert(m, PrimitiveType::BF16).unwrap();
        vec![s.down(m), stored]
    })
}

#[test]
fn every_way_to_write_it_is_understood() {
    let lerp = small(&[F32], |s| {
        let away = s.b.subtract(s.g, s.s[0]).unwrap();
        let part = s.scaled(away, 0.25);
        let m = s.sum(s.s[0], part);
        vec![s.down(m), m]
    });
    assert_eq!(of_small(&lerp), "ema 0.75");
    let other_lerp = small(&[F32], |s| {
        let away = s.b.subtract(s.g, s.s[0]).unwrap();
        let part = s.scaled(away, 0.75);
        let m = s.b.subtract(s.g, part).unwrap();
        vec![s.down(m), m]
    });
    assert_eq!(of_small(&other_lerp), "ema 0.75");
    let both = small(&[F32], |s| {
        let sum = s.sum(s.s[0], s.g);
        let m = s.scaled(sum, 0.9);
        vec![s.down(m), m]
    });
    assert_eq!(of_small(&both), "heavy-ball 0.9");
    assert_eq!(of_small(&narrow_average()), "ema 0.9");
}

#[test]
fn what_is_no_momentum_is_not_taken_for_it() {
    let check = |expected: &str, module: Module| {
        let found = of_small(&module);
        assert!(found.starts_with("none: ") && found.contains(expected), "{found:?} for {expected:?}");
    };
    // Adagrad: s' = s + g².
    check(
        "a sum or an iterate",
        small(&[F32], |s| {
            let square = s.b.multiply(s.g, s.g).unwrap();
            let sum = s.sum(s.s[0], square);
            let u = s.by_root(s.g, sum);
            vec![s.down(u), sum]
        }),
    );
    // Schedule-free: z' = z - 0.1·g, w' = 0.9·w + 0.1·z'.
    check(
        "a sum or an iterate",
        small(&[F32], |s| {
            let step = s.scaled(s.g, -0.1);
            let z = s.sum(s.s[0], step);
            vec![s.linear((0.9, s.w), (0.1, z)), z]
        }),
    );
    // A second moment.
    check(
        "a second moment",
        small(&[F32], |s| {
            let square = s.b.multiply(s.g, s.g).unwrap();
            let v = s.linear((0.9, s.s[0]), (0.1, square));
            let u = s.by_root(s.g, v);
            vec![s.down(u), v]
        }),
    );
    // A mean that only centres the second moment.
    check(
        "it centres a variance",
        small(&[F32, F32], |s| {
            let mean = s.linear((0.9, s.s[0]), (0.1, s.g));
            let square = s.b.multiply(s.g, s.g).unwrap();
            let v = s.linear((0.9, s.s[1]), (0.1, square));
            let mean_square = s.b.multiply(mean, mean).unwrap();
            let variance = s.b.subtract(v, mean_square).unwrap();
            let u = s.by_root(s.g, variance);
            vec![s.down(u), mean, v]
        }),
    );
    // Slow weights: they average the parameter.
    check(
        "averages values of the parameter",
        small(&[F32], |s| {
            let fast = s.down(s.g);
            let slow = s.linear((0.5, s.s[0]), (0.5, fast));
            vec![s.linear((0.5, slow), (0.5, fast)), slow]
        }),
    );
    // The previous gradient.
    check(
        "keeps no state",
        small(&[F32], |s| {
            let ahead = s.scaled(s.g, 2.0);
            let u = s.b.subtract(ahead, s.s[0]).unwrap();
            vec![s.down(u), s.g]
        }),
    );
    // A coefficient of each element's own.
    check(
        "no number times the old one",
        small(&[F32], |s| {
            let own = s.b.abs(s.w).unwrap();
            let old = s.b.multiply(own, s.s[0]).unwrap();
            let m = s.sum(old, s.g);
            vec![s.down(m), m]
        }),
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// Emission

/// b as the graph has it.
const B: f64 = 0.9_f32 as f64;

fn policy(text: &str) -> Policy {
    Policy { momentum: Policy::parse(text).unwrap().momentum, ..Policy::monitor() }
}

/// What b becomes under scale s.
fn derived(b: f64, s: f64, cap: f64) -> f64 {
    if s == 1.0 { b } else { (b * s).min(b.max(cap)) }
}

fn wide(array: &Array) -> Vec<f64> {
    array.floats().into_iter().map(f64::from).collect()
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-5 * e.abs() + 1e-6 * largest, "{what}: element {i} is {f}, not {e}");
    }
}

/// One parameter's values around a step.
struct Seen {
    name: String,
    form: MomentumForm,
    b: Option<f64>,
    /// p, g, m before; p', m' of the plain and of the scaled step.
    p: Vec<f64>,
    g: Vec<f64>,
    m: Vec<f64>,
    plain: (Vec<f64>, Vec<f64>),
    scaled: (Vec<f64>, Vec<f64>),
}

/// A case some steps into training, with what a plain step makes of it, and an injected one to compare with.
struct Pair {
    case: Case,
    step: TrainStep,
    /// Outputs of the plain step, gradients behind them.
    expected: Vec<Array>,
    /// Parameter numbers and where their gradients are in `expected`.
    gradients: Vec<(usize, usize)>,
    controlled: Controlled,
}

impl Pair {
    /// `prepare` sets inputs.
    fn new(name: &str, prepare: impl FnOnce(&mut Case)) -> Self {
        let mut case = corpus::case(name);
        let mut exposing = inlined(case.module.clone());
        let step = discover(&exposing).unwrap();
        let exposed = expose(&mut exposing, &step, View::Eff).unwrap();
        let plain = Compiled::new(&exposing);
        prepare(&mut case);
        // So that moments are not zero.
        for _ in 0..3 {
            let outputs = plain.run(&case.inputs);
            case.inputs = case.next(&case.inputs, &outputs);
        }
        let expected = plain.run(&case.inputs);
        let neutral = policy("[momentum.tensors]\n\"*\" = 1.0");
        let controlled = Controlled::new(&case.module, &neutral).unwrap_or_else(|e| panic!("{name}: {e}"));
        let gradients = exposed.iter().map(|e| (e.input, e.output)).collect();
        Self { case, step, expected, gradients, controlled }
    }

    /// The same step under a policy, which differs from the one injected in numbers only.
    fn under(&mut self, text: &str) -> Vec<Seen> {
        self.controlled.obey(&policy(text));
        let found = self.controlled.run(&self.case.inputs);
        let (step, case, expected) = (&self.step, &self.case, &self.expected);
        let seen = self.gradients.iter().filter_map(|&(input, gradient)| {
            let parameter = step.parameters.iter().find(|p| p.input == input).unwrap();
            let momentum = parameter.found_momentum().first()?;
            let moment = step.state(momentum.input).unwrap();
            Some(Seen {
                name: format!("{} {} under {text:?}", case.name, parameter.name),
                form: momentum.form,
                b: momentum.coefficients[0].constant,
                p: wide(&case.inputs[parameter.input]),
                g: wide(&expected[gradient]),
                m: wide(&case.inputs[moment.input]),
                plain: (wide(&expected[parameter.output]), wide(&expected[moment.output])),
                scaled: (wide(&found[parameter.output]), wide(&found[moment.output])),
            })
        });
        let seen: Vec<Seen> = seen.collect();
        assert!(!seen.is_empty(), "{}: nothing to see", case.name);
        seen
    }
}

impl Seen {
    /// The new moment with coefficient b.
    fn reference(&self, b: f64) -> Vec<f64> {
        let c = if self.form == MomentumForm::Ema { 1.0 - b } else { 1.0 };
        self.m.iter().zip(&self.g).map(|(m, g)| b * m + c * g).collect()
    }
}

#[test]
fn the_new_moment_is_that_of_the_scaled_coefficient() {
    let cases = [
        "mlp_adam",
        "mlp_hand_adam",
        "mlp_sgdm",
        "mlp_coupled_wd_sgdm",
        "mlp_nesterov",
        "gptunroll_lion",
        "nnx_adamw",
        "scalar_params_adam_clip",
        "gptscan_muon",
        "mlp_fp16_lossscale",
    ];
    for name in cases {
        let mut pair = Pair::new(name, |_| {});
        for s in [0.5, 1.05, 1.2, 0.0] {
            for seen in pair.under(&format!("[momentum]\nscale = {s}")) {
                let b = derived(seen.b.unwrap(), s, 0.99);
                assert_close(&seen.scaled.1, &seen.reference(b), &seen.name);
                // Lion's 0.99 is at the cap already.
                let scaled = b != seen.b.unwrap();
                assert!(!scaled || seen.scaled.1 != seen.plain.1, "{}: nothing was scaled", seen.name);
            }
            assert!(pair.controlled.told().momentum.iter().all(|&m| m == s as f32), "{name}");
        }
    }
}

#[test]
fn a_coefficient_that_is_an_input_is_scaled_with_its_complement() {
    for b in [0.9_f32, 0.995] {
        let at = |case: &Case| case.input_names.iter().position(|n| n == "s.hyperparams['b1']").unwrap();
        let mut pair = Pair::new("mlp_inject", |case| {
            let at = at(case);
            case.inputs[at] = Array::f32(&[], &[b]);
        });
        for s in [0.5, 1.2] {
            for seen in pair.under(&format!("[momentum]\nscale = {s}")) {
                let expected = seen.reference(derived(f64::from(b), s, 0.99));
                assert_close(&seen.scaled.1, &expected, &format!("{} with {b}", seen.name));
            }
        }
        // The hyperparameter itself stays.
        let at = at(&pair.case);
        let outputs = pair.controlled.run(&pair.case.inputs);
        let output = pair.case.successor_of.iter().position(|&s| s == Some(at)).unwrap();
        assert_eq!(outputs[output].floats(), [b]);
    }
}

#[test]
fn the_update_follows_the_scaled_moment() {
    // Adam: m enters linearly, and bias correction keeps the original coefficient.
    for seen in Pair::new("mlp_adam", |_| {}).under("[momentum]\nscale = 0.5") {
        let rows = seen.p.iter().zip(&seen.plain.0).zip(seen.scaled.1.iter().zip(&seen.plain.1));
        for ((p, new), ((scaled, plain), found)) in
            rows.zip(&seen.scaled.0).map(|((old, moments), found)| (old, (moments, found)))
        {
            // Where the plain moment all but vanishes, so do the digits of the quotient.
            let expected = if plain.abs() > 1e-6 { p + (new - p) * scaled / plain } else { *found };
            assert!((found - expected).abs() < 1e-5 * expected.abs() + 1e-6, "{}: {found}, not {expected}", seen.name);
        }
    }
    // Nesterov: the look-ahead has the scaled coefficient, too.
    for seen in Pair::new("mlp_nesterov", |_| {}).under("[momentum]\nscale = 0.5") {
        let b = derived(B, 0.5, 0.99);
        let rows = seen.p.iter().zip(&seen.g).zip(seen.reference(b));
        let expected: Vec<f64> = rows.map(|((p, g), m)| p - 0.1 * (g + b * m)).collect();
        assert_close(&seen.scaled.0, &expected, &seen.name);
    }
    // Lion: the update's sign is that of the average with its own coefficient, scaled alike.
    let (mut turned, mut kept) = (0, 0);
    for seen in Pair::new("gptunroll_lion", |_| {}).under("[momentum]\nscale = 0.3") {
        for i in 0..seen.p.len() {
            let ahead = |b: f64| b * seen.m[i] + (1.0 - b) * seen.g[i];
            let (plain, scaled) = (ahead(B), ahead(derived(B, 0.3, 0.99)));
            if plain.abs() < 1e-9 || scaled.abs() < 1e-9 {
                continue;
            }
            let differs = seen.plain.0[i] != seen.scaled.0[i];
            assert_eq!(plain.signum() != scaled.signum(), differs, "{} {i}: {plain} {scaled}", seen.name);
            if differs { turned += 1 } else { kept += 1 }
        }
    }
    assert!(turned > 50 && kept > 50, "{turned} signs turned, {kept} kept: the test shows nothing");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_is_not_scaled_keeps_its_bits() {
    for (name, tensor) in [
        ("mlp_adam", "p['w1']"),
        ("mlp_sgdm", "p['w1']"),
        ("mlp_nesterov", "p['w1']"),
        ("mlp_inject", "p['w1']"),
        ("mlp_hand_torch_sgdm", "p['w1']"),
        ("gptunroll_lion", "p['blocks'][1]['ln1']"),
    ] {
        let mut case = corpus::case(name);
        let mut chosen = policy("");
        chosen.momentum.tensors.insert(tensor.to_owned(), 0.5);
        let plain = Compiled::with(&case.module, Contraction::Impossible);
        let first = plain.run(&case.inputs);
        case.inputs = case.next(&case.inputs, &first);
        let expected = plain.run(&case.inputs);
        let mut controlled = Controlled::with(&case.module, &chosen, Contraction::Impossible).unwrap();
        let found = controlled.run(&case.inputs);
        let step = discover(&inlined(case.module.clone())).unwrap();
        let parameter = step.parameters.iter().find(|p| p.name == tensor).unwrap();
        let moment = step.state(parameter.found_momentum()[0].input).unwrap();
        let own = [parameter.output, moment.output];
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected || own.contains(&i), "{name}: output {i} differs");
        }
        assert!(found[moment.output] != expected[moment.output], "{name}: nothing was scaled");
    }
}

/// Adam once more, and slow to compile.
#[cfg(target_arch = "x86_64")]
const LEFT_OUT: &[&str] = &["gptremat_adam", "gptscan_adamw_clip", "gpttied_unroll_adamw"];

#[test]
#[cfg(target_arch = "x86_64")]
fn a_scale_of_one_is_the_step_bit_for_bit() {
    let mut compared = 0;
    let mut failures = Vec::new();
    for name in corpus::names().iter().filter(|n| !LEFT_OUT.contains(&n.as_str())) {
        let case = corpus::case(name);
        let Ok(mut controlled) =
            Controlled::with(&case.module, &policy("[momentum.tensors]\n\"*\" = 1.0"), Contraction::Impossible)
        else {
            continue;
        };
        let plain = Compiled::with(&case.module, Contraction::Impossible);
        let mut inputs = case.inputs.clone();
        for step in 0..4 {
            let (expected, found) = (plain.run(&inputs), controlled.run(&inputs));
            let different: Vec<usize> = (0..expected.len()).filter(|&i| expected[i] != found[i]).collect();
            if !different.is_empty() {
                failures.push(format!("{name}: outputs {different:?} differ in step {step}"));
                break;
            }
            inputs = case.next(&inputs, &expected);
        }
        compared += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared >= 30, "only {compared} steps were compared");
}

#[test]
fn no_coefficient_is_raised_above_the_cap_or_reaches_one() {
    let caps: [(&str, &[(f64, f64)]); 2] =
        [("mlp_adam", &[(0.99, 0.99), (0.95, 0.95), (0.5, B)]), ("mlp_sgdm", &[(0.9999, 0.9999)])];
    for (name, caps) in caps {
        let mut pair = Pair::new(name, |_| {});
        for &(cap, expected) in caps {
            for seen in pair.under(&format!("[momentum]\nscale = 1000\ncap = {cap}")) {
                assert_close(&seen.scaled.1, &seen.reference(expected), &seen.name);
            }
        }
    }
    // 0.9999 rounds to 1 in bf16; the coefficient becomes the largest number below 1 instead.
    let mut step = Controlled::new(&narrow_average(), &policy("[momentum]\nscale = 2.0\ncap = 0.9999")).unwrap();
    let ones = Array { element_type: pjrt::ElementType::Bf16, dims: vec![4], bytes: [0x80, 0x3f].repeat(4) };
    let w = Array::vector(&[1.0, 2.0, 3.0, 4.0]);
    // With x = 0 the gradient is zero, and m' is b'.
    let outputs = step.run(&[w, ones, Array::vector(&[0.0; 4]), Array::vector(&[1.0; 4])]);
    assert_eq!(outputs[1].bytes, half::bf16::from_f32(1.0 - 1.0 / 256.0).to_le_bytes().repeat(4));
}

#[test]
fn a_product_that_others_read_keeps_the_original_for_them() {
    // The first of (1 - b)·g and b·m feeds a second state, which has no momentum of its own to scale.
    let module = small(&[F32, F32], |s| {
        let old = s.scaled(s.s[0], 0.75);
        let new = s.scaled(s.g, 0.25);
        let m = s.sum(old, new);
        let square = s.b.multiply(new, new).unwrap();
        let v = s.linear((0.5, s.s[1]), (1.0, square));
        let one = s.b.constant_f32(1.0).unwrap();
        let one = s.b.broadcast_scalar_like(one, v).unwrap();
        let above = s.sum(v, one);
        let u = s.by_root(m, above);
        vec![s.down(u), m, v]
    });
    assert!(of_small(&module).starts_with("ema 0.75"), "{}", of_small(&module));
    let inputs = [[1.0, 2.0, 3.0, 4.0], [0.5; 4], [0.25; 4], [1.0; 4], [0.0; 4]].map(|v| Array::vector(&v));
    let plain = Compiled::new(&module).run(&inputs);
    let scaled = Controlled::new(&module, &policy("[momentum]\nscale = 0.5")).unwrap().run(&inputs);
    let g = [1.0_f64, 2.0, 3.0, 4.0];
    assert_close(&wide(&scaled[1]), &g.map(|g| 0.375 * 0.5 + 0.625 * g), "m'");
    assert_eq!(scaled[2], plain[2], "v' reads the original product");
}

#[test]
fn numbers_change_without_another_injection() {
    let case = corpus::case("mlp_sgdm");
    let mut module = case.module.clone();
    let injected = policy("[momentum.tensors]\n\"*\" = 1.0");
    let layout = inject(&mut module, &injected, InjectOptions::default()).unwrap().layout;
    assert!(layout.policy_vector(&policy("[momentum]\nscale = 0.5\ncap = 0.95")).is_ok());
    let at = layout.policy.iter().find(|f| f.name == "momentum.cap").unwrap().offset;
    assert_eq!(layout.policy_vector(&policy("[momentum]\nscale = 0.5\ncap = 0.95")).unwrap()[at], 0.95);
    // What was not put into the graph cannot be asked for.
    let mut module = case.module.clone();
    let layout = inject(&mut module, &Policy::monitor(), InjectOptions::default()).unwrap().layout;
    let error = layout.policy_vector(&injected).unwrap_err().to_string();
    assert!(error.contains("momentum") && error.contains("inject again"), "{error}");
}

#[test]
fn what_a_policy_does_not_ask_for_is_not_emitted() {
    let emit = |policy: &Policy| {
        let mut module = corpus::case("mlp_adam").module;
        inject(&mut module, policy, InjectOptions::default()).unwrap();
        module.export()
    };
    assert_eq!(emit(&Policy::monitor()), emit(&policy("[momentum]\nscale = 1.0\ncap = 0.5")));
    assert_ne!(emit(&Policy::monitor()), emit(&policy("[momentum]\nscale = 0.5")));
    assert_eq!(emit(&policy("[momentum]\nscale = 0.5")), emit(&policy("[momentum]\nscale = 0.5")), "not deterministic");
}

#[test]
fn momentum_that_is_not_there_is_refused_where_it_is_demanded() {
    let refused = |name: &str, text: &str| {
        let mut module = corpus::case(name).module;
        inject(&mut module, &policy(text), InjectOptions::default()).map(|_| ()).unwrap_err().to_string()
    };
    for (name, text, words) in [
        // None at all, whatever asks for it.
        ("mlp_sgd", "[momentum]\nscale = 0.9", ["no tensor of this step", "keeps no state"]),
        ("rnn_rmsprop", "[momentum.tensors]\n\"*\" = 1.0", ["no tensor of this step", "a second moment"]),
        ("mlp_apply_if_finite", "[momentum]\nscale = 0.9", ["no tensor of this step", "inside a branch"]),
        // Demanded by name.
        ("mlp_sgd", "[momentum.tensors]\n\"*['w1']\" = 0.5", ["p['w1'] (`momentum.tensors.\"*['w1']\"`)", "no state"]),
        ("mlp_adam", "[momentum.tensors]\n\"*['w9']\" = 0.5", ["names no tensor", "momentum.tensors"]),
    ] {
        let error = refused(name, text);
        assert!(words.iter().all(|w| error.contains(w)), "{name}: {error}");
    }
    // A step with momentum for one tensor and none for the other.
    let mixed = || {
        let mut module = Module::new("mixed");
        let sum = Builder::reducer(&mut module, "sum", Opcode::Add, F32).unwrap();
        let mut b = Builder::at_entry(&mut module);
        let shape = |n| Shape::array(F32, &[n]);
        let (v, w) = (b.parameter("v", shape(3)).unwrap(), b.parameter("w", shape(4)).unwrap());
        let m = b.parameter("m", shape(4)).unwrap();
        let (x, y) = (b.parameter("x", shape(3)).unwrap(), b.parameter("y", shape(4)).unwrap());
        let (gv, gw) = (b.multiply(v, x).unwrap(), b.multiply(w, y).unwrap());
        let times = |b: &mut Builder<'_>, x, k: f32| {
            let k = b.constant_f32(k).unwrap();
            let k = b.broadcast_scalar_like(k, x).unwrap();
            b.multiply(x, k).unwrap()
        };
        let old = times(&mut b, m, 0.9);
        let new_m = b.add(old, gw).unwrap();
        let (uv, uw) = (times(&mut b, gv, -0.1), times(&mut b, new_m, -0.1));
        let (new_v, new_w) = (b.add(v, uv).unwrap(), b.add(w, uw).unwrap());
        let zero = b.constant_f32(0.0).unwrap();
        let (a, c) = (b.multiply(gv, v).unwrap(), b.multiply(gw, w).unwrap());
        let (a, c) = (b.reduce_all(a, zero, sum).unwrap(), b.reduce_all(c, zero, sum).unwrap());
        let loss = b.add(a, c).unwrap();
        module.set_outputs(&[new_v, new_w, new_m, loss]).unwrap();
        module
    };
    let mut module = mixed();
    let layout = inject(&mut module, &policy("[momentum]\nscale = 0.5"), InjectOptions::default()).unwrap().layout;
    let reasons: Vec<bool> = layout.momentum.iter().map(|m| m.reason.is_some()).collect();
    assert_eq!(reasons, [true, false]);
    inject(&mut mixed(), &policy("[momentum.tensors]\n\"*w\" = 0.5"), InjectOptions::default()).unwrap();
    let error =
        inject(&mut mixed(), &policy("[momentum.tensors]\n\"*v\" = 0.5"), InjectOptions::default()).unwrap_err();
    assert!(error.to_string().contains("v (`momentum.tensors.\"*v\"`): the optimizer keeps no state"), "{error}");
    // The same for numbers that change later.
    let error = layout.policy_vector(&policy("[momentum.tensors]\n\"*v\" = 0.5")).unwrap_err().to_string();
    assert!(error.contains("v (`momentum.tensors.\"*v\"`)"), "{error}");
}
