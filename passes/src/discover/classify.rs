//! What every state is, and what a gate does with it.
//!
//! Held: what a rejected batch must not touch. Advancing: what would go wrong if it
//! stood still, above all a loss scale that must come down. A counter that corrects
//! moments and drives a schedule is both, and the policy decides.

use std::collections::BTreeSet;

use hlo::Opcode;

use super::flow::{Flow, StateNode};
use super::graph::{Graph, NodeId, NodeMap, Op};
use super::roles::Roles;
use super::update::moment;
use crate::step::{MomentForm, StateClass, StateRole};

/// The verdict on one state.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    pub(super) role: StateRole,
    pub(super) class: StateClass,
    pub(super) reason: String,
}

fn verdict(role: StateRole, class: StateClass, reason: impl Into<String>) -> Verdict {
    Verdict { role, class, reason: reason.into() }
}

/// Classifies states; holds what all of them are compared with.
pub(super) struct Classifier<'f, 'g, 'm> {
    flow: &'f Flow<'g, 'm>,
    roles: &'f Roles,
    /// New values of parameters and masters, conversions looked through.
    new_parameters: BTreeSet<NodeId>,
    /// The same as marks on the graph.
    target: NodeMap<bool>,
    parameters: BTreeSet<usize>,
    masters: BTreeSet<usize>,
    /// States that belong to one parameter.
    grouped: BTreeSet<usize>,
}

impl<'f, 'g, 'm> Classifier<'f, 'g, 'm> {
    pub(super) fn new(flow: &'f Flow<'g, 'm>, roles: &'f Roles) -> Self {
        let mut target = NodeMap::new(flow.graph, false);
        let mut new_parameters = BTreeSet::new();
        for &p in roles.parameters.iter().chain(roles.masters.values()) {
            let Some(state) = flow.floats.get(p) else {
                continue;
            };
            target[state.new] = true;
            new_parameters.insert(state.new);
            new_parameters.insert(flow.graph.through_conversions(state.new));
        }
        Self {
            flow,
            roles,
            new_parameters,
            target,
            parameters: roles.parameters.iter().copied().collect(),
            masters: roles.masters.values().copied().collect(),
            grouped: roles.groups.values().flatten().copied().collect(),
        }
    }

    /// The verdict on a state; `float` is its index into [`Flow::floats`] where it is one.
    pub(super) fn classify(&self, state: &StateNode, float: Option<usize>) -> Verdict {
        use StateClass::{Advancing, Held, Unclassified};
        let (flow, graph) = (self.flow, self.flow.graph);
        let scalar = graph.is_scalar(state.old);
        if let Some(k) = float {
            if self.masters.contains(&k) {
                return verdict(StateRole::Master, Held, "the wide copy of a parameter");
            }
            if self.parameters.contains(&k) {
                return if self.roles.masters.contains_key(&k) {
                    verdict(StateRole::LowPrecisionCopy, Held, "a parameter that follows its wide copy")
                } else {
                    verdict(StateRole::Parameter, Held, "the loss depends on it and data trains it")
                };
            }
        }
        if state.new == state.old {
            return verdict(StateRole::Constant, Held, "returned as it came");
        }
        if let Some(k) = float {
            if self.roles.unused.contains(&k) {
                return verdict(StateRole::Parameter, Held, "a parameter that no loss depends on");
            }
            let serves = |&u: &usize| flow.floats.get(u).is_some_and(|s| flow.all.reaches(k, s.new));
            if !scalar && !flow.tainted[state.new] && self.roles.unused.iter().any(serves) {
                return verdict(StateRole::Moment, Held, "a state of a parameter that no loss depends on");
            }
        }
        if !flow.tainted[state.new] {
            return self.without_data(state);
        }
        if !flow.data[state.new] {
            return self.decided_by_data(state, float);
        }
        if let Some(k) = float {
            return self.with_data(state, k);
        }
        if scalar {
            return verdict(StateRole::Metric, Advancing, "a count taken from data that no parameter depends on");
        }
        let reason = "an integer tensor that changes with the data; whether a rejected batch may touch it is unknown";
        verdict(StateRole::Unknown, Unclassified, reason)
    }

    /// The new value depends on no data at all.
    fn without_data(&self, state: &StateNode) -> Verdict {
        use StateClass::Advancing;
        let graph = self.flow.graph;
        if Flow::is_key(graph, state.old) {
            return verdict(StateRole::RngKey, Advancing, "a random key");
        }
        if !graph.is_scalar(state.old) {
            return verdict(StateRole::Unknown, Advancing, "its new value does not depend on data");
        }
        self.counter(state).unwrap_or_else(|| {
            if graph.is_floating(state.old) {
                verdict(StateRole::Hyperparameter, Advancing, "a scalar that no data changes")
            } else {
                verdict(StateRole::ScheduleCounter, Advancing, "no moment and no update reads it")
            }
        })
    }

