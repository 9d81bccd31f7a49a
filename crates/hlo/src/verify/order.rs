//! Computations, names, ids and evaluation order: V001 to V014.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, RandomState};

use super::{Report, Rule};
use crate::ir::{Computation, ComputationId, Hashed, Instruction, InstructionId, Module};

/// Position of each arena index in an order; `None` where it is not part of it.
pub(super) type Positions = Vec<Option<u32>>;

/// XLA keeps local ids in 31 bits and takes the largest one plus one.
const LARGEST_LOCAL_ID: i64 = 0x7fff_fffe;

pub(super) fn check_module(module: &Module, report: &mut Report<'_>) {
    let mut ids = HashMap::new();
    let mut computation_names = HashSet::new();
    let mut instruction_names = HashMap::new();
    let repeated = may_repeat(module.instruction_count(), module.computations().flat_map(|(_, c)| names(c)));
    for (id, computation) in module.computations() {
        if let Some(other) = ids.insert(computation.wire_id, &computation.name) {
            let message = format!("its id {} is that of %{other} too", computation.wire_id);
            report.computation(Rule::DuplicateComputationId, computation, message);
        }
        if !computation_names.insert(computation.name.as_str()) {
            report.computation(Rule::DuplicateComputationName, computation, "another computation has its name".into());
        }
        for (local, instruction) in computation.instructions().filter(|_| repeated) {
            if let Some(other) = instruction_names.insert(instruction.name.as_str(), (id, local))
                && other != (id, local)
            {
                let owner = module.computation(other.0).map_or("?", |c| &c.name);
                let message = format!("another instruction, in %{owner}, has its name");
                report.instruction(Rule::DuplicateInstructionName, computation, instruction, message);
            }
        }
    }
    check_calls(module, report);
}

fn names(computation: &Computation) -> impl Iterator<Item = &str> {
    computation.instructions().map(|(_, i)| i.name.as_str())
}

/// Whether one of `count` values may stand there twice: `false` is certain.
///
/// A set of hashes takes a third of the memory of a table of values, and next to no module has a value twice.
fn may_repeat(count: usize, mut values: impl Iterator<Item = impl Hash>) -> bool {
    let keys = RandomState::new();
    let mut hashes = HashSet::with_capacity_and_hasher(count, BuildHasherDefault::<Hashed>::default());
    !values.all(|value| hashes.insert(keys.hash_one(value)))
}

fn check_calls(module: &Module, report: &mut Report<'_>) {
    let callees: Vec<Vec<ComputationId>> = module.arena.iter().map(callees).collect();
    let mut positions = vec![None; module.arena.len()];
    for (position, id) in module.order().iter().enumerate() {
        if let Some(slot) = positions.get_mut(id.index()) {
            *slot = Some(position);
        }
    }
    let position = |id: ComputationId| positions.get(id.index()).copied().flatten();
    if position(module.entry()).is_none() {
        report.whole(Rule::MissingComputation, "the entry computation is not part of the module's order".into());
    }
    let recursive = recursive_computations(module, &callees);
    for (id, computation) in module.computations() {
        if recursive.contains(&id) {
            report.computation(Rule::Recursion, computation, "it calls itself, directly or through others".into());
        }
        let in_order = |&c: &ComputationId| position(c).is_some() && (c == id || position(c) <= position(id));
        if callees.get(id.index()).is_some_and(|all| all.iter().all(in_order)) {
            continue;
        }
        for (_, instruction) in computation.instructions() {
            if instruction.called.iter().any(|&c| position(c).is_none()) {
                let message = "it calls a computation that is not part of the module".into();
                report.instruction(Rule::MissingComputation, computation, instruction, message);
            }
            let late = instruction.called.iter().find(|&&c| c != id && position(c) > position(id));
            if let Some(callee) = late.and_then(|&c| module.computation(c)) {
                let message = format!("it calls %{}, which comes after it", callee.name);
                report.instruction(Rule::CalleeAfterCaller, computation, instruction, message);
            }
        }
    }
}

/// The computations that a computation calls, each once.
fn callees(computation: &Computation) -> Vec<ComputationId> {
    let mut called: Vec<_> = computation.instructions().flat_map(|(_, i)| i.called.iter().copied()).collect();
    called.sort_unstable();
    called.dedup();
    called
}

