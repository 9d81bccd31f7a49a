//! How a parameter's new value comes about, and the recurrences of its moments.

use hlo::Opcode;

use super::flow::Flow;
use super::gradient::Found;
use super::graph::{Graph, NodeId, Op};
use crate::step::{MomentForm, MomentOf, Update, UpdateForm};

/// An update as nodes.
#[derive(Debug, Clone)]
pub(super) struct FoundUpdate {
    pub(super) form: Form,
    pub(super) old: NodeId,
    pub(super) new: NodeId,
    pub(super) guards: Vec<NodeId>,
}

/// [`UpdateForm`] as nodes.
#[derive(Debug, Clone)]
pub(super) enum Form {
    Add(NodeId),
    Subtract(NodeId),
    Difference(String),
}

impl FoundUpdate {
    pub(super) fn into_step(self, graph: &Graph<'_>) -> Update {
        let value = |id| graph.value(id);
        Update {
            form: match self.form {
                Form::Add(u) => UpdateForm::Add { u: value(u) },
                Form::Subtract(u) => UpdateForm::Subtract { u: value(u) },
                Form::Difference(reason) => UpdateForm::Difference { reason },
            },
            old: value(self.old),
            new: value(self.new),
            guards: self.guards.into_iter().map(value).collect(),
        }
    }
}

/// Strips selects and phis that choose between a new value and the old one; returns what is inside and the guards.
pub(super) fn strip_guards(graph: &Graph<'_>, new: NodeId, old: NodeId) -> (NodeId, Vec<NodeId>) {
    let mut guards = Vec::new();
    let mut at = new;
    loop {
        match (graph.op(at), graph.deps(at)) {
            (Op::Hlo(Opcode::Select) | Op::Phi, &[predicate, x, y]) if graph.uniform(predicate) => {
                let is_old = |n: NodeId| graph.through_conversions(n) == old;
                let inside = match (is_old(x), is_old(y)) {
                    (true, false) => y,
                    (false, true) => x,
                    _ => return (at, guards),
                };
                guards.push(at);
                at = inside;
            }
            _ if graph.is_conversion(at) => {
                let Some(inside) = graph.first_dep(at) else {
                    return (at, guards);
                };
                // A conversion is looked through only where a guard stands behind it.
                if !matches!(graph.op(graph.through_conversions(inside)), Op::Hlo(Opcode::Select) | Op::Phi) {
                    return (at, guards);
                }
                at = inside;
            }
            _ => return (at, guards),
        }
    }
}

/// The form of `old -> new`.
pub(super) fn update(flow: &Flow<'_, '_>, old: NodeId, new: NodeId) -> FoundUpdate {
    let graph = flow.graph;
    let (inside, guards) = strip_guards(graph, new, old);
    let is_old = |n: NodeId| graph.through_conversions(n) == old;
    // A value inside a branch, or one leaf of a loop, cannot be taken apart in place.
    let usable = |n: NodeId| !graph.node(n).inner && matches!(graph.op(n), Op::Hlo(_));
    let sum = graph.through_conversions(inside);
    let form = match (graph.opcode(sum), graph.pair(sum)) {
        _ if !usable(sum) => Form::Difference("the new value is computed inside a branch or a loop".into()),
        (Some(Opcode::Add), Some((x, y))) if is_old(x) && !is_old(y) => Form::Add(y),
        (Some(Opcode::Add), Some((x, y))) if is_old(y) && !is_old(x) => Form::Add(x),
        (Some(Opcode::Subtract), Some((x, y))) if is_old(x) && !is_old(y) => Form::Subtract(y),
        (opcode, _) => Form::Difference(format!(
            "the new value is a {} and not the old one plus something",
            opcode.map_or("choice", Opcode::name)
        )),
    };
    let taken_apart = !matches!(form, Form::Difference(_));
    let (new, guards) = if taken_apart { (sum, guards) } else { (new, Vec::new()) };
    FoundUpdate { form, old, new, guards }
}

/// A moment as nodes.
#[derive(Debug, Clone)]
pub(super) struct FoundMoment {
    pub(super) form: MomentForm,
    pub(super) of: MomentOf,
    pub(super) decay: Option<f64>,
}

/// One term of a linear form: constant factor, other uniform factors with their operation, what they scale.
#[derive(Debug, Clone)]
struct Term {
    constant: f64,
    factors: Vec<(Opcode, NodeId)>,
    scaled: NodeId,
}

/// Terms beyond this make a form "not linear".
const MAX_TERMS: usize = 16;
/// So do more visits than this: shared subexpressions are expanded once per path.
const MAX_VISITS: usize = 512;
const MAX_DEPTH: usize = 48;

