//! The gradient by dominance.
//!
//! Every path from the data to a parameter's new value, and to the new values of
//! its moments, runs through the gradient that the optimizer consumes: it is the last
//! dominator of those sinks that has the parameter's dimensions, does not depend on
//! the parameter's own moments and is not the parameter on its way to its new value.
//! Walking back from it over elementwise links leads to what it was before clipping,
//! unscaling, skipping and weight decay.

use std::collections::{BTreeSet, HashSet};

use hlo::Opcode;

use super::accumulation::Accumulation;
use super::dominance::DominatorTree;
use super::error::{Refusal, RefusalKind};
use super::flow::Flow;
use super::graph::{NodeId, NodeMap, Op};
use super::pair::CarryPaths;
use super::roles::Roles;
use super::update::{is_average_by, moment};
use crate::step::{ConstantScale, Gradient, GradientStatus, Link, LinkKind, MomentForm, MomentOf};

/// Walking back stops after this many links.
const MAX_LINKS: usize = 32;

/// The gradient of one parameter as nodes.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) eff: NodeId,
    pub(super) preclip: NodeId,
    pub(super) measured: NodeId,
    pub(super) raw: NodeId,
    pub(super) constant_scale: Option<ConstantScale>,
    pub(super) links: Vec<FoundLink>,
    /// The state through which it was found, where data reaches the new value by other ways, too.
    pub(super) only_through: Option<usize>,
    /// Learning-rate factors taken off the end (steps without moments).
    pub(super) peeled: usize,
    /// Where gradients are accumulated over several calls: the predicate that holds in the one that consumes them.
    pub(super) consumes: Option<NodeId>,
}

/// A link as nodes.
#[derive(Debug, Clone)]
pub(super) struct FoundLink {
    from: NodeId,
    to: NodeId,
    kinds: BTreeSet<LinkKind>,
}

/// What became of one parameter's gradient.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Found(Found),
    Absent(String),
    Refused(Refusal),
}

impl Found {
    /// Whether the last thing before the optimizer is a factor that it keeps as state.
    pub(super) fn scaled_by_state(&self) -> bool {
        self.links.first().is_some_and(|l| l.kinds.contains(&LinkKind::StepSize))
    }

    pub(super) fn into_step(self, flow: &Flow<'_, '_>) -> GradientStatus {
        let value = |id| flow.graph.value(id);
        GradientStatus::Found(Gradient {
            eff: value(self.eff),
            preclip: value(self.preclip),
            measured: value(self.measured),
            raw: value(self.raw),
            constant_scale: self.constant_scale,
            links: self
                .links
                .into_iter()
                .rev()
                .map(|l| Link { from: value(l.from), to: value(l.to), kinds: l.kinds.into_iter().collect() })
                .collect(),
        })
    }
}

/// Finds gradients; holds the dominator trees that all parameters share.
pub(super) struct Finder<'f, 'g, 'm> {
    flow: &'f Flow<'g, 'm>,
    roles: &'f Roles,
    carry: &'f [CarryPaths],
    tensors: DominatorTree,
    /// Made when the first scalar parameter asks for it.
    scalars: Option<DominatorTree>,
    parameter_mask: Vec<u64>,
}

impl<'f, 'g, 'm> Finder<'f, 'g, 'm> {
    pub(super) fn new(flow: &'f Flow<'g, 'm>, roles: &'f Roles, carry: &'f [CarryPaths]) -> Self {
        let graph = flow.graph;
        let tensors = DominatorTree::new(graph, &flow.seeds, |id| flow.tainted[id] && !graph.uniform(id));
        let words = flow.floats.len().div_ceil(64).max(1);
        let mut parameter_mask = vec![0u64; words];
        let trained = roles.parameters.iter().chain(roles.masters.values());
        for &p in trained {
            if let Some(word) = parameter_mask.get_mut(p / 64) {
                *word |= 1 << (p % 64);
            }
        }
        Self { flow, roles, carry, tensors, scalars: None, parameter_mask }
    }