/// Of every cycle of calls a computation that lies on it; `callees` are those of each, by its index.
fn recursive_computations(module: &Module, callees: &[Vec<ComputationId>]) -> HashSet<ComputationId> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let callees = |id: ComputationId| callees.get(id.index()).cloned().unwrap_or_default();
    let mut marks = vec![Mark::New; module.arena.len()];
    let mut found = HashSet::new();
    // Depth first: a call into a computation that is still open closes a cycle.
    for &start in module.order() {
        let mut path = vec![(start, None)];
        while let Some((id, pending)) = path.last_mut() {
            let Some(mark) = marks.get_mut(id.index()) else {
                path.pop();
                continue;
            };
            if pending.is_none() {
                match *mark {
                    Mark::New => *mark = Mark::Open,
                    Mark::Open | Mark::Done => {
                        if *mark == Mark::Open {
                            found.insert(*id);
                        }
                        path.pop();
                        continue;
                    }
                }
            }
            match pending.get_or_insert_with(|| callees(*id)).pop() {
                Some(callee) => path.push((callee, None)),
                None => {
                    *mark = Mark::Done;
                    path.pop();
                }
            }
        }
    }
    found
}

pub(super) fn check_computation(computation: &Computation, report: &mut Report<'_>) -> Positions {
    let mut positions: Positions = vec![None; computation.arena.len()];
    if computation.order.is_empty() {
        report.computation(Rule::EmptyComputation, computation, "it has no instructions".into());
        return positions;
    }
    let mut ids = HashMap::new();
    let repeated = may_repeat(computation.order.len(), computation.instructions().map(|(_, i)| i.wire_id));
    for (position, (id, instruction)) in (0u32..).zip(computation.instructions()) {
        if let Some(slot) = positions.get_mut(id.index()) {
            if slot.is_some() {
                let message = "it stands twice in the computation's order".into();
                report.instruction(Rule::RepeatedInstruction, computation, instruction, message);
                continue;
            }
            *slot = Some(position);
        }
        if repeated && let Some(other) = ids.insert(instruction.wire_id, instruction) {
            let message = format!("its id {:#x} is that of {other} too", instruction.wire_id);
            report.instruction(Rule::DuplicateInstructionId, computation, instruction, message);
        }
        let local = instruction.wire_id & 0xffff_ffff;
        if local > LARGEST_LOCAL_ID {
            let message = format!("its local id is {local:#x}; the largest one allowed is {LARGEST_LOCAL_ID:#x}");
            report.instruction(Rule::LocalId, computation, instruction, message);
        }
    }
    if !matches!(positions.get(computation.root.index()), Some(Some(_))) {
        report.computation(Rule::MissingRoot, computation, "its root is not one of its instructions".into());
    }
    for (position, (_, instruction)) in (0u32..).zip(computation.instructions()) {
        check_operands(computation, instruction, position, &positions, report);
    }
    positions
}

fn check_operands(
    computation: &Computation,
    instruction: &Instruction,
    position: u32,
    positions: &Positions,
    report: &mut Report<'_>,
) {
    let at = |id: &InstructionId| positions.get(id.index()).copied().flatten();
    let name = |id: &InstructionId| computation.get(*id).map_or_else(|| "?".to_owned(), Instruction::to_string);
    if let Some((n, missing)) = instruction.operands.iter().enumerate().find(|(_, o)| at(o).is_none()) {
        let message = format!("its operand {n}, {}, is not part of the computation's order", name(missing));
        report.instruction(Rule::MissingOperand, computation, instruction, message);
    }
    if let Some(late) = instruction.operands.iter().find(|o| at(o).is_some_and(|at| at >= position)) {
        let message = format!("its operand {} comes after it", name(late));
        report.instruction(Rule::UseBeforeDefinition, computation, instruction, message);
    }
    if let Some(late) = instruction.control_predecessors.iter().find(|p| at(p).is_none_or(|at| at >= position)) {
        let message = format!("its control predecessor {} is missing or comes after it", name(late));
        report.instruction(Rule::ControlPredecessor, computation, instruction, message);
    }
}
