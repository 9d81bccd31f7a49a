//! The names in use.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use super::Computation;

/// Names in use, as hashes: two names of one hash only cost the second one a suffix.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Names {
    /// For each name the next suffix to try.
    taken: HashMap<u64, u64, BuildHasherDefault<Hashed>>,
}

impl Names {
    /// The names of computations and all their instructions.
    pub(crate) fn of(computations: &[Computation]) -> Self {
        let count = computations.iter().map(|c| c.arena.len() + 1).sum();
        let mut taken = HashMap::with_capacity_and_hasher(count, BuildHasherDefault::default());
        for computation in computations {
            taken.insert(hash(&computation.name), 1);
            taken.extend(computation.arena.iter().map(|i| (hash(&i.name), 1)));
        }
        Self { taken }
    }

    /// A name not in use yet, made from `base`; it is in use from now on.
    pub(crate) fn unique(&mut self, base: &str) -> String {
        let base = if base.is_empty() { "value" } else { base };
        let hashed = hash(base);
        let Some(mut next) = self.taken.get(&hashed).copied() else {
            self.taken.insert(hashed, 1);
            return base.to_owned();
        };
        loop {
            let candidate = format!("{base}.{next}");
            next += 1;
            if let Entry::Vacant(slot) = self.taken.entry(hash(&candidate)) {
                slot.insert(1);
                self.taken.insert(hashed, next);
                return candidate;
            }
        }
    }
}

fn hash(name: &str) -> u64 {
    // Without a random key, so that names do not depend on the run.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Hashes what is a hash already.
#[derive(Debug, Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_the_next_free_suffix() {
        let mut names = Names::default();
        let made: Vec<_> = ["add", "add.1", "add", "add", "", "value"].map(|base| names.unique(base)).into();
        assert_eq!(made, ["add", "add.1", "add.2", "add.3", "value", "value.1"]);
    }
}