struct Expansion<'a, 'f, 'g, 'm> {
    flow: &'a Flow<'g, 'm>,
    found: Option<&'f Found>,
    state: NodeId,
    /// Index of the state among the floats.
    index: usize,
    own: Vec<Term>,
    other: Vec<Term>,
    visits: usize,
}

impl Expansion<'_, '_, '_, '_> {
    fn depends(&self, id: NodeId) -> bool {
        self.flow.all.reaches(self.index, id)
    }

    /// Expands `id` as a linear form in the state; `false` where it is none.
    fn expand(&mut self, id: NodeId, constant: f64, factors: &[(Opcode, NodeId)], depth: usize) -> bool {
        let graph = self.flow.graph;
        if id == self.state {
            self.own.push(Term { constant, factors: factors.to_vec(), scaled: id });
            return true;
        }
        if !self.depends(id) {
            let term = self.peel(id, constant, factors);
            self.other.push(term);
            return self.other.len() <= MAX_TERMS;
        }
        self.visits += 1;
        if depth > MAX_DEPTH || self.visits > MAX_VISITS {
            return false;
        }
        match (graph.opcode(id), graph.deps(id)) {
            (Some(Opcode::Convert | Opcode::Copy | Opcode::Bitcast | Opcode::ReducePrecision), &[x]) => {
                self.expand(x, constant, factors, depth + 1)
            }
            (Some(Opcode::Negate), &[x]) => self.expand(x, -constant, factors, depth + 1),
            (Some(Opcode::Add), &[x, y]) => {
                self.expand(x, constant, factors, depth + 1) && self.expand(y, constant, factors, depth + 1)
            }
            (Some(Opcode::Subtract), &[x, y]) => {
                self.expand(x, constant, factors, depth + 1) && self.expand(y, -constant, factors, depth + 1)
            }
            (Some(opcode @ (Opcode::Multiply | Opcode::Divide)), &[x, y]) => {
                let (x, y) = if opcode == Opcode::Multiply && self.depends(y) { (y, x) } else { (x, y) };
                if self.depends(y) || !graph.uniform(y) {
                    return false;
                }
                let (constant, factors) = scaled(graph, opcode, y, constant, factors);
                self.expand(x, constant, &factors, depth + 1)
            }
            _ => false,
        }
    }

    /// Strips untainted uniform factors off a term that does not depend on the state.
    fn peel(&self, mut id: NodeId, mut constant: f64, factors: &[(Opcode, NodeId)]) -> Term {
        let (flow, graph) = (self.flow, self.flow.graph);
        let mut factors = factors.to_vec();
        loop {
            if self.found.is_some_and(|f| [f.eff, f.raw, f.preclip].contains(&id)) {
                break;
            }
            match (graph.opcode(id), graph.deps(id)) {
                (Some(Opcode::Negate), &[x]) => {
                    constant = -constant;
                    id = x;
                }
                (Some(Opcode::Convert | Opcode::Copy), &[x]) => id = x,
                (Some(opcode @ (Opcode::Multiply | Opcode::Divide)), &[x, y]) => {
                    let plain = |n: NodeId| graph.uniform(n) && !flow.tainted[n];
                    let (x, y) = if opcode == Opcode::Multiply && plain(x) && !plain(y) { (y, x) } else { (x, y) };
                    if !plain(y) || !flow.tainted[x] {
                        break;
                    }
                    (constant, factors) = scaled(graph, opcode, y, constant, &factors);
                    id = x;
                }
                _ => break,
            }
        }
        Term { constant, factors, scaled: id }
    }
}

fn scaled(
    graph: &Graph<'_>,
    opcode: Opcode,
    by: NodeId,
    constant: f64,
    factors: &[(Opcode, NodeId)],
) -> (f64, Vec<(Opcode, NodeId)>) {
    let mut factors = factors.to_vec();
    match graph.constant(by) {
        Some(k) if opcode == Opcode::Multiply => (constant * k, factors),
        Some(k) if k != 0.0 => (constant / k, factors),
        _ => {
            factors.push((opcode, graph.strip_uniform(by)));
            (constant, factors)
        }
    }
}

