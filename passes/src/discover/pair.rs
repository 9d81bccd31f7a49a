//! Pairing outputs with the inputs that they succeed.
//!
//! For each output, the cheapest path backward through operations that keep the
//! dimensions says which inputs it could carry on and how directly. Where dimensions
//! are changed at both ends (a unit dimension taken off and put on again), the path is
//! the one between. A minimum-cost assignment per dimensions and element type decides.
//! Where forbidding a chosen pair costs nothing there was a tie: the alias table breaks
//! it, then the order of inputs, and the result says so. What is left over comes from
//! the alias table alone. The table is a hint: steps without donation exist, and permuted ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use hlo::Opcode;

use super::flow::Flow;
use super::graph::{Graph, NodeId, Op, Reach};
use crate::step::Pairing;

/// An input and the output that succeeds it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    /// Index into [`Graph::inputs`].
    pub(super) input: usize,
    /// Index into [`Graph::outputs`].
    pub(super) output: usize,
    pub(super) how: Pairing,
}

/// The cheapest path from an input to an output along which a state is carried.
#[derive(Debug, Clone, Default)]
pub(super) struct CarryPaths {
    /// Cost per reachable input, in quarters; by the input or the view of it at which the path begins.
    costs: Vec<(NodeId, u32)>,
    /// For each node on a path, by node, the next one towards the output.
    towards: Vec<(NodeId, Option<NodeId>)>,
}

impl CarryPaths {
    /// Cheapest paths from every input to `output`, or to what it is a view of.
    pub(super) fn to(graph: &Graph<'_>, output: NodeId) -> Self {
        let output = graph.behind_views(output);
        let dims = graph.dims(output);
        let mut best = HashMap::from([(output, (0u32, None))]);
        let mut costs = Vec::new();
        let mut queue = BinaryHeap::from([Reverse((0u32, output))]);
        while let Some(Reverse((cost, id))) = queue.pop() {
            if best.get(&id).is_some_and(|&(b, _)| b < cost) {
                continue;
            }
            if graph.input(id).is_some() {
                costs.push((id, cost));
                continue;
            }
            steps_back(graph, id, |dep, weight| {
                let total = cost.saturating_add(weight);
                if graph.dims(dep) == dims && best.get(&dep).is_none_or(|&(b, _)| total < b) {
                    best.insert(dep, (total, Some(id)));
                    queue.push(Reverse((total, dep)));
                }
            });
        }
        let mut towards: Vec<_> = best.into_iter().map(|(id, (_, next))| (id, next)).collect();
        towards.sort_unstable();
        costs.sort_unstable();
        Self { costs, towards }
    }

    fn cost(&self, input: NodeId) -> Option<u32> {
        let at = self.costs.binary_search_by_key(&input, |&(id, _)| id).ok()?;
        self.costs.get(at).map(|&(_, cost)| cost)
    }

    pub(super) fn reaches(&self, input: NodeId) -> bool {
        self.cost(input).is_some()
    }

    /// Whether `input` is carried by additions, uniform factors and choices alone.
    pub(super) fn carries_linearly(&self, input: NodeId) -> bool {
        self.cost(input).is_some_and(|c| c < 32)
    }

    /// Inputs with a path, or views of them, with their cost.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (NodeId, u32)> + '_ {
        self.costs.iter().copied()
    }

    /// The nodes from `input` to where paths end, both included; empty where there is no path.
    pub(super) fn trace(&self, input: NodeId) -> Vec<NodeId> {
        let mut path = Vec::new();
        let mut at = self.reaches(input).then_some(input);
        while let Some(id) = at {
            path.push(id);
            let next = self.towards.binary_search_by_key(&id, |&(id, _)| id).ok();
            at = next.and_then(|k| self.towards.get(k)).and_then(|&(_, next)| next);
        }
        path
    }
}

/// The operands along which a state may be carried, with the cost of each step in quarters.
fn steps_back(graph: &Graph<'_>, id: NodeId, mut step: impl FnMut(NodeId, u32)) {
    let node = graph.node(id);
    match (node.op, node.deps.as_slice()) {
        (Op::While, _) => node.carry.into_iter().for_each(|c| step(c, 4)),
        (Op::Phi, deps) => deps.iter().skip(1).for_each(|&d| step(d, 1)),
        (Op::Hlo(opcode), deps) => match (opcode, deps) {
            (Opcode::Convert | Opcode::Copy | Opcode::Bitcast | Opcode::ReducePrecision, &[x]) => step(x, 0),
            (Opcode::Select, &[_, x, y]) => {
                step(x, 1);
                step(y, 1);
            }
            (Opcode::Add | Opcode::Maximum | Opcode::Minimum, deps) => deps.iter().for_each(|&d| step(d, 4)),
            (Opcode::Clamp, &[_, x, _]) => step(x, 4),
            (Opcode::Subtract, &[x, y]) => {
                step(x, 4);
                step(y, 12);
            }
            (Opcode::Multiply, &[x, y]) => {
                step(x, if graph.uniform(y) { 8 } else { 32 });
                step(y, if graph.uniform(x) { 8 } else { 32 });
            }
            (Opcode::Divide, &[x, y]) => step(x, if graph.uniform(y) { 8 } else { 32 }),
            (_, deps) if graph.is_elementwise(id) => deps.iter().for_each(|&d| step(d, 32)),
            _ => {}
        },
    }
}

