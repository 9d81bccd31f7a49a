//! Steps that are the body of a loop: `lax.scan` or `lax.fori_loop` over train steps.
//!
//! Leaf k of the loop begins as its k-th initial value and goes from step to step; the body is read as a program whose
//! inputs and outputs are the leaves. A leaf that stays is data where it comes from data, else a state that is frozen. A
//! leaf that steps only write to is a report: the loss is looked for among what is written.

use std::collections::{BTreeMap, BTreeSet};

use hlo::{Computation, ComputationId, Module, Opcode};

use super::flow::Flow;
use super::graph::{Graph, NodeId, Op};
use super::pair::{CarryPaths, Pair, Pairs};
use super::roles::{self, Roles};
use super::trips::Loop;
use super::{DiscoverError, describe, display_name};
use crate::loops::{EnclosingLoop, Leaf};
use crate::step::{Pairing, StateClass, StateRole, TrainStep};

/// The loop whose body is the step, when parameters are carried through a `while`: the body, and one of the leaves.
pub(super) fn enclosing_loop(flow: &Flow<'_, '_>, roles: &Roles, pairs: &Pairs) -> Option<(ComputationId, NodeId)> {
    let graph = flow.graph;
    roles.parameters.iter().find_map(|&p| {
        let state = flow.floats.get(p)?;
        let site = loop_on_path(graph, pairs.carry.get(state.pair.output)?, state.old)?;
        let called = &graph.instruction(site)?.called;
        let body = called.iter().copied().find(|&c| {
            let root = graph.module.computation(c).and_then(Computation::root_instruction);
            root.is_some_and(|r| r.shape.is_tuple())
        })?;
        Some((body, site))
    })
}

fn loop_on_path(graph: &Graph<'_>, paths: &CarryPaths, input: NodeId) -> Option<NodeId> {
    paths.trace(input).into_iter().rfind(|&n| graph.op(n) == Op::While)
}

/// The step in a loop's body, told in terms of the entry's inputs and outputs where they correspond.
pub(super) fn step_in(
    module: &Module,
    around: &Flow<'_, '_>,
    pairs_around: &Pairs,
    body: ComputationId,
    site: NodeId,
) -> Result<TrainStep, DiscoverError> {
    let outer = around.graph;
    let Some(instruction) = outer.instruction(site) else {
        return Err(DiscoverError::NoSuchComputation { computation: body.index().to_string() });
    };
    let graph = Graph::new(module, body)?;
    let initial = outer.initial(site);
    let count = graph.inputs.len().min(graph.outputs.len());
    let pairs: Vec<Pair> = (0..count).map(|k| Pair { input: k, output: k, how: Pairing::LoopCarried }).collect();
    let carry = graph.outputs.iter().map(|&o| CarryPaths::to(&graph, o)).collect();
    let pairs = Pairs { pairs, carry };
    let around_loop = Loop { outer, initial, body: &graph, instruction };
    let trips = around_loop.trips(body);
    // A front end may carry several: its own, and the one that the user's code is handed.
    let numbers = if trips.is_ok() { around_loop.numbers() } else { Vec::new() };
    let numbers: BTreeSet<NodeId> = numbers.into_iter().filter_map(|k| graph.inputs.get(k).copied()).collect();
    let records = Records::of(&graph, count, &numbers);

    let data = data(around, initial, &graph, count);
    let flow = Flow::new(&graph, &pairs.pairs, &data);
    let roles = roles::assign(&flow, &pairs.carry, &records.values());
    let mut step = describe(&graph, &flow, roles, &pairs)?;

    let mut leaves = leaves(outer, pairs_around, site, initial, &graph);
    for (k, leaf) in leaves.iter_mut().enumerate() {
        let taken = data.contains(&k) && takes_one_each(&graph, k, &numbers);
        leaf.each = taken || records.of.get(&k).is_some_and(|record| record.each);
    }
    let at = |leaf: usize| leaves.get(leaf).copied().unwrap_or_default();
    let name = |leaf: usize| at(leaf).input.and_then(|n| outer.inputs.get(n)).map(|&n| display_name(outer, n));
    for parameter in &mut step.parameters {
        parameter.name = name(parameter.input).unwrap_or_else(|| std::mem::take(&mut parameter.name));
    }
    for state in &mut step.states {
        state.name = name(state.input).unwrap_or_else(|| std::mem::take(&mut state.name));
        if let Some(record) = records.of.get(&state.input) {
            let reason = if record.added { "a record that every step adds to" } else { "what the last step reports" };
            (state.role, state.class, state.reason) = (StateRole::Metric, StateClass::Advancing, reason.to_owned());
        }
    }
    // Whatever a policy says, the loop goes on.
    step.states.retain(|state| !around_loop.counts(state.input));
    // Constants that the front end hands in from outside are no frozen parameters.
    step.parameters.retain(|p| at(p.input).input.is_some() || p.found_gradient().is_some());
    step.notes.push(format!(
        "the step is the body of the loop {instruction}, {}; what follows names instructions of {:?}",
        match &trips {
            Ok(trips) => format!("which does {} steps in one launch", trips.steps),
            Err(reason) => format!("and {reason}"),
        },
        module.computation(body).map(|c| c.name.as_str()).unwrap_or_default(),
    ));
    let node = outer.node(site);
    let enclosing = EnclosingLoop {
        name: instruction.name.clone(),
        site: node.instruction,
        computation: node.computation,
        leaves,
        trips,
        body: Box::new(step.clone()),
        signature: (outer.inputs.len(), outer.outputs.len()),
        batch: around.batch.clone(),
    };
    Ok(enclosing.outside(step))
}

