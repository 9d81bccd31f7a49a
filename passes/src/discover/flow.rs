//! Data and control: what is computed from a batch, and along which edges.

use hlo::{Opcode, PrimitiveType};

use super::graph::{Graph, NodeId, NodeMap, Reach};
use super::pair::Pair;

/// A paired input as the analyses see it.
///
/// A state that the step takes a dimension off and puts it on again is followed in between: [`Graph::carried`].
#[derive(Debug, Clone, Copy)]
pub(super) struct StateNode {
    /// The pair it comes from.
    pub(super) pair: Pair,
    /// The input node.
    pub(super) given: NodeId,
    /// The output node.
    pub(super) returned: NodeId,
    /// The old value as the step works on it: the input, or a view of it.
    pub(super) old: NodeId,
    /// The new value likewise, of the same dimensions.
    pub(super) new: NodeId,
}

/// Everything that is computed once per graph.
pub(super) struct Flow<'g, 'm> {
    pub(super) graph: &'g Graph<'m>,
    /// All states, by input.
    pub(super) states: Vec<StateNode>,
    /// The floating-point states: bit `k` of a row of [`Flow::all`] is `floats[k]`.
    pub(super) floats: Vec<StateNode>,
    /// Inputs that no output succeeds.
    pub(super) batch: Vec<usize>,
    /// Nodes that count as data.
    pub(super) seeds: NodeMap<bool>,
    /// Computed from data.
    pub(super) tainted: NodeMap<bool>,
    /// Computed from data through more than scalar predicates.
    pub(super) data: NodeMap<bool>,
    /// Which float states reach a node, along all edges.
    pub(super) all: Reach,
    /// The same without edges from uniform nodes to larger ones: a clip factor or a schedule couples everything
    /// along all edges, and nothing along these.
    pub(super) cut: Reach,
    /// Remarks about the choice of data.
    pub(super) notes: Vec<String>,
}

/// Constants at least this large can be a baked-in data set.
const LARGE_CONSTANT: u64 = 16;

impl<'g, 'm> Flow<'g, 'm> {
    /// `invariant` are inputs that count as data although an output returns them (loop invariants).
    pub(super) fn new(graph: &'g Graph<'m>, pairs: &[Pair], invariant: &[usize]) -> Self {
        let mut states: Vec<StateNode> = pairs
            .iter()
            .filter(|p| !invariant.contains(&p.input))
            .filter_map(|&pair| {
                let (&given, &returned) = (graph.inputs.get(pair.input)?, graph.outputs.get(pair.output)?);
                let (old, new) = graph.carried(given, returned);
                Some(StateNode { pair, given, returned, old, new })
            })
            .collect();
        states.sort_by_key(|s| s.pair.input);
        let mut is_state = NodeMap::new(graph, false);
        states.iter().for_each(|s| is_state[s.given] = true);
        let batch: Vec<usize> =
            graph.inputs.iter().enumerate().filter(|&(_, &n)| !is_state[n]).map(|(k, _)| k).collect();
        let mut notes = Vec::new();
        let seeds = seeds(graph, &batch, &states, &mut notes);
        let tainted = spread(graph, &seeds, |_| true, |id| graph.deps(id));
        // A scalar verdict on the data (finite or not, below or above) is control; a mask of the tensor's own size
        // is data, as sign-based updates are made of such.
        let verdict = |id| graph.uniform(id) && graph.element_type(id) == PrimitiveType::PRED;
        let data = spread(graph, &seeds, |id| !verdict(id), |id| graph.flow_deps(id));
        let floats: Vec<StateNode> = states.iter().filter(|s| graph.is_floating(s.old)).copied().collect();
        let sources: Vec<NodeId> = floats.iter().map(|s| s.given).collect();
        let all = Reach::new(graph, &sources, |_, _| true);
        let cut = Reach::new(graph, &sources, |user, dep| !graph.uniform(dep) || graph.is_scalar(user));
        Self { graph, states, floats, batch, seeds, tainted, data, all, cut, notes }
    }

    /// The state whose old value the node is, be it under other dimensions.
    pub(super) fn state(&self, old: NodeId) -> Option<&StateNode> {
        let given = self.graph.input(old)?;
        // Inputs are numbered before all else, in their own order.
        self.states.binary_search_by_key(&given, |s| s.given).ok().and_then(|k| self.states.get(k))
    }

    /// Whether the node is an unscaled random key, be it in an array of one: RNG data, not a batch.
    pub(super) fn is_key(graph: &Graph<'_>, id: NodeId) -> bool {
        let mut dims = graph.dims(id);
        while let [1, rest @ ..] = dims {
            dims = rest;
        }
        graph.element_type(id) == PrimitiveType::U32 && matches!(dims, [2] | [4])
    }
}

/// The nodes that taint starts from.
///
/// Inputs without a partner are data, save scalars (a learning rate) and random keys where there is anything else.
fn seeds(graph: &Graph<'_>, batch: &[usize], states: &[StateNode], notes: &mut Vec<String>) -> NodeMap<bool> {
    let mut seeds = NodeMap::new(graph, false);
    let unpaired: Vec<NodeId> = batch.iter().filter_map(|&k| graph.inputs.get(k)).copied().collect();
    let is_tensor = |&&n: &&NodeId| !graph.is_scalar(n) && !Flow::is_key(graph, n);
    let mut chosen: Vec<NodeId> = unpaired.iter().filter(is_tensor).copied().collect();
    if chosen.is_empty() {
        chosen.clone_from(&unpaired);
        if !chosen.is_empty() {
            notes.push("no input looks like a batch; scalars and random keys were taken for data".into());
        }
    }
    if chosen.is_empty() {
        chosen = graph
            .ids()
            .filter(|&id| graph.is(id, Opcode::Constant) && graph.num_elements(id) >= LARGE_CONSTANT)
            .collect();
        if !chosen.is_empty() {
            notes.push(format!("the step takes no batch; its {} large constants were taken for data", chosen.len()));
        }
    }
    if chosen.is_empty() {
        chosen = states.iter().map(|s| s.given).filter(|&n| Flow::is_key(graph, n)).collect();
        if !chosen.is_empty() {
            notes.push("the step takes no batch; its random key was taken for data".into());
        }
    }
    chosen.into_iter().for_each(|n| seeds[n] = true);
    seeds
}

/// Forward closure of `seeds` over nodes that `passes` admits, along `deps`.
fn spread<'a>(
    graph: &'a Graph<'_>,
    seeds: &NodeMap<bool>,
    passes: impl Fn(NodeId) -> bool,
    deps: impl Fn(NodeId) -> &'a [NodeId],
) -> NodeMap<bool> {
    let mut reached = NodeMap::new(graph, false);
    for id in graph.ids() {
        reached[id] = seeds[id] || (passes(id) && deps(id).iter().any(|&d| reached[d]));
    }
    reached
}
