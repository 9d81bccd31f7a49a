//! The checksum of a held state, as [`state_checksum`](crate::state_checksum) has the device compute it.

use crate::state_checksum::{FIRST, POSITION, SECOND};

/// Σᵢ hᵢ(xᵢ) mod 2³² over the words of a state, in row-major order.
#[must_use]
pub fn checksum(words: impl IntoIterator<Item = u32>) -> u32 {
    let mut position = 0_u32;
    words.into_iter().fold(0, |sum, word| {
        let mut y = word ^ position;
        position = position.wrapping_add(POSITION);
        y = (y ^ (y >> 16)).wrapping_mul(FIRST);
        y = (y ^ (y >> 13)).wrapping_mul(SECOND);
        sum.wrapping_add(y ^ (y >> 16))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_that_differs_is_always_seen() {
        let words = [0, 1, 0x8000_0000, 0x7fc0_0001, 0x3f80_0000];
        for place in 0..words.len() {
            for bit in 0..32 {
                let mut other = words;
                other[place] ^= 1 << bit;
                assert_ne!(checksum(words), checksum(other), "bit {bit} of word {place}");
            }
        }
    }

    #[test]
    fn words_that_change_places_are_seen_signs_too() {
        // What a sum of odd multiples of words does not see: they differ by 2³¹.
        let one = 1.5_f32.to_bits();
        let minus = (-1.5_f32).to_bits();
        for distance in 1..200 {
            let mut words = vec![one; 201];
            words[0] = minus;
            let mut swapped = words.clone();
            swapped.swap(0, distance);
            assert_ne!(checksum(words), checksum(swapped), "{distance}");
        }
    }

    #[test]
    fn chance_is_no_worse_than_it_should_be() {
        // Of 20000 random states of 4 words, by the birthday rule 20000²/2/2³² = 0.05 pairs are equal.
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let mut sums: Vec<u32> = (0..20_000).map(|_| checksum([random(), random(), random(), random()])).collect();
        sums.sort_unstable();
        let equal = sums.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(equal <= 1, "{equal} of 20000 states share a checksum");
    }
}
