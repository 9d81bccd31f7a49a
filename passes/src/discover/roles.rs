//! Which states are parameters, masters and moments.
//!
//! Parameters are the float states that the loss depends on, less what behaves like
//! a moment: a state whose new value feeds another state's new value as well as its
//! own, strictly. Moments belong to the one parameter whose new value they reach.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hlo::Opcode;

use super::error::{Refusal, RefusalKind};
use super::flow::{Flow, StateNode};
use super::graph::{Graph, NodeId, NodeMap, Op, Reach, bits};
use super::pair::CarryPaths;

/// Roles of the float states; all indices are into [`Flow::floats`].
#[derive(Debug, Default)]
pub(super) struct Roles {
    /// Trainable tensors that data reaches.
    pub(super) parameters: Vec<usize>,
    /// States the loss depends on that no data trains, with the reason.
    pub(super) untrained: BTreeMap<usize, String>,
    /// Tensors that look like parameters, but that neither the loss nor data knows.
    pub(super) unused: Vec<usize>,
    /// Parameter to its wide copy.
    pub(super) masters: BTreeMap<usize, usize>,
    /// Parameter to the states that belong to it alone.
    pub(super) groups: BTreeMap<usize, Vec<usize>>,
    /// States that reach several parameters, with those parameters.
    pub(super) shared: BTreeMap<usize, Vec<usize>>,
    /// States that reach no parameter.
    pub(super) apart: BTreeSet<usize>,
    /// Tensors that the loss reads and that are computed anew from data in every step, as a codebook is.
    pub(super) rebuilt: BTreeSet<usize>,
    /// Shape-sharing tensors whose role is undecided.
    pub(super) ambiguous: BTreeSet<usize>,
    /// Output index of the loss.
    pub(super) loss: Option<usize>,
    /// Whole-step refusals.
    pub(super) refusals: Vec<Refusal>,
    /// Remarks for the user.
    pub(super) notes: Vec<String>,
}

type Row = Vec<u64>;

fn has(row: &[u64], bit: usize) -> bool {
    row.get(bit / 64).is_some_and(|w| w >> (bit % 64) & 1 == 1)
}

fn subset(a: &[u64], b: &[u64]) -> bool {
    a.iter().zip(b).all(|(x, y)| x & !y == 0)
}

fn mask(of: impl IntoIterator<Item = usize>, words: usize) -> Row {
    let mut row = vec![0u64; words];
    for bit in of {
        if let Some(word) = row.get_mut(bit / 64) {
            *word |= 1 << (bit % 64);
        }
    }
    row
}

/// For each float state, which float states its new value depends on.
struct Dependence {
    rows: Relation,
    /// The other way round: which states' new values depend on it.
    users: Relation,
}

/// Sets of states, with their sizes: a set can only be a strict subset of a larger one, and most sets of a large model
/// are of one size.
struct Relation {
    rows: Vec<Row>,
    sizes: Vec<usize>,
    /// For each size the states whose sets are larger.
    larger: BTreeMap<usize, Row>,
}

impl Relation {
    fn new(rows: Vec<Row>) -> Self {
        let sizes: Vec<usize> = rows.iter().map(|row| row.iter().map(|w| w.count_ones() as usize).sum()).collect();
        let mut of_size: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (state, &size) in sizes.iter().enumerate() {
            of_size.entry(size).or_default().push(state);
        }
        let words = rows.first().map_or(1, Vec::len);
        let mut larger = BTreeMap::new();
        let mut above = vec![0u64; words];
        for (size, states) in of_size.into_iter().rev() {
            larger.insert(size, above.clone());
            above.iter_mut().zip(mask(states, words)).for_each(|(word, more)| *word |= more);
        }
        Self { rows, sizes, larger }
    }

    fn row(&self, state: usize) -> &[u64] {
        self.rows.get(state).map(Vec::as_slice).unwrap_or_default()
    }

