//! Emitted control on the CPU plugin beside the `f64` reference, fed with the same statistics.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of this module")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use ndarray::Array1;
use passes::control::standalone;
use passes::layout::{ControlledTensor, StepFacts};
use passes::reference::{Controller, Statistics, Step};
use passes::{ControllerLayout, Policy, Telemetry};

use crate::common::{Array, Compiled};

/// A tensor called `p['tI']`.
pub fn tensor(input: usize, elements: u64, rank: u32) -> ControlledTensor {
    ControlledTensor { name: format!("p['t{input}']"), input, elements, rank, measured: "%g".into(), scaling: None }
}

/// Emitted control and reference, side by side.
pub struct Pair {
    pub program: &'static Compiled,
    pub layout: ControllerLayout,
    pub policy: Policy,
    pub state: Vec<f32>,
    pub counters: Vec<i32>,
    pub reference: Controller,
    /// How the optimizer steps, as projections of each tensor; fed to the next steps.
    pub projections: Vec<(f32, f32)>,
    /// Which tensors SGD moved in the last step.
    pub by_sgd: Vec<bool>,
}

/// Statistics of one step: (S, h) of each tensor.
pub type Fed = Vec<(f32, f32)>;

impl Pair {
    pub fn new(elements: &[u64], policy: &Policy) -> Self {
        Self::of(elements, policy, StepFacts::default())
    }

    /// For a step of which something is known.
    pub fn of(elements: &[u64], policy: &Policy, facts: StepFacts) -> Self {
        Self::with_tensors(elements.iter().enumerate().map(|(i, &n)| tensor(i, n, 2)).collect(), policy, facts)
    }

    /// The same for tensors of any rank, which the reference takes for two.
    pub fn with_tensors(tensors: Vec<ControlledTensor>, policy: &Policy, facts: StepFacts) -> Self {
        let elements: Vec<u64> = tensors.iter().map(|t| t.elements).collect();
        let (module, layout) = standalone(tensors, policy, facts).unwrap();
        let mut reference = Controller::new(&elements, policy);
        reference.loss_scaled = facts.loss_scaled;
        reference.obey(policy.tensor_laws(layout.tensors.iter().map(|t| t.name.as_str())).unwrap());
        Self {
            program: Compiled::shared(&module),
            state: layout.initial_state(),
            counters: layout.initial_counters(),
            reference,
            projections: vec![(0.0, 0.0); elements.len()],
            by_sgd: Vec::new(),
            policy: policy.clone(),
            layout,
        }
    }

    pub fn emitted(&mut self, fed: &Fed) -> Telemetry {
        let (energy, mut nats): (Vec<f32>, Vec<f32>) = fed.iter().copied().unzip();
        nats.push(whole(fed).nats as f32);
        let mut inputs = vec![Array::vector(&energy), Array::vector(&nats)];
        if self.layout.switch.is_some() {
            let (energies, products): (Vec<f32>, Vec<f32>) = self.projections.iter().copied().unzip();
            inputs.extend([Array::vector(&energies), Array::vector(&products)]);
        }
        inputs.extend([
            Array::vector(&self.layout.policy_vector(&self.policy).unwrap()),
            Array::vector(&self.state),
            Array::s32(&[self.counters.len() as i64], &self.counters),
        ]);
        let outputs = self.program.run(&inputs);
        self.by_sgd = outputs.get(5).map_or(Vec::new(), |o| o.bytes.iter().map(|&b| b != 0).collect());
        self.state = outputs[0].floats();
        self.counters = outputs[1].ints();
        assert!(self.state.iter().all(|v| v.is_finite()), "not finite in the state: {:?}", self.state);
        let telemetry = Telemetry::decode(&self.layout, &outputs[2].floats()).unwrap();
        assert_eq!(outputs[4].bytes[0] != 0, telemetry.applied);
        telemetry
    }

    /// One step of both, compared.
    pub fn step(&mut self, fed: &Fed) -> (Telemetry, Step) {
        let of = |&(s, h): &(f32, f32)| Statistics { energy: f64::from(s), nats: f64::from(h) };
        let statistics: Vec<_> = fed.iter().map(of).chain([whole(fed)]).collect();
        let projections: Vec<_> = self.projections.iter().map(|&(a, x)| (f64::from(a), f64::from(x))).collect();
        let expected = self.reference.step(&statistics, &projections, &self.policy);
        let found = self.emitted(fed);
        self.compare(&found, &expected);
        (found, expected)
    }