    /// Data only chooses between values: guards, resets, back-offs.
    fn decided_by_data(&self, state: &StateNode, float: Option<usize>) -> Verdict {
        use StateClass::{Advancing, Held, Unclassified};
        let graph = self.flow.graph;
        if Flow::is_key(graph, state.old) && !graph.is_floating(state.old) {
            return verdict(StateRole::RngKey, Advancing, "a random key");
        }
        if !graph.is_scalar(state.old) {
            let kind = verdict(StateRole::Unknown, Unclassified, "data decides between the values of this tensor");
            return if float.is_some_and(|k| self.grouped.contains(&k)) {
                verdict(StateRole::Moment, Held, "a state of one parameter")
            } else {
                kind
            };
        }
        if let Some(counter) = self.counter(state).filter(|v| v.role == StateRole::BiasCorrectionCounter) {
            return counter;
        }
        if graph.is_floating(state.old) {
            return verdict(
                StateRole::LossScale,
                Advancing,
                "data only decides between its values, as of a loss scale",
            );
        }
        verdict(StateRole::FiniteCheck, Advancing, "it follows a check of the gradients")
    }

    /// The new value is computed from data.
    fn with_data(&self, state: &StateNode, k: usize) -> Verdict {
        use StateClass::{Advancing, Held, Unclassified};
        let graph = self.flow.graph;
        if self.grouped.contains(&k) {
            return verdict(StateRole::Moment, Held, "a state of one parameter");
        }
        if self.roles.shared.contains_key(&k) {
            return verdict(
                StateRole::SharedMoment,
                Held,
                "optimizer state computed from data that several parameters use",
            );
        }
        let feeds = |&p: &usize| self.flow.floats.get(p).is_some_and(|s| self.flow.all.reaches(k, s.new));
        if !self.averages_parameters(state)
            && self.roles.parameters.iter().any(feeds)
            && !self.roles.rebuilt.contains(&k)
        {
            let reason = "statistics of the optimizer, computed from data, that updates depend on";
            return verdict(StateRole::SharedMoment, Held, reason);
        }
        if self.roles.rebuilt.contains(&k) {
            return verdict(StateRole::BatchStatistic, Held, "computed anew from data, and read by the loss");
        }
        let recurrence = moment(self.flow, None, k);
        if self.averages_parameters(state) {
            return verdict(StateRole::Average, Held, "it averages new values of a parameter");
        }
        if graph.is_scalar(state.old) && graph.dims(state.old).is_empty() {
            return verdict(StateRole::Metric, Advancing, "a scalar taken from data that no parameter depends on");
        }
        if matches!(recurrence.form, MomentForm::Ema | MomentForm::Scaled) {
            return verdict(StateRole::BatchStatistic, Held, "a moving average of the data that no update reads");
        }
        let stored = graph.through_conversions(state.new);
        if graph.is(stored, Opcode::DynamicUpdateSlice) && graph.first_dep(stored) == Some(state.old) {
            return verdict(StateRole::Metric, Advancing, "a record of values that no update reads");
        }
        let reason = "it changes with the data, no update reads it, and it is no moving average; whether a rejected \
                      batch may touch it is unknown";
        verdict(StateRole::Unknown, Unclassified, reason)
    }

