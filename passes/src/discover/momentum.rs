//! Momentum: which states of a parameter are first moments, and where their coefficients stand.
//!
//! A state m is a *first moment* when m' = b·m + c·x with a scalar b below 1 that no
//! data decides, x follows the sign of the gradient ([`Parity`]), and the update follows
//! that of m. So second moments, sums, iterates, averages of parameters, accumulated
//! micro-batches and means that serve a variance alone are none. Where c is 1 - b, m is
//! an average, and both belong to the coefficient; else it is a trace.
//!
//! What the update looks at beyond m' may hold the coefficient once more: x + b·m'
//! (Nesterov) the same one, b·m + (1 - b)·x (Lion) one of its own.

use std::collections::BTreeSet;

use hlo::{ComputationId, InstructionId, Opcode};

use super::classify::wraps;
use super::flow::{Flow, StateNode};
use super::gradient::Found;
use super::graph::{Graph, NodeId, Op};
use super::parity::{Parity, parity};
use super::update::{one_minus, strip_guards};
use crate::step::{
    Coefficient, CoefficientPart, CoefficientPlace, CoefficientUse, Momentum, MomentumForm, MomentumStatus,
};

/// Terms beyond this make a form "not linear", as do visits and depth beyond theirs.
const MAX_TERMS: usize = 8;
const MAX_VISITS: usize = 128;
const MAX_DEPTH: usize = 24;

/// The momentum of a parameter: `old` and `new` are its values (of its master, where it has one), `group` its states
/// as indices into [`Flow::floats`].
pub(super) fn momentum(
    flow: &Flow<'_, '_>,
    found: &Found,
    (old, new): (NodeId, NodeId),
    group: &[usize],
) -> MomentumStatus {
    let search = |index: usize, signed: &[NodeId]| {
        let state = *flow.floats.get(index).filter(|s| flow.data[s.new])?;
        Some(Search { flow, found, parameter: old, updated: new, index, state, signed: signed.to_vec() })
    };
    // A gradient of the other sign, always, would have turned these states over as well.
    let mut signed = vec![found.eff];
    signed.extend(group.iter().filter_map(|&s| search(s, &[found.eff])).filter(Search::follows).map(|s| s.state.old));
    let mut moments = Vec::new();
    let mut reasons = Vec::new();
    for search in group.iter().filter_map(|&s| search(s, &signed)) {
        match search.momentum() {
            Ok(momentum) => moments.push(momentum),
            Err(reason) => reasons.push(format!("{}: {reason}", super::display_name(flow.graph, search.state.old))),
        }
    }
    if !moments.is_empty() {
        return MomentumStatus::Found(moments);
    }
    MomentumStatus::Absent {
        reason: if reasons.is_empty() {
            "the optimizer keeps no state of it from one gradient to the next".to_owned()
        } else {
            reasons.join("; ")
        },
    }
}

/// An operand that multiplies, or divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Factor {
    user: NodeId,
    operand: usize,
    divides: bool,
}

/// One term of a linear form.
#[derive(Debug, Clone)]
struct Term {
    positive: bool,
    /// From the root downwards.
    factors: Vec<Factor>,
    /// How many of them lie between the root and the gradient; the others are the gradient's own, as far as is known.
    before_gradient: usize,
    /// Nodes from the root (the first) to what is scaled (not included).
    path: Vec<NodeId>,
    scaled: NodeId,
}

/// A linear form, by what depends on the moment and what does not.
#[derive(Debug, Default)]
struct Linear {
    own: Vec<Term>,
    other: Vec<Term>,
    visits: usize,
}

/// Which factors of a linear form are b and 1 - b.
#[derive(Debug)]
struct Recurrence {
    form: MomentumForm,
    decay: Vec<Factor>,
    complement: Vec<Factor>,
}

/// A coefficient as nodes.
#[derive(Debug)]
struct Place {
    place: CoefficientPlace,
    decay: Option<NodeId>,
    complement: Option<NodeId>,
    uses: Vec<Use>,
}

/// [`CoefficientUse`] as nodes.
#[derive(Debug)]
struct Use {
    factor: Factor,
    part: CoefficientPart,
    readers: BTreeSet<NodeId>,
    /// What lies above the product on the way to the moment.
    between: BTreeSet<NodeId>,
}

