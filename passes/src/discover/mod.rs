//! Finding the train step in a module, without names and without training code.
//!
//! Analysis only; nothing is changed. The entry is read as a graph of arrays
//! (`graph`), outputs are paired with the inputs they succeed (`pair`), data is
//! followed (`flow`), states get their roles (`roles`), and each parameter's
//! gradient is the last array of its shape through which all data reaches it
//! (`gradient`). Names and metadata serve display alone: the answer is the same
//! without them. What cannot be decided is refused with the candidates; no tensor is
//! ever guessed.

mod accumulation;
mod classify;
mod direction;
mod dominance;
mod enclosing;
mod error;
mod flow;
mod gradient;
mod graph;
mod momentum;
mod pair;
mod parity;
mod parts;
mod replicas;
mod roles;
mod trips;
mod update;

use std::collections::{BTreeMap, BTreeSet};

use hlo::{AliasKind, Instruction, Module, Opcode, Shape};

pub use error::{DiscoverError, Refusal, RefusalKind};
pub(crate) use graph::TRANSPARENT;
pub use replicas::{DataCount, data_dependent_counts, varying_outputs};
pub use trips::trip_count;

use self::classify::Classifier;
use self::flow::{Flow, StateNode};
use self::gradient::{Finder, Outcome};
use self::graph::{Graph, NodeId};
use self::pair::Pairs;
use self::roles::Roles;
use crate::manual::Body;
use crate::step::{
    Confidence, GradientStatus, LinkKind, Moment, MomentumStatus, Pairing, Parameter, PartsStatus, State, StateClass,
    StateRole, TrainStep,
};

/// The train step of `module`: of its entry, or of the loop inside that carries the parameters.
///
/// Calls need not be inlined, but only values of the entry (or of the loop body) can be named:
/// run `inline-calls` first, save for bodies that must stay calls.
///
/// # Errors
///
/// Where no step is found, or the gradient of some parameter is not decided.
pub fn discover(module: &Module) -> Result<TrainStep, DiscoverError> {
    discover_with(module, &BTreeMap::new())
}

/// The same where somebody knows of outputs which input's next value they are: `successors` has the parameter's number by output.
///
/// Like the alias table, whose entries they replace, they decide where the graph alone does not: an optimizer that keeps the last
/// gradient has a state whose next value owes nothing to its old one.
///
/// # Errors
///
/// As [`discover`].
pub fn discover_with(module: &Module, successors: &BTreeMap<usize, usize>) -> Result<TrainStep, DiscoverError> {
    // What a step donates it says itself, most of the time.
    let said: BTreeSet<(usize, usize)> = module.aliases().iter().map(|a| (a.output, a.parameter)).collect();
    if successors.iter().all(|(&output, &parameter)| said.contains(&(output, parameter))) {
        return discover_hinted(module);
    }
    let mut hinted = module.clone();
    let parameters: BTreeSet<usize> = successors.values().copied().collect();
    let known = |parameter: usize| parameters.contains(&parameter);
    hinted.retain_aliases(|output, parameter| !successors.contains_key(&output) && !known(parameter));
    hinted.retain_donors(|parameter| !known(parameter));
    for (&output, &parameter) in successors {
        // A parameter that is said to have two next values keeps the first.
        let _ = hinted.alias(output, parameter, AliasKind::May);
    }
    discover_hinted(&hinted)
}

/// Finds the step with the help of the module's alias table.
fn discover_hinted(module: &Module) -> Result<TrainStep, DiscoverError> {
    // A body that control cannot be put into is looked at from outside; who wants to control it learns why not.
    if let Ok(Some(body)) = Body::of(module) {
        return in_body(module, &body);
    }
    let entry = module.entry();
    let graph = Graph::new(module, entry)?;
    if graph.inputs.is_empty() || graph.outputs.is_empty() {
        return Err(DiscoverError::NoStep {
            module: module.name().to_owned(),
            inputs: graph.inputs.len(),
            outputs: graph.outputs.len(),
        });
    }
    let alias: BTreeMap<usize, usize> = module.aliases().iter().map(|a| (a.output, a.parameter)).collect();
    let mut pairs = pair::pair(&graph, &alias);
    if pairs.pairs.iter().all(|p| graph.inputs.get(p.input) == graph.outputs.get(p.output)) {
        return Err(DiscoverError::NoState {
            inputs: graph.inputs.len(),
            outputs: graph.outputs.len(),
            hint: swallowing_call(&graph),
        });
    }
    let mut flow = Flow::new(&graph, &pairs.pairs, &[]);
    let mut roles = roles::assign(&flow, &pairs.carry, &[]);
    let weighted = roles::weighted_losses(&flow, &roles, &pairs.carry, &alias);
    if !weighted.is_empty() {
        pairs.pairs.retain(|pair| !weighted.contains(&pair.output));
        flow = Flow::new(&graph, &pairs.pairs, &[]);
        roles = roles::assign(&flow, &pairs.carry, &[]);
    }
    if let Some((body, site)) = enclosing::enclosing_loop(&flow, &roles, &pairs) {
        return enclosing::step_in(module, &flow, &pairs, body, site);
    }
    let step = describe(&graph, &flow, roles, &pairs)?;
    Ok(in_manual_computation(module, &graph, step))
}