    /// The gradient of parameter `p` (an index into [`Flow::floats`]).
    pub(super) fn find(&mut self, p: usize) -> Outcome {
        let graph = self.flow.graph;
        let Some(parameter) = self.flow.floats.get(p).copied() else {
            return Outcome::Absent("it is not among the states".into());
        };
        let group = self.roles.groups.get(&p).cloned().unwrap_or_default();
        let updated = self.roles.masters.get(&p).and_then(|&m| self.flow.floats.get(m)).copied().unwrap_or(parameter);
        let refuse = |kind, candidates| {
            let tensor = super::display_name(graph, parameter.old);
            let shape = graph.instruction(parameter.given).map(|i| i.shape.to_string()).unwrap_or_default();
            Outcome::Refused(Refusal { tensor, shape, kind, candidates })
        };
        if let Some(kind) = self.coupled(p).or_else(|| self.ambiguous(p)).or_else(|| self.swallowed(updated.new)) {
            return refuse(kind, Vec::new());
        }
        let sinks: Vec<NodeId> = std::iter::once(updated.new)
            .chain(group.iter().filter_map(|&s| self.flow.floats.get(s)).map(|s| s.new))
            .filter(|&n| self.flow.tainted[n])
            .collect();
        let scalar = graph.is_scalar(parameter.old);
        if scalar && self.scalars.is_none() {
            self.scalars = Some(self.scalar_tree());
        }
        let flow = self.flow;
        let loose;
        let mut tree = if scalar { self.scalars.as_ref().unwrap_or(&self.tensors) } else { &self.tensors };
        if scalar && !sinks.iter().any(|&s| tree.contains(s)) {
            loose = DominatorTree::new(graph, &flow.seeds, |id| flow.tainted[id]);
            tree = &loose;
        }
        let reached: Vec<NodeId> = sinks.into_iter().filter(|&s| tree.contains(s)).collect();
        let Some((&first, rest)) = reached.split_first() else {
            return Outcome::Absent("no data reaches its new value other than through scalars".into());
        };
        let bottom = rest.iter().try_fold(first, |a, &b| tree.common(Some(a), Some(b)));
        let chain: Vec<NodeId> = tree.chain(bottom).collect();
        let carried = self.carried(updated.old, updated.pair.output, updated.new);
        let group_mask = self.group_mask(&group);
        let reach = if scalar { &flow.all } else { &flow.cut };
        let fits = |id: NodeId| {
            graph.dims(id) == graph.dims(parameter.old)
                && graph.is_floating(id)
                && !reach.reaches_any(&group_mask, id)
                && !carried.contains(&id)
        };
        let Some(&eff) = chain.iter().find(|&&id| fits(id) && !graph.node(id).inner) else {
            if let Some((eff, moment)) = self.through_one_moment(&group, tree, &fits) {
                let mut found = self.walk_back(eff, 0, tree, scalar);
                found.only_through = Some(moment);
                return Outcome::Found(found);
            }
            let inner = chain.iter().copied().find(|&id| fits(id));
            let kind = if inner.is_some() || self.through_branch(&reached, tree) {
                RefusalKind::InBranch
            } else {
                RefusalKind::NotFound
            };
            let near = chain.iter().filter(|&&id| graph.num_elements(id) == graph.num_elements(parameter.old));
            let candidates = inner.into_iter().chain(near.copied()).take(4).map(|id| graph.display(id)).collect();
            return refuse(kind, candidates);
        };
        let (eff, peeled) = if group.is_empty() { self.peel(eff, tree, &fits) } else { (eff, 0) };
        let mut found = self.walk_back(eff, peeled, tree, scalar);
        if group.is_empty() {
            // A learning rate may stand in front of a clip, too.
            found.preclip = self.peel(found.preclip, tree, &fits).0;
            found.measured = self.peel(found.measured, tree, &fits).0;
            found.raw = self.peel(found.raw, tree, &fits).0;
        }
        self.complete_averages(&mut found, &group);
        if let Some(Accumulation { consumes, waiting }) = Accumulation::of(flow, &group) {
            let sinks = waiting.iter().filter_map(|&s| flow.floats.get(s)).map(|s| s.new).chain([updated.new]);
            let bottom = sinks.map(Some).reduce(|a, b| tree.common(a, b)).flatten();
            let mask = self.group_mask(&waiting);
            let fits = |id: NodeId| {
                graph.dims(id) == graph.dims(parameter.old)
                    && graph.is_floating(id)
                    && !reach.reaches_any(&mask, id)
                    && !carried.contains(&id)
                    && !graph.node(id).inner
            };
            if let Some(taken) = tree.chain(bottom).find(|&id| fits(id)) {
                found.measured = self.before_clipping(taken, &group, &waiting, tree, scalar);
                found.consumes = Some(consumes);
            }
        }
        Outcome::Found(found)
    }

