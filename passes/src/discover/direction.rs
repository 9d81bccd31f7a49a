//! An update as a learning rate times a direction, and the first moment that could take the direction's place.
//!
//! Uniform factors that no data decides (a learning rate, a schedule, a bias correction of the first moment) are taken
//! off the update from the outside; where a sum with something free of data is met (decoupled weight decay), that stays
//! apart, and factors are taken off its other term. What is left is the direction.

use hlo::Opcode;

use super::flow::Flow;
use super::graph::{Graph, NodeId, Op};
use super::update::{Form, FoundUpdate, strip_guards};
use crate::step::{Decay, Direction, DirectionStatus, Factors, Momentum, MomentumStatus};

/// Factors taken off one product, and what they scale.
struct Peeled {
    negative: bool,
    factors: Vec<(bool, NodeId)>,
    rest: NodeId,
}

/// The direction of a parameter's update.
pub(super) fn direction(flow: &Flow<'_, '_>, update: &FoundUpdate, momentum: &MomentumStatus) -> DirectionStatus {
    match find(flow, update, momentum) {
        Ok(direction) => DirectionStatus::Found(direction),
        Err(reason) => DirectionStatus::Absent { reason },
    }
}

fn find(flow: &Flow<'_, '_>, update: &FoundUpdate, momentum: &MomentumStatus) -> Result<Direction, String> {
    let graph = flow.graph;
    let moment = match momentum {
        MomentumStatus::Found(found) => match found.as_slice() {
            [one] => new_value(flow, one)?,
            several => return Err(format!("it has {} first moments, and SGD would go along one", several.len())),
        },
        MomentumStatus::Absent { reason } => return Err(format!("it has no first moment ({reason})")),
    };
    let (u, subtracted) = match &update.form {
        Form::Add(u) => (*u, false),
        Form::Subtract(u) => (*u, true),
        Form::Difference(reason) => return Err(format!("its update cannot be taken apart: {reason}")),
    };
    let outer = peel(flow, u);
    let (decay, term, negative) = match split(flow, outer.rest) {
        Some(split) => (Some(split.decay), split.direction, split.negative),
        None => (None, outer.rest, false),
    };
    let inner = peel(flow, term);
    if !plain(graph, inner.rest) {
        return Err("its update is computed inside a branch or a loop".to_owned());
    }
    if graph.through_conversions(inner.rest) == graph.through_conversions(moment) {
        return Err("its update is its first moment already: SGD with momentum".to_owned());
    }
    let factors = |peeled: &Peeled, flip: bool| Factors {
        negative: peeled.negative != flip,
        factors: peeled.factors.iter().map(|&(divides, n)| (divides, graph.value(n))).collect(),
    };
    Ok(Direction {
        value: graph.value(inner.rest),
        moment: graph.value(moment),
        outer: factors(&outer, subtracted),
        inner: factors(&inner, negative),
        decay: decay.map(|(n, negative)| Decay { value: graph.value(n), negative }),
    })
}

/// The new value of a first moment, before guards.
fn new_value(flow: &Flow<'_, '_>, momentum: &Momentum) -> Result<NodeId, String> {
    let state = flow.states.iter().find(|s| s.pair.input == momentum.input);
    let state = state.ok_or_else(|| "its first moment is no state of the step".to_owned())?;
    let (inside, _) = strip_guards(flow.graph, state.new, state.old);
    if plain(flow.graph, inside) { Ok(inside) } else { Err("its first moment is computed inside a branch".to_owned()) }
}

/// Whether the value of a node can be read where the update is.
fn plain(graph: &Graph<'_>, id: NodeId) -> bool {
    !graph.node(id).inner && matches!(graph.op(id), Op::Hlo(_))
}

/// Takes uniform factors off that no data decides.
fn peel(flow: &Flow<'_, '_>, mut at: NodeId) -> Peeled {
    let graph = flow.graph;
    let mut peeled = Peeled { negative: false, factors: Vec::new(), rest: at };
    let free = |n: NodeId| graph.uniform(n) && !flow.tainted[n] && plain(graph, n);
    while plain(graph, at) {
        let (next, factor) = match (graph.opcode(at), graph.deps(at)) {
            (Some(Opcode::Negate), &[x]) => {
                peeled.negative = !peeled.negative;
                (x, None)
            }
            (Some(Opcode::Convert | Opcode::Copy), &[x]) => (x, None),
            (Some(Opcode::Multiply), &[x, y]) if free(y) && flow.tainted[x] => (x, Some((false, y))),
            (Some(Opcode::Multiply), &[y, x]) if free(y) && flow.tainted[x] => (x, Some((false, y))),
            (Some(Opcode::Divide), &[x, y]) if free(y) && flow.tainted[x] => (x, Some((true, y))),
            _ => break,
        };
        peeled.factors.extend(factor);
        at = next;
    }
    peeled.rest = at;
    peeled
}

/// A sum of a direction and something that no data decides.
struct Split {
    direction: NodeId,
    /// Whether the direction is subtracted.
    negative: bool,
    /// The other term, and whether it is subtracted.
    decay: (NodeId, bool),
}

fn split(flow: &Flow<'_, '_>, at: NodeId) -> Option<Split> {
    let graph = flow.graph;
    let &[x, y] = graph.deps(at) else { return None };
    let subtracts = match graph.opcode(at)? {
        Opcode::Add => false,
        Opcode::Subtract => true,
        _ => return None,
    };
    match (flow.tainted[x], flow.tainted[y]) {
        (true, false) if plain(graph, y) => Some(Split { direction: x, negative: false, decay: (y, subtracts) }),
        (false, true) if plain(graph, x) => Some(Split { direction: y, negative: subtracts, decay: (x, false) }),
        _ => None,
    }
}
