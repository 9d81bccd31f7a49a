//! Which instruction of one computation is which of another.
//!
//! 1. Instructions of equal structural hash are the same. Where several are, names and origins say which is which; they
//!    decide nothing else.
//! 2. The roots belong together where they do the same kind of thing.
//! 3. From what is matched, down to operands and up to users: instructions of equal signature in the same position
//!    belong together; their operands differ then.
//! 4. What is left is aligned in the order of its lines, first by signature and origin, then by opcode and origin.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use hlo::InstructionId;
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::structure::Tables;

/// Pairs of instructions, in both directions.
pub(super) struct Matching {
    forward: Vec<Option<InstructionId>>,
    backward: Vec<Option<InstructionId>>,
}

impl Matching {
    /// Matches the instructions of two computations.
    pub(super) fn of(a: &Tables<'_>, b: &Tables<'_>) -> Self {
        let none = |t: &Tables<'_>| vec![None; t.computation.arena_len()];
        let mut matching = Self { forward: none(a), backward: none(b) };
        matching.equal(a, b);
        let (x, y) = (a.computation.root(), b.computation.root());
        if a.computation.get(x).map(|i| i.opcode) == b.computation.get(y).map(|i| i.opcode) {
            matching.pair(x, y);
        }
        matching.spread(a, b);
        matching.align(a, b, |t, id| t.signature(id).map(|s| (s.clone(), t.origin(id).to_owned())));
        matching.spread(a, b);
        matching.align(a, b, |t, id| t.computation.get(id).map(|i| (i.opcode, t.origin(id).to_owned())));
        matching.spread(a, b);
        matching
    }

    /// The partner of an instruction of the first computation.
    pub(super) fn forward(&self, id: InstructionId) -> Option<InstructionId> {
        self.forward.get(id.index()).copied().flatten()
    }

    /// The partner of an instruction of the second computation.
    pub(super) fn backward(&self, id: InstructionId) -> Option<InstructionId> {
        self.backward.get(id.index()).copied().flatten()
    }

    fn pair(&mut self, x: InstructionId, y: InstructionId) -> bool {
        match (self.forward.get_mut(x.index()), self.backward.get_mut(y.index())) {
            (Some(to @ None), Some(from @ None)) => {
                (*to, *from) = (Some(y), Some(x));
                true
            }
            _ => false,
        }
    }

    fn equal(&mut self, a: &Tables<'_>, b: &Tables<'_>) {
        let name = |t: &Tables<'_>, id| t.computation.get(id).map(|i| i.name.clone());
        self.pair_by(a, b, |t, id| (t.hash(id), t.origin(id).to_owned(), name(t, id)));
        self.pair_by(a, b, |t, id| (t.hash(id), t.origin(id).to_owned()));
        self.pair_by(a, b, |t, id| t.hash(id));
    }

    /// Pairs the unmatched instructions of equal key in the order in which they stand.
    fn pair_by<K: Eq + Hash>(&mut self, a: &Tables<'_>, b: &Tables<'_>, key: impl Fn(&Tables<'_>, InstructionId) -> K) {
        let mut waiting: HashMap<K, Vec<InstructionId>> = HashMap::new();
        for &y in b.computation.order().iter().rev().filter(|&&y| self.backward(y).is_none()) {
            waiting.entry(key(b, y)).or_default().push(y);
        }
        for &x in a.computation.order() {
            if self.forward(x).is_none()
                && let Some(y) = waiting.get_mut(&key(a, x)).and_then(Vec::pop)
            {
                self.pair(x, y);
            }
        }
    }

    /// Follows operands and users of what is matched until nothing more is found.
    fn spread(&mut self, a: &Tables<'_>, b: &Tables<'_>) {
        loop {
            let down = self.match_operands(a, b);
            let up = self.match_users(a, b);
            if !down && !up {
                return;
            }
        }
    }

    fn match_operands(&mut self, a: &Tables<'_>, b: &Tables<'_>) -> bool {
        let mut found = false;
        for &x in a.computation.order().iter().rev() {
            let partner = self.forward(x).and_then(|y| b.computation.get(y));
            let (Some(user), Some(partner)) = (a.computation.get(x), partner) else { continue };
            for (&x, &y) in user.operands.iter().zip(&partner.operands) {
                if self.forward(x).is_none() && self.backward(y).is_none() && a.signature(x) == b.signature(y) {
                    found |= self.pair(x, y);
                }
            }
        }
        found
    }

    fn match_users(&mut self, a: &Tables<'_>, b: &Tables<'_>) -> bool {
        let mut found = false;
        for &x in a.computation.order() {
            if self.forward(x).is_some() {
                continue;
            }
            let Some(instruction) = a.computation.get(x) else { continue };
            let images: Vec<_> = instruction.operands.iter().map(|&o| self.forward(o)).collect();
            let mut best: Option<(usize, InstructionId)> = None;
            for &y in images.iter().flatten().flat_map(|&image| b.users(image)) {
                if self.backward(y).is_some() || a.signature(x) != b.signature(y) {
                    continue;
                }
                let Some(candidate) = b.computation.get(y) else { continue };
                let shared = images.iter().zip(&candidate.operands).filter(|(image, o)| **image == Some(**o)).count();
                let score = shared * 2 + usize::from(a.origin(x) == b.origin(y));
                if shared > 0 && best.is_none_or(|(other, _)| score > other) {
                    best = Some((score, y));
                }
            }
            if let Some((_, y)) = best {
                found |= self.pair(x, y);
            }
        }
        found
    }

    /// Pairs what is left by the longest common subsequence of the lines' keys.
    fn align<K: Eq + Hash>(
        &mut self,
        a: &Tables<'_>,
        b: &Tables<'_>,
        key: impl Fn(&Tables<'_>, InstructionId) -> Option<K>,
    ) {
        let left = |t: &Tables<'_>, matched: &dyn Fn(InstructionId) -> bool| -> Vec<InstructionId> {
            t.computation.order().iter().copied().filter(|&id| !matched(id)).collect()
        };
        let xs = left(a, &|id| self.forward(id).is_some());
        let ys = left(b, &|id| self.backward(id).is_some());
        // Numbers instead of keys, and only those that both sides have.
        let mut numbers: HashMap<K, usize> = HashMap::new();
        for key in xs.iter().filter_map(|&x| key(a, x)) {
            let next = numbers.len();
            numbers.entry(key).or_insert(next);
        }
        let numbered = |t: &Tables<'_>, ids: &[InstructionId]| -> Vec<(usize, InstructionId)> {
            ids.iter().filter_map(|&id| Some((*numbers.get(&key(t, id)?)?, id))).collect()
        };
        let (ys, mut xs) = (numbered(b, &ys), numbered(a, &xs));
        let known: HashSet<usize> = ys.iter().map(|(n, _)| *n).collect();
        xs.retain(|(n, _)| known.contains(n));
        let keys = |ids: &[(usize, InstructionId)]| ids.iter().map(|(n, _)| *n).collect::<Vec<_>>();
        for op in capture_diff_slices(Algorithm::Patience, &keys(&xs), &keys(&ys)) {
            if let DiffOp::Equal { old_index, new_index, len } = op {
                for n in 0..len {
                    if let (Some((_, x)), Some((_, y))) = (xs.get(old_index + n), ys.get(new_index + n)) {
                        self.pair(*x, *y);
                    }
                }
            }
        }
    }
}
