//! `control` with a switch of the optimizer, on the CPU plugin against the reference.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pair.rs"]
mod pair;

use common::Random;
use pair::{Fed, Pair};
use passes::Policy;

const ELEMENTS: [u64; 3] = [64, 1, 1000];

fn policy(text: &str) -> Policy {
    Policy::parse(&format!("[gate.norm]\nmultiple = 3.0\nwarmup = 5\n[switch]\nenabled = true\nhalf_life = 10\n{text}"))
        .unwrap()
}

/// One step: entropies around `level`, and projections whose rates are about `rates`.
fn feed(pair: &mut Pair, random: &mut Random, level: f64, rates: [f64; 3]) -> Fed {
    pair.projections = ELEMENTS
        .iter()
        .zip(rates)
        .map(|(&n, rate)| {
            let energy = n as f64 * (0.2 * random.normal()).exp();
            (energy as f32, (energy * rate * (0.2 * random.normal()).exp()) as f32)
        })
        .collect();
    let nats = |n: u64| ((n as f64).ln() * level) as f32;
    ELEMENTS.iter().map(|&n| ((n as f64 * 1e-4 * (0.1 * random.normal()).exp()) as f32, nats(n))).collect()
}

#[test]
fn a_step_of_the_policy_is_the_first_one_by_sgd() {
    let mut pair = Pair::new(&ELEMENTS, &policy("trigger = \"step\"\nstep = 20"));
    let mut random = Random::new(31);
    for t in 0..40 {
        let fed = feed(&mut pair, &mut random, 0.8, [10.0, 20.0, 3e4]);
        let (found, _) = pair.step(&fed);
        assert_eq!(found.switch.unwrap().switched, t >= 20, "step {t}");
        assert_eq!(pair.by_sgd, [t >= 20; 3], "step {t}");
    }
}

#[test]
fn a_rate_is_what_projects_one_step_on_the_other_and_stands_still_in_use() {
    let mut pair = Pair::new(&ELEMENTS, &policy("trigger = \"step\"\nstep = 30"));
    let steps: Fed = ELEMENTS.iter().map(|&n| (n as f32, (n as f32).ln() * 0.8)).collect();
    pair.projections = vec![(2.0, 8.0), (3.0, -9.0), (0.0, 0.0)];
    for t in 0..30 {
        let rates = pair.step(&steps).0.switch.unwrap().rates;
        if t > 0 {
            assert_eq!(rates[2], None, "a tensor without a direction has no rate");
            assert!((rates[0].unwrap() - 4.0).abs() < 1e-5 && (rates[1].unwrap() + 3.0).abs() < 1e-5, "{rates:?}");
        }
    }
    pair.projections = vec![(800.0, 2.0), (9.0, -3.0), (2.0, 4.0)];
    let mut rates = Vec::new();
    for _ in 0..5 {
        rates = pair.step(&steps).0.switch.unwrap().rates;
    }
    assert!((rates[0].unwrap() - 4.0).abs() < 1e-5, "a rate in use moved: {rates:?}");
    assert!((rates[2].unwrap() - 2.0).abs() < 1e-5, "one that is missing may still be found");
    assert_eq!(pair.by_sgd, [true; 3]);
}

#[test]
fn as_swats_has_it_only_steps_that_go_the_gradient_s_way_count() {
    let text = "rate = \"swats\"\ntrigger = \"step\"\nstep = 10";
    let mut pair = Pair::new(&ELEMENTS, &policy(text));
    let steps: Fed = ELEMENTS.iter().map(|&n| (n as f32, (n as f32).ln() * 0.8)).collect();
    pair.projections = vec![(8.0, 2.0), (9.0, -3.0), (5.0, 0.0)];
    for _ in 0..12 {
        pair.step(&steps);
    }
    assert_eq!(pair.by_sgd, [true, false, false]);
}

