//! Training batches that are spoilt on purpose, to try what gates are worth.
//!
//! Which steps are hit, and how, is a pure function of the seed and the number of the step: runs that differ in their
//! policy alone see the same bad batches. Held-out data never comes through here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::data::{below, mix};

/// Keeps these draws apart from those of the windows, which come from the same seed.
const SALT: u64 = 0x636f_7272_7570_7421;

/// The share of batches that are spoilt: above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Share(f64);

/// A number that is no share of batches.
#[derive(Debug, Error)]
#[error(
    "{0:?} is not a share of batches: a number above 0 and at most 1, such as 0.02; without it, no batch is spoilt"
)]
pub struct ShareError(String);

impl Share {
    /// The share as a number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        text.parse().ok().and_then(|share: f64| Self::try_from(share).ok()).ok_or_else(|| ShareError(text.to_owned()))
    }
}

impl TryFrom<f64> for Share {
    type Error = ShareError;

    fn try_from(share: f64) -> Result<Self, ShareError> {
        if share > 0.0 && share <= 1.0 { Ok(Self(share)) } else { Err(ShareError(share.to_string())) }
    }
}

/// What is wrong with a batch. All rows of a batch have the same fault, each in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Random bytes, like those of a compressed or encrypted file.
    Noise,
    /// One byte over and over, like a device that answers with nothing. It is the same in all rows.
    Constant,
    /// The bytes of the window in another order.
    Shuffled,
    /// The text as UTF-16, read as if it were bytes: every other one is zero.
    Wide,
    /// Zeros from some place on, like a file that ends too early.
    Cut,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Noise, Self::Constant, Self::Shuffled, Self::Wide, Self::Cut];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Noise => "random bytes",
            Self::Constant => "one byte over and over",
            Self::Shuffled => "bytes in another order",
            Self::Wide => "UTF-16 read as bytes",
            Self::Cut => "zeros from some place on",
        })
    }
}

/// Spoils a share of the training batches.
///
/// Steps come in stretches of 1/share, and in each of them one step is hit, at a place drawn from the seed. So the share is
/// met by runs of any length, and faults take turns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Corruption {
    /// The share of batches.
    pub share: Share,
    /// Seeds which steps are hit, and the faults.
    pub seed: u64,
}

impl Corruption {
    /// What is wrong with the batch of a step; `None` where nothing is.
    #[must_use]
    pub fn fault(&self, step: u64) -> Option<Fault> {
        let key = mix(self.seed ^ SALT);
        let stretch = self.stretch(step);
        let begin = self.begin(stretch);
        let hit = begin + below(mix(key ^ stretch), self.begin(stretch + 1) - begin);
        let turn = (key % Fault::ALL.len() as u64).wrapping_add(stretch) % Fault::ALL.len() as u64;
        Fault::ALL.get(usize::try_from(turn).ok()?).copied().filter(|_| hit == step)
    }

    /// Puts the fault of a step into one row of its batch.
    pub fn spoil(&self, step: u64, row: u64, window: &mut [u8]) {
        let Some(fault) = self.fault(step) else { return };
        let batch = mix(mix(self.seed ^ SALT) ^ mix(step));
        let row = mix(batch ^ row);
        let draw = |n: usize, bound: usize| below(mix(row ^ n as u64), bound as u64) as usize;
        match fault {
            Fault::Noise => (0..).zip(window).for_each(|(n, byte)| *byte = draw(n, 256) as u8),
            Fault::Constant => window.fill(below(batch, 256) as u8),
            Fault::Shuffled => (1..window.len()).for_each(|n| window.swap(n, draw(n, n + 1))),
            Fault::Wide => {
                let text = window.to_vec();
                let zeros = std::iter::repeat(0);
                let wide = text.into_iter().zip(zeros).flat_map(|(byte, zero)| [byte, zero]);
                window.iter_mut().zip(wide).for_each(|(byte, other)| *byte = other);
            }
            Fault::Cut => {
                let end = draw(0, window.len());
                window.iter_mut().skip(end).for_each(|byte| *byte = 0);
            }
        }
    }

    /// The stretch that a step is in.
    fn stretch(&self, step: u64) -> u64 {
        let mut stretch = (step as f64 * self.share.get()) as u64;
        // The product is rounded; the beginnings of stretches are what counts.
        while stretch > 0 && self.begin(stretch) > step {
            stretch -= 1;
        }
        while self.begin(stretch + 1) <= step {
            stretch += 1;
        }
        stretch
    }