/// The display name of an input: its tree path where the front end left one.
fn display_name(graph: &Graph<'_>, id: NodeId) -> String {
    let id = graph.input(id).unwrap_or(id);
    let Some(instruction) = graph.instruction(id) else {
        return graph.display(id);
    };
    let path = instruction.op_name();
    match (path.is_empty(), instruction.shape.is_tuple()) {
        (false, false) => path.to_owned(),
        _ => graph.display(id),
    }
}

fn swallowing_call(graph: &Graph<'_>) -> String {
    let opaque = graph
        .outputs
        .iter()
        .find(|&&o| graph.is(o, Opcode::CustomCall) && graph.inputs.iter().any(|&i| graph.dims(i) == graph.dims(o)));
    match opaque.and_then(|&o| graph.instruction(o)) {
        Some(call) => {
            format!("; the opaque custom call {call} ({}) may hide an update", call.attributes.custom_call_target)
        }
        None => String::new(),
    }
}

/// The step in the body of a `shard_map`, with the program's names and numbers for inputs and outputs.
fn in_body(module: &Module, body: &Body) -> Result<TrainStep, DiscoverError> {
    let mut inner = module.clone();
    if inner.enter(body.computation(), &body.aliases_inside(module)).is_err() {
        return Err(DiscoverError::NoSuchComputation { computation: body.computation().index().to_string() });
    }
    let mut step = body.numbers_outside(&discover(&inner)?);
    let entry = module.entry_computation();
    let names: Vec<Option<String>> = entry.parameters().into_iter().map(|id| given_name(entry.get(id)?)).collect();
    let name = |input: usize| names.get(input).cloned().flatten();
    for parameter in &mut step.parameters {
        parameter.name = name(parameter.input).unwrap_or_else(|| std::mem::take(&mut parameter.name));
    }
    for state in &mut step.states {
        state.name = name(state.input).unwrap_or_else(|| std::mem::take(&mut state.name));
    }
    let computation = module.computation(body.computation()).map_or("", |c| c.name.as_str());
    step.notes.push(format!("the step runs per device inside {computation:?} (shard_map)"));
    Ok(step)
}

/// The tree path that the front end left.
fn given_name(instruction: &Instruction) -> Option<String> {
    Some(instruction.op_name().to_owned()).filter(|path| !path.is_empty())
}

/// Notes where the step's values live in a computation that must stay a call (`shard_map`).
fn in_manual_computation(module: &Module, graph: &Graph<'_>, mut step: TrainStep) -> TrainStep {
    let outside = graph.ids().map(|id| graph.node(id)).find(|n| {
        n.computation != graph.computation
            && !n.inner
            && step.controlled().any(|(_, g)| g.eff.instruction == n.instruction)
    });
    if let Some(node) = outside
        && let Some(manual) = module.computation(node.computation)
        && manual.name.contains("manual_computation_body")
    {
        step.computation = node.computation;
        step.notes.push(format!("the step runs per device inside {:?} (shard_map)", manual.name));
    }
    step
}