    /// The states whose sets are larger than that of `state`.
    fn larger(&self, state: usize) -> &[u64] {
        self.sizes.get(state).and_then(|size| self.larger.get(size)).map(Vec::as_slice).unwrap_or_default()
    }

    fn subset(&self, a: usize, b: usize) -> bool {
        subset(self.row(a), self.row(b))
    }
}

/// The same relation the other way round: bit `a` of row `b` is bit `b` of row `a`.
fn transposed(rows: &[Row]) -> Vec<Row> {
    let words = rows.first().map_or(1, Vec::len);
    let mut columns = vec![vec![0u64; words]; rows.len()];
    for (band, lines) in rows.chunks(64).enumerate() {
        for (word, columns) in columns.chunks_mut(64).enumerate() {
            let mut block = [0u64; 64];
            for (slot, line) in block.iter_mut().zip(lines) {
                *slot = line.get(word).copied().unwrap_or(0);
            }
            transpose(&mut block);
            for (column, bits) in columns.iter_mut().zip(block) {
                if let Some(slot) = column.get_mut(band) {
                    *slot = bits;
                }
            }
        }
    }
    columns
}

/// Transposes 64 rows of 64 bits: swaps the off-diagonal quarters, then those of each quarter, down to single bits.
#[allow(clippy::indexing_slicing, reason = "`k` has the bit `width` unset, so that both sums stay below 64")]
fn transpose(block: &mut [u64; 64]) {
    let (mut width, mut low) = (32, u64::from(u32::MAX));
    while width > 0 {
        for k in (0..64).filter(|k| k & width == 0) {
            let swapped = ((block[k] >> width) ^ block[k + width]) & low;
            block[k] ^= swapped << width;
            block[k + width] ^= swapped;
        }
        width /= 2;
        low ^= low << width;
    }
}

impl Dependence {
    fn new(rows: Vec<Row>) -> Self {
        let users = transposed(&rows);
        Self { rows: Relation::new(rows), users: Relation::new(users) }
    }

    fn row(&self, state: usize) -> &[u64] {
        self.rows.row(state)
    }

    /// A moment of another state: both feed each other, and the other's new value depends on strictly more.
    fn moment_like(&self, state: usize) -> bool {
        let others = common(self.row(state), &[self.users.row(state), self.rows.larger(state)]);
        bits(&others).any(|other| self.rows.subset(state, other))
    }

    /// Like [`Dependence::moment_like`], for a state that the loss depends on: the other must be such a state, too,
    /// and feed strictly more than this one. A parameter without moments feeds all others; a moment only its own.
    fn moment_like_within(&self, state: usize, loss: &[u64]) -> bool {
        let larger = [self.rows.larger(state), self.users.larger(state)];
        let others = common(self.row(state), &[self.users.row(state), loss, larger[0], larger[1]]);
        bits(&others).any(|other| self.rows.subset(state, other) && self.users.subset(state, other))
    }
}

/// What a set has in common with all others.
fn common(set: &[u64], others: &[&[u64]]) -> Row {
    let mut all = set.to_vec();
    for other in others {
        all.iter_mut().zip(*other).for_each(|(word, other)| *word &= other);
    }
    all
}

