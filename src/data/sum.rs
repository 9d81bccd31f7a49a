//! What data are, in one checksum: whether a run that goes on sees the same examples.

use sha2::{Digest, Sha256};

use crate::files::hex;

/// Data of up to so many bytes are read whole.
const WHOLE: u64 = 1 << 30;
/// Of more, so many places of each part are read …
const PLACES: u64 = 1024;
/// … and so many bytes at each.
const AT_EACH: usize = 4096;

/// SHA-256 of parts of data, in order: the length of each, and its bytes. Of more than a gibibyte, 1024 evenly spread places
/// of each part are read instead of all, 4 KiB at each, so that a run need not read all of its data before it begins.
pub(super) fn sum<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> String {
    let total: u64 = parts.clone().map(|part| part.len() as u64).sum();
    let mut hasher = Sha256::new();
    for part in parts {
        let length = part.len() as u64;
        hasher.update(length.to_le_bytes());
        if total <= WHOLE {
            hasher.update(part);
            continue;
        }
        for place in 0..PLACES {
            // No product of two sizes overflows 128 bits.
            let start = (u128::from(length) * u128::from(place) / u128::from(PLACES)) as usize;
            let rest = part.get(start..).unwrap_or_default();
            hasher.update(rest.get(..AT_EACH).unwrap_or(rest));
        }
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> String {
        sum(parts.iter().copied())
    }

    #[test]
    fn every_byte_and_every_boundary_counts() {
        let whole = of(&[b"abc", b"de"]);
        assert_eq!(whole, of(&[b"abc", b"de"]));
        for other in [of(&[b"abd", b"de"]), of(&[b"ab", b"cde"]), of(&[b"de", b"abc"]), of(&[b"abcde"])] {
            assert_ne!(whole, other);
        }
    }
}
