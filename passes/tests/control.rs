//! `control` on the CPU plugin against the reference, fed with the same statistics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "../../tests/support/controlled.rs"]
mod controlled;
#[path = "control/groups.rs"]
mod groups;
#[path = "common/pair.rs"]
mod pair;
#[path = "control/properties.rs"]
mod properties;

use common::Random;
use pair::{Fed, Pair, tensor};
use passes::Policy;
use passes::layout::StepFacts;
use passes::policy::Timing;

const ELEMENTS: [u64; 4] = [64, 1, 1000, 40_000_000];

fn random_step(random: &mut Random, level: f64) -> Fed {
    ELEMENTS
        .iter()
        .map(|&n| {
            let energy = level * (0.3 * random.normal()).exp() * n as f64 * 1e-6;
            (energy as f32, ((n as f64).ln() * (0.7 + 0.2 * random.uniform())) as f32)
        })
        .collect()
}

/// A policy whose periods are short enough to be crossed often.
fn eager() -> Policy {
    Policy::parse(
        "[entropy]\nsmoothing = 3\n[target]\nhalf_life = 40\nfirst = 7\nevery = 20\n\
         [gate]\nmax_pause = 5\n[gate.norm]\nmultiple = 1.8\ndeviations = 4\nhalf_life = 15\nwarmup = 6",
    )
    .unwrap()
}

#[test]
fn random_and_drifting_streams() {
    for (seed, drift) in [(1, 0.0), (2, 0.01), (3, -0.02)] {
        let mut pair = Pair::new(&ELEMENTS, &eager());
        let mut random = Random::new(seed);
        let mut refused = 0;
        for t in 0..300 {
            let spike = if random.uniform() < 0.05 { 100.0 } else { 1.0 };
            let fed = random_step(&mut random, spike * (drift * f64::from(t)).exp());
            refused += u32::from(!pair.step(&fed).1.applied);
        }
        assert!((5..100).contains(&refused), "{refused} of 300 steps refused: the stream tests nothing");
        assert!(pair.reference.calibrations > 5);
    }
}

#[test]
fn adversarial_streams_leave_the_state_finite() {
    let mut pair = Pair::new(&ELEMENTS, &eager());
    let mut random = Random::new(4);
    let odd = [f32::NAN, f32::INFINITY, 0.0, 3e38, f32::MIN_POSITIVE, 1e-40, 1e-30, 1e30];
    for t in 0..400 {
        let mut fed = random_step(&mut random, 1.0);
        if t % 3 != 0 {
            for (energy, nats) in &mut fed {
                match random.bits() % 4 {
                    0 => *energy = odd[(random.bits() % odd.len() as u64) as usize],
                    1 => *nats = 0.0,
                    _ => {}
                }
            }
        }
        // What the emitter promises about h where S is zero, and what it does not where S is no number.
        for (energy, nats) in &mut fed {
            if *energy < f32::MIN_POSITIVE {
                (*energy, *nats) = (0.0, 0.0);
            } else if !energy.is_finite() {
                *nats = f32::NAN;
            }
        }
        pair.step(&fed);
    }
    assert!(pair.reference.accepted > 50 && pair.reference.non_finite > 50);
}

#[test]
fn long_half_lives_lose_no_accuracy() {
    let mut policy = Policy::parse("[target]\nhalf_life = 20000\nfirst = 1\nevery = 1").unwrap();
    policy.gate.norm.half_life = 20_000.0;
    policy.gate.norm.multiple = 1e6;
    let mut pair = Pair::new(&[64, 1000], &policy);
    for t in 0..6000_i32 {
        // A slow drift, whose steps are far below the precision of a single addition.
        let level = 0.8 + 1e-5 * f64::from(t) / 6.0;
        let fed = [64.0_f64, 1000.0].map(|n| ((level * n) as f32, (level * n.ln()) as f32));
        pair.step(&fed.to_vec());
    }
}

/// Steps of one tensor with a given norm.
fn with_norm(norm: f32) -> Fed {
    vec![(norm * norm, 2.0)]
}

