//! The switched step is SGD with momentum: on steps of the corpus, every update after the switch is the learning rate
//! times (rate · first moment, and weight decay where the optimizer decouples it), and all other states go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use common::{Array, Compiled};
use controlled::Controlled;
use passes::{InjectOptions, Policy, inject};

/// Steps before SGD takes over.
const BEFORE: usize = 6;

fn policy(rate: &str) -> Policy {
    let mut policy = Policy::monitor();
    let text = format!("[switch]\nenabled = true\ntrigger = \"step\"\nstep = {BEFORE}\nrate = \"{rate}\"");
    policy.switch = Policy::parse(&text).unwrap().switch;
    policy
}

/// Coefficients (a, b) of the least squares fit of y by a·m + b·p, and the largest deviation from it.
fn fit(y: &[f64], m: &[f64], p: &[f64]) -> (f64, f64, f64) {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (mm, mp, pp, my, py) = (dot(m, m), dot(m, p), dot(p, p), dot(m, y), dot(p, y));
    let det = mm * pp - mp * mp;
    // Where there is no weight to decay, or too few elements to tell, the moment alone.
    let (a, b) =
        if det > 1e-9 * mm * pp { ((my * pp - py * mp) / det, (py * mm - my * mp) / det) } else { (my / mm, 0.0) };
    let off = y.iter().zip(m.iter().zip(p)).map(|(y, (m, p))| (y - a * m - b * p).abs()).fold(0.0, f64::max);
    (a, b, off)
}

fn floats(array: &Array) -> Vec<f64> {
    array.floats().into_iter().map(f64::from).collect()
}

