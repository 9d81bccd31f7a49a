//! What differs between replicas of one step: they hold the same state, and each is given data of its own.

use std::collections::BTreeSet;

use hlo::{Module, Opcode};

use super::DiscoverError;
use super::graph::{Graph, NodeId, NodeMap};
use crate::step::{TrainStep, Value};

/// The data of a step as replicas see it: inputs that nothing succeeds and that have dimensions. A scalar that is handed in
/// with each step, such as a learning rate, is the same for all of them.
fn is_own_data(graph: &Graph<'_>, step: &TrainStep, input: usize) -> bool {
    step.batch.contains(&input) && graph.inputs.get(input).is_some_and(|&n| !graph.dims(n).is_empty())
}

/// Marks what depends on any of the seeds, all-reduced values left out where `through` says no.
fn dependent(graph: &Graph<'_>, seed: impl Fn(NodeId) -> bool, through: impl Fn(NodeId) -> bool) -> NodeMap<bool> {
    let mut marks = NodeMap::new(graph, false);
    for id in graph.ids() {
        marks[id] = seed(id) || (through(id) && graph.deps(id).iter().any(|&d| marks[d]));
    }
    marks
}

/// Which outputs of the entry differ between replicas, by output index.
///
/// An `all-reduce` is taken for one over all replicas.
///
/// # Errors
///
/// Where the module has no value graph.
pub fn varying_outputs(module: &Module, step: &TrainStep) -> Result<Vec<bool>, DiscoverError> {
    let graph = Graph::new(module, module.entry())?;
    let own: BTreeSet<NodeId> = inputs(&graph, |input| is_own_data(&graph, step, input)).collect();
    let varying = dependent(
        &graph,
        |id| own.contains(&id) || matches!(graph.opcode(id), Some(Opcode::ReplicaId | Opcode::PartitionId)),
        |id| !graph.is(id, Opcode::AllReduce),
    );
    Ok(graph.outputs.iter().map(|&output| varying[output]).collect())
}

/// A number that the step divides by, and that its data decides: how many tokens of a batch count, or how much they weigh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataCount {
    /// The number: an array of one element, or one that holds nothing else.
    pub value: Value,
    /// Its name.
    pub name: String,
    /// Whether it is computed for every step, and not in a branch or a body.
    pub reachable: bool,
}

/// The counts by which a loss or a gradient is normalised and that only the data decides, in evaluation order.
///
/// Where there is one, the mean over replicas of what each normalised by its own count is not what the count of all of them
/// gives. Element-wise normalisation (of inputs, per row) is none: it does not go across examples.
///
/// # Errors
///
/// Where the module has no value graph.
pub fn data_dependent_counts(module: &Module, step: &TrainStep) -> Result<Vec<DataCount>, DiscoverError> {
    let graph = Graph::new(module, module.entry())?;
    let own: BTreeSet<NodeId> = inputs(&graph, |input| is_own_data(&graph, step, input)).collect();
    let states: BTreeSet<NodeId> = inputs(&graph, |input| step.state(input).is_some()).collect();
    let of_data = dependent(&graph, |id| own.contains(&id), |_| true);
    let of_state = dependent(&graph, |id| states.contains(&id), |_| true);
    let wanted = ancestors(&graph, |id| {
        step.loss.is_some_and(|loss| graph.outputs.get(loss) == Some(&id))
            || step.controlled().any(|(_, gradient)| graph.value(id) == gradient.raw)
    });
    let mut found = Vec::new();
    for id in graph.ids().filter(|&id| wanted[id] && graph.is(id, Opcode::Divide)) {
        let Some((_, divisor)) = graph.pair(id) else { continue };
        if !graph.uniform(divisor) || !of_data[divisor] || of_state[divisor] {
            continue;
        }
        let count = graph.strip_uniform(divisor);
        let node = graph.node(count);
        let reachable = node.computation == graph.computation && !node.inner;
        let count = DataCount { value: graph.value(count), name: graph.display(count), reachable };
        if !found.contains(&count) {
            found.push(count);
        }
    }
    Ok(found)
}

fn inputs<'g>(graph: &'g Graph<'_>, choose: impl Fn(usize) -> bool + 'g) -> impl Iterator<Item = NodeId> + 'g {
    graph.inputs.iter().enumerate().filter(move |&(input, _)| choose(input)).map(|(_, &id)| id)
}

/// Marks the chosen nodes, and everything that they are computed from.
fn ancestors(graph: &Graph<'_>, chosen: impl Fn(NodeId) -> bool) -> NodeMap<bool> {
    let mut marks = NodeMap::new(graph, false);
    for id in graph.ids().rev() {
        if chosen(id) {
            marks[id] = true;
        }
        if marks[id] {
            for &dep in graph.deps(id) {
                marks[dep] = true;
            }
        }
    }
    marks
}