fn describe(graph: &Graph<'_>, flow: &Flow<'_, '_>, roles: Roles, pairs: &Pairs) -> Result<TrainStep, DiscoverError> {
    if roles.parameters.is_empty() && roles.refusals.is_empty() {
        return Err(DiscoverError::NoParameters {
            states: flow.states.len(),
            reason: no_parameter_reason(flow, &roles),
        });
    }
    let mut refusals = roles.refusals.clone();
    let float_index: BTreeMap<NodeId, usize> = flow.floats.iter().enumerate().map(|(k, s)| (s.old, k)).collect();
    let mut finder = Finder::new(flow, &roles, &pairs.carry);
    let mut parameters = Vec::new();
    let mut consumes = Vec::new();
    // Tensors first: what their updates take in from the side is no flow for scalars.
    for &p in &roles.parameters {
        let Some(state) = flow.floats.get(p) else {
            continue;
        };
        let outcome = finder.find(p);
        if let Outcome::Refused(refusal) = outcome {
            refusals.push(refusal);
            continue;
        }
        if let Outcome::Found(found) = &outcome {
            consumes.push(found.consumes);
        }
        parameters.push(parameter(flow, &roles, p, state, outcome));
    }
    if !refusals.is_empty() {
        return Err(DiscoverError::Refused(refusals));
    }
    for (&k, reason) in &roles.untrained {
        let Some(state) = flow.floats.get(k) else {
            continue;
        };
        // A scalar that only scales the loss is a state of the optimizer, not a tensor without a gradient.
        if graph.is_scalar(state.old) && state.new != state.old {
            continue;
        }
        parameters.push(parameter(flow, &roles, k, state, Outcome::Absent(reason.clone())));
    }
    for &k in &roles.unused {
        let Some(state) = flow.floats.get(k) else {
            continue;
        };
        let reason = "unused: no loss depends on it, and no data reaches its new value".to_owned();
        parameters.push(parameter(flow, &roles, k, state, Outcome::Absent(reason)));
    }
    parameters.sort_by_key(|p| p.input);
    let classifier = Classifier::new(flow, &roles);
    let states = flow
        .states
        .iter()
        .map(|s| {
            let verdict = classifier.classify(s, float_index.get(&s.old).copied());
            State {
                name: display_name(graph, s.old),
                input: s.pair.input,
                output: s.pair.output,
                value: graph.value(s.given),
                new_value: graph.value(s.returned),
                shape: Shape::from(graph.node(s.given).shape.clone()),
                role: verdict.role,
                class: verdict.class,
                reason: verdict.reason,
                pairing: s.pair.how,
            }
        })
        .collect();
    let mut notes = flow.notes.clone();
    notes.extend(roles.notes.iter().cloned());
    let step = TrainStep {
        computation: graph.computation,
        inside_loop: None,
        consumes: consumes
            .first()
            .copied()
            .flatten()
            .filter(|c| consumes.iter().all(|other| *other == Some(*c)))
            .map(|c| graph.value(c)),
        parameters,
        states,
        batch: flow.batch.clone(),
        loss: roles.loss,
        notes,
    };
    Ok(with_notes(step))
}

fn no_parameter_reason(flow: &Flow<'_, '_>, roles: &Roles) -> String {
    if let Some((&k, reason)) = roles.untrained.iter().next() {
        let name = flow.floats.get(k).map(|s| display_name(flow.graph, s.old)).unwrap_or_default();
        return format!("{name}: {reason}");
    }
    if flow.floats.is_empty() {
        return "none of them is floating-point".into();
    }
    if !flow.states.iter().any(|s| flow.tainted[s.new]) {
        return "no new value depends on data".into();
    }
    "no output that depends on data (a loss) depends on any of them".into()
}

/// Remarks about the whole step that follow from its parts.
fn with_notes(mut step: TrainStep) -> TrainStep {
    let ties = step.states.iter().filter(|s| s.pairing == Pairing::AliasTie).count();
    if ties > 0 {
        step.notes.push(format!("{ties} state(s) were paired with their outputs by the alias table alone after a tie"));
    }
    let guesses: Vec<_> =
        step.states.iter().filter(|s| s.pairing == Pairing::OrderTie).map(|s| s.name.as_str()).collect();
    if !guesses.is_empty() {
        step.notes.push(format!(
            "equally good pairings of inputs and outputs were decided by their order: {}",
            guesses.join(", ")
        ));
    }
    let both: Vec<_> = step.states.iter().filter(|s| s.class == StateClass::Both).map(|s| s.name.as_str()).collect();
    if !both.is_empty() {
        step.notes.push(format!(
            "{} corrects moments and drives a schedule at once; a gate holds it unless the policy says otherwise",
            both.join(", ")
        ));
    }
    if step.states.iter().any(|s| s.role == StateRole::AccumulationCounter) {
        step.notes.push(match step.consumes {
            Some(_) => {
                "gradients are accumulated over several calls: `eff` is the gradient of one micro-batch; what the \
                        moments take in is measured, and the controller goes on in the call that consumes it"
                    .into()
            }
            None => "gradients are accumulated over several calls: `eff` is the gradient of one micro-batch".into(),
        });
    }
    step
}