    /// Of what moments take in, accumulated over several calls, the value before clipping: as long as it is accumulated.
    fn before_clipping(
        &self,
        taken: NodeId,
        group: &[usize],
        waiting: &[usize],
        tree: &DominatorTree,
        scalar: bool,
    ) -> NodeId {
        let accumulators: Vec<usize> = group.iter().copied().filter(|s| !waiting.contains(s)).collect();
        let measured = self.walk_back(taken, 0, tree, scalar).measured;
        if self.flow.all.reaches_any(&self.group_mask(&accumulators), measured) { measured } else { taken }
    }

    /// `m' = a·m + (1 - a)·g`, where nothing but this sum reads `g`: the last array before the moment is `(1 - a)·g`,
    /// and the coefficients say that the gradient is `g`.
    fn complete_averages(&self, found: &mut Found, group: &[usize]) {
        let Some(first) = found.links.first().filter(|_| found.raw == found.eff) else { return };
        let completes = match &found.constant_scale {
            Some(scale) => group.iter().any(|&s| {
                let recurrence = moment(self.flow, Some(found), s);
                recurrence.of == MomentOf::Gradient
                    && recurrence.form == MomentForm::HeavyBall
                    && recurrence.decay.is_some_and(|a| (a + scale.factor - 1.0).abs() < 1e-5)
            }),
            // A coefficient that changes from step to step.
            None => self.factor_of(found.eff, first.from).is_some_and(|factor| {
                first.kinds.iter().eq([&LinkKind::Scale])
                    && group.iter().any(|&s| is_average_by(self.flow, found, s, factor))
            }),
        };
        if completes {
            found.raw = first.from;
        }
    }

    /// What `product` multiplies `scaled` by.
    fn factor_of(&self, product: NodeId, scaled: NodeId) -> Option<NodeId> {
        let graph = self.flow.graph;
        let (x, y) = graph.pair(product).filter(|_| graph.is(product, Opcode::Multiply))?;
        let is_scaled = |n: NodeId| graph.through_conversions(n) == graph.through_conversions(scaled);
        match (is_scaled(x), is_scaled(y)) {
            (true, false) => Some(y),
            (false, true) => Some(x),
            _ => None,
        }
    }

    /// Where data reaches the new value by several ways (a second-order optimizer that estimates curvature from a
    /// gradient of its own): what the only first moment accumulates, if there is exactly one such moment.
    fn through_one_moment(
        &self,
        group: &[usize],
        tree: &DominatorTree,
        fits: &impl Fn(NodeId) -> bool,
    ) -> Option<(NodeId, usize)> {
        let graph = self.flow.graph;
        let mut accumulated = group.iter().filter_map(|&s| {
            let new = self.flow.floats.get(s)?.new;
            let eff = tree.chain(tree.contains(new).then_some(new)).find(|&id| fits(id) && !graph.node(id).inner)?;
            let found = self.walk_back(eff, 0, tree, false);
            let recurrence = moment(self.flow, Some(&found), s);
            let first = recurrence.of == MomentOf::Gradient && recurrence.form != MomentForm::OtherLinear;
            first.then_some((eff, s))
        });
        accumulated.next().filter(|_| accumulated.next().is_none())
    }