/// Assigns roles to the float states. `reports` are values that the step returns as parts of states that it does not read,
/// by output.
pub(super) fn assign(flow: &Flow<'_, '_>, carry: &[CarryPaths], reports: &[(usize, NodeId)]) -> Roles {
    let graph = flow.graph;
    let mut roles = Roles::default();
    let words = flow.floats.len().div_ceil(64).max(1);
    let count = flow.floats.len();
    // States that reach only themselves (BatchNorm statistics, averages of parameters) are no evidence about others.
    let cut_rows: Vec<Row> = flow.floats.iter().map(|s| flow.cut.row(s.new).to_vec()).collect();
    let terminal = mask((0..count).filter(|&k| cut_rows.get(k).is_some_and(|r| bits(r).all(|b| b == k))), words);
    let without = |row: &[u64]| row.iter().zip(&terminal).map(|(a, t)| a & !t).collect::<Row>();
    let cut = Dependence::new(cut_rows.iter().map(|r| without(r)).collect());
    let all = Dependence::new(flow.floats.iter().map(|s| without(flow.all.row(s.new))).collect());

    // Outputs that succeed nothing and depend on data, most loss-like first. A loss of updated parameters (an actor's
    // through its new critic) depends on those parameters, not on what updated them.
    let mut updated = NodeMap::new(graph, false);
    for state in flow.states.iter().filter(|s| s.new != s.old) {
        updated[state.new] |= carry.get(state.pair.output).is_some_and(|c| c.carries_linearly(state.old));
    }
    let sources: Vec<NodeId> = flow.floats.iter().map(|s| s.given).collect();
    let succeeded: BTreeSet<usize> = flow.states.iter().map(|s| s.pair.output).collect();
    let outputs = graph.outputs.iter().copied().enumerate();
    let free = outputs.filter(|(k, _)| !succeeded.contains(k)).chain(reports.iter().copied());
    let free: Vec<(usize, NodeId)> = free.filter(|&(_, o)| flow.tainted[o]).collect();
    // Most of a step comes after its loss: only what these outputs are computed from is of interest.
    let mut read = NodeMap::new(graph, false);
    free.iter().for_each(|&(_, o)| read[o] = true);
    for id in graph.ids().rev() {
        if read[id] {
            graph.deps(id).iter().for_each(|&d| read[d] = true);
        }
    }
    let before = Reach::new(graph, &sources, |user, dep| read[user] && !updated[dep]);
    let mut free: Vec<(bool, usize, bool, usize, Row)> = free
        .into_iter()
        .map(|(k, o)| (k, o, before.row(o).to_vec()))
        .filter(|(_, _, row)| row.iter().any(|&w| w != 0))
        .map(|(k, o, row)| {
            let size = bits(&row).count();
            (!graph.is_scalar(o), size, !(flow.data[o] && graph.is_floating(o)), k, row)
        })
        .collect();
    free.sort();
    let loss_set: Row = free.first().map(|f| f.4.clone()).unwrap_or_else(|| vec![0; words]);
    roles.loss = free.iter().find(|f| !f.0 && !f.2).map(|f| f.3);
    let union: Row = free.iter().fold(vec![0; words], |u, f| u.iter().zip(&f.4).map(|(a, b)| a | b).collect());

    let in_loss = |k: usize| has(&loss_set, k);
    let is_tensor = |k: usize| flow.floats.get(k).is_some_and(|s| !graph.is_scalar(s.old));
    let moment_like: Vec<bool> = (0..count)
        .map(|k| {
            if in_loss(k) {
                if is_tensor(k) && all.moment_like_within(k, &loss_set) && cut.moment_like_within(k, &loss_set) {
                    roles.ambiguous.insert(k);
                }
                return false;
            }
            all.moment_like(k) || cut.moment_like(k)
        })
        .collect();
    let is_moment = |k: usize| moment_like.get(k).copied().unwrap_or(false);

    let mut candidates: Vec<usize> = if free.is_empty() {
        roles.notes.push("no output depends on data without being a state (no loss); parameters by structure".into());
        let alone = |k: &usize| bits(cut.row(*k)).count() > 1;
        (0..count).filter(|&k| !is_moment(k)).filter(alone).collect()
    } else {
        (0..count).filter(|&k| has(&union, k) && !is_moment(k)).collect()
    };
    let tensors: Vec<usize> = {
        let big: Vec<usize> = candidates.iter().copied().filter(|&k| is_tensor(k)).collect();
        if big.is_empty() { candidates.clone() } else { big }
    };
    let same_reach = tensors.iter().all(|&k| Some(cut.row(k)) == tensors.first().map(|&f| cut.row(f)));
    let same_dims = tensors.iter().all(|&k| {
        let dims = |k: usize| flow.floats.get(k).map(|s| graph.dims(s.old));
        dims(k) == tensors.first().and_then(|&f| dims(f))
    });
    if tensors.len() > 1 && same_reach && same_dims {
        if free.is_empty() {
            let names = tensors.iter().filter_map(|&k| flow.floats.get(k)).map(|s| graph.display(s.old)).collect();
            roles.refusals.push(Refusal {
                tensor: "the step".into(),
                shape: format!("{} equal tensors", tensors.len()),
                kind: RefusalKind::Ambiguous {
                    what: "parameters and moments cannot be told apart without a loss among the outputs; return it"
                        .into(),
                },
                candidates: names,
            });
        } else {
            let fewer: Vec<usize> = candidates.iter().copied().filter(|&k| in_loss(k)).collect();
            if fewer.len() < candidates.len() {
                roles.notes.push("equal tensors were told apart by what the loss depends on".into());
                candidates = fewer;
            }
        }
    }
    let candidate_set: BTreeSet<usize> = candidates.iter().copied().collect();

    let follower = Followers::new(flow, &candidates);
    for &k in &candidates {
        let Some(state) = flow.floats.get(k) else {
            continue;
        };
        if follower.follows(k) {
            // A target network, an average of parameters that the loss reads.
            continue;
        }
        if state.new == state.old {
            roles.untrained.insert(k, "frozen: it is returned as it came".into());
        } else if !flow.tainted[state.new] {
            roles.untrained.insert(k, "its new value does not depend on data".into());
        } else if !flow.data[state.new] {
            roles.untrained.insert(k, "data only decides between its values (a loss scale?)".into());
        } else {
            roles.parameters.push(k);
        }
    }
    masters(flow, carry, &mut roles);
    let rebuilt = |p: &usize| {
        let state = flow.floats.get(*p);
        !roles.masters.contains_key(p) && state.is_some_and(|s| !rests_on(graph, s.new, s.given))
    };
    let rebuilt: BTreeSet<usize> = roles.parameters.iter().copied().filter(rebuilt).collect();
    for &p in &rebuilt {
        let Some(state) = flow.floats.get(p) else {
            continue;
        };
        roles.notes.push(format!(
            "{} is computed anew from data, not updated by a gradient: it is held by gates, and not controlled",
            super::display_name(graph, state.old)
        ));
    }
    roles.parameters.retain(|p| !rebuilt.contains(p));
    roles.rebuilt = rebuilt;
    roles.unused = unused(flow, &roles, &union);
    groups(flow, &candidate_set, &mut roles);
    roles
}