#[test]
fn at_the_threshold_a_step_is_accepted_and_above_it_is_refused() {
    let policy = Policy::parse("[gate.norm]\nmultiple = 2.0\nwarmup = 4").unwrap();
    for (norm, refused) in [(2.0, false), (2.0_f32.next_up().next_up(), true), (1.5, false), (f32::MAX.sqrt(), true)] {
        let mut pair = Pair::new(&[64], &policy);
        for _ in 0..4 {
            assert!(pair.step(&with_norm(1.0)).0.applied);
        }
        let (found, _) = pair.step(&with_norm(norm));
        assert_eq!(found.norm_threshold, Some(2.0));
        assert_eq!((found.norm_exceeded, found.applied), (refused, !refused), "norm {norm}");
    }
}

#[test]
fn where_norms_vary_much_only_one_far_beyond_that_is_refused() {
    // Norms of 0.5 and 1.5 in turn: their mean is 1, and their mean deviation from it 0.5.
    for (deviations, norm, refused) in [(0.0, 2.5, true), (8.0, 4.5, false), (8.0, 5.5, true), (2.0, 2.5, true)] {
        let text = format!("[gate.norm]\nmultiple = 2.0\ndeviations = {deviations:?}\nwarmup = 100\nhalf_life = 1e6");
        let mut pair = Pair::new(&[64], &Policy::parse(&text).unwrap());
        for t in 0..100 {
            assert!(pair.step(&with_norm(if t % 2 == 0 { 0.5 } else { 1.5 })).0.applied);
        }
        let (found, _) = pair.step(&with_norm(norm));
        assert_eq!(
            found.norm_exceeded, refused,
            "{deviations} deviations, norm {norm}, limit {:?}",
            found.norm_threshold
        );
    }
}

#[test]
fn nothing_is_refused_for_its_norm_before_warmup_ends() {
    for (accepted_before, refused) in [(3, false), (4, true)] {
        let mut pair = Pair::new(&[64], &Policy::parse("[gate.norm]\nwarmup = 4").unwrap());
        for _ in 0..accepted_before {
            pair.step(&with_norm(1.0));
        }
        assert_eq!(pair.step(&with_norm(1000.0)).0.norm_exceeded, refused);
    }
}

#[test]
fn the_norm_gate_reopens_after_max_pause_and_counts_it() {
    let mut pair = Pair::new(&[64], &Policy::parse("[gate]\nmax_pause = 3\n[gate.norm]\nwarmup = 2").unwrap());
    for _ in 0..2 {
        pair.step(&with_norm(1.0));
    }
    let rearmed: Vec<bool> = [10.0, f32::NAN, 20.0, 30.0].map(|n| pair.step(&with_norm(n)).0.rearmed).to_vec();
    assert_eq!(rearmed, [false, false, false, true]);
    let (found, _) = pair.step(&with_norm(25.0));
    assert!(found.applied && found.rearmings == 1.0 && found.norm_threshold == Some(40.0), "{found:?}");
}

#[test]
fn non_finite_steps_are_never_admitted_and_stop_the_run() {
    let mut pair = Pair::new(&[64], &Policy::parse("[gate]\nmax_pause = 3").unwrap());
    pair.step(&with_norm(1.0));
    let state = pair.state.clone();
    let stops: Vec<bool> = (0..5)
        .map(|_| {
            let (found, _) = pair.step(&with_norm(f32::NAN));
            assert!(!found.applied);
            found.stop
        })
        .collect();
    assert_eq!(stops, [false, false, true, true, true]);
    assert_eq!(pair.state, state, "a refused step leaves window, means and targets alone");
    assert!(pair.step(&with_norm(1.0)).0.applied);
    assert!(!pair.step(&with_norm(f32::NAN)).0.stop);
}

#[test]
fn a_policy_that_only_watches_applies_everything_and_learns_from_finite_steps() {
    let mut pair = Pair::new(&[64], &Policy::monitor());
    for norm in [1.0, f32::NAN, 1000.0, f32::INFINITY, 1.0] {
        let (found, _) = pair.step(&with_norm(norm));
        assert!(found.applied && !found.stop);
    }
    assert_eq!(pair.counters[..4], [5, 3, 2, 0]);
}

#[test]
fn an_inactive_tensor_moves_neither_window_nor_target() {
    let mut pair = Pair::new(&[64, 64], &eager());
    for t in 0..40_u8 {
        let quiet = if t % 2 == 0 { (0.0, 0.0) } else { (1.0, 3.0) };
        let (found, _) = pair.step(&vec![(1.0, 2.0), quiet]);
        let present = t > 0;
        assert_eq!(found.tensors[1].smoothed.is_some(), present, "step {t}");
        if present {
            assert!((found.tensors[1].smoothed.unwrap() - 3.0 / 64.0_f32.ln()).abs() < 1e-6);
        }
    }
}