    fn coupled(&self, p: usize) -> Option<RefusalKind> {
        let graph = self.flow.graph;
        self.roles.shared.iter().find_map(|(&s, hit)| {
            let state = self.flow.floats.get(s)?;
            (!graph.is_scalar(state.old) && hit.contains(&p))
                .then(|| RefusalKind::Coupled { state: super::display_name(graph, state.old), parameters: hit.len() })
        })
    }

    fn ambiguous(&self, p: usize) -> Option<RefusalKind> {
        let graph = self.flow.graph;
        let parameter = self.flow.floats.get(p)?;
        let twin = self.roles.ambiguous.iter().find_map(|&a| {
            let other = self.flow.floats.get(a)?;
            (graph.dims(other.old) == graph.dims(parameter.old)).then_some(other)
        });
        if let Some(twin) = twin {
            let name = super::display_name(graph, twin.old);
            let what = format!("the loss depends on {name}, which yet behaves like a moment of another tensor");
            return Some(RefusalKind::Ambiguous { what });
        }
        let mut shared = self.roles.shared.keys().filter_map(|&s| self.flow.floats.get(s));
        let tied = shared.find(|s| graph.is_scalar(s.old) && self.flow.data[s.new]);
        tied.filter(|_| graph.is_scalar(parameter.old)).map(|s| RefusalKind::Ambiguous {
            what: format!(
                "the scalar state {} is computed from data and serves several parameters; whether it is a moment of \
                 this scalar parameter cannot be told",
                super::display_name(graph, s.old)
            ),
        })
    }

    fn swallowed(&self, new: NodeId) -> Option<RefusalKind> {
        let graph = self.flow.graph;
        let mut at = new;
        loop {
            at = graph.through_conversions(at);
            let guard = matches!(graph.op(at), Op::Hlo(Opcode::Select) | Op::Phi)
                .then(|| graph.data_deps(at).iter().copied().find(|&d| !graph.is(d, Opcode::Parameter)))
                .flatten();
            match guard {
                Some(inside) => at = inside,
                None => break,
            }
        }
        let opaque = matches!(graph.op(at), Op::Hlo(Opcode::CustomCall | Opcode::Unrecognized));
        let instruction = graph.instruction(at).filter(|_| opaque)?;
        let target = &instruction.attributes.custom_call_target;
        Some(RefusalKind::Swallowed { call: format!("{instruction} ({target})") })
    }

    /// Whether a phi or an inner node stands on the way to the sinks.
    fn through_branch(&self, sinks: &[NodeId], tree: &DominatorTree) -> bool {
        let graph = self.flow.graph;
        let mut stack = sinks.to_vec();
        let mut seen: HashSet<NodeId> = HashSet::new();
        while let Some(id) = stack.pop() {
            if !seen.insert(id) || seen.len() > 4096 {
                continue;
            }
            if graph.op(id) == Op::Phi {
                return true;
            }
            stack.extend(graph.flow_deps(id).iter().copied().filter(|&d| tree.contains(d)));
        }
        false
    }

    /// The parameter on its way to its new value: no gradient, whatever its dimensions.
    fn carried(&self, old: NodeId, output: usize, new: NodeId) -> HashSet<NodeId> {
        let graph = self.flow.graph;
        let mut carried = HashSet::from([new]);
        let Some(paths) = self.carry.get(output).filter(|c| c.reaches(old)) else {
            return carried;
        };
        carried.extend(paths.trace(old));
        let mut stack = vec![old];
        let mut forward = HashSet::from([old]);
        while let Some(id) = stack.pop() {
            for &user in graph.users(id) {
                let hands_on = graph.is_conversion(user)
                    || (matches!(graph.op(user), Op::Hlo(Opcode::Select) | Op::Phi)
                        && graph.data_deps(user).contains(&id));
                if hands_on && graph.dims(user) == graph.dims(old) && forward.insert(user) {
                    stack.push(user);
                }
            }
        }
        carried.extend(forward);
        carried
    }

