//! An update as parts: what is left of the old value, weight decay, learning rate, and what data decides.
//!
//! The new value is a sum of terms that no data decides (the old value, perhaps decayed) and one that data decides: the
//! step. Uniform factors that no data decides (a learning rate, a schedule, a bias correction) are taken off the step from
//! the outside; where a sum with something free of data is met (decoupled weight decay), that stays apart, and factors are
//! taken off its other term. A factor that data decides (the trust ratio of LAMB) stays, with all that is behind it.
//!
//! A term is free of data only where no state of the optimizer is in it: the decayed old value of a moment owes nothing to
//! this step's data, and is no weight decay.

use hlo::Opcode;

use super::flow::Flow;
use super::graph::{Graph, NodeId, Op};
use super::update::{Form, FoundUpdate, strip_guards};
use crate::step::{Factors, Term, UpdateParts};

/// Sums of more terms are not followed.
const MAX_TERMS: usize = 8;

/// [`UpdateParts`] as nodes.
#[derive(Debug, Clone)]
pub(super) struct FoundParts {
    /// What is left of the outer factors: the decay, and the inner factors times the value.
    pub(super) stepped: NodeId,
    /// All that the base is added to.
    pub(super) step: NodeId,
    /// What data decides.
    pub(super) value: NodeId,
    base: Vec<(NodeId, bool)>,
    outer: Peeled,
    decay: Vec<(NodeId, bool)>,
    inner: Peeled,
}

impl FoundParts {
    pub(super) fn to_step(&self, graph: &Graph<'_>) -> UpdateParts {
        let terms = |terms: &[(NodeId, bool)]| {
            terms.iter().map(|&(n, negative)| Term { value: graph.value(n), negative }).collect()
        };
        UpdateParts {
            value: graph.value(self.value),
            base: terms(&self.base),
            outer: self.outer.to_step(graph),
            decay: terms(&self.decay),
            inner: self.inner.to_step(graph),
        }
    }
}

/// Why an update cannot be taken apart.
#[derive(Debug, Clone)]
pub(super) struct Whole {
    pub(super) reason: String,
    /// Whether it is computed in a branch or a loop: only its result can be read.
    pub(super) computed_apart: bool,
}

/// The parts of a parameter's update. `group` are the states that belong to it and `own` those that are it (the parameter
/// itself, its wide copy), by their index among the floats.
///
/// # Errors
///
/// Where it cannot be taken apart, with the reason.
pub(super) fn parts(
    flow: &Flow<'_, '_>,
    update: &FoundUpdate,
    group: &[usize],
    own: &[usize],
) -> Result<FoundParts, Whole> {
    let search = Search { flow, graph: flow.graph, forbidden: forbidden(flow, group, own) };
    let (base, step, subtracted) = match &update.form {
        Form::Add(u) => (vec![(update.old, false)], *u, false),
        Form::Subtract(u) => (vec![(update.old, false)], *u, true),
        Form::Difference(reason) => {
            let (inside, _) = strip_guards(flow.graph, update.new, update.old);
            let sum = flow.graph.through_conversions(inside);
            let (terms, step, subtracted) = search.split(sum);
            if terms.is_empty() {
                let reason = format!("its update cannot be taken apart: {reason}");
                return Err(Whole { reason, computed_apart: !plain(flow.graph, sum) });
            }
            (terms, step, subtracted)
        }
    };
    let mut outer = search.peel(step);
    let (decay, term, negative) = search.split(outer.rest);
    let mut inner = search.peel(term);
    if !plain(flow.graph, inner.rest) {
        let reason = "its update is computed inside a branch or a loop".to_owned();
        return Err(Whole { reason, computed_apart: true });
    }
    outer.negative = outer.negative != subtracted;
    inner.negative = inner.negative != negative;
    Ok(FoundParts { stepped: outer.rest, step, value: inner.rest, base, outer, decay, inner })
}