/// A stream whose entropies wander over both ends of every band.
fn wandering(random: &mut Random, t: u32) -> Fed {
    let level = 0.6 + 0.3 * (f64::from(t) / 23.0).sin();
    let mut energy = |n: u64| (n as f64 * 1e-6 * (0.2 * random.normal()).exp()) as f32;
    let energies: Vec<_> = ELEMENTS.iter().map(|&n| energy(n)).collect();
    let nats = |n: u64, r: f64| ((n as f64).ln() * (level + 0.05 * r).clamp(0.0, 1.0)) as f32;
    ELEMENTS.iter().zip(energies).map(|(&n, s)| (s, nats(n, random.normal()))).collect()
}

/// Short periods, so that every law acts often in 500 steps.
const LAWS: [(&str, &str); 6] = [
    (
        "micro",
        "[laws]\nwarmup = 20\nmax = 1.5\n[laws.micro]\nenabled = true\nperiod = 3\nbelow = 0.95\nmin_elements = 1",
    ),
    (
        "micro down",
        "[laws]\nwarmup = 20\n[laws.micro]\nenabled = true\nperiod = 5\nbelow = 1.0\nfactor = 0.9\nmin_elements = 100",
    ),
    ("rule", "[laws]\nwarmup = 9\n[laws.rule]\nenabled = true\nperiod = 4"),
    ("pi", "[laws]\nwarmup = 9\n[laws.pi]\nenabled = true\nperiod = 2"),
    ("pi that saturates", "[laws]\nmax = 1.1\n[laws.pi]\nenabled = true\nperiod = 1\nkp = 5.0\nki = 0.5"),
    (
        "micro and pi",
        "[laws.micro]\nenabled = true\nmin_elements = 1\nperiod = 2\n[laws.pi]\nenabled = true\nperiod = 3\n[laws]\nwarmup = 0",
    ),
];

#[test]
fn laws_follow_the_reference_in_both_timings() {
    for (name, law) in LAWS {
        for timing in ["sync", "delayed"] {
            let mut policy =
                Policy::parse(&format!("{law}\n[target]\nfirst = 10\nevery = 40\nhalf_life = 60")).unwrap();
            policy.laws.timing = if timing == "sync" { Timing::Sync } else { Timing::Delayed };
            let mut pair = Pair::new(&ELEMENTS, &policy);
            let mut random = Random::new(11);
            let mut seen = [1.0_f32, 1.0];
            for t in 0..500 {
                let fed = wandering(&mut random, t);
                for &scale in &pair.step(&fed).0.scales {
                    seen = [seen[0].min(scale), seen[1].max(scale)];
                }
            }
            let bound = policy.laws.max as f32 * (1.0 + 1e-6);
            assert!(seen[0] < 0.99 || seen[1] > 1.01, "{name}, {timing}: the law never acted");
            assert!(seen[0] >= 1.0 / bound && seen[1] <= bound, "{name}, {timing}: {seen:?} leaves the clamp");
        }
    }
}

#[test]
fn the_delayed_scale_is_that_of_the_step_before() {
    let text = "[target]\nfirst = 10\n[laws]\nwarmup = 0\n[laws.pi]\nenabled = true\nperiod = 1";
    let mut delayed = Policy::parse(text).unwrap();
    delayed.laws.timing = Timing::Delayed;
    let mut pairs = [Pair::new(&ELEMENTS, &Policy::parse(text).unwrap()), Pair::new(&ELEMENTS, &delayed)];
    let mut random = Random::new(12);
    let mut before = vec![1.0; ELEMENTS.len()];
    for t in 0..60 {
        let fed = wandering(&mut random, t);
        let [sync, delayed] = pairs.each_mut().map(|pair| pair.step(&fed).0.scales);
        // Two programs: an exponential may round in another way.
        let close =
            delayed.iter().zip(&before).all(|(a, b): (&f32, &f32)| (a - b).abs() <= 4.0 * f32::EPSILON * b.abs());
        assert!(close, "step {t}: {delayed:?}, {before:?}");
        before = sync;
    }
    assert!(before.iter().any(|&s| s != 1.0));
}