/// Tells states that take over another candidate's new value, as target networks do.
struct Followers<'f, 'g, 'm> {
    flow: &'f Flow<'g, 'm>,
    by_new: BTreeMap<NodeId, Vec<usize>>,
}

impl<'f, 'g, 'm> Followers<'f, 'g, 'm> {
    fn new(flow: &'f Flow<'g, 'm>, candidates: &[usize]) -> Self {
        let mut by_new: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for &k in candidates {
            if let Some(state) = flow.floats.get(k) {
                by_new.entry(flow.graph.through_conversions(state.new)).or_default().push(k);
            }
        }
        Self { flow, by_new }
    }

    /// Whether another candidate's new value enters this one's element by element, and not the other way round.
    fn follows(&self, k: usize) -> bool {
        let graph = self.flow.graph;
        let Some(state) = self.flow.floats.get(k) else {
            return false;
        };
        let own = graph.through_conversions(state.new);
        let mut stack = vec![own];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            let led = id != own && self.by_new.get(&id).is_some_and(|l| !l.contains(&k));
            if led {
                return true;
            }
            if seen.insert(id) && (graph.is_elementwise(id) || graph.is_conversion(id)) {
                let same = |&d: &NodeId| graph.dims(d) == graph.dims(state.old);
                stack.extend(graph.data_deps(id).iter().copied().filter(same));
            }
        }
        false
    }
}