/// The recurrence of one state of a parameter; `index` is the state's among the floats.
pub(super) fn moment(flow: &Flow<'_, '_>, found: Option<&Found>, index: usize) -> FoundMoment {
    let graph = flow.graph;
    let unknown = FoundMoment { form: MomentForm::Nonlinear, of: MomentOf::Other, decay: None };
    let Some(state) = flow.floats.get(index) else {
        return unknown;
    };
    let (inside, _) = strip_guards(graph, state.new, state.old);
    let mut expansion =
        Expansion { flow, found, state: state.old, index, own: Vec::new(), other: Vec::new(), visits: 0 };
    if !expansion.expand(inside, 1.0, &[], 0) || expansion.own.is_empty() {
        return unknown;
    }
    let Expansion { own, other, .. } = expansion;
    let mut targets: Vec<NodeId> = other.iter().map(|t| t.scaled).collect();
    targets.sort_unstable();
    targets.dedup();
    let decay = total(&own);
    let &[target] = targets.as_slice() else {
        return FoundMoment { form: MomentForm::OtherLinear, of: MomentOf::Other, decay };
    };
    // Coefficients are rounded to the state's own type.
    let tolerance = match graph.element_type(state.old).bits() {
        16 => 2e-2,
        8 => 2e-1,
        _ => 1e-5,
    };
    let form = match (decay, total(&other)) {
        (Some(a), Some(b)) if (a + b - 1.0).abs() < tolerance => MomentForm::Ema,
        (_, Some(b)) if (b - 1.0).abs() < tolerance => MomentForm::HeavyBall,
        (Some(_), Some(_)) => MomentForm::Scaled,
        _ if complementary(graph, &own, &other) => MomentForm::Ema,
        _ => MomentForm::Scaled,
    };
    FoundMoment { form, of: accumulated(flow, found, target), decay }
}

/// Whether the state `index` becomes `a·s + x` with `x = b·g` and `a + b = 1`, where `factor` is `b` and no constant.
pub(super) fn is_average_by(flow: &Flow<'_, '_>, found: &Found, index: usize, factor: NodeId) -> bool {
    let graph = flow.graph;
    let Some(state) = flow.floats.get(index) else { return false };
    let (inside, _) = strip_guards(graph, state.new, state.old);
    let (own, other) = (Vec::new(), Vec::new());
    let mut expansion = Expansion { flow, found: Some(found), state: state.old, index, own, other, visits: 0 };
    if !expansion.expand(inside, 1.0, &[], 0) {
        return false;
    }
    match (expansion.own.as_slice(), expansion.other.as_slice()) {
        ([s], [x]) => match (s.factors.as_slice(), x.factors.as_slice()) {
            (&[(Opcode::Multiply, decay)], []) => {
                let plain = s.constant == 1.0 && x.constant == 1.0 && x.scaled == found.eff;
                plain && (one_minus(graph, factor, decay) || one_minus(graph, decay, factor))
            }
            _ => false,
        },
        _ => false,
    }
}

/// The sum of constant coefficients; `None` where one is not constant.
fn total(terms: &[Term]) -> Option<f64> {
    terms.iter().map(|t| t.factors.is_empty().then_some(t.constant)).sum()
}

/// Whether `a` is computed as `1 - b`.
pub(super) fn one_minus(graph: &Graph<'_>, a: NodeId, b: NodeId) -> bool {
    let a = graph.strip_uniform(a);
    graph.is(a, Opcode::Subtract)
        && graph.pair(a).is_some_and(|(one, x)| {
            graph.constant(one) == Some(1.0) && graph.strip_uniform(x) == graph.strip_uniform(b)
        })
}

/// Dynamic coefficients `b` and `1 - b`, in either order, or `s + (1 - b)·(x - s)`.
fn complementary(graph: &Graph<'_>, own: &[Term], other: &[Term]) -> bool {
    match (own, other) {
        ([a], [b]) => match (a.factors.as_slice(), b.factors.as_slice()) {
            (&[(Opcode::Multiply, x)], &[(Opcode::Multiply, y)]) => {
                a.constant == 1.0 && b.constant == 1.0 && (one_minus(graph, x, y) || one_minus(graph, y, x))
            }
            _ => false,
        },
        ([a, b], [x]) => {
            let (plain, scaled) = if a.factors.is_empty() { (a, b) } else { (b, a) };
            plain.factors.is_empty()
                && plain.constant == 1.0
                && scaled.constant == -1.0
                && !scaled.factors.is_empty()
                && scaled.factors == x.factors
        }
        _ => false,
    }
}

fn accumulated(flow: &Flow<'_, '_>, found: Option<&Found>, target: NodeId) -> MomentOf {
    let graph = flow.graph;
    let bare = graph.through_conversions(target);
    let is_gradient =
        |n: NodeId| found.is_some_and(|f| [f.eff, f.raw, f.preclip].map(|g| graph.through_conversions(g)).contains(&n));
    if is_gradient(bare) {
        return MomentOf::Gradient;
    }
    let squared = match (graph.opcode(bare), graph.deps(bare)) {
        (Some(Opcode::Multiply), &[x, y]) => {
            let unsigned = |n: NodeId| {
                if graph.is(n, Opcode::Abs) { graph.first_dep(n).unwrap_or(n) } else { n }
            };
            unsigned(graph.through_conversions(x)) == unsigned(graph.through_conversions(y))
        }
        (Some(Opcode::Power), &[_, exponent]) => graph.constant(exponent) == Some(2.0),
        _ => false,
    };
    if squared { MomentOf::GradientSquared } else { MomentOf::Other }
}