/// The search for one state's coefficients.
struct Search<'a, 'g, 'm> {
    flow: &'a Flow<'g, 'm>,
    found: &'a Found,
    parameter: NodeId,
    updated: NodeId,
    /// Index of the state among the floats.
    index: usize,
    state: StateNode,
    /// The gradient, and the states known to follow its sign.
    signed: Vec<NodeId>,
}

impl Search<'_, '_, '_> {
    fn momentum(&self) -> Result<Momentum, String> {
        let root = self.root();
        let linear = self.expand(root, &[self.state.old])?;
        let recurrence = self.recurrence(&linear)?;
        self.in_range(&recurrence)?;
        self.of_gradient(&linear)?;
        self.steers(root)?;
        let mut places = vec![self.place(CoefficientPlace::Moment, &recurrence, &linear)];
        let mut tree: BTreeSet<NodeId> = paths(&linear);
        for (recurrence, linear) in self.look_aheads(root, &linear, &recurrence) {
            tree.extend(paths(&linear));
            let place = self.place(CoefficientPlace::LookAhead, &recurrence, &linear);
            merge(&mut places, place);
        }
        self.reachable(&places, &tree)?;
        Ok(Momentum {
            input: self.state.pair.input,
            form: recurrence.form,
            coefficients: places.into_iter().map(|p| self.coefficient(p)).collect(),
        })
    }

    /// Whether the state follows the sign of the gradient, whatever it is for.
    fn follows(&self) -> bool {
        self.expand(self.root(), &[self.state.old]).is_ok_and(|linear| self.of_gradient(&linear).is_ok())
    }

    /// The new value, before guards and narrowing.
    fn root(&self) -> NodeId {
        let graph = self.flow.graph;
        graph.through_conversions(strip_guards(graph, self.state.new, self.state.old).0)
    }

    fn depends(&self, id: NodeId) -> bool {
        self.flow.all.reaches(self.index, id)
    }

    /// `root` as a linear form in `own`.
    fn expand(&self, root: NodeId, own: &[NodeId]) -> Result<Linear, String> {
        let mut linear = Linear::default();
        let start = Term { positive: true, factors: Vec::new(), before_gradient: 0, path: Vec::new(), scaled: root };
        if self.expand_into(&mut linear, start, own) && !linear.own.is_empty() {
            return Ok(linear);
        }
        let graph = self.flow.graph;
        Err(match graph.op(root) {
            Op::Phi | Op::While => "its new value is computed inside a branch or a loop".to_owned(),
            _ if linear.own.is_empty() && linear.visits < MAX_VISITS && !self.depends(root) => {
                "its new value does not depend on the old one".to_owned()
            }
            _ => "its new value is no number times the old one and something else".to_owned(),
        })
    }

    /// Adds the terms of `term.scaled`, all scaled as `term` is; `false` where there is no linear form.
    fn expand_into(&self, linear: &mut Linear, term: Term, own: &[NodeId]) -> bool {
        let graph = self.flow.graph;
        let id = term.scaled;
        if own.contains(&id) {
            linear.own.push(term);
            return linear.own.len() <= MAX_TERMS;
        }
        if !self.depends(id) {
            linear.other.push(self.peel(term));
            return linear.other.len() <= MAX_TERMS;
        }
        linear.visits += 1;
        if term.path.len() > MAX_DEPTH || linear.visits > MAX_VISITS {
            return false;
        }
        let onward = |scaled, factor: Option<Factor>, negated: bool| {
            let mut next = term.clone();
            next.path.push(id);
            next.factors.extend(factor);
            next.positive ^= negated;
            next.scaled = scaled;
            next
        };
        match (graph.opcode(id), graph.deps(id)) {
            (Some(Opcode::Convert | Opcode::Copy | Opcode::Bitcast | Opcode::ReducePrecision), &[x]) => {
                self.expand_into(linear, onward(x, None, false), own)
            }
            (Some(Opcode::Negate), &[x]) => self.expand_into(linear, onward(x, None, true), own),
            (Some(opcode @ (Opcode::Add | Opcode::Subtract)), &[x, y]) => {
                self.expand_into(linear, onward(x, None, false), own)
                    && self.expand_into(linear, onward(y, None, opcode == Opcode::Subtract), own)
            }
            (Some(opcode @ (Opcode::Multiply | Opcode::Divide)), &[x, y]) => {
                let swapped = opcode == Opcode::Multiply && self.depends(y);
                let (x, y) = if swapped { (y, x) } else { (x, y) };
                if self.depends(y) || !graph.uniform(y) || self.flow.tainted[y] {
                    return false;
                }
                let factor = Factor { user: id, operand: usize::from(!swapped), divides: opcode == Opcode::Divide };
                self.expand_into(linear, onward(x, Some(factor), false), own)
            }
            _ => false,
        }
    }

    /// Takes the factors that no data decides off a term that does not depend on the moment.
    fn peel(&self, mut term: Term) -> Term {
        let (flow, graph) = (self.flow, self.flow.graph);
        let mut gradient = None;
        let mut id = term.scaled;
        loop {
            if gradient.is_none() && self.is_gradient(id) {
                gradient = Some(id);
                term.before_gradient = term.factors.len();
            }
            let (next, factor) = match (graph.opcode(id), graph.deps(id)) {
                (Some(Opcode::Negate), &[x]) => {
                    term.positive = !term.positive;
                    (x, None)
                }
                (Some(Opcode::Convert | Opcode::Copy), &[x]) => (x, None),
                (Some(opcode @ (Opcode::Multiply | Opcode::Divide)), &[x, y]) => {
                    let plain = |n: NodeId| graph.uniform(n) && !flow.tainted[n];
                    let swapped = opcode == Opcode::Multiply && plain(x) && !plain(y);
                    let (x, y) = if swapped { (y, x) } else { (x, y) };
                    if !plain(y) || !flow.tainted[x] {
                        break;
                    }
                    let divides = opcode == Opcode::Divide;
                    (x, Some(Factor { user: id, operand: usize::from(!swapped), divides }))
                }
                _ => break,
            };
            term.path.push(id);
            term.factors.extend(factor);
            id = next;
        }
        if gradient.is_none() {
            term.before_gradient = term.factors.len();
        }
        term.scaled = gradient.unwrap_or(id);
        term
    }

    fn is_gradient(&self, id: NodeId) -> bool {
        [self.found.eff, self.found.preclip, self.found.raw].contains(&id)
    }

    /// The coefficient in a linear form.
    fn recurrence(&self, linear: &Linear) -> Result<Recurrence, String> {
        let (own, other) = (&linear.own, &linear.other);
        let ema = |decay, complement| Recurrence { form: MomentumForm::Ema, decay, complement };
        match own.as_slice() {
            [a] => {
                if a.factors.is_empty() {
                    return Err("it keeps its old value whole: a sum or an iterate".to_owned());
                }
                if !a.positive {
                    return Err("its old value changes its sign".to_owned());
                }
                let factors: Vec<Factor> = a.factors.iter().copied().filter(|f| !f.divides).collect();
                for &b in &factors {
                    let complement: Option<Vec<Factor>> = other.iter().map(|t| self.complement(b, t)).collect();
                    if let Some(complement) = complement.filter(|c| !c.is_empty()) {
                        return Ok(ema(vec![b], complement));
                    }
                    // x - b·(x - m)
                    if let [x, y] = other.as_slice() {
                        let (whole, part) = if x.factors.contains(&b) { (y, x) } else { (x, y) };
                        let same = whole.scaled == part.scaled && whole.positive && !part.positive;
                        if same && part.factors.contains(&b) && !whole.factors.contains(&b) {
                            return Ok(ema(vec![b], Vec::new()));
                        }
                    }
                }
                // What scales both sides is no coefficient, unless there is no other.
                let shared = |f: &&Factor| !other.iter().any(|t| t.factors.contains(f));
                let alone: Vec<Factor> = factors.iter().filter(shared).copied().collect();
                match (alone.as_slice(), factors.as_slice()) {
                    (&[b], _) | (&[], &[b]) => {
                        Ok(Recurrence { form: MomentumForm::HeavyBall, decay: vec![b], complement: Vec::new() })
                    }
                    _ => Err("its coefficient is a product of several numbers".to_owned()),
                }
            }
            // m + k·(x - m)
            [a, b] => {
                let (whole, part) = if a.factors.is_empty() { (a, b) } else { (b, a) };
                let plain = whole.factors.is_empty() && whole.positive && !part.positive;
                let both = |f: &&Factor| !f.divides && other.iter().all(|t| t.positive && t.factors.contains(f));
                match part.factors.iter().find(both) {
                    Some(&k) if plain && !other.is_empty() => Ok(ema(Vec::new(), vec![k])),
                    _ => Err("its old value has more than one coefficient".to_owned()),
                }
            }
            _ => Err("its old value has more than one coefficient".to_owned()),
        }
    }

    /// The factor of `term` that is 1 - b.
    fn complement(&self, b: Factor, term: &Term) -> Option<Factor> {
        let (graph, (of_b, tolerance)) = (self.flow.graph, (self.operand(b), self.tolerance(b)));
        // A constant may happen to be 1 - b; a difference from one, hardly. So constants beyond the gradient count only
        // where discovery found them to complete an average.
        let completes = self.found.constant_scale.as_ref().map(|s| s.factor);
        term.factors.iter().enumerate().find_map(|(i, &c)| {
            let of_c = self.operand(c);
            if c.divides || c == b {
                return None;
            }
            let fits = match (graph.constant(of_b), graph.constant(of_c)) {
                (Some(x), Some(y)) => {
                    let told = i < term.before_gradient || completes.is_some_and(|k| (k - y).abs() < tolerance);
                    told && term.positive && (x + y - 1.0).abs() < tolerance
                }
                _ => one_minus(graph, of_b, of_c) || one_minus(graph, of_c, of_b),
            };
            fits.then_some(c)
        })
    }

    fn operand(&self, factor: Factor) -> NodeId {
        self.flow.graph.deps(factor.user).get(factor.operand).copied().unwrap_or(factor.user)
    }

    /// Coefficients are rounded to their own type.
    fn tolerance(&self, factor: Factor) -> f64 {
        if self.flow.graph.element_type(self.operand(factor)).bits() <= 16 { 2e-2 } else { 1e-5 }
    }

    /// b of a recurrence, where it is a constant.
    fn constant(&self, recurrence: &Recurrence) -> Option<f64> {
        let graph = self.flow.graph;
        match (recurrence.decay.first(), recurrence.complement.first()) {
            (Some(&b), _) => graph.constant(self.operand(b)),
            (None, Some(&k)) => graph.constant(self.operand(k)).map(|k| 1.0 - k),
            (None, None) => None,
        }
    }

    /// Whether b remembers, and is no count in disguise.
    fn in_range(&self, recurrence: &Recurrence) -> Result<(), String> {
        let (flow, graph) = (self.flow, self.flow.graph);
        match self.constant(recurrence) {
            Some(b) if b >= 1.0 => return Err("it keeps its old value whole: a sum or an iterate".to_owned()),
            Some(b) if b <= 0.0 => return Err("it keeps nothing of its old value".to_owned()),
            Some(_) => return Ok(()),
            None => {}
        }
        let Some(&factor) = recurrence.decay.first().or(recurrence.complement.first()) else { return Ok(()) };
        let mut stack = vec![self.operand(factor)];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            let counter = flow.state(id).filter(|_| !graph.is_floating(id));
            if counter.is_some_and(|s| wraps(graph, s)) {
                return Err(format!("{} decides when it starts anew: it accumulates", graph.display(id)));
            }
            stack.extend(graph.deps(id));
        }
        Ok(())
    }

    /// Whether the moment takes in the gradient, by its sign, and nothing that is a parameter.
    fn of_gradient(&self, linear: &Linear) -> Result<(), String> {
        let graph = self.flow.graph;
        if linear.other.iter().any(|t| self.carries_parameter(t.scaled)) {
            return Err("it averages values of the parameter".to_owned());
        }
        let of = |t: &Term| if self.is_gradient(t.scaled) { Parity::Odd } else { self.in_gradient(t.scaled) };
        match linear.other.iter().map(of).reduce(Parity::plus) {
            Some(Parity::Odd | Parity::Affine) => Ok(()),
            Some(Parity::Even) => Err("it accumulates squares of the gradient: a second moment".to_owned()),
            Some(Parity::Neither) => {
                let names: Vec<_> = linear.other.iter().map(|t| graph.display(t.scaled)).collect();
                Err(format!("it accumulates {}, which does not follow the sign of the gradient", names.join(" and ")))
            }
            Some(Parity::Constant) | None => Err("it does not accumulate the gradient".to_owned()),
        }
    }

    fn in_gradient(&self, id: NodeId) -> Parity {
        parity(self.flow.graph, &self.signed, id)
    }

    /// Whether the parameter's own value is in `id`, whole.
    fn carries_parameter(&self, id: NodeId) -> bool {
        let graph = self.flow.graph;
        let mut stack = vec![id];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if id == self.parameter {
                return true;
            }
            if !seen.insert(id) || self.is_gradient(id) {
                continue;
            }
            match graph.op(id) {
                Op::Hlo(Opcode::Add | Opcode::Subtract | Opcode::Select) | Op::Phi => {
                    stack.extend(graph.data_deps(id));
                }
                _ if graph.is_conversion(id) => stack.extend(graph.deps(id)),
                _ => {}
            }
        }
        false
    }

    /// Whether the update follows the sign of the moment; a mean that a variance is centred by does not.
    fn steers(&self, root: NodeId) -> Result<(), String> {
        match parity(self.flow.graph, &[self.state.old, root, self.state.new], self.updated) {
            Parity::Constant => Err("no update reads it".to_owned()),
            Parity::Even => Err("the update depends on its square alone: it centres a variance".to_owned()),
            _ => Ok(()),
        }
    }

    /// Sums beyond the moment in which its coefficient stands again, or one of their own for its old value.
    fn look_aheads(&self, root: NodeId, moment: &Linear, recurrence: &Recurrence) -> Vec<(Recurrence, Linear)> {
        let graph = self.flow.graph;
        let own = [root, self.state.new, self.state.old];
        let inside = paths(moment);
        let taken_in: BTreeSet<NodeId> = moment.other.iter().map(|t| graph.through_conversions(t.scaled)).collect();
        let mut found = Vec::new();
        let mut open: Vec<NodeId> = own.to_vec();
        let mut seen: BTreeSet<NodeId> = inside.clone();
        while let Some(id) = open.pop() {
            for &user in graph.users(id) {
                if graph.dims(user) != graph.dims(self.state.old) || !seen.insert(user) || seen.len() > MAX_VISITS {
                    continue;
                }
                match graph.opcode(user) {
                    Some(Opcode::Add | Opcode::Subtract) => {
                        let Ok(linear) = self.expand(user, &own) else { continue };
                        let sums_up = |t: &Term| taken_in.contains(&graph.through_conversions(t.scaled));
                        match self.look_ahead(&linear, recurrence).filter(|_| linear.other.iter().any(sums_up)) {
                            Some(again) => found.push((again, linear)),
                            None => open.push(user),
                        }
                    }
                    Some(Opcode::Multiply | Opcode::Divide | Opcode::Negate) => open.push(user),
                    _ if graph.is_conversion(user) => open.push(user),
                    _ => {}
                }
            }
        }
        found
    }

    /// The coefficient in a sum of m' (the moment's own) or of m (one of its own) and something else.
    fn look_ahead(&self, linear: &Linear, moment: &Recurrence) -> Option<Recurrence> {
        if linear.own.iter().all(|t| t.scaled == self.state.old) {
            return self.recurrence(linear).ok().filter(|r| r.form == MomentumForm::Ema && self.in_range(r).is_ok());
        }
        let [next] = linear.own.as_slice() else { return None };
        let b = next.factors.iter().copied().find(|&f| !f.divides && self.same(f, moment))?;
        let complement: Vec<Factor> = linear.other.iter().filter_map(|t| self.complement(b, t)).collect();
        Some(Recurrence { form: moment.form, decay: vec![b], complement })
    }

    /// Whether a factor is the coefficient of the moment.
    fn same(&self, factor: Factor, moment: &Recurrence) -> bool {
        let graph = self.flow.graph;
        let operand = self.operand(factor);
        if let (Some(x), Some(y)) = (graph.constant(operand), self.constant(moment)) {
            return (x - y).abs() < 1e-6;
        }
        let equal = |f: &Factor| graph.strip_uniform(self.operand(*f)) == graph.strip_uniform(operand);
        let mirrored =
            |f: &Factor| one_minus(graph, operand, self.operand(*f)) || one_minus(graph, self.operand(*f), operand);
        moment.decay.first().map_or_else(|| moment.complement.first().is_some_and(mirrored), equal)
    }

    fn place(&self, place: CoefficientPlace, recurrence: &Recurrence, linear: &Linear) -> Place {
        let terms = || linear.own.iter().chain(&linear.other);
        let mut uses: Vec<Use> = Vec::new();
        let parts =
            [(CoefficientPart::Decay, &recurrence.decay), (CoefficientPart::Complement, &recurrence.complement)];
        for (part, factors) in parts {
            for &factor in factors {
                if uses.iter().any(|u| u.factor == factor) {
                    continue;
                }
                let mut made = Use { factor, part, readers: BTreeSet::new(), between: BTreeSet::new() };
                for term in terms().filter(|t| t.factors.contains(&factor)) {
                    let above = term.path.iter().take_while(|&&n| n != factor.user).copied();
                    made.readers.extend(above.clone().last());
                    made.between.extend(above.skip(1));
                }
                uses.push(made);
            }
        }
        let source = |factors: &[Factor]| factors.first().map(|&f| self.spread_from(self.operand(f)));
        Place { place, decay: source(&recurrence.decay), complement: source(&recurrence.complement), uses }
    }

    /// The scalar that a uniform array is spread from, of the same element type; the array itself where it is computed
    /// element by element.
    fn spread_from(&self, array: NodeId) -> NodeId {
        let graph = self.flow.graph;
        let mut id = array;
        while graph.uniform(id)
            && matches!(graph.op(id), Op::Hlo(Opcode::Broadcast | Opcode::Reshape))
            && let Some(dep) = graph.first_dep(id)
        {
            id = dep;
        }
        id
    }

    /// Whether everything to be changed can be, without changing anything else.
    fn reachable(&self, places: &[Place], tree: &BTreeSet<NodeId>) -> Result<(), String> {
        let graph = self.flow.graph;
        let uses = || places.iter().flat_map(|p| &p.uses);
        let home = uses().next().map(|u| graph.node(u.factor.user).computation);
        let at_home = |id: NodeId| plain_in(graph, id, home);
        let sources = places.iter().flat_map(|p| p.decay.into_iter().chain(p.complement));
        let stays = |id: NodeId| {
            let node = graph.node(id);
            !node.inner && Some(node.computation) == home
        };
        if !uses().all(|u| at_home(u.factor.user) && u.readers.iter().all(|&r| at_home(r)))
            || !sources.clone().all(stays)
        {
            return Err("its coefficient is inside a branch or a loop".to_owned());
        }
        for used in uses() {
            let apart = |n: &&NodeId| graph.is_output(**n) || graph.users(**n).iter().any(|u| !tree.contains(u));
            if let Some(&shared) = used.between.iter().find(apart) {
                return Err(format!("{} holds its coefficient and is read elsewhere, too", graph.display(shared)));
            }
            let product = graph.node(used.factor.user).instruction;
            let reads = |r: &NodeId| graph.instruction(*r).is_some_and(|i| i.operands.contains(&product));
            if !used.readers.iter().all(reads) {
                return Err("its coefficient reaches it through a tuple".to_owned());
            }
        }
        Ok(())
    }

    fn coefficient(&self, place: Place) -> Coefficient {
        let graph = self.flow.graph;
        let instruction = |n: NodeId| -> InstructionId { graph.node(n).instruction };
        let constant = match (place.decay, place.complement) {
            (Some(b), _) => graph.constant(b),
            (None, c) => c.and_then(|c| graph.constant(c)).map(|c| 1.0 - c),
        };
        Coefficient {
            place: place.place,
            constant,
            decay: place.decay.map(|n| graph.value(n)),
            complement: place.complement.map(|n| graph.value(n)),
            uses: place
                .uses
                .into_iter()
                .map(|u| CoefficientUse {
                    instruction: instruction(u.factor.user),
                    operand: u.factor.operand,
                    part: u.part,
                    readers: u.readers.into_iter().map(instruction).collect(),
                })
                .collect(),
        }
    }
}

fn plain_in(graph: &Graph<'_>, id: NodeId, home: Option<ComputationId>) -> bool {
    let node = graph.node(id);
    !node.inner && Some(node.computation) == home && matches!(node.op, Op::Hlo(_))
}

fn paths(linear: &Linear) -> BTreeSet<NodeId> {
    linear.own.iter().chain(&linear.other).flat_map(|t| t.path.iter().copied()).collect()
}

/// Adds a place; operands that another place has already gain its readers there.
fn merge(places: &mut Vec<Place>, mut place: Place) {
    place.uses.retain_mut(|new| {
        let known = places.iter_mut().flat_map(|p| &mut p.uses).find(|u| u.factor == new.factor);
        let Some(known) = known else { return true };
        known.readers.append(&mut new.readers);
        known.between.append(&mut new.between);
        false
    });
    if !place.uses.is_empty() {
        places.push(place);
    }
}
