//! The order of examples: a permutation per epoch, computed without a table.
//!
//! A Feistel network over just enough bits is a permutation of `0..2^bits`; a value outside `0..count` is sent through
//! again until it falls inside, which leaves a permutation of `0..count`. Any position is computed by itself, whatever the
//! number of examples, so that a replica, or a run that goes on later, needs nothing but the seed.

use super::mix;

/// Keeps these draws apart from others of the same seed.
const SALT: u64 = 0x6570_6f63_6873_2121;

/// Rounds of the network. Four make a network of random functions indistinguishable from a random permutation; narrow halves
/// need more.
const ROUNDS: u64 = 8;

/// An endless stream of examples: each one once per epoch, in an order of that epoch's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    key: u64,
    count: u64,
}

impl Order {
    /// Of `count` examples, at least one.
    pub(super) fn new(seed: u64, count: u64) -> Self {
        Self { key: mix(seed ^ SALT), count: count.max(1) }
    }

    /// The example at a position of the stream.
    pub(super) fn example(&self, position: u128) -> u64 {
        let count = u128::from(self.count);
        // A remainder is below its divisor, and epochs beyond 2^64 may repeat.
        let (epoch, mut value) = ((position / count) as u64, (position % count) as u64);
        let key = mix(self.key ^ epoch);
        loop {
            value = self.network(key, value);
            if value < self.count {
                return value;
            }
        }
    }

    /// A permutation of `0..2^bits`, where `bits` are what the largest example needs.
    fn network(&self, key: u64, value: u64) -> u64 {
        let bits = u64::BITS - (self.count - 1).leading_zeros();
        let low_bits = bits / 2;
        let low_mask = (1u64 << low_bits) - 1;
        let high_mask = (1u64 << (bits - low_bits)) - 1;
        let (mut low, mut high) = (value & low_mask, value >> low_bits);
        for round in 0..ROUNDS {
            let key = mix(key ^ round);
            if round % 2 == 0 {
                high ^= mix(key ^ low) & high_mask;
            } else {
                low ^= mix(key ^ high) & low_mask;
            }
        }
        high << low_bits | low
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_epoch_has_every_example_once(seed: u64, count in 1u64..3000, epoch in 0u64..1 << 40) {
            let order = Order::new(seed, count);
            let mut seen = vec![false; count as usize];
            for position in 0..count {
                let example = order.example(u128::from(epoch) * u128::from(count) + u128::from(position));
                prop_assert!(!std::mem::replace(&mut seen[example as usize], true));
            }
        }

        #[test]
        fn any_count_and_position_gives_an_example(seed: u64, count in 1u64.., position: u128) {
            prop_assert!(Order::new(seed, count).example(position) < count);
        }
    }

    #[test]
    fn examples_come_anywhere_in_an_epoch_and_independently_of_each_other() {
        let epochs = 20_000u64;
        for count in [2u64, 3, 10, 33] {
            let order = Order::new(7, count);
            let at = |epoch: u64, position: u64| order.example(u128::from(epoch * count + position));
            let mut first = vec![0u64; count as usize];
            let mut pairs = vec![0u64; (count * count) as usize];
            for epoch in 0..epochs {
                first[at(epoch, 0) as usize] += 1;
                pairs[(at(epoch, 0) * count + at(epoch, count - 1)) as usize] += 1;
            }
            // Six standard deviations of a binomial count.
            let close = |found: u64, share: f64| {
                let expected = epochs as f64 * share;
                (found as f64 - expected).abs() < 6.0 * (expected * (1.0 - share)).sqrt()
            };
            assert!(first.iter().all(|&n| close(n, 1.0 / count as f64)), "{count}: {first:?}");
            for (pair, &n) in pairs.iter().enumerate() {
                let same = pair as u64 / count == pair as u64 % count;
                let share = 1.0 / (count * (count - 1)) as f64;
                assert!(if same { n == 0 } else { close(n, share) || share == 0.5 }, "{count}, {pair}: {n}");
            }
        }
    }

    #[test]
    fn the_order_is_pinned_and_depends_on_seed_and_epoch() {
        let take = |seed, epoch: u128| -> Vec<_> {
            let order = Order::new(seed, 10);
            (0..10).map(|n| order.example(epoch * 10 + n)).collect()
        };
        assert_ne!(take(0, 0), take(1, 0));
        assert_ne!(take(0, 0), take(0, 1));
        // Published runs are repeated by their seed: these must not change.
        assert_eq!(take(0, 0), [1, 8, 9, 0, 3, 5, 6, 2, 7, 4]);
    }
}