    fn compare(&self, found: &Telemetry, expected: &Step) {
        let at = self.reference.steps;
        let decided = (found.applied, found.rearmed, found.calibrated, found.stop);
        let wanted = (expected.applied, expected.rearmed, expected.calibrated, expected.stop);
        assert_eq!(decided, wanted, "step {at}: {found:?}");
        let reasons = (found.norm_exceeded, found.entropy_low, found.entropy_high);
        let wanted = (expected.norm_exceeded, expected.entropy_low, expected.entropy_high);
        assert_eq!(reasons, wanted, "step {at}: {found:?}");
        let r = &self.reference;
        let counts = [r.steps, r.accepted, r.non_finite, r.refused_norm, r.rearmed, r.calibrations];
        let found_counts: Vec<u64> = self.counters[..6].iter().map(|&c| c as u64).collect();
        assert_eq!(found_counts, counts, "step {at}");
        let refused = [found.refused_norm, found.refused_low, found.refused_high].map(|count| count as u64);
        assert_eq!(refused, [r.refused_norm, r.refused_low, r.refused_high], "step {at}");
        assert_eq!(found.loss_scale_skips as u64, r.loss_scale_skips, "step {at}");
        if let (Some(switch), Some(switched)) = (&found.switch, &expected.switched) {
            assert_eq!(self.by_sgd, switched.by_sgd, "step {at}: {switch:?}");
            assert_eq!(switch.switches as u64, r.switch.switches, "step {at}: {switch:?}");
            for (i, (found, &expected)) in switch.rates.iter().zip(&switched.rates).enumerate() {
                match found {
                    Some(f) => {
                        assert!((f64::from(*f) / expected - 1.0).abs() <= 1e-5, "step {at}: rate {i}: {f}, {expected}")
                    }
                    None => assert!(expected.is_nan(), "step {at}: rate {i} is absent, not {expected}"),
                }
            }
        }
        if let Some(rollback) = found.rollback {
            let decided = (rollback.rolled_back, rollback.snapshot_taken);
            assert_eq!(decided, (expected.rolled_back, expected.snapshot_taken), "step {at}: {found:?}");
            let counts = [rollback.rollbacks, rollback.snapshots].map(|count| count as u64);
            assert_eq!(counts, [r.rollbacks, r.snapshots], "step {at}");
            assert!((f64::from(rollback.backoff) / expected.backoff - 1.0).abs() <= 1e-5, "step {at}: {rollback:?}");
        }

        let measured: Vec<_> = found.tensors.iter().chain([&found.global]).collect();
        let values = |name: &str, found: Vec<Option<f32>>, expected: &Array1<f64>| {
            for (i, (f, &e)) in found.into_iter().zip(expected).enumerate() {
                match f {
                    Some(f) => assert!(
                        (f64::from(f) - e).abs() <= 1e-5 * e.abs().max(1.0),
                        "step {at}: {name} {i} is {f}, not {e}"
                    ),
                    None => assert!(e.is_nan(), "step {at}: {name} {i} is absent, not {e}"),
                }
            }
        };
        values("entropy", measured.iter().map(|m| m.entropy).collect(), &expected.entropy);
        values("smoothed", measured.iter().map(|m| m.smoothed).collect(), &expected.smoothed);
        values("target", measured.iter().map(|m| m.target).collect(), &expected.target);
        values("ratio", measured.iter().map(|m| m.ratio).collect(), &expected.ratio);
        let names = || self.layout.tensors.iter().map(|t| t.name.as_str());
        let factors = self.policy.tensor_scales(names()).unwrap();
        let expected_scales =
            expected.scales.iter().zip(factors).map(|(e, factor)| e * factor * self.policy.scale.global);
        let scales = found.scales.iter().zip(expected_scales).map(|(&f, e)| ("scale", f, e));
        let factors = self.policy.tensor_momentum(names()).unwrap();
        let expected_momenta = expected.momentum_scales.iter().zip(factors);
        let expected_momenta = expected_momenta.map(|(e, factor)| e * factor * self.policy.momentum.scale);
        let momenta = found.momentum.iter().zip(expected_momenta).map(|(&f, e)| ("momentum of a tensor", f, e));
        let global = [
            ("lr_scale", found.lr_scale, expected.lr_scale),
            ("momentum", found.momentum_scale, expected.momentum_scale),
        ];
        let global = global.into_iter().filter_map(|(name, f, e)| f.map(|f| (name, f, e)));
        for (name, f, e) in scales.chain(momenta).chain(global) {
            assert!((f64::from(f) / e - 1.0).abs() <= 1e-5, "step {at}: {name} is {f}, not {e}");
        }
        if found.finite {
            let relative = |found: f32, expected: f64| (f64::from(found) / expected - 1.0).abs();
            assert!(expected.norm == 0.0 || relative(found.global.norm, expected.norm) <= 1e-5, "step {at}");
        }
        if !expected.norm_mean.is_nan() && expected.norm_mean > 0.0 {
            let relative = (f64::from(found.norm_mean) / expected.norm_mean - 1.0).abs();
            assert!(relative <= 1e-5, "step {at}: norm mean {} for {}", found.norm_mean, expected.norm_mean);
        }
        match found.norm_threshold {
            Some(f) => {
                let relative = (f64::from(f) / expected.norm_threshold - 1.0).abs();
                assert!(
                    f64::from(f) == expected.norm_threshold || relative <= 1e-4,
                    "step {at}: limit {f} for {}",
                    expected.norm_threshold
                );
            }
            None => assert!(expected.norm_threshold.is_nan(), "step {at}: no limit for {}", expected.norm_threshold),
        }
    }
}

/// The whole gradient by the chain rule.
pub fn whole(fed: &Fed) -> Statistics {
    let energy: f64 = fed.iter().map(|&(s, _)| f64::from(s)).sum();
    let parts = fed.iter().filter(|(s, _)| *s > 0.0).map(|&(s, h)| {
        let w = f64::from(s) / energy;
        w * (f64::from(h) - w.ln())
    });
    Statistics { energy, nats: parts.sum() }
}
