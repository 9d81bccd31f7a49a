//! What no graph tells, or seems to tell: an optimizer that keeps the last gradient has a state whose next value owes nothing to its
//! old one; and a loss that is returned times a weight looks like the weight's next value.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use hlo::{AliasKind, Module};
use passes::step::{GradientStatus, TrainStep};
use passes::{discover, discover_with};

/// Least squares by optimistic gradient descent, `p - lr·(2·g - last)`; the last gradient is parameter 1 and output 1.
const STEP: &str = "
  p = f32[4]{0} parameter(0)
  last = f32[4]{0} parameter(1)
  x = f32[8,4]{1,0} parameter(2)
  zero = f32[] constant(0)
  r = f32[8]{0} dot(x, p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  g = f32[4]{0} dot(r, x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  two = f32[] constant(2)
  twos = f32[4]{0} broadcast(two), dimensions={}
  doubled = f32[4]{0} multiply(g, twos)
  direction = f32[4]{0} subtract(doubled, last)
  lr = f32[] constant(0.1)
  lrs = f32[4]{0} broadcast(lr), dimensions={}
  u = f32[4]{0} multiply(direction, lrs)
  new = f32[4]{0} subtract(p, u)
  energy = f32[8]{0} multiply(r, r)
  loss = f32[] reduce(energy, zero), dimensions={0}, to_apply=sum
  ROOT result = (f32[4]{0}, f32[4]{0}, f32[]) tuple(new, g, loss)
";

/// A module whose entry these instructions are; `sum` adds two numbers.
fn module(entry: &str) -> Module {
    let sum = "sum {\n a = f32[] parameter(0)\n b = f32[] parameter(1)\n ROOT sum = f32[] add(a, b)\n}\n";
    hlo::text::parse(&format!("HloModule step\n\n{sum}\nENTRY step {{{entry}}}\n")).unwrap()
}

/// The name of the gradient of the only parameter, and how many states belong to it.
fn found(module: &Module, step: &TrainStep) -> (String, usize) {
    let [parameter] = step.parameters.as_slice() else { panic!("{:?}", step.parameters) };
    let GradientStatus::Found(gradient) = &parameter.gradient else { panic!("{:?}", parameter.gradient) };
    (module.entry_computation().get(gradient.eff.instruction).unwrap().name.clone(), parameter.moments.len())
}

/// The inputs that are states.
fn states(step: &TrainStep) -> Vec<usize> {
    step.states.iter().map(|s| s.input).collect()
}

#[test]
fn who_knows_which_output_follows_on_which_input_says_so() {
    let module = module(STEP);
    let step = discover_with(&module, &BTreeMap::from([(1, 1)])).unwrap();
    assert_eq!(found(&module, &step), ("g".to_owned(), 1));

    // Donation says the same.
    let mut donated = module.clone();
    donated.alias(1, 1, AliasKind::May).unwrap();
    assert_eq!(found(&donated, &discover(&donated).unwrap()), ("g".to_owned(), 1));

    // Without either the last gradient is an input like the data.
    assert_eq!(found(&module, &discover(&module).unwrap()), ("direction".to_owned(), 0));

    // What contradicts the graph, or fits nowhere, changes nothing.
    let wild = BTreeMap::from([(2, 0), (1, 1), (7, 9)]);
    assert_eq!(found(&module, &discover_with(&module, &wild).unwrap()), ("g".to_owned(), 1));
}

/// Least squares by momentum; the loss is returned times a weight that the step takes.
const WEIGHTED: &str = "
  p = f32[4]{0} parameter(0)
  m = f32[4]{0} parameter(1)
  x = f32[8,4]{1,0} parameter(2)
  weight = f32[] parameter(3)
  zero = f32[] constant(0)
  r = f32[8]{0} dot(x, p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  s = f32[8]{0} broadcast(weight), dimensions={}
  rs = f32[8]{0} multiply(r, s)
  g = f32[4]{0} dot(rs, x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  b = f32[] constant(0.9)
  bs = f32[4]{0} broadcast(b), dimensions={}
  kept = f32[4]{0} multiply(m, bs)
  next = f32[4]{0} add(kept, g)
  lr = f32[] constant(0.1)
  lrs = f32[4]{0} broadcast(lr), dimensions={}
  u = f32[4]{0} multiply(next, lrs)
  new = f32[4]{0} subtract(p, u)
  energy = f32[8]{0} multiply(r, r)
  mean = f32[] reduce(energy, zero), dimensions={0}, to_apply=sum
  loss = f32[] multiply(mean, weight)
  ROOT result = (f32[4]{0}, f32[4]{0}, f32[]) tuple(new, next, loss)
";

#[test]
fn a_loss_times_a_weight_is_a_loss_and_no_state() {
    let module = module(WEIGHTED);
    let mut donated = module.clone();
    donated.alias(0, 0, AliasKind::May).unwrap();
    for module in [&module, &donated] {
        let step = discover(module).unwrap();
        assert_eq!(step.loss, Some(2));
        assert_eq!(states(&step), [0, 1]);
        assert_eq!(found(module, &step), ("g".to_owned(), 1));
    }
    // Where the weight is said to be consumed, it is a state, and there is no loss.
    donated.alias(2, 3, AliasKind::May).unwrap();
    let refused = discover(&donated).unwrap_err().to_string();
    assert!(refused.contains("without a loss among the outputs"), "{refused}");
}

#[test]
fn a_scalar_that_follows_a_verdict_on_data_stays_a_state() {
    // As a loss scale does: halved where the loss is too large, doubled elsewhere.
    let verdict = "limit = f32[] constant(9)
  large = pred[] compare(mean, limit), direction=GT
  half = f32[] constant(0.5)
  two = f32[] constant(2)
  factor = f32[] select(large, half, two)
  scale = f32[] multiply(weight, factor)";
    let scaled = WEIGHTED.replace("loss = f32[] multiply(mean, weight)", verdict).replace(
        "(f32[4]{0}, f32[4]{0}, f32[]) tuple(new, next, loss)",
        "(f32[4]{0}, f32[4]{0}, f32[], f32[]) tuple(new, next, scale, mean)",
    );
    let mut module = module(&scaled);
    for donated in [false, true] {
        if donated {
            module.alias(0, 0, AliasKind::May).unwrap();
        }
        let step = discover(&module).unwrap();
        assert_eq!(states(&step), [0, 1, 3]);
        assert_eq!(step.loss, Some(3));
    }
}