#[test]
fn rates_that_no_longer_move_fire() {
    let text = "trigger = \"settled\"\nwarmup = 60\nperiod = 20\ntolerance = 0.1";
    let mut pair = Pair::new(&ELEMENTS, &policy(text));
    let mut random = Random::new(32);
    let mut first = None;
    for t in 0..500 {
        // They move until step 200.
        let rate = (0.02 * f64::from(200_u32.saturating_sub(t))).exp();
        let fed = feed(&mut pair, &mut random, 0.8, [rate, 2.0 * rate, 5.0 * rate]);
        if pair.step(&fed).0.switch.unwrap().switched && first.is_none() {
            first = Some(t);
        }
    }
    assert!((200..320).contains(&first.unwrap()), "{first:?}");
    assert_eq!(pair.reference.switch.switches, 1, "one way");
}

#[test]
fn a_falling_trend_fires_and_a_rising_one_returns_where_the_policy_says_so() {
    for (returns, expected) in [("", 1), ("\nreturn_above = 0.97", 4)] {
        let text = format!("trigger = \"entropy\"\nwarmup = 20\nshare = 0.9{returns}");
        let mut pair = Pair::new(&ELEMENTS, &policy(&text));
        let mut random = Random::new(33);
        for t in 0..500 {
            let level = 0.7 - 0.15 * (f64::from(t) / 40.0).sin().max(0.0);
            let fed = feed(&mut pair, &mut random, level, [1.0, 2.0, 3.0]);
            pair.step(&fed);
        }
        assert_eq!(pair.reference.switch.switches, expected, "{text}");
    }
}

#[test]
fn healthy_training_whose_entropy_rises_never_fires() {
    let mut pair = Pair::new(&ELEMENTS, &policy("trigger = \"entropy\"\nwarmup = 20\nshare = 0.9"));
    let mut random = Random::new(34);
    for t in 0..300 {
        let fed = feed(&mut pair, &mut random, 0.7 + 0.0003 * f64::from(t), [1.0, 2.0, 3.0]);
        assert!(!pair.step(&fed).0.switch.unwrap().switched);
    }
}

#[test]
fn adversarial_projections_leave_the_state_finite() {
    for text in ["trigger = \"settled\"\nwarmup = 5\nperiod = 7", "trigger = \"step\"\nstep = 250\nrate = \"swats\""] {
        let mut pair = Pair::new(&ELEMENTS, &policy(text));
        let mut random = Random::new(35);
        let odd = [f32::NAN, f32::INFINITY, 0.0, 3e38, -3e38, 1e-40, 1e-30, -1e30];
        for _ in 0..500 {
            let mut fed = feed(&mut pair, &mut random, 0.8, [1.0, -2.0, 3e5]);
            let pick = |random: &mut Random| odd[(random.bits() % odd.len() as u64) as usize];
            if random.uniform() < 0.2 {
                let at = (random.bits() % 3) as usize;
                pair.projections[at] = (pick(&mut random), pick(&mut random));
            }
            if random.uniform() < 0.05 {
                fed[2] = (f32::NAN, 0.0);
            }
            // What lies between normal numbers and zero is flushed on the device.
            for (a, x) in &mut pair.projections {
                if a.is_subnormal() || x.is_subnormal() {
                    (*a, *x) = (0.0, 0.0);
                }
            }
            pair.emitted(&fed);
        }
    }
}

#[test]
fn a_switch_can_be_turned_off_by_number_and_not_turned_on() {
    let mut pair = Pair::new(&ELEMENTS, &policy("trigger = \"step\"\nstep = 0"));
    let steps: Fed = ELEMENTS.iter().map(|&n| (n as f32, 0.5)).collect();
    pair.projections = vec![(8.0, 2.0); 3];
    for _ in 0..3 {
        pair.step(&steps);
    }
    assert_eq!(pair.by_sgd, [true; 3]);
    pair.policy.switch.enabled = false;
    pair.emitted(&steps);
    assert_eq!(pair.by_sgd, [false; 3]);
    let plain = Pair::new(&ELEMENTS, &Policy::default());
    let error = plain.layout.policy_vector(&policy("trigger = \"step\"")).unwrap_err().to_string();
    assert!(error.contains("switch.enabled = false"), "{error}");
    let error = pair.layout.policy_vector(&policy("trigger = \"entropy\"")).unwrap_err().to_string();
    assert!(error.contains("switch.trigger = step"), "{error}");
}
