//! Groups: what they make of scales, laws and clamps, against the reference.

use passes::Policy;
use passes::policy::Timing;

use super::common::Random;
use super::{ELEMENTS, Pair, wandering};

/// Laws that act often, ...
const LAWS: &str = "[target]\nfirst = 10\nevery = 40\nhalf_life = 60\n[laws]\nwarmup = 9\nmax = 1.3\n\
                    [laws.micro]\nenabled = true\nperiod = 2\nbelow = 0.97\nmin_elements = 1\n\
                    [laws.rule]\nenabled = true\nperiod = 3\n";

/// ... and tensors that none of them may move, or only within other bounds.
const GROUPS: &str = "[groups.still]\ninclude = [\"*t0*\"]\nlaws = false\nscale = 0.5\n\
                      [groups.wide]\ninclude = [\"*\"]\nexclude = [\"*t0*\", \"*t3*\"]\nmax = 3.0\nfactor = 1.3\nmomentum = 0.9\n";

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap()
}

#[test]
fn groups_follow_the_reference_in_both_timings() {
    for timing in [Timing::Sync, Timing::Delayed] {
        let mut policy = policy(&format!("{LAWS}{GROUPS}"));
        policy.laws.timing = timing;
        let mut pair = Pair::new(&ELEMENTS, &policy);
        let mut random = Random::new(21);
        let mut seen = [[f32::MAX, 0.0]; 4];
        let mut momentum = [[f32::MAX, 0.0]; 4];
        let widen = |seen: &mut [[f32; 2]; 4], values: &[f32]| {
            for (seen, &v) in seen.iter_mut().zip(values) {
                *seen = [seen[0].min(v), seen[1].max(v)];
            }
        };
        for t in 0..400 {
            let (found, _) = pair.step(&wandering(&mut random, t));
            widen(&mut seen, &found.scales);
            widen(&mut momentum, &found.momentum);
        }
        assert_eq!((seen[0], momentum[0]), ([0.5; 2], [1.0; 2]), "{timing:?}: a law moved a tensor that none may move");
        let bound = |max: f32| max * (1.0 + 1e-6);
        assert!(seen[2][1] > 1.5 && seen[2][1] <= bound(3.0), "{timing:?}: {seen:?}");
        assert!(seen[3][1] > 1.2 && seen[3][1] <= bound(1.3) && seen[3][0] >= 1.0 / bound(1.3), "{timing:?}: {seen:?}");
        assert!(momentum[2][1] > 0.95 && momentum[2][1] <= bound(0.9 * 1.2), "{timing:?}: {momentum:?}");
    }
}

#[test]
fn what_no_group_asks_for_is_not_in_the_vector() {
    let fields = |text: &str| {
        let pair = Pair::new(&ELEMENTS, &policy(text));
        pair.layout.policy.iter().map(|field| field.name.clone()).collect::<Vec<_>>()
    };
    let harmless = "[groups.all]\ninclude = [\"*\"]\nscale = 1.0\nlaws = true\nbelow = 0.7\nfactor = 1.1\n";
    assert_eq!(fields(LAWS), fields(&format!("{LAWS}{harmless}")));
    let added = |text: &str| {
        let before = fields(LAWS);
        fields(&format!("{LAWS}{text}")).into_iter().filter(|name| !before.contains(name)).collect::<Vec<_>>()
    };
    let clamps = ["laws.tensors.log_max", "laws.tensors.momentum_log_max"];
    assert_eq!(added("[groups.all]\ninclude = [\"*\"]\nmax = 2.0\n"), clamps);
    assert_eq!(added("[groups.all]\ninclude = [\"*\"]\nlaws = false\n"), clamps);
    // Without a law there is nothing to clamp.
    let none = fields("[groups.all]\ninclude = [\"*\"]\nmax = 2.0\nlaws = false\n");
    assert!(!none.iter().any(|name| name.starts_with("laws")), "{none:?}");
}

#[test]
fn numbers_of_groups_need_no_new_program_and_their_clamps_do() {
    let mut pair = Pair::new(&ELEMENTS, &policy(&format!("{LAWS}{GROUPS}")));
    let mut random = Random::new(22);
    for t in 0..60 {
        pair.step(&wandering(&mut random, t));
    }
    // Other tensors, other bounds, no groups at all: the same program.
    for text in [
        "[groups.still]\ninclude = [\"*t2*\", \"*t3*\"]\nlaws = false\n",
        "[groups.narrow]\ninclude = [\"*\"]\nmax = 1.1\nlaws = true\nbelow = 2.0\n",
        "",
    ] {
        pair.policy = policy(&format!("{LAWS}{text}"));
        pair.reference.obey(pair.policy.tensor_laws(pair.layout.tensors.iter().map(|t| t.name.as_str())).unwrap());
        for t in 60..120 {
            pair.step(&wandering(&mut random, t));
        }
    }
    let without = Pair::new(&ELEMENTS, &policy(LAWS)).layout;
    let error = without.policy_vector(&policy(&format!("{LAWS}{GROUPS}"))).unwrap_err().to_string();
    assert!(error.contains("groups: `laws` or `max`") && error.contains("inject again"), "{error}");
    let elsewhere = policy("[groups.a]\ninclude = [\"*t0*\", \"*t9*\"]");
    let error = without.policy_vector(&elsewhere).unwrap_err().to_string();
    assert!(error.contains("`groups.a.include = [\"*t9*\"]` names no tensor"), "{error}");
}

#[test]
fn the_law_of_each_tensor_acts_on_small_ones_where_their_group_says_so() {
    let low = vec![(64.0, 1.0); 2];
    let high = vec![(64.0, 4.0); 2];
    let text =
        "[target]\nfirst = 1\n[laws]\nwarmup = 1\n[laws.micro]\nenabled = true\nperiod = 1\nmin_elements = 500\n";
    for (group, raised) in [("", false), ("[groups.a]\ninclude = [\"*t0*\"]\nlaws = true", true)] {
        let mut pair = Pair::new(&[64, 64], &policy(&format!("{text}{group}")));
        for fed in [&high, &high, &low, &low, &low] {
            pair.step(fed);
        }
        let scales = pair.step(&low).0.scales;
        assert_eq!((scales[0] > 1.0, scales[1] > 1.0), (raised, false), "{group:?}: {scales:?}");
    }
}
