//! Gradients that are accumulated over several calls, and the call that consumes them.
//!
//! Under `optax.MultiSteps` the moments of a parameter keep their values, `m' = select(p, …, m)` with a predicate p that no
//! data decides, except in the call in which p holds; an accumulator takes in the gradient of every call. What the moments
//! take in then is not the gradient of that call's data but the accumulator's new value: it is that which is measured, and
//! p says when.

use hlo::{Opcode, PrimitiveType};

use super::flow::Flow;
use super::graph::{NodeId, Op};

/// How states of one parameter wait for the call that consumes its gradient.
#[derive(Debug, Clone)]
pub(super) struct Accumulation {
    /// A scalar of `pred` that holds in the consuming call.
    pub(super) consumes: NodeId,
    /// The states that keep their values in the others; indices into [`Flow::floats`].
    pub(super) waiting: Vec<usize>,
}

impl Accumulation {
    /// That of the states in `group`; `None` where none wait, or nothing that they take in is accumulated meanwhile.
    pub(super) fn of(flow: &Flow<'_, '_>, group: &[usize]) -> Option<Self> {
        let guarded: Vec<(usize, NodeId)> = group.iter().filter_map(|&s| Some((s, guard(flow, s)?))).collect();
        let &(_, consumes) = guarded.first()?;
        if guarded.iter().any(|&(_, other)| other != consumes) {
            return None;
        }
        let waiting: Vec<usize> = guarded.into_iter().map(|(s, _)| s).collect();
        let accumulates = |s: usize| {
            let new = |&w: &usize| flow.floats.get(w).map(|w| w.new);
            !waiting.contains(&s)
                && flow.floats.get(s).is_some_and(|s| flow.data[s.new])
                && waiting.iter().filter_map(new).all(|new| flow.cut.reaches(s, new))
        };
        group.iter().any(|&s| accumulates(s)).then_some(Self { consumes, waiting })
    }
}

/// The predicate under which a state takes a new value, where it keeps the old one otherwise and no data decides.
fn guard(flow: &Flow<'_, '_>, state: usize) -> Option<NodeId> {
    let graph = flow.graph;
    let state = flow.floats.get(state)?;
    let chosen = graph.through_conversions(state.new);
    if !matches!(graph.op(chosen), Op::Hlo(Opcode::Select) | Op::Phi) {
        return None;
    }
    let &[predicate, _, otherwise] = graph.deps(chosen) else { return None };
    let predicate = graph.strip_uniform(predicate);
    let waits = graph.through_conversions(otherwise) == state.old
        && graph.is_scalar(predicate)
        && graph.element_type(predicate) == PrimitiveType::PRED
        && !graph.node(predicate).inner
        && !flow.tainted[predicate];
    waits.then_some(predicate)
}