    /// Whether the new value takes in a parameter's new value element by element.
    fn averages_parameters(&self, state: &StateNode) -> bool {
        let graph = self.flow.graph;
        let mut stack = vec![state.new];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if self.new_parameters.contains(&id) {
                return true;
            }
            if !seen.insert(id) || !(graph.is_elementwise(id) || graph.is_conversion(id)) {
                continue;
            }
            stack.extend(graph.data_deps(id).iter().copied().filter(|&d| graph.dims(d) == graph.dims(state.old)));
        }
        false
    }

    /// What a scalar that updates read is for; `None` where no update reads it.
    fn counter(&self, state: &StateNode) -> Option<Verdict> {
        use StateClass::{Advancing, Both, Held};
        let graph = self.flow.graph;
        let uses = self.uses(state);
        let untainted = !self.flow.tainted[state.new];
        Some(match (uses.corrects, uses.scales) {
            (false, _) if uses.chooses && untainted && !wraps(graph, state) => {
                verdict(StateRole::BiasCorrectionCounter, Held, "moments are started by it")
            }
            (false, _) if uses.chooses && untainted && !graph.is_floating(state.old) => {
                let reason = "it decides when accumulated gradients are applied";
                verdict(StateRole::AccumulationCounter, Held, reason)
            }
            (true, false) => verdict(StateRole::BiasCorrectionCounter, Held, "moments are corrected with it"),
            (true, true) => verdict(
                StateRole::SharedCounter,
                Both,
                "moments are corrected with it and the update is scheduled by it",
            ),
            (false, true) if graph.is_floating(state.old) => {
                verdict(StateRole::Hyperparameter, Advancing, "the update is scaled by it and no data changes it")
            }
            (false, true) => verdict(StateRole::ScheduleCounter, Advancing, "the update is scheduled by it"),
            (false, false) if uses.random => {
                verdict(StateRole::RngKey, Advancing, "random numbers are derived from it")
            }
            (false, false) => return None,
        })
    }

    fn uses(&self, state: &StateNode) -> Uses {
        let graph = self.flow.graph;
        let mut uses = Uses::default();
        // Nodes computed from the counter, and whether a comparison lies between.
        let mut plain = NodeMap::new(graph, false);
        let mut compared = NodeMap::new(graph, false);
        plain[state.given] = true;
        for id in graph.ids().filter(|&id| id > state.given) {
            let deps = graph.deps(id);
            let from_plain = deps.iter().any(|&d| plain[d]);
            let from_compared = deps.iter().any(|&d| compared[d]);
            if !from_plain && !from_compared {
                continue;
            }
            if from_plain && corrects(graph, id, state, &plain) {
                uses.corrects = true;
                continue;
            }
            if graph.is(id, Opcode::Compare) && graph.uniform(id) {
                compared[id] = true;
                continue;
            }
            if from_compared && !graph.uniform(id) {
                // It switches whole tensors on and off: moments, as accumulation does, or the update alone.
                uses.chooses = uses.chooses || self.reaches_moment(id);
            }
            let carries =
                graph.uniform(id) || graph.is_conversion(id) || graph.is_elementwise(id) || reshapes(graph, id);
            if from_plain && !graph.uniform(id) && (!graph.is_floating(id) || !carries) {
                // Integer tensors made from a counter are random bits or indices; no scale comes out of those.
                uses.random |= graph.element_type(id).is_integral();
                continue;
            }
            let piecewise =
                from_compared && graph.uniform(id) && matches!(graph.op(id), Op::Phi | Op::Hlo(Opcode::Select));
            plain[id] = carries && (from_plain || piecewise);
            compared[id] = from_compared && !piecewise && graph.uniform(id);
        }
        uses.scales = graph.ids().any(|id| self.target[id] && plain[id]);
        uses
    }

    fn reaches_moment(&self, from: NodeId) -> bool {
        let moments: BTreeSet<NodeId> = self
            .grouped
            .iter()
            .filter_map(|&s| self.flow.floats.get(s))
            .filter(|s| !self.flow.graph.is_scalar(s.old))
            .map(|s| s.new)
            .collect();
        let graph = self.flow.graph;
        let mut stack = vec![from];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if moments.contains(&id) {
                return true;
            }
            if seen.insert(id) {
                stack.extend(graph.users(id));
            }
        }
        false
    }
}

/// Whether a counter starts again, instead of counting on for ever.
pub(super) fn wraps(graph: &Graph<'_>, state: &StateNode) -> bool {
    let mut stack = vec![state.new];
    let mut seen = BTreeSet::new();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) || id == state.old {
            continue;
        }
        match graph.op(id) {
            _ if graph.constant(id) == Some(0.0) => return true,
            Op::Hlo(Opcode::Remainder | Opcode::Multiply | Opcode::And) => return true,
            Op::Phi | Op::Hlo(Opcode::Select) => stack.extend(graph.data_deps(id)),
            _ if graph.is_conversion(id) => stack.extend(graph.deps(id)),
            _ => {}
        }
    }
    false
}

/// Whether the node rearranges elements without touching them.
fn reshapes(graph: &Graph<'_>, id: NodeId) -> bool {
    matches!(
        graph.op(id),
        Op::Hlo(Opcode::Reshape | Opcode::Transpose | Opcode::Broadcast | Opcode::Slice | Opcode::Concatenate)
    )
}

/// How updates read a scalar state.
#[derive(Debug, Default)]
struct Uses {
    /// As the exponent of a decay, in `1 - decay^count`.
    corrects: bool,
    /// As a factor.
    scales: bool,
    /// To switch moments between values.
    chooses: bool,
    /// To make random bits.
    random: bool,
}

/// `1 - decay^count`, or `1 - s` for a state that carries the power itself (`s' = s · decay`).
fn corrects(graph: &Graph<'_>, id: NodeId, state: &StateNode, plain: &NodeMap<bool>) -> bool {
    if !graph.is(id, Opcode::Subtract) || !graph.uniform(id) {
        return false;
    }
    let Some((one, x)) = graph.pair(id) else {
        return false;
    };
    if graph.constant(one) != Some(1.0) {
        return false;
    }
    let x = graph.strip_uniform(x);
    let power = match (graph.opcode(x), graph.pair(x)) {
        (Some(Opcode::Power), Some((base, exponent))) => !plain[base] && plain[exponent],
        _ => false,
    };
    // exp(count · ln decay) is a power too.
    let exponential = graph.is(x, Opcode::Exp) && plain[x];
    let carried = graph.is_floating(state.old)
        && (x == graph.strip_uniform(state.old) || x == graph.strip_uniform(state.new))
        && graph.is(graph.strip_uniform(state.new), Opcode::Multiply);
    power || exponential || carried
}