/// Runs `BEFORE + 1` steps of a case; returns for every tensor η·ι (by its rate) and η times the weight decay.
fn check(name: &str, rule: &str) -> Vec<(f64, f64)> {
    let case = corpus::case(name);
    let plain = Compiled::new(&case.module);
    let mut step = Controlled::new(&case.module, &policy(rule)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut inputs = case.inputs.clone();
    for t in 0..BEFORE {
        let outputs = step.run(&inputs);
        assert!(!step.told().switch.as_ref().unwrap().switched, "{name}: step {t}");
        inputs = case.next(&inputs, &outputs);
    }
    let expected = plain.run(&inputs);
    let outputs = step.run(&inputs);
    let told = step.told().switch.clone().unwrap();
    assert!(told.switched && told.switches == 1.0, "{name}: {told:?}");

    let parameters: Vec<_> = step.step.controlled().map(|(p, _)| p).collect();
    let mut found = Vec::new();
    for ((parameter, switched), rate) in parameters.iter().zip(&step.layout.switched).zip(&told.rates) {
        if let Some(reason) = &switched.reason {
            assert!(!reason.is_empty() && rate.is_none(), "{name}: {}", parameter.name);
            continue;
        }
        let rate = f64::from(rate.unwrap_or_else(|| panic!("{name}: {} has no rate", parameter.name)));
        let updated = parameter.master.unwrap_or(parameter.input);
        let successor = step.step.state(updated).unwrap().output;
        let moment = step.step.state(parameter.found_momentum()[0].input).unwrap().output;
        let (old, new) = (floats(&inputs[updated]), floats(&outputs[successor]));
        let change: Vec<f64> = new.iter().zip(&old).map(|(n, o)| n - o).collect();
        let (a, b, off) = fit(&change, &floats(&outputs[moment]), &old);
        let largest = old.iter().chain(&new).fold(0.0_f64, |m, v| m.max(v.abs()));
        assert!(off <= 1e-6 * largest + 1e-9, "{name}: {} is off by {off:e}, of {largest}", parameter.name);
        // The nearest point on the moment's line goes a part of the optimizer's own step, within what averages differ by.
        let own: Vec<f64> = floats(&expected[successor]).iter().zip(&old).map(|(n, o)| n - o).collect();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let along = dot(&change, &own) / dot(&own, &own);
        // LAMB's trust ratio, which is in the direction, changes by far in its first steps.
        if rule == "nearest" && name != "mlp_lamb" {
            assert!((0.02..1.5).contains(&along), "{name}: {} goes {along} as far", parameter.name);
        }
        found.push((a / rate, b));
    }
    assert!(!found.is_empty(), "{name}: nothing switched");

    // Whatever is neither a parameter nor derived from one goes on as in the plain step.
    for state in step.step.states.iter().filter(|s| matches!(s.role, passes::step::StateRole::Moment)) {
        assert!(outputs[state.output] == expected[state.output], "{name}: {} does not go on", state.name);
    }
    found
}

#[test]
fn after_the_switch_updates_go_along_the_first_moment() {
    for name in [
        "mlp_adam",
        "mlp_hand_adam",
        "mlp_adamw_clip",
        "mlp_adamw_sched",
        "ema_params",
        "mlp_masked_wd",
        "mlp_lamb",
        "mlp_bf16params_master",
    ] {
        let found = check(name, "nearest");
        // One learning rate for all tensors.
        let first = found[0].0;
        for (learning_rate, _) in &found {
            assert!((learning_rate / first - 1.0).abs() < 2e-3, "{name}: {found:?}");
        }
    }
}

#[test]
fn decoupled_weight_decay_goes_on() {
    let found = check("mlp_adamw_clip", "nearest");
    assert!(found.iter().any(|(_, decay)| *decay < -1e-9), "{found:?}");
    let found = check("mlp_adam", "nearest");
    assert!(found.iter().all(|(_, decay)| decay.abs() < 1e-6), "{found:?}");
}

#[test]
fn rates_as_swats_has_them_are_found_as_well() {
    check("mlp_adam", "swats");
}

#[test]
fn steps_without_a_first_moment_are_refused_with_the_reason() {
    for (name, reason) in
        [("mlp_sgd", "keeps no state"), ("mlp_rmsprop", "first moment"), ("mlp_sgdm", "first moment already")]
    {
        let mut module = corpus::case(name).module;
        let refused = inject(&mut module, &policy("nearest"), InjectOptions::default()).map(|_| ());
        let Err(error) = refused else { panic!("{name} is switched") };
        let text = format!("{error}");
        assert!(text.contains("switch.enabled") && text.contains(reason), "{name}: {text}");
    }
}

/// An optimizer with a first moment on parameters of 8 bits of precision: the update is narrowed, then added.
const NARROW: &str = r#"HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: bf16[64], m: f32[64], x: f32[64], y: f32[64]) -> (bf16[64], f32[64], f32[]) {
  %p = bf16[64]{0} parameter(0)
  %m = f32[64]{0} parameter(1)
  %x = f32[64]{0} parameter(2)
  %y = f32[64]{0} parameter(3)
  %wide = f32[64]{0} convert(%p)
  %product = f32[64]{0} multiply(%wide, %x)
  %error = f32[64]{0} subtract(%product, %y)
  %square = f32[64]{0} multiply(%error, %error)
  %zero = f32[] constant(0)
  %loss = f32[] reduce(%square, %zero), dimensions={0}, to_apply=%sum
  %gradient = f32[64]{0} multiply(%error, %x)
  %decay = f32[] constant(0.9)
  %decays = f32[64]{0} broadcast(%decay), dimensions={}
  %kept = f32[64]{0} multiply(%decays, %m)
  %moment = f32[64]{0} add(%kept, %gradient)
  %rate = f32[] constant(-0.1)
  %rates = f32[64]{0} broadcast(%rate), dimensions={}
  %size = f32[64]{0} abs(%moment)
  %one = f32[] constant(1)
  %ones = f32[64]{0} broadcast(%one), dimensions={}
  %divisor = f32[64]{0} add(%size, %ones)
  %direction = f32[64]{0} divide(%moment, %divisor)
  %step = f32[64]{0} multiply(%rates, %direction)
  %u = bf16[64]{0} convert(%step)
  %new = bf16[64]{0} add(%p, %u)
  ROOT %out = (bf16[64]{0}, f32[64]{0}, f32[]) tuple(%new, %moment, %loss)
}
"#;

#[test]
fn a_switch_that_has_not_come_leaves_scaled_updates_of_narrow_parameters_alone() {
    let module = hlo::text::parse(NARROW).unwrap();
    let mut scaled = Policy::monitor();
    scaled.scale.tensors.insert("*".into(), 0.37);
    let mut armed = scaled.clone();
    armed.switch = Policy::parse("[switch]\nenabled = true\ntrigger = \"step\"\nstep = 1000000").unwrap().switch;
    let [mut alone, mut both] =
        [&scaled, &armed].map(|policy| Controlled::with(&module, policy, common::Contraction::Impossible).unwrap());
    let mut random = common::Random::new(3);
    let mut draw = || (0..64).map(|_| random.normal() as f32).collect::<Vec<_>>();
    let p = Array {
        element_type: pjrt::ElementType::Bf16,
        dims: vec![64],
        bytes: draw().iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
    };
    let mut inputs = vec![p, Array::vector(&draw()), Array::vector(&draw()), Array::vector(&draw())];
    for step in 0..5 {
        let expected = alone.run(&inputs);
        assert!(expected == both.run(&inputs), "step {step}: an update lost what its type does not hold");
        inputs.splice(0..2, expected.into_iter().take(2));
    }
}
