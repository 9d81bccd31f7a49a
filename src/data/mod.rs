//! What a step is trained on: text, from which windows are drawn, or arrays, whose rows are examples.
//!
//! Every draw is a pure function of the seed and of the place in the stream of examples. Nothing depends on what ran
//! before, so that a run can be repeated and resumed, and nothing depends on how many devices share the work:
//! a step takes the same examples whether one replica takes all of them or eight take an eighth each.

mod arrays;
mod files;
mod order;
mod parts;
mod sum;
mod text;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use arrays::{ArrayError, Examples, Field};
pub use text::{Corpus, Split};

pub(crate) use files::{ArrayFormat, holds_only_arrays};

/// Why there is no data to train on.
#[derive(Debug, Error)]
pub enum DataError {
    /// A path that cannot be read.
    #[error("cannot read the data {}: {source}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing there.
    #[error("there is no data: {}; name files that are not empty, or folders with {wanted}", what)]
    Empty {
        /// What was found.
        what: String,
        /// What folders are searched for.
        wanted: &'static str,
    },
    /// Too little to cut windows from.
    #[error(
        "the data has {bytes} bytes, and a window has {window}; at least {needed} bytes are needed, for one window to train on \
         and one held out; give more files"
    )]
    TooShort {
        /// Bytes there are.
        bytes: usize,
        /// Bytes of a window.
        window: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Arrays that are damaged, or none that the step can take.
    #[error(transparent)]
    Arrays(#[from] ArrayError),
}

impl DataError {
    /// For paths of which nothing came, although `found` are the files there.
    fn empty(paths: &[PathBuf], found: &[PathBuf], wanted: &'static str) -> Self {
        let named = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        let what = match (paths.is_empty(), found.is_empty()) {
            (true, _) => "no path was given".to_owned(),
            (false, true) => format!("{named} has no {wanted}"),
            (false, false) => format!("{named} has no bytes"),
        };
        Self::Empty { what, wanted }
    }
}

/// The finalizer of SplitMix64: a fixed bijection whose output looks random. Changing it changes every run.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Maps a random number to `0..bound` by its high bits; the bias is below `bound / 2^64`.
pub(crate) fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pinned() {
        // Published runs are repeated by their seed: these numbers must not change.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!([mix(1), mix(2), mix(3)].map(|r| below(r, 1000)), [566, 591, 113]);
    }
}
