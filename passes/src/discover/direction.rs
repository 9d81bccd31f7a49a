//! An update as a learning rate times a direction, and the first moment that could take the direction's place.
//!
//! The new value is a sum of terms that no data decides (the old value, perhaps decayed) and one that data decides: the
//! step. Uniform factors that no data decides (a learning rate, a schedule, a bias correction) are taken off the step from
//! the outside; where a sum with something free of data is met (decoupled weight decay), that stays apart, and factors are
//! taken off its other term. What is left is the direction, perhaps with factors inside the numerator of a quotient.

use hlo::Opcode;

use super::flow::{Flow, StateNode};
use super::graph::{Graph, NodeId, Op};
use super::update::{Form, FoundUpdate, strip_guards};
use crate::step::{Direction, DirectionStatus, Factors, Momentum, MomentumStatus, Term};

/// Sums of more terms are not followed.
const MAX_TERMS: usize = 8;

/// The direction of a parameter's update.
pub(super) fn direction(flow: &Flow<'_, '_>, update: &FoundUpdate, momentum: &MomentumStatus) -> DirectionStatus {
    match find(flow, update, momentum) {
        Ok(direction) => DirectionStatus::Found(direction),
        Err(reason) => DirectionStatus::Absent { reason },
    }
}

fn find(flow: &Flow<'_, '_>, update: &FoundUpdate, momentum: &MomentumStatus) -> Result<Direction, String> {
    let moment = match momentum {
        MomentumStatus::Found(found) => match found.as_slice() {
            [one] => moment_of(flow, one)?,
            several => return Err(format!("it has {} first moments, and SGD would go along one", several.len())),
        },
        MomentumStatus::Absent { reason } => return Err(format!("it has no first moment ({reason})")),
    };
    let search = Search { flow, graph: flow.graph, moment };
    let (base, step, subtracted) = match &update.form {
        Form::Add(u) => (vec![(update.old, false)], *u, false),
        Form::Subtract(u) => (vec![(update.old, false)], *u, true),
        Form::Difference(reason) => {
            let (inside, _) = strip_guards(flow.graph, update.new, update.old);
            let (terms, step, subtracted) = search.split(flow.graph.through_conversions(inside));
            if terms.is_empty() {
                return Err(format!("its update cannot be taken apart: {reason}"));
            }
            (terms, step, subtracted)
        }
    };
    let outer = search.peel(step);
    let (decay, term, negative) = search.split(outer.rest);
    let inner = search.peel(term);
    let is_moment = |n: NodeId| flow.graph.through_conversions(n) == flow.graph.through_conversions(moment.1);
    if is_moment(inner.rest) || is_moment(outer.rest) {
        return Err("its update is its first moment already".to_owned());
    }
    if !search.plain(inner.rest) {
        return Err("its update is computed inside a branch or a loop".to_owned());
    }
    // Accumulated micro-batches, or a skip: SGD's update would not know when to be zero.
    let chosen = |n: NodeId| flow.graph.is(flow.graph.through_conversions(n), Opcode::Select);
    if [step, outer.rest, inner.rest].into_iter().any(chosen) {
        return Err("its update is there in some steps only, by a predicate".to_owned());
    }
    let factors = |peeled: &Peeled, flip: bool| Factors {
        negative: peeled.negative != flip,
        factors: peeled.factors.iter().map(|&(divides, n)| (divides, flow.graph.value(n))).collect(),
    };
    let terms = |terms: Vec<(NodeId, bool)>| {
        terms.into_iter().map(|(n, negative)| Term { value: flow.graph.value(n), negative }).collect()
    };
    Ok(Direction {
        value: flow.graph.value(inner.rest),
        buried: factors(&search.buried(inner.rest), false),
        moment: flow.graph.value(moment.1),
        base: terms(base),
        outer: factors(&outer, subtracted),
        decay: terms(decay),
        inner: factors(&inner, negative),
    })
}

