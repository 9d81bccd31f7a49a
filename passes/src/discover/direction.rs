//! The first moment that could take the place of an update's direction: of what is left of the update without learning rate
//! and weight decay ([`parts`](super::parts)), perhaps with factors inside the numerator of a quotient.

use hlo::Opcode;

use super::flow::Flow;
use super::graph::NodeId;
use super::parts::{FoundParts, Whole, buried, plain};
use super::update::strip_guards;
use crate::step::{Direction, DirectionStatus, Momentum, MomentumStatus};

/// The direction of a parameter's update, of which `parts` are known, or why not.
pub(super) fn direction(
    flow: &Flow<'_, '_>,
    parts: &Result<FoundParts, Whole>,
    momentum: &MomentumStatus,
) -> DirectionStatus {
    match find(flow, parts, momentum) {
        Ok(direction) => DirectionStatus::Found(direction),
        Err(reason) => DirectionStatus::Absent { reason },
    }
}

fn find(
    flow: &Flow<'_, '_>,
    parts: &Result<FoundParts, Whole>,
    momentum: &MomentumStatus,
) -> Result<Direction, String> {
    let moment = match momentum {
        MomentumStatus::Found(found) => match found.as_slice() {
            [one] => moment_of(flow, one)?,
            several => return Err(format!("it has {} first moments, and SGD would go along one", several.len())),
        },
        MomentumStatus::Absent { reason } => return Err(format!("it has no first moment ({reason})")),
    };
    let parts = parts.as_ref().map_err(|whole| whole.reason.clone())?;
    let graph = flow.graph;
    let is_moment = |n: NodeId| graph.through_conversions(n) == graph.through_conversions(moment);
    if is_moment(parts.value) || is_moment(parts.stepped) {
        return Err("its update is its first moment already".to_owned());
    }
    // Accumulated micro-batches, or a skip: SGD's update would not know when to be zero.
    let chosen = |n: NodeId| graph.is(graph.through_conversions(n), Opcode::Select);
    if [parts.step, parts.stepped, parts.value].into_iter().any(chosen) {
        return Err("its update is there in some steps only, by a predicate".to_owned());
    }
    Ok(Direction {
        parts: parts.to_step(graph),
        buried: buried(flow, parts.value).to_step(graph),
        moment: graph.value(moment),
    })
}

/// The new value of a first moment before guards.
fn moment_of(flow: &Flow<'_, '_>, momentum: &Momentum) -> Result<NodeId, String> {
    let state = flow.states.iter().find(|s| s.pair.input == momentum.input);
    let state = state.ok_or_else(|| "its first moment is no state of the step".to_owned())?;
    let (inside, _) = strip_guards(flow.graph, state.new, state.old);
    if plain(flow.graph, inside) { Ok(inside) } else { Err("its first moment is computed inside a branch".to_owned()) }
}