fn parameter(flow: &Flow<'_, '_>, roles: &Roles, p: usize, state: &StateNode, outcome: Outcome) -> Parameter {
    let graph = flow.graph;
    let master = roles.masters.get(&p).and_then(|&m| flow.floats.get(m));
    let updated = master.unwrap_or(state);
    let update = update::update(flow, updated.old, updated.new);
    let mut reasons = Vec::new();
    let mut confidence = Confidence::Strong;
    let mut weaken = |reason: String| {
        confidence = Confidence::Weak;
        reasons.push(reason);
    };
    match updated.pair.how {
        Pairing::Carry | Pairing::LoopCarried | Pairing::DerivedKey => {}
        Pairing::AliasTie => weaken("its output was told from an equally good one by the alias table".into()),
        Pairing::OrderTie => weaken("its output was told from an equally good one by the order of inputs".into()),
        Pairing::AliasOnly => weaken("its output is known from the alias table only".into()),
    }
    let found = match &outcome {
        Outcome::Found(found) => Some(found.clone()),
        _ => None,
    };
    if let Some(found) = &found {
        if let Some(scale) = &found.constant_scale {
            weaken(format!(
                "known up to a constant only: {} multiplies by {}, which may be the optimizer's or the gradient's own",
                scale.instruction, scale.factor
            ));
        }
        if let Some(moment) = found.only_through.and_then(|s| flow.floats.get(s)) {
            weaken(format!(
                "data reaches its new value by other ways, too; this is what {} accumulates",
                display_name(graph, moment.old)
            ));
        }
        if found.scaled_by_state() {
            weaken("multiplied by a scalar that the optimizer keeps as state: `raw` is before it".into());
        }
        if found.peeled > 0 {
            reasons.push(format!("{} learning-rate factor(s) were taken off", found.peeled));
        }
    }
    if let Some(master) = master {
        reasons.push(format!("updated through its wide copy {}", display_name(graph, master.old)));
    }
    let moments: Vec<Moment> = roles
        .groups
        .get(&p)
        .into_iter()
        .flatten()
        .filter_map(|&s| {
            let owner = flow.floats.get(s)?;
            let m = update::moment(flow, found.as_ref(), s);
            flow.data[owner.new].then_some(Moment { input: owner.pair.input, form: m.form, of: m.of, decay: m.decay })
        })
        .collect();
    let group = roles.groups.get(&p).map(Vec::as_slice).unwrap_or_default();
    let momentum = match &found {
        Some(found) => momentum::momentum(flow, found, (updated.old, updated.new), group),
        None => MomentumStatus::Absent { reason: "it has no gradient".to_owned() },
    };
    let own: Vec<usize> = roles.masters.get(&p).copied().into_iter().chain([p]).collect();
    let parts = parts::parts(flow, &update, group, &own);
    let direction = direction::direction(flow, &parts, &momentum);
    if found.is_some() {
        reasons.push(match moments.len() {
            0 => "every path from the data to its new value runs through the gradient".into(),
            n => format!("every path from the data to its new value and to {n} state(s) runs through the gradient"),
        });
    }
    let gradient = match outcome {
        Outcome::Found(found) => found.into_step(flow),
        Outcome::Absent(reason) => GradientStatus::Absent { reason },
        Outcome::Refused(refusal) => GradientStatus::Absent { reason: refusal.to_string() },
    };
    if let GradientStatus::Found(gradient) = &gradient {
        let kinds: BTreeSet<LinkKind> = gradient.links.iter().flat_map(|l| l.kinds.iter().copied()).collect();
        if kinds.contains(&LinkKind::AddUntainted) {
            reasons.push("weight decay or noise is added to the gradient: see `raw`".into());
        }
        if kinds.contains(&LinkKind::SelfNorm) {
            reasons.push("the gradient is rescaled by its own norm: see `preclip`".into());
        }
    }
    Parameter {
        name: display_name(graph, state.old),
        input: state.pair.input,
        output: state.pair.output,
        value: graph.value(state.given),
        new_value: graph.value(state.returned),
        shape: Shape::from(graph.node(state.given).shape.clone()),
        master: master.map(|m| m.pair.input),
        gradient,
        update: update.into_step(graph),
        moments,
        momentum,
        parts: match &parts {
            Ok(parts) => PartsStatus::Found(parts.to_step(graph)),
            Err(parts::Whole { reason, computed_apart }) => {
                PartsStatus::Absent { reason: reason.clone(), computed_apart: *computed_apart }
            }
        },
        direction,
        confidence,
        reasons,
    }
}