    /// The first step of a stretch. No stretch is empty, for the share is at most 1.
    fn begin(&self, stretch: u64) -> u64 {
        (stretch as f64 / self.share.get()).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corruption(share: &str, seed: u64) -> Corruption {
        Corruption { share: share.parse().unwrap(), seed }
    }

    fn spoilt(with: Corruption, step: u64, row: u64) -> Vec<u8> {
        let mut window: Vec<u8> = (1..=64).collect();
        with.spoil(step, row, &mut window);
        window
    }

    /// The first step with a fault.
    fn first(with: Corruption, fault: Fault) -> u64 {
        (0..).find(|&step| with.fault(step) == Some(fault)).unwrap()
    }

    #[test]
    fn shares_are_numbers_above_0_up_to_1() {
        for (text, accepted) in
            [("0.02", true), ("1", true), ("0", false), ("1.1", false), ("-1", false), ("NaN", false)]
        {
            assert_eq!(text.parse::<Share>().is_ok(), accepted, "{text}");
        }
        let error = "2%".parse::<Share>().unwrap_err().to_string();
        assert!(error.contains("\"2%\"") && error.contains("such as 0.02"), "{error}");
    }

    #[test]
    fn the_share_is_met_and_faults_take_turns() {
        for share in ["0.02", "0.3", "0.7", "1"] {
            for seed in 0..4 {
                let with = corruption(share, seed);
                let faults: Vec<_> = (0..1000).filter_map(|step| with.fault(step)).collect();
                let due = (1000.0 * with.share.get()).round() as usize;
                // The last stretch may end beyond the run.
                assert!(faults.len().abs_diff(due) <= 1, "share {share}, seed {seed}: {} of {due}", faults.len());
                for fault in Fault::ALL {
                    let count = faults.iter().filter(|&&f| f == fault).count();
                    assert!(count.abs_diff(due / 5) <= 1, "share {share}, seed {seed}: {count} times {fault}");
                }
            }
        }
        assert_eq!((0..250).filter(|&step| corruption("0.02", 7).fault(step).is_some()).count(), 5);
    }

    #[test]
    fn which_steps_are_hit_depends_on_the_seed_and_is_pinned() {
        let hits =
            |seed| (0..250).filter_map(|s| corruption("0.02", seed).fault(s).map(|f| (s, f))).collect::<Vec<_>>();
        assert_ne!(hits(0), hits(1));
        // Published runs are repeated by their seed: these must not change.
        let hit =
            [(33, Fault::Wide), (88, Fault::Cut), (118, Fault::Noise), (187, Fault::Constant), (245, Fault::Shuffled)];
        assert_eq!(hits(0), hit);
    }

    #[test]
    fn faults_depend_on_seed_step_and_row_alone() {
        let with = corruption("1", 5);
        let healthy: Vec<u8> = (1..=64).collect();
        for fault in Fault::ALL {
            let step = first(with, fault);
            let window = spoilt(with, step, 3);
            assert_ne!(window, healthy, "{fault}");
            assert_eq!(window, spoilt(with, step, 3), "{fault}");
            let other = spoilt(with, step, 4);
            match fault {
                Fault::Noise => assert_ne!(window, other),
                Fault::Constant => assert!(window == other && window.iter().all(|b| *b == window[0])),
                Fault::Shuffled => {
                    assert_ne!(window, other);
                    let mut sorted = window.clone();
                    sorted.sort_unstable();
                    assert_eq!(sorted, healthy);
                }
                Fault::Wide => assert!(window.chunks(2).zip(&healthy).all(|(pair, byte)| pair == [*byte, 0])),
                Fault::Cut => {
                    let end = window.iter().position(|b| *b == 0).unwrap();
                    assert!(window[..end] == healthy[..end] && window[end..].iter().all(|b| *b == 0));
                }
            }
        }
    }

    #[test]
    fn other_steps_are_left_alone() {
        let with = corruption("0.1", 5);
        let healthy: Vec<u8> = (1..=64).collect();
        let untouched = (0..100).filter(|&step| spoilt(with, step, 0) == healthy).count();
        assert_eq!(untouched, 90);
    }
}