/// Whether a new value is its old one plus something, through whatever reshaping.
fn rests_on(graph: &Graph<'_>, new: NodeId, old: NodeId) -> bool {
    use hlo::Opcode as O;
    // Nearest first: the old value is close by, and what is added to it may go back through the whole model.
    let mut open = VecDeque::from([new]);
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop_front() {
        if id == old {
            return true;
        }
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        open.extend(node.carry);
        let carries = match node.op {
            Op::Phi => true,
            Op::While => false,
            // An opaque call may well add to what it is given; refusing is the finder's matter.
            Op::Hlo(O::CustomCall | O::Unrecognized) => true,
            Op::Hlo(
                O::Reshape | O::Transpose | O::Slice | O::Concatenate | O::DynamicSlice | O::DynamicUpdateSlice,
            ) => true,
            Op::Hlo(O::Pad | O::Scatter | O::Gather | O::Reverse | O::Reduce) => true,
            Op::Hlo(_) => graph.is_elementwise(id) || graph.is_conversion(id),
        };
        if carries {
            open.extend(graph.data_deps(id));
        }
    }
    false
}

/// Outputs that are losses times a weight that the step takes as a scalar: by its path alone the weight looks like a state
/// whose next value is the loss.
///
/// Such a pair is told from a state by what carries it, which are factors, one of them computed from the batch through more than a
/// verdict; and by donation: nothing says that the weight is consumed, where other inputs are said to be, or where no loss is
/// left among the outputs.
pub(super) fn weighted_losses(
    flow: &Flow<'_, '_>,
    roles: &Roles,
    carry: &[CarryPaths],
    alias: &BTreeMap<usize, usize>,
) -> BTreeSet<usize> {
    if roles.loss.is_some() && alias.is_empty() {
        return BTreeSet::new();
    }
    let graph = flow.graph;
    let is_factor = |id: NodeId| graph.is(id, Opcode::Multiply) || graph.is(id, Opcode::Divide);
    let weighted = |state: &&StateNode| {
        let path = carry.get(state.pair.output).map(|c| c.trace(state.old)).unwrap_or_default();
        let steps = || path.windows(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?)));
        let handed_on = |id| graph.deps(id).len() == 1;
        let by_data = |(before, id): (NodeId, NodeId)| {
            is_factor(id) && graph.deps(id).iter().any(|&other| other != before && flow.data[other])
        };
        graph.is_scalar(state.old)
            && state.old != state.new
            && alias.get(&state.pair.output) != Some(&state.pair.input)
            && steps().all(|(_, id)| is_factor(id) || handed_on(id))
            && steps().any(by_data)
    };
    flow.floats.iter().filter(weighted).map(|state| state.pair.output).collect()
}

/// Tensors that change without data, that no loss depends on and that no other state reads: parameters left unused.
fn unused(flow: &Flow<'_, '_>, roles: &Roles, loss: &[u64]) -> Vec<usize> {
    let graph = flow.graph;
    let read_by_others = |k: usize| {
        let mut others = flow.floats.iter().enumerate().filter(|&(other, _)| other != k);
        others.any(|(_, state)| has(flow.all.row(state.new), k))
    };
    let masters: BTreeSet<usize> = roles.masters.values().copied().collect();
    flow.floats
        .iter()
        .enumerate()
        .filter(|&(k, s)| {
            !graph.is_scalar(s.old)
                && s.new != s.old
                && !flow.tainted[s.new]
                && !has(loss, k)
                && !masters.contains(&k)
                && !read_by_others(k)
                && rests_on(graph, s.new, s.given)
        })
        .map(|(k, _)| k)
        .collect()
}