/// What pairing found.
#[derive(Debug)]
pub(super) struct Pairs {
    /// By output index.
    pub(super) pairs: Vec<Pair>,
    /// Carry paths of each output.
    pub(super) carry: Vec<CarryPaths>,
}

/// Pairs outputs with inputs; `alias` maps output index to input index.
pub(super) fn pair(graph: &Graph<'_>, alias: &BTreeMap<usize, usize>) -> Pairs {
    let carry: Vec<_> = graph.outputs.iter().map(|&o| CarryPaths::to(graph, o)).collect();
    let number: HashMap<NodeId, usize> = graph.inputs.iter().enumerate().map(|(k, &n)| (n, k)).collect();
    // Candidate pairs of equal shape, as connected components of the graph between outputs and inputs.
    let candidates: Vec<Vec<(usize, u32)>> = graph
        .outputs
        .iter()
        .zip(&carry)
        .map(|(&o, paths)| {
            let fits = |n: &NodeId| graph.dims(*n) == graph.dims(o) && graph.element_type(*n) == graph.element_type(o);
            let candidate = |(n, c)| Some((*number.get(&graph.input(n).filter(fits)?)?, c));
            paths.inputs().filter_map(candidate).collect()
        })
        .collect();
    let mut pairs = Vec::new();
    for (outputs, inputs) in components(&candidates, graph.inputs.len()) {
        assign(&candidates, &outputs, &inputs, alias, &mut pairs);
    }
    let mut taken: std::collections::HashSet<usize> = pairs.iter().map(|p| p.input).collect();
    let paired: std::collections::HashSet<usize> = pairs.iter().map(|p| p.output).collect();
    for (&output, &input) in alias {
        let (Some(&o), Some(&i)) = (graph.outputs.get(output), graph.inputs.get(input)) else {
            continue;
        };
        let fits = graph.dims(o) == graph.dims(i) && graph.element_type(o) == graph.element_type(i);
        if !paired.contains(&output) && fits && taken.insert(input) {
            pairs.push(Pair { input, output, how: Pairing::AliasOnly });
        }
    }
    derived_keys(graph, &mut pairs);
    pairs.sort_by_key(|p| p.output);
    Pairs { pairs, carry }
}

/// Pairs random keys: an unpaired output with the shape of a key that comes from one unpaired key only, and is its
/// only such output.
fn derived_keys(graph: &Graph<'_>, pairs: &mut Vec<Pair>) {
    let free = |list: &[NodeId], taken: &dyn Fn(usize) -> bool| -> Vec<(usize, NodeId)> {
        let keys = list.iter().copied().enumerate();
        keys.filter(|&(k, n)| Flow::is_key(graph, n) && !taken(k)).collect()
    };
    let inputs = free(&graph.inputs, &|k| pairs.iter().any(|p| p.input == k));
    let outputs = free(&graph.outputs, &|k| pairs.iter().any(|p| p.output == k));
    if inputs.is_empty() || outputs.is_empty() {
        return;
    }
    let reach = Reach::new(graph, &inputs.iter().map(|i| i.1).collect::<Vec<_>>(), |_, _| true);
    for (bit, &(input, _)) in inputs.iter().enumerate() {
        let mut derived = outputs.iter().filter(|(_, o)| reach.sources(*o).eq([bit]));
        if let (Some(&(output, _)), None) = (derived.next(), derived.next()) {
            pairs.push(Pair { input, output, how: Pairing::DerivedKey });
        }
    }
}

/// Connected components: outputs and inputs that some chain of candidate pairs links.
fn components(candidates: &[Vec<(usize, u32)>], inputs: usize) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut parent: Vec<usize> = (0..candidates.len() + inputs).collect();
    fn find(parent: &mut [usize], mut x: usize) -> usize {
        while let Some(&up) = parent.get(x)
            && up != x
        {
            let over = parent.get(up).copied().unwrap_or(up);
            if let Some(slot) = parent.get_mut(x) {
                *slot = over;
            }
            x = up;
        }
        x
    }
    for (output, list) in candidates.iter().enumerate() {
        for &(input, _) in list {
            let (a, b) = (find(&mut parent, output), find(&mut parent, candidates.len() + input));
            if let Some(slot) = parent.get_mut(b) {
                *slot = a;
            }
        }
    }
    let mut groups: BTreeMap<usize, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for x in 0..candidates.len() + inputs {
        let root = find(&mut parent, x);
        let group = groups.entry(root).or_default();
        match x.checked_sub(candidates.len()) {
            None => group.0.push(x),
            Some(input) => group.1.push(input),
        }
    }
    groups.into_values().filter(|(o, i)| !o.is_empty() && !i.is_empty()).collect()
}