/// One bit for each float state that no term free of data may hold: all that the optimizer changes from step to step, but for
/// the parameter itself and scalars that it shares with others (a learning rate that is carried as state).
fn forbidden(flow: &Flow<'_, '_>, group: &[usize], own: &[usize]) -> Vec<u64> {
    let mut mask = vec![0_u64; flow.floats.len().div_ceil(64).max(1)];
    for (k, state) in flow.floats.iter().enumerate() {
        let shared = flow.graph.is_scalar(state.old) && !group.contains(&k);
        let stays = state.new == state.old;
        if own.contains(&k) || shared || stays {
            continue;
        }
        if let Some(word) = mask.get_mut(k / 64) {
            *word |= 1 << (k % 64);
        }
    }
    mask
}

/// Whether the value of a node can be read where the update is.
pub(super) fn plain(graph: &Graph<'_>, id: NodeId) -> bool {
    !graph.node(id).inner && matches!(graph.op(id), Op::Hlo(_))
}

/// Factors taken off one product, and what they scale.
#[derive(Debug, Clone)]
pub(super) struct Peeled {
    pub(super) negative: bool,
    /// Whether each divides, and the factor.
    factors: Vec<(bool, NodeId)>,
    rest: NodeId,
}

impl Peeled {
    fn none(rest: NodeId) -> Self {
        Self { negative: false, factors: Vec::new(), rest }
    }

    pub(super) fn to_step(&self, graph: &Graph<'_>) -> Factors {
        let factors = self.factors.iter().map(|&(divides, n)| (divides, graph.value(n))).collect();
        Factors { negative: self.negative, factors }
    }
}

/// Factors of the numerator of a quotient that no data decides; none of anything else.
pub(super) fn buried(flow: &Flow<'_, '_>, at: NodeId) -> Peeled {
    let search = Search { flow, graph: flow.graph, forbidden: Vec::new() };
    match (flow.graph.opcode(at), flow.graph.deps(at)) {
        (Some(Opcode::Divide), &[x, _]) if plain(flow.graph, at) => search.peel(x),
        _ => Peeled::none(at),
    }
}

struct Search<'a, 'g, 'm> {
    flow: &'a Flow<'g, 'm>,
    graph: &'a Graph<'m>,
    /// The float states that no free term may hold, one bit each.
    forbidden: Vec<u64>,
}

impl Search<'_, '_, '_> {
    /// Takes uniform factors off that no data decides.
    fn peel(&self, mut at: NodeId) -> Peeled {
        let mut peeled = Peeled::none(at);
        let tainted = &self.flow.tainted;
        let scales = |factor: NodeId, x: NodeId| {
            self.graph.uniform(factor) && !tainted[factor] && plain(self.graph, factor) && tainted[x]
        };
        while plain(self.graph, at) {
            let (next, factor) = match (self.graph.opcode(at), self.graph.deps(at)) {
                (Some(Opcode::Negate), &[x]) => {
                    peeled.negative = !peeled.negative;
                    (x, None)
                }
                (Some(Opcode::Convert | Opcode::Copy), &[x]) => (x, None),
                (Some(Opcode::Multiply), &[x, y]) if scales(y, x) => (x, Some((false, y))),
                (Some(Opcode::Multiply), &[y, x]) if scales(y, x) => (x, Some((false, y))),
                (Some(Opcode::Divide), &[x, y]) if scales(y, x) => (x, Some((true, y))),
                _ => break,
            };
            peeled.factors.extend(factor);
            at = next;
        }
        peeled.rest = at;
        peeled
    }

    /// A sum as terms that are free of data, and the one that is left; whether each is subtracted.
    fn split(&self, mut at: NodeId) -> (Vec<(NodeId, bool)>, NodeId, bool) {
        let mut terms = Vec::new();
        let mut negative = false;
        while terms.len() < MAX_TERMS && plain(self.graph, at) {
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

    fn free_term(&self, id: NodeId) -> bool {
        let of_optimizer = self.flow.all.reaches_any(&self.forbidden, id);
        !self.flow.tainted[id] && !of_optimizer && plain(self.graph, id)
    }
}
