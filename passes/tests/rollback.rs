//! `control` with a rollback to a snapshot, on the CPU plugin against the reference.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pair.rs"]
mod pair;

use common::Random;
use pair::{Fed, Pair};
use passes::Policy;
use passes::layout::StepFacts;
use passes::telemetry::RollbackTelemetry;

fn policy() -> Policy {
    Policy::parse(
        "[gate]\nmax_pause = 9\n[gate.norm]\nmultiple = 2.0\nwarmup = 2\nhalf_life = 20\n\
         [rollback]\nkind = \"snapshot\"\npatience = 3\nrefresh = 5\ncalm = 1.2\nbackoff = 0.5\nbackoff_min = 0.2\nrecover = 4",
    )
    .unwrap()
}

fn with_norm(norm: f32) -> Fed {
    vec![(norm * norm, 2.0)]
}

impl Pair {
    /// Steps of these norms; what became of the copies in each.
    fn norms(&mut self, norms: &[f32]) -> Vec<RollbackTelemetry> {
        norms.iter().map(|&norm| self.step(&with_norm(norm)).0.rollback.unwrap()).collect()
    }
}

#[test]
fn the_state_returns_after_patience_and_once_per_pause() {
    let mut pair = Pair::new(&[64], &policy());
    let taken: Vec<bool> = pair.norms(&[1.0; 6]).iter().map(|r| r.snapshot_taken).collect();
    assert_eq!(taken, [false, false, false, false, true, false]);
    let returned: Vec<bool> = pair.norms(&[9.0; 7]).iter().map(|r| r.rolled_back).collect();
    assert_eq!(returned, [false, false, true, false, false, false, false]);
    pair.norms(&[1.0]);
    let returned: Vec<bool> = pair.norms(&[9.0, f32::NAN, 9.0]).iter().map(|r| r.rolled_back).collect();
    assert_eq!(returned, [false, false, true], "refusals of every kind count");
}

#[test]
fn there_is_no_return_before_there_is_a_copy() {
    let mut pair = Pair::new(&[64], &policy());
    pair.norms(&[1.0; 3]);
    assert!(pair.norms(&[9.0; 8]).iter().all(|r| !r.rolled_back && r.snapshots == 0.0));
}

#[test]
fn a_copy_waits_for_calm_and_for_steps_without_refusal() {
    let mut pair = Pair::new(&[64], &policy());
    let taken = |told: Vec<RollbackTelemetry>| told.iter().map(|r| r.snapshot_taken).collect::<Vec<_>>();
    assert_eq!(
        taken(pair.norms(&[1.0, 1.0, 1.0, 1.0, 1.3, 1.3, 1.0])),
        [false, false, false, false, false, false, true]
    );
    assert_eq!(taken(pair.norms(&[1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0])), {
        let mut expected = [false; 10];
        expected[9] = true;
        expected
    });
}

#[test]
fn learning_rates_back_off_and_recover() {
    let mut pair = Pair::new(&[64], &policy());
    pair.norms(&[1.0; 5]);
    pair.norms(&[9.0; 3]);
    let scale = |pair: &mut Pair| pair.step(&with_norm(1.0)).0.scales[0];
    assert!((scale(&mut pair) - 0.5).abs() < 1e-6);
    for _ in 0..3 {
        scale(&mut pair);
    }
    assert!((scale(&mut pair) - 0.5_f32.sqrt()).abs() < 1e-6, "half of the logarithm is back after 4 accepted steps");
    for _ in 0..4 {
        pair.norms(&[9.0; 3]);
        pair.norms(&[1.0]);
    }
    let least = pair.reference.rollbacks;
    assert_eq!(least, 5);
    pair.norms(&[9.0; 3]);
    assert!((scale(&mut pair) - 0.2).abs() < 1e-6, "no lower than the least");
    for _ in 0..60 {
        scale(&mut pair);
    }
    assert_eq!(scale(&mut pair), 1.0, "in the end exactly 1");
}

#[test]
fn a_patience_of_another_policy_needs_no_new_program_and_gate_switches_it_off() {
    let mut pair = Pair::new(&[64], &policy());
    pair.norms(&[1.0; 5]);
    pair.policy.rollback.patience = 1;
    assert!(pair.norms(&[9.0])[0].rolled_back);
    pair.norms(&[1.0; 5]);
    pair.policy.rollback.kind = passes::policy::RollbackKind::Gate;
    let vector = pair.layout.policy_vector(&pair.policy).unwrap();
    assert_eq!(vector.len(), pair.layout.policy_vector(&policy()).unwrap().len());
    for _ in 0..8 {
        assert!(!pair.emitted(&with_norm(9.0)).rollback.unwrap().rolled_back);
    }
}

#[test]
fn random_streams_follow_the_reference() {
    let mut pair = Pair::new(&[64, 1000], &policy());
    let mut random = Random::new(21);
    let mut bad = 0;
    for t in 0..500 {
        if bad == 0 && random.uniform() < 0.06 {
            bad = 1 + random.bits() % 6;
        }
        let level = if bad > 0 { 100.0 } else { 1.0 } * (0.002 * f64::from(t)).exp();
        bad = u64::saturating_sub(bad, 1);
        let mut energy = || (level * (0.1 * random.normal()).exp()) as f32;
        let mut fed: Fed = vec![(energy(), 3.0), (energy(), 5.0)];
        if random.uniform() < 0.02 {
            fed[1].0 = [f32::NAN, f32::INFINITY, 0.0][(random.bits() % 3) as usize];
            fed[1].1 = 0.0;
        }
        pair.step(&fed);
    }
    let r = &pair.reference;
    assert!(r.rollbacks > 5 && r.snapshots > 5 && r.accepted > 300, "{r:?}");
}

#[test]
fn an_overflow_under_a_loss_scale_is_no_anomaly() {
    let mut pair = Pair::of(&[64], &policy(), StepFacts { loss_scaled: true });
    pair.norms(&[1.0; 5]);
    for _ in 0..6 {
        let (found, _) = pair.step(&with_norm(f32::INFINITY));
        assert!(found.skipped && !found.applied && !found.rollback.unwrap().rolled_back);
    }
    let (found, _) = pair.step(&with_norm(1.0));
    assert!(found.applied && !found.skipped);
    assert_eq!((found.non_finite, found.loss_scale_skips), (0.0, 6.0));
    for _ in 0..8 {
        pair.step(&with_norm(f32::NAN));
    }
    assert!(pair.step(&with_norm(f32::NAN)).0.stop, "a loss scale that finds no level stops the run all the same");
}