/// The leaves that stay and are data: those that come from the data around the loop. Where there are none, all that stay.
fn data(around: &Flow<'_, '_>, initial: &[NodeId], graph: &Graph<'_>, count: usize) -> Vec<usize> {
    let outer = around.graph;
    let stays: Vec<usize> = (0..count).filter(|&k| graph.inputs.get(k) == graph.outputs.get(k)).collect();
    let handed_in: BTreeSet<NodeId> = around.batch.iter().filter_map(|&k| outer.inputs.get(k)).copied().collect();
    let is_data = |&k: &usize| initial.get(k).is_some_and(|&n| around.tainted[n] || handed_in.contains(&n));
    let chosen: Vec<usize> = stays.iter().copied().filter(is_data).collect();
    if chosen.is_empty() { stays } else { chosen }
}

/// What each leaf is at the entry.
fn leaves(outer: &Graph<'_>, pairs: &Pairs, site: NodeId, initial: &[NodeId], graph: &Graph<'_>) -> Vec<Leaf> {
    let site = outer.node(site);
    let leaf_of = |n: NodeId| {
        let node = outer.node(n);
        let is = node.op == Op::While && (node.computation, node.instruction) == (site.computation, site.instruction);
        is.then_some(node.leaf)
    };
    let mut leaves = vec![Leaf::default(); graph.inputs.len()];
    // What passes through is not seen on any path; it is what it begins as.
    for (leaf, &value) in leaves.iter_mut().zip(initial) {
        let begins_as = outer.input(outer.through_conversions(value));
        leaf.input = outer.inputs.iter().position(|&input| Some(input) == begins_as);
    }
    for (output, &value) in outer.outputs.iter().enumerate() {
        let ended = outer.through_conversions(outer.behind_views(value));
        if let Some(leaf) = leaf_of(ended).and_then(|leaf| leaves.get_mut(leaf)) {
            leaf.output = Some(output);
        }
    }
    for pair in &pairs.pairs {
        let Some(&input) = outer.inputs.get(pair.input) else { continue };
        let on_path = pairs.carry.get(pair.output).map(|c| c.trace(input)).unwrap_or_default();
        if let Some(leaf) = on_path.into_iter().find_map(leaf_of).and_then(|leaf| leaves.get_mut(leaf)) {
            (leaf.input, leaf.output) = (Some(pair.input), Some(pair.output));
        }
    }
    leaves
}

/// A leaf that no step reads.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// What the step writes.
    value: NodeId,
    /// Whether it is added to what other steps wrote.
    added: bool,
    /// Whether step i writes at i, and nothing else.
    each: bool,
}

/// The leaves that steps only write to.
struct Records {
    of: BTreeMap<usize, Record>,
}

impl Records {
    fn of(graph: &Graph<'_>, count: usize, numbers: &BTreeSet<NodeId>) -> Self {
        Self { of: (0..count).filter_map(|k| Some((k, record(graph, k, numbers)?))).collect() }
    }