    fn group_mask(&self, group: &[usize]) -> Vec<u64> {
        let mut mask = vec![0u64; self.parameter_mask.len()];
        for &s in group {
            if let Some(word) = mask.get_mut(s / 64) {
                *word |= 1 << (s % 64);
            }
        }
        mask
    }

    /// Uniform factors count as flow for a scalar parameter, except those that other parameters' updates take in
    /// from the side, as a clip factor is.
    fn scalar_tree(&self) -> DominatorTree {
        let (flow, graph) = (self.flow, self.flow.graph);
        let mut stack: Vec<NodeId> = self
            .roles
            .parameters
            .iter()
            .filter(|&&p| flow.floats.get(p).is_some_and(|s| !graph.is_scalar(s.old)))
            .flat_map(|p| {
                let group = self.roles.groups.get(p).into_iter().flatten();
                std::iter::once(p).chain(group).chain(self.roles.masters.get(p))
            })
            .filter_map(|&s| flow.floats.get(s))
            .map(|s| s.new)
            .filter(|&n| self.tensors.contains(n))
            .collect();
        let mut seen = NodeMap::new(graph, false);
        let mut side = NodeMap::new(graph, false);
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut seen[id], true) {
                continue;
            }
            for &dep in graph.deps(id) {
                if graph.uniform(dep) && flow.tainted[dep] {
                    side[graph.strip_uniform(dep)] = true;
                }
            }
            stack.extend(graph.flow_deps(id).iter().copied().filter(|&d| self.tensors.contains(d)));
        }
        DominatorTree::new(graph, &flow.seeds, |id| flow.tainted[id] && !side[id])
    }

    /// Takes a learning rate off the end: negations, and factors that do not depend on data.
    ///
    /// Stops at a factor that the forward pass shares: that is a loss scale.
    fn peel(&self, mut eff: NodeId, tree: &DominatorTree, fits: &impl Fn(NodeId) -> bool) -> (NodeId, usize) {
        let (flow, graph) = (self.flow, self.flow.graph);
        let mut peeled = 0;
        loop {
            let inside = match (graph.op(eff), graph.deps(eff)) {
                (Op::Hlo(Opcode::Negate), &[x]) => Some(x),
                // Sign descent consumes the gradient and applies its sign.
                (Op::Hlo(Opcode::Sign), &[x]) if tree.contains(x) => Some(x),
                (Op::Hlo(Opcode::Convert | Opcode::Copy), &[x]) if fits(x) && tree.contains(x) => Some(x),
                (Op::Hlo(opcode @ (Opcode::Multiply | Opcode::Divide)), &[x, y]) => {
                    let (flowing, factor) = if tree.contains(x) { (x, y) } else { (y, x) };
                    let plain = tree.contains(flowing)
                        && !tree.contains(factor)
                        && graph.uniform(factor)
                        && (!flow.tainted[factor] || self.learned(factor))
                        && (opcode == Opcode::Multiply || flowing == x)
                        && !self.shares_states(factor, flowing);
                    plain.then_some(flowing)
                }
                _ => None,
            };
            match inside.filter(|&x| graph.dims(x) == graph.dims(eff) && !graph.node(x).inner) {
                Some(inside) => {
                    eff = inside;
                    peeled += 1;
                }
                None => return (eff, peeled),
            }
        }
    }

    /// A scalar that the optimizer keeps: it depends on states and on no parameter.
    fn is_step_size(&self, factor: NodeId) -> bool {
        let row = self.flow.all.row(factor);
        row.iter().any(|&w| w != 0) && !row.iter().zip(&self.parameter_mask).any(|(x, m)| x & m != 0)
    }

    /// A factor computed from data and from states of the optimizer: a step size that it estimates as it goes. A clip
    /// factor comes from the gradient alone.
    fn learned(&self, factor: NodeId) -> bool {
        self.flow.all.row(factor).iter().zip(&self.parameter_mask).any(|(x, m)| x & !m != 0)
    }

    /// Whether both depend on a state that is no parameter, and the factor on no parameter.
    fn shares_states(&self, factor: NodeId, flowing: NodeId) -> bool {
        let (a, b) = (self.flow.all.row(factor), self.flow.all.row(flowing));
        !a.iter().zip(&self.parameter_mask).any(|(x, m)| x & m != 0)
            && a.iter().zip(b).zip(&self.parameter_mask).any(|((x, y), m)| x & y & !m != 0)
    }

    fn walk_back(&self, eff: NodeId, peeled: usize, tree: &DominatorTree, scalar: bool) -> Found {
        let graph = self.flow.graph;
        let mut found = Found {
            eff,
            preclip: eff,
            measured: eff,
            raw: eff,
            constant_scale: None,
            links: Vec::new(),
            only_through: None,
            peeled,
            consumes: None,
        };
        let mut unscaled = false;
        let mut at = eff;
        while found.links.len() < MAX_LINKS {
            let Some(before) = tree.chain(Some(at)).nth(1) else {
                break;
            };
            if graph.dims(before) != graph.dims(eff) || !graph.is_floating(before) || graph.node(before).inner {
                break;
            }
            let Some(kinds) = self.link(before, at, tree, scalar) else {
                break;
            };
            let same_type = graph.element_type(before) == graph.element_type(eff);
            let clips = kinds.iter().any(|k| {
                use LinkKind as K;
                matches!(k, K::SelfNorm | K::ScaleByData | K::ElementwiseClip | K::Select)
            });
            let unscales = kinds.contains(&LinkKind::Unscale);
            let plain = kinds.contains(&LinkKind::AddUntainted) || kinds.contains(&LinkKind::StepSize);
            // What lies before unscaling is a multiple of the gradient.
            unscaled |= unscales;
            if same_type {
                if clips || unscales {
                    found.preclip = before;
                }
                if clips && !unscaled {
                    found.measured = before;
                }
                if clips || unscales || plain {
                    found.raw = before;
                }
            }
            found.links.push(FoundLink { from: before, to: at, kinds });
            at = before;
        }
        found.constant_scale = self.constant_scale(graph.through_conversions(eff), tree);
        found
    }

    /// What lies between two neighbours of the dominator chain; `None` where that is not elementwise processing
    /// of the gradient, but a part of differentiation.
    fn link(&self, before: NodeId, at: NodeId, tree: &DominatorTree, scalar: bool) -> Option<BTreeSet<LinkKind>> {
        let graph = self.flow.graph;
        let mut region = BTreeSet::new();
        let mut stack = vec![at];
        while let Some(id) = stack.pop() {
            if id != before && region.insert(id) {
                stack.extend(graph.deps(id).iter().copied().filter(|&d| tree.contains(d)));
            }
        }
        let mut connected = HashSet::from([before]);
        for &id in &region {
            let elementwise = graph.dims(id) == graph.dims(before) && graph.is_elementwise(id);
            if elementwise && graph.deps(id).iter().any(|d| connected.contains(d)) {
                connected.insert(id);
            }
        }
        if !connected.contains(&at) {
            return None;
        }
        let flows = |d: NodeId| d == before || region.contains(&d);
        let mut kinds = BTreeSet::new();
        let mut mixes = false;
        let mut nonlinear = false;
        for &id in &region {
            let opcode = graph.opcode(id);
            let flowing = graph.deps(id).iter().filter(|&&d| flows(d)).count();
            nonlinear |= match opcode {
                Some(Opcode::Multiply | Opcode::Divide | Opcode::Power) => flowing > 1,
                Some(
                    Opcode::Sqrt
                    | Opcode::Rsqrt
                    | Opcode::Abs
                    | Opcode::Sign
                    | Opcode::Maximum
                    | Opcode::Minimum
                    | Opcode::Compare
                    | Opcode::Clamp,
                ) => flowing > 0,
                _ => false,
            };
            if !scalar && (graph.dims(id) != graph.dims(before) || !graph.is_elementwise(id)) {
                mixes = true;
                continue;
            }
            kinds.extend(self.kinds_of(id, before, &flows));
        }
        // Differentiation maps cotangents linearly, a norm of the gradient does not.
        match (mixes, nonlinear) {
            (true, false) => return None,
            (true, true) => {
                kinds.insert(LinkKind::SelfNorm);
            }
            _ => {}
        }
        Some(kinds)
    }

    fn kinds_of(&self, id: NodeId, before: NodeId, flows: &impl Fn(NodeId) -> bool) -> Vec<LinkKind> {
        let (flow, graph) = (self.flow, self.flow.graph);
        let mut kinds = Vec::new();
        let opcode = graph.opcode(id);
        let chooses = matches!(graph.op(id), Op::Phi | Op::Hlo(Opcode::Select));
        for &side in graph.deps(id).iter().filter(|&&d| !flows(d)) {
            if chooses && graph.first_dep(id) == Some(side) {
                // A mask that depends on no data belongs to the model (pruned weights), not to the optimizer.
                let mask = !graph.uniform(side) && !flow.tainted[side];
                kinds.push(if mask { LinkKind::MultiplyUntainted } else { LinkKind::Select });
                continue;
            }
            if chooses {
                continue;
            }
            let scales = matches!(opcode, Some(Opcode::Multiply | Opcode::Divide));
            kinds.push(match (graph.uniform(side), flow.tainted[side]) {
                (true, true) => LinkKind::ScaleByData,
                (true, false) if scales && graph.constant(side).is_none() && self.shares_states(side, before) => {
                    LinkKind::Unscale
                }
                (true, false) if scales && graph.constant(side).is_none() && self.is_step_size(side) => {
                    LinkKind::StepSize
                }
                (_, false) if matches!(opcode, Some(Opcode::Add | Opcode::Subtract)) => LinkKind::AddUntainted,
                (true, false) => LinkKind::Scale,
                (false, false) => LinkKind::MultiplyUntainted,
                (false, true) => LinkKind::CombineData,
            });
        }
        if chooses && graph.first_dep(id).is_some_and(flows) {
            kinds.push(LinkKind::Select);
        }
        match opcode {
            Some(Opcode::Maximum | Opcode::Minimum | Opcode::Clamp) => kinds.push(LinkKind::ElementwiseClip),
            Some(Opcode::Sqrt | Opcode::Rsqrt | Opcode::Sign | Opcode::Abs | Opcode::Tanh | Opcode::Exp) => {
                kinds.push(LinkKind::Nonlinear);
            }
            Some(Opcode::Convert) => kinds.push(LinkKind::Convert),
            _ => {}
        }
        kinds
    }

    /// A constant factor right at the gradient, which may be the optimizer's or the gradient's own.
    fn constant_scale(&self, eff: NodeId, tree: &DominatorTree) -> Option<ConstantScale> {
        let graph = self.flow.graph;
        let (x, y) = graph.pair(eff)?;
        let opcode = graph.opcode(eff)?;
        let (flowing, factor) = if tree.contains(x) { (x, y) } else { (y, x) };
        let factor = graph.constant(factor)?;
        let factor = match opcode {
            Opcode::Multiply => factor,
            Opcode::Divide if flowing == x => 1.0 / factor,
            _ => return None,
        };
        // The mean over replicas is the gradient's own.
        let mean = graph.is(graph.through_conversions(flowing), Opcode::AllReduce);
        (tree.contains(flowing) && factor != 1.0 && !mean)
            .then(|| ConstantScale { factor, instruction: graph.display(eff) })
    }
}