/// Leaving an output without a partner costs more than any path.
const UNMATCHED: i64 = 1 << 24;
/// A pair that is not a candidate.
const FORBIDDEN: i64 = 1 << 40;
/// One quarter of path cost, so that tie-breaking bonuses stay below it.
const UNIT: i64 = 1 << 12;

fn assign(
    candidates: &[Vec<(usize, u32)>],
    outputs: &[usize],
    inputs: &[usize],
    alias: &BTreeMap<usize, usize>,
    pairs: &mut Vec<Pair>,
) {
    let column: HashMap<usize, usize> = inputs.iter().enumerate().map(|(c, &i)| (i, c)).collect();
    let width = inputs.len() + outputs.len();
    let mut costs = vec![vec![FORBIDDEN; width]; outputs.len()];
    for (row, &output) in outputs.iter().enumerate() {
        let Some(line) = costs.get_mut(row) else {
            continue;
        };
        for &(input, cost) in candidates.get(output).into_iter().flatten() {
            if let Some(cell) = column.get(&input).and_then(|&c| line.get_mut(c)) {
                *cell = i64::from(cost) * UNIT;
            }
        }
        if let Some(cell) = line.get_mut(inputs.len() + row) {
            *cell = UNMATCHED * UNIT;
        }
    }
    let (total, chosen) = minimum_assignment(&costs);
    let mut tied = vec![false; outputs.len()];
    for (row, &c) in chosen.iter().enumerate().filter(|&(_, &c)| c < inputs.len()) {
        let mut without = costs.clone();
        if let Some(cell) = without.get_mut(row).and_then(|l| l.get_mut(c)) {
            *cell = FORBIDDEN;
        }
        if minimum_assignment(&without).0 <= total
            && let Some(mark) = tied.get_mut(row)
        {
            *mark = true;
        }
    }
    let chosen = if tied.contains(&true) {
        // The alias table first; then outputs and inputs in the same order.
        for (row, &output) in outputs.iter().enumerate() {
            for (c, input) in inputs.iter().enumerate() {
                let Some(cell) = costs.get_mut(row).and_then(|l| l.get_mut(c)).filter(|c| **c < UNMATCHED) else {
                    continue;
                };
                *cell += row.abs_diff(c).min(255) as i64;
                if alias.get(&output) == Some(input) {
                    *cell -= UNIT / 2;
                }
            }
        }
        minimum_assignment(&costs).1
    } else {
        chosen
    };
    for ((&output, &c), tied) in outputs.iter().zip(&chosen).zip(tied) {
        let Some(&input) = inputs.get(c) else {
            continue;
        };
        let how = match (tied, alias.get(&output) == Some(&input)) {
            (false, _) => Pairing::Carry,
            (true, true) => Pairing::AliasTie,
            (true, false) => Pairing::OrderTie,
        };
        pairs.push(Pair { input, output, how });
    }
}

/// The cheapest assignment of every row to a column of its own: the Hungarian method with potentials,
/// O(rows² · columns). Returns the total and the column of each row.
#[allow(clippy::indexing_slicing, reason = "all indices run over the matrix's own rows and columns")]
fn minimum_assignment(costs: &[Vec<i64>]) -> (i64, Vec<usize>) {
    let rows = costs.len();
    let columns = costs.first().map_or(0, Vec::len);
    // Row 0 and column 0 are sentinels.
    let (mut row_potential, mut column_potential) = (vec![0i64; rows + 1], vec![0i64; columns + 1]);
    let mut row_of = vec![0usize; columns + 1];
    for row in 1..=rows {
        row_of[0] = row;
        let mut column = 0;
        let mut slack = vec![i64::MAX; columns + 1];
        let mut from = vec![0usize; columns + 1];
        let mut used = vec![false; columns + 1];
        while row_of[column] != 0 {
            used[column] = true;
            let at = row_of[column];
            let (mut delta, mut next) = (i64::MAX, 0);
            for c in (1..=columns).filter(|&c| !used[c]) {
                let reduced = costs[at - 1][c - 1] - row_potential[at] - column_potential[c];
                if reduced < slack[c] {
                    slack[c] = reduced;
                    from[c] = column;
                }
                if slack[c] < delta {
                    delta = slack[c];
                    next = c;
                }
            }
            for c in 0..=columns {
                if used[c] {
                    row_potential[row_of[c]] += delta;
                    column_potential[c] -= delta;
                } else if slack[c] != i64::MAX {
                    slack[c] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[from[column]];
            column = from[column];
        }
    }
    let mut chosen = vec![0; rows];
    for c in 1..=columns {
        if row_of[c] != 0 {
            chosen[row_of[c] - 1] = c - 1;
        }
    }
    (chosen.iter().enumerate().map(|(r, &c)| costs[r][c]).sum(), chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_assignment_is_found() {
        let costs = vec![vec![4, 1, 3], vec![2, 0, 5], vec![3, 2, 2]];
        assert_eq!(minimum_assignment(&costs), (5, vec![1, 0, 2]));
        assert_eq!(minimum_assignment(&[vec![7, 3, 9]]), (3, vec![1]));
        assert_eq!(minimum_assignment(&[]), (0, vec![]));
    }
}