#[test]
fn a_law_that_has_nothing_to_do_leaves_the_scale_exactly_1() {
    let mut policy =
        Policy::parse("[target]\nfirst = 1\n[laws]\nwarmup = 0\n[laws.micro]\nenabled = true\nmin_elements = 1")
            .unwrap();
    policy.laws.rule.enabled = true;
    let mut pair = Pair::new(&[64, 100], &policy);
    for _ in 0..100 {
        let (found, _) = pair.step(&vec![(1.0, 2.0), (1.0, 3.0)]);
        assert_eq!((found.scales, found.momentum_scale), (vec![1.0, 1.0], Some(1.0)));
    }
}

#[test]
fn small_tensors_have_no_law_unless_a_pattern_says_so() {
    let text = "[target]\nfirst = 1\n[laws]\nwarmup = 1\n[laws.micro]\nenabled = true\nperiod = 1\nmin_elements = 500";
    let low = vec![(64.0, 1.0), (64.0, 1.0), (64.0, 1.0)];
    let high = vec![(64.0, 4.0), (64.0, 4.0), (64.0, 4.0)];
    let scales = |text: &str| {
        let tensors = vec![tensor(0, 64, 2), tensor(1, 1000, 2), tensor(2, 1000, 1)];
        let mut pair = Pair::with_tensors(tensors, &Policy::parse(text).unwrap(), StepFacts::default());
        for _ in 0..3 {
            pair.emitted(&high);
        }
        (0..3).map(|_| pair.emitted(&low).scales).next_back().unwrap()
    };
    let raised = |scales: Vec<f32>| scales.into_iter().map(|s| s > 1.0).collect::<Vec<_>>();
    assert_eq!(raised(scales(text)), [false, true, false]);
    let patterns = "\n[laws.micro.tensors]\n\"p['t0']\" = { enabled = true }\n\"p['t1']\" = { enabled = false }";
    assert_eq!(raised(scales(&format!("{text}{patterns}"))), [true, false, false]);
    let factor = "\n[laws.micro.tensors]\n\"*t1*\" = { factor = 1.0 }\n\"p['t2']\" = { enabled = true, below = 0.1 }";
    assert_eq!(raised(scales(&format!("{text}{factor}"))), [false, false, false]);
}

#[test]
fn a_fixed_target_holds_and_decays() {
    let mut policy = Policy::parse("[target]\nkind = \"fixed\"\nvalue = 0.6\ndecay = 0.99").unwrap();
    let mut pair = Pair::new(&[64], &policy);
    for t in 1..=100_i32 {
        let (found, _) = pair.step(&with_norm(1.0));
        let expected = 0.6 * 0.99_f64.powi(t);
        assert!((f64::from(found.global.target.unwrap()) / expected - 1.0).abs() < 1e-5, "step {t}");
    }
    policy.target = Policy::parse("[target]\ndecay = 0.99\nfirst = 5\nevery = 10").unwrap().target;
    let mut pair = Pair::new(&ELEMENTS, &policy);
    let mut random = Random::new(13);
    for t in 0..60 {
        pair.step(&wandering(&mut random, t));
    }
    assert!(pair.reference.calibrations > 3);
}

/// A policy with both gates, re-armed soon.
fn both_gates(votes: &str) -> Policy {
    Policy::parse(&format!(
        "[target]\nfirst = 10\nevery = 50\n[gate]\nmax_pause = 4\nvotes = \"{votes}\"\n\
         [gate.norm]\nmultiple = 1.5\ndeviations = 0.0\nwarmup = 10\n[gate.entropy]\nenabled = true\nlow = 0.9\nhigh = 1.1\nwarmup = 12"
    ))
    .unwrap()
}

#[test]
fn entropy_and_norm_gates_follow_the_reference() {
    for votes in ["any", "all"] {
        let mut pair = Pair::new(&ELEMENTS, &both_gates(votes));
        let mut random = Random::new(14);
        for t in 0..500 {
            let mut fed = wandering(&mut random, t);
            let spike = if random.uniform() < 0.3 { 16.0 } else { 1.0 };
            fed.iter_mut().for_each(|(energy, _)| *energy *= spike);
            if random.uniform() < 0.02 {
                fed[2].0 = f32::NAN;
            }
            pair.step(&fed);
        }
        let r = &pair.reference;
        assert!(r.refused_low > 5 && r.refused_high > 5 && r.refused_norm > 5 && r.rearmed > 0, "{votes}: {r:?}");
        assert!(r.accepted > 100, "{votes}: {r:?}");
    }
}