/// A first moment as a state, and its new value before guards.
fn moment_of(flow: &Flow<'_, '_>, momentum: &Momentum) -> Result<(StateNode, NodeId), String> {
    let state = flow.states.iter().find(|s| s.pair.input == momentum.input);
    let state = *state.ok_or_else(|| "its first moment is no state of the step".to_owned())?;
    let (inside, _) = strip_guards(flow.graph, state.new, state.old);
    if plain(flow.graph, inside) {
        Ok((state, inside))
    } else {
        Err("its first moment is computed inside a branch".to_owned())
    }
}

/// Whether the value of a node can be read where the update is.
fn plain(graph: &Graph<'_>, id: NodeId) -> bool {
    !graph.node(id).inner && matches!(graph.op(id), Op::Hlo(_))
}

/// Factors taken off one product, and what they scale.
struct Peeled {
    negative: bool,
    /// Whether each divides, and the factor.
    factors: Vec<(bool, NodeId)>,
    rest: NodeId,
}

struct Search<'a, 'g, 'm> {
    flow: &'a Flow<'g, 'm>,
    graph: &'a Graph<'m>,
    moment: (StateNode, NodeId),
}

impl Search<'_, '_, '_> {
    fn plain(&self, id: NodeId) -> bool {
        plain(self.graph, id)
    }

    /// Takes uniform factors off that no data decides.
    fn peel(&self, mut at: NodeId) -> Peeled {
        let mut peeled = Peeled { negative: false, factors: Vec::new(), rest: at };
        let tainted = &self.flow.tainted;
        let free = |n: NodeId| self.graph.uniform(n) && !tainted[n] && self.plain(n);
        while self.plain(at) && at != self.moment.1 {
            let (next, factor) = match (self.graph.opcode(at), self.graph.deps(at)) {
                (Some(Opcode::Negate), &[x]) => {
                    peeled.negative = !peeled.negative;
                    (x, None)
                }
                (Some(Opcode::Convert | Opcode::Copy), &[x]) => (x, None),
                (Some(Opcode::Multiply), &[x, y]) if free(y) && tainted[x] => (x, Some((false, y))),
                (Some(Opcode::Multiply), &[y, x]) if free(y) && tainted[x] => (x, Some((false, y))),
                (Some(Opcode::Divide), &[x, y]) if free(y) && tainted[x] => (x, Some((true, y))),
                _ => break,
            };
            peeled.factors.extend(factor);
            at = next;
        }
        peeled.rest = at;
        peeled
    }

    /// Factors of the numerator of a quotient; none of anything else.
    fn buried(&self, at: NodeId) -> Peeled {
        match (self.graph.opcode(at), self.graph.deps(at)) {
            (Some(Opcode::Divide), &[x, _]) if self.plain(at) => self.peel(x),
            _ => Peeled { negative: false, factors: Vec::new(), rest: at },
        }
    }

    /// A sum as terms that neither data nor the moment decides, and the one that is left; whether each is subtracted.
    fn split(&self, mut at: NodeId) -> (Vec<(NodeId, bool)>, NodeId, bool) {
        let mut terms = Vec::new();
        let mut negative = false;
        while terms.len() < MAX_TERMS && self.plain(at) && at != self.moment.1 {
            let &[x, y] = self.graph.deps(at) else { break };
            let subtracts = match self.graph.opcode(at) {
                Some(Opcode::Add) => false,
                Some(Opcode::Subtract) => true,
                _ => break,
            };
            match (self.free_term(x), self.free_term(y)) {
                (false, true) => {
                    terms.push((y, subtracts != negative));
                    at = x;
                }
                (true, false) => {
                    terms.push((x, negative));
                    negative = negative != subtracts;
                    at = y;
                }
                _ => break,
            }
        }
        (terms, at, negative)
    }

    /// Whether a term depends on neither data nor the moment, whose decayed old value is no weight decay.
    fn free_term(&self, id: NodeId) -> bool {
        let index = self.flow.floats.iter().position(|s| s.old == self.moment.0.old);
        let of_moment = index.is_some_and(|i| self.flow.all.reaches(i, id));
        !self.flow.tainted[id] && !of_moment && self.plain(id)
    }
}