/// `p' = convert(s')` makes `s` the wide copy of `p`.
fn masters(flow: &Flow<'_, '_>, carry: &[CarryPaths], roles: &mut Roles) {
    let graph = flow.graph;
    let mut by_new: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let mut by_old: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (k, state) in flow.floats.iter().enumerate() {
        by_new.entry(state.new).or_default().push(k);
        by_old.insert(state.old, k);
    }
    for &p in &roles.parameters {
        let Some(state) = flow.floats.get(p) else {
            continue;
        };
        let behind = graph.through_conversions(state.new);
        let fits =
            |k: &usize| *k != p && flow.floats.get(*k).is_some_and(|s| graph.dims(s.old) == graph.dims(state.old));
        let direct = by_new.get(&behind).into_iter().flatten().copied().find(|k| fits(k) && behind != state.new);
        let master = direct.or_else(|| {
            let paths = carry.get(state.pair.output)?;
            if paths.reaches(state.old) {
                return None;
            }
            let mut others = paths.inputs().filter_map(|(n, _)| by_old.get(&n)).copied().filter(fits);
            others.next().filter(|_| others.next().is_none())
        });
        if let Some(master) = master {
            roles.masters.insert(p, master);
        }
    }
    let wide: BTreeSet<usize> = roles.masters.values().copied().collect();
    roles.parameters.retain(|p| !wide.contains(p) || roles.masters.contains_key(p));
}

/// States that reach exactly one parameter belong to it.
fn groups(flow: &Flow<'_, '_>, candidates: &BTreeSet<usize>, roles: &mut Roles) {
    let graph = flow.graph;
    let masters: BTreeSet<usize> = roles.masters.values().copied().collect();
    let parameters: BTreeSet<usize> = roles.parameters.iter().copied().collect();
    roles.groups = roles.parameters.iter().map(|&p| (p, Vec::new())).collect();
    // Parameters by the states their new values depend on; every parameter depends on nearly all others, so these are
    // masked out before anything is counted.
    let words = flow.floats.len().div_ceil(64).max(1);
    let others = || (0..flow.floats.len()).filter(|s| !parameters.contains(s) && !masters.contains(s));
    let tensors = mask(others().filter(|&s| is_tensor(flow, s)), words);
    let scalars = mask(others().filter(|&s| !is_tensor(flow, s)), words);
    let both = |row: &[u64], mask: &[u64]| row.iter().zip(mask).map(|(a, b)| a & b).collect::<Row>();
    let mut hits: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &p in &roles.parameters {
        let Some(parameter) = flow.floats.get(p) else {
            continue;
        };
        let mut found = both(flow.all.row(parameter.new), &scalars);
        if !graph.is_scalar(parameter.old) {
            let wide = both(flow.cut.row(parameter.new), &tensors);
            found.iter_mut().zip(wide).for_each(|(word, more)| *word |= more);
        }
        for s in bits(&found) {
            hits.entry(s).or_default().push(p);
        }
    }
    for s in 0..flow.floats.len() {
        if parameters.contains(&s) || masters.contains(&s) {
            continue;
        }
        let hit = hits.remove(&s).unwrap_or_default();
        match hit.as_slice() {
            _ if candidates.contains(&s) => {
                roles.apart.insert(s);
            }
            [] => {
                roles.apart.insert(s);
            }
            [only] => roles.groups.entry(*only).or_default().push(s),
            _ => {
                roles.shared.insert(s, hit);
            }
        }
    }
}

fn is_tensor(flow: &Flow<'_, '_>, state: usize) -> bool {
    flow.floats.get(state).is_some_and(|s| !flow.graph.is_scalar(s.old))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_turns_round_across_blocks() {
        let count = 150usize;
        let related = |a: usize, b: usize| (a * 37 + b * 11) % 7 < 2;
        let rows: Vec<Row> = (0..count).map(|a| mask((0..count).filter(|&b| related(a, b)), 3)).collect();
        let turned = transposed(&rows);
        assert!((0..count).all(|a| (0..count).all(|b| has(&turned[b], a) == related(a, b))));
        assert!(turned.iter().all(|row| bits(row).all(|a| a < count)));
    }

    #[test]
    fn only_larger_sets_are_larger() {
        let relation = Relation::new(vec![mask([0], 1), mask([0, 1], 1), mask([1, 2], 1), mask([0, 1, 2], 1)]);
        let larger = |state| bits(relation.larger(state)).collect::<Vec<_>>();
        assert_eq!([larger(0), larger(1), larger(2), larger(3)], [vec![1, 2, 3], vec![3], vec![3], vec![]]);
    }
}