#[test]
fn all_votes_must_agree_and_any_vote_suffices() {
    // (norm, nats) of one step after a calm start, and what each rule does with it.
    for (norm, nats, any, all) in
        [(1.0, 2.0, true, true), (9.0, 2.0, false, true), (1.0, 0.5, false, true), (9.0, 0.5, false, false)]
    {
        for (votes, applied) in [("any", any), ("all", all)] {
            let mut pair = Pair::new(&[64], &both_gates(votes));
            for _ in 0..20 {
                pair.step(&with_norm(1.0));
            }
            let (found, _) = pair.step(&vec![(norm * norm, nats)]);
            assert_eq!(found.applied, applied, "{votes}: norm {norm}, h {nats}");
        }
    }
}

#[test]
fn the_entropy_gate_reopens_on_what_it_saw() {
    let mut pair = Pair::new(&[64], &both_gates("any"));
    for _ in 0..20 {
        pair.step(&with_norm(1.0));
    }
    let told: Vec<_> = (0..4).map(|_| pair.step(&vec![(1.0, 1.0)]).0).collect();
    assert!(told.iter().all(|t| t.entropy_low && !t.applied));
    assert_eq!(told.iter().map(|t| t.rearmed).collect::<Vec<_>>(), [false, false, false, true]);
    let (found, _) = pair.step(&vec![(1.0, 1.0)]);
    let target = found.global.target.unwrap();
    assert!(found.applied && (target - 1.0 / 64.0_f32.ln()).abs() < 1e-6, "{found:?}");
}

#[test]
fn new_numbers_need_no_new_program() {
    let mut pair = Pair::new(&[64], &Policy::parse("[gate.norm]\nwarmup = 1").unwrap());
    pair.step(&with_norm(1.0));
    assert!(!pair.step(&with_norm(4.0)).0.applied);
    pair.policy.gate.norm.multiple = 5.0;
    assert!(pair.step(&with_norm(4.0)).0.applied);
    pair.policy.gate.norm.enabled = false;
    assert!(pair.step(&with_norm(400.0)).0.applied);
}

#[test]
fn laws_act_on_the_spectral_entropies_that_the_state_holds() {
    let text = "[entropy]\nsmoothing = 2\n[target]\nhalf_life = 20\nfirst = 5\nevery = 15\n[gate]\nmax_pause = 4\n\
                [gate.norm]\nmultiple = 1.8\ndeviations = 3\nwarmup = 6\n[spectral]\nenabled = true\n[laws]\nsignal = \"spectral\"\n\
                warmup = 3\n[laws.micro]\nenabled = true\nperiod = 2\nmin_elements = 1\n[laws.rule]\nenabled = true\nperiod = 3";
    let mut pair = Pair::new(&ELEMENTS, &Policy::parse(text).unwrap());
    let field = passes::ControllerLayout::field(&pair.layout.state, "spectral_entropy").unwrap().clone();
    assert_eq!((field.len, field.offset + field.len), (ELEMENTS.len() + 1, pair.state.len()));
    let mut random = Random::new(41);
    let mut moved = false;
    for t in 0..120 {
        // Lower than before from step 60 on; the second tensor is never treated, the third only now and then.
        let level = if t < 60 { 0.8 } else { 0.5 };
        let mut entropies: Vec<f32> = (0..=ELEMENTS.len()).map(|_| (level + 0.1 * random.uniform()) as f32).collect();
        entropies[1] = -1.0;
        if t % 3 == 0 {
            entropies[2] = -1.0;
        }
        pair.state[field.offset..].copy_from_slice(&entropies);
        let signal = entropies.iter().map(|&e| if e < 0.0 { f64::NAN } else { f64::from(e) });
        pair.reference.signal = Some(signal.collect());
        // Some steps are refused for their norm, and now and then the gate re-arms.
        let level = if t % 29 > 23 { 9.0 } else { 1.0 };
        let (found, _) = pair.step(&random_step(&mut random, level));
        assert_eq!(found.tensors[1].smoothed, None);
        moved |= (found.scales[0] - 1.0).abs() > 0.05;
    }
    assert!(moved && pair.reference.rearmed > 0, "no law acted, or no gate re-armed");
}