    /// What is written, by leaf.
    fn values(&self) -> Vec<(usize, NodeId)> {
        self.of.iter().map(|(&k, record)| (k, record.value)).collect()
    }
}

/// Whether step i takes element i of a leaf, and nothing else.
fn takes_one_each(graph: &Graph<'_>, leaf: usize, numbers: &BTreeSet<NodeId>) -> bool {
    let Some(&array) = graph.inputs.get(leaf) else { return false };
    let takes = |&user: &NodeId| {
        let one = graph.dims(user).first() == Some(&1) && graph.dims(user).get(1..) == graph.dims(array).get(1..);
        let &[from, ref starts @ ..] = graph.deps(user) else { return false };
        graph.is(user, Opcode::DynamicSlice) && from == array && one && at(graph, starts, numbers)
    };
    !graph.users(array).is_empty() && graph.users(array).iter().all(takes)
}

fn record(graph: &Graph<'_>, leaf: usize, numbers: &BTreeSet<NodeId>) -> Option<Record> {
    let (&old, &new) = (graph.inputs.get(leaf)?, graph.outputs.get(leaf)?);
    if old == new || graph.is_output(old) {
        return None;
    }
    let users = graph.users(old);
    if users.is_empty() {
        return Some(Record { value: new, added: false, each: false });
    }
    let written = graph.through_conversions(new);
    let &[array, update, ref starts @ ..] = graph.deps(written) else { return None };
    if array != old || users != [written] || graph.users(written).len() + usize::from(written == new) > 1 {
        return None;
    }
    match graph.opcode(written)? {
        Opcode::DynamicUpdateSlice => {
            let one = graph.dims(update).first() == Some(&1) && graph.dims(update).get(1..) == graph.dims(old).get(1..);
            let each = one && at(graph, starts, numbers);
            Some(Record { value: update, added: true, each })
        }
        // Indices, then what is written there.
        Opcode::Scatter => {
            let value = *starts.first()?;
            let each = scatters_one(graph, written, old, value, numbers);
            Some(Record { value, added: true, each })
        }
        _ => None,
    }
}

/// Whether a scatter writes one element of the first dimension, at the number of the step, as `losses.at[i].set(loss)` does.
fn scatters_one(graph: &Graph<'_>, scatter: NodeId, old: NodeId, value: NodeId, numbers: &BTreeSet<NodeId>) -> bool {
    let Some(instruction) = graph.instruction(scatter) else { return false };
    let Some(dims) = instruction.attributes.scatter_dimension_numbers.as_option() else { return false };
    let combine = instruction.called.first().and_then(|&c| graph.module.computation(c));
    let root = combine.and_then(Computation::root_instruction);
    let overwrites = root.is_some_and(|root| root.opcode == Opcode::Parameter && root.index() == Some(1));
    let &[_, index, _] = graph.deps(scatter) else { return false };
    let first = [&dims.inserted_window_dims, &dims.scatter_dims_to_operand_dims].iter().all(|dims| ***dims == [0]);
    overwrites && first && graph.dims(old).get(1..) == Some(graph.dims(value)) && counts(graph, index, numbers)
}

/// Whether something starts at the number of the step, and at the beginning of all other dimensions.
fn at(graph: &Graph<'_>, starts: &[NodeId], numbers: &BTreeSet<NodeId>) -> bool {
    let Some((&first, rest)) = starts.split_first() else { return false };
    counts(graph, first, numbers) && rest.iter().all(|&start| graph.constant(start) == Some(0.0))
}

/// Whether a value is the number of the step: the counter, or `i < 0 ? i + K : i`, which front ends write for it.
fn counts(graph: &Graph<'_>, id: NodeId, numbers: &BTreeSet<NodeId>) -> bool {
    let value = graph.strip_uniform(id);
    if numbers.contains(&value) {
        return true;
    }
    let &[negative, _, otherwise] = graph.deps(value) else { return false };
    let test = graph.pair(negative).filter(|_| graph.is(negative, Opcode::Compare));
    let below_zero = test.is_some_and(|(x, zero)| {
        let direction = graph.instruction(negative).map(|i| i.attributes.comparison_direction.as_str());
        counts(graph, x, numbers) && graph.constant(zero) == Some(0.0) && direction == Some("LT")
    });
    graph.is(value, Opcode::Select) && below_zero && counts(graph, otherwise, numbers)
}
